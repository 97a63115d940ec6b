//! A kernel that plays a script: every exit and every failure, without `/dev/kvm`.

// The benchmark uses a part of it.
#![cfg_attr(not(test), allow(dead_code))]

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_bindings::*;
use parking_lot::Mutex;

use crate::host::{Bell, Cpu, RunPage, System, Vm};

/// What one KVM_RUN does: it fills the page, or fails with this number.
pub(crate) type Play = Box<dyn FnOnce(&mut RunPage) -> Result<(), i32> + Send>;

/// What was asked of the kernel, and what it will answer.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) plays: VecDeque<Play>,
    /// Names of ioctls in order, KVM_RUN among them.
    pub(crate) asked: Vec<String>,
    /// Ioctls that fail, with their error.
    pub(crate) failing: Vec<(&'static str, i32)>,
    pub(crate) interrupts: Vec<u8>,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) slots: Vec<(u32, u32, u64, u64)>,
    /// Pages that the next dirty log has, of whichever slot.
    pub(crate) dirty: Vec<u64>,
    pub(crate) messages: Vec<(u64, u32)>,
    pub(crate) routes: Vec<(u32, u64, u32)>,
    /// Numbers of routes that have an eventfd.
    pub(crate) wired: Vec<u32>,
    pub(crate) bells: Vec<(Bell, bool)>,
    pub(crate) clock: u64,
    pub(crate) lapic: Vec<std::os::raw::c_char>,
    pub(crate) mp_state: u32,
    pub(crate) msrs: std::collections::BTreeMap<u32, u64>,
    pub(crate) missing_capability: Option<u32>,
    pub(crate) version: i32,
}

/// A handle on a script; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Scripted(pub(crate) Arc<Mutex<Script>>, Repeat);

/// The same exit, many times over, with nothing written down.
type Repeat = Arc<Mutex<Option<Repeated>>>;

/// The exit, and how often it still comes.
type Repeated = (fn(&mut RunPage), u64);

impl Scripted {
    pub(crate) fn new(plays: Vec<Play>) -> Self {
        let script = Script { plays: plays.into(), version: 12, lapic: vec![0; 1024], ..Script::default() };
        Self(Arc::new(Mutex::new(script)), Repeat::default())
    }

    /// From the next KVM_RUN on that exit, so often, and then a shutdown.
    #[cfg(feature = "bench")]
    pub(crate) fn repeat(&self, play: fn(&mut RunPage), times: u64) {
        *self.1.lock() = Some((play, times));
    }

    fn ask(&self, what: &str) -> io::Result<()> {
        let mut s = self.0.lock();
        s.asked.push(what.to_owned());
        match s.failing.iter().find(|(name, _)| *name == what) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(()),
        }
    }

    /// As `ask`, with an error that names the ioctl, as the real ones of a processor do.
    fn ask_cpu(&self, what: &str) -> io::Result<()> {
        self.ask(what).map_err(|e| io::Error::other(format!("{what}: {e}")))
    }
}

impl System for Scripted {
    fn api_version(&self) -> i32 {
        self.0.lock().version
    }

    fn capability(&self, cap: u32) -> i32 {
        if self.0.lock().missing_capability == Some(cap) {
            return 0;
        }
        match cap {
            // Room for two messages beside the IOAPIC's pins.
            KVM_CAP_IRQ_ROUTING => 26,
            _ => 1,
        }
    }

    fn supported_cpuid(&self) -> io::Result<Vec<kvm_cpuid_entry2>> {
        self.ask("KVM_GET_SUPPORTED_CPUID")?;
        Ok(vec![])
    }

    fn msr_list(&self) -> io::Result<Vec<u32>> {
        self.ask("KVM_GET_MSR_INDEX_LIST")?;
        // The paravirtual clock.
        Ok(vec![0x4b56_4d01])
    }

    fn create_vm(&self) -> io::Result<Box<dyn Vm>> {
        self.ask("KVM_CREATE_VM")?;
        Ok(Box::new(self.clone()))
    }
}

