//! Local APICs in the kernel (`KVM_CAP_SPLIT_IRQCHIP`): PIC, IOAPIC, PIT and HPET stay ours.
//!
//! The kernel keeps the local APICs only while the vCPUs run. When they stand, the board's own have the registers and
//! take the messages, so that saving, resetting and changing the engine need to know nothing of the kernel.
//! Source: Linux `Documentation/virt/kvm/api.rst`; Intel SDM vol. 3 chapter 11 for the page.

use std::io;
use std::sync::Arc;

use anura_vmcore::{HostApics, MsiSink};
use anura_x86::apic::{ApicImage, ApicPage, PAGE_BYTES, offset};
use kvm_bindings::*;

use crate::host::{System, Vm};

/// Pins of the IOAPIC: routes that the kernel keeps for it.
pub(crate) const PINS: u64 = 24;

/// Where the local APICs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// In the kernel where guest kernels run in hardware and the kernel can, ours elsewhere.
    #[default]
    Auto,
    /// In the kernel.
    Split,
    /// Ours.
    Off,
}

/// The kernel's local APICs, as the board sends to them.
pub(crate) struct KernelApics {
    vm: Arc<dyn Vm>,
    /// Ids of 32 bits go into the upper half of an address.
    wide_ids: bool,
}

impl KernelApics {
    /// Switches the kernel's local APICs on; no vCPU may be there yet.
    pub(crate) fn new(system: &dyn System, vm: &Arc<dyn Vm>) -> io::Result<Arc<Self>> {
        vm.enable(KVM_CAP_SPLIT_IRQCHIP, PINS)?;
        let flags = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
        let wide_ids = system.capability(KVM_CAP_X2APIC_API) as u64 & flags == flags;
        if wide_ids {
            vm.enable(KVM_CAP_X2APIC_API, flags)?;
        }
        Ok(Arc::new(Self { vm: vm.clone(), wide_ids }))
    }

    fn address(&self, address: u64) -> u64 {
        if self.wide_ids { address } else { address & 0xffff_ffff }
    }

    /// The kernel's page as ours.
    pub(crate) fn image(&self, page: &kvm_lapic_state, base: u64, tsc_deadline: u64) -> ApicImage {
        let mut ours = ApicPage::default();
        for (to, from) in ours.bytes.iter_mut().zip(page.regs) {
            *to = from as u8;
        }
        let mut image = ApicImage { page: ours, base, tsc_deadline };
        if !self.wide_ids && base & anura_x86::apic::base::EXTD != 0 {
            // The old format has the id where xAPIC has it.
            image.page.set(offset::ID, image.page.get(offset::ID) >> 24);
        }
        image
    }

    /// Our page as the kernel's.
    pub(crate) fn page(&self, image: &ApicImage) -> kvm_lapic_state {
        let mut ours = image.page.clone();
        if !self.wide_ids && image.base & anura_x86::apic::base::EXTD != 0 {
            ours.set(offset::ID, ours.get(offset::ID) << 24);
        }
        let mut page = kvm_lapic_state { regs: [0; PAGE_BYTES] };
        for (to, from) in page.regs.iter_mut().zip(ours.bytes) {
            *to = from as std::os::raw::c_char;
        }
        page
    }
}

impl MsiSink for KernelApics {
    fn send_msi(&self, address: u64, data: u32) {
        if let Err(e) = self.vm.signal_msi(self.address(address), data) {
            log::error!("kvm: KVM_SIGNAL_MSI {address:#x} {data:#x}: {e}");
        }
    }
}

impl HostApics for KernelApics {
    fn route_pins(&self, pins: &[(u64, u32)]) {
        let routes: Vec<_> =
            pins.iter().zip(0..).map(|(&(address, data), gsi)| (gsi, self.address(address), data)).collect();
        if let Err(e) = self.vm.set_routes(&routes) {
            log::error!("kvm: KVM_SET_GSI_ROUTING: {e}");
        }
    }
}
