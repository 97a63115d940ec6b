//! What vector, MMX and x87 instructions do, in portable code (SDM vol. 2; AMD APM vol. 4 and 5).
//!
//! An instruction is prepared once ([`Insn::new`]): which action, which operands. Running it takes the registers as
//! [`Regs`] with the memory operand already in a buffer, and leaves the result there; the caller has checked what the
//! unit and the memory ask for, and writes the buffer back. Nothing of the host shows: NaNs, flags and rounding are
//! computed by [`crate::float`].
#![forbid(unsafe_code)]

mod crypto;
mod fp;
mod int;
mod moves;
mod shuffle;
mod strings;
mod table;
mod x87;
mod x87env;

use crate::mutants;
use anura_x86::XsaveImage;
use iced_x86::{EncodingKind, Instruction, OpKind, Register};

/// A vector register's or operand's bytes.
pub type V = [u8; 32];

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// An unmasked SIMD exception; MXCSR shows it.
    Simd,
    /// A register or mode that the instruction may not have.
    Undefined,
    /// #GP(0).
    Protection,
}

/// What an instruction may look at and change.
pub struct Regs<'a> {
    /// x87, MMX, XMM, YMM.
    pub fpu: &'a mut XsaveImage,
    /// General registers.
    pub gpr: &'a mut [u64; 16],
    /// The six status flags.
    pub flags: u64,
    /// The memory operand.
    pub mem: &'a mut [u8; 128],
    /// The store must not happen (an x87 exception came first).
    pub no_store: bool,
    /// 64-bit code.
    pub is64: bool,
    /// CR0.PE is clear or virtual-8086 mode is on: x87 environments have the real-mode form.
    pub real: bool,
}

/// An operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opnd {
    /// There is none.
    None,
    /// XMM or YMM.
    Vec(u8),
    /// MMX.
    Mm(u8),
    /// General register and its size in bytes.
    Gpr(u8, u8),
    /// x87 register.
    St(u8),
    /// The memory operand.
    Mem,
}

