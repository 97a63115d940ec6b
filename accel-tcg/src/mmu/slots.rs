//! Translations of several address spaces side by side, and when they must go.
//!
//! A slot holds what one context (a PCID, or without PCIDs a root table) has translated. A load of CR3 selects one.
//! Where the architecture wants translations dropped that are not global, they are compared instead with the table
//! entries that they came from, and only those go that a walk would no longer find: dropping less than everything is
//! not visible to a guest if nothing stale is left. This needs no knowledge of who writes tables (processors, devices,
//! a debugger), and costs a load for each translation. Global ones stay until INVLPG or a change of CR4.PGE.
//!
//! A slot that is not selected hears of INVLPG, of pages that become code and of new rights of protection keys when it
//! is selected again.
//!
//! Epochs name the mapping of code by half of the address space. What is fetched through global pages of the upper
//! half is common to all slots: see [`Mmu::epochs`].
use super::fetched::Fetched;
use super::regions::{Above, Dep, Hit, Regions};
use super::walk::{Context, Keys};
use super::{ExecPage, Mmu, tlb};
use anura_x86::paging::Mode;
use anura_x86::regs::{cr3, cr4};
use tlb::{Table, VIEWS, View};

/// How many contexts are kept.
const SLOTS: usize = 12;
/// How many events a slot that is not selected remembers one by one.
const PENDING: usize = 8;
const PENDING_PAGES: usize = 64;

/// Pages of code that a slot remembers, and that all have in common.
const OWN_CODE: usize = 512;
const COMMON_CODE: usize = 2048;

#[derive(Clone, Copy)]
struct ExecEntry {
    /// Linear page, bit 0 set for user mode; all ones when empty.
    tag: u64,
    page: ExecPage,
}

const NO_EXEC: ExecEntry = ExecEntry { tag: u64::MAX, page: ExecPage { phys: 0, host: std::ptr::null() } };

/// Pages that instructions are fetched from.
struct ExecTlb<const N: usize>(Box<[ExecEntry; N]>);

impl<const N: usize> ExecTlb<N> {
    fn new() -> Self {
        Self(Box::new([NO_EXEC; N]))
    }

    #[inline(always)]
    fn index(va: u64) -> usize {
        (va >> 12 ^ va >> 21) as usize & (N - 1)
    }

    #[inline(always)]
    fn find(&self, tag: u64) -> Option<ExecPage> {
        let e = &self.0[Self::index(tag)];
        if e.tag == tag { Some(e.page) } else { None }
    }

    fn put(&mut self, tag: u64, page: ExecPage) {
        self.0[Self::index(tag)] = ExecEntry { tag, page };
    }

    fn clear(&mut self) {
        self.0.fill(NO_EXEC);
    }
}

/// What a slot is known by: the kind of context in the top bits, and its PCID or root.
pub(super) type Key = u64;
const NO_KEY: Key = u64::MAX;
const KEY_OFF: Key = 1 << 63;
const KEY_PCID: Key = 1 << 62;

/// One context's translations.
pub(super) struct Slot {
    key: Key,
    /// What they were made from.
    root: u64,
    pdpte: [u64; 4],
    keys: Keys,
    views: [Option<Box<View>>; VIEWS],
    exec: ExecTlb<OWN_CODE>,
    above: Above,
    /// Code that was not fetched through global pages of the upper half.
    code: Fetched,
    /// Epoch of the lower half.
    lower: u64,
    /// Once code of the upper half was fetched through a page that is not global: the epoch of the global ones then,
    /// and one's own.
    upper: Option<(u64, u64)>,
    /// In which half there may be global translations.
    globals: [bool; 2],
    /// What happened while another slot was selected.
    check: bool,
    pending: Vec<u64>,
    drop_all: bool,
    protect: Vec<usize>,
    protect_all: bool,
    /// When it was selected last.
    used: u64,
}

