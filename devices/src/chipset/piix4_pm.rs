//! Intel 82371AB PIIX4, function 3: power management and SMBus host controller, datasheet 290562, section 7.
//!
//! The PM1 and GPE registers, the 3.579545 MHz timer, the APM ports with ACPI switched on and off through them,
//! and SMBus transactions with eight SPD EEPROMs behind them. The general-purpose event block that the board's
//! ACPI tables name is at port AFE0h.
//! Left out: SMI (no system management mode yet: DEVACTB is preset so that firmware skips it) and device trap timers.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, SizeRange, cell_io};
use anura_vmcore::{
    Bytes, Clock, Device, DeviceCell, IrqLine, LoadError, MachineRequest, Record, Requests, ResetKind, Timer,
    TimerState, Width, guest_error, trace_event,
};

use crate::pci::{ConfigSpace, Identity, PciFunction};

/// Base of the power management ports.
pub const PMBASE: u8 = 0x40;
/// Bit 0 enables the power management ports.
pub const PMREGMISC: u8 = 0x80;
/// Base of the SMBus ports.
pub const SMBBA: u8 = 0x90;
/// Bit 0 enables the SMBus ports.
pub const SMBHSTCFG: u8 = 0xd2;
/// Port of the general-purpose event block.
pub const GPE_BASE: u64 = 0xafe0;
/// Written to port B2h: the operating system takes power management over, or gives it back.
pub const ACPI_ENABLE: u8 = 0xf1;
/// See [`ACPI_ENABLE`].
pub const ACPI_DISABLE: u8 = 0xf0;

/// Hertz of the power management timer.
const PM_TIMER: u128 = 3_579_545;

const TMROF: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
const RSM: u16 = 1 << 15;
const STATUS_BITS: u16 = TMROF | 1 << 4 | GBL | PWRBTN | 1 << 10 | 1 << 11 | RSM;
const ENABLE_BITS: u16 = TMROF | GBL | PWRBTN | 1 << 10;
const SCI_EN: u16 = 1 << 0;
const SUS_TYP: u16 = 7 << 10;
const SUS_EN: u16 = 1 << 13;

const EEPROMS: usize = 8;

/// The SMBus host controller's registers.
#[derive(Clone, Default)]
struct SmBus {
    status: u8,
    control: u8,
    command: u8,
    address: u8,
    data: [u8; 2],
    block: Vec<u8>,
    index: u8,
    slave: [u8; 8],
}

/// Power management, function 00:01.3.
pub struct Piix4Pm {
    // Wiring.
    sci: IrqLine,
    smbus_irq: IrqLine,
    requests: Requests,
    clock: Clock,
    overflow: Timer,
    map: MemoryMap,
    ports: Region,
    pm_region: Region,
    smbus_region: Region,
    pm_at: Option<u64>,
    smbus_at: Option<u64>,
    // State.
    config: ConfigSpace,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Ports 10h and up of the block, which only keep their values.
    rest: [u8; 0x28],
    apm: [u8; 2],
    smbus: SmBus,
    eeproms: Vec<Vec<u8>>,
}

