//! A chardev with its front ends: attaching, delivering, buffering, logging, the multiplexer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::backend::{Backend, Input, Null};
use crate::config::{ChardevConfig, ChardevKind};
use crate::mux::{Escape, Step};
use crate::{ChardevError, host, pty, ringbuf, socket, stream};

/// What happens to a line besides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// Somebody is at the other end now.
    Opened,
    /// Nobody is there any more.
    Closed,
    /// The line was held low: a break condition.
    Break,
    /// The multiplexer turned the input to this front end.
    FocusIn,
    /// The multiplexer turned the input away.
    FocusOut,
}

/// What a device or monitor does with its line. Called by the main loop, with no chardev lock held.
pub trait CharFrontend: Send + Sync {
    /// How many bytes can be taken now.
    fn can_receive(&self) -> usize;
    /// Takes bytes, never more than `can_receive` said.
    fn receive(&self, bytes: &[u8]);
    /// Something else happened.
    fn event(&self, event: CharEvent) {
        let _ = event;
    }
    /// After a write that was cut short: there is room again.
    fn writable(&self) {}
}

/// A descriptor to wait for.
#[derive(Clone, Debug)]
pub struct FdInterest {
    /// The descriptor, kept open while somebody waits.
    pub fd: Arc<OwnedFd>,
    /// Wait for input.
    pub read: bool,
    /// Wait for room.
    pub write: bool,
}

/// What the user asked of the emulator by the escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxCommand {
    /// End it.
    Exit,
    /// Write snapshot disks back.
    Save,
}

/// What all chardevs of a machine share.
#[derive(Clone)]
pub struct OpenOptions {
    /// The multiplexer's escape key, Ctrl-A unless changed.
    pub escape: u8,
    /// Takes the escape key's commands.
    pub on_command: Arc<dyn Fn(MuxCommand) + Send + Sync>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { escape: 1, on_command: Arc::new(|_| {}) }
    }
}

/// Bytes from the guest that wait for a slow reader.
const OUT_LIMIT: usize = 64 << 10;
/// Bytes from the host that wait for a slow front end of a multiplexer.
const IN_LIMIT: usize = 4 << 10;
/// Front ends of one multiplexer.
const MAX_FRONTENDS: usize = 8;

struct Slot {
    frontend: Option<Arc<dyn CharFrontend>>,
    pending: VecDeque<u8>,
    wants_room: bool,
}

struct Mux {
    escape: Escape,
    focus: usize,
    /// When timestamps were switched on.
    stamps: Option<Instant>,
    line_start: bool,
}

struct Inner {
    backend: Box<dyn Backend>,
    slots: Vec<Slot>,
    mux: Option<Mux>,
    out: VecDeque<u8>,
    log: Option<File>,
}

struct Shared {
    id: String,
    inner: Mutex<Inner>,
    waker: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    on_command: Arc<dyn Fn(MuxCommand) + Send + Sync>,
}

/// A byte stream of the host. Clones are the same stream.
#[derive(Clone)]
pub struct Chardev(Arc<Shared>);

impl std::fmt::Debug for Chardev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: filename={}", self.id(), self.filename())
    }
}

