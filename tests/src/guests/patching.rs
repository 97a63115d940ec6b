//! Code that one processor runs while another one changes it, by the rules for that (Intel SDM volume 3, 9.1.3): the one
//! that changes tells the other, which runs a serialising instruction before it goes on.
//!
//! The processor that runs the code also stores beside it and into it, so that an engine with translations of its own
//! for each processor makes them anew all the time, mostly while the other one is about to store.

use iced_x86::code_asm::*;

use super::Guest;
use super::exits::apic_on;
use super::image::{Asm, Code, IDT32, sel};
use super::smp::{second, start, two, until};

/// A page of code, and a page of variables.
const PAGE: u32 = 0x60_0000;
const VARS: u32 = 0x60_2000;
/// The function: MOV EAX, imm32 with the immediate in one aligned dword; RET.
const WHOLE: u32 = PAGE + 0x40;
const IMMEDIATE: u32 = WHOLE + 4;
/// The same with an immediate that lies in two cache lines.
const TORN: u32 = PAGE + 0xfd;
/// Bytes that nobody runs, beside the code and far from it.
const BESIDE: u32 = WHOLE + 16;
const FAR: u32 = PAGE + 0x800;

/// Number of the last change, of the last change that the other has heard of, calls made, the last call's result, results
/// that cannot be, and the end.
const CHANGE: u32 = VARS;
const HEARD: u32 = VARS + 0x40;
const CALLS: u32 = VARS + 0x80;
const RESULT: u32 = VARS + 0x84;
const WRONG: u32 = VARS + 0x88;
const END: u32 = VARS + 0xc0;

/// How often the code is changed.
const CHANGES: u32 = 2000;

/// Clears the variables.
fn clear(c: &mut Code) -> Asm {
    c.mov(edi, VARS)?;
    c.mov(ecx, 64)?;
    c.xor(eax, eax)?;
    c.rep().stosd()
}

/// The processor that calls `function`, looks at the result, and hears of changes between calls.
fn caller(c: &mut Code, function: u32) -> Asm {
    let mut again = c.create_label();
    let mut heard = c.create_label();
    let mut possible = c.create_label();
    let mut end = c.create_label();
    c.set_label(&mut again)?;
    c.mov(ebp, function)?;
    c.call(ebp)?;
    // Four equal bytes, or what the breakpoint gives.
    c.mov(edx, eax)?;
    c.rol(edx, 8)?;
    c.cmp(edx, eax)?;
    c.je(possible)?;
    c.inc(dword_ptr(WRONG))?;
    c.set_label(&mut possible)?;
    c.mov(dword_ptr(RESULT), eax)?;
    c.inc(dword_ptr(CALLS))?;
    c.mov(esi, dword_ptr(CHANGE))?;
    c.cmp(esi, dword_ptr(HEARD))?;
    c.je(heard)?;
    c.xor(eax, eax)?;
    c.cpuid()?;
    c.mov(dword_ptr(HEARD), esi)?;
    c.jmp(again)?;
    c.set_label(&mut heard)?;
    c.cmp(dword_ptr(END), 0)?;
    c.jne(end)?;
    // Every eighth call is followed by a store among the code's bytes.
    c.mov(eax, dword_ptr(CALLS))?;
    c.test(al, 7)?;
    c.jne(again)?;
    c.mov(byte_ptr(BESIDE), al)?;
    c.mov(byte_ptr(TORN + 8), al)?;
    c.pause()?;
    c.jmp(again)?;
    c.set_label(&mut end)?;
    c.mov(dword_ptr(END), 2)?;
    c.cli()?;
    c.hlt()
}

/// Tells the other processor of a change and waits until it has heard of it, storing far from the code meanwhile.
fn tell(c: &mut Code) -> Asm {
    let mut wait = c.create_label();
    c.inc(dword_ptr(CHANGE))?;
    c.set_label(&mut wait)?;
    c.pause()?;
    c.mov(dword_ptr(FAR), eax)?;
    c.mov(eax, dword_ptr(CHANGE))?;
    c.cmp(eax, dword_ptr(HEARD))?;
    c.jne(wait)
}

