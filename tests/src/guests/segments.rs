//! Segments, privilege, gates and tasks (Intel SDM volume 3, chapters 3, 5, 6 and 7).

use iced_x86::code_asm::*;

use super::image::{BASE, FREE, Mode, STACK_TASK2, STACK3, TASK2, TSS32, sel};
use super::{Guest, many, one};

/// Tasks by CALL, by a gate, by JMP, and the way back by IRET.
pub(super) const TASK_SWITCH: Guest = many("task_switch", Mode::Flat32, |g| {
    let task = g.code(32, |c| {
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.say(" [task 2: cr0.ts")?;
        c.mov(eax, cr0)?;
        c.and(eax, 8)?;
        c.hex()?;
        c.say(" nt")?;
        c.pushfd()?;
        c.pop(eax)?;
        c.and(eax, 0x4000)?;
        c.hex()?;
        c.say(" link")?;
        c.movzx(eax, word_ptr(BASE + TASK2))?;
        c.hex()?;
        c.say("]")?;
        c.clts()?;
        c.iretd()?;
        c.jmp(again)
    })?;
    let entry = g.code(32, |c| {
        let tss = BASE + TASK2;
        for (at, value) in [
            (0x20u32, task),
            (0x24, 2),
            (0x38, STACK_TASK2),
            (0x48, sel::DATA32),
            (0x4c, sel::CODE32),
            (0x50, sel::DATA32),
            (0x54, sel::DATA32),
            (0x58, sel::DATA32),
            (0x5c, sel::DATA32),
        ] {
            c.mov(dword_ptr(tss + at), value)?;
        }
        c.trial("CALL of a task:", |c| c.db(&[0x9a, 0, 0, 0, 0, sel::TASK2 as u8, 0]))?;
        c.trial("CALL through a task gate:", |c| c.db(&[0x9a, 0, 0, 0, 0, sel::TASK_GATE as u8, 0]))?;
        c.trial("JMP to itself, which is busy:", |c| c.db(&[0xea, 0, 0, 0, 0, sel::TSS32 as u8, 0]))?;
        c.trial("JMP to what is no task:", |c| c.db(&[0xea, 0, 0, 0, 0, sel::DATA32 as u8, 0]))?;
        c.trial("the old task's state:", |c| {
            c.mov(eax, dword_ptr(BASE + TSS32 + 0x4c))?;
            c.hex()?;
            c.mov(eax, dword_ptr(BASE + TSS32 + 0x60))?;
            c.and(eax, 0xffff)?;
            c.hex()
        })?;
        c.exit()
    })?;
    Ok(entry)
});

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    one("segment_null", Mode::Flat32, |c| {
        c.trial("load of FS:", |c| { c.xor(eax, eax)?; c.mov(fs, ax) })?;
        c.trial("use of FS:", |c| c.mov(eax, dword_ptr(ebx).fs()))?;
        c.trial("load of SS:", |c| { c.xor(eax, eax)?; c.mov(ss, ax) })?;
        c.trial("POP of SS:", |c| { c.push(0)?; c.pop(ss) })?;
        c.trial("far jump:", |c| c.db(&[0xea, 0, 0, 0, 0, 0, 0]))
    }),
    one("segment_limit", Mode::Flat32, |c| {
        c.mov(eax, sel::SMALL)?; c.mov(fs, ax)?;
        for (at, bytes) in [(0xffcu32, 4), (0xffd, 4), (0xfff, 1), (0x1000, 1), (0xffff_ffff, 4)] {
            c.trial(&format!("{bytes} at {at:x}:"), |c| if bytes == 4 { c.mov(eax, dword_ptr(at).fs()) } else { c.mov(al, byte_ptr(at).fs()) })?;
        }
        Ok(())
    }),
    one("segment_expand_down", Mode::Flat32, |c| {
        c.mov(eax, sel::EXPAND_DOWN)?; c.mov(fs, ax)?;
        for at in [0u32, 0xffd, 0xfff, 0x1000, 0xfffc, 0xfffd, 0x1_0000] {
            c.trial(&format!("4 at {at:x}:"), |c| c.mov(eax, dword_ptr(at).fs()))?;
        }
        Ok(())
    }),
    one("segment_types", Mode::Flat32, |c| {
        c.mov(eax, sel::READ_ONLY)?; c.mov(fs, ax)?;
        c.trial("write to read-only:", |c| c.mov(dword_ptr(FREE).fs(), 1))?;
        c.trial("write to code:", |c| c.mov(dword_ptr(FREE).cs(), 1))?;
        c.trial("read of code:", |c| c.mov(eax, dword_ptr(FREE).cs()))?;
        c.trial("load of execute-only:", |c| { c.mov(eax, sel::EXECUTE_ONLY)?; c.mov(fs, ax) })?;
        c.trial("load of conforming code:", |c| { c.mov(eax, sel::CONFORMING)?; c.mov(fs, ax) })?;
        c.trial("SS of read-only:", |c| { c.mov(eax, sel::READ_ONLY)?; c.mov(ss, ax) })?;
        c.trial("SS of another ring:", |c| { c.mov(eax, sel::USER_DATA)?; c.mov(ss, ax) })?;
        c.trial("load of a task:", |c| { c.mov(eax, sel::TASK2)?; c.mov(fs, ax) })?;
        c.trial("CS by MOV:", |c| c.db(&[0x8e, 0xc8]))
    }),
    one("segment_absent", Mode::Flat32, |c| {
        c.trial("FS:", |c| { c.mov(eax, sel::ABSENT)?; c.mov(fs, ax) })?;
        c.trial("SS:", |c| { c.mov(eax, sel::ABSENT)?; c.mov(ss, ax) })?;
        c.trial("jump:", |c| c.db(&[0xea, 0, 0, 0, 0, sel::ABSENT_CODE as u8, 0]))?;
        c.trial("behind the table:", |c| { c.mov(eax, sel::BEYOND)?; c.mov(fs, ax) })?;
        c.trial("behind the table, RPL 3:", |c| { c.mov(eax, sel::BEYOND + 3)?; c.mov(fs, ax) })?;
        c.trial("in no LDT:", |c| { c.mov(eax, 4)?; c.mov(fs, ax) })
    }),
    one("segment_questions", Mode::Flat32, |c| {
        for selector in [0, sel::CODE32, sel::DATA32, sel::USER_CODE, sel::TSS32, sel::TASK_GATE, sel::CALL_GATE, sel::SMALL, sel::EXPAND_DOWN, sel::ABSENT, sel::BEYOND] {
            c.trial(&format!("{selector:x}:"), |c| {
                c.xor(ebx, ebx)?; c.mov(ebp, selector)?;
                c.lar(ebx, ebp)?; c.setz(dl)?; c.movzx(eax, dl)?; c.hex()?;
                // The limit's upper bits are not defined.
                c.and(ebx, 0xf0_ff00)?; c.show(ebx)?;
                c.xor(ebx, ebx)?; c.lsl(ebx, ebp)?; c.show(ebx)?;
                c.verr(bp)?; c.setz(al)?; c.verw(bp)?; c.setz(ah)?; c.movzx(eax, ax)?; c.hex()
            })?;
        }
        Ok(())
    }),
    one("local_descriptors", Mode::Flat32, |c| {
        c.trial("LLDT of data:", |c| { c.mov(eax, sel::DATA32)?; c.lldt(ax) })?;
        c.mov(dword_ptr(BASE + super::image::LDT + 8), 0xffff)?;
        c.mov(dword_ptr(BASE + super::image::LDT + 12), 0xcf_9300u32)?;
        c.trial("LLDT and SLDT:", |c| { c.mov(eax, sel::LDT)?; c.lldt(ax)?; c.xor(eax, eax)?; c.sldt(eax)?; c.hex() })?;
        c.trial("a selector of it:", |c| { c.mov(eax, 0xc)?; c.mov(fs, ax)?; c.mov(eax, dword_ptr(FREE).fs()) })?;
        c.trial("behind its end:", |c| { c.mov(eax, 0x14)?; c.mov(fs, ax) })?;
        c.trial("LLDT of null:", |c| { c.xor(eax, eax)?; c.lldt(ax)?; c.mov(eax, 0xc)?; c.mov(gs, ax) })
    }),
    one("task_register", Mode::Flat32, |c| {
        c.trial("STR:", |c| { c.xor(eax, eax)?; c.str(eax)?; c.hex() })?;
        c.trial("LTR of a busy task:", |c| { c.mov(eax, sel::TSS32)?; c.ltr(ax) })?;
        c.trial("LTR of data:", |c| { c.mov(eax, sel::DATA32)?; c.ltr(ax) })?;
        c.trial("LTR of null:", |c| { c.xor(eax, eax)?; c.ltr(ax) })?;
        c.trial("LTR marks busy:", |c| { c.mov(eax, sel::TASK2)?; c.ltr(ax)?; c.mov(ebx, eax)?; c.lar(eax, ebx)?; c.hex() })
    }),
    one("call_gate", Mode::Flat32, |c| {
        c.user_trial("from ring 3 with two parameters:", 0, |c| {
            c.push(0x1234)?; c.push(0x5678)?; c.db(&[0x9a, 0, 0, 0, 0, sel::CALL_GATE as u8 | 3, 0])?;
            c.mov(edx, eax)?; c.mov(ebx, esp)?; c.xor(ebp, ebp)?; c.mov(bp, cs)?; c.int(0x40)?;
            c.show(edx)?; c.mov(eax, STACK3)?; c.sub(eax, ebx)?; c.hex()?; c.show(ebp)
        })?;
        c.user_trial("jump from ring 3:", 0, |c| c.db(&[0xea, 0, 0, 0, 0, sel::CALL_GATE as u8 | 3, 0]))?;
        c.trial("from ring 0:", |c| { c.push(0x1111)?; c.push(0x2222)?; c.db(&[0x9a, 0, 0, 0, 0, sel::CALL_GATE as u8, 0])?; c.hex() })
    }),
    one("gates_of_higher_privilege", Mode::Flat32, |c| {
        c.user_trial("INT 20h:", 0, |c| c.int(0x20))?;
        c.user_trial("INT 3:", 0, |c| c.int3())?;
        c.user_trial("INT 1 by INT n:", 0, |c| c.int(1))?;
        c.user_trial("INT1:", 0, |c| c.int1())?;
        c.user_trial("ring 0's code:", 0, |c| c.db(&[0x9a, 0, 0, 0, 0, sel::CODE32 as u8, 0]))?;
        c.user_trial("ring 0's data:", 0, |c| { c.mov(eax, sel::DATA32)?; c.mov(fs, ax) })
    }),
    one("ring_3_is_kept_out", Mode::Flat32, |c| {
        for (name, bytes) in [
            ("HLT", &[0xf4u8][..]), ("LGDT", &[0x0f, 0x01, 0x10]), ("LIDT", &[0x0f, 0x01, 0x18]), ("LLDT", &[0x0f, 0x00, 0xd0]),
            ("LTR", &[0x0f, 0x00, 0xd8]), ("LMSW", &[0x0f, 0x01, 0xf0]), ("CLTS", &[0x0f, 0x06]), ("CLI", &[0xfa]), ("STI", &[0xfb]),
            ("IN", &[0xe4, 0x80]), ("MOV CR0", &[0x0f, 0x22, 0xc0]), ("MOV DR0", &[0x0f, 0x23, 0xc0]), ("SYSEXIT", &[0x0f, 0x35]),
        ] {
            c.user_trial(&format!("{name}:"), 0, |c| { c.mov(eax, FREE)?; c.db(bytes) })?;
        }
        for (name, bytes) in [("SGDT", &[0x0fu8, 0x01, 0x00][..]), ("SIDT", &[0x0f, 0x01, 0x08]), ("STR", &[0x0f, 0x00, 0xc9]), ("SMSW", &[0x0f, 0x01, 0xe1])] {
            c.user_trial(&format!("{name}:"), 0, |c| { c.mov(eax, FREE)?; c.db(bytes) })?;
        }
        Ok(())
    }),
    one("flags_of_ring_3", Mode::Flat32, |c| {
        c.user_trial("POPF changes no IF and no IOPL:", 0, |c| { c.push(0x3202)?; c.popfd()?; c.pushfd()?; c.pop(ebx)?; c.int(0x40)?; c.show(ebx) })?;
        c.user_trial("with IOPL 3 it changes IF:", 0x3000, |c| { c.push(0x202)?; c.popfd()?; c.pushfd()?; c.cli()?; c.pop(ebx)?; c.int(0x40)?; c.show(ebx) })?;
        c.trial("ring 0 changes all but VM, VIF, VIP:", |c| { c.push(0x3f_7fd7)?; c.popfd()?; c.pushfd()?; c.pop(ebx)?; c.push(2)?; c.popfd()?; c.and(ebx, !0x100)?; c.show(ebx) })
    }),
    many("return_to_ring_3", Mode::Flat32, |g| {
        let user = g.code(32, |c| {
            c.xor(ebx, ebx)?; c.mov(bx, fs)?; c.xor(ebp, ebp)?; c.mov(bp, ds)?; c.xor(edx, edx)?; c.mov(dx, ss)?; c.int(0x40)?;
            c.show(ebx)?; c.show(ebp)?; c.show(edx)?; c.say("\n")?; c.exit()
        })?;
        g.code(32, |c| {
            c.trial("to a lower ring:", |c| { c.push(sel::DATA32 as i32)?; c.push(0)?; c.retf() })?;
            c.trial("to data:", |c| { c.push(sel::USER_DATA as i32)?; c.push(0)?; c.retf() })?;
            c.trial("far return nulls what ring 3 may not keep:", |c| {
                c.push(sel::USER_DATA as i32)?; c.push(STACK3 as i32)?; c.push(sel::USER_CODE as i32)?; c.push(user as i32)?;
                c.mov(ecx, sel::USER_DATA)?; c.mov(fs, ecx)?; c.retf()
            })
        })
    }),
    one("sysenter", Mode::Flat32, |c| {
        c.user_trial("without a selector:", 0, |c| c.sysenter())?;
        c.trial("SYSEXIT without a selector:", |c| c.sysexit())?;
        c.user_trial("SYSCALL without SCE:", 0, |c| c.syscall())
    }),
    many("conforming_code", Mode::Flat32, |g| {
        let inner = g.code(32, |c| { c.xor(ebx, ebx)?; c.mov(bx, cs)?; c.retf() })?;
        g.code(32, |c| {
            c.user_trial("keeps ring 3:", 0, |c| { c.db(&[0x9a])?; c.dd(&[inner])?; c.dw(&[sel::CONFORMING as u16])?; c.int(0x40)?; c.show(ebx) })?;
            c.trial("keeps ring 0:", |c| { c.db(&[0x9a])?; c.dd(&[inner])?; c.dw(&[sel::CONFORMING as u16 + 3])?; c.show(ebx) })?;
            c.exit()
        })
    }),
    one("arpl_bound_into", Mode::Flat32, |c| {
        c.trial("ARPL raises:", |c| { c.mov(eax, 0x10)?; c.mov(ebx, 3)?; c.arpl(ax, bx)?; c.setz(bl)?; c.hex()?; c.movzx(eax, bl)?; c.hex() })?;
        c.trial("ARPL leaves:", |c| { c.mov(eax, 0x13)?; c.mov(ebx, 1)?; c.arpl(ax, bx)?; c.setz(bl)?; c.hex()?; c.movzx(eax, bl)?; c.hex() })?;
        c.mov(dword_ptr(FREE), 5)?; c.mov(dword_ptr(FREE + 4), 10)?;
        c.trial("BOUND inside:", |c| { c.mov(eax, 10)?; c.bound(eax, qword_ptr(FREE)) })?;
        c.trial("BOUND outside:", |c| { c.mov(eax, 11)?; c.bound(eax, qword_ptr(FREE)) })?;
        c.trial("INTO:", |c| { c.mov(al, 0x7fu32)?; c.inc(al)?; c.db(&[0xce]) })?;
        c.trial("INTO without:", |c| { c.xor(eax, eax)?; c.db(&[0xce]) })
    }),
    many("sixteen_bit_segments", Mode::Flat32, |g| {
        let back = g.next(32);
        let back = g.code(32, |c| {
            let _ = back;
            c.mov(ecx, sel::DATA32)?; c.mov(ss, ecx)?; c.mov(ds, ecx)?; c.mov(es, ecx)?;
            c.mov(esp, dword_ptr(BASE + super::image::STACK))?;
            c.mov(eax, ebx)?; c.hex()?; c.show(edx)?; c.show(ebp)?; c.say("\n")?; c.exit()
        })?;
        let there = g.code(16, |c| {
            // A 16-bit stack: the upper half of ESP stays, pushes wrap within 64 KiB.
            c.mov(ax, sel::STACK16)?; c.mov(ss, ax)?; c.mov(esp, 0x1234_0002u32)?;
            c.push(ax)?; c.push(ax)?; c.mov(ebx, esp)?; c.pop(ax)?; c.pop(ax)?;
            c.mov(edx, 0xffff_ffffu32)?; c.mov(dx, 7u32)?;
            c.mov(ebp, 0)?; c.mov(bp, 0xffffu32)?; c.add(bp, 2)?;
            c.db(&[0x66, 0xea])?; c.dd(&[back])?; c.dw(&[sel::CODE32 as u16])
        })?;
        g.code(32, |c| {
            c.trial("there and back:", |c| { c.db(&[0xea])?; c.dd(&[there])?; c.dw(&[sel::CODE16 as u16]) })?;
            c.exit()
        })
    }),
];
