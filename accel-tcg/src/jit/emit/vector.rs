//! Vector, x87 and MMX instructions: the guest's own bytes with their operands renamed.
//!
//! The registers live in the host's from the first such instruction on (the environment's `live` says so) until a
//! call or an exit brings them home. With an unmasked exception somewhere, the interpreter runs these instructions.

use super::super::asm::{Mem, Rm, alu, reg};
use super::super::stubs::Stub;
use super::{CHECKED, Emit, Hold, Parts, To, at};
use crate::frontend::effects::{Features, Unit};
use crate::interp::thunk::{self, Shape};
use crate::ir::op::flag;
use crate::ir::{Cond, Help, Op, Opcode, Ref, Ty};
use crate::mode::key;
use anura_x86::XsaveImage;
use anura_x86::regs::mxcsr;
use iced_x86::Mnemonic;
use std::mem::offset_of;

const IMAGE: i32 = at::FPU + offset_of!(XsaveImage, bytes) as i32;
const FIP: i32 = IMAGE + 8;
const FDP: i32 = IMAGE + 16;
/// The exception masks of the x87's control word.
const MASKS: i32 = 0x3f;

/// How an instruction is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing is left of it.
    Nothing,
    /// As it is, with its operands renamed.
    Renamed,
    /// FLDCW, which must not unmask an exception of the host.
    ControlWord,
}

/// An instruction ready to be written.
struct Ready {
    bytes: Vec<u8>,
    shape: Shape,
    way: Way,
    /// A guest register without one of the host's that it reads or writes.
    spare: Option<u8>,
}

