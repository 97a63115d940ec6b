//! From linear to physical addresses, and what changes the way there.
use super::access::Place;
use super::regions::{Hit, Look};
use super::walk::{self, Context, Keys, Page, TableMemory, Want};
use super::{ExecPage, Mmu, Tables, View, tlb};
use crate::env::{Cpu, Exec, Fault};
use crate::mode::key;
use anura_memory::RamBlock;
use anura_x86::Feature;
use anura_x86::paging::Mode;
use anura_x86::regs::{cr0, cr4, dr7, rflags};
use std::sync::Arc;

impl Mmu {
    /// Translates by what is remembered of the tables, or by a walk.
    #[inline(always)]
    fn resolve(&mut self, va: u64, want: Want) -> Result<(Page, Hit), u32> {
        match self.regions.look(&self.context, va, want) {
            Look::Found(page, hit) => Ok((page, hit)),
            Look::Fault(code) => Err(code),
            Look::Unknown => self.resolve_slow(va, want),
        }
    }

    #[inline(never)]
    fn resolve_slow(&mut self, va: u64, want: Want) -> Result<(Page, Hit), u32> {
        if self.context.mode == Mode::Off {
            return Ok((Page::flat(va & 0xffff_ffff), Hit::NONE));
        }
        self.counts.walks += 1;
        let tables = Tables(self.memory.held(), self.lines);
        let path = walk::trace(&tables, &self.context, va, want)?;
        let hit = self.regions.add(&self.context, va, &path, |page| tables.host(page));
        Ok((path.page, hit.unwrap_or(Hit::NONE)))
    }
}

impl Cpu {
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
    #[inline(never)]
    pub(super) fn place(&mut self, va: u64, view: View, write: bool) -> Exec<Place> {
        let (table, index) = self.view_of(view);
        let hit = |_: &Mmu| {
            // SAFETY: the table is of the current slot's view.
            unsafe { if write { tlb::write(table, va, 1) } else { tlb::read(table, va, 1) } }
        };
        if let Some(host) = hit(&self.mmu) {
            return Ok(Place { phys: 0, host });
        }
        if self.mmu.recall(index, va, write)
            && let Some(host) = hit(&self.mmu)
        {
            return Ok(Place { phys: 0, host });
        }
        if self.env.long_mode() && !self.env.canonical(va) {
            return Err(if view == View::Stack { Fault::SS0 } else { Fault::not_canonical(va) });
        }
        self.mmu.counts.misses += 1;
        self.refresh_views();
        let want = self.want(view, write);
        let (mut page, hit) = self.mmu.resolve(va, want).map_err(|e| Fault::page(va, e))?;
        page.phys &= self.mmu.lines;
        let phys = page.phys | va & 0xfff;
        let place = Place { phys, host: std::ptr::null_mut() };
        if self.is_apic_page(page.phys) || self.mmu.watch || index == tlb::CHECKED {
            return Ok(place);
        }
        let Some((block, offset, writable)) = self.mmu.ram_page(page.phys) else { return Ok(place) };
        let host = block.host_ptr().as_ptr() as usize + offset as usize;
        let plain = block.tracker().is_plain(offset);
        let context = &self.mmu.context;
        let readable = page.allows(context, Want { write: false, ..want });
        let allowed = writable && page.dirty && page.allows(context, Want { write: true, ..want });
        let storable = allowed && plain;
        let meta = u64::from(page.shift)
            | if allowed { tlb::WRITABLE } else { 0 }
            | if page.global { tlb::GLOBAL } else { 0 }
            | if page.user { tlb::USER_PAGE } else { 0 }
            | u64::from(page.key) << tlb::KEY_SHIFT;
        self.mmu.note(&hit, page.global, va);
        if self.mmu.view(index).fill(va, host, readable, storable, meta, hit.dep) {
            self.mmu.moved();
        }
        if write && !storable {
            return Ok(place);
        }
        Ok(Place { phys, host: (host + (va & 0xfff) as usize) as *mut u8 })
    }

    /// The host address for a store beside code: the page holds translations, but not of these bytes, and nobody else
    /// wants to hear of the store. What the program's own accesses may write to, as far as the TLB knows.
    pub(crate) fn beside_code(&self, va: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: the table is that of a view of the current slot.
        let (host, meta) = unsafe { tlb::known(self.mmu.data_table(), va, len)? };
        if meta & tlb::WRITABLE == 0 {
            return None;
        }
        let (ram, offset) = self.vm.spaces.ram.iter().find_map(|ram| {
            let offset = (host as usize).checked_sub(ram.host_ptr().as_ptr() as usize)? as u64;
            (offset < ram.len()).then_some((ram, offset))
        })?;
        ram.tracker().is_beside_code(offset, len).then_some(host)
    }

