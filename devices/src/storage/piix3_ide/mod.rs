//! Intel 82371SB PIIX3, function 1: IDE interface with bus mastering, datasheet 290550 and SFF-8038i.
//!
//! Both channels are empty. Their task file registers are then what a floating bus reads as: all ones but
//! data line 7, which is pulled down so that no drive looks busy (ATA-3, "Signal Conventions"). A bus master
//! transfer that is started waits for a request that never comes, until it is stopped. A drive will take the place of `Channel::read` and `Channel::write`.

mod spec;

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind, Width, trace_event};

use crate::pci::{BarKind, Bars, ConfigSpace, Identity, PciFunction};
use spec::bm;
pub use spec::{DECODE, IDETIM};

/// What a channel that nothing drives reads as: data line 7 is pulled down.
const FLOATING: u64 = 0xffff_ff7f;

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Channel {
    command: u8,
    status: u8,
    /// Physical address of the descriptor table.
    table: u32,
}

impl Channel {
    /// A task file register: with no drive, the floating bus.
    fn read(&self, a: Access) -> u64 {
        FLOATING & a.width.mask()
    }

    /// Nobody listens.
    fn write(&mut self, _a: Access, _value: u64) {}

    fn read_bus_master(&self, register: u64) -> u8 {
        match register {
            bm::COMMAND => self.command,
            bm::STATUS => self.status,
            bm::TABLE.. => (self.table >> (8 * (register - bm::TABLE))) as u8,
            _ => 0,
        }
    }

    fn write_bus_master(&mut self, register: u64, value: u8) {
        match register {
            bm::COMMAND => {
                self.command = value & (bm::START | bm::TO_MEMORY);
                self.status = self.status & !bm::ACTIVE | if value & bm::START != 0 { bm::ACTIVE } else { 0 };
            }
            bm::STATUS => {
                let cleared = value & (bm::ERROR | bm::INTERRUPT);
                self.status = self.status & !cleared & !bm::CAPABLE | value & bm::CAPABLE;
            }
            bm::TABLE.. => {
                let shift = 8 * (register - bm::TABLE);
                self.table = (self.table & !(0xff << shift) | u32::from(value) << shift) & !3;
            }
            _ => {}
        }
    }
}

/// Task file and control ports of a channel, as regions.
struct Ports {
    task_file: Region,
    control: Region,
}

/// The IDE function, 00:01.1.
pub struct Piix3Ide {
    // Wiring.
    map: MemoryMap,
    ports: Vec<Ports>,
    bars: Bars,
    // State.
    config: ConfigSpace,
    channels: [Channel; 2],
}

impl Piix3Ide {
    /// A function whose ports appear in `ports` as its configuration says.
    pub fn new(map: &MemoryMap, memory: &Region, ports: &AddressSpace) -> DeviceCell<Self> {
        let id = Identity {
            vendor: 0x8086,
            device: 0x7010,
            revision: 0,
            class: 0x01_0180,
            multifunction: false,
            pin: 0,
        };
        let mut config = ConfigSpace::new(id);
        config.preset_u16(0x06, 0x0280);
        // Latency timer.
        config.allow(0x0d, &[0xf0]);
        for channel in 0..2 {
            config.allow(IDETIM + 2 * channel, &spec::IDETIM_BITS.to_le_bytes());
        }
        config.allow(spec::SIDETIM, &[0xff]);
        let cell = DeviceCell::new(Self {
            map: map.clone(),
            ports: Vec::new(),
            bars: Bars::new(map, memory, ports.root()),
            config,
            channels: [Channel::default(); 2],
        });
        type Read = fn(&mut Piix3Ide, Access) -> u64;
        type Write = fn(&mut Piix3Ide, Access, u64);
        const CHANNELS: [(u64, u64, Read, Write); 2] = [
            (0x1f0, 0x3f6, |ide, a| ide.read_port(0, a), |ide, a, value| ide.write_port(0, a, value)),
            (0x170, 0x376, |ide, a| ide.read_port(1, a), |ide, a, value| ide.write_port(1, a, value)),
        ];
        let mut tx = map.transaction();
        let mut regions = Vec::new();
        for (task_file, control, read, write) in CHANNELS {
            let handler = cell_io(&cell, read, write);
            let region = |size| Region::io("ide", size, handler.clone(), AccessRules::any(4));
            let pair = Ports { task_file: region(8), control: region(1) };
            for (at, region) in [(task_file, &pair.task_file), (control, &pair.control)] {
                tx.set_enabled(region, false);
                tx.add(ports.root(), at, region, 0);
            }
            regions.push(pair);
        }
        tx.commit();
        let handler = cell_io(
            &cell,
            |ide: &mut Self, a| {
                u64::from(ide.channels[(a.offset >> 3 & 1) as usize].read_bus_master(a.offset & 7))
            },
            |ide, a, value| {
                trace_event!(bmdma_write, "offset {} value {value:#04x}", a.offset);
                ide.channels[(a.offset >> 3 & 1) as usize].write_bus_master(a.offset & 7, value as u8);
            },
        );
        let bus_master = Region::io("piix-bmdma", 16, handler, AccessRules::BYTES);
        {
            let mut ide = cell.lock();
            ide.ports = regions;
            let Self { bars, config, .. } = &mut *ide;
            bars.add(config, 4, BarKind::Io, &bus_master);
        }
        cell
    }

    fn read_port(&mut self, channel: usize, a: Access) -> u64 {
        let value = self.channels[channel].read(a);
        trace_event!(ide_ioport_read, "channel {channel} register {} value {value:#x}", a.offset);
        value
    }

