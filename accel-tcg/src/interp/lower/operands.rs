//! Slots of operands and results, and addresses folded into the accesses that use them.

use super::super::exec::{self as x, I};
use super::super::t0::{Handler, T0, TEMP, ZERO, base_slot};
use super::{DUMMY, Lower, Parts, Temp, USABLE};
use crate::ir::{Ref, Ty};
use crate::mode::key;

impl Lower<'_> {
    pub(super) fn emit(&mut self, run: Handler, t: T0) {
        self.out.push(T0 { run, insn: self.insn, ..t });
    }

    pub(super) fn blank(&self) -> T0 {
        T0 { run: x::raise, imm: 0, d: 0, a: ZERO, b: ZERO, c: ZERO, x: 0, insn: self.insn, y: 0 }
    }

    pub(super) fn fresh(&mut self) -> u8 {
        // The front end keeps instructions well below this; a wrap would only reuse the oldest.
        let s = TEMP + self.next % USABLE;
        self.next += 1;
        s
    }

    /// Computes a folded address after all.
    pub(super) fn materialize(&mut self, t: usize, p: Parts) -> u8 {
        let d = self.fresh();
        let o = T0 { imm: p.disp, d, a: p.a, b: p.b, c: p.c, x: p.x, ..self.blank() };
        self.emit(x::ea::<u64, true>, o);
        self.temps[t] = Temp::Slot(d);
        d
    }

    /// The slot that holds a value; constants are put into one.
    pub(super) fn slot(&mut self, r: Ref, ty: Ty) -> u8 {
        if let Some(n) = r.as_gpr() {
            return n;
        }
        if let Some(n) = r.as_seg_base() {
            return base_slot(n);
        }
        if let Some(n) = r.as_high() {
            let d = self.fresh();
            let o = T0 { d, b: n, ..self.blank() };
            self.emit(x::ext_high, o);
            return d;
        }
        if let Some(n) = r.as_seg_sel() {
            let d = self.fresh();
            let o = T0 { d, imm: n.into(), ..self.blank() };
            self.emit(x::selector, o);
            return d;
        }
        if let Some(v) = self.b.const_value(r) {
            if v == 0 {
                return ZERO;
            }
            let d = self.fresh();
            let o = T0 { d, imm: v, ..self.blank() };
            self.emit(x::mov::<u64, I>, o);
            return d;
        }
        if let Some(t) = r.as_temp() {
            self.uses[t as usize] = self.uses[t as usize].saturating_sub(1);
            return match self.temps[t as usize] {
                Temp::Slot(s) => s,
                Temp::Address(p) => self.materialize(t as usize, p),
                Temp::Nothing => ZERO,
            };
        }
        let _ = ty;
        ZERO
    }

    /// The second operand: a slot, or an immediate.
    pub(super) fn source(&mut self, r: Ref, ty: Ty) -> (u8, u64, bool) {
        match self.b.const_value(r) {
            Some(v) => (ZERO, v & ty.mask(), true),
            None => (self.slot(r, ty), 0, false),
        }
    }

    /// The parts of an address.
    pub(super) fn parts(&mut self, r: Ref) -> Parts {
        if let Some(t) = r.as_temp()
            && let Temp::Address(p) = self.temps[t as usize]
        {
            self.uses[t as usize] = self.uses[t as usize].saturating_sub(1);
            return p;
        }
        if let Some(v) = self.b.const_value(r) {
            return Parts { a: ZERO, b: ZERO, c: ZERO, x: 0, disp: v };
        }
        Parts { a: self.slot(r, Ty::I64), b: ZERO, c: ZERO, x: 0, disp: 0 }
    }

    /// The parts with a displacement that fits 32 bits, for operations with an immediate of their own.
    pub(super) fn short_parts(&mut self, r: Ref) -> Parts {
        let p = self.parts(r);
        if i64::from(p.disp as i32) as u64 == p.disp {
            return p;
        }
        let d = self.fresh();
        let o = T0 { imm: p.disp, d, a: p.a, b: p.b, c: p.c, x: p.x, ..self.blank() };
        self.emit(x::ea::<u64, true>, o);
        Parts { a: d, b: ZERO, c: ZERO, x: 0, disp: 0 }
    }

    /// The alignment check of user code that has it on.
    pub(super) fn align(&mut self, p: Parts, ty: Ty) {
        if self.b.key & key::AC == 0 || matches!(ty, Ty::I8 | Ty::V128) {
            return;
        }
        let t = T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d: ty.bytes() as u8 - 1, ..self.blank() };
        self.emit(x::chk_align, t);
    }

    /// A place for the result, and whether it must be moved to a high byte afterwards.
    pub(super) fn dst(&mut self, r: Ref) -> (u8, Option<u8>) {
        if let Some(n) = r.as_gpr() {
            // Folded addresses that still have uses must see the register's old value.
            for t in 0..self.temps.len() {
                if let Temp::Address(p) = self.temps[t]
                    && self.uses[t] > 0
                    && (p.a == n || p.b == n || p.c == n)
                {
                    self.materialize(t, p);
                }
            }
            return (n, None);
        }
        if let Some(n) = r.as_high() {
            return (self.fresh(), Some(n));
        }
        if let Some(t) = r.as_temp() {
            let s = self.fresh();
            self.temps[t as usize] = Temp::Slot(s);
            return (s, None);
        }
        (DUMMY, None)
    }

    /// Emits an operation that has a destination.
    pub(super) fn emit_dst(&mut self, run: Handler, dst: Ref, t: T0) {
        let (d, high) = self.dst(dst);
        self.emit(run, T0 { d, ..t });
        self.insert_high(d, high);
    }

    pub(super) fn insert_high(&mut self, from: u8, high: Option<u8>) {
        if let Some(n) = high {
            let o = T0 { d: n, b: from, ..self.blank() };
            self.emit(x::ins_high, o);
        }
    }
}
