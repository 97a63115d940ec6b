//! [`CpuState`]: everything architectural that one logical processor holds.
//!
//! It names no engine: what one engine gives, another takes. It is equal when every
//! architectural bit is equal, prints like QEMU's `info registers`, and turns into numbered
//! byte fields for a record. Loading validates and never trusts.
use crate::msr::Msrs;
use crate::regs::{cr0, cr4, dr6, dr7, efer, mxcsr, rflags, xcr0};
use crate::segment::{Attr, Segment, TableReg, index};
use std::fmt;

/// Bytes of the XSAVE image in standard format: legacy area, header, upper YMM halves.
pub const XSAVE_SIZE: usize = 832;
/// Offset of the XSAVE header.
pub const XSAVE_HEADER: usize = 512;
/// Offset of the upper YMM halves.
pub const XSAVE_YMMH: usize = 576;

/// x87, MMX, SSE and AVX registers as XSAVE lays them out in standard format.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct XsaveImage {
    /// The image itself.
    pub bytes: [u8; XSAVE_SIZE],
}

impl fmt::Debug for XsaveImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XsaveImage(fcw {:04x} mxcsr {:08x})", self.fcw(), self.mxcsr())
    }
}

impl XsaveImage {
    /// After power-up: FCW 0040, all tags "zero", MXCSR 1f80 (vol. 3, table 10-1).
    pub fn power_up() -> Self {
        let mut x = Self { bytes: [0; XSAVE_SIZE] };
        x.bytes[0] = 0x40;
        x.bytes[4] = 0xff;
        x.set_mxcsr(mxcsr::RESET);
        x
    }
    /// What XRSTOR calls the initial configuration: FNINIT, zero registers, MXCSR 1f80.
    pub fn init() -> Self {
        let mut x = Self { bytes: [0; XSAVE_SIZE] };
        x.set_fcw(0x37f);
        x.set_mxcsr(mxcsr::RESET);
        x
    }
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
    /// A little-endian 64-bit word of the image.
    pub fn u64_at(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(b)
    }
    /// Sets a little-endian 64-bit word of the image.
    pub fn set_u64_at(&mut self, at: usize, v: u64) {
        self.bytes[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }
    /// x87 control word.
    pub fn fcw(&self) -> u16 {
        self.u16_at(0)
    }
    /// Sets the x87 control word.
    pub fn set_fcw(&mut self, v: u16) {
        self.bytes[..2].copy_from_slice(&v.to_le_bytes());
    }
    /// x87 status word.
    pub fn fsw(&self) -> u16 {
        self.u16_at(2)
    }
    /// Sets the x87 status word.
    pub fn set_fsw(&mut self, v: u16) {
        self.bytes[2..4].copy_from_slice(&v.to_le_bytes());
    }
    /// Makes the x87 words what a processor would hold after loading them: fixed bits, and the
    /// summary and busy bits that follow the unmasked exceptions.
    pub fn settle_x87(&mut self) {
        self.bytes[5] = 0;
        self.set_fcw(self.fcw() & 0x1f3f | 0x40);
        let fsw = self.fsw();
        let pending = fsw & !self.fcw() & 0x3f != 0;
        self.set_fsw(if pending { fsw | 0x8080 } else { fsw & !0x8080 });
    }
    /// Abridged tag byte: one bit per physical register that is not empty.
    pub fn ftw(&self) -> u8 {
        self.bytes[4]
    }
    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        self.u64_at(24) as u32
    }
    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, v: u32) {
        self.bytes[24..28].copy_from_slice(&v.to_le_bytes());
    }
    /// Register ST(`i`), 64-bit significand and sign with exponent.
    pub fn st(&self, i: usize) -> (u64, u16) {
        (self.u64_at(32 + i * 16), self.u16_at(40 + i * 16))
    }
    /// Register XMM`i`, low and high half.
    pub fn xmm(&self, i: usize) -> [u64; 2] {
        [self.u64_at(160 + i * 16), self.u64_at(168 + i * 16)]
    }
    /// Upper half of YMM`i`.
    pub fn ymm_high(&self, i: usize) -> [u64; 2] {
        [self.u64_at(XSAVE_YMMH + i * 16), self.u64_at(XSAVE_YMMH + 8 + i * 16)]
    }
}

