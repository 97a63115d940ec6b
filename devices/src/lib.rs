//! Chips and cards of the PC, each a state machine with no host in it.
//!
//! A chip is `&mut self`, registers, and effects through `vmcore` and `memory`. It knows no engine, no host
//! time, no thread. Chips are named by their number and grouped as a board is.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod chipset;
pub mod display;
pub mod input;
pub mod irq;
pub mod misc;
pub mod pci;
pub mod registry;
pub mod serial;
pub mod storage;
pub mod timer;