impl Vm for Scripted {
    fn set_memory(&self, slot: u32, flags: u32, gpa: u64, size: u64, _host: u64) -> io::Result<()> {
        self.ask("KVM_SET_USER_MEMORY_REGION")?;
        let mut s = self.0.lock();
        s.slots.retain(|x| x.0 != slot);
        if size != 0 {
            s.slots.push((slot, flags, gpa, size));
        }
        Ok(())
    }

    fn set_real_mode_pages(&self, _: u64, _: u64) -> io::Result<()> {
        self.ask("KVM_SET_TSS_ADDR")
    }

    fn enable(&self, _: u32, _: u64) -> io::Result<()> {
        self.ask("KVM_ENABLE_CAP")
    }

    fn dirty_log(&self, _: u32, size: u64) -> io::Result<Vec<u64>> {
        self.ask("KVM_GET_DIRTY_LOG")?;
        let mut words = vec![0; (size / 4096).div_ceil(64) as usize];
        for page in std::mem::take(&mut self.0.lock().dirty) {
            words[page as usize / 64] |= 1 << (page % 64);
        }
        Ok(words)
    }

    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()> {
        self.ask("KVM_SIGNAL_MSI")?;
        self.0.lock().messages.push((address, data));
        Ok(())
    }

    fn set_routes(&self, routes: &[(u32, u64, u32)]) -> io::Result<()> {
        self.ask("KVM_SET_GSI_ROUTING")?;
        self.0.lock().routes = routes.to_vec();
        Ok(())
    }

    fn ioeventfd(&self, _: BorrowedFd<'_>, bell: Bell, on: bool) -> io::Result<()> {
        self.ask("KVM_IOEVENTFD")?;
        self.0.lock().bells.push((bell, on));
        Ok(())
    }

    fn irqfd(&self, _: BorrowedFd<'_>, gsi: u32, on: bool) -> io::Result<()> {
        self.ask("KVM_IRQFD")?;
        let wired = &mut self.0.lock().wired;
        wired.retain(|n| *n != gsi);
        wired.extend(on.then_some(gsi));
        Ok(())
    }

    fn clock(&self) -> io::Result<u64> {
        self.ask("KVM_GET_CLOCK")?;
        Ok(self.0.lock().clock)
    }

    fn set_clock(&self, ns: u64) -> io::Result<()> {
        self.ask("KVM_SET_CLOCK")?;
        self.0.lock().clock = ns;
        Ok(())
    }

    fn create_vcpu(&self, _: u32) -> io::Result<Box<dyn Cpu>> {
        self.ask("KVM_CREATE_VCPU")?;
        let repeat = self.1.clone();
        Ok(Box::new(ScriptedCpu { script: self.clone(), page: RunPage::scripted(), repeat, left: None }))
    }
}

struct ScriptedCpu {
    script: Scripted,
    page: RunPage,
    repeat: Repeat,
    left: Option<Repeated>,
}

