//! Every option, one row each: name, value, what it does, how it is applied.
//!
//! An option of QEMU that cannot do anything yet has a row too, so that it is refused by name rather
//! than as unknown, and so that it takes its value with it.

use crate::options::builder::Builder;
use crate::options::keyval::KeyValues;
use crate::options::{chardev, devices, machine, misc};

type Res = Result<(), String>;

/// How an option is applied.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// No value.
    Flag(fn(&mut Builder)),
    /// The value as it is.
    Text(fn(&mut Builder, &str) -> Res),
    /// A list of keys and values.
    List {
        /// The key that the first word stands for.
        implied: Option<&'static str>,
        /// Takes the list.
        apply: fn(&mut Builder, &mut KeyValues) -> Res,
    },
    /// Refused: this is not there yet.
    Later(&'static str),
    /// Dealt with before the others.
    Special,
}

/// An option.
pub(crate) struct Opt {
    pub(crate) name: &'static str,
    pub(crate) alias: Option<&'static str>,
    /// The form of its value; `None` if it has none.
    pub(crate) arg: Option<&'static str>,
    /// One line for `-help`; empty to leave it out.
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
}

impl std::fmt::Debug for Opt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "-{}", self.name)
    }
}

const fn row(name: &'static str, arg: Option<&'static str>, help: &'static str, kind: Kind) -> Opt {
    Opt { name, alias: None, arg, help, kind }
}

const fn flag(name: &'static str, help: &'static str, f: fn(&mut Builder)) -> Opt {
    row(name, None, help, Kind::Flag(f))
}

const fn text(
    name: &'static str,
    arg: &'static str,
    help: &'static str,
    f: fn(&mut Builder, &str) -> Res,
) -> Opt {
    row(name, Some(arg), help, Kind::Text(f))
}

const fn list(
    name: &'static str,
    implied: Option<&'static str>,
    arg: &'static str,
    help: &'static str,
    apply: fn(&mut Builder, &mut KeyValues) -> Res,
) -> Opt {
    row(name, Some(arg), help, Kind::List { implied, apply })
}

const fn later(name: &'static str, what: &'static str) -> Opt {
    row(name, Some("..."), "", Kind::Later(what))
}

const fn later_flag(name: &'static str, what: &'static str) -> Opt {
    row(name, None, "", Kind::Later(what))
}

const fn alias(opt: Opt, alias: &'static str) -> Opt {
    Opt { alias: Some(alias), ..opt }
}

