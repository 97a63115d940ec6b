//! The KVM engine on this host's `/dev/kvm`: firmware, several processors, and pauses under a spinning guest.
#![cfg(target_arch = "x86_64")]

use std::path::Path;
use std::time::{Duration, Instant};

use anura_accel_kvm::Kvm;
use anura_tests::{Emulator, anura, need};

const LIMIT: Duration = Duration::from_secs(90);

fn kvm() -> Option<()> {
    Kvm::default().kind().map_err(|why| eprintln!("{why}")).ok().map(drop)
}

/// SeaBIOS's debug log up to its last words.
fn firmware_log(program: &Path, accel: &str, meanwhile: impl FnOnce(&Emulator)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let console = format!("file:{}", log.display());
    let args = ["-nodefaults", "-vga", "std", "-m", "64", "-smp", "2", "-debugcon", &console];
    let args = [&args[..], &["-global", "isa-debugcon.iobase=0x402"]].concat();
    let emulator = Emulator::start_on(accel, program, dir.path(), &args);
    meanwhile(&emulator);
    let end = Instant::now() + LIMIT;
    loop {
        let text = std::fs::read(&log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        if text.contains("No bootable device") {
            return text;
        }
        assert!(Instant::now() < end, "{accel}: the firmware stands at:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The log without the line that tells a measured rate.
fn timeless(text: &str) -> Vec<&str> {
    text.lines().filter(|l| !l.contains("CPU Mhz")).collect()
}

#[test]
fn seabios_with_two_processors_logs_the_same_as_on_the_interpreter() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    need!(
        Some(()).filter(|_| Path::new("/usr/share/seabios/bios-256k.bin").is_file()),
        "SeaBIOS is not installed; install the package seabios"
    );
    let ours = firmware_log(&program, "interp", |_| {});
    for accel in CHIPS {
        assert_eq!(timeless(&ours), timeless(&firmware_log(&program, accel, |_| {})), "{accel}");
    }
}

/// A 64 KiB ROM that starts with this code.
fn rom(dir: &Path, code: &[u8]) -> String {
    let rom = dir.join("rom");
    let mut bytes = vec![0xf4; 0x10000];
    bytes[..code.len()].copy_from_slice(code);
    // The reset vector: a jump to the start.
    bytes[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    std::fs::write(&rom, &bytes).unwrap();
    rom.display().to_string()
}

/// cli; xor ax, ax; again: inc ax; out 0xe9, al; jmp again.
const COUNTING: &[u8] = &[0xfa, 0x31, 0xc0, 0x40, 0xe6, 0xe9, 0xeb, 0xfb];

/// Every byte is one more than the one before.
fn check_counted(written: &[u8]) {
    assert!(written.len() > 50, "the guest hardly ran: {} bytes", written.len());
    for (i, byte) in written.iter().enumerate() {
        assert_eq!(*byte, (i + 1) as u8, "byte {i} of {}: one is lost or doubled", written.len());
    }
}

const CHIPS: [&str; 2] = ["kvm,kernel-irqchip=off", "kvm,kernel-irqchip=split"];

/// Changes the engine to and fro, ten times, some time between two.
fn ten_switches(monitor: &mut anura_tests::Monitor, time: Duration) {
    for n in 0..10 {
        std::thread::sleep(time);
        for name in ["interp", "kvm"] {
            let said = monitor.run(&format!("accel {name}"));
            assert_eq!(said.trim(), "", "switch {n} to {name}");
            assert_eq!(monitor.run("accel").trim(), name);
            std::thread::sleep(time / 4);
        }
    }
}

#[test]
fn ten_switches_of_the_engine_lose_nothing_of_a_counting_guest() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    for accel in CHIPS {
        let dir = tempfile::tempdir().unwrap();
        let (rom, out) = (rom(dir.path(), COUNTING), dir.path().join("out"));
        let console = format!("file:{}", out.display());
        let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &console];
        let emulator = Emulator::start_on(accel, &program, dir.path(), &args);
        let mut monitor = emulator.monitor();
        ten_switches(&mut monitor, Duration::from_millis(10));
        monitor.run("stop");
        check_counted(&std::fs::read(&out).unwrap());
    }
}

#[test]
fn ten_switches_of_the_engine_during_seabios_leave_its_log_as_it_is() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    need!(
        Some(()).filter(|_| Path::new("/usr/share/seabios/bios-256k.bin").is_file()),
        "SeaBIOS is not installed; install the package seabios"
    );
    let quiet = firmware_log(&program, "interp", |_| {});
    for accel in CHIPS {
        let log = firmware_log(&program, accel, |emulator| {
            ten_switches(&mut emulator.monitor(), Duration::from_millis(20));
        });
        assert_eq!(timeless(&quiet), timeless(&log), "{accel}");
    }
}

#[test]
fn stop_and_cont_under_a_guest_that_spins_lose_nothing() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let dir = tempfile::tempdir().unwrap();
    let (rom, out) = (rom(dir.path(), COUNTING), dir.path().join("out"));
    let console = format!("file:{}", out.display());
    let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &console];
    let emulator = Emulator::start_on("kvm", &program, dir.path(), &args);
    let mut monitor = emulator.monitor();
    for _ in 0..50 {
        monitor.run("stop");
        assert!(monitor.run("info status").contains("paused"));
        monitor.run("cont");
    }
    monitor.run("stop");
    check_counted(&std::fs::read(&out).unwrap());
}

