//! What the machine asks of every device.

use crate::{DeviceCell, LoadError, Record};

/// Why a reset happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power was applied: everything takes its power-on value.
    PowerOn,
    /// The system reset line: what is backed by a battery or survives by its datasheet stays.
    System,
    /// Only the processors are reset (INIT by port 92h, the keyboard controller or a shutdown cycle).
    Cpu,
}

/// A chip or card: a state machine with no host in it.
pub trait Device: Send + 'static {
    /// Puts the chip in its reset state and drives its output lines accordingly.
    fn reset(&mut self, kind: ResetKind);
    /// The machine starts to run: edges, timers and queued work resume here.
    fn start(&mut self) {}
    /// The machine stops: no new work is begun until `start`.
    fn stop(&mut self) {}
    /// The complete guest-visible state. Implementations take `self` apart without `..`, so that a new
    /// field does not compile until someone decides where it goes.
    fn save(&self) -> Record;
    /// Takes over a saved state; makes no edge on any line (`start` does). Never panics, whatever the record holds.
    fn load(&mut self, from: &Record) -> Result<(), LoadError>;
}

/// The object-safe face of a `DeviceCell<T: Device>`: what the machine's device list holds.
pub trait DeviceHandle: Send + Sync {
    /// See [`Device::reset`].
    fn reset(&self, kind: ResetKind);
    /// See [`Device::start`].
    fn start(&self);
    /// See [`Device::stop`].
    fn stop(&self);
    /// See [`Device::save`].
    fn save(&self) -> Record;
    /// See [`Device::load`].
    fn load(&self, from: &Record) -> Result<(), LoadError>;
}

impl<T: Device> DeviceHandle for DeviceCell<T> {
    fn reset(&self, kind: ResetKind) {
        self.lock().reset(kind);
    }
    fn start(&self) {
        self.lock().start();
    }
    fn stop(&self) {
        self.lock().stop();
    }
    fn save(&self) -> Record {
        self.lock().save()
    }
    fn load(&self, from: &Record) -> Result<(), LoadError> {
        self.lock().load(from)
    }
}