    fn write_port(&mut self, channel: usize, a: Access, value: u64) {
        trace_event!(ide_ioport_write, "channel {channel} register {} value {value:#x}", a.offset);
        self.channels[channel].write(a, value);
    }

    /// Brings the ports in line with command register, timing registers and base address.
    fn update_mappings(&mut self) {
        self.bars.update(&self.config);
        let mut tx = self.map.transaction();
        for (n, pair) in self.ports.iter().enumerate() {
            let decode = self.config.u16(IDETIM + 2 * n as u8) & DECODE != 0;
            let on = decode && self.config.io_enabled();
            tx.set_enabled(&pair.task_file, on);
            tx.set_enabled(&pair.control, on);
        }
    }
}

impl PciFunction for Piix3Ide {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) {
        self.config.write(offset, width, value);
        self.update_mappings();
    }
}

impl Device for Piix3Ide {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { map: _, ports: _, bars: _, config, channels } = self;
        config.reset();
        *channels = [Channel::default(); 2];
        self.update_mappings();
    }

    fn save(&self) -> Record {
        let Self { map: _, ports: _, bars: _, config, channels } = self;
        Record::new(1)
            .with(1, config.save())
            .with(2, channels.map(|c| [c.command, c.status]))
            .with(3, channels.map(|c| c.table))
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let config = r.get(1)?;
        let registers = r.get_if::<[[u8; 2]; 2]>(2, |all| {
            all.iter().all(|[command, status]| {
                command & !(bm::START | bm::TO_MEMORY) == 0
                    && status & !(bm::ACTIVE | bm::ERROR | bm::INTERRUPT | bm::CAPABLE) == 0
            })
        })?;
        let tables = r.get_if::<[u32; 2]>(3, |all| all.iter().all(|table| table & 3 == 0))?;
        r.finish()?;
        self.config.load(&config)?;
        for (n, channel) in self.channels.iter_mut().enumerate() {
            let [command, status] = registers[n];
            *channel = Channel { command, status, table: tables[n] };
        }
        self.update_mappings();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::reg;
    use anura_vmcore::Requester;

    const CPU: Requester = Requester::Cpu(0);

    fn rig() -> (AddressSpace, DeviceCell<Piix3Ide>) {
        let map = MemoryMap::new();
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let ide = Piix3Ide::new(&map, &Region::container("pci", u64::MAX), &ports);
        ide.lock().config_write(0x20, Width::W4, 0xc001);
        ide.lock().config_write(IDETIM, Width::W4, 0x8000_8000);
        ide.lock().config_write(reg::COMMAND, Width::W2, 5);
        (ports, ide)
    }

    #[test]
    fn empty_channels_float_and_look_neither_busy_nor_present() {
        let (ports, _ide) = rig();
        for (task_file, control) in [(0x1f0, 0x3f6), (0x170, 0x376)] {
            for register in [task_file + 2, task_file + 7, control] {
                assert!(ports.write(register, Width::W1, 0x55, CPU).is_ok());
                let (value, result) = ports.read(register, Width::W1, CPU);
                assert_eq!((value, result.is_ok()), (0x7f, true), "{register:#x}");
            }
            assert_eq!(ports.read(task_file, Width::W2, CPU).0, 0xff7f);
        }
    }

    #[test]
    fn ports_are_decoded_where_timing_and_command_registers_say() {
        let (ports, ide) = rig();
        let answers = |port| ports.read(port, Width::W1, CPU).1.is_ok();
        ide.lock().config_write(IDETIM + 2, Width::W2, 0);
        assert!(answers(0x1f7) && !answers(0x177) && !answers(0x376));
        ide.lock().config_write(reg::COMMAND, Width::W2, 4);
        assert!(!answers(0x1f7) && !answers(0xc000));
    }

    #[test]
    fn timing_registers_keep_the_bits_that_exist() {
        let (_ports, ide) = rig();
        let mut ide = ide.lock();
        ide.config_write(IDETIM, Width::W4, u32::MAX);
        ide.config_write(spec::SIDETIM, Width::W4, u32::MAX);
        assert_eq!(ide.config_read(IDETIM, Width::W4), 0xf3ff_f3ff);
        assert_eq!(ide.config_read(spec::SIDETIM, Width::W4), 0xff);
        assert_eq!(ide.config_read(reg::REVISION, Width::W4), 0x0101_8000);
    }

    #[test]
    fn bus_master_registers_start_stop_and_clear_as_they_are_written() {
        let (ports, ide) = rig();
        let inb = |port: u64| ports.read(port, Width::W1, CPU).0;
        let outb = |port: u64, value: u64| assert!(ports.write(port, Width::W1, value, CPU).is_ok());
        assert!(ports.write(0xc00c, Width::W4, 0x1234_5677, CPU).is_ok());
        assert_eq!(ports.read(0xc00c, Width::W4, CPU).0, 0x1234_5674);
        outb(0xc008, 0xff);
        assert_eq!((inb(0xc008), inb(0xc00a)), (9, 1));
        outb(0xc00a, 0x67);
        assert_eq!(inb(0xc00a), 0x61);
        outb(0xc008, 8);
        assert_eq!((inb(0xc00a), inb(0xc002)), (0x60, 0));
        let record = ide.lock().save();
        let (other_ports, other) = rig();
        other.lock().load(&record).unwrap();
        assert_eq!(other.lock().save(), record);
        assert_eq!(other_ports.read(0xc00a, Width::W1, CPU).0, 0x60);
    }
}
