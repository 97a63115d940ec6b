//! One virtual processor: the loop around KVM_RUN, its exits, and what the kernel cannot emulate.
//!
//! A steady guest makes no other ioctl than KVM_RUN: registers are read and written only when somebody asks for the
//! state. With the local APIC in the kernel (`kernel-irqchip=split`) an interrupt is one KVM_SIGNAL_MSI by whoever
//! raises it, and HLT waits in the kernel; only the PIC's interrupts are ours to inject. With our own
//! (`kernel-irqchip=off`) an interrupt is one KVM_INTERRUPT when the guest can take it, and CR8 and IA32_APIC_BASE go
//! through the run page. `keep` is what happens when the vCPU stands and goes on, `step` the stepper.

mod keep;
mod step;
mod timer;

pub(crate) use step::StepBoard;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anura_accel::{
    Budget, DebugControl, DebugError, DebugEvent, InternalError, Kicker, StateError, Vcpu, VcpuExit,
};
use anura_memory::SpaceCache;
use anura_vmcore::{CpuSignal, Requester, ResetKind, Width, guest_error};
use anura_x86::regs::{cr0, rflags};
use anura_x86::{Activity, CpuState, apic, msr};
use kvm_bindings::*;

use crate::gate::Target;
use crate::host::Cpu;
use crate::state::Held;
use crate::vm::VmShared;

/// How often and why the guest was left.
#[derive(Default)]
struct Counts {
    exits: BTreeMap<&'static str, u64>,
    stepped: u64,
    /// Instructions that the stepper did not know and ring 3 of the host was given.
    returned: u64,
    bursts: u64,
}

/// A processor on the kernel's KVM.
pub(crate) struct KvmVcpu {
    vm: Arc<VmShared>,
    id: u32,
    signal: Arc<CpuSignal>,
    target: Arc<Target>,
    fd: Box<dyn Cpu>,
    stepper: Option<Box<dyn Vcpu>>,
    memory: SpaceCache,
    ports: SpaceCache,
    held: Held,
    /// The local APIC may have something.
    attention: bool,
    kicked: bool,
    /// The last exit was an access whose result the kernel takes at the next KVM_RUN.
    unfinished: bool,
    /// The CR8 that the kernel knows.
    cr8: u8,
    /// What the page says of interrupts is of the state that the guest has.
    fresh: bool,
    /// The board has what the kernel keeps for a running vCPU.
    standing: bool,
    /// The kernel's timer when the vCPU last came out.
    timer_seen: Option<timer::Seen>,
    tsc: keep::Tsc,
    /// The guest's page fault handler, where a breakpoint of ours stands on hosts that emulate ring 0.
    faults_at: Option<u64>,
    /// The guest's handler of invalid opcodes, where the stepper has a breakpoint.
    unknown_at: Option<u64>,
    failures_in_a_row: u32,
    counts: Counts,
    debug: DebugControl,
}

/// Why the loop goes on or ends.
enum Next {
    Go,
    Leave(VcpuExit),
}

impl KvmVcpu {
    pub(crate) fn new(
        vm: &Arc<VmShared>,
        id: u32,
        signal: Arc<CpuSignal>,
        mut fd: Box<dyn Cpu>,
        stepper: Option<Box<dyn Vcpu>>,
    ) -> Self {
        if vm.shows_registers {
            fd.page().get().kvm_valid_regs = u64::from(KVM_SYNC_X86_SREGS);
        }
        let target = Target::new(fd.page().kick());
        vm.gate.add(&target);
        let on_raise = target.clone();
        signal.set_engine_hook(move || on_raise.kick());
        Self {
            memory: vm.spaces.memory.cache(),
            ports: vm.spaces.ports.cache(),
            vm: vm.clone(),
            id,
            signal,
            target,
            fd,
            stepper,
            held: Held::default(),
            attention: true,
            kicked: false,
            unfinished: false,
            cr8: 0,
            fresh: false,
            standing: true,
            timer_seen: None,
            tsc: keep::Tsc::default(),
            faults_at: None,
            unknown_at: None,
            failures_in_a_row: 0,
            counts: Counts::default(),
            debug: DebugControl::default(),
        }
    }

    fn apic(&self) -> &dyn anura_accel::LocalApic {
        self.vm.config.platform.apic(self.id)
    }

