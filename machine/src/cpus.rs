//! The vCPUs and the threads that run them: one for each, or one for all in turn, as the engine says.
//!
//! In turn, one scheduler runs all vCPUs on one thread: a turn is a number of instructions, and HLT or PAUSE ends it. With
//! counted time the scheduler also fires the timers, each budget ends at the next deadline, and time in which no
//! vCPU has anything to do is skipped; what runs when is then a function of the guest alone. Whoever
//! wants the world to stand calls [`Cpus::pause`], which returns with all vCPUs out of their engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use anura_accel::{AccelVm, Budget, InternalError, Vcpu, VcpuExit};
use anura_vmcore::{Clock, CpuSignal, LoadError, Record, Requests, trace_event};
use parking_lot::{Condvar, Mutex};

/// Instructions of one turn when several vCPUs share the thread.
const TURN: u64 = 50_000;
/// Instructions of one turn of a vCPU that is alone.
const LONG_TURN: u64 = 10_000_000;

/// A timer that is due in less is waited for by the vCPU that has halted, not by the main loop.
const NEAR: Duration = Duration::from_millis(2);

/// What made the vCPUs stand until the machine has dealt with it.
#[derive(Clone, Debug, PartialEq)]
pub enum CpuEvent {
    /// A device asked for something.
    Request,
    /// This vCPU triple-faulted.
    TripleFault(u32),
    /// This vCPU asks for a reset.
    Reset(u32),
    /// This vCPU's engine cannot go on.
    Failed(u32, InternalError),
    /// This vCPU stopped for a debugger.
    Debug(u32),
}

/// Who has the turn, as saved with the machine.
pub struct Turns {
    /// The vCPUs; with a thread for each, they are out of here while they run.
    vcpus: Vec<Option<Box<dyn Vcpu>>>,
    halted: Vec<bool>,
    current: usize,
    left: u64,
    /// The engine's side of the machine.
    vm: Arc<dyn AccelVm>,
    /// What the host keeps for running vCPUs is with the board.
    stood: bool,
}

struct Control {
    running: bool,
    pauses: u32,
    /// An event waits for the machine.
    held: bool,
    quit: bool,
    /// Threads that stand.
    standing: usize,
    /// Number of threads.
    runners: usize,
    /// One thread runs all in turn.
    in_turn: bool,
    /// What the threads' names end in.
    engine: String,
}

struct Shared {
    turns: Mutex<Turns>,
    control: Mutex<Control>,
    changed: Condvar,
    stop: AtomicBool,
    signals: Vec<Arc<CpuSignal>>,
    clock: Clock,
    /// Idle counted time passes as fast as real time.
    sleep: bool,
    requests: Requests,
    on_event: Box<dyn Fn(CpuEvent) + Send + Sync>,
}

/// All vCPUs of a machine.
pub struct Cpus {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    runners: Mutex<Vec<Runner>>,
}

/// What takes the place of an engine's vCPUs.
pub struct Replacement {
    /// The new engine's side of the machine.
    pub vm: Arc<dyn AccelVm>,
    /// Its vCPUs, with the state of the old ones.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// One thread runs all in turn.
    pub in_turn: bool,
    /// What the threads' names end in.
    pub engine: String,
}

/// A thread that runs vCPUs.
struct Runner {
    thread: Thread,
    /// The host's number of it.
    id: u64,
}

/// What `Cpus` is made from.
pub struct CpusConfig {
    /// The vCPUs, in order.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// The engine's side of the machine.
    pub vm: Arc<dyn AccelVm>,
    /// Their signals.
    pub signals: Vec<Arc<CpuSignal>>,
    /// Guest time.
    pub clock: Clock,
    /// With counted time: idle time passes as fast as real time.
    pub sleep: bool,
    /// What devices ask for.
    pub requests: Requests,
    /// One thread runs all in turn; otherwise each has its own.
    pub in_turn: bool,
    /// What the threads' names end in, after `CPU 0/`.
    pub engine: String,
    /// Called on the vCPUs' thread, which then stands until [`Cpus::release`].
    pub on_event: Box<dyn Fn(CpuEvent) + Send + Sync>,
}

