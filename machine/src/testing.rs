//! A whole board without an engine, for tests of devices: stepped time, and accesses as a driver makes them.
//!
//! The vCPUs are those of the null engine and stand for ever; the test is the guest. Firmware's set-up is done, so PCI
//! functions have addresses and the first processor takes the PICs' interrupts.

use std::sync::Arc;

use anura_accel::scripted::Scripted;
use anura_chardev::{Chardev, ChardevConfig, ChardevKind};
use anura_devices::irq::lapic::LocalApic;
use anura_vmcore::{Clock, MachineRequest, Requester, ResetKind, Width};

use crate::config::{DeviceConfig, MachineConfig, RtcBase};
use crate::error::MachineError;
use crate::machine::Machine;
use crate::pc::Pc;
use crate::state::States;

/// Who the test is.
const CPU: Requester = Requester::Cpu(0);

/// A `pc` on the null engine.
pub struct TestMachine {
    machine: Machine,
    clock: Clock,
}

impl TestMachine {
    /// The configuration of [`TestMachine::pc`]: every device of the board and one of each that users can add, ring
    /// buffers named after their ports at the far ends, and a fixed date.
    pub fn config() -> MachineConfig {
        let mut config = MachineConfig { start_paused: true, ..MachineConfig::default() };
        config.memory.size = 32 << 20;
        config.rtc.base = RtcBase::Seconds(1_700_000_000);
        let names = ["serial0", "serial1", "serial2", "serial3", "parallel0", "debugcon"];
        let ring = |name: &&str| ChardevConfig::new(*name, ChardevKind::Ringbuf { size: 4096 });
        config.chardevs = names.iter().map(ring).collect();
        config.serial = names[..4].iter().map(|name| Some((*name).to_owned())).collect();
        config.parallel = vec![Some("parallel0".to_owned())];
        for (driver, chardev) in
            [("isa-debugcon", Some("debugcon")), ("isa-debug-exit", None), ("pvpanic", None)]
        {
            let chardev =
                chardev.map(|id| ("chardev".to_owned(), anura_devices::registry::Value::Text(id.into())));
            config.devices.push(DeviceConfig {
                driver: driver.to_owned(),
                id: None,
                bus: None,
                properties: chardev.into_iter().collect(),
            });
        }
        config
    }

    /// A board with everything on it.
    ///
    /// # Panics
    /// When it cannot be built, which fails the test.
    pub fn pc() -> Self {
        Self::with(Self::config()).expect("the test machine can be built")
    }

    /// A board of this configuration.
    pub fn with(config: MachineConfig) -> Result<Self, MachineError> {
        let clock = Clock::stepped();
        let machine = Machine::with_clock(config, &Scripted::null(), &clock)?;
        crate::firmware::post(machine.pc());
        Ok(Self { machine, clock })
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The board.
    pub fn board(&self) -> &Pc {
        self.machine.pc()
    }

    /// Guest time goes on by `ns`; what becomes due happens.
    pub fn advance(&self, ns: u64) {
        self.clock.advance(ns);
    }

    /// Guest time.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Reads a port; all ones where nothing is.
    pub fn port_read(&self, port: u16, width: Width) -> u32 {
        self.board().ports.read(u64::from(port), width, CPU).0 as u32
    }

    /// Writes a port.
    pub fn port_write(&self, port: u16, width: Width, value: u32) {
        // A write that nothing takes is lost, as on a PC.
        let _ = self.board().ports.write(u64::from(port), width, u64::from(value) & width.mask(), CPU);
    }

    /// Reads a byte from a port.
    pub fn inb(&self, port: u16) -> u8 {
        self.port_read(port, Width::W1) as u8
    }

    /// Reads two bytes from a port.
    pub fn inw(&self, port: u16) -> u16 {
        self.port_read(port, Width::W2) as u16
    }

    /// Reads four bytes from a port.
    pub fn inl(&self, port: u16) -> u32 {
        self.port_read(port, Width::W4)
    }

    /// Writes a byte to a port.
    pub fn outb(&self, port: u16, value: u8) {
        self.port_write(port, Width::W1, u32::from(value));
    }

    /// Writes two bytes to a port.
    pub fn outw(&self, port: u16, value: u16) {
        self.port_write(port, Width::W2, u32::from(value));
    }

    /// Writes four bytes to a port.
    pub fn outl(&self, port: u16, value: u32) {
        self.port_write(port, Width::W4, value);
    }

    /// Reads guest-physical memory, RAM or registers.
    pub fn read(&self, at: u64, width: Width) -> u64 {
        self.board().memory.read(at, width, CPU).0
    }

    /// Writes guest-physical memory.
    pub fn write(&self, at: u64, width: Width, value: u64) {
        let _ = self.board().memory.write(at, width, value & width.mask(), CPU);
    }

    /// Bytes of memory.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let _ = self.board().memory.read_bytes(at, &mut bytes, CPU);
        bytes
    }

    /// Puts bytes into memory.
    pub fn put_bytes(&self, at: u64, bytes: &[u8]) {
        let _ = self.board().memory.write_bytes(at, bytes, CPU);
    }

