//! Who wrote which page of a RAM block: the dirty log, and the trip wire on pages that hold
//! translated code.
//!
//! One byte per page says whether a write there matters: bit 0 for code, one bit for each client
//! of the dirty log whose bit is armed. A page whose byte is 0 is *plain*: an engine may store to it
//! without telling anyone, and drops such a shortcut when a [`CodeListener`] hears that the page is
//! watched. Everyone else calls [`RamTracker::note_write`] after the store.
//!
//! A client's page is dirty while its bit is *not* armed, so a new block is dirty for everyone and
//! untouched pages of these tables cost no host memory.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::ram::{PAGE_SHIFT, PAGE_SIZE, RamBlock};

/// Class bit of a page that holds translated code.
const CODE: u8 = 1;
/// Bytes per code granule: 64 granules in a page, one bit each.
const GRANULE_SHIFT: u32 = 6;

/// A reader of the dirty log, with its own view of what is dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DirtyClient {
    /// A display that redraws what changed.
    Display = 1 << 1,
    /// A migration in flight.
    Migration = 1 << 2,
    /// The state hash's cache of page hashes.
    Hash = 1 << 3,
    /// The write log: see [`RamTracker::take_log`].
    Log = 1 << 4,
}

/// An engine that keeps translations of code or shortcuts for stores.
pub trait CodeListener: Send + Sync {
    /// Bytes that held code, as told by [`RamTracker::mark_code`], may have changed. Called after the
    /// store, by the thread that made it.
    fn code_written(&self, block: &RamBlock, offset: u64, len: u64);

    /// Pages in this range stopped being plain: shortcuts for stores to them must go.
    fn pages_watched(&self, block: &RamBlock, offset: u64, len: u64) {
        let _ = (block, offset, len);
    }
}

struct Tables {
    /// The block we belong to, for listeners.
    block: Weak<RamBlock>,
    /// Class of each page.
    class: Box<[AtomicU8]>,
    /// For each page, which of its 64-byte granules hold code.
    granules: Box<[AtomicU64]>,
    /// Engines; they outlive nobody by being listed here.
    listeners: RwLock<Vec<Weak<dyn CodeListener>>>,
    /// Pages written since they were armed for [`DirtyClient::Log`].
    log: Mutex<Vec<u64>>,
}

/// The tracker of one RAM block. Clones share it.
#[derive(Clone)]
pub struct RamTracker(Arc<Tables>);

impl std::fmt::Debug for RamTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamTracker").field("pages", &self.0.class.len()).finish()
    }
}

impl RamTracker {
    pub(crate) fn new(block: Weak<RamBlock>, len: u64) -> Self {
        let pages = len.div_ceil(PAGE_SIZE) as usize;
        Self(Arc::new(Tables {
            block,
            class: zeroed_bytes(pages),
            granules: zeroed_words(pages),
            listeners: RwLock::new(Vec::new()),
            log: Mutex::new(Vec::new()),
        }))
    }

    /// Tells everyone concerned that `len` bytes at `offset` were written. Call it after the store.
    #[inline]
    pub fn note_write(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        // The store before us must be visible before we look: the other side arms first and reads the
        // bytes afterwards, so one of the two sees the other.
        fence(Ordering::SeqCst);
        let first = (offset >> PAGE_SHIFT) as usize;
        let last = (offset.saturating_add(len - 1) >> PAGE_SHIFT) as usize;
        for page in first..=last.min(self.0.class.len().saturating_sub(1)) {
            let class = self.0.class[page].load(Ordering::Relaxed);
            if class != 0 {
                self.note_page(page, class, offset, len);
            }
        }
    }

    #[cold]
    fn note_page(&self, page: usize, class: u8, offset: u64, len: u64) {
        if class & !CODE != 0 {
            let before = self.0.class[page].fetch_and(CODE, Ordering::SeqCst);
            if before & DirtyClient::Log as u8 != 0 {
                self.0.log.lock().push((page as u64) << PAGE_SHIFT);
            }
        }
        if class & CODE == 0 {
            return;
        }
        let start = (page as u64) << PAGE_SHIFT;
        let from = offset.max(start);
        let to = offset.saturating_add(len).min(start + PAGE_SIZE);
        if self.0.granules[page].load(Ordering::Relaxed) & granule_mask(from - start, to - from) != 0 {
            let Some(block) = self.0.block.upgrade() else { return };
            for l in self.0.listeners.read().iter().filter_map(Weak::upgrade) {
                l.code_written(&block, from, to - from);
            }
        }
    }

