//! Guest bytes to IR.
//!
//! [`decode`] wraps the decoder, [`blocks`] cuts the byte stream into blocks, and the modules of `build` write the
//! operations of one instruction each, by opcode group, through [`Builder`].

pub mod blocks;
pub mod build;
pub mod decode;
pub mod effects;

use crate::ir::{Attr, Block, Call, Cond, Help, Op, Opaque, Opcode, Ref, Ty};
use crate::mode::key;
use effects::Features;
use iced_x86::{Instruction, OpKind, Register};

/// Writes the operations of a block, one instruction at a time.
pub struct Builder<'a> {
    /// The block so far.
    pub block: Block,
    /// What the guest's CPUID shows.
    pub features: &'a Features,
    /// The instruction being built.
    pub i: Instruction,
    /// Its bytes.
    pub bytes: [u8; 15],
    /// The block has ended with this instruction.
    pub ended: bool,
    /// The instruction before was one that ends the block once `next` is known.
    pub end_after: bool,
    insn: u8,
}

/// Number of a general register of any width; `None` for AH to BH and everything else.
fn gpr_number(r: Register) -> Option<u8> {
    if r.is_gpr() && !matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
        Some((r.full_register() as u32).wrapping_sub(Register::RAX as u32) as u8)
    } else {
        None
    }
}

/// The reference of a general register of any width.
pub fn gpr_ref(r: Register) -> Ref {
    match r {
        Register::AH => Ref::high(0),
        Register::CH => Ref::high(1),
        Register::DH => Ref::high(2),
        Register::BH => Ref::high(3),
        _ => gpr_number(r).map_or(Ref::NONE, Ref::gpr),
    }
}

