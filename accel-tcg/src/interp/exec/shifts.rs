//! Shifts and rotates, double ones too (SDM vol. 2). Where the manual leaves a flag undefined, it is what processors give.

use super::super::flags::{self, kind};
use super::super::int::Int;
use super::{Next, Src, cc, get, put_t};
use crate::env::{Cpu, Env};
use crate::ir::op::flag;
use crate::mutants;

pub(in crate::interp) const SHL: u8 = 0;
pub(in crate::interp) const SHR: u8 = 1;
pub(in crate::interp) const SAR: u8 = 2;
pub(in crate::interp) const ROL: u8 = 3;
pub(in crate::interp) const ROR: u8 = 4;
pub(in crate::interp) const RCL: u8 = 5;
pub(in crate::interp) const RCR: u8 = 6;

#[inline(always)]
pub(super) fn shift_flags<T: Int>(env: &mut Env, r: T, cf: bool, of: bool) {
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

pub(in crate::interp) unsafe fn shift<const K: u8, T: Int, S: Src, const F: bool>(
    cpu: &mut Cpu,
    op: Next,
) -> Next {
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
pub(in crate::interp) unsafe fn double<const RIGHT: bool, T: Int, S: Src, const F: bool>(
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
