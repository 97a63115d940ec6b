//! Intel 82078 floppy disk controller, datasheet 290475, in its AT register set with the PS/2 status registers.
//!
//! No drive is attached: the drive inputs are inactive, so no track 0 and no index pulse is ever seen. Recalibration
//! steps in vain and ends with equipment check, a seek ends where it was told to, and transfers end abnormally with
//! drive not ready and no address mark. A drive will take the place of `I82078::transfer`, with DMA channel 2.
//! Left out: tape drives, power-down (kept in its registers), the polling interrupt's delay after a reset.

use std::collections::VecDeque;

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{
    Clock, Device, DeviceCell, IrqLine, LoadError, Record, ResetKind, Timer, TimerState, guest_error,
    trace_event,
};

const DOR_DRIVE: u8 = 0x03;
const DOR_NOT_RESET: u8 = 0x04;
const DOR_GATE: u8 = 0x08;
const DSR_RESET: u8 = 0x80;

const MSR_BUSY: u8 = 0x10;
const MSR_TO_HOST: u8 = 0x40;
const MSR_READY: u8 = 0x80;

const ST0_NOT_READY: u8 = 0x08;
const ST0_EQUIPMENT: u8 = 0x10;
const ST0_SEEK_END: u8 = 0x20;
const ST0_ABNORMAL: u8 = 0x40;
const ST0_INVALID: u8 = 0x80;
const ST0_POLLED: u8 = 0xc0;
const ST1_NO_ADDRESS_MARK: u8 = 0x01;

/// Configure: FIFO off, as after a hardware reset.
const EFIFO: u8 = 0x20;
/// Configure: drive polling off.
const POLL_OFF: u8 = 0x10;
const VERSION: u8 = 0x90;
const PART_ID: u8 = 0x41;
/// Steps that a recalibration takes before it gives up.
const RECALIBRATE_STEPS: u64 = 79;
/// Longest command: restore with its parameters.
const LONGEST: usize = 17;

/// The commands of the datasheet's table, by their first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Read, write, scan and verify: eight parameters, seven results.
    Transfer,
    ReadId,
    Format,
    Recalibrate,
    Seek,
    RelativeSeek,
    SenseInterrupt,
    SenseDrive,
    Specify,
    Configure,
    DumpReg,
    Perpendicular,
    Lock,
    Version,
    PartId,
    PowerDown,
    Option,
    Save,
    Restore,
    DriveSpecification,
    Invalid,
}

impl Command {
    fn decode(byte: u8) -> Self {
        match byte {
            0x03 => Self::Specify,
            0x04 => Self::SenseDrive,
            0x07 => Self::Recalibrate,
            0x08 => Self::SenseInterrupt,
            0x0e => Self::DumpReg,
            0x0f => Self::Seek,
            0x10 => Self::Version,
            0x12 => Self::Perpendicular,
            0x13 => Self::Configure,
            0x14 | 0x94 => Self::Lock,
            0x17 => Self::PowerDown,
            0x18 => Self::PartId,
            0x2e => Self::Save,
            0x33 => Self::Option,
            0x4e => Self::Restore,
            0x8e => Self::DriveSpecification,
            0x8f | 0xcf => Self::RelativeSeek,
            0x0a | 0x4a => Self::ReadId,
            0x0d | 0x4d | 0xad | 0xed => Self::Format,
            // The upper three bits are multitrack, MFM and skip.
            _ => match byte & 0x1f {
                0x06 | 0x0c | 0x11 | 0x16 | 0x19 | 0x1d => Self::Transfer,
                0x05 | 0x09 if byte & 0x20 == 0 => Self::Transfer,
                0x02 if byte & 0x80 == 0 => Self::Transfer,
                _ => Self::Invalid,
            },
        }
    }

    /// Bytes of the whole command; drive specification ends itself.
    fn length(self) -> usize {
        match self {
            Self::Transfer => 9,
            Self::Format => 6,
            Self::Configure => 4,
            Self::Seek | Self::RelativeSeek | Self::Specify => 3,
            Self::ReadId
            | Self::Recalibrate
            | Self::SenseDrive
            | Self::Perpendicular
            | Self::PowerDown
            | Self::Option => 2,
            Self::Restore => LONGEST,
            Self::DriveSpecification => 6,
            _ => 1,
        }
    }
}

