//! Guest memory as two engines need it: the machine's own for the leader, a twin for the follower, and a third copy
//! that stands where both last agreed. Also the address spaces over them, with all registers behind a journal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use anura_memory::{
    AccessRules, AddressSpace, BackingError, FlatRange, FlatView, MemoryListener, MemoryMap, PAGE_SIZE,
    RamBlock, RangeKind, Region,
};
use anura_vmcore::{LoadError, Record};
use parking_lot::Mutex;

use super::journal::{Outside, Registers, Space};

/// How a piece of memory answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Ram,
    Rom,
    /// Read from the block, written through the handler.
    RomDevice,
}

/// A piece of the memory map that a block answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    size: u64,
    block: usize,
    offset: u64,
    answers: Answers,
}

/// The blocks of the memory map; everything else is registers or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout(Vec<Piece>);

impl Layout {
    pub(super) fn save(&self) -> Record {
        let piece = |p: &Piece| vec![p.start, p.size, p.block as u64, p.offset, p.answers as u64];
        Record::new(1).with(1, self.0.iter().map(piece).collect::<Vec<_>>())
    }

    /// The byte of RAM or ROM at a guest-physical address.
    pub(super) fn byte(&self, at: u64, blocks: &[Arc<RamBlock>]) -> Option<u8> {
        let p = self.0.iter().find(|p| at.wrapping_sub(p.start) < p.size)?;
        let mut byte = [0];
        blocks.get(p.block)?.read(p.offset + (at - p.start), &mut byte).then_some(byte[0])
    }

    pub(super) fn load(from: &Record) -> Result<Self, LoadError> {
        let mut r = from.read(1)?;
        let piece = |[start, size, block, offset, answers]: [u64; 5]| {
            let answers = match answers {
                0 => Answers::Ram,
                1 => Answers::Rom,
                _ => Answers::RomDevice,
            };
            Piece { start, size, block: block as usize, offset, answers }
        };
        Ok(Self(r.get::<Vec<[u64; 5]>>(1)?.into_iter().map(piece).collect()))
    }
}

/// A block of the machine with its two copies.
struct Block {
    real: Arc<RamBlock>,
    twin: Arc<RamBlock>,
    /// As of the last agreement.
    base: Arc<RamBlock>,
}

/// All memory of a machine that is run by two engines.
pub(super) struct World {
    blocks: Mutex<Vec<Block>>,
    layout: Mutex<Arc<Layout>>,
    number: AtomicU64,
    /// The leader's view, which follows the machine's.
    mirror: Mutex<Option<Mirror>>,
}

impl World {
    /// Copies the blocks; an error when the host has no memory for that.
    pub(super) fn new(blocks: &[Arc<RamBlock>]) -> Result<Arc<Self>, BackingError> {
        let world = Arc::new(Self {
            blocks: Mutex::default(),
            layout: Mutex::default(),
            number: AtomicU64::new(0),
            mirror: Mutex::default(),
        });
        for block in blocks {
            world.index(block)?;
        }
        Ok(world)
    }

    /// Follows the machine's memory map from now on, with `mirror` as the leader's view of it.
    pub(super) fn follow(self: &Arc<Self>, memory: &AddressSpace, mirror: Mirror) {
        *self.mirror.lock() = Some(mirror);
        memory.subscribe(Arc::new(Follower(Arc::downgrade(self))));
    }

    /// The number of a block, which is copied if it is new.
    fn index(&self, block: &Arc<RamBlock>) -> Result<usize, BackingError> {
        let mut blocks = self.blocks.lock();
        if let Some(i) = blocks.iter().position(|b| Arc::ptr_eq(&b.real, block)) {
            return Ok(i);
        }
        block.tracker().start_log();
        let (twin, base) = (copy_of(block)?, copy_of(block)?);
        twin.tracker().start_log();
        blocks.push(Block { real: block.clone(), twin, base });
        Ok(blocks.len() - 1)
    }

    pub(super) fn layout(&self) -> Arc<Layout> {
        self.layout.lock().clone()
    }

