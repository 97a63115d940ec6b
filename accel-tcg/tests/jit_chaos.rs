//! Random bytes as guest code in every mode, on the JIT and on the interpreter side by side: registers and memory are the
//! same wherever both stop. The JIT has little memory for code, and translates loops as a whole at once.
//!
//! `ANURA_CHAOS=N` runs N seeds per mode.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{Numbers, TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine, generated_code};
use anura_vmcore::CpuSignal;
use anura_x86::{CpuState, Segment};
use std::sync::Arc;

const BASE: u64 = 0x1_0000;
const PAGES: u64 = 16;
const BYTES: u64 = PAGES * 0x1000;
const ROOT: u64 = 0x10_0000;
const RAM: u64 = 2 << 20;

/// Bytes that are more often than not instructions, short loops among them, and a few pointers.
fn code(n: &mut Numbers) -> Vec<u8> {
    let common = [
        0x48, 0x0f, 0x66, 0x67, 0xf3, 0x89, 0x8b, 0x01, 0x50, 0x58, 0xff, 0xc4, 0xa4, 0xab, 0xd9, 0x90, 0x41,
        0xe8, 0xc3, 0x05, 0x31, 0x29, 0xc1, 0x80, 0x83, 0x40, 0xeb, 0x75, 0xe2, 0x8d,
    ];
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < BYTES {
        let r = n.bits();
        if r & 7 == 0 {
            bytes.extend((BASE + n.bits() % BYTES).to_le_bytes());
            continue;
        }
        if r & 0x78 == 0 {
            // MOV CX or ECX, a few; ADD AX or EAX with DX; DEC; JNZ.
            bytes.extend([0xb9, r as u8 >> 1, 0, 0x66, 0x90, 0x01, 0xd0, 0xff, 0xc9, 0x75, 0xfa]);
            continue;
        }
        for mut x in r.to_le_bytes() {
            let k = n.bits();
            if k & 3 != 0 {
                x = common[(k >> 8) as usize % common.len()];
            }
            bytes.push(x);
        }
    }
    bytes.truncate(BYTES as usize);
    bytes
}

struct Guest {
    bed: TestBed,
    _vm: Arc<dyn AccelVm>,
    vcpu: Box<dyn Vcpu>,
}

impl Guest {
    fn new(engine: &dyn Accelerator, model: &str) -> Guest {
        let bed = TestBed::new(RAM, model);
        let mut next = ROOT + 0x1000;
        for page in 0..PAGES {
            let at = BASE + page * 0x1000;
            bed.map_page(ROOT, &mut next, at, at | if page % 7 == 6 { 5 } else { 7 });
        }
        let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
        let vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
        Guest { bed, _vm: vm, vcpu }
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        assert!(self.bed.ram.read(0, &mut bytes));
        bytes
    }
}

/// A state from which to begin.
fn begin(n: &mut Numbers, bed: &TestBed, mode: u64) -> CpuState {
    let mut s = CpuState::reset(0);
    if mode < 2 {
        let mut cpu = bed.cpu();
        enter_long_mode(&mut cpu, ROOT, if mode == 0 { 3 } else { 0 });
        cpu.env.fpu.set_fcw(if n.bits() & 3 == 0 { 0x340 } else { 0x37f });
        cpu.env.fpu.set_mxcsr(if n.bits() & 3 == 0 { 0x8000 } else { 0x1f80 });
        cpu.after_load();
        s = cpu.save_state();
        s.rflags = n.bits() & 0x4_06d5 | 2;
        s.idtr.limit = 0xfff;
    } else {
        let small = mode != 4;
        for (i, seg) in s.seg.iter_mut().enumerate() {
            let code = i == 1 && mode != 5;
            let (kind, dpl) = (if code { 0x9b } else { 0x93 }, if mode == 5 { 0x60 } else { 0 });
            *seg = match mode {
                4 => Segment::new(8, n.bits() & 0xfff, 0xf_ffff, kind | 0x4000),
                3 if i == 2 => Segment::new(8, BASE, 0xffff, kind | 0x4000 & n.bits() as u32),
                _ => Segment::new((BASE >> 4) as u16, BASE, 0xffff, kind | dpl),
            };
        }
        if mode > 2 {
            s.cr0 |= 1;
        }
        s.rflags = n.bits() & 0x6d5 | 2;
        if mode == 5 {
            s.rflags |= 0x2_3000;
        }
        s.idtr.limit = if small { 0x3ff } else { 0x7ff };
    }
    s.idtr.base = BASE + n.bits() % (BYTES / 2);
    for r in &mut s.gpr {
        *r = match n.bits() & 3 {
            0 => n.bits(),
            1 => n.bits() & 0xff,
            _ => BASE + n.bits() % BYTES,
        };
    }
    s.rip = match mode {
        0 | 1 => BASE + n.bits() % BYTES,
        4 => BASE + n.bits() % (BYTES / 2),
        _ => n.bits() & 0xffff,
    };
    if n.bits().is_multiple_of(16) {
        s.dr = std::array::from_fn(|_| BASE + n.bits() % BYTES);
        s.dr7 = 0x400 | n.bits() & 0x1111_00ff;
    }
    s
}

fn round(seed: u64, mode: u64) {
    let mut n = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mode << 32 | 1);
    let jit = JitEngine { exact: true, jumps_back: 2, code_bytes: 0, ..JitEngine::default() };
    let model = if seed & 1 == 0 { "qemu64" } else { "Nehalem" };
    let (mut a, mut b) = (Guest::new(&Interp, model), Guest::new(&jit, model));
    for start in 0..150 {
        if start % 10 == 0 {
            let bytes = code(&mut n);
            assert!(a.bed.ram.write(BASE, &bytes) && b.bed.ram.write(BASE, &bytes));
        }
        let state = begin(&mut n, &a.bed, mode);
        let valid = a.vcpu.set_state(&state).is_ok();
        assert_eq!(b.vcpu.set_state(&state).is_ok(), valid);
        for piece in 0..6 {
            let budget = 1 + n.bits() % [3, 40, 600][(n.bits() % 3) as usize];
            let exits = [&mut a, &mut b].map(|g| g.vcpu.run(Budget::Instructions(budget)));
            let place = format!("mode {mode}, seed {seed}, start {start}, piece {piece} of {budget}");
            assert_eq!(exits[1], exits[0], "{place}");
            assert_eq!(b.vcpu.state(), a.vcpu.state(), "{place}, from {state:x?}");
            if exits[0] != VcpuExit::BudgetSpent {
                break;
            }
        }
        if start % 10 == 9 {
            assert!(a.memory() == b.memory(), "memory of mode {mode}, seed {seed}, by start {start}");
        }
    }
}

fn rounds(mode: u64) {
    if let Err(e) = generated_code() {
        return println!("skipped: no memory for generated code: {e}");
    }
    let seeds = std::env::var("ANURA_CHAOS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    (1..=seeds).for_each(|seed| round(seed, mode));
}

#[test]
fn random_code_of_ring_3_does_the_same_on_both_engines() {
    rounds(0);
}

#[test]
fn random_code_of_ring_0_does_the_same_on_both_engines() {
    rounds(1);
}

#[test]
fn random_code_of_real_mode_does_the_same_on_both_engines() {
    rounds(2);
}

#[test]
fn random_16_bit_code_does_the_same_on_both_engines() {
    rounds(3);
}

#[test]
fn random_32_bit_code_does_the_same_on_both_engines() {
    rounds(4);
}

#[test]
fn random_virtual_8086_code_does_the_same_on_both_engines() {
    rounds(5);
}
