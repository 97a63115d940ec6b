//! Integer lanes: arithmetic, comparison, shifts, packing.

use super::{V, lane, set_lane};
use crate::mutants;

/// Applies `f` to lanes of `N` bytes, zero-extended.
#[inline(always)]
pub fn each2<const N: usize>(a: &V, b: &V, f: impl Fn(u64, u64) -> u64) -> V {
    let mut out = [0; 32];
    for n in 0..32 / N {
        set_lane(&mut out, N, n, f(lane(a, N, n), lane(b, N, n)));
    }
    out
}

/// The same with one source.
#[inline(always)]
pub fn each<const N: usize>(a: &V, f: impl Fn(u64) -> u64) -> V {
    each2::<N>(a, a, |x, _| f(x))
}

/// Sign-extends the low `N` bytes.
#[inline(always)]
pub fn sx<const N: usize>(v: u64) -> i64 {
    (v << (64 - N * 8)) as i64 >> (64 - N * 8)
}

/// Clamps to the signed range of `N` bytes.
#[inline(always)]
pub fn clamp<const N: usize>(v: i64) -> u64 {
    if mutants::on(mutants::V_PADDS) {
        return v as u64;
    }
    let max = (1i64 << (N * 8 - 1)) - 1;
    v.clamp(-max - 1, max) as u64
}

/// Clamps to the unsigned range of `N` bytes.
#[inline(always)]
pub fn clamp_unsigned<const N: usize>(v: i64) -> u64 {
    v.clamp(0, (1i64 << (N * 8)) - mutants::pick(mutants::V_PADDUS, 1, 2)) as u64
}

/// Addition.
pub fn add<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, u64::wrapping_add)
}
/// Subtraction.
pub fn sub<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, u64::wrapping_sub)
}
/// Addition with signed saturation.
pub fn adds<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| clamp::<N>(sx::<N>(x) + sx::<N>(y)))
}
/// Addition with unsigned saturation.
pub fn addus<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| clamp_unsigned::<N>((x + y) as i64))
}
/// Subtraction with signed saturation.
pub fn subs<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| clamp::<N>(sx::<N>(x) - sx::<N>(y)))
}
/// Subtraction with unsigned saturation.
pub fn subus<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| x.saturating_sub(y))
}
/// Rounded average.
pub fn avg<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| x + y + mutants::pick(mutants::V_PAVG, 1, 0) >> 1)
}
/// Equality mask.
pub fn cmpeq<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| if x == y { !0 } else { 0 })
}
/// Signed greater-than mask.
pub fn cmpgt<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| {
        let more = mutants::pick(mutants::V_PCMPGT, sx::<N>(x) > sx::<N>(y), x > y);
        if more { !0 } else { 0 }
    })
}
/// Signed maximum.
pub fn maxs<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| if sx::<N>(x) > sx::<N>(y) { x } else { y })
}
/// Signed minimum.
pub fn mins<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| if sx::<N>(x) < sx::<N>(y) { x } else { y })
}
/// Unsigned maximum.
pub fn maxu<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, u64::max)
}
/// Unsigned minimum.
pub fn minu<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| mutants::pick(mutants::V_PMINUW, x.min(y), x.max(y)))
}
/// Absolute value.
pub fn abs<const N: usize>(a: &V) -> V {
    each::<N>(a, |x| mutants::pick(mutants::V_PABS, sx::<N>(x).unsigned_abs(), x & !(1 << (N * 8 - 1))))
}
/// The first by the sign of the second.
pub fn sign<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, |x, y| match sx::<N>(y).signum() {
        -1 => x.wrapping_neg(),
        0 => mutants::pick(mutants::V_PSIGN, 0, x),
        _ => x,
    })
}
/// Low half of the product.
pub fn mul_low<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, u64::wrapping_mul)
}
/// High half of the signed product of words.
pub fn mul_high(a: &V, b: &V) -> V {
    each2::<2>(a, b, |x, y| (sx::<2>(x) * sx::<2>(y) >> 16) as u64)
}
/// High half of the unsigned product of words.
pub fn mul_high_unsigned(a: &V, b: &V) -> V {
    each2::<2>(a, b, |x, y| x * y >> 16)
}
/// PMULHRSW.
pub fn mul_high_rounded(a: &V, b: &V) -> V {
    each2::<2>(a, b, |x, y| {
        ((sx::<2>(x) * sx::<2>(y) >> 14) + mutants::pick(mutants::V_PMULHRSW, 1, 0) >> 1) as u64
    })
}
/// PMULUDQ.
pub fn mul_even_unsigned(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff))
}
/// PMULDQ.
pub fn mul_even(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| (sx::<4>(x) * sx::<4>(y)) as u64)
}
/// PMADDWD.
pub fn madd(a: &V, b: &V) -> V {
    each2::<4>(a, b, |x, y| {
        let low = sx::<2>(x) * sx::<2>(y);
        let high = mutants::pick(mutants::V_PMADDWD, sx::<2>(x >> 16), (x >> 16) as i64) * sx::<2>(y >> 16);
        (low + high) as u64
    })
}
/// PMADDUBSW: unsigned bytes of the first by signed ones of the second.
pub fn madd_bytes(a: &V, b: &V) -> V {
    each2::<2>(a, b, |x, y| {
        let low = mutants::pick(mutants::V_PMADDUBSW, (x & 0xff) as i64, sx::<1>(x)) * sx::<1>(y);
        let high = (x >> 8) as i64 * sx::<1>(y >> 8);
        clamp::<2>(low + high)
    })
}
/// PSADBW.
pub fn sad(a: &V, b: &V) -> V {
    let mut out = [0; 32];
    for q in 0..4 {
        let sum = (q * 8..q * 8 + 8)
            .map(|n| {
                u64::from(mutants::pick(mutants::V_PSADBW, a[n].abs_diff(b[n]), a[n].wrapping_sub(b[n])))
            })
            .sum();
        set_lane(&mut out, 8, q, sum);
    }
    out
}
/// MPSADBW.
pub fn mpsad(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for half in 0..2 {
        let bits = usize::from(imm >> (half * 3));
        let (x, y) = (
            half * 16 + (bits >> 2 & 1) * 4,
            half * 16 + (bits & mutants::pick(mutants::V_MPSADBW, 3, 0)) * 4,
        );
        for n in 0..8 {
            let sum = (0..4).map(|k| u64::from(a[x + n + k].abs_diff(b[y + k]))).sum();
            set_lane(&mut out, 2, half * 8 + n, sum);
        }
    }
    out
}
/// PHMINPOSUW.
pub fn minpos(a: &V) -> V {
    let mut out = [0; 32];
    let (at, min) = (0..8)
        .map(|n| (n, lane(a, 2, n)))
        .min_by_key(|(n, v)| (*v, mutants::pick(mutants::V_PHMINPOS, *n, 8 - *n)))
        .unwrap_or((0, 0));
    set_lane(&mut out, 2, 0, min);
    set_lane(&mut out, 2, 1, at as u64);
    out
}

