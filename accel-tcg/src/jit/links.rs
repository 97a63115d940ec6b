//! What leads from block to block: the slots of exits.
//!
//! A slot is two words. The first is where the exit's jump goes. Inside of a page the second is where it goes while no
//! block is known, the code that leaves to the run loop. Elsewhere it is the epoch of the mapping that the link was made
//! for, and the jump compares it first; no epoch is an address of code, so the second word tells the two kinds apart.
//!
//! A block keeps a list of slots that lead to it. What is in the list may be out of date: the slot may lead elsewhere
//! by now, or belong to a block that came later to the same place. So each is looked at before it is changed.

use super::blocks::{Block, Jit};

impl Jit {
    /// Lets the slot of an exit lead to a block from now on; `epoch` for a slot that is guarded.
    pub fn link(&mut self, slot: u32, epoch: Option<u64>, id: u32) {
        let Some(b) = block_mut(&mut self.chunks, id) else { return };
        let at = slot as usize;
        if let Some(e) = epoch
            && self.arena.slot(at) == b.entry
        {
            // Known, but from another address space.
            return self.arena.set_slot(at + 8, e);
        }
        self.arena.set_slot(at, b.entry);
        if let Some(e) = epoch {
            self.arena.set_slot(at + 8, e);
        }
        if b.preds.len() == b.preds.capacity() {
            // A slot that leads to several blocks by turns is here many times.
            b.preds.sort_unstable();
            b.preds.dedup();
            b.preds.retain(|s| self.arena.slot(*s as usize) == b.entry);
        }
        b.preds.push(slot);
        self.counts.links += 1;
    }

    /// Lets no slot lead to a block that is no longer there.
    pub(super) fn unlink(&self, b: &Block) {
        for slot in &b.preds {
            let at = *slot as usize;
            if self.arena.slot(at) != b.entry {
                continue;
            }
            let second = self.arena.slot(at + 8);
            if self.arena.is_code(second) {
                self.arena.set_slot(at, second);
            } else {
                self.arena.set_slot(at + 8, u64::MAX);
                self.arena.set_slot(at, 0);
            }
        }
    }
}

/// A block by number, to change it.
pub(super) fn block_mut(chunks: &mut [super::evict::Chunk], id: u32) -> Option<&mut Block> {
    let (chunk, n) = super::evict::place(id);
    chunks.get_mut(chunk).and_then(|c| c.blocks.get_mut(n)).and_then(|b| b.as_mut())
}
