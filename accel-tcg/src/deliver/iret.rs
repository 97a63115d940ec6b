//! IRET in its variants (vol. 2, IRET).
use super::far::{code_target, fits};
use super::{quick, task};
use crate::env::{Cpu, Exec, Fault};
use crate::helpers::seg::{fault, null_stack};
use crate::helpers::system::{pop_virtual_flags, v86_extended};
use crate::helpers::{Flow, HelperArgs, Stack, set_sp, stack_mask};
use crate::mode::key;
use anura_x86::desc::{Descriptor, Selector};
use anura_x86::regs::{cr4, rflags, vector};
use anura_x86::segment::index::{CS, DS, ES, FS, GS, SS};
use anura_x86::{Attr, Segment};

/// Flags that IRET changes at CPL 0 of protected mode only.
const VIRTUAL: u64 = rflags::VM | rflags::VIF | rflags::VIP;

/// IRET; `size` is the operand size.
pub fn iret(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    // NMIs are unmasked even by an IRET that faults.
    cpu.env.nmi_masked = false;
    let k = cpu.env.mode_key;
    if k & key::V86 != 0 {
        if v86_extended(cpu, a.size)? {
            return iret_extended(cpu);
        }
        return iret_real(cpu, a.size, rflags::IOPL | VIRTUAL);
    }
    if k & key::PROT == 0 {
        return iret_real(cpu, a.size, VIRTUAL);
    }
    if cpu.env.eflags_sys & rflags::NT != 0 {
        if cpu.env.long_mode() {
            return Err(Fault::GP0);
        }
        return task::back(cpu, a.next_rip);
    }
    if k & key::L64 != 0 && a.size == 8 && quick::iretq(cpu).is_some() {
        return Ok(Flow::Jumped);
    }
    iret_protected(cpu, a.size)
}

/// The flags that IRET and POPF may change at this operand size and privilege.
#[inline]
pub(super) fn flags_changed(cpu: &Cpu, size: u8) -> u64 {
    let cpl = cpu.env.cpl();
    let mut change = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if size > 2 {
        change |= rflags::RF | rflags::AC | rflags::ID;
    }
    let iopl = (cpu.env.eflags_sys & rflags::IOPL) >> rflags::IOPL_SHIFT;
    if u64::from(cpl) <= iopl {
        change |= rflags::IF;
    }
    if cpl == 0 {
        change |= rflags::IOPL;
        if size > 2 {
            change |= rflags::VIF | rflags::VIP;
        }
    }
    change
}

/// Sets the flags that IRET and POPF may change, but those to be kept.
pub(crate) fn set_flags(cpu: &mut Cpu, value: u64, size: u8, keep: u64) {
    let change = flags_changed(cpu, size) & !keep;
    let new = cpu.env.rflags() & !change | value & change;
    cpu.env.set_rflags(new);
}

/// IRET of v86 mode with VME and an IOPL below 3.
fn iret_extended(cpu: &mut Cpu) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let ip = s.pop(cpu, 2)?;
    let cs = s.pop(cpu, 2)? as u16;
    let flags = s.pop(cpu, 2)?;
    pop_virtual_flags(cpu, flags)?;
    s.commit(cpu);
    cpu.env.rip = ip;
    cpu.env.seg[CS].selector = cs;
    cpu.env.seg[CS].base = u64::from(cs) << 4;
    cpu.mode_changed();
    Ok(Flow::Jumped)
}

fn iret_real(cpu: &mut Cpu, size: u8, keep: u64) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let ip = s.pop(cpu, size)?;
    let cs = s.pop(cpu, size)? as u16;
    let flags = s.pop(cpu, size)?;
    if ip > cpu.env.seg[CS].limit.into() {
        return Err(Fault::GP0);
    }
    s.commit(cpu);
    cpu.env.rip = ip;
    cpu.env.seg[CS].selector = cs;
    cpu.env.seg[CS].base = u64::from(cs) << 4;
    let change = if size == 2 { 0xffff } else { u64::MAX };
    let new = cpu.env.rflags() & (keep | !change) | flags & change & !keep;
    cpu.env.set_rflags(new & rflags::ALL);
    cpu.mode_changed();
    Ok(Flow::Jumped)
}

