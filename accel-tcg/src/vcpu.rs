//! The loop around the guest's code: budgets, events, single instructions.
//!
//! Events are looked at where they can have changed: at the start of a run, after instructions that may set the
//! interrupt flag or lower the task priority, when `signal.poll` has bits, and at the end of a budget. None of these
//! depends on how blocks are cut, which counted time relies on. Single-step, code breakpoints, interrupt shadows and
//! the last instructions of a budget go through blocks of one instruction.

mod build;
mod engine;
mod interpreted;
mod loops;
mod translated;
mod unsure;

pub use engine::{Interp, PortableInterp};

use crate::cache::{Cache, CodePages};
use crate::deliver::{self, deliver};
use crate::env::{Cpu, Fault, VmShared};
use crate::frontend::effects::Features;
use crate::helpers::system::code_breakpoint;
use crate::interp::ends_without_trap;
use crate::interp::t0::Exit;
use crate::jit::engine::{Numbers, Setup};
use crate::jit::{Chaos, Home, Jit};
use crate::show::{self, Items};
use anura_accel::{
    Budget, DebugControl, DebugError, DebugEvent, InternalError, Kicker, StateError, Vcpu, VcpuExit,
};
use anura_vmcore::{CpuSignal, ResetKind};
use anura_x86::regs::rflags;
use anura_x86::{CpuState, Shadow};
use build::{Refused, Workshop};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use unsure::Unsure;

/// Index key bit of blocks that hold one instruction only.
const SINGLE: u32 = 1 << 31;
/// Instructions between looks at the host's clock, for budgets in host time.
const TIME_SLICE: u64 = 200_000;
/// A budget that no run can use up.
const ENDLESS: u64 = u64::MAX >> 1;
/// IA32_DEBUGCTL.BTF: single-step on branches.
const BTF: u64 = 1 << 1;
/// DR6.BS.
const BS: u64 = 1 << 14;
const BSP: u64 = 1 << 8;

/// One processor.
pub struct SoftVcpu {
    cpu: Home,
    /// Translated code, unless this is the interpreter engine.
    jit: Option<Box<Jit>>,
    /// Where the translations' numbers are shown.
    numbers: Option<Arc<Mutex<Numbers>>>,
    /// The present run uses translated code.
    translating: bool,
    /// Instructions of a translated block at most.
    longest: usize,
    /// Runs end behind each translated block.
    by_blocks: bool,
    /// Jumps backward in translated code from one sample to the next.
    jumps_back: u32,
    /// Our bit among the owners of pages with translations.
    owner: u64,
    /// Translations that other processors may not know of.
    unsure: Unsure,
    features: Features,
    workshop: Workshop,
    /// Somebody wants `run` to return.
    kicked: bool,
}

impl SoftVcpu {
    /// A processor after power-up.
    pub fn new(vm: Arc<VmShared>, id: u32, signal: Arc<CpuSignal>) -> Self {
        let features = Features::of(&vm.config.model);
        vm.code.add_signal(&signal);
        let mut cpu = Home::new(Cpu::new(vm, id, signal));
        cpu.env.jit.poll = cpu.signal.poll.as_ptr() as u64;
        cpu.env.jit.mxcsr_host = 0x1f80;
        SoftVcpu {
            cpu,
            jit: None,
            numbers: None,
            translating: false,
            longest: 64,
            by_blocks: false,
            jumps_back: 0,
            owner: CodePages::owner(0),
            unsure: Unsure::default(),
            features,
            workshop: Workshop::default(),
            kicked: false,
        }
    }

    /// The same with translated code.
    pub(crate) fn with_jit(
        vm: Arc<VmShared>,
        id: u32,
        signal: Arc<CpuSignal>,
        setup: Setup,
    ) -> std::io::Result<Self> {
        let Setup { size, counted, smp, one_insn, by_blocks, numbers, perf, chaos, jumps_back } = setup;
        let mut jit = Jit::new(size, counted, vm.config.counted, smp)?;
        jit.name_code(perf);
        let mut vcpu = Self::new(vm, id, signal);
        vcpu.cpu.vm.code.cache.lock().help_out();
        vcpu.owner = CodePages::owner(id);
        vcpu.numbers = Some(numbers);
        vcpu.longest = if one_insn { 1 } else { 64 };
        vcpu.by_blocks = by_blocks;
        vcpu.cpu.jit.counted = counted;
        vcpu.jumps_back = jumps_back;
        vcpu.cpu.env.jit.hot = jumps_back;
        vcpu.cpu.env.jit.slots = jit.slots();
        vcpu.cpu.jit.chaos = Chaos::new(chaos);
        jit.options.chaos = Chaos::new(chaos);
        vcpu.jit = Some(Box::new(jit));
        Ok(vcpu)
    }

