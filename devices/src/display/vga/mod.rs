//! VGA with the Bochs display extensions, as PCI function 1234:1111.
//!
//! Sources: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"; the Bochs VBE_DISPI interface; register
//! blocks in BAR 2: EDID (empty) at 0, VGA ports at 400h, DISPI at 500h, byte order at 600h.
//! Retrace is computed from the CRTC's timing and the clock when the status is read. Pixels are made by nobody yet: the
//! registers and the memory are here, and [`Vga::text_screen`] reads text mode.
//! Left out: light pen, retrace interrupt, feature connector.

mod memory;
mod spec;
mod text;
pub mod vbe;

use std::sync::Arc;

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, RamBlock, Region, cell_io};
use anura_vmcore::{Bytes, Clock, Device, DeviceCell, LoadError, Record, ResetKind, Width, trace_event};

use crate::pci::{BarKind, Bars, ConfigSpace, Identity, PciFunction};
use spec::{MISC_COLOUR, ar, cr, gr, sr};
use vbe::Vbe;

const LITTLE: u32 = 0x1e1e_1e1e;
const BIG: u32 = 0xbebe_bebe;

/// The palette and its access state.
struct Dac {
    palette: Box<[u8; 768]>,
    mask: u8,
    read_index: u8,
    write_index: u8,
    /// Which of the three colours comes next.
    step: u8,
    /// Colours written so far of an entry.
    cache: [u8; 2],
    /// 3 after the read index was written, 0 after the write index.
    state: u8,
}

impl Dac {
    fn new() -> Self {
        let palette = Box::new([0; 768]);
        Self { palette, mask: 0, read_index: 0, write_index: 0, step: 0, cache: [0; 2], state: 0 }
    }
}

/// What the CRTC makes of its registers.
struct Timing {
    /// Nanoseconds of a scan line, times 1,000.
    line_ps: u64,
    lines: u64,
    display_lines: u64,
    sync: (u64, u64),
    columns: u64,
    display_columns: u64,
}

/// The card.
pub struct Vga {
    // Wiring.
    clock: Clock,
    vram: Arc<RamBlock>,
    bars: Bars,
    // State.
    config: ConfigSpace,
    misc: u8,
    feature: u8,
    sr_index: u8,
    sr: [u8; 8],
    gr_index: u8,
    gr: [u8; 16],
    cr_index: u8,
    cr: [u8; cr::COUNT],
    ar_index: u8,
    ar: [u8; 0x15],
    /// Port 3C0h takes data next, not an index.
    ar_data: bool,
    dac: Dac,
    latch: u32,
    vbe: Vbe,
    /// The frame buffer's byte order is big endian.
    big_endian: bool,
}

/// Where a card's regions go.
pub struct VgaBus<'a> {
    /// All regions.
    pub map: &'a MemoryMap,
    /// The PCI bus's memory.
    pub memory: &'a Region,
    /// The ports.
    pub ports: &'a AddressSpace,
}

impl Vga {
    /// A card with this video RAM, whose size is a power of two. `mmio` gives it BAR 2.
    pub fn new(bus: &VgaBus<'_>, clock: &Clock, vram: &Arc<RamBlock>, mmio: bool) -> DeviceCell<Self> {
        let id = Identity {
            vendor: 0x1234,
            device: 0x1111,
            revision: 2,
            class: 0x03_0000,
            multifunction: false,
            pin: 0,
        };
        let cell = DeviceCell::new(Self {
            clock: clock.clone(),
            vram: vram.clone(),
            bars: Bars::new(bus.map, bus.memory, bus.ports.root()),
            config: ConfigSpace::new(id),
            misc: 0,
            feature: 0,
            sr_index: 0,
            sr: [0; 8],
            gr_index: 0,
            gr: [0; 16],
            cr_index: 0,
            cr: [0; cr::COUNT],
            ar_index: 0,
            ar: [0; 0x15],
            ar_data: false,
            dac: Dac::new(),
            latch: 0,
            vbe: Vbe::new(),
            big_endian: false,
        });
        let registers = Region::io(
            "vga.mmio",
            0x1000,
            cell_io(&cell, Self::read_mmio, Self::write_mmio),
            AccessRules::any(4),
        );
        {
            let mut card = cell.lock();
            let Self { bars, config, .. } = &mut *card;
            bars.add(config, 0, BarKind::Prefetchable32, &Region::ram("vga.vram", vram.clone()));
            if mmio {
                bars.add(config, 2, BarKind::Memory32, &registers);
            }
        }
        cell
    }

