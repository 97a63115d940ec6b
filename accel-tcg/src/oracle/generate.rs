//! Random instructions, by encoding, with operands that make sense.
//!
//! At the start every opcode byte of every map is decoded with every prefix that can matter;
//! what is an instruction of the model becomes a template of its encoding (the decoder's
//! `Code`). A case fills a template with random registers, displacement and immediate, and then
//! sets the registers so that memory operands lie in the data windows: inside a page, across two
//! writable pages, across a writable and a read-only one, before the absent page, or at an
//! address that is not canonical.
use super::{CODE, CODE_BYTES, DATA, FpImage, TAKEN};
use crate::frontend::blocks;
use crate::frontend::decode::decode;
use crate::frontend::effects::Features;
use crate::ir::Opcode;
use crate::mode::key;
use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeMap;

/// A small fast generator (xorshift64*), so that a seed gives the same cases everywhere.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`, which is below 2^32.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 32) * n >> 32
    }
    /// True in `percent` of all cases.
    #[inline]
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// One of the given.
    #[inline]
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A 64-bit value near the edges of some width, more often than not.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            u64::MAX,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            0x5555_5555_5555_5555,
            0x0f0f_0f0f_0f0f_0f0f,
        ];
        let v = match self.below(8) {
            0 | 1 => self.pick(&EDGES),
            2 => self.pick(&EDGES).wrapping_add(self.below(5)).wrapping_sub(2),
            3 => self.below(70),
            4 => (self.below(140) as i64 - 70) as u64,
            5 => self.bits() >> self.below(64),
            6 => self.bits() as i32 as u64,
            _ => self.bits(),
        };
        // A branch into other cases' code would tell nothing.
        if (CODE..CODE + CODE_BYTES as u64).contains(&v) { 0 } else { v }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    Legacy { prefix: u8, map: u8, w: bool },
    Vex { pp: u8, map: u8, w: bool, l: bool, unused: bool },
}

#[derive(Clone, Copy, Debug)]
struct Template {
    lead: Lead,
    opcode: u8,
    modrm: u8,
}

/// One encoding.
pub struct Encoding {
    /// The decoder's name for it.
    pub code: Code,
    /// The interpreter has the host run it.
    pub thunk: bool,
    /// It looks at vector or x87 registers.
    pub floats: bool,
    templates: Vec<Template>,
}

/// A case to run.
#[derive(Clone)]
pub struct Case {
    /// Index of its encoding.
    pub encoding: usize,
    /// Bytes of the instruction.
    pub bytes: [u8; 15],
    /// Number of bytes.
    pub len: usize,
    /// The instruction.
    pub instruction: Instruction,
    /// Registers before.
    pub gpr: [u64; 16],
    /// Flags before.
    pub flags: u64,
    /// Which of the prepared vector images it starts with.
    pub fp: usize,
    /// A vector register to give this value first, for gathers.
    pub vector: Option<(usize, [u64; 4])>,
    /// Bytes to put into the data before: offset and value.
    pub patch: Option<(usize, u64)>,
}

/// Encodings and prepared register images.
pub struct Generator {
    /// The encodings.
    pub encodings: Vec<Encoding>,
    /// Vector and x87 images.
    pub images: Vec<FpImage>,
    /// Random register values, to be used in runs.
    pool: Vec<u64>,
    features: Features,
    width: Width,
}

/// Whether an encoding has to do with vector or x87 registers.
fn uses_vectors(code: Code) -> bool {
    use iced_x86::CpuidFeature as C;
    code.cpuid_features().iter().any(|f| {
        matches!(
            f,
            C::FPU
                | C::FPU287
                | C::FPU387
                | C::MMX
                | C::SSE
                | C::SSE2
                | C::SSE3
                | C::SSSE3
                | C::SSE4_1
                | C::AVX
                | C::AVX2
                | C::FXSR
                | C::XSAVE
                | C::SSE4A
        )
    })
}

/// What code the cases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 64-bit code.
    Bits64,
    /// 32-bit code in compatibility mode.
    Bits32,
}

