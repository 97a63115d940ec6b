//! Registers of the PIIX3's IDE function, datasheet 290550, and of bus master IDE, SFF-8038i.

/// IDE timing of the primary channel; the secondary's is two bytes above.
pub const IDETIM: u8 = 0x40;
/// Slave timing of both channels.
pub const SIDETIM: u8 = 0x44;
/// IDETIM: the channel's ports are decoded.
pub const DECODE: u16 = 0x8000;
/// IDETIM: bits that exist.
pub const IDETIM_BITS: u16 = 0xf3ff;

/// Bus master registers, eight bytes for each channel.
pub mod bm {
    /// Command register.
    pub const COMMAND: u64 = 0;
    /// Status register.
    pub const STATUS: u64 = 2;
    /// Descriptor table pointer, four bytes.
    pub const TABLE: u64 = 4;

    /// Command: the transfer runs.
    pub const START: u8 = 0x01;
    /// Command: to memory.
    pub const TO_MEMORY: u8 = 0x08;
    /// Status: active.
    pub const ACTIVE: u8 = 0x01;
    /// Status: error, written with a one to clear.
    pub const ERROR: u8 = 0x02;
    /// Status: interrupt, written with a one to clear.
    pub const INTERRUPT: u8 = 0x04;
    /// Status: what drivers note about the drives' abilities.
    pub const CAPABLE: u8 = 0x60;
}
