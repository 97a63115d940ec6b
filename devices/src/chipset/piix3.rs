//! Intel 82371SB PIIX3, function 0: the PCI-to-ISA bridge, datasheet 290550.
//!
//! It routes PIRQA# to PIRQD# to ISA interrupts and holds the reset control register at port CF9h. The rest of its
//! configuration space (X-bus chip selects, SMI and clock timers, DMA aliasing) keeps what is written and is
//! read back by firmware.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{Device, DeviceCell, LoadError, MachineRequest, Record, Requests, ResetKind, Width};

use crate::irq::fabric::FabricHandle;
use crate::pci::{ConfigSpace, Identity, PciFunction};

/// First of the four PIRQ route control registers.
pub const PIRQRCA: u8 = 0x60;

const RESET_CPU: u8 = 0x04;
const RESET_HARD: u8 = 0x02;

/// The ISA bridge, function 00:01.0.
pub struct Piix3 {
    // Wiring.
    fabric: FabricHandle,
    requests: Requests,
    // State.
    config: ConfigSpace,
    reset_control: u8,
}

impl Piix3 {
    /// A bridge that routes into `fabric`.
    pub fn new(fabric: &FabricHandle, requests: &Requests) -> DeviceCell<Self> {
        let id = Identity {
            vendor: 0x8086,
            device: 0x7000,
            revision: 0,
            class: 0x06_0100,
            multifunction: true,
            pin: 0,
        };
        let mut config = ConfigSpace::new(id);
        config.preset(0x04, 0x07);
        config.preset_u16(0x06, 0x0200);
        // Defaults and writable bits in the datasheet's order: IORT, XBCS, PIRQRC, TOM, MSTAT, MBIRQ, MBDMA, PCSC,
        // APICBASE, DLC, SMICNTL, SMIEN, SEE, FTMR, SMIREQ, CTLTMR, CTHTMR.
        config.preset(0x4c, 0x4d);
        config.allow(0x4c, &[0x7f]);
        config.preset(0x4e, 0x03);
        config.allow(0x4e, &[0xff, 0x01]);
        (0..4).for_each(|n| config.preset(PIRQRCA + n, 0x80));
        config.allow(PIRQRCA, &[0x8f; 4]);
        config.preset(0x69, 0x02);
        config.allow(0x69, &[0xfe, 0x83, 0x80]);
        config.preset(0x70, 0x80);
        config.allow(0x70, &[0xef]);
        config.preset(0x76, 0x0c);
        config.preset(0x77, 0x0c);
        config.allow(0x76, &[0x8f, 0x8f]);
        config.preset(0x78, 0x02);
        config.allow(0x78, &[0xff, 0xff]);
        config.allow(0x80, &[0x7f]);
        config.allow(0x82, &[0x0f]);
        config.preset(0xa0, 0x08);
        config.allow(0xa0, &[0x1f]);
        config.allow(0xa2, &[0xff, 0x01]);
        config.allow(0xa4, &[0xff, 0xff, 0xff, 0xf9]);
        config.preset(0xa8, 0x0f);
        config.allow(0xa8, &[0xff]);
        config.allow_clear(0xaa, 0xff);
        config.allow_clear(0xab, 0x01);
        config.allow(0xac, &[0xff]);
        config.allow(0xae, &[0xff]);
        DeviceCell::new(Self { fabric: fabric.clone(), requests: requests.clone(), config, reset_control: 0 })
    }

    /// Maps the reset control register, above the configuration address that it shares a doubleword with.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let handler = cell_io(cell, Self::read_reset, Self::write_reset);
        let region = Region::io("piix3-reset-control", 1, handler, AccessRules::BYTES);
        map.transaction().add(ports.root(), 0xcf9, &region, 1);
    }

    fn read_reset(&mut self, _a: Access) -> u64 {
        u64::from(self.reset_control)
    }

    fn write_reset(&mut self, _a: Access, value: u64) {
        let value = value as u8;
        let rising = value & !self.reset_control & RESET_CPU != 0;
        self.reset_control = value & (RESET_HARD | RESET_CPU);
        if rising {
            // A soft reset is the CPU's INIT on the datasheet; boards and systems expect the whole machine.
            self.requests.send(MachineRequest::Reset(ResetKind::System));
        }
    }

    fn update_routes(&self) {
        for wire in 0..4 {
            self.fabric.set_pirq_route(wire, self.config.byte(PIRQRCA + wire as u8));
        }
    }
}

impl PciFunction for Piix3 {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) {
        self.config.write(offset, width, value);
        if offset & 0xfc == PIRQRCA {
            self.update_routes();
        }
    }
}

impl Device for Piix3 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { fabric: _, requests: _, config, reset_control } = self;
        config.reset();
        *reset_control = 0;
        self.update_routes();
    }

    fn save(&self) -> Record {
        let Self { fabric: _, requests: _, config, reset_control } = self;
        Record::new(1).with(1, config.save()).with(2, *reset_control)
    }

    // The routes themselves are part of the fabric's state.
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        self.config.load(&r.get(1)?)?;
        self.reset_control = r.get_if::<u8>(2, |v| v & !(RESET_HARD | RESET_CPU) == 0)?;
        r.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::apic_bus::ApicBus;
    use anura_vmcore::Requester;

    #[test]
    fn the_reset_control_register_resets_on_the_rising_edge_of_its_cpu_bit() {
        let (fabric, requests) = (FabricHandle::new(ApicBus::new()), Requests::new());
        let bridge = Piix3::new(&fabric, &requests);
        let a = Access { offset: 0, width: Width::W1, from: Requester::Cpu(0) };
        let mut bridge = bridge.lock();
        bridge.write_reset(a, 0x02);
        assert_eq!(requests.take(), None);
        bridge.write_reset(a, 0x06);
        assert_eq!(requests.take(), Some(MachineRequest::Reset(ResetKind::System)));
        bridge.write_reset(a, 0x06);
        assert_eq!(requests.take(), None);
        assert_eq!(bridge.read_reset(a), 0x06);
    }

    #[test]
    fn route_registers_reach_the_fabric_and_reserved_bits_stay_zero() {
        let (fabric, requests) = (FabricHandle::new(ApicBus::new()), Requests::new());
        let bridge = Piix3::new(&fabric, &requests);
        bridge.lock().config_write(PIRQRCA, Width::W4, 0xff0b_0a7b);
        assert_eq!(bridge.lock().config_read(PIRQRCA, Width::W4), 0x8f0b_0a0b);
        fabric.pci(1, 0).set(true);
        assert!(fabric.describe_irq().contains("11: 1"), "{}", fabric.describe_irq());
        bridge.lock().reset(ResetKind::System);
        assert_eq!(bridge.lock().config_read(PIRQRCA, Width::W4), 0x8080_8080);
        assert_eq!(bridge.lock().config_read(0, Width::W4), 0x7000_8086);
    }
}
