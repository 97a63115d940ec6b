//! The interrupt fabric: two 8259A, the IOAPIC and the PIRQ router of the PIIX3 under one lock.
//!
//! Sources: PIIX3 datasheet 290550 ("Interrupt Controller", PIRQRC registers) and MultiProcessor Specification 1.4.
//! ISA interrupt n reaches PIC input n and IOAPIC pin n, except that the PIT's IRQ 0 is on pin 2. A PCI
//! interrupt goes by its slot and pin to one of four PIRQ wires, and from there to the ISA interrupt that the
//! PIIX3 routes it to. The fabric takes lines with any device's lock held and never calls a device.

use std::sync::Arc;

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, SizeRange, cell_io};
use anura_vmcore::{
    Device, DeviceCell, HostApics, IrqLine, IrqSink, LoadError, Record, ResetKind, Width, trace_event,
};

use super::apic_bus::{ApicBus, Message};
use super::i8259::I8259;
use super::ioapic82093::Ioapic;
use super::lapic::ApicPeer;

/// Inputs 0 to 23 are global system interrupts, 0 to 15 of them ISA interrupts.
pub const GSIS: u32 = 24;
/// HPET timers 0 and 1 in legacy replacement mode.
const HPET_LEGACY: u32 = 40;
/// High while the HPET replaces PIT and RTC.
const HPET_REPLACES: u32 = 42;
/// Input 64 + 4 × slot + pin is a PCI interrupt pin.
const PCI: u32 = 64;
/// Source number of an ISA line, so that several devices can share one: input = source × 256 + interrupt.
const SOURCE: u32 = 256;

/// The chips and the wiring between them.
pub struct Fabric {
    // Wiring.
    bus: Arc<ApicBus>,
    // State.
    master: I8259,
    slave: I8259,
    ioapic: Ioapic,
    /// Which sources drive each interrupt high.
    sources: [u32; GSIS as usize],
    hpet: [bool; 2],
    hpet_replaces: bool,
    /// Levels of all PCI interrupt pins, 4 × slot + pin.
    pci: u128,
    /// PIRQRC[A:D].
    pirq_route: [u8; 4],
    /// How often each ISA interrupt rose, for `info irq`.
    counts: [u64; 16],
}

impl Fabric {
    fn new(bus: Arc<ApicBus>) -> Self {
        Self {
            bus,
            master: I8259::new("pic0", 0xf8),
            slave: I8259::new("pic1", 0xde),
            ioapic: Ioapic::default(),
            sources: [0; GSIS as usize],
            hpet: [false; 2],
            hpet_replaces: false,
            pci: 0,
            pirq_route: [0x80; 4],
            counts: [0; 16],
        }
    }

    fn set_input(&mut self, input: u32, level: bool) {
        match input {
            HPET_LEGACY | 41 => {
                let n = (input - HPET_LEGACY) as usize;
                self.hpet[n] = level;
                self.drive(if n == 0 { 0 } else { 8 });
            }
            HPET_REPLACES => {
                self.hpet_replaces = level;
                self.drive(0);
                self.drive(8);
            }
            PCI..192 => {
                let bit = 1 << (input - PCI);
                self.pci = if level { self.pci | bit } else { self.pci & !bit };
                let n = input - PCI;
                self.drive_pirq(pirq_of(n >> 2, n & 3));
            }
            _ => {
                let (gsi, source) = ((input % SOURCE) as usize, input / SOURCE);
                if gsi < GSIS as usize && source < 32 {
                    let bit = 1 << source;
                    self.sources[gsi] =
                        if level { self.sources[gsi] | bit } else { self.sources[gsi] & !bit };
                    self.drive(gsi);
                }
            }
        }
    }

    /// Level of a PIRQ wire: any PCI pin on it.
    fn pirq(&self, wire: u8) -> bool {
        (0..128u32).any(|n| self.pci & 1 << n != 0 && pirq_of(n >> 2, n & 3) == wire)
    }

    fn drive_pirq(&mut self, wire: u8) {
        let route = self.pirq_route[usize::from(wire)];
        if route & 0x80 == 0 {
            self.drive(usize::from(route & 0xf));
        }
    }

    fn level(&self, gsi: usize) -> bool {
        let own = match gsi {
            0 | 8 if self.hpet_replaces => self.hpet[usize::from(gsi == 8)],
            _ => self.sources[gsi] != 0,
        };
        let routed = |wire: u8| {
            let route = self.pirq_route[usize::from(wire)];
            route & 0x80 == 0 && usize::from(route & 0xf) == gsi && self.pirq(wire)
        };
        own || gsi < 16 && self.pci != 0 && (0..4).any(routed)
    }

