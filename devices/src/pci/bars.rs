//! Base address registers: where a function's regions appear, as the guest programs it.

use anura_memory::{MemoryMap, Region};

use super::config::{ConfigSpace, reg};

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 32-bit memory that may be prefetched.
    Prefetchable32,
    /// The expansion ROM, which has a register of its own with an enable bit in it.
    Rom,
}

/// What [`Bars::address`] calls the expansion ROM.
pub const ROM_INDEX: u8 = 6;

struct Bar {
    index: u8,
    /// Where the register is.
    at: u8,
    kind: BarKind,
    region: Region,
    size: u32,
    mapped: Option<u64>,
}

/// The base address registers of one function.
pub struct Bars {
    map: MemoryMap,
    memory: Region,
    ports: Region,
    bars: Vec<Bar>,
}

impl Bars {
    /// Registers that map into these containers.
    pub fn new(map: &MemoryMap, memory: &Region, ports: &Region) -> Self {
        Self { map: map.clone(), memory: memory.clone(), ports: ports.clone(), bars: Vec::new() }
    }

    /// Adds register `index` for `region`, whose size is a power of two, and prepares `config` for it.
    pub fn add(&mut self, config: &mut ConfigSpace, index: u8, kind: BarKind, region: &Region) {
        let size = region.size() as u32;
        debug_assert!(size.is_power_of_two(), "a BAR's size is a power of two");
        let at = reg::BAR0 + index * 4;
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 | BarKind::Rom => 0,
            BarKind::Prefetchable32 => 8,
        };
        config.preset(at, flags);
        let fixed = if kind == BarKind::Io { 0x3 } else { 0xf };
        config.allow(at, &(!(size - 1) & !fixed).to_le_bytes());
        self.bars.push(Bar { index, at, kind, region: region.clone(), size, mapped: None });
    }

    /// Adds the expansion ROM `region`, whose size is a power of two of at least 2 KiB.
    pub fn add_rom(&mut self, config: &mut ConfigSpace, region: &Region) {
        let size = region.size() as u32;
        debug_assert!(size.is_power_of_two() && size >= 1 << 11, "an expansion ROM's size is a power of two");
        config.allow(reg::ROM, &(!(size - 1) | 1).to_le_bytes());
        let bar = Bar {
            index: ROM_INDEX,
            at: reg::ROM,
            kind: BarKind::Rom,
            region: region.clone(),
            size,
            mapped: None,
        };
        self.bars.push(bar);
    }

    /// Where register `index` maps its region now.
    pub fn address(&self, index: u8) -> Option<u64> {
        self.bars.iter().find(|bar| bar.index == index)?.mapped
    }

    /// Brings the mappings in line with `config`; call after each write to it and after `load` and `reset`.
    pub fn update(&mut self, config: &ConfigSpace) {
        for bar in &mut self.bars {
            let raw = config.u32(bar.at);
            let (enabled, base, container, last) = match bar.kind {
                BarKind::Io => (config.io_enabled(), raw & !0x3, &self.ports, 0xffff),
                BarKind::Rom => {
                    (config.memory_enabled() && raw & 1 != 0, raw & !0x7ff, &self.memory, 0xfebf_ffff)
                }
                _ => (config.memory_enabled(), raw & !0xf, &self.memory, 0xfebf_ffff),
            };
            // Zero means not programmed, and the window ends where APICs and firmware begin; that is also
            // what sizing by writing all ones gives.
            let fits = base != 0 && base.checked_add(bar.size - 1).is_some_and(|end| end <= last);
            let wanted = (enabled && fits).then_some(u64::from(base));
            if wanted == bar.mapped {
                continue;
            }
            let mut tx = self.map.transaction();
            if bar.mapped.is_some() {
                tx.remove(container, &bar.region);
            }
            if let Some(base) = wanted {
                tx.add(container, base, &bar.region, 1);
            }
            bar.mapped = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;
    use anura_memory::{AccessRules, cell_io};
    use anura_vmcore::{DeviceCell, Requester, Width};

    #[test]
    fn a_bar_sizes_maps_moves_and_unmaps() {
        let map = MemoryMap::new();
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let memory = Region::container("pci", u64::MAX);
        let cell = DeviceCell::new(());
        let region = Region::io("bm", 16, cell_io(&cell, |_, _| 0x5a, |_, _, _| {}), AccessRules::BYTES);
        let id = Identity { vendor: 1, device: 2, revision: 0, class: 0, multifunction: false, pin: 0 };
        let mut config = ConfigSpace::new(id);
        let mut bars = Bars::new(&map, &memory, ports.root());
        bars.add(&mut config, 4, BarKind::Io, &region);
        config.write(0x20, Width::W4, u32::MAX);
        assert_eq!(config.u32(0x20), 0xffff_fff1);
        config.write(reg::COMMAND, Width::W2, 1);
        bars.update(&config);
        assert_eq!(bars.address(4), None);
        for base in [0xc040u32, 0xd000] {
            config.write(0x20, Width::W4, base);
            bars.update(&config);
            assert_eq!(ports.read(u64::from(base), Width::W1, Requester::Cpu(0)).0, 0x5a);
        }
        assert_eq!(ports.read(0xc040, Width::W1, Requester::Cpu(0)).0, 0xff);
        config.write(reg::COMMAND, Width::W2, 0);
        bars.update(&config);
        assert_eq!(ports.read(0xd000, Width::W1, Requester::Cpu(0)).0, 0xff);
    }

    #[test]
    fn an_expansion_rom_appears_when_its_own_bit_and_memory_are_on() {
        let map = MemoryMap::new();
        let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
        let memory = map.create_space("memory", &Region::container("pci", u64::MAX));
        let block = anura_memory::RamBlock::new("rom", 0x1000).unwrap();
        block.write(0, &[0x55, 0xaa]);
        let id = Identity { vendor: 1, device: 2, revision: 0, class: 0, multifunction: false, pin: 0 };
        let mut config = ConfigSpace::new(id);
        let mut bars = Bars::new(&map, memory.root(), ports.root());
        bars.add_rom(&mut config, &Region::rom("rom", block));
        config.write(reg::ROM, Width::W4, 0xffff_fffe);
        assert_eq!(config.u32(reg::ROM), 0xffff_f000);
        for (rom, command, found) in
            [(0xfebe_0000u32, 2, 0xff), (0xfebe_0001, 0, 0xff), (0xfebe_0001, 2, 0x55)]
        {
            config.write(reg::ROM, Width::W4, rom);
            config.write(reg::COMMAND, Width::W2, command);
            bars.update(&config);
            assert_eq!(memory.read(0xfebe_0000, Width::W1, Requester::Cpu(0)).0, found);
        }
    }
}
