//! Random bytes as guest code in every mode: nothing a guest executes may panic the engine or make it give up.

use anura_accel::{Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{Numbers, TestBed, enter_long_mode};
use anura_accel_tcg::vcpu::SoftVcpu;
use anura_vmcore::CpuSignal;
use anura_x86::{CpuState, Segment};

const BASE: u64 = 0x1_0000;
const PAGES: u64 = 32;

/// Fills the pages with bytes that are more often than not instructions, and a few pointers.
fn fill(bed: &TestBed, n: &mut Numbers) {
    let common = [
        0x48, 0x0f, 0x66, 0xf3, 0xf2, 0x89, 0x8b, 0x01, 0x50, 0x58, 0xff, 0xc4, 0xc5, 0xa4, 0xab, 0xd9, 0x90,
        0x41,
    ];
    for at in (0..PAGES * 0x1000).step_by(8) {
        let r = n.bits();
        let mut b = r.to_le_bytes();
        if r & 7 == 0 {
            b = (BASE + n.bits() % (PAGES * 0x1000)).to_le_bytes();
        } else {
            for x in &mut b {
                let k = n.bits();
                if k & 1 == 0 {
                    *x = common[(k >> 8) as usize % common.len()];
                }
            }
        }
        bed.ram.write(BASE + at, &b);
    }
}

fn round(seed: u64, instructions: u64) {
    let mut n = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let bed = TestBed::new(4 << 20, if seed & 1 == 0 { "qemu64" } else { "max" });
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..PAGES {
        let at = BASE + page * 0x1000;
        bed.map_page(root, &mut next, at, at | if page % 7 == 6 { 5 } else { 7 });
    }
    fill(&bed, &mut n);
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    let mode = seed % 5;
    for _ in 0..200 {
        match mode {
            0 | 1 => {
                vcpu.set_state(&CpuState::reset(0)).unwrap();
                enter_long_mode(vcpu.cpu(), root, if mode == 0 { 0 } else { 3 });
                let cpu = vcpu.cpu();
                cpu.env.cr4 |= 1 << 18;
                cpu.env.xcr0 = 7;
                // Masked and unmasked exceptions.
                cpu.env.fpu.set_fcw(if n.bits() & 3 == 0 { 0x340 } else { 0x37f });
                cpu.env.fpu.set_mxcsr(if n.bits() & 3 == 0 { 0x8000 } else { 0x1f80 });
                cpu.env.idtr.base = BASE + n.bits() % (PAGES * 0x1000);
                cpu.env.idtr.limit = 0xfff;
                cpu.env.eflags_sys = n.bits() & 0x24_4600;
                cpu.after_load();
            }
            _ => {
                let mut s = CpuState::reset(0);
                let selector = (BASE >> 4) as u16;
                for (i, seg) in s.seg.iter_mut().enumerate() {
                    *seg = match mode {
                        // Real mode, and 16- and 32-bit protected mode with odd segments.
                        2 => Segment::new(selector, BASE, 0xffff, if i == 1 { 0x9b } else { 0x93 }),
                        3 => Segment::new(8, BASE, 0xffff, if i == 1 { 0x9b } else { 0x93 }),
                        _ => {
                            Segment::new(8, n.bits() & 0xfff, 0xf_ffff, if i == 1 { 0x409b } else { 0x4093 })
                        }
                    };
                }
                if mode != 2 {
                    s.cr0 |= 1;
                }
                s.idtr.base = BASE;
                s.rip = 0;
                vcpu.set_state(&s).unwrap();
            }
        }
        let env = &mut vcpu.cpu().env;
        for r in &mut env.gpr {
            *r = match n.bits() & 3 {
                0 => n.bits(),
                1 => n.bits() & 0xff,
                _ => BASE + n.bits() % (PAGES * 0x1000),
            };
        }
        env.rip = match mode {
            0 | 1 => BASE + n.bits() % (PAGES * 0x1000),
            4 => BASE + n.bits() % 0x8000,
            _ => n.bits() & 0xffff,
        };
        for _ in 0..4 {
            match vcpu.run(Budget::Instructions(instructions)) {
                VcpuExit::BudgetSpent | VcpuExit::TripleFault | VcpuExit::Halted => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        if n.bits() & 15 == 0 {
            fill(&bed, &mut n);
        }
    }
}

#[test]
fn random_code_in_any_mode_neither_panics_nor_stops_the_engine() {
    let rounds = std::env::var("ANURA_CHAOS").ok().and_then(|v| v.parse().ok()).unwrap_or(10);
    for seed in 1..=rounds {
        round(seed, 300);
    }
}
