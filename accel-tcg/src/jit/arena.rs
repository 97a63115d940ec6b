//! Memory for translated code: one memfd mapped twice, writable in one place and executable in another, so that no
//! page is ever both.
//!
//! The fixed code comes first and stays. What follows is a ring of chunks, of which one is being filled; when it is full,
//! the next one is, and what that one held must be gone by then. Each chunk has three parts that grow from their starts:
//! hot code, cold code, and the slots that jumps read their targets from. Slots are data: linking a block stores eight
//! bytes there and never touches code.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr;

/// Bytes of a chunk: an eighth of the arena, but not less than the first nor more than the second.
const CHUNK: [usize; 2] = [64 << 10, 512 << 10];
/// Bytes of the smallest arena: of fewer chunks than two, each would drive itself out.
pub(super) const SMALLEST: usize = 2 * CHUNK[0];
/// Bytes of the largest one: every place of it is within reach of every other.
pub(super) const LARGEST: usize = 1 << 30;
/// Bytes of the host's large pages.
const LARGE_PAGE: usize = 2 << 20;

/// A part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Hot,
    Cold,
    Slots,
}

/// The mappings and how far each chunk is filled.
pub(super) struct Arena {
    rw: *mut u8,
    rx: *const u8,
    size: usize,
    /// Bytes of fixed code, and where the first chunk begins.
    fixed: usize,
    first: usize,
    chunk: usize,
    /// Where the parts of a chunk begin and end.
    start: [usize; 4],
    /// The chunk that is being filled.
    current: usize,
    /// The one whose turn it was last; the present one may have been taken out of turn.
    turn: usize,
    /// Bytes filled of each chunk: hot, cold, slots.
    used: Vec<[usize; 3]>,
    /// How far the arena lies in large pages, or would if the host had any.
    large: usize,
}

