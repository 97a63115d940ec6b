//! The Bochs display interface (VBE_DISPI): modes of any size in a linear frame buffer, by index and data ports.
//!
//! Source: Bochs, "VBE Display API", interface versions B0C0h to B0C5h.

use anura_vmcore::trace_event;

use super::Vga;
use super::spec::{cr, gr, sr};

/// Registers by their index.
pub mod index {
    #![allow(missing_docs, reason = "the names of the interface")]
    pub const ID: u16 = 0;
    pub const XRES: u16 = 1;
    pub const YRES: u16 = 2;
    pub const BPP: u16 = 3;
    pub const ENABLE: u16 = 4;
    pub const BANK: u16 = 5;
    pub const VIRT_WIDTH: u16 = 6;
    pub const VIRT_HEIGHT: u16 = 7;
    pub const X_OFFSET: u16 = 8;
    pub const Y_OFFSET: u16 = 9;
    pub const VIDEO_MEMORY_64K: u16 = 10;
}

/// Oldest and newest version of the interface.
const VERSIONS: std::ops::RangeInclusive<u16> = 0xb0c0..=0xb0c5;

/// The mode is on.
pub const ENABLED: u16 = 0x01;
/// Resolution registers read as their limits.
pub const GET_CAPS: u16 = 0x02;
/// The palette has 8 bits for each colour.
pub const DAC_8: u16 = 0x20;
/// The frame buffer is not cleared.
pub const NO_CLEAR: u16 = 0x80;
const ENABLE_BITS: u16 = 0xe3;

const MAX_XRES: u16 = 16_000;
const MAX_YRES: u16 = 12_000;
const MAX_BPP: u16 = 32;

/// The interface's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vbe {
    pub index: u16,
    pub id: u16,
    pub xres: u16,
    pub yres: u16,
    pub bpp: u16,
    pub enable: u16,
    pub bank: u16,
    pub virt_width: u16,
    pub virt_height: u16,
    pub x_offset: u16,
    pub y_offset: u16,
}

impl Vbe {
    pub fn new() -> Self {
        Self {
            index: 0,
            id: *VERSIONS.end(),
            xres: 0,
            yres: 0,
            bpp: 8,
            enable: 0,
            bank: 0,
            virt_width: 0,
            virt_height: 0,
            x_offset: 0,
            y_offset: 0,
        }
    }

    pub fn enabled(&self) -> bool {
        self.enable & ENABLED != 0
    }

    pub fn save(&self) -> [u16; 11] {
        let Self { index, id, xres, yres, bpp, enable, bank, virt_width, virt_height, x_offset, y_offset } =
            self;
        [*index, *id, *xres, *yres, *bpp, *enable, *bank, *virt_width, *virt_height, *x_offset, *y_offset]
    }

    /// From saved values, unless a guest could not have made them.
    pub fn restore(saved: [u16; 11], vram: u64) -> Option<Self> {
        let [index, id, xres, yres, bpp, enable, bank, virt_width, virt_height, x_offset, y_offset] = saved;
        let vbe =
            Self { index, id, xres, yres, bpp, enable, bank, virt_width, virt_height, x_offset, y_offset };
        let sane = VERSIONS.contains(&id)
            && xres <= MAX_XRES
            && yres <= MAX_YRES
            && matches!(bpp, 4 | 8 | 15 | 16 | 24 | 32)
            && enable & !ENABLE_BITS == 0
            && u64::from(bank) < vram >> 16;
        let mut fixed = vbe.clone();
        fixed.fix_up(vram);
        (sane && (!vbe.enabled() || fixed == vbe)).then_some(vbe)
    }

    /// Bytes of `pixels` pixels.
    pub fn bytes(&self, pixels: u16) -> u64 {
        match self.bpp {
            4 => u64::from(pixels) / 2,
            15 => u64::from(pixels) * 2,
            bpp => u64::from(pixels) * u64::from(bpp) / 8,
        }
    }

