//! Runs opaque instructions in portable code: where the host has not the instruction, allows no executable memory, or
//! would do it differently; and everywhere with `ANURA_NO_THUNK` in the environment.

use super::flags;
use super::thunk::Opaque;
use crate::env::{Cpu, Fault};
use crate::mmu::View;
use crate::mode::key;
use crate::mutants;
use crate::vector::{Insn, Regs, Stop};
use anura_x86::regs::vector;

/// Runs one; true if memory was reached the slow way.
pub(super) fn run(
    cpu: &mut Cpu,
    t: &Opaque,
    i: &Insn,
    va: u64,
    view: View,
    aligned: bool,
    insn: u8,
) -> Result<bool, Fault> {
    let len = usize::from(t.mem);
    if t.waits {
        // An exception of before that waits: #MF, or with CR0.NE clear the FERR pin and on we go.
        let (fcw, fsw) = (cpu.env.fpu.fcw(), cpu.env.fpu.fsw());
        if (fsw & 0x80 != 0 || fsw & !fcw & 0x3f != 0) && !mutants::on(mutants::M_WAIT) {
            cpu.x87_error()?;
        }
    }
    if aligned && !mutants::on(mutants::M_ALIGN) && va & (len as u64).wrapping_sub(1) != 0 {
        return Err(Fault::GP0);
    }
    let mut mem = [0; 128];
    let buf = &mut mem[..len];
    if len != 0 {
        if t.write {
            cpu.probe_write(va, len, view)?;
        }
        if t.read {
            cpu.env.insn_in_block = u64::from(insn) + 1;
            cpu.load(va, buf, view)?;
        }
    }
    let pointers = [8, 16].map(|at| cpu.env.fpu.u64_at(at));
    let flags_before = flags::get(&cpu.env);
    let key_bits = cpu.env.mode_key;
    let real = key_bits & key::PROT == 0;
    let is64 = cpu.env.is_64bit();
    let mut regs = Regs {
        fpu: &mut cpu.env.fpu,
        gpr: &mut cpu.env.gpr,
        flags: flags_before,
        mem: &mut mem,
        no_store: false,
        is64,
        real,
    };
    let done = i.run(&mut regs);
    let (flags_after, store) = (regs.flags, !regs.no_store || mutants::on(mutants::M_NO_STORE));
    if let Err(stop) = done {
        return Err(match stop {
            Stop::Simd if key_bits & key::OSXMMEXCPT != 0 => Fault::new(vector::XM),
            Stop::Simd | Stop::Undefined => Fault::UD,
            Stop::Protection => Fault::GP0,
        });
    }
    if t.x87 && !t.control {
        let block = cpu.t0.block;
        // SAFETY: the running block outlives the operation that runs in it.
        let ip = unsafe { (*block).rip_of(insn) };
        cpu.env.fpu.set_u64_at(8, ip);
        cpu.env.fpu.set_u64_at(16, if len == 0 { pointers[1] } else { va });
    }
    if t.write && len != 0 && store {
        cpu.env.insn_in_block = u64::from(insn) + 1;
        cpu.store(va, &mem[..len], view)?;
    }
    if t.flags {
        flags::set(&mut cpu.env, flags_after);
    }
    if t.control {
        cpu.x87_controlled();
    }
    Ok(len != 0)
}