/// What keeps interrupts away from the next instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// The instruction before was STI with IF clear.
    Sti,
    /// The instruction before was MOV SS or POP SS.
    MovSs,
}

/// What the processor is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// After INIT on an application processor: waits for a start-up IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// Where an event came from; decides error code bits, RF, and the saved RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Exception that restarts the instruction.
    Fault,
    /// Exception after the instruction (#DB mostly).
    Trap,
    /// INT n.
    Software,
    /// INT3 or INTO.
    SoftwareException,
    /// INT1.
    PrivilegedSoftware,
    /// External interrupt.
    External,
    /// NMI.
    Nmi,
}

/// An event that was begun but not yet delivered when the processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingException {
    /// Vector.
    pub vector: u8,
    /// Its class.
    pub kind: EventKind,
    /// Error code, if one is pushed.
    pub error: Option<u32>,
    /// CR2 for #PF, DR6 bits for #DB.
    pub payload: u64,
    /// RIP behind the instruction, for the software kinds.
    pub next_rip: u64,
}

/// The complete architectural state of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer (in 16- and 32-bit code: EIP).
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableReg,
    /// Interrupt descriptor table.
    pub idtr: TableReg,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the upper nibble of the task priority. The local APIC is the owner where it
    /// is outside of the engine; then this is a copy taken when the state was read.
    pub cr8: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// EFER.
    pub efer: u64,
    /// The other MSRs.
    pub msrs: Msrs,
    /// PAE page-directory pointers as the last MOV CR3 cached them.
    pub pdpte: [u64; 4],
    /// x87, SSE and AVX state.
    pub xsave: XsaveImage,
    /// Event in delivery.
    pub pending: Option<PendingException>,
    /// DR6 bits of a #DB that a MOV SS shadow holds back.
    pub pending_db: u64,
    /// An NMI is latched.
    pub nmi_pending: bool,
    /// NMIs wait for IRET.
    pub nmi_masked: bool,
    /// Interrupt shadow.
    pub shadow: Shadow,
    /// Running, halted or waiting.
    pub activity: Activity,
    /// Guest TSC minus the machine's TSC.
    pub tsc_offset: u64,
}

