//! Golden command lines: what each one means, or the one line that says why not.
//!
//! `golden/*.txt` hold `$ anura …` lines, each followed by the configuration as JSON (what differs
//! from the configuration without arguments) or by the error. `UPDATE_GOLDEN=1 cargo test` writes the
//! answers again; read the difference before it is committed.

use std::path::Path;

use anura_cli::options::{Parsed, parse};
use serde_json::Value;

/// Words as a shell makes them: blanks separate, quotes group.
fn words(line: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => out.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    out
}

/// What of `value` differs from `base`, or all of it where they are of different shape.
fn difference(base: &Value, value: &Value) -> Option<Value> {
    match (base, value) {
        _ if base == value => None,
        (Value::Object(b), Value::Object(v)) if b.keys().eq(v.keys()) => {
            let changed = v.iter().filter_map(|(k, v)| Some((k.clone(), difference(&b[k], v)?)));
            Some(Value::Object(changed.collect()))
        }
        _ => Some(value.clone()),
    }
}

fn json(arguments: &[String]) -> Result<Value, String> {
    match parse(arguments).map_err(|e| e.to_string())? {
        Parsed::Run(config) => Ok(serde_json::to_value(config).unwrap()),
        Parsed::Print(text) => Ok(Value::String(text.lines().next().unwrap_or_default().to_owned())),
    }
}

fn answer(line: &str) -> String {
    match json(&words(line)) {
        Err(e) => format!("anura: {e}"),
        Ok(Value::String(first)) => format!("prints: {first}"),
        Ok(config) => {
            let base = json(&[]).unwrap();
            difference(&base, &config).unwrap_or(Value::Object(Default::default())).to_string()
        }
    }
}

fn check(file: &str, at_least: usize, only_errors: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (mut fresh, mut wrong, mut count) = (String::new(), String::new(), 0);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        fresh += &format!("{line}\n");
        let Some(arguments) = line.strip_prefix("$ anura") else { continue };
        let want = lines.next_if(|l| !l.starts_with("$ ") && !l.is_empty()).unwrap_or_default();
        let got = answer(arguments.trim());
        assert!(!got.contains('\n'), "{line}: more than one line:\n{got}");
        if only_errors {
            assert!(got.starts_with("anura: "), "{line}: {got}");
        }
        if got != want {
            wrong += &format!("{line}\n  want {want}\n  got  {got}\n");
        }
        fresh += &format!("{got}\n");
        count += 1;
    }
    assert!(count >= at_least, "{file} has only {count} command lines");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
}

#[test]
fn right_command_lines_mean_what_they_meant() {
    check("right.txt", 60, false);
}

#[test]
fn wrong_command_lines_are_refused_in_one_line_that_names_option_and_value() {
    check("wrong.txt", 60, true);
}

#[test]
fn a_double_dash_is_a_single_one() {
    let text = include_str!("golden/right.txt");
    for line in text.lines().filter_map(|l| l.strip_prefix("$ anura")) {
        let single = words(line.trim());
        let mut takes_value = false;
        let double: Vec<String> = single
            .iter()
            .map(|w| {
                let is_value = std::mem::take(&mut takes_value);
                if is_value || !w.starts_with('-') {
                    return w.clone();
                }
                takes_value =
                    parse(std::slice::from_ref(w)).is_err_and(|e| e.0.ends_with("requires an argument"));
                format!("--{}", w.trim_start_matches('-'))
            })
            .collect();
        assert_eq!(parse(&single), parse(&double), "{line}");
    }
}

#[test]
fn a_written_configuration_reads_back_as_the_same_machine_and_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.cfg"), dir.path().join("b.cfg"));
    let option = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
    let text = include_str!("golden/right.txt");
    let mut count = 0;
    for line in text.lines().filter_map(|l| l.strip_prefix("$ anura")) {
        let arguments = words(line.trim());
        let Ok(Parsed::Run(config)) = parse(&arguments) else { continue };
        parse(&[&arguments[..], &option("-writeconfig", &a)].concat()).unwrap();
        let again = [option("-readconfig", &a), option("-writeconfig", &b)].concat();
        let Parsed::Run(read) = parse(&again).unwrap() else { panic!("{line}") };
        assert_eq!(read, config, "{line}");
        let text = |p| std::fs::read_to_string(p).unwrap();
        assert_eq!(text(&a), text(&b), "{line}");
        count += 1;
    }
    assert!(count >= 50, "{count}");
}

#[test]
fn mistakes_in_a_configuration_file_name_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.cfg");
    let shown = path.display();
    for (text, want) in [
        ("[devise \"x\"]\n", format!("{shown}:1: There is no option group 'devise'; did you mean 'device'?")),
        ("\nfoo = \"1\"\n", format!("{shown}:2: key without a [section]")),
        ("[machine]\nfoo\n", format!("{shown}:2: expected key = \"value\"")),
        ("[machine]\nfoo = 1\n", format!("{shown}:2: expected key = \"value\"")),
        ("[machine\n", format!("{shown}:1: heading without ]")),
    ] {
        std::fs::write(&path, text).unwrap();
        let arguments = ["-readconfig".to_owned(), shown.to_string()];
        assert_eq!(parse(&arguments).unwrap_err().0, format!("-readconfig {shown}: {want}"));
    }
    std::fs::write(&path, format!("[option \"readconfig\"]\nvalue = \"{shown}\"\n")).unwrap();
    let e = parse(&["-readconfig".to_owned(), shown.to_string()]).unwrap_err().0;
    assert!(e.ends_with("configuration files read each other"), "{e}");
}

#[test]
fn help_lists_have_qemus_form() {
    let print = |line: &str| match parse(&words(line)) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    assert!(print("-version").starts_with("QEMU emulator version 9.2.0 (anura "));
    assert_eq!(
        print("-accel help"),
        "Accelerators supported in QEMU binary:\ntcg\ninterp\ninterp-portable\njit\nkvm\nverify\n"
    );
    let machines = print("-M none -machine help");
    assert!(machines.starts_with("Supported machines are:\nnone                 empty machine\n"));
    assert!(machines.contains("(default)"));
    let cpus = print("-cpu help -machine pc");
    assert!(cpus.starts_with("Available CPUs:\nx86 ") && cpus.contains("Recognized CPUID flags:"));
    assert!(cpus.contains("\nx86 max "));
    let devices = print("-device help");
    assert!(devices.contains("name \"isa-debug-exit\", bus ISA, desc "), "{devices}");
    assert!(!devices.contains("i440FX"), "{devices}");
    let exit = print("-device isa-debug-exit,help");
    assert!(exit.starts_with("isa-debug-exit options:\n  iobase=<uint32>        - "), "{exit}");
    assert!(exit.contains("(default: 1281)"));
    assert!(print("-chardev help").starts_with("Available chardev backend types: \n  null\n"));
    assert!(print("-d help").starts_with("Log items (comma separated):\nout_asm "));
    assert!(print("-trace help").contains("memory_region_ops_write\n"));
    assert_eq!(print("-netdev help"), "Available netdev backend types:\n");
    assert!(print("-object help").contains("  memory-backend-memfd\n"));
    assert!(print("-help").lines().all(|l| l.len() <= 120));
    for line in
        ["-display help", "-vga help", "-smp help", "-boot help", "-audiodev help", "-machine pc,help"]
    {
        assert!(print(line).lines().count() >= 1, "{line}");
    }
}
