//! pvpanic: a port by which a guest says that it has panicked. Bit 0 panicked, bit 1 crash kernel loaded.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, MachineRequest, Record, Requests, ResetKind, guest_error};

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

/// The port.
pub struct PvPanic {
    requests: Requests,
    events: u8,
}

impl PvPanic {
    /// A port that tells guests of the given events (a mask of the two bits).
    pub fn new(requests: &Requests, events: u8) -> DeviceCell<Self> {
        DeviceCell::new(Self { requests: requests.clone(), events: events & (PANICKED | CRASH_LOADED) })
    }

    /// Maps the port.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, at: u16) {
        let handler = cell_io(cell, Self::read, Self::write);
        let region = Region::io("pvpanic", 1, handler, AccessRules::BYTES);
        map.transaction().add(ports.root(), u64::from(at), &region, 0);
    }

    fn read(&mut self, _a: Access) -> u64 {
        u64::from(self.events)
    }

    fn write(&mut self, _a: Access, value: u64) {
        let value = value as u8;
        if value & !(PANICKED | CRASH_LOADED) != 0 {
            guest_error!("pvpanic: unknown event {value:#04x}");
        }
        if value & self.events != 0 {
            self.requests.send(MachineRequest::Panicked(value & self.events));
        }
    }
}

impl Device for PvPanic {
    fn reset(&mut self, _kind: ResetKind) {}
    fn save(&self) -> Record {
        let Self { requests: _, events: _ } = self;
        Record::new(1)
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        from.read(1)?.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{Requester, Width};

    #[test]
    fn only_announced_events_reach_the_machine() {
        let requests = Requests::new();
        let port = PvPanic::new(&requests, 1);
        let a = Access { offset: 0, width: Width::W1, from: Requester::Cpu(0) };
        assert_eq!(port.lock().read(a), 1);
        port.lock().write(a, 2);
        assert_eq!(requests.take(), None);
        port.lock().write(a, 1);
        assert_eq!(requests.take(), Some(MachineRequest::Panicked(1)));
    }
}
