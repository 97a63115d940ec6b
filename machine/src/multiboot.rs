//! Direct boot of a 32-bit kernel with a multiboot header (Multiboot Specification 0.6.96).
//!
//! The kernel is an ELF file, or says in its header where its parts go (flag 16). It gets the memory map, its
//! command line and its modules in an information structure below 640 KiB. `-initrd "FILE ARGS,FILE ARGS"` names
//! the modules, each with its own command line.

use std::path::{Path, PathBuf};

use object::read::elf::{ElfFile32, FileHeader, ProgramHeader};

use crate::error::MachineError;
use crate::linux::{
    Bad, BootImage, BootRequest, E820, Entry, GDT, HIGH_MEMORY, Piece, gdt, put, read, u32_at,
};

/// What the header begins with.
const MAGIC: u32 = 0x1bad_b002;
/// How far into the file the header may lie.
const SEARCHED: usize = 8192;
/// The header says where the kernel's parts go.
const ADDRESSES: u32 = 1 << 16;
/// The kernel asks for a video mode, which we cannot give; it is asked for, not demanded.
const VIDEO: u32 = 1 << 2;
/// What a kernel may demand: page-aligned modules, memory information, a video mode.
const UNDERSTOOD: u32 = 1 | 2 | VIDEO;

/// Where the information structure, and what it points to, goes.
const INFO: u32 = 0x9_0000;
/// The strings and lists start behind the structure.
const LISTS: u32 = INFO + 0x80;
/// Below the extended BIOS data area.
const LISTS_END: u32 = 0x9_f000;
const LOADER: &[u8] = b"anura\0";

/// Information flags: memory sizes, boot device, command line, modules, memory map, loader's name.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
const HAS_LOADER: u32 = 1 << 9;

/// Where the header is, if the file has one.
pub(crate) fn header(kernel: &[u8]) -> Option<usize> {
    let end = kernel.len().min(SEARCHED).saturating_sub(11);
    (0..end).step_by(4).find(|at| {
        let sum = (0..3).fold(0u32, |sum, n| sum.wrapping_add(u32_at(kernel, at + n * 4)));
        u32_at(kernel, *at) == MAGIC && sum == 0
    })
}

/// Prepares a kernel whose header is at `at`.
pub(crate) fn prepare(
    request: &BootRequest<'_>,
    kernel: &[u8],
    at: usize,
) -> Result<BootImage, MachineError> {
    let image = |why: String| MachineError::Image { option: "-kernel", path: request.kernel.into(), why };
    let (mut pieces, eip, end) = load(request, kernel, at).map_err(|error| match error {
        Bad::Kernel(why) | Bad::Initrd(why) | Bad::Append(why) => image(why),
    })?;
    let mut lists = Lists { bytes: vec![0; 0x80] };
    let mut next = end.next_multiple_of(0x1000);
    let mut modules = Vec::new();
    for (path, line) in modules_of(request.initrd) {
        let bytes = read("-initrd", &path)?;
        let start = next;
        let last = start + bytes.len() as u64;
        if last > request.low_ram_end {
            let why = format!(
                "{} MiB of modules do not fit above the kernel in guest memory; give the machine more with -m",
                bytes.len().div_ceil(1 << 20)
            );
            return Err(MachineError::Image { option: "-initrd", path, why });
        }
        let text = lists.add(line.as_bytes(), true);
        modules.extend([start as u32, last as u32, text, 0].map(u32::to_le_bytes).concat());
        next = last.next_multiple_of(0x1000);
        pieces.push(Piece::of_file(start, &path, 0, &bytes));
    }
    if request.command_line.as_bytes().contains(&0) {
        return Err(MachineError::Config("-append: a command line cannot hold a NUL byte".into()));
    }
    let line = format!("{} {}", request.kernel.display(), request.command_line);
    let line = lists.add(line.trim_end().as_bytes(), true);
    let loader = lists.add(LOADER, false);
    let count = modules.len() as u32 / 16;
    let modules = lists.add(&modules, false);
    let map: Vec<u8> = request.map.iter().flat_map(entry).collect();
    let length = map.len() as u32;
    let map = lists.add(&map, false);
    let flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MAP | HAS_LOADER;
    let upper = (request.low_ram_end - HIGH_MEMORY) >> 10;
    for (offset, value) in
        [(0, flags), (4, 640), (8, upper as u32), (0x10, line), (0x14, count), (0x18, modules)]
            .into_iter()
            .chain([(0x2c, length), (0x30, map), (0x40, loader)])
    {
        put(&mut lists.bytes, offset, &value.to_le_bytes());
    }
    if INFO as usize + lists.bytes.len() > LISTS_END as usize {
        return Err(MachineError::Config(
            "-append, -initrd: command lines too long for a multiboot kernel".into(),
        ));
    }
    pieces.push(Piece::new(GDT, gdt()));
    pieces.extend(crate::firmware::vector_table());
    pieces.push(Piece::new(INFO.into(), lists.bytes));
    Ok(BootImage { pieces, entry: Entry::Multiboot { eip, info: INFO } })
}

