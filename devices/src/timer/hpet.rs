//! High precision event timer, IA-PC HPET specification 1.0a: three comparators over a 100 MHz, 64-bit counter.
//!
//! The counter is computed from guest time. Comparators 0 to 2 can be periodic, can go to any interrupt input of
//! the IOAPIC or as a message, and in legacy replacement mode stand for the PIT and the RTC.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, SizeRange, cell_io};
use anura_vmcore::{
    Clock, Device, DeviceCell, Field, IrqLine, LoadError, MsiRoute, MsiSink, Record, ResetKind, Timer,
    TimerState, Value, guest_error, trace_event,
};
use std::sync::Arc;

/// Where the registers are.
pub const BASE: u64 = 0xfed0_0000;
/// Length of the register block.
pub const LENGTH: u64 = 0x400;
/// Nanoseconds per tick.
const TICK: u64 = 10;
/// Number of comparators.
const TIMERS: usize = 3;
/// Interrupt inputs that a comparator may be routed to: all 24 but those of keyboard, PIT and cascade.
const ROUTES: u32 = 0x00ff_0104 | 0x0000_0c00;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const T_LEVEL: u64 = 1 << 1;
const T_ENABLE: u64 = 1 << 2;
const T_PERIODIC: u64 = 1 << 3;
const T_PERIODIC_CAP: u64 = 1 << 4;
const T_64: u64 = 1 << 5;
const T_SET_VALUE: u64 = 1 << 6;
const T_32: u64 = 1 << 8;
const T_FSB: u64 = 1 << 14;
const T_FSB_CAP: u64 = 1 << 15;
const T_WRITABLE: u64 = T_LEVEL | T_ENABLE | T_PERIODIC | T_SET_VALUE | T_32 | 0x3e00 | T_FSB;

#[derive(Clone, Copy, Debug, Default)]
struct Comparator {
    config: u64,
    compare: u64,
    period: u64,
    fsb: u64,
}

impl Comparator {
    fn route(self) -> u32 {
        (self.config >> 9) as u32 & 31
    }
    fn mask(self) -> u64 {
        if self.config & T_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }
}

impl Field for Comparator {
    fn to_value(&self) -> Value {
        [self.config, self.compare, self.period, self.fsb].to_value()
    }
    fn from_value(value: &Value) -> Option<Self> {
        let [config, compare, period, fsb] = Field::from_value(value)?;
        Some(Self { config, compare, period, fsb })
    }
}

/// The lines of an HPET.
pub struct HpetLines {
    /// One for each IOAPIC input.
    pub gsi: Vec<IrqLine>,
    /// Timers 0 and 1 in legacy replacement mode.
    pub legacy: [IrqLine; 2],
    /// High while legacy replacement is on.
    pub replaces: IrqLine,
}

/// The timer block.
pub struct Hpet {
    // Wiring.
    lines: HpetLines,
    messages: [MsiRoute; TIMERS],
    clock: Clock,
    timers: [Timer; TIMERS],
    // State.
    config: u64,
    status: u64,
    /// Counter while stopped; counter minus ticks of guest time while running.
    counter: u64,
    comparators: [Comparator; TIMERS],
}

impl Hpet {
    /// A timer block with these lines.
    pub fn new(lines: HpetLines, msi: Arc<dyn MsiSink>, clock: &Clock) -> DeviceCell<Self> {
        DeviceCell::new_cyclic(|me| {
            let mut hpet = Self {
                lines,
                messages: std::array::from_fn(|_| MsiRoute::new(msi.clone())),
                clock: clock.clone(),
                timers: [
                    clock.timer(me, |h: &mut Self, _| h.fired(0)),
                    clock.timer(me, |h: &mut Self, _| h.fired(1)),
                    clock.timer(me, |h: &mut Self, _| h.fired(2)),
                ],
                config: 0,
                status: 0,
                counter: 0,
                comparators: [Comparator::default(); TIMERS],
            };
            hpet.reset(ResetKind::PowerOn);
            hpet
        })
    }

