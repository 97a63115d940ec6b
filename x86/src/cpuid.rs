//! CPUID: features by their QEMU names, CPU models, and the leaves a guest reads.
//!
//! A model is data; what a leaf shows also depends on the processor asking ([`Asker`]): its
//! APIC ID and the bits that follow CR4, XCR0 and the APIC base. A feature can be had if the
//! engine runs it itself ([`Support::Engine`]) or if the host runs it for us ([`Support::Host`]).
use crate::regs::xcr0;
use std::fmt::Write as _;

/// A register of a CPUID leaf that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// 1:EDX.
    L1Edx,
    /// 1:ECX.
    L1Ecx,
    /// 6:EAX.
    L6Eax,
    /// 7.0:EBX.
    L7Ebx,
    /// 7.0:ECX.
    L7Ecx,
    /// 7.0:EDX.
    L7Edx,
    /// 0xD.1:EAX.
    LdEax,
    /// 80000001:EDX.
    E1Edx,
    /// 80000001:ECX.
    E1Ecx,
    /// 80000007:EDX.
    E7Edx,
    /// 80000008:EBX.
    E8Ebx,
}

const WORDS: usize = 11;

impl Word {
    /// The leaf and register as QEMU's messages spell them.
    pub fn spelling(self) -> &'static str {
        match self {
            Word::L1Edx => "CPUID.01H:EDX",
            Word::L1Ecx => "CPUID.01H:ECX",
            Word::L6Eax => "CPUID.06H:EAX",
            Word::L7Ebx => "CPUID.07H:EBX",
            Word::L7Ecx => "CPUID.07H:ECX",
            Word::L7Edx => "CPUID.07H:EDX",
            Word::LdEax => "CPUID.0DH:EAX",
            Word::E1Edx => "CPUID.80000001H:EDX",
            Word::E1Ecx => "CPUID.80000001H:ECX",
            Word::E7Edx => "CPUID.80000007H:EDX",
            Word::E8Ebx => "CPUID.80000008H:EBX",
        }
    }
}

/// Who runs the instructions of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The software engine itself (or nothing has to be run).
    Engine,
    /// The host's own processor where it has the feature, portable code of the engine elsewhere.
    Host,
    /// Nobody yet.
    None,
}

macro_rules! features {
    ($($word:ident { $($name:ident = $bit:literal $text:literal $support:ident,)* })*) => {
        /// A CPUID feature bit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[doc = $text] $name,)*)*
        }
        impl Feature {
            /// Every known feature.
            pub const ALL: &'static [Feature] = &[$($(Feature::$name,)*)*];
            /// The leaf register and bit, the QEMU name, and who runs it.
            const INFO: &'static [(Word, u8, &'static str, Support)] = &[
                $($((Word::$word, $bit, $text, Support::$support),)*)*
            ];
        }
    };
}

