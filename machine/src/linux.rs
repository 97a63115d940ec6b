//! Direct boot: a Linux bzImage by its 64-bit entry, or an ELF kernel by PVH, with no firmware. Kernels with a
//! multiboot header are prepared in `multiboot`.
//!
//! Sources: the Linux/x86 boot protocol (version 2.12 and later: `xloadflags`, `pref_address`, `init_size`), the
//! zero page layout, and the x86/HVM direct boot ABI (PVH). An image is prepared once as pieces of memory and a
//! CPU state, which are put in place again at each reset.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anura_x86::{CpuState, Segment, TableReg, segment::index};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use crate::error::MachineError;

/// A piece of guest memory to fill.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it goes.
    pub address: u64,
    contents: Contents,
}

/// What goes into a piece. Large parts of files are read again at each reset rather than kept.
#[derive(Clone, Debug)]
enum Contents {
    Bytes(Vec<u8>),
    File { path: PathBuf, offset: u64, len: usize, digest: blake3::Hash },
}

/// Parts of files that are at least this long are not kept in memory.
const KEEP_BELOW: usize = 1 << 20;
/// They are read in parts of this size, so that no image's worth of memory stays behind in the allocator.
const PART: usize = 64 << 10;

impl Piece {
    /// A piece with these bytes.
    pub fn new(address: u64, bytes: Vec<u8>) -> Self {
        Self { address, contents: Contents::Bytes(bytes) }
    }

    /// A piece with `bytes`, which are in the file at `path` from `offset` on.
    pub(crate) fn of_file(address: u64, path: &Path, offset: usize, bytes: &[u8]) -> Self {
        let regular = std::fs::metadata(path).is_ok_and(|m| m.is_file());
        if bytes.len() < KEEP_BELOW || !regular {
            return Self::new(address, bytes.to_vec());
        }
        let digest = blake3::hash(bytes);
        Self {
            address,
            contents: Contents::File { path: path.into(), offset: offset as u64, len: bytes.len(), digest },
        }
    }

    /// Gives the bytes to `put`, with the address of each part. An error if they are a file's and it has changed since
    /// the machine was built; parts before the change have been given then.
    pub fn each(
        &self,
        mut put: impl FnMut(u64, &[u8]) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let (path, offset, len, digest) = match &self.contents {
            Contents::Bytes(bytes) => return put(self.address, bytes),
            Contents::File { path, offset, len, digest } => (path, *offset, *len, digest),
        };
        let failed = |source| MachineError::File { option: "boot image", path: path.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; PART];
        for at in (0..len).step_by(PART) {
            let part = &mut buffer[..PART.min(len - at)];
            file.read_exact_at(part, offset + at as u64).map_err(failed)?;
            hasher.update(part);
            put(self.address + at as u64, part)?;
        }
        if hasher.finalize() != *digest {
            let why = "changed since the machine was started; start it anew".to_owned();
            return Err(MachineError::Image { option: "boot image", path: path.clone(), why });
        }
        Ok(())
    }

    /// All bytes at once.
    #[cfg(test)]
    pub fn bytes(&self) -> Result<Vec<u8>, MachineError> {
        let mut all = vec![];
        self.each(|_, part| {
            all.extend_from_slice(part);
            Ok(())
        })?;
        Ok(all)
    }
}

/// How the first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with low memory mapped one to one; RSI holds the zero page.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// 32-bit protected mode without paging; EBX holds the start info.
    Pvh {
        /// First instruction.
        eip: u32,
    },
    /// The same, with EBX holding the multiboot information.
    Multiboot {
        /// First instruction.
        eip: u32,
        /// Where the information is.
        info: u32,
    },
}

/// What a direct boot puts into the machine.
#[derive(Clone, Debug)]
pub struct BootImage {
    /// Memory contents.
    pub pieces: Vec<Piece>,
    /// The start.
    pub entry: Entry,
}

/// A range of the memory map that a guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820 {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// 1 usable, 2 reserved, 3 ACPI tables.
    pub kind: u32,
}

