//! Intel 8254 interval timer, datasheet 231164-005, with the PC'"'"'s speaker port 61h (PIIX3 datasheet 290550, "NMISC").
//!
//! Counting is not simulated tick by tick: a counter remembers when it began to count and computes its value and
//! output when asked ("Mode Definitions"). Counter 0 drives IRQ 0, counter 1 toggles the refresh bit, counter 2
//! is gated by port 61h and drives the speaker.
//! Left out: sound. The speaker data bit can be read back and that is all.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{
    Clock, Device, DeviceCell, IrqLine, LoadError, Record, ResetKind, Timer, TimerState, guest_error,
    trace_event,
};

/// Rate of the clock input in hertz.
pub const FREQUENCY: u64 = 1_193_182;

const NS: u128 = 1_000_000_000;

fn ticks_of(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(FREQUENCY) / NS) as u64
}

fn ns_of(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NS).div_ceil(u128::from(FREQUENCY))).unwrap_or(u64::MAX)
}

/// Which bytes of a counter are accessed, by the control word'"'"'s RW field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    mode: u8,
    bcd: bool,
    bytes: Bytes,
    /// The count register: 1 to 65,536 (10,000 in BCD), 0 before the first load.
    count: u32,
    gate: bool,
    /// Tick of the load or trigger; `None` while the counter does not count.
    since: Option<u64>,
    /// Ticks that had passed when the gate stopped the counter.
    held: u64,
    null_count: bool,
    low_written: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            bytes: Bytes::LowThenHigh,
            count: 0,
            gate,
            since: None,
            held: 0,
            null_count: true,
            low_written: None,
            high_next: false,
            latched: None,
            status: None,
        }
    }

    /// Ticks since the load or trigger; `None` before it.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.since {
            Some(since) => Some(self.held + ticks_of(now).saturating_sub(since)),
            None => (self.held != 0).then_some(self.held),
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn out(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        let Some(d) = self.elapsed(now).filter(|_| count != 0) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => d >= count,
            2 => !self.gate || d % count != count - 1,
            3 => !self.gate || d % count < count.div_ceil(2),
            _ => d != count,
        }
    }

    /// Ticks, counted from the load, of the first change of the output after `d` ticks.
    fn next_change(&self, d: u64) -> Option<u64> {
        let count = u64::from(self.count);
        let phase = if self.periodic() { d % count } else { d };
        let next = match self.mode {
            0 | 1 => count,
            2 if phase < count - 1 => count - 1,
            3 if phase < count.div_ceil(2) => count.div_ceil(2),
            2 | 3 => count,
            _ if phase < count => count,
            _ => count + 1,
        };
        (next > phase).then(|| d - phase + next)
    }

    fn value(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let d = self.elapsed(now).unwrap_or(0);
        let raw = match self.mode {
            _ if count == 0 => 0,
            2 => count - d % count,
            3 => count - 2 * d % count & !1,
            _ => {
                let wrap = if self.bcd { 10_000 } else { 65_536 };
                (count + wrap - d % wrap) % wrap
            }
        };
        if self.bcd { to_bcd((raw % 10_000) as u16) } else { raw as u16 }
    }

    fn load(&mut self, value: u16, now: u64) {
        self.count = match (self.bcd, value) {
            (false, 0) => 65_536,
            (true, 0) => 10_000,
            (false, n) => u32::from(n),
            (true, n) => u32::from(from_bcd(n)).max(1),
        };
        // A count of 1 is illegal in the periodic modes; the chip is then of no use to anybody.
        if self.periodic() {
            self.count = self.count.max(2);
        }
        self.null_count = false;
        // In modes 1 and 5 counting waits for the gate; else it begins with the load.
        if !matches!(self.mode, 1 | 5) {
            self.held = 0;
            self.since = self.gate.then(|| ticks_of(now));
        }
    }

    fn set_gate(&mut self, level: bool, now: u64) {
        if level == self.gate {
            return;
        }
        match (self.mode, level) {
            (1 | 5, true) | (2 | 3, true) => {
                self.held = 0;
                self.since = (self.count != 0).then(|| ticks_of(now));
            }
            (0 | 4, true) => self.since = (self.count != 0).then(|| ticks_of(now)),
            (0 | 4, false) => {
                self.held = self.elapsed(now).unwrap_or(0);
                self.since = None;
            }
            (2 | 3, false) => (self.held, self.since) = (0, None),
            _ => {}
        }
        self.gate = level;
    }

    fn write(&mut self, value: u8, now: u64) -> bool {
        let value = match self.bytes {
            Bytes::Low => u16::from(value),
            Bytes::High => u16::from(value) << 8,
            Bytes::LowThenHigh => match self.low_written.take() {
                None => {
                    self.low_written = Some(value);
                    self.null_count = true;
                    // In mode 0 the first byte stops the count.
                    if self.mode == 0 {
                        (self.since, self.held) = (None, 0);
                    }
                    return false;
                }
                Some(low) => u16::from_le_bytes([low, value]),
            },
        };
        self.load(value, now);
        true
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.value(now));
        let [low, high] = value.to_le_bytes();
        let (byte, done) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::LowThenHigh if self.high_next => {
                self.high_next = false;
                (high, true)
            }
            Bytes::LowThenHigh => {
                self.high_next = true;
                (low, false)
            }
        };
        if done {
            self.latched = None;
        }
        byte
    }

    fn control(&mut self, value: u8) {
        self.bytes = match value >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowThenHigh,
        };
        self.mode = match value >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        self.null_count = true;
        (self.count, self.since, self.held) = (0, None, 0);
        (self.low_written, self.high_next, self.latched, self.status) = (None, false, None, None);
    }

    fn latch_status(&mut self, now: u64) {
        if self.status.is_none() {
            let out = u8::from(self.out(now)) << 7;
            let null = u8::from(self.null_count) << 6;
            self.status = Some(out | null | (self.bytes as u8) << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn save(&self) -> Record {
        let Self {
            mode,
            bcd,
            bytes,
            count,
            gate,
            since,
            held,
            null_count,
            low_written,
            high_next,
            latched,
            status,
        } = self;
        Record::new(1)
            .with(1, [*mode, *bytes as u8])
            .with(2, [*bcd, *gate, *null_count, *high_next])
            .with(3, *count)
            .with(4, *since)
            .with(5, *held)
            .with(6, *low_written)
            .with(7, *latched)
            .with(8, *status)
    }

    fn restore(from: &Record) -> Result<Self, LoadError> {
        let mut r = from.read(1)?;
        let [mode, bytes] = r.get_if::<[u8; 2]>(1, |v| v[0] < 6)?;
        let bytes = match bytes {
            1 => Bytes::Low,
            2 => Bytes::High,
            3 => Bytes::LowThenHigh,
            _ => return Err(LoadError::Invalid(1)),
        };
        let [bcd, gate, null_count, high_next] = r.get(2)?;
        let lowest = if matches!(mode, 2 | 3) { 2 } else { 1 };
        let counter = Self {
            mode,
            bcd,
            bytes,
            count: r.get_if(3, |n| *n == 0 || (lowest..=65_536).contains(n))?,
            gate,
            since: r.get_if(4, |t: &Option<u64>| t.is_none_or(|ns| ns < 1 << 62))?,
            held: r.get_if(5, |n| *n < 1 << 40)?,
            null_count,
            low_written: r.get(6)?,
            high_next,
            latched: r.get(7)?,
            status: r.get(8)?,
        };
        r.finish()?;
        Ok(counter)
    }
}

fn to_bcd(n: u16) -> u16 {
    n / 1000 << 12 | n / 100 % 10 << 8 | n / 10 % 10 << 4 | n % 10
}

fn from_bcd(n: u16) -> u16 {
    (n >> 12) * 1000 + (n >> 8 & 15) * 100 + (n >> 4 & 15) * 10 + (n & 15)
}

/// The timer chip and port 61h.
pub struct I8254 {
    // Wiring.
    irq0: IrqLine,
    clock: Clock,
    timer: Timer,
    // State.
    counters: [Counter; 3],
    /// Speaker data enable, port 61h bit 1.
    speaker: bool,
    /// The bits of port 61h that only keep their value: parity and channel check enables.
    nmi_enables: u8,
}

impl I8254 {
    /// A chip whose counter 0 drives `irq0`.
    pub fn new(irq0: IrqLine, clock: &Clock) -> DeviceCell<Self> {
        DeviceCell::new_cyclic(|me| Self {
            irq0,
            clock: clock.clone(),
            timer: clock.timer(me, Self::fired),
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: false,
            nmi_enables: 0,
        })
    }

    /// Maps ports 40h to 43h and 61h.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let mut tx = map.transaction();
        let pit = Region::io("pit", 4, cell_io(cell, Self::read, Self::write), AccessRules::BYTES);
        tx.add(ports.root(), 0x40, &pit, 0);
        let speaker = cell_io(cell, Self::read_61, Self::write_61);
        tx.add(ports.root(), 0x61, &Region::io("pcspk", 1, speaker, AccessRules::BYTES), 0);
    }

    /// The output was to change at the timer's deadline. In real time we may come so late that a pulse of mode 2,
    /// which is one tick long, has passed: the edge is made up for, as the PIC would have latched it.
    fn fired(&mut self, now: u64) {
        if self.counters[0].mode == 2 {
            self.irq0.set(false);
        }
        self.drive_output(now);
    }

    /// Drives IRQ 0 to the output's level and arms the timer for its next change.
    fn drive_output(&mut self, now: u64) {
        let counter = &self.counters[0];
        self.irq0.set(counter.out(now));
        let running = counter.since.zip(counter.elapsed(now)).filter(|_| counter.count != 0);
        let next = running.and_then(|(since, d)| {
            let ticks = counter.next_change(d)?;
            Some(ns_of(since.saturating_add(ticks - counter.held)))
        });
        match next {
            // Rounding up to nanoseconds may not bring us back to the same tick.
            Some(at) => self.timer.arm(at.max(now.saturating_add(1))),
            None => self.timer.cancel(),
        }
    }

    /// Reads ports 40h to 43h.
    pub fn read(&mut self, a: Access) -> u64 {
        let now = self.clock.now();
        match a.offset & 3 {
            3 => 0,
            n => u64::from(self.counters[n as usize].read(now)),
        }
    }

    /// Writes ports 40h to 43h.
    pub fn write(&mut self, a: Access, value: u64) {
        let (now, value) = (self.clock.now(), value as u8);
        trace_event!(pit_ioport_write, "channel {} value {value:#04x}", a.offset);
        match a.offset & 3 {
            3 => self.control(value, now),
            n => {
                let loaded = self.counters[n as usize].write(value, now);
                if n == 0 && (loaded || self.counters[0].mode == 0) {
                    self.drive_output(now);
                }
            }
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        let select = usize::from(value >> 6);
        if select == 3 {
            for (n, counter) in self.counters.iter_mut().enumerate() {
                if value & 2 << n == 0 {
                    continue;
                }
                if value & 0x20 == 0 && counter.latched.is_none() {
                    counter.latched = Some(counter.value(now));
                }
                if value & 0x10 == 0 {
                    counter.latch_status(now);
                }
            }
            if value & 1 != 0 {
                guest_error!("i8254: read-back command {value:#04x} with bit 0 set, bit ignored");
            }
        } else if value & 0x30 == 0 {
            let counter = &mut self.counters[select];
            if counter.latched.is_none() {
                counter.latched = Some(counter.value(now));
            }
        } else {
            self.counters[select].control(value);
            if select == 0 {
                self.drive_output(now);
            }
        }
    }

    /// Reads port 61h.
    pub fn read_61(&mut self, _a: Access) -> u64 {
        let now = self.clock.now();
        // The refresh bit toggles every 15 µs, half the period of counter 1 as firmware programs it.
        let refresh = now / 15_085 & 1 != 0;
        let gate = self.counters[2].gate;
        u64::from(gate)
            | u64::from(self.speaker) << 1
            | u64::from(self.nmi_enables)
            | u64::from(refresh) << 4
            | u64::from(self.counters[2].out(now)) << 5
    }

    /// Writes port 61h.
    pub fn write_61(&mut self, _a: Access, value: u64) {
        let now = self.clock.now();
        self.speaker = value & 2 != 0;
        self.nmi_enables = value as u8 & 0x0c;
        self.counters[2].set_gate(value & 1 != 0, now);
    }
}

impl Device for I8254 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { irq0: _, clock: _, timer: _, counters, speaker, nmi_enables } = self;
        *counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        (*speaker, *nmi_enables) = (false, 0);
        self.timer.cancel();
        self.irq0.set(false);
    }

    fn save(&self) -> Record {
        let Self { irq0, clock: _, timer, counters, speaker, nmi_enables } = self;
        Record::new(1)
            .with(1, counters.iter().map(Counter::save).collect::<Vec<_>>())
            .with(2, *speaker)
            .with(3, *nmi_enables)
            .with(4, timer.state())
            .with(5, irq0.level())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let counters = r.get::<[Record; 3]>(1)?;
        let speaker = r.get(2)?;
        let nmi_enables = r.get_if::<u8>(3, |v| v & !0x0c == 0)?;
        let timer = r.get::<TimerState>(4)?;
        let irq0 = r.get(5)?;
        r.finish()?;
        let [a, b, c] = counters;
        self.counters = [Counter::restore(&a)?, Counter::restore(&b)?, Counter::restore(&c)?];
        (self.speaker, self.nmi_enables) = (speaker, nmi_enables);
        self.irq0.restore(irq0);
        self.timer.restore(timer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{LineLevels, Requester, Width};
    use std::sync::Arc;

    struct Rig {
        clock: Clock,
        sink: Arc<LineLevels>,
        pit: DeviceCell<I8254>,
    }

    fn rig() -> Rig {
        let (clock, sink) = (Clock::stepped(), LineLevels::new());
        let pit = I8254::new(sink.line(0), &clock);
        pit.lock().reset(ResetKind::PowerOn);
        Rig { clock, sink, pit }
    }

    fn at(offset: u64) -> Access {
        Access { offset, width: Width::W1, from: Requester::Cpu(0) }
    }

    impl Rig {
        fn out(&self, port: u64, value: u64) {
            self.pit.lock().write(at(port), value);
        }
        fn inp(&self, port: u64) -> u64 {
            self.pit.lock().read(at(port))
        }
        fn count(&self, port: u64) -> u64 {
            self.inp(port) | self.inp(port) << 8
        }
        fn ticks(&self, n: u64) {
            // Round down first so that whole ticks add up.
            let now = self.clock.now();
            self.clock.advance(ns_of(ticks_of(now) + n).saturating_sub(now));
        }
    }

    #[test]
    fn mode_2_gives_one_edge_per_period() {
        let rig = rig();
        rig.out(3, 0x34);
        rig.out(0, 0x10);
        rig.out(0, 0x00);
        rig.sink.take_rises();
        rig.ticks(16 * 10);
        assert_eq!(rig.sink.take_rises().len(), 10);
        rig.ticks(4);
        assert_eq!(rig.count(0), 12);
    }

    #[test]
    fn a_late_timer_still_makes_the_edge_of_mode_2() {
        let rig = rig();
        rig.out(3, 0x34);
        rig.out(0, 0x10);
        rig.out(0, 0x00);
        rig.sink.take_rises();
        // Half a period behind the pulse.
        rig.pit.lock().fired(rig.clock.now() + ns_of(24));
        assert_eq!(rig.sink.take_rises().len(), 1);
    }

    #[test]
    fn mode_3_is_a_square_wave_and_counts_by_two() {
        let rig = rig();
        rig.out(3, 0x36);
        rig.out(0, 100);
        rig.out(0, 0);
        rig.ticks(10);
        assert!(rig.sink.level(0));
        assert_eq!(rig.count(0), 80);
        rig.ticks(45);
        assert!(!rig.sink.level(0));
        rig.ticks(50);
        assert!(rig.sink.level(0));
    }

    #[test]
    fn mode_0_goes_high_at_the_end_and_stays() {
        let rig = rig();
        rig.out(3, 0x30);
        assert!(!rig.sink.level(0));
        rig.out(0, 5);
        rig.out(0, 0);
        rig.ticks(4);
        assert!(!rig.sink.level(0));
        rig.ticks(1);
        assert!(rig.sink.level(0));
        rig.ticks(1000);
        assert!(rig.sink.level(0));
        assert_eq!(rig.clock.next_deadline(), None);
    }

    #[test]
    fn mode_4_is_a_strobe_of_one_tick() {
        let rig = rig();
        rig.out(3, 0x18);
        rig.out(0, 8);
        rig.ticks(7);
        assert!(rig.sink.level(0));
        rig.ticks(1);
        assert!(!rig.sink.level(0));
        rig.ticks(1);
        assert!(rig.sink.level(0));
    }

    #[test]
    fn counter_2_is_gated_by_port_61_and_shows_its_output_there() {
        let rig = rig();
        rig.out(3, 0xb0);
        rig.out(2, 100);
        rig.out(2, 0);
        rig.ticks(200);
        assert_eq!(rig.pit.lock().read_61(at(0)) & 0x21, 0, "the gate is closed");
        rig.pit.lock().write_61(at(0), 1);
        rig.ticks(60);
        rig.pit.lock().write_61(at(0), 0);
        rig.ticks(500);
        assert_eq!(rig.count(2), 40, "the count stands while the gate is low");
        rig.pit.lock().write_61(at(0), 3);
        rig.ticks(40);
        assert_eq!(rig.pit.lock().read_61(at(0)) & 0x23, 0x23);
    }

    #[test]
    fn mode_1_is_triggered_by_the_gate() {
        let rig = rig();
        rig.out(3, 0xb2);
        rig.out(2, 10);
        rig.out(2, 0);
        assert_ne!(rig.pit.lock().read_61(at(0)) & 0x20, 0);
        rig.pit.lock().write_61(at(0), 1);
        assert_eq!(rig.pit.lock().read_61(at(0)) & 0x20, 0);
        rig.ticks(10);
        assert_ne!(rig.pit.lock().read_61(at(0)) & 0x20, 0);
    }

    #[test]
    fn a_latched_count_stays_until_it_is_read() {
        let rig = rig();
        rig.out(3, 0x34);
        rig.out(0, 0);
        rig.out(0, 0x10);
        rig.ticks(16);
        rig.out(3, 0x00);
        rig.ticks(100);
        rig.out(3, 0x00);
        assert_eq!(rig.count(0), 0x1000 - 16);
        assert_eq!(rig.count(0), 0x1000 - 116);
    }

    #[test]
    fn read_back_latches_status_and_count_of_several_counters() {
        let rig = rig();
        rig.out(3, 0x34);
        assert_eq!(
            {
                rig.out(3, 0xe2);
                rig.inp(0)
            },
            0b1111_0100,
            "null count until the load"
        );
        rig.out(0, 10);
        rig.out(0, 0);
        rig.out(3, 0xc2);
        assert_eq!(rig.inp(0), 0b1011_0100);
        assert_eq!(rig.count(0), 10);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let rig = rig();
        rig.out(3, 0x35);
        rig.out(0, 0x00);
        rig.out(0, 0x10);
        rig.ticks(1);
        assert_eq!(rig.count(0), 0x0999);
    }

    #[test]
    fn single_byte_access_modes_use_one_byte() {
        let rig = rig();
        rig.out(3, 0x24);
        rig.out(0, 0x02);
        assert_eq!(rig.inp(0), 0x02);
        rig.out(3, 0x14);
        rig.out(0, 0x80);
        assert_eq!(rig.inp(0), 0x80);
    }

    #[test]
    fn a_saved_timer_goes_on_at_the_same_instants() {
        let rig = rig();
        rig.out(3, 0x34);
        rig.out(0, 0x10);
        rig.out(0, 0x00);
        rig.ticks(5);
        let (record, time) = (rig.pit.lock().save(), rig.clock.save());
        let copy = super::tests::rig();
        copy.clock.load(&time).unwrap();
        copy.pit.lock().load(&record).unwrap();
        assert_eq!(copy.pit.lock().save(), record);
        assert_eq!(copy.clock.next_deadline(), rig.clock.next_deadline());
        copy.ticks(32);
        assert_eq!(copy.sink.take_rises().len(), 2);
    }
}
