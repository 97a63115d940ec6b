//! The x87's transcendental functions, from series with 128 significant bits (SDM vol. 1, 8.3.7 and 8.3.8).
//!
//! The results are rounded once to 64 bits; the same on every host.

use super::math128::Big;
use super::{Class, F80, Fp, Num};
use crate::mutants;
use std::sync::LazyLock;

/// ln 2 with 128 bits.
const LN2: Big = Big { sign: false, exp: -1, sig: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af };
/// log2 e with 128 bits.
const LOG2E: Big = Big { sign: false, exp: 0, sig: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88 };
/// pi with 128 bits.
const PI: Big = Big { sign: false, exp: 1, sig: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1 };
/// The processor's pi, which arguments are reduced by: that many bits of the true one.
pub const PI_BITS: u32 = 66;

fn round(fp: &mut Fp, b: Big) -> Num {
    fp.flags |= super::flag::PE;
    if b.is_zero() {
        return Num::zero(b.sign);
    }
    // Never exact: without this a short series could look so.
    let n = fp.round(&F80, 64, b.sign, b.exp, b.sig | 1);
    fp.flags |= super::flag::PE;
    n
}

/// 2^x - 1 for -1 <= x <= 1.
pub fn f2xm1(fp: &mut Fp, x: &Num) -> Num {
    if x.exp == 0 {
        // The ends of the range: one less the least bit, and minus a half.
        if x.sign {
            fp.flags |= super::flag::PE;
            return Num::finite(true, -1, super::TOP);
        }
        return round(fp, Big { sign: false, exp: -1, sig: !0 });
    }
    let y = Big::of(x).mul(LN2);
    // y (1 + y/2 (1 + y/3 (1 + ...)))
    let mut s = Big::ONE;
    for n in (2..36).rev() {
        s = Big::ONE.add(y.mul(s).div_int(n));
    }
    let r = y.mul(s);
    round(fp, r)
}

/// ln((1 + z) / (1 - z)) / z / 2 for small z.
fn area_tangent(z: Big) -> Big {
    let q = z.mul(z);
    let mut s = Big::ZERO;
    for n in (0..34u32).rev() {
        s = Big::ONE.div_int(2 * n + 1).add(q.mul(s));
    }
    s
}

/// log2 of a positive number.
fn log2(x: &Num) -> Big {
    let mut e = x.exp;
    let mut m = Num { exp: 0, sign: false, ..*x };
    if m.sig > 0xb504_f333_f9de_6484 && !mutants::on(mutants::LOG_REDUCTION) {
        // Above the root of two: take it from below one.
        e += 1;
        m.exp = -1;
    }
    let m = Big::of(&m);
    let z = m.sub(Big::ONE).div(m.add(Big::ONE));
    let part = z.mul(area_tangent(z)).shift(1).mul(LOG2E);
    Big::int(e.into()).add(part)
}

/// y log2 x.
pub fn fyl2x(fp: &mut Fp, y: &Num, x: &Num) -> Num {
    let l = log2(x);
    if l.is_zero() {
        return Num::zero(y.sign);
    }
    if l.sig << 64 == 0 && x.sig << 1 == 0 {
        // A power of two: the product may be exact.
        let n = Num::finite(l.sign, l.exp, (l.sig >> 64) as u64);
        fp.flags |= super::flag::PE;
        return fp.mul(&F80, 64, n, Num { denormal: false, ..*y });
    }
    round(fp, l.mul(Big::of(y)))
}

/// y log2 (x + 1).
pub fn fyl2xp1(fp: &mut Fp, y: &Num, x: &Num) -> Num {
    let b = Big::of(x);
    let l = if x.exp < -1 {
        let z = b.div(Big::int(2).add(b));
        z.mul(area_tangent(z)).shift(1).mul(LOG2E)
    } else {
        let s = Big::ONE.add(b);
        if s.is_zero() || s.sign {
            return Num::INDEFINITE;
        }
        let mut e = s.exp;
        let mut m = Big { exp: 0, ..s };
        if m.sig >> 64 > 0xb504_f333_f9de_6484 {
            e += 1;
            m.exp = -1;
        }
        let z = m.sub(Big::ONE).div(m.add(Big::ONE));
        let part = z.mul(area_tangent(z)).shift(1).mul(LOG2E);
        Big::int(e.into()).add(part)
    };
    round(fp, l.mul(Big::of(y)))
}

/// atan(k / 16).
static ATAN: LazyLock<[Big; 17]> = LazyLock::new(|| {
    let mut t = [Big::ZERO; 17];
    for k in 1..17i64 {
        // atan(k/16) - atan((k-1)/16) = atan(16 / (256 + k (k - 1)))
        let step = Big::int(16).div(Big::int(256 + k * (k - 1)));
        t[k as usize] = t[k as usize - 1].add(small_atan(step));
    }
    t
});