/// Waits for two calls from their beginning, then counts it as wrong if the last one's result is not EBX.
fn expect(c: &mut Code) -> Asm {
    let mut wait = c.create_label();
    let mut right = c.create_label();
    c.mov(edx, dword_ptr(CALLS))?;
    c.set_label(&mut wait)?;
    c.pause()?;
    c.mov(dword_ptr(FAR), eax)?;
    c.mov(eax, dword_ptr(CALLS))?;
    c.sub(eax, edx)?;
    c.cmp(eax, 2)?;
    c.jb(wait)?;
    c.cmp(ebx, dword_ptr(RESULT))?;
    c.je(right)?;
    c.inc(dword_ptr(WRONG + 4))?;
    c.set_label(&mut right)?;
    Ok(())
}

/// Some time in which nothing is stored and nothing jumps.
fn dawdle(c: &mut Code) -> Asm {
    c.mov(ebp, 0x7fff_fff1)?;
    c.xor(edx, edx)?;
    for _ in 0..120 {
        c.div(ebp)?;
    }
    Ok(())
}

/// What was wrong, and the other processor's end.
fn finish(c: &mut Code) -> Asm {
    c.trial("impossible results:", |c| {
        c.mov(dword_ptr(END), 1)?;
        until(c, END, 2)?;
        c.mov(eax, dword_ptr(WRONG))?;
        c.hex()
    })?;
    c.trial("old results:", |c| {
        c.mov(eax, dword_ptr(WRONG + 4))?;
        c.hex()
    })?;
    c.exit()
}

/// Changes 1 to [`CHANGES`], each four equal bytes in EBX, with its number in EDI.
fn changes(c: &mut Code, each: impl FnOnce(&mut Code) -> Asm) -> Asm {
    let mut next = c.create_label();
    c.mov(edi, 1)?;
    c.set_label(&mut next)?;
    c.mov(eax, edi)?;
    c.and(eax, 0x7f)?;
    c.imul_3(ebx, eax, 0x0101_0101)?;
    each(c)?;
    c.inc(edi)?;
    c.cmp(edi, CHANGES as i32)?;
    c.jbe(next)
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    two("one_processor_patches_what_another_runs", |g| {
        let entry = g.code(32, |c| caller(c, WHOLE))?;
        second(g, entry)?;
        g.code(32, |c| {
            apic_on(c)?; clear(c)?;
            c.mov(dword_ptr(WHOLE), 0xb890_9090u32 as i32)?; c.mov(dword_ptr(IMMEDIATE), 0)?; c.mov(dword_ptr(IMMEDIATE + 4), 0xc3)?;
            c.trial("changes:", |c| {
                start(c)?;
                changes(c, |c| { dawdle(c)?; c.mov(dword_ptr(IMMEDIATE), ebx)?; tell(c)?; expect(c) })
            })?;
            finish(c)
        })
    }),
    two("one_processor_patches_by_breakpoints", |g| {
        let entry = g.code(32, |c| caller(c, TORN))?;
        second(g, entry)?;
        // INT3 in place of the instruction: all ones are its result.
        let breakpoint = g.code(32, |c| { c.add(dword_ptr(esp), 4)?; c.mov(eax, -1)?; c.iretd() })?;
        let gate = u64::from(breakpoint & 0xffff) | u64::from(sel::CODE32) << 16 | 0x8e << 40 | u64::from(breakpoint >> 16) << 48;
        g.patch(IDT32 + 8 * 3, &gate.to_le_bytes());
        g.code(32, |c| {
            apic_on(c)?; clear(c)?;
            c.mov(byte_ptr(TORN), 0xb8u32 as i32)?; c.mov(dword_ptr(TORN + 1), 0)?; c.mov(byte_ptr(TORN + 5), 0xc3u32 as i32)?;
            c.trial("changes:", |c| {
                start(c)?;
                changes(c, |c| {
                    dawdle(c)?; c.mov(byte_ptr(TORN), 0xccu32 as i32)?; tell(c)?;
                    dawdle(c)?; c.mov(dword_ptr(TORN + 1), ebx)?; tell(c)?;
                    dawdle(c)?; c.mov(byte_ptr(TORN), 0xb8u32 as i32)?; tell(c)?; expect(c)
                })
            })?;
            finish(c)
        })
    }),
];
