//! Intel 8259A programmable interrupt controller, datasheet 231468-003.
//!
//! One chip with no bus and no lock: the fabric owns the cascaded pair and routes accesses to it. Level
//! sensing per input comes from the chipset's ELCR (PIIX3 datasheet 290550, "Interrupt Controller") or, for all
//! inputs, from ICW1.LTIM.
//! Left out: MCS-80/85 mode, which a PC cannot use; ICW4 without uPM is treated as 8086 mode.

use anura_vmcore::{LoadError, Record, guest_error};

/// Where the chip stands in its initialisation sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Idle,
    WantIcw2,
    WantIcw3,
    WantIcw4,
}

/// One 8259A.
#[derive(Clone, Debug)]
pub struct I8259 {
    // Wiring.
    name: &'static str,
    /// Inputs whose trigger mode the ELCR may change.
    elcr_mask: u8,
    // State.
    init: Init,
    irr: u8,
    imr: u8,
    isr: u8,
    /// Levels of the inputs.
    lines: u8,
    /// Level-sensed inputs.
    elcr: u8,
    /// Upper five bits of the vector.
    vector_base: u8,
    icw3: u8,
    /// The input of lowest priority.
    lowest: u8,
    level_all: bool,
    single: bool,
    icw4_needed: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

const ICW1: u8 = 0x10;
const ICW1_IC4: u8 = 0x01;
const ICW1_SNGL: u8 = 0x02;
const ICW1_LTIM: u8 = 0x08;
const ICW4_AEOI: u8 = 0x02;
const ICW4_SFNM: u8 = 0x10;
const OCW3: u8 = 0x08;

impl I8259 {
    /// A chip in its power-on state. `elcr_mask` says which inputs may be made level sensitive.
    pub fn new(name: &'static str, elcr_mask: u8) -> Self {
        Self {
            name,
            elcr_mask,
            init: Init::Idle,
            irr: 0,
            imr: 0,
            isr: 0,
            lines: 0,
            elcr: 0,
            vector_base: 0,
            icw3: 0,
            lowest: 7,
            level_all: false,
            single: false,
            icw4_needed: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Back to power-on state; the levels of the inputs are the world's and stay.
    pub fn reset(&mut self) {
        let lines = self.lines;
        *self = Self::new(self.name, self.elcr_mask);
        self.lines = lines;
    }

    fn level_sensed(&self) -> u8 {
        if self.level_all { 0xff } else { self.elcr }
    }

    /// Input `n` (0 to 7) now has this level.
    pub fn set_line(&mut self, n: u8, level: bool) {
        let bit = 1 << (n & 7);
        let rose = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.level_sensed() & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rose {
            self.irr |= bit;
        }
    }

    /// Rank of the first set bit, 0 the highest priority.
    fn rank(&self, bits: u8) -> Option<u8> {
        let first = self.lowest.wrapping_add(1) & 7;
        (0..8).find(|rank| bits & 1 << (first.wrapping_add(*rank) & 7) != 0)
    }

    fn input_of(&self, rank: u8) -> u8 {
        self.lowest.wrapping_add(1).wrapping_add(rank) & 7
    }

    /// The input that would be acknowledged now.
    fn pending(&self) -> Option<u8> {
        let rank = self.rank(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // In the special fully nested mode a slave may interrupt its own service.
        if self.special_fully_nested {
            in_service &= !self.icw3;
        }
        match self.rank(in_service) {
            Some(busy) if busy <= rank => None,
            _ => Some(self.input_of(rank)),
        }
    }

    /// Level of the INT output.
    pub fn int(&self) -> bool {
        self.init == Init::Idle && self.pending().is_some()
    }

    fn enter_service(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
        if self.level_sensed() & bit == 0 {
            self.irr &= !bit;
        }
    }

    /// INTA: the acknowledged input and its vector. With nothing pending the answer is the spurious IR7.
    pub fn acknowledge(&mut self) -> (u8, u8) {
        let input = match self.pending() {
            Some(input) => {
                self.enter_service(input);
                input
            }
            None => 7,
        };
        (input, self.vector_base | input)
    }

    /// Reads the port with A0 = `a0`.
    pub fn read(&mut self, a0: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending() {
                Some(input) => {
                    self.enter_service(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    /// Writes the port with A0 = `a0`.
    pub fn write(&mut self, a0: bool, value: u8) {
        match (a0, self.init) {
            (false, _) if value & ICW1 != 0 => self.icw1(value),
            (false, _) if value & OCW3 != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, Init::Idle) => self.imr = value,
            (true, Init::WantIcw2) => {
                self.vector_base = value & 0xf8;
                self.init = match (self.single, self.icw4_needed) {
                    (false, _) => Init::WantIcw3,
                    (true, true) => Init::WantIcw4,
                    (true, false) => Init::Idle,
                };
            }
            (true, Init::WantIcw3) => {
                self.icw3 = value;
                self.init = if self.icw4_needed { Init::WantIcw4 } else { Init::Idle };
            }
            (true, Init::WantIcw4) => {
                self.auto_eoi = value & ICW4_AEOI != 0;
                self.special_fully_nested = value & ICW4_SFNM != 0;
                self.init = Init::Idle;
            }
        }
    }

    fn icw1(&mut self, value: u8) {
        let (lines, elcr) = (self.lines, self.elcr);
        *self = Self::new(self.name, self.elcr_mask);
        self.elcr = elcr;
        self.level_all = value & ICW1_LTIM != 0;
        self.single = value & ICW1_SNGL != 0;
        self.icw4_needed = value & ICW1_IC4 != 0;
        self.init = Init::WantIcw2;
        // The edge detector is reset: an edge-triggered input must rise again, a level is seen at once.
        self.lines = lines;
        self.irr = lines & self.level_sensed();
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            command @ (0b001 | 0b101) => {
                let mut in_service = self.isr;
                if self.special_mask {
                    in_service &= !self.imr;
                }
                if let Some(rank) = self.rank(in_service) {
                    let input = self.input_of(rank);
                    self.isr &= !(1 << input);
                    if command == 0b101 {
                        self.lowest = input;
                    }
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b110 => self.lowest = level,
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            _ => {} // 0b010 is a no-operation by the datasheet.
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x80 != 0 {
            guest_error!("{}: OCW3 {value:#04x} with bit 7 set, bit ignored", self.name);
        }
    }

    /// The edge/level control register of this half.
    pub fn elcr(&self) -> u8 {
        self.elcr
    }

    /// Writes the edge/level control register; inputs that must stay edge triggered do.
    pub fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
        let sensed = self.level_sensed();
        self.irr = self.irr & !sensed | self.lines & sensed;
    }

    /// One line of `info pic`.
    pub fn describe(&self) -> String {
        format!(
            "{}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} elcr={:02x} fnm={}",
            self.name,
            self.irr,
            self.imr,
            self.isr,
            self.lowest.wrapping_add(1) & 7,
            self.vector_base,
            u8::from(self.read_isr),
            self.elcr,
            u8::from(self.special_fully_nested)
        )
    }

    /// The chip's state.
    pub fn save(&self) -> Record {
        let Self {
            name: _,
            elcr_mask: _,
            init,
            irr,
            imr,
            isr,
            lines,
            elcr,
            vector_base,
            icw3,
            lowest,
            level_all,
            single,
            icw4_needed,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested,
            special_mask,
            read_isr,
            poll,
        } = self;
        Record::new(1)
            .with(1, *init as u8)
            .with(2, [*irr, *imr, *isr, *lines, *elcr, *vector_base, *icw3, *lowest])
            .with(3, [*level_all, *single, *icw4_needed, *auto_eoi, *rotate_on_auto_eoi])
            .with(4, [*special_fully_nested, *special_mask, *read_isr, *poll])
    }

    /// Takes over a saved state.
    pub fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let init = match r.get::<u8>(1)? {
            0 => Init::Idle,
            1 => Init::WantIcw2,
            2 => Init::WantIcw3,
            3 => Init::WantIcw4,
            _ => return Err(LoadError::Invalid(1)),
        };
        let [irr, imr, isr, lines, elcr, vector_base, icw3, lowest] =
            r.get_if::<[u8; 8]>(2, |v| v[7] < 8 && v[5] & 7 == 0)?;
        let [level_all, single, icw4_needed, auto_eoi, rotate_on_auto_eoi] = r.get(3)?;
        let [special_fully_nested, special_mask, read_isr, poll] = r.get(4)?;
        r.finish()?;
        *self = Self {
            name: self.name,
            elcr_mask: self.elcr_mask,
            init,
            irr,
            imr,
            isr,
            lines,
            elcr: elcr & self.elcr_mask,
            vector_base,
            icw3,
            lowest,
            level_all,
            single,
            icw4_needed,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested,
            special_mask,
            read_isr,
            poll,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initialized() -> I8259 {
        let mut pic = I8259::new("pic", 0xf8);
        pic.write(false, 0x11);
        pic.write(true, 0x20);
        pic.write(true, 0x04);
        pic.write(true, 0x01);
        pic
    }

    #[test]
    fn a_masked_irq_is_delivered_once_it_is_unmasked() {
        let mut pic = initialized();
        pic.write(true, 0b0000_0010);
        pic.set_line(1, true);
        assert!(!pic.int());
        pic.write(true, 0);
        assert!(pic.int());
        assert_eq!(pic.acknowledge(), (1, 0x21));
        assert!(!pic.int());
    }

    #[test]
    fn a_lower_priority_waits_for_the_end_of_interrupt() {
        let mut pic = initialized();
        pic.set_line(3, true);
        assert_eq!(pic.acknowledge().0, 3);
        pic.set_line(4, true);
        assert!(!pic.int());
        pic.set_line(1, true);
        assert!(pic.int());
        assert_eq!(pic.acknowledge().0, 1);
        pic.write(false, 0x20);
        pic.write(false, 0x20);
        assert_eq!(pic.acknowledge().0, 4);
    }

    #[test]
    fn an_acknowledge_with_nothing_pending_is_the_spurious_ir7() {
        let mut pic = initialized();
        assert_eq!(pic.acknowledge(), (7, 0x27));
        pic.write(false, 0x0b);
        assert_eq!(pic.read(false), 0, "a spurious interrupt sets no in-service bit");
    }

    #[test]
    fn a_level_input_follows_its_line_and_an_edge_input_latches() {
        let mut pic = initialized();
        pic.set_elcr(0x20);
        pic.set_line(5, true);
        pic.set_line(5, false);
        assert!(!pic.int());
        pic.set_line(4, true);
        pic.set_line(4, false);
        assert!(pic.int());
        pic.set_elcr(0xff);
        assert_eq!(pic.elcr(), 0xf8, "inputs 0 to 2 stay edge triggered");
    }

    #[test]
    fn rotation_makes_the_served_input_the_lowest() {
        let mut pic = initialized();
        pic.set_line(2, true);
        assert_eq!(pic.acknowledge().0, 2);
        pic.write(false, 0xa0);
        pic.set_line(1, true);
        pic.set_line(3, true);
        assert_eq!(pic.acknowledge().0, 3);
        pic.write(false, 0xc0 | 5);
        pic.write(false, 0x60 | 3);
        pic.set_line(6, true);
        assert_eq!(pic.acknowledge().0, 6, "after `set priority 5` input 6 is the highest");
    }

    #[test]
    fn specific_rotating_eoi_ends_and_rotates() {
        let mut pic = initialized();
        pic.set_line(4, true);
        pic.acknowledge();
        pic.write(false, 0xe0 | 4);
        pic.write(false, 0x0b);
        assert_eq!(pic.read(false), 0);
        assert!(pic.describe().contains("hprio=5"));
    }

    #[test]
    fn auto_eoi_leaves_no_in_service_bit_and_can_rotate() {
        let mut pic = I8259::new("pic", 0);
        for (a0, value) in [(false, 0x13), (true, 0x40), (true, 0x03)] {
            pic.write(a0, value);
        }
        pic.write(false, 0x80);
        pic.set_line(2, true);
        assert_eq!(pic.acknowledge(), (2, 0x42));
        pic.write(false, 0x0b);
        assert_eq!(pic.read(false), 0);
        assert!(pic.describe().contains("hprio=3"));
        pic.write(false, 0x00);
        pic.set_line(5, true);
        pic.acknowledge();
        assert!(pic.describe().contains("hprio=3"));
    }

    #[test]
    fn poll_reads_and_acknowledges() {
        let mut pic = initialized();
        pic.write(false, 0x0c);
        assert_eq!(pic.read(false), 0);
        pic.set_line(6, true);
        pic.write(false, 0x0c);
        assert_eq!(pic.read(false), 0x86);
        pic.write(false, 0x0b);
        assert_eq!(pic.read(false), 0x40);
        pic.write(false, 0x0a);
        assert_eq!(pic.read(false), 0);
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let mut pic = initialized();
        pic.set_line(2, true);
        pic.acknowledge();
        pic.set_line(5, true);
        assert!(!pic.int());
        pic.write(true, 0x04);
        pic.write(false, 0x68);
        assert!(pic.int());
        pic.write(false, 0x48);
        assert!(!pic.int());
    }

    #[test]
    fn the_special_fully_nested_mode_takes_a_slave_again_in_service() {
        let mut pic = I8259::new("pic", 0);
        for (a0, value) in [(false, 0x11), (true, 0x20), (true, 0x04), (true, 0x11)] {
            pic.write(a0, value);
        }
        pic.set_line(2, true);
        pic.acknowledge();
        pic.set_line(2, false);
        pic.set_line(2, true);
        assert!(pic.int());
    }

    #[test]
    fn initialisation_clears_mask_and_requests_and_keeps_levels() {
        let mut pic = initialized();
        pic.write(true, 0xff);
        pic.set_line(3, true);
        pic.write(false, 0x19);
        assert!(!pic.int(), "no interrupt before the sequence is complete");
        pic.write(true, 0x30);
        pic.write(true, 0);
        pic.write(true, 1);
        assert_eq!(pic.read(true), 0);
        assert!(pic.int(), "LTIM senses the level that was there");
    }

    #[test]
    fn a_saved_chip_loads_and_hostile_values_are_refused() {
        let mut pic = initialized();
        pic.set_line(5, true);
        pic.acknowledge();
        let record = pic.save();
        let mut copy = I8259::new("pic", 0xf8);
        copy.load(&record).unwrap();
        assert_eq!(copy.save(), record);
        let bad = Record::new(1).with(1, 9u8).with(2, [0u8; 8]).with(3, [false; 5]).with(4, [false; 4]);
        assert_eq!(copy.load(&bad), Err(LoadError::Invalid(1)));
    }
}
