//! The integer types that operations are made for.

use crate::mutants;

/// An unsigned integer of one of the four operand widths.
pub(super) trait Int: Copy + Eq + crate::mmu::Scalar {
    /// Width in bits.
    const BITS: u32;
    /// 0 to 3.
    const CC: u32;
    fn of(v: u64) -> Self;
    fn u(self) -> u64;
    /// Sign-extended.
    fn s(self) -> i64;
    /// The new value of a register whose low part becomes `self`: 32 bits clear the rest, fewer keep it.
    fn merge(self, old: u64) -> u64;
}

macro_rules! int {
    ($($t:ty, $s:ty, $cc:literal, $merge:expr;)*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const CC: u32 = $cc;
            #[inline(always)]
            fn of(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn u(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn s(self) -> i64 {
                self as $s as i64
            }
            #[inline(always)]
            fn merge(self, old: u64) -> u64 {
                let f: fn(u64, u64) -> u64 = $merge;
                f(self as u64, old)
            }
        }
    )*};
}

int! {
    u8, i8, 0, |v, old| old & !0xff | v;
    u16, i16, 1, |v, old| mutants::pick(mutants::I_MERGE16, old & !0xffff | v, v);
    u32, i32, 2, |v, _| v;
    u64, i64, 3, |v, _| v;
}
