//! What all software engines have in common, with the interpreter as the one to compare with: the state at the end of
//! counted runs, no memory that is writable and executable at once, and what the JIT's options are called.

use std::path::Path;
use std::time::Duration;

use iced_x86::code_asm::*;

use anura_tests::guests::adversary::{self, Setup};
use anura_tests::{Emulator, anura, guest_file, lacks_engine, need};

const LIMIT: Duration = Duration::from_secs(300);
const NO_PROGRAM: &str = "the anura program is not built; run cargo xtask test";
const NO_GUEST: &str = "no guest kernel; run tools/fetch-guest";

/// The engines of this build that are compared with the interpreter; without the JIT, one more that is quick enough.
fn others(program: &Path) -> Vec<&'static str> {
    match lacks_engine(program, "jit") {
        None => vec!["jit", "jit,tb-size=1"],
        Some(why) => {
            eprintln!("skipped: {why}");
            vec!["interp-portable"]
        }
    }
}

fn adversaries(cpus: u32) {
    let program = need!(anura(), NO_PROGRAM);
    for seed in [3, 7] {
        let run = |engine| {
            let dir = tempfile::tempdir().unwrap();
            let setup = Setup { cpus, rounds: 6000, seed, counted: true };
            adversary::run(engine, &program, dir.path(), setup, LIMIT).unwrap_or_else(|e| panic!("{e}"))
        };
        let first = run("interp");
        assert!(first.text.contains("\nend "), "{}", first.text);
        for engine in others(&program) {
            let run = run(engine);
            assert_eq!(run.text, first.text, "interp's text, and {engine}'s, from seed {seed}");
            assert_eq!(run.hash, first.hash, "the state on interp, and on {engine}, from seed {seed}");
            assert!(run.peak < 256 << 10, "{engine} used {} KiB", run.peak);
            let evicted = run.jit.contains(" flushes, ") && !run.jit.contains(", 0 chunks evicted");
            assert_eq!(evicted, engine.contains("tb-size"), "{engine}: {}", run.jit);
        }
    }
}

#[test]
fn code_that_makes_code_ends_in_one_state_on_every_engine() {
    adversaries(1);
}

#[test]
fn code_that_two_processors_make_ends_in_one_state_on_every_engine() {
    adversaries(2);
}

#[test]
fn code_that_two_processors_make_at_once_comes_to_its_end() {
    let program = need!(anura(), NO_PROGRAM);
    for engine in others(&program) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup { cpus: 2, rounds: 6000, seed: 11, counted: false };
        let run =
            adversary::run(engine, &program, dir.path(), setup, LIMIT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(run.text.matches("end ").count(), 2, "{engine}: {}", run.text);
        assert!(run.peak < 256 << 10, "{engine} used {} KiB", run.peak);
    }
}

/// Serial bytes and state at the end of a counted boot.
fn counted_boot(engine: &str, program: &Path, smp: &str) -> (String, String) {
    let (kernel, initrd) = (guest_file("vmlinuz").unwrap(), guest_file("initrd.gz").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
    args.extend([
        "-append",
        "console=ttyS0 panic=-1 anura.run=check",
        "-smp",
        smp,
        "-m",
        "256",
        "-no-shutdown",
    ]);
    args.extend(["-icount", "shift=1,sleep=off", "-rtc", "base=2020-01-01,clock=vm"]);
    let emulator = Emulator::start_on(engine, program, dir.path(), &args);
    let mut monitor = emulator.monitor();
    assert!(monitor.wait_shutdown(LIMIT), "{engine}: {}", emulator.serial_text());
    (emulator.serial_text(), monitor.run("info statehash"))
}

fn counted_boots(smp: &str) {
    let program = need!(anura(), NO_PROGRAM);
    need!(guest_file("vmlinuz").and(guest_file("initrd.gz")), NO_GUEST);
    let first = counted_boot("interp", &program, smp);
    assert!(first.0.contains("anura-guest: sum 42"), "{}", first.0);
    for engine in others(&program).into_iter().filter(|e| smp == "1" || !e.contains("tb-size")) {
        let other = counted_boot(engine, &program, smp);
        assert!(other.0 == first.0, "the serial bytes on interp and {engine} differ");
        assert_eq!(other.1, first.1, "the state on interp, and on {engine}");
    }
}

#[test]
fn a_counted_boot_ends_in_one_state_on_every_engine() {
    counted_boots("1");
}

#[test]
fn a_counted_boot_of_four_processors_ends_in_one_state_on_every_engine() {
    counted_boots("4");
}

#[test]
fn a_counted_boot_ends_in_one_state_under_disturbances() {
    let program = need!(anura(), NO_PROGRAM);
    need!(guest_file("vmlinuz").and(guest_file("initrd.gz")), NO_GUEST);
    if let Some(why) = lacks_engine(&program, "jit") {
        eprintln!("skipped: {why}");
        return;
    }
    let first = counted_boot("jit", &program, "1");
    let other = counted_boot("jit,chaos=20261", &program, "1");
    assert!(other.0 == first.0, "the serial bytes differ");
    assert_eq!(other.1, first.1, "the states");
}

/// A ROM that opens and closes the A20 gate and looks each time at data and code at 1 MiB.
fn gate_rom() -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut c = CodeAssembler::new(16)?;
    let mut again = c.create_label();
    // What is at FFFF:0510 is at 0:0500 where the gate is closed.
    let gate = |c: &mut CodeAssembler, open: bool| {
        c.in_(al, 0x92)?;
        c.and(al, 0xfcu32 as i32)?;
        c.or(al, if open { 2 } else { 0 })?;
        c.out(0x92, al)
    };
    let look = |c: &mut CodeAssembler| {
        c.add(dx, word_ptr(0x610).es())?;
        // CALL FFFF:0510
        c.db(&[0x9a, 0x10, 0x05, 0xff, 0xff])?;
        c.add(si, cx)
    };
    c.cli()?;
    c.xor(ax, ax)?;
    c.mov(ds, ax)?;
    c.mov(ss, ax)?;
    c.mov(sp, 0x7000)?;
    c.mov(ax, 0xffff)?;
    c.mov(es, ax)?;
    gate(&mut c, true)?;
    // MOV CL, 1 or 2; RETF.
    c.mov(dword_ptr(0x500), 0x00cb_01b1)?;
    c.mov(dword_ptr(0x510).es(), 0x00cb_02b1)?;
    c.mov(word_ptr(0x600), 0x1111)?;
    c.mov(word_ptr(0x610).es(), 0x2222)?;
    c.xor(dx, dx)?;
    c.xor(si, si)?;
    c.xor(cx, cx)?;
    c.mov(bp, 3000)?;
    c.set_label(&mut again)?;
    gate(&mut c, false)?;
    look(&mut c)?;
    gate(&mut c, true)?;
    look(&mut c)?;
    c.dec(bp)?;
    c.jnz(again)?;
    for (low, high) in [(al, ah), (dl, dh)] {
        c.mov(ax, si)?;
        c.mov(bl, high)?;
        c.mov(al, low)?;
        c.out(0xe9, al)?;
        c.mov(al, bl)?;
        c.out(0xe9, al)?;
    }
    c.mov(al, 0xfeu32)?;
    c.out(0x64, al)?;
    c.hlt()?;
    let code = c.assemble(0)?;
    let mut rom = vec![0xf4; 0x1_0000];
    rom[..code.len()].copy_from_slice(&code);
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    Ok(rom)
}

