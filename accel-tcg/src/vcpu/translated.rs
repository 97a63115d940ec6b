//! Running translated code, and finding and making it.

use super::SoftVcpu;
use super::build::Refused;
use crate::cache::Cache;
use crate::env::Fault;
use crate::interp::t0::Exit;
use crate::jit::{Jump, code as leave, cpu_time};
use crate::mmu::ExecPage;
use crate::mode::key;
use crate::show;
use anura_accel::{InternalError, VcpuExit};
use anura_x86::regs::rflags;
use std::sync::atomic::Ordering;

/// Instructions that code which counts runs at most before it looks whether somebody wants attention.
const PIECE: u64 = 1 << 16;

/// The time of one in so many translations is taken, since to read the clock is dear.
const SAMPLE: u64 = 16;

impl SoftVcpu {
    /// Runs translated code until something leaves to the loop.
    pub(super) fn translated(&mut self, cache: &mut Cache, limit: u64) -> Option<VcpuExit> {
        let counted = self.jit.as_ref().is_some_and(|j| j.options.counted);
        let limit = if counted { limit.min(self.cpu.env.icount.saturating_add(PIECE)) } else { limit };
        self.cpu.t0.limit = limit;
        let mut from: Option<(u32, bool)> = None;
        loop {
            if self.cpu.jit.chaos.any() {
                if self.disturb(cache) {
                    from = None;
                }
                if self.cpu.jit.chaos.one_in(16) {
                    return self.one(cache, true);
                }
            }
            let epoch = self.cpu.t0.epoch;
            let dropped = self.jit.as_ref()?.dropped;
            let (id, entry) = match self.find(cache) {
                Ok(Some(found)) => found,
                // Memory that is neither RAM nor ROM, mostly.
                Ok(None) => return self.one(cache, true),
                Err(e) => return self.refused(e),
            };
            let jit = self.jit.as_mut()?;
            jit.counts.entries += 1;
            let log = self.cpu.jit.log;
            if log.each_block() {
                from = None;
                let n = jit.block(id)?.n;
                let room = !jit.options.counted || limit - self.cpu.env.icount >= n.into();
                if room {
                    show::entered(log, &self.cpu, (id, entry, n));
                }
            }
            // A link inside of a page is good for as long as the page's bytes are; one that leaves it, or leads to a
            // block of two pages, for as long as the mapping is.
            if let Some((slot, far)) = from.take()
                && epoch == self.cpu.t0.epoch
                && dropped == jit.dropped
                && (far || jit.block(id)?.second().is_none())
            {
                let (epochs, rip) = (self.cpu.env.jit.epoch, self.cpu.env.rip);
                jit.link(slot, far.then_some(epochs[(rip >> 63) as usize]), id);
            }
            let env = &mut self.cpu.env;
            env.jit.budget = limit.wrapping_sub(env.icount) as i64;
            let (shadow, before) = (std::mem::take(&mut env.shadow), env.icount);
            // Without breakpoints that it could hold back, RF only has to be gone after the next instruction.
            let resume = env.eflags_sys & rflags::RF;
            env.eflags_sys &= !rflags::RF;
            jit.enter(&mut self.cpu, entry);
            let exit = self.cpu.env.jit.exit as u32;
            let code = exit & 7;
            if (code <= leave::LINK_FAR || code >= leave::BUDGET) && jit.options.counted {
                self.cpu.env.icount = limit.wrapping_sub(self.cpu.env.jit.budget as u64);
            }
            if code == leave::BUDGET && self.cpu.env.icount == before {
                // Nothing ran.
                self.cpu.env.shadow = shadow;
                self.cpu.env.eflags_sys |= resume;
            }
            match code {
                leave::LOOKUP => {}
                leave::LINK | leave::LINK_FAR => from = Some((exit & !7, code == leave::LINK_FAR)),
                leave::BAIL => {
                    let Some(counted) = jit.settle(&mut self.cpu) else {
                        return Some(self.broken("translated code was left at an unknown place"));
                    };
                    if jit.options.counted {
                        let left = self.cpu.env.jit.budget as u64;
                        self.cpu.env.icount = limit.wrapping_sub(left).wrapping_sub(counted.into());
                    }
                    if self.cpu.jit.panic.is_some() {
                        return Some(self.broken(""));
                    }
                    // A page fault is known to be the instruction's first. What else there may be is the
                    // interpreter's business.
                    let Some(f) = self.cpu.jit.fault.take() else { return self.one(cache, true) };
                    self.cpu.t0.counts.faults += 1;
                    let exit = self.fault(f);
                    if exit.is_some() || !self.cpu.undisturbed() {
                        return exit;
                    }
                }
                leave::LEFT => {
                    if self.cpu.jit.panic.is_some() {
                        return Some(self.broken(""));
                    }
                    let exit = self.left();
                    if exit.is_some() || !self.cpu.undisturbed() {
                        return exit;
                    }
                    if self.cpu.env.jit.unsure != 0 {
                        self.confirm(cache);
                    }
                }
                leave::HOT => {
                    self.hot(cache);
                    if !self.cpu.undisturbed() {
                        return None;
                    }
                }
                leave::POLL if self.cpu.undisturbed() => {}
                _ => return None,
            }
            if self.cpu.signal.poll.load(Ordering::Relaxed) != 0
                || self.cpu.code_dirty()
                || self.cpu.env.icount >= limit
            {
                return None;
            }
            if self.by_blocks && self.cpu.env.icount != before {
                return Some(VcpuExit::BudgetSpent);
            }
        }
    }

