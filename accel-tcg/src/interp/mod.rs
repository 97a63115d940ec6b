//! T0, the interpreter.

mod exec;
pub mod flags;
mod int;
pub(crate) mod lower;
mod mem;
mod soft;
pub(crate) mod t0;
pub(crate) mod thunk;

pub(crate) use exec::{ends_without_trap, enter, segment_allows, stale};
pub use t0::State;
