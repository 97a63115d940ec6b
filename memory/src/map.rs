//! Changing the tree: transactions, and what follows from one.
//!
//! All changes of all trees of a machine go through one [`MemoryMap`]. A transaction may be opened
//! inside another by the same thread (a board that plugs a device whose own code maps a BAR): the
//! views are rendered when the outermost ends. The map's lock is taken after any device's and no
//! listener may touch a device.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::flat::FlatView;
use crate::region::{Child, Region, RegionKind};
use crate::space::{AddressSpace, SpaceInner};

#[derive(Default)]
pub(crate) struct MapState {
    depth: Cell<usize>,
    changed: Cell<bool>,
    spaces: RefCell<Vec<Weak<SpaceInner>>>,
}

#[derive(Default)]
pub(crate) struct MapShared {
    pub(crate) lock: ReentrantMutex<MapState>,
}

/// All address spaces of a machine, and the one place where trees change. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryMap(Arc<MapShared>);

impl std::fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.spaces().iter().map(|s| s.name().to_owned())).finish()
    }
}

impl MemoryMap {
    /// A map without spaces.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to change trees. The end of the outermost transaction publishes the new views.
    pub fn transaction(&self) -> Transaction<'_> {
        let state = self.0.lock.lock();
        state.depth.set(state.depth.get() + 1);
        Transaction { state }
    }

    /// A view of the tree under `root`, kept up to date from now on. A root of exactly 64 KiB gets a
    /// direct lookup table, as ports want.
    pub fn create_space(&self, name: impl Into<String>, root: &Region) -> AddressSpace {
        let state = self.0.lock.lock();
        let space = AddressSpace::new(name.into(), root.clone(), self.0.clone());
        state.spaces.borrow_mut().push(Arc::downgrade(&space.inner));
        space
    }

    /// The end of the machine: all trees come apart, and nobody hears of it. Devices hold the spaces that they reach
    /// memory through and their own regions, and these hold the devices; so without this none of them would ever go.
    pub fn dismantle(&self) {
        // What is dropped may hold the last of a space, so it goes when the lock is free again.
        let mut gone: Vec<Child> = vec![];
        let mut heard = vec![];
        let mut handlers = vec![];
        let state = self.0.lock.lock();
        let spaces = live_spaces(&state);
        let mut roots: Vec<Region> = vec![];
        for space in &spaces {
            heard.extend(space.deafen());
            roots.push(space.root().clone());
        }
        while let Some(region) = roots.pop() {
            match region.kind() {
                RegionKind::Alias(target) => roots.push(target.clone()),
                RegionKind::Io(handler) | RegionKind::RomDevice(_, handler) => {
                    handlers.extend(handler.take())
                }
                RegionKind::Container | RegionKind::Ram(_) | RegionKind::Rom(_) => {}
            }
            let children = std::mem::take(&mut region.0.state.lock().children);
            roots.extend(children.iter().map(|c| c.region.clone()));
            gone.extend(children);
        }
        for space in &spaces {
            space.publish(FlatView::render(&space.inner.root));
        }
        drop(state);
        drop((spaces, heard, handlers, gone));
    }

    /// The spaces that are still in use, in the order they were made.
    pub fn spaces(&self) -> Vec<AddressSpace> {
        live_spaces(&self.0.lock.lock())
    }
}

fn live_spaces(state: &MapState) -> Vec<AddressSpace> {
    let mut spaces = state.spaces.borrow_mut();
    spaces.retain(|s| s.strong_count() > 0);
    spaces.iter().filter_map(Weak::upgrade).map(|inner| AddressSpace { inner }).collect()
}

/// Changes to trees, published together when it ends.
pub struct Transaction<'a> {
    state: ReentrantMutexGuard<'a, MapState>,
}

impl Transaction<'_> {
    /// Puts `child` into `container` at `offset`. Where siblings overlap the higher priority answers,
    /// and among equals the one added last. A child that is already there moves.
    pub fn add(&mut self, container: &Region, offset: u64, child: &Region, priority: i32) {
        debug_assert!(!matches!(container.kind(), RegionKind::Alias(_)), "an alias has no children");
        child.0.state.lock().priority = priority;
        let mut state = container.0.state.lock();
        state.children.retain(|c| c.region != *child);
        let at = state.children.partition_point(|c| c.priority > priority);
        state.children.insert(at, Child { region: child.clone(), offset, priority });
        self.state.changed.set(true);
    }

    /// Takes `child` out of `container`, if it is there.
    pub fn remove(&mut self, container: &Region, child: &Region) {
        container.0.state.lock().children.retain(|c| c.region != *child);
        self.state.changed.set(true);
    }

    /// Shows or hides a region with everything in it.
    pub fn set_enabled(&mut self, region: &Region, enabled: bool) {
        let mut state = region.0.state.lock();
        self.note(std::mem::replace(&mut state.enabled, enabled) != enabled);
    }

    /// Makes everything seen through this region read-only, or not.
    pub fn set_readonly(&mut self, region: &Region, readonly: bool) {
        let mut state = region.0.state.lock();
        self.note(std::mem::replace(&mut state.readonly, readonly) != readonly);
    }

    /// Whether a ROM device answers reads from its block (the default) or all accesses by its handler.
    pub fn set_rom_mode(&mut self, region: &Region, rom_mode: bool) {
        let mut state = region.0.state.lock();
        self.note(std::mem::replace(&mut state.rom_mode, rom_mode) != rom_mode);
    }

    /// Moves `child` within `container`.
    pub fn set_offset(&mut self, container: &Region, child: &Region, offset: u64) {
        let mut state = container.0.state.lock();
        if let Some(c) = state.children.iter_mut().find(|c| c.region == *child) {
            self.note(std::mem::replace(&mut c.offset, offset) != offset);
        }
    }

    /// Moves the window of an alias over its target.
    pub fn set_alias_offset(&mut self, alias: &Region, offset: u64) {
        let mut state = alias.0.state.lock();
        self.note(std::mem::replace(&mut state.alias_offset, offset) != offset);
    }

    /// Ends the transaction, as dropping it does.
    pub fn commit(self) {}

    fn note(&self, changed: bool) {
        self.state.changed.set(self.state.changed.get() | changed);
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // The outermost transaction publishes; a listener that changes the tree again gets another
        // round rather than a nested one.
        if self.state.depth.get() == 1 && !std::thread::panicking() {
            while self.state.changed.replace(false) {
                for space in live_spaces(&self.state) {
                    space.publish(FlatView::render(&space.inner.root));
                }
            }
        }
        self.state.depth.set(self.state.depth.get() - 1);
    }
}
