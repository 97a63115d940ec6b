//! `-accel verify=A:B`: two engines agree over a guest with devices, and a planted fault is found, named and replayed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anura_accel::verify::{Options, Verify};
use anura_accel::{
    AccelError, AccelVm, Accelerator, Budget, Capabilities, DebugControl, DebugError, Kicker, StateError,
    Unavailable, Vcpu, VcpuExit, VmConfig, VmSpaces,
};
use anura_accel_tcg::Interp;
use anura_accel_tcg::testbed::TestBed;
use anura_memory::{Access, AccessRules, IoHandler, MemoryMap, Region};
use anura_vmcore::{Clock, CpuSignal, ResetKind};
use anura_x86::CpuState;
use iced_x86::code_asm::*;

/// The interpreter, but where `wrong` says so it leaves another state than it should.
struct Planted(fn(&mut CpuState) -> bool);

struct PlantedVm(Arc<dyn AccelVm>, fn(&mut CpuState) -> bool);

struct PlantedVcpu {
    inner: Box<dyn Vcpu>,
    wrong: fn(&mut CpuState) -> bool,
}

impl Accelerator for Planted {
    fn name(&self) -> &'static str {
        "planted"
    }
    fn probe(&self) -> Result<Capabilities, Unavailable> {
        Interp.probe()
    }
    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        Ok(Arc::new(PlantedVm(Interp.create_vm(spaces, config)?, self.0)))
    }
}

impl AccelVm for PlantedVm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        let inner = self.0.create_vcpu(id, signal)?;
        Ok(Box::new(PlantedVcpu { inner, wrong: self.1 }))
    }
}

impl Vcpu for PlantedVcpu {
    fn run(&mut self, budget: Budget) -> VcpuExit {
        let Budget::Instructions(n) = budget else { return self.inner.run(budget) };
        let end = self.inner.instructions() + n;
        loop {
            let left = end.saturating_sub(self.inner.instructions());
            let exit = self.inner.run(Budget::Instructions(left.min(1)));
            let mut state = self.inner.state();
            if (self.wrong)(&mut state) {
                self.inner.set_state(&state).expect("the fault is a possible state");
            }
            if left <= 1 || exit != VcpuExit::BudgetSpent {
                return exit;
            }
        }
    }
    fn state(&mut self) -> CpuState {
        self.inner.state()
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        self.inner.set_state(state)
    }
    fn kicker(&self) -> Kicker {
        self.inner.kicker()
    }
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), DebugError> {
        self.inner.set_debug(control)
    }
    fn reset(&mut self, kind: ResetKind) {
        self.inner.reset(kind);
    }
    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.inner.translate(linear)
    }
    fn instructions(&self) -> u64 {
        self.inner.instructions()
    }
}

/// A register that counts its reads and keeps what is written.
#[derive(Default)]
struct Counter(std::sync::atomic::AtomicU64);

