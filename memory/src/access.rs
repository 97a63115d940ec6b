//! One access to a device's registers, and the rules that fit accesses to what a device implements.
//!
//! A device says which accesses it accepts (`valid`) and which its handler implements
//! (`implemented`); what is accepted but not implemented is split or widened here, so that a chip
//! with byte registers has one byte handler. The rules are those that QEMU documents for its memory
//! API, since device descriptions carry over: defaults are 1 to 8 bytes accepted, aligned only, and 1
//! to 4 bytes implemented. An access outside `valid` is an error: it reads as all ones and drops writes.

use anura_vmcore::{Requester, Width};

/// One access as a handler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Width of the access.
    pub width: Width,
    /// Who asks.
    pub from: Requester,
}

/// How an access ended.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessResult {
    /// RAM, ROM or a device took it (a write to ROM is taken and dropped).
    #[default]
    Done,
    /// A device is there and does not accept such an access.
    Invalid,
    /// Nothing answers at this address.
    Unassigned,
}

impl AccessResult {
    /// Whether something took the access.
    pub fn is_ok(self) -> bool {
        self == Self::Done
    }

    /// The worse of the two, for an access made of pieces.
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

/// The registers behind an I/O region.
pub trait IoHandler: Send + Sync {
    /// Reads the registers at `a`. Bits above the width are ignored.
    fn read(&self, a: Access) -> u64;

    /// Writes `value`, which has no bits above the width.
    fn write(&self, a: Access, value: u64);

    /// Fills `buf` by reads of `a.width` at the same offset, as `rep ins` does. A last piece shorter
    /// than the width is filled from the low bytes of one more read.
    fn read_bulk(&self, a: Access, buf: &mut [u8]) {
        for piece in buf.chunks_mut(a.width.bytes()) {
            let value = self.read(a).to_le_bytes();
            piece.copy_from_slice(&value[..piece.len()]);
        }
    }

    /// Writes `buf` by writes of `a.width` at the same offset, as `rep outs` does.
    fn write_bulk(&self, a: Access, buf: &[u8]) {
        for piece in buf.chunks(a.width.bytes()) {
            self.write(a, le_value(piece));
        }
    }
}

/// Up to eight little-endian bytes as a number.
pub(crate) fn le_value(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(value)
}

/// Byte order of a device's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first, as nearly everything in a PC.
    #[default]
    Little,
    /// Most significant byte first.
    Big,
}

/// Sizes in bytes and whether an offset may be no multiple of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRange {
    /// Smallest access.
    pub min: u8,
    /// Largest access.
    pub max: u8,
    /// Offsets need not be a multiple of the access size.
    pub unaligned: bool,
}

impl SizeRange {
    /// Aligned accesses of `min` to `max` bytes.
    pub const fn aligned(min: u8, max: u8) -> Self {
        Self { min, max, unaligned: false }
    }

    /// Accesses of `min` to `max` bytes at any offset.
    pub const fn any(min: u8, max: u8) -> Self {
        Self { min, max, unaligned: true }
    }

    fn takes(self, offset: u64, bytes: usize) -> bool {
        (usize::from(self.min)..=usize::from(self.max)).contains(&bytes)
            && (self.unaligned || offset.is_multiple_of(bytes as u64))
    }
}

/// What a device accepts and what its handler implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessRules {
    /// Accesses the device accepts; others are errors.
    pub valid: SizeRange,
    /// Accesses the handler is called with; others are split or widened to them.
    pub implemented: SizeRange,
    /// Byte order of the registers.
    pub endian: Endian,
}

impl Default for AccessRules {
    /// 1 to 8 bytes accepted where aligned, 1 to 4 bytes implemented, little endian.
    fn default() -> Self {
        Self {
            valid: SizeRange::aligned(1, 8),
            implemented: SizeRange::aligned(1, 4),
            endian: Endian::Little,
        }
    }
}

impl AccessRules {
    /// An 8-bit chip on the ISA bus: any access is taken and cut into bytes.
    pub const BYTES: Self =
        Self { valid: SizeRange::any(1, 8), implemented: SizeRange::any(1, 1), endian: Endian::Little };

    /// Aligned 32-bit registers and nothing else.
    pub const DWORDS: Self = Self {
        valid: SizeRange::aligned(4, 4),
        implemented: SizeRange::aligned(4, 4),
        endian: Endian::Little,
    };

    /// The handler takes all sizes from 1 to `max` bytes at any offset itself.
    pub const fn any(max: u8) -> Self {
        Self { valid: SizeRange::any(1, max), implemented: SizeRange::any(1, max), endian: Endian::Little }
    }

    /// Whether the region accepts the access at all.
    pub(crate) fn accepts(&self, offset: u64, width: Width) -> bool {
        self.valid.takes(offset, width.bytes())
    }

    /// The set of widths (as the OR of their byte counts) that go to the handler as they are.
    pub(crate) fn direct_widths(&self) -> u8 {
        let both = |n: u8| {
            (self.valid.min..=self.valid.max).contains(&n)
                && (self.implemented.min..=self.implemented.max).contains(&n)
        };
        [1u8, 2, 4, 8].into_iter().filter(|&n| both(n) && (n == 1 || self.endian == Endian::Little)).sum()
    }