/// All options.
#[rustfmt::skip]
pub(crate) const TABLE: &[Opt] = &[
    alias(row("help", None, "print this help", Kind::Special), "h"),
    row("version", None, "print the version", Kind::Special),
    alias(list("machine", Some("type"), "pc[,prop=V]...", "the board; -machine help lists boards", machine::machine), "M"),
    list("accel", Some("accel"), "NAME[,prop=V]...", "how guest code runs; repeat for what to fall back to", machine::accel),
    flag("enable-kvm", "as -accel kvm", machine::enable_kvm),
    text("cpu", "MODEL[,+F][,-F]", "processor model; -cpu help lists models", machine::cpu),
    list("smp", Some("cpus"), "N[,sockets=][,cores=][,threads=][,maxcpus=]", "processors (default: 1)", machine::smp),
    list("m", Some("size"), "SIZE", "guest memory, for example 512M or 2G (default: 128M)", machine::memory),
    text("mem-path", "PATH", "guest memory in this file, or in one in this directory, as of hugetlbfs", machine::mem_path),
    flag("mem-prealloc", "take all guest memory at start", machine::mem_prealloc),
    list("object", Some("qom-type"), "TYPE,id=ID,...", "memory backends; -object help lists types", machine::object),
    text("bios", "FILE", "firmware", misc::bios),
    list("drive", None, "if=pflash,format=raw,file=F[,unit=N][,readonly=on]", "flash chip with firmware", misc::drive),
    text("pflash", "FILE", "flash chip with firmware", misc::pflash),
    text("kernel", "FILE", "Linux kernel (bzImage) or ELF image to boot", misc::kernel),
    text("initrd", "FILE", "initial ramdisk", misc::initrd),
    text("append", "TEXT", "kernel command line", misc::append),
    list("boot", Some("order"), "ORDER[,once=][,menu=on|off][,strict=on|off]", "boot order: a c d n", misc::boot),
    list("device", Some("driver"), "NAME[,prop=V]...", "add a device; -device help, -device NAME,help", devices::device),
    text("global", "DEVICE.PROP=V", "default for a property of a device", devices::global),
    text("serial", "WORD", "serial port to stdio, mon:stdio, pty, file:F, unix:P, tcp:H:P, chardev:ID, null, none", chardev::serial),
    text("parallel", "WORD", "parallel port, as -serial", chardev::parallel),
    text("monitor", "WORD", "monitor, as -serial", chardev::monitor),
    list("chardev", Some("backend"), "TYPE,id=ID,...", "character device; -chardev help lists types", chardev::chardev),
    list("mon", Some("chardev"), "ID[,mode=readline]", "monitor on a chardev", chardev::mon),
    text("echr", "N", "escape key of the multiplexer (default: 1, Ctrl-A)", chardev::echr),
    flag("nographic", "no display, serial port and monitor on this terminal", devices::nographic),
    list("display", Some("type"), "none", "where pictures go", devices::display),
    text("vga", "std|none", "graphics card (default: std)", devices::vga),
    text("debugcon", "WORD", "port E9h to a chardev, as -serial", chardev::debugcon),
    text("k", "LAYOUT", "keyboard layout", misc::keyboard),
    text("nic", "none", "no network card", devices::nic),
    list("rtc", None, "[base=utc|localtime|DATE][,clock=host|rt|vm]", "real-time clock", misc::rtc),
    list("icount", Some("shift"), "N[,sleep=on|off]", "counted time: an instruction takes 2^N ns", misc::icount),
    list("fw_cfg", Some("name"), "NAME,file=F|string=S", "file for the guest's firmware interface", misc::fw_cfg),
    list("smbios", None, "file=F | type=N[,field=V]...", "SMBIOS structures", misc::smbios),
    list("acpitable", None, "file=F | data=F[:F]...[,sig=S]...", "ACPI table", misc::acpitable),
    list("name", Some("guest"), "NAME[,process=S][,debug-threads=on|off]", "the guest's name", misc::name),
    text("uuid", "UUID", "the guest's UUID", misc::uuid),
    flag("no-reboot", "end instead of rebooting", misc::no_reboot),
    flag("no-shutdown", "stop instead of ending at power-off", misc::no_shutdown),
    list("action", None, "[reboot=][,shutdown=][,panic=]", "what follows an event of the guest", misc::action),
    flag("S", "do not run until the monitor says cont", misc::start_paused),
    text("incoming", "file:F|exec:CMD", "start from a saved machine", misc::incoming),
    text("d", "ITEM[,...]", "log; -d help lists items", misc::log_items),
    text("D", "FILE", "where the log goes (default: stderr)", misc::log_file),
    list("trace", Some("enable"), "[enable=]PATTERN[,events=F][,file=F]", "trace events; -trace help lists them", misc::trace),
    flag("perfmap", "name translated code for perf, in /tmp/perf-PID.map", misc::perf_map),
    flag("jitdump", "write translated code to jit-PID.dump, for perf inject --jit", misc::jit_dump),
    list("msg", Some("timestamp"), "timestamp=on|off", "time before each message", misc::msg),
    text("pidfile", "FILE", "write the process's number", misc::pidfile),
    flag("daemonize", "go on in the background once set up", misc::daemonize),
    flag("nodefaults", "no default ports, monitor and cards", misc::nodefaults),
    flag("no-user-config", "read no configuration of the user (there is none)", misc::nothing),
    row("readconfig", Some("FILE"), "read options from a file", Kind::Special),
    row("writeconfig", Some("FILE"), "write the options to a file, - for stdout", Kind::Special),
    text("L", "DIR", "where firmware files are", misc::data_dir),
    text("seed", "N", "seed of random numbers", misc::seed),
    // Old spellings and what is so anyway.
    flag("no-acpi", "", misc::no_acpi),
    flag("no-hpet", "", misc::no_hpet),
    flag("localtime", "", misc::localtime),
    flag("no-fd-bootchk", "", misc::nothing),
    flag("snapshot", "", misc::nothing),
    flag("only-migratable", "", misc::nothing),
    flag("nouserconfig", "", misc::nothing),
    text("net", "none", "", devices::nic),
    list("overcommit", None, "...", "", misc::overcommit),
    list("sandbox", Some("enable"), "...", "", misc::sandbox),
    // Not there yet.
    later("hda", "disks are"),
    later("hdb", "disks are"),
    later("hdc", "disks are"),
    later("hdd", "disks are"),
    later("cdrom", "CD-ROM drives are"),
    later("fda", "floppy disks are"),
    later("fdb", "floppy disks are"),
    later("sd", "disks are"),
    later("mtdblock", "disks are"),
    later("blockdev", "disks are"),
    later("netdev", "network is"),
    later("vnc", "VNC is"),
    later("spice", "SPICE is"),
    later_flag("full-screen", "display is"),
    later("qmp", "QMP is"),
    later("qmp-pretty", "QMP is"),
    later("gdb", "the gdb stub is"),
    later_flag("s", "the gdb stub is"),
    later_flag("usb", "USB is"),
    later("usbdevice", "USB is"),
    later("audiodev", "sound is"),
    later("audio", "sound is"),
    later("fsdev", "file sharing is"),
    later("virtfs", "file sharing is"),
    later("tpmdev", "TPM is"),
    later("numa", "NUMA is"),
    later("add-fd", "descriptor passing is"),
    later("set", "-set is"),
    later("loadvm", "snapshots in disk images are"),
    later("watchdog-action", "watchdogs are"),
    later("semihosting-config", "semihosting is"),
    later("dtb", "device trees are"),
    later("option-rom", "option ROMs are"),
    later("run-with", "-run-with is"),
    later("runas", "changing the user is"),
    later("chroot", "changing the root is"),
    later("dump-vmstate", "-dump-vmstate is"),
    later("plugin", "plugins are"),
    later("iscsi", "iSCSI is"),
    later("compat", "-compat is"),
    later_flag("preconfig", "-preconfig is"),
    later_flag("win2k-hack", "-win2k-hack is"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_used_twice() {
        let names: Vec<_> = TABLE.iter().flat_map(|o| [Some(o.name), o.alias]).flatten().collect();
        for (i, n) in names.iter().enumerate() {
            assert!(!names[..i].contains(n), "-{n} has two rows");
        }
    }
}
