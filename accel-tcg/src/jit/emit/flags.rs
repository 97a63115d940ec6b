//! Flags without computing them: what is known about the guest's status flags while a block is written.
//!
//! A flag-setting operation leaves a note of where its operands or result are. The note is written to the environment
//! (a few stores, see `interp::flags`) only when one of these places is about to change, at the block's end, and before
//! calls; places where the block can be left in the middle keep the note itself, as a [`Recipe`].

use super::super::asm::{Mem, Reg, Rm, alu, reg};
use super::super::stubs::Stub;
use super::{Emit, To, at};
use crate::interp::flags::{kind, over};
use crate::ir::op::flag;
use crate::ir::{Cond, Ref, Ty};
use crate::mutants;

/// Where an operand of the flags is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Loc {
    /// In its place in the environment.
    Env,
    Gpr(u8),
    Imm(i32),
}

/// How to bring the flags into the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Recipe {
    /// `cc_op`, or [`Recipe::NOTHING`].
    pub op: u32,
    pub a: Loc,
    pub b: Loc,
}

impl Recipe {
    /// They are there.
    pub const NOTHING: u32 = u32::MAX;
}

/// What is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fl {
    /// They are in the environment; if `carry`, CF is the low bit of `cc_c`.
    Env {
        carry: bool,
    },
    Known {
        kind: u32,
        ty: Ty,
        a: Loc,
        b: Loc,
        stored: bool,
    },
}

impl Fl {
    /// Whether the note refers to a guest register.
    /// The register changes; what is stored is looked up where it was stored to.
    pub fn forget(&mut self, n: u8) {
        if let Fl::Known { a, b, stored: true, .. } = self {
            for l in [a, b] {
                if *l == Loc::Gpr(n) {
                    *l = Loc::Env;
                }
            }
        }
    }

    pub fn uses(&self, n: u8) -> bool {
        match self {
            Fl::Known { a, b, stored: false, .. } => *a == Loc::Gpr(n) || *b == Loc::Gpr(n),
            _ => false,
        }
    }
}

/// `cc_op` of a kind in a width.
fn record(k: u32, ty: Ty) -> u32 {
    let raw = if matches!(ty, Ty::I64) || matches!(k, kind::CMP | kind::LAHF) { 0 } else { over::RAW };
    let size = if k == kind::LAHF { 0 } else { ty as u32 };
    k + size | raw
}

