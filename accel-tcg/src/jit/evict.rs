//! How blocks go: because their bytes changed, because the oldest ones make room for new ones, or all at once.
//!
//! The arena is a ring of chunks. Where a block does not fit into the present chunk, the next one is taken, and the
//! blocks in there, the oldest of all, go: nothing leads to them any more when their memory is used again. Only the run
//! loop does this, with no translated code on its stack; blocks that are needed again are translated again.
//!
//! A chunk that has lost nearly all its blocks, to a guest that writes code again and again, is taken before that: its
//! memory is at hand, in the host's page tables and mostly in its caches too.

use super::arena::Part;
use super::blocks::{Block, Hasher, Jit, cpu_time, hash};
use super::emit::{Recipe, Site};
use super::home::Home;
use crate::cache::covered;
use hashbrown::HashTable;
use std::collections::HashMap;

/// Bits of a block's number for its place in its chunk; those above are the chunk.
const WITHIN: u32 = 16;

/// What is in a chunk of the arena.
#[derive(Default)]
pub(super) struct Chunk {
    /// Its blocks in the order that they were written; those dropped are gone.
    pub blocks: Vec<Option<Block>>,
    /// Where the cold code of each that has some begins, and which it is.
    pub by_cold: Vec<(u32, u32)>,
    /// How many of the blocks were dropped.
    pub dropped: usize,
    /// Where they can be left in the middle, and how the flags come home there: each block has a part of both.
    pub sites: Vec<Site>,
    pub recipes: Vec<Recipe>,
}

impl Chunk {
    /// Nothing is added any more.
    fn shrink(&mut self) {
        self.blocks.shrink_to_fit();
        self.by_cold.shrink_to_fit();
        self.sites.shrink_to_fit();
        self.recipes.shrink_to_fit();
    }

    /// Whether nearly all that was written here is gone.
    fn is_waste(&self) -> bool {
        !self.blocks.is_empty() && (self.blocks.len() - self.dropped) * WASTE <= self.blocks.len()
    }
}

/// Of so many blocks of a chunk one may be left for the chunk to be waste.
const WASTE: usize = 32;

/// The chunk of a block and its place there.
#[inline]
pub(super) fn place(id: u32) -> (usize, usize) {
    ((id >> WITHIN) as usize, (id & ((1 << WITHIN) - 1)) as usize)
}

/// The number of a block in a chunk.
pub(super) fn number(chunk: usize, n: usize) -> u32 {
    debug_assert!(n < 1 << WITHIN);
    (chunk << WITHIN | n) as u32
}

impl Jit {
    /// Makes room for so many bytes of hot and cold code and of slots; `false` if there will never be enough.
    pub(super) fn make_room(&mut self, home: &mut Home, len: [usize; 3]) -> bool {
        if !self.arena.holds(len) {
            return false;
        }
        // Numbers are short; a chunk of the smallest blocks is full before.
        if !self.arena.fits(len) || self.chunks[self.arena.current()].blocks.len() >= (1 << WITHIN) - 1 {
            let start = cpu_time();
            let present = self.arena.current();
            self.chunks[present].shrink();
            let waste = (0..self.chunks.len()).find(|n| *n != present && self.chunks[*n].is_waste());
            let to = waste.unwrap_or_else(|| self.arena.next_chunk());
            self.evict(home, to);
            self.arena.go_to(to);
            self.counts.making_room += cpu_time().saturating_sub(start);
        }
        true
    }

