//! One guest for each reason for which hardware virtualisation leaves a guest (Intel SDM volume 3, appendix C); there it
//! is the hypervisor's part that is tested, here that all engines agree.

use iced_x86::code_asm::*;

use super::image::{Asm, BASE, Code, FREE, IDT32, Image, Mode, SCRATCH, sel};
use super::{Guest, many, one};

/// Points a vector's 32-bit gate at `to`.
pub(super) fn gate32(g: &mut Image, vector: u32, to: u32) {
    let gate = u64::from(to & 0xffff) | u64::from(sel::CODE32) << 16 | 0x8e << 40 | u64::from(to >> 16) << 48;
    g.patch(IDT32 + 8 * vector, &gate.to_le_bytes());
}

/// Writes a register of the local APIC.
pub(super) fn apic(c: &mut Code, register: u32, value: u32) -> Asm {
    c.mov(eax, 0xfee0_0000 + register)?;
    if c.bits == 64 { c.mov(dword_ptr(rax), value as i32) } else { c.mov(dword_ptr(eax), value) }
}

/// Switches the APIC on, without the PICs' interrupts.
pub(super) fn apic_on(c: &mut Code) -> Asm {
    apic(c, 0xf0, 0x13f)?;
    apic(c, 0x350, 0x1_0700)
}

/// Sets the PICs up with vectors 20h and 28h and these bits masked, and lets the APIC pass their interrupts on.
pub(super) fn pics(c: &mut Code, mask: u16) -> Asm {
    apic(c, 0x350, 0x700)?;
    for (port, value) in [
        (0x20u32, 0x11u32),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, u32::from(mask & 0xff)),
        (0xa1, u32::from(mask >> 8)),
    ] {
        c.mov(al, value)?;
        c.out(port, al)?;
    }
    Ok(())
}

/// The timer's channel 0 raises its interrupt once, `ticks` of 838 ns from now.
pub(super) fn timer_once(c: &mut Code, ticks: u16) -> Asm {
    for (port, value) in [(0x43u32, 0x30u32), (0x40, u32::from(ticks & 0xff)), (0x40, u32::from(ticks >> 8))]
    {
        c.mov(al, value)?;
        c.out(port, al)?;
    }
    Ok(())
}

/// A while in which what was sent arrives.
pub(super) fn wait(c: &mut Code) -> Asm {
    let mut again = c.create_label();
    c.mov(ecx, 20_000u32)?;
    c.set_label(&mut again)?;
    c.pause()?;
    c.dec(ecx)?;
    c.jne(again)
}

