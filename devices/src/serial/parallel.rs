//! The PC's parallel port (IBM PC AT Technical Reference, "Parallel Adapter"), bidirectional data register.
//!
//! A byte is sent when the strobe is driven: the printer takes it at once and acknowledges, which interrupts if
//! enabled. Left out: EPP and ECP, whose registers are not there.

use anura_chardev::CharBackend;
use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, IrqLine, LoadError, Record, ResetKind};

const STATUS_NOT_BUSY: u8 = 0x80;
const STATUS_NOT_ACK: u8 = 0x40;
const STATUS_SELECTED: u8 = 0x10;
const STATUS_NOT_ERROR: u8 = 0x08;

const CONTROL_STROBE: u8 = 0x01;
const CONTROL_INIT: u8 = 0x04;
const CONTROL_SELECT: u8 = 0x08;
const CONTROL_IRQ: u8 = 0x10;
const CONTROL_INPUT: u8 = 0x20;

/// One parallel port.
pub struct Parallel {
    // Wiring.
    irq: IrqLine,
    backend: CharBackend,
    // State.
    data: u8,
    control: u8,
    acknowledged: bool,
}

impl Parallel {
    /// A port whose printer is `backend`.
    pub fn new(irq: IrqLine, backend: CharBackend) -> DeviceCell<Self> {
        DeviceCell::new(Self {
            irq,
            backend,
            data: 0,
            control: CONTROL_INIT | CONTROL_SELECT,
            acknowledged: false,
        })
    }

    /// Maps the data, status and control registers at `base`.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, base: u16) {
        let handler = cell_io(cell, Self::read, Self::write);
        map.transaction().add(
            ports.root(),
            u64::from(base),
            &Region::io("parallel", 8, handler, AccessRules::BYTES),
            0,
        );
    }

    fn update_irq(&self) {
        self.irq.set(self.acknowledged && self.control & CONTROL_IRQ != 0);
    }

    /// Reads a register.
    pub fn read(&mut self, a: Access) -> u64 {
        u64::from(match a.offset & 7 {
            // With the drivers off, nothing holds the wires and they float high.
            0 if self.control & CONTROL_INPUT != 0 => 0xff,
            0 => self.data,
            1 => {
                self.acknowledged = false;
                self.update_irq();
                STATUS_NOT_BUSY | STATUS_NOT_ACK | STATUS_SELECTED | STATUS_NOT_ERROR
            }
            // Bits 7 and 6 are not driven.
            2 => self.control | 0xc0,
            _ => 0xff,
        })
    }

    /// Writes a register.
    pub fn write(&mut self, a: Access, value: u64) {
        let value = value as u8;
        match a.offset & 7 {
            0 => self.data = value,
            2 => {
                let strobe = value & !self.control & CONTROL_STROBE != 0;
                self.control = value & 0x3f;
                // The printer listens while it is selected and not held in initialisation.
                if strobe && value & CONTROL_INIT != 0 && value & CONTROL_SELECT != 0 {
                    self.backend.write_all(&[self.data]);
                    self.acknowledged = true;
                }
                self.update_irq();
            }
            _ => {}
        }
    }
}

impl Device for Parallel {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { irq: _, backend: _, data, control, acknowledged } = self;
        (*data, *control, *acknowledged) = (0, CONTROL_INIT | CONTROL_SELECT, false);
        self.update_irq();
    }

    fn save(&self) -> Record {
        let Self { irq, backend: _, data, control, acknowledged } = self;
        Record::new(1).with(1, [*data, *control]).with(2, [*acknowledged, irq.level()])
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [data, control] = r.get_if::<[u8; 2]>(1, |v| v[1] < 0x40)?;
        let [acknowledged, level] = r.get(2)?;
        r.finish()?;
        (self.data, self.control, self.acknowledged) = (data, control, acknowledged);
        self.irq.restore(level);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_chardev::{Chardev, ChardevConfig, ChardevKind, OpenOptions};
    use anura_vmcore::{LineLevels, Requester, Width};

    fn at(offset: u64) -> Access {
        Access { offset, width: Width::W1, from: Requester::Cpu(0) }
    }

    #[test]
    fn a_strobe_sends_the_data_byte_and_acknowledges() {
        let sink = LineLevels::new();
        let config = ChardevConfig::new("ring", ChardevKind::Ringbuf { size: 16 });
        let host = Chardev::open(&config, &OpenOptions::default()).unwrap();
        let port = Parallel::new(sink.line(7), host.claim().unwrap());
        let mut port = port.lock();
        port.write(at(0), u64::from(b'P'));
        port.write(at(2), 0x1d);
        port.write(at(2), 0x1c);
        assert_eq!(host.ring_read(8).unwrap(), b"P");
        assert!(sink.level(7));
        assert_eq!(port.read(at(1)), 0xd8);
        assert!(!sink.level(7), "reading the status ends the interrupt");
        port.write(at(2), 0x01);
        assert!(host.ring_read(8).unwrap().is_empty(), "a printer in initialisation takes nothing");
    }

    #[test]
    fn registers_read_back_and_input_mode_floats() {
        let port = Parallel::new(IrqLine::unconnected(), CharBackend::disconnected());
        let mut port = port.lock();
        port.write(at(0), 0x55);
        assert_eq!((port.read(at(0)), port.read(at(2))), (0x55, 0xcc));
        port.write(at(2), 0x2c);
        assert_eq!(port.read(at(0)), 0xff);
        assert_eq!(port.read(at(5)), 0xff);
        let record = port.save();
        port.reset(ResetKind::System);
        assert_ne!(port.save(), record);
        port.load(&record).unwrap();
        assert_eq!(port.save(), record);
    }
}
