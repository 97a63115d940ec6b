//! The x87 (SDM vol. 1, chapter 8; vol. 2 for each instruction): stack, exceptions, arithmetic.
//!
//! The register image holds the stack from its top, so a push or pop rotates it. An exception of the operands that is
//! unmasked leaves everything but the status word alone; one of the result leaves a store undone, and gives registers
//! a result with a wrapped exponent.

use super::x87env;
use super::{Action, Insn, Opnd, Regs, Stop, lane};
use crate::float::{
    Class, F32, F64, F80, Fp, Num, Order, Rounding, TOP, flag, pack, pack80, trig, unpack, unpack80,
};
use crate::mutants;
use iced_x86::{Instruction, Mnemonic};

type Exec = Result<(), Stop>;

pub(super) const SF: u16 = 0x40;
const C0: u16 = 0x100;
const C1: u16 = 0x200;
const C2: u16 = 0x400;
const C3: u16 = 0x4000;
const CODES: u16 = C0 | C1 | C2 | C3;

/// A register's contents: significand, sign and exponent.
pub(super) type Raw = (u64, u16);

const INDEFINITE: Raw = (0xc000_0000_0000_0000, 0xffff);

impl Regs<'_> {
    pub(super) fn top(&self) -> u32 {
        u32::from(self.fpu.fsw()) >> 11 & 7
    }
    fn set_top(&mut self, top: u32) {
        let fsw = self.fpu.fsw() & !0x3800 | ((top & 7) << 11) as u16;
        self.fpu.set_fsw(fsw);
    }
    pub(super) fn empty(&self, i: u8) -> bool {
        self.fpu.bytes[4] >> ((self.top() + u32::from(i)) & 7) & 1 == 0
    }
    fn st(&self, i: u8) -> Raw {
        self.fpu.st(usize::from(i))
    }
    fn number(&self, i: u8) -> Num {
        let (sig, se) = self.st(i);
        unpack80(sig, se)
    }
    pub(super) fn set_st(&mut self, i: u8, v: Raw) {
        let at = 32 + usize::from(i) * 16;
        self.fpu.bytes[at..at + 8].copy_from_slice(&v.0.to_le_bytes());
        self.fpu.bytes[at + 8..at + 10].copy_from_slice(&v.1.to_le_bytes());
        self.fpu.bytes[4] |= 1 << ((self.top() + u32::from(i)) & 7);
    }
    fn free(&mut self, i: u8) {
        self.fpu.bytes[4] &= !(1 << ((self.top() + u32::from(i)) & 7));
    }
    fn push(&mut self, v: Raw) {
        self.fpu.bytes[32..160].rotate_right(16);
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, v);
    }
    fn pop(&mut self) {
        if !mutants::on(mutants::X87_POP_KEEPS_TAG) {
            self.free(0);
        }
        self.fpu.bytes[32..160].rotate_left(16);
        self.set_top(self.top() + 1);
    }
    fn set_codes(&mut self, mask: u16, codes: u16) {
        let fsw = self.fpu.fsw() & !mask | codes;
        self.fpu.set_fsw(fsw);
    }
    /// Notes exceptions; true if an unmasked one of the operands stops the instruction.
    fn raise(&mut self, flags: u32) -> bool {
        let mut flags = flags;
        for (n, m) in [
            mutants::X87_NO_IE,
            mutants::X87_NO_DE,
            mutants::X87_NO_ZE,
            mutants::X87_NO_OE,
            mutants::X87_NO_UE,
            mutants::X87_NO_PE,
        ]
        .into_iter()
        .enumerate()
        {
            flags &= !mutants::pick(m, 0, 1 << n);
        }
        let fsw = self.fpu.fsw() | flags as u16 & 0x3f;
        self.fpu.set_fsw(fsw);
        self.settle();
        flags & !u32::from(self.fpu.fcw()) & 7 != 0 && !mutants::on(mutants::X87_STORES_INVALID)
    }
    /// ES and B follow the unmasked exceptions.
    pub(super) fn settle(&mut self) {
        let fsw = self.fpu.fsw();
        let pending = fsw & !self.fpu.fcw() & 0x3f != 0;
        self.fpu.set_fsw(if pending && !mutants::on(mutants::X87_NO_ES) {
            fsw | 0x8080
        } else {
            fsw & !0x8080
        });
    }
    /// Stack fault; true if it is masked.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_codes(C1, if overflow && !mutants::on(mutants::X87_OVERFLOW_C1) { C1 } else { 0 });
        let fsw = self.fpu.fsw() | mutants::pick(mutants::X87_NO_SF, SF, 0);
        self.fpu.set_fsw(fsw);
        !self.raise(flag::IE)
    }
    fn control(&self) -> Fp {
        Fp::of_fcw(self.fpu.fcw())
    }
    /// Bits of the significand that arithmetic keeps.
    fn precision(&self) -> u32 {
        match self.fpu.fcw() >> 8 & 3 {
            0 if !mutants::on(mutants::X87_PRECISION_24) => 24,
            2 if !mutants::on(mutants::X87_PRECISION_53) => 53,
            _ => 64,
        }
    }
    /// Notes what happened with C1 for the rounding; true if the result is to be written.
    fn complete(&mut self, fp: &Fp) -> bool {
        self.set_codes(
            C1,
            if fp.up && !mutants::on(mutants::X87_NO_C1) && fp.flags & flag::PE != 0 { C1 } else { 0 },
        );
        let early = fp.flags & !fp.masks & 7 != 0;
        // Exceptions of the operands end it before any of the result.
        let flags = if early { fp.flags & 7 } else { fp.flags };
        if early {
            self.set_codes(C1, 0);
        }
        !self.raise(flags)
    }
}

