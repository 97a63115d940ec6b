//! A guest program as a 64 KiB ROM that starts at the reset vector, so that the very same bytes run on any PC.
//!
//! The ROM copies itself to 10000h and goes on there in the mode that the guest wants. Tables are part of the image:
//! descriptors, gates, task state, page tables that map memory one to one. Sources: Intel SDM volume 3, chapters 3 to 7
//! and 9.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::runtime::{self, Runtime};

/// How code is assembled: each guest's steps may fail only by a mistake in the guest.
pub type Asm = Result<(), IcedError>;

/// Where the image is while it runs.
pub const BASE: u32 = 0x1_0000;
/// Variables of the runtime: where a trial goes on after a fault, its stack, its first instruction, and whether TF
/// stays set behind a debug exception.
pub const RESUME: u32 = 0x10;
/// See [`RESUME`].
pub const STACK: u32 = 0x18;
/// See [`RESUME`].
pub const START: u32 = 0x20;
/// See [`RESUME`].
pub const KEEP_TF: u32 = 0x28;
/// Sixteen bytes of the guest's own.
pub const SCRATCH: u32 = 0x30;
const GDT: usize = 0x100;
/// The 64-bit IDT.
pub const IDT64: u32 = 0x1000;
/// The 32-bit IDT.
pub const IDT32: u32 = 0x2000;
/// The first task's state; the I/O permission bitmap ends it.
pub const TSS32: u32 = 0x2800;
/// The 64-bit task state.
pub const TSS64: u32 = 0x2900;
/// A second 32-bit task.
pub const TASK2: u32 = 0x2a00;
/// The LDT, two descriptors.
pub const LDT: u32 = 0x2b00;
const POINTERS: usize = 0x2f00;
const PDPT_PAE: u32 = 0x3000;
const IVT: usize = 0x3800;
/// The page directory of 32-bit paging.
pub const PD32: u32 = 0x4000;
/// The tables of 64-bit paging.
pub const PML4: u32 = 0x5000;
/// See [`PML4`].
pub const PDPT: u32 = 0x6000;
/// See [`PML4`].
pub const PD: u32 = 0x7000;
/// 4 KiB pages of 200000h to 3FFFFFh, for PAE and 64-bit paging.
pub const PT: u32 = 0x8000;
/// 4 KiB pages of 400000h to 7FFFFFh, for 32-bit paging.
pub const PT32: u32 = 0x9000;
const CODE: usize = 0xa000;
const CODE_END: usize = 0xf800;

/// The stack of ring 0; real mode's is within the image's segment.
pub const STACK0: u32 = 0x3_0000;
/// Ring 0's when it is entered from ring 3.
pub const STACK_INNER: u32 = 0x4_0000;
/// Ring 3's.
pub const STACK3: u32 = 0x5_0000;
/// The second task's.
pub const STACK_TASK2: u32 = 0x6_0000;
/// That of the interrupt stack table.
pub const STACK_IST: u32 = 0x7_0000;
const STACK16: u32 = 0xfff0;
/// Free conventional memory.
pub const FREE: u32 = 0x8_0000;

/// Selectors.
pub mod sel {
    #![allow(missing_docs, reason = "the names say it")]
    pub const CODE32: u32 = 0x08;
    pub const DATA32: u32 = 0x10;
    pub const CODE16: u32 = 0x18;
    pub const DATA16: u32 = 0x20;
    pub const CODE64: u32 = 0x28;
    pub const USER_CODE: u32 = 0x33;
    pub const USER_DATA: u32 = 0x3b;
    pub const TSS32: u32 = 0x40;
    pub const TSS64: u32 = 0x48;
    pub const USER_CODE64: u32 = 0x5b;
    pub const CALL_GATE: u32 = 0x60;
    pub const TASK2: u32 = 0x70;
    pub const LDT: u32 = 0x78;
    pub const EXPAND_DOWN: u32 = 0x80;
    pub const READ_ONLY: u32 = 0x88;
    pub const CONFORMING: u32 = 0x90;
    pub const EXECUTE_ONLY: u32 = 0x98;
    pub const ABSENT: u32 = 0xa0;
    pub const TASK_GATE: u32 = 0xa8;
    pub const SMALL: u32 = 0xb0;
    pub const ABSENT_CODE: u32 = 0xb8;
    pub const STACK16: u32 = 0xc0;
    /// First behind the table.
    pub const BEYOND: u32 = 0xd0;
}

