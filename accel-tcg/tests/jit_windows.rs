//! Loops whose accesses go through windows: over the ends of pages that lie elsewhere, into what may not be touched, and
//! again after the page tables have changed. The JIT must do what the interpreter does.

use anura_accel::{Accelerator, Budget, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine};
use anura_vmcore::CpuSignal;
use anura_x86::TableReg;

const CODE: u64 = 0x1_0000;
/// Handlers, a HLT for each vector, and the table of gates.
const HANDLERS: u64 = 0x1_1000;
const IDT: u64 = 0x1_2000;
const STACK: u64 = 0x1_4000;
const DATA: u64 = 0x2_0000;
const PAGES: u64 = 32;
const ROOT: u64 = 0x10_0000;
/// The page table of the first two megabytes: tables are taken in this order.
const TABLE: u64 = ROOT + 0x3000;

/// A page of code apart, so that what is there does not belong to the loop.
const APART: u64 = 0x1_5000;

/// Where a page of the data lies: no two neighbours are neighbours there.
fn physical(page: u64) -> u64 {
    DATA + (page * 13 + 5) % PAGES * 0x1000
}

/// Registers and data after a program has come to its HLT, with the data's page `missing` not there.
fn outcome(
    engine: &dyn Accelerator,
    code: &[u8],
    apart: &[u8],
    missing: u64,
) -> (Vec<u64>, u64, u64, Vec<u8>) {
    let bed = TestBed::new(4 << 20, "qemu64");
    let mut next = ROOT + 0x1000;
    for page in [CODE, HANDLERS, IDT, STACK - 0x1000, APART, TABLE] {
        bed.map_page(ROOT, &mut next, page, page | 3);
    }
    for page in (0..PAGES).filter(|page| *page != missing) {
        bed.map_page(ROOT, &mut next, DATA + page * 0x1000, physical(page) | 3);
    }
    for v in 0..32u64 {
        let to = HANDLERS + v;
        bed.put(IDT + v * 16, to & 0xffff | 0x10 << 16 | 0x8e << 40 | to >> 16 << 48);
        bed.put(IDT + v * 16 + 8, to >> 32);
    }
    bed.ram.write(HANDLERS, &[0xf4; 32]);
    bed.ram.write(CODE, code);
    bed.ram.write(APART, apart);
    let data: Vec<u8> = (0..PAGES << 12).map(|n: u64| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    bed.ram.write(DATA, &data);
    let gdt = CODE + 0xf00;
    bed.put(gdt + 0x10, 0x00af_9b00_0000_ffff);
    bed.put(gdt + 0x18, 0x00cf_9300_0000_ffff);
    let mut cpu = bed.cpu();
    enter_long_mode(&mut cpu, ROOT, 0);
    let mut state = cpu.save_state();
    (state.rip, state.rflags) = (CODE, 2);
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    state.gdtr = TableReg { base: gdt, limit: 0x1f };
    state.idtr = TableReg { base: IDT, limit: 32 * 16 - 1 };
    let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(Budget::Instructions(10_000_000)), VcpuExit::Halted);
    if engine.name() == "jit" {
        assert!(!vm.info().contains("loops translated: 0\n"), "no loop was found: {}", vm.info());
    }
    let end = vcpu.state();
    let mut now = vec![0; data.len()];
    bed.ram.read(DATA, &mut now);
    (end.gpr.to_vec(), end.rip, end.cr2, now)
}

fn agree(code: &[u8], apart: &[u8], missing: u64) -> u64 {
    let jit = JitEngine { exact: true, jumps_back: 16, ..JitEngine::default() };
    let ours = outcome(&jit, code, apart, missing);
    let reference = outcome(&Interp, code, apart, missing);
    assert_eq!((&ours.0, ours.1, ours.2), (&reference.0, reference.1, reference.2));
    assert!(ours.3 == reference.3, "memory differs");
    ours.1
}

