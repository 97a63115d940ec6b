//! Intel 82441FX PCI and memory controller (440FX), datasheet 290549.
//!
//! What it does to the machine is memory attributes: the PAM registers say for each piece of C0000h to FFFFFh
//! whether reads and writes go to DRAM or to the PCI bus, and SMRAM opens DRAM behind the VGA window. DRAM timing
//! registers keep what is written. As a machine's RAM is one block, DRAM row boundaries are preset, not decoded.
//! Left out: write-only DRAM (PAM mode 2) goes to PCI both ways.

use anura_memory::{MemoryMap, Region};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind, Width};

use crate::pci::{ConfigSpace, Identity, PciFunction};

/// First of the PAM registers.
pub const PAM0: u8 = 0x59;
/// System management RAM control.
pub const SMRAM: u8 = 0x72;
const DRB0: u8 = 0x60;

const SMRAM_OPEN: u8 = 0x40;
const SMRAM_CLOSED: u8 = 0x20;
const SMRAM_LOCK: u8 = 0x10;

/// One piece of the upper memory area with its two possible DRAM mappings.
struct Segment {
    register: u8,
    shift: u8,
    ram: Region,
    rom: Region,
}

/// The host bridge, function 00:00.0.
pub struct I440fx {
    // Wiring.
    map: MemoryMap,
    segments: Vec<Segment>,
    smram: Region,
    // State.
    config: ConfigSpace,
}

/// Start, length, register (from PAM0) and shift of each piece, by the datasheet's table of PAM registers.
const PIECES: [(u64, u64, u8, u8); 13] = [
    (0xf_0000, 0x1_0000, 0, 4),
    (0xc_0000, 0x4000, 1, 0),
    (0xc_4000, 0x4000, 1, 4),
    (0xc_8000, 0x4000, 2, 0),
    (0xc_c000, 0x4000, 2, 4),
    (0xd_0000, 0x4000, 3, 0),
    (0xd_4000, 0x4000, 3, 4),
    (0xd_8000, 0x4000, 4, 0),
    (0xd_c000, 0x4000, 4, 4),
    (0xe_0000, 0x4000, 5, 0),
    (0xe_4000, 0x4000, 5, 4),
    (0xe_8000, 0x4000, 6, 0),
    (0xe_c000, 0x4000, 6, 4),
];

impl I440fx {
    /// A bridge that maps pieces of `ram` (the RAM block as a region) into `system` over what the bus shows there.
    pub fn new(map: &MemoryMap, system: &Region, ram: &Region, ram_below_4g: u64) -> DeviceCell<Self> {
        let mut tx = map.transaction();
        let mut segments = Vec::new();
        for (start, length, register, shift) in PIECES {
            let piece = |name: &str| Region::alias(name, ram, start, length);
            let segment =
                Segment { register: PAM0 + register, shift, ram: piece("pam-ram"), rom: piece("pam-rom") };
            tx.set_readonly(&segment.rom, true);
            for region in [&segment.ram, &segment.rom] {
                tx.set_enabled(region, false);
                tx.add(system, start, region, 1);
            }
            segments.push(segment);
        }
        let smram = Region::alias("smram-region", ram, 0xa_0000, 0x2_0000);
        tx.set_enabled(&smram, false);
        tx.add(system, 0xa_0000, &smram, 2);
        tx.commit();
        let id = Identity {
            vendor: 0x8086,
            device: 0x1237,
            revision: 2,
            class: 0x06_0000,
            multifunction: false,
            pin: 0,
        };
        let mut config = ConfigSpace::new(id);
        config.preset_u16(0x06, 0x0280);
        config.preset(0x50, 0x00);
        // PMCCFG, DETURBO, DBC, AXC, DRT, DRAMC, DRAMT, DRB, FDHC, MTT, CLT, SMRAM, ERRCMD, ERRSTS, TRC.
        config.allow(0x50, &[0xff, 0xff, 0xff, 0xff]);
        config.allow(0x55, &[0xff, 0xff, 0xff, 0xff]);
        config.allow(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.allow(DRB0, &[0xff; 8]);
        config.allow(0x68, &[0xc0]);
        config.allow(0x70, &[0xff, 0xff, 0x78]);
        config.allow(0x90, &[0xff]);
        config.allow_clear(0x91, 0x11);
        config.allow(0x93, &[0x06]);
        config.preset(0x57, 0x01);
        config.preset(SMRAM, 0x02);
        // Row boundaries in units of 8 MiB, as far as the register goes.
        let rows = u8::try_from(ram_below_4g >> 23).unwrap_or(u8::MAX);
        (0..8).for_each(|n| config.preset(DRB0 + n, rows));
        DeviceCell::new(Self { map: map.clone(), segments, smram, config })
    }

    /// Brings the memory map in line with PAM and SMRAM, in one transaction.
    fn update_memory(&self) {
        let mut tx = self.map.transaction();
        for segment in &self.segments {
            let mode = self.config.byte(segment.register) >> segment.shift & 3;
            tx.set_enabled(&segment.ram, mode == 3);
            tx.set_enabled(&segment.rom, mode == 1);
        }
        let smram = self.config.byte(SMRAM);
        tx.set_enabled(&self.smram, smram & SMRAM_OPEN != 0 && smram & SMRAM_CLOSED == 0);
    }
}

impl PciFunction for I440fx {
    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) {
        let smram = self.config.byte(SMRAM);
        self.config.write(offset, width, value);
        if smram & SMRAM_LOCK != 0 {
            self.config.set_byte(SMRAM, smram);
        } else if self.config.byte(SMRAM) & SMRAM_LOCK != 0 {
            // Locking also closes.
            self.config.set_byte(SMRAM, self.config.byte(SMRAM) & !SMRAM_OPEN);
        }
        self.update_memory();
    }
}

