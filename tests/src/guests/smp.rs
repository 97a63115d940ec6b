//! Several processors and their messages (Intel SDM volume 3, chapters 8 and 10), and interrupts by the IOAPIC.

use iced_x86::code_asm::*;

use super::exits::{apic, apic_on, pics, timer_once, wait};
use super::image::{BASE, Code, FREE, Image, Mode, SCRATCH, sel};
use super::{Build, Guest, one};

/// Where the second processor tells that it runs, and a lock.
const ALIVE: u32 = FREE;
const COUNTER: u32 = FREE + 0x40;

pub(super) const fn two(
    name: &'static str,
    build: fn(&mut Image) -> Result<u32, iced_x86::IcedError>,
) -> Guest {
    Guest { name, mode: Mode::Flat32, cpus: 2, build: Build::Many(build) }
}

/// Lets the second processor start in `entry`, 32-bit code with a stack of its own.
pub(super) fn second(g: &mut Image, entry: u32) -> Result<(), iced_x86::IcedError> {
    let start = g.code(32, |c| {
        c.mov(eax, sel::DATA32)?;
        c.mov(ds, eax)?;
        c.mov(es, eax)?;
        c.mov(ss, eax)?;
        c.mov(esp, 0x2_8000u32)?;
        c.mov(eax, entry)?;
        c.jmp(eax)
    })?;
    let climb = g.code(16, |c| {
        c.cli()?;
        c.mov(ax, cs)?;
        c.mov(ds, ax)?;
        c.db(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x2f, 0x66, 0x0f, 0x01, 0x1e, 0x08, 0x2f])?;
        c.mov(eax, cr0)?;
        c.or(al, 1u32)?;
        c.and(eax, 0x9fff_ffffu32 as i32)?;
        c.mov(cr0, eax)?;
        c.db(&[0x66, 0xea])?;
        c.dd(&[start])?;
        c.dw(&[sel::CODE32 as u16])
    })?;
    // JMP from offset 0 of segment 1000h.
    let distance = (climb as u16).wrapping_sub(3).to_le_bytes();
    g.patch(0, &[0xe9, distance[0], distance[1]]);
    Ok(())
}

/// INIT, then a start-up message, to APIC 1.
pub(super) fn start(c: &mut Code) -> super::image::Asm {
    apic(c, 0x310, 1 << 24)?;
    for message in [0x4500, 0x4610] {
        apic(c, 0x300, message)?;
        wait(c)?;
    }
    Ok(())
}