/// The NaN that comes of two operands of which one at least is one (SDM vol. 1, table 4-7).
fn nan(fp: &mut Fp, a: Num, b: Num) -> Num {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        fp.flags |= flag::IE;
        return Num::INDEFINITE;
    }
    if a.is_snan() || b.is_snan() {
        fp.flags |= flag::IE;
    }
    let pick = match (a.is_nan(), b.is_nan()) {
        (true, false) => a,
        (false, true) => b,
        _ if a.is_snan() != b.is_snan() => {
            if a.is_snan() {
                b
            } else {
                a
            }
        }
        _ if a.sig != b.sig => {
            if (a.sig > b.sig) != mutants::on(mutants::X87_SMALLER_NAN) {
                a
            } else {
                b
            }
        }
        _ if a.sign => b,
        _ => a,
    };
    pick.quieted()
}

fn special(n: &Num) -> bool {
    matches!(n.class, Class::Nan | Class::Unsupported)
}

const ADD: u8 = 0;
const MUL: u8 = 1;
const SUB: u8 = 4;
const SUBR: u8 = 5;
const DIV: u8 = 6;
const DIVR: u8 = 7;

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
fn binary<const OP: u8, const KIND: u8>(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
    let b = match KIND {
        2 => memory_float(i, r),
        3 => memory_int(i, r),
        _ => r.number(src),
    };
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

fn memory_float(i: &Insn, r: &Regs<'_>) -> Num {
    match i.mem {
        4 => unpack(&F32, lane(&r.vector(Opnd::Mem), 4, 0)),
        _ => unpack(&F64, lane(&r.vector(Opnd::Mem), 8, 0)),
    }
}

fn memory_int(i: &Insn, r: &Regs<'_>) -> Num {
    let raw = lane(&r.vector(Opnd::Mem), 8, 0);
    let v = match i.mem {
        2 => i64::from(raw as i16),
        4 => i64::from(raw as i32),
        _ => raw as i64,
    };
    Num::from_int(v < 0, v.unsigned_abs())
}

/// Pushes, or not if there is no room.
fn push_value(r: &mut Regs<'_>, v: Raw) {
    if r.empty(7) || mutants::on(mutants::X87_PUSH_ANYWHERE) {
        r.set_codes(C1, 0);
        r.push(v);
    } else if r.stack_fault(true) {
        r.push(INDEFINITE);
    }
}

fn fld_float(i: &Insn, r: &mut Regs<'_>) -> Exec {
    if !r.empty(7) {
        push_value(r, INDEFINITE);
        return Ok(());
    }
    let n = memory_float(i, r);
    let mut fp = r.control();
    let n = if n.is_nan() { nan(&mut fp, n, n) } else { fp.operand(n) };
    r.complete(&fp);
    // A denormal is loaded even where that is unmasked.
    if fp.flags & !fp.masks & flag::IE == 0 {
        r.push(pack80(&n));
    }
    Ok(())
}

fn fld_register(i: &Insn, r: &mut Regs<'_>) -> Exec {
    match i.last() {
        Opnd::Mem => {
            let v = (lane(&r.vector(Opnd::Mem), 8, 0), lane(&r.vector(Opnd::Mem), 2, 4) as u16);
            push_value(r, v);
        }
        Opnd::St(n) => {
            if r.empty(n) {
                if r.stack_fault(false) {
                    r.push(INDEFINITE);
                }
            } else {
                let v = r.st(n);
                push_value(r, v);
            }
        }
        _ => {}
    }
    Ok(())
}

fn fld(i: &Insn, r: &mut Regs<'_>) -> Exec {
    if i.mem == 4 || i.mem == 8 { fld_float(i, r) } else { fld_register(i, r) }
}

fn fild(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let v = pack80(&memory_int(i, r));
    push_value(r, v);
    Ok(())
}

fn put_mem(r: &mut Regs<'_>, bytes: &[u8]) {
    r.mem[..bytes.len()].copy_from_slice(bytes);
}

/// FST and FSTP.
fn fst<const POP: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    if let Opnd::St(n) = i.op[0] {
        if r.empty(0) {
            if r.stack_fault(false) {
                r.set_st(n, INDEFINITE);
                if POP {
                    r.pop();
                }
            }
            return Ok(());
        }
        r.set_codes(C1, 0);
        let v = r.st(0);
        r.set_st(n, v);
        if POP {
            r.pop();
        }
        return Ok(());
    }
    let format = match i.mem {
        4 => Some(&F32),
        8 => Some(&F64),
        _ => None,
    };
    if r.empty(0) {
        if r.stack_fault(false) {
            match format {
                Some(f) => {
                    let v = pack(f, &Num::INDEFINITE);
                    put_mem(r, &v.to_le_bytes());
                }
                None => put_extended(r, INDEFINITE),
            }
            if POP {
                r.pop();
            }
        } else {
            r.no_store = true;
        }
        return Ok(());
    }
    let Some(f) = format else {
        r.set_codes(C1, 0);
        let v = r.st(0);
        put_extended(r, v);
        r.pop();
        return Ok(());
    };
    let mut fp = r.control();
    let n = r.number(0);
    let n =
        if special(&n) { nan(&mut fp, n, n) } else { fp.convert(f, f.prec, Num { denormal: false, ..n }) };
    // With an unmasked overflow or underflow nothing is stored either, so that nothing is rounded.
    let stop = fp.flags & !fp.masks & (flag::OE | flag::UE) != 0 && !mutants::on(mutants::X87_FST_UNDERFLOW);
    if stop {
        fp.flags &= !flag::PE;
    }
    if r.complete(&fp) && !stop {
        put_mem(r, &pack(f, &n).to_le_bytes());
        if POP {
            r.pop();
        }
    } else {
        r.no_store = true;
    }
    Ok(())
}

