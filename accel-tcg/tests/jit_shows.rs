//! What the JIT shows of itself: the text of `info jit` and the items of the log, and the map for `perf`.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{JitEngine, generated_code};
use anura_vmcore::CpuSignal;
use log::{LevelFilter, Log, Metadata, Record};
use std::cell::RefCell;
use std::sync::{Arc, Once};

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

#[test]
fn a_loop_whose_head_others_jump_back_to_is_translated_once() {
    // MOV ECX, 1000; again: MOV EDX, 3; head: DEC EDX; JNZ head.
    let mut code = vec![0xb9, 0xe8, 3, 0, 0, 0xba, 3, 0, 0, 0, 0xff, 0xca, 0x75, 0xfc];
    // More than a loop may hold, then MOV EDX, 3; DEC ECX; JNZ head; HLT.
    code.resize(code.len() + 400, 0x90);
    code.extend([0xba, 3, 0, 0, 0, 0xff, 0xc9, 0x0f, 0x85]);
    code.extend((10 - (code.len() as i32 + 4)).to_le_bytes());
    code.push(0xf4);
    let engine = JitEngine { jumps_back: 5, ..JitEngine::default() };
    let Some(mut g) = guest(engine, &code) else { return };
    assert_eq!(g.vcpu.run(Budget::Unlimited), VcpuExit::Halted);
    assert!(g.vm.info().contains("loops translated: 1\n"), "{}", g.vm.info());
}

thread_local! {
    /// Items that this test has on, and what came.
    static LOG: RefCell<(Vec<&'static str>, String)> = const { RefCell::new((Vec::new(), String::new())) };
}

struct Kept;

impl Log for Kept {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        LOG.with_borrow(|l| l.0.contains(&m.target()))
    }
    fn log(&self, r: &Record<'_>) {
        if self.enabled(r.metadata()) {
            LOG.with_borrow_mut(|l| l.1 += &format!("{}: {}\n", r.target(), r.args()));
        }
    }
    fn flush(&self) {}
}

/// What a program that ends in HLT leaves in the log.
fn logged(items: &[&'static str], engine: JitEngine, code: &[u8]) -> Option<String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Kept).unwrap();
        log::set_max_level(LevelFilter::Trace);
    });
    let mut g = guest(engine, code)?;
    LOG.with_borrow_mut(|l| *l = (items.to_vec(), String::new()));
    // Without exact budgets, a run that has one is the interpreter's.
    let exit = g.vcpu.run(if engine.exact { Budget::Instructions(5000) } else { Budget::Unlimited });
    assert!(matches!(exit, VcpuExit::Halted | VcpuExit::TripleFault), "{exit:?}");
    let text = LOG.with_borrow(|l| l.1.clone());
    assert!(!text.lines().any(|l| l.contains("panicked")));
    Some(text)
}

#[test]
fn in_asm_shows_the_instructions_of_each_block_once() {
    let Some(text) = logged(&["in_asm"], JitEngine::default(), &LOOP) else { return };
    assert_eq!(text.matches("IN:").count(), 3, "{text}");
    assert!(text.contains("0x0000000000010000:  b9 e8 03 00 00 "), "{text}");
    assert!(text.contains("mov ecx,3E8h") && text.contains("dec ecx") && text.contains("hlt"), "{text}");
}

#[test]
fn op_shows_the_operations_of_a_block() {
    let Some(text) = logged(&["op"], JitEngine::default(), &LOOP) else { return };
    assert!(text.contains("op: OP:\nblock pa=") && text.contains("rcx = mov.i32 0x3e8"), "{text}");
}

#[test]
fn out_asm_shows_the_hosts_code_of_a_block() {
    let Some(text) = logged(&["out_asm"], JitEngine::default(), &LOOP) else { return };
    assert_eq!(text.matches("OUT: [0x1000").count(), 3, "{text}");
    assert!(text.contains("mov ecx,3E8h"), "{text}");
}

#[test]
fn exec_shows_every_block_that_is_entered() {
    for exact in [false, true] {
        let engine = JitEngine { exact, ..JitEngine::default() };
        let Some(text) = logged(&["exec"], engine, &LOOP) else { return };
        // The first has the loop's first turn.
        assert_eq!(text.matches("Trace 0: ").count(), 1 + 999 + 1, "exact {exact}");
        assert_eq!(text.matches("/0000000000010005/").count(), 999, "exact {exact}");
    }
}

