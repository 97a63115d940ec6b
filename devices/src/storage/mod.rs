//! Disk and floppy controllers.

pub mod cfi01;
pub mod i82078;
pub mod piix3_ide;
