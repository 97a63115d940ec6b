//! The KVM engine on this host's `/dev/kvm`: firmware, several processors, and pauses under a spinning guest.

use std::path::Path;
use std::time::{Duration, Instant};

use anura_accel_kvm::Kvm;
use anura_tests::{Emulator, anura, need};

const LIMIT: Duration = Duration::from_secs(90);

fn kvm() -> Option<()> {
    Kvm::default().kind().map_err(|why| eprintln!("{why}")).ok().map(drop)
}

/// SeaBIOS's debug log up to its last words.
fn firmware_log(program: &Path, accel: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let console = format!("file:{}", log.display());
    let args = ["-nodefaults", "-vga", "std", "-m", "64", "-smp", "2", "-debugcon", &console];
    let args = [&args[..], &["-global", "isa-debugcon.iobase=0x402"]].concat();
    let _emulator = Emulator::start_on(accel, program, dir.path(), &args);
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

#[test]
fn seabios_with_two_processors_logs_the_same_as_on_the_interpreter() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    need!(
        Some(()).filter(|_| Path::new("/usr/share/seabios/bios-256k.bin").is_file()),
        "SeaBIOS is not installed; install the package seabios"
    );
    let timeless = |text: String| -> Vec<String> {
        text.lines().filter(|l| !l.contains("CPU Mhz")).map(str::to_owned).collect()
    };
    let (ours, theirs) =
        (timeless(firmware_log(&program, "interp")), timeless(firmware_log(&program, "kvm")));
    assert_eq!(ours, theirs);
}

#[test]
fn stop_and_cont_under_a_guest_that_spins_lose_nothing() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let dir = tempfile::tempdir().unwrap();
    let rom = dir.path().join("rom");
    // A 64 KiB ROM. At its start: cli; xor ax,ax; again: inc ax; out 0xe9,al; jmp again. At its end, the reset
    // vector: jmp to the start.
    let mut bytes = vec![0xf4; 0x10000];
    bytes[..8].copy_from_slice(&[0xfa, 0x31, 0xc0, 0x40, 0xe6, 0xe9, 0xeb, 0xfb]);
    bytes[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    std::fs::write(&rom, &bytes).unwrap();
    let out = dir.path().join("out");
    let console = format!("file:{}", out.display());
    let rom = rom.display().to_string();
    let args = ["-nodefaults", "-vga", "none", "-m", "16", "-bios", &rom, "-debugcon", &console];
    let emulator = Emulator::start_on("kvm", &program, dir.path(), &args);
    let mut monitor = emulator.monitor();
    for _ in 0..50 {
        monitor.run("stop");
        assert!(monitor.run("info status").contains("paused"));
        monitor.run("cont");
    }
    monitor.run("stop");
    let written = std::fs::read(&out).unwrap();
    assert!(written.len() > 50, "the guest hardly ran: {} bytes", written.len());
    for (i, byte) in written.iter().enumerate() {
        assert_eq!(*byte, (i + 1) as u8, "byte {i} of {}: one is lost or doubled", written.len());
    }
}
