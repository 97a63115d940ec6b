//! What CPUID shows under KVM: the model's leaves, cut to what this kernel can give.

use std::io;

use anura_accel::VmConfig;
use anura_x86::cpuid::{Asker, Feature, FeatureSet, Word};
use anura_x86::regs::cr4;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::host::System;

/// Leaves whose registers are feature bits, with the registers that are (EAX, EBX, ECX, EDX).
const FEATURE_LEAVES: [(u32, u32, [bool; 4]); 5] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
];
/// Bits that are not features of the processor: CR4.OSXSAVE and the hypervisor's own, APIC and x2APIC.
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const HT: u32 = 1 << 28;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;

/// "KVMKVMKVM".
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// Bits of KVM's own leaf 40000001H that guests are shown where the kernel offers them: clock (0, 3, 24), no delay at port
/// 80h (1), asynchronous page faults (4, 10), steal time (5), TLB flush (9), halt polling (12), yield (13).
const PARAVIRTUAL: u32 =
    1 << 24 | 1 << 13 | 1 << 12 | 1 << 10 | 1 << 9 | 1 << 5 | 1 << 4 | 1 << 3 | 1 << 1 | 1;
/// Those that need the local APICs in the kernel: EOI (6), unhalt (7), IPIs (11), page faults by interrupt (14).
const PARAVIRTUAL_WITH_APIC: u32 = 1 << 14 | 1 << 11 | 1 << 7 | 1 << 6;

/// The kernel's offer.
pub(crate) struct Leaves {
    supported: Vec<kvm_cpuid_entry2>,
    /// The local APICs are in the kernel.
    split: bool,
    ring0_emulated: bool,
}

impl Leaves {
    pub(crate) fn new(system: &dyn System, split: bool, ring0_emulated: bool) -> io::Result<Self> {
        Ok(Self { supported: system.supported_cpuid()?, split, ring0_emulated })
    }

    fn supported(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let found = self.supported.iter().find(|e| e.function == leaf && e.index == subleaf);
        found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    }

    /// Bits of CR4 whose features the kernel does not offer.
    pub(crate) fn refused_cr4(&self) -> u64 {
        let offer = self.features();
        let needs = [
            (cr4::VME, Feature::Vme),
            (cr4::PGE, Feature::Pge),
            (cr4::UMIP, Feature::Umip),
            (cr4::LA57, Feature::La57),
            (cr4::FSGSBASE, Feature::Fsgsbase),
            (cr4::PCIDE, Feature::Pcid),
            (cr4::OSXSAVE, Feature::Xsave),
            (cr4::SMEP, Feature::Smep),
            (cr4::SMAP, Feature::Smap),
            (cr4::PKE, Feature::Pku),
        ];
        needs.iter().filter(|(_, f)| !offer.has(*f)).map(|(bit, _)| bit).sum()
    }