/// One drive position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// Present cylinder number, as the controller counts it.
    cylinder: u8,
    /// When the seek in progress ends.
    seeking: Option<u64>,
    /// ST0 that the seek in progress will end with.
    outcome: u8,
    /// ST0 of a finished seek that was not sensed yet.
    done: Option<u8>,
    /// What the drive specification command said.
    specification: u8,
}

/// The controller.
pub struct I82078 {
    // Wiring.
    irq: IrqLine,
    clock: Clock,
    timer: Timer,
    // State.
    dor: u8,
    tdr: u8,
    dsr: u8,
    positions: [Position; 4],
    command: Vec<u8>,
    result: VecDeque<u8>,
    interrupt: bool,
    /// Drives whose status after a reset was not sensed yet.
    polled: u8,
    specify: [u8; 2],
    end_of_track: u8,
    perpendicular: u8,
    configure: u8,
    precompensation: u8,
    lock: bool,
    power_down: u8,
    option: u8,
}

impl I82078 {
    /// A controller that drives IRQ 6.
    pub fn new(irq: IrqLine, clock: &Clock) -> DeviceCell<Self> {
        DeviceCell::new_cyclic(|me| Self {
            irq,
            clock: clock.clone(),
            timer: clock.timer(me, |fdc: &mut Self, now| fdc.seeks_end(now)),
            dor: 0,
            tdr: 0,
            dsr: 0x02,
            positions: [Position::default(); 4],
            command: Vec::new(),
            result: VecDeque::new(),
            interrupt: false,
            polled: 0,
            specify: [0; 2],
            end_of_track: 0,
            perpendicular: 0,
            configure: EFIFO,
            precompensation: 0,
            lock: false,
            power_down: 0,
            option: 0,
        })
    }

