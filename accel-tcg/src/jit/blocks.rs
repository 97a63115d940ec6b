//! The translated blocks of one processor: found by place, linked to each other, dropped when their bytes change.
//!
//! A block is known by the host address of its first byte (which stands for the physical address), its RIP and the
//! mode key. Only the processor's own thread uses this, and only outside of translated code.

use super::arena::{Arena, Part};
use super::chaos::Chaos;
use super::emit::{Emit, Exit, Fix, Helper, Lent, Loc, Options, Output, Recipe, Site, Step, To};
use super::home::Home;
use super::perf::PerfMap;
use super::stubs::{self, Stub, Stubs};
use crate::cache::{AddressHasher, covered};
use crate::env::Cpu;
use crate::interp::thunk;
use crate::ir::Block as Ir;
use crate::show;
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

type Hasher = std::hash::BuildHasherDefault<AddressHasher>;

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
    cold: u32,
    sites: Box<[Site]>,
    rare: Option<Box<Rare>>,
    /// Slots that lead here; bit 0 set for those with an epoch.
    preds: SmallVec<[u32; 2]>,
}

/// What many blocks do without.
struct Rare {
    /// Host address of the second page's bytes, for a block that crosses.
    second: Option<usize>,
    recipes: Box<[Recipe]>,
    lent: Box<[Lent]>,
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
    fn start(&self) -> usize {
        self.host - usize::from(self.before)
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
    pub invalidated: u64,
    pub links: u64,
    /// Times that the run loop looked for a block.
    pub entries: u64,
    /// Those of them that the table of jumps did not answer.
    pub lookups: u64,
    pub bails: u64,
    pub steps: u64,
    pub time: Duration,
}

/// A processor's translations.
pub(crate) struct Jit {
    arena: Arena,
    stubs: Stubs,
    stub_bytes: usize,
    pub options: Options,
    blocks: Vec<Option<Box<Block>>>,
    /// The blocks by place.
    index: HashTable<u32>,
    /// The blocks made from each page.
    pages: HashMap<usize, Vec<u32>, Hasher>,
    /// Where the cold code of blocks starts, in the order that it was written.
    by_cold: Vec<(u32, u32)>,
    /// Memory for the next block's code.
    spare: Output,
    pub counts: Counts,
    /// The host's code of each block is shown in the log.
    pub show: bool,
    perf: Option<Arc<PerfMap>>,
    /// Generation of the interpreter's cache, whose functions blocks refer to.
    pub generation: u64,
}

// SAFETY: blocks hold the interpreter's code for single instructions, whose pointers lead into itself; all of it is
// used by the thread that runs the processor.
unsafe impl Send for Jit {}

impl Jit {
    /// With `size` bytes for code; fails where the host forbids generated code.
    pub fn new(size: usize, counted: bool, pinned: bool, smp: bool) -> std::io::Result<Jit> {
        let mut arena = Arena::new(size)?;
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
        arena.add(Part::Hot, &bytes);
        Ok(Jit {
            stub_bytes: arena.used()[0],
            arena,
            stubs,
            options: Options { counted, bmi, pinned, smp, chaos: Chaos::default(), count: true },
            blocks: Vec::new(),
            index: HashTable::new(),
            pages: HashMap::default(),
            by_cold: Vec::new(),
            spare: Output::default(),
            counts: Counts::default(),
            show: false,
            perf: None,
            generation: 0,
        })
    }

    /// Where slots are written, for translated code: to be added to a slot's number.
    pub fn slots(&self) -> u64 {
        self.arena.writable()
    }

    /// From now on, code is named in a map for `perf`.
    pub fn name_code(&mut self, map: Option<Arc<PerfMap>>) {
        if let Some(map) = &map {
            let mut ends = self.stub_bytes;
            for (at, name) in self.stubs.names().into_iter().rev() {
                map.add(self.arena.address(at), ends - at, &format!("anura:{name}"));
                ends = at;
            }
        }
        self.perf = map;
    }

    /// The block at a place.
    #[inline]
    pub fn find(&self, host: usize, rip: u64, key: u32) -> Option<u32> {
        let here = |id: &u32| self.block(*id).is_some_and(|b| (b.host, b.rip, b.key) == (host, rip, key));
        self.index.find(hash(host, rip, key), here).copied()
    }

