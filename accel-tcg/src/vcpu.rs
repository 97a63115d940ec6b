//! The loop around translated code: budgets, events, finding and making blocks.
//!
//! Events are looked at where they can have changed: at the start of a run, after instructions that may set the
//! interrupt flag or lower the task priority, when `signal.poll` has bits, and at the end of a budget. None of these
//! depends on how blocks are cut, which counted time relies on. Single-step, code breakpoints, interrupt shadows and
//! the last instructions of a budget go through blocks of one instruction.

use crate::cache::Cache;
use crate::deliver::{self, deliver};
use crate::env::{Cpu, Exec, Fault, VmShared};
use crate::frontend::blocks;
use crate::frontend::effects::Features;
use crate::helpers::system::code_breakpoint;
use crate::interp::lower::lower;
use crate::interp::t0::{Code, Exit, Jump, State};
use crate::interp::{ends_without_trap, enter};
use crate::ir::Block;
use crate::jit::engine::{Numbers, Setup};
use crate::jit::{Chaos, Home, Jit, code as leave};
use crate::mmu::{ExecPage, View};
use crate::mode::key;
use crate::opt;
use crate::show::{self, Items};
use anura_accel::{
    AccelError, AccelVm, Accelerator, Budget, Capabilities, DebugControl, DebugError, DebugEvent,
    InternalError, Kicker, StateError, Unavailable, Vcpu, VcpuExit, VmConfig, VmSpaces,
};
use anura_vmcore::{CpuSignal, ResetKind};
use anura_x86::regs::{dr7, rflags};
use anura_x86::{CpuState, Shadow};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

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
    /// Our bit among the owners of pages with translations.
    owner: u64,
    features: Features,
    /// The local APIC may have something.
    attention: bool,
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
            owner: 1,
            features,
            attention: true,
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
        let Setup { size, counted, smp, one_insn, numbers, perf, chaos } = setup;
        let mut jit = Jit::new(size, counted, vm.config.counted, smp)?;
        jit.name_code(perf);
        let mut vcpu = Self::new(vm, id, signal);
        vcpu.owner = 1 << (id & 63);
        vcpu.numbers = Some(numbers);
        vcpu.longest = if one_insn { 1 } else { 64 };
        vcpu.cpu.jit.counted = counted;
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
        let mut look_at_clock = start.saturating_add(TIME_SLICE);
        self.attention = true;
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
            let step = if self.slow() || each || !self.translating && limit - now < 64 {
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
            let (bytes, live) = jit.sizes();
            *numbers.lock() = Numbers { counts: jit.counts, bytes, live, memory: self.cpu.mmu.counts() };
        }
        exit
    }

    /// Takes over what the log is to show. Where every block is shown, none leads to another.
    fn look_at_log(&mut self, cache: &mut Cache) {
        let now = Items::now();
        let before = std::mem::replace(&mut self.cpu.jit.log, now);
        if now.each_block() && !before.each_block() {
            self.forget(cache);
        }
        if let Some(jit) = &mut self.jit {
            jit.show = now.out_asm;
        }
    }

    /// Whether the next instruction must run alone.
    fn slow(&self) -> bool {
        let env = &self.cpu.env;
        // The shadow of STI is of no consequence where nothing waits: translated code looks at events after its first
        // instruction at the earliest.
        let shaded = match env.shadow {
            Shadow::None => false,
            Shadow::Sti => {
                !self.translating || self.attention || self.cpu.signal.poll.load(Ordering::Relaxed) != 0
            }
            _ => true,
        };
        shaded
            || env.eflags_sys & (rflags::TF | rflags::RF) != 0
            || env.dr7 & dr7::ENABLES != 0
            || self.cpu.t0.debug.single_step
            || !self.cpu.t0.debug.breakpoints.is_empty()
    }

    /// Takes what waits at this boundary. `Some` ends the run.
    fn events(&mut self, cache: &mut Cache) -> Option<VcpuExit> {
        let cpu = &mut self.cpu;
        let bits = cpu.signal.take();
        if bits & CpuSignal::KICK != 0 {
            self.kicked = true;
        }
        self.attention |= bits & CpuSignal::IRQ != 0;
        cpu.refresh_views();
        self.catch_up(cache);
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
        if (self.attention || idle) && self.interrupts().is_err() {
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
        self.attention = waits.interrupt || waits.nmi || waits.init || waits.sipi.is_some();
        if !self.attention {
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
        if waits.nmi && !cpu.env.nmi_masked && cpu.env.shadow == Shadow::None && cpu.apic().take_nmi() {
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

    /// Runs blocks until something leaves to the loop.
    fn many(&mut self, cache: &mut Cache, limit: u64) -> Option<VcpuExit> {
        self.cpu.t0.limit = limit;
        let mut from: Option<(*const Code, u8)> = None;
        loop {
            let code = match self.lookup(cache, 64, 0) {
                Ok(c) => c,
                Err(e) => return self.refused(e),
            };
            if let Some((pred, n)) = from.take() {
                // SAFETY: `code` was just found; it lives until the cache is emptied.
                let c = unsafe { &*code };
                // SAFETY: `pred` ran just now and no code was freed since.
                let p = unsafe { &*pred };
                // With a CS base the same page of RIPs may be two pages of memory, or end earlier.
                let direct = c.key & (key::L64 | key::CS_FLAT) != 0 && c.pa2.is_none();
                if direct && c.key == p.key && (c.host ^ p.host) >> 12 == 0 && !self.cpu.code_dirty() {
                    cache.link(pred, n.into(), code);
                    self.cpu.t0.counts.links += 1;
                }
            }
            self.execute(code);
            match self.cpu.t0.exit {
                Exit::Lookup => {}
                Exit::Link(n) => {
                    let generation = cache.generation;
                    from = Some((self.cpu.t0.block, n));
                    if cache.full() {
                        from = None;
                    }
                    debug_assert_eq!(generation, cache.generation);
                }
                _ => return self.finish(),
            }
            // The look at the next block may mark page tables, so it waits for a budget that has room.
            if self.cpu.signal.poll.load(Ordering::Relaxed) != 0
                || self.cpu.code_dirty()
                || self.cpu.env.icount >= limit
            {
                return None;
            }
        }
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

    #[inline]
    fn execute(&mut self, code: *const Code) {
        let cpu = &mut self.cpu;
        cpu.t0.leave = false;
        // SAFETY: `code` is live, made for the current mode and found for the current RIP; the cache is locked by
        // our caller, so nothing is freed while operations run.
        unsafe {
            let mut op = enter(cpu, code);
            while !op.is_null() {
                op = ((*op).run)(cpu, op);
            }
        }
    }

    /// Like `execute`, whatever `poll` says: the boundary before this instruction has been dealt with.
    fn execute_single(&mut self, code: *const Code) {
        let cpu = &mut self.cpu;
        cpu.t0.leave = false;
        cpu.t0.block = code;
        // SAFETY: as in `execute`.
        unsafe {
            let mut op = (*code).entry.get();
            while !op.is_null() {
                op = ((*op).run)(cpu, op);
            }
        }
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
                self.cpu.t0.counts.faults += 1;
                let f = self.cpu.t0.fault;
                if f == Fault::FROZEN {
                    self.cpu.env.halted = true;
                    return None;
                }
                self.fault(f)
            }
        }
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
            Refused::Device => Some(VcpuExit::Failed(InternalError {
                what: "the guest jumped to memory that is neither RAM nor ROM".into(),
                rip: self.cpu.env.rip,
            })),
        }
    }

    /// The code at RIP, made if there is none.
    fn lookup(&mut self, cache: &mut Cache, max: usize, bits: u32) -> Result<*const Code, Refused> {
        let cpu = &mut self.cpu;
        cpu.t0.counts.lookups += 1;
        let rip = cpu.env.rip;
        let mode = cpu.env.mode_key;
        let mut limit = u64::MAX;
        if mode & key::CS_FLAT == 0 {
            let cs = &cpu.env.seg[anura_x86::segment::index::CS];
            limit = u64::from(cs.limit);
            if cpu.t0.cs != (cs.base, cs.limit) {
                cpu.t0.cs = (cs.base, cs.limit);
                cpu.t0.cs_changes += 1;
            }
            if rip > limit {
                return Err(Refused::Fault(Fault::GP0));
            }
        }
        let linear = cpu.env.linear_rip();
        // The walk may find a changed memory map, so the tag comes after it.
        let page = cpu.translate_exec(linear)?;
        let epoch = cpu.mmu.exec_epoch.wrapping_add(cpu.t0.cs_changes);
        cpu.t0.tag = (epoch & 0xffff_ffff) << 32 | u64::from(mode);
        cpu.t0.epoch = cpu.mmu.exec_epoch;
        if page.host.is_null() {
            return self.device_code(page, linear, mode);
        }
        let host = page.host as usize + (linear & 0xfff) as usize;
        let id = mode | bits;
        let mut found = cache.find(host, rip, id);
        if let Some(c) = found {
            // SAFETY: the index holds live codes.
            let code = unsafe { &*c };
            if u64::from(code.len.max(1)) - 1 > limit - rip {
                found = None;
            }
            if let Some(second) = code.pa2 {
                let next = (linear & !0xfff).wrapping_add(0x1000);
                let now = cpu.translate_exec(next)?;
                if now.host as u64 != second {
                    found = None;
                }
            }
        }
        let code = match found {
            Some(c) => c,
            None => self.make(cache, host, page, linear, id, max)?,
        };
        let cpu = &mut self.cpu;
        if bits == 0 {
            cpu.t0.jumps[State::jump_index(rip)] = Jump { rip, tag: cpu.t0.tag, code };
        }
        Ok(code)
    }

    /// Code at a place that is neither RAM nor ROM: one instruction, used once.
    #[cold]
    #[inline(never)]
    fn device_code(&mut self, page: ExecPage, linear: u64, mode: u32) -> Result<*const Code, Refused> {
        let cpu = &mut self.cpu;
        let within = linear & 0xfff;
        let who = cpu.requester();
        cpu.sync_clock();
        let mut bytes = [0; 15];
        let n = bytes.len().min(0x1000 - within as usize);
        let _ = cpu.mmu.memory.view().read_bytes(page.phys | within, &mut bytes[..n], who);
        let rip = cpu.env.rip;
        // What would cross into the next page does not complete, which no working guest tries.
        let second = || -> Result<[u8; 15], Fault> { Ok([0xff; 15]) };
        let built = blocks::build(&bytes[..n], second, (0, rip, mode), &self.features, 1)?;
        // Without an arena: what needs the host is undefined there.
        let code = lower(&built.block, None, mode | SINGLE, Some(0));
        Ok(&raw const **self.cpu.t0.passing.insert(code))
    }

    #[cold]
    #[inline(never)]
    fn make(
        &mut self,
        cache: &mut Cache,
        host: usize,
        page: ExecPage,
        linear: u64,
        id: u32,
        max: usize,
    ) -> Result<*const Code, Refused> {
        if cache.full() {
            self.forget(cache);
        }
        self.cpu.t0.counts.built += 1;
        let made = self.build(host, page, linear, max)?;
        let code = lower(&made.block, cache.arena.as_mut(), id, made.second);
        let code = cache.add(host, id, code, &made.sources);
        self.catch_up(cache);
        Ok(code)
    }

    /// Drops all translations.
    fn forget(&mut self, cache: &mut Cache) {
        let mut pages = cache.pages();
        pages.extend(self.jit.iter().flat_map(|j| j.pages()));
        cache.clear();
        self.cpu.t0.block = ptr::null();
        self.cpu.t0.counts.flushes += 1;
        if let Some(jit) = &mut self.jit {
            jit.clear(&mut self.cpu);
        }
        for page in pages {
            self.settle(cache, page);
        }
        self.catch_up(cache);
    }

    /// After translations of a page were dropped: its marks are made those of the translations left.
    fn settle(&mut self, cache: &Cache, page: usize) {
        let jit = self.jit.as_deref();
        let still = cache.has_page(page) || jit.is_some_and(|j| j.has_page(page));
        let cpu = &self.cpu;
        cpu.vm.pages.settle(page, self.owner, still, || {
            for ram in &cpu.vm.spaces.ram {
                let start = ram.host_ptr().as_ptr() as usize;
                if let Some(at) = page.checked_sub(start).filter(|at| (*at as u64) < ram.len()) {
                    ram.tracker().clear_code(at as u64);
                }
            }
            cache.remark(page);
            if let Some(j) = jit {
                j.remark(page);
            }
        });
    }

    /// Takes over what others did to code and to pages.
    fn catch_up(&mut self, cache: &mut Cache) {
        for (host, len) in self.cpu.catch_up(cache) {
            if let Some(jit) = &mut self.jit {
                jit.invalidate(&mut self.cpu, host, len as usize);
            }
            let mut page = host & !0xfff;
            while page < host + (len as usize).max(1) {
                self.settle(cache, page);
                page += 0x1000;
            }
        }
    }

    /// The IR of the block at a place, with the marks on its bytes made.
    fn build(&mut self, host: usize, page: ExecPage, linear: u64, max: usize) -> Result<Made, Refused> {
        let cpu = &mut *self.cpu;
        let within = (linear & 0xfff) as usize;
        let phys = page.phys | within as u64;
        let (ram, offset) = cpu.ram_at(phys).ok_or(Refused::Device)?;
        cpu.vm.pages.own(page.host as usize, self.owner);
        // Marked before the bytes are read, so that no store between is missed; exact marks follow.
        ram.tracker().mark_code(offset, 1);
        // No block is longer than its instructions can be.
        let mut bytes = [0; 64 * 15];
        let inside = cpu.code_left();
        let here = (0x1000 - within).min(max.min(64) * 15);
        // What lies behind the segment's end is not fetched.
        let first = &mut bytes[..here.min(inside)];
        for (i, b) in first.iter_mut().enumerate() {
            // SAFETY: the page is RAM as a whole and we stay inside of it; others may write, hence volatile.
            *b = unsafe { page.host.add(within + i).read_volatile() };
        }
        let (rip, mode) = (cpu.env.rip, cpu.env.mode_key);
        let mut second_page = None;
        let mut beyond = [0; 15];
        let next = (linear & !0xfff).wrapping_add(0x1000);
        let next = if cpu.env.is_64bit() { next } else { next & 0xffff_ffff };
        let built = blocks::build(
            first,
            || -> Exec<[u8; 15]> {
                if inside <= here {
                    return Err(Fault::GP0);
                }
                let p = cpu.translate_exec(next)?;
                second_page = Some(p);
                let mut more = [0; 15];
                if p.host.is_null() {
                    cpu.load(next, &mut more, View::Super)?;
                } else {
                    for (i, b) in more.iter_mut().enumerate() {
                        // SAFETY: as above.
                        *b = unsafe { p.host.add(i).read_volatile() };
                    }
                }
                beyond = more;
                Ok(more)
            },
            (host as u64, rip, mode),
            &self.features,
            max,
        )?;
        if u64::from(built.block.len()) > inside as u64 {
            return Err(Refused::Fault(Fault::GP0));
        }
        let mut block = built.block;
        opt::flags::run(&mut block);
        #[cfg(feature = "mutants")]
        crate::mutants::alter(&mut block);
        if cfg!(debug_assertions)
            && let Err(e) = crate::ir::verify::block(&block)
        {
            panic!("{e}\n{}", crate::ir::print::block(&block));
        }
        let log = cpu.jit.log;
        if log.in_asm || log.op {
            let mut bytes = bytes[..here.min(inside)].to_vec();
            bytes.extend(beyond);
            show::translated(log, &block, &bytes);
        }
        let second_page = if built.crosses { second_page } else { None };
        let second = second_page.map(|p| p.host as u64);
        let in_first = u64::from(block.len()).min(0x1000 - within as u64).max(1);
        ram.tracker().mark_code(offset, in_first);
        let mut sources = vec![(page.host as usize, ram, offset & !0xfff)];
        if let Some(p) = second_page
            && let Some((ram, offset)) = cpu.ram_at(p.phys)
        {
            cpu.vm.pages.own(p.host as usize, self.owner);
            ram.tracker().mark_code(offset, u64::from(block.len()).saturating_sub(in_first).max(1));
            sources.push((p.host as usize, ram, offset & !0xfff));
        }
        Ok(Made { block, second, sources })
    }

    // ---- translated code ----

    /// Runs translated code until something leaves to the loop.
    fn translated(&mut self, cache: &mut Cache, limit: u64) -> Option<VcpuExit> {
        self.cpu.t0.limit = limit;
        let mut from: Option<(u32, bool)> = None;
        loop {
            if self.cpu.jit.chaos.any() {
                if self.disturb(cache) {
                    from = None;
                }
                if self.cpu.jit.chaos.one_in(16) {
                    return self.one(cache, true);
                }
            }
            let epoch = self.cpu.t0.epoch;
            let flushes = self.jit.as_ref()?.counts.flushes;
            let id = match self.find(cache) {
                Ok(Some(id)) => id,
                // Memory that is neither RAM nor ROM.
                Ok(None) => return self.one(cache, true),
                Err(e) => return self.refused(e),
            };
            let jit = self.jit.as_mut()?;
            jit.counts.entries += 1;
            let block = jit.block(id)?;
            let (entry, rip, crosses) = (block.entry, block.rip, block.second.is_some());
            let log = self.cpu.jit.log;
            if log.each_block() {
                from = None;
                let room = !jit.options.counted || limit - self.cpu.env.icount >= block.n.into();
                if room {
                    show::entered(log, &self.cpu, (id, entry, block.n));
                }
            }
            // A link inside of a page is good for as long as the page's bytes are; one that leaves it, or leads to a
            // block of two pages, for as long as the mapping is.
            if let Some((slot, far)) = from.take()
                && (far || !crosses)
                && epoch == self.cpu.t0.epoch
                && flushes == jit.counts.flushes
            {
                let epochs = self.cpu.env.jit.epoch;
                jit.link(slot, far.then_some(epochs[(rip >> 63) as usize]), id);
            }
            let env = &mut self.cpu.env;
            env.jit.budget = limit.wrapping_sub(env.icount) as i64;
            let (shadow, before) = (std::mem::take(&mut env.shadow), env.icount);
            jit.enter(&mut self.cpu, entry);
            let exit = self.cpu.env.jit.exit as u32;
            let code = exit & 7;
            if (code <= leave::LINK_FAR || code == leave::BUDGET) && jit.options.counted {
                self.cpu.env.icount = limit.wrapping_sub(self.cpu.env.jit.budget as u64);
            }
            if code == leave::BUDGET && self.cpu.env.icount == before {
                // Nothing ran.
                self.cpu.env.shadow = shadow;
            }
            match code {
                leave::LOOKUP => {}
                leave::LINK | leave::LINK_FAR => from = Some((exit & !7, code == leave::LINK_FAR)),
                leave::BAIL => {
                    let Some((n, insn)) = jit.settle(&mut self.cpu) else {
                        return Some(self.broken("translated code was left at an unknown place"));
                    };
                    if jit.options.counted {
                        let left = self.cpu.env.jit.budget as u64;
                        self.cpu.env.icount =
                            limit.wrapping_sub(left).wrapping_sub(u64::from(n)).wrapping_add(insn.into());
                    }
                    if self.cpu.jit.panic.is_some() {
                        return Some(self.broken(""));
                    }
                    return self.one(cache, true);
                }
                leave::LEFT => {
                    if self.cpu.jit.panic.is_some() {
                        return Some(self.broken(""));
                    }
                    let exit = self.left();
                    if exit.is_some() || !self.undisturbed() {
                        return exit;
                    }
                }
                leave::POLL if self.undisturbed() => {}
                _ => return None,
            }
            if self.cpu.signal.poll.load(Ordering::Relaxed) != 0
                || self.cpu.code_dirty()
                || self.cpu.env.icount >= limit
            {
                return None;
            }
        }
    }

    /// Accidents between blocks. `true`: nothing is to be linked.
    #[cold]
    fn disturb(&mut self, cache: &mut Cache) -> bool {
        if self.cpu.jit.chaos.one_in(32) {
            self.cpu.mmu.flush_all();
            return true;
        }
        if self.cpu.jit.chaos.one_in(50_000) {
            self.forget(cache);
            return true;
        }
        self.cpu.jit.chaos.one_in(2)
    }

    /// Whether nothing waits at this boundary and the next instruction need not run alone, so that the run loop may be
    /// left out.
    fn undisturbed(&self) -> bool {
        let cpu = &*self.cpu;
        let env = &cpu.env;
        cpu.signal.poll.load(Ordering::Relaxed) == 0
            && !self.attention
            && !self.kicked
            && !cpu.code_dirty()
            && env.pending.is_none()
            && env.pending_db == 0
            && !(env.halted || env.wait_sipi || env.shutdown)
            && env.icount < cpu.t0.limit
            && !self.slow()
    }

    /// What a helper or an interpreted instruction has left behind.
    fn left(&mut self) -> Option<VcpuExit> {
        match self.cpu.t0.exit {
            Exit::Fault(_) => {
                self.cpu.t0.counts.faults += 1;
                let f = self.cpu.t0.fault;
                if f == Fault::FROZEN {
                    self.cpu.env.halted = true;
                    return None;
                }
                self.fault(f)
            }
            _ => self.finish(),
        }
    }

    fn broken(&mut self, what: &str) -> VcpuExit {
        let what = self.cpu.jit.panic.take().unwrap_or_else(|| what.to_owned());
        VcpuExit::Failed(InternalError { what: format!("engine failure: {what}"), rip: self.cpu.env.rip })
    }

    /// The translated block at RIP, made if there is none; `None` where there is no RAM or ROM.
    fn find(&mut self, cache: &mut Cache) -> Result<Option<u32>, Refused> {
        let cpu = &mut *self.cpu;
        let rip = cpu.env.rip;
        let mode = cpu.env.mode_key;
        let epochs = cpu.mmu.epochs();
        let tags = epochs.map(|e| e << 24 | u64::from(mode));
        let known = self.cpu.jumps()[Home::jump_index(rip)];
        let cpu = &mut *self.cpu;
        if known.rip == rip && known.tag == tags[(rip >> 63) as usize] {
            cpu.t0.epoch = cpu.mmu.exec_epoch;
            let j = &mut cpu.env.jit;
            (j.epoch, j.tag) = (epochs, tags);
            cpu.env.jit.tlb = cpu.mmu.data_base() as u64;
            return Ok(Some(known.id));
        }
        let flat = mode & (key::L64 | key::CS_FLAT) != 0;
        let mut limit = u64::MAX;
        if mode & key::CS_FLAT == 0 {
            limit = u64::from(cpu.env.seg[anura_x86::segment::index::CS].limit);
            if rip > limit {
                return Err(Refused::Fault(Fault::GP0));
            }
        }
        let linear = cpu.env.linear_rip();
        let page = cpu.translate_exec(linear)?;
        cpu.t0.epoch = cpu.mmu.exec_epoch;
        if page.host.is_null() {
            return Ok(None);
        }
        let host = page.host as usize + (linear & 0xfff) as usize;
        let jit = self.jit.as_mut().ok_or(Refused::Device)?;
        jit.counts.lookups += 1;
        let mut found = jit.find(host, rip, mode);
        if let Some(b) = found.and_then(|id| jit.block(id)) {
            if u64::from(b.len.max(1)) - 1 > limit - rip {
                found = None;
            }
            if let Some(second) = b.second {
                let next = (linear & !0xfff).wrapping_add(0x1000);
                let now = cpu.translate_exec(next)?;
                if now.host as usize != second {
                    found = None;
                }
            }
        }
        let id = match found {
            Some(id) => id,
            None => self.translate(cache, host, page, linear)?,
        };
        let cpu = &mut self.cpu;
        cpu.t0.epoch = cpu.mmu.exec_epoch;
        let epochs = cpu.mmu.epochs();
        let j = &mut cpu.env.jit;
        j.epoch = epochs;
        j.tag = epochs.map(|e| e << 24 | u64::from(mode));
        let tag = j.tag[(rip >> 63) as usize];
        cpu.env.jit.tlb = cpu.mmu.data_base() as u64;
        let linked = !cpu.jit.log.each_block();
        if flat
            && linked
            && let Some(b) = self.jit.as_ref().and_then(|j| j.block(id))
        {
            let code = b.entry;
            cpu.jumps()[Home::jump_index(rip)] = crate::jit::Jump { rip, tag, code, id };
        }
        Ok(Some(id))
    }

    #[cold]
    #[inline(never)]
    fn translate(
        &mut self,
        cache: &mut Cache,
        host: usize,
        page: ExecPage,
        linear: u64,
    ) -> Result<u32, Refused> {
        let stale = self.jit.as_ref().is_some_and(|j| j.full() || j.generation != cache.generation);
        if stale || cache.full() {
            self.forget(cache);
            if let Some(jit) = &mut self.jit {
                jit.generation = cache.generation;
            }
        }
        let start = Instant::now();
        let made = self.build(host, page, linear, self.longest)?;
        let mode = self.cpu.env.mode_key;
        let jit = self.jit.as_mut().ok_or(Refused::Device)?;
        let second = made.second.map(|s| s as usize);
        let id = jit.add(&made.block, mode, second, &made.sources, cache.arena.as_mut());
        jit.counts.time += start.elapsed();
        self.catch_up(cache);
        Ok(id)
    }
}

/// A block's IR and what it was made from.
struct Made {
    block: Block,
    /// Host address of the second page, for a block that crosses.
    second: Option<u64>,
    sources: Vec<(usize, Arc<anura_memory::RamBlock>, u64)>,
}

/// Why there is no code at RIP.
enum Refused {
    Fault(Fault),
    Device,
}

impl Cpu {
    /// Bytes from RIP to the end of the code segment.
    fn code_left(&self) -> usize {
        if self.env.mode_key & key::CS_FLAT != 0 {
            return usize::MAX;
        }
        let limit = u64::from(self.env.seg[anura_x86::segment::index::CS].limit);
        (limit + 1).saturating_sub(self.env.rip) as usize
    }
}

impl From<Fault> for Refused {
    fn from(f: Fault) -> Self {
        Refused::Fault(f)
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
