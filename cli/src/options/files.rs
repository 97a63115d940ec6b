//! `-readconfig` and `-writeconfig`: options as a file with a section for each use.
//!
//! A section is an option with a list of keys, `id=` in its heading. Options without a list are
//! `[option "name"]` sections with one key `value`, and those that QEMU keeps in `[machine]`
//! (kernel, initrd, append, firmware) may stand there too. What was written reads back as the same
//! uses in the same order.

use std::fmt::Write;

use crate::options::args::find;
use crate::options::keyval::{escape, pairs};
use crate::options::table::Kind;
use crate::options::{Use, nearest};

/// Files that may be read in all: a file that reads itself must end.
pub(crate) const MAX_FILES: usize = 32;

/// Headings that differ from the option's name.
const GROUPS: [(&str, &str); 3] = [("boot-opts", "boot"), ("smp-opts", "smp"), ("memory", "m")];

struct Section {
    name: String,
    id: Option<String>,
    pairs: Vec<(String, String)>,
}

/// The uses that a file stands for.
pub(crate) fn read(path: &str) -> Result<Vec<Use>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("Could not open '{path}': {}", short(&e)))?;
    let mut sections: Vec<(usize, Section)> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let at = |what: &str| format!("{path}:{}: {what}", i + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            let heading = heading.strip_suffix(']').ok_or_else(|| at("heading without ]"))?;
            let (name, id) = match heading.split_once(' ') {
                Some((name, id)) => (name, Some(unquote(id.trim()).ok_or_else(|| at("expected \"id\""))?)),
                None => (heading, None),
            };
            sections.push((i + 1, Section { name: name.into(), id, pairs: vec![] }));
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| at("expected key = \"value\""))?;
        let value = unquote(value.trim()).ok_or_else(|| at("expected key = \"value\""))?;
        let (_, section) = sections.last_mut().ok_or_else(|| at("key without a [section]"))?;
        section.pairs.push((key.trim().into(), value));
    }
    let mut uses = Vec::new();
    for (line, section) in sections {
        uses.push(to_use(section).map_err(|e| format!("{path}:{line}: {e}"))?);
    }
    Ok(uses)
}

fn to_use(section: Section) -> Result<Use, String> {
    let Section { name, id, pairs } = section;
    if name == "option" {
        let name = id.ok_or("expected [option \"name\"]")?;
        let opt = find(&name).ok_or_else(|| format!("There is no option '{name}'"))?;
        let value = pairs.into_iter().find(|(k, _)| k == "value").map(|(_, v)| v).unwrap_or_default();
        return Ok(Use { opt, value });
    }
    let option = GROUPS.iter().find(|(g, _)| *g == name).map_or(name.as_str(), |(_, o)| o);
    let opt = find(option).filter(|o| matches!(o.kind, Kind::List { .. } | Kind::Later(_)));
    let opt = opt.ok_or_else(|| {
        let near = nearest(&name, super::table::TABLE.iter().map(|o| o.name));
        let hint = near.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        format!("There is no option group '{name}'{hint}")
    })?;
    let id = id.map(|id| ("id".to_owned(), id));
    let all: Vec<String> = id.into_iter().chain(pairs).map(|(k, v)| format!("{k}={}", escape(&v))).collect();
    Ok(Use { opt, value: all.join(",") })
}

/// Writes the uses to a file, or to standard output for `-`.
pub(crate) fn write(path: &str, uses: &[Use]) -> Result<(), String> {
    let text = render(uses);
    if path == "-" {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(path, text).map_err(|e| format!("Could not write '{path}': {}", short(&e)))
}

/// The uses as a file.
pub(crate) fn render(uses: &[Use]) -> String {
    let mut out = String::from("# anura configuration\n");
    for u in uses.iter().filter(|u| !matches!(u.opt.name, "readconfig" | "writeconfig")) {
        out.push('\n');
        let Kind::List { implied, .. } = u.opt.kind else {
            let _ = writeln!(out, "[option \"{}\"]", u.opt.name);
            if u.opt.arg.is_some() {
                let _ = writeln!(out, "  value = {}", quote(&u.value));
            }
            continue;
        };
        let all = pairs(&u.value, implied);
        let id = all.iter().find(|(k, _)| k == "id").map(|(_, v)| format!(" {}", quote(v)));
        let group = GROUPS.iter().find(|(_, o)| *o == u.opt.name).map_or(u.opt.name, |(g, _)| g);
        let _ = writeln!(out, "[{group}{}]", id.unwrap_or_default());
        for (k, v) in all.iter().filter(|(k, _)| k != "id") {
            let _ = writeln!(out, "  {k} = {}", quote(v));
        }
    }
    out
}

/// Quotes text so that it stays on one line.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            '"' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

/// A system error without Rust's number behind it.
fn short(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