    /// A block by number.
    #[inline]
    pub fn block(&self, id: u32) -> Option<&Block> {
        self.blocks.get(id as usize).and_then(|b| b.as_deref())
    }

    /// Whether a block might not fit any more.
    pub fn full(&self) -> bool {
        !(self.arena.fits(Part::Hot, 96 << 10)
            && self.arena.fits(Part::Cold, 96 << 10)
            && self.arena.fits(Part::Slots, 4096))
    }

    /// Whether the largest region surely fits.
    pub fn has_room_for_region(&self) -> bool {
        self.arena.fits(Part::Hot, 384 << 10)
            && self.arena.fits(Part::Cold, 384 << 10)
            && self.arena.fits(Part::Slots, 16 << 10)
    }

    /// Drops everything; the marks on the pages are the caller's business.
    pub fn clear(&mut self, home: &mut Home) {
        self.pages.clear();
        self.index.clear();
        self.blocks.clear();
        self.by_cold.clear();
        self.arena.clear(self.stub_bytes);
        home.forget_jumps();
        self.counts.flushes += 1;
    }

    /// Writes a block and makes it known. `sources`: the pages that its bytes come from.
    pub fn add(
        &mut self,
        ir: &Ir,
        key: u32,
        second: Option<usize>,
        sources: &[usize],
        functions: Option<&mut thunk::Arena>,
    ) -> u32 {
        // The next block has other accidents.
        self.options.chaos.one_in(1);
        let spare = std::mem::take(&mut self.spare);
        let out = Emit::block(ir, second.is_some(), self.options, functions, spare);
        self.counts.blocks += 1;
        self.counts.instructions += ir.insns.len() as u64;
        self.counts.guest_bytes += u64::from(ir.len());
        let (len, n) = (ir.len(), ir.insns.len() as u8);
        let what = What { host: ir.pa as usize, rip: ir.va, key, second, len, before: 0, n, heat: 0 };
        self.publish(out, what, sources)
    }

    /// Writes a region of several blocks of a page, which takes the place of the block that its first part was.
    pub fn add_region(
        &mut self,
        parts: &[Ir],
        key: u32,
        sources: &[usize],
        functions: Option<&mut thunk::Arena>,
        home: &mut Home,
    ) -> u32 {
        let head = &parts[0];
        let spare = std::mem::take(&mut self.spare);
        let out = Emit::region(parts, self.options, functions, spare);
        self.counts.regions += 1;
        let start = parts.iter().map(|p| p.pa).min().unwrap_or(head.pa);
        let end = parts.iter().map(|p| p.pa + u64::from(p.len())).max().unwrap_or(head.pa);
        let what = What {
            host: head.pa as usize,
            rip: head.va,
            key,
            second: None,
            len: (end - start) as u32,
            before: (head.pa - start) as u16,
            n: head.insns.len() as u8,
            heat: MADE,
        };
        if let Some(old) = self.find(what.host, what.rip, key) {
            self.drop_block(home, old);
        }
        self.publish(out, what, sources)
    }