// SAFETY: the mappings belong to the arena alone and are not tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps about `size` bytes for chunks behind the fixed code; fails where the host forbids executable memory.
    pub fn new(size: usize, fixed: &[u8]) -> std::io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(std::io::Error::other("the host is not an x86-64 processor"));
        }
        let size = size.clamp(SMALLEST, LARGEST);
        let chunk = 1 << (size / 8).clamp(CHUNK[0], CHUNK[1]).ilog2();
        let count = size / chunk;
        let first = fixed.len().next_multiple_of(0x1000);
        let size = first + count * chunk;
        let fd = rustix::fs::memfd_create("anura-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, size as u64)?;
        // Where code is only written, large pages would stay mapped for the sake of a few slots.
        let rw = map(&fd, size, ProtFlags::READ | ProtFlags::WRITE, 0x1000)?;
        let rx = match map(&fd, size, ProtFlags::READ | ProtFlags::EXEC, 0) {
            Ok(rx) => rx,
            Err(e) => {
                // SAFETY: `rw` was mapped above with this length and nobody knows it.
                unsafe { munmap(rw, size)? };
                return Err(e);
            }
        };
        // In proportion to what a kernel needs.
        let (hot, cold) = (chunk / 64 * 34 & !0xfff, chunk / 64 * 59 & !0xfff);
        let (rw, start) = (rw.cast::<u8>(), [0, hot, cold, chunk]);
        // SAFETY: the fixed code lies in the mapping, before the first chunk.
        unsafe { ptr::copy_nonoverlapping(fixed.as_ptr(), rw, fixed.len()) };
        let (rx, fixed) = (rx.cast(), fixed.len());
        let used = vec![[0; 3]; count];
        Ok(Arena { rw, rx, size, fixed, first, chunk, start, current: 0, turn: 0, used, large: 0 })
    }

    /// The fixed code.
    pub fn fixed(&self) -> &[u8] {
        // SAFETY: it lies at the start of the mapping and was written before anybody could ask.
        unsafe { std::slice::from_raw_parts(self.rx, self.fixed) }
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.used.len()
    }

    /// The number of the chunk that is being filled.
    pub fn current(&self) -> usize {
        self.current
    }

    /// The chunk that an offset is in; those of the fixed code are in none.
    pub fn chunk_at(&self, at: usize) -> Option<usize> {
        at.checked_sub(self.first).map(|n| n / self.chunk).filter(|n| *n < self.used.len())
    }

    /// The offsets of a chunk.
    pub fn range(&self, chunk: usize) -> Range<usize> {
        let start = self.first + chunk * self.chunk;
        start..start + self.chunk
    }

    /// Whether so many bytes of each part fit into a chunk that holds nothing.
    pub fn holds(&self, len: [usize; 3]) -> bool {
        (0..3).all(|n| self.start[n] + len[n] <= self.start[n + 1])
    }

    /// Whether they fit into what is left of the present one.
    pub fn fits(&self, len: [usize; 3]) -> bool {
        let used = self.used[self.current];
        self.holds([len[0] + used[0], len[1] + used[1], len[2] + used[2]])
    }

    /// The number of the chunk whose turn is next.
    pub fn next_chunk(&self) -> usize {
        let next = (self.turn + 1) % self.used.len();
        if next == self.current { (next + 1) % self.used.len() } else { next }
    }

    /// Goes on to another chunk. Nothing may lead there any more.
    pub fn go_to(&mut self, chunk: usize) {
        assert!(chunk != self.current && chunk < self.used.len());
        let full = self.range(self.current);
        let code = full.start..full.start + (self.start[2] & !0xfff);
        // SAFETY: the range lies in a shared mapping, of which DONTNEED only drops the page tables' references.
        let _ =
            unsafe { madvise(self.rw.add(code.start).cast::<c_void>(), code.len(), Advice::LinuxDontNeed) };
        if chunk == self.next_chunk() {
            self.turn = chunk;
        }
        self.current = chunk;
        let next = self.range(chunk);
        self.enlarge_pages(next.start);
        // All of it will be written soon. Hosts older than Linux 5.14 do it page by page.
        // SAFETY: the range lies in the mapping, whose content stays.
        let _ = unsafe {
            madvise(self.rw.add(next.start).cast::<c_void>(), next.len(), Advice::LinuxPopulateWrite)
        };
        if self.used[self.current] != [0; 3] {
            self.used[self.current] = [0; 3];
            serialise();
        }
    }

    /// Lets the bytes around an offset, where more code will come, lie in a large page: translated code is spread
    /// over more small ones than the host's TLB has entries for. An arena that stays small keeps to small ones.
    fn enlarge_pages(&mut self, at: usize) {
        let piece = at / LARGE_PAGE * LARGE_PAGE;
        if piece < self.large || piece + LARGE_PAGE > self.size {
            return;
        }
        self.large = piece + LARGE_PAGE;
        // The same pages under both mappings, so one will do. Hosts older than Linux 6.1 refuse, which is fine.
        // SAFETY: the range lies in the mapping, whose content stays.
        let _ =
            unsafe { libc::madvise(self.rx.add(piece).cast_mut().cast(), LARGE_PAGE, libc::MADV_COLLAPSE) };
    }

    /// Where the next bytes of a part will lie, as an offset.
    pub fn next(&self, part: Part) -> usize {
        let n = part as usize;
        self.range(self.current).start + self.start[n] + self.used[self.current][n]
    }

    /// Appends bytes to a part; they must fit.
    pub fn add(&mut self, part: Part, bytes: &[u8]) -> usize {
        let (at, n) = (self.next(part), part as usize);
        let (used, room) = (&mut self.used[self.current][n], self.start[n + 1] - self.start[n]);
        assert!(*used + bytes.len() <= room, "translated code does not fit");
        // SAFETY: the range was just checked to lie in the mapping; nothing behind `used` is executed.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.rw.add(at), bytes.len()) };
        *used = (*used + bytes.len()).next_multiple_of(16).min(room);
        at
    }

    /// Whether a slot's word may be there.
    fn is_slot(&self, at: usize) -> bool {
        let within = self.chunk_at(at).map(|n| at - self.range(n).start);
        at.is_multiple_of(8) && within.is_some_and(|w| w >= self.start[2])
    }

    /// Stores eight bytes into a slot.
    pub fn set_slot(&self, at: usize, value: u64) {
        debug_assert!(self.is_slot(at));
        // SAFETY: slots lie in the mapping, are aligned, and are read by jumps of this thread only.
        unsafe { self.rw.add(at).cast::<u64>().write_volatile(value) };
    }

    /// What a slot's word holds.
    pub fn slot(&self, at: usize) -> u64 {
        debug_assert!(self.is_slot(at));
        // SAFETY: as in `set_slot`.
        unsafe { self.rw.add(at).cast::<u64>().read_volatile() }
    }

    /// The executable address of an offset.
    pub fn address(&self, at: usize) -> u64 {
        self.rx as u64 + at as u64
    }

    /// Whether an address is one of translated code.
    pub fn is_code(&self, address: u64) -> bool {
        self.offset(address) < self.size
    }

    /// The address that offsets are added to for writing.
    pub fn writable(&self) -> u64 {
        self.rw as u64
    }

    /// The offset of an executable address.
    pub fn offset(&self, address: u64) -> usize {
        address.wrapping_sub(self.rx as u64) as usize
    }

    /// Forgets all but the fixed code; gives the memory back to the host.
    pub fn clear(&mut self) {
        (self.current, self.turn, self.large) = (0, 0, 0);
        self.used.fill([0; 3]);
        // SAFETY: the range lies in our mapping; its content is not needed any more.
        let _ = unsafe {
            madvise(self.rw.add(self.first).cast::<c_void>(), self.size - self.first, Advice::LinuxRemove)
        };
        serialise();
    }

    /// Bytes filled: hot, cold, slots.
    pub fn used(&self) -> [usize; 3] {
        self.used.iter().fold([0; 3], |all, u| std::array::from_fn(|n| all[n] + u[n]))
    }

    /// Bytes of all chunks together.
    pub fn size(&self) -> usize {
        self.size - self.first
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

/// Maps a file so many bytes behind what can be the beginning of a large page.
fn map(fd: &OwnedFd, size: usize, prot: ProtFlags, behind: usize) -> std::io::Result<*mut c_void> {
    let room = size + LARGE_PAGE + behind;
    // SAFETY: a fresh inaccessible mapping at an address of the kernel's choice disturbs nobody.
    let all = unsafe { mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE)? };
    let skip = (all as usize).next_multiple_of(LARGE_PAGE) - all as usize + behind;
    let at = all.wrapping_byte_add(skip);
    // SAFETY: the range lies inside of what was just mapped and nobody knows.
    let mapped = unsafe { mmap(at, size, prot, MapFlags::SHARED | MapFlags::FIXED, fd, 0) };
    let end = size.next_multiple_of(0x1000) + skip;
    // SAFETY: what is left at both ends, or all of it, has no user.
    unsafe {
        match &mapped {
            Ok(_) if skip == 0 => munmap(all.byte_add(end), room - end)?,
            Ok(_) => {
                munmap(all, skip)?;
                munmap(all.byte_add(end), room - end)?;
            }
            Err(_) => munmap(all, room)?,
        }
    }
    Ok(mapped?)
}

