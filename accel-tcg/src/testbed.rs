//! The smallest machine around one processor: RAM at 0, and a quiet board.
//!
//! Unit tests use it, and the oracle runner, which runs instructions on the host and here.
use crate::env::{Cpu, VmShared};
use anura_accel::quiet::EmptyBoard;
use anura_accel::{VmConfig, VmSpaces};
use anura_memory::{AddressSpace, MemoryMap, RamBlock, Region};
use anura_vmcore::{Clock, CpuSignal};
use anura_x86::regs::{cr0, cr4, efer};
use anura_x86::segment::index::{CS, SS};
use anura_x86::{CpuModel, FeatureSet, Segment, TableReg, Topology};
use std::sync::Arc;

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Spaces and configuration of the machine.
pub struct TestBed {
    /// The RAM.
    pub ram: Arc<RamBlock>,
    /// Spaces.
    pub spaces: VmSpaces,
    /// Configuration.
    pub config: VmConfig,
    /// The board, as the configuration has it.
    pub board: Arc<EmptyBoard>,
}

impl TestBed {
    /// A machine with `bytes` of RAM and the CPU model of the given name.
    ///
    /// # Panics
    /// If the host has no memory for it, or the model does not exist.
    pub fn new(bytes: u64, model: &str) -> Self {
        let ram = RamBlock::new("ram", bytes).expect("the host has memory for a test");
        let memory = Region::container("memory", 1 << 40);
        let ports = Region::container("io", 1 << 16);
        let map = MemoryMap::new();
        let mut t = map.transaction();
        t.add(&memory, 0, &Region::ram("ram", ram.clone()), 0);
        t.commit();
        let space = |name: &str, root: &Region| -> AddressSpace { map.create_space(name, root) };
        let spaces = VmSpaces {
            memory: space("memory", &memory),
            ports: space("io", &ports),
            clock: Clock::stepped(),
            ram: vec![ram.clone()],
        };
        let available = FeatureSet::available();
        let model = CpuModel::named(model, &available).expect("a model that exists");
        let board = Arc::new(EmptyBoard::default());
        let config = VmConfig {
            platform: board.clone(),
            model,
            topology: Topology::default(),
            tsc_khz: 1_000_000,
            counted: false,
        };
        Self { ram, spaces, config, board }
    }

    /// What its processors share.
    pub fn shared(&self) -> Arc<VmShared> {
        VmShared::new(&self.spaces, &self.config)
    }

    /// A processor after power-up.
    pub fn cpu(&self) -> Cpu {
        Cpu::new(self.shared(), 0, CpuSignal::new())
    }

    /// Writes a 64-bit word of RAM.
    pub fn put(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes());
    }

    /// Reads a 64-bit word of RAM.
    pub fn get(&self, at: u64) -> u64 {
        let mut b = [0; 8];
        self.ram.read(at, &mut b);
        u64::from_le_bytes(b)
    }

    /// Adds a 4 KiB page to the 4-level tables at `root`; tables come from `next`, upward.
    pub fn map_page(&self, root: u64, next: &mut u64, va: u64, pte: u64) {
        let mut table = root;
        for shift in [39, 30, 21] {
            let at = table + (va >> shift & 511) * 8;
            if self.get(at) & 1 == 0 {
                self.put(at, *next | 7);
                *next += 0x1000;
            }
            table = self.get(at) & 0x000f_ffff_ffff_f000;
        }
        self.put(table + (va >> 12 & 511) * 8, pte);
    }
}

/// Puts a processor into flat 64-bit code at the given privilege level, with tables at `cr3`.
pub fn enter_long_mode(cpu: &mut Cpu, cr3: u64, cpl: u8) {
    let e = &mut cpu.env;
    let ring = u32::from(cpl) << 5;
    e.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP;
    e.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE;
    e.cr3 = cr3;
    e.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    for i in 0..6 {
        e.seg[i] = Segment::new(0x20 | u16::from(cpl), 0, u32::MAX, 0xc093 | ring);
    }
    e.seg[CS] = Segment::new(0x10 | u16::from(cpl), 0, u32::MAX, 0xa09b | ring);
    e.seg[SS].selector = 0x18 | u16::from(cpl);
    e.ldtr = Segment::null(0);
    e.gdtr = TableReg::default();
    e.idtr = TableReg::default();
    e.fpu = anura_x86::XsaveImage::init();
    cpu.after_load();
}