    /// Brings the current level of an interrupt to the chips.
    fn drive(&mut self, gsi: usize) {
        let level = self.level(gsi);
        if let 0..16 = gsi {
            trace_event!(pic_set_irq, "irq {gsi} level {level}");
            self.counts[gsi] += u64::from(level);
            let pic = if gsi < 8 { &mut self.master } else { &mut self.slave };
            // Input 2 of the master is the cascade.
            if gsi != 2 {
                pic.set_line(gsi as u8 & 7, level);
            }
            self.update_pic();
        }
        let pin = match gsi {
            0 => 2,
            2 => return,
            n => n,
        };
        let bus = &self.bus;
        self.ioapic.set_line(pin, level, &mut |m| deliver(bus, &m));
    }

    fn update_pic(&mut self) {
        self.master.set_line(2, self.slave.int());
        let intr = self.master.int();
        for cpu in 0.. {
            let Some(mailbox) = self.bus.mailbox(cpu) else { break };
            mailbox.set_lint0(intr);
        }
    }

    fn acknowledge(&mut self) -> u8 {
        let (input, mut vector) = self.master.acknowledge();
        let mut irq = input;
        if input == 2 {
            let (slave_input, slave_vector) = self.slave.acknowledge();
            (irq, vector) = (8 + slave_input, slave_vector);
        }
        trace_event!(pic_interrupt, "irq {irq} vector {vector:#04x}");
        self.update_pic();
        vector
    }

    /// Routes PIRQ wire `wire` (0 is A); bit 7 of `value` disables.
    fn set_pirq_route(&mut self, wire: usize, value: u8) {
        let old = std::mem::replace(&mut self.pirq_route[wire], value & 0x8f);
        for route in [old, value] {
            if route & 0x80 == 0 {
                self.drive(usize::from(route & 0xf));
            }
        }
    }

    fn read_pic(&mut self, slave: bool, a: Access) -> u64 {
        let chip = if slave { &mut self.slave } else { &mut self.master };
        let value = chip.read(a.offset & 1 != 0);
        self.update_pic();
        u64::from(value)
    }

    fn write_pic(&mut self, slave: bool, a: Access, value: u64) {
        let chip = if slave { &mut self.slave } else { &mut self.master };
        chip.write(a.offset & 1 != 0, value as u8);
        self.update_pic();
    }

    fn read_master(&mut self, a: Access) -> u64 {
        self.read_pic(false, a)
    }
    fn write_master(&mut self, a: Access, value: u64) {
        self.write_pic(false, a, value);
    }
    fn read_slave(&mut self, a: Access) -> u64 {
        self.read_pic(true, a)
    }
    fn write_slave(&mut self, a: Access, value: u64) {
        self.write_pic(true, a, value);
    }

    fn read_elcr(&mut self, a: Access) -> u64 {
        u64::from(if a.offset == 0 { self.master.elcr() } else { self.slave.elcr() })
    }

    fn write_elcr(&mut self, a: Access, value: u64) {
        let chip = if a.offset == 0 { &mut self.master } else { &mut self.slave };
        chip.set_elcr(value as u8);
        self.update_pic();
    }

    fn read_ioapic(&mut self, a: Access) -> u64 {
        u64::from(self.ioapic.read(a.offset, Width::W4))
    }

    fn write_ioapic(&mut self, a: Access, value: u64) {
        let bus = &self.bus;
        let before = self.ioapic.routes();
        // The host must watch for the end of an interrupt before it is sent.
        let mut sent = Vec::new();
        self.ioapic.write(a.offset, value as u32, &mut |m| sent.push(m));
        if self.ioapic.routes() != before {
            bus.route_pins(self.ioapic.messages());
        }
        sent.iter().for_each(|m| deliver(bus, m));
    }

    fn describe_irq(&self) -> String {
        let rows = self.counts.iter().enumerate().filter(|(_, n)| **n != 0);
        let rows: Vec<_> = rows.map(|(irq, n)| format!("{irq:2}: {n}")).collect();
        format!("IRQ statistics for pic:\n{}", rows.join("\n"))
    }
}

fn deliver(bus: &ApicBus, message: &Message) {
    bus.deliver(message);
}

/// The PIRQ wire of a slot's interrupt pin (0 is INTA), as the board's traces run: slots are staggered.
fn pirq_of(slot: u32, pin: u32) -> u8 {
    (pin.wrapping_add(slot).wrapping_sub(1) & 3) as u8
}