    /// The local APIC is in the kernel.
    fn split(&self) -> bool {
        self.vm.apics.is_some()
    }

    fn requester(&self) -> Requester {
        Requester::Cpu(self.id)
    }

    fn failed(&mut self, what: impl Into<String>) -> VcpuExit {
        let rip = self.fd.regs().map_or(0, |r| r.rip);
        VcpuExit::Failed(InternalError { what: format!("kvm: {}", what.into()), rip })
    }

    /// Nothing to run until somebody wakes us; with its APIC in the kernel a vCPU waits there.
    fn idle(&self) -> bool {
        !self.split() && matches!(self.held.activity, Activity::Halted | Activity::WaitForSipi)
    }

    fn run_loop(&mut self, deadline: Option<Instant>) -> io::Result<VcpuExit> {
        self.attention = true;
        loop {
            self.target.rearm();
            let bits = self.signal.take();
            self.kicked |= bits & CpuSignal::KICK != 0;
            self.attention |= bits & CpuSignal::IRQ != 0;
            if let Some(what) = self.vm.slots.failure() {
                return Ok(self.failed(what));
            }
            if self.attention || self.idle() {
                if self.split() { self.wires()? } else { self.interrupts()? }
            }
            if std::mem::take(&mut self.kicked) {
                return Ok(VcpuExit::Interrupted);
            }
            if self.idle() {
                self.settle()?;
                return Ok(VcpuExit::Halted);
            }
            if deadline.is_some_and(|t| Instant::now() >= t) {
                return Ok(VcpuExit::BudgetSpent);
            }
            if self.vm.step_kernels && self.in_kernel()? {
                match self.step()? {
                    Next::Go => continue,
                    Next::Leave(exit) => return Ok(exit),
                }
            }
            if !self.split() {
                let cr8 = self.apic().tpr();
                self.cr8 = cr8;
                self.fd.page().get().cr8 = cr8.into();
            }
            let result = self.enter();
            self.after_run();
            match result {
                Ok(()) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                Err(e) => {
                    let what = format!("KVM_RUN: {e}");
                    return Ok(self.failed(what));
                }
            }
            if let Next::Leave(exit) = self.dispatch()? {
                return Ok(exit);
            }
        }
    }

    /// Ring 0 with paging.
    fn in_kernel(&mut self) -> io::Result<bool> {
        let s = match self.vm.shows_registers && self.fresh {
            // SAFETY: the kernel was asked to fill this member at each exit.
            true => unsafe { self.fd.page().get().s.regs.sregs },
            false => self.fd.sregs()?,
        };
        Ok(s.ss.dpl == 0 && s.cr0 & cr0::PG != 0)
    }

    /// KVM_RUN, unless somebody wants us.
    fn enter(&mut self) -> io::Result<()> {
        let vm = self.vm.clone();
        let _inside = vm.gate.pass();
        self.target.enter();
        // Who raises a bit after this look finds our thread and the flag of the page.
        let result = if self.signal.poll.load(std::sync::atomic::Ordering::SeqCst) != 0 {
            Err(io::Error::from_raw_os_error(libc::EINTR))
        } else {
            self.unfinished = false;
            self.fd.run()
        };
        self.target.leave();
        result
    }

    /// What every return from the kernel brings.
    fn after_run(&mut self) {
        self.fresh = true;
        if self.split() {
            return;
        }
        let (cr8, base) = {
            let page = self.fd.page().get();
            (page.cr8 as u8, page.apic_base)
        };
        if cr8 != self.cr8 {
            self.cr8 = cr8;
            self.apic().set_tpr(cr8);
            self.attention = true;
        }
        if base != 0 && base != self.apic().base() && !self.apic().set_base(base) {
            guest_error!("kvm: IA32_APIC_BASE {base:#x} is not possible");
        }
    }

