//! Locked accesses: read, compute and write as one, whatever other processors do (vol. 3, 9.1).
//!
//! What lies in one line of the host's cache is exchanged by one instruction of the host, aligned or not. What crosses
//! a line takes turns with others that do: the host's own lock over two lines would stop the whole machine, and some
//! hosts forbid it.
use super::View;
use crate::env::{Cpu, Exec};
use anura_vmcore::Width;
use parking_lot::Mutex;

/// Held over accesses that cross lines or are no plain RAM.
static SPLIT: Mutex<()> = Mutex::new(());

/// Bytes of a line.
const LINE: usize = 64;

/// Stores `new` where `old` is, as one access; false if something else is there.
///
/// # Safety
/// `p` is valid for reads and writes of `len` bytes, which is 1, 2, 4 or 8.
#[inline]
pub(crate) unsafe fn exchange_at(p: *mut u8, len: u64, old: u64, new: u64) -> bool {
    let within = p as usize % LINE + len as usize <= LINE;
    // SAFETY: the caller's contract.
    unsafe { if within { exchange_in_line(p, len, old, new) } else { exchange_split(p, len, old, new) } }
}

/// # Safety
/// As for [`exchange_at`], and all bytes are in one line.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn exchange_in_line(p: *mut u8, len: u64, old: u64, new: u64) -> bool {
    let equal: u8;
    // SAFETY: the caller's contract; the host takes any address, and inside of a line needs no lock of the bus.
    unsafe {
        match len {
            1 => std::arch::asm!("lock cmpxchg byte ptr [{p}], {n}", "sete {e}", p = in(reg) p,
                n = in(reg_byte) new as u8, e = out(reg_byte) equal, inout("al") old as u8 => _, options(nostack)),
            2 => std::arch::asm!("lock cmpxchg word ptr [{p}], {n:x}", "sete {e}", p = in(reg) p,
                n = in(reg) new, e = out(reg_byte) equal, inout("ax") old as u16 => _, options(nostack)),
            4 => std::arch::asm!("lock cmpxchg dword ptr [{p}], {n:e}", "sete {e}", p = in(reg) p,
                n = in(reg) new, e = out(reg_byte) equal, inout("eax") old as u32 => _, options(nostack)),
            _ => std::arch::asm!("lock cmpxchg qword ptr [{p}], {n}", "sete {e}", p = in(reg) p,
                n = in(reg) new, e = out(reg_byte) equal, inout("rax") old => _, options(nostack)),
        }
    }
    equal != 0
}

/// # Safety
/// As for [`exchange_at`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn exchange_in_line(p: *mut u8, len: u64, old: u64, new: u64) -> bool {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};
    if !(p as usize).is_multiple_of(len as usize) {
        // SAFETY: the caller's contract.
        return unsafe { exchange_split(p, len, old, new) };
    }
    // SAFETY: the caller's contract, and the alignment was just checked.
    unsafe {
        match len {
            1 => AtomicU8::from_ptr(p).compare_exchange(old as u8, new as u8, SeqCst, SeqCst).is_ok(),
            2 => {
                AtomicU16::from_ptr(p.cast()).compare_exchange(old as u16, new as u16, SeqCst, SeqCst).is_ok()
            }
            4 => {
                AtomicU32::from_ptr(p.cast()).compare_exchange(old as u32, new as u32, SeqCst, SeqCst).is_ok()
            }
            _ => AtomicU64::from_ptr(p.cast()).compare_exchange(old, new, SeqCst, SeqCst).is_ok(),
        }
    }
}