/// An instruction that needs VMX, outside of it.
fn vmx(c: &mut Code, name: &str, body: fn(&mut Code) -> Asm) -> Asm {
    c.trial(&format!("{name} in ring 0:"), body)?;
    c.user_trial(&format!("{name} in ring 3:"), 0, body)
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    one("exception_nmi", Mode::Flat32, |c| {
        c.trial("UD2:", |c| c.ud2())?;
        c.trial("divide:", |c| { c.xor(ecx, ecx)?; c.div(ecx) })?;
        c.trial("NMI by APIC:", |c| { apic_on(c)?; apic(c, 0x310, 0)?; apic(c, 0x300, 0x4400)?; wait(c) })
    }),
    one("external_interrupt", Mode::Flat32, |c| {
        apic_on(c)?;
        pics(c, 0xfffe)?;
        c.trial("timer:", |c| { timer_once(c, 100)?; c.sti()?; c.hlt()?; c.cli() })?;
        c.trial("APIC to itself:", |c| { c.sti()?; apic(c, 0x300, 0x4_0031)?; wait(c)?; c.cli() })
    }),
    one("triple_fault", Mode::Flat32, |c| {
        c.say("no gates:\n")?;
        c.mov(dword_ptr(BASE + SCRATCH), 0)?;
        c.mov(dword_ptr(BASE + SCRATCH + 4), 0)?;
        c.lidt(fword_ptr(BASE + SCRATCH))?;
        c.ud2()?;
        c.say("goes on\n")
    }),
    many("nmi_window", Mode::Flat32, |g| {
        // The handler sends three more, of which one is kept until its IRET.
        let handler = g.code(32, |c| {
            let mut done = c.create_label();
            c.pushad()?;
            c.say(" <")?;
            c.inc(dword_ptr(BASE + SCRATCH))?;
            c.cmp(dword_ptr(BASE + SCRATCH), 1)?;
            c.jne(done)?;
            for _ in 0..3 { apic(c, 0x300, 0x4400)?; wait(c)?; }
            c.set_label(&mut done)?;
            c.say(">")?;
            c.popad()?;
            c.iretd()
        })?;
        gate32(g, 2, handler);
        g.code(32, |c| {
            apic_on(c)?;
            c.trial("NMIs within an NMI:", |c| { apic(c, 0x310, 0)?; apic(c, 0x300, 0x4400)?; wait(c)?; wait(c) })?;
            c.mov(eax, dword_ptr(BASE + SCRATCH))?;
            c.hex()?;
            c.exit()
        })
    }),
    one("io_instruction", Mode::Flat32, |c| {
        c.trial("OUT and IN:", |c| { c.mov(al, 0x5a)?; c.out(0x80, al)?; c.in_(al, 0x92)?; c.and(eax, 2)?; c.hex() })?;
        c.trial("OUTS:", |c| {
            c.mov(esi, FREE)?; c.mov(dword_ptr(esi), 0x6f6c_6c65)?; c.mov(ecx, 4)?; c.mov(dx, 0xe9)?; c.rep().outsb()?;
            c.mov(eax, esi)?; c.hex()?; c.mov(eax, ecx)?; c.hex()
        })?;
        c.user_trial("ring 3, allowed by the bitmap:", 0, |c| { c.mov(al, 0x21)?; c.out(0xe9, al) })?;
        c.user_trial("ring 3, forbidden:", 0, |c| c.out(0x80, al))?;
        c.user_trial("ring 3, behind the bitmap:", 0, |c| { c.mov(dx, 0x110)?; c.in_(al, dx) })?;
        c.user_trial("ring 3, two ports, one forbidden:", 0, |c| c.in_(ax, 0x7f))?;
        c.user_trial("ring 3 with IOPL 3:", 0x3000, |c| c.out(0x80, al))
    }),
    one("cr_access", Mode::Flat32, |c| {
        c.trial("CR4 reserved:", |c| { c.mov(eax, cr4)?; c.or(eax, 1 << 28)?; c.mov(cr4, eax) })?;
        c.trial("CR2 keeps:", |c| { c.mov(eax, 0x1234_5678)?; c.mov(cr2, eax)?; c.mov(eax, cr2)?; c.hex() })?;
        c.trial("CLTS and LMSW:", |c| {
            c.mov(eax, cr0)?; c.or(eax, 8)?; c.mov(cr0, eax)?; c.clts()?; c.smsw(eax)?; c.and(eax, 8)?; c.hex()?;
            c.mov(eax, 9)?; c.lmsw(ax)?; c.smsw(eax)?; c.and(eax, 0xf)?; c.hex()?; c.clts()
        })?;
        c.trial("LMSW does not clear PE:", |c| { c.xor(eax, eax)?; c.lmsw(ax)?; c.smsw(eax)?; c.and(eax, 1)?; c.hex() })?;
        c.trial("CR1:", |c| c.db(&[0x0f, 0x20, 0xc8]))?;
        c.user_trial("ring 3:", 0, |c| c.mov(eax, cr0))
    }),
    one("dr_access", Mode::Flat32, |c| {
        c.trial("DR0 keeps:", |c| { c.mov(eax, 0x1234_5678)?; c.mov(dr0, eax)?; c.xor(eax, eax)?; c.mov(eax, dr0)?; c.hex() })?;
        c.trial("DR7 has its fixed bit:", |c| { c.mov(eax, 0xd000)?; c.mov(dr7, eax)?; c.mov(eax, dr7)?; c.hex()?; c.mov(eax, 0x400)?; c.mov(dr7, eax) })?;
        c.trial("DR4 is DR6:", |c| { c.db(&[0x0f, 0x21, 0xe0])?; c.hex() })?;
        c.trial("DR4 with CR4.DE:", |c| { c.mov(eax, cr4)?; c.or(eax, 8)?; c.mov(cr4, eax)?; c.db(&[0x0f, 0x21, 0xe0]) })?;
        c.mov(eax, cr4)?; c.and(eax, !8)?; c.mov(cr4, eax)?;
        c.trial("general detect:", |c| { c.mov(eax, 0x2400)?; c.mov(dr7, eax)?; c.mov(eax, dr0) })?;
        c.user_trial("ring 3:", 0, |c| c.mov(eax, dr0))
    }),
    one("cpuid", Mode::Flat32, |c| {
        c.trial("leaf 0 has leaf 1:", |c| { c.xor(eax, eax)?; c.cpuid()?; c.test(eax, eax)?; c.setne(al)?; c.movzx(eax, al)?; c.hex() })?;
        c.trial("FPU, TSC, MSR, PAE, APIC:", |c| { c.mov(eax, 1)?; c.cpuid()?; c.mov(eax, edx)?; c.and(eax, 0x271)?; c.hex() })?;
        c.user_trial("ring 3:", 0, |c| { c.mov(eax, 1)?; c.cpuid() })
    }),
    one("msr_read", Mode::Flat32, |c| {
        c.trial("EFER:", |c| { c.mov(ecx, 0xc000_0080u32)?; c.rdmsr()?; c.and(eax, 0x500)?; c.hex()?; c.show(edx) })?;
        c.trial("APIC base:", |c| { c.mov(ecx, 0x1b)?; c.rdmsr()?; c.hex()?; c.show(edx) })?;
        c.trial("SYSENTER_CS:", |c| { c.mov(ecx, 0x174)?; c.rdmsr()?; c.hex() })?;
        c.user_trial("ring 3:", 0, |c| { c.mov(ecx, 0x1b)?; c.rdmsr() })
    }),
    one("msr_write", Mode::Flat32, |c| {
        c.trial("SYSENTER_EIP keeps:", |c| { c.mov(ecx, 0x176)?; c.mov(eax, 0x1234)?; c.xor(edx, edx)?; c.wrmsr()?; c.xor(eax, eax)?; c.rdmsr()?; c.hex() })?;
        c.trial("EFER reserved:", |c| { c.mov(ecx, 0xc000_0080u32)?; c.mov(eax, 0x10)?; c.xor(edx, edx)?; c.wrmsr() })?;
        c.trial("PAT of a bad type:", |c| { c.mov(ecx, 0x277)?; c.mov(eax, 2)?; c.xor(edx, edx)?; c.wrmsr() })?;
        c.trial("FS base beyond canonical:", |c| { c.mov(ecx, 0xc000_0100u32)?; c.xor(eax, eax)?; c.mov(edx, 0x4000_0000)?; c.wrmsr() })?;
        c.user_trial("ring 3:", 0, |c| { c.mov(ecx, 0x176)?; c.wrmsr() })
    }),
    one("interrupt_window", Mode::Flat32, |c| {
        apic_on(c)?;
        c.trial("pending at STI:", |c| { apic(c, 0x300, 0x4_0031)?; c.sti()?; c.nop()?; c.cli() })?;
        c.trial("not in STI's shadow:", |c| { apic(c, 0x300, 0x4_0032)?; c.sti()?; c.cli()?; c.nop() })?;
        c.trial("at POPF at once:", |c| { c.push(0x202)?; c.popfd()?; c.cli() })?;
        c.trial("not in MOV SS's shadow:", |c| {
            apic(c, 0x300, 0x4_0033)?; c.mov(ax, ss)?; c.sti()?; c.mov(ss, ax)?; c.say(" x")?; c.cli()
        })
    }),
    one("hlt", Mode::Flat32, |c| {
        apic_on(c)?;
        c.trial("pending:", |c| { apic(c, 0x300, 0x4_0031)?; c.sti()?; c.hlt()?; c.cli() })?;
        c.trial("APIC timer:", |c| {
            apic(c, 0x3e0, 0xb)?; apic(c, 0x320, 0x34)?; apic(c, 0x380, 10_000)?; c.sti()?; c.hlt()?; c.cli()
        })?;
        c.user_trial("ring 3:", 0, |c| c.hlt())
    }),
    one("invd", Mode::Flat32, |c| {
        c.user_trial("ring 3:", 0, |c| c.invd())?;
        c.trial("ring 0:", |c| c.invd())
    }),
    one("invlpg", Mode::Paged32, |c| {
        c.trial("a stale translation goes:", |c| {
            c.mov(eax, dword_ptr(0x40_0000))?;
            c.mov(dword_ptr(0x40_0000), 1)?; c.mov(dword_ptr(0x40_1000), 2)?;
            c.mov(dword_ptr(BASE + super::image::PT32), 0x40_1007u32)?; c.invlpg(byte_ptr(0x40_0000))?;
            c.mov(eax, dword_ptr(0x40_0000))?; c.hex()
        })?;
        c.trial("register form:", |c| c.db(&[0x0f, 0x01, 0xf8]))?;
        c.user_trial("ring 3:", 0, |c| c.invlpg(byte_ptr(eax)))
    }),
    one("rdpmc", Mode::Flat32, |c| {
        c.trial("counter that is not there:", |c| { c.mov(ecx, 0x1234_5678)?; c.rdpmc() })?;
        c.user_trial("ring 3 without CR4.PCE:", 0, |c| { c.xor(ecx, ecx)?; c.rdpmc() })
    }),
    one("vmcall", Mode::Flat32, |c| vmx(c, "VMCALL", |c| c.vmcall())),
    one("vmclear", Mode::Flat32, |c| vmx(c, "VMCLEAR", |c| c.vmclear(qword_ptr(FREE)))),
    one("vmlaunch", Mode::Flat32, |c| vmx(c, "VMLAUNCH", |c| c.vmlaunch())),
    one("vmptrld", Mode::Flat32, |c| vmx(c, "VMPTRLD", |c| c.vmptrld(qword_ptr(FREE)))),
    one("vmptrst", Mode::Flat32, |c| vmx(c, "VMPTRST", |c| c.vmptrst(qword_ptr(FREE)))),
    one("vmread", Mode::Flat32, |c| vmx(c, "VMREAD", |c| c.vmread(eax, ebx))),
    one("vmresume", Mode::Flat32, |c| vmx(c, "VMRESUME", |c| c.vmresume())),
    one("vmwrite", Mode::Flat32, |c| vmx(c, "VMWRITE", |c| c.vmwrite(eax, ebx))),
    one("vmxoff", Mode::Flat32, |c| vmx(c, "VMXOFF", |c| c.vmxoff())),
    one("vmxon", Mode::Flat32, |c| vmx(c, "VMXON", |c| c.vmxon(qword_ptr(FREE)))),
    one("tpr_below_threshold", Mode::Long, |c| {
        apic_on(c)?;
        c.trial("CR8 holds it back:", |c| {
            c.mov(eax, 5)?; c.mov(cr8, rax)?; c.sti()?; apic(c, 0x300, 0x4_0031)?; c.nop()?; wait(c)?; c.say(" lower")?;
            c.xor(eax, eax)?; c.mov(cr8, rax)?; wait(c)?; c.cli()
        })?;
        c.trial("CR8 is the TPR's upper half:", |c| { c.mov(eax, 7)?; c.mov(cr8, rax)?; c.mov(ecx, 0xfee0_0080u32)?; c.mov(eax, dword_ptr(rcx))?; c.hex()?; c.xor(eax, eax)?; c.mov(cr8, rax) })?;
        c.trial("reserved bits:", |c| { c.mov(eax, 0x10)?; c.mov(cr8, rax) })
    }),
    one("apic_access", Mode::Flat32, |c| {
        c.trial("version:", |c| { c.mov(ecx, 0xfee0_0030u32)?; c.mov(eax, dword_ptr(ecx))?; c.and(eax, 0xf0)?; c.hex() })?;
        c.trial("software enable:", |c| { apic(c, 0xf0, 0x13f)?; c.mov(ecx, 0xfee0_00f0u32)?; c.mov(eax, dword_ptr(ecx))?; c.hex() })?;
        c.trial("TPR:", |c| { apic(c, 0x80, 0x20)?; c.mov(ecx, 0xfee0_0080u32)?; c.mov(eax, dword_ptr(ecx))?; c.hex()?; apic(c, 0x80, 0) })?;
        c.trial("logical destination:", |c| { apic(c, 0xd0, 0x0200_0000)?; c.mov(ecx, 0xfee0_00d0u32)?; c.mov(eax, dword_ptr(ecx))?; c.hex() })
    }),
    one("wbinvd", Mode::Flat32, |c| {
        c.user_trial("ring 3:", 0, |c| c.wbinvd())?;
        c.trial("ring 0:", |c| c.wbinvd())
    }),
    one("xsetbv", Mode::Flat32, |c| {
        c.trial("without CR4.OSXSAVE:", |c| { c.xor(ecx, ecx)?; c.mov(eax, 1)?; c.xor(edx, edx)?; c.xsetbv() })?;
        c.mov(eax, cr4)?; c.or(eax, 1 << 18)?; c.mov(cr4, eax)?;
        c.trial("XCR0 = 3:", |c| { c.xor(ecx, ecx)?; c.mov(eax, 3)?; c.xor(edx, edx)?; c.xsetbv()?; c.xgetbv()?; c.hex() })?;
        c.trial("XCR0 without x87:", |c| { c.xor(ecx, ecx)?; c.mov(eax, 2)?; c.xor(edx, edx)?; c.xsetbv() })?;
        c.trial("XCR0 with AVX but no SSE:", |c| { c.xor(ecx, ecx)?; c.mov(eax, 5)?; c.xor(edx, edx)?; c.xsetbv() })?;
        c.trial("XCR1:", |c| { c.mov(ecx, 1)?; c.mov(eax, 3)?; c.xor(edx, edx)?; c.xsetbv() })?;
        c.user_trial("ring 3:", 0, |c| { c.xor(ecx, ecx)?; c.mov(eax, 3)?; c.xor(edx, edx)?; c.xsetbv() })
    }),
    super::segments::TASK_SWITCH,
    one("mce_during_entry", Mode::Flat32, |c| {
        c.trial("INT 18 by software:", |c| c.int(18))?;
        c.trial("CR4.MCE keeps:", |c| { c.mov(eax, cr4)?; c.or(eax, 0x40)?; c.mov(cr4, eax)?; c.mov(eax, cr4)?; c.and(eax, 0x40)?; c.hex() })
    }),
    one("ept_violation", Mode::Flat32, |c| {
        c.trial("where nothing is:", |c| { c.mov(ecx, 0xd000_0000u32)?; c.mov(dword_ptr(ecx), 1)?; c.mov(eax, dword_ptr(ecx))?; c.hex() })?;
        c.trial("ROM takes no write:", |c| {
            c.mov(ecx, 0xffff_fff0u32)?; c.mov(al, byte_ptr(ecx))?; c.not(al)?; c.mov(byte_ptr(ecx), al)?;
            c.movzx(eax, byte_ptr(ecx))?; c.hex()
        })
    }),
    one("ept_misconfiguration", Mode::Flat32, |c| {
        c.trial("IOAPIC by its window:", |c| {
            c.mov(ecx, 0xfec0_0000u32)?; c.mov(dword_ptr(ecx), 1)?; c.mov(eax, dword_ptr(ecx + 0x10))?; c.and(eax, 0xff_0000)?; c.hex()
        })?;
        c.trial("read, change, write:", |c| {
            c.mov(ecx, 0xfec0_0000u32)?; c.mov(dword_ptr(ecx), 0x10)?; c.mov(dword_ptr(ecx + 0x10), 0x1_0020)?;
            c.add(dword_ptr(ecx + 0x10), 5)?; c.mov(eax, dword_ptr(ecx + 0x10))?; c.hex()
        })
    }),
    one("pause", Mode::Flat32, |c| {
        c.trial("ring 0:", |c| { c.mov(ecx, 1000)?; let mut l = c.create_label(); c.set_label(&mut l)?; c.pause()?; c.dec(ecx)?; c.jne(l) })?;
        c.user_trial("ring 3:", 0, |c| c.pause())
    }),
    one("mwait", Mode::Flat32, |c| c.user_trial("ring 3:", 0, |c| { c.xor(eax, eax)?; c.xor(ecx, ecx)?; c.mwait() })),
    one("monitor", Mode::Flat32, |c| c.user_trial("ring 3:", 0, |c| { c.mov(eax, FREE)?; c.xor(ecx, ecx)?; c.xor(edx, edx)?; c.monitor() })),
];
