//! Two Intel 8237A DMA controllers, datasheet 231466, with the page registers of the PC AT.
//!
//! Channels 0 to 3 move bytes, 5 to 7 words; channel 4 is the cascade. A device asks for a transfer through
//! [`I8237::transfer`], which honours mask, mode, direction, autoinitialise and the page register's bounds.
//! Left out: memory-to-memory transfers and rotating priority, which have no effect on a PC with one device at a time.

use anura_memory::{Access, AccessRules, AddressSpace, Dma, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, Field, LoadError, Record, ResetKind, Value, guest_error};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    mode: u8,
    page: u8,
}

impl Field for Channel {
    fn to_value(&self) -> Value {
        [
            self.base_address,
            self.base_count,
            self.address,
            self.count,
            u16::from(self.mode),
            u16::from(self.page),
        ]
        .to_value()
    }
    fn from_value(value: &Value) -> Option<Self> {
        let [base_address, base_count, address, count, mode, page] = <[u16; 6]>::from_value(value)?;
        let (mode, page) = (u8::try_from(mode).ok()?, u8::try_from(page).ok()?);
        Some(Self { base_address, base_count, address, count, mode, page })
    }
}

/// One of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chip {
    channels: [Channel; 4],
    command: u8,
    /// Terminal counts (bits 0 to 3) and requests (4 to 7).
    status: u8,
    mask: u8,
    temporary: u8,
    high_byte: bool,
}

impl Chip {
    const RESET: Self = Self {
        channels: [Channel { base_address: 0, base_count: 0, address: 0, count: 0, mode: 0, page: 0 }; 4],
        command: 0,
        status: 0,
        mask: 0x0f,
        temporary: 0,
        high_byte: false,
    };

    fn clear(&mut self) {
        let channels = self.channels;
        *self = Self { channels, ..Self::RESET };
    }

    fn byte(&mut self, word: u16) -> u8 {
        let byte = if self.high_byte { word >> 8 } else { word } as u8;
        self.high_byte = !self.high_byte;
        byte
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            0..=7 => {
                let channel = self.channels[usize::from(register >> 1)];
                self.byte(if register & 1 == 0 { channel.address } else { channel.count })
            }
            8 => {
                let status = self.status;
                self.status &= 0xf0;
                status
            }
            0xd => self.temporary,
            0xf => self.mask | 0xf0,
            _ => 0,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        match register {
            0..=7 => {
                let high = self.high_byte;
                self.high_byte = !high;
                let channel = &mut self.channels[usize::from(register >> 1)];
                let word =
                    if register & 1 == 0 { &mut channel.base_address } else { &mut channel.base_count };
                *word = if high {
                    *word & 0xff | u16::from(value) << 8
                } else {
                    *word & 0xff00 | u16::from(value)
                };
                if register & 1 == 0 {
                    channel.address = channel.base_address;
                } else {
                    channel.count = channel.base_count;
                }
            }
            8 => self.command = value,
            9 => {
                let bit = 0x10 << (value & 3);
                self.status = if value & 4 != 0 { self.status | bit } else { self.status & !bit };
            }
            0xa => {
                let bit = 1 << (value & 3);
                self.mask = if value & 4 != 0 { self.mask | bit } else { self.mask & !bit };
            }
            0xb => self.channels[usize::from(value & 3)].mode = value & 0xfc,
            0xc => self.high_byte = false,
            0xd => self.clear(),
            0xe => self.mask = 0,
            _ => self.mask = value & 0x0f,
        }
    }
}

/// Both controllers and the page registers.
pub struct I8237 {
    // Wiring.
    dma: Dma,
    // State.
    chips: [Chip; 2],
    /// Page register ports 80h to 8Fh, those of no channel included.
    pages: [u8; 16],
}

/// What a device's transfer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes moved.
    pub moved: usize,
    /// The channel reached its terminal count.
    pub terminal_count: bool,
}

/// Channel of each page register port, by the PC AT's wiring.
const PAGE_CHANNEL: [Option<u8>; 16] = [
    None,
    Some(2),
    Some(3),
    Some(1),
    None,
    None,
    None,
    Some(0),
    None,
    Some(6),
    Some(7),
    Some(5),
    None,
    None,
    None,
    Some(4),
];

impl I8237 {
    /// Controllers that move data through `dma`.
    pub fn new(dma: Dma) -> DeviceCell<Self> {
        DeviceCell::new(Self { dma, chips: [Chip::RESET; 2], pages: [0; 16] })
    }