/// D9 D8+i: a move and pop that raises nothing.
fn fstpnce(i: &Insn, r: &mut Regs<'_>) -> Exec {
    if !r.empty(0) {
        return fst::<true>(i, r);
    }
    r.set_codes(C1, 0);
    r.pop();
    Ok(())
}

fn put_extended(r: &mut Regs<'_>, v: Raw) {
    put_mem(r, &v.0.to_le_bytes());
    r.mem[8..10].copy_from_slice(&v.1.to_le_bytes());
}

/// FIST, FISTP and FISTTP.
fn fist<const POP: bool, const CUT: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let bits = u32::from(i.mem) * 8;
    let indefinite = 1u64 << (bits - 1);
    if r.empty(0) {
        if r.stack_fault(false) {
            put_mem(r, &indefinite.to_le_bytes());
            if POP {
                r.pop();
            }
        } else {
            r.no_store = true;
        }
        return Ok(());
    }
    let mut fp = r.control();
    if CUT && !mutants::on(mutants::X87_FISTTP_ROUNDS) {
        fp.rounding = Rounding::Zero;
    }
    let n = r.number(0);
    let v = fp.to_int(n, bits).map_or(indefinite, |v| v as u64);
    if r.complete(&fp) {
        put_mem(r, &v.to_le_bytes());
        if POP {
            r.pop();
        }
    } else {
        r.no_store = true;
    }
    Ok(())
}

