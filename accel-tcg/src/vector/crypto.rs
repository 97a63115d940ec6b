//! AES, SHA, carry-less multiplication and arithmetic in GF(2^8) (FIPS 197, FIPS 180-4; SDM vol. 2).

use super::{Insn, Opnd, Regs, Stop, V, lane, set_lane};
use crate::mutants;

/// Product in GF(2^8) with AES's polynomial.
const fn gf_mul(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    r
}

/// Inverse in that field: the 254th power.
const fn gf_inverse(a: u8) -> u8 {
    let mut r = 1;
    let mut n = 0;
    while n < 254 {
        r = gf_mul(r, a);
        n += 1;
    }
    r
}

const fn inverses() -> [u8; 256] {
    let mut t = [0; 256];
    let mut n = 1;
    while n < 256 {
        t[n] = gf_inverse(n as u8);
        n += 1;
    }
    t
}

const fn sbox() -> [u8; 256] {
    let mut t = [0; 256];
    let mut n = 0;
    while n < 256 {
        let b = INVERSE[n];
        t[n] = b ^ b.rotate_left(1) ^ b.rotate_left(2) ^ b.rotate_left(3) ^ b.rotate_left(4) ^ 0x63;
        n += 1;
    }
    t
}

const fn inverted(t: &[u8; 256]) -> [u8; 256] {
    let mut r = [0; 256];
    let mut n = 0;
    while n < 256 {
        r[t[n] as usize] = n as u8;
        n += 1;
    }
    r
}

#[allow(long_running_const_eval, reason = "65,536 products in GF(2^8), once for each build")]
const INVERSE: [u8; 256] = inverses();
const SBOX: [u8; 256] = sbox();
const UNSBOX: [u8; 256] = inverted(&SBOX);

fn mix(a: &V, m: [u8; 4]) -> V {
    let mut out = [0; 32];
    for col in 0..8 {
        for row in 0..4 {
            out[col * 4 + row] = (0..4).fold(0, |x, k| x ^ gf_mul(a[col * 4 + k], m[(k + 4 - row) & 3]));
        }
    }
    out
}

