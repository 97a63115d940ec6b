//! Debug console: one port whose writes go to a chardev, and which reads back a byte that tells it is there.

use anura_chardev::CharBackend;
use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind};

/// The port.
pub struct DebugCon {
    backend: CharBackend,
    readback: u32,
}

impl DebugCon {
    /// A port that answers reads with `readback`, E9h unless changed.
    pub fn new(backend: CharBackend, readback: u32) -> DeviceCell<Self> {
        DeviceCell::new(Self { backend, readback })
    }

    /// Maps the port.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, at: u16) {
        let handler = cell_io(cell, Self::read, Self::write);
        let region = Region::io("isa-debugcon", 1, handler, AccessRules::BYTES);
        map.transaction().add(ports.root(), u64::from(at), &region, 0);
    }

    fn read(&mut self, _a: Access) -> u64 {
        u64::from(self.readback)
    }

    fn write(&mut self, _a: Access, value: u64) {
        self.backend.write_all(&[value as u8]);
    }
}

impl Device for DebugCon {
    fn reset(&mut self, _kind: ResetKind) {}
    fn save(&self) -> Record {
        let Self { backend: _, readback: _ } = self;
        Record::new(1)
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        from.read(1)?.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_chardev::{Chardev, ChardevConfig, ChardevKind, OpenOptions};
    use anura_vmcore::{Requester, Width};

    #[test]
    fn bytes_go_out_and_the_readback_tells_that_the_port_is_there() {
        let config = ChardevConfig::new("ring", ChardevKind::Ringbuf { size: 16 });
        let host = Chardev::open(&config, &OpenOptions::default()).unwrap();
        let port = DebugCon::new(host.claim().unwrap(), 0xe9);
        let a = Access { offset: 0, width: Width::W1, from: Requester::Cpu(0) };
        assert_eq!(port.lock().read(a), 0xe9);
        b"hi".iter().for_each(|b| port.lock().write(a, u64::from(*b)));
        assert_eq!(host.ring_read(8).unwrap(), b"hi");
    }
}
