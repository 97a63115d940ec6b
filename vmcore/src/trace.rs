//! Trace events: named points that cost one relaxed load while they are off.
//!
//! All events are declared in one table here, so that `-trace help` can list them and a name is unique.
//! Names are QEMU's where QEMU has the event.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// One event.
pub struct TraceEvent {
    name: &'static str,
    args: &'static str,
    enabled: AtomicBool,
}

impl TraceEvent {
    /// Whether anybody listens.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// The event's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What its arguments are, for `-trace help`.
    pub fn args(&self) -> &'static str {
        self.args
    }

    /// Switches the event.
    pub fn enable(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
    }

    /// Writes one line; called by [`trace_event!`](crate::trace_event) only.
    #[cold]
    pub fn emit(&self, args: std::fmt::Arguments<'_>) {
        match HOOK.get() {
            Some(hook) => hook(self.name, &args),
            None => eprintln!("{} {args}", self.name),
        }
    }
}

type Hook = Box<dyn Fn(&'static str, &std::fmt::Arguments<'_>) + Send + Sync>;
static HOOK: OnceLock<Hook> = OnceLock::new();

/// Sends trace lines to `hook`. The first caller wins.
pub fn set_hook(hook: impl Fn(&'static str, &std::fmt::Arguments<'_>) + Send + Sync + 'static) {
    let _ = HOOK.set(Box::new(hook));
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident: $args:literal;)*) => {
        $($(#[$doc])* #[allow(non_upper_case_globals, reason = "events keep the names that users type")]
        pub static $name: TraceEvent =
            TraceEvent { name: stringify!($name), args: $args, enabled: AtomicBool::new(false) };)*
        /// Every event, in the order of the table.
        pub static ALL: &[&TraceEvent] = &[$(&$name),*];
    };
}

events! {
    /// A phase of start-up begins.
    init_phase: "name";
    /// A device region is read.
    memory_region_ops_read: "cpu, region, addr, value, size";
    /// A device region is written.
    memory_region_ops_write: "cpu, region, addr, value, size";
    /// A flat view is published.
    flatview_new: "space, ranges";
    /// A vCPU left its engine.
    vcpu_exit: "cpu, reason";
    /// A vCPU is reset.
    vcpu_reset: "cpu";
    /// The run state changes.
    runstate_set: "old, new";
    /// The machine is reset.
    system_reset: "reason";
    /// A local APIC accepts an interrupt.
    apic_deliver_irq: "dest, mode, delivery, vector, trigger";
    /// A local APIC sees an end of interrupt.
    apic_eoi: "cpu, vector";
    /// An IOAPIC input changes.
    ioapic_set_irq: "pin, level";
    /// A PIC input changes.
    pic_set_irq: "chip, irq, level";
    /// A PIC delivers a vector.
    pic_interrupt: "irq, vector";
    /// A PCI configuration register is read.
    pci_cfg_read: "device, function, offset, value";
    /// A PCI configuration register is written.
    pci_cfg_write: "device, function, offset, value";
    /// A fw_cfg item is selected.
    fw_cfg_select: "key, name";
    /// A fw_cfg file is added.
    fw_cfg_add_file: "index, name, size";
    /// A byte leaves a serial port.
    serial_write: "port, offset, value";
    /// A register of a serial port is read.
    serial_read: "port, offset, value";
    /// A PIT channel is programmed.
    pit_ioport_write: "channel, value";
    /// A CMOS register is written.
    cmos_write: "index, value";
    /// An HPET register is written.
    hpet_write: "offset, value";
    /// A power-management register is written.
    piix4_pm_write: "offset, value";
    /// The keyboard controller's data port is read.
    pckbd_kbd_read_data: "value";
    /// The keyboard controller's data port is written.
    pckbd_kbd_write_data: "expected, value";
    /// The keyboard controller gets a command.
    pckbd_kbd_write_command: "value";
    /// A VGA register is written.
    vga_std_write_io: "port, value";
    /// A register of the Bochs display extensions is written.
    vga_vbe_write: "index, value";
    /// A floppy controller register is read.
    fdc_ioport_read: "register, value";
    /// A floppy controller register is written.
    fdc_ioport_write: "register, value";
    /// An IDE task file register is read.
    ide_ioport_read: "channel, register, value";
    /// An IDE task file register is written.
    ide_ioport_write: "channel, register, value";
    /// A bus master IDE register is written.
    bmdma_write: "offset, value";
    /// A state hash is computed.
    state_hash: "instructions, hash";
}

/// Switches all events that match `pattern` (`*` stands for any run of characters; a leading `-` switches
/// off). Returns how many matched.
pub fn set_by_pattern(pattern: &str) -> usize {
    let (on, pattern) = match pattern.strip_prefix('-') {
        Some(rest) => (false, rest),
        None => (true, pattern),
    };
    ALL.iter().filter(|e| matches(pattern, e.name)).map(|e| e.enable(on)).count()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((first, rest)) => {
            let Some(tail) = name.strip_prefix(first) else { return false };
            (0..=tail.len()).any(|skip| tail.is_char_boundary(skip) && matches(rest, &tail[skip..]))
        }
    }
}

/// Emits a trace event if it is on: `trace_event!(apic_eoi, "cpu {cpu} vector {vector:#x}")`.
#[macro_export]
macro_rules! trace_event {
    ($name:ident, $($arg:tt)*) => {
        if $crate::trace::$name.enabled() {
            $crate::trace::$name.emit(format_args!($($arg)*));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_a_shell() {
        assert!(matches("vcpu_exit", "vcpu_exit"));
        assert!(!matches("vcpu", "vcpu_exit"));
        assert!(matches("vcpu_*", "vcpu_exit"));
        assert!(matches("*_exit", "vcpu_exit"));
        assert!(matches("*", "x"));
        assert!(matches("memory_*_read", "memory_region_ops_read"));
        assert!(!matches("memory_*_read", "memory_region_ops_write"));
    }

    #[test]
    fn an_event_is_off_until_a_pattern_switches_it_on() {
        assert!(!hpet_write.enabled());
        assert_eq!(set_by_pattern("hpet_wri*"), 1);
        assert!(hpet_write.enabled());
        set_by_pattern("-hpet_write");
        assert!(!hpet_write.enabled());
    }
}
