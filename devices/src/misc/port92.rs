//! System control port A, 92h: fast A20 and fast processor reset (PIIX3 datasheet 290550, "Port 92").

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, MachineRequest, Record, Requests, ResetKind};

const INIT: u8 = 0x01;
const A20: u8 = 0x02;

/// The port.
pub struct Port92 {
    // Wiring.
    requests: Requests,
    // State.
    value: u8,
}

impl Port92 {
    /// A port that asks through `requests`.
    pub fn new(requests: &Requests) -> DeviceCell<Self> {
        DeviceCell::new(Self { requests: requests.clone(), value: 0 })
    }

    /// Maps the port.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let handler = cell_io(cell, Self::read, Self::write);
        map.transaction().add(ports.root(), 0x92, &Region::io("port92", 1, handler, AccessRules::BYTES), 0);
    }

    fn read(&mut self, _a: Access) -> u64 {
        u64::from(self.value)
    }

    fn write(&mut self, _a: Access, value: u64) {
        let value = value as u8;
        let old = std::mem::replace(&mut self.value, value);
        if (old ^ value) & A20 != 0 {
            self.requests.send(MachineRequest::A20(value & A20 != 0));
        }
        if value & !old & INIT != 0 {
            self.requests.send(MachineRequest::Reset(ResetKind::Cpu));
        }
    }
}

impl Device for Port92 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { requests: _, value } = self;
        *value = 0;
    }
    fn save(&self) -> Record {
        let Self { requests: _, value } = self;
        Record::new(1).with(1, *value)
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        self.value = r.get(1)?;
        r.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{Requester, Width};

    #[test]
    fn changes_of_a20_and_the_rising_reset_bit_are_requests() {
        let requests = Requests::new();
        let port = Port92::new(&requests);
        let a = Access { offset: 0, width: Width::W1, from: Requester::Cpu(0) };
        let mut port = port.lock();
        port.write(a, 2);
        assert_eq!(requests.take(), Some(MachineRequest::A20(true)));
        port.write(a, 3);
        assert_eq!(requests.take(), Some(MachineRequest::Reset(ResetKind::Cpu)));
        port.write(a, 3);
        assert_eq!((requests.take(), port.read(a)), (None, 3));
        let record = port.save();
        port.reset(ResetKind::System);
        assert_eq!(port.read(a), 0);
        port.load(&record).unwrap();
        assert_eq!(port.read(a), 3);
    }
}
