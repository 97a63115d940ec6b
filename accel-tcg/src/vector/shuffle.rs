//! Lanes that only move: shuffles, blends, permutations, insertion and extraction.

use super::{V, lane, set_lane};
use crate::mutants;

/// PSHUFB in blocks of `W` bytes.
pub fn pshufb<const W: usize>(a: &V, b: &V) -> V {
    let mut out = [0; 32];
    for n in 0..32 {
        let k = usize::from(b[n]);
        out[n] =
            if k & 0x80 != 0 && !mutants::on(mutants::V_PSHUFB) { 0 } else { a[n & !(W - 1) | k & (W - 1)] };
    }
    out
}

/// PSHUFD, VPERMILPS and PSHUFW: four lanes of `N` bytes in each block chosen by two bits each.
pub fn shuffle4<const N: usize>(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        let k = n & !3 | usize::from(imm >> (n & 3) * 2 & 3);
        set_lane(&mut out, N, n, lane(a, N, k));
    }
    out
}

/// PSHUFLW and PSHUFHW.
pub fn shuffle_words<const HIGH: bool>(a: &V, imm: u8) -> V {
    let mut out = *a;
    let base = if HIGH && !mutants::on(mutants::V_PSHUFHW) { 4 } else { 0 };
    for block in [0, 8] {
        for n in 0..4 {
            let k = block + base + usize::from(imm >> n * 2 & 3);
            set_lane(&mut out, 2, block + base + n, lane(a, 2, k));
        }
    }
    out
}

/// SHUFPS.
pub fn shufps(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..8 {
        let v = if n & 3 < 2 || mutants::on(mutants::V_SHUFPS) { a } else { b };
        set_lane(&mut out, 4, n, lane(v, 4, n & !3 | usize::from(imm >> (n & 3) * 2 & 3)));
    }
    out
}

/// SHUFPD.
pub fn shufpd(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..4 {
        let v = if n & 1 == 0 { a } else { b };
        set_lane(&mut out, 8, n, lane(v, 8, n & !1 | usize::from(imm >> n & 1)));
    }
    out
}

/// PALIGNR in blocks of `W` bytes: the first is the high part.
pub fn align<const W: usize>(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for (n, o) in out.iter_mut().enumerate() {
        let k = (n & (W - 1)) + usize::from(imm);
        let block = n & !(W - 1);
        *o = match k {
            _ if k < W => b[block + k],
            _ if k < 2 * W => a[block + k - W],
            _ if mutants::on(mutants::V_PALIGNR) => b[block + (k & (W - 1))],
            _ => 0,
        };
    }
    out
}

/// Blend by immediate, lanes of `N` bytes; the eight bits serve each block of 16 bytes of words again.
pub fn blend<const N: usize>(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        let v = if (imm >> (n & 7) & 1 != 0) != mutants::on(mutants::V_BLEND) { b } else { a };
        set_lane(&mut out, N, n, lane(v, N, n));
    }
    out
}

/// Blend by the top bits of the third.
pub fn blend_by<const N: usize>(a: &V, b: &V, mask: &V) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        let v = if mask[n * N + N - 1] & mutants::pick(mutants::V_BLENDV, 0x80, 1) != 0 { b } else { a };
        set_lane(&mut out, N, n, lane(v, N, n));
    }
    out
}

/// VPERMILPS by a vector.
pub fn permil4(a: &V, b: &V) -> V {
    let mut out = [0; 32];
    for n in 0..8 {
        set_lane(&mut out, 4, n, lane(a, 4, n & !3 | b[n * 4] as usize & 3));
    }
    out
}
/// VPERMILPD by a vector.
pub fn permil8(a: &V, b: &V) -> V {
    let mut out = [0; 32];
    for n in 0..4 {
        set_lane(
            &mut out,
            8,
            n,
            lane(a, 8, n & !1 | b[n * 8] as usize >> mutants::pick(mutants::V_VPERMILPD, 1, 0) & 1),
        );
    }
    out
}
/// VPERMILPD by an immediate.
pub fn permil8i(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..4 {
        set_lane(&mut out, 8, n, lane(a, 8, n & !1 | usize::from(imm >> n & 1)));
    }
    out
}
/// VPERMD and VPERMPS: indices first.
pub fn permd(index: &V, a: &V) -> V {
    let mut out = [0; 32];
    for n in 0..8 {
        set_lane(
            &mut out,
            4,
            n,
            lane(
                a,
                4,
                mutants::pick(mutants::V_VPERMD, index[n * 4] as usize & 7, index[n * 4] as usize & 3),
            ),
        );
    }
    out
}
/// VPERMQ and VPERMPD.
pub fn permq(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for n in 0..4 {
        set_lane(&mut out, 8, n, lane(a, 8, usize::from(imm >> n * 2 & 3)));
    }
    out
}
/// VPERM2F128.
pub fn perm128(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for half in 0..2 {
        let c = imm >> half * 4;
        let v = if c & 2 == 0 { a } else { b };
        let from = usize::from(c & 1) * 16;
        if c & 8 == 0 || mutants::on(mutants::V_PERM2F128) {
            out[half * 16..half * 16 + 16].copy_from_slice(&v[from..from + 16]);
        }
    }
    out
}
/// VINSERTF128.
pub fn insert128(a: &V, b: &V, imm: u8) -> V {
    let mut out = *a;
    let at = usize::from(imm & 1) * 16;
    out[at..at + 16].copy_from_slice(&b[..16]);
    out
}
/// VEXTRACTF128.
pub fn extract128(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    let at = usize::from(imm & mutants::pick(mutants::V_EXTRACT128, 1, 0)) * 16;
    out[..16].copy_from_slice(&a[at..at + 16]);
    out
}
/// Broadcast of the low `N` bytes.
pub fn broadcast<const N: usize>(a: &V) -> V {
    let mut out = [0; 32];
    for n in 0..mutants::pick(mutants::V_BROADCAST, 32, 16) / N {
        out[n * N..(n + 1) * N].copy_from_slice(&a[..N]);
    }
    out
}
/// Even lanes of `N` bytes twice.
pub fn dup_even<const N: usize>(a: &V) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        set_lane(&mut out, N, n, lane(a, N, n & !1));
    }
    out
}
/// Odd lanes of `N` bytes twice.
pub fn dup_odd<const N: usize>(a: &V) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        set_lane(&mut out, N, n, lane(a, N, n | 1));
    }
    out
}
