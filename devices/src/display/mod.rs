//! Graphics cards.

pub mod vga;
