//! Loads, stores and read-modify-write operations.
//!
//! The fast path is one TLB compare; what it does not cover goes to [`Cpu::load`] and [`Cpu::store`], after which the
//! instruction may be the last one before the run loop has a look ([`super::exec::after_slow`]).
//!
//! The low byte of `y` holds attributes, its high byte one more slot. For operations with an immediate, the low half
//! of `imm` is the displacement.

use super::exec::{Bin, Next, Src, address, after_slow, fault, get, indirect, put};
use super::flags::{self, kind};
use super::int::Int;
use super::t0::T0;
use crate::env::{Cpu, Exec, Fault};
use crate::ir::Attr;
use crate::ir::op::flag;
use crate::mmu::View;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

fn view(o: &T0) -> View {
    if o.y as u8 & Attr::STACK != 0 { View::Stack } else { View::Data }
}

#[cold]
#[inline(never)]
pub(super) fn load_slow(cpu: &mut Cpu, o: &T0, va: u64, len: usize) -> Exec<u64> {
    cpu.env.insn_in_block = u64::from(o.insn) + 1;
    let mut buf = [0; 8];
    cpu.load(va, &mut buf[..len], view(o))?;
    Ok(u64::from_le_bytes(buf))
}

#[cold]
#[inline(never)]
pub(super) fn store_slow(cpu: &mut Cpu, o: &T0, va: u64, len: usize, v: u64) -> Exec<()> {
    cpu.env.insn_in_block = u64::from(o.insn) + 1;
    cpu.store(va, &v.to_le_bytes()[..len], view(o))
}

#[inline(always)]
unsafe fn put_t<T: Int>(cpu: &mut Cpu, slot: u8, v: T) {
    // SAFETY: the handler contract.
    unsafe {
        let old = if T::BITS < 32 { get(cpu, slot) } else { 0 };
        put(cpu, slot, v.merge(old));
    }
}

macro_rules! access {
    ($cpu:ident, $op:ident, $value:expr) => {
        match $value {
            Ok(v) => v,
            Err(f) => return fault($cpu, $op, f),
        }
    };
}

pub(super) unsafe fn ld<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        if let Some(v) = cpu.try_read::<T>(va) {
            put_t(cpu, o.d, v);
            return op.add(1);
        }
        let v = access!(cpu, op, load_slow(cpu, o, va, T::BITS as usize / 8));
        put_t(cpu, o.d, T::of(v));
        after_slow(cpu, op)
    }
}

/// A load and the conversion that follows it. `S`: sign-extended; `W`: to 64 bits, else to 32.
pub(super) unsafe fn ldx<T: Int, const S: bool, const W: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        let (v, slow) = match cpu.try_read::<T>(va) {
            Some(v) => (v, false),
            None => (T::of(access!(cpu, op, load_slow(cpu, o, va, T::BITS as usize / 8))), true),
        };
        let v = if S { v.s() as u64 } else { v.u() };
        put(cpu, o.d, if W { v } else { v & 0xffff_ffff });
        if slow { after_slow(cpu, op) } else { op.add(1) }
    }
}

/// A store; `S` says whether the value is a slot (`d`) or the upper half of the immediate.
pub(super) unsafe fn st<T: Int, S: Src, const IMM: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, disp::<IMM>(o));
        let v = T::of(S::get_mem(cpu, o));
        if cpu.try_write::<T>(va, v) {
            return op.add(1);
        }
        access!(cpu, op, store_slow(cpu, o, va, T::BITS as usize / 8, v.u()));
        after_slow(cpu, op)
    }
}

#[inline(always)]
fn disp<const IMM: bool>(o: &T0) -> u64 {
    if IMM { i64::from(o.imm as i32) as u64 } else { o.imm }
}