impl Chardev {
    /// Opens what `config` describes. A server with `wait=on` is not waited for: see [`Self::wait_ready`].
    pub fn open(config: &ChardevConfig, options: &OpenOptions) -> Result<Self, ChardevError> {
        let backend: Box<dyn Backend> = match &config.kind {
            ChardevKind::Null => Box::new(Null("null")),
            ChardevKind::Vc => Box::new(Null("vc")),
            ChardevKind::Stdio { signal } => Box::new(stream::Stream::stdio(*signal)?),
            ChardevKind::File { path, append, input } => {
                Box::new(stream::Stream::file(path, *append, input.as_deref())?)
            }
            ChardevKind::Pipe { path } => Box::new(stream::Stream::pipe(path)?),
            ChardevKind::Pty { path } => Box::new(pty::Pty::open(path.as_deref())?),
            ChardevKind::Socket(s) => Box::new(socket::Socket::open(s)?),
            ChardevKind::Ringbuf { size } => Box::new(ringbuf::Ring::new(*size)?),
        };
        let log = match &config.logfile {
            Some(path) => {
                let append = config.logappend;
                let mut how = File::options();
                how.create(true).write(true).truncate(!append).append(append);
                let what = format!("Unable to open logfile {}", path.display());
                Some(how.open(path).map_err(host(what))?)
            }
            None => None,
        };
        let mux = config.mux.then(|| Mux {
            escape: Escape::new(options.escape),
            focus: 0,
            stamps: None,
            line_start: true,
        });
        Ok(Self(Arc::new(Shared {
            id: config.id.clone(),
            inner: Mutex::new(Inner { backend, slots: Vec::new(), mux, out: VecDeque::new(), log }),
            waker: Mutex::new(None),
            on_command: options.on_command.clone(),
        })))
    }

    /// The chardev's name.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// What it is, as `info chardev` shows it.
    pub fn filename(&self) -> String {
        self.0.inner.lock().backend.filename()
    }

    /// Whether somebody is at the other end.
    pub fn connected(&self) -> bool {
        self.0.inner.lock().backend.connected()
    }

    /// Something the user wants to know before the machine runs: a pty's path, a server that waits.
    pub fn notice(&self) -> Option<String> {
        self.0.inner.lock().backend.notice()
    }

    /// For a server with `wait=on`: returns when a client has connected.
    pub fn wait_ready(&self) -> Result<(), ChardevError> {
        let (event, frontends) = {
            let mut inner = self.0.inner.lock();
            (inner.backend.wait_ready()?, inner.frontends())
        };
        if let Some(event) = event {
            frontends.iter().for_each(|f| f.event(event));
        }
        Ok(())
    }

    /// Takes the line for one front end. Only a multiplexer can be claimed more than once.
    pub fn claim(&self) -> Result<CharBackend, ChardevError> {
        let mut inner = self.0.inner.lock();
        if inner.mux.is_none() && !inner.slots.is_empty() {
            return Err(ChardevError::InUse(self.0.id.clone()));
        }
        if inner.slots.len() == MAX_FRONTENDS {
            return Err(ChardevError::TooManyFrontends(self.0.id.clone(), MAX_FRONTENDS));
        }
        inner.slots.push(Slot { frontend: None, pending: VecDeque::new(), wants_room: false });
        Ok(CharBackend(Some((self.clone(), inner.slots.len() - 1))))
    }

    /// Calls `waker` whenever [`Self::interests`] may have changed outside [`Self::dispatch`].
    pub fn set_waker(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        *self.0.waker.lock() = Some(waker);
    }

