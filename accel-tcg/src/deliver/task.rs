//! Task switches by hardware (vol. 3, chapter 8): by far JMP and CALL, by IRET with NT set, and by task gates.
//!
//! Everything is checked before anything is saved, as far as the old task can still be told of it; what is found
//! wrong after the task register holds the new task is the new task's fault, at its first instruction.
use super::far::fits;
use crate::env::{Cpu, Exec, Fault};
use crate::helpers::seg::fault;
use crate::helpers::{Flow, Stack};
use crate::mmu::View;
use anura_x86::desc::{Descriptor, Selector, system, tss16, tss32};
use anura_x86::regs::{cr0, dr6, dr7, rflags, vector};
use anura_x86::segment::index::{CS, DS, ES, FS, GS, SS};
use anura_x86::{Attr, Segment};

/// What switches the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Far JMP.
    Jump,
    /// Far CALL.
    Call,
    /// An event through a task gate.
    Event,
    /// IRET.
    Iret,
}

/// Offsets of what the processor saves and loads, by the width of the TSS.
struct Layout {
    width: u8,
    /// EIP, EFLAGS, then the eight registers.
    ip: u64,
    /// ES CS SS DS, and FS GS in the 32-bit one.
    segments: u64,
    segment_step: u64,
    segment_count: usize,
    ldt: u64,
    limit: u32,
}

const WIDE: Layout = Layout {
    width: 4,
    ip: 0x20,
    segments: 0x48,
    segment_step: 4,
    segment_count: 6,
    ldt: 0x60,
    limit: tss32::MIN_LIMIT,
};
const NARROW: Layout = Layout {
    width: 2,
    ip: 0x0e,
    segments: 0x22,
    segment_step: 2,
    segment_count: 4,
    ldt: 0x2a,
    limit: tss16::MIN_LIMIT,
};
/// Offset of the debug trap flag in a 32-bit TSS.
const TRAP: u64 = 0x64;

fn layout(attr: Attr) -> &'static Layout {
    if attr.kind() & 8 != 0 { &WIDE } else { &NARROW }
}

