//! The test device of virtual PCs (QEMU's docs: `pc-testdev`): what test kernels poke to see how the emulator
//! behaves. A latch at ports E0h to E3h, two more for byte accesses at E8h to EBh, a port that drops what the
//! emulator remembers of a page (E4h; our translations follow memory, so nothing is to be done), 24 ports from
//! 2000h that drive interrupt lines, and 64 KiB of memory behind a handler at FF000000h.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Bytes, Device, DeviceCell, IrqLine, LoadError, Record, ResetKind, Width};

/// Interrupt lines.
pub const LINES: u32 = 24;
/// Bytes of memory.
const MEMORY: usize = 0x1_0000;
/// Where the memory is.
const MEMORY_AT: u64 = 0xff00_0000;
const LATCH: u64 = 0xe0;
const FLUSH: u64 = 0xe4;
const BYTES: u64 = 0xe8;
const LINES_AT: u64 = 0x2000;

/// First ports and their number, for the check that they are free.
pub const PORTS: [(u64, u64); 3] = [(LATCH, 8), (BYTES, 4), (LINES_AT, LINES as u64)];

/// The device.
pub struct PcTestDev {
    latch: u32,
    memory: Vec<u8>,
    lines: Vec<IrqLine>,
}

impl PcTestDev {
    /// A device that drives `lines`, in the order of their ports.
    pub fn new(lines: Vec<IrqLine>) -> DeviceCell<Self> {
        DeviceCell::new(Self { latch: 0, memory: vec![0; MEMORY], lines })
    }

    /// Maps everything.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, memory: &AddressSpace) {
        let latch = cell_io(cell, Self::read_latch, Self::write_latch);
        let bytes = cell_io(cell, Self::read_latch, Self::write_latch);
        let flush = cell_io(cell, |_: &mut Self, _| 0, |_: &mut Self, _, _| {});
        let lines = cell_io(cell, |_: &mut Self, _| 0, Self::write_line);
        let buffer = cell_io(cell, Self::read_memory, Self::write_memory);
        let io = |name: &str, size: u64, handler, rules| Region::io(name, size, handler, rules);
        let count = LINES.into();
        let mut t = map.transaction();
        t.add(ports.root(), LATCH, &io("pc-testdev-ioport", 4, latch, AccessRules::any(4)), 0);
        t.add(ports.root(), FLUSH, &io("pc-testdev-flush-page", 4, flush, AccessRules::any(4)), 0);
        t.add(ports.root(), BYTES, &io("pc-testdev-ioport-byte", 4, bytes, AccessRules::BYTES), 0);
        t.add(ports.root(), LINES_AT, &io("pc-testdev-irq-line", count, lines, AccessRules::BYTES), 0);
        let size = MEMORY as u64;
        t.add(memory.root(), MEMORY_AT, &io("pc-testdev-iomem", size, buffer, AccessRules::any(8)), 1);
    }

    fn read_latch(&mut self, a: Access) -> u64 {
        u64::from(self.latch) >> (a.offset * 8) & a.width.mask()
    }

    fn write_latch(&mut self, a: Access, value: u64) {
        let (shift, mask) = (a.offset * 8, a.width.mask());
        let kept = u64::from(self.latch) & !(mask << shift);
        self.latch = (kept | (value & mask) << shift) as u32;
    }

    fn write_line(&mut self, a: Access, value: u64) {
        if let Some(line) = self.lines.get(a.offset as usize) {
            line.set(value != 0);
        }
    }

    fn span(&self, a: &Access) -> Option<std::ops::Range<usize>> {
        let start = a.offset as usize;
        let end = start + a.width.bytes();
        (end <= self.memory.len()).then_some(start..end)
    }

    fn read_memory(&mut self, a: Access) -> u64 {
        let Some(span) = self.span(&a) else { return Width::W8.mask() };
        self.memory[span].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
    }

    fn write_memory(&mut self, a: Access, value: u64) {
        if let Some(span) = self.span(&a) {
            let n = span.len();
            self.memory[span].copy_from_slice(&value.to_le_bytes()[..n]);
        }
    }
}

impl Device for PcTestDev {
    fn reset(&mut self, _kind: ResetKind) {
        self.latch = 0;
    }
    fn save(&self) -> Record {
        let Self { latch, memory, lines: _ } = self;
        Record::new(1).with(1, *latch).with(2, Bytes(memory.clone()))
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let latch = r.get::<u32>(1)?;
        let memory = r.get_if::<Bytes>(2, |b| b.0.len() == MEMORY)?;
        r.finish()?;
        (self.latch, self.memory) = (latch, memory.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::Requester;

    fn access(offset: u64, width: Width) -> Access {
        Access { offset, width, from: Requester::Cpu(0) }
    }

    #[test]
    fn the_latch_reads_back_in_any_width() {
        let cell = PcTestDev::new(Vec::new());
        let mut device = cell.lock();
        device.write_latch(access(0, Width::W4), 0x1234_5678);
        device.write_latch(access(1, Width::W1), 0xff);
        assert_eq!(device.read_latch(access(0, Width::W4)), 0x1234_ff78);
        assert_eq!(device.read_latch(access(2, Width::W2)), 0x1234);
    }

    #[test]
    fn the_memory_holds_what_was_written_and_is_saved() {
        let cell = PcTestDev::new(Vec::new());
        let mut device = cell.lock();
        device.write_memory(access(0xfff8, Width::W8), 0x1122_3344_5566_7788);
        assert_eq!(device.read_memory(access(0xfffc, Width::W4)), 0x1122_3344);
        device.write_memory(access(0xfffc, Width::W8), 0);
        let saved = device.save();
        device.write_memory(access(0xfff8, Width::W8), 0);
        device.load(&saved).unwrap();
        assert_eq!(device.read_memory(access(0xfff8, Width::W2)), 0x7788);
    }
}