    /// Gives the card an expansion ROM, whose size is a power of two.
    pub fn set_rom(&mut self, rom: &Arc<RamBlock>) {
        self.bars.add_rom(&mut self.config, &Region::rom("vga.rom", rom.clone()));
    }

    /// Maps the ports and the window at A0000h.
    pub fn map(cell: &DeviceCell<Self>, bus: &VgaBus<'_>) {
        let mut tx = bus.map.transaction();
        let mut ports = |base: u64, size: u64, handler| {
            tx.add(bus.ports.root(), base, &Region::io("vga", size, handler, AccessRules::BYTES), 0);
        };
        type Read = fn(&mut Vga, Access) -> u64;
        type Write = fn(&mut Vga, Access, u64);
        const PORTS: [(u64, u64, Read, Write); 5] = [
            (
                0x3b4,
                2,
                |v, a| u64::from(v.read_port(0x3b4 + a.offset as u16)),
                |v, a, value| v.write_port(0x3b4 + a.offset as u16, value as u8),
            ),
            (0x3ba, 1, |v, _| u64::from(v.read_port(0x3ba)), |v, _, value| v.write_port(0x3ba, value as u8)),
            (
                0x3c0,
                16,
                |v, a| u64::from(v.read_port(0x3c0 + a.offset as u16)),
                |v, a, value| v.write_port(0x3c0 + a.offset as u16, value as u8),
            ),
            (
                0x3d4,
                2,
                |v, a| u64::from(v.read_port(0x3d4 + a.offset as u16)),
                |v, a, value| v.write_port(0x3d4 + a.offset as u16, value as u8),
            ),
            (0x3da, 1, |v, _| u64::from(v.read_port(0x3da)), |v, _, value| v.write_port(0x3da, value as u8)),
        ];
        for (base, size, read, write) in PORTS {
            ports(base, size, cell_io(cell, read, write));
        }
        let dispi = cell_io(cell, Self::read_dispi, Self::write_dispi);
        tx.add(bus.ports.root(), 0x1ce, &Region::io("vbe", 4, dispi, AccessRules::any(2)), 0);
        let window = cell_io(
            cell,
            |v: &mut Self, a| u64::from(v.read_window(a.offset)),
            |v, a, value| v.write_window(a.offset, value as u8),
        );
        tx.add(bus.memory, 0xa_0000, &Region::io("vga-lowmem", 0x2_0000, window, AccessRules::BYTES), 1);
    }

    fn timing(&self) -> Timing {
        let overflow = u64::from(self.cr[cr::OVERFLOW]);
        let bit = |n: u64, to: u64| (overflow >> n & 1) << to;
        let register = |n: usize| u64::from(self.cr[n]);
        let clock = if self.misc & 0x0c == 0x04 { 28_322_000 } else { 25_175_000 };
        let clock = if self.sr[sr::CLOCKING] & sr::HALF_CLOCK != 0 { clock / 2 } else { clock };
        let dots = if self.sr[sr::CLOCKING] & sr::DOTS_8 != 0 { 8 } else { 9 };
        let columns = register(cr::H_TOTAL) + 5;
        let lines = register(cr::V_TOTAL) + bit(0, 8) + bit(5, 9) + 2;
        let sync_start = register(cr::V_SYNC_START) + bit(2, 8) + bit(7, 9);
        // The end is given by the low four bits of its line.
        let sync_end = sync_start + (register(cr::V_SYNC_END).wrapping_sub(sync_start) & 0x0f).max(1);
        Timing {
            line_ps: columns * dots * 1_000_000_000_000 / clock,
            lines,
            display_lines: register(cr::V_DISPLAY_END) + bit(1, 8) + bit(6, 9) + 1,
            sync: (sync_start, sync_end),
            columns,
            display_columns: register(cr::H_DISPLAY_END) + 1,
        }
    }