impl Device for I440fx {
    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.update_memory();
    }

    fn save(&self) -> Record {
        let Self { map: _, segments: _, smram: _, config } = self;
        Record::new(1).with(1, config.save())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        self.config.load(&r.get(1)?)?;
        r.finish()?;
        self.update_memory();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_memory::{AddressSpace, RamBlock};
    use anura_vmcore::Requester;

    fn rig() -> (AddressSpace, DeviceCell<I440fx>) {
        let map = MemoryMap::new();
        let system = Region::container("system", u64::MAX);
        let memory = map.create_space("memory", &system);
        let ram = Region::ram("pc.ram", RamBlock::new("pc.ram", 0x20_0000).unwrap());
        let bios = Region::rom("pc.bios", RamBlock::new("pc.bios", 0x2_0000).unwrap());
        let mut tx = map.transaction();
        tx.add(&system, 0xe_0000, &bios, 0);
        tx.commit();
        let bridge = I440fx::new(&map, &system, &ram, 0x20_0000);
        (memory, bridge)
    }

    fn poke(memory: &AddressSpace, at: u64, value: u64) -> u64 {
        let _ = memory.write(at, Width::W1, value, Requester::Cpu(0));
        memory.read(at, Width::W1, Requester::Cpu(0)).0
    }

    #[test]
    fn each_pam_field_switches_its_own_piece() {
        let (memory, bridge) = rig();
        for (start, _, register, shift) in PIECES {
            let at = PAM0 + register;
            assert_ne!(poke(&memory, start, 0x11), 0x11, "{start:#x} is not RAM at reset");
            bridge.lock().config_write(at, Width::W1, 3 << shift);
            assert_eq!(poke(&memory, start, 0x22), 0x22);
            bridge.lock().config_write(at, Width::W1, 1 << shift);
            assert_eq!(poke(&memory, start, 0x33), 0x22, "{start:#x} reads RAM and drops writes");
            bridge.lock().config_write(at, Width::W1, 0);
            assert_ne!(poke(&memory, start, 0x22), 0x22);
        }
    }

    #[test]
    fn smram_opens_closes_and_locks() {
        let (memory, bridge) = rig();
        bridge.lock().config_write(SMRAM, Width::W1, 0x4a);
        assert_eq!(poke(&memory, 0xa_0000, 0x77), 0x77);
        bridge.lock().config_write(SMRAM, Width::W1, 0x1a);
        assert_eq!(poke(&memory, 0xa_0000, 0x78), 0xff);
        bridge.lock().config_write(SMRAM, Width::W1, 0x4a);
        assert_eq!(bridge.lock().config_read(SMRAM, Width::W1), 0x1a, "locked until reset");
        bridge.lock().reset(ResetKind::System);
        assert_eq!(bridge.lock().config_read(SMRAM, Width::W1), 0x02);
    }

    #[test]
    fn the_ids_are_those_of_the_datasheet_and_state_survives_a_save() {
        let (memory, bridge) = rig();
        assert_eq!(bridge.lock().config_read(0, Width::W4), 0x1237_8086);
        bridge.lock().config_write(PAM0 + 1, Width::W1, 0x33);
        poke(&memory, 0xc_0000, 0x44);
        let record = bridge.lock().save();
        bridge.lock().reset(ResetKind::System);
        bridge.lock().load(&record).unwrap();
        assert_eq!(poke(&memory, 0xc_0000, 0x45), 0x45);
        assert_eq!(bridge.lock().save(), record);
    }
}