impl Slot {
    fn new(name: u64) -> Self {
        Self {
            key: NO_KEY,
            root: 0,
            pdpte: [0; 4],
            keys: Keys::default(),
            views: [const { None }; VIEWS],
            exec: ExecTlb::new(),
            above: Above::new(name),
            code: Fetched::default(),
            lower: name,
            upper: None,
            globals: [false; 2],
            check: false,
            pending: Vec::new(),
            drop_all: false,
            protect: Vec::new(),
            protect_all: false,
            used: 0,
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut View> {
        self.views.iter_mut().flatten().map(|v| &mut **v)
    }

    /// Drops the code that is this slot's own. `name` is a new epoch.
    fn drop_code(&mut self, name: u64) {
        self.upper = None;
        if !self.code.is_empty() {
            self.exec.clear();
            self.code.clear();
            self.lower = name;
        }
    }

    /// Drops everything, or what is not global.
    fn drop_translations(&mut self, keep_global: bool, name: u64) {
        self.each().for_each(|v| v.flush(keep_global));
        self.drop_code(name);
        self.above.clear(name);
        self.check = false;
        if !keep_global {
            self.globals = [false; 2];
            self.pending.clear();
            self.protect.clear();
            (self.drop_all, self.protect_all) = (false, false);
        }
    }

    /// Drops what is not global and no longer stands so in memory.
    ///
    /// False if everything had to go.
    fn validate(&mut self, regions: &mut Regions, name: u64) -> bool {
        self.check = false;
        let Some(moved) = self.above.moved(regions) else {
            self.drop_translations(true, name);
            return false;
        };
        let wide = regions.wide();
        self.each().for_each(|v| v.validate(wide, &moved));
        if !self.code.hold(wide, &moved) {
            self.drop_code(name);
        }
        true
    }

    fn flush_page(&mut self, va: u64, name: u64) {
        self.each().for_each(|v| v.flush_page(va));
        if self.code.covers(va) {
            self.drop_code(name);
        }
    }

    /// Does what was put off.
    fn catch_up(&mut self, keys: Keys, name: u64) {
        if std::mem::take(&mut self.drop_all) {
            self.drop_translations(false, name);
            self.keys = keys;
            return;
        }
        for va in std::mem::take(&mut self.pending) {
            self.flush_page(va, name);
        }
        if std::mem::take(&mut self.protect_all) {
            self.each().for_each(View::protect_all);
            self.protect.clear();
        }
        for page in std::mem::take(&mut self.protect) {
            self.each().for_each(|v| v.protect(page));
        }
        self.take_keys(keys);
    }

    fn take_keys(&mut self, keys: Keys) {
        if keys == self.keys {
            return;
        }
        let changed =
            |a: u32, b: u32| (0..16).filter(|k| (a ^ b) >> (k * 2) & 3 != 0).fold(0, |m, k| m | 1 << k);
        for (keys, user) in [
            (changed(self.keys.user, keys.user), true),
            (changed(self.keys.supervisor, keys.supervisor), false),
        ] {
            if keys != 0 {
                self.each().for_each(|v| v.drop_keys(keys, user));
            }
        }
        self.keys = keys;
    }
}

/// The slots of one processor.
pub(super) struct Slots {
    list: Vec<Slot>,
    current: usize,
    /// Key of the present context.
    key: Key,
    /// A view that stays empty.
    empty: Box<View>,
    /// Code fetched through global pages of the upper half, common to all.
    exec: ExecTlb<COMMON_CODE>,
    code: Fetched,
    epoch: u64,
    /// The last number given out: for epochs, names and times.
    count: u64,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            list: vec![Slot::new(1)],
            current: 0,
            key: KEY_OFF,
            empty: Box::new(View::new()),
            exec: ExecTlb::new(),
            code: Fetched::default(),
            epoch: 2,
            count: 2,
        }
    }