/// A state that no processor can be in, or that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidState {
    /// A numbered field is absent.
    #[error("field {0} is missing")]
    Missing(u32),
    /// A numbered field has a wrong length or an unknown value in it.
    #[error("field {0} does not decode")]
    Malformed(u32),
    /// A register holds what its rules forbid.
    #[error("{register} cannot hold {value:#x}")]
    Register {
        /// Its name.
        register: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Whether a linear address is canonical with 48 bits.
pub const fn is_canonical(va: u64) -> bool {
    (va as i64) << 16 >> 16 == va as i64
}

/// Whether a linear address is canonical with 57 bits.
pub const fn is_canonical_57(va: u64) -> bool {
    (va as i64) << 7 >> 7 == va as i64
}

impl CpuState {
    /// After power-up or RESET (vol. 3, 10.1.4). `signature` is CPUID.1:EAX, which EDX shows.
    pub fn reset(signature: u32) -> Self {
        let data = Segment::new(0, 0, 0xffff, 0x93);
        let mut seg = [data; 6];
        seg[index::CS] = Segment::new(0xf000, 0xffff_0000, 0xffff, 0x9b);
        let mut gpr = [0; 16];
        gpr[2] = signature.into();
        Self {
            gpr,
            rip: 0xfff0,
            rflags: rflags::ONE,
            seg,
            ldtr: Segment::new(0, 0, 0xffff, 0x82),
            tr: Segment::new(0, 0, 0xffff, 0x8b),
            gdtr: TableReg { base: 0, limit: 0xffff },
            idtr: TableReg { base: 0, limit: 0xffff },
            cr0: cr0::RESET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: xcr0::X87,
            dr: [0; 4],
            dr6: dr6::ONES,
            dr7: dr7::ONES,
            efer: 0,
            msrs: Msrs::reset(),
            pdpte: [0; 4],
            xsave: XsaveImage::power_up(),
            pending: None,
            pending_db: 0,
            nmi_pending: false,
            nmi_masked: false,
            shadow: Shadow::None,
            activity: Activity::Running,
            tsc_offset: 0,
        }
    }

    /// INIT: as RESET, but caches, x87, SSE, XCR0, TSC and the MSRs keep their values
    /// (vol. 3, table 10-1).
    pub fn init(&mut self, signature: u32) {
        let mut new = Self::reset(signature);
        new.cr0 |= self.cr0 & (cr0::CD | cr0::NW);
        new.cr0 &= self.cr0 | !(cr0::CD | cr0::NW);
        new.msrs = self.msrs.clone();
        new.xsave = self.xsave.clone();
        new.xcr0 = self.xcr0;
        new.tsc_offset = self.tsc_offset;
        *self = new;
    }

    /// A start-up IPI: CS:IP becomes `vector`00:0000 and the processor runs.
    pub fn sipi(&mut self, vector: u8) {
        self.seg[index::CS].selector = u16::from(vector) << 8;
        self.seg[index::CS].base = u64::from(vector) << 12;
        self.rip = 0;
        self.activity = Activity::Running;
    }

    /// Long mode is active.
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }
    /// 64-bit code is running.
    pub fn is_64bit(&self) -> bool {
        self.long_mode() && self.seg[index::CS].attr.l()
    }
    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if self.rflags & rflags::VM != 0 {
            3
        } else {
            self.seg[index::SS].attr.dpl()
        }
    }

    /// Refuses what no processor can hold.
    pub fn validate(&self) -> Result<(), InvalidState> {
        let bad = |register, value| Err(InvalidState::Register { register, value });
        let pg = self.cr0 & cr0::PG != 0;
        if self.rflags & !(rflags::ALL | rflags::ONE) != 0 || self.rflags & rflags::ONE == 0 {
            return bad("RFLAGS", self.rflags);
        }
        if self.cr0 & !cr0::ALL != 0
            || pg && self.cr0 & cr0::PE == 0
            || self.cr0 & cr0::NW != 0 && self.cr0 & cr0::CD == 0
        {
            return bad("CR0", self.cr0);
        }
        let lme = self.efer & efer::LME != 0;
        let lma = self.efer & efer::LMA != 0;
        if lma != (lme && pg) {
            return bad("EFER", self.efer);
        }
        if lma && self.cr4 & cr4::PAE == 0 || self.cr4 & cr4::PCIDE != 0 && !lma {
            return bad("CR4", self.cr4);
        }
        if self.cr3 >> 52 != 0 {
            return bad("CR3", self.cr3);
        }
        if lma && self.rflags & rflags::VM != 0 {
            return bad("RFLAGS", self.rflags);
        }
        if self.cr8 > 15 {
            return bad("CR8", self.cr8);
        }
        if self.xcr0 & xcr0::X87 == 0
            || self.xcr0 & !(xcr0::ALL | xcr0::PKRU) != 0
            || self.xcr0 & (xcr0::SSE | xcr0::AVX) == xcr0::AVX
        {
            return bad("XCR0", self.xcr0);
        }
        for (register, value) in [("DR6", self.dr6), ("DR7", self.dr7)] {
            if value >> 32 != 0 {
                return bad(register, value);
            }
        }
        let bases = self.seg.iter().chain([&self.ldtr, &self.tr]).map(|s| s.base);
        for base in bases.chain([self.gdtr.base, self.idtr.base]) {
            // Processors with 5-level paging take all 57 bits here in any mode.
            if !is_canonical_57(base) {
                return bad("a segment or table base", base);
            }
        }
        let la57 = self.cr4 & cr4::LA57 != 0;
        let rip_ok = if la57 { is_canonical_57(self.rip) } else { is_canonical(self.rip) };
        if self.is_64bit() && !rip_ok {
            return bad("RIP", self.rip);
        }
        if self.xsave.mxcsr() & !mxcsr::ALL != 0 {
            return bad("MXCSR", self.xsave.mxcsr().into());
        }
        Ok(())
    }

    /// The state as numbered byte fields, in ascending order.
    pub fn to_fields(&self) -> Vec<(u32, Vec<u8>)> {
        // Taken apart without `..`: a new part does not compile until it is saved.
        let Self {
            gpr,
            rip,
            rflags,
            seg,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            xcr0,
            dr,
            dr6,
            dr7,
            efer,
            msrs,
            pdpte,
            xsave,
            pending,
            pending_db,
            nmi_pending,
            nmi_masked,
            shadow,
            activity,
            tsc_offset,
        } = self;
        let words = |w: &[u64]| w.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let segs: Vec<u64> = seg
            .iter()
            .chain([ldtr, tr])
            .flat_map(|s| [s.base, s.limit.into(), s.attr.into_bits().into(), s.selector.into()])
            .collect();
        let tables = [gdtr.base, gdtr.limit.into(), idtr.base, idtr.limit.into()];
        let control = [*cr0, *cr2, *cr3, *cr4, *cr8, *xcr0, dr[0], dr[1], dr[2], dr[3], *dr6, *dr7, *efer];
        let event = match pending {
            None => vec![],
            Some(e) => vec![
                e.vector.into(),
                e.kind as u64,
                e.error.is_some().into(),
                e.error.unwrap_or(0).into(),
                e.payload,
                e.next_rip,
            ],
        };
        let misc = [
            *pending_db,
            (*nmi_pending).into(),
            (*nmi_masked).into(),
            *shadow as u64,
            *activity as u64,
            *tsc_offset,
        ];
        vec![
            (1, words(gpr)),
            (2, words(&[*rip, *rflags])),
            (3, words(&segs)),
            (4, words(&tables)),
            (5, words(&control)),
            (6, words(&msrs.to_words())),
            (7, words(pdpte)),
            (8, xsave.bytes.to_vec()),
            (9, words(&event)),
            (10, words(&misc)),
        ]
    }

    /// The inverse of [`Self::to_fields`], validated.
    pub fn from_fields<'a>(field: impl Fn(u32) -> Option<&'a [u8]>) -> Result<Self, InvalidState> {
        let words = |n: u32| -> Result<Vec<u64>, InvalidState> {
            let bytes = field(n).ok_or(InvalidState::Missing(n))?;
            if bytes.len() % 8 != 0 {
                return Err(InvalidState::Malformed(n));
            }
            let word = |c: &[u8]| c.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
            Ok(bytes.chunks_exact(8).map(word).collect())
        };
        fn exact<const N: usize>(w: Vec<u64>, n: u32) -> Result<[u64; N], InvalidState> {
            w.try_into().map_err(|_| InvalidState::Malformed(n))
        }
        fn small<T: TryFrom<u64>>(w: u64, n: u32) -> Result<T, InvalidState> {
            T::try_from(w).map_err(|_| InvalidState::Malformed(n))
        }
        fn flag(w: u64, n: u32) -> Result<bool, InvalidState> {
            if w > 1 { Err(InvalidState::Malformed(n)) } else { Ok(w == 1) }
        }
        let mut s = Self::reset(0);
        s.gpr = exact(words(1)?, 1)?;
        [s.rip, s.rflags] = exact(words(2)?, 2)?;
        let segs: [u64; 32] = exact(words(3)?, 3)?;
        let targets = s.seg.iter_mut().chain([&mut s.ldtr, &mut s.tr]);
        for (target, w) in targets.zip(segs.chunks_exact(4)) {
            let attr: u32 = small(w[2], 3)?;
            if attr & !0x1_f0ff != 0 {
                return Err(InvalidState::Malformed(3));
            }
            *target = Segment::new(small(w[3], 3)?, w[0], small(w[1], 3)?, attr);
        }
        let t: [u64; 4] = exact(words(4)?, 4)?;
        s.gdtr = TableReg { base: t[0], limit: small(t[1], 4)? };
        s.idtr = TableReg { base: t[2], limit: small(t[3], 4)? };
        let [c0, c2, c3, c4, c8, x, d0, d1, d2, d3, d6, d7, e] = exact(words(5)?, 5)?;
        (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.xcr0) = (c0, c2, c3, c4, c8, x);
        (s.dr, s.dr6, s.dr7, s.efer) = ([d0, d1, d2, d3], d6, d7, e);
        s.msrs = Msrs::from_words(&words(6)?).ok_or(InvalidState::Malformed(6))?;
        s.pdpte = exact(words(7)?, 7)?;
        let image = field(8).ok_or(InvalidState::Missing(8))?;
        s.xsave.bytes = image.try_into().map_err(|_| InvalidState::Malformed(8))?;
        let event = words(9)?;
        s.pending = if event.is_empty() {
            None
        } else {
            let [vector, kind, has, error, payload, next_rip] = exact(event, 9)?;
            let kind = match kind {
                0 => EventKind::Fault,
                1 => EventKind::Trap,
                2 => EventKind::Software,
                3 => EventKind::SoftwareException,
                4 => EventKind::PrivilegedSoftware,
                5 => EventKind::External,
                6 => EventKind::Nmi,
                _ => return Err(InvalidState::Malformed(9)),
            };
            let error: u32 = small(error, 9)?;
            let error = flag(has, 9)?.then_some(error);
            Some(PendingException { vector: small(vector, 9)?, kind, error, payload, next_rip })
        };
        let [db, nmi, masked, shadow, activity, tsc] = exact(words(10)?, 10)?;
        s.pending_db = db;
        s.nmi_pending = flag(nmi, 10)?;
        s.nmi_masked = flag(masked, 10)?;
        s.shadow = match shadow {
            0 => Shadow::None,
            1 => Shadow::Sti,
            2 => Shadow::MovSs,
            _ => return Err(InvalidState::Malformed(10)),
        };
        s.activity = match activity {
            0 => Activity::Running,
            1 => Activity::Halted,
            2 => Activity::WaitForSipi,
            3 => Activity::Shutdown,
            _ => return Err(InvalidState::Malformed(10)),
        };
        s.tsc_offset = tsc;
        s.validate()?;
        Ok(s)
    }

    fn write_segment(&self, f: &mut fmt::Formatter<'_>, name: &str, s: &Segment) -> fmt::Result {
        let raw = if s.attr.g() { s.limit >> 12 } else { s.limit };
        let flags = if s.attr.unusable() { 0 } else { s.attr.into_bits() << 8 | raw & 0xf_0000 };
        if self.is_64bit() {
            write!(f, "{name:<3}={:04x} {:016x} {:08x} {flags:08x}", s.selector, s.base, s.limit)?;
        } else {
            write!(f, "{name:<3}={:04x} {:08x} {:08x} {flags:08x}", s.selector, s.base as u32, s.limit)?;
        }
        if self.cr0 & cr0::PE == 0 || !s.attr.p() || s.attr.unusable() {
            return writeln!(f);
        }
        writeln!(f, " DPL={} {}", s.attr.dpl(), describe(s.attr, self.long_mode()))
    }
}

