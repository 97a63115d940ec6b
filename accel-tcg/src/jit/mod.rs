//! The JIT: translated blocks as host code, and what runs them.
//!
//! `emit` writes a block's IR as host code into the `arena`; `blocks` knows which blocks there are, `links` what leads
//! to them, `evict` how they go; `settle` brings state home from the middle of one; `stubs` and `rt` are the ways in
//! and out; `home` is where a processor's state lies while it runs. Every processor has its own blocks, so nothing here
//! is shared between threads.

mod arena;
mod asm;
mod blocks;
mod chaos;
mod emit;
pub(crate) mod engine;
mod evict;
mod home;
mod links;
mod perf;
mod rt;
mod settle;
mod strings;
mod stubs;

pub use blocks::host_text;
pub(crate) use blocks::{Jit, cpu_time};
pub(crate) use chaos::Chaos;
pub use engine::JitEngine;
pub(crate) use home::{Home, Jump};
pub use rt::Shared;

/// Exit codes of translated code.
pub(crate) use emit::{code, region};
