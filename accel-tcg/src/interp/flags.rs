//! Lazy status flags.
//!
//! An arithmetic operation stores what it did (`cc_op`: kind and width), its result (`cc_a`, zero-extended) and one
//! more operand (`cc_b`); the flags are computed when somebody looks. [`IMAGE`] holds them as they are in `cc_a`.
//!
//! Translated code has kinds of its own, chosen so that recording them takes few stores, and can replace single flags
//! of a record by bytes in `cc_c` ([`over`]).

use crate::env::Env;
use crate::ir::Cond;
use crate::ir::op::flag;

/// `cc_op`: the flags are in `cc_a` as they are.
pub const IMAGE: u32 = 0;

/// Kinds of `cc_op`; the width (0 to 3 for 8 to 64 bits) is added to them.
pub mod kind {
    /// `cc_a` = a + b, `cc_b` = b.
    pub const ADD: u32 = 4;
    /// `cc_a` = a + b + 1, `cc_b` = b.
    pub const ADC1: u32 = 8;
    /// `cc_a` = a - b, `cc_b` = b.
    pub const SUB: u32 = 12;
    /// `cc_a` = a - b - 1, `cc_b` = b.
    pub const SBB1: u32 = 16;
    /// `cc_a` = result of and, or, xor, test.
    pub const LOGIC: u32 = 20;
    /// `cc_a` = a + 1, `cc_b` = carry flag of before.
    pub const INC: u32 = 24;
    /// `cc_a` = a - 1, `cc_b` = carry flag of before.
    pub const DEC: u32 = 28;
    /// `cc_a` = result, `cc_b` = carry | overflow << 11 in their EFLAGS places; AF clear.
    pub const SHIFT: u32 = 32;
    /// `cc_a` = product, the low byte of `cc_b` = carry and overflow; AF clear.
    pub const MUL: u32 = 36;
    /// `cc_a` = result of a shift left, the low byte of `cc_b` = carry.
    pub const SHL: u32 = 40;
    /// `cc_a` = result of a logical shift right, the low byte of `cc_b` = carry.
    pub const SHR: u32 = 44;
    /// `cc_a` = result of an arithmetic shift right, the low byte of `cc_b` = carry.
    pub const SAR: u32 = 48;
    /// Flags of `cc_a` - `cc_b`, whose upper bits may hold anything.
    pub const CMP: u32 = 52;
    /// Byte 1 of `cc_a` as LAHF leaves it in AH, byte 0 the overflow flag.
    pub const LAHF: u32 = 56;
    /// All clear but ZF, which says whether `cc_a` is zero.
    pub const ZERO: u32 = 60;
    /// Kind and width.
    pub const MASK: u32 = 63;
}

/// Bits of `cc_op` above kind and width: mostly, that flags are in `cc_c`.
pub mod over {
    /// `cc_a` and `cc_b` may have anything above the width.
    pub const RAW: u32 = 1 << 28;
    /// CF is byte 0 of `cc_c`.
    pub const CF: u32 = 1 << 29;
    /// OF is byte 1.
    pub const OF: u32 = 1 << 30;
    /// ZF is byte 2.
    pub const ZF: u32 = 1 << 31;
}

const SIZE_MASK: [u64; 4] = [0xff, 0xffff, 0xffff_ffff, !0];

