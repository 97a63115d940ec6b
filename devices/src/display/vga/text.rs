//! Text mode: the state that firmware leaves, and the screen as text.

use super::Vga;
use super::spec::{ar, cr, gr};

/// Registers of mode 3, 80 by 25 characters in 16 colours, 9 by 16 dots.
const MISC: u8 = 0x67;
const SR: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const CR: [u8; cr::COUNT] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c,
    0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
const GR: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x0f, 0xff];
const AR: [u8; 0x15] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c,
    0x00, 0x0f, 0x08, 0x00,
];

impl Vga {
    /// Sets mode 3 as a VGA BIOS does: registers, palette, an empty screen.
    /// Left out: the font in plane 2, which a picture will need.
    pub fn post_text_mode(&mut self) {
        self.misc = MISC;
        self.sr[..SR.len()].copy_from_slice(&SR);
        self.cr = CR;
        self.gr[..GR.len()].copy_from_slice(&GR);
        self.ar = AR;
        self.ar_index = ar::PALETTE_ON;
        self.dac.mask = 0xff;
        for (n, colour) in self.dac.palette.chunks_exact_mut(3).take(64).enumerate() {
            // rgbRGB: the low three bits are two thirds bright, the high three one third.
            for (channel, value) in colour.iter_mut().enumerate() {
                let (high, low) = (n >> (2 - channel) & 1, n >> (5 - channel) & 1);
                *value = (high * 0x2a + low * 0x15) as u8;
            }
        }
        for cell in 0..0x4000u64 {
            self.vram.store(cell * 4, anura_vmcore::Width::W2, 0x0720);
        }
    }

    /// The text on the screen, a line each without the blanks at its end; empty in a graphics mode. What is not ASCII
    /// comes as a full stop.
    pub fn text_screen(&self) -> Vec<String> {
        if self.vbe.enabled() || self.gr[gr::MISC] & gr::GRAPHICS != 0 {
            return Vec::new();
        }
        let height = u64::from(self.cr[cr::MAX_SCAN_LINE] & 0x1f) + 1;
        let rows = (self.timing().display_lines / height).min(100);
        let columns = u64::from(self.cr[cr::H_DISPLAY_END]) + 1;
        let start = u64::from(self.cr[cr::START_HIGH]) << 8 | u64::from(self.cr[cr::START_LOW]);
        let pitch = u64::from(self.cr[cr::OFFSET]) * 2;
        (0..rows)
            .map(|row| {
                let line: String = (0..columns)
                    .map(|column| {
                        let cell = (start + row * pitch + column) & 0xffff;
                        match self.vram.load(cell * 4, anura_vmcore::Width::W1).unwrap_or(0) as u8 {
                            0 => ' ',
                            c @ 0x20..=0x7e => char::from(c),
                            _ => '.',
                        }
                    })
                    .collect();
                line.trim_end().to_owned()
            })
            .collect()
    }
}
