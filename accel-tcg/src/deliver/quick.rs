//! The usual deliveries and returns of long mode: everything is in the TLB, every check passes, the frame lies in one
//! page. Whatever is unusual changes nothing here and takes the way of the manual.
use super::iret::flags_changed;
use super::{Event, is_software, pushed_flags, return_rip, stack_view};
use crate::env::Cpu;
use crate::helpers::seg::null_stack;
use crate::interp::flags;
use crate::mmu::View;
use crate::mode::key;
use anura_x86::Segment;
use anura_x86::desc::{Descriptor, Selector, tss64};
use anura_x86::regs::rflags;
use anura_x86::segment::index::{CS, SS};

/// Access bytes of descriptors: mask and value.
type Rights = (u8, u8);
/// A present 64-bit interrupt or trap gate.
const GATE: Rights = (0x9e, 0x8e);
/// Present code, not conforming, accessed.
const CODE: Rights = (0x9d, 0x99);
/// Present writable data, accessed.
const STACK: Rights = (0x9b, 0x93);

fn is(d: u64, rights: Rights) -> bool {
    (d >> 40) as u8 & rights.0 == rights.1
}
fn dpl(d: u64) -> u8 {
    (d >> 45) as u8 & 3
}
/// L set and D clear.
fn is_64bit(d: u64) -> bool {
    d >> 53 & 3 == 1
}

/// A descriptor of the GDT, if it is at hand.
#[inline(always)]
fn descriptor(cpu: &Cpu, selector: u16) -> Option<u64> {
    let offset = Selector(selector).offset();
    if selector & 4 != 0 || offset == 0 || offset + 7 > cpu.env.gdtr.limit.into() {
        return None;
    }
    cpu.peek(cpu.env.gdtr.base.wrapping_add(offset), View::Super)
}

fn segment(selector: u16, d: u64) -> Segment {
    Segment::from_descriptor(selector, Descriptor(d).low(), Descriptor(d).high())
}

/// A stack pointer of the TSS.
fn tss_stack(cpu: &Cpu, offset: u64) -> Option<u64> {
    let tr = &cpu.env.tr;
    if offset + 7 > tr.limit.into() {
        return None;
    }
    cpu.peek(tr.base.wrapping_add(offset), View::Super)
}

/// Enters the handler of an event; `None` if that is not simple.
#[inline]
pub(super) fn enter(cpu: &mut Cpu, e: &Event) -> Option<()> {
    let env = &cpu.env;
    if env.mode_key & (key::LMA | key::V86) != key::LMA {
        return None;
    }
    let cpl = env.cpl();
    let at = u64::from(e.vector) * 16;
    if at + 15 > env.idtr.limit.into() {
        return None;
    }
    let [gate, upper] = cpu.peek_words(env.idtr.base.wrapping_add(at), View::Super)?;
    let selector = (gate >> 16) as u16;
    if !is(gate, GATE) || is_software(e.kind) && dpl(gate) < cpl {
        return None;
    }
    let code = descriptor(cpu, selector)?;
    let new = dpl(code);
    let rip = gate & 0xffff | gate >> 32 & 0xffff_0000 | upper << 32;
    if !is(code, CODE) || !is_64bit(code) || new > cpl || !env.canonical(rip) {
        return None;
    }
    let ist = gate >> 32 & 7;
    let rsp = if ist != 0 {
        tss_stack(cpu, tss64::IST1 + (ist - 1) * 8)?
    } else if new < cpl {
        tss_stack(cpu, tss64::RSP0 + u64::from(new) * 8)?
    } else if env.is_64bit() {
        env.gpr[4]
    } else {
        return None;
    };
    if !env.canonical(rsp) {
        return None;
    }
    let (ss, cs) = (u64::from(env.seg[SS].selector), u64::from(env.seg[CS].selector));
    let words = [return_rip(cpu, e), cs, pushed_flags(cpu, e), env.gpr[4], ss];
    let mut sp = (rsp & !15).wrapping_sub(40);
    let done = match e.error {
        None => cpu.poke_words(sp, words, stack_view(new)),
        Some(code) => {
            sp = sp.wrapping_sub(8);
            let [a, b, c, d, e] = words;
            cpu.poke_words(sp, [code.into(), a, b, c, d, e], stack_view(new))
        }
    };
    if !done {
        return None;
    }
    let env = &mut cpu.env;
    (env.gpr[4], env.rip) = (sp, rip);
    env.eflags_sys &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
    if gate >> 40 & 1 == 0 {
        env.eflags_sys &= !rflags::IF;
    }
    env.seg[CS] = segment(selector & !3 | u16::from(new), code);
    if new < cpl {
        env.seg[SS] = null_stack(new.into(), new);
    }
    cpu.segments_changed();
    Some(())
}

/// IRETQ from 64-bit code to 64-bit code; `None` if it is not simple.
#[inline]
pub(super) fn iretq(cpu: &mut Cpu) -> Option<()> {
    let cpl = cpu.env.cpl();
    let [rip, cs, image, rsp, ss] = cpu.peek_words(cpu.env.gpr[4], View::Stack)?;
    let (cs, ss) = (cs as u16, ss as u16);
    let rpl = Selector(cs).rpl();
    let code = descriptor(cpu, cs)?;
    if !is(code, CODE) || !is_64bit(code) || rpl < cpl || dpl(code) != rpl || !cpu.env.canonical(rip) {
        return None;
    }
    if Selector(ss).rpl() != rpl {
        return None;
    }
    let stack = if Selector(ss).is_null() {
        if rpl == 3 {
            return None;
        }
        null_stack(ss, rpl)
    } else {
        let d = descriptor(cpu, ss)?;
        if !is(d, STACK) || dpl(d) != rpl {
            return None;
        }
        segment(ss, d)
    };
    let change = flags_changed(cpu, 8);
    let env = &mut cpu.env;
    env.eflags_sys = (env.eflags_sys & !change | image & change) & rflags::SYSTEM;
    flags::set(env, image & rflags::STATUS);
    (env.rip, env.gpr[4]) = (rip, rsp);
    env.seg[CS] = segment(cs, code);
    env.seg[SS] = stack;
    cpu.segments_changed();
    if rpl > cpl {
        cpu.drop_inner_segments();
    }
    Some(())
}
