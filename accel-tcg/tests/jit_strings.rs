//! Repeated string instructions on the JIT and on the interpreter: registers, flags, memory, the place of a fault and
//! the number of instructions must agree.

use anura_accel::{Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine};
use anura_vmcore::CpuSignal;
use anura_x86::CpuState;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
/// Pages of data: the last is missing, the one before is read-only.
const PAGES: u64 = 8;
const ROOT: u64 = 0x10_0000;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An address: in the data, often near the end of a page, now and then beside the code or nowhere.
    fn place(&mut self) -> u64 {
        match self.below(12) {
            0 => CODE + 0x100 + self.below(0xf00),
            1 => [0, 1 << 47, !0 - 7, DATA - 4][self.below(4) as usize],
            2..=5 => DATA + (1 + self.below(PAGES)) * 0x1000 - self.below(80),
            _ => DATA + self.below((PAGES - 1) * 0x1000),
        }
    }
}

/// A comparison, a repeated instruction, the same again with the same registers, and what the flags are then.
fn program(n: &mut Numbers) -> Vec<u8> {
    let mut insn = vec![];
    insn.extend(match n.below(12) {
        0 => Some(0x64),
        1 => Some(0x67),
        _ => None,
    });
    let wide = n.below(4);
    insn.extend((wide == 1).then_some(0x66));
    insn.push([0xf3, 0xf3, 0xf2][n.below(3) as usize]);
    insn.extend((wide == 3).then_some(0x48));
    let kinds = [0xa4, 0xa4, 0xa4, 0xaa, 0xaa, 0xaa, 0xac, 0xae, 0xa6];
    insn.push(kinds[n.below(kinds.len() as u64) as usize] | u8::from(wide != 0));
    let mut code = vec![];
    // MOV R8, RCX; MOV R12, RSI; MOV R13, RDI; SUB RBX, RDX
    code.extend([0x49, 0x89, 0xc8, 0x49, 0x89, 0xf4, 0x49, 0x89, 0xfd, 0x48, 0x29, 0xd3]);
    code.extend(&insn);
    // MOV RCX, R8; MOV RSI, R12; MOV RDI, R13
    code.extend([0x4c, 0x89, 0xc1, 0x4c, 0x89, 0xe6, 0x4c, 0x89, 0xef]);
    code.extend(&insn);
    // SETBE R9B; ADC RAX, RDX; HLT
    code.extend([0x41, 0x0f, 0x96, 0xc1, 0x48, 0x11, 0xd0, 0xf4]);
    code
}

struct Side {
    bed: TestBed,
    vcpu: Box<dyn Vcpu>,
}

impl Side {
    fn new(engine: &dyn Accelerator) -> Side {
        let bed = TestBed::new(4 << 20, "max");
        let mut next = ROOT + 0x1000;
        bed.map_page(ROOT, &mut next, CODE, CODE | 7);
        for page in 0..PAGES {
            let at = DATA + page * 0x1000;
            bed.map_page(ROOT, &mut next, at, at | [7, 7, 7, 7, 7, 7, 5, 0][page as usize]);
        }
        let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
        let vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
        Side { bed, vcpu }
    }

    fn run(&mut self, memory: &[u8], state: &CpuState, budget: Budget) -> (VcpuExit, CpuState, Vec<u8>, u64) {
        self.bed.ram.write(CODE, &memory[..0x1000]);
        self.bed.ram.write(DATA, &memory[0x1000..]);
        self.vcpu.set_state(state).unwrap();
        let before = self.vcpu.instructions();
        let mut exit = self.vcpu.run(budget);
        // A store to the page of the running code may end a run early.
        while matches!(exit, VcpuExit::BudgetSpent) && matches!(budget, Budget::Unlimited) {
            exit = self.vcpu.run(budget);
        }
        let mut now = vec![0; memory.len()];
        let (code, data) = now.split_at_mut(0x1000);
        self.bed.ram.read(CODE, code);
        self.bed.ram.read(DATA, data);
        (exit, self.vcpu.state(), now, self.vcpu.instructions() - before)
    }
}

fn compare(engine: &JitEngine, budget: Option<u64>, seed: u64, rounds: u64) {
    let mut n = Numbers(seed);
    let mut interp = Side::new(&Interp);
    let mut jit = Side::new(engine);
    let mut cpu = interp.bed.cpu();
    enter_long_mode(&mut cpu, ROOT, 0);
    cpu.env.rip = CODE;
    cpu.after_load();
    let base = cpu.save_state();
    for round in 0..rounds {
        let code = program(&mut n);
        let mut memory: Vec<u8> = (0..0x1000 * (PAGES + 1)).map(|_| n.next() as u8 & 3).collect();
        memory[..code.len()].copy_from_slice(&code);
        let mut state = base.clone();
        for r in 0..4 {
            state.gpr[r] = n.next();
        }
        state.gpr[0] &= [3, !0][n.below(2) as usize];
        state.gpr[1] = match n.below(8) {
            0 => 0,
            1 => n.below(0x1200),
            2 => n.below(0x210),
            _ => n.below(100),
        };
        state.gpr[4] = DATA + 0x800;
        state.gpr[7] = n.place();
        // Often runs that overlap.
        state.gpr[6] = match n.below(3) {
            0 => state.gpr[7].wrapping_add(n.below(80)).wrapping_sub(40),
            _ => n.place(),
        };
        state.rflags = 2 | if n.below(6) == 0 { 0x400 } else { 0 };
        state.seg[4].base = n.below(64);
        let budget = budget.map_or(Budget::Unlimited, |b| Budget::Instructions(1 + n.below(b)));
        let a = interp.run(&memory, &state, budget);
        let b = jit.run(&memory, &state, budget);
        let what = format!("round {round}: {code:02x?}, {:x?} flags {:x}", state.gpr, state.rflags);
        assert_eq!(format!("{:?}", a.0), format!("{:?}", b.0), "{what}");
        assert_eq!(a.1, b.1, "{what}");
        if let Some(at) = (0..memory.len()).find(|i| a.2[*i] != b.2[*i]) {
            panic!("{what}: memory at {at:x}: {:02x} {:02x}", a.2[at], b.2[at]);
        }
        if engine.exact {
            assert_eq!(a.3, b.3, "{what}");
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn repeated_string_instructions_end_as_they_do_on_the_interpreter() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    let rounds = number("ANURA_JIT_ROUNDS", 3_000);
    let seed = number("ANURA_JIT_SEED", 0x1234_5678);
    let exact = JitEngine { exact: true, ..JitEngine::default() };
    compare(&JitEngine::default(), None, seed, rounds);
    compare(&exact, None, seed ^ 0x1111, rounds);
    compare(&exact, Some(300), seed ^ 0x2222, rounds);
    compare(&JitEngine { chaos: seed | 1, ..JitEngine::default() }, None, seed ^ 0x3333, rounds / 2);
}
