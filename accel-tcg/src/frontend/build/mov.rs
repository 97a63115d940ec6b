//! Moves, conversions, address computation, exchanges.

use super::cond;
use crate::frontend::{Builder, RAX, gpr_ref, seg_number};
use crate::ir::{Attr, Help, Op, Opcode, Ref, Ty};
use iced_x86::{Mnemonic, OpKind, Register};

pub(super) fn mov(b: &mut Builder<'_>) {
    let reg = |b: &Builder<'_>, n| {
        if b.i.op_kind(n) == OpKind::Register { b.i.op_register(n) } else { Register::None }
    };
    let (d, s) = (reg(b, 0), reg(b, 1));
    if d.is_segment_register() {
        return to_segment(b, d);
    }
    if s.is_segment_register() {
        let sel = Ref::seg_sel(seg_number(s));
        if b.is_mem(0) {
            let a = b.address(2, true);
            let attr = b.mem_attr();
            b.store(Ty::I16, a, sel, attr);
        } else {
            let (ty, dst) = (b.ty(0), gpr_ref(d));
            b.convert(Opcode::Zext, ty, Ty::I16, dst, sel);
        }
        return;
    }
    if d.is_cr() || s.is_cr() || d.is_dr() || s.is_dr() {
        return super::system::control(b, d, s);
    }
    if d.is_tr() || s.is_tr() {
        return b.ud();
    }
    let ty = b.ty(0);
    if b.is_mem(0) {
        let v = b.read_as(1, ty);
        b.write(0, v);
    } else if b.is_mem(1) {
        let a = b.address(ty.bytes(), false);
        let attr = Attr(b.mem_attr());
        b.push(Op { dst: gpr_ref(d), a, attr, ..Op::new(Opcode::Ld, ty) });
    } else {
        let v = b.read_as(1, ty);
        b.mov(ty, gpr_ref(d), v);
    }
}

fn to_segment(b: &mut Builder<'_>, d: Register) {
    if d == Register::CS {
        return b.ud();
    }
    let v = b.read_as(1, Ty::I16);
    let mut call = b.call(Help::MovToSreg);
    call.reg = seg_number(d);
    b.helper(call, v, Ref::NONE, Ref::NONE);
    if d == Register::SS {
        b.end_after = true;
    }
}

pub(super) fn extend(b: &mut Builder<'_>, op: Opcode) {
    let (ty, from) = (b.ty(0), b.ty(1));
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    b.convert(op, ty, from, d, s);
}

pub(super) fn lea(b: &mut Builder<'_>) {
    let (ty, aty) = (b.ty(0), b.address_ty());
    let d = gpr_ref(b.i.op_register(0));
    if ty == aty {
        b.offset(d);
    } else {
        let t = b.block.temp();
        b.offset(t);
        b.mov(ty, d, t);
    }
}

pub(super) fn xchg(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    if b.is_mem(0) || b.is_mem(1) {
        let s = gpr_ref(b.i.op_register(u32::from(b.is_mem(0))));
        let a = b.address(ty.bytes(), true);
        let attr = Attr(b.mem_attr() | Attr::LOCK);
        let old = b.block.temp();
        b.push(Op { dst: old, a, b: s, attr, ..Op::new(Opcode::RmwXchg, ty) });
        b.mov(ty, s, old);
    } else {
        let (x, y) = (gpr_ref(b.i.op_register(0)), gpr_ref(b.i.op_register(1)));
        let t = b.op_t(Opcode::Mov, ty, x, Ref::NONE, false);
        b.mov(ty, x, y);
        b.mov(ty, y, t);
    }
}

pub(super) fn xlat(b: &mut Builder<'_>) {
    let ty = match b.i.memory_base() {
        Register::BX => Ty::I16,
        Register::EBX => Ty::I32,
        _ => Ty::I64,
    };
    let al = b.block.temp();
    b.convert(Opcode::Zext, ty, Ty::I8, al, RAX);
    let sum = b.op_t(Opcode::Add, ty, Ref::gpr(3), al, false);
    // Of a sum of 16 bits nothing is known above them.
    let off = b.block.temp();
    b.push(Op { dst: off, a: sum, ..Op::new(Opcode::Ea, ty) });
    let seg = b.segment();
    let a = b.linear(seg, off, 1, false);
    let attr = Attr(b.mem_attr());
    b.push(Op { dst: RAX, a, attr, ..Op::new(Opcode::Ld, Ty::I8) });
}

pub(super) fn load_far(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let a = b.address(ty.bytes() + 2, false);
    let attr = b.mem_attr();
    let off = b.load(ty, a, attr);
    let n = b.k(Ty::I64, ty.bytes().into());
    let a2 = b.op_t(Opcode::Add, Ty::I64, a, n, false);
    let sel = b.load(Ty::I16, a2, attr);
    let seg = match b.i.mnemonic() {
        Mnemonic::Les => 0,
        Mnemonic::Lss => 2,
        Mnemonic::Lfs => 4,
        Mnemonic::Lgs => 5,
        _ => 3,
    };
    let mut call = b.call(Help::LoadFar);
    call.reg = seg;
    call.reg2 = gpr_ref(b.i.op_register(0)).0 as u8;
    call.size = ty.bytes() as u8;
    b.helper(call, sel, off, Ref::NONE);
    b.end_after |= seg == 2;
}

pub(super) fn cmov(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let s = b.read(1);
    let d = gpr_ref(b.i.op_register(0));
    let c = cond(b);
    b.select(ty, c, d, s, d);
}

pub(super) fn set(b: &mut Builder<'_>) {
    let c = cond(b);
    let reg = if b.is_mem(0) { None } else { Some(gpr_ref(b.i.op_register(0))) };
    let dst = reg.unwrap_or_else(|| b.block.temp());
    b.push(Op { dst, imm: c as u32, ..Op::new(Opcode::Setcc, Ty::I8) });
    if reg.is_none() {
        b.write(0, dst);
    }
}

pub(super) fn fence(b: &mut Builder<'_>) {
    b.push(Op::new(Opcode::Fence, Ty::I64));
}

pub(super) fn nop(_: &mut Builder<'_>) {}

/// 0F 0D with a register operand is undefined on AMD's processors.
pub(super) fn reserved_nop(b: &mut Builder<'_>) {
    use iced_x86::Code::*;
    let prefetch = matches!(
        b.i.code(),
        Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D
    );
    if prefetch && b.features.amd && !b.has_mem() {
        b.ud();
    }
}

pub(super) fn pause(b: &mut Builder<'_>) {
    // With REX.B it is XCHG of R8, the prefix meaning nothing.
    let n = b.i.len();
    if b.is64() && n >= 2 && b.bytes[n - 2] & 0xf1 == 0x41 {
        let ty = Ty::from_bytes(b.operand_size().into()).unwrap_or(Ty::I32);
        let t = b.op_t(Opcode::Mov, ty, RAX, Ref::NONE, false);
        b.mov(ty, RAX, Ref::gpr(8));
        return b.mov(ty, Ref::gpr(8), t);
    }
    let call = b.call(Help::Pause);
    b.helper(call, Ref::NONE, Ref::NONE, Ref::NONE);
    b.end_after = true;
}
