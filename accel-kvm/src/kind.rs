//! What is told of a host's KVM.

use anura_x86::FeatureSet;
use std::time::Duration;

/// What a host's KVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Ring 0 runs in the kernel's instruction emulator.
    pub ring0_emulated: bool,
    /// What one instruction of the probe guest took.
    pub per_instruction: Duration,
    /// Rate of the time stamp counter, 0 if unknown.
    pub tsc_khz: u64,
    /// Features of the processor that guests can have.
    pub features: FeatureSet,
    /// The counter can have other rates.
    pub tsc_scales: bool,
}

/// The module of the host's kernel behind `/dev/kvm`, if it shows one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// `kvm_intel`, `kvm_amd`, or `kvm` alone.
    pub name: Option<&'static str>,
    /// Second-level page tables (EPT, NPT), where the module says.
    pub second_level: Option<bool>,
    /// Guests can have KVM themselves, where the module says.
    pub nested: Option<bool>,
}

/// What sysfs shows of KVM's modules.
pub fn module() -> Module {
    let there = |name: &&'static str| std::path::Path::new("/sys/module").join(name).exists();
    let parameter = |name: &str, which: &str| {
        let text = std::fs::read_to_string(format!("/sys/module/{name}/parameters/{which}")).ok()?;
        Some(matches!(text.trim(), "Y" | "1"))
    };
    let both = |intel: &str, amd: &str| parameter("kvm_intel", intel).or_else(|| parameter("kvm_amd", amd));
    Module {
        name: ["kvm_intel", "kvm_amd", "kvm"].into_iter().find(there),
        second_level: both("ept", "npt"),
        nested: both("nested", "nested"),
    }
}
