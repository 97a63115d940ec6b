//! [`CpuState`] to and from the kernel's structures.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`; Intel SDM vol. 3 for what the registers hold. The TSC is exchanged
//! as an offset to the machine's own, so that time goes on wherever the state is set.

use std::io;

use anura_x86::msr::{self, Msrs};
use anura_x86::regs::cr4;
use anura_x86::segment::{Attr, Segment, TableReg};
use anura_x86::state::{EventKind, XSAVE_HEADER, XSAVE_SIZE};
use anura_x86::{Activity, CpuState, PendingException, Shadow};
use kvm_bindings::*;

use crate::host::Cpu;

/// What is not in the kernel: the activity while the local APIC is ours, and what it refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// In HLT or waiting for a start-up IPI.
    pub(crate) activity: Activity,
    /// Bits of CR4 that this kernel refuses, though the stepper, which runs guest kernels here, has them.
    pub(crate) cr4: u64,
    /// XCR0, if those have OSXSAVE among them.
    pub(crate) xcr0: u64,
}

fn segment(s: &kvm_segment) -> Segment {
    let attr = Attr::new()
        .with_kind(s.type_)
        .with_s(s.s != 0)
        .with_dpl(s.dpl & 3)
        .with_p(s.present != 0)
        .with_avl(s.avl != 0)
        .with_l(s.l != 0)
        .with_db(s.db != 0)
        .with_g(s.g != 0)
        .with_unusable(s.unusable != 0);
    Segment { base: s.base, limit: s.limit, attr, selector: s.selector }
}

fn kvm_segment_of(s: &Segment) -> kvm_segment {
    let a = s.attr;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: a.kind(),
        present: a.p().into(),
        dpl: a.dpl(),
        db: a.db().into(),
        s: a.s().into(),
        l: a.l().into(),
        g: a.g().into(),
        avl: a.avl().into(),
        unusable: (a.unusable() || !a.p()).into(),
        padding: 0,
    }
}

/// The registers of [`Msrs`] that a kernel may have, with where they are kept.
fn table(m: &mut Msrs) -> Vec<(u32, &mut u64)> {
    let mut list = vec![
        (msr::STAR, &mut m.star),
        (msr::LSTAR, &mut m.lstar),
        (msr::CSTAR, &mut m.cstar),
        (msr::FMASK, &mut m.fmask),
        (msr::KERNEL_GS_BASE, &mut m.kernel_gs_base),
        (msr::SYSENTER_CS, &mut m.sysenter_cs),
        (msr::SYSENTER_ESP, &mut m.sysenter_esp),
        (msr::SYSENTER_EIP, &mut m.sysenter_eip),
        (msr::PAT, &mut m.pat),
        (msr::TSC_AUX, &mut m.tsc_aux),
        (msr::TSC_ADJUST, &mut m.tsc_adjust),
        (msr::MISC_ENABLE, &mut m.misc_enable),
        (msr::SPEC_CTRL, &mut m.spec_ctrl),
        (msr::MTRR_DEF_TYPE, &mut m.mtrr_def_type),
        (msr::XSS, &mut m.xss),
    ];
    list.extend(msr::MTRR_FIXED.iter().copied().zip(&mut m.mtrr_fixed));
    for (i, [base, mask]) in m.mtrr_var.iter_mut().enumerate() {
        let first = msr::MTRR_PHYS_BASE0 + 2 * i as u32;
        list.extend([(first, base), (first + 1, mask)]);
    }
    list
}

/// Those registers that this kernel keeps.
pub(crate) fn usable_msrs(cpu: &mut dyn Cpu) -> Vec<u32> {
    let all: Vec<u32> = table(&mut Msrs::reset()).iter().map(|(n, _)| *n).collect();
    // One that can be read but does not even take its own value is no state.
    let mut kept = |n: u32| match cpu.msrs(&[n]) {
        Ok(v) if v.len() == 1 => cpu.set_msrs(&[(n, v[0])]).is_ok_and(|n| n == 1),
        _ => false,
    };
    all.into_iter().filter(|n| kept(*n)).collect()
}