    /// Changes with each new layout.
    pub(super) fn layout_number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    fn new_view(&self, view: &FlatView) {
        let piece = |r: &FlatRange| {
            let (block, offset) = r.read_block()?;
            let answers = match &r.kind {
                RangeKind::Ram { writable: true, .. } => Answers::Ram,
                RangeKind::Ram { .. } => Answers::Rom,
                _ => Answers::RomDevice,
            };
            // Without a copy the leader alone touches it, and the follower reads it from the journal like a register.
            let no_copy = |e: &BackingError| log::warn!("verify: {} is not copied: {e}", block.name());
            let block = self.index(block).inspect_err(no_copy).ok()?;
            Some(Piece { start: r.start, size: r.size, block, offset, answers })
        };
        let new = Layout(view.ranges().iter().filter_map(piece).collect());
        if new == **self.layout.lock() {
            return;
        }
        if let Some(mirror) = &mut *self.mirror.lock() {
            mirror.apply(&new, &self.reals());
        }
        *self.layout.lock() = Arc::new(new);
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    fn reals(&self) -> Vec<Arc<RamBlock>> {
        self.blocks.lock().iter().map(|b| b.real.clone()).collect()
    }

    pub(super) fn twins(&self) -> Vec<Arc<RamBlock>> {
        self.blocks.lock().iter().map(|b| b.twin.clone()).collect()
    }

    pub(super) fn bases(&self) -> Vec<Arc<RamBlock>> {
        self.blocks.lock().iter().map(|b| b.base.clone()).collect()
    }

    /// Pages of the machine's memory that were written since the last call: block and offset.
    pub(super) fn written(&self) -> Vec<(usize, u64)> {
        let blocks = self.blocks.lock();
        log_of(blocks.iter().map(|b| &b.real))
    }

    /// Pages of the twin that were written since the last call.
    pub(super) fn twin_written(&self) -> Vec<(usize, u64)> {
        let blocks = self.blocks.lock();
        log_of(blocks.iter().map(|b| &b.twin))
    }

    /// The bytes of a page of the machine's memory.
    pub(super) fn real_page(&self, block: usize, at: u64) -> Vec<u8> {
        page(&self.blocks.lock()[block].real, at)
    }

    /// Takes over what the machine wrote between runs.
    pub(super) fn settle(&self, pages: &[(usize, u64)]) {
        let blocks = self.blocks.lock();
        for &(b, at) in pages {
            let bytes = page(&blocks[b].real, at);
            blocks[b].twin.write(at, &bytes);
            blocks[b].base.write(at, &bytes);
        }
        // Our own writes are no event.
        drop(log_of(blocks.iter().map(|b| &b.twin)));
    }

    /// Compares pages that either engine wrote. If all are equal they become the new base; otherwise the first
    /// difference is told.
    pub(super) fn agree(&self, mut pages: Vec<(usize, u64)>) -> Result<(), String> {
        pages.sort_unstable();
        pages.dedup();
        let blocks = self.blocks.lock();
        let (mut a, mut b) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        for &(n, at) in &pages {
            blocks[n].real.read(at, &mut a);
            blocks[n].twin.read(at, &mut b);
            if a != b {
                return Err(page_difference(blocks[n].real.name(), at, &a, &b));
            }
        }
        for &(n, at) in &pages {
            blocks[n].real.read(at, &mut a);
            blocks[n].base.write(at, &a);
        }
        Ok(())
    }

    /// Gives the twin the contents it had at the last agreement. `pages` are those that either engine wrote.
    pub(super) fn rewind_twin(&self, pages: &[(usize, u64)]) {
        let blocks = self.blocks.lock();
        for &(n, at) in pages {
            blocks[n].twin.write(at, &page(&blocks[n].base, at));
        }
        drop(log_of(blocks.iter().map(|b| &b.twin)));
    }
}

/// The first byte in which two copies of a page differ.
pub(super) fn page_difference(name: &str, at: u64, a: &[u8], b: &[u8]) -> String {
    let i = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(0);
    let end = (i + 8).min(a.len());
    format!("memory {name}+{:#x}: {:02x?} and {:02x?}", at + i as u64, &a[i..end], &b[i..end])
}

/// Written pages of some blocks, which are numbered in order.
pub(super) fn log_of<'a>(blocks: impl Iterator<Item = &'a Arc<RamBlock>>) -> Vec<(usize, u64)> {
    let mut all = Vec::new();
    for (n, block) in blocks.enumerate() {
        all.extend(block.tracker().take_log().into_iter().map(|at| (n, at)));
    }
    all
}