/// The mode in which a guest's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// 32-bit protected mode without paging.
    Flat32,
    /// The same with 32-bit paging.
    Paged32,
    /// The same with PAE paging.
    Pae32,
    /// 64-bit mode.
    Long,
}

/// A descriptor of the common form: base, limit (in pages with `flags` 8), access byte, flags.
const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (b, l) = (base as u64, limit as u64);
    l & 0xffff
        | (b & 0xff_ffff) << 16
        | (access as u64) << 40
        | (l >> 16 & 15) << 48
        | (flags as u64) << 52
        | (b >> 24) << 56
}

const ALL: u32 = 0xf_ffff;

fn gdt(rt: &Runtime) -> Vec<u64> {
    vec![
        0,
        descriptor(0, ALL, 0x9b, 0xc),
        descriptor(0, ALL, 0x93, 0xc),
        descriptor(BASE, 0xffff, 0x9b, 0x0),
        descriptor(BASE, 0xffff, 0x93, 0x0),
        descriptor(0, ALL, 0x9b, 0xa),
        descriptor(0, ALL, 0xfb, 0xc),
        descriptor(0, ALL, 0xf3, 0xc),
        // Limits of the task states cover their I/O bitmaps, which end behind port 10Fh.
        descriptor(BASE + TSS32, 0x68 + 0x22, 0x89, 0x0),
        descriptor(BASE + TSS64, 0x67, 0x89, 0x0),
        0,
        descriptor(0, ALL, 0xfb, 0xa),
        // A call gate for ring 3 to the runtime's answer, with two parameters.
        0x0000_ec02_0008_0000 | u64::from(rt.gate & 0xffff) | u64::from(rt.gate >> 16) << 48,
        0,
        descriptor(BASE + TASK2, 0x67, 0x89, 0x0),
        descriptor(BASE + LDT, 0xf, 0x82, 0x0),
        // Valid from 1000h to 64 KiB.
        descriptor(FREE, 0xfff, 0x97, 0x0),
        descriptor(0, ALL, 0x91, 0xc),
        descriptor(0, ALL, 0x9f, 0xc),
        descriptor(0, ALL, 0x99, 0xc),
        descriptor(0, ALL, 0x13, 0xc),
        0x0000_e500_0070_0000,
        descriptor(FREE, 0xfff, 0x93, 0x4),
        descriptor(0, ALL, 0x1b, 0xc),
        descriptor(BASE, 0xffff, 0x93, 0x0),
    ]
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_words(image: &mut [u8], at: usize, words: impl IntoIterator<Item = u64>) {
    for (n, word) in words.into_iter().enumerate() {
        put(image, at + 8 * n, &word.to_le_bytes());
    }
}

/// A program under construction: pieces of code of any width, one behind the other.
pub struct Image {
    bytes: Vec<u8>,
    at: usize,
    /// What the guest's code calls.
    pub rt: Runtime,
}

/// Code of one width with the runtime at hand.
pub struct Code {
    a: CodeAssembler,
    /// What it calls.
    pub rt: Runtime,
    /// 16, 32 or 64.
    pub bits: u32,
}

impl std::ops::Deref for Code {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.a
    }
}

impl std::ops::DerefMut for Code {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.a
    }
}