/// FBLD: 18 decimal digits.
fn fbld(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let m = r.vector(Opnd::Mem);
    let v = (0..9).rev().fold(0u64, |v, k| v * 100 + u64::from(m[k] >> 4) * 10 + u64::from(m[k] & 15));
    let n = Num::from_int(m[9] & 0x80 != 0, v);
    push_value(r, pack80(&n));
    Ok(())
}

fn fbstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
    const NOTHING: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
    if r.empty(0) {
        if r.stack_fault(false) {
            put_mem(r, &NOTHING);
            r.pop();
        } else {
            r.no_store = true;
        }
        return Ok(());
    }
    let mut fp = r.control();
    let n = r.number(0);
    let mut out = NOTHING;
    match fp.to_int(n, 64) {
        Some(v) if v.unsigned_abs() < 1_000_000_000_000_000_000 => {
            let mut v = v.unsigned_abs();
            for b in &mut out[..9] {
                *b = (v % 10 | v / 10 % 10 << 4) as u8;
                if mutants::on(mutants::X87_FBSTP_DIGITS) {
                    *b = b.rotate_left(4);
                }
                v /= 100;
            }
            out[9] = if n.sign { 0x80 } else { 0 };
        }
        _ => {
            fp.flags = flag::IE;
            fp.up = false;
        }
    }
    if r.complete(&fp) {
        put_mem(r, &out);
        r.pop();
    } else {
        r.no_store = true;
    }
    Ok(())
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
fn compare<const KIND: u8, const POPS: u8, const QUIET: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
    let b = match KIND {
        2 => memory_float(i, r),
        3 => memory_int(i, r),
        _ => r.number(src),
    };
    let a = r.number(0);
    let (o, done) = order(r, a, b, QUIET);
    r.set_codes(CODES, codes(o));
    for _ in 0..if done { POPS } else { 0 } {
        r.pop();
    }
    Ok(())
}

/// FCOMI and its like.
fn compare_flags<const POP: bool, const QUIET: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let src = match i.last() {
        Opnd::St(n) => n,
        _ => 1,
    };
    if r.empty(0) || r.empty(src) {
        let masked = r.stack_fault(false);
        r.flags = super::fp::order_flags(Order::Unordered);
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
    r.flags = super::fp::order_flags(o);
    if POP && done {
        r.pop();
    }
    Ok(())
}

