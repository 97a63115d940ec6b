//! Random traffic on a whole board, the same for the same seed: ports, memory-mapped registers, PCI configuration, DMA,
//! keys, time, resets, and saving and loading in between.
//!
//! What there is to reach is read from the memory map as it is at the moment, so registers that the traffic itself maps
//! count too. A register is a byte of an I/O region; of large windows each 256th part counts as one.

use std::collections::{BTreeMap, BTreeSet};

use anura_machine::States;
use anura_machine::testing::TestMachine;
use anura_memory::{AddressSpace, RegionKind};
use anura_vmcore::{MachineRequest, ResetKind, Width};

/// A small generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value as drivers write them: small ones, single bits and all ones more often than others.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(32),
            3 => self.below(256),
            _ => self.number(),
        }
    }
}

/// A piece of registers at an address.
#[derive(Clone, Debug)]
struct Target {
    memory: bool,
    start: u64,
    size: u64,
    name: String,
    offset: u64,
    region_size: u64,
}

/// Ports that move as the guest programs them.
const MOVING: [&str; 5] = ["acpi-", "apm-", "piix", "pm-", "vga.mmio"];

impl Target {
    /// Regions of one name are told apart by address, but one that moves is the same wherever it is.
    fn key(&self) -> u64 {
        let fixed = !self.memory && !MOVING.iter().any(|name| self.name.starts_with(name));
        if fixed { self.start.wrapping_sub(self.offset) } else { 0 }
    }
}

/// Ports of registers that an index chooses: index port, data port, indices.
const INDEXED: [(&str, u16, u16, u64); 5] = [
    ("rtc index", 0x70, 0x71, 128),
    ("vga sequencer index", 0x3c4, 0x3c5, 8),
    ("vga graphics index", 0x3ce, 0x3cf, 16),
    ("vga crtc index", 0x3d4, 0x3d5, 25),
    ("vga attribute index", 0x3c0, 0x3c1, 21),
];
const IOAPIC: u64 = 0xfec0_0000;
/// Parts of a large window that count as a register each.
const PARTS: u64 = 256;

/// Reached and existing registers of a name.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    reached: BTreeSet<(u64, u64)>,
    total: BTreeMap<u64, u64>,
}

impl Coverage {
    /// Registers that were reached.
    pub fn reached(&self) -> usize {
        self.reached.len()
    }

    /// Registers that exist.
    pub fn total(&self) -> u64 {
        self.total.values().sum()
    }
}

/// A run.
pub struct Fuzz {
    machine: TestMachine,
    rng: Rng,
    targets: Vec<Target>,
    /// Registers by name of region, or of what is indexed.
    pub coverage: BTreeMap<String, Coverage>,
    /// Accesses made.
    pub accesses: u64,
    /// States saved and loaded.
    pub round_trips: u64,
    /// Resets made.
    pub resets: u64,
}

impl Fuzz {
    /// A run with this seed.
    pub fn new(seed: u64) -> Self {
        let mut fuzz = Self {
            machine: TestMachine::pc(),
            rng: Rng::new(seed),
            targets: Vec::new(),
            coverage: BTreeMap::new(),
            accesses: 0,
            round_trips: 0,
            resets: 0,
        };
        fuzz.look_around();
        fuzz
    }

    /// The machine.
    pub fn machine(&self) -> &TestMachine {
        &self.machine
    }

    /// Reads from the map what there is to reach.
    fn look_around(&mut self) {
        let ranges = |space: &AddressSpace, memory: bool| {
            let view = space.view();
            let io = view.ranges().iter().filter(|r| matches!(r.region.kind(), RegionKind::Io(_)));
            let targets = io.map(|r| Target {
                memory,
                start: r.start,
                size: r.size,
                name: r.region.name().to_owned(),
                offset: r.offset,
                region_size: r.region.size(),
            });
            targets.collect::<Vec<_>>()
        };
        self.targets = ranges(&self.machine.board().ports, false);
        self.targets.extend(ranges(&self.machine.board().memory, true));
        for target in &self.targets {
            let coverage = self.coverage.entry(target.name.clone()).or_default();
            let key = target.key();
            coverage.total.insert(key, target.region_size.min(if target.memory { PARTS } else { u64::MAX }));
        }
        for devfn in self.machine.board().pci.occupied() {
            let name = format!("pci {:02x}.{}", devfn >> 3, devfn & 7);
            self.coverage.entry(name).or_default().total.insert(0, 256);
        }
        for (name, _, _, indices) in INDEXED {
            self.coverage.entry(name.to_owned()).or_default().total.insert(0, indices);
        }
        self.coverage.entry("ioapic index".to_owned()).or_default().total.insert(0, 64);
        self.coverage.entry("vbe index".to_owned()).or_default().total.insert(0, 11);
        self.coverage.entry("lapic".to_owned()).or_default().total.insert(0, 64);
    }

