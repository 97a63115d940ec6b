//! Why a machine cannot be built or restored: one line each for the user.

use std::io;
use std::path::PathBuf;

use anura_accel::AccelError;
use anura_chardev::ChardevError;
use anura_memory::BackingError;
use anura_vmcore::LoadError;

/// Why a machine cannot be built, booted or restored.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The user asked for something impossible; the text names option, value and way out.
    #[error("{0}")]
    Config(String),
    /// A file that an option names cannot be read.
    #[error("{option} {path}: could not load: {source}", path = path.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A file that an option names is not what it should be.
    #[error("{option} {path}: {why}", path = path.display())]
    Image {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Guest memory.
    #[error("-m: {0}")]
    Memory(#[from] BackingError),
    /// The engine.
    #[error(transparent)]
    Accel(#[from] AccelError),
    /// A chardev.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// A saved state that does not fit.
    #[error("saved state: {device}: {source}")]
    Load {
        /// Path of the device.
        device: String,
        /// What is wrong.
        source: LoadError,
    },
    /// The host refused a thread or a descriptor.
    #[error("{what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
}

impl From<io::Error> for MachineError {
    fn from(source: io::Error) -> Self {
        Self::Host { what: "vCPU thread", source }
    }
}
