//! Delivery of exceptions and interrupts, and the other ways to change privilege.
//!
//! Delivery has two phases. The first reads the gate, the target descriptor and the TSS and
//! probes every stack word; a fault in it discards everything and is combined with the event by
//! the pair table (vol. 3, table 6-5). The second commits and cannot fault.
pub mod far;
pub mod iret;
mod quick;
pub mod sys;
pub(crate) mod task;
#[cfg(test)]
mod task_tests;
#[cfg(test)]
mod tests;

use crate::env::{Cpu, Exec, Fault};
use crate::helpers::seg::{fault, null_stack};
use crate::helpers::{set_sp, stack_mask, within};
use crate::mmu::View;
use crate::mode::key;
use anura_x86::desc::{Descriptor, Selector, system, tss16, tss32, tss64};
use anura_x86::regs::{cr0, dr6, dr7, error, rflags, vector};
use anura_x86::segment::index::{CS, DS, ES, FS, GS, SS};
use anura_x86::state::{EventKind, PendingException};
use anura_x86::{Segment, Shadow};
use task::Leave;

/// An event to deliver.
pub type Event = PendingException;

/// A fault in the delivery of a double fault: the processor stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown;

impl From<Fault> for PendingException {
    fn from(f: Fault) -> Self {
        Self { vector: f.vector, kind: f.kind, error: f.error, payload: f.cr2, next_rip: 0 }
    }
}

/// An external interrupt.
pub fn external(vector: u8) -> Event {
    Event { vector, kind: EventKind::External, error: None, payload: 0, next_rip: 0 }
}

/// A non-maskable interrupt.
pub fn nmi() -> Event {
    Event { vector: vector::NMI, kind: EventKind::Nmi, error: None, payload: 0, next_rip: 0 }
}

/// INT n, INT3, INTO or INT1.
pub fn software(vector: u8, kind: EventKind, next_rip: u64) -> Event {
    Event { vector, kind, error: None, payload: 0, next_rip }
}

#[derive(PartialEq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(e: &Event) -> Class {
    match (e.kind, e.vector) {
        (EventKind::Fault, vector::PF) => Class::PageFault,
        (EventKind::Fault, vector::DF) => Class::DoubleFault,
        (EventKind::Fault, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP) => {
            Class::Contributory
        }
        _ => Class::Benign,
    }
}

/// Delivers an event. `env.rip` is the faulting instruction for faults, the next one otherwise.
pub fn deliver(cpu: &mut Cpu, event: Event) -> Result<(), Shutdown> {
    let mut e = event;
    loop {
        if cpu.jit.log.int {
            crate::show::delivered(cpu, &e);
        }
        if e.vector == vector::PF && e.kind == EventKind::Fault {
            cpu.env.cr2 = e.payload;
        }
        let second: Event = match attempt(cpu, &e) {
            Ok(()) => {
                arrived(cpu, &e);
                return Ok(());
            }
            Err(f) => f.into(),
        };
        let double = match (class(&e), class(&second)) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault) => {
                cpu.env.shutdown = true;
                return Err(Shutdown);
            }
            (Class::Contributory, s) => s == Class::Contributory,
            (Class::PageFault, s) => s != Class::Benign,
            _ => false,
        };
        if double && second.vector == vector::PF {
            cpu.env.cr2 = second.payload;
        }
        e = if double { Fault::with_error(vector::DF, 0).into() } else { second };
    }
}

/// What delivery leaves besides the new context.
fn arrived(cpu: &mut Cpu, e: &Event) {
    let env = &mut cpu.env;
    env.shadow = Shadow::None;
    env.halted = false;
    if e.kind == EventKind::Nmi {
        env.nmi_masked = true;
    }
    if e.vector == vector::DB {
        // What a MOV SS shadow held back comes along, also with INT1 (but not with INT n).
        let held = match e.kind {
            EventKind::Software => 0,
            _ => std::mem::take(&mut env.pending_db),
        };
        let direct = matches!(e.kind, EventKind::Fault | EventKind::Trap);
        if direct || held != 0 {
            let payload = if direct { e.payload } else { 0 };
            env.dr6 = env.dr6 & !dr6::B | payload | held | dr6::ONES;
            env.dr7 &= !dr7::GD;
            // Stepping by branches is asked for anew each time (vol. 3, 18.4.4).
            env.msrs.debugctl &= !2;
        }
    }
}

fn is_software(kind: EventKind) -> bool {
    matches!(kind, EventKind::Software | EventKind::SoftwareException)
}

/// The RIP that the frame holds.
fn return_rip(cpu: &Cpu, e: &Event) -> u64 {
    match e.kind {
        EventKind::Software | EventKind::SoftwareException | EventKind::PrivilegedSoftware => e.next_rip,
        _ => cpu.env.rip,
    }
}

