//! The ends of blocks: branches, and the check of a new RIP.

use super::super::{Emit, To, at};
use crate::ir::{Cond, Op, Opcode, Ref, Ty};
use crate::jit::asm::{Mem, Rm, alu, sh};

impl Emit<'_> {
    pub(super) fn branch(&mut self, o: &Op) {
        self.forget_temps();
        let taken = self.b.const_value(o.a).unwrap_or(0);
        let other = self.b.const_value(o.b).unwrap_or(0);
        if self.region.is_some() {
            self.test(o.cond());
            return self.fork(o.cond(), taken, other);
        }
        self.materialize();
        self.test(o.cond());
        let c = Cond::ALL[(o.cond() as usize) ^ 1];
        let j = self.out.hot.jcc(c);
        self.exit_to(taken);
        let here = self.out.hot.len() as u32;
        self.fix_hot(j, To::Hot(here));
        self.exit_to(other);
    }

    pub(super) fn branch_nonzero(&mut self, o: &Op) {
        let m = self.rm(o.c, o.ty);
        match m {
            Rm::Reg(s) => self.out.hot.test_rm_r(o.ty, m, s),
            m => self.out.hot.alu_rm_i(alu::CMP, o.ty, m, 0),
        }
        self.host = 0;
        self.forget_temps();
        let taken = self.b.const_value(o.a).unwrap_or(0);
        let other = self.b.const_value(o.b).unwrap_or(0);
        if self.region.is_some() {
            return self.fork(Cond::Nz, taken, other);
        }
        // The stores of the record leave the host's flags alone.
        self.materialize();
        let j = self.out.hot.jcc(Cond::Z);
        self.exit_to(taken);
        let here = self.out.hot.len() as u32;
        self.fix_hot(j, To::Hot(here));
        self.exit_to(other);
    }

    /// Leaves the check of a new RIP to where nobody knows it yet: what the table of jumps knows may become RIP. That is
    /// possible if all that happens until then can be undone.
    pub(super) fn defers_check(&mut self, rest: &[Op]) -> bool {
        let chk = &rest[0];
        if self.b.key & crate::mode::key::L64 == 0 || self.b.const_value(chk.a).is_some() {
            return false;
        }
        let moved = match rest[1..] {
            [jump] if jump.op == Opcode::JmpInd && jump.a == chk.a => Some(0),
            [add, jump]
                if jump.op == Opcode::JmpInd
                    && jump.a == chk.a
                    && add.op == Opcode::Add
                    && (add.dst, add.a) == (Ref::gpr(4), Ref::gpr(4)) =>
            {
                self.imm(add.b, Ty::I64)
            }
            _ => None,
        };
        self.unchecked = moved;
        if moved.is_some() {
            self.used(chk.a);
        }
        moved.is_some()
    }

    /// Gives the instruction to the interpreter unless the value may become RIP.
    pub(super) fn check_rip(&mut self, o: &Op) {
        if self.b.const_value(o.a).is_some() {
            let at = self.bail();
            let j = self.out.hot.jmp();
            self.used(o.a);
            return self.fix_hot(j, To::Cold(at));
        }
        self.settle(o.a, Ty::I64);
        let s = self.peek_reg(o.a, Ty::I64);
        // The use by this operation is over.
        self.used(o.a);
        let t = self.scratch();
        let hot = &mut self.out.hot;
        if self.b.key & crate::mode::key::L64 != 0 {
            hot.mov(t, s);
            hot.shift_i(sh::SHL, Ty::I64, Rm::Reg(t), 16);
            hot.shift_i(sh::SAR, Ty::I64, Rm::Reg(t), 16);
            hot.alu_r_rm(alu::CMP, Ty::I64, t, Rm::Reg(s));
            let j = hot.jcc(Cond::Nz);
            let at = self.bail();
            self.fix_hot(j, To::Cold(at));
        } else {
            // The limit as a 64-bit number.
            let limit = at::seg_base(1) + std::mem::offset_of!(anura_x86::Segment, limit) as i32;
            hot.mov_r_rm(Ty::I32, t, Rm::Mem(Mem::env(limit)));
            hot.alu_r_rm(alu::CMP, Ty::I64, t, Rm::Reg(s));
            let j = hot.jcc(Cond::B);
            let at = self.bail();
            self.fix_hot(j, To::Cold(at));
        }
        self.host = 0;
        self.unscratch(t);
    }
}