    /// Accidents between blocks. `true`: nothing is to be linked.
    #[cold]
    pub(super) fn disturb(&mut self, cache: &mut Cache) -> bool {
        if self.cpu.jit.chaos.one_in(32) {
            self.cpu.mmu.flush_all();
            return true;
        }
        if self.cpu.jit.chaos.one_in(50_000) {
            self.forget(cache);
            return true;
        }
        self.cpu.jit.chaos.one_in(2)
    }

    /// What a helper or an interpreted instruction has left behind.
    pub(super) fn left(&mut self) -> Option<VcpuExit> {
        match self.cpu.t0.exit {
            Exit::Fault(_) => self.faulted(),
            _ => self.finish(),
        }
    }

    pub(super) fn broken(&mut self, what: &str) -> VcpuExit {
        let what = self.cpu.jit.panic.take().unwrap_or_else(|| what.to_owned());
        VcpuExit::Failed(InternalError { what: format!("engine failure: {what}"), rip: self.cpu.env.rip })
    }

    /// The translated block at RIP, its number and its code, made if there is none; `None` where there is no RAM or ROM,
    /// and where the first instruction is more than fits.
    pub(super) fn find(&mut self, cache: &mut Cache) -> Result<Option<(u32, u64)>, Refused> {
        let cpu = &mut *self.cpu;
        let rip = cpu.env.rip;
        let mode = cpu.env.mode_key;
        let epochs = cpu.mmu.epochs();
        let tag = epochs[(rip >> 63) as usize] << 24 | u64::from(mode);
        let known = self.cpu.jump(rip);
        let cpu = &mut *self.cpu;
        if let Some(known) = known
            && known.tag == tag
        {
            cpu.announce();
            return Ok(Some((known.id(), known.code)));
        }
        let flat = mode & (key::L64 | key::CS_FLAT) != 0;
        let mut limit = u64::MAX;
        if mode & key::CS_FLAT == 0 {
            limit = u64::from(cpu.env.seg[anura_x86::segment::index::CS].limit);
            if rip > limit {
                return Err(Refused::Fault(Fault::GP0));
            }
        }
        let linear = cpu.env.linear_rip();
        let page = cpu.translate_exec(linear)?;
        cpu.t0.epoch = cpu.mmu.exec_epoch;
        if page.host.is_null() {
            return Ok(None);
        }
        if let Some(mut known) = known
            && (known.tag ^ tag) as u32 & key::ALL == 0
            && known.is_in(page.host)
        {
            // The same code in another address space.
            cpu.announce();
            known.tag = cpu.env.jit.tag[(rip >> 63) as usize];
            self.cpu.set_jump(known);
            return Ok(Some((known.id(), known.code)));
        }
        let host = page.host as usize + (linear & 0xfff) as usize;
        let jit = self.jit.as_mut().ok_or(Refused::Device)?;
        jit.counts.lookups += 1;
        let mut found = jit.find(host, rip, mode);
        if let Some(b) = found.and_then(|id| jit.block(id)) {
            if u64::from(b.len.max(1)) - 1 > limit - rip {
                found = None;
            }
            if let Some(second) = b.second() {
                let next = (linear & !0xfff).wrapping_add(0x1000);
                let now = cpu.translate_exec(next)?;
                if now.host as usize != second {
                    found = None;
                }
            }
        }
        let id = match found {
            Some(id) => id,
            None => match self.translate(cache, host, page, linear)? {
                Some(id) => id,
                None => return Ok(None),
            },
        };
        let cpu = &mut self.cpu;
        cpu.announce();
        let tag = cpu.env.jit.tag[(rip >> 63) as usize];
        let linked = !cpu.jit.log.each_block();
        // Another processor may have written to it since.
        let Some(b) = self.jit.as_ref().and_then(|j| j.block(id)) else { return Err(Refused::Changed) };
        let code = b.entry;
        if flat && linked {
            let only = b.second().is_none().then_some(host);
            cpu.set_jump(Jump::new(rip, tag, code, id, only));
        }
        Ok(Some((id, code)))
    }