    fn reach(&mut self, name: &str, key: u64, register: u64, count: u64) {
        self.accesses += 1;
        if let Some(coverage) = self.coverage.get_mut(name) {
            (register..register + count).for_each(|r| {
                coverage.reached.insert((key, r));
            });
        }
    }

    /// One random thing.
    pub fn step(&mut self) {
        match self.rng.below(100) {
            0..=54 => self.register(),
            55..=64 => self.indexed(),
            65..=74 => self.configuration(),
            75..=79 => self.local_apic(),
            80..=83 => self.dma(),
            84..=86 => self.input(),
            87..=97 => {
                let ns = match self.rng.below(64) {
                    0 => self.rng.below(5_000_000),
                    _ => self.rng.below(20_000),
                };
                self.machine.advance(ns);
            }
            98 => {
                self.machine.interrupt();
            }
            _ => self.look_around(),
        }
        while let Some(request) = self.machine.request() {
            if let MachineRequest::Reset(_) = request
                && self.rng.below(16) == 0
            {
                self.reset();
            }
        }
    }

    /// All devices back to their start.
    pub fn reset(&mut self) {
        self.resets += 1;
        if self.rng.below(4) == 0 {
            for (_, device) in self.machine.board().devices() {
                device.reset(ResetKind::PowerOn);
            }
        }
        self.machine.reset();
        self.look_around();
    }

    fn register(&mut self) {
        let n = self.rng.below(self.targets.len() as u64) as usize;
        let target = self.targets[n].clone();
        let width = self.rng.pick(&[Width::W1, Width::W1, Width::W2, Width::W4]);
        let mut at = self.rng.below(target.size);
        if self.rng.below(4) != 0 {
            at &= !(width.bytes() as u64 - 1);
        }
        let (write, value) = (self.rng.below(2) == 0, self.rng.value());
        let address = target.start + at;
        match (target.memory, write) {
            (false, false) => drop(self.machine.port_read(address as u16, width)),
            (false, true) => self.machine.port_write(address as u16, width, value as u32),
            (true, false) => drop(self.machine.read(address, width)),
            (true, true) => self.machine.write(address, width, value),
        }
        let key = target.key();
        let scale = if target.memory { target.region_size.div_ceil(PARTS) } else { 1 };
        let offset = target.offset + at;
        let last = (offset + width.bytes() as u64).min(target.region_size);
        let (first, end) = (offset / scale, last.div_ceil(scale));
        self.reach(&target.name, key, first, end - first);
    }

    fn indexed(&mut self) {
        let value = self.rng.value();
        let write = self.rng.below(2) == 0;
        match self.rng.below(8) {
            0 => {
                let index = self.rng.below(64);
                self.machine.write(IOAPIC, Width::W4, index);
                if write {
                    self.machine.write(IOAPIC + 0x10, Width::W4, value);
                } else {
                    self.machine.read(IOAPIC + 0x10, Width::W4);
                }
                self.reach("ioapic index", 0, index, 1);
            }
            1 => {
                let index = self.rng.below(11);
                self.machine.outw(0x1ce, index as u16);
                if write {
                    let value = if index == 4 { value & 0xe3 } else { self.rng.below(4096) };
                    self.machine.outw(0x1cf, value as u16);
                } else {
                    self.machine.inw(0x1d0);
                }
                self.reach("vbe index", 0, index, 1);
            }
            2 => {
                // Whole commands of the controllers with command bytes.
                let (port, ready) = self.rng.pick(&[(0x60, 0x64), (0x64, 0x64), (0x3f5, 0x3f4)]);
                self.machine.inb(ready);
                let command = self.rng.below(256) as u8;
                self.machine.outb(port, command);
                for _ in 0..self.rng.below(10) {
                    let byte = self.rng.value() as u8;
                    self.machine.outb(if port == 0x64 { 0x60 } else { port }, byte);
                }
            }
            _ => {
                let (name, select, data, indices) = self.rng.pick(&INDEXED);
                let index = self.rng.below(indices);
                if select == 0x3c0 {
                    self.machine.inb(0x3da);
                }
                self.machine.outb(select, index as u8);
                match (write, select) {
                    (true, 0x3c0) => self.machine.outb(0x3c0, value as u8),
                    (true, _) => self.machine.outb(data, value as u8),
                    (false, _) => drop(self.machine.inb(data)),
                }
                self.reach(name, 0, index, 1);
            }
        }
    }