/// The flags that the frame holds: faults set RF, so that the restarted instruction passes a
/// code breakpoint; a #DB fault is one, and does not.
fn pushed_flags(cpu: &Cpu, e: &Event) -> u64 {
    let flags = cpu.env.rflags();
    if e.kind == EventKind::Fault && e.vector != vector::DB { flags | rflags::RF } else { flags }
}

/// Where the interrupted code goes on, which ends every frame: flags, CS and RIP, and the error code if there is one.
fn push_return(cpu: &mut Cpu, f: &mut Frame, e: &Event) -> Exec<()> {
    f.push(cpu, pushed_flags(cpu, e))?;
    f.push(cpu, cpu.env.seg[CS].selector.into())?;
    f.push(cpu, return_rip(cpu, e))?;
    match e.error {
        Some(code) => f.push(cpu, code.into()),
        None => Ok(()),
    }
}

/// Words to be pushed: probed first, written later.
pub(crate) struct Frame {
    words: [(u64, u64); 16],
    len: usize,
    sp: u64,
    segment: Segment,
    mask: u64,
    size: u8,
    view: View,
    /// What a limit violation raises.
    overflow: Fault,
}

impl Frame {
    /// A frame below `sp` of a stack.
    pub(crate) fn new(segment: Segment, sp: u64, mask: u64, size: u8, view: View, overflow: Fault) -> Self {
        Self { words: [(0, 0); 16], len: 0, sp, segment, mask, size, view, overflow }
    }

    /// Probes and remembers one word.
    pub(crate) fn push(&mut self, cpu: &mut Cpu, value: u64) -> Exec<()> {
        self.sp = self.sp.wrapping_sub(self.size.into());
        let offset = self.sp & self.mask;
        let mut at = offset;
        if self.mask != u64::MAX {
            if !within(&self.segment, offset, self.size.into()) {
                return Err(self.overflow);
            }
            at = offset.wrapping_add(self.segment.base) & 0xffff_ffff;
        } else if !cpu.env.canonical(at) {
            return Err(self.overflow);
        }
        cpu.probe_write(at, self.size.into(), self.view)?;
        if let Some(slot) = self.words.get_mut(self.len) {
            *slot = (at, value);
            self.len += 1;
        }
        Ok(())
    }

    /// Writes the words; the stack pointer that they leave.
    pub(crate) fn commit(&self, cpu: &mut Cpu) -> Exec<u64> {
        for (at, value) in &self.words[..self.len] {
            cpu.write_sized(*at, *value, self.size, self.view)?;
        }
        Ok(self.sp)
    }
}

fn attempt(cpu: &mut Cpu, e: &Event) -> Exec<()> {
    if quick::enter(cpu, e).is_some() {
        return Ok(());
    }
    if cpu.env.cr0 & cr0::PE == 0 { attempt_real(cpu, e) } else { attempt_protected(cpu, e) }
}

/// Through the interrupt vector table (vol. 3, 21.1.4).
fn attempt_real(cpu: &mut Cpu, e: &Event) -> Exec<()> {
    let at = u64::from(e.vector) * 4;
    if at + 3 > cpu.env.idtr.limit.into() {
        return Err(Fault::gp(u32::from(e.vector) * 8 + error::IDT));
    }
    let target = cpu.read_u32(cpu.env.idtr.base.wrapping_add(at) & 0xffff_ffff, View::Super)?;
    let flags = cpu.env.rflags();
    let mask = stack_mask(&cpu.env);
    let mut f = Frame::new(cpu.env.seg[SS], cpu.env.gpr[4], mask, 2, View::Data, Fault::SS0);
    f.push(cpu, flags)?;
    f.push(cpu, cpu.env.seg[CS].selector.into())?;
    f.push(cpu, return_rip(cpu, e))?;
    let sp = f.commit(cpu)?;
    set_sp(&mut cpu.env, sp, mask);
    let clear = rflags::IF | rflags::TF | rflags::AC | rflags::RF;
    cpu.env.eflags_sys &= !clear;
    let cs = &mut cpu.env.seg[CS];
    cs.selector = (target >> 16) as u16;
    cs.base = u64::from(cs.selector) << 4;
    cpu.env.rip = (target & 0xffff).into();
    cpu.mode_changed();
    Ok(())
}

/// What a gate and its code segment say.
struct Target {
    gate: Descriptor,
    selector: u16,
    code: Descriptor,
    rip: u64,
    cpl: u8,
}

/// Where an event goes.
enum Found {
    Handler(Target),
    Task(u16),
}

