//! Multiplication, division, and what computes its flags at once: bits, scans, the BMI and ADX extensions, CRC32 (SDM
//! vol. 2).

use super::super::flags;
use super::super::int::Int;
use super::shifts::shift_flags;
use super::{Next, Src, fault, get, put, put_t};
use crate::env::{Cpu, Env, Fault};
use crate::ir::op::flag;
use crate::mutants;

pub(in crate::interp) unsafe fn mul<const SIGNED: bool, T: Int, S: Src, const F: bool>(
    cpu: &mut Cpu,
    op: Next,
) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(S::get(cpu, o));
        let r = T::of(a.u().wrapping_mul(b.u()));
        if F {
            let wide = if SIGNED {
                i128::from(a.s()) * i128::from(b.s()) != i128::from(r.s())
            } else {
                u128::from(a.u()) * u128::from(b.u()) != u128::from(r.u())
            };
            mul_flags(&mut cpu.env, r, wide);
        }
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

fn mul_flags<T: Int>(env: &mut Env, r: T, wide: bool) {
    let wide = wide && !mutants::on(mutants::I_MUL_OF);
    shift_flags(env, r, wide, wide);
}

pub(in crate::interp) unsafe fn mulh<const SIGNED: bool, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(get(cpu, o.b));
        let r = if SIGNED {
            (i128::from(a.s()) * i128::from(b.s()) >> T::BITS) as u64
        } else {
            (u128::from(a.u()) * u128::from(b.u()) >> T::BITS) as u64
        };
        put_t(cpu, o.d, T::of(r));
        op.add(1)
    }
}

pub(in crate::interp) unsafe fn div<const SIGNED: bool, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let by = T::of(get(cpu, o.a)).u();
        if crate::helpers::div::divide(&mut cpu.env, by, T::BITS, SIGNED) {
            op.add(1)
        } else {
            fault(cpu, op, Fault::DE)
        }
    }
}

/// Operations of one or two operands whose flags are computed at once.
pub(in crate::interp) trait Eager {
    /// The result, or `None` to leave the destination, and the flags with the mask of those that change.
    fn calc<T: Int>(a: T, b: u64, f: u32) -> (Option<u64>, u32, u32);
}

fn bit(on: bool, f: u32) -> u32 {
    if on { f } else { 0 }
}
fn zs<T: Int>(r: u64) -> u32 {
    bit(T::of(r).u() == 0, flag::ZF) | bit(r >> (T::BITS - 1) & 1 != 0, flag::SF)
}

macro_rules! eager {
    ($($n:ident |$t:ident, $a:ident, $b:ident, $f:ident| $e:expr;)*) => {$(
        pub(in crate::interp) struct $n;
        impl Eager for $n {
            #[inline(always)]
            fn calc<$t: Int>($a: $t, $b: u64, $f: u32) -> (Option<u64>, u32, u32) {
                $e
            }
        }
    )*};
}