    /// Maps ports `base` to `base` + 5 and `base` + 7; the one between belongs to the disk controller.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, base: u16) {
        let low = cell_io(cell, Self::read, Self::write);
        let high =
            cell_io(cell, |f: &mut Self, _| u64::from(f.dir()), |f, _, value| f.write_ccr(value as u8));
        let mut tx = map.transaction();
        tx.add(ports.root(), u64::from(base), &Region::io("fdc", 6, low, AccessRules::BYTES), 0);
        tx.add(ports.root(), u64::from(base) + 7, &Region::io("fdc", 1, high, AccessRules::BYTES), 0);
    }

    fn in_reset(&self) -> bool {
        self.dor & DOR_NOT_RESET == 0
    }

    fn update_irq(&self) {
        self.irq.set(self.interrupt && self.dor & DOR_GATE != 0);
    }

    fn raise(&mut self) {
        self.interrupt = true;
        self.update_irq();
    }

    fn lower(&mut self) {
        self.interrupt = false;
        self.update_irq();
    }

    /// Reads ports 0 to 5 of the block.
    pub fn read(&mut self, a: Access) -> u64 {
        let value = match a.offset {
            0 => self.sra(),
            1 => self.srb(),
            2 => self.dor,
            3 => self.tdr,
            4 => self.msr(),
            _ => self.read_fifo(),
        };
        trace_event!(fdc_ioport_read, "register {} value {value:#04x}", a.offset);
        u64::from(value)
    }

    /// Writes ports 0 to 5 of the block.
    pub fn write(&mut self, a: Access, value: u64) {
        let value = value as u8;
        trace_event!(fdc_ioport_write, "register {} value {value:#04x}", a.offset);
        match a.offset {
            2 => self.write_dor(value),
            3 => self.tdr = value & 0x03,
            4 => {
                // The reset bit clears itself.
                self.dsr = value & !DSR_RESET;
                if value & DSR_RESET != 0 && !self.in_reset() {
                    self.soft_reset();
                    self.leave_reset();
                }
            }
            5 => self.write_fifo(value),
            // The status registers cannot be written.
            _ => {}
        }
    }

    /// Status register A: interrupt, then the drive's wires, which are active low and inactive.
    fn sra(&self) -> u8 {
        u8::from(self.interrupt) << 7 | 0x56
    }

    /// Status register B: drive 0 selected, motors; no data ever toggles.
    fn srb(&self) -> u8 {
        0xc0 | (self.dor & 1) << 5 | self.dor >> 4 & 0x03
    }

    fn msr(&self) -> u8 {
        if self.in_reset() {
            return 0;
        }
        let seeking = (0..4).filter(|n| self.positions[*n].seeking.is_some()).fold(0, |all, n| all | 1 << n);
        let busy = if !self.result.is_empty() {
            MSR_BUSY | MSR_TO_HOST
        } else if !self.command.is_empty() {
            MSR_BUSY
        } else {
            0
        };
        MSR_READY | busy | seeking
    }

    /// The disk change line of a drive that is not there is inactive.
    fn dir(&self) -> u8 {
        0
    }

    fn write_ccr(&mut self, value: u8) {
        self.dsr = self.dsr & !0x03 | value & 0x03;
    }

    fn write_dor(&mut self, value: u8) {
        let was = self.in_reset();
        self.dor = value;
        match (was, self.in_reset()) {
            (false, true) => self.soft_reset(),
            (true, false) => self.leave_reset(),
            _ => {}
        }
        self.update_irq();
    }

    /// What a software reset clears.
    fn soft_reset(&mut self) {
        for position in &mut self.positions {
            *position = Position { specification: position.specification, ..Position::default() };
        }
        self.timer.cancel();
        self.command.clear();
        self.result.clear();
        self.polled = 0;
        self.perpendicular &= 0x3c;
        if !self.lock {
            (self.configure, self.precompensation) = (EFIFO, 0);
        }
        self.lower();
    }

    /// After a reset the controller polls the drives and interrupts: all four changed their ready state.
    fn leave_reset(&mut self) {
        if self.configure & POLL_OFF == 0 {
            self.polled = 0x0f;
            self.raise();
        }
    }

    fn read_fifo(&mut self) -> u8 {
        let Some(byte) = self.result.pop_front() else { return 0 };
        self.lower();
        if self.result.is_empty() {
            self.seek_interrupt();
        }
        byte
    }

    /// A finished seek that nobody sensed yet interrupts when the result phase is over.
    fn seek_interrupt(&mut self) {
        if self.positions.iter().any(|p| p.done.is_some()) {
            self.raise();
        }
    }

    fn write_fifo(&mut self, value: u8) {
        if self.in_reset() || !self.result.is_empty() {
            guest_error!("i82078: {value:#04x} written to the FIFO in reset or result phase, ignored");
            return;
        }
        self.command.push(value);
        let command = Command::decode(self.command[0]);
        let ended = command == Command::DriveSpecification && self.command.len() > 1 && value & 0x80 != 0;
        if self.command.len() >= command.length() || ended {
            let bytes = std::mem::take(&mut self.command);
            self.execute(command, &bytes);
        }
    }

    fn respond(&mut self, bytes: &[u8]) {
        self.result.extend(bytes);
    }

    /// Executes a command with all its parameters.
    fn execute(&mut self, command: Command, bytes: &[u8]) {
        let byte = |n: usize| bytes.get(n).copied().unwrap_or(0);
        let drive = usize::from(byte(1) & 3);
        match command {
            Command::Transfer => {
                self.end_of_track = byte(6);
                self.transfer(byte(1), [byte(2), byte(3), byte(4), byte(5)]);
            }
            Command::ReadId => {
                let cylinder = self.positions[drive].cylinder;
                self.transfer(byte(1), [cylinder, byte(1) >> 2 & 1, 0, 0]);
            }
            Command::Format => {
                self.end_of_track = byte(3);
                self.transfer(byte(1), [0, byte(1) >> 2 & 1, 0, byte(2)]);
            }
            Command::Recalibrate => {
                self.positions[drive].cylinder = 0;
                let outcome = ST0_ABNORMAL | ST0_SEEK_END | ST0_EQUIPMENT;
                self.seek(drive, RECALIBRATE_STEPS, outcome);
            }
            Command::Seek => {
                let steps = self.positions[drive].cylinder.abs_diff(byte(2));
                self.positions[drive].cylinder = byte(2);
                self.seek(drive, u64::from(steps), ST0_SEEK_END | byte(1) & 4);
            }
            Command::RelativeSeek => {
                let at = &mut self.positions[drive].cylinder;
                let inwards = byte(0) & 0x40 != 0;
                *at = if inwards { at.wrapping_add(byte(2)) } else { at.wrapping_sub(byte(2)) };
                self.seek(drive, u64::from(byte(2)), ST0_SEEK_END | byte(1) & 4);
            }
            Command::SenseInterrupt => self.sense_interrupt(),
            // Two-sided and the constant bit; neither track 0 nor write protected.
            Command::SenseDrive => self.respond(&[0x28 | byte(1) & 0x07]),
            Command::Specify => self.specify = [byte(1), byte(2)],
            Command::Configure => {
                self.configure = byte(2) & 0x7f;
                self.precompensation = byte(3);
            }
            Command::DumpReg => {
                let registers = self.registers();
                self.respond(&registers);
            }
            Command::Perpendicular => {
                let drives = if byte(1) & 0x80 != 0 { byte(1) & 0x3c } else { self.perpendicular & 0x3c };
                self.perpendicular = drives | byte(1) & 0x03;
            }
            Command::Lock => {
                self.lock = byte(0) & 0x80 != 0;
                self.respond(&[u8::from(byte(0) & 0x80 != 0) << 4]);
            }
            Command::Version => self.respond(&[VERSION]),
            Command::PartId => self.respond(&[PART_ID]),
            Command::PowerDown => {
                self.power_down = byte(1) & 0x27;
                self.respond(&[byte(1) & 0x27]);
            }
            Command::Option => self.option = byte(1) & 0x01,
            Command::Save => {
                let [power, option] = [self.dsr & 0x7f, self.option];
                let registers = self.registers();
                self.respond(&[power, option]);
                self.respond(&registers);
                let rest = [self.power_down, 0, 0, 0];
                self.respond(&rest);
            }
            Command::Restore => self.restore_registers(bytes),
            Command::DriveSpecification => {
                for value in &bytes[1..] {
                    if value & 0x80 == 0 {
                        self.positions[usize::from(value >> 5 & 3)].specification = value & 0x1f;
                    } else if value & 0x40 == 0 {
                        let all = self.positions.map(|p| p.specification);
                        self.respond(&all);
                    }
                }
            }
            Command::Invalid => {
                guest_error!("i82078: command {:#04x} is not known", byte(0));
                self.respond(&[ST0_INVALID]);
            }
        }
    }

    /// What dumpreg tells.
    fn registers(&self) -> [u8; 10] {
        let [p0, p1, p2, p3] = self.positions.map(|p| p.cylinder);
        let lock = u8::from(self.lock) << 7 | self.perpendicular;
        let [rates, load] = self.specify;
        [p0, p1, p2, p3, rates, load, self.end_of_track, lock, self.configure, self.precompensation]
    }

    fn restore_registers(&mut self, bytes: &[u8]) {
        let byte = |n: usize| bytes.get(n).copied().unwrap_or(0);
        (self.dsr, self.option) = (byte(1) & 0x7f, byte(2) & 0x01);
        for (n, position) in self.positions.iter_mut().enumerate() {
            position.cylinder = byte(3 + n);
        }
        self.specify = [byte(7), byte(8)];
        self.end_of_track = byte(9);
        (self.lock, self.perpendicular) = (byte(10) & 0x80 != 0, byte(10) & 0x3f);
        (self.configure, self.precompensation) = (byte(11) & 0x7f, byte(12));
        self.power_down = byte(13) & 0x27;
    }

    /// A command that needs a medium: without a drive it ends abnormally, with the sector address it was given.
    fn transfer(&mut self, select: u8, address: [u8; 4]) {
        let st0 = ST0_ABNORMAL | ST0_NOT_READY | select & 0x07;
        self.respond(&[st0, ST1_NO_ADDRESS_MARK, 0]);
        self.respond(&address);
        self.raise();
    }

    /// Starts to step; one step takes 1 to 16 ms at 500 kbit/s, by the step rate.
    fn seek(&mut self, drive: usize, steps: u64, outcome: u8) {
        let rate = 16 - u64::from(self.specify[0] >> 4);
        let ends = self.clock.now().saturating_add(steps * rate * 1_000_000);
        let position = &mut self.positions[drive];
        (position.seeking, position.outcome, position.done) = (Some(ends), outcome | drive as u8, None);
        self.arm();
    }

    fn arm(&mut self) {
        match self.positions.iter().filter_map(|p| p.seeking).min() {
            Some(at) => self.timer.arm(at),
            None => self.timer.cancel(),
        }
    }

    fn seeks_end(&mut self, now: u64) {
        for position in &mut self.positions {
            if position.seeking.is_some_and(|at| at <= now) {
                position.seeking = None;
                position.done = Some(position.outcome);
            }
        }
        self.arm();
        if self.result.is_empty() {
            self.seek_interrupt();
        }
    }

    fn sense_interrupt(&mut self) {
        let pending = if self.polled != 0 {
            let drive = self.polled.trailing_zeros() as usize;
            self.polled &= self.polled - 1;
            Some((ST0_POLLED | drive as u8, drive))
        } else {
            let found = (0..4).find_map(|n| Some((self.positions[n].done?, n)));
            if let Some((_, drive)) = found {
                self.positions[drive].done = None;
            }
            found
        };
        match pending {
            Some((st0, drive)) => {
                let cylinder = self.positions[drive].cylinder;
                self.lower();
                self.respond(&[st0, cylinder]);
            }
            // Without an interrupt the command is invalid.
            None => self.respond(&[ST0_INVALID]),
        }
    }

    /// The drive that the digital output register selects, and whether its motor is on.
    pub fn selected(&self) -> (u8, bool) {
        let drive = self.dor & DOR_DRIVE;
        (drive, self.dor & 0x10 << drive != 0)
    }
}

