//! What a chardev is, typed: the command line's `-chardev` and `-serial` become these.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One chardev to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevConfig {
    /// Its name.
    pub id: String,
    /// Several front ends may share it.
    #[serde(default)]
    pub mux: bool,
    /// A file that gets a copy of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logfile: Option<PathBuf>,
    /// Whether the log file keeps what it has.
    #[serde(default)]
    pub logappend: bool,
    /// Where the bytes go.
    pub kind: ChardevKind,
}

/// Where the bytes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum ChardevKind {
    /// Nowhere.
    Null,
    /// A text window of a display. There is none, so nowhere.
    Vc,
    /// This process's terminal, or what its standard input and output are.
    Stdio {
        /// Whether Ctrl-C and its kin end the emulator rather than reach the guest.
        signal: bool,
    },
    /// A file to write to.
    File {
        /// Output file.
        path: PathBuf,
        /// Keep what it has.
        append: bool,
        /// A file to read from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<PathBuf>,
    },
    /// A pair of named pipes `path.in` and `path.out`, or one that serves both ways.
    Pipe {
        /// Path without the endings.
        path: PathBuf,
    },
    /// A new pseudo terminal.
    Pty {
        /// A link to make to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
    },
    /// A TCP or Unix socket.
    Socket(SocketConfig),
    /// Memory that keeps the last bytes.
    Ringbuf {
        /// Its size, a power of two.
        size: u64,
    },
}

/// A socket chardev.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketConfig {
    /// Where.
    pub address: SocketAddress,
    /// Listens, rather than connects.
    pub server: bool,
    /// A server that holds up the start until someone connects.
    pub wait: bool,
    /// Speaks telnet.
    pub telnet: bool,
    /// Sends small pieces at once.
    pub nodelay: bool,
    /// A client that tries again after so many seconds; 0 is never.
    pub reconnect: u64,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketAddress {
    /// A TCP port.
    Tcp {
        /// Host name or address; empty is every address of this host.
        host: String,
        /// Port number.
        port: u16,
        /// Last port to try where `port` is taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u16>,
    },
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// In the abstract name space.
        #[serde(default, rename = "abstract")]
        abstract_name: bool,
    },
    /// A descriptor that this process was started with.
    Fd {
        /// Its number.
        fd: i32,
    },
}

impl ChardevConfig {
    /// A chardev with defaults for all but its name and kind.
    pub fn new(id: impl Into<String>, kind: ChardevKind) -> Self {
        Self { id: id.into(), mux: false, logfile: None, logappend: false, kind }
    }
}
