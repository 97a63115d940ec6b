//! The monitor against a machine made of a little memory and a list of what was asked of it.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anura_chardev::{Chardev, ChardevConfig, ChardevKind, OpenOptions, SocketAddress, SocketConfig, pump};
use anura_machine::control::*;
use anura_memory::*;
use anura_x86::CpuState;
use parking_lot::Mutex;

use super::*;

struct Fake {
    map: MemoryMap,
    memory: AddressSpace,
    ports: AddressSpace,
    ram: Arc<RamBlock>,
    state: Mutex<CpuState>,
    run: Mutex<RunState>,
    asked: Mutex<Vec<String>>,
    a20: AtomicBool,
}

struct Latch(Mutex<u64>);

impl IoHandler for Latch {
    fn read(&self, _: Access) -> u64 {
        *self.0.lock()
    }
    fn write(&self, _: Access, value: u64) {
        *self.0.lock() = value;
    }
}

impl Fake {
    fn new() -> Arc<Self> {
        let map = MemoryMap::new();
        let (system, io) = (Region::container("system", u64::MAX), Region::container("io", 0x1_0000));
        let ram = RamBlock::new("pc.ram", 1 << 20).unwrap();
        let mut t = map.transaction();
        t.add(&system, 0, &Region::ram("pc.ram", ram.clone()), 0);
        let latch = Region::io("latch", 4, Arc::new(Latch(Mutex::new(0x12))), AccessRules::any(4));
        t.add(&io, 0x70, &latch, 0);
        t.commit();
        let (memory, ports) = (map.create_space("memory", &system), map.create_space("I/O", &io));
        let state = Mutex::new(CpuState::reset(0x60fb1));
        let run = Mutex::new(RunState::Prelaunch);
        Arc::new(Self {
            map,
            memory,
            ports,
            ram,
            state,
            run,
            asked: Mutex::default(),
            a20: AtomicBool::new(true),
        })
    }

    fn note(&self, what: impl Into<String>) -> Result<(), ControlError> {
        self.asked.lock().push(what.into());
        Ok(())
    }
}

impl MachineControl for Fake {
    fn engine(&self) -> String {
        "fake".into()
    }
    fn switch_engine(&self, name: &str) -> Result<(), ControlError> {
        Err(ControlError(format!("no {name}")))
    }

    fn run_state(&self) -> RunState {
        *self.run.lock()
    }
    fn stop(&self) -> Result<(), ControlError> {
        *self.run.lock() = RunState::Paused;
        self.note("stop")
    }
    fn cont(&self) -> Result<(), ControlError> {
        *self.run.lock() = RunState::Running;
        self.note("cont")
    }
    fn system_reset(&self) -> Result<(), ControlError> {
        self.note("reset")
    }
    fn system_powerdown(&self) -> Result<(), ControlError> {
        self.note("powerdown")
    }
    fn quit(&self) {
        let _ = self.note("quit");
    }
    fn key(&self, key: u16, down: bool) -> Result<(), ControlError> {
        self.note(format!("key {key:x} {down}"))
    }
    fn nmi(&self) -> Result<(), ControlError> {
        self.note("nmi")
    }
    fn mce(&self, check: &MachineCheck) -> Result<(), ControlError> {
        self.note(format!("mce {} {} {:x} {}", check.cpu, check.bank, check.status, check.broadcast))
    }
    fn migrate(&self, uri: &str) -> Result<(), ControlError> {
        self.note(format!("migrate {uri}"))
    }
    fn name(&self) -> Option<String> {
        Some("guest".into())
    }
    fn uuid(&self) -> Option<String> {
        None
    }
    fn cpus(&self) -> Vec<CpuInfo> {
        (0..2).map(|i| CpuInfo { index: i, apic_id: i, halted: i == 1, thread_id: 7 }).collect()
    }
    fn a20(&self) -> bool {
        self.a20.load(Ordering::Relaxed)
    }
    fn cpu_state(&self, cpu: u32) -> Result<CpuState, ControlError> {
        if cpu > 1 {
            return Err(ControlError(format!("no cpu {cpu}")));
        }
        Ok(self.state.lock().clone())
    }
    fn translate(&self, _: u32, va: u64) -> Option<u64> {
        (va < 0x8000_0000).then_some(va & 0xf_ffff)
    }
    fn memory_map(&self) -> MemoryMap {
        self.map.clone()
    }
    fn memory(&self) -> AddressSpace {
        self.memory.clone()
    }
    fn ports(&self) -> AddressSpace {
        self.ports.clone()
    }
    fn ram_blocks(&self) -> Vec<Arc<RamBlock>> {
        vec![self.ram.clone()]
    }
    fn device_tree(&self) -> BusNode {
        let hpet = DeviceNode {
            driver: "hpet".into(),
            properties: vec![("timers".into(), "3 (0x3)".into())],
            ..DeviceNode::default()
        };
        BusNode { name: "main-system-bus".into(), kind: "System".into(), devices: vec![hpet] }
    }
    fn pic_text(&self) -> String {
        "pic0: irr=00\n".into()
    }
    fn lapic_text(&self, cpu: u32) -> Result<String, ControlError> {
        Ok(format!("dumping local APIC state for CPU {cpu}\n"))
    }
    fn ioapic_text(&self) -> String {
        "ioapic0: ver=0x20\n".into()
    }
    fn irq_text(&self) -> String {
        String::new()
    }
    fn exits_text(&self) -> String {
        String::new()
    }
    fn jit_text(&self) -> String {
        "CPU #0: 3 blocks\n".into()
    }
    fn state_hash_text(&self) -> Result<String, ControlError> {
        Err(ControlError("stop the machine first".into()))
    }
    fn chardevs(&self) -> Vec<(String, String)> {
        vec![("serial0".into(), "stdio".into())]
    }
    fn set_log(&self, items: &str) -> Result<(), ControlError> {
        self.note(format!("log {items}"))
    }
}