/// Reads and checks the gate and the code segment behind it (phase 1).
fn find_target(cpu: &mut Cpu, e: &Event, ext: u32) -> Exec<Found> {
    let long = cpu.env.long_mode();
    let index = u32::from(e.vector) * 8 + error::IDT + ext;
    let (scale, last) = if long { (16, 15) } else { (8, 7) };
    let at = u64::from(e.vector) * scale;
    if at + last > cpu.env.idtr.limit.into() {
        return Err(Fault::gp(index));
    }
    let base = cpu.env.idtr.base.wrapping_add(at);
    let gate = Descriptor(cpu.read_u64(base, View::Super)?);
    let a = gate.attr();
    let kind_ok = !a.s()
        && match a.kind() {
            system::INT | system::TRAP => true,
            system::INT16 | system::TRAP16 | system::TASK_GATE => !long,
            _ => false,
        };
    let upper = if long { cpu.read_u64(base.wrapping_add(8), View::Super)? } else { 0 };
    if !kind_ok || is_software(e.kind) && a.dpl() < cpu.env.cpl() {
        return Err(Fault::gp(index));
    }
    if !a.p() {
        return Err(Fault::with_error(vector::NP, index));
    }
    if a.kind() == system::TASK_GATE {
        return task::gate_target(gate, ext).map(Found::Task);
    }
    let selector = gate.gate_selector();
    let gp = fault(vector::GP, selector, ext);
    if Selector(selector).is_null() {
        return Err(Fault::gp(ext));
    }
    let code = cpu.read_descriptor(selector, gp)?;
    let c = code.attr();
    if !c.s() || !c.is_code() || c.dpl() > cpu.env.cpl() || long && (!c.l() || c.db()) {
        return Err(gp);
    }
    if !c.p() {
        return Err(fault(vector::NP, selector, ext));
    }
    let cpl = if c.is_conforming() { cpu.env.cpl() } else { c.dpl() };
    if cpu.env.mode_key & key::V86 != 0 && cpl != 0 {
        return Err(gp);
    }
    let wide = a.kind() & 8 != 0;
    let offset = if wide { gate.gate_offset() } else { gate.gate_offset() & 0xffff };
    let rip = u64::from(offset) | upper << 32;
    Ok(Found::Handler(Target { gate, selector, code, rip, cpl }))
}

fn attempt_protected(cpu: &mut Cpu, e: &Event) -> Exec<()> {
    let ext = if is_software(e.kind) { 0 } else { error::EXT };
    let t = match find_target(cpu, e, ext)? {
        Found::Handler(t) => t,
        Found::Task(tss) => {
            let leave = Leave { rip: return_rip(cpu, e), flags: pushed_flags(cpu, e), error: e.error, ext };
            // What the new task finds wrong is delivered to it, combined with this event.
            return task::switch(cpu, tss, task::Source::Event, leave)?;
        }
    };
    if cpu.env.long_mode() { enter_long(cpu, e, &t, ext) } else { enter_legacy(cpu, e, &t, ext) }
}

/// Flags that entering a handler clears.
fn entry_clears(t: &Target) -> u64 {
    let base = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
    if t.gate.attr().kind() & 1 == 0 { base | rflags::IF } else { base }
}

/// The view of a stack of the given level.
fn stack_view(cpl: u8) -> View {
    if cpl == 3 { View::Data } else { View::Super }
}

fn enter_long(cpu: &mut Cpu, e: &Event, t: &Target, ext: u32) -> Exec<()> {
    let inner = t.cpl < cpu.env.cpl();
    let ist = u64::from(t.gate.gate_ist());
    let mut rsp = if ist != 0 {
        read_tss_u64(cpu, tss64::IST1 + (ist - 1) * 8, ext)?
    } else if inner {
        read_tss_u64(cpu, tss64::RSP0 + u64::from(t.cpl) * 8, ext)?
    } else if cpu.env.is_64bit() {
        cpu.env.gpr[4]
    } else {
        // From compatibility code without a change of level or stack.
        cpu.env.gpr[4] & stack_mask(&cpu.env)
    };
    rsp &= !15;
    if !cpu.env.canonical(t.rip) {
        return Err(Fault::gp(ext));
    }
    let overflow = Fault::with_error(vector::SS, ext);
    let old_ss = cpu.env.seg[SS];
    let mut f = Frame::new(old_ss, rsp, u64::MAX, 8, stack_view(t.cpl), overflow);
    f.push(cpu, old_ss.selector.into())?;
    f.push(cpu, cpu.env.gpr[4])?;
    push_return(cpu, &mut f, e)?;
    cpu.mark_accessed(t.selector, t.code)?;
    let sp = f.commit(cpu)?;
    cpu.env.gpr[4] = sp;
    cpu.env.rip = t.rip;
    cpu.env.eflags_sys &= !entry_clears(t);
    cpu.set_segment(CS, Selector(t.selector).0 & !3 | u16::from(t.cpl), t.code);
    if inner {
        cpu.env.seg[SS] = null_stack(t.cpl.into(), t.cpl);
    }
    cpu.segments_changed();
    Ok(())
}

