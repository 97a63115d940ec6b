//! The seam between the PC and the engines that run its CPUs.
//!
//! The machine knows these traits and nothing else of an engine; an engine knows the machine through
//! [`VmSpaces`], [`CpuPlatform`] and [`LocalApic`]. [`scripted`] is the engine that plays a script, for tests of the
//! machine without a CPU.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use anura_memory::{AddressSpace, RamBlock};
use anura_vmcore::{Clock, CpuSignal, HostApics, ResetKind};
use anura_x86::apic::ApicImage;
use anura_x86::{CpuModel, CpuState, FeatureSet, Topology};

pub mod quiet;
pub mod scripted;
pub mod verify;

/// A kind of engine.
pub trait Accelerator: Send + Sync {
    /// The name that `-accel` takes.
    fn name(&self) -> &'static str;
    /// Whether the engine can run on this host, and what it can do.
    fn probe(&self) -> Result<Capabilities, Unavailable>;
    /// Makes the engine's side of one machine.
    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError>;
}

/// What an engine can do on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `Budget::Instructions` is exact, so counted time is possible.
    pub exact_budgets: bool,
    /// Greatest number of vCPUs.
    pub max_vcpus: u32,
    /// All vCPUs take turns on one thread.
    pub in_turn: bool,
    /// The rate of the time stamp counter, where the engine cannot choose it.
    pub tsc_khz: Option<u64>,
    /// That rate is only the best one; others can be had.
    pub tsc_scales: bool,
    /// The features that its vCPUs can have; those of the software engines if it does not say.
    pub features: Option<FeatureSet>,
    /// Why this engine, though it works, is slower here than another would be.
    pub slow: Option<String>,
}

/// Why an engine cannot run here: one line for the user, with the way out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// An engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// The host refused memory or another resource.
    #[error("{engine}: {what}")]
    Host {
        /// The engine's name.
        engine: &'static str,
        /// What was refused and why.
        what: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The configuration asks for what the engine cannot do.
    #[error("{engine}: {what}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// What it cannot do, and the way out.
        what: String,
    },
}

/// The address spaces and the clock that an engine runs against.
#[derive(Clone)]
pub struct VmSpaces {
    /// Guest-physical memory as the CPUs see it.
    pub memory: AddressSpace,
    /// The 64 KiB of I/O ports.
    pub ports: AddressSpace,
    /// Guest time.
    pub clock: Clock,
    /// All RAM blocks, for engines that map them.
    pub ram: Vec<Arc<RamBlock>>,
}

/// What an engine must know of the machine.
#[derive(Clone)]
pub struct VmConfig {
    /// What a CPU sees of its board.
    pub platform: Arc<dyn CpuPlatform>,
    /// CPU model, the same for all vCPUs.
    pub model: CpuModel,
    /// Sockets, cores and threads.
    pub topology: Topology,
    /// Rate of the time stamp counter.
    pub tsc_khz: u64,
    /// Time comes from counted instructions.
    pub counted: bool,
}

/// The engine's side of one machine.
pub trait AccelVm: Send + Sync {
    /// Makes one vCPU in its power-on state. `signal` is how the machine gets its attention.
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError>;
    /// Tells the trackers of guest RAM what guest code wrote, where the engine does not do so at once. Called with
    /// all vCPUs standing, before anybody looks for dirty pages or runs translated code.
    fn sync_dirty(&self) {}
    /// The vCPUs stand: what the host keeps for them while they run (its local APICs, its clocks) comes back to the
    /// board, where it is saved, shown and changed.
    fn stand(&self, vcpus: &mut [&mut dyn Vcpu]) {
        vcpus.iter_mut().for_each(|vcpu| vcpu.stand());
    }
    /// The vCPUs are about to run: the host gets it again.
    fn go(&self, vcpus: &mut [&mut dyn Vcpu]) {
        vcpus.iter_mut().for_each(|vcpu| vcpu.go());
    }
    /// Counters and sizes for `info jit` and `info exits`, one per line.
    fn info(&self) -> String {
        String::new()
    }
}

