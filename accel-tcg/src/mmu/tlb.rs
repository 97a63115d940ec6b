//! The soft TLB: from a linear page to a host page, by one compare.
//!
//! There are views with entries of their own: user (CPL 3), supervisor without user pages
//! (SMAP and AC clear, and all implicit accesses), and supervisor. An entry has a tag for reads
//! and one for writes; the write tag is valid only if a store may go straight to host memory:
//! the page is RAM, its D bit is set, it holds no code and is not logged or watched.
//!
//! The invalid tag of entry `i` is `((!i) & 1) << 12`: an address that indexes entry `i` has
//! `i & 1` in bit 12, so the xor leaves bit 12 set and the compare fails for every address.
//!
//! A view begins with [`SMALL`] entries. When more is used at once than these have room for, or what is used falls on
//! the same entries, it doubles, up to [`LARGE`]; it halves when it is emptied and most of it was not in use.
//!
//! Beside each entry stands the table entry in guest memory that it came from (`Dep`). A flush of what is not
//! global need not drop an entry whose table entry still says the same: see [`View::validate`].
use super::regions::{Dep, Moved};

/// Entries of a view at first.
pub const SMALL: usize = 1024;
/// Entries of a view at most.
pub const LARGE: usize = 16384;
/// Entries of a view's victim buffer.
const VICTIMS: usize = 8;
/// Host pages without write tags that are remembered.
const PROTECTED: usize = 16;
/// Words of the filter of host pages.
const FILTER: usize = 64;
/// Number of views.
pub const VIEWS: usize = 4;
/// User view.
pub const USER: usize = 0;
/// Supervisor view that may not access user pages.
pub const SUPER: usize = 1;
/// Supervisor view that may.
pub const SUPER_ALL: usize = 2;
/// A view that stays empty, so that every access goes the slow way: user mode with alignment checks.
pub const CHECKED: usize = 3;

/// One translation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Entry {
    /// Linear page for reads, or the invalid tag.
    pub tag_r: u64,
    /// Linear page for writes, or the invalid tag.
    pub tag_w: u64,
    /// Host address of the page.
    pub host: usize,
    /// Log2 of the mapped size in bits 7:0, bit 8 global, the protection key in bits 19:16.
    pub meta: u64,
}

/// `meta`: the page is global.
pub const GLOBAL: u64 = 1 << 8;
/// `meta`: a user page, whose protection key PKRU speaks of.
pub const USER_PAGE: u64 = 1 << 9;
/// `meta`: the program may write here, whether or not its stores may go straight to memory.
pub const WRITABLE: u64 = 1 << 10;
/// `meta`: shift of the protection key.
pub const KEY_SHIFT: u32 = 16;

/// Log2 of an entry's size.
pub const ENTRY_SHIFT: u32 = 5;
const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT);

/// Where a view's entries are. Good until the view changes its size.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The first entry.
    pub base: *mut Entry,
    /// The bits of an address, moved down by 12 less [`ENTRY_SHIFT`], that say how far from there its entry is.
    pub mask: u64,
}

impl Table {
    /// Nowhere.
    pub const NONE: Self = Self { base: std::ptr::null_mut(), mask: 0 };

    /// # Safety
    /// The view must live and have this size.
    #[inline(always)]
    unsafe fn entry(&self, va: u64) -> &Entry {
        // SAFETY: the mask keeps the offset inside of the entries.
        unsafe { &*self.base.byte_add((va >> (12 - ENTRY_SHIFT) & self.mask) as usize) }
    }
}

#[inline(always)]
fn invalid(i: usize) -> u64 {
    ((!i as u64) & 1) << 12
}
fn blank(i: usize) -> Entry {
    Entry { tag_r: invalid(i), tag_w: invalid(i), host: 0, meta: 0 }
}
/// A tag that no page address equals, for the victim buffers.
const NEVER: u64 = 1;
const DEAD: Entry = Entry { tag_r: NEVER, tag_w: NEVER, host: 0, meta: 0 };

