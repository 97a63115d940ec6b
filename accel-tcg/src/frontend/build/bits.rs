//! Bit tests, scans, BMI and the carry flag.

use super::alu::rmw;
use crate::frontend::{Builder, RAX, gpr_ref};
use crate::ir::op::flag;
use crate::ir::{Attr, Op, Opcode, Ref, Ty};
use iced_x86::OpKind;

pub(super) fn test(b: &mut Builder<'_>, op: Opcode, mem: Opcode) {
    let ty = b.ty(0);
    let mask = u64::from(ty.bits()) - 1;
    let by_register = b.i.op_kind(1) == OpKind::Register;
    let n = if by_register {
        gpr_ref(b.i.op_register(1))
    } else {
        let v = b.i.immediate(1) & mask;
        b.k(ty, v)
    };
    if !b.is_mem(0) {
        let d = gpr_ref(b.i.op_register(0));
        let dst = if op == Opcode::Bt { Ref::NONE } else { d };
        b.op(op, ty, dst, d, n, true);
        return;
    }
    let write = op != Opcode::Bt;
    let a = if by_register {
        // The bit offset is signed and moves the address by whole operands.
        let aty = b.address_ty();
        let shift = b.k(Ty::I8, u64::from(ty.bits().trailing_zeros()));
        let units = b.op_t(Opcode::Sar, ty, n, shift, false);
        let wide = b.block.temp();
        b.convert(Opcode::Sext, Ty::I64, ty, wide, units);
        let bytes = b.k(Ty::I8, u64::from(ty.bytes().trailing_zeros()));
        let plus = b.op_t(Opcode::Shl, Ty::I64, wide, bytes, false);
        let _ = aty;
        b.address_plus(plus, ty.bytes(), write)
    } else if write {
        rmw(b, mem, n, Ref::NONE, true, Ref::NONE);
        return;
    } else {
        b.address(ty.bytes(), false)
    };
    let attr = b.mem_attr();
    if write {
        let attr = Attr(attr | Attr::FLAGS);
        b.push(Op { a, b: n, attr, ..Op::new(mem, ty) });
    } else {
        let v = b.load(ty, a, attr);
        b.op(Opcode::Bt, ty, Ref::NONE, v, n, true);
    }
}

pub(super) fn scan(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    b.op(op, ty, d, s, Ref::NONE, true);
}

pub(super) fn bswap(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let d = gpr_ref(b.i.op_register(0));
    if ty == Ty::I16 {
        // Undefined by the manual; processors leave zero.
        let z = b.k(ty, 0);
        b.mov(ty, d, z);
    } else {
        b.op(Opcode::Bswap, ty, d, d, Ref::NONE, false);
    }
}

pub(super) fn movbe(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let s = b.read(1);
    let t = b.op_t(Opcode::Bswap, ty, s, Ref::NONE, false);
    b.write(0, t);
}

pub(super) fn vex3(b: &mut Builder<'_>, op: Opcode, f: bool) {
    let ty = b.ty(0);
    let (x, y) = (b.read(1), b.read(2));
    let d = gpr_ref(b.i.op_register(0));
    b.op(op, ty, d, x, y, f);
}

pub(super) fn vex2(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    b.op(op, ty, d, s, Ref::NONE, true);
}

pub(super) fn crc32(b: &mut Builder<'_>) {
    let from = b.ty(1);
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    let ty = b.ty(0);
    b.push(Op { dst: d, a: d, b: s, imm: from as u32, ..Op::new(Opcode::Crc32, ty) });
}

fn getf(b: &mut Builder<'_>) -> Ref {
    b.op_t(Opcode::Getf, Ty::I32, Ref::NONE, Ref::NONE, false)
}

pub(super) fn lahf(b: &mut Builder<'_>) {
    let f = getf(b);
    b.mov(Ty::I8, Ref::high(0), f);
}

pub(super) fn sahf(b: &mut Builder<'_>) {
    let f = getf(b);
    let of = b.k(Ty::I32, flag::OF.into());
    let of = b.op_t(Opcode::And, Ty::I32, f, of, false);
    let ah = b.block.temp();
    b.convert(Opcode::Zext, Ty::I32, Ty::I8, ah, Ref::high(0));
    let low = b.k(Ty::I32, 0xd5);
    let ah = b.op_t(Opcode::And, Ty::I32, ah, low, false);
    let v = b.op_t(Opcode::Or, Ty::I32, of, ah, false);
    b.push(Op { a: v, ..Op::new(Opcode::Setf, Ty::I32) });
}

pub(super) fn carry(b: &mut Builder<'_>, op: Opcode, mask: i64) {
    let f = getf(b);
    let m = b.k(Ty::I32, mask as u64);
    let v = b.op_t(op, Ty::I32, f, m, false);
    b.push(Op { a: v, ..Op::new(Opcode::Setf, Ty::I32) });
}

pub(super) fn salc(b: &mut Builder<'_>) {
    let c = b.block.temp();
    b.push(Op { dst: c, imm: 2, ..Op::new(Opcode::Setcc, Ty::I8) });
    b.op(Opcode::Neg, Ty::I8, RAX, c, Ref::NONE, false);
}