impl Piix4Pm {
    /// The function, with its registers mapped as the guest programs them.
    pub fn new(
        sci: IrqLine,
        smbus_irq: IrqLine,
        requests: &Requests,
        clock: &Clock,
        map: &MemoryMap,
        ports: &AddressSpace,
    ) -> DeviceCell<Self> {
        let id = Identity {
            vendor: 0x8086,
            device: 0x7113,
            revision: 3,
            class: 0x06_8000,
            multifunction: true,
            pin: 1,
        };
        let mut config = ConfigSpace::new(id);
        config.preset_u16(0x06, 0x0280);
        config.preset(PMBASE, 1);
        config.allow(PMBASE, &[0xc0, 0xff]);
        // CNTA, CNTB, GPICTL, DEVRES and DEVACT registers.
        config.allow(0x44, &[0xff; 0x3c]);
        // DEVACTB with APMC_EN set says that SMM is initialised.
        config.preset(0x5b, 0x02);
        config.allow(PMREGMISC, &[0x01]);
        config.preset(SMBBA, 1);
        config.allow(SMBBA, &[0xf0, 0xff]);
        config.preset(SMBHSTCFG, 0x09);
        config.allow(SMBHSTCFG, &[0x0f, 0xff, 0xff, 0xff]);
        let cell = DeviceCell::new_cyclic(|me| Self {
            sci,
            smbus_irq,
            requests: requests.clone(),
            clock: clock.clone(),
            overflow: clock.timer(me, Self::timer_overflow),
            map: map.clone(),
            ports: ports.root().clone(),
            pm_region: Region::container("piix4-pm", 0x40),
            smbus_region: Region::container("pm-smbus", 0x10),
            pm_at: None,
            smbus_at: None,
            config,
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            rest: [0; 0x28],
            apm: [0; 2],
            smbus: SmBus::default(),
            eeproms: vec![vec![0; 256]; EEPROMS],
        });
        {
            let mut pm = cell.lock();
            let rules = AccessRules {
                valid: SizeRange::any(1, 4),
                implemented: SizeRange::any(1, 1),
                ..AccessRules::default()
            };
            let timer_rules = AccessRules {
                valid: SizeRange::any(1, 4),
                implemented: SizeRange::aligned(4, 4),
                ..AccessRules::default()
            };
            let io = |name, size, handler| Region::io(name, size, handler, rules);
            let evt = io("acpi-evt", 4, cell_io(&cell, Self::read_pm, Self::write_pm));
            let cnt = io("acpi-cnt", 2, cell_io(&cell, Self::read_cnt, Self::write_cnt));
            let tmr_handler = cell_io(&cell, |pm: &mut Self, _| u64::from(pm.timer()), |_, _, _| {});
            let tmr = Region::io("acpi-tmr", 4, tmr_handler, timer_rules);
            let rest = io("piix4-pm-rest", 0x34, cell_io(&cell, Self::read_rest, Self::write_rest));
            let smbus = io("pm-smbus-io", 0x10, cell_io(&cell, Self::read_smbus, Self::write_smbus));
            let gpe = io("acpi-gpe0", 4, cell_io(&cell, Self::read_gpe, Self::write_gpe));
            let apm = io("apm-io", 2, cell_io(&cell, Self::read_apm, Self::write_apm));
            let mut tx = map.transaction();
            tx.add(&pm.pm_region, 0, &evt, 0);
            tx.add(&pm.pm_region, 4, &cnt, 0);
            tx.add(&pm.pm_region, 8, &tmr, 0);
            tx.add(&pm.pm_region, 12, &rest, 0);
            tx.add(&pm.smbus_region, 0, &smbus, 0);
            tx.add(ports.root(), GPE_BASE, &gpe, 0);
            tx.add(ports.root(), 0xb2, &apm, 0);
            tx.commit();
            pm.reset(ResetKind::PowerOn);
        }
        cell
    }

    /// Presses the power button.
    pub fn power_button(&mut self) {
        self.status |= PWRBTN;
        self.update_sci();
    }

    /// Raises a general-purpose event.
    pub fn raise_gpe(&mut self, event: u8) {
        self.gpe_status |= 1 << (event & 15);
        self.update_sci();
    }

    /// Whether ACPI is switched on.
    pub fn acpi_enabled(&self) -> bool {
        self.control & SCI_EN != 0
    }

    fn timer(&self) -> u32 {
        self.ticks() as u32 & 0x00ff_ffff
    }

    fn ticks(&self) -> u64 {
        (u128::from(self.clock.now()) * PM_TIMER / 1_000_000_000) as u64
    }

    /// Arms for the next change of the timer's highest bit, if anybody would see it.
    fn arm_overflow(&mut self) {
        if self.status & TMROF != 0 {
            self.overflow.cancel();
            return;
        }
        let next = (u128::from(self.ticks() >> 23) + 1) << 23;
        let at = (next * 1_000_000_000).div_ceil(PM_TIMER);
        self.overflow.arm(u64::try_from(at).unwrap_or(u64::MAX));
    }

    fn timer_overflow(&mut self, _now: u64) {
        self.status |= TMROF;
        self.update_sci();
    }

    fn update_sci(&self) {
        let event = self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0;
        self.sci.set(event && self.acpi_enabled());
    }

    fn read_pm(&mut self, a: Access) -> u64 {
        let value = u32::from(self.status) | u32::from(self.enable) << 16;
        u64::from(value >> ((a.offset & 3) * 8) & 0xff)
    }

