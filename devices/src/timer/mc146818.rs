//! Motorola MC146818 real-time clock and the PC'"'"'s CMOS memory behind ports 70h and 71h.
//!
//! Sources: MC146818 datasheet (registers A to D, update cycle, alarm, periodic rates), PIIX3 datasheet 290550
//! (port 70h bit 7 masks NMI, extended bank at 72h/73h). The calendar is kept as seconds since 1970 plus an
//! offset to guest time: registers are computed when read, so a stopped machine stops its clock.
//! Left out: the square-wave pin, which a PC does not connect, and daylight saving.

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{
    Bytes, Clock, Device, DeviceCell, IrqLine, LoadError, Record, ResetKind, Timer, TimerState, guest_error,
    trace_event,
};

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// Where the PC keeps the century.
pub const CENTURY: u8 = 0x32;

const A_UIP: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;
const D_VRT: u8 = 0x80;

const SECOND: u64 = 1_000_000_000;
/// UIP is set this long before an update (datasheet, "Update Cycle").
const UIP_LEAD: u64 = 244_000;

/// A date and time of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Calendar {
    /// From seconds since 1970 (days algorithm over 400-year eras that begin in March).
    fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let z = days + 719_468;
        let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Self {
            year: yoe + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    fn to_unix(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, yoe) = (year.div_euclid(400), year.rem_euclid(400));
        let month = i64::from(self.month);
        let mp = if month > 2 { month - 3 } else { month + 9 };
        let doy = (153 * mp + 2) / 5 + i64::from(self.day) - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        (era * 146_097 + doe - 719_468) * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// 1 is Sunday.
    fn day_of_week(self) -> u8 {
        ((self.to_unix().div_euclid(86_400) + 4).rem_euclid(7) + 1) as u8
    }
}

/// The clock chip with 128 bytes of CMOS and an extended bank of 128.
pub struct Mc146818 {
    // Wiring.
    irq: IrqLine,
    clock: Clock,
    periodic: Timer,
    second: Timer,
    /// Seconds since 1970 at guest time 0, as configured; a power-on takes the calendar from it.
    base: i64,
    // State.
    index: u8,
    extended_index: u8,
    nmi_masked: bool,
    /// The registers; those of the calendar are valid only while SET or the divider holds the clock.
    cmos: [u8; 128],
    extended: [u8; 128],
    /// Seconds since 1970 minus whole guest seconds, while the clock runs.
    offset: i64,
    /// Guest nanoseconds within the second at which updates happen.
    phase: u64,
}

impl Mc146818 {
    /// A chip whose calendar shows `base` (seconds since 1970) at guest time 0.
    pub fn new(irq: IrqLine, clock: &Clock, base: i64) -> DeviceCell<Self> {
        // The range that the calendar arithmetic and a two-digit century can hold: years 0 to 9999.
        let base = base.clamp(-62_167_219_200, 253_402_300_799);
        DeviceCell::new_cyclic(|me| {
            let mut rtc = Self {
                irq,
                clock: clock.clone(),
                periodic: clock.timer(me, Self::periodic_fired),
                second: clock.timer(me, Self::second_passed),
                base,
                index: 0,
                extended_index: 0,
                nmi_masked: false,
                cmos: [0; 128],
                extended: [0; 128],
                offset: base,
                phase: 0,
            };
            rtc.cmos[usize::from(REG_A)] = 0x26;
            rtc.cmos[usize::from(REG_B)] = B_24H;
            rtc.cmos[usize::from(REG_D)] = D_VRT;
            rtc.cmos[usize::from(CENTURY)] = to_bcd((Calendar::from_unix(base).year / 100) as u8);
            rtc
        })
    }

