//! Shifts, rotates, single bits, scans and the BMI instructions.

use super::super::flags::{Fl, Loc};
use super::super::{CHECKED, Emit, Hold, SCRATCH, at};
use super::ALL;
use crate::interp::flags::kind;
use crate::ir::op::flag;
use crate::ir::{Cond, Op, Opcode, Ty};
use crate::jit::asm::{Mem, Reg, Rm, alu, reg, sh};

impl Emit<'_> {
    /// SHLD and SHRD between registers, with a constant or where nobody looks at the flags; `op` is the second opcode
    /// byte of the form with an immediate, `k` the kind of the flags.
    pub(super) fn double_shift(&mut self, index: usize, o: &Op, op: u8, k: u32) {
        let f = o.attr.flags();
        self.before_write(o.dst, index, if f { ALL } else { 0 });
        if f {
            self.fl = Fl::Env { carry: false };
        }
        let target = o.dst.as_gpr().and_then(|n| self.pin(n)).filter(|_| o.dst == o.a);
        let (d, s) = match target {
            Some(d) => (d, None),
            None => {
                let s = self.copy(o.a, o.ty);
                (s, Some(s))
            }
        };
        let from = self.reg(o.b, o.ty);
        match self.b.const_value(o.c) {
            Some(n) => {
                self.out.hot.map1(o.ty, op, from, Rm::Reg(d));
                self.out.hot.bytes.push(n as u8);
            }
            None => self.out.hot.map1(o.ty, op + 1, from, Rm::Reg(d)),
        }
        if f {
            self.out.hot.setcc(Cond::B, Rm::Mem(Mem::env(at::CC_B)));
            let a = self.result(o, s, f);
            self.host = 0;
            return self.know(k, o.ty, a, Loc::Env, flag::CF | flag::ZF | flag::SF | flag::PF);
        }
        self.host = 0;
        match s {
            Some(s) => self.put(o.dst, o.ty, s),
            // A count of zero writes nothing, but the register's upper half goes all the same.
            None if o.ty == Ty::I32 => self.out.hot.mov_r_rm(Ty::I32, d, Rm::Reg(d)),
            None => {}
        }
    }

    pub(super) fn shift(&mut self, index: usize, o: &Op, op: u8, k: u32) {
        let f = o.attr.flags();
        if let Some(v) = self.b.const_value(o.b) {
            let n = (v & if o.ty == Ty::I64 { 63 } else { 31 }) as u8;
            if n == 0 {
                self.before_write(o.dst, index, 0);
                let s = self.copy(o.a, o.ty);
                return self.put(o.dst, o.ty, s);
            }
            self.before_write(o.dst, index, if f { ALL } else { 0 });
            let target = match o.dst.as_gpr().and_then(|n| self.pin(n)) {
                Some(d) if o.dst == o.a => Some(d),
                _ => None,
            };
            if f {
                self.fl = Fl::Env { carry: false };
            }
            let (d, s) = match target {
                Some(d) => (d, None),
                None => {
                    let s = self.copy(o.a, o.ty);
                    (s, Some(s))
                }
            };
            self.out.hot.shift_i(op, o.ty, Rm::Reg(d), n);
            if f {
                self.out.hot.setcc(Cond::B, Rm::Mem(Mem::env(at::CC_B)));
            }
            let a = self.result(o, s, f);
            self.host = 0;
            if f {
                self.know(k, o.ty, a, Loc::Env, flag::CF | flag::ZF | flag::SF | flag::PF);
            }
            return;
        }
        if !f && self.options.bmi {
            // SHLX, SHRX, SARX.
            self.before_write(o.dst, index, 0);
            // An operand in memory takes both scratch registers, and a count from the environment needs one.
            let a = match o.b.as_gpr().and_then(|n| self.pin(n)) {
                Some(_) => self.rm(o.a, o.ty),
                None => Rm::Reg(self.reg(o.a, o.ty)),
            };
            let n = self.reg(o.b, Ty::I8);
            let d = match o.dst.as_gpr().and_then(|n| self.pin(n)) {
                Some(d) => d,
                None => match a {
                    Rm::Reg(r) if self.dies(r, o.a) => r,
                    Rm::Mem(CHECKED) => reg::R9,
                    _ => self.scratch(),
                },
            };
            let pp = match op {
                sh::SHL => 1,
                sh::SHR => 3,
                _ => 2,
            };
            self.out.hot.vex(pp, 2, 0xf7, o.ty, d, n, a);
            if o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(d) {
                if matches!(a, Rm::Mem(CHECKED)) {
                    self.hold = [Hold::Op, Hold::Free];
                }
                self.put(o.dst, o.ty, d);
            }
            return;
        }
        // By CL, with flags that change only if the count is not zero.
        self.before_write(o.dst, index, 0);
        self.materialize();
        let s = self.copy(o.a, o.ty);
        self.out.hot.shift_cl(op, o.ty, Rm::Reg(s));
        let mask = if o.ty == Ty::I64 { 63 } else { 31 };
        if f {
            let t = self.scratch();
            self.out.hot.setcc(Cond::B, Rm::Reg(t));
            self.out.hot.test_rm_i(Ty::I8, Rm::Reg(reg::RCX), mask);
            let j = self.out.hot.jcc_short(Cond::Z);
            self.out.hot.mov_rm_r(Ty::I8, Rm::Mem(Mem::env(at::CC_B)), t);
            self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), s);
            let raw = if o.ty == Ty::I64 { 0 } else { crate::interp::flags::over::RAW };
            self.out.hot.mov_m_i(Ty::I32, Mem::env(at::CC_OP), (k + o.ty as u32 | raw) as i32);
            self.out.hot.land(j);
            self.unscratch(t);
            self.fl = Fl::Env { carry: false };
        }
        self.host = 0;
        self.put(o.dst, o.ty, s);
    }

    pub(super) fn rotate(&mut self, index: usize, o: &Op, op: u8) {
        let f = o.attr.flags();
        self.before_write(o.dst, index, 0);
        let Some(n) = self.b.const_value(o.b) else {
            let s = self.copy(o.a, o.ty);
            self.out.hot.shift_cl(op, o.ty, Rm::Reg(s));
            self.host = 0;
            return self.put(o.dst, o.ty, s);
        };
        if f {
            self.materialize();
        } else if self.options.bmi && matches!(o.ty, Ty::I32 | Ty::I64) {
            let a = self.reg(o.a, o.ty);
            let n = if op == sh::ROL { o.ty.bits() as u8 - n as u8 } else { n as u8 };
            let d = match o.dst.as_gpr().and_then(|n| self.pin(n)) {
                Some(d) => d,
                None if self.dies(a, o.a) => a,
                None => self.scratch(),
            };
            self.out.hot.rorx(o.ty, d, a, n);
            if o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(d) {
                self.put(o.dst, o.ty, d);
            }
            return;
        }
        let s = self.copy(o.a, o.ty);
        self.out.hot.shift_i(op, o.ty, Rm::Reg(s), n as u8);
        if f {
            self.override_flags(flag::CF);
            self.override_begin(flag::CF | flag::OF);
            // OF is the top bit against the carry (left) or against its neighbour (right).
            let bits = o.ty.bits() as u8;
            let t = self.scratch();
            self.host = 0;
            self.out.hot.mov(t, s);
            if op == sh::ROL {
                self.out.hot.shift_i(sh::SHR, o.ty, Rm::Reg(t), bits - 1);
                self.out.hot.alu_r_rm(alu::XOR, Ty::I8, t, Rm::Mem(Mem::env(at::CC_C)));
            } else {
                self.out.hot.alu_rm_r(alu::ADD, o.ty, Rm::Reg(t), t);
                self.out.hot.alu_r_rm(alu::XOR, o.ty, t, Rm::Reg(s));
                self.out.hot.shift_i(sh::SHR, o.ty, Rm::Reg(t), bits - 1);
            }
            self.out.hot.mov_rm_r(Ty::I8, Rm::Mem(Mem::env(at::CC_C + 1)), t);
            self.unscratch(t);
        }
        self.host = 0;
        self.put(o.dst, o.ty, s);
    }

    pub(super) fn bit(&mut self, index: usize, o: &Op) {
        let f = o.attr.flags();
        let write = o.op != Opcode::Bt;
        if write {
            self.before_write(o.dst, index, 0);
        }
        if f {
            self.materialize();
        }
        let n = 4 + [Opcode::Bt, Opcode::Bts, Opcode::Btr, Opcode::Btc]
            .iter()
            .position(|x| *x == o.op)
            .unwrap_or(0) as u8;
        self.settle(o.a, o.ty);
        if f {
            self.override_begin(flag::CF);
        }
        let in_place = o.dst == o.a;
        let s = match o.a.as_gpr().and_then(|n| self.pin(n)) {
            Some(h) if !write || in_place => h,
            _ if write => self.copy(o.a, o.ty),
            _ => self.reg(o.a, o.ty),
        };
        match self.b.const_value(o.b) {
            Some(v) => self.out.hot.bt_i(n, o.ty, Rm::Reg(s), v as u8 & (o.ty.bits() as u8 - 1)),
            None => {
                let r = self.reg(o.b, o.ty);
                self.out.hot.bt_r(n, o.ty, Rm::Reg(s), r);
            }
        }
        if f {
            self.override_flags(flag::CF);
            self.host = flag::CF;
        } else {
            self.host = 0;
        }
        if write && o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(s) {
            self.put(o.dst, o.ty, s);
        }
    }

    pub(super) fn scan(&mut self, index: usize, o: &Op) {
        let f = o.attr.flags();
        let all = o.op == Opcode::Popcnt;
        self.before_write(o.dst, index, if f && all { ALL } else { 0 });
        if f && all {
            self.fl = Fl::Env { carry: false };
        } else if f {
            self.materialize();
        }
        let keeps = matches!(o.op, Opcode::Bsf | Opcode::Bsr);
        let changed = if keeps { flag::ZF } else { flag::CF | flag::ZF };
        if f && !all {
            self.override_begin(changed);
        }
        let m = self.rm_or_reg(o.a, o.ty);
        let d = match (o.dst.as_gpr().and_then(|n| self.pin(n)), m) {
            (Some(d), _) => d,
            (None, Rm::Mem(CHECKED)) if !keeps => {
                self.hold = [Hold::Op, Hold::Free];
                reg::R9
            }
            (None, Rm::Mem(CHECKED)) => {
                self.out.hot.movzx(reg::R9, o.ty, m);
                self.hold = [Hold::Op, Hold::Free];
                self.scratch()
            }
            _ => self.scratch(),
        };
        let m = if keeps && matches!(m, Rm::Mem(CHECKED)) && d == reg::R10 { Rm::Reg(reg::R9) } else { m };
        if keeps && let Some(n) = o.dst.as_gpr().filter(|n| self.pin(*n).is_none()) {
            self.out.hot.mov_r_rm(Ty::I64, d, Rm::Mem(Mem::env(at::gpr(n))));
        }
        let (prefix, op) = match o.op {
            Opcode::Bsf => (false, 0xbc),
            Opcode::Bsr => (false, 0xbd),
            Opcode::Tzcnt => (true, 0xbc),
            Opcode::Lzcnt => (true, 0xbd),
            _ => (true, 0xb8),
        };
        if prefix {
            self.out.hot.bytes.push(0xf3);
        }
        self.out.hot.map1(o.ty, op, d, m);
        if f && !all {
            self.override_flags(changed);
            self.host = changed;
        } else {
            self.host = 0;
        }
        let mut a = Loc::Env;
        if o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(d) {
            if keeps && let Some(n) = o.dst.as_gpr() {
                // The whole register: a source of zero leaves all of it.
                self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::gpr(n))), d);
            } else {
                a = self.result(o, Some(d), f && all);
            }
        } else {
            a = self.result(o, None, f && all);
        }
        if f && all {
            self.know(kind::ZERO, o.ty, a, Loc::Env, flag::ZF);
        }
    }

    pub(super) fn bmi(&mut self, index: usize, o: &Op) {
        self.before_write(o.dst, index, 0);
        let pinned_dst = o.dst.as_gpr().and_then(|n| self.pin(n));
        let blend = |e: &mut Self, pp: u8, op: u8, v: Reg, m: Rm| {
            let d = match (pinned_dst, m) {
                (Some(d), _) => d,
                (None, Rm::Mem(CHECKED)) => reg::R9,
                (None, Rm::Reg(r)) if SCRATCH.contains(&r) && e.all_die(o) => r,
                (None, _) if SCRATCH.contains(&v) && e.all_die(o) => v,
                _ => e.scratch(),
            };
            if m == Rm::Mem(CHECKED) {
                e.hold = [Hold::Op, Hold::Free];
            }
            e.out.hot.vex(pp, 2, op, o.ty, d, v, m);
            if pinned_dst != Some(d) {
                e.put(o.dst, o.ty, d);
            }
        };
        match o.op {
            Opcode::Blsr | Opcode::Blsi | Opcode::Blsmsk => {
                // Group 17: the destination is in VEX.vvvv.
                let n = match o.op {
                    Opcode::Blsr => 1,
                    Opcode::Blsmsk => 2,
                    _ => 3,
                };
                let m = self.rm_or_reg(o.a, o.ty);
                let d = match (pinned_dst, m) {
                    (Some(d), _) => d,
                    (None, Rm::Mem(CHECKED)) => reg::R9,
                    (None, Rm::Reg(r)) if self.dies(r, o.a) => r,
                    _ => self.scratch(),
                };
                if m == Rm::Mem(CHECKED) {
                    self.hold = [Hold::Op, Hold::Free];
                }
                self.out.hot.vex(0, 2, 0xf3, o.ty, n, d, m);
                self.host = 0;
                if pinned_dst != Some(d) {
                    self.put(o.dst, o.ty, d);
                }
            }
            Opcode::Andn | Opcode::Pdep | Opcode::Pext => {
                self.settle(o.b, o.ty);
                self.settle(o.a, o.ty);
                let v = self.reg(o.a, o.ty);
                let m = self.rm_or_reg(o.b, o.ty);
                let (pp, op) = match o.op {
                    Opcode::Andn => (0, 0xf2),
                    Opcode::Pdep => (3, 0xf5),
                    _ => (2, 0xf5),
                };
                blend(self, pp, op, v, m);
                if o.op == Opcode::Andn {
                    self.host = 0;
                }
            }
            _ => {
                // BEXTR and BZHI: the second operand is in VEX.vvvv.
                self.settle(o.a, o.ty);
                self.settle(o.b, o.ty);
                let v = self.reg(o.b, o.ty);
                let m = self.rm_or_reg(o.a, o.ty);
                blend(self, 0, if o.op == Opcode::Bextr { 0xf7 } else { 0xf5 }, v, m);
                self.host = 0;
            }
        }
    }
}
