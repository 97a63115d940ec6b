//! TCP and Unix sockets, as server or client.
//!
//! A server takes one connection at a time and listens again when it ends. While nobody is connected
//! what the guest sends is dropped, as it is on a cable that leads nowhere. Connecting again after a
//! lost connection waits `reconnect` seconds.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::backend::{Backend, Input, ready};
use crate::chardev::{CharEvent, FdInterest};
use crate::config::{SocketAddress, SocketConfig};
use crate::telnet::{GREETING, Telnet};
use crate::{ChardevError, host};

/// How long a client's attempt to connect again may hold up the main loop.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

pub(crate) struct Socket {
    config: SocketConfig,
    /// The address as `info chardev` shows it, with the port that was found free.
    address: String,
    listener: Option<Arc<OwnedFd>>,
    stream: Option<Arc<OwnedFd>>,
    telnet: Option<Telnet>,
    unlink: Option<PathBuf>,
    lost: bool,
    retry_at: Option<Instant>,
}

impl Socket {
    pub(crate) fn open(config: &SocketConfig) -> Result<Self, ChardevError> {
        let mut s = Self {
            config: config.clone(),
            address: describe(&config.address),
            listener: None,
            stream: None,
            telnet: None,
            unlink: None,
            lost: false,
            retry_at: None,
        };
        if let SocketAddress::Fd { fd } = config.address {
            s.adopt(fd)?;
        } else if config.server {
            s.listen()?;
        } else {
            match s.connect(None) {
                Ok(stream) => s.attach(stream)?,
                Err(_) if config.reconnect > 0 => s.schedule_retry(),
                Err(e) => return Err(host(format!("Failed to connect to '{}'", s.address))(e)),
            }
        }
        Ok(s)
    }

