//! Model-specific registers: numbers, and the ones a CPU keeps itself.

/// IA32_P5_MC_ADDR.
pub const P5_MC_ADDR: u32 = 0;
/// IA32_P5_MC_TYPE.
pub const P5_MC_TYPE: u32 = 1;
/// Time stamp counter.
pub const TSC: u32 = 0x10;
/// IA32_PLATFORM_ID.
pub const PLATFORM_ID: u32 = 0x17;
/// Local APIC base.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3b;
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_BIOS_UPDT_TRIG.
pub const BIOS_UPDT_TRIG: u32 = 0x79;
/// IA32_BIOS_SIGN_ID, the microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8b;
/// IA32_MTRRCAP.
pub const MTRR_CAP: u32 = 0xfe;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP.
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_MCG_CTL.
pub const MCG_CTL: u32 = 0x17b;
/// IA32_PERF_STATUS.
pub const PERF_STATUS: u32 = 0x198;
/// IA32_PERF_CTL.
pub const PERF_CTL: u32 = 0x199;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1d9;
/// First variable MTRR base.
pub const MTRR_PHYS_BASE0: u32 = 0x200;
/// Number of variable MTRR pairs.
pub const MTRR_VARIABLE: usize = 8;
/// Fixed MTRRs, in the order of [`Msrs::mtrr_fixed`].
pub const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// First machine-check bank register (CTL of bank 0).
pub const MC0_CTL: u32 = 0x400;
/// Number of machine-check banks.
pub const MC_BANKS: usize = 10;
/// TSC deadline of the local APIC timer.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_PKRS.
pub const PKRS: u32 = 0x6e1;
/// First x2APIC register.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC register.
pub const X2APIC_LAST: u32 = 0x8ff;
/// IA32_XSS.
pub const XSS: u32 = 0xda0;
/// Extended feature enables.
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL target selectors.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL target in 64-bit mode.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL target in compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// SYSCALL flag mask.
pub const FMASK: u32 = 0xc000_0084;
/// FS base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS base.
pub const GS_BASE: u32 = 0xc000_0101;
/// Swapped by SWAPGS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD: SYSCFG.
pub const AMD_SYSCFG: u32 = 0xc001_0010;
/// AMD: HWCR.
pub const AMD_HWCR: u32 = 0xc001_0015;
/// AMD: NB_CFG.
pub const AMD_NB_CFG: u32 = 0xc001_001f;
/// AMD: PATCH_LEVEL is [`BIOS_SIGN_ID`]; this loads a patch.
pub const AMD_PATCH_LOADER: u32 = 0xc001_0020;
/// AMD: OSVW identifier length.
pub const AMD_OSVW_ID_LENGTH: u32 = 0xc001_0140;
/// AMD: VM_CR.
pub const AMD_VM_CR: u32 = 0xc001_0114;
/// AMD: decode configuration.
pub const AMD_DE_CFG: u32 = 0xc001_1029;

/// The MSRs a CPU keeps itself, apart from those that are parts of other registers
/// (EFER, FS and GS base) and those of the local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msrs {
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// FMASK.
    pub fmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// PAT.
    pub pat: u64,
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// TSC_ADJUST.
    pub tsc_adjust: u64,
    /// MISC_ENABLE.
    pub misc_enable: u64,
    /// SPEC_CTRL.
    pub spec_ctrl: u64,
    /// FEATURE_CONTROL.
    pub feature_control: u64,
    /// DEBUGCTL.
    pub debugctl: u64,
    /// Default MTRR type.
    pub mtrr_def_type: u64,
    /// Fixed-range MTRRs, in the order of [`MTRR_FIXED`].
    pub mtrr_fixed: [u64; 11],
    /// Variable MTRRs: base and mask of each pair.
    pub mtrr_var: [[u64; 2]; MTRR_VARIABLE],
    /// MCG_STATUS.
    pub mcg_status: u64,
    /// MCG_CTL.
    pub mcg_ctl: u64,
    /// Machine-check banks: CTL, STATUS, ADDR, MISC of each.
    pub mc_bank: [[u64; 4]; MC_BANKS],
    /// XSS.
    pub xss: u64,
    /// PKRU, which is no MSR but is kept with its sister.
    pub pkru: u64,
    /// PKRS.
    pub pkrs: u64,
    /// AMD HWCR.
    pub amd_hwcr: u64,
    /// Microcode revision as BIOS_SIGN_ID shows it.
    pub microcode: u64,
}

