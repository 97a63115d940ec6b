//! Scratch registers, temporaries and operands: where values are read, copied and written.

use super::{CHECKED, Emit, Hold, SCRATCH, Temp, at};
use crate::ir::{Ref, Ty};
use crate::jit::asm::{Mem, Reg, Rm, reg, sh};

impl Emit<'_> {
    /// A scratch register for the running operation.
    pub(super) fn scratch(&mut self) -> Reg {
        if let Some(n) = self.hold.iter().position(|h| *h == Hold::Free) {
            self.hold[n] = Hold::Op;
            return SCRATCH[n];
        }
        let Some(n) = (0..2).find(|n| matches!(self.hold[*n], Hold::Temp(_)) && !self.locked[*n]) else {
            unreachable!("no operation needs three scratch registers");
        };
        let Hold::Temp(t) = self.hold[n] else { unreachable!() };
        if matches!(self.temps[t as usize], Temp::Pending(_)) {
            self.fetch(t);
            return self.scratch();
        }
        self.spill(t);
        self.hold[n] = Hold::Op;
        SCRATCH[n]
    }

    /// Loads a pending temporary, which frees r10.
    pub(super) fn fetch(&mut self, t: u16) {
        if let Temp::Pending(ty) = self.temps[t as usize] {
            self.out.hot.movzx(reg::R9, ty, Rm::Mem(CHECKED));
            self.temps[t as usize] = Temp::Reg(reg::R9);
            self.hold = [Hold::Temp(t), Hold::Free];
        }
    }

    /// Moves a temporary from its register to the environment.
    pub(super) fn spill(&mut self, t: u16) {
        self.fetch(t);
        if let Temp::Reg(r) = self.temps[t as usize] {
            if self.uses[t as usize] > 0 {
                self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::temp(t))), r);
                self.temps[t as usize] = Temp::Spilled;
            }
            if let Some(n) = SCRATCH.iter().position(|s| *s == r) {
                self.hold[n] = Hold::Free;
            }
        }
    }

    /// The operation is over: its scratch registers and temporaries without further use are free.
    pub(super) fn release(&mut self) {
        self.locked = [false; 2];
        for n in 0..2 {
            match self.hold[n] {
                Hold::Op => self.hold[n] = Hold::Free,
                Hold::Temp(t) if self.uses[t as usize] == 0 => self.hold[n] = Hold::Free,
                _ => {}
            }
        }
    }

    pub(super) fn forget_temps(&mut self) {
        self.hold = [Hold::Free; 2];
        self.locked = [false; 2];
    }

    pub(super) fn used(&mut self, r: Ref) {
        if let Some(t) = r.as_temp() {
            self.uses[t as usize] = self.uses[t as usize].saturating_sub(1);
        }
    }

    pub(super) fn lock(&mut self, r: Reg) {
        if let Some(n) = SCRATCH.iter().position(|s| *s == r) {
            self.locked[n] = true;
        }
    }

    /// The constant, if it is one that instructions can hold.
    pub(super) fn imm(&self, r: Ref, ty: Ty) -> Option<i32> {
        let v = self.b.const_value(r)?;
        Some(match ty {
            Ty::I8 => i32::from(v as i8),
            Ty::I16 => i32::from(v as i16),
            Ty::I32 => v as i32,
            Ty::I64 if i64::from(v as i32) == v as i64 => v as i32,
            _ => return None,
        })
    }

    /// Where a value can be read, in place if possible. Bits above the type may be anything.
    pub(super) fn rm(&mut self, r: Ref, ty: Ty) -> Rm {
        if let Some(n) = r.as_gpr() {
            return self.pin(n).map_or(Rm::Mem(Mem::env(at::gpr(n))), Rm::Reg);
        }
        if let Some(n) = r.as_seg_base() {
            return Rm::Mem(Mem::env(at::seg_base(n)));
        }
        if let Some(n) = r.as_seg_sel() {
            return Rm::Mem(Mem::env(at::seg_sel(n)));
        }
        if let Some(t) = r.as_temp() {
            self.used(r);
            match self.temps[t as usize] {
                Temp::Reg(s) => {
                    self.lock(s);
                    return Rm::Reg(s);
                }
                Temp::Spilled => return Rm::Mem(Mem::env(at::temp(t))),
                Temp::Pending(_) => {
                    if self.uses[t as usize] > 0 {
                        self.fetch(t);
                        self.lock(reg::R9);
                        return Rm::Reg(reg::R9);
                    }
                    self.hold = [Hold::Op; 2];
                    return Rm::Mem(CHECKED);
                }
                Temp::Address(p) => {
                    let s = self.scratch();
                    self.address_into(s, p, Ty::I64);
                    self.temps[t as usize] = Temp::Reg(s);
                    let n = usize::from(s == reg::R10);
                    (self.hold[n], self.locked[n]) = (Hold::Temp(t), true);
                    return Rm::Reg(s);
                }
                Temp::Nothing => {}
            }
        }
        if let Some(n) = r.as_high() {
            let s = self.scratch();
            let h = self.pin(n).unwrap_or(0);
            self.rotate_copy(s, h, 8);
            return Rm::Reg(s);
        }
        let v = self.b.const_value(r).unwrap_or(0);
        let s = self.scratch();
        self.out.hot.mov_imm(s, v & ty.mask());
        Rm::Reg(s)
    }

    /// Copies a register, shifted right, without touching flags if the host can.
    pub(super) fn rotate_copy(&mut self, d: Reg, s: Reg, n: u8) {
        if self.options.bmi {
            self.out.hot.rorx(Ty::I64, d, s, n);
        } else {
            self.out.hot.mov(d, s);
            self.out.hot.shift_i(sh::SHR, Ty::I64, Rm::Reg(d), n);
            self.host = 0;
        }
    }

    /// A value in a register. Bits above the type may be anything.
    pub(super) fn reg(&mut self, r: Ref, ty: Ty) -> Reg {
        match self.rm(r, ty) {
            Rm::Reg(s) => s,
            Rm::Mem(m) => {
                let s = if m == CHECKED { reg::R9 } else { self.scratch() };
                self.out.hot.movzx(s, ty, Rm::Mem(m));
                if m == CHECKED {
                    self.hold = [Hold::Op, Hold::Free];
                }
                s
            }
        }
    }

    /// A copy of a value that may be changed.
    pub(super) fn copy(&mut self, r: Ref, ty: Ty) -> Reg {
        if let Some(v) = self.b.const_value(r) {
            let s = self.scratch();
            self.out.hot.mov_imm(s, v & ty.mask());
            return s;
        }
        if r == Ref::NONE {
            let s = self.scratch();
            self.out.hot.mov_imm(s, 0);
            return s;
        }
        match self.rm(r, ty) {
            Rm::Reg(s) if SCRATCH.contains(&s) && r.as_temp().is_none_or(|t| self.uses[t as usize] == 0) => {
                let n = usize::from(s == reg::R10);
                self.hold[n] = Hold::Op;
                s
            }
            Rm::Reg(h) => {
                let s = self.scratch();
                self.out.hot.mov(s, h);
                s
            }
            Rm::Mem(m) => {
                if m == CHECKED {
                    self.out.hot.movzx(reg::R9, ty, Rm::Mem(m));
                    self.hold = [Hold::Op, Hold::Free];
                    return reg::R9;
                }
                let s = self.scratch();
                self.out.hot.movzx(s, ty, Rm::Mem(m));
                s
            }
        }
    }

    /// To be called before an operation writes `dst`: rescues what still refers to its old value. `at` is the
    /// operation's index; `kills` the flags that it overwrites.
    pub(super) fn before_write(&mut self, dst: Ref, index: usize, kills: u32) {
        let n = match (dst.as_gpr(), dst.as_high()) {
            (Some(n), _) | (_, Some(n)) => n,
            _ => return,
        };
        self.out.hot.touched |= self.place_bit(n);
        if self.fl.uses(n) && self.live[index] & !kills != 0 {
            self.shelter(n);
        }
        self.fl.forget(n);
        let Some(first) = self.addresses else { return };
        let target = Ref::gpr(n);
        for t in usize::from(first)..self.temps.len() {
            if let Temp::Address(p) = self.temps[t]
                && self.uses[t] > 0
                && [p.a, p.b, p.c].contains(&target)
            {
                let s = self.scratch();
                self.address_into(s, p, Ty::I64);
                self.temps[t] = Temp::Reg(s);
                if let Some(k) = SCRATCH.iter().position(|x| *x == s) {
                    self.hold[k] = Hold::Temp(t as u16);
                }
            }
        }
    }

    /// Writes the low bits of a host register to a destination. The register is a scratch one or a guest's.
    pub(super) fn put(&mut self, dst: Ref, ty: Ty, s: Reg) {
        if let Some(n) = dst.as_gpr() {
            match self.pin(n) {
                Some(d) => {
                    if d != s || ty == Ty::I32 {
                        self.out.hot.mov_r_rm(ty, d, Rm::Reg(s));
                    }
                }
                None => {
                    let to = Rm::Mem(Mem::env(at::gpr(n)));
                    if ty == Ty::I32 {
                        let z = if SCRATCH.contains(&s) { s } else { self.scratch() };
                        self.out.hot.mov_r_rm(Ty::I32, z, Rm::Reg(s));
                        self.out.hot.mov_rm_r(Ty::I64, to, z);
                    } else {
                        self.out.hot.mov_rm_r(ty, to, s);
                    }
                }
            }
        } else if let Some(n) = dst.as_high() {
            let d = self.pin(n).unwrap_or(0);
            let s = if s == d {
                // It is about to be turned.
                let t = self.scratch();
                self.out.hot.mov(t, s);
                t
            } else {
                s
            };
            if self.options.bmi {
                self.out.hot.rorx(Ty::I64, d, d, 8);
                self.out.hot.mov_r_rm(Ty::I8, d, Rm::Reg(s));
                self.out.hot.rorx(Ty::I64, d, d, 56);
            } else {
                self.host = 0;
                self.out.hot.shift_i(sh::ROR, Ty::I64, Rm::Reg(d), 8);
                self.out.hot.mov_r_rm(Ty::I8, d, Rm::Reg(s));
                self.out.hot.shift_i(sh::ROL, Ty::I64, Rm::Reg(d), 8);
            }
        } else if let Some(t) = dst.as_temp() {
            self.define(t, s);
        }
    }

    /// The temporary's value is in a host register now.
    pub(super) fn define(&mut self, t: u16, s: Reg) {
        if self.uses[t as usize] == 0 {
            return;
        }
        match SCRATCH.iter().position(|x| *x == s) {
            Some(n) if !matches!(self.hold[n], Hold::Temp(other) if self.uses[other as usize] > 0) => {
                self.hold[n] = Hold::Temp(t);
                self.temps[t as usize] = Temp::Reg(s);
            }
            _ => {
                let d = self.scratch();
                self.out.hot.mov(d, s);
                let n = SCRATCH.iter().position(|x| *x == d).unwrap_or(0);
                self.hold[n] = Hold::Temp(t);
                self.temps[t as usize] = Temp::Reg(d);
            }
        }
    }
}