/// The entries of one view.
pub struct View {
    entries: Box<[Entry]>,
    deps: Box<[Dep]>,
    /// The victims' pages, or [`NEVER`], and the victims.
    pages: [u64; VICTIMS],
    victims: [(Entry, Dep); VICTIMS],
    next_victim: usize,
    /// Which entries may be valid, and which of those are global.
    valid: Box<[u64]>,
    global: Box<[u64]>,
    /// Entries that had to make room for others since the view had its size or was emptied.
    displaced: usize,
    /// Range of addresses that large pages were filled for; empty if `0` exceeds `1`.
    large: (u64, u64),
    /// Hashes of the host pages that had a write tag since the view was empty.
    stored: [u64; FILTER],
    /// Host pages that lost their write tags and got none since, each in its place; zero for none.
    protected: [usize; PROTECTED],
}

impl Default for View {
    fn default() -> Self {
        Self::new()
    }
}

/// Where `len` readable bytes of a page are, and what else is known of the page.
///
/// # Safety
/// As for [`read`].
#[inline]
pub unsafe fn known(table: Table, va: u64, len: u64) -> Option<(*mut u8, u64)> {
    // SAFETY: the caller's contract.
    let e = unsafe { table.entry(va) };
    let x = va ^ e.tag_r;
    (x <= 0x1000 - len).then(|| ((e.host + x as usize) as *mut u8, e.meta))
}

/// Host address for a read of `len` bytes (1 to 4096), if this page is present and they do not cross it.
///
/// # Safety
/// `table` is where a view's entries are now.
#[inline(always)]
pub unsafe fn read(table: Table, va: u64, len: u64) -> Option<*mut u8> {
    // SAFETY: the caller's contract.
    let e = unsafe { table.entry(va) };
    let x = va ^ e.tag_r;
    if x <= 0x1000 - len { Some((e.host + x as usize) as *mut u8) } else { None }
}

/// Host address for a write.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write(table: Table, va: u64, len: u64) -> Option<*mut u8> {
    // SAFETY: the caller's contract.
    let e = unsafe { table.entry(va) };
    let x = va ^ e.tag_w;
    if x <= 0x1000 - len { Some((e.host + x as usize) as *mut u8) } else { None }
}