    fn write_pm(&mut self, a: Access, value: u64) {
        trace_event!(piix4_pm_write, "offset {:#x} value {value:#x}", a.offset);
        let byte = (value as u16 & 0xff) << ((a.offset & 1) * 8);
        let mask = 0xff << ((a.offset & 1) * 8);
        if a.offset & 2 == 0 {
            self.status &= !(byte & STATUS_BITS);
            self.arm_overflow();
        } else {
            self.enable = self.enable & !mask | byte & ENABLE_BITS;
        }
        self.update_sci();
    }

    fn read_cnt(&mut self, a: Access) -> u64 {
        u64::from(self.control >> ((a.offset & 1) * 8) & 0xff)
    }

    fn write_cnt(&mut self, a: Access, value: u64) {
        trace_event!(piix4_pm_write, "offset {:#x} value {value:#x}", a.offset + 4);
        let shift = (a.offset & 1) * 8;
        // Global release is write only, and suspend enable always reads zero.
        let wanted = self.control & !(0xff << shift) | (value as u16 & 0xff) << shift;
        self.control = wanted & (SCI_EN | 2 | SUS_TYP);
        if wanted & SUS_EN != 0 {
            match (wanted & SUS_TYP) >> 10 {
                0 => self.requests.send(MachineRequest::PowerOff),
                1 => self.requests.send(MachineRequest::Suspend),
                other => guest_error!("piix4: sleep type {other} is not one of ours, ignored"),
            }
        }
        self.update_sci();
    }

    fn read_rest(&mut self, a: Access) -> u64 {
        match a.offset {
            // The chip's own general-purpose events; the board's are at AFE0h.
            0..4 => self.read_gpe(a),
            // Reading a processor level enters that state; ours has none to enter.
            8 | 9 => 0,
            // Between the blocks nothing is decoded.
            n => u64::from(self.rest.get((n as usize).wrapping_sub(12)).copied().unwrap_or(0)),
        }
    }

    fn write_rest(&mut self, a: Access, value: u64) {
        match a.offset {
            0..4 => self.write_gpe(a, value),
            8 | 9 => {}
            n => {
                if let Some(byte) = self.rest.get_mut((n as usize).wrapping_sub(12)) {
                    *byte = value as u8;
                }
            }
        }
    }

    fn read_gpe(&mut self, a: Access) -> u64 {
        let value = u32::from(self.gpe_status) | u32::from(self.gpe_enable) << 16;
        u64::from(value >> ((a.offset & 3) * 8) & 0xff)
    }

    fn write_gpe(&mut self, a: Access, value: u64) {
        let shift = (a.offset & 1) * 8;
        let byte = (value as u16 & 0xff) << shift;
        if a.offset & 2 == 0 {
            self.gpe_status &= !byte;
        } else {
            self.gpe_enable = self.gpe_enable & !(0xff << shift) | byte;
        }
        self.update_sci();
    }

    fn read_apm(&mut self, a: Access) -> u64 {
        u64::from(self.apm[a.offset as usize & 1])
    }

    fn write_apm(&mut self, a: Access, value: u64) {
        let value = value as u8;
        self.apm[a.offset as usize & 1] = value;
        if a.offset & 1 == 0 {
            match value {
                ACPI_ENABLE => self.control |= SCI_EN,
                ACPI_DISABLE => self.control &= !SCI_EN,
                _ => {}
            }
            self.update_sci();
        }
    }

    fn read_smbus(&mut self, a: Access) -> u64 {
        let bus = &mut self.smbus;
        u64::from(match a.offset {
            0x0 => bus.status,
            0x2 => {
                bus.index = 0;
                bus.control & 0x1f
            }
            0x3 => bus.command,
            0x4 => bus.address,
            0x5 => bus.data[0],
            0x6 => bus.data[1],
            0x7 => {
                let byte = bus.block.get(usize::from(bus.index)).copied().unwrap_or(0);
                bus.index = (bus.index + 1) & 31;
                byte
            }
            n @ 0x8..=0xf => bus.slave[n as usize & 7],
            _ => 0,
        })
    }

    fn write_smbus(&mut self, a: Access, value: u64) {
        let value = value as u8;
        let bus = &mut self.smbus;
        match a.offset {
            0x0 => {
                bus.status &= !(value & 0x1e);
                if bus.status & 0x1e == 0 {
                    self.smbus_irq.set(false);
                }
            }
            0x2 => {
                bus.control = value & 0x1f;
                bus.index = 0;
                if value & 0x40 != 0 {
                    self.smbus_transaction();
                }
            }
            0x3 => bus.command = value,
            0x4 => bus.address = value,
            0x5 => bus.data[0] = value,
            0x6 => bus.data[1] = value,
            0x7 => {
                let at = usize::from(bus.index);
                if bus.block.len() <= at {
                    bus.block.resize(at + 1, 0);
                }
                bus.block[at] = value;
                bus.index = (bus.index + 1) & 31;
            }
            n @ 0x8..=0xf => bus.slave[n as usize & 7] = value,
            _ => {}
        }
    }