type Exec = fn(&Insn, &mut Regs<'_>) -> Result<(), Stop>;

/// What is done with the operands.
#[derive(Clone, Copy)]
pub enum Action {
    /// dst = f(src1, src2)
    Bin(fn(&V, &V) -> V),
    /// dst = f(src1, src2, imm)
    BinImm(fn(&V, &V, u8) -> V),
    /// dst = f(src)
    Un(fn(&V) -> V),
    /// dst = f(src, imm)
    UnImm(fn(&V, u8) -> V),
    /// Anything else.
    Special(Exec),
}

/// A prepared instruction.
pub struct Insn {
    /// What it does.
    pub action: Action,
    /// VEX-encoded: the rest of the destination becomes zero.
    pub vex: bool,
    /// Bytes that vectors of this instruction have: 8 (MMX), 16 or 32.
    pub len: u8,
    /// Operands without immediates; the destination first.
    pub op: [Opnd; 4],
    /// Number of operands.
    pub ops: u8,
    /// First immediate.
    pub imm: u8,
    /// Second immediate.
    pub imm2: u8,
    /// Bytes of the memory operand.
    pub mem: u8,
    /// The decoder's idea of it.
    pub code: iced_x86::Code,
    /// Its mnemonic.
    pub mnemonic: iced_x86::Mnemonic,
}

impl Insn {
    /// Prepares an instruction; `None` if it is not one of ours.
    pub fn new(i: &Instruction) -> Option<Insn> {
        let mut op = [Opnd::None; 4];
        let mut ops = 0;
        let (mut imm, mut imm2) = (0, 0);
        let mut len = 16;
        let mut mmx = false;
        let mut xmm = false;
        for n in 0..i.op_count() {
            let o = match i.op_kind(n) {
                OpKind::Register => {
                    let r = i.op_register(n);
                    if r.is_ymm() {
                        len = 32;
                    }
                    xmm |= r.is_vector_register();
                    mmx |= r.is_mm();
                    operand(r)?
                }
                OpKind::Memory => Opnd::Mem,
                OpKind::Immediate8 => {
                    imm = i.immediate8();
                    continue;
                }
                OpKind::Immediate8_2nd => {
                    imm2 = i.immediate8_2nd();
                    continue;
                }
                // Implicit rDI of the masked moves and the like: not ours.
                _ => return None,
            };
            *op.get_mut(ops)? = o;
            ops += 1;
        }
        let vex = i.encoding() == EncodingKind::VEX;
        if mmx && !xmm {
            len = 8;
        } else if vex && i.memory_size().size() == 32 {
            len = 32;
        }
        Some(Insn {
            action: table::action(i)?,
            vex,
            len,
            op,
            ops: ops as u8,
            imm,
            imm2,
            mem: i.memory_size().size().min(128) as u8,
            code: i.code(),
            mnemonic: i.mnemonic(),
        })
    }

    /// Runs it.
    #[inline]
    pub fn run(&self, r: &mut Regs<'_>) -> Result<(), Stop> {
        match self.action {
            Action::Special(f) => return f(self, r),
            _ if self.uses_mmx() => r.enter_mmx(),
            _ => {}
        }
        let v = match self.action {
            Action::Bin(f) => {
                let (a, b) = self.sources(r);
                f(&a, &b)
            }
            Action::BinImm(f) => {
                let (a, b) = self.sources(r);
                f(&a, &b, self.imm)
            }
            Action::Un(f) => f(&r.vector(self.op[1])),
            Action::UnImm(f) => f(&r.vector(self.last()), self.imm),
            Action::Special(_) => return Ok(()),
        };
        self.put(r, &v);
        Ok(())
    }

    /// Has an MMX operand.
    pub fn uses_mmx(&self) -> bool {
        self.op.iter().any(|o| matches!(o, Opnd::Mm(_)))
    }

    /// The last operand that is no immediate.
    pub fn last(&self) -> Opnd {
        self.op[usize::from(self.ops).saturating_sub(1) & 3]
    }

    /// The two sources: the destination and the second operand, or with three operands the second and third.
    pub fn sources(&self, r: &Regs<'_>) -> (V, V) {
        if self.ops >= 3 {
            (r.vector(self.op[1]), r.vector(self.op[2]))
        } else {
            (r.vector(self.op[0]), r.vector(self.op[1]))
        }
    }

    /// Writes the destination: what lies behind the vector becomes zero for VEX encodings, and stays for others.
    pub fn put(&self, r: &mut Regs<'_>, v: &V) {
        match self.op[0] {
            Opnd::Vec(n) => r.set_vector(n, v, self.len, self.vex),
            Opnd::Mm(n) => r.set_mm(n, v),
            Opnd::Mem => r.mem[..32].copy_from_slice(v),
            Opnd::Gpr(n, size) => r.set_gpr(n, size, low64(v)),
            Opnd::St(_) | Opnd::None => {}
        }
    }
}

fn operand(r: Register) -> Option<Opnd> {
    Some(if r.is_vector_register() {
        Opnd::Vec(r.number() as u8 & 15)
    } else if r.is_mm() {
        Opnd::Mm(r.number() as u8 & 7)
    } else if r.is_gpr() {
        Opnd::Gpr(r.full_register().number() as u8 & 15, r.size() as u8)
    } else if r.is_st() {
        Opnd::St(r.number() as u8 & 7)
    } else {
        return None;
    })
}

/// The lowest 64 bits.
pub fn low64(v: &V) -> u64 {
    lane(v, 8, 0)
}

/// Lane `n` of `size` bytes, zero-extended.
#[inline(always)]
pub fn lane(v: &V, size: usize, n: usize) -> u64 {
    let mut b = [0; 8];
    b[..size].copy_from_slice(&v[n * size..(n + 1) * size]);
    u64::from_le_bytes(b)
}

/// Sets lane `n` of `size` bytes.
#[inline(always)]
pub fn set_lane(v: &mut V, size: usize, n: usize, x: u64) {
    v[n * size..(n + 1) * size].copy_from_slice(&x.to_le_bytes()[..size]);
}

impl Regs<'_> {
    /// An operand as a vector; what it does not have is zero.
    pub fn vector(&self, o: Opnd) -> V {
        let mut v = [0; 32];
        match o {
            Opnd::Vec(n) => {
                let n = usize::from(n);
                v[..16].copy_from_slice(&self.fpu.bytes[160 + n * 16..176 + n * 16]);
                v[16..].copy_from_slice(&self.fpu.bytes[576 + n * 16..592 + n * 16]);
            }
            Opnd::Mm(n) => {
                let n = usize::from(n);
                v[..8].copy_from_slice(&self.fpu.bytes[32 + n * 16..40 + n * 16]);
            }
            Opnd::Gpr(n, _) => v[..8].copy_from_slice(&self.gpr[usize::from(n)].to_le_bytes()),
            Opnd::Mem => v.copy_from_slice(&self.mem[..32]),
            Opnd::St(_) | Opnd::None => {}
        }
        v
    }

    fn set_vector(&mut self, n: u8, v: &V, len: u8, vex: bool) {
        let n = usize::from(n);
        self.fpu.bytes[160 + n * 16..176 + n * 16].copy_from_slice(&v[..16]);
        let high = &mut self.fpu.bytes[576 + n * 16..592 + n * 16];
        if len == 32 {
            high.copy_from_slice(&v[16..]);
        } else if vex && !mutants::on(mutants::V_VEX_UPPER) || mutants::on(mutants::V_LEGACY_UPPER) {
            high.fill(0);
        }
    }

    fn set_mm(&mut self, n: u8, v: &V) {
        let at = 32 + usize::from(n) * 16;
        self.fpu.bytes[at..at + 8].copy_from_slice(&v[..8]);
        if !mutants::on(mutants::V_MMX_EXPONENT) {
            self.fpu.bytes[at + 8..at + 10].fill(0xff);
        }
    }

    /// Writes a general register; 32-bit writes clear the upper half.
    pub fn set_gpr(&mut self, n: u8, size: u8, v: u64) {
        let g = &mut self.gpr[usize::from(n)];
        *g = match size {
            1 => *g & !0xff | v & 0xff,
            2 => *g & !0xffff | v & 0xffff,
            4 => v & 0xffff_ffff,
            _ => v,
        };
    }

    /// What any MMX instruction does to the x87: the top of the stack is register 0, and all are in use.
    pub fn enter_mmx(&mut self) {
        let top = usize::from(self.fpu.fsw() >> 11 & 7);
        if top != 0 && !mutants::on(mutants::V_MMX_TOP) {
            self.fpu.bytes[32..160].rotate_right(top * 16);
            let fsw = self.fpu.fsw() & !0x3800;
            self.fpu.set_fsw(fsw);
        }
        self.fpu.bytes[4] = 0xff;
    }
}
