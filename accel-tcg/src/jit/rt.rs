//! Routines that translated code calls through its stubs.
//!
//! Each gets the address of the environment, which is the processor's, with the guest's general registers stored
//! there, and catches its own panics: nothing unwinds through translated code. Their calling convention is the C one of
//! x86-64 Linux (System V), which the stubs are written for.

use super::chaos::Chaos;
use super::emit::{Helper, Step};
use crate::env::{Cpu, Fault};
use crate::helpers::{Flow, HelperArgs};
use crate::interp::flags;
use crate::interp::t0::Exit;
use crate::interp::{after_step, run_ops};
use crate::mmu::View;
use crate::mode::key;
use crate::show::Items;
use anura_x86::Shadow;
use anura_x86::regs::{dr7, rflags, vector};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::Ordering;

/// What [`step`] and [`helper`] answer: on with the block.
const GO_ON: u32 = 0;
/// Back to the run loop.
const LEAVE: u32 = 1;
/// On with the block at RIP.
pub(super) const CHAIN: u32 = 2;

/// What routines and the run loop exchange.
#[derive(Default)]
pub struct Shared {
    /// Instructions are counted.
    pub(crate) counted: bool,
    /// Accidents.
    pub(crate) chaos: Chaos,
    /// What the log is to show.
    pub(crate) log: Items,
    /// Events that the log has shown.
    pub(crate) delivered: u64,
    /// The local APIC may have something.
    pub(crate) attention: bool,
    /// The page fault that the access had for which code was left just now.
    pub(crate) fault: Option<Fault>,
    /// A routine panicked.
    pub(crate) panic: Option<String>,
}

fn guarded<T>(cpu: &mut Cpu, otherwise: T, f: impl FnOnce(&mut Cpu) -> T) -> T {
    match catch_unwind(AssertUnwindSafe(|| f(cpu))) {
        Ok(v) => v,
        Err(p) => {
            let text = p
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| p.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "unknown panic".into());
            cpu.jit.panic = Some(text);
            otherwise
        }
    }
}

/// An access that the inline check refused. The host address, or null to leave.
pub(super) unsafe extern "C" fn slow(cpu: *mut Cpu, va: u64, what: u32) -> *mut u8 {
    // SAFETY: the stub passes the processor that runs; translated code holds no reference to it.
    let cpu = unsafe { &mut *cpu };
    guarded(cpu, ptr::null_mut(), |cpu| access(cpu, va, what))
}

fn access(cpu: &mut Cpu, va: u64, what: u32) -> *mut u8 {
    let len = u64::from(what & 0xff);
    let write = what & super::emit::WRITE != 0;
    let view = if what & super::emit::STACK != 0 { View::Stack } else { View::Data };
    // Where alignment is checked, that is the interpreter's, also before a walk of the tables marks anything.
    if cpu.env.mode_key & key::AC != 0 || cpu.jit.chaos.one_in(8) {
        return ptr::null_mut();
    }
    let crossing = (va & 0xfff) + len > 0x1000;
    if crossing {
        return if write { ptr::null_mut() } else { across(cpu, va, len, view) };
    }
    if write && let Some(p) = cpu.beside_code(va, len) {
        return p;
    }
    let found = if write {
        cpu.rmw_ptr(va, len, view)
    } else {
        cpu.read_ptr(va, len, view).map(|p| p.map(|p| p.cast_mut()))
    };
    match found {
        Ok(Some(p)) if cpu.mmu.exec_epoch == cpu.t0.epoch => {
            cpu.publish_tlb();
            p
        }
        // Vectors may have to be aligned; that fault comes first.
        Err(f) if f.vector == vector::PF && len <= 8 => {
            cpu.jit.fault = Some(f);
            ptr::null_mut()
        }
        _ => ptr::null_mut(),
    }
}

impl Cpu {
    /// Tells translated code where the TLB's entries are.
    #[inline(always)]
    pub(crate) fn publish_tlb(&mut self) {
        let table = self.mmu.data_table();
        self.env.jit.tlb = table.base as u64;
        self.env.jit.tlb_mask = table.mask;
    }
}

/// A load from two pages of RAM, by way of a buffer.
fn across(cpu: &mut Cpu, va: u64, len: u64, view: View) -> *mut u8 {
    let first = 0x1000 - (va & 0xfff);
    let next = (va & !0xfff).wrapping_add(0x1000);
    if len > 64 || !cpu.env.is_64bit() || !cpu.env.canonical(next) {
        return ptr::null_mut();
    }
    let (Ok(Some(a)), Ok(Some(b))) = (cpu.read_ptr(va, first, view), cpu.read_ptr(next, len - first, view))
    else {
        return ptr::null_mut();
    };
    if cpu.mmu.exec_epoch != cpu.t0.epoch {
        return ptr::null_mut();
    }
    cpu.publish_tlb();
    let to = cpu.env.jit.bounce.as_mut_ptr().cast::<u8>();
    // SAFETY: both ranges were just translated to RAM, each inside of its page; the buffer has 64 bytes.
    unsafe {
        for i in 0..first as usize {
            to.add(i).write(a.add(i).read_volatile());
        }
        for i in 0..(len - first) as usize {
            to.add(first as usize + i).write(b.add(i).read_volatile());
        }
    }
    to
}

