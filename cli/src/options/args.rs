//! The pre-pass and clap: which options were used, with which values, in which order.
//!
//! QEMU's options are long ones with a single dash, and an option with a value takes the next word
//! whatever it looks like. The pre-pass knows which names take a value and turns each use into
//! `--name=value`, which leaves clap nothing to misunderstand.

use clap::{Arg, ArgAction, Command};

use crate::options::table::{Opt, TABLE};
use crate::options::{OptionError, Use, nearest};

/// The option of this name.
pub(crate) fn find(name: &str) -> Option<&'static Opt> {
    TABLE.iter().find(|o| o.name == name || o.alias == Some(name))
}

/// All uses, in order.
pub(crate) fn uses(arguments: &[String]) -> Result<Vec<Use>, OptionError> {
    let matches = command().try_get_matches_from(normalize(arguments)?).map_err(|e| {
        // The pre-pass leaves no way to get here; should there be one, say the first line of it.
        OptionError(e.to_string().lines().next().unwrap_or("invalid option").to_owned())
    })?;
    let mut found = Vec::new();
    for opt in TABLE {
        let indices = matches.indices_of(opt.name).into_iter().flatten();
        let values = matches.get_many::<String>(opt.name).into_iter().flatten();
        found.extend(indices.zip(values).map(|(i, v)| (i, Use { opt, value: v.clone() })));
    }
    found.sort_by_key(|(i, _)| *i);
    Ok(found.into_iter().map(|(_, u)| u).collect())
}

fn command() -> Command {
    TABLE.iter().fold(
        Command::new("anura").disable_help_flag(true).disable_version_flag(true).no_binary_name(true),
        |command, opt| {
            let arg = Arg::new(opt.name).long(opt.name).action(ArgAction::Append).num_args(1);
            command.arg(arg.allow_hyphen_values(true).require_equals(true))
        },
    )
}

fn normalize(arguments: &[String]) -> Result<Vec<String>, OptionError> {
    let mut out = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            Some(name) if !name.is_empty() => name,
            _ => {
                let what = "a disk image; disks are not there yet, boot with -kernel and -initrd";
                return Err(OptionError(format!("{word}: {what}")));
            }
        };
        let Some(opt) = find(name) else { return Err(unknown(name)) };
        let value = match opt.arg {
            None => "",
            Some(_) => words.next().ok_or_else(|| OptionError(format!("-{name}: requires an argument")))?,
        };
        out.push(format!("--{}={value}", opt.name));
    }
    Ok(out)
}

fn unknown(name: &str) -> OptionError {
    let bare = name.split('=').next().unwrap_or(name);
    let names = TABLE.iter().flat_map(|o| [Some(o.name), o.alias]).flatten();
    let hint = match (find(bare), nearest(bare, names)) {
        (Some(opt), _) => format!("; write -{} VALUE", opt.name),
        (None, Some(near)) => format!("; did you mean -{near}?"),
        (None, None) => String::new(),
    };
    OptionError(format!("-{name}: invalid option{hint}"))
}
