//! Small guests, each a ROM of its own, that print the same text on every engine.
//!
//! `image` makes a ROM that starts at the reset vector, `runtime` is what guests call, the other modules are tables of
//! guests. [`run`] runs one on an engine of ours or on a peer (QEMU's TCG, Bochs). What must come out is kept in
//! `tests/guests/expected.txt`, judged by the Intel SDM; where a peer differs, [`DISSENT`] says why.

pub mod adversary;
pub mod bios;
mod cpu;
mod delivery;
mod exits;
pub mod image;
mod memory;
mod patching;
pub mod runtime;
mod segments;
mod smp;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iced_x86::IcedError;

use self::image::{Asm, Code, Image, Mode};

/// How a guest's code is made: its entry's address.
#[derive(Clone, Copy)]
pub enum Build {
    /// One piece of code of the mode's width, which ends by itself.
    One(fn(&mut Code) -> Asm),
    /// Several pieces.
    Many(fn(&mut Image) -> Result<u32, IcedError>),
}

/// A guest.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// The mode it starts in.
    pub mode: Mode,
    /// How many processors it wants.
    pub cpus: u32,
    /// Its code.
    pub build: Build,
}

const fn one(name: &'static str, mode: Mode, body: fn(&mut Code) -> Asm) -> Guest {
    Guest { name, mode, cpus: 1, build: Build::One(body) }
}

const fn many(name: &'static str, mode: Mode, body: fn(&mut Image) -> Result<u32, IcedError>) -> Guest {
    Guest { name, mode, cpus: 1, build: Build::Many(body) }
}

/// One guest for each reason for which hardware virtualisation leaves a guest.
pub fn exit_causes() -> Vec<Guest> {
    exits::GUESTS.to_vec()
}

/// The other guests.
pub fn others() -> Vec<Guest> {
    [cpu::GUESTS, delivery::GUESTS, memory::GUESTS, segments::GUESTS, smp::GUESTS, patching::GUESTS].concat()
}

/// What a KVM that emulates ring 0 in software gets wrong, so that these guests are not run on it. Seen on one such host: its
/// emulator neither watches data nor ports, tells late that an interrupt can be taken, and has no 32-bit paging.
#[rustfmt::skip]
pub const NOT_ON_EMULATED_KVM: &[(&str, &str)] = &[
    ("gate_absent", "a missing gate for #UD becomes #DF"),
    ("data_breakpoint", "no data breakpoints"),
    ("port_breakpoint", "no port breakpoints"),
    ("page_absent", "no 32-bit paging"),
    ("page_read_only", "no 32-bit paging"),
    ("page_supervisor", "no 32-bit paging"),
    ("page_accessed_and_dirty", "no 32-bit paging"),
    ("page_crossing", "no 32-bit paging"),
    ("page_reserved_bits", "no 32-bit paging"),
    ("page_pushes_are_whole", "no 32-bit paging"),
    ("page_string_stops_in_the_middle", "no 32-bit paging"),
    ("pae_reserved_bits", "no 32-bit paging"),
    ("pae_no_execute", "no 32-bit paging"),
    ("pae_pointers_are_loaded_with_cr3", "no 32-bit paging"),
    ("two_addresses_of_one_page", "no 32-bit paging"),
    ("paging_on_and_off", "no 32-bit paging"),
    ("invlpg", "no 32-bit paging"),
    ("tpr_below_threshold", "no 32-bit paging"),
    ("one_processor_patches_by_breakpoints", "code that was changed is run as it was"),
    ("one_processor_patches_what_another_runs", "code that was changed is run as it was"),
    ("nmi_window", "IRET does not open the window for a second NMI"),
    ("interrupt_window", "interrupts are taken instructions late"),
    ("msr_write", "PAT takes any type"),
    ("vmcall", "VMCALL is rewritten to VMMCALL, for ever where the code is ROM"),
];

