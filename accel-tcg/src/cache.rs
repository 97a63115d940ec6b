//! Translated code of one machine: found by place, dropped when its bytes change.
//!
//! A block is known by the host address of its first byte (which stands for the physical address), its RIP and the
//! mode key. Processors take turns, so the cache is one for all and is held by the one that runs. Writers of RAM
//! report to [`Shared`] from any thread; what they report is worked off between blocks.
//!
//! A block whose bytes changed is made to begin with an operation that leaves, so that whoever still points to it
//! comes back to the run loop; its memory is freed when the whole cache is emptied.

use crate::env::Cpu;
use crate::interp::stale;
use crate::interp::t0::{Code, State, T0};
use crate::interp::thunk::Arena;
use anura_memory::{CodeListener, RamBlock, granule_mask};
use anura_vmcore::CpuSignal;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Bytes of translations at which all are dropped: of the interpreter's own, and where it only helps the JIT out.
const LIMIT: usize = 18 << 20;
const HELPING: usize = 4 << 20;

type Key = (usize, u64, u32);

/// A fast hasher for keys that are addresses: nothing the guest can gain by collisions but its own slowness.
#[derive(Default, Clone, Copy)]
pub(crate) struct AddressHasher(u64);

impl std::hash::Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64((*b).into());
        }
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }
    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Hasher = std::hash::BuildHasherDefault<AddressHasher>;

/// Which processors have translations from which pages, and which of them know that a page has some.
///
/// A processor that translates marks the page, from when on others learn with the next fill of their TLBs that stores
/// there are to be told; until each of them has looked at what it was told, it may store there unseen.
#[derive(Default)]
pub struct CodePages {
    owners: Mutex<HashMap<usize, u64, Hasher>>,
    processors: RwLock<Vec<Weak<Presence>>>,
    /// How many there are.
    count: AtomicUsize,
}

/// The owners' bit that all processors from the 64th on share.
const MANY: u64 = 1 << 63;

impl CodePages {
    /// The bit of a processor among the owners of pages.
    pub(crate) fn owner(id: u32) -> u64 {
        1 << id.min(63)
    }

    /// Adds a processor, or several that take turns.
    pub(crate) fn add_processor(&self, shared: &Shared) {
        let mut all = self.processors.write();
        all.push(Arc::downgrade(&shared.presence));
        self.count.store(all.len(), Ordering::SeqCst);
    }

    /// A processor is about to translate code of a page: `mark` makes its marks, which stay from now on. When this
    /// returns, all processors have been told that the page is code.
    pub(crate) fn own(&self, page: usize, owner: u64, mark: impl FnOnce()) {
        let mut owners = self.owners.lock();
        *owners.entry(page).or_default() |= owner;
        mark();
    }

    /// A processor has dropped translations of a page; `still`: it has others there. `reduce` puts its own marks in
    /// place of all others, and is called if nobody else has translations there.
    pub(crate) fn settle(&self, page: usize, owner: u64, still: bool, reduce: impl FnOnce()) {
        let mut owners = self.owners.lock();
        let Some(mask) = owners.get_mut(&page) else { return };
        if *mask & MANY != 0 {
            return;
        }
        if *mask & !owner == 0 {
            reduce();
        }
        if !still {
            *mask &= !owner;
            if *mask == 0 {
                owners.remove(&page);
            }
        }
    }

    /// Whether all other processors have taken over which pages are code: what they stored unseen until then is to be
    /// seen in memory now, and no such store comes any more.
    pub(crate) fn all_know(&self, me: &Presence) -> bool {
        if self.count.load(Ordering::SeqCst) < 2 {
            return true;
        }
        let all = self.processors.read();
        all.iter().filter_map(Weak::upgrade).all(|p| std::ptr::eq(&*p, me) || p.knows())
    }
}

/// What the processors of a machine know of each other. Those of one cache take turns and are one here.
#[derive(Default)]
pub(crate) struct Presence {
    /// One of them runs.
    inside: AtomicBool,
    /// Pages that they were told of.
    told: AtomicUsize,
    /// How many of those they have taken over.
    taken: AtomicUsize,
}

