//! Architectural facts and state of the x86 processor, with no engine in it.
//!
//! Registers, segments, descriptors, paging formats, MSR numbers, CPUID models and
//! [`CpuState`], the complete state that one engine hands to another. The section
//! numbers in the comments are those of the Intel SDM (325462) unless another book is named.
#![forbid(unsafe_code)]

pub mod apic;
pub mod cpuid;
pub mod desc;
mod models;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod segment;
pub mod state;

pub use cpuid::{CpuModel, Feature, FeatureSet, Topology};
pub use msr::Msrs;
pub use segment::{Attr, Segment, TableReg};
pub use state::{Activity, CpuState, PendingException, Shadow, XsaveImage};
