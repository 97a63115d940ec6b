//! String instructions.
//!
//! Registers are committed after each element, so a fault or an interrupt leaves the instruction half done and
//! restartable. Each iteration counts as one instruction; the last one is counted by the end of the block.

use super::{Flow, HelperArgs, bulk, io};
use crate::env::{Cpu, Exec, Fault};
use crate::interp::{flags, segment_allows};
use crate::mmu::View;
use anura_x86::regs::rflags;
use std::sync::atomic::Ordering;

/// MOVS.
pub const MOVS: u8 = 0;
/// STOS.
pub const STOS: u8 = 1;
/// LODS.
pub const LODS: u8 = 2;
/// SCAS.
pub const SCAS: u8 = 3;
/// CMPS.
pub const CMPS: u8 = 4;
/// INS.
pub const INS: u8 = 5;
/// OUTS.
pub const OUTS: u8 = 6;

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// A string instruction in progress.
struct Run<'a> {
    a: &'a HelperArgs,
    mask: u64,
    step: u64,
    size: u64,
    down: bool,
}

impl Run<'_> {
    fn offset(&self, cpu: &Cpu, reg: u8) -> u64 {
        cpu.env.gpr[reg as usize] & self.mask
    }

    /// Linear address of an element through a segment, checked.
    fn linear(&self, cpu: &Cpu, seg: u8, reg: u8, write: bool) -> Exec<u64> {
        let off = self.offset(cpu, reg);
        let base = cpu.env.seg[seg as usize].base;
        if cpu.env.is_64bit() {
            return Ok(if seg >= 4 { off.wrapping_add(base) } else { off });
        }
        if !segment_allows(cpu, seg as usize, off, self.size, write) {
            return Err(if seg == 2 { Fault::SS0 } else { Fault::GP0 });
        }
        Ok(off.wrapping_add(base) & 0xffff_ffff)
    }

    fn source(&self, cpu: &Cpu) -> Exec<u64> {
        self.linear(cpu, self.a.reg2, RSI, false)
    }

    fn dest(&self, cpu: &Cpu, write: bool) -> Exec<u64> {
        self.linear(cpu, 0, RDI, write)
    }

    fn advance(&self, cpu: &mut Cpu, reg: u8, n: u64) {
        let v = self.offset(cpu, reg).wrapping_add(self.step.wrapping_mul(n));
        cpu.env.put_gpr(reg, self.a.asize, v);
    }

    /// One element; the flags are set by the comparing ones.
    fn element(&self, cpu: &mut Cpu, left: u64) -> Exec<u64> {
        let size = self.a.size;
        match self.a.reg {
            MOVS => {
                let (s, d) = (self.source(cpu)?, self.dest(cpu, true)?);
                let v = cpu.read_sized(s, size, View::Data)?;
                cpu.write_sized(d, v, size, View::Data)?;
                self.advance(cpu, RSI, 1);
                self.advance(cpu, RDI, 1);
            }
            STOS => {
                let d = self.dest(cpu, true)?;
                cpu.write_sized(d, cpu.env.gpr[RAX], size, View::Data)?;
                self.advance(cpu, RDI, 1);
            }
            LODS => {
                let s = self.source(cpu)?;
                let v = cpu.read_sized(s, size, View::Data)?;
                cpu.env.put_gpr(0, size, v);
                self.advance(cpu, RSI, 1);
            }
            SCAS => {
                let d = self.dest(cpu, false)?;
                let v = cpu.read_sized(d, size, View::Data)?;
                let a = cpu.env.gpr[RAX];
                self.compare(cpu, a, v);
                self.advance(cpu, RDI, 1);
            }
            CMPS => {
                let (s, d) = (self.source(cpu)?, self.dest(cpu, false)?);
                // AMD reads the destination first, which shows in which of two faults is taken.
                let amd = !cpu.vm.config.model.is_intel();
                let early = if amd { Some(cpu.read_sized(d, size, View::Data)?) } else { None };
                let x = cpu.read_sized(s, size, View::Data)?;
                let y = match early {
                    Some(y) => y,
                    None => cpu.read_sized(d, size, View::Data)?,
                };
                self.compare(cpu, x, y);
                self.advance(cpu, RSI, 1);
                self.advance(cpu, RDI, 1);
            }
            INS => {
                let d = self.dest(cpu, true)?;
                let left = left.min(self.room(cpu, 0, RDI, d)).max(1);
                let n = io::ins(cpu, d, size, left)?;
                self.advance(cpu, RDI, n);
                return Ok(n);
            }
            _ => {
                let s = self.source(cpu)?;
                let left = left.min(self.room(cpu, self.a.reg2, RSI, s)).max(1);
                let n = io::outs(cpu, s, size, left)?;
                self.advance(cpu, RSI, n);
                return Ok(n);
            }
        }
        Ok(1)
    }

    fn compare(&self, cpu: &mut Cpu, a: u64, b: u64) {
        let mask = if self.size == 8 { !0 } else { (1 << (self.size * 8)) - 1 };
        cpu.env.cc_op = flags::kind::SUB + self.size.trailing_zeros();
        cpu.env.cc_a = a.wrapping_sub(b) & mask;
        cpu.env.cc_b = b & mask;
    }

    /// How many elements from the present one on lie in one page, in the segment, and before the offset wraps.
    fn room(&self, cpu: &Cpu, seg: u8, reg: u8, va: u64) -> u64 {
        let (within, size) = (va & 0xfff, self.size);
        if within + size > 0x1000 {
            return 0;
        }
        let off = self.offset(cpu, reg);
        let by_page = if self.down { within / size + 1 } else { (0x1000 - within) / size };
        let mut last = self.mask;
        if !cpu.env.is_64bit() {
            let s = &cpu.env.seg[seg as usize];
            if !s.attr.is_code() && s.attr.is_expand_down() {
                return 0;
            }
            last = last.min(s.limit.into());
        }
        // The present element is inside.
        let by_offset =
            if self.down { off / size } else { last.saturating_sub(off).saturating_sub(size - 1) / size };
        by_page.min(by_offset.saturating_add(1))
    }

    /// The host address of the lowest of `n` elements, the first of which is at `va`.
    fn lowest<P>(&self, first: P, n: u64, sub: impl Fn(P, usize) -> P) -> P {
        let below = if self.down { (n - 1) * self.size } else { 0 };
        sub(first, below as usize)
    }

    /// Elements that lie in one page at both ends, all at once: how many; 0 if it must be done one by one.
    ///
    /// Faults are those of the first element, which is the only one that can fault.
    fn bulk(&self, cpu: &mut Cpu, left: u64) -> Exec<u64> {
        let kind = self.a.reg;
        if left < 2 || kind > CMPS {
            return Ok(0);
        }
        // Under alignment checks each element counts, and memory is not used in place.
        if cpu.env.mode_key & crate::mode::key::AC != 0 {
            return Ok(0);
        }
        let size = self.size;
        let (needs_source, needs_dest) = (matches!(kind, MOVS | LODS | CMPS), kind != LODS);
        let writes = matches!(kind, MOVS | STOS);
        let s = if needs_source { self.source(cpu)? } else { 0 };
        let d = if needs_dest { self.dest(cpu, writes)? } else { 0 };
        let mut n = left;
        if needs_source {
            n = n.min(self.room(cpu, self.a.reg2, RSI, s));
        }
        if needs_dest {
            n = n.min(self.room(cpu, 0, RDI, d));
        }
        if n < 2 {
            return Ok(0);
        }
        let mut from = None;
        let mut to = None;
        // RAM does not move while translations do, so the first pointer stays good.
        let read_dest_first = kind == CMPS && !cpu.vm.config.model.is_intel();
        if read_dest_first {
            to = cpu.read_ptr(d, size, View::Data)?.map(<*const u8>::cast_mut);
        }
        if needs_source {
            from = cpu.read_ptr(s, size, View::Data)?;
            if from.is_none() {
                return Ok(0);
            }
        }
        if writes {
            to = cpu.rmw_ptr(d, size, View::Data)?;
        } else if needs_dest && !read_dest_first {
            to = cpu.read_ptr(d, size, View::Data)?.map(<*const u8>::cast_mut);
        }
        if needs_dest && to.is_none() {
            return if writes { self.bulk_watched(cpu, from, d, n) } else { Ok(0) };
        }
        // SAFETY: the first element is in the page, and `room` says that the others are.
        let from = from.map(|p| self.lowest(p, n, |p, by| unsafe { p.sub(by) }));
        // SAFETY: as above.
        let to = to.map(|p| self.lowest(p, n, |p, by| unsafe { p.sub(by) }));
        let (count, bytes) = (n as usize, size as usize);
        let mut done = n;
        // SAFETY: the pointers are those of `n` elements of plain RAM, writable for the writing kinds.
        unsafe {
            match (kind, from, to) {
                (MOVS, Some(from), Some(to)) => bulk::copy(from, to, count, bytes, self.down),
                (STOS, _, Some(to)) => bulk::fill(to, count, bytes, cpu.env.gpr[RAX]),
                (SCAS | CMPS, _, Some(y)) => {
                    let a = cpu.env.gpr[RAX];
                    let (k, a, b) = bulk::find(from, a, y, count, bytes, self.down, self.a.rep == 2);
                    self.compare(cpu, a, b);
                    done = k as u64;
                }
                (LODS, Some(from), _) => {
                    let last = if self.down { from } else { from.add((n as usize - 1) * bytes) };
                    let mut element = [0; 8];
                    std::ptr::copy_nonoverlapping(last, element.as_mut_ptr(), bytes);
                    cpu.env.put_gpr(0, self.a.size, u64::from_le_bytes(element));
                }
                _ => return Ok(0),
            }
        }
        if needs_source {
            self.advance(cpu, RSI, done);
        }
        if needs_dest {
            self.advance(cpu, RDI, done);
        }
        Ok(done)
    }

    /// How many of `n` elements, the first of which is at `within` of its page, come before the first one that touches
    /// one of these granules.
    fn before(&self, granules: u64, within: u64, n: u64) -> u64 {
        let end = within + self.size;
        let room = if self.down {
            // Behind the last granule below the element's end.
            let below = granules & (u64::MAX >> (63 - ((end - 1) >> 6)));
            end.saturating_sub((64 - u64::from(below.leading_zeros())) * 64)
        } else {
            let above = granules & (u64::MAX << (within >> 6));
            (u64::from(above.trailing_zeros()) * 64).saturating_sub(within)
        };
        n.min(room / self.size)
    }

    /// MOVS and STOS to RAM that holds code or is logged: all at once, and whoever watches hears of it once. The caller
    /// has looked for faults. `from` is the first element of the source.
    ///
    /// Elements over code are left to be stored one by one: any may change this very instruction, which then is
    /// over.
    fn bulk_watched(&self, cpu: &mut Cpu, from: Option<*const u8>, d: u64, n: u64) -> Exec<u64> {
        let Some((ram, first)) = cpu.watched_ram(d)? else { return Ok(0) };
        let n = self.before(ram.tracker().code_granules(first), first & 0xfff, n);
        if n < 2 {
            return Ok(0);
        }
        let bytes = (n * self.size) as usize;
        let mut buf = [0; 0x1000];
        let buf = &mut buf[..bytes];
        let offset = self.lowest(first, n, |at, by| at - by as u64);
        match from {
            // SAFETY: `bulk` has found RAM for `n` elements of the source, and the buffer has room for them.
            Some(from) => unsafe {
                let from = self.lowest(from, n, |p, by| p.sub(by));
                let to = ram.host_ptr().as_ptr().add(offset as usize);
                // Onto itself: one by one.
                if (to as usize).abs_diff(from as usize) < bytes {
                    return Ok(0);
                }
                std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), bytes);
            },
            // SAFETY: the buffer has room for `n` elements.
            None => unsafe {
                bulk::fill(buf.as_mut_ptr(), n as usize, self.size as usize, cpu.env.gpr[RAX]);
            },
        }
        if !ram.write(offset, buf) {
            return Ok(0);
        }
        if from.is_some() {
            self.advance(cpu, RSI, n);
        }
        self.advance(cpu, RDI, n);
        Ok(n)
    }
}

