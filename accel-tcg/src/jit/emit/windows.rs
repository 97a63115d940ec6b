//! Windows: pages that a loop's accesses go through, turn after turn.
//!
//! Most addresses of a loop move by a little each turn, or not at all. Such an access has a window in the environment
//! (`JitEnv::windows`): the address that it begins at, how many of its addresses are good, and the host's address. What
//! is inside needs no look into the TLB. An access outside looks there, out of line, and moves its window to that page.
//!
//! A window is a copy of what the TLB says, so it closes when the TLB may change: wherever engine code runs.
//! `Stub::Slow` and `Stub::Step` close all; what leaves a block altogether only says that nobody owns them. A loop that
//! begins closes them unless they are its own and of the present view; so an inner loop keeps its windows from one turn
//! of the outer one to the next.

use super::super::asm::{Mem, Rm, alu, reg};
use super::near::{self, Kind};
use super::{Emit, Parts, To, at};
use crate::env::WINDOWS;
use crate::ir::{Block, Cond, Op, Opcode, Ref, Ty};
use crate::mutants;

/// Bytes that an address moves at most from one turn to the next.
const STRIDE: i64 = 512;

/// A region's windows.
#[derive(Debug)]
pub(super) struct Windows {
    /// By how much each guest register changes in a turn; `None` if that is not known.
    moves: [Option<i64>; 16],
    /// Part and operation of the access that has each.
    owners: Vec<(usize, usize)>,
}

impl Windows {
    /// Whether an address changes by little.
    fn steady(&self, p: Parts) -> bool {
        let part = |r: Ref, scale: u8| match r.as_gpr() {
            Some(n) => self.moves[usize::from(n & 15)].is_some_and(|m| m << scale <= STRIDE),
            None => r == Ref::NONE,
        };
        part(p.a, 0) && part(p.b, p.scale)
    }

    /// The window of an access, if it is to have one.
    fn of_access(&mut self, p: Parts, access: (usize, usize)) -> Option<usize> {
        if !self.steady(p) {
            return None;
        }
        if let Some(n) = self.owners.iter().position(|o| *o == access) {
            return Some(n);
        }
        if self.owners.len() == WINDOWS {
            return None;
        }
        self.owners.push(access);
        Some(self.owners.len() - 1)
    }
}

/// By how much an operation changes the register that it writes.
fn step(b: &Block, o: &Op) -> Option<i64> {
    let by = match o.op {
        _ if !matches!(o.ty, Ty::I32 | Ty::I64) || o.a != o.dst => return None,
        Opcode::Inc | Opcode::Dec => 1,
        Opcode::Add | Opcode::Sub => match o.ty {
            Ty::I32 => i64::from(b.const_value(o.b)? as i32),
            _ => b.const_value(o.b)? as i64,
        },
        Opcode::Ea if o.b == Ref::NONE && o.c == Ref::NONE => i64::from(o.imm as i32),
        _ => return None,
    };
    // Enough for all scales, and far from what could overflow.
    (by.unsigned_abs() <= STRIDE as u64).then(|| by.abs())
}

/// Fields of a window.
fn base(w: usize) -> Rm {
    Rm::Mem(Mem::env(at::window_base(w)))
}
fn span(w: usize) -> Mem {
    Mem::env(at::window_span(w))
}
fn host(w: usize) -> Rm {
    Rm::Mem(Mem::env(at::window_host(w)))
}

impl<'a> Emit<'a> {
    /// Looks at how registers change in a region of these parts; `None` if windows have no place there.
    pub(super) fn windows_of(&mut self, parts: &'a [Block]) -> Option<Windows> {
        let found = self.moves_of(parts);
        self.b = &parts[0];
        let windows = Windows { moves: found?, owners: Vec::new() };
        let through = |o: &Op| {
            let p = Parts { a: o.a, b: o.b, c: o.c, scale: o.attr.scale(), disp: 0 };
            o.op == Opcode::Ea && o.dst.as_temp().is_some() && windows.steady(p)
        };
        parts.iter().any(|b| b.ops.iter().any(through)).then_some(windows)
    }

