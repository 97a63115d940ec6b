//! Arithmetic and comparisons of the x87 (SDM vol. 1, 8.3.5 and 8.3.6; vol. 2 for each instruction), with operands from
//! the stack or memory.

use super::super::fp::order_flags;
use super::{C0, C1, C2, C3, CODES, Exec, INDEFINITE, nan, special};
use crate::float::{Class, F32, F64, F80, Fp, Num, Order, flag, pack80, unpack};
use crate::mutants;
use crate::vector::{Insn, Opnd, Regs, lane};

pub(super) const ADD: u8 = 0;
pub(super) const MUL: u8 = 1;
pub(super) const SUB: u8 = 4;
pub(super) const SUBR: u8 = 5;
pub(super) const DIV: u8 = 6;
pub(super) const DIVR: u8 = 7;

fn arithmetic(r: &Regs<'_>, fp: &mut Fp, op: u8, a: Num, b: Num) -> Num {
    if special(&a) || special(&b) {
        return nan(fp, a, b);
    }
    let prec = r.precision();
    match op {
        ADD => fp.add(&F80, prec, a, b),
        MUL => fp.mul(&F80, prec, a, b),
        SUB => fp.add(&F80, prec, a, b.negated()),
        SUBR if mutants::on(mutants::X87_SUBR) => fp.add(&F80, prec, a, b.negated()),
        SUBR => fp.add(&F80, prec, b, a.negated()),
        DIV => fp.div(&F80, prec, a, b),
        _ => fp.div(&F80, prec, b, a),
    }
}

/// FADD and its like; `KIND`: 0 registers, 1 with pop, 2 memory, 3 integer in memory.
pub(super) fn binary<const OP: u8, const KIND: u8>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let (dst, src) = match (KIND, i.op[0], i.op[1]) {
        (0 | 1, Opnd::St(d), Opnd::St(s)) => (d, s),
        (0 | 1, ..) => (1, 0),
        _ => (0, 0),
    };
    let underflow = r.empty(dst) || r.empty(src);
    if underflow && !mutants::on(mutants::X87_EMPTY_READ) {
        if r.stack_fault(false) {
            r.set_st(dst, INDEFINITE);
            if KIND == 1 {
                r.pop();
            }
        }
        return Ok(());
    }
    let b = operand::<KIND>(i, r, src);
    let mut fp = r.control();
    let a = r.number(dst);
    let n = arithmetic(r, &mut fp, OP, a, b);
    if r.complete(&fp) {
        r.set_st(dst, pack80(&n));
        if KIND == 1 {
            r.pop();
        }
    }
    Ok(())
}

/// The second operand: a register or memory, by `KIND` as in [`binary`].
fn operand<const KIND: u8>(i: &Insn, r: &Regs<'_>, src: u8) -> Num {
    match KIND {
        2 => memory_float(i, r),
        3 => memory_int(i, r),
        _ => r.number(src),
    }
}

pub(super) fn memory_float(i: &Insn, r: &Regs<'_>) -> Num {
    match i.mem {
        4 => unpack(&F32, lane(&r.vector(Opnd::Mem), 4, 0)),
        _ => unpack(&F64, lane(&r.vector(Opnd::Mem), 8, 0)),
    }
}

pub(super) fn memory_int(i: &Insn, r: &Regs<'_>) -> Num {
    let raw = lane(&r.vector(Opnd::Mem), 8, 0);
    let v = match i.mem {
        2 => i64::from(raw as i16),
        4 => i64::from(raw as i32),
        _ => raw as i64,
    };
    Num::from_int(v < 0, v.unsigned_abs())
}