/// No budget ends the next repeated instruction: for tests and benchmarks, which run it outside of a block.
pub fn unlimited(cpu: &mut Cpu) {
    cpu.t0.slack = u64::MAX >> 2;
}

/// REP MOVS and STOS upward in 64-bit code that stay in pages the TLB has: all at once. False if it is not that simple.
#[inline]
fn quick(cpu: &mut Cpu, a: &HelperArgs, count: u64) -> bool {
    let size = u64::from(a.size);
    let simple = a.asize == 8
        && cpu.env.is_64bit()
        && cpu.env.eflags_sys & rflags::DF == 0
        && count <= cpu.t0.iterations().min(0x1000 / size);
    if !simple || a.reg > STOS {
        return false;
    }
    let (n, bytes) = (count as usize, count * size);
    let d = cpu.env.gpr[RDI as usize];
    let Some(to) = cpu.try_write_ptr(d, bytes) else { return false };
    if a.reg == MOVS {
        let base = if a.reg2 >= 4 { cpu.env.seg[a.reg2 as usize].base } else { 0 };
        let s = cpu.env.gpr[RSI as usize];
        let Some(from) = cpu.try_read_ptr(s.wrapping_add(base), bytes) else { return false };
        // SAFETY: the TLB says that both are as many bytes of plain RAM, writable at the destination.
        unsafe { bulk::copy(from, to, n, a.size.into(), false) };
        cpu.env.gpr[RSI as usize] = s.wrapping_add(bytes);
    } else {
        // SAFETY: as above.
        unsafe { bulk::fill(to, n, a.size.into(), cpu.env.gpr[RAX]) };
    }
    cpu.env.gpr[RDI as usize] = d.wrapping_add(bytes);
    cpu.env.gpr[RCX] = 0;
    cpu.env.icount += count - 1;
    true
}

