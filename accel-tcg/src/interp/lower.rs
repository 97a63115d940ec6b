//! IR to direct-threaded operations.
//!
//! Addresses are folded into the accesses that use them, constants into immediates, and a few pairs that compilers
//! like to write (compare and branch, load and extend, push, pop, return) become one operation.

use super::exec::{self as x, *};
use super::mem::{self as m};
use super::t0::{Code, Handler, Site, T0, TEMP, TEMPS, ZERO, base_slot};
use super::thunk;
use crate::helpers::HelperArgs;
use crate::ir::{Block, Help, Op, Opcode, Ref, Ty};
use crate::mode::key;
use std::cell::Cell;
use std::ptr;

/// Temporaries with fixed places.
const DUMMY: u8 = TEMP + 63;
const USABLE: u8 = 60;

const _: () = assert!(TEMPS == 64);

/// An address that has been computed nowhere yet.
#[derive(Clone, Copy)]
struct Parts {
    a: u8,
    b: u8,
    c: u8,
    x: u8,
    disp: u64,
}

#[derive(Clone, Copy)]
enum Temp {
    /// Not defined yet.
    Nothing,
    /// In a slot.
    Slot(u8),
    /// An address to be folded.
    Address(Parts),
}

struct Lower<'a> {
    b: &'a Block,
    out: Vec<T0>,
    temps: Vec<Temp>,
    uses: Vec<u16>,
    next: u8,
    insn: u8,
    sites: &'a [Site],
    thunks: &'a [thunk::Opaque],
    halves: Vec<(u32, T0)>,
}

/// Picks the instance for a width.
macro_rules! by_ty {
    ($ty:expr, |$t:ident| $e:expr) => {
        match $ty {
            Ty::I8 => {
                type $t = u8;
                $e as Handler
            }
            Ty::I16 => {
                type $t = u16;
                $e as Handler
            }
            Ty::I32 => {
                type $t = u32;
                $e as Handler
            }
            Ty::I64 | Ty::V128 => {
                type $t = u64;
                $e as Handler
            }
        }
    };
}

/// Picks the instance for a width, operand form and flags form.
macro_rules! tsf {
    ($ty:expr, $imm:expr, $f:expr, |$t:ident, $s:ident, $fl:ident| $e:expr) => {
        match ($imm, $f) {
            (false, false) => {
                type $s = R;
                const $fl: bool = false;
                by_ty!($ty, |$t| $e)
            }
            (false, true) => {
                type $s = R;
                const $fl: bool = true;
                by_ty!($ty, |$t| $e)
            }
            (true, false) => {
                type $s = I;
                const $fl: bool = false;
                by_ty!($ty, |$t| $e)
            }
            (true, true) => {
                type $s = I;
                const $fl: bool = true;
                by_ty!($ty, |$t| $e)
            }
        }
    };
}

