//! Intel 8042 keyboard controller with the PC AT's and PS/2's firmware: IBM PS/2 Hardware Interface Technical
//! Reference, "Keyboard and Auxiliary Device Controller" (1988).
//!
//! The output buffer holds one byte and says whose it is; a port's next byte comes when the last one was read, the
//! keyboard's before the mouse's. Translation to set 1 happens here, byte by byte, as the chip does it.
//! Left out: the controller's RAM beyond its command byte reads as zero, and the test inputs are not driven.

mod keyboard;
mod mouse;

use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{
    Clock, Device, DeviceCell, IrqLine, LoadError, MachineRequest, Record, Requests, ResetKind, Timer,
    TimerState, guest_error, trace_event,
};

use keyboard::Keyboard;
pub use keyboard::{PAUSE, PRINT_SCREEN};
use mouse::Mouse;

const STATUS_OUTPUT: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_MOUSE: u8 = 0x20;

const MODE_KEYBOARD_IRQ: u8 = 0x01;
const MODE_MOUSE_IRQ: u8 = 0x02;
const MODE_SYSTEM: u8 = 0x04;
const MODE_KEYBOARD_OFF: u8 = 0x10;
const MODE_MOUSE_OFF: u8 = 0x20;
const MODE_TRANSLATE: u8 = 0x40;
const MODE_WRITABLE: u8 = 0x7f;

const OUT_NOT_RESET: u8 = 0x01;
const OUT_A20: u8 = 0x02;
const OUT_KEYBOARD_FULL: u8 = 0x10;
const OUT_MOUSE_FULL: u8 = 0x20;
/// Keyboard data and clock, which are driven by the firmware.
const OUT_WIRES: u8 = 0xc0;

/// Set 2 codes 00h to 7Fh as set 1.
#[rustfmt::skip]
const FROM_SET_2: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// A device at one of the two ports.
trait Port {
    /// The next byte for the host, if there is one.
    fn send(&mut self) -> Option<u8>;
    /// A byte from the host.
    fn receive(&mut self, value: u8);
}

/// Where the byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Controller = 0,
    Keyboard = 1,
    Mouse = 2,
}

/// What the next byte at port 60h is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    KeyboardByte = 0,
    Mode = 1,
    OutputPort = 2,
    AsKeyboard = 3,
    AsMouse = 4,
    MouseByte = 5,
    /// A parameter of RAM that is not there.
    Nothing = 6,
}

/// The controller, the keyboard and the mouse.
pub struct I8042 {
    // Wiring.
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    requests: Requests,
    clock: Clock,
    typematic: Timer,
    sampling: Timer,
    // State.
    mode: u8,
    system: bool,
    a20: bool,
    command_last: bool,
    expect: Expect,
    output: Option<(u8, Source)>,
    /// A reply of the controller that waits for the output buffer.
    reply: Option<(u8, Source)>,
    /// What the data port reads as when nothing waits.
    last: u8,
    /// The break prefix was translated: the next code is a release.
    released: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl I8042 {
    /// A controller that drives IRQ 1 and IRQ 12.
    pub fn new(
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        requests: &Requests,
        clock: &Clock,
    ) -> DeviceCell<Self> {
        let cell = DeviceCell::new_cyclic(|me| Self {
            keyboard_irq,
            mouse_irq,
            requests: requests.clone(),
            clock: clock.clone(),
            typematic: clock.timer(me, |kbc: &mut Self, now| {
                kbc.keyboard.repeat();
                if kbc.keyboard.repeats() {
                    kbc.typematic.arm(now.saturating_add(kbc.keyboard.period()));
                }
                kbc.fill();
            }),
            sampling: clock.timer(me, |kbc: &mut Self, _| kbc.sample()),
            mode: 0,
            system: false,
            a20: true,
            command_last: false,
            expect: Expect::KeyboardByte,
            output: None,
            reply: None,
            last: 0,
            released: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        });
        cell.lock().reset(ResetKind::PowerOn);
        cell
    }

    /// Maps ports 60h and 64h.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace) {
        let data = cell_io(cell, Self::read_data, Self::write_data);
        let command = cell_io(cell, Self::read_status, Self::write_command);
        let mut tx = map.transaction();
        tx.add(ports.root(), 0x60, &Region::io("i8042-data", 1, data, AccessRules::BYTES), 0);
        tx.add(ports.root(), 0x64, &Region::io("i8042-cmd", 1, command, AccessRules::BYTES), 0);
    }

