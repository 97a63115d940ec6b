//! What the current mode is, and what may be written to the registers that make it.
use crate::env::{Cpu, Env, Exec, Fault};
use anura_x86::regs::{cr0, cr3, cr4, efer, rflags, xcr0};
use anura_x86::segment::index::{CS, DS, ES, SS};
use anura_x86::{Feature, paging};

/// Bits of the mode key: whatever changes the meaning of code bytes, and nothing else.
pub mod key {
    /// 64-bit code.
    pub const L64: u32 = 1 << 0;
    /// 32-bit default operand and address size (CS.D; clear in 64-bit code).
    pub const CODE32: u32 = 1 << 1;
    /// 32-bit stack (SS.B; clear in 64-bit code).
    pub const STACK32: u32 = 1 << 2;
    /// Shift of the two CPL bits.
    pub const CPL_SHIFT: u32 = 3;
    /// Both CPL bits.
    pub const CPL: u32 = 3 << CPL_SHIFT;
    /// Protected mode (PE set, VM clear).
    pub const PROT: u32 = 1 << 5;
    /// Virtual-8086 mode.
    pub const V86: u32 = 1 << 6;
    /// CS base is zero.
    pub const CS_BASE0: u32 = 1 << 7;
    /// DS, ES and SS have base zero, the largest limit, and are writable, readable, expand-up.
    pub const FLAT: u32 = 1 << 8;
    /// CS is flat: base zero and the largest limit.
    pub const CS_FLAT: u32 = 1 << 9;
    /// CR0.EM.
    pub const EM: u32 = 1 << 10;
    /// CR0.TS.
    pub const TS: u32 = 1 << 11;
    /// CR0.MP.
    pub const MP: u32 = 1 << 12;
    /// SSE instructions may run: CR4.OSFXSR and not CR0.EM.
    pub const SSE: u32 = 1 << 13;
    /// AVX instructions may run: CR4.OSXSAVE and XCR0 bits 2:1, protected mode.
    pub const AVX: u32 = 1 << 14;
    /// MXCSR or FCW has an unmasked exception.
    pub const FPX: u32 = 1 << 15;
    /// Alignment is checked: AM, AC, CPL 3.
    pub const AC: u32 = 1 << 16;
    /// CR4.OSXSAVE.
    pub const OSXSAVE: u32 = 1 << 17;
    /// CR4.FSGSBASE.
    pub const FSGSBASE: u32 = 1 << 18;
    /// CR4.OSXMMEXCPT.
    pub const OSXMMEXCPT: u32 = 1 << 19;
    /// EFER.LMA.
    pub const LMA: u32 = 1 << 20;
    /// All bits that a key can have.
    pub const ALL: u32 = (1 << 24) - 1;
    /// What depends on no segment and no flag, in long mode.
    pub(super) const OF_SYSTEM: u32 = EM | TS | MP | SSE | AVX | FPX | OSXSAVE | FSGSBASE | OSXMMEXCPT | LMA;
}

impl Env {
    /// Recomputes [`Env::mode_key`]. Call after a change of CR0, CR4, EFER, XCR0, a segment
    /// register, RFLAGS.VM or AC, MXCSR masks or FCW masks.
    #[inline]
    pub fn update_mode_key(&mut self) {
        let all = self.system_key();
        self.mode_key = all;
    }

    /// The same after a change of CS, SS and RFLAGS alone, which in 64-bit code is quickly done.
    #[inline]
    pub fn segments_changed(&mut self) {
        let cs = &self.seg[CS];
        if self.mode_key & (key::LMA | key::V86) != key::LMA
            || !cs.attr.l()
            || self.eflags_sys & rflags::VM != 0
        {
            return self.update_mode_key();
        }
        let set = |on: bool, bit: u32| if on { bit } else { 0 };
        let dpl = u32::from(self.seg[SS].attr.dpl());
        let ac = self.eflags_sys & rflags::AC != 0 && dpl == 3 && self.cr0 & cr0::AM != 0;
        self.mode_key = self.mode_key & key::OF_SYSTEM
            | (key::L64 | key::PROT | key::FLAT | key::CS_FLAT)
            | set(cs.base == 0, key::CS_BASE0)
            | set(ac, key::AC)
            | dpl << key::CPL_SHIFT;
        debug_assert_eq!(self.mode_key, self.system_key());
    }

