//! String instructions: all run in one helper.

use crate::frontend::{Builder, seg_number};
use crate::ir::{Help, Ref};
use iced_x86::{OpKind, Register};

pub(super) use crate::helpers::string::{CMPS, INS, LODS, MOVS, OUTS, SCAS, STOS};

pub(super) fn string(b: &mut Builder<'_>, kind: u8) {
    use OpKind::*;
    let mut call = b.call(Help::Str);
    call.reg = kind;
    let mut seg = 3;
    for n in 0..b.i.op_count() {
        let (asize, source) = match b.i.op_kind(n) {
            MemorySegSI => (2, true),
            MemorySegESI => (4, true),
            MemorySegRSI => (8, true),
            MemoryESDI => (2, false),
            MemoryESEDI => (4, false),
            MemoryESRDI => (8, false),
            _ => continue,
        };
        call.asize = asize;
        if source {
            seg = seg_number(b.i.memory_segment());
        }
    }
    call.reg2 = seg;
    call.size = b.i.memory_size().size() as u8;
    call.rep = match (b.i.has_repne_prefix(), b.i.has_rep_prefix()) {
        (true, _) => 2,
        (_, true) => 1,
        _ => 0,
    };
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
}

/// MOVSD and CMPSD are strings or scalar moves by their operands.
pub(super) fn movsd(b: &mut Builder<'_>, kind: u8) {
    let vector = (0..b.i.op_count())
        .any(|n| b.i.op_kind(n) == OpKind::Register && b.i.op_register(n).is_vector_register());
    if vector {
        super::vector::any(b);
    } else {
        debug_assert_ne!(b.i.op0_register(), Register::XMM0);
        string(b, kind);
    }
}
