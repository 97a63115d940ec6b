//! The soft TLB: from a linear page to a host page, by one compare.
//!
//! There are three views with entries of their own: user (CPL 3), supervisor without user pages
//! (SMAP and AC clear, and all implicit accesses), and supervisor. An entry has a tag for reads
//! and one for writes; the write tag is valid only if a store may go straight to host memory:
//! the page is RAM, its D bit is set, it holds no code and is not logged or watched.
//!
//! The invalid tag of entry `i` is `((!i) & 1) << 12`: an address that indexes entry `i` has
//! `i & 1` in bit 12, so the xor leaves bit 12 set and the compare fails for every address.

/// Entries of a view.
pub const ENTRIES: usize = 1024;
/// Entries of a view's victim buffer.
const VICTIMS: usize = 8;
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
    /// Log2 of the mapped size in bits 7:0, bit 8 global.
    pub meta: u64,
}

/// `meta`: the page is global.
pub const GLOBAL: u64 = 1 << 8;

#[inline(always)]
fn index(va: u64) -> usize {
    (va >> 12) as usize & (ENTRIES - 1)
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

/// All views of one processor.
pub struct Tlb {
    entries: Box<[Entry; ENTRIES * VIEWS]>,
    victims: [[Entry; VICTIMS]; VIEWS],
    next_victim: [usize; VIEWS],
    /// Which groups of 32 entries may be valid.
    touched: [u32; VIEWS],
    /// Range of addresses that large pages were filled for; empty if `0` exceeds `1`.
    large: (u64, u64),
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    /// An empty one.
    pub fn new() -> Self {
        let entries: Vec<Entry> = (0..ENTRIES * VIEWS).map(|i| blank(i & (ENTRIES - 1))).collect();
        let dead = Entry { tag_r: NEVER, tag_w: NEVER, host: 0, meta: 0 };
        Self {
            entries: entries.try_into().unwrap_or_else(|_| unreachable!("the length is a constant")),
            victims: [[dead; VICTIMS]; VIEWS],
            next_victim: [0; VIEWS],
            touched: [0; VIEWS],
            large: (1, 0),
        }
    }

    /// Host address for a read of `len` bytes, if this page is present and they do not cross it.
    /// `view` must be below [`VIEWS`] and `len` between 1 and 4096.
    #[inline(always)]
    pub fn read(&self, view: usize, va: u64, len: u64) -> Option<*mut u8> {
        let e = self.entry(view, va);
        let x = va ^ e.tag_r;
        if x <= 0x1000 - len { Some((e.host + x as usize) as *mut u8) } else { None }
    }

    /// Host address for a write.
    #[inline(always)]
    pub fn write(&self, view: usize, va: u64, len: u64) -> Option<*mut u8> {
        let e = self.entry(view, va);
        let x = va ^ e.tag_w;
        if x <= 0x1000 - len { Some((e.host + x as usize) as *mut u8) } else { None }
    }

    /// Where a view's entries begin.
    pub fn base(&self, view: usize) -> *const Entry {
        self.entry(view, 0)
    }

    #[inline(always)]
    fn entry(&self, view: usize, va: u64) -> &Entry {
        debug_assert!(view < VIEWS);
        // SAFETY: `index` is below ENTRIES, and every caller's view is one of the constants
        // above (kept by `Mmu::set_views`), so the sum is inside the array.
        unsafe { self.entries.get_unchecked(view * ENTRIES + index(va)) }
    }

    /// Looks into the victim buffer and brings a find back; true if the main entry now may match.
    pub fn recall(&mut self, view: usize, va: u64, write: bool) -> bool {
        let page = va & !0xfff;
        let tag = |e: &Entry| if write { e.tag_w } else { e.tag_r };
        let Some(n) = self.victims[view].iter().position(|e| tag(e) == page) else { return false };
        let i = index(va);
        let slot = &mut self.entries[view * ENTRIES + i];
        let found = std::mem::replace(&mut self.victims[view][n], victim_of(slot, i));
        *slot = main_of(found, i);
        self.touched[view] |= 1 << (i / 32);
        true
    }

    /// Adds a translation of the page of `va`; at least one of `read` and `write` is set.
    pub fn fill(&mut self, view: usize, va: u64, host: usize, read: bool, write: bool, meta: u64) {
        let (i, page) = (index(va), va & !0xfff);
        let at = view * ENTRIES + i;
        let old = self.entries[at];
        if old.tag_r != page && old.tag_w != page && (old.tag_r != invalid(i) || old.tag_w != invalid(i)) {
            let n = self.next_victim[view];
            self.victims[view][n] = victim_of(&old, i);
            self.next_victim[view] = (n + 1) % VICTIMS;
        }
        // An older copy in the victim buffer may have other rights.
        for e in &mut self.victims[view] {
            if e.tag_r == page || e.tag_w == page {
                (e.tag_r, e.tag_w) = (NEVER, NEVER);
            }
        }
        let tag = |on| if on { page } else { invalid(i) };
        self.entries[at] = Entry { tag_r: tag(read), tag_w: tag(write), host, meta };
        self.touched[view] |= 1 << (i / 32);
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
    }

    /// Drops everything, or everything that is not global.
    pub fn flush(&mut self, keep_global: bool) {
        for view in 0..VIEWS {
            let mut left = 0;
            let mut groups = self.touched[view];
            while groups != 0 {
                let g = groups.trailing_zeros() as usize;
                groups &= groups - 1;
                for i in g * 32..g * 32 + 32 {
                    let e = &mut self.entries[view * ENTRIES + i];
                    if keep_global && e.meta & GLOBAL != 0 {
                        left |= 1 << g;
                    } else {
                        *e = blank(i);
                    }
                }
            }
            self.touched[view] = left;
            for e in &mut self.victims[view] {
                if !(keep_global && e.meta & GLOBAL != 0) {
                    (e.tag_r, e.tag_w) = (NEVER, NEVER);
                }
            }
        }
        if !keep_global {
            self.large = (1, 0);
        }
    }

    /// Drops the translations of one page, global or not; of a large page all its parts.
    pub fn flush_page(&mut self, va: u64) {
        let page = va & !0xfff;
        let within_large = (self.large.0..=self.large.1).contains(&va);
        for view in 0..VIEWS {
            let i = index(va);
            let e = &mut self.entries[view * ENTRIES + i];
            if e.tag_r == page || e.tag_w == page {
                *e = blank(i);
            }
            for e in &mut self.victims[view] {
                if covers(e, va, NEVER) {
                    (e.tag_r, e.tag_w) = (NEVER, NEVER);
                }
            }
            if within_large {
                self.sweep(view, |e, i| covers(e, va, invalid(i)));
            }
        }
    }

    /// Takes the right to store directly away from a host page (it now holds code, or is logged).
    pub fn protect(&mut self, host_page: usize) {
        for view in 0..VIEWS {
            let mut groups = self.touched[view];
            while groups != 0 {
                let g = groups.trailing_zeros() as usize;
                groups &= groups - 1;
                for i in g * 32..g * 32 + 32 {
                    let e = &mut self.entries[view * ENTRIES + i];
                    if e.host == host_page {
                        e.tag_w = invalid(i);
                    }
                }
            }
            for e in self.victims[view].iter_mut().filter(|e| e.host == host_page) {
                e.tag_w = NEVER;
            }
        }
    }

    fn sweep(&mut self, view: usize, drop: impl Fn(&Entry, usize) -> bool) {
        let mut groups = self.touched[view];
        while groups != 0 {
            let g = groups.trailing_zeros() as usize;
            groups &= groups - 1;
            for i in g * 32..g * 32 + 32 {
                let e = &mut self.entries[view * ENTRIES + i];
                if drop(e, i) {
                    *e = blank(i);
                }
            }
        }
    }

    /// The valid entries: view, linear page, readable, writable, log2 of the size, global.
    pub fn list(&self) -> Vec<(usize, u64, bool, bool, u8, bool)> {
        let mut out = vec![];
        for (at, e) in self.entries.iter().enumerate() {
            let (view, i) = (at / ENTRIES, at % ENTRIES);
            let (r, w) = (e.tag_r != invalid(i), e.tag_w != invalid(i));
            if r || w {
                let page = if r { e.tag_r } else { e.tag_w };
                out.push((view, page, r, w, e.meta as u8, e.meta & GLOBAL != 0));
            }
        }
        out
    }
}

/// Whether an entry belongs to the page, of whatever size, that holds `va`.
fn covers(e: &Entry, va: u64, dead: u64) -> bool {
    let shift = e.meta & 0xff;
    let same = |tag: u64| tag != dead && shift >= 12 && (tag ^ va) >> shift == 0;
    same(e.tag_r) || same(e.tag_w)
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

    #[test]
    fn an_empty_tlb_matches_no_address() {
        let t = Tlb::new();
        for page in (0..4096).chain([0x8000, 1 << 40, (1 << 52) - 1, (1 << 36) - 1]) {
            for offset in [0, 8, 0xff8] {
                let va = page << 12 | offset;
                assert!(t.read(USER, va, 1).is_none() && t.write(SUPER, va, 1).is_none(), "{va:x}");
            }
        }
    }

    #[test]
    fn an_access_across_the_page_end_misses() {
        let mut t = Tlb::new();
        t.fill(USER, 0x5000, 0x10000, true, false, 12);
        assert_eq!(t.read(USER, 0x5ff8, 8), Some(0x10ff8 as *mut u8));
        assert_eq!(t.read(USER, 0x5ff9, 8), None);
        assert_eq!(t.write(USER, 0x5ff8, 8), None);
        assert_eq!(t.read(SUPER, 0x5000, 1), None);
    }

    #[test]
    fn a_displaced_entry_comes_back_from_the_victim_buffer() {
        let mut t = Tlb::new();
        t.fill(USER, 0x5000, 0x10000, true, true, 12);
        t.fill(USER, 0x5000 + (1 << 22), 0x20000, true, true, 12);
        assert_eq!(t.read(USER, 0x5000, 8), None);
        assert!(t.recall(USER, 0x5000, true));
        assert_eq!(t.write(USER, 0x5000, 8), Some(0x10000 as *mut u8));
        assert!(t.recall(USER, 0x5000 + (1 << 22), false));
        t.flush_page(0x5000);
        assert!(!t.recall(USER, 0x5000, false));
    }

    #[test]
    fn a_flush_that_keeps_globals_keeps_only_them() {
        let mut t = Tlb::new();
        t.fill(SUPER, 0x5000, 0x10000, true, true, 12 | GLOBAL);
        t.fill(SUPER, 0x6000, 0x20000, true, true, 12);
        t.flush(true);
        assert!(t.read(SUPER, 0x5000, 1).is_some() && t.read(SUPER, 0x6000, 1).is_none());
        t.flush_page(0x5000);
        assert!(t.read(SUPER, 0x5000, 1).is_none());
    }

    #[test]
    fn one_address_flushes_all_parts_of_a_large_page() {
        let mut t = Tlb::new();
        for n in 0..4u64 {
            t.fill(SUPER_ALL, 0x20_0000 + (n << 12), 0x10000 + (n << 12) as usize, true, true, 21);
        }
        t.fill(SUPER_ALL, 0x40_5000, 0x90000, true, true, 21);
        t.flush_page(0x20_3000);
        assert!((0..4u64).all(|n| t.read(SUPER_ALL, 0x20_0000 + (n << 12), 1).is_none()));
        assert!(t.read(SUPER_ALL, 0x40_5000, 1).is_some());
    }

    #[test]
    fn a_protected_page_is_still_read() {
        let mut t = Tlb::new();
        t.fill(USER, 0x5000, 0x10000, true, true, 12);
        t.fill(SUPER, 0x9000, 0x10000, true, true, 12);
        t.protect(0x10000);
        assert!(t.write(USER, 0x5000, 1).is_none() && t.write(SUPER, 0x9000, 1).is_none());
        assert!(t.read(USER, 0x5000, 1).is_some() && t.read(SUPER, 0x9000, 1).is_some());
    }
}
