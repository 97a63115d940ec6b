//! What each operation does: one small function per operation, type and operand form, so that running an operation
//! is one indirect call with everything else known.
//!
//! All functions here are [`super::t0::Handler`]s and share its safety contract; slots come from `lower`.

use super::flags::{self, kind};
use super::int::Int;
use super::t0::{Code, Exit, State, T0};
use crate::env::{Cpu, Env, Fault};
use crate::helpers::Flow;
use crate::ir::op::flag;
use crate::mode::key;
use crate::mutants;
use anura_x86::regs::rflags;
use std::ptr;

pub(super) type Next = *const T0;

/// Reads a slot.
#[inline(always)]
pub(super) unsafe fn get(cpu: &Cpu, slot: u8) -> u64 {
    // SAFETY: every slot lies inside `Env` (asserted in `t0`), which is made of 8-byte words there.
    unsafe { (&raw const cpu.env).cast::<u64>().add(slot as usize).read() }
}

/// Writes a slot.
#[inline(always)]
pub(super) unsafe fn put(cpu: &mut Cpu, slot: u8, v: u64) {
    // SAFETY: as in `get`; `lower` gives only registers and temporaries as destinations.
    unsafe { (&raw mut cpu.env).cast::<u64>().add(slot as usize).write(v) }
}

#[inline(always)]
unsafe fn put_t<T: Int>(cpu: &mut Cpu, slot: u8, v: T) {
    // SAFETY: as for `get` and `put`.
    unsafe {
        let old = if T::BITS < 32 { get(cpu, slot) } else { 0 };
        put(cpu, slot, v.merge(old));
    }
}

/// Where the second operand comes from.
pub(super) trait Src {
    unsafe fn get(cpu: &Cpu, o: &T0) -> u64;
    /// The same for memory operations, whose slot `b` is the index.
    unsafe fn get_mem(cpu: &Cpu, o: &T0) -> u64;
}
/// A slot.
pub(super) struct R;
/// The immediate.
pub(super) struct I;
impl Src for R {
    #[inline(always)]
    unsafe fn get(cpu: &Cpu, o: &T0) -> u64 {
        // SAFETY: the caller's contract.
        unsafe { get(cpu, o.b) }
    }
    #[inline(always)]
    unsafe fn get_mem(cpu: &Cpu, o: &T0) -> u64 {
        // SAFETY: the caller's contract.
        unsafe { get(cpu, o.d) }
    }
}
impl Src for I {
    #[inline(always)]
    unsafe fn get(_: &Cpu, o: &T0) -> u64 {
        o.imm
    }
    #[inline(always)]
    unsafe fn get_mem(_: &Cpu, o: &T0) -> u64 {
        i64::from((o.imm >> 32) as i32) as u64
    }
}

#[inline(always)]
fn cc(env: &mut Env, op: u32, a: u64, b: u64) {
    env.cc_op = op;
    env.cc_a = a;
    env.cc_b = b;
}

// ---- moves ----

pub(super) unsafe fn mov<T: Int, S: Src>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = T::of(S::get(cpu, o));
        put_t(cpu, o.d, v);
        op.add(1)
    }
}

pub(super) unsafe fn zext<F: Int, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = F::of(get(cpu, o.b)).u();
        put_t(cpu, o.d, T::of(v));
        op.add(1)
    }
}

pub(super) unsafe fn sext<F: Int, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = F::of(get(cpu, o.b)).s() as u64;
        put_t(cpu, o.d, T::of(v));
        op.add(1)
    }
}

/// Bits 15:8 of a slot.
pub(super) unsafe fn ext_high(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = get(cpu, o.b) >> 8 & 0xff;
        put(cpu, o.d, v);
        op.add(1)
    }
}

/// Bits 15:8 of a register become the low byte of a slot.
pub(super) unsafe fn ins_high(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = get(cpu, o.d) & !0xff00 | (get(cpu, o.b) & 0xff) << 8;
        put(cpu, o.d, v);
        op.add(1)
    }
}

pub(super) unsafe fn mov_xmm(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    let o = unsafe { &*op };
    let (d, s) = (160 + o.d as usize * 16, 160 + o.b as usize * 16);
    cpu.env.fpu.bytes.copy_within(s..s + 16, d);
    // SAFETY: the handler contract.
    unsafe { op.add(1) }
}

