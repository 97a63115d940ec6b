//! Every ioctl that this crate uses, as a table: what `IOCTLS.md` is made from and tests compare with the calls
//! themselves.

/// Which kind of descriptor an ioctl is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// `/dev/kvm`.
    System,
    /// A machine.
    Vm,
    /// A processor.
    Cpu,
}

impl On {
    /// The word in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Vm => "VM",
            Self::Cpu => "vCPU",
        }
    }
}

/// One ioctl.
#[derive(Clone, Copy, Debug)]
pub struct Ioctl {
    /// The kernel's name.
    pub name: &'static str,
    /// The descriptor.
    pub on: On,
    /// When it is called, and what for.
    pub when: &'static str,
    /// What happens where it fails or is not there.
    pub otherwise: &'static str,
}

const fn row(name: &'static str, on: On, when: &'static str, otherwise: &'static str) -> Ioctl {
    Ioctl { name, on, when, otherwise }
}

/// The engine does not start, and says which call failed.
const NO_START: &str = "the engine does not start";
/// The machine stops with registers shown, and can be reset.
const STOPS: &str = "internal-error: the machine stops, and can be reset";

/// All of them.
#[rustfmt::skip]
pub const TABLE: &[Ioctl] = &[
    row("KVM_GET_API_VERSION", On::System, "start: the interface must be version 12", NO_START),
    row("KVM_CHECK_EXTENSION", On::System, "start: what this kernel can do", "0 is no: see `anura doctor`"),
    row("KVM_GET_VCPU_MMAP_SIZE", On::System, "start: size of the page that KVM_RUN speaks through", NO_START),
    row("KVM_GET_SUPPORTED_CPUID", On::System, "start: features that guests can have", NO_START),
    row("KVM_GET_MSR_INDEX_LIST", On::System, "start: registers that are saved beside `CpuState`", NO_START),
    row("KVM_CREATE_VM", On::System, "start, and for the probe guest", NO_START),
    row("KVM_SET_TSS_ADDR", On::Vm, "start: pages for real mode on processors that need them", NO_START),
    row("KVM_SET_IDENTITY_MAP_ADDR", On::Vm, "start: as above", NO_START),
    row("KVM_ENABLE_CAP", On::Vm, "start: split irqchip, x2APIC ids, MSR exits, exit on emulation failure, quirks off", "irqchip and MSR exits: the engine does not start; others: a warning"),
    row("KVM_SET_USER_MEMORY_REGION", On::Vm, "each change of the memory map; after bursts of the stepper", "the guest stops; no slot left: says for which address"),
    row("KVM_GET_DIRTY_LOG", On::Vm, "state hash, engine switch, before the stepper runs, a slot goes; from the third time on, and always where ring 0 is emulated", "all RAM counts as written, or internal-error: the machine stops, and can be reset"),
    row("KVM_SIGNAL_MSI", On::Vm, "split: each interrupt of the IOAPIC, and messages that have no eventfd", "logged; the interrupt is lost"),
    row("KVM_SET_GSI_ROUTING", On::Vm, "split: a redirection entry changed, so that EOIs of level interrupts come back; a device's message is new or goes elsewhere", "logged; the message by KVM_SIGNAL_MSI"),
    row("KVM_IRQFD", On::Vm, "split: a device's message is first sent after the vCPUs go on; vCPUs stand", "KVM_SIGNAL_MSI for each message"),
    row("KVM_GET_CLOCK", On::Vm, "vCPUs stand: the paravirtual clock stands with them", "the clock jumps over pauses"),
    row("KVM_SET_CLOCK", On::Vm, "vCPUs go on after a pause", "a warning; as above"),
    row("KVM_IOEVENTFD", On::Vm, "a doorbell appears or goes", "its writes come as exits"),
    row("KVM_CREATE_VCPU", On::Vm, "start, once for each", NO_START),
    row("KVM_SET_CPUID2", On::Cpu, "start", NO_START),
    row("KVM_GET_TSC_KHZ", On::Cpu, "start: rate of the time stamp counter", "the machine's own rate"),
    row("KVM_SET_TSC_KHZ", On::Cpu, "start: another rate is wanted (tsc-frequency=)", NO_START),
    row("KVM_RUN", On::Cpu, "always", "EINTR, EAGAIN: tried again; else internal-error"),
    row("KVM_GET_REGS", On::Cpu, "the state is asked for; an interrupt for a halted processor (irqchip off)", STOPS),
    row("KVM_SET_REGS", On::Cpu, "the state is set: reset, load, stepper, engine switch", STOPS),
    row("KVM_GET_SREGS", On::Cpu, "as KVM_GET_REGS; before entry where ring 0 is emulated", STOPS),
    row("KVM_SET_SREGS", On::Cpu, "as KVM_SET_REGS", STOPS),
    row("KVM_GET_MSRS", On::Cpu, "as KVM_GET_REGS; at start to see which there are", STOPS),
    row("KVM_SET_MSRS", On::Cpu, "as KVM_SET_REGS; the counter after a pause", "one that refuses its value: a warning"),
    row("KVM_GET_XSAVE", On::Cpu, "as KVM_GET_REGS", STOPS),
    row("KVM_SET_XSAVE", On::Cpu, "as KVM_SET_REGS", STOPS),
    row("KVM_GET_XCRS", On::Cpu, "as KVM_GET_REGS", STOPS),
    row("KVM_SET_XCRS", On::Cpu, "as KVM_SET_REGS, if XCR0 changes", STOPS),
    row("KVM_GET_DEBUGREGS", On::Cpu, "as KVM_GET_REGS", STOPS),
    row("KVM_SET_DEBUGREGS", On::Cpu, "as KVM_SET_REGS", STOPS),
    row("KVM_GET_VCPU_EVENTS", On::Cpu, "as KVM_GET_REGS", STOPS),
    row("KVM_SET_VCPU_EVENTS", On::Cpu, "as KVM_SET_REGS", STOPS),
    row("KVM_GET_LAPIC", On::Cpu, "split: a vCPU leaves its loop (its timer may expire before it stands), vCPUs stand", "logged; the board's local APIC keeps what it had"),
    row("KVM_SET_LAPIC", On::Cpu, "split: vCPUs go on", "logged"),
    row("KVM_GET_MP_STATE", On::Cpu, "split: vCPUs stand", "logged"),
    row("KVM_SET_MP_STATE", On::Cpu, "split: vCPUs go on", "logged"),
    row("KVM_KVMCLOCK_CTRL", On::Cpu, "vCPUs go on after a pause: the guest's watchdogs are told", "a guest without that clock refuses; no matter"),
    row("KVM_INTERRUPT", On::Cpu, "irqchip off: each interrupt; split: the PIC's", STOPS),
    row("KVM_NMI", On::Cpu, "an NMI", STOPS),
    row("KVM_TRANSLATE", On::Cpu, "monitor: a virtual address", "the address is not mapped"),
    row("KVM_SET_GUEST_DEBUG", On::Cpu, "debugger; page faults where ring 0 is emulated", "the debugger is told"),
];

