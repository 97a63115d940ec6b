//! The board `pc`: i440FX and PIIX3, wired as a PC is.
//!
//! Building follows one order: address spaces and RAM, APICs and the interrupt fabric, chipset, chips of the ISA
//! bus, cards. That order is also the order of devices in a saved state. The board knows no engine.

use std::sync::Arc;

use anura_accel::VmSpaces;
use anura_chardev::{CharBackend, Chardev};
use anura_devices::acpi;
use anura_devices::chipset::i440fx::I440fx;
use anura_devices::chipset::piix3::Piix3;
use anura_devices::chipset::piix4_pm::Piix4Pm;
use anura_devices::display::vga::{Vga as VgaCard, VgaBus};
use anura_devices::input::i8042::I8042;
use anura_devices::irq::apic_bus::ApicBus;
use anura_devices::irq::fabric::FabricHandle;
use anura_devices::irq::lapic::{ApicConfig, LocalApic};
use anura_devices::misc::fw_cfg::FwCfg;
use anura_devices::misc::i8237::I8237;
use anura_devices::misc::math_error::MathError;
use anura_devices::misc::port92::Port92;
use anura_devices::pci::{self, PciBus, PciFunction, devfn};
use anura_devices::serial::parallel::Parallel;
use anura_devices::serial::uart16550::Uart16550;
use anura_devices::storage::i82078::I82078;
use anura_devices::storage::piix3_ide::Piix3Ide;
use anura_devices::timer::hpet::{Hpet, HpetLines};
use anura_devices::timer::i8254::I8254;
use anura_devices::timer::mc146818::Mc146818;
use anura_memory::{AddressSpace, Dma, MemoryMap, RamBlock, Region};
use anura_vmcore::{Clock, CpuSignal, Device, DeviceCell, DeviceHandle, Requests};
use anura_x86::{CpuModel, Topology};

use crate::config::{MachineConfig, Vga};
use crate::error::MachineError;
use crate::linux::{E820, RAM, RESERVED};
use crate::memory::MainMemory;
use crate::roms::{self, Roms};
use crate::user_devices::UserDevice;

/// Rate of the guest's time stamp counter: one tick per nanosecond.
pub const TSC_KHZ: u64 = 1_000_000;

/// The board with everything on it.
pub struct Pc {
    /// All regions.
    pub map: MemoryMap,
    /// Guest-physical memory.
    pub memory: AddressSpace,
    /// Ports.
    pub ports: AddressSpace,
    /// Guest RAM.
    pub ram: MainMemory,
    /// All RAM blocks, in the order they were made.
    pub blocks: Vec<Arc<RamBlock>>,
    /// Guest time.
    pub clock: Clock,
    /// What devices ask of the machine.
    pub requests: Requests,
    /// APIC messages.
    pub apic_bus: Arc<ApicBus>,
    /// One for each vCPU.
    pub apics: Vec<Arc<LocalApic>>,
    /// One for each vCPU.
    pub signals: Vec<Arc<CpuSignal>>,
    /// PIC, IOAPIC and PIRQ routing.
    pub fabric: FabricHandle,
    /// Bus 0.
    pub pci: PciBus,
    /// Clock and CMOS.
    pub rtc: DeviceCell<Mc146818>,
    /// Physical address bits of the CPU model.
    pub phys_bits: u8,
    /// Power management.
    pub pm: DeviceCell<Piix4Pm>,
    /// Items for firmware and guests.
    pub fw_cfg: DeviceCell<FwCfg>,
    /// ISA DMA, for devices that use it.
    pub isa_dma: DeviceCell<I8237>,
    /// FERR# and port F0h.
    pub math_error: DeviceCell<MathError>,
    /// What the ACPI tables say of the board.
    pub acpi: acpi::Board,
    /// Keyboard and mouse, if the board has them.
    pub keyboard: Option<DeviceCell<I8042>>,
    /// The graphics card that shows text, if there is one.
    pub vga: Option<DeviceCell<VgaCard>>,
    pci_memory: Region,
    /// What `-device` added, for `info qtree`.
    pub(crate) user_devices: Vec<UserDevice>,
    devices: Vec<(String, Arc<dyn DeviceHandle>)>,
}

