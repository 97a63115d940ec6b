//! One machine on KVM: its memory, its CPUID, and how vCPUs are made.

use std::io;
use std::sync::Arc;

use anura_accel::{AccelError, AccelVm, Accelerator, Vcpu, VmConfig, VmSpaces};
use anura_memory::MemoryListener;
use anura_vmcore::{CpuSignal, HostApics};
use anura_x86::FeatureSet;
use kvm_ioctls::Cap;
use parking_lot::Mutex;

use crate::Irqchip;
use crate::bells::Bells;
use crate::gate::{self, Gate};
use crate::host::{System, Vm, has};
use crate::irqchip::KernelApics;
use crate::slots::Slots;
use crate::state::{extra_msrs, usable_msrs};
use crate::vcpu::{KvmVcpu, StepBoard};
use crate::{Choice, Stepping, cpuid};

/// Pages below the firmware that processors without unrestricted guest mode need for real mode.
const IDENTITY_PAGE: u64 = 0xfeff_c000;
const TSS_PAGES: u64 = 0xfeff_d000;
/// Slots that every kernel has.
const FEWEST_SLOTS: i32 = 32;

/// What the vCPUs of a machine share.
#[derive(Clone)]
pub(crate) struct VmShared {
    pub(crate) spaces: VmSpaces,
    pub(crate) config: VmConfig,
    pub(crate) gate: Arc<Gate>,
    pub(crate) slots: Arc<Slots>,
    /// MSRs of `CpuState` that the kernel keeps.
    pub(crate) msrs: Vec<u32>,
    /// MSRs that the kernel keeps beside those, with their values of the start.
    pub(crate) extra: Vec<(u32, u64)>,
    /// The local APICs, if they are in the kernel.
    pub(crate) apics: Option<Arc<KernelApics>>,
    /// Bits of CR4 that guests have and the kernel refuses.
    pub(crate) refused_cr4: u64,
    pub(crate) step_board: Option<Arc<StepBoard>>,
    /// Ring 0 runs in the kernel's instruction emulator.
    pub(crate) ring0_emulated: bool,
    /// Each exit shows segments and control registers in the run page: to see by whether the guest's kernel runs.
    pub(crate) shows_registers: bool,
    /// The stepper runs ring 0 with paging wherever we can tell.
    pub(crate) step_kernels: bool,
}

pub(crate) struct KvmVm {
    shared: Mutex<Arc<VmShared>>,
    fd: Arc<dyn Vm>,
    cpuid: cpuid::Leaves,
    stepper: Option<Arc<dyn AccelVm>>,
    bells: Arc<Bells>,
    /// What listens to the address spaces: memory, ports.
    ears: [Arc<dyn MemoryListener>; 2],
    msr_list: Vec<u32>,
    paravirtual: Mutex<Paravirtual>,
}

/// The paravirtual clock while the vCPUs stand.
#[derive(Default)]
struct Paravirtual {
    clock: Option<u64>,
    resumptions: u64,
}

fn host(what: &str) -> impl FnOnce(io::Error) -> AccelError + '_ {
    move |source| AccelError::Host { engine: "kvm", what: what.to_owned(), source }
}