/// PUSH of 64 bits: store below the stack pointer, then move it.
pub(super) unsafe fn push64<S: Src>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = cpu.env.gpr[4].wrapping_sub(8);
        let v = S::get(cpu, o);
        if cpu.try_write::<u64>(va, v) {
            cpu.env.gpr[4] = va;
            return op.add(1);
        }
        access!(cpu, op, store_slow(cpu, o, va, 8, v));
        cpu.env.gpr[4] = va;
        after_slow(cpu, op)
    }
}

/// POP of 64 bits into a slot.
pub(super) unsafe fn pop64(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = cpu.env.gpr[4];
        if let Some(v) = cpu.try_read::<u64>(va) {
            cpu.env.gpr[4] = va.wrapping_add(8);
            put(cpu, o.d, v);
            return op.add(1);
        }
        let v = access!(cpu, op, load_slow(cpu, o, va, 8));
        cpu.env.gpr[4] = va.wrapping_add(8);
        put(cpu, o.d, v);
        after_slow(cpu, op)
    }
}

/// RET of 64-bit code: pops, checks and jumps.
pub(super) unsafe fn ret64(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = cpu.env.gpr[4];
        let rip = match cpu.try_read::<u64>(va) {
            Some(v) => v,
            None => access!(cpu, op, load_slow(cpu, o, va, 8)),
        };
        if ((rip as i64) << 16 >> 16) as u64 != rip && !cpu.env.canonical(rip) {
            return fault(cpu, op, Fault::GP0);
        }
        cpu.env.gpr[4] = va.wrapping_add(o.imm);
        cpu.env.icount += u64::from(o.y >> 8);
        indirect(cpu, rip)
    }
}

/// A load that a store to the same place will follow: faults as the store would.
pub(super) unsafe fn ldw<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        access!(cpu, op, cpu.probe_write(va, T::BITS as usize / 8, view(o)));
        let v = access!(cpu, op, load_slow(cpu, o, va, T::BITS as usize / 8));
        put_t(cpu, o.d, T::of(v));
        op.add(1)
    }
}

/// A word that can be exchanged atomically.
pub(super) trait Word: Int {
    /// Stores `new` where `old` was read, if nobody came between.
    ///
    /// # Safety
    /// `p` is a host address of the word, valid for reads and writes.
    unsafe fn exchange(p: *mut u8, old: Self, new: Self) -> bool;
}
macro_rules! words {
    ($($t:ty, $a:ty;)*) => {$(impl Word for $t {
        #[inline(always)]
        unsafe fn exchange(p: *mut u8, old: Self, new: Self) -> bool {
            if !(p as usize).is_multiple_of(size_of::<$t>()) {
                // SAFETY: the caller's contract.
                return unsafe { crate::mmu::locked::exchange_at(p, size_of::<$t>() as u64, old.into(), new.into()) };
            }
            // SAFETY: the caller's contract, and the alignment was just checked.
            let a = unsafe { <$a>::from_ptr(p.cast()) };
            a.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        }
    })*};
}
words! { u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64; }

/// Reads, computes and writes one word as one access: faults like a write, before anything is changed.
#[inline(always)]
pub(super) unsafe fn modify<T: Word>(
    cpu: &mut Cpu,
    op: Next,
    va: u64,
    lock: bool,
    mut f: impl FnMut(&mut Cpu, T) -> T,
) -> Result<(T, bool), Fault> {
    // SAFETY: the handler contract.
    let o = unsafe { &*op };
    if let Some(p) = cpu.try_write_ptr(va, u64::from(T::BITS / 8)) {
        loop {
            // SAFETY: the TLB's write tag says that these bytes are plain RAM inside of one page.
            let old = unsafe { p.cast::<T>().read_unaligned() };
            let new = f(cpu, old);
            if !lock {
                // SAFETY: as above.
                unsafe { p.cast::<T>().write_unaligned(new) };
                return Ok((old, false));
            }
            // SAFETY: as above.
            if unsafe { T::exchange(p, old, new) } {
                return Ok((old, false));
            }
        }
    }
    if lock {
        cpu.env.insn_in_block = u64::from(o.insn) + 1;
        let f = &mut |cpu: &mut Cpu, old| f(cpu, T::of(old)).u();
        return cpu.locked(va, u64::from(T::BITS / 8), view(o), f).map(|old| (T::of(old), true));
    }
    cpu.probe_write(va, T::BITS as usize / 8, view(o))?;
    let old = T::of(load_slow(cpu, o, va, T::BITS as usize / 8)?);
    let new = f(cpu, old);
    store_slow(cpu, o, va, T::BITS as usize / 8, new.u())?;
    Ok((old, true))
}

