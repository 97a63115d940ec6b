//! What a test gets: its size, its clock, and numbers that are the same everywhere.

use std::time::{Duration, Instant};

/// One test of a group.
pub struct Test {
    /// The group, as `--only` names it.
    pub group: &'static str,
    /// Its name within the group.
    pub name: &'static str,
    /// Why this machine cannot run it.
    pub lacks: fn() -> Option<&'static str>,
    /// Does the work; the checksum, the same on every machine and every engine.
    pub run: fn(&mut Bench) -> u64,
}

/// For tests that run everywhere.
pub fn everywhere() -> Option<&'static str> {
    None
}

/// The size of a test and the time that it has spent.
pub struct Bench {
    percent: u64,
    spent: Option<Duration>,
}

impl Bench {
    /// A run at `percent` of the usual size.
    pub fn new(percent: u64) -> Self {
        Self { percent, spent: None }
    }

    /// A number of repetitions, scaled.
    pub fn n(&self, usual: u64) -> u64 {
        (usual * self.percent / 100).max(1)
    }

    /// Counts the time of `work`. A test that never calls it is timed as a whole.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.spent = Some(self.spent.unwrap_or_default() + start.elapsed());
        result
    }

    /// The nanoseconds of `test`, its checksum, and the nanoseconds with all that it prepared.
    pub fn measure(mut self, test: &Test) -> (u128, u64, u128) {
        let start = Instant::now();
        let sum = (test.run)(&mut self);
        let whole = start.elapsed();
        (self.spent.unwrap_or(whole).as_nanos(), sum, whole.as_nanos())
    }
}

/// Numbers without a pattern: a 64-bit multiplicative congruential generator with its low half mixed away.
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(0x1234_5678_9abc_def1) | 1)
    }

    /// The next 32 bits.
    pub fn next32(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d);
        (self.0 >> 32) as u32
    }

    /// The next 64 bits.
    pub fn next64(&mut self) -> u64 {
        u64::from(self.next32()) << 32 | u64::from(self.next32())
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        (u64::from(self.next32()) * u64::from(bound) >> 32) as u32
    }

    /// A number from 0 to 1.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.next32()) / 4_294_967_296.0
    }
}

/// Takes a value into a checksum.
pub fn mix(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(7) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1)
}
