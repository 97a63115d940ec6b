//! The engine on hosts with another processor: it says that it cannot run guests there.

use std::sync::Arc;

use anura_accel::{AccelError, AccelVm, Accelerator, Capabilities, Unavailable, VmConfig, VmSpaces};

use crate::{Choice, Kind};

/// The KVM engine, which runs nothing here.
#[derive(Default)]
pub struct Kvm(());

fn nothing() -> Unavailable {
    Unavailable(format!(
        "this host's processor ({}) cannot run x86 guests in hardware; -accel interp needs no KVM",
        std::env::consts::ARCH
    ))
}

impl Kvm {
    /// The engine; a stepper would have nothing to do.
    pub fn new(_: impl Accelerator + 'static) -> Self {
        Self(())
    }

    /// The engine as the user chose.
    pub fn with(self, _: Choice) -> Self {
        self
    }

    /// None.
    pub fn capabilities(&self) -> Result<Vec<(&'static str, bool)>, Unavailable> {
        Err(nothing())
    }

    /// None.
    pub fn kind(&self) -> Result<Kind, Unavailable> {
        Err(nothing())
    }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        Err(nothing())
    }

    fn create_vm(&self, _: &VmSpaces, _: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        Err(AccelError::Unsupported { engine: "kvm", what: nothing().to_string() })
    }
}