    /// The RAM behind a store that would be made by [`Self::store`]: the block, and the offset in it. `None` for what is
    /// no writable RAM, under data breakpoints, and for the local APIC. Faults as the store does.
    pub(crate) fn watched_ram(&mut self, va: u64) -> Exec<Option<(Arc<RamBlock>, u64)>> {
        let place = self.place(va, View::Data, true)?;
        if !place.host.is_null() || self.mmu.watch || self.is_apic_page(place.phys & !0xfff) {
            return Ok(None);
        }
        let tables = Tables(self.mmu.memory.held(), self.mmu.lines);
        let page = place.phys & !0xfff;
        let found = tables.find(page, 0x1000).filter(|(_, _, writable)| *writable);
        Ok(found.map(|(block, offset, _)| (block.clone(), offset | place.phys & 0xfff)))
    }

    /// Takes over a memory map or an A20 gate that changed, and with it drops all translations. True if it did.
    #[inline]
    pub fn refresh_views(&mut self) -> bool {
        let lines = if self.vm.config.platform.a20() { u64::MAX } else { !(1 << 20) };
        self.mmu.memory.refresh();
        // Whoever refreshed it before us.
        let map = self.mmu.memory.generation();
        if map == self.mmu.map && lines == self.mmu.lines {
            return false;
        }
        (self.mmu.lines, self.mmu.map) = (lines, map);
        self.mmu.flush_all();
        true
    }

    /// Chooses the views for the current CPL, AC and SMAP. Part of [`Cpu::mode_changed`].
    #[inline]
    pub fn view_changed(&mut self) {
        let smap = self.env.cr4 & cr4::SMAP != 0 && self.env.cr0 & cr0::PG != 0;
        let all = !smap || self.env.eflags_sys & rflags::AC != 0;
        let super_ = if smap { tlb::SUPER } else { tlb::SUPER_ALL };
        let data = match (self.env.cpl(), all) {
            (3, _) if self.env.mode_key & key::AC != 0 => tlb::CHECKED,
            (3, _) => tlb::USER,
            (_, true) => tlb::SUPER_ALL,
            _ => tlb::SUPER,
        };
        if (data, super_) != (self.mmu.data_view, self.mmu.super_view) {
            self.mmu.select(data, super_);
        }
    }

    /// To be called after a change of CR0, CR3, CR4, EFER or the PDPTEs outside of
    /// [`Self::load_cr3`]: takes over the new rules and drops all translations.
    pub fn paging_changed(&mut self) {
        self.update_context();
        self.update_watch();
        self.mmu.rules_changed(self.env.cr3, self.env.cr4);
    }

    /// The rights of protection keys have changed. What they allow is in cached translations.
    pub fn keys_changed(&mut self) {
        let e = &self.env;
        let keys = Keys::new([e.cr0, e.cr3, e.cr4], e.efer, [e.msrs.pkru, e.msrs.pkrs]);
        if self.mmu.context.keys != keys {
            self.mmu.context.keys = keys;
            self.mmu.keys_changed();
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
            self.mmu.flush_all();
        }
    }

    /// A new value of CR3, already checked, and of the PDPTEs: global translations stay. With `keep`, those of the
    /// new PCID do too.
    pub fn load_cr3(&mut self, value: u64, keep: bool) {
        self.env.cr3 = value;
        self.mmu.switch(value, self.env.cr4, self.env.pdpte, keep);
    }

    /// Notes the data breakpoints that an access of `len` bytes hits, in `pending_db`. DR6 bits
    /// are also collected for breakpoints that are not enabled, as the processor does, but only
    /// an enabled one makes the trap.
    pub(super) fn data_breakpoint(&mut self, va: u64, len: u64, write: bool) {
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
        match self.mmu.find_exec(tag) {
            Some(page) => Ok(page),
            None => self.translate_exec_slow(va, tag),
        }
    }

    #[cold]
    #[inline(never)]
    fn translate_exec_slow(&mut self, va: u64, tag: u64) -> Exec<ExecPage> {
        if self.env.long_mode() && !self.env.canonical(va) {
            return Err(Fault::GP0);
        }
        self.mmu.counts.fetches += 1;
        self.refresh_views();
        let want = Want { write: false, fetch: true, user: self.env.cpl() == 3, ac: false };
        let (mut page, hit) = self.mmu.resolve(va, want).map_err(|e| Fault::page(va, e))?;
        page.phys &= self.mmu.lines;
        let host = match self.mmu.ram_page(page.phys) {
            // SAFETY: `ram_page` checked that the page is inside the block.
            Some((block, offset, _)) => unsafe {
                block.host_ptr().as_ptr().add(offset as usize).cast_const()
            },
            None => std::ptr::null(),
        };
        self.mmu.note(&hit, page.global, va);
        let found = ExecPage { phys: page.phys, host };
        self.mmu.add_exec(tag, found, page.shift, page.global, hit.dep);
        Ok(found)
    }

    /// The RAM block behind a physical address, and the offset in it.
    pub fn ram_at(&mut self, phys: u64) -> Option<(Arc<RamBlock>, u64)> {
        let tables = Tables(self.mmu.memory.held(), self.mmu.lines);
        tables.find(phys, 1).map(|(block, offset, _)| (block.clone(), offset))
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
        Tables(self.mmu.memory.held(), self.mmu.lines).read(at, true)
    }
}