    /// Input status 1: bit 0 no display right now, bit 3 vertical retrace.
    fn status(&self) -> u8 {
        let t = self.timing();
        let at = u128::from(self.clock.now()) * 1000 % (u128::from(t.line_ps) * u128::from(t.lines));
        let (line, within) = ((at / u128::from(t.line_ps)) as u64, (at % u128::from(t.line_ps)) as u64);
        let column = within * t.columns / t.line_ps;
        let retrace = (t.sync.0..t.sync.1).contains(&line);
        let blank = line >= t.display_lines || column >= t.display_columns;
        u8::from(retrace || blank) | u8::from(retrace) << 3
    }

    /// Whether a CRTC port is decoded: the miscellaneous output register chooses 3Bxh or 3Dxh.
    fn decodes(&self, port: u16) -> bool {
        let colour = self.misc & MISC_COLOUR != 0;
        match port {
            0x3b0..=0x3bf => !colour,
            0x3d0..=0x3df => colour,
            _ => true,
        }
    }

    /// Reads a VGA port, 3B0h to 3DFh.
    pub fn read_port(&mut self, port: u16) -> u8 {
        if !self.decodes(port) {
            return 0xff;
        }
        match port {
            0x3c0 if !self.ar_data => self.ar_index,
            0x3c0 => 0,
            0x3c1 => self.ar.get(usize::from(self.ar_index & 0x1f)).copied().unwrap_or(0),
            // Switch sense: a monitor is there.
            0x3c2 => 0x10,
            0x3c4 => self.sr_index,
            0x3c5 => self.sr[usize::from(self.sr_index & 7)],
            0x3c6 => self.dac.mask,
            0x3c7 => self.dac.state,
            0x3c8 => self.dac.write_index,
            0x3c9 => self.read_dac(),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.gr_index,
            0x3cf => self.gr[usize::from(self.gr_index & 15)],
            0x3b4 | 0x3d4 => self.cr_index,
            0x3b5 | 0x3d5 => self.cr.get(usize::from(self.cr_index)).copied().unwrap_or(0),
            0x3ba | 0x3da => {
                self.ar_data = false;
                self.status()
            }
            _ => 0xff,
        }
    }

    /// Writes a VGA port, 3B0h to 3DFh.
    pub fn write_port(&mut self, port: u16, value: u8) {
        if !self.decodes(port) {
            return;
        }
        trace_event!(vga_std_write_io, "port {port:#x} value {value:#04x}");
        match port {
            0x3c0 => {
                let n = usize::from(self.ar_index & 0x1f);
                if !self.ar_data {
                    self.ar_index = value & 0x3f;
                } else if let (Some(register), Some(mask)) = (self.ar.get_mut(n), ar::MASKS.get(n)) {
                    *register = value & mask;
                }
                self.ar_data = !self.ar_data;
            }
            0x3c2 => self.misc = value & !0x10,
            0x3c4 => self.sr_index = value & 7,
            0x3c5 => {
                let n = usize::from(self.sr_index);
                self.sr[n] = value & sr::MASKS[n];
            }
            0x3c6 => self.dac.mask = value,
            0x3c7 => (self.dac.read_index, self.dac.step, self.dac.state) = (value, 0, 3),
            0x3c8 => (self.dac.write_index, self.dac.step, self.dac.state) = (value, 0, 0),
            0x3c9 => self.write_dac(value),
            0x3ce => self.gr_index = value & 15,
            0x3cf => {
                let n = usize::from(self.gr_index);
                self.gr[n] = value & gr::MASKS[n];
            }
            0x3b4 | 0x3d4 => self.cr_index = value,
            0x3b5 | 0x3d5 => self.write_cr(value),
            0x3ba | 0x3da => self.feature = value & 0x10,
            _ => {}
        }
    }

