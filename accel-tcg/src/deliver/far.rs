//! Far jumps, calls and returns, through descriptors, call gates and tasks (vol. 2, JMP, CALL, RET).
use super::task::{self, Source};
use super::{Frame, inner_stack, inner_stack_segment, iret::return_stack, read_tss_u64, stack_view};
use crate::env::{Cpu, Exec, Fault};
use crate::helpers::seg::{fault, null_stack};
use crate::helpers::{Flow, HelperArgs, Stack, set_sp, stack_mask};
use crate::mmu::View;
use anura_x86::Segment;
use anura_x86::desc::{Descriptor, Selector, system, tss64};
use anura_x86::regs::vector;
use anura_x86::segment::index::{CS, SS};

/// Reads the descriptor of a CS selector on the stack or in an instruction; it must be code,
/// and not 64-bit and 32-bit at once.
pub(crate) fn code_target(cpu: &mut Cpu, cs: u16) -> Exec<Descriptor> {
    if Selector(cs).is_null() {
        return Err(Fault::GP0);
    }
    let gp = fault(vector::GP, cs, 0);
    let d = cpu.read_descriptor(cs, gp)?;
    let a = d.attr();
    if !a.s() || !a.is_code() || cpu.env.long_mode() && a.l() && a.db() {
        return Err(gp);
    }
    Ok(d)
}

/// #GP(0) unless `rip` may be executed in the code segment.
pub(crate) fn fits(cpu: &Cpu, code: Descriptor, rip: u64) -> Exec<()> {
    let ok = if cpu.env.long_mode() && code.attr().l() {
        cpu.env.canonical(rip)
    } else {
        rip <= Segment::from_descriptor(0, code.low(), code.high()).limit.into()
    };
    if ok { Ok(()) } else { Err(Fault::GP0) }
}

/// Cuts an offset to the operand size.
fn cut(offset: u64, size: u8) -> u64 {
    match size {
        2 => offset & 0xffff,
        4 => offset & 0xffff_ffff,
        _ => offset,
    }
}

/// Privilege rules of a direct far transfer.
fn check_direct(cpu: &Cpu, selector: u16, d: Descriptor) -> Exec<()> {
    let (a, cpl) = (d.attr(), cpu.env.cpl());
    let ok =
        if a.is_conforming() { a.dpl() <= cpl } else { Selector(selector).rpl() <= cpl && a.dpl() == cpl };
    if !ok {
        return Err(fault(vector::GP, selector, 0));
    }
    if !a.p() {
        return Err(fault(vector::NP, selector, 0));
    }
    Ok(())
}

fn enter(cpu: &mut Cpu, selector: u16, d: Descriptor, rip: u64, cpl: u8) {
    cpu.set_segment(CS, selector & !3 | u16::from(cpl), d);
    cpu.env.rip = rip;
    cpu.mode_changed();
}

fn real_jump(cpu: &mut Cpu, selector: u16, offset: u64) -> Exec<()> {
    if offset > cpu.env.seg[CS].limit.into() {
        return Err(Fault::GP0);
    }
    let cs = &mut cpu.env.seg[CS];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    cpu.env.rip = offset;
    cpu.mode_changed();
    Ok(())
}

/// JMP far: offset `a`, selector `b`.
pub fn jmp_far(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let (offset, selector) = (cut(a.a, a.size), a.b as u16);
    if cpu.is_real_or_v86() {
        real_jump(cpu, selector, offset)?;
        return Ok(Flow::Jumped);
    }
    let cpl = cpu.env.cpl();
    match target(cpu, selector)? {
        Target::Code(d) => {
            check_direct(cpu, selector, d)?;
            fits(cpu, d, offset)?;
            cpu.mark_accessed(selector, d)?;
            enter(cpu, selector, d, offset, cpl);
        }
        Target::Gate(g) => {
            let (a, privilege_ok) = (
                g.code.attr(),
                if g.code.attr().is_conforming() {
                    g.code.attr().dpl() <= cpl
                } else {
                    g.code.attr().dpl() == cpl
                },
            );
            if !privilege_ok {
                return Err(fault(vector::GP, g.selector, 0));
            }
            if !a.p() {
                return Err(fault(vector::NP, g.selector, 0));
            }
            fits(cpu, g.code, g.offset)?;
            cpu.mark_accessed(g.selector, g.code)?;
            enter(cpu, g.selector, g.code, g.offset, cpl);
        }
        Target::Task(tss) => return task::by_instruction(cpu, tss, Source::Jump, a.next_rip),
    }
    Ok(Flow::Jumped)
}