    /// Maps ports 70h to 73h.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let handler = cell_io(cell, Self::read, Self::write);
        map.transaction().add(ports.root(), 0x70, &Region::io("rtc", 4, handler, AccessRules::BYTES), 0);
    }

    /// Sets a CMOS byte, as the board does before the guest starts.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        self.cmos[usize::from(index & 0x7f)] = value;
    }

    /// A CMOS byte as the guest would read it, without side effects.
    pub fn cmos(&self, index: u8) -> u8 {
        let index = index & 0x7f;
        if is_calendar(index) && self.running() {
            self.calendar_register(index)
        } else {
            self.cmos[usize::from(index)]
        }
    }

    /// Whether NMI is masked by bit 7 of port 70h.
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// The calendar'"'"'s time in seconds since 1970.
    pub fn unix_time(&self) -> i64 {
        let whole = self.clock.now().saturating_sub(self.phase) / SECOND;
        self.offset.saturating_add_unsigned(whole)
    }

    /// The divider runs and SET is clear.
    fn running(&self) -> bool {
        self.cmos[usize::from(REG_A)] & 0x60 == 0x20 && self.cmos[usize::from(REG_B)] & B_SET == 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.cmos[usize::from(REG_B)] & B_BINARY != 0 { value } else { to_bcd(value) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.cmos[usize::from(REG_B)] & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos[usize::from(REG_B)] & B_24H != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos[usize::from(REG_B)] & B_24H != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    fn calendar_register(&self, index: u8) -> u8 {
        let now = Calendar::from_unix(self.unix_time());
        match index {
            SECONDS => self.encode(now.second),
            MINUTES => self.encode(now.minute),
            HOURS => self.encode_hour(now.hour),
            DAY_OF_WEEK => self.encode(now.day_of_week()),
            DAY => self.encode(now.day),
            MONTH => self.encode(now.month),
            YEAR => self.encode(now.year.rem_euclid(100) as u8),
            // The century is in BCD whatever the data mode is: firmware and systems read it so.
            _ => to_bcd(now.year.div_euclid(100).rem_euclid(100) as u8),
        }
    }

    /// Copies the running calendar into the registers, before the clock is held.
    fn hold(&mut self) {
        for index in CALENDAR {
            self.cmos[usize::from(index)] = self.calendar_register(index);
        }
    }

    /// Lets the clock run on from what the registers hold; the divider chain starts anew.
    fn release(&mut self) {
        let reg = |index: u8| self.decode(self.cmos[usize::from(index)]);
        let century = self.cmos[usize::from(CENTURY)];
        let century = i64::from(century >> 4) * 10 + i64::from(century & 15);
        let calendar = Calendar {
            year: century * 100 + i64::from(reg(YEAR)),
            month: reg(MONTH).clamp(1, 12),
            day: reg(DAY).clamp(1, 31),
            hour: self.decode_hour(self.cmos[usize::from(HOURS)]).min(23),
            minute: reg(MINUTES).min(59),
            second: reg(SECONDS).min(59),
        };
        let now = self.clock.now();
        self.phase = now % SECOND;
        self.offset = calendar.to_unix() - (now / SECOND) as i64;
        self.arm_second();
    }

    /// Arms the update of each second, if anybody would notice it.
    fn arm_second(&mut self) {
        let b = self.cmos[usize::from(REG_B)];
        // UF and AF are set whether or not their interrupts are on, so a poller must find them.
        let seen = self.cmos[usize::from(REG_C)] & (C_UF | C_AF) == C_UF | C_AF;
        if !self.running() || seen && b & (B_UIE | B_AIE) == 0 {
            self.second.cancel();
            return;
        }
        let now = self.clock.now();
        let since = now.saturating_sub(self.phase) % SECOND;
        self.second.arm(now + (SECOND - since));
    }

    fn second_passed(&mut self, _now: u64) {
        if self.running() {
            let mut flags = C_UF;
            if self.alarm_matches() {
                flags |= C_AF;
            }
            self.raise(flags);
        }
        self.arm_second();
    }

    fn alarm_matches(&self) -> bool {
        [(SECONDS_ALARM, SECONDS), (MINUTES_ALARM, MINUTES), (HOURS_ALARM, HOURS)].iter().all(
            |(alarm, time)| {
                let alarm = self.cmos[usize::from(*alarm)];
                // Two high bits set are the "don'"'"'t care" code.
                alarm & 0xc0 == 0xc0 || alarm == self.calendar_register(*time)
            },
        )
    }

    /// Nanoseconds between periodic interrupts, by the rate bits of register A.
    fn period(&self) -> Option<u64> {
        let a = self.cmos[usize::from(REG_A)];
        let rate = match (a & 0x0f, a & 0x70) {
            (0, _) | (_, 0x60 | 0x70) => return None,
            (n @ 1..=2, 0x20) => n + 7,
            (n, _) => n,
        };
        Some(SECOND * (1 << (rate - 1)) / 32_768)
    }

    fn arm_periodic(&mut self) {
        match self.period() {
            Some(period)
                if self.cmos[usize::from(REG_B)] & B_PIE != 0
                    || self.cmos[usize::from(REG_C)] & C_PF == 0 =>
            {
                let now = self.clock.now();
                self.periodic.arm(now - now % period + period);
            }
            _ => self.periodic.cancel(),
        }
    }

    fn periodic_fired(&mut self, _now: u64) {
        self.raise(C_PF);
        self.arm_periodic();
    }

    fn raise(&mut self, flags: u8) {
        self.cmos[usize::from(REG_C)] |= flags;
        self.drive_irq();
    }

    fn drive_irq(&mut self) {
        let c = &mut self.cmos[usize::from(REG_C)];
        *c &= !C_IRQF;
        let active = *c & self.cmos[usize::from(REG_B)] & (C_PF | C_AF | C_UF) != 0;
        if active {
            self.cmos[usize::from(REG_C)] |= C_IRQF;
        }
        self.irq.set(active);
    }

    fn update_in_progress(&self) -> bool {
        let since = self.clock.now().saturating_sub(self.phase) % SECOND;
        self.running() && since >= SECOND - UIP_LEAD
    }

    fn read_register(&mut self, index: u8) -> u8 {
        match index {
            REG_A => {
                let a = self.cmos[usize::from(REG_A)];
                if self.update_in_progress() { a | A_UIP } else { a }
            }
            REG_C => {
                let c = std::mem::take(&mut self.cmos[usize::from(REG_C)]);
                self.irq.set(false);
                self.arm_second();
                if self.periodic.deadline().is_none() {
                    self.arm_periodic();
                }
                c
            }
            _ => self.cmos(index),
        }
    }

    fn write_register(&mut self, index: u8, value: u8) {
        trace_event!(cmos_write, "index {index:#04x} value {value:#04x}");
        match index {
            REG_A => {
                let was = self.running();
                if was {
                    self.hold();
                }
                self.cmos[usize::from(REG_A)] = value & !A_UIP;
                self.after_control(was);
                self.arm_periodic();
            }
            REG_B => {
                let was = self.running();
                if was {
                    self.hold();
                }
                let mut b = value;
                // Setting SET clears UIE (datasheet, "Register B").
                if b & B_SET != 0 {
                    b &= !B_UIE;
                }
                self.cmos[usize::from(REG_B)] = b;
                self.after_control(was);
                self.drive_irq();
                self.arm_periodic();
                self.arm_second();
            }
            REG_C | REG_D => guest_error!("mc146818: write of read-only register {index:#04x} ignored"),
            _ if is_calendar(index) && self.running() => {
                // A write to a running calendar takes effect at once, with the rest unchanged.
                let phase = self.phase;
                self.hold();
                self.cmos[usize::from(index)] = value;
                self.release();
                let now = self.clock.now();
                if now % SECOND < phase {
                    self.offset += 1;
                }
                self.phase = phase;
                self.arm_second();
            }
            _ => self.cmos[usize::from(index)] = value,
        }
    }

    /// After a write of register A or B: a clock that was held and now runs takes its time from the registers.
    fn after_control(&mut self, was_running: bool) {
        if self.running() && !was_running {
            self.release();
        } else if !self.running() {
            self.second.cancel();
        }
    }

    /// Reads ports 70h to 73h.
    pub fn read(&mut self, a: Access) -> u64 {
        match a.offset & 3 {
            // The index ports are write only.
            0 | 2 => 0xff,
            1 => u64::from(self.read_register(self.index)),
            _ => u64::from(self.extended[usize::from(self.extended_index)]),
        }
    }

    /// Writes ports 70h to 73h.
    pub fn write(&mut self, a: Access, value: u64) {
        let value = value as u8;
        match a.offset & 3 {
            0 => (self.index, self.nmi_masked) = (value & 0x7f, value & 0x80 != 0),
            1 => self.write_register(self.index, value),
            2 => self.extended_index = value & 0x7f,
            _ => self.extended[usize::from(self.extended_index)] = value,
        }
    }
}

const CALENDAR: [u8; 8] = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY];

