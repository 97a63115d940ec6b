//! Keyboards and mice.

pub mod i8042;