/// Neighbours combined, those of the first in the lower half of each `W` bytes.
#[inline(always)]
fn horizontal<const N: usize, const W: usize>(a: &V, b: &V, f: impl Fn(i64, i64) -> u64) -> V {
    let mut out = [0; 32];
    let per = W / N;
    for block in 0..32 / W {
        for n in 0..per {
            let (v, k) = if n < per / 2 { (a, n * 2) } else { (b, n * 2 - per) };
            let v = if mutants::on(mutants::V_PHADD) { b } else { v };
            let (x, y) = (lane(v, N, block * per + k), lane(v, N, block * per + k + 1));
            set_lane(&mut out, N, block * per + n, f(sx::<N>(x), sx::<N>(y)));
        }
    }
    out
}
/// PHADDW, PHADDD.
pub fn hadd<const N: usize, const W: usize>(a: &V, b: &V) -> V {
    horizontal::<N, W>(a, b, |x, y| (x + y) as u64)
}
/// PHSUBW, PHSUBD.
pub fn hsub<const N: usize, const W: usize>(a: &V, b: &V) -> V {
    horizontal::<N, W>(a, b, |x, y| (x - y) as u64)
}
/// PHADDSW.
pub fn hadds<const W: usize>(a: &V, b: &V) -> V {
    horizontal::<2, W>(a, b, |x, y| clamp::<2>(x + y))
}
/// PHSUBSW.
pub fn hsubs<const W: usize>(a: &V, b: &V) -> V {
    horizontal::<2, W>(a, b, |x, y| clamp::<2>(x - y))
}

/// Lanes of `N` bytes narrowed, those of the first in the lower half of each `W` bytes.
#[inline(always)]
fn pack<const N: usize, const W: usize>(a: &V, b: &V, f: impl Fn(i64) -> u64) -> V {
    let mut out = [0; 32];
    let per = W / N;
    for block in 0..32 / W {
        for n in 0..per * 2 {
            let b = if mutants::on(mutants::V_PACK_LANES) { a } else { b };
            let (v, k) = if n < per { (a, n) } else { (b, n - per) };
            let x = sx::<N>(lane(v, N, block * per + k));
            set_lane(&mut out, N / 2, block * per * 2 + n, f(x));
        }
    }
    out
}
/// PACKSSWB.
pub fn pack_sswb<const W: usize>(a: &V, b: &V) -> V {
    pack::<2, W>(a, b, clamp::<1>)
}
/// PACKSSDW.
pub fn pack_ssdw<const W: usize>(a: &V, b: &V) -> V {
    pack::<4, W>(a, b, clamp::<2>)
}
/// PACKUSWB.
pub fn pack_uswb<const W: usize>(a: &V, b: &V) -> V {
    if mutants::on(mutants::V_PACKUS) {
        return pack::<2, W>(a, b, clamp::<1>);
    }
    pack::<2, W>(a, b, clamp_unsigned::<1>)
}
/// PACKUSDW.
pub fn pack_usdw<const W: usize>(a: &V, b: &V) -> V {
    pack::<4, W>(a, b, clamp_unsigned::<2>)
}

