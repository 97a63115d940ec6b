//! The machine: boards, lifecycle, the vCPUs' scheduler, and what a monitor may ask of it.
//!
//! No engine is named here: a machine is built on any [`Accelerator`](anura_accel::Accelerator).

#![forbid(unsafe_code)]

pub mod boot_rom;
pub mod config;
pub mod control;
pub mod cpus;
mod error;
pub mod firmware;
pub mod linux;
pub mod linux_fw;
mod localtime;
pub mod logging;
mod machine;
mod mce;
pub mod memory;
mod monitor_face;
mod multiboot;
pub mod pc;
mod platform;
mod qtree;
pub mod roms;
mod state;
pub mod testing;
mod user_devices;

pub use error::MachineError;
pub use machine::{Machine, Migrator};
pub use state::{StateHash, States};
