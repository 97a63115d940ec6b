//! What every device speaks: interrupt lines, guest time and timers, the one lock of a device, saved
//! records, requests to the machine, the guest-error log and trace events.
//!
//! Nothing here knows a device, a board or an engine. A device gets these handles when the machine is
//! built and has no other way to reach the world, which is what lets it be tested alone and repeated
//! bit for bit.

#![forbid(unsafe_code)]

mod cell;
mod clock;
mod device;
mod irq;
mod log;
mod record;
mod request;
mod signal;
pub mod trace;

pub use cell::{DeviceCell, DeviceGuard, WeakCell};
pub use clock::{Clock, Counter, Timer, TimerState};
pub use device::{Device, DeviceHandle, ResetKind};
pub use irq::{HostApics, IrqLine, IrqSink, LineLevels, MsiRoute, MsiSink};
pub use log::{GuestErrorSite, set_guest_error_hook};
pub use record::{Bytes, Field, LoadError, Reader, Record, Value};
pub use request::{MachineRequest, Requests};
pub use signal::CpuSignal;

/// Width of one access, as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    W1 = 1,
    /// Two bytes.
    W2 = 2,
    /// Four bytes.
    W4 = 4,
    /// Eight bytes.
    W8 = 8,
}

impl Width {
    /// Number of bytes, 1, 2, 4 or 8.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// Number of bits, 8 to 64.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// All ones in this width.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The width of `n` bytes; `None` unless `n` is 1, 2, 4 or 8.
    pub const fn from_bytes(n: usize) -> Option<Self> {
        match n {
            1 => Some(Self::W1),
            2 => Some(Self::W2),
            4 => Some(Self::W4),
            8 => Some(Self::W8),
            _ => None,
        }
    }
}

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester {
    /// The vCPU of this index.
    Cpu(u32),
    /// A device that masters the bus.
    BusMaster,
    /// The monitor or a debugger.
    Monitor,
}
