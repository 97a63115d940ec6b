//! Guest time and timers: the only source of time that a device has.
//!
//! A clock has one of three drivers. *Real*: the host's monotonic time less the pauses, read from a counter of the
//! host's where an engine has shown one that will do ([`Clock::learn_counter`]). *Counted*: the
//! number of executed guest instructions times a power of two, plus idle time that was skipped. *Stepped*:
//! moved by tests. Timers fire in (deadline, sequence) order; the sequence is the order of arming, and is
//! saved, so that a restored machine fires equal deadlines in the same order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Field, LoadError, Record, Value, WeakCell};

/// Guest time in nanoseconds. Clones are the same clock.
#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Real,
    Counted { shift: u8 },
    Stepped,
}

struct Inner {
    driver: Driver,
    origin: Instant,
    /// Real: guest time minus host time, modulo 2^64. Counted: idle time skipped. Stepped: the time itself.
    bias: AtomicU64,
    /// Real: the clock stands at `frozen`.
    paused: AtomicBool,
    /// Real: a counter of the host's that is read instead of asking the host for the time.
    counter: OnceLock<Counter>,
    /// When it was looked at first.
    learning: Mutex<Option<Moment>>,
    /// By how much it was behind when that was looked at last.
    behind: AtomicI64,
    /// Real: how often time was made to go on.
    resumed: AtomicU64,
    frozen: AtomicU64,
    /// Counted: instructions executed by all vCPUs.
    instructions: AtomicU64,
    /// Deadline of the first timer, `u64::MAX` for none: read without the lock.
    earliest: AtomicU64,
    /// Real: the deadline that an idle processor's thread waits for, 0 for none.
    kept: AtomicU64,
    queue: Mutex<Queue>,
    earlier: Mutex<Option<Hook>>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;
type Fire = Box<dyn Fn(&TimerInner, Key, u64) + Send + Sync>;
/// Deadline, then sequence.
type Key = (u64, u64);

#[derive(Default)]
struct Queue {
    due: BTreeMap<Key, Arc<TimerInner>>,
    next_seq: u64,
}

struct TimerInner {
    armed: Mutex<Option<Key>>,
    fire: Fire,
}

/// A counter of the host's that goes at a constant rate, the same on all its processors.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Reads it.
    pub read: fn() -> u64,
    /// Nanoseconds of a tick, times 2^32.
    pub mult: u64,
    /// What is added to the nanoseconds of a reading, modulo 2^64.
    pub add: u64,
}

impl Counter {
    fn ns(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.mult)) >> 32) as u64
    }

    /// The time without the clock's bias.
    #[inline]
    fn now(&self) -> u64 {
        self.ns((self.read)()).wrapping_add(self.add)
    }
}

/// A counter and the host's time at one moment.
#[derive(Clone, Copy)]
struct Moment {
    ticks: u64,
    /// How uncertain that is.
    within: u64,
    time: Instant,
}

impl Moment {
    /// The best of a few looks.
    fn look(read: fn() -> u64) -> Moment {
        let one = || {
            let (ticks, time, after) = (read(), Instant::now(), read());
            Moment { ticks, within: after.wrapping_sub(ticks), time }
        };
        (1..8).map(|_| one()).fold(one(), |best, m| if m.within < best.within { m } else { best })
    }
}

/// How long a counter is watched before it is trusted: what is uncertain about the two looks is some 50 ns each.
const LEARNING: Duration = Duration::from_millis(50);
/// A jump of the counter, which some machines make when they wake up.
const JUMP: i64 = 200_000_000;
/// What a look at both clocks takes at most, if nothing comes between.
const LOOK: u64 = 10_000_000;

/// Nanoseconds that are not worth sleeping.
const CLOSE: u64 = 2_000;
/// Nanoseconds that are left to whoever has promised to fire a timer.
const GRACE: u64 = 1_000_000;