    fn listen(&mut self) -> Result<(), ChardevError> {
        let fail = host::<std::io::Error>;
        let listener: OwnedFd = match &self.config.address {
            SocketAddress::Tcp { host, port, to } => {
                let name = if host.is_empty() { "0.0.0.0" } else { host };
                let last = to.unwrap_or(*port).max(*port);
                let mut result = Err(std::io::ErrorKind::AddrNotAvailable.into());
                for p in *port..=last {
                    result = TcpListener::bind((name, p));
                    if result.is_ok() {
                        break;
                    }
                }
                let l =
                    result.map_err(fail(format!("Failed to find an available port: {}", self.address)))?;
                if let Ok(at) = l.local_addr() {
                    self.address = format!("{}:{}", at.ip(), at.port());
                }
                l.into()
            }
            SocketAddress::Unix { path, abstract_name: true } => {
                let at = UnixAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())
                    .map_err(fail(format!("socket name '{}'", path.display())))?;
                let what = format!("Failed to bind socket to @{}", path.display());
                UnixListener::bind_addr(&at).map_err(fail(what))?.into()
            }
            SocketAddress::Unix { path, .. } => {
                // A socket that nobody listens on is left over from an earlier run.
                if UnixStream::connect(path).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
                {
                    let _ = std::fs::remove_file(path);
                }
                let what = format!("Failed to bind socket to {}", path.display());
                let l = UnixListener::bind(path).map_err(fail(what))?;
                self.unlink = Some(path.clone());
                l.into()
            }
            SocketAddress::Fd { .. } => return Ok(()),
        };
        self.listener = Some(Arc::new(nonblocking(listener, &self.address)?));
        Ok(())
    }

    /// Takes over a descriptor that the process was started with.
    fn adopt(&mut self, fd: i32) -> Result<(), ChardevError> {
        let what = || format!("file descriptor '{fd}'");
        let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
            .map_err(host(what()))?;
        let own = rustix::process::pidfd_getfd(&me, fd, rustix::process::PidfdGetfdFlags::empty())
            .map_err(host(what()))?;
        let listens = rustix::net::sockopt::socket_acceptconn(&own).map_err(host(what()))?;
        if listens {
            self.listener = Some(Arc::new(nonblocking(own, &self.address)?));
            Ok(())
        } else {
            self.attach(own)
        }
    }

    fn connect(&self, timeout: Option<Duration>) -> std::io::Result<OwnedFd> {
        Ok(match &self.config.address {
            SocketAddress::Tcp { host, port, .. } => {
                let name = if host.is_empty() { "localhost" } else { host };
                let mut last = std::io::ErrorKind::AddrNotAvailable.into();
                for at in (name, *port).to_socket_addrs()? {
                    let stream = match timeout {
                        Some(t) => TcpStream::connect_timeout(&at, t),
                        None => TcpStream::connect(at),
                    };
                    match stream {
                        Ok(s) => return Ok(s.into()),
                        Err(e) => last = e,
                    }
                }
                return Err(last);
            }
            SocketAddress::Unix { path, abstract_name: true } => {
                UnixStream::connect_addr(&UnixAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())?)?
                    .into()
            }
            SocketAddress::Unix { path, .. } => UnixStream::connect(path)?.into(),
            SocketAddress::Fd { .. } => return Err(std::io::ErrorKind::NotConnected.into()),
        })
    }

    fn attach(&mut self, stream: OwnedFd) -> Result<(), ChardevError> {
        let stream = Arc::new(nonblocking(stream, &self.address)?);
        if self.config.nodelay {
            // Fails on a Unix socket, which has no delay to switch off.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&stream, true);
        }
        if self.config.telnet {
            self.telnet = Some(Telnet::default());
            if self.config.server {
                let _ = rustix::net::send(&stream, &GREETING, SendFlags::NOSIGNAL);
            }
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn schedule_retry(&mut self) {
        self.retry_at = Some(Instant::now() + Duration::from_secs(self.config.reconnect));
    }

    fn hang_up(&mut self) {
        if self.stream.take().is_some() {
            self.lost = true;
        }
    }
}

fn nonblocking(fd: OwnedFd, address: &str) -> Result<OwnedFd, ChardevError> {
    rustix::io::ioctl_fionbio(&fd, true).map_err(host(address))?;
    Ok(fd)
}

fn describe(address: &SocketAddress) -> String {
    match address {
        SocketAddress::Tcp { host, port, .. } if host.is_empty() => format!("0.0.0.0:{port}"),
        SocketAddress::Tcp { host, port, .. } => format!("{host}:{port}"),
        SocketAddress::Unix { path, abstract_name: true } => format!("@{}", path.display()),
        SocketAddress::Unix { path, .. } => path.display().to_string(),
        SocketAddress::Fd { fd } => format!("fd {fd}"),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.unlink {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Backend for Socket {
    fn interests(&self, read: bool, write: bool, out: &mut Vec<FdInterest>) {
        match (&self.stream, &self.listener) {
            (Some(fd), _) => {
                if read || write {
                    out.push(FdInterest { fd: fd.clone(), read, write });
                }
            }
            (None, Some(fd)) => out.push(FdInterest { fd: fd.clone(), read: true, write: false }),
            (None, None) => {}
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> Input {
        let Some(fd) = &self.stream else { return Input::None };
        if buf.is_empty() {
            return Input::None;
        }
        match rustix::net::recv(fd, &mut *buf, RecvFlags::empty()) {
            Ok((_, 0)) => {
                self.hang_up();
                Input::None
            }
            Ok((_, n)) => match &mut self.telnet {
                Some(telnet) => match telnet.filter(buf, n) {
                    (0, true) => Input::Break,
                    (0, false) => Input::None,
                    (n, _) => Input::Bytes(n),
                },
                None => Input::Bytes(n),
            },
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Input::None,
            Err(_) => {
                self.hang_up();
                Input::None
            }
        }
    }

    fn write(&mut self, buf: &[u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(fd) = &self.stream else { return buf.len() };
            match rustix::net::send(fd, &buf[done..], SendFlags::NOSIGNAL) {
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => self.hang_up(),
            }
        }
        done
    }

    fn service(&mut self) -> Option<CharEvent> {
        if std::mem::take(&mut self.lost) {
            if self.listener.is_none() && self.config.reconnect > 0 {
                self.schedule_retry();
            }
            return Some(CharEvent::Closed);
        }
        if self.stream.is_some() {
            return None;
        }
        if let Some(listener) = &self.listener {
            let stream = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).ok()?;
            self.attach(stream).ok()?;
            return Some(CharEvent::Opened);
        }
        if self.retry_at.is_some_and(|at| Instant::now() >= at) {
            match self.connect(Some(CONNECT_TIMEOUT)) {
                Ok(stream) => {
                    self.retry_at = None;
                    self.attach(stream).ok()?;
                    return Some(CharEvent::Opened);
                }
                Err(_) => self.schedule_retry(),
            }
        }
        None
    }

    fn connected(&self) -> bool {
        self.stream.is_some()
    }

    fn filename(&self) -> String {
        let state = if self.stream.is_some() { "" } else { "disconnected:" };
        let kind = match (&self.config.address, self.config.telnet) {
            (_, true) => "telnet",
            (SocketAddress::Unix { .. }, _) => "unix",
            _ => "tcp",
        };
        let server = if self.config.server { ",server=on" } else { "" };
        format!("{state}{kind}:{}{server}", self.address)
    }

    fn notice(&self) -> Option<String> {
        (self.config.server && self.config.wait)
            .then(|| format!("waiting for connection on: {}", self.filename()))
    }

    fn wait_ready(&mut self) -> Result<Option<CharEvent>, ChardevError> {
        if !(self.config.server && self.config.wait) {
            return Ok(None);
        }
        while let (None, Some(listener)) = (&self.stream, &self.listener) {
            if !ready(listener, PollFlags::IN) {
                let mut fds = [PollFd::new(&**listener, PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            if let Some(event) = self.service() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn retry_ms(&self) -> Option<u64> {
        let at = self.retry_at?;
        Some(at.saturating_duration_since(Instant::now()).as_millis() as u64)
    }
}
