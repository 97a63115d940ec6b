//! IN and OUT with their permissions, and the block forms.
use super::{Flow, HelperArgs};
use crate::env::{Cpu, Exec, Fault};
use crate::mmu::View;
use crate::mode::key;
use anura_vmcore::Width;
use anura_x86::desc::{system, tss32};
use anura_x86::regs::{cr0, cr4, dr7, rflags};
use std::sync::atomic::Ordering;

fn width(size: u8) -> Width {
    match size {
        1 => Width::W1,
        2 => Width::W2,
        _ => Width::W4,
    }
}

impl Cpu {
    /// #GP(0) unless IOPL or the I/O bitmap allows the port (vol. 1, 19.5).
    pub fn check_port(&mut self, port: u16, size: u8) -> Exec<()> {
        let env = &self.env;
        let iopl = (env.eflags_sys & rflags::IOPL) >> rflags::IOPL_SHIFT;
        let v86 = env.mode_key & key::V86 != 0;
        if env.cr0 & cr0::PE == 0 || !v86 && u64::from(env.cpl()) <= iopl {
            return Ok(());
        }
        let tr = env.tr;
        let limit = u64::from(tr.limit);
        if tr.attr.kind() & !2 != system::TSS || limit < tss32::MIN_LIMIT.into() {
            return Err(Fault::GP0);
        }
        let map = self.read_u16(tr.base.wrapping_add(tss32::IO_MAP), View::Super)?;
        let at = u64::from(map) + u64::from(port >> 3);
        if at + 1 > limit {
            return Err(Fault::GP0);
        }
        let bits = self.read_u16(tr.base.wrapping_add(at), View::Super)?;
        let mask = (1u16 << size) - 1;
        if bits >> (port & 7) & mask != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    /// Reads a port that was checked.
    pub fn port_in(&mut self, port: u16, size: u8) -> u64 {
        self.sync_clock();
        let who = self.requester();
        let value = self.mmu.ports.read(port.into(), width(size), who).0;
        self.refresh_views();
        self.port_breakpoint(port, size);
        value
    }

    /// Writes a port that was checked.
    pub fn port_out(&mut self, port: u16, size: u8, value: u64) {
        self.sync_clock();
        let who = self.requester();
        let w = width(size);
        let _ = self.mmu.ports.write(port.into(), w, value & w.mask(), who);
        self.refresh_views();
        self.port_breakpoint(port, size);
    }

    /// After an I/O instruction: on to the next one, unless something waits.
    fn after_io(&self, epoch: u64) -> Flow {
        let calm = self.signal.poll.load(Ordering::Relaxed) == 0
            && self.mmu.exec_epoch == epoch
            && self.env.pending_db == 0;
        if calm { Flow::Next } else { Flow::EndBlock }
    }

    fn port_breakpoint(&mut self, port: u16, size: u8) {
        let d = self.env.dr7;
        if d & dr7::ENABLES == 0 || self.env.cr4 & cr4::DE == 0 {
            return;
        }
        let (first, end) = (u64::from(port), u64::from(port) + u64::from(size));
        for n in 0..4 {
            let len = dr7::len(d, n);
            let base = self.env.dr[n] & !(len - 1);
            let hit = first < base.saturating_add(len) && base < end;
            if dr7::enabled(d, n) && dr7::kind(d, n) == dr7::Kind::Io && hit {
                self.env.pending_db |= 1 << n;
            }
        }
    }
}

/// IN: port `a`.
pub fn in_(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let port = a.a as u16;
    cpu.check_port(port, a.size)?;
    let epoch = cpu.mmu.exec_epoch;
    let value = cpu.port_in(port, a.size);
    cpu.env.put_gpr(0, a.size, value);
    Ok(cpu.after_io(epoch))
}

/// OUT: port `a`, value `b`.
pub fn out(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let port = a.a as u16;
    cpu.check_port(port, a.size)?;
    let epoch = cpu.mmu.exec_epoch;
    cpu.port_out(port, a.size, a.b);
    Ok(cpu.after_io(epoch))
}

/// Bytes that one bulk call moves at most, so that interrupts are not kept waiting.
const BULK: u64 = 4096;

/// How many elements of a block transfer may go in one call: those of this page, upward,
/// in RAM that can be used in place. 0 says: one at a time.
fn bulk_count(cpu: &Cpu, linear: u64, size: u8, left: u64) -> u64 {
    let down = cpu.env.eflags_sys & rflags::DF != 0;
    // Alignment is checked for each element.
    let checked = cpu.env.mode_key & crate::mode::key::AC != 0;
    if down || left < 2 || cpu.vm.config.counted || checked {
        return 0;
    }
    let room = (0x1000 - (linear & 0xfff)).min(BULK) / u64::from(size);
    let count = room.min(left);
    if count < 2 { 0 } else { count }
}

/// INS to linear address `linear`, at most `left` elements: how many were moved (at least one).
/// The caller advances RDI and RCX, after each call, and looks for events.
pub fn ins(cpu: &mut Cpu, linear: u64, size: u8, left: u64) -> Exec<u64> {
    let port = cpu.env.gpr[2] as u16;
    cpu.check_port(port, size)?;
    let count = bulk_count(cpu, linear, size, left);
    let bytes = (count * u64::from(size)) as usize;
    if count != 0 && cpu.rmw_ptr(linear, bytes as u64, View::Data)?.is_some() {
        let mut buf = [0; BULK as usize];
        cpu.sync_clock();
        let who = cpu.requester();
        let buf = &mut buf[..bytes];
        let _ = cpu.mmu.ports.view().read_bulk(port.into(), width(size), buf, who);
        cpu.refresh_views();
        cpu.port_breakpoint(port, size);
        cpu.store(linear, buf, View::Data)?;
        return Ok(count);
    }
    // The store is known to succeed before the port is read, which may have side effects.
    cpu.probe_write(linear, size.into(), View::Data)?;
    let value = cpu.port_in(port, size);
    cpu.write_sized(linear, value, size, View::Data)?;
    Ok(1)
}

/// OUTS from linear address `linear`, at most `left` elements: how many were moved.
pub fn outs(cpu: &mut Cpu, linear: u64, size: u8, left: u64) -> Exec<u64> {
    let port = cpu.env.gpr[2] as u16;
    cpu.check_port(port, size)?;
    let count = bulk_count(cpu, linear, size, left);
    let bytes = (count * u64::from(size)) as usize;
    if count != 0 && cpu.read_ptr(linear, bytes as u64, View::Data)?.is_some() {
        let mut buf = [0; BULK as usize];
        let buf = &mut buf[..bytes];
        cpu.load(linear, buf, View::Data)?;
        cpu.sync_clock();
        let who = cpu.requester();
        let _ = cpu.mmu.ports.view().write_bulk(port.into(), width(size), buf, who);
        cpu.refresh_views();
        cpu.port_breakpoint(port, size);
        return Ok(count);
    }
    let value = cpu.read_sized(linear, size, View::Data)?;
    cpu.port_out(port, size, value);
    Ok(1)
}
