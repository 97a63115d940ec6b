//! 16-bit guests that live on the BIOS: a program of DOS's kind and a memory test.
//!
//! Each is a kernel image whose real-mode part is the whole program, so it starts through firmware with `-kernel`. What
//! it finds goes to the screen by INT 10h and to port E9h.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Asm = Result<(), IcedError>;

/// The program begins here, behind the header of the boot protocol; its segment is 1020h.
const ENTRY: usize = 0x268;
const LENGTH: usize = 0x1000;
/// Offsets within the program's data segment (1000h), where its variables are.
const TICKS: i32 = 0x3000;
const MAP: i32 = 0x3100;
const DESCRIPTORS: i32 = 0x3200;

/// A kernel image with `body` as its real-mode part.
fn image(body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    body(&mut a)?;
    let code = a.assemble((ENTRY - 0x200) as u64)?;
    let mut image = vec![0; LENGTH + 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[(LENGTH / 512 - 1) as u8]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, (ENTRY - 0x202) as u8]);
    put(0x202, b"HdrS\x02\x02");
    put(0x211, &[1]);
    put(ENTRY, &code);
    Ok(image)
}

/// Prints AL on the screen and to port E9h.
fn put_char(a: &mut CodeAssembler) -> Asm {
    a.out(0xe9, al)?;
    a.mov(ah, 0x0eu32)?;
    a.mov(bx, 7u32)?;
    a.int(0x10)
}

/// Prints a text.
fn say(a: &mut CodeAssembler, text: &str) -> Asm {
    for letter in text.bytes() {
        a.mov(al, u32::from(letter))?;
        put_char(a)?;
    }
    Ok(())
}

/// Prints AX in four digits, changing AX, BX, CX, DX.
fn hex(a: &mut CodeAssembler) -> Asm {
    let (mut next, mut small) = (a.create_label(), a.create_label());
    a.mov(dx, ax)?;
    a.mov(cx, 4u32)?;
    a.set_label(&mut next)?;
    a.rol(dx, 4u32)?;
    a.mov(al, dl)?;
    a.and(al, 15u32)?;
    a.add(al, 0x30u32)?;
    a.cmp(al, 0x3au32)?;
    a.jb(small)?;
    a.add(al, 0x27u32)?;
    a.set_label(&mut small)?;
    put_char(a)?;
    a.loop_(next)
}

/// Ends the emulator by the debug exit port, with code 33.
fn end(a: &mut CodeAssembler) -> Asm {
    a.mov(al, 0x10u32)?;
    a.out(0xf4, al)?;
    a.hlt()
}

/// A program of DOS's kind: it asks the BIOS for memory, time and a key, hooks the timer, and serves INT 21h itself.
pub fn dos_like() -> Result<Vec<u8>, IcedError> {
    image(|a| {
        let (mut program, mut timer, mut services, mut terminate) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.jmp(program)?;
        // INT 1Ch: counts.
        a.set_label(&mut timer)?;
        a.push(ds)?;
        a.push(ax)?;
        a.mov(ax, 0x1000u32)?;
        a.mov(ds, ax)?;
        a.inc(word_ptr(TICKS))?;
        a.pop(ax)?;
        a.pop(ds)?;
        a.iret()?;
        // INT 21h: AH 2 prints DL, AH 4Ch ends.
        a.set_label(&mut services)?;
        a.cmp(ah, 0x4cu32)?;
        a.je(terminate)?;
        a.push(ax)?;
        a.push(bx)?;
        a.mov(al, dl)?;
        put_char(a)?;
        a.pop(bx)?;
        a.pop(ax)?;
        a.iret()?;
        a.set_label(&mut terminate)?;
        end(a)?;

        a.set_label(&mut program)?;
        a.mov(word_ptr(TICKS), 0)?;
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(es, ax)?;
        // A near call leaves the address from which the handlers' are counted.
        for (vector, handler) in [(0x1ci32, timer), (0x21, services)] {
            let mut over = a.create_label();
            a.call(over)?;
            a.jmp(handler)?;
            a.set_label(&mut over)?;
            a.pop(ax)?;
            a.mov(word_ptr(vector * 4).es(), ax)?;
            a.mov(word_ptr(vector * 4 + 2).es(), cs)?;
        }
        a.sti()?;
        a.mov(ax, 3u32)?;
        a.int(0x10)?;
        say(a, "\r\nanura-dos: memory ")?;
        a.int(0x12)?;
        hex(a)?;
        say(a, " extended ")?;
        a.mov(ah, 0x88u32)?;
        a.int(0x15)?;
        hex(a)?;
        say(a, " columns ")?;
        a.mov(ah, 0x0fu32)?;
        a.int(0x10)?;
        a.mov(al, ah)?;
        a.xor(ah, ah)?;
        hex(a)?;
        say(a, " disk status ")?;
        a.mov(ah, 0u32)?;
        a.mov(dl, 0x80u32)?;
        a.int(0x13)?;
        a.setc(al)?;
        a.xor(ah, ah)?;
        hex(a)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.cmp(word_ptr(TICKS), 3)?;
        a.jb(wait)?;
        say(a, " three ticks, press a key ")?;
        a.mov(ah, 0u32)?;
        a.int(0x16)?;
        hex(a)?;
        for letter in b" INT 21h\r\n" {
            a.mov(ah, 2u32)?;
            a.mov(dl, u32::from(*letter))?;
            a.int(0x21)?;
        }
        a.mov(ah, 0x4cu32)?;
        a.int(0x21)
    })
}

