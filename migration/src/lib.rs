//! Saving a stopped machine to a stream and restoring it in another process.
//!
//! A stream is a sequence of frames, each a 32-bit length and a CBOR array. The first names format and
//! version; then come the records of clock, vCPUs and devices, the RAM blocks with those pieces of them that are not
//! zero, and at the end a hash of all that went before, so that a truncated or altered stream is refused
//! before the machine runs. Nothing in a stream is trusted: lengths are bounded, names must be those of this
//! machine.

#![forbid(unsafe_code)]

mod stream;
mod uri;

use anura_machine::{Machine, MachineError};

pub use stream::{load, save};
pub use uri::Uri;

/// Why a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The destination or source is not of a kind that we know.
    #[error("'{0}': unknown migration protocol; there are file:PATH and exec:COMMAND")]
    Protocol(String),
    /// The host said no.
    #[error("{what}")]
    Host {
        /// What was tried, naming the object.
        what: String,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The command of `exec:` failed.
    #[error("exec:{command}: ended with {status}")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The stream is not one of ours, or damaged.
    #[error("not a saved machine: {0}")]
    Malformed(&'static str),
    /// The stream is of another machine.
    #[error("the saved machine does not fit: {0}; start with the options that it was saved under")]
    Mismatch(String),
    /// A part of the machine refuses its state.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Saves the stopped `machine` to `uri`, `file:PATH` or `exec:COMMAND`.
pub fn save_to(machine: &Machine, uri: &str) -> Result<(), MigrationError> {
    Uri::parse(uri)?.write(|out| save(machine, out))
}

/// Restores the stopped `machine` from `uri`.
pub fn load_from(machine: &Machine, uri: &str) -> Result<(), MigrationError> {
    Uri::parse(uri)?.read(|input| load(machine, input))
}