fn is_calendar(index: u8) -> bool {
    CALENDAR.contains(&index)
}

fn to_bcd(n: u8) -> u8 {
    (n / 10) << 4 | n % 10
}

impl Device for Mc146818 {
    fn reset(&mut self, kind: ResetKind) {
        if kind == ResetKind::PowerOn {
            self.offset = self.base.saturating_sub_unsigned(self.clock.now() / SECOND);
            self.phase = 0;
        }
        // The reset pin clears the interrupt enables and flags; the battery keeps everything else.
        (self.index, self.extended_index, self.nmi_masked) = (0, 0, false);
        self.cmos[usize::from(REG_B)] &= !(B_PIE | B_AIE | B_UIE | 0x08);
        self.cmos[usize::from(REG_C)] = 0;
        self.periodic.cancel();
        self.irq.set(false);
        self.arm_second();
        self.arm_periodic();
    }

    fn save(&self) -> Record {
        let Self {
            irq,
            clock: _,
            periodic,
            second,
            base: _,
            index,
            extended_index,
            nmi_masked,
            cmos,
            extended,
            offset,
            phase,
        } = self;
        Record::new(1)
            .with(1, [*index, *extended_index])
            .with(2, *nmi_masked)
            .with(3, Bytes(cmos.to_vec()))
            .with(4, Bytes(extended.to_vec()))
            .with(5, *offset)
            .with(6, *phase)
            .with(7, periodic.state())
            .with(8, second.state())
            .with(9, irq.level())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [index, extended_index] = r.get_if::<[u8; 2]>(1, |v| v.iter().all(|i| *i < 128))?;
        let nmi_masked = r.get(2)?;
        let cmos = r.get::<Bytes>(3)?.0.try_into().map_err(|_| LoadError::Invalid(3))?;
        let extended = r.get::<Bytes>(4)?.0.try_into().map_err(|_| LoadError::Invalid(4))?;
        let offset = r.get_if::<i64>(5, |s| (-(1 << 40)..1 << 40).contains(s))?;
        let phase = r.get_if::<u64>(6, |ns| *ns < SECOND)?;
        let (periodic, second) = (r.get::<TimerState>(7)?, r.get::<TimerState>(8)?);
        let irq = r.get(9)?;
        r.finish()?;
        (self.index, self.extended_index, self.nmi_masked) = (index, extended_index, nmi_masked);
        (self.cmos, self.extended, self.offset, self.phase) = (cmos, extended, offset, phase);
        self.periodic.restore(periodic);
        self.second.restore(second);
        self.irq.restore(irq);
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
        rtc: DeviceCell<Mc146818>,
    }

