//! Running blocks by the interpreter, and finding and making them.

use super::build::Refused;
use super::{SINGLE, SoftVcpu};
use crate::cache::Cache;
use crate::env::Fault;
use crate::frontend::blocks;
use crate::interp::enter;
use crate::interp::lower::lower;
use crate::interp::t0::{Code, Exit, Jump, State};
use crate::mmu::ExecPage;
use crate::mode::key;
use anura_accel::VcpuExit;
use std::sync::atomic::Ordering;

impl SoftVcpu {
    /// Runs blocks until something leaves to the loop.
    pub(super) fn many(&mut self, cache: &mut Cache, limit: u64) -> Option<VcpuExit> {
        self.cpu.t0.limit = limit;
        let mut from: Option<(*const Code, u8)> = None;
        loop {
            let code = match self.lookup(cache, 64, 0) {
                Ok(c) => c,
                Err(e) => return self.refused(e),
            };
            if let Some((pred, n)) = from.take() {
                // SAFETY: `code` was just found; it lives until the cache is emptied.
                let c = unsafe { &*code };
                // SAFETY: `pred` ran just now and no code was freed since.
                let p = unsafe { &*pred };
                // With a CS base the same page of RIPs may be two pages of memory, or end earlier.
                let direct = c.key & (key::L64 | key::CS_FLAT) != 0 && c.pa2.is_none();
                // Two addresses of one page come and go by themselves.
                let same_page = (c.host ^ p.host) >> 12 == 0 && (c.rip ^ p.rip) >> 12 == 0;
                if direct && c.key == p.key && same_page && !self.cpu.code_dirty() {
                    cache.link(pred, n.into(), code);
                    self.cpu.t0.counts.links += 1;
                }
            }
            self.execute(code);
            match self.cpu.t0.exit {
                Exit::Lookup => {}
                Exit::Link(n) => {
                    let generation = cache.generation;
                    from = Some((self.cpu.t0.block, n));
                    if cache.full() {
                        from = None;
                    }
                    debug_assert_eq!(generation, cache.generation);
                }
                _ => return self.finish(),
            }
            // The look at the next block may mark page tables, so it waits for a budget that has room.
            if self.cpu.signal.poll.load(Ordering::Relaxed) != 0
                || self.cpu.code_dirty()
                || self.cpu.env.icount >= limit
            {
                return None;
            }
        }
    }

    #[inline]
    pub(super) fn execute(&mut self, code: *const Code) {
        let cpu = &mut self.cpu;
        cpu.t0.leave = false;
        // SAFETY: `code` is live, made for the current mode and found for the current RIP; the cache is locked by
        // our caller, so nothing is freed while operations run.
        unsafe {
            let mut op = enter(cpu, code);
            while !op.is_null() {
                op = ((*op).run)(cpu, op);
            }
        }
    }

    /// Like `execute`, whatever `poll` says: the boundary before this instruction has been dealt with.
    pub(super) fn execute_single(&mut self, code: *const Code) {
        let cpu = &mut self.cpu;
        cpu.t0.leave = false;
        cpu.t0.block = code;
        // SAFETY: as in `execute`.
        unsafe {
            let mut op = (*code).entry.get();
            while !op.is_null() {
                op = ((*op).run)(cpu, op);
            }
        }
    }

    /// The code at RIP, made if there is none.
    pub(super) fn lookup(
        &mut self,
        cache: &mut Cache,
        max: usize,
        bits: u32,
    ) -> Result<*const Code, Refused> {
        let cpu = &mut self.cpu;
        cpu.t0.counts.lookups += 1;
        let rip = cpu.env.rip;
        let mode = cpu.env.mode_key;
        let mut limit = u64::MAX;
        if mode & key::CS_FLAT == 0 {
            let cs = &cpu.env.seg[anura_x86::segment::index::CS];
            limit = u64::from(cs.limit);
            if cpu.t0.cs != (cs.base, cs.limit) {
                cpu.t0.cs = (cs.base, cs.limit);
                cpu.t0.cs_changes += 1;
            }
            if rip > limit {
                return Err(Refused::Fault(Fault::GP0));
            }
        }
        let linear = cpu.env.linear_rip();
        // The walk may find a changed memory map, so the tag comes after it.
        let page = cpu.translate_exec(linear)?;
        let epoch = cpu.mmu.exec_epoch.wrapping_add(cpu.t0.cs_changes);
        cpu.t0.tag = (epoch & 0xffff_ffff) << 32 | u64::from(mode);
        cpu.t0.epoch = cpu.mmu.exec_epoch;
        if page.host.is_null() {
            return self.device_code(page, linear, mode);
        }
        let host = page.host as usize + (linear & 0xfff) as usize;
        let id = mode | bits;
        let mut found = cache.find(host, rip, id);
        if let Some(c) = found {
            // SAFETY: the index holds live codes.
            let code = unsafe { &*c };
            if u64::from(code.len.max(1)) - 1 > limit - rip {
                found = None;
            }
            if let Some(second) = code.pa2 {
                let next = (linear & !0xfff).wrapping_add(0x1000);
                let now = cpu.translate_exec(next)?;
                if now.host as u64 != second {
                    found = None;
                }
            }
        }
        let code = match found {
            Some(c) => c,
            None => self.make(cache, host, page, linear, id, max)?,
        };
        let cpu = &mut self.cpu;
        if bits == 0 {
            cpu.t0.jumps[State::jump_index(rip)] = Jump { rip, tag: cpu.t0.tag, code };
        }
        Ok(code)
    }

    /// Code at a place that is neither RAM nor ROM: one instruction, used once.
    #[cold]
    #[inline(never)]
    pub(super) fn device_code(
        &mut self,
        page: ExecPage,
        linear: u64,
        mode: u32,
    ) -> Result<*const Code, Refused> {
        let cpu = &mut self.cpu;
        let within = linear & 0xfff;
        let who = cpu.requester();
        cpu.sync_clock();
        let mut bytes = [0; 15];
        let n = bytes.len().min(0x1000 - within as usize);
        let _ = cpu.mmu.memory.view().read_bytes(page.phys | within, &mut bytes[..n], who);
        let rip = cpu.env.rip;
        // What would cross into the next page does not complete, which no working guest tries.
        let second = || -> Result<[u8; 15], Fault> { Ok([0xff; 15]) };
        let built = blocks::build(&bytes[..n], second, (0, rip, mode), &self.features, 1)?;
        // Without an arena: what needs the host is undefined there.
        let code = lower(&built.block, None, mode | SINGLE, Some(0));
        Ok(&raw const **self.cpu.t0.passing.insert(code))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn make(
        &mut self,
        cache: &mut Cache,
        host: usize,
        page: ExecPage,
        linear: u64,
        id: u32,
        max: usize,
    ) -> Result<*const Code, Refused> {
        if cache.functions_full() {
            self.forget(cache);
        } else if cache.full() {
            self.forget_codes(cache);
        }
        self.cpu.t0.counts.built += 1;
        let made = self.build(host, page, (linear, self.cpu.env.rip), max)?;
        let code = lower(&made.block, cache.arena.as_mut(), id, made.second);
        let code = cache.add(host, id, code, &made.sources);
        self.workshop.spare = made.block;
        self.catch_up(cache);
        Ok(code)
    }
}