    /// Maps the register block.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, memory: &AddressSpace) {
        let rules = AccessRules {
            valid: SizeRange::aligned(1, 8),
            implemented: SizeRange::aligned(4, 8),
            ..AccessRules::default()
        };
        let handler = cell_io(cell, Self::read, Self::write);
        map.transaction().add(memory.root(), BASE, &Region::io("hpet", LENGTH, handler, rules), 0);
    }

    fn running(&self) -> bool {
        self.config & ENABLE != 0
    }

    fn now(&self) -> u64 {
        if self.running() { (self.clock.now() / TICK).wrapping_add(self.counter) } else { self.counter }
    }

    fn arm(&mut self, n: usize) {
        let c = self.comparators[n];
        if !self.running() {
            self.timers[n].cancel();
            return;
        }
        let now = self.now() & c.mask();
        let ahead = (c.compare & c.mask()).wrapping_sub(now) & c.mask();
        // A comparator that matches right now has fired; its next match is a whole turn away.
        let ahead = if ahead == 0 { c.mask() } else { ahead };
        let base = self.clock.now() / TICK * TICK;
        self.timers[n].arm(base.saturating_add(ahead.saturating_mul(TICK)));
    }

    fn fired(&mut self, n: usize) {
        let now = self.now();
        let c = &mut self.comparators[n];
        if c.config & T_PERIODIC != 0 && c.period != 0 {
            // Matches that were missed altogether are skipped in one step, however short the period is.
            let behind = now.wrapping_sub(c.compare) & c.mask();
            let steps = behind / c.period + 1;
            c.compare = c.compare.wrapping_add(steps.wrapping_mul(c.period)) & c.mask();
        }
        self.interrupt(n);
        self.arm(n);
        // At most one interrupt per microsecond, so that a tiny period cannot keep the host busy.
        if let Some(at) = self.timers[n].deadline() {
            self.timers[n].arm(at.max(self.clock.now().saturating_add(1_000)));
        }
    }

    fn legacy(&self, n: usize) -> bool {
        n < 2 && self.config & LEGACY != 0
    }

    fn line(&self, n: usize) -> Option<&IrqLine> {
        if self.legacy(n) {
            return Some(&self.lines.legacy[n]);
        }
        self.lines.gsi.get(self.comparators[n].route() as usize)
    }

    fn interrupt(&mut self, n: usize) {
        let c = self.comparators[n];
        if c.config & T_LEVEL != 0 {
            self.status |= 1 << n;
        }
        if c.config & T_ENABLE == 0 {
            return;
        }
        if c.config & T_FSB != 0 && !self.legacy(n) {
            self.messages[n].update(c.fsb >> 32, c.fsb as u32);
            self.messages[n].fire();
            return;
        }
        if let Some(line) = self.line(n) {
            if c.config & T_LEVEL != 0 {
                line.set(true);
            } else {
                line.pulse();
            }
        }
    }

    /// Reads 4 or 8 bytes.
    pub fn read(&mut self, a: Access) -> u64 {
        let value = self.read_quad(a.offset & !7);
        if a.width.bytes() == 8 { value } else { value >> (a.offset & 4) * 8 & 0xffff_ffff }
    }

    fn read_quad(&self, offset: u64) -> u64 {
        match offset {
            // Period in femtoseconds, vendor 8086h, legacy capable, 64 bits, three timers, revision 1.
            0x000 => {
                (TICK * 1_000_000) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1
            }
            0x010 => self.config,
            0x020 => self.status,
            0x0f0 => self.now(),
            0x100..0x160 => {
                let c = &self.comparators[(offset as usize - 0x100) / 0x20];
                match offset & 0x18 {
                    0x00 => u64::from(ROUTES) << 32 | T_PERIODIC_CAP | T_64 | T_FSB_CAP | c.config,
                    0x08 => c.compare,
                    0x10 => c.fsb,
                    _ => 0,
                }
            }
            _ => {
                guest_error!("hpet: read of offset {offset:#x}, which does not exist");
                0
            }
        }
    }

    /// Writes 4 or 8 bytes.
    pub fn write(&mut self, a: Access, value: u64) {
        let offset = a.offset & !7;
        trace_event!(hpet_write, "offset {:#x} value {value:#x}", a.offset);
        let (mask, value) = match (a.width.bytes(), a.offset & 4) {
            (8, _) => (u64::MAX, value),
            (_, 0) => (0xffff_ffff, value & 0xffff_ffff),
            _ => (0xffff_ffff << 32, value << 32),
        };
        match offset {
            0x010 => self.write_config(self.config & !mask | value),
            0x020 => self.write_status(value),
            0x0f0 => {
                if self.running() {
                    guest_error!("hpet: counter written while it runs, ignored");
                } else {
                    self.counter = self.counter & !mask | value;
                }
            }
            0x100..0x160 => {
                self.write_comparator((offset as usize - 0x100) / 0x20, offset & 0x18, value, mask)
            }
            _ => guest_error!("hpet: write of offset {offset:#x} ignored"),
        }
    }

    fn write_config(&mut self, value: u64) {
        let value = value & (ENABLE | LEGACY);
        let counter = self.now();
        let was = self.running();
        self.config = value;
        self.counter = match (was, self.running()) {
            (_, true) => counter.wrapping_sub(self.clock.now() / TICK),
            (_, false) => counter,
        };
        self.lines.replaces.set(value & LEGACY != 0);
        if value & LEGACY == 0 {
            self.lines.legacy.iter().for_each(|line| line.set(false));
        }
        if was != self.running() {
            (0..TIMERS).for_each(|n| self.arm(n));
        }
    }

    fn write_status(&mut self, value: u64) {
        let cleared = self.status & value;
        self.status &= !value;
        for n in (0..TIMERS).filter(|n| cleared & 1 << n != 0) {
            if let Some(line) = self.line(n) {
                line.set(false);
            }
        }
    }

    fn write_comparator(&mut self, n: usize, register: u64, value: u64, mask: u64) {
        match register {
            0x00 => {
                if self.comparators[n].config & T_LEVEL != 0
                    && let Some(line) = self.line(n)
                {
                    line.set(false);
                }
                let c = &mut self.comparators[n];
                c.config = (c.config & !mask | value) & T_WRITABLE;
                // A route that the hardware does not have reads back as another.
                if ROUTES & 1 << c.route() == 0 && c.route() != 0 {
                    c.config &= !0x3e00;
                }
                if c.config & T_32 != 0 {
                    c.compare &= 0xffff_ffff;
                    c.period &= 0xffff_ffff;
                }
                if self.comparators[n].config & T_LEVEL != 0
                    && self.comparators[n].config & T_ENABLE != 0
                    && self.status & 1 << n != 0
                    && let Some(line) = self.line(n)
                {
                    line.set(true);
                }
            }
            0x08 => {
                let c = &mut self.comparators[n];
                let periodic = c.config & T_PERIODIC != 0;
                if !periodic || c.config & T_SET_VALUE != 0 {
                    c.compare = (c.compare & !mask | value) & c.mask();
                }
                if periodic {
                    c.period = (c.period & !mask | value) & c.mask();
                }
                // The switch is good for one write; a 64-bit value in two halves needs the second one too.
                if mask != 0xffff_ffff || c.config & T_32 != 0 {
                    c.config &= !T_SET_VALUE;
                }
            }
            0x10 => self.comparators[n].fsb = self.comparators[n].fsb & !mask | value,
            _ => {}
        }
        self.arm(n);
    }
}

