//! String instructions.
//!
//! Registers are committed after each element, so a fault or an interrupt leaves the instruction half done and
//! restartable. Each iteration counts as one instruction; the last one is counted by the end of the block.

use super::{Flow, HelperArgs, io};
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
                let n = io::ins(cpu, d, size, left)?;
                self.advance(cpu, RDI, n);
                return Ok(n);
            }
            _ => {
                let s = self.source(cpu)?;
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

    /// As many elements as lie in one page at both ends, moved or filled at once; 0 if it cannot be done so.
    fn bulk(&self, cpu: &mut Cpu, left: u64) -> Exec<u64> {
        if self.step != self.size || !matches!(self.a.reg, MOVS | STOS) || left < 2 {
            return Ok(0);
        }
        // Under alignment checks each element counts, and memory is not used in place.
        if cpu.env.mode_key & crate::mode::key::AC != 0 {
            return Ok(0);
        }
        // Segments with limits and address wraps go one by one.
        let end = |off: u64| self.mask - off >= left.min(4096).wrapping_mul(self.size);
        if !end(self.offset(cpu, RDI)) || (self.a.reg == MOVS && !end(self.offset(cpu, RSI))) {
            return Ok(0);
        }
        let flat = cpu.env.is_64bit() || cpu.env.mode_key & crate::mode::key::FLAT != 0;
        if !flat {
            return Ok(0);
        }
        let d = self.dest(cpu, true)?;
        let room = |va: u64| (0x1000 - (va & 0xfff)) / self.size;
        let mut n = left.min(room(d));
        if self.a.reg == STOS {
            if n < 2 {
                return Ok(0);
            }
            let Some(p) = cpu.rmw_ptr(d, n * self.size, View::Data)? else { return Ok(0) };
            let v = cpu.env.gpr[RAX].to_le_bytes();
            for k in 0..n as usize {
                // SAFETY: the pointer covers `n` elements of plain RAM.
                unsafe {
                    match self.size {
                        1 => p.add(k).write(v[0]),
                        2 => p.add(k * 2).cast::<[u8; 2]>().write([v[0], v[1]]),
                        4 => p.add(k * 4).cast::<[u8; 4]>().write([v[0], v[1], v[2], v[3]]),
                        _ => p.add(k * 8).cast::<[u8; 8]>().write(v),
                    }
                }
            }
            self.advance(cpu, RDI, n);
            return Ok(n);
        }
        let s = self.source(cpu)?;
        n = n.min(room(s));
        if n < 2 {
            return Ok(0);
        }
        let bytes = n * self.size;
        let Some(from) = cpu.read_ptr(s, bytes, View::Data)? else { return Ok(0) };
        let Some(to) = cpu.rmw_ptr(d, bytes, View::Data)? else { return Ok(0) };
        // The probe for writing may have moved the other translation; RAM does not move.
        let distance = (to as usize).wrapping_sub(from as usize) as u64;
        if distance < bytes && distance != 0 {
            // A forward copy onto itself repeats the pattern: element by element, as the processor does.
            let size = self.size as usize;
            for k in 0..n as usize {
                // SAFETY: both pointers cover `n` elements.
                unsafe { std::ptr::copy(from.add(k * size), to.add(k * size), size) };
            }
        } else {
            // SAFETY: both pointers cover `bytes` bytes of RAM; `copy` allows any overlap.
            unsafe { std::ptr::copy(from, to, bytes as usize) };
        }
        self.advance(cpu, RSI, n);
        self.advance(cpu, RDI, n);
        Ok(n)
    }
}

/// No budget ends the next repeated instruction: for tests and benchmarks, which run it outside of a block.
pub fn unlimited(cpu: &mut Cpu) {
    cpu.t0.slack = u64::MAX >> 2;
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
    let run = Run { a, mask, step: if down { size.wrapping_neg() } else { size }, size };
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