/// Registers of the kernel's list that [`CpuState`] does not have, with what they hold at the start.
pub(crate) fn extra_msrs(cpu: &mut dyn Cpu, list: &[u32]) -> Vec<(u32, u64)> {
    let known: Vec<u32> = table(&mut Msrs::reset()).iter().map(|(n, _)| *n).collect();
    let apart = [msr::TSC, msr::TSC_DEADLINE, msr::APIC_BASE, msr::EFER, msr::FS_BASE, msr::GS_BASE];
    let extra = list.iter().copied().filter(|n| !known.contains(n) && !apart.contains(n));
    let mut read = |n: u32| match cpu.msrs(&[n]) {
        // One that does not even take its own value is no state.
        Ok(v) if v.len() == 1 && cpu.set_msrs(&[(n, v[0])]).is_ok_and(|n| n == 1) => Some((n, v[0])),
        _ => None,
    };
    extra.filter_map(&mut read).collect()
}

/// Reads everything.
pub(crate) fn get(cpu: &mut dyn Cpu, usable: &[u32], held: Held, tsc_now: u64) -> io::Result<CpuState> {
    let (r, s) = (cpu.regs()?, cpu.sregs()?);
    let mut msrs = Msrs::reset();
    let wanted: Vec<u32> = usable.iter().copied().chain([msr::TSC]).collect();
    let values = cpu.msrs(&wanted)?;
    for (number, slot) in table(&mut msrs) {
        if let Some(value) = wanted.iter().position(|n| *n == number).and_then(|i| values.get(i)) {
            *slot = *value;
        }
    }
    let tsc = if values.len() == wanted.len() { values[values.len() - 1] } else { tsc_now };
    let dr = cpu.debug_registers()?;
    let events = cpu.events()?;
    let area = cpu.xsave()?;
    let mut xsave = anura_x86::state::XsaveImage::init();
    xsave.bytes.copy_from_slice(&area[..XSAVE_SIZE]);
    // Components in their initial state are not written by the kernel's XSAVE; we keep all of them valid.
    let present = xsave.u64_at(XSAVE_HEADER);
    settle_components(&mut xsave, present);
    let mut state = CpuState::reset(0);
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
    state.seg = [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment);
    (state.ldtr, state.tr) = (segment(&s.ldt), segment(&s.tr));
    state.gdtr = TableReg { base: s.gdt.base, limit: s.gdt.limit };
    state.idtr = TableReg { base: s.idt.base, limit: s.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4, state.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    state.efer = s.efer;
    state.cr4 |= held.cr4;
    state.xcr0 = if held.cr4 & cr4::OSXSAVE != 0 { held.xcr0 } else { cpu.xcr0()? };
    state.dr.copy_from_slice(&dr[..4]);
    (state.dr6, state.dr7) = (dr[4], dr[5]);
    state.msrs = msrs;
    state.xsave = xsave;
    state.pending = pending(&events, &state);
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    state.nmi_masked = events.nmi.masked != 0 && events.nmi.injected == 0;
    state.shadow = match u32::from(events.interrupt.shadow) {
        s if s & KVM_X86_SHADOW_INT_MOV_SS != 0 => Shadow::MovSs,
        s if s & KVM_X86_SHADOW_INT_STI != 0 => Shadow::Sti,
        _ => Shadow::None,
    };
    state.activity = held.activity;
    state.tsc_offset = tsc.wrapping_sub(tsc_now);
    Ok(state)
}

/// Gives components that XSTATE_BV calls initial their initial values, and says that all are there.
fn settle_components(x: &mut anura_x86::state::XsaveImage, present: u64) {
    let init = anura_x86::state::XsaveImage::init();
    if present & 1 == 0 {
        x.bytes[..24].copy_from_slice(&init.bytes[..24]);
        x.bytes[32..160].fill(0);
    }
    if present & 2 == 0 {
        x.bytes[160..416].fill(0);
    }
    if present & 4 == 0 {
        x.bytes[XSAVE_HEADER + 64..].fill(0);
    }
    x.bytes[416..XSAVE_HEADER + 64].fill(0);
}

/// An event that the kernel holds for its next entry.
fn pending(e: &kvm_vcpu_events, s: &CpuState) -> Option<PendingException> {
    if e.exception.injected != 0 || e.exception.pending != 0 {
        let vector = e.exception.nr;
        let error = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
        let payload = match vector {
            14 if e.exception_has_payload == 0 => s.cr2,
            _ => e.exception_payload,
        };
        let kind = if matches!(vector, 3 | 4) { EventKind::SoftwareException } else { EventKind::Fault };
        return Some(PendingException { vector, kind, error, payload, next_rip: s.rip });
    }
    if e.interrupt.injected != 0 {
        let kind = if e.interrupt.soft != 0 { EventKind::Software } else { EventKind::External };
        return Some(PendingException {
            vector: e.interrupt.nr,
            kind,
            error: None,
            payload: 0,
            next_rip: s.rip,
        });
    }
    None
}

/// Writes everything.
pub(crate) fn set(
    cpu: &mut dyn Cpu,
    usable: &[u32],
    state: &CpuState,
    held: Held,
    apic_base: Option<u64>,
    tsc_now: u64,
) -> io::Result<()> {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let mut sregs = cpu.sregs()?;
    sregs.apic_base = apic_base.unwrap_or(sregs.apic_base);
    let targets = [&mut sregs.es, &mut sregs.cs, &mut sregs.ss, &mut sregs.ds, &mut sregs.fs, &mut sregs.gs];
    for (to, from) in targets.into_iter().zip(&state.seg) {
        *to = kvm_segment_of(from);
    }
    (sregs.ldt, sregs.tr) = (kvm_segment_of(&state.ldtr), kvm_segment_of(&state.tr));
    sregs.gdt = kvm_dtable { base: state.gdtr.base, limit: state.gdtr.limit, padding: [0; 3] };
    sregs.idt = kvm_dtable { base: state.idtr.base, limit: state.idtr.limit, padding: [0; 3] };
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4 & !held.cr4);
    (sregs.cr8, sregs.efer) = (state.cr8, state.efer);
    sregs.interrupt_bitmap = [0; 4];
    cpu.set_sregs(&sregs)?;
    let rip = state.rip;
    let rflags = state.rflags;
    cpu.set_regs(&kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    })?;
    let has_xcr0 = held.cr4 & cr4::OSXSAVE == 0 && state.xcr0 != 0 && cpu.xcr0()? != state.xcr0;
    if has_xcr0 {
        cpu.set_xcr0(state.xcr0)?;
    }
    let mut area = cpu.xsave()?;
    // All components of the image are valid, whatever its header says. What it does not have stays as it was: on some
    // hosts ring 3 uses registers that the guest's kernel does not know.
    let ours = 7 & (state.xcr0 | 3);
    let mut word = [0; 8];
    word.copy_from_slice(&area[XSAVE_HEADER..XSAVE_HEADER + 8]);
    let there = u64::from_le_bytes(word) & !ours;
    let end = if ours & 4 != 0 { XSAVE_SIZE } else { XSAVE_HEADER + 64 };
    area[..end].copy_from_slice(&state.xsave.bytes[..end]);
    area[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&(ours | there).to_le_bytes());
    area[XSAVE_HEADER + 8..XSAVE_HEADER + 64].fill(0);
    cpu.set_xsave(&area)?;
    let [d0, d1, d2, d3] = state.dr;
    cpu.set_debug_registers(&[d0, d1, d2, d3, state.dr6, state.dr7])?;
    let mut msrs = state.msrs.clone();
    let mut list: Vec<(u32, u64)> =
        table(&mut msrs).into_iter().filter(|(n, _)| usable.contains(n)).map(|(n, v)| (n, *v)).collect();
    list.push((msr::TSC, tsc_now.wrapping_add(state.tsc_offset)));
    for pair in list {
        // A value that this kernel refuses is told; the others still count.
        if cpu.set_msrs(&[pair])? == 0 {
            log::warn!("kvm: MSR {:#x} does not take {:#x}", pair.0, pair.1);
        }
    }
    cpu.set_events(&events_of(state))
}

fn events_of(state: &CpuState) -> kvm_vcpu_events {
    let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    let mut e = kvm_vcpu_events { flags, ..Default::default() };
    e.nmi.pending = state.nmi_pending.into();
    e.nmi.masked = state.nmi_masked.into();
    e.interrupt.shadow = match state.shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    if let Some(p) = &state.pending {
        match p.kind {
            EventKind::External | EventKind::Software => {
                e.interrupt.injected = 1;
                e.interrupt.nr = p.vector;
                e.interrupt.soft = (p.kind == EventKind::Software).into();
            }
            EventKind::Nmi => e.nmi.injected = 1,
            _ => {
                e.exception.injected = 1;
                e.exception.nr = p.vector;
                e.exception.has_error_code = p.error.is_some().into();
                e.exception.error_code = p.error.unwrap_or(0);
            }
        }
    }
    e
}
