//! `anura doctor`: what this host offers, one line for each thing, and the fix where something is missing.
//!
//! `--json` prints the same for programs, `--run` also starts a guest of a few instructions on each engine. The exit code
//! is 1 when `-accel kvm` would fail.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anura_accel_kvm::{Kvm, Module};
use anura_machine::roms::DATA_DIRS;
use serde::Serialize;

use crate::engines;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Works, but something is lost.
    Poor,
    Bad,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Good, found: found.into(), fix: None }
    }

    fn lacking(name: &'static str, state: State, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), fix: Some(fix.into()) }
    }

    fn line(&self) -> String {
        let mark = match self.state {
            State::Good => "ok  ",
            State::Poor => "poor",
            State::Bad => "BAD ",
        };
        match &self.fix {
            Some(fix) => format!("{mark} {}: {}; {fix}", self.name, self.found),
            None => format!("{mark} {}: {}", self.name, self.found),
        }
    }
}

/// The words after `doctor`; the exit code.
pub fn main(arguments: &[String]) -> i32 {
    let (mut json, mut run) = (false, false);
    for argument in arguments {
        match argument.as_str() {
            "--json" => json = true,
            "--run" => run = true,
            other => {
                eprintln!("anura: doctor {other}: it takes --json and --run");
                return 1;
            }
        }
    }
    let (mut findings, kvm_works) = examine();
    if run {
        findings.extend(engines::BUILT_IN.map(try_out));
    }
    if json {
        match serde_json::to_string_pretty(&findings) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("anura: doctor --json: {e}"),
        }
    } else {
        findings.iter().for_each(|f| println!("{}", f.line()));
    }
    i32::from(!kvm_works)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Everything that needs no guest of ours but KVM's probe, and whether KVM works.
fn examine() -> (Vec<Finding>, bool) {
    let kvm = Kvm::default();
    let kind = kvm.kind();
    let shown = anura_accel_kvm::module();
    let mut list = vec![cpu_flag(kind.is_ok()), module(&shown)];
    match &kind {
        Err(why) => {
            let why = why.to_string();
            let (found, fix) = why.split_once(": ").unwrap_or((&why, "-accel interp needs no KVM"));
            list.push(Finding::lacking("/dev/kvm", State::Bad, found, fix));
        }
        Ok(kind) => {
            let ns = kind.per_instruction.as_nanos();
            list.push(Finding::good("/dev/kvm", "opens, and a probe guest runs"));
            list.push(match kind.ring0_emulated {
                false => Finding::good("guest kernels", format!("run in hardware ({ns} ns an instruction)")),
                true => Finding::lacking(
                    "guest kernels",
                    State::Poor,
                    format!("are emulated by the host's kernel ({ns} ns an instruction)"),
                    "a host with VMX or SVM runs them in hardware; here -accel interp is faster",
                ),
            });
            for (name, there) in kvm.capabilities().unwrap_or_default() {
                if !there {
                    list.push(Finding::lacking(
                        "KVM",
                        State::Poor,
                        format!("has no {name}"),
                        "a newer kernel has",
                    ));
                }
            }
        }
    }
    list.extend([
        paging(&shown),
        nested(&shown),
        huge_pages(),
        generated_code(),
        io_uring(),
        tap(),
        firmware(),
    ]);
    (list, kind.is_ok())
}

fn cpu_flag(works: bool) -> Finding {
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    match ["vmx", "svm"].into_iter().find(|f| flags.split_whitespace().any(|w| w == *f)) {
        Some(flag) => Finding::good("processor", format!("has {flag}")),
        None => Finding::lacking(
            "processor",
            if works { State::Poor } else { State::Bad },
            "shows neither vmx nor svm",
            "switch virtualisation on in the firmware's set-up, or nested virtualisation on in the host of this machine",
        ),
    }
}

fn module(module: &Module) -> Finding {
    let found = match module.name {
        Some(name) if name != "kvm" => return Finding::good("kernel module", name),
        Some(_) => "kvm alone",
        None => "none is shown",
    };
    Finding::lacking("kernel module", State::Poor, found, "load kvm_intel or kvm_amd (modprobe)")
}

fn paging(module: &Module) -> Finding {
    const NAME: &str = "second-level paging";
    match module.second_level {
        Some(true) => Finding::good(NAME, "EPT or NPT"),
        Some(false) => Finding::lacking(NAME, State::Poor, "off", "load the module with ept=1 or npt=1"),
        None => Finding::lacking(NAME, State::Poor, "unknown: shadow paging is likely", "see above"),
    }
}

