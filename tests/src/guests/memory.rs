//! Paging (Intel SDM volume 3, chapter 4) and memory that changes under the processor.

use iced_x86::code_asm::*;

use super::image::{Asm, BASE, Code, FREE, Image, Mode, PD, PD32, PT, PT32, SCRATCH};
use super::{Guest, many, one};

/// The first page with an entry of its own, with 32-bit paging and with the others.
const PAGE32: u32 = 0x40_0000;
const PAGE: u32 = 0x20_0000;

/// Maps the `n`th such page to itself with these flags.
fn map32(c: &mut Code, n: u32, flags: u32) -> Asm {
    c.mov(dword_ptr(BASE + PT32 + 4 * n), PAGE32 + n * 0x1000 | flags)?;
    c.invlpg(byte_ptr(PAGE32 + n * 0x1000))
}

/// The same for PAE and 64-bit paging, with the entry's upper half.
fn map(c: &mut Code, n: u32, flags: u32, high: u32) -> Asm {
    c.mov(dword_ptr(BASE + PT + 8 * n), (PAGE + n * 0x1000 | flags) as i32)?;
    c.mov(dword_ptr(BASE + PT + 8 * n + 4), high as i32)?;
    c.invlpg(byte_ptr(PAGE + n * 0x1000))
}

fn set_cr0(c: &mut Code, bit: u32, on: bool) -> Asm {
    if c.bits == 64 {
        c.mov(rax, cr0)?;
    } else {
        c.mov(eax, cr0)?;
    }
    c.btr(eax, bit)?;
    if on {
        c.bts(eax, bit)?;
    }
    if c.bits == 64 { c.mov(cr0, rax) } else { c.mov(cr0, eax) }
}

/// EFER.NXE on.
fn nx_on(c: &mut Code) -> Asm {
    c.mov(ecx, 0xc000_0080u32)?;
    c.rdmsr()?;
    c.bts(eax, 11u32)?;
    c.wrmsr()
}