features! {
    L1Edx {
        Fpu = 0 "fpu" Engine, Vme = 1 "vme" Engine, De = 2 "de" Engine, Pse = 3 "pse" Engine,
        Tsc = 4 "tsc" Engine, Msr = 5 "msr" Engine, Pae = 6 "pae" Engine, Mce = 7 "mce" Engine,
        Cx8 = 8 "cx8" Engine, Apic = 9 "apic" Engine, Sep = 11 "sep" Engine, Mtrr = 12 "mtrr" Engine,
        Pge = 13 "pge" Engine, Mca = 14 "mca" Engine, Cmov = 15 "cmov" Engine, Pat = 16 "pat" Engine,
        Pse36 = 17 "pse36" Engine, Pn = 18 "pn" None, Clflush = 19 "clflush" Engine, Ds = 21 "ds" None,
        Acpi = 22 "acpi" Engine, Mmx = 23 "mmx" Engine, Fxsr = 24 "fxsr" Engine, Sse = 25 "sse" Engine,
        Sse2 = 26 "sse2" Engine, Ss = 27 "ss" Engine, Ht = 28 "ht" Engine, Tm = 29 "tm" None,
        Pbe = 31 "pbe" None,
    }
    L1Ecx {
        Sse3 = 0 "pni" Host, Pclmulqdq = 1 "pclmulqdq" Host, Dtes64 = 2 "dtes64" None,
        Monitor = 3 "monitor" None, DsCpl = 4 "ds-cpl" None, Vmx = 5 "vmx" None, Smx = 6 "smx" None,
        Est = 7 "est" None, Tm2 = 8 "tm2" None, Ssse3 = 9 "ssse3" Host, Fma = 12 "fma" Host,
        Cx16 = 13 "cx16" Engine, Xtpr = 14 "xtpr" None, Pdcm = 15 "pdcm" None, Pcid = 17 "pcid" Engine,
        Dca = 18 "dca" None, Sse41 = 19 "sse4.1" Host, Sse42 = 20 "sse4.2" Host,
        X2apic = 21 "x2apic" Engine, Movbe = 22 "movbe" Engine, Popcnt = 23 "popcnt" Engine,
        TscDeadline = 24 "tsc-deadline" Engine, Aes = 25 "aes" Host, Xsave = 26 "xsave" Engine,
        Osxsave = 27 "osxsave" None, Avx = 28 "avx" Host, F16c = 29 "f16c" Host, Rdrand = 30 "rdrand" Engine,
        Hypervisor = 31 "hypervisor" Engine,
    }
    L6Eax { Arat = 2 "arat" Engine, }
    L7Ebx {
        Fsgsbase = 0 "fsgsbase" Engine, TscAdjust = 1 "tsc-adjust" Engine, Sgx = 2 "sgx" None,
        Bmi1 = 3 "bmi1" Host, Hle = 4 "hle" None, Avx2 = 5 "avx2" Host, Smep = 7 "smep" Engine,
        Bmi2 = 8 "bmi2" Host, Erms = 9 "erms" Engine, Invpcid = 10 "invpcid" Engine, Rtm = 11 "rtm" None,
        Mpx = 14 "mpx" None, Avx512f = 16 "avx512f" None, Avx512dq = 17 "avx512dq" None,
        Rdseed = 18 "rdseed" Engine, Adx = 19 "adx" Host, Smap = 20 "smap" Engine,
        Avx512ifma = 21 "avx512ifma" None, Pcommit = 22 "pcommit" None, Clflushopt = 23 "clflushopt" Engine,
        Clwb = 24 "clwb" Engine, IntelPt = 25 "intel-pt" None, Avx512pf = 26 "avx512pf" None,
        Avx512er = 27 "avx512er" None, Avx512cd = 28 "avx512cd" None, ShaNi = 29 "sha-ni" Host,
        Avx512bw = 30 "avx512bw" None, Avx512vl = 31 "avx512vl" None,
    }
    L7Ecx {
        Avx512vbmi = 1 "avx512vbmi" None, Umip = 2 "umip" Engine, Pku = 3 "pku" Engine, Ospke = 4 "ospke" None,
        Waitpkg = 5 "waitpkg" None, Avx512vbmi2 = 6 "avx512vbmi2" None, Gfni = 8 "gfni" Host,
        Vaes = 9 "vaes" Host, Vpclmulqdq = 10 "vpclmulqdq" Host, Avx512vnni = 11 "avx512vnni" None,
        Avx512bitalg = 12 "avx512bitalg" None, Avx512vpopcntdq = 14 "avx512-vpopcntdq" None,
        La57 = 16 "la57" Engine, Rdpid = 22 "rdpid" Engine, BusLockDetect = 24 "bus-lock-detect" None,
        Cldemote = 25 "cldemote" None, Movdiri = 27 "movdiri" None, Movdir64b = 28 "movdir64b" None,
        Pks = 31 "pks" Engine,
    }
    L7Edx {
        Fsrm = 4 "fsrm" Engine, MdClear = 10 "md-clear" None, Serialize = 14 "serialize" None,
        SpecCtrl = 26 "spec-ctrl" None, Stibp = 27 "stibp" None,
        ArchCapabilities = 29 "arch-capabilities" None, Ssbd = 31 "ssbd" None,
    }
    LdEax {
        Xsaveopt = 0 "xsaveopt" Engine, Xsavec = 1 "xsavec" Engine, Xgetbv1 = 2 "xgetbv1" Engine,
        Xsaves = 3 "xsaves" Engine,
    }
    E1Edx {
        Syscall = 11 "syscall" Engine, Nx = 20 "nx" Engine, Mmxext = 22 "mmxext" Engine,
        FxsrOpt = 25 "fxsr-opt" None, Pdpe1gb = 26 "pdpe1gb" Engine, Rdtscp = 27 "rdtscp" Engine,
        Lm = 29 "lm" Engine, Amd3dnowext = 30 "3dnowext" None, Amd3dnow = 31 "3dnow" None,
    }
    E1Ecx {
        LahfLm = 0 "lahf-lm" Engine, CmpLegacy = 1 "cmp-legacy" Engine, Svm = 2 "svm" None,
        Extapic = 3 "extapic" None, Cr8legacy = 4 "cr8legacy" Engine, Abm = 5 "abm" Host,
        Sse4a = 6 "sse4a" Host, Misalignsse = 7 "misalignsse" None, Prefetch3dnow = 8 "3dnowprefetch" Engine,
        Osvw = 9 "osvw" None, Ibs = 10 "ibs" None, Xop = 11 "xop" None, Skinit = 12 "skinit" None,
        Wdt = 13 "wdt" None, Lwp = 15 "lwp" None, Fma4 = 16 "fma4" None, Tce = 17 "tce" None,
        NodeidMsr = 19 "nodeid-msr" None, Tbm = 21 "tbm" None, Topoext = 22 "topoext" None,
        PerfctrCore = 23 "perfctr-core" None, PerfctrNb = 24 "perfctr-nb" None,
    }
    E7Edx { Invtsc = 8 "invtsc" Engine, }
    E8Ebx {
        Clzero = 0 "clzero" None, Xsaveerptr = 2 "xsaveerptr" None, Wbnoinvd = 9 "wbnoinvd" Engine,
        Ibpb = 12 "ibpb" None, Ibrs = 14 "ibrs" None, AmdStibp = 15 "amd-stibp" None,
        AmdSsbd = 24 "amd-ssbd" None,
    }
}

