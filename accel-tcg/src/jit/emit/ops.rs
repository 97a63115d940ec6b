//! Operations, one by one, and the few sequences that are one host instruction.

mod arith;
mod bits;
mod ends;
mod multiply;
mod rmw;

use super::super::asm::{Mem, Reg, Rm, alu, reg, sh};
use super::flags::Loc;
use super::{CHECKED, Emit, Hold, SCRATCH, To, at};
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

    /// Whether a register is a scratch one that may be overwritten after this use of `r`.
    fn dies(&self, s: Reg, r: Ref) -> bool {
        SCRATCH.contains(&s) && r.as_temp().is_none_or(|t| self.uses[t as usize] == 0)
    }

    fn all_die(&self, o: &Op) -> bool {
        [o.a, o.b].iter().all(|r| r.as_temp().is_none_or(|t| self.uses[t as usize] == 0))
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

    /// An operand in place, but constants in a register.
    fn rm_or_reg(&mut self, r: Ref, ty: Ty) -> Rm {
        if self.b.const_value(r).is_some() { Rm::Reg(self.reg(r, ty)) } else { self.rm(r, ty) }
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
}