fn page(block: &RamBlock, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE as usize];
    block.read(at, &mut bytes);
    bytes
}

/// A private copy; what is zero stays untouched.
fn copy_of(block: &Arc<RamBlock>) -> Result<Arc<RamBlock>, BackingError> {
    let copy = RamBlock::new(block.name(), block.len())?;
    for (at, bytes) in used_pages(block) {
        copy.write(at, &bytes);
    }
    Ok(copy)
}

/// The pages of a block that are not all zero.
pub(super) fn used_pages(block: &RamBlock) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
    const ZERO: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let offsets = (0..block.len()).step_by(PAGE_SIZE as usize);
    offsets.map(|at| (at, page(block, at))).filter(|(_, bytes)| bytes[..] != ZERO)
}

struct Follower(Weak<World>);

impl MemoryListener for Follower {
    fn removed(&self, _: &FlatRange) {}

    fn added(&self, _: &FlatRange) {}

    fn commit(&self, view: &Arc<FlatView>) {
        if let Some(world) = self.0.upgrade() {
            world.new_view(view);
        }
    }
}

/// Memory and ports over one set of blocks, everything but RAM and ROM answered by an [`Outside`].
pub(super) struct Mirror {
    map: MemoryMap,
    root: Region,
    outside: Arc<dyn Outside>,
    /// RAM and ROM faces of each block.
    faces: Vec<[Region; 2]>,
    placed: Vec<Region>,
    pub(super) memory: AddressSpace,
    pub(super) ports: AddressSpace,
}

impl Mirror {
    pub(super) fn new(outside: &Arc<dyn Outside>) -> Self {
        let map = MemoryMap::new();
        let registers = |space, size| {
            let handler = Arc::new(Registers { outside: outside.clone(), space, base: 0 });
            Region::io("outside", size, handler, AccessRules::any(8))
        };
        let root = Region::container("memory", u64::MAX);
        let io = Region::container("I/O", 1 << 16);
        let mut t = map.transaction();
        t.add(&root, 0, &registers(Space::Memory, u64::MAX), -1);
        t.add(&io, 0, &registers(Space::Ports, 1 << 16), -1);
        t.commit();
        let memory = map.create_space("memory", &root);
        let ports = map.create_space("I/O", &io);
        Self { map, root, outside: outside.clone(), faces: Vec::new(), placed: Vec::new(), memory, ports }
    }

    pub(super) fn apply(&mut self, layout: &Layout, blocks: &[Arc<RamBlock>]) {
        while self.faces.len() < blocks.len() {
            let block = &blocks[self.faces.len()];
            self.faces
                .push([Region::ram(block.name(), block.clone()), Region::rom(block.name(), block.clone())]);
        }
        let mut t = self.map.transaction();
        for old in self.placed.drain(..) {
            t.remove(&self.root, &old);
        }
        for p in &layout.0 {
            let Some(block) = blocks.get(p.block) else { continue };
            let face = match p.answers {
                Answers::Ram => self.faces[p.block][0].clone(),
                Answers::Rom => self.faces[p.block][1].clone(),
                Answers::RomDevice => {
                    let base = p.start.wrapping_sub(p.offset);
                    let space = Space::Memory;
                    let handler = Arc::new(Registers { outside: self.outside.clone(), space, base });
                    Region::rom_device(block.name(), block.clone(), handler)
                }
            };
            let window = Region::alias(block.name(), &face, p.offset, p.size);
            t.add(&self.root, p.start, &window, 0);
            self.placed.push(window);
        }
    }
}
