//! Firmware configuration device: named items for firmware and guests, by ports or by DMA.
//!
//! The interface is the one that firmware of virtual PCs knows: a selector at port 510h, a data port at 511h and a
//! big-endian DMA address at 514h; a directory of files at key 19h.
//! Left out: items that a guest may write, which no firmware of this board needs.

use std::collections::BTreeMap;

use anura_memory::{Access, AccessRules, AddressSpace, Dma, MemoryMap, Region, cell_io, cell_io_bulk};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind, guest_error, trace_event};
use std::sync::Arc;

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
/// UUID of the machine.
pub const UUID: u16 = 0x02;
/// Bytes of RAM.
pub const RAM_SIZE: u16 = 0x03;
/// No graphics.
pub const NOGRAPHIC: u16 = 0x04;
/// vCPUs that are present.
pub const NB_CPUS: u16 = 0x05;
/// Where the kernel's protected-mode part goes.
pub const KERNEL_ADDR: u16 = 0x07;
/// Length of the kernel's protected-mode part.
pub const KERNEL_SIZE: u16 = 0x08;
/// Where the initial RAM disk goes.
pub const INITRD_ADDR: u16 = 0x0a;
/// Length of the initial RAM disk.
pub const INITRD_SIZE: u16 = 0x0b;
/// Processors and memory of each NUMA node.
pub const NUMA: u16 = 0x0d;
/// Show the boot menu.
pub const BOOT_MENU: u16 = 0x0e;
/// vCPUs that are possible.
pub const MAX_CPUS: u16 = 0x0f;
/// The kernel's protected-mode part.
pub const KERNEL_DATA: u16 = 0x11;
/// The initial RAM disk.
pub const INITRD_DATA: u16 = 0x12;
/// Where the command line goes.
pub const CMDLINE_ADDR: u16 = 0x13;
/// Length of the command line.
pub const CMDLINE_SIZE: u16 = 0x14;
/// The command line.
pub const CMDLINE_DATA: u16 = 0x15;
/// Where the kernel's real-mode part goes.
pub const SETUP_ADDR: u16 = 0x16;
/// Length of the kernel's real-mode part.
pub const SETUP_SIZE: u16 = 0x17;
/// The kernel's real-mode part.
pub const SETUP_DATA: u16 = 0x18;
/// The timer's interrupt is on input 2 of the IOAPIC.
pub const IRQ0_OVERRIDE: u16 = 0x8002;
const FILE_DIR: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The selector's bits that name an item; bit 14 asked for writing, bit 15 is for items of the architecture.
const KEY_MASK: u16 = 0xbfff;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;
/// What reading the DMA address register gives: "QEMU CFG".
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
/// Longest name in the directory, without its NUL.
const NAME: usize = 55;

/// The device.
pub struct FwCfg {
    // Wiring and contents, made with the machine.
    dma: Dma,
    items: BTreeMap<u16, Arc<Vec<u8>>>,
    files: BTreeMap<String, Arc<Vec<u8>>>,
    // State.
    selected: u16,
    offset: u32,
    dma_high: u32,
}

/// Why a file cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The directory has room for 55 characters.
    #[error("name '{0}' is longer than {NAME} characters")]
    NameTooLong(String),
    /// Names are unique.
    #[error("duplicate fw_cfg file name: {0}")]
    Duplicate(String),
}

impl FwCfg {
    /// A device with its signature and nothing else.
    pub fn new(dma: Dma) -> DeviceCell<Self> {
        let mut device =
            Self { dma, items: BTreeMap::new(), files: BTreeMap::new(), selected: 0, offset: 0, dma_high: 0 };
        device.set(SIGNATURE, b"QEMU".to_vec());
        // Traditional interface and DMA.
        device.set(ID, 3u32.to_le_bytes().to_vec());
        DeviceCell::new(device)
    }