impl Image {
    /// An image with the runtime and its tables.
    pub fn new() -> Result<Self, IcedError> {
        let mut image = Self { bytes: vec![0; 0x1_0000], at: CODE, rt: Runtime::default() };
        let mut stubs = Vec::new();
        for bits in [16, 32, 64] {
            let calls = runtime::emit(&mut image, bits)?;
            stubs.push(calls.stubs.clone());
            *image.rt.of(bits) = calls;
        }
        image.rt.gate = image.code(32, |c| {
            // The two parameters lie above the return address.
            c.mov(eax, dword_ptr(esp + 8))?;
            c.shl(eax, 16)?;
            c.or(eax, dword_ptr(esp + 12))?;
            c.retf_1(8)
        })?;
        let bytes = &mut image.bytes;
        let table = gdt(&image.rt);
        put(bytes, POINTERS, &((table.len() * 8 - 1) as u16).to_le_bytes());
        put(bytes, POINTERS + 2, &(BASE + GDT as u32).to_le_bytes());
        put_words(bytes, GDT, table);
        for (at, table, size) in [(POINTERS + 8, IDT32, 8), (POINTERS + 16, IDT64, 16)] {
            put(bytes, at, &(size * 0x50 - 1u16).to_le_bytes());
            put(bytes, at + 2, &(BASE + table).to_le_bytes());
        }
        for vector in 0..0x50u32 {
            // INT3, INTO and the way back from ring 3 may be called from there.
            let dpl = if [3, 4, 0x40].contains(&vector) { 0x60u64 } else { 0 };
            let gate = |to: u32, code: u32| {
                u64::from(to & 0xffff)
                    | u64::from(code) << 16
                    | (0x8e | dpl) << 40
                    | u64::from(to >> 16) << 48
            };
            put(bytes, IVT + 4 * vector as usize, &(stubs[0][vector as usize] as u16).to_le_bytes());
            put(bytes, IVT + 4 * vector as usize + 2, &((BASE >> 4) as u16).to_le_bytes());
            put_words(
                bytes,
                IDT32 as usize + 8 * vector as usize,
                [gate(stubs[1][vector as usize], sel::CODE32)],
            );
            put_words(
                bytes,
                IDT64 as usize + 16 * vector as usize,
                [gate(stubs[2][vector as usize], sel::CODE64), 0],
            );
        }
        let tss = TSS32 as usize;
        put(bytes, tss + 4, &STACK_INNER.to_le_bytes());
        put(bytes, tss + 8, &sel::DATA32.to_le_bytes());
        // The I/O bitmap: ports 80h to 87h are closed.
        put(bytes, tss + 0x66, &0x68u16.to_le_bytes());
        bytes[tss + 0x68 + 0x10] = 0xff;
        bytes[tss + 0x68 + 0x22] = 0xff;
        put(bytes, TSS64 as usize + 4, &u64::from(STACK_INNER).to_le_bytes());
        put(bytes, TSS64 as usize + 0x24, &u64::from(STACK_IST).to_le_bytes());
        put(bytes, TSS64 as usize + 0x66, &0x68u16.to_le_bytes());
        const TABLE: u64 = 0x07;
        const LARGE: u64 = 0x87;
        let table = |at: u32| u64::from(BASE + at) | TABLE;
        for n in 0..1024u64 {
            let entry = if n == 1 { table(PT32) } else { n << 22 | LARGE };
            put(bytes, PD32 as usize + 4 * n as usize, &(entry as u32).to_le_bytes());
            put(
                bytes,
                PT32 as usize + 4 * n as usize,
                &((0x40_0000 + (n << 12) | TABLE) as u32).to_le_bytes(),
            );
        }
        put_words(bytes, PDPT_PAE as usize, (0..4).map(|_| u64::from(BASE + PD) | 1));
        put_words(bytes, PML4 as usize, [table(PDPT)]);
        // The last GiB of the first four, for the APIC, is one page.
        put_words(bytes, PDPT as usize, [table(PD), 0, 0, 0xc000_0000 | LARGE]);
        put_words(bytes, PD as usize, (0..512).map(|n| if n == 1 { table(PT) } else { n << 21 | LARGE }));
        put_words(bytes, PT as usize, (0..512).map(|n| 0x20_0000 + (n << 12) | TABLE));
        Ok(image)
    }

    /// Adds code of this width; its address (16-bit code: its offset in segment 1000h).
    pub fn code(&mut self, bits: u32, body: impl FnOnce(&mut Code) -> Asm) -> Result<u32, IcedError> {
        let mut code = Code { a: CodeAssembler::new(bits)?, rt: self.rt.clone(), bits };
        body(&mut code)?;
        let at = self.at as u32 + if bits == 16 { 0 } else { BASE };
        let bytes = code.a.assemble(u64::from(at))?;
        self.at += bytes.len();
        assert!(self.at < CODE_END, "the guest fits in its ROM");
        put(&mut self.bytes, at as usize & 0xffff, &bytes);
        self.at = self.at.next_multiple_of(16);
        Ok(at)
    }

    /// The next code's address.
    pub fn next(&self, bits: u32) -> u32 {
        self.at as u32 + if bits == 16 { 0 } else { BASE }
    }

    /// Puts bytes at an offset.
    pub fn patch(&mut self, at: u32, bytes: &[u8]) {
        put(&mut self.bytes, at as usize, bytes);
    }

