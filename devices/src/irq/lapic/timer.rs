//! The local APIC's timer, SDM volume 3, 11.5.4: one-shot, periodic, and by the time stamp counter.

use super::{ApicRegs, LVT_TIMER};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

/// Shortest period of the periodic timer: a guest cannot keep the host busy with nothing but ticks.
const SHORTEST_PERIOD: u64 = 1_000;

impl ApicRegs {
    pub(super) fn timer_mode(&self) -> TimerMode {
        match self.lvt[LVT_TIMER] >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::Deadline,
            _ => TimerMode::OneShot,
        }
    }

    /// Nanoseconds per count.
    pub(super) fn tick(&self) -> u64 {
        let code = (self.divide & 3 | self.divide >> 1 & 4) + 1;
        1 << (code & 7)
    }

    pub(super) fn period(&self) -> u64 {
        u64::from(self.initial_count) * self.tick()
    }

    pub(super) fn start_count(&mut self, now: u64) {
        self.started = now;
        if self.initial_count == 0 || self.timer_mode() == TimerMode::Deadline {
            self.timer.cancel();
        } else {
            self.timer.arm(now.saturating_add(self.period()));
        }
    }

    pub(super) fn current_count(&self) -> u32 {
        // Not armed: a one-shot count that has run out, even if the mode has changed since.
        if self.initial_count == 0 || self.timer.deadline().is_none() {
            return 0;
        }
        let elapsed = self.clock.now().saturating_sub(self.started) / self.tick();
        let initial = u64::from(self.initial_count);
        match self.timer_mode() {
            TimerMode::Deadline => 0,
            TimerMode::OneShot => initial.saturating_sub(elapsed) as u32,
            TimerMode::Periodic => (initial - elapsed % initial) as u32,
        }
    }

    pub(super) fn timer_fired(&mut self, now: u64) {
        match self.timer_mode() {
            TimerMode::Deadline => self.deadline = 0,
            TimerMode::OneShot => {}
            TimerMode::Periodic => {
                let period = self.period().max(SHORTEST_PERIOD);
                // Ticks that were missed altogether are lost, as on a processor that could not take them.
                let passed = now.saturating_sub(self.started) / period;
                self.started = self.started.saturating_add(passed.max(1) * period);
                self.timer.arm(self.started.saturating_add(period));
            }
        }
        self.local(LVT_TIMER);
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() != TimerMode::Deadline {
            return;
        }
        self.deadline = value;
        self.timer.cancel();
        if value == 0 {
            return;
        }
        let ns = (u128::from(value) * 1_000_000).div_ceil(u128::from(self.tsc_khz));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        if ns <= self.clock.now() {
            // Past: it fires before the next instruction, not when somebody looks at the timers.
            self.timer_fired(ns);
        } else {
            self.timer.arm(ns);
        }
    }

    pub(super) fn set_divide(&mut self, value: u32) {
        let left = u64::from(self.current_count());
        self.divide = value & 0xb;
        if left != 0 && self.timer.deadline().is_some() {
            // The count goes on from where it is, at the new rate.
            let now = self.clock.now();
            let done = u64::from(self.initial_count) - left;
            self.started = now.saturating_sub(done * self.tick());
            self.timer.arm(now.saturating_add(left * self.tick()));
        }
    }
}
