//! What the JIT shows of itself: the text of `info jit`.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{JitEngine, generated_code};
use anura_vmcore::CpuSignal;
use std::sync::Arc;

const CODE: u64 = 0x1_0000;
const ROOT: u64 = 0x10_0000;

struct Guest {
    vm: Arc<dyn AccelVm>,
    vcpu: Box<dyn Vcpu>,
    _bed: TestBed,
}

/// A processor in flat 64-bit code; nothing where the host has no memory for generated code.
fn guest(engine: JitEngine, code: &[u8]) -> Option<Guest> {
    if let Err(e) = generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return None;
    }
    let bed = TestBed::new(4 << 20, "max");
    let mut next = ROOT + 0x1000;
    for page in 0..4 {
        bed.map_page(ROOT, &mut next, CODE + page * 0x1000, CODE + page * 0x1000 | 7);
    }
    bed.ram.write(CODE, code);
    let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    let mut cpu = bed.cpu();
    enter_long_mode(&mut cpu, ROOT, 0);
    cpu.env.rip = CODE;
    cpu.after_load();
    vcpu.set_state(&cpu.save_state()).unwrap();
    Some(Guest { vm, vcpu, _bed: bed })
}

/// MOV ECX, 1000; DEC ECX; JNZ; HLT.
const LOOP: [u8; 10] = [0xb9, 0xe8, 3, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4];

#[test]
fn the_numbers_of_a_run_can_be_read_after_it() {
    let Some(mut g) = guest(JitEngine::default(), &LOOP) else { return };
    assert!(g.vm.info().starts_with("CPU #0: 0 blocks, 0 translated"), "{}", g.vm.info());
    assert_eq!(g.vcpu.run(Budget::Unlimited), VcpuExit::Halted);
    let text = g.vm.info();
    assert!(text.starts_with("CPU #0: 3 blocks, 3 translated (6 instructions, 14 bytes"), "{text}");
    for word in
        ["0 flushes", "ns per instruction", "found by the table of jumps", "TLB misses", "links made: "]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
