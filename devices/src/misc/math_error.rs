//! The way of numeric errors in a PC (AT technical reference, "Math coprocessor"; Intel SDM volume 1, 8.7.2 and
//! appendix D): FERR# of the processor latches IRQ 13, a write to port F0h clears the latch and asserts IGNNE#
//! until FERR# goes away.

use anura_memory::{AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, IrqLine, LoadError, Record, ResetKind};

/// The latch and the IGNNE# gate.
pub struct MathError {
    line: IrqLine,
    latched: bool,
    ignore: bool,
}

impl MathError {
    /// A latch that drives `line`.
    pub fn new(line: IrqLine) -> DeviceCell<Self> {
        DeviceCell::new(Self { line, latched: false, ignore: false })
    }

    /// Maps port F0h.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let handler = cell_io(cell, |_: &mut Self, _| 0xff, |device: &mut Self, _, _| device.acknowledge());
        let region = Region::io("math-error", 1, handler, AccessRules::BYTES);
        map.transaction().add(ports.root(), 0xf0, &region, 0);
    }

    fn acknowledge(&mut self) {
        self.latched = false;
        self.ignore = true;
        self.line.set(false);
    }

    /// The processor's FERR# pin; the level of IGNNE#.
    pub fn ferr(&mut self, level: bool) -> bool {
        if !level {
            self.ignore = false;
        } else if !self.ignore {
            self.latched = true;
            self.line.set(true);
        }
        self.ignore
    }
}

impl Device for MathError {
    fn reset(&mut self, _kind: ResetKind) {
        (self.latched, self.ignore) = (false, false);
        self.line.set(false);
    }
    fn save(&self) -> Record {
        let Self { line: _, latched, ignore } = self;
        Record::new(1).with(1, *latched).with(2, *ignore)
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let (latched, ignore) = (r.get(1)?, r.get(2)?);
        r.finish()?;
        (self.latched, self.ignore) = (latched, ignore);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::LineLevels;

    #[test]
    fn an_error_interrupts_until_it_is_acknowledged_and_is_then_ignored_until_it_is_gone() {
        let lines = LineLevels::new();
        let cell = MathError::new(lines.line(13));
        let mut device = cell.lock();
        assert!(!device.ferr(true) && lines.level(13));
        device.acknowledge();
        assert!(device.ferr(true) && !lines.level(13));
        assert!(!device.ferr(false) && !device.ferr(true) && lines.level(13));
    }
}