    /// The class of the page at `offset`: 0 is plain, and a store there needs no [`Self::note_write`].
    #[inline]
    pub fn page_class(&self, offset: u64) -> u8 {
        self.0.class.get((offset >> PAGE_SHIFT) as usize).map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// Whether the page at `offset` is plain.
    #[inline]
    pub fn is_plain(&self, offset: u64) -> bool {
        self.page_class(offset) == 0
    }

    /// Whether a store of `len` bytes at `offset`, inside of a page, concerns nobody: no client of the log, and no code
    /// though the page may hold some elsewhere.
    pub fn is_beside_code(&self, offset: u64, len: u64) -> bool {
        let class = self.page_class(offset);
        let within = offset & (PAGE_SIZE - 1);
        class & !CODE == 0 && (class == 0 || self.code_granules(offset) & granule_mask(within, len) == 0)
    }

    /// Whether the page at `offset` holds code.
    pub fn is_code(&self, offset: u64) -> bool {
        self.page_class(offset) & CODE != 0
    }

    /// The 64-byte granules of the page at `offset` that hold code, one bit each.
    pub fn code_granules(&self, offset: u64) -> u64 {
        self.0.granules.get((offset >> PAGE_SHIFT) as usize).map_or(0, |g| g.load(Ordering::Relaxed))
    }

    /// Marks bytes as code. Read the bytes to translate only after this, so that no store is missed.
    pub fn mark_code(&self, offset: u64, len: u64) {
        self.each_page(offset, len, |page, within, n| {
            let (mask, marks, class) = (granule_mask(within, n), &self.0.granules[page], &self.0.class[page]);
            // Most have been marked before.
            if marks.load(Ordering::SeqCst) & mask != mask {
                marks.fetch_or(mask, Ordering::SeqCst);
            }
            // Also where a client of the log has told it already: who marks may go by its having been told.
            if class.load(Ordering::SeqCst) & CODE == 0 && class.fetch_or(CODE, Ordering::SeqCst) & CODE == 0
            {
                self.tell_watched((page as u64) << PAGE_SHIFT, PAGE_SIZE);
            }
        });
        fence(Ordering::SeqCst);
    }

    /// Puts `granules` in place of all code marks of the page at `offset`, after translations went. The page is plain
    /// afterwards only if there are none: a page that stays code never looks plain in between. Nobody else may mark
    /// the page meanwhile.
    pub fn reduce_code(&self, offset: u64, granules: u64) {
        let page = (offset >> PAGE_SHIFT) as usize;
        if let (Some(g), Some(c)) = (self.0.granules.get(page), self.0.class.get(page)) {
            g.fetch_and(granules, Ordering::SeqCst);
            if granules == 0 {
                c.fetch_and(!CODE, Ordering::SeqCst);
            }
        }
    }

    /// Adds an engine that is told of writes to code for as long as it lives.
    pub fn add_listener(&self, listener: Weak<dyn CodeListener>) {
        let mut all = self.0.listeners.write();
        all.retain(|l| l.strong_count() > 0);
        all.push(listener);
    }

    /// Whether the page at `offset` was written since `client` last took it.
    pub fn is_dirty(&self, client: DirtyClient, offset: u64) -> bool {
        self.page_class(offset) & client as u8 == 0
    }

    /// Takes the dirty pages of a range: arms each and calls `each` with its offset. Read a page's
    /// bytes only after it was taken.
    pub fn take_dirty(&self, client: DirtyClient, offset: u64, len: u64, mut each: impl FnMut(u64)) {
        self.each_page(offset, len, |page, _, _| {
            if self.0.class[page].load(Ordering::Relaxed) & client as u8 != 0 {
                return;
            }
            let at = (page as u64) << PAGE_SHIFT;
            if self.0.class[page].fetch_or(client as u8, Ordering::SeqCst) == 0 {
                self.tell_watched(at, PAGE_SIZE);
            }
            each(at);
        });
        fence(Ordering::SeqCst);
    }

    /// Begins the write log: from now on [`Self::take_log`] knows each page that is written.
    pub fn start_log(&self) {
        let len = (self.0.class.len() as u64) << PAGE_SHIFT;
        self.take_dirty(DirtyClient::Log, 0, len, |_| {});
        self.0.log.lock().clear();
    }

    /// The offsets of the pages written since the last call, in no order, each once. They are armed again: read
    /// their bytes afterwards. Costs in proportion to what was written, unlike [`Self::take_dirty`].
    pub fn take_log(&self) -> Vec<u64> {
        let pages = std::mem::take(&mut *self.0.log.lock());
        for &at in &pages {
            self.take_dirty(DirtyClient::Log, at, 1, |_| {});
        }
        pages
    }

    /// Ends a client's interest: its pages are dirty again and cost writers nothing.
    pub fn stop_log(&self, client: DirtyClient) {
        for c in &self.0.class {
            if c.load(Ordering::Relaxed) & client as u8 != 0 {
                c.fetch_and(!(client as u8), Ordering::SeqCst);
            }
        }
    }

    fn tell_watched(&self, offset: u64, len: u64) {
        let Some(block) = self.0.block.upgrade() else { return };
        for l in self.0.listeners.read().iter().filter_map(Weak::upgrade) {
            l.pages_watched(&block, offset, len);
        }
    }

    fn each_page(&self, offset: u64, len: u64, mut f: impl FnMut(usize, u64, u64)) {
        let end = offset.saturating_add(len).min((self.0.class.len() as u64) << PAGE_SHIFT);
        let mut at = offset;
        while at < end {
            let within = at & (PAGE_SIZE - 1);
            let n = (PAGE_SIZE - within).min(end - at);
            f((at >> PAGE_SHIFT) as usize, within, n);
            at += n;
        }
    }
}

/// Bits of the granules that `len` bytes at `within` of a page touch; `len` is at least 1, and they end in the page.
pub fn granule_mask(within: u64, len: u64) -> u64 {
    let first = within >> GRANULE_SHIFT;
    let last = (within + len - 1) >> GRANULE_SHIFT;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// Zeroed atomics straight from the allocator, so that untouched ones take no host page.
fn zeroed_bytes(n: usize) -> Box<[AtomicU8]> {
    let raw = Box::into_raw(vec![0u8; n].into_boxed_slice());
    // SAFETY: AtomicU8 has the size, alignment and bit validity of u8, and we own the box.
    unsafe { Box::from_raw(raw as *mut [AtomicU8]) }
}

fn zeroed_words(n: usize) -> Box<[AtomicU64]> {
    let raw = Box::into_raw(vec![0u64; n].into_boxed_slice());
    // SAFETY: AtomicU64 has the size, alignment and bit validity of u64 on the 64-bit hosts we
    // build for, and we own the box.
    unsafe { Box::from_raw(raw as *mut [AtomicU64]) }
}

/// A part of a tracker, as vm-memory's slices carry it.
#[derive(Clone, Debug)]
pub struct TrackerSlice {
    tracker: RamTracker,
    base: u64,
}

impl WithBitmapSlice<'_> for RamTracker {
    type S = TrackerSlice;
}

impl Bitmap for RamTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.note_write(offset as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.is_dirty(DirtyClient::Migration, offset as u64)
    }

    fn slice_at(&self, offset: usize) -> TrackerSlice {
        TrackerSlice { tracker: self.clone(), base: offset as u64 }
    }
}

impl WithBitmapSlice<'_> for TrackerSlice {
    type S = TrackerSlice;
}

impl BitmapSlice for TrackerSlice {}

impl Bitmap for TrackerSlice {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.tracker.note_write(self.base.saturating_add(offset as u64), len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.tracker.dirty_at((self.base as usize).saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> TrackerSlice {
        TrackerSlice { tracker: self.tracker.clone(), base: self.base.saturating_add(offset as u64) }
    }
}