/// Lanes interleaved, from the low or high half of each `W` bytes.
pub fn unpack<const N: usize, const W: usize, const HIGH: bool>(a: &V, b: &V) -> V {
    let mut out = [0; 32];
    let per = W / N;
    for block in 0..32 / W {
        for n in 0..per {
            let k = block * per + n / 2 + if HIGH && !mutants::on(mutants::V_UNPCK) { per / 2 } else { 0 };
            let v = if n & 1 == 0 { a } else { b };
            set_lane(&mut out, N, block * per + n, lane(v, N, k));
        }
    }
    out
}

fn left<const N: usize>(x: u64, count: u64) -> u64 {
    if count >= N as u64 * 8 && !mutants::on(mutants::V_SHIFT_COUNT) { 0 } else { x << (count & 63) }
}
fn right<const N: usize>(x: u64, count: u64) -> u64 {
    if count >= N as u64 * 8 { 0 } else { x >> count }
}
fn arithmetic<const N: usize>(x: u64, count: u64) -> u64 {
    (sx::<N>(x)
        >> mutants::pick(mutants::V_SRA_COUNT, count.min(N as u64 * 8 - 1), count & (N as u64 * 8 - 1)))
        as u64
}
/// PSLL by the low quadword of the second.
pub fn sll<const N: usize>(a: &V, b: &V) -> V {
    let c = lane(b, 8, 0);
    each::<N>(a, |x| left::<N>(x, c))
}
/// PSRL.
pub fn srl<const N: usize>(a: &V, b: &V) -> V {
    let c = lane(b, 8, 0);
    each::<N>(a, |x| right::<N>(x, c))
}
/// PSRA.
pub fn sra<const N: usize>(a: &V, b: &V) -> V {
    let c = lane(b, 8, 0);
    each::<N>(a, |x| arithmetic::<N>(x, c))
}
/// PSLL by an immediate.
pub fn slli<const N: usize>(a: &V, imm: u8) -> V {
    each::<N>(a, |x| left::<N>(x, imm.into()))
}
/// PSRL by an immediate.
pub fn srli<const N: usize>(a: &V, imm: u8) -> V {
    each::<N>(a, |x| right::<N>(x, imm.into()))
}
/// PSRA by an immediate.
pub fn srai<const N: usize>(a: &V, imm: u8) -> V {
    each::<N>(a, |x| arithmetic::<N>(x, imm.into()))
}
/// VPSLLV.
pub fn sllv<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, left::<N>)
}
/// VPSRLV.
pub fn srlv<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, right::<N>)
}
/// VPSRAV.
pub fn srav<const N: usize>(a: &V, b: &V) -> V {
    each2::<N>(a, b, arithmetic::<N>)
}
/// PSLLDQ.
pub fn slldq(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    let k = usize::from(imm.min(mutants::pick(mutants::V_PSLLDQ, 16, 15)));
    for half in [0, 16] {
        out[half + k..half + 16].copy_from_slice(&a[half..half + 16 - k]);
    }
    out
}
/// PSRLDQ.
pub fn srldq(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    let k = usize::from(imm.min(16));
    for half in [0, 16] {
        out[half..half + 16 - k].copy_from_slice(&a[half + k..half + 16]);
    }
    out
}
/// And.
pub fn and(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| x & y)
}
/// And with the first complemented.
pub fn andn(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| !x & y)
}
/// Or.
pub fn or(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| x | y)
}
/// Exclusive or.
pub fn xor(a: &V, b: &V) -> V {
    each2::<8>(a, b, |x, y| x ^ y)
}
/// Lanes of `F` bytes at the bottom, extended to `T` bytes.
pub fn widen<const F: usize, const T: usize, const SIGNED: bool>(a: &V) -> V {
    let mut out = [0; 32];
    for n in 0..32 / T {
        let x = lane(a, F, n);
        set_lane(
            &mut out,
            T,
            n,
            if SIGNED && !mutants::on(mutants::V_PMOVSX) { sx::<F>(x) as u64 } else { x },
        );
    }
    out
}