    /// Carries a transaction out at once (datasheet, "SMBus Host Interface").
    fn smbus_transaction(&mut self) {
        let bus = &mut self.smbus;
        let read = bus.address & 1 != 0;
        let target = usize::from(bus.address >> 1).wrapping_sub(0x50);
        let done = match self.eeproms.get_mut(target) {
            None => false,
            Some(rom) => {
                let at = usize::from(bus.command);
                match (bus.control >> 2 & 7, read) {
                    (0, _) => {}
                    // A byte alone sets, or reads at, the EEPROM's address counter, which is the command.
                    (1, true) => bus.data[0] = rom[at],
                    (1, false) => {}
                    (2, true) => bus.data[0] = rom[at],
                    (2, false) => rom[at] = bus.data[0],
                    (3, true) => bus.data = [rom[at], rom[at + 1 & 0xff]],
                    (3, false) => (rom[at], rom[at + 1 & 0xff]) = (bus.data[0], bus.data[1]),
                    (5, true) => {
                        let len = usize::from(rom[at]).min(32);
                        bus.data[0] = len as u8;
                        bus.block = (0..len).map(|i| rom[at + 1 + i & 0xff]).collect();
                    }
                    (5, false) => {
                        let len = usize::from(bus.data[0]).min(32).min(bus.block.len());
                        (0..len).for_each(|i| rom[at + 1 + i & 0xff] = bus.block[i]);
                    }
                    _ => {
                        bus.status |= 0x04;
                        return;
                    }
                }
                true
            }
        };
        // Interrupt (transaction complete), or device error for an address that nobody has.
        bus.status |= if done { 0x02 } else { 0x04 };
        if bus.control & 1 != 0 {
            self.smbus_irq.set(true);
        }
    }

    /// Brings the port mappings in line with the configuration space.
    fn update_mappings(&mut self) {
        let base = |at: u8, mask: u16, on: bool| {
            (on && self.config.u16(at) & mask != 0).then(|| u64::from(self.config.u16(at) & mask))
        };
        let pm = base(PMBASE, 0xffc0, self.config.byte(PMREGMISC) & 1 != 0);
        let smbus = base(SMBBA, 0xfff0, self.config.byte(SMBHSTCFG) & 1 != 0);
        let mut tx = self.map.transaction();
        for (region, at, wanted) in
            [(&self.pm_region, &mut self.pm_at, pm), (&self.smbus_region, &mut self.smbus_at, smbus)]
        {
            if *at == wanted {
                continue;
            }
            if at.is_some() {
                tx.remove(&self.ports, region);
            }
            if let Some(base) = wanted {
                tx.add(&self.ports, base, region, 0);
            }
            *at = wanted;
        }
    }
}

impl PciFunction for Piix4Pm {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) {
        self.config.write(offset, width, value);
        self.update_mappings();
    }
}

