//! The software engine: guest x86 code translated to a small intermediate language and run by an interpreter.
//!
//! `frontend` decodes guest bytes and writes `ir`; `opt` drops what nobody reads; `interp` lowers the rest to
//! direct-threaded operations and runs them; `vcpu` is the loop around it.

pub mod cache;
pub mod deliver;
pub mod env;
pub mod float;
pub mod frontend;
pub mod helpers;
pub mod interp;
pub mod ir;
pub mod jit;
pub mod mmu;
pub mod mode;
pub mod mutants;
pub mod opt;
pub mod oracle;
mod show;
pub mod testbed;
pub mod vcpu;
pub mod vector;

pub use jit::JitEngine;
pub use vcpu::{Interp, PortableInterp};

/// Whether the host gives memory for generated code.
pub fn generated_code() -> std::io::Result<()> {
    interp::thunk::Arena::new().map(drop)
}