impl Feature {
    /// Where the bit is shown.
    pub fn position(self) -> (Word, u8) {
        let (word, bit, ..) = Self::INFO[self as usize];
        (word, bit)
    }
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        Self::INFO[self as usize].2
    }
    /// Who runs it.
    pub fn support(self) -> Support {
        Self::INFO[self as usize].3
    }
    /// By QEMU's name or one of its aliases, with `_` and `-` alike.
    pub fn by_name(name: &str) -> Option<Self> {
        let name = name.replace('_', "-");
        let name = match name.as_str() {
            "sse3" => "pni",
            "sse4-1" => "sse4.1",
            "sse4-2" => "sse4.2",
            "ffxsr" => "fxsr-opt",
            "i64" => "lm",
            "xd" => "nx",
            "lzcnt" => "abm",
            "sha" => "sha-ni",
            other => other,
        };
        Self::ALL.iter().copied().find(|f| f.name() == name)
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u32; WORDS]);

impl FeatureSet {
    /// A set of the given features.
    pub fn of(features: &[Feature]) -> Self {
        let mut set = Self::default();
        features.iter().for_each(|f| set.set(*f, true));
        set
    }
    /// Whether `f` is in the set.
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        let (word, bit) = f.position();
        self.0[word as usize] >> bit & 1 != 0
    }
    /// Adds or removes `f`.
    pub fn set(&mut self, f: Feature, on: bool) {
        let (word, bit) = f.position();
        let mask = 1 << bit;
        let w = &mut self.0[word as usize];
        *w = if on { *w | mask } else { *w & !mask };
    }
    /// The features in it.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::ALL.iter().copied().filter(|f| self.has(*f))
    }
    fn word(&self, w: Word) -> u32 {
        self.0[w as usize]
    }
    /// What the host's processor has of the features we let it run.
    pub fn host() -> Self {
        #[allow(unused_mut)]
        let mut set = Self::default();
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! detect {
                ($($f:ident $text:tt,)*) => {
                    $(set.set(Feature::$f, std::arch::is_x86_feature_detected!($text));)*
                };
            }
            detect! {
                Sse3 "sse3", Pclmulqdq "pclmulqdq", Ssse3 "ssse3", Fma "fma", Sse41 "sse4.1",
                Sse42 "sse4.2", Aes "aes", Avx "avx", F16c "f16c", Bmi1 "bmi1", Avx2 "avx2",
                Bmi2 "bmi2", Adx "adx", ShaNi "sha", Gfni "gfni", Vaes "vaes",
                Vpclmulqdq "vpclmulqdq", Abm "lzcnt",
            }
        }
        set
    }
    /// What the software engine can offer, on any host.
    pub fn available() -> Self {
        let mut set = Self::default();
        for f in Feature::ALL {
            set.set(*f, f.support() != Support::None);
        }
        set
    }
}

/// How the processors of a machine are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores of a package.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self { sockets: 1, cores: 1, threads: 1 }
    }
}

fn bits_for(count: u32) -> u32 {
    32 - count.saturating_sub(1).leading_zeros()
}

impl Topology {
    /// All possible processors.
    pub fn total(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }
    /// APIC ID bits that number the thread in its core.
    pub fn core_shift(&self) -> u32 {
        bits_for(self.threads)
    }
    /// APIC ID bits below the package number.
    pub fn package_shift(&self) -> u32 {
        self.core_shift() + bits_for(self.cores)
    }
    /// APIC ID of the processor with the given index.
    pub fn apic_id(&self, index: u32) -> u32 {
        let thread = index % self.threads.max(1);
        let core = index / self.threads.max(1) % self.cores.max(1);
        let socket = index / (self.threads.max(1) * self.cores.max(1));
        thread | core << self.core_shift() | socket << self.package_shift()
    }
}

