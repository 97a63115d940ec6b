//! Guest instructions per second of the interpreter on hot loops.
//!
//! Run as `cargo xtask bench interp`. Each line is the best of several rounds.

use anura_accel::{Budget, Vcpu};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::vcpu::InterpVcpu;
use anura_vmcore::CpuSignal;
use std::time::Instant;

const COUNT: u64 = 20_000_000;
const ROUNDS: u32 = 5;
/// What the issue asks for, in millions per second.
const AIM: f64 = 60.0;

/// Endless loops: name and 64-bit code.
const LOOPS: &[(&str, &[u8])] = &[
    ("integer", b"\x48\x01\xd8\x48\x31\xc3\x48\x8d\x54\x58\x05\x48\xc1\xea\x03\x48\x83\xe9\x01\x48\x39\xc2\x75\xe8\xeb\xe6"),
    ("memory", b"\x48\x8b\x06\x48\x03\x46\x08\x48\x89\x46\x10\xff\x46\x18\x0f\xb6\x56\x03\x48\x01\xd1\x48\x85\xc9\x75\xe6\xeb\xe4"),
    ("call and return", b"\x53\xe8\x08\x00\x00\x00\x5b\x48\xff\xc9\x75\xf4\xeb\xf2\x55\x48\x89\xe5\x89\xf8\x6b\xc0\x1f\xc9\xc3"),
    ("branches", b"\x89\xc8\x69\xc0\x6d\x4e\xc6\x41\x05\x39\x30\x00\x00\x89\xc1\xa9\x00\x00\x01\x00\x74\x05\x83\xc3\x03\xeb\x03\x83\xeb\x01\x83\xfb\x64\x7c\xdd\x31\xdb\xeb\xd9"),
    ("scalar floating point", b"\xf2\x0f\x10\x06\xf2\x0f\x59\xc1\xf2\x0f\x58\xd0\x48\xff\xc9\x75\xef\xeb\xed"),
    ("rep movsq (iterations)", b"\xb9\x00\x02\x00\x00\x48\x8d\xbe\x00\x10\x00\x00\x56\xf3\x48\xa5\x5e\xeb\xed"),
];

fn measure(name: &str, code: &[u8]) -> f64 {
    let bed = TestBed::new(16 << 20, "qemu64");
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..16u64 {
        let at = 0x1_0000 + page * 0x1000;
        bed.map_page(root, &mut next, at, at | 7);
    }
    bed.ram.write(0x1_0000, code);
    let mut vcpu = InterpVcpu::new(bed.shared(), 0, CpuSignal::new());
    enter_long_mode(vcpu.cpu(), root, 3);
    let env = &mut vcpu.cpu().env;
    env.rip = 0x1_0000;
    env.gpr[1] = 1 << 40;
    env.gpr[4] = 0x1_f000;
    env.gpr[6] = 0x1_2000;
    let mut best = 0f64;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let exit = vcpu.run(Budget::Instructions(COUNT));
        assert_eq!(exit, anura_accel::VcpuExit::BudgetSpent, "{name}");
        best = best.max(COUNT as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    println!("{name:24} {best:8.1} M/s");
    best
}

fn main() {
    let rates: Vec<f64> = LOOPS.iter().map(|(name, code)| measure(name, code)).collect();
    let hot = &rates[..4];
    let geomean = hot.iter().map(|r| r.ln()).sum::<f64>() / hot.len() as f64;
    let geomean = geomean.exp();
    println!("{:24} {geomean:8.1} M/s (first four; aim {AIM:.0})", "geometric mean");
}
