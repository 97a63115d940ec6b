//! A parallel flash chip with Intel's command set (28F-type chips; JEDEC JESD68.01, Common Flash Interface, command set 1).
//!
//! The array is read directly, as memory; a write puts the chip into a command's mode, where reads give status, identity
//! or the CFI table until "read array" comes. Commands are one byte wide and finish at once, so the status register reads
//! zero after it was cleared, which firmware for virtual PCs takes as the sign of such a chip.
//! Left out: block locking (accepted, without effect), suspending, chips in parallel.

use std::sync::Arc;

use anura_memory::{Access, MemoryMap, RamBlock, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind, guest_error};

/// Bytes of an erase block.
pub const SECTOR: u64 = 4096;
/// Bytes of the write buffer.
const BUFFER: usize = 256;
const READY: u8 = 0x80;

/// Where the contents are kept.
pub trait FlashFile: Send {
    /// Takes over a change.
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

/// What the chip waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Array = 0,
    Status = 1,
    Identity = 2,
    Query = 3,
    /// One byte to program.
    Program = 4,
    /// Erase: the confirmation.
    Erase = 5,
    /// Buffered programming: the count, the data, the confirmation.
    Count = 6,
    Data = 7,
    Confirm = 8,
    /// Lock commands: the second cycle.
    Lock = 9,
}

const MODES: [Mode; 10] = [
    Mode::Array,
    Mode::Status,
    Mode::Identity,
    Mode::Query,
    Mode::Program,
    Mode::Erase,
    Mode::Count,
    Mode::Data,
    Mode::Confirm,
    Mode::Lock,
];

/// The chip.
pub struct Cfi01 {
    // Wiring.
    map: MemoryMap,
    region: Option<Region>,
    block: Arc<RamBlock>,
    readonly: bool,
    file: Option<Box<dyn FlashFile>>,
    // State. The array is RAM to a saved state.
    mode: Mode,
    status: u8,
    /// Bytes of a buffered write that are still to come.
    left: u16,
    /// What came so far: offset and byte.
    buffer: Vec<(u32, u8)>,
}

impl Cfi01 {
    /// A chip with these contents. One that is read-only refuses to program and erase.
    pub fn new(
        map: &MemoryMap,
        name: &str,
        block: &Arc<RamBlock>,
        readonly: bool,
        file: Option<Box<dyn FlashFile>>,
    ) -> (DeviceCell<Self>, Region) {
        let cell = DeviceCell::new(Self {
            map: map.clone(),
            region: None,
            block: block.clone(),
            readonly,
            file,
            mode: Mode::Array,
            status: 0,
            left: 0,
            buffer: Vec::new(),
        });
        let handler = cell_io(&cell, Self::read, Self::write);
        let region = Region::rom_device(name, block.clone(), handler);
        cell.lock().region = Some(region.clone());
        (cell, region)
    }

    fn set_mode(&mut self, mode: Mode) {
        let direct = mode == Mode::Array;
        if direct != (self.mode == Mode::Array)
            && let Some(region) = &self.region
        {
            self.map.transaction().set_rom_mode(region, direct);
        }
        self.mode = mode;
    }

    fn read(&mut self, a: Access) -> u64 {
        let mut value = [0; 8];
        for (n, byte) in value.iter_mut().take(a.width.bytes()).enumerate() {
            let at = a.offset + n as u64;
            *byte = match self.mode {
                Mode::Array => {
                    let mut one = [0xff];
                    self.block.read(at, &mut one);
                    one[0]
                }
                // Maker and chip.
                Mode::Identity => [0x89, 0x18][at as usize & 1],
                Mode::Query => self.query(at),
                _ => self.status,
            };
        }
        u64::from_le_bytes(value)
    }

    /// The CFI table, as far as drivers look at it.
    fn query(&self, at: u64) -> u8 {
        let blocks = (self.block.len() / SECTOR).saturating_sub(1);
        match at {
            0x10 => b'Q',
            0x11 => b'R',
            0x12 => b'Y',
            0x13 => 1,
            0x15 => 0x31,
            0x27 => self.block.len().trailing_zeros() as u8,
            0x2a => BUFFER.trailing_zeros() as u8,
            0x2c => 1,
            0x2d => blocks as u8,
            0x2e => (blocks >> 8) as u8,
            0x2f => (SECTOR >> 8) as u8,
            0x30 => (SECTOR >> 16) as u8,
            _ => 0,
        }
    }

