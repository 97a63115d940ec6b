//! Operations, one by one, and the few sequences that are one host instruction.

use super::super::asm::{Mem, Reg, Rm, alu, reg, sh};
use super::flags::{Fl, Loc};
use super::{CHECKED, Emit, Hold, SCRATCH, Temp, To, at};
use crate::interp::flags::kind;
use crate::ir::op::flag;
use crate::ir::{Cond, Op, Opcode, Ref, Ty};

const ALL: u32 = flag::ALL;

fn is_int(ty: Ty) -> bool {
    ty != Ty::V128
}

impl Emit<'_> {
    /// Whether all operations of an instruction can be written.
    pub(super) fn supported(&self, group: &[Op]) -> bool {
        use Opcode::*;
        let mut produced = false;
        // What only leads to the next block is no part of the instruction.
        let own = match group {
            [rest @ .., end] if !rest.is_empty() && matches!(end.op, Jmp | Exit) => rest.len(),
            _ => group.len(),
        };
        for (n, o) in group.iter().enumerate() {
            let f = o.attr.flags();
            let last = n + 1 == own;
            let ok = match o.op {
                Mov => is_int(o.ty) || last && self.vectors_run(),
                Zext | Sext | Not | Ea | Jmp | JmpInd | Exit | ChkRip | Brnz => true,
                Add | Sub | And | Or | Xor | Cmp | Test | Neg | Inc | Dec => true,
                Adc | Sbb => produced || self.tests(Cond::B, n),
                Shl | Shr | Sar => match self.b.const_value(o.b) {
                    Some(v) => (v & if o.ty == Ty::I64 { 63 } else { 31 }) < u64::from(o.ty.bits()),
                    None => {
                        o.b == Ref::gpr(1) && matches!(o.ty, Ty::I32 | Ty::I64)
                            || (!f && self.options.bmi && matches!(o.ty, Ty::I32 | Ty::I64))
                    }
                },
                Rol | Ror => {
                    self.b.const_value(o.b).is_some_and(|v| v > 0 && v < u64::from(o.ty.bits()))
                        || o.b == Ref::gpr(1) && !f && matches!(o.ty, Ty::I32 | Ty::I64)
                }
                Shld | Shrd => {
                    let registers = o.dst.as_gpr().is_some() && o.a.as_gpr().is_some();
                    let count = match self.b.const_value(o.c) {
                        Some(v) => !f || v & if o.ty == Ty::I64 { 63 } else { 31 } != 0,
                        None => !f && o.c == Ref::gpr(1),
                    };
                    registers && count && matches!(o.ty, Ty::I32 | Ty::I64)
                }
                Mul | Imul => !matches!(o.ty, Ty::I8 | Ty::V128),
                Umulh | Smulh => {
                    matches!(o.ty, Ty::I16 | Ty::I32 | Ty::I64)
                        && n > 0
                        && matches!(group[n - 1].op, Mul | Imul)
                }
                Div | Idiv => matches!(o.ty, Ty::I32 | Ty::I64),
                Bt | Bts | Btr | Btc => o.ty != Ty::I8,
                Bsf | Bsr => matches!(o.ty, Ty::I32 | Ty::I64) && o.dst.as_gpr().is_some(),
                Lzcnt | Tzcnt => self.options.bmi && matches!(o.ty, Ty::I32 | Ty::I64),
                Popcnt => matches!(o.ty, Ty::I32 | Ty::I64),
                Bswap => matches!(o.ty, Ty::I32 | Ty::I64),
                Andn | Blsr | Blsi | Blsmsk | Bextr | Bzhi => {
                    !f && self.options.bmi && matches!(o.ty, Ty::I32 | Ty::I64)
                }
                Pdep | Pext => self.options.bmi && matches!(o.ty, Ty::I32 | Ty::I64),
                Setcc | Br => produced || self.tests(o.cond(), n),
                Select => (produced || self.tests(o.cond(), n)) && is_int(o.ty),
                Ld | LdW | St => is_int(o.ty) || last && self.vectors_run(),
                X86 => last && self.renames(o),
                RmwAdd | RmwSub | RmwAnd | RmwOr | RmwXor | RmwInc | RmwDec | RmwNeg | RmwNot | RmwXchg => {
                    true
                }
                RmwAdc | RmwSbb => {
                    let simple =
                        self.imm(o.b, o.ty).is_some() || o.b.as_gpr().and_then(|n| self.pin(n)).is_some();
                    self.tests(Cond::B, n) && simple
                }
                RmwBts | RmwBtr | RmwBtc => o.ty != Ty::I8,
                RmwCmpxchg => {
                    // The selection of rAX that follows is part of the host's instruction.
                    matches!(group[own - 1], s if s.op == Select && s.dst == Ref::gpr(0))
                }
                RmwCmpxchg2 | Getf | Fence => true,
                Helper => last,
                _ => false,
            };
            if !ok {
                return false;
            }
            produced |= matches!(o.op, Cmp | Test) && f || matches!(o.op, RmwCmpxchg);
        }
        true
    }

    /// Whether 128-bit moves run here.
    fn vectors_run(&self) -> bool {
        self.b.key & crate::mode::key::FPX == 0
    }

    /// Whether operation `n` of an instruction will be able to test a condition: operations before it may cost the
    /// host's flags.
    fn tests(&self, c: Cond, n: usize) -> bool {
        self.can_test(c, n == 0)
    }

    /// Sequences that are one instruction of the host; how many operations were taken.
    pub(super) fn pattern(&mut self, index: usize, rest: &[Op]) -> usize {
        use Opcode::*;
        let o = &rest[0];
        let is = |n: usize, op: Opcode| rest.get(n).is_some_and(|x| x.op == op);
        // MUL and IMUL with both halves.
        if matches!(o.op, Mul | Imul)
            && o.dst.as_temp().is_some()
            && (is(1, Umulh) || is(1, Smulh))
            && is(2, Mov)
            && is(3, Mov)
        {
            return self.wide_multiply(index, rest);
        }
        if o.op == RmwCmpxchg {
            self.cmpxchg(index, o);
            return rest.iter().position(|o| o.op == Select).map_or(rest.len(), |n| n + 1);
        }
        if o.op == ChkRip && self.defers_check(rest) {
            return 1;
        }
        // XADD and XCHG with memory.
        if matches!(o.op, RmwAdd | RmwXchg)
            && o.dst.as_temp().is_some_and(|t| self.uses[t as usize] > 0)
            && is(1, Mov)
            && rest[1].a == o.dst
            && rest[1].dst == o.b
        {
            self.exchange(index, o, &rest[1]);
            return 2;
        }
        0
    }

    /// One operation.
    pub(super) fn op(&mut self, index: usize, o: &Op) {
        use Opcode::*;
        match o.op {
            Mov | Ld | St if o.ty == Ty::V128 => self.mov128(o),
            X86 => self.opaque(index, o),
            Mov => self.mov(index, o),
            Zext | Sext => self.extend(index, o),
            Add if !o.attr.flags() && self.lea_add(index, o) => {}
            Add => self.arith(index, o, alu::ADD, kind::ADD),
            Sub => self.arith(index, o, alu::SUB, kind::SUB),
            And => self.arith(index, o, alu::AND, kind::LOGIC),
            Or => self.arith(index, o, alu::OR, kind::LOGIC),
            Xor => self.arith(index, o, alu::XOR, kind::LOGIC),
            Cmp => self.compare(o),
            Test => self.test_op(o),
            Adc => self.with_carry(index, o, alu::ADC),
            Sbb => self.with_carry(index, o, alu::SBB),
            Neg | Not | Inc | Dec => self.unary(index, o),
            Shl => self.shift(index, o, sh::SHL, kind::SHL),
            Shr => self.shift(index, o, sh::SHR, kind::SHR),
            Sar => self.shift(index, o, sh::SAR, kind::SAR),
            Shld => self.double_shift(index, o, 0xa4, kind::SHL),
            Shrd => self.double_shift(index, o, 0xac, kind::SHR),
            Rol => self.rotate(index, o, sh::ROL),
            Ror => self.rotate(index, o, sh::ROR),
            Mul | Imul => self.multiply(index, o),
            Div | Idiv => self.divide(index, o),
            Bt | Bts | Btr | Btc => self.bit(index, o),
            Bsf | Bsr | Lzcnt | Tzcnt | Popcnt => self.scan(index, o),
            Bswap => {
                self.before_write(o.dst, index, 0);
                let s = self.copy(o.a, o.ty);
                self.out.hot.bswap(o.ty, s);
                self.put(o.dst, o.ty, s);
            }
            Andn | Bextr | Bzhi | Pdep | Pext | Blsr | Blsi | Blsmsk => self.bmi(index, o),
            Setcc => self.setcc(index, o),
            Select => self.select(index, o),
            Ea => self.ea(index, o),
            Ld | LdW => self.load(index, o),
            St => self.store(o),
            RmwAdd | RmwSub | RmwAnd | RmwOr | RmwXor | RmwInc | RmwDec | RmwNeg | RmwNot | RmwXchg
            | RmwAdc | RmwSbb | RmwBts | RmwBtr | RmwBtc => self.rmw(o),
            Helper if self.moves_mxcsr(o) => {}
            Helper => self.helper(o),
            Br => self.branch(o),
            Brnz => self.branch_nonzero(o),
            Jmp => {
                let t = self.b.const_value(o.a).unwrap_or(0);
                if self.region.is_some() {
                    return self.go(t);
                }
                self.materialize();
                self.exit_to(t);
            }
            JmpInd => {
                let s = self.reg(o.a, Ty::I64);
                self.out.hot.mov(reg::R9, s);
                self.hold = [Hold::Op, Hold::Free];
                self.locked = [false; 2];
                self.materialize();
                self.exit_indirect();
            }
            Exit => {
                self.materialize();
                let t = self.b.const_value(o.a).unwrap_or(0);
                // A helper that comes back has changed nothing that the next block depends on.
                if index.checked_sub(1).is_some_and(|n| self.b.ops[n].op == Helper) {
                    return self.exit_to(t);
                }
                self.out.hot.mov_imm(reg::R9, t);
                self.out.hot.mov_imm(reg::R10, super::code::POLL.into());
                let j = self.out.hot.jmp();
                self.fix_hot(j, To::Stub(super::Stub::Exit));
            }
            ChkRip => self.check_rip(o),
            Getf => self.get_flags(o),
            RmwCmpxchg2 => self.cmpxchg2(index, o),
            // MFENCE
            Fence => self.out.hot.bytes.extend_from_slice(&[0x0f, 0xae, 0xf0]),
            _ => unreachable!("{:?} was said to be supported", o.op),
        }
    }

    fn mov(&mut self, index: usize, o: &Op) {
        self.before_write(o.dst, index, 0);
        if let Some(n) = o.dst.as_gpr()
            && let Some(v) = self.b.const_value(o.a)
        {
            let v = v & o.ty.mask();
            match (self.pin(n), o.ty) {
                (Some(d), Ty::I32 | Ty::I64) => self.out.hot.mov_imm(d, v),
                (None, Ty::I32 | Ty::I64) if v as i64 == i64::from(v as i32) => {
                    self.out.hot.mov_m_i(Ty::I64, Mem::env(at::gpr(n)), v as i32);
                }
                (None, Ty::I8 | Ty::I16) => self.out.hot.mov_m_i(o.ty, Mem::env(at::gpr(n)), v as i32),
                _ => {
                    let s = self.scratch();
                    self.out.hot.mov_imm(s, v);
                    self.put(o.dst, o.ty, s);
                }
            }
            return;
        }
        // A temporary needs a copy, since its source may change.
        if o.dst.as_temp().is_some() || o.a.as_high().is_some() {
            let s = self.copy(o.a, o.ty);
            return self.put(o.dst, o.ty, s);
        }
        if let Some(n) = o.dst.as_gpr()
            && let Some(d) = self.pin(n)
        {
            let m = self.rm(o.a, o.ty);
            if m != Rm::Reg(d) || o.ty == Ty::I32 {
                self.out.hot.mov_r_rm(o.ty, d, m);
            }
            return;
        }
        let s = self.reg(o.a, o.ty);
        self.put(o.dst, o.ty, s);
    }

    fn extend(&mut self, index: usize, o: &Op) {
        let from = o.from_ty();
        self.before_write(o.dst, index, 0);
        let m = self.rm(o.a, from);
        let d = match o.dst.as_gpr().and_then(|n| self.pin(n)) {
            Some(d) if matches!(o.ty, Ty::I32 | Ty::I64) => d,
            _ => match m {
                Rm::Mem(CHECKED) => {
                    self.hold = [Hold::Op, Hold::Free];
                    reg::R9
                }
                _ => self.scratch(),
            },
        };
        if o.op == Opcode::Sext {
            let to = if o.ty == Ty::I64 { Ty::I64 } else { Ty::I32 };
            self.out.hot.movsx(d, to, from, m);
        } else {
            self.out.hot.movzx(d, from, m);
        }
        if o.dst.as_gpr().and_then(|n| self.pin(n)) != Some(d) {
            self.put(o.dst, o.ty, d);
        }
    }

    /// An addition without flags as LEA, which leaves the host's flags alone.
    fn lea_add(&mut self, index: usize, o: &Op) -> bool {
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

    /// ADD, SUB, AND, OR, XOR.
    fn arith(&mut self, index: usize, o: &Op, op: u8, k: u32) {
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
        // In place where the destination is the first operand.
        let target = match o.dst.as_gpr() {
            Some(n) if o.dst == o.a => match self.pin(n) {
                Some(d) => Some(Rm::Reg(d)),
                None if o.ty != Ty::I32 => Some(Rm::Mem(Mem::env(at::gpr(n)))),
                None => None,
            },
            _ => None,
        };
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

    /// Writes an operation's result from a scratch register (`None`: it is in place already); where the flags find it.
    fn result(&mut self, o: &Op, s: Option<Reg>, f: bool) -> Loc {
        let loc = match o.dst.as_gpr() {
            Some(n) => Loc::Gpr(n),
            None => {
                if f && let Some(s) = s {
                    self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), s);
                }
                Loc::Env
            }
        };
        if let Some(s) = s {
            self.put(o.dst, o.ty, s);
        }
        loc
    }

    fn compare(&mut self, o: &Op) {
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

    /// An operand in place, but constants in a register.
    fn rm_or_reg(&mut self, r: Ref, ty: Ty) -> Rm {
        if self.b.const_value(r).is_some() { Rm::Reg(self.reg(r, ty)) } else { self.rm(r, ty) }
    }

    fn test_op(&mut self, o: &Op) {
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

    fn with_carry(&mut self, index: usize, o: &Op, op: u8) {
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

    fn unary(&mut self, index: usize, o: &Op) {
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
        let target = match o.dst.as_gpr() {
            Some(n) if o.dst == o.a => match self.pin(n) {
                Some(d) => Some(Rm::Reg(d)),
                None if o.ty != Ty::I32 => Some(Rm::Mem(Mem::env(at::gpr(n)))),
                None => None,
            },
            _ => None,
        };
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

    /// SHLD and SHRD between registers, with a constant or where nobody looks at the flags; `op` is the second opcode
    /// byte of the form with an immediate, `k` the kind of the flags.
    fn double_shift(&mut self, index: usize, o: &Op, op: u8, k: u32) {
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

    fn shift(&mut self, index: usize, o: &Op, op: u8, k: u32) {
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

    fn rotate(&mut self, index: usize, o: &Op, op: u8) {
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

    /// The low half of a product.
    fn multiply(&mut self, index: usize, o: &Op) {
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
    fn wide_multiply(&mut self, index: usize, rest: &[Op]) -> usize {
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

    fn divide(&mut self, index: usize, o: &Op) {
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

    fn bit(&mut self, index: usize, o: &Op) {
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

    fn scan(&mut self, index: usize, o: &Op) {
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

    fn bmi(&mut self, index: usize, o: &Op) {
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

    /// Whether a register is a scratch one that may be overwritten after this use of `r`.
    fn dies(&self, s: Reg, r: Ref) -> bool {
        SCRATCH.contains(&s) && r.as_temp().is_none_or(|t| self.uses[t as usize] == 0)
    }

    fn all_die(&self, o: &Op) -> bool {
        [o.a, o.b].iter().all(|r| r.as_temp().is_none_or(|t| self.uses[t as usize] == 0))
    }

    fn setcc(&mut self, index: usize, o: &Op) {
        self.before_write(o.dst, index, 0);
        self.test(o.cond());
        match o.dst.as_gpr() {
            Some(n) => {
                let m = self.pin(n).map_or(Rm::Mem(Mem::env(at::gpr(n))), Rm::Reg);
                self.out.hot.setcc(o.cond(), m);
            }
            None => {
                let s = self.scratch();
                self.out.hot.setcc(o.cond(), Rm::Reg(s));
                self.put(o.dst, Ty::I8, s);
            }
        }
    }

    fn select(&mut self, index: usize, o: &Op) {
        self.before_write(o.dst, index, 0);
        for r in [o.a, o.b] {
            self.settle(r, o.ty);
        }
        self.test(o.cond());
        let ty = if o.ty == Ty::I8 { Ty::I32 } else { o.ty };
        if o.b == o.dst
            && let Some(d) = o.dst.as_gpr().and_then(|n| self.pin(n))
            && o.ty != Ty::I8
        {
            let m = self.rm_or_reg(o.a, o.ty);
            self.out.hot.cmov(o.cond(), ty, d, m);
            return;
        }
        let host = self.host;
        let s = self.copy(o.b, o.ty);
        let m = self.rm_or_reg(o.a, o.ty);
        let m = match (m, o.ty) {
            // No more bytes than the operand has.
            (Rm::Mem(_), Ty::I8) => {
                let t = self.scratch();
                self.out.hot.movzx(t, Ty::I8, m);
                Rm::Reg(t)
            }
            _ => m,
        };
        debug_assert_eq!(host, self.host, "the copies cost the flags");
        self.out.hot.cmov(o.cond(), ty, s, m);
        self.put(o.dst, o.ty, s);
    }

    /// An operation on memory whose old value nobody wants.
    fn rmw(&mut self, o: &Op) {
        use Opcode::*;
        let f = o.attr.flags();
        let lock = o.attr.lock() && self.options.smp;
        let wants_old = o.dst.as_temp().is_some_and(|t| self.uses[t as usize] > 0);
        if f && matches!(o.op, RmwBts | RmwBtr | RmwBtc) {
            self.materialize();
        }
        let step = f && matches!(o.op, RmwInc | RmwDec);
        if step {
            // Until the store is done, the record must stay as it is.
            self.materialize();
        }
        let value = o.b;
        if value.as_temp().is_some() {
            self.settle(value, o.ty);
        }
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let imm = if value == Ref::NONE { None } else { self.imm(value, o.ty) };
        let direct =
            value == Ref::NONE || imm.is_some() || value.as_gpr().and_then(|n| self.pin(n)).is_some();
        let bits = matches!(o.op, RmwBts | RmwBtr | RmwBtc);
        let aside = wants_old || step || matches!(o.op, RmwXchg | RmwAdc | RmwSbb) || bits && imm.is_none();
        let m = if direct && !aside { CHECKED } else { self.collapse() };
        if wants_old {
            // XCHG or XADD of another shape: through a register that receives the old value.
            let s = self.copy(value, o.ty);
            if o.op == RmwXchg {
                self.out.hot.xchg(o.ty, Rm::Mem(m), s);
            } else {
                if lock {
                    self.out.hot.bytes.push(0xf0);
                }
                self.out.hot.map1_sized(o.ty, 0xc0, s, Rm::Mem(m));
                self.host = 0;
                if f {
                    self.hold = [Hold::Op; 2];
                    self.save_host_flags();
                }
            }
            return self.put(o.dst, o.ty, s);
        }
        if o.op == RmwXchg {
            let s = self.copy(value, o.ty);
            self.out.hot.xchg(o.ty, Rm::Mem(m), s);
            return;
        }
        if matches!(o.op, RmwAdc | RmwSbb) {
            let s = match imm {
                None => Some(self.reg(value, o.ty)),
                Some(_) => None,
            };
            self.test(Cond::B);
            let op = if o.op == RmwAdc { alu::ADC } else { alu::SBB };
            match (imm, s) {
                (Some(v), _) => self.out.hot.alu_rm_i(op, o.ty, Rm::Mem(m), v),
                (_, Some(s)) => self.out.hot.alu_rm_r(op, o.ty, Rm::Mem(m), s),
                _ => {}
            }
            self.after_rmw(f);
            return;
        }
        if step && !lock {
            // Through a register, which the flags are known by.
            self.carry_to_b();
            let (k, n) = if o.op == RmwDec { (kind::DEC, 1) } else { (kind::INC, 0) };
            let hot = &mut self.out.hot;
            hot.movzx(reg::R10, o.ty, Rm::Mem(m));
            hot.group4(n, o.ty, Rm::Reg(reg::R10));
            hot.mov_rm_r(o.ty, Rm::Mem(m), reg::R10);
            hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), reg::R10);
            self.hold = [Hold::Free; 2];
            return self.know(k, o.ty, Loc::Env, Loc::Env, ALL & !flag::CF);
        }
        if step {
            self.carry_to_b();
            if lock {
                self.out.hot.bytes.push(0xf0);
            }
            self.out.hot.group4(u8::from(o.op == RmwDec), o.ty, Rm::Mem(m));
            // The carry that was kept, in the host's own.
            self.keep_carry();
            return;
        }
        let op = match o.op {
            RmwAdd => alu::ADD,
            RmwSub => alu::SUB,
            RmwAnd => alu::AND,
            RmwOr => alu::OR,
            RmwXor => alu::XOR,
            _ => 8,
        };
        if bits {
            if f {
                self.override_begin(flag::CF);
            }
            let n = match o.op {
                RmwBts => 5,
                RmwBtr => 6,
                _ => 7,
            };
            match imm {
                Some(v) => {
                    if lock {
                        self.out.hot.bytes.push(0xf0);
                    }
                    self.out.hot.bt_i(n, o.ty, Rm::Mem(m), v as u8 & (o.ty.bits() as u8 - 1));
                }
                None => {
                    let s = self.copy(value, o.ty);
                    self.out.hot.alu_rm_i(alu::AND, Ty::I32, Rm::Reg(s), o.ty.bits() as i32 - 1);
                    if lock {
                        self.out.hot.bytes.push(0xf0);
                    }
                    self.out.hot.bt_r(n, o.ty, Rm::Mem(m), s);
                }
            }
            if f {
                self.override_flags(flag::CF);
                self.host = flag::CF;
            } else {
                self.host = 0;
            }
            return;
        }
        let s = if op < 8 && imm.is_none() { Some(self.reg(value, o.ty)) } else { None };
        if lock {
            self.out.hot.bytes.push(0xf0);
        }
        match (o.op, imm, s) {
            (RmwInc, ..) => self.out.hot.group4(0, o.ty, Rm::Mem(m)),
            (RmwDec, ..) => self.out.hot.group4(1, o.ty, Rm::Mem(m)),
            (RmwNeg, ..) => self.out.hot.group3(3, o.ty, Rm::Mem(m)),
            (RmwNot, ..) => self.out.hot.group3(2, o.ty, Rm::Mem(m)),
            (_, Some(v), _) => self.out.hot.alu_rm_i(op, o.ty, Rm::Mem(m), v),
            (_, _, Some(s)) => self.out.hot.alu_rm_r(op, o.ty, Rm::Mem(m), s),
            _ => {}
        }
        if o.op == RmwNot {
            return;
        }
        self.after_rmw(f);
    }

    fn after_rmw(&mut self, f: bool) {
        if f {
            self.hold = [Hold::Free; 2];
            self.save_host_flags();
        } else {
            self.host = 0;
        }
    }

    /// Saves the host's flags with the carry in `cc_b`.
    fn keep_carry(&mut self) {
        self.hold = [Hold::Free; 2];
        self.save_host_flags();
        // Bit 8 of the saved flags is CF.
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I8, reg::R9, Rm::Mem(Mem::env(at::CC_A + 1)));
        hot.mov_r_rm(Ty::I8, reg::R10, Rm::Mem(Mem::env(at::CC_B)));
        hot.alu_rm_i(alu::AND, Ty::I8, Rm::Reg(reg::R9), !1);
        hot.alu_rm_i(alu::AND, Ty::I8, Rm::Reg(reg::R10), 1);
        hot.alu_rm_r(alu::OR, Ty::I8, Rm::Reg(reg::R9), reg::R10);
        hot.mov_rm_r(Ty::I8, Rm::Mem(Mem::env(at::CC_A + 1)), reg::R9);
        self.host = 0;
    }

    fn exchange(&mut self, index: usize, o: &Op, mov: &Op) {
        let f = o.attr.flags();
        self.before_write(mov.dst, index, if f { ALL } else { 0 });
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let m = self.collapse();
        let lock = o.attr.lock() && self.options.smp;
        let s = match mov.dst.as_gpr().and_then(|n| self.pin(n)) {
            // A 32-bit exchange clears the upper half, as the guest's does.
            Some(d) => d,
            None => self.copy(o.b, o.ty),
        };
        if o.op == Opcode::RmwXchg {
            self.out.hot.xchg(o.ty, Rm::Mem(m), s);
        } else {
            if lock {
                self.out.hot.bytes.push(0xf0);
            }
            self.out.hot.map1_sized(o.ty, 0xc0, s, Rm::Mem(m));
            self.host = 0;
        }
        if mov.dst.as_gpr().and_then(|n| self.pin(n)).is_none() {
            self.put(mov.dst, o.ty, s);
        }
        if o.op == Opcode::RmwAdd && f {
            self.hold = [Hold::Free; 2];
            self.save_host_flags();
        }
    }

    fn cmpxchg(&mut self, index: usize, o: &Op) {
        self.before_write(Ref::gpr(0), index, ALL);
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let (m, s) = match o.c.as_gpr().and_then(|n| self.pin(n)) {
            Some(s) => (CHECKED, s),
            None => {
                let m = self.collapse();
                (m, self.reg(o.c, o.ty))
            }
        };
        if o.attr.lock() && self.options.smp {
            self.out.hot.bytes.push(0xf0);
        }
        self.out.hot.map1_sized(o.ty, 0xb0, s, Rm::Mem(m));
        self.hold = [Hold::Free; 2];
        self.save_host_flags();
    }

    // ---- the block's end ----

    fn branch(&mut self, o: &Op) {
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

    fn branch_nonzero(&mut self, o: &Op) {
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
    fn defers_check(&mut self, rest: &[Op]) -> bool {
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
    fn check_rip(&mut self, o: &Op) {
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