impl Cpus {
    /// Starts the threads; the vCPUs stand until [`Cpus::set_running`].
    pub fn new(config: CpusConfig) -> std::io::Result<Self> {
        let count = config.vcpus.len();
        let vcpus = config.vcpus.into_iter().map(Some).collect();
        let turns =
            Turns { vcpus, halted: vec![false; count], current: 0, left: 0, vm: config.vm, stood: true };
        let control = Control {
            running: false,
            pauses: 0,
            held: false,
            quit: false,
            standing: 0,
            runners: if config.in_turn { 1 } else { count },
            in_turn: config.in_turn,
            engine: config.engine,
        };
        let shared = Arc::new(Shared {
            turns: Mutex::new(turns),
            control: Mutex::new(control),
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
            signals: config.signals,
            clock: config.clock,
            sleep: config.sleep,
            requests: config.requests,
            on_event: config.on_event,
        });
        let cpus = Self { shared, threads: Mutex::default(), runners: Mutex::default() };
        cpus.start_threads()?;
        if cpus.shared.clock.is_counted() {
            let signals = cpus.shared.signals.clone();
            // A nearer deadline shortens the budget of whoever runs.
            cpus.shared.clock.on_earlier(move || signals.iter().for_each(|s| s.raise(CpuSignal::KICK)));
        }
        Ok(cpus)
    }

    /// Starts the threads that are missing, and lets each vCPU's signal wake the one that runs it.
    fn start_threads(&self) -> std::io::Result<()> {
        let (wanted, in_turn) = {
            let control = self.shared.control.lock();
            (control.runners, control.in_turn)
        };
        let mut runners = self.runners.lock();
        runners.truncate(wanted);
        for n in runners.len()..wanted {
            let (ids, id) = std::sync::mpsc::channel();
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().spawn(move || {
                let _ = ids.send(rustix::thread::gettid().as_raw_nonzero().get());
                shared.run(n);
            })?;
            runners.push(Runner { thread: thread.thread().clone(), id: id.recv().unwrap_or(0) as u64 });
            self.threads.lock().push(thread);
        }
        for (n, signal) in self.shared.signals.iter().enumerate() {
            let Some(runner) = runners.get(if in_turn { 0 } else { n }) else { continue };
            let thread = runner.thread.clone();
            signal.set_hook(move || thread.unpark());
        }
        Ok(())
    }

    /// Puts other vCPUs, of another engine, in the place of those that stand. `make` gets them and makes the new ones;
    /// if it cannot, everything stays as it was.
    pub fn replace<E: From<std::io::Error>>(
        &self,
        make: impl FnOnce(&mut Turns) -> Result<Replacement, E>,
    ) -> Result<(), E> {
        self.pause(|turns| {
            let new = make(turns)?;
            turns.vcpus = new.vcpus.into_iter().map(Some).collect();
            turns.vm = new.vm;
            turns.restart();
            {
                let mut control = self.shared.control.lock();
                control.in_turn = new.in_turn;
                control.engine = new.engine;
                control.runners = if new.in_turn { 1 } else { turns.vcpus.len() };
            }
            // Threads that are not needed any more end by themselves.
            self.shared.changed.notify_all();
            Ok(self.start_threads()?)
        })
    }

    /// The host's number of the thread that runs vCPU `n`.
    pub fn thread_id(&self, n: usize) -> u64 {
        let runners = self.runners.lock();
        runners.get(n).or(runners.first()).map_or(0, |r| r.id)
    }

    fn update(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.shared.control.lock();
        let stood = control.stop();
        change(&mut control);
        let stop = control.stop();
        if stood && !stop {
            self.shared.turns.lock().go();
        }
        self.shared.stop.store(stop, Ordering::SeqCst);
        if stop {
            self.shared.signals.iter().for_each(|s| s.raise(CpuSignal::KICK));
        }
        self.shared.changed.notify_all();
        drop(control);
        self.runners.lock().iter().for_each(|r| r.thread.unpark());
    }

    fn wait_standing(&self) {
        let mut control = self.shared.control.lock();
        while control.stop() && control.standing < control.runners {
            self.shared.changed.wait(&mut control);
        }
    }

    /// Lets the vCPUs run or makes them stand; returns when they do. Not from their own thread.
    pub fn set_running(&self, running: bool) {
        self.update(|control| control.running = running);
        if !running {
            self.wait_standing();
            self.shared.turns.lock().stand();
        }
    }

    /// After an event was dealt with: the vCPUs go on, if the machine runs.
    pub fn release(&self) {
        self.update(|control| control.held = false);
    }

    /// Stops the world for `work`. Not from the vCPUs' own thread.
    pub fn pause<R>(&self, work: impl FnOnce(&mut Turns) -> R) -> R {
        self.update(|control| control.pauses += 1);
        self.wait_standing();
        let result = {
            let mut turns = self.shared.turns.lock();
            turns.stand();
            work(&mut turns)
        };
        self.update(|control| control.pauses -= 1);
        result
    }
}