impl Device for Fabric {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            bus: _,
            master,
            slave,
            ioapic,
            sources: _,
            hpet: _,
            hpet_replaces: _,
            pci: _,
            pirq_route,
            counts: _,
        } = self;
        master.reset();
        slave.reset();
        ioapic.reset();
        *pirq_route = [0x80; 4];
        self.update_pic();
    }

    fn save(&self) -> Record {
        let Self { bus: _, master, slave, ioapic, sources, hpet, hpet_replaces, pci, pirq_route, counts } =
            self;
        Record::new(1)
            .with(1, master.save())
            .with(2, slave.save())
            .with(3, ioapic.save())
            .with(4, *sources)
            .with(5, *hpet)
            .with(6, *hpet_replaces)
            .with(7, [*pci as u64, (*pci >> 64) as u64])
            .with(8, *pirq_route)
            .with(9, *counts)
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        self.master.load(&r.get(1)?)?;
        self.slave.load(&r.get(2)?)?;
        self.ioapic.load(&r.get(3)?)?;
        self.sources = r.get(4)?;
        self.hpet = r.get(5)?;
        self.hpet_replaces = r.get(6)?;
        let [low, high] = r.get::<[u64; 2]>(7)?;
        self.pci = u128::from(low) | u128::from(high) << 64;
        self.pirq_route = r.get_if::<[u8; 4]>(8, |routes| routes.iter().all(|v| v & 0x70 == 0))?;
        // Half of the range is left for counting on.
        self.counts = r.get_if::<[u64; 16]>(9, |counts| counts.iter().all(|n| *n < 1 << 63))?;
        r.finish()
    }
}

/// A shared handle of the fabric: what boards wire lines to.
#[derive(Clone)]
pub struct FabricHandle {
    cell: DeviceCell<Fabric>,
}

impl IrqSink for FabricHandle {
    fn set_irq(&self, input: u32, level: bool) {
        self.cell.lock().set_input(input, level);
    }
}

impl ApicPeer for FabricHandle {
    fn pic_acknowledge(&self) -> u8 {
        self.cell.lock().acknowledge()
    }

    fn end_of_interrupt(&self, vector: u8) {
        let mut fabric = self.cell.lock();
        let bus = fabric.bus.clone();
        fabric.ioapic.end_of_interrupt(vector, &mut |m| deliver(&bus, &m));
    }
}

impl FabricHandle {
    /// A fabric whose messages go out on `bus`.
    pub fn new(bus: Arc<ApicBus>) -> Self {
        Self { cell: DeviceCell::new(Fabric::new(bus)) }
    }

    /// The device, for reset, save and load.
    pub fn device(&self) -> &DeviceCell<Fabric> {
        &self.cell
    }

    fn line(&self, input: u32) -> IrqLine {
        IrqLine::new(Arc::new(self.clone()), input)
    }

    /// A line to global system interrupt `gsi`; devices that share one use different `source` numbers (0 to 31).
    pub fn gsi(&self, gsi: u32, source: u32) -> IrqLine {
        self.line(gsi + SOURCE * source)
    }

    /// Interrupt pin `pin` (0 is INTA) of the PCI device in `slot`.
    pub fn pci(&self, slot: u8, pin: u8) -> IrqLine {
        self.line(PCI + u32::from(slot & 31) * 4 + u32::from(pin & 3))
    }

    /// The HPET's lines: timers 0 and 1 in legacy replacement mode, and the switch to that mode.
    pub fn hpet(&self) -> ([IrqLine; 2], IrqLine) {
        ([self.line(HPET_LEGACY), self.line(HPET_LEGACY + 1)], self.line(HPET_REPLACES))
    }

    /// PIRQRC of the PIIX3: routes wire `wire` (0 is A) to an ISA interrupt, or nowhere with bit 7.
    pub fn set_pirq_route(&self, wire: usize, value: u8) {
        self.cell.lock().set_pirq_route(wire & 3, value);
    }

    /// Maps the ports of the PICs and the ELCR and the page of the IOAPIC.
    pub fn map(&self, map: &MemoryMap, ports: &AddressSpace, memory: &AddressSpace) {
        let byte = AccessRules::BYTES;
        let cell = &self.cell;
        let regions = [
            ("pic", 0x20, cell_io(cell, Fabric::read_master, Fabric::write_master)),
            ("pic", 0xa0, cell_io(cell, Fabric::read_slave, Fabric::write_slave)),
            ("elcr", 0x4d0, cell_io(cell, Fabric::read_elcr, Fabric::write_elcr)),
        ];
        let mut tx = map.transaction();
        for (name, base, handler) in regions {
            tx.add(ports.root(), base, &Region::io(name, 2, handler, byte), 0);
        }
        let handler = cell_io(cell, Fabric::read_ioapic, Fabric::write_ioapic);
        let dword = AccessRules { implemented: SizeRange::aligned(4, 4), ..AccessRules::default() };
        tx.add(memory.root(), 0xfec0_0000, &Region::io("ioapic", 0x1000, handler, dword), 0);
    }

