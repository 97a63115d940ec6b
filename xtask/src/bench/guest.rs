//! The guest program `bench-guest`: how it is built, put into an initial RAM disk, run, and listened to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// One static file that runs on any kernel, without vectors that a compiler made of loops.
const FLAGS: &str =
    "-C target-feature=+crt-static -C relocation-model=static -C no-vectorize-loops -C no-vectorize-slp";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program; where it is.
pub fn build() -> Result<PathBuf, String> {
    let dir = crate::target_dir().join("bench-guest");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    crate::run(
        Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--package",
                "anura-bench-guest",
                "--profile",
                "guest",
                "--target",
                TARGET,
            ])
            .arg("--target-dir")
            .arg(&dir)
            .env("RUSTFLAGS", FLAGS),
    )?;
    Ok(dir.join(TARGET).join("guest/anura-bench-guest"))
}

/// The RAM disk of busybox with `program` in it as `/bench`; a second archive behind the first.
pub fn ram_disk(program: &Path) -> Result<PathBuf, String> {
    let cache = crate::guest_cache();
    let tell = |path: &Path, e| format!("{}: {e}", path.display());
    let base = cache.join("initrd.gz");
    let mut disk = std::fs::read(&base).map_err(|e| tell(&base, e))?;
    disk.resize(disk.len().next_multiple_of(4), 0);
    let body = std::fs::read(program).map_err(|e| tell(program, e))?;
    for (name, mode, body) in [("bench", 0o100_755, body.as_slice()), ("TRAILER!!!", 0, &[])] {
        // The "newc" form: a magic and 13 numbers of eight hexadecimal digits, the name, the body, each padded to 4 bytes.
        let fields = [0, mode, 0, 0, 1, 0, body.len(), 0, 0, 0, 0, name.len() + 1, 0];
        disk.extend(b"070701");
        fields.iter().for_each(|field| disk.extend(format!("{field:08x}").bytes()));
        disk.extend(name.bytes());
        disk.push(0);
        disk.resize(disk.len().next_multiple_of(4), 0);
        disk.extend(body);
        disk.resize(disk.len().next_multiple_of(4), 0);
    }
    let path = crate::target_dir().join("bench-guest/initrd");
    std::fs::write(&path, disk).map_err(|e| tell(&path, e))?;
    Ok(path)
}

/// An emulator with the program as its guest's first process, its lines on standard output.
pub fn machine(program: &Path, accel: &str, cpus: &str, disk: &Path, words: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(["-accel", accel, "-smp", cpus, "-m", "1024", "-display", "none", "-nic", "none"]);
    command.args(["-no-reboot", "-monitor", "none", "-serial", "stdio", "-kernel"]);
    command.arg(crate::guest_cache().join("vmlinuz")).arg("-initrd").arg(disk).arg("-append");
    command.arg(format!("console=ttyS0 quiet loglevel=0 panic=-1 rdinit=/bench -- {}", words.join(" ")));
    command
}

/// What a run found.
#[derive(Default)]
pub struct Outcome {
    /// Nanoseconds and checksum of each test that ran.
    pub results: BTreeMap<String, (f64, String)>,
    /// Nanoseconds of each test by our own clock, preparations included.
    pub outer: BTreeMap<String, f64>,
    /// Tests that this machine cannot run, and why.
    pub absent: BTreeMap<String, String>,
    /// What was odd.
    pub notes: Vec<String>,
    /// Why it did not come to its end.
    pub failure: Option<String>,
}

/// Runs a command that prints the guest program's lines, to the end or to a test that says nothing for `limit`.
pub fn listen(command: &mut Command, limit: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            outcome.failure = Some(error.to_string());
            return outcome;
        }
    };
    let (send, lines) = channel();
    let stderr = child.stderr.take();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let _ = send.send((Instant::now(), String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
        });
    }
    let errors = std::thread::spawn(move || {
        let lines = stderr.into_iter().flat_map(|e| BufReader::new(e).lines().map_while(Result::ok));
        lines.collect::<Vec<_>>()
    });
    let (mut ended, mut current, mut last) = (false, None::<(String, Instant)>, String::new());
    let end = loop {
        match lines.recv_timeout(limit) {
            Ok((when, line)) => {
                if let Some((_, words)) = line.split_once("bench: ") {
                    ended |= take(&mut outcome, &mut current, when, words);
                } else if !line.is_empty() && !line.starts_with('#') {
                    last = line;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break "ended",
            Err(RecvTimeoutError::Timeout) => break "hangs",
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    if !ended {
        let errors = errors.join().unwrap_or_default();
        let during = current.map_or_else(|| "the start".to_owned(), |(name, _)| name);
        let said = errors.last().unwrap_or(&last);
        outcome.failure = Some(format!("{end} during {during}: {said}"));
    }
    outcome
}

/// Takes a line of the guest program; whether it was the last.
fn take(outcome: &mut Outcome, current: &mut Option<(String, Instant)>, when: Instant, words: &str) -> bool {
    match words.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["end"] => return true,
        ["start", source @ ..] => outcome.notes.push(format!("clock source {}", source.join(" "))),
        [name, "runs"] => *current = Some(((*name).to_owned(), when)),
        [name, "n/a", why @ ..] => {
            outcome.absent.insert((*name).to_owned(), why.join(" "));
        }
        [name, nanoseconds, sum, whole] => {
            let number = |word: &str| word.parse::<f64>().unwrap_or(f64::NAN);
            outcome.results.insert((*name).to_owned(), (number(nanoseconds), (*sum).to_owned()));
            // The guest's clock is what is believed, so it has to go as ours does.
            if let Some((_, began)) = current.take().filter(|(running, _)| running == name) {
                outcome.outer.insert((*name).to_owned(), (when - began).as_secs_f64() * 1e9);
                let (ours, theirs) = ((when - began).as_secs_f64(), number(whole) / 1e9);
                if (ours - theirs).abs() > 0.05 + 0.1 * ours {
                    outcome
                        .notes
                        .push(format!("{name}: {theirs:.2} s by the guest's clock, {ours:.2} s by ours"));
                }
            }
        }
        _ => {}
    }
    false
}