impl KvmVm {
    pub(crate) fn new(
        system: &dyn System,
        spaces: &VmSpaces,
        config: &VmConfig,
        stepper: Option<&dyn Accelerator>,
        choice: Choice,
        ring0_emulated: bool,
    ) -> Result<Self, AccelError> {
        gate::install();
        let fd: Arc<dyn Vm> = system.create_vm().map_err(host("KVM_CREATE_VM"))?.into();
        let can_split = has(system, Cap::SplitIrqchip) && has(system, Cap::SignalMsi);
        let apics = match choice.irqchip {
            Irqchip::Off => None,
            // Bursts of the stepper must see interrupts.
            Irqchip::Auto if ring0_emulated || !can_split => None,
            Irqchip::Split if !can_split => {
                let what = "this kernel has no local APIC of its own (KVM_CAP_SPLIT_IRQCHIP): use kernel-irqchip=off";
                return Err(AccelError::Unsupported { engine: "kvm", what: what.into() });
            }
            _ => Some(KernelApics::new(system, &fd).map_err(host("KVM_CAP_SPLIT_IRQCHIP"))?),
        };
        if choice.irqchip == Irqchip::Split && ring0_emulated {
            log::warn!(
                "kvm: kernel-irqchip=split where guest kernels are emulated: only what the kernel fails at is stepped, \
                 so most guests do not get far; leave kernel-irqchip out or use off"
            );
        }
        let kernels = choice.stepping == Stepping::Kernels && apics.is_none();
        let step_kernels = ring0_emulated && stepper.is_some() && kernels;
        let step_board = (stepper.is_some() && apics.is_some())
            .then(|| StepBoard::new(&config.platform, config.topology.total().max(1)));
        fd.set_real_mode_pages(TSS_PAGES, IDENTITY_PAGE).map_err(host("KVM_SET_TSS_ADDR"))?;
        if system.capability(kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0 {
            // Without it a failed emulation may become #UD in the guest.
            if let Err(e) = fd.enable(kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1) {
                log::warn!("kvm: failed emulations may show as #UD: {e}");
            }
        }
        let rewrites = u64::from(kvm_bindings::KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
        if system.capability(kvm_bindings::KVM_CAP_DISABLE_QUIRKS2) as u64 & rewrites != 0 {
            // The kernel would write another vendor's VMCALL over in guest memory, for ever where that is ROM.
            if let Err(e) = fd.enable(kvm_bindings::KVM_CAP_DISABLE_QUIRKS2, rewrites) {
                log::warn!("kvm: hypercalls of the other vendor are rewritten in place: {e}");
            }
        }
        if has(system, Cap::X86UserSpaceMsr) {
            // MSRs that the kernel does not know come to the board.
            let unknown = u64::from(kvm_bindings::KVM_MSR_EXIT_REASON_UNKNOWN);
            fd.enable(kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR, unknown)
                .map_err(host("KVM_CAP_X86_USER_SPACE_MSR"))?;
        }
        let gate = Arc::new(Gate::default());
        let limit = system.capability(Cap::NrMemslots as u32).max(FEWEST_SLOTS);
        // One slot stays free: see `Slots::forget_translations`.
        let slots = Slots::new(&fd, &gate, limit as u32 - 1, ring0_emulated);
        spaces.memory.subscribe(slots.clone());
        let bells = Bells::new(&fd, &spaces.memory, &spaces.ports).map_err(host("eventfd"))?;
        let ears = bells.ears();
        if has(system, Cap::Ioeventfd) {
            spaces.memory.subscribe(ears[0].clone());
            spaces.ports.subscribe(ears[1].clone());
        }
        let msr_list = system.msr_list().map_err(host("KVM_GET_MSR_INDEX_LIST"))?;
        let cpuid = cpuid::Leaves::new(system, apics.is_some(), ring0_emulated)
            .map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        let stepper = stepper
            .map(|s| {
                let mut config = stepper_config(config, ring0_emulated && !step_kernels);
                if let Some(board) = &step_board {
                    config.platform = board.clone();
                }
                s.create_vm(spaces, &config)
            })
            .transpose()?;
        let shared = VmShared {
            spaces: spaces.clone(),
            config: config.clone(),
            gate,
            slots,
            msrs: Vec::new(),
            extra: Vec::new(),
            apics,
            refused_cr4: if step_kernels { cpuid.refused_cr4() } else { 0 },
            step_board,
            ring0_emulated,
            step_kernels,
            shows_registers: step_kernels
                && system.capability(kvm_bindings::KVM_CAP_SYNC_REGS) as u32
                    & kvm_bindings::KVM_SYNC_X86_SREGS
                    != 0,
        };
        let shared = Mutex::new(Arc::new(shared));
        Ok(Self { shared, fd, cpuid, stepper, bells, ears, msr_list, paravirtual: Mutex::default() })
    }
}

/// What the stepper runs: the machine's model. Where the guest's CPUID shows the host's features whatever we say, and the
/// guest asks the kernel's emulator for them, those too: or it would be refused what it was promised.
fn stepper_config(config: &VmConfig, cpuid_shows_host: bool) -> VmConfig {
    let mut config = config.clone();
    if cpuid_shows_host {
        FeatureSet::available().iter().for_each(|f| config.model.features.set(f, true));
    }
    config
}

impl AccelVm for KvmVm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        let mut shared = self.shared.lock();
        // The kernel takes the number for the APIC's id.
        let number = if shared.apics.is_some() { shared.config.topology.apic_id(id) } else { id };
        let mut fd = self.fd.create_vcpu(number).map_err(host("KVM_CREATE_VCPU"))?;
        fd.set_cpuid(&self.cpuid.of(id, &shared.config)).map_err(host("KVM_SET_CPUID2"))?;
        let (wanted, own) = (shared.config.tsc_khz as u32, fd.tsc_khz().unwrap_or(0));
        if own != 0 && wanted.abs_diff(own) > own / 4000 {
            fd.set_tsc_khz(wanted).map_err(host("KVM_SET_TSC_KHZ"))?;
        }
        if shared.msrs.is_empty() {
            let (msrs, extra) = (usable_msrs(&mut *fd), extra_msrs(&mut *fd, &self.msr_list));
            *shared = Arc::new(VmShared { msrs, extra, ..VmShared::clone(&shared) });
        }
        // A software engine's vCPU of our own, which nobody else can reach.
        let stepper = self.stepper.as_ref().map(|s| s.create_vcpu(id, signal.clone())).transpose()?;
        Ok(Box::new(KvmVcpu::new(&shared, id, signal, fd, stepper)))
    }

