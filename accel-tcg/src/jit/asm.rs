//! Writes host instructions into a buffer.
//!
//! [`Buf`] is a byte buffer that dynasm's macros can write to; on top of it stand the few instruction forms that the
//! emitter chooses operands for at run time. Encodings: Intel SDM vol. 2, chapter 2 and appendix B.

mod slip;

use crate::ir::{Cond, Ty};
use crate::mutants::emitted::{Slip, slips};
use dynasmrt::AssemblyOffset;
use dynasmrt::DynasmApi;

/// A host register by number.
pub(super) type Reg = u8;

/// Host registers by name.
#[allow(dead_code)]
pub(super) mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const R8: u8 = 8;
    pub const R9: u8 = 9;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R15: u8 = 15;
}

/// A memory operand of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mem {
    pub base: Reg,
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
}

impl Mem {
    /// In place of a base: there is none.
    pub const NO_BASE: Reg = 5 | 0x80;

    pub const fn base(base: Reg, disp: i32) -> Mem {
        Mem { base, index: None, disp }
    }
    /// A field of the environment.
    pub const fn env(disp: i32) -> Mem {
        Mem::base(reg::RSP, disp)
    }
}

/// A register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rm {
    Reg(Reg),
    Mem(Mem),
}

/// The eight operations of the first opcode rows, by their number there.
#[allow(dead_code)]
pub(super) mod alu {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const ADC: u8 = 2;
    pub const SBB: u8 = 3;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
}

/// Shifts by their number in group 2.
#[allow(dead_code)]
pub(super) mod sh {
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const RCL: u8 = 2;
    pub const RCR: u8 = 3;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// Code under construction.
#[derive(Default)]
pub(super) struct Buf {
    pub bytes: Vec<u8>,
    /// What instructions have named since somebody cleared this: a bit for each register that may have been written, and
    /// from bit 16 on one for each guest register in the environment that was an operand. Whoever pushes bytes by hand
    /// sees to it himself.
    pub touched: u32,
}

impl Extend<u8> for Buf {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, iter: T) {
        self.bytes.extend(iter);
    }
}

impl<'a> Extend<&'a u8> for Buf {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, iter: T) {
        self.bytes.extend(iter);
    }
}

impl DynasmApi for Buf {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset(self.bytes.len())
    }
    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }
    fn align(&mut self, alignment: usize, with: u8) {
        while !self.bytes.len().is_multiple_of(alignment) {
            self.bytes.push(with);
        }
    }
}

/// Where the bytes of an instruction are written.
struct Cursor {
    at: *mut u8,
    written: usize,
}

impl Cursor {
    /// Bytes that there is room for: an instruction's, and a doubleword of which not all may count.
    const ROOM: usize = 32;

    #[inline(always)]
    fn byte(&mut self, v: u8) {
        // SAFETY: `Buf::write` has made room, and its callers write less than that.
        unsafe { self.at.add(self.written).write(v) };
        self.written += 1;
    }

    #[inline(always)]
    fn dword(&mut self, v: u32) {
        // SAFETY: as above; bytes in a vector need no alignment.
        unsafe { self.at.add(self.written).cast::<u32>().write_unaligned(v.to_le()) };
        self.written += 4;
    }

    #[inline(always)]
    fn qword(&mut self, v: u64) {
        // SAFETY: as above.
        unsafe { self.at.add(self.written).cast::<u64>().write_unaligned(v.to_le()) };
        self.written += 8;
    }

