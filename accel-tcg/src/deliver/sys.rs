//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and the software interrupts.
use super::{Frame, software};
use crate::env::{Cpu, Exec, Fault};
use crate::helpers::system::virtual_flags;
use crate::helpers::{Flow, HelperArgs, set_sp, stack_mask};
use crate::interp::flags;
use crate::mmu::View;
use crate::mode::key;
use anura_x86::Segment;
use anura_x86::desc::tss32;
use anura_x86::regs::{cr0, cr4, dr6, efer, rflags, vector};
use anura_x86::segment::index::{CS, SS};
use anura_x86::state::EventKind;

/// Access rights of the flat segments that the fast system calls load.
const CODE64: u32 = 0xa09b;
const CODE32: u32 = 0xc09b;
const DATA: u32 = 0xc093;
const DPL3: u32 = 0x60;

fn flat(selector: u16, attr: u32) -> Segment {
    Segment::new(selector, 0, u32::MAX, attr)
}

/// SYSCALL.
pub fn syscall(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let intel = cpu.vm.config.model.is_intel();
    let env = &mut cpu.env;
    if env.efer & efer::SCE == 0 || env.cr0 & cr0::PE == 0 || intel && !env.is_64bit() {
        return Err(Fault::UD);
    }
    let cs = (env.msrs.star >> 32) as u16 & !3;
    if env.long_mode() {
        let old = env.rflags();
        env.gpr[1] = a.next_rip;
        env.gpr[11] = old & !rflags::RF;
        env.rip = if env.is_64bit() { env.msrs.lstar } else { env.msrs.cstar };
        let mask = env.msrs.fmask;
        env.set_rflags(old & !mask & !rflags::RF);
        env.seg[CS] = flat(cs, CODE64);
    } else {
        env.gpr[1] = a.next_rip & 0xffff_ffff;
        env.rip = env.msrs.star & 0xffff_ffff;
        env.eflags_sys &= !(rflags::IF | rflags::VM | rflags::RF);
        env.seg[CS] = flat(cs, CODE32);
    }
    env.seg[SS] = flat(cs.wrapping_add(8), DATA);
    step_by_new_flags(cpu);
    cpu.segments_changed();
    Ok(Flow::Jumped)
}

/// Single steps look at TF as SYSCALL and SYSRET leave it, not as they find it.
fn step_by_new_flags(cpu: &mut Cpu) {
    if cpu.env.eflags_sys & rflags::TF != 0 {
        cpu.env.pending_db |= dr6::BS;
    }
}

/// SYSRET; `size` 8 returns to 64-bit code.
pub fn sysret(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let intel = cpu.vm.config.model.is_intel();
    let env = &mut cpu.env;
    if env.efer & efer::SCE == 0 || env.cr0 & cr0::PE == 0 || intel && !env.is_64bit() {
        return Err(Fault::UD);
    }
    if env.cpl() != 0 {
        return Err(Fault::GP0);
    }
    let base = (env.msrs.star >> 48) as u16 | 3;
    let rcx = env.gpr[1];
    if a.size == 8 && env.long_mode() {
        if !env.canonical(rcx) {
            return Err(Fault::GP0);
        }
        env.rip = rcx;
        env.seg[CS] = flat(base.wrapping_add(16) | 3, CODE64 | DPL3);
    } else {
        env.rip = rcx & 0xffff_ffff;
        env.seg[CS] = flat(base, CODE32 | DPL3);
    }
    if env.long_mode() {
        let flags = env.gpr[11] & rflags::ALL & !(rflags::RF | rflags::VM);
        env.set_rflags(flags);
    } else {
        env.eflags_sys |= rflags::IF;
    }
    env.seg[SS] = flat(base.wrapping_add(8) | 3, DATA | DPL3);
    step_by_new_flags(cpu);
    cpu.segments_changed();
    Ok(Flow::Jumped)
}

/// SYSENTER.
pub fn sysenter(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    let intel = cpu.vm.config.model.is_intel();
    let env = &mut cpu.env;
    let long = env.long_mode();
    if long && !intel {
        return Err(Fault::UD);
    }
    let cs = env.msrs.sysenter_cs as u16 & !3;
    if env.cr0 & cr0::PE == 0 || cs == 0 {
        return Err(Fault::GP0);
    }
    env.eflags_sys &= !(rflags::VM | rflags::IF | rflags::RF);
    let (rip, rsp) = (env.msrs.sysenter_eip, env.msrs.sysenter_esp);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    (env.rip, env.gpr[4]) = (rip & mask, rsp & mask);
    env.seg[CS] = flat(cs, if long { CODE64 } else { CODE32 });
    env.seg[SS] = flat(cs.wrapping_add(8), DATA);
    cpu.mode_changed();
    Ok(Flow::Jumped)
}