    fn system_key(&self) -> u32 {
        let mut k = 0;
        let mut set = |on: bool, bit: u32| k |= if on { bit } else { 0 };
        let lma = self.efer & efer::LMA != 0;
        let pe = self.cr0 & cr0::PE != 0;
        let v86 = pe && self.eflags_sys & rflags::VM != 0;
        let l64 = lma && self.seg[CS].attr.l();
        set(lma, key::LMA);
        set(l64, key::L64);
        set(!l64 && self.seg[CS].attr.db(), key::CODE32);
        set(!l64 && self.seg[SS].attr.db(), key::STACK32);
        set(pe && !v86, key::PROT);
        set(v86, key::V86);
        let cpl = match (pe, v86) {
            (false, _) => 0,
            (_, true) => 3,
            _ => u32::from(self.seg[SS].attr.dpl()),
        };
        set(self.seg[CS].base == 0, key::CS_BASE0);
        let flat = |s: &anura_x86::Segment| s.base == 0 && s.limit == u32::MAX && !s.attr.unusable();
        set(
            l64 || [DS, ES, SS].iter().all(|i| {
                let s = &self.seg[*i];
                flat(s) && s.attr.is_writable() && !s.attr.is_code() && !s.attr.is_expand_down()
            }),
            key::FLAT,
        );
        set(l64 || flat(&self.seg[CS]), key::CS_FLAT);
        set(self.cr0 & cr0::EM != 0, key::EM);
        set(self.cr0 & cr0::TS != 0, key::TS);
        set(self.cr0 & cr0::MP != 0, key::MP);
        set(self.cr4 & cr4::OSFXSR != 0 && self.cr0 & cr0::EM == 0, key::SSE);
        let osxsave = self.cr4 & cr4::OSXSAVE != 0;
        let avx = xcr0::SSE | xcr0::AVX;
        set(osxsave && self.xcr0 & avx == avx && pe && !v86, key::AVX);
        set(osxsave, key::OSXSAVE);
        set(self.cr4 & cr4::OSXMMEXCPT != 0, key::OSXMMEXCPT);
        set(self.cr4 & cr4::FSGSBASE != 0, key::FSGSBASE);
        set(self.unmasked_fp(), key::FPX);
        let ac = self.cr0 & cr0::AM != 0 && self.eflags_sys & rflags::AC != 0 && cpl == 3;
        set(ac, key::AC);
        k | cpl << key::CPL_SHIFT
    }

    /// Whether MXCSR or the x87 control word leaves an exception unmasked.
    pub fn unmasked_fp(&self) -> bool {
        self.fpu.fcw() & 0x3f != 0x3f || self.fpu.mxcsr() & 0x1f80 != 0x1f80
    }
}

/// Rules for writes to the registers that make the mode. A refused write changes nothing.
impl Cpu {
    /// Bits of CR4 that exist in this model.
    fn cr4_allowed(&self) -> u64 {
        let m = &self.vm.config.model;
        let mut allowed = cr4::TSD | cr4::OSXMMEXCPT;
        for (feature, bits) in [
            (Feature::Vme, cr4::VME | cr4::PVI),
            (Feature::De, cr4::DE),
            (Feature::Pse, cr4::PSE),
            (Feature::Pae, cr4::PAE),
            (Feature::Mce, cr4::MCE),
            (Feature::Pge, cr4::PGE),
            (Feature::Fxsr, cr4::OSFXSR),
            (Feature::Umip, cr4::UMIP),
            (Feature::Fsgsbase, cr4::FSGSBASE),
            (Feature::Pcid, cr4::PCIDE),
            (Feature::Xsave, cr4::OSXSAVE),
            (Feature::Smep, cr4::SMEP),
            (Feature::Smap, cr4::SMAP),
            (Feature::Pku, cr4::PKE),
            (Feature::Pks, cr4::PKS),
            (Feature::La57, cr4::LA57),
        ] {
            if m.has(feature) {
                allowed |= bits;
            }
        }
        allowed | cr4::PCE
    }