/// What a TSS holds for the processor.
struct Image {
    cr3: u32,
    ip: u32,
    flags: u32,
    registers: [u32; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// What the old task leaves, and what the event brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leave {
    /// Where the old task goes on.
    pub rip: u64,
    /// Its flags.
    pub flags: u64,
    /// Goes to the new task's stack.
    pub error: Option<u32>,
    /// The EXT bit of error codes.
    pub ext: u32,
}

/// Switches to the task whose TSS `selector` names. The outer error is the old task's and nothing has changed; the
/// inner one is the new task's.
pub(crate) fn switch(cpu: &mut Cpu, selector: u16, source: Source, leave: Leave) -> Exec<Exec<()>> {
    let Leave { rip, mut flags, error, ext } = leave;
    let iret = source == Source::Iret;
    let mut tss = target(cpu, selector, iret, ext)?;
    let old = cpu.env.tr;
    let (from, to) = (layout(old.attr), layout(tss.attr));
    // The old task must have room and the new one must be all there, before either is changed.
    let first = from.ip;
    let last = from.segments + from.segment_step * from.segment_count as u64;
    if old.limit < from.limit {
        return Err(fault(vector::TS, old.selector, ext));
    }
    cpu.probe_write(old.base.wrapping_add(first), (last - first) as usize, View::Super)?;
    for at in [0, u64::from(to.limit)] {
        cpu.probe_read(tss.base.wrapping_add(at), 1, View::Super)?;
    }
    let nested = matches!(source, Source::Call | Source::Event);
    if nested {
        cpu.probe_write(tss.base, 2, View::Super)?;
    }
    let image = load(cpu, &tss, to)?;

    if iret {
        flags &= !rflags::NT;
    }
    save(cpu, old.base, from, rip, flags)?;
    if !nested {
        mark_busy(cpu, old.selector, false)?;
    }
    if nested {
        cpu.write_u16(tss.base, old.selector, View::Super)?;
    }
    if !iret {
        mark_busy(cpu, selector, true)?;
    }
    tss.attr.set_kind(tss.attr.kind() | 2);
    cpu.env.tr = tss;
    Ok(commit(cpu, &image, to, nested).and_then(|()| enter(cpu, &image, to, error, ext)))
}

/// A switch by an instruction. What the new task finds wrong is delivered here: the instruction is behind us.
pub(crate) fn by_instruction(cpu: &mut Cpu, selector: u16, source: Source, rip: u64) -> Exec<Flow> {
    let leave = Leave { rip, flags: cpu.env.rflags(), error: None, ext: 0 };
    if let Err(fault) = switch(cpu, selector, source, leave)? {
        // Shutdown is noted in `env.shutdown`, which the run loop looks at.
        let _ = super::deliver(cpu, fault.into());
    }
    Ok(Flow::Jumped)
}

/// The TSS descriptor: of the GDT, of the right kind, present and long enough.
fn target(cpu: &mut Cpu, selector: u16, iret: bool, ext: u32) -> Exec<Segment> {
    let wrong = if iret { vector::TS } else { vector::GP };
    let bad = fault(wrong, selector, ext);
    if Selector(selector).is_ldt() || Selector(selector).is_null() {
        return Err(bad);
    }
    let d = cpu.read_descriptor(selector, bad)?;
    let a = d.attr();
    let ok: &[u8] =
        if iret { &[system::TSS16_BUSY, system::TSS_BUSY] } else { &[system::TSS16, system::TSS] };
    if a.s() || !ok.contains(&a.kind()) {
        return Err(bad);
    }
    if !a.p() {
        return Err(fault(vector::NP, selector, ext));
    }
    let tss = Segment::from_descriptor(selector, d.low(), d.high());
    if tss.limit < layout(tss.attr).limit {
        return Err(fault(vector::TS, selector, ext));
    }
    Ok(tss)
}

fn load(cpu: &mut Cpu, tss: &Segment, l: &Layout) -> Exec<Image> {
    let at = |offset: u64| tss.base.wrapping_add(offset);
    let wide = l.width == 4;
    let mut word = |offset: u64| cpu.read_sized(at(offset), l.width, View::Super).map(|v| v as u32);
    let cr3 = if wide { word(tss32::CR3)? } else { 0 };
    let (ip, flags) = (word(l.ip)?, word(l.ip + u64::from(l.width))?);
    let mut registers = [0; 8];
    for (n, r) in (2u64..).zip(&mut registers) {
        *r = word(l.ip + n * u64::from(l.width))?;
    }
    let mut segments = [0; 6];
    for (n, s) in (0u64..).zip(segments.iter_mut().take(l.segment_count)) {
        *s = cpu.read_u16(at(l.segments + n * l.segment_step), View::Super)?;
    }
    let ldt = cpu.read_u16(at(l.ldt), View::Super)?;
    let trap = wide && cpu.read_u16(at(TRAP), View::Super)? & 1 != 0;
    Ok(Image { cr3, ip, flags, registers, segments, ldt, trap })
}

/// Writes the running task's registers into its TSS.
fn save(cpu: &mut Cpu, base: u64, l: &Layout, rip: u64, flags: u64) -> Exec<()> {
    let words = [rip, flags].into_iter().chain(cpu.env.gpr.into_iter().take(8));
    for (n, v) in (0u64..).zip(words) {
        cpu.write_sized(base.wrapping_add(l.ip + n * u64::from(l.width)), v, l.width, View::Super)?;
    }
    for (n, index) in (0u64..).zip([ES, CS, SS, DS, FS, GS].into_iter().take(l.segment_count)) {
        let selector = cpu.env.seg[index].selector;
        cpu.write_u16(base.wrapping_add(l.segments + n * l.segment_step), selector, View::Super)?;
    }
    Ok(())
}

/// Sets or clears the busy bit of a TSS descriptor in the GDT.
fn mark_busy(cpu: &mut Cpu, selector: u16, busy: bool) -> Exec<()> {
    let at = cpu.env.gdtr.base.wrapping_add(Selector(selector).offset() + 5);
    let byte = cpu.read_u8(at, View::Super)?;
    cpu.write_u8(at, if busy { byte | 2 } else { byte & !2 }, View::Super)
}

/// Registers, flags and tables become the new task's.
fn commit(cpu: &mut Cpu, image: &Image, l: &Layout, nested: bool) -> Exec<()> {
    let wide = l.width == 4;
    cpu.env.cr0 |= cr0::TS;
    cpu.env.dr7 &= !dr7::LOCAL;
    cpu.update_watch();
    for (n, v) in image.registers.iter().enumerate() {
        let v = if wide { *v } else { *v & 0xffff };
        cpu.env.gpr[n] = v.into();
    }
    let keep = if wide { 0 } else { cpu.env.rflags() & 0xffff_0000 & !rflags::VM };
    let mut flags = u64::from(image.flags) & rflags::ALL | keep;
    if nested {
        flags |= rflags::NT;
    }
    cpu.env.set_rflags(flags);
    cpu.env.rip = image.ip.into();
    // No segment of the old task is left; the selectors are there for the new one's fault handlers.
    let mut selectors = image.segments;
    if !wide {
        selectors[4..].fill(0);
    }
    for (index, selector) in [ES, CS, SS, DS, FS, GS].into_iter().zip(selectors) {
        cpu.env.seg[index] = Segment::null(selector);
    }
    // Until CS and SS are loaded the level is that of the selector.
    let cpl = if flags & rflags::VM != 0 { 3 } else { Selector(selectors[1]).rpl() };
    cpu.env.seg[SS].attr.set_dpl(cpl);
    cpu.env.seg[SS].attr.set_db(true);
    cpu.env.ldtr = Segment::null(image.ldt);
    if wide && cpu.env.cr0 & cr0::PG != 0 {
        if cpu.is_pae() {
            cpu.env.pdpte =
                cpu.fetch_pdptes(image.cr3.into()).map_err(|_| Fault::with_error(vector::TS, 0))?;
        }
        cpu.load_cr3(image.cr3.into(), false);
    }
    cpu.mode_changed();
    Ok(())
}

/// Loads the new task's segments, in the manual's order (table 8-1), pushes the error code and takes the trap.
fn enter(cpu: &mut Cpu, image: &Image, l: &Layout, error: Option<u32>, ext: u32) -> Exec<()> {
    load_ldt(cpu, image.ldt, ext)?;
    let [es, cs, ss, ds, fs, gs] = image.segments;
    let data = [(DS, ds), (ES, es), (FS, fs), (GS, gs)];
    if cpu.env.eflags_sys & rflags::VM != 0 {
        for (index, selector) in [(CS, cs), (SS, ss)].into_iter().chain(data) {
            let base = u64::from(selector) << 4;
            cpu.env.seg[index] = Segment { base, limit: 0xffff, attr: Attr::from_bits(0xf3), selector };
        }
        cpu.mode_changed();
        if cpu.env.rip > 0xffff {
            return Err(Fault::with_error(vector::GP, ext));
        }
    } else {
        let code = load_code(cpu, cs, ext)?;
        let cpl = Selector(cs).rpl();
        load_stack(cpu, ss, cpl, ext)?;
        cpu.mode_changed();
        let count = if l.width == 4 { 4 } else { 2 };
        for (index, selector) in data.into_iter().take(count) {
            load_data(cpu, index, selector, cpl, ext)?;
        }
        cpu.mode_changed();
        fits(cpu, code, cpu.env.rip).map_err(|_| Fault::with_error(vector::GP, ext))?;
    }
    if let Some(code) = error {
        let mut s = Stack::current(cpu);
        s.push(cpu, code.into(), l.width)?;
        s.commit(cpu);
    }
    if image.trap {
        cpu.env.pending_db |= dr6::BT;
    }
    Ok(())
}

fn load_ldt(cpu: &mut Cpu, selector: u16, ext: u32) -> Exec<()> {
    if Selector(selector).is_null() {
        return Ok(());
    }
    let ts = fault(vector::TS, selector, ext);
    if Selector(selector).is_ldt() {
        return Err(ts);
    }
    let d = cpu.read_descriptor(selector, ts)?;
    let a = d.attr();
    if a.s() || a.kind() != system::LDT || !a.p() {
        return Err(ts);
    }
    cpu.env.ldtr = Segment::from_descriptor(selector, d.low(), d.high());
    Ok(())
}

fn load_code(cpu: &mut Cpu, selector: u16, ext: u32) -> Exec<Descriptor> {
    let ts = fault(vector::TS, selector, ext);
    if Selector(selector).is_null() {
        return Err(Fault::with_error(vector::TS, ext));
    }
    let d = cpu.read_descriptor(selector, ts)?;
    let (a, rpl) = (d.attr(), Selector(selector).rpl());
    let level_ok = if a.is_conforming() { a.dpl() <= rpl } else { a.dpl() == rpl };
    if !a.s() || !a.is_code() || !level_ok {
        return Err(ts);
    }
    if !a.p() {
        return Err(fault(vector::NP, selector, ext));
    }
    cpu.mark_accessed(selector, d)?;
    cpu.set_segment(CS, selector, d);
    Ok(d)
}

fn load_stack(cpu: &mut Cpu, selector: u16, cpl: u8, ext: u32) -> Exec<()> {
    let ts = fault(vector::TS, selector, ext);
    if Selector(selector).is_null() {
        return Err(Fault::with_error(vector::TS, ext));
    }
    let d = cpu.read_descriptor(selector, ts)?;
    let a = d.attr();
    let level_ok = a.dpl() == cpl && Selector(selector).rpl() == cpl;
    if !a.s() || a.is_code() || !a.is_writable() || !level_ok {
        return Err(ts);
    }
    if !a.p() {
        return Err(fault(vector::SS, selector, ext));
    }
    cpu.mark_accessed(selector, d)?;
    cpu.set_segment(SS, selector, d);
    Ok(())
}

fn load_data(cpu: &mut Cpu, index: usize, selector: u16, cpl: u8, ext: u32) -> Exec<()> {
    let sel = Selector(selector);
    if sel.is_null() {
        return Ok(());
    }
    let ts = fault(vector::TS, selector, ext);
    let d = cpu.read_descriptor(selector, ts)?;
    let a = d.attr();
    let level_ok = a.is_conforming() || a.dpl() >= sel.rpl() && a.dpl() >= cpl;
    if !a.s() || !a.is_readable() || !level_ok {
        return Err(ts);
    }
    if !a.p() {
        return Err(fault(vector::NP, selector, ext));
    }
    cpu.mark_accessed(selector, d)?;
    cpu.set_segment(index, selector, d);
    Ok(())
}

/// The TSS that a task gate names; the gate has been checked but for what is behind it.
pub(crate) fn gate_target(gate: Descriptor, ext: u32) -> Exec<u16> {
    let selector = gate.gate_selector();
    if Selector(selector).is_ldt() || Selector(selector).is_null() {
        return Err(fault(vector::GP, selector, ext));
    }
    Ok(selector)
}

/// IRET with NT set: back to the task that the link field names.
pub(crate) fn back(cpu: &mut Cpu, next_rip: u64) -> Exec<Flow> {
    let link = cpu.read_u16(cpu.env.tr.base, View::Super)?;
    by_instruction(cpu, link, Source::Iret, next_rip)
}
