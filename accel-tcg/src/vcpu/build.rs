//! The IR of blocks and what it was made from: marks on the bytes of guest memory, and taking over what happened to
//! them since.

use super::SoftVcpu;
use crate::cache::Cache;
use crate::env::{Cpu, Exec, Fault};
use crate::frontend::blocks::{self, Source};
use crate::ir::Block;
use crate::mmu::{ExecPage, View};
use crate::mode::key;
use crate::opt;
use crate::show;
use smallvec::SmallVec;
use std::ptr;

/// Host addresses of pages.
pub(super) type Sources = SmallVec<[usize; 2]>;

/// A block's IR and what it was made from.
pub(super) struct Made {
    pub block: Block,
    /// Host address of the second page, for a block that crosses.
    pub second: Option<u64>,
    /// Host addresses of the pages that it was made from.
    pub sources: Sources,
}

/// Bytes that are read at a time; few blocks are longer.
const AHEAD: usize = 64;

/// What making blocks uses again and again.
pub(super) struct Workshop {
    /// Memory for the next block's IR.
    pub spare: Block,
    /// The bytes of the block; none is longer than its instructions can be.
    bytes: Box<[u8; 64 * 15]>,
    /// Pages with our mark among their owners, each at the place that its number gives it.
    owned: [usize; 64],
}

impl Default for Workshop {
    fn default() -> Self {
        Workshop { spare: Block::default(), bytes: Box::new([0; 64 * 15]), owned: [0; 64] }
    }
}

impl Workshop {
    fn owned(&mut self, page: usize) -> &mut usize {
        &mut self.owned[page >> 12 & 63]
    }
}

/// The bytes of a block in its first page, read when they are asked for.
struct Fetched<'a> {
    from: *const u8,
    /// How many there are.
    limit: usize,
    /// How many have been read.
    read: usize,
    bytes: &'a mut [u8; 64 * 15],
}

impl Source for Fetched<'_> {
    fn ahead(&mut self, at: usize) -> &[u8] {
        while self.read < self.limit && self.read < at + 15 {
            let to = (self.read + AHEAD).min(self.limit);
            // SAFETY: whoever made this knows that so many bytes are readable.
            unsafe { read_shared(self.from.add(self.read), &mut self.bytes[self.read..to]) };
            self.read = to;
        }
        &self.bytes[at.min(self.read)..self.read]
    }
}

/// Why there is no code at RIP.
pub(super) enum Refused {
    Fault(Fault),
    Device,
    /// Its bytes changed while it was made.
    Changed,
}

impl From<Fault> for Refused {
    fn from(f: Fault) -> Self {
        Refused::Fault(f)
    }
}

impl SoftVcpu {
    /// Drops all translations.
    pub(super) fn forget(&mut self, cache: &mut Cache) {
        let mut pages = cache.pages();
        pages.extend(self.jit.iter().flat_map(|j| j.pages()));
        cache.clear();
        self.cpu.t0.block = ptr::null();
        self.cpu.t0.counts.flushes += 1;
        if let Some(jit) = &mut self.jit {
            jit.clear(&mut self.cpu);
        }
        for page in pages {
            self.settle(cache, page);
        }
        self.unsure.clear();
        self.cpu.env.jit.unsure = 0;
        self.catch_up(cache);
    }

    /// Drops all translations of the interpreter's, and no functions.
    pub(super) fn forget_codes(&mut self, cache: &mut Cache) {
        let pages = cache.pages();
        cache.clear_codes();
        self.cpu.t0.block = ptr::null();
        self.cpu.t0.counts.flushes += 1;
        for page in pages {
            self.settle(cache, page);
        }
        self.catch_up(cache);
    }

