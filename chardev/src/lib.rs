//! Character devices of the host: where serial ports, the parallel port and monitors send their bytes.
//!
//! A [`Chardev`] is one byte stream of the host (the terminal, a socket, a file …). A front end (a
//! UART, a monitor) claims it and gets a [`CharBackend`] to write with; bytes from the host reach it
//! through [`CharFrontend`]. With `mux` several front ends share one stream and an escape key moves
//! the input from one to the next, as `-nographic` does with the serial port and the monitor.
//!
//! Nothing here has a thread or a loop. The main loop asks each chardev which descriptors it waits
//! for ([`Chardev::interests`]), calls [`Chardev::dispatch`] when one is ready, and is woken by the
//! hook given to [`Chardev::set_waker`] when the answer changes.
//!
//! Lock order: device, then chardev. A front end is therefore never called with the chardev's lock
//! held, and a device may write while it holds its own lock.
#![forbid(unsafe_code)]

mod backend;
mod chardev;
mod config;
mod mux;
mod pty;
mod ringbuf;
mod socket;
mod stream;
mod telnet;
pub mod terminal;

pub use chardev::{CharBackend, CharEvent, CharFrontend, Chardev, FdInterest, MuxCommand, OpenOptions, pump};
pub use config::{ChardevConfig, ChardevKind, SocketAddress, SocketConfig};

/// Why a chardev could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// Something of the host said no.
    #[error("{what}: {source}")]
    Host {
        /// What was tried, naming the object.
        what: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The stream has its front end already and is no multiplexer.
    #[error("chardev '{0}' is already in use")]
    InUse(String),
    /// A second user of the terminal.
    #[error("cannot use stdio by multiple character devices")]
    StdioTwice,
    /// A multiplexer has a limited number of front ends.
    #[error("chardev '{0}': too many uses of a multiplexed chardev (at most {1})")]
    TooManyFrontends(String, usize),
    /// A size that a ring buffer cannot have.
    #[error("size of ringbuf chardev must be power of two, not {0}")]
    RingSize(u64),
}

/// Names what was tried when the host refuses.
fn host<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> ChardevError {
    let what = what.into();
    move |e| ChardevError::Host { what, source: e.into() }
}