    /// ModRM, SIB and displacement.
    #[inline(always)]
    fn operand(&mut self, r: Reg, rm: Rm) {
        let r = (r & 7) << 3;
        let m = match rm {
            Rm::Reg(n) => return self.byte(0xc0 | r | n & 7),
            Rm::Mem(m) => m,
        };
        let base = m.base & 7;
        let bare = m.disp == 0 && base != 5 || m.base == Mem::NO_BASE;
        let short = i32::from(m.disp as i8) == m.disp;
        let mode = if bare {
            0
        } else if short {
            0x40
        } else {
            0x80
        };
        match m.index {
            None if base != 4 => self.byte(mode | r | base),
            None => {
                self.byte(mode | r | 4);
                self.byte(0x24);
            }
            Some((i, scale)) => {
                debug_assert_ne!(i, reg::RSP);
                self.byte(mode | r | 4);
                self.byte(scale << 6 | (i & 7) << 3 | base);
            }
        }
        match mode {
            0x40 => self.byte(m.disp as u8),
            0x80 => self.dword(m.disp as u32),
            _ if m.base == Mem::NO_BASE => self.dword(m.disp as u32),
            _ => {}
        }
    }
}

/// Bytes of an immediate of a type that is not a byte.
fn wide(ty: Ty) -> usize {
    if ty == Ty::I16 { 2 } else { 4 }
}

/// Opcode map prefixes.
const MAP1: u16 = 0x0f00;

impl Buf {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes at most [`Cursor::ROOM`] bytes: room is made once for all of them.
    #[inline(always)]
    fn write(&mut self, f: impl FnOnce(&mut Cursor)) {
        let len = self.bytes.len();
        if self.bytes.capacity() - len < Cursor::ROOM {
            self.grow();
        }
        // SAFETY: `len` bytes of the vector's memory are in use.
        let start = unsafe { self.bytes.as_mut_ptr().add(len) };
        let mut c = Cursor { at: start, written: 0 };
        f(&mut c);
        debug_assert!(c.written <= Cursor::ROOM);
        // SAFETY: the cursor wrote all of these, inside of the room that was made.
        unsafe { self.bytes.set_len(len + c.written) };
    }

    #[cold]
    fn grow(&mut self) {
        self.bytes.reserve(1024);
    }

    /// An instruction with a register and an operand; see [`Buf::encode`].
    fn modrm(&mut self, ty: Ty, op: u16, r: Reg, rm: Rm, byte_reg: bool, byte_rm: bool) {
        self.touched |= 1 << r;
        self.encode(ty, op, r, rm, byte_reg, byte_rm);
    }

    /// Prefixes, opcode (bits 15:8 hold 0F for the second map), ModRM. `byte`: 8-bit registers are named. `r` may also be
    /// the instruction's number in its group.
    fn encode(&mut self, ty: Ty, op: u16, r: Reg, rm: Rm, byte_reg: bool, byte_rm: bool) {
        self.encode_i(ty, op, r, rm, [byte_reg, byte_rm], (0, 0));
    }

    /// The same with the low `imm.1` bytes of `imm.0` behind it.
    // One copy for all: translations are far apart, so the emitter is rarely in the host's caches.
    #[inline(never)]
    fn encode_i(
        &mut self,
        ty: Ty,
        op: u16,
        r: Reg,
        rm: Rm,
        [byte_reg, byte_rm]: [bool; 2],
        imm: (i32, usize),
    ) {
        let ty = match ty {
            Ty::I32 if slips(Slip::Width) => Ty::I64,
            Ty::I64 if slips(Slip::Width) => Ty::I32,
            ty => ty,
        };
        let rm = slip::field(rm);
        self.touch(rm);
        self.write(|c| {
            if ty == Ty::I16 {
                c.byte(0x66);
            }
            let w = u8::from(ty == Ty::I64) << 3;
            let (x, b) = match rm {
                Rm::Reg(n) => (0, n >> 3),
                Rm::Mem(m) => (m.index.map_or(0, |(i, _)| i >> 3), m.base >> 3 & 1),
            };
            let rex = w | (r >> 3) << 2 | x << 1 | b;
            // SPL, BPL, SIL, DIL need the prefix.
            let low = |n: Reg| (4..8).contains(&n);
            if rex != 0 || (byte_reg && low(r)) || (byte_rm && matches!(rm, Rm::Reg(n) if low(n))) {
                c.byte(rex | 0x40);
            }
            if op & 0xff00 != 0 {
                c.byte(0x0f);
            }
            c.byte(op as u8);
            c.operand(r, rm);
            c.dword(imm.0 as u32);
            c.written -= 4 - imm.1;
        });
    }

