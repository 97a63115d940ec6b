//! A machine that is dropped leaves nothing behind: its RAM knows the engine that hears of writes to code, and the
//! engine knows the RAM, but neither keeps the other.

use anura_accel::{Accelerator, Budget, VcpuExit};
use anura_accel_tcg::testbed::TestBed;
use anura_accel_tcg::{Interp, JitEngine};
use anura_vmcore::CpuSignal;
use anura_x86::CpuState;
use anura_x86::segment::index::CS;
use std::sync::Arc;

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x1000;

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Makes a machine that uses all of its RAM, runs a loop that changes its own code, and drops it.
fn machine(engine: &dyn Accelerator) {
    let bed = TestBed::new(RAM, "max");
    assert!(bed.ram.fill(0, RAM, 0xaa));
    // MOV CX, 255; again: INC byte [1010h]; DEC CX; JNZ again; HLT
    assert!(bed.ram.write(CODE, &[0xb9, 0xff, 0, 0xfe, 0x06, 0x10, 0x10, 0x49, 0x75, 0xf9, 0xf4]));
    let ram = Arc::downgrade(&bed.ram);
    let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    let mut state = CpuState::reset(0);
    state.seg[CS].base = 0;
    state.rip = CODE;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(Budget::Instructions(100_000)), VcpuExit::Halted);
    drop((vcpu, vm, bed));
    assert!(ram.upgrade().is_none(), "{}: somebody keeps the RAM", engine.name());
}

#[test]
fn machines_that_were_dropped_hold_no_memory() {
    let jit = JitEngine { exact: true, ..JitEngine::default() };
    for engine in [&Interp as &dyn Accelerator, &jit] {
        machine(engine);
        let before = resident();
        for _ in 0..50 {
            machine(engine);
        }
        let grown = resident().saturating_sub(before);
        // Each has written 4 MiB of RAM; what the allocator keeps is a fraction of one.
        assert!(grown < 32 << 10, "{}: {grown} KiB more after 50 machines", engine.name());
    }
}