    fn stand(&self, vcpus: &mut [&mut dyn Vcpu]) {
        self.bells.drain();
        let shared = self.shared.lock().clone();
        let clock = self.fd.clock().ok();
        *self.paravirtual.lock() = Paravirtual { clock, resumptions: shared.spaces.clock.resumptions() };
        match &shared.apics {
            Some(apics) => shared.config.platform.hand_over(None, &mut || {
                apics.settle();
                vcpus.iter_mut().for_each(|vcpu| vcpu.stand());
            }),
            None => vcpus.iter_mut().for_each(|vcpu| vcpu.stand()),
        }
    }

    fn go(&self, vcpus: &mut [&mut dyn Vcpu]) {
        let shared = self.shared.lock().clone();
        let paravirtual = std::mem::take(&mut *self.paravirtual.lock());
        if let Some(ns) = paravirtual.clock
            && paravirtual.resumptions != shared.spaces.clock.resumptions()
            && let Err(e) = self.fd.set_clock(ns)
        {
            log::warn!("kvm: KVM_SET_CLOCK: {e}");
        }
        match &shared.apics {
            Some(apics) => {
                let to: Arc<dyn HostApics> = apics.clone();
                let mut go = || vcpus.iter_mut().for_each(|vcpu| vcpu.go());
                shared.config.platform.hand_over(Some(to), &mut go);
            }
            None => vcpus.iter_mut().for_each(|vcpu| vcpu.go()),
        }
    }

    fn info(&self) -> String {
        let shared = self.shared.lock();
        let ring0 = if shared.ring0_emulated { "emulated by the kernel" } else { "in hardware" };
        let apics = if shared.apics.is_some() { "in the kernel (split)" } else { "ours (off)" };
        let wired = shared.apics.as_ref().map_or(0, |apics| apics.wired());
        format!(
            "ring 0: {ring0}\nlocal APICs: {apics}\nmemory slots: {}\ninterrupts by eventfd: {wired}\n",
            shared.slots.len()
        )
    }

    fn sync_dirty(&self) {
        if let Err(e) = self.shared.lock().slots.sync_dirty() {
            log::error!("kvm: KVM_GET_DIRTY_LOG: {e}");
        }
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        let shared = self.shared.lock();
        let slots: Arc<dyn MemoryListener> = shared.slots.clone();
        shared.spaces.memory.unsubscribe(&slots);
        shared.spaces.memory.unsubscribe(&self.ears[0]);
        shared.spaces.ports.unsubscribe(&self.ears[1]);
        self.bells.close();
    }
}
