//! The i440FX/PIIX3 chip set with the PIIX4's power management.

pub mod i440fx;
pub mod piix3;
pub mod piix4_pm;
