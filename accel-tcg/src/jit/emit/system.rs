//! System instructions that need no call, or a smaller one than the others: what would only move words between
//! registers and the processor's state, and what has its answers at hand.
//!
//! Everything unusual (a privilege that is missing, a counter that only the clock can read) takes the helper's way,
//! from the cold part.

use super::super::asm::{Mem, Rm, alu, reg, sh};
use super::super::strings;
use super::super::stubs::Stub;
use super::flags::{Fl, Loc};
use super::{CHECKED, Emit, Helper, Hold, To, at};
use crate::helpers::string;
use crate::ir::op::flag;
use crate::ir::{Attr, Cond, Help, Op, Ref, Ty};
use crate::mode::key;
use anura_x86::regs::{cr4, rflags};

/// Whether a helper that comes back leaves the status flags alone.
pub(super) fn keeps_flags(help: Help) -> bool {
    use Help::*;
    matches!(
        help,
        Cli | Sti
            | Cld
            | Std
            | Clac
            | Stac
            | Pushf
            | Swapgs
            | Rdmsr
            | Wrmsr
            | Rdtsc
            | Rdtscp
            | Rdpid
            | Cpuid
            | Pause
            | In
            | Out
            | MovFromCr
            | MovToSreg
            | PopSreg
            | WrSegBase
            | Clflush
            | Rdpkru
            | Xgetbv
            | Fxsave
            | Xsave
            | Stmxcsr
    )
}