/// Type of a segment in QEMU's words.
fn describe(a: Attr, long: bool) -> String {
    let accessed = if a.kind() & 1 != 0 { 'A' } else { '-' };
    let letter = |bit: u8, c: char| if a.kind() & bit != 0 { c } else { '-' };
    if a.s() && a.is_code() {
        let width = if a.l() {
            "CS64"
        } else if a.db() {
            "CS32"
        } else {
            "CS16"
        };
        return format!("{width} [{}{}{accessed}]", letter(4, 'C'), letter(2, 'R'));
    }
    if a.s() {
        let width = if a.db() || long { "DS  " } else { "DS16" };
        return format!("{width} [{}{}{accessed}]", letter(4, 'E'), letter(2, 'W'));
    }
    let name = match (a.kind(), long) {
        (2, _) => "LDT",
        (9, true) => "TSS64-avl",
        (11, true) => "TSS64-busy",
        (12, true) => "CallGate64",
        (14, true) => "IntGate64",
        (15, true) => "TrapGate64",
        (_, true) => "Reserved",
        (1, _) => "TSS16-avl",
        (3, _) => "TSS16-busy",
        (4, _) => "CallGate16",
        (5, _) => "TaskGate",
        (6, _) => "IntGate16",
        (7, _) => "TrapGate16",
        (9, _) => "TSS32-avl",
        (11, _) => "TSS32-busy",
        (12, _) => "CallGate32",
        (14, _) => "IntGate32",
        (15, _) => "TrapGate32",
        _ => "Reserved",
    };
    name.to_owned()
}