    fn moves_of(&mut self, parts: &'a [Block]) -> Option<[Option<i64>; 16]> {
        let mut moves = [Some(0i64); 16];
        for b in parts {
            self.b = b;
            for o in &b.ops {
                let hidden = match o.op {
                    // Helpers and the interpreter close windows, so they would not last.
                    Opcode::Helper => return None,
                    Opcode::X86 if !self.renames(o) => return None,
                    Opcode::X86 => self.opaque_writes(o),
                    Opcode::Div | Opcode::Idiv => 0b101,
                    _ => 0,
                };
                for (n, m) in moves.iter_mut().enumerate() {
                    if hidden >> n & 1 != 0 {
                        *m = None;
                    }
                }
                let Some(n) = o.dst.as_gpr().or(o.dst.as_high()) else { continue };
                let m = &mut moves[usize::from(n & 15)];
                *m = m.zip(step(b, o)).map(|(m, by)| m.saturating_add(by));
            }
        }
        Some(moves)
    }

    /// Where a region begins: windows of somebody else are closed. `id` is the region's own number.
    pub(super) fn claim_windows(&mut self, id: u32) {
        let owner = Mem::env(at::WINDOW_OWNER);
        let view = Rm::Mem(Mem::env(at::WINDOW_VIEW));
        let hot = &mut self.out.hot;
        hot.alu_rm_i(alu::CMP, Ty::I64, Rm::Mem(owner), id as i32);
        let other = hot.jcc(Cond::Nz);
        hot.alu_rm_r(alu::CMP, Ty::I64, view, reg::R11);
        let elsewhere = hot.jcc(Cond::Nz);
        let back = hot.len() as u32;
        let here = To::Cold(self.out.cold.len() as u32);
        self.fix_hot(other, here);
        self.fix_hot(elsewhere, here);
        let cold = &mut self.out.cold;
        for w in 0..WINDOWS {
            cold.mov_m_i(Ty::I64, span(w), 0);
        }
        cold.mov_m_i(Ty::I64, owner, id as i32);
        cold.mov_rm_r(Ty::I64, view, reg::R11);
        let j = cold.jmp();
        self.fix_cold(j, To::Hot(back));
    }

    /// The window of the running operation, whose address is this.
    pub(super) fn window(&mut self, p: Option<Parts>) -> Option<usize> {
        let (p, op) = (p?, self.index);
        let r = self.region.as_mut()?;
        let access = (r.part(), op);
        r.windows()?.of_access(p, access)
    }

    /// Checks the address in r9: afterwards the access is at [`CHECKED`](super::CHECKED), or a branch is taken whose
    /// place this returns.
    pub(super) fn look(&mut self, window: Option<usize>, len: u32, write: bool, refused: bool) -> usize {
        let hot = &mut self.out.hot;
        let Some(w) = window else { return near::look(hot, self.options.bmi, len, write, refused) };
        hot.alu_r_rm(alu::SUB, Ty::I64, reg::R9, base(w));
        hot.alu_r_rm(alu::CMP, Ty::I64, reg::R9, Rm::Mem(span(w)));
        let j = if refused { hot.jmp() } else { hot.jcc(Cond::Ae) };
        hot.mov_r_rm(Ty::I64, reg::R10, host(w));
        j
    }

    /// Cold code where [`Emit::look`] has failed. With a window that is a look into the TLB; if it knows, the window is
    /// moved and code goes on at `back`. Where nobody knows, what follows is to do something about it, with r9 and r10
    /// as [`near::look`] leaves them.
    pub(super) fn look_again(
        &mut self,
        missed: usize,
        window: Option<usize>,
        kind: Kind,
        back: u32,
        refused: bool,
    ) {
        self.fix_hot(missed, To::Cold(self.out.cold.len() as u32));
        let Some(w) = window else { return };
        let Kind { len, write, .. } = kind;
        let cold = &mut self.out.cold;
        cold.alu_r_rm(alu::ADD, Ty::I64, reg::R9, base(w));
        cold.mov_m_i(Ty::I64, span(w), 0);
        cold.mov_rm_r(Ty::I64, base(w), reg::R9);
        let missed = near::look(cold, self.options.bmi, len, write, refused);
        cold.alu_rm_r(alu::SUB, Ty::I64, base(w), reg::R9);
        let last = mutants::pick(mutants::J_WINDOW_PAGE, 0x1001 - len as i32, 0x1000);
        cold.mov_m_i(Ty::I64, span(w), last);
        cold.mov_rm_r(Ty::I64, host(w), reg::R10);
        let j = cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.fix_cold(missed, To::Cold(self.out.cold.len() as u32));
    }
}