macro_rules! finish {
    ($cpu:ident, $op:ident, $slow:expr) => {
        if $slow { after_slow($cpu, $op) } else { $op.add(1) }
    };
}

/// ALU operation on memory. `IMM`: the operand is the upper half of the immediate.
pub(super) unsafe fn rmw<O: Bin, T: Word, S: Src, const IMM: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, disp::<IMM>(o));
        let b = T::of(S::get_mem(cpu, o));
        let mut result = b;
        let lock = o.y as u8 & Attr::LOCK != 0;
        let (old, slow) = access!(
            cpu,
            op,
            modify::<T>(cpu, op, va, lock, |_, old| {
                result = T::of(O::calc(old.u(), b.u()));
                result
            })
        );
        if o.y as u8 & Attr::FLAGS != 0 {
            cpu.env.cc_op = O::KIND + T::CC;
            cpu.env.cc_a = result.u();
            cpu.env.cc_b = b.u();
        }
        put_t(cpu, (o.y >> 8) as u8, old);
        finish!(cpu, op, slow)
    }
}

pub(super) const ADC: u8 = 0;
pub(super) const SBB: u8 = 1;
pub(super) const INC: u8 = 2;
pub(super) const DEC: u8 = 3;
pub(super) const NEG: u8 = 4;
pub(super) const NOT: u8 = 5;
pub(super) const XCHG: u8 = 6;
pub(super) const BTS: u8 = 7;
pub(super) const BTR: u8 = 8;
pub(super) const BTC: u8 = 9;

/// The other operations on memory; the operand is slot `d`, the old value goes to the slot in `y`.
pub(super) unsafe fn rmw_other<const K: u8, T: Word>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        let b = T::of(get(cpu, o.d)).u();
        let lock = o.y as u8 & Attr::LOCK != 0;
        let carry = if matches!(K, ADC | SBB | INC | DEC) { flags::carry(&cpu.env) } else { false };
        let bit = 1u64 << (b & u64::from(T::BITS - 1));
        let calc = |a: u64| match K {
            ADC => a.wrapping_add(b).wrapping_add(carry.into()),
            SBB => a.wrapping_sub(b).wrapping_sub(carry.into()),
            INC => a.wrapping_add(1),
            DEC => a.wrapping_sub(1),
            NEG => a.wrapping_neg(),
            NOT => !a,
            XCHG => b,
            BTS => a | bit,
            BTR => a & !bit,
            _ => a ^ bit,
        };
        let (old, slow) = access!(cpu, op, modify::<T>(cpu, op, va, lock, |_, old| T::of(calc(old.u()))));
        let r = T::of(calc(old.u())).u();
        if o.y as u8 & Attr::FLAGS != 0 {
            let (k, x, y) = match K {
                ADC => (if carry { kind::ADC1 } else { kind::ADD }, r, b),
                SBB => (if carry { kind::SBB1 } else { kind::SUB }, r, b),
                INC => (kind::INC, r, carry.into()),
                DEC => (kind::DEC, r, carry.into()),
                NEG => (kind::SUB, r, old.u()),
                _ => {
                    let f = flags::get(&cpu.env) & !u64::from(flag::CF) | u64::from(old.u() & bit != 0);
                    flags::set(&mut cpu.env, f);
                    (u32::MAX, 0, 0)
                }
            };
            if k != u32::MAX {
                cpu.env.cc_op = k + T::CC;
                cpu.env.cc_a = x;
                cpu.env.cc_b = y;
            }
        }
        put_t(cpu, (o.y >> 8) as u8, old);
        finish!(cpu, op, slow)
    }
}

