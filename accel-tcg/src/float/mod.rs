//! Floating point in integers: half, single, double and double extended precision with x86's flags, rounding,
//! denormals and NaN rules (SDM vol. 1, chapters 4, 8 and 11; IEEE 754-2008).
//!
//! A number is unpacked into [`Num`] (significand with its leading one in bit 63), computed on in 128 bits, rounded
//! once by [`Fp::round`] and packed again. Who calls decides about NaNs: the units differ there.
#![forbid(unsafe_code)]

pub mod approx;
mod math128;
pub mod trig;

/// Exception flags, in their places in MXCSR and FSW.
pub mod flag {
    /// Invalid operation.
    pub const IE: u32 = 1;
    /// Denormal operand.
    pub const DE: u32 = 2;
    /// Division by zero.
    pub const ZE: u32 = 4;
    /// Overflow.
    pub const OE: u32 = 8;
    /// Underflow.
    pub const UE: u32 = 16;
    /// Inexact result.
    pub const PE: u32 = 32;
}
use crate::mutants;
use flag::*;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the significand, the leading one included.
    pub prec: u32,
    /// Least exponent of a normal number.
    pub emin: i32,
    /// Greatest exponent.
    pub emax: i32,
}

/// Half precision.
pub const F16: Format = Format { prec: 11, emin: -14, emax: 15 };
/// Single precision.
pub const F32: Format = Format { prec: 24, emin: -126, emax: 127 };
/// Double precision.
pub const F64: Format = Format { prec: 53, emin: -1022, emax: 1023 };
/// Double extended precision.
pub const F80: Format = Format { prec: 64, emin: -16382, emax: 16383 };

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Zero.
    Zero,
    /// A number that is not zero.
    Finite,
    /// Infinity.
    Inf,
    /// A NaN; bit 62 of the significand tells quiet ones.
    Nan,
    /// A pattern of the extended format that is no number any more.
    Unsupported,
}

/// An unpacked number: `sig / 2^63 * 2^exp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Num {
    /// What it is.
    pub class: Class,
    /// Negative.
    pub sign: bool,
    /// Exponent.
    pub exp: i32,
    /// Significand.
    pub sig: u64,
    /// Came from a denormal pattern.
    pub denormal: bool,
}

/// The most significant bit of a significand.
pub const TOP: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;

impl Num {
    /// Zero.
    pub const fn zero(sign: bool) -> Num {
        Num { class: Class::Zero, sign, exp: 0, sig: 0, denormal: false }
    }
    /// Infinity.
    pub const fn inf(sign: bool) -> Num {
        Num { class: Class::Inf, sign, exp: 0, sig: TOP, denormal: false }
    }
    /// The NaN that invalid operations give.
    pub const INDEFINITE: Num =
        Num { class: Class::Nan, sign: true, exp: 0, sig: TOP | QUIET, denormal: false };
    /// A finite number.
    pub const fn finite(sign: bool, exp: i32, sig: u64) -> Num {
        Num { class: Class::Finite, sign, exp, sig, denormal: false }
    }
    /// A NaN.
    pub fn is_nan(&self) -> bool {
        self.class == Class::Nan
    }
    /// A signalling NaN.
    pub fn is_snan(&self) -> bool {
        self.class == Class::Nan && self.sig & QUIET == 0
    }
    /// Zero.
    pub fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }
    /// Infinite.
    pub fn is_inf(&self) -> bool {
        self.class == Class::Inf
    }
    /// The quiet NaN that this NaN becomes.
    pub fn quieted(mut self) -> Num {
        self.sig |= QUIET;
        self
    }
    /// With the sign flipped.
    pub fn negated(mut self) -> Num {
        self.sign = !self.sign;
        self
    }
    /// Made from an integer's magnitude.
    pub fn from_int(sign: bool, magnitude: u64) -> Num {
        if magnitude == 0 {
            return Num::zero(sign);
        }
        let n = magnitude.leading_zeros();
        Num::finite(sign, 63 - n as i32, magnitude << n)
    }
}

/// Bits of the format's whole pattern.
fn width(f: &Format) -> u32 {
    match f.prec {
        11 => 16,
        24 => 32,
        _ => 64,
    }
}

