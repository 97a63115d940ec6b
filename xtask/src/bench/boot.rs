//! `cargo xtask bench boot`: what a boot costs on our engine and on QEMU's TCG, in turn, and the memory beside the guest's.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::latency::{Machine, Monitor};

const USAGE: &str = "usage: cargo xtask bench boot [OPTIONS]
  --only LIST      of cloud, generic, systemd, memory, translation; all of them without
  --rounds N       boots of each machine, in turn (3)
  --engine NAME    the engine of ours (jit, or interp where there is none)
  --cpu MODEL      -cpu of both emulators (their default)
  --without WHAT   leave out anura or qemu
  --qemu PROGRAM   QEMU (qemu-system-x86_64)
  --anura PROGRAM  a built anura";

/// A boot: name, kernel, RAM disk, MiB of RAM, kernel command line.
type Boot = (&'static str, &'static str, &'static str, u64, &'static str);

/// What is booted. `anura-guest: init` stands at the start of /init, `anura-guest: ready` where the shell or the last
/// service would start; all switch themselves off.
const BOOTS: &[Boot] = &[
    ("cloud", "vmlinuz", "initrd.gz", 512, "anura.run=check"),
    ("generic", "vmlinuz-generic", "initrd.gz", 512, "anura.run=check"),
    ("systemd", "vmlinuz", "initrd-systemd.gz", 1024, ""),
];
/// What the issue asks for, as parts of QEMU's figures.
const AIMS: &str = "aims: CPU 0.50, wall 0.60, init 0.60 for cloud; CPU 0.50 for the others; 60 MiB";

struct Options {
    only: Vec<String>,
    rounds: u32,
    engine: Option<String>,
    cpu: Option<String>,
    without: Vec<String>,
    qemu: String,
    anura: Option<PathBuf>,
}

fn options(args: &[&str]) -> Result<Options, String> {
    let mut o = Options {
        only: Vec::new(),
        rounds: 3,
        engine: None,
        cpu: None,
        without: Vec::new(),
        qemu: "qemu-system-x86_64".into(),
        anura: None,
    };
    for pair in args.chunks(2) {
        let [option, value] = pair else { return Err(USAGE.into()) };
        match *option {
            "--only" => o.only.extend(value.split(',').map(str::to_owned)),
            "--rounds" => o.rounds = value.parse().map_err(|_| USAGE)?,
            "--engine" => o.engine = Some((*value).into()),
            "--cpu" => o.cpu = Some((*value).into()),
            "--without" => o.without.push((*value).into()),
            "--qemu" => o.qemu = (*value).into(),
            "--anura" => o.anura = Some(value.into()),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(o)
}

/// Seconds of a boot.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
    init: f64,
    ready: f64,
}

/// CPU seconds of all children that were waited for, in steps of 10 ms.
fn children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|w| w.parse().unwrap_or(0)).collect();
    fields.get(13..15).map_or(0.0, |t| (t[0] + t[1]) as f64 / 100.0)
}

fn command(program: &PathBuf, accel: &str, cpu: Option<&str>, boot: &Boot) -> Command {
    let (_, kernel, disk, ram, append) = boot;
    let cache = crate::guest_cache();
    let mut command = Command::new(program);
    command.args(["-accel", accel, "-m", &ram.to_string(), "-display", "none", "-nic", "none", "-no-reboot"]);
    command.args(["-serial", "stdio", "-kernel"]).arg(cache.join(kernel)).arg("-initrd");
    command.arg(cache.join(disk)).args(["-append", &format!("console=ttyS0 quiet panic=-1 {append}")]);
    if let Some(model) = cpu {
        command.args(["-cpu", model]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Runs a boot to its end. Meanwhile `watch` is called from time to time.
fn run_one(mut command: Command, mut watch: impl FnMut(&mut Child)) -> Result<Cost, String> {
    let before = children();
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let out = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let (mut init, mut ready, mut down, mut last) = (None, None, false, String::new());
        let lines = out.into_iter().flat_map(|out| BufReader::new(out).split(b'\n').map_while(Result::ok));
        for line in lines {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            let now = start.elapsed().as_secs_f64();
            // systemd's banner is the first word of the other kind of guest.
            if init.is_none() && (line.contains("anura-guest: init") || line.contains("systemd")) {
                init = Some(now);
            } else if line.contains("anura-guest: ready") {
                ready = ready.or(Some(now));
            }
            down |= line.contains("Power down");
            last = if line.is_empty() { last } else { line };
        }
        (init, ready, down, last)
    });
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        watch(&mut child);
        std::thread::sleep(Duration::from_millis(10));
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = children() - before;
    let (init, ready, down, last) = reader.join().map_err(|_| "the reader failed")?;
    if !down || ready.is_none() {
        return Err(format!("the guest did not come to its end; its last line: {last}"));
    }
    Ok(Cost { cpu, wall, init: init.unwrap_or(f64::NAN), ready: ready.unwrap_or(f64::NAN) })
}

/// Resident KiB of a process beside its guest's RAM: as it is mapped, and with what is mapped twice counted once.
fn beside(pid: u32, ram: u64) -> Option<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut rss, mut pss, mut counted) = (0, 0, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let word = words.next();
        let number = words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        match word {
            Some("Size:") => counted = number < ram * 1024,
            Some("Rss:") if counted => rss += number,
            Some("Pss:") if counted => pss += number,
            _ => {}
        }
    }
    Some((rss, pss))
}

