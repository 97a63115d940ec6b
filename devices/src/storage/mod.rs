//! Disk and floppy controllers.

pub mod i82078;