/// Sends 251 bytes, 0 to 250, by one string instruction, for ever.
fn string_guest(dir: &Path) -> String {
    // cli; cld; mov ax, cs; mov ds, ax; mov dx, 0xe9; again: mov si, 0x100; mov cx, 251; rep outsb; jmp again.
    let mut code = vec![0xfa, 0xfc, 0x8c, 0xc8, 0x8e, 0xd8, 0xba, 0xe9, 0x00];
    code.extend([0xbe, 0x00, 0x01, 0xb9, 0xfb, 0x00, 0xf3, 0x6e, 0xeb, 0xf6]);
    code.resize(0x100, 0xf4);
    code.extend(0..251u8);
    rom(dir, &code)
}

#[test]
fn a_thousand_stops_during_string_output_lose_and_double_nothing() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let stops: u32 = std::env::var("ANURA_STOPS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    for accel in CHIPS {
        let dir = tempfile::tempdir().unwrap();
        let (rom, out) = (string_guest(dir.path()), dir.path().join("out"));
        let console = format!("file:{}", out.display());
        let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &console];
        let emulator = Emulator::start_on(accel, &program, dir.path(), &args);
        let mut monitor = emulator.monitor();
        let mut times = Vec::new();
        for n in 0..stops {
            // Not in step with the guest.
            std::thread::sleep(Duration::from_micros(u64::from(n * 37 % 301)));
            let start = Instant::now();
            monitor.run("stop");
            times.push(start.elapsed());
            // The state is what finishes an access that is under way.
            if n % 8 == 0 {
                monitor.run("info registers");
            }
            monitor.run("cont");
        }
        monitor.run("stop");
        times.sort_unstable();
        eprintln!(
            "{accel}: stop took {:?}, 99 of 100 below {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
        let written = std::fs::read(&out).unwrap();
        assert!(written.len() > 1000, "the guest hardly ran: {} bytes", written.len());
        for (i, byte) in written.iter().enumerate() {
            assert_eq!(*byte, (i % 251) as u8, "byte {i} of {}: one is lost or doubled", written.len());
        }
    }
}

#[test]
fn a_machine_saved_on_one_engine_goes_on_on_the_other() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let khz = Kvm::default().kind().map_or(0, |kind| kind.tsc_khz);
    let cpu = format!("qemu64,tsc-frequency={}", khz * 1000);
    for (from, to) in [(CHIPS[1], "interp"), ("interp", CHIPS[1]), (CHIPS[0], CHIPS[1])] {
        let dir = tempfile::tempdir().unwrap();
        let (rom, state) = (rom(dir.path(), COUNTING), dir.path().join("state"));
        let uri = format!("file:{}", state.display());
        let mut written = Vec::new();
        for (n, accel) in [from, to].into_iter().enumerate() {
            let out = dir.path().join(format!("out{n}"));
            let console = format!("file:{}", out.display());
            let mut args = vec!["-nodefaults", "-vga", "none", "-m", "16", "-cpu", &cpu, "-bios", &rom];
            args.extend(["-debugcon", &console]);
            if n == 1 {
                args.extend(["-incoming", &uri]);
            }
            let emulator = Emulator::start_on(accel, &program, dir.path(), &args);
            let mut monitor = emulator.monitor();
            std::thread::sleep(Duration::from_millis(50));
            monitor.run("stop");
            if n == 0 {
                assert_eq!(monitor.run(&format!("migrate {uri}")).trim(), "");
            }
            let part = std::fs::read(&out).unwrap();
            assert!(part.len() > 50, "{from} to {to}: part {n} hardly ran: {} bytes", part.len());
            written.extend(part);
            drop(monitor);
            drop(emulator);
            let _ = std::fs::remove_file(dir.path().join("monitor"));
        }
        check_counted(&written);
    }
}

