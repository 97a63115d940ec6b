//! Bits of the control, flag and debug registers.
//!
//! Registers are kept as plain `u64` in [`crate::CpuState`]; the modules here name their bits.

/// RFLAGS (vol. 1, 3.4.3).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const ONE: u64 = 1 << 1;
    /// Parity of the low byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// Direction of string instructions.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, both bits.
    pub const IOPL: u64 = 3 << 12;
    /// Shift of [`IOPL`].
    pub const IOPL_SHIFT: u32 = 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume: code breakpoints are ignored for one instruction.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, and explicit access to user pages under SMAP.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt flag.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID is present.
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that exists except the status flags.
    pub const SYSTEM: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
    /// Every flag that exists.
    pub const ALL: u64 = STATUS | SYSTEM;
}

/// CR0 (vol. 3, 2.5).
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor: WAIT obeys TS.
    pub const MP: u64 = 1 << 1;
    /// x87 emulation.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always one.
    pub const ET: u64 = 1 << 4;
    /// Numeric errors by #MF.
    pub const NE: u64 = 1 << 5;
    /// Supervisor obeys read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// Bits that exist.
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
    /// Value after power-up (vol. 3, table 10-1).
    pub const RESET: u64 = CD | NW | ET;
}

/// CR3 with PCIDs.
pub mod cr3 {
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 4;
    /// The process-context identifier.
    pub const PCID: u64 = 0xfff;
    /// In a MOV to CR3: keep the entries of the new PCID.
    pub const NOFLUSH: u64 = 1 << 63;
}

/// CR4 (vol. 3, 2.5).
pub mod cr4 {
    /// Virtual-8086 extensions.
    pub const VME: u64 = 1 << 0;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// RDTSC at CPL 0 only.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages.
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine check.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC at any CPL.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and SSE by the operating system.
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SIMD exceptions by the operating system.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// VMX.
    pub const VMXE: u64 = 1 << 13;
    /// RDFSBASE and its sisters.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE by the operating system.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys of user pages.
    pub const PKE: u64 = 1 << 22;
    /// Protection keys of supervisor pages.
    pub const PKS: u64 = 1 << 24;
}

/// The EFER MSR.
pub mod efer {
    /// SYSCALL enable.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
    /// Secure virtual machine enable (AMD).
    pub const SVME: u64 = 1 << 12;
    /// Long mode segment limits (AMD).
    pub const LMSLE: u64 = 1 << 13;
    /// Fast FXSAVE (AMD).
    pub const FFXSR: u64 = 1 << 14;
}

/// DR6 (vol. 3, 18.2.3).
pub mod dr6 {
    /// Breakpoint conditions 0 to 3.
    pub const B: u64 = 0xf;
    /// A debug register was accessed while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// Task switch to a task with its T bit set.
    pub const BT: u64 = 1 << 15;
    /// Bits that read as one.
    pub const ONES: u64 = 0xffff_0ff0;
    /// Bits software can write.
    pub const WRITABLE: u64 = B | BD | BS | BT;
}

/// DR7 (vol. 3, 18.2.4).
pub mod dr7 {
    /// All local and global breakpoint enables.
    pub const ENABLES: u64 = 0xff;
    /// The local enables, cleared by a task switch.
    pub const LOCAL: u64 = 0x55 | 1 << 8;
    /// Exact local breakpoints.
    pub const LE: u64 = 1 << 8;
    /// Exact global breakpoints.
    pub const GE: u64 = 1 << 9;
    /// General detect.
    pub const GD: u64 = 1 << 13;
    /// The bit that reads as one.
    pub const ONES: u64 = 1 << 10;
    /// Bits software can write.
    pub const WRITABLE: u64 = 0xffff_0000 | GD | GE | LE | ENABLES;

    /// What a breakpoint watches (the R/W field).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// Execution of the instruction at the address.
        Execute,
        /// Data writes.
        Write,
        /// Port accesses (CR4.DE).
        Io,
        /// Data reads and writes.
        ReadWrite,
    }

    /// Whether breakpoint `n` is enabled, locally or globally.
    pub fn enabled(dr7: u64, n: usize) -> bool {
        dr7 >> (n * 2) & 3 != 0
    }

    /// What breakpoint `n` watches.
    pub fn kind(dr7: u64, n: usize) -> Kind {
        match dr7 >> (16 + n * 4) & 3 {
            0 => Kind::Execute,
            1 => Kind::Write,
            2 => Kind::Io,
            _ => Kind::ReadWrite,
        }
    }

    /// How many bytes breakpoint `n` watches.
    pub fn len(dr7: u64, n: usize) -> u64 {
        [1, 2, 8, 4][(dr7 >> (18 + n * 4) & 3) as usize]
    }
}

/// XCR0 and the components of the XSAVE image.
pub mod xcr0 {
    /// x87.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// Protection key rights.
    pub const PKRU: u64 = 1 << 9;
    /// What this project knows of registers.
    pub const ALL: u64 = X87 | SSE | AVX;
}

/// MXCSR.
pub mod mxcsr {
    /// Value after reset: everything masked.
    pub const RESET: u32 = 0x1f80;
    /// Bits that exist.
    pub const ALL: u32 = 0xffff;
    /// The six exception masks.
    pub const MASKS: u32 = 0x1f80;
    /// The six sticky exception flags.
    pub const FLAGS: u32 = 0x3f;
}

/// Exception vectors (vol. 3, 6.3.1).
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// INT3.
    pub const BP: u8 = 3;
    /// INTO.
    pub const OF: u8 = 4;
    /// BOUND.
    pub const BR: u8 = 5;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack segment.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;
    /// SIMD floating point.
    pub const XM: u8 = 19;

    /// The usual two letters of an exception, `"INT"` for anything else.
    pub fn name(vector: u8) -> &'static str {
        match vector {
            DE => "#DE",
            DB => "#DB",
            NMI => "NMI",
            BP => "#BP",
            OF => "#OF",
            BR => "#BR",
            UD => "#UD",
            NM => "#NM",
            DF => "#DF",
            TS => "#TS",
            NP => "#NP",
            SS => "#SS",
            GP => "#GP",
            PF => "#PF",
            MF => "#MF",
            AC => "#AC",
            MC => "#MC",
            XM => "#XM",
            _ => "INT",
        }
    }

    /// Whether the exception pushes an error code.
    pub fn has_error_code(vector: u8) -> bool {
        matches!(vector, DF | TS | NP | SS | GP | PF | AC)
    }
}

/// Error code bits.
pub mod error {
    /// Page fault: the translation existed, the access was refused.
    pub const PF_P: u32 = 1 << 0;
    /// Page fault: the access was a write.
    pub const PF_W: u32 = 1 << 1;
    /// Page fault: the access was made in user mode.
    pub const PF_U: u32 = 1 << 2;
    /// Page fault: a reserved bit was set in a paging structure.
    pub const PF_RSVD: u32 = 1 << 3;
    /// Page fault: the access was an instruction fetch.
    pub const PF_I: u32 = 1 << 4;
    /// Page fault: a protection key refused the access.
    pub const PF_PK: u32 = 1 << 5;
    /// Selector error: the event did not come from the program.
    pub const EXT: u32 = 1 << 0;
    /// Selector error: the index is one of an IDT gate.
    pub const IDT: u32 = 1 << 1;
    /// Selector error: the index is one of the LDT.
    pub const TI: u32 = 1 << 2;
}