    /// Looks at the target of a jump back, of which many were counted: if it is the head of a loop, this is translated
    /// again as a whole. RIP is there.
    #[cold]
    fn hot(&mut self, cache: &mut Cache) {
        self.cpu.env.jit.hot = self.jumps_back;
        let linear = self.cpu.env.linear_rip();
        let (rip, mode) = (self.cpu.env.rip, self.cpu.env.mode_key);
        let Ok(page) = self.cpu.translate_exec(linear) else { return };
        if page.host.is_null() || rip != linear || self.longest < 64 || self.cpu.jit.log.shows_blocks() {
            return;
        }
        let host = page.host as usize + (linear & 0xfff) as usize;
        let Some(jit) = &mut self.jit else { return };
        if jit.functions != cache.functions || !jit.heat(host, rip, mode) {
            return;
        }
        let start = cpu_time().saturating_sub(jit.counts.making_room);
        let Some((parts, sources)) = self.loop_at(page, rip) else { return };
        let Some(jit) = &mut self.jit else { return };
        jit.add_region(&parts, mode, &sources, cache.arena.as_mut(), &mut self.cpu);
        jit.counts.time += cpu_time().saturating_sub(jit.counts.making_room + start);
        self.settle_bare(cache);
        self.catch_up(cache);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn translate(
        &mut self,
        cache: &mut Cache,
        host: usize,
        page: ExecPage,
        linear: u64,
    ) -> Result<Option<u32>, Refused> {
        let stale = self.jit.as_ref().is_some_and(|j| j.functions != cache.functions);
        if stale || cache.functions_full() {
            self.forget(cache);
            if let Some(jit) = &mut self.jit {
                jit.functions = cache.functions;
            }
        }
        let sampled = self.jit.as_ref().filter(|j| j.counts.blocks.is_multiple_of(SAMPLE));
        let watch = sampled.map(|j| cpu_time().saturating_sub(j.counts.making_room));
        let mut longest = self.longest;
        let id = loop {
            let made = self.build(host, page, (linear, self.cpu.env.rip), longest)?;
            let mode = self.cpu.env.mode_key;
            let jit = self.jit.as_mut().ok_or(Refused::Device)?;
            let second = made.second.map(|s| s as usize);
            let functions = cache.arena.as_mut();
            let id = jit.add(&made.block, mode, second, &made.sources, functions, &mut self.cpu);
            longest = made.block.insns.len() / 2;
            self.workshop.spare = made.block;
            if id.is_some() || longest == 0 {
                break id;
            }
        };
        if let (Some(jit), Some(start)) = (&mut self.jit, watch) {
            let taken = cpu_time().saturating_sub(jit.counts.making_room + start);
            jit.counts.time += taken * SAMPLE as u32;
        }
        self.settle_bare(cache);
        self.catch_up(cache);
        Ok(id)
    }
}