    fn write(&mut self, a: Access, value: u64) {
        for (n, byte) in value.to_le_bytes().into_iter().take(a.width.bytes()).enumerate() {
            self.write_byte(a.offset + n as u64, byte);
        }
    }

    fn write_byte(&mut self, at: u64, value: u8) {
        match self.mode {
            Mode::Program => {
                self.program(&[(at as u32, value)]);
                self.set_mode(Mode::Status);
            }
            Mode::Erase => {
                if value == 0xd0 {
                    self.erase(at & !(SECTOR - 1));
                } else {
                    // A sequence error.
                    self.status |= READY | 0x30;
                }
                self.set_mode(Mode::Status);
            }
            Mode::Count => {
                self.left = u16::from(value) + 1;
                self.buffer.clear();
                self.set_mode(Mode::Data);
            }
            Mode::Data => {
                self.buffer.push((at as u32, value));
                self.left -= 1;
                if self.left == 0 {
                    self.set_mode(Mode::Confirm);
                }
            }
            Mode::Confirm => {
                let buffer = std::mem::take(&mut self.buffer);
                if value == 0xd0 {
                    self.program(&buffer);
                } else {
                    self.status |= READY | 0x30;
                }
                self.set_mode(Mode::Status);
            }
            Mode::Lock => {
                self.status |= READY;
                self.set_mode(Mode::Status);
            }
            _ => self.command(value),
        }
    }

    fn command(&mut self, value: u8) {
        let mode = match value {
            0x00 | 0xff => Mode::Array,
            0x10 | 0x40 => Mode::Program,
            0x20 => Mode::Erase,
            0x50 => {
                self.status = 0;
                Mode::Array
            }
            0x60 => Mode::Lock,
            0x70 => Mode::Status,
            0x90 => Mode::Identity,
            0x98 => Mode::Query,
            0xe8 => {
                self.status |= READY;
                Mode::Count
            }
            // Resume, or the end of a command that is over.
            0xd0 | 0xf0 => Mode::Array,
            _ => {
                guest_error!("flash: unknown command {value:#04x}");
                Mode::Array
            }
        };
        self.set_mode(mode);
    }

    fn program(&mut self, bytes: &[(u32, u8)]) {
        self.status |= READY;
        if self.readonly {
            // Programming failed: the block is locked.
            self.status |= 0x12;
            return;
        }
        for (at, value) in bytes {
            let (at, mut old) = (u64::from(*at), [0xff]);
            self.block.read(at, &mut old);
            // Programming only clears bits.
            self.change(at, &[old[0] & value]);
        }
    }

    fn erase(&mut self, at: u64) {
        self.status |= READY;
        if self.readonly {
            self.status |= 0x22;
            return;
        }
        self.change(at, &[0xff; SECTOR as usize]);
    }

    fn change(&mut self, at: u64, bytes: &[u8]) {
        let room = self.block.len().saturating_sub(at).min(bytes.len() as u64) as usize;
        self.block.write(at, &bytes[..room]);
        if let Some(file) = &mut self.file {
            file.write(at, &bytes[..room]);
        }
    }
}

impl Device for Cfi01 {
    fn reset(&mut self, _kind: ResetKind) {
        self.set_mode(Mode::Array);
        let Self { map: _, region: _, block: _, readonly: _, file: _, mode: _, status, left, buffer } = self;
        (*status, *left) = (0, 0);
        buffer.clear();
    }

