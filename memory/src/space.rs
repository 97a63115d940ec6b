//! Address spaces: a root with its current flat view, published without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anura_vmcore::{Requester, Width, trace_event};
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::access::AccessResult;
use crate::flat::{FlatRange, FlatView};
use crate::map::MapShared;
use crate::ram::HostSlice;
use crate::region::Region;

/// Hears what changed when a new view is published: all removals first, then additions and what
/// stayed, by address. Called with the map's lock held; it must not lock a device.
pub trait MemoryListener: Send + Sync {
    /// Changes follow.
    fn begin(&self) {}
    /// A range is gone. A range that changed in any way is removed and added.
    fn removed(&self, range: &FlatRange);
    /// A range is there.
    fn added(&self, range: &FlatRange);
    /// A range stays as it was.
    fn unchanged(&self, range: &FlatRange) {
        let _ = range;
    }
    /// All changes were told; `view` is what readers see now.
    fn commit(&self, view: &Arc<FlatView>) {
        let _ = view;
    }
}

pub(crate) struct SpaceInner {
    name: String,
    pub(crate) root: Region,
    view: ArcSwap<FlatView>,
    generation: AtomicU64,
    listeners: Mutex<Vec<Arc<dyn MemoryListener>>>,
    map: Arc<MapShared>,
}

/// An address space. Clones are the same space.
#[derive(Clone)]
pub struct AddressSpace {
    pub(crate) inner: Arc<SpaceInner>,
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressSpace").field("name", &self.inner.name).finish()
    }
}

impl AddressSpace {
    pub(crate) fn new(name: String, root: Region, map: Arc<MapShared>) -> Self {
        let view = ArcSwap::from_pointee(FlatView::render(&root));
        let generation = AtomicU64::new(1);
        let listeners = Mutex::new(Vec::new());
        Self { inner: Arc::new(SpaceInner { name, root, view, generation, listeners, map }) }
    }

    /// The space's name, for example `memory` or `I/O`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The region at the top.
    pub fn root(&self) -> &Region {
        &self.inner.root
    }

    /// Whether two handles are of the same space.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The current view. It stays as it is, and keeps alive what it shows, while the caller holds it.
    pub fn view(&self) -> Arc<FlatView> {
        self.inner.view.load_full()
    }

    /// Changes with every new view, just after it was published. Load this first and the view second.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// A handle for one thread that keeps the view and looks only whether it changed: the fastest way
    /// for an engine to make many accesses.
    pub fn cache(&self) -> SpaceCache {
        SpaceCache { generation: self.generation(), view: self.view(), space: self.clone() }
    }

    /// Reads RAM, ROM or a register.
    #[inline]
    pub fn read(&self, gpa: u64, width: Width, from: Requester) -> (u64, AccessResult) {
        self.inner.view.load().read(gpa, width, from)
    }

    /// Writes RAM or a register.
    #[inline]
    pub fn write(&self, gpa: u64, width: Width, value: u64, from: Requester) -> AccessResult {
        self.inner.view.load().write(gpa, width, value, from)
    }

    /// Reads any number of bytes, over any borders; what is missing is all ones.
    pub fn read_bytes(&self, gpa: u64, buf: &mut [u8], from: Requester) -> AccessResult {
        self.inner.view.load().read_bytes(gpa, buf, from)
    }

    /// Writes any number of bytes, over any borders.
    pub fn write_bytes(&self, gpa: u64, buf: &[u8], from: Requester) -> AccessResult {
        self.inner.view.load().write_bytes(gpa, buf, from)
    }

    /// Reads `buf` from one register by accesses of `width`, as `rep ins` does.
    pub fn read_bulk(&self, gpa: u64, width: Width, buf: &mut [u8], from: Requester) -> AccessResult {
        self.inner.view.load().read_bulk(gpa, width, buf, from)
    }

    /// Writes `buf` to one register by accesses of `width`, as `rep outs` does.
    pub fn write_bulk(&self, gpa: u64, width: Width, buf: &[u8], from: Requester) -> AccessResult {
        self.inner.view.load().write_bulk(gpa, width, buf, from)
    }