/// Unpacks a pattern of at most 64 bits.
#[inline]
pub fn unpack(f: &Format, bits: u64) -> Num {
    let w = width(f);
    let m = f.prec - 1;
    let sign = bits >> (w - 1) & 1 != 0;
    let field = (bits >> m & ((1 << (w - 1 - m)) - 1)) as i32;
    let frac = bits & ((1 << m) - 1);
    let top = f.emax * 2 + 1;
    if field == top {
        if frac == 0 {
            return Num::inf(sign);
        }
        return Num { class: Class::Nan, sign, exp: 0, sig: TOP | frac << (63 - m), denormal: false };
    }
    if field == 0 {
        if frac == 0 {
            return Num::zero(sign);
        }
        let n = frac.leading_zeros();
        let exp = f.emin - (n as i32 - (63 - m as i32));
        return Num { class: Class::Finite, sign, exp, sig: frac << n, denormal: true };
    }
    Num::finite(sign, field - f.emax, TOP | frac << (63 - m))
}

/// Packs a number that was rounded to the format.
#[inline]
pub fn pack(f: &Format, n: &Num) -> u64 {
    let w = width(f);
    let m = f.prec - 1;
    let sign = u64::from(n.sign) << (w - 1);
    let top = (f.emax * 2 + 1) as u64;
    match n.class {
        Class::Zero => sign,
        Class::Inf => sign | top << m,
        Class::Nan | Class::Unsupported => sign | top << m | n.sig << 1 >> 1 >> (63 - m),
        Class::Finite if n.exp < f.emin => {
            let shift = 63 - m + (f.emin - n.exp) as u32;
            sign | if shift > 63 { 0 } else { n.sig >> shift }
        }
        Class::Finite => sign | ((n.exp + f.emax) as u64) << m | (n.sig << 1 >> 1) >> (63 - m),
    }
}

/// Unpacks an extended number: significand, sign and exponent.
pub fn unpack80(sig: u64, se: u16) -> Num {
    let sign = se >> 15 != 0;
    let field = i32::from(se & 0x7fff);
    let bad = Num { class: Class::Unsupported, sign, exp: 0, sig, denormal: false };
    match field {
        0x7fff if sig & TOP == 0 => bad,
        0x7fff if sig << 1 == 0 => Num::inf(sign),
        0x7fff => Num { class: Class::Nan, sign, exp: 0, sig, denormal: false },
        0 if sig == 0 => Num::zero(sign),
        0 => {
            let n = sig.leading_zeros();
            Num { class: Class::Finite, sign, exp: F80.emin - n as i32, sig: sig << n, denormal: true }
        }
        _ if sig & TOP == 0 => bad,
        _ => Num::finite(sign, field - 16383, sig),
    }
}

/// Packs an extended number.
pub fn pack80(n: &Num) -> (u64, u16) {
    let sign = u16::from(n.sign) << 15;
    match n.class {
        Class::Zero => (0, sign),
        Class::Inf => (TOP, sign | 0x7fff),
        Class::Nan | Class::Unsupported => (n.sig | TOP, sign | 0x7fff),
        Class::Finite if n.exp < F80.emin => {
            let shift = (F80.emin - n.exp) as u32;
            (if shift > 63 { 0 } else { n.sig >> shift }, sign)
        }
        Class::Finite => (n.sig, sign | (n.exp + 16383) as u16),
    }
}

/// Rounding: to nearest even, down, up, towards zero, as the control words number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Rounding {
    /// From two bits of a control word.
    pub fn of(bits: u32) -> Self {
        [Rounding::Nearest, Rounding::Down, Rounding::Up, Rounding::Zero][(bits & 3) as usize]
    }
}

/// How to compute, and what happened.
#[derive(Clone, Debug)]
pub struct Fp {
    /// Rounding mode.
    pub rounding: Rounding,
    /// Tiny results become zero.
    pub ftz: bool,
    /// Denormal operands count as zero.
    pub daz: bool,
    /// Exceptions that are masked.
    pub masks: u32,
    /// Exceptions that occurred.
    pub flags: u32,
    /// The last rounding went away from zero.
    pub up: bool,
    /// Exponents of unmasked overflow and underflow wrap by this much (x87).
    pub wrap: i32,
}

fn jam_right(v: u128, n: u32) -> u128 {
    if n == 0 {
        v
    } else if n < 128 {
        v >> n | u128::from(v << (128 - n) != 0 && !mutants::on(mutants::ROUND_STICKY))
    } else {
        u128::from(v != 0)
    }
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first is greater.
    Greater,
    /// The first is less.
    Less,
    /// Equal.
    Equal,
    /// One is a NaN.
    Unordered,
}