impl Width {
    /// The mode key of such code in user mode.
    fn mode(self) -> u32 {
        let code = match self {
            Width::Bits64 => key::L64,
            Width::Bits32 => key::CODE32 | key::STACK32,
        };
        code | 3 << key::CPL_SHIFT
            | key::PROT
            | key::CS_BASE0
            | key::FLAT
            | key::CS_FLAT
            | key::MP
            | key::SSE
            | key::AVX
            | key::OSXSAVE
            | key::LMA
    }
    fn bits(self) -> u32 {
        if self == Width::Bits64 { 64 } else { 32 }
    }
}

/// Instructions that no user-mode comparison can judge, with the reason.
fn left_out(i: &Instruction) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match i.mnemonic() {
        Syscall | Sysenter | Int | Int1 => "enters the host's kernel",
        Rdtsc | Rdtscp | Rdrand | Rdseed | Rdpid | Cpuid | Rdpmc | Xgetbv => "reads what differs by nature",
        Sgdt | Sidt | Sldt | Str | Smsw | Lar | Lsl | Verr | Verw => "reads the host's descriptor tables",
        Lds | Les | Lss | Lfs | Lgs | Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => {
            "changes segments that the host needs"
        }
        Mov | Pop | Push if (0..i.op_count()).any(|n| i.op_register(n).is_segment_register()) => {
            "moves segment registers, which hold the host's selectors"
        }
        Iret | Iretd | Iretq | Retf => "changes segments that the host needs",
        Call | Jmp
            if i.is_call_far_indirect() || i.is_jmp_far_indirect() || i.is_call_far() || i.is_jmp_far() =>
        {
            "changes segments that the host needs"
        }
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64 | Xsaves
        | Xsaves64 | Xrstors | Xrstors64 => {
            "XINUSE is pinned here and the host's own there; unit tests cover it"
        }
        Fxsave | Fxsave64 => "the host leaves pointers of an x87 without errors as they were",
        Monitor | Mwait | Monitorx | Mwaitx | Clzero | Wrpkru | Rdpkru => "hidden from the guest",
        Xbegin | Xabort | Xend | Xtest => "hidden from the guest",
        Prefetch | Prefetchw | Prefetchwt1 if i.op_count() == 0 => "hint",
        Hlt | In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd => "ports of the host",
        _ => return None,
    })
}

impl Template {
    fn write(&self, out: &mut Vec<u8>, rex: u8, vvvv: u8, modrm: u8) {
        match self.lead {
            Lead::Legacy { prefix, map, w } => {
                if prefix != 0 {
                    out.push(prefix);
                }
                let rex = rex | u8::from(w) << 3;
                if rex != 0 {
                    out.push(0x40 | rex);
                }
                match map {
                    0 => {}
                    1 => out.push(0x0f),
                    2 => out.extend([0x0f, 0x38]),
                    _ => out.extend([0x0f, 0x3a]),
                }
            }
            Lead::Vex { pp, map, w, l, unused } => {
                let v = if unused { 15 } else { vvvv & 15 };
                let inverted = !rex & 7;
                out.push(0xc4);
                out.push(inverted << 5 | map);
                out.push(u8::from(w) << 7 | v << 3 | u8::from(l) << 2 | pp);
            }
        }
        out.push(self.opcode);
        out.push(modrm);
    }
}