/// A memory test: asks for the map, writes and reads patterns in all RAM above 1 MiB through segments of 4 GiB.
pub fn memory_test() -> Result<Vec<u8>, IcedError> {
    image(|a| {
        let (mut ask, mut found, mut flat, mut after, mut failed, mut done) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        say(a, "\r\nanura-memtest: ")?;
        // E820: the entry of RAM that begins at 1 MiB.
        a.push(ds)?;
        a.pop(es)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut ask)?;
        a.mov(eax, 0xe820u32)?;
        a.mov(edx, 0x534d_4150u32)?;
        a.mov(ecx, 20u32)?;
        a.mov(di, MAP as u32)?;
        a.int(0x15)?;
        a.jb(failed)?;
        a.cmp(dword_ptr(MAP), 0x10_0000)?;
        a.je(found)?;
        a.test(ebx, ebx)?;
        a.jne(ask)?;
        a.jmp(failed)?;
        a.set_label(&mut found)?;
        a.mov(ax, word_ptr(MAP + 10))?;
        hex(a)?;
        say(a, " times 64 KiB")?;
        // ES with a limit of 4 GiB, by a descriptor table in the data segment.
        a.cli()?;
        for (at, value) in [(0, 15u32), (2, 0x1_0000 + DESCRIPTORS as u32 + 8 - 8)] {
            a.mov(dword_ptr(DESCRIPTORS - 8 + at), value)?;
        }
        for (at, value) in [(0, 0u32), (4, 0), (8, 0xffff), (12, 0x00cf_9300)] {
            a.mov(dword_ptr(DESCRIPTORS + at), value)?;
        }
        a.db(&[0x66, 0x0f, 0x01, 0x16])?;
        a.dw(&[(DESCRIPTORS - 8) as u16])?;
        a.mov(eax, cr0)?;
        a.or(al, 1u32)?;
        a.mov(cr0, eax)?;
        a.jmp(flat)?;
        a.set_label(&mut flat)?;
        a.mov(bx, 8u32)?;
        a.mov(es, bx)?;
        a.and(al, 0xfeu32)?;
        a.mov(cr0, eax)?;
        a.jmp(after)?;
        a.set_label(&mut after)?;
        for pattern in [0u32, 0xffff_ffff, 0xaaaa_5555, 0x0123_4567] {
            a.mov(edi, 0x10_0000u32)?;
            a.mov(ecx, dword_ptr(MAP + 8))?;
            a.shr(ecx, 2u32)?;
            a.mov(eax, pattern)?;
            a.mov(edx, ecx)?;
            // REP STOSD and REPE SCASD with 32-bit addresses.
            a.db(&[0x67, 0x66, 0xf3, 0xab])?;
            a.mov(edi, 0x10_0000u32)?;
            a.mov(ecx, edx)?;
            a.db(&[0x67, 0x66, 0xf3, 0xaf])?;
            a.jne(failed)?;
        }
        // Each dword its own address, upwards and back.
        let (mut write, mut read) = (a.create_label(), a.create_label());
        a.mov(edi, 0x10_0000u32)?;
        a.mov(ecx, edx)?;
        a.set_label(&mut write)?;
        a.mov(dword_ptr(edi).es(), edi)?;
        a.add(edi, 4)?;
        a.dec(ecx)?;
        a.jne(write)?;
        a.mov(ecx, edx)?;
        a.set_label(&mut read)?;
        a.sub(edi, 4)?;
        a.cmp(dword_ptr(edi).es(), edi)?;
        a.jne(failed)?;
        a.dec(ecx)?;
        a.jne(read)?;
        a.sti()?;
        say(a, " passed\r\n")?;
        a.jmp(done)?;
        a.set_label(&mut failed)?;
        say(a, " failed\r\n")?;
        a.set_label(&mut done)?;
        end(a)
    })
}