/// Adds up words of eight bytes at steps of `from`, and changes others at steps of `to`.
fn walk(from: u8, to: u8) -> Vec<u8> {
    let mut code = vec![0x48, 0xbe];
    code.extend((DATA + 3).to_le_bytes());
    code.extend([0x48, 0xbf]);
    code.extend((DATA + 0x1_0005).to_le_bytes());
    // mov ecx, 4000
    code.extend([0xb9, 0xa0, 0x0f, 0, 0]);
    // again: mov rax,[rsi]; add rbx,rax; xor [rdi],rbx; add rsi,FROM; add rdi,TO; dec ecx; jnz again; hlt
    code.extend([0x48, 0x8b, 0x06, 0x48, 0x01, 0xc3, 0x48, 0x31, 0x1f]);
    code.extend([0x48, 0x83, 0xc6, from, 0x48, 0x83, 0xc7, to, 0xff, 0xc9, 0x75, 0xeb, 0xf4]);
    code
}

#[test]
fn a_loop_goes_over_the_ends_of_pages_that_lie_elsewhere() {
    for (from, to) in [(8, 8), (13, 11), (1, 15), (15, 1)] {
        assert_eq!(agree(&walk(from, to), &[], PAGES), CODE + walk(from, to).len() as u64);
    }
}

#[test]
fn a_loop_that_comes_to_a_page_that_is_not_there_faults_at_its_first_byte() {
    // The reader comes to page 5, the writer to page 20.
    for missing in [5, 20] {
        assert_eq!(agree(&walk(13, 11), &[], missing), HANDLERS + 14 + 1);
    }
}

#[test]
fn a_loop_sees_page_tables_that_changed_between_two_of_its_runs() {
    let entry = TABLE + (DATA >> 12) * 8;
    let change = (physical(0) ^ physical(1)) as u32;
    // Nothing but the loop itself uses the page, so nothing else notices that it has gone.
    let mut code = Vec::new();
    let mut apart = Vec::new();
    // mov r8d, 40; mov r9, the page's entry; jmp outer
    code.extend([0x41, 0xb8, 40, 0, 0, 0, 0x49, 0xb9]);
    code.extend(entry.to_le_bytes());
    jump(&mut code, CODE, &[0xe9], APART);
    // outer: mov rsi, DATA; mov ecx, 200; jmp again
    let again = CODE + code.len() as u64;
    apart.extend([0x48, 0xbe]);
    apart.extend(DATA.to_le_bytes());
    apart.extend([0xb9, 200, 0, 0, 0]);
    jump(&mut apart, APART, &[0xe9], again);
    // again: mov rax,[rsi]; add rbx,rax; add [rsi+8],rcx; add rsi,16; dec ecx; jnz again; jmp change
    code.extend([0x48, 0x8b, 0x06, 0x48, 0x01, 0xc3, 0x48, 0x01, 0x4e, 0x08, 0x48, 0x83, 0xc6, 0x10]);
    code.extend([0xff, 0xc9, 0x75, 0xee]);
    jump(&mut code, CODE, &[0xe9], APART + apart.len() as u64);
    // change: xor qword [r9], CHANGE; mov rsi, DATA; invlpg [rsi]; dec r8d; jnz outer; hlt
    apart.extend([0x49, 0x81, 0x31]);
    apart.extend(change.to_le_bytes());
    apart.extend([0x48, 0xbe]);
    apart.extend(DATA.to_le_bytes());
    apart.extend([0x0f, 0x01, 0x3e, 0x41, 0xff, 0xc8]);
    jump(&mut apart, APART, &[0x0f, 0x85], APART);
    apart.push(0xf4);
    assert_eq!(agree(&code, &apart, PAGES), APART + apart.len() as u64);
}

/// Appends a jump with a displacement of 32 bits to code that begins at `start`.
fn jump(code: &mut Vec<u8>, start: u64, opcode: &[u8], to: u64) {
    code.extend(opcode);
    let next = start + code.len() as u64 + 4;
    code.extend((to.wrapping_sub(next) as u32).to_le_bytes());
}