impl Generator {
    /// Finds the encodings that a guest with these features has.
    pub fn new(features: Features, width: Width, random: &mut Random) -> Self {
        let mut found: BTreeMap<u32, (Code, Vec<Template>)> = BTreeMap::new();
        let mut bytes = Vec::with_capacity(32);
        let mut consider = |t: Template, found: &mut BTreeMap<u32, (Code, Vec<Template>)>| {
            bytes.clear();
            t.write(&mut bytes, 0, 9, t.modrm);
            bytes.extend([0; 10]);
            let Ok(i) = decode(&bytes, CODE, width.mode(), &features) else { return };
            if !features.allow(&i) || left_out(&i).is_some() {
                return;
            }
            let entry = found.entry(i.code() as u32).or_insert((i.code(), Vec::new()));
            if entry.1.len() < 160 {
                entry.1.push(t);
            }
        };
        let wide = width == Width::Bits64;
        let mut leads = vec![];
        for prefix in [0, 0x66, 0xf3, 0xf2] {
            for map in 0..4 {
                for w in if wide { &[false, true][..] } else { &[false] }.iter().copied() {
                    leads.push(Lead::Legacy { prefix, map, w });
                }
            }
        }
        for pp in 0..4 {
            for map in 1..4 {
                for bits in 0..8 {
                    let (w, l, unused) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                    leads.push(Lead::Vex { pp, map, w, l, unused });
                }
            }
        }
        for lead in leads {
            for opcode in 0..=255u8 {
                let one_byte = matches!(lead, Lead::Legacy { map: 0, .. });
                // Prefixes and escapes are no opcodes; C4, C5, 62 and 8F lead elsewhere.
                let prefix = one_byte
                    && matches!(opcode, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x62..=0x67 | 0xc4 | 0xc5 | 0xf0 | 0xf2 | 0xf3)
                    && opcode != 0x63
                    && (wide || !matches!(opcode, 0x40..=0x4f | 0x62));
                let escape =
                    matches!(lead, Lead::Legacy { map: 1, .. }) && matches!(opcode, 0x38 | 0x3a | 0x0f);
                if prefix || escape {
                    continue;
                }
                for reg in 0..8u8 {
                    consider(Template { lead, opcode, modrm: reg << 3 | 1 }, &mut found);
                    // Gathers need a SIB byte.
                    if matches!(lead, Lead::Vex { map: 2, .. }) {
                        consider(Template { lead, opcode, modrm: reg << 3 | 4 }, &mut found);
                    }
                    for rm in 0..8u8 {
                        consider(Template { lead, opcode, modrm: 0xc0 | reg << 3 | rm }, &mut found);
                    }
                }
            }
        }
        let encodings = found
            .into_values()
            .map(|(code, templates)| {
                let thunk = templates.first().is_some_and(|t| runs_on_host(t, &features, width));
                Encoding { code, thunk, floats: thunk || uses_vectors(code), templates }
            })
            .collect();
        let mut images: Vec<FpImage> = (0..1024).map(|_| random_image(random)).collect();
        // The simplest state, to shrink to.
        images[0] = FpImage::init();
        images[0].set_u64_at(512, 7);
        let pool = (0..1 << 14).map(|_| random.value()).collect();
        Self { encodings, images, pool, features, width }
    }

    /// A case of the given encoding in the code slot at `offset`; `None` if this draw gave none.
    pub fn case(&self, encoding: usize, offset: usize, r: &mut Random) -> Option<Case> {
        let e = &self.encodings[encoding];
        let t = r.pick(&e.templates);
        let mut bytes = Vec::with_capacity(32);
        if r.chance(3) {
            bytes.push(r.pick(&[0x2e, 0x3e, 0x26, 0x36]));
        }
        if r.chance(4) {
            bytes.push(0x67);
        }
        let legacy = matches!(t.lead, Lead::Legacy { .. });
        if legacy && t.modrm < 0xc0 && r.chance(30) && lockable(e.code) {
            bytes.push(0xf0);
        }
        let wide = self.width == Width::Bits64;
        let rex = if wide && r.chance(60) { r.below(8) as u8 } else { 0 };
        let modrm = self.modrm(&t, r);
        // As written, complemented: registers 8 and up do not exist in 32-bit code.
        let vvvv = r.below(16) as u8 | if wide { 0 } else { 8 };
        t.write(&mut bytes, rex, vvvv, modrm);
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode != 3 && rm == 4 {
            bytes.push(r.bits() as u8);
        }
        let tail = if r.chance(50) { r.value() } else { r.bits() };
        bytes.extend(tail.to_le_bytes());
        bytes.extend(r.value().to_le_bytes());
        bytes.truncate(15);
        let rip = CODE + offset as u64;
        let i = decode(&bytes, rip, self.width.mode(), &self.features).ok()?;
        if i.code() != e.code || left_out(&i).is_some() {
            return None;
        }
        let options = if self.features.amd { DecoderOptions::AMD } else { 0 };
        let mut decoder = Decoder::with_ip(self.width.bits(), &bytes, rip, options);
        let plain = decoder.decode();
        if plain.len() != i.len() {
            return None;
        }
        let offsets = decoder.get_constant_offsets(&plain);
        self.fit(encoding, bytes, i, offsets, r)
    }