impl Clock {
    fn with_driver(driver: Driver) -> Self {
        Self {
            inner: Arc::new(Inner {
                driver,
                origin: Instant::now(),
                bias: AtomicU64::new(0),
                paused: AtomicBool::new(false),
                counter: OnceLock::new(),
                learning: Mutex::default(),
                behind: AtomicI64::new(0),
                resumed: AtomicU64::new(0),
                frozen: AtomicU64::new(0),
                instructions: AtomicU64::new(0),
                earliest: AtomicU64::new(u64::MAX),
                kept: AtomicU64::new(0),
                queue: Mutex::default(),
                earlier: Mutex::new(None),
            }),
        }
    }

    /// A clock that follows the host's monotonic time. It starts paused at 0.
    pub fn real() -> Self {
        let clock = Self::with_driver(Driver::Real);
        clock.inner.paused.store(true, Ordering::Release);
        clock
    }

    /// A clock of 2^`shift` nanoseconds per guest instruction; `shift` is at most 10, as QEMU's.
    pub fn counted(shift: u8) -> Self {
        Self::with_driver(Driver::Counted { shift: shift.min(10) })
    }

    /// A clock that `advance` moves, for tests.
    pub fn stepped() -> Self {
        Self::with_driver(Driver::Stepped)
    }

    /// Whether time comes from counted instructions.
    pub fn is_counted(&self) -> bool {
        matches!(self.inner.driver, Driver::Counted { .. })
    }