/// A string instruction: kind in `reg`, source segment in `reg2`.
pub fn string(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let size = u64::from(a.size);
    let down = cpu.env.eflags_sys & rflags::DF != 0;
    let mask = match a.asize {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    };
    let run = Run { a, mask, step: if down { size.wrapping_neg() } else { size }, size, down };
    if a.rep == 0 {
        run.element(cpu, 1)?;
        return Ok(Flow::Next);
    }
    let count = cpu.env.gpr[RCX] & mask;
    if count == 0 {
        if a.asize == 4 && cpu.env.is_64bit() && cpu.vm.config.model.is_intel() {
            cpu.env.put_gpr(1, 4, 0);
        }
        return Ok(Flow::Next);
    }
    if quick(cpu, a, count) {
        return Ok(Flow::Next);
    }
    // What the budget leaves for this instruction, the rest of the block already paid for.
    let mut allowed = cpu.t0.iterations();
    let mut left = count;
    let epoch = cpu.mmu.exec_epoch;
    loop {
        let may = left.min(allowed);
        let done = match run.bulk(cpu, may)? {
            0 => run.element(cpu, may)?,
            n => n,
        };
        left -= done;
        allowed -= done;
        cpu.env.put_gpr(1, a.asize, left);
        let stop = match (a.reg, a.rep) {
            (SCAS | CMPS, 1) => cpu.env.cc_a != 0,
            (SCAS | CMPS, _) => cpu.env.cc_a == 0,
            _ => false,
        };
        if left == 0 || stop {
            cpu.env.icount += done - 1;
            return Ok(Flow::Next);
        }
        cpu.env.icount += done;
        if allowed == 0
            || cpu.signal.poll.load(Ordering::Relaxed) != 0
            || cpu.env.pending_db != 0
            || cpu.mmu.exec_epoch != epoch
            || cpu.code_dirty()
        {
            return Ok(Flow::Again);
        }
    }
}