    /// The ROM of a guest whose code begins at `entry` in `mode`.
    pub fn finish(mut self, mode: Mode, entry: u32) -> Result<Vec<u8>, IcedError> {
        let entry = match mode {
            Mode::Real => entry,
            _ => self.climb(mode, entry)?,
        };
        let copied = self.code(16, |c| {
            c.mov(ax, BASE >> 4)?;
            c.mov(ds, ax)?;
            c.mov(es, ax)?;
            c.mov(ss, ax)?;
            c.mov(sp, STACK16)?;
            // Address line 20 is open.
            c.in_(al, 0x92)?;
            c.or(al, 2u32)?;
            c.and(al, 0xfeu32)?;
            c.out(0x92, al)?;
            // Real mode's vectors.
            c.push(es)?;
            c.xor(di, di)?;
            c.mov(es, di)?;
            c.mov(si, IVT as u32)?;
            c.mov(cx, 0xa0u32)?;
            c.rep().movsw()?;
            c.pop(es)?;
            c.fninit()?;
            c.mov(al, 1u32)?;
            c.out(0xe9, al)?;
            c.mov(ax, entry)?;
            c.jmp(ax)
        })?;
        let reset = self.code(16, |c| {
            c.cli()?;
            c.cld()?;
            c.mov(ax, 0xf000u32)?;
            c.mov(ds, ax)?;
            c.mov(ax, BASE >> 4)?;
            c.mov(es, ax)?;
            c.xor(si, si)?;
            c.xor(di, di)?;
            c.mov(cx, 0x8000u32)?;
            c.rep().movsw()?;
            c.push(ax)?;
            c.mov(ax, copied)?;
            c.push(ax)?;
            c.retf()
        });
        // Another processor starts at offset 0 of the image; unless the guest has put something there, it stands.
        if self.bytes[0] == 0 {
            put(&mut self.bytes, 0, &[0xfa, 0xf4, 0xeb, 0xfc]);
        }
        let reset = reset?.to_le_bytes();
        // JMP F000:reset, and a date where a PC has one.
        put(&mut self.bytes, 0xfff0, &[0xea, reset[0], reset[1], 0x00, 0xf0]);
        put(&mut self.bytes, 0xfff5, b"01/01/26");
        Ok(self.bytes)
    }

    /// Code that goes from real mode to `mode` and then to `entry`; its offset.
    pub fn climb(&mut self, mode: Mode, entry: u32) -> Result<u32, IcedError> {
        let in_long = self.code(64, |c| {
            c.mov(eax, sel::DATA32)?;
            c.mov(ds, eax)?;
            c.mov(es, eax)?;
            c.mov(ss, eax)?;
            c.mov(esp, STACK0)?;
            c.mov(eax, sel::TSS64)?;
            c.ltr(ax)?;
            c.mov(eax, entry)?;
            c.jmp(rax)
        })?;
        let in_32 = self.code(32, |c| {
            c.mov(eax, sel::DATA32)?;
            c.mov(ds, eax)?;
            c.mov(es, eax)?;
            c.mov(ss, eax)?;
            c.mov(esp, STACK0)?;
            let paging = match mode {
                Mode::Paged32 => Some((1 << 4, PD32)),
                Mode::Pae32 => Some((1 << 5, PDPT_PAE)),
                Mode::Long => Some((1 << 5, PML4)),
                _ => None,
            };
            if mode != Mode::Long {
                c.mov(eax, sel::TSS32)?;
                c.ltr(ax)?;
            }
            if let Some((cr4_bits, table)) = paging {
                c.mov(eax, cr4)?;
                c.or(eax, cr4_bits)?;
                c.mov(cr4, eax)?;
                c.mov(eax, BASE + table)?;
                c.mov(cr3, eax)?;
                if mode == Mode::Long {
                    c.mov(ecx, 0xc000_0080u32)?;
                    c.rdmsr()?;
                    c.or(eax, 0x100)?;
                    c.wrmsr()?;
                }
                c.mov(eax, cr0)?;
                c.or(eax, 0x8000_0000u32 as i32)?;
                c.mov(cr0, eax)?;
            }
            if mode == Mode::Long {
                c.lidt(fword_ptr(BASE + POINTERS as u32 + 16))?;
                c.push(sel::CODE64 as i32)?;
                c.mov(eax, in_long)?;
                c.push(eax)?;
                return c.retf();
            }
            c.mov(eax, entry)?;
            c.jmp(eax)
        })?;
        self.code(16, |c| {
            // LGDT and LIDT with 32-bit bases.
            c.db(&[0x66, 0x0f, 0x01, 0x16])?;
            c.dw(&[POINTERS as u16])?;
            c.db(&[0x66, 0x0f, 0x01, 0x1e])?;
            c.dw(&[POINTERS as u16 + 8])?;
            c.mov(eax, cr0)?;
            c.or(al, 1u32)?;
            c.mov(cr0, eax)?;
            // JMP CODE32:in_32.
            c.db(&[0x66, 0xea])?;
            c.dd(&[in_32])?;
            c.dw(&[sel::CODE32 as u16])
        })
    }
}