fn check(pairs: &[(&str, &str)]) -> Arc<Fake> {
    let fake = Fake::new();
    fake.ram.write(0xffff0, &[0xea, 0x5b, 0xe0, 0x00, 0xf0, 0x30, 0x36, 0x2f, 0x32]);
    fake.ram.store(0x100, Width::W8, 0xffff_fffe_0000_0001);
    let mut hmp = Hmp::new(fake.clone());
    for (line, want) in pairs {
        assert_eq!(hmp.run(line), *want, "{line}");
    }
    fake
}

#[test]
fn dumps_have_qemus_form() {
    check(&[
        ("x /8bx 0xffff0", "00000000000ffff0: 0xea 0x5b 0xe0 0x00 0xf0 0x30 0x36 0x2f\n"),
        ("xp/2c 0xffff0", "00000000000ffff0: '\\xea' '['\n"),
        (
            "xp/3dg 0",
            "0000000000000000:                    0                    0\n0000000000000010:                    0\n",
        ),
        ("xp/2oh 0", "0000000000000000:      0      0\n"),
        ("xp/1uw 0", "0000000000000000:          0\n"),
        ("xp/1dw 0x104", "0000000000000104:         -2\n"),
        ("xp/xg 0x100", "0000000000000100: 0xfffffffe00000001\n"),
        ("xp 0x100", "0000000000000100: 0xfffffffe00000001\n"),
        ("xp/1i 0xffff0", "0x000ffff0:  ea 5b e0 00 f0           ljmpw $0xf000,$0xe05b\n"),
        ("xp/4xw 0x200000", "0000000000200000: Cannot access memory\n"),
        ("x/xw 0xfffffff0", "00000000fffffff0: Cannot access memory\n"),
    ]);
}

#[test]
fn expressions_know_registers_and_precedence() {
    check(&[
        ("p/x 1+2*3", "0x7\n"),
        ("p 0x10-1", "0xf\n"),
        ("p/d 010 + (2 | 5) * -1", "1\n"),
        ("p 6 & 3 + 1", "3\n"),
        ("p ~0", "-1\n"),
        ("p/x $eip", "0xfff0\n"),
        ("p $pc", "0xfffffff0\n"),
        ("p $cs.base", "0xffff0000\n"),
        (
            "p $rdx >",
            "print: extraneous characters at the end of line\nTry \"help print\" for more information\n",
        ),
        ("p 'A'", "0x41\n"),
        ("p 1/0", "division by zero\nTry \"help print\" for more information\n"),
        ("p $nope", "unknown register '$nope'\nTry \"help print\" for more information\n"),
        ("p", "unexpected end of expression\nTry \"help print\" for more information\n"),
        (
            "p 0xfffffffffffffffff",
            "invalid char '0' in expression\nTry \"help print\" for more information\n",
        ),
    ]);
    let deep = "(".repeat(5000);
    assert!(Hmp::new(Fake::new()).run(&format!("p {deep}")).contains("too deep"));
}