/// Usable memory.
pub const RAM: u32 = 1;
/// Memory that must be left alone.
pub const RESERVED: u32 = 2;

/// What to boot, and in what memory.
pub struct BootRequest<'a> {
    /// `-kernel`.
    pub kernel: &'a Path,
    /// `-initrd`.
    pub initrd: Option<&'a Path>,
    /// `-append`.
    pub command_line: &'a str,
    /// RAM below 4 GiB that is the guest's, from 0.
    pub low_ram_end: u64,
    /// The map that the guest is told.
    pub map: &'a [E820],
    /// Address of the ACPI root pointer; 0 for none.
    pub rsdp: u64,
    /// Entropy for the guest's random number generator.
    pub seed: [u8; 32],
    /// The screen is in 80 × 25 text mode.
    pub text_screen: bool,
}

pub(crate) const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PVH_INFO: u64 = 0x6000;
const PAGE_TABLES: u64 = 0x9000;
const SETUP_DATA: u64 = 0x1_f000;
const COMMAND_LINE: u64 = 0x2_0000;
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
/// Room for the command line below the conventional memory's end.
const COMMAND_LINE_ROOM: usize = 0x1_0000;

/// Whether a kernel needs no firmware: an ELF file, or a bzImage with a 64-bit entry on a processor that has the mode.
/// What is no kernel at all counts as one, so that [`prepare`] says what is wrong with it.
pub fn starts_directly(kernel: &Path, long_mode: bool) -> Result<bool, MachineError> {
    let mut header = Vec::new();
    File::open(kernel)
        .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, 0x264), &mut header))
        .map_err(|source| MachineError::File { option: "-kernel", path: kernel.into(), source })?;
    if header.get(0x202..0x206) != Some(b"HdrS") {
        return Ok(true);
    }
    Ok(long_mode && u16_at(&header, 0x206) >= 0x020c && u16_at(&header, 0x236) & 1 != 0)
}

/// Prepares `request`.
pub fn prepare(request: &BootRequest<'_>) -> Result<BootImage, MachineError> {
    let kernel = read("-kernel", request.kernel)?;
    if let Some(at) = crate::multiboot::header(&kernel) {
        return crate::multiboot::prepare(request, &kernel, at);
    }
    let initrd = request.initrd.map(|path| read("-initrd", path)).transpose()?;
    let image = if kernel.starts_with(b"\x7fELF") {
        pvh(request, &kernel, initrd)
    } else {
        bzimage(request, &kernel, initrd)
    };
    image.map_err(|error| match error {
        Bad::Kernel(why) => MachineError::Image { option: "-kernel", path: request.kernel.into(), why },
        Bad::Initrd(why) => MachineError::Image {
            option: "-initrd",
            path: request.initrd.map(PathBuf::from).unwrap_or_default(),
            why,
        },
        Bad::Append(why) => MachineError::Config(format!("-append: {why}")),
    })
}

pub(crate) fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, MachineError> {
    let bytes =
        std::fs::read(path).map_err(|source| MachineError::File { option, path: path.into(), source })?;
    if bytes.is_empty() {
        return Err(MachineError::Image { option, path: path.into(), why: "the file is empty".into() });
    }
    Ok(bytes)
}

/// Which of the user's inputs is at fault, and why.
pub(crate) enum Bad {
    Kernel(String),
    Initrd(String),
    Append(String),
}

fn field<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(found) = image.get(at..at + N) {
        bytes.copy_from_slice(found);
    }
    bytes
}

pub(crate) fn u16_at(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(image, at))
}

pub(crate) fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(image, at))
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(image, at))
}

pub(crate) fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Where the initial RAM disk goes: as high as the kernel takes it, above everything that must stay.
fn place_initrd(len: u64, floor: u64, ceiling: u64) -> Result<u64, Bad> {
    let too_big = || {
        Bad::Initrd(format!(
            "{} MiB do not fit above the kernel in guest memory; give the machine more with -m",
            len.div_ceil(1 << 20)
        ))
    };
    let start = ceiling.checked_sub(len).ok_or_else(too_big)? & !0xfff;
    if start < floor { Err(too_big()) } else { Ok(start) }
}