impl Emit<'_> {
    /// Whether an opaque instruction can be written.
    pub(super) fn renames(&self, o: &Op) -> bool {
        self.rename(o).is_some()
    }

    /// General registers that an opaque instruction uses, beside those of its address, as a set.
    pub(super) fn opaque_registers(&self, o: &Op) -> u32 {
        self.rename(o).map_or(0, |r| u32::from(r.shape.reads | r.shape.writes))
    }

    /// General registers that an opaque instruction changes, as a set; all of them if the interpreter runs it.
    pub(super) fn opaque_writes(&self, o: &Op) -> u32 {
        self.rename(o).map_or(u32::MAX, |r| r.shape.writes.into())
    }

    /// Bytes of memory that a vector instruction touches, and whether it writes them.
    pub(super) fn opaque_access(&self, o: &Op) -> Option<(u32, bool)> {
        let r = self.rename(o)?;
        let plain =
            r.way == Way::Renamed && !matches!(r.shape.unit, Unit::X87 | Unit::Mmx) && !r.shape.control;
        (plain && r.shape.mem != 0).then_some((r.shape.mem.into(), r.shape.write))
    }

    fn rename(&self, o: &Op) -> Option<Ready> {
        let b = self.b;
        if b.key & key::FPX != 0 {
            return None;
        }
        let bytes = &b.opaques.get(o.imm as usize)?.bytes;
        let features = Features::all_ref();
        let i = crate::frontend::decode::decode(bytes, 0, b.key, features).ok()?;
        let shape = thunk::shape(&i);
        if !shape.host || shape.pinned && self.options.pinned || shape.flags_in {
            return None;
        }
        use Mnemonic::*;
        // What is left out here also changes what the environment keeps of the x87.
        let way = match i.mnemonic() {
            Wait => Way::Nothing,
            Fldcw => Way::ControlWord,
            Fnstcw | Fnstsw | Fnclex | Emms => Way::Renamed,
            // The host's would clear registers that only 64-bit code can name.
            Vzeroupper | Vzeroall if b.key & key::L64 == 0 => return None,
            _ if shape.control => return None,
            _ => Way::Renamed,
        };
        if way != Way::Renamed {
            return Some(Ready { bytes: Vec::new(), shape, way, spare: None });
        }
        let host = |n: u8| self.pin(n).unwrap_or(reg::R10);
        let p = thunk::rename(bytes, &i, b.key, &host)?;
        let spare = p.reg.or(p.rm).filter(|n| self.pin(*n).is_none());
        Some(Ready { bytes: p.bytes, shape, way, spare })
    }

    pub(super) fn opaque(&mut self, index: usize, o: &Op) {
        let Some(r) = self.rename(o) else { unreachable!("it was said to be supported") };
        match r.way {
            Way::Nothing => return,
            Way::ControlWord => return self.load_control_word(o),
            Way::Renamed => {}
        }
        let s = r.shape;
        for n in 0..16 {
            if s.writes >> n & 1 != 0 {
                self.before_write(Ref::gpr(n), index, 0);
            }
        }
        self.ready(matches!(s.unit, Unit::X87 | Unit::Mmx));
        let mut again = None;
        if s.mem != 0 {
            let parts = o.a.as_temp().and_then(|t| match self.temps[t as usize] {
                super::Temp::Address(p) => Some(p),
                _ => None,
            });
            if matches!(s.unit, Unit::X87 | Unit::Mmx) && parts.is_none() {
                // Its address is wanted afterwards too.
                self.settle(o.a, Ty::I64);
                if let Some(t) = o.a.as_temp() {
                    self.uses[t as usize] += 1;
                }
            }
            again = Some(parts);
            self.check(o.a, s.mem.into(), s.write, o.attr);
        }
        if let Some(n) = r.spare
            && s.reads >> n & 1 != 0
        {
            self.out.hot.mov_r_rm(Ty::I64, reg::R10, Rm::Mem(Mem::env(at::gpr(n))));
        }
        self.out.hot.bytes.extend_from_slice(&r.bytes);
        if r.spare.is_some() {
            self.out.hot.touched |= 1 << reg::R10;
        }
        for n in 0..16 {
            if s.writes >> n & 1 != 0 {
                self.out.hot.touched |= self.place_bit(n);
            }
        }
        if s.writes & 1 << 1 != 0 || s.flags {
            self.host = 0;
        }
        if let Some(n) = r.spare
            && s.writes >> n & 1 != 0
        {
            self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::gpr(n))), reg::R10);
        }
        self.hold = [Hold::Free; 2];
        if s.flags {
            self.host = flag::ALL;
            self.save_host_flags();
        }
        if matches!(s.unit, Unit::X87 | Unit::Mmx) && !s.control {
            self.pointers(again.map(|p| (p, o.a)));
        }
    }

    /// FLDCW. Where exceptions would be unmasked, the interpreter does it and changes the mode.
    fn load_control_word(&mut self, o: &Op) {
        self.ready(true);
        self.check(o.a, 2, false, o.attr);
        // Memory is read once: others may write to it between the test and the use.
        let hot = &mut self.out.hot;
        hot.movzx(reg::R9, Ty::I16, Rm::Mem(CHECKED));
        hot.mov(reg::R10, reg::R9);
        hot.alu_rm_i(alu::AND, Ty::I32, Rm::Reg(reg::R10), MASKS);
        hot.alu_rm_i(alu::CMP, Ty::I32, Rm::Reg(reg::R10), MASKS);
        let j = hot.jcc(Cond::Nz);
        let unmasks = self.bail();
        self.fix_hot(j, To::Cold(unmasks));
        let hot = &mut self.out.hot;
        // Bits that do not exist, and the one that is always set.
        hot.alu_rm_i(alu::AND, Ty::I32, Rm::Reg(reg::R9), 0x1f3f);
        hot.alu_rm_i(alu::OR, Ty::I32, Rm::Reg(reg::R9), 0x40);
        let word = Rm::Mem(Mem::env(at::ARGS));
        hot.mov_rm_r(Ty::I32, word, reg::R9);
        hot.bytes.push(0xd9);
        hot.operand(5, word);
        self.hold = [Hold::Free; 2];
    }

    /// LDMXCSR with a value, as far as the masks stay set; see [`Emit::load_control_word`].
    fn load_mxcsr(&mut self, o: &Op) {
        self.ready(false);
        let s = self.reg(o.a, Ty::I32);
        let t = self.scratch();
        let hot = &mut self.out.hot;
        hot.mov(t, s);
        hot.alu_rm_i(alu::AND, Ty::I32, Rm::Reg(t), (!mxcsr::ALL | mxcsr::MASKS) as i32);
        hot.alu_rm_i(alu::CMP, Ty::I32, Rm::Reg(t), mxcsr::MASKS as i32);
        let j = hot.jcc(Cond::Nz);
        self.host = 0;
        let unmasks = self.bail();
        self.fix_hot(j, To::Cold(unmasks));
        let word = Rm::Mem(Mem::env(at::ARGS));
        self.out.hot.mov_rm_r(Ty::I32, word, s);
        self.out.hot.map1(Ty::I32, 0xae, 2, word);
    }

    /// STMXCSR.
    fn store_mxcsr(&mut self, o: &Op) {
        self.ready(false);
        self.check(o.a, 4, true, o.attr);
        self.out.hot.map1(Ty::I32, 0xae, 3, Rm::Mem(CHECKED));
        self.hold = [Hold::Free; 2];
    }

    /// Writes what a helper would do with MXCSR; false if it is another helper, or the interpreter has to look.
    pub(super) fn moves_mxcsr(&mut self, o: &Op) -> bool {
        if self.b.key & key::FPX != 0 {
            return false;
        }
        match Help::ALL.get(usize::from(self.b.calls[o.imm as usize].id)) {
            Some(Help::Ldmxcsr) => self.load_mxcsr(o),
            Some(Help::Stmxcsr) => self.store_mxcsr(o),
            _ => return false,
        }
        true
    }

    /// Where the last x87 instruction and its operand were.
    fn pointers(&mut self, mem: Option<(Option<Parts>, Ref)>) {
        let insn = self.b.insns.get(self.insn as usize).copied().unwrap_or_default();
        let mask = if self.b.key & key::L64 != 0 { !0 } else { 0xffff_ffff };
        let rip = self.b.va.wrapping_add(insn.off.into()) & mask;
        // Without scratch registers as far as possible: they still have the place of the access.
        if rip as i64 == i64::from(rip as i32) {
            self.out.hot.mov_m_i(Ty::I64, Mem::env(FIP), rip as i32);
        } else {
            self.out.hot.mov_m_i(Ty::I32, Mem::env(FIP), rip as i32);
            self.out.hot.mov_m_i(Ty::I32, Mem::env(FIP + 4), (rip >> 32) as i32);
        }
        let Some((parts, a)) = mem else { return };
        if let Some(Parts { a, b: Ref::NONE, c: Ref::NONE, disp, .. }) = parts
            && let Some(base) = a.as_gpr().and_then(|n| self.pin(n))
            && let Ok(disp) = i32::try_from(disp)
        {
            let pointer = Rm::Mem(Mem::env(FDP));
            self.out.hot.mov_rm_r(Ty::I64, pointer, base);
            if disp != 0 {
                self.out.hot.alu_rm_i(alu::ADD, Ty::I64, pointer, disp);
                self.host = 0;
            }
            return;
        }
        let s = match parts {
            Some(p) => {
                let s = self.scratch();
                let host = self.host;
                self.address_into(s, p, Ty::I64);
                if self.host != host {
                    self.host = 0;
                }
                s
            }
            None => self.reg(a, Ty::I64),
        };
        self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(FDP)), s);
    }

    /// Makes sure that the registers are in the host's.
    pub(super) fn ready(&mut self, x87: bool) {
        if if x87 { self.x87 } else { self.vectors } {
            return;
        }
        let (bit, stub) = if x87 { (4, Stub::LoadX87) } else { (3, Stub::LoadVectors) };
        self.out.hot.test_rm_i(Ty::I8, Rm::Mem(Mem::env(at::LIVE)), bit);
        let j = self.out.hot.jcc(Cond::Z);
        let back = self.out.hot.len() as u32;
        self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
        let c = self.out.cold.call();
        self.fix_cold(c, To::Stub(stub));
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Hot(back));
        self.host = 0;
        self.vectors = true;
        self.x87 |= x87;
    }

    /// 128-bit moves.
    pub(super) fn mov128(&mut self, o: &Op) {
        self.ready(false);
        let (op, r, rm) = match o.op {
            Opcode::Ld => {
                self.check(o.a, 16, false, o.attr);
                (0x10, o.dst.as_xmm().unwrap_or(0), Rm::Mem(CHECKED))
            }
            Opcode::St => {
                self.check(o.a, 16, true, o.attr);
                (0x11, o.b.as_xmm().unwrap_or(0), Rm::Mem(CHECKED))
            }
            // MOVAPS, which touches the low half only.
            _ => (0x28, o.dst.as_xmm().unwrap_or(0), Rm::Reg(o.a.as_xmm().unwrap_or(0))),
        };
        self.out.hot.map1(Ty::I32, op, r, rm);
    }
}