fn iret_protected(cpu: &mut Cpu, size: u8) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let rip = s.pop(cpu, size)?;
    let cs = s.pop(cpu, size)? as u16;
    let flags = s.pop(cpu, size)?;
    let cpl = cpu.env.cpl();
    if !cpu.env.long_mode() && size == 4 && flags & rflags::VM != 0 && cpl == 0 {
        return iret_to_v86(cpu, s, rip, cs, flags);
    }
    let code = code_target(cpu, cs)?;
    let c = code.attr();
    let rpl = Selector(cs).rpl();
    let gp = fault(vector::GP, cs, 0);
    if rpl < cpl || c.is_conforming() && c.dpl() > rpl || !c.is_conforming() && c.dpl() != rpl {
        return Err(gp);
    }
    if !c.p() {
        return Err(fault(vector::NP, cs, 0));
    }
    let outer = rpl > cpl;
    let with_stack = outer || cpu.env.is_64bit();
    let stack = if with_stack {
        let rsp = s.pop(cpu, size)?;
        let ss = s.pop(cpu, size)? as u16;
        Some((rsp, ss, return_stack(cpu, ss, rpl, c.l())?))
    } else {
        None
    };
    fits(cpu, code, rip)?;
    cpu.mark_accessed(cs, code)?;
    if let Some((_, ss, Some(d))) = stack {
        cpu.mark_accessed(ss, d)?;
    }
    set_flags(cpu, flags, size, 0);
    cpu.env.rip = rip;
    cpu.set_segment(CS, cs, code);
    match stack {
        None => s.commit(cpu),
        Some((rsp, ss, d)) => {
            match d {
                Some(d) => cpu.set_segment(SS, ss, d),
                None => cpu.env.seg[SS] = null_stack(ss, rpl),
            }
            let wide = c.l() && cpu.env.long_mode();
            let mask = match (wide, cpu.env.seg[SS].attr.db()) {
                (true, _) => u64::MAX,
                (_, true) => 0xffff_ffff,
                _ => 0xffff,
            };
            set_sp(&mut cpu.env, rsp, mask);
        }
    }
    cpu.mode_changed();
    if outer {
        cpu.drop_inner_segments();
        cpu.mode_changed();
    }
    Ok(Flow::Jumped)
}

/// Checks the SS of a return frame; `None` is a permitted null selector.
pub(crate) fn return_stack(cpu: &mut Cpu, ss: u16, rpl: u8, to64: bool) -> Exec<Option<Descriptor>> {
    let sel = Selector(ss);
    if sel.is_null() {
        let ok = cpu.env.long_mode() && to64 && rpl != 3 && sel.rpl() == rpl;
        return if ok { Ok(None) } else { Err(Fault::GP0) };
    }
    let gp = fault(vector::GP, ss, 0);
    let d = cpu.read_descriptor(ss, gp)?;
    let a = d.attr();
    if sel.rpl() != rpl || !a.s() || a.is_code() || !a.is_writable() || a.dpl() != rpl {
        return Err(gp);
    }
    if !a.p() {
        return Err(fault(vector::SS, ss, 0));
    }
    Ok(Some(d))
}

fn iret_to_v86(cpu: &mut Cpu, mut s: Stack, rip: u64, cs: u16, flags: u64) -> Exec<Flow> {
    let esp = s.pop(cpu, 4)?;
    let mut selectors = [0; 5];
    for v in &mut selectors {
        *v = s.pop(cpu, 4)? as u16;
    }
    let [ss, es, ds, fs, gs] = selectors;
    cpu.env.set_rflags(flags & rflags::ALL);
    for (index, sel) in [(ES, es), (CS, cs), (SS, ss), (DS, ds), (FS, fs), (GS, gs)] {
        let base = u64::from(sel) << 4;
        cpu.env.seg[index] = Segment { base, limit: 0xffff, attr: Attr::from_bits(0xf3), selector: sel };
    }
    cpu.env.rip = rip & 0xffff;
    cpu.env.gpr[4] = esp;
    cpu.mode_changed();
    debug_assert_eq!(stack_mask(&cpu.env), 0xffff);
    let both = rflags::VIF | rflags::VIP;
    if cpu.env.cr4 & cr4::VME != 0 && flags & both == both {
        // A virtual interrupt that waits and may be taken: #GP before the first instruction (20.3.1).
        cpu.env.pending = Some(Fault::GP0.into());
    }
    Ok(Flow::Jumped)
}
