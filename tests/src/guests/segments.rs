//! Segments, privilege, gates and tasks (Intel SDM volume 3, chapters 3, 5, 6 and 7).

use iced_x86::code_asm::*;

use super::image::{BASE, Mode, STACK_TASK2, TASK2, TSS32, sel};
use super::{Guest, many};

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

pub(super) const GUESTS: &[Guest] = &[];