/// The table as a page.
pub fn page() -> String {
    let mut text = String::from(
        "# The ioctls of `-accel kvm`\n\n\
         Made from `accel-kvm/src/ioctls.rs` (`UPDATE_GOLDEN=1 cargo test -p anura-accel-kvm ioctls`), and compared \
         with the calls of a boot by a test.\nA guest that runs steadily makes KVM_RUN alone.\n\n\
         | ioctl | on | when and why | where it fails or is missing |\n|---|---|---|---|\n",
    );
    for Ioctl { name, on, when, otherwise } in TABLE {
        text += &format!("| {name} | {} | {when} | {otherwise} |\n", on.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_page_of_ioctls_is_the_table() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("IOCTLS.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), page());
    }

    #[test]
    fn ioctls_of_the_table_are_those_that_the_traits_name() {
        let source = include_str!("host.rs");
        let traits =
            &source[source.find("pub(crate) trait System").unwrap()..source.find("struct RunPage").unwrap()];
        let word = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let mut named: Vec<&str> = traits.split(word).filter(|w| w.starts_with("KVM_")).collect();
        named.sort_unstable();
        named.dedup();
        // kvm-ioctls calls this one itself.
        let mut listed: Vec<&str> =
            TABLE.iter().map(|i| i.name).filter(|n| *n != "KVM_GET_VCPU_MMAP_SIZE").collect();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }
}
