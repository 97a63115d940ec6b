//! Where a stream goes to or comes from: `file:PATH` or `exec:COMMAND`, as QEMU spells them.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::process::{Command, Stdio};

use crate::MigrationError;

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uri {
    /// A file.
    File(String),
    /// The standard input or output of a shell command.
    Exec(String),
}

impl Uri {
    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, MigrationError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            Some(("exec", command)) if !command.is_empty() => Ok(Self::Exec(command.to_owned())),
            _ => Err(MigrationError::Protocol(text.to_owned())),
        }
    }

    fn host(&self, source: std::io::Error) -> MigrationError {
        let what = match self {
            Self::File(path) => format!("file:{path}"),
            Self::Exec(command) => format!("exec:{command}"),
        };
        MigrationError::Host { what, source }
    }

    /// Lets `work` write the stream. A file that could not be written whole is removed.
    pub fn write(
        &self,
        work: impl FnOnce(&mut dyn Write) -> Result<(), MigrationError>,
    ) -> Result<(), MigrationError> {
        match self {
            Self::File(path) => {
                let file = File::create(path).map_err(|e| self.host(e))?;
                let mut out = BufWriter::new(file);
                let written = work(&mut out).and_then(|()| {
                    let file = out.into_inner().map_err(|e| self.host(e.into_error()))?;
                    file.sync_all().map_err(|e| self.host(e))
                });
                if written.is_err() {
                    let _ = std::fs::remove_file(path);
                }
                written
            }
            Self::Exec(command) => {
                let mut child = self.spawn(command, Stdio::piped(), Stdio::inherit())?;
                let written = match child.stdin.take() {
                    Some(stdin) => {
                        let mut out = BufWriter::new(stdin);
                        work(&mut out).and_then(|()| out.flush().map_err(|e| self.host(e)))
                    }
                    None => Ok(()),
                };
                let ended = self.wait(command, &mut child);
                // The command's own failure explains a broken pipe better than the pipe does.
                ended.and(written)
            }
        }
    }

    /// Lets `work` read the stream.
    pub fn read(
        &self,
        work: impl FnOnce(&mut dyn Read) -> Result<(), MigrationError>,
    ) -> Result<(), MigrationError> {
        match self {
            Self::File(path) => {
                let file = File::open(path).map_err(|e| self.host(e))?;
                work(&mut BufReader::new(file))
            }
            Self::Exec(command) => {
                let mut child = self.spawn(command, Stdio::null(), Stdio::piped())?;
                let result = match child.stdout.take() {
                    Some(stdout) => work(&mut BufReader::new(stdout)),
                    None => Ok(()),
                };
                let ended = self.wait(command, &mut child);
                result.and(ended)
            }
        }
    }

    fn spawn(
        &self,
        command: &str,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<std::process::Child, MigrationError> {
        Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .map_err(|e| self.host(e))
    }

    fn wait(&self, command: &str, child: &mut std::process::Child) -> Result<(), MigrationError> {
        let status = child.wait().map_err(|e| self.host(e))?;
        if status.success() {
            Ok(())
        } else {
            Err(MigrationError::Command { command: command.to_owned(), status })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_others_are_refused_with_the_choice() {
        assert_eq!(Uri::parse("file:/tmp/x").unwrap(), Uri::File("/tmp/x".into()));
        assert_eq!(Uri::parse("exec:cat > x:y").unwrap(), Uri::Exec("cat > x:y".into()));
        let error = Uri::parse("tcp:1.2.3.4:5").unwrap_err().to_string();
        assert!(error.contains("file:PATH") && error.contains("tcp:1.2.3.4:5"));
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        let result = Uri::Exec("cat >/dev/null; exit 3".into()).write(|out| {
            out.write_all(b"x").unwrap();
            Ok(())
        });
        assert!(matches!(result, Err(MigrationError::Command { .. })));
    }
}
