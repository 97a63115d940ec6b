//! A PS/2 mouse: IBM PS/2 Hardware Interface Technical Reference, "Mouse" (1988), with the wheel and five-button
//! extensions that Microsoft's IntelliMouse brought, chosen by magic sequences of sample rates.
//!
//! Counts from the host are counts of the mouse: the resolution is kept and told, not applied. Movement between two
//! packets is added up, bounded by what a packet can tell.

use std::collections::VecDeque;

use anura_vmcore::{LoadError, Record};

use super::Port;

/// Bytes of movement that wait to be sent.
const BUFFER: usize = 16;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const ERROR: u8 = 0xfc;

const SCALING: u8 = 0x10;
const ENABLED: u8 = 0x20;
const REMOTE: u8 = 0x40;

const ID_STANDARD: u8 = 0;
const ID_WHEEL: u8 = 3;
const ID_EXPLORER: u8 = 4;

/// Largest movement that is kept between packets.
const REACH: i32 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Command = 0,
    Resolution = 1,
    Rate = 2,
}

/// The mouse.
pub(super) struct Mouse {
    replies: VecDeque<u8>,
    buffer: VecDeque<u8>,
    last: u8,
    expect: Expect,
    /// `SCALING`, `ENABLED`, `REMOTE`, as the status tells them.
    flags: u8,
    wrap: bool,
    id: u8,
    resolution: u8,
    rate: u8,
    /// The last two rates that were set, for the magic sequences.
    rates: [u8; 2],
    buttons: u8,
    moved: [i32; 3],
    /// Something changed since the last packet.
    changed: bool,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            buffer: VecDeque::new(),
            last: 0,
            expect: Expect::Command,
            flags: 0,
            wrap: false,
            id: ID_STANDARD,
            resolution: 2,
            rate: 100,
            rates: [0; 2],
            buttons: 0,
            moved: [0; 3],
            changed: false,
        }
    }

    /// Power-on: the self test passes.
    pub(super) fn power_on(&mut self) {
        *self = Self::new();
        self.reply(&[0xaa, ID_STANDARD]);
    }

    /// Nanoseconds between two packets.
    pub(super) fn period(&self) -> u64 {
        1_000_000_000 / u64::from(self.rate.max(1))
    }

    /// Movement and buttons from the host. Bits of `buttons`: 0 left, 1 right, 2 middle, 3 and 4 the side buttons.
    pub(super) fn moved(&mut self, delta: [i32; 3], buttons: u8) {
        for (sum, d) in self.moved.iter_mut().zip(delta) {
            *sum = sum.saturating_add(d).clamp(-REACH, REACH);
        }
        self.changed |= delta != [0; 3] || buttons & 0x1f != self.buttons;
        self.buttons = buttons & 0x1f;
    }

    /// In stream mode, queues a packet if there is news and room; whether it did.
    pub(super) fn sample(&mut self) -> bool {
        let streams = self.flags & (ENABLED | REMOTE) == ENABLED && !self.wrap;
        if !streams || !self.changed || self.buffer.len() + 4 > BUFFER {
            return false;
        }
        let packet = self.packet(self.flags & SCALING != 0);
        self.buffer.extend(packet);
        true
    }

    fn packet(&mut self, scaled: bool) -> Vec<u8> {
        let scale = |v: i32| match v.abs() {
            _ if !scaled => v,
            0 | 1 => v,
            2 => v.signum(),
            3 => 3 * v.signum(),
            4 => 6 * v.signum(),
            5 => 9 * v.signum(),
            _ => 2 * v,
        };
        // Up is positive on the wire, and the host counts downwards.
        let (x, y) = (scale(self.moved[0]), scale(-self.moved[1]));
        let field = |v: i32| (v.clamp(-256, 255), !(-256..=255).contains(&v));
        let ((x, x_over), (y, y_over)) = (field(x), field(y));
        let mut packet = vec![
            self.buttons & 7
                | 0x08
                | u8::from(x < 0) << 4
                | u8::from(y < 0) << 5
                | u8::from(x_over) << 6
                | u8::from(y_over) << 7,
            x as u8,
            y as u8,
        ];
        (self.moved[0], self.moved[1]) = (0, 0);
        match self.id {
            ID_WHEEL => {
                let z = self.moved[2].clamp(-127, 127);
                self.moved[2] -= z;
                packet.push(z as u8);
            }
            ID_EXPLORER => {
                let z = self.moved[2].clamp(-8, 7);
                self.moved[2] -= z;
                packet.push(z as u8 & 0x0f | (self.buttons & 0x18) << 1);
            }
            _ => self.moved[2] = 0,
        }
        self.changed = self.moved != [0; 3];
        packet
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    fn forget_movement(&mut self) {
        self.buffer.clear();
        (self.moved, self.changed) = ([0; 3], false);
    }

    fn defaults(&mut self) {
        (self.flags, self.resolution, self.rate) = (0, 2, 100);
        self.forget_movement();
    }

    fn set_rate(&mut self, rate: u8) {
        match (self.rates, rate) {
            ([200, 100], 80) => self.id = ID_WHEEL,
            ([200, 200], 80) if self.id == ID_WHEEL => self.id = ID_EXPLORER,
            _ => {}
        }
        self.rates = [self.rates[1], rate];
        self.rate = rate.max(1);
    }

    fn command(&mut self, value: u8) {
        match value {
            0xe6 => self.flags &= !SCALING,
            0xe7 => self.flags |= SCALING,
            0xe8 => self.expect = Expect::Resolution,
            0xe9 => {
                let buttons = (self.buttons & 1) << 2 | (self.buttons & 4) >> 1 | (self.buttons & 2) >> 1;
                let status = [ACK, self.flags | buttons, self.resolution, self.rate];
                return self.reply(&status);
            }
            0xea => {
                self.flags &= !REMOTE;
                self.forget_movement();
            }
            0xeb => {
                // Data that is asked for is not scaled.
                let packet = self.packet(false);
                self.reply(&[ACK]);
                return self.reply(&packet);
            }
            0xec => self.wrap = false,
            0xee => {
                self.buffer.clear();
                self.wrap = true;
            }
            0xf0 => {
                self.flags |= REMOTE;
                self.forget_movement();
            }
            0xf2 => {
                let id = self.id;
                return self.reply(&[ACK, id]);
            }
            0xf3 => self.expect = Expect::Rate,
            0xf4 => {
                self.flags |= ENABLED;
                self.forget_movement();
            }
            0xf5 => {
                self.flags &= !ENABLED;
                self.forget_movement();
            }
            0xf6 => self.defaults(),
            0xfe => {
                let last = self.last;
                return self.reply(&[last]);
            }
            0xff => {
                *self = Self { buttons: self.buttons, ..Self::new() };
                return self.reply(&[ACK, 0xaa, ID_STANDARD]);
            }
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACK]);
    }

    pub(super) fn save(&self) -> Record {
        let Self {
            replies,
            buffer,
            last,
            expect,
            flags,
            wrap,
            id,
            resolution,
            rate,
            rates,
            buttons,
            moved,
            changed,
        } = self;
        Record::new(1)
            .with(1, replies.clone())
            .with(2, buffer.clone())
            .with(3, [*last, *expect as u8, *flags, *id, *resolution, *rate, rates[0], rates[1], *buttons])
            .with(4, [*wrap, *changed])
            .with(5, *moved)
    }

    pub(super) fn restore(from: &Record) -> Result<Self, LoadError> {
        let mut r = from.read(1)?;
        let replies = r.get_if::<VecDeque<u8>>(1, |q| q.len() <= BUFFER)?;
        let buffer = r.get_if::<VecDeque<u8>>(2, |q| q.len() <= BUFFER)?;
        let [last, expect, flags, id, resolution, rate, rate0, rate1, buttons] =
            r.get_if::<[u8; 9]>(3, |v| {
                v[2] & !(SCALING | ENABLED | REMOTE) == 0
                    && matches!(v[3], ID_STANDARD | ID_WHEEL | ID_EXPLORER)
                    && v[5] != 0
                    && v[8] < 0x20
            })?;
        let expect = match expect {
            0 => Expect::Command,
            1 => Expect::Resolution,
            2 => Expect::Rate,
            _ => return Err(LoadError::Invalid(3)),
        };
        let [wrap, changed] = r.get(4)?;
        let moved = r.get_if::<[i32; 3]>(5, |m| m.iter().all(|v| (-REACH..=REACH).contains(v)))?;
        r.finish()?;
        Ok(Self {
            replies,
            buffer,
            last,
            expect,
            flags,
            wrap,
            id,
            resolution,
            rate,
            rates: [rate0, rate1],
            buttons,
            moved,
            changed,
        })
    }
}

impl Port for Mouse {
    fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.buffer.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        Some(byte)
    }

    fn receive(&mut self, value: u8) {
        self.replies.clear();
        if self.wrap && !matches!(value, 0xec | 0xff) {
            return self.reply(&[value]);
        }
        let expect = std::mem::replace(&mut self.expect, Expect::Command);
        match expect {
            Expect::Command => return self.command(value),
            Expect::Resolution if value < 4 => self.resolution = value,
            Expect::Rate if value > 0 && value <= 200 => self.set_rate(value),
            _ => return self.reply(&[ERROR]),
        }
        self.reply(&[ACK]);
    }
}