/// What a board is made from besides the configuration.
pub struct PcParts<'a> {
    /// The configuration.
    pub config: &'a MachineConfig,
    /// CPU model.
    pub model: &'a CpuModel,
    /// Topology; its `total` is the number of possible vCPUs.
    pub topology: Topology,
    /// Guest time.
    pub clock: Clock,
    /// Rate of the vCPUs' time stamp counter.
    pub tsc_khz: u64,
    /// Seconds since 1970 at guest time 0.
    pub rtc_base: i64,
    /// Firmware and option ROMs.
    pub roms: &'a Roms,
    /// Finds a chardev by its id.
    pub chardev: &'a dyn Fn(&str) -> Option<Chardev>,
}

/// How a graphics card is made.
pub(crate) struct VgaOptions<'a> {
    pub(crate) vram: u64,
    pub(crate) mmio: bool,
    pub(crate) rom: Option<&'a [u8]>,
}

impl Default for VgaOptions<'_> {
    fn default() -> Self {
        Self { vram: 16 << 20, mmio: true, rom: None }
    }
}

/// Drives to boot from when nobody says: disk, floppy, CD.
pub(crate) const DEFAULT_ORDER: &str = "cad";
/// Port and interrupt of the four serial ports.
pub(crate) const SERIAL: [(u16, u32, &str); 4] =
    [(0x3f8, 4, "serial0"), (0x2f8, 3, "serial1"), (0x3e8, 4, "serial2"), (0x2e8, 3, "serial3")];
/// Port and interrupt of the three parallel ports.
pub(crate) const PARALLEL: [(u16, u32); 3] = [(0x378, 7), (0x278, 7), (0x3bc, 7)];

impl Pc {
    /// Builds the board.
    pub fn new(parts: &PcParts<'_>) -> Result<Self, MachineError> {
        let config = parts.config;
        let map = MemoryMap::new();
        let system = Region::container("system", u64::MAX);
        let memory = map.create_space("memory", &system);
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let clock = parts.clock.clone();
        let requests = Requests::new();

        let ram = MainMemory::new(config, parts.model)?;
        let mut blocks = vec![ram.block.clone()];
        ram.map(&map, &system);
        // What RAM leaves open belongs to the PCI bus.
        let pci_memory = Region::container("pci", u64::MAX);
        map.transaction().add(&system, 0, &pci_memory, -1);
        blocks.extend(roms::map(&map, &pci_memory, parts.roms)?);

        let apic_bus = ApicBus::new();
        let signals: Vec<_> = (0..config.smp.cpus).map(|_| CpuSignal::new()).collect();
        let apics: Vec<_> = (0..config.smp.cpus)
            .map(|cpu| {
                let apic = ApicConfig {
                    cpu,
                    apic_id: parts.topology.apic_id(cpu),
                    x2apic: parts.model.has(anura_x86::Feature::X2apic),
                    phys_bits: u32::from(parts.model.phys_bits),
                    tsc_khz: parts.tsc_khz,
                };
                LocalApic::new(&apic, signals[cpu as usize].clone(), &clock, &apic_bus)
            })
            .collect();
        apic_bus.connect(apics.iter().map(|apic| apic.mailbox().clone()).collect());
        let fabric = FabricHandle::new(apic_bus.clone());
        fabric.map(&map, &ports, &memory);
        apics.iter().for_each(|apic| apic.connect(Arc::new(fabric.clone())));

        let pci = PciBus::new();
        let rtc = Mc146818::new(fabric.gsi(8, 0), &clock, parts.rtc_base);
        let pm = Piix4Pm::new(fabric.gsi(9, 0), fabric.gsi(9, 1), &requests, &clock, &map, &ports);
        let fw_cfg = FwCfg::new(Dma::new(&memory));
        let isa_dma = I8237::new(Dma::new(&memory));
        let math_error = MathError::new(fabric.gsi(13, 0));
        let acpi = acpi_board(parts, ram.below_4g);
        let mut board = Self {
            map,
            memory,
            ports,
            ram,
            blocks,
            clock,
            requests,
            apic_bus,
            apics,
            signals,
            fabric,
            pci,
            rtc,
            phys_bits: parts.model.phys_bits,
            pm,
            fw_cfg,
            isa_dma,
            math_error,
            acpi,
            keyboard: None,
            vga: None,
            pci_memory,
            user_devices: Vec::new(),
            devices: Vec::new(),
        };
        let pci_memory = board.pci_memory.clone();
        for (n, (block, chip)) in
            roms::map_flash(&board.map, &pci_memory, parts.roms)?.into_iter().enumerate()
        {
            board.blocks.push(block);
            board.add(format!("flash{n}"), &chip);
        }
        board.add_chipset(&system);
        if config.vga == Vga::Std {
            let options = VgaOptions { rom: parts.roms.vga.as_deref(), ..VgaOptions::default() };
            board.add_vga(devfn(2, 0), &options)?;
        }
        board.add_isa_chips(parts)?;
        board.add_user_devices(parts)?;
        board.set_cmos(config);
        Ok(board)
    }

