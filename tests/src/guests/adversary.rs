//! A guest that makes random code, changes it and jumps into it, on one processor or two.
//!
//! Ring 0 writes pieces of code into an arena, from templates whose free bits are random or from plain noise, changes
//! bytes, copies pieces elsewhere, maps pages of the arena to each other or takes rights away, and then enters the arena at
//! a random place in ring 3, with registers and a stack that mostly point into it; so code is its own data and stack. It
//! may be entered as 64-bit, 32-bit or 16-bit code, the latter two also by segments whose bases and limits change, with
//! breakpoints in the arena, single steps, unmasked exceptions of the vector and x87 units, and time enough for long loops.
//! INT 42h and 43h and every fourth SYSCALL come back at once.
//! Whatever ends that, an exception or the local APIC's timer, comes back to ring 0, which takes vector, error code, CR2
//! and all registers into a hash and begins again. The hash is printed from time to time. Two processors have an arena each
//! and a third one together. In counted time the text and the machine's state are the same on every engine.
//!
//! Every change of a page table is followed by INVLPG, and tables belong to one processor, so that what a translation
//! cache happens to hold is never seen. Sources: Intel SDM volume 2 for the templates, volume 3 chapters 4, 6 and 10.

use std::path::Path;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::Emulator;

use super::exits::apic;
use super::image::{Asm, BASE, Code, IDT64, Image, Mode, PD, PDPT, PML4, PT, sel};

/// Variables of the first processor; those of the second follow a page later.
const VARS: i32 = 0x8_0000;
const RNG: i32 = 0;
const HASH: i32 = 8;
const ROUND: i32 = 16;
const DONE: i32 = 24;
const TABLE: i32 = 32;
const ARENA: i32 = 40;
/// The stack pointers of ring 3 and of ring 0, for SYSCALL.
const USER_STACK: i32 = 48;
const KERNEL_STACK: i32 = 56;
/// How often each vector has ended a round.
const ENDS: i32 = 0x400;
/// The local descriptor table.
const LDT: i32 = 0x600;
/// The vector and x87 units.
const XSAVE: i32 = 0x800;
/// The second processor's task state, and the page tables of both.
const TSS_B: u32 = 0x8_3000;
const TABLES: u32 = 0x8_4000;
/// The stack that ring 0 is entered with, and what ring 0 begins on.
const STACK_A: u32 = 0x4_0000;
const STACK_B: u32 = 0x7_8000;
/// The arena as ring 3 sees it: 16 pages of its own, 4 that both share.
const USER: i32 = 0x20_0000;
const OWN_PAGES: u32 = 16;
const SIZE: u32 = 0x1_4000;
/// Where it is in memory: each processor's, then the shared one.
const MEMORY: [u32; 2] = [0x60_0000, 0x62_0000];
const SHARED: u32 = 0x64_0000;
/// The timer's vector.
const TIMER: u32 = 0x31;
/// What stands for SYSCALL among the vectors.
const SYSCALL: i32 = 0x4f;
/// Selectors of the local descriptor table: SYSRET's pair, 16-bit and 32-bit code and data that begins in the arena,
/// data that ends there, and data that begins where an expand-down segment ends there.
const SYSRET: u32 = 0x04;
const CODE16: u32 = 0x1f;
const CODE32: u32 = 0x27;
const DATA32: i32 = 0x2f;
const STACK16: i32 = 0x37;
const DOWN: i32 = 0x3f;
#[rustfmt::skip]
const DESCRIPTORS: [u64; 8] = [
    0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0x000f_fb20_0000_ffff, 0x004f_fb20_0000_ffff, 0x00c0_f300_0000_020f,
    0x0000_f320_0000_ffff, 0x00c0_f700_0000_0208,
];
/// Templates that bodies of loops are made of: those before this one.
const IN_LOOPS: i32 = 40;
/// How many pieces of code are written between two lines of text.
const LINE: i32 = 4096;

/// Bytes of an instruction and the bits of it that are random.
type Template = (&'static [u8], &'static [u8]);

