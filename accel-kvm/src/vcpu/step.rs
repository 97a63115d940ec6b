//! What the kernel cannot emulate, run by the *stepper*: a software engine over the same memory and ports.
//!
//! On a host that emulates all of ring 0 failures come in runs, and each costs two transfers of the whole state, so
//! the stepper then keeps the guest, with the same local APIC, until it has been in ring 3 for a while. With the APIC
//! in the kernel the stepper sees no interrupts and cannot write the APIC: it then goes instruction by instruction,
//! and one that wants the APIC is given back to the kernel.

use std::io;
use std::sync::Arc;

use anura_accel::{Budget, CpuPlatform, DebugControl, LocalApic, Pending, VcpuExit};
use anura_vmcore::{HostApics, Width};
use anura_x86::CpuState;
use anura_x86::apic::ApicImage;
use anura_x86::regs::{cr0, efer};
use anura_x86::segment::{Attr, Segment};
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
        if self.faults_at == Some(before.rip) {
            self.undo_system_call(&mut before);
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
        let mut after = stepper.state();
        self.counts.stepped += stepper.instructions().wrapping_sub(start);
        self.counts.bursts += 1;
        self.stepper = Some(stepper);
        if let Err(e) = result {
            return Ok(Next::Leave(self.failed(format!("the stepper refuses the state: {e}"))));
        }
        if matches!(exit, VcpuExit::Debug(_)) && self.debug == DebugControl::default() {
            // The handler of #UD: what the stepper does not know, ring 3 of the host may.
            self.counts.returned += u64::from(self.undo_delivery(&mut after, false, |_| true));
            exit = VcpuExit::BudgetSpent;
        }
        self.write_state(&after)?;
        if after.cr0 & cr0::PG != 0 {
            self.vm.slots.forget_translations()?;
        }
        if self.vm.step_kernels && after.cpl() == 3 {
            let handlers = (self.gate(&after, 14), self.gate(&after, 6));
            if (self.faults_at, self.unknown_at) != handlers {
                (self.faults_at, self.unknown_at) = handlers;
                self.arm_breakpoints()?;
                if let Some(stepper) = &mut self.stepper {
                    let breakpoints = handlers.1.into_iter().collect();
                    // Without it ring 3 has what the stepper has.
                    let _ = stepper.set_debug(&DebugControl { breakpoints, ..DebugControl::default() });
                }
            }
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

    /// Eight bytes at a linear address, by the stepper's page tables.
    fn peek(&mut self, linear: u64) -> Option<u64> {
        let at = self.stepper.as_mut()?.translate(linear)?;
        let (value, result) = self.memory.read(at, Width::W8, self.requester());
        result.is_ok().then_some(value)
    }

    /// Where the gate of a vector leads, in long mode.
    fn gate(&mut self, s: &CpuState, vector: u64) -> Option<u64> {
        if s.efer & efer::LMA == 0 {
            return None;
        }
        let low = self.peek(s.idtr.base + 16 * vector)?;
        let high = self.peek(s.idtr.base + 16 * vector + 8)?;
        (low & 1 << 47 != 0).then_some(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32)
    }

    /// Takes back the delivery of an exception to a handler that has not begun, if it came from ring 3: the state is that
    /// of the instruction which faulted. The stepper must have this state.
    fn undo_delivery(&mut self, s: &mut CpuState, error_code: bool, at: impl FnOnce(u64) -> bool) -> bool {
        let frame = s.gpr[4].wrapping_add(8 * u64::from(error_code));
        // RIP, CS, RFLAGS, RSP, SS.
        let words: Vec<u64> = (0..5).map_while(|n| self.peek(frame.wrapping_add(8 * n))).collect();
        let &[rip, cs, flags, rsp, ss] = words.as_slice() else { return false };
        if cs & 3 != 3 || !at(rip) {
            return false;
        }
        (s.rip, s.rflags, s.gpr[4]) = (rip, flags, rsp);
        let long = cs as u16 == (s.msrs.star >> 48) as u16 + 16 | 3;
        let flat = |kind, long: bool, selector: u64| Segment {
            base: 0,
            limit: u32::MAX,
            selector: selector as u16,
            attr: Attr::new()
                .with_kind(kind)
                .with_s(true)
                .with_dpl(3)
                .with_p(true)
                .with_l(long)
                .with_db(!long)
                .with_g(true),
        };
        (s.seg[1], s.seg[2]) = (flat(0xb, long, cs), flat(3, false, ss));
        true
    }

    /// A host that runs ring 3 natively and emulates ring 0 executes SYSCALL as it stands in the manual but for the
    /// privilege level, and the fetch at its target is a page fault of ring 3. We stand at the handler of it: the
    /// instruction is taken back, for the stepper to do well. RCX has where it would return to, R11 the flags.
    fn undo_system_call(&mut self, s: &mut CpuState) {
        let target = s.msrs.lstar;
        let known = self.stepper.as_mut().is_some_and(|stepper| stepper.set_state(s).is_ok());
        if known && s.cr2 == target && self.undo_delivery(s, true, |rip| rip == target) {
            s.rip = s.gpr[1].wrapping_sub(2);
            s.rflags = s.gpr[11];
        }
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