/// CMPXCHG: compares with rAX; the new value is slot `d`, the old one goes to the slot in `y`.
pub(super) unsafe fn cmpxchg<T: Word>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        let new = T::of(get(cpu, o.d));
        let expected = T::of(cpu.env.gpr[0]);
        let lock = o.y as u8 & Attr::LOCK != 0;
        let (old, slow) = access!(
            cpu,
            op,
            modify::<T>(cpu, op, va, lock, |_, old| if old == expected { new } else { old })
        );
        cpu.env.cc_op = kind::SUB + T::CC;
        cpu.env.cc_a = T::of(expected.u().wrapping_sub(old.u())).u();
        cpu.env.cc_b = old.u();
        put_t(cpu, (o.y >> 8) as u8, old);
        finish!(cpu, op, slow)
    }
}

/// CMPXCHG8B and CMPXCHG16B.
pub(super) unsafe fn cmpxchg2<const WIDE: bool>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        let len = if WIDE { 16 } else { 8 };
        if WIDE && va & 15 != 0 {
            return fault(cpu, op, Fault::GP0);
        }
        cpu.env.insn_in_block = u64::from(o.insn) + 1;
        let g = cpu.env.gpr;
        let pair = |high: u64, low: u64| {
            if WIDE {
                u128::from(high) << 64 | u128::from(low)
            } else {
                u128::from(high as u32) << 32 | u128::from(low as u32)
            }
        };
        let (expected, new) = (pair(g[2], g[0]), pair(g[1], g[3]));
        let old = access!(cpu, op, cpu.exchange_pair(va, len, view(o), expected, new));
        let equal = old == expected;
        if !equal {
            let (low, high) = if WIDE {
                (old as u64, (old >> 64) as u64)
            } else {
                (u64::from(old as u32), u64::from((old >> 32) as u32))
            };
            (cpu.env.gpr[0], cpu.env.gpr[2]) = (low, high);
        }
        let f = flags::get(&cpu.env) & !u64::from(flag::ZF) | if equal { u64::from(flag::ZF) } else { 0 };
        flags::set(&mut cpu.env, f);
        after_slow(cpu, op)
    }
}

/// Offset of an XMM register in the state image.
fn xmm(n: u8) -> usize {
    160 + (n as usize & 15) * 16
}

pub(super) unsafe fn ld128(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        if o.y as u8 & Attr::ALIGNED != 0 && va & 15 != 0 {
            return fault(cpu, op, Fault::GP0);
        }
        let at = xmm(o.d);
        let to: &mut [u8; 16] = &mut *cpu.env.fpu.bytes.as_mut_ptr().add(at).cast();
        if let Some(p) = cpu.try_read_ptr(va, 16) {
            *to = p.cast::<[u8; 16]>().read_volatile();
            return op.add(1);
        }
        cpu.env.insn_in_block = u64::from(o.insn) + 1;
        let mut buf = [0; 16];
        access!(cpu, op, cpu.load(va, &mut buf, view(o)));
        cpu.env.fpu.bytes[at..at + 16].copy_from_slice(&buf);
        after_slow(cpu, op)
    }
}

pub(super) unsafe fn st128(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let va = address(cpu, o, o.imm);
        if o.y as u8 & Attr::ALIGNED != 0 && va & 15 != 0 {
            return fault(cpu, op, Fault::GP0);
        }
        let at = xmm(o.d);
        let mut buf = [0; 16];
        buf.copy_from_slice(&cpu.env.fpu.bytes[at..at + 16]);
        if let Some(p) = cpu.try_write_ptr(va, 16) {
            p.cast::<[u8; 16]>().write_volatile(buf);
            return op.add(1);
        }
        cpu.env.insn_in_block = u64::from(o.insn) + 1;
        access!(cpu, op, cpu.store(va, &buf, view(o)));
        after_slow(cpu, op)
    }
}