    /// Brings size and offsets into what the memory holds.
    fn fix_up(&mut self, vram: u64) {
        self.xres = (self.xres & !7).clamp(8, MAX_XRES);
        self.virt_width = (self.virt_width & !7).clamp(self.xres, MAX_XRES);
        // Four planes of a 4-bit mode lie behind each other.
        let vram = if self.bpp == 4 { vram / 4 } else { vram };
        let line = self.bytes(self.virt_width).max(1);
        let lines = u16::try_from(vram / line).unwrap_or(u16::MAX).max(1);
        self.yres = self.yres.clamp(1, lines.min(MAX_YRES));
        self.virt_height = lines;
        self.x_offset = self.x_offset.min(self.virt_width - self.xres);
        self.y_offset = self.y_offset.min(self.virt_height - self.yres);
    }
}

impl Vga {
    /// Reads the interface's register `index`.
    pub(super) fn vbe_read(&self, index: u16) -> u16 {
        let vbe = &self.vbe;
        let caps = vbe.enable & GET_CAPS != 0;
        match index {
            index::ID => vbe.id,
            index::XRES if caps => MAX_XRES,
            index::YRES if caps => MAX_YRES,
            index::BPP if caps => MAX_BPP,
            index::XRES => vbe.xres,
            index::YRES => vbe.yres,
            index::BPP => vbe.bpp,
            index::ENABLE => vbe.enable,
            index::BANK => vbe.bank,
            index::VIRT_WIDTH => vbe.virt_width,
            index::VIRT_HEIGHT => vbe.virt_height,
            index::X_OFFSET => vbe.x_offset,
            index::Y_OFFSET => vbe.y_offset,
            index::VIDEO_MEMORY_64K => u16::try_from(self.vram.len() >> 16).unwrap_or(u16::MAX),
            _ => 0,
        }
    }

    /// Writes the interface's register `index`.
    pub(super) fn vbe_write(&mut self, index: u16, value: u16) {
        trace_event!(vga_vbe_write, "index {index} value {value:#06x}");
        let vram = self.vram.len();
        let vbe = &mut self.vbe;
        match index {
            index::ID if VERSIONS.contains(&value) => vbe.id = value,
            index::XRES if value <= MAX_XRES => vbe.xres = value,
            index::YRES if value <= MAX_YRES => vbe.yres = value,
            index::BPP => match value {
                0 => vbe.bpp = 8,
                4 | 8 | 15 | 16 | 24 | 32 => vbe.bpp = value,
                _ => {}
            },
            index::BANK => {
                let banks = if vbe.bpp == 4 { vram >> 18 } else { vram >> 16 };
                vbe.bank = (u64::from(value) % banks.max(1)) as u16;
            }
            index::ENABLE => return self.vbe_enable(value & ENABLE_BITS),
            index::VIRT_WIDTH => vbe.virt_width = value,
            index::X_OFFSET => vbe.x_offset = value,
            index::Y_OFFSET => vbe.y_offset = value,
            _ => {}
        }
        if vbe.enabled() {
            vbe.fix_up(vram);
        }
    }

    fn vbe_enable(&mut self, value: u16) {
        let was = self.vbe.enabled();
        let vram = self.vram.len();
        self.vbe.enable = value;
        if value & ENABLED == 0 {
            self.vbe.bank = 0;
            return;
        }
        if was {
            self.vbe.fix_up(vram);
            return;
        }
        (self.vbe.virt_width, self.vbe.x_offset, self.vbe.y_offset) = (0, 0, 0);
        self.vbe.fix_up(vram);
        if value & NO_CLEAR == 0 {
            let bytes = self.vbe.bytes(self.vbe.virt_width) * u64::from(self.vbe.yres);
            let bytes = if self.vbe.bpp == 4 { bytes * 4 } else { bytes };
            self.vram.fill(0, bytes.min(vram), 0);
        }
        // The old registers follow, for those who look at them: graphics through A0000h, all planes.
        self.gr[gr::MISC] = self.gr[gr::MISC] & !0x0c | 0x04 | gr::GRAPHICS;
        self.cr[cr::MODE] |= 3;
        self.sr[sr::MAP_MASK] |= 0x0f;
        self.sr[sr::MEMORY_MODE] &= !sr::CHAIN_4;
        self.sr[sr::MEMORY_MODE] |= sr::NOT_ODD_EVEN;
        self.gr[gr::MODE] &= !gr::ODD_EVEN;
        if self.vbe.bpp != 4 {
            self.sr[sr::MEMORY_MODE] |= sr::CHAIN_4;
        }
    }
}
