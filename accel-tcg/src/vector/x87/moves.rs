//! Loads, stores, constants, conversions to integers and decimals, and moves within the x87's stack (SDM vol. 1, 8.3.3,
//! 8.3.4; vol. 2 for each instruction).

use super::arith::{memory_float, memory_int};
use super::{C1, Exec, INDEFINITE, Raw, nan, special};
use crate::float::{F32, F64, Num, Rounding, flag, pack, pack80};
use crate::mutants;
use crate::vector::{Insn, Opnd, Regs, lane};

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

pub(super) fn fld(i: &Insn, r: &mut Regs<'_>) -> Exec {
    if i.mem == 4 || i.mem == 8 { fld_float(i, r) } else { fld_register(i, r) }
}

pub(super) fn fild(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let v = pack80(&memory_int(i, r));
    push_value(r, v);
    Ok(())
}

fn put_mem(r: &mut Regs<'_>, bytes: &[u8]) {
    r.mem[..bytes.len()].copy_from_slice(bytes);
}

/// FST and FSTP.
pub(super) fn fst<const POP: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fstpnce(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fist<const POP: bool, const CUT: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fbld(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let m = r.vector(Opnd::Mem);
    let v = (0..9).rev().fold(0u64, |v, k| v * 100 + u64::from(m[k] >> 4) * 10 + u64::from(m[k] & 15));
    let n = Num::from_int(m[9] & 0x80 != 0, v);
    push_value(r, pack80(&n));
    Ok(())
}

pub(super) fn fbstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
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

/// Constants: the significand below, and whether to nearest and upwards it is one more.
pub(super) fn constant<const SIG: u64, const SE: u16, const NEAREST: bool, const EXACT: bool>(
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

pub(super) fn fxch(i: &Insn, r: &mut Regs<'_>) -> Exec {
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
pub(super) fn fcmov<const MASK: u64, const CLEAR: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
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

pub(super) fn fincstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    r.fpu.bytes[32..160].rotate_left(16);
    r.set_top(r.top() + 1);
    Ok(())
}

pub(super) fn fdecstp(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    r.fpu.bytes[32..160].rotate_right(16);
    r.set_top(r.top().wrapping_sub(1));
    Ok(())
}

/// FFREE and FFREEP.
pub(super) fn ffree<const POP: bool>(i: &Insn, r: &mut Regs<'_>) -> Exec {
    r.set_codes(C1, 0);
    if let Opnd::St(n) = i.op[0] {
        r.free(n);
    }
    if POP {
        r.pop();
    }
    Ok(())
}

pub(super) fn nothing(_: &Insn, _: &mut Regs<'_>) -> Exec {
    Ok(())
}