    fn write_cr(&mut self, value: u8) {
        let n = usize::from(self.cr_index);
        if n >= cr::COUNT {
            return;
        }
        if n <= cr::OVERFLOW && self.cr[cr::V_SYNC_END] & cr::PROTECT != 0 {
            // Only the line compare bit is open.
            if n == cr::OVERFLOW {
                self.cr[n] = self.cr[n] & !0x10 | value & 0x10;
            }
            return;
        }
        self.cr[n] = value;
    }

    fn colour_mask(&self) -> u8 {
        if self.vbe.enable & vbe::DAC_8 != 0 { 0xff } else { 0x3f }
    }

    fn read_dac(&mut self) -> u8 {
        let at = usize::from(self.dac.read_index) * 3 + usize::from(self.dac.step);
        let value = self.dac.palette[at];
        self.dac.step += 1;
        if self.dac.step == 3 {
            self.dac.step = 0;
            self.dac.read_index = self.dac.read_index.wrapping_add(1);
        }
        value
    }

    fn write_dac(&mut self, value: u8) {
        let value = value & self.colour_mask();
        // An entry changes as a whole, with its last colour.
        if let Some(slot) = self.dac.cache.get_mut(usize::from(self.dac.step)) {
            *slot = value;
            self.dac.step += 1;
            return;
        }
        let at = usize::from(self.dac.write_index) * 3;
        let [red, green] = self.dac.cache;
        self.dac.palette[at..at + 3].copy_from_slice(&[red, green, value]);
        self.dac.step = 0;
        self.dac.write_index = self.dac.write_index.wrapping_add(1);
    }

    fn read_dispi(&mut self, a: Access) -> u64 {
        u64::from(if a.offset == 0 { self.vbe.index } else { self.vbe_read(self.vbe.index) })
    }

    fn write_dispi(&mut self, a: Access, value: u64) {
        match (a.offset, a.width) {
            (0, _) => self.vbe.index = value as u16,
            // Data is 16 bits wide.
            (1 | 2, Width::W2) => self.vbe_write(self.vbe.index, value as u16),
            _ => {}
        }
    }

    fn read_mmio(&mut self, a: Access) -> u64 {
        let mut value = [0; 8];
        match a.offset {
            0x400..=0x41f => {
                for (i, byte) in value.iter_mut().take(a.width.bytes()).enumerate() {
                    *byte = self.read_port(0x3c0 + (a.offset - 0x400) as u16 + i as u16);
                }
            }
            0x500..=0x515 => {
                let index = (a.offset - 0x500 >> 1) as u16;
                let pair = u32::from(self.vbe_read(index)) | u32::from(self.vbe_read(index + 1)) << 16;
                value[..4].copy_from_slice(&(pair >> (8 * (a.offset & 1))).to_le_bytes());
            }
            // The block of extended registers tells its size first.
            0x600 => value[0] = 8,
            0x604 => {
                let order = if self.big_endian { BIG } else { LITTLE };
                value[..4].copy_from_slice(&order.to_le_bytes());
            }
            _ => {}
        }
        u64::from_le_bytes(value)
    }

    fn write_mmio(&mut self, a: Access, value: u64) {
        match a.offset {
            0x400..=0x41f => {
                for (i, byte) in value.to_le_bytes().into_iter().take(a.width.bytes()).enumerate() {
                    self.write_port(0x3c0 + (a.offset - 0x400) as u16 + i as u16, byte);
                }
            }
            0x500..=0x515 if a.offset & 1 == 0 && a.width == Width::W2 => {
                self.vbe_write((a.offset - 0x500 >> 1) as u16, value as u16);
            }
            0x604 => match value as u32 {
                LITTLE => self.big_endian = false,
                BIG => self.big_endian = true,
                _ => {}
            },
            _ => {}
        }
    }
}

impl PciFunction for Vga {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) {
        self.config.write(offset, width, value);
        self.bars.update(&self.config);
    }
}

