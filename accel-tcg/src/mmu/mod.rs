//! Guest memory as the processor sees it: linear addresses, views, faults, devices.
//!
//! The fast path is one compare in the [`tlb`]; everything else is in [`Cpu::load`] and
//! [`Cpu::store`]: walks, page crossings (both pages are translated and checked before any byte
//! moves), devices, the local APIC's page (an overlay of this processor only), data breakpoints,
//! and stores to pages that hold code or are logged.
mod fetched;
#[cfg(test)]
mod tests;
pub mod tlb;
pub mod walk;

use crate::env::{Cpu, Exec, Fault};
use crate::mode::key;
use anura_accel::VmSpaces;
use anura_memory::{RamBlock, RangeKind, SpaceCache};
use anura_vmcore::{Width, guest_error};
use anura_x86::Feature;
use anura_x86::paging::Mode;
use anura_x86::regs::{cr0, cr4, dr7, rflags, vector};
use fetched::Fetched;
use std::sync::Arc;
use tlb::Tlb;
use walk::{Context, Keys, TableMemory, Want};

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The program's own access.
    Data,
    /// The same, by the stack segment: a non-canonical address is #SS.
    Stack,
    /// The processor's own (descriptor tables, TSS): supervisor at any CPL.
    Super,
}

/// IA32_APIC_BASE: the page's address and the global enable.
const APIC_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_EXTD: u64 = 1 << 10;

const EXEC_ENTRIES: usize = 512;

#[derive(Clone, Copy)]
struct ExecEntry {
    /// Linear page, bit 0 set for user mode; odd high value when empty.
    tag: u64,
    page: ExecPage,
    global: bool,
}

/// A page that instructions are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecPage {
    /// Physical address of the page.
    pub phys: u64,
    /// Its bytes in this process, or null if it is not RAM or ROM as a whole.
    pub host: *const u8,
}

const NO_EXEC: ExecEntry =
    ExecEntry { tag: u64::MAX, page: ExecPage { phys: 0, host: std::ptr::null() }, global: false };

/// Translation caches and the spaces behind them.
pub struct Mmu {
    /// Guest-physical memory.
    pub memory: SpaceCache,
    /// Ports.
    pub ports: SpaceCache,
    tlb: Tlb,
    exec: Box<[ExecEntry; EXEC_ENTRIES]>,
    context: Context,
    /// The view of the program's accesses and of the processor's own.
    data: usize,
    super_: usize,
    /// A data breakpoint is armed: no translation is cached, every access is compared.
    watch: bool,
    /// Address lines that work: all but A20 when its gate is closed.
    lines: u64,
    /// Changes whenever the mapping of code may have changed; translations of code are checked again.
    pub exec_epoch: u64,
    /// Pages that code was fetched through under the present epochs, by half.
    fetched: [Fetched; 2],
    /// The present epochs by half of the address space, and the last one given out.
    epochs: [u64; 2],
    last_epoch: u64,
}

// SAFETY: the raw pointers in the caches point into RAM blocks that the cached flat view keeps
// alive; they are used by the thread that owns the Cpu only, and moving it moves them along.
unsafe impl Send for Mmu {}

/// Where the pieces of a translated access lie.
#[derive(Clone, Copy)]
struct Place {
    phys: u64,
    host: *mut u8,
}

impl Mmu {
    /// For a processor with paging off.
    pub fn new(spaces: &VmSpaces) -> Self {
        Self {
            memory: spaces.memory.cache(),
            ports: spaces.ports.cache(),
            tlb: Tlb::new(),
            exec: Box::new([NO_EXEC; EXEC_ENTRIES]),
            context: Context::new([0; 3], 0, [0; 4], false, 40),
            data: tlb::SUPER_ALL,
            super_: tlb::SUPER_ALL,
            watch: false,
            lines: u64::MAX,
            exec_epoch: 0,
            fetched: [Fetched::default(), Fetched::default()],
            epochs: [1, 2],
            last_epoch: 2,
        }
    }

    /// Where the entries of the program's own accesses begin, [`tlb::ENTRIES`] of them. Good until a call that
    /// changes the mode, CR3, AC or anything else that chooses the view.
    pub fn data_base(&self) -> *const tlb::Entry {
        self.tlb.base(self.data)
    }

    /// What names the present mapping of code: of addresses with bit 63 clear, and of those with it set. A value
    /// never comes back for another mapping.
    pub fn epochs(&self) -> [u64; 2] {
        self.epochs
    }

