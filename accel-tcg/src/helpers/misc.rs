//! ENTER, PUSHA, POPA, BOUND and decimal arithmetic.

use super::{Flow, HelperArgs, Stack};
use crate::env::{Cpu, Exec, Fault};
use crate::interp::flags;
use crate::ir::op::flag;
use crate::mmu::View;
use anura_x86::regs::vector;

/// ENTER: `imm` bits 15:0 are the frame's size, bits 20:16 the nesting level.
pub fn enter(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let (bytes, level) = (a.imm & 0xffff, a.imm >> 16 & 31);
    let mut s = Stack::current(cpu);
    let rbp = cpu.env.gpr[5];
    s.push(cpu, rbp, a.size)?;
    let frame = s.pointer();
    if level > 0 {
        let mut from = rbp;
        for _ in 1..level {
            from = from.wrapping_sub(a.size.into());
            let v = s.peek(cpu, from, a.size)?;
            s.push(cpu, v, a.size)?;
        }
        s.push(cpu, frame, a.size)?;
    }
    let top = s.pointer().wrapping_sub(bytes);
    // The new top must be writable, though nothing is written.
    s.probe(cpu, top, a.size)?;
    s.skip(bytes.wrapping_neg());
    s.commit(cpu);
    cpu.env.put_gpr(5, a.size, frame);
    Ok(Flow::Next)
}

/// PUSHA.
pub fn pusha(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let g = cpu.env.gpr;
    for v in &g[..8] {
        s.push(cpu, *v, a.size)?;
    }
    s.commit(cpu);
    Ok(Flow::Next)
}

/// POPA: the saved stack pointer is passed over.
pub fn popa(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let mut s = Stack::current(cpu);
    let mut values = [0; 8];
    for v in values.iter_mut().rev() {
        *v = s.pop(cpu, a.size)?;
    }
    s.commit(cpu);
    for n in [0, 1, 2, 3, 5, 6, 7u8] {
        cpu.env.put_gpr(n, a.size, values[n as usize]);
    }
    Ok(Flow::Next)
}

/// BOUND: index a, bounds b and c, all of `size`.
pub fn bound(_: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let s = |v: u64| if a.size == 2 { i64::from(v as i16) } else { i64::from(v as i32) };
    if s(a.a) < s(a.b) || s(a.a) > s(a.c) { Err(Fault::new(vector::BR)) } else { Ok(Flow::Next) }
}

/// DAA, DAS, AAA, AAS, AAM, AAD by `reg`.
pub fn bcd(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let f = flags::get(&cpu.env) as u32;
    let (al, ah) = (cpu.env.gpr[0] as u8, (cpu.env.gpr[0] >> 8) as u8);
    let bit = |on: bool, f: u32| if on { f } else { 0 };
    let result = |v: u8| {
        bit(v == 0, flag::ZF) | bit(v & 0x80 != 0, flag::SF) | bit(v.count_ones().is_multiple_of(2), flag::PF)
    };
    let (af, cf) = (f & flag::AF != 0, f & flag::CF != 0);
    let low = al & 15 > 9 || af;
    let (ax, set) = match a.reg {
        0 | 1 => {
            let sub = a.reg == 1;
            let mut v = al;
            let mut carry = false;
            if low {
                let (x, c) = if sub { v.overflowing_sub(6) } else { v.overflowing_add(6) };
                v = x;
                carry = cf || c;
            }
            if al > 0x99 || cf {
                v = if sub { v.wrapping_sub(0x60) } else { v.wrapping_add(0x60) };
                carry = true;
            }
            (u16::from(ah) << 8 | u16::from(v), result(v) | bit(low, flag::AF) | bit(carry, flag::CF))
        }
        2 | 3 => {
            let mut ax = u16::from(ah) << 8 | u16::from(al);
            if low {
                ax = if a.reg == 2 { ax.wrapping_add(0x106) } else { ax.wrapping_sub(6).wrapping_sub(0x100) };
            }
            ax &= 0xff0f;
            (ax, result(ax as u8) | bit(low, flag::AF | flag::CF))
        }
        4 => {
            let by = a.imm as u8;
            if by == 0 {
                return Err(Fault::DE);
            }
            let v = al % by;
            (u16::from(al / by) << 8 | u16::from(v), result(v))
        }
        _ => {
            let v = al.wrapping_add(ah.wrapping_mul(a.imm as u8));
            (u16::from(v), result(v))
        }
    };
    cpu.env.put_gpr(0, 2, ax.into());
    flags::set(&mut cpu.env, set.into());
    Ok(Flow::Next)
}

impl Stack {
    /// The stack pointer as it stands.
    fn pointer(&self) -> u64 {
        self.sp & self.mask
    }

    /// Reads at another stack offset.
    fn peek(&self, cpu: &mut Cpu, at: u64, size: u8) -> Exec<u64> {
        super::check_stack(cpu, at & self.mask, size.into())?;
        cpu.read_sized(self.linear(at), size, View::Stack)
    }

    /// Fails as a store at a stack offset would.
    fn probe(&self, cpu: &mut Cpu, at: u64, size: u8) -> Exec<()> {
        super::check_stack(cpu, at & self.mask, size.into())?;
        cpu.probe_write(self.linear(at), size.into(), View::Stack)
    }
}