    /// Puts what was written in place and makes it known.
    fn publish(&mut self, mut out: Output, what: What, sources: &[usize]) -> u32 {
        let What { host, rip, key, second, len, before, n, heat } = what;
        let (hot, cold) = (self.arena.next(Part::Hot), self.arena.next(Part::Cold));
        let slots = self.arena.next(Part::Slots);
        let bytes = [&mut out.hot.bytes, &mut out.cold.bytes];
        place(&out.fixes, bytes, [hot, cold, slots], |s| self.stubs.at(s) as usize);
        let (h, c) = (&out.hot.bytes, &out.cold.bytes);
        if let Some(map) = &self.perf {
            map.add(self.arena.address(hot), h.len(), &format!("guest:{rip:#x}"));
            map.add(self.arena.address(cold), c.len(), &format!("guest:{rip:#x}.cold"));
        }
        if self.show {
            let text = |at, bytes: &[u8]| show::code(64, self.arena.address(at), bytes);
            let (h, c) = (text(hot, h), text(cold, c));
            log::debug!(target: "out_asm", "OUT: [{rip:#x}]{h}\n  -- cold{c}");
        }
        self.arena.add(Part::Hot, h);
        self.arena.add(Part::Cold, c);
        let mut words = Vec::with_capacity(out.exits.len() * 16);
        for e in &out.exits {
            let Exit { unlinked, far } = *e;
            let unlinked = self.arena.address(cold + unlinked as usize);
            words.extend_from_slice(&unlinked.to_le_bytes());
            words.extend_from_slice(&if far { u64::MAX } else { unlinked }.to_le_bytes());
        }
        self.arena.add(Part::Slots, &words);
        let id = self.blocks.len() as u32;
        self.counts.steps += out.steps.len() as u64;
        let plain = second.is_none()
            && out.recipes.is_empty()
            && out.lent.is_empty()
            && out.helpers.is_empty()
            && out.steps.is_empty();
        let rare = (!plain).then(|| {
            Box::new(Rare {
                second,
                recipes: out.recipes.as_slice().into(),
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
            sites: out.sites.as_slice().into(),
            rare,
            preds: SmallVec::new(),
        };
        if !out.cold.bytes.is_empty() {
            self.by_cold.push((cold as u32, id));
        }
        for page in sources {
            self.pages.entry(*page).or_default().push(id);
        }
        self.blocks.push(Some(Box::new(block)));
        // One that does not fit any more may be there.
        let blocks = &self.blocks;
        let block = |id: &u32| blocks[*id as usize].as_deref();
        let at = hash(host, rip, key);
        let here = |id: &u32| block(id).is_some_and(|b| (b.host, b.rip, b.key) == (host, rip, key));
        match self.index.find_mut(at, here) {
            Some(old) => *old = id,
            None => {
                let place = |id: &u32| block(id).map_or(0, |b| hash(b.host, b.rip, b.key));
                self.index.insert_unique(at, id, place);
            }
        }
        self.spare = out;
        id
    }

    /// Counts a jump back to a block; true if it is time to look whether it is a loop.
    pub fn heat(&mut self, host: usize, rip: u64, key: u32) -> bool {
        let Some(id) = self.find(host, rip, key) else { return false };
        let Some(b) = self.blocks.get_mut(id as usize).and_then(|b| b.as_deref_mut()) else { return false };
        b.heat = b.heat.saturating_add(1);
        b.heat == HOT && b.second().is_none()
    }

    /// Lets the slot of an exit lead to a block from now on; `epoch` for a slot that is guarded.
    pub fn link(&mut self, slot: u32, epoch: Option<u64>, id: u32) {
        let Some(b) = self.blocks.get_mut(id as usize).and_then(|b| b.as_deref_mut()) else { return };
        if let Some(e) = epoch
            && self.arena.slot(slot as usize) == b.entry
        {
            // Known, but from another address space.
            return self.arena.set_slot(slot as usize + 8, e);
        }
        self.arena.set_slot(slot as usize, b.entry);
        if let Some(e) = epoch {
            self.arena.set_slot(slot as usize + 8, e);
        }
        b.preds.push(slot | u32::from(epoch.is_some()));
        self.counts.links += 1;
    }

    /// Drops the blocks made from these bytes; whether there were any.
    pub fn invalidate(&mut self, home: &mut Home, host: usize, len: usize) -> bool {
        let end = host + len.max(1);
        let mut page = host & !0xfff;
        let mut any = false;
        while page < end {
            any |= self.invalidate_page(home, page, host, end);
            page += 0x1000;
        }
        any
    }

    fn invalidate_page(&mut self, home: &mut Home, page: usize, from: usize, end: usize) -> bool {
        let Some(p) = self.pages.get_mut(&page) else { return false };
        let blocks = &self.blocks;
        let mut gone = Vec::new();
        p.retain(|id| {
            let Some(b) = blocks[*id as usize].as_deref() else { return false };
            let len = b.len as usize;
            let hit = match b.second() {
                Some(second) => {
                    let first = 0x1000 - (b.host & 0xfff);
                    let rest = len - first.min(len);
                    (b.host < end && from < b.host + first) || (second < end && from < second + rest)
                }
                None => b.start() < end && from < b.start() + len,
            };
            if hit {
                gone.push(*id);
            }
            !hit
        });
        for id in &gone {
            self.counts.invalidated += 1;
            self.drop_block(home, *id);
        }
        let empty = self.pages.get(&page).is_some_and(Vec::is_empty);
        if empty {
            self.pages.remove(&page);
        }
        !gone.is_empty()
    }

    /// Nobody comes to this block any more.
    fn drop_block(&mut self, home: &mut Home, id: u32) {
        let Some(b) = self.blocks.get_mut(id as usize).and_then(|b| b.take()) else { return };
        for slot in &b.preds {
            self.unlink(*slot, b.entry);
        }
        if let Ok(entry) = self.index.find_entry(hash(b.host, b.rip, b.key), |n| *n == id) {
            entry.remove();
        }
        home.forget_jump(b.rip, b.entry);
    }

    fn unlink(&self, slot: u32, entry: u64) {
        let at = (slot & !1) as usize;
        if self.arena.slot(at) != entry {
            return;
        }
        if slot & 1 != 0 {
            self.arena.set_slot(at + 8, u64::MAX);
            self.arena.set_slot(at, 0);
        } else {
            self.arena.set_slot(at, self.arena.slot(at + 8));
        }
    }

    /// The granules of a page that blocks were made from.
    pub fn granules(&self, page: usize) -> u64 {
        let blocks = self.pages.get(&page).into_iter().flatten().filter_map(|id| self.block(*id));
        blocks.fold(0, |all, b| all | covered(page, b.start(), b.len as usize, b.second()))
    }

    /// Whether there are blocks from a page.
    pub fn has_page(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }

    /// The pages that there are blocks from.
    pub fn pages(&self) -> Vec<usize> {
        self.pages.keys().copied().collect()
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
                let enter: unsafe extern "sysv64" fn(*mut Cpu, u64) = std::mem::transmute(enter);
                enter(p, entry);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (home, entry);
    }

    /// After an exit in the middle of a block: brings registers, flags and RIP to the instruction's start. Returns how
    /// many instructions were counted that did not run.
    pub fn settle(&mut self, cpu: &mut Cpu) -> Option<u8> {
        self.counts.bails += 1;
        let at = self.arena.offset(cpu.env.jit.site) as u32;
        // A site is the address behind a call, which may be where the next block's cold code begins.
        let n = self.by_cold.partition_point(|(start, _)| *start < at).checked_sub(1)?;
        let b = self.block(self.by_cold[n].1)?;
        let ret = at - b.cold;
        let n = b.sites.binary_search_by_key(&ret, |s| s.ret).ok()?;
        let site = b.sites[n];
        let (lent, recipes) = b.rare.as_ref().map_or((&[][..], &[][..]), |r| (&r.lent, &r.recipes));
        for (n, l) in lent.iter().enumerate() {
            let lender = usize::from(l.lender & 15);
            match l.guest {
                Lent::NOBODY => {}
                Lent::BUDGET => cpu.env.jit.budget = cpu.env.gpr[lender] as i64,
                n => cpu.env.gpr[usize::from(n & 15)] = cpu.env.gpr[lender],
            }
            cpu.env.gpr[lender] = cpu.env.jit.lent[n & 7];
        }
        if let Some(r) = recipes.get(usize::from(site.recipe)) {
            apply(cpu, *r);
        }
        let rip = b.rip.wrapping_add_signed(site.off.into());
        cpu.env.rip = if b.key & crate::mode::key::L64 != 0 { rip } else { rip & 0xffff_ffff };
        Some(site.left)
    }

    /// Bytes of code and data, and blocks that live.
    pub fn sizes(&self) -> ([usize; 3], usize) {
        (self.arena.used(), self.index.len())
    }
}

/// Where the index has a block.
fn hash(host: usize, rip: u64, key: u32) -> u64 {
    // The host address says nearly all; what is left tells aliases and modes apart.
    let mixed = (host as u64) ^ rip.rotate_left(20) ^ u64::from(key).rotate_left(44);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26)
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
        true => Emit::region(std::slice::from_ref(ir), options, None, Output::default()),
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

/// Brings the flags that a site has noted into the environment.
fn apply(cpu: &mut Cpu, r: Recipe) {
    if r.op == Recipe::NOTHING {
        return;
    }
    let env = &mut cpu.env;
    let value = |env: &crate::env::Env, l: Loc, old: u64| match l {
        Loc::Env => old,
        Loc::Gpr(n) => env.gpr[usize::from(n & 15)],
        Loc::Imm(v) => i64::from(v) as u64,
    };
    env.cc_a = value(env, r.a, env.cc_a);
    env.cc_b = value(env, r.b, env.cc_b);
    env.cc_op = r.op;
}