impl Fp {
    /// With the control bits of MXCSR.
    pub fn of_mxcsr(mxcsr: u32) -> Fp {
        Fp {
            rounding: Rounding::of(mxcsr >> 13),
            ftz: mxcsr & 0x8000 != 0 && !mutants::on(mutants::ROUND_NO_FTZ),
            daz: mxcsr & 0x40 != 0 && !mutants::on(mutants::ROUND_NO_DAZ),
            masks: mxcsr >> 7 & 0x3f,
            flags: 0,
            up: false,
            wrap: 0,
        }
    }

    /// With the control bits of the x87 control word.
    pub fn of_fcw(fcw: u16) -> Fp {
        Fp {
            rounding: Rounding::of(u32::from(fcw) >> 10),
            ftz: false,
            daz: false,
            masks: u32::from(fcw) & 0x3f,
            flags: 0,
            up: false,
            wrap: 24576,
        }
    }

    /// Whether a magnitude with `rest` (top bit: half) behind its last bit is incremented.
    fn increment(&self, sign: bool, odd: bool, rest: u128) -> bool {
        let half = 1u128 << 127;
        match self.rounding {
            Rounding::Nearest if mutants::on(mutants::ROUND_NEAREST) => false,
            Rounding::Nearest => rest > half || rest == half && mutants::pick(mutants::ROUND_TIES, odd, true),
            Rounding::Down => sign && rest != 0 && !mutants::on(mutants::ROUND_DOWN),
            Rounding::Up => !sign && rest != 0 && !mutants::on(mutants::ROUND_UP),
            Rounding::Zero => mutants::on(mutants::ROUND_ZERO) && rest > half,
        }
    }

    /// Rounds a significand (bit 127 set) to `prec` bits: the result left-aligned, carry out, inexact, away from zero.
    fn cut(&self, sign: bool, sig: u128, prec: u32) -> (u64, bool, bool, bool) {
        let kept = (sig >> (128 - prec)) as u64;
        let rest = sig << prec;
        let up = self.increment(sign, kept & 1 != 0, rest);
        let (r, carry) = match kept.checked_add(u64::from(up)) {
            Some(r) if prec == 64 || r >> prec == 0 => (r << (64 - prec), false),
            _ => (TOP, true),
        };
        (r, carry, rest != 0, up)
    }

    /// Rounds `sig / 2^127 * 2^exp` (bit 127 set, lowest bit sticky) to the format with `prec` bits.
    pub fn round(&mut self, f: &Format, prec: u32, sign: bool, exp: i32, sig: u128) -> Num {
        let (r, carry, inexact, up) = self.cut(sign, sig, prec);
        let e = exp + i32::from(carry);
        self.up = up;
        if mutants::pick(mutants::ROUND_TINY_BEFORE, e, exp) < f.emin {
            if self.masks & UE == 0 && (inexact || !mutants::on(mutants::ROUND_UNMASKED_TINY)) {
                self.flags |= UE | if inexact { PE } else { 0 };
                if self.wrap != 0 && e + self.wrap < f.emin {
                    // Too small even so (FSCALE).
                    self.flags |= PE;
                    return Num::zero(sign);
                }
                return Num::finite(sign, e + self.wrap, r);
            }
            if self.ftz {
                self.flags |= UE | PE;
                return Num::zero(sign);
            }
            // Again, at the place where denormals end.
            let shift = (f.emin - exp) as u32;
            let sig = if mutants::on(mutants::ROUND_TWICE) { u128::from(r) << 64 } else { sig };
            let moved = jam_right(sig, shift);
            let kept = (moved >> (128 - prec)) as u64;
            let rest = moved << prec;
            let up = self.increment(sign, kept & 1 != 0, rest);
            self.up = up;
            if rest != 0 {
                self.flags |= UE | PE;
            }
            let kept = kept + u64::from(up);
            if kept == 0 {
                return Num::zero(sign);
            }
            let n = kept.leading_zeros();
            // `kept` counts units of 2^(emin - prec + 1).
            return Num::finite(sign, f.emin - prec as i32 + 1 + 63 - n as i32, kept << n);
        }
        if e > f.emax {
            self.flags |= OE;
            if self.masks & OE == 0 {
                self.flags |= if inexact { PE } else { 0 };
                if self.wrap != 0 && e - self.wrap > f.emax {
                    self.flags |= PE;
                    self.up = true;
                    return Num::inf(sign);
                }
                return Num::finite(sign, e - self.wrap, r);
            }
            self.flags |= PE;
            let to_inf = mutants::on(mutants::ROUND_OVERFLOW_INF)
                || match self.rounding {
                    Rounding::Nearest => true,
                    Rounding::Down => sign,
                    Rounding::Up => !sign,
                    Rounding::Zero => false,
                };
            self.up = to_inf;
            if to_inf {
                return Num::inf(sign);
            }
            return Num::finite(sign, f.emax, !0 << (64 - prec));
        }
        if inexact {
            self.flags |= PE;
        }
        Num::finite(sign, e, r)
    }

