//! Jumps, calls, returns, software interrupts.

use super::{cond, stack};
use crate::frontend::{Builder, RCX};
use crate::ir::{Attr, Cond, Help, Op, Opcode, Ref, Ty};
use crate::mode::key;
use iced_x86::{FlowControl, Mnemonic, OpKind};

fn canonical(v: u64) -> bool {
    ((v as i64) << 16 >> 16) as u64 == v
}

/// The target of a relative branch; faults at run time where it may not become RIP.
fn near_target(b: &mut Builder<'_>) -> u64 {
    let t = b.i.near_branch_target();
    let t = match b.i.op_kind(0) {
        OpKind::NearBranch16 => t & 0xffff,
        OpKind::NearBranch32 => t & 0xffff_ffff,
        _ => t,
    };
    let checked = if b.is64() { !canonical(t) } else { !b.has(key::CS_FLAT) };
    if checked {
        let a = b.block.constant(t);
        check(b, a);
    }
    t
}

fn check(b: &mut Builder<'_>, a: Ref) {
    b.push(Op { a, ..Op::new(Opcode::ChkRip, Ty::I64) });
}

fn branch_ty(b: &Builder<'_>) -> Ty {
    use iced_x86::Code::*;
    // AMD obeys 66h on near branches in 64-bit code, Intel does not; the decoder knows whose it is.
    let sixteen = matches!(
        b.i.code(),
        Retnw | Retnw_imm16 | Call_rm16 | Jmp_rm16 | Call_rel16 | Jmp_rel16 | Jmp_rel8_16
    );
    match (b.is64(), sixteen) {
        (true, true) => Ty::I16,
        (true, false) => Ty::I64,
        _ => Ty::from_bytes(b.operand_size().into()).unwrap_or(Ty::I64),
    }
}

/// A computed target, widened to 64 bits and checked.
fn computed(b: &mut Builder<'_>, ty: Ty, v: Ref) -> Ref {
    if ty == Ty::I64 && v.as_temp().is_some() {
        check(b, v);
        return v;
    }
    let t = b.block.temp();
    if ty == Ty::I64 {
        b.mov(ty, t, v);
    } else {
        b.convert(Opcode::Zext, Ty::I64, ty, t, v);
    }
    check(b, t);
    t
}

fn jump_to(b: &mut Builder<'_>, a: Ref) {
    b.push(Op { a, ..Op::new(Opcode::JmpInd, Ty::I64) });
    b.ended = true;
}

/// Offset and selector of a far pointer, direct or in memory.
fn far_pointer(b: &mut Builder<'_>) -> (Ref, Ref) {
    match b.i.op_kind(0) {
        OpKind::FarBranch16 => {
            let o = b.block.constant(b.i.far_branch16().into());
            (o, b.block.constant(b.i.far_branch_selector().into()))
        }
        OpKind::FarBranch32 => {
            let o = b.block.constant(b.i.far_branch32().into());
            (o, b.block.constant(b.i.far_branch_selector().into()))
        }
        _ => {
            let ty = Ty::from_bytes(b.operand_size().into()).unwrap_or(Ty::I32);
            let a = b.address(ty.bytes() + 2, false);
            let attr = b.mem_attr();
            let off = b.load(ty, a, attr);
            let wide = b.block.temp();
            b.convert(Opcode::Zext, Ty::I64, ty, wide, off);
            let n = b.k(Ty::I64, ty.bytes().into());
            let a2 = b.op_t(Opcode::Add, Ty::I64, a, n, false);
            (wide, b.load(Ty::I16, a2, attr))
        }
    }
}

fn is_far(b: &Builder<'_>) -> bool {
    use iced_x86::Code::*;
    matches!(
        b.i.code(),
        Jmp_ptr1616
            | Jmp_ptr1632
            | Jmp_m1616
            | Jmp_m1632
            | Jmp_m1664
            | Call_ptr1616
            | Call_ptr1632
            | Call_m1616
            | Call_m1632
            | Call_m1664
    )
}

pub(super) fn jmp(b: &mut Builder<'_>) {
    if is_far(b) {
        let (off, sel) = far_pointer(b);
        let call = b.call(Help::JmpFar);
        b.helper(call, off, sel, Ref::NONE);
        return b.exit();
    }
    if b.i.flow_control() == FlowControl::IndirectBranch {
        let ty = branch_ty(b);
        let v = b.read_as(0, ty);
        let t = computed(b, ty, v);
        return jump_to(b, t);
    }
    let t = near_target(b);
    b.jump(t);
}

pub(super) fn call(b: &mut Builder<'_>) {
    if is_far(b) {
        let (off, sel) = far_pointer(b);
        let call = b.call(Help::CallFar);
        b.helper(call, off, sel, Ref::NONE);
        return b.exit();
    }
    let ty = branch_ty(b);
    let next = b.next_rip();
    let next = b.k(ty, next);
    if b.i.flow_control() == FlowControl::IndirectCall {
        let v = b.read_as(0, ty);
        if !b.features.amd || !b.is64() {
            let t = computed(b, ty, v);
            stack::push_value(b, ty, next);
            return jump_to(b, t);
        }
        // AMD checks the stack before it looks at the target.
        let t = b.block.temp();
        b.convert(Opcode::Zext, Ty::I64, ty, t, v);
        let n = ty.bytes() as i32;
        let a = stack::at(b, -n, ty.bytes(), true);
        let old = b.block.temp();
        b.push(Op { dst: old, a, attr: Attr(Attr::STACK), ..Op::new(Opcode::LdW, ty) });
        check(b, t);
        b.store(ty, a, next, Attr::STACK);
        stack::adjust(b, -n);
        return jump_to(b, t);
    }
    let t = near_target(b);
    stack::push_value(b, ty, next);
    b.jump(t);
}

