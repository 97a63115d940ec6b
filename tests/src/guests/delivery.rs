//! Exceptions and interrupts on their way to a handler (Intel SDM volume 3, chapter 6), debug exceptions (chapter 17),
//! virtual-8086 mode (chapter 20).

use iced_x86::code_asm::*;

use super::exits::{apic, apic_on, gate32, wait};
use super::image::{BASE, FREE, IDT32, IDT64, Image, KEEP_TF, Mode, SCRATCH, STACK_TASK2, TASK2, TSS64, sel};
use super::{Guest, many, one};

/// Puts a raw gate into the 32-bit IDT.
fn raw_gate(g: &mut Image, vector: u32, gate: u64) {
    g.patch(IDT32 + 8 * vector, &gate.to_le_bytes());
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    many("gate_absent", Mode::Flat32, |g| {
        raw_gate(g, 6, 0x0e00_0008_0000);
        raw_gate(g, 0x31, 0x0e00_0008_0000);
        g.code(32, |c| {
            apic_on(c)?;
            c.trial("of #UD:", |c| c.ud2())?;
            c.trial("of INT 31h:", |c| c.int(0x31))?;
            c.trial("of an interrupt:", |c| { apic(c, 0x300, 0x4_0031)?; c.sti()?; wait(c)?; c.cli() })?;
            c.exit()
        })
    }),
    many("gate_of_a_wrong_kind", Mode::Flat32, |g| {
        raw_gate(g, 0x30, 0x8c00_0008_0000);
        raw_gate(g, 0x31, 0x8e00_0000_0000);
        raw_gate(g, 0x32, 0x8e00_0010_0000);
        raw_gate(g, 0x33, 0x8e00_00d0_0000);
        g.code(32, |c| {
            c.trial("call gate:", |c| c.int(0x30))?;
            c.trial("null selector:", |c| c.int(0x31))?;
            c.trial("data:", |c| c.int(0x32))?;
            c.trial("behind the table:", |c| c.int(0x33))?;
            c.trial("behind the IDT:", |c| c.int(0x60))?;
            c.exit()
        })
    }),
    many("double_fault", Mode::Flat32, |g| {
        // #GP cannot be delivered: its gate raises another.
        raw_gate(g, 13, 0x8e00_0010_0000);
        raw_gate(g, 0, 0x8e00_0010_0000);
        g.code(32, |c| {
            c.trial("#GP in #GP:", |c| c.int(0x60))?;
            c.trial("#GP in #DE:", |c| { c.xor(ecx, ecx)?; c.div(ecx) })?;
            c.exit()
        })
    }),
    many("double_fault_by_a_task", Mode::Flat32, |g| {
        raw_gate(g, 13, 0x8e00_0010_0000);
        raw_gate(g, 8, 0x8500_0070_0000);
        let task = g.code(32, |c| {
            c.pop(eax)?; c.say("#DF in its task")?; c.hex()?; c.say(" link")?; c.movzx(eax, word_ptr(BASE + TASK2))?; c.hex()?;
            c.say(" eip of the old task")?; c.mov(eax, dword_ptr(BASE + super::image::TSS32 + 0x20))?; c.sub(eax, dword_ptr(BASE + super::image::START))?; c.hex()?;
            c.say("\n")?; c.exit()
        })?;
        g.code(32, |c| {
            let tss = BASE + TASK2;
            for (at, value) in [
                (0x20u32, task), (0x24, 2), (0x38, STACK_TASK2), (0x48, sel::DATA32), (0x4c, sel::CODE32),
                (0x50, sel::DATA32), (0x54, sel::DATA32), (0x58, sel::DATA32), (0x5c, sel::DATA32),
            ] {
                c.mov(dword_ptr(tss + at), value)?;
            }
            c.trial("#GP in #GP:", |c| c.int(0x60))?;
            c.exit()
        })
    }),
    many("triple_fault_in_delivery", Mode::Flat32, |g| {
        raw_gate(g, 13, 0x8e00_0010_0000);
        raw_gate(g, 8, 0x8e00_0010_0000);
        g.code(32, |c| { c.say("a reset follows\n")?; c.int(0x60)?; c.say("goes on\n")?; c.exit() })
    }),
    many("stack_of_the_inner_ring_absent", Mode::Long, |g| {
        // #DF has a stack of its own.
        let at = (IDT64 + 16 * 8 + 4) as usize;
        g.patch(at as u32, &[1]);
        g.patch(TSS64 + 4, &0x4000_1000u64.to_le_bytes());
        g.code(64, |c| {
            c.user_trial("page fault in INT 3:", 0, |c| c.int3())?;
            c.mov(rax, 0x8000_0000_0000u64)?; c.mov(qword_ptr(BASE + TSS64 + 4), rax)?;
            c.user_trial("not canonical:", 0, |c| c.ud2())?;
            c.exit()
        })
    }),
    many("interrupt_stack_table", Mode::Long, |g| {
        g.patch(IDT64 + 16 * 0x30 + 4, &[1]);
        let handler = g.code(64, |c| {
            c.mov(rax, rsp)?; c.hex()?; c.mov(eax, dword_ptr(rsp + 24))?; c.and(eax, 15)?; c.hex()?; c.iretq()
        })?;
        let gate = |ist: u64| u64::from(handler & 0xffff) | u64::from(sel::CODE64) << 16 | ist << 32 | 0x8e << 40 | u64::from(handler >> 16) << 48;
        g.patch(IDT64 + 16 * 0x30, &gate(1).to_le_bytes());
        g.patch(IDT64 + 16 * 0x31, &gate(0).to_le_bytes());
        g.code(64, |c| {
            c.trial("by the table:", |c| { c.mov(rbp, rsp)?; c.sub(rsp, 3)?; c.int(0x30)?; c.mov(rsp, rbp) })?;
            c.trial("aligned:", |c| { c.mov(rbp, rsp)?; c.sub(rsp, 3)?; c.int(0x31)?; c.mov(rsp, rbp) })?;
            c.exit()
        })
    }),
    many("interrupt_and_trap_gates", Mode::Flat32, |g| {
        let handler = g.code(32, |c| { c.pushad()?; c.pushfd()?; c.pop(eax)?; c.and(eax, 0x4300)?; c.hex()?; c.popad()?; c.iretd() })?;
        gate32(g, 0x30, handler);
        raw_gate(g, 0x31, u64::from(handler & 0xffff) | u64::from(sel::CODE32) << 16 | 0x8f << 40 | u64::from(handler >> 16) << 48);
        g.code(32, |c| {
            c.trial("flags in an interrupt gate:", |c| { c.sti()?; c.int(0x30)?; c.cli() })?;
            c.trial("flags in a trap gate:", |c| { c.sti()?; c.int(0x31)?; c.cli() })?;
            c.exit()
        })
    }),
    one("software_interrupts", Mode::Flat32, |c| {
        c.trial("CC:", |c| c.int3())?;
        c.trial("CD 03:", |c| c.int(3))?;
        c.trial("F1:", |c| c.int1())?;
        c.trial("INT 20h:", |c| c.int(0x20))?;
        c.trial("INT 0Dh pushes no code:", |c| { c.mov(ebx, esp)?; c.push(0x99)?; c.int(0x0d) })
    }),
    one("single_step", Mode::Flat32, |c| {
        c.mov(byte_ptr(BASE + KEEP_TF), 1u32)?;
        c.trial("a few:", |c| { c.push(0x102)?; c.popfd()?; c.nop()?; c.inc(ecx)?; c.push(2)?; c.popfd()?; c.nop() })?;
        c.trial("MOV SS:", |c| { c.mov(edx, ss)?; c.push(0x102)?; c.popfd()?; c.nop()?; c.mov(ss, edx)?; c.inc(ecx)?; c.push(2)?; c.popfd() })?;
        c.trial("REP:", |c| { c.mov(edi, FREE)?; c.mov(ecx, 3)?; c.push(0x102)?; c.popfd()?; c.rep().stosb()?; c.push(2)?; c.popfd() })?;
        c.trial("INT 20h clears it:", |c| { c.push(0x102)?; c.popfd()?; c.int(0x20)?; c.push(2)?; c.popfd() })
    }),
    many("code_breakpoint", Mode::Flat32, |g| {
        let here = g.code(32, |c| { c.inc(ebx)?; c.inc(ebx)?; c.ret() })?;
        g.code(32, |c| {
            c.mov(eax, here + 1)?; c.mov(dr0, eax)?; c.mov(eax, 0x402)?; c.mov(dr7, eax)?;
            c.trial("hit once, then goes on:", |c| { c.mov(dword_ptr(BASE + super::image::START), here)?; c.xor(ebx, ebx)?; c.call(u64::from(here))?; c.show(ebx) })?;
            c.xor(eax, eax)?; c.mov(dr7, eax)?;
            c.trial("switched off:", |c| { c.xor(ebx, ebx)?; c.call(u64::from(here))?; c.show(ebx) })?;
            c.exit()
        })
    }),
    one("data_breakpoint", Mode::Flat32, |c| {
        c.mov(eax, FREE)?; c.mov(dr1, eax)?;
        // DR1: writes of four bytes.
        c.mov(eax, 0x00d0_0408u32)?; c.mov(dr7, eax)?;
        c.trial("write:", |c| c.mov(dword_ptr(FREE), 1))?;
        c.trial("read:", |c| c.mov(eax, dword_ptr(FREE)))?;
        c.trial("write to its last byte:", |c| c.mov(byte_ptr(FREE + 3), 1u32))?;
        c.trial("write behind it:", |c| c.mov(byte_ptr(FREE + 4), 1u32))?;
        c.trial("write that ends in it:", |c| c.mov(dword_ptr(FREE - 3), 1))?;
        c.trial("push over it:", |c| { c.mov(ebx, esp)?; c.mov(esp, FREE + 4)?; c.push(1)?; c.mov(esp, ebx) })?;
        c.mov(eax, 0x00f0_0408u32)?; c.mov(dr7, eax)?;
        c.trial("read, with reads watched:", |c| c.mov(eax, dword_ptr(FREE)))?;
        c.xor(eax, eax)?; c.mov(dr7, eax)
    }),
    one("port_breakpoint", Mode::Flat32, |c| {
        c.mov(eax, cr4)?; c.or(eax, 8)?; c.mov(cr4, eax)?;
        c.mov(eax, 0x80)?; c.mov(dr2, eax)?; c.mov(eax, 0x0200_0420u32)?; c.mov(dr7, eax)?;
        c.trial("OUT:", |c| c.out(0x80, al))?;
        c.trial("another port:", |c| c.out(0x81, al))?;
        c.xor(eax, eax)?; c.mov(dr7, eax)
    }),
    one("return_by_iret", Mode::Flat32, |c| {
        c.trial("to data:", |c| { c.push(2)?; c.push(sel::DATA32 as i32)?; c.push(0)?; c.iretd() })?;
        c.trial("to null:", |c| { c.push(2)?; c.push(0)?; c.push(0)?; c.iretd() })?;
        c.trial("to absent code:", |c| { c.push(2)?; c.push(sel::ABSENT_CODE as i32)?; c.push(0)?; c.iretd() })?;
        c.trial("NT without a task:", |c| { c.push(0x4002)?; c.popfd()?; c.iretd() })?;
        c.push(2)?; c.popfd()?;
        c.trial("ring 3 with ring 0's stack:", |c| { c.push(sel::DATA32 as i32)?; c.push(0)?; c.push(2)?; c.push(sel::USER_CODE as i32)?; c.push(0)?; c.iretd() })
    }),
    one("device_not_available", Mode::Flat32, |c| {
        c.mov(eax, cr4)?; c.or(eax, 0x600)?; c.mov(cr4, eax)?;
        for (name, bit) in [("TS", 8), ("EM", 4), ("TS and MP", 10), ("MP", 2)] {
            c.trial(&format!("{name}, x87:"), |c| { c.mov(eax, cr0)?; c.and(eax, !14)?; c.or(eax, bit)?; c.mov(cr0, eax)?; c.fld1()?; c.fstp(st0) })?;
            c.trial(&format!("{name}, SSE:"), |c| { c.movaps(xmm0, xmm1) })?;
            c.trial(&format!("{name}, WAIT:"), |c| c.wait())?;
        }
        c.mov(eax, cr0)?; c.and(eax, !14)?; c.mov(cr0, eax)?;
        c.mov(eax, cr4)?; c.and(eax, !0x200)?; c.mov(cr4, eax)?;
        c.trial("SSE without CR4.OSFXSR:", |c| c.movaps(xmm0, xmm1))
    }),
    one("floating_point_errors", Mode::Flat32, |c| {
        c.mov(eax, cr0)?; c.or(eax, 0x20)?; c.mov(cr0, eax)?;
        c.mov(eax, cr4)?; c.or(eax, 0x200)?; c.mov(cr4, eax)?;
        c.trial("#MF at the next one that waits:", |c| {
            c.mov(word_ptr(BASE + SCRATCH), 0x37b)?; c.fldcw(word_ptr(BASE + SCRATCH))?; c.fld1()?; c.fldz()?; c.fdivp(st1, st0)?;
            c.nop()?; c.fnstsw(ax)?; c.and(eax, 0x80ff)?; c.hex()?; c.fld1()
        })?;
        c.fninit()?;
        c.mov(dword_ptr(BASE + SCRATCH), 0x1d80)?; c.ldmxcsr(dword_ptr(BASE + SCRATCH))?;
        c.trial("SSE without OSXMMEXCPT:", |c| { c.xorps(xmm0, xmm0)?; c.mov(eax, 0x3f80_0000)?; c.movd(xmm1, eax)?; c.divss(xmm1, xmm0) })?;
        c.mov(eax, cr4)?; c.or(eax, 0x400)?; c.mov(cr4, eax)?;
        c.trial("SSE with it:", |c| { c.xorps(xmm0, xmm0)?; c.mov(eax, 0x3f80_0000)?; c.movd(xmm1, eax)?; c.divss(xmm1, xmm0) })?;
        c.trial("MXCSR's reserved bits:", |c| { c.mov(dword_ptr(BASE + SCRATCH), 0xffff_0000u32)?; c.ldmxcsr(dword_ptr(BASE + SCRATCH)) })
    }),
    one("alignment_check", Mode::Flat32, |c| {
        c.mov(eax, cr0)?; c.bts(eax, 18u32)?; c.mov(cr0, eax)?;
        c.user_trial("four bytes, off by one:", 0x4_0000, |c| c.mov(eax, dword_ptr(FREE + 1)))?;
        c.user_trial("two bytes:", 0x4_0000, |c| c.mov(ax, word_ptr(FREE + 1)))?;
        c.user_trial("aligned:", 0x4_0000, |c| c.mov(eax, dword_ptr(FREE + 4)))?;
        c.user_trial("without AC:", 0, |c| c.mov(eax, dword_ptr(FREE + 1)))?;
        c.trial("in ring 0:", |c| { c.push(0x4_0002)?; c.popfd()?; c.mov(eax, dword_ptr(FREE + 1))?; c.push(2)?; c.popfd() })
    }),
    one("instruction_length", Mode::Flat32, |c| {
        c.trial("15 bytes:", |c| { c.db(&[0x66; 14])?; c.db(&[0x90]) })?;
        c.trial("16 bytes:", |c| { c.db(&[0x66; 15])?; c.db(&[0x90]) })?;
        c.trial("LOCK on a register:", |c| c.db(&[0xf0, 0x01, 0xc0]))?;
        c.trial("LOCK on MOV:", |c| c.db(&[0xf0, 0x89, 0x03]))?;
        c.trial("LOCK on ADD:", |c| { c.mov(ebx, FREE)?; c.db(&[0xf0, 0x01, 0x03]) })?;
        c.trial("LEA of a register:", |c| c.db(&[0x8d, 0xc0]))?;
        c.trial("MOV CR of memory is one of a register:", |c| { c.db(&[0x0f, 0x20, 0x00])?; c.and(eax, 1)?; c.hex() })?;
        c.trial("0F 0B, 0F B9, 0F FF:", |c| c.db(&[0x0f, 0xff, 0xc0]))
    }),
    many("virtual_8086_mode", Mode::Flat32, |g| {
        // INT 21h of virtual-8086 code comes to ring 0 with the segments on the stack.
        let handler = g.code(32, |c| {
            c.mov(eax, dword_ptr(esp + 8))?; c.shr(eax, 16)?; c.and(eax, 2)?; c.hex()?;
            c.mov(eax, dword_ptr(esp + 4))?; c.hex()?;
            c.mov(eax, dword_ptr(esp + 16))?; c.hex()?;
            c.xor(eax, eax)?; c.mov(ax, ds)?; c.hex()?;
            c.mov(eax, sel::DATA32)?; c.mov(ds, ax)?; c.mov(es, ax)?;
            c.mov(esp, dword_ptr(BASE + super::image::STACK))?; c.jmp(dword_ptr(BASE + super::image::RESUME))
        })?;
        let gate = u64::from(handler & 0xffff) | u64::from(sel::CODE32) << 16 | 0xee << 40 | u64::from(handler >> 16) << 48;
        raw_gate(g, 0x21, gate);
        let mut pieces = Vec::new();
        for code in [&[0xcdu8, 0x21][..], &[0xfa], &[0xfb], &[0x9c], &[0x9d], &[0xcf], &[0xf4], &[0x0f, 0x20, 0xc0], &[0x0f, 0x00, 0xc0], &[0xe6, 0x80], &[0xcd, 0x20], &[0xcc]] {
            pieces.push((code[0], code.len(), g.code(16, |c| { c.db(code)?; c.db(&[0xcd, 0x21]) })?));
        }
        g.code(32, |c| {
            for iopl in [0x3000, 0] {
                for (first, len, at) in &pieces {
                    // With IOPL 3 IRET would take what is on the stack.
                    if (iopl, *first) == (0x3000, 0xcf) {
                        continue;
                    }
                    c.trial(&format!("{first:02x} of {len} with IOPL {}:", iopl >> 12), |c| {
                        c.mov(dword_ptr(BASE + super::image::START), *at)?;
                        for _ in 0..4 { c.push((BASE >> 4) as i32)?; }
                        c.push((BASE >> 4) as i32)?; c.push(0xfe00)?; c.push(0x2_0002 | iopl)?; c.push((BASE >> 4) as i32)?; c.push(*at as i32)?;
                        c.iretd()
                    })?;
                }
            }
            c.exit()
        })
    }),
    one("real_mode_exceptions", Mode::Real, |c| {
        c.trial("divide:", |c| { c.xor(cx, cx)?; c.div(cx) })?;
        c.trial("UD2:", |c| c.ud2())?;
        c.trial("INT3:", |c| c.int3())?;
        c.trial("INT 20h:", |c| c.int(0x20))?;
        c.trial("beyond 64 KiB:", |c| { c.mov(bx, 0xffffu32)?; c.mov(ax, word_ptr(bx)) })?;
        c.trial("the stack's edge:", |c| { c.mov(bp, 0xffffu32)?; c.mov(ax, word_ptr(bp)) })?;
        c.trial("LLDT:", |c| c.db(&[0x0f, 0x00, 0xd0]))?;
        c.trial("ARPL:", |c| c.db(&[0x63, 0xc0]))?;
        c.trial("BOUND:", |c| { c.mov(word_ptr(FREE & 0xff | 0x30), 5)?; c.mov(word_ptr(0x32), 6)?; c.mov(ax, 9u32)?; c.mov(bx, 0x30u32)?; c.bound(ax, dword_ptr(bx)) })?;
        c.trial("MOV CR0:", |c| { c.mov(eax, cr0)?; c.and(eax, 1)?; c.hex() })
    }),
    one("unreal_mode", Mode::Real, |c| {
        c.mov(eax, cr0)?; c.or(al, 1u32)?; c.mov(cr0, eax)?;
        c.mov(bx, sel::DATA32)?;
        c.db(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x2f])?;
        c.mov(fs, bx)?;
        c.and(al, 0xfeu32)?; c.mov(cr0, eax)?;
        c.trial("4 GiB through FS:", |c| { c.mov(ebx, 0x30_0000u32)?; c.mov(dword_ptr(ebx).fs(), 0x1234_5678)?; c.mov(eax, dword_ptr(ebx).fs())?; c.hex() })?;
        c.trial("DS keeps its limit:", |c| { c.mov(ebx, 0x30_0000u32)?; c.mov(eax, dword_ptr(ebx)) })?;
        c.trial("a load keeps the limit:", |c| { c.mov(bx, 0x1000u32)?; c.mov(fs, bx)?; c.mov(ebx, 0x2f_0000u32)?; c.mov(eax, dword_ptr(ebx).fs())?; c.hex() })
    }),
];
