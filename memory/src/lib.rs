//! The memory tree of the machine: regions, address spaces, guest RAM, and who is told of changes.
//!
//! A board describes memory and ports alike as a tree of [`Region`]s: RAM, ROM, device registers,
//! containers and aliases, each with a priority among its siblings. A [`Transaction`] changes the
//! tree; its end renders each root into one immutable [`FlatView`] and publishes that in one step.
//! Readers never take a lock: they load the current view (or keep one and compare
//! [`AddressSpace::generation`]) and find the one range that answers an address.
//!
//! Rules kept here:
//! - Publishing never waits for a reader. A reader that still holds an old view keeps what that view
//!   maps alive: views own their RAM blocks and handlers by `Arc`, so a host mapping goes away when
//!   the last view, slice or handle of it does. That is the grace period; there is no other.
//! - Guest RAM is never a `&[u8]`. Every access is volatile or atomic, because another vCPU may write
//!   the same bytes at the same time.
//! - Every writer of guest RAM but an engine's own fast path goes through [`RamTracker`].
//! - What nothing answers reads as all ones and drops writes.

mod access;
mod backing;
mod cell;
mod copy;
mod dma;
mod flat;
mod map;
mod mtree;
mod ram;
mod region;
mod space;
mod tracker;

pub use access::{Access, AccessResult, AccessRules, Endian, IoHandler, SizeRange};
pub use backing::{Backing, BackingError};
pub use cell::{cell_io, cell_io_bulk};
pub use dma::{Dma, DmaError};
pub use flat::{FlatRange, FlatView, RangeKind};
pub use map::{MemoryMap, Transaction};
pub use ram::{HostSlice, PAGE_SIZE, RamBlock};
pub use region::{Doorbell, Handler, Region, RegionKind};
pub use space::{AddressSpace, MemoryListener, SpaceCache};
pub use tracker::{CodeListener, DirtyClient, RamTracker, TrackerSlice, granule_mask};

pub use anura_vmcore::{Requester, Width};

const _: () = assert!(cfg!(target_endian = "little"), "guest RAM is accessed as the host stores it");
