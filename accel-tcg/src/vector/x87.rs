//! The x87 (SDM vol. 1, chapter 8; vol. 2 for each instruction): stack, exceptions, arithmetic.
//!
//! The register image holds the stack from its top, so a push or pop rotates it. An exception of the operands that is
//! unmasked leaves everything but the status word alone; one of the result leaves a store undone, and gives registers
//! a result with a wrapped exponent.

mod arith;
mod functions;
mod moves;

use super::x87env;
use super::{Action, Insn, Regs, Stop};
use crate::float::{Class, Fp, Num, TOP, flag, unpack80};
use crate::mutants;
use arith::*;
use functions::*;
use iced_x86::{Instruction, Mnemonic};
use moves::*;

type Exec = Result<(), Stop>;

pub(super) const SF: u16 = 0x40;
const C0: u16 = 0x100;
const C1: u16 = 0x200;
const C2: u16 = 0x400;
const C3: u16 = 0x4000;
const CODES: u16 = C0 | C1 | C2 | C3;

/// A register's contents: significand, sign and exponent.
pub(super) type Raw = (u64, u16);

const INDEFINITE: Raw = (0xc000_0000_0000_0000, 0xffff);

impl Regs<'_> {
    pub(super) fn top(&self) -> u32 {
        u32::from(self.fpu.fsw()) >> 11 & 7
    }
    fn set_top(&mut self, top: u32) {
        let fsw = self.fpu.fsw() & !0x3800 | ((top & 7) << 11) as u16;
        self.fpu.set_fsw(fsw);
    }
    pub(super) fn empty(&self, i: u8) -> bool {
        self.fpu.bytes[4] >> ((self.top() + u32::from(i)) & 7) & 1 == 0
    }
    fn st(&self, i: u8) -> Raw {
        self.fpu.st(usize::from(i))
    }
    fn number(&self, i: u8) -> Num {
        let (sig, se) = self.st(i);
        unpack80(sig, se)
    }
    pub(super) fn set_st(&mut self, i: u8, v: Raw) {
        let at = 32 + usize::from(i) * 16;
        self.fpu.bytes[at..at + 8].copy_from_slice(&v.0.to_le_bytes());
        self.fpu.bytes[at + 8..at + 10].copy_from_slice(&v.1.to_le_bytes());
        self.fpu.bytes[4] |= 1 << ((self.top() + u32::from(i)) & 7);
    }
    fn free(&mut self, i: u8) {
        self.fpu.bytes[4] &= !(1 << ((self.top() + u32::from(i)) & 7));
    }
    fn push(&mut self, v: Raw) {
        self.fpu.bytes[32..160].rotate_right(16);
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, v);
    }
    fn pop(&mut self) {
        if !mutants::on(mutants::X87_POP_KEEPS_TAG) {
            self.free(0);
        }
        self.fpu.bytes[32..160].rotate_left(16);
        self.set_top(self.top() + 1);
    }
    fn set_codes(&mut self, mask: u16, codes: u16) {
        let fsw = self.fpu.fsw() & !mask | codes;
        self.fpu.set_fsw(fsw);
    }
    /// Notes exceptions; true if an unmasked one of the operands stops the instruction.
    fn raise(&mut self, flags: u32) -> bool {
        let mut flags = flags;
        for (n, m) in [
            mutants::X87_NO_IE,
            mutants::X87_NO_DE,
            mutants::X87_NO_ZE,
            mutants::X87_NO_OE,
            mutants::X87_NO_UE,
            mutants::X87_NO_PE,
        ]
        .into_iter()
        .enumerate()
        {
            flags &= !mutants::pick(m, 0, 1 << n);
        }
        let fsw = self.fpu.fsw() | flags as u16 & 0x3f;
        self.fpu.set_fsw(fsw);
        self.settle();
        flags & !u32::from(self.fpu.fcw()) & 7 != 0 && !mutants::on(mutants::X87_STORES_INVALID)
    }
    /// ES and B follow the unmasked exceptions.
    pub(super) fn settle(&mut self) {
        let fsw = self.fpu.fsw();
        let pending = fsw & !self.fpu.fcw() & 0x3f != 0;
        self.fpu.set_fsw(if pending && !mutants::on(mutants::X87_NO_ES) {
            fsw | 0x8080
        } else {
            fsw & !0x8080
        });
    }
    /// Stack fault; true if it is masked.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_codes(C1, if overflow && !mutants::on(mutants::X87_OVERFLOW_C1) { C1 } else { 0 });
        let fsw = self.fpu.fsw() | mutants::pick(mutants::X87_NO_SF, SF, 0);
        self.fpu.set_fsw(fsw);
        !self.raise(flag::IE)
    }
    fn control(&self) -> Fp {
        Fp::of_fcw(self.fpu.fcw())
    }
    /// Bits of the significand that arithmetic keeps.
    fn precision(&self) -> u32 {
        match self.fpu.fcw() >> 8 & 3 {
            0 if !mutants::on(mutants::X87_PRECISION_24) => 24,
            2 if !mutants::on(mutants::X87_PRECISION_53) => 53,
            _ => 64,
        }
    }
    /// Notes what happened with C1 for the rounding; true if the result is to be written.
    fn complete(&mut self, fp: &Fp) -> bool {
        self.set_codes(
            C1,
            if fp.up && !mutants::on(mutants::X87_NO_C1) && fp.flags & flag::PE != 0 { C1 } else { 0 },
        );
        let early = fp.flags & !fp.masks & 7 != 0;
        // Exceptions of the operands end it before any of the result.
        let flags = if early { fp.flags & 7 } else { fp.flags };
        if early {
            self.set_codes(C1, 0);
        }
        !self.raise(flags)
    }
}

