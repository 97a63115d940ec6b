//! The engine that plays a script: what the machine is tested on without a CPU.
//!
//! A script is a list of steps for each vCPU: port and memory accesses, halts, exits. `run` executes steps until
//! one of them ends the run. The null engine, with no script, is halted for ever: devices can then be driven
//! from outside by accesses that tests make themselves.

use std::collections::VecDeque;
use std::sync::Arc;

use anura_vmcore::{CpuSignal, Requester, ResetKind, Width};
use anura_x86::CpuState;
use parking_lot::Mutex;

use crate::{
    AccelError, AccelVm, Accelerator, Budget, Capabilities, DebugControl, DebugError, Kicker, StateError,
    Unavailable, Vcpu, VcpuExit, VmConfig, VmSpaces,
};

/// One thing that a scripted vCPU does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Writes a port.
    Out(u16, Width, u32),
    /// Reads a port; the value goes to the log.
    In(u16, Width),
    /// Writes guest-physical memory.
    Write(u64, Width, u64),
    /// Reads guest-physical memory; the value goes to the log.
    Read(u64, Width),
    /// Accepts the interrupt that waits, halting until there is one; the vector goes to the log.
    TakeInterrupt,
    /// Ends the run with this exit.
    Exit(VcpuExit),
}

/// The scripted engine: scripts by vCPU, and what the reads and interrupts gave.
#[derive(Default)]
pub struct Scripted {
    scripts: Mutex<Vec<VecDeque<Step>>>,
    log: Arc<Mutex<Vec<u64>>>,
}

impl Scripted {
    /// The null engine: no vCPU does anything.
    pub fn null() -> Self {
        Self::default()
    }

    /// An engine whose vCPU n plays `scripts[n]`.
    pub fn new(scripts: Vec<Vec<Step>>) -> Self {
        Self { scripts: Mutex::new(scripts.into_iter().map(Into::into).collect()), log: Arc::default() }
    }

    /// What reads and interrupts gave, in order.
    pub fn log(&self) -> Arc<Mutex<Vec<u64>>> {
        self.log.clone()
    }
}

impl Accelerator for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        Ok(Capabilities { exact_budgets: true, max_vcpus: 255, in_turn: true, ..Capabilities::default() })
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        Ok(Arc::new(ScriptedVm {
            scripts: Mutex::new(std::mem::take(&mut self.scripts.lock())),
            log: self.log.clone(),
            spaces: spaces.clone(),
            config: config.clone(),
        }))
    }
}

struct ScriptedVm {
    scripts: Mutex<Vec<VecDeque<Step>>>,
    log: Arc<Mutex<Vec<u64>>>,
    spaces: VmSpaces,
    config: VmConfig,
}

impl AccelVm for ScriptedVm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        let script = self.scripts.lock().get_mut(id as usize).map(std::mem::take).unwrap_or_default();
        Ok(Box::new(ScriptedVcpu {
            id,
            signal,
            script,
            log: self.log.clone(),
            spaces: self.spaces.clone(),
            config: self.config.clone(),
            state: CpuState::reset(self.config.model.signature()),
            executed: 0,
        }))
    }
}

struct ScriptedVcpu {
    id: u32,
    signal: Arc<CpuSignal>,
    script: VecDeque<Step>,
    log: Arc<Mutex<Vec<u64>>>,
    spaces: VmSpaces,
    config: VmConfig,
    state: CpuState,
    executed: u64,
}

impl ScriptedVcpu {
    /// Executes the first step; an exit if it ends the run.
    fn step(&mut self) -> Option<VcpuExit> {
        let from = Requester::Cpu(self.id);
        let Some(step) = self.script.front() else { return Some(VcpuExit::Halted) };
        match *step {
            // Nothing answers at some addresses; a script finds out by what it reads.
            Step::Out(port, width, value) => {
                let _ = self.spaces.ports.write(u64::from(port), width, u64::from(value), from);
            }
            Step::In(port, width) => {
                let (value, _) = self.spaces.ports.read(u64::from(port), width, from);
                self.log.lock().push(value);
            }
            Step::Write(address, width, value) => {
                let _ = self.spaces.memory.write(address, width, value, from);
            }
            Step::Read(address, width) => {
                let (value, _) = self.spaces.memory.read(address, width, from);
                self.log.lock().push(value);
            }
            Step::TakeInterrupt => {
                let apic = self.config.platform.apic(self.id);
                let vector = if apic.sync().interrupt { apic.acknowledge() } else { None };
                let Some(vector) = vector else { return Some(VcpuExit::Halted) };
                self.log.lock().push(u64::from(vector));
            }
            Step::Exit(_) => {}
        }
        match self.script.pop_front() {
            Some(Step::Exit(exit)) => Some(exit),
            _ => None,
        }
    }
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self, budget: Budget) -> VcpuExit {
        let mut left = match budget {
            Budget::Instructions(n) => n,
            Budget::Unlimited | Budget::Until(_) => u64::MAX,
        };
        while left > 0 {
            if self.signal.take() & CpuSignal::KICK != 0 {
                return VcpuExit::Interrupted;
            }
            if let Some(exit) = self.step() {
                return exit;
            }
            self.executed += 1;
            left -= 1;
            if self.config.counted {
                self.spaces.clock.set_instructions(self.spaces.clock.instructions() + 1);
            }
        }
        VcpuExit::BudgetSpent
    }

    fn state(&mut self) -> CpuState {
        self.state.clone()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        self.state = state.clone();
        Ok(())
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.signal.clone())
    }

    fn set_debug(&mut self, _control: &DebugControl) -> Result<(), DebugError> {
        Err(DebugError("the scripted engine has no instructions to stop at".to_owned()))
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.state = CpuState::reset(self.config.model.signature());
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        Some(linear)
    }

    fn instructions(&self) -> u64 {
        self.executed
    }
}