    fn wake(&self) {
        let waker = self.0.waker.lock().clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// The descriptors to wait for now.
    pub fn interests(&self) -> Vec<FdInterest> {
        let room = self.input_room();
        let mut out = Vec::new();
        let inner = self.0.inner.lock();
        inner.backend.interests(room > 0, !inner.out.is_empty(), &mut out);
        out
    }

    /// Call [`Self::dispatch`] after this time even if no descriptor is ready.
    pub fn timeout(&self) -> Option<Duration> {
        self.0.inner.lock().backend.retry_ms().map(Duration::from_millis)
    }

    /// How many bytes of input are of use now.
    fn input_room(&self) -> usize {
        let (frontend, space, mux) = {
            let inner = self.0.inner.lock();
            let Some(slot) = inner.slots.get(inner.focus()) else { return 0 };
            (slot.frontend.clone(), IN_LIMIT - slot.pending.len(), inner.mux.is_some())
        };
        match (mux, frontend) {
            // Escapes must be seen even when the guest does not read.
            (true, _) => space,
            (false, Some(f)) => f.can_receive(),
            (false, None) => 0,
        }
    }

    /// Does all that can be done without waiting: accepts, flushes, reads, delivers.
    pub fn dispatch(&self) {
        self.service();
        self.flush();
        self.deliver_pending();
        let mut buf = [0; 4096];
        // A bound, so that an endless input does not keep the loop from its other work.
        for _ in 0..16 {
            let room = self.input_room().min(buf.len());
            if room == 0 {
                break;
            }
            let input = self.0.inner.lock().backend.read(&mut buf[..room]);
            match input {
                Input::None => break,
                Input::Break => self.send_event(CharEvent::Break),
                Input::Bytes(n) => self.take_input(&buf[..n]),
            }
        }
        self.service();
    }

    /// Connections that came and went.
    fn service(&self) {
        for _ in 0..4 {
            let (event, frontends) = {
                let mut inner = self.0.inner.lock();
                let event = inner.backend.service();
                if event == Some(CharEvent::Closed) {
                    inner.out.clear();
                }
                (event, inner.frontends())
            };
            let Some(event) = event else { return };
            frontends.iter().for_each(|f| f.event(event));
        }
    }

    /// Writes what waits, and tells front ends that were cut short.
    fn flush(&self) {
        let told: Vec<_> = {
            let mut inner = self.0.inner.lock();
            inner.flush();
            if inner.out.len() >= OUT_LIMIT / 2 {
                return;
            }
            let cut = |s: &mut Slot| std::mem::take(&mut s.wants_room).then(|| s.frontend.clone());
            inner.slots.iter_mut().filter_map(cut).flatten().collect()
        };
        told.iter().for_each(|f| f.writable());
    }

    fn take_input(&self, bytes: &[u8]) {
        let steps = {
            let mut inner = self.0.inner.lock();
            match &mut inner.mux {
                Some(mux) => mux.escape.feed(bytes),
                None => vec![Step::Data(bytes.to_vec())],
            }
        };
        for step in steps {
            match step {
                Step::Data(data) => {
                    let mut inner = self.0.inner.lock();
                    let focus = inner.focus();
                    if let Some(slot) = inner.slots.get_mut(focus) {
                        let space = IN_LIMIT.saturating_sub(slot.pending.len());
                        slot.pending.extend(&data[..data.len().min(space)]);
                    }
                    drop(inner);
                    self.deliver_pending();
                }
                Step::Help => {
                    let mut inner = self.0.inner.lock();
                    let text = inner.mux.as_ref().map(|m| m.escape.help()).unwrap_or_default();
                    inner.put(text.as_bytes());
                }
                Step::Exit => {
                    self.0.inner.lock().put(b"anura: Terminated\n\r");
                    (self.0.on_command)(MuxCommand::Exit);
                }
                Step::Save => (self.0.on_command)(MuxCommand::Save),
                Step::Timestamps => {
                    if let Some(mux) = &mut self.0.inner.lock().mux {
                        mux.stamps = match mux.stamps {
                            Some(_) => None,
                            None => Some(Instant::now()),
                        };
                    }
                }
                Step::Break => self.send_event(CharEvent::Break),
                Step::Rotate => self.rotate(),
            }
        }
    }

    /// Gives the front end in focus what it can take.
    fn deliver_pending(&self) {
        loop {
            let frontend = {
                let inner = self.0.inner.lock();
                let slot = inner.slots.get(inner.focus());
                slot.filter(|s| !s.pending.is_empty()).and_then(|s| s.frontend.clone())
            };
            let Some(frontend) = frontend else { return };
            let room = frontend.can_receive();
            if room == 0 {
                return;
            }
            let data: Vec<u8> = {
                let mut inner = self.0.inner.lock();
                let focus = inner.focus();
                let Some(slot) = inner.slots.get_mut(focus) else { return };
                let n = room.min(slot.pending.len());
                slot.pending.drain(..n).collect()
            };
            frontend.receive(&data);
        }
    }

    fn send_event(&self, event: CharEvent) {
        let frontend = {
            let inner = self.0.inner.lock();
            inner.slots.get(inner.focus()).and_then(|s| s.frontend.clone())
        };
        if let Some(f) = frontend {
            f.event(event);
        }
    }

    fn rotate(&self) {
        self.send_event(CharEvent::FocusOut);
        {
            let mut inner = self.0.inner.lock();
            let count = inner.slots.len().max(1);
            if let Some(mux) = &mut inner.mux {
                mux.focus = (mux.focus + 1) % count;
            }
        }
        self.send_event(CharEvent::FocusIn);
        self.deliver_pending();
    }

    /// Turns a multiplexer's input to the front end that claimed it as number `slot` (from 0).
    pub fn set_focus(&self, slot: usize) {
        if let Some(mux) = &mut self.0.inner.lock().mux {
            mux.focus = slot;
        }
        self.send_event(CharEvent::FocusIn);
    }

    /// Takes up to `max` bytes out of a ring buffer; `None` if this is none.
    pub fn ring_read(&self, max: usize) -> Option<Vec<u8>> {
        self.0.inner.lock().backend.ring_read(max)
    }

    /// Ends the stream: what waits is sent if it can be at once, the terminal is restored, sockets and
    /// links go away, front ends are let go of. Front ends own their line and the line owns them, so a
    /// chardev that is not closed lives as long as the process.
    pub fn close(&self) {
        self.drain(Duration::from_millis(100));
        let mut inner = self.0.inner.lock();
        let old = std::mem::replace(&mut inner.backend, Box::new(Null("null")));
        let frontends: Vec<_> = inner.slots.iter_mut().filter_map(|s| s.frontend.take()).collect();
        drop(inner);
        // Their destructors may come back to us.
        drop((old, frontends));
    }

    /// Waits, for at most `limit`, until all output has left.
    pub fn drain(&self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let mut wait = Vec::new();
            {
                let mut inner = self.0.inner.lock();
                inner.flush();
                if inner.out.is_empty() {
                    return;
                }
                inner.backend.interests(false, true, &mut wait);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            poll_interests(&wait, Some(left.min(Duration::from_millis(20))));
        }
    }

    fn write(&self, slot: usize, bytes: &[u8]) -> usize {
        let mut inner = self.0.inner.lock();
        let had_none = inner.out.is_empty();
        let taken = inner.write(bytes);
        if taken < bytes.len()
            && let Some(s) = inner.slots.get_mut(slot)
        {
            s.wants_room = true;
        }
        let wake = had_none && !inner.out.is_empty();
        drop(inner);
        if wake {
            self.wake();
        }
        taken
    }
}

impl Inner {
    fn focus(&self) -> usize {
        self.mux.as_ref().map_or(0, |m| m.focus)
    }