// ---- arithmetic with lazy flags ----

pub(super) trait Bin {
    const KIND: u32;
    fn calc(a: u64, b: u64) -> u64;
}
macro_rules! bins {
    ($($n:ident $k:ident $f:expr;)*) => {$(
        pub(super) struct $n;
        impl Bin for $n {
            const KIND: u32 = kind::$k;
            #[inline(always)]
            fn calc(a: u64, b: u64) -> u64 {
                let f: fn(u64, u64) -> u64 = $f;
                f(a, b)
            }
        }
    )*};
}
bins! {
    AddOp ADD |a, b| a.wrapping_add(b);
    SubOp SUB |a, b| a.wrapping_sub(b);
    AndOp LOGIC |a, b| a & b;
    OrOp LOGIC |a, b| a | b;
    XorOp LOGIC |a, b| a ^ b;
}

pub(super) unsafe fn bin<O: Bin, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(S::get(cpu, o));
        let r = T::of(O::calc(a.u(), b.u()));
        if F {
            cc(&mut cpu.env, O::KIND + T::CC, r.u(), b.u());
        }
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

/// CMP and TEST: flags only.
pub(super) unsafe fn cmp<O: Bin, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(S::get(cpu, o));
        let r = T::of(O::calc(a.u(), b.u()));
        if F {
            cc(&mut cpu.env, O::KIND + T::CC, r.u(), b.u());
        }
        op.add(1)
    }
}

#[inline(always)]
fn with_carry<T: Int, const SUB: bool>(env: &mut Env, a: T, b: T, f: bool) -> T {
    let c = flags::carry(env);
    let (r, k) = match (SUB, c) {
        (false, false) => (a.u().wrapping_add(b.u()), kind::ADD),
        (false, true) => (a.u().wrapping_add(b.u()).wrapping_add(1), kind::ADC1),
        (true, false) => (a.u().wrapping_sub(b.u()), kind::SUB),
        (true, true) => (a.u().wrapping_sub(b.u()).wrapping_sub(1), kind::SBB1),
    };
    let r = T::of(r);
    if f {
        cc(env, k + T::CC, r.u(), b.u());
    }
    r
}

pub(super) unsafe fn adc<T: Int, S: Src, const SUB: bool, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(S::get(cpu, o));
        let r = with_carry::<T, SUB>(&mut cpu.env, a, b, F);
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

#[inline(always)]
fn step<T: Int, const DEC: bool>(env: &mut Env, a: T, f: bool) -> T {
    let r = T::of(if DEC { a.u().wrapping_sub(1) } else { a.u().wrapping_add(1) });
    if f {
        let c = flags::carry(env);
        cc(env, T::CC + if DEC { kind::DEC } else { kind::INC }, r.u(), c.into());
    }
    r
}

pub(super) unsafe fn inc<T: Int, const DEC: bool, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let r = step::<T, DEC>(&mut cpu.env, a, F);
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

pub(super) unsafe fn neg<T: Int, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let r = T::of(a.u().wrapping_neg());
        if F {
            cc(&mut cpu.env, kind::SUB + T::CC, r.u(), a.u());
        }
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

pub(super) unsafe fn not<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let r = T::of(!get(cpu, o.a));
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

// ---- shifts ----

pub(super) const SHL: u8 = 0;
pub(super) const SHR: u8 = 1;
pub(super) const SAR: u8 = 2;
pub(super) const ROL: u8 = 3;
pub(super) const ROR: u8 = 4;
pub(super) const RCL: u8 = 5;
pub(super) const RCR: u8 = 6;

#[inline(always)]
fn shift_flags<T: Int>(env: &mut Env, r: T, cf: bool, of: bool) {
    let b = u64::from(cf) | if of { u64::from(flag::OF) } else { 0 };
    cc(env, kind::SHIFT + T::CC, r.u(), b);
}

/// Carry and overflow alone change; the rest stays.
fn carry_overflow_only(env: &mut Env, cf: bool, of: bool) {
    let mut f = flags::get(env) & !u64::from(flag::CF | flag::OF);
    f |= u64::from(cf) | if of { u64::from(flag::OF) } else { 0 };
    flags::set(env, f);
}