    /// Maps ports 510h to 51Bh.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let handler = cell_io_bulk(cell, Self::read, Self::write, Self::read_bulk, Self::write_bulk);
        let mut tx = map.transaction();
        tx.add(ports.root(), 0x510, &Region::io("fwcfg", 2, handler, AccessRules::any(2)), 0);
        let dma = cell_io(cell, Self::read_dma, Self::write_dma);
        tx.add(ports.root(), 0x514, &Region::io("fwcfg.dma", 8, dma, AccessRules::any(8)), 0);
    }

    /// Takes the DMA interface away.
    pub fn disable_dma(&mut self) {
        self.set(ID, 1u32.to_le_bytes().to_vec());
    }

    fn has_dma(&self) -> bool {
        self.items.get(&ID).is_some_and(|id| id[0] & 2 != 0)
    }

    /// Sets an item.
    pub fn set(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.insert(key, Arc::new(bytes));
    }

    /// Adds a file.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        if name.len() > NAME {
            return Err(FwCfgError::NameTooLong(name.to_owned()));
        }
        if self.files.contains_key(name) {
            return Err(FwCfgError::Duplicate(name.to_owned()));
        }
        trace_event!(fw_cfg_add_file, "{name} {} bytes", bytes.len());
        self.files.insert(name.to_owned(), Arc::new(bytes));
        self.update_directory();
        Ok(())
    }

    /// Names of all files, in directory order.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Files are in order of their names, and so are their keys: the same files give the same keys.
    fn update_directory(&mut self) {
        self.items.retain(|key, _| !(FIRST_FILE..0x4000).contains(key));
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, bytes)) in (FIRST_FILE..0x4000).zip(&self.files) {
            directory.extend((bytes.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0, 0]);
            let start = directory.len();
            directory.extend(name.as_bytes());
            directory.resize(start + NAME + 1, 0);
            self.items.insert(key, bytes.clone());
        }
        self.items.insert(FILE_DIR, Arc::new(directory));
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key & KEY_MASK, 0);
        trace_event!(fw_cfg_select, "key {:#06x}", self.selected);
    }

    fn item(&self) -> &[u8] {
        self.items.get(&self.selected).map_or(&[], |item| item.as_slice())
    }

    /// The next byte of the selected item; zero behind its end.
    fn next(&mut self) -> u8 {
        let byte = self.item().get(self.offset as usize).copied();
        if byte.is_some() {
            self.offset += 1;
        }
        byte.unwrap_or(0)
    }

    fn read(&mut self, a: Access) -> u64 {
        match (a.offset, a.width.bytes()) {
            (1, 1) => u64::from(self.next()),
            _ => 0,
        }
    }

    fn write(&mut self, a: Access, value: u64) {
        match (a.offset, a.width.bytes()) {
            (0, 2) => self.select(value as u16),
            (1, 1) => {}
            (offset, width) => guest_error!("fw_cfg: write of {width} bytes at offset {offset} ignored"),
        }
    }

    fn read_bulk(&mut self, a: Access, buf: &mut [u8]) {
        if a.offset == 1 && a.width.bytes() == 1 {
            buf.iter_mut().for_each(|byte| *byte = self.next());
        } else {
            buf.fill(0);
        }
    }

    fn write_bulk(&mut self, _a: Access, _buf: &[u8]) {}

    fn read_dma(&mut self, a: Access) -> u64 {
        if !self.has_dma() {
            return 0;
        }
        // The register is big endian.
        let bytes = DMA_SIGNATURE.to_be_bytes();
        let mut value = [0; 8];
        for (i, byte) in value.iter_mut().take(a.width.bytes()).enumerate() {
            *byte = bytes.get(a.offset as usize + i).copied().unwrap_or(0);
        }
        u64::from_le_bytes(value)
    }

    fn write_dma(&mut self, a: Access, value: u64) {
        match (a.offset, a.width.bytes()) {
            _ if !self.has_dma() => guest_error!("fw_cfg: the DMA interface is switched off"),
            (0, 4) => self.dma_high = (value as u32).swap_bytes(),
            (4, 4) => {
                let address = u64::from(self.dma_high) << 32 | u64::from((value as u32).swap_bytes());
                self.dma_high = 0;
                self.dma_transfer(address);
            }
            (0, 8) => self.dma_transfer(value.swap_bytes()),
            (offset, width) => {
                guest_error!("fw_cfg: DMA address written as {width} bytes at {offset}, ignored")
            }
        }
    }

    /// Carries out the request at `address`: control, length, address, all big endian.
    fn dma_transfer(&mut self, address: u64) {
        let mut request = [0; 16];
        if self.dma.read(address, &mut request).is_err() {
            guest_error!("fw_cfg: DMA request at {address:#x} is not in RAM");
            return;
        }
        let word =
            |at: usize| u32::from_be_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let (control, length) = (word(0), word(4));
        let target = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let mut result = 0;
        if control & DMA_READ != 0 {
            if self.dma_read(target, length).is_err() {
                result = DMA_ERROR;
            }
        } else if control & DMA_SKIP != 0 {
            self.offset = self.offset.saturating_add(length).min(self.item().len() as u32);
        } else if control & DMA_WRITE != 0 {
            result = DMA_ERROR;
        }
        if self.dma.write(address, &u32::to_be_bytes(result)).is_err() {
            guest_error!("fw_cfg: DMA request at {address:#x} cannot be written");
        }
    }

    /// Copies the item, then zeros behind its end, in bounded pieces; nothing is allocated for what is not there.
    fn dma_read(&mut self, target: u64, length: u32) -> Result<(), anura_memory::DmaError> {
        let item = self.items.get(&self.selected).cloned().unwrap_or_default();
        let start = (self.offset as usize).min(item.len());
        let data = &item[start..(start + length as usize).min(item.len())];
        self.dma.write(target, data)?;
        self.offset += data.len() as u32;
        let zeros = [0; 4096];
        let mut done = data.len() as u64;
        while done < u64::from(length) {
            let piece = (u64::from(length) - done).min(zeros.len() as u64);
            self.dma.write(target.wrapping_add(done), &zeros[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }
}

impl Device for FwCfg {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { dma: _, items: _, files: _, selected, offset, dma_high } = self;
        (*selected, *offset, *dma_high) = (0, 0, 0);
    }

    // Contents are made from the configuration, which a restored machine shares.
    fn save(&self) -> Record {
        let Self { dma: _, items: _, files: _, selected, offset, dma_high } = self;
        Record::new(1).with(1, *selected).with(2, [*offset, *dma_high])
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let selected = r.get_if::<u16>(1, |key| key & !KEY_MASK == 0)?;
        let [offset, dma_high] = r.get::<[u32; 2]>(2)?;
        r.finish()?;
        (self.selected, self.dma_high) = (selected, dma_high);
        self.offset = offset.min(self.item().len() as u32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_memory::RamBlock;
    use anura_vmcore::{Requester, Width};

    struct Rig {
        memory: AddressSpace,
        ports: AddressSpace,
        fw: DeviceCell<FwCfg>,
    }

    fn rig() -> Rig {
        let map = MemoryMap::new();
        let memory = map.create_space("memory", &Region::container("system", u64::MAX));
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let ram = Region::ram("pc.ram", RamBlock::new("pc.ram", 0x10_0000).unwrap());
        map.transaction().add(memory.root(), 0, &ram, 0);
        let fw = FwCfg::new(Dma::new(&memory));
        FwCfg::map(&fw, &map, &ports);
        fw.lock().add_file("opt/b", b"second".to_vec()).unwrap();
        fw.lock().add_file("opt/a", b"first".to_vec()).unwrap();
        Rig { memory, ports, fw }
    }

    impl Rig {
        fn read(&self, key: u64, n: usize) -> Vec<u8> {
            assert!(self.ports.write(0x510, Width::W2, key, Requester::Cpu(0)).is_ok());
            let mut buf = vec![0; n];
            assert!(self.ports.read_bulk(0x511, Width::W1, &mut buf, Requester::Cpu(0)).is_ok());
            buf
        }
    }

    #[test]
    fn signature_and_directory_are_read_through_the_ports() {
        let rig = rig();
        assert_eq!(rig.read(0, 6), b"QEMU\0\0");
        assert_eq!(rig.read(1, 4), [3, 0, 0, 0]);
        let directory = rig.read(0x19, 4 + 64 * 2);
        assert_eq!(directory[..12], [0, 0, 0, 2, 0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert!(directory[12..].starts_with(b"opt/a\0"));
        assert_eq!(rig.read(0x21, 6), b"second");
        assert_eq!(rig.read(0x3fff, 2), [0, 0]);
    }

    #[test]
    fn dma_selects_reads_skips_and_refuses_writes() {
        let rig = rig();
        let run = |control: u32, length: u32| {
            let mut request = control.to_be_bytes().to_vec();
            request.extend(length.to_be_bytes());
            request.extend(0x8000u64.to_be_bytes());
            assert!(rig.memory.write_bytes(0x1000, &request, Requester::Cpu(0)).is_ok());
            let low = 0x1000u32.swap_bytes();
            assert!(rig.ports.write(0x518, Width::W4, u64::from(low), Requester::Cpu(0)).is_ok());
            let mut answer = [0; 4];
            assert!(rig.memory.read_bytes(0x1000, &mut answer, Requester::Cpu(0)).is_ok());
            let mut data = [0; 8];
            assert!(rig.memory.read_bytes(0x8000, &mut data, Requester::Cpu(0)).is_ok());
            (u32::from_be_bytes(answer), data)
        };
        assert_eq!(run(0x21 << 16 | DMA_SELECT | DMA_READ, 8), (0, *b"second\0\0"));
        run(0x20 << 16 | DMA_SELECT | DMA_SKIP, 2);
        assert_eq!(run(DMA_READ, 3).1[..3], *b"rst");
        assert_eq!(run(DMA_WRITE, 1).0, DMA_ERROR);
        assert_eq!(rig.ports.read(0x514, Width::W8, Requester::Cpu(0)).0.to_le_bytes(), *b"QEMU CFG");
    }

    #[test]
    fn a_huge_dma_read_beyond_ram_ends_with_an_error() {
        let rig = rig();
        let mut request = (DMA_READ | DMA_SELECT).to_be_bytes().to_vec();
        request.extend(u32::MAX.to_be_bytes());
        request.extend(0xf_fff0u64.to_be_bytes());
        assert!(rig.memory.write_bytes(0x1000, &request, Requester::Cpu(0)).is_ok());
        rig.fw.lock().dma_transfer(0x1000);
        let mut answer = [0; 4];
        assert!(rig.memory.read_bytes(0x1000, &mut answer, Requester::Cpu(0)).is_ok());
        assert_eq!(answer, DMA_ERROR.to_be_bytes());
    }

    #[test]
    fn names_are_bounded_and_unique() {
        let rig = rig();
        assert!(matches!(rig.fw.lock().add_file(&"x".repeat(56), vec![]), Err(FwCfgError::NameTooLong(_))));
        assert!(matches!(rig.fw.lock().add_file("opt/a", vec![]), Err(FwCfgError::Duplicate(_))));
    }

    #[test]
    fn a_saved_position_loads_within_its_item() {
        let rig = rig();
        rig.read(0x20, 3);
        let record = rig.fw.lock().save();
        let copy = super::tests::rig();
        copy.fw.lock().load(&record).unwrap();
        assert_eq!(copy.fw.lock().save(), record);
        assert_eq!(copy.fw.lock().next(), b's');
    }
}