impl Emit<'_> {
    pub(super) fn recipe(&self) -> Recipe {
        match self.fl {
            Fl::Known { kind, ty, a, b, stored: false } => Recipe { op: record(kind, ty), a, b },
            _ => Recipe { op: Recipe::NOTHING, a: Loc::Env, b: Loc::Env },
        }
    }

    /// Brings the flags into the environment. The host's flags stay.
    pub(super) fn materialize(&mut self) {
        let Fl::Known { kind, ty, a, b, stored: false } = self.fl else { return };
        if mutants::on(mutants::J_MATERIALIZE) {
            return;
        }
        for (loc, to) in [(a, at::CC_A), (b, at::CC_B)] {
            self.store_loc(loc, to);
        }
        self.out.hot.mov_m_i(Ty::I32, Mem::env(at::CC_OP), record(kind, ty) as i32);
        self.fl = Fl::Known { kind, ty, a, b, stored: true };
    }

    /// A register that the note refers to is about to change: its value goes where the environment has the operand.
    /// The host's flags stay.
    pub(super) fn shelter(&mut self, n: u8) {
        let Fl::Known { kind, ty, a, b, stored: false } = self.fl else { return };
        if mutants::on(mutants::J_SHELTER) {
            return;
        }
        let mut sheltered = [a, b];
        for (loc, to) in sheltered.iter_mut().zip([at::CC_A, at::CC_B]) {
            if *loc == Loc::Gpr(n) {
                self.store_loc(*loc, to);
                *loc = Loc::Env;
            }
        }
        let [a, b] = sheltered;
        self.fl = Fl::Known { kind, ty, a, b, stored: false };
    }

    fn store_loc(&mut self, loc: Loc, to: i32) {
        match loc {
            Loc::Env => {}
            Loc::Imm(v) => self.out.hot.mov_m_i(Ty::I64, Mem::env(to), v),
            Loc::Gpr(n) => {
                let s = match self.pin(n) {
                    Some(h) => h,
                    None => {
                        let s = self.scratch();
                        self.out.hot.mov_r_rm(Ty::I64, s, Rm::Mem(Mem::env(at::gpr(n))));
                        self.unscratch(s);
                        s
                    }
                };
                self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(to)), s);
            }
        }
    }

    /// Gives back a scratch register before the operation's end.
    pub(super) fn unscratch(&mut self, s: Reg) {
        let n = usize::from(s == reg::R10);
        if self.hold[n] == super::Hold::Op {
            self.hold[n] = super::Hold::Free;
        }
    }

    /// The flags are those of a kind now; the host has those in `host`.
    pub(super) fn know(&mut self, kind: u32, ty: Ty, a: Loc, b: Loc, host: u32) {
        self.fl = Fl::Known { kind, ty, a, b, stored: false };
        self.host = mutants::pick(mutants::J_HOST, host, flag::ALL);
    }

    /// Saves all of the host's flags, which are the guest's.
    pub(super) fn save_host_flags(&mut self) {
        let spare = self.hold.iter().position(|h| *h == super::Hold::Free);
        let hot = &mut self.out.hot;
        let place = match spare {
            Some(n) => Rm::Reg(super::SCRATCH[n]),
            None => Rm::Mem(Mem::env(at::temp(62))),
        };
        hot.mov_rm_r(Ty::I64, place, reg::RAX);
        // LAHF; SETO AL
        hot.bytes.push(0x9f);
        hot.setcc(Cond::O, Rm::Reg(reg::RAX));
        hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), reg::RAX);
        hot.mov_r_rm(Ty::I64, reg::RAX, place);
        hot.mov_m_i(Ty::I32, Mem::env(at::CC_OP), kind::LAHF as i32);
        self.fl = Fl::Known { kind: kind::LAHF, ty: Ty::I8, a: Loc::Env, b: Loc::Env, stored: true };
        self.host = flag::ALL;
    }

    /// Single flags are about to replace those of the record, which is in the environment. The host's flags are lost.
    pub(super) fn override_begin(&mut self, flags: u32) {
        let mut bits = 0;
        for (f, bit) in [(flag::CF, over::CF), (flag::OF, over::OF), (flag::ZF, over::ZF)] {
            bits |= if flags & f != 0 { bit } else { 0 };
        }
        self.out.hot.alu_rm_i(alu::OR, Ty::I32, Rm::Mem(Mem::env(at::CC_OP)), bits as i32);
        self.host = 0;
    }

    /// Single flags of the host replace those of the record: see [`Emit::override_begin`]. The host's flags stay.
    pub(super) fn override_flags(&mut self, flags: u32) {
        for (f, c, n) in [(flag::CF, Cond::B, 0), (flag::OF, Cond::O, 1), (flag::ZF, Cond::Z, 2)] {
            if flags & f != 0 {
                self.out.hot.setcc(c, Rm::Mem(Mem::env(at::CC_C + n)));
            }
        }
        self.fl = Fl::Env { carry: flags & flag::CF != 0 };
        self.host = 0;
    }

    /// Whether a condition can be brought into the host's flags.
    pub(super) fn can_test(&self, c: Cond, host: bool) -> bool {
        if host && self.host & c.reads() == c.reads() {
            return true;
        }
        let reads = c.reads();
        match self.fl {
            Fl::Env { .. } => reads & flag::PF == 0,
            Fl::Known { kind: k, .. } => match k {
                kind::ADD | kind::SUB | kind::CMP | kind::LOGIC | kind::LAHF => true,
                kind::INC | kind::DEC => reads & flag::CF == 0 || reads == flag::CF,
                kind::MUL => reads == flag::CF || reads == flag::ZF || reads == flag::SF || reads == flag::PF,
                kind::SHL | kind::SHR | kind::SAR => reads == flag::CF || reads & (flag::CF | flag::OF) == 0,
                kind::ZERO => reads == flag::ZF,
                _ => false,
            },
        }
    }

    /// Brings a condition into the host's flags; [`Emit::can_test`] has said yes.
    pub(super) fn test(&mut self, c: Cond) {
        let reads = c.reads();
        if self.host & reads == reads {
            return;
        }
        let (k, ty, a, b) = match self.fl {
            Fl::Known { kind, ty, a, b, .. } => (kind, ty, a, b),
            Fl::Env { carry } if !carry || reads != flag::CF => {
                // Nothing is known here, so what the record says is found out when it runs.
                let c = self.out.hot.call();
                self.fix_hot(c, To::Stub(Stub::Flags));
                self.host = flag::CF | flag::ZF | flag::SF | flag::OF;
                return;
            }
            Fl::Env { .. } => {
                self.out.hot.bt_i(4, Ty::I32, Rm::Mem(Mem::env(at::CC_C)), 0);
                self.host = flag::CF;
                return;
            }
        };
        let only_result = reads & (flag::CF | flag::OF) == 0;
        self.host = flag::ALL;
        match k {
            kind::LAHF if reads == flag::CF => {
                self.out.hot.bt_i(4, Ty::I32, Rm::Mem(Mem::env(at::CC_A)), 8);
                self.host = flag::CF;
            }
            kind::LAHF => {
                let s = self.scratch();
                let hot = &mut self.out.hot;
                hot.mov(s, reg::RAX);
                hot.mov_r_rm(Ty::I32, reg::RAX, Rm::Mem(Mem::env(at::CC_A)));
                // ADD AL, 7Fh makes OF; SAHF the others.
                hot.alu_rm_i(alu::ADD, Ty::I8, Rm::Reg(reg::RAX), 0x7f);
                hot.bytes.push(0x9e);
                hot.mov(reg::RAX, s);
                self.unscratch(s);
            }
            kind::CMP => {
                let s = self.loc_reg(a, at::CC_A);
                match b {
                    Loc::Imm(v) => self.out.hot.alu_rm_i(alu::CMP, ty, Rm::Reg(s), v),
                    _ => {
                        let m = self.loc_rm(b, at::CC_B);
                        self.out.hot.alu_r_rm(alu::CMP, ty, s, m);
                    }
                }
                self.unscratch(s);
            }
            _ if reads == flag::CF && matches!(k, kind::INC..=kind::SAR) => {
                self.out.hot.bt_i(4, Ty::I32, Rm::Mem(Mem::env(at::CC_B)), 0);
                self.host = flag::CF;
            }
            kind::ADD | kind::SUB if !only_result => {
                let (undo, again) = if k == kind::ADD { (alu::SUB, alu::ADD) } else { (alu::ADD, alu::SUB) };
                let s = self.loc_reg(a, at::CC_A);
                let s = if super::SCRATCH.contains(&s) {
                    s
                } else {
                    let t = self.scratch();
                    self.out.hot.mov(t, s);
                    t
                };
                for op in [undo, again] {
                    match b {
                        Loc::Imm(v) => self.out.hot.alu_rm_i(op, ty, Rm::Reg(s), v),
                        _ => {
                            let m = self.loc_rm(b, at::CC_B);
                            self.out.hot.alu_r_rm(op, ty, s, m);
                        }
                    }
                }
                self.unscratch(s);
            }
            kind::INC | kind::DEC if !only_result => {
                let s = self.loc_reg(a, at::CC_A);
                let t = if super::SCRATCH.contains(&s) {
                    s
                } else {
                    let t = self.scratch();
                    self.out.hot.mov(t, s);
                    t
                };
                let first = u8::from(k == kind::INC);
                self.out.hot.group4(first, ty, Rm::Reg(t));
                self.out.hot.group4(1 - first, ty, Rm::Reg(t));
                self.unscratch(t);
                self.host = flag::ALL & !flag::CF;
            }
            _ => {
                // The result says it all. (Of LOGIC carry and overflow too, which TEST clears.)
                let m = self.loc_rm(a, at::CC_A);
                match m {
                    Rm::Reg(h) => self.out.hot.test_rm_r(ty, m, h),
                    Rm::Mem(_) => self.out.hot.alu_rm_i(alu::CMP, ty, m, 0),
                }
                self.host = if k == kind::LOGIC { flag::ALL } else { flag::ZF | flag::SF | flag::PF };
                if k == kind::ZERO {
                    self.host = flag::ZF;
                }
            }
        }
    }

    fn loc_rm(&mut self, loc: Loc, env: i32) -> Rm {
        match loc {
            Loc::Gpr(n) => self.pin(n).map_or(Rm::Mem(Mem::env(at::gpr(n))), Rm::Reg),
            Loc::Env => Rm::Mem(Mem::env(env)),
            Loc::Imm(v) => {
                let s = self.scratch();
                self.out.hot.mov_imm(s, i64::from(v) as u64);
                Rm::Reg(s)
            }
        }
    }

    fn loc_reg(&mut self, loc: Loc, env: i32) -> Reg {
        match self.loc_rm(loc, env) {
            Rm::Reg(r) => r,
            m => {
                let s = self.scratch();
                self.out.hot.mov_r_rm(Ty::I64, s, m);
                s
            }
        }
    }

    /// Puts CF into the low byte of `cc_b`, where INC and DEC want it. The record may be spoiled by this.
    pub(super) fn carry_to_b(&mut self) {
        if mutants::on(mutants::J_CARRY) {
            return;
        }
        if let Fl::Known { kind: kind::INC..=kind::SAR, b: Loc::Env, .. } = self.fl {
            return;
        }
        if let Fl::Known { kind: kind::LOGIC | kind::ZERO, .. } = self.fl {
            self.out.hot.mov_m_i(Ty::I8, Mem::env(at::CC_B), 0);
            return;
        }
        if let Fl::Known { kind: kind::LAHF, .. } = self.fl {
            // Only the lowest bit counts.
            let s = self.scratch();
            self.out.hot.movzx(s, Ty::I8, Rm::Mem(Mem::env(at::CC_A + 1)));
            self.out.hot.mov_rm_r(Ty::I8, Rm::Mem(Mem::env(at::CC_B)), s);
            return self.unscratch(s);
        }
        if self.fl != (Fl::Env { carry: false }) && self.can_test(Cond::B, true) {
            self.test(Cond::B);
            self.out.hot.setcc(Cond::B, Rm::Mem(Mem::env(at::CC_B)));
            return;
        }
        // Where the record is of a kind that has it there, nothing needs to be done.
        self.materialize();
        let s = self.scratch();
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I32, s, Rm::Mem(Mem::env(at::CC_OP)));
        // Whether the operands are cut to their width makes no difference.
        hot.bt_i(6, Ty::I32, Rm::Reg(s), over::RAW.trailing_zeros() as u8);
        hot.alu_rm_i(alu::SUB, Ty::I32, Rm::Reg(s), kind::INC as i32);
        hot.alu_rm_i(alu::CMP, Ty::I32, Rm::Reg(s), (kind::CMP - kind::INC) as i32);
        let j = hot.jcc(Cond::Ae);
        let back = hot.len() as u32;
        self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
        let c = self.out.cold.call();
        self.fix_cold(c, To::Stub(Stub::Carry));
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.unscratch(s);
        self.host = 0;
    }

    /// Where an operand will be found later; a value without a place of its own is stored to `env`.
    pub(super) fn place(&mut self, r: Ref, ty: Ty, dst: Ref, env: i32) -> Loc {
        if let Some(v) = self.imm(r, ty) {
            return Loc::Imm(v);
        }
        if let Some(n) = r.as_gpr()
            && dst.as_gpr() != Some(n)
            && dst.as_high() != Some(n)
        {
            return Loc::Gpr(n);
        }
        let s = self.peek_reg(r, ty);
        self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(env)), s);
        Loc::Env
    }

    /// A value in a register, which stays available for another use.
    pub(super) fn peek_reg(&mut self, r: Ref, ty: Ty) -> Reg {
        if let Some(t) = r.as_temp() {
            self.uses[t as usize] += 1;
            let s = self.reg(r, ty);
            if let super::Temp::Spilled = self.temps[t as usize] {
                let n = usize::from(s == reg::R10);
                if super::SCRATCH.contains(&s) && self.hold[n] == super::Hold::Op {
                    self.hold[n] = super::Hold::Temp(t);
                    self.locked[n] = true;
                    self.temps[t as usize] = super::Temp::Reg(s);
                }
            }
            return s;
        }
        let s = self.reg(r, ty);
        // Constants and high bytes are made again.
        self.unscratch(s);
        s
    }
}
