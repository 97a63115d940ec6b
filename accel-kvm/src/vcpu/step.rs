//! What the kernel cannot emulate, run by the *stepper*: a software engine over the same memory and ports.
//!
//! On a host that emulates all of ring 0 failures come in runs, and each costs two transfers of the whole state, so
//! the stepper then keeps the guest, with the same local APIC, until it has been in ring 3 for a while. With the APIC
//! in the kernel the stepper sees no interrupts and cannot write the APIC: it then goes instruction by instruction,
//! and one that wants the APIC is given back to the kernel.

use std::io;
use std::sync::Arc;

use anura_accel::{Budget, CpuPlatform, LocalApic, Pending, VcpuExit};
use anura_vmcore::HostApics;
use anura_x86::apic::ApicImage;
use parking_lot::Mutex;

use super::{KvmVcpu, Next};

/// Instructions that the stepper runs between looks at the privilege level.
const STEP_CHUNK: u64 = 10_000;
/// Most instructions of one burst of the stepper, on hosts that emulate ring 0.
const BURST: u64 = 100_000_000;
/// Failures in a row after which the stepper runs more than one instruction on hosts with hardware.
const IN_A_ROW: u32 = 3;
/// How many it then runs.
const SHORT_BURST: u64 = 256;

/// The board as a stepper sees it beside APICs in the kernel.
pub(crate) struct StepBoard {
    board: Arc<dyn CpuPlatform>,
    apics: Vec<StepApic>,
}

impl StepBoard {
    pub(crate) fn new(board: &Arc<dyn CpuPlatform>, cpus: u32) -> Arc<Self> {
        Arc::new(Self { board: board.clone(), apics: (0..cpus).map(|_| StepApic::default()).collect() })
    }
}

/// A look at an APIC that is in the kernel.
#[derive(Default)]
struct StepApic(Mutex<Look>);

#[derive(Default)]
struct Look {
    image: ApicImage,
    cr8: u8,
    /// The instruction wanted what only the kernel's APIC can do.
    refused: bool,
}

impl CpuPlatform for StepBoard {
    fn apic(&self, cpu: u32) -> &dyn LocalApic {
        &self.apics[cpu as usize % self.apics.len()]
    }
    fn rdmsr(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.board.rdmsr(cpu, msr)
    }
    fn wrmsr(&self, cpu: u32, msr: u32, value: u64) -> bool {
        self.board.wrmsr(cpu, msr, value)
    }
    fn ferr(&self, level: bool) -> bool {
        self.board.ferr(level)
    }
    fn hand_over(&self, _: Option<Arc<dyn HostApics>>, work: &mut dyn FnMut()) {
        work();
    }
    fn a20(&self) -> bool {
        self.board.a20()
    }
}

impl StepApic {
    fn refuse(&self) {
        self.0.lock().refused = true;
    }
}

