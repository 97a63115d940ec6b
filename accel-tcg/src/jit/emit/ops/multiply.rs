//! Multiplication and division.

use super::super::flags::{Fl, Loc};
use super::super::{CHECKED, Emit, Hold, Temp, To, at};
use super::ALL;
use crate::interp::flags::kind;
use crate::ir::op::flag;
use crate::ir::{Cond, Op, Opcode, Ref, Ty};
use crate::jit::asm::{Mem, Rm, alu, reg, sh};

impl Emit<'_> {
    /// The low half of a product.
    pub(super) fn multiply(&mut self, index: usize, o: &Op) {
        let f = o.attr.flags();
        self.before_write(o.dst, index, if f { ALL } else { 0 });
        if f {
            self.fl = Fl::Env { carry: false };
        }
        let d = o.dst.as_gpr().and_then(|n| self.pin(n)).filter(|_| o.ty != Ty::I16);
        // IMUL's flags are for signed products; the unsigned low half alone never has flags that anybody sees.
        let (result, s) = match (self.imm(o.b, o.ty), d) {
            (Some(v), d) => {
                let m = self.rm(o.a, o.ty);
                let d = match (d, m) {
                    (Some(d), _) => d,
                    (None, Rm::Mem(CHECKED)) => {
                        self.hold = [Hold::Op, Hold::Free];
                        reg::R9
                    }
                    (None, Rm::Reg(r)) if self.dies(r, o.a) => r,
                    _ => self.scratch(),
                };
                self.out.hot.imul_i(o.ty, d, m, v);
                (d, o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(d) || o.ty == Ty::I16)
            }
            (None, Some(d)) if o.dst == o.a => {
                let m = self.rm(o.b, o.ty);
                self.out.hot.imul(o.ty, d, m);
                (d, false)
            }
            _ => {
                if matches!(o.b.as_temp().map(|t| self.temps[t as usize]), Some(Temp::Pending(_))) {
                    self.settle(o.b, o.ty);
                }
                let s = self.copy(o.a, o.ty);
                let m = self.rm(o.b, o.ty);
                self.out.hot.imul(o.ty, s, m);
                (s, true)
            }
        };
        if f {
            self.out.hot.setcc(Cond::O, Rm::Mem(Mem::env(at::CC_B)));
        }
        let a = self.result(o, s.then_some(result), f);
        self.host = 0;
        if f {
            self.know(kind::MUL, o.ty, a, Loc::Env, flag::CF | flag::OF);
        }
    }

    /// MUL and one-operand IMUL.
    pub(super) fn wide_multiply(&mut self, index: usize, rest: &[Op]) -> usize {
        let o = &rest[0];
        let (lo, hi) = (&rest[2], &rest[3]);
        let by_a = o.a == Ref::gpr(0) && lo.dst == Ref::gpr(0) && hi.dst == Ref::gpr(2);
        let halves = lo.a == o.dst && hi.a == rest[1].dst && rest[1].b == o.b;
        let mulx = o.a == Ref::gpr(2) && rest[1].op == Opcode::Umulh && self.options.bmi && !o.attr.flags();
        if !halves || !(by_a || mulx) {
            return 0;
        }
        let f = o.attr.flags();
        let kills = if f { ALL } else { 0 };
        self.before_write(lo.dst, index, kills);
        self.before_write(hi.dst, index, kills);
        if f {
            self.fl = Fl::Env { carry: false };
        }
        // The operand is read once here, but was counted twice.
        self.used(o.b);
        let m = self.rm_or_reg(o.b, o.ty);
        if by_a {
            let n = if o.op == Opcode::Mul { 4 } else { 5 };
            self.out.hot.group3(n, o.ty, m);
            if f {
                self.out.hot.setcc(Cond::O, Rm::Mem(Mem::env(at::CC_B)));
                self.know(kind::MUL, o.ty, Loc::Gpr(0), Loc::Env, flag::CF | flag::OF);
            } else {
                self.host = 0;
            }
            return 4;
        }
        // MULX hi, lo, m.
        let place = |r: Ref| r.as_gpr().and_then(|n| self.pin(n));
        match (place(hi.dst), place(lo.dst)) {
            (Some(h), Some(l)) => self.out.hot.vex(3, 2, 0xf6, o.ty, h, l, m),
            _ => {
                self.hold = [Hold::Op; 2];
                self.out.hot.vex(3, 2, 0xf6, o.ty, reg::R9, reg::R10, m);
                self.put(lo.dst, o.ty, reg::R10);
                self.put(hi.dst, o.ty, reg::R9);
            }
        }
        4
    }

    pub(super) fn divide(&mut self, index: usize, o: &Op) {
        for n in [0, 2] {
            self.before_write(Ref::gpr(n), index, 0);
        }
        // What would fault, or comes near, is left to the interpreter.
        self.settle(o.a, o.ty);
        let s = self.reg(o.a, o.ty);
        let bail = self.bail();
        let hot = &mut self.out.hot;
        if o.op == Opcode::Div {
            hot.alu_rm_r(alu::CMP, o.ty, Rm::Reg(reg::RDX), s);
            let j = hot.jcc(Cond::Ae);
            self.fix_hot(j, To::Cold(bail));
            self.out.hot.group3(6, o.ty, Rm::Reg(s));
        } else {
            let t = self.scratch();
            let hot = &mut self.out.hot;
            hot.mov_r_rm(o.ty, t, Rm::Reg(reg::RAX));
            hot.shift_i(sh::SAR, o.ty, Rm::Reg(t), o.ty.bits() as u8 - 1);
            hot.alu_rm_r(alu::CMP, o.ty, Rm::Reg(t), reg::RDX);
            let j1 = hot.jcc(Cond::Nz);
            // Neither 0 nor -1.
            hot.lea(o.ty, t, Mem::base(s, 1));
            hot.alu_rm_i(alu::CMP, o.ty, Rm::Reg(t), 1);
            let j2 = hot.jcc(Cond::Be);
            hot.group3(7, o.ty, Rm::Reg(s));
            self.fix_hot(j1, To::Cold(bail));
            self.fix_hot(j2, To::Cold(bail));
        }
        self.host = 0;
    }
}
