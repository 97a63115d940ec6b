//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 1, 12.10; vol. 2, 4.1).

use super::{Insn, Opnd, Regs, Stop, V, lane, set_lane};
use crate::mutants;

/// Elements of a string by the immediate's format, sign-extended where it says so.
fn elements(v: &V, imm: u8) -> ([i32; 16], usize) {
    let mut out = [0; 16];
    let words = imm & 1 != 0;
    let n = if words { 8 } else { 16 };
    for (k, e) in out.iter_mut().enumerate().take(n) {
        *e = match imm & 3 {
            0 => i32::from(v[k]),
            1 => lane(v, 2, k) as i32,
            2 => i32::from(v[k] as i8),
            _ => i32::from(lane(v, 2, k) as i16),
        };
    }
    (out, n)
}

/// Length from a register: its magnitude, at most `n`.
fn explicit(r: &Regs<'_>, reg: usize, wide: bool, n: usize) -> usize {
    let v = r.gpr[reg];
    let m = if wide { (v as i64).unsigned_abs() } else { u64::from((v as i32).unsigned_abs()) };
    if mutants::on(mutants::S_LENGTH) { (m % n as u64) as usize } else { m.min(n as u64) as usize }
}

/// Bits of the comparison before and after polarity, and the two lengths.
fn compare(i: &Insn, r: &Regs<'_>, lengths: Option<bool>) -> (u32, usize, usize, usize) {
    let (a, b) = (r.vector(i.op[0]), r.vector(i.op[1]));
    let ((x, n), (y, _)) = (elements(&a, i.imm), elements(&b, i.imm));
    let implicit = |e: &[i32; 16]| e[..n].iter().position(|v| *v == 0).unwrap_or(n);
    let (lx, ly) = match lengths {
        Some(wide) => (explicit(r, 0, wide, n), explicit(r, 2, wide, n)),
        None => (implicit(&x), implicit(&y)),
    };
    let (p, q) = (&x[..lx], &y[..ly]);
    let mut bits = 0u32;
    for j in 0..n {
        let on = match i.imm >> 2 & 3 {
            0 => j < ly && p.contains(&y[j]),
            1 => {
                j < ly
                    && p.chunks_exact(2)
                        .any(|c| c[0] <= y[j] && y[j] <= c[1] - mutants::pick(mutants::S_RANGES, 0, 1))
            }
            2 => match (j < lx, j < ly) {
                (true, true) => x[j] == y[j],
                (false, false) => true,
                _ => false,
            },
            _ => (0..n - j).all(|k| {
                k >= lx || mutants::on(mutants::S_ORDERED) && j + k >= ly || q.get(j + k) == Some(&x[k])
            }),
        };
        bits |= u32::from(on) << j;
    }
    let all = (1u32 << n) - 1;
    match i.imm >> 4 & 3 {
        1 => bits ^= all,
        3 if !mutants::on(mutants::S_POLARITY) => bits ^= (1u32 << ly) - 1,
        _ => {}
    }
    (bits, lx, ly, n)
}

fn flags(r: &mut Regs<'_>, bits: u32, lx: usize, ly: usize, n: usize) {
    r.flags = u64::from(bits != 0)
        | if mutants::pick(mutants::S_FLAGS, ly, lx) < n { 0x40 } else { 0 }
        | if lx < n { 0x80 } else { 0 }
        | if bits & 1 != 0 { 0x800 } else { 0 };
}

fn wide(i: &Insn) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(i.mnemonic, Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64)
}

/// PCMPESTRI (`EXPLICIT`) and PCMPISTRI.
pub fn index<const EXPLICIT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (bits, lx, ly, n) = compare(i, r, EXPLICIT.then(|| wide(i) && r.is64));
    let at = match bits {
        0 => n as u64,
        _ if i.imm & 0x40 != 0 && !mutants::on(mutants::S_INDEX) => 31 - u64::from(bits.leading_zeros()),
        _ => u64::from(bits.trailing_zeros()),
    };
    r.set_gpr(1, 8, at);
    flags(r, bits, lx, ly, n);
    Ok(())
}

/// PCMPESTRM and PCMPISTRM.
pub fn mask<const EXPLICIT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (bits, lx, ly, n) = compare(i, r, EXPLICIT.then(|| wide(i) && r.is64));
    let mut out = [0; 32];
    if i.imm & 0x40 != 0 {
        for k in 0..n {
            set_lane(&mut out, 16 / n, k, if bits >> k & 1 != 0 { !0 } else { 0 });
        }
    } else {
        set_lane(&mut out, 8, 0, bits.into());
    }
    let to = Insn { op: [Opnd::Vec(0), Opnd::None, Opnd::None, Opnd::None], ..*i };
    to.put(r, &out);
    flags(r, bits, lx, ly, n);
    Ok(())
}
