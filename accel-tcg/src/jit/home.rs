//! One processor's memory: its stack for translated code, its state right above, and the cache of indirect jumps.
//!
//! Translated code runs with the host's stack pointer at the environment, so that its fields are reached by short
//! displacements and calls push below it.

use crate::env::Cpu;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::{self, NonNull};

/// A large page of the host, which all that is in use here fits into.
const LARGE_PAGE: usize = 2 << 20;
/// So many that what follows begins a large page; the guard itself takes no memory.
const GUARD: usize = LARGE_PAGE;
const STACK: usize = 256 << 10;

/// Entries of the indirect-jump cache.
pub(super) const JUMPS: usize = 1 << 14;

/// From a linear address to translated code.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Jump {
    pub rip: u64,
    /// Epoch and mode key.
    pub tag: u64,
    /// Host address.
    pub code: u64,
    /// The block's number, and above it the host's page that its bytes are in, 0 if they are in two.
    place: u64,
}

const _: () = assert!(size_of::<Jump>() == 32);
/// Bits of a block's number.
const NUMBER: u32 = 28;

impl Jump {
    /// To a block whose bytes are at `host`; `None` if they are in two pages.
    pub fn new(rip: u64, tag: u64, code: u64, id: u32, host: Option<usize>) -> Jump {
        let page = host.map_or(0, |h| h as u64 >> 12);
        Jump { rip, tag, code, place: page << NUMBER | u64::from(id) }
    }

    /// The block's number.
    pub fn id(&self) -> u32 {
        (self.place & ((1 << NUMBER) - 1)) as u32
    }

    /// Whether the block's bytes are in this page of the host and no other.
    pub fn is_in(&self, page: *const u8) -> bool {
        !page.is_null() && page as u64 >> 12 == self.place >> NUMBER
    }

    /// Makes it lead nowhere.
    pub fn forget(&mut self) {
        (self.tag, self.place) = (0, 0);
    }
}

#[repr(C, align(0x20_0000))]
struct Layouted {
    guard: [u8; GUARD],
    stack: [u8; STACK],
    cpu: Cpu,
    jumps: [Jump; JUMPS],
    /// What was driven out of `jumps`.
    victims: [Jump; JUMPS],
}

/// Displacement of the jump cache from the environment.
pub(super) const JUMPS_AT: i32 = (offset_of!(Layouted, jumps) - offset_of!(Layouted, cpu)) as i32;

const _: () = assert!(offset_of!(Cpu, env) == 0 && offset_of!(Layouted, cpu) == GUARD + STACK);
const _: () = assert!(size_of::<Layouted>() == GUARD + LARGE_PAGE && align_of::<Layouted>() == LARGE_PAGE);

/// What is mapped, in which the place is somewhere.
const MAPPED: usize = size_of::<Layouted>() + LARGE_PAGE;

/// A processor in its place.
pub(crate) struct Home {
    at: NonNull<Layouted>,
    /// The whole mapping.
    mapped: *mut c_void,
}

// SAFETY: it owns its memory like a box does; what it holds is `Send`.
unsafe impl Send for Home {}

impl Home {
    /// Moves a processor in.
    pub fn new(cpu: Cpu) -> Home {
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nobody.
        let mapped =
            unsafe { mmap_anonymous(ptr::null_mut(), MAPPED, ProtFlags::empty(), MapFlags::PRIVATE) };
        let Ok(mapped) = mapped else { handle_alloc_error(Layout::new::<Layouted>()) };
        let at = mapped.map_addr(|a| a.next_multiple_of(LARGE_PAGE)).cast::<Layouted>();
        let used = at.wrapping_byte_add(GUARD).cast::<c_void>();
        // SAFETY: the range lies inside of the mapping, and nobody refers to it yet. The advice is a wish.
        let opened = unsafe {
            let _ = madvise(used, LARGE_PAGE, Advice::LinuxHugepage);
            mprotect(used, LARGE_PAGE, MprotectFlags::READ | MprotectFlags::WRITE)
        };
        let (Ok(()), Some(at)) = (opened, NonNull::new(at)) else {
            handle_alloc_error(Layout::new::<Layouted>())
        };
        // SAFETY: the memory is ours and large enough; the other fields are plain numbers, for which zeros do.
        unsafe { (&raw mut (*at.as_ptr()).cpu).write(cpu) };
        Home { at, mapped }
    }

    /// Its address, which is also that of its environment.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub fn pointer(&mut self) -> *mut Cpu {
        // SAFETY: as in `deref`.
        unsafe { &raw mut (*self.at.as_ptr()).cpu }
    }

    /// The jump cache, and what was driven out of it.
    #[inline(always)]
    fn jumps(&mut self) -> (&mut [Jump; JUMPS], &mut [Jump; JUMPS]) {
        // SAFETY: initialised by `new`; two fields.
        unsafe { (&mut (*self.at.as_ptr()).jumps, &mut (*self.at.as_ptr()).victims) }
    }

    /// What is known of RIP. The tag may be an old one.
    #[inline]
    pub fn jump(&mut self, rip: u64) -> Option<Jump> {
        let (jumps, victims) = self.jumps();
        let known = jumps[Self::jump_index(rip)];
        if known.rip == rip && known.tag != 0 {
            return Some(known);
        }
        let victim = &mut victims[Self::victim_index(rip)];
        let known = *victim;
        if known.rip != rip || known.tag == 0 {
            return None;
        }
        victim.forget();
        self.set_jump(known);
        Some(known)
    }

    /// Makes a jump known.
    #[inline]
    pub fn set_jump(&mut self, jump: Jump) {
        let (jumps, victims) = self.jumps();
        let old = std::mem::replace(&mut jumps[Self::jump_index(jump.rip)], jump);
        if old.rip != jump.rip && old.tag != 0 {
            victims[Self::victim_index(old.rip)] = old;
        }
    }

    /// Forgets the jump that leads to this code.
    pub fn forget_jump(&mut self, rip: u64, code: u64) {
        let (jumps, victims) = self.jumps();
        for j in [&mut jumps[Self::jump_index(rip)], &mut victims[Self::victim_index(rip)]] {
            if j.code == code {
                j.forget();
            }
        }
    }

    /// Empties the jump cache.
    pub fn forget_jumps(&mut self) {
        // No tag is zero, since epochs are counted from one.
        let nothing = Jump { rip: 0, tag: 0, code: 0, place: 0 };
        let (jumps, victims) = self.jumps();
        jumps.fill(nothing);
        victims.fill(nothing);
    }

    /// Where a RIP's entry is.
    #[inline(always)]
    fn jump_index(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize & (JUMPS - 1)
    }

    /// Where it goes when it is driven out: elsewhere for most of those that share an entry.
    #[inline(always)]
    fn victim_index(rip: u64) -> usize {
        (rip.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (JUMPS - 1)
    }
}

impl std::ops::Deref for Home {
    type Target = Cpu;
    #[inline(always)]
    fn deref(&self) -> &Cpu {
        // SAFETY: it was written by `new` and lives as long as we do.
        unsafe { &(*self.at.as_ptr()).cpu }
    }
}

impl std::ops::DerefMut for Home {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: as in `deref`.
        unsafe { &mut (*self.at.as_ptr()).cpu }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: `cpu` was written by `new` and is dropped once; nobody refers to the mapping any more.
        unsafe {
            ptr::drop_in_place(&raw mut (*self.at.as_ptr()).cpu);
            let _ = munmap(self.mapped, MAPPED);
        }
    }
}
