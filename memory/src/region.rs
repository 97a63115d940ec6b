//! Regions: the nodes of the tree that a board describes its memory and ports with.
//!
//! A region is a cheap handle. Its shape (name, size, kind) is fixed when it is made; what may change
//! (children, enabled, read-only, alias offset) changes only in a [`crate::Transaction`].

use std::sync::Arc;

use anura_vmcore::Width;
use parking_lot::Mutex;

use crate::access::{AccessRules, IoHandler};
use crate::ram::RamBlock;

/// Who answers for a region, until the machine is taken apart.
#[derive(Clone)]
pub struct Handler(Arc<Mutex<Option<Arc<dyn IoHandler>>>>);

impl Handler {
    fn new(handler: Arc<dyn IoHandler>) -> Self {
        Self(Arc::new(Mutex::new(Some(handler))))
    }

    pub(crate) fn get(&self) -> Option<Arc<dyn IoHandler>> {
        self.0.lock().clone()
    }

    pub(crate) fn take(&self) -> Option<Arc<dyn IoHandler>> {
        self.0.lock().take()
    }
}

/// What a region is.
#[derive(Clone)]
pub enum RegionKind {
    /// Nothing of its own, only children.
    Container,
    /// Read and written directly.
    Ram(Arc<RamBlock>),
    /// Read directly; writes are dropped.
    Rom(Arc<RamBlock>),
    /// Read directly while in ROM mode, written through the handler: a flash chip.
    RomDevice(Arc<RamBlock>, Handler),
    /// Registers.
    Io(Handler),
    /// A window to another region.
    Alias(Region),
}

/// A register that is only written, and whose writes say "look" and nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where in its region.
    pub offset: u64,
    /// The width of the writes that ring.
    pub width: Width,
    /// Only writes of this value ring; without one, every write does, and the handler must not look at its value.
    pub value: Option<u64>,
}

/// A child and where it sits.
#[derive(Clone)]
pub(crate) struct Child {
    pub(crate) region: Region,
    pub(crate) offset: u64,
    pub(crate) priority: i32,
}

pub(crate) struct Changeable {
    /// Highest priority first; among equals the newest first.
    pub(crate) children: Vec<Child>,
    pub(crate) enabled: bool,
    pub(crate) readonly: bool,
    pub(crate) rom_mode: bool,
    pub(crate) alias_offset: u64,
    /// Priority in the container it was last added to, for `info mtree`.
    pub(crate) priority: i32,
}

pub(crate) struct Node {
    pub(crate) name: String,
    /// Bytes; a container of all 64-bit addresses has 2^64.
    pub(crate) size: u128,
    pub(crate) kind: RegionKind,
    pub(crate) rules: AccessRules,
    pub(crate) doorbells: Vec<Doorbell>,
    pub(crate) state: Mutex<Changeable>,
}

/// A node of the tree. Clones are the same region.
#[derive(Clone)]
pub struct Region(pub(crate) Arc<Node>);

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("name", &self.0.name).field("size", &self.0.size).finish()
    }
}

impl PartialEq for Region {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Region {}

impl Region {
    fn new(
        name: impl Into<String>,
        size: u128,
        kind: RegionKind,
        rules: AccessRules,
        alias_offset: u64,
    ) -> Self {
        Self(Arc::new(Node {
            name: name.into(),
            size,
            kind,
            rules,
            doorbells: Vec::new(),
            state: Mutex::new(Changeable {
                children: Vec::new(),
                enabled: true,
                readonly: false,
                rom_mode: true,
                alias_offset,
                priority: 0,
            }),
        }))
    }

    /// A region with children only. A size of `u64::MAX` means all 2^64 addresses, here and in `alias`.
    pub fn container(name: impl Into<String>, size: u64) -> Self {
        Self::new(name, full(size), RegionKind::Container, AccessRules::default(), 0)
    }

    /// All of a block as RAM.
    pub fn ram(name: impl Into<String>, block: Arc<RamBlock>) -> Self {
        Self::new(name, block.len().into(), RegionKind::Ram(block), AccessRules::default(), 0)
    }

    /// All of a block as ROM.
    pub fn rom(name: impl Into<String>, block: Arc<RamBlock>) -> Self {
        Self::new(name, block.len().into(), RegionKind::Rom(block), AccessRules::default(), 0)
    }

    /// All of a block, read directly while in ROM mode; everything else goes to the handler.
    pub fn rom_device(name: impl Into<String>, block: Arc<RamBlock>, handler: Arc<dyn IoHandler>) -> Self {
        let size = block.len().into();
        Self::new(name, size, RegionKind::RomDevice(block, Handler::new(handler)), AccessRules::default(), 0)
    }

    /// Registers behind a handler.
    pub fn io(name: impl Into<String>, size: u64, handler: Arc<dyn IoHandler>, rules: AccessRules) -> Self {
        Self::new(name, size.into(), RegionKind::Io(Handler::new(handler)), rules, 0)
    }

    /// Registers of which some are doorbells: an engine may collect their writes and bring them to the handler a
    /// little later, as many as there were, on another thread, so that the guest is not held up.
    pub fn io_with_doorbells(
        name: impl Into<String>,
        size: u64,
        handler: Arc<dyn IoHandler>,
        rules: AccessRules,
        doorbells: &[Doorbell],
    ) -> Self {
        let region = Self::io(name, size, handler, rules);
        match Arc::try_unwrap(region.0) {
            Ok(node) => Self(Arc::new(Node { doorbells: doorbells.to_vec(), ..node })),
            // Nobody else has the new region.
            Err(node) => Self(node),
        }
    }

    /// The registers that are doorbells.
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.0.doorbells
    }

    /// A window of `size` bytes to `target` from `offset` on.
    pub fn alias(name: impl Into<String>, target: &Region, offset: u64, size: u64) -> Self {
        Self::new(name, full(size), RegionKind::Alias(target.clone()), AccessRules::default(), offset)
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Size in bytes; 2^64 shows as `u64::MAX`.
    pub fn size(&self) -> u64 {
        u64::try_from(self.0.size).unwrap_or(u64::MAX)
    }

    /// What the region is.
    pub fn kind(&self) -> &RegionKind {
        &self.0.kind
    }

    /// Whether the region is there at all.
    pub fn enabled(&self) -> bool {
        self.0.state.lock().enabled
    }

    /// Where in its target an alias starts.
    pub fn alias_offset(&self) -> u64 {
        self.0.state.lock().alias_offset
    }

    /// The block of a RAM, ROM or ROM-device region.
    pub fn block(&self) -> Option<&Arc<RamBlock>> {
        match &self.0.kind {
            RegionKind::Ram(b) | RegionKind::Rom(b) | RegionKind::RomDevice(b, _) => Some(b),
            _ => None,
        }
    }

    pub(crate) fn priority(&self) -> i32 {
        self.0.state.lock().priority
    }
}

fn full(size: u64) -> u128 {
    if size == u64::MAX { 1 << 64 } else { size.into() }
}