#[test]
fn code_and_data_above_the_megabyte_come_and_go_with_the_a20_gate() {
    let program = need!(anura(), NO_PROGRAM);
    let rom = gate_rom().unwrap();
    for engine in [vec!["interp"], others(&program)].concat() {
        let dir = tempfile::tempdir().unwrap();
        let (image, out) = (dir.path().join("rom"), dir.path().join("text"));
        std::fs::write(&image, &rom).unwrap();
        let debug = format!("file:{}", out.display());
        let args = [
            "-bios",
            image.to_str().unwrap(),
            "-debugcon",
            &debug,
            "-m",
            "16",
            "-nodefaults",
            "-no-shutdown",
        ];
        let emulator = Emulator::start_on(engine, &program, dir.path(), &args);
        assert!(emulator.monitor().wait_shutdown(LIMIT), "{engine}");
        let (code, data) = (3000 * 3, (3000 * 0x3333) as u16);
        let expected = [(code as u16).to_le_bytes(), data.to_le_bytes()].concat();
        assert_eq!(std::fs::read(&out).unwrap(), expected, "{engine}");
    }
}

#[test]
fn no_memory_is_writable_and_executable_while_a_guest_runs() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    let initrd = need!(guest_file("initrd.gz"), NO_GUEST);
    let mut engines = vec!["interp"];
    match lacks_engine(&program, "jit") {
        None => engines.push("jit"),
        Some(why) => eprintln!("skipped: {why}"),
    }
    for engine in engines {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
        args.extend(["-append", "console=ttyS0 quiet panic=-1 anura.run=check", "-smp", "2", "-m", "256"]);
        let mut emulator = Emulator::start_on(engine, &program, dir.path(), &args);
        let mut looks = 0;
        while !emulator.wait_for("reboot: Power down", Duration::ZERO) {
            let both = emulator.writable_code();
            assert!(both.is_empty(), "{engine}: {both:?}");
            looks += 1;
            assert!(looks < 30_000, "{engine}: {}", emulator.serial_text());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(looks > 10, "{engine} was looked at {looks} times");
    }
}

#[test]
fn the_jit_takes_its_options_by_qemus_names() {
    let program = need!(anura(), NO_PROGRAM);
    if let Some(why) = lacks_engine(&program, "jit") {
        eprintln!("skipped: {why}");
        return;
    }
    let good = [
        "tb-size=32",
        "thread=single",
        "thread=multi",
        "one-insn-per-tb=on",
        "tb-size=64,thread=multi,one-insn-per-tb=off",
    ];
    for words in good {
        assert_eq!(lacks_engine(&program, &format!("jit,{words}")), None, "{words}");
    }
    for words in ["tb-size=many", "thread=some", "one-insn-per-tb=maybe", "no-such-word=1"] {
        let said = lacks_engine(&program, &format!("jit,{words}")).unwrap_or_default();
        assert!(said.contains(words.split('=').next().unwrap()), "{words}: {said}");
    }
}

#[test]
fn info_jit_can_be_read_while_a_guest_runs() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    if let Some(why) = lacks_engine(&program, "jit") {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let args = ["-kernel", kernel.to_str().unwrap(), "-append", "console=ttyS0", "-m", "256", "-smp", "2"];
    let mut emulator = Emulator::start_on("jit", &program, dir.path(), &args);
    assert!(emulator.wait_for("Linux version", LIMIT), "{}", emulator.serial_text());
    let text = emulator.monitor().run("info jit");
    for word in ["CPU #0: ", "CPU #1: ", " blocks looked for", "TLB misses: "] {
        assert!(text.contains(word.trim()), "{word}: {text}");
    }
    assert!(!text.contains("CPU #0: 0 blocks"), "{text}");
}