    /// Notes what an operand names.
    #[inline]
    fn touch(&mut self, rm: Rm) {
        match rm {
            Rm::Reg(n) => self.touched |= 1 << n,
            Rm::Mem(Mem { base: reg::RSP, index: None, disp: d @ 0..128 }) => {
                self.touched |= 1 << (16 + d / 8)
            }
            Rm::Mem(_) => {}
        }
    }

    /// ModRM, SIB and displacement.
    pub fn operand(&mut self, r: Reg, rm: Rm) {
        let rm = slip::field(rm);
        self.touch(rm);
        self.write(|c| c.operand(r, rm));
    }

    fn sized(&mut self, ty: Ty, op: u16, r: Reg, rm: Rm) {
        let byte = ty == Ty::I8;
        let op = if byte { op & !1 } else { op | 1 };
        self.modrm(ty, op, r, rm, byte, byte);
    }

    /// The same for an instruction that only reads the register.
    fn sized_from(&mut self, ty: Ty, op: u16, r: Reg, rm: Rm) {
        let byte = ty == Ty::I8;
        let op = if byte { op & !1 } else { op | 1 };
        self.encode(ty, op, r, rm, byte, byte);
    }

    /// `op rm, r`
    pub fn alu_rm_r(&mut self, op: u8, ty: Ty, rm: Rm, r: Reg) {
        let op = slip::operation(op, slip::ALU);
        self.sized_from(ty, u16::from(op) << 3, r, rm);
    }
    /// `op r, rm`
    pub fn alu_r_rm(&mut self, op: u8, ty: Ty, r: Reg, rm: Rm) {
        let op = slip::operation(op, slip::ALU);
        self.sized(ty, u16::from(op) << 3 | 2, r, rm);
    }
    /// `op rm, imm`; `imm` must be a sign-extended 32-bit number.
    pub fn alu_rm_i(&mut self, op: u8, ty: Ty, rm: Rm, imm: i32) {
        let op = slip::operation(op, slip::ALU);
        let imm = slip::constant(imm, Slip::Immediate);
        let short = i32::from(imm as i8) == imm || (ty == Ty::I16 && i16::from(imm as i8) == imm as i16);
        match ty {
            Ty::I8 => self.encode_i(ty, 0x80, op, rm, [false, true], (imm, 1)),
            _ if short => self.encode_i(ty, 0x83, op, rm, [false; 2], (imm, 1)),
            _ => self.encode_i(ty, 0x81, op, rm, [false; 2], (imm, wide(ty))),
        }
    }
    pub fn test_rm_r(&mut self, ty: Ty, rm: Rm, r: Reg) {
        self.sized(ty, 0x84, r, rm);
    }
    pub fn test_rm_i(&mut self, ty: Ty, rm: Rm, imm: i32) {
        let imm = slip::constant(imm, Slip::Immediate);
        match ty {
            Ty::I8 => self.encode_i(ty, 0xf6, 0, rm, [false, true], (imm, 1)),
            _ => self.encode_i(ty, 0xf7, 0, rm, [false; 2], (imm, wide(ty))),
        }
    }
    /// `mov rm, r`
    pub fn mov_rm_r(&mut self, ty: Ty, rm: Rm, r: Reg) {
        if slips(Slip::NoStore) {
            return;
        }
        self.sized_from(ty, 0x88, r, rm);
    }
    /// `mov r, rm`
    pub fn mov_r_rm(&mut self, ty: Ty, r: Reg, rm: Rm) {
        if slips(Slip::NoLoad) {
            return;
        }
        self.sized(ty, 0x8a, r, rm);
    }
    /// `mov r64, r64`, nothing if they are the same.
    pub fn mov(&mut self, d: Reg, s: Reg) {
        if d != s {
            self.mov_r_rm(Ty::I64, d, Rm::Reg(s));
        }
    }
    /// Any 64-bit constant, flags untouched.
    pub fn mov_imm(&mut self, d: Reg, v: u64) {
        let v = if slips(Slip::Constant) { v ^ 1 } else { v };
        self.touched |= 1 << d;
        self.write(|c| {
            if v >> 32 == 0 {
                if d >= 8 {
                    c.byte(0x41);
                }
                c.byte(0xb8 | d & 7);
                c.dword(v as u32);
            } else if v as i64 == i64::from(v as i32) {
                c.byte(0x48 | d >> 3);
                c.byte(0xc7);
                c.byte(0xc0 | d & 7);
                c.dword(v as u32);
            } else {
                c.byte(0x48 | d >> 3);
                c.byte(0xb8 | d & 7);
                c.qword(v);
            }
        });
    }
    /// `mov mem, imm`, sign-extended from 32 bits.
    pub fn mov_m_i(&mut self, ty: Ty, m: Mem, v: i32) {
        let v = slip::constant(v, Slip::Stored);
        match ty {
            Ty::I8 => self.encode_i(ty, 0xc6, 0, Rm::Mem(m), [false; 2], (v, 1)),
            _ => self.encode_i(ty, 0xc7, 0, Rm::Mem(m), [false; 2], (v, wide(ty))),
        }
    }
    /// Zero-extends `rm` of type `from` into the whole of `d`.
    pub fn movzx(&mut self, d: Reg, from: Ty, rm: Rm) {
        match from {
            Ty::I8 if slips(Slip::Extension) => self.modrm(Ty::I32, MAP1 | 0xbe, d, rm, false, true),
            Ty::I16 if slips(Slip::Extension) => self.modrm(Ty::I32, MAP1 | 0xbf, d, rm, false, false),
            Ty::I8 => self.modrm(Ty::I32, MAP1 | 0xb6, d, rm, false, true),
            Ty::I16 => self.modrm(Ty::I32, MAP1 | 0xb7, d, rm, false, false),
            Ty::I32 => self.mov_r_rm(Ty::I32, d, rm),
            _ => self.mov_r_rm(Ty::I64, d, rm),
        }
    }
    /// Sign-extends `rm` of type `from` to `to`.
    pub fn movsx(&mut self, d: Reg, to: Ty, from: Ty, rm: Rm) {
        match from {
            Ty::I8 | Ty::I16 | Ty::I32 if from != to && slips(Slip::Extension) => self.movzx(d, from, rm),
            Ty::I8 => self.modrm(to, MAP1 | 0xbe, d, rm, false, true),
            Ty::I16 => self.modrm(to, MAP1 | 0xbf, d, rm, false, false),
            Ty::I32 if to == Ty::I64 => self.modrm(Ty::I64, 0x63, d, rm, false, false),
            _ => self.mov_r_rm(to, d, rm),
        }
    }
    /// The second opcode map, register and operand.
    pub fn map1(&mut self, ty: Ty, op: u8, r: Reg, rm: Rm) {
        self.modrm(ty, MAP1 | u16::from(op), r, rm, false, false);
    }
    /// The second opcode map with a sized opcode (XADD, CMPXCHG).
    pub fn map1_sized(&mut self, ty: Ty, op: u8, r: Reg, rm: Rm) {
        self.touched |= 1 << reg::RAX;
        self.sized(ty, MAP1 | u16::from(op), r, rm);
    }
    pub fn setcc(&mut self, c: Cond, rm: Rm) {
        if slips(Slip::NoSet) {
            return;
        }
        let c = slip::condition(c);
        self.encode(Ty::I8, MAP1 | 0x90 | c as u16, 0, rm, false, true);
    }
    pub fn cmov(&mut self, c: Cond, ty: Ty, r: Reg, rm: Rm) {
        if slips(Slip::NoMove) {
            return;
        }
        let c = slip::condition(c);
        self.modrm(ty, MAP1 | 0x40 | c as u16, r, rm, false, false);
    }
    pub fn lea(&mut self, ty: Ty, d: Reg, m: Mem) {
        self.modrm(ty, 0x8d, d, Rm::Mem(m), false, false);
    }
    /// F6/F7 group: 2 NOT, 3 NEG, 4 MUL, 5 IMUL, 6 DIV, 7 IDIV.
    pub fn group3(&mut self, n: u8, ty: Ty, rm: Rm) {
        let n = slip::operation(n, [0, 1, 3, 2, 5, 4, 7, 6]);
        let byte = ty == Ty::I8;
        if n >= 4 {
            self.touched |= 1 << reg::RAX | 1 << reg::RDX;
        }
        self.encode(ty, 0xf6 | u16::from(!byte), n, rm, false, byte);
    }
    /// INC (0) and DEC (1).
    pub fn group4(&mut self, n: u8, ty: Ty, rm: Rm) {
        let n = slip::operation(n, [1, 0, 2, 3, 4, 5, 6, 7]);
        let byte = ty == Ty::I8;
        self.encode(ty, 0xfe | u16::from(!byte), n, rm, false, byte);
    }
    pub fn shift_i(&mut self, n: u8, ty: Ty, rm: Rm, count: u8) {
        let n = slip::operation(n, slip::SHIFT);
        let count = if slips(Slip::Immediate) { count ^ 1 } else { count };
        let byte = ty == Ty::I8;
        if count == 1 {
            self.encode(ty, 0xd0 | u16::from(!byte), n, rm, false, byte);
        } else {
            self.encode_i(ty, 0xc0 | u16::from(!byte), n, rm, [false, byte], (count.into(), 1));
        }
    }
    pub fn shift_cl(&mut self, n: u8, ty: Ty, rm: Rm) {
        let n = slip::operation(n, slip::SHIFT);
        let byte = ty == Ty::I8;
        self.encode(ty, 0xd2 | u16::from(!byte), n, rm, false, byte);
    }
    pub fn imul(&mut self, ty: Ty, d: Reg, rm: Rm) {
        self.map1(ty, 0xaf, d, rm);
    }
    pub fn imul_i(&mut self, ty: Ty, d: Reg, rm: Rm, v: i32) {
        let v = slip::constant(v, Slip::Immediate);
        self.touched |= 1 << d;
        match i32::from(v as i8) == v {
            true => self.encode_i(ty, 0x6b, d, rm, [false; 2], (v, 1)),
            false => self.encode_i(ty, 0x69, d, rm, [false; 2], (v, wide(ty))),
        }
    }
    pub fn xchg(&mut self, ty: Ty, rm: Rm, r: Reg) {
        self.sized(ty, 0x86, r, rm);
    }
    pub fn bswap(&mut self, ty: Ty, r: Reg) {
        self.touched |= 1 << r;
        self.write(|c| {
            c.byte(0x40 | u8::from(ty == Ty::I64) << 3 | r >> 3);
            c.byte(0x0f);
            c.byte(0xc8 | r & 7);
        });
    }
    /// BT (4), BTS (5), BTR (6), BTC (7) with a constant.
    pub fn bt_i(&mut self, n: u8, ty: Ty, rm: Rm, bit: u8) {
        let n = slip::operation(n, slip::BIT);
        let bit = if slips(Slip::Immediate) { bit ^ 1 } else { bit };
        self.encode_i(ty, MAP1 | 0xba, n, rm, [false; 2], (bit.into(), 1));
    }
    /// BT and its kin with a register.
    pub fn bt_r(&mut self, n: u8, ty: Ty, rm: Rm, r: Reg) {
        let n = slip::operation(n, slip::BIT);
        self.modrm(ty, MAP1 | 0x83 | u16::from(n) << 3, r, rm, false, false);
    }
    /// A three-operand VEX instruction: `pp` 0 none, 1 66, 2 F3, 3 F2; `map` 2 or 3; `v` the second operand.
    #[allow(clippy::too_many_arguments)] // the fields of the prefix, in its order
    pub fn vex(&mut self, pp: u8, map: u8, op: u8, ty: Ty, r: Reg, v: Reg, rm: Rm) {
        let ty = match ty {
            Ty::I32 if slips(Slip::Width) => Ty::I64,
            Ty::I64 if slips(Slip::Width) => Ty::I32,
            ty => ty,
        };
        let (v, rm) = match rm {
            Rm::Reg(m) if v != m && slips(Slip::Exchanged) => (m, Rm::Reg(v)),
            rm => (v, rm),
        };
        let (x, b) = match rm {
            Rm::Reg(n) => (0, n >> 3),
            Rm::Mem(m) => (m.index.map_or(0, |(i, _)| i >> 3), m.base >> 3 & 1),
        };
        let rm = slip::field(rm);
        self.touched |= 1 << r | 1 << v;
        self.touch(rm);
        self.write(|c| {
            c.byte(0xc4);
            c.byte((!(r >> 3) & 1) << 7 | (!x & 1) << 6 | (!b & 1) << 5 | map);
            c.byte(u8::from(ty == Ty::I64) << 7 | (!v & 15) << 3 | pp);
            c.byte(op);
            c.operand(r, rm);
        });
    }
    /// Rotates right by a constant into another register; flags untouched (BMI2).
    pub fn rorx(&mut self, ty: Ty, d: Reg, s: Reg, n: u8) {
        let n = if slips(Slip::Immediate) { n ^ 1 } else { n };
        self.vex(3, 3, 0xf0, ty, d, 0, Rm::Reg(s));
        self.push(n);
    }
    /// `jcc rel32`; returns where the displacement stands.
    pub fn jcc(&mut self, c: Cond) -> usize {
        let c = slip::condition(c);
        self.write(|b| {
            b.byte(0x0f);
            b.byte(0x80 | c as u8);
            b.dword(0);
        });
        self.len() - 4
    }
    /// `jcc rel8` forward; returns where the displacement stands.
    pub fn jcc_short(&mut self, c: Cond) -> usize {
        let c = slip::condition(c);
        // What follows need not run.
        self.touched = u32::MAX;
        self.write(|b| {
            b.byte(0x70 | c as u8);
            b.byte(0);
        });
        self.len() - 1
    }
    /// Lets a short jump lead to here.
    pub fn land(&mut self, at: usize) {
        self.touched = u32::MAX;
        let d = self.len() - at - 1;
        debug_assert!(d < 128);
        self.bytes[at] = d as u8;
    }
    fn branch(&mut self, op: u8) {
        self.write(|c| {
            c.byte(op);
            c.dword(0);
        });
    }
    /// `jmp rel32`.
    pub fn jmp(&mut self) -> usize {
        self.branch(0xe9);
        self.len() - 4
    }
    /// `call rel32`.
    pub fn call(&mut self) -> usize {
        self.touched = u32::MAX;
        self.branch(0xe8);
        self.len() - 4
    }
    /// `jmp [rip + rel32]`.
    pub fn jmp_slot(&mut self) -> usize {
        self.write(|c| {
            c.byte(0xff);
            c.byte(0x25);
            c.dword(0);
        });
        self.len() - 4
    }
    /// `mov r64, [rip + rel32]`.
    pub fn load_slot(&mut self, d: Reg) -> usize {
        self.touched |= 1 << d;
        self.write(|c| {
            c.byte(0x48 | (d >> 3) << 2);
            c.byte(0x8b);
            c.byte(5 | (d & 7) << 3);
            c.dword(0);
        });
        self.len() - 4
    }
    pub fn jmp_rm(&mut self, rm: Rm) {
        self.encode(Ty::I32, 0xff, 4, rm, false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn text(f: impl FnOnce(&mut Buf)) -> String {
        let mut b = Buf::default();
        f(&mut b);
        let i = Decoder::with_ip(64, &b.bytes, 0, DecoderOptions::NONE).decode();
        assert_eq!(i.len(), b.len(), "{:02x?}", b.bytes);
        let mut s = format!("{:?}", i.code());
        for n in 0..i.op_count() {
            s += &match i.op_kind(n) {
                iced_x86::OpKind::Register => format!(" {:?}", i.op_register(n)),
                iced_x86::OpKind::Memory => format!(
                    " [{:?}+{:?}*{}+{:#x}]",
                    i.memory_base(),
                    i.memory_index(),
                    i.memory_index_scale(),
                    i.memory_displacement64()
                ),
                _ => format!(" {:#x}", i.immediate(n)),
            };
        }
        s
    }

    #[test]
    fn instructions_read_back_as_what_was_meant() {
        let m = |base, disp| Rm::Mem(Mem::base(base, disp));
        assert_eq!(text(|b| b.alu_rm_r(alu::ADD, Ty::I64, Rm::Reg(15), 8)), "Add_rm64_r64 R15 R8");
        assert_eq!(text(|b| b.alu_r_rm(alu::CMP, Ty::I8, 6, m(12, 0))), "Cmp_r8_rm8 SIL [R12+None*1+0x0]");
        assert_eq!(
            text(|b| b.alu_rm_i(alu::AND, Ty::I16, m(5, 0), -2)),
            "And_rm16_imm8 [RBP+None*1+0x0] 0xfffffffffffffffe"
        );
        assert_eq!(
            text(|b| b.alu_rm_i(alu::SUB, Ty::I32, m(4, 300), 1000)),
            "Sub_rm32_imm32 [RSP+None*1+0x12c] 0x3e8"
        );
        assert_eq!(text(|b| b.movzx(9, Ty::I8, Rm::Reg(7))), "Movzx_r32_rm8 R9D DIL");
        assert_eq!(text(|b| b.movsx(2, Ty::I64, Ty::I32, m(13, 8))), "Movsxd_r64_rm32 RDX [R13+None*1+0x8]");
        assert_eq!(text(|b| b.mov_imm(10, !0xff)), "Mov_rm64_imm32 R10 0xffffffffffffff00");
        assert_eq!(text(|b| b.mov_imm(3, 0x1234_5678_9abc)), "Mov_r64_imm64 RBX 0x123456789abc");
        assert_eq!(text(|b| b.rorx(Ty::I64, 10, 9, 7)), "VEX_Rorx_r64_rm64_imm8 R10 R9 0x7");
        let sib = Mem { base: 10, index: Some((9, 0)), disp: 0 };
        assert_eq!(text(|b| b.mov_rm_r(Ty::I64, Rm::Mem(sib), 12)), "Mov_rm64_r64 [R10+R9*1+0x0] R12");
        let table = Mem { base: Mem::NO_BASE, index: Some((1, 3)), disp: -4096 };
        assert_eq!(text(|b| b.lea(Ty::I64, 9, table)), "Lea_r64_m R9 [None+RCX*8+0xfffffffffffff000]");
        assert_eq!(text(|b| b.setcc(Cond::Nz, Rm::Reg(5))), "Setne_rm8 BPL");
        assert_eq!(text(|b| b.cmov(Cond::L, Ty::I32, 1, Rm::Reg(14))), "Cmovl_r32_rm32 ECX R14D");
        assert_eq!(text(|b| b.bt_i(5, Ty::I32, Rm::Reg(1), 7)), "Bts_rm32_imm8 ECX 0x7");
        assert_eq!(text(|b| b.bt_r(4, Ty::I64, Rm::Reg(1), 8)), "Bt_rm64_r64 RCX R8");
        assert_eq!(text(|b| b.group3(3, Ty::I8, Rm::Reg(4))), "Neg_rm8 SPL");
        assert_eq!(text(|b| b.vex(3, 2, 0xf5, Ty::I64, 0, 8, Rm::Reg(9))), "VEX_Pdep_r64_r64_rm64 RAX R8 R9");
        assert_eq!(text(|b| b.imul_i(Ty::I64, 0, Rm::Reg(3), 1000)), "Imul_r64_rm64_imm32 RAX RBX 0x3e8");
    }
}
