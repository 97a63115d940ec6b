//! Streams that are one descriptor in and one out: standard input and output, files, pipes.
//!
//! These descriptors may be shared with other processes, so they are not switched to non-blocking:
//! each access asks first whether it would wait.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::PollFlags;

use crate::backend::{Backend, Input, ready};
use crate::chardev::FdInterest;
use crate::terminal::RawMode;
use crate::{ChardevError, host};

/// Largest write that a pipe with room takes whole, and small enough for a slow terminal.
const PIECE: usize = 512;

pub(crate) struct Stream {
    name: String,
    input: Option<Arc<OwnedFd>>,
    output: Option<Arc<OwnedFd>>,
    /// A regular file never keeps us waiting, and cannot be polled for.
    output_is_file: bool,
    _raw: Option<RawMode>,
}

impl Stream {
    pub(crate) fn stdio(signal: bool) -> Result<Self, ChardevError> {
        let dup = |r: rustix::io::Result<OwnedFd>| r.map(Arc::new).map_err(host("cannot use stdio"));
        let input = dup(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3))?;
        let output = dup(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3))?;
        let raw = RawMode::enter(&input, signal)?;
        let output_is_file = is_file(&output);
        Ok(Self {
            name: "stdio".into(),
            input: Some(input),
            output: Some(output),
            output_is_file,
            _raw: Some(raw),
        })
    }

    pub(crate) fn file(path: &Path, append: bool, input: Option<&Path>) -> Result<Self, ChardevError> {
        let what = |p: &Path| format!("could not open '{}'", p.display());
        let out = OpenOptions::new().create(true).write(true).truncate(!append).append(append).open(path);
        let output = Arc::new(OwnedFd::from(out.map_err(host(what(path)))?));
        let input = match input {
            Some(p) => Some(Arc::new(OwnedFd::from(File::open(p).map_err(host(what(p)))?))),
            None => None,
        };
        let output_is_file = is_file(&output);
        Ok(Self { name: "file".into(), input, output: Some(output), output_is_file, _raw: None })
    }

    pub(crate) fn pipe(path: &Path) -> Result<Self, ChardevError> {
        let both = |p: &Path| OpenOptions::new().read(true).write(true).open(p);
        let with = |ending: &str| {
            let mut p = path.as_os_str().to_owned();
            p.push(ending);
            both(Path::new(&p))
        };
        let (input, output) = match (with(".in"), with(".out")) {
            (Ok(i), Ok(o)) => (i, o),
            _ => {
                let file = both(path).map_err(host(format!("could not open '{}'", path.display())))?;
                (file.try_clone().map_err(host("cannot duplicate a pipe"))?, file)
            }
        };
        Ok(Self {
            name: "pipe".into(),
            input: Some(Arc::new(input.into())),
            output: Some(Arc::new(output.into())),
            output_is_file: false,
            _raw: None,
        })
    }
}

fn is_file(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::RegularFile)
}

impl Backend for Stream {
    fn interests(&self, read: bool, write: bool, out: &mut Vec<FdInterest>) {
        if let Some(fd) = self.input.as_ref().filter(|_| read) {
            out.push(FdInterest { fd: fd.clone(), read: true, write: false });
        }
        if let Some(fd) = self.output.as_ref().filter(|_| write) {
            out.push(FdInterest { fd: fd.clone(), read: false, write: true });
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> Input {
        let Some(fd) = &self.input else { return Input::None };
        if buf.is_empty() || !ready(fd, PollFlags::IN) {
            return Input::None;
        }
        match rustix::io::read(fd, buf) {
            Ok(0) => {
                // The end of the input is the end of input, not of the stream.
                self.input = None;
                Input::None
            }
            Ok(n) => Input::Bytes(n),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Input::None,
            Err(_) => {
                self.input = None;
                Input::None
            }
        }
    }

    fn write(&mut self, buf: &[u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(fd) = &self.output else { return buf.len() };
            if !self.output_is_file && !ready(fd, PollFlags::OUT) {
                break;
            }
            let piece = &buf[done..buf.len().min(done + PIECE)];
            match rustix::io::write(fd, piece) {
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                // The reader is gone; the guest goes on without it.
                Err(_) => self.output = None,
            }
        }
        done
    }

    fn filename(&self) -> String {
        self.name.clone()
    }
}