/// Who executes CPUID, and in what state.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Its APIC ID.
    pub apic_id: u32,
    /// The machine's topology.
    pub topology: Topology,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub ospke: bool,
    /// XCR0.
    pub xcr0: u64,
    /// The local APIC is enabled in IA32_APIC_BASE.
    pub apic_enabled: bool,
}

/// A CPU model: all that CPUID shows and the engine obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// QEMU's name for it.
    pub name: String,
    /// Vendor string of leaf 0.
    pub vendor: [u8; 12],
    /// Family, extended part included.
    pub family: u32,
    /// Model, extended part included.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// Brand string.
    pub model_id: String,
    /// Highest basic leaf.
    pub level: u32,
    /// Highest extended leaf.
    pub xlevel: u32,
    /// Feature bits, without those that follow the processor's state.
    pub features: FeatureSet,
    /// MAXPHYADDR.
    pub phys_bits: u8,
}

/// Why a `-cpu` argument is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No such model.
    #[error("unable to find CPU model '{0}'")]
    UnknownModel(String),
    /// No such property.
    #[error("Property '{model}-x86_64-cpu.{property}' not found")]
    UnknownProperty {
        /// The model.
        model: String,
        /// The property.
        property: String,
    },
    /// A property's value does not parse.
    #[error("Invalid value '{value}' for CPU property '{property}'")]
    BadValue {
        /// The property.
        property: String,
        /// What was given.
        value: String,
    },
    /// `enforce` and a feature that cannot be had.
    #[error("Host doesn't support requested features: {0}")]
    Enforce(String),
}

/// A model made from a `-cpu` argument, with what the user should hear about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedModel {
    /// The model.
    pub model: CpuModel,
    /// One line for each requested feature that cannot be had.
    pub warnings: Vec<String>,
    /// `tsc-frequency`, in Hz.
    pub tsc_frequency: Option<u64>,
}

use crate::models::{MODELS, Row};
use Feature as F;

/// What 80000001:EDX repeats of 1:EDX on AMD.
const AMD_ALIASES: u32 = 0x0183_f3ff;

