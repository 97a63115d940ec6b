//! Two engines in lockstep: `-accel verify=A:B`.
//!
//! The *leader* A runs the machine. The *follower* B runs the same instructions afterwards on a copy of guest memory,
//! and is told what the leader was told: register reads, APIC answers, interrupts, DMA (see `journal`). After every
//! few instructions all registers are compared, and every page that either engine wrote. At the first difference both
//! engines are started anew from the last agreement and stepped to the instruction at fault; what they need for
//! that is written to a file, which `replay=FILE` steps through again.
//!
//! Counted time is needed: only then are both engines' views of time the same.

mod journal;
mod report;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anura_vmcore::{Clock, CpuSignal, ResetKind};
use anura_x86::CpuState;
use parking_lot::Mutex;

use crate::{
    AccelError, AccelVm, Accelerator, Budget, Capabilities, DebugControl, DebugError, InternalError, Kicker,
    StateError, Unavailable, Vcpu, VcpuExit, VmConfig, VmSpaces,
};
use journal::{Entry, Outside, Platform, Recorder, Replayer};
use report::Case;
use world::{Mirror, World};

/// Two engines of which the second checks the first.
pub struct Verify {
    lead: Arc<dyn Accelerator>,
    follow: Arc<dyn Accelerator>,
    options: Options,
}

/// How the two are compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// Instructions between comparisons, at least 1.
    pub every: u64,
    /// The leader leaves off behind each block that it has translated, and is compared there too.
    pub at_blocks: bool,
    /// Where the case goes when the engines differ.
    pub file: PathBuf,
    /// Instead of running the machine: step through a case that was written before.
    pub replay: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { every: 256, at_blocks: false, file: PathBuf::from("anura-verify.case"), replay: None }
    }
}

impl Verify {
    /// `lead` runs the machine, `follow` checks it.
    pub fn new(lead: Box<dyn Accelerator>, follow: Box<dyn Accelerator>, options: Options) -> Self {
        Self { lead: lead.into(), follow: follow.into(), options }
    }
}

impl Accelerator for Verify {
    fn name(&self) -> &'static str {
        "verify"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        let (a, b) = (self.lead.probe()?, self.follow.probe()?);
        for (engine, caps) in [(&self.lead, &a), (&self.follow, &b)] {
            if !caps.exact_budgets {
                let name = engine.name();
                return Err(Unavailable(format!("{name} cannot stop after a number of instructions")));
            }
        }
        let max_vcpus = a.max_vcpus.min(b.max_vcpus);
        Ok(Capabilities { exact_budgets: true, max_vcpus, in_turn: true, ..Capabilities::default() })
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        let Some(shift) = spaces.clock.shift().filter(|_| config.counted) else {
            let what = "engines are compared in counted time only: add -icount shift=1".into();
            return Err(AccelError::Unsupported { engine: "verify", what });
        };
        if let Some(file) = &self.options.replay {
            let unsupported = |what| AccelError::Unsupported { engine: "verify", what };
            let name = file.display();
            let case = Case::read(file).map_err(|e| unsupported(format!("replay={name}: {e}")))?;
            let pair = Pair { lead: self.lead.clone(), follow: self.follow.clone(), config: config.clone() };
            return Err(unsupported(format!("replay={name}: {}", report::step_through(&pair, case)?)));
        }
        let world = World::new(&spaces.ram).map_err(|e| AccelError::Unsupported {
            engine: "verify",
            what: format!("three copies of guest memory are needed: {e}; ask for less with -m"),
        })?;
        let cpus = config.topology.total();

        let recorder = Recorder::new(spaces, &config.platform, &world);
        let outside: Arc<dyn Outside> = recorder.clone();
        let mirror = Mirror::new(&outside);
        let lead_spaces = VmSpaces {
            memory: mirror.memory.clone(),
            ports: mirror.ports.clone(),
            clock: spaces.clock.clone(),
            ram: spaces.ram.clone(),
        };
        world.follow(&spaces.memory, mirror);
        let lead_config = VmConfig { platform: Platform::new(outside, cpus), ..config.clone() };
        let lead = self.lead.create_vm(&lead_spaces, &lead_config)?;

        let clock = Clock::counted(shift);
        let replayer = Replayer::new(&clock, world.twins());
        let follow = follower(&*self.follow, &replayer, &clock, &world.twins(), config)?;
        Ok(Arc::new(Vm(Arc::new(Shared {
            lead,
            follow,
            pair: Pair { lead: self.lead.clone(), follow: self.follow.clone(), config: config.clone() },
            options: self.options.clone(),
            clock: spaces.clock.clone(),
            follow_clock: clock,
            world,
            recorder,
            replayer,
            layout: Mutex::new(None),
            differed: AtomicBool::new(false),
            compared: Mutex::new((0, 0)),
        }))))
    }
}