    /// The features that guests can have. Those with register state that [`anura_x86::CpuState`] does not hold are not
    /// among them, nor nested virtualisation.
    pub(crate) fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::default();
        for f in Feature::ALL.iter().copied() {
            let (word, bit) = f.position();
            let (leaf, register) = match word {
                Word::L1Edx => (1, 3),
                Word::L1Ecx => (1, 2),
                Word::L6Eax => (6, 0),
                Word::L7Ebx => (7, 1),
                Word::L7Ecx => (7, 2),
                Word::L7Edx => (7, 3),
                Word::LdEax => (0xd, 0),
                Word::E1Edx => (0x8000_0001, 3),
                Word::E1Ecx => (0x8000_0001, 2),
                Word::E7Edx => (0x8000_0007, 3),
                Word::E8Ebx => (0x8000_0008, 1),
            };
            let offered = self.supported(leaf, (leaf == 0xd).into())[register] >> bit & 1 != 0;
            // Of these capabilities and the topology tell, not the list.
            let apart =
                matches!(f, Feature::X2apic | Feature::TscDeadline | Feature::Hypervisor | Feature::Ht);
            let stateful =
                matches!(f, Feature::Pku | Feature::Mpx | Feature::IntelPt | Feature::Vmx | Feature::Svm)
                    || f.name().starts_with("avx512")
                    || f.name().starts_with("amx");
            set.set(f, (offered || apart) && !stateful);
        }
        set
    }

    /// What the kernel offers its guests beside the processor, as KVM's own leaf shows it. None of it where guest kernels
    /// run on the stepper, which has no such registers.
    fn paravirtual(&self) -> u32 {
        let found = self.supported.iter().find(|e| e.function == 0x4000_0001).map_or(0, |e| e.eax);
        let with_apic = if self.split { PARAVIRTUAL_WITH_APIC } else { 0 };
        if self.ring0_emulated { 0 } else { found & (PARAVIRTUAL | with_apic) }
    }

    /// The leaves of one vCPU.
    pub(crate) fn of(&self, id: u32, config: &VmConfig) -> Vec<kvm_cpuid_entry2> {
        let model = &config.model;
        let who = Asker {
            apic_id: config.topology.apic_id(id),
            topology: config.topology,
            // The kernel keeps these bits up to date itself.
            osxsave: false,
            ospke: false,
            xcr0: 7,
            apic_enabled: true,
        };
        let mut list = Vec::new();
        let mut add = |leaf: u32, subleaf: Option<u32>| {
            let mut r = model.cpuid(leaf, subleaf.unwrap_or(0), &who);
            if let Some((_, _, which)) =
                FEATURE_LEAVES.iter().find(|(l, s, _)| (*l, *s) == (leaf, subleaf.unwrap_or(0)))
            {
                let offer = self.supported(leaf, subleaf.unwrap_or(0));
                for i in (0..4).filter(|i| which[*i]) {
                    let always = match (leaf, i) {
                        // Capabilities tell of these two, not the kernel's list.
                        (1, 2) => HYPERVISOR | X2APIC | TSC_DEADLINE,
                        // The topology is ours.
                        (1, 3) => HT,
                        _ => 0,
                    };
                    r[i] &= offer[i] | always;
                }
            }
            let vendor = self.supported(0, 0);
            if matches!(leaf, 0 | 0x8000_0000) && vendor != [0; 4] {
                // Where vendors differ (SYSCALL in 32-bit code, hypercalls) the guest gets the host's ways, so it must
                // know; QEMU does the same for its models.
                r[1..].copy_from_slice(&vendor[1..]);
            }
            let own = self.supported(leaf, 0);
            if model.name == "host" && own != [0; 4] {
                match leaf {
                    1 => r[0] = own[0],
                    0x8000_0001 => r[0] = own[0],
                    0x8000_0002..=0x8000_0004 => r = own,
                    _ => {}
                }
            }
            if leaf == 1 {
                // The kernel has no x2APIC and no deadline timer for an APIC that is ours.
                r[2] &= if self.split { !OSXSAVE } else { !(X2APIC | TSC_DEADLINE | OSXSAVE) };
            }
            let [eax, ebx, ecx, edx] = r;
            let flags = if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            let index = subleaf.unwrap_or(0);
            list.push(kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        };
        for leaf in 0..=model.cpuid(0, 0, &who)[0] {
            match leaf {
                4 => (0..4).for_each(|s| add(leaf, Some(s))),
                7 => add(leaf, Some(0)),
                0xb => (0..2).for_each(|s| add(leaf, Some(s))),
                0xd => (0..3).for_each(|s| add(leaf, Some(s))),
                _ => add(leaf, None),
            }
        }
        for leaf in 0x8000_0000..=model.cpuid(0x8000_0000, 0, &who)[0].min(0x8000_00ff) {
            match leaf {
                0x8000_001d => (0..4).for_each(|s| add(leaf, Some(s))),
                _ => add(leaf, None),
            }
        }
        match self.paravirtual() {
            0 => {
                add(0x4000_0000, None);
                add(0x4000_0001, None);
            }
            features => {
                let [ebx, ecx, edx] = SIGNATURE;
                list.push(kvm_cpuid_entry2 {
                    function: 0x4000_0000,
                    eax: 0x4000_0001,
                    ebx,
                    ecx,
                    edx,
                    ..Default::default()
                });
                list.push(kvm_cpuid_entry2 { function: 0x4000_0001, eax: features, ..Default::default() });
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_x86::Topology;

    /// A kernel that offers every bit of these leaves.
    fn leaves(split: bool, ring0_emulated: bool) -> Leaves {
        let all = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let supported = [1, 7, 0x8000_0001, 0x4000_0001].map(all).to_vec();
        Leaves { supported, split, ring0_emulated }
    }

    #[test]
    fn what_the_kernel_offers_beside_the_processor_is_shown_where_it_can_work() {
        assert_eq!(leaves(true, false).paravirtual(), PARAVIRTUAL | PARAVIRTUAL_WITH_APIC);
        assert_eq!(leaves(false, false).paravirtual(), PARAVIRTUAL);
        assert_eq!(leaves(true, true).paravirtual(), 0, "the stepper has no such registers");
        let nothing = Leaves { supported: vec![], split: true, ring0_emulated: false };
        assert_eq!(nothing.paravirtual(), 0);
    }

    #[test]
    fn features_with_state_that_we_do_not_hold_are_not_offered() {
        let f = leaves(true, false).features();
        assert!(f.has(Feature::Avx2) && f.has(Feature::X2apic));
        for absent in [Feature::Vmx, Feature::Svm, Feature::Pku, Feature::Avx512f, Feature::Mpx] {
            assert!(!f.has(absent), "{}", absent.name());
        }
    }

    #[test]
    fn x2apic_and_the_deadline_timer_come_with_apics_in_the_kernel() {
        struct Nobody;
        impl anura_accel::CpuPlatform for Nobody {
            fn apic(&self, _: u32) -> &dyn anura_accel::LocalApic {
                unreachable!("CPUID asks no APIC")
            }
            fn rdmsr(&self, _: u32, _: u32) -> Option<u64> {
                None
            }
            fn wrmsr(&self, _: u32, _: u32, _: u64) -> bool {
                false
            }
            fn ferr(&self, _: bool) -> bool {
                false
            }
        }
        let offer = leaves(true, false).features();
        let config = VmConfig {
            platform: std::sync::Arc::new(Nobody),
            model: anura_x86::CpuModel::named("host", &offer).unwrap(),
            topology: Topology::default(),
            tsc_khz: 1_000_000,
            counted: false,
        };
        for split in [false, true] {
            let list = leaves(split, false).of(0, &config);
            let one = list.iter().find(|e| e.function == 1).unwrap();
            let wanted = if split { X2APIC | TSC_DEADLINE } else { 0 };
            assert_eq!(one.ecx & (X2APIC | TSC_DEADLINE), wanted);
            assert_eq!(one.eax, u32::MAX, "-cpu host shows the host's signature");
            let kvm = list.iter().find(|e| e.function == 0x4000_0000).unwrap();
            assert_eq!([kvm.ebx, kvm.ecx, kvm.edx], SIGNATURE);
        }
    }
}
