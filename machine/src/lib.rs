//! The machine: its configuration, and what a monitor may ask of it.

#![forbid(unsafe_code)]

pub mod config;
pub mod control;
