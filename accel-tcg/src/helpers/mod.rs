//! Routines that translated code calls for what is too large or too rare for operations.
//!
//! What each gets ([`HelperArgs`]; absent means 0). Every routine checks privilege itself, commits last, and does
//! not advance RIP: `env.rip` is the running instruction's, `next_rip` the one behind it.
//!
//! | helper | a | b | c | other |
//! |---|---|---|---|---|
//! | jmp.far, call.far | offset | selector | | size |
//! | ret.far | | | | size, imm = bytes to drop |
//! | iret, syscall, sysret, sysenter, sysexit | | | | size (8 = REX.W) |
//! | int | | | | imm = vector |
//! | mov.sreg | selector | | | reg = segment |
//! | mov.cr, mov.dr | value | | | reg = number, size 4 or 8 |
//! | mov.from.cr, mov.from.dr | | | | reg = number, reg2 = GPR, size |
//! | lmsw, lldt, ltr, verr, verw | 16-bit value | | | |
//! | smsw, sldt, str | address if `mem` | | | else reg = GPR, size |
//! | lgdt, lidt, sgdt, sidt | address | | | 10 or 6 bytes by mode; size 2 cuts the base to 24 bits |
//! | lar, lsl | selector | | | reg = GPR, size |
//! | invlpg | address | | | |
//! | invpcid | type | address | | |
//! | clflush | address | | | |
//! | wr.seg.base | value | | | reg = segment, size |
//! | rdpid | | | | reg = GPR |
//! | rdrand | | | | reg = GPR, reg2 = 1 for RDSEED, size |
//! | in | port | | | size |
//! | out | port | value | | size |
//! | fxsave, fxrstor | address | | | size 8 = REX.W |
//! | xsave | address | eax | edx | size 8 = REX.W; reg: 0 XSAVE 1 XSAVEOPT 2 XSAVEC 3 XSAVES |
//! | xrstor | address | eax | edx | size; reg: 0 XRSTOR 3 XRSTORS |
//! | ldmxcsr | value | | | |
//! | stmxcsr | address | | | |
//!
//! Addresses are linear; the segment has been checked.

pub mod string;

/// What a routine is called with.
#[derive(Clone, Copy, Debug, Default)]
pub struct HelperArgs {
    /// First value.
    pub a: u64,
    /// Second value.
    pub b: u64,
    /// Third value.
    pub c: u64,
    /// Immediate.
    pub imm: u64,
    /// RIP of the next instruction.
    pub next_rip: u64,
    /// First register number.
    pub reg: u8,
    /// Second register number.
    pub reg2: u8,
    /// Operand size in bytes.
    pub size: u8,
    /// Address or stack size in bytes.
    pub asize: u8,
    /// REP state: 0 none, 1 REP/REPE, 2 REPNE.
    pub rep: u8,
    /// The operand is memory.
    pub mem: bool,
}

/// How execution goes on after a routine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With the next instruction.
    Next,
    /// At the RIP that the routine has set.
    Jumped,
    /// With the next instruction, through the run loop (the mode or the interrupt flag may have changed).
    EndBlock,
    /// Nowhere until an interrupt: HLT. RIP is advanced by the caller.
    Halt,
    /// With the next instruction after other processors had a turn (PAUSE).
    Yield,
    /// With this same instruction: its registers hold the progress made (REP); `HelperArgs` does not say how many
    /// iterations, the routine counts them itself.
    Again,
}
