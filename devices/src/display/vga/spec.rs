//! Register indices and bits, by IBM's PS/2 Hardware Interface Technical Reference, "Video Subsystem" (1992).

/// Sequencer.
pub mod sr {
    pub const CLOCKING: usize = 1;
    pub const MAP_MASK: usize = 2;
    pub const MEMORY_MODE: usize = 4;
    /// Clocking: characters are 8 dots wide, not 9.
    pub const DOTS_8: u8 = 0x01;
    /// Clocking: half the dot clock.
    pub const HALF_CLOCK: u8 = 0x08;
    /// Memory mode: addresses go to planes as they are.
    pub const NOT_ODD_EVEN: u8 = 0x04;
    /// Memory mode: the two low address bits choose the plane.
    pub const CHAIN_4: u8 = 0x08;
    /// Bits that can be written.
    pub const MASKS: [u8; 8] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0, 0, 0xff];
}

/// Graphics controller.
pub mod gr {
    pub const SET_RESET: usize = 0;
    pub const ENABLE_SET_RESET: usize = 1;
    pub const COMPARE: usize = 2;
    pub const ROTATE: usize = 3;
    pub const READ_MAP: usize = 4;
    pub const MODE: usize = 5;
    pub const MISC: usize = 6;
    pub const DO_CARE: usize = 7;
    pub const BIT_MASK: usize = 8;
    /// Mode: colour compare.
    pub const READ_MODE: u8 = 0x08;
    /// Mode: reads take the plane from the lowest address bit.
    pub const ODD_EVEN: u8 = 0x10;
    /// Miscellaneous: graphics, not text.
    pub const GRAPHICS: u8 = 0x01;
    /// Bits that can be written.
    pub const MASKS: [u8; 16] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0];
}

/// CRT controller.
pub mod cr {
    pub const H_TOTAL: usize = 0x00;
    pub const H_DISPLAY_END: usize = 0x01;
    pub const V_TOTAL: usize = 0x06;
    pub const OVERFLOW: usize = 0x07;
    pub const MAX_SCAN_LINE: usize = 0x09;
    pub const START_HIGH: usize = 0x0c;
    pub const START_LOW: usize = 0x0d;
    pub const V_SYNC_START: usize = 0x10;
    pub const V_SYNC_END: usize = 0x11;
    pub const V_DISPLAY_END: usize = 0x12;
    pub const OFFSET: usize = 0x13;
    pub const MODE: usize = 0x17;
    /// V sync end: registers 0 to 7 are protected.
    pub const PROTECT: u8 = 0x80;
    /// Number of registers.
    pub const COUNT: usize = 0x19;
}

/// Attribute controller.
pub mod ar {
    /// Index register: the palette is in use by the display.
    pub const PALETTE_ON: u8 = 0x20;
    /// Bits that can be written.
    pub const MASKS: [u8; 0x15] = [
        0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0xef,
        0xff, 0x3f, 0x0f, 0x0f,
    ];
}

/// Miscellaneous output register: CRTC at 3D4h, not 3B4h.
pub const MISC_COLOUR: u8 = 0x01;
