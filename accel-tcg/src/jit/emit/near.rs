//! Accesses near the last one.
//!
//! A look into the TLB leaves the host address of a page in r10 and an offset into it in r9, and most instructions
//! touch neither. As long as both and the guest registers of the address are as they were, an access at another
//! displacement only has to stay inside of the page. [`Buf::touched`](super::super::asm::Buf::touched) tells what code
//! in between has named, whoever wrote it.
//!
//! Where the page is left, and after an access that took the slow way (r9 is [`APART`] then), the whole look follows
//! out of line.

use super::super::asm::{Buf, Mem, Rm, alu, reg, sh};
use super::super::stubs::{APART, Stub};
use super::access::{SHIFT, STACK, WRITE};
use super::{CHECKED, Emit, Hold, Parts, To, at};
use crate::ir::{Attr, Block, Cond, Op, Opcode, Ref, Ty};
use crate::mmu::tlb::Entry;
use crate::mutants;
use std::mem::offset_of;

/// Operations that are looked at for a store to the place that is read.
const AHEAD: usize = 24;

/// The last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near {
    parts: Parts,
    /// It was for writing.
    write: bool,
    /// The address is known to be a multiple of this.
    aligned: u32,
    /// Host registers, and places of guest registers, that must not have been named since; see [`Buf::touched`].
    needs: u32,
}

/// How an access is made.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub len: u32,
    pub write: bool,
    pub attr: Attr,
}

impl Kind {
    /// What the slow way is told.
    pub fn what(self) -> u64 {
        let bits = |on, bit| if on { bit } else { 0 };
        (self.len | bits(self.write, WRITE) | bits(self.attr.stack(), STACK)).into()
    }

    fn multiple(self) -> u32 {
        if self.attr.aligned() { self.len } else { 1 }
    }
}

/// A field of the entry that r10 has the displacement of.
fn entry(field: usize) -> Rm {
    Rm::Mem(Mem { base: reg::R11, index: Some((reg::R10, 0)), disp: field as i32 })
}

/// The tag of the entry that r10 has the displacement of.
pub(super) fn tag(write: bool) -> Rm {
    entry(if write { offset_of!(Entry, tag_w) } else { offset_of!(Entry, tag_r) })
}

/// Looks into the TLB for the address in r9; returns where the branch stands that leaves if it is not there.
pub(super) fn look(buf: &mut Buf, bmi: bool, len: u32, write: bool, refused: bool) -> usize {
    if bmi {
        buf.rorx(Ty::I64, reg::R10, reg::R9, SHIFT);
    } else {
        buf.mov(reg::R10, reg::R9);
        buf.shift_i(sh::SHR, Ty::I64, Rm::Reg(reg::R10), SHIFT);
    }
    buf.alu_r_rm(alu::AND, Ty::I32, reg::R10, Rm::Mem(Mem::env(at::TLB_MASK)));
    compare(buf, len, write, refused)
}

fn compare(buf: &mut Buf, len: u32, write: bool, refused: bool) -> usize {
    buf.alu_r_rm(alu::XOR, Ty::I64, reg::R9, tag(write));
    let last = mutants::pick(mutants::J_LOOK_PAGE, 0x1000 - len as i32, 0xfff);
    buf.alu_rm_i(alu::CMP, Ty::I64, Rm::Reg(reg::R9), last);
    let j = if refused { buf.jmp() } else { buf.jcc(Cond::A) };
    buf.mov_r_rm(Ty::I64, reg::R10, entry(offset_of!(Entry, host)));
    j
}

/// The same address with r9 as [`APART`].
fn set_apart(buf: &mut Buf) {
    buf.lea(Ty::I64, reg::R10, Mem { disp: APART, ..CHECKED });
    buf.mov_imm(reg::R9, (APART as u32).into());
}

