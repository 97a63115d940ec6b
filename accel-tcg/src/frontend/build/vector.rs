//! Instructions that the host runs for us, and the few vector moves that need no host.

use crate::frontend::Builder;
use crate::frontend::effects::{Unit, unit};
use crate::helpers::vecmem::{self, Shape};
use crate::ir::{Attr, Help, Op, Opcode, Ref, Ty};
use crate::mode::key;
use anura_x86::regs::vector::NM;
use iced_x86::{EncodingKind, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};

/// Raises what the unit's control bits ask for; false if the instruction may not run.
pub(super) fn gate(b: &mut Builder<'_>) -> bool {
    let unit = match unit(&b.i) {
        Unit::None if matches!(b.i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr) => Unit::Sse,
        u => u,
    };
    let (undefined, absent) = match unit {
        Unit::None => (true, false),
        Unit::X87 if b.i.mnemonic() == Mnemonic::Wait => (false, b.has(key::MP) && b.has(key::TS)),
        Unit::X87 => (false, b.has(key::EM) || b.has(key::TS)),
        Unit::Mmx => (b.has(key::EM), b.has(key::TS)),
        Unit::Sse => (!b.has(key::SSE), b.has(key::TS)),
        Unit::Avx => (!b.has(key::AVX), b.has(key::TS)),
    };
    if undefined {
        b.ud();
    } else if absent {
        b.raise(NM, false);
    }
    !(undefined || absent)
}

/// Whether a 16- or 32-byte memory operand must be aligned.
fn aligned(b: &Builder<'_>) -> bool {
    use Mnemonic::*;
    let size = b.i.memory_size().size();
    if size < 16 {
        return false;
    }
    match b.i.encoding() {
        EncodingKind::Legacy => {
            size == 16
                && matches!(unit(&b.i), Unit::Sse | Unit::Mmx)
                && !matches!(
                    b.i.mnemonic(),
                    Movups
                        | Movupd
                        | Movdqu
                        | Lddqu
                        | Pcmpestri
                        | Pcmpestrm
                        | Pcmpestri64
                        | Pcmpestrm64
                        | Pcmpistri
                        | Pcmpistrm
                )
                && !(b.features.amd && sha(b.i.mnemonic()))
        }
        _ => {
            matches!(b.i.mnemonic(), Vmovaps | Vmovapd | Vmovdqa | Vmovntdq | Vmovntdqa | Vmovntpd | Vmovntps)
        }
    }
}

/// AMD's processors do not ask for alignment here.
fn sha(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2)
}

/// An instruction kept as bytes, if it is one that the host may run.
pub(super) fn any(b: &mut Builder<'_>) {
    if !gate(b) {
        return;
    }
    use Mnemonic::*;
    let m = b.i.mnemonic();
    if matches!(m, Vpextrd | Vpinsrd) && !b.is64() && b.features.amd {
        // AMD refuses W=1 here, Intel ignores it.
        let vex = b.bytes.iter().position(|x| *x == 0xc4).unwrap_or(0);
        if b.bytes.get(vex + 2).is_some_and(|p2| p2 & 0x80 != 0) {
            return b.ud();
        }
    }
    let mut a = Ref::NONE;
    let mut attr = b.mem_attr();
    if b.has_mem() {
        // #MF of before comes ahead of what the operand's segment says (vol. 1, 8.6).
        let waits =
            matches!(unit(&b.i), Unit::X87 | Unit::Mmx) && !matches!(m, Fnstcw | Fnstsw | Fnstenv | Fnsave);
        if waits && !b.is64() && b.has(key::FPX) {
            let call = b.call(Help::X87Wait);
            b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&b.i);
        let write = info
            .used_memory()
            .iter()
            .any(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None));
        let bytes = b.i.memory_size().size() as u32;
        a = b.address(bytes, write);
        if aligned(b) {
            attr |= Attr::ALIGNED;
        }
    }
    b.opaque(a, attr);
    // These may change what the mode key says about unmasked exceptions. (So may FLDCW, but it hardly ever does.)
    if matches!(m, Fldenv | Fninit | Frstor | Fnsave | Fnstenv | Finit | Fsave) {
        b.end_after = true;
    }
}