macro_rules! by_cond {
    ($c:expr, |$k:ident| $e:expr) => {
        by_cond!(@ $c, $k, $e, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $c:expr, $k:ident, $e:expr, $($n:literal)*) => {
        match $c & 15 {
            $($n => { const $k: u8 = $n; $e as Handler })*
            _ => unreachable!("masked to four bits"),
        }
    };
}

impl Lower<'_> {
    fn emit(&mut self, run: Handler, t: T0) {
        self.out.push(T0 { run, insn: self.insn, ..t });
    }

    fn blank(&self) -> T0 {
        T0 { run: x::raise, imm: 0, d: 0, a: ZERO, b: ZERO, c: ZERO, x: 0, insn: self.insn, y: 0 }
    }

    fn fresh(&mut self) -> u8 {
        // The front end keeps instructions well below this; a wrap would only reuse the oldest.
        let s = TEMP + self.next % USABLE;
        self.next += 1;
        s
    }

    /// Computes a folded address after all.
    fn materialize(&mut self, t: usize, p: Parts) -> u8 {
        let d = self.fresh();
        let o = T0 { imm: p.disp, d, a: p.a, b: p.b, c: p.c, x: p.x, ..self.blank() };
        self.emit(x::ea::<u64, true>, o);
        self.temps[t] = Temp::Slot(d);
        d
    }

    /// The slot that holds a value; constants are put into one.
    fn slot(&mut self, r: Ref, ty: Ty) -> u8 {
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
    fn source(&mut self, r: Ref, ty: Ty) -> (u8, u64, bool) {
        match self.b.const_value(r) {
            Some(v) => (ZERO, v & ty.mask(), true),
            None => (self.slot(r, ty), 0, false),
        }
    }

    /// The parts of an address.
    fn parts(&mut self, r: Ref) -> Parts {
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
    fn short_parts(&mut self, r: Ref) -> Parts {
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
    fn align(&mut self, p: Parts, ty: Ty) {
        if self.b.key & key::AC == 0 || matches!(ty, Ty::I8 | Ty::V128) {
            return;
        }
        let t = T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d: ty.bytes() as u8 - 1, ..self.blank() };
        self.emit(x::chk_align, t);
    }

    /// A place for the result, and whether it must be moved to a high byte afterwards.
    fn dst(&mut self, r: Ref) -> (u8, Option<u8>) {
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
    fn emit_dst(&mut self, run: Handler, dst: Ref, t: T0) {
        let (d, high) = self.dst(dst);
        self.emit(run, T0 { d, ..t });
        self.insert_high(d, high);
    }

    fn insert_high(&mut self, from: u8, high: Option<u8>) {
        if let Some(n) = high {
            let o = T0 { d: n, b: from, ..self.blank() };
            self.emit(x::ins_high, o);
        }
    }

    fn binary(&mut self, o: &Op, pick: impl Fn(Ty, bool, bool) -> Handler) {
        let a = self.slot(o.a, o.ty);
        let (b, imm, is_imm) = self.source(o.b, o.ty);
        let run = pick(o.ty, is_imm, o.attr.flags());
        let t = T0 { a, b, imm, ..self.blank() };
        self.emit_dst(run, o.dst, t);
    }

    fn unary(&mut self, o: &Op, run: Handler) {
        let a = self.slot(o.a, o.ty);
        let t = T0 { a, b: a, ..self.blank() };
        self.emit_dst(run, o.dst, t);
    }

    fn memory(&mut self, o: &Op, value: Ref, run: Handler) {
        let p = self.parts(o.a);
        self.align(p, o.ty);
        let d = if value == Ref::NONE { DUMMY } else { self.slot(value, o.ty) };
        let t = T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, ..self.blank() };
        let (old, high) = self.dst(o.dst);
        self.emit(run, T0 { y: u16::from(o.attr.0) | u16::from(old) << 8, ..t });
        self.insert_high(old, high);
    }

    /// ALU operation on memory, with an immediate if it fits.
    fn rmw(&mut self, o: &Op, pick: impl Fn(Ty, bool) -> Handler) {
        match self.b.const_value(o.b).map(|v| sign_extend(v, o.ty)) {
            Some(v) if i64::from(v as i32) as u64 == v => {
                let p = self.short_parts(o.a);
                self.align(p, o.ty);
                let imm = p.disp & 0xffff_ffff | v << 32;
                let t = T0 { imm, a: p.a, b: p.b, c: p.c, x: p.x, ..self.blank() };
                let (old, high) = self.dst(o.dst);
                self.emit(pick(o.ty, true), T0 { y: u16::from(o.attr.0) | u16::from(old) << 8, ..t });
                self.insert_high(old, high);
            }
            _ => self.memory(o, o.b, pick(o.ty, false)),
        }
    }

    /// Several operations that have one of their own; how many were taken.
    fn fused(&mut self, at: usize) -> usize {
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

    #[allow(clippy::too_many_lines)]
    fn one(&mut self, o: &Op) {
        let n = self.b.insns.len() as u16;
        let f = o.attr.flags();
        macro_rules! bin {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::bin::<$k, T, S, F>))
            };
        }
        macro_rules! compare {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::cmp::<$k, T, S, F>))
            };
        }
        macro_rules! shift {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::shift::<{ x::$k }, T, S, F>))
            };
        }
        macro_rules! eager {
            ($k:ident) => {{
                if o.b == Ref::NONE {
                    let run = tsf!(o.ty, false, f, |T, S, F| x::eager::<$k, T, S, F>);
                    self.unary(o, run)
                } else {
                    self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::eager::<$k, T, S, F>))
                }
            }};
        }
        macro_rules! rmw {
            ($k:ident) => {
                self.rmw(o, |ty, imm| match imm {
                    true => by_ty!(ty, |T| m::rmw::<$k, T, I, true>),
                    false => by_ty!(ty, |T| m::rmw::<$k, T, R, false>),
                })
            };
        }
        macro_rules! rmw_other {
            ($k:ident) => {{
                let run = by_ty!(o.ty, |T| m::rmw_other::<{ m::$k }, T>);
                self.memory(o, o.b, run)
            }};
        }
        match o.op {
            Opcode::Mov if o.ty == Ty::V128 => {
                if let (Some(d), Some(b)) = (o.dst.as_xmm(), o.a.as_xmm()) {
                    let t = T0 { d, b, ..self.blank() };
                    self.emit(x::mov_xmm, t);
                }
            }
            Opcode::Mov => {
                let (b, imm, is_imm) = self.source(o.a, o.ty);
                let run = match is_imm {
                    true => by_ty!(o.ty, |T| x::mov::<T, I>),
                    false => by_ty!(o.ty, |T| x::mov::<T, R>),
                };
                let t = T0 { b, imm, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Zext => {
                let run = match o.from_ty() {
                    Ty::I8 => by_ty!(o.ty, |T| x::zext::<u8, T>),
                    Ty::I16 => by_ty!(o.ty, |T| x::zext::<u16, T>),
                    Ty::I32 => by_ty!(o.ty, |T| x::zext::<u32, T>),
                    Ty::I64 | Ty::V128 => by_ty!(o.ty, |T| x::zext::<u64, T>),
                };
                self.unary(o, run);
            }
            Opcode::Sext => {
                let run = match o.from_ty() {
                    Ty::I8 => by_ty!(o.ty, |T| x::sext::<u8, T>),
                    Ty::I16 => by_ty!(o.ty, |T| x::sext::<u16, T>),
                    Ty::I32 => by_ty!(o.ty, |T| x::sext::<u32, T>),
                    Ty::I64 | Ty::V128 => by_ty!(o.ty, |T| x::sext::<u64, T>),
                };
                self.unary(o, run);
            }
            Opcode::Add => bin!(AddOp),
            Opcode::Sub => bin!(SubOp),
            Opcode::And => bin!(AndOp),
            Opcode::Or => bin!(OrOp),
            Opcode::Xor => bin!(XorOp),
            Opcode::Adc => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::adc::<T, S, false, F>)),
            Opcode::Sbb => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::adc::<T, S, true, F>)),
            Opcode::Cmp => compare!(SubOp),
            Opcode::Test => compare!(AndOp),
            Opcode::Neg => {
                let run = match f {
                    true => by_ty!(o.ty, |T| x::neg::<T, true>),
                    false => by_ty!(o.ty, |T| x::neg::<T, false>),
                };
                self.unary(o, run);
            }
            Opcode::Not => self.unary(o, by_ty!(o.ty, |T| x::not::<T>)),
            Opcode::Inc | Opcode::Dec => {
                let run = match (o.op == Opcode::Dec, f) {
                    (false, false) => by_ty!(o.ty, |T| x::inc::<T, false, false>),
                    (false, true) => by_ty!(o.ty, |T| x::inc::<T, false, true>),
                    (true, false) => by_ty!(o.ty, |T| x::inc::<T, true, false>),
                    (true, true) => by_ty!(o.ty, |T| x::inc::<T, true, true>),
                };
                self.unary(o, run);
            }
            Opcode::Shl => shift!(SHL),
            Opcode::Shr => shift!(SHR),
            Opcode::Sar => shift!(SAR),
            Opcode::Rol => shift!(ROL),
            Opcode::Ror => shift!(ROR),
            Opcode::Rcl => shift!(RCL),
            Opcode::Rcr => shift!(RCR),
            Opcode::Shld | Opcode::Shrd => {
                let a = self.slot(o.a, o.ty);
                let c = self.slot(o.b, o.ty);
                let (b, imm, is_imm) = self.source(o.c, Ty::I8);
                let run = match o.op {
                    Opcode::Shld => tsf!(o.ty, is_imm, f, |T, S, F| x::double::<false, T, S, F>),
                    _ => tsf!(o.ty, is_imm, f, |T, S, F| x::double::<true, T, S, F>),
                };
                let t = T0 { a, b, c, imm, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Mul => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::mul::<false, T, S, F>)),
            Opcode::Imul => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::mul::<true, T, S, F>)),
            Opcode::Umulh | Opcode::Smulh => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let run = match o.op {
                    Opcode::Umulh => by_ty!(o.ty, |T| x::mulh::<false, T>),
                    _ => by_ty!(o.ty, |T| x::mulh::<true, T>),
                };
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Div | Opcode::Idiv => {
                let a = self.slot(o.a, o.ty);
                let run = match o.op {
                    Opcode::Div => by_ty!(o.ty, |T| x::div::<false, T>),
                    _ => by_ty!(o.ty, |T| x::div::<true, T>),
                };
                let t = T0 { a, ..self.blank() };
                self.emit(run, t);
            }
            Opcode::Bt => eager!(BtOp),
            Opcode::Bts => eager!(BtsOp),
            Opcode::Btr => eager!(BtrOp),
            Opcode::Btc => eager!(BtcOp),
            Opcode::Bsf => eager!(BsfOp),
            Opcode::Bsr => eager!(BsrOp),
            Opcode::Lzcnt => eager!(LzcntOp),
            Opcode::Tzcnt => eager!(TzcntOp),
            Opcode::Popcnt => eager!(PopcntOp),
            Opcode::Bswap => eager!(BswapOp),
            Opcode::Andn => eager!(AndnOp),
            Opcode::Blsr => eager!(BlsrOp),
            Opcode::Blsi => eager!(BlsiOp),
            Opcode::Blsmsk => eager!(BlsmskOp),
            Opcode::Bextr => eager!(BextrOp),
            Opcode::Bzhi => eager!(BzhiOp),
            Opcode::Pdep => eager!(PdepOp),
            Opcode::Pext => eager!(PextOp),
            Opcode::Adcx if f => eager!(AdcxOp),
            Opcode::Adox if f => eager!(AdoxOp),
            Opcode::Adcx | Opcode::Adox => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let run = match o.op {
                    Opcode::Adcx => by_ty!(o.ty, |T| x::eager_carry::<AdcxOp, T>),
                    _ => by_ty!(o.ty, |T| x::eager_carry::<AdoxOp, T>),
                };
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Crc32 => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(by_ty!(o.from_ty(), |T| x::crc32::<T>), o.dst, t);
            }
            Opcode::Setcc => {
                let t = self.blank();
                self.emit_dst(by_cond!(o.imm as u8, |C| x::set::<C>), o.dst, t);
            }
            Opcode::Select => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let t = T0 { a, b, ..self.blank() };
                let run = by_cond!(o.imm as u8, |C| by_ty!(o.ty, |T| x::select::<C, T>));
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Getf => {
                let t = self.blank();
                self.emit_dst(if o.ty == Ty::I64 { x::get_rflags } else { x::getf }, o.dst, t);
            }
            Opcode::Fence => {
                let t = self.blank();
                self.emit(x::fence, t);
            }
            Opcode::Setf => {
                let a = self.slot(o.a, o.ty);
                let t = T0 { a, ..self.blank() };
                self.emit(x::setf, t);
            }
            Opcode::Ea => self.ea(o),
            Opcode::Ld if o.ty == Ty::V128 => {
                let p = self.parts(o.a);
                let d = o.dst.as_xmm().unwrap_or(0);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, y: o.attr.0.into(), ..self.blank() };
                self.emit(m::ld128, t);
            }
            Opcode::Ld | Opcode::LdW => {
                let run = match o.op {
                    Opcode::Ld => by_ty!(o.ty, |T| m::ld::<T>),
                    _ => by_ty!(o.ty, |T| m::ldw::<T>),
                };
                let p = self.parts(o.a);
                self.align(p, o.ty);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, y: o.attr.0.into(), ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::St if o.ty == Ty::V128 => {
                let p = self.parts(o.a);
                let d = o.b.as_xmm().unwrap_or(0);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, y: o.attr.0.into(), ..self.blank() };
                self.emit(m::st128, t);
            }
            Opcode::St => match self.b.const_value(o.b).map(|v| sign_extend(v, o.ty)) {
                Some(v) if i64::from(v as i32) as u64 == v => {
                    let p = self.short_parts(o.a);
                    self.align(p, o.ty);
                    let imm = p.disp & 0xffff_ffff | v << 32;
                    let t = T0 { imm, a: p.a, b: p.b, c: p.c, x: p.x, y: o.attr.0.into(), ..self.blank() };
                    self.emit(by_ty!(o.ty, |T| m::st::<T, I, true>), t);
                }
                _ => {
                    let d = self.slot(o.b, o.ty);
                    let p = self.parts(o.a);
                    self.align(p, o.ty);
                    let t = T0 {
                        imm: p.disp,
                        a: p.a,
                        b: p.b,
                        c: p.c,
                        x: p.x,
                        d,
                        y: o.attr.0.into(),
                        ..self.blank()
                    };
                    self.emit(by_ty!(o.ty, |T| m::st::<T, R, false>), t);
                }
            },
            Opcode::RmwAdd => rmw!(AddOp),
            Opcode::RmwSub => rmw!(SubOp),
            Opcode::RmwAnd => rmw!(AndOp),
            Opcode::RmwOr => rmw!(OrOp),
            Opcode::RmwXor => rmw!(XorOp),
            Opcode::RmwAdc => rmw_other!(ADC),
            Opcode::RmwSbb => rmw_other!(SBB),
            Opcode::RmwInc => rmw_other!(INC),
            Opcode::RmwDec => rmw_other!(DEC),
            Opcode::RmwNeg => rmw_other!(NEG),
            Opcode::RmwNot => rmw_other!(NOT),
            Opcode::RmwXchg => rmw_other!(XCHG),
            Opcode::RmwBts => rmw_other!(BTS),
            Opcode::RmwBtr => rmw_other!(BTR),
            Opcode::RmwBtc => rmw_other!(BTC),
            Opcode::RmwCmpxchg => {
                // `b` is rAX by construction.
                self.memory(o, o.c, by_ty!(o.ty, |T| m::cmpxchg::<T>));
            }
            Opcode::RmwCmpxchg2 => {
                let run: Handler = if o.ty == Ty::I64 { m::cmpxchg2::<true> } else { m::cmpxchg2::<false> };
                self.memory(o, Ref::NONE, run);
            }
            Opcode::ChkSeg => {
                let a = self.slot(o.a, Ty::I32);
                let t = T0 { a, imm: o.imm.into(), ..self.blank() };
                self.emit(x::chk_seg, t);
            }
            Opcode::ChkRip => {
                let a = self.slot(o.a, Ty::I64);
                let t = T0 { a, ..self.blank() };
                self.emit(x::chk_rip, t);
            }
            Opcode::Helper => {
                let [a, b, c] = [o.a, o.b, o.c].map(|r| self.slot(r, Ty::I64));
                let imm = (&raw const self.sites[o.imm as usize]) as u64;
                let t = T0 { a, b, c, imm, y: o.attr.0.into(), ..self.blank() };
                self.emit(x::helper, t);
            }
            Opcode::X86 => {
                let a = self.slot(o.a, Ty::I64);
                let imm = (&raw const self.thunks[o.imm as usize]) as u64;
                let t = T0 { a, imm, y: o.attr.0.into(), ..self.blank() };
                self.emit(thunk::run, t);
            }
            Opcode::Br => {
                let t = T0 { y: n, ..self.blank() };
                self.emit(by_cond!(o.imm as u8, |C| x::br::<C>), t);
            }
            Opcode::Brnz => {
                let a = self.slot(o.c, o.ty);
                let t = T0 { a, y: n, ..self.blank() };
                self.emit(by_ty!(o.ty, |T| x::brnz::<T>), t);
            }
            Opcode::Jmp => {
                let t = T0 { y: n, ..self.blank() };
                self.emit(x::jmp, t);
            }
            Opcode::JmpInd => {
                let a = self.slot(o.a, Ty::I64);
                let t = T0 { a, y: n, ..self.blank() };
                self.emit(x::jmp_indirect, t);
            }
            Opcode::Exit => {
                let imm = self.b.const_value(o.a).unwrap_or(0);
                let t = T0 { imm, y: n, ..self.blank() };
                self.emit(x::leave, t);
            }
            Opcode::Raise => {
                let t = T0 { imm: o.imm.into(), ..self.blank() };
                self.emit(x::raise, t);
            }
        }
    }

    fn ea(&mut self, o: &Op) {
        let mut disp = i64::from(o.imm as i32) as u64;
        let a = match self.b.const_value(o.a) {
            Some(v) => {
                disp = disp.wrapping_add(v);
                ZERO
            }
            None => self.slot(o.a, o.ty),
        };
        let b = self.slot(o.b, o.ty);
        let c = self.slot(o.c, Ty::I64);
        let sx = o.attr.scale();
        let t = T0 { imm: disp, a, b, c, x: sx, ..self.blank() };
        match o.dst.as_temp() {
            Some(n) if o.ty == Ty::I64 => {
                self.temps[n as usize] = Temp::Address(Parts { a, b, c, x: sx, disp });
            }
            Some(_) => {
                let t = T0 { y: u16::from(self.b.key & key::L64 != 0), ..t };
                self.emit_dst(by_ty!(o.ty, |T| x::ea::<T, false>), o.dst, t);
            }
            None => self.emit_dst(by_ty!(o.ty, |T| x::lea::<T>), o.dst, t),
        }
    }
}

