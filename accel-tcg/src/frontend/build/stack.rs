//! PUSH, POP and what goes with them.

use crate::frontend::{Builder, RBP, RSP, gpr_ref, seg_number};
use crate::ir::{Attr, Help, Op, Opcode, Ref, Ty};
use crate::mode::key;
use iced_x86::{OpKind, Register};

/// Type of the item that this instruction moves to or from the stack.
fn item(b: &Builder<'_>) -> Ty {
    Ty::from_bytes(b.i.stack_pointer_increment().unsigned_abs() as usize).unwrap_or(Ty::I64)
}

/// Linear address `delta` away from the stack pointer.
pub(super) fn at(b: &mut Builder<'_>, delta: i32, bytes: u32, write: bool) -> Ref {
    let ty = b.stack_ty();
    let flat = ty == Ty::I64 || (ty == Ty::I32 && b.has(key::FLAT));
    let off = b.block.temp();
    b.push(Op { dst: off, a: RSP, imm: delta as u32, ..Op::new(Opcode::Ea, ty) });
    if flat { off } else { b.linear(2, off, bytes, write) }
}

/// RSP += delta in the stack's width.
pub(super) fn adjust(b: &mut Builder<'_>, delta: i32) {
    let ty = b.stack_ty();
    let n = b.k(ty, i64::from(delta) as u64);
    b.op(Opcode::Add, ty, RSP, RSP, n, false);
}

/// Pushes `v` as an item of `ty`.
pub(super) fn push_value(b: &mut Builder<'_>, ty: Ty, v: Ref) {
    let n = ty.bytes() as i32;
    let a = at(b, -n, ty.bytes(), true);
    b.store(ty, a, v, Attr::STACK);
    adjust(b, -n);
}

pub(super) fn push(b: &mut Builder<'_>) {
    let ty = item(b);
    if b.i.op_kind(0) == OpKind::Register && b.i.op_register(0).is_segment_register() {
        let sel = Ref::seg_sel(seg_number(b.i.op_register(0)));
        let n = ty.bytes() as i32;
        let a = at(b, -n, ty.bytes(), true);
        // Processors write only the selector, except that 64-bit pushes are whole.
        if ty == Ty::I64 {
            let v = b.block.temp();
            b.convert(Opcode::Zext, Ty::I64, Ty::I16, v, sel);
            b.store(ty, a, v, Attr::STACK);
        } else {
            b.store(Ty::I16, a, sel, Attr::STACK);
        }
        adjust(b, -n);
        return;
    }
    let v = b.read_as(0, ty);
    push_value(b, ty, v);
}

pub(super) fn pop(b: &mut Builder<'_>) {
    let ty = item(b);
    let n = ty.bytes() as i32;
    let a = at(b, 0, ty.bytes(), false);
    if b.is_mem(0) {
        let v = b.load(ty, a, Attr::STACK);
        if matches!(b.i.memory_base(), Register::RSP | Register::ESP) {
            let d = b.i.memory_displacement64().wrapping_add(n as u64);
            b.i.set_memory_displacement64(d);
        }
        let to = b.address(ty.bytes(), true);
        let attr = b.mem_attr();
        b.store(ty, to, v, attr);
        return adjust(b, n);
    }
    let r = b.i.op_register(0);
    if r.is_segment_register() {
        let mut call = b.call(Help::PopSreg);
        call.reg = seg_number(r);
        call.imm = n as u64;
        b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
        b.end_after |= r == Register::SS;
        return;
    }
    let v = b.load(ty, a, Attr::STACK);
    adjust(b, n);
    b.mov(ty, gpr_ref(r), v);
}

/// PUSHA, POPA, PUSHF: in a helper, but for PUSHFQ, which asks nobody.
pub(super) fn whole(b: &mut Builder<'_>, id: Help) {
    if id == Help::Pushf && b.is64() && item(b) == Ty::I64 {
        let v = b.op_t(Opcode::Getf, Ty::I64, Ref::NONE, Ref::NONE, false);
        return push_value(b, Ty::I64, v);
    }
    let mut call = b.call(id);
    call.size = match id {
        Help::Pushf => item(b).bytes() as u8,
        _ => b.operand_size(),
    };
    call.asize = b.stack_ty().bytes() as u8;
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
}

pub(super) fn popf(b: &mut Builder<'_>) {
    let mut call = b.call(Help::Popf);
    call.size = item(b).bytes() as u8;
    call.asize = b.stack_ty().bytes() as u8;
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
    b.end_after = true;
}

pub(super) fn enter(b: &mut Builder<'_>) {
    let mut call = b.call(Help::Enter);
    call.size = if b.is64() && b.operand_size() == 4 { 8 } else { b.operand_size() };
    call.asize = b.stack_ty().bytes() as u8;
    call.imm = b.i.immediate(0) & 0xffff | (b.i.immediate(1) & 31) << 16;
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
}

pub(super) fn leave(b: &mut Builder<'_>) {
    let ty = if b.is64() && b.operand_size() == 4 {
        Ty::I64
    } else {
        Ty::from_bytes(b.operand_size().into()).unwrap_or(Ty::I64)
    };
    let sty = b.stack_ty();
    let a = if sty == Ty::I64 {
        let t = b.block.temp();
        b.push(Op { dst: t, a: RBP, ..Op::new(Opcode::Ea, sty) });
        t
    } else {
        let t = b.block.temp();
        b.convert(Opcode::Zext, Ty::I64, sty, t, RBP);
        b.linear(2, t, ty.bytes(), false)
    };
    let v = b.load(ty, a, Attr::STACK);
    let n = b.k(sty, ty.bytes().into());
    b.op(Opcode::Add, sty, RSP, RBP, n, false);
    b.mov(ty, RBP, v);
}
