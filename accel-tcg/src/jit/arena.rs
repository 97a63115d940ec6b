//! Memory for translated code: one memfd mapped twice, writable in one place and executable in another, so that no
//! page is ever both.
//!
//! It has three parts that grow from their starts: hot code, cold code, and the slots that jumps read their targets
//! from. Slots are data: linking a block stores eight bytes there and never touches code.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::ptr;

/// Bytes of code after which the writable mapping lets go of them.
const WRITTEN: usize = 512 << 10;

/// A part of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Hot,
    Cold,
    Slots,
}

/// The mappings and how far each part is filled.
pub(super) struct Arena {
    rw: *mut u8,
    rx: *const u8,
    size: usize,
    start: [usize; 4],
    used: [usize; 3],
}

// SAFETY: the mappings belong to the arena alone and are not tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps `size` bytes (a multiple of 64 KiB); fails where the host forbids executable memory.
    pub fn new(size: usize) -> std::io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(std::io::Error::other("the host is not an x86-64 processor"));
        }
        let fd = rustix::fs::memfd_create("anura-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, size as u64)?;
        let map = |prot| {
            // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nobody.
            unsafe { mmap(ptr::null_mut(), size, prot, MapFlags::SHARED, &fd, 0) }
        };
        let rw = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let rx = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(rx) => rx,
            Err(e) => {
                // SAFETY: `rw` was mapped above with this length and nobody knows it.
                unsafe { munmap(rw, size)? };
                return Err(e.into());
            }
        };
        let (hot, cold) = (size / 64 * 36 & !0xfff, size / 64 * 56 & !0xfff);
        Ok(Arena { rw: rw.cast(), rx: rx.cast(), size, start: [0, hot, cold, size], used: [0; 3] })
    }

    /// Whether so many bytes fit into a part.
    pub fn fits(&self, part: Part, len: usize) -> bool {
        let n = part as usize;
        self.start[n] + self.used[n] + len <= self.start[n + 1]
    }

    /// Where the next bytes of a part will lie, as an offset.
    pub fn next(&self, part: Part) -> usize {
        self.start[part as usize] + self.used[part as usize]
    }

    /// Appends bytes to a part; they must fit.
    pub fn add(&mut self, part: Part, bytes: &[u8]) -> usize {
        let at = self.next(part);
        assert!(self.fits(part, bytes.len()), "translated code does not fit");
        // SAFETY: the range was just checked to lie in the mapping; nothing behind `used` is executed.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.rw.add(at), bytes.len()) };
        let align = if part == Part::Slots { 8 } else { 16 };
        let n = part as usize;
        let before = self.used[n];
        self.used[n] = (before + bytes.len()).next_multiple_of(align).min(self.start[n + 1] - self.start[n]);
        if part != Part::Slots && before / WRITTEN != self.used[n] / WRITTEN {
            self.unmap_written(self.start[n] + before / WRITTEN * WRITTEN);
        }
        at
    }

    /// The writable mapping of code that is complete gives its page tables back; what it shows stays as it is.
    #[cold]
    fn unmap_written(&self, at: usize) {
        use rustix::mm::{Advice, madvise};
        // SAFETY: the range lies in a shared mapping, of which DONTNEED only drops the pages' references.
        let _ = unsafe { madvise(self.rw.add(at).cast::<c_void>(), WRITTEN, Advice::LinuxDontNeed) };
    }

    /// Stores eight bytes into a slot.
    pub fn set_slot(&self, at: usize, value: u64) {
        debug_assert!(at >= self.start[2] && at + 8 <= self.size && at.is_multiple_of(8));
        // SAFETY: slots lie in the mapping, are aligned, and are read by jumps of this thread only.
        unsafe { self.rw.add(at).cast::<u64>().write_volatile(value) };
    }

    /// What a slot's word holds.
    pub fn slot(&self, at: usize) -> u64 {
        debug_assert!(at >= self.start[2] && at + 8 <= self.size && at.is_multiple_of(8));
        // SAFETY: as in `set_slot`.
        unsafe { self.rw.add(at).cast::<u64>().read_volatile() }
    }

    /// The executable address of an offset.
    pub fn address(&self, at: usize) -> u64 {
        self.rx as u64 + at as u64
    }

    /// The address that offsets are added to for writing.
    pub fn writable(&self) -> u64 {
        self.rw as u64
    }

    /// The offset of an executable address.
    pub fn offset(&self, address: u64) -> usize {
        (address - self.rx as u64) as usize
    }

    /// Forgets all but the first bytes of the hot part; gives the memory back to the host.
    pub fn clear(&mut self, keep_hot: usize) {
        self.used = [keep_hot, 0, 0];
        let from = keep_hot.next_multiple_of(0x1000);
        // SAFETY: the range lies in our mapping; its content is not needed any more.
        let _ = unsafe {
            rustix::mm::madvise(
                self.rw.add(from).cast::<c_void>(),
                self.size - from,
                rustix::mm::Advice::LinuxRemove,
            )
        };
    }

    /// Bytes filled: hot, cold, slots.
    pub fn used(&self) -> [usize; 3] {
        self.used
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for p in [self.rw.cast::<c_void>(), self.rx.cast_mut().cast()] {
            // SAFETY: both were mapped by `new` with this length; nothing runs in them any more.
            let _ = unsafe { munmap(p, self.size) };
        }
    }
}
