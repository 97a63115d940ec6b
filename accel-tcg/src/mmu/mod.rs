//! Guest memory as the processor sees it: linear addresses, views, faults, devices.
//!
//! The fast path is one compare in the [`tlb`]; everything else is in `Cpu::load` and
//! `Cpu::store`: walks, page crossings (both pages are translated and checked before any byte
//! moves), devices, the local APIC's page (an overlay of this processor only), data breakpoints,
//! and stores to pages that hold code or are logged.
mod access;
mod fetched;
pub(crate) mod locked;
mod regions;
#[cfg(test)]
mod slot_tests;
mod slots;
#[cfg(test)]
mod tests;
pub mod tlb;
mod translate;
pub mod walk;

pub use access::Scalar;
use anura_accel::VmSpaces;
use anura_memory::{FlatRange, RamBlock, RangeKind, SpaceCache};
use anura_vmcore::Width;
use regions::Regions;
use slots::Slots;
use std::sync::Arc;
use tlb::Table;
use walk::{Context, TableMemory};

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The program's own access.
    Data,
    /// The same, by the stack segment: a non-canonical address is #SS.
    Stack,
    /// The processor's own (descriptor tables, TSS): supervisor at any CPL.
    Super,
}

/// A page that instructions are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecPage {
    /// Physical address of the page.
    pub phys: u64,
    /// Its bytes in this process, or null if it is not RAM or ROM as a whole.
    pub host: *const u8,
}

/// Translation caches and the spaces behind them.
pub struct Mmu {
    /// Guest-physical memory.
    pub memory: SpaceCache,
    /// Ports.
    pub ports: SpaceCache,
    /// Entries of the view of the program's accesses and of that of the processor's own.
    data: Table,
    super_: Table,
    /// Those of all views of the current slot, once they were asked for.
    tables: [Table; tlb::VIEWS],
    data_view: usize,
    super_view: usize,
    slots: Slots,
    regions: Regions,
    context: Context,
    /// A data breakpoint is armed: no translation is cached, every access is compared.
    watch: bool,
    /// Address lines that work: all but A20 when its gate is closed.
    lines: u64,
    /// Generation of the memory map that translations were made from.
    map: u64,
    /// The range of it that was looked up last.
    range: usize,
    /// Changes whenever the mapping of code may have changed; translations of code are checked again.
    pub exec_epoch: u64,
    epochs: [u64; 2],
    counts: Counts,
}

/// How often the slow ways were taken.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    misses: u64,
    walks: u64,
    fetches: u64,
    switches: u64,
    fresh: u64,
    tables: u64,
    flushes: u64,
    pages: u64,
    lower: u64,
    upper: u64,
}

// SAFETY: the raw pointers in the caches point into RAM blocks that the cached flat view keeps
// alive, and into boxes of our own; they are used by the thread that owns the Cpu only, and moving
// it moves them along.
unsafe impl Send for Mmu {}

impl Mmu {
    /// For a processor with paging off.
    pub fn new(spaces: &VmSpaces) -> Self {
        let context = Context::new([0; 3], 0, [0; 4], false, 40);
        let memory = spaces.memory.cache();
        let map = memory.generation();
        let mut mmu = Self {
            memory,
            ports: spaces.ports.cache(),
            data: Table::NONE,
            super_: Table::NONE,
            tables: [Table::NONE; tlb::VIEWS],
            data_view: tlb::SUPER_ALL,
            super_view: tlb::SUPER_ALL,
            slots: Slots::new(),
            regions: Regions::new(&context),
            context,
            watch: false,
            lines: u64::MAX,
            map,
            range: 0,
            exec_epoch: 0,
            epochs: [1, 2],
            counts: Counts::default(),
        };
        mmu.select(tlb::SUPER_ALL, tlb::SUPER_ALL);
        mmu
    }

    /// The RAM or ROM behind a page, as [`Tables::find`] gives it, without what processors would share.
    #[inline]
    fn ram_page(&mut self, at: u64) -> Option<(&Arc<RamBlock>, u64, bool)> {
        let at = at & self.lines;
        let ranges = self.memory.held().ranges();
        if !ranges.get(self.range).is_some_and(|r| r.contains(at)) {
            self.range = ranges.partition_point(|r| r.start <= at).checked_sub(1)?;
        }
        ram_of(ranges.get(self.range)?, at, 0x1000)
    }

    /// What `info exits` counts.
    pub fn counts(&self) -> [(&'static str, u64); 10] {
        let c = &self.counts;
        [
            ("TLB misses", c.misses),
            ("walks", c.walks),
            ("fetches translated", c.fetches),
            ("context switches", c.switches),
            ("contexts not kept", c.fresh),
            ("contexts whose tables moved", c.tables),
            ("full flushes", c.flushes),
            ("page flushes", c.pages),
            ("epochs of the lower half", c.lower),
            ("epochs of the upper half", c.upper),
        ]
    }
}

/// The block behind `len` bytes at `at` in a range, the offset in it, and whether it can be written.
#[inline]
fn ram_of(range: &FlatRange, at: u64, len: u64) -> Option<(&Arc<RamBlock>, u64, bool)> {
    let within = at.wrapping_sub(range.start);
    if within >= range.size || range.size - within < len {
        return None;
    }
    match &range.kind {
        RangeKind::Ram { block, offset, writable } => Some((block, offset + within, *writable)),
        RangeKind::RomDevice { block, offset, .. } => Some((block, offset + within, false)),
        RangeKind::Io { .. } => None,
    }
}

/// Physical memory as the processor reaches it: behind the A20 gate.
struct Tables<'a>(&'a anura_memory::FlatView, u64);

impl Tables<'_> {
    fn find(&self, at: u64, len: u64) -> Option<(&Arc<RamBlock>, u64, bool)> {
        let at = at & self.1;
        ram_of(self.0.find(at)?, at, len)
    }

    /// Host address of a page of RAM.
    fn host(&self, page: u64) -> Option<*const u8> {
        let (block, offset, writable) = self.find(page, 0x1000)?;
        // SAFETY: `find` checked that the page is inside the block.
        writable.then(|| unsafe { block.host_ptr().as_ptr().add(offset as usize).cast_const() })
    }
}

impl TableMemory for Tables<'_> {
    fn read(&self, at: u64, wide: bool) -> u64 {
        let width = if wide { Width::W8 } else { Width::W4 };
        let found = self.find(at, width.bytes() as u64);
        found.and_then(|(block, offset, _)| block.load(offset, width)).unwrap_or(width.mask())
    }
    fn update(&self, at: u64, wide: bool, old: u64, new: u64) -> bool {
        let width = if wide { Width::W8 } else { Width::W4 };
        match self.find(at, width.bytes() as u64) {
            Some((block, offset, true)) => {
                block.compare_exchange(offset, width, old, new).is_none_or(|(_, done)| done)
            }
            _ => true,
        }
    }
}