/// atan of at most a sixteenth.
fn small_atan(z: Big) -> Big {
    let q = z.mul(z).neg();
    let mut s = Big::ZERO;
    for n in (0..20u32).rev() {
        s = Big::ONE.div_int(2 * n + 1).add(q.mul(s));
    }
    z.mul(below_one(s))
}

/// The angle of (x, y): atan(y / x) in the right quadrant. Neither is zero or infinite.
pub fn fpatan(fp: &mut Fp, y: &Num, x: &Num) -> Num {
    let (ay, ax) = (Big { sign: false, ..Big::of(y) }, Big { sign: false, ..Big::of(x) });
    let steep = (ay.exp, ay.sig) > (ax.exp, ax.sig);
    let t = if steep { ax.div(ay) } else { ay.div(ax) };
    let k = if t.exp < -5 { 0 } else { (t.sig >> 120 >> (-t.exp).clamp(0, 7)) as i64 / 8 };
    let k = k.clamp(0, 16);
    let c = Big::int(k).shift(-4);
    let reduced = if k == 0 { t } else { t.sub(c).div(Big::ONE.add(t.mul(c))) };
    let mut a = ATAN[k as usize].add(small_atan(reduced));
    if steep {
        a = PI.shift(-1).sub(a);
    }
    if x.sign {
        a = PI.sub(a);
    }
    round(fp, Big { sign: y.sign, ..a })
}

/// Special angles, as a multiple of pi / 4, rounded.
pub fn pi_quarters(fp: &mut Fp, n: i64, sign: bool) -> Num {
    let a = PI.mul(Big::int(n)).shift(-2);
    round(fp, Big { sign, ..a })
}

/// The argument less a multiple of the processor's pi / 2, between -pi/4 and pi/4, and that multiple modulo 4.
fn reduce(x: &Num) -> (Big, u32) {
    let p = (PI.sig >> (128 - PI_BITS)) + u128::from(mutants::on(mutants::TRIG_PI));
    // x = sig * 2^(exp - 63); pi/2 = p * 2^(1 - PI_BITS).
    let unit = 1 - PI_BITS as i32;
    let mut scale = x.exp - 63;
    let (mut k, mut rest) = (0u32, u128::from(x.sig));
    let mut p = p;
    if scale >= unit {
        // Long division; only the quotient's last bits count.
        for _ in unit..scale {
            rest <<= 1;
            k <<= 1;
            if rest >= p {
                rest -= p;
                k |= 1;
            }
        }
        scale = unit;
    } else {
        // Finer than the unit: at most one half-turn fits.
        let shift = (unit - scale) as u32;
        if shift >= 61 {
            return (Big { sign: false, ..Big::of(x) }, 0);
        }
        p <<= shift;
        k = (rest / p) as u32;
        rest %= p;
    }
    let half = p >> 1;
    let over = rest > half;
    if over {
        k = k.wrapping_add(1);
        rest = p - rest;
    }
    (Big::scaled(over, rest, scale + 127), k & 3)
}

fn sin_series(a: Big) -> Big {
    let q = a.mul(a).neg();
    let mut s = Big::ONE;
    for n in (1..18u32).rev() {
        s = Big::ONE.add(q.mul(s).div_int(2 * n * (2 * n + 1)));
    }
    a.mul(below_one(s))
}

fn cos_series(a: Big) -> Big {
    let q = a.mul(a).neg();
    let mut s = Big::ONE;
    for n in (1..18u32).rev() {
        s = Big::ONE.add(q.mul(s).div_int(2 * n * (2 * n - 1)));
    }
    below_one(s)
}

/// A factor that is less than one, even where 128 bits cannot show it.
fn below_one(s: Big) -> Big {
    if s.exp == 0 && s.sig == 1 << 127 { Big { sign: false, exp: -1, sig: !0 } } else { s }
}

/// Sine and cosine of the magnitude.
fn both(x: &Num) -> (Big, Big) {
    let (a, k) = reduce(x);
    let (s, c) = (sin_series(a), cos_series(a));
    match k {
        0 => (s, c),
        1 => (c, mutants::pick(mutants::TRIG_QUADRANT, s.neg(), s)),
        2 => (s.neg(), c.neg()),
        _ => (c.neg(), s),
    }
}

/// Sine.
pub fn sin(fp: &mut Fp, x: &Num) -> Num {
    let mut s = both(x).0;
    s.sign ^= x.sign;
    round(fp, s)
}

/// Cosine.
pub fn cos(fp: &mut Fp, x: &Num) -> Num {
    let c = both(x).1;
    round(fp, c)
}

/// Tangent.
pub fn tan(fp: &mut Fp, x: &Num) -> Num {
    let (s, c) = both(x);
    let mut t = s.div(c);
    t.sign ^= x.sign;
    // Processors report no underflow here.
    let flags = fp.flags;
    let r = round(fp, t);
    fp.flags = fp.flags & !super::flag::UE | flags;
    r
}

/// Whether the trigonometric functions take the argument.
pub fn in_range(x: &Num) -> bool {
    x.class != Class::Finite || x.exp < 63
}
