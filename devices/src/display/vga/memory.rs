//! The display memory as the CPU sees it through A0000h to BFFFFh: four planes behind the graphics controller.
//!
//! Byte a of plane p is byte 4a + p of the video RAM. Chain-4 and odd/even addresses are packed into that layout, so
//! that the linear frame buffer shows chained modes pixel by pixel.

use super::Vga;
use super::spec::{gr, sr};

/// A nibble, each bit spread over one plane's byte.
fn spread(bits: u8) -> u32 {
    (0..4).filter(|p| bits & 1 << p != 0).fold(0, |all, p| all | 0xff << (8 * p))
}

impl Vga {
    /// Byte of the video RAM's plane space that an address of the window selects, if the window is open there.
    fn window(&self, offset: u64) -> Option<u64> {
        let bank = || u64::from(self.vbe.bank) << 16;
        let at = match self.gr[gr::MISC] >> 2 & 3 {
            0 => offset,
            1 if offset < 0x1_0000 => offset + bank(),
            2 if (0x1_0000..0x1_8000).contains(&offset) => offset - 0x1_0000,
            3 if offset >= 0x1_8000 => offset - 0x1_8000,
            _ => return None,
        };
        Some(at)
    }

    fn planes(&self, at: u64) -> u32 {
        self.vram.load(at.wrapping_mul(4), anura_vmcore::Width::W4).unwrap_or(0) as u32
    }

    /// Reads a byte of the window.
    pub(super) fn read_window(&mut self, offset: u64) -> u8 {
        let Some(at) = self.window(offset) else { return 0xff };
        if self.sr[sr::MEMORY_MODE] & sr::CHAIN_4 != 0 {
            self.latch = self.planes(at >> 2);
            return self.vram.load(at, anura_vmcore::Width::W1).unwrap_or(0xff) as u8;
        }
        let (at, plane) = if self.gr[gr::MODE] & gr::ODD_EVEN != 0 {
            (at >> 1, self.gr[gr::READ_MAP] & 2 | at as u8 & 1)
        } else {
            (at, self.gr[gr::READ_MAP])
        };
        self.latch = self.planes(at);
        if self.gr[gr::MODE] & gr::READ_MODE == 0 {
            return (self.latch >> (8 * plane)) as u8;
        }
        // Colour compare: ones where all planes that count agree.
        let differ = (self.latch ^ spread(self.gr[gr::COMPARE])) & spread(self.gr[gr::DO_CARE]);
        !(differ | differ >> 8 | differ >> 16 | differ >> 24) as u8
    }

    /// Writes a byte of the window.
    pub(super) fn write_window(&mut self, offset: u64, value: u8) {
        let Some(at) = self.window(offset) else { return };
        let maps = self.sr[sr::MAP_MASK];
        let mode = self.sr[sr::MEMORY_MODE];
        if mode & sr::CHAIN_4 != 0 {
            if maps & 1 << (at & 3) != 0 {
                self.vram.store(at, anura_vmcore::Width::W1, u64::from(value));
            }
            return;
        }
        let (at, maps) = if mode & sr::NOT_ODD_EVEN == 0 {
            (at >> 1, maps & if at & 1 != 0 { 0b1010 } else { 0b0101 })
        } else {
            (at, maps)
        };
        let rotated = value.rotate_right(u32::from(self.gr[gr::ROTATE] & 7));
        let whole = |byte: u8| u32::from(byte) * 0x0101_0101;
        let set_reset = spread(self.gr[gr::SET_RESET]);
        let (data, mask) = match self.gr[gr::MODE] & 3 {
            0 => {
                let enabled = spread(self.gr[gr::ENABLE_SET_RESET]);
                (whole(rotated) & !enabled | set_reset & enabled, whole(self.gr[gr::BIT_MASK]))
            }
            1 => (self.latch, u32::MAX),
            2 => (spread(value), whole(self.gr[gr::BIT_MASK])),
            _ => (set_reset, whole(self.gr[gr::BIT_MASK] & rotated)),
        };
        let result = match self.gr[gr::ROTATE] >> 3 & 3 {
            _ if self.gr[gr::MODE] & 3 == 1 => data,
            0 => data,
            1 => data & self.latch,
            2 => data | self.latch,
            _ => data ^ self.latch,
        };
        let result = result & mask | self.latch & !mask;
        let chosen = spread(maps);
        let kept = self.planes(at) & !chosen;
        self.vram.store(at.wrapping_mul(4), anura_vmcore::Width::W4, u64::from(result & chosen | kept));
    }
}
