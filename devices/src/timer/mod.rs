//! Timers and clocks: the 8254, the MC146818 and the HPET.

pub mod hpet;
pub mod i8254;
pub mod mc146818;