    /// After translations of a page were dropped: its marks are made those of the translations left.
    pub(super) fn settle(&mut self, cache: &Cache, page: usize) {
        let owned = self.workshop.owned(page);
        if *owned == page {
            *owned = 0;
        }
        let jit = self.jit.as_deref();
        let still = cache.has_page(page) || jit.is_some_and(|j| j.has_page(page));
        let cpu = &self.cpu;
        cpu.vm.pages.settle(page, self.owner, still, || {
            let granules = cache.granules(page) | jit.map_or(0, |j| j.granules(page));
            for ram in &cpu.vm.spaces.ram {
                let start = ram.host_ptr().as_ptr() as usize;
                if let Some(at) = page.checked_sub(start).filter(|at| (*at as u64) < ram.len()) {
                    ram.tracker().reduce_code(at as u64, granules);
                }
            }
        });
    }

    /// Pages whose last translation was dropped lose their marks.
    pub(super) fn settle_bare(&mut self, cache: &Cache) {
        let Some(jit) = &mut self.jit else { return };
        for page in jit.take_bare() {
            self.settle(cache, page);
        }
    }

    /// Takes over what others did to code and to pages.
    pub(super) fn catch_up(&mut self, cache: &mut Cache) {
        for (host, len) in self.cpu.catch_up(cache) {
            self.drop_range(cache, host, len as usize);
        }
    }

    /// Drops what was translated from these bytes.
    fn drop_range(&mut self, cache: &mut Cache, host: usize, len: usize) {
        cache.invalidate(host, len);
        if let Some(jit) = &mut self.jit {
            jit.invalidate(&mut self.cpu, host, len);
            self.settle_bare(cache);
        }
        let mut page = host & !0xfff;
        while page < host + len.max(1) {
            self.settle(cache, page);
            page += 0x1000;
        }
    }

    /// Drops translations whose bytes others have changed unseen. Whatever the guest may have heard from another
    /// processor before a serialising instruction must be seen behind it, so this follows each of those, and each
    /// look at events. No translated code may be running.
    #[cold]
    pub(super) fn confirm(&mut self, cache: &mut Cache) {
        let mut all_know = || self.cpu.vm.pages.all_know(&self.cpu.vm.code.presence);
        for (host, len) in self.unsure.check(&mut all_know) {
            self.drop_range(cache, host, len);
        }
        self.cpu.env.jit.unsure = (!self.unsure.is_empty()).into();
    }