#[rustfmt::skip]
const TEMPLATES: &[Template] = &[
    // Arithmetic between registers in four widths, with immediates, shifts, products, quotients.
    (&[0x48, 0x01, 0xc0], &[0x07, 0x38, 0x3f]), (&[0x40, 0x01, 0xc0], &[0x07, 0x38, 0x3f]),
    (&[0x40, 0x00, 0xc0], &[0x07, 0x3a, 0x3f]), (&[0x66, 0x40, 0x01, 0xc0], &[0, 0x07, 0x38, 0x3f]),
    (&[0x48, 0x81, 0xc0, 0, 0, 0, 0], &[0x0f, 0, 0x3f, 0xff, 0xff, 0xff, 0xff]), (&[0x48, 0x83, 0xc0, 0], &[0x0f, 0, 0x3f, 0xff]),
    (&[0x40, 0xb8, 0, 0, 0, 0], &[0x01, 0x07, 0xff, 0xff, 0xff, 0xff]), (&[0x48, 0xc1, 0xc0, 0], &[0x0f, 0, 0x3f, 0x3f]),
    (&[0x48, 0xd3, 0xc0], &[0x0f, 0, 0x3f]), (&[0x48, 0x0f, 0xa4, 0xc0, 0], &[0x0f, 0, 0x08, 0x3f, 0x3f]),
    (&[0x48, 0x0f, 0xaf, 0xc0], &[0x0f, 0, 0, 0x3f]), (&[0x48, 0xf7, 0xd0], &[0x0f, 0, 0x2f]), (&[0x48, 0xf7, 0xe0], &[0x0f, 0, 0x0f]),
    (&[0x48, 0x0f, 0xa3, 0xc0], &[0x0f, 0, 0x18, 0x3f]), (&[0x48, 0x0f, 0xbc, 0xc0], &[0x0f, 0, 0x01, 0x3f]),
    (&[0x40, 0x0f, 0x90, 0xc0], &[0x07, 0, 0x0f, 0x3f]), (&[0x48, 0x0f, 0x40, 0xc0], &[0x0f, 0, 0x0f, 0x3f]),
    (&[0x48, 0x0f, 0xb6, 0xc0], &[0x0f, 0, 0x09, 0x3f]), (&[0x48, 0x87, 0xc0], &[0x0f, 0, 0x3f]),
    (&[0x48, 0x0f, 0xc1, 0xc0], &[0x0f, 0, 0x01, 0x3f]), (&[0x48, 0x0f, 0xb1, 0xc0], &[0x0f, 0, 0x01, 0x3f]),
    (&[0x48, 0x0f, 0xc8], &[0x0f, 0, 0x07]), (&[0x48, 0x98], &[0x08, 0x01]), (&[0x9e], &[0x01]), (&[0xf5], &[0x0d]),
    // Memory by R15, RIP and RSP.
    (&[0x49, 0x8d, 0x87, 0, 0, 0, 0], &[0x04, 0, 0x38, 0xff, 0xff, 0, 0]), (&[0x49, 0x8b, 0x87, 0, 0, 0, 0], &[0x0c, 0, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0x49, 0x89, 0x87, 0, 0, 0, 0], &[0x0c, 0, 0x38, 0xff, 0x3f, 0, 0]), (&[0x41, 0x88, 0x87, 0, 0, 0, 0], &[0x0c, 0, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0x49, 0x01, 0x87, 0, 0, 0, 0], &[0x0c, 0x38, 0x38, 0xff, 0x3f, 0, 0]), (&[0x49, 0x03, 0x87, 0, 0, 0, 0], &[0x0c, 0x38, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0x49, 0x81, 0x87, 0, 0, 0, 0, 0, 0, 0, 0], &[0x08, 0, 0x38, 0xff, 0x3f, 0, 0, 0xff, 0xff, 0xff, 0xff]),
    (&[0x49, 0xff, 0x87, 0, 0, 0, 0], &[0x08, 0, 0x08, 0xff, 0x3f, 0, 0]), (&[0x48, 0x89, 0x05, 0, 0, 0, 0], &[0x0c, 0, 0x38, 0xff, 0, 0, 0]),
    (&[0x48, 0x89, 0x05, 0x80, 0xff, 0xff, 0xff], &[0x0c, 0, 0x38, 0x7f, 0, 0, 0]), (&[0xc6, 0x05, 0, 0, 0, 0, 0], &[0, 0, 0x1f, 0, 0, 0, 0xff]),
    (&[0x48, 0x8b, 0x44, 0x24, 0], &[0x0c, 0x02, 0x38, 0, 0x7f]), (&[0xf0, 0x49, 0x0f, 0xb1, 0x87, 0, 0, 0, 0], &[0, 0x0c, 0, 0x01, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0xf0, 0x49, 0x0f, 0xc1, 0x87, 0, 0, 0, 0], &[0, 0x0c, 0, 0, 0x38, 0xff, 0x3f, 0, 0]), (&[0xf0, 0x49, 0x01, 0x87, 0, 0, 0, 0], &[0, 0x0c, 0x30, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0x41, 0x0f, 0xab, 0x87, 0, 0, 0, 0], &[0x0c, 0, 0x18, 0x38, 0xff, 0x3f, 0, 0]), (&[0x41, 0x0f, 0xc7, 0x8f, 0, 0, 0, 0], &[0x08, 0, 0, 0, 0xf0, 0x3f, 0, 0]),
    (&[0x40, 0x50], &[0x01, 0x0f]), (&[0x40, 0x50], &[0x01, 0x07]), (&[0x9c], &[0x01]), (&[0x68, 0, 0, 0, 0], &[0, 0xff, 0xff, 0, 0]),
    (&[0xc8, 0, 0, 0], &[0, 0x3f, 0, 0]), (&[0xc9], &[0]), (&[0x86, 0x04, 0x24], &[0x01, 0x38, 0]),
    (&[0xb9, 0, 0, 0, 0, 0xf3, 0xa4], &[0, 0x3f, 0x01, 0, 0, 0x01, 0x0f]), (&[0xb9, 0, 0, 0, 0, 0xf3, 0x48, 0xa4], &[0, 0x3f, 0, 0, 0, 0x01, 0x08, 0x0f]),
    (&[0x48, 0xa4], &[0x08, 0x0f]),
    // Jumps near and far, calls, returns, loops.
    (&[0x70, 0x02], &[0x0f, 0x1f]), (&[0x70, 0x00], &[0x0f, 0x07]), (&[0x70, 0xe0], &[0x0f, 0x1f]), (&[0x0f, 0x80, 0, 0, 0, 0], &[0, 0x0f, 0xff, 0x1f, 0, 0]),
    (&[0x0f, 0x80, 0, 0, 0xff, 0xff], &[0, 0x0f, 0xff, 0xff, 0, 0]), (&[0xe9, 0, 0, 0, 0], &[0, 0xff, 0x1f, 0, 0]), (&[0xe8, 0, 0, 0, 0], &[0, 0xff, 0x03, 0, 0]),
    (&[0xe8, 0, 0, 0xff, 0xff], &[0, 0xff, 0xff, 0, 0]), (&[0xc3], &[0]), (&[0xe0, 0xf0], &[0x03, 0x0f]), (&[0x41, 0xff, 0xa7, 0, 0, 0, 0], &[0, 0, 0, 0xff, 0x3f, 0, 0]),
    (&[0x41, 0xff, 0xd7], &[0, 0, 0x30]), (&[0x40, 0xff, 0xe0], &[0x01, 0, 0x17]), (&[0xeb, 0xff], &[0, 0x0f]),
    // SSE and x87.
    (&[0x66, 0x0f, 0xd0, 0xc0], &[0, 0, 0x2f, 0x3f]), (&[0x66, 0x0f, 0x60, 0xc0], &[0, 0, 0x0f, 0x3f]), (&[0xf2, 0x0f, 0x58, 0xc0], &[0x01, 0, 0x07, 0x3f]),
    (&[0x66, 0x0f, 0x58, 0xc0], &[0, 0, 0x07, 0x3f]), (&[0x0f, 0x50, 0xc0], &[0, 0x0f, 0x3f]), (&[0x41, 0x0f, 0x10, 0x87, 0, 0, 0, 0], &[0x04, 0, 0x01, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0xf3, 0x41, 0x0f, 0x6f, 0x87, 0, 0, 0, 0], &[0, 0x04, 0, 0x10, 0x38, 0xff, 0x3f, 0, 0]), (&[0x66, 0x48, 0x0f, 0x6e, 0xc0], &[0, 0x0f, 0, 0x10, 0x3f]),
    (&[0xf2, 0x48, 0x0f, 0x2a, 0xc0], &[0x01, 0x0f, 0, 0, 0x3f]), (&[0xf2, 0x48, 0x0f, 0x2c, 0xc0], &[0x01, 0x0f, 0, 0x01, 0x3f]), (&[0x66, 0x0f, 0x2e, 0xc0], &[0, 0, 0x01, 0x3f]),
    (&[0xc5, 0xf4, 0x58, 0xc1], &[0, 0x7f, 0x07, 0x3f]), (&[0xc5, 0xf5, 0xfe, 0xc1], &[0, 0x7c, 0x01, 0x3f]), (&[0xc4, 0xc1, 0x7c, 0x10, 0x87, 0, 0, 0, 0], &[0, 0x80, 0x04, 0x01, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0xc4, 0xe2, 0xf8, 0xf2, 0xc1], &[0, 0xa0, 0xf8, 0x07, 0x3f]), (&[0xc5, 0xf8, 0x77], &[0, 0x04, 0]), (&[0x41, 0xd9, 0xaf, 0, 0, 0, 0], &[0, 0, 0x10, 0xff, 0x3f, 0, 0]),
    (&[0x66, 0x0f, 0x70, 0xc0, 0], &[0, 0, 0, 0x3f, 0xff]), (&[0xd8, 0xc0], &[0x07, 0x3f]), (&[0x41, 0xd8, 0x87, 0, 0, 0, 0], &[0, 0x06, 0x38, 0xff, 0x3f, 0, 0]),
    (&[0x41, 0xdb, 0xaf, 0, 0, 0, 0], &[0, 0, 0x10, 0xff, 0x3f, 0, 0]), (&[0xdb, 0xe2], &[0, 0x01]), (&[0x41, 0x0f, 0xae, 0x97, 0, 0, 0, 0], &[0, 0, 0, 0x08, 0xff, 0x3f, 0, 0]),
    // What traps or may trap, and plain noise.
    (&[0x0f, 0xa2], &[0, 0]), (&[0x0f, 0x31], &[0, 0]), (&[0xcc], &[0]), (&[0xcd, 0x40], &[0, 0x03]), (&[0x0f, 0x0b], &[0, 0]), (&[0x0f, 0x05], &[0, 0]),
    (&[0xe4, 0x80], &[0x0b, 0x3f]), (&[0xf4], &[0x0f]), (&[0x8e, 0xe0], &[0, 0x0f]), (&[0x0f, 0xae, 0xe8], &[0, 0, 0x1f]), (&[0xf3, 0x90], &[0, 0]),
    // Returns, far and by IRET, to code of other kinds; segments.
    (&[0x6a, 0x17, 0x68, 0, 0, 0x20, 0, 0x48, 0xcb], &[0, 0x38, 0, 0xff, 0x3f, 0, 0, 0, 0]), (&[0x6a, 0x33, 0x68, 0, 0, 0x20, 0, 0xcb], &[0, 0x28, 0, 0xff, 0x3f, 0, 0, 0]),
    (&[0x6a, 0x3b, 0x54, 0x9c, 0x6a, 0x5b, 0x68, 0, 0, 0x20, 0, 0x48, 0xcf], &[0, 0, 0, 0, 0, 0x48, 0, 0xff, 0x3f, 0, 0, 0, 0]),
    (&[0xea, 0, 0, 0, 0, 0x1f, 0], &[0, 0xff, 0x3f, 0, 0, 0x38, 0]), (&[0x66, 0xb8, 0x2f, 0, 0x8e, 0xd8], &[0, 0, 0x18, 0, 0, 0x38]), (&[0x66, 0xb8, 0x3b, 0, 0x8e, 0xd0], &[0, 0, 0x0c, 0, 0, 0]),
    (&[0xcd, 0x42], &[0, 0x01]), (&[0x0f, 0x05], &[0, 0]), (&[0x54, 0x81, 0x0c, 0x24, 0, 0x01, 0, 0, 0x9d], &[0, 0, 0, 0, 0, 0x04, 0, 0, 0]),
    (&[0xff, 0x2c, 0x24], &[0, 0, 0x10]), (&[0x0f, 0x20, 0xc0], &[0, 0x03, 0x3f]), (&[0, 0, 0, 0, 0, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    (&[0, 0, 0], &[0xff, 0xff, 0xff]), (&[0x66], &[0x01]), (&[0x40], &[0x0f]), (&[0x90], &[0]),
];

/// R13 becomes the next random number, also in RAX: a xorshift.
fn random(c: &mut Code) -> Asm {
    c.mov(rax, r13)?;
    c.shl(rax, 13)?;
    c.xor(r13, rax)?;
    c.mov(rax, r13)?;
    c.shr(rax, 7)?;
    c.xor(r13, rax)?;
    c.mov(rax, r13)?;
    c.shl(rax, 17)?;
    c.xor(r13, rax)?;
    c.mov(rax, r13)
}

/// Takes RAX into the hash, R14. RBX is its multiplier.
fn hash(c: &mut Code) -> Asm {
    c.rol(r14, 7)?;
    c.xor(r14, rax)?;
    c.imul_2(r14, rbx)
}

/// EAX, random, becomes a place in the arena; changes EDX and ECX.
fn place(c: &mut Code) -> Asm {
    c.shr(rax, 20)?;
    c.mov(eax, eax)?;
    c.xor(edx, edx)?;
    c.mov(ecx, (SIZE - 32) as i32)?;
    c.div(ecx)?;
    c.mov(eax, edx)
}

/// EAX, a place in the arena, becomes RDI, its address in memory as ring 0 sees it. R12 are the variables.
fn memory(c: &mut Code) -> Asm {
    let mut own = c.create_label();
    let mut done = c.create_label();
    c.mov(edi, eax)?;
    c.cmp(edi, (OWN_PAGES * 4096) as i32)?;
    c.jb(own)?;
    c.add(edi, (SHARED - OWN_PAGES * 4096) as i32)?;
    c.jmp(done)?;
    c.set_label(&mut own)?;
    c.add(rdi, qword_ptr(r12 + ARENA))?;
    c.set_label(&mut done)?;
    c.nop()
}

/// Writes a piece of code to a random place; RBP is where, as ring 3 sees it.
fn write_piece(c: &mut Code, templates: u32) -> Asm {
    let mut again = c.create_label();
    let mut done = c.create_label();
    random(c)?;
    place(c)?;
    c.lea(ebp, dword_ptr(eax + USER))?;
    memory(c)?;
    c.mov(r10d, r13d)?;
    c.and(r10d, 15)?;
    c.add(r10d, 3)?;
    c.xor(r11d, r11d)?;
    c.mov(r8d, TEMPLATES.len() as i32)?;
    // One in four is a loop: MOV ECX with its turns, a few plain instructions, DEC ECX, JNZ.
    random(c)?;
    c.test(eax, 0x1800)?;
    c.jnz(again)?;
    c.mov(byte_ptr(rdi), 0xb9)?;
    c.shr(eax, 13)?;
    c.and(eax, 0x3fff)?;
    c.mov(dword_ptr(rdi + 1), eax)?;
    c.add(rdi, 5)?;
    c.mov(r11, rdi)?;
    c.mov(r8d, IN_LOOPS)?;
    c.and(r10d, 3)?;
    c.inc(r10d)?;
    c.set_label(&mut again)?;
    random(c)?;
    c.shr(rax, 33)?;
    c.xor(edx, edx)?;
    c.div(r8d)?;
    c.shl(edx, 5)?;
    c.lea(r9, qword_ptr(rdx + templates as i32))?;
    random(c)?;
    c.and(rax, qword_ptr(r9 + 16))?;
    c.xor(rax, qword_ptr(r9))?;
    c.mov(qword_ptr(rdi), rax)?;
    random(c)?;
    c.and(rax, qword_ptr(r9 + 24))?;
    c.xor(rax, qword_ptr(r9 + 8))?;
    c.mov(qword_ptr(rdi + 8), rax)?;
    c.movzx(eax, byte_ptr(r9 + 15))?;
    c.add(rdi, rax)?;
    c.dec(r10d)?;
    c.jnz(again)?;
    c.test(r11, r11)?;
    c.jz(done)?;
    c.mov(dword_ptr(rdi), 0x850f_c9ffu32 as i32)?;
    c.sub(r11, rdi)?;
    c.sub(r11d, 8)?;
    c.mov(dword_ptr(rdi + 4), r11d)?;
    c.set_label(&mut done)?;
    c.nop()
}

/// Changes what is in the arena, or how it is mapped.
fn change(c: &mut Code) -> Asm {
    let mut copy = c.create_label();
    let mut map = c.create_label();
    let mut rights = c.create_label();
    let mut as_before = c.create_label();
    let mut segment = c.create_label();
    let mut limit = c.create_label();
    let mut flush = c.create_label();
    let mut done = c.create_label();
    random(c)?;
    c.and(eax, 15)?;
    c.cmp(eax, 11)?;
    c.je(segment)?;
    c.cmp(eax, 12)?;
    c.je(copy)?;
    c.cmp(eax, 13)?;
    c.je(map)?;
    c.cmp(eax, 14)?;
    c.je(rights)?;
    c.cmp(eax, 4)?;
    c.ja(done)?;
    // A byte or four change, near what was just written as often as anywhere.
    random(c)?;
    place(c)?;
    memory(c)?;
    random(c)?;
    c.mov(ecx, eax)?;
    c.shr(rax, 8)?;
    c.xor(byte_ptr(rdi), al)?;
    c.test(ecx, 1)?;
    c.jz(done)?;
    c.xor(dword_ptr(rdi + 7), eax)?;
    c.jmp(done)?;
    // A piece of up to 256 bytes goes elsewhere.
    c.set_label(&mut copy)?;
    random(c)?;
    place(c)?;
    memory(c)?;
    c.mov(rsi, rdi)?;
    random(c)?;
    place(c)?;
    memory(c)?;
    c.mov(ecx, r13d)?;
    c.and(ecx, 255)?;
    c.rep().movsb()?;
    c.jmp(done)?;
    // A segment begins elsewhere, or ends elsewhere.
    c.set_label(&mut segment)?;
    random(c)?;
    c.mov(ecx, eax)?;
    c.and(ecx, 7)?;
    c.cmp(ecx, 3)?;
    c.jb(done)?;
    c.shr(rax, 20)?;
    c.test(eax, 0x1000)?;
    c.jz(limit)?;
    c.and(eax, 0xfff)?;
    c.mov(word_ptr(r12 + rcx * 8 + (LDT + 2)), ax)?;
    c.jmp(done)?;
    c.set_label(&mut limit)?;
    c.and(eax, 0x1f)?;
    c.or(eax, 0x200)?;
    c.and(ecx, 2)?;
    c.or(ecx, 5)?;
    c.mov(word_ptr(r12 + rcx * 8 + LDT), ax)?;
    c.jmp(done)?;
    // A page of the arena of one's own shows another of them.
    c.set_label(&mut map)?;
    random(c)?;
    c.mov(ecx, eax)?;
    c.and(ecx, (OWN_PAGES - 1) as i32)?;
    c.shr(rax, 20)?;
    c.and(eax, (OWN_PAGES - 1) as i32)?;
    c.shl(eax, 12)?;
    c.add(rax, qword_ptr(r12 + ARENA))?;
    c.or(rax, 7)?;
    c.mov(rdx, qword_ptr(r12 + TABLE))?;
    c.mov(qword_ptr(rdx + rcx * 8), rax)?;
    c.test(r13d, 0x300)?;
    c.jz(flush)?;
    c.shl(ecx, 12)?;
    c.lea(rcx, qword_ptr(rcx + USER))?;
    c.invlpg(byte_ptr(rcx))?;
    c.jmp(done)?;
    c.set_label(&mut flush)?;
    c.mov(rax, cr3)?;
    c.mov(cr3, rax)?;
    c.jmp(done)?;
    // A page becomes read-only or absent, or is as before.
    c.set_label(&mut rights)?;
    random(c)?;
    c.mov(ecx, eax)?;
    c.and(ecx, (OWN_PAGES - 1) as i32)?;
    c.shr(rax, 20)?;
    c.and(eax, 3)?;
    c.mov(rdx, qword_ptr(r12 + TABLE))?;
    c.or(qword_ptr(rdx + rcx * 8), 3)?;
    c.cmp(eax, 2)?;
    c.ja(as_before)?;
    c.xor(qword_ptr(rdx + rcx * 8), rax)?;
    c.set_label(&mut as_before)?;
    c.shl(ecx, 12)?;
    c.lea(rcx, qword_ptr(rcx + USER))?;
    c.invlpg(byte_ptr(rcx))?;
    c.set_label(&mut done)?;
    c.nop()
}

/// One time in 32: breakpoints on code and data in the arena.
fn breakpoints(c: &mut Code) -> Asm {
    let mut none = c.create_label();
    let mut done = c.create_label();
    random(c)?;
    c.mov(r10d, 0x400)?;
    c.test(eax, 0x1f_0000)?;
    c.jnz(none)?;
    for dr in [dr0, dr1, dr2, dr3] {
        random(c)?;
        place(c)?;
        c.add(eax, USER)?;
        c.mov(dr, rax)?;
    }
    // Of execution with the length that it must have, or of data with any.
    random(c)?;
    c.mov(edx, eax)?;
    c.and(edx, 0x1111_0000)?;
    c.imul_3(ecx, edx, 14)?;
    c.shr(rax, 16)?;
    c.and(ecx, eax)?;
    c.or(edx, ecx)?;
    c.shr(rax, 24)?;
    c.movzx(eax, al)?;
    c.or(r10d, edx)?;
    c.or(r10d, eax)?;
    c.mov(dr7, r10)?;
    c.jmp(done)?;
    c.set_label(&mut none)?;
    c.mov(dr7, r10)?;
    c.set_label(&mut done)?;
    c.nop()
}

/// One time in eight: random masks and roundings of the vector and x87 units.
fn units(c: &mut Code) -> Asm {
    let mut done = c.create_label();
    random(c)?;
    c.test(eax, 0x70_0000)?;
    c.jnz(done)?;
    c.fninit()?;
    c.mov(ecx, eax)?;
    c.and(ecx, 0xffff)?;
    c.push(rcx)?;
    c.ldmxcsr(dword_ptr(rsp))?;
    c.shr(rax, 24)?;
    c.and(eax, 0xf7f)?;
    c.mov(dword_ptr(rsp), eax)?;
    c.fldcw(word_ptr(rsp))?;
    c.pop(rax)?;
    c.set_label(&mut done)?;
    c.nop()
}

/// Data segments, flat or not, and the stack segment for the frame, which is pushed.
fn segments(c: &mut Code) -> Asm {
    random(c)?;
    c.mov(edx, sel::USER_DATA)?;
    for (bits, selector) in [(0x70_0000, DATA32), (0x7_0000, DOWN)] {
        c.mov(ecx, selector)?;
        c.test(eax, bits)?;
        c.cmovz(edx, ecx)?;
    }
    c.mov(ds, edx)?;
    c.mov(es, edx)?;
    c.mov(edx, sel::USER_DATA)?;
    for (bits, selector) in [(0x700_0000, STACK16), (0x7000, DATA32)] {
        c.mov(ecx, selector)?;
        c.test(eax, bits)?;
        c.cmovz(edx, ecx)?;
    }
    c.push(rdx)
}

/// SYSCALL: one time in four back at once, otherwise as if it were an interrupt that came to `common`.
fn system_call(c: &mut Code, common: u32) -> Asm {
    let mut back = c.create_label();
    c.swapgs()?;
    c.mov(qword_ptr(USER_STACK).gs(), rsp)?;
    c.mov(rsp, qword_ptr(KERNEL_STACK).gs())?;
    c.test(ecx, 3)?;
    c.jz(back)?;
    c.push((SYSRET + 11) as i32)?;
    c.push(qword_ptr(USER_STACK).gs())?;
    c.push(r11)?;
    c.push((SYSRET + 19) as i32)?;
    c.push(rcx)?;
    c.push(0)?;
    c.push(SYSCALL)?;
    c.swapgs()?;
    c.jmp(u64::from(common))?;
    c.set_label(&mut back)?;
    c.mov(rsp, qword_ptr(USER_STACK).gs())?;
    c.swapgs()?;
    c.sysretq()
}

/// Goes to ring 3 with random registers. RBP is where the last piece of code is.
fn enter(c: &mut Code) -> Asm {
    let registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
    let mut elsewhere = c.create_label();
    breakpoints(c)?;
    units(c)?;
    segments(c)?;
    // The frame of IRETQ.
    random(c)?;
    place(c)?;
    c.add(eax, USER)?;
    c.push(rax)?;
    random(c)?;
    c.shr(rax, 11)?;
    c.mov(ecx, eax)?;
    c.and(eax, 0x4_0cd5)?;
    c.or(eax, 0x202)?;
    // AC in one of 16, TF in one of 32.
    let mut aligned = c.create_label();
    c.test(ecx, 0x700_0000)?;
    c.jz(aligned)?;
    c.and(eax, !0x4_0000i32)?;
    c.set_label(&mut aligned)?;
    c.mov(edx, ecx)?;
    c.and(edx, 0xf8_0000)?;
    c.sub(edx, 1)?;
    c.sbb(edx, edx)?;
    c.and(edx, 0x100)?;
    c.or(eax, edx)?;
    c.push(rax)?;
    random(c)?;
    c.mov(ecx, sel::USER_CODE64)?;
    for (bits, selector) in [(0x7000, sel::USER_CODE), (0x38_0000, CODE16), (0x1c0_0000, CODE32)] {
        c.mov(edx, selector)?;
        c.test(eax, bits)?;
        c.cmovz(ecx, edx)?;
    }
    c.push(rcx)?;
    // Code segments of the local table begin in the arena.
    c.mov(r11d, ecx)?;
    c.mov(r10, rbp)?;
    c.test(eax, 0x1_8000)?;
    c.jnz(elsewhere)?;
    place(c)?;
    c.lea(r10, qword_ptr(rax + USER))?;
    c.set_label(&mut elsewhere)?;
    c.mov(eax, r10d)?;
    c.and(eax, 0xffff)?;
    c.test(r11d, 4)?;
    c.cmovnz(r10, rax)?;
    c.push(r10)?;
    for (i, _) in registers.iter().enumerate() {
        let mut noise = c.create_label();
        random(c)?;
        // Most registers point into the arena; R15 always does, low enough for the templates' displacements.
        c.test(eax, if i == 14 { 0 } else { 3 })?;
        c.jz(noise)?;
        place(c)?;
        c.add(eax, USER)?;
        c.set_label(&mut noise)?;
        if i == 14 {
            c.and(eax, 0xfff)?;
            c.add(eax, USER)?;
        }
        c.push(rax)?;
    }
    c.mov(qword_ptr(r12 + RNG), r13)?;
    c.mov(qword_ptr(r12 + HASH), r14)?;
    // The timer ends what nothing else ends.
    c.mov(ecx, r13d)?;
    c.and(ecx, 0xfff)?;
    c.add(ecx, 500)?;
    let mut soon = c.create_label();
    c.test(r13d, 0x1f_0000)?;
    c.jnz(soon)?;
    c.shl(ecx, 5)?;
    c.set_label(&mut soon)?;
    c.mov(eax, 0xfee0_0380u32)?;
    c.mov(dword_ptr(rax), ecx)?;
    for register in registers.iter().rev() {
        c.pop(*register)?;
    }
    c.iretq()
}

/// What every exception and interrupt comes to: vector and error code are pushed, then what the processor pushed.
fn come_back(c: &mut Code, templates: u32, rounds: u32, cpus: u32) -> Asm {
    let registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
    let count = registers.len() as i32;
    for register in registers {
        c.push(register)?;
    }
    c.cld()?;
    c.mov(eax, 0x400)?;
    c.mov(dr7, rax)?;
    // The stack tells which processor this is.
    let mut first = c.create_label();
    c.mov(r12d, VARS)?;
    c.cmp(rsp, 0x5_0000)?;
    c.jb(first)?;
    c.add(r12d, 0x1000)?;
    c.set_label(&mut first)?;
    c.mov(r13, qword_ptr(r12 + RNG))?;
    c.mov(r14, qword_ptr(r12 + HASH))?;
    c.movzx(eax, byte_ptr(rsp + count * 8))?;
    c.inc(dword_ptr(r12 + rax * 4 + ENDS))?;
    c.mov(rbx, 0x9e37_79b9_7f4a_7c15u64)?;
    // Only ring 3 may come here.
    let mut user = c.create_label();
    c.test(byte_ptr(rsp + (count + 3) * 8), 3)?;
    c.jnz(user)?;
    c.say("ring 0: vector, error, rip")?;
    for at in [count, count + 1, count + 2] {
        c.mov(eax, dword_ptr(rsp + at * 8))?;
        c.hex()?;
    }
    c.exit()?;
    c.set_label(&mut user)?;
    let mut no_timer = c.create_label();
    c.cmp(byte_ptr(rsp + count * 8), TIMER)?;
    c.jne(no_timer)?;
    c.mov(eax, 0xfee0_00b0u32)?;
    c.mov(dword_ptr(rax), 0)?;
    c.set_label(&mut no_timer)?;
    // Registers, vector, error code, RIP, CS, flags, RSP, SS.
    let mut again = c.create_label();
    c.mov(ecx, count + 7)?;
    c.mov(rsi, rsp)?;
    c.set_label(&mut again)?;
    c.lodsq()?;
    hash(c)?;
    c.dec(ecx)?;
    c.jnz(again)?;
    let mut no_page_fault = c.create_label();
    c.cmp(byte_ptr(rsp + count * 8), 14)?;
    c.jne(no_page_fault)?;
    c.mov(rax, cr2)?;
    hash(c)?;
    c.set_label(&mut no_page_fault)?;
    let mut no_debug = c.create_label();
    c.cmp(byte_ptr(rsp + count * 8), 1)?;
    c.jne(no_debug)?;
    c.mov(rax, dr6)?;
    hash(c)?;
    c.mov(eax, 0xffff_0ff0u32)?;
    c.mov(dr6, rax)?;
    c.set_label(&mut no_debug)?;
    c.add(rsp, (count + 7) * 8)?;

    c.mov(eax, dword_ptr(r12 + ROUND))?;
    c.inc(eax)?;
    c.mov(dword_ptr(r12 + ROUND), eax)?;
    // The vector registers and the x87 unit count now and then, and begin anew.
    let mut no_vectors = c.create_label();
    c.test(eax, 15)?;
    c.jnz(no_vectors)?;
    c.mov(eax, 7)?;
    c.xor(edx, edx)?;
    c.xsave64(ptr(r12 + XSAVE))?;
    // The legacy area and the upper halves.
    for (words, at) in [(52, XSAVE), (32, XSAVE + 576)] {
        c.mov(ecx, words)?;
        c.lea(rsi, qword_ptr(r12 + at))?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.lodsq()?;
        hash(c)?;
        c.dec(ecx)?;
        c.jnz(again)?;
    }
    c.fninit()?;
    c.push(0x1f80)?;
    c.ldmxcsr(dword_ptr(rsp))?;
    c.pop(rax)?;
    c.set_label(&mut no_vectors)?;

    let mut go_on = c.create_label();
    let mut ended = c.create_label();
    let mut quiet = c.create_label();
    let mut second = c.create_label();
    c.mov(eax, dword_ptr(r12 + ROUND))?;
    c.cmp(eax, rounds as i32)?;
    c.jae(ended)?;
    c.test(eax, LINE - 1)?;
    c.jnz(go_on)?;
    c.cmp(r12d, VARS)?;
    c.jne(go_on)?;
    c.mov(eax, r14d)?;
    c.hex()?;
    c.say("\n")?;
    c.set_label(&mut go_on)?;
    change(c)?;
    c.mov(ebp, USER)?;
    random(c)?;
    c.test(eax, 0x300)?;
    c.jz(quiet)?;
    write_piece(c, templates)?;
    c.set_label(&mut quiet)?;
    enter(c)?;

    c.set_label(&mut ended)?;
    c.mov(qword_ptr(r12 + HASH), r14)?;
    c.mov(dword_ptr(r12 + DONE), 1)?;
    c.cmp(r12d, VARS)?;
    c.jne(second)?;
    for cpu in 0..cpus as i32 {
        let mut wait = c.create_label();
        c.set_label(&mut wait)?;
        c.pause()?;
        c.cmp(dword_ptr(VARS + cpu * 0x1000 + DONE), 1)?;
        c.jne(wait)?;
        c.say("end")?;
        for half in [4, 0] {
            c.mov(eax, dword_ptr(VARS + cpu * 0x1000 + HASH + half))?;
            c.hex()?;
        }
        c.say("\n")?;
    }
    // How often each vector has ended the first processor's rounds, and for how long this has run.
    let mut next = c.create_label();
    let mut none = c.create_label();
    c.xor(ebp, ebp)?;
    c.set_label(&mut next)?;
    c.cmp(dword_ptr(r12 + rbp * 4 + ENDS), 0)?;
    c.je(none)?;
    c.mov(eax, ebp)?;
    c.hex()?;
    c.mov(eax, dword_ptr(r12 + rbp * 4 + ENDS))?;
    c.hex()?;
    c.say("\n")?;
    c.set_label(&mut none)?;
    c.inc(ebp)?;
    c.cmp(ebp, 0x50)?;
    c.jb(next)?;
    c.say("time")?;
    c.rdtsc()?;
    c.mov(ebp, eax)?;
    c.mov(eax, edx)?;
    c.hex()?;
    c.mov(eax, ebp)?;
    c.hex()?;
    c.say("\n")?;
    // The keyboard controller resets the machine; with -no-reboot -no-shutdown it stands, and its state can be looked at.
    c.mov(al, 0xfeu32)?;
    c.out(0x64, al)?;
    c.set_label(&mut second)?;
    c.cli()?;
    c.hlt()?;
    c.jmp(second)
}

/// Makes this processor's page tables at `tables` from those of the image, ring 0's but for the arena, and uses them. Sets
/// its variables, segments and the timer. R12 are the variables. `system_call` is where SYSCALL leads.
fn begin(c: &mut Code, cpu: u32, seed: u64, system_call: u32, rounds_go_on: u64) -> Asm {
    let tables = TABLES + cpu * 0x4000;
    let vars = VARS + cpu as i32 * 0x1000;
    let mut again = c.create_label();
    // PML4, PDPT, PD, PT as they are.
    for (i, from) in [PML4, PDPT, PD, PT].into_iter().enumerate() {
        c.mov(esi, BASE + from)?;
        c.mov(edi, tables + 0x1000 * i as u32)?;
        c.mov(ecx, 512)?;
        c.rep().movsq()?;
    }
    c.mov(dword_ptr(tables), (tables + 0x1007) as i32)?;
    c.mov(dword_ptr(tables + 0x1000), (tables + 0x2007) as i32)?;
    // The fourth GiB, which has the APIC, and all pages of 2 MiB but the second are ring 0's.
    c.mov(dword_ptr(tables + 0x1018), 0xc000_0083u32 as i32)?;
    c.mov(eax, tables + 0x2000)?;
    c.mov(ecx, 512)?;
    c.set_label(&mut again)?;
    c.and(byte_ptr(rax), 0xfbu32 as i32)?;
    c.add(rax, 8)?;
    c.dec(ecx)?;
    c.jnz(again)?;
    c.mov(dword_ptr(tables + 0x2008), (tables + 0x3007) as i32)?;
    // The arena, and nothing behind it.
    let mut pages = c.create_label();
    c.xor(ecx, ecx)?;
    c.set_label(&mut pages)?;
    c.mov(eax, ecx)?;
    c.shl(eax, 12)?;
    let mut own = c.create_label();
    let mut mapped = c.create_label();
    c.cmp(ecx, OWN_PAGES as i32)?;
    c.jb(own)?;
    c.add(eax, (SHARED - OWN_PAGES * 4096 + 7) as i32)?;
    c.jmp(mapped)?;
    c.set_label(&mut own)?;
    c.add(eax, (MEMORY[cpu as usize] + 7) as i32)?;
    c.set_label(&mut mapped)?;
    c.cmp(ecx, (SIZE / 4096) as i32)?;
    let mut within = c.create_label();
    c.jb(within)?;
    c.xor(eax, eax)?;
    c.set_label(&mut within)?;
    c.mov(dword_ptr(rcx * 8 + (tables + 0x3000) as i32), eax)?;
    c.inc(ecx)?;
    c.cmp(ecx, 512)?;
    c.jb(pages)?;
    c.mov(eax, tables)?;
    c.mov(cr3, rax)?;
    // SSE, AVX, x87 errors by exception, breakpoints on ports, and alignment checks.
    c.mov(rax, cr4)?;
    c.or(eax, 0x4_0608)?;
    c.mov(cr4, rax)?;
    c.xor(ecx, ecx)?;
    c.xor(edx, edx)?;
    c.mov(eax, 7)?;
    c.xsetbv()?;
    c.mov(rax, cr0)?;
    c.or(eax, 0x4_0022)?;
    c.and(eax, !0xci32)?;
    c.mov(cr0, rax)?;
    c.fninit()?;
    c.mov(r12d, vars)?;
    // The local descriptor table and its descriptor.
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        c.mov(rax, descriptor)?;
        c.mov(qword_ptr(r12 + (LDT + 8 * n as i32)), rax)?;
    }
    let selector = [sel::LDT, sel::CONFORMING][cpu as usize];
    let base = (vars + LDT) as u64;
    c.mov(rax, 0x3f | (base & 0xff_ffff) << 16 | 0x82 << 40)?;
    c.mov(qword_ptr(BASE + 0x100 + selector), rax)?;
    c.mov(qword_ptr(BASE + 0x108 + selector), 0)?;
    c.mov(eax, selector)?;
    c.lldt(ax)?;
    // SYSCALL: EFER.SCE, STAR, LSTAR, CSTAR, the mask of flags, and the base that SWAPGS brings.
    c.mov(ecx, 0xc000_0080u32)?;
    c.rdmsr()?;
    c.or(eax, 1)?;
    c.wrmsr()?;
    let star = u64::from(SYSRET << 16 | sel::CODE64) << 32;
    for (msr, value) in [
        (0xc000_0081u32, star),
        (0xc000_0082, system_call.into()),
        (0xc000_0083, system_call.into()),
        (0xc000_0084, 0x4_7700),
        (0xc000_0102, vars as u64),
    ] {
        c.mov(ecx, msr)?;
        c.mov(eax, value as u32)?;
        c.mov(edx, (value >> 32) as u32)?;
        c.wrmsr()?;
    }
    let stack = [STACK_A, STACK_B][cpu as usize];
    c.mov(qword_ptr(r12 + KERNEL_STACK), stack as i32)?;
    c.mov(rax, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(cpu) << 40 | 1)?;
    c.mov(qword_ptr(r12 + RNG), rax)?;
    c.mov(r13, rax)?;
    c.xor(r14d, r14d)?;
    c.mov(dword_ptr(r12 + ROUND), 0)?;
    c.mov(dword_ptr(r12 + DONE), 0)?;
    c.lea(rdi, qword_ptr(r12 + ENDS))?;
    c.mov(ecx, 0x50)?;
    c.xor(eax, eax)?;
    c.rep().stosd()?;
    c.mov(eax, tables + 0x3000)?;
    c.mov(qword_ptr(r12 + TABLE), rax)?;
    c.mov(eax, MEMORY[cpu as usize])?;
    c.mov(qword_ptr(r12 + ARENA), rax)?;
    // The timer: once, undivided.
    apic(c, 0xf0, 0x13f)?;
    apic(c, 0x350, 0x1_0000)?;
    apic(c, 0x360, 0x1_0000)?;
    apic(c, 0x320, TIMER)?;
    apic(c, 0x3e0, 0xb)?;
    c.jmp(rounds_go_on)
}

/// A ROM that enters random code `rounds` times on each of `cpus` processors.
pub fn rom(cpus: u32, rounds: u32, seed: u64) -> Result<Vec<u8>, IcedError> {
    let mut image = Image::new()?;
    let templates = image.code(64, |c| {
        for (code, free) in TEMPLATES {
            let mut row = [0u8; 32];
            row[..code.len()].copy_from_slice(code);
            row[16..16 + free.len()].copy_from_slice(free);
            row[15] = code.len() as u8;
            c.db(&row)?;
        }
        Ok(())
    })?;
    let common = image.code(64, |c| come_back(c, templates, rounds, cpus))?;
    let system_call = image.code(64, |c| system_call(c, common))?;
    for vector in 0..0x50u32 {
        let stub = image.code(64, |c| {
            // INT 42h and 43h come back at once, the former with another flag.
            if vector == 0x42 {
                c.xor(byte_ptr(rsp + 16), 0x11)?;
            }
            if [0x42, 0x43].contains(&vector) {
                return c.iretq();
            }
            if ![8, 10, 11, 12, 13, 14, 17, 21].contains(&vector) {
                c.push(0)?;
            }
            c.push(vector as i32)?;
            c.jmp(u64::from(common))
        })?;
        // Ring 3 may call what it calls by INT3, INTO and INT 40h to 43h.
        let ring = if [3, 4, 0x40, 0x41, 0x42, 0x43].contains(&vector) { 0x60u64 } else { 0 };
        let gate = u64::from(stub & 0xffff)
            | u64::from(sel::CODE64) << 16
            | (0x8e | ring) << 40
            | u64::from(stub >> 16) << 48;
        image.patch(IDT64 + 16 * vector, &gate.to_le_bytes());
    }
    // Where a processor goes on behind its preparations: the first round.
    let first = image.code(64, |c| {
        c.mov(ebp, USER)?;
        enter(c)
    })?;
    if cpus > 1 {
        let prepared = image.code(64, |c| {
            c.mov(esp, STACK_B - 0x1000)?;
            begin(c, 1, seed, system_call, u64::from(first))
        })?;
        let climb = image.climb(Mode::Long, prepared)?;
        let start = image.code(16, |c| {
            c.cli()?;
            c.mov(ax, cs)?;
            c.mov(ds, ax)?;
            c.jmp(u64::from(climb))
        })?;
        let distance = (start as u16).wrapping_sub(3).to_le_bytes();
        image.patch(0, &[0xe9, distance[0], distance[1]]);
    }
    let entry = image.code(64, |c| {
        // The pieces of code may not depend on what memory held.
        for at in MEMORY.into_iter().chain([SHARED]) {
            c.mov(edi, at)?;
            c.mov(ecx, (OWN_PAGES * 512) as i32)?;
            c.mov(rax, 0x9090_c300_9090_9090u64)?;
            c.rep().stosq()?;
        }
        c.mov(esp, STACK_A - 0x8000)?;
        if cpus > 1 {
            second_task(c)?;
            let mut wait = c.create_label();
            for message in [0x4500u32, 0x4610] {
                apic(c, 0x310, 1 << 24)?;
                apic(c, 0x300, message)?;
                let mut again = c.create_label();
                c.mov(ecx, 20_000)?;
                c.set_label(&mut again)?;
                c.pause()?;
                c.dec(ecx)?;
                c.jnz(again)?;
            }
            // Its table stands once it has variables.
            c.set_label(&mut wait)?;
            c.pause()?;
            c.cmp(dword_ptr(VARS + 0x1000 + ARENA), MEMORY[1] as i32)?;
            c.jne(wait)?;
        }
        begin(c, 0, seed, system_call, u64::from(first))
    })?;
    image.finish(Mode::Long, entry)
}

/// What a run has shown.
#[derive(Debug)]
pub struct Run {
    /// What the guest printed.
    pub text: String,
    /// The state's hash at its end.
    pub hash: String,
    /// Greatest resident memory of the emulator, in KiB.
    pub peak: u64,
    /// What the monitor said to `info jit`.
    pub jit: String,
}

/// How it is run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Processors: one or two.
    pub cpus: u32,
    /// How often each enters random code.
    pub rounds: u32,
    /// Where the random numbers begin.
    pub seed: u64,
    /// In counted time; otherwise freely, and text and state are other ones each time.
    pub counted: bool,
}