    /// Maps the controllers at 00h and C0h and the page registers at 80h.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let first = cell_io(
            cell,
            |d: &mut Self, a| u64::from(d.chips[0].read(a.offset as u8)),
            |d, a, v| d.chips[0].write(a.offset as u8, v as u8),
        );
        // The second controller's registers are two ports apart.
        let second = cell_io(
            cell,
            |d: &mut Self, a| u64::from(d.chips[1].read(a.offset as u8 >> 1)),
            |d, a, v| d.chips[1].write(a.offset as u8 >> 1, v as u8),
        );
        let page = cell_io(cell, Self::read_page, Self::write_page);
        let mut tx = map.transaction();
        for (name, base, size, handler) in
            [("dma-chan", 0x00, 16, first), ("dma-chan", 0xc0, 32, second), ("dma-page", 0x80, 16, page)]
        {
            tx.add(ports.root(), base, &Region::io(name, size, handler, AccessRules::BYTES), 0);
        }
    }

    fn read_page(&mut self, a: Access) -> u64 {
        u64::from(self.pages[a.offset as usize & 15])
    }

    fn write_page(&mut self, a: Access, value: u64) {
        let n = a.offset as usize & 15;
        self.pages[n] = value as u8;
        if let Some(channel) = PAGE_CHANNEL[n] {
            self.chips[usize::from(channel >> 2)].channels[usize::from(channel & 3)].page = value as u8;
        }
    }

    /// Moves up to `data.len()` bytes between a device and memory on `channel`: into memory if the channel is
    /// programmed to write there, out of it if to read. Moves nothing on a masked or disabled channel.
    pub fn transfer(&mut self, channel: u8, data: &mut [u8]) -> Transfer {
        let chip = &mut self.chips[usize::from(channel >> 2 & 1)];
        let wide = channel >= 4;
        let n = usize::from(channel & 3);
        if chip.mask & 1 << n != 0 || chip.command & 4 != 0 {
            return Transfer::default();
        }
        let unit = if wide { 2 } else { 1 };
        let mut result = Transfer::default();
        for piece in data.chunks_exact_mut(unit) {
            let c = &mut chip.channels[n];
            // Words are counted, and the page's lowest bit is the address's.
            let at = if wide {
                u64::from(c.page & 0xfe) << 16 | u64::from(c.address) << 1
            } else {
                u64::from(c.page) << 16 | u64::from(c.address)
            };
            let moved = match c.mode & 0x0c {
                0x04 => self.dma.write(at, piece),
                0x08 => self.dma.read(at, piece),
                _ => Ok(()),
            };
            if moved.is_err() {
                guest_error!("i8237: channel {channel} address {at:#x} is not in RAM");
            }
            result.moved += unit;
            c.address =
                if c.mode & 0x20 != 0 { c.address.wrapping_sub(1) } else { c.address.wrapping_add(1) };
            let (count, done) = c.count.overflowing_sub(1);
            c.count = count;
            if done {
                chip.status |= 1 << n;
                if c.mode & 0x10 != 0 {
                    (c.address, c.count) = (c.base_address, c.base_count);
                } else {
                    chip.mask |= 1 << n;
                }
                result.terminal_count = true;
                break;
            }
        }
        result
    }
}