#[inline(always)]
fn shift_value<T: Int, const K: u8>(env: &mut Env, a: T, count: u64, f: bool) -> T {
    let n = (count & if T::BITS == 64 { 63 } else { mutants::pick(mutants::I_SHIFT_MASK, 31, 63) }) as u32;
    if n == 0 && mutants::on(mutants::I_SHIFT_ZERO) && f {
        shift_flags(env, a, false, false);
    }
    if n == 0 {
        return a;
    }
    let bits = T::BITS;
    let sign = |v: T| v.u() >> (bits - 1) & 1 != 0;
    match K {
        SHL => {
            let r = if n >= 64 { 0 } else { a.u() << n };
            let r = if n >= bits { T::of(0) } else { T::of(r) };
            if f {
                let cf = n <= bits
                    && a.u() >> (bits - n.min(bits) + mutants::pick(mutants::I_SHIFT_CF, 0, 1)).min(63) & 1
                        != 0;
                shift_flags(env, r, cf, sign(r) != cf);
            }
            r
        }
        SHR => {
            let r = if n >= bits { T::of(0) } else { T::of(a.u() >> n) };
            if f {
                let cf = n <= bits && a.u() >> (n - 1) & 1 != 0;
                // Defined for one; processors give the top two bits' difference otherwise too.
                shift_flags(env, r, cf, sign(T::of(r.u() << 1)) != sign(r));
            }
            r
        }
        SAR => {
            let wide = mutants::pick(mutants::I_SAR_SIGN, a.s(), a.u() as i64);
            let r = T::of((wide >> n.min(63)) as u64);
            if f {
                let cf = wide >> (n - 1).min(63) & 1 != 0;
                shift_flags(env, r, cf, false);
            }
            r
        }
        ROL => {
            let k = n & (bits - 1);
            let r = if k == 0 { a } else { T::of(a.u() << k | a.u() >> (bits - k)) };
            if f {
                let cf = r.u() & 1 != 0;
                carry_overflow_only(env, cf, mutants::pick(mutants::I_ROL_OF, sign(r) != cf, cf));
            }
            r
        }
        ROR => {
            let k = n & (bits - 1);
            let r = if k == 0 { a } else { T::of(a.u() >> k | a.u() << (bits - k)) };
            if f {
                carry_overflow_only(env, sign(r), sign(r) != sign(T::of(r.u() << 1)));
            }
            r
        }
        _ => {
            // Through carry: a rotation of bits + 1.
            let left = K == RCL;
            let k = n % mutants::pick(mutants::I_RCL_MOD, bits + 1, bits);
            if k == 0 && bits < 32 {
                if f {
                    let c = flags::carry(env);
                    let of = if left { sign(a) != c } else { sign(a) != sign(T::of(a.u() << 1)) };
                    carry_overflow_only(env, c, of);
                }
                return a;
            }
            let c = u128::from(flags::carry(env));
            let v = c << bits | u128::from(a.u());
            let w = bits + 1;
            let mask = (1u128 << w) - 1;
            let v = if left { v << k | v >> (w - k) } else { v >> k | v << (w - k) } & mask;
            let r = T::of(v as u64);
            if f {
                let cf = v >> bits & 1 != 0;
                let of = if left { sign(r) != cf } else { sign(r) != sign(T::of(r.u() << 1)) };
                carry_overflow_only(env, cf, of);
            }
            r
        }
    }
}

pub(super) unsafe fn shift<const K: u8, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let n = S::get(cpu, o) & 0xff;
        let r = shift_value::<T, K>(&mut cpu.env, a, n, F);
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