/// Carry and overflow of a kind that computes them from the operands, for the width's mask and sign bit.
fn carry_overflow(op: u32, r: u64, b: u64) -> (bool, bool) {
    let size = (op & 3) as usize;
    let mask = SIZE_MASK[size];
    let sign = (mask >> 1) + 1;
    match op & !3 {
        kind::ADD => {
            let a = r.wrapping_sub(b) & mask;
            (r < b, (a ^ r) & (b ^ r) & sign != 0)
        }
        kind::ADC1 => {
            let a = r.wrapping_sub(b).wrapping_sub(1) & mask;
            (r <= b, (a ^ r) & (b ^ r) & sign != 0)
        }
        kind::SUB => {
            let a = r.wrapping_add(b) & mask;
            (a < b, (a ^ b) & (a ^ r) & sign != 0)
        }
        kind::SBB1 => {
            let a = r.wrapping_add(b).wrapping_add(1) & mask;
            (a <= b, (a ^ b) & (a ^ r) & sign != 0)
        }
        kind::INC => (b & 1 != 0, r == sign),
        kind::DEC => (b & 1 != 0, r == sign - 1),
        kind::SHIFT => (b & 1 != 0, b & u64::from(flag::OF) != 0),
        kind::MUL => (b & 1 != 0, b & 1 != 0),
        kind::SHL => (b & 1 != 0, (r & sign != 0) != (b & 1 != 0)),
        kind::SHR => (b & 1 != 0, (r ^ r << 1) & sign != 0),
        kind::SAR => (b & 1 != 0, false),
        _ => (false, false),
    }
}

fn aux(op: u32, r: u64, b: u64) -> bool {
    let a = match op & !3 {
        kind::ADD => r.wrapping_sub(b),
        kind::ADC1 => r.wrapping_sub(b).wrapping_sub(1),
        kind::SUB => r.wrapping_add(b),
        kind::SBB1 => r.wrapping_add(b).wrapping_add(1),
        kind::INC => return r & 15 == 0,
        kind::DEC => return r & 15 == 15,
        _ => return false,
    };
    (a ^ b ^ r) & 0x10 != 0
}

/// The flags that a record stands for.
pub fn image(op: u32, r: u64, b: u64) -> u32 {
    if op == IMAGE {
        return r as u32 & flag::ALL;
    }
    match op & !3 {
        kind::CMP => {
            let mask = SIZE_MASK[(op & 3) as usize];
            let b = b & mask;
            return image(kind::SUB | op & 3, (r & mask).wrapping_sub(b) & mask, b);
        }
        kind::LAHF => {
            let of = if r & 1 != 0 { flag::OF } else { 0 };
            return (r >> 8) as u32 & (flag::ALL & 0xff) | of;
        }
        kind::ZERO => return if r == 0 { flag::ZF } else { 0 },
        _ => {}
    }
    let (cf, of) = carry_overflow(op, r, b);
    let sign = (SIZE_MASK[(op & 3) as usize] >> 1) + 1;
    let bit = |on: bool, f: u32| if on { f } else { 0 };
    let image = bit(cf, flag::CF)
        | bit((r as u8).count_ones() & 1 == 0, flag::PF)
        | bit(aux(op, r, b), flag::AF)
        | bit(r == 0, flag::ZF)
        | bit(r & sign != 0, flag::SF)
        | bit(of, flag::OF);
    crate::mutants::flags(op, image)
}

/// The six status flags.
pub fn get(env: &Env) -> u64 {
    let op = env.cc_op;
    let mask = if op & over::RAW != 0 { SIZE_MASK[(op & 3) as usize] } else { !0 };
    let mut f = image(op & kind::MASK, env.cc_a & mask, env.cc_b & mask);
    for (on, bit, at) in [(over::CF, flag::CF, 0), (over::OF, flag::OF, 8), (over::ZF, flag::ZF, 16)] {
        if op & on != 0 {
            f = f & !bit | if env.cc_c >> at & 1 != 0 { bit } else { 0 };
        }
    }
    f.into()
}

/// Sets the six status flags.
pub fn set(env: &mut Env, bits: u64) {
    env.cc_op = IMAGE;
    env.cc_a = bits & u64::from(flag::ALL);
}

/// The carry flag.
pub fn carry(env: &Env) -> bool {
    if env.cc_op == IMAGE {
        return env.cc_a & 1 != 0;
    }
    if env.cc_op > kind::SAR + 3 {
        return get(env) & 1 != 0;
    }
    let c = carry_overflow(env.cc_op, env.cc_a, env.cc_b).0;
    crate::mutants::flags(env.cc_op, u32::from(c)) & flag::CF != 0
}

