//! Leaving a block: to other blocks, to where the RIP in a register leads, and to the run loop.

use super::super::asm::{Mem, Rm, alu, reg, sh};
use super::super::home;
use super::super::stubs::Stub;
use super::{Emit, Exit, To, at, code};
use crate::ir::{Cond, Ty};
use crate::mode::key;

/// Bytes of the longest instruction.
const LONGEST: u64 = 15;

impl Emit<'_> {
    /// Jumps to where somebody else takes over if attention is wanted. Flags of the host are lost. Code that counts
    /// has budgets that are soon spent instead.
    pub(super) fn poll(&mut self, rip: u64) {
        if self.options.counted {
            return;
        }
        self.look_for_attention();
        let j = self.out.hot.jcc(Cond::Nz);
        self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
        self.leave_cold(rip, code::POLL);
    }

    /// Sets ZF unless attention is wanted.
    pub(super) fn look_for_attention(&mut self) {
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I64, reg::R10, Rm::Mem(Mem::env(at::POLL)));
        hot.alu_rm_i(alu::CMP, Ty::I32, Rm::Mem(Mem::base(reg::R10, 0)), 0);
    }

    /// Leaves to a constant RIP.
    pub(super) fn exit_to(&mut self, target: u64) {
        let b = self.b;
        let linkable = b.key & (key::L64 | key::CS_FLAT) != 0;
        if !linkable {
            self.out.hot.mov_imm(reg::R9, target);
            self.out.hot.mov_imm(reg::R10, code::LOOKUP.into());
            let j = self.out.hot.jmp();
            return self.fix_hot(j, To::Stub(Stub::Exit));
        }
        // What starts in the page's last bytes may be an instruction of two pages, which only a guarded slot leads to.
        let far = (target ^ b.va) >> 12 != 0 || self.crosses || target & 0xfff > 0x1000 - LONGEST;
        let here = b.va.wrapping_add(b.insns.get(self.insn as usize).map_or(0, |i| i.off.into()));
        if far || target <= here {
            self.poll(target);
        }
        if self.options.count && self.region.is_none() && !far && target <= here {
            self.out.hot.alu_rm_i(alu::SUB, Ty::I32, Rm::Mem(Mem::env(at::HOT)), 1);
            let j = self.out.hot.jcc(Cond::B);
            self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
            self.leave_cold(target, code::HOT);
        }
        let slot = self.out.exits.len() as u32;
        let unlinked = self.out.cold.len() as u32;
        self.out.exits.push(Exit { unlinked, far });
        if far {
            let at = self.out.hot.load_slot(reg::R9);
            self.fix_hot(at, To::Slot2(slot));
            let epoch = at::EPOCH + if target >> 63 != 0 { 8 } else { 0 };
            self.out.hot.alu_r_rm(alu::CMP, Ty::I64, reg::R9, Rm::Mem(Mem::env(epoch)));
            let j = self.out.hot.jcc(Cond::Nz);
            self.fix_hot(j, To::Cold(unlinked));
        }
        let j = self.out.hot.jmp_slot();
        self.fix_hot(j, To::Slot(slot));
        self.out.cold.mov_imm(reg::R9, target);
        self.out.cold.mov_imm(reg::R10, 1);
        let imm = self.out.cold.len() - 4;
        self.fix_cold(imm, To::SlotNumber(slot, if far { code::LINK_FAR } else { code::LINK }));
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Stub(if far { Stub::Far } else { Stub::Exit }));
    }

    /// Leaves to the RIP in r9.
    pub(super) fn exit_indirect(&mut self) {
        use alu::*;
        if self.b.key & (key::L64 | key::CS_FLAT) == 0 {
            // The same RIP may be another place next time.
            self.out.hot.mov_imm(reg::R10, code::LOOKUP.into());
            let j = self.out.hot.jmp();
            return self.fix_hot(j, To::Stub(Stub::Exit));
        }
        let polled = (!self.options.counted).then(|| {
            let hot = &mut self.out.hot;
            hot.mov_r_rm(Ty::I64, reg::R10, Rm::Mem(Mem::env(at::POLL)));
            hot.alu_rm_i(CMP, Ty::I32, Rm::Mem(Mem::base(reg::R10, 0)), 0);
            hot.jcc(Cond::Nz)
        });
        let hot = &mut self.out.hot;
        if self.options.bmi {
            hot.rorx(Ty::I64, reg::R10, reg::R9, 12);
        } else {
            hot.mov(reg::R10, reg::R9);
            hot.shift_i(sh::SHR, Ty::I64, Rm::Reg(reg::R10), 12);
        }
        hot.alu_r_rm(XOR, Ty::I32, reg::R10, Rm::Reg(reg::R9));
        hot.alu_rm_i(AND, Ty::I32, Rm::Reg(reg::R10), home::JUMPS as i32 - 1);
        hot.shift_i(sh::SHL, Ty::I32, Rm::Reg(reg::R10), 5);
        let entry =
            |n: i32| Rm::Mem(Mem { base: reg::RSP, index: Some((reg::R10, 0)), disp: home::JUMPS_AT + n });
        hot.alu_r_rm(CMP, Ty::I64, reg::R9, entry(0));
        let missed = hot.jcc(Cond::Nz);
        hot.mov_r_rm(Ty::I64, reg::R9, entry(8));
        let tag = at::TAG + if self.b.va >> 63 != 0 { 8 } else { 0 };
        hot.alu_r_rm(CMP, Ty::I64, reg::R9, Rm::Mem(Mem::env(tag)));
        let old = hot.jcc(Cond::Nz);
        hot.jmp_rm(entry(16));
        let unchecked = self.unchecked.take();
        if let Some(polled) = polled {
            self.fix_hot(polled, To::Cold(self.out.cold.len() as u32));
            self.check_in_cold(unchecked);
            self.out.cold.mov_imm(reg::R10, code::POLL.into());
            let j = self.out.cold.jmp();
            self.fix_cold(j, To::Stub(Stub::Exit));
        }
        let at_old = self.out.cold.len() as u32;
        self.out.cold.mov_r_rm(Ty::I64, reg::R9, entry(0));
        let at_missed = self.out.cold.len() as u32;
        self.check_in_cold(unchecked);
        self.out.cold.mov_imm(reg::R10, code::LOOKUP.into());
        let j2 = self.out.cold.jmp();
        self.fix_hot(missed, To::Cold(at_missed));
        self.fix_hot(old, To::Cold(at_old));
        self.fix_cold(j2, To::Stub(Stub::Exit));
    }

    /// The check of the RIP in r9 that the hot part left out, if it did: otherwise the instruction is the interpreter's.
    fn check_in_cold(&mut self, unchecked: Option<i32>) {
        let Some(moved) = unchecked else { return };
        let cold = &mut self.out.cold;
        cold.mov(reg::R10, reg::R9);
        cold.shift_i(sh::SHL, Ty::I64, Rm::Reg(reg::R10), 16);
        cold.shift_i(sh::SAR, Ty::I64, Rm::Reg(reg::R10), 16);
        cold.alu_r_rm(alu::CMP, Ty::I64, reg::R10, Rm::Reg(reg::R9));
        let fine = cold.jcc(Cond::Z);
        if moved != 0
            && let Some(rsp) = self.pin(4)
        {
            self.out.cold.lea(Ty::I64, rsp, Mem::base(rsp, -moved));
        }
        self.bail();
        self.fix_cold(fine, To::Cold(self.out.cold.len() as u32));
    }
}
