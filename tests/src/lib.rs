//! What whole-machine tests share: the program, the guest's files, and a monitor to talk to.
//!
//! A test that lacks something says `skipped: why` on stderr and passes; `cargo xtask test` fetches what is
//! needed, so that nothing skips there.

#![forbid(unsafe_code)]

pub mod device_fuzz;
pub mod guests;
pub mod user;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The `anura` program of this build, the fast one if it was built.
pub fn anura() -> Option<PathBuf> {
    // Tests are in deps, a folder below the programs.
    let own = std::env::current_exe().ok()?;
    let targets: Vec<_> = own.ancestors().skip(2).take(2).collect();
    let of =
        |profile: &str| targets.iter().map(|t| t.join(profile).join("anura")).find(|path| path.is_file());
    ["release", "debug"].into_iter().find_map(of)
}

/// A file that `tools/fetch-guest` keeps in its cache.
pub fn guest_file(name: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("anura").join(name)).filter(|path| path.is_file())
}

/// Why this build of the program does not run this engine, with its properties, on this host.
pub fn lacks_engine(program: &Path, accel: &str) -> Option<String> {
    let args = ["-S", "-m", "16", "-nodefaults", "-display", "none", "-monitor", "stdio"];
    let mut child = Command::new(program)
        .args(["-accel", accel])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(b"quit\n");
    }
    let output = child.wait_with_output().ok()?;
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// A program of the host that a test uses.
pub fn tool(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Takes what a test needs or leaves the test with a word.
#[macro_export]
macro_rules! need {
    ($what:expr, $why:expr) => {
        match $what {
            Some(found) => found,
            None => {
                eprintln!("skipped: {}", $why);
                return;
            }
        }
    };
}

/// A running emulator, ended when dropped.
pub struct Emulator {
    child: Child,
    monitor: PathBuf,
    /// Where the first serial port's bytes go.
    pub serial: PathBuf,
}

impl Emulator {
    /// Starts `program` with a monitor on a socket and the serial port in a file, both in `dir`.
    pub fn start(program: &Path, dir: &Path, args: &[&str]) -> Self {
        Self::start_on("interp", program, dir, args)
    }

    /// As [`Self::start`], on an engine of choice.
    pub fn start_on(engine: &str, program: &Path, dir: &Path, args: &[&str]) -> Self {
        let (monitor, serial) = (dir.join("monitor"), dir.join("serial"));
        let child = Command::new(program)
            .args(["-accel", engine, "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", serial.display())])
            .args(["-monitor", &format!("unix:{},server=on,wait=off", monitor.display())])
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .expect("the program starts");
        Self { child, monitor, serial }
    }

    /// Connects a monitor.
    pub fn monitor(&self) -> Monitor {
        let end = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match UnixStream::connect(&self.monitor) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => panic!("no monitor: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket takes a time-out");
        let mut monitor = Monitor { stream };
        monitor.answer();
        monitor
    }

    /// Waits for the program to end; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().ok()?.code()
    }

    /// The greatest resident memory of the program so far, in KiB.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
    }

    /// The mappings of the program that are writable and executable at once.
    pub fn writable_code(&self) -> Vec<String> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap_or_default();
        let both = |line: &&str| {
            let rights = line.split_whitespace().nth(1).unwrap_or("");
            rights.contains('w') && rights.contains('x')
        };
        maps.lines().filter(both).map(str::to_owned).collect()
    }

    /// What the guest has sent to its serial port so far.
    pub fn serial_text(&self) -> String {
        std::fs::read(&self.serial)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the serial port has sent `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if self.serial_text().contains(text) {
                return true;
            }
            if ended || Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A human monitor on a socket.
pub struct Monitor {
    stream: UnixStream,
}

impl Monitor {
    fn answer(&mut self) -> String {
        let (mut text, mut buf) = (Vec::new(), [0; 4096]);
        while !text.ends_with(b"(qemu) ") {
            match self.stream.read(&mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => text.extend(&buf[..n]),
            }
        }
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        text.strip_suffix("(qemu) ").unwrap_or(&text).to_owned()
    }

    /// Runs a command; what it printed, without the echo.
    pub fn run(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\r").as_bytes()).expect("the monitor listens");
        let text = self.answer();
        text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned())
    }

    /// Waits until the guest has powered off and the machine stands.
    pub fn wait_shutdown(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self.run("info status").contains("shutdown") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }
}
