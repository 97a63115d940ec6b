//! What the kernel keeps for a vCPU: the state when somebody asks, and all of it when the vCPU stands and goes on.
//!
//! While a vCPU stands, its local APIC is the board's, its time stamp counter is an offset to the machine's, and MSRs
//! that are no part of [`CpuState`] (the paravirtual ones among them) lie with the board: so that they can be saved, and
//! another engine can run the guest meanwhile.

use std::io;

use anura_x86::apic::{self, ApicImage};
use anura_x86::{Activity, CpuState, msr};
use kvm_bindings::*;

use super::KvmVcpu;
use super::timer::Seen;
use crate::state;

/// The time stamp counter while the vCPU stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tsc {
    /// Guest TSC minus the machine's.
    offset: u64,
    /// How often the machine's time had been made to go on then.
    resumptions: u64,
}

impl KvmVcpu {
    fn tsc_now(&self) -> u64 {
        let ticks = u128::from(self.vm.spaces.clock.now()) * u128::from(self.vm.config.tsc_khz);
        (ticks / 1_000_000) as u64
    }

    pub(super) fn read_state(&mut self) -> io::Result<CpuState> {
        self.settle()?;
        let now = self.tsc_now();
        let mut state = state::get(&mut *self.fd, &self.vm.msrs, self.held, now)?;
        if self.standing {
            // The kernel's counter runs on while the machine's time stands.
            state.tsc_offset = self.tsc.offset;
        }
        if self.standing || !self.split() {
            state.cr8 = self.apic().tpr().into();
        }
        Ok(state)
    }

    pub(super) fn write_state(&mut self, s: &CpuState) -> io::Result<()> {
        self.unfinished = false;
        self.fresh = false;
        let ours = self.standing || !self.split();
        self.held.activity = if ours { s.activity } else { Activity::Running };
        if ours {
            self.apic().set_tpr(s.cr8 as u8);
            self.cr8 = s.cr8 as u8;
        }
        let base = ours.then(|| self.apic().base());
        self.tsc = Tsc { offset: s.tsc_offset, resumptions: self.vm.spaces.clock.resumptions() };
        let now = self.tsc_now();
        (self.held.cr4, self.held.xcr0) = (s.cr4 & self.vm.refused_cr4, s.xcr0);
        state::set(&mut *self.fd, &self.vm.msrs, s, self.held, base, now)?;
        // Injection is possible again once the kernel has said so.
        let page = self.fd.page().get();
        page.ready_for_interrupt_injection = 0;
        if let Some(base) = base {
            page.apic_base = base;
        }
        Ok(())
    }

    /// INIT.
    pub(super) fn init(&mut self) -> io::Result<()> {
        let mut s = self.read_state()?;
        s.init(self.vm.config.model.signature());
        let bsp = self.apic().base() & apic::base::BSP != 0;
        s.activity = if bsp { Activity::Running } else { Activity::WaitForSipi };
        self.write_state(&s)
    }

    /// A start-up IPI.
    pub(super) fn start(&mut self, vector: u8) -> io::Result<()> {
        let mut s = self.read_state()?;
        s.sipi(vector);
        s.activity = Activity::Running;
        self.write_state(&s)
    }

    /// The local APIC that is in the kernel.
    pub(super) fn kernel_apic(&mut self) -> io::Result<ApicImage> {
        let Some(apics) = self.vm.apics.clone() else { return Ok(ApicImage::default()) };
        let page = self.fd.lapic()?;
        let base = self.fd.sregs()?.apic_base;
        let deadline = self.fd.msrs(&[msr::TSC_DEADLINE])?.first().copied().unwrap_or(0);
        Ok(apics.image(&page, base, deadline))
    }

    /// The vCPU leaves KVM_RUN for longer: its timer may expire before it stands.
    pub(super) fn look_at_timer(&mut self) {
        if let Some(apics) = self.vm.apics.clone().filter(|_| !self.standing) {
            let page = self.fd.lapic().ok();
            self.timer_seen = page.map(|page| Seen::of(&apics.image(&page, 0, 0).page));
        }
    }