/// The NaN that comes of two operands of which one at least is one (SDM vol. 1, table 4-7).
fn nan(fp: &mut Fp, a: Num, b: Num) -> Num {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        fp.flags |= flag::IE;
        return Num::INDEFINITE;
    }
    if a.is_snan() || b.is_snan() {
        fp.flags |= flag::IE;
    }
    let pick = match (a.is_nan(), b.is_nan()) {
        (true, false) => a,
        (false, true) => b,
        _ if a.is_snan() != b.is_snan() => {
            if a.is_snan() {
                b
            } else {
                a
            }
        }
        _ if a.sig != b.sig => {
            if (a.sig > b.sig) != mutants::on(mutants::X87_SMALLER_NAN) {
                a
            } else {
                b
            }
        }
        _ if a.sign => b,
        _ => a,
    };
    pick.quieted()
}

fn special(n: &Num) -> bool {
    matches!(n.class, Class::Nan | Class::Unsupported)
}

/// Operand kind of an arithmetic instruction, by its operands.
fn kind(i: &Instruction) -> u8 {
    if i.memory_size() == iced_x86::MemorySize::Unknown { 0 } else { 2 }
}

macro_rules! by_kind {
    ($i:ident, $f:ident, $op:expr) => {
        if kind($i) == 0 { $f::<{ $op }, 0> } else { $f::<{ $op }, 2> }
    };
}

/// The action of an x87 instruction.
#[rustfmt::skip]
pub fn action(i: &Instruction) -> Option<Action> {
    use Mnemonic::*;
    let f: fn(&Insn, &mut Regs<'_>) -> Exec = match i.mnemonic() {
        Fadd => by_kind!(i, binary, ADD), Fmul => by_kind!(i, binary, MUL),
        Fsub => by_kind!(i, binary, SUB), Fsubr => by_kind!(i, binary, SUBR),
        Fdiv => by_kind!(i, binary, DIV), Fdivr => by_kind!(i, binary, DIVR),
        Faddp => binary::<ADD, 1>, Fmulp => binary::<MUL, 1>, Fsubp => binary::<SUB, 1>,
        Fsubrp => binary::<SUBR, 1>, Fdivp => binary::<DIV, 1>, Fdivrp => binary::<DIVR, 1>,
        Fiadd => binary::<ADD, 3>, Fimul => binary::<MUL, 3>, Fisub => binary::<SUB, 3>,
        Fisubr => binary::<SUBR, 3>, Fidiv => binary::<DIV, 3>, Fidivr => binary::<DIVR, 3>,
        Fld => fld, Fild => fild, Fst => fst::<false>, Fstp => fst::<true>, Fstpnce => fstpnce,
        Fist => fist::<false, false>, Fistp => fist::<true, false>, Fisttp => fist::<true, true>,
        Fbld => fbld, Fbstp => fbstp, Fxch => fxch,
        Fcom => if kind(i) == 0 { compare::<0, 0, false> } else { compare::<2, 0, false> },
        Fcomp => if kind(i) == 0 { compare::<0, 1, false> } else { compare::<2, 1, false> },
        Fcompp => compare::<0, 2, false>, Ficom => compare::<3, 0, false>, Ficomp => compare::<3, 1, false>,
        Fucom => compare::<0, 0, true>, Fucomp => compare::<0, 1, true>, Fucompp => compare::<0, 2, true>,
        Fcomi => compare_flags::<false, false>, Fcomip => compare_flags::<true, false>,
        Fucomi => compare_flags::<false, true>, Fucomip => compare_flags::<true, true>,
        Ftst => ftst, Fxam => fxam, Fchs => sign::<false>, Fabs => sign::<true>,
        Fld1 => constant::<TOP, 0x3fff, false, true>, Fldz => constant::<0, 0, false, true>,
        Fldl2t => constant::<0xd49a_784b_cd1b_8afe, 0x4000, false, false>,
        Fldl2e => constant::<0xb8aa_3b29_5c17_f0bb, 0x3fff, true, false>,
        Fldpi => constant::<0xc90f_daa2_2168_c234, 0x4000, true, false>,
        Fldlg2 => constant::<0x9a20_9a84_fbcf_f798, 0x3ffd, true, false>,
        Fldln2 => constant::<0xb172_17f7_d1cf_79ab, 0x3ffe, true, false>,
        Fsqrt => fsqrt, Frndint => frndint, F2xm1 => f2xm1, Fxtract => fxtract, Fscale => fscale,
        Fprem => fprem::<false>, Fprem1 => fprem::<true>, Fyl2x => fyl2x, Fyl2xp1 => fyl2xp1, Fpatan => fpatan,
        Fsin => angle::<SIN>, Fcos => angle::<COS>, Fsincos => angle::<SINCOS>, Fptan => angle::<TAN>,
        Fcmovb => fcmov::<1, false>, Fcmovnb => fcmov::<1, true>, Fcmove => fcmov::<0x40, false>,
        Fcmovne => fcmov::<0x40, true>, Fcmovbe => fcmov::<0x41, false>, Fcmovnbe => fcmov::<0x41, true>,
        Fcmovu => fcmov::<4, false>, Fcmovnu => fcmov::<4, true>,
        Fincstp => fincstp, Fdecstp => fdecstp, Ffree => ffree::<false>, Ffreep => ffree::<true>,
        Fnop | Wait | Feni | Fneni | Fdisi | Fndisi | Fsetpm | Fnsetpm => nothing,
        _ => return x87env::action(i),
    };
    Some(Action::Special(f))
}
