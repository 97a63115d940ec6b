//! Small board functions and what virtual machines add to a PC.

pub mod debugcon;
pub mod fw_cfg;
pub mod i8237;
pub mod isa_debug_exit;
pub mod math_error;
pub mod pc_testdev;
pub mod port92;
pub mod pvpanic;