struct Gate {
    gate: Descriptor,
    selector: u16,
    code: Descriptor,
    offset: u64,
}

enum Target {
    Code(Descriptor),
    Gate(Gate),
    Task(u16),
}

/// What a far pointer's selector names.
fn target(cpu: &mut Cpu, selector: u16) -> Exec<Target> {
    if Selector(selector).is_null() {
        return Err(Fault::GP0);
    }
    let gp = fault(vector::GP, selector, 0);
    let d = cpu.read_descriptor(selector, gp)?;
    let a = d.attr();
    let long = cpu.env.long_mode();
    if a.s() {
        if !a.is_code() || long && a.l() && a.db() {
            return Err(gp);
        }
        return Ok(Target::Code(d));
    }
    let known = match a.kind() {
        system::CALL => true,
        system::CALL16 | system::TASK_GATE | system::TSS16 | system::TSS => !long,
        _ => false,
    };
    if !known || a.dpl() < cpu.env.cpl() || a.dpl() < Selector(selector).rpl() {
        return Err(gp);
    }
    match a.kind() {
        system::TSS16 | system::TSS => return Ok(Target::Task(selector)),
        system::TASK_GATE if !a.p() => return Err(fault(vector::NP, selector, 0)),
        system::TASK_GATE => return task::gate_target(d, 0).map(Target::Task),
        _ => {}
    }
    let upper = if long { cpu.read_upper_half(selector, gp)? } else { 0 };
    if !a.p() {
        return Err(fault(vector::NP, selector, 0));
    }
    let target = d.gate_selector();
    let code = code_target(cpu, target)?;
    if long && (!code.attr().l() || code.attr().db()) || code.attr().dpl() > cpu.env.cpl() {
        return Err(fault(vector::GP, target, 0));
    }
    let low = if a.kind() == system::CALL { d.gate_offset() } else { d.gate_offset() & 0xffff };
    Ok(Target::Gate(Gate {
        gate: d,
        selector: target,
        code,
        offset: u64::from(low) | u64::from(upper) << 32,
    }))
}

/// CALL far: offset `a`, selector `b`.
pub fn call_far(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let (offset, selector) = (cut(a.a, a.size), a.b as u16);
    let return_cs = u64::from(cpu.env.seg[CS].selector);
    if cpu.is_real_or_v86() {
        if offset > cpu.env.seg[CS].limit.into() {
            return Err(Fault::GP0);
        }
        let mut f = current_frame(cpu, a.size);
        f.push(cpu, return_cs)?;
        f.push(cpu, a.next_rip)?;
        let mask = stack_mask(&cpu.env);
        let sp = f.commit(cpu)?;
        set_sp(&mut cpu.env, sp, mask);
        real_jump(cpu, selector, offset)?;
        return Ok(Flow::Jumped);
    }
    let cpl = cpu.env.cpl();
    match target(cpu, selector)? {
        Target::Code(d) => {
            check_direct(cpu, selector, d)?;
            let mut f = current_frame(cpu, a.size);
            f.push(cpu, return_cs)?;
            f.push(cpu, a.next_rip)?;
            fits(cpu, d, offset)?;
            cpu.mark_accessed(selector, d)?;
            let mask = stack_mask(&cpu.env);
            let sp = f.commit(cpu)?;
            set_sp(&mut cpu.env, sp, mask);
            enter(cpu, selector, d, offset, cpl);
        }
        Target::Gate(g) => call_gate(cpu, &g, a.next_rip)?,
        Target::Task(tss) => return task::by_instruction(cpu, tss, Source::Call, a.next_rip),
    }
    Ok(Flow::Jumped)
}

fn current_frame(cpu: &Cpu, size: u8) -> Frame {
    let view = View::Stack;
    Frame::new(cpu.env.seg[SS], cpu.env.gpr[4], stack_mask(&cpu.env), size, view, Fault::SS0)
}

