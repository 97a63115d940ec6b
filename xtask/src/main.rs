//! `cargo xtask`: tests, checks, benchmarks, fuzzing and long runs.
//!
//! It builds and runs what is in the other crates and knows nothing of them but their names.

#![forbid(unsafe_code)]

mod bench;
mod suites;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask COMMAND

  test [ARGS]            fetch what the tests need and run them all; ARGS go to cargo test
  ci                     what .ci/run does: formatting, lints, documentation, tests
  bench cpu [OPTIONS]    the host, our engine and QEMU beside each other, test by test; --help lists the options
  bench boot [OPTIONS]   boots on our engine and on QEMU: CPU, wall, time to /init, memory
  bench counted [OPTIONS]  what counted time costs against running freely, test by test
  bench latency [OPTIONS]  CPU of an idle guest, a short sleep in it, and how soon stop is answered
  bench interp           guest instructions per second, boot time against QEMU's, memory
  bench kvm              our time per exit, exits per second and start-up time against QEMU's KVM
  bench ports            port and MMIO dispatches per second into a device
  fuzz cpu [ARGS]        random instructions on the host's CPU and on the interpreter, with and without host functions
  fuzz cpu --mutate      breaks the interpreter in one place at a time; the comparison has to find it
  fuzz devices [ARGS]    random traffic on all devices
  soak cpu               fuzz cpu for hours, with new seeds
  suites NAME --from DIR a suite by others against its list of expected results; more with suites
  soak guests [ENGINE] [--full]  a Debian guest that checks itself: OpenSSL, the C library, stress-ng
  soak adversary [ENGINE]...  a guest that makes, changes and runs random code, on these engines, compared
  soak kvm               Debian's kernel to its shell under KVM, 10,000 stops during string output
  soak                   the fuzzers for a long time, with new seeds";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test", rest @ ..] => test(rest),
        ["ci"] => ci(),
        ["bench", "cpu", rest @ ..] => bench::cpu::run(rest),
        ["bench", "boot", rest @ ..] => bench::boot::run(rest),
        ["bench", "counted", rest @ ..] => bench::counted::run(rest),
        ["bench", "latency", rest @ ..] => bench::latency::run(rest),
        ["bench", "interp", rest @ ..] => bench_interp(rest),
        ["bench", "kvm", rest @ ..] => bench_kvm(rest),
        ["bench", "ports", rest @ ..] => binary("bench_ports", rest),
        ["fuzz", "cpu", rest @ ..] if rest.contains(&"--mutate") => mutants(rest),
        ["fuzz", "cpu", rest @ ..] => binary("fuzz_cpu", rest),
        ["fuzz", "devices", rest @ ..] => binary("fuzz_devices", rest),
        ["soak", "cpu"] => soak_cpu(),
        ["suites", rest @ ..] => suites::judge(rest),
        ["soak", "guests", rest @ ..] => soak_guests(rest),
        ["soak", "adversary", rest @ ..] => soak_adversary(rest),
        ["soak", "kvm"] => soak_kvm(),
        ["soak"] => soak(),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}").replace('"', "");
    eprintln!("xtask: {shown}");
    match command.current_dir(root()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn cargo(args: &[&str]) -> Result<(), String> {
    run(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args))
}

/// Fetches kernels and the initial RAM disk. Without them the tests that need them say `skipped`.
fn with_guest() -> Result<(), String> {
    run(Command::new("tools/fetch-guest").args(["generic", "i386"]).stdout(std::process::Stdio::null()))
}

/// The cloud kernel and busybox alone.
fn with_cloud_guest() -> Result<(), String> {
    run(Command::new("tools/fetch-guest").stdout(std::process::Stdio::null()))
}