    /// Takes what waits at the local APIC, as far as the guest can.
    fn interrupts(&mut self) -> io::Result<()> {
        let mut waits = self.apic().sync();
        self.attention = waits.interrupt || waits.nmi || waits.init || waits.sipi.is_some();
        if waits.init && self.apic().take_init() {
            self.init()?;
            waits = self.apic().sync();
        }
        if self.held.activity == Activity::WaitForSipi {
            if let Some(vector) = self.apic().take_sipi() {
                self.start(vector)?;
            }
            return Ok(());
        }
        let _ = self.apic().take_sipi();
        if waits.nmi && self.apic().take_nmi() {
            self.settle()?;
            self.fd.nmi()?;
            self.held.activity = Activity::Running;
        }
        let page = self.fd.page().get();
        if !waits.interrupt {
            page.request_interrupt_window = 0;
            return Ok(());
        }
        let mut ready = page.ready_for_interrupt_injection != 0 && page.if_flag != 0;
        if !ready && self.held.activity == Activity::Halted {
            // The page says nothing after a state was set; a processor in HLT takes what its flag allows.
            ready = self.fd.regs()?.rflags & rflags::IF != 0;
        }
        let page = self.fd.page().get();
        page.request_interrupt_window = (!ready).into();
        if !ready {
            return Ok(());
        }
        if let Some(vector) = self.vm.config.platform.apic(self.id).acknowledge() {
            // An access that is not finished yet belongs to the instruction before the interrupt.
            self.settle()?;
            self.fd.interrupt(vector)?;
            self.fd.page().get().ready_for_interrupt_injection = 0;
            self.held.activity = Activity::Running;
            // More may wait behind it.
            self.attention = true;
        }
        Ok(())
    }

    /// Takes what waits beside the kernel's APIC: the PIC's interrupt, and NMI.
    fn wires(&mut self) -> io::Result<()> {
        let waits = self.apic().wires();
        self.attention = waits.interrupt || waits.nmi;
        if waits.nmi && self.apic().take_nmi() {
            self.settle()?;
            self.fd.nmi()?;
        }
        if waits.interrupt && !self.fresh {
            self.enter_and_return()?;
        }
        let page = self.fd.page().get();
        // The kernel has looked at the flag, the shadow and LINT0's entry.
        let ready = page.ready_for_interrupt_injection != 0;
        page.request_interrupt_window = (waits.interrupt && !ready).into();
        if waits.interrupt && ready {
            // An access that is not finished yet belongs to the instruction before the interrupt.
            self.settle()?;
            if let Some(vector) = self.apic().pic_acknowledge() {
                self.fd.interrupt(vector)?;
                self.fd.page().get().ready_for_interrupt_injection = 0;
            }
            self.attention = true;
        }
        Ok(())
    }

    /// KVM_RUN that finishes what is begun and fills the page, but runs no instruction.
    fn enter_and_return(&mut self) -> io::Result<()> {
        self.unfinished = true;
        self.settle()
    }

    /// Lets the kernel finish the instruction whose access we answered, without running another.
    fn settle(&mut self) -> io::Result<()> {
        for _ in 0..64 {
            if !self.unfinished {
                return Ok(());
            }
            self.unfinished = false;
            self.fd.page().get().immediate_exit = 1;
            let result = {
                let vm = self.vm.clone();
                let _inside = vm.gate.pass();
                self.fd.run()
            };
            self.fd.page().get().immediate_exit = 0;
            self.after_run();
            match result {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => return Ok(()),
                Err(e) => return Err(io::Error::other(format!("KVM_RUN: {e}"))),
                // A page-crossing access or the next piece of a string: it is answered, too.
                Ok(()) => drop(self.dispatch()?),
            }
        }
        Ok(())
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.exits.entry(what).or_default() += 1;
    }

