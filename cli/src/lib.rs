//! The command line of `anura`, as a library so that tests can parse without running.

#![forbid(unsafe_code)]

mod daemon;
pub mod doctor;
pub mod engines;
mod log_file;
pub mod options;
pub mod run;