fn command_line(request: &BootRequest<'_>, limit: usize) -> Result<Vec<u8>, Bad> {
    let mut line = request.command_line.as_bytes().to_vec();
    let limit = limit.min(COMMAND_LINE_ROOM - 1);
    if line.len() > limit {
        return Err(Bad::Append(format!("{} bytes, but the kernel takes at most {limit}", line.len())));
    }
    if line.contains(&0) {
        return Err(Bad::Append("a command line cannot hold a NUL byte".into()));
    }
    line.push(0);
    Ok(line)
}

fn bzimage(request: &BootRequest<'_>, kernel: &[u8], initrd: Option<Vec<u8>>) -> Result<BootImage, Bad> {
    if kernel.len() < 0x264 || &kernel[0x202..0x206] != b"HdrS" || u16_at(kernel, 0x1fe) != 0xaa55 {
        return Err(Bad::Kernel("neither a Linux bzImage nor an ELF file".into()));
    }
    let version = u16_at(kernel, 0x206);
    if version < 0x020c || u16_at(kernel, 0x236) & 1 == 0 {
        return Err(Bad::Kernel(
            "no 64-bit entry point; booting 32-bit and older kernels needs firmware, -bios FILE".into(),
        ));
    }
    let setup_sectors = match kernel[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let setup = (setup_sectors + 1) * 512;
    // The header says how long the protected-mode part is, in paragraphs.
    let wanted = u32_at(kernel, 0x1f4) as usize * 16;
    let body = kernel.get(setup..).unwrap_or_default();
    if body.len() + 15 < wanted || body.len() < 0x400 {
        return Err(Bad::Kernel(format!(
            "truncated: {} bytes, but its header promises {}",
            kernel.len(),
            setup + wanted
        )));
    }
    let relocatable = kernel[0x234] != 0;
    let preferred = u64_at(kernel, 0x258);
    let load = if relocatable { HIGH_MEMORY } else { preferred };
    // The kernel unpacks itself to its preferred address, or where it was loaded if that is higher.
    let init_size = u64::from(u32_at(kernel, 0x260)).max(body.len() as u64);
    let end = preferred.max(load).saturating_add(init_size);
    if end > request.low_ram_end {
        return Err(Bad::Kernel(format!(
            "needs {} MiB of guest memory; give the machine more with -m",
            end.div_ceil(1 << 20) + 1
        )));
    }
    let line = command_line(request, u32_at(kernel, 0x238) as usize)?;

    let mut zero_page = vec![0; 4096];
    let header_end = 0x202 + usize::from(kernel[0x201]);
    put(&mut zero_page, 0x1f1, &kernel[0x1f1..header_end.clamp(0x264, 0x280)]);
    put(&mut zero_page, 0x210, &[0xff, kernel[0x211] | 0x80]);
    put(&mut zero_page, 0x214, &(load as u32).to_le_bytes());
    put(&mut zero_page, 0x224, &0xfe00u16.to_le_bytes());
    put(&mut zero_page, 0x228, &(COMMAND_LINE as u32).to_le_bytes());
    put(&mut zero_page, 0x250, &SETUP_DATA.to_le_bytes());
    put(&mut zero_page, 0x70, &request.rsdp.to_le_bytes());
    if request.text_screen {
        // Mode 3 with 80 columns, 25 lines of 16 points, on a VGA.
        put(&mut zero_page, 0x06, &[3, 80]);
        put(&mut zero_page, 0x0e, &[25, 1, 16]);
    }
    let entries = request.map.len().min(128);
    zero_page[0x1e8] = entries as u8;
    for (n, range) in request.map.iter().take(entries).enumerate() {
        let at = 0x2d0 + n * 20;
        put(&mut zero_page, at, &range.start.to_le_bytes());
        put(&mut zero_page, at + 8, &range.length.to_le_bytes());
        put(&mut zero_page, at + 16, &range.kind.to_le_bytes());
    }

    let mut pieces = Vec::new();
    if let Some(initrd) = initrd {
        let highest = u64::from(u32_at(kernel, 0x22c)) + 1;
        let start = place_initrd(initrd.len() as u64, end, request.low_ram_end.min(highest))?;
        put(&mut zero_page, 0x218, &(start as u32).to_le_bytes());
        put(&mut zero_page, 0x21c, &(initrd.len() as u32).to_le_bytes());
        pieces.push(Piece::of_file(start, request.initrd.unwrap_or(Path::new("")), 0, &initrd));
    }
    // One entry of setup data: next, type 9 (random seed), length, bytes.
    let mut setup_data = vec![0; 8];
    setup_data.extend(9u32.to_le_bytes());
    setup_data.extend((request.seed.len() as u32).to_le_bytes());
    setup_data.extend(request.seed);
    pieces.extend([
        Piece::new(GDT, gdt()),
        Piece::new(ZERO_PAGE, zero_page),
        Piece::new(PAGE_TABLES, page_tables()),
        Piece::new(SETUP_DATA, setup_data),
        Piece::new(COMMAND_LINE, line),
        Piece::of_file(load, request.kernel, setup, body),
    ]);
    Ok(BootImage { pieces, entry: Entry::Linux64 { rip: load + 0x200 } })
}

/// Null, unused, flat 64-bit code (10h), flat data (18h), flat 32-bit code (20h), busy TSS (28h).
pub(crate) fn gdt() -> Vec<u8> {
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff, 0x0000_8b00_0000_0067u64]
        .iter()
        .flat_map(|descriptor| descriptor.to_le_bytes())
        .collect()
}