impl Cpus {
    /// Ends the vCPUs' threads; returns when they are gone. Not from one of them.
    pub fn quit(&self) {
        self.update(|control| control.quit = true);
        for thread in self.threads.lock().drain(..) {
            // A panic on that thread has been reported there.
            let _ = thread.join();
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.quit();
    }
}

impl Control {
    fn stop(&self) -> bool {
        !self.running || self.pauses > 0 || self.held || self.quit
    }
}

enum Outcome {
    /// Something ran.
    Ran,
    /// No vCPU has anything to do.
    Idle,
    /// The machine must deal with this first.
    Event(CpuEvent),
}

impl Shared {
    /// Thread `n`: alternates between standing and running vCPUs, until they must stand or the machine must act.
    fn run(&self, n: usize) {
        exact_timeouts();
        let mut named = String::new();
        loop {
            let in_turn = {
                let mut control = self.control.lock();
                if control.stop() {
                    control.standing += 1;
                    self.changed.notify_all();
                    while control.stop() && !control.quit && n < control.runners {
                        self.changed.wait(&mut control);
                    }
                    control.standing -= 1;
                    if control.quit || n >= control.runners {
                        return;
                    }
                }
                if named != control.engine {
                    named.clone_from(&control.engine);
                    if let Ok(name) = std::ffi::CString::new(format!("CPU {n}/{named}")) {
                        // A name is for the user's eyes only.
                        let _ = rustix::thread::set_name(&name);
                    }
                }
                control.in_turn
            };
            let event = if in_turn { self.run_in_turn() } else { self.run_one(n) };
            if let Some(event) = event {
                {
                    let mut control = self.control.lock();
                    control.held = true;
                    self.stop.store(true, Ordering::SeqCst);
                }
                self.signals.iter().for_each(|s| s.raise(CpuSignal::KICK));
                (self.on_event)(event);
            }
        }
    }

    /// All vCPUs on this thread.
    fn run_in_turn(&self) -> Option<CpuEvent> {
        let mut turns = self.turns.lock();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            match self.turn(&mut turns) {
                Outcome::Ran => {}
                Outcome::Idle => self.idle(),
                Outcome::Event(event) => return Some(event),
            }
        }
    }

    /// vCPU `n` on its own thread.
    fn run_one(&self, n: usize) -> Option<CpuEvent> {
        let mut vcpu = self.turns.lock().vcpus.get_mut(n)?.take()?;
        let mut halted = false;
        let event = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if self.requests.pending() {
                break Some(CpuEvent::Request);
            }
            if halted && self.signals[n].poll.load(Ordering::SeqCst) == 0 {
                self.wait();
                continue;
            }
            let exit = vcpu.run(Budget::Unlimited);
            trace_event!(vcpu_exit, "cpu {n} reason {exit:?}");
            halted = exit == VcpuExit::Halted;
            if let Some(event) = event_of(n as u32, exit) {
                break Some(event);
            }
        };
        let mut turns = self.turns.lock();
        turns.vcpus[n] = Some(vcpu);
        turns.halted[n] = halted;
        event
    }

    /// In real time: waits for a raised bit, or whoever wants this thread to stand, and for a timer if one is near.
    fn wait(&self) {
        if !self.clock.wait_if_near(NEAR, std::thread::park_timeout) {
            std::thread::park();
        }
    }

    /// Waits for a vCPU's signal, or skips to the next timer.
    fn idle(&self) {
        if !self.clock.is_counted() {
            return self.wait();
        }
        match self.clock.next_deadline() {
            None => std::thread::park(),
            Some(at) if self.sleep => {
                let ahead = at.saturating_sub(self.clock.now());
                std::thread::park_timeout(Duration::from_nanos(ahead));
                if !self.stop.load(Ordering::SeqCst)
                    && self.signals.iter().all(|s| s.poll.load(Ordering::SeqCst) == 0)
                {
                    self.clock.warp_to(at);
                }
            }
            Some(at) => self.clock.warp_to(at),
        }
    }

    fn turn(&self, turns: &mut Turns) -> Outcome {
        if self.clock.is_counted() {
            self.clock.fire_due();
        }
        if self.requests.pending() {
            return Outcome::Event(CpuEvent::Request);
        }
        let count = turns.vcpus.len();
        let awake =
            |turns: &Turns, n: usize| !turns.halted[n] || self.signals[n].poll.load(Ordering::SeqCst) != 0;
        let Some(next) = (0..count).map(|i| (turns.current + i) % count).find(|n| awake(turns, *n)) else {
            return Outcome::Idle;
        };
        if next != turns.current || turns.left == 0 {
            turns.current = next;
            turns.left = if count == 1 { LONG_TURN } else { TURN };
        }
        let mut budget = turns.left;
        if self.clock.is_counted()
            && let Some(at) = self.clock.next_deadline()
        {
            budget = budget.min(self.clock.instructions_until(at).max(1));
        }
        let Some(vcpu) = turns.vcpus[next].as_mut() else { return Outcome::Idle };
        let before = vcpu.instructions();
        let exit = vcpu.run(Budget::Instructions(budget));
        let done = vcpu.instructions().wrapping_sub(before);
        turns.left = turns.left.saturating_sub(done);
        turns.halted[next] = exit == VcpuExit::Halted;
        trace_event!(vcpu_exit, "cpu {next} reason {exit:?} instructions {done}");
        match exit {
            // Less than the budget means PAUSE: the turn is over.
            VcpuExit::BudgetSpent if done < budget || turns.left == 0 => turns.pass_on(),
            VcpuExit::Halted => turns.pass_on(),
            exit => {
                if let Some(event) = event_of(next as u32, exit) {
                    return Outcome::Event(event);
                }
            }
        }
        if self.requests.pending() { Outcome::Event(CpuEvent::Request) } else { Outcome::Ran }
    }
}