impl Device for Vga {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            clock: _,
            vram: _,
            bars,
            config,
            misc,
            feature,
            sr_index,
            sr,
            gr_index,
            gr,
            cr_index,
            cr,
            ar_index,
            ar,
            ar_data,
            dac,
            latch,
            vbe,
            big_endian,
        } = self;
        config.reset();
        bars.update(config);
        (*misc, *feature, *sr_index, *gr_index, *cr_index, *ar_index) = (0, 0, 0, 0, 0, 0);
        (*sr, *gr, *cr, *ar) = ([0; 8], [0; 16], [0; cr::COUNT], [0; 0x15]);
        (*ar_data, *dac, *latch, *vbe, *big_endian) = (false, Dac::new(), 0, Vbe::new(), false);
    }

    fn save(&self) -> Record {
        let Self {
            clock: _,
            vram: _,
            bars: _,
            config,
            misc,
            feature,
            sr_index,
            sr,
            gr_index,
            gr,
            cr_index,
            cr,
            ar_index,
            ar,
            ar_data,
            dac,
            latch,
            vbe,
            big_endian,
        } = self;
        let Dac { palette, mask, read_index, write_index, step, cache, state } = dac;
        Record::new(1)
            .with(1, config.save())
            .with(2, [*misc, *feature, *sr_index, *gr_index, *cr_index, *ar_index])
            .with(3, Bytes(sr.to_vec()))
            .with(4, Bytes(gr.to_vec()))
            .with(5, Bytes(cr.to_vec()))
            .with(6, Bytes(ar.to_vec()))
            .with(7, [*ar_data, *big_endian])
            .with(8, *latch)
            .with(9, Bytes(palette.to_vec()))
            .with(10, [*mask, *read_index, *write_index, *step, cache[0], cache[1], *state])
            .with(11, vbe.save())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        fn array<const N: usize>(bytes: Bytes, number: u16) -> Result<[u8; N], LoadError> {
            bytes.0.try_into().map_err(|_| LoadError::Invalid(number))
        }
        let mut r = from.read(1)?;
        let config: Record = r.get(1)?;
        let [misc, feature, sr_index, gr_index, cr_index, ar_index] =
            r.get_if::<[u8; 6]>(2, |v| v[2] < 8 && v[3] < 16 && v[5] < 0x40)?;
        let sr = array(r.get(3)?, 3)?;
        let gr = array(r.get(4)?, 4)?;
        let cr = array(r.get(5)?, 5)?;
        let ar = array(r.get(6)?, 6)?;
        let [ar_data, big_endian] = r.get(7)?;
        let latch = r.get(8)?;
        let palette = Box::new(array(r.get(9)?, 9)?);
        let [mask, read_index, write_index, step, red, green, state] =
            r.get_if::<[u8; 7]>(10, |v| v[3] < 3)?;
        let vbe = Vbe::restore(r.get(11)?, self.vram.len()).ok_or(LoadError::Invalid(11))?;
        r.finish()?;
        self.config.load(&config)?;
        (self.misc, self.feature, self.sr_index, self.gr_index) = (misc, feature, sr_index, gr_index);
        (self.cr_index, self.ar_index, self.ar_data) = (cr_index, ar_index, ar_data);
        (self.sr, self.gr, self.cr, self.ar) = (sr, gr, cr, ar);
        (self.latch, self.vbe, self.big_endian) = (latch, vbe, big_endian);
        self.dac = Dac { palette, mask, read_index, write_index, step, cache: [red, green], state };
        self.bars.update(&self.config);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::reg;
    use anura_vmcore::Requester;

    const CPU: Requester = Requester::Cpu(0);

    struct Rig {
        clock: Clock,
        memory: AddressSpace,
        ports: AddressSpace,
        card: DeviceCell<Vga>,
    }

    fn rig() -> Rig {
        let (map, clock) = (MemoryMap::new(), Clock::stepped());
        let memory = map.create_space("memory", &Region::container("system", u64::MAX));
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let vram = RamBlock::new("vga.vram", 16 << 20).unwrap();
        let bus = VgaBus { map: &map, memory: memory.root(), ports: &ports };
        let card = Vga::new(&bus, &clock, &vram, true);
        Vga::map(&card, &bus);
        card.lock().post_text_mode();
        card.lock().config_write(reg::BAR0, Width::W4, 0xe000_0000);
        card.lock().config_write(reg::BAR0 + 8, Width::W4, 0xfe00_0000);
        card.lock().config_write(reg::COMMAND, Width::W2, 3);
        Rig { clock, memory, ports, card }
    }

    impl Rig {
        fn outb(&self, port: u64, value: u8) {
            assert!(self.ports.write(port, Width::W1, u64::from(value), CPU).is_ok());
        }
        fn inb(&self, port: u64) -> u8 {
            self.ports.read(port, Width::W1, CPU).0 as u8
        }
        fn set(&self, port: u64, index: u8, value: u8) {
            assert!(self.ports.write(port, Width::W2, u64::from(value) << 8 | u64::from(index), CPU).is_ok());
        }
        fn dispi(&self, index: u16, value: u16) {
            assert!(self.ports.write(0x1ce, Width::W2, u64::from(index), CPU).is_ok());
            assert!(self.ports.write(0x1cf, Width::W2, u64::from(value), CPU).is_ok());
        }
        fn dispi_read(&self, index: u16) -> u16 {
            assert!(self.ports.write(0x1ce, Width::W2, u64::from(index), CPU).is_ok());
            self.ports.read(0x1d0, Width::W2, CPU).0 as u16
        }
        fn poke(&self, at: u64, value: u8) {
            assert!(self.memory.write(at, Width::W1, u64::from(value), CPU).is_ok());
        }
        fn peek(&self, at: u64) -> u8 {
            self.memory.read(at, Width::W1, CPU).0 as u8
        }
        /// Mode 12h: 16 colours in four planes.
        fn planar(&self) {
            self.set(0x3c4, 4, 0x06);
            self.set(0x3c4, 2, 0x0f);
            self.set(0x3ce, 5, 0x00);
            self.set(0x3ce, 6, 0x05);
        }
    }

    #[test]
    fn text_written_to_b8000_is_on_the_screen() {
        let rig = rig();
        for (i, c) in b"anura".iter().enumerate() {
            rig.poke(0xb_8000 + 160 + 2 * i as u64, *c);
            rig.poke(0xb_8001 + 160 + 2 * i as u64, 0x1f);
        }
        let screen = rig.card.lock().text_screen();
        assert_eq!((screen.len(), screen[0].as_str(), screen[1].as_str()), (25, "", "anura"));
        assert_eq!((rig.peek(0xb_80a0), rig.peek(0xb_80a1)), (b'a', 0x1f));
        assert_eq!(rig.peek(0xa_0000), 0xff, "the window is at B8000h only");
        rig.set(0x3d4, 0x0d, 80);
        assert_eq!(rig.card.lock().text_screen()[0], "anura");
    }

    #[test]
    fn indexed_registers_keep_their_bits_and_crtc_protection_holds() {
        let rig = rig();
        rig.set(0x3c4, 2, 0xff);
        assert_eq!(rig.inb(0x3c5), 0x0f);
        rig.set(0x3ce, 5, 0xff);
        assert_eq!(rig.inb(0x3cf), 0x7b);
        rig.set(0x3d4, 0, 0x11);
        assert_eq!(rig.inb(0x3d5), 0x5f, "protected");
        rig.set(0x3d4, 7, 0x00);
        assert_eq!(rig.inb(0x3d5), 0x0f, "only line compare bit 8");
        rig.set(0x3d4, 0x11, 0x0e);
        rig.set(0x3d4, 0, 0x11);
        assert_eq!(rig.inb(0x3d5), 0x11);
        assert_eq!(rig.inb(0x3b5), 0xff, "colour addresses are chosen");
        rig.outb(0x3c2, 0x66);
        assert_eq!((rig.inb(0x3d5), rig.inb(0x3cc)), (0xff, 0x66));
        assert_eq!(rig.inb(0x3b5), 0x11);
    }

    #[test]
    fn the_attribute_port_alternates_and_the_status_resets_it() {
        let rig = rig();
        rig.inb(0x3da);
        rig.outb(0x3c0, 0x21);
        rig.outb(0x3c0, 0xff);
        rig.outb(0x3c0, 0x21);
        rig.inb(0x3da);
        assert_eq!((rig.inb(0x3c0), rig.inb(0x3c1)), (0x21, 0x3f));
    }

    #[test]
    fn palette_entries_change_as_a_whole_and_read_back() {
        let rig = rig();
        rig.outb(0x3c8, 0x10);
        for value in [0xff, 0x20] {
            rig.outb(0x3c9, value);
        }
        rig.outb(0x3c7, 0x0f);
        assert_eq!(rig.inb(0x3c7), 3);
        rig.outb(0x3c8, 0x10);
        for value in [0xff, 0x20, 0x01, 0x02] {
            rig.outb(0x3c9, value);
        }
        rig.outb(0x3c7, 0x10);
        assert_eq!([rig.inb(0x3c9), rig.inb(0x3c9), rig.inb(0x3c9)], [0x3f, 0x20, 0x01]);
        rig.outb(0x3c7, 0x04);
        assert_eq!([rig.inb(0x3c9), rig.inb(0x3c9), rig.inb(0x3c9)], [0x2a, 0, 0], "mode 3's red");
    }

    #[test]
    fn retrace_comes_seventy_times_a_second_in_text_mode() {
        let rig = rig();
        let (mut edges, mut last, mut blanks) = (0, false, 0);
        for _ in 0..100_000 {
            rig.clock.advance(10_000);
            let status = rig.inb(0x3da);
            let retrace = status & 8 != 0;
            edges += u32::from(retrace && !last);
            blanks += u32::from(status & 1);
            last = retrace;
        }
        assert_eq!(edges, 70);
        assert!((25_000..45_000).contains(&blanks), "{blanks}");
    }

    #[test]
    fn write_modes_mix_data_latches_and_masks() {
        let rig = rig();
        rig.planar();
        // Mode 0 with set/reset on planes 0 and 2, which take ones and zeros.
        rig.set(0x3ce, 1, 0x05);
        rig.set(0x3ce, 0, 0x01);
        rig.poke(0xa_0010, 0x3c);
        let planes = |at: u64| {
            [0, 1, 2, 3].map(|p| {
                rig.set(0x3ce, 4, p);
                rig.peek(at)
            })
        };
        assert_eq!(planes(0xa_0010), [0xff, 0x3c, 0x00, 0x3c]);
        // Mode 1 copies the latches.
        rig.set(0x3ce, 5, 1);
        rig.peek(0xa_0010);
        rig.poke(0xa_0020, 0);
        assert_eq!(planes(0xa_0020), [0xff, 0x3c, 0x00, 0x3c]);
        // Mode 2: a colour under the bit mask, the rest from the latches.
        rig.set(0x3ce, 5, 2);
        rig.set(0x3ce, 8, 0x0f);
        rig.peek(0xa_0010);
        rig.poke(0xa_0010, 0x06);
        assert_eq!(planes(0xa_0010), [0xf0, 0x3f, 0x0f, 0x30]);
        // Mode 3: data is the mask, set/reset the colour; with exclusive or.
        rig.set(0x3ce, 5, 3);
        rig.set(0x3ce, 8, 0xff);
        rig.set(0x3ce, 0, 0x03);
        rig.set(0x3ce, 3, 0x18 | 4);
        rig.peek(0xa_0010);
        rig.poke(0xa_0010, 0x0f);
        assert_eq!(planes(0xa_0010), [0x00, 0xcf, 0x0f, 0x30]);
    }

    #[test]
    fn map_mask_rotation_and_colour_compare_work() {
        let rig = rig();
        rig.planar();
        rig.set(0x3c4, 2, 0x02);
        rig.set(0x3ce, 3, 1);
        rig.poke(0xa_0000, 0x81);
        rig.set(0x3ce, 4, 1);
        assert_eq!(rig.peek(0xa_0000), 0xc0);
        rig.set(0x3ce, 5, 0x08);
        rig.set(0x3ce, 2, 0x02);
        rig.set(0x3ce, 7, 0x02);
        assert_eq!(rig.peek(0xa_0000), 0xc0, "where plane 1 is one");
        rig.set(0x3ce, 7, 0x00);
        assert_eq!(rig.peek(0xa_0000), 0xff, "no plane counts");
    }

    #[test]
    fn a_bochs_mode_is_set_bounded_and_banked() {
        let rig = rig();
        assert_eq!((rig.dispi_read(0), rig.dispi_read(10)), (0xb0c5, 256));
        rig.dispi(4, 2);
        assert_eq!((rig.dispi_read(1), rig.dispi_read(2), rig.dispi_read(3)), (16_000, 12_000, 32));
        rig.dispi(4, 0);
        for (index, value) in [(1, 1024), (2, 768), (3, 32), (4, 0x41)] {
            rig.dispi(index, value);
        }
        assert_eq!((rig.dispi_read(6), rig.dispi_read(7)), (1024, 4096));
        rig.dispi(9, 0xffff);
        assert_eq!(rig.dispi_read(9), 4096 - 768);
        rig.dispi(6, 2048);
        assert_eq!((rig.dispi_read(7), rig.dispi_read(9)), (2048, 1280));
        rig.dispi(5, 2);
        rig.poke(0xa_0003, 0x77);
        assert_eq!(rig.peek(0xe002_0003), 0x77, "bank 2 of the linear frame buffer");
        assert!(rig.card.lock().text_screen().is_empty());
        rig.dispi(4, 0);
        rig.dispi(4, 0x41);
        assert_eq!(rig.peek(0xe002_0003), 0, "a mode begins with an empty screen");
        rig.dispi(2, 12_000);
        assert_eq!(rig.dispi_read(2), 4096, "as many lines as there is memory");
    }

    #[test]
    fn bar_2_shows_the_same_registers() {
        let rig = rig();
        let read = |at: u64, width| rig.memory.read(0xfe00_0000 + at, width, CPU).0;
        assert_eq!(read(0x500, Width::W2), 0xb0c5);
        assert!(rig.memory.write(0xfe00_0502, Width::W2, 640, CPU).is_ok());
        assert_eq!((rig.dispi_read(1), read(0x502, Width::W2)), (640, 640));
        assert_eq!(read(0x40c, Width::W1), 0x67);
        assert_eq!((read(0x600, Width::W4), read(0x604, Width::W4)), (8, u64::from(LITTLE)));
        assert!(rig.memory.write(0xfe00_0604, Width::W4, u64::from(BIG), CPU).is_ok());
        assert_eq!(read(0x604, Width::W4), u64::from(BIG));
        assert_eq!(read(0, Width::W4), 0);
    }

    #[test]
    fn a_saved_card_loads_with_its_mappings() {
        let rig = rig();
        for (index, value) in [(1, 800), (2, 600), (3, 16), (4, 0x41)] {
            rig.dispi(index, value);
        }
        rig.outb(0x3c8, 3);
        rig.outb(0x3c9, 3);
        let record = rig.card.lock().save();
        let copy = super::tests::rig();
        copy.card.lock().reset(ResetKind::System);
        assert_eq!(copy.peek(0xe000_0000), 0xff);
        copy.card.lock().load(&record).unwrap();
        assert_eq!(copy.card.lock().save(), record);
        assert_eq!(copy.peek(0xe000_0000), 0x20, "its own memory, where the saved card had it");
        let mut hostile = record.clone();
        hostile.set_value(11, anura_vmcore::Field::to_value(&[0u16; 11]));
        assert!(copy.card.lock().load(&hostile).is_err());
    }
}