impl Emit<'_> {
    /// The displacement from the last look's address, if the look is still good for an access at `p`.
    pub(super) fn near(&self, p: Parts, kind: Kind) -> Option<(Near, i32)> {
        let n = self.near?;
        let same = n.parts.a == p.a && n.parts.b == p.b && n.parts.c == p.c && n.parts.scale == p.scale;
        let delta = p.disp.wrapping_sub(n.parts.disp);
        let good = same
            && self.hold == [Hold::Free; 2]
            && (self.out.hot.touched & n.needs == 0 || mutants::on(mutants::J_NEAR_TOUCHED))
            && delta.unsigned_abs() < 0x1000
            && (n.write || !kind.write);
        good.then_some((n, delta as i32))
    }

    /// After a look: later accesses may be near this one.
    pub(super) fn remember(&mut self, p: Parts, kind: Kind) {
        let mut needs = 1 << reg::R9 | 1 << reg::R10 | 1 << reg::R11;
        let mut simple = p.c == Ref::NONE;
        for r in [p.a, p.b] {
            match r.as_gpr() {
                Some(n) => needs |= self.place_bit(n),
                None => simple &= r == Ref::NONE,
            }
        }
        self.out.hot.touched = 0;
        let near = Near { parts: p, write: kind.write, aligned: kind.multiple(), needs };
        self.near = simple.then_some(near);
    }

    /// An access near the last one: afterwards it is at [`CHECKED`].
    pub(super) fn check_near(&mut self, p: Parts, (near, delta): (Near, i32), kind: Kind) {
        let Kind { len, write, .. } = kind;
        let known = if delta.unsigned_abs().is_multiple_of(near.aligned) { near.aligned } else { 1 };
        let misaligned = (kind.attr.aligned() && known < len).then(|| self.bail());
        let refused = self.options.chaos.one_in(8);
        let hot = &mut self.out.hot;
        if delta != 0 {
            hot.lea(Ty::I64, reg::R9, Mem::base(reg::R9, delta));
        }
        let last = mutants::pick(mutants::J_NEAR_PAGE, 0x1000 - len as i32, 0x1fff);
        hot.alu_rm_i(alu::CMP, Ty::I64, Rm::Reg(reg::R9), last);
        let j = if refused { hot.jmp() } else { hot.jcc(Cond::A) };
        self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
        if let Some(bail) = misaligned {
            self.out.hot.test_rm_i(Ty::I8, Rm::Reg(reg::R9), len as i32 - 1);
            let j = self.out.hot.jcc(Cond::Nz);
            self.fix_hot(j, To::Cold(bail));
        }
        let back = self.out.hot.len() as u32;
        self.host = 0;
        // Everything again, out of line.
        std::mem::swap(&mut self.out.hot, &mut self.out.cold);
        self.hold = [Hold::Op, Hold::Free];
        self.address_into(reg::R9, p, Ty::I64);
        std::mem::swap(&mut self.out.hot, &mut self.out.cold);
        if let Some(bail) = misaligned {
            self.out.cold.test_rm_i(Ty::I8, Rm::Reg(reg::R9), len as i32 - 1);
            let j = self.out.cold.jcc(Cond::Nz);
            self.fix_cold(j, To::Cold(bail));
        }
        let missed = look(&mut self.out.cold, self.options.bmi, len, write, refused);
        if near.write && !write {
            // Nobody has asked whether the other page can be written to.
            set_apart(&mut self.out.cold);
        }
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.fix_cold(missed, To::Cold(self.out.cold.len() as u32));
        self.slow_way(kind, back);
        self.hold = [Hold::Op; 2];
        self.remember(p, kind);
        if let Some(n) = &mut self.near {
            n.write = near.write;
            n.aligned = known.max(kind.multiple());
        }
    }

    /// Cold code where a look has failed: asks, and goes on at `back`.
    pub(super) fn slow_way(&mut self, kind: Kind, back: u32) {
        let cold = &mut self.out.cold;
        cold.alu_r_rm(alu::XOR, Ty::I64, reg::R9, tag(kind.write));
        cold.mov_imm(reg::R10, kind.what());
        let c = cold.call();
        self.fix_cold(c, To::Stub(Stub::Slow));
        self.site();
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Hot(back));
    }

    /// Cold code where a look for writing has failed, ahead of a store, though only a load is due.
    pub(super) fn only_read(&mut self, kind: Kind, back: u32) {
        let cold = &mut self.out.cold;
        cold.alu_r_rm(alu::XOR, Ty::I64, reg::R9, tag(true));
        let missed = compare(cold, kind.len, false, false);
        set_apart(cold);
        let j = cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.fix_cold(missed, To::Cold(self.out.cold.len() as u32));
        self.slow_way(kind, back);
    }

    /// After an operation: if it moved the base of the last look's address by a constant, it is still known.
    pub(super) fn near_moves(&mut self, o: &Op, before: u32) {
        let (Some(mut near), Some(n)) = (self.near, o.dst.as_gpr()) else { return };
        let Some(disp) = moved(self.b, near.parts, o) else { return };
        near.parts.disp = disp;
        self.near = Some(near);
        let bit = self.place_bit(n);
        self.out.hot.touched = self.out.hot.touched & !bit | before & bit;
    }

    /// A guest register in [`Buf::touched`](super::super::asm::Buf::touched).
    pub(super) fn place_bit(&self, n: u8) -> u32 {
        self.pin(n).map_or(1 << (16 + n), |h| 1 << h)
    }
}

