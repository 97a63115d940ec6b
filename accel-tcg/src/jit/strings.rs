//! REP MOVS and REP STOS without a call into the engine (SDM vol. 1, 7.3.9.2; vol. 2, REP).
//!
//! Most repeated moves and fills are short and stay in pages that the TLB has. These the host runs itself: its own
//! instruction with the same element size on the same bytes, so that runs which overlap come out alike and nothing is
//! left half done. The stubs look both runs up in the TLB as a load and a store of that many bytes would be (which
//! excludes pages with code, logged ones and devices), and touch neither flags nor vector registers. A run of a few
//! pages is made page by page. Whatever is unusual (DF, more than 4096 bytes, a page that the TLB does not have, a
//! budget that the iterations do not fit into) goes to the helper, where the registers say how far it has come.

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
        // rdx is how far into a page a run may begin.
        dynasm!(a; .arch x64
            ; push rbx
            ; push rdx
            ; mov r9d, ecx
            ; shl r9d, log2 as i8
            ; mov edx, 0x1000
            ; sub edx, r9d
        );
        look_up(a, moves, PUSHED);
        dynasm!(a; .arch x64; jne >pages);
        if counted {
            dynasm!(a; .arch x64; lea rdx, [rcx - 1]; sub [rsp + PUSHED + at::BUDGET], rdx);
        }
        repeat(a, moves, log2);
        dynasm!(a; .arch x64
            ; pop rdx
            ; pop rbx
            ; mov r11, [rsp + 8 + at::TLB]
            ; nothing:
            ; ret
        );
        by_pages(a, moves, log2, counted);
        // The registers say how far it has come.
        dynasm!(a; .arch x64
            ; pop rdx
            ; pop rbx
            ; jmp ->helper
        );
    }
}

/// How far up the environment is where two registers lie on the stack above the return address.
const PUSHED: i32 = 24;

/// Looks for rdi, and for rsi if it moves, which may be rdx bytes into their pages: ZF if the TLB has both. Then r9 and
/// rbx are how far the host's addresses are from the guest's. r11 is the TLB's view before, and lost. `env`: how far up
/// from rsp the environment is.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn look_up(a: &mut Assembler, moves: bool, env: i32) {
    let (host, tag_r) = (offset_of!(Entry, host) as i32, offset_of!(Entry, tag_r) as i32);
    dynasm!(a; .arch x64
        ; mov r9, rdi
        ; shr r9, (12 - ENTRY_SHIFT) as i8
        ; and r9d, [rsp + env + at::TLB_MASK]
        ; add r9, r11
        ; mov rbx, rdi
        ; xor rbx, [r9 + offset_of!(Entry, tag_w) as i32]
        ; cmp rbx, rdx
        ; ja >unknown
        ; add rbx, [r9 + host]
        ; sub rbx, rdi
        ; mov r9, rbx
    );
    if moves {
        dynasm!(a; .arch x64
            ; mov rbx, rsi
            ; shr rbx, (12 - ENTRY_SHIFT) as i8
            ; and ebx, [rsp + env + at::TLB_MASK]
            ; add r11, rbx
            ; mov rbx, rsi
            ; xor rbx, [r11 + tag_r]
            ; cmp rbx, rdx
            ; ja >unknown
            ; add rbx, [r11 + host]
            ; sub rbx, rsi
        );
    }
    dynasm!(a; .arch x64; cmp eax, eax; unknown:);
}

/// Runs the instruction for rcx elements.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn repeat(a: &mut Assembler, moves: bool, log2: u8) {
    dynasm!(a; .arch x64; add rdi, r9);
    if moves {
        dynasm!(a; .arch x64; add rsi, rbx);
    }
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
        dynasm!(a; .arch x64; sub rsi, rbx);
    }
}

/// At `pages`: runs what does not lie in one page at each end, piece by piece, as far as the TLB knows; returns from the
/// stub if that is all. An element in two pages is not for here.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn by_pages(a: &mut Assembler, moves: bool, log2: u8, counted: bool) {
    dynasm!(a; .arch x64
        ; pages:
        // How many elements there are in the page.
        ; mov edx, edi
        ; or edx, -0x1000
        ; neg edx
    );
    if moves {
        dynasm!(a; .arch x64
            ; mov ebx, esi
            ; or ebx, -0x1000
            ; neg ebx
            ; cmp ebx, edx
            ; cmovb edx, ebx
        );
    }
    dynasm!(a; .arch x64
        ; shr edx, log2 as i8
        ; je >no_more
        ; cmp rcx, rdx
        ; cmovb rdx, rcx
        ; push rdx
        ; mov edx, 0xfff
        ; mov r11, [rsp + PUSHED + 8 + at::TLB]
    );
    look_up(a, moves, PUSHED + 8);
    dynasm!(a; .arch x64
        ; pop rdx
        ; jne >no_more
        ; sub rcx, rdx
        ; push rcx
        ; mov rcx, rdx
    );
    if counted {
        // The last iteration was paid for.
        dynasm!(a; .arch x64
            ; cmp QWORD [rsp], 1
            ; sbb rdx, 0
            ; sub [rsp + PUSHED + 8 + at::BUDGET], rdx
        );
    }
    repeat(a, moves, log2);
    dynasm!(a; .arch x64
        ; pop rcx
        ; test rcx, rcx
        ; jne <pages
        ; pop rdx
        ; pop rbx
        ; mov r11, [rsp + 8 + at::TLB]
        ; ret
        ; no_more:
    );
}