/// Whether a condition holds in a flag image.
pub fn holds(cond: Cond, f: u32) -> bool {
    let any = |m: u32| f & m != 0;
    let less = any(flag::SF) != any(flag::OF);
    let r = match cond as u8 >> 1 {
        0 => any(flag::OF),
        1 => any(flag::CF),
        2 => any(flag::ZF),
        3 => any(flag::CF | flag::ZF),
        4 => any(flag::SF),
        5 => any(flag::PF),
        6 => less,
        _ => less || any(flag::ZF),
    };
    r != (cond as u8 & 1 != 0)
}

/// Whether a condition holds now. `C` is the condition's encoding.
#[inline(always)]
pub fn test<const C: u8>(env: &Env) -> bool {
    let (op, r, b) = (env.cc_op, env.cc_a, env.cc_b);
    if op > kind::SAR + 3 {
        return holds(Cond::ALL[(C & 15) as usize], get(env) as u32);
    }
    if op != IMAGE {
        let size = (op & 3) as usize;
        match C >> 1 {
            2 => return (r == 0) != (C & 1 != 0),
            4 => return (r >> (8usize << size).wrapping_sub(1) & 1 != 0) != (C & 1 != 0),
            1 if op & !3 == kind::LOGIC => return C & 1 != 0,
            1 => return carry_overflow(op, r, b).0 != (C & 1 != 0),
            _ => {}
        }
    }
    holds(Cond::ALL[(C & 15) as usize], image(op, r, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags of `a op b` the long way round, from wide arithmetic.
    fn model(sub: bool, size: usize, a: u64, b: u64, c: u64) -> u32 {
        let mask = u128::from(SIZE_MASK[size]);
        let (x, y, z) = (u128::from(a), u128::from(b), u128::from(c));
        let wide = if sub { x.wrapping_sub(y).wrapping_sub(z) } else { x + y + z };
        let r = wide & mask;
        let bits = 8u32 << size;
        let sext = |v: u64| (((v as u128) << (128 - bits)) as i128) >> (128 - bits);
        let s = if sub { sext(a) - sext(b) - c as i128 } else { sext(a) + sext(b) + c as i128 };
        let low = if sub { (a & 15).wrapping_sub(b & 15).wrapping_sub(c) } else { (a & 15) + (b & 15) + c };
        let bit = |on: bool, f: u32| if on { f } else { 0 };
        bit(wide & !mask != 0, flag::CF)
            | bit((r as u8).count_ones().is_multiple_of(2), flag::PF)
            | bit(low & !15 != 0, flag::AF)
            | bit(r == 0, flag::ZF)
            | bit(r >> (bits - 1) & 1 != 0, flag::SF)
            | bit(s != sext(r as u64), flag::OF)
    }

    #[test]
    fn sums_and_differences_agree_with_wide_arithmetic() {
        let values =
            [0u64, 1, 0xf, 0x10, 0x7e, 0x7f, 0x80, 0x81, 0xff, 0x7fff_ffff_ffff_ffff, 1 << 63, !0, !1];
        for (size, &m) in SIZE_MASK.iter().enumerate() {
            for a in values.map(|v| v & m) {
                for b in values.map(|v| v & m) {
                    for (k, sub, c) in [
                        (kind::ADD, false, 0),
                        (kind::ADC1, false, 1),
                        (kind::SUB, true, 0),
                        (kind::SBB1, true, 1),
                    ] {
                        let r = if sub {
                            a.wrapping_sub(b).wrapping_sub(c)
                        } else {
                            a.wrapping_add(b).wrapping_add(c)
                        } & m;
                        assert_eq!(
                            image(k + size as u32, r, b),
                            model(sub, size, a, b, c),
                            "kind {k} size {size} {a:#x} {b:#x}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_condition_and_its_opposite_differ() {
        for f in 0..=flag::ALL {
            for c in (0..16).step_by(2) {
                assert_ne!(holds(Cond::ALL[c], f), holds(Cond::ALL[c + 1], f));
            }
        }
    }
}
