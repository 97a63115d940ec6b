//! Instructions whose work is a helper's.

use crate::frontend::{Builder, RAX, RDX, gpr_ref};
use crate::ir::{Attr, Help, Opcode, Ref, Ty};
use crate::mode::key;
use anura_x86::regs::vector::GP;
use iced_x86::{OpKind, Register};

const NONE: Ref = Ref::NONE;

pub(super) fn simple(b: &mut Builder<'_>, id: Help, ends: bool) {
    let call = b.call(id);
    b.helper(call, NONE, NONE, NONE);
    b.end_after |= ends;
}

fn reg_number(b: &Builder<'_>, n: u32) -> u8 {
    gpr_ref(b.i.op_register(n)).0 as u8
}

pub(super) fn to_register(b: &mut Builder<'_>, id: Help) {
    let mut call = b.call(id);
    call.reg = reg_number(b, 0);
    b.helper(call, NONE, NONE, NONE);
}

pub(super) fn rdrand(b: &mut Builder<'_>, seed: u8) {
    let mut call = b.call(Help::Rdrand);
    call.reg = reg_number(b, 0);
    call.reg2 = seed;
    call.size = b.ty(0).bytes() as u8;
    b.helper(call, NONE, NONE, NONE);
}

pub(super) fn read_base(b: &mut Builder<'_>, seg: u8) {
    if !b.has(key::FSGSBASE) || !b.is64() {
        return b.ud();
    }
    let (ty, d) = (b.ty(0), gpr_ref(b.i.op_register(0)));
    b.mov(ty, d, Ref::seg_base(seg));
}

pub(super) fn write_base(b: &mut Builder<'_>, seg: u8) {
    if !b.has(key::FSGSBASE) || !b.is64() {
        return b.ud();
    }
    let mut call = b.call(Help::WrSegBase);
    call.reg = seg;
    call.size = b.ty(0).bytes() as u8;
    let v = b.read(0);
    b.helper(call, v, NONE, NONE);
}

pub(super) fn table(b: &mut Builder<'_>, id: Help, store: bool) {
    let mut call = b.call(id);
    call.mem = true;
    let bytes = if b.is64() { 10 } else { 6 };
    let a = b.address(bytes, store);
    b.helper(call, a, NONE, NONE);
}

pub(super) fn selector(b: &mut Builder<'_>, id: Help) {
    if id != Help::Lmsw && !b.has(key::PROT) {
        return b.ud();
    }
    // Privilege comes before the operand.
    if matches!(id, Help::Lldt | Help::Ltr | Help::Lmsw) && b.has(key::CPL) {
        return b.raise(GP, true);
    }
    let v = b.read_as(0, Ty::I16);
    let call = b.call(id);
    b.helper(call, v, NONE, NONE);
    b.end_after |= id == Help::Lmsw;
}

pub(super) fn store_selector(b: &mut Builder<'_>, id: Help) {
    if id != Help::Smsw && !b.has(key::PROT) {
        return b.ud();
    }
    let mut call = b.call(id);
    call.mem = b.is_mem(0);
    let a = if call.mem {
        b.address(2, true)
    } else {
        call.reg = reg_number(b, 0);
        call.size = b.ty(0).bytes() as u8;
        NONE
    };
    b.helper(call, a, NONE, NONE);
}

pub(super) fn descriptor(b: &mut Builder<'_>, id: Help) {
    if !b.has(key::PROT) {
        return b.ud();
    }
    let v = b.read_as(1, Ty::I16);
    let mut call = b.call(id);
    call.reg = reg_number(b, 0);
    call.size = b.ty(0).bytes() as u8;
    b.helper(call, v, NONE, NONE);
}

pub(super) fn arpl(b: &mut Builder<'_>) {
    if !b.has(key::PROT) {
        return b.ud();
    }
    let mut call = b.call(Help::Arpl);
    let s = b.read(1);
    call.mem = b.is_mem(0);
    let a = if call.mem {
        b.address(2, true)
    } else {
        call.reg = reg_number(b, 0);
        NONE
    };
    b.helper(call, a, s, NONE);
}

