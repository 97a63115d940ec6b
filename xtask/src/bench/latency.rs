//! `cargo xtask bench latency`: the host's CPU under an idle guest, a short sleep in a guest, and how soon the monitor's
//! `stop` is answered while the guest computes; on our engine and on QEMU's TCG.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: cargo xtask bench latency [OPTIONS]
  --only LIST      of idle, sleep, stop; all of them without
  --stops N        how often the guest is stopped (1000)
  --engine NAME    the engine of ours (jit, or interp where there is none)
  --without WHAT   leave out anura or qemu
  --qemu PROGRAM   QEMU (qemu-system-x86_64)
  --anura PROGRAM  a built anura";

/// Longest time for a guest to come to the point where it is measured.
const LIMIT: Duration = Duration::from_secs(300);
/// How long an idle guest is watched, after it had time to settle.
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(10);

/// A running emulator, ended when dropped.
pub struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Machine {
    /// Starts it, its serial port on standard output.
    pub fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (send, lines) = channel();
        let out = child.stdout.take();
        std::thread::spawn(move || {
            let lines =
                out.into_iter().flat_map(|out| BufReader::new(out).split(b'\n').map_while(Result::ok));
            for line in lines {
                let _ = send.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits for a line with `text` in it; what follows.
    pub fn wait_for(&self, text: &str) -> Result<String, String> {
        let end = Instant::now() + LIMIT;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.map_err(|_| format!("the guest never said {text:?}"))?;
            if let Some((_, rest)) = line.split_once(text) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// CPU seconds so far, in steps of 10 ms.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or("").to_owned();
        let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|w| w.parse::<u64>().ok());
        ticks.sum::<u64>() as f64 / 100.0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A human monitor on a socket.
pub struct Monitor(UnixStream);

impl Monitor {
    /// Connects and waits for the prompt.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|e| format!("the monitor: {e}"))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
        let mut monitor = Self(stream);
        monitor.answer()?;
        Ok(monitor)
    }

    fn answer(&mut self) -> Result<String, String> {
        let (mut text, mut some) = (Vec::new(), [0; 4096]);
        while !text.ends_with(b"(qemu) ") {
            match self.0.read(&mut some) {
                Ok(n) if n > 0 => text.extend(&some[..n]),
                _ => return Err("the monitor does not answer".into()),
            }
        }
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        Ok(text.strip_suffix("(qemu) ").unwrap_or(&text).to_owned())
    }

    /// Runs a command; what it printed, without the echo.
    pub fn run(&mut self, command: &str) -> Result<String, String> {
        self.0.write_all(format!("{command}\r").as_bytes()).map_err(|e| format!("the monitor: {e}"))?;
        let text = self.answer()?;
        Ok(text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned()))
    }
}

fn command(program: &PathBuf, accel: &str, cpus: &str, disk: &Path, append: &str) -> Command {
    let mut command = Command::new(program);
    command.args([
        "-accel",
        accel,
        "-smp",
        cpus,
        "-m",
        "512",
        "-display",
        "none",
        "-nic",
        "none",
        "-no-reboot",
    ]);
    command
        .args(["-serial", "stdio", "-kernel"])
        .arg(crate::guest_cache().join("vmlinuz"))
        .arg("-initrd")
        .arg(disk);
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {append}")]);
    command
}

/// CPU of the host, in per cent of one processor, while four processors of a shell that waits are idle.
fn idle(program: &PathBuf, accel: &str) -> Result<String, String> {
    let mut command = command(program, accel, "4", &crate::guest_cache().join("initrd.gz"), "");
    command.args(["-monitor", "none"]);
    let machine = Machine::start(command)?;
    machine.wait_for("anura-guest: ready")?;
    std::thread::sleep(SETTLE);
    let (before, start) = (machine.cpu(), Instant::now());
    std::thread::sleep(WATCH);
    let part = (machine.cpu() - before) / start.elapsed().as_secs_f64();
    Ok(format!("{:.1} % of a host CPU", part * 100.0))
}

/// What 200 microseconds of sleep take in the guest, by the guest's clock.
fn sleep(program: &PathBuf, accel: &str, disk: &Path) -> Result<String, String> {
    let mut command = command(program, accel, "1", disk, "rdinit=/bench -- --sleep");
    command.args(["-monitor", "none"]);
    let machine = Machine::start(command)?;
    Ok(slept(&machine.wait_for("bench: sleep")?))
}

fn slept(words: &str) -> String {
    let figures: Vec<f64> =
        words.split_whitespace().filter_map(|w| w.parse().ok()).map(|ns: f64| ns / 1e3).collect();
    match figures[..] {
        [median, high] => format!("{median:.0} us median, {high:.0} us 99th percentile"),
        _ => words.to_owned(),
    }
}

/// How long `stop` takes while two processors compute.
fn stop(program: &PathBuf, accel: &str, disk: &Path, count: u32) -> Result<String, String> {
    let socket = crate::target_dir().join(format!("bench-guest/monitor.{}", std::process::id()));
    let mut command = command(program, accel, "2", disk, "rdinit=/bench -- --spin");
    command.args(["-monitor", &format!("unix:{},server=on,wait=off", socket.display())]);
    let machine = Machine::start(command)?;
    machine.wait_for("bench: spins")?;
    let mut monitor = Monitor::connect(&socket)?;
    let _ = std::fs::remove_file(&socket);
    let mut took = Vec::new();
    for i in 0..count {
        let start = Instant::now();
        monitor.run("stop")?;
        took.push(start.elapsed().as_secs_f64() * 1e3);
        monitor.run("cont")?;
        // Not always after the same time of running.
        std::thread::sleep(Duration::from_micros(u64::from(i % 17) * 300));
    }
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    Ok(format!("{:.2} ms median, {:.2} ms 99th percentile, {:.2} ms at most", at(50), at(99), at(100)))
}

/// Measures and prints.
pub fn run(args: &[&str]) -> Result<(), String> {
    let (mut only, mut without, mut stops) = (Vec::new(), Vec::new(), 1000u32);
    let (mut engine, mut qemu, mut anura) = (None, PathBuf::from("qemu-system-x86_64"), None);
    for pair in args.chunks(2) {
        let [option, value] = pair else { return Err(USAGE.into()) };
        match *option {
            "--only" => only.extend(value.split(',')),
            "--stops" => stops = value.parse().map_err(|_| USAGE)?,
            "--engine" => engine = Some((*value).to_owned()),
            "--without" => without.push(*value),
            "--qemu" => qemu = PathBuf::from(value),
            "--anura" => anura = Some(PathBuf::from(value)),
            _ => return Err(USAGE.into()),
        }
    }
    crate::with_cloud_guest()?;
    let program = super::guest::build()?;
    let disk = super::guest::ram_disk(&program)?;
    let anura = anura.map_or_else(super::anura, Ok)?;
    let engine = engine.unwrap_or_else(|| super::default_engine(&anura));
    let accel = super::accel(&anura, &engine);
    let mut machines = Vec::new();
    if !without.contains(&"anura") {
        machines.push((format!("anura {engine}"), anura, accel.as_str()));
    }
    if !without.contains(&"qemu") && (qemu.is_file() || crate::on_path(&qemu.to_string_lossy())) {
        machines.push(("QEMU".to_owned(), qemu, "tcg,thread=multi"));
    }
    let wanted = |what: &str| only.is_empty() || only.contains(&what);
    if wanted("sleep") {
        let output = Command::new(&program).arg("--sleep").output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        let words = said.lines().find_map(|line| line.strip_prefix("bench: sleep ")).unwrap_or_default();
        println!("sleep of 200 us   {:14} {}", "native", slept(words));
    }
    for (name, program, accel) in &machines {
        if wanted("sleep") {
            println!("sleep of 200 us   {name:14} {}", sleep(program, accel, &disk)?);
        }
        if wanted("stop") {
            println!("stop ({stops} times) {name:14} {}", stop(program, accel, &disk, stops)?);
        }
        if wanted("idle") {
            println!("idle, 4 CPUs      {name:14} {}", idle(program, accel)?);
        }
    }
    println!("aims: sleep 320 us median; stop 5 ms 99th percentile; idle 2 %");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::slept;

    #[test]
    fn nanoseconds_become_microseconds() {
        assert_eq!(slept("272400 401000"), "272 us median, 401 us 99th percentile");
    }
}