fn sign_extend(v: u64, ty: Ty) -> u64 {
    match ty {
        Ty::I8 => i64::from(v as i8) as u64,
        Ty::I16 => i64::from(v as i16) as u64,
        Ty::I32 => i64::from(v as i32) as u64,
        Ty::I64 | Ty::V128 => v,
    }
}

/// Makes a block ready to run.
pub(crate) fn lower(
    b: &Block,
    arena: Option<&mut thunk::Arena>,
    index_key: u32,
    pa2: Option<u64>,
) -> Box<Code> {
    let lens: Box<[u8]> = b.insns.iter().map(|i| i.len).collect();
    let mut arena = arena;
    let thunks: Box<[thunk::Opaque]> =
        b.opaques.iter().map(|o| thunk::prepare(arena.as_deref_mut(), &o.bytes, b.key)).collect();
    let mask = if b.key & key::L64 != 0 { !0 } else { 0xffff_ffff };
    let mut sites = Vec::with_capacity(b.calls.len());
    for (n, c) in b.calls.iter().enumerate() {
        let insn = b.ops.iter().find(|o| o.op == Opcode::Helper && o.imm as usize == n).map_or(0, |o| o.insn);
        let at = b.insns.get(insn as usize).copied().unwrap_or_default();
        let rip = b.va.wrapping_add(at.off.into()) & mask;
        let args = HelperArgs {
            imm: c.imm,
            next_rip: rip.wrapping_add(at.len.into()) & mask,
            reg: c.reg,
            reg2: c.reg2,
            size: c.size,
            asize: c.asize,
            rep: c.rep,
            mem: c.mem,
            ..HelperArgs::default()
        };
        let help = Help::ALL.get(c.id as usize).copied().unwrap_or(Help::Serialize);
        sites.push(Site { rip, help, run: crate::helpers::routine(help), args });
    }
    let sites = sites.into_boxed_slice();
    let mut uses = vec![0u16; b.temps as usize];
    for o in &b.ops {
        for r in [o.a, o.b, o.c] {
            if let Some(t) = r.as_temp() {
                uses[t as usize] += 1;
            }
        }
    }
    let mut l = Lower {
        b,
        out: Vec::with_capacity(b.ops.len() + 2),
        temps: vec![Temp::Nothing; b.temps as usize],
        uses,
        next: 0,
        insn: 0,
        sites: &sites,
        thunks: &thunks,
        halves: Vec::new(),
    };
    let mut at = 0;
    while at < b.ops.len() {
        let o = b.ops[at];
        if o.insn != l.insn {
            l.insn = o.insn;
            l.next = 0;
        }
        match l.fused(at) {
            0 => {
                l.one(&o);
                at += 1;
            }
            n => at += n,
        }
    }
    let mut target = [0; 2];
    if let Some(last) = b.ops.last() {
        for (t, r) in target.iter_mut().zip([last.a, last.b]) {
            *t = b.const_value(r).unwrap_or(0);
        }
    }
    let (out, halves) = (l.out, l.halves);
    let ops = out.into_boxed_slice();
    let entry = Cell::new(ops.as_ptr());
    Box::new(Code {
        entry,
        rip: b.va,
        n: b.insns.len() as u32,
        key: b.key,
        target,
        link: [const { Cell::new(ptr::null()) }; 2],
        host: b.pa as usize,
        index_key,
        pa2,
        len: b.len(),
        lens,
        ops,
        sites,
        thunks,
        halves: halves.into_boxed_slice(),
        preds: Cell::new(Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::blocks;
    use crate::frontend::effects::Features;
    use crate::interp::thunk::Arena;
    use crate::{ir, opt};

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
    }

    #[test]
    fn any_bytes_in_any_mode_become_a_block_that_holds_the_rules() {
        let mut n = Numbers(0x1234_5678_9abc_def1);
        let mut features = Features::all();
        let mut arena = Arena::new().ok();
        let prefixes = [0x66, 0xf2, 0xf3, 0x67, 0xf0, 0x48, 0x64, 0xc4, 0xc5, 0x0f, 0x0f, 0x0f];
        for round in 0..60_000u64 {
            let mut bytes = [0u8; 48];
            for b in &mut bytes {
                let r = n.next();
                *b = if r & 0x300 == 0 { prefixes[(r >> 16) as usize % prefixes.len()] } else { r as u8 };
            }
            let key = n.next() as u32 & 0x1f_ffff;
            // 64-bit code is flat and in protected mode.
            let key = if key & key::L64 != 0 {
                key & !(key::CODE32 | key::STACK32 | key::V86) | key::PROT
            } else {
                key
            };
            features.amd = round & 1 != 0;
            let va = n.next() & if key & key::L64 != 0 { 0x7fff_ffff_ffff } else { 0xffff_ffff };
            let second = || -> Result<[u8; 15], ()> { Ok([0x90; 15]) };
            let max = 1 + (round % 64) as usize;
            let built = blocks::build(&bytes, second, (0x1000, va, key), &features, max).unwrap();
            let mut block = built.block;
            let show =
                |b: &Block, e: ir::verify::Broken| panic!("{e}: {bytes:02x?}\n{}", ir::print::block(b));
            if let Err(e) = ir::verify::block(&block) {
                show(&block, e);
            }
            opt::flags::run(&mut block, opt::flags::Runner::Interpreter);
            if let Err(e) = ir::verify::block(&block) {
                show(&block, e);
            }
            let text = ir::print::block(&block);
            let again = ir::parse::block(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(ir::print::block(&again), text);
            if arena.as_ref().is_some_and(Arena::full) {
                arena = Arena::new().ok();
            }
            let code = lower(&block, arena.as_mut(), key, None);
            assert!(!code.ops.is_empty());
        }
    }
}
