//! The x87's control: words, environments, and whole states in memory (SDM vol. 1, 8.1.8 to 8.1.12).

use super::{Action, Insn, Opnd, Regs, Stop, lane};
use crate::mutants;
use anura_x86::XsaveImage;
use iced_x86::{Instruction, Mnemonic};

type Exec = Result<(), Stop>;

fn word(r: &Regs<'_>, at: usize) -> u16 {
    u16::from_le_bytes([r.mem[at], r.mem[at + 1]])
}

fn put16(r: &mut Regs<'_>, at: usize, v: u16) {
    r.mem[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

fn put32(r: &mut Regs<'_>, at: usize, v: u32) {
    r.mem[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

fn fldcw(_: &Insn, r: &mut Regs<'_>) -> Exec {
    r.fpu.set_fcw(word(r, 0) & 0x1f3f | 0x40);
    r.settle();
    Ok(())
}

fn fnstcw(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let v = r.fpu.fcw();
    put16(r, 0, v);
    Ok(())
}

fn fnstsw(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let v = r.fpu.fsw();
    match i.op[0] {
        Opnd::Gpr(n, _) => r.set_gpr(n, 2, v.into()),
        _ => put16(r, 0, v),
    }
    Ok(())
}

fn fnclex(_: &Insn, r: &mut Regs<'_>) -> Exec {
    let fsw = r.fpu.fsw() & !0x80ff;
    r.fpu.set_fsw(fsw);
    Ok(())
}

fn reset(r: &mut Regs<'_>) {
    let top = usize::from(r.fpu.fsw() >> 11 & 7);
    // The registers themselves stay where they are.
    r.fpu.bytes[32..160].rotate_right(top * 16);
    r.fpu.bytes[..24].copy_from_slice(&XsaveImage::init().bytes[..24]);
}

fn fninit(_: &Insn, r: &mut Regs<'_>) -> Exec {
    reset(r);
    Ok(())
}

/// The tag word: valid, zero, special, empty for each physical register.
fn full_tags(r: &Regs<'_>) -> u16 {
    let top = r.top();
    (0..8u32).fold(0, |tags, phys| {
        if r.fpu.bytes[4] >> phys & 1 == 0 {
            return tags | 3 << (phys * 2);
        }
        let (sig, se) = r.fpu.st(((phys + 8 - top) & 7) as usize);
        let tag = match (se & 0x7fff, sig >> 63) {
            (0, 0) if sig == 0 => mutants::pick(mutants::X87_TAG_WORD, 1, 0),
            (1..=0x7ffe, 1) => 0,
            _ => 2,
        };
        tags | tag << (phys * 2)
    })
}

fn write_environment(r: &mut Regs<'_>, size: usize) {
    let (fcw, fsw, tags) = (r.fpu.fcw(), r.fpu.fsw(), full_tags(r));
    let fop = u16::from_le_bytes([r.fpu.bytes[6], r.fpu.bytes[7]]) & 0x7ff;
    let (ip, dp) = (r.fpu.u64_at(8), r.fpu.u64_at(16));
    if size == 14 {
        for (n, v) in [fcw, fsw, tags].into_iter().enumerate() {
            put16(r, n * 2, v);
        }
        put16(r, 6, ip as u16);
        put16(r, 10, dp as u16);
        let (a, b) =
            if r.real { ((ip >> 4) as u16 & 0xf000 | fop, (dp >> 4) as u16 & 0xf000) } else { (0, 0) };
        put16(r, 8, a);
        put16(r, 12, b);
        return;
    }
    for (n, v) in [fcw, fsw, tags].into_iter().enumerate() {
        put32(r, n * 4, 0xffff_0000 | u32::from(v));
    }
    if r.real {
        put32(r, 12, 0xffff_0000 | ip as u32 & 0xffff);
        put32(r, 16, (ip as u32 & 0xffff_0000) >> 4 | u32::from(fop));
        put32(r, 20, 0xffff_0000 | dp as u32 & 0xffff);
        put32(r, 24, (dp as u32 & 0xffff_0000) >> 4);
    } else {
        put32(r, 12, ip as u32);
        put32(r, 16, u32::from(fop) << 16);
        put32(r, 20, dp as u32);
        put32(r, 24, 0xffff_0000);
    }
}

fn load_environment(r: &mut Regs<'_>, size: usize) {
    let step = if size == 14 { 2 } else { 4 };
    let (fcw, fsw, tags) = (word(r, 0), word(r, step), word(r, 2 * step));
    // Physical registers do not move when the top does.
    let old = usize::from(r.fpu.fsw() >> 11 & 7);
    r.fpu.bytes[32..160].rotate_right(old * 16);
    let new = usize::from(fsw >> 11 & 7);
    r.fpu.bytes[32..160].rotate_left(new * 16);
    let full = (0..8).fold(0u8, |t, n| t | u8::from(tags >> (n * 2) & 3 != 3) << n);
    r.fpu.set_fcw(fcw);
    r.fpu.set_fsw(fsw);
    r.fpu.bytes[4] = full;
    let m = r.vector(Opnd::Mem);
    let (ip, dp, fop) = if size == 14 {
        (lane(&m, 2, 3), lane(&m, 2, 5), 0)
    } else {
        (lane(&m, 4, 3), lane(&m, 4, 5), word(r, 18) & 0x7ff)
    };
    r.fpu.bytes[6..8].copy_from_slice(&fop.to_le_bytes());
    r.fpu.set_u64_at(8, ip);
    r.fpu.set_u64_at(16, dp);
    r.fpu.settle_x87();
}

fn fnstenv(i: &Insn, r: &mut Regs<'_>) -> Exec {
    write_environment(r, i.mem.into());
    let fcw = r.fpu.fcw() | mutants::pick(mutants::X87_FSTENV_MASKS, 0x3f, 0);
    r.fpu.set_fcw(fcw);
    r.settle();
    Ok(())
}

fn fldenv(i: &Insn, r: &mut Regs<'_>) -> Exec {
    load_environment(r, i.mem.into());
    Ok(())
}

fn fnsave(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let env = if i.mem == 94 { 14 } else { 28 };
    write_environment(r, env);
    for n in 0..8 {
        let at = env + n * 10;
        r.mem[at..at + 10].copy_from_slice(&r.fpu.bytes[32 + n * 16..42 + n * 16]);
    }
    reset(r);
    Ok(())
}

fn frstor(i: &Insn, r: &mut Regs<'_>) -> Exec {
    let env = if i.mem == 94 { 14 } else { 28 };
    load_environment(r, env);
    for n in 0..8 {
        let at = env + n * 10;
        r.fpu.bytes[32 + n * 16..42 + n * 16].copy_from_slice(&r.mem[at..at + 10]);
    }
    Ok(())
}

/// The action of a control instruction.
pub fn action(i: &Instruction) -> Option<Action> {
    use Mnemonic::*;
    Some(Action::Special(match i.mnemonic() {
        Fldcw => fldcw,
        Fnstcw | Fstcw => fnstcw,
        Fnstsw | Fstsw => fnstsw,
        Fnclex | Fclex => fnclex,
        Fninit | Finit => fninit,
        Fnstenv | Fstenv => fnstenv,
        Fldenv => fldenv,
        Fnsave | Fsave => fnsave,
        Frstor => frstor,
        _ => return None,
    }))
}
