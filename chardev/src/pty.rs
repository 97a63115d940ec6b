//! A pseudo terminal: a program such as `screen` opens its other end by path.
//!
//! We keep the other end open ourselves. The master then never reports a hang-up, which a poll loop
//! could not wait out, and what nobody reads fills the terminal's own buffer; after that it is dropped,
//! so that a guest never waits for a reader that may not come.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use crate::backend::{Backend, Input};
use crate::chardev::FdInterest;
use crate::{ChardevError, host};

pub(crate) struct Pty {
    master: Arc<OwnedFd>,
    _slave: OwnedFd,
    path: String,
    link: Option<PathBuf>,
}

impl Pty {
    pub(crate) fn open(link: Option<&Path>) -> Result<Self, ChardevError> {
        let what = "cannot open a pseudo terminal";
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).map_err(host(what))?;
        rustix::pty::grantpt(&master).map_err(host(what))?;
        rustix::pty::unlockpt(&master).map_err(host(what))?;
        let name = rustix::pty::ptsname(&master, Vec::new()).map_err(host(what))?;
        let slave_flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&*name, slave_flags, Mode::empty()).map_err(host(what))?;
        let mut settings = rustix::termios::tcgetattr(&slave).map_err(host(what))?;
        settings.make_raw();
        rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &settings)
            .map_err(host(what))?;
        rustix::io::ioctl_fionbio(&master, true).map_err(host(what))?;
        let path = name.to_string_lossy().into_owned();
        if let Some(link) = link {
            let what = format!("cannot link '{}' to {path}", link.display());
            std::os::unix::fs::symlink(&path, link).map_err(host(what))?;
        }
        Ok(Self { master: Arc::new(master), _slave: slave, path, link: link.map(Path::to_owned) })
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            let _ = std::fs::remove_file(link);
        }
    }
}

impl Backend for Pty {
    fn interests(&self, read: bool, _write: bool, out: &mut Vec<FdInterest>) {
        if read {
            out.push(FdInterest { fd: self.master.clone(), read: true, write: false });
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> Input {
        match rustix::io::read(&self.master, buf) {
            Ok(n) if n > 0 => Input::Bytes(n),
            _ => Input::None,
        }
    }

    fn write(&mut self, buf: &[u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::write(&self.master, &buf[done..]) {
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        buf.len()
    }

    fn filename(&self) -> String {
        format!("pty:{}", self.path)
    }

    fn notice(&self) -> Option<String> {
        Some(format!("char device redirected to {}", self.path))
    }
}
