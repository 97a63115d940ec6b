//! `-daemonize`: the command returns once the machine is built, and the emulator goes on without a terminal.
//!
//! A process with threads cannot fork safely, and safe code cannot fork at all, so the emulator starts itself
//! again: the child is a session of its own with its streams on /dev/null, and tells the parent through a pipe
//! (its standard input's other end) when it is ready or why it is not.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Set in the child's environment.
const MARK: &str = "ANURA_DAEMON_CHILD";

/// Which side of the split this process is.
pub enum Daemon {
    /// The one that the user started; this is its exit code.
    Parent(i32),
    /// The one that stays.
    Child,
}

impl Daemon {
    /// Splits. In the parent this returns when the child is ready or has failed.
    pub fn start() -> Result<Self, String> {
        if std::env::var_os(MARK).is_some() {
            rustix::process::setsid().map_err(|e| format!("-daemonize: {e}"))?;
            return Ok(Self::Child);
        }
        let program = std::env::current_exe().map_err(|e| format!("-daemonize: {e}"))?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(MARK, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("-daemonize: {e}"))?;
        // The child closes its end when it is ready: then there is one byte. It ends without one if it failed.
        let mut ready = [0; 1];
        let mut out = child.stdout.take().ok_or("-daemonize: no pipe")?;
        if out.read(&mut ready).is_ok_and(|n| n == 1) {
            return Ok(Self::Parent(0));
        }
        let mut text = String::new();
        if let Some(mut err) = child.stderr.take() {
            let _ = err.read_to_string(&mut text);
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
        let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
        Ok(Self::Parent(code))
    }

    /// The exit code, if this is the process that ends.
    pub fn parent_result(&self) -> Option<i32> {
        match self {
            Self::Parent(code) => Some(*code),
            Self::Child => None,
        }
    }

    /// Tells the parent that the machine is there, and lets go of its streams.
    pub fn ready(self) {
        let mut out = std::io::stdout();
        let _ = out.write_all(b"1").and_then(|()| out.flush());
        if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}
