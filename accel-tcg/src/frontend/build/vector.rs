//! Instructions that the host runs for us, and the few vector moves that need no host.

use crate::frontend::Builder;
use crate::frontend::effects::{Unit, unit};
use crate::ir::{Attr, Op, Opcode, Ref, Ty};
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
                && unit(&b.i) == Unit::Sse
                && !matches!(
                    b.i.mnemonic(),
                    Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm
                )
        }
        _ => {
            matches!(b.i.mnemonic(), Vmovaps | Vmovapd | Vmovdqa | Vmovntdq | Vmovntdqa | Vmovntpd | Vmovntps)
        }
    }
}

/// An instruction kept as bytes, if it is one that the host may run.
pub(super) fn any(b: &mut Builder<'_>) {
    if !gate(b) {
        return;
    }
    use Mnemonic::*;
    let m = b.i.mnemonic();
    let mut a = Ref::NONE;
    let mut attr = b.mem_attr();
    if b.has_mem() {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&b.i);
        let write = info
            .used_memory()
            .iter()
            .any(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None));
        let vsib = b.i.memory_index().is_vector_register();
        if vsib {
            // Gathers: the base alone; the elements are addressed at run time.
            b.i.set_memory_index(iced_x86::Register::None);
        }
        let bytes = b.i.memory_size().size() as u32;
        a = b.address(bytes, write);
        if aligned(b) {
            attr |= Attr::ALIGNED;
        }
    } else if (0..b.i.op_count())
        .any(|n| matches!(b.i.op_kind(n), OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI))
    {
        let ty = match b.i.op0_kind() {
            OpKind::MemorySegDI => Ty::I16,
            OpKind::MemorySegEDI => Ty::I32,
            _ => Ty::I64,
        };
        let off = b.block.temp();
        b.push(Op { dst: off, a: Ref::gpr(7), ..Op::new(Opcode::Ea, ty) });
        let seg = crate::frontend::seg_number(b.i.memory_segment());
        a = b.linear(seg, off, 16, true);
    }
    b.opaque(a, attr);
    // These may change what the mode key says about unmasked exceptions.
    if matches!(m, Fldcw | Fldenv | Fninit | Frstor | Fnsave | Fnstenv | Finit | Fsave) {
        b.end_after = true;
    }
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