/// Whether strace can trace here.
fn strace() -> Option<std::path::PathBuf> {
    let strace = anura_tests::tool("strace")?;
    let output = std::process::Command::new(&strace).args(["-f", "true"]).output().ok()?;
    Some(strace).filter(|_| output.status.success())
}

#[test]
fn a_boot_makes_only_the_ioctls_of_the_table_each_on_its_descriptor() {
    use anura_accel_kvm::ioctls::{On, TABLE};
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let strace = need!(strace(), "strace cannot trace here");
    let mut seen = std::collections::BTreeSet::new();
    for accel in CHIPS {
        let dir = tempfile::tempdir().unwrap();
        let (rom, log) = (rom(dir.path(), COUNTING), dir.path().join("strace"));
        let wrapper = dir.path().join("traced");
        let line = format!(
            "exec {} -f -y -e trace=ioctl -o {} {} \"$@\"",
            strace.display(),
            log.display(),
            program.display()
        );
        std::fs::write(&wrapper, format!("#!/bin/sh\n{line}\n")).unwrap();
        std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let out = format!("file:{}", dir.path().join("out").display());
        let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &out];
        let mut emulator = Emulator::start_on(accel, &wrapper, dir.path(), &args);
        let mut monitor = emulator.monitor();
        for line in ["stop", "info registers", "gva2gpa 0x1000", "cont", "nmi", "stop", "cont"] {
            monitor.run(line);
        }
        monitor.run("system_reset");
        let state = dir.path().join("state");
        monitor.run("stop");
        assert_eq!(monitor.run(&format!("migrate file:{}", state.display())).trim(), "");
        monitor.run("quit");
        emulator.wait();
        let text = std::fs::read_to_string(&log).unwrap();
        for line in text.lines() {
            // 123 ioctl(5<anon_inode:kvm-vm>, KVM_ENABLE_CAP, …
            let Some((fd, rest)) = line.split_once("ioctl(").and_then(|(_, r)| r.split_once(", ")) else {
                continue;
            };
            let name = rest.split([',', ' ', ')']).next().unwrap_or_default();
            let on = match fd {
                _ if fd.contains("/dev/kvm>") => On::System,
                _ if fd.contains("kvm-vcpu") => On::Cpu,
                _ if fd.contains("kvm-vm") => On::Vm,
                _ => continue,
            };
            let row = TABLE.iter().find(|row| row.name == name);
            let row = row.unwrap_or_else(|| panic!("{name} is not in the table: {line}"));
            // KVM_CHECK_EXTENSION is for both.
            assert!(row.on == on || name == "KVM_CHECK_EXTENSION", "{line}");
            seen.insert(row.name);
        }
    }
    let unseen: Vec<_> = TABLE.iter().map(|row| row.name).filter(|name| !seen.contains(name)).collect();
    eprintln!("{} of {} ioctls were seen; not {}", seen.len(), TABLE.len(), unseen.join(", "));
    assert!(seen.len() > 25 && seen.contains("KVM_RUN"), "{seen:?}");
}

#[test]
fn a_device_s_message_is_a_write_to_an_eventfd() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let capabilities = Kvm::default().capabilities().unwrap();
    let irqfd = capabilities.iter().any(|(name, there)| name.contains("irqfd") && *there);
    need!(Some(()).filter(|()| irqfd), "this kernel has no irqfd");
    let strace = need!(strace(), "strace cannot trace here");
    let dir = tempfile::tempdir().unwrap();
    let guests = anura_tests::guests::others();
    let guest = guests.iter().find(|g| g.name == "messages_of_the_hpet").unwrap();
    let (rom, log) = (dir.path().join("rom"), dir.path().join("strace"));
    std::fs::write(&rom, guest.rom().unwrap()).unwrap();
    let status = std::process::Command::new(strace)
        .args(["-f", "-e", "trace=ioctl", "-o"])
        .arg(&log)
        .arg(program)
        .args(["-accel", CHIPS[1], "-m", "32", "-nodefaults", "-vga", "none", "-display", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(rom)
        .stdin(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(33), "the guest's own end");
    let text = std::fs::read_to_string(&log).unwrap();
    let count = |name: &str| text.lines().filter(|line| line.contains(name)).count();
    // Two timers; nothing else interrupts.
    let (wired, sent) = (count("KVM_IRQFD"), count("KVM_SIGNAL_MSI"));
    assert!(wired >= 2 && sent == 0, "{wired} eventfds, {sent} messages by KVM_SIGNAL_MSI");
}

#[test]
fn a_guest_that_runs_steadily_makes_no_system_call_but_kvm_run() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let strace = need!(strace(), "strace cannot trace here");
    for accel in CHIPS {
        let dir = tempfile::tempdir().unwrap();
        // cli; again: in al, 0x71; out 0x80, al; jmp again.
        let rom = rom(dir.path(), &[0xfa, 0xe4, 0x71, 0xe6, 0x80, 0xeb, 0xfa]);
        let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom];
        let emulator = Emulator::start_on(accel, &program, dir.path(), &args);
        let said = emulator.monitor().run("info cpus");
        let thread: String =
            said.split("thread_id=").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
        let log = dir.path().join("strace");
        let mut child = std::process::Command::new(&strace)
            .args(["-p", &thread, "-o"])
            .arg(&log)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + LIMIT;
        let lines = loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.lines().count() > 500 {
                break text;
            }
            assert!(Instant::now() < end, "the guest makes no exits:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let _ = child.kill();
        let _ = child.wait();
        // The first line is of the call that strace came into, the last may be cut.
        let count = lines.lines().count();
        for line in lines.lines().skip(2).take(count.saturating_sub(4)) {
            assert!(line.contains("KVM_RUN") || line.starts_with("restart_syscall"), "{accel}: {line}");
        }
    }
}