    /// Guest time in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        let inner = &*self.inner;
        match inner.driver {
            Driver::Real => {
                if inner.paused.load(Ordering::Acquire) {
                    return inner.frozen.load(Ordering::Acquire);
                }
                self.host_ns().wrapping_add(inner.bias.load(Ordering::Acquire))
            }
            Driver::Counted { shift } => (inner.instructions.load(Ordering::Relaxed) << shift)
                .wrapping_add(inner.bias.load(Ordering::Relaxed)),
            Driver::Stepped => inner.bias.load(Ordering::Relaxed),
        }
    }

    fn host_ns(&self) -> u64 {
        self.inner.counter.get().map_or_else(|| self.monotonic_ns(), Counter::now)
    }

    /// Real: reads this counter from now on, once it has been watched for long enough to know its rate. To be called
    /// now and then until the answer is the counter.
    pub fn learn_counter(&self, read: fn() -> u64) -> Option<&Counter> {
        let inner = &*self.inner;
        if inner.driver != Driver::Real {
            return None;
        }
        if let Some(counter) = inner.counter.get() {
            return Some(counter);
        }
        let mut learning = inner.learning.lock();
        let Some(first) = *learning else {
            *learning = Some(Moment::look(read));
            return None;
        };
        if first.time.elapsed() < LEARNING {
            return None;
        }
        let now = Moment::look(read);
        let middle = |m: Moment| m.ticks.wrapping_add(m.within / 2);
        let ticks = middle(now).wrapping_sub(middle(first));
        let ns = now.time.duration_since(first.time).as_nanos();
        // An interrupted look, or a counter that stands.
        if ticks == 0 || u128::from(first.within.max(now.within)) * 100_000 > u128::from(ticks) {
            *learning = Some(now);
            return None;
        }
        let mult = u64::try_from((ns << 32) / u128::from(ticks)).ok()?;
        let counter = Counter { read, mult, add: 0 };
        // The time was looked at after the counter, so that it never goes back by this.
        let time = u64::try_from(now.time.duration_since(inner.origin).as_nanos()).ok()?;
        let add = time.wrapping_sub(counter.ns(now.ticks));
        Some(inner.counter.get_or_init(|| Counter { add, ..counter }))
    }

    /// Real: what is added to the counter's time, modulo 2^64, as long as the clock is not paused.
    pub fn bias(&self) -> &AtomicU64 {
        &self.inner.bias
    }

    /// Goes on from where it was if the counter has jumped.
    fn look_at_counter(&self) {
        let inner = &*self.inner;
        let Some(counter) = inner.counter.get() else { return };
        let before = self.monotonic_ns();
        let counted = counter.now();
        if self.monotonic_ns().wrapping_sub(before) > LOOK {
            // The host ran something else between the two looks.
            return;
        }
        let behind = before.wrapping_sub(counted) as i64;
        let jump = behind.wrapping_sub(inner.behind.swap(behind, Ordering::Relaxed));
        if jump.abs() > JUMP {
            inner.bias.fetch_add(jump as u64, Ordering::AcqRel);
        }
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.inner.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Stops real time. Counted and stepped time stand still by themselves.
    pub fn pause(&self) {
        let inner = &*self.inner;
        if inner.driver == Driver::Real && !inner.paused.load(Ordering::Acquire) {
            inner.frozen.store(self.now(), Ordering::Release);
            inner.paused.store(true, Ordering::Release);
        }
    }

    /// Lets real time go on from where `pause` stopped it.
    pub fn resume(&self) {
        let inner = &*self.inner;
        if inner.driver == Driver::Real && inner.paused.load(Ordering::Acquire) {
            let bias = inner.frozen.load(Ordering::Acquire).wrapping_sub(self.host_ns());
            inner.bias.store(bias, Ordering::Release);
            inner.resumed.fetch_add(1, Ordering::AcqRel);
            inner.paused.store(false, Ordering::Release);
            self.wake_earlier();
        }
    }

    /// How often real time was made to go on: a counter of the host's that ran meanwhile is ahead if this changed.
    pub fn resumptions(&self) -> u64 {
        self.inner.resumed.load(Ordering::Acquire)
    }

    /// Whether real time stands.
    pub fn is_paused(&self) -> bool {
        self.inner.paused.load(Ordering::Acquire)
    }

    /// Counted: instructions executed so far by all vCPUs.
    #[inline]
    pub fn instructions(&self) -> u64 {
        self.inner.instructions.load(Ordering::Relaxed)
    }

    /// Counted: publishes the exact count, before anything that can ask for the time.
    #[inline]
    pub fn set_instructions(&self, n: u64) {
        self.inner.instructions.store(n, Ordering::Relaxed);
    }

    /// Counted: shows the same time as `other`, a counted clock of the same rate, until either moves.
    pub fn follow(&self, other: &Clock) {
        self.set_instructions(other.instructions());
        self.inner.bias.store(other.inner.bias.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Counted: nanoseconds per instruction as a power of two.
    pub fn shift(&self) -> Option<u8> {
        match self.inner.driver {
            Driver::Counted { shift } => Some(shift),
            _ => None,
        }
    }

    /// Counted: how many instructions, rounded up, until `ns` is reached; `u64::MAX` on other drivers.
    pub fn instructions_until(&self, ns: u64) -> u64 {
        match self.inner.driver {
            Driver::Counted { shift } => ns.saturating_sub(self.now()).div_ceil(1 << shift),
            _ => u64::MAX,
        }
    }

    /// Counted: skips idle time up to `ns`, when no vCPU has anything to run.
    pub fn warp_to(&self, ns: u64) {
        if self.is_counted() {
            let ahead = ns.saturating_sub(self.now());
            self.inner.bias.fetch_add(ahead, Ordering::Relaxed);
        }
    }

    /// Stepped: moves time on by `ns` and fires what becomes due, each timer at its own deadline.
    pub fn advance(&self, ns: u64) {
        assert_eq!(self.inner.driver, Driver::Stepped, "only a stepped clock is moved by hand");
        let end = self.now().saturating_add(ns);
        while let Some(deadline) = self.next_deadline().filter(|d| *d <= end) {
            self.inner.bias.fetch_max(deadline, Ordering::Relaxed);
            self.fire_due();
        }
        self.inner.bias.store(end, Ordering::Relaxed);
    }

    /// Makes a timer of the device behind `cell`; `fire` runs with the device locked and gets the time.
    pub fn timer<T: Send + 'static>(&self, cell: &WeakCell<T>, fire: fn(&mut T, u64)) -> Timer {
        let cell = cell.clone();
        let fire = Box::new(move |timer: &TimerInner, key: Key, now: u64| {
            let Some(device) = cell.upgrade() else { return };
            let mut device = device.lock();
            // The device may have cancelled or moved the timer while we waited for its lock.
            if timer.take_if(key) {
                fire(&mut device, now);
            }
        });
        Timer { clock: self.clone(), inner: Arc::new(TimerInner { armed: Mutex::new(None), fire }) }
    }

    /// Deadline of the first timer.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        Some(self.inner.earliest.load(Ordering::Acquire)).filter(|d| *d != u64::MAX)
    }

    /// Fires every timer that is due, in (deadline, sequence) order. Returns how many fired. No cell may be held.
    pub fn fire_due(&self) -> usize {
        self.look_at_counter();
        let mut fired = 0;
        // A timer that re-arms itself in the past must not keep us here: what is due now is the bound.
        let mut left = self.inner.queue.lock().due.len().saturating_mul(4).max(16);
        while left > 0 {
            let now = self.now();
            let (key, timer) = {
                let mut queue = self.inner.queue.lock();
                let Some(entry) = queue.due.first_entry().filter(|e| e.key().0 <= now) else { break };
                let due = entry.remove_entry();
                self.publish_earliest(&queue);
                due
            };
            (timer.fire)(&timer, key, now);
            fired += 1;
            left -= 1;
        }
        fired
    }

    /// Called when the first deadline came nearer, on the thread that armed it.
    pub fn on_earlier(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.inner.earlier.lock() = Some(Arc::new(hook));
    }

    /// Real: if the first deadline is near, waits for it by `wait`, which may return early, in place of whoever waits for
    /// deadlines otherwise, and fires what is due then. False if it is not near. No cell may be held.
    ///
    /// A processor that has halted will mostly be woken by its own timer, and this way only one thread has to be.
    pub fn wait_if_near(&self, near: Duration, wait: impl FnOnce(Duration)) -> bool {
        let inner = &*self.inner;
        let Some(at) = self.next_deadline().filter(|_| inner.driver == Driver::Real && !self.is_paused())
        else {
            return false;
        };
        let ahead = Duration::from_nanos(at.saturating_sub(self.now()));
        if ahead > near {
            return false;
        }
        if !ahead.is_zero() {
            inner.kept.store(at, Ordering::SeqCst);
            wait(ahead);
            let kept = inner.kept.compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            // The host's timer and the counter may differ by a little.
            let mut left = at.saturating_sub(self.now());
            while left > 0 && left < CLOSE {
                std::hint::spin_loop();
                left = at.saturating_sub(self.now());
            }
            if left > 0 {
                if kept && self.next_deadline() == Some(at) {
                    // Something else came first, and this thread has better things to do now.
                    self.wake_earlier();
                }
                return true;
            }
        }
        self.fire_due();
        true
    }

    /// When whoever waits for deadlines has to look, a little late if a thread waits in its place.
    pub fn look_at(&self) -> Option<u64> {
        let at = self.next_deadline()?;
        Some(if self.inner.kept.load(Ordering::SeqCst) == at { at.saturating_add(GRACE) } else { at })
    }

    fn wake_earlier(&self) {
        let hook = self.inner.earlier.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn publish_earliest(&self, queue: &Queue) -> bool {
        let first = queue.due.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
        first < self.inner.earliest.swap(first, Ordering::AcqRel)
    }

    /// The clock's own state: time, instruction count, timer sequence.
    pub fn save(&self) -> Record {
        let next_seq = self.inner.queue.lock().next_seq;
        Record::new(1).with(1, self.now()).with(2, self.instructions()).with(3, next_seq)
    }

    /// Takes over a saved state; the clock must be paused (real) and its timers are restored by their devices.
    pub fn load(&self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        // Times beyond 146 years would overflow sums of deadlines.
        let now = r.get_if::<u64>(1, |ns| *ns < 1 << 62)?;
        let instructions = r.get_if::<u64>(2, |n| *n < 1 << 52)?;
        let next_seq = r.get_if::<u64>(3, |n| *n < 1 << 62)?;
        r.finish()?;
        match self.inner.driver {
            Driver::Real => {
                self.inner.frozen.store(now, Ordering::Release);
                let bias = now.wrapping_sub(self.host_ns());
                self.inner.bias.store(bias, Ordering::Release);
            }
            Driver::Counted { shift } => {
                self.inner.instructions.store(instructions, Ordering::Relaxed);
                self.inner.bias.store(now.wrapping_sub(instructions << shift), Ordering::Relaxed);
            }
            Driver::Stepped => self.inner.bias.store(now, Ordering::Relaxed),
        }
        let mut queue = self.inner.queue.lock();
        queue.next_seq = queue.next_seq.max(next_seq);
        Ok(())
    }
}

/// Deadlines beyond this, 292 years, are brought down to it: a record can then hold any deadline.
const NEVER: u64 = (1 << 63) - 1;

/// One timer of a device; disarmed when dropped.
pub struct Timer {
    clock: Clock,
    inner: Arc<TimerInner>,
}

/// Whether and when a timer will fire, as saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerState(Option<Key>);

impl TimerInner {
    fn take_if(&self, key: Key) -> bool {
        let mut armed = self.armed.lock();
        if *armed == Some(key) {
            *armed = None;
            return true;
        }
        false
    }
}

impl Timer {
    /// (Re-)arms the timer for guest time `at` in nanoseconds. A time in the past fires as soon as timers are looked at.
    pub fn arm(&self, at: u64) {
        let clock = &*self.clock.inner;
        let mut queue = clock.queue.lock();
        let seq = queue.next_seq;
        queue.next_seq += 1;
        self.insert(queue, (at.min(NEVER), seq));
    }

    fn insert(&self, mut queue: parking_lot::MutexGuard<'_, Queue>, key: Key) {
        if let Some(old) = self.inner.armed.lock().replace(key) {
            queue.due.remove(&old);
        }
        queue.due.insert(key, self.inner.clone());
        let earlier = self.clock.publish_earliest(&queue);
        drop(queue);
        if earlier {
            self.clock.wake_earlier();
        }
    }

    /// Disarms the timer.
    pub fn cancel(&self) {
        let mut queue = self.clock.inner.queue.lock();
        if let Some(old) = self.inner.armed.lock().take() {
            queue.due.remove(&old);
            self.clock.publish_earliest(&queue);
        }
    }

    /// When the timer fires.
    pub fn deadline(&self) -> Option<u64> {
        self.inner.armed.lock().map(|key| key.0)
    }

    /// What `save` stores.
    pub fn state(&self) -> TimerState {
        TimerState(*self.inner.armed.lock())
    }

    /// What `load` puts back, with the original place among equal deadlines.
    pub fn restore(&self, state: TimerState) {
        match state.0 {
            None => self.cancel(),
            Some(key) => {
                let mut queue = self.clock.inner.queue.lock();
                queue.next_seq = queue.next_seq.max(key.1.saturating_add(1));
                // A hostile record may name the sequence of another timer: then this one gets its own.
                let taken = queue.due.get(&key).is_some_and(|t| !Arc::ptr_eq(t, &self.inner));
                let key = if taken { (key.0, queue.next_seq) } else { key };
                queue.next_seq = queue.next_seq.max(key.1.saturating_add(1));
                self.insert(queue, key);
            }
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Field for TimerState {
    fn to_value(&self) -> Value {
        self.0.to_value()
    }
    fn from_value(value: &Value) -> Option<Self> {
        let state = Option::<Key>::from_value(value)?;
        // Bounds that keep sums of times and sequences from overflowing.
        state.is_none_or(|(at, seq)| at < 1 << 63 && seq < 1 << 62).then_some(Self(state))
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