eager! {
    BtOp |T, a, b, _f| (None, (a.u() >> (b & u64::from(T::BITS - 1)) & 1) as u32, flag::CF);
    BtsOp |T, a, b, _f| {
        let n = b & u64::from(T::BITS - 1);
        (Some(a.u() | 1 << n), (a.u() >> n & 1) as u32, flag::CF)
    };
    BtrOp |T, a, b, _f| {
        let n = b & u64::from(T::BITS - 1);
        (Some(a.u() & !(1 << n)), (a.u() >> n & 1) as u32, flag::CF)
    };
    BtcOp |T, a, b, _f| {
        let n = b & u64::from(T::BITS - 1);
        (Some(a.u() ^ 1 << n), (a.u() >> n & 1) as u32, flag::CF)
    };
    BsfOp |T, a, _b, _f| match a.u() {
        0 => (None, flag::ZF, flag::ZF),
        v => (Some(v.trailing_zeros().into()), 0, flag::ZF),
    };
    BsrOp |T, a, _b, _f| match a.u() {
        0 => (None, flag::ZF, flag::ZF),
        v => (Some((63 - v.leading_zeros()).into()), 0, flag::ZF),
    };
    LzcntOp |T, a, _b, _f| {
        let n = a.u().leading_zeros() - (64 - T::BITS);
        (Some(n.into()), bit(n == T::BITS, flag::CF) | bit(n == 0, flag::ZF), flag::CF | flag::ZF)
    };
    TzcntOp |T, a, _b, _f| {
        let n = a.u().trailing_zeros().min(T::BITS);
        (Some(n.into()), bit(n == T::BITS, flag::CF) | bit(n == 0, flag::ZF), flag::CF | flag::ZF)
    };
    PopcntOp |T, a, _b, _f| (Some(a.u().count_ones().into()), bit(a.u() == 0, flag::ZF), flag::ALL);
    AndnOp |T, a, b, _f| {
        let r = !a.u() & T::of(b).u();
        (Some(r), zs::<T>(r), flag::ALL & !(flag::AF | flag::PF))
    };
    BlsrOp |T, a, _b, _f| {
        let r = a.u() & a.u().wrapping_sub(1);
        (Some(r), zs::<T>(r) | bit(a.u() == 0, flag::CF), flag::ALL & !(flag::AF | flag::PF))
    };
    BlsiOp |T, a, _b, _f| {
        let r = a.u() & a.u().wrapping_neg();
        (Some(r), zs::<T>(r) | bit(a.u() != 0, flag::CF), flag::ALL & !(flag::AF | flag::PF))
    };
    BlsmskOp |T, a, _b, _f| {
        let r = a.u() ^ a.u().wrapping_sub(1);
        (Some(r), zs::<T>(r) & !flag::ZF | bit(a.u() == 0, flag::CF), flag::ALL & !(flag::AF | flag::PF))
    };
    BextrOp |T, a, b, _f| {
        let (start, len) = ((b & 0xff) as u32, (b >> 8 & 0xff) as u32);
        let v = if start >= T::BITS { 0 } else { a.u() >> start };
        let r = if len >= 64 { v } else { v & ((1 << len) - 1) };
        (Some(r), bit(r == 0, flag::ZF), flag::CF | flag::OF | flag::ZF)
    };
    BzhiOp |T, a, b, _f| {
        let n = (b & 0xff) as u32;
        let r = if n >= T::BITS { a.u() } else { a.u() & ((1 << n) - 1) };
        (Some(r), zs::<T>(r) | bit(n >= T::BITS, flag::CF), flag::ALL & !(flag::AF | flag::PF))
    };
    AdcxOp |T, a, b, f| {
        let wide = u128::from(a.u()) + u128::from(T::of(b).u()) + u128::from(f & 1);
        (Some(wide as u64), bit(wide >> T::BITS != 0, flag::CF), flag::CF)
    };
    AdoxOp |T, a, b, f| {
        let wide = u128::from(a.u()) + u128::from(T::of(b).u()) + u128::from(f & flag::OF != 0);
        (Some(wide as u64), bit(wide >> T::BITS != 0, flag::OF), flag::OF)
    };
    PdepOp |T, a, b, _f| {
        let (mut from, mut mask, mut r) = (a.u(), T::of(b).u(), 0);
        while mask != 0 {
            let low = mask & mask.wrapping_neg();
            r |= if from & 1 != 0 { low } else { 0 };
            from >>= 1;
            mask &= mask - 1;
        }
        (Some(r), 0, 0)
    };
    PextOp |T, a, b, _f| {
        let (mut mask, mut r, mut n) = (T::of(b).u(), 0, 0);
        while mask != 0 {
            let low = mask & mask.wrapping_neg();
            r |= u64::from(a.u() & low != 0) << n;
            n += 1;
            mask &= mask - 1;
        }
        (Some(r), 0, 0)
    };
    BswapOp |T, a, _b, _f| (Some(a.u().swap_bytes() >> (64 - T::BITS)), 0, 0);
}

pub(in crate::interp) unsafe fn eager<O: Eager, T: Int, S: Src, const F: bool>(
    cpu: &mut Cpu,
    op: Next,
) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = S::get(cpu, o);
        // Only the two carry-ins look at the flags of before; for the others this is dead code.
        let f = if F { flags::get(&cpu.env) as u32 } else { 0 };
        let (r, set, mask) = O::calc::<T>(a, b, f);
        if F {
            flags::set(&mut cpu.env, u64::from(f & !mask | set & mask));
        }
        if let Some(r) = r {
            put_t(cpu, o.d, T::of(r));
        }
        op.add(1)
    }
}

/// ADCX and ADOX without their flag result still need the carry.
pub(in crate::interp) unsafe fn eager_carry<O: Eager, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let f = flags::get(&cpu.env) as u32;
        let (r, ..) = O::calc::<T>(T::of(get(cpu, o.a)), get(cpu, o.b), f);
        put_t(cpu, o.d, T::of(r.unwrap_or(0)));
        op.add(1)
    }
}

pub(in crate::interp) unsafe fn crc32<F: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let mut crc = get(cpu, o.a) as u32;
        let v = F::of(get(cpu, o.b)).u();
        for n in 0..F::BITS / 8 {
            crc ^= (v >> (n * 8)) as u32 & 0xff;
            for _ in 0..8 {
                crc = crc >> 1
                    ^ if crc & 1 != 0 {
                        mutants::pick(mutants::I_CRC32, 0x82f6_3b78, 0xedb8_8320)
                    } else {
                        0
                    };
            }
        }
        put(cpu, o.d, crc.into());
        op.add(1)
    }
}