    fn modrm(&self, t: &Template, r: &mut Random) -> u8 {
        let mut m = t.modrm;
        if r.chance(70) {
            m = m & 0xc7 | (r.below(8) as u8) << 3;
        }
        if m >= 0xc0 {
            if r.chance(70) {
                m = m & 0xf8 | r.below(8) as u8;
            }
        } else {
            let sib_only = t.modrm & 7 == 4;
            let rm = if sib_only { 4 } else { r.below(8) as u8 };
            m = m & 0x38 | (r.below(3) as u8) << 6 | rm;
        }
        m
    }

    /// Chooses registers, and moves memory operands and branch targets to where they belong.
    fn fit(
        &self,
        encoding: usize,
        mut bytes: Vec<u8>,
        i: Instruction,
        offsets: ConstantOffsets,
        r: &mut Random,
    ) -> Option<Case> {
        let rip = i.ip();
        let len = i.len();
        let mut gpr = self.registers(r);
        // The stack is always somewhere, since a fault on the way shows it.
        gpr[4] = self.target(r, 16);
        let fp = r.below(self.images.len() as u64) as usize;
        let mut patch = None;
        let taken = rip - (rip - CODE) % 64 + TAKEN as u64;
        if matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
            let relative = taken.wrapping_sub(rip + len as u64);
            let at = offsets.immediate_offset();
            let size = offsets.immediate_size();
            if at == 0 {
                return None;
            }
            bytes[at..at + size].copy_from_slice(&relative.to_le_bytes()[..size]);
        }
        operands(&i, &mut gpr, r);
        if let Some(t) = self.memory(&i, Some((&mut bytes, &offsets)), &mut gpr, r)? {
            near_values(&i, t, &mut gpr, &mut patch, taken, r);
        } else if matches!(i.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) && i.op0_kind() == OpKind::Register {
            let n = number(i.op0_register())?;
            if (i.op0_register().is_gpr64() || i.op0_register().is_gpr32()) && r.chance(80) {
                gpr[n] = taken;
            }
        }
        let loops = matches!(i.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne);
        let prefixes = &bytes[..len.saturating_sub(2)];
        if loops && self.width == Width::Bits32 && prefixes.iter().any(|p| matches!(p, 0xf2 | 0xf3)) {
            return None;
        }
        if image_at_end(&i, &gpr) || shift_is_undefined(&i, &gpr) {
            return None;
        }
        stack_values(&i, &gpr, &mut patch, taken, r);
        bytes.truncate(len);
        bytes.resize(15, 0);
        let again = decode(&bytes, rip, self.width.mode(), &self.features).ok()?;
        if again.code() != i.code() || again.len() != len {
            return None;
        }
        let flags = random_flags(r);
        if self.width == Width::Bits32 {
            gpr = gpr.map(|v| v & 0xffff_ffff);
        }
        let bytes: [u8; 15] = bytes.try_into().ok()?;
        let vector = indices(&i, r);
        Some(Case { encoding, bytes, len, instruction: again, gpr, flags, fp, vector, patch })
    }
}

/// The status flags and DF are free; IF is set in user mode.
fn random_flags(r: &mut Random) -> u64 {
    let df = if r.chance(20) { 0x400 } else { 0 };
    r.bits() & 0x8d5 | df | 0x202
}

/// Small indices for gathers.
fn indices(i: &Instruction, r: &mut Random) -> Option<(usize, [u64; 4])> {
    i.is_vsib().then(|| {
        let lane = |r: &mut Random, n: u32| {
            let v = (r.below(32) as i64 - 16) as u64;
            if n == 64 { v } else { v & 0xffff_ffff | ((r.below(32) as i64 - 16) as u64) << 32 }
        };
        let bits = if i.is_vsib64() { 64 } else { 32 };
        (i.memory_index().number(), std::array::from_fn(|_| lane(r, bits)))
    })
}

