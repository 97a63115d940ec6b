//! Memory: addresses, the inline look into the TLB, and the way out where it does not know.

use super::super::asm::{Buf, Mem, Reg, Rm, alu, reg, sh};
use super::groups::{First, Role};
use super::near::{self, Kind};
use super::{CHECKED, Emit, Hold, Parts, Temp, To, at};
use crate::ir::{Attr, Cond, Op, Ref, Ty};
use crate::mode::key;

/// From an address to the place of its entry, before the mask.
pub(super) const SHIFT: u8 = 12 - crate::mmu::tlb::ENTRY_SHIFT as u8;

/// Set in what a slow access is told: it writes.
pub(in super::super) const WRITE: u32 = 1 << 8;
/// Set if the address was made with the stack segment.
pub(in super::super) const STACK: u32 = 1 << 9;

/// An address that was computed or was not.
#[derive(Clone, Copy)]
enum Place {
    Reg(Reg),
    Parts(Parts),
}

impl Place {
    fn parts(self) -> Option<Parts> {
        match self {
            Place::Reg(_) => None,
            Place::Parts(p) => Some(p),
        }
    }
}

impl Emit<'_> {
    pub(super) fn parts_of(&mut self, r: Ref) -> Parts {
        if let Some(t) = r.as_temp()
            && let Temp::Address(p) = self.temps[t as usize]
        {
            self.used(r);
            return p;
        }
        Parts { a: r, b: Ref::NONE, c: Ref::NONE, scale: 0, disp: 0 }
    }

    /// EA: folded if it is a 64-bit address for a temporary.
    pub(super) fn ea(&mut self, index: usize, o: &Op) {
        let disp = i64::from(o.imm as i32);
        let p = Parts { a: o.a, b: o.b, c: o.c, scale: o.attr.scale(), disp };
        if let Some(t) = o.dst.as_temp()
            && o.ty == Ty::I64
            && [o.a, o.b, o.c].iter().all(|r| r.as_temp().is_none())
        {
            self.temps[t as usize] = Temp::Address(p);
            self.addresses = Some(self.addresses.map_or(t, |first| first.min(t)));
            return;
        }
        if o.dst.as_temp().is_some() {
            let s = self.scratch();
            self.address_into(s, p, o.ty);
            return self.put(o.dst, Ty::I64, s);
        }
        // LEA: the offset alone, by the type's rules.
        self.before_write(o.dst, index, 0);
        match o.dst.as_gpr().and_then(|n| self.pin(n)) {
            Some(d) if o.ty != Ty::I16 && o.ty != Ty::I8 => self.address_into(d, p, o.ty),
            _ => {
                let s = self.scratch();
                self.address_into(s, p, o.ty);
                self.put(o.dst, o.ty, s);
            }
        }
    }

    /// Computes an address. The host's flags may be lost where there is a segment base.
    pub(super) fn address_into(&mut self, d: Reg, p: Parts, ty: Ty) {
        let wide = if ty == Ty::I64 { Ty::I64 } else { Ty::I32 };
        let mut disp = p.disp;
        let base = match self.b.const_value(p.a) {
            Some(v) => {
                disp = disp.wrapping_add(v as i64);
                None
            }
            None if p.a == Ref::NONE => None,
            None => Some(p.a),
        };
        let index = (p.b != Ref::NONE).then_some(p.b);
        let fits = disp == i64::from(disp as i32);
        match (base, index) {
            (None, None) => {
                let v = if wide == Ty::I32 { disp as u32 as u64 } else { disp as u64 };
                self.out.hot.mov_imm(d, v);
            }
            (Some(a), None) => {
                let a = self.address_reg(a, d);
                if !fits {
                    self.far_displacement(d, a, disp);
                } else if disp == 0 && wide == Ty::I64 {
                    self.out.hot.mov(d, a);
                } else if disp == 0 {
                    self.out.hot.mov_r_rm(Ty::I32, d, Rm::Reg(a));
                } else {
                    self.out.hot.lea(wide, d, Mem::base(a, disp as i32));
                }
            }
            (base, Some(b)) => {
                // One of the two may be loaded into `d` if that is a scratch register, the other needs its own.
                let own = super::SCRATCH.contains(&d);
                let spare = if own { d } else { self.scratch() };
                let b = self.address_reg(b, spare);
                let a = base.map(|r| {
                    let avoid = if b == spare || !own { self.scratch() } else { d };
                    let a = self.address_reg(r, avoid);
                    if avoid != d {
                        self.unscratch(avoid);
                    }
                    a
                });
                if !own {
                    self.unscratch(spare);
                }
                if fits {
                    let base = a.unwrap_or(Mem::NO_BASE);
                    self.out.hot.lea(wide, d, Mem { base, index: Some((b, p.scale)), disp: disp as i32 });
                } else {
                    // Only constants are that far away, so there is no base.
                    self.out.hot.mov(d, b);
                    self.out.hot.shift_i(sh::SHL, Ty::I64, Rm::Reg(d), p.scale);
                    self.far_displacement(d, d, disp);
                }
            }
        }
        self.address_end(d, p, ty);
    }

    /// `d = a + disp` for a displacement of more than 32 bits.
    fn far_displacement(&mut self, d: Reg, a: Reg, disp: i64) {
        self.host = 0;
        if a != d {
            self.out.hot.mov_imm(d, disp as u64);
            self.out.hot.alu_r_rm(alu::ADD, Ty::I64, d, Rm::Reg(a));
        } else {
            let s = self.scratch();
            self.out.hot.mov_imm(s, disp as u64);
            self.out.hot.alu_r_rm(alu::ADD, Ty::I64, d, Rm::Reg(s));
            self.unscratch(s);
        }
    }

    fn address_end(&mut self, d: Reg, p: Parts, ty: Ty) {
        if ty == Ty::I16 {
            self.out.hot.movzx(d, Ty::I16, Rm::Reg(d));
        }
        if let Some(n) = p.c.as_seg_base() {
            let l64 = self.b.key & key::L64 != 0;
            let wide = if l64 { Ty::I64 } else { Ty::I32 };
            self.out.hot.alu_r_rm(alu::ADD, wide, d, Rm::Mem(Mem::env(at::seg_base(n))));
            self.host = 0;
        }
    }

    /// A part of an address in a register: its own, or `d`.
    fn address_reg(&mut self, r: Ref, d: Reg) -> Reg {
        if let Some(n) = r.as_gpr() {
            return match self.pin(n) {
                Some(h) => h,
                None => {
                    self.out.hot.mov_r_rm(Ty::I64, d, Rm::Mem(Mem::env(at::gpr(n))));
                    d
                }
            };
        }
        match self.rm(r, Ty::I64) {
            Rm::Reg(s) => s,
            Rm::Mem(m) => {
                self.out.hot.mov_r_rm(Ty::I64, d, Rm::Mem(m));
                d
            }
        }
    }

    /// Translates the address `a` for an access of `len` bytes: afterwards it is at [`CHECKED`].
    pub(super) fn check(&mut self, a: Ref, len: u32, write: bool, attr: Attr) {
        let mut p = self.parts_of(a);
        if let Some(v) = self.b.const_value(p.a) {
            (p.a, p.disp) = (Ref::NONE, p.disp.wrapping_add(v as i64));
        }
        // Both scratch registers are needed.
        for n in 0..2 {
            if let Hold::Temp(t) = self.hold[n]
                && a.as_temp() != Some(t)
            {
                self.spill(t);
            }
        }
        let own = a.as_temp().and_then(|t| match self.temps[t as usize] {
            Temp::Reg(s) => Some((t, s)),
            _ => None,
        });
        let kind = Kind { len, write, attr };
        if own.is_none()
            && let Some(near) = self.near(p, kind)
        {
            return self.check_near(p, near, kind);
        }
        if let Some((t, s)) = own {
            self.used(a);
            if self.uses[t as usize] > 0 {
                // It is wanted again.
                self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::temp(t))), s);
                self.temps[t as usize] = Temp::Spilled;
            }
        }
        let place = own.map_or(Place::Parts(p), |(_, s)| Place::Reg(s));
        match self.role(kind) {
            None => self.check_alone(place, kind),
            Some(Role::First(group)) => self.check_for_all(place, group, kind),
            Some(Role::Next { base, offset }) => self.check_by(place, (base, offset), kind),
        }
    }

    /// Brings an address into r9.
    fn bring(&mut self, place: Place) {
        match place {
            Place::Reg(s) => {
                self.hold = [Hold::Op; 2];
                self.out.hot.mov(reg::R9, s);
            }
            Place::Parts(p) => {
                self.hold = [Hold::Op, Hold::Free];
                self.address_into(reg::R9, p, Ty::I64);
                self.hold = [Hold::Op; 2];
            }
        }
    }

    /// The address in r9 must be a multiple of the access's length, if that matters.
    fn check_alignment(&mut self, kind: Kind) {
        if kind.attr.aligned() {
            self.out.hot.test_rm_i(Ty::I8, Rm::Reg(reg::R9), kind.len as i32 - 1);
            let at = self.bail();
            let j = self.out.hot.jcc(Cond::Nz);
            self.fix_hot(j, To::Cold(at));
        }
    }

    fn check_alone(&mut self, place: Place, kind: Kind) {
        self.bring(place);
        self.check_alignment(kind);
        let Kind { len, write, .. } = kind;
        let refused = self.options.chaos.one_in(8);
        // A store that follows will want to know more.
        let ahead = match place {
            Place::Parts(p) => !write && near::store_follows(self.b, self.index, p),
            Place::Reg(_) => false,
        };
        let window = self.window(place.parts());
        let j = self.look(window, len, write || ahead, refused);
        let back = self.out.hot.len() as u32;
        self.host = 0;
        self.look_again(j, window, Kind { write: write || ahead, ..kind }, back, refused);
        match ahead {
            true => self.only_read(kind, back),
            false => self.slow_way(kind, back),
        }
        match place {
            Place::Reg(_) => self.near = None,
            Place::Parts(p) => self.remember(p, Kind { write: write || ahead, ..kind }),
        }
    }

    /// An access near others to come, whose bytes are checked too. The group's register then has where they are, or
    /// zero if they have no place in common.
    fn check_for_all(&mut self, place: Place, group: First, kind: Kind) {
        let First { before, len, write, keep } = group;
        let step = |buf: &mut Buf, by: i64| {
            if before != 0 {
                buf.lea(Ty::I64, reg::R9, Mem::base(reg::R9, by as i32));
            }
        };
        self.bring(place);
        self.check_alignment(kind);
        let (bmi, refused) = (self.options.bmi, self.options.chaos.one_in(8));
        step(&mut self.out.hot, -before);
        let window = self.window(place.parts());
        let missed = self.look(window, len, write, refused);
        let found = self.out.hot.len() as u32;
        self.out.hot.lea(Ty::I64, keep, CHECKED);
        step(&mut self.out.hot, before);
        let back = self.out.hot.len() as u32;
        self.host = 0;
        self.look_again(missed, window, Kind { len, write, ..kind }, found, refused);
        self.out.cold.alu_r_rm(alu::XOR, Ty::I64, reg::R9, near::tag(write));
        step(&mut self.out.cold, before);
        self.out.cold.alu_r_rm(alu::XOR, Ty::I32, keep, Rm::Reg(keep));
        let missed = near::look(&mut self.out.cold, bmi, kind.len, kind.write, refused);
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.fix_cold(missed, To::Cold(self.out.cold.len() as u32));
        self.slow_way(kind, back);
        match place {
            Place::Reg(_) => self.near = None,
            Place::Parts(p) => self.remember(p, kind),
        }
    }

    /// An access whose bytes were checked before, if the register `base` is not zero.
    fn check_by(&mut self, place: Place, (base, offset): (Reg, i32), kind: Kind) {
        self.out.hot.test_rm_r(Ty::I64, Rm::Reg(base), base);
        let apart = self.out.hot.jcc(Cond::Z);
        self.host = 0;
        self.fix_hot(apart, To::Cold(self.out.cold.len() as u32));
        self.out.hot.mov(reg::R10, base);
        self.out.hot.mov_imm(reg::R9, offset as u32 as u64);
        let back = self.out.hot.len() as u32;
        std::mem::swap(&mut self.out.hot, &mut self.out.cold);
        self.bring(place);
        std::mem::swap(&mut self.out.hot, &mut self.out.cold);
        let (bmi, refused) = (self.options.bmi, self.options.chaos.one_in(8));
        let missed = near::look(&mut self.out.cold, bmi, kind.len, kind.write, refused);
        let found = self.out.cold.jmp();
        self.fix_cold(found, To::Hot(back));
        self.fix_cold(missed, To::Cold(self.out.cold.len() as u32));
        self.slow_way(kind, back);
        self.near = None;
        self.hold = [Hold::Op; 2];
    }

    /// After [`Emit::check`]: the address in r9 alone, which frees r10.
    pub(super) fn collapse(&mut self) -> Mem {
        self.out.hot.lea(Ty::I64, reg::R9, CHECKED);
        self.hold = [Hold::Op, Hold::Free];
        Mem::base(reg::R9, 0)
    }

    pub(super) fn load(&mut self, index: usize, o: &Op) {
        if o.dst.as_temp().is_none() {
            self.before_write(o.dst, index, 0);
        }
        self.check(o.a, o.ty.bytes(), o.op == crate::ir::Opcode::LdW, o.attr);
        if let Some(t) = o.dst.as_temp() {
            if o.op == crate::ir::Opcode::LdW || self.uses[t as usize] != 1 {
                self.out.hot.movzx(reg::R9, o.ty, Rm::Mem(CHECKED));
                self.hold = [Hold::Temp(t), Hold::Free];
                self.temps[t as usize] = Temp::Reg(reg::R9);
            } else {
                self.hold = [Hold::Temp(t); 2];
                self.temps[t as usize] = Temp::Pending(o.ty);
            }
            return;
        }
        match o.dst.as_gpr().and_then(|n| self.pin(n)) {
            Some(d) => self.out.hot.mov_r_rm(o.ty, d, Rm::Mem(CHECKED)),
            None => {
                self.out.hot.movzx(reg::R9, o.ty, Rm::Mem(CHECKED));
                self.hold = [Hold::Op, Hold::Free];
                self.put(o.dst, o.ty, reg::R9);
            }
        }
    }

    pub(super) fn store(&mut self, o: &Op) {
        if let Some(v) = self.imm(o.b, o.ty) {
            self.check(o.a, o.ty.bytes(), true, o.attr);
            self.out.hot.mov_m_i(o.ty, CHECKED, v);
            return;
        }
        self.settle(o.b, o.ty);
        self.check(o.a, o.ty.bytes(), true, o.attr);
        match o.b.as_gpr().and_then(|n| self.pin(n)) {
            Some(s) => self.out.hot.mov_rm_r(o.ty, Rm::Mem(CHECKED), s),
            None => {
                let m = self.collapse();
                let s = self.reg(o.b, o.ty);
                self.out.hot.mov_rm_r(o.ty, Rm::Mem(m), s);
            }
        }
    }

    /// A value that will be wanted after a check: out of the scratch registers.
    pub(super) fn settle(&mut self, r: Ref, ty: Ty) {
        if let Some(t) = r.as_temp() {
            if let Temp::Address(p) = self.temps[t as usize] {
                let s = self.scratch();
                self.address_into(s, p, ty);
                self.temps[t as usize] = Temp::Reg(s);
                let n = usize::from(s == reg::R10);
                self.hold[n] = Hold::Temp(t);
            }
            self.fetch(t);
        }
    }
}