/// The displacement that an address has after an operation that moves its base by a constant.
fn moved(b: &Block, p: Parts, o: &Op) -> Option<i64> {
    let by = b.const_value(o.b)? as i64;
    let by = match o.op {
        Opcode::Add => by,
        Opcode::Sub => by.wrapping_neg(),
        _ => return None,
    };
    let base = o.ty == Ty::I64 && o.a == o.dst && o.dst.as_gpr().is_some() && p.a == o.dst && p.b != o.dst;
    (base && by.unsigned_abs() < 0x1000).then(|| p.disp.wrapping_sub(by))
}

/// Whether a store to the place that operation `index` reads follows soon, with nothing between that moves it.
pub(super) fn store_follows(b: &Block, index: usize, mut p: Parts) -> bool {
    let mut place = Ref::NONE;
    for o in b.ops.iter().skip(index + 1).take(AHEAD) {
        match o.op {
            Opcode::Ea if o.ty == Ty::I64 && o.dst.as_temp().is_some() => {
                let same = o.a == p.a && o.b == p.b && o.c == p.c && o.attr.scale() == p.scale;
                place = if same && i64::from(o.imm as i32) == p.disp { o.dst } else { Ref::NONE };
            }
            Opcode::St if o.a == place => return true,
            Opcode::X86
                if o.a == place
                    && place != Ref::NONE
                    && b.opaques.get(o.imm as usize).is_some_and(|x| is_vector_store(&x.bytes)) =>
            {
                return true;
            }
            Opcode::Helper | Opcode::Br | Opcode::Jmp | Opcode::JmpInd | Opcode::Exit => return false,
            _ => {}
        }
        match moved(b, p, o) {
            Some(disp) => p.disp = disp,
            None if o.dst != Ref::NONE && (o.dst == p.a || o.dst == p.b) => return false,
            None => {}
        }
    }
    false
}

/// Whether these bytes are one of the usual stores of a vector register: MOVUPS, MOVAPS, MOVDQA, MOVQ and their like.
/// (Nothing depends on the answer but speed.)
fn is_vector_store(bytes: &[u8]) -> bool {
    let opcode = bytes.iter().position(|b| matches!(b, 0x0f | 0xc4 | 0xc5)).and_then(|at| {
        let skip = [(0x0f, 1), (0xc5, 2), (0xc4, 3)].into_iter().find(|(b, _)| *b == bytes[at])?.1;
        bytes.get(at + skip).copied()
    });
    matches!(opcode, Some(0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7f | 0xd6 | 0xe7))
}