#[test]
fn commands_reach_the_machine() {
    let fake = check(&[
        ("info status", "VM status: paused (prelaunch)\n"),
        ("cont", ""),
        ("info status", "VM status: running\n"),
        ("stop", ""),
        ("system_reset", ""),
        ("system_powerdown", ""),
        ("nmi", ""),
        ("mce -b 1 2 0x9000000000000000 0 0 0", ""),
        ("migrate -d \"exec:cat > /tmp/x\"", ""),
        ("log int,unimp", ""),
        ("q", ""),
        ("i/b 0x70", "portb[0x0070] = 0x12\n"),
        ("o/h 0x70 0x1234", ""),
        ("i /h 0x70", "portw[0x0070] = 0x1234\n"),
        ("i 0x80", "portb[0x0080] = 0xff\n"),
        ("cpu 1", ""),
        ("cpu 2", "Error: Invalid CPU index\n"),
        ("info cpus", "  CPU #0: thread_id=7\n* CPU #1: thread_id=7 (halted)\n"),
        ("gva2gpa 0x40000100", "gpa: 0x100\n"),
        ("gva2gpa 0x90000000", "Unmapped\n"),
        ("sum 0 0x10", "00000\n"),
        ("gpa2hva 0x200000", "Error: No memory is mapped at address 0x200000\n"),
        ("info statehash", "stop the machine first\nTry \"help info\" for more information\n"),
        ("trace-event nope on", "Error: unknown event \"nope\"\n"),
    ]);
    let want = [
        "cont",
        "stop",
        "reset",
        "powerdown",
        "nmi",
        "mce 1 2 9000000000000000 true",
        "migrate exec:cat > /tmp/x",
        "log int,unimp",
        "quit",
    ];
    assert_eq!(*fake.asked.lock(), want);
    let out = Hmp::new(fake).run("gpa2hva 0x100");
    assert!(
        out.starts_with("Host virtual address for 0x100 (pc.ram) is 0x") && out.contains("(offset 0x100)")
    );
}

