//! CPU models: identification and features by name.
//!
//! What a model shows follows the vendors' processors of that name as CPUID describes them, with QEMU 7.2's names and
//! choices, so that a guest's description carries over. Features that the engine does not emulate are listed too; they
//! are taken away when a model is made, with a warning.

/// A model.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub name: &'static str,
    pub vendor: &'static [u8; 12],
    /// Family, model, stepping.
    pub id: (u32, u32, u32),
    pub model_id: &'static str,
    /// Highest basic and extended leaf.
    pub levels: (u32, u32),
    pub phys_bits: u8,
    /// Names of features; `None`: everything that can be had.
    pub features: Option<&'static str>,
}

/// The models.
#[rustfmt::skip]
pub(crate) const MODELS: &[Row] = &[
    Row {
        name: "486",
        vendor: b"GenuineIntel",
        id: (4, 8, 0),
        model_id: "",
        levels: (0x1, 0x0),
        phys_bits: 32,
        features: Some("fpu pse hypervisor"),
    },
    Row {
        name: "pentium",
        vendor: b"GenuineIntel",
        id: (5, 4, 3),
        model_id: "",
        levels: (0x1, 0x0),
        phys_bits: 32,
        features: Some("fpu de pse tsc msr mce cx8 apic mmx hypervisor"),
    },
    Row {
        name: "pentium2",
        vendor: b"GenuineIntel",
        id: (6, 5, 2),
        model_id: "",
        levels: (0x2, 0x0),
        phys_bits: 36,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 mmx fxsr \
                   hypervisor"),
    },
    Row {
        name: "pentium3",
        vendor: b"GenuineIntel",
        id: (6, 7, 3),
        model_id: "",
        levels: (0x3, 0x0),
        phys_bits: 36,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 mmx fxsr sse \
                   hypervisor"),
    },
    Row {
        name: "athlon",
        vendor: b"AuthenticAMD",
        id: (6, 2, 3),
        model_id: "QEMU Virtual CPU version 2.5+",
        levels: (0x2, 0x80000008),
        phys_bits: 36,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 mmx fxsr sse \
                   sse2 hypervisor mmxext 3dnowext 3dnow"),
    },
    Row {
        name: "n270",
        vendor: b"GenuineIntel",
        id: (6, 28, 2),
        model_id: "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
        levels: (0xa, 0x80000008),
        phys_bits: 32,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat clflush acpi mmx fxsr \
                   sse sse2 ss pni monitor ssse3 movbe hypervisor nx lahf-lm"),
    },
    Row {
        name: "coreduo",
        vendor: b"GenuineIntel",
        id: (6, 14, 8),
        model_id: "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
        levels: (0xa, 0x80000008),
        phys_bits: 32,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat clflush acpi mmx fxsr \
                   sse sse2 ss pni monitor hypervisor nx"),
    },
    Row {
        name: "core2duo",
        vendor: b"GenuineIntel",
        id: (6, 15, 11),
        model_id: "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        levels: (0xa, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush acpi mmx \
                   fxsr sse sse2 ss pni monitor ssse3 cx16 hypervisor syscall nx lm lahf-lm"),
    },
    Row {
        name: "qemu32",
        vendor: b"GenuineIntel",
        id: (6, 6, 3),
        model_id: "QEMU Virtual CPU version 2.5+",
        levels: (0x4, 0x80000004),
        phys_bits: 32,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep pge cmov pat mmx fxsr sse sse2 pni \
                   hypervisor"),
    },
    Row {
        name: "kvm32",
        vendor: b"GenuineIntel",
        id: (15, 6, 1),
        model_id: "Common 32-bit KVM processor",
        levels: (0x5, 0x80000008),
        phys_bits: 36,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni hypervisor"),
    },
    Row {
        name: "qemu64",
        vendor: b"AuthenticAMD",
        id: (15, 107, 1),
        // Without SVM, which its namesake has: the default model starts without a warning.
        model_id: "QEMU Virtual CPU version 2.5+",
        levels: (0xd, 0x8000000a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni cx16 hypervisor syscall nx lm lahf-lm"),
    },
    Row {
        name: "kvm64",
        vendor: b"GenuineIntel",
        id: (15, 6, 1),
        model_id: "Common KVM processor",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni cx16 hypervisor syscall nx lm"),
    },
    Row {
        name: "phenom",
        vendor: b"AuthenticAMD",
        id: (16, 2, 3),
        model_id: "AMD Phenom(tm) 9550 Quad-Core Processor",
        levels: (0x5, 0x8000001a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni monitor cx16 popcnt hypervisor syscall nx mmxext fxsr-opt pdpe1gb \
                   rdtscp lm 3dnowext 3dnow lahf-lm svm abm sse4a"),
    },
    Row {
        name: "Conroe",
        vendor: b"GenuineIntel",
        id: (6, 15, 3),
        model_id: "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
        levels: (0xa, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni ssse3 hypervisor syscall nx lm lahf-lm"),
    },
    Row {
        name: "Penryn",
        vendor: b"GenuineIntel",
        id: (6, 23, 3),
        model_id: "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        levels: (0xa, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni ssse3 cx16 sse4.1 hypervisor syscall nx lm lahf-lm"),
    },
    Row {
        name: "Nehalem",
        vendor: b"GenuineIntel",
        id: (6, 26, 3),
        model_id: "Intel Core i7 9xx (Nehalem Class Core i7)",
        levels: (0xb, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni ssse3 cx16 sse4.1 sse4.2 popcnt hypervisor syscall nx lm lahf-lm"),
    },
    Row {
        name: "Nehalem-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 26, 3),
        model_id: "Intel Core i7 9xx (Nehalem Core i7, IBRS update)",
        levels: (0xb, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni ssse3 cx16 sse4.1 sse4.2 popcnt hypervisor spec-ctrl syscall nx lm \
                   lahf-lm"),
    },
    Row {
        name: "Westmere",
        vendor: b"GenuineIntel",
        id: (6, 44, 1),
        model_id: "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        levels: (0xb, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes hypervisor arat syscall \
                   nx lm lahf-lm"),
    },
    Row {
        name: "Westmere-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 44, 1),
        model_id: "Westmere E56xx/L56xx/X56xx (IBRS update)",
        levels: (0xb, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes hypervisor arat spec-ctrl \
                   syscall nx lm lahf-lm"),
    },
    Row {
        name: "SandyBridge",
        vendor: b"GenuineIntel",
        id: (6, 42, 1),
        model_id: "Intel Xeon E312xx (Sandy Bridge)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave \
                   avx hypervisor arat xsaveopt syscall nx rdtscp lm lahf-lm"),
    },
    Row {
        name: "SandyBridge-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 42, 1),
        model_id: "Intel Xeon E312xx (Sandy Bridge, IBRS update)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave \
                   avx hypervisor arat spec-ctrl xsaveopt syscall nx rdtscp lm lahf-lm"),
    },
    Row {
        name: "IvyBridge",
        vendor: b"GenuineIntel",
        id: (6, 58, 9),
        model_id: "Intel Xeon E3-12xx v2 (Ivy Bridge)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave \
                   avx f16c rdrand hypervisor arat fsgsbase smep erms xsaveopt syscall nx rdtscp lm \
                   lahf-lm"),
    },
    Row {
        name: "IvyBridge-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 58, 9),
        model_id: "Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave \
                   avx f16c rdrand hypervisor arat fsgsbase smep erms spec-ctrl xsaveopt syscall nx \
                   rdtscp lm lahf-lm"),
    },
    Row {
        name: "Haswell",
        vendor: b"GenuineIntel",
        id: (6, 60, 4),
        model_id: "Intel Core Processor (Haswell)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm xsaveopt syscall nx rdtscp lm lahf-lm abm"),
    },
    Row {
        name: "Haswell-noTSX",
        vendor: b"GenuineIntel",
        id: (6, 60, 1),
        model_id: "Intel Core Processor (Haswell, no TSX)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid xsaveopt syscall nx rdtscp lm lahf-lm abm"),
    },
    Row {
        name: "Haswell-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 60, 4),
        model_id: "Intel Core Processor (Haswell, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm spec-ctrl xsaveopt syscall nx rdtscp lm lahf-lm abm"),
    },
    Row {
        name: "Haswell-noTSX-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 60, 1),
        model_id: "Intel Core Processor (Haswell, no TSX, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid spec-ctrl xsaveopt syscall nx rdtscp lm lahf-lm abm"),
    },
    Row {
        name: "Broadwell",
        vendor: b"GenuineIntel",
        id: (6, 61, 2),
        model_id: "Intel Core Processor (Broadwell)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm rdseed adx smap xsaveopt syscall nx rdtscp lm lahf-lm abm \
                   3dnowprefetch"),
    },
    Row {
        name: "Broadwell-noTSX",
        vendor: b"GenuineIntel",
        id: (6, 61, 2),
        model_id: "Intel Core Processor (Broadwell, no TSX)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid rdseed adx smap xsaveopt syscall nx rdtscp lm lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Broadwell-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 61, 2),
        model_id: "Intel Core Processor (Broadwell, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm rdseed adx smap spec-ctrl xsaveopt syscall nx rdtscp lm \
                   lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Broadwell-noTSX-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 61, 2),
        model_id: "Intel Core Processor (Broadwell, no TSX, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid rdseed adx smap spec-ctrl xsaveopt syscall nx rdtscp lm lahf-lm abm \
                   3dnowprefetch"),
    },
    Row {
        name: "Skylake-Client",
        vendor: b"GenuineIntel",
        id: (6, 94, 3),
        model_id: "Intel Core Processor (Skylake)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm rdseed adx smap xsaveopt xsavec xgetbv1 syscall nx rdtscp lm \
                   lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Skylake-Client-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 94, 3),
        model_id: "Intel Core Processor (Skylake, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm rdseed adx smap spec-ctrl xsaveopt xsavec xgetbv1 syscall nx \
                   rdtscp lm lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Skylake-Client-noTSX-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 94, 3),
        model_id: "Intel Core Processor (Skylake, IBRS, no TSX)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid rdseed adx smap spec-ctrl xsaveopt xsavec xgetbv1 syscall nx rdtscp lm \
                   lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Skylake-Server",
        vendor: b"GenuineIntel",
        id: (6, 85, 4),
        model_id: "Intel Xeon Processor (Skylake)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap clflushopt clwb avx512cd \
                   avx512bw avx512vl pku xsaveopt xsavec xgetbv1 syscall nx pdpe1gb rdtscp lm lahf-lm \
                   abm 3dnowprefetch"),
    },
    Row {
        name: "Skylake-Server-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 85, 4),
        model_id: "Intel Xeon Processor (Skylake, IBRS)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap clwb avx512cd avx512bw \
                   avx512vl pku spec-ctrl xsaveopt xsavec xgetbv1 syscall nx pdpe1gb rdtscp lm lahf-lm \
                   abm 3dnowprefetch"),
    },
    Row {
        name: "Skylake-Server-noTSX-IBRS",
        vendor: b"GenuineIntel",
        id: (6, 85, 4),
        model_id: "Intel Xeon Processor (Skylake, IBRS, no TSX)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 \
                   erms invpcid avx512f avx512dq rdseed adx smap clwb avx512cd avx512bw avx512vl pku \
                   spec-ctrl xsaveopt xsavec xgetbv1 syscall nx pdpe1gb rdtscp lm lahf-lm abm \
                   3dnowprefetch"),
    },
    Row {
        name: "Cascadelake-Server",
        vendor: b"GenuineIntel",
        id: (6, 85, 6),
        model_id: "Intel Xeon Processor (Cascadelake)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap clflushopt clwb avx512cd \
                   avx512bw avx512vl pku avx512vnni spec-ctrl ssbd xsaveopt xsavec xgetbv1 syscall nx \
                   pdpe1gb rdtscp lm lahf-lm abm 3dnowprefetch"),
    },
    Row {
        name: "Icelake-Server",
        vendor: b"GenuineIntel",
        id: (6, 134, 0),
        model_id: "Intel Xeon Processor (Icelake)",
        levels: (0xd, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 hle avx2 smep \
                   bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap clflushopt clwb avx512cd \
                   avx512bw avx512vl avx512vbmi umip pku avx512vbmi2 gfni vaes vpclmulqdq avx512vnni \
                   avx512bitalg avx512-vpopcntdq la57 spec-ctrl ssbd xsaveopt xsavec xgetbv1 syscall nx \
                   pdpe1gb rdtscp lm lahf-lm abm 3dnowprefetch wbnoinvd"),
    },
    Row {
        name: "Denverton",
        vendor: b"GenuineIntel",
        id: (6, 95, 1),
        model_id: "Intel Atom Processor (Denverton)",
        levels: (0x15, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 cx16 sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave rdrand hypervisor arat fsgsbase smep erms mpx rdseed smap \
                   clflushopt sha-ni spec-ctrl arch-capabilities ssbd xsaveopt xsavec xgetbv1 syscall \
                   nx pdpe1gb rdtscp lm lahf-lm 3dnowprefetch"),
    },
    Row {
        name: "Snowridge",
        vendor: b"GenuineIntel",
        id: (6, 134, 1),
        model_id: "Intel Atom Processor (SnowRidge)",
        levels: (0x1b, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 cx16 sse4.1 sse4.2 x2apic movbe popcnt \
                   tsc-deadline aes xsave rdrand hypervisor arat fsgsbase smep erms mpx rdseed smap \
                   clflushopt clwb sha-ni umip gfni cldemote movdiri movdir64b spec-ctrl \
                   arch-capabilities ssbd xsaveopt xsavec xgetbv1 syscall nx pdpe1gb rdtscp lm lahf-lm \
                   3dnowprefetch"),
    },
    Row {
        name: "Dhyana",
        vendor: b"HygonGenuine",
        id: (24, 0, 1),
        model_id: "Hygon Dhyana Processor",
        levels: (0xd, 0x8000001e),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt xsave avx f16c rdrand \
                   hypervisor arat fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt xsaveopt \
                   xsavec xgetbv1 syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm lahf-lm svm cr8legacy \
                   abm sse4a misalignsse 3dnowprefetch osvw topoext ibpb"),
    },
    Row {
        name: "EPYC",
        vendor: b"AuthenticAMD",
        id: (23, 1, 2),
        model_id: "AMD EPYC Processor",
        levels: (0xd, 0x8000001e),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave \
                   avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap \
                   clflushopt sha-ni xsaveopt xsavec xgetbv1 syscall nx mmxext fxsr-opt pdpe1gb rdtscp \
                   lm lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext"),
    },
    Row {
        name: "EPYC-IBPB",
        vendor: b"AuthenticAMD",
        id: (23, 1, 2),
        model_id: "AMD EPYC Processor (with IBPB)",
        levels: (0xd, 0x8000001e),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave \
                   avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap \
                   clflushopt sha-ni xsaveopt xsavec xgetbv1 syscall nx mmxext fxsr-opt pdpe1gb rdtscp \
                   lm lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext ibpb"),
    },
    Row {
        name: "EPYC-Rome",
        vendor: b"AuthenticAMD",
        id: (23, 49, 0),
        model_id: "AMD EPYC-Rome Processor",
        levels: (0xd, 0x8000001e),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave \
                   avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap \
                   clflushopt clwb sha-ni umip rdpid xsaveopt xsavec xgetbv1 xsaves syscall nx mmxext \
                   fxsr-opt pdpe1gb rdtscp lm lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch \
                   osvw topoext perfctr-core clzero xsaveerptr wbnoinvd ibpb amd-stibp"),
    },
    Row {
        name: "EPYC-Milan",
        vendor: b"AuthenticAMD",
        id: (25, 1, 1),
        model_id: "AMD EPYC-Milan Processor",
        levels: (0xd, 0x8000001e),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq monitor ssse3 fma cx16 pcid sse4.1 sse4.2 movbe popcnt aes \
                   xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 smep bmi2 erms invpcid \
                   rdseed adx smap clflushopt clwb sha-ni umip pku rdpid fsrm xsaveopt xsavec xgetbv1 \
                   xsaves syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm lahf-lm svm cr8legacy abm sse4a \
                   misalignsse 3dnowprefetch osvw topoext perfctr-core clzero xsaveerptr wbnoinvd ibpb \
                   ibrs amd-stibp amd-ssbd"),
    },
    Row {
        name: "Opteron_G1",
        vendor: b"AuthenticAMD",
        id: (15, 6, 1),
        model_id: "AMD Opteron 240 (Gen 1 Class Opteron)",
        levels: (0x5, 0x80000008),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni hypervisor syscall nx lm"),
    },
    Row {
        name: "Opteron_G2",
        vendor: b"AuthenticAMD",
        id: (15, 6, 1),
        model_id: "AMD Opteron 22xx (Gen 2 Class Opteron)",
        levels: (0x5, 0x8000000a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni cx16 hypervisor syscall nx lm lahf-lm svm"),
    },
    Row {
        name: "Opteron_G3",
        vendor: b"AuthenticAMD",
        id: (16, 2, 3),
        model_id: "AMD Opteron 23xx (Gen 3 Class Opteron)",
        levels: (0x5, 0x8000000a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni monitor cx16 popcnt hypervisor syscall nx rdtscp lm lahf-lm svm abm \
                   sse4a misalignsse"),
    },
    Row {
        name: "Opteron_G4",
        vendor: b"AuthenticAMD",
        id: (21, 1, 2),
        model_id: "AMD Opteron 62xx class CPU",
        levels: (0xd, 0x8000001a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes xsave avx hypervisor \
                   syscall nx pdpe1gb rdtscp lm lahf-lm svm abm sse4a misalignsse 3dnowprefetch xop \
                   fma4"),
    },
    Row {
        name: "Opteron_G5",
        vendor: b"AuthenticAMD",
        id: (21, 2, 0),
        model_id: "AMD Opteron 63xx class CPU",
        levels: (0xd, 0x8000001a),
        phys_bits: 40,
        features: Some("fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
                   sse sse2 pni pclmulqdq ssse3 fma cx16 sse4.1 sse4.2 popcnt aes xsave avx f16c \
                   hypervisor syscall nx pdpe1gb rdtscp lm lahf-lm svm abm sse4a misalignsse \
                   3dnowprefetch xop fma4 tbm"),
    },
    Row {
        name: "base",
        vendor: &[0; 12],
        id: (0, 0, 0),
        model_id: "",
        levels: (0x0, 0x0),
        phys_bits: 32,
        features: Some(""),
    },
    Row {
        name: "max",
        vendor: b"AuthenticAMD",
        id: (15, 107, 1),
        model_id: "Anura software CPU",
        levels: (0xd, 0x8000_000a),
        phys_bits: 40,
        features: None,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Feature;

    #[test]
    fn every_feature_of_a_model_has_a_known_name() {
        for row in MODELS {
            for name in row.features.unwrap_or("").split_ascii_whitespace() {
                assert!(Feature::by_name(name).is_some_and(|f| f.name() == name), "{}: {name}", row.name);
            }
        }
    }
}
