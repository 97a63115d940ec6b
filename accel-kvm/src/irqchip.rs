//! Local APICs in the kernel (`KVM_CAP_SPLIT_IRQCHIP`): PIC, IOAPIC, PIT and HPET stay ours.
//!
//! The kernel keeps the local APICs only while the vCPUs run. When they stand, the board's own have the registers and
//! take the messages, so that saving, resetting and changing the engine need to know nothing of the kernel.
//! Source: Linux `Documentation/virt/kvm/api.rst`; Intel SDM vol. 3 chapter 11 for the page.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anura_vmcore::{HostApics, MsiSink};
use anura_x86::apic::{ApicImage, ApicPage, PAGE_BYTES, offset};
use kvm_bindings::*;
use kvm_ioctls::Cap;
use parking_lot::Mutex;

use crate::bells::{eventfd, wake};
use crate::host::{System, Vm, has};

/// Pins of the IOAPIC: routes that the kernel keeps for it.
pub(crate) const PINS: u64 = 24;

/// The kernel's local APICs, as the board sends to them.
pub(crate) struct KernelApics {
    vm: Arc<dyn Vm>,
    /// Ids of 32 bits go into the upper half of an address.
    wide_ids: bool,
    routes: Mutex<Routes>,
}

/// What the kernel knows of interrupts before they come.
struct Routes {
    /// Numbers that the kernel has for routes, those of the pins among them; 0 if it takes no eventfds.
    limit: u32,
    pins: Vec<(u64, u32)>,
    /// Messages of devices, by the number of their [`anura_vmcore::MsiRoute`].
    messages: BTreeMap<u64, Wired>,
    free: Vec<u32>,
    next: u32,
}

/// A device's message that a write to an eventfd sends.
struct Wired {
    gsi: u32,
    /// Address and data that the kernel has, if it was told.
    message: Option<(u64, u32)>,
    fd: OwnedFd,
    /// The kernel listens; not while the vCPUs stand.
    hung: bool,
}

impl Routes {
    /// All of them, for the kernel, which takes them only together.
    fn list(&self) -> Vec<(u32, u64, u32)> {
        let pins = self.pins.iter().zip(0..).map(|(&(address, data), gsi)| (gsi, address, data));
        let messages = self.messages.values().filter_map(|w| w.message.map(|(to, data)| (w.gsi, to, data)));
        pins.chain(messages).collect()
    }

    fn number(&mut self) -> Option<u32> {
        let fresh = (self.next < self.limit).then_some(self.next);
        self.free.pop().or_else(|| {
            self.next += u32::from(fresh.is_some());
            fresh
        })
    }

    /// Sends a message by its eventfd, which is made at first; `false` if there is no number left for it.
    fn fire(
        &mut self,
        vm: &dyn Vm,
        route: u64,
        message: (u64, u32),
    ) -> Result<bool, (&'static str, io::Error)> {
        if !self.messages.contains_key(&route) {
            let Some(gsi) = self.number() else { return Ok(false) };
            let fd = eventfd().map_err(|e| ("eventfd", e))?;
            self.messages.insert(route, Wired { gsi, message: None, fd, hung: false });
        }
        let Some(wired) = self.messages.get_mut(&route) else { return Ok(false) };
        if wired.message != Some(message) {
            wired.message = Some(message);
            vm.set_routes(&self.list()).map_err(|e| ("KVM_SET_GSI_ROUTING", e))?;
        }
        let Some(wired) = self.messages.get_mut(&route) else { return Ok(false) };
        if !wired.hung {
            vm.irqfd(wired.fd.as_fd(), wired.gsi, true).map_err(|e| ("KVM_IRQFD", e))?;
            wired.hung = true;
        }
        wake(&wired.fd);
        Ok(true)
    }

    fn unhang(vm: &dyn Vm, wired: &mut Wired) {
        if std::mem::take(&mut wired.hung)
            && let Err(e) = vm.irqfd(wired.fd.as_fd(), wired.gsi, false)
        {
            log::error!("kvm: KVM_IRQFD: {e}");
        }
    }
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
        let limit =
            if has(system, Cap::Irqfd) { system.capability(KVM_CAP_IRQ_ROUTING).max(0) as u32 } else { 0 };
        let next = PINS as u32;
        let routes = Routes { limit, pins: vec![], messages: BTreeMap::new(), free: vec![], next };
        Ok(Arc::new(Self { vm: vm.clone(), wide_ids, routes: Mutex::new(routes) }))
    }

    /// The vCPUs stand, and no device sends: what was written to eventfds is with the kernel's local APICs afterwards,
    /// because letting go of one waits for what it still has on its way.
    pub(crate) fn settle(&self) {
        self.routes.lock().messages.values_mut().for_each(|wired| Routes::unhang(&*self.vm, wired));
    }

    /// Messages that have an eventfd.
    pub(crate) fn wired(&self) -> usize {
        self.routes.lock().messages.len()
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

    fn send_route(&self, route: u64, address: u64, data: u32) {
        let mut routes = self.routes.lock();
        match routes.fire(&*self.vm, route, (self.address(address), data)) {
            Ok(true) => return,
            Ok(false) => {}
            Err((what, e)) => {
                log::warn!("kvm: {what}: {e}: interrupts of devices go without eventfds");
                let mut messages = std::mem::take(&mut routes.messages);
                messages.values_mut().for_each(|wired| Routes::unhang(&*self.vm, wired));
                (routes.limit, routes.free) = (0, vec![]);
            }
        }
        drop(routes);
        self.send_msi(address, data);
    }

    fn forget_route(&self, route: u64) {
        let mut routes = self.routes.lock();
        if let Some(mut wired) = routes.messages.remove(&route) {
            Routes::unhang(&*self.vm, &mut wired);
            routes.free.push(wired.gsi);
        }
    }
}

impl HostApics for KernelApics {
    fn route_pins(&self, pins: &[(u64, u32)]) {
        let mut routes = self.routes.lock();
        routes.pins = pins.iter().map(|&(address, data)| (self.address(address), data)).collect();
        if let Err(e) = self.vm.set_routes(&routes.list()) {
            log::error!("kvm: KVM_SET_GSI_ROUTING: {e}");
        }
    }
}