/// Debian packages with tools that tests use, where they can be installed; tests skip without them.
fn install_tools() {
    let wanted = [("iasl", "acpica-tools")];
    let mut missing: Vec<&str> =
        wanted.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    if !Path::new("/usr/share/seabios/bios-256k.bin").is_file() {
        missing.push("seabios");
    }
    if missing.is_empty() || !rooted() || !on_path("apt-get") {
        return;
    }
    let installed = run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null()));
    if let Err(error) = installed {
        eprintln!("xtask: {error}; tests that need {} will skip", missing.join(", "));
    }
}

fn rooted() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

fn on_path(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

fn test(args: &[&str]) -> Result<(), String> {
    install_tools();
    if let Err(error) = with_guest() {
        eprintln!("xtask: {error}; tests that boot a kernel will skip");
    }
    // Whole-machine tests run the program itself, at the speed that users get.
    cargo(&["build", "--release", "--package", "anura"])?;
    let mut all = vec!["test", "--workspace"];
    all.extend(args);
    cargo(&all)
}

fn ci() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    run(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["doc", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    check_elsewhere()?;
    test(&[])?;
    binary("fuzz_cpu", &["--seconds", "60"])?;
    binary("fuzz_devices", &["--seconds", "10"])
}

/// That everything builds for a host with another processor, where the interpreter is the engine.
fn check_elsewhere() -> Result<(), String> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let lib = output.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim())).unwrap_or_default();
    if !lib.is_dir() && run(Command::new("rustup").args(["target", "add", TARGET])).is_err() {
        eprintln!("skipped: no standard library for {TARGET} here, so building for it is not checked");
        return Ok(());
    }
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--target", TARGET, "--", "-D", "warnings"])
}

/// Builds and runs one of the programs of `tests`, at full speed.
fn binary(name: &str, args: &[&str]) -> Result<(), String> {
    if name == "bench_interp" {
        cargo(&["build", "--release", "--package", "anura"])?;
    }
    let mut all = vec!["run", "--release", "--quiet", "--package", "anura-tests", "--bin", name, "--"];
    all.extend(args);
    cargo(&all)
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where tools/fetch-guest keeps its files.
fn guest_cache() -> PathBuf {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
    };
    cache.join("anura")
}

/// Hot loops, then boots of the fetched kernel beside QEMU's, if QEMU is installed.
fn bench_interp(args: &[&str]) -> Result<(), String> {
    with_guest()?;
    let cache = guest_cache();
    let guest = |name: &str| cache.join(name).display().to_string();
    let (kernel, initrd) = (guest("vmlinuz"), guest("initrd.gz"));
    let mut all = vec!["--kernel", &kernel, "--initrd", &initrd];
    all.extend(args);
    binary("bench_interp", &all)
}

/// The oracle with deliberate mistakes: built apart, so that the ordinary build has none of them.
fn mutants(args: &[&str]) -> Result<(), String> {
    let mut all = vec!["run", "--release", "--quiet", "--package", "anura-tests", "--features", "mutants"];
    all.extend(["--bin", "fuzz_cpu", "--"]);
    all.extend(args);
    cargo(&all)
}

/// Hours of comparison with the host's processor, each round with a seed of its own.
fn soak_cpu() -> Result<(), String> {
    for round in 1..=64u32 {
        let seed = 0x9e37_79b9u32.wrapping_mul(round).to_string();
        eprintln!("xtask: soak cpu round {round} of 64, seed {seed}");
        binary("fuzz_cpu", &["--seconds", "600", "--seed", &seed])?;
    }
    Ok(())
}

