//! Additions, subtractions, logic and comparisons. The flags are described by their kind and where the result and the
//! second operand are found.

use super::super::flags::{Fl, Loc};
use super::super::{Emit, Temp, at};
use super::ALL;
use crate::interp::flags::kind;
use crate::ir::op::flag;
use crate::ir::{Cond, Op, Opcode, Ref, Ty};
use crate::jit::asm::{Mem, Rm, alu};

impl Emit<'_> {
    /// An addition without flags as LEA, which leaves the host's flags alone.
    pub(super) fn lea_add(&mut self, index: usize, o: &Op) -> bool {
        let Some(v) = self.imm(o.b, o.ty) else { return false };
        if !matches!(o.ty, Ty::I32 | Ty::I64) {
            return false;
        }
        let (Some(n), Some(m)) = (o.dst.as_gpr(), o.a.as_gpr()) else { return false };
        let (Some(d), Some(s)) = (self.pin(n), self.pin(m)) else { return false };
        self.before_write(o.dst, index, 0);
        self.out.hot.lea(o.ty, d, Mem::base(s, v));
        true
    }

    /// Where the destination is the first operand, and can be changed as it is.
    fn in_place(&self, o: &Op) -> Option<Rm> {
        match o.dst.as_gpr() {
            Some(n) if o.dst == o.a => match self.pin(n) {
                Some(d) => Some(Rm::Reg(d)),
                None if o.ty != Ty::I32 => Some(Rm::Mem(Mem::env(at::gpr(n)))),
                None => None,
            },
            _ => None,
        }
    }

    /// ADD, SUB, AND, OR, XOR.
    pub(super) fn arith(&mut self, index: usize, o: &Op, op: u8, k: u32) {
        let f = o.attr.flags();
        self.before_write(o.dst, index, if f { ALL } else { 0 });
        let same = o.a == o.b;
        let mut b_loc = Loc::Imm(0);
        if f {
            self.fl = Fl::Env { carry: false };
            if k != kind::LOGIC && !(same && op == alu::SUB) {
                b_loc = self.place(o.b, o.ty, o.dst, at::CC_B);
            }
        }
        let target = self.in_place(o);
        let imm = self.imm(o.b, o.ty);
        let result = match target {
            Some(t) => {
                match (imm, t) {
                    (Some(v), _) => self.out.hot.alu_rm_i(op, o.ty, t, v),
                    (None, Rm::Reg(d)) => {
                        let m = self.rm(o.b, o.ty);
                        self.out.hot.alu_r_rm(op, o.ty, d, m);
                    }
                    (None, Rm::Mem(_)) => {
                        let s = self.reg(o.b, o.ty);
                        self.out.hot.alu_rm_r(op, o.ty, t, s);
                    }
                }
                None
            }
            None => {
                // The second operand may be a pending load, which the copy of the first must not disturb.
                if matches!(o.b.as_temp().map(|t| self.temps[t as usize]), Some(Temp::Pending(_))) {
                    self.settle(o.b, o.ty);
                }
                let s = self.copy(o.a, o.ty);
                match imm {
                    Some(v) => self.out.hot.alu_rm_i(op, o.ty, Rm::Reg(s), v),
                    None => {
                        let m = self.rm(o.b, o.ty);
                        self.out.hot.alu_r_rm(op, o.ty, s, m);
                    }
                }
                Some(s)
            }
        };
        self.host = if f { ALL } else { 0 };
        let a_loc = self.result(o, result, f);
        if f {
            let (k, b_loc) = if same && op == alu::SUB { (kind::LOGIC, Loc::Imm(0)) } else { (k, b_loc) };
            let b_loc = if k == kind::LOGIC { Loc::Env } else { b_loc };
            self.know(k, o.ty, a_loc, b_loc, ALL);
        }
    }

    pub(super) fn compare(&mut self, o: &Op) {
        let f = o.attr.flags();
        if !f {
            return;
        }
        self.fl = Fl::Env { carry: false };
        let a_loc = self.place(o.a, o.ty, Ref::NONE, at::CC_A);
        let b_loc = self.place(o.b, o.ty, Ref::NONE, at::CC_B);
        let a = self.rm_or_reg(o.a, o.ty);
        match self.imm(o.b, o.ty) {
            Some(v) => self.out.hot.alu_rm_i(alu::CMP, o.ty, a, v),
            None => match a {
                Rm::Reg(r) => {
                    let m = self.rm(o.b, o.ty);
                    self.out.hot.alu_r_rm(alu::CMP, o.ty, r, m);
                }
                Rm::Mem(_) => {
                    let s = self.reg(o.b, o.ty);
                    self.out.hot.alu_rm_r(alu::CMP, o.ty, a, s);
                }
            },
        }
        self.know(kind::CMP, o.ty, a_loc, b_loc, ALL);
    }

    pub(super) fn test_op(&mut self, o: &Op) {
        if !o.attr.flags() {
            return;
        }
        self.fl = Fl::Env { carry: false };
        if o.a == o.b
            && let Some(n) = o.a.as_gpr()
        {
            match self.pin(n) {
                Some(h) => self.out.hot.test_rm_r(o.ty, Rm::Reg(h), h),
                None => self.out.hot.alu_rm_i(alu::CMP, o.ty, Rm::Mem(Mem::env(at::gpr(n))), 0),
            }
            return self.know(kind::LOGIC, o.ty, Loc::Gpr(n), Loc::Env, ALL);
        }
        if matches!(o.b.as_temp().map(|t| self.temps[t as usize]), Some(Temp::Pending(_))) {
            self.settle(o.b, o.ty);
        }
        let s = self.copy(o.a, o.ty);
        match self.imm(o.b, o.ty) {
            Some(v) => self.out.hot.alu_rm_i(alu::AND, o.ty, Rm::Reg(s), v),
            None => {
                let m = self.rm(o.b, o.ty);
                self.out.hot.alu_r_rm(alu::AND, o.ty, s, m);
            }
        }
        self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), s);
        self.know(kind::LOGIC, o.ty, Loc::Env, Loc::Env, ALL);
    }

    pub(super) fn with_carry(&mut self, index: usize, o: &Op, op: u8) {
        let f = o.attr.flags();
        self.before_write(o.dst, index, if f { ALL } else { 0 });
        // Everything is brought into place before the carry is, since some of it may cost the flags.
        if matches!(o.b.as_temp().map(|t| self.temps[t as usize]), Some(Temp::Pending(_) | Temp::Address(_)))
        {
            self.settle(o.b, o.ty);
        }
        self.test(Cond::B);
        let in_place = o.dst == o.a && o.dst.as_gpr().and_then(|n| self.pin(n)).is_some();
        let s = match o.dst.as_gpr().and_then(|n| self.pin(n)) {
            Some(d) if in_place => d,
            _ => self.copy(o.a, o.ty),
        };
        match self.imm(o.b, o.ty) {
            Some(v) => self.out.hot.alu_rm_i(op, o.ty, Rm::Reg(s), v),
            None => {
                let m = self.rm(o.b, o.ty);
                self.out.hot.alu_r_rm(op, o.ty, s, m);
            }
        }
        if !in_place {
            self.put(o.dst, o.ty, s);
        }
        if f {
            self.save_host_flags();
        } else {
            self.host = 0;
        }
    }

    pub(super) fn unary(&mut self, index: usize, o: &Op) {
        let f = o.attr.flags();
        let kills = match o.op {
            _ if !f => 0,
            Opcode::Neg => ALL,
            _ => ALL & !flag::CF,
        };
        let step = f && matches!(o.op, Opcode::Inc | Opcode::Dec);
        if step {
            // INC and DEC take the carry over, and nothing else.
            self.carry_to_b();
            self.fl = Fl::Env { carry: false };
            self.before_write(o.dst, index, ALL);
        } else {
            self.before_write(o.dst, index, kills);
        }
        let (group, n) = match o.op {
            Opcode::Not => (3, 2),
            Opcode::Neg => (3, 3),
            Opcode::Inc => (4, 0),
            _ => (4, 1),
        };
        let target = self.in_place(o);
        let neg = f && o.op == Opcode::Neg;
        if neg {
            self.fl = Fl::Env { carry: false };
        }
        let (m, s) = match target {
            Some(m) => (m, None),
            None => {
                let s = self.copy(o.a, o.ty);
                (Rm::Reg(s), Some(s))
            }
        };
        if neg {
            let old = match m {
                Rm::Reg(r) => r,
                m => {
                    let t = self.scratch();
                    self.out.hot.mov_r_rm(Ty::I64, t, m);
                    t
                }
            };
            self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_B)), old);
        }
        if group == 3 {
            self.out.hot.group3(n, o.ty, m);
        } else {
            self.out.hot.group4(n, o.ty, m);
        }
        match o.op {
            Opcode::Not => {
                self.result(o, s, false);
            }
            Opcode::Neg => {
                let a = self.result(o, s, f);
                self.host = 0;
                if f {
                    self.know(kind::SUB, o.ty, a, Loc::Env, ALL);
                }
            }
            _ => {
                let a = self.result(o, s, f);
                self.host = 0;
                if f {
                    let k = if o.op == Opcode::Inc { kind::INC } else { kind::DEC };
                    self.know(k, o.ty, a, Loc::Env, ALL & !flag::CF);
                }
            }
        }
    }
}
