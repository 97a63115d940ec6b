//! A few pairs and sequences that compilers like to write, as one operation: compare and branch, load and extend, push,
//! pop, return.

use super::super::exec::{self as x, AndOp, I, R, SubOp};
use super::super::mem as m;
use super::super::t0::{Handler, T0, ZERO};
use super::{Lower, Temp};
use crate::ir::{Opcode, Ref, Ty};
use crate::mode::key;

impl Lower<'_> {
    /// Several operations that have one of their own; how many were taken.
    pub(super) fn fused(&mut self, at: usize) -> usize {
        let b = self.b;
        let rest = &b.ops[at..];
        let l64 = b.key & key::L64 != 0;
        let is = |n: usize, op: Opcode| rest.get(n).is_some_and(|o| o.op == op);
        let o = rest[0];
        // Compare and branch.
        if matches!(o.op, Opcode::Cmp | Opcode::Test) && o.attr.flags() && is(1, Opcode::Br) {
            let br = rest[1];
            let first = self.out.len();
            let a = self.slot(o.a, o.ty);
            let (bs, imm, is_imm) = self.source(o.b, o.ty);
            let cond = br.imm as u8;
            let sub = o.op == Opcode::Cmp;
            let run = match sub {
                true if is_imm => by_cond!(cond, |C| by_ty!(o.ty, |T| x::cmp_br::<SubOp, T, I, C>)),
                true => by_cond!(cond, |C| by_ty!(o.ty, |T| x::cmp_br::<SubOp, T, R, C>)),
                false if is_imm => by_cond!(cond, |C| by_ty!(o.ty, |T| x::cmp_br::<AndOp, T, I, C>)),
                false => by_cond!(cond, |C| by_ty!(o.ty, |T| x::cmp_br::<AndOp, T, R, C>)),
            };
            let t = T0 { a, b: bs, imm, y: b.insns.len() as u16, ..self.blank() };
            let half_run = match sub {
                true => tsf!(o.ty, is_imm, true, |T, S, F| x::cmp::<SubOp, T, S, F>),
                false => tsf!(o.ty, is_imm, true, |T, S, F| x::cmp::<AndOp, T, S, F>),
            };
            if br.insn != o.insn {
                self.halves.push((self.out.len() as u32, T0 { run: half_run, ..t }));
            }
            let _ = first;
            self.insn = br.insn;
            self.emit(run, t);
            return 2;
        }
        // Load and extend.
        if o.op == Opcode::Ld
            && b.key & key::AC == 0
            && matches!(o.ty, Ty::I8 | Ty::I16 | Ty::I32)
            && (is(1, Opcode::Zext) || is(1, Opcode::Sext))
            && rest[1].a == o.dst
            && rest[1].insn == o.insn
            && o.dst.as_temp().is_some_and(|t| self.uses[t as usize] == 1)
            && matches!(rest[1].ty, Ty::I32 | Ty::I64)
            && rest[1].from_ty() == o.ty
            && (rest[1].dst.as_gpr().is_some() || rest[1].dst.as_temp().is_some())
        {
            let e = rest[1];
            let signed = e.op == Opcode::Sext;
            let run = match (signed, e.ty == Ty::I64) {
                (false, _) => by_ty!(o.ty, |T| m::ldx::<T, false, true>),
                (true, false) => by_ty!(o.ty, |T| m::ldx::<T, true, false>),
                (true, true) => by_ty!(o.ty, |T| m::ldx::<T, true, true>),
            };
            let p = self.parts(o.a);
            let t = T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, y: o.attr.0.into(), ..self.blank() };
            self.emit_dst(run, e.dst, t);
            return 2;
        }
        if !l64 || b.key & key::AC != 0 {
            return 0;
        }
        let stack = |s: &Self, r: Ref, disp: i64| {
            r.as_temp().is_some_and(|t| match s.temps[t as usize] {
                Temp::Address(p) => {
                    p.a == 4 && p.b == ZERO && p.c == ZERO && p.disp == disp as u64 && s.uses[t as usize] == 1
                }
                _ => false,
            })
        };
        let rsp = Ref::gpr(4);
        let adjusts = |n: usize| -> Option<u64> {
            let a = rest.get(n)?;
            (a.op == Opcode::Add
                && a.ty == Ty::I64
                && a.dst == rsp
                && a.a == rsp
                && !a.attr.flags()
                && a.insn == o.insn)
                .then(|| b.const_value(a.b))?
        };
        // PUSH.
        if o.op == Opcode::St && o.ty == Ty::I64 && stack(self, o.a, -8) && adjusts(1) == Some(-8i64 as u64) {
            let (bs, imm, is_imm) = self.source(o.b, Ty::I64);
            let t = T0 { b: bs, imm, y: o.attr.0.into(), ..self.blank() };
            self.emit(if is_imm { m::push64::<I> } else { m::push64::<R> }, t);
            return 2;
        }
        if o.op == Opcode::Ld && o.ty == Ty::I64 && stack(self, o.a, 0) {
            // POP.
            if adjusts(1) == Some(8)
                && is(2, Opcode::Mov)
                && rest[2].a == o.dst
                && rest[2].insn == o.insn
                && rest[2].ty == Ty::I64
                && rest[2].dst.as_gpr().is_some()
            {
                let t = T0 { y: o.attr.0.into(), ..self.blank() };
                self.emit_dst(m::pop64, rest[2].dst, t);
                return 3;
            }
            // RET.
            if is(1, Opcode::ChkRip)
                && rest[1].a == o.dst
                && let Some(n) = adjusts(2)
                && is(3, Opcode::JmpInd)
                && rest[3].a == o.dst
            {
                let y = u16::from(o.attr.0) | (b.insns.len() as u16) << 8;
                let t = T0 { imm: n, y, ..self.blank() };
                self.emit(m::ret64, t);
                return 4;
            }
        }
        // Computed jump.
        if o.op == Opcode::ChkRip && is(1, Opcode::JmpInd) && rest[1].a == o.a && o.a.as_pool().is_none() {
            let a = self.slot(o.a, Ty::I64);
            let t = T0 { a, y: b.insns.len() as u16, ..self.blank() };
            self.emit(x::jmp_checked, t);
            return 2;
        }
        0
    }
}