#[test]
fn cpu_shows_the_registers_before_each_block() {
    let Some(text) = logged(&["cpu"], JitEngine::default(), &LOOP) else { return };
    assert_eq!(text.matches("CPU#0").count(), 1001);
    for turn in ["RCX=0000000000000000", "RCX=0000000000000001", "RCX=00000000000003e7"] {
        assert!(text.contains(turn), "{turn}");
    }
}

#[test]
fn int_shows_what_is_delivered() {
    // UD2, without a table to lead anywhere.
    let Some(text) = logged(&["int"], JitEngine::default(), &[0x0f, 0x0b]) else { return };
    assert!(
        text.contains("     0: v=06 e=0000 i=0 cpl=0 IP=0010:0000000000010000 pc=0000000000010000"),
        "{text}"
    );
    assert!(text.contains(" v=08 "), "{text}");
}

#[test]
fn the_map_for_perf_names_blocks_and_stubs() {
    let engine = JitEngine { perf_map: true, ..JitEngine::default() };
    let Some(mut g) = guest(engine, &LOOP) else { return };
    assert_eq!(g.vcpu.run(Budget::Unlimited), VcpuExit::Halted);
    let path = format!("/tmp/perf-{}.map", std::process::id());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut pieces = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let mut number = || u64::from_str_radix(words.next().unwrap(), 16).unwrap();
        pieces.push((number(), number(), words.next().unwrap()));
    }
    for name in ["anura:enter", "anura:slow", "anura:loadx87", "guest:0x10000", "guest:0x10005.cold"] {
        assert_eq!(pieces.iter().filter(|p| p.2 == name && p.1 > 0).count(), 1, "{name}: {text}");
    }
    pieces.sort();
    assert!(pieces.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{text}");
}

/// The first so many bytes of a dump, in words; they go.
fn words<const N: usize>(dump: &mut &[u8], bytes: [usize; N]) -> [u64; N] {
    bytes.map(|n| {
        let (word, rest) = dump.split_at(n);
        *dump = rest;
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(word);
        u64::from_le_bytes(wide)
    })
}

#[test]
fn the_dump_for_perf_holds_the_code_of_blocks_and_stubs() {
    let engine = JitEngine { jit_dump: true, ..JitEngine::default() };
    let Some(mut g) = guest(engine, &LOOP) else { return };
    let path = format!("jit-{}.dump", std::process::id());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // perf finds it by this mapping.
    assert!(maps.lines().any(|l| l.contains(&path) && l.contains(" r-xp ")), "{maps}");
    assert_eq!(g.vcpu.run(Budget::Unlimited), VcpuExit::Halted);
    drop(g);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut dump = &bytes[..];
    // Magic, version, size of the header, machine, nothing, process; time and flags.
    let header = words(&mut dump, [4; 6]);
    assert_eq!(header, [0x4a69_5444, 1, 40, 62, 0, std::process::id().into()]);
    let [mut last, flags] = words(&mut dump, [8; 2]);
    assert!(last != 0 && flags == 0);
    let (mut names, mut closed) = (Vec::new(), false);
    while !dump.is_empty() {
        let [kind, size, time] = words(&mut dump, [4, 4, 8]);
        assert!(time >= last && !closed);
        last = time;
        if kind == 3 {
            assert_eq!(size, 16);
            closed = true;
            continue;
        }
        assert_eq!(kind, 0, "a record of code");
        let [pid, tid, vma, at, len, index] = words(&mut dump, [4, 4, 8, 8, 8, 8]);
        assert!(pid == u64::from(std::process::id()) && tid != 0 && vma == at && at > 0x1_0000);
        assert_eq!(index as usize, names.len());
        let (rest, behind) = dump.split_at(size as usize - 56);
        dump = behind;
        let end = rest.iter().position(|b| *b == 0).unwrap();
        let code = &rest[end + 1..];
        assert_eq!(code.len() as u64, len);
        assert!(!code.is_empty() && code.iter().any(|b| *b != 0));
        names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
    }
    assert!(closed);
    for name in ["anura:enter", "anura:slow", "guest:0x10000", "guest:0x10005", "guest:0x10005.cold"] {
        assert_eq!(names.iter().filter(|n| *n == name).count(), 1, "{name}: {names:?}");
    }
}