impl Presence {
    /// Nobody outside of a run stores anything unseen, and who begins one takes over first what it was told.
    fn knows(&self) -> bool {
        !self.inside.load(Ordering::SeqCst)
            || self.taken.load(Ordering::SeqCst) == self.told.load(Ordering::SeqCst)
    }

    /// A run begins, and lasts as long as what this returns.
    pub fn enter(self: &Arc<Self>) -> Inside {
        self.inside.store(true, Ordering::SeqCst);
        Inside(self.clone())
    }
}

/// A run of a processor.
pub(crate) struct Inside(Arc<Presence>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.store(false, Ordering::SeqCst);
    }
}

/// The translations.
pub(crate) struct Cache {
    // Boxed, because links and the jump caches point to the codes.
    #[allow(clippy::vec_box)]
    codes: Vec<Box<Code>>,
    index: HashMap<Key, *const Code, Hasher>,
    /// The codes made from each page.
    pages: HashMap<usize, Vec<*const Code>, Hasher>,
    bytes: usize,
    limit: usize,
    /// Counted up whenever codes are freed.
    pub generation: u64,
    /// Counted up whenever functions are.
    pub functions: u64,
    /// Functions of opaque instructions, where the host allows them.
    pub arena: Option<Arena>,
    stale: Box<T0>,
    /// Blocks dropped because their bytes changed.
    pub invalidated: u64,
}

// SAFETY: all pointers lead to boxes that the cache owns; the cache is used by one thread at a time.
unsafe impl Send for Cache {}

/// What writers and processors share.
pub struct Shared {
    pub(crate) cache: Mutex<Cache>,
    queue: Mutex<Vec<(usize, u64)>>,
    dirty: AtomicBool,
    /// Number of pages told before those in the list, and the list.
    watched: Mutex<(usize, Vec<usize>)>,
    /// How many of these the processors have taken over.
    pub(crate) presence: Arc<Presence>,
    signals: Mutex<Vec<Weak<CpuSignal>>>,
}

impl Default for Shared {
    fn default() -> Self {
        let stale = T0 { run: stale, imm: 0, d: 0, a: 0, b: 0, c: 0, x: 0, insn: 0, y: 0 };
        let cache = Cache {
            codes: Vec::new(),
            index: HashMap::default(),
            pages: HashMap::default(),
            bytes: 0,
            limit: LIMIT,
            generation: 0,
            functions: 0,
            arena: if std::env::var_os("ANURA_NO_THUNK").is_some() { None } else { Arena::new().ok() },
            stale: Box::new(stale),
            invalidated: 0,
        };
        Shared {
            cache: Mutex::new(cache),
            queue: Mutex::default(),
            dirty: AtomicBool::new(false),
            watched: Mutex::default(),
            presence: Arc::default(),
            signals: Mutex::default(),
        }
    }
}

impl Shared {
    /// Adds a processor that is to hear of writes to code.
    pub fn add_signal(&self, signal: &Arc<CpuSignal>) {
        self.signals.lock().push(Arc::downgrade(signal));
    }

    fn wake(&self) {
        for s in self.signals.lock().iter().filter_map(Weak::upgrade) {
            // Not `raise`: a processor that waits need not wake for this.
            s.poll.fetch_or(CpuSignal::WORK, Ordering::SeqCst);
        }
    }

    /// From now on no host functions are made; the portable code runs instead.
    pub(crate) fn forbid_thunks(&self) {
        let mut c = self.cache.lock();
        c.clear();
        c.arena = None;
    }

    /// Bytes of translations held, their number, and bytes of host functions.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let c = self.cache.lock();
        (c.bytes, c.codes.len(), c.arena.as_ref().map_or(0, Arena::used))
    }
}

