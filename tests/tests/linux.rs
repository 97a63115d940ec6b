//! Debian's kernels on the interpreter: processors, memory, tables, counted time, saving and restoring.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anura_tests::{Emulator, anura, guest_file, need, tool};

const LIMIT: Duration = Duration::from_secs(300);
const NO_PROGRAM: &str = "the anura program is not built; run cargo xtask test";
const NO_GUEST: &str = "no guest kernel; run tools/fetch-guest generic";

/// Boots to the end of what the guest does for `anura.run=WHAT`; serial text and exit code.
fn boot(program: &Path, dir: &Path, kernel: &Path, what: &str, args: &[&str]) -> (String, Option<i32>) {
    let initrd = guest_file("initrd.gz").unwrap();
    let append = format!("console=ttyS0 panic=-1 anura.run={what}");
    let mut all =
        vec!["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap(), "-append", &append];
    all.extend(args);
    let mut emulator = Emulator::start(program, dir, &all);
    assert!(emulator.wait_for("reboot: Power down", LIMIT), "{}", tail(&emulator.serial_text()));
    let code = emulator.wait();
    (emulator.serial_text().replace('\r', ""), code)
}

fn tail(text: &str) -> String {
    text.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[test]
fn the_cloud_kernel_sees_four_processors_and_all_memory_and_powers_off() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    let dir = tempfile::tempdir().unwrap();
    let (text, code) = boot(&program, dir.path(), &kernel, "check", &["-smp", "4", "-m", "6G"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("anura-guest: cpus 4 x"), "{}", tail(&text));
    assert!(text.contains("[mem 0x0000000100000000-0x00000001bfffffff] usable"));
    for id in ["8086:1237", "8086:7000", "8086:7113"] {
        assert!(text.contains(&format!("{id} (rev")), "PCI function {id} is missing");
    }
    for bad in ["BUG", "WARNING", "Oops", "ACPI Error", "unable to"] {
        assert!(!text.contains(bad), "{bad}: {}", text.lines().find(|line| line.contains(bad)).unwrap_or(""));
    }
}

#[test]
fn the_generic_kernel_reaches_the_shell() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz-generic"), NO_GUEST);
    let dir = tempfile::tempdir().unwrap();
    let (text, code) = boot(&program, dir.path(), &kernel, "check", &["-m", "512"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("anura-guest: sum 42"), "{}", tail(&text));
}

/// The uncompressed kernel within a bzImage, found by its compression's magic.
fn extract_vmlinux(bzimage: &Path, to: &Path) -> bool {
    let image = std::fs::read(bzimage).unwrap();
    for (magic, tool) in
        [(&b"\xfd7zXZ\0"[..], "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b\x08", "gzip")]
    {
        let Some(at) = image.windows(magic.len()).position(|w| w == magic) else { continue };
        let rest = to.with_extension("packed");
        std::fs::write(&rest, &image[at..]).unwrap();
        let out = Command::new(tool)
            .args(["-dc"])
            .stdin(std::fs::File::open(&rest).unwrap())
            .stderr(Stdio::null())
            .output();
        // Bytes behind the packed part make the tool complain after it has done its work.
        if let Ok(out) = out
            && out.stdout.starts_with(b"\x7fELF")
        {
            std::fs::write(to, out.stdout).unwrap();
            return true;
        }
    }
    false
}

#[test]
fn an_uncompressed_kernel_boots_by_its_pvh_entry() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = dir.path().join("vmlinux");
    need!(extract_vmlinux(&kernel, &vmlinux).then_some(()), "no tool here unpacks the kernel");
    let (text, code) = boot(&program, dir.path(), &vmlinux, "check", &["-m", "512"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("anura-guest: sum 42"), "{}", tail(&text));
}

#[test]
fn thirty_two_processors_stand_in_the_topology_that_was_asked_for() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    let dir = tempfile::tempdir().unwrap();
    let smp = "cores=4,threads=2,sockets=4";
    let (text, _) = boot(&program, dir.path(), &kernel, "topology", &["-smp", smp, "-m", "16384"]);
    let rows: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("anura-guest: topology ")).map(|r| r.1).collect();
    assert_eq!(rows.len(), 32, "{}", tail(&text));
    for package in 0..4 {
        let here: Vec<_> = rows.iter().filter(|row| row.contains(&format!("package {package} "))).collect();
        assert_eq!(here.len(), 8, "package {package}: {here:?}");
        for core in 0..4 {
            let threads = here.iter().filter(|row| row.contains(&format!("core {core} "))).count();
            assert_eq!(threads, 2, "package {package} core {core}: {here:?}");
        }
    }
}