    fn name(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn now(&mut self) -> &mut Slot {
        &mut self.list[self.current]
    }

    /// The current slot's view; made if there is none.
    pub(super) fn view(&mut self, view: usize) -> &mut View {
        if view == tlb::CHECKED {
            return &mut self.empty;
        }
        let slot = &mut self.list[self.current];
        slot.views[view].get_or_insert_with(Default::default)
    }

    #[inline(always)]
    pub(super) fn find_exec(&self, tag: u64) -> Option<ExecPage> {
        if tag >> 63 != 0
            && let Some(page) = self.exec.find(tag)
        {
            return Some(page);
        }
        self.list[self.current].exec.find(tag)
    }
}

/// What a context is known by.
fn key_of(ctx: &Context, cr3: u64, cr4: u64) -> Key {
    match ctx.mode {
        Mode::Off => KEY_OFF,
        Mode::FourLevel | Mode::FiveLevel if cr4 & cr4::PCIDE != 0 => KEY_PCID | cr3 & cr3::PCID,
        Mode::Pae => cr3 & 0xffff_ffe0,
        _ => ctx.root,
    }
}

impl Mmu {
    /// What names the present mapping of code: of addresses with bit 63 clear, and of those with it set. A value
    /// never comes back for another mapping, but may come back for the same one. The second one is common to all
    /// contexts as long as all code of the upper half is fetched through global pages.
    #[inline(always)]
    pub fn epochs(&self) -> [u64; 2] {
        self.epochs
    }

    /// Where the entries of the program's own accesses are. Good until the next access that misses them, or a call
    /// that changes the mode, CR3, AC or anything else that chooses the view.
    #[inline(always)]
    pub fn data_table(&self) -> Table {
        self.data
    }

    /// Works out the epochs again.
    fn publish(&mut self) {
        let common = self.slots.epoch;
        let slot = &mut self.slots.list[self.slots.current];
        let upper = match slot.upper {
            None => common,
            Some((then, own)) if then == common => own,
            Some(_) => {
                self.slots.count += 1;
                slot.upper = Some((common, self.slots.count));
                self.slots.count
            }
        };
        let now = [slot.lower, upper];
        if now != self.epochs {
            self.counts.lower += u64::from(now[0] != self.epochs[0]);
            self.counts.upper += u64::from(now[1] != self.epochs[1]);
            self.epochs = now;
            self.exec_epoch += 1;
        }
    }

    /// Chooses views for the program's accesses and for the processor's own.
    #[inline]
    pub(super) fn select(&mut self, data: usize, super_: usize) {
        (self.data_view, self.super_view) = (data, super_);
        self.super_ = self.table(super_);
        self.data = self.table(data);
    }

    #[inline]
    fn table(&mut self, view: usize) -> Table {
        if self.tables[view].base.is_null() {
            self.tables[view] = self.slots.view(view).table();
        }
        self.tables[view]
    }

    /// The views' entries may have moved.
    pub(super) fn moved(&mut self) {
        self.tables = [Table::NONE; VIEWS];
        self.select(self.data_view, self.super_view);
    }

    /// Forgets all translations of all contexts.
    pub fn flush_all(&mut self) {
        self.counts.flushes += 1;
        let s = &mut self.slots;
        let (name, epoch) = (s.name(), s.name());
        for (i, slot) in s.list.iter_mut().enumerate() {
            if i == s.current {
                slot.drop_translations(false, name);
            } else {
                slot.key = NO_KEY;
            }
        }
        if !s.code.is_empty() {
            s.exec.clear();
            s.code.clear();
            s.epoch = epoch;
        }
        let key = s.key;
        let slot = s.now();
        (slot.key, slot.keys) = (key, self.context.keys);
        (slot.root, slot.pdpte) = (self.context.root, self.context.pdpte);
        self.regions.reset(&self.context);
        self.moved();
        self.publish();
        // What waits for a change of the mapping looks again, whatever was fetched.
        self.exec_epoch += 1;
    }