/// SHLD and SHRD: `c` is the filler's slot.
pub(super) unsafe fn double<const RIGHT: bool, T: Int, S: Src, const F: bool>(
    cpu: &mut Cpu,
    op: Next,
) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a)).u();
        let fill = T::of(get(cpu, o.c)).u();
        let n = (S::get(cpu, o) & if T::BITS == 64 { 63 } else { 31 }) as u32;
        let bits = T::BITS;
        let mut r = T::of(a);
        if n != 0 {
            // Three operands deep: for counts above 16 of 16-bit operands Intel shifts the destination in again, AMD
            // the filler.
            let (x, y) = (u128::from(a), u128::from(fill));
            let again = if bits == 16 && n > 16 && !cpu.vm.config.model.is_intel() { y } else { x };
            let cf;
            if RIGHT {
                let v = x | y << bits | if bits == 16 { again << 32 } else { 0 };
                r = T::of((v >> n) as u64);
                cf = v >> (n - 1) & 1 != 0;
            } else if bits == 16 {
                let v = x << 32 | y << 16 | again;
                r = T::of((v << n >> 32) as u64);
                cf = v << (n - 1) >> 47 & 1 != 0;
            } else {
                let v = x << bits | y;
                r = T::of((v >> (bits - n)) as u64);
                cf = v >> (2 * bits - n - mutants::pick(mutants::I_SHLD_CF, 0, 1)) & 1 != 0;
            }
            if F {
                let sign = |v: u64| v >> (bits - 1) & 1 != 0;
                let cf = cf && (n <= bits || cpu.vm.config.model.is_intel());
                let of = if RIGHT { sign(r.u()) != sign(r.u() << 1) } else { sign(r.u()) != cf };
                shift_flags(&mut cpu.env, r, cf, of);
            }
        }
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

// ---- multiplication and what has eager flags ----

pub(super) unsafe fn mul<const SIGNED: bool, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
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

pub(super) unsafe fn mulh<const SIGNED: bool, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
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

pub(super) unsafe fn div<const SIGNED: bool, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
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
pub(super) trait Eager {
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
        pub(super) struct $n;
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

pub(super) unsafe fn eager<O: Eager, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
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
pub(super) unsafe fn eager_carry<O: Eager, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let f = flags::get(&cpu.env) as u32;
        let (r, ..) = O::calc::<T>(T::of(get(cpu, o.a)), get(cpu, o.b), f);
        put_t(cpu, o.d, T::of(r.unwrap_or(0)));
        op.add(1)
    }
}

pub(super) unsafe fn crc32<F: Int>(cpu: &mut Cpu, op: Next) -> Next {
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

// ---- flags as values ----

pub(super) unsafe fn set<const C: u8>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = u8::from(flags::test::<C>(&cpu.env));
        put_t(cpu, o.d, v);
        op.add(1)
    }
}

pub(super) unsafe fn select<const C: u8, T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = if flags::test::<C>(&cpu.env) { get(cpu, o.a) } else { get(cpu, o.b) };
        put_t(cpu, o.d, T::of(v));
        op.add(1)
    }
}

pub(super) unsafe fn getf(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = flags::get(&cpu.env) | 2;
        put(cpu, o.d, v);
        op.add(1)
    }
}

pub(super) unsafe fn get_rflags(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = cpu.env.rflags() & !(rflags::VM | rflags::RF);
        put(cpu, o.d, v);
        op.add(1)
    }
}

pub(super) unsafe fn setf(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = get(cpu, o.a);
        flags::set(&mut cpu.env, v);
        op.add(1)
    }
}

/// MFENCE: only processors with threads of their own can tell.
pub(super) unsafe fn fence(_: &mut Cpu, op: Next) -> Next {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: the handler contract.
    unsafe { op.add(1) }
}

// ---- addresses ----

#[inline(always)]
pub(super) unsafe fn address(cpu: &Cpu, o: &T0, disp: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        get(cpu, o.a).wrapping_add(get(cpu, o.b) << (o.x & 3)).wrapping_add(get(cpu, o.c)).wrapping_add(disp)
    }
}

pub(super) unsafe fn ea<T: Int, const FULL: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = if FULL {
            address(cpu, o, o.imm)
        } else {
            let off = get(cpu, o.a).wrapping_add(get(cpu, o.b) << (o.x & 3)).wrapping_add(o.imm);
            let off = T::of(off).u();
            let v = off.wrapping_add(get(cpu, o.c));
            // Linear addresses have 32 bits outside of 64-bit code, where FS and GS bases are whole.
            if o.y & 1 != 0 { v } else { v & 0xffff_ffff }
        };
        put(cpu, o.d, v);
        op.add(1)
    }
}

/// LEA: the offset alone, as a register write of the type.
pub(super) unsafe fn lea<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = get(cpu, o.a).wrapping_add(get(cpu, o.b) << (o.x & 3)).wrapping_add(o.imm);
        put_t(cpu, o.d, T::of(v));
        op.add(1)
    }
}

// ---- leaving ----

