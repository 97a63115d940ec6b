//! Paging structure entries (vol. 3, chapter 4): their bits, and which bits are reserved.

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const RW: u64 = 1 << 1;
/// Accessible in user mode.
pub const US: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Page size: the entry maps a large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// Shift of the protection key.
pub const KEY_SHIFT: u32 = 59;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Address bits of an 8-byte entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG clear.
    Off,
    /// 32-bit paging, two levels of 4-byte entries.
    Legacy,
    /// PAE paging, PDPTEs in registers and two levels of 8-byte entries.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

/// Bits that must be zero in a present entry. `level` is 5 for a PML5 entry down to 1 for a
/// page table entry; `large` says that the entry maps a page by PS.
pub fn reserved(mode: Mode, level: u8, large: bool, phys_bits: u8, nxe: bool, pse: bool, gb: bool) -> u64 {
    let nx = if nxe { 0 } else { NX };
    let above = |bits: u8| ADDRESS & !((1u64 << bits) - 1);
    match mode {
        Mode::Off => 0,
        // A 4 MiB page has physical bits 39:32 in 20:13; bit 21 is reserved, and as many of
        // 20:13 as the processor has no address bits for.
        Mode::Legacy if level == 2 && large && pse => {
            let have = u32::from(phys_bits.clamp(32, 40)) - 32;
            (1 << 21) | (0xff_u64 << (13 + have)) & 0x1f_e000
        }
        Mode::Legacy => 0,
        // Bits 62:52 are reserved with PAE, ignored with 4 levels.
        Mode::Pae => {
            let low = if level == 2 && large { 0x1f_e000 } else { 0 };
            nx | 0x7ff0_0000_0000_0000 | above(phys_bits) | low
        }
        Mode::FourLevel | Mode::FiveLevel => {
            let low = match (level, large) {
                (4 | 5, _) => PS,
                (3, _) if !gb => PS,
                (3, true) => 0x3fff_e000,
                (2, true) => 0x1f_e000,
                _ => 0,
            };
            nx | above(phys_bits) | low
        }
    }
}

/// Bits that must be zero in a present PDPTE of PAE paging.
pub fn reserved_pdpte(phys_bits: u8) -> u64 {
    0xfff0_0000_0000_01e6 | ADDRESS & !((1u64 << phys_bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_above_maxphyaddr_is_reserved() {
        let r = reserved(Mode::FourLevel, 1, false, 40, true, true, true);
        assert_eq!(r, 0x000f_ff00_0000_0000);
        assert_eq!(reserved(Mode::FourLevel, 1, false, 40, false, true, true), r | NX);
    }

    #[test]
    fn large_pages_reserve_their_offset_but_not_the_pat_bit() {
        assert_eq!(reserved(Mode::FourLevel, 2, true, 52, true, true, true), 0x1f_e000);
        assert_eq!(reserved(Mode::FourLevel, 3, true, 52, true, true, true), 0x3fff_e000);
        assert_eq!(reserved(Mode::FourLevel, 3, true, 52, true, true, false), PS);
        assert_eq!(reserved(Mode::Legacy, 2, true, 40, false, true, false), 1 << 21);
        assert_eq!(reserved(Mode::Legacy, 2, true, 36, false, true, false), 0x3e_0000);
    }
}
