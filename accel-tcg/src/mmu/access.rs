//! Loads and stores of the processor: the fast path by the TLB, and the slow one that knows everything.
use super::tlb::{self, Table};
use super::{Tables, View};
use crate::env::{Cpu, Exec, Fault};
use crate::mode::key;
use anura_vmcore::{Width, guest_error};
use anura_x86::regs::vector;

/// IA32_APIC_BASE: the page's address and the global enable.
const APIC_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_EXTD: u64 = 1 << 10;

/// Where the pieces of a translated access lie.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) phys: u64,
    pub(super) host: *mut u8,
}

/// An integer that moves between registers and memory in one piece.
pub trait Scalar: Copy {
    /// Its size in bytes.
    const LEN: u64;
    /// From the low bytes of a word.
    fn from_word(w: u64) -> Self;
    /// Zero-extended.
    fn to_word(self) -> u64;
}
macro_rules! scalar {
    ($($t:ty)*) => {$(impl Scalar for $t {
        const LEN: u64 = size_of::<$t>() as u64;
        #[inline(always)]
        fn from_word(w: u64) -> Self { w as $t }
        #[inline(always)]
        fn to_word(self) -> u64 { self.into() }
    })*};
}
scalar!(u8 u16 u32 u64);

/// Reads an integer's bytes as one access; false if there are not 1, 2, 4 or 8 of them.
fn get_whole(from: *const u8, buf: &mut [u8]) -> bool {
    // SAFETY: the caller has found RAM for as many bytes; others write there, hence volatile.
    let value = unsafe {
        match buf.len() {
            1 => from.read_volatile().into(),
            2 => from.cast::<Unaligned<u16>>().read_volatile().0.into(),
            4 => from.cast::<Unaligned<u32>>().read_volatile().0.into(),
            8 => from.cast::<Unaligned<u64>>().read_volatile().0,
            _ => return false,
        }
    };
    buf.copy_from_slice(&u64::to_le_bytes(value)[..buf.len()]);
    true
}

/// Writes an integer's bytes as one access; false if there are not 1, 2, 4 or 8 of them.
fn put_whole(to: *mut u8, data: &[u8]) -> bool {
    let mut word = [0; 8];
    if !matches!(data.len(), 1 | 2 | 4 | 8) {
        return false;
    }
    word[..data.len()].copy_from_slice(data);
    let value = u64::from_le_bytes(word);
    // SAFETY: as in `get_whole`, and the page is writable RAM that nobody watches.
    unsafe {
        match data.len() {
            1 => to.write_volatile(value as u8),
            2 => to.cast::<Unaligned<u16>>().write_volatile(Unaligned(value as u16)),
            4 => to.cast::<Unaligned<u32>>().write_volatile(Unaligned(value as u32)),
            _ => to.cast::<Unaligned<u64>>().write_volatile(Unaligned(value)),
        }
    }
    true
}

/// Any address is aligned for it, so that one volatile access of the guest's width is made.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

impl Cpu {
    /// Where the entries of a view are, and its number.
    #[inline(always)]
    pub(super) fn view_of(&self, view: View) -> (Table, usize) {
        if view == View::Super {
            (self.mmu.super_, self.mmu.super_view)
        } else {
            (self.mmu.data, self.mmu.data_view)
        }
    }

    /// Looks into a view for a read.
    #[inline(always)]
    fn hit_read(&self, view: View, va: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: the table is that of a view of the current slot.
        unsafe { tlb::read(self.view_of(view).0, va, len) }
    }

    /// Looks into a view for a write.
    #[inline(always)]
    fn hit_write(&self, view: View, va: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: as above.
        unsafe { tlb::write(self.view_of(view).0, va, len) }
    }

    /// Reads an integer.
    #[inline(always)]
    pub fn read<T: Scalar>(&mut self, va: u64, view: View) -> Exec<T> {
        match self.hit_read(view, va, T::LEN) {
            // SAFETY: the TLB gives host addresses of RAM in the current flat view, with all bytes
            // in the page; guests and devices race on them, hence volatile.
            Some(p) => Ok(unsafe { p.cast::<Unaligned<T>>().read_volatile().0 }),
            None => self.read_slow(va, T::LEN, view).map(T::from_word),
        }
    }

