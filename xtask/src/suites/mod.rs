//! Judges of others' test suites: a folder with the finished suite is run on each engine, and on QEMU if asked, and
//! compared with a committed list of expected results, which only improves.
//!
//! Nothing of a suite is part of this project, and nothing here builds one.

mod kvm_unit_tests;
mod v86;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What `cargo xtask suites` was asked for.
pub struct Request {
    /// The folder with the finished suite.
    pub from: Option<PathBuf>,
    /// The same, built for 32-bit guests.
    pub from32: Option<PathBuf>,
    /// Engines of ours.
    pub engines: Vec<String>,
    /// QEMU runs the suite too.
    pub peer: bool,
    /// Names of tests; none means all.
    pub only: Vec<String>,
}

/// Runs a judge by the words behind `suites`.
pub fn judge(words: &[&str]) -> Result<(), String> {
    let [name, rest @ ..] = words else { return Err("suites takes a NAME: kvm-unit-tests or v86".into()) };
    let mut request =
        Request { from: None, from32: None, engines: vec!["interp".into()], peer: false, only: Vec::new() };
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().map(|v| v.to_string()).ok_or(format!("suites: {word} takes a value"));
        match *word {
            "--from" => request.from = Some(value()?.into()),
            "--from32" => request.from32 = Some(value()?.into()),
            "--engines" => request.engines = value()?.split(',').map(str::to_owned).collect(),
            "--peer" => match value()?.as_str() {
                "qemu" => request.peer = true,
                other => return Err(format!("suites: --peer {other}: only qemu")),
            },
            other if other.starts_with("--") => return Err(format!("suites: unknown option {other}")),
            other => request.only.push(other.to_owned()),
        }
    }
    match *name {
        "kvm-unit-tests" => kvm_unit_tests::judge(&request),
        "v86" => v86::judge(&request),
        other => Err(format!("suites: unknown suite {other}; there are kvm-unit-tests and v86")),
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should.
    Pass,
    /// It says itself that it does not apply.
    Skip,
    /// Badly, or not in time.
    Fail,
}

impl Verdict {
    /// As the lists spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Pass, Self::Skip, Self::Fail].into_iter().find(|v| v.name() == word)
    }
}

/// Expected results: name, verdict, and for whatever is no pass a line that says why.
pub type Expected = BTreeMap<String, (Verdict, String)>;

/// Reads a committed list: `name verdict reason` in each line, `#` begins a comment.
pub fn expected(path: &Path) -> Result<Expected, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse_list(&text).map_err(|line| format!("{}: not a result: {line}", path.display()))
}

fn parse_list(text: &str) -> Result<Expected, String> {
    let mut list = Expected::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut words = line.splitn(3, char::is_whitespace);
        let (name, verdict) = (words.next().unwrap_or_default(), words.next().and_then(Verdict::parse));
        let reason = words.next().unwrap_or_default().trim().to_owned();
        match verdict {
            Some(Verdict::Pass) => list.insert(name.to_owned(), (Verdict::Pass, reason)),
            Some(v) if !reason.is_empty() => list.insert(name.to_owned(), (v, reason)),
            _ => return Err(line.to_owned()),
        };
    }
    Ok(list)
}

/// What a program wrote and how it ended; `None` if it had to be stopped.
pub struct Outcome {
    /// Standard output and error output.
    pub text: String,
    /// Its end.
    pub status: Option<ExitStatus>,
    /// How long it took.
    pub took: Duration,
}

/// Runs a program for at most `limit`.
pub fn run_for(command: &mut Command, limit: Duration) -> Result<Outcome, String> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let readers = [collect(child.stdout.take()), collect(child.stderr.take())];
    let status = wait(&mut child, start, limit)?;
    let text = readers.into_iter().filter_map(|r| r.join().ok()).collect();
    Ok(Outcome { text, status, took: start.elapsed() })
}

fn wait(child: &mut Child, start: Instant, limit: Duration) -> Result<Option<ExitStatus>, String> {
    loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            // It may have ended by itself meanwhile, which is as good.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn collect<R: Read + Send + 'static>(from: Option<R>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What came before an error counts.
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gives_a_reason_for_everything_that_is_no_pass() {
        let list = parse_list("# comment\na pass\nb fail  it is slow\n\nc skip no device\n").unwrap();
        assert_eq!(list["a"], (Verdict::Pass, String::new()));
        assert_eq!(list["b"], (Verdict::Fail, "it is slow".to_owned()));
        assert_eq!(parse_list("b fail"), Err("b fail".to_owned()));
        assert_eq!(parse_list("b maybe x"), Err("b maybe x".to_owned()));
    }

    #[test]
    fn a_program_that_takes_too_long_is_stopped() {
        let outcome = run_for(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap();
        assert!(outcome.status.is_none());
        let outcome = run_for(Command::new("echo").arg("hello"), Duration::from_secs(30)).unwrap();
        assert_eq!((outcome.text.as_str(), outcome.status.map(|s| s.success())), ("hello\n", Some(true)));
    }
}
