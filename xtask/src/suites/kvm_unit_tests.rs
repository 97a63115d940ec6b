//! kvm-unit-tests for x86: multiboot kernels that tell their result through isa-debug-exit.
//!
//! The suite's own `x86/unittests.cfg` says which image runs with which processors and options. Tests for the
//! host's KVM alone are left out.

use super::{Expected, Outcome, Request, Verdict, expected, run_for};
use crate::{cargo, on_path, root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Seconds that a test may take at least; the suite gives some more.
const LIMIT: u64 = 90;

/// Tests that the suite gives less time than an interpreter needs: with protection keys and five levels there are 38
/// million accesses to make; the APIC tests wait for each other by spinning.
const LONG: [(&str, u64); 3] = [("access", 900), ("x2apic", 300), ("xapic", 300)];

/// With the test device these two begin with a hypercall of KVM's, which is no part of a PC. The suite's own switch
/// leaves that out.
const WITHOUT_TEST_DEVICE: [&str; 2] = ["x2apic", "xapic"];

/// One section of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Test {
    name: String,
    file: String,
    smp: u32,
    args: String,
    options: Vec<String>,
    i386: bool,
    seconds: u64,
    /// Why the suite itself would not run it here.
    unfit: Option<&'static str>,
}

fn parse(text: &str) -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            tests.push(Test { name: name.into(), smp: 1, seconds: LIMIT, ..Test::default() });
            continue;
        }
        let (Some(test), Some((key, value))) = (tests.last_mut(), line.split_once('=')) else { continue };
        let value = value.trim().trim_matches(['"', '\'']);
        match key.trim() {
            "file" => test.file = value.into(),
            "smp" => test.smp = value.parse().unwrap_or(1),
            "test_args" => test.args = value.into(),
            "qemu_params" | "extra_params" => {
                test.options = value.split_whitespace().map(str::to_owned).collect();
            }
            "arch" => test.i386 = value == "i386",
            "timeout" => test.seconds = value.parse().unwrap_or(LIMIT),
            "accel" if value == "kvm" => test.unfit = Some("for KVM only"),
            "check" => test.unfit = Some("wants a setting of the host's KVM"),
            "groups" if value.split_whitespace().any(|g| g == "nodefault") => {
                test.unfit = Some("not run by default");
            }
            _ => {}
        }
    }
    tests
}

/// Who runs the tests.
#[derive(Clone, Debug)]
struct Runner {
    name: String,
    program: PathBuf,
    accel: String,
}