/// # Safety
/// As for [`exchange_at`].
#[cold]
unsafe fn exchange_split(p: *mut u8, len: u64, old: u64, new: u64) -> bool {
    let _turn = SPLIT.lock();
    let len = len as usize;
    let (mut now, wanted) = ([0; 8], old.to_le_bytes());
    // SAFETY: the caller's contract; byte by byte, so that only those that change are written below.
    unsafe {
        for (i, b) in now[..len].iter_mut().enumerate() {
            *b = p.add(i).read_volatile();
        }
        if now[..len] != wanted[..len] {
            return false;
        }
        for (i, b) in new.to_le_bytes()[..len].iter().enumerate() {
            p.add(i).write_volatile(*b);
        }
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    true
}

/// The same for 16 bytes; gives what was there.
///
/// # Safety
/// `p` is valid for reads and writes of 16 bytes and aligned for them.
pub(crate) unsafe fn exchange_16(p: *mut u8, old: u128, new: u128) -> u128 {
    debug_assert_eq!(p as usize % 16, 0);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: the caller's contract, and the host has the instruction.
        return unsafe { exchange_wide(p, old, new) };
    }
    let _turn = SPLIT.lock();
    // SAFETY: the caller's contract.
    unsafe {
        let now = p.cast::<u128>().read_volatile();
        if now == old {
            p.cast::<u128>().write_volatile(new);
        }
        now
    }
}

/// # Safety
/// As for [`exchange_16`], and the host has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn exchange_wide(p: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller's contract. RBX is not ours to name, so it changes places with another register.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") p,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

impl Cpu {
    /// Reads, computes and writes 1, 2, 4 or 8 bytes as one locked access; gives what was there. Faults as a write
    /// does, before anything is changed. `f` may be called again if another processor came between.
    pub(crate) fn locked(
        &mut self,
        va: u64,
        len: u64,
        view: View,
        f: &mut dyn FnMut(&mut Cpu, u64) -> u64,
    ) -> Exec<u64> {
        if let Some(p) = self.rmw_ptr(va, len, view)? {
            loop {
                let mut old = [0; 8];
                for (i, b) in old[..len as usize].iter_mut().enumerate() {
                    // SAFETY: `rmw_ptr` gives the address of as many bytes. A reading that is torn is not exchanged.
                    *b = unsafe { p.add(i).read_volatile() };
                }
                let old = u64::from_le_bytes(old);
                let new = f(self, old);
                // SAFETY: as above.
                if unsafe { exchange_at(p, len, old, new) } {
                    return Ok(old);
                }
            }
        }
        let inside = va & 0xfff & (len - 1) == 0;
        if inside
            && view != View::Super
            && let Some(width) = Width::from_bytes(len as usize)
            && let Some((ram, offset)) = self.watched_ram(va)?
        {
            while let Some(old) = ram.load(offset, width) {
                let new = f(self, old);
                match ram.compare_exchange(offset, width, old, new) {
                    Some((_, true)) => return Ok(old),
                    Some((_, false)) => {}
                    None => break,
                }
            }
        }
        self.locked_slow(va, len, view, f)
    }

    /// Stores `new` where `expected` is, 8 or 16 bytes (these aligned), as one locked access; gives what was there.
    /// Faults as a write does.
    pub(crate) fn exchange_pair(
        &mut self,
        va: u64,
        len: usize,
        view: View,
        expected: u128,
        new: u128,
    ) -> Exec<u128> {
        if len == 8 {
            let f = &mut |_: &mut Cpu, old: u64| if u128::from(old) == expected { new as u64 } else { old };
            return self.locked(va, 8, view, f).map(u128::from);
        }
        if let Some(p) = self.rmw_ptr(va, 16, view)? {
            // SAFETY: `rmw_ptr` gives the address of as many bytes; the page is aligned, and so is `va`.
            return Ok(unsafe { exchange_16(p, expected, new) });
        }
        let _turn = SPLIT.lock();
        let mut old = [0; 16];
        self.load(va, &mut old, view)?;
        let old = u128::from_le_bytes(old);
        let stored = if old == expected { new } else { old };
        self.store(va, &stored.to_le_bytes(), view)?;
        Ok(old)
    }