    /// A key went down or up: its set 1 code, with E0h above it for grey keys.
    pub fn key(&mut self, key: u16, down: bool) {
        if self.keyboard.key(key, down) {
            self.typematic.arm(self.clock.now().saturating_add(self.keyboard.delay()));
        }
        if !self.keyboard.repeats() {
            self.typematic.cancel();
        }
        self.fill();
    }

    /// The mouse moved right by `dx`, down by `dy`, its wheel by `dz` towards the user, and these buttons are held
    /// (bit 0 left, 1 right, 2 middle, 3 and 4 the side buttons).
    pub fn mouse_move(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        self.mouse.moved([dx, dy, dz], buttons);
        if self.sampling.deadline().is_none() {
            self.sample();
        }
    }

    /// Lights of the keyboard: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }

    fn sample(&mut self) {
        if self.mouse.sample() {
            self.sampling.arm(self.clock.now().saturating_add(self.mouse.period()));
        }
        self.fill();
    }

    /// A byte of the keyboard as the host sees it; `None` for a prefix that translation takes away.
    fn translate(&mut self, byte: u8) -> Option<u8> {
        if self.mode & MODE_TRANSLATE == 0 {
            self.released = false;
            return Some(byte);
        }
        if byte == 0xf0 {
            self.released = true;
            return None;
        }
        let code = match byte {
            0x83 => 0x41,
            0x84 => 0x54,
            0..=0x7f => FROM_SET_2[usize::from(byte)],
            _ => byte,
        };
        Some(code | if std::mem::take(&mut self.released) { 0x80 } else { 0 })
    }

    /// Fills an empty output buffer with what comes next, and drives the interrupts.
    fn fill(&mut self) {
        if self.output.is_none() {
            self.output = self.reply.take();
        }
        while self.output.is_none() && self.mode & MODE_KEYBOARD_OFF == 0 {
            let Some(byte) = self.keyboard.send() else { break };
            self.output = self.translate(byte).map(|code| (code, Source::Keyboard));
        }
        if self.output.is_none() && self.mode & MODE_MOUSE_OFF == 0 {
            self.output = self.mouse.send().map(|byte| (byte, Source::Mouse));
        }
        self.update_irqs();
    }

    fn update_irqs(&self) {
        let source = self.output.map(|(_, source)| source);
        let from_mouse = source == Some(Source::Mouse);
        self.keyboard_irq.set(source.is_some() && !from_mouse && self.mode & MODE_KEYBOARD_IRQ != 0);
        self.mouse_irq.set(from_mouse && self.mode & MODE_MOUSE_IRQ != 0);
    }

    fn answer(&mut self, value: u8, source: Source) {
        self.reply = Some((value, source));
        self.fill();
    }

    fn read_status(&mut self, _a: Access) -> u64 {
        let mut status = STATUS_UNLOCKED;
        match self.output {
            Some((_, Source::Mouse)) => status |= STATUS_OUTPUT | STATUS_MOUSE,
            Some(_) => status |= STATUS_OUTPUT,
            None => {}
        }
        if self.system {
            status |= STATUS_SYSTEM;
        }
        if self.command_last {
            status |= STATUS_COMMAND;
        }
        u64::from(status)
    }

    fn read_data(&mut self, _a: Access) -> u64 {
        if let Some((byte, _)) = self.output.take() {
            self.last = byte;
            // The line falls before the next byte raises it: an edge for each byte.
            self.update_irqs();
            if self.sampling.deadline().is_none() {
                self.sample();
            }
            self.fill();
        }
        trace_event!(pckbd_kbd_read_data, "value {:#04x}", self.last);
        u64::from(self.last)
    }