/// SYSEXIT; `size` 8 returns to 64-bit code.
pub fn sysexit(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let intel = cpu.vm.config.model.is_intel();
    let env = &mut cpu.env;
    if env.cpl() != 0 {
        return Err(Fault::GP0);
    }
    if env.long_mode() && !intel {
        return Err(Fault::UD);
    }
    let cs = env.msrs.sysenter_cs as u16 & !3;
    if env.cr0 & cr0::PE == 0 || cs == 0 {
        return Err(Fault::GP0);
    }
    let (rcx, rdx) = (env.gpr[1], env.gpr[2]);
    if a.size == 8 && env.long_mode() {
        if !env.canonical(rcx) || !env.canonical(rdx) {
            return Err(Fault::GP0);
        }
        (env.rip, env.gpr[4]) = (rdx, rcx);
        env.seg[CS] = flat(cs.wrapping_add(32) | 3, CODE64 | DPL3);
        env.seg[SS] = flat(cs.wrapping_add(40) | 3, DATA | DPL3);
    } else {
        (env.rip, env.gpr[4]) = (rdx & 0xffff_ffff, rcx & 0xffff_ffff);
        env.seg[CS] = flat(cs.wrapping_add(16) | 3, CODE32 | DPL3);
        env.seg[SS] = flat(cs.wrapping_add(24) | 3, DATA | DPL3);
    }
    cpu.mode_changed();
    Ok(Flow::Jumped)
}

/// Delivers a software interrupt. A fault in its delivery is delivered too, all in here.
fn interrupt(cpu: &mut Cpu, vector: u8, kind: EventKind, next_rip: u64) -> Exec<Flow> {
    // Shutdown is noted in `env.shutdown`, which the run loop looks at.
    let _ = super::deliver(cpu, software(vector, kind, next_rip));
    Ok(Flow::Jumped)
}

/// INT n.
pub fn int(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    if cpu.env.mode_key & key::V86 != 0 {
        let low = cpu.env.eflags_sys & rflags::IOPL != rflags::IOPL;
        if cpu.env.cr4 & cr4::VME != 0 && !redirected(cpu, a.imm as u8)? {
            return v86_handler(cpu, a.imm as u8, a.next_rip, low);
        }
        if low {
            return Err(Fault::GP0);
        }
    }
    interrupt(cpu, a.imm as u8, EventKind::Software, a.next_rip)
}
/// Whether the bitmap of the TSS sends an INT n of v86 mode to protected mode: the 32 bytes below the I/O bitmap
/// (vol. 3, 20.3.3).
fn redirected(cpu: &mut Cpu, vector: u8) -> Exec<bool> {
    let tr = cpu.env.tr;
    if tr.limit < tss32::MIN_LIMIT {
        return Err(Fault::GP0);
    }
    let map = cpu.read_u16(tr.base.wrapping_add(tss32::IO_MAP), View::Super)?;
    let Some(at) = u64::from(map).checked_sub(32).map(|at| at + u64::from(vector >> 3)) else {
        return Err(Fault::GP0);
    };
    if at > tr.limit.into() {
        return Err(Fault::GP0);
    }
    let byte = cpu.read_u8(tr.base.wrapping_add(at), View::Super)?;
    Ok(byte & 1 << (vector & 7) != 0)
}

/// INT n to the program's own vector table, as in real mode; with a low IOPL, VIF takes the place of IF.
fn v86_handler(cpu: &mut Cpu, vector: u8, next_rip: u64, low: bool) -> Exec<Flow> {
    let target = cpu.read_u32(u64::from(vector) * 4, View::Data)?;
    let flags = cpu.env.rflags();
    let mask = stack_mask(&cpu.env);
    let mut f = Frame::new(cpu.env.seg[SS], cpu.env.gpr[4], mask, 2, View::Data, Fault::SS0);
    f.push(cpu, if low { virtual_flags(flags) } else { flags })?;
    f.push(cpu, cpu.env.seg[CS].selector.into())?;
    f.push(cpu, next_rip)?;
    let sp = f.commit(cpu)?;
    set_sp(&mut cpu.env, sp, mask);
    let clear = if low { rflags::VIF } else { rflags::IF };
    cpu.env.eflags_sys &= !(clear | rflags::TF | rflags::AC | rflags::RF);
    let cs = &mut cpu.env.seg[CS];
    cs.selector = (target >> 16) as u16;
    cs.base = u64::from(cs.selector) << 4;
    cpu.env.rip = (target & 0xffff).into();
    cpu.mode_changed();
    Ok(Flow::Jumped)
}

/// INT3.
pub fn int3(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    interrupt(cpu, vector::BP, EventKind::SoftwareException, a.next_rip)
}
/// INTO.
pub fn into(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    if flags::get(&cpu.env) & rflags::OF == 0 {
        return Ok(Flow::Next);
    }
    interrupt(cpu, vector::OF, EventKind::SoftwareException, a.next_rip)
}
/// INT1.
pub fn int1(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    interrupt(cpu, vector::DB, EventKind::PrivilegedSoftware, a.next_rip)
}
