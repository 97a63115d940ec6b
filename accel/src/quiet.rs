//! A board with nothing on it, for tests and measurements of processors alone.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::{CpuPlatform, LocalApic, Pending};

/// An APIC that only keeps its task priority.
#[derive(Default)]
pub struct QuietApic {
    tpr: AtomicU8,
}

impl LocalApic for QuietApic {
    fn sync(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn take_nmi(&self) -> bool {
        false
    }
    fn take_init(&self) -> bool {
        false
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tpr(&self) -> u8 {
        self.tpr.load(Ordering::Relaxed)
    }
    fn set_tpr(&self, cr8: u8) {
        self.tpr.store(cr8, Ordering::Relaxed);
    }
    fn base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_base(&self, _: u64) -> bool {
        false
    }
    fn mmio_read(&self, offset: u32) -> u32 {
        offset
    }
    fn mmio_write(&self, _: u32, _: u32) {}
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }
}

/// A board with nothing on it.
#[derive(Default)]
pub struct EmptyBoard {
    apic: QuietApic,
    /// The A20 gate is closed.
    pub a20_closed: AtomicBool,
    /// The FERR# pin is asserted.
    pub ferr: AtomicBool,
    /// The IGNNE# pin is asserted.
    pub ignne: AtomicBool,
}

impl CpuPlatform for EmptyBoard {
    fn apic(&self, _: u32) -> &dyn LocalApic {
        &self.apic
    }
    fn rdmsr(&self, _: u32, _: u32) -> Option<u64> {
        None
    }
    fn wrmsr(&self, _: u32, _: u32, _: u64) -> bool {
        false
    }
    fn ferr(&self, level: bool) -> bool {
        self.ferr.store(level, Ordering::Relaxed);
        self.ignne.load(Ordering::Relaxed)
    }
    fn a20(&self) -> bool {
        !self.a20_closed.load(Ordering::Relaxed)
    }
}