    fn save(&self) -> Record {
        let Self { map: _, region: _, block: _, readonly: _, file: _, mode, status, left, buffer } = self;
        let offsets: Vec<u32> = buffer.iter().map(|(at, _)| *at).collect();
        let bytes: Vec<u8> = buffer.iter().map(|(_, byte)| *byte).collect();
        Record::new(1)
            .with(1, [*mode as u8, *status])
            .with(2, *left)
            .with(3, offsets)
            .with(4, anura_vmcore::Bytes(bytes))
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [mode, status] = r.get::<[u8; 2]>(1)?;
        let left = r.get_if::<u16>(2, |left| *left <= BUFFER as u16)?;
        let offsets: Vec<u32> = r.get(3)?;
        let bytes = r.get::<anura_vmcore::Bytes>(4)?.0;
        r.finish()?;
        let mode = *MODES.get(usize::from(mode)).ok_or(LoadError::Invalid(1))?;
        let fits = offsets.len() == bytes.len() && bytes.len() + usize::from(left) <= BUFFER;
        if !fits || (mode == Mode::Data && left == 0) {
            return Err(LoadError::Invalid(3));
        }
        self.set_mode(mode);
        (self.status, self.left) = (status, left);
        self.buffer = offsets.into_iter().zip(bytes).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_memory::AddressSpace;
    use anura_vmcore::{Requester, Width};
    use std::sync::Mutex;

    struct Log(Arc<Mutex<Vec<(u64, usize)>>>);

    impl FlashFile for Log {
        fn write(&mut self, offset: u64, bytes: &[u8]) {
            self.0.lock().unwrap().push((offset, bytes.len()));
        }
    }

    type Rig = (AddressSpace, DeviceCell<Cfi01>, Arc<Mutex<Vec<(u64, usize)>>>);

    fn rig(readonly: bool) -> Rig {
        let map = MemoryMap::new();
        let memory = map.create_space("memory", &Region::container("system", u64::MAX));
        let block = RamBlock::new("flash", 0x2000).unwrap();
        block.write(0, &[0xa5; 0x2000]);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (cell, region) = Cfi01::new(&map, "flash", &block, readonly, Some(Box::new(Log(log.clone()))));
        map.transaction().add(memory.root(), 0, &region, 0);
        (memory, cell, log)
    }

    fn write(memory: &AddressSpace, at: u64, value: u8) {
        let _ = memory.write(at, Width::W1, value.into(), Requester::Cpu(0));
    }

    fn read(memory: &AddressSpace, at: u64) -> u8 {
        memory.read(at, Width::W1, Requester::Cpu(0)).0 as u8
    }

    #[test]
    fn firmware_recognises_the_chip_and_reads_its_array_directly() {
        let (memory, ..) = rig(false);
        assert_eq!(read(&memory, 5), 0xa5);
        write(&memory, 5, 0x50);
        assert_eq!(read(&memory, 5), 0xa5, "neither RAM");
        write(&memory, 5, 0x70);
        assert_eq!(read(&memory, 5), 0x00, "nor ROM");
        write(&memory, 5, 0xff);
        assert_eq!(read(&memory, 5), 0xa5);
        write(&memory, 0, 0x98);
        assert_eq!([read(&memory, 0x10), read(&memory, 0x11), read(&memory, 0x12)], *b"QRY");
    }

    #[test]
    fn programming_clears_bits_and_erasing_sets_a_block() {
        let (memory, cell, log) = rig(false);
        for (at, value) in [(0x1003, 0x40u8), (0x1003, 0x0f)] {
            write(&memory, at, value);
        }
        assert_eq!(read(&memory, 0), READY);
        write(&memory, 0, 0xff);
        assert_eq!(read(&memory, 0x1003), 0x05);
        for value in [0x20, 0xd0, 0xff] {
            write(&memory, 0x1004, value);
        }
        assert_eq!([read(&memory, 0xfff), read(&memory, 0x1000), read(&memory, 0x1fff)], [0xa5, 0xff, 0xff]);
        // Two bytes by the buffer.
        for (at, value) in [(0x1000, 0xe8u8), (0x1000, 1), (0x1000, 0x12), (0x1001, 0x34)] {
            write(&memory, at, value);
        }
        let record = cell.lock().save();
        cell.lock().load(&record).unwrap();
        assert_eq!(cell.lock().save(), record);
        write(&memory, 0x1000, 0xd0);
        write(&memory, 0x1000, 0xff);
        assert_eq!([read(&memory, 0x1000), read(&memory, 0x1001)], [0x12, 0x34]);
        assert_eq!(*log.lock().unwrap(), [(0x1003, 1), (0x1000, 4096), (0x1000, 1), (0x1001, 1)]);
    }

    #[test]
    fn a_read_only_chip_keeps_its_contents_and_says_so() {
        let (memory, ..) = rig(true);
        write(&memory, 3, 0x40);
        write(&memory, 3, 0);
        assert_eq!(read(&memory, 3), READY | 0x12);
        write(&memory, 3, 0xff);
        assert_eq!(read(&memory, 3), 0xa5);
    }
}
