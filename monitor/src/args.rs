//! Words and expressions of a command line.

use crate::{Session, expr};

/// What follows a command's name.
pub(crate) struct Args<'a> {
    pub(crate) rest: &'a str,
}

impl<'a> Args<'a> {
    pub(crate) fn new(rest: &'a str) -> Self {
        Self { rest: rest.trim() }
    }

    /// Takes a word; quotes keep blanks in it.
    pub(crate) fn word(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        if text.is_empty() {
            return None;
        }
        let (word, rest) = match text.strip_prefix('"').and_then(|t| t.split_once('"')) {
            Some((word, rest)) => (word, rest),
            None => text.split_once(' ').unwrap_or((text, "")),
        };
        self.rest = rest.trim_start();
        Some(word)
    }

    /// Takes a word that must be there.
    pub(crate) fn needed(&mut self, what: &str) -> Result<&'a str, String> {
        self.word().ok_or_else(|| format!("{what} expected"))
    }

    /// Takes a switch such as `-f`, if it is there.
    pub(crate) fn switch(&mut self, name: &str) -> bool {
        let found = self.rest.split(' ').next() == Some(name);
        if found {
            self.word();
        }
        found
    }

    /// Takes an expression.
    pub(crate) fn number(&mut self, session: &Session) -> Result<u64, String> {
        let (value, rest) = expr::parse(self.rest, &*session.machine, session.cpu)?;
        self.rest = rest;
        Ok(value)
    }

    /// Refuses what is left.
    pub(crate) fn done(&self, name: &str) -> Result<(), String> {
        if self.rest.trim().is_empty() {
            Ok(())
        } else {
            Err(format!("{name}: extraneous characters at the end of line"))
        }
    }
}