    /// The RAM or ROM behind `len` bytes at `gpa`; `None` where it is not all of one range, or not RAM.
    pub fn ram(&self, gpa: u64, len: u64) -> Option<HostSlice> {
        self.inner.view.load().ram(gpa, len)
    }

    /// Adds a listener and tells it what is there already.
    pub fn subscribe(&self, listener: Arc<dyn MemoryListener>) {
        let _map = self.inner.map.lock.lock();
        let view = self.view();
        listener.begin();
        for range in view.ranges() {
            listener.added(range);
        }
        listener.commit(&view);
        self.inner.listeners.lock().push(listener);
    }

    /// Takes a listener off; it hears nothing more.
    pub fn unsubscribe(&self, listener: &Arc<dyn MemoryListener>) {
        let _map = self.inner.map.lock.lock();
        self.inner.listeners.lock().retain(|l| !Arc::ptr_eq(l, listener));
    }

    /// Takes all listeners off.
    pub(crate) fn deafen(&self) -> Vec<Arc<dyn MemoryListener>> {
        std::mem::take(&mut self.inner.listeners.lock())
    }

    /// Makes `new` the current view if it differs, and tells the listeners. The map's lock is held.
    pub(crate) fn publish(&self, new: FlatView) {
        let old = self.view();
        if old.ranges() == new.ranges() {
            return;
        }
        trace_event!(flatview_new, "space {} ranges {}", self.name(), new.ranges().len());
        let new = Arc::new(new);
        let listeners = self.inner.listeners.lock().clone();
        let (removed, added) = differences(old.ranges(), new.ranges());
        for l in &listeners {
            l.begin();
            removed.iter().for_each(|r| l.removed(r));
        }
        self.inner.view.store(new.clone());
        self.inner.generation.fetch_add(1, Ordering::Release);
        for l in &listeners {
            for (range, is_new) in &added {
                if *is_new { l.added(range) } else { l.unchanged(range) }
            }
            l.commit(&new);
        }
    }
}

/// What of `old` is gone, and for each of `new` whether it is new. Both are sorted by address.
#[allow(clippy::type_complexity)]
fn differences<'a>(
    old: &'a [FlatRange],
    new: &'a [FlatRange],
) -> (Vec<&'a FlatRange>, Vec<(&'a FlatRange, bool)>) {
    let has = |list: &[FlatRange], r: &FlatRange| {
        list.binary_search_by_key(&r.start, |x| x.start).is_ok_and(|i| list[i] == *r)
    };
    let removed = old.iter().filter(|r| !has(new, r)).collect();
    let added = new.iter().map(|r| (r, !has(old, r))).collect();
    (removed, added)
}

/// One thread's shortcut to a space: see [`AddressSpace::cache`]. It keeps its view alive until the
/// next access or [`SpaceCache::refresh`].
#[derive(Clone, Debug)]
pub struct SpaceCache {
    space: AddressSpace,
    view: Arc<FlatView>,
    generation: u64,
}

impl SpaceCache {
    /// The space.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Takes the newest view; true if it changed since the last look.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let now = self.space.generation();
        if now == self.generation {
            return false;
        }
        self.view = self.space.view();
        self.generation = now;
        true
    }

    /// The newest view.
    #[inline]
    pub fn view(&mut self) -> &Arc<FlatView> {
        self.refresh();
        &self.view
    }

    /// The view as of the last look, old or not.
    #[inline]
    pub fn held(&self) -> &Arc<FlatView> {
        &self.view
    }

    /// The generation of the view that is held.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Reads RAM, ROM or a register.
    #[inline]
    pub fn read(&mut self, gpa: u64, width: Width, from: Requester) -> (u64, AccessResult) {
        self.view().read(gpa, width, from)
    }

    /// Writes RAM or a register.
    #[inline]
    pub fn write(&mut self, gpa: u64, width: Width, value: u64, from: Requester) -> AccessResult {
        self.view().write(gpa, width, value, from)
    }
}