impl Device for Piix4Pm {
    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        (self.status, self.enable, self.control) = (0, 0, 0);
        (self.gpe_status, self.gpe_enable) = (0, 0);
        self.rest = [0; 0x28];
        self.apm = [0; 2];
        self.smbus = SmBus::default();
        self.update_mappings();
        self.arm_overflow();
        self.update_sci();
        self.smbus_irq.set(false);
    }

    fn save(&self) -> Record {
        let Self {
            sci,
            smbus_irq,
            requests: _,
            clock: _,
            overflow,
            map: _,
            ports: _,
            pm_region: _,
            smbus_region: _,
            pm_at: _,
            smbus_at: _,
            config,
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            rest,
            apm,
            smbus,
            eeproms,
        } = self;
        let SmBus { status: host, control: host_control, command, address, data, block, index, slave } =
            smbus;
        Record::new(1)
            .with(1, config.save())
            .with(2, [*status, *enable, *control, *gpe_status, *gpe_enable])
            .with(3, Bytes(rest.to_vec()))
            .with(4, *apm)
            .with(5, overflow.state())
            .with(6, [sci.level(), smbus_irq.level()])
            .with(7, [*host, *host_control, *command, *address, data[0], data[1], *index])
            .with(8, Bytes(block.clone()))
            .with(9, *slave)
            .with(10, eeproms.iter().map(|rom| Bytes(rom.clone())).collect::<Vec<_>>())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let config = r.get(1)?;
        let [status, enable, control, gpe_status, gpe_enable] = r.get::<[u16; 5]>(2)?;
        let rest = r.get::<Bytes>(3)?.0.try_into().map_err(|_| LoadError::Invalid(3))?;
        let apm = r.get(4)?;
        let overflow = r.get::<TimerState>(5)?;
        let [sci, smbus_irq] = r.get(6)?;
        let [host, host_control, command, address, data0, data1, index] =
            r.get_if::<[u8; 7]>(7, |v| v[6] < 32)?;
        let block = r.get_if::<Bytes>(8, |b| b.0.len() <= 32)?.0;
        let slave = r.get(9)?;
        let eeproms = r.get_if::<Vec<Bytes>>(10, |roms| {
            roms.len() == EEPROMS && roms.iter().all(|rom| rom.0.len() == 256)
        })?;
        r.finish()?;
        self.config.load(&config)?;
        (self.status, self.enable) = (status & STATUS_BITS, enable & ENABLE_BITS);
        self.control = control & (SCI_EN | 2 | SUS_TYP);
        (self.gpe_status, self.gpe_enable, self.rest, self.apm) = (gpe_status, gpe_enable, rest, apm);
        self.smbus = SmBus {
            status: host,
            control: host_control,
            command,
            address,
            data: [data0, data1],
            block,
            index,
            slave,
        };
        self.eeproms = eeproms.into_iter().map(|rom| rom.0).collect();
        self.overflow.restore(overflow);
        self.sci.restore(sci);
        self.smbus_irq.restore(smbus_irq);
        self.update_mappings();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{LineLevels, Requester};
    use std::sync::Arc;

    struct Rig {
        clock: Clock,
        sink: Arc<LineLevels>,
        requests: Requests,
        ports: AddressSpace,
        pm: DeviceCell<Piix4Pm>,
    }

    fn rig() -> Rig {
        let (clock, sink, requests, map) =
            (Clock::stepped(), LineLevels::new(), Requests::new(), MemoryMap::new());
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let pm = Piix4Pm::new(sink.line(9), sink.line(10), &requests, &clock, &map, &ports);
        pm.lock().config_write(PMBASE, Width::W4, 0x601);
        pm.lock().config_write(PMREGMISC, Width::W1, 1);
        pm.lock().config_write(SMBBA, Width::W4, 0x701);
        Rig { clock, sink, requests, ports, pm }
    }

    impl Rig {
        fn out(&self, port: u64, width: Width, value: u64) {
            assert!(self.ports.write(port, width, value, Requester::Cpu(0)).is_ok());
        }
        fn inp(&self, port: u64, width: Width) -> u64 {
            self.ports.read(port, width, Requester::Cpu(0)).0
        }
    }

    #[test]
    fn the_timer_runs_at_its_rate_and_wraps_at_24_bits() {
        let rig = rig();
        rig.clock.advance(1_000_000_000);
        assert_eq!(rig.inp(0x608, Width::W4), 3_579_545);
        rig.clock.advance(4_000_000_000);
        assert_eq!(rig.inp(0x608, Width::W4), 5 * 3_579_545 - 0x100_0000);
    }

    #[test]
    fn the_timer_overflow_raises_sci_when_acpi_is_on() {
        let rig = rig();
        rig.out(0xb2, Width::W1, u64::from(ACPI_ENABLE));
        assert_eq!(rig.inp(0x604, Width::W2), 1);
        rig.out(0x602, Width::W2, 1);
        rig.clock.advance(2_400_000_000);
        assert!(rig.sink.level(9));
        rig.out(0x600, Width::W2, 1);
        assert!(!rig.sink.level(9));
        rig.clock.advance(2_400_000_000);
        assert!(rig.sink.level(9));
        rig.out(0xb2, Width::W1, u64::from(ACPI_DISABLE));
        assert!(!rig.sink.level(9));
    }

    #[test]
    fn every_offset_of_the_block_can_be_read_and_written() {
        let rig = rig();
        for port in 0x600..0x640 {
            rig.inp(port, Width::W1);
            // Holes in the block refuse; that is as good as taking it.
            let _ = rig.ports.write(port, Width::W1, 0, Requester::Cpu(0));
        }
        assert_eq!((rig.inp(0x60c, Width::W4), rig.inp(0x610, Width::W1)), (0, 0));
    }

    #[test]
    fn the_power_button_sets_its_status_and_a_one_clears_it() {
        let rig = rig();
        rig.out(0xb2, Width::W1, u64::from(ACPI_ENABLE));
        rig.out(0x602, Width::W2, u64::from(PWRBTN));
        rig.pm.lock().power_button();
        assert!(rig.sink.level(9));
        assert_eq!(rig.inp(0x600, Width::W2), u64::from(PWRBTN));
        rig.out(0x600, Width::W2, u64::from(PWRBTN));
        assert!(!rig.sink.level(9));
    }

    #[test]
    fn sleep_types_power_off_and_suspend() {
        let rig = rig();
        rig.out(0x604, Width::W2, u64::from(SUS_EN));
        assert_eq!(rig.requests.take(), Some(MachineRequest::PowerOff));
        rig.out(0x604, Width::W2, u64::from(SUS_EN | 1 << 10));
        assert_eq!(rig.requests.take(), Some(MachineRequest::Suspend));
        rig.out(0x604, Width::W2, u64::from(SUS_EN | 5 << 10));
        assert_eq!(rig.requests.take(), None);
    }

    #[test]
    fn general_purpose_events_need_their_enable() {
        let rig = rig();
        rig.out(0xb2, Width::W1, u64::from(ACPI_ENABLE));
        rig.pm.lock().raise_gpe(2);
        assert!(!rig.sink.level(9));
        rig.out(GPE_BASE + 2, Width::W1, 4);
        assert!(rig.sink.level(9));
        rig.out(GPE_BASE, Width::W1, 4);
        assert!(!rig.sink.level(9));
    }

    #[test]
    fn the_ports_move_with_their_base() {
        let rig = rig();
        rig.pm.lock().config_write(PMBASE, Width::W4, 0xb001);
        assert_eq!(rig.inp(0x604, Width::W2), 0xffff);
        assert_eq!(rig.inp(0xb004, Width::W2), 0);
        rig.pm.lock().config_write(PMREGMISC, Width::W1, 0);
        assert_eq!(rig.inp(0xb004, Width::W2), 0xffff);
    }

    #[test]
    fn smbus_reads_and_writes_an_eeprom_and_reports_an_absent_device() {
        let rig = rig();
        let transfer = |address: u64, command: u64, control: u64| {
            rig.out(0x700, Width::W1, 0x1e);
            rig.out(0x704, Width::W1, address);
            rig.out(0x703, Width::W1, command);
            rig.out(0x702, Width::W1, control);
            rig.inp(0x700, Width::W1)
        };
        rig.out(0x705, Width::W1, 0x42);
        assert_eq!(transfer(0xa2, 7, 0x48), 0x02);
        rig.out(0x705, Width::W1, 0);
        assert_eq!(transfer(0xa3, 7, 0x49), 0x02);
        assert_eq!(rig.inp(0x705, Width::W1), 0x42);
        assert!(rig.sink.level(10));
        assert_eq!(transfer(0x61, 0, 0x48), 0x04);
        rig.out(0x705, Width::W1, 3);
        rig.inp(0x702, Width::W1);
        (1..4).for_each(|b| rig.out(0x707, Width::W1, b));
        transfer(0xa0, 0, 0x54);
        rig.out(0x705, Width::W1, 3);
        rig.pm.lock().eeproms[0][0] = 3;
        transfer(0xa1, 0, 0x54);
        assert_eq!([0; 3].map(|_| rig.inp(0x707, Width::W1)), [1, 2, 3]);
    }

    #[test]
    fn saved_state_loads_and_maps_again() {
        let rig = rig();
        rig.out(0x602, Width::W2, 1);
        let record = rig.pm.lock().save();
        let copy = super::tests::rig();
        copy.pm.lock().reset(ResetKind::System);
        assert_eq!(copy.inp(0x602, Width::W2), 0xffff);
        copy.pm.lock().load(&record).unwrap();
        assert_eq!(copy.pm.lock().save(), record);
        assert_eq!(copy.inp(0x602, Width::W2), 1);
    }
}