#[test]
fn the_guest_sees_acpi_tables_that_decompile_without_error() {
    let program = need!(anura(), NO_PROGRAM);
    let kernel = need!(guest_file("vmlinuz"), NO_GUEST);
    let iasl = need!(tool("iasl"), "iasl is not installed");
    let dir = tempfile::tempdir().unwrap();
    let (text, _) = boot(&program, dir.path(), &kernel, "dump", &["-m", "512"]);
    let mut tables = Vec::new();
    for part in text.split("anura-guest: table ").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        let data: String = rest.lines().take_while(|line| !line.starts_with("anura-guest")).collect();
        let path = dir.path().join(format!("{name}.aml"));
        std::fs::write(&path, decode_base64(&data)).unwrap();
        tables.push(path);
    }
    assert!(tables.len() >= 5, "{} tables", tables.len());
    for table in &tables {
        let out = Command::new(&iasl).arg("-d").arg(table).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && !said.contains("Error"), "{}: {said}", table.display());
        if table.file_stem().is_some_and(|s| s == "DSDT") {
            let out = Command::new(&iasl).arg(table.with_extension("dsl")).output().unwrap();
            let said =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(said.contains(" 0 Errors"), "{said}");
        }
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let values: Vec<u32> =
        text.bytes().filter_map(|b| DIGITS.iter().position(|d| *d == b)).map(|n| n as u32).collect();
    let mut out = Vec::new();
    for group in values.chunks(4) {
        let word = group.iter().fold(0, |w, v| w << 6 | v) << (6 * (4 - group.len()));
        out.extend(&word.to_be_bytes()[1..group.len()]);
    }
    out
}

/// Options of a run in counted time.
const COUNTED: [&str; 8] =
    ["-icount", "shift=1,sleep=off", "-rtc", "base=2020-01-01,clock=vm", "-no-shutdown", "-m", "256", "-S"];

/// A counted boot with more options; the emulator stands before its first instruction.
fn counted(program: &Path, dir: &Path, smp: &str, extra: &[&str]) -> Emulator {
    let (kernel, initrd) = (guest_file("vmlinuz").unwrap(), guest_file("initrd.gz").unwrap());
    let mut args = vec!["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
    args.extend(["-append", "console=ttyS0 panic=-1 anura.run=check", "-smp", smp]);
    args.extend(COUNTED);
    args.extend(extra);
    Emulator::start(program, dir, &args)
}

/// Runs to the guest's power-off; serial bytes and state hash.
fn finish(emulator: &mut Emulator) -> (String, String) {
    let mut monitor = emulator.monitor();
    monitor.run("cont");
    assert!(monitor.wait_shutdown(LIMIT), "{}", tail(&emulator.serial_text()));
    let hash = monitor.run("info statehash");
    assert!(hash.contains("state "), "{hash}");
    (emulator.serial_text(), hash)
}

#[test]
fn counted_boots_repeat_to_the_last_bit_on_an_idle_and_a_loaded_host() {
    let program = need!(anura(), NO_PROGRAM);
    need!(guest_file("vmlinuz"), NO_GUEST);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = finish(&mut counted(&program, dirs[0].path(), "2", &[]));
    let mut load: Vec<_> =
        (0..2).map(|_| Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap()).collect();
    let second = finish(&mut counted(&program, dirs[1].path(), "2", &[]));
    for child in &mut load {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(first.1, second.1);
    assert!(first.0 == second.0, "the serial bytes differ");
}

#[test]
fn a_machine_saved_in_the_middle_ends_in_the_same_state_in_another_process() {
    let program = need!(anura(), NO_PROGRAM);
    need!(guest_file("vmlinuz"), NO_GUEST);
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let whole = finish(&mut counted(&program, dirs[0].path(), "2", &[]));

    let file = format!("file:{}", dirs[1].path().join("saved").display());
    let mut saved = counted(&program, dirs[1].path(), "2", &[]);
    let mut monitor = saved.monitor();
    monitor.run("cont");
    assert!(saved.wait_for("Freeing unused kernel image", LIMIT));
    monitor.run("stop");
    assert_eq!(monitor.run(&format!("migrate {file}")), "");
    let middle = monitor.run("info statehash");
    let begun = saved.serial_text();
    drop(saved);

    let mut restored = counted(&program, dirs[2].path(), "2", &["-incoming", &file]);
    assert_eq!(restored.monitor().run("info statehash"), middle);
    let end = finish(&mut restored);
    assert_eq!(end.1, whole.1);
    assert!(begun + &end.0 == whole.0, "the serial bytes differ");
}