    pub(crate) fn add<T: Device>(&mut self, path: impl Into<String>, device: &DeviceCell<T>) {
        self.devices.push((path.into(), Arc::new(device.clone())));
    }

    pub(crate) fn plug<T: PciFunction>(
        &mut self,
        device: u8,
        function: u8,
        name: &str,
        cell: &DeviceCell<T>,
    ) {
        self.pci.plug(devfn(device, function), cell);
        self.add(format!("0000:00:{device:02x}.{function}/{name}"), cell);
    }

    fn add_chipset(&mut self, system: &Region) {
        for (n, apic) in self.apics.clone().iter().enumerate() {
            self.add(format!("cpu{n}/apic"), apic.device());
        }
        let fabric = self.fabric.clone();
        self.add("fabric", fabric.device());
        let latch = pci::map_config_ports(&self.pci, &self.map, &self.ports);
        self.add("pci-config-address", &latch);
        let host = I440fx::new(&self.map, system, &self.ram.region, self.ram.below_4g);
        self.plug(0, 0, "i440FX", &host);
        let isa = Piix3::new(&self.fabric, &self.requests);
        Piix3::map(&isa, &self.map, &self.ports);
        self.plug(1, 0, "PIIX3", &isa);
        let ide = Piix3Ide::new(&self.map, &self.pci_memory, &self.ports);
        self.plug(1, 1, "PIIX3_IDE", &ide);
        let pm = self.pm.clone();
        self.plug(1, 3, "PIIX4_PM", &pm);
    }

    /// Plugs a graphics card in; the first one is where text goes.
    pub(crate) fn add_vga(&mut self, at: u8, options: &VgaOptions<'_>) -> Result<(), MachineError> {
        let first = self.vga.is_none();
        let name = if first { "vga.vram".to_owned() } else { format!("vga.vram.{at:02x}") };
        let block = RamBlock::new(name, options.vram)
            .map_err(|e| MachineError::Config(format!("video memory of {} MiB: {e}", options.vram >> 20)))?;
        self.blocks.push(block.clone());
        let bus = VgaBus { map: &self.map, memory: &self.pci_memory, ports: &self.ports };
        let card = VgaCard::new(&bus, &self.clock, &block, options.mmio);
        if let Some(image) = options.rom {
            let name = if first { "vga.rom".to_owned() } else { format!("vga.rom.{at:02x}") };
            let rom = RamBlock::new(name, (image.len() as u64).next_power_of_two().max(1 << 12))
                .map_err(|e| MachineError::Config(format!("option ROM of {} bytes: {e}", image.len())))?;
            rom.write(0, image);
            self.blocks.push(rom.clone());
            card.lock().set_rom(&rom);
        }
        if first {
            VgaCard::map(&card, &bus);
            self.vga = Some(card.clone());
        }
        self.plug(at >> 3, at & 7, "VGA", &card);
        Ok(())
    }