    /// The processor's state, for tests.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    fn run_inner(&mut self, budget: Budget) -> VcpuExit {
        let shared = self.cpu.vm.code.clone();
        let _inside = shared.presence.enter();
        let mut cache = shared.cache.lock();
        let start = self.cpu.env.icount;
        let (end, deadline) = match budget {
            Budget::Unlimited => (start.saturating_add(ENDLESS), None),
            Budget::Until(t) => (start.saturating_add(ENDLESS), Some(t)),
            Budget::Instructions(n) => (start.saturating_add(n.min(ENDLESS)), None),
        };
        self.translating =
            self.jit.as_ref().is_some_and(|j| j.options.counted || matches!(budget, Budget::Unlimited));
        self.look_at_log(&mut cache);
        self.cpu.tsc_changed();
        let mut look_at_clock = start.saturating_add(TIME_SLICE);
        self.cpu.jit.attention = true;
        self.cpu.count_base = if self.cpu.vm.config.counted {
            self.cpu.vm.spaces.clock.instructions().wrapping_sub(start)
        } else {
            0
        };
        let exit = loop {
            self.cpu.env.insn_in_block = 0;
            if let Some(exit) = self.events(&mut cache) {
                break exit;
            }
            let now = self.cpu.env.icount;
            if now >= end {
                break VcpuExit::BudgetSpent;
            }
            if let Some(t) = deadline
                && now >= look_at_clock
            {
                look_at_clock = now + TIME_SLICE;
                if Instant::now() >= t {
                    break VcpuExit::BudgetSpent;
                }
            }
            let limit = if deadline.is_some() { end.min(look_at_clock) } else { end };
            let log = self.cpu.jit.log;
            let each = !self.translating && log.each_block();
            let step =
                if self.cpu.runs_alone(self.translating) || each || !self.translating && limit - now < 64 {
                    if log.each_block() {
                        show::entered(log, &self.cpu, (0, 0, 1));
                    }
                    self.one(&mut cache, now != start)
                } else if self.translating {
                    match self.translated(&mut cache, limit) {
                        // The budget does not cover the block, or somebody wants attention: events and all of that come
                        // first, then an instruction alone.
                        None if self.cpu.env.icount == now && limit - now < 64 => {
                            if self.cpu.signal.poll.load(Ordering::Relaxed) != 0 || self.cpu.code_dirty() {
                                continue;
                            }
                            self.one(&mut cache, now != start)
                        }
                        step => step,
                    }
                } else {
                    self.many(&mut cache, limit)
                };
            if let Some(exit) = step {
                break exit;
            }
        };
        self.cpu.env.insn_in_block = 0;
        self.cpu.sync_clock();
        if let (Some(numbers), Some(jit)) = (&self.numbers, &self.jit) {
            *numbers.lock() = jit.numbers(&self.cpu);
        }
        exit
    }

    /// Takes over what the log is to show. Where every block is shown, none leads to another.
    fn look_at_log(&mut self, cache: &mut Cache) {
        let now = Items { by_blocks: self.by_blocks, ..Items::now() };
        let before = std::mem::replace(&mut self.cpu.jit.log, now);
        // Neither do loops that are one show their turns.
        if now.each_block() && !before.each_block() || now.shows_blocks() && !before.shows_blocks() {
            self.forget(cache);
        }
        if let Some(jit) = &mut self.jit {
            jit.show = now.out_asm;
        }
    }

    /// Takes what waits at this boundary. `Some` ends the run.
    fn events(&mut self, cache: &mut Cache) -> Option<VcpuExit> {
        let cpu = &mut self.cpu;
        let bits = cpu.signal.take();
        if bits & CpuSignal::KICK != 0 {
            self.kicked = true;
        }
        cpu.jit.attention |= bits & CpuSignal::IRQ != 0;
        cpu.refresh_views();
        self.catch_up(cache);
        if self.cpu.env.jit.unsure != 0 {
            self.confirm(cache);
        }
        let cpu = &mut self.cpu;
        if cpu.env.shutdown {
            return Some(VcpuExit::TripleFault);
        }
        if let Some(event) = cpu.env.pending.take()
            && deliver(cpu, event).is_err()
        {
            return Some(VcpuExit::TripleFault);
        }
        let idle = cpu.env.halted || cpu.env.wait_sipi;
        if cpu.env.pending_db != 0 && cpu.env.shadow != Shadow::MovSs {
            let f = Fault::debug_trap(std::mem::take(&mut cpu.env.pending_db));
            if deliver(cpu, f.into()).is_err() {
                return Some(VcpuExit::TripleFault);
            }
        }
        if (self.cpu.jit.attention || idle) && self.interrupts().is_err() {
            return Some(VcpuExit::TripleFault);
        }
        if std::mem::take(&mut self.kicked) {
            return Some(VcpuExit::Interrupted);
        }
        if self.cpu.env.halted || self.cpu.env.wait_sipi {
            return Some(VcpuExit::Halted);
        }
        None
    }

    fn interrupts(&mut self) -> Result<(), deliver::Shutdown> {
        let id = self.cpu.id;
        self.cpu.sync_clock();
        let mut waits = self.cpu.apic().sync();
        if waits.nmi && self.cpu.env.nmi_masked {
            // One is remembered while another is handled.
            while self.cpu.apic().take_nmi() {}
            self.cpu.env.nmi_pending = true;
        }
        waits.nmi |= self.cpu.env.nmi_pending;
        self.cpu.jit.attention = waits.interrupt || waits.nmi || waits.init || waits.sipi.is_some();
        if !self.cpu.jit.attention {
            return Ok(());
        }
        if waits.init && self.cpu.apic().take_init() {
            self.init();
            waits = self.cpu.apic().sync();
        }
        if self.cpu.env.wait_sipi {
            if let Some(vector) = self.cpu.apic().take_sipi() {
                self.start(vector);
            }
            return Ok(());
        }
        let _ = self.cpu.apic().take_sipi();
        let cpu = &mut self.cpu;
        // Intel's processors keep NMIs away after STI too (vol. 2, STI), and so do ours.
        if waits.nmi
            && !cpu.env.nmi_masked
            && cpu.env.shadow == Shadow::None
            && (std::mem::take(&mut cpu.env.nmi_pending) || cpu.apic().take_nmi())
        {
            cpu.t0.counts.interrupts += 1;
            return deliver(cpu, deliver::nmi());
        }
        if waits.interrupt
            && cpu.env.eflags_sys & rflags::IF != 0
            && cpu.env.shadow == Shadow::None
            && let Some(vector) = cpu.vm.clone().config.platform.apic(id).acknowledge()
        {
            cpu.t0.counts.interrupts += 1;
            return deliver(cpu, deliver::external(vector));
        }
        Ok(())
    }

    fn init(&mut self) {
        let mut s = self.cpu.save_state();
        let signature = self.cpu.vm.config.model.signature();
        s.init(signature);
        self.cpu.load_state(&s);
        let bsp = self.cpu.apic().base() & BSP != 0;
        self.cpu.env.wait_sipi = !bsp;
    }

    /// A start-up IPI: real mode at page `vector`.
    fn start(&mut self, vector: u8) {
        use anura_x86::segment::index::CS;
        let env = &mut self.cpu.env;
        env.wait_sipi = false;
        env.halted = false;
        env.seg[CS].selector = u16::from(vector) << 8;
        env.seg[CS].base = u64::from(vector) << 12;
        env.rip = 0;
        self.cpu.mode_changed();
    }

    /// Runs one instruction.
    fn one(&mut self, cache: &mut Cache, begun: bool) -> Option<VcpuExit> {
        let linear = self.cpu.env.linear_rip();
        if begun && self.cpu.t0.debug.breakpoints.contains(&linear) {
            return Some(VcpuExit::Debug(DebugEvent::Breakpoint { linear }));
        }
        if let Some(f) = code_breakpoint(&self.cpu) {
            return self.fault(f);
        }
        let traced = self.cpu.env.eflags_sys & rflags::TF != 0;
        self.cpu.env.eflags_sys &= !rflags::RF;
        let shadow = std::mem::take(&mut self.cpu.env.shadow);
        let code = match self.lookup(cache, 1, SINGLE) {
            Ok(c) => c,
            Err(e) => return self.refused(e),
        };
        self.cpu.t0.limit = self.cpu.env.icount + 1;
        // SAFETY: `code` was just found.
        let quiet = unsafe { ends_without_trap(&*code) };
        let held = self.cpu.env.pending_db;
        let from = self.cpu.env.rip;
        self.execute_single(code);
        let _ = shadow;
        let completed = !matches!(self.cpu.t0.exit, Exit::Fault(_));
        if !completed {
            // What a data breakpoint saw of it comes again when the instruction is restarted.
            self.cpu.env.pending_db = held;
        }
        // SAFETY: as above; nothing was freed since.
        let behind = from.wrapping_add(unsafe { u64::from((*code).len) });
        let branches_only = self.cpu.env.msrs.debugctl & BTF != 0;
        if traced && completed && !quiet && (!branches_only || self.cpu.env.rip != behind) {
            self.cpu.env.pending_db |= BS;
        }
        let exit = match self.cpu.t0.exit {
            Exit::Lookup | Exit::Link(_) => None,
            _ => self.finish(),
        };
        if exit.is_none() && self.cpu.t0.debug.single_step {
            return Some(VcpuExit::Debug(DebugEvent::Step));
        }
        exit
    }

    /// What ended a block, if it is more than a missing link.
    fn finish(&mut self) -> Option<VcpuExit> {
        match self.cpu.t0.exit {
            Exit::Check | Exit::Lookup | Exit::Link(_) => None,
            Exit::Halt => {
                self.cpu.env.halted = true;
                None
            }
            // Processors with threads of their own need no turn; the host may want to run another of them.
            Exit::Yield if self.jit.as_ref().is_some_and(|j| j.options.smp) => {
                std::thread::yield_now();
                None
            }
            Exit::Yield => (self.cpu.vm.config.topology.total() > 1).then_some(VcpuExit::BudgetSpent),
            Exit::Fault(insn) => {
                // SAFETY: the block that faulted is the current one.
                let rip = unsafe { (*self.cpu.t0.block).rip_of(insn) };
                self.cpu.env.rip = rip;
                self.cpu.env.icount += u64::from(insn);
                self.faulted()
            }
        }
    }

    /// The fault that an operation has left, at RIP.
    fn faulted(&mut self) -> Option<VcpuExit> {
        self.cpu.t0.counts.faults += 1;
        let f = self.cpu.t0.fault;
        if f == Fault::FROZEN {
            self.cpu.env.halted = true;
            return None;
        }
        self.fault(f)
    }

    fn fault(&mut self, f: Fault) -> Option<VcpuExit> {
        self.cpu.env.insn_in_block = 0;
        // The faulting instruction counts, or a guest whose handler faults at once would stand outside of time.
        self.cpu.env.icount += 1;
        match deliver(&mut self.cpu, f.into()) {
            Ok(()) => None,
            Err(deliver::Shutdown) => Some(VcpuExit::TripleFault),
        }
    }

    fn refused(&mut self, e: Refused) -> Option<VcpuExit> {
        match e {
            Refused::Fault(f) => self.fault(f),
            // The run loop takes over what happened and looks again.
            Refused::Changed => None,
            Refused::Device => Some(VcpuExit::Failed(InternalError {
                what: "the guest jumped to memory that is neither RAM nor ROM".into(),
                rip: self.cpu.env.rip,
            })),
        }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, budget: Budget) -> VcpuExit {
        match catch_unwind(AssertUnwindSafe(|| self.run_inner(budget))) {
            Ok(exit) => exit,
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
                    .unwrap_or_else(|| "unknown panic".into());
                VcpuExit::Failed(InternalError {
                    what: format!("engine failure: {what}"),
                    rip: self.cpu.env.rip,
                })
            }
        }
    }

    fn state(&mut self) -> CpuState {
        self.cpu.save_state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        state.validate().map_err(|e| StateError(e.to_string()))?;
        self.cpu.load_state(state);
        Ok(())
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.cpu.signal.clone())
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), DebugError> {
        self.cpu.t0.debug = control.clone();
        Ok(())
    }

    fn reset(&mut self, kind: ResetKind) {
        match kind {
            ResetKind::Cpu => self.init(),
            ResetKind::PowerOn | ResetKind::System => {
                let shared = self.cpu.vm.code.clone();
                self.forget(&mut shared.cache.lock());
                if let (Some(numbers), Some(jit)) = (&self.numbers, &self.jit) {
                    *numbers.lock() = jit.numbers(&self.cpu);
                }
                let signature = self.cpu.vm.config.model.signature();
                self.cpu.load_state(&CpuState::reset(signature));
                let bsp = self.cpu.apic().base() & BSP != 0;
                self.cpu.env.wait_sipi = !bsp;
            }
        }
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.cpu.peek_translate(linear)
    }

    fn instructions(&self) -> u64 {
        self.cpu.env.icount
    }

    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        let c = &self.cpu.t0.counts;
        let mut counts = vec![
            ("block lookups", c.lookups),
            ("blocks translated", c.built),
            ("blocks linked", c.links),
            ("faults", c.faults),
            ("interrupts", c.interrupts),
            ("stale blocks entered", c.stale),
            ("cache flushes", c.flushes),
        ];
        counts.extend(self.cpu.mmu.counts());
        counts
    }
}
