//! The host's own processor as an oracle: random instructions run there and in the interpreter.
//!
//! [`native`] runs an instruction in user mode at fixed addresses and reports registers, memory
//! and faults; the interpreter runs the same bytes at the same linear addresses in a small
//! machine. What differs is a mistake, or an entry in the reviewed list of `compare`.
#[cfg(target_arch = "x86_64")]
pub mod native;

use anura_x86::XsaveImage;

/// Linear address of the code.
pub const CODE: u64 = 0x1100_0000;
/// Bytes of code: slots of 64 bytes that are used in turn.
pub const CODE_BYTES: usize = 256 << 10;
/// Offset in a slot that taken branches go to.
pub const TAKEN: usize = 0x20;
/// Linear address of the data: two writable pages, one read-only, one absent.
pub const DATA: u64 = 0x2000_0000;
/// Number of data pages.
pub const DATA_PAGES: u64 = 4;

/// x87, SSE and AVX registers.
pub type FpImage = XsaveImage;

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code, zero if there is none.
    pub error: u32,
    /// CR2 (page faults).
    pub cr2: u64,
}

/// The registers after an instruction.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// General registers.
    pub gpr: [u64; 16],
    /// Where execution stands.
    pub rip: u64,
    /// Flags.
    pub flags: u64,
    /// Vector and x87 registers.
    pub fp: FpImage,
    /// The exception, if there was one.
    pub trap: Option<Trap>,
}