fn ftst(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

fn fxam(_: &Insn, r: &mut Regs<'_>) -> Exec {
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
fn sign<const ABS: bool>(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

/// Constants: the significand below, and whether to nearest and upwards it is one more.
fn constant<const SIG: u64, const SE: u16, const NEAREST: bool, const EXACT: bool>(
    _: &Insn,
    r: &mut Regs<'_>,
) -> Exec {
    let up = match Rounding::of(u32::from(r.fpu.fcw()) >> 10) {
        Rounding::Nearest => NEAREST,
        Rounding::Up => !EXACT && !mutants::on(mutants::X87_CONSTANT_ROUNDING),
        _ => false,
    };
    push_value(r, (SIG + u64::from(up), SE));
    Ok(())
}

fn unary(r: &mut Regs<'_>, f: impl FnOnce(&Regs<'_>, &mut Fp, Num) -> Num) -> Exec {
    if r.empty(0) {
        if r.stack_fault(false) {
            r.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut fp = r.control();
    let n = r.number(0);
    let v = if special(&n) { nan(&mut fp, n, n) } else { f(r, &mut fp, n) };
    if r.complete(&fp) {
        r.set_st(0, pack80(&v));
    }
    Ok(())
}

fn fsqrt(_: &Insn, r: &mut Regs<'_>) -> Exec {
    unary(r, |r, fp, n| fp.sqrt(&F80, r.precision(), n))
}

fn frndint(_: &Insn, r: &mut Regs<'_>) -> Exec {
    unary(r, |_, fp, n| {
        let n = fp.operand(n);
        fp.integral(n)
    })
}

fn f2xm1(_: &Insn, r: &mut Regs<'_>) -> Exec {
    unary(r, |_, fp, n| {
        let n = fp.operand(n);
        match n.class {
            Class::Zero => n,
            Class::Inf => {
                if n.sign {
                    Num::finite(true, 0, TOP)
                } else {
                    n
                }
            }
            // Out of range: the operand comes back.
            _ if n.exp > 0 || n.exp == 0 && n.sig != TOP => {
                fp.flags |= flag::PE;
                n
            }
            _ => trig::f2xm1(fp, &n),
        }
    })
}

/// FXTRACT: exponent and significand.
fn fxtract(_: &Insn, r: &mut Regs<'_>) -> Exec {
    if r.empty(0) || !r.empty(7) {
        let overflow = !r.empty(0);
        if r.stack_fault(overflow) {
            r.set_st(0, INDEFINITE);
            r.push(INDEFINITE);
        }
        return Ok(());
    }
    let mut fp = r.control();
    let n = r.number(0);
    let (exponent, significand) = if special(&n) {
        let n = nan(&mut fp, n, n);
        (n, n)
    } else {
        match n.class {
            Class::Zero => {
                fp.flags |= mutants::pick(mutants::X87_FXTRACT_ZERO, flag::ZE, 0);
                (Num::inf(true), n)
            }
            Class::Inf => (Num::inf(false), n),
            _ => {
                let n = fp.operand(n);
                let e = i64::from(n.exp);
                (Num::from_int(e < 0, e.unsigned_abs()), Num::finite(n.sign, 0, n.sig))
            }
        }
    };
    if r.complete(&fp) {
        r.set_st(0, pack80(&exponent));
        r.push(pack80(&significand));
    }
    Ok(())
}

/// Runs `f` on ST(0) and ST(1) and puts the result into `dst`, popping after `POP`.
fn both(r: &mut Regs<'_>, pop: bool, f: impl FnOnce(&mut Fp, Num, Num) -> Num) -> Exec {
    let dst = u8::from(pop);
    if r.empty(0) || r.empty(1) {
        if r.stack_fault(false) {
            r.set_st(dst, INDEFINITE);
            if pop {
                r.pop();
            }
        }
        return Ok(());
    }
    let mut fp = r.control();
    let (a, b) = (r.number(0), r.number(1));
    let v = if special(&a) || special(&b) { nan(&mut fp, a, b) } else { f(&mut fp, a, b) };
    if r.complete(&fp) {
        r.set_st(dst, pack80(&v));
        if pop {
            r.pop();
        }
    }
    Ok(())
}

fn invalid(fp: &mut Fp) -> Num {
    fp.flags |= flag::IE;
    Num::INDEFINITE
}

fn fscale(_: &Insn, r: &mut Regs<'_>) -> Exec {
    both(r, false, |fp, a, b| {
        match (a.class, b.class) {
            (Class::Inf, Class::Inf) if b.sign => return invalid(fp),
            (Class::Zero, Class::Inf) if !b.sign => return invalid(fp),
            _ => {}
        }
        let (a, b) = (fp.operand(a), fp.operand(b));
        match (a.class, b.class) {
            (Class::Inf | Class::Zero, _) => a,
            (_, Class::Inf) => {
                if b.sign {
                    Num::zero(a.sign)
                } else {
                    Num::inf(a.sign)
                }
            }
            (_, Class::Zero) => fp.round(&F80, 64, a.sign, a.exp, u128::from(a.sig) << 64),
            _ => {
                let n = if b.exp < 0 {
                    0
                } else if b.exp > 16 {
                    0x2_0000
                } else {
                    (b.sig >> (63 - b.exp)) as i32
                };
                let n = if b.sign { -n } else { n } + mutants::pick(mutants::X87_FSCALE_ROUNDS, 0, 1);
                fp.round(&F80, 64, a.sign, a.exp + n, u128::from(a.sig) << 64)
            }
        }
    })
}

/// FPREM and FPREM1 (`NEAREST`).
fn fprem<const NEAREST: bool>(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C2, 0);
    let mut quotient = 0u64;
    let mut partial = false;
    let mut done = false;
    let result = both(r, false, |fp, a, b| {
        if a.is_inf() || b.is_zero() {
            return invalid(fp);
        }
        let (a, b) = (fp.operand(a), fp.operand(b));
        done = fp.flags & !fp.masks & flag::DE == 0;
        if a.is_zero() {
            return a;
        }
        if b.is_inf() {
            return fp.round(&F80, 64, a.sign, a.exp, u128::from(a.sig) << 64);
        }
        let d = a.exp - b.exp;
        let (rest, exp) = if d < -1 {
            (u128::from(a.sig), a.exp)
        } else if d < 0 {
            // Half a divisor at most: only rounding to nearest may take one.
            (u128::from(a.sig), a.exp)
        } else if d < 64 {
            let x = u128::from(a.sig) << d;
            quotient = (x / u128::from(b.sig)) as u64;
            (x % u128::from(b.sig), b.exp)
        } else {
            partial = true;
            let n = (d & 31) + mutants::pick(mutants::X87_FPREM_STEP, 32, 31);
            let x = u128::from(a.sig) << n;
            (x % u128::from(b.sig), b.exp + d - n)
        };
        let mut sign = a.sign;
        let mut rest = rest;
        let mut exp = exp;
        if NEAREST && !mutants::on(mutants::X87_FPREM_NEAREST) && !partial && rest != 0 {
            // Twice the rest against the divisor, both in units of the finer one.
            let (twice, divisor) = if d < 0 {
                if d < -1 { (0, 1) } else { (rest, u128::from(b.sig)) }
            } else {
                (rest << 1, u128::from(b.sig))
            };
            if twice > divisor || twice == divisor && quotient & 1 != 0 {
                quotient = quotient.wrapping_add(1);
                sign = !sign;
                if d < 0 {
                    rest = (u128::from(b.sig) << 1) - rest;
                    exp = a.exp;
                } else {
                    rest = u128::from(b.sig) - rest;
                }
            }
        }
        if rest == 0 {
            return Num::zero(a.sign);
        }
        let n = rest.leading_zeros();
        fp.round(&F80, 64, sign, exp + 64 - n as i32, rest << n)
    });
    if done {
        let bit = |n: u32, code: u16| if quotient >> n & 1 != 0 { code } else { 0 };
        let q = if partial {
            C2
        } else {
            bit(2, C0)
                | bit(1, mutants::pick(mutants::X87_FPREM_Q, C3, C1))
                | bit(0, mutants::pick(mutants::X87_FPREM_Q, C1, C3))
        };
        r.set_codes(CODES, q);
    }
    result
}

fn fyl2x(_: &Insn, r: &mut Regs<'_>) -> Exec {
    both(r, true, |fp, x, y| {
        if x.sign && !x.is_zero() {
            return invalid(fp);
        }
        if x.is_zero() {
            if y.is_zero() {
                return invalid(fp);
            }
            if y.is_inf() {
                return Num::inf(!y.sign);
            }
            fp.flags |= flag::ZE;
            return Num::inf(!y.sign);
        }
        let one = x.class == Class::Finite && x.exp == 0 && x.sig == TOP;
        if y.is_inf() && one || x.is_inf() && y.is_zero() {
            return invalid(fp);
        }
        let (x, y) = (fp.operand(x), fp.operand(y));
        let below = x.class == Class::Finite && x.exp < 0;
        if x.is_inf() || y.is_inf() {
            return Num::inf(y.sign != below);
        }
        if one {
            return Num::zero(y.sign);
        }
        if y.is_zero() {
            return Num::zero(y.sign != below);
        }
        trig::fyl2x(fp, &y, &x)
    })
}

fn fyl2xp1(_: &Insn, r: &mut Regs<'_>) -> Exec {
    both(r, true, |fp, x, y| {
        if x.is_zero() && y.is_inf() || x.is_inf() && y.is_zero() {
            return invalid(fp);
        }
        if x.is_inf() && x.sign {
            return invalid(fp);
        }
        let (x, y) = (fp.operand(x), fp.operand(y));
        if x.is_zero() || y.is_zero() {
            return Num::zero(x.sign != y.sign);
        }
        if x.is_inf() || y.is_inf() {
            return Num::inf(x.sign != y.sign);
        }
        trig::fyl2xp1(fp, &y, &x)
    })
}

fn fpatan(_: &Insn, r: &mut Regs<'_>) -> Exec {
    both(r, true, |fp, x, y| {
        let (x, y) = (fp.operand(x), fp.operand(y));
        match (y.class, x.class) {
            (Class::Inf, Class::Inf) => trig::pi_quarters(fp, if x.sign { 3 } else { 1 }, y.sign),
            (Class::Zero, _) | (_, Class::Inf) => {
                if x.sign {
                    trig::pi_quarters(fp, 4, y.sign)
                } else {
                    Num::zero(y.sign)
                }
            }
            (Class::Inf, _) | (_, Class::Zero) => trig::pi_quarters(fp, 2, y.sign),
            _ => trig::fpatan(fp, &y, &x),
        }
    })
}

const SIN: u8 = 0;
const COS: u8 = 1;
const SINCOS: u8 = 2;
const TAN: u8 = 3;

/// FSIN, FCOS, FSINCOS and FPTAN.
fn angle<const F: u8>(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let pushes = F >= SINCOS;
    r.set_codes(C2, 0);
    if r.empty(0) || pushes && !r.empty(7) {
        let overflow = !r.empty(0);
        if r.stack_fault(overflow) {
            r.set_st(0, INDEFINITE);
            if pushes {
                r.push(INDEFINITE);
            }
        }
        return Ok(());
    }
    let mut fp = r.control();
    let n = r.number(0);
    let (v, second) = if special(&n) {
        let v = nan(&mut fp, n, n);
        (v, v)
    } else if n.is_inf() {
        let v = invalid(&mut fp);
        (v, v)
    } else if !trig::in_range(&n) {
        r.set_codes(C1 | C2, C2);
        return Ok(());
    } else {
        let n = fp.operand(n);
        let one = Num::finite(false, 0, TOP);
        match F {
            _ if n.is_zero() && F == COS => (one, one),
            _ if n.is_zero() => (n, one),
            SIN => (trig::sin(&mut fp, &n), one),
            COS => (trig::cos(&mut fp, &n), one),
            SINCOS => {
                let c = trig::cos(&mut fp, &n);
                (trig::sin(&mut fp, &n), c)
            }
            _ => (trig::tan(&mut fp, &n), one),
        }
    };
    if r.complete(&fp) {
        r.set_st(0, pack80(&v));
        if pushes {
            r.push(pack80(&second));
        }
    }
    Ok(())
}

fn fxch(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let n = match i.last() {
        Opnd::St(n) => n,
        _ => 1,
    };
    if r.empty(0) || r.empty(n) {
        if !r.stack_fault(false) {
            return Ok(());
        }
        for k in [0, n] {
            if r.empty(k) {
                r.set_st(k, INDEFINITE);
            }
        }
    } else {
        r.set_codes(C1, 0);
    }
    let (a, b) = (r.st(0), r.st(n));
    r.set_st(0, b);
    r.set_st(n, a);
    Ok(())
}

/// FCMOVcc: which flags, and whether they are to be clear.
fn fcmov<const MASK: u64, const CLEAR: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let n = match i.last() {
        Opnd::St(n) => n,
        _ => 0,
    };
    if r.empty(0) || r.empty(n) {
        // Whatever the condition says.
        if r.stack_fault(false) {
            r.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    if (r.flags & MASK != 0) != mutants::pick(mutants::X87_FCMOV, CLEAR, !CLEAR) {
        let v = r.st(n);
        r.set_st(0, v);
    }
    Ok(())
}

fn fincstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    r.fpu.bytes[32..160].rotate_left(16);
    r.set_top(r.top() + 1);
    Ok(())
}

fn fdecstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    r.fpu.bytes[32..160].rotate_right(16);
    r.set_top(r.top().wrapping_sub(1));
    Ok(())
}

/// FFREE and FFREEP.
fn ffree<const POP: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    if let Opnd::St(n) = i.op[0] {
        r.free(n);
    }
    if POP {
        r.pop();
    }
    Ok(())
}

fn nothing(_: &Insn, _: &mut Regs<'_>) -> Exec {
    Ok(())
}

/// Operand kind of an arithmetic instruction, by its operands.
fn kind(i: &Instruction) -> u8 {
    if i.memory_size() == iced_x86::MemorySize::Unknown { 0 } else { 2 }
}

macro_rules! by_kind {
    ($i:ident, $f:ident, $op:expr) => {
        if kind($i) == 0 { $f::<{ $op }, 0> } else { $f::<{ $op }, 2> }
    };
}

/// The action of an x87 instruction.
#[rustfmt::skip]
pub fn action(i: &Instruction) -> Option<Action> {
    use Mnemonic::*;
    let f: fn(&Insn, &mut Regs<'_>) -> Exec = match i.mnemonic() {
        Fadd => by_kind!(i, binary, ADD), Fmul => by_kind!(i, binary, MUL),
        Fsub => by_kind!(i, binary, SUB), Fsubr => by_kind!(i, binary, SUBR),
        Fdiv => by_kind!(i, binary, DIV), Fdivr => by_kind!(i, binary, DIVR),
        Faddp => binary::<ADD, 1>, Fmulp => binary::<MUL, 1>, Fsubp => binary::<SUB, 1>,
        Fsubrp => binary::<SUBR, 1>, Fdivp => binary::<DIV, 1>, Fdivrp => binary::<DIVR, 1>,
        Fiadd => binary::<ADD, 3>, Fimul => binary::<MUL, 3>, Fisub => binary::<SUB, 3>,
        Fisubr => binary::<SUBR, 3>, Fidiv => binary::<DIV, 3>, Fidivr => binary::<DIVR, 3>,
        Fld => fld, Fild => fild, Fst => fst::<false>, Fstp => fst::<true>, Fstpnce => fstpnce,
        Fist => fist::<false, false>, Fistp => fist::<true, false>, Fisttp => fist::<true, true>,
        Fbld => fbld, Fbstp => fbstp, Fxch => fxch,
        Fcom => if kind(i) == 0 { compare::<0, 0, false> } else { compare::<2, 0, false> },
        Fcomp => if kind(i) == 0 { compare::<0, 1, false> } else { compare::<2, 1, false> },
        Fcompp => compare::<0, 2, false>, Ficom => compare::<3, 0, false>, Ficomp => compare::<3, 1, false>,
        Fucom => compare::<0, 0, true>, Fucomp => compare::<0, 1, true>, Fucompp => compare::<0, 2, true>,
        Fcomi => compare_flags::<false, false>, Fcomip => compare_flags::<true, false>,
        Fucomi => compare_flags::<false, true>, Fucomip => compare_flags::<true, true>,
        Ftst => ftst, Fxam => fxam, Fchs => sign::<false>, Fabs => sign::<true>,
        Fld1 => constant::<TOP, 0x3fff, false, true>, Fldz => constant::<0, 0, false, true>,
        Fldl2t => constant::<0xd49a_784b_cd1b_8afe, 0x4000, false, false>,
        Fldl2e => constant::<0xb8aa_3b29_5c17_f0bb, 0x3fff, true, false>,
        Fldpi => constant::<0xc90f_daa2_2168_c234, 0x4000, true, false>,
        Fldlg2 => constant::<0x9a20_9a84_fbcf_f798, 0x3ffd, true, false>,
        Fldln2 => constant::<0xb172_17f7_d1cf_79ab, 0x3ffe, true, false>,
        Fsqrt => fsqrt, Frndint => frndint, F2xm1 => f2xm1, Fxtract => fxtract, Fscale => fscale,
        Fprem => fprem::<false>, Fprem1 => fprem::<true>, Fyl2x => fyl2x, Fyl2xp1 => fyl2xp1, Fpatan => fpatan,
        Fsin => angle::<SIN>, Fcos => angle::<COS>, Fsincos => angle::<SINCOS>, Fptan => angle::<TAN>,
        Fcmovb => fcmov::<1, false>, Fcmovnb => fcmov::<1, true>, Fcmove => fcmov::<0x40, false>,
        Fcmovne => fcmov::<0x40, true>, Fcmovbe => fcmov::<0x41, false>, Fcmovnbe => fcmov::<0x41, true>,
        Fcmovu => fcmov::<4, false>, Fcmovnu => fcmov::<4, true>,
        Fincstp => fincstp, Fdecstp => fdecstp, Ffree => ffree::<false>, Ffreep => ffree::<true>,
        Fnop | Wait | Feni | Fneni | Fdisi | Fndisi | Fsetpm | Fnsetpm => nothing,
        _ => return x87env::action(i),
    };
    Some(Action::Special(f))
}