/// Four levels that map the first 4 GiB one to one with 2 MiB pages.
fn page_tables() -> Vec<u8> {
    const TABLE: u64 = 0x03;
    const LARGE: u64 = 0x83;
    let mut tables = vec![0u64; 6 * 512];
    tables[0] = PAGE_TABLES + 0x1000 | TABLE;
    for n in 0..4u64 {
        tables[512 + n as usize] = PAGE_TABLES + 0x2000 + n * 0x1000 | TABLE;
    }
    for n in 0..4 * 512u64 {
        tables[1024 + n as usize] = n << 21 | LARGE;
    }
    tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

fn pvh(request: &BootRequest<'_>, kernel: &[u8], initrd: Option<Vec<u8>>) -> Result<BootImage, Bad> {
    let bad = |why: &str| Bad::Kernel(why.to_owned());
    let elf: ElfFile64<'_> = ElfFile64::parse(kernel)
        .map_err(|e| Bad::Kernel(format!("not a 64-bit ELF file that can be booted: {e}")))?;
    let endian = elf.endian();
    if elf.elf_header().e_machine(endian) != object::elf::EM_X86_64 {
        return Err(bad("an ELF file for another machine than x86-64"));
    }
    let mut entry = None;
    let mut pieces = Vec::new();
    let mut end = HIGH_MEMORY;
    for segment in elf.elf_program_headers() {
        match segment.p_type(endian) {
            object::elf::PT_NOTE => entry = entry.or(pvh_entry(segment, endian, kernel)),
            object::elf::PT_LOAD => {
                let (start, size) = (segment.p_paddr(endian), segment.p_memsz(endian));
                let last = start.checked_add(size).filter(|last| *last <= request.low_ram_end);
                let Some(last) = last else {
                    return Err(Bad::Kernel(format!(
                        "needs memory up to {:#x}, which the machine does not have; give it more with -m",
                        start.saturating_add(size)
                    )));
                };
                let data = segment
                    .data(endian, kernel)
                    .map_err(|()| bad("truncated: a segment is not in the file"))?;
                if data.len() as u64 > size {
                    return Err(bad("a segment is longer in the file than in memory"));
                }
                let mut bytes = data.to_vec();
                bytes.resize(size as usize, 0);
                pieces.push(Piece::new(start, bytes));
                end = end.max(last);
            }
            _ => {}
        }
    }
    let Some(eip) = entry else { return Err(bad("an ELF file without a PVH entry note; give a bzImage")) };
    let line = command_line(request, usize::MAX)?;

    let mut info = vec![0; 0x400];
    put(&mut info, 0x00, &0x336e_c578u32.to_le_bytes());
    put(&mut info, 0x04, &1u32.to_le_bytes());
    put(&mut info, 0x18, &COMMAND_LINE.to_le_bytes());
    put(&mut info, 0x20, &request.rsdp.to_le_bytes());
    put(&mut info, 0x28, &(PVH_INFO + 0x80).to_le_bytes());
    let entries = request.map.len().min(32);
    put(&mut info, 0x30, &(entries as u32).to_le_bytes());
    for (n, range) in request.map.iter().take(entries).enumerate() {
        let at = 0x80 + n * 24;
        put(&mut info, at, &range.start.to_le_bytes());
        put(&mut info, at + 8, &range.length.to_le_bytes());
        put(&mut info, at + 16, &range.kind.to_le_bytes());
    }
    if let Some(initrd) = initrd {
        let start = place_initrd(initrd.len() as u64, end, request.low_ram_end)?;
        put(&mut info, 0x0c, &1u32.to_le_bytes());
        put(&mut info, 0x10, &(PVH_INFO + 0x60).to_le_bytes());
        put(&mut info, 0x60, &start.to_le_bytes());
        put(&mut info, 0x68, &(initrd.len() as u64).to_le_bytes());
        pieces.push(Piece::of_file(start, request.initrd.unwrap_or(Path::new("")), 0, &initrd));
    }
    pieces.extend([Piece::new(GDT, gdt()), Piece::new(PVH_INFO, info), Piece::new(COMMAND_LINE, line)]);
    Ok(BootImage { pieces, entry: Entry::Pvh { eip } })
}

/// The entry point of a `XEN_ELFNOTE_PHYS32_ENTRY` note.
fn pvh_entry<P: ProgramHeader>(segment: &P, endian: P::Endian, file: &[u8]) -> Option<u32> {
    let mut notes = segment.notes(endian, file).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(endian) == 18 {
            return Some(u32_at(note.desc(), 0));
        }
    }
    None
}