/// Code whose place is written through another mapping may have been fetched already (SDM vol. 3, 12.6); behind a
/// serialising instruction it has not.
fn serialise() {
    #[cfg(target_arch = "x86_64")]
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(size: usize) -> Option<Arena> {
        let made = Arena::new(size, &[0xc3; 100]);
        if let Err(e) = &made {
            println!("skipped: no memory for generated code: {e}");
        }
        made.ok()
    }

    #[test]
    fn small_and_large_arenas_have_chunks_of_a_sensible_size() {
        for (size, chunk, count) in [
            (1, 64 << 10, 2),
            (256 << 10, 64 << 10, 4),
            (1 << 20, 128 << 10, 8),
            (3 << 20, 256 << 10, 12),
            (32 << 20, 512 << 10, 64),
        ] {
            let Some(a) = arena(size) else { return };
            assert_eq!((a.range(0).len(), a.chunks()), (chunk, count), "{size}");
            assert_eq!(a.size(), chunk * count);
        }
    }

    #[test]
    fn chunks_are_filled_one_after_the_other_and_then_again() {
        let Some(mut a) = arena(256 << 10) else { return };
        let hot = a.next(Part::Hot);
        assert_eq!((a.chunk_at(hot), a.chunk_at(99), a.range(0).start), (Some(0), None, 0x1000));
        assert!(a.fits([0x8000, 0, 0]) && !a.holds([0x10000, 0, 0]));
        a.add(Part::Hot, &[0x90; 0x8000]);
        a.add(Part::Slots, &[1; 24]);
        assert_eq!(a.used(), [0x8000, 0, 32]);
        assert!(!a.fits([0x8000, 0, 0]));
        for n in [1, 2, 3, 0] {
            assert_eq!(a.next_chunk(), n);
            a.go_to(n);
            assert_eq!(a.current(), n);
        }
        // Out of turn, which changes nobody else's.
        a.go_to(2);
        assert_eq!((a.current(), a.next_chunk()), (2, 1));
        a.go_to(1);
        assert_eq!(a.next_chunk(), 2);
        a.go_to(0);
        a.go_to(2);
        a.go_to(0);
        assert_eq!((a.used(), a.next(Part::Hot)), ([0; 3], hot));
        a.add(Part::Cold, &[0x90; 1]);
        a.clear();
        assert_eq!((a.used(), a.current()), ([0; 3], 0));
    }

    #[test]
    fn what_was_never_written_is_no_address_of_code() {
        let Some(a) = arena(1 << 20) else { return };
        assert!(a.is_code(a.address(0)) && a.is_code(a.address(a.range(7).end - 1)));
        for other in [0, 1, u64::MAX, a.address(0) - 1, a.address(a.range(7).end), a.writable()] {
            assert!(!a.is_code(other), "{other:#x}");
        }
    }
}
