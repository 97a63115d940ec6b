//! Intel 82093AA I/O advanced programmable interrupt controller, datasheet 290566-001.
//!
//! A plain struct within the interrupt fabric. Messages go out through a closure, so that the chip knows no
//! APIC. Version 20h of the register set adds the EOI register at offset 40h.

use anura_vmcore::{LoadError, Record, Width, guest_error, trace_event};

use super::apic_bus::{DeliveryMode, Message, Trigger};

/// Number of inputs.
pub const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
const LOGICAL: u64 = 1 << 11;
/// Bits that a guest cannot write: delivery status, remote IRR, and the reserved middle.
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS | 0x00ff_ffff_fffe_0000;

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct Ioapic {
    id: u8,
    select: u8,
    lines: u32,
    irr: u32,
    entries: [u64; PINS],
}

impl Default for Ioapic {
    fn default() -> Self {
        Self { id: 0, select: 0, lines: 0, irr: 0, entries: [MASKED; PINS] }
    }
}

impl Ioapic {
    /// Back to the reset state; the levels of the inputs are the world's and stay.
    pub fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::default() };
    }

    /// Input `pin` now has this level.
    pub fn set_line(&mut self, pin: usize, level: bool, send: &mut dyn FnMut(Message)) {
        if pin >= PINS {
            return;
        }
        trace_event!(ioapic_set_irq, "pin {pin} level {level}");
        let bit = 1 << pin;
        let rose = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.entries[pin] & LEVEL != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rose && self.entries[pin] & MASKED == 0 {
            // Edges on a masked pin are lost (3.2.4, interrupt mask).
            self.irr |= bit;
        }
        self.service(pin, send);
    }

    /// Sends the message of `pin` if one is due.
    fn service(&mut self, pin: usize, send: &mut dyn FnMut(Message)) {
        let bit = 1 << pin;
        let entry = self.entries[pin];
        if self.irr & bit == 0 || entry & MASKED != 0 {
            return;
        }
        let trigger = if entry & LEVEL != 0 { Trigger::Level } else { Trigger::Edge };
        match trigger {
            Trigger::Level if entry & REMOTE_IRR != 0 => return,
            Trigger::Level => self.entries[pin] |= REMOTE_IRR,
            Trigger::Edge => self.irr &= !bit,
        }
        send(message_of(entry, trigger));
    }

    /// A local APIC broadcast the end of this vector.
    pub fn end_of_interrupt(&mut self, vector: u8, send: &mut dyn FnMut(Message)) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry & 0xff == u64::from(vector) && entry & LEVEL != 0 && entry & REMOTE_IRR != 0 {
                self.entries[pin] &= !REMOTE_IRR;
                self.service(pin, send);
            }
        }
    }

    /// Reads the register window; `offset` is within the 4 KiB page.
    pub fn read(&self, offset: u64, _width: Width) -> u32 {
        match offset & 0xff {
            0x00 => u32::from(self.select),
            0x10 => self.read_register(),
            _ => 0,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0x00 | 0x02 => u32::from(self.id) << 24,
            // Version 20h, last entry 23.
            0x01 => 0x0020 | (PINS as u32 - 1) << 16,
            n @ 0x10..=0x3f => {
                let entry = self.entries[usize::from(n - 0x10) / 2];
                if n & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            n => {
                guest_error!("ioapic82093: read of register {n:#04x}, which does not exist");
                0
            }
        }
    }

    /// Writes the register window.
    pub fn write(&mut self, offset: u64, value: u32, send: &mut dyn FnMut(Message)) {
        match offset & 0xff {
            0x00 => self.select = value as u8,
            0x10 => self.write_register(value, send),
            0x40 => self.end_of_interrupt(value as u8, send),
            other => guest_error!("ioapic82093: write at offset {other:#x} ignored"),
        }
    }

    fn write_register(&mut self, value: u32, send: &mut dyn FnMut(Message)) {
        match self.select {
            0x00 => self.id = (value >> 24) as u8 & 0x0f,
            0x01 | 0x02 => guest_error!("ioapic82093: write of a read-only register ignored"),
            n @ 0x10..=0x3f => {
                let pin = usize::from(n - 0x10) / 2;
                let old = self.entries[pin];
                let value = u64::from(value);
                let wanted =
                    if n & 1 == 0 { old & !0xffff_ffff | value } else { old & 0xffff_ffff | value << 32 };
                let mut entry = old & READ_ONLY | wanted & !READ_ONLY;
                if entry & LEVEL == 0 {
                    entry &= !REMOTE_IRR;
                } else {
                    // A line that already stands high counts as soon as the pin senses levels.
                    self.irr = self.irr & !(1 << pin) | self.lines & 1 << pin;
                }
                self.entries[pin] = entry;
                self.service(pin, send);
            }
            n => guest_error!("ioapic82093: write of register {n:#04x}, which does not exist"),
        }
    }

    /// What decides the messages of the pins.
    pub(super) fn routes(&self) -> [u64; PINS] {
        self.entries.map(|entry| entry & !(MASKED | REMOTE_IRR | DELIVERY_STATUS))
    }

    /// What each pin sends, or would if it were not masked.
    pub(super) fn messages(&self) -> impl Iterator<Item = Message> {
        self.entries.iter().map(|entry| {
            let trigger = if entry & LEVEL != 0 { Trigger::Level } else { Trigger::Edge };
            message_of(*entry, trigger)
        })
    }

    /// Text of `info ioapic`.
    pub fn describe(&self) -> String {
        let mut text = format!("ioapic0: ver=0x20 id=0x{:02x} sel=0x{:02x}", self.id, self.select);
        for (pin, entry) in self.entries.iter().enumerate() {
            text.push_str(&format!(
                "\n  pin {pin:<2} 0x{entry:016x} dest={:x} vec={:<3} {:<8} {:<5} {}{}",
                entry >> 56,
                entry & 0xff,
                if entry & LOGICAL != 0 { "logical" } else { "physical" },
                if entry & LEVEL != 0 { "level" } else { "edge" },
                if entry & MASKED != 0 { "masked" } else { "" },
                if entry & REMOTE_IRR != 0 { " remote-irr" } else { "" },
            ));
        }
        text.push_str(&format!("\n  IRR 0x{:06x}", self.irr));
        text
    }

    /// The chip's state.
    pub fn save(&self) -> Record {
        let Self { id, select, lines, irr, entries } = self;
        Record::new(1).with(1, *id).with(2, *select).with(3, *lines).with(4, *irr).with(5, *entries)
    }

    /// Takes over a saved state.
    pub fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let pins = |bits: &u32| *bits < 1 << PINS;
        let loaded = Self {
            id: r.get(1)?,
            select: r.get(2)?,
            lines: r.get_if(3, pins)?,
            irr: r.get_if(4, pins)?,
            entries: r.get(5)?,
        };
        r.finish()?;
        *self = loaded;
        Ok(())
    }
}

