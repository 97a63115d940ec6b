//! Moves between registers of different kinds, single lanes, masks and tests.

use super::{Insn, Opnd, Regs, Stop, V, lane, low64, set_lane, shuffle};
use crate::mutants;
use iced_x86::Code;

const CF: u64 = 1;
const ZF: u64 = 0x40;

/// The source as it is.
pub fn copy(a: &V) -> V {
    *a
}

/// MOVSS and MOVSD: `N` bytes; from memory the rest becomes zero, from a register it stays.
pub fn scalar<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut out = match (i.op[1], i.ops) {
        (Opnd::Mem, _) if !mutants::on(mutants::V_MOVSS_LOAD) => [0; 32],
        (_, 3) => r.vector(i.op[1]),
        _ => r.vector(i.op[0]),
    };
    let from = r.vector(i.last());
    out[..N].copy_from_slice(&from[..N]);
    i.put(r, &out);
    Ok(())
}

/// MOVD and MOVQ: the low `N` bytes, everything else zero.
pub fn low<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.uses_mmx() {
        r.enter_mmx();
    }
    let mut out = [0; 32];
    out[..N].copy_from_slice(&r.vector(i.op[1])[..N]);
    i.put(r, &out);
    Ok(())
}

/// MOVLPS, MOVHLPS (`FROM` 1, `TO` 0) and their like: a quadword moves, the other one stays.
pub fn quad<const FROM: usize, const TO: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (from, to) = match (i.op[0], i.last()) {
        (Opnd::Mem, _) => (TO, 0),
        (_, Opnd::Mem) => (0, TO),
        _ => (FROM, TO),
    };
    let mut out = match (i.op[0], i.ops) {
        (Opnd::Mem, _) => [0; 32],
        (_, 3) => r.vector(i.op[1]),
        _ => r.vector(i.op[0]),
    };
    let v = lane(&r.vector(i.last()), 8, from);
    set_lane(&mut out, 8, mutants::pick(mutants::V_MOVHLPS, to, 0), v);
    i.put(r, &out);
    Ok(())
}

/// MOVDDUP, of 16 bytes from 8.
pub fn dup8(a: &V) -> V {
    shuffle::dup_even::<8>(a)
}

/// MOVMSKPS, MOVMSKPD, PMOVMSKB.
pub fn mask<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.uses_mmx() {
        r.enter_mmx();
    }
    let v = r.vector(i.op[1]);
    let bits = (0..usize::from(i.len) / N)
        .fold(0, |m, n| m | u64::from(v[n * N + N - 1] >> mutants::pick(mutants::V_MOVMSK, 7, 6) & 1) << n);
    if let Opnd::Gpr(n, size) = i.op[0] {
        r.set_gpr(n, size, bits);
    }
    Ok(())
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS.
pub fn extract<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.uses_mmx() {
        r.enter_mmx();
    }
    let lanes = usize::from(i.len) / N;
    let at = usize::from(i.imm) + mutants::pick(mutants::V_PEXTRW, 0, 1);
    let v = lane(&r.vector(i.op[1]), N, at & (lanes - 1));
    let mut out = [0; 32];
    set_lane(&mut out, 8, 0, v);
    i.put(r, &out);
    Ok(())
}

/// PINSRB, PINSRW, PINSRD, PINSRQ.
pub fn insert<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.uses_mmx() {
        r.enter_mmx();
    }
    let lanes = usize::from(i.len) / N;
    let mut out = r.vector(i.op[usize::from(i.ops == 3)]);
    let v = low64(&r.vector(i.last()));
    let at = usize::from(i.imm) + mutants::pick(mutants::V_PINSRW, 0, 1);
    set_lane(&mut out, N, at & (lanes - 1), v);
    i.put(r, &out);
    Ok(())
}