/// A near call to an address in EAX.
fn call_eax(c: &mut Code) -> Asm {
    if c.bits == 64 { c.call(rax) } else { c.call(eax) }
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    one("page_absent", Mode::Paged32, |c| {
        map32(c, 0, 6)?;
        c.trial("read:", |c| c.mov(eax, dword_ptr(PAGE32 + 4)))?;
        c.trial("write:", |c| c.mov(dword_ptr(PAGE32 + 8), 1))?;
        c.trial("read and write:", |c| c.add(dword_ptr(PAGE32 + 12), 1))?;
        c.trial("fetch:", |c| { c.mov(eax, PAGE32 + 16)?; c.jmp(eax) })?;
        c.user_trial("read in ring 3:", 0, |c| c.mov(eax, dword_ptr(PAGE32 + 4)))?;
        c.user_trial("write in ring 3:", 0, |c| c.mov(dword_ptr(PAGE32 + 8), 1))
    }),
    one("page_read_only", Mode::Paged32, |c| {
        map32(c, 0, 5)?;
        c.trial("ring 0 writes:", |c| c.mov(dword_ptr(PAGE32), 1))?;
        c.user_trial("ring 3 reads:", 0, |c| c.mov(eax, dword_ptr(PAGE32)))?;
        c.user_trial("ring 3 writes:", 0, |c| c.mov(dword_ptr(PAGE32), 1))?;
        set_cr0(c, 16, true)?;
        c.trial("ring 0 writes with WP:", |c| c.mov(dword_ptr(PAGE32), 1))?;
        c.trial("CMPXCHG that does not write:", |c| { c.mov(eax, 77)?; c.cmpxchg(dword_ptr(PAGE32), ecx) })?;
        c.trial("BTS of a set bit:", |c| c.bts(dword_ptr(PAGE32), 0u32))
    }),
    one("page_supervisor", Mode::Paged32, |c| {
        map32(c, 0, 3)?;
        c.trial("ring 0:", |c| c.mov(eax, dword_ptr(PAGE32)))?;
        c.user_trial("ring 3 reads:", 0, |c| c.mov(eax, dword_ptr(PAGE32)))?;
        c.user_trial("ring 3 writes:", 0, |c| c.mov(dword_ptr(PAGE32), 1))?;
        c.user_trial("ring 3 fetches:", 0, |c| { c.mov(eax, PAGE32)?; c.jmp(eax) })
    }),
    one("page_accessed_and_dirty", Mode::Paged32, |c| {
        for (name, write) in [("read:", false), ("write:", true)] {
            map32(c, 0, 7)?;
            c.trial(name, |c| {
                if write { c.mov(dword_ptr(PAGE32), 1)? } else { c.mov(eax, dword_ptr(PAGE32))? }
                c.mov(eax, dword_ptr(BASE + PT32))?; c.hex()?;
                c.mov(eax, dword_ptr(BASE + PD32 + 4))?; c.and(eax, 0xfff)?; c.hex()
            })?;
        }
        map32(c, 0, 6)?;
        c.trial("a fault marks nothing:", |c| c.mov(eax, dword_ptr(PAGE32)))?;
        c.mov(eax, dword_ptr(BASE + PT32))?;
        c.hex()
    }),
    one("page_crossing", Mode::Paged32, |c| {
        map32(c, 1, 6)?;
        c.mov(dword_ptr(PAGE32 + 0xffc), 0x1111_1111)?;
        c.trial("write:", |c| c.mov(dword_ptr(PAGE32 + 0xffe), 0x2222_2222))?;
        c.mov(eax, dword_ptr(PAGE32 + 0xffc))?; c.hex()?; c.say("\n")?;
        map32(c, 1, 7)?;
        map32(c, 0, 6)?;
        c.trial("first page absent:", |c| c.mov(eax, dword_ptr(PAGE32 + 0xffe)))?;
        map32(c, 0, 7)?;
        c.trial("both there:", |c| { c.mov(dword_ptr(PAGE32 + 0xffe), 0x3333_4444)?; c.mov(eax, dword_ptr(PAGE32 + 0xffe))?; c.hex() })
    }),
    one("page_reserved_bits", Mode::Paged32, |c| {
        c.mov(dword_ptr(BASE + PD32 + 8), 0xa0_0087u32)?; c.invlpg(byte_ptr(0x80_0000))?;
        c.trial("4 MiB page:", |c| c.mov(eax, dword_ptr(0x80_0010)))?;
        c.user_trial("4 MiB page in ring 3:", 0, |c| c.mov(dword_ptr(0x80_0010), 1))
    }),
    one("page_pushes_are_whole", Mode::Paged32, |c| {
        map32(c, 0, 6)?;
        c.trial("PUSHA over the page's edge:", |c| { c.mov(esp, PAGE32 + 0x1010)?; c.pushad() })?;
        c.trial("POP to an absent page keeps ESP:", |c| { c.push(7)?; c.pop(dword_ptr(PAGE32)) })?;
        c.trial("ENTER onto an absent page:", |c| { c.enter(0x1000, 0)?; c.leave() })
    }),
    one("page_string_stops_in_the_middle", Mode::Paged32, |c| {
        map32(c, 1, 6)?;
        c.mov(edi, PAGE32 + 0xff8)?; c.mov(esi, FREE)?; c.mov(ecx, 5)?;
        c.trial("REP MOVS:", |c| { c.mov(esi, FREE)?; c.mov(ecx, 5)?; c.rep().movsd() })?;
        c.mov(eax, edi)?; c.hex()?; c.say("\n")?;
        c.mov(edi, PAGE32 + 0xffc)?;
        c.trial("REP STOS:", |c| { c.mov(ecx, 16)?; c.rep().stosb() })?;
        c.mov(eax, edi)?; c.hex()
    }),
    one("pae_reserved_bits", Mode::Pae32, |c| {
        map(c, 0, 7, 1 << 20)?;
        c.trial("bit 52:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        map(c, 0, 7, 1 << 31)?;
        c.trial("bit 63 without NXE:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        c.or(dword_ptr(BASE + PD + 16), 1 << 13)?; c.invlpg(byte_ptr(0x40_0000))?;
        c.trial("2 MiB page, bit 13:", |c| c.mov(eax, dword_ptr(0x40_0000)))
    }),
    one("pae_no_execute", Mode::Pae32, |c| {
        nx_on(c)?;
        c.mov(byte_ptr(PAGE), 0xc3u32)?;
        c.trial("RET:", |c| { c.mov(eax, PAGE)?; call_eax(c) })?;
        map(c, 0, 7, 1 << 31)?;
        c.trial("reads:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        c.trial("fetches:", |c| { c.mov(eax, PAGE)?; call_eax(c) })?;
        c.user_trial("fetches in ring 3:", 0, |c| { c.mov(eax, PAGE)?; c.jmp(eax) })
    }),
    one("pae_pointers_are_loaded_with_cr3", Mode::Pae32, |c| {
        c.mov(eax, cr3)?; c.mov(ebx, eax)?;
        c.mov(dword_ptr(ebx + 8), 0)?;
        c.trial("before the load:", |c| { c.mov(eax, dword_ptr(0x4060_0000))?; c.say(" read") })?;
        c.mov(cr3, ebx)?;
        c.trial("after the load:", |c| c.mov(eax, dword_ptr(0x4060_0000)))?;
        c.mov(dword_ptr(ebx + 8), BASE + PD | 3)?;
        c.trial("reserved bits:", |c| c.mov(cr3, ebx))
    }),
    one("accessed_again", Mode::Long, |c| {
        // Code at the first page, which MOV EAX, 1 and RET are; a call of it and RET at the second.
        c.mov(dword_ptr(PAGE), 0x0000_01b8)?; c.mov(dword_ptr(PAGE + 4), 0xc300)?;
        c.mov(dword_ptr(PAGE + 0x1000), 0xffef_fbe8u32 as i32)?; c.mov(word_ptr(PAGE + 0x1004), 0xc3ff)?;
        let pages = |c: &mut Code| {
            for n in 0..2 { c.mov(eax, dword_ptr(BASE + PT + 8 * n))?; c.and(eax, 0x60)?; c.hex()?; }
            Ok(())
        };
        for (name, at, data) in [("a call:", PAGE, false), ("a call of a call:", PAGE + 0x1000, false), ("a read:", PAGE, true)] {
            for by_cr3 in [false, true] {
                c.trial(name, |c| {
                    for _ in 0..3 {
                        for n in 0..2 { c.and(dword_ptr(BASE + PT + 8 * n), !0x60)?; }
                        if by_cr3 {
                            c.mov(rax, cr3)?; c.mov(cr3, rax)?;
                        } else {
                            for n in 0..2 { c.invlpg(byte_ptr(PAGE + 0x1000 * n))?; }
                        }
                        for _ in 0..2 { if data { c.mov(eax, dword_ptr(at))? } else { c.call(u64::from(at))? } }
                        pages(c)?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }),
    one("code_over_the_edge_of_a_page", Mode::Long, |c| {
        // MOV EAX, 1; RET over the edge; then its second page is another one, where the constant and the way on are others.
        c.mov(dword_ptr(PAGE + 0xffd), 0x0000_01b8)?;
        for frame in 1..4 { c.mov(dword_ptr(PAGE + 0x1000 * frame), (0xc3_0000 + frame) as i32)?; }
        for (name, warm) in [("once:", 1), ("often:", 40)] {
            c.trial(name, |c| {
                for frame in [1, 2, 3, 1] {
                    c.mov(dword_ptr(BASE + PT + 8), (PAGE + frame * 0x1000 | 7) as i32)?; c.invlpg(byte_ptr(PAGE + 0x1000))?;
                    let mut again = c.create_label();
                    c.mov(ebx, warm)?; c.set_label(&mut again)?; c.call(u64::from(PAGE + 0xffd))?; c.dec(ebx)?; c.jne(again)?;
                    c.hex()?;
                    c.mov(eax, dword_ptr(BASE + PT + 8))?; c.and(eax, 0x60)?; c.hex()?;
                    c.and(dword_ptr(BASE + PT + 8), !0x60)?; c.invlpg(byte_ptr(PAGE + 0x1000))?;
                    c.call(u64::from(PAGE + 0xffd))?;
                    c.mov(eax, dword_ptr(BASE + PT + 8))?; c.and(eax, 0x60)?; c.hex()?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }),
    one("long_canonical", Mode::Long, |c| {
        c.trial("read:", |c| { c.mov(rbx, 0x8000_0000_0000u64)?; c.mov(eax, dword_ptr(rbx)) })?;
        c.trial("by the stack:", |c| { c.mov(rbp, 0x8000_0000_0000u64)?; c.mov(eax, dword_ptr(rbp)) })?;
        c.trial("jump:", |c| { c.mov(rbx, 0x8000_0000_0000u64)?; c.jmp(rbx) })?;
        c.trial("over the edge:", |c| { c.mov(rbx, 0x7fff_ffff_fffeu64)?; c.mov(eax, dword_ptr(rbx)) })?;
        c.trial("INVLPG does nothing:", |c| { c.mov(rbx, 0x8000_0000_0000u64)?; c.invlpg(byte_ptr(rbx)) })
    }),
    one("long_absent_levels", Mode::Long, |c| {
        c.trial("no PML4 entry:", |c| { c.mov(rbx, 0x80_0000_0000u64)?; c.mov(eax, dword_ptr(rbx)) })?;
        c.trial("no PDPT entry:", |c| { c.mov(rbx, 0x4000_0000u64)?; c.mov(dword_ptr(rbx), 1) })?;
        map(c, 0, 0, 0)?;
        c.trial("no PT entry:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        c.user_trial("no PT entry in ring 3:", 0, |c| c.mov(dword_ptr(PAGE), 1))
    }),
    one("long_no_execute", Mode::Long, |c| {
        map(c, 0, 7, 1 << 31)?;
        c.trial("bit 63 without NXE:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        nx_on(c)?;
        c.trial("reads:", |c| c.mov(eax, dword_ptr(PAGE)))?;
        c.trial("fetches:", |c| { c.mov(eax, PAGE)?; call_eax(c) })?;
        set_cr0(c, 16, true)?;
        map(c, 0, 5, 0)?;
        c.trial("ring 0 writes with WP:", |c| c.mov(dword_ptr(PAGE), 1))
    }),
    one("long_mode_stays_consistent", Mode::Long, |c| {
        c.trial("CR4.PAE cleared:", |c| { c.mov(rax, cr4)?; c.btr(eax, 5u32)?; c.mov(cr4, rax) })?;
        c.trial("EFER.LME cleared:", |c| { c.mov(ecx, 0xc000_0080u32)?; c.rdmsr()?; c.btr(eax, 8u32)?; c.wrmsr() })?;
        c.trial("CR0.PE cleared:", |c| { c.mov(rax, cr0)?; c.btr(eax, 0u32)?; c.mov(cr0, rax) })?;
        c.trial("CR3 beyond physical addresses:", |c| { c.mov(rax, 1u64 << 60)?; c.mov(cr3, rax) })
    }),
    one("code_changes_itself", Mode::Flat32, |c| {
        c.trial("the next instruction:", |c| {
            let mut next = c.create_label();
            let mut here = c.create_label();
            c.call(here)?;
            c.set_label(&mut here)?;
            c.pop(ebx)?;
            // MOV BYTE [EBX+8], 5Ah changes the operand of MOV AL behind it.
            c.db(&[0xc6, 0x43, 0x08, 0x5a])?;
            c.jmp(next)?;
            c.set_label(&mut next)?;
            c.db(&[0xb0, 0x11])?;
            c.movzx(eax, al)?;
            c.hex()
        })?;
        c.trial("a loop's body, each time:", |c| {
            let mut again = c.create_label();
            c.mov(edi, FREE)?;
            // INC EAX; RET becomes DEC EAX; RET and so on.
            c.mov(dword_ptr(edi), 0xc340)?; c.xor(eax, eax)?; c.mov(ecx, 9)?;
            c.set_label(&mut again)?;
            c.call(edi)?; c.shl(eax, 1)?; c.xor(byte_ptr(edi), 8u32)?; c.dec(ecx)?; c.jne(again)?;
            c.hex()
        })?;
        c.trial("by a string:", |c| {
            c.mov(edi, FREE)?; c.mov(dword_ptr(edi), 0xc390_9090u32)?; c.call(edi)?;
            c.mov(al, 0x40u32)?; c.mov(ecx, 3)?; c.rep().stosb()?; c.xor(eax, eax)?; c.mov(edi, FREE)?; c.call(edi)?;
            c.hex()
        })
    }),
    one("two_addresses_of_one_page", Mode::Paged32, |c| {
        c.mov(dword_ptr(BASE + PT32 + 4), 0x40_0007u32)?; c.invlpg(byte_ptr(PAGE32 + 0x1000))?;
        c.trial("data:", |c| { c.mov(dword_ptr(PAGE32 + 8), 0x1234)?; c.mov(eax, dword_ptr(PAGE32 + 0x1008))?; c.hex() })?;
        c.trial("code:", |c| {
            c.mov(dword_ptr(PAGE32), 0xc340)?; c.xor(eax, eax)?; c.mov(ebx, PAGE32)?; c.call(ebx)?;
            c.mov(byte_ptr(PAGE32 + 0x1000), 0x48u32)?; c.call(ebx)?; c.call(ebx)?; c.hex()
        })
    }),
    many("paging_on_and_off", Mode::Flat32, |g: &mut Image| g.code(32, |c| {
        c.trial("on:", |c| {
            c.mov(eax, cr4)?; c.or(eax, 0x10)?; c.mov(cr4, eax)?; c.mov(eax, BASE + PD32)?; c.mov(cr3, eax)?;
            c.mov(dword_ptr(PAGE32), 0x55)?;
            c.mov(dword_ptr(BASE + PT32), 0x40_1007u32)?;
            c.mov(dword_ptr(PAGE32 + 0x1000), 0x66)?;
            c.mov(eax, cr0)?; c.bts(eax, 31u32)?; c.mov(cr0, eax)?;
            c.mov(eax, dword_ptr(PAGE32))?; c.hex()
        })?;
        c.trial("off:", |c| { c.mov(eax, cr0)?; c.btr(eax, 31u32)?; c.mov(cr0, eax)?; c.mov(eax, dword_ptr(PAGE32))?; c.hex() })?;
        c.trial("scratch keeps:", |c| { c.mov(dword_ptr(BASE + SCRATCH), 3)?; c.mov(eax, dword_ptr(BASE + SCRATCH))?; c.hex() })?;
        c.exit()
    })),
];
