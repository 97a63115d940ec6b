//! Segment registers with their hidden part, and the table registers.
use bitfield_struct::bitfield;

/// Access rights of a loaded segment.
///
/// Bits 0 to 15 are bits 8 to 23 of the descriptor's second word with the limit's nibble
/// blank; bit 16 says that the register holds a null selector (as VMX keeps it).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Attr {
    /// Type field.
    #[bits(4)]
    pub kind: u8,
    /// Code or data, not a system descriptor.
    pub s: bool,
    /// Descriptor privilege level.
    #[bits(2)]
    pub dpl: u8,
    /// Present.
    pub p: bool,
    #[bits(4)]
    _limit: u8,
    /// Available to software.
    pub avl: bool,
    /// 64-bit code.
    pub l: bool,
    /// 32-bit default size, or big stack.
    pub db: bool,
    /// Limit counted in pages.
    pub g: bool,
    /// Loaded with a null selector.
    pub unusable: bool,
    #[bits(15)]
    _rest: u32,
}

impl Attr {
    /// From the second doubleword of a descriptor.
    pub fn from_descriptor(high: u32) -> Self {
        Self::from_bits(high >> 8 & 0xf0ff)
    }
    /// Code segment (meaningful if `s`).
    pub fn is_code(self) -> bool {
        self.kind() & 8 != 0
    }
    /// Readable code, or any data.
    pub fn is_readable(self) -> bool {
        self.kind() & 0b1010 != 0b1000
    }
    /// Writable data.
    pub fn is_writable(self) -> bool {
        self.kind() & 0b1010 == 0b0010
    }
    /// Conforming code.
    pub fn is_conforming(self) -> bool {
        self.kind() & 0b1100 == 0b1100
    }
    /// Expand-down data.
    pub fn is_expand_down(self) -> bool {
        self.kind() & 0b1100 == 0b0100
    }
}

/// Indexes into [`crate::CpuState::seg`], in instruction encoding order.
pub mod index {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// A segment register: the visible selector and what the last load cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Last offset inside, in bytes (already scaled).
    pub limit: u32,
    /// Access rights.
    pub attr: Attr,
    /// The selector.
    pub selector: u16,
}

impl Segment {
    /// A segment with access rights given as raw bits.
    pub const fn new(selector: u16, base: u64, limit: u32, attr: u32) -> Self {
        Self { base, limit, attr: Attr::from_bits(attr), selector }
    }
    /// What loading a null selector leaves.
    pub const fn null(selector: u16) -> Self {
        Self::new(selector, 0, 0, 1 << 16)
    }
    /// The two words of a segment descriptor as a descriptor table holds them.
    pub fn from_descriptor(selector: u16, low: u32, high: u32) -> Self {
        let attr = Attr::from_descriptor(high);
        let raw = low & 0xffff | high & 0xf_0000;
        let limit = if attr.g() { raw << 12 | 0xfff } else { raw };
        let base = low >> 16 | high << 16 & 0xff_0000 | high & 0xff00_0000;
        Self { base: base.into(), limit, attr, selector }
    }
    /// The requested privilege level of the selector.
    pub const fn rpl(&self) -> u8 {
        self.selector as u8 & 3
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableReg {
    /// Linear base address.
    pub base: u64,
    /// Last byte offset inside.
    pub limit: u16,
}
