//! The translated blocks of one processor: found by place, and how they come to be.
//!
//! A block is known by the host address of its first byte (which stands for the physical address), its RIP and the
//! mode key. Only the processor's own thread uses this, and only outside of translated code. How blocks lead to each
//! other is in `links`, how they go in `evict`.

use super::arena::{Arena, Part};
use super::chaos::Chaos;
use super::emit::{Emit, Exit, Fix, Helper, Lent, Options, Output, Step, To};
use super::evict::{self, Chunk};
use super::home::Home;
use super::links::block_mut;
use super::perf::PerfFiles;
use super::stubs::{self, Stub, Stubs};
use crate::cache::AddressHasher;
use crate::interp::thunk;
use crate::ir::Block as Ir;
use crate::show;
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub(super) type Hasher = std::hash::BuildHasherDefault<AddressHasher>;

/// Samples of jumps back to a block after which it is worth a second look.
const HOT: u8 = 2;
/// The heat of regions, which are not made again: jumps back to their heads from elsewhere are counted like others.
const MADE: u8 = u8::MAX;

/// Where a block is from.
struct What {
    host: usize,
    rip: u64,
    key: u32,
    second: Option<usize>,
    len: u32,
    before: u16,
    n: u8,
    heat: u8,
}

/// A translated block, or a region of several.
pub(crate) struct Block {
    /// Host address of its code.
    pub entry: u64,
    pub rip: u64,
    pub key: u32,
    /// Host address of the guest's bytes.
    pub host: usize,
    /// Bytes, and how many of them lie before the first one that is run.
    pub len: u32,
    before: u16,
    /// Instructions up to the first branch.
    pub n: u8,
    /// How often a jump back to it was counted; see [`Jit::heat`].
    heat: u8,
    /// Where its cold code begins in the arena.
    pub(super) cold: u32,
    /// Its first site and its first recipe in the chunk, and the number of sites.
    pub(super) sites: u32,
    pub(super) recipes: u32,
    pub(super) site_count: u16,
    pub(super) rare: Option<Box<Rare>>,
    /// Slots that lead here, and some that once did.
    pub(super) preds: SmallVec<[u32; 2]>,
}

/// What many blocks do without.
pub(super) struct Rare {
    /// Host address of the second page's bytes, for a block that crosses.
    second: Option<usize>,
    pub lent: Box<[Lent]>,
    // Held, and boxed, for the code, which has their addresses.
    _helpers: Box<[Box<Helper>]>,
    _steps: Box<[Box<Step>]>,
}

impl Block {
    /// Host address of the guest's bytes in the second page, for a block that crosses.
    pub fn second(&self) -> Option<usize> {
        self.rare.as_ref().and_then(|r| r.second)
    }

    /// Where the guest's bytes begin.
    pub(super) fn start(&self) -> usize {
        self.host - usize::from(self.before)
    }

    /// The pages that its bytes are in.
    pub(super) fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        [Some(self.start()), self.second()].into_iter().flatten().map(|host| host & !0xfff)
    }
}

/// What `info jit` shows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub blocks: u64,
    pub instructions: u64,
    pub regions: u64,
    pub guest_bytes: u64,
    pub flushes: u64,
    /// Chunks of the arena that were used again, and the blocks that went with them.
    pub chunks_evicted: u64,
    pub evicted: u64,
    pub invalidated: u64,
    pub links: u64,
    /// Times that the run loop looked for a block.
    pub entries: u64,
    /// Those of them that the table of jumps did not answer.
    pub lookups: u64,
    pub bails: u64,
    pub steps: u64,
    /// CPU time of translations, and beside it that of making room for them, which is rare and dear.
    pub time: Duration,
    pub making_room: Duration,
}

/// What this thread has had of the host's processors.
pub(crate) fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// A processor's translations.
pub(crate) struct Jit {
    pub(super) arena: Arena,
    stubs: Stubs,
    pub options: Options,
    /// The blocks, by the chunk of the arena that each is in.
    pub(super) chunks: Vec<Chunk>,
    /// The blocks by place.
    pub(super) index: HashTable<Entry>,
    /// The blocks made from each page.
    pub(super) pages: HashMap<usize, Vec<u32>, Hasher>,
    /// Pages that have lost their last block.
    pub(super) bare: Vec<usize>,
    /// Counted up whenever memory of the arena is used again, so that slots are other ones.
    pub dropped: u64,
    /// Memory for the next block's code, and for what its slots hold.
    spare: Output,
    words: Vec<u8>,
    pub counts: Counts,
    /// The host's code of each block is shown in the log.
    pub show: bool,
    perf: Option<Arc<PerfFiles>>,
    /// Generation of the interpreter's functions, which blocks refer to.
    pub functions: u64,
}