#[test]
fn a_guest_that_the_kernel_gives_up_stops_the_machine_which_a_reset_brings_back() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let kind = need!(Kvm::default().kind().ok(), "there is no usable /dev/kvm");
    need!(Some(()).filter(|()| kind.ring0_emulated), "this host's KVM can run every instruction");
    for chip in ["off", "split"] {
        let dir = tempfile::tempdir().unwrap();
        // xor ax, ax; mov ds, ax; cmp byte [0x500], 1; je 1f; mov byte [0x500], 1; fld1 (which no emulator of this
        // kind has); 1: mov al, 'k'; out 0xe9, al; hlt
        let code = [
            0x31, 0xc0, 0x8e, 0xd8, 0x80, 0x3e, 0x00, 0x05, 0x01, 0x74, 0x07, 0xc6, 0x06, 0x00, 0x05, 0x01,
            0xd9, 0xe8, 0xb0, b'k', 0xe6, 0xe9, 0xf4,
        ];
        let (rom, out) = (rom(dir.path(), &code), dir.path().join("out"));
        let console = format!("file:{}", out.display());
        let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &console];
        let accel = format!("kvm,stepper=off,kernel-irqchip={chip}");
        let emulator = Emulator::start_on(&accel, &program, dir.path(), &args);
        let mut monitor = emulator.monitor();
        let end = Instant::now() + LIMIT;
        while !monitor.run("info status").contains("internal-error") {
            assert!(Instant::now() < end, "the machine does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(monitor.run("cont").contains("Reset"), "it goes on only after a reset");
        assert!(monitor.run("info registers").contains("IP="), "its registers can be seen");
        monitor.run("system_reset");
        monitor.run("cont");
        while std::fs::read(&out).unwrap_or_default() != b"k" {
            assert!(Instant::now() < end, "the guest does not come back");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_booting_kernel_does_not_notice_that_its_engine_changes() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let kernel = need!(anura_tests::guest_file("vmlinuz"), "no kernel is fetched; run cargo xtask test");
    let initrd = need!(anura_tests::guest_file("initrd.gz"), "no RAM disk is fetched; run cargo xtask test");
    let dir = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let append = "console=ttyS0 panic=-1 anura.run=check";
    let args = ["-m", "256", "-kernel", &kernel, "-initrd", &initrd, "-append", append];
    let mut emulator = Emulator::start_on("kvm", &program, dir.path(), &args);
    let mut monitor = emulator.monitor();
    assert!(emulator.wait_for("Linux version", LIMIT), "{}", emulator.serial_text());
    // Where ring 3 runs natively and CPUID cannot be hidden from it, programs take to instructions that the interpreter
    // does not have: there the engine changes only before the first of them starts.
    let only_the_kernel = Kvm::default().kind().is_ok_and(|kind| kind.ring0_emulated);
    let mut switches = 0;
    // It ends where the rest is quickest.
    for name in ["interp", "kvm", "interp", "kvm", "interp", "kvm", "interp"] {
        monitor.run("stop");
        if !only_the_kernel || !emulator.serial_text().contains("Run /init") {
            assert_eq!(monitor.run(&format!("accel {name}")).trim(), "", "switch to {name}");
            switches += 1;
        }
        monitor.run("cont");
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("{switches} switches");
    assert!(switches > 0);
    assert!(emulator.wait_for("anura-guest: sum 42", LIMIT), "{}", emulator.serial_text());
}
