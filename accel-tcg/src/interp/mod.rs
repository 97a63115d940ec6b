//! T0, the interpreter.

mod exec;
pub mod flags;
mod int;
pub(crate) mod lower;
mod mem;
mod soft;
pub(crate) mod t0;
pub(crate) mod thunk;

pub(crate) use exec::{ends_without_trap, enter, run_ops, segment_allows, stale, wants_out as after_step};
pub use t0::State;