impl Device for Hpet {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { lines, messages: _, clock: _, timers, config, status, counter, comparators } = self;
        (*config, *status, *counter) = (0, 0, 0);
        *comparators = [Comparator { compare: u64::MAX, ..Comparator::default() }; TIMERS];
        timers.iter().for_each(Timer::cancel);
        lines.replaces.set(false);
        lines.gsi.iter().chain(&lines.legacy).for_each(|line| line.set(false));
    }

    fn save(&self) -> Record {
        let Self { lines, messages: _, clock: _, timers, config, status, counter, comparators } = self;
        let gsi = lines.gsi.iter().enumerate().fold(0u32, |bits, (n, l)| bits | u32::from(l.level()) << n);
        Record::new(1)
            .with(1, [*config, *status, *counter])
            .with(2, *comparators)
            .with(3, timers.iter().map(Timer::state).collect::<Vec<_>>())
            .with(4, gsi)
            .with(5, [lines.legacy[0].level(), lines.legacy[1].level(), lines.replaces.level()])
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [config, status, counter] = r.get_if::<[u64; 3]>(1, |v| v[0] < 4 && v[1] < 1 << TIMERS)?;
        let comparators =
            r.get_if::<[Comparator; TIMERS]>(2, |cs| cs.iter().all(|c| c.config & !T_WRITABLE == 0))?;
        let timers = r.get::<[TimerState; TIMERS]>(3)?;
        let gsi = r.get::<u32>(4)?;
        let [legacy0, legacy1, replaces] = r.get(5)?;
        r.finish()?;
        (self.config, self.status, self.counter, self.comparators) = (config, status, counter, comparators);
        self.timers.iter().zip(timers).for_each(|(timer, state)| timer.restore(state));
        self.lines.gsi.iter().enumerate().for_each(|(n, l)| l.restore(n < 32 && gsi >> n & 1 != 0));
        self.lines.legacy[0].restore(legacy0);
        self.lines.legacy[1].restore(legacy1);
        self.lines.replaces.restore(replaces);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{LineLevels, Requester, Width};
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Messages(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Messages {
        fn send_msi(&self, address: u64, data: u32) {
            self.0.lock().push((address, data));
        }
    }

    struct Rig {
        clock: Clock,
        sink: Arc<LineLevels>,
        messages: Arc<Messages>,
        hpet: DeviceCell<Hpet>,
    }

    fn rig() -> Rig {
        let (clock, sink, messages) = (Clock::stepped(), LineLevels::new(), Arc::new(Messages::default()));
        let lines = HpetLines {
            gsi: (0..24).map(|n| sink.line(n)).collect(),
            legacy: [sink.line(40), sink.line(41)],
            replaces: sink.line(42),
        };
        let hpet = Hpet::new(lines, messages.clone(), &clock);
        Rig { clock, sink, messages, hpet }
    }

    impl Rig {
        fn set(&self, offset: u64, value: u64) {
            self.hpet.lock().write(Access { offset, width: Width::W8, from: Requester::Cpu(0) }, value);
        }
        fn get(&self, offset: u64) -> u64 {
            self.hpet.lock().read(Access { offset, width: Width::W8, from: Requester::Cpu(0) })
        }
    }

    #[test]
    fn the_counter_runs_at_100_mhz_while_enabled() {
        let rig = rig();
        assert_eq!(rig.get(0) >> 32, 10_000_000);
        rig.clock.advance(1000);
        assert_eq!(rig.get(0xf0), 0);
        rig.set(0x10, ENABLE);
        rig.clock.advance(1000);
        assert_eq!(rig.get(0xf0), 100);
        rig.set(0xf0, 5);
        assert_eq!(rig.get(0xf0), 100, "the running counter cannot be written");
        rig.set(0x10, 0);
        rig.set(0xf0, 5);
        rig.clock.advance(1000);
        assert_eq!(rig.get(0xf0), 5);
    }

    #[test]
    fn a_one_shot_comparator_fires_at_its_count() {
        let rig = rig();
        rig.set(0x10, ENABLE);
        rig.set(0x100, T_ENABLE | 20 << 9);
        rig.set(0x108, 500);
        rig.clock.advance(4990);
        assert!(rig.sink.take_rises().is_empty());
        rig.clock.advance(10);
        assert_eq!(rig.sink.take_rises(), [20]);
        rig.clock.advance(100_000);
        assert!(rig.sink.take_rises().is_empty());
    }

    #[test]
    fn a_periodic_comparator_goes_on_in_32_bit_mode() {
        let rig = rig();
        rig.set(0x10, ENABLE);
        rig.set(0x120, T_ENABLE | T_PERIODIC | T_SET_VALUE | T_32 | 16 << 9);
        rig.set(0x128, 1000);
        rig.clock.advance(50_000);
        assert_eq!(rig.sink.take_rises(), [16; 5]);
        assert_eq!(rig.get(0x128), 6000);
    }

    #[test]
    fn a_level_interrupt_holds_until_its_status_is_cleared() {
        let rig = rig();
        rig.set(0x10, ENABLE);
        rig.set(0x100, T_ENABLE | T_LEVEL | 20 << 9);
        rig.set(0x108, 10);
        rig.clock.advance(1000);
        assert!(rig.sink.level(20));
        assert_eq!(rig.get(0x20), 1);
        rig.set(0x20, 1);
        assert!(!rig.sink.level(20));
    }

    #[test]
    fn legacy_replacement_moves_timers_0_and_1() {
        let rig = rig();
        rig.set(0x10, ENABLE | LEGACY);
        assert!(rig.sink.level(42));
        rig.set(0x100, T_ENABLE);
        rig.set(0x108, 10);
        rig.sink.take_rises();
        rig.clock.advance(1000);
        assert_eq!(rig.sink.take_rises(), [40]);
        rig.set(0x10, 0);
        assert!(!rig.sink.level(42));
    }

    #[test]
    fn a_message_goes_out_instead_of_a_line() {
        let rig = rig();
        rig.set(0x10, ENABLE);
        rig.set(0x140, T_ENABLE | T_FSB);
        rig.set(0x150, 0xfee0_0000 << 32 | 0x41);
        rig.set(0x148, 10);
        rig.clock.advance(100);
        assert_eq!(*rig.messages.0.lock(), [(0xfee0_0000, 0x41)]);
    }

    #[test]
    fn a_route_that_does_not_exist_is_not_kept() {
        let rig = rig();
        rig.set(0x100, 1 << 9);
        assert_eq!(rig.get(0x100) >> 9 & 31, 0);
        rig.set(0x100, 11 << 9);
        assert_eq!(rig.get(0x100) >> 9 & 31, 11);
    }

    #[test]
    fn halves_of_the_registers_can_be_accessed() {
        let rig = rig();
        let half = |offset| Access { offset, width: Width::W4, from: Requester::Cpu(0) };
        rig.hpet.lock().write(half(0x108), 0x1111_2222);
        rig.hpet.lock().write(half(0x10c), 0x3333_4444);
        assert_eq!(rig.get(0x108), 0x3333_4444_1111_2222);
        assert_eq!(rig.hpet.lock().read(half(0x10c)), 0x3333_4444);
        assert_eq!(rig.hpet.lock().read(half(4)), 10_000_000);
    }

    #[test]
    fn a_saved_timer_block_goes_on() {
        let rig = rig();
        rig.set(0x10, ENABLE);
        rig.set(0x100, T_ENABLE | T_LEVEL | 20 << 9);
        rig.set(0x108, 500);
        rig.clock.advance(5);
        let (record, time) = (rig.hpet.lock().save(), rig.clock.save());
        let copy = super::tests::rig();
        copy.clock.load(&time).unwrap();
        copy.hpet.lock().load(&record).unwrap();
        assert_eq!(copy.hpet.lock().save(), record);
        copy.clock.advance(4995);
        assert!(copy.sink.level(20));
    }
}