/// Waits until the dword at `at` is `value`.
pub(super) fn until(c: &mut Code, at: u32, value: i32) -> super::image::Asm {
    let mut again = c.create_label();
    c.set_label(&mut again)?;
    c.pause()?;
    c.cmp(dword_ptr(at), value)?;
    c.jne(again)
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    two("second_processor_starts", |g| {
        let entry = g.code(32, |c| {
            c.mov(ecx, 0x1b)?; c.rdmsr()?; c.and(eax, 0x100)?; c.mov(dword_ptr(ALIVE + 4), eax)?;
            c.mov(ecx, 0xfee0_0020u32)?; c.mov(eax, dword_ptr(ecx))?; c.mov(dword_ptr(ALIVE + 8), eax)?;
            c.mov(dword_ptr(ALIVE), 1)?; c.cli()?; c.hlt()
        })?;
        second(g, entry)?;
        g.code(32, |c| {
            apic_on(c)?;
            c.trial("it runs:", |c| { start(c)?; until(c, ALIVE, 1) })?;
            c.trial("it is no bootstrap processor:", |c| { c.mov(eax, dword_ptr(ALIVE + 4))?; c.hex() })?;
            c.trial("its APIC's number:", |c| { c.mov(eax, dword_ptr(ALIVE + 8))?; c.hex() })?;
            c.exit()
        })
    }),
    two("both_count_under_lock", |g| {
        let count = |c: &mut Code| {
            let mut again = c.create_label();
            c.mov(ecx, 20_000)?; c.set_label(&mut again)?; c.lock().inc(dword_ptr(COUNTER))?; c.dec(ecx)?; c.jne(again)
        };
        let entry = g.code(32, |c| { c.mov(dword_ptr(ALIVE), 1)?; count(c)?; c.mov(dword_ptr(ALIVE), 2)?; c.cli()?; c.hlt() })?;
        second(g, entry)?;
        g.code(32, |c| {
            apic_on(c)?;
            c.mov(dword_ptr(COUNTER), 0)?;
            c.trial("sum:", |c| { start(c)?; count(c)?; until(c, ALIVE, 2)?; c.mov(eax, dword_ptr(COUNTER))?; c.hex() })?;
            c.exit()
        })
    }),
    two("messages_between_processors", |g| {
        let entry = g.code(32, |c| {
            let mut again = c.create_label();
            apic(c, 0xf0, 0x13f)?; c.mov(dword_ptr(ALIVE), 1)?;
            c.set_label(&mut again)?; c.sti()?; c.hlt()?; c.cli()?; c.inc(dword_ptr(ALIVE))?; c.jmp(again)
        })?;
        second(g, entry)?;
        g.code(32, |c| {
            apic_on(c)?;
            c.trial("start:", |c| { start(c)?; until(c, ALIVE, 1) })?;
            c.trial("fixed:", |c| { apic(c, 0x300, 0x4031)?; until(c, ALIVE, 2) })?;
            c.trial("to all others:", |c| { apic(c, 0x300, 0xc_4032)?; until(c, ALIVE, 3) })?;
            c.exit()
        })
    }),
    two("code_that_another_processor_changes", |g| {
        let entry = g.code(32, |c| { c.mov(byte_ptr(FREE + 0x100), 0x48u32)?; c.mov(dword_ptr(ALIVE), 1)?; c.cli()?; c.hlt() })?;
        second(g, entry)?;
        g.code(32, |c| {
            apic_on(c)?;
            c.mov(dword_ptr(FREE + 0x100), 0xc340)?;
            c.trial("before and after:", |c| {
                c.mov(edi, FREE + 0x100)?; c.xor(eax, eax)?; c.call(edi)?; c.mov(ebx, eax)?; start(c)?; until(c, ALIVE, 1)?;
                c.push(ebx)?; c.xor(eax, eax)?; c.cpuid()?; c.pop(eax)?; c.call(edi)?; c.call(edi)?; c.hex()
            })?;
            c.exit()
        })
    }),
    one("timer_by_the_ioapic", Mode::Flat32, |c| {
        apic_on(c)?;
        // Input 2, edge, vector 33h, to APIC 0.
        for (register, value) in [(0x15u32, 0), (0x14, 0x33)] {
            c.mov(ecx, 0xfec0_0000u32)?; c.mov(dword_ptr(ecx), register)?; c.mov(dword_ptr(ecx + 0x10), value)?;
        }
        c.trial("channel 0:", |c| { timer_once(c, 1000)?; c.sti()?; c.hlt()?; c.cli() })?;
        c.trial("masked:", |c| {
            c.mov(ecx, 0xfec0_0000u32)?; c.mov(dword_ptr(ecx), 0x14)?; c.mov(dword_ptr(ecx + 0x10), 0x1_0033)?;
            timer_once(c, 100)?; c.sti()?; wait(c)?; c.cli()
        })
    }),
    one("messages_of_the_hpet", Mode::Flat32, |c| {
        const HPET: u32 = 0xfed0_0000;
        // Ten milliseconds from now, sleeping. The upper half is zero since the start and is not written again: QEMU's
        // HPET takes a comparator of the past for due at once, and with the old lower half it would be of the past.
        let soon = |c: &mut Code, timer: u32| {
            let at = HPET + 0x20 * timer;
            c.mov(ecx, at + 0x108)?;
            c.mov(eax, HPET + 0xf0)?; c.mov(eax, dword_ptr(eax))?; c.add(eax, 1_000_000)?; c.mov(dword_ptr(ecx), eax)?;
            c.sti()?; c.hlt()?; c.cli()
        };
        let goes = |c: &mut Code, timer: u32, vector: u32| {
            c.mov(ecx, HPET + 0x20 * timer + 0x110)?; c.mov(dword_ptr(ecx), vector)?; c.mov(dword_ptr(ecx + 4), 0xfee0_0000u32)
        };
        apic_on(c)?;
        c.mov(ecx, HPET + 0x10)?; c.mov(dword_ptr(ecx), 1)?;
        for timer in [0, 1] {
            goes(c, timer, 0x31 + timer)?;
            // Far away, for who takes all ones for the past.
            c.mov(ecx, HPET + 0x20 * timer + 0x100)?; c.mov(dword_ptr(ecx + 0xc), 0)?; c.mov(dword_ptr(ecx), 0x4004)?;
        }
        c.trial("a message:", |c| soon(c, 0))?;
        c.trial("again, three times:", |c| { for _ in 0..3 { soon(c, 0)?; } Ok(()) })?;
        c.trial("another timer:", |c| soon(c, 1))?;
        c.trial("it goes elsewhere:", |c| { goes(c, 0, 0x41)?; soon(c, 0) })?;
        c.trial("the other as before:", |c| soon(c, 1))?;
        c.trial("at an APIC that is off, nothing:", |c| {
            apic(c, 0xf0, 0x3f)?; goes(c, 0, 0x42)?;
            c.mov(ecx, HPET + 0x108)?; c.mov(eax, HPET + 0xf0)?; c.mov(eax, dword_ptr(eax))?; c.add(eax, 10_000)?; c.mov(dword_ptr(ecx), eax)?;
            c.sti()?; wait(c)?; c.cli()
        })
    }),
    one("priorities_of_interrupts", Mode::Flat32, |c| {
        apic_on(c)?;
        c.trial("highest first:", |c| { for v in [0x31u32, 0x41, 0x35] { apic(c, 0x300, 0x4_0000 | v)?; } wait(c)?; c.sti()?; wait(c)?; c.cli() })?;
        c.trial("the TPR holds back:", |c| { apic(c, 0x80, 0x40)?; apic(c, 0x300, 0x4_0035)?; c.sti()?; wait(c)?; c.say(" lower")?; apic(c, 0x80, 0)?; wait(c)?; c.cli() })?;
        c.trial("the same twice is one:", |c| { apic(c, 0x300, 0x4_0035)?; apic(c, 0x300, 0x4_0035)?; wait(c)?; c.sti()?; wait(c)?; c.cli() })?;
        c.trial("scratch:", |c| { c.mov(eax, dword_ptr(BASE + SCRATCH))?; c.and(eax, 0) })
    }),
    one("pic_priorities_and_polling", Mode::Flat32, |c| {
        apic_on(c)?;
        pics(c, 0xffff)?;
        c.trial("request while masked:", |c| {
            let mut again = c.create_label();
            timer_once(c, 100)?; c.mov(al, 0x0au32)?; c.out(0x20, al)?; c.mov(ecx, 1_000_000u32)?;
            c.set_label(&mut again)?; c.in_(al, 0x20)?; c.test(al, 1u32)?; c.loope(again)?; c.and(eax, 1)?; c.hex()
        })?;
        c.trial("unmasked:", |c| { c.mov(al, 0xfeu32)?; c.sti()?; c.out(0x21, al)?; wait(c)?; c.cli() })
    }),
];
