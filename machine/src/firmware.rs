//! What firmware would leave behind, for a boot without any.
//!
//! A kernel that is entered directly expects a machine that firmware has set up: upper memory writable, interrupts
//! routed, PCI functions enabled at addresses, power management ports at the place that the ACPI tables name,
//! memory types set. The choices are those of PC firmware on this chip set.

use anura_vmcore::Width;
use anura_devices::chipset::{i440fx, piix3, piix4_pm};
use anura_devices::pci::{PciBus, devfn, reg};
use anura_x86::CpuState;

use crate::pc::Pc;

/// Power management ports.
pub const PM_BASE: u16 = 0x600;
/// SMBus ports.
const SMBUS_BASE: u16 = 0x700;
/// ISA interrupt of each PIRQ wire.
pub const PIRQ: [u8; 4] = [10, 10, 11, 11];
/// First port for base address registers.
const PCI_PORTS: u32 = 0xc000;
/// First memory address for base address registers, above the largest low RAM.
const PCI_MEMORY: u32 = 0xfd00_0000;

/// Sets the board up.
pub fn post(pc: &Pc) {
    let pci = &pc.pci;
    // All of C0000h to FFFFFh is RAM, readable and writable.
    pci.write(devfn(0, 0), i440fx::PAM0, Width::W1, 0x30);
    for n in 1..7 {
        pci.write(devfn(0, 0), i440fx::PAM0 + n, Width::W1, 0x33);
    }
    for (wire, irq) in PIRQ.iter().enumerate() {
        pci.write(devfn(1, 0), piix3::PIRQRCA + wire as u8, Width::W1, u32::from(*irq));
    }
    // The PIRQ interrupts are level sensitive.
    let level = PIRQ.iter().fold(0u16, |bits, irq| bits | 1 << irq);
    let port = |at, value: u16| {
        let _ = pc.ports.write(at, Width::W1, u64::from(value & 0xff), anura_vmcore::Requester::Monitor);
    };
    port(0x4d0, level);
    port(0x4d1, level >> 8);
    let pm = devfn(1, 3);
    pci.write(pm, piix4_pm::PMBASE, Width::W4, u32::from(PM_BASE) | 1);
    pci.write(pm, piix4_pm::PMREGMISC, Width::W1, 1);
    pci.write(pm, piix4_pm::SMBBA, Width::W4, u32::from(SMBUS_BASE) | 1);
    pci.write(pm, piix4_pm::SMBHSTCFG, Width::W1, 0x09);
    pci.write(pm, reg::COMMAND, Width::W2, 1);
    assign_resources(pci);
    // The bootstrap processor takes the PIC's interrupts (virtual wire mode) and NMI.
    if let Some(apic) = pc.apics.first() {
        for (register, value) in [(0xf0, 0x1ff), (0x350, 0x8700), (0x360, 0x8400)] {
            apic.mmio_write(register, value);
        }
    }
}

/// Gives every base address register an address and every pin its interrupt line.
fn assign_resources(pci: &PciBus) {
    let (mut next_port, mut next_memory) = (PCI_PORTS, PCI_MEMORY);
    for function in pci.occupied() {
        let mut command = pci.read(function, reg::COMMAND, Width::W2);
        for n in 0..6 {
            let at = reg::BAR0 + n * 4;
            pci.write(function, at, Width::W4, u32::MAX);
            let sized = pci.read(function, at, Width::W4);
            if sized == 0 {
                continue;
            }
            let is_port = sized & 1 != 0;
            let (next, fixed) = if is_port { (&mut next_port, 0x3) } else { (&mut next_memory, 0xf) };
            let mask = sized & !fixed | if is_port { 0xffff_0000 } else { 0 };
            let size = (!mask).wrapping_add(1);
            if size == 0 {
                continue;
            }
            // A page at least for memory, so that no two functions share one.
            let align = if is_port { size } else { size.max(0x1000) };
            *next = next.next_multiple_of(align);
            pci.write(function, at, Width::W4, *next);
            *next += size;
            command |= if is_port { 1 } else { 2 };
        }
        pci.write(function, reg::COMMAND, Width::W2, command);
        let pin = pci.read(function, reg::INTERRUPT_PIN, Width::W1);
        if pin != 0 {
            let wire = (u32::from(function >> 3) + pin - 1).wrapping_sub(1) & 3;
            pci.write(function, reg::INTERRUPT_LINE, Width::W1, u32::from(PIRQ[wire as usize]));
        }
    }
}

/// Sets a processor's memory types: write-back memory, the PCI window and the VGA uncached.
pub fn set_up_cpu(pc: &Pc, state: &mut CpuState) {
    const WRITE_BACK: u64 = 6;
    const WRITE_PROTECTED: u64 = 5;
    let repeat = |kind: u64| kind * 0x0101_0101_0101_0101;
    let fixed = &mut state.msrs.mtrr_fixed;
    // 512 KiB, then 128 KiB of conventional memory; the VGA window; then eleven registers in all to 1 MiB.
    fixed[0] = repeat(WRITE_BACK);
    fixed[1] = repeat(WRITE_BACK);
    fixed[2] = 0;
    fixed[3..].fill(repeat(WRITE_PROTECTED));
    // Everything from the end of low RAM, at the latest from 3 GiB, to 4 GiB is uncached.
    let window: u64 = if pc.ram.below_4g <= 0x8000_0000 {
        0x8000_0000
    } else if pc.ram.below_4g <= 0xc000_0000 {
        0xc000_0000
    } else {
        0xe000_0000
    };
    let size = (1 << 32) - window;
    let phys = 1u64 << pc.phys_bits;
    state.msrs.mtrr_var[0] = [window, (phys - size) & !0xfff | 1 << 11];
    state.msrs.mtrr_def_type = 1 << 11 | 1 << 10 | WRITE_BACK;
}
