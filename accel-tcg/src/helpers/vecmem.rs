//! Vector instructions that address memory element by element: VMASKMOV, VPMASKMOV, gathers, MASKMOVQ, MASKMOVDQU.

use super::{Flow, HelperArgs};
use crate::env::{Cpu, Exec};
use crate::mmu::View;

/// Masked load.
pub const LOAD: u8 = 0;
/// Masked store.
pub const STORE: u8 = 1;
/// Gather.
pub const GATHER: u8 = 2;
/// Store of the bytes that a mask selects (MASKMOVDQU).
pub const BYTES: u8 = 3;
/// The same with MMX registers (MASKMOVQ).
pub const BYTES_MMX: u8 = 4;

/// What the front end packs into the immediate.
#[derive(Clone, Copy)]
pub struct Shape {
    /// One of the kinds above.
    pub kind: u8,
    /// Bytes per element.
    pub element: u8,
    /// Bytes of the vector: 16 or 32.
    pub vector: u8,
    /// Register with the mask.
    pub mask: u8,
    /// Register with the indices, their size in bytes, and log2 of the scale (gathers).
    pub index: (u8, u8, u8),
}

impl Shape {
    /// As one number.
    pub fn pack(self) -> u64 {
        let (i, s, k) = self.index;
        u64::from_le_bytes([self.kind, self.element, self.vector, self.mask, i, s, k, 0])
    }

    fn unpack(v: u64) -> Self {
        let [kind, element, vector, mask, i, s, k, _] = v.to_le_bytes();
        Shape { kind, element, vector, mask, index: (i, s, k) }
    }
}

fn ymm(cpu: &Cpu, n: u8) -> [u8; 32] {
    let mut v = [0; 32];
    let b = &cpu.env.fpu.bytes;
    let n = usize::from(n & 15);
    v[..16].copy_from_slice(&b[160 + n * 16..176 + n * 16]);
    v[16..].copy_from_slice(&b[576 + n * 16..592 + n * 16]);
    v
}

fn set_ymm(cpu: &mut Cpu, n: u8, v: &[u8; 32]) {
    let b = &mut cpu.env.fpu.bytes;
    let n = usize::from(n & 15);
    b[160 + n * 16..176 + n * 16].copy_from_slice(&v[..16]);
    b[576 + n * 16..592 + n * 16].copy_from_slice(&v[16..]);
}

/// Offset of an MMX register in the image: the x87 stack is stored from its top.
fn mmx(cpu: &Cpu, n: u8) -> usize {
    let top = cpu.env.fpu.fsw() >> 11 & 7;
    32 + (usize::from(n) + 8 - usize::from(top)) % 8 * 16
}

/// Runs one; `reg` is the vector that is loaded or stored, `a` the address without indices.
pub fn vector_memory(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let s = Shape::unpack(a.imm);
    let e = usize::from(s.element.clamp(1, 8));
    let len = usize::from(s.vector).min(32);
    let (mut mask, mut data) = match s.kind {
        BYTES_MMX => {
            let (mut m, mut d) = ([0; 32], [0; 32]);
            let (x, y) = (mmx(cpu, s.mask), mmx(cpu, a.reg));
            m[..8].copy_from_slice(&cpu.env.fpu.bytes[x..x + 8]);
            d[..8].copy_from_slice(&cpu.env.fpu.bytes[y..y + 8]);
            (m, d)
        }
        _ => (ymm(cpu, s.mask), ymm(cpu, a.reg)),
    };
    let on = |mask: &[u8; 32], at: usize| mask[at + e - 1] & 0x80 != 0;
    let view = if a.mem { View::Stack } else { View::Data };
    if s.kind == BYTES_MMX {
        // Like every MMX instruction, and even if it faults: the stack's top is register 0 and all are in use.
        crate::interp::thunk::enter_mmx(cpu);
    }
    if matches!(s.kind, BYTES | BYTES_MMX) && !cpu.vm.config.model.is_intel() {
        // AMD checks all bytes, selected or not.
        cpu.probe_write(a.a, len, view)?;
    }
    let wrap = |v: u64| if a.asize == 4 { v & 0xffff_ffff } else { v };
    match s.kind {
        LOAD => {
            let mut out = [0; 32];
            for at in (0..len).step_by(e).filter(|at| on(&mask, *at)) {
                cpu.load(wrap(a.a.wrapping_add(at as u64)), &mut out[at..at + e], view)?;
            }
            set_ymm(cpu, a.reg, &out);
        }
        STORE | BYTES | BYTES_MMX => {
            for at in (0..len).step_by(e).filter(|at| on(&mask, *at)) {
                cpu.probe_write(wrap(a.a.wrapping_add(at as u64)), e, view)?;
            }
            for at in (0..len).step_by(e).filter(|at| on(&mask, *at)) {
                cpu.store(wrap(a.a.wrapping_add(at as u64)), &data[at..at + e], view)?;
            }
        }
        _ => {
            let (index, isize, scale) = s.index;
            let indices = ymm(cpu, index);
            let isize = if isize == 8 { 8 } else { 4 };
            // As many elements as both vectors have room for.
            let n = (len / e).min(len / isize);
            for k in 0..n {
                let at = k * e;
                if !on(&mask, at) {
                    // Passed all the same: a fault further on shows it.
                    mask[at..at + e].fill(0);
                    continue;
                }
                let mut raw = [0; 8];
                raw[..isize].copy_from_slice(&indices[k * isize..(k + 1) * isize]);
                let i = if isize == 4 {
                    i64::from(i64::from_le_bytes(raw) as i32)
                } else {
                    i64::from_le_bytes(raw)
                };
                let va = wrap(a.a.wrapping_add((i << (scale & 3)) as u64));
                let mut value = [0; 8];
                if let Err(f) = cpu.load(va, &mut value[..e], view) {
                    // What is done stays done and is not done again.
                    set_ymm(cpu, a.reg, &data);
                    set_ymm(cpu, s.mask, &mask);
                    return Err(f);
                }
                data[at..at + e].copy_from_slice(&value[..e]);
                mask[at..at + e].fill(0);
            }
            data[n * e..].fill(0);
            set_ymm(cpu, a.reg, &data);
            set_ymm(cpu, s.mask, &[0; 32]);
        }
    }
    Ok(Flow::Next)
}