    /// 2020-02-29 23:59:58 UTC, a Saturday.
    const LEAP_DAY: i64 = 1_583_020_798;

    fn rig() -> Rig {
        let (clock, sink) = (Clock::stepped(), LineLevels::new());
        let rtc = Mc146818::new(sink.line(8), &clock, LEAP_DAY);
        rtc.lock().reset(ResetKind::PowerOn);
        Rig { clock, sink, rtc }
    }

    impl Rig {
        fn reg(&self, index: u8) -> u8 {
            let at = |offset| Access { offset, width: Width::W1, from: Requester::Cpu(0) };
            self.rtc.lock().write(at(0), u64::from(index));
            self.rtc.lock().read(at(1)) as u8
        }
        fn set(&self, index: u8, value: u8) {
            let at = |offset| Access { offset, width: Width::W1, from: Requester::Cpu(0) };
            self.rtc.lock().write(at(0), u64::from(index));
            self.rtc.lock().write(at(1), u64::from(value));
        }
        fn date(&self) -> [u8; 8] {
            CALENDAR.map(|index| self.reg(index))
        }
    }

    #[test]
    fn the_calendar_runs_over_a_leap_day() {
        let rig = rig();
        assert_eq!(rig.date(), [0x58, 0x59, 0x23, 0x07, 0x29, 0x02, 0x20, 0x20]);
        rig.clock.advance(2 * SECOND);
        assert_eq!(rig.date(), [0x00, 0x00, 0x00, 0x01, 0x01, 0x03, 0x20, 0x20]);
    }

    #[test]
    fn binary_and_twelve_hour_modes_change_the_encoding() {
        let rig = rig();
        rig.set(REG_B, B_BINARY);
        assert_eq!((rig.reg(HOURS), rig.reg(SECONDS)), (11 | 0x80, 58));
        rig.set(REG_B, 0);
        assert_eq!(rig.reg(HOURS), 0x11 | 0x80);
    }

    #[test]
    fn set_holds_the_clock_while_it_is_written() {
        let rig = rig();
        rig.set(REG_B, B_SET | B_24H);
        rig.clock.advance(5 * SECOND);
        assert_eq!(rig.reg(SECONDS), 0x58);
        for (index, value) in [
            (SECONDS, 0x10),
            (MINUTES, 0x20),
            (HOURS, 0x08),
            (DAY, 0x31),
            (MONTH, 0x12),
            (YEAR, 0x99),
            (CENTURY, 0x19),
        ] {
            rig.set(index, value);
        }
        rig.set(REG_B, B_24H);
        rig.clock.advance(SECOND);
        assert_eq!(rig.date(), [0x11, 0x20, 0x08, 0x06, 0x31, 0x12, 0x99, 0x19]);
    }

