//! RAM blocks: named pieces of guest memory that never move.
//!
//! A block is host memory, its tracker, and helpers that read and write by offset, volatile or
//! atomic. The names are QEMU's (`pc.ram`, `pc.bios`, `vga.vram` …), since saved machines and users
//! know them. Offsets come from guests, so every helper checks its bounds and says no by `None` or
//! `false`; nothing here panics on an offset.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use anura_vmcore::Width;
use vm_memory::VolatileSlice;

use crate::backing::{Backing, BackingError, Mapping};
use crate::copy;
use crate::tracker::{RamTracker, TrackerSlice};
use vm_memory::bitmap::Bitmap;

pub(crate) const PAGE_SHIFT: u32 = 12;
/// Bytes of a guest page, the unit of the dirty log.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A named piece of guest RAM or ROM.
#[derive(Debug)]
pub struct RamBlock {
    name: String,
    len: u64,
    mapping: Mapping,
    tracker: RamTracker,
}

impl RamBlock {
    /// A block of private anonymous memory, zeroed. `len` is rounded up to whole pages.
    pub fn new(name: impl Into<String>, len: u64) -> Result<Arc<Self>, BackingError> {
        let len = len.max(1).checked_next_multiple_of(PAGE_SIZE).unwrap_or(len);
        Self::with_backing(name, len, &Backing::default())
    }

    /// A block on a backing of choice.
    pub fn with_backing(
        name: impl Into<String>,
        len: u64,
        backing: &Backing,
    ) -> Result<Arc<Self>, BackingError> {
        let name = name.into();
        let mapping = Mapping::new(&name, len, backing)?;
        Ok(Arc::new_cyclic(|weak| Self { name, len, mapping, tracker: RamTracker::new(weak.clone(), len) }))
    }

    /// The block's name, for example `pc.ram`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes, a multiple of the page size.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a block has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Page size of the backing: 4096, or that of the hugetlbfs it lies on.
    pub fn page_size(&self) -> u64 {
        self.mapping.page()
    }

    /// Start of the block in this process. Valid for `len()` bytes while the block lives; guests and
    /// devices write there at any time, so accesses must be volatile or atomic.
    pub fn host_ptr(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// The descriptor behind a memfd or file backing, to share it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.fd()
    }

    /// Who must hear of writes.
    pub fn tracker(&self) -> &RamTracker {
        &self.tracker
    }

    /// Offset in the block of an address of this process.
    pub fn offset_of(&self, host: *const u8) -> Option<u64> {
        let offset = (host as usize).checked_sub(self.host_ptr().as_ptr() as usize)? as u64;
        (offset < self.len).then_some(offset)
    }