    fn add_isa_chips(&mut self, parts: &PcParts<'_>) -> Result<(), MachineError> {
        let config = parts.config;
        if config.board.pit {
            let pit = I8254::new(self.fabric.gsi(0, 0), &self.clock);
            I8254::map(&pit, &self.map, &self.ports);
            self.add("i8254", &pit);
        }
        Mc146818::map(&self.rtc, &self.map, &self.ports);
        let rtc = self.rtc.clone();
        self.add("mc146818", &rtc);
        if config.board.hpet {
            let (legacy, replaces) = self.fabric.hpet();
            let gsi = (0..24).map(|n| self.fabric.gsi(n, 2)).collect();
            let hpet = Hpet::new(HpetLines { gsi, legacy, replaces }, self.apic_bus.clone(), &self.clock);
            Hpet::map(&hpet, &self.map, &self.memory);
            self.add("hpet", &hpet);
        }
        I8237::map(&self.isa_dma, &self.map, &self.ports);
        let isa_dma = self.isa_dma.clone();
        self.add("i8237", &isa_dma);
        let port92 = Port92::new(&self.requests);
        Port92::map(&port92, &self.map, &self.ports);
        self.add("port92", &port92);
        MathError::map(&self.math_error, &self.map, &self.ports);
        let math_error = self.math_error.clone();
        self.add("math-error", &math_error);
        FwCfg::map(&self.fw_cfg, &self.map, &self.ports);
        let fw_cfg = self.fw_cfg.clone();
        self.add("fw_cfg", &fw_cfg);
        if config.board.i8042 {
            let kbc = I8042::new(self.fabric.gsi(1, 0), self.fabric.gsi(12, 0), &self.requests, &self.clock);
            I8042::map(&kbc, &self.map, &self.ports);
            self.add("i8042", &kbc);
            self.keyboard = Some(kbc);
        }
        let fdc = I82078::new(self.fabric.gsi(6, 0), &self.clock);
        I82078::map(&fdc, &self.map, &self.ports, 0x3f0);
        self.add("fdc82078", &fdc);
        for (n, id) in config.serial.iter().enumerate() {
            let (Some(id), Some((base, irq, name))) = (id, SERIAL.get(n).copied()) else { continue };
            let backend = claim(parts, id)?;
            let uart = Uart16550::new(name, self.fabric.gsi(irq, 4 + n as u32), &self.clock, backend);
            Uart16550::map(&uart, &self.map, &self.ports, base);
            Uart16550::connect_input(&uart);
            self.add(name, &uart);
        }
        for (n, id) in config.parallel.iter().enumerate() {
            let (Some(id), Some((base, irq))) = (id, PARALLEL.get(n).copied()) else { continue };
            let backend = claim(parts, id)?;
            let port = Parallel::new(self.fabric.gsi(irq, 8 + n as u32), backend);
            Parallel::map(&port, &self.map, &self.ports, base);
            self.add(format!("parallel{n}"), &port);
        }
        Ok(())
    }

    /// Lays CMOS memory out as firmware expects it.
    fn set_cmos(&self, config: &MachineConfig) {
        let mut rtc = self.rtc.lock();
        let mut word = |at: u8, value: u64| {
            rtc.set_cmos(at, value as u8);
            rtc.set_cmos(at + 1, (value >> 8) as u8);
        };
        // Base memory in KiB, then memory above 1 MiB in KiB (twice) and above 16 MiB in 64 KiB.
        word(0x15, 640);
        let above_1m = self.ram.below_4g.saturating_sub(1 << 20) >> 10;
        word(0x17, above_1m.min(0xffff));
        word(0x30, above_1m.min(0xffff));
        word(0x34, (self.ram.below_4g.saturating_sub(16 << 20) >> 16).min(0xffff));
        // Memory above 4 GiB in 64 KiB, three bytes.
        let above_4g = self.ram.above_4g >> 16;
        for n in 0..3 {
            rtc.set_cmos(0x5b + n, (above_4g >> (8 * n)) as u8);
        }
        rtc.set_cmos(0x5f, (config.smp.cpus - 1).min(255) as u8);
        // Equipment: FPU, PS/2 mouse. No floppy drives, no disks.
        rtc.set_cmos(0x14, 0x06);
        // Boot devices, a nibble each: 1 floppy, 2 disk, 3 CD, 4 network.
        drop(rtc);
        let order = config.boot.order.as_deref().unwrap_or(DEFAULT_ORDER);
        self.set_boot_order(config.boot.once.as_deref().unwrap_or(order));
    }