/// An entry of the memory map, with its size (of what follows) in front.
fn entry(range: &E820) -> Vec<u8> {
    let words = [20u32, range.start as u32, (range.start >> 32) as u32];
    let rest = [range.length as u32, (range.length >> 32) as u32, range.kind];
    words.iter().chain(&rest).flat_map(|w| w.to_le_bytes()).collect()
}

/// What the information structure points to, behind it.
struct Lists {
    bytes: Vec<u8>,
}

impl Lists {
    /// Appends bytes; where the guest finds them.
    fn add(&mut self, bytes: &[u8], end: bool) -> u32 {
        let at = INFO + self.bytes.len() as u32;
        debug_assert!(at >= LISTS);
        self.bytes.extend(bytes);
        self.bytes.extend(end.then_some(0));
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        at
    }
}

/// Files and command lines of the modules: `FILE ARGS,FILE ARGS`.
fn modules_of(initrd: Option<&Path>) -> Vec<(PathBuf, String)> {
    let Some(text) = initrd.and_then(Path::to_str) else { return Vec::new() };
    text.split(',')
        .map(|one| (PathBuf::from(one.split(' ').next().unwrap_or_default()), one.to_owned()))
        .collect()
}

/// The kernel's pieces, its entry, and the end of what it takes.
fn load(request: &BootRequest<'_>, kernel: &[u8], at: usize) -> Result<(Vec<Piece>, u32, u64), Bad> {
    let flags = u32_at(kernel, at + 4);
    // The lower half are demands, the upper half is information.
    if flags & 0xffff & !UNDERSTOOD != 0 {
        return Err(Bad::Kernel(format!("multiboot kernel with demands {flags:#x} that are not known")));
    }
    let within = |start: u64, size: u64| match start.checked_add(size) {
        Some(last) if last <= request.low_ram_end => Ok(last),
        _ => Err(Bad::Kernel(format!(
            "needs memory up to {:#x}, which the machine does not have; give it more with -m",
            start.saturating_add(size)
        ))),
    };
    if flags & ADDRESSES != 0 {
        let [header, load, load_end, bss_end, entry] = [12, 16, 20, 24, 28].map(|n| u32_at(kernel, at + n));
        let first = u64::from(at as u32).checked_sub(u64::from(header.wrapping_sub(load)));
        let rest = first.and_then(|first| kernel.get(first as usize..));
        let (Some(first), Some(rest)) = (first, rest) else {
            return Err(Bad::Kernel("its multiboot header loads from before the file".into()));
        };
        let wanted = if load_end == 0 { rest.len() } else { load_end.saturating_sub(load) as usize };
        let Some(body) = rest.get(..wanted) else {
            return Err(Bad::Kernel(format!(
                "truncated: {} bytes, but its multiboot header promises {}",
                kernel.len(),
                first as usize + wanted
            )));
        };
        let size = (wanted as u64).max(u64::from(bss_end).saturating_sub(load.into()));
        let last = within(load.into(), size)?;
        let mut bytes = body.to_vec();
        bytes.resize(size as usize, 0);
        return Ok((vec![Piece::new(load.into(), bytes)], entry, last));
    }
    let elf: ElfFile32<'_> = ElfFile32::parse(kernel)
        .map_err(|e| Bad::Kernel(format!("a multiboot kernel, but not a 32-bit ELF file: {e}")))?;
    let endian = elf.endian();
    let (mut pieces, mut end) = (Vec::new(), HIGH_MEMORY);
    let header = elf.elf_header();
    let mut eip = header.e_entry(endian);
    for segment in elf.elf_program_headers() {
        if segment.p_type(endian) != object::elf::PT_LOAD {
            continue;
        }
        let (start, size) = (u64::from(segment.p_paddr(endian)), u64::from(segment.p_memsz(endian)));
        end = end.max(within(start, size)?);
        let data = segment
            .data(endian, kernel)
            .map_err(|()| Bad::Kernel("truncated: a segment is not in the file".into()))?;
        if data.len() as u64 > size {
            return Err(Bad::Kernel("a segment is longer in the file than in memory".into()));
        }
        // The entry is a linear address; the kernel starts with paging off.
        let offset = header.e_entry(endian).wrapping_sub(segment.p_vaddr(endian));
        if u64::from(offset) < size {
            eip = segment.p_paddr(endian).wrapping_add(offset);
        }
        let mut bytes = data.to_vec();
        bytes.resize(size as usize, 0);
        pieces.push(Piece::new(start, bytes));
    }
    Ok((pieces, eip, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::RAM;
    use anura_x86::CpuState;

    /// A kernel that says where it goes: 16 bytes in front of the header, code behind it.
    fn image(flags: u32) -> Vec<u8> {
        let mut words = vec![0u32; 4];
        words.extend([MAGIC, flags, 0u32.wrapping_sub(MAGIC).wrapping_sub(flags)]);
        words.extend([0x10_0010, 0x10_0000, 0, 0x10_2000, 0x10_0030]);
        words.extend([0x9090_9090; 8]);
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn boot(image: &[u8], initrd: Option<&Path>) -> Result<BootImage, String> {
        let path = std::env::temp_dir().join(format!(
            "anura-multiboot-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, image).unwrap();
        let map = [E820 { start: 0, length: 0x9_fc00, kind: RAM }];
        let request = BootRequest {
            kernel: &path,
            initrd,
            command_line: "one two",
            low_ram_end: 128 << 20,
            map: &map,
            rsdp: 0,
            seed: [0; 32],
            text_screen: false,
        };
        let result = crate::linux::prepare(&request).map_err(|e| e.to_string());
        std::fs::remove_file(&path).unwrap();
        result
    }

    #[test]
    fn a_kernel_that_gives_addresses_is_loaded_with_its_bss_and_starts_in_32_bit_code() {
        let loaded = boot(&image(ADDRESSES | 3), None).unwrap();
        assert_eq!(loaded.entry, Entry::Multiboot { eip: 0x10_0030, info: INFO });
        let kernel = loaded.pieces.iter().find(|p| p.address == 0x10_0000).unwrap();
        assert_eq!(kernel.bytes().unwrap().len(), 0x2000);
        let mut state = CpuState::reset(0);
        loaded.set_up(&mut state);
        assert_eq!((state.gpr[0], state.gpr[3], state.rip), (0x2bad_b002, INFO.into(), 0x10_0030));
        assert!(!state.is_64bit() && state.validate().is_ok());
    }

    #[test]
    fn the_information_tells_of_memory_command_line_and_modules() {
        let module = std::env::temp_dir().join(format!("anura-module-{}", std::process::id()));
        std::fs::write(&module, b"module").unwrap();
        let list = format!("{0} a,{0} b c", module.display());
        let loaded = boot(&image(ADDRESSES), Some(Path::new(&list))).unwrap();
        std::fs::remove_file(&module).unwrap();
        let info = loaded.pieces.iter().find(|p| p.address == u64::from(INFO)).unwrap();
        let info = info.bytes().unwrap();
        let at = |n| u32_at(&info, n);
        let text = |n: u32| {
            let from = &info[(n - INFO) as usize..];
            String::from_utf8(from.iter().take_while(|b| **b != 0).copied().collect()).unwrap()
        };
        assert_eq!((at(4), at(8), at(0x14)), (640, (127 << 20) >> 10, 2));
        assert!(text(at(0x10)).ends_with(" one two"));
        let second = (at(0x18) - INFO) as usize + 16;
        assert_eq!((at(second), at(second + 4)), (0x10_3000, 0x10_3006));
        assert!(text(at(second + 8)).ends_with(" b c"));
        assert_eq!((at(0x2c), at((at(0x30) - INFO) as usize)), (24, 20));
    }

    #[test]
    fn unknown_demands_and_damaged_files_are_refused() {
        assert!(boot(&image(ADDRESSES | 0x10), None).unwrap_err().contains("demands"));
        assert!(boot(&image(0), None).unwrap_err().contains("not a 32-bit ELF file"));
        let mut short = image(ADDRESSES);
        short[16 + 20..16 + 24].copy_from_slice(&0x11_0000u32.to_le_bytes());
        assert!(boot(&short, None).unwrap_err().contains("truncated"));
    }
}
