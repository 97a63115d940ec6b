//! `-help`, `-version`, and the lists behind `help` as a value, in QEMU's form.

use std::fmt::Write;

use anura_devices::registry::{self, Category, Kind as PropertyKind};
use anura_x86::CpuModel;

use crate::options::keyval::KeyValues;
use crate::options::table::{Kind, Opt, TABLE};
use crate::options::{chardev, machine};

/// Programs take the fourth word for QEMU's version and choose by it what they ask for.
pub const VERSION: &str = concat!("QEMU emulator version 9.2.0 (anura ", env!("CARGO_PKG_VERSION"), ")");

/// The items of `-d`, as QEMU names them, with what they log.
#[rustfmt::skip]
pub const LOG_ITEMS: &[(&str, &str)] = &[
    ("out_asm", "show generated host assembly code for each compiled block"),
    ("in_asm", "show guest instructions of each translated block"),
    ("op", "show the intermediate form of each translated block"),
    ("op_opt", "show the intermediate form after optimization"),
    ("int", "show interrupts and exceptions in short format"),
    ("exec", "show each executed block (lots of logs)"),
    ("cpu", "show CPU registers before each block (lots of logs)"),
    ("fpu", "include FPU registers in the 'cpu' logging"),
    ("mmu", "log MMU-related activities"),
    ("pcall", "show protected mode far calls, returns and exceptions"),
    ("cpu_reset", "show CPU state before CPU resets"),
    ("unimp", "log what the guest uses and we lack"),
    ("guest_errors", "log when the guest does something invalid"),
    ("page", "log changes of the memory tree"),
    ("nochain", "do not link blocks, so that 'exec' is complete"),
];

/// If this use asks for help, the text.
pub(crate) fn asked(opt: &Opt, text: &str) -> Option<Result<String, String>> {
    match opt.name {
        "help" => return Some(Ok(usage())),
        "version" => return Some(Ok(format!("{VERSION}\n"))),
        _ => {}
    }
    let implied = match opt.kind {
        Kind::List { implied, .. } => implied,
        Kind::Later(_) | Kind::Text(_) if text == "help" || text == "?" => None,
        _ => return None,
    };
    let items = KeyValues::parse(text, implied).ok()?.rest();
    let asks = |(i, (k, v)): (usize, &(String, String))| {
        let word = if i == 0 && implied.is_some_and(|imp| imp == k) { v } else { k };
        word == "help" || word == "?"
    };
    if !items.iter().enumerate().any(asks) {
        return None;
    }
    let subject = items.first().map(|(_, v)| v.as_str()).filter(|v| *v != "help" && *v != "?" && *v != "on");
    list(opt, subject)
}

fn list(opt: &Opt, subject: Option<&str>) -> Option<Result<String, String>> {
    Some(Ok(match (opt.name, subject) {
        ("accel", _) => {
            lines("Accelerators supported in QEMU binary:", machine::ACCELERATORS.iter().map(|a| (*a).into()))
        }
        ("machine", None) => machines(),
        ("machine", Some(name)) => machine_properties(name),
        ("cpu", _) => cpus(),
        ("chardev", _) => {
            let names = chardev::KINDS.iter().map(|k| format!("  {k}"));
            lines("Available chardev backend types: ", names)
        }
        ("device", None) => devices(),
        ("device", Some(name)) => return Some(device_properties(name)),
        ("object", None) => {
            let names = ["file", "memfd", "ram"].map(|k| format!("  memory-backend-{k}"));
            lines("List of user creatable objects:", names)
        }
        ("object", Some(name)) => object_properties(name),
        ("d", _) => {
            let mut out = String::from("Log items (comma separated):\n");
            for (name, what) in LOG_ITEMS {
                let _ = writeln!(out, "{name:<15} {what}");
            }
            out + "trace:PATTERN   enable trace events\n\nUse \"-d trace:help\" to get a list of trace events.\n\n"
        }
        ("trace", _) => {
            lines("", anura_vmcore::trace::ALL.iter().map(|e| e.name().into())).trim_start().into()
        }
        ("netdev", _) => lines("Available netdev backend types:", std::iter::empty()),
        ("display", _) => lines("Available display backend types:", ["none".into()]),
        ("vga", _) => {
            "none                 no graphic card\nstd                  standard VGA (default)\n".into()
        }
        ("audiodev", _) => lines("Available audio drivers:", std::iter::empty()),
        ("smp", _) => option_list(
            "smp-opts",
            &[
                "clusters=<num>",
                "cores=<num>",
                "cpus=<num>",
                "dies=<num>",
                "maxcpus=<num>",
                "sockets=<num>",
                "threads=<num>",
            ],
        ),
        ("boot", _) => option_list(
            "boot-opts",
            &[
                "menu=<bool (on/off)>",
                "once=<str>",
                "order=<str>",
                "reboot-timeout=<num>",
                "splash-time=<num>",
                "splash=<str>",
                "strict=<bool (on/off)>",
            ],
        ),
        ("k", _) | ("global", _) | ("serial", _) | ("monitor", _) | ("parallel", _) => return None,
        _ => return None,
    }))
}

fn lines(heading: &str, items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().fold(format!("{heading}\n"), |out, item| out + &item + "\n")
}

fn option_list(name: &str, items: &[&str]) -> String {
    lines(&format!("{name} options:"), items.iter().map(|i| format!("  {i}")))
}