    /// Tells firmware which drives to boot from, by letters in order.
    pub(crate) fn set_boot_order(&self, order: &str) {
        let mut rtc = self.rtc.lock();
        let codes: Vec<u8> = order
            .bytes()
            .map(|drive| match drive {
                b'a' | b'b' => 1,
                b'c' => 2,
                b'd' => 3,
                b'n'..=b'p' => 4,
                _ => 0,
            })
            .collect();
        let code = |n: usize| codes.get(n).copied().unwrap_or(0);
        rtc.set_cmos(0x3d, code(1) << 4 | code(0));
        rtc.set_cmos(0x38, code(2) << 4);
    }

    /// All devices with the paths that saved states use, in order.
    pub fn devices(&self) -> &[(String, Arc<dyn DeviceHandle>)] {
        &self.devices
    }

    /// What an engine runs against.
    pub fn spaces(&self) -> VmSpaces {
        VmSpaces {
            memory: self.memory.clone(),
            ports: self.ports.clone(),
            clock: self.clock.clone(),
            ram: self.blocks.clone(),
        }
    }

    /// The memory map that firmware would tell, with `tables` bytes kept at the top of low RAM.
    pub fn e820(&self, tables: u64) -> Vec<E820> {
        let below = self.ram.below_4g;
        let range = |start: u64, end: u64, kind| E820 { start, length: end - start, kind };
        let mut map = vec![
            range(0, 0x9_fc00, RAM),
            range(0x9_fc00, 0xa_0000, RESERVED),
            range(0xf_0000, 0x10_0000, RESERVED),
            range(0x10_0000, below - tables, RAM),
            range(below - tables, below, RESERVED),
            range(0xfeff_c000, 0xff00_0000, RESERVED),
            range(0xfffc_0000, 0x1_0000_0000, RESERVED),
        ];
        if self.ram.above_4g > 0 {
            map.push(range(1 << 32, (1 << 32) + self.ram.above_4g, RAM));
        }
        map.retain(|r| r.length > 0);
        map
    }
}

/// What the ACPI tables say of the board that `parts` describe.
fn acpi_board(parts: &PcParts<'_>, below_4g: u64) -> acpi::Board {
    let config = parts.config;
    let fixed = |text: Option<&str>, default: &str| {
        let mut bytes = [b' '; 8];
        for (to, from) in bytes.iter_mut().zip(text.unwrap_or(default).bytes()) {
            *to = from;
        }
        bytes
    };
    let [a, b, c, d, e, f, ..] = fixed(config.board.oem_id.as_deref(), "ANURA");
    let present = |ports: &[Option<String>], places: Vec<(u16, u32)>| {
        places.into_iter().zip(ports).filter(|(_, id)| id.is_some()).map(|(place, _)| place).collect()
    };
    acpi::Board {
        processors: (0..config.smp.max_cpus.max(config.smp.cpus))
            .map(|cpu| (parts.topology.apic_id(cpu), cpu < config.smp.cpus))
            .collect(),
        pm_base: crate::firmware::PM_BASE,
        pci_window: u32::try_from(below_4g.max(0x8000_0000)).unwrap_or(0xe000_0000),
        hpet: config.board.hpet,
        i8042: config.board.i8042,
        serial: present(&config.serial, SERIAL.iter().map(|(base, irq, _)| (*base, *irq)).collect()),
        parallel: present(&config.parallel, PARALLEL.to_vec()),
        fdc: true,
        pvpanic: None,
        oem_id: [a, b, c, d, e, f],
        oem_table_id: fixed(config.board.oem_table_id.as_deref(), "ANURAPC"),
        extra: Vec::new(),
    }
}

pub(crate) fn claim(parts: &PcParts<'_>, id: &str) -> Result<CharBackend, MachineError> {
    let chardev = (parts.chardev)(id)
        .ok_or_else(|| MachineError::Config(format!("chardev '{id}' not found; define it with -chardev")))?;
    Ok(chardev.claim()?)
}
