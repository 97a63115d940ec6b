//! Code that is larger than the JIT's memory for it: blocks come and go, and the guest sees nothing of that.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine, generated_code};
use anura_vmcore::{CpuSignal, ResetKind};
use anura_x86::CpuState;
use std::sync::Arc;

const CODE: u64 = 0x10_0000;
const PAGES: u64 = 48;
const DATA: u64 = CODE + (PAGES + 1) * 0x1000;
const ROOT: u64 = 0x20_0000;
/// Bytes of guest code per piece, and where the first one begins, so that some cross pages.
const PIECE: u64 = 40;
const FIRST: u64 = CODE + 20;
const TURNS: u32 = 7;

fn pieces() -> u64 {
    (PAGES * 0x1000 - 64) / PIECE
}

/// The place of the piece that is the `n`th to run: a walk through all pages.
fn place(n: u64) -> u64 {
    FIRST + n * 1009 % pieces() * PIECE
}

/// A program of many small pieces that jump to each other, all over the pages: with loops, stores to data, stores to
/// pieces that are elsewhere, calls, and jumps by register.
fn program(bed: &TestBed) {
    let count = pieces();
    for n in 0..count {
        let at = place(n);
        let rel = |behind: u64, to: u64| (to.wrapping_sub(behind) as u32).to_le_bytes();
        let mut code = vec![0x48, 0x05];
        code.extend((n as u32).wrapping_mul(0x9e37_79b9).to_le_bytes());
        // ROL RAX, 7
        code.extend([0x48, 0xc1, 0xc0, 0x07]);
        match n % 5 {
            0 => {
                // MOV EDX, 20; ADD RAX, RDX; DEC EDX; JNZ
                code.extend([0xba, 20, 0, 0, 0, 0x48, 0x01, 0xd0, 0xff, 0xca, 0x75, 0xf9]);
            }
            1 => {
                // ADD [DATA + n % 64 * 8], RAX
                code.extend([0x48, 0x01, 0x05]);
                code.extend(rel(at + code.len() as u64 + 4, DATA + n % 64 * 8));
            }
            2 if n % 3 == 0 => {
                // MOV [imm of another piece], AL
                code.extend([0x88, 0x05]);
                code.extend(rel(at + code.len() as u64 + 4, place(n * 7 % count) + 3));
            }
            3 => {
                // CALL behind; ADD RSP, 8
                code.extend([0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 8]);
            }
            _ => {}
        }
        let last = n + 1 == count;
        if last {
            // DEC ECX; JZ to HLT
            code.extend([0xff, 0xc9, 0x74, 0x05]);
        }
        let next = place((n + 1) % count);
        if n % 4 == 3 && !last {
            // LEA RDX, [next]; JMP RDX
            code.extend([0x48, 0x8d, 0x15]);
            code.extend(rel(at + code.len() as u64 + 4, next));
            code.extend([0xff, 0xe2]);
        } else {
            code.push(0xe9);
            code.extend(rel(at + code.len() as u64 + 4, next));
        }
        code.push(0xf4);
        assert!(code.len() as u64 <= PIECE, "{}", code.len());
        assert!(bed.ram.write(at, &code));
    }
}

struct Guest {
    bed: TestBed,
    vm: Arc<dyn AccelVm>,
    vcpu: Box<dyn Vcpu>,
}

impl Guest {
    fn new(engine: &dyn Accelerator) -> Guest {
        let bed = TestBed::new(4 << 20, "max");
        let mut next = ROOT + 0x1000;
        for page in 0..PAGES + 2 {
            let at = CODE + page * 0x1000;
            bed.map_page(ROOT, &mut next, at, at | 7);
        }
        program(&bed);
        let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
        let vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
        let mut guest = Guest { bed, vm, vcpu };
        guest.begin();
        guest
    }

    fn begin(&mut self) {
        let mut cpu = self.bed.cpu();
        enter_long_mode(&mut cpu, ROOT, 0);
        cpu.env.rip = place(0);
        cpu.env.gpr[1] = TURNS.into();
        cpu.env.gpr[4] = DATA + 0x1000;
        cpu.after_load();
        self.vcpu.set_state(&cpu.save_state()).unwrap();
    }

