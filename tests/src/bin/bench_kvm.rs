//! What `-accel kvm` costs: our own time per exit on a kernel that takes none, and exits per second and the time to the
//! guest's first instruction on this host's KVM, in turn with QEMU's.
//!
//! Usage: `bench_kvm [--exits N] [--rounds N]`. It needs the release build of `anura`; without `/dev/kvm` or QEMU it says
//! so and measures what it can.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anura_accel_kvm::{Kvm, bench};
use anura_tests::{anura, tool};

/// A ROM that writes port 80h so often and leaves by isa-debug-exit.
fn rom(dir: &Path, exits: u32) -> PathBuf {
    // cli; mov ecx, exits; again: out 0x80, al; dec ecx; jnz again; xor ax, ax; out 0xf4, al; hlt
    let mut code = vec![0xfa, 0x66, 0xb9];
    code.extend(exits.to_le_bytes());
    code.extend([0xe6, 0x80, 0x66, 0x49, 0x75, 0xfa, 0x31, 0xc0, 0xe6, 0xf4, 0xf4]);
    let mut bytes = vec![0xf4; 0x10000];
    bytes[..code.len()].copy_from_slice(&code);
    bytes[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    let file = dir.join(format!("rom{exits}"));
    std::fs::write(&file, bytes).expect("the ROM is written");
    file
}

/// How long the program runs from start to the guest's exit.
fn time(program: &Path, rom: &Path) -> Option<Duration> {
    let start = Instant::now();
    let status = Command::new(program)
        .args(["-accel", "kvm", "-nodefaults", "-display", "none", "-vga", "none", "-m", "16", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(rom)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    (status.code() == Some(1)).then(|| start.elapsed())
}

fn number(args: &[String], name: &str, default: u32) -> u32 {
    let at = args.iter().position(|a| a == name);
    at.and_then(|i| args.get(i + 1)).and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (exits, rounds) = (number(&args, "--exits", 20_000), number(&args, "--rounds", 5));
    for (what, mmio) in [("port", false), ("MMIO", true)] {
        for (chip, split) in [("split", true), ("off", false)] {
            // The best of a few: the rest is what else the host does.
            let best = (0..5).filter_map(|_| bench::exit(mmio, split, 1_000_000).ok()).min();
            let ns = best.map_or(0, |t| t.as_nanos());
            println!(
                "{what} exit, kernel-irqchip={chip}: {ns} ns of ours on a kernel that takes no time (aim: 150)"
            );
        }
    }
    let Some(program) = anura() else {
        println!("skipped: the anura program is not built");
        return;
    };
    if let Err(why) = Kvm::default().kind() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder for ROMs");
    let (short, long) = (rom(dir.path(), 1), rom(dir.path(), exits));
    let qemu = tool("qemu-system-x86_64");
    if qemu.is_none() {
        println!("skipped: QEMU is not installed; only our figures follow");
    }
    let programs = [Some(program), qemu];
    let mut best = [[Duration::MAX; 2]; 2];
    for _ in 0..rounds {
        for (n, program) in programs.iter().enumerate() {
            let Some(program) = program else { continue };
            for (k, rom) in [&short, &long].into_iter().enumerate() {
                if let Some(t) = time(program, rom) {
                    best[n][k] = best[n][k].min(t);
                }
            }
        }
    }
    let name = ["anura", "QEMU"];
    let mut rates = [0.0; 2];
    for n in 0..2 {
        if best[n][1] == Duration::MAX {
            continue;
        }
        rates[n] = f64::from(exits - 1) / best[n][1].saturating_sub(best[n][0]).as_secs_f64();
        println!(
            "{}: {:.0} port exits a second; {:.1} ms from start to the guest's end of two instructions",
            name[n],
            rates[n],
            best[n][0].as_secs_f64() * 1000.0
        );
    }
    if rates[1] > 0.0 {
        println!(
            "exits against QEMU: {:.2} (aim: 1.0; where ring 0 is emulated the kernel's emulator decides); start against QEMU: \
             {:.2} (aim: 0.25)",
            rates[0] / rates[1],
            best[0][0].as_secs_f64() / best[1][0].as_secs_f64()
        );
    }
}
