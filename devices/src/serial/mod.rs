//! Serial and parallel ports.

pub mod parallel;
pub mod uart16550;
