//! Shifts and rotates.

use crate::frontend::{Builder, RCX, gpr_ref};
use crate::ir::{Attr, Op, Opcode, Ref, Ty};
use iced_x86::OpKind;

/// Reads a memory operand that will be written, computes, stores, and only then commits the flags.
fn through_memory(b: &mut Builder<'_>, ty: Ty, mut o: Op) {
    let a = b.address(ty.bytes(), true);
    let attr = Attr(b.mem_attr());
    let old = b.block.temp();
    b.push(Op { dst: old, a, attr, ..Op::new(Opcode::LdW, ty) });
    o.a = old;
    o.dst = b.block.temp();
    b.push(o);
    b.store(ty, a, o.dst, attr.0);
    o.dst = b.block.temp();
    o.attr = Attr(Attr::FLAGS);
    b.push(o);
}

fn count(b: &mut Builder<'_>, n: u32) -> Ref {
    match b.i.op_kind(n) {
        OpKind::Register => RCX,
        _ => {
            let v = b.i.immediate(n);
            b.k(Ty::I8, v)
        }
    }
}

pub(super) fn shift(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let n = count(b, 1);
    let o = Op { b: n, ..Op::new(op, ty) };
    if b.is_mem(0) {
        through_memory(b, ty, o);
    } else {
        let d = gpr_ref(b.i.op_register(0));
        b.push(Op { dst: d, a: d, attr: Attr(Attr::FLAGS), ..o });
    }
}

pub(super) fn double(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let s = gpr_ref(b.i.op_register(1));
    let n = count(b, 2);
    let o = Op { b: s, c: n, ..Op::new(op, ty) };
    if b.is_mem(0) {
        through_memory(b, ty, o);
    } else {
        let d = gpr_ref(b.i.op_register(0));
        b.push(Op { dst: d, a: d, attr: Attr(Attr::FLAGS), ..o });
    }
}

/// SHLX and its kin: three operands, no flags.
pub(super) fn plain(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let s = b.read(1);
    let n = match b.i.op_kind(2) {
        OpKind::Register => gpr_ref(b.i.op_register(2)),
        _ => count(b, 2),
    };
    let d = gpr_ref(b.i.op_register(0));
    b.op(op, ty, d, s, n, false);
}