fn message_of(entry: u64, trigger: Trigger) -> Message {
    Message {
        destination: (entry >> 56) as u32,
        logical: entry & LOGICAL != 0,
        delivery: DeliveryMode::from_bits((entry >> 8) as u8 & 7),
        vector: entry as u8,
        trigger,
        assert: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(io: &mut Ioapic, pin: u8, low: u32, high: u32, sent: &mut Vec<Message>) {
        let mut send = |m| sent.push(m);
        io.write(0, u32::from(0x11 + pin * 2), &mut send);
        io.write(0x10, high, &mut send);
        io.write(0, u32::from(0x10 + pin * 2), &mut send);
        io.write(0x10, low, &mut send);
    }

    #[test]
    fn an_edge_is_sent_once_and_is_lost_while_masked() {
        let (mut io, mut sent) = (Ioapic::default(), Vec::new());
        io.set_line(4, true, &mut |m| sent.push(m));
        program(&mut io, 4, 0x0000_0834, 0x0300_0000, &mut sent);
        assert!(sent.is_empty(), "an edge that came while masked");
        io.set_line(4, false, &mut |m| sent.push(m));
        io.set_line(4, true, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].vector, sent[0].destination, sent[0].logical), (0x34, 3, true));
        io.set_line(4, true, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn a_level_is_sent_again_after_its_eoi_while_the_line_is_high() {
        let (mut io, mut sent) = (Ioapic::default(), Vec::new());
        program(&mut io, 10, 0x0000_8041, 0, &mut sent);
        io.set_line(10, true, &mut |m| sent.push(m));
        io.set_line(10, false, &mut |m| sent.push(m));
        io.set_line(10, true, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 1, "remote IRR holds it back");
        io.end_of_interrupt(0x41, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 2);
        io.set_line(10, false, &mut |m| sent.push(m));
        io.end_of_interrupt(0x41, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 2);
    }

    #[test]
    fn the_eoi_register_ends_a_level_interrupt() {
        let (mut io, mut sent) = (Ioapic::default(), Vec::new());
        program(&mut io, 9, 0x0000_8050, 0, &mut sent);
        io.set_line(9, true, &mut |m| sent.push(m));
        io.write(0x40, 0x50, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 2);
    }

    #[test]
    fn registers_answer_as_the_datasheet_says() {
        let mut io = Ioapic::default();
        let mut none = |_| {};
        io.write(0, 1, &mut none);
        assert_eq!(io.read(0x10, Width::W4), 0x0017_0020);
        io.write(0, 0, &mut none);
        io.write(0x10, 0xff00_0000, &mut none);
        assert_eq!(io.read(0x10, Width::W4), 0x0f00_0000);
        io.write(0, 2, &mut none);
        assert_eq!(io.read(0x10, Width::W4), 0x0f00_0000, "the arbitration id follows the id");
        io.write(0, 0x10, &mut none);
        io.write(0x10, 0xffff_ffff, &mut none);
        assert_eq!(io.read(0x10, Width::W4) & 0x5000, 0, "status and remote IRR are read only");
        assert_eq!(io.read(0, Width::W4), 0x10);
    }

    #[test]
    fn a_saved_chip_loads() {
        let (mut io, mut sent) = (Ioapic::default(), Vec::new());
        program(&mut io, 10, 0x0000_8041, 0, &mut sent);
        io.set_line(10, true, &mut |m| sent.push(m));
        let mut copy = Ioapic::default();
        copy.load(&io.save()).unwrap();
        assert_eq!(copy.save(), io.save());
    }
}
