//! Numbers with 128 significant bits, for functions whose results are rounded to 64.

use super::{Class, Num};

/// `sig / 2^127 * 2^exp`, or zero if `sig` is zero; truncated after each step.
#[derive(Clone, Copy, Debug)]
pub struct Big {
    pub sign: bool,
    pub exp: i32,
    pub sig: u128,
}

impl Big {
    pub const ZERO: Big = Big { sign: false, exp: 0, sig: 0 };
    pub const ONE: Big = Big { sign: false, exp: 0, sig: 1 << 127 };

    pub fn of(n: &Num) -> Big {
        match n.class {
            Class::Finite => Big { sign: n.sign, exp: n.exp, sig: u128::from(n.sig) << 64 },
            _ => Big::ZERO,
        }
    }
    pub fn int(v: i64) -> Big {
        Big::scaled(v < 0, u128::from(v.unsigned_abs()), 127)
    }
    /// `sig / 2^127 * 2^exp` for any `sig`.
    pub fn scaled(sign: bool, sig: u128, exp: i32) -> Big {
        if sig == 0 {
            return Big::ZERO;
        }
        let n = sig.leading_zeros();
        Big { sign, exp: exp - n as i32, sig: sig << n }
    }
    pub fn is_zero(&self) -> bool {
        self.sig == 0
    }
    pub fn neg(self) -> Big {
        Big { sign: !self.sign, ..self }
    }
    /// Times a power of two.
    pub fn shift(self, n: i32) -> Big {
        Big { exp: self.exp + n, ..self }
    }
    pub fn mul(self, o: Big) -> Big {
        if self.is_zero() || o.is_zero() {
            return Big::ZERO;
        }
        Big::scaled(self.sign != o.sign, high_product(self.sig, o.sig), self.exp + o.exp + 1)
    }
    pub fn add(self, o: Big) -> Big {
        if self.is_zero() {
            return o;
        }
        if o.is_zero() {
            return self;
        }
        let (a, b) = if (o.exp, o.sig) > (self.exp, self.sig) { (o, self) } else { (self, o) };
        let d = (a.exp - b.exp) as u32;
        let low = if d > 127 { 0 } else { b.sig >> d };
        if a.sign == b.sign {
            return match a.sig.checked_add(low) {
                Some(s) => Big { sig: s, ..a },
                None => Big { sign: a.sign, exp: a.exp + 1, sig: a.sig.wrapping_add(low) >> 1 | 1 << 127 },
            };
        }
        Big::scaled(a.sign, a.sig - low, a.exp)
    }
    pub fn sub(self, o: Big) -> Big {
        self.add(o.neg())
    }
    pub fn div(self, o: Big) -> Big {
        if self.is_zero() || o.is_zero() {
            return Big::ZERO;
        }
        let mut rest = self.sig;
        let mut exp = self.exp - o.exp;
        let mut q = 0u128;
        let mut over = false;
        if rest < o.sig {
            exp -= 1;
            over = rest >> 127 != 0;
            rest <<= 1;
        }
        for _ in 0..128 {
            q <<= 1;
            if over || rest >= o.sig {
                rest = rest.wrapping_sub(o.sig);
                q |= 1;
            }
            over = rest >> 127 != 0;
            rest <<= 1;
        }
        Big { sign: self.sign != o.sign, exp, sig: q }
    }
    /// Division by a small number.
    pub fn div_int(self, n: u32) -> Big {
        if self.is_zero() {
            return self;
        }
        // 64 bits more, so that nothing of note is lost.
        let n = u128::from(n);
        let high = self.sig / n;
        let rest = self.sig % n;
        let lz = high.leading_zeros();
        let low = if lz == 0 { 0 } else { (rest << 64) / n >> (64 - lz.min(64)) };
        Big { sign: self.sign, exp: self.exp - lz as i32, sig: high << lz | low }
    }
}

/// Upper half of a product of two 128-bit numbers.
pub fn high_product(a: u128, b: u128) -> u128 {
    let m = u128::from(u64::MAX);
    let (ah, al, bh, bl) = (a >> 64, a & m, b >> 64, b & m);
    let low = al * bl >> 64;
    let mid = ah * bl + low;
    let mid2 = al * bh + (mid & m);
    ah * bh + (mid >> 64) + (mid2 >> 64)
}