    /// The IR of the block at a place, with the marks on its bytes made. The place is given by its address in this
    /// process, its page, its linear address and RIP there.
    pub(super) fn build(
        &mut self,
        host: usize,
        page: ExecPage,
        (linear, rip): (u64, u64),
        max: usize,
    ) -> Result<Made, Refused> {
        let cpu = &mut *self.cpu;
        let within = (linear & 0xfff) as usize;
        let phys = page.phys | within as u64;
        let (ram, offset) = cpu.ram_at(phys).ok_or(Refused::Device)?;
        // Marked before the bytes are read, so that other processors hear of it early; exact marks follow.
        let owned = self.workshop.owned(page.host as usize);
        if *owned != page.host as usize {
            cpu.vm.pages.own(page.host as usize, self.owner, || ram.tracker().mark_code(offset, 1));
            // Interpreters that take turns are one owner.
            *owned = if self.jit.is_some() { page.host as usize } else { 0 };
        }
        let inside = cpu.code_left();
        let here = (0x1000 - within).min(max.min(64) * 15);
        // SAFETY: the page is RAM as a whole and we stay inside of it.
        let from = unsafe { page.host.add(within) };
        // What lies behind the segment's end is not fetched.
        let limit = here.min(inside);
        let mut first = Fetched { from, limit, read: 0, bytes: &mut self.workshop.bytes };
        let mode = cpu.env.mode_key;
        let mut second_page = None;
        let mut beyond = [0; 15];
        let next = (linear & !0xfff).wrapping_add(0x1000);
        let next = if cpu.env.is_64bit() { next } else { next & 0xffff_ffff };
        let built = blocks::build_in(
            std::mem::take(&mut self.workshop.spare),
            &mut first,
            || -> Exec<[u8; 15]> {
                if inside <= here {
                    return Err(Fault::GP0);
                }
                let p = cpu.translate_exec(next)?;
                second_page = Some(p);
                let mut more = [0; 15];
                if p.host.is_null() {
                    cpu.load(next, &mut more, View::Super)?;
                } else {
                    // SAFETY: as above.
                    unsafe { read_shared(p.host, &mut more) };
                }
                beyond = more;
                Ok(more)
            },
            (host as u64, rip, mode),
            &self.features,
            max,
        )?;
        if u64::from(built.block.len()) > inside as u64 {
            return Err(Refused::Fault(Fault::GP0));
        }
        let mut block = built.block;
        let bytes = &first.bytes[..first.read];
        let runner = match self.translating {
            true => opt::flags::Runner::Translated,
            false => opt::flags::Runner::Interpreter,
        };
        opt::flags::run(&mut block, runner);
        #[cfg(feature = "mutants")]
        crate::mutants::alter(&mut block);
        if cfg!(debug_assertions)
            && let Err(e) = crate::ir::verify::block(&block)
        {
            panic!("{e}\n{}", crate::ir::print::block(&block));
        }
        let log = cpu.jit.log;
        if log.in_asm || log.op {
            let mut bytes = bytes.to_vec();
            bytes.resize(limit, 0);
            bytes.extend(beyond);
            show::translated(log, &block, &bytes);
        }
        let second_page = if built.crosses { second_page } else { None };
        let second = second_page.map(|p| p.host as u64);
        let in_first = u64::from(block.len()).min(0x1000 - within as u64).max(1);
        ram.tracker().mark_code(offset, in_first);
        let mut sources = Sources::new();
        sources.push(page.host as usize);
        let mut pieces = [(host, &bytes[..in_first as usize]), (0, &[][..])];
        if let Some(p) = second_page.filter(|p| !p.host.is_null())
            && let Some((ram, offset)) = cpu.ram_at(p.phys)
        {
            let rest = u64::from(block.len()).saturating_sub(in_first).max(1);
            cpu.vm.pages.own(p.host as usize, self.owner, || ram.tracker().mark_code(offset, rest));
            sources.push(p.host as usize);
            pieces[1] = (p.host as usize, &beyond[..rest as usize]);
        }
        self.unsure.add(&pieces[..sources.len()], cpu.vm.pages.all_know(&cpu.vm.code.presence));
        cpu.env.jit.unsure = (!self.unsure.is_empty()).into();
        Ok(Made { block, second, sources })
    }
}

/// Copies guest memory that others may write meanwhile.
///
/// # Safety
/// The bytes must be readable.
unsafe fn read_shared(from: *const u8, to: &mut [u8]) {
    let words = to.len() / 8;
    let (whole, rest) = to.split_at_mut(words * 8);
    for (i, word) in whole.chunks_exact_mut(8).enumerate() {
        // SAFETY: inside of what the caller vouches for; bytes in an array need no alignment.
        let v = unsafe { from.add(i * 8).cast::<Word>().read_volatile() };
        word.copy_from_slice(&v.0.to_ne_bytes());
    }
    for (i, b) in rest.iter_mut().enumerate() {
        // SAFETY: as above.
        *b = unsafe { from.add(words * 8 + i).read_volatile() };
    }
}

/// Eight bytes at any address, read at once.
#[repr(C, packed)]
struct Word(u64);

impl Cpu {
    /// Bytes from RIP to the end of the code segment.
    fn code_left(&self) -> usize {
        if self.env.mode_key & key::CS_FLAT != 0 {
            return usize::MAX;
        }
        let limit = u64::from(self.env.seg[anura_x86::segment::index::CS].limit);
        (limit + 1).saturating_sub(self.env.rip) as usize
    }
}
