//! A PS/2 keyboard: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device" (1988).
//!
//! Keys are named by their set 1 make code, with E0h above it for the grey keys (E048h is cursor up); E11Dh is Pause.
//! The keyboard itself speaks set 2 unless told otherwise; the controller translates. A key that is held repeats by
//! the keyboard's own typematic clock, so repeated reports of the host are dropped.

use std::collections::VecDeque;

use anura_vmcore::{LoadError, Record};

use super::{FROM_SET_2, Port};

/// Bytes that wait to be sent; what comes beyond is lost and marked by an overrun code.
const BUFFER: usize = 16;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const BAT_OK: u8 = 0xaa;

/// Pause, which has no break code.
pub const PAUSE: u16 = 0xe11d;
/// Print screen.
pub const PRINT_SCREEN: u16 = 0xe037;
const DEFAULT_RATE: u8 = 0x2b;

/// What set 3 keys may send, per key.
const TYPEMATIC: u8 = 1;
const BREAK: u8 = 2;

/// Set 3 codes of keys 01h to 58h of set 1.
#[rustfmt::skip]
const SET_3: [u8; 0x59] = [
    0x00, 0x08, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x11, 0x1c, 0x1b,
    0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5c, 0x1a, 0x22, 0x21, 0x2a,
    0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7e, 0x19, 0x29, 0x14, 0x07, 0x0f, 0x17, 0x1f, 0x27,
    0x2f, 0x37, 0x3f, 0x47, 0x4f, 0x76, 0x5f, 0x6c, 0x75, 0x7d, 0x84, 0x6b, 0x73, 0x74, 0x7c, 0x69,
    0x72, 0x7a, 0x70, 0x71, 0x57, 0x00, 0x13, 0x56, 0x5e,
];
/// Set 3 codes of the grey keys.
#[rustfmt::skip]
const SET_3_GREY: [(u8, u8); 17] = [
    (0x1c, 0x79), (0x1d, 0x58), (0x35, 0x77), (0x37, 0x57), (0x38, 0x39), (0x47, 0x6e), (0x48, 0x63), (0x49, 0x6f),
    (0x4b, 0x61), (0x4d, 0x6a), (0x4f, 0x65), (0x50, 0x60), (0x51, 0x6d), (0x52, 0x67), (0x53, 0x64), (0x5b, 0x8b),
    (0x5c, 0x8c),
];

/// The set 2 code that the controller translates to `code`.
fn to_set_2(code: u8) -> u8 {
    match code {
        // Keys whose set 2 code lies above the table.
        0x41 => 0x83,
        0x54 => 0x84,
        _ => FROM_SET_2.iter().position(|c| *c == code).unwrap_or(0) as u8,
    }
}

fn to_set_3(key: u16) -> u8 {
    let code = key as u8;
    match key >> 8 {
        0 => SET_3.get(usize::from(code)).copied().unwrap_or(0),
        0xe0 if code == 0x5d => 0x8d,
        0xe0 => SET_3_GREY.iter().find(|(c, _)| *c == code).map_or(0, |(_, s)| *s),
        _ => 0x62,
    }
}

/// What the next byte from the host is a parameter of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Command = 0,
    Leds = 1,
    Set = 2,
    Rate = 3,
    /// Keys of set 3 whose behaviour is set, until a command comes.
    Keys = 4,
}