impl Cpu for ScriptedCpu {
    fn run(&mut self) -> io::Result<()> {
        if let Some((play, left)) = &mut self.left {
            match left.checked_sub(1) {
                Some(fewer) => {
                    *left = fewer;
                    play(&mut self.page);
                }
                None => self.page.get().exit_reason = KVM_EXIT_SHUTDOWN,
            }
            return Ok(());
        }
        let repeat = self.repeat.lock().take();
        if repeat.is_some() {
            self.left = repeat;
            return self.run();
        }
        self.script.ask("KVM_RUN")?;
        if self.page.get().immediate_exit != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        let play = self.script.0.lock().plays.pop_front();
        match play {
            Some(play) => play(&mut self.page).map_err(io::Error::from_raw_os_error),
            // The end of the script looks like a guest that halts.
            None => {
                self.page.get().exit_reason = KVM_EXIT_HLT;
                Ok(())
            }
        }
    }

    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    fn set_cpuid(&mut self, _: &[kvm_cpuid_entry2]) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_CPUID2")
    }

    fn regs(&mut self) -> io::Result<kvm_regs> {
        self.script.ask_cpu("KVM_GET_REGS")?;
        Ok(self.script.0.lock().regs)
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_REGS")?;
        self.script.0.lock().regs = *regs;
        Ok(())
    }

    fn sregs(&mut self) -> io::Result<kvm_sregs> {
        self.script.ask_cpu("KVM_GET_SREGS")?;
        Ok(self.script.0.lock().sregs)
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_SREGS")?;
        self.script.0.lock().sregs = *sregs;
        Ok(())
    }

    fn msrs(&mut self, wanted: &[u32]) -> io::Result<Vec<u64>> {
        self.script.ask_cpu("KVM_GET_MSRS")?;
        let script = self.script.0.lock();
        Ok(wanted.iter().map(|n| script.msrs.get(n).copied().unwrap_or(0)).collect())
    }

    fn set_msrs(&mut self, msrs: &[(u32, u64)]) -> io::Result<usize> {
        self.script.ask_cpu("KVM_SET_MSRS")?;
        self.script.0.lock().msrs.extend(msrs.iter().copied());
        Ok(msrs.len())
    }

    fn xsave(&mut self) -> io::Result<Box<[u8; 4096]>> {
        self.script.ask_cpu("KVM_GET_XSAVE")?;
        Ok(Box::new([0; 4096]))
    }

    fn set_xsave(&mut self, _: &[u8; 4096]) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_XSAVE")
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        self.script.ask_cpu("KVM_GET_XCRS")?;
        Ok(1)
    }

    fn set_xcr0(&mut self, _: u64) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_XCRS")
    }

    fn debug_registers(&mut self) -> io::Result<[u64; 6]> {
        self.script.ask_cpu("KVM_GET_DEBUGREGS")?;
        Ok([0, 0, 0, 0, 0xffff_0ff0, 0x400])
    }

    fn set_debug_registers(&mut self, _: &[u64; 6]) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_DEBUGREGS")
    }

    fn events(&mut self) -> io::Result<kvm_vcpu_events> {
        self.script.ask_cpu("KVM_GET_VCPU_EVENTS")?;
        Ok(kvm_vcpu_events::default())
    }

    fn set_events(&mut self, _: &kvm_vcpu_events) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_VCPU_EVENTS")
    }

    fn set_guest_debug(&mut self, _: &kvm_guest_debug) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_GUEST_DEBUG")
    }

    fn interrupt(&mut self, vector: u8) -> io::Result<()> {
        self.script.ask_cpu("KVM_INTERRUPT")?;
        self.script.0.lock().interrupts.push(vector);
        Ok(())
    }

    fn nmi(&mut self) -> io::Result<()> {
        self.script.ask_cpu("KVM_NMI")
    }

    fn translate(&mut self, linear: u64) -> io::Result<Option<u64>> {
        self.script.ask_cpu("KVM_TRANSLATE")?;
        Ok(Some(linear))
    }

    fn tsc_khz(&mut self) -> io::Result<u32> {
        self.script.ask_cpu("KVM_GET_TSC_KHZ")?;
        Ok(1_000_000)
    }

    fn set_tsc_khz(&mut self, _: u32) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_TSC_KHZ")
    }

    fn lapic(&mut self) -> io::Result<kvm_lapic_state> {
        self.script.ask_cpu("KVM_GET_LAPIC")?;
        let mut page = kvm_lapic_state { regs: [0; 1024] };
        page.regs.copy_from_slice(&self.script.0.lock().lapic);
        Ok(page)
    }

    fn set_lapic(&mut self, page: &kvm_lapic_state) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_LAPIC")?;
        self.script.0.lock().lapic = page.regs.to_vec();
        Ok(())
    }

    fn mp_state(&mut self) -> io::Result<u32> {
        self.script.ask_cpu("KVM_GET_MP_STATE")?;
        Ok(self.script.0.lock().mp_state)
    }

    fn set_mp_state(&mut self, state: u32) -> io::Result<()> {
        self.script.ask_cpu("KVM_SET_MP_STATE")?;
        self.script.0.lock().mp_state = state;
        Ok(())
    }

    fn clock_stood(&mut self) -> io::Result<()> {
        self.script.ask_cpu("KVM_KVMCLOCK_CTRL")
    }
}
