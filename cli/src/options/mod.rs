//! From arguments to a [`MachineConfig`]: QEMU's spelling, one line for every mistake.
//!
//! Three steps. `args` maps `-name` and `--name` to clap's form and gives back what was used, in
//! order. Each use is applied to a `Builder` by its row of `table`; `-readconfig` puts more uses in
//! its place. At the end the builder settles what options mean together and which defaults hold.
//!
//! Nothing here touches the host but `-readconfig` and `-writeconfig`: whether a kernel exists or an
//! engine can run is found out by whoever needs it.

mod args;
mod builder;
mod chardev;
mod devices;
mod files;
mod help;
mod keyval;
mod machine;
mod misc;
mod table;
mod value;

pub use help::{LOG_ITEMS, VERSION};

use anura_machine::config::MachineConfig;
use builder::Builder;
use keyval::KeyValues;
use table::{Kind, Opt};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// Build and run this machine.
    Run(Box<MachineConfig>),
    /// Print this and end with success.
    Print(String),
}

/// A mistake on the command line: one line, without the program's name in front.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(pub String);

/// One use of an option.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) opt: &'static Opt,
    pub(crate) value: String,
}

impl Use {
    /// The use as the user wrote it, to begin an error with.
    fn shown(&self) -> String {
        match self.opt.arg {
            Some(_) => format!("-{} {}", self.opt.name, self.value),
            None => format!("-{}", self.opt.name),
        }
    }

    fn error(&self, message: impl std::fmt::Display) -> OptionError {
        OptionError(format!("{}: {message}", self.shown()))
    }
}

/// Parses arguments (without the program's name).
pub fn parse(arguments: &[String]) -> Result<Parsed, OptionError> {
    let mut uses = args::uses(arguments)?;
    let mut i = 0;
    let mut read = 0;
    while i < uses.len() {
        if uses[i].opt.name == "readconfig" {
            read += 1;
            if read > files::MAX_FILES {
                return Err(uses[i].error("configuration files read each other"));
            }
            let more = files::read(&uses[i].value).map_err(|e| uses[i].error(e))?;
            uses.splice(i..=i, more);
        } else {
            i += 1;
        }
    }
    if let Some(text) = uses.iter().find_map(|u| help::asked(u.opt, &u.value)) {
        return text.map(Parsed::Print).map_err(OptionError);
    }
    let mut builder = Builder::default();
    for u in &uses {
        apply(&mut builder, u)?;
    }
    let config = builder.finish()?;
    for u in uses.iter().filter(|u| u.opt.name == "writeconfig") {
        files::write(&u.value, &uses).map_err(|e| u.error(e))?;
    }
    Ok(Parsed::Run(Box::new(config)))
}

fn apply(builder: &mut Builder, u: &Use) -> Result<(), OptionError> {
    let result = match u.opt.kind {
        Kind::Flag(f) => {
            f(builder);
            Ok(())
        }
        Kind::Text(f) => f(builder, &u.value),
        Kind::List { implied, apply } => KeyValues::parse(&u.value, implied).and_then(|mut kv| {
            apply(builder, &mut kv)?;
            kv.done()
        }),
        Kind::Later(why) => Err(format!("{why} not there yet")),
        Kind::Special => Ok(()),
    };
    result.map_err(|e| u.error(e))
}

/// The candidate that a mistyped word most likely means.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= limit || (word.len() >= 3 && c.starts_with(word)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}