const NAMES: [&str; 16] =
    ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI", "8", "9", "10", "11", "12", "13", "14", "15"];

impl fmt::Display for CpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |bit: u64, c: char| if self.rflags & bit != 0 { c } else { '-' };
        let letters: String = [
            flag(rflags::DF, 'D'),
            flag(rflags::OF, 'O'),
            flag(rflags::SF, 'S'),
            flag(rflags::ZF, 'Z'),
            flag(rflags::AF, 'A'),
            flag(rflags::PF, 'P'),
            flag(rflags::CF, 'C'),
        ]
        .iter()
        .collect();
        let tail = format!(
            "[{letters}] CPL={} II={} A20=1 SMM=0 HLT={}",
            self.cpl(),
            u8::from(self.shadow != Shadow::None),
            u8::from(self.activity == Activity::Halted)
        );
        let order = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
        let wide = self.is_64bit();
        for (i, r) in order.iter().take(if wide { 16 } else { 8 }).enumerate() {
            let end = if i % 4 == 3 { '\n' } else { ' ' };
            if wide {
                write!(f, "{:<3}={:016x}{end}", format!("R{}", NAMES[*r]), self.gpr[*r])?;
            } else {
                write!(f, "E{}={:08x}{end}", NAMES[*r], self.gpr[*r] as u32)?;
            }
        }
        if wide {
            writeln!(f, "RIP={:016x} RFL={:08x} {tail}", self.rip, self.rflags)?;
        } else {
            writeln!(f, "EIP={:08x} EFL={:08x} {tail}", self.rip as u32, self.rflags)?;
        }
        for (name, s) in ["ES", "CS", "SS", "DS", "FS", "GS"].iter().zip(&self.seg) {
            self.write_segment(f, name, s)?;
        }
        self.write_segment(f, "LDT", &self.ldtr)?;
        self.write_segment(f, "TR", &self.tr)?;
        for (name, t) in [("GDT", &self.gdtr), ("IDT", &self.idtr)] {
            if wide {
                writeln!(f, "{name}=     {:016x} {:08x}", t.base, t.limit)?;
            } else {
                writeln!(f, "{name}=     {:08x} {:08x}", t.base as u32, t.limit)?;
            }
        }
        let (cr0, cr2, cr3, cr4) = (self.cr0 as u32, self.cr2, self.cr3, self.cr4);
        if wide {
            writeln!(f, "CR0={cr0:08x} CR2={cr2:016x} CR3={cr3:016x} CR4={cr4:08x}")?;
        } else {
            writeln!(f, "CR0={cr0:08x} CR2={:08x} CR3={:08x} CR4={cr4:08x}", cr2 as u32, cr3 as u32)?;
        }
        for (i, d) in self.dr.iter().enumerate() {
            write!(f, "DR{i}={d:016x}{}", if i == 3 { " \n" } else { " " })?;
        }
        writeln!(f, "DR6={:016x} DR7={:016x}", self.dr6, self.dr7)?;
        writeln!(f, "EFER={:016x}", self.efer)?;
        let x = &self.xsave;
        writeln!(
            f,
            "FCW={:04x} FSW={:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
            x.fcw(),
            x.fsw(),
            x.fsw() >> 11 & 7,
            x.ftw(),
            x.mxcsr()
        )?;
        for i in 0..8 {
            let (low, high) = x.st(i);
            write!(f, "FPR{i}={low:016x} {high:04x}{}", if i % 2 == 1 { '\n' } else { ' ' })?;
        }
        for i in 0..if wide { 16 } else { 8 } {
            let [low, high] = x.xmm(i);
            write!(f, "XMM{i:02}={high:016x} {low:016x}{}", if i % 2 == 1 { '\n' } else { ' ' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_fields(s: &CpuState) -> Result<CpuState, InvalidState> {
        let fields = s.to_fields();
        CpuState::from_fields(|n| fields.iter().find(|f| f.0 == n).map(|f| f.1.as_slice()))
    }

    #[test]
    fn a_reset_processor_fetches_below_four_gib() {
        let s = CpuState::reset(0x663);
        assert_eq!(s.seg[index::CS].base + s.rip, 0xffff_fff0);
        assert_eq!(s.gpr[2], 0x663);
        assert_eq!(s.cpl(), 0);
        s.validate().unwrap();
    }

    #[test]
    fn a_startup_ipi_starts_at_its_page() {
        let mut s = CpuState::reset(0);
        s.activity = Activity::WaitForSipi;
        s.sipi(0x9a);
        assert_eq!((s.seg[index::CS].selector, s.seg[index::CS].base, s.rip), (0x9a00, 0x9a000, 0));
        assert_eq!(s.activity, Activity::Running);
    }

    #[test]
    fn init_keeps_the_floating_point_unit_and_the_msrs() {
        let mut s = CpuState::reset(0);
        s.xsave.set_fcw(0x37f);
        s.msrs.pat = 1;
        s.cr0 = cr0::PE | cr0::ET;
        s.gpr[0] = 5;
        s.init(0x663);
        assert_eq!((s.xsave.fcw(), s.msrs.pat, s.gpr[0], s.cr0), (0x37f, 1, 0, cr0::ET));
    }

    #[test]
    fn fields_carry_the_whole_state() {
        let mut s = CpuState::reset(7);
        s.gpr = std::array::from_fn(|i| i as u64 * 0x1111);
        s.pending = Some(PendingException {
            vector: 14,
            kind: EventKind::Fault,
            error: Some(6),
            payload: 0x1234,
            next_rip: 0,
        });
        s.shadow = Shadow::MovSs;
        s.activity = Activity::Halted;
        s.xsave.bytes[700] = 9;
        s.msrs.mtrr_var[3][1] = 77;
        assert_eq!(through_fields(&s).unwrap(), s);
    }

    #[test]
    fn impossible_states_are_refused() {
        let broken: &[fn(&mut CpuState)] = &[
            |s| s.cr0 |= cr0::PG,
            |s| s.cr0 = cr0::NW,
            |s| s.efer = efer::LMA,
            |s| s.rflags = 0,
            |s| s.rflags |= 1 << 15,
            |s| s.cr8 = 16,
            |s| s.xcr0 = 0,
            |s| s.dr7 = 1 << 40,
            |s| s.seg[4].base = 1 << 60,
            |s| s.xsave.set_mxcsr(0x10000),
        ];
        for (i, spoil) in broken.iter().enumerate() {
            let mut s = CpuState::reset(0);
            spoil(&mut s);
            assert!(through_fields(&s).is_err(), "case {i}");
        }
    }

    #[test]
    fn the_text_form_is_laid_out_as_info_registers() {
        let text = CpuState::reset(0x663).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663");
        assert_eq!(lines[2], "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0");
        assert_eq!(lines[4], "CS =f000 ffff0000 0000ffff 00009b00");
        assert_eq!(lines[11], "GDT=     00000000 0000ffff");
        assert_eq!(lines[13], "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000");
    }
}