/// The instruction faults.
#[cold]
#[inline(never)]
pub(super) unsafe fn fault(cpu: &mut Cpu, op: Next, f: Fault) -> Next {
    cpu.t0.fault = f;
    // SAFETY: the handler contract.
    cpu.t0.exit = Exit::Fault(unsafe { (*op).insn });
    ptr::null()
}

/// Whether something wants control after the running instruction.
pub(crate) fn wants_out(cpu: &Cpu) -> bool {
    cpu.signal.poll.load(std::sync::atomic::Ordering::Relaxed) != 0
        || cpu.t0.leave
        || cpu.env.pending_db != 0
        || cpu.mmu.exec_epoch != cpu.t0.epoch
        || cpu.code_dirty()
        || cpu.env.jit.unsure != 0
}

/// Runs the operations of code from its start until they leave.
///
/// # Safety
/// The code is live, and made for the present mode and RIP.
pub(crate) unsafe fn run_ops(cpu: &mut Cpu, code: *const Code) {
    cpu.t0.block = code;
    // SAFETY: the caller's contract.
    unsafe {
        let mut op = (*code).entry.get();
        while !op.is_null() {
            op = ((*op).run)(cpu, op);
        }
    }
}

/// After an access that took the slow way: goes on, or runs the rest of the instruction and leaves.
#[cold]
#[inline(never)]
pub(super) unsafe fn after_slow(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract; the block's operations end with one that leaves, so the walk stays inside.
    unsafe {
        let next = op.add(1);
        let start = cpu.t0.scratch.as_ptr();
        if (start..start.add(64)).contains(&op) || !wants_out(cpu) {
            return next;
        }
        let insn = (*op).insn;
        let code = &*cpu.t0.block;
        let first = next.offset_from_unsigned(code.ops.as_ptr());
        let mut n = 0;
        let mut at = first;
        while at < code.ops.len() && code.ops[at].insn == insn && n < 60 {
            cpu.t0.scratch[n] = code.ops[at];
            n += 1;
            at += 1;
        }
        // The half may also be all of the next instruction, which does not run any more.
        if let Some((_, half)) = code.halves.iter().find(|(i, half)| *i as usize == at && half.insn == insn) {
            cpu.t0.scratch[n] = *half;
            n += 1;
        }
        let imm = code.rip_of(insn + 1);
        cpu.t0.scratch[n] =
            T0 { run: leave, imm, d: 0, a: 0, b: 0, c: 0, x: 0, insn, y: u16::from(insn) + 1 };
        start
    }
}

/// To a constant RIP through the run loop.
pub(super) unsafe fn leave(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    let o = unsafe { &*op };
    cpu.env.rip = o.imm;
    cpu.env.icount += u64::from(o.y);
    cpu.t0.exit = Exit::Check;
    ptr::null()
}

/// First operation of a block whose bytes have changed.
pub(crate) unsafe fn stale(cpu: &mut Cpu, _: Next) -> Next {
    // SAFETY: `block` was set by `enter` to the code that led here.
    cpu.env.rip = unsafe { (*cpu.t0.block).rip };
    cpu.t0.exit = Exit::Lookup;
    cpu.t0.counts.stale += 1;
    ptr::null()
}

/// Begins a block, or leaves if somebody wants attention or the budget does not cover it.
#[inline(always)]
pub(crate) unsafe fn enter(cpu: &mut Cpu, code: *const Code) -> Next {
    // SAFETY: links and the jump cache hold live code (see `State`).
    unsafe {
        let c = &*code;
        if cpu.signal.poll.load(std::sync::atomic::Ordering::Relaxed) != 0
            || cpu.env.icount + u64::from(c.n) > cpu.t0.limit
        {
            cpu.env.rip = c.rip;
            cpu.t0.exit = Exit::Check;
            return ptr::null();
        }
        cpu.t0.block = code;
        c.entry.get()
    }
}

#[inline(always)]
unsafe fn go<const N: usize>(cpu: &mut Cpu, count: u16) -> Next {
    // SAFETY: `block` is the live code that runs.
    unsafe {
        cpu.env.icount += u64::from(count);
        let c = &*cpu.t0.block;
        let to = c.link[N].get();
        if !to.is_null() {
            return enter(cpu, to);
        }
        unlinked(cpu, N)
    }
}