    fn write_data(&mut self, _a: Access, value: u64) {
        let value = value as u8;
        trace_event!(pckbd_kbd_write_data, "{:?} value {value:#04x}", self.expect);
        self.command_last = false;
        match std::mem::replace(&mut self.expect, Expect::KeyboardByte) {
            Expect::KeyboardByte => {
                // Sending to a port lets its clock run.
                self.mode &= !MODE_KEYBOARD_OFF;
                self.released = false;
                self.keyboard.receive(value);
                if !self.keyboard.repeats() {
                    self.typematic.cancel();
                }
            }
            Expect::MouseByte => {
                self.mode &= !MODE_MOUSE_OFF;
                self.mouse.receive(value);
            }
            Expect::Mode => {
                self.mode = value & MODE_WRITABLE;
                self.system = value & MODE_SYSTEM != 0;
            }
            Expect::OutputPort => self.write_output_port(value),
            Expect::AsKeyboard => self.reply = Some((value, Source::Controller)),
            Expect::AsMouse => self.reply = Some((value, Source::Mouse)),
            Expect::Nothing => {}
        }
        self.fill();
    }

    fn output_port(&self) -> u8 {
        let full = match self.output {
            Some((_, Source::Mouse)) => OUT_MOUSE_FULL,
            Some(_) => OUT_KEYBOARD_FULL,
            None => 0,
        };
        OUT_NOT_RESET | OUT_WIRES | full | if self.a20 { OUT_A20 } else { 0 }
    }

    fn write_output_port(&mut self, value: u8) {
        self.set_a20(value & OUT_A20 != 0);
        if value & OUT_NOT_RESET == 0 {
            self.requests.send(MachineRequest::Reset(ResetKind::System));
        }
    }

    fn set_a20(&mut self, on: bool) {
        if self.a20 != on {
            self.a20 = on;
            self.requests.send(MachineRequest::A20(on));
        }
    }

    fn write_command(&mut self, _a: Access, value: u64) {
        let value = value as u8;
        trace_event!(pckbd_kbd_write_command, "value {value:#04x}");
        self.command_last = true;
        self.expect = Expect::KeyboardByte;
        match value {
            0x20 => {
                let mode = self.mode;
                self.answer(mode, Source::Controller);
            }
            0x21..=0x3f => self.answer(0, Source::Controller),
            0x60 => self.expect = Expect::Mode,
            0x61..=0x7f => self.expect = Expect::Nothing,
            // No password is installed.
            0xa4 => self.answer(0xf1, Source::Controller),
            0xa7 => self.mode |= MODE_MOUSE_OFF,
            0xa8 => self.mode &= !MODE_MOUSE_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => self.answer(0, Source::Controller),
            0xaa => {
                self.system = true;
                self.mode |= MODE_SYSTEM;
                self.answer(0x55, Source::Controller);
            }
            0xad => self.mode |= MODE_KEYBOARD_OFF,
            0xae => self.mode &= !MODE_KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => self.answer(0x80, Source::Controller),
            0xd0 => {
                let port = self.output_port();
                self.answer(port, Source::Controller);
            }
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::AsKeyboard,
            0xd3 => self.expect = Expect::AsMouse,
            0xd4 => self.expect = Expect::MouseByte,
            0xdd => self.set_a20(false),
            0xdf => self.set_a20(true),
            0xe0 => self.answer(0, Source::Controller),
            0xf0..=0xff => {
                // Bits that are zero pulse their line low; only the reset is wired to anything that a pulse moves.
                if value & OUT_NOT_RESET == 0 {
                    self.requests.send(MachineRequest::Reset(ResetKind::System));
                }
            }
            _ => guest_error!("i8042: command {value:#04x} is not known, ignored"),
        }
        self.fill();
    }
}