impl CodeListener for Shared {
    fn code_written(&self, block: &RamBlock, offset: u64, len: u64) {
        let host = block.host_ptr().as_ptr() as usize + offset as usize;
        self.queue.lock().push((host, len));
        self.dirty.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn pages_watched(&self, block: &RamBlock, offset: u64, len: u64) {
        let host = block.host_ptr().as_ptr() as usize;
        let mut list = self.watched.lock();
        let first = offset >> 12;
        if list.1.len() > 1 << 16 {
            list.0 += list.1.len();
            list.1.clear();
        }
        for page in first..=(offset + len.max(1) - 1) >> 12 {
            list.1.push(host + (page << 12) as usize);
        }
        self.presence.told.store(list.0 + list.1.len(), Ordering::SeqCst);
        drop(list);
        self.wake();
    }
}

impl Cpu {
    /// Bytes under translations were written and the translations have not been dropped yet.
    #[inline(always)]
    pub(crate) fn code_dirty(&self) -> bool {
        self.vm.code.dirty.load(Ordering::Relaxed)
    }

    /// Takes over what others did to code and to pages since the last time, and returns the writes to code. No
    /// operation may be running.
    pub(crate) fn catch_up(&mut self, cache: &mut Cache) -> Vec<(usize, u64)> {
        let shared = self.vm.code.clone();
        let mut written = Vec::new();
        if shared.dirty.load(Ordering::Relaxed) && shared.dirty.swap(false, Ordering::SeqCst) {
            written = std::mem::take(&mut *shared.queue.lock());
            for (host, len) in &written {
                cache.invalidate(*host, *len as usize);
            }
        }
        if shared.presence.told.load(Ordering::SeqCst) != self.t0.protected {
            let list = shared.watched.lock();
            let known = self.t0.protected.checked_sub(list.0).and_then(|n| list.1.get(n..));
            match known {
                Some(new) if new.len() <= 64 => {
                    for page in new {
                        self.mmu.protect(*page as *const u8);
                    }
                }
                _ => self.mmu.protect_all(),
            }
            self.t0.protected = list.0 + list.1.len();
            shared.presence.taken.store(self.t0.protected, Ordering::SeqCst);
        }
        if self.t0.generation != cache.generation {
            self.t0.generation = cache.generation;
            self.t0.forget_jumps();
        }
        written
    }
}

impl State {
    fn forget_jumps(&mut self) {
        for j in self.jumps.iter_mut() {
            (j.tag, j.code) = (u64::MAX, ptr::null());
        }
        self.block = ptr::null();
    }
}

impl Cache {
    /// The code at a place, if there is one.
    #[inline]
    pub fn find(&self, host: usize, rip: u64, key: u32) -> Option<*const Code> {
        self.index.get(&(host, rip, key)).copied()
    }

    /// From now on only what the JIT leaves over is translated here.
    pub fn help_out(&mut self) {
        self.limit = HELPING;
    }

    /// Whether all codes should be dropped before more are added.
    pub fn full(&self) -> bool {
        self.bytes > self.limit || self.functions_full()
    }

    /// Whether all functions should be dropped, with whatever refers to them.
    pub fn functions_full(&self) -> bool {
        self.arena.as_ref().is_some_and(Arena::full)
    }

    /// Drops all codes; the marks on the pages are the caller's business. No processor may be inside a block.
    pub fn clear_codes(&mut self) {
        self.pages.clear();
        self.index.clear();
        self.codes.clear();
        self.bytes = 0;
        self.generation += 1;
    }

    /// Drops everything, likewise.
    pub fn clear(&mut self) {
        self.clear_codes();
        self.functions += 1;
        if let Some(a) = &mut self.arena {
            a.clear();
        }
    }

    /// Adds code; `sources` are the pages it was made from.
    pub fn add(&mut self, host: usize, key: u32, code: Box<Code>, sources: &[usize]) -> *const Code {
        self.bytes += size_of::<Code>()
            // The allocator's own, the index, the page's list and links.
            + 192
            + code.ops.len() * size_of::<T0>()
            + code.lens.len()
            + code.sites.len() * 96
            + code.thunks.len() * 40;
        let p: *const Code = &raw const *code;
        self.index.insert((host, code.rip, key), p);
        for page in sources {
            self.pages.entry(*page).or_default().push(p);
        }
        self.codes.push(code);
        p
    }