    /// Runs to the end in pieces; the state at the end of each.
    fn run(&mut self, piece: u64) -> Vec<CpuState> {
        let mut states = Vec::new();
        loop {
            let exit = self.vcpu.run(Budget::Instructions(piece));
            states.push(self.vcpu.state());
            match exit {
                VcpuExit::BudgetSpent => {}
                VcpuExit::Halted => return states,
                other => panic!("{other:?}"),
            }
        }
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; ((PAGES + 2) * 0x1000) as usize];
        assert!(self.bed.ram.read(CODE, &mut bytes));
        bytes
    }
}

/// A number in a text, before a word.
fn number(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("{word}: {text}"))
}

fn small(code_bytes: usize) -> JitEngine {
    JitEngine { exact: true, jumps_back: 4, code_bytes, ..JitEngine::default() }
}

fn lacks_memory() -> bool {
    generated_code().inspect_err(|e| println!("skipped: no memory for generated code: {e}")).is_err()
}

#[test]
fn code_larger_than_its_memory_runs_as_on_the_interpreter() {
    if lacks_memory() {
        return;
    }
    let mut plain = Guest::new(&Interp);
    let states = plain.run(10_007);
    assert!(states.len() > 20, "{}", states.len());
    for size in [0, 256 << 10, 1 << 20] {
        let mut guest = Guest::new(&small(size));
        for (n, (state, expected)) in guest.run(10_007).iter().zip(&states).enumerate() {
            assert_eq!(state, expected, "{size} bytes, piece {n}");
        }
        assert!(guest.memory() == plain.memory(), "{size} bytes: memory differs");
        let text = guest.vm.info();
        assert!(number(&text, " chunks evicted") > 4, "{text}");
        assert_eq!(number(&text, " flushes"), 0, "{text}");
        assert!(number(&text, " bytes hot") < 2 << 20, "{text}");
        assert!(text.contains("loops translated: ") && !text.contains("loops translated: 0"), "{text}");
    }
}

#[test]
fn a_page_without_blocks_is_no_code_any_more() {
    if lacks_memory() {
        return;
    }
    let mut guest = Guest::new(&small(0));
    guest.run(1_000_000);
    let marked = (0..PAGES).filter(|page| guest.bed.ram.tracker().code_granules(CODE + page * 0x1000) != 0);
    let (marked, blocks) = (marked.count() as u64, number(&guest.vm.info(), " blocks, "));
    // Two chunks hold a fraction of the pieces; a crossing one has two pages.
    assert!(blocks < pieces() / 2, "{}", guest.vm.info());
    assert!(marked <= blocks + 1, "{marked} pages are marked for {blocks} blocks");
}

#[test]
fn a_reset_frees_all_translations() {
    if lacks_memory() {
        return;
    }
    let mut guest = Guest::new(&small(32 << 20));
    let first = guest.run(1_000_000);
    let text = guest.vm.info();
    assert!(number(&text, " bytes hot") > 100_000 && number(&text, " chunks evicted") == 0, "{text}");
    guest.vcpu.reset(ResetKind::System);
    let text = guest.vm.info();
    assert!(text.starts_with("CPU #0: 0 blocks") && text.contains("code: 0 bytes hot, 0 cold"), "{text}");
    assert!((0..PAGES).all(|page| guest.bed.ram.tracker().code_granules(CODE + page * 0x1000) == 0));
    program(&guest.bed);
    assert!(guest.bed.ram.fill(DATA, 0x1000, 0));
    guest.begin();
    assert_eq!(guest.run(1_000_000).last().map(|s| s.gpr), first.last().map(|s| s.gpr));
}

#[test]
fn pieces_for_single_steps_drive_nothing_out() {
    if lacks_memory() {
        return;
    }
    let mut guest = Guest::new(&JitEngine { one_insn: true, ..small(256 << 10) });
    let states = guest.run(10_007);
    let mut plain = Guest::new(&Interp);
    assert_eq!(states.last(), plain.run(10_007).last());
    assert!(number(&guest.vm.info(), " chunks evicted") > 4);
}