    /// Gives the board what the kernel kept.
    pub(super) fn come_out(&mut self) -> io::Result<()> {
        if self.standing {
            return Ok(());
        }
        self.settle()?;
        let now = self.tsc_now();
        if let Some(tsc) = self.fd.msrs(&[msr::TSC])?.first() {
            let resumptions = self.vm.spaces.clock.resumptions();
            self.tsc = Tsc { offset: tsc.wrapping_sub(now), resumptions };
        }
        if self.split() {
            let mut image = self.kernel_apic()?;
            if let Some(seen) = self.timer_seen.take() {
                seen.deliver(&mut image.page);
            }
            if image.tsc_deadline != 0 {
                // The board's timer knows the machine's counter.
                image.tsc_deadline = image.tsc_deadline.wrapping_sub(self.tsc.offset).max(1);
            }
            self.held.activity = match self.fd.mp_state()? {
                KVM_MP_STATE_HALTED => Activity::Halted,
                KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
                    Activity::WaitForSipi
                }
                _ if self.held.activity == Activity::Shutdown => Activity::Shutdown,
                _ => Activity::Running,
            };
            self.apic().set_image(&image);
        }
        let extra = &self.vm.extra;
        if !extra.is_empty() {
            let numbers: Vec<u32> = extra.iter().map(|(n, _)| *n).collect();
            let values = self.fd.msrs(&numbers)?;
            let changed = extra.iter().zip(values).filter(|((_, reset), value)| reset != value);
            let kept: Vec<_> = changed.map(|((n, _), value)| (*n, value)).collect();
            self.vm.config.platform.keep_msrs(self.id, kept);
        }
        self.standing = true;
        Ok(())
    }

    /// Gives the kernel what the board has.
    pub(super) fn go_in(&mut self) -> io::Result<()> {
        if !self.standing {
            return Ok(());
        }
        if self.split() {
            // What was posted while we stood.
            let waits = self.apic().sync();
            if waits.init && self.apic().take_init() {
                self.init()?;
            }
            match self.apic().take_sipi() {
                Some(vector) if self.held.activity == Activity::WaitForSipi => self.start(vector)?,
                _ => {}
            }
        }
        let resumptions = self.vm.spaces.clock.resumptions();
        let stood = resumptions != self.tsc.resumptions;
        if stood {
            self.fd.set_msrs(&[(msr::TSC, self.tsc_now().wrapping_add(self.tsc.offset))])?;
            self.tsc.resumptions = resumptions;
        }
        self.restore_extra()?;
        if let Some(apics) = self.vm.apics.clone() {
            let image = self.apic().image();
            let mut sregs = self.fd.sregs()?;
            if sregs.apic_base != image.base {
                sregs.apic_base = image.base;
                self.fd.set_sregs(&sregs)?;
            }
            self.fd.set_lapic(&apics.page(&image))?;
            if image.tsc_deadline != 0 {
                let deadline = image.tsc_deadline.wrapping_add(self.tsc.offset);
                self.fd.set_msrs(&[(msr::TSC_DEADLINE, deadline)])?;
            }
            self.fd.set_mp_state(match self.held.activity {
                Activity::Halted => KVM_MP_STATE_HALTED,
                // A start-up IPI counts after INIT only, and this one has had it.
                Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
                _ => KVM_MP_STATE_RUNNABLE,
            })?;
            self.held.activity = Activity::Running;
        }
        if stood {
            // A guest without the paravirtual clock has nothing to be told.
            let _ = self.fd.clock_stood();
        }
        self.fresh = false;
        self.attention = true;
        self.standing = false;
        Ok(())
    }

    /// Sets the MSRs that the board kept; the others have their values of the start.
    fn restore_extra(&mut self) -> io::Result<()> {
        let extra = &self.vm.extra;
        if extra.is_empty() {
            return Ok(());
        }
        let kept = self.vm.config.platform.kept_msrs(self.id);
        let numbers: Vec<u32> = extra.iter().map(|(n, _)| *n).collect();
        let now = self.fd.msrs(&numbers)?;
        for ((number, reset), now) in extra.iter().zip(now) {
            let wanted = kept.iter().find(|(n, _)| n == number).map_or(*reset, |(_, value)| *value);
            if wanted != now && self.fd.set_msrs(&[(*number, wanted)])? == 0 {
                log::warn!("kvm: MSR {number:#x} does not take {wanted:#x}");
            }
        }
        Ok(())
    }
}
