//! String instructions.

/// MOVS.
pub const MOVS: u8 = 0;
/// STOS.
pub const STOS: u8 = 1;
/// LODS.
pub const LODS: u8 = 2;
/// SCAS.
pub const SCAS: u8 = 3;
/// CMPS.
pub const CMPS: u8 = 4;
/// INS.
pub const INS: u8 = 5;
/// OUTS.
pub const OUTS: u8 = 6;