/// Reads a quadword of a 64-bit TSS, which must be a canonical address.
fn read_tss_u64(cpu: &mut Cpu, offset: u64, ext: u32) -> Exec<u64> {
    let tr = cpu.env.tr;
    if offset + 7 > tr.limit.into() {
        return Err(fault(vector::TS, tr.selector, ext));
    }
    let value = cpu.read_u64(tr.base.wrapping_add(offset), View::Super)?;
    if cpu.env.canonical(value) { Ok(value) } else { Err(Fault::with_error(vector::SS, ext)) }
}

/// SS and ESP for an inner level from a 32- or 16-bit TSS.
pub(crate) fn inner_stack(cpu: &mut Cpu, cpl: u8, ext: u32) -> Exec<(u16, u64)> {
    let tr = cpu.env.tr;
    let wide = tr.attr.kind() & 8 != 0;
    let (at, len) =
        if wide { (tss32::ESP0 + u64::from(cpl) * 8, 8) } else { (tss16::SP0 + u64::from(cpl) * 4, 4) };
    if at + len - 1 > tr.limit.into() {
        return Err(fault(vector::TS, tr.selector, ext));
    }
    let base = tr.base.wrapping_add(at);
    Ok(if wide {
        let esp = cpu.read_u32(base, View::Super)?;
        (cpu.read_u16(base + 4, View::Super)?, esp.into())
    } else {
        let sp = cpu.read_u16(base, View::Super)?;
        (cpu.read_u16(base + 2, View::Super)?, sp.into())
    })
}

/// Checks a stack selector from a TSS.
pub(crate) fn inner_stack_segment(cpu: &mut Cpu, ss: u16, cpl: u8, ext: u32) -> Exec<Descriptor> {
    let ts = fault(vector::TS, ss, ext);
    if Selector(ss).is_null() {
        return Err(Fault::with_error(vector::TS, ext));
    }
    let d = cpu.read_descriptor(ss, ts)?;
    let a = d.attr();
    let data = a.s() && !a.is_code() && a.is_writable();
    if Selector(ss).rpl() != cpl || a.dpl() != cpl || !data {
        return Err(ts);
    }
    if !a.p() {
        return Err(fault(vector::SS, ss, ext));
    }
    Ok(d)
}

fn enter_legacy(cpu: &mut Cpu, e: &Event, t: &Target, ext: u32) -> Exec<()> {
    let v86 = cpu.env.mode_key & key::V86 != 0;
    let inner = t.cpl < cpu.env.cpl();
    let size = if t.gate.attr().kind() & 8 != 0 { 4 } else { 2 };
    let mut new_stack = None;
    let mut f = if inner {
        let (ss, esp) = inner_stack(cpu, t.cpl, ext)?;
        let d = inner_stack_segment(cpu, ss, t.cpl, ext)?;
        new_stack = Some((ss, d));
        let segment = Segment::from_descriptor(ss, d.low(), d.high());
        let mask = if segment.attr.db() { 0xffff_ffff } else { 0xffff };
        Frame::new(segment, esp, mask, size, stack_view(t.cpl), fault(vector::SS, ss, ext))
    } else {
        let mask = stack_mask(&cpu.env);
        let overflow = Fault::with_error(vector::SS, ext);
        Frame::new(cpu.env.seg[SS], cpu.env.gpr[4], mask, size, View::Data, overflow)
    };
    if inner {
        if v86 {
            for index in [GS, FS, DS, ES] {
                f.push(cpu, cpu.env.seg[index].selector.into())?;
            }
        }
        f.push(cpu, cpu.env.seg[SS].selector.into())?;
        f.push(cpu, cpu.env.gpr[4])?;
    }
    push_return(cpu, &mut f, e)?;
    let code = Segment::from_descriptor(t.selector, t.code.low(), t.code.high());
    if t.rip > code.limit.into() {
        return Err(Fault::gp(ext));
    }
    cpu.mark_accessed(t.selector, t.code)?;
    if let Some((ss, d)) = new_stack {
        cpu.mark_accessed(ss, d)?;
    }
    let sp = f.commit(cpu)?;
    if let Some((ss, d)) = new_stack {
        cpu.set_segment(SS, ss, d);
    }
    let mask = if cpu.env.seg[SS].attr.db() { 0xffff_ffff } else { 0xffff };
    set_sp(&mut cpu.env, sp, mask);
    cpu.env.rip = t.rip;
    cpu.env.eflags_sys &= !entry_clears(t);
    cpu.set_segment(CS, t.selector & !3 | u16::from(t.cpl), t.code);
    if v86 {
        for index in [GS, FS, DS, ES] {
            cpu.env.seg[index] = Segment::null(0);
        }
    }
    cpu.mode_changed();
    Ok(())
}
