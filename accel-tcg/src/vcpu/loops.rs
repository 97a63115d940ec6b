//! Which blocks make up a loop.
//!
//! From the target of a jump back, everything in its page that leads there again by jumps to constant places. What
//! else the blocks lead to is outside.

use super::SoftVcpu;
use super::build::{Refused, Sources};
use crate::ir::Block;
use crate::jit::region;
use crate::mmu::ExecPage;
use crate::mode::key;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks of a loop at most, and their instructions together.
const PARTS: usize = 16;
const INSNS: usize = 256;

impl SoftVcpu {
    /// The parts of the loop whose head is at `head`, in the present mode; the head is the first one. `page` is its
    /// page.
    pub(super) fn loop_at(&mut self, page: ExecPage, head: u64) -> Option<(Vec<Block>, Sources)> {
        if self.cpu.env.mode_key & (key::L64 | key::CS_FLAT) == 0 {
            return None;
        }
        let mut blocks: BTreeMap<u64, Block> = BTreeMap::new();
        let mut sources = None;
        let mut insns = 0;
        let mut wanted = vec![head];
        while let Some(rip) = wanted.pop() {
            if blocks.contains_key(&rip) || blocks.len() >= PARTS || insns >= INSNS {
                continue;
            }
            let Ok((block, from)) = self.part(page, rip, 64) else { continue };
            insns += block.insns.len();
            sources.get_or_insert(from);
            wanted.extend(region::successors(&block).filter(|s| (s ^ head) >> 12 == 0));
            blocks.insert(rip, block);
        }
        // A block that runs into another one ends there.
        let starts: BTreeSet<u64> = blocks.keys().copied().collect();
        for rip in &starts {
            let block = &blocks[rip];
            let cut = block.insns.iter().skip(1).position(|i| starts.contains(&(rip + u64::from(i.off))));
            if let Some(n) = cut
                && let Ok((block, _)) = self.part(page, *rip, n + 1)
            {
                blocks.insert(*rip, block);
            }
        }
        // Only what leads to the head belongs to the loop.
        let mut inside = BTreeSet::new();
        loop {
            let leads = |b: &Block| region::successors(b).any(|s| s == head || inside.contains(&s));
            let more: Vec<u64> =
                blocks.iter().filter(|(r, b)| !inside.contains(*r) && leads(b)).map(|(r, _)| *r).collect();
            if more.is_empty() {
                break;
            }
            inside.extend(more);
        }
        if !inside.contains(&head) {
            return None;
        }
        blocks.retain(|r, _| inside.contains(r));
        let mut parts = vec![blocks.remove(&head)?];
        parts.extend(blocks.into_values());
        Some((parts, sources?))
    }

    fn part(&mut self, page: ExecPage, rip: u64, max: usize) -> Result<(Block, Sources), Refused> {
        let host = page.host as usize + (rip & 0xfff) as usize;
        let made = self.build(host, page, (rip, rip), max)?;
        if made.second.is_some() || made.sources.len() != 1 {
            return Err(Refused::Device);
        }
        Ok((made.block, made.sources))
    }
}