fn nested(module: &Module) -> Finding {
    match module.nested {
        Some(true) => Finding::good("nested virtualisation", "on"),
        _ => Finding::lacking(
            "nested virtualisation",
            State::Poor,
            "off",
            "guests cannot use KVM themselves; load the module with nested=1 if they should",
        ),
    }
}

fn huge_pages() -> Finding {
    match read("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(modes) if !modes.contains("[never]") => {
            Finding::good("huge pages", format!("transparent: {modes}"))
        }
        _ => Finding::lacking(
            "huge pages",
            State::Poor,
            "no transparent ones",
            "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }
}

fn generated_code() -> Finding {
    match anura_accel_tcg::generated_code() {
        Ok(()) => Finding::good("generated code", "memory can be mapped for it"),
        Err(e) => Finding::lacking(
            "generated code",
            State::Poor,
            format!("the host refuses memory for it ({e})"),
            "allow executable mappings of a memfd; without them the software engine is slower",
        ),
    }
}

fn io_uring() -> Finding {
    match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("0") => Finding::good("io_uring", "allowed"),
        Some(_) => {
            Finding::lacking("io_uring", State::Poor, "forbidden", "sysctl kernel.io_uring_disabled=0")
        }
        None => Finding::good("io_uring", "not restricted by a sysctl"),
    }
}

fn tap() -> Finding {
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("tap", "/dev/net/tun opens"),
        Err(e) => Finding::lacking(
            "tap",
            State::Poor,
            format!("/dev/net/tun: {e}"),
            "load the tun module and give rights to it",
        ),
    }
}

fn firmware() -> Finding {
    let file = DATA_DIRS.iter().map(|d| Path::new(d).join("bios-256k.bin")).find(|p| p.is_file());
    match file {
        Some(path) => Finding::good("firmware", path.display().to_string()),
        None => Finding::lacking(
            "firmware",
            State::Poor,
            format!("no bios-256k.bin in {}", DATA_DIRS.join(", ")),
            "install the package seabios; -kernel boots without",
        ),
    }
}

/// What a guest of a few instructions does on this engine.
fn try_out(name: &'static str) -> Finding {
    match self_test(name) {
        Ok(time) => Finding::good(name, format!("the self-test guest ran; {} ms", time.as_millis())),
        Err(e) => Finding::lacking(
            name,
            State::Bad,
            format!("the self-test guest failed: {e}"),
            "see the lines above",
        ),
    }
}

/// Runs a ROM that says `ok` to the debug console and leaves by isa-debug-exit with code 1 (status 0).
fn self_test(engine: &str) -> Result<Duration, String> {
    let dir = std::env::temp_dir().join(format!("anura-doctor-{}-{engine}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let result = self_test_in(engine, &dir);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn self_test_in(engine: &str, dir: &Path) -> Result<Duration, String> {
    let (rom, out) = (dir.join("rom"), dir.join("out"));
    let mut bytes = vec![0xf4; 0x10000];
    // mov al, 'o'; out 0xe9, al; mov al, 'k'; out 0xe9, al; xor ax, ax; out 0xf4, al; hlt
    bytes[..13]
        .copy_from_slice(&[0xb0, b'o', 0xe6, 0xe9, 0xb0, b'k', 0xe6, 0xe9, 0x31, 0xc0, 0xe6, 0xf4, 0xf4]);
    // The reset vector: a jump to the start.
    bytes[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    std::fs::write(&rom, &bytes).map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(["-accel", engine, "-nodefaults", "-display", "none", "-vga", "none", "-m", "16", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon"])
        .arg(format!("file:{}", out.display()))
        .arg("-bios")
        .arg(&rom)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    while start.elapsed() < Duration::from_secs(10) {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            let said = std::fs::read(&out).unwrap_or_default();
            return match (status.code(), said.as_slice()) {
                (Some(1), b"ok") => Ok(start.elapsed()),
                (code, _) => {
                    Err(format!("it ended with {code:?} and said {:?}", String::from_utf8_lossy(&said)))
                }
            };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err("it did not end within ten seconds".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_not_good_carries_its_fix() {
        let (findings, _) = examine();
        assert!(findings.len() >= 10, "{findings:?}");
        for f in findings {
            assert_eq!(f.state == State::Good, f.fix.is_none(), "{f:?}");
            assert!(!f.line().contains('\n'));
        }
    }
}
