//! T0, the interpreter.
pub mod flags;
