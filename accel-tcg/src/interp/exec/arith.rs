//! Arithmetic and logic whose flags are kept lazily (SDM vol. 2): the operation's kind, its result and second operand.

use super::super::flags::{self, kind};
use super::super::int::Int;
use super::{Next, Src, cc, get, put_t};
use crate::env::{Cpu, Env};

pub(in crate::interp) trait Bin {
    const KIND: u32;
    fn calc(a: u64, b: u64) -> u64;
}
macro_rules! bins {
    ($($n:ident $k:ident $f:expr;)*) => {$(
        pub(in crate::interp) struct $n;
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

pub(in crate::interp) unsafe fn bin<O: Bin, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn cmp<O: Bin, T: Int, S: Src, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
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

pub(in crate::interp) unsafe fn adc<T: Int, S: Src, const SUB: bool, const F: bool>(
    cpu: &mut Cpu,
    op: Next,
) -> Next {
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

pub(in crate::interp) unsafe fn inc<T: Int, const DEC: bool, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let a = T::of(get(cpu, o.a));
        let r = step::<T, DEC>(&mut cpu.env, a, F);
        put_t(cpu, o.d, r);
        op.add(1)
    }
}

pub(in crate::interp) unsafe fn neg<T: Int, const F: bool>(cpu: &mut Cpu, op: Next) -> Next {
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

pub(in crate::interp) unsafe fn not<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let r = T::of(!get(cpu, o.a));
        put_t(cpu, o.d, r);
        op.add(1)
    }
}
