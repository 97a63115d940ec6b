//! Debian's SeaBIOS from the reset vector: its log, its screen, its menu, and what follows a key.

use std::path::Path;
use std::time::{Duration, Instant};

use anura_tests::{Emulator, Monitor, anura, guest_file, need};

const LIMIT: Duration = Duration::from_secs(120);
const NO_PROGRAM: &str = "the anura program is not built; run cargo xtask test";
const NO_FIRMWARE: &str = "SeaBIOS is not installed; install the package seabios";

fn seabios() -> Option<&'static Path> {
    Some(Path::new("/usr/share/seabios/bios-256k.bin")).filter(|path| path.is_file())
}

/// Text of the screen's first `lines` lines.
fn screen(monitor: &mut Monitor, lines: usize) -> String {
    let dump = monitor.run(&format!("xp /{}xh 0xb8000", lines * 80));
    let cells = dump.lines().filter_map(|line| line.split_once(": ")).flat_map(|(_, cells)| cells.split(' '));
    let codes = cells.filter_map(|cell| u16::from_str_radix(cell.trim().strip_prefix("0x")?, 16).ok());
    codes.map(|code| char::from(code as u8)).collect()
}

/// Waits until the log at `path` holds `text`.
fn wait_for(path: &Path, text: &str) -> String {
    let end = Instant::now() + LIMIT;
    loop {
        let log = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        if log.contains(text) {
            return log;
        }
        assert!(Instant::now() < end, "no {text:?} in:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn seabios_finds_the_board_shows_its_menu_and_boots_what_a_key_chooses() {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let console = format!("file:{}", log.display());
    let args = ["-nodefaults", "-vga", "std", "-m", "512", "-smp", "2", "-boot", "menu=on,splash-time=60000"];
    let debug = ["-debugcon", &console, "-global", "isa-debugcon.iobase=0x402"];
    let emulator = Emulator::start(&program, dir.path(), &[&args[..], &debug].concat());
    let mut monitor = emulator.monitor();
    let text = wait_for(&log, "Press ESC for boot menu");
    for line in [
        "Running on QEMU (i440fx)",
        "QEMU fw_cfg DMA interface supported",
        "qemu/e820: addr 0x0000000000000000 len 0x0000000020000000 [RAM]",
        "Moving pm_base to 0x600",
        "Found 5 PCI devices (max PCI bus is 00)",
        "PCI: IO: c000 - c00f",
        "PCI: map device bdf=00:01.1  bar 4, addr 0000c000, size 00000010 [io]",
        "PCI: map device bdf=00:02.0  bar 6, addr febe0000, size 00010000 [mem]",
        "PCI: map device bdf=00:02.0  bar 2, addr febf0000, size 00001000 [mem]",
        "PCI: map device bdf=00:02.0  bar 0, addr fd000000, size 01000000 [prefmem]",
        "PCI: init bdf=00:00.0 id=8086:1237",
        "PCI: init bdf=00:01.3 id=8086:7113",
        "PIIX3/PIIX4 init: elcr=00 0c",
        "Using pmtimer, ioport 0x608",
        "PCI: Using 00:02.0 for primary VGA",
        "Found 2 cpu(s) max supported 2 cpu(s)",
        "Copying SMBIOS from",
        "ACPI: parse DSDT at",
        "VBE DISPI: lfb_addr=fd000000, size 16 MB",
        "Turning on vga text mode console",
    ] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    let shown = screen(&mut monitor, 4);
    assert!(shown.starts_with("SeaBIOS (version "), "{shown}");
    wait_for(&log, "PS2 keyboard initialized");
    assert_eq!(monitor.run("sendkey esc"), "");
    wait_for(&log, "Select boot device:");
    // SeaBIOS drops what is typed while it draws its menu.
    let end = Instant::now() + LIMIT;
    while !std::fs::read_to_string(&log).unwrap().contains("No bootable device.") {
        assert!(Instant::now() < end, "the menu is not left");
        monitor.run("sendkey esc");
        std::thread::sleep(Duration::from_millis(200));
    }
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("  3: 0000000000100000 - 000000001f"), "{text}");
    assert!(screen(&mut monitor, 25).contains("No bootable device."));
    // The same once more after a reset: firmware starts from flash, not from what it left in RAM.
    monitor.run("system_reset");
    let end = Instant::now() + LIMIT;
    while std::fs::read_to_string(&log).unwrap().matches("Press ESC for boot menu").count() < 2 {
        assert!(Instant::now() < end, "no menu after the reset");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn without_a_screen_seabios_talks_on_the_serial_port() {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let dir = tempfile::tempdir().unwrap();
    let mut emulator = Emulator::start(&program, dir.path(), &["-machine", "graphics=off", "-m", "32"]);
    assert!(emulator.wait_for("No bootable device.", LIMIT), "{}", emulator.serial_text());
    assert!(emulator.serial_text().contains("SeaBIOS (version "));
}

#[test]
fn the_last_bytes_of_firmware_are_seen_at_both_ends() {
    let program = need!(anura(), NO_PROGRAM);
    let path = need!(seabios(), NO_FIRMWARE);
    let bytes = std::fs::read(path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start(&program, dir.path(), &["-S", "-bios", path.to_str().unwrap()]);
    let mut monitor = emulator.monitor();
    let registers = monitor.run("info registers");
    assert!(registers.contains("CS =f000 ffff0000") && registers.contains("EIP=0000fff0"), "{registers}");
    let want: Vec<String> = bytes[bytes.len() - 16..].iter().map(|b| format!("{b:#04x}")).collect();
    for at in ["0xffff0", "0xfffffff0"] {
        let dump = monitor.run(&format!("xp /16xb {at}"));
        let found: Vec<&str> =
            dump.lines().filter_map(|l| l.split_once(": ")).flat_map(|(_, b)| b.split(' ')).collect();
        assert_eq!(found, want, "{at}");
    }
}

/// Boots a kernel with the guest's check; what came on the serial port.
fn boot(program: &Path, kernel: &str, initrd: &str, args: &[&str]) -> Option<String> {
    let (kernel, initrd) = (guest_file(kernel)?, guest_file(initrd)?);
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec!["-m", "512", "-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
    // The kernel's tests of its ciphers take longer than all the rest.
    all.extend(["-append", "console=ttyS0 panic=-1 anura.run=check cryptomgr.notests"]);
    all.extend(args);
    let mut emulator = Emulator::start(program, dir.path(), &all);
    let done = emulator.wait_for("reboot: Power down", LIMIT);
    let text = emulator.serial_text().replace('\r', "");
    assert!(done && text.contains("anura-guest: sum 42"), "{}", &text[text.len().saturating_sub(2000)..]);
    for bad in ["BUG", "WARNING", "Oops", "ACPI Error", "protection fault"] {
        assert!(!text.contains(bad), "{bad}: {}", text.lines().find(|line| line.contains(bad)).unwrap_or(""));
    }
    Some(text)
}

#[test]
fn debians_kernel_boots_through_seabios_and_our_option_rom() {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let args = ["-bios", "bios-256k.bin", "-smp", "2"];
    let text = need!(boot(&program, "vmlinuz", "initrd.gz", &args), "no guest kernel; run tools/fetch-guest");
    assert!(text.contains("DMI: ") && text.contains("anura-guest: cpus 2 x"), "{text}");
}

/// A 32-bit kernel has no 64-bit entry, so it starts through firmware by itself.
fn boot_32_bit(kernel: &str) {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let text = need!(
        boot(&program, kernel, "initrd-i386.gz", &["-cpu", "qemu32"]),
        "no 32-bit guest; run tools/fetch-guest i386"
    );
    assert!(text.contains(" i686 "), "{text}");
}

#[test]
fn the_32_bit_kernel_without_pae_reaches_the_shell() {
    boot_32_bit("vmlinuz-686");
}

#[test]
fn the_32_bit_kernel_with_pae_reaches_the_shell() {
    boot_32_bit("vmlinuz-686-pae");
}

/// Starts a 16-bit guest through SeaBIOS; what it sent to port E9h once `until` is there, and a monitor.
fn bios_guest(
    program: &Path,
    dir: &Path,
    image: &[u8],
    until: &str,
) -> (Emulator, Monitor, std::path::PathBuf) {
    let (kernel, log) = (dir.join("guest"), dir.join("log"));
    std::fs::write(&kernel, image).unwrap();
    let (kernel, console) = (kernel.display().to_string(), format!("file:{}", log.display()));
    let exit = "isa-debug-exit,iobase=0xf4,iosize=4";
    let args = ["-m", "16", "-kernel", &kernel, "-debugcon", &console, "-device", exit];
    let emulator = Emulator::start(program, dir, &args);
    let monitor = emulator.monitor();
    wait_for(&log, until);
    (emulator, monitor, log)
}

#[test]
fn a_program_of_doss_kind_lives_on_the_bios() {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let dir = tempfile::tempdir().unwrap();
    let image = anura_tests::guests::bios::dos_like().unwrap();
    let (mut emulator, mut monitor, log) = bios_guest(&program, dir.path(), &image, "press a key ");
    assert!(screen(&mut monitor, 25).contains("three ticks, press a key"));
    monitor.run("sendkey a");
    assert_eq!(emulator.wait(), Some(33));
    let text = std::fs::read_to_string(&log).unwrap();
    let want =
        "memory 027f extended 3bf8 columns 0050 disk status 0001 three ticks, press a key 1e61 INT 21h";
    assert!(text.contains(want), "{text}");
}

#[test]
fn a_memory_test_in_real_mode_passes() {
    let program = need!(anura(), NO_PROGRAM);
    need!(seabios(), NO_FIRMWARE);
    let dir = tempfile::tempdir().unwrap();
    let image = anura_tests::guests::bios::memory_test().unwrap();
    let (mut emulator, _monitor, log) = bios_guest(&program, dir.path(), &image, "anura-memtest: ");
    assert_eq!(emulator.wait(), Some(33));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains(" times 64 KiB passed"), "{text}");
}
