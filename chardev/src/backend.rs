//! What each kind of stream does, under the chardev that owns it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::chardev::{CharEvent, FdInterest};

/// What a read brought.
pub(crate) enum Input {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    None,
    /// The guest sees a break condition.
    Break,
}

/// One kind of stream. All calls return at once.
pub(crate) trait Backend: Send {
    /// The descriptors to wait for, given whether reading and writing are of use.
    fn interests(&self, read: bool, write: bool, out: &mut Vec<FdInterest>);
    /// Reads what is there.
    fn read(&mut self, buf: &mut [u8]) -> Input;
    /// Writes what fits; a stream that is not connected takes and drops everything.
    fn write(&mut self, buf: &[u8]) -> usize;
    /// Accepts, reconnects and notices hang-ups; tells what changed.
    fn service(&mut self) -> Option<CharEvent> {
        None
    }
    /// Whether somebody is at the other end.
    fn connected(&self) -> bool {
        true
    }
    /// The stream as `info chardev` names it.
    fn filename(&self) -> String;
    /// A message for the user about where the stream was found, for example a pty's path.
    fn notice(&self) -> Option<String> {
        None
    }
    /// Waits, once and before the machine runs, for what `wait=on` asks.
    fn wait_ready(&mut self) -> Result<Option<CharEvent>, crate::ChardevError> {
        Ok(None)
    }
    /// Takes bytes out of a ring buffer.
    fn ring_read(&mut self, _max: usize) -> Option<Vec<u8>> {
        None
    }
    /// When to call `service` even if no descriptor is ready, in milliseconds from now.
    fn retry_ms(&self) -> Option<u64> {
        None
    }
}

/// A stream that goes nowhere.
pub(crate) struct Null(pub(crate) &'static str);

impl Backend for Null {
    fn interests(&self, _: bool, _: bool, _: &mut Vec<FdInterest>) {}

    fn read(&mut self, _: &mut [u8]) -> Input {
        Input::None
    }

    fn write(&mut self, buf: &[u8]) -> usize {
        buf.len()
    }

    fn filename(&self) -> String {
        self.0.to_owned()
    }
}

/// Whether `fd` can be read or written right now.
pub(crate) fn ready(fd: &Arc<OwnedFd>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(&**fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}