    /// Whether direct accesses may also be unaligned.
    pub(crate) fn direct_unaligned(&self) -> bool {
        self.valid.unaligned && self.implemented.unaligned
    }

    /// Size of the pieces that an access of `bytes` is made of.
    fn piece(&self, bytes: usize) -> usize {
        let (min, max) = (usize::from(self.implemented.min.max(1)), usize::from(self.implemented.max.max(1)));
        bytes.clamp(min.min(max), max)
    }

    /// Reads through the rules; `None` if the region does not accept the access.
    pub(crate) fn read(&self, h: &dyn IoHandler, a: Access) -> Option<u64> {
        if !self.accepts(a.offset, a.width) {
            return None;
        }
        let bytes = a.width.bytes();
        let piece = self.piece(bytes);
        let value = if self.implemented.unaligned || a.offset.is_multiple_of(piece as u64) {
            self.read_pieces(h, a.offset, bytes, piece, a.from)
        } else {
            self.read_covering(h, a, piece)
        };
        Some(self.order(value, bytes))
    }

    /// Merges pieces that start at the access's own offset.
    fn read_pieces(
        &self,
        h: &dyn IoHandler,
        offset: u64,
        bytes: usize,
        piece: usize,
        from: Requester,
    ) -> u64 {
        let width = width_of(piece);
        let mut value = 0;
        for i in (0..bytes).step_by(piece) {
            let got = h.read(Access { offset: offset.wrapping_add(i as u64), width, from }) & width.mask();
            value |= self.place(got, bytes, piece, i);
        }
        value & width_of(bytes).mask()
    }

    /// An unaligned read of a device that implements only aligned ones: read the aligned pieces that
    /// cover it and cut the bytes out.
    fn read_covering(&self, h: &dyn IoHandler, a: Access, piece: usize) -> u64 {
        let width = width_of(piece);
        let mut value = 0u64;
        let mut have: Option<(u64, u64)> = None;
        for i in 0..a.width.bytes() {
            let at = a.offset.wrapping_add(i as u64);
            let base = at & !(piece as u64 - 1);
            let got = match have {
                Some((b, v)) if b == base => v,
                _ => h.read(Access { offset: base, width, from: a.from }) & width.mask(),
            };
            have = Some((base, got));
            let within = (at - base) as usize;
            let (from_bit, to_bit) = match self.endian {
                Endian::Little => (within * 8, i * 8),
                Endian::Big => ((piece - 1 - within) * 8, (a.width.bytes() - 1 - i) * 8),
            };
            value |= ((got >> from_bit) & 0xff) << to_bit;
        }
        value
    }

    /// Writes through the rules; false if the region does not accept the access.
    pub(crate) fn write(&self, h: &dyn IoHandler, a: Access, value: u64) -> bool {
        if !self.accepts(a.offset, a.width) {
            return false;
        }
        let bytes = a.width.bytes();
        let value = self.order(value & a.width.mask(), bytes);
        let mut piece = self.piece(bytes);
        if !self.implemented.unaligned && piece <= bytes {
            // Cut an unaligned write into aligned ones, down to the smallest that is implemented.
            while piece > usize::from(self.implemented.min.max(1)) && !a.offset.is_multiple_of(piece as u64) {
                piece /= 2;
            }
        }
        let width = width_of(piece);
        for i in (0..bytes).step_by(piece) {
            let part = self.take(value, bytes, piece, i) & width.mask();
            h.write(Access { offset: a.offset.wrapping_add(i as u64), width, from: a.from }, part);
        }
        true
    }

    /// Swaps between the CPU's byte order and the device's.
    fn order(&self, value: u64, bytes: usize) -> u64 {
        match self.endian {
            Endian::Little => value,
            Endian::Big => value.swap_bytes() >> (64 - bytes * 8),
        }
    }

    /// Where piece `i` of an access sits in its value: a left shift in bits, negative for right.
    fn shift(&self, bytes: usize, piece: usize, i: usize) -> isize {
        match self.endian {
            Endian::Little => i as isize * 8,
            Endian::Big => (bytes as isize - piece as isize - i as isize) * 8,
        }
    }

    fn place(&self, got: u64, bytes: usize, piece: usize, i: usize) -> u64 {
        match self.shift(bytes, piece, i) {
            s if s >= 0 => got << s,
            s => got >> -s,
        }
    }

    fn take(&self, value: u64, bytes: usize, piece: usize, i: usize) -> u64 {
        match self.shift(bytes, piece, i) {
            s if s >= 0 => value >> s,
            s => value << -s,
        }
    }
}

/// The width of a size that the rules gave, which are powers of two from 1 to 8.
fn width_of(bytes: usize) -> Width {
    match bytes {
        1 => Width::W1,
        2..=3 => Width::W2,
        4..=7 => Width::W4,
        _ => Width::W8,
    }
}