    /// Devices, breakpoints, and what crosses pages.
    #[cold]
    fn locked_slow(
        &mut self,
        va: u64,
        len: u64,
        view: View,
        f: &mut dyn FnMut(&mut Cpu, u64) -> u64,
    ) -> Exec<u64> {
        self.probe_write(va, len as usize, view)?;
        let turn = SPLIT.lock();
        let mut buf = [0; 8];
        let buf = &mut buf[..len as usize];
        self.load(va, buf, view)?;
        let mut word = [0; 8];
        word[..buf.len()].copy_from_slice(buf);
        let old = u64::from_le_bytes(word);
        let new = f(self, old);
        let done = self.store(va, &new.to_le_bytes()[..len as usize], view);
        drop(turn);
        done.map(|()| old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{TestBed, enter_long_mode};

    #[test]
    fn an_exchange_takes_place_at_any_address_if_the_old_value_is_there() {
        #[repr(align(64))]
        struct Lines([u8; 192]);
        for len in [1u64, 2, 4, 8] {
            for at in 0..120 {
                let mut lines = Lines([0x11; 192]);
                let p = lines.0.as_mut_ptr();
                let mask = u64::MAX >> (64 - len * 8);
                let (old, new) = (0x1111_1111_1111_1111 & mask, 0x8877_6655_4433_2299 & mask);
                // SAFETY: inside of the lines.
                unsafe {
                    assert!(!exchange_at(p.add(at), len, old ^ 1, new));
                    assert!(exchange_at(p.add(at), len, old, new));
                }
                assert_eq!(lines.0[at..at + len as usize], new.to_le_bytes()[..len as usize]);
                assert!(lines.0[..at].iter().chain(&lines.0[at + len as usize..]).all(|b| *b == 0x11));
            }
        }
    }

    #[test]
    fn counters_that_several_processors_lock_lose_nothing() {
        let t = TestBed::new(4 << 20, "max");
        let mut next = 0x11000;
        for n in 0..3 {
            t.map_page(0x10000, &mut next, 0x40_0000 + n * 0x1000, (0x20_0000 + n * 0x1000) | 7);
        }
        // Aligned, crooked in a line, over a line, over a page, and on a page of code.
        let counters = [0x40_0100, 0x40_0203, 0x40_023d, 0x40_0ffd, 0x40_2008];
        t.ram.tracker().mark_code(0x20_2000, 8);
        std::thread::scope(|s| {
            for _ in 0..2 {
                let mut cpu = t.cpu();
                enter_long_mode(&mut cpu, 0x10000, 0);
                s.spawn(move || {
                    for _ in 0..5_000 {
                        for va in counters {
                            cpu.locked(va, 4, View::Data, &mut |_, v| v + 1).unwrap();
                        }
                    }
                });
            }
        });
        let mut cpu = t.cpu();
        enter_long_mode(&mut cpu, 0x10000, 0);
        for va in counters {
            assert_eq!(cpu.read_u32(va, View::Data), Ok(10_000), "{va:x}");
        }
    }

    #[test]
    fn sixteen_bytes_are_exchanged_together() {
        #[repr(align(16))]
        struct Pair([u64; 2]);
        let mut pair = Pair([1, 2]);
        let p = pair.0.as_mut_ptr().cast::<u8>();
        // SAFETY: aligned, and ours.
        unsafe {
            assert_eq!(exchange_16(p, 5, 6), 2 << 64 | 1);
            assert_eq!(exchange_16(p, 2 << 64 | 1, 4 << 64 | 3), 2 << 64 | 1);
        }
        assert_eq!(pair.0, [3, 4]);
    }

    #[test]
    fn two_walkers_and_a_writer_agree_on_accessed_and_dirty_bits() {
        let t = TestBed::new(4 << 20, "max");
        let mut next = 0x11000;
        for n in 0..64 {
            t.map_page(0x10000, &mut next, 0x40_0000 + n * 0x1000, (0x20_0000 + n * 0x1000) | 7);
        }
        let table = next - 0x1000;
        std::thread::scope(|s| {
            for _ in 0..2 {
                let mut cpu = t.cpu();
                enter_long_mode(&mut cpu, 0x10000, 0);
                s.spawn(move || {
                    for round in 0..2_000u64 {
                        let va = 0x40_0000 + round % 64 * 0x1000;
                        cpu.mmu.flush_page(va);
                        cpu.write_u8(va, 1, View::Data).unwrap();
                    }
                });
            }
            // A kernel that clears both bits, by exchange, and leaves the rest alone.
            for round in 0..20_000u64 {
                let at = table + round % 64 * 8;
                let old = t.get(at);
                assert_eq!(old & !0x60, (0x20_0000 + round % 64 * 0x1000) | 7);
                let _ = t.ram.compare_exchange(at, Width::W8, old, old & !0x60);
            }
        });
    }
}
