//! The option ROM that boots `-kernel` from firmware: our own, assembled at start.
//!
//! Sources: the BIOS Boot Specification 1.01 (expansion header with a boot entry vector) and the Linux/x86 boot
//! protocol. Firmware calls the boot entry vector in real mode; the ROM takes the kernel's parts from fw_cfg, by its DMA
//! interface or byte by byte, puts each where fw_cfg says, and jumps to the kernel's real-mode part. Destinations above
//! 1 MiB are reached through ES with a limit of 4 GiB.

use anura_devices::misc::fw_cfg;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the kernel's real-mode part goes; the jump goes 512 bytes behind it.
pub const SETUP: u32 = 0x1_0000;
/// Stack and heap of the real-mode part end here, from its beginning.
pub const SETUP_STACK: u16 = 0xe000;

/// The expansion header, the tables, the code.
const PNP: usize = 0x20;
const GDT: usize = 0x40;
const ITEMS: usize = 0x50;
const NAME: usize = 0x60;
const ERROR: usize = 0x70;
const CODE: usize = 0xa0;

const NAME_TEXT: &[u8] = b"Linux kernel\0";
const ERROR_TEXT: &[u8] = b"\r\nThe kernel cannot be read from fw_cfg.\r\n\0";

/// Keys of address, length and data of each part.
const PARTS: [[u16; 3]; 4] = [
    [fw_cfg::SETUP_ADDR, fw_cfg::SETUP_SIZE, fw_cfg::SETUP_DATA],
    [fw_cfg::CMDLINE_ADDR, fw_cfg::CMDLINE_SIZE, fw_cfg::CMDLINE_DATA],
    [fw_cfg::KERNEL_ADDR, fw_cfg::KERNEL_SIZE, fw_cfg::KERNEL_DATA],
    [fw_cfg::INITRD_ADDR, fw_cfg::INITRD_SIZE, fw_cfg::INITRD_DATA],
];