impl Generator {
    fn registers(&self, r: &mut Random) -> [u64; 16] {
        let at = r.below(self.pool.len() as u64 - 16) as usize;
        std::array::from_fn(|n| self.pool[at + n])
    }

    /// Another state for the same bytes; false if this draw gave none.
    pub fn state(&self, case: &mut Case, r: &mut Random) -> bool {
        let i = case.instruction;
        let mut gpr = self.registers(r);
        gpr[4] = self.target(r, 16);
        let mut patch = None;
        let taken = i.ip() - (i.ip() - CODE) % 64 + TAKEN as u64;
        operands(&i, &mut gpr, r);
        let Some(address) = self.memory(&i, None, &mut gpr, r) else { return false };
        if let Some(t) = address {
            near_values(&i, t, &mut gpr, &mut patch, taken, r);
        } else if matches!(i.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) && i.op0_kind() == OpKind::Register {
            let wide = i.op0_register().is_gpr64() || i.op0_register().is_gpr32();
            if let Some(n) = number(i.op0_register()).filter(|_| wide && r.chance(80)) {
                gpr[n] = taken;
            }
        }
        if image_at_end(&i, &gpr) || shift_is_undefined(&i, &gpr) {
            return false;
        }
        stack_values(&i, &gpr, &mut patch, taken, r);
        if self.width == Width::Bits32 {
            gpr = gpr.map(|v| v & 0xffff_ffff);
        }
        case.flags = random_flags(r);
        case.fp = r.below(self.images.len() as u64) as usize;
        case.vector = indices(&i, r);
        (case.gpr, case.patch) = (gpr, patch);
        true
    }

    /// An address for `size` bytes.
    fn target(&self, r: &mut Random, size: u64) -> u64 {
        let window = match r.below(100) {
            0..=54 => WINDOWS[0],
            55..=74 => WINDOWS[1],
            75..=87 => WINDOWS[2],
            88..=97 => WINDOWS[3],
            _ if self.width == Width::Bits32 => WINDOWS[3],
            _ => return 1 << 47 | r.bits() >> 24,
        };
        let at = DATA + window + r.below(96) - 48;
        // Aligned more often than chance would have it.
        if r.chance(60) { at & !(size.max(1).next_power_of_two() - 1) } else { at }
    }