    fn new_epoch(&mut self, half: usize) {
        self.last_epoch += 1;
        self.epochs[half] = self.last_epoch;
        self.fetched[half].clear();
        self.exec_epoch = self.exec_epoch.wrapping_add(1);
    }

    /// Forgets all translations, or all that are not global.
    pub fn flush(&mut self, keep_global: bool) {
        self.tlb.flush(keep_global);
        for half in 0..2 {
            if !(half == 1 && keep_global && self.fetched[half].all_global()) {
                self.new_epoch(half);
            }
        }
        // Jumps from one half may lead to the other.
        self.exec_epoch = self.exec_epoch.wrapping_add(1);
        for e in self.exec.iter_mut().filter(|e| !(keep_global && e.global && e.tag >> 63 != 0)) {
            *e = NO_EXEC;
        }
    }

    /// Forgets the translations of one page.
    pub fn flush_page(&mut self, va: u64) {
        self.tlb.flush_page(va);
        let half = (va >> 63) as usize;
        if !self.fetched[half].covers(va) {
            return;
        }
        self.new_epoch(half);
        // A large page may have left several entries.
        for e in self.exec.iter_mut().filter(|e| e.tag >> 63 == va >> 63) {
            *e = NO_EXEC;
        }
    }

    /// Takes the right to store directly away from a page of RAM, which now holds code or is logged.
    pub fn protect(&mut self, host_page: *const u8) {
        self.tlb.protect(host_page as usize);
    }

    /// Valid translations, for `info tlb`: view, page, readable, writable, log2 size, global.
    pub fn list(&self) -> Vec<(usize, u64, bool, bool, u8, bool)> {
        self.tlb.list()
    }
}

/// Physical memory as the processor reaches it: behind the A20 gate.
struct Tables<'a>(&'a anura_memory::FlatView, u64);

impl Tables<'_> {
    fn find(&self, at: u64, len: u64) -> Option<(&Arc<RamBlock>, u64, bool)> {
        let at = at & self.1;
        let range = self.0.find(at)?;
        if range.size - (at - range.start) < len {
            return None;
        }
        match &range.kind {
            RangeKind::Ram { block, offset, writable } => {
                Some((block, offset + (at - range.start), *writable))
            }
            RangeKind::RomDevice { block, offset, .. } => Some((block, offset + (at - range.start), false)),
            RangeKind::Io { .. } => None,
        }
    }
}

impl TableMemory for Tables<'_> {
    fn read(&self, at: u64, wide: bool) -> u64 {
        let width = if wide { Width::W8 } else { Width::W4 };
        let found = self.find(at, width.bytes() as u64);
        found.and_then(|(block, offset, _)| block.load(offset, width)).unwrap_or(width.mask())
    }
    fn update(&self, at: u64, wide: bool, old: u64, new: u64) -> bool {
        let width = if wide { Width::W8 } else { Width::W4 };
        match self.find(at, width.bytes() as u64) {
            Some((block, offset, true)) => {
                block.compare_exchange(offset, width, old, new).is_none_or(|(_, done)| done)
            }
            _ => true,
        }
    }
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

/// Any address is aligned for it, so that one volatile access of the guest's width is made.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

impl Cpu {
    #[inline(always)]
    fn view_index(&self, view: View) -> usize {
        if view == View::Super { self.mmu.super_ } else { self.mmu.data }
    }

    /// Reads an integer.
    #[inline(always)]
    pub fn read<T: Scalar>(&mut self, va: u64, view: View) -> Exec<T> {
        match self.mmu.tlb.read(self.view_index(view), va, T::LEN) {
            // SAFETY: the TLB gives host addresses of RAM in the current flat view, with all bytes
            // in the page; guests and devices race on them, hence volatile.
            Some(p) => Ok(unsafe { p.cast::<Unaligned<T>>().read_volatile().0 }),
            None => self.read_slow(va, T::LEN, view).map(T::from_word),
        }
    }