    /// Makes successor `n` of `from` lead straight to `to`.
    pub fn link(&self, from: *const Code, n: usize, to: *const Code) {
        // SAFETY: both are codes of this generation: `from` has just run and `to` was just found.
        let (from_ref, to_ref) = unsafe { (&*from, &*to) };
        if from_ref.entry.get() == &raw const *self.stale {
            return;
        }
        from_ref.link[n & 1].set(to);
        let mut preds = to_ref.preds.take();
        // Most have one.
        if preds.is_empty() {
            preds.reserve_exact(1);
        }
        preds.push((from, n as u8 & 1));
        to_ref.preds.set(preds);
    }

    /// Drops the code made from these bytes.
    pub fn invalidate(&mut self, host: usize, len: usize) {
        let end = host + len.max(1);
        let mut page = host & !0xfff;
        while page < end {
            self.invalidate_page(page, host, end);
            page += 0x1000;
        }
    }

    fn invalidate_page(&mut self, page: usize, from: usize, end: usize) {
        let Some(p) = self.pages.get_mut(&page) else { return };
        let stale: *const T0 = &raw const *self.stale;
        let mut gone = Vec::new();
        p.retain(|&c| {
            // SAFETY: pages list live codes only.
            let code = unsafe { &*c };
            let start = code.host;
            let len = code.len as usize;
            let hit = match code.pa2 {
                // The part in each of its two pages.
                Some(second) => {
                    let first = 0x1000 - (start & 0xfff);
                    let (a, b) =
                        ((start, start + first), (second as usize, second as usize + len - first.min(len)));
                    (a.0 < end && from < a.1) || (b.0 < end && from < b.1)
                }
                None => start < end && from < start + len,
            };
            if hit {
                gone.push(c);
            }
            !hit
        });
        if gone.is_empty() {
            return;
        }
        for c in &gone {
            // SAFETY: as above.
            let code = unsafe { &**c };
            code.entry.set(stale);
            self.invalidated += 1;
            for (pred, n) in code.preds.take() {
                // SAFETY: codes are freed together only, so a predecessor is still there.
                let link = unsafe { &(*pred).link[n as usize] };
                if link.get() == *c {
                    link.set(ptr::null());
                }
            }
            self.index.retain_not(code, *c);
        }
        if self.pages.get(&page).is_some_and(Vec::is_empty) {
            self.pages.remove(&page);
        }
    }

    /// Whether there is code from a page.
    pub fn has_page(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }

    /// The pages that there is code from.
    pub fn pages(&self) -> Vec<usize> {
        self.pages.keys().copied().collect()
    }

    /// The granules of a page that codes were made from.
    pub fn granules(&self, page: usize) -> u64 {
        let codes = self.pages.get(&page).map_or(&[][..], Vec::as_slice);
        codes.iter().fold(0, |all, c| {
            // SAFETY: pages list live codes only.
            let code = unsafe { &**c };
            all | covered(page, code.host, code.len as usize, code.pa2.map(|s| s as usize))
        })
    }
}

/// The granules of a page that a block of `len` bytes from `host` on covers; `second`: the page of those that do not
/// fit into its first.
pub(crate) fn covered(page: usize, host: usize, len: usize, second: Option<usize>) -> u64 {
    let within = host & 0xfff;
    let first = len.min(0x1000 - within);
    let mut all = 0;
    if host & !0xfff == page {
        all |= granule_mask(within as u64, first.max(1) as u64);
    }
    if second == Some(page) {
        all |= granule_mask(0, (len - first).max(1) as u64);
    }
    all
}

trait RetainNot {
    fn retain_not(&mut self, code: &Code, p: *const Code);
}

impl RetainNot for HashMap<Key, *const Code, Hasher> {
    fn retain_not(&mut self, code: &Code, p: *const Code) {
        let key = (code.host, code.rip, code.index_key);
        if self.get(&key) == Some(&p) {
            self.remove(&key);
        }
    }
}