impl Emit<'_> {
    /// Writes a helper operation without a call, if that is possible.
    pub(super) fn without_call(&mut self, o: &Op) -> bool {
        let c = &self.b.calls[o.imm as usize];
        let Some(help) = Help::ALL.get(c.id as usize).copied() else { return false };
        let k = self.b.key;
        let ring0 = k & (key::PROT | key::CPL) == key::PROT;
        match help {
            Help::Rdtsc | Help::Rdtscp if !self.options.counted => self.read_counter(o, help == Help::Rdtscp),
            Help::Cpuid => self.identify(o),
            Help::Pause if !self.options.counted => self.pause(o),
            Help::Swapgs if ring0 && k & key::L64 != 0 => self.swap_gs(),
            Help::Sti if ring0 && !self.options.counted => self.sti(o),
            Help::Cld => self.direction(false),
            Help::Std => self.direction(true),
            Help::Str => return self.repeat(o),
            _ => return false,
        }
        true
    }

    /// After a helper that has come back: what is known of the flags and of the host's registers.
    pub(super) fn called_helper(&mut self, help: Help) {
        match keeps_flags(help) {
            true => self.kept_flags(),
            false => self.called(),
        }
    }

    /// After a call that has left the status flags alone.
    fn kept_flags(&mut self) {
        let fl = self.fl;
        self.called();
        // The note was written down before the call; the registers in it may have changed.
        self.fl = match fl {
            Fl::Known { kind, ty, stored: true, .. } => {
                Fl::Known { kind, ty, a: Loc::Env, b: Loc::Env, stored: true }
            }
            Fl::Known { .. } => Fl::Env { carry: false },
            known => known,
        };
    }

    /// A call of the helper from the cold part; where it begins.
    /// The jump behind it is to be led back.
    fn call_cold(&mut self, helper: *const Helper) -> (u32, usize) {
        let at = self.out.cold.len() as u32;
        self.near = None;
        self.out.cold.mov_imm(reg::R10, helper as u64);
        let c = self.out.cold.call();
        self.fix_cold(c, To::Stub(Stub::Helper));
        (at, self.out.cold.jmp())
    }

    /// RDTSC and RDTSCP: the host's counter in nanoseconds, plus how far the guest's is ahead.
    fn read_counter(&mut self, o: &Op, with_aux: bool) {
        self.forget_temps();
        self.materialize();
        let helper = self.constants(o, 0);
        let (cold, jump) = self.call_cold(helper);
        let env = |at| Rm::Mem(Mem::env(at));
        if self.b.key & key::CPL != 0 {
            self.out.hot.test_rm_i(Ty::I32, env(at::CR4), cr4::TSD as i32);
            let j = self.out.hot.jcc(Cond::Nz);
            self.fix_hot(j, To::Cold(cold));
        }
        self.out.hot.alu_rm_i(alu::CMP, Ty::I64, env(at::TSC_MULT), 0);
        let j = self.out.hot.jcc(Cond::Z);
        self.fix_hot(j, To::Cold(cold));
        let hot = &mut self.out.hot;
        // RDTSC
        hot.bytes.extend_from_slice(&[0x0f, 0x31]);
        hot.shift_i(sh::SHL, Ty::I64, Rm::Reg(reg::RDX), 32);
        hot.alu_r_rm(alu::OR, Ty::I64, reg::RAX, Rm::Reg(reg::RDX));
        // MUL, SHRD RAX, RDX, 32
        hot.group3(4, Ty::I64, env(at::TSC_MULT));
        hot.bytes.extend_from_slice(&[0x48, 0x0f, 0xac, 0xd0, 0x20]);
        hot.alu_r_rm(alu::ADD, Ty::I64, reg::RAX, env(at::TSC_ADD));
        hot.mov_r_rm(Ty::I64, reg::RDX, env(at::TSC_BIAS));
        hot.alu_r_rm(alu::ADD, Ty::I64, reg::RAX, Rm::Mem(Mem::base(reg::RDX, 0)));
        hot.mov(reg::RDX, reg::RAX);
        hot.shift_i(sh::SHR, Ty::I64, Rm::Reg(reg::RDX), 32);
        hot.mov_r_rm(Ty::I32, reg::RAX, Rm::Reg(reg::RAX));
        if with_aux {
            hot.mov_r_rm(Ty::I32, reg::RCX, env(at::TSC_AUX));
        }
        let back = hot.len() as u32;
        self.fix_cold(jump, To::Hot(back));
        self.called_helper(Help::Rdtsc);
    }

    /// CPUID: the answers given last are kept.
    fn identify(&mut self, o: &Op) {
        self.forget_temps();
        self.materialize();
        let helper = self.constants(o, 0);
        self.out.hot.mov_imm(reg::R10, helper as u64);
        let c = self.out.hot.call();
        self.fix_hot(c, To::Stub(Stub::Cpuid));
        self.called_helper(Help::Cpuid);
    }

    /// PAUSE: the host's own most of the time, so that who waits for another processor sees it soon; and now and then
    /// a turn for others, since that processor may wait for this one's place.
    fn pause(&mut self, o: &Op) {
        self.forget_temps();
        self.materialize();
        let helper = self.constants(o, 0);
        let (cold, jump) = self.call_cold(helper);
        self.out.hot.alu_rm_i(alu::SUB, Ty::I32, Rm::Mem(Mem::env(at::PAUSES)), 1);
        let j = self.out.hot.jcc(Cond::B);
        self.fix_hot(j, To::Cold(cold));
        self.out.hot.bytes.extend_from_slice(&[0xf3, 0x90]);
        let back = self.out.hot.len() as u32;
        self.fix_cold(jump, To::Hot(back));
        self.called_helper(Help::Pause);
    }

    /// STI where nothing waits: then its shadow is of no consequence, since nothing is looked for before the next
    /// instruction is over.
    fn sti(&mut self, o: &Op) {
        self.forget_temps();
        self.materialize();
        let helper = self.constants(o, 0);
        let (cold, jump) = self.call_cold(helper);
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I64, reg::R10, Rm::Mem(Mem::env(at::POLL)));
        hot.mov_r_rm(Ty::I32, reg::R10, Rm::Mem(Mem::base(reg::R10, 0)));
        hot.alu_r_rm(alu::OR, Ty::I8, reg::R10, Rm::Mem(Mem::env(at::ATTENTION)));
        hot.test_rm_r(Ty::I32, Rm::Reg(reg::R10), reg::R10);
        let j = hot.jcc(Cond::Nz);
        hot.alu_rm_i(alu::OR, Ty::I64, Rm::Mem(Mem::env(at::EFLAGS)), rflags::IF as i32);
        let back = hot.len() as u32;
        self.fix_hot(j, To::Cold(cold));
        self.fix_cold(jump, To::Hot(back));
        self.called_helper(Help::Sti);
    }

    /// REP MOVS and REP STOS of the usual kind; false if it is another string instruction.
    fn repeat(&mut self, o: &Op) -> bool {
        let c = &self.b.calls[o.imm as usize];
        let moves = c.reg == string::MOVS;
        // FS and GS have bases.
        let usual = c.rep != 0 && c.asize == 8 && self.b.key & key::L64 != 0 && !(moves && c.reg2 >= 4);
        let Some(stub) = strings::stub(moves, c.size).filter(|_| usual && c.reg <= string::STOS) else {
            return false;
        };
        self.forget_temps();
        self.materialize();
        let helper = self.constants(o, 0);
        self.call(helper as u64, stub);
        self.kept_flags();
        true
    }

    fn swap_gs(&mut self) {
        let (base, other) = (Rm::Mem(Mem::env(at::seg_base(5))), Rm::Mem(Mem::env(at::KERNEL_GS_BASE)));
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I64, reg::R9, base);
        hot.mov_r_rm(Ty::I64, reg::R10, other);
        hot.mov_rm_r(Ty::I64, base, reg::R10);
        hot.mov_rm_r(Ty::I64, other, reg::R9);
    }

    fn direction(&mut self, down: bool) {
        self.materialize();
        let flags = Rm::Mem(Mem::env(at::EFLAGS));
        match down {
            false => self.out.hot.alu_rm_i(alu::AND, Ty::I64, flags, !(rflags::DF as i32)),
            true => self.out.hot.alu_rm_i(alu::OR, Ty::I64, flags, rflags::DF as i32),
        }
        self.host = 0;
    }

    /// CMPXCHG8B and CMPXCHG16B. Operands off their boundary are the interpreter's business.
    pub(super) fn cmpxchg2(&mut self, index: usize, o: &Op) {
        let f = o.attr.flags();
        self.before_write(Ref::gpr(0), index, 0);
        self.before_write(Ref::gpr(2), index, 0);
        self.materialize();
        self.check(o.a, o.ty.bytes() * 2, true, Attr(o.attr.0 | Attr::ALIGNED));
        if f {
            self.override_begin(flag::ZF);
        }
        self.lock_prefix(o);
        self.out.hot.map1(o.ty, 0xc7, 1, Rm::Mem(CHECKED));
        self.hold = [Hold::Free; 2];
        if f {
            self.override_flags(flag::ZF);
        }
        self.host = flag::ZF;
    }

    /// The flags in a register: the status flags, or the whole register as PUSHF stores it.
    pub(super) fn get_flags(&mut self, o: &Op) {
        self.forget_temps();
        self.materialize();
        let c = self.out.hot.call();
        self.fix_hot(c, To::Stub(Stub::Status));
        self.host = 0;
        self.hold[0] = Hold::Op;
        let s = Rm::Reg(reg::R9);
        if o.ty == Ty::I64 {
            // All flags there are lie in the lower half.
            self.out.hot.alu_r_rm(alu::OR, Ty::I32, reg::R9, Rm::Mem(Mem::env(at::EFLAGS)));
            self.out.hot.alu_rm_i(alu::AND, Ty::I32, s, !(rflags::VM | rflags::RF) as i32);
        }
        self.out.hot.alu_rm_i(alu::OR, Ty::I32, s, rflags::ONE as i32);
        self.put(o.dst, o.ty, reg::R9);
    }
}