/// One virtual CPU. It is used by one thread at a time.
pub trait Vcpu: Send {
    /// Runs the guest until the budget is spent or something else ends the run.
    fn run(&mut self, budget: Budget) -> VcpuExit;
    /// The complete architectural state; at an instruction boundary.
    fn state(&mut self) -> CpuState;
    /// Takes over a state. It is validated, never trusted.
    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError>;
    /// What makes `run` return from another thread.
    fn kicker(&self) -> Kicker;
    /// Breakpoints and single stepping for a debugger.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), DebugError>;
    /// RESET or INIT.
    fn reset(&mut self, kind: ResetKind);
    /// The guest-physical address behind a linear one, by the current page tables, without side effects.
    fn translate(&mut self, linear: u64) -> Option<u64>;
    /// This vCPU's part of [`AccelVm::stand`].
    fn stand(&mut self) {}
    /// This vCPU's part of [`AccelVm::go`].
    fn go(&mut self) {}
    /// Instructions retired by this vCPU since it was made, where the engine counts them.
    fn instructions(&self) -> u64 {
        0
    }
    /// How often and why the engine left guest code, as `(cause, count)`.
    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Makes a running vCPU return `Interrupted`. Cheap to clone and safe to use from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<CpuSignal>);

impl Kicker {
    /// A kicker of the vCPU that polls `signal`.
    pub fn new(signal: Arc<CpuSignal>) -> Self {
        Self(signal)
    }

    /// Makes `run` return soon, or at once the next time it is called.
    pub fn kick(&self) {
        self.0.raise(CpuSignal::KICK);
    }
}

/// How long `run` may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Until something happens.
    Unlimited,
    /// Until about this host time.
    Until(Instant),
    /// Exactly this many guest instructions; each iteration of a repeated string instruction counts as one.
    Instructions(u64),
}

/// Why `run` returned.
#[derive(Clone, Debug, PartialEq)]
pub enum VcpuExit {
    /// Kicked. The state is at an instruction boundary.
    Interrupted,
    /// The budget is spent, or the guest executed PAUSE and lets another vCPU run.
    BudgetSpent,
    /// HLT or wait-for-SIPI with nothing deliverable: wait for the vCPU's signal.
    Halted,
    /// A breakpoint or a step of the debugger.
    Debug(DebugEvent),
    /// The CPU asks for a machine reset.
    Reset,
    /// Shutdown after a fault in the double-fault handler. The state stays inspectable.
    TripleFault,
    /// The engine cannot go on.
    Failed(InternalError),
}

/// What the debugger asked for happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugEvent {
    /// A breakpoint, before its instruction.
    Breakpoint {
        /// Its linear address.
        linear: u64,
    },
    /// One instruction was executed.
    Step,
}

/// What a debugger wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after each instruction.
    pub single_step: bool,
    /// Stop before the instructions at these linear addresses.
    pub breakpoints: Vec<u64>,
}

/// A debug request that the engine cannot serve.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct DebugError(pub String);

/// A state that the engine refuses.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("impossible CPU state: {0}")]
pub struct StateError(pub String);

/// The engine met something that it cannot handle: never the guest's fault alone.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} at {rip:#x}")]
pub struct InternalError {
    /// What happened.
    pub what: String,
    /// Where the guest stood.
    pub rip: u64,
}

