//! The vCPUs and the thread that runs them in turn.
//!
//! One scheduler runs all vCPUs on one thread: a turn is a number of instructions, and HLT or PAUSE ends it. With
//! counted time the scheduler also fires the timers, each budget ends at the next deadline, and time in which no
//! vCPU has anything to do is skipped; what runs when is then a function of the guest alone. Whoever
//! wants the world to stand calls [`Cpus::pause`], which returns with all vCPUs out of their engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use anura_accel::{Budget, InternalError, Vcpu, VcpuExit};
use anura_vmcore::{Clock, CpuSignal, LoadError, Record, Requests, trace_event};
use parking_lot::{Condvar, Mutex};

/// Instructions of one turn when several vCPUs share the thread.
const TURN: u64 = 50_000;
/// Instructions of one turn of a vCPU that is alone.
const LONG_TURN: u64 = 10_000_000;

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
    /// The vCPUs.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    halted: Vec<bool>,
    current: usize,
    left: u64,
}

struct Control {
    running: bool,
    pauses: u32,
    /// An event waits for the machine.
    held: bool,
    quit: bool,
    standing: bool,
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
    thread: Mutex<Option<JoinHandle<()>>>,
    runner: Thread,
    thread_id: u64,
}

/// What `Cpus` is made from.
pub struct CpusConfig {
    /// The vCPUs, in order.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// Their signals.
    pub signals: Vec<Arc<CpuSignal>>,
    /// Guest time.
    pub clock: Clock,
    /// With counted time: idle time passes as fast as real time.
    pub sleep: bool,
    /// What devices ask for.
    pub requests: Requests,
    /// Name of the thread.
    pub thread_name: String,
    /// Called on the vCPUs' thread, which then stands until [`Cpus::release`].
    pub on_event: Box<dyn Fn(CpuEvent) + Send + Sync>,
}

impl Cpus {
    /// Starts the thread; the vCPUs stand until [`Cpus::set_running`].
    pub fn new(config: CpusConfig) -> std::io::Result<Self> {
        let count = config.vcpus.len();
        let shared = Arc::new(Shared {
            turns: Mutex::new(Turns { vcpus: config.vcpus, halted: vec![false; count], current: 0, left: 0 }),
            control: Mutex::new(Control {
                running: false,
                pauses: 0,
                held: false,
                quit: false,
                standing: false,
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
            signals: config.signals,
            clock: config.clock,
            sleep: config.sleep,
            requests: config.requests,
            on_event: config.on_event,
        });
        let (ids, id) = std::sync::mpsc::channel();
        let runner = shared.clone();
        let thread = std::thread::Builder::new().name(config.thread_name).spawn(move || {
            let _ = ids.send(rustix::thread::gettid().as_raw_nonzero().get());
            runner.run();
        })?;
        let runner = thread.thread().clone();
        for signal in &shared.signals {
            let runner = runner.clone();
            signal.set_hook(move || runner.unpark());
        }
        if shared.clock.is_counted() {
            let signals = shared.signals.clone();
            // A nearer deadline shortens the budget of whoever runs.
            shared.clock.on_earlier(move || signals.iter().for_each(|s| s.raise(CpuSignal::KICK)));
        }
        let thread_id = id.recv().unwrap_or(0) as u64;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), runner, thread_id })
    }

    /// The host's id of the thread.
    pub fn thread_id(&self) -> u64 {
        self.thread_id
    }

    fn update(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.shared.control.lock();
        change(&mut control);
        let stop = control.stop();
        self.shared.stop.store(stop, Ordering::SeqCst);
        if stop {
            self.shared.signals.iter().for_each(|s| s.raise(CpuSignal::KICK));
        }
        self.shared.changed.notify_all();
        self.runner.unpark();
    }

    fn wait_standing(&self) {
        let mut control = self.shared.control.lock();
        while control.stop() && !control.standing {
            self.shared.changed.wait(&mut control);
        }
    }

    /// Lets the vCPUs run or makes them stand; returns when they do. Not from their own thread.
    pub fn set_running(&self, running: bool) {
        self.update(|control| control.running = running);
        if !running {
            self.wait_standing();
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
        let result = work(&mut self.shared.turns.lock());
        self.update(|control| control.pauses -= 1);
        result
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.update(|control| control.quit = true);
        if let Some(thread) = self.thread.lock().take() {
            // A panic on that thread has been reported there.
            let _ = thread.join();
        }
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
    fn run(&self) {
        loop {
            {
                let mut control = self.control.lock();
                while control.stop() && !control.quit {
                    control.standing = true;
                    self.changed.notify_all();
                    self.changed.wait(&mut control);
                }
                if control.quit {
                    control.standing = true;
                    self.changed.notify_all();
                    return;
                }
                control.standing = false;
            }
            let event = {
                let mut turns = self.turns.lock();
                loop {
                    if self.stop.load(Ordering::SeqCst) {
                        break None;
                    }
                    match self.turn(&mut turns) {
                        Outcome::Ran => {}
                        Outcome::Idle => self.idle(),
                        Outcome::Event(event) => break Some(event),
                    }
                }
            };
            if let Some(event) = event {
                {
                    let mut control = self.control.lock();
                    control.held = true;
                    self.stop.store(true, Ordering::SeqCst);
                }
                (self.on_event)(event);
            }
        }
    }

    /// Waits for a vCPU's signal, or skips to the next timer.
    fn idle(&self) {
        if !self.clock.is_counted() {
            std::thread::park();
            return;
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
        let vcpu = &mut turns.vcpus[next];
        let before = vcpu.instructions();
        let exit = vcpu.run(Budget::Instructions(budget));
        let done = vcpu.instructions().wrapping_sub(before);
        turns.left = turns.left.saturating_sub(done);
        turns.halted[next] = exit == VcpuExit::Halted;
        trace_event!(vcpu_exit, "cpu {next} reason {exit:?} instructions {done}");
        let cpu = next as u32;
        match exit {
            VcpuExit::Interrupted => {}
            VcpuExit::BudgetSpent => {
                // Less than the budget means PAUSE: the turn is over.
                if done < budget || turns.left == 0 {
                    turns.pass_on();
                }
            }
            VcpuExit::Halted => turns.pass_on(),
            VcpuExit::Debug(_) => return Outcome::Event(CpuEvent::Debug(cpu)),
            VcpuExit::Reset => return Outcome::Event(CpuEvent::Reset(cpu)),
            VcpuExit::TripleFault => return Outcome::Event(CpuEvent::TripleFault(cpu)),
            VcpuExit::Failed(error) => return Outcome::Event(CpuEvent::Failed(cpu, error)),
        }
        if self.requests.pending() { Outcome::Event(CpuEvent::Request) } else { Outcome::Ran }
    }
}

impl Turns {
    fn pass_on(&mut self) {
        self.left = 0;
        self.current = (self.current + 1) % self.vcpus.len();
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