/// SubBytes and ShiftRows, or their inverses.
fn substitute(a: &V, inverse: bool) -> V {
    let mut out = [0; 32];
    for (n, o) in out.iter_mut().enumerate() {
        let (block, col, row) = (n & 16, n >> 2 & 3, n & 3);
        let from = if inverse != mutants::on(mutants::C_AES_SHIFT) { col + 4 - row } else { col + row } & 3;
        let x = usize::from(a[block + from * 4 + row]);
        *o = if inverse { UNSBOX[x] } else { SBOX[x] };
    }
    out
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const UNMIX: [u8; 4] = [14, 11, 13, 9];

fn key(a: V, b: &V) -> V {
    super::int::xor(&a, b)
}

/// AESENC.
pub fn enc(a: &V, b: &V) -> V {
    key(mix(&substitute(a, false), MIX), b)
}
/// AESENCLAST.
pub fn enc_last(a: &V, b: &V) -> V {
    key(substitute(a, false), b)
}
/// AESDEC.
pub fn dec(a: &V, b: &V) -> V {
    key(mix(&substitute(a, true), mutants::pick(mutants::C_AES_MIX, UNMIX, MIX)), b)
}
/// AESDECLAST.
pub fn dec_last(a: &V, b: &V) -> V {
    key(substitute(a, true), b)
}
/// AESIMC.
pub fn imc(a: &V) -> V {
    mix(a, UNMIX)
}
/// AESKEYGENASSIST.
pub fn keygen(a: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for half in 0..2 {
        let x = lane(a, 4, half * 2 + 1) as u32;
        let s = u32::from_le_bytes(x.to_le_bytes().map(|b| SBOX[usize::from(b)]));
        set_lane(&mut out, 4, half * 2, s.into());
        set_lane(
            &mut out,
            4,
            half * 2 + 1,
            (s.rotate_right(8) ^ u32::from(mutants::pick(mutants::C_AES_KEY, imm, 0))).into(),
        );
    }
    out
}

/// PCLMULQDQ.
pub fn clmul(a: &V, b: &V, imm: u8) -> V {
    let mut out = [0; 32];
    for half in 0..2 {
        let x = u128::from(lane(a, 8, half * 2 + usize::from(imm & 1)));
        let y = lane(b, 8, half * 2 + usize::from(imm >> mutants::pick(mutants::C_CLMUL, 4, 0) & 1));
        let r = (0..64).filter(|n| y >> n & 1 != 0).fold(0u128, |r, n| r ^ x << n);
        out[half * 16..half * 16 + 16].copy_from_slice(&r.to_le_bytes());
    }
    out
}

/// GF2P8MULB.
pub fn gf_mulb(a: &V, b: &V) -> V {
    std::array::from_fn(|n| gf_mul(a[n], b[n]))
}

fn affine(a: &V, b: &V, imm: u8, table: impl Fn(u8) -> u8) -> V {
    std::array::from_fn(|n| {
        let matrix = &b[n & !7..(n & !7) + 8];
        let x = table(a[n]);
        (0..8).fold(imm, |r, bit| {
            r ^ ((matrix[mutants::pick(mutants::C_GFNI, 7 - bit, bit)] & x).count_ones() as u8 & 1) << bit
        })
    })
}
/// GF2P8AFFINEQB.
pub fn gf_affine(a: &V, b: &V, imm: u8) -> V {
    affine(a, b, imm, |x| x)
}
/// GF2P8AFFINEINVQB.
pub fn gf_affine_inverse(a: &V, b: &V, imm: u8) -> V {
    affine(a, b, imm, |x| INVERSE[usize::from(x)])
}

/// Four words, the most significant first.
fn words(v: &V) -> [u32; 4] {
    std::array::from_fn(|n| lane(v, 4, 3 - n) as u32)
}
fn from_words(w: [u32; 4]) -> V {
    let mut out = [0; 32];
    for (n, x) in w.into_iter().enumerate() {
        set_lane(&mut out, 4, 3 - n, x.into());
    }
    out
}

/// SHA1RNDS4.
pub fn sha1_rounds(x: &V, y: &V, imm: u8) -> V {
    let [mut a, mut b, mut c, mut d] = words(x);
    let mut e = 0;
    let k = [0x5a82_7999u32, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6]
        [usize::from(imm & mutants::pick(mutants::C_SHA1_K, 3, 0))];
    for w in words(y) {
        let f = match imm & 3 {
            0 => b & c ^ !b & d,
            2 if !mutants::on(mutants::C_SHA1_F) => b & c ^ b & d ^ c & d,
            _ => b ^ c ^ d,
        };
        let t = f.wrapping_add(a.rotate_left(5)).wrapping_add(w).wrapping_add(e).wrapping_add(k);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, t);
    }
    from_words([a, b, c, d])
}
/// SHA1NEXTE.
pub fn sha1_next(x: &V, y: &V) -> V {
    let mut w = words(y);
    w[0] = w[0].wrapping_add(words(x)[0].rotate_left(30));
    from_words(w)
}
/// SHA1MSG1.
pub fn sha1_msg1(x: &V, y: &V) -> V {
    let ([w0, w1, w2, w3], [w4, w5, ..]) = (words(x), words(y));
    from_words([w2 ^ w0, w3 ^ w1, w4 ^ w2, w5 ^ w3])
}
/// SHA1MSG2.
pub fn sha1_msg2(x: &V, y: &V) -> V {
    let ([a, b, c, d], [_, w13, w14, w15]) = (words(x), words(y));
    let w16 = (a ^ w13).rotate_left(1);
    from_words([w16, (b ^ w14).rotate_left(1), (c ^ w15).rotate_left(1), (d ^ w16).rotate_left(1)])
}
/// SHA256RNDS2 with its implicit XMM0.
pub fn sha256_rounds(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let ([c0, d0, g0, h0], [a0, b0, e0, f0]) = (words(&r.vector(i.op[0])), words(&r.vector(i.op[1])));
    let [.., wk1, wk0] = words(&r.vector(Opnd::Vec(0)));
    let (mut a, mut b, mut c, mut d) = (a0, b0, c0, d0);
    let (mut e, mut f, mut g, mut h) = (e0, f0, g0, h0);
    for wk in [wk0, wk1] {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t1 = h
            .wrapping_add(s1)
            .wrapping_add(mutants::pick(mutants::C_SHA256_CH, e & f ^ !e & g, f & e ^ !f & g))
            .wrapping_add(wk);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    i.put(r, &from_words([a, b, e, f]));
    Ok(())
}
fn sigma0(x: u32) -> u32 {
    x.rotate_right(mutants::pick(mutants::C_SHA256_SIGMA, 7, 6)) ^ x.rotate_right(18) ^ x >> 3
}
fn sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
}
/// SHA256MSG1.
pub fn sha256_msg1(x: &V, y: &V) -> V {
    let ([w3, w2, w1, w0], [.., w4]) = (words(x), words(y));
    from_words([
        w3.wrapping_add(sigma0(w4)),
        w2.wrapping_add(sigma0(w3)),
        w1.wrapping_add(sigma0(w2)),
        w0.wrapping_add(sigma0(w1)),
    ])
}
/// SHA256MSG2.
pub fn sha256_msg2(x: &V, y: &V) -> V {
    let ([a3, a2, a1, a0], [w15, w14, ..]) = (words(x), words(y));
    let w16 = a0.wrapping_add(sigma1(w14));
    let w17 = a1.wrapping_add(sigma1(w15));
    from_words([a3.wrapping_add(sigma1(w17)), a2.wrapping_add(sigma1(w16)), w17, w16])
}