    /// Whether `len` bytes at `offset` are inside.
    #[inline]
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        len <= self.len && offset <= self.len - len
    }

    /// The address of `len` bytes at `offset`.
    #[inline]
    fn at(&self, offset: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: bounds were just checked, so the result is inside the mapping.
        self.contains(offset, len).then(|| unsafe { self.host_ptr().as_ptr().add(offset as usize) })
    }

    /// Copies bytes out; false (and nothing copied) if they are not all inside.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(p) = self.at(offset, buf.len() as u64) else { return false };
        // SAFETY: `at` checked that `buf.len()` bytes are inside the mapping, which lives as long as we.
        unsafe { copy::from_guest(p, buf) };
        true
    }

    /// Copies bytes in and tells the tracker; false (and nothing copied) if they are not all inside.
    pub fn write(&self, offset: u64, buf: &[u8]) -> bool {
        let Some(p) = self.at(offset, buf.len() as u64) else { return false };
        // SAFETY: as in `read`; concurrent writers are guests, and the copy is volatile.
        unsafe { copy::to_guest(p, buf) };
        self.tracker.note_write(offset, buf.len() as u64);
        true
    }

    /// Sets `len` bytes to `value` and tells the tracker.
    pub fn fill(&self, offset: u64, len: u64, value: u8) -> bool {
        if !self.contains(offset, len) {
            return false;
        }
        let chunk = [value; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(chunk.len() as u64);
            self.write(offset + done, &chunk[..n as usize]);
            done += n;
        }
        true
    }

    /// Reads a little-endian number: in one piece where aligned, by bytes elsewhere.
    #[inline]
    pub fn load(&self, offset: u64, width: Width) -> Option<u64> {
        let p = self.at(offset, width.bytes() as u64)?;
        if !(p as usize).is_multiple_of(width.bytes()) {
            let mut raw = [0; 8];
            // SAFETY: `at` checked the bounds.
            unsafe { copy::from_guest(p, &mut raw[..width.bytes()]) };
            return Some(u64::from_le_bytes(raw));
        }
        // SAFETY: in bounds and aligned; guest RAM is only ever accessed volatile or atomic, and the
        // mapping lives as long as `self`. Relaxed: ordering is the caller's, the host is x86 or fences.
        Some(unsafe {
            match width {
                Width::W1 => AtomicU8::from_ptr(p).load(Ordering::Relaxed).into(),
                Width::W2 => AtomicU16::from_ptr(p.cast()).load(Ordering::Relaxed).into(),
                Width::W4 => AtomicU32::from_ptr(p.cast()).load(Ordering::Relaxed).into(),
                Width::W8 => AtomicU64::from_ptr(p.cast()).load(Ordering::Relaxed),
            }
        })
    }

    /// Writes a little-endian number as [`Self::load`] reads it, and tells the tracker.
    #[inline]
    pub fn store(&self, offset: u64, width: Width, value: u64) -> bool {
        let Some(p) = self.at(offset, width.bytes() as u64) else { return false };
        if (p as usize).is_multiple_of(width.bytes()) {
            // SAFETY: as in `load`.
            unsafe {
                match width {
                    Width::W1 => AtomicU8::from_ptr(p).store(value as u8, Ordering::Relaxed),
                    Width::W2 => AtomicU16::from_ptr(p.cast()).store(value as u16, Ordering::Relaxed),
                    Width::W4 => AtomicU32::from_ptr(p.cast()).store(value as u32, Ordering::Relaxed),
                    Width::W8 => AtomicU64::from_ptr(p.cast()).store(value, Ordering::Relaxed),
                }
            }
        } else {
            // SAFETY: `at` checked the bounds.
            unsafe { copy::to_guest(p, &value.to_le_bytes()[..width.bytes()]) };
        }
        self.tracker.note_write(offset, width.bytes() as u64);
        true
    }

    /// Compare and exchange of an aligned number, sequentially consistent; `None` if it is not inside
    /// or not aligned, else the old value and whether it was exchanged.
    pub fn compare_exchange(&self, offset: u64, width: Width, old: u64, new: u64) -> Option<(u64, bool)> {
        let p = self.at(offset, width.bytes() as u64)?;
        if !(p as usize).is_multiple_of(width.bytes()) {
            return None;
        }
        const SC: Ordering = Ordering::SeqCst;
        let split = |r: Result<u64, u64>| (r.unwrap_or_else(|v| v), r.is_ok());
        // SAFETY: in bounds and aligned, see `load`.
        let result = split(unsafe {
            match width {
                Width::W1 => {
                    let a = AtomicU8::from_ptr(p);
                    a.compare_exchange(old as u8, new as u8, SC, SC).map(u64::from).map_err(u64::from)
                }
                Width::W2 => {
                    let a = AtomicU16::from_ptr(p.cast());
                    a.compare_exchange(old as u16, new as u16, SC, SC).map(u64::from).map_err(u64::from)
                }
                Width::W4 => {
                    let a = AtomicU32::from_ptr(p.cast());
                    a.compare_exchange(old as u32, new as u32, SC, SC).map(u64::from).map_err(u64::from)
                }
                Width::W8 => AtomicU64::from_ptr(p.cast()).compare_exchange(old, new, SC, SC),
            }
        });
        self.tracker.note_write(offset, width.bytes() as u64);
        Some(result)
    }

    /// The bytes as vm-memory's slice, whose writes reach the tracker.
    pub fn volatile_slice(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_, TrackerSlice>> {
        let p = self.at(offset, len)?;
        let bitmap = self.tracker.slice_at(offset as usize);
        // SAFETY: in bounds of a mapping that outlives the borrow of `self`.
        Some(unsafe { VolatileSlice::with_bitmap(p, len as usize, bitmap, None) })
    }

    /// Gives whole pages back to the host; they read as zeros afterwards. For resets and balloons.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.contains(offset, len) || !offset.is_multiple_of(self.page_size()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.mapping.discard(offset as usize, len as usize)?;
        self.tracker.note_write(offset, len);
        Ok(())
    }
}

/// Guest RAM or ROM at a guest address: a piece of one block, kept alive by this handle.
#[derive(Clone, Debug)]
pub struct HostSlice {
    block: Arc<RamBlock>,
    offset: u64,
    len: u64,
    writable: bool,
}

impl HostSlice {
    /// A piece of `block`; `None` if it is not all inside.
    pub fn new(block: &Arc<RamBlock>, offset: u64, len: u64, writable: bool) -> Option<Self> {
        block.contains(offset, len).then(|| Self { block: block.clone(), offset, len, writable })
    }

    /// The block.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Where in the block the slice starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the slice has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// False for ROM: writes there are dropped.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Host address, valid for `len()` bytes while the slice lives. Volatile or atomic accesses only;
    /// after a write, tell `block().tracker()`.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the slice was checked to lie in the block when it was made.
        unsafe { self.block.host_ptr().as_ptr().add(self.offset as usize) }
    }

    fn inside(&self, at: u64, len: u64) -> bool {
        len <= self.len && at <= self.len - len
    }

    /// Copies bytes out; false if they are not all inside the slice.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        self.inside(at, buf.len() as u64) && self.block.read(self.offset + at, buf)
    }

    /// Copies bytes in (ROM drops them); false if they are not all inside the slice.
    pub fn write(&self, at: u64, buf: &[u8]) -> bool {
        self.inside(at, buf.len() as u64) && (!self.writable || self.block.write(self.offset + at, buf))
    }
}
