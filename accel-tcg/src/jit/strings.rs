//! REP MOVS and REP STOS without a call into the engine (SDM vol. 1, 7.3.9.2; vol. 2, REP).
//!
//! Most repeated moves and fills are short and stay in pages that the TLB has. These the host runs itself: its own
//! instruction with the same element size on the same bytes, so that runs which overlap come out alike and nothing is
//! left half done. The stubs look both runs up in the TLB as a load and a store of that many bytes would be (which
//! excludes pages with code, logged ones and devices), and touch neither flags nor vector registers. Whatever is
//! unusual (DF, more than a page, a page that the TLB does not have, a budget that the iterations do not fit into) goes
//! to the helper.

use super::emit::at;
use super::stubs::{Assembler, Stub};
use crate::mmu::tlb::{ENTRY_SHIFT, Entry};
use anura_x86::regs::rflags;
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use std::mem::offset_of;

/// The stubs: which instruction, and log2 of the element's size.
const STUBS: [(Stub, bool, u8); 6] = [
    (Stub::Movsb, true, 0),
    (Stub::Movsd, true, 2),
    (Stub::Movsq, true, 3),
    (Stub::Stosb, false, 0),
    (Stub::Stosd, false, 2),
    (Stub::Stosq, false, 3),
];

/// The stub for an instruction with a repeat prefix, the usual segments and 64-bit addresses, if there is one.
pub(super) fn stub(moves: bool, size: u8) -> Option<Stub> {
    STUBS.iter().find(|(_, m, log2)| *m == moves && 1 << log2 == size).map(|(s, ..)| *s)
}

/// Writes the stubs. Each is called with a helper's constants in r10, and goes to `->helper` with them.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
pub(super) fn write(a: &mut Assembler, counted: bool, mark: &mut impl FnMut(&mut Assembler, Stub)) {
    for (stub, moves, log2) in STUBS {
        mark(a, stub);
        dynasm!(a; .arch x64
            ; test rcx, rcx
            ; je >nothing
            ; cmp rcx, 0x1000 >> log2
            ; ja ->helper
            ; test DWORD [rsp + 8 + at::EFLAGS], rflags::DF as i32
            ; jne ->helper
        );
        if counted {
            // Entering the block has paid for one iteration.
            dynasm!(a; .arch x64
                ; lea r9, [rcx - 1]
                ; cmp r9, [rsp + 8 + at::BUDGET]
                ; jg ->helper
            );
        }
        // rdx is how far into a page a run may begin. The environment is at rsp + 24.
        dynasm!(a; .arch x64
            ; push rbx
            ; push rdx
            ; mov r9d, ecx
            ; shl r9d, log2 as i8
            ; mov edx, 0x1000
            ; sub edx, r9d
            ; mov r9, rdi
            ; shr r9, (12 - ENTRY_SHIFT) as i8
            ; and r9d, [rsp + 24 + at::TLB_MASK]
            ; add r9, r11
            ; mov rbx, rdi
            ; xor rbx, [r9 + offset_of!(Entry, tag_w) as i32]
            ; cmp rbx, rdx
            ; ja >unknown
            // How far the host's address is from the guest's.
            ; add rbx, [r9 + offset_of!(Entry, host) as i32]
            ; sub rbx, rdi
            ; mov r9, rbx
        );
        if moves {
            dynasm!(a; .arch x64
                ; mov rbx, rsi
                ; shr rbx, (12 - ENTRY_SHIFT) as i8
                ; and ebx, [rsp + 24 + at::TLB_MASK]
                ; add r11, rbx
                ; mov rbx, rsi
                ; xor rbx, [r11 + offset_of!(Entry, tag_r) as i32]
                ; cmp rbx, rdx
                ; ja >unknown
                ; add rbx, [r11 + offset_of!(Entry, host) as i32]
                ; sub rbx, rsi
                ; add rsi, rbx
            );
        }
        if counted {
            dynasm!(a; .arch x64; lea rdx, [rcx - 1]; sub [rsp + 24 + at::BUDGET], rdx);
        }
        dynasm!(a; .arch x64; add rdi, r9);
        match (moves, log2) {
            (true, 0) => dynasm!(a; .arch x64; rep movsb),
            (true, 2) => dynasm!(a; .arch x64; rep movsd),
            (true, _) => dynasm!(a; .arch x64; rep movsq),
            (false, 0) => dynasm!(a; .arch x64; rep stosb),
            (false, 2) => dynasm!(a; .arch x64; rep stosd),
            (false, _) => dynasm!(a; .arch x64; rep stosq),
        }
        dynasm!(a; .arch x64; sub rdi, r9);
        if moves {
            dynasm!(a; .arch x64; sub rsi, rbx; mov r11, [rsp + 24 + at::TLB]);
        }
        dynasm!(a; .arch x64
            ; pop rdx
            ; pop rbx
            ; nothing:
            ; ret
            ; unknown:
            ; pop rdx
            ; pop rbx
            ; jmp ->helper
        );
    }
}