    /// Rounds `sig / 2^126 * 2^exp` for any `sig`.
    fn settle(&mut self, f: &Format, prec: u32, sign: bool, exp: i32, sig: u128) -> Num {
        if sig == 0 {
            return Num::zero(self.rounding == Rounding::Down);
        }
        let n = sig.leading_zeros();
        self.round(f, prec, sign, exp + 1 - n as i32, sig << n)
    }

    /// Applies denormals-are-zeros and notes denormal operands.
    #[inline]
    pub fn operand(&mut self, n: Num) -> Num {
        if n.denormal {
            if self.daz {
                return Num::zero(n.sign);
            }
            self.flags |= DE;
        }
        n
    }

    /// Applies denormals-are-zeros alone.
    #[inline]
    pub fn flush(&self, n: Num) -> Num {
        if n.denormal && self.daz { Num::zero(n.sign) } else { n }
    }

    fn invalid(&mut self) -> Num {
        self.flags |= IE;
        Num { sign: !mutants::on(mutants::FP_INDEFINITE), ..Num::INDEFINITE }
    }

    /// Sum of two numbers that are no NaNs. Denormal operands are noted.
    pub fn add(&mut self, f: &Format, prec: u32, a: Num, b: Num) -> Num {
        self.up = false;
        let (a, b) = (self.operand(a), self.operand(b));
        match (a.class, b.class) {
            (Class::Inf, Class::Inf) if a.sign != b.sign && !mutants::on(mutants::FP_INF_SUB) => {
                return self.invalid();
            }
            (Class::Inf, _) => return a,
            (_, Class::Inf) => return b,
            (Class::Zero, Class::Zero) => {
                let down = self.rounding == Rounding::Down && !mutants::on(mutants::FP_SUM_SIGN);
                let sign = if a.sign == b.sign { a.sign } else { down };
                return Num::zero(sign);
            }
            (Class::Zero, _) => return self.round(f, prec, b.sign, b.exp, u128::from(b.sig) << 64),
            (_, Class::Zero) => return self.round(f, prec, a.sign, a.exp, u128::from(a.sig) << 64),
            _ => {}
        }
        self.sum(f, prec, (a.sign, a.exp, u128::from(a.sig) << 63), (b.sign, b.exp, u128::from(b.sig) << 63))
    }

    /// Sum of two values `sig / 2^126 * 2^exp`.
    fn sum(&mut self, f: &Format, prec: u32, a: (bool, i32, u128), b: (bool, i32, u128)) -> Num {
        let (a, b) = if b.1 > a.1 || b.1 == a.1 && b.2 > a.2 { (b, a) } else { (a, b) };
        let low = jam_right(b.2, (a.1 - b.1) as u32);
        if a.0 == b.0 {
            return self.settle(f, prec, a.0, a.1, a.2 + low);
        }
        let (sign, d) = if a.2 >= low { (a.0, a.2 - low) } else { (b.0, low - a.2) };
        self.settle(f, prec, sign, a.1, d)
    }

