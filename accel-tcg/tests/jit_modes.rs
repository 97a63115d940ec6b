//! 16-bit and 32-bit code on the JIT and on the interpreter: what the guest that makes random code has found.

use anura_accel::{Accelerator, Budget, VcpuExit};
use anura_accel_tcg::testbed::TestBed;
use anura_accel_tcg::{Interp, JitEngine, generated_code};
use anura_vmcore::CpuSignal;
use anura_x86::CpuState;
use anura_x86::segment::index::CS;

const CODE: u64 = 0x1000;

/// The state at the end of a program in real mode; `data` is put at 0, the program at 1000h. The same on all engines.
fn real(code: &[u8], data: &[u8]) -> CpuState {
    let jit = JitEngine { exact: true, ..JitEngine::default() };
    let mut engines: Vec<&dyn Accelerator> = vec![&Interp];
    match generated_code() {
        Ok(()) => engines.push(&jit),
        Err(e) => println!("skipped: no memory for generated code: {e}"),
    }
    let mut states = engines.into_iter().map(|engine| {
        let bed = TestBed::new(4 << 20, "max");
        assert!(bed.ram.write(0, data) && bed.ram.write(CODE, code));
        let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
        let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
        let mut state = CpuState::reset(0);
        (state.seg[CS].base, state.seg[CS].selector) = (0, 0);
        state.rip = CODE;
        state.gpr[4] = 0x8000;
        vcpu.set_state(&state).unwrap();
        assert_eq!(vcpu.run(Budget::Instructions(100_000)), VcpuExit::Halted, "{}", engine.name());
        vcpu.state()
    });
    let first = states.next().unwrap();
    for other in states {
        assert_eq!(other, first, "the JIT's state, and the interpreter's");
    }
    first
}

#[test]
fn xlat_by_bx_adds_in_16_bits() {
    // MOV EBX, 12FFF0h; MOV AX, 5520h; XLAT; HLT
    let state = real(&[0x66, 0xbb, 0xf0, 0xff, 0x12, 0, 0xb8, 0x20, 0x55, 0xd7, 0xf4], &[0x77; 0x20]);
    assert_eq!(state.gpr[0] & 0xffff, 0x5577);
}
