//! Functions of the x87: roots, rounding, remainders, scaling, logarithms and angles (SDM vol. 1, 8.3.7 to 8.3.9; vol. 2
//! for each instruction); the transcendental values come from [`trig`].

use super::{C0, C1, C2, C3, CODES, Exec, INDEFINITE, nan, special};
use crate::float::{Class, F80, Fp, Num, TOP, flag, pack80, trig};
use crate::mutants;
use crate::vector::{Insn, Regs};

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

pub(super) fn fsqrt(_: &Insn, r: &mut Regs<'_>) -> Exec {
    unary(r, |r, fp, n| fp.sqrt(&F80, r.precision(), n))
}

pub(super) fn frndint(_: &Insn, r: &mut Regs<'_>) -> Exec {
    unary(r, |_, fp, n| {
        let n = fp.operand(n);
        fp.integral(n)
    })
}

pub(super) fn f2xm1(_: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fxtract(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) fn fscale(_: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fprem<const NEAREST: bool>(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) fn fyl2x(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) fn fyl2xp1(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) fn fpatan(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) const SIN: u8 = 0;
pub(super) const COS: u8 = 1;
pub(super) const SINCOS: u8 = 2;
pub(super) const TAN: u8 = 3;

/// FSIN, FCOS, FSINCOS and FPTAN.
pub(super) fn angle<const F: u8>(_: &Insn, r: &mut Regs<'_>) -> Exec {
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
