//! What firmware would leave behind, for a boot without any.
//!
//! A kernel that is entered directly expects a machine that firmware has set up: upper memory writable, interrupts
//! routed, PCI functions enabled at addresses, power management ports at the place that the ACPI tables name,
//! memory types set. The choices are those of PC firmware on this chip set.

use std::path::Path;

use anura_devices::acpi::Loader;
use anura_devices::acpi::smbios::{Smbios, SmbiosTables};
use anura_devices::chipset::{i440fx, piix3, piix4_pm};
use anura_devices::misc::fw_cfg;
use anura_devices::pci::{PciBus, devfn, reg};
use anura_devices::registry::Value;
use anura_devices::storage::piix3_ide;
use anura_vmcore::Width;
use anura_x86::{CpuState, Topology};

use crate::config::{AcpiTable, FwCfgData, MachineConfig, SmbiosEntry};
use crate::error::MachineError;
use crate::linux::Piece;
use crate::pc::Pc;
use crate::roms::file;

/// Where a direct boot finds the ACPI root pointer.
pub const RSDP: u64 = 0xf_5000;
/// Where a direct boot finds the SMBIOS entry point; the structures follow.
const SMBIOS: u64 = 0xf_6000;

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

/// The option ROM that boots a kernel, as a file, and what firmware calls it in its boot order.
const KERNEL_ROM: &str = "genroms/linuxboot_dma.bin";
const KERNEL_ROM_BOOT: &str = "/rom@genroms/linuxboot_dma.bin";

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
    if pc.keyboard.is_some() {
        // The keyboard's codes are translated and interrupt; the mouse is off until a driver wants it.
        port(0x64, 0x60);
        port(0x60, 0x65);
    }
    for channel in 0..2 {
        pci.write(devfn(1, 1), piix3_ide::IDETIM + 2 * channel, Width::W2, u32::from(piix3_ide::DECODE));
    }
    pci.write(devfn(1, 1), reg::COMMAND, Width::W2, 5);
    let pm = devfn(1, 3);
    pci.write(pm, piix4_pm::PMBASE, Width::W4, u32::from(PM_BASE) | 1);
    pci.write(pm, piix4_pm::PMREGMISC, Width::W1, 1);
    pci.write(pm, piix4_pm::SMBBA, Width::W4, u32::from(SMBUS_BASE) | 1);
    pci.write(pm, piix4_pm::SMBHSTCFG, Width::W1, 0x09);
    pci.write(pm, reg::COMMAND, Width::W2, 1);
    if let Some(vga) = &pc.vga {
        vga.lock().post_text_mode();
    }
    assign_resources(pci);
    // The bootstrap processor takes the PIC's interrupts (virtual wire mode) and NMI.
    if let Some(apic) = pc.apics.first() {
        for (register, value) in [(0xf0, 0x1ff), (0x350, 0x8700), (0x360, 0x8400)] {
            apic.mmio_write(register, value);
        }
    }
}

/// What a kernel that expects a PC's firmware finds besides: the interrupt controllers with the PC's vectors and the
/// timer unmasked, the timer at 18.2 Hz.
pub fn post_legacy(pc: &Pc) {
    let port = |at, value: u64| {
        let _ = pc.ports.write(at, Width::W1, value, anura_vmcore::Requester::Monitor);
    };
    for (base, vectors, cascade, mask) in [(0x20, 0x08, 0x04, 0xfa), (0xa0, 0x70, 0x02, 0xff)] {
        port(base, 0x11);
        for value in [vectors, cascade, 0x01, mask] {
            port(base + 1, value);
        }
    }
    port(0x43, 0x34);
    port(0x40, 0);
    port(0x40, 0);
}

/// Where the handlers of [`vector_table`] are.
const HANDLERS: u64 = 0xf_e000;

