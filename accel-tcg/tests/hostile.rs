//! Random machine states and random code: the engine may fault, halt or shut down, never panic.

use anura_accel::{Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::TestBed;
use anura_accel_tcg::vcpu::SoftVcpu;
use anura_vmcore::CpuSignal;
use anura_x86::regs::{cr0, cr4, dr7, efer, rflags};
use anura_x86::{Attr, CpuState, Segment};

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.bits() % 100 < percent
    }
    /// Small, near an edge, or anything.
    fn value(&mut self) -> u64 {
        match self.bits() % 6 {
            0 => self.bits() % 0x20_0000,
            1 => u64::MAX - self.bits() % 64,
            2 => (1u64 << (self.bits() % 64)).wrapping_sub(self.bits() % 3),
            3 => self.bits() & 0xffff_ffff,
            4 => self.bits() % 0x1_0000,
            _ => self.bits(),
        }
    }
    fn canonical(&mut self) -> u64 {
        ((self.value() as i64) << 16 >> 16) as u64
    }
    fn segment(&mut self) -> Segment {
        let attr = Attr::from_bits(self.bits() as u32 & 0x1_f0ff);
        let base = if self.chance(60) { self.bits() % 0x20_0000 } else { self.value() & 0xffff_ffff };
        let limit = if self.chance(50) { u32::MAX } else { self.value() as u32 };
        Segment { base, limit, attr, selector: self.bits() as u16 }
    }
}

/// A state that `validate` accepts, in any mode.
fn state(r: &mut Random) -> CpuState {
    let mut s = CpuState::reset(0);
    s.gpr = std::array::from_fn(|_| r.value());
    s.rflags = r.bits() & rflags::ALL | rflags::ONE;
    for seg in &mut s.seg {
        *seg = r.segment();
    }
    (s.ldtr, s.tr) = (r.segment(), r.segment());
    s.gdtr.base = r.canonical();
    s.gdtr.limit = r.bits() as u16;
    s.idtr.base = r.canonical();
    s.idtr.limit = r.bits() as u16;
    if r.chance(50) {
        (s.gdtr.base, s.idtr.base) = (r.bits() % 0x10_0000, r.bits() % 0x10_0000);
    }
    s.cr0 = r.bits() & cr0::ALL | cr0::ET;
    if s.cr0 & cr0::PE == 0 {
        s.cr0 &= !cr0::PG;
    }
    if s.cr0 & cr0::CD == 0 {
        s.cr0 &= !cr0::NW;
    }
    s.cr2 = r.value();
    s.cr3 = r.bits() % 0x20_0000;
    s.cr4 =
        r.bits() & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::DE);
    s.cr4 |= r.bits() & (cr4::SMEP | cr4::SMAP | cr4::TSD | cr4::FSGSBASE);
    s.efer = r.bits() & (efer::SCE | efer::LME | efer::NXE);
    if s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0 {
        s.efer |= efer::LMA;
        s.cr4 |= cr4::PAE;
        s.rflags &= !rflags::VM;
    }
    s.pdpte = std::array::from_fn(|_| r.bits() % 0x20_0000);
    s.xcr0 = [1, 3, 7][(r.bits() % 3) as usize];
    s.dr = std::array::from_fn(|_| r.value());
    if r.chance(30) {
        s.dr7 |= r.bits() & dr7::WRITABLE;
    }
    for b in &mut s.xsave.bytes[..512] {
        *b = r.bits() as u8;
    }
    s.xsave.set_mxcsr(r.bits() as u32 & 0xffff);
    s.msrs.lstar = r.canonical();
    s.msrs.star = r.bits();
    s.msrs.sysenter_cs = r.bits() & 0xffff;
    s.rip = if s.is_64bit() && r.chance(70) { r.bits() % 0x20_0000 } else { r.canonical() };
    if !s.is_64bit() {
        s.rip &= 0xffff_ffff;
    }
    s
}

/// Prefixes and opcodes of system instructions more often than chance.
fn code(r: &mut Random, out: &mut [u8]) {
    const LIKELY: &[u8] = &[
        0x0f, 0x66, 0x67, 0x48, 0xf3, 0xf2, 0xf0, 0x64, 0x65, 0x2e, 0x01, 0x00, 0x20, 0x22, 0xcf, 0xcb, 0x9a,
        0xea, 0xff, 0xcd, 0xcc, 0x8e, 0xae, 0xc7, 0xa4, 0xa5, 0xa7, 0x6c, 0x6f, 0xe4, 0xee, 0xc8, 0xc9, 0x62,
        0xc4, 0xd9, 0xdb, 0xdf, 0x05, 0x07, 0x34, 0x35, 0x30, 0x32, 0xa2, 0x31, 0xfa, 0xfb, 0x9c, 0x9d, 0x60,
        0x61, 0x63,
    ];
    for b in out {
        *b = if r.chance(60) { LIKELY[(r.bits() % LIKELY.len() as u64) as usize] } else { r.bits() as u8 };
    }
}

#[test]
fn random_states_and_code_never_panic_the_engine() {
    let bed = TestBed::new(2 << 20, "max");
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    let mut r = Random(0x1234_5678_9abc_def1);
    let rounds: u64 =
        std::env::var("ANURA_HOSTILE_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(4_000);
    let mut ran = 0;
    for round in 0..rounds {
        let mut page = [0; 4096];
        code(&mut r, &mut page);
        let at = r.bits() % 512 * 4096;
        bed.ram.write(at, &page);
        // Tables that mostly lead somewhere.
        for _ in 0..64 {
            let entry = r.bits() % 512 * 4096 | r.bits() & 0x8000_0000_0000_01e7 | 7;
            bed.ram.write(r.bits() % 0x4_0000 * 8, &entry.to_le_bytes());
        }
        let mut s = state(&mut r);
        if r.chance(60) {
            s.seg[1].base = 0;
            s.seg[1].limit = u32::MAX;
            s.rip = at + r.bits() % 4000;
        }
        if s.validate().is_err() {
            continue;
        }
        vcpu.set_state(&s).expect("a state that was validated");
        let exit = vcpu.run(Budget::Instructions(100));
        if let VcpuExit::Failed(e) = &exit {
            panic!("round {round}: {e}\n{s}");
        }
        ran += 1;
        let after = vcpu.state();
        after
            .validate()
            .unwrap_or_else(|e| panic!("round {round}: left an impossible state: {e}\n{s}\n{after}"));
    }
    assert!(ran * 2 > rounds, "most states were refused");
}
