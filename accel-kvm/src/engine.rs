//! The engine itself, as the machine meets it.

use std::sync::{Arc, OnceLock};

use anura_accel::{AccelError, AccelVm, Accelerator, Capabilities, Unavailable, VmConfig, VmSpaces};

use crate::{Choice, Kind, Stepping, host, probe, vm};

/// The KVM engine.
#[derive(Default)]
pub struct Kvm {
    /// Runs what the kernel cannot emulate.
    stepper: Option<Arc<dyn Accelerator>>,
    choice: Choice,
    kind: OnceLock<Result<Kind, Unavailable>>,
}

impl Kvm {
    /// The engine, with a software engine to step instructions that the kernel fails to emulate.
    pub fn new(stepper: impl Accelerator + 'static) -> Self {
        Self { stepper: Some(Arc::new(stepper)), ..Self::default() }
    }

    /// The engine as the user chose.
    pub fn with(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// The capabilities that this engine uses where they are, and whether they are.
    pub fn capabilities(&self) -> Result<Vec<(&'static str, bool)>, Unavailable> {
        let system = probe::open()?;
        Ok(probe::OPTIONAL
            .iter()
            .map(|(cap, name)| (*name, host::System::capability(&system, *cap) > 0))
            .collect())
    }

    /// What this host's KVM is; the probe guest runs once.
    pub fn kind(&self) -> Result<Kind, Unavailable> {
        self.kind
            .get_or_init(|| {
                let system = probe::open()?;
                probe::check(&system)?;
                probe::measure(&system)
            })
            .clone()
    }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        let kind = self.kind()?;
        Ok(Capabilities {
            exact_budgets: false,
            max_vcpus: 255,
            in_turn: false,
            tsc_scales: kind.tsc_scales,
            // Emulated guest kernels run on the stepper, which has its own.
            features: (!kind.ring0_emulated).then_some(kind.features),
            tsc_khz: (kind.tsc_khz != 0).then_some(kind.tsc_khz),
            slow: kind.ring0_emulated.then(|| {
                format!(
                    "this host's KVM emulates guest kernels in software ({} ns an instruction)",
                    kind.per_instruction.as_nanos()
                )
            }),
        })
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        if config.counted {
            let what = "counted time (-icount) needs a software engine: use -accel interp".into();
            return Err(AccelError::Unsupported { engine: "kvm", what });
        }
        let unavailable = |e: Unavailable| AccelError::Unsupported { engine: "kvm", what: e.to_string() };
        let kind = self.kind().map_err(unavailable)?;
        let system = probe::open().map_err(unavailable)?;
        let stepper = self.stepper.as_deref().filter(|_| self.choice.stepping != Stepping::Off);
        let vm = vm::KvmVm::new(&system, spaces, config, stepper, self.choice, kind.ring0_emulated)?;
        Ok(Arc::new(vm))
    }
}