/// The interrupt vectors and what they lead to: an end of interrupt for the controllers' vectors, else nothing.
pub fn vector_table() -> Vec<Piece> {
    // iret; push ax; mov al,20h; out 0a0h,al; jmp +; push ax; mov al,20h; +: out 20h,al; pop ax; iret
    let handlers =
        vec![0xcf, 0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xeb, 0x03, 0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
    let table = (0..256u32).flat_map(|vector| {
        let offset = match vector {
            0x08..0x10 => 8,
            0x70..0x78 => 1,
            _ => 0,
        };
        (0xf000 << 16 | (HANDLERS as u32 & 0xffff) + offset).to_le_bytes()
    });
    vec![Piece::new(0, table.collect()), Piece::new(HANDLERS, handlers)]
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

/// Everything that firmware reads through fw_cfg, and that a direct boot finds in memory.
pub struct Tables {
    acpi: Option<Loader>,
    smbios: SmbiosTables,
    smbios_64: bool,
}

impl Tables {
    /// Makes the tables of `pc` and fills its fw_cfg device.
    pub fn new(
        pc: &Pc,
        config: &MachineConfig,
        topology: Topology,
        through_firmware: bool,
    ) -> Result<Self, MachineError> {
        let mut board = pc.acpi.clone();
        for table in &config.acpi_tables {
            board.extra.push(acpi_table(table)?);
        }
        let (mut overrides, mut extra) = (Vec::new(), Vec::new());
        for entry in &config.smbios {
            match entry {
                SmbiosEntry::File(path) => extra.push(smbios_structure(path)?),
                SmbiosEntry::Fields { kind, fields } => {
                    overrides.extend(fields.iter().map(|(name, value)| (*kind, name.clone(), value.clone())));
                }
            }
        }
        let smbios = Smbios {
            memory: config.memory.size,
            sockets: config.smp.cpus.div_ceil(topology.cores * topology.threads).max(1),
            cores: topology.cores,
            threads: topology.threads,
            uuid: config.uuid.as_deref(),
            overrides: &overrides,
            extra: &extra,
        };
        let tables = Self {
            acpi: config.board.acpi.then(|| board.tables()),
            smbios: smbios.tables(),
            smbios_64: config.board.smbios_entry_point == 64,
        };
        tables.publish(pc, config, topology, through_firmware)?;
        Ok(tables)
    }

    /// Fills the fw_cfg device.
    fn publish(
        &self,
        pc: &Pc,
        config: &MachineConfig,
        topology: Topology,
        through_firmware: bool,
    ) -> Result<(), MachineError> {
        let mut device = pc.fw_cfg.lock();
        let dma =
            config.globals.iter().rev().find(|g| g.driver == "fw_cfg_io" && g.property == "dma_enabled");
        if dma.is_some_and(|g| g.value == Value::Bool(false)) {
            device.disable_dma();
        }
        let mut first = Vec::new();
        if through_firmware && config.boot.kernel.is_some() {
            crate::linux_fw::publish(&mut device, &config.boot, pc.ram.below_4g)?;
            let rom = crate::boot_rom::image()
                .map_err(|e| MachineError::Config(format!("-kernel: the option ROM is not made: {e}")))?;
            device.add_file(KERNEL_ROM, rom).map_err(|e| MachineError::Config(e.to_string()))?;
            first.push(KERNEL_ROM_BOOT);
        }
        let word = |n: u64| n.to_le_bytes()[..2].to_vec();
        // IRQ 0 is on input 2 of the IOAPIC, as the MADT says; and one NUMA node, so no distances.
        device.set(fw_cfg::IRQ0_OVERRIDE, 1u32.to_le_bytes().to_vec());
        let cpus = config.smp.max_cpus.max(config.smp.cpus);
        let apic_ids = 1 + topology.apic_id(cpus - 1);
        device.set(fw_cfg::NUMA, vec![0; 8 * (1 + apic_ids as usize)]);
        device.set(fw_cfg::RAM_SIZE, config.memory.size.to_le_bytes().to_vec());
        device.set(fw_cfg::NB_CPUS, word(u64::from(config.smp.cpus)));
        device.set(fw_cfg::MAX_CPUS, word(u64::from(apic_ids)));
        device.set(fw_cfg::NOGRAPHIC, word(u64::from(!config.board.graphics)));
        device.set(fw_cfg::BOOT_MENU, word(u64::from(config.boot.menu == Some(true))));
        if let Some(uuid) = &config.uuid {
            let digits: Vec<u8> = uuid.bytes().filter(|b| *b != b'-').collect();
            let bytes =
                digits.chunks(2).filter_map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
            device.set(fw_cfg::UUID, bytes.collect());
        }
        let mut add = |name: &str, bytes: Vec<u8>| {
            device
                .add_file(name, bytes)
                .map_err(|e| MachineError::Config(format!("-fw_cfg name={name}: {e}")))
        };
        let mut ram = vec![(0, pc.ram.below_4g)];
        if pc.ram.above_4g > 0 {
            ram.push((1 << 32, pc.ram.above_4g));
        }
        let entry = |(start, length): (u64, u64)| {
            [&start.to_le_bytes()[..], &length.to_le_bytes(), &crate::linux::RAM.to_le_bytes()].concat()
        };
        add("etc/e820", ram.into_iter().flat_map(entry).collect())?;
        // S3 and S4 are not there; S4's sleep type follows.
        add("etc/system-states", vec![128, 0, 0, 0, 0, 128])?;
        // How long firmware waits before it tries again to boot, in milliseconds; all ones is for ever.
        add("etc/boot-fail-wait", (config.boot.reboot_timeout.unwrap_or(-1) as u32).to_le_bytes().to_vec())?;
        if let Some(time) = config.boot.splash_time {
            add("etc/boot-menu-wait", (time as u16).to_le_bytes().to_vec())?;
        }
        if let Some(path) = &config.boot.splash {
            let picture = file("-boot splash=", path)?;
            let name = match picture.as_slice() {
                [0xff, 0xd8, ..] => "bootsplash.jpg",
                [b'B', b'M', ..] => "bootsplash.bmp",
                _ => {
                    let why = "neither a JPEG nor a BMP picture".to_owned();
                    return Err(MachineError::Image { option: "-boot splash=", path: path.clone(), why });
                }
            };
            add(name, picture)?;
        }
        if !config.board.graphics && config.serial.first().is_some_and(Option::is_some) {
            // Text goes to this serial port too.
            add("etc/sercon-port", 0x3f8u64.to_le_bytes().to_vec())?;
        }
        add("bootorder", boot_order(&first, config.boot.strict))?;
        if let Some(acpi) = &self.acpi {
            add("etc/acpi/tables", acpi.blob().to_vec())?;
            add("etc/acpi/rsdp", acpi.rsdp())?;
            add("etc/table-loader", acpi.script())?;
        }
        add("etc/smbios/smbios-tables", self.smbios.structures.clone())?;
        add("etc/smbios/smbios-anchor", self.smbios_anchor(0))?;
        for item in &config.fw_cfg {
            let bytes = match &item.data {
                FwCfgData::File(path) => file("-fw_cfg", path)?,
                FwCfgData::String(text) => text.as_bytes().to_vec(),
            };
            add(&item.name, bytes)?;
        }
        Ok(())
    }

    fn smbios_anchor(&self, address: u64) -> Vec<u8> {
        if self.smbios_64 {
            self.smbios.entry_point_64(address)
        } else {
            self.smbios.entry_point(address as u32)
        }
    }

    /// The tables where a direct boot finds them: root pointers in the F segment, the rest at `base` and up.
    pub fn pieces(&self, base: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut next = base;
        if let Some(acpi) = &self.acpi {
            let (blob, rsdp) = acpi.place(base as u32);
            next += (blob.len() as u64).next_multiple_of(64);
            pieces.push(Piece::new(base, blob));
            pieces.push(Piece::new(RSDP, rsdp));
        }
        pieces.push(Piece::new(SMBIOS, self.smbios_anchor(next)));
        pieces.push(Piece::new(next, self.smbios.structures.clone()));
        pieces
    }

    /// Address of the ACPI root pointer; 0 without ACPI.
    pub fn rsdp(&self) -> u64 {
        if self.acpi.is_some() { RSDP } else { 0 }
    }
}

/// What firmware boots from first, one path a line; with `strict` nothing else boots if the list names anything.
fn boot_order(devices: &[&str], strict: bool) -> Vec<u8> {
    let mut lines = devices.to_vec();
    if strict && !lines.is_empty() {
        lines.push("HALT");
    }
    let mut text = lines.join("\n").into_bytes();
    if !text.is_empty() {
        text.push(0);
    }
    text
}

/// A table that the user adds: whole from a file, or files under a header that is made here.
fn acpi_table(table: &AcpiTable) -> Result<Vec<u8>, MachineError> {
    let mut bytes = match &table.file {
        Some(path) => file("-acpitable", path)?,
        None => {
            let mut bytes = vec![0; 36];
            bytes[..4].copy_from_slice(b"ANUR");
            for path in &table.data {
                bytes.extend(file("-acpitable", path)?);
            }
            bytes
        }
    };
    if bytes.len() < 36 {
        return Err(MachineError::Config("-acpitable: shorter than a table's header of 36 bytes".into()));
    }
    for (name, value) in &table.fields {
        let (at, len) = match name.as_str() {
            "sig" => (0, 4),
            "rev" => (8, 1),
            "oem_id" => (10, 6),
            "oem_table_id" => (16, 8),
            "oem_rev" => (24, 4),
            "asl_compiler_id" => (28, 4),
            "asl_compiler_rev" => (32, 4),
            _ => {
                return Err(MachineError::Config(format!("-acpitable {name}={value}: no such header field")));
            }
        };
        let new = if matches!(name.as_str(), "rev" | "oem_rev" | "asl_compiler_rev") {
            let number: u32 = value
                .parse()
                .map_err(|_| MachineError::Config(format!("-acpitable {name}={value}: not a number")))?;
            number.to_le_bytes().to_vec()
        } else {
            value.as_bytes().to_vec()
        };
        let field = &mut bytes[at..at + len];
        field.fill(0);
        field.iter_mut().zip(new).for_each(|(to, from)| *to = from);
    }
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// A structure from a file, which must be whole.
fn smbios_structure(path: &Path) -> Result<Vec<u8>, MachineError> {
    let bytes = file("-smbios file=", path)?;
    let whole = bytes.len() >= 6 && usize::from(bytes[1]) >= 4 && bytes.len() >= usize::from(bytes[1]) + 2;
    if !whole || !bytes.ends_with(&[0, 0]) {
        let why = "not a whole SMBIOS structure that ends in two zero bytes".to_owned();
        return Err(MachineError::Image { option: "-smbios file=", path: path.into(), why });
    }
    Ok(bytes)
}