/// The two engines and what they are to build.
struct Pair {
    lead: Arc<dyn Accelerator>,
    follow: Arc<dyn Accelerator>,
    config: VmConfig,
}

/// An engine over `blocks` that is answered by `replayer`.
fn follower(
    engine: &dyn Accelerator,
    replayer: &Arc<Replayer>,
    clock: &Clock,
    blocks: &[Arc<anura_memory::RamBlock>],
    config: &VmConfig,
) -> Result<Arc<dyn AccelVm>, AccelError> {
    let outside: Arc<dyn Outside> = replayer.clone();
    let mirror = Mirror::new(&outside);
    let spaces = VmSpaces {
        memory: mirror.memory.clone(),
        ports: mirror.ports.clone(),
        clock: clock.clone(),
        ram: blocks.to_vec(),
    };
    replayer.set_mirror(mirror);
    let config = VmConfig { platform: Platform::new(outside, config.topology.total()), ..config.clone() };
    engine.create_vm(&spaces, &config)
}

struct Shared {
    lead: Arc<dyn AccelVm>,
    follow: Arc<dyn AccelVm>,
    pair: Pair,
    options: Options,
    clock: Clock,
    follow_clock: Clock,
    world: Arc<World>,
    recorder: Arc<Recorder>,
    replayer: Arc<Replayer>,
    /// The layout that the follower has, by number.
    layout: Mutex<Option<u64>>,
    differed: AtomicBool,
    /// Comparisons made, and instructions between them.
    compared: Mutex<(u64, u64)>,
}

struct Vm(Arc<Shared>);

impl AccelVm for Vm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        let vm = self.0.clone();
        vm.recorder.add_signal(id, &signal);
        let follow_signal = CpuSignal::new();
        vm.replayer.add_signal(id, &follow_signal);
        vm.replayer.set_board(id, vm.recorder.apic(id), vm.recorder.a20());
        let lead = vm.lead.create_vcpu(id, signal)?;
        let follow = vm.follow.create_vcpu(id, follow_signal)?;
        Ok(Box::new(Both { vm, id, lead, follow, agreed: None }))
    }

    fn info(&self) -> String {
        let (times, instructions) = *self.0.compared.lock();
        format!("{}compared {times} times over {instructions} instructions\n", self.0.lead.info())
    }
}

/// One processor, run twice.
struct Both {
    vm: Arc<Shared>,
    id: u32,
    lead: Box<dyn Vcpu>,
    follow: Box<dyn Vcpu>,
    /// The state at the last comparison, if nothing touched it since.
    agreed: Option<CpuState>,
}

impl Both {
    /// Brings the follower's world to what the machine did between runs.
    fn settle(&mut self) {
        let vm = &self.vm;
        let (_, pages) = vm.recorder.take();
        vm.world.settle(&pages);
        let number = vm.world.layout_number();
        let mut have = vm.layout.lock();
        if have.replace(number) != Some(number) {
            vm.replayer.set_layout(vm.world.twins(), &vm.world.layout());
        }
        vm.replayer.set_board(self.id, vm.recorder.apic(self.id), vm.recorder.a20());
        vm.follow_clock.follow(&vm.clock);
    }

    fn show_board(&self) {
        let recorder = &self.vm.recorder;
        self.vm.replayer.set_board(self.id, recorder.apic(self.id), recorder.a20());
    }

    /// Runs both for up to `n` instructions and compares.
    fn slice(&mut self, n: u64) -> (VcpuExit, u64) {
        let start = match self.agreed.take() {
            Some(state) => state,
            None => self.lead.state(),
        };
        let layout = self.vm.world.layout();
        let (count, now) = (self.vm.clock.instructions(), self.vm.clock.now());
        let (shift, apic) = (self.vm.clock.shift().unwrap_or(0), self.vm.recorder.apic(self.id));
        let a20 = self.vm.recorder.a20();
        let before = self.lead.instructions();
        let exit = self.lead.run(Budget::Instructions(n));
        let done = self.lead.instructions().wrapping_sub(before);
        let (entries, written) = self.vm.recorder.take();
        self.vm.replayer.begin(entries.clone());
        let (follow_exit, follow_done) = self.follow_to(&entries, count, done);
        let mut found = self.vm.replayer.end().err();
        // What the leader's last access did to the layout, the follower's did too.
        *self.vm.layout.lock() = Some(self.vm.world.layout_number());
        if found.is_none() && follow_done != done {
            found = Some(format!("instructions: {done} and {follow_done}"));
        }
        if found.is_none() && !same_exit(&exit, &follow_exit) {
            found = Some(format!("ends of the run: {exit:?} and {follow_exit:?}"));
        }
        let (a, b) = (self.lead.state(), self.follow.state());
        if a != b {
            found = Some(report::state_difference(&a, &b));
        }
        let mut pages = self.vm.world.twin_written();
        pages.extend(written);
        let memory = self.vm.world.agree(pages.clone());
        if let Err(what) = memory {
            found = Some(found.map_or(what.clone(), |f| format!("{f}; {what}")));
        }
        let mut compared = self.vm.compared.lock();
        *compared = (compared.0 + 1, compared.1 + done);
        drop(compared);
        if let Some(found) = found {
            self.vm.world.rewind_twin(&pages);
            let case = Case { cpu: self.id, start, layout, entries, count, now, shift, apic, a20, done };
            return (self.differ(&found, case, &a), done);
        }
        self.agreed = Some(a);
        (exit, done)
    }

