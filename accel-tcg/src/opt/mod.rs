//! Passes over IR, one file each.

pub mod flags;
