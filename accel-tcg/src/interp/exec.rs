//! What each operation does: one small function per operation, type and operand form, so that running an operation
//! is one indirect call with everything else known.
//!
//! All functions here are [`super::t0::Handler`]s and share its safety contract; slots come from `lower`.

mod arith;
mod eager;
mod leave;
mod shifts;

use super::flags;
use super::int::Int;
use super::t0::T0;
use crate::env::{Cpu, Env};
use anura_x86::regs::rflags;

pub(super) use arith::*;
pub(super) use eager::*;
pub(crate) use leave::*;
pub(super) use shifts::*;

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