/// What a CPU sees of its board.
pub trait CpuPlatform: Send + Sync {
    /// The local APIC of a vCPU.
    fn apic(&self, cpu: u32) -> &dyn LocalApic;
    /// Reads a model-specific register that is not the core's own; `None` is #GP.
    fn rdmsr(&self, cpu: u32, msr: u32) -> Option<u64>;
    /// Writes one; `false` is #GP.
    fn wrmsr(&self, cpu: u32, msr: u32, value: u64) -> bool;
    /// The FERR# pin: an unmasked x87 error with CR0.NE clear (IRQ 13). True if IGNNE# is asserted, so that x87
    /// instructions go on in spite of the error.
    fn ferr(&self, level: bool) -> bool;
    /// Model-specific registers of a vCPU that no [`CpuState`] has, and that an engine which has them left with the
    /// board: saved with it, and given back to an engine that can use them.
    fn kept_msrs(&self, cpu: u32) -> Vec<(u32, u64)> {
        let _ = cpu;
        Vec::new()
    }
    /// Leaves them with the board.
    fn keep_msrs(&self, cpu: u32, list: Vec<(u32, u64)>) {
        let _ = (cpu, list);
    }
    /// Does `work` while no interrupt message is on its way; messages then go to `to`, or to the board's own local
    /// APICs again.
    fn hand_over(&self, to: Option<Arc<dyn HostApics>>, work: &mut dyn FnMut()) {
        let _ = to;
        work();
    }
    /// The A20 gate is open. Closed, address bit 20 of every access of a CPU is zero; DMA is not concerned. It
    /// changes only while no vCPU runs.
    fn a20(&self) -> bool {
        true
    }
}

/// What waits at a local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// A vector, or the PIC's INTR, would be taken now if the interrupt flag is set.
    pub interrupt: bool,
    /// A non-maskable interrupt is latched.
    pub nmi: bool,
    /// INIT is latched.
    pub init: bool,
    /// A start-up IPI with this vector is latched.
    pub sipi: Option<u8>,
}

/// A local APIC as its CPU uses it.
pub trait LocalApic: Send + Sync {
    /// Takes what other agents posted and says what waits.
    fn sync(&self) -> Pending;
    /// Acknowledges the interrupt of highest priority, of the APIC or (ExtINT) of the PIC.
    fn acknowledge(&self) -> Option<u8>;
    /// Takes the latched NMI.
    fn take_nmi(&self) -> bool;
    /// Takes the latched INIT.
    fn take_init(&self) -> bool;
    /// Takes the latched start-up IPI.
    fn take_sipi(&self) -> Option<u8>;
    /// CR8: bits 7:4 of the task priority.
    fn tpr(&self) -> u8;
    /// Writes CR8.
    fn set_tpr(&self, cr8: u8);
    /// IA32_APIC_BASE.
    fn base(&self) -> u64;
    /// Writes IA32_APIC_BASE; `false` is #GP.
    fn set_base(&self, value: u64) -> bool;
    /// Reads the register page; `offset` is below 0x1000 and a multiple of 4.
    fn mmio_read(&self, offset: u32) -> u32;
    /// Writes the register page.
    fn mmio_write(&self, offset: u32, value: u32);
    /// Reads an x2APIC register or IA32_TSC_DEADLINE; `None` is #GP.
    fn msr_read(&self, msr: u32) -> Option<u64>;
    /// Writes one; `false` is #GP.
    fn msr_write(&self, msr: u32, value: u64) -> bool;
    /// The register file, for a host that keeps it while the vCPU runs.
    fn image(&self) -> ApicImage {
        ApicImage { base: self.base(), ..ApicImage::default() }
    }
    /// Takes the register file back. The host's word is taken as it is.
    fn set_image(&self, image: &ApicImage) {
        let _ = image;
    }
    /// What waits beside the register file: the PIC's INTR (its gate at LINT0 is not looked at), NMI, INIT, SIPI.
    fn wires(&self) -> Pending {
        self.sync()
    }
    /// INTA to the PIC, if its INTR is high or an ExtINT message came.
    fn pic_acknowledge(&self) -> Option<u8> {
        None
    }
    /// The host's APIC ended a level-triggered interrupt: the IOAPIC must know.
    fn end_of_interrupt(&self, vector: u8) {
        let _ = vector;
    }
}
