//! Descriptors, gates and task state segments as they lie in memory (vol. 3, chapters 3, 5, 7, 8).
use crate::segment::Attr;

/// System descriptor types; the 16-bit ones are the same without bit 3.
pub mod system {
    /// 16-bit TSS, not busy.
    pub const TSS16: u8 = 1;
    /// LDT.
    pub const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INT16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP16: u8 = 7;
    /// 32- or 64-bit TSS, not busy.
    pub const TSS: u8 = 9;
    /// 32- or 64-bit TSS, busy.
    pub const TSS_BUSY: u8 = 11;
    /// 32- or 64-bit call gate.
    pub const CALL: u8 = 12;
    /// 32- or 64-bit interrupt gate.
    pub const INT: u8 = 14;
    /// 32- or 64-bit trap gate.
    pub const TRAP: u8 = 15;
}

/// A selector taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// Byte offset of the descriptor in its table.
    pub const fn offset(self) -> u64 {
        (self.0 & !7) as u64
    }
    /// The descriptor is in the LDT.
    pub const fn is_ldt(self) -> bool {
        self.0 & 4 != 0
    }
    /// Requested privilege level.
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    /// One of the four null selectors.
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// As an error code, without the EXT bit.
    pub const fn error(self) -> u32 {
        (self.0 & !3) as u32
    }
}

/// An 8-byte descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// First doubleword.
    pub const fn low(self) -> u32 {
        self.0 as u32
    }
    /// Second doubleword.
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Access rights.
    pub fn attr(self) -> Attr {
        Attr::from_descriptor(self.high())
    }
    /// A gate's target selector.
    pub const fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// A gate's target offset, low 32 bits.
    pub const fn gate_offset(self) -> u32 {
        self.low() & 0xffff | self.high() & 0xffff_0000
    }
    /// A call gate's parameter count.
    pub const fn gate_count(self) -> u32 {
        self.high() & 0x1f
    }
    /// A 64-bit interrupt gate's stack table index.
    pub const fn gate_ist(self) -> u8 {
        (self.high() & 7) as u8
    }
    /// A code or data descriptor, for tests and boot set-up; `flags` is bits 8 to 23 of the
    /// second doubleword with the limit's nibble blank.
    pub const fn segment(base: u32, limit: u32, flags: u16) -> Self {
        let low = limit & 0xffff | base << 16;
        let high = base >> 16 & 0xff | base & 0xff00_0000 | limit & 0xf_0000 | (flags as u32) << 8;
        Self(low as u64 | (high as u64) << 32)
    }
    /// A gate; `flags` as in [`Self::segment`], `count` is the parameter count or stack index.
    pub const fn gate(selector: u16, offset: u32, flags: u8, count: u8) -> Self {
        let low = offset & 0xffff | (selector as u32) << 16;
        let high = offset & 0xffff_0000 | (flags as u32) << 8 | count as u32;
        Self(low as u64 | (high as u64) << 32)
    }
}

/// Offsets in a 32-bit TSS.
pub mod tss32 {
    /// ESP of privilege level 0; SS follows 4 bytes later, the next level 8 bytes later.
    pub const ESP0: u64 = 4;
    /// CR3.
    pub const CR3: u64 = 0x1c;
    /// I/O bitmap base.
    pub const IO_MAP: u64 = 0x66;
    /// Smallest limit.
    pub const MIN_LIMIT: u32 = 0x67;
}

/// Offsets in a 16-bit TSS.
pub mod tss16 {
    /// SP of privilege level 0; SS follows 2 bytes later, the next level 4 bytes later.
    pub const SP0: u64 = 2;
    /// Smallest limit.
    pub const MIN_LIMIT: u32 = 0x2b;
}

/// Offsets in a 64-bit TSS.
pub mod tss64 {
    /// RSP of privilege level 0; the next level 8 bytes later.
    pub const RSP0: u64 = 4;
    /// Stack table entry 1; the next entry 8 bytes later.
    pub const IST1: u64 = 0x24;
    /// I/O bitmap base.
    pub const IO_MAP: u64 = 0x66;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Segment;

    #[test]
    fn a_descriptor_comes_apart_as_it_was_put_together() {
        let d = Descriptor::segment(0x1234_5678, 0xabcde, 0xc09b);
        let s = Segment::from_descriptor(8, d.low(), d.high());
        assert_eq!((s.base, s.limit), (0x1234_5678, 0xabcd_efff));
        assert!(s.attr.g() && s.attr.db() && s.attr.p() && s.attr.is_code());
    }

    #[test]
    fn a_gate_comes_apart_as_it_was_put_together() {
        let g = Descriptor::gate(0x10, 0x8765_4321, 0xee, 3);
        assert_eq!((g.gate_selector(), g.gate_offset(), g.gate_ist()), (0x10, 0x8765_4321, 3));
        assert_eq!((g.attr().kind(), g.attr().dpl(), g.attr().s()), (14, 3, false));
    }
}
