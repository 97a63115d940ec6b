//! The terminal's raw mode, and putting it back on every way out.
//!
//! Three ways back, since each fails where another holds: the guard on a normal end, a panic hook and
//! [`restore`] for exits and signals that this process still handles, and a small helper process that
//! holds the other end of a pipe and resets the terminal when this process is killed.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
};

use crate::{ChardevError, host};

struct Saved {
    fd: Arc<OwnedFd>,
    before: Termios,
    raw: Termios,
    watcher: Option<Child>,
}

/// The one terminal that is in raw mode.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);
static IN_USE: Mutex<bool> = Mutex::new(false);
static PANIC_HOOK: Once = Once::new();

/// Standard input in raw mode while this lives, if it is a terminal.
pub(crate) struct RawMode(());

impl RawMode {
    pub(crate) fn enter(fd: &Arc<OwnedFd>, signal: bool) -> Result<Self, ChardevError> {
        {
            let mut in_use = IN_USE.lock();
            if *in_use {
                return Err(ChardevError::StdioTwice);
            }
            *in_use = true;
        }
        let guard = Self(());
        if !fd.is_terminal() {
            return Ok(guard);
        }
        let before = rustix::termios::tcgetattr(fd).map_err(host("cannot read the terminal's settings"))?;
        let raw = raw_settings(&before, signal);
        let watcher = spawn_watcher(fd);
        *SAVED.lock() = Some(Saved { fd: fd.clone(), before, raw: raw.clone(), watcher });
        PANIC_HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        rustix::termios::tcsetattr(fd, OptionalActions::Now, &raw)
            .map_err(host("cannot set the terminal"))?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        *IN_USE.lock() = false;
    }
}

/// Bytes as they are typed, output still with newline translation; signals as asked.
fn raw_settings(before: &Termios, signal: bool) -> Termios {
    let mut raw = before.clone();
    raw.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    raw.output_modes |= OutputModes::OPOST;
    raw.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    if !signal {
        raw.local_modes -= LocalModes::ISIG;
    }
    raw.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    raw.control_modes |= ControlModes::CS8;
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    raw
}

/// Puts the terminal back as it was found. Harmless to call at any time, from any thread, twice.
pub fn restore() {
    // A panic or exit while the lock is held must not hang: the watcher then does the work.
    let Some(mut saved) = SAVED.try_lock() else { return };
    if let Some(mut saved) = saved.take() {
        let _ = rustix::termios::tcsetattr(&saved.fd, OptionalActions::Now, &saved.before);
        if let Some(child) = &mut saved.watcher {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Takes the terminal again after the process was stopped and continued (SIGCONT).
pub fn reapply() {
    if let Some(saved) = SAVED.lock().as_ref() {
        let _ = rustix::termios::tcsetattr(&saved.fd, OptionalActions::Now, &saved.raw);
    }
}

/// A shell that waits for our end and then sets the terminal back. Where there is no shell or stty,
/// only a killed emulator leaves the terminal raw.
fn spawn_watcher(fd: &Arc<OwnedFd>) -> Option<Child> {
    let tty = || fd.try_clone().ok().map(Stdio::from);
    let mut stty = Command::new("stty")
        .arg("-g")
        .stdin(tty()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut settings = String::new();
    stty.stdout.take()?.take(4096).read_to_string(&mut settings).ok()?;
    if !stty.wait().ok()?.success() {
        return None;
    }
    // The terminal's signals are for the emulator; the helper goes when its pipe closes.
    const SCRIPT: &str = "trap '' HUP INT QUIT TERM TSTP TTOU TTIN; read _; exec stty \"$0\" <&1";
    Command::new("sh")
        .args(["-c", SCRIPT, settings.trim()])
        .stdin(Stdio::piped())
        .stdout(tty()?)
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

/// Writes a line to the user on the terminal, which may be raw.
pub fn say(line: &str) {
    let _ = write!(std::io::stdout(), "{line}\r\n");
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn pseudo_terminal() -> (OwnedFd, Arc<OwnedFd>) {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (master, Arc::new(slave))
    }

    fn modes(fd: &OwnedFd) -> (LocalModes, InputModes, bool) {
        let t = rustix::termios::tcgetattr(fd).unwrap();
        (t.local_modes, t.input_modes, t.local_modes.contains(LocalModes::ISIG))
    }

    #[test]
    fn the_terminal_is_raw_while_used_and_as_before_after_an_end_an_exit_and_a_panic() {
        let (_master, tty) = pseudo_terminal();
        let before = modes(&tty);
        let raw = RawMode::enter(&tty, false).unwrap();
        assert!(!modes(&tty).0.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
        assert!(matches!(RawMode::enter(&tty, true), Err(ChardevError::StdioTwice)));
        drop(raw);
        assert_eq!(modes(&tty), before);
        let raw = RawMode::enter(&tty, true).unwrap();
        assert!(modes(&tty).2, "with signal=on Ctrl-C stays a signal");
        restore();
        assert_eq!(modes(&tty), before);
        restore();
        drop(raw);
        let raw = RawMode::enter(&tty, true).unwrap();
        let result = std::thread::spawn(|| panic!("on purpose, to see the terminal restored")).join();
        assert!(result.is_err());
        assert_eq!(modes(&tty), before);
        drop(raw);
    }

    const CHILD: &str = "ANURA_TEST_TERMINAL_CHILD";

    /// Not a test of its own: what the next test runs in a process that dies.
    #[test]
    fn a_child_takes_the_terminal_and_dies() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).unwrap();
        let _raw = RawMode::enter(&Arc::new(stdin), false).unwrap();
        println!("raw");
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn the_terminal_is_restored_even_when_the_process_is_killed() {
        let (_master, tty) = pseudo_terminal();
        let before = modes(&tty);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "terminal::tests::a_child_takes_the_terminal_and_dies", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::from(tty.try_clone().unwrap()))
            .output()
            .unwrap();
        assert!(!child.status.success() && String::from_utf8_lossy(&child.stdout).contains("raw"));
        // The helper needs a moment; a terminal that stays raw fails after a long one.
        for _ in 0..500 {
            if modes(&tty) == before {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the terminal is still raw");
    }
}