impl Device for I82078 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            irq: _,
            clock: _,
            timer,
            dor,
            tdr,
            dsr,
            positions,
            command,
            result,
            interrupt,
            polled,
            specify,
            end_of_track,
            perpendicular,
            configure,
            precompensation,
            lock,
            power_down,
            option,
        } = self;
        timer.cancel();
        (*dor, *tdr, *dsr) = (0, 0, 0x02);
        *positions = [Position::default(); 4];
        command.clear();
        result.clear();
        (*interrupt, *polled, *lock) = (false, 0, false);
        (*specify, *end_of_track, *perpendicular) = ([0; 2], 0, 0);
        (*configure, *precompensation, *power_down, *option) = (EFIFO, 0, 0, 0);
        self.update_irq();
    }

    fn save(&self) -> Record {
        let Self {
            irq,
            clock: _,
            timer,
            dor,
            tdr,
            dsr,
            positions,
            command,
            result,
            interrupt,
            polled,
            specify,
            end_of_track,
            perpendicular,
            configure,
            precompensation,
            lock,
            power_down,
            option,
        } = self;
        Record::new(1)
            .with(1, [*dor, *tdr, *dsr, *polled, *end_of_track, *perpendicular])
            .with(2, [specify[0], specify[1], *configure, *precompensation, *power_down, *option])
            .with(3, [*interrupt, *lock, irq.level()])
            .with(4, command.clone())
            .with(5, result.clone())
            .with(6, positions.map(|p| [p.cylinder, p.outcome, p.specification]))
            .with(7, positions.map(|p| p.seeking))
            .with(8, positions.map(|p| p.done))
            .with(9, timer.state())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [dor, tdr, dsr, polled, end_of_track, perpendicular] =
            r.get_if::<[u8; 6]>(1, |v| v[1] < 4 && v[2] < 0x80 && v[3] < 16 && v[5] < 0x40)?;
        let [rates, load, configure, precompensation, power_down, option] = r.get(2)?;
        let [interrupt, lock, irq] = r.get(3)?;
        // A whole command would have been executed.
        let command = r.get_if::<Vec<u8>>(4, |c| {
            c.first().is_none_or(|first| c.len() < Command::decode(*first).length())
        })?;
        let result = r.get_if::<VecDeque<u8>>(5, |q| q.len() <= LONGEST)?;
        let fixed = r.get::<[[u8; 3]; 4]>(6)?;
        let seeking = r.get::<[Option<u64>; 4]>(7)?;
        let done = r.get::<[Option<u8>; 4]>(8)?;
        let timer = r.get::<TimerState>(9)?;
        r.finish()?;
        (self.dor, self.tdr, self.dsr, self.polled) = (dor, tdr, dsr, polled);
        (self.end_of_track, self.perpendicular) = (end_of_track, perpendicular);
        (self.specify, self.configure, self.precompensation) = ([rates, load], configure, precompensation);
        (self.power_down, self.option) = (power_down, option);
        (self.interrupt, self.lock, self.command, self.result) = (interrupt, lock, command, result);
        for (n, position) in self.positions.iter_mut().enumerate() {
            let [cylinder, outcome, specification] = fixed[n];
            *position = Position { cylinder, seeking: seeking[n], outcome, done: done[n], specification };
        }
        self.timer.restore(timer);
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
        fdc: DeviceCell<I82078>,
    }

    fn at(offset: u64) -> Access {
        Access { offset, width: Width::W1, from: Requester::Cpu(0) }
    }

    fn cold() -> Rig {
        let (clock, sink) = (Clock::stepped(), LineLevels::new());
        let fdc = I82078::new(sink.line(6), &clock);
        Rig { clock, sink, fdc }
    }

    /// Out of reset, with the four statuses sensed.
    fn rig() -> Rig {
        let rig = cold();
        rig.fdc.lock().write(at(2), 0x0c);
        (0..4).for_each(|_| drop(rig.command(&[8])));
        rig
    }

    impl Rig {
        fn read(&self, offset: u64) -> u8 {
            self.fdc.lock().read(at(offset)) as u8
        }
        fn command(&self, bytes: &[u8]) -> Vec<u8> {
            for byte in bytes {
                assert_eq!(self.read(4) & 0xc0, 0x80, "the controller takes bytes");
                self.fdc.lock().write(at(5), u64::from(*byte));
            }
            let mut result = Vec::new();
            while self.read(4) & 0x40 != 0 {
                result.push(self.read(5));
            }
            assert_eq!(self.read(4) & 0xd0, 0x80, "the command is over");
            result
        }
    }

    #[test]
    fn leaving_reset_interrupts_and_four_statuses_are_sensed() {
        let rig = cold();
        assert_eq!(rig.read(4), 0);
        rig.fdc.lock().write(at(2), 0x0c);
        assert!(rig.sink.level(6));
        for drive in 0..4 {
            assert_eq!(rig.command(&[8]), [0xc0 | drive, 0]);
            assert!(!rig.sink.level(6));
        }
        assert_eq!(rig.command(&[8]), [0x80]);
    }

    #[test]
    fn the_interrupt_is_gated_by_the_output_register() {
        let rig = cold();
        rig.fdc.lock().write(at(2), 0x04);
        assert!(!rig.sink.level(6));
        assert_eq!(rig.read(0) & 0x80, 0x80);
        rig.fdc.lock().write(at(2), 0x1d);
        assert!(rig.sink.level(6));
        assert_eq!((rig.read(2), rig.read(1), rig.fdc.lock().selected()), (0x1d, 0xe1, (1, false)));
    }

    #[test]
    fn recalibration_without_a_drive_ends_with_equipment_check() {
        let rig = rig();
        rig.command(&[3, 0xdf, 2]);
        rig.command(&[7, 1]);
        assert_eq!(rig.read(4), 0x82);
        rig.clock.advance(79 * 3_000_000 - 1);
        assert!(!rig.sink.level(6));
        rig.clock.advance(1);
        assert!(rig.sink.level(6));
        assert_eq!(rig.command(&[8]), [0x71, 0]);
    }

    #[test]
    fn seeks_overlap_and_are_sensed_each() {
        let rig = rig();
        rig.command(&[3, 0xf0, 0]);
        rig.command(&[0x0f, 0, 10]);
        rig.command(&[0x0f, 1, 20]);
        assert_eq!(rig.read(4), 0x83);
        rig.clock.advance(20_000_000);
        assert_eq!(rig.command(&[8]), [0x20, 10]);
        assert!(rig.sink.level(6), "the other one still waits");
        assert_eq!(rig.command(&[8]), [0x21, 20]);
        rig.command(&[0xcf, 1, 5]);
        rig.clock.advance(5_000_000);
        assert_eq!(rig.command(&[8]), [0x21, 25]);
    }

    #[test]
    fn transfers_end_not_ready_and_give_the_address_back() {
        let rig = rig();
        for first in [0xe6, 0xc5, 0xcc, 0xc9, 0x42, 0xd1, 0xd9, 0xdd, 0xd6] {
            let result = rig.command(&[first, 0x05, 1, 1, 3, 2, 18, 0x1b, 0xff]);
            assert_eq!(result, [0x4d, 1, 0, 1, 1, 3, 2], "{first:#x}");
        }
        assert_eq!(rig.command(&[0x4a, 2]).len(), 7);
        assert_eq!(rig.command(&[0x4d, 2, 2, 18, 0x54, 0xf6])[0], 0x4a);
        rig.fdc.lock().write(at(5), 0x4a);
        rig.fdc.lock().write(at(5), 0);
        assert!(rig.sink.level(6));
        rig.read(5);
        assert!(!rig.sink.level(6), "the first result byte ends the interrupt");
    }

    #[test]
    fn configuration_is_dumped_saved_restored_and_survives_resets_when_locked() {
        let rig = rig();
        rig.command(&[3, 0xaf, 0x1e]);
        rig.command(&[0x13, 0, 0x57, 0x30]);
        rig.command(&[0x12, 0x8f]);
        assert_eq!(rig.command(&[0x94]), [0x10]);
        let dump = rig.command(&[0x0e]);
        assert_eq!(dump, [0, 0, 0, 0, 0xaf, 0x1e, 0, 0x8f, 0x57, 0x30]);
        let saved = rig.command(&[0x2e]);
        assert_eq!((saved.len(), &saved[2..12]), (16, &dump[..]));
        rig.fdc.lock().write(at(4), 0x80);
        assert_eq!(rig.command(&[0x0e])[7..], [0x8c, 0x57, 0x30]);
        assert_eq!(rig.command(&[0x14]), [0]);
        rig.fdc.lock().write(at(4), 0x80);
        assert_eq!(rig.command(&[0x0e])[7..], [0x0c, 0x20, 0]);
        let restore: Vec<u8> = std::iter::once(0x4e).chain(saved).collect();
        rig.command(&restore);
        assert_eq!(rig.command(&[0x0e]), dump);
    }

    #[test]
    fn identity_status_and_unknown_commands_answer() {
        let rig = rig();
        assert_eq!(rig.command(&[0x10]), [0x90]);
        assert_eq!(rig.command(&[0x18]), [0x41]);
        assert_eq!(rig.command(&[4, 5]), [0x2d]);
        assert_eq!(rig.command(&[0x17, 0xff]), [0x27]);
        assert_eq!(rig.command(&[0x33, 1]), []);
        assert_eq!(rig.command(&[0x8e, 0x05, 0x3f, 0x80]), [5, 0x1f, 0, 0]);
        assert_eq!(rig.command(&[0x1f]), [0x80]);
    }

    #[test]
    fn a_saved_controller_goes_on_with_its_seek() {
        let rig = rig();
        rig.command(&[7, 0]);
        rig.fdc.lock().write(at(5), 0x0f);
        let record = rig.fdc.lock().save();
        let copy = super::tests::cold();
        copy.fdc.lock().load(&record).unwrap();
        assert_eq!(copy.fdc.lock().save(), record);
        copy.clock.advance(79 * 16_000_000);
        assert!(copy.sink.level(6));
        let mut hostile = record;
        hostile.set_value(4, anura_vmcore::Field::to_value(&vec![0x0fu8; 200]));
        assert!(copy.fdc.lock().load(&hostile).is_err());
    }
}