    fn dispatch(&mut self) -> io::Result<Next> {
        let reason = self.fd.page().get().exit_reason;
        if reason != KVM_EXIT_INTERNAL_ERROR {
            self.failures_in_a_row = 0;
        }
        match reason {
            KVM_EXIT_IO => {
                self.count("io");
                self.port_io();
            }
            KVM_EXIT_MMIO => {
                self.count("mmio");
                self.mmio();
            }
            KVM_EXIT_HLT => {
                self.count("hlt");
                self.held.activity = Activity::Halted;
                self.attention = true;
            }
            KVM_EXIT_IRQ_WINDOW_OPEN => {
                self.count("irq window");
                self.attention = true;
            }
            KVM_EXIT_SHUTDOWN => {
                self.count("shutdown");
                self.held.activity = Activity::Shutdown;
                return Ok(Next::Leave(VcpuExit::TripleFault));
            }
            KVM_EXIT_IOAPIC_EOI => {
                self.count("ioapic eoi");
                // SAFETY: the exit reason says that this member is set.
                let vector = unsafe { self.fd.page().get().__bindgen_anon_1.eoi.vector };
                self.apic().end_of_interrupt(vector);
            }
            KVM_EXIT_DIRTY_RING_FULL => {
                self.count("dirty ring full");
                self.vm.slots.sync_dirty()?;
            }
            KVM_EXIT_NOTIFY => {
                self.count("notify");
                // SAFETY: the exit reason says that this member is set.
                let flags = unsafe { self.fd.page().get().__bindgen_anon_1.notify.flags };
                if flags & KVM_NOTIFY_CONTEXT_INVALID != 0 {
                    return Ok(Next::Leave(
                        self.failed("the processor took no interrupt for too long and lost its state"),
                    ));
                }
            }
            KVM_EXIT_HYPERCALL => {
                self.count("hypercall");
                // None is asked for; -ENOSYS by the interface's numbers.
                self.fd.page().get().__bindgen_anon_1.hypercall.ret = -1000i64 as u64;
                self.unfinished = true;
            }
            KVM_EXIT_HYPERV => {
                // SAFETY: the exit reason says that this member is set.
                let kind = unsafe { self.fd.page().get().__bindgen_anon_1.hyperv.type_ };
                return Ok(Next::Leave(
                    self.failed(format!("a Hyper-V exit of kind {kind}: nothing was offered")),
                ));
            }
            KVM_EXIT_INTR | KVM_EXIT_NMI | KVM_EXIT_X86_BUS_LOCK | KVM_EXIT_SET_TPR | KVM_EXIT_TPR_ACCESS => {
                self.count("other")
            }
            KVM_EXIT_INTERNAL_ERROR => return self.internal_error(),
            KVM_EXIT_DEBUG => return self.debug_exit(),
            KVM_EXIT_SYSTEM_EVENT => {
                self.count("system event");
                // SAFETY: the exit reason says that this member is set.
                let kind = unsafe { self.fd.page().get().__bindgen_anon_1.system_event.type_ };
                return Ok(Next::Leave(match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET => VcpuExit::Reset,
                    _ => self.failed(format!("system event {kind}")),
                }));
            }
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
                self.count("msr");
                self.msr(reason == KVM_EXIT_X86_WRMSR);
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member is set.
                let e = unsafe { self.fd.page().get().__bindgen_anon_1.fail_entry };
                let reason = e.hardware_entry_failure_reason;
                return Ok(Next::Leave(
                    self.failed(format!("the processor refuses the guest's state: {reason:#x}")),
                ));
            }
            KVM_EXIT_UNKNOWN => {
                // SAFETY: the exit reason says that this member is set.
                let hw = unsafe { self.fd.page().get().__bindgen_anon_1.hw.hardware_exit_reason };
                return Ok(Next::Leave(self.failed(format!("unknown hardware exit {hw:#x}"))));
            }
            KVM_EXIT_MEMORY_FAULT => {
                // SAFETY: the exit reason says that this member is set.
                let f = unsafe { self.fd.page().get().__bindgen_anon_1.memory_fault };
                return Ok(Next::Leave(self.failed(format!("no memory behind {:#x}+{:#x}", f.gpa, f.size))));
            }
            other => return Ok(Next::Leave(self.failed(format!("exit reason {other}")))),
        }
        Ok(Next::Go)
    }

    fn port_io(&mut self) {
        // SAFETY: the exit reason says that this member is set.
        let io = unsafe { self.fd.page().get().__bindgen_anon_1.io };
        let width = match io.size {
            1 => Width::W1,
            2 => Width::W2,
            _ => Width::W4,
        };
        let len = usize::from(io.size) * io.count as usize;
        let (port, from) = (u64::from(io.port), self.requester());
        let input = u32::from(io.direction) == KVM_EXIT_IO_IN;
        self.unfinished = true;
        // The page is not ours while a device runs: another thread may kick through it.
        let mut small = [0u8; 8];
        let mut large = Vec::new();
        let bytes = match len {
            0..=8 => &mut small[..len],
            _ => {
                large.resize(len, 0);
                &mut large[..]
            }
        };
        let result = match (input, io.count) {
            (true, 1) => {
                let (value, result) = self.ports.read(port, width, from);
                bytes.copy_from_slice(&value.to_le_bytes()[..len]);
                result
            }
            (true, _) => self.ports.view().clone().read_bulk(port, width, bytes, from),
            (false, n) => {
                bytes.copy_from_slice(self.fd.page().data(io.data_offset, len));
                match n {
                    1 => {
                        let mut value = [0; 8];
                        value[..len].copy_from_slice(bytes);
                        self.ports.write(port, width, u64::from_le_bytes(value), from)
                    }
                    _ => self.ports.view().clone().write_bulk(port, width, bytes, from),
                }
            }
        };
        // What nothing answers reads as ones and drops writes, as on the bus.
        let _ = result;
        if input {
            self.fd.page().data(io.data_offset, len).copy_from_slice(bytes);
        }
    }

    fn mmio(&mut self) {
        // SAFETY: the exit reason says that this member is set.
        let mmio = unsafe { self.fd.page().get().__bindgen_anon_1.mmio };
        let len = (mmio.len as usize).min(8);
        let (at, from) = (mmio.phys_addr, self.requester());
        self.unfinished = true;
        let base = self.apic().base();
        let own = base & apic::base::ENABLE != 0 && (at ^ base) >> 12 == 0;
        let mut data = mmio.data;
        let width = match len {
            1 => Some(Width::W1),
            2 => Some(Width::W2),
            4 => Some(Width::W4),
            8 => Some(Width::W8),
            _ => None,
        };
        if own {
            self.apic_page((at & 0xfff) as u32, &mut data[..len], mmio.is_write != 0);
        } else if mmio.is_write != 0 {
            let _ = match width {
                Some(w) => self.memory.write(at, w, u64::from_le_bytes(data) & w.mask(), from),
                None => self.memory.view().clone().write_bytes(at, &data[..len], from),
            };
        } else {
            match width {
                Some(w) => data = self.memory.read(at, w, from).0.to_le_bytes(),
                None => drop(self.memory.view().clone().read_bytes(at, &mut data[..len], from)),
            }
        }
        if mmio.is_write == 0 {
            self.fd.page().get().__bindgen_anon_1.mmio.data = data;
        }
    }

    fn apic_page(&mut self, offset: u32, data: &mut [u8], write: bool) {
        if write {
            match data.first_chunk::<4>() {
                Some(word) if offset & 3 == 0 => self.apic().mmio_write(offset, u32::from_le_bytes(*word)),
                _ => guest_error!("cpu: write of {} bytes to the APIC page at {offset:#x}", data.len()),
            }
            self.attention = true;
            return;
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            let word = self.apic().mmio_read(at & 0xffc);
            *byte = (word >> (8 * (at & 3))) as u8;
        }
    }

    fn msr(&mut self, write: bool) {
        // SAFETY: the exit reason says that this member is set.
        let exit = unsafe { self.fd.page().get().__bindgen_anon_1.msr };
        self.unfinished = true;
        let (number, id) = (exit.index, self.id);
        let own = number == msr::TSC_DEADLINE || (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&number);
        let platform = self.vm.config.platform.clone();
        let result = match (write, own) {
            (false, true) => self.apic().msr_read(number),
            (false, false) => platform.rdmsr(id, number),
            (true, true) => self.apic().msr_write(number, exit.data).then_some(0),
            (true, false) => platform.wrmsr(id, number, exit.data).then_some(0),
        };
        self.attention = true;
        let page = self.fd.page().get();
        page.__bindgen_anon_1.msr.error = result.is_none().into();
        if let (false, Some(value)) = (write, result) {
            page.__bindgen_anon_1.msr.data = value;
        }
    }

    fn debug_exit(&mut self) -> io::Result<Next> {
        // SAFETY: the exit reason says that this member is set.
        let linear = unsafe { self.fd.page().get().__bindgen_anon_1.debug.arch.pc };
        if self.faults_at == Some(linear) && !self.debug.breakpoints.contains(&linear) {
            self.count("page fault");
            return self.step();
        }
        self.count("debug");
        Ok(Next::Leave(VcpuExit::Debug(match self.debug.single_step {
            true => DebugEvent::Step,
            false => DebugEvent::Breakpoint { linear },
        })))
    }

    /// Breakpoints: the debugger's, and ours at the page fault handler if one is left.
    fn arm_breakpoints(&mut self) -> io::Result<()> {
        let mut debug = kvm_guest_debug::default();
        if self.debug.single_step {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        let all = self.debug.breakpoints.iter().copied().chain(self.faults_at);
        for (i, at) in all.take(4).enumerate() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[i] = at;
            debug.arch.debugreg[7] |= 2 << (2 * i) | 1 << 9 | 1 << 10;
        }
        self.fd.set_guest_debug(&debug)
    }

    fn internal_error(&mut self) -> io::Result<Next> {
        self.count("internal error");
        // SAFETY: the exit reason says that this member is set.
        let suberror = unsafe { self.fd.page().get().__bindgen_anon_1.internal.suberror };
        match suberror {
            KVM_INTERNAL_ERROR_EMULATION | KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
                if self.stepper.is_some() =>
            {
                self.step()
            }
            KVM_INTERNAL_ERROR_EMULATION => Ok(Next::Leave(
                self.failed("the kernel cannot emulate the instruction, and there is no stepper"),
            )),
            KVM_INTERNAL_ERROR_DELIVERY_EV => Ok(Next::Leave(self.failed("an exit during event delivery"))),
            KVM_INTERNAL_ERROR_SIMUL_EX => Ok(Next::Leave(self.failed("simultaneous exceptions"))),
            other => Ok(Next::Leave(self.failed(format!("internal error, suberror {other}")))),
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, budget: Budget) -> VcpuExit {
        let deadline = match budget {
            Budget::Unlimited => None,
            Budget::Until(t) => Some(t),
            // Inexact, as `Capabilities` says: about a nanosecond each.
            Budget::Instructions(n) => Some(Instant::now() + Duration::from_nanos(n.max(1000))),
        };
        self.timer_seen = None;
        let exit = self.run_loop(deadline);
        self.look_at_timer();
        exit.unwrap_or_else(|e| self.failed(e.to_string()))
    }

    fn state(&mut self) -> CpuState {
        match self.read_state() {
            Ok(state) => state,
            Err(e) => {
                log::error!("kvm: the state of CPU {} cannot be read: {e}", self.id);
                CpuState::reset(self.vm.config.model.signature())
            }
        }
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        state.validate().map_err(|e| StateError(e.to_string()))?;
        self.write_state(state).map_err(|e| StateError(format!("the kernel refuses it: {e}")))
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.signal.clone())
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), DebugError> {
        if control.breakpoints.len() > 4 {
            return Err(DebugError("kvm: the processor has four breakpoint registers".into()));
        }
        self.debug = control.clone();
        self.arm_breakpoints().map_err(|e| DebugError(format!("kvm: {e}")))?;
        Ok(())
    }

    fn reset(&mut self, kind: ResetKind) {
        let result = match kind {
            ResetKind::Cpu => self.init(),
            ResetKind::PowerOn | ResetKind::System => {
                let mut s = CpuState::reset(self.vm.config.model.signature());
                let bsp = self.apic().base() & apic::base::BSP != 0;
                s.activity = if bsp { Activity::Running } else { Activity::WaitForSipi };
                self.write_state(&s)
            }
        };
        if let Err(e) = result {
            log::error!("kvm: reset of CPU {}: {e}", self.id);
        }
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.fd.translate(linear).ok().flatten()
    }

    fn stand(&mut self) {
        if let Err(e) = self.come_out() {
            log::error!("kvm: CPU {} does not give its local APIC back: {e}", self.id);
        }
    }

    fn go(&mut self) {
        if let Err(e) = self.go_in() {
            log::error!("kvm: CPU {} does not take its local APIC: {e}", self.id);
        }
    }

    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        let mut list: Vec<_> = self.counts.exits.iter().map(|(k, v)| (*k, *v)).collect();
        list.push(("bursts of the stepper", self.counts.bursts));
        list.push(("instructions stepped", self.counts.stepped));
        list.push(("instructions given back", self.counts.returned));
        list
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.target.retire();
    }
}