    /// MOV to CR0, LMSW.
    pub fn write_cr0(&mut self, value: u64) -> Exec<()> {
        let old = self.env.cr0;
        if value >> 32 != 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
        {
            return Err(Fault::GP0);
        }
        let new = value & cr0::ALL | cr0::ET;
        let (was, is) = (old & cr0::PG != 0, new & cr0::PG != 0);
        let mut new_efer = self.env.efer;
        let pae = self.env.cr4 & cr4::PAE != 0;
        let lme = self.env.efer & efer::LME != 0;
        if !was && is && lme {
            if !pae || self.env.seg[CS].attr.l() {
                return Err(Fault::GP0);
            }
            new_efer |= efer::LMA;
        }
        if was && !is {
            if self.env.is_64bit() || self.env.cr4 & cr4::PCIDE != 0 {
                return Err(Fault::GP0);
            }
            new_efer &= !efer::LMA;
        }
        let cached = cr0::PG | cr0::CD | cr0::NW;
        let reload = is && pae && !lme && (old ^ new) & cached != 0;
        if reload {
            self.env.pdpte = self.fetch_pdptes(self.env.cr3)?;
        }
        self.env.cr0 = new;
        self.env.efer = new_efer;
        if reload || was != is || is && (old ^ new) & cr0::WP != 0 {
            self.paging_changed();
        }
        self.mode_changed();
        Ok(())
    }

    /// MOV to CR3.
    pub fn write_cr3(&mut self, value: u64) -> Exec<()> {
        let pcid = self.env.cr4 & cr4::PCIDE != 0;
        let stored = if pcid { value & !cr3::NOFLUSH } else { value };
        if self.env.long_mode() {
            if stored >> self.vm.config.model.phys_bits != 0 {
                return Err(Fault::GP0);
            }
        } else if self.is_pae() {
            self.env.pdpte = self.fetch_pdptes(value & 0xffff_ffff)?;
        }
        self.load_cr3(stored, pcid && value & cr3::NOFLUSH != 0);
        Ok(())
    }

    /// MOV to CR4.
    pub fn write_cr4(&mut self, value: u64) -> Exec<()> {
        let old = self.env.cr4;
        let lma = self.env.long_mode();
        if value & !self.cr4_allowed() != 0
            || lma && value & cr4::PAE == 0
            || lma && (value ^ old) & cr4::LA57 != 0
            || value & !old & cr4::PCIDE != 0 && (!lma || self.env.cr3 & cr3::PCID != 0)
        {
            return Err(Fault::GP0);
        }
        let paging = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::PCIDE | cr4::PKE;
        let paging = paging | cr4::PKS | cr4::LA57;
        if self.env.cr0 & cr0::PG != 0
            && !lma
            && value & cr4::PAE != 0
            && (old ^ value) & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0
        {
            self.env.pdpte = self.fetch_pdptes(self.env.cr3)?;
        }
        self.env.cr4 = value;
        self.env.jit.forget_answers();
        if (old ^ value) & paging != 0 {
            self.paging_changed();
        }
        self.mode_changed();
        Ok(())
    }

    /// WRMSR to EFER.
    pub fn write_efer(&mut self, value: u64) -> Exec<()> {
        let m = &self.vm.config.model;
        let mut allowed = efer::LMA;
        for (feature, bit) in [
            (Feature::Syscall, efer::SCE),
            (Feature::Lm, efer::LME),
            (Feature::Nx, efer::NXE),
            (Feature::FxsrOpt, efer::FFXSR),
        ] {
            if m.has(feature) {
                allowed |= bit;
            }
        }
        let old = self.env.efer;
        if value & !allowed != 0 || (value ^ old) & efer::LME != 0 && self.env.cr0 & cr0::PG != 0 {
            return Err(Fault::GP0);
        }
        self.env.efer = value & !efer::LMA | old & efer::LMA;
        if (old ^ value) & efer::NXE != 0 {
            self.paging_changed();
        }
        self.mode_changed();
        Ok(())
    }

    /// XSETBV of XCR0.
    pub fn write_xcr0(&mut self, value: u64) -> Exec<()> {
        if value & xcr0::X87 == 0
            || value & !self.vm.config.model.xcr0_supported() != 0
            || value & (xcr0::SSE | xcr0::AVX) == xcr0::AVX
        {
            return Err(Fault::GP0);
        }
        self.env.xcr0 = value;
        self.env.jit.forget_answers();
        self.mode_changed();
        Ok(())
    }

    /// The four PDPTEs that `cr3` names; #GP if a present one has a reserved bit set.
    pub(crate) fn fetch_pdptes(&mut self, cr3: u64) -> Exec<[u64; 4]> {
        let reserved = paging::reserved_pdpte(self.vm.config.model.phys_bits);
        let mut entries = [0; 4];
        for (i, e) in entries.iter_mut().enumerate() {
            *e = self.read_phys_u64((cr3 & 0xffff_ffe0) + i as u64 * 8);
            if *e & paging::P != 0 && *e & reserved != 0 {
                return Err(Fault::GP0);
            }
        }
        Ok(entries)
    }
}