impl Runner {
    fn run(&self, test: &Test, image: &Path, environment: &Path) -> Result<(Verdict, String), String> {
        let mut command = Command::new(&self.program);
        command.args(["-accel", &self.accel, "-no-reboot", "-nodefaults", "-device", "pc-testdev"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-display", "none"]);
        command.args(["-serial", "stdio", "-smp", &test.smp.to_string()]).args(&test.options);
        command.arg("-kernel").arg(image).args(["-append", &test.args]);
        if WITHOUT_TEST_DEVICE.contains(&test.name.as_str()) {
            command.arg("-initrd").arg(environment);
        }
        let long = LONG.iter().find(|(name, _)| *name == test.name).map_or(LIMIT, |(_, seconds)| *seconds);
        let outcome = run_for(&mut command, Duration::from_secs(test.seconds.max(long)))?;
        Ok(verdict(&outcome))
    }
}

/// The verdict and one line about it. The port gives (value << 1) | 1.
fn verdict(outcome: &Outcome) -> (Verdict, String) {
    let Some(status) = outcome.status else {
        return (Verdict::Fail, format!("not done after {} s", outcome.took.as_secs()));
    };
    let lines: Vec<&str> = outcome.text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    // Nothing of the guest's: the emulator did not start, whatever its exit code.
    let guest = lines.iter().any(|l| !l.starts_with("anura: ") && !l.starts_with("qemu-system-x86_64: "));
    let last = lines.last().copied().unwrap_or("no output").to_owned();
    if !guest {
        return (Verdict::Skip, format!("does not start: {last}"));
    }
    let bad = lines.iter().find(|l| l.starts_with("FAIL") || l.contains("Unhandled exception"));
    match status.code() {
        Some(1) => (Verdict::Pass, String::new()),
        Some(77) => (Verdict::Skip, lines.iter().find(|l| l.starts_with("SKIP")).unwrap_or(&"").to_string()),
        code => (Verdict::Fail, bad.map_or_else(|| format!("exit code {code:?}: {last}"), |l| l.to_string())),
    }
}

/// Runs everything and compares.
pub fn judge(request: &Request) -> Result<(), String> {
    let Some(from) = &request.from else {
        eprintln!("skipped: kvm-unit-tests: no folder given (--from DIR, with x86/*.flat in it)");
        return Ok(());
    };
    let config = from.join("x86/unittests.cfg");
    let Ok(text) = std::fs::read_to_string(&config) else {
        eprintln!("skipped: kvm-unit-tests: {} is not there", config.display());
        return Ok(());
    };
    cargo(&["build", "--release", "--package", "anura"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut runners: Vec<Runner> = Vec::new();
    for engine in &request.engines {
        let program = target.join("release/anura");
        runners.push(Runner { name: engine.clone(), program, accel: engine.clone() });
    }
    if request.peer {
        let name = "qemu-system-x86_64";
        if !on_path(name) {
            return Err("--peer qemu: qemu-system-x86_64 is not installed".into());
        }
        runners.push(Runner { name: "qemu".into(), program: name.into(), accel: "tcg".into() });
    }
    let list = expected(&root().join("tests/suites/kvm-unit-tests.txt"))?;
    let environment = std::env::temp_dir().join(format!("anura-suite-{}", std::process::id()));
    std::fs::write(&environment, "TEST_DEVICE=0\n").map_err(|e| e.to_string())?;
    let result = compare(request, from, &parse(&text), &runners, &list, &environment);
    // A leftover in the temporary folder harms nobody.
    let _ = std::fs::remove_file(&environment);
    result
}

fn compare(
    request: &Request,
    from: &Path,
    tests: &[Test],
    runners: &[Runner],
    list: &Expected,
    environment: &Path,
) -> Result<(), String> {
    let mut passed = vec![0; runners.len()];
    let (mut total, mut regressions) = (0, Vec::new());
    for test in tests {
        if test.unfit.is_some() || !request.only.is_empty() && !request.only.contains(&test.name) {
            continue;
        }
        let folder = if test.i386 { request.from32.as_deref() } else { Some(from) };
        let Some(image) = folder.map(|f| f.join("x86").join(&test.file)).filter(|i| i.is_file()) else {
            println!("{:30} skipped: no image", test.name);
            continue;
        };
        total += 1;
        let mut line = format!("{:30}", test.name);
        for (n, runner) in runners.iter().enumerate() {
            let (verdict, why) = runner.run(test, &image, environment)?;
            passed[n] += u32::from(verdict == Verdict::Pass);
            line.push_str(&format!(" {:5}", verdict.name()));
            if runner.name == "qemu" {
                continue;
            }
            match list.get(&test.name) {
                Some((Verdict::Pass, _)) if verdict != Verdict::Pass => {
                    regressions.push(format!("{} on {}: {why}", test.name, runner.name));
                }
                Some((was, _)) if verdict < *was => line.push_str(" (better than listed)"),
                Some(_) => {}
                None => line.push_str(" (not listed)"),
            }
            if verdict != Verdict::Pass {
                line.push_str(&format!(" [{why}]"));
            }
        }
        println!("{line}");
    }
    for (runner, passed) in runners.iter().zip(passed) {
        println!("kvm-unit-tests {passed}/{total} ({})", runner.name);
    }
    if regressions.is_empty() {
        return Ok(());
    }
    Err(format!("kvm-unit-tests: worse than the list says:\n  {}", regressions.join("\n  ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_become_tests() {
        let text = "# c\n[a]\nfile = a.flat\nsmp = 2\ntest_args = 'x y'\nqemu_params = -cpu max -m 2g\n\
                    [b]\nfile = b.flat\narch = i386\naccel = kvm\ntimeout = 180\n";
        let tests = parse(text);
        assert_eq!((tests.len(), tests[0].smp, tests[0].args.as_str()), (2, 2, "x y"));
        assert_eq!(tests[0].options, ["-cpu", "max", "-m", "2g"]);
        assert!(tests[1].i386 && tests[1].unfit.is_some() && tests[1].seconds == 180);
    }

    #[test]
    fn an_emulator_that_does_not_start_is_no_pass() {
        let outcome = |text: &str, script: &str| {
            let mut outcome =
                run_for(Command::new("sh").args(["-c", script]), Duration::from_secs(30)).unwrap();
            outcome.text = text.into();
            verdict(&outcome)
        };
        assert_eq!(outcome("anura: no such CPU model\n", "exit 1").0, Verdict::Skip);
        assert_eq!(outcome("PASS: a\n", "exit 1").0, Verdict::Pass);
        assert_eq!(outcome("PASS: a\nFAIL: b\n", "exit 3"), (Verdict::Fail, "FAIL: b".into()));
        assert_eq!(outcome("SKIP: b\n", "exit 77").0, Verdict::Skip);
    }
}