    /// Makes explicit and implicit memory operands point into the windows. `None`: not possible in
    /// this draw; otherwise the address of the operand, if there is one.
    #[allow(clippy::option_option)]
    fn memory(
        &self,
        i: &Instruction,
        code: Option<(&mut [u8], &ConstantOffsets)>,
        gpr: &mut [u64; 16],
        r: &mut Random,
    ) -> Option<Option<u64>> {
        let size = (i.memory_size().size() as u64).clamp(1, 64);
        let mut address = None;
        for n in 0..i.op_count() {
            let (register, mask) = match i.op_kind(n) {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return None,
                OpKind::MemorySegESI => (6, 0xffff_ffff),
                OpKind::MemorySegRSI => (6, u64::MAX),
                OpKind::MemorySegEDI | OpKind::MemoryESEDI => (7, 0xffff_ffff),
                OpKind::MemorySegRDI | OpKind::MemoryESRDI => (7, u64::MAX),
                _ => continue,
            };
            let t = self.target(r, size);
            if t > u64::from(u32::MAX) && mask != u64::MAX {
                return None;
            }
            gpr[register] = t | gpr[register] & !mask;
            address = Some(t);
        }
        if i.mnemonic() == Mnemonic::Leave {
            gpr[5] = self.target(r, 8);
        }
        if i.mnemonic() == Mnemonic::Enter {
            gpr[5] = self.target(r, 8);
        }
        if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            return Some(address);
        }
        if matches!(i.memory_segment(), Register::FS | Register::GS) {
            return None;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        if base.is_gpr16() || index.is_gpr16() {
            return None;
        }
        let address_size_32 = base.is_gpr32() || index.is_gpr32() || base == Register::EIP;
        let mut t = self.target(r, size);
        if t > u64::from(u32::MAX) && (address_size_32 || base.is_ip()) {
            t = DATA + WINDOWS[1] - r.below(40);
        }
        let displacement = i.memory_displacement64();
        if base.is_ip() || base == Register::None && index == Register::None {
            let Some((bytes, offsets)) = code else { return Some(Some(displacement)) };
            let at = offsets.displacement_offset();
            if at == 0 || offsets.displacement_size() < 4 {
                return None;
            }
            if t > u64::from(u32::MAX) {
                t = DATA + WINDOWS[2] - r.below(40);
            }
            let value = if base.is_ip() { t.wrapping_sub(i.next_ip()) } else { t };
            let size = offsets.displacement_size();
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            return Some(Some(t));
        }
        let scale = u64::from(i.memory_index_scale());
        let wrap = |v: u64| if address_size_32 { v & 0xffff_ffff } else { v };
        let junk = if address_size_32 { r.bits() << 32 } else { 0 };
        if base == Register::None && i.is_vsib() {
            return None;
        }
        if base == Register::None {
            // Only an index: solve as well as the scale allows.
            let v = wrap(t.wrapping_sub(displacement)) / scale;
            gpr[number(index)?] = v | junk;
            return Some(Some(wrap(v.wrapping_mul(scale).wrapping_add(displacement))));
        }
        let b = number(base)?;
        let mut sum = displacement;
        if index != Register::None && !i.is_vsib() {
            let x = number(index)?;
            if x == b {
                let v = wrap(t.wrapping_sub(displacement)) / (scale + 1);
                gpr[b] = v | junk;
                return Some(Some(wrap(v.wrapping_mul(scale + 1).wrapping_add(displacement))));
            }
            let v = (r.below(64) as i64 - 32) as u64;
            gpr[x] = wrap(v) | junk;
            sum = sum.wrapping_add(v.wrapping_mul(scale));
        }
        gpr[b] = wrap(t.wrapping_sub(sum)) | junk;
        if i.mnemonic() == Mnemonic::Xlatb {
            gpr[3] = t.wrapping_sub(gpr[0] & 0xff);
        }
        // A bit offset in the same register as the base would move the operand anywhere.
        if matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && i.op1_kind() == OpKind::Register
        {
            let n = number(i.op1_register())?;
            if n == b || number(index) == Some(n) {
                return None;
            }
        }
        Some(Some(t))
    }
}

/// A flag image at the very end of the data could not be kept free of TF.
fn image_at_end(i: &Instruction, gpr: &[u64; 16]) -> bool {
    let popf = matches!(i.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq);
    let end = DATA + 0x3000;
    popf && (end - 7..end).contains(&gpr[4])
}

/// SHLD and SHRD of 16 bits by more than 16 have no defined result.
fn shift_is_undefined(i: &Instruction, gpr: &[u64; 16]) -> bool {
    if !matches!(i.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) || !i.op1_register().is_gpr16() {
        return false;
    }
    let count = if i.op2_kind() == OpKind::Register { gpr[1] as u8 } else { i.immediate8() };
    count & 31 > 16
}

/// Whether the instruction of a template becomes an operation that the host runs.
fn runs_on_host(t: &Template, features: &Features, width: Width) -> bool {
    let mut bytes = vec![];
    t.write(&mut bytes, 0, 9, t.modrm);
    bytes.extend([0; 16]);
    let second = || Err::<[u8; 15], ()>(());
    blocks::build(&bytes, second, (0, CODE, width.mode()), features, 1)
        .is_ok_and(|b| b.block.ops.iter().any(|o| o.op == Opcode::X86))
}

fn lockable(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Add | Adc
            | And
            | Btc
            | Btr
            | Bts
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Dec
            | Inc
            | Neg
            | Not
            | Or
            | Sbb
            | Sub
            | Xadd
            | Xchg
            | Xor
    )
}

