//! Leaving: faults, checks, helpers, branches, and the way from block to block by links and the jump cache.

use super::super::flags::{self, kind};
use super::super::int::Int;
use super::super::t0::{Code, Exit, State, T0};
use super::{Bin, Next, Src, address, cc, get, put};
use crate::env::{Cpu, Fault};
use crate::helpers::Flow;
use crate::mode::key;
use std::ptr;

/// The instruction faults.
#[cold]
#[inline(never)]
pub(in crate::interp) unsafe fn fault(cpu: &mut Cpu, op: Next, f: Fault) -> Next {
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
pub(in crate::interp) unsafe fn after_slow(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn leave(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn indirect(cpu: &mut Cpu, rip: u64) -> Next {
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

pub(in crate::interp) unsafe fn jmp(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe { go::<0>(cpu, (*op).y) }
}

pub(in crate::interp) unsafe fn jmp_indirect(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        cpu.env.icount += u64::from(o.y);
        let rip = get(cpu, o.a);
        indirect(cpu, rip)
    }
}

/// CHK.RIP and JMPIND of 64-bit code in one.
pub(in crate::interp) unsafe fn jmp_checked(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn selector(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        let v = cpu.env.seg[(o.imm as usize).min(5)].selector;
        put(cpu, o.d, v.into());
        op.add(1)
    }
}

pub(in crate::interp) unsafe fn br<const C: u8>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let n = (*op).y;
        if flags::test::<C>(&cpu.env) { go::<0>(cpu, n) } else { go::<1>(cpu, n) }
    }
}

pub(in crate::interp) unsafe fn brnz<T: Int>(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let o = &*op;
        if T::of(get(cpu, o.a)).u() != 0 { go::<0>(cpu, o.y) } else { go::<1>(cpu, o.y) }
    }
}

/// A comparison and the branch on it. The flags are stored too: the next block may look at them.
pub(in crate::interp) unsafe fn cmp_br<O: Bin, T: Int, S: Src, const C: u8>(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn chk_rip(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn chk_align(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn chk_seg(cpu: &mut Cpu, op: Next) -> Next {
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
pub(in crate::interp) unsafe fn raise(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract.
    unsafe {
        let imm = (*op).imm;
        let f = if imm & 0x100 != 0 { Fault::with_error(imm as u8, 0) } else { Fault::new(imm as u8) };
        fault(cpu, op, f)
    }
}

/// Calls a helper.
pub(in crate::interp) unsafe fn helper(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract; `imm` points to a site of the running block (see `lower`).
    unsafe {
        let o = &*op;
        let site = &*(o.imm as *const crate::interp::t0::Site);
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
