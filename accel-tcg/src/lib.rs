//! The software x86 engine.
pub mod env;
pub mod interp;
pub mod mode;