/// Number of the 64-bit register that holds a general register.
fn number(reg: Register) -> Option<usize> {
    let full = reg.full_register();
    full.is_gpr64().then(|| full as usize - Register::RAX as usize)
}

/// Offsets in the data that memory operands lie around: a page's middle, two writable pages,
/// a writable and a read-only one, the read-only page and the absent one.
pub const WINDOWS: [u64; 4] = [0x800, 0x1000, 0x2000, 0x3000];

/// Values that make register operands interesting: shift counts, divisors, bit offsets, counts.
fn operands(i: &Instruction, gpr: &mut [u64; 16], r: &mut Random) {
    use Mnemonic::*;
    match i.mnemonic() {
        Div | Idiv if r.chance(80) => {
            gpr[2] = if i.mnemonic() == Idiv && r.chance(50) { u64::MAX } else { r.below(4) };
            if i.mnemonic() == Idiv && gpr[2] == u64::MAX {
                gpr[0] |= 1 << 63 | 1 << 31 | 1 << 15;
            }
        }
        Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd if r.chance(80) => {
            gpr[1] = gpr[1] & !0xff | r.below(70);
        }
        Bt | Bts | Btr | Btc if i.op1_kind() == OpKind::Register => {
            let n = number(i.op1_register()).unwrap_or(0);
            // Sign-extended to every operand size.
            gpr[n] = (r.below(2000) as i64 - 1000) as u64;
        }
        Xlatb => gpr[0] = r.value(),
        Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz if r.chance(50) => gpr[1] = r.below(3),
        Popfq | Popf | Pushfq => {}
        _ => {}
    }
    if i.has_rep_prefix() || i.has_repne_prefix() {
        // Also for instructions that ignore it.
        if is_string(i) {
            gpr[1] = if r.chance(10) { 0 } else { r.below(9) };
            if i.memory_size() != iced_x86::MemorySize::Unknown && has_32bit_count(i) {
                gpr[1] |= r.bits() << 32;
            }
        }
    }
}

fn has_32bit_count(i: &Instruction) -> bool {
    (0..i.op_count())
        .any(|n| matches!(i.op_kind(n), OpKind::MemoryESEDI | OpKind::MemorySegESI | OpKind::MemorySegEDI))
}

/// Whether the instruction is a string instruction.
pub fn is_string(i: &Instruction) -> bool {
    i.is_string_instruction()
}

/// Memory contents and registers that belong together: compare and exchange, indirect branches.
fn near_values(
    i: &Instruction,
    t: u64,
    gpr: &mut [u64; 16],
    patch: &mut Option<(usize, u64)>,
    taken: u64,
    r: &mut Random,
) {
    let Some(offset) = t.checked_sub(DATA).filter(|o| *o < 0x2ff0) else { return };
    match i.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call if r.chance(80) => *patch = Some((offset as usize, taken)),
        Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if r.chance(50) => {
            let based = |n: usize| number(i.memory_base()) == Some(n) || number(i.memory_index()) == Some(n);
            if !based(0) {
                *patch = Some((offset as usize, gpr[0] & 0xffff_ffff | gpr[2] << 32));
                if i.mnemonic() == Mnemonic::Cmpxchg || i.mnemonic() == Mnemonic::Cmpxchg16b {
                    *patch = Some((offset as usize, gpr[0]));
                }
            }
        }
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
            *patch = Some((offset as usize, r.bits() & 0xffff | 0x1f80))
        }
        Mnemonic::Fldcw => *patch = Some((offset as usize, r.bits() & 0xf00 | 0x7f)),
        _ => {}
    }
}

/// What lies on the stack: return addresses, and flag images without TF, NT and AC.
fn stack_values(
    i: &Instruction,
    gpr: &[u64; 16],
    patch: &mut Option<(usize, u64)>,
    taken: u64,
    r: &mut Random,
) {
    let Some(offset) = gpr[4].checked_sub(DATA).filter(|o| *o <= 0x2ff8) else { return };
    match i.mnemonic() {
        Mnemonic::Ret if r.chance(80) => *patch = Some((offset as usize, taken)),
        Mnemonic::Popfq | Mnemonic::Popf | Mnemonic::Popfd => {
            *patch = Some((offset as usize, r.bits() & !0x4_4100));
        }
        _ => {}
    }
}