    /// Product of two numbers that are no NaNs.
    pub fn mul(&mut self, f: &Format, prec: u32, a: Num, b: Num) -> Num {
        self.up = false;
        let (zero, inf) = (|n: &Num| n.is_zero() || n.denormal && self.daz, |n: &Num| n.is_inf());
        if zero(&a) && inf(&b) || inf(&a) && zero(&b) {
            return self.invalid();
        }
        let (a, b) = (self.operand(a), self.operand(b));
        let sign = a.sign != b.sign;
        if a.is_inf() || b.is_inf() {
            return Num::inf(sign);
        }
        if a.is_zero() || b.is_zero() {
            return Num::zero(sign);
        }
        let product = u128::from(a.sig) * u128::from(b.sig);
        let product = mutants::pick(mutants::FP_MUL_EXP, product, product & !(1 << 64));
        self.settle(f, prec, sign, a.exp + b.exp, product)
    }

    /// Quotient of two numbers that are no NaNs.
    pub fn div(&mut self, f: &Format, prec: u32, a: Num, b: Num) -> Num {
        self.up = false;
        let (x, y) = (self.flush(a), self.flush(b));
        let sign = x.sign != y.sign;
        if x.is_inf() && y.is_inf() || x.is_zero() && y.is_zero() && !mutants::on(mutants::FP_ZERO_BY_ZERO) {
            return self.invalid();
        }
        if y.is_zero() && x.class == Class::Finite {
            self.flags |= ZE;
            return Num::inf(sign);
        }
        let (a, b) = (self.operand(a), self.operand(b));
        if a.is_inf() {
            return Num::inf(sign);
        }
        if a.is_zero() || b.is_inf() {
            return Num::zero(sign);
        }
        let (q, exp) = quotient(a.sig, b.sig);
        self.round(f, prec, sign, a.exp - b.exp + exp, q)
    }

    /// Square root of a number that is no NaN.
    pub fn sqrt(&mut self, f: &Format, prec: u32, a: Num) -> Num {
        self.up = false;
        let x = self.flush(a);
        if x.is_zero() {
            return x;
        }
        if x.sign && !mutants::on(mutants::FP_SQRT_NEGATIVE) {
            return self.invalid();
        }
        let a = self.operand(a);
        if a.is_inf() {
            return a;
        }
        let odd = a.exp & 1 != 0;
        // 2^126 <= v < 2^128, so that its root has 64 bits.
        let v = u128::from(a.sig) << if odd { 64 } else { 63 };
        let r = root(v);
        let rest = v - u128::from(r) * u128::from(r);
        let low = if rest > u128::from(r) && !mutants::on(mutants::FP_SQRT_GUARD) {
            3u128
        } else {
            u128::from(rest != 0)
        };
        self.round(f, prec, false, a.exp >> 1, u128::from(r) << 64 | low << 62)
    }

    /// `a * b + c` of numbers that are no NaNs, rounded once. Significands have 53 bits at most.
    pub fn fma(&mut self, f: &Format, a: Num, b: Num, c: Num) -> Num {
        self.up = false;
        let (fa, fb) = (self.flush(a), self.flush(b));
        if fa.is_zero() && fb.is_inf() || fa.is_inf() && fb.is_zero() {
            return self.invalid();
        }
        let sign = fa.sign != fb.sign;
        let fc = self.flush(c);
        let infinite = fa.is_inf() || fb.is_inf();
        if infinite && fc.is_inf() && fc.sign != sign {
            return self.invalid();
        }
        let (a, b, c) = (self.operand(a), self.operand(b), self.operand(c));
        if infinite {
            return Num::inf(sign);
        }
        if c.is_inf() {
            return c;
        }
        if a.is_zero() || b.is_zero() {
            if c.is_zero() {
                return Num::zero(if sign == c.sign { sign } else { self.rounding == Rounding::Down });
            }
            return self.round(f, f.prec, c.sign, c.exp, u128::from(c.sig) << 64);
        }
        let product = u128::from(a.sig) * u128::from(b.sig);
        let product = mutants::pick(mutants::FP_FMA_TWICE, product, product >> 70 << 70);
        let high = product >> 127 != 0;
        // The lowest bits are zero: nothing is lost.
        let p = (sign, a.exp + b.exp + i32::from(high), product >> u32::from(high));
        if c.is_zero() {
            return self.settle(f, f.prec, p.0, p.1, p.2);
        }
        self.sum(f, f.prec, p, (c.sign, c.exp, u128::from(c.sig) << 63))
    }

    /// Converts between formats. The caller has dealt with NaNs.
    pub fn convert(&mut self, to: &Format, prec: u32, a: Num) -> Num {
        self.up = false;
        let a = self.operand(a);
        match a.class {
            Class::Finite => self.round(to, prec, a.sign, a.exp, u128::from(a.sig) << 64),
            _ => a,
        }
    }