/// Number of a segment register in encoding order.
pub fn seg_number(r: Register) -> u8 {
    match r {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

pub(crate) const RAX: Ref = Ref::gpr(0);
pub(crate) const RCX: Ref = Ref::gpr(1);
pub(crate) const RDX: Ref = Ref::gpr(2);
pub(crate) const RSP: Ref = Ref::gpr(4);
pub(crate) const RBP: Ref = Ref::gpr(5);

impl<'a> Builder<'a> {
    /// An empty block at a place, in the memory of another.
    pub fn new(mut block: Block, (pa, va, key): (u64, u64, u32), features: &'a Features) -> Self {
        block.clear();
        (block.pa, block.va, block.key) = (pa, va, key);
        Builder {
            block,
            features,
            i: Instruction::default(),
            bytes: [0; 15],
            ended: false,
            end_after: false,
            insn: 0,
        }
    }

    /// Starts the next instruction.
    pub fn begin(&mut self, i: Instruction, bytes: [u8; 15]) {
        self.i = i;
        self.begin_decoded(bytes);
    }

    /// Starts the next instruction, which has been decoded in place.
    pub fn begin_decoded(&mut self, bytes: [u8; 15]) {
        self.insn = self.block.insns.len() as u8;
        let off = self.block.len() as u16;
        self.block.insns.push(crate::ir::Insn { off, len: self.i.len() as u8 });
        self.bytes = bytes;
    }

    /// Starts what is no instruction, so that a fault can be raised for it. `len`: bytes that were looked at, any of
    /// which would make it another one.
    pub fn begin_invalid(&mut self, len: usize) {
        self.begin(Instruction::default(), [0; 15]);
        if let Some(i) = self.block.insns.last_mut() {
            i.len = len.clamp(1, 15) as u8;
        }
    }

    /// Tests a bit of the mode key.
    pub fn has(&self, bit: u32) -> bool {
        self.block.key & bit != 0
    }

    /// 64-bit code.
    pub fn is64(&self) -> bool {
        self.has(key::L64)
    }

    /// RIP of the instruction.
    pub fn rip(&self) -> u64 {
        self.block.va.wrapping_add(self.block.insns.last().map_or(0, |x| x.off.into()))
    }

    /// RIP of the next instruction, wrapped to the mode's width.
    pub fn next_rip(&self) -> u64 {
        let n = self.rip().wrapping_add(self.i.len() as u64);
        if self.is64() { n } else { n & 0xffff_ffff }
    }

    /// Appends an operation.
    pub fn push(&mut self, mut o: Op) {
        o.insn = self.insn;
        self.block.ops.push(o);
    }

    /// A constant, cut to the type.
    pub fn k(&mut self, ty: Ty, v: u64) -> Ref {
        self.block.constant(v & ty.mask())
    }

    /// Appends `dst = op a, b, c`, with the flags twin if `f`.
    pub fn op(&mut self, op: Opcode, ty: Ty, dst: Ref, a: Ref, b: Ref, f: bool) {
        let attr = Attr(if f { Attr::FLAGS } else { 0 });
        self.push(Op { dst, a, b, attr, ..Op::new(op, ty) });
    }

    /// Like [`Builder::op`] into a fresh temporary.
    pub fn op_t(&mut self, op: Opcode, ty: Ty, a: Ref, b: Ref, f: bool) -> Ref {
        let dst = self.block.temp();
        self.op(op, ty, dst, a, b, f);
        dst
    }

    /// dst = a.
    pub fn mov(&mut self, ty: Ty, dst: Ref, a: Ref) {
        self.op(Opcode::Mov, ty, dst, a, Ref::NONE, false);
    }

    /// Appends an operation that has a type in its immediate.
    pub fn convert(&mut self, op: Opcode, ty: Ty, from: Ty, dst: Ref, a: Ref) {
        self.push(Op { dst, a, imm: from as u32, ..Op::new(op, ty) });
    }

    /// dst = cond ? a : b
    pub fn select(&mut self, ty: Ty, cond: Cond, dst: Ref, a: Ref, b: Ref) {
        self.push(Op { dst, a, b, imm: cond as u32, ..Op::new(Opcode::Select, ty) });
    }

    /// Type of operand `n`.
    pub fn ty(&self, n: u32) -> Ty {
        let bytes = match self.i.op_kind(n) {
            OpKind::Register => self.i.op_register(n).size(),
            OpKind::Memory => self.i.memory_size().size(),
            _ => return self.ty(0),
        };
        Ty::from_bytes(bytes).unwrap_or(Ty::I64)
    }

    /// Whether operand `n` is memory.
    pub fn is_mem(&self, n: u32) -> bool {
        self.i.op_kind(n) == OpKind::Memory
    }

    /// Whether any operand is explicit memory.
    pub fn has_mem(&self) -> bool {
        (0..self.i.op_count()).any(|n| self.is_mem(n))
    }

    /// Address size of the memory operand.
    pub fn address_ty(&self) -> Ty {
        let of = |r: Register| match r.size() {
            2 => Some(Ty::I16),
            4 => Some(Ty::I32),
            8 => Some(Ty::I64),
            _ => None,
        };
        let (base, index) = (self.i.memory_base(), self.i.memory_index());
        of(base).or_else(|| if index.is_gpr() { of(index) } else { None }).unwrap_or({
            match self.i.memory_displ_size() {
                8 => Ty::I64,
                4 => Ty::I32,
                2 => Ty::I16,
                _ if self.is64() => Ty::I64,
                _ => Ty::I32,
            }
        })
    }

    /// The base of segment `seg` as an operand, or nothing where it is known to be zero.
    pub fn seg_base(&self, seg: u8) -> Ref {
        let zero = match seg {
            4 | 5 => false,
            _ if self.is64() => true,
            1 => self.has(key::CS_BASE0),
            _ => self.has(key::FLAT),
        };
        if zero { Ref::NONE } else { Ref::seg_base(seg) }
    }

    /// Whether accesses through `seg` need a limit and rights check.
    fn seg_checked(&self, seg: u8, write: bool) -> bool {
        match seg {
            _ if self.is64() => false,
            4 | 5 => true,
            1 => write || !self.has(key::CS_FLAT),
            _ => !self.has(key::FLAT),
        }
    }

    /// The offset part of an address.
    fn offset_op(&mut self, seg_base: Ref) -> Op {
        let i = self.i;
        let ty = self.address_ty();
        let displ = i.memory_displacement64();
        let base = i.memory_base();
        let index = gpr_number(i.memory_index()).map_or(Ref::NONE, Ref::gpr);
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let fits = displ as i64 == i64::from(displ as i32);
        let (a, imm) = match gpr_number(base) {
            Some(n) => (Ref::gpr(n), displ as u32),
            // Absolute, or relative to RIP with the sum in the displacement.
            None if ty == Ty::I64 && !fits => (self.block.constant(displ), 0),
            None => (Ref::NONE, displ as u32),
        };
        let attr = Attr(scale << Attr::SCALE_SHIFT);
        Op { a, b: index, c: seg_base, imm, attr, ..Op::new(Opcode::Ea, ty) }
    }

    /// The offset of the memory operand, without its segment (LEA).
    pub fn offset(&mut self, dst: Ref) {
        let o = self.offset_op(Ref::NONE);
        self.push(Op { dst, ..o });
    }

    /// The linear address of the memory operand, checked against its segment for `bytes` bytes.
    pub fn address(&mut self, bytes: u32, write: bool) -> Ref {
        let seg = self.segment();
        if self.seg_checked(seg, write) {
            let off = self.block.temp();
            self.offset(off);
            return self.linear(seg, off, bytes, write);
        }
        let o = self.offset_op(self.seg_base(seg));
        let dst = self.block.temp();
        self.push(Op { dst, ..o });
        dst
    }

    /// Like [`Builder::address`] with an offset added to the effective offset before wrapping.
    pub fn address_plus(&mut self, plus: Ref, bytes: u32, write: bool) -> Ref {
        let seg = self.segment();
        let ty = self.address_ty();
        let off = self.block.temp();
        self.offset(off);
        let mut sum = self.op_t(Opcode::Add, ty, off, plus, false);
        if ty == Ty::I16 {
            let wide = self.block.temp();
            self.convert(Opcode::Zext, Ty::I64, Ty::I16, wide, sum);
            sum = wide;
        }
        self.linear(seg, sum, bytes, write)
    }

    /// The linear address of an offset in a segment, checked.
    pub fn linear(&mut self, seg: u8, off: Ref, bytes: u32, write: bool) -> Ref {
        if self.seg_checked(seg, write) {
            let imm = bytes.min(0xff) | u32::from(seg) << 8 | if write { 1 << 15 } else { 0 };
            self.push(Op { a: off, imm, ..Op::new(Opcode::ChkSeg, Ty::I32) });
        }
        let c = self.seg_base(seg);
        if c == Ref::NONE {
            return off;
        }
        let ty = if self.is64() { Ty::I64 } else { Ty::I32 };
        let dst = self.block.temp();
        self.push(Op { dst, a: off, c, ..Op::new(Opcode::Ea, ty) });
        dst
    }

    /// The segment of the memory operand. In 64-bit code only FS and GS can be chosen by prefix; for the others it is
    /// the base register that says whether a bad address is #SS.
    pub fn segment(&self) -> u8 {
        if !self.is64() {
            return seg_number(self.i.memory_segment());
        }
        match self.i.segment_prefix() {
            Register::FS => 4,
            Register::GS => 5,
            _ if matches!(
                self.i.memory_base(),
                Register::RSP | Register::RBP | Register::ESP | Register::EBP
            ) =>
            {
                2
            }
            _ => 3,
        }
    }

    /// Attributes for accesses made by the memory operand.
    pub fn mem_attr(&self) -> u8 {
        let stack = self.segment() == 2;
        let lock = self.i.has_lock_prefix();
        (if stack { Attr::STACK } else { 0 }) | (if lock { Attr::LOCK } else { 0 })
    }

    /// dst = memory at `a`.
    pub fn load(&mut self, ty: Ty, a: Ref, attr: u8) -> Ref {
        let dst = self.block.temp();
        self.push(Op { dst, a, attr: Attr(attr), ..Op::new(Opcode::Ld, ty) });
        dst
    }

    /// Memory at `a` = `b`.
    pub fn store(&mut self, ty: Ty, a: Ref, b: Ref, attr: u8) {
        self.push(Op { a, b, attr: Attr(attr), ..Op::new(Opcode::St, ty) });
    }

    /// The value of operand `n`: a register, a constant or a fresh load.
    pub fn read(&mut self, n: u32) -> Ref {
        let ty = self.ty(n);
        self.read_as(n, ty)
    }

    /// The value of operand `n` in a given type (for constants and memory).
    pub fn read_as(&mut self, n: u32, ty: Ty) -> Ref {
        match self.i.op_kind(n) {
            OpKind::Register => gpr_ref(self.i.op_register(n)),
            OpKind::Memory => {
                let a = self.address(ty.bytes(), false);
                let attr = self.mem_attr() & !Attr::LOCK;
                self.load(ty, a, attr)
            }
            _ => {
                let v = self.i.immediate(n);
                self.k(ty, v)
            }
        }
    }

    /// Stores `v` in operand `n`, register or memory. For memory this must be the only commit or come first.
    pub fn write(&mut self, n: u32, v: Ref) {
        let ty = self.ty(n);
        if self.is_mem(n) {
            let a = self.address(ty.bytes(), true);
            let attr = self.mem_attr() & !Attr::LOCK;
            self.store(ty, a, v, attr);
        } else {
            let dst = gpr_ref(self.i.op_register(n));
            self.mov(ty, dst, v);
        }
    }

    /// Ends the block by raising a fault.
    pub fn raise(&mut self, vector: u8, with_error: bool) {
        let imm = u32::from(vector) | if with_error { 0x100 } else { 0 };
        self.push(Op { imm, ..Op::new(Opcode::Raise, Ty::I64) });
        self.ended = true;
    }

    /// #UD.
    pub fn ud(&mut self) {
        self.raise(6, false);
    }

    /// Ends the block with a jump to a constant.
    pub fn jump(&mut self, target: u64) {
        let a = self.block.constant(target);
        self.push(Op { a, ..Op::new(Opcode::Jmp, Ty::I64) });
        self.ended = true;
    }

    /// Ends the block by leaving to the run loop with RIP at the next instruction.
    pub fn exit(&mut self) {
        let a = self.next_rip();
        let a = self.block.constant(a);
        self.push(Op { a, ..Op::new(Opcode::Exit, Ty::I64) });
        self.ended = true;
    }

    /// A helper call with the defaults of this instruction.
    pub fn call(&self, id: Help) -> Call {
        Call {
            id: id as u16,
            reg: 0,
            reg2: 0,
            size: self.operand_size(),
            asize: 0,
            mem: false,
            rep: 0,
            imm: 0,
        }
    }

    /// Appends a helper call.
    pub fn helper(&mut self, call: Call, a: Ref, b: Ref, c: Ref) {
        self.block.calls.push(call);
        let imm = self.block.calls.len() as u32 - 1;
        let attr = Attr(if self.has_mem() && self.segment() == 2 { Attr::STACK } else { 0 });
        self.push(Op { a, b, c, imm, attr, ..Op::new(Opcode::Helper, Ty::I64) });
    }

    /// Keeps the instruction as bytes; `a` is the address of its memory operand.
    pub fn opaque(&mut self, a: Ref, attr: u8) {
        let bytes = self.bytes[..self.i.len()].to_vec();
        self.block.opaques.push(Opaque { bytes });
        let imm = self.block.opaques.len() as u32 - 1;
        self.push(Op { a, imm, attr: Attr(attr), ..Op::new(Opcode::X86, Ty::I64) });
    }

    /// Operand size in bytes by mode and prefixes.
    pub fn operand_size(&self) -> u8 {
        let bytes = &self.bytes[..self.i.len().min(15)];
        let mut p66 = false;
        let mut w = false;
        for &b in bytes {
            match b {
                0x66 => p66 = true,
                0x40..=0x4f if self.is64() => {
                    w = b & 8 != 0;
                    break;
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf0 | 0xf2 | 0xf3 => {}
                _ => break,
            }
        }
        match (w, self.is64() || self.has(key::CODE32), p66) {
            (true, _, _) => 8,
            (_, true, false) | (_, false, true) => 4,
            _ => 2,
        }
    }

    /// Type of stack pointers.
    pub fn stack_ty(&self) -> Ty {
        if self.is64() {
            Ty::I64
        } else if self.has(key::STACK32) {
            Ty::I32
        } else {
            Ty::I16
        }
    }
}