/// Runs it in `dir`, at most for `limit`.
pub fn run(engine: &str, program: &Path, dir: &Path, setup: Setup, limit: Duration) -> Result<Run, String> {
    let image = dir.join("adversary.rom");
    let out = dir.join("text");
    let rom = rom(setup.cpus, setup.rounds, setup.seed).map_err(|e| e.to_string())?;
    std::fs::write(&image, rom).map_err(|e| e.to_string())?;
    let debug = format!("file:{}", out.display());
    let (cpus, image) = (setup.cpus.to_string(), image.display().to_string());
    let mut args =
        vec!["-smp", &cpus, "-bios", &image, "-debugcon", &debug, "-m", "32", "-nodefaults", "-no-shutdown"];
    // Random numbers would be other ones in each run.
    args.extend(["-cpu", "max,-rdrand,-rdseed"]);
    if setup.counted {
        args.extend(["-icount", "shift=1,sleep=off", "-rtc", "base=2020-01-01,clock=vm"]);
    }
    let emulator = Emulator::start_on(engine, program, dir, &args);
    let mut monitor = emulator.monitor();
    let end = Instant::now() + limit;
    let status = loop {
        let status = monitor.run("info status");
        if !status.contains("running") || Instant::now() > end {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = std::fs::read_to_string(&out).unwrap_or_default();
    if !status.contains("shutdown") {
        return Err(format!("{engine} did not come to an end: {}; it printed {text}", status.trim()));
    }
    let hash = monitor.run("info statehash");
    Ok(Run { text, hash, peak: emulator.peak(), jit: monitor.run("info jit") })
}

/// A task state for the second processor, in the place of the one that the first has loaded.
fn second_task(c: &mut Code) -> Asm {
    c.mov(edi, TSS_B)?;
    c.mov(ecx, 16)?;
    c.xor(eax, eax)?;
    c.rep().stosq()?;
    c.mov(dword_ptr(TSS_B + 4), STACK_B as i32)?;
    c.mov(word_ptr(TSS_B + 0x66), 0x68)?;
    c.mov(dword_ptr(VARS + 0x1000 + ARENA), 0)?;
    // Its base, and no longer busy.
    let descriptor = BASE + 0x100 + sel::TSS64;
    c.mov(word_ptr(descriptor + 2), (TSS_B & 0xffff) as i32)?;
    c.mov(byte_ptr(descriptor + 4), (TSS_B >> 16) as i32)?;
    c.mov(byte_ptr(descriptor + 5), 0x89u32 as i32)
}
