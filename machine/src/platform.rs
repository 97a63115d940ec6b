//! What a CPU sees of its board: its local APIC and the pins that are not memory or ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anura_accel::{CpuPlatform, LocalApic, Pending};
use anura_devices::irq::lapic;
use anura_devices::misc::math_error::MathError;
use anura_vmcore::DeviceCell;

/// The board's side of all vCPUs.
pub(crate) struct Platform {
    apics: Vec<BoardApic>,
    math_error: DeviceCell<MathError>,
    a20: AtomicBool,
}

impl Platform {
    pub(crate) fn new(apics: &[Arc<lapic::LocalApic>], math_error: DeviceCell<MathError>) -> Arc<Self> {
        Arc::new(Self {
            apics: apics.iter().cloned().map(BoardApic).collect(),
            math_error,
            a20: AtomicBool::new(true),
        })
    }

    /// Opens or closes the A20 gate; no vCPU may run.
    pub(crate) fn set_a20(&self, open: bool) {
        self.a20.store(open, Ordering::SeqCst);
    }
}

impl CpuPlatform for Platform {
    fn apic(&self, cpu: u32) -> &dyn LocalApic {
        &self.apics[cpu as usize]
    }

    // All MSRs that exist are the core's own or the APIC's.
    fn rdmsr(&self, _cpu: u32, _msr: u32) -> Option<u64> {
        None
    }

    fn wrmsr(&self, _cpu: u32, _msr: u32, _value: u64) -> bool {
        false
    }

    fn ferr(&self, level: bool) -> bool {
        self.math_error.lock().ferr(level)
    }

    fn a20(&self) -> bool {
        self.a20.load(Ordering::SeqCst)
    }
}

/// The chip, as the engines' trait wants it.
struct BoardApic(Arc<lapic::LocalApic>);

impl LocalApic for BoardApic {
    fn sync(&self) -> Pending {
        let p = self.0.sync();
        Pending { interrupt: p.interrupt, nmi: p.nmi, init: p.init, sipi: p.sipi }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.0.acknowledge()
    }
    fn take_nmi(&self) -> bool {
        self.0.take_nmi()
    }
    fn take_init(&self) -> bool {
        self.0.take_init()
    }
    fn take_sipi(&self) -> Option<u8> {
        self.0.take_sipi()
    }
    fn tpr(&self) -> u8 {
        self.0.tpr()
    }
    fn set_tpr(&self, cr8: u8) {
        self.0.set_tpr(cr8);
    }
    fn base(&self) -> u64 {
        self.0.base()
    }
    fn set_base(&self, value: u64) -> bool {
        self.0.set_base(value)
    }
    fn mmio_read(&self, offset: u32) -> u32 {
        self.0.mmio_read(offset)
    }
    fn mmio_write(&self, offset: u32, value: u32) {
        self.0.mmio_write(offset, value);
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        self.0.msr_read(msr)
    }
    fn msr_write(&self, msr: u32, value: u64) -> bool {
        self.0.msr_write(msr, value)
    }
}
