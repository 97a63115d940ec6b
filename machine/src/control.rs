//! What a monitor may ask of a running machine.
//!
//! The machine implements [`MachineControl`]; HMP, and later QMP, know nothing else of it. Calls come
//! from the main loop's thread with no lock held and may wait for vCPUs to reach a boundary.

use anura_memory::{AddressSpace, MemoryMap, RamBlock};
use anura_x86::CpuState;
use std::sync::Arc;

/// The version of QEMU whose interfaces we keep to: programs choose by it what they ask for.
pub const QEMU_VERSION: &str = "9.2.0";

/// States of a machine, by QMP's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Built, not started.
    Prelaunch,
    /// Waits for an incoming machine.
    Inmigrate,
    /// Runs.
    Running,
    /// Stopped by the user.
    Paused,
    /// Is being saved.
    SaveVm,
    /// Is saved and stays stopped.
    Postmigrate,
    /// The guest powered off and the machine stays.
    Shutdown,
    /// The guest sleeps (S3).
    Suspended,
    /// The guest panicked and the machine stays.
    GuestPanicked,
    /// Stopped by a debugger.
    Debug,
    /// The engine failed.
    InternalError,
}

impl RunState {
    /// QMP's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::SaveVm => "save-vm",
            Self::Postmigrate => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::Suspended => "suspended",
            Self::GuestPanicked => "guest-panicked",
            Self::Debug => "debug",
            Self::InternalError => "internal-error",
        }
    }
}

/// One vCPU for `info cpus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuInfo {
    /// Its number.
    pub index: u32,
    /// Its APIC ID.
    pub apic_id: u32,
    /// It waits for an interrupt.
    pub halted: bool,
    /// The host thread that runs it.
    pub thread_id: u64,
}

/// One device for `info qtree`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// Kind.
    pub driver: String,
    /// Name that the user gave.
    pub id: String,
    /// Properties and their values, as text.
    pub properties: Vec<(String, String)>,
    /// More lines, for example a PCI device's BARs.
    pub details: Vec<String>,
    /// Buses of the device.
    pub buses: Vec<BusNode>,
}

/// A bus with its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusNode {
    /// Name, for example `pci.0`.
    pub name: String,
    /// Kind, for example `PCI`.
    pub kind: String,
    /// What is plugged in.
    pub devices: Vec<DeviceNode>,
}

/// A machine check to be injected: a bank's registers (Intel SDM volume 3, chapter 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineCheck {
    /// Whose bank.
    pub cpu: u32,
    /// The bank.
    pub bank: u64,
    /// IA32_MCi_STATUS.
    pub status: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_MCi_ADDR.
    pub address: u64,
    /// IA32_MCi_MISC.
    pub misc: u64,
    /// The other CPUs get a machine check without an error of their own.
    pub broadcast: bool,
}

/// A request that the machine refuses, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ControlError(pub String);

/// A running machine, as a monitor sees it.
pub trait MachineControl: Send + Sync {
    /// The state.
    fn run_state(&self) -> RunState;
    /// Stops all vCPUs; returns when they stand.
    fn stop(&self) -> Result<(), ControlError>;
    /// Lets them run on.
    fn cont(&self) -> Result<(), ControlError>;
    /// Presses the reset button.
    fn system_reset(&self) -> Result<(), ControlError>;
    /// Presses the power button.
    fn system_powerdown(&self) -> Result<(), ControlError>;
    /// Ends the emulator.
    fn quit(&self);
    /// Presses (`true`) or lets go of a key: its set 1 code, E0xxh for a grey one.
    fn key(&self, key: u16, down: bool) -> Result<(), ControlError>;
    /// NMI to all vCPUs.
    fn nmi(&self) -> Result<(), ControlError>;
    /// Injects a machine check.
    fn mce(&self, check: &MachineCheck) -> Result<(), ControlError>;
    /// Saves the stopped machine to `exec:…` or `file:…`.
    fn migrate(&self, uri: &str) -> Result<(), ControlError>;

    /// The engine that runs the vCPUs.
    fn engine(&self) -> String;
    /// Lets another engine run them from here on.
    fn switch_engine(&self, name: &str) -> Result<(), ControlError>;

    /// `-name`.
    fn name(&self) -> Option<String>;
    /// `-uuid`.
    fn uuid(&self) -> Option<String>;
    /// The vCPUs.
    fn cpus(&self) -> Vec<CpuInfo>;
    /// A vCPU's complete state.
    fn cpu_state(&self, cpu: u32) -> Result<CpuState, ControlError>;
    /// Whether the A20 gate is open.
    fn a20(&self) -> bool;
    /// The physical address behind a virtual one as this vCPU sees it now.
    fn translate(&self, cpu: u32, va: u64) -> Option<u64>;
    /// All address spaces.
    fn memory_map(&self) -> MemoryMap;
    /// Main memory.
    fn memory(&self) -> AddressSpace;
    /// Ports.
    fn ports(&self) -> AddressSpace;
    /// RAM blocks in the order they were made.
    fn ram_blocks(&self) -> Vec<Arc<RamBlock>>;

    /// The root bus with everything on it.
    fn device_tree(&self) -> BusNode;
    /// `info pic`: the state of the 8259s, in lines.
    fn pic_text(&self) -> String;
    /// `info lapic`: the state of a local APIC.
    fn lapic_text(&self, cpu: u32) -> Result<String, ControlError>;
    /// `info ioapic`.
    fn ioapic_text(&self) -> String;
    /// `info irq`: how often each line was raised.
    fn irq_text(&self) -> String;
    /// `info exits`: why vCPUs left their engine, and how often.
    fn exits_text(&self) -> String;
    /// `info jit`: what the engine has translated.
    fn jit_text(&self) -> String;
    /// The state hash with what it is made of: CPUs, devices, RAM.
    fn state_hash_text(&self) -> Result<String, ControlError>;
    /// `info chardev`: name and file name of each.
    fn chardevs(&self) -> Vec<(String, String)>;
    /// Switches `-d` items; an unknown one is an error that names it.
    fn set_log(&self, items: &str) -> Result<(), ControlError>;
}
