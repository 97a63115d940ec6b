//! What the tables above the last one say, remembered by region: the paging-structure cache.
//!
//! A walk ends in a table of page entries that maps a region of 2 MiB (4 MiB without PAE). The entries that lead to it
//! are kept here with their addresses, and compared with memory each time they are used. So nothing here is ever
//! stale, and nothing must be dropped when the guest flushes translations; only the memory map and the rules of
//! paging must not have changed.
use super::walk::{Context, Page, Path, Want};
use anura_x86::paging::{self, Mode};
use anura_x86::regs::error;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A table entry in guest memory, and what it said.
#[derive(Clone, Copy, Debug)]
pub struct Dep {
    /// Host address; null for a translation without tables.
    at: *const u8,
    value: u64,
}

impl Dep {
    /// Of a translation without tables: always holds.
    pub const NONE: Self = Self { at: std::ptr::null(), value: 0 };

    /// The entry at a host address, which must stay readable and be aligned for its size.
    pub fn new(at: *const u8, value: u64) -> Self {
        Self { at, value }
    }

    /// Whether the entry, of 8 or 4 bytes, still says the same.
    #[inline(always)]
    pub fn holds(&self, wide: bool) -> bool {
        // SAFETY: the address is of RAM in the flat view that the processor holds; a change of the view drops all.
        self.at.is_null() || unsafe { load(self.at, wide) } == self.value
    }
}

impl Dep {
    /// Whether another reading of the entry differs in accessed and dirty bits only.
    pub fn maps_like(&self, other: &Self) -> bool {
        self.at == other.at && (self.value ^ other.value) & !(paging::A | paging::D) == 0
    }

    /// Like [`Self::holds`], but the dirty bit may have been set.
    pub fn still_maps(&self, wide: bool) -> bool {
        // SAFETY: as in `holds`.
        self.at.is_null() || (unsafe { load(self.at, wide) } ^ self.value) & !paging::D == 0
    }
}

/// Reads a table entry.
///
/// # Safety
/// `at` is readable and aligned for 8 or 4 bytes.
#[inline(always)]
unsafe fn load(at: *const u8, wide: bool) -> u64 {
    // SAFETY: the caller's contract; guests and devices write there, hence atomic.
    unsafe {
        if wide {
            AtomicU64::from_ptr(at.cast_mut().cast()).load(Ordering::Relaxed)
        } else {
            AtomicU32::from_ptr(at.cast_mut().cast()).load(Ordering::Relaxed).into()
        }
    }
}

const REGIONS: usize = 256;
const NOWHERE: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Region {
    /// Number of the region, and the top table that it was reached from.
    tag: u64,
    root: u64,
    /// The entries from the top down, `len` of them.
    above: [Dep; 4],
    len: u8,
    /// The last of them maps a large page: log2 of its size, else 0.
    large: u8,
    user: bool,
    writable: bool,
    nx: bool,
    /// Host address of the table of page entries.
    table: *const u8,
    /// The list of [`Above`] that has these entries.
    noted: u64,
}

const EMPTY: Region = Region {
    tag: NOWHERE,
    root: 0,
    above: [Dep::NONE; 4],
    len: 0,
    large: 0,
    user: false,
    writable: false,
    nx: false,
    table: std::ptr::null(),
    noted: 0,
};

/// The cache.
pub struct Regions {
    entries: Box<[Region; REGIONS]>,
    /// Bits that must be zero in a page entry.
    reserved: u64,
    wide: bool,
    shift: u32,
}

/// Where a translation came from.
#[derive(Clone, Copy)]
pub struct Hit {
    /// The entry that maps the page.
    pub dep: Dep,
    region: usize,
}

impl Hit {
    /// From nowhere that is known.
    pub const NONE: Self = Self { dep: Dep::NONE, region: REGIONS };
}

/// What is known here of an address.
pub enum Look {
    /// Its translation.
    Found(Page, Hit),
    /// The error code of the page fault.
    Fault(u32),
    /// Nothing, or tables must be marked: the walker's work.
    Unknown,
}

impl Regions {
    /// An empty one.
    pub fn new(ctx: &Context) -> Self {
        let mut r = Self { entries: Box::new([EMPTY; REGIONS]), reserved: 0, wide: true, shift: 21 };
        r.reset(ctx);
        r
    }

    /// Forgets everything, and takes over new rules.
    pub fn reset(&mut self, ctx: &Context) {
        for r in self.entries.iter_mut() {
            r.tag = NOWHERE;
        }
        self.wide = ctx.mode != Mode::Legacy;
        self.shift = if self.wide { 21 } else { 22 };
        self.reserved = paging::reserved(ctx.mode, 1, false, ctx.phys_bits, ctx.nxe, ctx.pse, ctx.gb_pages);
    }

    /// Whether table entries have 8 bytes.
    pub fn wide(&self) -> bool {
        self.wide
    }

    fn place(&self, root: u64, va: u64) -> (usize, u64) {
        let tag = va >> self.shift;
        let i = tag ^ tag >> 9 ^ root >> 12;
        (i as usize & (REGIONS - 1), tag)
    }