fn machines() -> String {
    let pc = "Standard PC (i440FX + PIIX, 1996)";
    format!(
        "Supported machines are:\n\
         none                 empty machine\n\
         pc                   {pc} (alias of pc-i440fx-9.2)\n\
         pc-i440fx-9.2        {pc} (default)\n"
    )
}

fn machine_properties(name: &str) -> String {
    #[rustfmt::skip]
    const PROPERTIES: &[(&str, &str, &str)] = &[
        ("accel", "string", "Accelerators, separated by colons"),
        ("acpi", "OnOffAuto", "Enable ACPI"),
        ("append", "string", "Linux kernel command line"),
        ("dump-guest-core", "bool", "Include guest memory in a core dump"),
        ("firmware", "string", "Firmware image"),
        ("graphics", "bool", "Set on/off to enable/disable graphics emulation"),
        ("hpet", "bool", "Enable/disable high precision event timer emulation"),
        ("i8042", "bool", "Keyboard controller"),
        ("initrd", "string", "Linux initial ramdisk file"),
        ("kernel", "string", "Linux kernel image file"),
        ("kernel-irqchip", "on|off|split", "Where interrupt controllers run"),
        ("max-ram-below-4g", "size", "Maximum ram below the 4G boundary (32bit boundary)"),
        ("mem-merge", "bool", "Enable/disable memory merge support"),
        ("memory-backend", "str", "ID of a memory backend for all RAM"),
        ("pic", "OnOffAuto", "Enable i8259 PIC"),
        ("pit", "OnOffAuto", "Enable i8254 PIT"),
        ("smbios-entry-point-type", "str", "SMBIOS Entry Point type [32, 64]"),
        ("smbus", "bool", "Enable/disable system management bus"),
        ("smm", "OnOffAuto", "Enable SMM (off is what there is)"),
        ("vmport", "OnOffAuto", "Enable vmport (off is what there is)"),
        ("x-oem-id", "string", "OEMID in ACPI table headers"),
        ("x-oem-table-id", "string", "OEM Table ID in ACPI table headers"),
    ];
    let mut out = format!("{name}-machine options:\n");
    for (name, kind, what) in PROPERTIES {
        let _ = writeln!(out, "  {:<22} - {what}", format!("{name}=<{kind}>"));
    }
    out
}

fn cpus() -> String {
    let mut out = String::from("Available CPUs:\n");
    for name in CpuModel::names() {
        let what = match CpuModel::named(name, &anura_x86::FeatureSet::available()) {
            _ if name == "max" => {
                "Enables all features supported by the accelerator in the current host".into()
            }
            Ok(model) => model.model_id,
            Err(_) => String::new(),
        };
        let _ = writeln!(out, "x86 {name:<20}  {what}");
    }
    out += "\nRecognized CPUID flags:\n";
    let mut line = String::from(" ");
    for feature in anura_x86::Feature::ALL {
        if line.len() + feature.name().len() >= 76 {
            let _ = writeln!(out, "{line}");
            line = String::from(" ");
        }
        let _ = write!(line, " {}", feature.name());
    }
    out + &line + "\n"
}

fn devices() -> String {
    let mut out = String::new();
    for category in Category::ALL {
        let mut of: Vec<_> =
            registry::ALL.iter().filter(|d| d.category == category && d.user_creatable).collect();
        if of.is_empty() {
            continue;
        }
        of.sort_by_key(|d| d.name);
        let _ = writeln!(out, "{}{}:", if out.is_empty() { "" } else { "\n" }, category.heading());
        for d in of {
            let _ = writeln!(out, "name \"{}\", bus {}, desc \"{}\"", d.name, d.bus.name(), d.description);
        }
    }
    out
}

fn device_properties(name: &str) -> Result<String, String> {
    let Some(d) = registry::find(name) else {
        return Err(format!(
            "-device {name},help: '{name}' is not a valid device model name; -device help lists them"
        ));
    };
    let mut out = format!("{} options:\n", d.name);
    for p in d.properties {
        let kind = match p.kind {
            PropertyKind::Enum(words) => words.join("|"),
            kind => kind.name().to_owned(),
        };
        let default = p.default.value().map(|v| format!(" (default: {v})")).unwrap_or_default();
        let _ = writeln!(out, "  {:<22} - {}{default}", format!("{}=<{kind}>", p.name), p.doc);
    }
    Ok(out)
}

fn object_properties(name: &str) -> String {
    let mut items = vec!["id=<str>", "prealloc=<bool>", "share=<bool>", "size=<size>"];
    match name {
        "memory-backend-file" => items.extend(["discard-data=<bool>", "mem-path=<str>", "readonly=<bool>"]),
        "memory-backend-memfd" => items.extend(["hugetlb=<bool>", "hugetlbsize=<size>"]),
        _ => {}
    }
    items.sort_unstable();
    option_list(name, &items)
}

fn usage() -> String {
    let mut out = format!("{VERSION}\nusage: anura [options]\n\n");
    for opt in TABLE.iter().filter(|o| !o.help.is_empty()) {
        let name = match opt.arg {
            Some(arg) => format!("-{} {arg}", opt.name),
            None => format!("-{}", opt.name),
        };
        let _ = match name.len() {
            0..=31 => writeln!(out, "{name:<32}{}", opt.help),
            _ => writeln!(out, "{name}\n{:32}{}", "", opt.help),
        };
    }
    out + "\nLists of keys: a comma in a value is doubled; -device, -object and -chardev also take JSON.\n\
        With -nographic, Ctrl-A h shows the keys of this terminal.\n"
}