/// The keyboard.
pub(super) struct Keyboard {
    /// Answers to commands, sent before anything else.
    replies: VecDeque<u8>,
    buffer: VecDeque<u8>,
    last: u8,
    expect: Expect,
    scanning: bool,
    set: u8,
    leds: u8,
    rate: u8,
    /// Behaviour of each set 3 key: `TYPEMATIC`, `BREAK`.
    behaviour: [u8; 256],
    /// Behaviour that a key command sets.
    setting: u8,
    /// Keys that are down, for shift states and repeats; at most as many as there are keys.
    down: Vec<u16>,
    /// The key that repeats.
    repeating: Option<u16>,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            buffer: VecDeque::new(),
            last: 0,
            expect: Expect::Command,
            scanning: true,
            set: 2,
            leds: 0,
            rate: DEFAULT_RATE,
            behaviour: [TYPEMATIC | BREAK; 256],
            setting: 0,
            down: Vec::new(),
            repeating: None,
        }
    }

    /// Power-on: the self test passes.
    pub(super) fn power_on(&mut self) {
        *self = Self::new();
        self.replies.push_back(BAT_OK);
    }

    /// Lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// Nanoseconds until a held key repeats for the first time.
    pub(super) fn delay(&self) -> u64 {
        (u64::from(self.rate >> 5 & 3) + 1) * 250_000_000
    }

    /// Nanoseconds between repeats: (8 + A) × 2^B × 1/240 s.
    pub(super) fn period(&self) -> u64 {
        (8 + u64::from(self.rate & 7)) * (1 << (self.rate >> 3 & 3)) * 1_000_000_000 / 240
    }

    /// Whether a key is held that repeats.
    pub(super) fn repeats(&self) -> bool {
        self.repeating.is_some()
    }

    /// The typematic clock ticked.
    pub(super) fn repeat(&mut self) {
        if let Some(key) = self.repeating {
            self.send_key(key, true);
        }
    }

    /// A key went down or up; whether the typematic clock begins anew.
    pub(super) fn key(&mut self, key: u16, down: bool) -> bool {
        let held = self.down.contains(&key);
        if held == down || !matches!(key >> 8, 0 | 0xe0) && key != PAUSE || key & 0x80 != 0 {
            return false;
        }
        self.down.retain(|k| *k != key);
        if down {
            self.down.push(key);
        }
        if !self.scanning {
            return false;
        }
        self.send_key(key, down);
        let typematic = self.set != 3 || self.behaviour[usize::from(to_set_3(key))] & TYPEMATIC != 0;
        if down {
            self.repeating = (typematic && key != PAUSE).then_some(key);
        } else if self.repeating == Some(key) {
            self.repeating = None;
        }
        down
    }

    fn holds(&self, keys: [u16; 2]) -> bool {
        self.down.iter().any(|k| keys.contains(k))
    }

    fn send_key(&mut self, key: u16, down: bool) {
        let code = key as u8;
        let mut out = Vec::with_capacity(8);
        let control = self.holds([0x1d, 0xe01d]);
        let alt = self.holds([0x38, 0xe038]);
        let plain = |out: &mut Vec<u8>, set: u8, grey: bool, code: u8, down: bool| {
            if grey {
                out.push(0xe0);
            }
            match (set, down) {
                (1, _) => out.push(code | if down { 0 } else { 0x80 }),
                (_, true) => out.push(to_set_2(code)),
                (_, false) => out.extend([0xf0, to_set_2(code)]),
            }
        };
        match (self.set, key) {
            (3, _) => {
                let code = to_set_3(key);
                if code == 0 || !down && self.behaviour[usize::from(code)] & BREAK == 0 {
                    return;
                }
                if !down {
                    out.push(0xf0);
                }
                out.push(code);
            }
            // With control this is the Break key.
            (set, PAUSE) if control => {
                if down {
                    plain(&mut out, set, true, 0x46, true);
                    plain(&mut out, set, true, 0x46, false);
                }
            }
            (1, PAUSE) if down => out.extend([0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]),
            (_, PAUSE) if down => out.extend([0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]),
            (_, PAUSE) => {}
            (set, PRINT_SCREEN) if alt => plain(&mut out, set, false, 0x54, down),
            (set, PRINT_SCREEN) if control => plain(&mut out, set, true, 0x37, down),
            (set, PRINT_SCREEN) if down => {
                plain(&mut out, set, true, 0x2a, true);
                plain(&mut out, set, true, 0x37, true);
            }
            (set, PRINT_SCREEN) => {
                plain(&mut out, set, true, 0x37, false);
                plain(&mut out, set, true, 0x2a, false);
            }
            (set, _) => {
                if set != 1 && to_set_2(code) == 0 {
                    return;
                }
                plain(&mut out, set, key >> 8 != 0, code, down);
            }
        }
        if self.buffer.len() + out.len() < BUFFER {
            self.buffer.extend(out);
        } else if self.buffer.len() < BUFFER && self.buffer.back().is_none_or(|b| !matches!(b, 0 | 0xff)) {
            // Overrun: 00h in sets 2 and 3, FFh in set 1.
            self.buffer.push_back(if self.set == 1 { 0xff } else { 0 });
        }
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    fn defaults(&mut self) {
        self.buffer.clear();
        self.repeating = None;
        self.rate = DEFAULT_RATE;
        self.behaviour = [TYPEMATIC | BREAK; 256];
        self.set = 2;
    }

    fn command(&mut self, value: u8) {
        match value {
            0xed => self.expect = Expect::Leds,
            0xee => return self.reply(&[0xee]),
            0xf0 => {
                self.buffer.clear();
                self.expect = Expect::Set;
            }
            0xf2 => return self.reply(&[ACK, 0xab, 0x83]),
            0xf3 => self.expect = Expect::Rate,
            0xf4 => {
                self.buffer.clear();
                self.scanning = true;
            }
            0xf5 | 0xf6 => {
                self.defaults();
                self.scanning = value == 0xf6;
            }
            0xf7..=0xfa => {
                let all = [TYPEMATIC, BREAK, 0, TYPEMATIC | BREAK][usize::from(value - 0xf7)];
                self.behaviour = [all; 256];
            }
            0xfb..=0xfd => {
                self.setting = [TYPEMATIC, BREAK, 0][usize::from(value - 0xfb)];
                self.expect = Expect::Keys;
                self.scanning = false;
            }
            0xfe => {
                let last = self.last;
                return self.reply(&[last]);
            }
            0xff => {
                let leds = 0;
                *self = Self { leds, down: std::mem::take(&mut self.down), ..Self::new() };
                return self.reply(&[ACK, BAT_OK]);
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
            scanning,
            set,
            leds,
            rate,
            behaviour,
            setting,
            down,
            repeating,
        } = self;
        Record::new(1)
            .with(1, replies.clone())
            .with(2, buffer.clone())
            .with(3, [*last, *expect as u8, *set, *leds, *rate, *setting])
            .with(4, *scanning)
            .with(5, anura_vmcore::Bytes(behaviour.to_vec()))
            .with(6, down.clone())
            .with(7, *repeating)
    }

    pub(super) fn restore(from: &Record) -> Result<Self, LoadError> {
        let mut r = from.read(1)?;
        let replies = r.get_if::<VecDeque<u8>>(1, |q| q.len() <= BUFFER)?;
        let buffer = r.get_if::<VecDeque<u8>>(2, |q| q.len() <= BUFFER)?;
        let [last, expect, set, leds, rate, setting] =
            r.get_if::<[u8; 6]>(3, |v| (1..=3).contains(&v[2]) && v[3] < 8 && v[4] < 0x80 && v[5] < 4)?;
        let expect = match expect {
            0 => Expect::Command,
            1 => Expect::Leds,
            2 => Expect::Set,
            3 => Expect::Rate,
            4 => Expect::Keys,
            _ => return Err(LoadError::Invalid(3)),
        };
        let keyboard = Self {
            replies,
            buffer,
            last,
            expect,
            scanning: r.get(4)?,
            set,
            leds,
            rate,
            behaviour: r.get::<anura_vmcore::Bytes>(5)?.0.try_into().map_err(|_| LoadError::Invalid(5))?,
            setting,
            down: r.get_if::<Vec<u16>>(6, |keys| keys.len() <= 257)?,
            repeating: r.get(7)?,
        };
        r.finish()?;
        Ok(keyboard)
    }
}

impl Port for Keyboard {
    fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.buffer.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        Some(byte)
    }

    fn receive(&mut self, value: u8) {
        // An answer that the host has not taken is lost when it says something new.
        self.replies.clear();
        let expect = std::mem::replace(&mut self.expect, Expect::Command);
        match expect {
            Expect::Leds if value < 8 => self.leds = value,
            Expect::Set if value == 0 => {
                let set = self.set;
                return self.reply(&[ACK, set]);
            }
            Expect::Set if value <= 3 => self.set = value,
            Expect::Rate if value < 0x80 => self.rate = value,
            Expect::Keys if value < 0xed => {
                self.behaviour[usize::from(value)] = self.setting;
                self.expect = Expect::Keys;
            }
            // Another command, or a parameter out of range, ends the command that waits.
            _ => return self.command(value),
        }
        self.reply(&[ACK]);
    }
}