    /// Forgets what is not global of all contexts, or all of it.
    pub fn flush_contexts(&mut self, keep_global: bool) {
        if !keep_global {
            return self.flush_all();
        }
        for slot in &mut self.slots.list {
            slot.check = true;
        }
        self.flush_local();
    }

    /// Forgets what is not global of the present context.
    pub fn flush_local(&mut self) {
        let name = self.slots.name();
        let kept = self.slots.now().validate(&mut self.regions, name);
        self.counts.tables += u64::from(!kept);
        self.publish();
    }

    /// Forgets what is not global of a PCID.
    pub fn flush_pcid(&mut self, pcid: u64) {
        if self.slots.key == KEY_PCID | pcid || self.slots.key & KEY_PCID == 0 {
            return self.flush_local();
        }
        for slot in self.slots.list.iter_mut().filter(|s| s.key == KEY_PCID | pcid) {
            slot.check = true;
        }
    }

    /// Forgets the translations of one page: of the present context, and global ones of all.
    pub fn flush_page(&mut self, va: u64) {
        self.counts.pages += 1;
        let half = (va >> 63) as usize;
        let s = &mut self.slots;
        let name = s.name();
        for (i, slot) in s.list.iter_mut().enumerate() {
            if i == s.current {
                slot.flush_page(va, name);
            } else if slot.globals[half] && slot.key != NO_KEY {
                if slot.pending.len() < PENDING {
                    slot.pending.push(va);
                } else {
                    slot.drop_all = true;
                }
            }
        }
        if half == 1 && s.code.covers(va) {
            s.exec.clear();
            s.code.clear();
            s.epoch = s.name();
        }
        self.publish();
    }

    /// Forgets the translations of one page of another PCID than the present one, if there are any.
    pub fn flush_page_of(&mut self, pcid: u64, va: u64) {
        if self.slots.key & KEY_PCID == 0 || self.slots.key == KEY_PCID | pcid {
            return self.flush_page(va);
        }
        self.flush_pcid(pcid);
    }

    /// Takes the right to store directly away from a page of RAM, which now holds code or is logged.
    pub fn protect(&mut self, host_page: *const u8) {
        let page = host_page as usize;
        let s = &mut self.slots;
        for (i, slot) in s.list.iter_mut().enumerate() {
            if i == s.current {
                slot.each().for_each(|v| v.protect(page));
            } else if slot.key != NO_KEY && !slot.protect_all {
                if slot.protect.len() < PENDING_PAGES {
                    slot.protect.push(page);
                } else {
                    slot.protect_all = true;
                }
            }
        }
    }

    /// Takes the right to store directly away from all pages: who watches which page is not known any more.
    pub fn protect_all(&mut self) {
        let s = &mut self.slots;
        for (i, slot) in s.list.iter_mut().enumerate() {
            if i == s.current {
                slot.each().for_each(View::protect_all);
            } else {
                slot.protect_all = true;
            }
        }
    }

    /// New rights of protection keys, already in the context.
    pub(super) fn keys_changed(&mut self) {
        let keys = self.context.keys;
        self.slots.now().take_keys(keys);
    }

    /// Takes over CR3 and the PDPTEs. With `keep`, translations of a PCID stay as they are.
    pub(super) fn switch(&mut self, cr3: u64, cr4: u64, pdpte: [u64; 4], keep: bool) {
        self.context.load(cr3, pdpte);
        let key = key_of(&self.context, cr3, cr4);
        self.slots.key = key;
        if self.context.mode == Mode::Off {
            return;
        }
        let moved = self.slots.now().key != key;
        self.counts.switches += u64::from(moved);
        if moved {
            self.find_slot(key);
        }
        let name = self.slots.name();
        let (root, keys) = (self.context.root, self.context.keys);
        let slot = self.slots.now();
        slot.used = name;
        if moved {
            slot.catch_up(keys, name);
        }
        if slot.root != root || slot.pdpte != pdpte {
            slot.drop_translations(true, name);
            (slot.root, slot.pdpte) = (root, pdpte);
        } else if !keep || slot.check {
            let kept = slot.validate(&mut self.regions, name);
            self.counts.tables += u64::from(!kept);
        }
        if moved {
            self.moved();
            self.exec_epoch += 1;
        }
        self.publish();
    }

