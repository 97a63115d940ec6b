//! The interpreter engines: what makes their virtual processors.

use super::SoftVcpu;
use crate::env::VmShared;
use anura_accel::{AccelError, AccelVm, Accelerator, Capabilities, Unavailable, Vcpu, VmConfig, VmSpaces};
use anura_vmcore::CpuSignal;
use std::sync::Arc;

/// The interpreter engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interp;

impl Accelerator for Interp {
    fn name(&self) -> &'static str {
        "interp"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        Ok(Capabilities { exact_budgets: true, max_vcpus: 255, in_turn: true, ..Capabilities::default() })
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        Ok(Arc::new(Vm { shared: VmShared::new(spaces, config) }))
    }
}

/// The interpreter engine without functions of the host: vector and x87 instructions run in portable code, as on a
/// host that lacks them. Slower; what `verify` compares [`Interp`] with.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortableInterp;

impl Accelerator for PortableInterp {
    fn name(&self) -> &'static str {
        "interp-portable"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        Interp.probe()
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        let shared = VmShared::new(spaces, config);
        shared.code.forbid_thunks();
        Ok(Arc::new(Vm { shared }))
    }
}

struct Vm {
    shared: Arc<VmShared>,
}

impl AccelVm for Vm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(SoftVcpu::new(self.shared.clone(), id, signal)))
    }

    fn info(&self) -> String {
        let (bytes, blocks, thunks) = self.shared.code.sizes();
        format!(
            "translated blocks: {blocks}\nbytes of translations: {bytes}\nbytes of host functions: {thunks}\n"
        )
    }
}