    /// Translates `va`.
    #[inline(always)]
    pub fn look(&self, ctx: &Context, va: u64, want: Want) -> Look {
        let root = top(ctx, va);
        let (region, tag) = self.place(root, va);
        let r = &self.entries[region];
        if r.tag != tag || r.root != root || !r.above[..usize::from(r.len)].iter().all(|d| d.holds(self.wide))
        {
            return Look::Unknown;
        }
        let (dep, shift) = if r.large == 0 {
            let size = if self.wide { 8 } else { 4 };
            let at = (va >> 12 & ((1 << (self.shift - 12)) - 1)) as usize * size;
            // SAFETY: inside of the table, which is a page of RAM.
            let at = unsafe { r.table.add(at) };
            // SAFETY: as above.
            let value = unsafe { load(at, self.wide) };
            if value & paging::P == 0 {
                return Look::Fault(want.code(ctx));
            }
            if value & self.reserved != 0 {
                return Look::Fault(want.code(ctx) | error::PF_P | error::PF_RSVD);
            }
            (Dep::new(at, value), 12)
        } else {
            (r.above[usize::from(r.len) - 1], r.large)
        };
        let v = dep.value;
        let leaf = r.large == 0;
        let page = Page::of(
            ctx,
            va,
            v,
            shift,
            r.user && (!leaf || v & paging::US != 0),
            r.writable && (!leaf || v & paging::RW != 0),
            r.nx || leaf && self.wide && v & paging::NX != 0,
        );
        if let Some(refused) = page.refuses(ctx, want) {
            return Look::Fault(want.code(ctx) | refused);
        }
        let needed = paging::A | if want.write { paging::D } else { 0 };
        if v & needed == needed { Look::Found(page, Hit { dep, region }) } else { Look::Unknown }
    }

    /// Remembers a walk that succeeded. `host` gives the address of whole pages of RAM.
    pub fn add(
        &mut self,
        ctx: &Context,
        va: u64,
        path: &Path,
        host: impl Fn(u64) -> Option<*const u8>,
    ) -> Option<Hit> {
        let root = top(ctx, va);
        let (region, tag) = self.place(root, va);
        let dep = |e: &super::walk::Entry| {
            let page = host(e.at & !0xfff)?;
            // SAFETY: within the page.
            Some(Dep::new(unsafe { page.add((e.at & 0xfff) as usize) }, e.value))
        };
        let leaf = dep(path.leaf())?;
        let large = path.level > 1;
        let last = if large { path.level } else { 2 };
        let mut r = Region { tag, root, large: if large { path.shift as u8 } else { 0 }, ..EMPTY };
        (r.user, r.writable, r.nx) = (true, true, false);
        for level in (last..=path.top).rev() {
            let e = path.at(level);
            *r.above.get_mut(usize::from(r.len))? = dep(e)?;
            r.len += 1;
            r.user &= e.value & paging::US != 0;
            r.writable &= e.value & paging::RW != 0;
            r.nx |= self.wide && e.value & paging::NX != 0;
        }
        if !large {
            r.table = host(path.leaf().at & !0xfff)?;
        }
        self.entries[region] = r;
        Some(Hit { dep: leaf, region })
    }
}

/// Physical address that a walk begins at.
fn top(ctx: &Context, va: u64) -> u64 {
    match ctx.mode {
        Mode::Pae => ctx.pdpte[(va >> 30 & 3) as usize],
        _ => ctx.root,
    }
}

/// More regions than this are not compared one by one.
const LIMIT: usize = 512;
/// As many regions may have moved; with more, all are taken to have.
const MOVED: usize = 8;

/// A region that translations came through, and the entries above its last table.
#[derive(Clone, Copy)]
struct Noted {
    tag: u64,
    /// Where the cache had it.
    region: usize,
    above: [Dep; 4],
    len: u8,
}

/// The regions that translations of one context came through.
pub struct Above {
    list: Vec<Noted>,
    name: u64,
    overflow: bool,
}

/// Regions whose tables no longer stand where they stood.
#[derive(Clone, Copy)]
pub struct Moved {
    tags: [u64; MOVED],
    len: usize,
    shift: u32,
}

impl Moved {
    /// No regions.
    pub fn none() -> Self {
        Self { tags: [0; MOVED], len: 0, shift: 21 }
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the page of this size that holds `va` has a part in one of them.
    #[inline]
    pub fn meets(&self, va: u64, shift: u8) -> bool {
        let shift = self.shift.max(shift.into());
        self.tags[..self.len].iter().any(|tag| (tag << self.shift ^ va) >> shift == 0)
    }
}

impl Above {
    /// An empty list with a name of its own, not 0.
    pub fn new(name: u64) -> Self {
        Self { list: Vec::new(), name, overflow: false }
    }

    /// Forgets all, under a new name.
    pub fn clear(&mut self, name: u64) {
        self.list.clear();
        (self.name, self.overflow) = (name, false);
    }

    /// Adds what a translation came through.
    #[inline]
    pub fn note(&mut self, regions: &mut Regions, hit: &Hit) {
        let Some(r) = regions.entries.get_mut(hit.region) else {
            // It came through entries that cannot be compared.
            self.overflow = true;
            return;
        };
        if r.noted == self.name {
            return;
        }
        r.noted = self.name;
        self.overflow |= self.list.len() > LIMIT;
        if !self.overflow {
            self.list.push(Noted { tag: r.tag, region: hit.region, above: r.above, len: r.len });
        }
    }

    /// Finds the regions whose entries say something else now, and forgets them; `None` if they are too many.
    pub fn moved(&mut self, regions: &mut Regions) -> Option<Moved> {
        let mut moved = Moved { shift: regions.shift, ..Moved::none() };
        if self.overflow {
            return None;
        }
        let holds = |n: &Noted| n.above[..usize::from(n.len)].iter().all(|d| d.holds(regions.wide));
        for n in self.list.iter().filter(|n| !holds(n)) {
            *moved.tags.get_mut(moved.len)? = n.tag;
            moved.len += 1;
        }
        if moved.len != 0 {
            let gone = &moved.tags[..moved.len];
            for n in self.list.iter().filter(|n| gone.contains(&n.tag)) {
                // It may be there anew, and must be noted anew.
                regions.entries[n.region].noted = 0;
            }
            self.list.retain(|n| !gone.contains(&n.tag));
        }
        Some(moved)
    }
}