    /// Runs the follower over what the leader ran, stopping where the leader took an interrupt that came from
    /// elsewhere.
    fn follow_to(&mut self, entries: &[Entry], start: u64, done: u64) -> (VcpuExit, u64) {
        let before = self.follow.instructions();
        let mut exit = VcpuExit::BudgetSpent;
        let takes = entries.iter().filter(|e| e.call.kind.takes()).map(|e| e.count.wrapping_sub(start));
        for target in takes.chain([done]) {
            let mut stuck = 0;
            loop {
                let so_far = self.follow.instructions().wrapping_sub(before);
                exit = self.follow.run(Budget::Instructions(target.saturating_sub(so_far)));
                let now = self.follow.instructions().wrapping_sub(before);
                stuck = if now == so_far { stuck + 1 } else { 0 };
                let go_on = matches!(exit, VcpuExit::Interrupted | VcpuExit::BudgetSpent);
                if now >= target || !go_on || stuck > 2 {
                    break;
                }
            }
        }
        (exit, self.follow.instructions().wrapping_sub(before))
    }

    fn differ(&mut self, found: &str, case: Case, state: &CpuState) -> VcpuExit {
        self.vm.differed.store(true, Ordering::SeqCst);
        let (lead, follow) = (self.vm.pair.lead.name(), self.vm.pair.follow.name());
        let (rip, done) = (state.rip, case.done);
        let bases = self.vm.world.bases();
        let file = self.vm.options.file.display().to_string();
        let saved = match case.write(&self.vm.options.file, &bases) {
            Ok(()) => format!("replay with -accel verify={lead}:{follow},replay={file}"),
            Err(e) => format!("{file} could not be written: {e}"),
        };
        let twins = self.vm.world.twins();
        let at = report::step(&self.vm.pair, &case, [bases, twins])
            .unwrap_or_else(|e| format!("the engines could not be started again: {e}"));
        let what = format!(
            "verify: {lead} and {follow} differ after {done} instructions from {:#x} on CPU {}: {found}\n{at}\n{saved}",
            case.start.rip, self.id,
        );
        VcpuExit::Failed(InternalError { what, rip })
    }
}

/// Leaving early is no event of the guest, so only what both call an end is compared.
fn same_exit(a: &VcpuExit, b: &VcpuExit) -> bool {
    let early =
        |e: &VcpuExit| matches!(e, VcpuExit::Interrupted | VcpuExit::BudgetSpent | VcpuExit::Debug(_));
    early(a) || early(b) || a == b
}

impl Vcpu for Both {
    fn run(&mut self, budget: Budget) -> VcpuExit {
        let limit = match budget {
            Budget::Instructions(n) => n,
            Budget::Unlimited | Budget::Until(_) => self.vm.options.every,
        };
        if self.vm.differed.load(Ordering::SeqCst) {
            let what = "verify: the engines differed".into();
            return VcpuExit::Failed(InternalError { what, rip: 0 });
        }
        self.settle();
        let mut left = limit;
        loop {
            let asked = left.min(self.vm.options.every.max(1));
            let (exit, done) = self.slice(asked);
            left = left.saturating_sub(done);
            // Fewer than asked for: PAUSE gave the turn away.
            let early = done < asked && !(self.vm.options.at_blocks && done != 0);
            if exit != VcpuExit::BudgetSpent || left == 0 || early {
                return exit;
            }
        }
    }

    fn state(&mut self) -> CpuState {
        self.lead.state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        self.agreed = None;
        self.lead.set_state(state)?;
        self.show_board();
        self.follow.set_state(state)
    }

    fn kicker(&self) -> Kicker {
        self.lead.kicker()
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), DebugError> {
        self.lead.set_debug(control)
    }

    fn reset(&mut self, kind: ResetKind) {
        self.agreed = None;
        self.lead.reset(kind);
        self.show_board();
        self.follow.reset(kind);
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.lead.translate(linear)
    }

    fn instructions(&self) -> u64 {
        self.lead.instructions()
    }

    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        self.lead.exit_counts()
    }
}