#[inline(never)]
unsafe fn unlinked(cpu: &mut Cpu, n: usize) -> Next {
    // SAFETY: `block` is the live code that runs.
    let c = unsafe { &*cpu.t0.block };
    let rip = c.target[n];
    let linkable = c.key & (key::L64 | key::CS_FLAT) != 0;
    if linkable && (rip ^ c.rip) >> 12 == 0 && c.pa2.is_none() {
        cpu.env.rip = rip;
        cpu.t0.exit = Exit::Link(n as u8);
        return ptr::null();
    }
    // SAFETY: the handler contract.
    unsafe { indirect(cpu, rip) }
}

/// To a RIP that is not in this page, through the jump cache.
#[inline(always)]
pub(super) unsafe fn indirect(cpu: &mut Cpu, rip: u64) -> Next {
    let j = &cpu.t0.jumps[State::jump_index(rip)];
    if j.rip == rip && j.tag == cpu.t0.tag {
        let code = j.code;
        // SAFETY: an entry of this tag holds live code.
        return unsafe { enter(cpu, code) };
    }
    cpu.env.rip = rip;
    cpu.t0.exit = Exit::Lookup;
    ptr::null()
}

pub(super) unsafe fn jmp(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe { go::<0>(cpu, (*op).y) }
}

pub(super) unsafe fn jmp_indirect(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        cpu.env.icount += u64::from(o.y);
        let rip = get(cpu, o.a);
        indirect(cpu, rip)
    }
}

/// CHK.RIP and JMPIND of 64-bit code in one.
pub(super) unsafe fn jmp_checked(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let rip = get(cpu, o.a);
        if ((rip as i64) << 16 >> 16) as u64 != rip && !cpu.env.canonical(rip) {
            return fault(cpu, op, Fault::GP0);
        }
        cpu.env.icount += u64::from(o.y);
        indirect(cpu, rip)
    }
}

/// The selector of segment `imm`.
pub(super) unsafe fn selector(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = cpu.env.seg[(o.imm as usize).min(5)].selector;
        put(cpu, o.d, v.into());
        op.add(1)
    }
}

pub(super) unsafe fn br<const C: u8>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let n = (*op).y;
        if flags::test::<C>(&cpu.env) { go::<0>(cpu, n) } else { go::<1>(cpu, n) }
    }
}

pub(super) unsafe fn brnz<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        if T::of(get(cpu, o.a)).u() != 0 { go::<0>(cpu, o.y) } else { go::<1>(cpu, o.y) }
    }
}

/// A comparison and the branch on it. The flags are stored too: the next block may look at them.
pub(super) unsafe fn cmp_br<O: Bin, T: Int, S: Src, const C: u8>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let b = T::of(S::get(cpu, o));
        let r = T::of(O::calc(a.u(), b.u()));
        cc(&mut cpu.env, O::KIND + T::CC, r.u(), b.u());
        let sub = O::KIND == kind::SUB;
        let sign = r.s() < 0;
        let yes = match C >> 1 {
            1 => sub && a.u() < b.u(),
            2 => r.u() == 0,
            3 => {
                if sub {
                    a.u() <= b.u()
                } else {
                    r.u() == 0
                }
            }
            4 => sign,
            6 => {
                if sub {
                    a.s() < b.s()
                } else {
                    sign
                }
            }
            7 => {
                if sub {
                    a.s() <= b.s()
                } else {
                    sign || r.u() == 0
                }
            }
            _ => {
                // Overflow and parity.
                return if flags::test::<C>(&cpu.env) { go::<0>(cpu, o.y) } else { go::<1>(cpu, o.y) };
            }
        };
        if yes != (C & 1 != 0) { go::<0>(cpu, o.y) } else { go::<1>(cpu, o.y) }
    }
}

/// Faults unless the slot's value may become RIP.
pub(super) unsafe fn chk_rip(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = get(cpu, o.a);
        let ok = if cpu.env.is_64bit() {
            cpu.env.canonical(v)
        } else {
            v <= u64::from(cpu.env.seg[anura_x86::segment::index::CS].limit)
        };
        if ok { op.add(1) } else { fault(cpu, op, Fault::GP0) }
    }
}

/// #AC unless the address has none of the bits in `d`.
pub(super) unsafe fn chk_align(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        if address(cpu, o, o.imm) & u64::from(o.d) == 0 {
            op.add(1)
        } else {
            fault(cpu, op, Fault::with_error(anura_x86::regs::vector::AC, 0))
        }
    }
}

