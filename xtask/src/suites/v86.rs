//! v86's nasm tests: 32-bit user programs, and the states in which a real processor left them.
//!
//! The suite's own scripts make `NAME.img` and `NAME.fixture` in its `build` folder. The programs run in a machine of
//! our own (`suite_v86`); what is compared is stricter than what the suite compares: all of the x87's status, all bits
//! of its registers.

use super::{Expected, Request, Verdict, expected, run_for};
use crate::root;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Building the program is part of it.
const LIMIT: Duration = Duration::from_secs(1200);

/// What one engine's run told: names that failed, each with a reason, and how many there were.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    failed: Vec<(String, String)>,
    total: usize,
}

fn parse(text: &str) -> Option<Report> {
    let mut report = Report { failed: Vec::new(), total: 0 };
    let mut done = false;
    for line in text.lines() {
        if let Some((name, why)) = line.split_once(" fail ") {
            report.failed.push((name.into(), why.into()));
        } else if let Some(total) = line.strip_prefix("total ") {
            report.total = total.parse().ok()?;
            done = true;
        }
    }
    done.then_some(report)
}

/// Failures that the list does not have. A test that is not listed is to pass.
fn regressions(report: &Report, list: &Expected) -> Vec<String> {
    let known = |name: &str| list.get(name).is_some_and(|(verdict, _)| *verdict != Verdict::Pass);
    let failed = report.failed.iter().filter(|(name, _)| !known(name));
    failed.map(|(name, why)| format!("{name}: {why}")).collect()
}

/// Runs everything and compares.
pub fn judge(request: &Request) -> Result<(), String> {
    if request.peer {
        return Err(
            "v86: the programs run in a machine of our own; --peer is for whole-machine suites".into()
        );
    }
    let Some(from) = &request.from else {
        eprintln!("skipped: v86: no folder given (--from DIR, with *.img and *.fixture in it)");
        return Ok(());
    };
    if !has_programs(from) {
        eprintln!("skipped: v86: no *.img with its *.fixture in {}", from.display());
        return Ok(());
    }
    let list = expected(&root().join("tests/suites/v86.txt"))?;
    let mut worse = Vec::new();
    for engine in &request.engines {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let run = ["run", "--release", "--quiet", "--package", "anura-tests", "--bin", "suite_v86", "--"];
        command.current_dir(root()).args(run).arg(from).arg(engine).args(&request.only);
        let outcome = run_for(&mut command, LIMIT)?;
        let report =
            parse(&outcome.text).ok_or_else(|| format!("v86 on {engine}: {}", outcome.text.trim()))?;
        for (name, why) in &report.failed {
            println!("{name:30} fail [{why}]");
        }
        println!("v86 {}/{} ({engine})", report.total - report.failed.len(), report.total);
        for (name, (verdict, _)) in &list {
            let asked = request.only.is_empty() || request.only.contains(name);
            if asked && *verdict != Verdict::Pass && !report.failed.iter().any(|(failed, _)| failed == name) {
                println!("{name:30} better than listed");
            }
        }
        worse.extend(regressions(&report, &list).into_iter().map(|line| format!("{line} ({engine})")));
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!("v86: worse than the list says:\n  {}", worse.join("\n  ")))
}

fn has_programs(from: &Path) -> bool {
    let entries = std::fs::read_dir(from).into_iter().flatten().flatten();
    let mut images =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "img"));
    images.any(|image| image.with_extension("fixture").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_listed_must_pass() {
        let report = parse("a fail eax is 1\nb fail ebx is 2\ntotal 9\n").unwrap();
        assert_eq!((report.failed.len(), report.total), (2, 9));
        let list = Expected::from([("a".to_owned(), (Verdict::Fail, "a reason".to_owned()))]);
        assert_eq!(regressions(&report, &list), ["b: ebx is 2"]);
    }

    #[test]
    fn a_run_that_was_cut_off_is_no_result() {
        assert_eq!(parse("a fail eax is 1\n"), None);
    }
}