    /// Makes the slot of a context the current one: its own if it has one, else the one that was not used for longest.
    fn find_slot(&mut self, key: Key) {
        let s = &mut self.slots;
        if let Some(i) = s.list.iter().position(|slot| slot.key == key) {
            s.current = i;
            return;
        }
        self.counts.fresh += 1;
        let name = s.name();
        let free = s.list.iter().position(|slot| slot.key == NO_KEY);
        let i = match free {
            Some(i) => i,
            None if s.list.len() < SLOTS => {
                s.list.push(Slot::new(name));
                s.list.len() - 1
            }
            None => (0..SLOTS).filter(|i| *i != s.current).min_by_key(|i| s.list[*i].used).unwrap_or(0),
        };
        // Global translations are good in every context.
        let Ok([from, to]) = s.list.get_disjoint_mut([s.current, i]) else { return };
        to.drop_translations(false, name);
        for (view, old) in from.views.iter().enumerate() {
            if let Some(old) = old {
                to.views[view].get_or_insert_with(Default::default).copy_globals(old);
            }
        }
        to.globals = from.globals;
        (to.key, to.root, to.pdpte) = (key, self.context.root, self.context.pdpte);
        to.keys = from.keys;
        to.upper = None;
        s.current = i;
    }

    /// The rules of paging have changed: everything goes.
    pub(super) fn rules_changed(&mut self, cr3: u64, cr4: u64) {
        self.slots.key = key_of(&self.context, cr3, cr4);
        self.flush_all();
    }

    /// Notes where a translation that is not global came from.
    #[inline]
    pub(super) fn note(&mut self, hit: &Hit, global: bool, va: u64) {
        let slot = &mut self.slots.list[self.slots.current];
        if global {
            slot.globals[(va >> 63) as usize] = true;
            return;
        }
        slot.above.note(&mut self.regions, hit);
    }

    #[inline(always)]
    pub(super) fn find_exec(&self, tag: u64) -> Option<ExecPage> {
        self.slots.find_exec(tag)
    }

    pub(super) fn view(&mut self, view: usize) -> &mut View {
        self.slots.view(view)
    }

    pub(super) fn recall(&mut self, view: usize, va: u64, write: bool) -> bool {
        self.slots.view(view).recall(va, write)
    }

    /// Adds a page that code is fetched from.
    pub(super) fn add_exec(&mut self, tag: u64, page: ExecPage, shift: u8, global: bool, dep: Dep) {
        let upper = tag >> 63 != 0;
        let s = &mut self.slots;
        if upper && global {
            if !s.code.add(tag, shift, dep) {
                s.exec.clear();
                s.code.clear();
                s.code.add(tag, shift, dep);
                s.epoch = s.name();
            }
            s.exec.put(tag, page);
            return self.publish();
        }
        let (name, own) = (s.name(), s.name());
        let common = s.epoch;
        let slot = s.now();
        if !slot.code.add(tag, shift, dep) {
            slot.drop_code(name);
            slot.code.add(tag, shift, dep);
        }
        if upper && slot.upper.is_none() {
            slot.upper = Some((common, own));
        }
        slot.globals[usize::from(upper)] |= global;
        slot.exec.put(tag, page);
        self.publish();
    }

    /// Valid translations, for `info tlb`: view, page, readable, writable, log2 size, global.
    pub fn list(&self) -> Vec<(usize, u64, bool, bool, u8, bool)> {
        let slot = &self.slots.list[self.slots.current];
        let mut out = vec![];
        for (n, view) in slot.views.iter().enumerate() {
            for (page, r, w, size, global) in view.iter().flat_map(|v| v.list()) {
                out.push((n, page, r, w, size, global));
            }
        }
        out
    }
}