impl CpuModel {
    /// The names of all models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MODELS.iter().map(|r| r.name)
    }

    /// The model of the given name; `max` is what is `available`, `base` nothing.
    pub fn named(name: &str, available: &FeatureSet) -> Result<Self, ModelError> {
        if name == "host" {
            // As `max`; an engine that runs on the host's processor shows its name and signature.
            return Ok(Self { name: name.to_owned(), ..Self::named("max", available)? });
        }
        let row = MODELS.iter().find(|r| r.name == name);
        let row = row.ok_or_else(|| ModelError::UnknownModel(name.to_owned()))?;
        let Row { name, vendor, id: (family, model, stepping), model_id, levels, phys_bits, features } = *row;
        let features = match features {
            Some(list) => {
                let mut set = FeatureSet::default();
                list.split_ascii_whitespace().filter_map(Feature::by_name).for_each(|f| set.set(f, true));
                set
            }
            None => {
                let mut all = *available;
                for depends_on_state in [F::Ht, F::CmpLegacy, F::Ss, F::Acpi, F::Invtsc] {
                    all.set(depends_on_state, false);
                }
                all
            }
        };
        Ok(Self {
            name: name.to_owned(),
            vendor: *vendor,
            family,
            model,
            stepping,
            model_id: model_id.to_owned(),
            level: levels.0,
            xlevel: levels.1,
            features,
            phys_bits,
        })
    }

    /// Parses `model[,+feature][,-feature][,feature=on|off][,property=value][,check][,enforce]`.
    pub fn parse(argument: &str, available: &FeatureSet) -> Result<ParsedModel, ModelError> {
        let mut parts = argument.split(',');
        let mut m = Self::named(parts.next().unwrap_or(""), available)?;
        let (mut check, mut enforce, mut tsc_frequency) = (true, false, None);
        // As QEMU does: `+` and `-` win over `=`, whatever the order.
        let (mut plus, mut minus) = (vec![], vec![]);
        for part in parts.filter(|p| !p.is_empty()) {
            let unknown = |property: &str| ModelError::UnknownProperty {
                model: m.name.clone(),
                property: property.to_owned(),
            };
            if let Some(name) = part.strip_prefix('+') {
                plus.push(Feature::by_name(name).ok_or_else(|| unknown(name))?);
                continue;
            }
            if let Some(name) = part.strip_prefix('-') {
                minus.push(Feature::by_name(name).ok_or_else(|| unknown(name))?);
                continue;
            }
            let (property, value) = part.split_once('=').unwrap_or((part, "on"));
            let bad = || ModelError::BadValue { property: property.to_owned(), value: value.to_owned() };
            let number = |max: u64| parse_number(value).filter(|n| *n <= max).ok_or_else(bad);
            let switch = || match value {
                "on" | "yes" | "true" | "y" => Ok(true),
                "off" | "no" | "false" | "n" => Ok(false),
                _ => Err(bad()),
            };
            match property {
                "check" => check = switch()?,
                "enforce" => enforce = switch()?,
                "vendor" => m.vendor = value.as_bytes().try_into().map_err(|_| bad())?,
                "family" => m.family = number(0xff + 0xf)? as u32,
                "model" => m.model = number(0xff)? as u32,
                "stepping" => m.stepping = number(0xf)? as u32,
                "model-id" | "model_id" => m.model_id = value.to_owned(),
                "level" => m.level = number(0x20)? as u32,
                "min-level" => m.level = m.level.max(number(0x20)? as u32),
                "xlevel" => m.xlevel = number(0x8000_0020)? as u32,
                "min-xlevel" => m.xlevel = m.xlevel.max(number(0x8000_0020)? as u32),
                "phys-bits" => {
                    let bits = number(52)?;
                    if bits != 0 && bits < 32 {
                        return Err(bad());
                    }
                    m.phys_bits = if bits == 0 { 40 } else { bits as u8 };
                }
                "tsc-frequency" | "tsc-freq" => tsc_frequency = Some(number(u64::MAX)?),
                "migratable" | "host-phys-bits" | "kvm" | "l3-cache" | "pmu" | "lmce" | "tcg-cpuid" => {
                    switch()?;
                }
                _ => {
                    let f = Feature::by_name(property).ok_or_else(|| unknown(property))?;
                    m.features.set(f, switch()?);
                }
            }
        }
        plus.iter().for_each(|f| m.features.set(*f, true));
        minus.iter().for_each(|f| m.features.set(*f, false));
        let missing: Vec<Feature> = m.features.iter().filter(|f| !available.has(*f)).collect();
        let mut warnings = vec![];
        let mut refused = String::new();
        for f in missing {
            m.features.set(f, false);
            let (word, bit) = f.position();
            warnings.push(format!(
                "TCG doesn't support requested feature: {}.{} [bit {bit}]",
                word.spelling(),
                f.name()
            ));
            let _ = write!(refused, "{}{}", if refused.is_empty() { "" } else { ", " }, f.name());
        }
        if enforce && !refused.is_empty() {
            return Err(ModelError::Enforce(refused));
        }
        if !check {
            warnings.clear();
        }
        m.settle_dependencies();
        Ok(ParsedModel { model: m, warnings, tsc_frequency })
    }

    /// Features that make no sense without another go with it; levels reach what is shown.
    fn settle_dependencies(&mut self) {
        let f = &mut self.features;
        if !f.has(F::Xsave) {
            for d in [F::Avx, F::Xsaveopt, F::Xsavec, F::Xgetbv1, F::Xsaves] {
                f.set(d, false);
            }
        }
        if !f.has(F::Avx) {
            for d in [F::Avx2, F::Fma, F::F16c, F::Vaes, F::Vpclmulqdq] {
                f.set(d, false);
            }
        }
        if !f.has(F::Lm) {
            f.set(F::Pdpe1gb, false);
        }
    }

    /// Makes the threads of a core visible on models of vendors that hide them without TOPOEXT: systems then
    /// believe leaf Bh. A no-op elsewhere.
    pub fn show_threads(&mut self) {
        if !self.is_intel() {
            self.features.set(Feature::Topoext, true);
            self.xlevel = self.xlevel.max(0x8000_001e);
        }
    }

    /// Whether the guest has the feature.
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        self.features.has(f)
    }
    /// Whether the vendor is Intel, where vendors differ.
    pub fn is_intel(&self) -> bool {
        &self.vendor == b"GenuineIntel"
    }
    /// CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        let (family, ext_family) =
            if self.family > 0xf { (0xf, self.family - 0xf) } else { (self.family, 0) };
        ext_family << 20
            | (self.model >> 4 & 0xf) << 16
            | family << 8
            | (self.model & 0xf) << 4
            | self.stepping & 0xf
    }
    /// Bits of XCR0 that may be set.
    pub fn xcr0_supported(&self) -> u64 {
        let vectors = if self.has(F::Avx) { xcr0::ALL } else { xcr0::X87 | xcr0::SSE };
        if self.has(F::Pku) && self.has(F::Xsave) { vectors | xcr0::PKRU } else { vectors }
    }
    /// Physical addresses are below this.
    pub fn phys_limit(&self) -> u64 {
        1 << self.phys_bits
    }

    fn vendor_words(&self) -> [u32; 3] {
        let word = |i: usize| {
            let v = &self.vendor;
            u32::from_le_bytes([v[i], v[i + 1], v[i + 2], v[i + 3]])
        };
        // EBX, ECX, EDX: the string runs EBX, EDX, ECX.
        [word(0), word(8), word(4)]
    }

    fn brand_words(&self, part: usize) -> [u32; 4] {
        let mut text = [0u8; 48];
        let n = self.model_id.len().min(48);
        text[..n].copy_from_slice(&self.model_id.as_bytes()[..n]);
        std::array::from_fn(|i| {
            let at = part * 16 + i * 4;
            u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
        })
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, who: &Asker) -> [u32; 4] {
        let hypervisor = self.has(F::Hypervisor);
        let leaf = match leaf {
            0x4000_0000..=0x4000_00ff if hypervisor => leaf.min(0x4000_0001),
            0x8000_0000.. if leaf <= self.xlevel => leaf,
            0..0x4000_0000 if leaf <= self.level => leaf,
            // Beyond the end: Intel repeats the last basic leaf, AMD shows zeros.
            _ if self.is_intel() => self.level,
            _ => return [0; 4],
        };
        let [vb, vc, vd] = self.vendor_words();
        let f = |w| self.features.word(w);
        match leaf {
            0 => [self.level, vb, vc, vd],
            1 => self.leaf_1(who),
            // Intel's leaves for caches; AMD describes them in 80000005 and 80000006.
            2 if self.is_intel() => [1, 0, 0x4d, 0x002c_307d],
            4 if self.is_intel() => self.leaf_4(subleaf, who),
            5 => [0, 0, 3, 0],
            6 => [f(Word::L6Eax), 0, 0, 0],
            7 if subleaf == 0 => {
                let ospke = if self.has(F::Pku) && who.ospke { 1 << 4 } else { 0 };
                [0, f(Word::L7Ebx), f(Word::L7Ecx) | ospke, f(Word::L7Edx)]
            }
            0xb => leaf_b(subleaf, who),
            0xd if self.has(F::Xsave) => self.leaf_d(subleaf, who),
            0x4000_0000 => {
                let sig = |t: &[u8; 4]| u32::from_le_bytes(*t);
                [0x4000_0001, sig(b"Anur"), sig(b"aAnu"), sig(b"raPC")]
            }
            0x8000_0000 => [self.xlevel, vb, vc, vd],
            0x8000_0001 => {
                let mut edx = f(Word::E1Edx);
                let mut ecx = f(Word::E1Ecx);
                if !self.is_intel() {
                    edx |= self.leaf_1(who)[3] & AMD_ALIASES;
                    if who.topology.cores * who.topology.threads > 1 {
                        ecx |= 1 << 1;
                    }
                }
                [self.signature(), 0, ecx, edx]
            }
            0x8000_0002..=0x8000_0004 => self.brand_words((leaf - 0x8000_0002) as usize),
            // The caches and TLBs of a first-generation Opteron.
            0x8000_0005 => [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
            0x8000_0006 => [0, 0x4200_4200, 0x0200_8140, 0x0080_8140],
            0x8000_0007 => [0, 0, 0, f(Word::E7Edx)],
            0x8000_0008 => {
                let linear = match (self.has(F::Lm), self.has(F::La57)) {
                    (true, true) => 57 << 8,
                    (true, false) => 48 << 8,
                    _ => 32 << 8,
                };
                let logical = who.topology.cores * who.topology.threads;
                let ecx = if logical > 1 { who.topology.package_shift() << 12 | (logical - 1) } else { 0 };
                [linear | u32::from(self.phys_bits), f(Word::E8Ebx), ecx, 0]
            }
            0x8000_001e if self.has(F::Topoext) => {
                let core = who.apic_id >> who.topology.core_shift();
                let node = who.apic_id >> who.topology.package_shift();
                [who.apic_id, core & 0xff | (who.topology.threads - 1) << 8, node & 0xff, 0]
            }
            _ => [0; 4],
        }
    }

    fn leaf_1(&self, who: &Asker) -> [u32; 4] {
        let mut ecx = self.features.word(Word::L1Ecx) & !(1 << 27);
        let mut edx = self.features.word(Word::L1Edx);
        let mut ebx = (who.apic_id & 0xff) << 24 | 8 << 8;
        if self.has(F::Xsave) && who.osxsave {
            ecx |= 1 << 27;
        }
        if !who.apic_enabled {
            edx &= !(1 << 9);
        }
        let logical = who.topology.cores * who.topology.threads;
        if logical > 1 {
            ebx |= logical.min(255) << 16;
            edx |= 1 << 28;
        }
        [self.signature(), ebx, ecx, edx]
    }

    fn leaf_4(&self, subleaf: u32, who: &Asker) -> [u32; 4] {
        // Type, level, ways, sets, threads that share it, flags in EDX.
        let t = &who.topology;
        let (kind, level, ways, sets, sharing, flags) = match subleaf {
            0 => (1, 1, 8, 64, t.threads, 1),
            1 => (2, 1, 8, 64, t.threads, 1),
            2 => (3, 2, 16, 4096, t.threads, 1),
            3 => (3, 3, 16, 16384, 1 << t.package_shift(), 6),
            _ => return [0; 4],
        };
        let cores = (t.cores.max(1) - 1).min(63);
        let eax = kind | level << 5 | 1 << 8 | (sharing.clamp(1, 4096) - 1) << 14 | cores << 26;
        [eax, 63 | (ways - 1) << 22, sets - 1, flags]
    }

    fn leaf_d(&self, subleaf: u32, who: &Asker) -> [u32; 4] {
        let supported = self.xcr0_supported();
        let size = |x: u64| match (x & xcr0::PKRU != 0, x & xcr0::AVX != 0) {
            (true, _) => 2696,
            (_, true) => 832,
            _ => 576,
        };
        let compact_size =
            |x: u64| 576 + if x & xcr0::AVX != 0 { 256 } else { 0 } + if x & xcr0::PKRU != 0 { 8 } else { 0 };
        match subleaf {
            0 => [supported as u32, size(who.xcr0), size(supported), 0],
            // EBX: the compacted size for XCR0.
            1 => {
                let features = self.features.word(Word::LdEax);
                let compact = features & 0b1010 != 0;
                [features, if compact { compact_size(who.xcr0) } else { 0 }, 0, 0]
            }
            2 if supported & xcr0::AVX != 0 => [256, 576, 0, 0],
            9 if supported & xcr0::PKRU != 0 => [8, 2688, 0, 0],
            _ => [0; 4],
        }
    }
}