    /// Rounds to an integral value; inexactness is noted.
    pub fn integral(&mut self, a: Num) -> Num {
        self.up = false;
        if a.class != Class::Finite || a.exp >= 63 {
            return a;
        }
        let (kept, rest) = if a.exp < -1 {
            (0, 1)
        } else if a.exp == -1 {
            (0, u128::from(a.sig) << 64)
        } else {
            (a.sig >> (63 - a.exp), u128::from(a.sig) << (65 + a.exp))
        };
        let up = self.increment(a.sign, kept & 1 != 0, rest);
        if rest != 0 {
            self.flags |= PE;
        }
        self.up = up;
        Num::from_int(a.sign, kept + u64::from(up))
    }

    /// To a signed integer of `bits` bits; `None` (with IE) if it does not fit.
    pub fn to_int(&mut self, a: Num, bits: u32) -> Option<i64> {
        let before = self.flags;
        let n = self.integral(a);
        let limit = 1u64 << (bits - 1);
        let fits = match n.class {
            Class::Zero => Some(0),
            Class::Finite if n.exp <= 63 => {
                let m = n.sig >> (63 - n.exp);
                if m < limit || (n.sign || mutants::on(mutants::X87_FIST_LIMIT)) && m == limit {
                    Some(m)
                } else {
                    None
                }
            }
            _ => None,
        };
        match fits {
            Some(m) => Some(if n.sign { (m as i64).wrapping_neg() } else { m as i64 }),
            None => {
                self.flags = before | IE;
                self.up = false;
                None
            }
        }
    }

    /// Compares; no flags are set.
    pub fn compare(&self, a: Num, b: Num) -> Order {
        let (a, b) = (self.flush(a), self.flush(b));
        if a.is_nan() || b.is_nan() {
            return Order::Unordered;
        }
        if a.is_zero() && b.is_zero() && !mutants::on(mutants::FP_COMPARE_ZERO) {
            return Order::Equal;
        }
        // Signed rank: class, then exponent and significand.
        let key = |n: &Num| -> (i32, i32, u64) {
            match n.class {
                Class::Zero => (0, 0, 0),
                Class::Finite => (1, n.exp, n.sig),
                _ => (2, 0, 0),
            }
        };
        let (ka, kb) = (key(&a), key(&b));
        if mutants::on(mutants::FP_COMPARE_ZERO) && a.is_zero() && b.is_zero() && a.sign != b.sign {
            return if a.sign { Order::Less } else { Order::Greater };
        }
        let less = match (a.sign && !a.is_zero(), b.sign && !b.is_zero()) {
            (true, false) => true,
            (false, true) => false,
            (false, false) => ka < kb,
            (true, true) => ka > kb,
        };
        if ka == kb && (a.sign == b.sign || a.is_zero()) {
            Order::Equal
        } else if less {
            Order::Less
        } else {
            Order::Greater
        }
    }
}

/// Quotient of two significands with sticky low bits, bit 127 set, and its exponent (0 or -1).
fn quotient(a: u64, b: u64) -> (u128, i32) {
    let (x, exp) = if a >= b { (u128::from(a) << 63, 0) } else { (u128::from(a) << 64, -1) };
    let b = u128::from(b);
    let (q, r) = (x / b, x % b);
    let (more, rest) = ((r << 2) / b, (r << 2) % b);
    (q << 64 | more << 62 | u128::from(rest != 0 && !mutants::on(mutants::FP_DIV_STICKY)), exp)
}

/// Integer square root of 2^126 <= v < 2^128.
fn root(v: u128) -> u64 {
    // 32 good bits; one step of Newton's gives all but the last.
    let mut r = (((v >> 64) as u64 as f64).sqrt() as u64).min(0xffff_ffff) << 32;
    for _ in 0..2 {
        let q = v / u128::from(r);
        let s = u128::from(r) + q >> 1;
        r = u64::try_from(s).unwrap_or(u64::MAX);
    }
    while u128::from(r) * u128::from(r) > v {
        r -= 1;
    }
    while let Some(n) = r.checked_add(1)
        && u128::from(n) * u128::from(n) <= v
    {
        r = n;
    }
    r
}

#[cfg(test)]
mod tests;
