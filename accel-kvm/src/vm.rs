//! One machine on KVM: its memory, its CPUID, and how vCPUs are made.

use std::io;
use std::sync::Arc;

use anura_accel::{AccelError, AccelVm, Accelerator, Vcpu, VmConfig, VmSpaces};
use anura_vmcore::CpuSignal;
use anura_x86::FeatureSet;
use kvm_ioctls::Cap;
use parking_lot::Mutex;

use crate::gate::{self, Gate};
use crate::host::{System, Vm, has};
use crate::slots::Slots;
use crate::state::usable_msrs;
use crate::vcpu::KvmVcpu;
use crate::{Stepping, cpuid};

/// Pages below the firmware that processors without unrestricted guest mode need for real mode.
const IDENTITY_PAGE: u64 = 0xfeff_c000;
const TSS_PAGES: u64 = 0xfeff_d000;
/// Slots that every kernel has.
const FEWEST_SLOTS: i32 = 32;

/// What the vCPUs of a machine share.
pub(crate) struct VmShared {
    pub(crate) spaces: VmSpaces,
    pub(crate) config: VmConfig,
    pub(crate) gate: Arc<Gate>,
    pub(crate) slots: Arc<Slots>,
    /// MSRs of `CpuState` that the kernel keeps.
    pub(crate) msrs: Vec<u32>,
    /// Ring 0 runs in the kernel's instruction emulator.
    pub(crate) ring0_emulated: bool,
    /// The stepper runs ring 0 with paging wherever we can tell.
    pub(crate) step_kernels: bool,
}

pub(crate) struct KvmVm {
    shared: Mutex<Arc<VmShared>>,
    fd: Arc<dyn Vm>,
    cpuid: cpuid::Leaves,
    stepper: Option<Arc<dyn AccelVm>>,
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
        stepping: Stepping,
        ring0_emulated: bool,
    ) -> Result<Self, AccelError> {
        let step_kernels = ring0_emulated && stepper.is_some() && stepping == Stepping::Kernels;
        gate::install();
        let fd: Arc<dyn Vm> = system.create_vm().map_err(host("KVM_CREATE_VM"))?.into();
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
        let slots = Slots::new(&fd, &gate, limit as u32, ring0_emulated);
        spaces.memory.subscribe(slots.clone());
        let cpuid = cpuid::Leaves::new(system).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        let stepper = stepper
            .map(|s| s.create_vm(spaces, &stepper_config(config, ring0_emulated && !step_kernels)))
            .transpose()?;
        let shared = VmShared {
            spaces: spaces.clone(),
            config: config.clone(),
            gate,
            slots,
            msrs: Vec::new(),
            ring0_emulated,
            step_kernels,
        };
        Ok(Self { shared: Mutex::new(Arc::new(shared)), fd, cpuid, stepper })
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
        let mut fd = self.fd.create_vcpu(id).map_err(host("KVM_CREATE_VCPU"))?;
        let mut shared = self.shared.lock();
        fd.set_cpuid(&self.cpuid.of(id, &shared.config)).map_err(host("KVM_SET_CPUID2"))?;
        if shared.msrs.is_empty() {
            let msrs = usable_msrs(&mut *fd);
            let old = &**shared;
            *shared = Arc::new(VmShared {
                spaces: old.spaces.clone(),
                config: old.config.clone(),
                gate: old.gate.clone(),
                slots: old.slots.clone(),
                msrs,
                ring0_emulated: old.ring0_emulated,
                step_kernels: old.step_kernels,
            });
        }
        // A software engine's vCPU of our own, which nobody else can reach.
        let stepper = self.stepper.as_ref().map(|s| s.create_vcpu(id, signal.clone())).transpose()?;
        Ok(Box::new(KvmVcpu::new(&shared, id, signal, fd, stepper)))
    }

    fn info(&self) -> String {
        let shared = self.shared.lock();
        let ring0 = if shared.ring0_emulated { "emulated by the kernel" } else { "in hardware" };
        format!("ring 0: {ring0}\nmemory slots: {}\n", shared.slots.len())
    }

    fn sync_dirty(&self) {
        if let Err(e) = self.shared.lock().slots.sync_dirty() {
            log::error!("kvm: KVM_GET_DIRTY_LOG: {e}");
        }
    }
}