/// What such a KVM gets wrong besides where it keeps the local APICs (`kernel-irqchip=split`), for then the stepper runs only
/// what the kernel says it failed at: its ring 3 has no software interrupts and no traps of its own.
#[rustfmt::skip]
pub const NOT_SPLIT_ON_EMULATED_KVM: &[(&str, &str)] = &[
    ("io_instruction", "INT from ring 3 is #UD"),
    ("cpuid", "INT from ring 3 is #UD"),
    ("pause", "INT from ring 3 is #UD"),
    ("mwait", "MWAIT in ring 3 is #GP"),
    ("monitor", "MONITOR in ring 3 is #GP"),
    ("rings_of_64_bits", "INT from ring 3 is #UD"),
    ("system_calls", "SYSRET to what is not canonical faults in ring 3"),
    ("double_fault", "INT from ring 3 is #UD"),
    ("stack_of_the_inner_ring_absent", "a fault in INT 3 is told of the next instruction"),
    ("single_step", "traps come once too often"),
    ("alignment_check", "INT from ring 3 is #UD"),
    ("virtual_8086_mode", "there is no virtual-8086 mode"),
    ("long_canonical", "a jump over the edge is a page fault"),
    ("call_gate", "call gates are #UD"),
    ("gates_of_higher_privilege", "INT from ring 3 is #UD"),
    ("ring_3_is_kept_out", "SYSEXIT is #UD"),
    ("flags_of_ring_3", "INT from ring 3 is #UD"),
    ("return_to_ring_3", "INT from ring 3 is #UD"),
    ("conforming_code", "INT from ring 3 is #UD"),
];

/// Where a peer prints something else than the manual says: guest, peer, why.
#[rustfmt::skip]
pub const DISSENT: &[(&str, &str, &str)] = &[
    ("cr_access", "qemu", "it takes reserved bits of CR4, and this one makes it hang"),
    ("dr_access", "qemu", "DR7 keeps reserved bits; general detect is not implemented"),
    ("ept_violation", "qemu", "memory that nothing answers reads as zeros; on PCI it is all ones"),
    ("msr_write", "qemu", "reserved bits, bad memory types and bases that are not canonical are taken"),
    ("alignment_check", "qemu", "alignment is never checked"),
    ("floating_point_errors", "qemu", "unmasked errors of SSE and MXCSR's reserved bits are ignored; #MF is late"),
    ("gate_absent", "qemu", "EXT is not set in the error code"),
    ("gates_of_higher_privilege", "qemu", "INT1 is an invalid opcode"),
    ("instruction_length", "qemu", "LOCK is taken where it may not stand"),
    ("long_canonical", "qemu", "an access by the stack is #GP, and a jump faults behind itself"),
    ("long_mode_stays_consistent", "qemu", "PAE can be cleared in long mode"),
    ("long_no_execute", "qemu", "P is not set in the error code of reserved bits"),
    ("one_processor_patches_by_breakpoints", "qemu", "a change while it translates is missed"),
    ("one_processor_patches_what_another_runs", "qemu", "a change while it translates is missed"),
    ("page_absent", "qemu", "a read-modify-write reads first"),
    ("page_reserved_bits", "qemu", "P is not set in the error code of reserved bits"),
    ("pae_pointers_are_loaded_with_cr3", "qemu", "PAE's pointers are read at each walk and never checked"),
    ("pae_reserved_bits", "qemu", "P is not set in the error code of reserved bits"),
    ("real_mode_exceptions", "qemu", "real mode has no limits"),
    ("rings_of_64_bits", "qemu", "the error code of a gate counts 16 bytes"),
    ("segment_expand_down", "qemu", "limits are not checked"),
    ("segment_limit", "qemu", "limits are not checked"),
    ("segment_null", "qemu", "null segments can be used"),
    ("segment_types", "qemu", "read-only segments and code can be written"),
    ("software_interrupts", "qemu", "INT1 is an invalid opcode"),
    ("system_calls", "qemu", "LSTAR and the target of SYSRET need not be canonical"),
    ("task_register", "qemu", "LTR takes null"),
    ("unreal_mode", "qemu", "limits are not checked"),
    ("x87_numbers", "qemu", "no stack faults"),
    ("rdpmc", "qemu", "any counter is an invalid opcode"),
    ("tpr_below_threshold", "qemu", "reserved bits of CR8 are dropped"),
];