impl Cpu {
    /// Tells translated code what the present mapping and mode are.
    #[inline]
    pub(crate) fn announce(&mut self) {
        let mode = u64::from(self.env.mode_key);
        let epochs = self.mmu.epochs();
        self.t0.epoch = self.mmu.exec_epoch;
        let j = &mut self.env.jit;
        j.epoch = epochs;
        j.tag = epochs.map(|e| e << 24 | mode);
        self.publish_tlb();
    }

    /// Whether nothing waits at this boundary and the next instruction need not run alone, so that the run loop may be
    /// left out.
    #[inline]
    pub(crate) fn undisturbed(&self) -> bool {
        let env = &self.env;
        self.signal.poll.load(Ordering::Relaxed) == 0
            && !self.jit.attention
            && !self.code_dirty()
            && env.pending.is_none()
            && env.pending_db == 0
            && !(env.halted || env.wait_sipi || env.shutdown)
            && (!self.jit.counted || env.icount < self.t0.limit)
            && !self.runs_alone(true)
    }

    /// Whether the next instruction must run alone.
    #[inline]
    pub(crate) fn runs_alone(&self, translating: bool) -> bool {
        let env = &self.env;
        // The shadow of STI is of no consequence where nothing waits: translated code looks at events after its first
        // instruction at the earliest.
        let shaded = match env.shadow {
            Shadow::None => false,
            Shadow::Sti => {
                !translating || self.jit.attention || self.signal.poll.load(Ordering::Relaxed) != 0
            }
            _ => true,
        };
        let flags = if translating { rflags::TF } else { rflags::TF | rflags::RF };
        shaded
            || env.eflags_sys & flags != 0
            || env.dr7 & dr7::ENABLES != 0
            || self.t0.debug.single_step
            || !self.t0.debug.breakpoints.is_empty()
    }

    /// After an instruction that ends its block, with the exact count in the environment: whether the block at RIP may
    /// be entered without the run loop.
    fn may_chain(&mut self) -> bool {
        // Where instructions are counted, the next block may not fit, and a shadow and RF must then still be there.
        let plain =
            !self.jit.counted || self.env.shadow == Shadow::None && self.env.eflags_sys & rflags::RF == 0;
        let ok = plain
            && !self.t0.leave
            && self.env.jit.unsure == 0
            && self.env.mode_key & (key::L64 | key::CS_FLAT) != 0
            && self.undisturbed()
            && !self.jit.chaos.any()
            && !self.jit.log.each_block();
        if ok {
            self.env.shadow = Shadow::None;
            self.env.eflags_sys &= !rflags::RF;
            self.env.insn_in_block = 0;
            if self.jit.counted {
                self.env.jit.budget = self.t0.limit.wrapping_sub(self.env.icount) as i64;
            }
            self.announce();
        }
        ok
    }
}

/// Runs one instruction by the interpreter.
pub(super) unsafe extern "C" fn step(cpu: *mut Cpu, step: *const Step) -> u32 {
    // SAFETY: as in `slow`; the step belongs to the running block.
    let (cpu, step) = unsafe { (&mut *cpu, &*step) };
    guarded(cpu, LEAVE, |cpu| interpret(cpu, step))
}

fn interpret(cpu: &mut Cpu, step: &Step) -> u32 {
    flush(cpu);
    let insn = u64::from(step.insn);
    let limit = cpu.t0.limit;
    if cpu.jit.counted {
        let left = cpu.env.jit.budget as u64;
        let start = limit.wrapping_sub(left).wrapping_sub(u64::from(step.n));
        cpu.env.icount = start.wrapping_add(insn);
        cpu.t0.limit = cpu.env.icount.wrapping_add(1).wrapping_add(left);
    }
    // For a fault, which leaves it alone.
    cpu.env.rip = step.code.rip;
    let before = cpu.env.icount;
    let key = cpu.env.mode_key;
    cpu.t0.leave = false;
    // SAFETY: the code was made for the running block's mode; the block lives while it runs.
    unsafe { run_ops(cpu, &raw const *step.code) };
    cpu.t0.limit = limit;
    let counted = cpu.env.icount.wrapping_sub(before);
    if cpu.jit.counted && cpu.t0.exit == Exit::Check && counted > 1 {
        cpu.env.jit.budget -= (counted - 1) as i64;
    }
    let goes_on = !step.ends
        && cpu.t0.exit == Exit::Check
        && cpu.env.rip == step.next
        && cpu.env.mode_key == key
        && !after_step(cpu)
        && counted == 1;
    if goes_on {
        cpu.publish_tlb();
        return GO_ON;
    }
    let ended = matches!(cpu.t0.exit, Exit::Check | Exit::Lookup | Exit::Link(_));
    if ended && cpu.may_chain() { CHAIN } else { LEAVE }
}

