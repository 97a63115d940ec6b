//! What a user can get wrong: one line on stderr that names the option, the value and the way out; exit code 1.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anura_tests::{anura, guest_file, need};

/// Runs the program to its end; exit code and stderr.
fn run(program: &Path, dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The command line, and what its one line must say.
const CASES: &[(&[&str], &str)] = &[
    (&["-bogus"], "-bogus: invalid option"),
    (&["-kernl", "x"], "did you mean -kernel"),
    (&["-m"], "-m: requires an argument"),
    (&["-m", "0"], "-m 0: "),
    (&["-m", "abc"], "-m abc: "),
    (&["-m", "2T"], "40 physical address bits"),
    (&["-m", "900G", "-kernel", "small"], "of memory and swap in all; ask for less"),
    (&["-smp", "0"], "-smp 0: "),
    (&["-smp", "300"], "-smp 300: "),
    (&["-smp", "cpus=5,cores=3,sockets=2,maxcpus=5"], "-smp "),
    (&["-cpu", "nosuch"], "-cpu help lists them"),
    (&["-cpu", "qemu64,+nofeature"], "nofeature"),
    (&["-accel", "nope"], "-accel help lists them"),
    (&["-accel", "xen"], "invalid accelerator xen"),
    (&["-accel", "kvm:tcg"], "-accel kvm:tcg: "),
    (&["-machine", "foo"], "-machine help lists them"),
    (&["-machine", "pc,foo=on"], "foo"),
    (&["-device", "nope"], "'nope' is not a valid device model name"),
    (&["-device", "isa-seriall"], "did you mean 'isa-serial'"),
    (&["-device", "isa-debug-exit,iobase=zz"], "isa-debug-exit.iobase"),
    (&["-device", "isa-debug-exit,nosuch=1"], "nosuch"),
    (&["-kernel", "missing"], "-kernel missing: could not load"),
    (&["-kernel", "empty"], "-kernel empty: the file is empty"),
    (&["-kernel", "noise"], "neither a Linux bzImage nor an ELF file"),
    (&["-kernel", "elf"], "-kernel elf: "),
    (&["-initrd", "noise"], "only allowed with -kernel"),
    (&["-append", "x"], "only allowed with -kernel"),
    (&["-bios", "missing"], "-bios missing: could not load"),
    (&["-bios", "empty"], "-bios empty: 0 bytes, but firmware has"),
    (&["-drive", "file=x"], "-drive file=x: "),
    (&["-hda", "x"], "-hda x: "),
    (&["-serial", "unix:/nonexistent/x,server=on", "-kernel", "small"], "/nonexistent/x"),
    (&["-serial", "tcp:127.0.0.1:1", "-kernel", "small"], "127.0.0.1:1"),
    (&["-D", "/nonexistent/log", "-kernel", "small"], "-D /nonexistent/log: "),
    (&["-d", "foo"], "-d help lists them"),
    (&["-trace", "nope"], "-trace help lists them"),
    (&["-pidfile", "/nonexistent/p", "-kernel", "small"], "-pidfile /nonexistent/p: "),
    (&["-rtc", "base=xx"], "-rtc base=xx: "),
    (&["-icount", "shift=99"], "-icount shift=99: "),
    (&["-global", "foo"], "-global foo: "),
    (&["-fw_cfg", "name=opt/x,file=missing", "-kernel", "small", "-S"], "missing"),
    (&["-smbios", "type=1,foo=bar"], "-smbios type=1,foo=bar: "),
    (&["-acpitable", "file=empty", "-kernel", "small", "-S"], "-acpitable"),
    (&["-incoming", "file:missing"], "file:missing"),
    (&["-incoming", "file:noise"], "not a saved machine"),
    (&["-chardev", "foo,id=x"], "-chardev help lists them"),
    (&["-mon", "chardev=nope"], "nope"),
    (&["-uuid", "zz"], "-uuid zz: "),
    (&["-boot", "order=zz"], "-boot order=zz: "),
    (&["-vga", "foo"], "-vga help lists them"),
    (&["-action", "reboot=foo"], "use reset, shutdown"),
    (&["-readconfig", "missing"], "missing"),
];

#[test]
fn each_mistake_is_one_line_with_a_way_out_and_exit_code_1() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    std::fs::write(dir.path().join("noise"), [0x5a; 4096]).unwrap();
    std::fs::write(dir.path().join("small"), [0x5a; 4096]).unwrap();
    std::fs::write(dir.path().join("elf"), b"\x7fELF\x02\x01\x01 and no more").unwrap();
    let mut wrong = Vec::new();
    for (args, says) in CASES {
        let (code, text) = run(&program, dir.path(), args);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if code != Some(1) || line.contains('\n') || !line.starts_with("anura: ") || !line.contains(says) {
            wrong.push(format!("{args:?}: exit {code:?}, expected {says:?}: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damaged_kernels_and_oversized_ram_disks_are_refused() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let kernel = need!(guest_file("vmlinuz"), "no guest kernel; run tools/fetch-guest");
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(&kernel).unwrap();
    std::fs::write(dir.path().join("truncated"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(dir.path().join("large"), vec![1; 80 << 20]).unwrap();
    let kernel = kernel.to_str().unwrap();
    let long = "x".repeat(5000);
    for (args, says) in [
        (vec!["-kernel", "truncated"], "truncated: "),
        (vec!["-kernel", kernel, "-initrd", "missing"], "-initrd missing: could not load"),
        (vec!["-kernel", kernel, "-initrd", "large", "-m", "128"], "-initrd large: 80 MiB do not fit"),
        (vec!["-kernel", kernel, "-m", "16"], "of guest memory; give the machine more with -m"),
        (vec!["-kernel", kernel, "-append", &long], "-append: 5000 bytes"),
    ] {
        let (code, text) = run(&program, dir.path(), &args);
        let last = text.lines().last().unwrap_or("");
        assert!(code == Some(1) && last.contains(says), "{says}: exit {code:?}: {text}");
    }
}

#[test]
fn a_socket_in_use_is_named() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let monitor = format!("tcp:127.0.0.1:{port},server=on,wait=off");
    let (code, text) = run(&program, dir.path(), &["-S", "-display", "none", "-monitor", &monitor]);
    assert!(code == Some(1) && text.contains(&format!("127.0.0.1:{port}")), "{code:?} {text}");
}