    fn frontends(&self) -> Vec<Arc<dyn CharFrontend>> {
        self.slots.iter().filter_map(|s| s.frontend.clone()).collect()
    }

    /// Takes what fits of a front end's bytes.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let room = OUT_LIMIT.saturating_sub(self.out.len());
        let bytes = &bytes[..bytes.len().min(room.max(1))];
        if room == 0 {
            self.flush();
            if self.out.len() >= OUT_LIMIT {
                return 0;
            }
        }
        match self.mux.as_mut().and_then(|m| m.stamped(bytes)) {
            Some(stamped) => self.put(&stamped),
            None => self.put(bytes),
        }
        bytes.len()
    }

    /// Logs and sends bytes, or queues them behind those that wait.
    fn put(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            // A full disk must not stop the guest.
            let _ = log.write_all(bytes);
        }
        let sent = if self.out.is_empty() { self.backend.write(bytes) } else { 0 };
        self.out.extend(&bytes[sent..]);
    }

    fn flush(&mut self) {
        while !self.out.is_empty() {
            let n = self.backend.write(self.out.as_slices().0);
            if n == 0 {
                return;
            }
            self.out.drain(..n);
        }
    }
}

impl Mux {
    /// With timestamps on, `bytes` with the time since then before each line.
    fn stamped(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let since = self.stamps?.elapsed();
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for &b in bytes {
            if std::mem::replace(&mut self.line_start, b == b'\n') {
                let (s, ms) = (since.as_secs(), since.subsec_millis());
                let _ = write!(out, "[{:02}:{:02}:{:02}.{ms:03}] ", s / 3600, s / 60 % 60, s % 60);
            }
            out.push(b);
        }
        Some(out)
    }
}