#[test]
fn unknown_commands_and_help_are_as_tools_know_them() {
    check(&[
        ("foo", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("help x", "x /fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help quit", "quit|q  -- quit the emulator\n"),
        ("help foo", "unknown command: 'foo'\n"),
        ("", ""),
        (
            "stop now",
            "stop: extraneous characters at the end of line\nTry \"help stop\" for more information\n",
        ),
    ]);
    let mut hmp = Hmp::new(Fake::new());
    assert!(hmp.run("info").contains("info mtree [-f][-D] -- show memory tree"));
    assert!(hmp.run("help").lines().count() > 20);
}

#[test]
fn info_commands_show_what_there_is() {
    check(&[
        ("info name", "guest\n"),
        ("info uuid", "00000000-0000-0000-0000-000000000000\n"),
        ("info chardev", "serial0: filename=stdio\n"),
        ("info pic", "ioapic0: ver=0x20\npic0: irr=00\n"),
        ("info jit", "CPU #0: 3 blocks\n"),
        ("info lapic 1", "dumping local APIC state for CPU 1\n"),
        ("info qtree", "bus: main-system-bus\n  type System\n  dev: hpet, id \"\"\n    timers = 3 (0x3)\n"),
        (
            "info ramblock",
            "              Block Name    PSize              Offset               Used              Total\n\
             \x20                 pc.ram    4 KiB  0x0000000000000000 0x0000000000100000 0x0000000000100000\n",
        ),
        ("info mem", "PG disabled\n"),
        ("info tlb", "PG disabled\n"),
    ]);
    let fake = Fake::new();
    let mut hmp = Hmp::new(fake.clone());
    assert!(hmp.run("info registers").contains(" A20=1 SMM=0"));
    fake.a20.store(false, Ordering::Relaxed);
    assert!(hmp.run("info registers").contains(" A20=0 SMM=0"));
    assert!(hmp.run("info registers").starts_with("\nCPU#0\nEAX=00000000 EBX=00000000"));
    assert!(hmp.run("info registers -a").contains("\nCPU#1\n"));
    assert!(hmp.run("info registers 5").starts_with("CPU#5 not available"));
    assert!(hmp.run("info mtree").contains("address-space: I/O\n"));
    assert!(hmp.run("info mtree -f").contains("0000000000000070-0000000000000073 (prio 0, i/o): latch\n"));
    assert!(hmp.run("info version").starts_with("9.2.0 (anura "));
    assert!(hmp.run("info history").contains("0: 'info registers'"));
}

/// Four levels at 0x1000: one 4 KiB page, one 2 MiB page, and the top's last entry is the top itself.
fn with_page_tables(fake: &Fake, recursive: bool) {
    let set = |at: u64, v: u64| assert!(fake.ram.store(at, Width::W8, v));
    set(0x1000, 0x2007);
    set(0x2000, 0x3007);
    set(0x3000, 0x4003);
    set(0x4008, 0x5063 | 1 << 63);
    set(0x3008, 0x20_00a7);
    if recursive {
        for i in 0..512 {
            set(0x1000 + i * 8, 0x1007);
        }
    }
    let mut s = fake.state.lock();
    s.cr3 = 0x1000;
    s.cr0 |= anura_x86::regs::cr0::PG | 1;
    s.cr4 |= anura_x86::regs::cr4::PAE;
    s.efer |= anura_x86::regs::efer::LMA;
}

#[test]
fn page_tables_are_shown_with_the_rights_of_all_levels() {
    let fake = Fake::new();
    with_page_tables(&fake, false);
    let mut hmp = Hmp::new(fake);
    assert_eq!(
        hmp.run("info tlb"),
        "0000000000001000: 0000000000005000 X--DA---W\n0000000000200000: 0000000000200000 --P-A--UW\n"
    );
    assert_eq!(
        hmp.run("info mem"),
        "0000000000001000-0000000000002000 0000000000001000 -rw\n\
         0000000000200000-0000000000400000 0000000000200000 urw\n"
    );
}

#[test]
fn tables_that_point_at_themselves_end() {
    let fake = Fake::new();
    with_page_tables(&fake, true);
    let out = Hmp::new(fake).run("info mem");
    assert!(out.ends_with("(more mappings than are shown)\n"));
}

#[test]
fn any_line_is_survived() {
    let mut hmp = Hmp::new(Fake::new());
    let words = [
        "x",
        "xp",
        "p",
        "i",
        "o",
        "info",
        "/",
        "/9",
        "/3i",
        "xb",
        "0x",
        "$",
        "$rip",
        "(",
        ")",
        "'",
        "-",
        "+",
        "*",
        "lapic",
        "registers",
        "-a",
        "mtree",
        "help",
        "cpu",
        "sum",
        "log",
        "\"",
        "%",
        "é",
        "0",
        "99999999999999999999",
        " ",
    ];
    let mut seed = 7u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize
    };
    for _ in 0..20_000 {
        let line: Vec<&str> = (0..1 + next() % 6).map(|_| words[next() % words.len()]).collect();
        let line = line.join(if next() % 2 == 0 { " " } else { "" });
        if !line.contains("sum") {
            hmp.run(&line);
        }
    }
}

#[test]
fn a_monitor_on_a_socket_greets_edits_and_answers_with_full_line_ends() {
    let (ours, mut terminal) = UnixStream::pair().unwrap();
    let config = SocketConfig {
        address: SocketAddress::Fd { fd: ours.as_raw_fd() },
        server: false,
        wait: false,
        telnet: false,
        nodelay: false,
        reconnect: 0,
    };
    let chardev =
        Chardev::open(&ChardevConfig::new("mon", ChardevKind::Socket(config)), &OpenOptions::default())
            .unwrap();
    let _monitor = Monitor::attach(chardev.claim().unwrap(), Fake::new());
    terminal.write_all(b"info statu\t\r\nfoo\n").unwrap();
    terminal.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..50 {
        pump(&[&chardev], Some(Duration::from_millis(5)));
    }
    chardev.close();
    drop((ours, chardev));
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert_eq!(
        text,
        "QEMU 9.2.0 monitor - type 'help' for more information\r\n\
         (qemu) info status \r\nVM status: paused (prelaunch)\r\n\
         (qemu) foo\r\nunknown command: 'foo'\r\n(qemu) "
    );
}