    /// Text of `info pic`.
    pub fn describe_pic(&self) -> String {
        let fabric = self.cell.lock();
        format!("{}\n{}\n{}", fabric.slave.describe(), fabric.master.describe(), fabric.ioapic.describe())
    }

    /// Does `work` with no message on its way; afterwards messages go to the host's APICs, or to our own.
    pub fn hand_over(&self, to: Option<Arc<dyn HostApics>>, work: &mut dyn FnMut()) {
        let fabric = self.cell.lock();
        fabric.bus.hand_over(to, work);
        fabric.bus.route_pins(fabric.ioapic.messages());
    }

    /// Text of `info ioapic`.
    pub fn describe_ioapic(&self) -> String {
        self.cell.lock().ioapic.describe()
    }

    /// Text of `info irq`.
    pub fn describe_irq(&self) -> String {
        self.cell.lock().describe_irq()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::apic_bus::Mailbox;
    use anura_vmcore::{CpuSignal, Requester};

    struct Rig {
        fabric: FabricHandle,
        ports: AddressSpace,
        mailbox: Arc<Mailbox>,
    }

    fn rig() -> Rig {
        let bus = ApicBus::new();
        let mailbox = Mailbox::new(0, 0, CpuSignal::new());
        bus.connect(vec![mailbox.clone()]);
        let map = MemoryMap::new();
        let memory = map.create_space("memory", &Region::container("system", u64::MAX));
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let fabric = FabricHandle::new(bus);
        fabric.map(&map, &ports, &memory);
        let rig = Rig { fabric, ports, mailbox };
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x28),
            (0xa1, 2),
            (0xa1, 1),
        ] {
            rig.out(port, value);
        }
        rig
    }

    impl Rig {
        fn out(&self, port: u64, value: u64) {
            assert!(self.ports.write(port, Width::W1, value, Requester::Cpu(0)).is_ok());
        }
        fn inp(&self, port: u64) -> u64 {
            self.ports.read(port, Width::W1, Requester::Cpu(0)).0
        }
    }

    #[test]
    fn a_slave_interrupt_comes_through_the_cascade() {
        let rig = rig();
        rig.fabric.gsi(12, 0).set(true);
        assert!(rig.mailbox.lint0());
        assert_eq!(rig.fabric.pic_acknowledge(), 0x2c);
        assert!(!rig.mailbox.lint0());
        rig.out(0x20, 0x0b);
        assert_eq!(rig.inp(0x20), 0x04);
    }

    #[test]
    fn shared_lines_are_an_or_of_their_sources() {
        let rig = rig();
        let (a, b) = (rig.fabric.gsi(4, 0), rig.fabric.gsi(4, 1));
        a.set(true);
        b.set(true);
        rig.out(0x4d0, 0x10);
        assert_eq!(rig.fabric.pic_acknowledge(), 0x24);
        a.set(false);
        rig.out(0x20, 0x20);
        assert!(rig.mailbox.lint0(), "the second source still holds the line");
        b.set(false);
        assert!(!rig.mailbox.lint0());
    }

    #[test]
    fn a_pci_pin_follows_its_route() {
        let rig = rig();
        rig.out(0x4d1, 0x0c);
        let inta = rig.fabric.pci(3, 0); // slot 3, INTA is PIRQC
        inta.set(true);
        assert!(!rig.mailbox.lint0(), "PIRQC is not routed");
        rig.fabric.set_pirq_route(2, 11);
        assert_eq!(rig.fabric.pic_acknowledge(), 0x2b);
        rig.fabric.set_pirq_route(2, 10);
        rig.out(0xa0, 0x20);
        rig.out(0x20, 0x20);
        assert_eq!(rig.fabric.pic_acknowledge(), 0x2a);
    }

    #[test]
    fn the_hpet_replaces_pit_and_rtc_while_it_says_so() {
        let rig = rig();
        let ([timer0, _], replaces) = rig.fabric.hpet();
        let pit = rig.fabric.gsi(0, 0);
        replaces.set(true);
        pit.set(true);
        assert!(!rig.mailbox.lint0());
        timer0.set(true);
        assert_eq!(rig.fabric.pic_acknowledge(), 0x20);
    }

    #[test]
    fn saved_state_loads_without_edges() {
        let rig = rig();
        rig.fabric.pci(2, 1).set(true);
        rig.fabric.set_pirq_route(2, 9);
        let record = rig.fabric.device().lock().save();
        let other = super::FabricHandle::new(ApicBus::new());
        other.device().lock().load(&record).unwrap();
        assert_eq!(other.device().lock().save(), record);
    }
}