/// The indices of the bits that are set.
fn each(mut bits: u64, w: usize, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(w * 64 + bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

impl View {
    /// An empty one.
    pub fn new() -> Self {
        Self::of(SMALL)
    }

    /// An empty one of a size, which is a power of two.
    fn of(size: usize) -> Self {
        Self {
            entries: (0..size).map(blank).collect(),
            deps: vec![Dep::NONE; size].into(),
            pages: [NEVER; VICTIMS],
            victims: [(DEAD, Dep::NONE); VICTIMS],
            next_victim: 0,
            valid: vec![0; size / 64].into(),
            global: vec![0; size / 64].into(),
            displaced: 0,
            large: (1, 0),
            stored: [0; FILTER],
            protected: [0; PROTECTED],
        }
    }

    /// Where the entries are.
    pub fn table(&mut self) -> Table {
        let mask = (self.entries.len() as u64 - 1) << ENTRY_SHIFT;
        Table { base: self.entries.as_mut_ptr(), mask }
    }

    #[inline(always)]
    fn index(&self, va: u64) -> usize {
        (va >> 12) as usize & (self.entries.len() - 1)
    }

    /// Doubles the size.
    #[cold]
    fn grow(&mut self) {
        let mut to = Self::of(self.entries.len() * 2);
        to.take(self, |_| true);
        (to.pages, to.victims, to.next_victim) = (self.pages, self.victims, self.next_victim);
        to.large = self.large;
        *self = to;
    }

    /// Puts another view's translations that are wanted where they belong here.
    fn take(&mut self, from: &Self, wanted: impl Fn(&Entry) -> bool) {
        for (w, bits) in from.valid.iter().enumerate() {
            each(*bits, w, |k| {
                let e = victim_of(&from.entries[k], k);
                if wanted(&e) && page_of(&e) != NEVER {
                    let i = self.index(page_of(&e));
                    self.entries[i] = main_of(e, i);
                    self.deps[i] = from.deps[k];
                    self.mark(i, e.meta);
                }
            });
        }
        for (mine, other) in self.stored.iter_mut().zip(from.stored) {
            *mine |= other;
        }
        self.protected = [0; PROTECTED];
    }

    fn mark(&mut self, i: usize, meta: u64) {
        let bit = 1 << (i & 63);
        self.valid[i / 64] |= bit;
        if meta & GLOBAL != 0 {
            self.global[i / 64] |= bit;
        } else {
            self.global[i / 64] &= !bit;
        }
    }

    fn kill(&mut self, n: usize) {
        self.pages[n] = NEVER;
        self.victims[n].0 = DEAD;
    }

    /// Drops the victims that are meant.
    fn kill_those(&mut self, mut hit: impl FnMut(&Entry, &Dep) -> bool) {
        for n in 0..VICTIMS {
            if self.pages[n] != NEVER && hit(&self.victims[n].0, &self.victims[n].1) {
                self.kill(n);
            }
        }
    }

    fn drop_entry(&mut self, i: usize) {
        self.entries[i] = blank(i);
        self.valid[i / 64] &= !(1 << (i & 63));
    }

    /// Looks into the victim buffer and brings a find back; true if the main entry now may match.
    #[inline]
    pub fn recall(&mut self, va: u64, write: bool) -> bool {
        let page = va & !0xfff;
        let Some(n) = self.pages.iter().position(|p| *p == page) else { return false };
        let (found, dep) = self.victims[n];
        if write && found.tag_w != page || !write && found.tag_r != page {
            return false;
        }
        let i = self.index(va);
        self.displaced += 1;
        let out = victim_of(&self.entries[i], i);
        self.pages[n] = page_of(&out);
        self.victims[n] = (out, self.deps[i]);
        self.entries[i] = main_of(found, i);
        self.deps[i] = dep;
        self.mark(i, found.meta);
        true
    }

    /// Adds a translation of the page of `va`; at least one of `read` and `write` is set. True if the entries are
    /// elsewhere now.
    pub fn fill(&mut self, va: u64, host: usize, read: bool, write: bool, meta: u64, dep: Dep) -> bool {
        let (mut i, page) = (self.index(va), va & !0xfff);
        // An older copy in the victim buffer may have other rights.
        if let Some(n) = self.pages.iter().position(|p| *p == page) {
            self.kill(n);
        }
        let mut old = self.entries[i];
        let displaces = |e: &Entry, i| {
            e.tag_r != page && e.tag_w != page && (e.tag_r != invalid(i) || e.tag_w != invalid(i))
        };
        let mut grown = false;
        if displaces(&old, i) {
            self.displaced += 1;
            if self.displaced > self.entries.len() && self.entries.len() < LARGE {
                self.grow();
                grown = true;
                i = self.index(va);
                old = self.entries[i];
            }
        }
        if displaces(&old, i) {
            let n = self.next_victim;
            let out = victim_of(&old, i);
            self.pages[n] = page_of(&out);
            self.victims[n] = (out, self.deps[i]);
            self.next_victim = (n + 1) % VICTIMS;
        }
        let tag = |on| if on { page } else { invalid(i) };
        self.entries[i] = Entry { tag_r: tag(read), tag_w: tag(write), host, meta };
        self.deps[i] = dep;
        self.mark(i, meta);
        if write {
            let (w, bit) = hash(host);
            self.stored[w] |= bit;
            let known = &mut self.protected[slot_of(host)];
            if *known == host {
                *known = 0;
            }
        }
        let shift = meta & 0xff;
        if shift > 12 {
            let base = va >> shift << shift;
            let last = base | ((1 << shift) - 1);
            self.large = if self.large.0 > self.large.1 {
                (base, last)
            } else {
                (self.large.0.min(base), self.large.1.max(last))
            };
        }
        grown
    }

    /// Drops everything, or everything that is not global. In the first case the entries may be elsewhere afterwards.
    pub fn flush(&mut self, keep_global: bool) {
        let size = self.entries.len();
        let used = || self.valid.iter().map(|w| w.count_ones() as usize).sum::<usize>();
        if !keep_global && size > SMALL && used() < size / 4 {
            *self = Self::of(size / 2);
            return;
        }
        self.displaced = 0;
        for w in 0..self.valid.len() {
            let kept = if keep_global { self.global[w] } else { 0 };
            let entries = &mut self.entries;
            each(self.valid[w] & !kept, w, |i| entries[i] = blank(i));
            self.valid[w] &= kept;
        }
        self.kill_those(|e, _| !(keep_global && e.meta & GLOBAL != 0));
        if !keep_global {
            self.large = (1, 0);
            self.stored = [0; FILTER];
        }
    }

    /// Drops what is not global and no longer stands so in guest memory, or was found by tables that moved.
    pub fn validate(&mut self, wide: bool, moved: &Moved) {
        for w in 0..self.valid.len() {
            let (entries, deps, mut out) = (&mut self.entries, &self.deps, 0);
            each(self.valid[w] & !self.global[w], w, |i| {
                let e = &entries[i];
                let lost = || moved.meets(page_of(&victim_of(e, i)), e.meta as u8);
                if !deps[i].holds(wide) || !moved.is_empty() && lost() {
                    entries[i] = blank(i);
                    out |= 1 << (i & 63);
                }
            });
            self.valid[w] &= !out;
        }
        self.kill_those(|e, dep| {
            e.meta & GLOBAL == 0
                && (!dep.holds(wide) || !moved.is_empty() && moved.meets(page_of(e), e.meta as u8))
        });
    }

    /// Takes over the global translations of another view.
    pub fn copy_globals(&mut self, from: &Self) {
        self.take(from, |e| e.meta & GLOBAL != 0);
        self.large = match (self.large, from.large) {
            (a, b) if b.0 > b.1 => a,
            (a, b) if a.0 > a.1 => b,
            (a, b) => (a.0.min(b.0), a.1.max(b.1)),
        };
    }

    /// Drops the translations of one page, global or not; of a large page all its parts.
    pub fn flush_page(&mut self, va: u64) {
        let page = va & !0xfff;
        let i = self.index(va);
        let e = &self.entries[i];
        if e.tag_r == page || e.tag_w == page {
            self.drop_entry(i);
        }
        if let Some(n) = self.pages.iter().position(|p| *p == page) {
            self.kill(n);
        }
        if (self.large.0..=self.large.1).contains(&va) {
            self.kill_those(|e, _| covers(e, va, NEVER));
            self.sweep(|e, i| covers(e, va, invalid(i)));
        }
    }

    /// Takes the right to store directly away from a host page (it now holds code, or is logged).
    pub fn protect(&mut self, host_page: usize) {
        let (w, bit) = hash(host_page);
        let known = &mut self.protected[slot_of(host_page)];
        if self.stored[w] & bit == 0 || *known == host_page {
            return;
        }
        *known = host_page;
        for w in 0..self.valid.len() {
            let entries = &mut self.entries;
            each(self.valid[w], w, |i| {
                if entries[i].host == host_page {
                    entries[i].tag_w = invalid(i);
                }
            });
        }
        for (e, _) in self.victims.iter_mut().filter(|(e, _)| e.host == host_page) {
            e.tag_w = NEVER;
        }
    }

    /// Takes the right to store directly away from all pages.
    pub fn protect_all(&mut self) {
        for w in 0..self.valid.len() {
            let entries = &mut self.entries;
            each(self.valid[w], w, |i| entries[i].tag_w = invalid(i));
        }
        for (e, _) in &mut self.victims {
            e.tag_w = NEVER;
        }
        self.stored = [0; FILTER];
    }

    /// Drops the user pages whose protection key is in the set.
    pub fn drop_keys(&mut self, keys: u32, user: bool) {
        let hit =
            |e: &Entry| keys >> (e.meta >> KEY_SHIFT & 15) & 1 != 0 && (e.meta & USER_PAGE != 0) == user;
        self.sweep(|e, _| hit(e));
        self.kill_those(|e, _| hit(e));
    }

    fn sweep(&mut self, drop: impl Fn(&Entry, usize) -> bool) {
        for w in 0..self.valid.len() {
            let (entries, mut gone) = (&mut self.entries, 0);
            each(self.valid[w], w, |i| {
                if drop(&entries[i], i) {
                    entries[i] = blank(i);
                    gone |= 1 << (i & 63);
                }
            });
            self.valid[w] &= !gone;
        }
    }

    /// The valid entries: linear page, readable, writable, log2 of the size, global.
    pub fn list(&self) -> Vec<(u64, bool, bool, u8, bool)> {
        let mut out = vec![];
        for (i, e) in self.entries.iter().enumerate() {
            let (r, w) = (e.tag_r != invalid(i), e.tag_w != invalid(i));
            if r || w {
                let page = if r { e.tag_r } else { e.tag_w };
                out.push((page, r, w, e.meta as u8, e.meta & GLOBAL != 0));
            }
        }
        out
    }
}

/// Where a host page stands in [`View::protected`].
fn slot_of(host: usize) -> usize {
    host >> 12 & (PROTECTED - 1)
}

/// Where the bit of a host page stands in [`View::stored`].
fn hash(host: usize) -> (usize, u64) {
    let page = host >> 12;
    (page / 64 % FILTER, 1 << (page & 63))
}

/// Whether an entry belongs to the page, of whatever size, that holds `va`.
fn covers(e: &Entry, va: u64, dead: u64) -> bool {
    let shift = e.meta & 0xff;
    let same = |tag: u64| tag != dead && shift >= 12 && (tag ^ va) >> shift == 0;
    same(e.tag_r) || same(e.tag_w)
}

/// The page of a victim.
fn page_of(e: &Entry) -> u64 {
    if e.tag_r != NEVER { e.tag_r } else { e.tag_w }
}

fn victim_of(e: &Entry, i: usize) -> Entry {
    let tag = |t: u64| if t == invalid(i) { NEVER } else { t };
    Entry { tag_r: tag(e.tag_r), tag_w: tag(e.tag_w), ..*e }
}
fn main_of(e: Entry, i: usize) -> Entry {
    let tag = |t: u64| if t == NEVER { invalid(i) } else { t };
    Entry { tag_r: tag(e.tag_r), tag_w: tag(e.tag_w), ..e }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rd(v: &mut View, va: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: the table is this view's.
        unsafe { read(v.table(), va, len) }
    }
    fn wr(v: &mut View, va: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: the table is this view's.
        unsafe { write(v.table(), va, len) }
    }

    #[test]
    fn an_empty_view_matches_no_address() {
        let mut t = View::new();
        for page in (0..4096).chain([0x8000, 1 << 40, (1 << 52) - 1, (1 << 36) - 1]) {
            for offset in [0, 8, 0xff8] {
                let va = page << 12 | offset;
                assert!(rd(&mut t, va, 1).is_none() && wr(&mut t, va, 1).is_none(), "{va:x}");
            }
        }
    }

    #[test]
    fn an_access_across_the_page_end_misses() {
        let mut t = View::new();
        t.fill(0x5000, 0x10000, true, false, 12, Dep::NONE);
        assert_eq!(rd(&mut t, 0x5ff8, 8), Some(0x10ff8 as *mut u8));
        assert_eq!(rd(&mut t, 0x5ff9, 8), None);
        assert_eq!(wr(&mut t, 0x5ff8, 8), None);
    }

    #[test]
    fn a_displaced_entry_comes_back_from_the_victim_buffer() {
        let mut t = View::new();
        t.fill(0x5000, 0x10000, true, true, 12, Dep::NONE);
        t.fill(0x5000 + (1 << 22), 0x20000, true, true, 12, Dep::NONE);
        assert_eq!(rd(&mut t, 0x5000, 8), None);
        assert!(t.recall(0x5000, true));
        assert_eq!(wr(&mut t, 0x5000, 8), Some(0x10000 as *mut u8));
        assert!(t.recall(0x5000 + (1 << 22), false));
        t.flush_page(0x5000);
        assert!(!t.recall(0x5000, false));
    }

    #[test]
    fn a_view_grows_when_pages_fall_on_the_same_entries_and_shrinks_when_it_is_emptied() {
        let mut t = View::new();
        let far = |n: u64| 0x5000 + n * (SMALL as u64) * 0x1000;
        let mut moves = 0;
        for round in 0..4 * SMALL as u64 {
            for n in 0..3 {
                let meta = if n == 0 { 12 | GLOBAL } else { 12 };
                if rd(&mut t, far(n), 8).is_none() && !t.recall(far(n), false) {
                    moves +=
                        u32::from(t.fill(far(n), 0x10000 * (n as usize + 1), true, true, meta, Dep::NONE));
                }
                // Evicts what is there.
                moves += u32::from(t.fill(far(n + 3 + round % 5), 0x100_0000, true, false, 12, Dep::NONE));
            }
        }
        assert!(moves > 0 && t.entries.len() > SMALL, "{moves}");
        for n in 0..3 {
            t.fill(far(n), 0x10000 * (n as usize + 1), true, true, 12 | GLOBAL, Dep::NONE);
        }
        let mut other = View::new();
        other.copy_globals(&t);
        let found = (0..3).filter(|n| rd(&mut other, far(*n), 8).is_some()).count();
        assert_eq!(found, 1, "they fall on one entry of a small view");
        t.protect(0x20000);
        assert!(wr(&mut t, far(1), 8).is_none() && rd(&mut t, far(1), 8).is_some());
        let size = t.entries.len();
        t.flush(false);
        assert!(t.entries.len() == size / 2 && rd(&mut t, far(0), 8).is_none());
    }

    #[test]
    fn a_flush_that_keeps_globals_keeps_only_them() {
        let mut t = View::new();
        t.fill(0x5000, 0x10000, true, true, 12 | GLOBAL, Dep::NONE);
        t.fill(0x6000, 0x20000, true, true, 12, Dep::NONE);
        t.flush(true);
        assert!(rd(&mut t, 0x5000, 1).is_some() && rd(&mut t, 0x6000, 1).is_none());
        let mut other = View::new();
        other.fill(0x7000, 0x30000, true, true, 12, Dep::NONE);
        other.copy_globals(&t);
        assert!(rd(&mut other, 0x5000, 1).is_some() && rd(&mut other, 0x7000, 1).is_some());
        t.flush_page(0x5000);
        assert!(rd(&mut t, 0x5000, 1).is_none());
    }

    #[test]
    fn one_address_flushes_all_parts_of_a_large_page() {
        let mut t = View::new();
        for n in 0..4u64 {
            t.fill(0x20_0000 + (n << 12), 0x10000 + (n << 12) as usize, true, true, 21, Dep::NONE);
        }
        t.fill(0x40_5000, 0x90000, true, true, 21, Dep::NONE);
        t.flush_page(0x20_3000);
        assert!((0..4u64).all(|n| rd(&mut t, 0x20_0000 + (n << 12), 1).is_none()));
        assert!(rd(&mut t, 0x40_5000, 1).is_some());
    }

    #[test]
    fn a_protected_page_is_still_read() {
        let mut t = View::new();
        t.fill(0x5000, 0x10000, true, true, 12, Dep::NONE);
        t.fill(0x9000, 0x10000, true, true, 12, Dep::NONE);
        t.fill(0xa000, 0x11000, true, true, 12, Dep::NONE);
        t.protect(0x10000);
        assert!(wr(&mut t, 0x5000, 1).is_none() && wr(&mut t, 0x9000, 1).is_none());
        t.fill(0x9000, 0x10000, true, true, 12, Dep::NONE);
        assert!(wr(&mut t, 0x9000, 1).is_some());
        t.protect(0x10000);
        t.protect(0x10000);
        assert!(wr(&mut t, 0x5000, 1).is_none() && wr(&mut t, 0x9000, 1).is_none());
        assert!(rd(&mut t, 0x5000, 1).is_some() && wr(&mut t, 0xa000, 1).is_some());
        t.protect_all();
        assert!(wr(&mut t, 0xa000, 1).is_none() && rd(&mut t, 0xa000, 1).is_some());
    }

    #[test]
    fn validation_drops_what_the_tables_no_longer_say() {
        let mut t = View::new();
        let mut table = [1u64, 2, 3];
        let p = &raw mut table;
        for (n, meta) in [12, 12, 12 | GLOBAL].into_iter().enumerate() {
            // SAFETY: inside of the array.
            let at = unsafe { p.cast::<u64>().add(n) };
            t.fill(
                0x5000 + (n as u64) * 0x1000,
                0x10000,
                true,
                true,
                meta,
                Dep::new(at.cast(), n as u64 + 1),
            );
        }
        // SAFETY: the array is alive, and only reached through this pointer.
        unsafe { *p = [1, 9, 9] };
        t.validate(true, &Moved::none());
        assert!(rd(&mut t, 0x5000, 1).is_some() && rd(&mut t, 0x6000, 1).is_none());
        assert!(rd(&mut t, 0x7000, 1).is_some(), "global");
    }
}
