//! A port that ends the emulator: exit code (value << 1) | 1.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, MachineRequest, Record, Requests, ResetKind};

/// The port.
pub struct IsaDebugExit {
    requests: Requests,
}

impl IsaDebugExit {
    /// A port that asks through `requests`.
    pub fn new(requests: &Requests) -> DeviceCell<Self> {
        DeviceCell::new(Self { requests: requests.clone() })
    }

    /// Maps `size` bytes at port `base`.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, base: u16, size: u16) {
        let handler = cell_io(cell, Self::read, Self::write);
        let region = Region::io("isa-debug-exit", u64::from(size), handler, AccessRules::any(4));
        map.transaction().add(ports.root(), u64::from(base), &region, 0);
    }

    fn read(&mut self, _a: Access) -> u64 {
        0
    }

    fn write(&mut self, _a: Access, value: u64) {
        self.requests.send(MachineRequest::Exit((value as i32).wrapping_shl(1) | 1));
    }
}

impl Device for IsaDebugExit {
    fn reset(&mut self, _kind: ResetKind) {}
    fn save(&self) -> Record {
        let Self { requests: _ } = self;
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
    fn a_write_asks_for_the_exit_code() {
        let requests = Requests::new();
        let port = IsaDebugExit::new(&requests);
        let a = Access { offset: 0, width: Width::W4, from: Requester::Cpu(0) };
        port.lock().write(a, 0x10);
        assert_eq!(requests.take(), Some(MachineRequest::Exit(0x21)));
        assert_eq!(port.lock().read(a), 0);
    }
}