    fn configuration(&mut self) {
        let places = self.machine.board().pci.occupied();
        let devfn = self.rng.pick(&places);
        let width = self.rng.pick(&[Width::W1, Width::W2, Width::W4]);
        let offset = self.rng.below(256) as u8 & !(width.bytes() as u8 - 1);
        // Most writes are elsewhere than in command and base address registers, so that functions stay reachable.
        let mapping = (0x04..0x28).contains(&offset);
        if self.rng.below(2) == 0 && (!mapping || self.rng.below(8) == 0) {
            let value = self.rng.value() as u32;
            self.machine.pci_write(devfn, offset, width, value);
        } else {
            self.machine.pci_read(devfn, offset, width);
        }
        let name = format!("pci {:02x}.{}", devfn >> 3, devfn & 7);
        self.reach(&name, 0, u64::from(offset), width.bytes() as u64);
    }

    fn local_apic(&mut self) {
        let register = self.rng.below(64);
        let (at, value) = (register as u32 * 16, self.rng.value() as u32);
        if self.rng.below(2) == 0 {
            self.machine.apic().mmio_write(at, value);
        } else {
            self.machine.apic().mmio_read(at);
        }
        self.reach("lapic", 0, register, 1);
    }

    fn dma(&mut self) {
        match self.rng.below(3) {
            // A fw_cfg request somewhere, mostly in RAM.
            0 => {
                let at = self.rng.below(0x9_0000) & !15;
                let control = self.rng.below(32) as u32 | (self.rng.below(64) as u32) << 16;
                let length = if self.rng.below(8) == 0 {
                    self.rng.number() as u32
                } else {
                    self.rng.below(4096) as u32
                };
                let address =
                    if self.rng.below(8) == 0 { self.rng.number() } else { self.rng.below(0x9_0000) };
                let mut request = control.to_be_bytes().to_vec();
                request.extend(length.to_be_bytes());
                request.extend(address.to_be_bytes());
                self.machine.put_bytes(at, &request);
                self.machine.outl(0x514, 0);
                self.machine.outl(0x518, (at as u32).swap_bytes());
                self.accesses += 3;
            }
            1 => {
                let channel = self.rng.below(8) as u8;
                let mut data = vec![0x5a; self.rng.below(600) as usize];
                self.machine.board().isa_dma.lock().transfer(channel, &mut data);
            }
            _ => {
                let (at, value) = (self.rng.below(32 << 20), self.rng.number());
                self.machine.write(at, Width::W8, value);
            }
        }
    }

    fn input(&mut self) {
        let Some(keyboard) = &self.machine.board().keyboard else { return };
        let mut keyboard = keyboard.lock();
        if self.rng.below(2) == 0 {
            let page = self.rng.pick(&[0u16, 0, 0xe0, 0xe1, 0x12]);
            keyboard.key(page << 8 | self.rng.below(256) as u16, self.rng.below(2) == 0);
        } else {
            let mut delta = || self.rng.number() as i32 >> self.rng.below(32);
            let (dx, dy, dz) = (delta(), delta(), delta());
            keyboard.mouse_move(dx, dy, dz, self.rng.number() as u8);
        }
    }

    /// Saves the machine, loads it into a new one and says what differs, if anything does.
    pub fn round_trip(&mut self) -> Result<(), String> {
        self.round_trips += 1;
        let saved = self.machine.save();
        let copy = TestMachine::pc();
        copy.load(&saved).map_err(|e| format!("a state that was saved does not load: {e}"))?;
        difference(&saved, &copy.save()).map_or(Ok(()), Err)
    }
}

/// What two states of the same board differ in.
pub fn difference(a: &States, b: &States) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} parts and {} parts", a.len(), b.len()));
    }
    a.iter().zip(b).find(|(a, b)| a != b).map(|((path, old), (_, new))| {
        let field = old.numbers().find(|n| old.value(*n) != new.value(*n));
        let values = field.map(|n| format!("field {n}: {:?} became {:?}", old.value(n), new.value(n)));
        format!("{path}: {}", values.unwrap_or_else(|| "other fields".to_owned()))
    })
}