impl Device for I8237 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { dma: _, chips, pages } = self;
        *chips = [Chip::RESET; 2];
        *pages = [0; 16];
    }

    fn save(&self) -> Record {
        let Self { dma: _, chips, pages } = self;
        let chip = |chip: &Chip| {
            let Chip { channels, command, status, mask, temporary, high_byte } = *chip;
            Record::new(1).with(1, channels).with(2, [command, status, mask, temporary]).with(3, high_byte)
        };
        Record::new(1).with(1, [chip(&chips[0]), chip(&chips[1])]).with(2, *pages)
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let records = r.get::<[Record; 2]>(1)?;
        let pages = r.get(2)?;
        r.finish()?;
        let mut chips = [Chip::RESET; 2];
        for (chip, record) in chips.iter_mut().zip(&records) {
            let mut r = record.read(1)?;
            chip.channels = r.get(1)?;
            [chip.command, chip.status, chip.mask, chip.temporary] = r.get_if::<[u8; 4]>(2, |v| v[2] < 16)?;
            chip.high_byte = r.get(3)?;
            r.finish()?;
        }
        (self.chips, self.pages) = (chips, pages);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_memory::RamBlock;
    use anura_vmcore::{Requester, Width};

    fn rig() -> (AddressSpace, AddressSpace, DeviceCell<I8237>) {
        let map = MemoryMap::new();
        let memory = map.create_space("memory", &Region::container("system", u64::MAX));
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let ram = Region::ram("pc.ram", RamBlock::new("pc.ram", 0x10_0000).unwrap());
        map.transaction().add(memory.root(), 0, &ram, 0);
        let dma = I8237::new(Dma::new(&memory));
        I8237::map(&dma, &map, &ports);
        (memory, ports, dma)
    }

    fn out(ports: &AddressSpace, port: u64, value: u64) {
        assert!(ports.write(port, Width::W1, value, Requester::Cpu(0)).is_ok());
    }

    fn inp(ports: &AddressSpace, port: u64) -> u64 {
        ports.read(port, Width::W1, Requester::Cpu(0)).0
    }

    /// Channel 2 to 2:3000h, 4 bytes, single mode, into memory.
    fn program(ports: &AddressSpace, mode: u64) {
        for (port, value) in
            [(0x0c, 0), (0x04, 0x00), (0x04, 0x30), (0x05, 3), (0x05, 0), (0x81, 2), (0x0b, mode), (0x0a, 2)]
        {
            out(ports, port, value);
        }
    }

    #[test]
    fn a_transfer_stops_at_its_terminal_count_and_masks_the_channel() {
        let (memory, ports, dma) = rig();
        program(&ports, 0x46);
        let mut data = *b"abcdef";
        assert_eq!(dma.lock().transfer(2, &mut data), Transfer { moved: 4, terminal_count: true });
        let mut seen = [0; 6];
        assert!(memory.read_bytes(0x2_3000, &mut seen, Requester::Cpu(0)).is_ok());
        assert_eq!(&seen, b"abcd\0\0");
        assert_eq!(inp(&ports, 0x08), 0x04);
        assert_eq!(inp(&ports, 0x08), 0, "reading the status clears terminal counts");
        assert_eq!(inp(&ports, 0x0f) & 0x0f, 0x0f);
        assert_eq!(dma.lock().transfer(2, &mut data).moved, 0);
    }

    #[test]
    fn autoinitialise_starts_over_and_reads_come_from_memory() {
        let (memory, ports, dma) = rig();
        assert!(memory.write_bytes(0x2_3000, b"wxyz", Requester::Cpu(0)).is_ok());
        program(&ports, 0x5a);
        let mut data = [0; 4];
        assert!(dma.lock().transfer(2, &mut data).terminal_count);
        assert_eq!(&data, b"wxyz");
        assert_eq!(dma.lock().transfer(2, &mut data).moved, 4);
    }

    #[test]
    fn counts_and_addresses_read_back_by_bytes() {
        let (_, ports, dma) = rig();
        program(&ports, 0x46);
        dma.lock().transfer(2, &mut [0; 1]);
        out(&ports, 0x0c, 0);
        assert_eq!((inp(&ports, 0x04), inp(&ports, 0x04)), (0x01, 0x30));
        assert_eq!((inp(&ports, 0x05), inp(&ports, 0x05)), (0x02, 0x00));
        out(&ports, 0x0d, 0);
        assert_eq!(inp(&ports, 0x0f) & 0x0f, 0x0f, "master clear masks all");
        out(&ports, 0x0e, 0);
        assert_eq!(inp(&ports, 0x0f) & 0x0f, 0);
        out(&ports, 0x09, 0x05);
        assert_eq!(inp(&ports, 0x08), 0x20, "a software request shows in the status");
    }

    #[test]
    fn words_move_on_the_second_controller() {
        let (memory, ports, dma) = rig();
        for (port, value) in
            [(0xd8, 0), (0xc4, 0x00), (0xc4, 0x10), (0xc6, 1), (0xc6, 0), (0x8b, 2), (0xd6, 0x45), (0xd4, 1)]
        {
            out(&ports, port, value);
        }
        assert_eq!(
            dma.lock().transfer(5, &mut [1, 2, 3, 4, 5, 6]),
            Transfer { moved: 4, terminal_count: true }
        );
        let mut seen = [0; 6];
        assert!(memory.read_bytes(0x2_2000, &mut seen, Requester::Cpu(0)).is_ok());
        assert_eq!(seen, [1, 2, 3, 4, 0, 0]);
    }

    #[test]
    fn saved_controllers_load() {
        let (_, ports, dma) = rig();
        program(&ports, 0x46);
        out(&ports, 0x80, 0x55);
        let record = dma.lock().save();
        let (_, other_ports, other) = rig();
        other.lock().load(&record).unwrap();
        assert_eq!(other.lock().save(), record);
        assert_eq!(inp(&other_ports, 0x80), 0x55);
    }
}