impl LocalApic for StepApic {
    fn sync(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn take_nmi(&self) -> bool {
        false
    }
    fn take_init(&self) -> bool {
        false
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tpr(&self) -> u8 {
        self.0.lock().cr8
    }
    fn set_tpr(&self, cr8: u8) {
        self.0.lock().cr8 = cr8;
    }
    fn base(&self) -> u64 {
        self.0.lock().image.base
    }
    fn set_base(&self, _: u64) -> bool {
        self.refuse();
        true
    }
    fn mmio_read(&self, offset: u32) -> u32 {
        self.0.lock().image.page.get(offset as usize)
    }
    fn mmio_write(&self, _: u32, _: u32) {
        self.refuse();
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        self.refuse();
        Some(0)
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        self.refuse();
        true
    }
}

impl KvmVcpu {
    /// Runs what the kernel cannot on the stepper.
    pub(super) fn step(&mut self) -> io::Result<Next> {
        self.failures_in_a_row += 1;
        if self.split() {
            return self.step_beside_the_kernel();
        }
        let emulated = self.vm.ring0_emulated;
        let mut left = match (emulated, self.failures_in_a_row) {
            (true, _) => BURST,
            (false, n) if n > IN_A_ROW => SHORT_BURST,
            _ => 1,
        };
        self.unfinished = false;
        let mut before = self.read_state()?;
        // The kernel may have queued #UD for the instruction it gave up on.
        if before.pending.is_some_and(|p| p.vector == 6) {
            before.pending = None;
        }
        self.vm.slots.sync_dirty()?;
        let Some(mut stepper) = self.stepper.take() else { return Ok(Next::Go) };
        let result = stepper.set_state(&before);
        let mut exit = VcpuExit::BudgetSpent;
        let start = stepper.instructions();
        let mut in_user = 0;
        while result.is_ok() && left > 0 {
            let chunk = left.min(STEP_CHUNK);
            let at = stepper.instructions();
            exit = stepper.run(Budget::Instructions(chunk));
            left -= chunk;
            // PAUSE ends a run early; that is no reason to leave.
            let done = stepper.instructions().wrapping_sub(at);
            if exit != VcpuExit::BudgetSpent {
                break;
            }
            in_user = if emulated && stepper.state().cpl() == 3 { in_user + done } else { 0 };
            if in_user >= STEP_CHUNK {
                break;
            }
        }
        let after = stepper.state();
        self.counts.stepped += stepper.instructions().wrapping_sub(start);
        self.counts.bursts += 1;
        self.stepper = Some(stepper);
        if let Err(e) = result {
            return Ok(Next::Leave(self.failed(format!("the stepper refuses the state: {e}"))));
        }
        self.write_state(&after)?;
        self.attention = true;
        Ok(match exit {
            VcpuExit::BudgetSpent | VcpuExit::Halted => Next::Go,
            VcpuExit::Interrupted => {
                self.kicked = true;
                Next::Go
            }
            other => Next::Leave(other),
        })
    }

    /// Steps with the local APIC in the kernel.
    fn step_beside_the_kernel(&mut self) -> io::Result<Next> {
        let left = if self.failures_in_a_row > IN_A_ROW { SHORT_BURST } else { 1 };
        self.unfinished = false;
        let mut state = self.read_state()?;
        if state.pending.is_some_and(|p| p.vector == 6) {
            state.pending = None;
        }
        let image = self.kernel_apic()?;
        let (Some(board), Some(mut stepper)) = (self.vm.step_board.clone(), self.stepper.take()) else {
            return Ok(Next::Go);
        };
        let apic = &board.apics[self.id as usize % board.apics.len()];
        *apic.0.lock() = super::step::Look { image, cr8: state.cr8 as u8, refused: false };
        self.vm.slots.sync_dirty()?;
        let mut exit = VcpuExit::BudgetSpent;
        let mut done = 0;
        let mut failure = stepper.set_state(&state).err().map(|e| e.to_string());
        while failure.is_none() && done < left && exit == VcpuExit::BudgetSpent {
            exit = stepper.run(Budget::Instructions(1));
            if apic.0.lock().refused {
                // The instruction is the kernel's, as if it had not been tried.
                exit = VcpuExit::BudgetSpent;
                if done == 0 {
                    failure = Some("the kernel cannot emulate an access to its own local APIC".into());
                }
                break;
            }
            state = stepper.state();
            done += 1;
        }
        self.counts.stepped += done;
        self.counts.bursts += 1;
        self.stepper = Some(stepper);
        if let Some(why) = failure {
            return Ok(Next::Leave(self.failed(why)));
        }
        let halted = exit == VcpuExit::Halted;
        self.write_state(&state)?;
        if halted {
            self.fd.set_mp_state(kvm_bindings::KVM_MP_STATE_HALTED)?;
        }
        self.attention = true;
        Ok(match exit {
            VcpuExit::BudgetSpent | VcpuExit::Halted => Next::Go,
            VcpuExit::Interrupted => {
                self.kicked = true;
                Next::Go
            }
            other => Next::Leave(other),
        })
    }
}
