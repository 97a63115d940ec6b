//! What a CPU sees of its board: its local APIC and the pins that are not memory or ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anura_accel::{CpuPlatform, LocalApic, Pending};
use anura_devices::irq::fabric::FabricHandle;
use anura_devices::irq::lapic;
use anura_devices::misc::math_error::MathError;
use anura_vmcore::{DeviceCell, HostApics};
use anura_x86::apic::ApicImage;
use parking_lot::Mutex;

/// The board's side of all vCPUs.
pub(crate) struct Platform {
    apics: Vec<BoardApic>,
    fabric: FabricHandle,
    math_error: DeviceCell<MathError>,
    a20: AtomicBool,
    /// MSRs of each vCPU that an engine left here.
    kept: Vec<Mutex<Vec<(u32, u64)>>>,
}

impl Platform {
    pub(crate) fn new(
        apics: &[Arc<lapic::LocalApic>],
        fabric: FabricHandle,
        math_error: DeviceCell<MathError>,
    ) -> Arc<Self> {
        Arc::new(Self {
            apics: apics.iter().cloned().map(BoardApic).collect(),
            fabric,
            math_error,
            a20: AtomicBool::new(true),
            kept: apics.iter().map(|_| Mutex::default()).collect(),
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

    // All MSRs that exist are the core's own or the APIC's, or were of an engine that is gone: a guest that uses them
    // must not fault because another one runs it.
    fn rdmsr(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.kept[cpu as usize].lock().iter().find(|(n, _)| *n == msr).map(|(_, value)| *value)
    }

    fn wrmsr(&self, cpu: u32, msr: u32, value: u64) -> bool {
        let mut kept = self.kept[cpu as usize].lock();
        let slot = kept.iter_mut().find(|(n, _)| *n == msr);
        slot.map(|(_, old)| *old = value).is_some()
    }

    fn kept_msrs(&self, cpu: u32) -> Vec<(u32, u64)> {
        self.kept[cpu as usize].lock().clone()
    }

    fn keep_msrs(&self, cpu: u32, list: Vec<(u32, u64)>) {
        *self.kept[cpu as usize].lock() = list;
    }

    fn ferr(&self, level: bool) -> bool {
        self.math_error.lock().ferr(level)
    }

    fn hand_over(&self, to: Option<Arc<dyn HostApics>>, work: &mut dyn FnMut()) {
        self.fabric.hand_over(to, work);
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
    fn image(&self) -> ApicImage {
        self.0.image()
    }
    fn set_image(&self, image: &ApicImage) {
        self.0.set_image(image);
    }
    fn wires(&self) -> Pending {
        let p = self.0.wires();
        Pending { interrupt: p.interrupt, nmi: p.nmi, init: p.init, sipi: p.sipi }
    }
    fn pic_acknowledge(&self) -> Option<u8> {
        self.0.pic_acknowledge()
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.0.host_end_of_interrupt(vector);
    }
}