/// PAT after reset: WB, WT, UC-, UC, twice.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl Msrs {
    /// Values after power-up.
    pub fn reset() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: PAT_RESET,
            tsc_aux: 0,
            tsc_adjust: 0,
            misc_enable: 1,
            spec_ctrl: 0,
            feature_control: 0,
            debugctl: 0,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_var: [[0; 2]; MTRR_VARIABLE],
            mcg_status: 0,
            mcg_ctl: 0,
            mc_bank: [[0; 4]; MC_BANKS],
            xss: 0,
            pkru: 0,
            pkrs: 0,
            amd_hwcr: 0,
            microcode: 0x0100_0065 << 32,
        }
    }

    /// All values as one list, in a fixed order, for records and comparison.
    pub fn to_words(&self) -> Vec<u64> {
        // Taken apart without `..`: a new register does not compile until it is saved.
        let Self {
            star,
            lstar,
            cstar,
            fmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            pat,
            tsc_aux,
            tsc_adjust,
            misc_enable,
            spec_ctrl,
            feature_control,
            debugctl,
            mtrr_def_type,
            mtrr_fixed,
            mtrr_var,
            mcg_status,
            mcg_ctl,
            mc_bank,
            xss,
            pkru,
            pkrs,
            amd_hwcr,
            microcode,
        } = self;
        let mut w = vec![
            *star,
            *lstar,
            *cstar,
            *fmask,
            *kernel_gs_base,
            *sysenter_cs,
            *sysenter_esp,
            *sysenter_eip,
            *pat,
            *tsc_aux,
            *tsc_adjust,
            *misc_enable,
            *spec_ctrl,
            *feature_control,
            *debugctl,
            *mtrr_def_type,
            *mcg_status,
            *mcg_ctl,
            *xss,
            *pkru,
            *pkrs,
            *amd_hwcr,
            *microcode,
        ];
        w.extend(mtrr_fixed);
        w.extend(mtrr_var.iter().flatten());
        w.extend(mc_bank.iter().flatten());
        w
    }

    /// The inverse of [`Self::to_words`]; `None` if the list has the wrong length.
    pub fn from_words(words: &[u64]) -> Option<Self> {
        let mut m = Self::reset();
        if words.len() != m.to_words().len() {
            return None;
        }
        let mut it = words.iter().copied();
        for slot in [
            &mut m.star,
            &mut m.lstar,
            &mut m.cstar,
            &mut m.fmask,
            &mut m.kernel_gs_base,
            &mut m.sysenter_cs,
            &mut m.sysenter_esp,
            &mut m.sysenter_eip,
            &mut m.pat,
            &mut m.tsc_aux,
            &mut m.tsc_adjust,
            &mut m.misc_enable,
            &mut m.spec_ctrl,
            &mut m.feature_control,
            &mut m.debugctl,
            &mut m.mtrr_def_type,
            &mut m.mcg_status,
            &mut m.mcg_ctl,
            &mut m.xss,
            &mut m.pkru,
            &mut m.pkrs,
            &mut m.amd_hwcr,
            &mut m.microcode,
        ]
        .into_iter()
        .chain(m.mtrr_fixed.iter_mut())
        .chain(m.mtrr_var.iter_mut().flatten())
        .chain(m.mc_bank.iter_mut().flatten())
        {
            *slot = it.next()?;
        }
        Some(m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_survives_the_word_list() {
        let n = Msrs::reset().to_words().len() as u64;
        let words: Vec<u64> = (1..=n).collect();
        assert_eq!(Msrs::from_words(&words).unwrap().to_words(), words);
        assert!(Msrs::from_words(&words[1..]).is_none());
    }
}