fn call_gate(cpu: &mut Cpu, g: &Gate, next_rip: u64) -> Exec<()> {
    let c = g.code.attr();
    if !c.p() {
        return Err(fault(vector::NP, g.selector, 0));
    }
    let long = cpu.env.long_mode();
    let size = match (long, g.gate.attr().kind() & 8 != 0) {
        (true, _) => 8,
        (_, true) => 4,
        _ => 2,
    };
    let inner = !c.is_conforming() && c.dpl() < cpu.env.cpl();
    let cpl = if inner { c.dpl() } else { cpu.env.cpl() };
    let old_cs = u64::from(cpu.env.seg[CS].selector);
    let mut new_stack = None;
    let mut f = if !inner {
        current_frame(cpu, size)
    } else if long {
        let rsp = read_tss_u64(cpu, tss64::RSP0 + u64::from(cpl) * 8, 0)?;
        Frame::new(cpu.env.seg[SS], rsp, u64::MAX, 8, stack_view(cpl), Fault::SS0)
    } else {
        let (ss, esp) = inner_stack(cpu, cpl, 0)?;
        let d = inner_stack_segment(cpu, ss, cpl, 0)?;
        new_stack = Some((ss, d));
        let segment = Segment::from_descriptor(ss, d.low(), d.high());
        let mask = if segment.attr.db() { 0xffff_ffff } else { 0xffff };
        Frame::new(segment, esp, mask, size, stack_view(cpl), fault(vector::SS, ss, 0))
    };
    if inner {
        f.push(cpu, cpu.env.seg[SS].selector.into())?;
        f.push(cpu, cpu.env.gpr[4])?;
        if !long {
            copy_parameters(cpu, &mut f, g.gate.gate_count(), size)?;
        }
    }
    f.push(cpu, old_cs)?;
    f.push(cpu, next_rip)?;
    fits(cpu, g.code, g.offset)?;
    cpu.mark_accessed(g.selector, g.code)?;
    let sp = f.commit(cpu)?;
    if let Some((ss, d)) = new_stack {
        cpu.mark_accessed(ss, d)?;
        cpu.set_segment(SS, ss, d);
    } else if inner {
        cpu.env.seg[SS] = null_stack(cpl.into(), cpl);
    }
    let mask = if long {
        u64::MAX
    } else if cpu.env.seg[SS].attr.db() {
        0xffff_ffff
    } else {
        0xffff
    };
    set_sp(&mut cpu.env, sp, mask);
    enter(cpu, g.selector, g.code, g.offset, cpl);
    Ok(())
}

/// Copies the caller's parameters, the highest first.
fn copy_parameters(cpu: &mut Cpu, f: &mut Frame, count: u32, size: u8) -> Exec<()> {
    let mut values = [0; 31];
    let mut s = Stack::current(cpu);
    let count = count as usize;
    for v in values.iter_mut().take(count) {
        *v = s.pop(cpu, size)?;
    }
    for v in values.iter().take(count).rev() {
        f.push(cpu, *v)?;
    }
    Ok(())
}

/// RET far: `imm` bytes are dropped.
pub fn ret_far(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let rip = s.pop(cpu, a.size)?;
    let cs = s.pop(cpu, a.size)? as u16;
    if cpu.is_real_or_v86() {
        real_jump(cpu, cs, rip)?;
        s.skip(a.imm);
        s.commit(cpu);
        return Ok(Flow::Jumped);
    }
    let cpl = cpu.env.cpl();
    let code = code_target(cpu, cs)?;
    let c = code.attr();
    let rpl = Selector(cs).rpl();
    if rpl < cpl || c.is_conforming() && c.dpl() > rpl || !c.is_conforming() && c.dpl() != rpl {
        return Err(fault(vector::GP, cs, 0));
    }
    if !c.p() {
        return Err(fault(vector::NP, cs, 0));
    }
    s.skip(a.imm);
    if rpl == cpl {
        fits(cpu, code, rip)?;
        cpu.mark_accessed(cs, code)?;
        s.commit(cpu);
        enter(cpu, cs, code, rip, cpl);
        return Ok(Flow::Jumped);
    }
    let rsp = s.pop(cpu, a.size)?;
    let ss = s.pop(cpu, a.size)? as u16;
    let stack = return_stack(cpu, ss, rpl, c.l())?;
    fits(cpu, code, rip)?;
    cpu.mark_accessed(cs, code)?;
    match stack {
        Some(d) => {
            cpu.mark_accessed(ss, d)?;
            cpu.set_segment(SS, ss, d);
        }
        None => cpu.env.seg[SS] = null_stack(ss, rpl),
    }
    enter(cpu, cs, code, rip, rpl);
    let mask = stack_mask(&cpu.env);
    set_sp(&mut cpu.env, rsp.wrapping_add(a.imm), mask);
    cpu.drop_inner_segments();
    cpu.mode_changed();
    Ok(Flow::Jumped)
}
