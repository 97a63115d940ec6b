//! Arithmetic and logic.

use crate::frontend::{Builder, RAX, RDX, gpr_ref};
use crate::ir::{Attr, Cond, Help, Op, Opcode, Ref, Ty};
use iced_x86::OpKind;

/// Memory as destination: one read-modify-write operation. Returns the old value.
pub(super) fn rmw(b: &mut Builder<'_>, op: Opcode, v: Ref, c: Ref, f: bool, dst: Ref) {
    let ty = b.ty(0);
    let a = b.address(ty.bytes(), true);
    let attr = Attr(b.mem_attr() | if f { Attr::FLAGS } else { 0 });
    b.push(Op { dst, a, b: v, c, attr, ..Op::new(op, ty) });
}

pub(super) fn binary(b: &mut Builder<'_>, op: Opcode, mem: Opcode) {
    let ty = b.ty(0);
    let s = b.read_as(1, ty);
    if b.is_mem(0) {
        rmw(b, mem, s, Ref::NONE, true, Ref::NONE);
    } else {
        let d = gpr_ref(b.i.op_register(0));
        b.op(op, ty, d, d, s, true);
    }
}

pub(super) fn compare(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let d = b.read(0);
    let s = b.read_as(1, ty);
    b.op(op, ty, Ref::NONE, d, s, true);
}

pub(super) fn unary(b: &mut Builder<'_>, op: Opcode, mem: Opcode) {
    let f = op != Opcode::Not;
    if b.is_mem(0) {
        rmw(b, mem, Ref::NONE, Ref::NONE, f, Ref::NONE);
    } else {
        let ty = b.ty(0);
        let d = gpr_ref(b.i.op_register(0));
        b.op(op, ty, d, d, Ref::NONE, f);
    }
}

pub(super) fn mul(b: &mut Builder<'_>, op: Opcode, high: Opcode) {
    let ty = b.ty(0);
    let s = b.read(0);
    if ty == Ty::I8 {
        let ext = if op == Opcode::Mul { Opcode::Zext } else { Opcode::Sext };
        let (x, y) = (b.block.temp(), b.block.temp());
        b.convert(ext, Ty::I16, Ty::I8, x, RAX);
        b.convert(ext, Ty::I16, Ty::I8, y, s);
        let p = b.op_t(Opcode::Mul, Ty::I16, x, y, false);
        b.op_t(op, Ty::I8, RAX, s, true);
        b.mov(Ty::I16, RAX, p);
        return;
    }
    let lo = b.op_t(op, ty, RAX, s, true);
    let hi = b.op_t(high, ty, RAX, s, false);
    b.mov(ty, RAX, lo);
    b.mov(ty, RDX, hi);
}

pub(super) fn imul(b: &mut Builder<'_>) {
    match b.i.op_count() {
        1 => mul(b, Opcode::Imul, Opcode::Smulh),
        n => {
            let ty = b.ty(0);
            let d = gpr_ref(b.i.op_register(0));
            let x = if n == 3 { b.read(1) } else { d };
            let y = b.read_as(n - 1, ty);
            b.op(Opcode::Imul, ty, d, x, y, true);
        }
    }
}

pub(super) fn div(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let a = b.read(0);
    b.push(Op { a, ..Op::new(op, ty) });
}

pub(super) fn carryless(b: &mut Builder<'_>, op: Opcode) {
    let ty = b.ty(0);
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    b.op(op, ty, d, d, s, true);
}

pub(super) fn mulx(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let s = b.read(2);
    let lo = b.op_t(Opcode::Mul, ty, RDX, s, false);
    let hi = b.op_t(Opcode::Umulh, ty, RDX, s, false);
    let (d_lo, d_hi) = (gpr_ref(b.i.op_register(1)), gpr_ref(b.i.op_register(0)));
    b.mov(ty, d_lo, lo);
    b.mov(ty, d_hi, hi);
}

pub(super) fn xadd(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let s = gpr_ref(b.i.op_register(1));
    if b.is_mem(0) {
        let old = b.block.temp();
        rmw(b, Opcode::RmwAdd, s, Ref::NONE, true, old);
        b.mov(ty, s, old);
    } else {
        let d = gpr_ref(b.i.op_register(0));
        let sum = b.op_t(Opcode::Add, ty, d, s, true);
        b.mov(ty, s, d);
        b.mov(ty, d, sum);
    }
}

pub(super) fn cmpxchg(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let s = gpr_ref(b.i.op_register(1));
    // A 32-bit accumulator or destination is written whole only where the comparison says so.
    let wide = if ty == Ty::I32 { Ty::I64 } else { ty };
    let widen = |b: &mut Builder<'_>, r: Ref| {
        if ty == Ty::I32 {
            let t = b.block.temp();
            b.convert(Opcode::Zext, Ty::I64, Ty::I32, t, r);
            t
        } else {
            r
        }
    };
    if b.is_mem(0) {
        let old = b.block.temp();
        rmw(b, Opcode::RmwCmpxchg, RAX, s, true, old);
        let old = widen(b, old);
        b.select(wide, Cond::Z, RAX, RAX, old);
        return;
    }
    let d = gpr_ref(b.i.op_register(0));
    let old = b.block.temp();
    b.mov(ty, old, d);
    let old = widen(b, old);
    let new = widen(b, s);
    let new = if new == s {
        let t = b.block.temp();
        b.mov(ty, t, s);
        t
    } else {
        new
    };
    b.op(Opcode::Cmp, ty, Ref::NONE, RAX, d, true);
    b.select(wide, Cond::Z, RAX, RAX, old);
    b.select(wide, Cond::Z, d, new, d);
}

pub(super) fn cmpxchg2(b: &mut Builder<'_>) {
    let ty = if b.i.memory_size().size() == 16 { Ty::I64 } else { Ty::I32 };
    let a = b.address(ty.bytes() * 2, true);
    let attr = Attr(b.mem_attr() | Attr::FLAGS);
    b.push(Op { a, attr, ..Op::new(Opcode::RmwCmpxchg2, ty) });
}

pub(super) fn bcd(b: &mut Builder<'_>, kind: u8) {
    let mut call = b.call(Help::Bcd);
    call.reg = kind;
    if b.i.op_count() == 1 && b.i.op_kind(0) == OpKind::Immediate8 {
        call.imm = b.i.immediate(0);
    }
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
}

pub(super) fn extend_a(b: &mut Builder<'_>) {
    let (ty, from) = match b.operand_size() {
        2 => (Ty::I16, Ty::I8),
        4 => (Ty::I32, Ty::I16),
        _ => (Ty::I64, Ty::I32),
    };
    b.convert(Opcode::Sext, ty, from, RAX, RAX);
}

pub(super) fn extend_d(b: &mut Builder<'_>) {
    let ty = match b.operand_size() {
        2 => Ty::I16,
        4 => Ty::I32,
        _ => Ty::I64,
    };
    let n = b.k(Ty::I8, u64::from(ty.bits()) - 1);
    b.op(Opcode::Sar, ty, RDX, RAX, n, false);
}
