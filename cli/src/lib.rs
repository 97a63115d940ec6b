//! The command line of `anura`, as a library so that tests can parse without running.

#![forbid(unsafe_code)]

pub mod engines;
pub mod options;
pub mod run;