    /// Reads a configuration register by the ports CF8h and CFCh.
    pub fn pci_read(&self, devfn: u8, offset: u8, width: Width) -> u32 {
        self.outl(0xcf8, 1 << 31 | u32::from(devfn) << 8 | u32::from(offset & 0xfc));
        self.port_read(0xcfc + u16::from(offset & 3), width)
    }

    /// Writes a configuration register.
    pub fn pci_write(&self, devfn: u8, offset: u8, width: Width, value: u32) {
        self.outl(0xcf8, 1 << 31 | u32::from(devfn) << 8 | u32::from(offset & 0xfc));
        self.port_write(0xcfc + u16::from(offset & 3), width, value);
    }

    /// The first processor's APIC.
    pub fn apic(&self) -> &Arc<LocalApic> {
        &self.board().apics[0]
    }

    /// Takes the interrupt that waits for the first processor; its vector.
    pub fn interrupt(&self) -> Option<u8> {
        let apic = self.apic();
        if apic.sync().interrupt { apic.acknowledge() } else { None }
    }

    /// Sets the PICs up as systems do: vectors 20h to 2Fh, all masked but `irqs`, normal end of interrupt.
    pub fn set_up_pic(&self, irqs: &[u8]) {
        for (base, vectors, wire) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            self.outb(base, 0x11);
            self.outb(base + 1, vectors);
            self.outb(base + 1, wire);
            self.outb(base + 1, 1);
        }
        let mask = irqs.iter().fold(!4u16, |mask, irq| mask & !(1 << irq));
        self.outb(0x21, mask as u8);
        self.outb(0xa1, (mask >> 8) as u8);
    }

    /// Ends the interrupt `irq` at the PICs.
    pub fn end_of_interrupt(&self, irq: u8) {
        if irq >= 8 {
            self.outb(0xa0, 0x20);
        }
        self.outb(0x20, 0x20);
    }

    /// What a device asked the machine for.
    pub fn request(&self) -> Option<MachineRequest> {
        self.board().requests.take()
    }

    /// Resets every device, as the reset line does, and sets the board up again.
    pub fn reset(&self) {
        for (_, device) in self.board().devices() {
            device.reset(ResetKind::System);
        }
        while self.request().is_some() {}
        crate::firmware::post(self.board());
    }

    /// The chardev of this id; those of [`TestMachine::config`] are ring buffers.
    ///
    /// # Panics
    /// When there is none, which fails the test.
    pub fn chardev(&self, id: &str) -> Chardev {
        self.machine.chardev(id).expect("the machine has this chardev")
    }

    /// The state of everything but RAM.
    pub fn save(&self) -> States {
        self.machine.save_states()
    }

    /// Takes over a state.
    pub fn load(&self, states: &States) -> Result<(), MachineError> {
        self.machine.load_states(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(driver: &str, properties: &[(&str, u64)]) -> String {
        let mut config = TestMachine::config();
        let number = |n: u64| anura_devices::registry::Value::Number(n);
        config.devices.push(DeviceConfig {
            driver: driver.to_owned(),
            id: None,
            bus: None,
            properties: properties.iter().map(|(name, n)| ((*name).to_owned(), number(*n))).collect(),
        });
        TestMachine::with(config).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_device_that_cannot_be_added_is_refused_with_a_way_out() {
        assert_eq!(
            refused("isa-debug-exit", &[("iobase", 0x3f8)]),
            "-device isa-debug-exit,iobase=0x3f8: ports 0x3f8 to 0x3ff belong to serial already; give another iobase="
        );
        assert_eq!(
            refused("VGA", &[("addr", 0x10)]),
            "-device VGA,addr=02.0: that place on the PCI bus is taken; leave addr= out or give a free one"
        );
        assert_eq!(
            refused("isa-serial", &[("iobase", 0x1000)]),
            "-device isa-serial: it needs chardev=ID; define one with -chardev"
        );
        assert_eq!(
            refused("PIIX3", &[]),
            "-device PIIX3: this board does not take such a device; -device help lists those"
        );
        assert!(refused("isa-serial", &[]).contains("all usual ports are taken"));
    }

    #[test]
    fn the_device_tree_nests_buses_and_names_ports_lines_and_addresses() {
        let machine = TestMachine::pc();
        let tree = crate::qtree::tree(machine.board());
        let host = tree.devices.iter().find(|d| d.driver == "i440FX-pcihost").unwrap();
        let functions = &host.buses[0].devices;
        let vga = functions.iter().find(|d| d.driver == "VGA").unwrap();
        assert_eq!(vga.details[1], "bar 0: mem at 0xfd000000");
        let bridge = functions.iter().find(|d| d.driver == "PIIX3").unwrap();
        let isa = &bridge.buses[0];
        assert_eq!(isa.name, "isa.0");
        let keyboard = isa.devices.iter().find(|d| d.driver == "i8042").unwrap();
        assert_eq!(keyboard.details, ["ports 0x60, 0x64", "isa irqs 1,12"]);
        let console = isa.devices.iter().find(|d| d.driver == "isa-debugcon").unwrap();
        assert!(console.properties.contains(&("iobase".into(), "233 (0xe9)".into())));
    }
}