impl Guest {
    /// The ROM.
    pub fn rom(&self) -> Result<Vec<u8>, IcedError> {
        let mut image = Image::new()?;
        let bits = match self.mode {
            Mode::Real => 16,
            Mode::Long => 64,
            _ => 32,
        };
        let entry = match self.build {
            Build::One(body) => image.code(bits, |c| {
                body(c)?;
                c.exit()
            })?,
            Build::Many(body) => body(&mut image)?,
        };
        image.finish(self.mode, entry)
    }
}

/// What runs a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Our program with this `-accel`.
    Ours(&'static str),
    /// QEMU's TCG.
    Qemu,
    /// Bochs.
    Bochs,
}

impl Engine {
    /// Its name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ours(name) => name,
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }
}

/// Longest time that a guest may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `rom` in `dir`; what it printed and how it ended.
pub fn run(engine: &Engine, program: &Path, guest: &Guest, rom: &[u8], dir: &Path) -> String {
    let (image, out) = (dir.join(format!("{}.rom", guest.name)), dir.join("out"));
    std::fs::write(&image, rom).expect("the folder takes files");
    let _ = std::fs::remove_file(&out);
    let mut command = Command::new(program);
    if *engine == Engine::Bochs {
        let config = dir.join("bochsrc");
        let text = format!(
            "display_library: term\nromimage: file={}\nvgaromimage: file=/usr/share/seabios/vgabios-stdvga.bin\n\
             megs: 32\nboot: floppy\nlog: {}\nport_e9_hack: enabled=1\nsound: driver=dummy\n\
             plugin_ctrl: sb16=0, es1370=0, usb_uhci=0, speaker=0, gameport=0\n\
             panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ncpu: model=corei7_haswell_4770, count={}, \
             ips=50000000, reset_on_triple_fault=0\nclock: sync=none\n",
            image.display(),
            dir.join("log").display(),
            guest.cpus
        );
        std::fs::write(&config, text).expect("the folder takes files");
        // Its text display wants a terminal of some size.
        let go = dir.join("go");
        std::fs::write(&go, "c\nq\n").expect("the folder takes files");
        let (config, go) = (config.display(), go.display());
        let line =
            format!("stty rows 50 cols 132; exec timeout 10 {} -q -f {config} -rc {go}", program.display());
        command = Command::new("script");
        command.args(["-qfec", &line]).arg(&out).env("TERM", "xterm").stdout(Stdio::null());
    } else {
        let accel = if let Engine::Ours(name) = engine { name } else { "tcg" };
        if *engine == Engine::Qemu {
            // Ours sends messages without being asked.
            command.args(["-global", "hpet.msi=on"]);
        }
        command.args(["-accel", accel, "-cpu", "max", "-m", "32", "-smp", &guest.cpus.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-vga", "none", "-no-reboot", "-bios"]).arg(&image);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon"]);
        command.arg(format!("file:{}", out.display())).stdout(Stdio::null());
    }
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let end = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            _ if Instant::now() > end => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            _ => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    let bytes = std::fs::read(&out).unwrap_or_default();
    let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
    if *engine == Engine::Bochs {
        // Bochs talks before and behind; the guest's text stands between marks.
        let inner = text.split_once('\u{1}').map_or("", |(_, rest)| rest);
        return match inner.split_once('\u{2}') {
            Some((text, _)) => format!("{text}[exit]"),
            // Where a processor shuts down, Bochs tells its state.
            None => format!("{}[reset]", inner.split("(0).[").next().unwrap_or(inner)),
        };
    }
    text = text.replace(['\u{1}', '\u{2}'], "");
    text += match status.map(|s| s.code()) {
        Some(Some(33)) => "[exit]",
        Some(Some(0)) => "[reset]",
        Some(_) => "[failed]",
        None => "[hangs]",
    };
    text
}
