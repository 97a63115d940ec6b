//! Routines that translated code calls for what is too large or too rare for operations.
//!
//! What each gets ([`HelperArgs`]; absent means 0). Every routine checks privilege itself, commits last, and does
//! not advance RIP: `env.rip` is the running instruction's, `next_rip` the one behind it.
//!
//! | helper | a | b | c | other |
//! |---|---|---|---|---|
//! | jmp.far, call.far | offset | selector | | size |
//! | ret.far | | | | size, imm = bytes to drop |
//! | iret, syscall, sysret, sysenter, sysexit | | | | size (8 = REX.W) |
//! | int | | | | imm = vector |
//! | mov.sreg | selector | | | reg = segment |
//! | pop.sreg | | | | reg = segment, imm = operand size |
//! | load.far | selector | offset | | reg = segment, reg2 = GPR, size |
//! | mov.cr, mov.dr | value | | | reg = number, size 4 or 8 |
//! | mov.from.cr, mov.from.dr | | | | reg = number, reg2 = GPR, size |
//! | lmsw, lldt, ltr, verr, verw | 16-bit value | | | |
//! | smsw, sldt, str | address if `mem` | | | else reg = GPR, size |
//! | lgdt, lidt, sgdt, sidt | address | | | 10 or 6 bytes by mode; size 2 cuts the base to 24 bits |
//! | lar, lsl | selector | | | reg = GPR, size |
//! | invlpg | address | | | |
//! | invpcid | type | address | | |
//! | clflush | address | | | |
//! | wr.seg.base | value | | | reg = segment, size |
//! | rdpid | | | | reg = GPR |
//! | rdrand | | | | reg = GPR, reg2 = 1 for RDSEED, size |
//! | in | port | | | size |
//! | out | port | value | | size |
//! | fxsave, fxrstor | address | | | size 8 = REX.W |
//! | xsave | address | eax | edx | size 8 = REX.W; reg: 0 XSAVE 1 XSAVEOPT 2 XSAVEC 3 XSAVES |
//! | xrstor | address | eax | edx | size; reg: 0 XRSTOR 3 XRSTORS |
//! | ldmxcsr | value | | | |
//! | stmxcsr | address | | | |
//!
//! Addresses are linear; the segment has been checked.

mod bulk;
pub mod div;
pub mod misc;
pub mod string;
#[cfg(test)]
mod string_tests;
pub mod table;
pub mod vecmem;

pub use table::routine;

pub mod fpu;
pub mod io;
pub mod seg;
pub mod system;
pub mod time;

use crate::env::{Cpu, Env, Exec};
use crate::mmu::View;
use anura_x86::segment::index::SS;

/// What a routine is called with.
#[derive(Clone, Copy, Debug, Default)]
pub struct HelperArgs {
    /// First value.
    pub a: u64,
    /// Second value.
    pub b: u64,
    /// Third value.
    pub c: u64,
    /// Immediate.
    pub imm: u64,
    /// RIP of the next instruction.
    pub next_rip: u64,
    /// First register number.
    pub reg: u8,
    /// Second register number.
    pub reg2: u8,
    /// Operand size in bytes.
    pub size: u8,
    /// Address or stack size in bytes.
    pub asize: u8,
    /// REP state: 0 none, 1 REP/REPE, 2 REPNE.
    pub rep: u8,
    /// The operand is memory.
    pub mem: bool,
}

/// How execution goes on after a routine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With the next instruction.
    Next,
    /// At the RIP that the routine has set.
    Jumped,
    /// With the next instruction, through the run loop (the mode or the interrupt flag may have changed).
    EndBlock,
    /// Nowhere until an interrupt: HLT. RIP is advanced by the caller.
    Halt,
    /// With the next instruction after other processors had a turn (PAUSE).
    Yield,
    /// With this same instruction: its registers hold the progress made (REP); `HelperArgs` does not say how many
    /// iterations, the routine counts them itself.
    Again,
}

/// The stack while an instruction works on it: the stack pointer moves at the end only.
pub(crate) struct Stack {
    sp: u64,
    base: u64,
    mask: u64,
}

impl Stack {
    /// The current stack.
    pub(crate) fn current(cpu: &Cpu) -> Self {
        let env = &cpu.env;
        let mask = stack_mask(env);
        let base = if env.is_64bit() { 0 } else { env.seg[SS].base };
        Self { sp: env.gpr[4], base, mask }
    }

    /// Linear address of the byte at `sp`.
    fn linear(&self, sp: u64) -> u64 {
        let at = (sp & self.mask).wrapping_add(self.base);
        if self.mask == u64::MAX { at } else { at & 0xffff_ffff }
    }

    /// Reads 2, 4 or 8 bytes and moves up.
    pub(crate) fn pop(&mut self, cpu: &mut Cpu, size: u8) -> Exec<u64> {
        check_stack(cpu, self.sp & self.mask, size.into())?;
        let v = cpu.read_sized(self.linear(self.sp), size, View::Stack)?;
        self.skip(size.into());
        Ok(v)
    }

    /// Writes 2, 4 or 8 bytes below.
    pub(crate) fn push(&mut self, cpu: &mut Cpu, value: u64, size: u8) -> Exec<()> {
        let sp = self.sp.wrapping_sub(size.into());
        check_stack(cpu, sp & self.mask, size.into())?;
        cpu.write_sized(self.linear(sp), value, size, View::Stack)?;
        self.sp = sp;
        Ok(())
    }

    /// Moves up without reading.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes);
    }

    /// Gives the stack pointer back to the register, in the stack's width.
    pub(crate) fn commit(self, cpu: &mut Cpu) {
        set_sp(&mut cpu.env, self.sp, self.mask);
    }
}

/// Sets the part of RSP that the stack's width covers; a 32-bit stack clears the rest.
pub(crate) fn set_sp(env: &mut Env, sp: u64, mask: u64) {
    let keep = if mask == 0xffff { env.gpr[4] & !mask } else { 0 };
    env.gpr[4] = keep | sp & mask;
}

/// Bits of RSP that the current stack uses.
pub(crate) fn stack_mask(env: &Env) -> u64 {
    if env.is_64bit() {
        u64::MAX
    } else if env.seg[SS].attr.db() {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// #SS(0) unless all bytes at the offset are inside the stack segment.
fn check_stack(cpu: &Cpu, offset: u64, len: u64) -> Exec<()> {
    if cpu.env.is_64bit() || within(&cpu.env.seg[SS], offset, len) {
        Ok(())
    } else {
        Err(crate::env::Fault::SS0)
    }
}

/// Whether `len` bytes at `offset` are inside a segment, expand-down ones included.
pub(crate) fn within(s: &anura_x86::Segment, offset: u64, len: u64) -> bool {
    let last = offset.wrapping_add(len - 1);
    if s.attr.s() && !s.attr.is_code() && s.attr.is_expand_down() {
        let top = if s.attr.db() { 0xffff_ffff } else { 0xffff };
        offset > s.limit.into() && last <= top && last >= offset
    } else {
        last <= s.limit.into() && last >= offset
    }
}

impl Env {
    /// Writes a general register with the rules of its width: 4 bytes clear the upper half,
    /// 1 and 2 bytes leave the rest. (High byte registers are not meant.)
    #[inline]
    pub fn put_gpr(&mut self, reg: u8, size: u8, value: u64) {
        let r = &mut self.gpr[usize::from(reg & 15)];
        *r = match size {
            1 => *r & !0xff | value & 0xff,
            2 => *r & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}
