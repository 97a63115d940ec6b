//! Guest instructions per second of the interpreter on hot loops, and what a Linux boot costs beside QEMU.
//!
//! Run as `cargo xtask bench interp [--kernel BZIMAGE] [--initrd FILE] [--anura PROGRAM] [--qemu PROGRAM]`. Each loop's
//! line is the best of several rounds. With a kernel, it is booted by us and by QEMU's TCG in turn, with the initial RAM
//! disk of `tools/fetch-guest` to its power-off (without one to the panic that finds no root); CPU time is what the process and its threads used, and memory is what is resident
//! beside the guest's own RAM.

use anura_accel::{Budget, Vcpu};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::vcpu::SoftVcpu;
use anura_vmcore::CpuSignal;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const COUNT: u64 = 20_000_000;
const ROUNDS: u32 = 5;
/// What the issue asks for, in millions per second.
const AIM: f64 = 60.0;

/// Endless loops: name and 64-bit code.
const LOOPS: &[(&str, &[u8])] = &[
    ("integer", b"\x48\x01\xd8\x48\x31\xc3\x48\x8d\x54\x58\x05\x48\xc1\xea\x03\x48\x83\xe9\x01\x48\x39\xc2\x75\xe8\xeb\xe6"),
    ("memory", b"\x48\x8b\x06\x48\x03\x46\x08\x48\x89\x46\x10\xff\x46\x18\x0f\xb6\x56\x03\x48\x01\xd1\x48\x85\xc9\x75\xe6\xeb\xe4"),
    ("call and return", b"\x53\xe8\x08\x00\x00\x00\x5b\x48\xff\xc9\x75\xf4\xeb\xf2\x55\x48\x89\xe5\x89\xf8\x6b\xc0\x1f\xc9\xc3"),
    ("branches", b"\x89\xc8\x69\xc0\x6d\x4e\xc6\x41\x05\x39\x30\x00\x00\x89\xc1\xa9\x00\x00\x01\x00\x74\x05\x83\xc3\x03\xeb\x03\x83\xeb\x01\x83\xfb\x64\x7c\xdd\x31\xdb\xeb\xd9"),
    ("scalar floating point", b"\xf2\x0f\x10\x06\xf2\x0f\x59\xc1\xf2\x0f\x58\xd0\x48\xff\xc9\x75\xef\xeb\xed"),
    ("rep movsq (iterations)", b"\xb9\x00\x02\x00\x00\x48\x8d\xbe\x00\x10\x00\x00\x56\xf3\x48\xa5\x5e\xeb\xed"),
];

fn measure(name: &str, code: &[u8]) -> f64 {
    let bed = TestBed::new(16 << 20, "qemu64");
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..16u64 {
        let at = 0x1_0000 + page * 0x1000;
        bed.map_page(root, &mut next, at, at | 7);
    }
    bed.ram.write(0x1_0000, code);
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    enter_long_mode(vcpu.cpu(), root, 3);
    let env = &mut vcpu.cpu().env;
    env.rip = 0x1_0000;
    env.gpr[1] = 1 << 40;
    env.gpr[4] = 0x1_f000;
    env.gpr[6] = 0x1_2000;
    let mut best = 0f64;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let exit = vcpu.run(Budget::Instructions(COUNT));
        assert_eq!(exit, anura_accel::VcpuExit::BudgetSpent, "{name}");
        best = best.max(COUNT as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    println!("{name:24} {best:8.1} M/s");
    best
}

/// CPU seconds of a boot and the greatest resident memory in KiB beside the guest's RAM.
struct Boot {
    seconds: f64,
    beside: u64,
}

/// RAM of the booted guest, in MiB.
const RAM: u64 = 512;

/// CPU seconds of all children that were waited for.
fn children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|w| w.parse().unwrap_or(0)).collect();
    // cutime and cstime, fields 16 and 17, in ticks of 10 ms.
    fields.get(13..15).map_or(0.0, |t| (t[0] + t[1]) as f64 / 100.0)
}