/// Calls a helper.
pub(super) unsafe extern "C" fn helper(cpu: *mut Cpu, h: *const Helper) -> u32 {
    // SAFETY: as in `step`.
    let (cpu, h) = unsafe { (&mut *cpu, &*h) };
    guarded(cpu, LEAVE, |cpu| call(cpu, h))
}

fn call(cpu: &mut Cpu, h: &Helper) -> u32 {
    flush(cpu);
    let insn = u64::from(h.insn);
    let done = insn + 1;
    let left = cpu.env.jit.budget as u64;
    if cpu.jit.counted {
        cpu.env.icount = cpu.t0.limit.wrapping_sub(left).wrapping_sub(u64::from(h.n));
        cpu.t0.slack = left;
    } else {
        cpu.t0.slack = u64::MAX >> 2;
    }
    let start = cpu.env.icount;
    let mut args: HelperArgs = h.site.args;
    let given = &cpu.env.jit.args;
    args.a = if h.args & 1 != 0 { given[0] } else { 0 };
    args.b = if h.args & 2 != 0 { given[1] } else { 0 };
    args.c = if h.args & 4 != 0 { given[2] } else { 0 };
    cpu.env.rip = h.site.rip;
    cpu.env.insn_in_block = done;
    cpu.t0.leave = false;
    let key = cpu.env.mode_key;
    cpu.t0.exit = Exit::Check;
    match (h.site.run)(cpu, &args) {
        Ok(Flow::Next) => {
            if key == cpu.env.mode_key && !after_step(cpu) {
                if cpu.jit.counted {
                    cpu.env.jit.budget -= cpu.env.icount.wrapping_sub(start) as i64;
                    if cpu.env.jit.budget < 0 {
                        cpu.env.rip = h.next;
                        cpu.env.icount += done;
                        return LEAVE;
                    }
                }
                cpu.publish_tlb();
                return GO_ON;
            }
            cpu.env.rip = args.next_rip;
        }
        Ok(Flow::EndBlock) => cpu.env.rip = args.next_rip,
        Ok(Flow::Jumped) => {}
        Ok(Flow::Halt) => {
            cpu.env.rip = args.next_rip;
            cpu.t0.exit = Exit::Halt;
        }
        Ok(Flow::Yield) => {
            cpu.env.rip = args.next_rip;
            cpu.t0.exit = Exit::Yield;
        }
        Ok(Flow::Again) => {
            cpu.env.icount += insn;
            return LEAVE;
        }
        Err(f) => {
            let far = f.vector == anura_x86::regs::vector::GP && f.cr2 != 0;
            cpu.t0.fault = if h.stack && far { Fault::SS0 } else { f };
            cpu.t0.exit = Exit::Fault(0);
            cpu.env.icount += insn;
            return LEAVE;
        }
    }
    cpu.env.icount += done;
    if cpu.t0.exit == Exit::Check && cpu.may_chain() { CHAIN } else { LEAVE }
}

/// Puts CF where INC and DEC want it.
pub(super) unsafe extern "C" fn carry(cpu: *mut Cpu) {
    // SAFETY: as in `slow`.
    let cpu = unsafe { &mut *cpu };
    let c = u64::from(flags::carry(&cpu.env));
    cpu.env.cc_b = cpu.env.cc_b & !0xff | c;
}

/// The status flags, as EFLAGS has them.
pub(super) unsafe extern "C" fn status(cpu: *const Cpu) -> u32 {
    // SAFETY: as in `slow`.
    flags::get(unsafe { &(*cpu).env }) as u32
}

/// Brings x87 registers home, if they are in the host's.
pub(super) unsafe extern "C" fn flush_x87(cpu: *mut Cpu) {
    // SAFETY: as in `slow`.
    flush(unsafe { &mut *cpu });
}

fn flush(cpu: &mut Cpu) {
    if cpu.env.jit.live & 4 == 0 {
        return;
    }
    cpu.env.jit.live &= !4;
    #[cfg(target_arch = "x86_64")]
    {
        #[repr(align(64))]
        struct Image([u8; 512]);
        let mut image = Image([0; 512]);
        // SAFETY: the image is aligned and large enough; what FNINIT destroys has just been saved.
        unsafe {
            std::arch::asm!("fxsave64 [{0}]", "fninit", in(reg) image.0.as_mut_ptr(), options(nostack));
        }
        let to = &mut cpu.env.fpu.bytes;
        // Control, status and tags; the registers. The instruction's and operand's addresses are kept by the code.
        to[0..5].copy_from_slice(&image.0[0..5]);
        to[32..160].copy_from_slice(&image.0[32..160]);
    }
}