/// INSERTPS.
pub fn insertps(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (mut out, from) = i.sources(r);
    let k = if i.last() == Opnd::Mem { 0 } else { usize::from(i.imm >> 6) };
    set_lane(&mut out, 4, usize::from(i.imm >> 4 & 3), lane(&from, 4, k));
    for n in (0..4).filter(|n| i.imm >> n & 1 != 0 && !mutants::on(mutants::V_INSERTPS)) {
        set_lane(&mut out, 4, n, 0);
    }
    i.put(r, &out);
    Ok(())
}

fn test_flags(r: &mut Regs<'_>, zero: bool, carry: bool) {
    r.flags = if zero { ZF } else { 0 } | if carry { CF } else { 0 };
}

/// PTEST, VTESTPS, VTESTPD: the bits in `MASK` of each quadword count.
pub fn test<const MASK: u64>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (a, b) = (r.vector(i.op[0]), r.vector(i.op[1]));
    let quads = || (0..usize::from(i.len) / 8).map(|n| (lane(&a, 8, n), lane(&b, 8, n)));
    let zero = quads().all(|(x, y)| x & y & MASK == 0);
    let carry = quads().all(|(x, y)| mutants::pick(mutants::V_PTEST_CF, !x, x) & y & MASK == 0);
    test_flags(r, zero, carry);
    Ok(())
}

/// BLENDVPS and the like: the mask is XMM0, or the fourth operand.
pub fn blend_by<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (a, b, mask) = if i.ops == 4 {
        (r.vector(i.op[1]), r.vector(i.op[2]), r.vector(i.op[3]))
    } else {
        (r.vector(i.op[0]), r.vector(i.op[1]), r.vector(Opnd::Vec(0)))
    };
    i.put(r, &shuffle::blend_by::<N>(&a, &b, &mask));
    Ok(())
}

/// MOVQ2DQ and MOVDQ2Q.
pub fn between(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    low::<8>(i, r)
}

/// The bits that EXTRQ and INSERTQ move: length (0 is 64) and index, by immediates or by a register's bytes.
fn field(i: &Insn, r: &Regs<'_>, at: usize) -> (u64, u64) {
    let (len, index) = if i.code == Code::Extrq_xmm_imm8_imm8 || i.code == Code::Insertq_xmm_xmm_imm8_imm8 {
        (i.imm, i.imm2)
    } else {
        let v = r.vector(i.op[1]);
        (v[at], v[at + 1])
    };
    let mask = match len & 63 {
        0 => !0,
        n => (1 << n) - 1,
    };
    (mask, u64::from(index & 63))
}

/// EXTRQ: bits of the low quadword, moved to its bottom.
pub fn extrq(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (mask, index) = field(i, r, 0);
    let mut out = r.vector(i.op[0]);
    let v = low64(&out) >> index & mask;
    // The upper quadword is undefined; processors clear it.
    out[..16].copy_from_slice(&u128::from(v).to_le_bytes());
    i.put(r, &out);
    Ok(())
}

/// INSERTQ: bits from the bottom of the second into the low quadword of the first.
pub fn insertq(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (mask, index) = field(i, r, 8);
    let (mut out, from) = (r.vector(i.op[0]), low64(&r.vector(i.op[1])));
    let v = low64(&out) & !(mask << index) | (from & mask) << index;
    out[..16].copy_from_slice(&u128::from(v).to_le_bytes());
    i.put(r, &out);
    Ok(())
}

/// EMMS.
pub fn emms(_: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    r.enter_mmx();
    r.fpu.bytes[4] = mutants::pick(mutants::V_EMMS, 0, 1);
    Ok(())
}

/// VZEROUPPER and VZEROALL.
pub fn zero<const ALL: bool>(_: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let n = if r.is64 { 256 } else { 128 };
    if ALL {
        r.fpu.bytes[160..160 + n].fill(0);
    }
    r.fpu.bytes[576..576 + n - mutants::pick(mutants::V_ZEROUPPER, 0, 16)].fill(0);
    Ok(())
}