impl Device for I8042 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            keyboard_irq: _,
            mouse_irq: _,
            requests: _,
            clock: _,
            typematic,
            sampling,
            mode,
            system,
            a20,
            command_last,
            expect,
            output,
            reply,
            last,
            released,
            keyboard,
            mouse,
        } = self;
        typematic.cancel();
        sampling.cancel();
        // As firmware finds the chip after its own start: both ports on, interrupts as the PC's firmware wants them.
        (*mode, *system) = (MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ, false);
        (*a20, *command_last, *expect) = (true, false, Expect::KeyboardByte);
        (*output, *reply, *last, *released) = (None, None, 0, false);
        keyboard.power_on();
        mouse.power_on();
        // The self tests' results are long gone when anybody looks: without firmware nobody read them.
        while keyboard.send().is_some() {}
        while mouse.send().is_some() {}
        self.fill();
    }

    fn save(&self) -> Record {
        let Self {
            keyboard_irq,
            mouse_irq,
            requests: _,
            clock: _,
            typematic,
            sampling,
            mode,
            system,
            a20,
            command_last,
            expect,
            output,
            reply,
            last,
            released,
            keyboard,
            mouse,
        } = self;
        let slot = |slot: &Option<(u8, Source)>| slot.map(|(byte, source)| [byte, source as u8]);
        Record::new(1)
            .with(1, [*mode, *expect as u8, *last])
            .with(2, [*system, *a20, *command_last, *released])
            .with(3, slot(output))
            .with(4, slot(reply))
            .with(5, keyboard.save())
            .with(6, mouse.save())
            .with(7, [typematic.state(), sampling.state()])
            .with(8, [keyboard_irq.level(), mouse_irq.level()])
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [mode, expect, last] = r.get_if::<[u8; 3]>(1, |v| v[0] & !MODE_WRITABLE == 0)?;
        let expect = match expect {
            0 => Expect::KeyboardByte,
            1 => Expect::Mode,
            2 => Expect::OutputPort,
            3 => Expect::AsKeyboard,
            4 => Expect::AsMouse,
            5 => Expect::MouseByte,
            6 => Expect::Nothing,
            _ => return Err(LoadError::Invalid(1)),
        };
        let [system, a20, command_last, released] = r.get(2)?;
        let slot = |number: u16, raw: Option<[u8; 2]>| {
            raw.map(|[byte, source]| match source {
                0 => Ok((byte, Source::Controller)),
                1 => Ok((byte, Source::Keyboard)),
                2 => Ok((byte, Source::Mouse)),
                _ => Err(LoadError::Invalid(number)),
            })
            .transpose()
        };
        let output = slot(3, r.get(3)?)?;
        let reply = slot(4, r.get(4)?)?;
        let keyboard = Keyboard::restore(&r.get(5)?)?;
        let mouse = Mouse::restore(&r.get(6)?)?;
        let [typematic, sampling] = r.get::<[TimerState; 2]>(7)?;
        let [keyboard_irq, mouse_irq] = r.get(8)?;
        r.finish()?;
        (self.mode, self.expect, self.last) = (mode, expect, last);
        (self.system, self.a20, self.command_last, self.released) = (system, a20, command_last, released);
        (self.output, self.reply) = (output, reply);
        (self.keyboard, self.mouse) = (keyboard, mouse);
        self.typematic.restore(typematic);
        self.sampling.restore(sampling);
        self.keyboard_irq.restore(keyboard_irq);
        self.mouse_irq.restore(mouse_irq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_vmcore::{LineLevels, Requester, Width};
    use std::sync::Arc;

    const A: Access = Access { offset: 0, width: Width::W1, from: Requester::Cpu(0) };

    struct Rig {
        clock: Clock,
        sink: Arc<LineLevels>,
        requests: Requests,
        kbc: DeviceCell<I8042>,
    }

    fn rig() -> Rig {
        let (clock, sink, requests) = (Clock::stepped(), LineLevels::new(), Requests::new());
        let kbc = I8042::new(sink.line(1), sink.line(12), &requests, &clock);
        Rig { clock, sink, requests, kbc }
    }

    impl Rig {
        fn command(&self, value: u8) {
            self.kbc.lock().write_command(A, u64::from(value));
        }
        fn data(&self, value: u8) {
            self.kbc.lock().write_data(A, u64::from(value));
        }
        /// To the mouse, whose earlier answers are dropped.
        fn mouse(&self, value: u8) {
            self.read();
            self.command(0xd4);
            self.data(value);
        }
        fn status(&self) -> u8 {
            self.kbc.lock().read_status(A) as u8
        }
        /// Everything that waits.
        fn read(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.status() & STATUS_OUTPUT != 0 {
                bytes.push(self.kbc.lock().read_data(A) as u8);
            }
            bytes
        }
        fn keys(&self, keys: &[(u16, bool)]) -> Vec<u8> {
            keys.iter().for_each(|(key, down)| self.kbc.lock().key(*key, *down));
            self.read()
        }
    }

    #[test]
    fn self_test_and_interface_tests_pass() {
        let rig = rig();
        assert_eq!(rig.status(), STATUS_UNLOCKED);
        rig.command(0xaa);
        assert_eq!(rig.status(), 0x1d);
        assert_eq!(rig.read(), [0x55]);
        for test in [0xa9, 0xab] {
            rig.command(test);
            assert_eq!(rig.read(), [0]);
        }
        rig.command(0xc0);
        assert_eq!(rig.read(), [0x80]);
    }

    #[test]
    fn the_command_byte_is_written_and_read_and_gates_the_interrupts() {
        let rig = rig();
        rig.command(0x60);
        rig.data(0x46);
        rig.command(0x20);
        assert!(!rig.sink.level(1));
        assert_eq!(rig.read(), [0x46]);
        rig.command(0x60);
        rig.data(0x45);
        rig.kbc.lock().key(0x1e, true);
        assert!(rig.sink.level(1) && !rig.sink.level(12));
        assert_eq!(rig.read(), [0x1e]);
        assert!(!rig.sink.level(1));
    }

    #[test]
    fn each_byte_of_a_sequence_is_an_edge_of_irq_1() {
        let rig = rig();
        rig.kbc.lock().key(0xe048, true);
        rig.read();
        assert_eq!(rig.sink.take_rises(), [1, 1]);
        rig.command(0xd3);
        rig.data(0x12);
        assert_eq!(rig.sink.take_rises(), [12]);
        assert_eq!(rig.status() & 0x21, 0x21);
        assert_eq!(rig.read(), [0x12]);
    }

    #[test]
    fn a_disabled_port_keeps_its_bytes() {
        let rig = rig();
        rig.command(0xad);
        rig.kbc.lock().key(0x1e, true);
        assert_eq!(rig.read(), []);
        rig.command(0xae);
        assert_eq!(rig.read(), [0x1c]);
        rig.command(0xad);
        rig.data(0xee);
        assert_eq!(rig.read(), [0xee], "sending to the keyboard enables it");
        rig.command(0xa7);
        rig.command(0x20);
        assert_eq!(rig.read()[0] & 0x20, 0x20);
        rig.mouse(0xf2);
        assert_eq!(rig.read(), [0xfa, 0]);
    }

    #[test]
    fn the_output_port_and_the_pulse_commands_drive_a20_and_reset() {
        let rig = rig();
        rig.command(0xd0);
        assert_eq!(rig.read(), [0xc3]);
        rig.command(0xd1);
        rig.data(0xdd);
        assert_eq!(rig.requests.take(), Some(MachineRequest::A20(false)));
        rig.command(0xdf);
        assert_eq!(rig.requests.take(), Some(MachineRequest::A20(true)));
        rig.command(0xf1);
        assert_eq!(rig.requests.take(), None);
        rig.command(0xfe);
        assert_eq!(rig.requests.take(), Some(MachineRequest::Reset(ResetKind::System)));
        rig.command(0xd1);
        rig.data(0x02);
        assert_eq!(rig.requests.take(), Some(MachineRequest::Reset(ResetKind::System)));
    }

    #[test]
    fn the_keyboard_answers_its_commands() {
        let rig = rig();
        rig.data(0xff);
        assert_eq!(rig.read(), [0xfa, 0xaa]);
        rig.data(0xf2);
        assert_eq!(rig.read(), [0xfa, 0xab, 0x83]);
        rig.data(0xed);
        rig.read();
        rig.data(0x05);
        assert_eq!((rig.read(), rig.kbc.lock().leds()), (vec![0xfa], 5));
        rig.data(0xee);
        assert_eq!(rig.read(), [0xee]);
        rig.data(0xf0);
        assert_eq!(rig.read(), [0xfa]);
        rig.data(0);
        assert_eq!(rig.read(), [0xfa, 2]);
        rig.data(0xf3);
        assert_eq!(rig.read(), [0xfa]);
        rig.data(0x20);
        assert_eq!(rig.read(), [0xfa]);
        rig.data(0x01);
        assert_eq!(rig.read(), [0xfe], "no such command");
        rig.data(0xf2);
        rig.kbc.lock().read_data(A);
        rig.data(0xfe);
        assert_eq!(rig.read()[1..], [0xab], "the last byte once more");
        rig.data(0xf5);
        assert_eq!(rig.keys(&[(0x1e, true)]), [0xfa]);
        rig.data(0xf4);
        assert_eq!(rig.keys(&[(0x1e, false)]), [0xfa, 0xf0, 0x1c]);
    }

    #[test]
    fn translation_gives_set_1_for_every_key() {
        let rig = rig();
        rig.command(0x60);
        rig.data(0x45);
        for code in 1..=0x53 {
            assert_eq!(rig.keys(&[(code, true), (code, false)]), [code as u8, code as u8 | 0x80]);
        }
        assert_eq!(rig.keys(&[(0xe01d, true), (0xe01d, false)]), [0xe0, 0x1d, 0xe0, 0x9d]);
        assert_eq!(rig.keys(&[(PAUSE, true), (PAUSE, false)]), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
        assert_eq!(rig.keys(&[(PRINT_SCREEN, true)]), [0xe0, 0x2a, 0xe0, 0x37]);
        assert_eq!(rig.keys(&[(PRINT_SCREEN, false)]), [0xe0, 0xb7, 0xe0, 0xaa]);
        assert_eq!(rig.keys(&[(0x38, true), (PRINT_SCREEN, true)]), [0x38, 0x54]);
    }

    #[test]
    fn sets_1_and_3_are_spoken_when_asked_for() {
        let rig = rig();
        rig.data(0xf0);
        rig.data(1);
        rig.read();
        assert_eq!(rig.keys(&[(0xe050, true), (0xe050, false)]), [0xe0, 0x50, 0xe0, 0xd0]);
        rig.data(0xf0);
        rig.data(3);
        rig.read();
        assert_eq!(rig.keys(&[(0xe050, true), (0xe050, false), (0x01, true)]), [0x60, 0xf0, 0x60, 0x08]);
        rig.data(0xf9);
        assert_eq!(rig.keys(&[(0x1e, true), (0x1e, false)]), [0xfa, 0x1c], "make codes only");
        for value in [0xfa, 0xfd, 0x1b, 0xf4] {
            rig.data(value);
            rig.read();
        }
        assert_eq!(rig.keys(&[(0x1e, true), (0x1e, false)]), [0x1c, 0xf0, 0x1c]);
    }

    #[test]
    fn a_held_key_repeats_after_its_delay_at_its_rate() {
        let rig = rig();
        rig.data(0xf3);
        rig.data(0x00);
        rig.read();
        rig.kbc.lock().key(0x1e, true);
        rig.kbc.lock().key(0x1e, true);
        assert_eq!(rig.read(), [0x1c]);
        rig.clock.advance(249_000_000);
        assert_eq!(rig.read(), []);
        rig.clock.advance(1_000_000);
        assert_eq!(rig.read(), [0x1c]);
        rig.clock.advance(33_333_334);
        assert_eq!(rig.read(), [0x1c]);
        rig.kbc.lock().key(0x1e, false);
        rig.clock.advance(1_000_000_000);
        assert_eq!(rig.read(), [0xf0, 0x1c]);
    }

    #[test]
    fn a_full_buffer_loses_keys_and_says_so() {
        let rig = rig();
        rig.command(0xad);
        for code in 2..0x30 {
            rig.kbc.lock().key(code, true);
        }
        rig.command(0xae);
        let bytes = rig.read();
        assert_eq!((bytes.len(), bytes[15]), (16, 0));
    }

    #[test]
    fn the_mouse_resets_identifies_and_tells_its_status() {
        let rig = rig();
        rig.mouse(0xff);
        assert_eq!(rig.read(), [0xfa, 0xaa, 0]);
        rig.mouse(0xf2);
        assert_eq!(rig.read(), [0xfa, 0]);
        for value in [0xe8, 3, 0xf3, 40, 0xe7, 0xf4] {
            rig.mouse(value);
            assert_eq!(rig.read(), [0xfa]);
        }
        rig.mouse(0xe9);
        assert_eq!(rig.read(), [0xfa, 0x30, 3, 40]);
        rig.mouse(0xe8);
        rig.mouse(9);
        assert_eq!(rig.read(), [0xfc]);
        rig.mouse(0xe1);
        assert_eq!(rig.read(), [0xfe]);
        rig.mouse(0xf6);
        rig.read();
        rig.mouse(0xe9);
        assert_eq!(rig.read(), [0xfa, 0, 2, 100]);
    }

    #[test]
    fn magic_sample_rates_choose_wheel_and_five_buttons() {
        let rig = rig();
        let rates = |rates: [u8; 3]| {
            rates.iter().for_each(|rate| {
                rig.mouse(0xf3);
                rig.mouse(*rate);
            });
            rig.mouse(0xf2);
            *rig.read().last().unwrap()
        };
        assert_eq!(rates([200, 100, 80]), 3);
        rig.mouse(0xf4);
        rig.read();
        rig.kbc.lock().mouse_move(1, 2, -1, 1);
        assert_eq!(rig.read(), [0x29, 1, 0xfe, 0xff]);
        rig.clock.advance(1_000_000_000);
        assert_eq!(rates([200, 200, 80]), 4);
        rig.kbc.lock().mouse_move(0, 0, 1, 0x18);
        assert_eq!(rig.read(), [0x08, 0, 0, 0x31]);
    }

    #[test]
    fn movement_is_sampled_scaled_and_added_up() {
        let rig = rig();
        rig.kbc.lock().mouse_move(5, 0, 0, 0);
        assert_eq!(rig.read(), [], "the stream is off");
        rig.mouse(0xf4);
        rig.mouse(0xe7);
        assert_eq!(rig.read(), [0xfa]);
        rig.kbc.lock().mouse_move(0, -4, 0, 0);
        assert_eq!(rig.read(), [0x08, 0, 6], "four counts count six, what moved before the stream is gone");
        rig.kbc.lock().mouse_move(-300, 0, 0, 0);
        rig.kbc.lock().mouse_move(10, 0, 0, 0);
        assert_eq!(rig.read(), []);
        rig.clock.advance(10_000_000);
        assert_eq!(rig.read(), [0x58, 0, 0], "beyond the range: sign and overflow");
        assert_eq!(rig.sink.take_rises().iter().filter(|n| **n == 12).count(), 8);
    }

    #[test]
    fn remote_mode_answers_only_when_asked_and_wrap_mode_echoes() {
        let rig = rig();
        for value in [0xf4, 0xf0] {
            rig.mouse(value);
        }
        rig.read();
        rig.kbc.lock().mouse_move(3, 3, 0, 4);
        assert_eq!(rig.read(), []);
        rig.mouse(0xeb);
        assert_eq!(rig.read(), [0xfa, 0x2c, 3, 0xfd]);
        rig.mouse(0xee);
        rig.mouse(0x77);
        assert_eq!(rig.read(), [0x77]);
        rig.mouse(0xec);
        rig.mouse(0xf2);
        assert_eq!(rig.read(), [0xfa, 0]);
    }

    #[test]
    fn a_saved_controller_goes_on_where_it_was() {
        let rig = rig();
        rig.mouse(0xf4);
        rig.kbc.lock().key(0xe050, true);
        rig.kbc.lock().mouse_move(3, 4, 0, 1);
        rig.kbc.lock().mouse_move(3, 4, 0, 1);
        rig.command(0xd4);
        let record = rig.kbc.lock().save();
        let copy = super::tests::rig();
        copy.kbc.lock().load(&record).unwrap();
        assert_eq!(copy.kbc.lock().save(), record);
        assert!(copy.sink.take_rises().is_empty());
        rig.data(0xf5);
        copy.data(0xf5);
        assert_eq!(rig.read(), copy.read());
    }
}
