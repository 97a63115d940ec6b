//! `cargo xtask bench cpu`: one guest program on the host, on our engine and on QEMU's TCG, in turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::guest::{self, Outcome};
use super::report::{Report, Times};

const USAGE: &str = "usage: cargo xtask bench cpu [OPTIONS]
  --only LIST      groups and tests, as in int,fp/double-root; all of them without
  --rounds N       runs of each machine, in turn (3)
  --engine NAME    the engine of ours (jit, or interp where there is none)
  --cpu MODEL      -cpu of both emulators (their default; max for AVX2 and FMA)
  --scale PERCENT  size of the tests (100)
  --median         the median of the rounds instead of the shortest
  --without WHAT   leave out native, anura or qemu; may be given more than once
  --qemu PROGRAM   QEMU (qemu-system-x86_64)
  --anura PROGRAM  a built anura
  --limit SECONDS  a test that takes longer hangs (300)
  --json FILE      the figures, for other programs
Groups: int fp x87 vec mem kernel code smp io. smp runs on two processors, the others on one.";

struct Options {
    only: Vec<String>,
    rounds: u32,
    engine: Option<String>,
    cpu: Option<String>,
    scale: u32,
    median: bool,
    without: Vec<String>,
    qemu: String,
    anura: Option<PathBuf>,
    limit: u64,
    json: Option<PathBuf>,
}