/// Compares and gives the order, and whether no unmasked exception stops it.
fn order(r: &mut Regs<'_>, a: Num, b: Num, quiet: bool) -> (Order, bool) {
    let mut fp = r.control();
    let o = if special(&a) || special(&b) {
        let bad = |n: &Num| n.class == Class::Unsupported || n.is_snan();
        if !quiet || mutants::on(mutants::X87_FUCOM_SIGNALS) || bad(&a) || bad(&b) {
            fp.flags |= flag::IE;
        }
        Order::Unordered
    } else {
        let (a, b) = (fp.operand(a), fp.operand(b));
        fp.compare(a, b)
    };
    (o, r.complete(&fp))
}

fn codes(o: Order) -> u16 {
    match o {
        Order::Greater => 0,
        Order::Less => C0,
        Order::Equal => C3,
        Order::Unordered => C0 | C2 | C3,
    }
}

/// FCOM and its like; `KIND` as in [`binary`] for the operand, `POPS` how many.
pub(super) fn compare<const KIND: u8, const POPS: u8, const QUIET: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let src = match i.last() {
        Opnd::St(n) if KIND == 0 => n,
        _ if KIND == 0 => 1,
        _ => 0,
    };
    let src = if POPS == 2 { 1 } else { src };
    if r.empty(0) || r.empty(src) {
        let masked = r.stack_fault(false);
        r.set_codes(C0 | C2 | C3, C0 | C2 | C3);
        for _ in 0..if masked { POPS } else { 0 } {
            r.pop();
        }
        return Ok(());
    }
    let b = operand::<KIND>(i, r, src);
    let a = r.number(0);
    let (o, done) = order(r, a, b, QUIET);
    r.set_codes(CODES, codes(o));
    for _ in 0..if done { POPS } else { 0 } {
        r.pop();
    }
    Ok(())
}

/// FCOMI and its like.
pub(super) fn compare_flags<const POP: bool, const QUIET: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let src = match i.last() {
        Opnd::St(n) => n,
        _ => 1,
    };
    if r.empty(0) || r.empty(src) {
        let masked = r.stack_fault(false);
        r.flags = order_flags(Order::Unordered);
        if POP && masked {
            r.pop();
        }
        return Ok(());
    }
    let (a, b) = (r.number(0), r.number(src));
    let codes = r.fpu.fsw() & C1;
    let (mut o, done) = order(r, a, b, QUIET);
    if mutants::on(mutants::X87_FCOMI_FLAGS) && o == Order::Unordered {
        o = Order::Equal;
    }
    r.set_codes(C1, codes);
    r.flags = order_flags(o);
    if POP && done {
        r.pop();
    }
    Ok(())
}

pub(super) fn ftst(_: &Insn, r: &mut Regs<'_>) -> Exec {
    if r.empty(0) {
        r.stack_fault(false);
        r.set_codes(C0 | C2 | C3, C0 | C2 | C3);
        return Ok(());
    }
    let a = r.number(0);
    let (o, _) = order(r, a, Num::zero(false), false);
    r.set_codes(CODES, codes(o));
    Ok(())
}

pub(super) fn fxam(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let n = r.number(0);
    let sign = if r.st(0).1 >> 15 != 0 { C1 } else { 0 };
    let class = if r.empty(0) && !mutants::on(mutants::X87_FXAM_EMPTY) {
        C3 | C0
    } else {
        match n.class {
            Class::Unsupported => 0,
            Class::Nan => C0,
            Class::Inf => C2 | C0,
            Class::Zero => mutants::pick(mutants::X87_FXAM_ZERO, C3, C2),
            Class::Finite if n.denormal => C3 | C2,
            Class::Finite => C2,
        }
    };
    r.set_codes(CODES, class | sign);
    Ok(())
}

/// FCHS and FABS.
pub(super) fn sign<const ABS: bool>(_: &Insn, r: &mut Regs<'_>) -> Exec {
    if r.empty(0) {
        if r.stack_fault(false) {
            r.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    r.set_codes(C1, 0);
    let (sig, se) = r.st(0);
    r.set_st(0, (sig, if ABS { se & 0x7fff } else { se ^ 0x8000 }));
    Ok(())
}