/// A Debian guest that checks itself: known answers of OpenSSL and the C library, stress-ng with verification.
fn soak_guests(args: &[&str]) -> Result<(), String> {
    let engine = args.iter().find(|arg| **arg != "--full").copied().unwrap_or("interp");
    let what = if args.contains(&"--full") { "allchecks" } else { "checks" };
    run(Command::new("tools/fetch-guest").arg("checks").stdout(std::process::Stdio::null()))?;
    cargo(&["build", "--release", "--package", "anura"])?;
    let target = target_dir();
    let cache = guest_cache();
    let append = format!("console=ttyS0 quiet panic=-1 anura.run={what}");
    let output = Command::new(target.join("release/anura"))
        .args(["-accel", engine, "-cpu", "max", "-m", "512", "-nographic", "-no-reboot", "-append", &append])
        .arg("-kernel")
        .arg(cache.join("vmlinuz"))
        .arg("-initrd")
        .arg(cache.join("initrd-checks.gz"))
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| format!("anura: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    text.lines().filter(|line| line.contains("anura-guest: check")).for_each(|line| println!("{line}"));
    if text.contains("anura-guest: checks passed") {
        return Ok(());
    }
    let end: Vec<&str> = text.lines().rev().take(20).collect();
    Err(format!(
        "the guest's checks did not pass; its last lines:\n{}",
        end.into_iter().rev().collect::<Vec<_>>().join("\n")
    ))
}

/// Some 10^8 instructions each, from several seeds, on one processor and on two; the engines named, or the interpreter and
/// the JIT, which it may have memory for code enough, hardly any, or disturbances in addition.
fn soak_adversary(args: &[&str]) -> Result<(), String> {
    cargo(&["build", "--release", "--quiet", "--package", "anura"])?;
    let mut all = vec!["--rounds", "100000", "--seeds", "8"];
    all.extend(if args.is_empty() { &["interp", "jit", "jit,tb-size=1", "jit,chaos=1"] } else { args });
    binary("adversary", &all)?;
    all.push("--free");
    binary("adversary", &all)
}

/// The engine's own time per exit, and this host's KVM against QEMU's.
fn bench_kvm(args: &[&str]) -> Result<(), String> {
    cargo(&["build", "--release", "--package", "anura"])?;
    let mut all = vec!["run", "--release", "--quiet", "--package", "anura-tests", "--features", "kvm-bench"];
    all.extend(["--bin", "bench_kvm", "--"]);
    all.extend(args);
    cargo(&all)
}

/// Debian's kernel under KVM as far as it goes on this host, with a line for each step, and many stops.
fn soak_kvm() -> Result<(), String> {
    with_guest()?;
    cargo(&["build", "--release", "--package", "anura"])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let cache = guest_cache();
    let start = std::time::Instant::now();
    let mut child = Command::new(target.join("release/anura"))
        .args(["-accel", "kvm", "-m", "512", "-nographic", "-no-reboot"])
        .args(["-append", "console=ttyS0 panic=-1 anura.run=check", "-kernel"])
        .arg(cache.join("vmlinuz"))
        .arg("-initrd")
        .arg(cache.join("initrd.gz"))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| format!("anura: {error}"))?;
    let steps = [
        "Linux version",
        "Run /init",
        "anura-guest: init",
        "anura-guest: ready",
        "anura-guest: sum 42",
        "reboot: Power down",
    ];
    let mut reached = 0;
    if let Some(output) = child.stdout.take() {
        for line in std::io::BufRead::lines(std::io::BufReader::new(output)).map_while(Result::ok) {
            if steps.get(reached).is_some_and(|step| line.contains(step)) {
                println!("{:6.1} s: {}", start.elapsed().as_secs_f64(), steps[reached]);
                reached += 1;
            }
        }
    }
    let _ = child.wait();
    if reached < steps.len() {
        return Err(format!("the guest did not come to '{}'", steps[reached]));
    }
    let all = ["test", "--package", "anura-tests", "--test", "kvm", "a_thousand_stops", "--", "--nocapture"];
    run(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(all)
        .env("ANURA_STOPS", "10000"))
}

/// Hours of fuzzing, each round with a seed of its own.
fn soak() -> Result<(), String> {
    for round in 1..=64u32 {
        let seed = (0x9e37_79b9u32.wrapping_mul(round)).to_string();
        eprintln!("xtask: soak round {round} of 64, seed {seed}");
        binary("fuzz_cpu", &["--cases", "10000000", "--seed", &seed])?;
        binary("fuzz_devices", &["--seconds", "300", "--seed", &seed])?;
    }
    Ok(())
}