    /// Writes an integer.
    #[inline(always)]
    pub fn write<T: Scalar>(&mut self, va: u64, value: T, view: View) -> Exec<()> {
        match self.mmu.tlb.write(self.view_index(view), va, T::LEN) {
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
        self.mmu
            .tlb
            .read(self.mmu.data, va, T::LEN)
            .map(|p| unsafe { p.cast::<Unaligned<T>>().read_volatile().0 })
    }

    /// The fast path of [`Self::write`] alone; false if it must go the slow way.
    #[inline(always)]
    pub fn try_write<T: Scalar>(&self, va: u64, value: T) -> bool {
        match self.mmu.tlb.write(self.mmu.data, va, T::LEN) {
            Some(p) => {
                // SAFETY: as in `write`.
                unsafe { p.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) };
                true
            }
            None => false,
        }
    }

    /// Where `len` bytes may be written directly, if the TLB knows.
    #[inline(always)]
    pub fn try_write_ptr(&self, va: u64, len: u64) -> Option<*mut u8> {
        self.mmu.tlb.write(self.mmu.data, va, len)
    }

    /// Where `len` bytes may be read directly, if the TLB knows.
    #[inline(always)]
    pub fn try_read_ptr(&self, va: u64, len: u64) -> Option<*const u8> {
        self.mmu.tlb.read(self.mmu.data, va, len).map(|p| p.cast_const())
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
        if self.mmu.tlb.write(self.view_index(view), va, len as u64).is_some() {
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
        let index = self.view_index(view);
        if let Some(p) = self.mmu.tlb.write(index, va, len) {
            return Ok(Some(p));
        }
        self.probe_write(va, len as usize, view)?;
        Ok(self.mmu.tlb.write(index, va, len))
    }

    /// The host address for reading `len` bytes in place; `None` as in [`Self::rmw_ptr`].
    #[inline]
    pub fn read_ptr(&mut self, va: u64, len: u64, view: View) -> Exec<Option<*const u8>> {
        let index = self.view_index(view);
        if let Some(p) = self.mmu.tlb.read(index, va, len) {
            return Ok(Some(p));
        }
        self.probe_read(va, len as usize, view)?;
        Ok(self.mmu.tlb.read(index, va, len).map(|p| p.cast_const()))
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

    fn want(&self, view: View, write: bool) -> Want {
        let implicit = view == View::Super;
        Want {
            write,
            fetch: false,
            user: !implicit && self.env.cpl() == 3,
            ac: !implicit && self.env.eflags_sys & rflags::AC != 0,
        }
    }

    /// Translates one page of an access and fills the TLB.
    fn place(&mut self, va: u64, view: View, write: bool) -> Exec<Place> {
        let index = self.view_index(view);
        let hit = |t: &Tlb| if write { t.write(index, va, 1) } else { t.read(index, va, 1) };
        if let Some(host) = hit(&self.mmu.tlb) {
            return Ok(Place { phys: 0, host });
        }
        if self.mmu.tlb.recall(index, va, write)
            && let Some(host) = hit(&self.mmu.tlb)
        {
            return Ok(Place { phys: 0, host });
        }
        if self.env.long_mode() && !self.env.canonical(va) {
            return Err(if view == View::Stack { Fault::SS0 } else { Fault::not_canonical(va) });
        }
        self.refresh_views();
        let want = self.want(view, write);
        let flat = self.mmu.memory.view().clone();
        let tables = Tables(&flat, self.mmu.lines);
        let mut page = walk::walk(&tables, &self.mmu.context, va, want).map_err(|e| Fault::page(va, e))?;
        page.phys &= self.mmu.lines;
        let phys = page.phys | va & 0xfff;
        let place = Place { phys, host: std::ptr::null_mut() };
        if self.is_apic_page(page.phys) {
            return Ok(place);
        }
        let Some((block, offset, writable)) = tables.find(page.phys, 0x1000) else { return Ok(place) };
        if self.mmu.watch || index == tlb::CHECKED {
            return Ok(place);
        }
        let host = block.host_ptr().as_ptr() as usize + offset as usize;
        let context = &self.mmu.context;
        let readable = page.allows(context, Want { write: false, ..want });
        let storable = page.dirty
            && page.allows(context, Want { write: true, ..want })
            && writable
            && block.tracker().is_plain(offset);
        let meta = u64::from(page.shift) | if page.global { tlb::GLOBAL } else { 0 };
        self.mmu.tlb.fill(index, va, host, readable, storable, meta);
        if write && !storable {
            return Ok(place);
        }
        Ok(Place { phys, host: (host + (va & 0xfff) as usize) as *mut u8 })
    }

    fn fetch_piece(&mut self, from: Place, buf: &mut [u8]) {
        if !from.host.is_null() {
            for (i, b) in buf.iter_mut().enumerate() {
                // SAFETY: `place` found RAM for the page and `pieces` keeps us inside of it.
                *b = unsafe { from.host.add(i).read_volatile() };
            }
            return;
        }
        self.sync_clock();
        if self.is_apic_page(from.phys & !0xfff) {
            self.apic_read(from.phys as u32 & 0xfff, buf);
        } else if let Some(width) = Width::from_bytes(buf.len()) {
            let who = self.requester();
            let value = self.mmu.memory.read(from.phys, width, who).0;
            buf.copy_from_slice(&value.to_le_bytes()[..buf.len()]);
        } else {
            let who = self.requester();
            let _ = self.mmu.memory.view().read_bytes(from.phys, buf, who);
        }
        self.refresh_views();
    }

    fn put_piece(&mut self, to: Place, data: &[u8]) {
        if !to.host.is_null() {
            for (i, b) in data.iter().enumerate() {
                // SAFETY: as in `fetch_piece`; `place` gives a host address for stores only if
                // the page is writable and not watched.
                unsafe { to.host.add(i).write_volatile(*b) };
            }
            return;
        }
        let flat = self.mmu.memory.view().clone();
        if let Some((block, offset, writable)) = Tables(&flat, u64::MAX).find(to.phys, data.len() as u64)
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
            let _ = self.mmu.memory.write(to.phys, width, u64::from_le_bytes(word), who);
        } else {
            let _ = self.mmu.memory.view().write_bytes(to.phys, data, who);
        }
        self.refresh_views();
    }

    fn is_apic_page(&self, page: u64) -> bool {
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

    /// Takes over a memory map or an A20 gate that changed, and with it drops all translations. True if it did.
    pub fn refresh_views(&mut self) -> bool {
        self.mmu.ports.refresh();
        let lines = if self.vm.config.platform.a20() { u64::MAX } else { !(1 << 20) };
        let changed = self.mmu.memory.refresh() | (lines != self.mmu.lines);
        self.mmu.lines = lines;
        if changed {
            self.mmu.flush(false);
        }
        changed
    }

    /// Chooses the views for the current CPL, AC and SMAP. Part of [`Cpu::mode_changed`].
    #[inline]
    pub fn view_changed(&mut self) {
        let smap = self.env.cr4 & cr4::SMAP != 0 && self.env.cr0 & cr0::PG != 0;
        let all = !smap || self.env.eflags_sys & rflags::AC != 0;
        self.mmu.super_ = if smap { tlb::SUPER } else { tlb::SUPER_ALL };
        self.mmu.data = match (self.env.cpl(), all) {
            (3, _) if self.env.mode_key & key::AC != 0 => tlb::CHECKED,
            (3, _) => tlb::USER,
            (_, true) => tlb::SUPER_ALL,
            _ => tlb::SUPER,
        };
    }

    /// To be called after a change of CR0, CR3, CR4, EFER or the PDPTEs outside of
    /// [`Self::load_cr3`]: takes over the new rules and drops all translations.
    pub fn paging_changed(&mut self) {
        self.update_context();
        self.update_watch();
        self.mmu.flush(false);
    }

    /// The rights of protection keys have changed. What they allow is in cached translations.
    pub fn keys_changed(&mut self) {
        let old = self.mmu.context.keys;
        self.update_context();
        if self.mmu.context.keys != old {
            self.mmu.flush(false);
        }
    }

    fn update_context(&mut self) {
        let e = &self.env;
        let model = &self.vm.config.model;
        let cr = [e.cr0, e.cr3, e.cr4];
        self.mmu.context = Context::new(cr, e.efer, e.pdpte, model.has(Feature::Pdpe1gb), model.phys_bits);
        self.mmu.context.keys = Keys::new(cr, e.efer, [e.msrs.pkru, e.msrs.pkrs]);
    }

    /// Whether data breakpoints are armed may have changed.
    pub fn update_watch(&mut self) {
        let d = self.env.dr7;
        let watch = (0..4).any(|n| {
            dr7::enabled(d, n) && matches!(dr7::kind(d, n), dr7::Kind::Write | dr7::Kind::ReadWrite)
        });
        if watch != self.mmu.watch {
            self.mmu.watch = watch;
            self.mmu.flush(false);
        }
    }

    /// A new value of CR3, already checked: global translations stay.
    pub fn load_cr3(&mut self, value: u64) {
        self.env.cr3 = value;
        self.update_context();
        self.mmu.flush(self.env.cr4 & cr4::PGE != 0);
    }

    /// Notes the data breakpoints that an access of `len` bytes hits, in `pending_db`. DR6 bits
    /// are also collected for breakpoints that are not enabled, as the processor does, but only
    /// an enabled one makes the trap.
    fn data_breakpoint(&mut self, va: u64, len: u64, write: bool) {
        let d = self.env.dr7;
        let mut hits = 0;
        let mut trap = false;
        for n in 0..4 {
            let kind = dr7::kind(d, n);
            let wanted = kind == dr7::Kind::ReadWrite || write && kind == dr7::Kind::Write;
            let size = dr7::len(d, n);
            let base = self.env.dr[n] & !(size - 1);
            if wanted && va < base.saturating_add(size) && base < va.saturating_add(len) {
                hits |= 1 << n;
                trap |= dr7::enabled(d, n);
            }
        }
        if trap {
            self.env.pending_db |= hits;
        }
    }

    /// The page that the instruction at linear address `va` is fetched from.
    #[inline]
    pub fn translate_exec(&mut self, va: u64) -> Exec<ExecPage> {
        let tag = va & !0xfff | u64::from(self.env.cpl() == 3);
        let e = &self.mmu.exec[(va >> 12) as usize & (EXEC_ENTRIES - 1)];
        if e.tag == tag { Ok(e.page) } else { self.translate_exec_slow(va, tag) }
    }

    #[cold]
    #[inline(never)]
    fn translate_exec_slow(&mut self, va: u64, tag: u64) -> Exec<ExecPage> {
        if self.env.long_mode() && !self.env.canonical(va) {
            return Err(Fault::GP0);
        }
        self.refresh_views();
        let want = Want { write: false, fetch: true, user: self.env.cpl() == 3, ac: false };
        let flat = self.mmu.memory.view().clone();
        let tables = Tables(&flat, self.mmu.lines);
        let mut page = walk::walk(&tables, &self.mmu.context, va, want).map_err(|e| Fault::page(va, e))?;
        page.phys &= self.mmu.lines;
        let host = match tables.find(page.phys, 0x1000) {
            // SAFETY: `find` checked that the page is inside the block.
            Some((block, offset, _)) => unsafe {
                block.host_ptr().as_ptr().add(offset as usize).cast_const()
            },
            None => std::ptr::null(),
        };
        let (shift, global) = (page.shift, page.global);
        let page = ExecPage { phys: page.phys, host };
        self.mmu.exec[(va >> 12) as usize & (EXEC_ENTRIES - 1)] = ExecEntry { tag, page, global };
        let half = (va >> 63) as usize;
        if !self.mmu.fetched[half].add(va, shift, global) {
            self.mmu.new_epoch(half);
            self.mmu.fetched[half].add(va, shift, global);
        }
        Ok(page)
    }

    /// The RAM block behind a physical address, and the offset in it.
    pub fn ram_at(&mut self, phys: u64) -> Option<(Arc<RamBlock>, u64)> {
        let view = self.mmu.memory.view().clone();
        Tables(&view, self.mmu.lines).find(phys, 1).map(|(block, offset, _)| (block.clone(), offset))
    }

    /// The physical address behind a linear one, for a debugger: no access, no marks.
    pub fn peek_translate(&mut self, va: u64) -> Option<u64> {
        struct Frozen<'a>(Tables<'a>);
        impl TableMemory for Frozen<'_> {
            fn read(&self, at: u64, wide: bool) -> u64 {
                self.0.read(at, wide)
            }
            fn update(&self, _: u64, _: bool, _: u64, _: u64) -> bool {
                true
            }
        }
        let view = self.mmu.memory.view().clone();
        let want = Want { write: false, fetch: false, user: false, ac: true };
        let page = walk::walk(&Frozen(Tables(&view, self.mmu.lines)), &self.mmu.context, va, want).ok()?;
        Some((page.phys | va & 0xfff) & self.mmu.lines)
    }

    /// Whether PAE paging is on, so that a CR3 load must load PDPTEs.
    pub fn is_pae(&self) -> bool {
        self.mmu.context.mode == Mode::Pae
    }

    /// Reads physical memory (PDPTEs).
    pub fn read_phys_u64(&mut self, at: u64) -> u64 {
        Tables(&self.mmu.memory.view().clone(), self.mmu.lines).read(at, true)
    }
}