/// A front end's end of its line. Clones are of the same front end.
#[derive(Clone, Debug)]
pub struct CharBackend(Option<(Chardev, usize)>);

impl CharBackend {
    /// A line that is plugged into nothing: it takes all output and brings no input.
    pub fn disconnected() -> Self {
        Self(None)
    }

    /// Whether there is a chardev at all.
    pub fn is_plugged(&self) -> bool {
        self.0.is_some()
    }

    /// The chardev, if there is one.
    pub fn chardev(&self) -> Option<&Chardev> {
        self.0.as_ref().map(|(c, _)| c)
    }

    /// Whether input comes to this front end: always, but for one of several on a multiplexer.
    pub fn has_focus(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(c, slot)| c.0.inner.lock().mux.as_ref().is_none_or(|m| m.focus == *slot))
    }

    /// Says who takes the input. A stream that is connected already tells it so at once.
    pub fn set_frontend(&self, frontend: Arc<dyn CharFrontend>) {
        let Some((chardev, slot)) = &self.0 else { return };
        let connected = {
            let mut inner = chardev.0.inner.lock();
            if let Some(s) = inner.slots.get_mut(*slot) {
                s.frontend = Some(frontend.clone());
            }
            inner.backend.connected()
        };
        if connected {
            frontend.event(CharEvent::Opened);
        }
        chardev.wake();
    }

    /// Sends bytes; how many were taken. Never waits. When it takes fewer, the front end's `writable`
    /// is called once there is room.
    pub fn write(&self, bytes: &[u8]) -> usize {
        match &self.0 {
            Some((chardev, slot)) => chardev.write(*slot, bytes),
            None => bytes.len(),
        }
    }

    /// Sends bytes, waiting for a slow reader: for monitors and for output that must not be lost.
    pub fn write_all(&self, bytes: &[u8]) {
        let Some((chardev, slot)) = &self.0 else { return };
        let mut done = 0;
        while done < bytes.len() {
            let n = chardev.write(*slot, &bytes[done..]);
            done += n;
            if n == 0 {
                chardev.drain(Duration::from_millis(100));
            }
        }
    }

    /// The front end has room again after `can_receive` said 0: the loop should look.
    pub fn accept_input(&self) {
        if let Some((chardev, _)) = &self.0 {
            chardev.wake();
        }
    }
}

fn poll_interests(interests: &[FdInterest], timeout: Option<Duration>) -> bool {
    let mut fds: Vec<_> = interests
        .iter()
        .map(|i| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, i.read);
            flags.set(PollFlags::OUT, i.write);
            PollFd::new(&*i.fd, flags)
        })
        .collect();
    let timeout =
        timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    rustix::event::poll(&mut fds, timeout.as_ref()).is_ok_and(|n| n > 0)
}

/// One turn of a loop over chardevs: waits until one of them is ready or the time is over, then
/// dispatches all. A main loop of its own kind uses [`Chardev::interests`] instead.
pub fn pump(chardevs: &[&Chardev], timeout: Option<Duration>) {
    let interests: Vec<_> = chardevs.iter().flat_map(|c| c.interests()).collect();
    let retry = chardevs.iter().filter_map(|c| c.timeout()).min();
    poll_interests(&interests, timeout.into_iter().chain(retry).min());
    chardevs.iter().for_each(|c| c.dispatch());
}
