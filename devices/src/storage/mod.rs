//! Disk and floppy controllers.

pub mod i82078;
pub mod piix3_ide;