fn leaf_b(subleaf: u32, who: &Asker) -> [u32; 4] {
    let t = &who.topology;
    let count = subleaf & 0xff;
    match subleaf {
        0 => [t.core_shift(), t.threads, count | 1 << 8, who.apic_id],
        1 => [t.package_shift(), t.threads * t.cores, count | 2 << 8, who.apic_id],
        _ => [0, 0, count, who.apic_id],
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(topology: Topology, index: u32) -> Asker {
        let apic_id = topology.apic_id(index);
        Asker { apic_id, topology, osxsave: false, ospke: false, xcr0: 1, apic_enabled: true }
    }
    fn qemu64() -> CpuModel {
        CpuModel::named("qemu64", &FeatureSet::available()).unwrap()
    }

    /// What a guest read under QEMU 7.2.22 `-accel tcg -cpu qemu64`, with one processor and with
    /// `-smp sockets=1,cores=2,threads=2`: leaf, subleaf, then EAX, EBX, ECX and EDX.
    const QEMU: &[(u32, u32, [u32; 4], [u32; 4])] = {
        const NONE: [u32; 4] = [0; 4];
        const MAX: [u32; 4] = [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65];
        const XMAX: [u32; 4] = [0x8000_000a, 0x6874_7541, 0x444d_4163, 0x6974_6e65];
        const L1: [u32; 4] = [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140];
        const L2: [u32; 4] = [0, 0x4200_4200, 0x0200_8140, 0x0080_8140];
        &[
            (0, 0, MAX, MAX),
            (1, 0, [0x60fb1, 0x800, 0x8000_2001, 0x078b_fbfd], [0x60fb1, 0x4_0800, 0x8000_2001, 0x178b_fbfd]),
            (2, 0, NONE, NONE),
            (4, 0, NONE, NONE),
            (4, 3, NONE, NONE),
            (5, 0, [0, 0, 3, 0], [0, 0, 3, 0]),
            (6, 0, NONE, NONE),
            (7, 0, NONE, NONE),
            (0xa, 0, NONE, NONE),
            (0xb, 0, [0, 1, 0x100, 0], [1, 2, 0x100, 0]),
            (0xb, 1, [0, 1, 0x201, 0], [2, 4, 0x201, 0]),
            (0xb, 2, [0, 0, 2, 0], [0, 0, 2, 0]),
            (0xd, 0, NONE, NONE),
            (0xd, 1, NONE, NONE),
            (0x8000_0000, 0, XMAX, XMAX),
            // There ECX also shows SVM (bit 2), which we have not.
            (0x8000_0001, 0, [0x60fb1, 0, 1, 0x2193_fbfd], [0x60fb1, 0, 3, 0x2193_fbfd]),
            (0x8000_0005, 0, L1, L1),
            (0x8000_0006, 0, L2, L2),
            (0x8000_0007, 0, NONE, NONE),
            (0x8000_0008, 0, [0x3028, 0, 0, 0], [0x3028, 0, 0x2003, 0]),
            (0x8000_001e, 0, NONE, NONE),
        ]
    };

    #[test]
    fn qemu64_shows_the_leaves_of_its_namesake() {
        let m = qemu64();
        let four = Topology { sockets: 1, cores: 2, threads: 2 };
        for (leaf, subleaf, one, many) in QEMU {
            assert_eq!(m.cpuid(*leaf, *subleaf, &asker(Topology::default(), 0)), *one, "{leaf:x}.{subleaf}");
            assert_eq!(m.cpuid(*leaf, *subleaf, &asker(four, 0)), *many, "{leaf:x}.{subleaf} of four");
        }
        let who = asker(four, 0);
        let brand: Vec<u8> =
            (0..3).flat_map(|i| m.cpuid(0x8000_0002 + i, 0, &who)).flat_map(u32::to_le_bytes).collect();
        assert!(brand.starts_with(b"QEMU Virtual CPU version 2.5+\0"));
    }

    #[test]
    fn topology_packs_threads_cores_and_sockets_into_the_apic_id() {
        let t = Topology { sockets: 4, cores: 3, threads: 2 };
        assert_eq!((t.core_shift(), t.package_shift()), (1, 3));
        assert_eq!(t.apic_id(5), 0b101);
        assert_eq!(t.apic_id(6), 0b1000);
        let who = asker(t, 6);
        assert_eq!(qemu64().cpuid(0xb, 0, &who), [1, 2, 0x100, 8]);
        assert_eq!(qemu64().cpuid(0xb, 1, &who), [3, 6, 0x201, 8]);
        assert_eq!(qemu64().cpuid(1, 0, &who)[1], 8 << 24 | 6 << 16 | 8 << 8);
    }

    #[test]
    fn bits_that_follow_the_state_do() {
        let m = CpuModel::named("max", &FeatureSet::available()).unwrap();
        let mut who = asker(Topology::default(), 0);
        assert_eq!(m.cpuid(1, 0, &who)[2] >> 27 & 1, 0);
        who.osxsave = true;
        who.apic_enabled = false;
        assert_eq!(m.cpuid(1, 0, &who)[2] >> 27 & 1, 1);
        assert_eq!(m.cpuid(1, 0, &who)[3] >> 9 & 1, 0);
        who.xcr0 = 3;
        assert_eq!(m.cpuid(0xd, 0, &who)[1], 576);
    }

    #[test]
    fn features_are_added_and_taken_away_by_name() {
        let available = FeatureSet::available();
        let p = CpuModel::parse("qemu64,+popcnt,-sse3,smep=on,family=6,vendor=GenuineIntel", &available);
        let m = p.unwrap().model;
        assert!(m.has(Feature::Popcnt) && m.has(Feature::Smep) && !m.has(Feature::Sse3));
        assert!(m.is_intel());
        assert_eq!(m.signature(), 0x606b1);
    }

    #[test]
    fn what_cannot_be_had_is_a_warning_or_with_enforce_an_error() {
        let available = FeatureSet::available();
        let p = CpuModel::parse("qemu64,+vmx", &available).unwrap();
        assert_eq!(p.warnings, ["TCG doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]"]);
        assert!(!p.model.has(Feature::Vmx));
        assert!(CpuModel::parse("qemu64,+vmx,enforce", &available).is_err());
        for wrong in ["nosuch", "qemu64,+nosuch", "qemu64,nosuch=on", "qemu64,family=x", "qemu64,sse3=2"] {
            assert!(CpuModel::parse(wrong, &available).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_feature_has_a_bit_and_a_name_of_its_own() {
        for (i, a) in Feature::ALL.iter().enumerate() {
            for b in &Feature::ALL[i + 1..] {
                assert!(a.name() != b.name());
                assert!(a.position() != b.position());
            }
        }
    }
}