/// Faults unless the bytes lie in the segment.
pub(super) unsafe fn chk_seg(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let off = get(cpu, o.a) & 0xffff_ffff;
        let (bytes, seg, write) = (o.imm & 0xff, (o.imm >> 8 & 7) as usize, o.imm & 1 << 15 != 0);
        if segment_allows(cpu, seg.min(5), off, bytes.max(1), write) {
            op.add(1)
        } else {
            let f = if seg == 2 { Fault::SS0 } else { Fault::GP0 };
            fault(cpu, op, f)
        }
    }
}

/// Whether `bytes` at `off` lie in a segment that allows the access.
pub(crate) fn segment_allows(cpu: &Cpu, seg: usize, off: u64, bytes: u64, write: bool) -> bool {
    let s = &cpu.env.seg[seg];
    let a = s.attr;
    let protected = cpu.env.mode_key & crate::mode::key::PROT != 0;
    if protected
        && (a.unusable() || !a.p() || if write { !a.is_writable() || a.is_code() } else { !a.is_readable() })
    {
        return false;
    }
    let last = off + (bytes - 1);
    let limit = u64::from(s.limit);
    if !a.is_code() && a.is_expand_down() {
        let top = if a.db() { 0xffff_ffff } else { 0xffff };
        off > limit && last <= top
    } else {
        last <= limit
    }
}

/// Raises a fault.
pub(super) unsafe fn raise(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let imm = (*op).imm;
        let f = if imm & 0x100 != 0 { Fault::with_error(imm as u8, 0) } else { Fault::new(imm as u8) };
        fault(cpu, op, f)
    }
}

/// Calls a helper.
pub(super) unsafe fn helper(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract; `imm` points to a site of the running block (see `lower`).
    unsafe {
        let o = &*op;
        let site = &*(o.imm as *const super::t0::Site);
        let mut args = site.args;
        args.a = get(cpu, o.a);
        args.b = get(cpu, o.b);
        args.c = get(cpu, o.c);
        let done = u64::from(o.insn) + 1;
        cpu.env.rip = site.rip;
        cpu.env.insn_in_block = done;
        cpu.t0.slack = cpu.t0.limit - cpu.env.icount - u64::from((*cpu.t0.block).n);
        let key = cpu.env.mode_key;
        match (site.run)(cpu, &args) {
            Ok(Flow::Next) => {
                if key != cpu.env.mode_key {
                    cpu.t0.leave = true;
                }
                if wants_out(cpu) { after_slow(cpu, op) } else { op.add(1) }
            }
            Ok(flow) => end(cpu, flow, args.next_rip, done),
            Err(f) => {
                // Helpers do not know by which segment their operand was addressed.
                let stack = o.y as u8 & crate::ir::Attr::STACK != 0;
                let far = f.vector == anura_x86::regs::vector::GP && f.cr2 != 0;
                fault(cpu, op, if stack && far { Fault::SS0 } else { f })
            }
        }
    }
}

#[inline(never)]
fn end(cpu: &mut Cpu, flow: Flow, next_rip: u64, done: u64) -> Next {
    cpu.t0.exit = Exit::Check;
    match flow {
        Flow::Next | Flow::EndBlock => cpu.env.rip = next_rip,
        Flow::Jumped => {}
        Flow::Halt => {
            cpu.env.rip = next_rip;
            cpu.t0.exit = Exit::Halt;
        }
        Flow::Yield => {
            cpu.env.rip = next_rip;
            cpu.t0.exit = Exit::Yield;
        }
        Flow::Again => {
            // The helper has counted its iterations; this instruction is not over.
            cpu.env.icount += done - 1;
            return ptr::null();
        }
    }
    cpu.env.icount += done;
    ptr::null()
}

/// Whether the instruction of a one-instruction block delivers an event by itself, so that the single-step trap that
/// would follow it is lost.
pub(crate) fn ends_without_trap(code: &Code) -> bool {
    use crate::ir::Help;
    code.sites.first().is_some_and(|s| {
        matches!(s.help, Help::Int | Help::Int3 | Help::Int1 | Help::Into | Help::Syscall | Help::Sysret)
            || (matches!(s.help, Help::MovToSreg | Help::PopSreg | Help::LoadFar) && s.args.reg == 2)
    })
}