/// The ROM, whole 512-byte blocks whose bytes add up to zero.
pub fn image() -> Result<Vec<u8>, IcedError> {
    let (code, boot) = code()?;
    let mut rom = vec![0u8; CODE];
    rom.extend(code);
    rom.resize((rom.len() + 1).next_multiple_of(512), 0);
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xaa]);
    // Initialisation has nothing to do: RETF.
    put(3, &[0xcb]);
    put(0x1a, &(PNP as u16).to_le_bytes());
    put(PNP, b"$PnP\x01\x02");
    put(PNP + 0x10, &(NAME as u16).to_le_bytes());
    // A boot device (IPL) of the mass storage class.
    put(PNP + 0x12, &[0x01, 0x00, 0x00, 0x14]);
    put(PNP + 0x1a, &boot.to_le_bytes());
    // The null descriptor, then flat data of 4 GiB.
    put(GDT + 8, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    for (n, keys) in PARTS.iter().enumerate() {
        put(ITEMS + 4 * n, &keys.map(|key| key as u8));
    }
    put(NAME, NAME_TEXT);
    put(ERROR, ERROR_TEXT);
    rom[2] = (rom.len() / 512) as u8;
    rom[PNP + 9] = checksum(&rom[PNP..PNP + 0x20]);
    let last = rom.len() - 1;
    rom[last] = checksum(&rom);
    Ok(rom)
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// The code, and the offset of the boot entry vector.
fn code() -> Result<(Vec<u8>, u16), IcedError> {
    const SELECTOR: u32 = 0x510;
    const DMA: u32 = 0x518;
    const SELECT_AND_READ: u32 = 8 | 2;
    const DMA_BIT: u32 = 2;
    let mut a = CodeAssembler::new(16)?;
    let (mut part, mut by_ports, mut poll, mut next) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    let (mut read, mut fail, mut say, mut said) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());

    // A stack in segment 0, and the ROM's own data.
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7c00u32)?;
    a.push(cs)?;
    a.pop(ds)?;
    // ES with base 0 and limit 4 GiB: loaded in protected mode, kept afterwards.
    a.mov(ax, cs)?;
    a.movzx(eax, ax)?;
    a.shl(eax, 4u32)?;
    a.add(eax, GDT as u32)?;
    a.push(eax)?;
    a.push(15)?;
    a.mov(bp, sp)?;
    a.lgdt(word_ptr(bp))?;
    a.add(sp, 6)?;
    a.mov(eax, cr0)?;
    a.or(al, 1u32)?;
    a.mov(cr0, eax)?;
    a.mov(bx, 8u32)?;
    a.mov(es, bx)?;
    a.and(al, 0xfeu32)?;
    a.mov(cr0, eax)?;
    // SI: the interface's features.
    a.mov(ax, 1u32)?;
    a.call(read)?;
    a.mov(si, ax)?;
    a.mov(bx, ITEMS as u32)?;

    a.set_label(&mut part)?;
    a.movzx(ax, byte_ptr(bx))?;
    a.call(read)?;
    a.mov(edi, eax)?;
    a.movzx(ax, byte_ptr(bx + 1))?;
    a.call(read)?;
    a.mov(ecx, eax)?;
    a.movzx(eax, byte_ptr(bx + 2))?;
    a.test(ecx, ecx)?;
    a.je(next)?;
    a.test(si, DMA_BIT)?;
    a.je(by_ports)?;
    // The request, big endian, from its end: address, length, control.
    a.bswap(edi)?;
    a.push(edi)?;
    a.xor(edi, edi)?;
    a.push(edi)?;
    a.bswap(ecx)?;
    a.push(ecx)?;
    a.shl(eax, 16u32)?;
    a.or(al, SELECT_AND_READ)?;
    a.bswap(eax)?;
    a.push(eax)?;
    a.mov(bp, sp)?;
    a.movzx(eax, sp)?;
    a.bswap(eax)?;
    a.mov(dx, DMA)?;
    a.out(dx, eax)?;
    a.set_label(&mut poll)?;
    a.mov(eax, dword_ptr(bp))?;
    a.bswap(eax)?;
    a.test(al, 1u32)?;
    a.jne(fail)?;
    a.test(eax, eax)?;
    a.jne(poll)?;
    a.add(sp, 16)?;
    a.jmp(next)?;
    a.set_label(&mut by_ports)?;
    a.mov(dx, SELECTOR)?;
    a.out(dx, ax)?;
    a.inc(dx)?;
    // REP INSB with 32-bit addresses.
    a.db(&[0x67, 0xf3, 0x6c])?;
    a.set_label(&mut next)?;
    a.add(bx, 4)?;
    a.cmp(bx, (ITEMS + 4 * PARTS.len()) as u32)?;
    a.jb(part)?;

    // The boot protocol's start: all segments at the real-mode part, which begins 20h paragraphs behind it.
    a.mov(ax, SETUP >> 4)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(fs, ax)?;
    a.mov(gs, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, u32::from(SETUP_STACK))?;
    a.add(ax, 0x20)?;
    a.push(ax)?;
    a.xor(ax, ax)?;
    a.push(ax)?;
    a.retf()?;

    // EAX: the first four bytes of item AX.
    a.set_label(&mut read)?;
    a.mov(dx, SELECTOR)?;
    a.out(dx, ax)?;
    a.inc(dx)?;
    for _ in 0..4 {
        a.in_(al, dx)?;
        a.ror(eax, 8u32)?;
    }
    a.ret()?;

    a.set_label(&mut fail)?;
    a.mov(si, ERROR as u32)?;
    a.set_label(&mut say)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.je(said)?;
    a.mov(ah, 0x0eu32)?;
    a.mov(bx, 7u32)?;
    a.int(0x10)?;
    a.jmp(say)?;
    a.set_label(&mut said)?;
    // Firmware tries what comes next.
    a.int(0x18)?;
    a.hlt()?;
    Ok((a.assemble(CODE as u64)?, CODE as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rom_is_whole_blocks_with_valid_checksums_and_a_boot_entry() {
        let rom = image().unwrap();
        assert_eq!((rom[0], rom[1], rom.len()), (0x55, 0xaa, usize::from(rom[2]) * 512));
        assert_eq!(checksum(&rom), 0);
        assert_eq!(checksum(&rom[PNP..PNP + 0x20]), 0);
        assert_eq!(&rom[PNP..PNP + 4], b"$PnP");
        assert_eq!(rom[PNP + 0x1a..PNP + 0x1c], (CODE as u16).to_le_bytes());
        assert_eq!(&rom[NAME..NAME + NAME_TEXT.len()], NAME_TEXT);
        assert_eq!(&rom[ERROR..ERROR + ERROR_TEXT.len()], ERROR_TEXT);
    }
}