    /// Writes an integer.
    #[inline(always)]
    pub fn write<T: Scalar>(&mut self, va: u64, value: T, view: View) -> Exec<()> {
        match self.hit_write(view, va, T::LEN) {
            Some(p) => {
                // SAFETY: as in `read`; the write tag says that the page is writable RAM that
                // nobody watches.
                unsafe { p.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) };
                Ok(())
            }
            None => self.write_slow(va, value.to_word(), T::LEN, view),
        }
    }

    /// The fast path of [`Self::read`] alone, for the program's own accesses.
    #[inline(always)]
    pub fn try_read<T: Scalar>(&self, va: u64) -> Option<T> {
        // SAFETY: as in `read`.
        self.hit_read(View::Data, va, T::LEN).map(|p| unsafe { p.cast::<Unaligned<T>>().read_volatile().0 })
    }

    /// The fast path of [`Self::write`] alone; false if it must go the slow way.
    #[inline(always)]
    pub fn try_write<T: Scalar>(&self, va: u64, value: T) -> bool {
        match self.hit_write(View::Data, va, T::LEN) {
            Some(p) => {
                // SAFETY: as in `write`.
                unsafe { p.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) };
                true
            }
            None => false,
        }
    }

    /// The fast path of [`Self::read`] alone, for any view.
    #[inline(always)]
    pub(crate) fn peek<T: Scalar>(&self, va: u64, view: View) -> Option<T> {
        // SAFETY: as in `read`.
        self.hit_read(view, va, T::LEN).map(|p| unsafe { p.cast::<Unaligned<T>>().read_volatile().0 })
    }

    /// Reads words that lie in one page, if the TLB has it.
    #[inline(always)]
    pub(crate) fn peek_words<const N: usize>(&self, va: u64, view: View) -> Option<[u64; N]> {
        let p = self.hit_read(view, va, N as u64 * 8)?.cast::<Unaligned<u64>>();
        // SAFETY: the TLB says that all bytes are RAM in one page; others may write there, hence volatile.
        Some(std::array::from_fn(|n| unsafe { p.add(n).read_volatile().0 }))
    }

    /// Writes words that lie in one page, if the TLB has it.
    #[inline(always)]
    pub(crate) fn poke_words<const N: usize>(&self, va: u64, words: [u64; N], view: View) -> bool {
        let Some(p) = self.hit_write(view, va, N as u64 * 8) else { return false };
        let p = p.cast::<Unaligned<u64>>();
        for (n, w) in words.iter().enumerate() {
            // SAFETY: as above, and the write tag says that nobody watches the page.
            unsafe { p.add(n).write_volatile(Unaligned(*w)) };
        }
        true
    }

    /// Where `len` bytes may be written directly, if the TLB knows.
    #[inline(always)]
    pub fn try_write_ptr(&self, va: u64, len: u64) -> Option<*mut u8> {
        self.hit_write(View::Data, va, len)
    }

    /// Where `len` bytes may be read directly, if the TLB knows.
    #[inline(always)]
    pub fn try_read_ptr(&self, va: u64, len: u64) -> Option<*const u8> {
        self.hit_read(View::Data, va, len).map(|p| p.cast_const())
    }

    /// Reads one byte.
    #[inline(always)]
    pub fn read_u8(&mut self, va: u64, view: View) -> Exec<u8> {
        self.read(va, view)
    }
    /// Reads two bytes.
    #[inline(always)]
    pub fn read_u16(&mut self, va: u64, view: View) -> Exec<u16> {
        self.read(va, view)
    }
    /// Reads four bytes.
    #[inline(always)]
    pub fn read_u32(&mut self, va: u64, view: View) -> Exec<u32> {
        self.read(va, view)
    }
    /// Reads eight bytes.
    #[inline(always)]
    pub fn read_u64(&mut self, va: u64, view: View) -> Exec<u64> {
        self.read(va, view)
    }
    /// Writes one byte.
    #[inline(always)]
    pub fn write_u8(&mut self, va: u64, value: u8, view: View) -> Exec<()> {
        self.write(va, value, view)
    }
    /// Writes two bytes.
    #[inline(always)]
    pub fn write_u16(&mut self, va: u64, value: u16, view: View) -> Exec<()> {
        self.write(va, value, view)
    }
    /// Writes four bytes.
    #[inline(always)]
    pub fn write_u32(&mut self, va: u64, value: u32, view: View) -> Exec<()> {
        self.write(va, value, view)
    }
    /// Writes eight bytes.
    #[inline(always)]
    pub fn write_u64(&mut self, va: u64, value: u64, view: View) -> Exec<()> {
        self.write(va, value, view)
    }

    /// Reads a number of 1 to 8 bytes, zero-extended.
    #[inline]
    pub fn read_sized(&mut self, va: u64, len: u8, view: View) -> Exec<u64> {
        match len {
            1 => self.read_u8(va, view).map(u64::from),
            2 => self.read_u16(va, view).map(u64::from),
            4 => self.read_u32(va, view).map(u64::from),
            _ => self.read_u64(va, view),
        }
    }

    /// Writes the low 1, 2, 4 or 8 bytes of a number.
    #[inline]
    pub fn write_sized(&mut self, va: u64, value: u64, len: u8, view: View) -> Exec<()> {
        match len {
            1 => self.write_u8(va, value as u8, view),
            2 => self.write_u16(va, value as u16, view),
            4 => self.write_u32(va, value as u32, view),
            _ => self.write_u64(va, value, view),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, va: u64, len: u64, view: View) -> Exec<u64> {
        let mut buf = [0; 8];
        self.load(va, &mut buf[..len as usize], view)?;
        Ok(u64::from_le_bytes(buf))
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, va: u64, value: u64, len: u64, view: View) -> Exec<()> {
        self.store(va, &value.to_le_bytes()[..len as usize], view)
    }

    /// Reads 1 to 4096 bytes as one access.
    pub fn load(&mut self, va: u64, buf: &mut [u8], view: View) -> Exec<()> {
        self.check_alignment(va, buf.len(), view)?;
        let (first, rest) = self.pieces(va, buf.len());
        // That all of it is canonical is checked before any page.
        let next = self.second_page(va, rest, view)?;
        let a = self.place(va, view, false)?;
        let b = next.map(|next| self.place(next, view, false)).transpose()?;
        if self.mmu.watch {
            self.data_breakpoint(va, buf.len() as u64, false);
        }
        let (low, high) = buf.split_at_mut(first);
        self.fetch_piece(a, low);
        if let Some(b) = b {
            self.fetch_piece(b, high);
        }
        Ok(())
    }

    /// Writes 1 to 4096 bytes as one access: all of them or, on a fault, none.
    pub fn store(&mut self, va: u64, data: &[u8], view: View) -> Exec<()> {
        self.check_alignment(va, data.len(), view)?;
        let (first, rest) = self.pieces(va, data.len());
        // That all of it is canonical is checked before any page.
        let next = self.second_page(va, rest, view)?;
        let a = self.place(va, view, true)?;
        let b = next.map(|next| self.place(next, view, true)).transpose()?;
        if self.mmu.watch {
            self.data_breakpoint(va, data.len() as u64, true);
        }
        let (low, high) = data.split_at(first);
        self.put_piece(a, low);
        if let Some(b) = b {
            self.put_piece(b, high);
        }
        Ok(())
    }

    /// Checks that a store of `len` bytes (at most a page) would not fault, and does nothing else.
    pub fn probe_write(&mut self, va: u64, len: usize, view: View) -> Exec<()> {
        if self.hit_write(view, va, len as u64).is_some() {
            return Ok(());
        }
        self.check_alignment(va, len, view)?;
        let (_, rest) = self.pieces(va, len);
        let next = self.second_page(va, rest, view)?;
        self.place(va, view, true)?;
        next.map(|next| self.place(next, view, true)).transpose()?;
        Ok(())
    }

    /// Checks that a load of `len` bytes (at most a page) would not fault, and does nothing else.
    pub fn probe_read(&mut self, va: u64, len: usize, view: View) -> Exec<()> {
        let (_, rest) = self.pieces(va, len);
        let next = self.second_page(va, rest, view)?;
        self.place(va, view, false)?;
        next.map(|next| self.place(next, view, false)).transpose()?;
        Ok(())
    }

    /// The host address of `len` bytes that may be read and written in place; `None` if that must
    /// go through [`Self::load`] and [`Self::store`] (devices, page crossings, watched pages).
    /// Faults as a write does.
    #[inline]
    pub fn rmw_ptr(&mut self, va: u64, len: u64, view: View) -> Exec<Option<*mut u8>> {
        if let Some(p) = self.hit_write(view, va, len) {
            return Ok(Some(p));
        }
        if (va & 0xfff) + len > 0x1000 {
            self.probe_write(va, len as usize, view)?;
            return Ok(None);
        }
        self.check_alignment(va, len as usize, view)?;
        let p = self.place(va, view, true)?.host;
        Ok((!p.is_null()).then_some(p))
    }

    /// The host address for reading `len` bytes in place; `None` as in [`Self::rmw_ptr`].
    #[inline]
    pub fn read_ptr(&mut self, va: u64, len: u64, view: View) -> Exec<Option<*const u8>> {
        if let Some(p) = self.hit_read(view, va, len) {
            return Ok(Some(p));
        }
        if (va & 0xfff) + len > 0x1000 {
            self.probe_read(va, len as usize, view)?;
            return Ok(None);
        }
        let p = self.place(va, view, false)?.host.cast_const();
        Ok((!p.is_null()).then_some(p))
    }

    /// #AC(0) for operands off their natural boundary, if the program has asked for it. Vectors and images of state
    /// have rules of their own.
    fn check_alignment(&self, va: u64, len: usize, view: View) -> Exec<()> {
        if self.env.mode_key & key::AC == 0 || view == View::Super {
            return Ok(());
        }
        let boundary = match len {
            2 | 4 | 8 => len as u64,
            10 => 8,
            _ => 1,
        };
        if va & (boundary - 1) == 0 { Ok(()) } else { Err(Fault::with_error(vector::AC, 0)) }
    }

    /// Bytes in the first page and in the second.
    fn pieces(&self, va: u64, len: usize) -> (usize, usize) {
        let room = 0x1000 - (va & 0xfff) as usize;
        (len.min(room), len.saturating_sub(room))
    }

    /// The page that the last `rest` bytes of an access at `va` are on, if there are any.
    fn second_page(&self, va: u64, rest: usize, view: View) -> Exec<Option<u64>> {
        if rest == 0 {
            return Ok(None);
        }
        let next = self.next_page(va, view)?;
        if self.env.long_mode() && !self.env.canonical(next) {
            return Err(if view == View::Stack { Fault::SS0 } else { Fault::not_canonical(next) });
        }
        Ok(Some(next))
    }

    /// Start of the page behind that of `va`. Outside of 64-bit code linear addresses wrap at 4 GiB,
    /// but an access by a flat segment would pass its limit there.
    fn next_page(&self, va: u64, view: View) -> Exec<u64> {
        let next = (va & !0xfff).wrapping_add(0x1000);
        if self.env.is_64bit() || next >> 32 == 0 {
            return Ok(next);
        }
        match view {
            View::Data if self.env.mode_key & key::FLAT != 0 => Err(Fault::GP0),
            View::Stack if self.env.mode_key & key::FLAT != 0 => Err(Fault::SS0),
            _ => Ok(next & 0xffff_ffff),
        }
    }

    fn fetch_piece(&mut self, from: Place, buf: &mut [u8]) {
        if !from.host.is_null() {
            if get_whole(from.host, buf) {
                return;
            }
            let whole = buf.len() & !7;
            let (words, rest) = buf.split_at_mut(whole);
            for (n, word) in words.chunks_exact_mut(8).enumerate() {
                // SAFETY: `place` found RAM for the page and `pieces` keeps us inside of it.
                let v = unsafe { from.host.cast::<Unaligned<u64>>().add(n).read_volatile().0 };
                word.copy_from_slice(&v.to_le_bytes());
            }
            for (i, b) in rest.iter_mut().enumerate() {
                // SAFETY: as above.
                *b = unsafe { from.host.add(whole + i).read_volatile() };
            }
            return;
        }
        self.sync_clock();
        if self.is_apic_page(from.phys & !0xfff) {
            self.apic_read(from.phys as u32 & 0xfff, buf);
        } else if let Some(width) = Width::from_bytes(buf.len()) {
            let who = self.requester();
            let value = self.mmu.memory.held().read(from.phys, width, who).0;
            buf.copy_from_slice(&value.to_le_bytes()[..buf.len()]);
        } else {
            let who = self.requester();
            let _ = self.mmu.memory.held().read_bytes(from.phys, buf, who);
        }
        self.refresh_views();
    }

    fn put_piece(&mut self, to: Place, data: &[u8]) {
        if !to.host.is_null() {
            if put_whole(to.host, data) {
                return;
            }
            let (words, rest) = data.as_chunks::<8>();
            for (n, word) in words.iter().enumerate() {
                let v = Unaligned(u64::from_le_bytes(*word));
                // SAFETY: as in `fetch_piece`; `place` gives a host address for stores only if
                // the page is writable and not watched.
                unsafe { to.host.cast::<Unaligned<u64>>().add(n).write_volatile(v) };
            }
            for (i, b) in rest.iter().enumerate() {
                // SAFETY: as above.
                unsafe { to.host.add(words.len() * 8 + i).write_volatile(*b) };
            }
            return;
        }
        let tables = Tables(self.mmu.memory.held(), u64::MAX);
        if let Some((block, offset, writable)) = tables.find(to.phys, data.len() as u64)
            && !self.is_apic_page(to.phys & !0xfff)
            && writable
        {
            // Code, logged and watched pages: the tracker hears of the write.
            let mut word = [0; 8];
            match Width::from_bytes(data.len()) {
                Some(width) => {
                    word[..data.len()].copy_from_slice(data);
                    block.store(offset, width, u64::from_le_bytes(word));
                }
                None => {
                    block.write(offset, data);
                }
            }
            return;
        }
        self.sync_clock();
        let who = self.requester();
        if self.is_apic_page(to.phys & !0xfff) {
            self.apic_write(to.phys as u32 & 0xfff, data);
        } else if let Some(width) = Width::from_bytes(data.len()) {
            let mut word = [0; 8];
            word[..data.len()].copy_from_slice(data);
            let _ = self.mmu.memory.held().write(to.phys, width, u64::from_le_bytes(word), who);
        } else {
            let _ = self.mmu.memory.held().write_bytes(to.phys, data, who);
        }
        self.refresh_views();
    }

    pub(super) fn is_apic_page(&self, page: u64) -> bool {
        // Cheap for everything that is far from where APICs are put.
        let base = self.apic().base();
        base & APIC_ADDRESS == page && base & (APIC_ENABLED | APIC_EXTD) == APIC_ENABLED
    }

    fn apic_read(&mut self, offset: u32, buf: &mut [u8]) {
        let (mut at, mut word) = (u32::MAX, 0);
        for (b, offset) in buf.iter_mut().zip(offset..) {
            if at != offset & 0xffc {
                at = offset & 0xffc;
                word = self.apic().mmio_read(at);
            }
            *b = (word >> ((offset & 3) * 8)) as u8;
        }
    }

    fn apic_write(&mut self, offset: u32, data: &[u8]) {
        match data.first_chunk::<4>() {
            Some(word) if data.len() == 4 && offset & 3 == 0 => {
                self.apic().mmio_write(offset, u32::from_le_bytes(*word));
            }
            _ => guest_error!("cpu: write of {} bytes to the APIC page at {offset:#x}, ignored", data.len()),
        }
    }
}
