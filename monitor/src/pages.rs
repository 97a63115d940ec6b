//! `info tlb` and `info mem`: the guest's page tables as they are in memory.
//!
//! Tables are the guest's and may point at themselves, so the walk has a budget of entries and of
//! lines, and says when it stopped.

use std::fmt::Write;

use anura_memory::{AddressSpace, Requester, Width};
use anura_x86::CpuState;
use anura_x86::regs::{cr0, cr4};

/// Table entries that a walk reads.
const MAX_ENTRIES: usize = 4 << 20;
/// Mappings that are shown.
const MAX_LINES: usize = 1 << 18;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// One mapping: where, how large, the entry, and rights of all levels together.
struct Leaf {
    va: u64,
    size: u64,
    pa: u64,
    entry: u64,
    rights: u64,
}

struct Walk<'a> {
    memory: &'a AddressSpace,
    /// Bytes of an entry.
    width: Width,
    budget: usize,
    lines: usize,
    each: &'a mut dyn FnMut(&Leaf),
}

/// The address bits that each level of a table indexes, top first, and whether an entry there may be
/// a large page.
type Levels = &'static [(u32, u32, bool)];

const LEVELS_64: Levels = &[(39, 9, false), (30, 9, true), (21, 9, true), (12, 9, false)];
const LEVELS_57: Levels = &[(48, 9, false), (39, 9, false), (30, 9, true), (21, 9, true), (12, 9, false)];
const LEVELS_PAE: Levels = &[(30, 2, false), (21, 9, true), (12, 9, false)];
const LEVELS_32: Levels = &[(22, 10, true), (12, 10, false)];

/// Calls `each` for every mapping; `None` if paging is off, else whether the walk is complete.
fn walk(memory: &AddressSpace, s: &CpuState, each: &mut dyn FnMut(&Leaf)) -> Option<bool> {
    if s.cr0 & cr0::PG == 0 {
        return None;
    }
    let (levels, width, mask) = match (s.long_mode(), s.cr4 & cr4::PAE != 0) {
        (true, _) if s.cr4 & cr4::LA57 != 0 => (LEVELS_57, Width::W8, 0x000f_ffff_ffff_f000),
        (true, _) => (LEVELS_64, Width::W8, 0x000f_ffff_ffff_f000),
        (false, true) => (LEVELS_PAE, Width::W8, 0xffff_ffe0),
        (false, false) => (LEVELS_32, Width::W4, 0xffff_f000),
    };
    let mut w = Walk { memory, width, budget: MAX_ENTRIES, lines: MAX_LINES, each };
    Some(w.table(s.cr3 & mask, levels, 0, USER | WRITE))
}

impl Walk<'_> {
    fn table(&mut self, base: u64, levels: Levels, va: u64, rights: u64) -> bool {
        let [(shift, bits, may_be_large), below @ ..] = levels else { return true };
        let size = self.width.bytes() as u64;
        // The four pointers of PAE have no rights of their own.
        let pointers = *bits == 2;
        for i in 0..1u64 << bits {
            if self.budget == 0 || self.lines == 0 {
                return false;
            }
            self.budget -= 1;
            let (entry, result) = self.memory.read(base + i * size, self.width, Requester::Monitor);
            if !result.is_ok() || entry & PRESENT == 0 {
                continue;
            }
            let mut va = va | i << shift;
            if self.width == Width::W8
                && *shift >= 39
                && levels.len() >= 4
                && i >> 8 != 0
                && shift + bits >= 48
            {
                va |= u64::MAX << (shift + bits);
            }
            let rights = if pointers { rights } else { rights & entry | entry & NX | rights & NX };
            let large = *may_be_large && entry & LARGE != 0;
            if below.is_empty() || large {
                self.lines -= 1;
                let address = if self.width == Width::W8 { 0x000f_ffff_ffff_f000 } else { 0xffff_f000 };
                let pa = entry & address & !((1 << shift) - 1);
                (self.each)(&Leaf { va, size: 1 << shift, pa, entry, rights });
            } else {
                let next = if self.width == Width::W8 { 0x000f_ffff_ffff_f000 } else { 0xffff_f000 };
                if !self.table(entry & next, below, va, rights) {
                    return false;
                }
            }
        }
        true
    }
}

fn ending(complete: Option<bool>) -> &'static str {
    match complete {
        None => "PG disabled\n",
        Some(true) => "",
        Some(false) => "(more mappings than are shown)\n",
    }
}

/// `info tlb`: every mapping with the bits of its entry.
pub(crate) fn tlb(memory: &AddressSpace, s: &CpuState) -> String {
    let mut out = String::new();
    let complete = walk(memory, s, &mut |l| {
        let flag = |bit: u64, c: char| if l.entry & bit != 0 { c } else { '-' };
        let large = if l.size > 4096 { 'P' } else { '-' };
        let flags: String = [
            flag(NX, 'X'),
            flag(1 << 8, 'G'),
            large,
            flag(1 << 6, 'D'),
            flag(1 << 5, 'A'),
            flag(1 << 4, 'C'),
            flag(1 << 3, 'T'),
            flag(USER, 'U'),
            flag(WRITE, 'W'),
        ]
        .iter()
        .collect();
        let _ = writeln!(out, "{:016x}: {:016x} {flags}", l.va, l.pa);
    });
    out + ending(complete)
}

/// `info mem`: runs of addresses with the same rights.
pub(crate) fn mem(memory: &AddressSpace, s: &CpuState) -> String {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    let complete = walk(memory, s, &mut |l| {
        let rights = l.rights & (USER | WRITE);
        match runs.last_mut() {
            Some((start, size, r)) if start.wrapping_add(*size) == l.va && *r == rights => *size += l.size,
            _ => runs.push((l.va, l.size, rights)),
        }
    });
    let mut out = String::new();
    for (start, size, rights) in runs {
        let user = if rights & USER != 0 { 'u' } else { '-' };
        let write = if rights & WRITE != 0 { 'w' } else { '-' };
        let _ = writeln!(out, "{start:016x}-{:016x} {size:016x} {user}r{write}", start.wrapping_add(size));
    }
    out + ending(complete)
}