fn element_wise(b: &mut Builder<'_>, shape: Shape, reg: u8, a: Ref) {
    let mut call = b.call(Help::VecMem);
    call.reg = reg;
    call.asize = b.address_ty().bytes() as u8;
    call.imm = shape.pack();
    call.mem = b.segment() == 2;
    b.helper(call, a, Ref::NONE, Ref::NONE);
}

fn vector_number(b: &Builder<'_>, n: u32) -> u8 {
    b.i.op_register(n).number() as u8
}

/// VMASKMOV and VPMASKMOV.
pub(super) fn masked(b: &mut Builder<'_>, element: u8) {
    if !gate(b) {
        return;
    }
    let store = b.is_mem(0);
    let vector = b.i.op_register(1).size() as u8;
    let a = b.address(vector.into(), store);
    let (kind, reg, mask) = if store {
        (vecmem::STORE, vector_number(b, 2), vector_number(b, 1))
    } else {
        (vecmem::LOAD, vector_number(b, 0), vector_number(b, 1))
    };
    element_wise(b, Shape { kind, element, vector, mask, index: (0, 0, 0) }, reg, a);
}

/// Gathers: the address is that of index zero.
pub(super) fn gather(b: &mut Builder<'_>, element: u8, index: u8) {
    if !gate(b) {
        return;
    }
    let indices = b.i.memory_index();
    let scale = b.i.memory_index_scale().trailing_zeros() as u8;
    let (dst, mask) = (vector_number(b, 0), vector_number(b, 2));
    let i = indices.number() as u8;
    if dst == mask || dst == i || mask == i {
        return b.ud();
    }
    let vector = b.i.op_register(0).size().max(indices.size()) as u8;
    b.i.set_memory_index(iced_x86::Register::None);
    let a = b.address(u32::from(element), false);
    let shape = Shape { kind: vecmem::GATHER, element, vector, mask, index: (i, index, scale) };
    element_wise(b, shape, dst, a);
}

/// MASKMOVDQU and MASKMOVQ: to where rDI points.
pub(super) fn mask_bytes(b: &mut Builder<'_>) {
    if !gate(b) {
        return;
    }
    let ty = match b.i.op0_kind() {
        OpKind::MemorySegDI => Ty::I16,
        OpKind::MemorySegEDI => Ty::I32,
        _ => Ty::I64,
    };
    let off = b.block.temp();
    b.push(Op { dst: off, a: Ref::gpr(7), ..Op::new(Opcode::Ea, ty) });
    let (kind, vector) =
        if b.i.op_register(1).is_mm() { (vecmem::BYTES_MMX, 8) } else { (vecmem::BYTES, 16) };
    let seg = match b.i.segment_prefix() {
        iced_x86::Register::None => 3,
        r => crate::frontend::seg_number(r),
    };
    let a = b.linear(seg, off, vector.into(), true);
    let shape = Shape { kind, element: 1, vector, mask: vector_number(b, 2), index: (0, 0, 0) };
    let reg = vector_number(b, 1);
    element_wise(b, shape, reg, a);
}

/// 128-bit moves between registers and memory.
pub(super) fn mov128(b: &mut Builder<'_>) {
    if !gate(b) {
        return;
    }
    let reg = |b: &Builder<'_>, n| Ref::xmm(b.i.op_register(n).number() as u8);
    let attr = |b: &Builder<'_>| Attr(b.mem_attr() | if aligned(b) { Attr::ALIGNED } else { 0 });
    if b.is_mem(0) {
        let a = b.address(16, true);
        let attr = attr(b);
        let v = reg(b, 1);
        b.push(Op { a, b: v, attr, ..Op::new(Opcode::St, Ty::V128) });
    } else if b.is_mem(1) {
        let a = b.address(16, false);
        let attr = attr(b);
        let dst = reg(b, 0);
        b.push(Op { dst, a, attr, ..Op::new(Opcode::Ld, Ty::V128) });
    } else {
        let (d, s) = (reg(b, 0), reg(b, 1));
        b.mov(Ty::V128, d, s);
    }
}
