//! What an encoding needs: CPUID features and processor modes.

use anura_x86::{CpuModel, Feature};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};

/// Features the guest may execute, by the decoder's numbering, and its vendor's habits.
#[derive(Clone, Debug)]
pub struct Features {
    /// One bit for each encoding.
    allowed: Box<[u64]>,
    /// Near branches with 66h in 64-bit mode and the like follow AMD.
    pub amd: bool,
    /// F3 0F BC is TZCNT.
    pub tzcnt: bool,
    /// F3 0F BD is LZCNT.
    pub lzcnt: bool,
    /// LAHF and SAHF exist in 64-bit code.
    pub lahf64: bool,
}

/// Features without which no x86-64 processor exists, or whose encodings are hints on the others.
const BASE: &[CpuidFeature] = {
    use CpuidFeature::*;
    &[
        INTEL8086,
        INTEL186,
        INTEL286,
        INTEL386,
        INTEL486,
        X64,
        CPUID,
        MULTIBYTENOP,
        PAUSE,
        PREFETCHW,
        PREFETCHWT1,
        CLDEMOTE,
        CET_IBT,
        CET_SS,
        HLE_or_RTM,
        RDPMC,
        WBNOINVD,
        SMAP,
        FPU287,
        FPU387,
    ]
};

/// The decoder's features and ours.
const MAP: &[(CpuidFeature, Feature)] = {
    use CpuidFeature as C;
    use Feature as F;
    &[
        (C::ADX, F::Adx),
        (C::AES, F::Aes),
        (C::AVX, F::Avx),
        (C::AVX2, F::Avx2),
        (C::BMI1, F::Bmi1),
        (C::BMI2, F::Bmi2),
        (C::CLFLUSHOPT, F::Clflushopt),
        (C::CLFSH, F::Clflush),
        (C::CLWB, F::Clwb),
        (C::CMOV, F::Cmov),
        (C::CMPXCHG16B, F::Cx16),
        (C::CX8, F::Cx8),
        (C::F16C, F::F16c),
        (C::FMA, F::Fma),
        (C::FPU, F::Fpu),
        (C::FSGSBASE, F::Fsgsbase),
        (C::FXSR, F::Fxsr),
        (C::GFNI, F::Gfni),
        (C::INVPCID, F::Invpcid),
        (C::LZCNT, F::Abm),
        (C::MMX, F::Mmx),
        (C::MONITOR, F::Monitor),
        (C::MOVBE, F::Movbe),
        (C::MSR, F::Msr),
        (C::PCLMULQDQ, F::Pclmulqdq),
        (C::PKU, F::Pku),
        (C::POPCNT, F::Popcnt),
        (C::RDPID, F::Rdpid),
        (C::RDRAND, F::Rdrand),
        (C::RDSEED, F::Rdseed),
        (C::RDTSCP, F::Rdtscp),
        (C::SEP, F::Sep),
        (C::SERIALIZE, F::Serialize),
        (C::SHA, F::ShaNi),
        (C::SSE, F::Sse),
        (C::SSE2, F::Sse2),
        (C::SSE3, F::Sse3),
        (C::SSE4A, F::Sse4a),
        (C::SSE4_1, F::Sse41),
        (C::SSE4_2, F::Sse42),
        (C::SSSE3, F::Ssse3),
        (C::SYSCALL, F::Syscall),
        (C::TSC, F::Tsc),
        (C::VAES, F::Vaes),
        (C::VPCLMULQDQ, F::Vpclmulqdq),
        (C::XSAVE, F::Xsave),
        (C::XSAVEC, F::Xsavec),
        (C::XSAVEOPT, F::Xsaveopt),
        (C::XSAVES, F::Xsaves),
    ]
};

impl Features {
    /// What a model shows.
    pub fn of(model: &CpuModel) -> Self {
        Features {
            allowed: allowed(|f| model.has(f)),
            amd: !model.is_intel(),
            tzcnt: model.has(Feature::Bmi1),
            lzcnt: model.has(Feature::Abm),
            lahf64: model.has(Feature::LahfLm),
        }
    }

    /// Everything that this crate knows.
    pub fn all_ref() -> &'static Features {
        static ALL: std::sync::OnceLock<Features> = std::sync::OnceLock::new();
        ALL.get_or_init(Features::all)
    }

    /// The same, for tests.
    pub fn all() -> Self {
        Features { allowed: allowed(|_| true), amd: false, tzcnt: true, lzcnt: true, lahf64: true }
    }

    /// Whether the guest may execute the instruction at all.
    pub fn allow(&self, i: &Instruction) -> bool {
        let n = i.code() as usize;
        self.allowed.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0)
    }
}

/// The encodings that need no other features than those that are there, one bit each.
fn allowed(has: impl Fn(Feature) -> bool) -> Box<[u64]> {
    let mut there = [0u64; 3];
    let mut add = |f: CpuidFeature| there[f as usize / 64] |= 1u64 << (f as usize % 64);
    BASE.iter().for_each(|&f| add(f));
    MAP.iter().filter(|(_, f)| has(*f)).for_each(|(c, _)| add(*c));
    let mut codes = Vec::new();
    for code in Code::values() {
        let all = code.cpuid_features().iter().all(|&f| there[f as usize / 64] >> (f as usize % 64) & 1 != 0);
        let n = code as usize;
        codes.resize(codes.len().max(n / 64 + 1), 0);
        codes[n / 64] |= u64::from(all) << (n % 64);
    }
    codes.into()
}

/// Which unit an opaque instruction belongs to, by what makes it fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// x87.
    X87,
    /// MMX registers.
    Mmx,
    /// Legacy-encoded SSE.
    Sse,
    /// VEX-encoded.
    Avx,
    /// Nothing that the host could run for the guest.
    None,
}

/// The unit of an instruction.
pub fn unit(i: &Instruction) -> Unit {
    use CpuidFeature as C;
    use iced_x86::{EncodingKind, OpKind};
    match i.encoding() {
        EncodingKind::VEX => return Unit::Avx,
        EncodingKind::Legacy => {}
        _ => return Unit::None,
    }
    let mm = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    if mm || i.mnemonic() == Mnemonic::Emms {
        return Unit::Mmx;
    }
    let mut unit = Unit::None;
    for f in i.cpuid_features() {
        match f {
            C::FPU | C::FPU287 | C::FPU387 => return Unit::X87,
            C::SSE
            | C::SSE2
            | C::SSE3
            | C::SSSE3
            | C::SSE4A
            | C::SSE4_1
            | C::SSE4_2
            | C::AES
            | C::PCLMULQDQ
            | C::SHA
            | C::GFNI => {
                unit = Unit::Sse;
            }
            _ => {}
        }
    }
    if i.mnemonic() == Mnemonic::Wait { Unit::X87 } else { unit }
}

/// Whether an instruction looks at MXCSR or sets its flags.
pub fn uses_mxcsr(i: &Instruction) -> bool {
    let name = format!("{:?}", i.mnemonic()).to_lowercase();
    let n = name.strip_prefix('v').unwrap_or(&name);
    const STEMS: &[&str] = &[
        "add", "sub", "mul", "div", "sqrt", "max", "min", "cmpp", "cmps", "comi", "ucomi", "cvt", "round",
        "hadd", "hsub", "dpp", "fm", "fnm", "rcp", "rsqrt",
    ];
    STEMS.iter().any(|s| n.starts_with(s)) && n != "mulx"
}