// SAFETY: blocks hold the interpreter's code for single instructions, whose pointers lead into itself; all of it is
// used by the thread that runs the processor.
unsafe impl Send for Jit {}

impl Jit {
    /// With `size` bytes for code; fails where the host forbids generated code.
    pub fn new(size: usize, counted: bool, pinned: bool, smp: bool) -> std::io::Result<Jit> {
        #[cfg(target_arch = "x86_64")]
        let (avx, bmi) = (
            std::arch::is_x86_feature_detected!("avx"),
            std::arch::is_x86_feature_detected!("bmi1")
                && std::arch::is_x86_feature_detected!("bmi2")
                && std::arch::is_x86_feature_detected!("lzcnt"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (avx, bmi) = (false, false);
        let (bytes, stubs) = stubs::write(avx, counted);
        let arena = Arena::new(size, &bytes)?;
        Ok(Jit {
            chunks: (0..arena.chunks()).map(|_| Chunk::default()).collect(),
            arena,
            stubs,
            options: Options { counted, bmi, pinned, smp, chaos: Chaos::default(), count: true },
            index: HashTable::new(),
            pages: HashMap::default(),
            bare: Vec::new(),
            dropped: 0,
            spare: Output::default(),
            words: Vec::new(),
            counts: Counts::default(),
            show: false,
            perf: None,
            functions: 0,
        })
    }

    /// Where slots are written, for translated code: to be added to a slot's number.
    pub fn slots(&self) -> u64 {
        self.arena.writable()
    }

    /// From now on, code is named for `perf`.
    pub fn name_code(&mut self, files: Option<Arc<PerfFiles>>) {
        if let Some(files) = &files {
            let mut code = self.arena.fixed();
            for (at, name) in self.stubs.names().into_iter().rev() {
                let (before, stub) = code.split_at(at);
                files.add(self.arena.address(at), stub, &format!("anura:{name}"));
                code = before;
            }
        }
        self.perf = files;
    }

    /// The block at a place.
    #[inline]
    pub fn find(&self, host: usize, rip: u64, key: u32) -> Option<u32> {
        let at = hash(host, rip, key);
        let here = |e: &Entry| {
            e.hash == (at >> 32) as u32
                && self.block(e.id).is_some_and(|b| (b.host, b.rip, b.key) == (host, rip, key))
        };
        self.index.find(at, here).map(|e| e.id)
    }

    /// A block by number.
    #[inline]
    pub fn block(&self, id: u32) -> Option<&Block> {
        by_number(&self.chunks, id)
    }

    /// Writes a block and makes it known. `sources`: the pages that its bytes come from. `None` if it does not fit into a
    /// chunk of the arena.
    pub fn add(
        &mut self,
        ir: &Ir,
        key: u32,
        second: Option<usize>,
        sources: &[usize],
        functions: Option<&mut thunk::Arena>,
        home: &mut Home,
    ) -> Option<u32> {
        // The next block has other accidents.
        self.options.chaos.one_in(1);
        let spare = std::mem::take(&mut self.spare);
        let out = Emit::block(ir, second.is_some(), self.options, functions, spare);
        self.counts.blocks += 1;
        self.counts.instructions += ir.insns.len() as u64;
        self.counts.guest_bytes += u64::from(ir.len());
        let (len, n) = (ir.len(), ir.insns.len() as u8);
        let what = What { host: ir.pa as usize, rip: ir.va, key, second, len, before: 0, n, heat: 0 };
        self.publish(out, what, sources, home)
    }

    /// Writes a region of several blocks of a page, which takes the place of the block that its first part was. `None`
    /// if it does not fit, and everything is as before.
    pub fn add_region(
        &mut self,
        parts: &[Ir],
        key: u32,
        sources: &[usize],
        functions: Option<&mut thunk::Arena>,
        home: &mut Home,
    ) -> Option<u32> {
        let head = &parts[0];
        let spare = std::mem::take(&mut self.spare);
        self.counts.regions += 1;
        let out = Emit::region(parts, self.counts.regions as u32, self.options, functions, spare);
        let start = parts.iter().map(|p| p.pa).min().unwrap_or(head.pa);
        let end = parts.iter().map(|p| p.pa + u64::from(p.len())).max().unwrap_or(head.pa);
        let (host, rip) = (head.pa as usize, head.va);
        let what = What {
            host,
            rip,
            key,
            second: None,
            len: (end - start) as u32,
            before: (head.pa - start) as u16,
            n: head.insns.len() as u8,
            heat: MADE,
        };
        let old = self.find(what.host, what.rip, key);
        let id = self.publish(out, what, sources, home)?;
        // It may have gone already, and its number may be another's.
        if let Some(old) = old.filter(|old| *old != id)
            && self.block(old).is_some_and(|b| (b.host, b.rip, b.key) == (host, rip, key))
        {
            self.drop_block(home, old);
        }
        Some(id)
    }

    /// Puts what was written in place and makes it known.
    fn publish(&mut self, mut out: Output, what: What, sources: &[usize], home: &mut Home) -> Option<u32> {
        let What { host, rip, key, second, len, before, n, heat } = what;
        if !self.make_room(home, [out.hot.bytes.len(), out.cold.bytes.len(), out.exits.len() * 16]) {
            self.spare = out;
            return None;
        }
        let [hot, cold, slots] = self.starts();
        let bytes = [&mut out.hot.bytes, &mut out.cold.bytes];
        place(&out.fixes, bytes, [hot, cold, slots], |s| self.stubs.at(s) as usize);
        let (h, c) = (&out.hot.bytes, &out.cold.bytes);
        if let Some(files) = &self.perf {
            files.add(self.arena.address(hot), h, &format!("guest:{rip:#x}"));
            files.add(self.arena.address(cold), c, &format!("guest:{rip:#x}.cold"));
        }
        if self.show {
            let text = |at, bytes: &[u8]| show::code(64, self.arena.address(at), bytes);
            let (h, c) = (text(hot, h), text(cold, c));
            log::debug!(target: "out_asm", "OUT: [{rip:#x}]{h}\n  -- cold{c}");
        }
        self.arena.add(Part::Hot, h);
        self.arena.add(Part::Cold, c);
        let words = &mut self.words;
        words.clear();
        for e in &out.exits {
            let Exit { unlinked, far } = *e;
            let unlinked = self.arena.address(cold + unlinked as usize);
            words.extend_from_slice(&unlinked.to_le_bytes());
            words.extend_from_slice(&if far { u64::MAX } else { unlinked }.to_le_bytes());
        }
        self.arena.add(Part::Slots, words);
        let chunk = self.arena.current();
        let here = &mut self.chunks[chunk];
        let id = evict::number(chunk, here.blocks.len());
        self.counts.steps += out.steps.len() as u64;
        let plain = second.is_none() && out.lent.is_empty() && out.helpers.is_empty() && out.steps.is_empty();
        let rare = (!plain).then(|| {
            Box::new(Rare {
                second,
                lent: out.lent.as_slice().into(),
                _helpers: out.helpers.drain(..).collect(),
                _steps: out.steps.drain(..).collect(),
            })
        });
        let block = Block {
            entry: self.arena.address(hot),
            rip,
            key,
            host,
            len,
            before,
            n,
            heat,
            cold: cold as u32,
            sites: here.sites.len() as u32,
            recipes: here.recipes.len() as u32,
            site_count: out.sites.len() as u16,
            rare,
            preds: SmallVec::new(),
        };
        if !out.cold.bytes.is_empty() {
            here.by_cold.push((cold as u32, id));
        }
        here.sites.extend_from_slice(&out.sites);
        here.recipes.extend_from_slice(&out.recipes);
        here.blocks.push(Some(block));
        for page in sources {
            self.pages.entry(*page).or_default().push(id);
        }
        // One that does not fit any more may be there.
        let chunks = &self.chunks;
        let at = hash(host, rip, key);
        let entry = Entry { id, hash: (at >> 32) as u32 };
        let here = |e: &Entry| {
            e.hash == entry.hash
                && by_number(chunks, e.id).is_some_and(|b| (b.host, b.rip, b.key) == (host, rip, key))
        };
        match self.index.find_mut(at, here) {
            Some(old) => *old = entry,
            None => {
                self.index.insert_unique(at, entry, Entry::hash);
            }
        }
        self.spare = out;
        Some(id)
    }

    /// Counts a jump back to a block; true if it is time to look whether it is a loop.
    pub fn heat(&mut self, host: usize, rip: u64, key: u32) -> bool {
        let Some(id) = self.find(host, rip, key) else { return false };
        let Some(b) = block_mut(&mut self.chunks, id) else { return false };
        b.heat = b.heat.saturating_add(1);
        b.heat == HOT && b.second().is_none()
    }

    /// Runs from a block until something leaves; the exit code with its argument is in the environment.
    #[inline]
    pub fn enter(&self, home: &mut Home, entry: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            let p = home.pointer();
            let enter = self.arena.address(self.stubs.enter);
            // SAFETY: the stub was written by us as a function of this type; the block's code keeps to its contract,
            // and no reference to the processor is alive while it runs.
            unsafe {
                let enter: unsafe extern "sysv64" fn(*mut crate::env::Cpu, u64) = std::mem::transmute(enter);
                enter(p, entry);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (home, entry);
    }
}

/// A block by number.
#[inline]
fn by_number(chunks: &[Chunk], id: u32) -> Option<&Block> {
    let (chunk, n) = evict::place(id);
    chunks.get(chunk)?.blocks.get(n)?.as_ref()
}

/// Where the index has a block: both halves are the same.
pub(super) fn hash(host: usize, rip: u64, key: u32) -> u64 {
    // The host address says nearly all; what is left tells aliases and modes apart.
    let mixed = (host as u64) ^ rip.rotate_left(20) ^ u64::from(key).rotate_left(44);
    let half = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    half << 32 | half
}

/// A block in the index.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub id: u32,
    /// Half of its [`hash`], so that few other blocks are looked at.
    hash: u32,
}

impl Entry {
    fn hash(&self) -> u64 {
        u64::from(self.hash) << 32 | u64::from(self.hash)
    }
}

/// Fills in displacements. `bytes`: hot and cold; `starts`: where they and the slots will lie.
fn place(fixes: &[Fix], bytes: [&mut Vec<u8>; 2], starts: [usize; 3], stub: impl Fn(Stub) -> usize) {
    let [h, c] = bytes;
    let [hot, cold, slots] = starts;
    for f in fixes {
        let (base, buf) = if f.cold { (cold, &mut *c) } else { (hot, &mut *h) };
        let to = match f.to {
            To::Hot(n) => hot + n as usize,
            To::Cold(n) => cold + n as usize,
            To::Stub(s) => stub(s),
            To::Slot(n) => slots + n as usize * 16,
            To::Slot2(n) => slots + n as usize * 16 + 8,
            To::SlotNumber(..) => 0,
            To::Label(n) => unreachable!("label {n} was not replaced"),
        };
        let at = f.at as usize;
        let value = match f.to {
            To::SlotNumber(n, code) => (slots + n as usize * 16) as u32 | code,
            _ => (to as i64 - (base + at + 4) as i64) as u32,
        };
        buf[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The host's code of a block as text, for tests: hot code at 1000h, cold code at 2000h, slots from 3000h on, and stubs
/// 100h apart from 10000h on. Where the machine is concerned, it is a host with BMI that counts nothing. A block that
/// leads to itself is written as a loop.
pub fn host_text(ir: &Ir) -> String {
    let chaos = Chaos::default();
    let options = Options { counted: false, bmi: true, pinned: false, smp: false, chaos, count: false };
    let looping = super::region::successors(ir).any(|rip| rip == ir.va);
    let mut out = match looping {
        true => Emit::region(std::slice::from_ref(ir), 1, options, None, Output::default()),
        false => Emit::block(ir, false, options, None, Output::default()),
    };
    let (h, c) = (&mut out.hot.bytes, &mut out.cold.bytes);
    place(&out.fixes, [h, c], [0x1000, 0x2000, 0x3000], |s| 0x1_0000 + 0x100 * s as usize);
    let text = |at: u64, bytes: &[u8]| -> String {
        show::code(64, at, bytes)
            .lines()
            .filter(|l| !l.is_empty())
            .map(|l| format!("{}\n", &l[14..]))
            .collect()
    };
    format!("{}-- cold\n{}", text(0x1000, &out.hot.bytes), text(0x2000, &out.cold.bytes))
}