impl IoHandler for Counter {
    fn read(&self, _: Access) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }
    fn write(&self, _: Access, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Runs a guest that loops over a port, a memory-mapped register, RAM and the time stamp counter, 500 rounds of ten
/// instructions at 0x1000, RCX counting down; the comparison ends it or its HLT does.
fn run(follow: Box<dyn Accelerator>, every: u64, file: &Path, replay: bool) -> Result<VcpuExit, AccelError> {
    let bed = TestBed::new(1 << 20, "qemu64");
    let map = MemoryMap::new();
    let memory = Region::container("memory", 1 << 40);
    let ports = Region::container("io", 1 << 16);
    let mut t = map.transaction();
    t.add(&memory, 0, &Region::ram("ram", bed.ram.clone()), 0);
    t.add(
        &memory,
        0xa0000,
        &Region::io("mmio", 0x1000, Arc::new(Counter::default()), AccessRules::any(8)),
        1,
    );
    t.add(&ports, 0x80, &Region::io("port", 4, Arc::new(Counter::default()), AccessRules::any(4)), 0);
    t.commit();
    let spaces = VmSpaces {
        memory: map.create_space("memory", &memory),
        ports: map.create_space("io", &ports),
        clock: Clock::counted(1),
        ram: vec![bed.ram.clone()],
    };
    let config = VmConfig { counted: true, ..bed.config.clone() };

    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.in_(eax, 0x80u32).unwrap();
    a.mov(ebx, dword_ptr(0xa0000)).unwrap();
    a.add(rax, rbx).unwrap();
    a.mov(qword_ptr(rsi), rax).unwrap();
    a.add(rsi, 8).unwrap();
    a.rdtsc().unwrap();
    a.out(0x80u32, eax).unwrap();
    a.lea(r15, ptr(r15 + 10)).unwrap();
    a.dec(rcx).unwrap();
    a.jnz(again).unwrap();
    a.hlt().unwrap();
    bed.ram.write(0x1000, &a.assemble(0x1000).unwrap());
    // The first 2 MiB stand where they are.
    bed.put(0x8000, 0x9007);
    bed.put(0x9000, 0xa007);
    bed.put(0xa000, 0x87);

    let replay = replay.then(|| file.to_owned());
    let options = Options { every, file: file.to_owned(), replay, ..Options::default() };
    let verify = Verify::new(Box::new(Interp), follow, options);
    let vm = verify.create_vm(&spaces, &config)?;
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new())?;
    let mut cpu = bed.cpu();
    anura_accel_tcg::testbed::enter_long_mode(&mut cpu, 0x8000, 0);
    let mut state = cpu.save_state();
    state.rip = 0x1000;
    state.gpr[1] = 500;
    state.gpr[6] = 0x2_0000;
    vcpu.set_state(&state).expect("a possible state");
    Ok(vcpu.run(Budget::Instructions(100_000)))
}

fn case(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("anura-{}-{name}.case", std::process::id()))
}

#[test]
fn an_engine_agrees_with_itself_over_devices_and_time() {
    for every in [1, 7, 1000] {
        let exit = run(Box::new(Interp), every, &case("same"), false).unwrap();
        assert_eq!(exit, VcpuExit::Halted, "every {every}");
    }
}

#[test]
fn a_planted_flag_is_found_at_its_instruction_and_replayed_from_the_file() {
    let file = case("flag");
    let planted = || {
        let wrong = |s: &mut CpuState| {
            let here = s.rip == 0x1004 + 5 && s.gpr[1] == 377;
            s.rflags ^= u64::from(here) << 4;
            here
        };
        Box::new(Planted(wrong))
    };
    let exit = run(planted(), 100, &file, false).unwrap();
    let VcpuExit::Failed(error) = exit else { panic!("not found: {exit:?}") };
    assert!(error.what.contains("interp and planted differ"), "{}", error.what);
    let again = run(planted(), 100, &file, true).expect_err("a replay ends with its report").to_string();
    std::fs::remove_file(&file).unwrap();
    for text in [&error.what, &again] {
        // 123 rounds before this one, and the load is the second of its round.
        assert!(text.contains("instruction 32, at 0x1002: 8b 1c 25 00 00 0a 00"), "{text}");
        assert!(text.contains("(bits 0x10)"), "{text}");
    }
}

#[test]
fn a_planted_register_is_found_by_what_it_does_to_memory() {
    let file = case("register");
    // RAX between the addition and its store, wrong until the next IN.
    let wrong = |s: &mut CpuState| {
        let here = s.rip == 0x100c && s.gpr[1] == 100;
        s.gpr[0] ^= u64::from(here) << 15;
        here
    };
    let exit = run(Box::new(Planted(wrong)), 1000, &file, false).unwrap();
    let _ = std::fs::remove_file(&file);
    let VcpuExit::Failed(error) = exit else { panic!("not found: {exit:?}") };
    assert!(error.what.contains("memory ram+0x20c80"), "{}", error.what);
    assert!(error.what.contains(": 48 01 d8") || error.what.contains("rax"), "{}", error.what);
}