/// Lets the host end this thread's waits when they are due, not up to 50 us later for the sake of its sleep.
pub(crate) fn exact_timeouts() {
    // Where this is refused, timers are late as they are for others.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

/// What the machine must know of an exit.
fn event_of(cpu: u32, exit: VcpuExit) -> Option<CpuEvent> {
    match exit {
        VcpuExit::Interrupted | VcpuExit::BudgetSpent | VcpuExit::Halted => None,
        VcpuExit::Debug(_) => Some(CpuEvent::Debug(cpu)),
        VcpuExit::Reset => Some(CpuEvent::Reset(cpu)),
        VcpuExit::TripleFault => Some(CpuEvent::TripleFault(cpu)),
        VcpuExit::Failed(error) => Some(CpuEvent::Failed(cpu, error)),
    }
}

impl Turns {
    fn pass_on(&mut self) {
        self.left = 0;
        self.current = (self.current + 1) % self.vcpus.len();
    }

    fn with_all(&mut self, work: impl FnOnce(&dyn AccelVm, &mut [&mut dyn Vcpu])) {
        let vm = self.vm.clone();
        let mut all: Vec<&mut dyn Vcpu> = self.vcpus().map(|vcpu| &mut **vcpu as &mut dyn Vcpu).collect();
        work(&*vm, &mut all);
    }

    /// The board gets what the host kept for running vCPUs.
    fn stand(&mut self) {
        if !std::mem::replace(&mut self.stood, true) {
            self.with_all(|vm, all| vm.stand(all));
        }
    }

    /// The host gets it again.
    fn go(&mut self) {
        if std::mem::take(&mut self.stood) {
            self.with_all(|vm, all| vm.go(all));
        }
    }

    /// The engine's side of the machine.
    pub fn vm(&self) -> &Arc<dyn AccelVm> {
        &self.vm
    }

    /// The vCPUs, in order.
    pub fn vcpus(&mut self) -> impl Iterator<Item = &mut Box<dyn Vcpu>> {
        self.vcpus.iter_mut().flatten()
    }

    /// vCPU `n`, if there is one.
    pub fn vcpu(&mut self, n: usize) -> Option<&mut Box<dyn Vcpu>> {
        self.vcpus.get_mut(n)?.as_mut()
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// Never true: a machine has a vCPU.
    pub fn is_empty(&self) -> bool {
        self.vcpus.is_empty()
    }

    /// Whether vCPU `n` waits for an interrupt.
    pub fn halted(&self, n: usize) -> bool {
        self.halted[n]
    }

    /// After a reset or a restore: every vCPU says anew whether it has anything to do.
    pub fn restart(&mut self) {
        self.halted.fill(false);
        (self.current, self.left) = (0, 0);
    }

    /// Whose turn it is, for how long, and who waits.
    pub fn save(&self) -> Record {
        Record::new(1).with(1, self.current).with(2, self.left).with(3, self.halted.clone())
    }

    /// Takes over a saved turn.
    pub fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let current = r.get_if::<usize>(1, |n| *n < self.vcpus.len())?;
        let left = r.get_if::<u64>(2, |n| *n <= LONG_TURN)?;
        let halted = r.get_if::<Vec<bool>>(3, |h| h.len() == self.vcpus.len())?;
        r.finish()?;
        (self.current, self.left, self.halted) = (current, left, halted);
        Ok(())
    }
}