fn options(args: &[&str]) -> Result<Options, String> {
    let mut o = Options {
        only: Vec::new(),
        rounds: 3,
        engine: None,
        cpu: None,
        scale: 100,
        median: false,
        without: Vec::new(),
        qemu: "qemu-system-x86_64".into(),
        anura: None,
        limit: 300,
        json: None,
    };
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        if arg == "--median" {
            o.median = true;
            continue;
        }
        if arg == "--help" {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let value = args.next().ok_or(USAGE)?;
        match arg {
            "--only" => o.only.extend(value.split(',').map(str::to_owned)),
            "--rounds" => o.rounds = value.parse().map_err(|_| USAGE)?,
            "--engine" => o.engine = Some(value.into()),
            "--cpu" => o.cpu = Some(value.into()),
            "--scale" => o.scale = value.parse().map_err(|_| USAGE)?,
            "--without" => o.without.push(value.into()),
            "--qemu" => o.qemu = value.into(),
            "--anura" => o.anura = Some(value.into()),
            "--limit" => o.limit = value.parse().map_err(|_| USAGE)?,
            "--json" => o.json = Some(value.into()),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(o)
}

/// The words for the guest program of one boot: processors and tests.
fn boots(only: &[String], scale: u32) -> Vec<(&'static str, Vec<String>)> {
    let (smp, others): (Vec<_>, Vec<_>) =
        only.iter().cloned().partition(|word| word.split('/').next() == Some("smp"));
    let mut boots = vec![("1", others), ("2", smp)];
    if only.is_empty() {
        boots[1].1.push("smp".into());
    } else {
        boots.retain(|(_, words)| !words.is_empty());
    }
    boots.iter_mut().for_each(|(_, words)| words.push(format!("{scale}%")));
    boots
}

/// What all rounds found.
#[derive(Default)]
struct Found {
    times: [Times; 3],
    sums: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    order: Vec<String>,
    notes: Vec<String>,
    failures: Vec<String>,
}

impl Found {
    fn take(&mut self, machine: usize, name: &str, outcome: Outcome) {
        for (test, (time, sum)) in outcome.results {
            self.times[machine].entry(test.clone()).or_default().push(time);
            let who = self.sums.entry(test.clone()).or_default().entry(sum).or_default();
            if !who.iter().any(|n| n == name) {
                who.push(name.to_owned());
            }
        }
        let mut absent: BTreeMap<String, Vec<String>> = BTreeMap::new();
        outcome.absent.into_iter().for_each(|(test, why)| absent.entry(why).or_default().push(test));
        let absent = absent.into_iter().map(|(why, tests)| format!("{why}: {}", tests.join(" ")));
        for note in outcome.notes.into_iter().chain(absent) {
            let note = format!("{name}: {note}");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        self.failures.extend(outcome.failure.map(|why| format!("{name} {why}")));
    }

    /// Tests whose machines do not agree.
    fn disagreements(&self) -> Vec<String> {
        let differ = self.sums.iter().filter(|(_, sums)| sums.len() > 1);
        differ
            .map(|(test, sums)| {
                let who: Vec<_> = sums.iter().map(|(sum, who)| format!("{} {sum}", who.join(", "))).collect();
                format!("{test}: checksums differ: {}", who.join("; "))
            })
            .collect()
    }
}

/// Builds what is needed, runs all machines in turn, and prints the tables.
pub fn run(args: &[&str]) -> Result<(), String> {
    let o = options(args)?;
    let without = |what: &str| o.without.iter().any(|w| w == what);
    crate::with_cloud_guest()?;
    let program = guest::build()?;
    let disk = guest::ram_disk(&program)?;
    let anura = match &o.anura {
        Some(path) => path.clone(),
        None => super::anura()?,
    };
    let engine = o.engine.clone().unwrap_or_else(|| super::default_engine(&anura));
    let accel = super::accel(&anura, &engine);
    let has_qemu = crate::on_path(&o.qemu) || PathBuf::from(&o.qemu).is_file();
    if !has_qemu && !without("qemu") {
        eprintln!("xtask: {} is not there; nothing to compare with", o.qemu);
    }
    let mut found = Found { order: list(&program)?, ..Found::default() };
    for round in 1..=o.rounds {
        for (cpus, words) in boots(&o.only, o.scale) {
            let machine = |program: &PathBuf, accel: &str| {
                let mut command = guest::machine(program, accel, cpus, &disk, &words);
                if let Some(model) = &o.cpu {
                    command.args(["-cpu", model]);
                }
                command
            };
            let mut native = Command::new(&program);
            native.args(&words);
            let machines = [
                ("native", "native".to_owned(), native),
                ("anura", format!("anura {engine}"), machine(&anura, &accel)),
                ("qemu", "QEMU".to_owned(), machine(&PathBuf::from(&o.qemu), "tcg,thread=multi")),
            ];
            for (index, (what, name, mut command)) in machines.into_iter().enumerate() {
                if without(what) || what == "qemu" && !has_qemu {
                    continue;
                }
                eprintln!("xtask: round {round} of {}, {cpus} CPU, {name}", o.rounds);
                found.take(index, &name, guest::listen(&mut command, Duration::from_secs(o.limit)));
            }
        }
    }
    let disagreements = found.disagreements();
    let Found { times: [native, anura, qemu], sums, mut order, notes, failures } = found;
    order.retain(|name| sums.contains_key(name));
    let max = o.cpu.as_deref() == Some("max");
    let report = Report { order, native, anura, qemu, max, median: o.median };
    println!("{}", report.text());
    notes.iter().for_each(|note| println!("{note}"));
    if let Some(path) = &o.json {
        std::fs::write(path, report.json()).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let wrong: Vec<String> = disagreements.into_iter().chain(failures).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\nxtask: ")) }
}

/// The names of all tests, in order.
fn list(program: &PathBuf) -> Result<Vec<String>, String> {
    let output =
        Command::new(program).arg("--list").output().map_err(|e| format!("the guest program: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_several_processors_are_a_boot_of_their_own() {
        let words = |only: &str| {
            let only: Vec<String> = only.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect();
            boots(&only, 50)
        };
        assert_eq!(words("int,fp/a"), [("1", vec!["int".to_owned(), "fp/a".into(), "50%".into()])]);
        assert_eq!(words("smp/mutex"), [("2", vec!["smp/mutex".to_owned(), "50%".into()])]);
        assert_eq!(words("").len(), 2);
    }

    #[test]
    fn machines_that_do_not_agree_are_named() {
        let mut found = Found::default();
        for (machine, name, sum) in [(0, "native", "1"), (1, "anura", "2"), (2, "QEMU", "1")] {
            let results = BTreeMap::from([("int/a".to_owned(), (1.0, sum.to_owned()))]);
            found.take(machine, name, Outcome { results, ..Outcome::default() });
        }
        assert_eq!(found.disagreements(), ["int/a: checksums differ: native, QEMU 1; anura 2"]);
    }
}