pub(super) fn bound(b: &mut Builder<'_>) {
    let ty = b.ty(0);
    let a = b.address(ty.bytes() * 2, false);
    let attr = b.mem_attr();
    let lo = b.load(ty, a, attr);
    let n = b.k(Ty::I64, ty.bytes().into());
    let a2 = b.op_t(Opcode::Add, Ty::I64, a, n, false);
    let hi = b.load(ty, a2, attr);
    let v = gpr_ref(b.i.op_register(0));
    let mut call = b.call(Help::Bound);
    call.size = ty.bytes() as u8;
    b.helper(call, v, lo, hi);
}

pub(super) fn invlpg(b: &mut Builder<'_>) {
    // The address is not accessed, so it is not checked against its segment.
    let off = b.block.temp();
    b.offset(off);
    let seg = b.segment();
    let base = b.seg_base(seg);
    let a = if base == NONE {
        off
    } else {
        b.op_t(Opcode::Add, if b.is64() { Ty::I64 } else { Ty::I32 }, off, base, false)
    };
    let call = b.call(Help::Invlpg);
    b.helper(call, a, NONE, NONE);
    b.end_after = true;
}

pub(super) fn invpcid(b: &mut Builder<'_>) {
    let kind = gpr_ref(b.i.op_register(0));
    let a = b.address(16, false);
    let call = b.call(Help::Invpcid);
    b.helper(call, kind, a, NONE);
    b.end_after = true;
}

pub(super) fn clflush(b: &mut Builder<'_>) {
    // Checked like a byte load, otherwise without effect.
    let a = b.address(1, false);
    let attr = b.mem_attr();
    if attr & Attr::STACK != 0 {
        // For its fault.
        b.load(Ty::I8, a, Attr::STACK);
    }
    let call = b.call(Help::Clflush);
    b.helper(call, a, NONE, NONE);
}

pub(super) fn input(b: &mut Builder<'_>) {
    let mut call = b.call(Help::In);
    call.size = b.ty(0).bytes() as u8;
    let port = port(b, 1);
    b.helper(call, port, NONE, NONE);
}

pub(super) fn output(b: &mut Builder<'_>) {
    let mut call = b.call(Help::Out);
    call.size = b.ty(1).bytes() as u8;
    let port = port(b, 0);
    b.helper(call, port, RAX, NONE);
}

fn port(b: &mut Builder<'_>, n: u32) -> Ref {
    match b.i.op_kind(n) {
        OpKind::Register => {
            let t = b.block.temp();
            b.convert(Opcode::Zext, Ty::I64, Ty::I16, t, RDX);
            t
        }
        _ => {
            let v = b.i.immediate(n) & 0xff;
            b.block.constant(v)
        }
    }
}

/// FXSAVE, XSAVE and their opposites; `reg` says which variant, size 8 means the REX.W form.
pub(super) fn area(b: &mut Builder<'_>, id: Help, variant: u8, bytes: u32) {
    let mut call = b.call(id);
    call.reg = variant;
    call.mem = true;
    let write = matches!(id, Help::Fxsave | Help::Xsave);
    let a = b.address(bytes, write);
    b.helper(call, a, RAX, RDX);
    b.end_after |= !write;
}

pub(super) fn mxcsr(b: &mut Builder<'_>, id: Help) {
    if !super::vector::gate(b) {
        return;
    }
    let call = b.call(id);
    let write = id == Help::Stmxcsr;
    let a = b.address(4, write);
    if write {
        b.helper(call, a, NONE, NONE);
    } else {
        let attr = b.mem_attr();
        let v = b.load(Ty::I32, a, attr);
        b.helper(call, v, NONE, NONE);
    }
}

/// MOV to and from control and debug registers.
pub(super) fn control(b: &mut Builder<'_>, d: Register, s: Register) {
    let to = d.is_cr() || d.is_dr();
    let special = if to { d } else { s };
    let general = if to { s } else { d };
    let id = match (special.is_cr(), to) {
        (true, true) => Help::MovToCr,
        (true, false) => Help::MovFromCr,
        (false, true) => Help::MovToDr,
        (false, false) => Help::MovFromDr,
    };
    let mut call = b.call(id);
    call.reg = special.number() as u8;
    call.reg2 = gpr_ref(general).0 as u8;
    call.size = if b.is64() { 8 } else { 4 };
    let v = if to { gpr_ref(general) } else { NONE };
    b.helper(call, v, NONE, NONE);
    b.end_after |= to;
}