impl BootImage {
    /// Puts the first processor at the entry.
    pub fn set_up(&self, state: &mut CpuState) {
        let data = Segment::new(0x18, 0, 0xffff_ffff, 0xc093);
        state.seg = [data; 6];
        state.gdtr = TableReg { base: GDT, limit: 6 * 8 - 1 };
        state.idtr = TableReg { base: 0, limit: 0 };
        state.tr = Segment::new(0x28, 0, 0x67, 0x8b);
        state.ldtr = Segment::null(0);
        state.rflags = 2;
        match self.entry {
            Entry::Linux64 { rip } => {
                state.seg[index::CS] = Segment::new(0x10, 0, 0xffff_ffff, 0xa09b);
                state.rip = rip;
                state.gpr[6] = ZERO_PAGE;
                state.cr0 = 0x8000_0011;
                state.cr3 = PAGE_TABLES;
                state.cr4 = 0x20;
                state.efer = 0x500;
            }
            Entry::Pvh { eip } => {
                state.seg[index::CS] = Segment::new(0x20, 0, 0xffff_ffff, 0xc09b);
                state.rip = u64::from(eip);
                state.gpr[3] = PVH_INFO;
                state.cr0 = 0x11;
                state.cr4 = 0;
            }
            Entry::Multiboot { eip, info } => {
                state.seg[index::CS] = Segment::new(0x20, 0, 0xffff_ffff, 0xc09b);
                state.rip = u64::from(eip);
                state.gpr[0] = 0x2bad_b002;
                state.gpr[3] = u64::from(info);
                state.cr0 = 0x11;
                state.cr4 = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(kernel: &'a Path, map: &'a [E820]) -> BootRequest<'a> {
        BootRequest {
            kernel,
            initrd: None,
            command_line: "console=ttyS0",
            low_ram_end: 128 << 20,
            map,
            rsdp: 0xf_5000,
            seed: [7; 32],
            text_screen: true,
        }
    }

    /// A bzImage with a header and nothing of use behind it.
    fn image() -> Vec<u8> {
        let mut image = vec![0x90; 5 * 512 + 0x1000];
        image[..0x280].fill(0);
        put(&mut image, 0x1f1, &[4]);
        put(&mut image, 0x1f4, &0x100u32.to_le_bytes());
        put(&mut image, 0x1fe, &0xaa55u16.to_le_bytes());
        put(&mut image, 0x200, &[0xeb, 0x66]);
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &0x020fu16.to_le_bytes());
        put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(&mut image, 0x234, &[1, 0, 1, 0]);
        put(&mut image, 0x238, &2047u32.to_le_bytes());
        put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
        put(&mut image, 0x260, &0x20_0000u32.to_le_bytes());
        image
    }

    fn boot(image: &[u8], change: impl FnOnce(&mut BootRequest<'_>)) -> Result<BootImage, String> {
        let dir = std::env::temp_dir().join(format!(
            "anura-linux-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&dir, image).unwrap();
        let map = [E820 { start: 0, length: 0x9_fc00, kind: RAM }];
        let mut request = request(&dir, &map);
        change(&mut request);
        let result = prepare(&request).map_err(|e| e.to_string());
        std::fs::remove_file(&dir).unwrap();
        result
    }

    fn piece(image: &BootImage, address: u64) -> Vec<u8> {
        image.pieces.iter().find(|p| p.address == address).unwrap().bytes().unwrap()
    }

    #[test]
    fn a_bzimage_gets_its_zero_page_and_starts_in_long_mode() {
        let image = boot(&image(), |_| {}).unwrap();
        assert_eq!(image.entry, Entry::Linux64 { rip: 0x10_0200 });
        let page = piece(&image, ZERO_PAGE);
        assert_eq!(
            (page[0x1e8], u32_at(&page, 0x228), u64_at(&page, 0x70)),
            (1, COMMAND_LINE as u32, 0xf_5000)
        );
        assert_eq!(piece(&image, COMMAND_LINE), b"console=ttyS0\0");
        let mut state = CpuState::reset(0);
        image.set_up(&mut state);
        assert!(state.is_64bit() && state.validate().is_ok());
        assert_eq!(state.gpr[6], ZERO_PAGE);
    }

    #[test]
    fn a_large_part_of_a_file_is_read_again_and_a_change_is_noticed() {
        let path = std::env::temp_dir().join(format!("anura-piece-{}", std::process::id()));
        let bytes: Vec<u8> = (0..KEEP_BELOW + 10).map(|n| n as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let piece = Piece::of_file(0, &path, 3, &bytes[3..]);
        assert!(matches!(piece.contents, Contents::File { .. }));
        assert!(piece.bytes().unwrap() == bytes[3..]);
        std::fs::write(&path, vec![0; bytes.len()]).unwrap();
        assert!(piece.bytes().unwrap_err().to_string().contains("changed"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn damaged_images_are_refused_with_the_reason() {
        let whole = image();
        for (bytes, why) in [
            (whole[..0x200].to_vec(), "neither a Linux bzImage nor an ELF file"),
            (whole[..3000].to_vec(), "truncated"),
            (b"\x7fELF but not really".to_vec(), "not a 64-bit ELF file"),
            (vec![], "empty"),
        ] {
            let error = boot(&bytes, |_| {}).unwrap_err();
            assert!(error.contains(why) && error.contains("-kernel"), "{error}");
        }
        let mut old = whole.clone();
        put(&mut old, 0x236, &[0]);
        assert!(boot(&old, |_| {}).unwrap_err().contains("-bios"));
    }

    #[test]
    fn too_little_memory_and_too_long_a_command_line_are_named() {
        assert!(boot(&image(), |r| r.low_ram_end = 8 << 20).unwrap_err().contains("-m"));
        let long = "x".repeat(3000);
        let long: &'static str = Box::leak(long.into_boxed_str());
        assert!(boot(&image(), |r| r.command_line = long).unwrap_err().contains("-append"));
    }
}