    #[test]
    fn a_write_to_the_running_calendar_changes_only_that_field() {
        let rig = rig();
        rig.clock.advance(SECOND / 2);
        rig.set(MINUTES, 0x30);
        assert_eq!(rig.date()[..3], [0x58, 0x30, 0x23]);
        rig.clock.advance(SECOND / 2);
        assert_eq!(rig.date()[..3], [0x59, 0x30, 0x23]);
    }

    #[test]
    fn update_alarm_and_periodic_interrupts_fire_and_reading_c_clears() {
        let rig = rig();
        rig.set(REG_B, B_24H | B_UIE);
        rig.clock.advance(SECOND);
        assert!(rig.sink.level(8));
        assert_eq!(rig.reg(REG_C) & (C_IRQF | C_UF), C_IRQF | C_UF);
        assert!(!rig.sink.level(8));
        for (index, value) in [(SECONDS_ALARM, 0x05), (MINUTES_ALARM, 0x00), (HOURS_ALARM, 0xff)] {
            rig.set(index, value);
        }
        rig.set(REG_B, B_24H | B_AIE);
        rig.clock.advance(5 * SECOND);
        assert!(!rig.sink.level(8));
        rig.clock.advance(SECOND);
        assert!(rig.sink.level(8));
        assert_ne!(rig.reg(REG_C) & C_AF, 0);
        rig.set(REG_B, B_24H | B_PIE);
        rig.sink.take_rises();
        for _ in 0..1024 {
            rig.clock.advance(976_563);
            rig.reg(REG_C);
        }
        assert_eq!(rig.sink.take_rises().len(), 1024);
    }

    #[test]
    fn the_update_in_progress_bit_leads_the_update() {
        let rig = rig();
        assert_eq!(rig.reg(REG_A) & A_UIP, 0);
        rig.clock.advance(SECOND - 100_000);
        assert_eq!(rig.reg(REG_A) & A_UIP, A_UIP);
        rig.clock.advance(100_000);
        assert_eq!(rig.reg(REG_A) & A_UIP, 0);
    }

    #[test]
    fn a_stopped_divider_stops_the_clock() {
        let rig = rig();
        rig.set(REG_A, 0x76);
        rig.clock.advance(10 * SECOND);
        assert_eq!(rig.reg(SECONDS), 0x58);
        rig.set(REG_A, 0x26);
        rig.clock.advance(SECOND);
        assert_eq!(rig.reg(SECONDS), 0x59);
    }

    #[test]
    fn memory_survives_a_system_reset_and_flags_do_not() {
        let rig = rig();
        rig.set(0x40, 0xaa);
        rig.set(REG_B, B_24H | B_UIE);
        rig.clock.advance(SECOND);
        rig.rtc.lock().reset(ResetKind::System);
        assert!(!rig.sink.level(8));
        assert_eq!((rig.reg(0x40), rig.reg(REG_B)), (0xaa, B_24H));
        assert_eq!(rig.reg(SECONDS), 0x59, "the clock runs on");
        assert_eq!(rig.reg(REG_D), D_VRT);
    }

    #[test]
    fn the_index_port_masks_nmi_and_the_extended_bank_is_separate() {
        let rig = rig();
        let at = |offset| Access { offset, width: Width::W1, from: Requester::Cpu(0) };
        let mut rtc = rig.rtc.lock();
        rtc.write(at(0), 0x8f);
        assert!(rtc.nmi_masked());
        rtc.write(at(2), 0x10);
        rtc.write(at(3), 0x77);
        assert_eq!(rtc.read(at(3)), 0x77);
        assert_eq!(rtc.cmos(0x10), 0);
    }

    #[test]
    fn a_saved_clock_goes_on() {
        let rig = rig();
        rig.set(REG_B, B_24H | B_UIE | B_PIE);
        rig.clock.advance(SECOND / 3);
        let (record, time) = (rig.rtc.lock().save(), rig.clock.save());
        let copy = super::tests::rig();
        copy.clock.load(&time).unwrap();
        copy.rtc.lock().load(&record).unwrap();
        assert_eq!(copy.rtc.lock().save(), record);
        copy.clock.advance(SECOND);
        rig.clock.advance(SECOND);
        assert_eq!(copy.date(), rig.date());
    }
}