pub(super) fn ret(b: &mut Builder<'_>) {
    let ty = branch_ty(b);
    let a = stack::at(b, 0, ty.bytes(), false);
    let v = b.load(ty, a, Attr::STACK);
    let t = computed(b, ty, v);
    let extra = if b.i.op_count() == 1 { b.i.immediate(0) as u16 } else { 0 };
    stack::adjust(b, ty.bytes() as i32 + i32::from(extra));
    jump_to(b, t);
}

pub(super) fn retf(b: &mut Builder<'_>) {
    let mut call = b.call(Help::RetFar);
    call.imm = if b.i.op_count() == 1 { b.i.immediate(0) & 0xffff } else { 0 };
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
    b.exit();
}

pub(super) fn jcc(b: &mut Builder<'_>) {
    let c = cond(b);
    let checked = !b.is64() && !b.has(key::CS_FLAT);
    let target = b.i.near_branch_target();
    if checked || (b.is64() && !canonical(target)) {
        // A target that may not be jumped to faults only if it is taken.
        let next = b.next_rip();
        let (t, n) = (b.block.constant(target), b.block.constant(next));
        let to = b.block.temp();
        b.select(Ty::I64, c, to, t, n);
        check(b, to);
        return jump_to(b, to);
    }
    let t = near_target(b);
    let next = b.next_rip();
    let (x, y) = (b.block.constant(t), b.block.constant(next));
    b.push(Op { a: x, b: y, imm: c as u32, ..Op::new(Opcode::Br, Ty::I64) });
    b.ended = true;
}

fn count_ty(b: &Builder<'_>) -> Ty {
    use iced_x86::Code::*;
    match b.i.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => Ty::I16,
        Loop_rel8_64_RCX | Loope_rel8_64_RCX | Loopne_rel8_64_RCX | Loop_rel8_16_RCX | Loope_rel8_16_RCX
        | Loopne_rel8_16_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => Ty::I64,
        _ => Ty::I32,
    }
}

/// A branch whose target may not be jumped to faults only if it is taken: the address that comes next, checked.
/// `None` if there is nothing to check.
fn taken_target(b: &mut Builder<'_>, ty: Ty, v: Ref, if_zero: bool) -> Option<Ref> {
    let target = b.i.near_branch_target();
    let checked = if b.is64() { !canonical(target) } else { !b.has(key::CS_FLAT) };
    if !checked {
        return None;
    }
    let next = b.next_rip();
    let (zero, other) = if if_zero { (target, next) } else { (next, target) };
    // All ones unless `v` is zero.
    let wide = b.block.temp();
    b.convert(Opcode::Zext, Ty::I64, ty, wide, v);
    let (none, sign) = (b.block.constant(0), b.block.constant(63));
    let negative = b.op_t(Opcode::Sub, Ty::I64, none, wide, false);
    let either = b.op_t(Opcode::Or, Ty::I64, wide, negative, false);
    let mask = b.op_t(Opcode::Sar, Ty::I64, either, sign, false);
    let change = b.block.constant(zero ^ other);
    let zero = b.block.constant(zero);
    let change = b.op_t(Opcode::And, Ty::I64, mask, change, false);
    let to = b.op_t(Opcode::Xor, Ty::I64, zero, change, false);
    check(b, to);
    Some(to)
}

pub(super) fn loops(b: &mut Builder<'_>) {
    let ty = count_ty(b);
    let one = b.k(ty, 1);
    let left = b.op_t(Opcode::Sub, ty, RCX, one, false);
    let go = match b.i.mnemonic() {
        Mnemonic::Loop => left,
        m => {
            let c = if m == Mnemonic::Loope { Cond::Z } else { Cond::Nz };
            let zero = b.k(ty, 0);
            let t = b.block.temp();
            b.select(ty, c, t, left, zero);
            t
        }
    };
    let to = taken_target(b, ty, go, false);
    b.mov(ty, RCX, left);
    if let Some(to) = to {
        return jump_to(b, to);
    }
    let target = near_target(b);
    let next = b.next_rip();
    let (x, y) = (b.block.constant(target), b.block.constant(next));
    b.push(Op { a: x, b: y, c: go, ..Op::new(Opcode::Brnz, ty) });
    b.ended = true;
}

pub(super) fn jcxz(b: &mut Builder<'_>) {
    let ty = count_ty(b);
    if let Some(to) = taken_target(b, ty, RCX, true) {
        return jump_to(b, to);
    }
    let target = near_target(b);
    let next = b.next_rip();
    let (x, y) = (b.block.constant(next), b.block.constant(target));
    b.push(Op { a: x, b: y, c: RCX, ..Op::new(Opcode::Brnz, ty) });
    b.ended = true;
}

pub(super) fn int(b: &mut Builder<'_>, id: Help) {
    let mut call = b.call(id);
    if id == Help::Int {
        call.imm = b.i.immediate(0) & 0xff;
    }
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
    b.exit();
}

pub(super) fn ending(b: &mut Builder<'_>, id: Help) {
    let call = b.call(id);
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
    b.exit();
}

pub(super) fn undefined(b: &mut Builder<'_>) {
    b.ud();
}