/// Resident KiB of a process outside of the mapping that is its guest's RAM.
fn resident_beside(pid: u32) -> Option<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut all, mut guest, mut size) = (0, 0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let number = |w: Option<&str>| w.and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        match words.next() {
            Some("Size:") => size = number(words.next()),
            Some("Rss:") => {
                let rss = number(words.next());
                all += rss;
                if size >= RAM * 1024 {
                    guest += rss;
                }
            }
            _ => {}
        }
    }
    Some(all - guest)
}

fn boot(program: &str, engine: &[&str], kernel: &str, initrd: Option<&str>) -> std::io::Result<Boot> {
    let before = children();
    let mut command = Command::new(program);
    command.args(engine).args(["-m", &RAM.to_string(), "-display", "none", "-monitor", "none", "-no-reboot"]);
    command.args([
        "-serial",
        "null",
        "-kernel",
        kernel,
        "-append",
        "console=ttyS0 quiet panic=-1 anura.run=check",
    ]);
    if let Some(i) = initrd {
        command.args(["-initrd", i]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut beside = 0;
    loop {
        if child.try_wait()?.is_some() {
            break;
        }
        beside = beside.max(resident_beside(child.id()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(Boot { seconds: children() - before, beside })
}

fn boots(options: &Options, kernel: &str) -> std::io::Result<()> {
    let anura = options.anura.clone().unwrap_or_else(|| {
        let mut own = std::env::current_exe().unwrap_or_default();
        own.set_file_name("anura");
        own.to_string_lossy().into_owned()
    });
    let qemu = options.qemu.as_deref().unwrap_or("qemu-system-x86_64");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        ours.push(boot(&anura, &["-accel", "interp"], kernel, options.initrd.as_deref())?);
        match boot(
            qemu,
            &["-accel", "tcg", "-machine", "pc", "-nic", "none"],
            kernel,
            options.initrd.as_deref(),
        ) {
            Ok(b) => theirs.push(b),
            Err(e) => println!("{qemu}: {e}; no comparison"),
        }
    }
    let best = |b: &[Boot]| b.iter().map(|b| b.seconds).fold(f64::INFINITY, f64::min);
    let beside = |b: &[Boot]| b.iter().map(|b| b.beside).max().unwrap_or(0) as f64 / 1024.0;
    println!(
        "{:24} {:8.1} s CPU, {:.1} MiB beside the guest's RAM (aim 30 s, 40 MiB)",
        "boot",
        best(&ours),
        beside(&ours)
    );
    if !theirs.is_empty() {
        let ratio = best(&ours) / best(&theirs);
        println!(
            "{:24} {:8.1} s CPU, {:.1} MiB: we take {ratio:.1} times its CPU (aim 14)",
            "QEMU TCG",
            best(&theirs),
            beside(&theirs)
        );
    }
    Ok(())
}

#[derive(Default)]
struct Options {
    kernel: Option<String>,
    initrd: Option<String>,
    anura: Option<String>,
    qemu: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut o = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let slot = match a.as_str() {
            "--kernel" => &mut o.kernel,
            "--initrd" => &mut o.initrd,
            "--anura" => &mut o.anura,
            "--qemu" => &mut o.qemu,
            _ => return Err(format!("unknown option {a}")),
        };
        *slot = Some(args.next().ok_or_else(|| format!("{a} needs a value"))?);
    }
    Ok(o)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(o) => o,
        Err(e) => {
            eprintln!("bench interp: {e}");
            return ExitCode::FAILURE;
        }
    };
    let rates: Vec<f64> = LOOPS.iter().map(|(name, code)| measure(name, code)).collect();
    let hot = &rates[..4];
    let geomean = (hot.iter().map(|r| r.ln()).sum::<f64>() / hot.len() as f64).exp();
    println!("{:24} {geomean:8.1} M/s (first four; aim {AIM:.0})", "geometric mean");
    if let Some(kernel) = &options.kernel
        && let Err(e) = boots(&options, kernel)
    {
        eprintln!("bench interp: {e}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