fn least(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    costs.iter().map(of).fold(f64::INFINITY, f64::min)
}

/// Boots everything, and prints the least of all rounds.
pub fn run(args: &[&str]) -> Result<(), String> {
    let o = options(args)?;
    let wanted = |what: &str| o.only.is_empty() || o.only.iter().any(|w| w == what);
    let words: Vec<&str> = ["generic", "systemd"].into_iter().filter(|what| wanted(what)).collect();
    crate::run(Command::new("tools/fetch-guest").args(words).stdout(Stdio::null()))?;
    let anura = match &o.anura {
        Some(path) => path.clone(),
        None => super::anura()?,
    };
    let engine = o.engine.clone().unwrap_or_else(|| super::default_engine(&anura));
    let machines = [
        (format!("anura {engine}"), anura, engine.as_str(), "anura"),
        ("QEMU".to_owned(), PathBuf::from(&o.qemu), "tcg", "qemu"),
    ];
    let there = |what: &str| {
        !o.without.iter().any(|w| w == what)
            && (what != "qemu" || crate::on_path(&o.qemu) || PathBuf::from(&o.qemu).is_file())
    };
    println!(
        "{:10} {:16} {:>8} {:>8} {:>8} {:>8}   seconds, least of {}",
        "boot", "", "CPU", "wall", "init", "ready", o.rounds
    );
    for boot in BOOTS.iter().filter(|boot| wanted(boot.0)) {
        let mut costs = [Vec::new(), Vec::new()];
        for round in 1..=o.rounds {
            for (index, (name, program, accel, what)) in machines.iter().enumerate() {
                if there(what) {
                    eprintln!("xtask: {} on {name}, round {round} of {}", boot.0, o.rounds);
                    let mut command = command(program, accel, o.cpu.as_deref(), boot);
                    command.args(["-monitor", "none"]);
                    let cost = run_one(command, |_| ()).map_err(|e| format!("{} on {name}: {e}", boot.0))?;
                    costs[index].push(cost);
                }
            }
        }
        let figures = |costs: &[Cost]| {
            let of: [fn(&Cost) -> f64; 4] = [|c| c.cpu, |c| c.wall, |c| c.init, |c| c.ready];
            of.map(|of| least(costs, of))
        };
        let row = |name: &str, values: [f64; 4]| {
            let [cpu, wall, init, ready] = values;
            println!("{:10} {name:16} {cpu:8.2} {wall:8.2} {init:8.2} {ready:8.2}", boot.0);
        };
        for ((name, ..), costs) in machines.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
            row(name, figures(costs));
        }
        if costs.iter().all(|costs| !costs.is_empty()) {
            let (ours, theirs) = (figures(&costs[0]), figures(&costs[1]));
            row("ours / QEMU's", std::array::from_fn(|i| ours[i] / theirs[i]));
        }
    }
    if wanted("memory") {
        for (name, program, accel, what) in &machines {
            if !there(what) {
                continue;
            }
            let (mut rss, mut pss) = (0, 0);
            let boot = &BOOTS[0];
            let mut command = command(program, accel, o.cpu.as_deref(), boot);
            command.args(["-monitor", "none"]);
            run_one(command, |child| {
                let (r, p) = beside(child.id(), boot.3).unwrap_or_default();
                (rss, pss) = (rss.max(r), pss.max(p));
            })
            .map_err(|e| format!("{} on {name}: {e}", boot.0))?;
            let mib = |kib: u64| kib as f64 / 1024.0;
            println!(
                "memory     {name:16} {:8.1} MiB beside the guest's RAM at most, {:.1} with what is mapped twice counted once",
                mib(rss),
                mib(pss)
            );
        }
    }
    if wanted("translation") && engine == "jit" && there("anura") {
        println!(
            "translation, as the monitor tells it at the end of a boot:\n{}",
            translation(&machines[0].1)?
        );
    }
    println!("{AIMS}");
    Ok(())
}

/// What `info jit` says when the cloud kernel has switched itself off.
fn translation(anura: &PathBuf) -> Result<String, String> {
    let socket = crate::target_dir().join(format!("boot.{}", std::process::id()));
    let mut command = command(anura, "jit", None, &BOOTS[0]);
    command.args(["-no-shutdown", "-monitor", &format!("unix:{},server=on,wait=off", socket.display())]);
    let machine = Machine::start(command)?;
    machine.wait_for("Power down")?;
    let mut monitor = Monitor::connect(&socket)?;
    let _ = std::fs::remove_file(&socket);
    monitor.run("info jit")
}