    /// Drops all blocks of a chunk.
    #[cold]
    fn evict(&mut self, home: &mut Home, chunk: usize) {
        let own = self.arena.range(chunk);
        let here = &mut self.chunks[chunk];
        here.by_cold.clear();
        here.dropped = 0;
        here.sites.clear();
        here.recipes.clear();
        let mut blocks = std::mem::take(&mut here.blocks);
        if blocks.is_empty() {
            return;
        }
        // One that had lost them all before is only used again.
        self.counts.chunks_evicted += u64::from(blocks.iter().any(Option::is_some));
        self.dropped += 1;
        let mut pages = Vec::new();
        for (n, b) in blocks.iter_mut().enumerate() {
            let Some(mut b) = b.take() else { continue };
            self.counts.evicted += 1;
            // What leads here from the chunk itself goes with it.
            b.preds.retain(|slot| !own.contains(&(*slot as usize)));
            self.forget_block(home, number(chunk, n), &b);
            pages.extend(b.pages());
        }
        pages.sort_unstable();
        pages.dedup();
        for page in pages {
            let Some(list) = self.pages.get_mut(&page) else { continue };
            list.retain(|id| place(*id).0 != chunk);
            if list.is_empty() {
                self.pages.remove(&page);
                self.bare.push(page);
            }
        }
        blocks.clear();
        self.chunks[chunk].blocks = blocks;
    }

    /// Pages that have lost their last block since the last time; the marks there are the caller's business.
    pub fn take_bare(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.bare)
    }

    /// Drops everything; the marks on the pages are the caller's business.
    pub fn clear(&mut self, home: &mut Home) {
        self.pages = HashMap::with_hasher(Hasher::default());
        self.index = HashTable::new();
        self.chunks.iter_mut().for_each(|c| *c = Chunk::default());
        self.bare.clear();
        self.arena.clear();
        home.forget_jumps();
        self.dropped += 1;
        self.counts.flushes += 1;
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
        let Some(list) = self.pages.get(&page) else { return false };
        let made_from = |id: &u32| {
            self.block(*id).is_some_and(|b| {
                let len = b.len as usize;
                match b.second() {
                    Some(second) => {
                        let first = 0x1000 - (b.host & 0xfff);
                        let rest = len - first.min(len);
                        (b.host < end && from < b.host + first) || (second < end && from < second + rest)
                    }
                    None => b.start() < end && from < b.start() + len,
                }
            })
        };
        let gone: Vec<u32> = list.iter().copied().filter(made_from).collect();
        for id in &gone {
            self.counts.invalidated += 1;
            self.drop_block(home, *id);
        }
        !gone.is_empty()
    }

    /// Drops one block; its memory is used again with that of its chunk.
    pub(super) fn drop_block(&mut self, home: &mut Home, id: u32) {
        let (chunk, n) = place(id);
        let Some(b) = self.chunks.get_mut(chunk).and_then(|c| c.blocks.get_mut(n)?.take()) else { return };
        self.chunks[chunk].dropped += 1;
        self.forget_block(home, id, &b);
        for page in b.pages() {
            let Some(list) = self.pages.get_mut(&page) else { continue };
            if let Some(n) = list.iter().position(|other| *other == id) {
                list.swap_remove(n);
            }
            if list.is_empty() {
                self.pages.remove(&page);
                self.bare.push(page);
            }
        }
    }

    /// Nobody comes to this block any more.
    fn forget_block(&mut self, home: &mut Home, id: u32, b: &Block) {
        self.unlink(b);
        if let Ok(entry) = self.index.find_entry(hash(b.host, b.rip, b.key), |e| e.id == id) {
            entry.remove();
        }
        home.forget_jump(b.rip, b.entry);
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

    /// The block whose cold part a site is in, and its chunk. A site is the address behind a call, which may be where the next block's
    /// cold code begins.
    pub(super) fn block_of_site(&self, at: usize) -> Option<(&Chunk, &Block)> {
        let chunk = self.arena.chunk_at(at.checked_sub(1)?)?;
        let chunk = &self.chunks[chunk];
        let by_cold = &chunk.by_cold;
        let n = by_cold.partition_point(|(start, _)| (*start as usize) < at).checked_sub(1)?;
        Some((chunk, self.block(by_cold[n].1)?))
    }

    /// Where the next block's hot and cold code and its slots will lie.
    pub(super) fn starts(&self) -> [usize; 3] {
        [Part::Hot, Part::Cold, Part::Slots].map(|p| self.arena.next(p))
    }
}