/// A number for one lane of a vector register.
fn lane(r: &mut Random, bits: u32) -> u64 {
    let float = |r: &mut Random| -> u64 {
        let (e, m) = if bits == 64 { (11, 52) } else { (8, 23) };
        let top = (1u64 << e) - 1;
        let exponent = match r.below(10) {
            0 => 0,
            1 => top,
            2 => 1,
            3 => top - 1,
            4..=7 => top / 2 + r.below(40) - 20,
            _ => r.bits() & top,
        };
        let mantissa = match r.below(5) {
            0 => 0,
            1 => 1,
            2 => (1 << m) - 1,
            3 => 1 << (m - 1),
            _ => r.bits() & ((1 << m) - 1),
        };
        (r.bits() & 1) << (e + m) | exponent << m | mantissa
    };
    match r.below(4) {
        0 => r.value(),
        1 => r.bits(),
        _ => float(r),
    }
}

fn random_image(r: &mut Random) -> FpImage {
    let mut x = FpImage::init();
    x.set_u64_at(512, 7);
    for i in 0..16 {
        for (at, n) in [(160, i), (576, i)] {
            let kind = r.below(3);
            for half in 0..2 {
                let v = match kind {
                    0 => lane(r, 64),
                    1 => lane(r, 32) & 0xffff_ffff | lane(r, 32) << 32,
                    _ => r.bits(),
                };
                x.set_u64_at(at + n * 16 + half * 8, v);
            }
        }
    }
    let round = r.below(4) as u32;
    let extra = match r.below(6) {
        0 => 0x8000,
        1 => 0x40,
        2 => 0x8040,
        _ => 0,
    };
    let sticky = if r.chance(30) { r.bits() as u32 & 0x3f } else { 0 };
    // Some leave exceptions unmasked.
    let masks = if r.chance(15) { r.bits() as u32 & 0x3f } else { 0x3f };
    x.set_mxcsr(masks << 7 | round << 13 | extra | sticky & masks);
    let masks = if r.chance(15) { r.bits() as u16 & 0x3f } else { 0x3f };
    x.set_fcw(0x40 | masks | (r.below(4) << 10 | r.pick(&[0, 2, 3]) << 8) as u16);
    let top = r.below(8);
    let flags = if r.chance(30) { r.bits() & 0x40 | r.bits() & u64::from(masks) } else { 0 };
    x.set_fsw((r.bits() & 0x4700 | top << 11 | flags) as u16);
    x.bytes[4] = match r.below(4) {
        0 => 0,
        1 => 0xff,
        _ => r.bits() as u8,
    };
    if r.chance(6) {
        // An exception that waits for the next instruction.
        x.set_fsw(x.fsw() | 1 << r.below(6));
        x.settle_x87();
    }
    for i in 0..8 {
        let (low, high) = extended(r);
        x.set_u64_at(32 + i * 16, low);
        x.set_u64_at(40 + i * 16, high);
    }
    x
}

/// An 80-bit number.
fn extended(r: &mut Random) -> (u64, u64) {
    let sign = (r.bits() & 1) << 15;
    let integer = 1u64 << 63;
    match r.below(12) {
        0 => (0, sign),
        1 => (integer, sign | 0x3fff),
        2 => (integer, sign | 0x7fff),
        3 => (integer | 1 << 62 | r.bits() >> 2, sign | 0x7fff),
        4 => (integer | 1, sign | 0x7fff),
        5 => (r.bits() >> 1, sign),
        6 => (r.bits() >> 1, sign | 0x3fff),
        7 => (integer, sign),
        8 => (r.bits() | integer, sign | r.bits() & 0x7fff),
        9 => (r.below(100) << 56 | integer, sign | 0x4000 + r.below(8)),
        _ => (r.bits() | integer, sign | 0x3fff + r.below(60) - 30),
    }
}
