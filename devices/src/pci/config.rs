//! A configuration space: 256 bytes with a mask of what the guest can write.

use anura_vmcore::{Bytes, LoadError, Record, Width};

/// Offsets of the standard header.
pub mod reg {
    #![allow(missing_docs, reason = "the names of the specification")]
    pub const VENDOR: u8 = 0x00;
    pub const DEVICE: u8 = 0x02;
    pub const COMMAND: u8 = 0x04;
    pub const STATUS: u8 = 0x06;
    pub const REVISION: u8 = 0x08;
    pub const CLASS: u8 = 0x09;
    pub const HEADER_TYPE: u8 = 0x0e;
    pub const BAR0: u8 = 0x10;
    pub const SUBSYSTEM_VENDOR: u8 = 0x2c;
    pub const SUBSYSTEM: u8 = 0x2e;
    pub const ROM: u8 = 0x30;
    pub const INTERRUPT_LINE: u8 = 0x3c;
    pub const INTERRUPT_PIN: u8 = 0x3d;
}

/// Who a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub class: u32,
    /// The device has more functions than this.
    pub multifunction: bool,
    /// Interrupt pin: 0 none, 1 INTA.
    pub pin: u8,
}

/// Subsystem vendor that virtual devices show.
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
/// Subsystem id that virtual devices show.
const SUBSYSTEM: u16 = 0x1100;

/// The 256 bytes and their masks.
#[derive(Clone)]
pub struct ConfigSpace {
    initial: [u8; 256],
    writable: [u8; 256],
    clearable: [u8; 256],
    bytes: [u8; 256],
}

impl ConfigSpace {
    /// The standard header of a function; command and interrupt line are writable.
    pub fn new(id: Identity) -> Self {
        let mut space = Self { initial: [0; 256], writable: [0; 256], clearable: [0; 256], bytes: [0; 256] };
        space.preset_u16(reg::VENDOR, id.vendor);
        space.preset_u16(reg::DEVICE, id.device);
        space.preset(reg::REVISION, id.revision);
        space.preset(reg::CLASS, id.class as u8);
        space.preset_u16(reg::CLASS + 1, (id.class >> 8) as u16);
        space.preset(reg::HEADER_TYPE, if id.multifunction { 0x80 } else { 0 });
        space.preset_u16(reg::SUBSYSTEM_VENDOR, SUBSYSTEM_VENDOR);
        space.preset_u16(reg::SUBSYSTEM, SUBSYSTEM);
        space.preset(reg::INTERRUPT_PIN, id.pin);
        // I/O, memory, bus master, parity response, SERR enable.
        space.allow(reg::COMMAND, &[0x47, 0x01]);
        space.allow_clear(reg::STATUS + 1, 0xf9);
        space.allow(reg::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets the reset value of a byte, and the byte.
    pub fn preset(&mut self, at: u8, value: u8) {
        self.initial[usize::from(at)] = value;
        self.bytes[usize::from(at)] = value;
    }

    /// Sets the reset value of two bytes.
    pub fn preset_u16(&mut self, at: u8, value: u16) {
        self.preset(at, value as u8);
        self.preset(at + 1, (value >> 8) as u8);
    }

    /// Makes bits writable, in consecutive bytes from `at`.
    pub fn allow(&mut self, at: u8, masks: &[u8]) {
        for (byte, mask) in self.writable[usize::from(at)..].iter_mut().zip(masks) {
            *byte |= mask;
        }
    }

    /// Makes bits of a byte clear when a one is written to them.
    pub fn allow_clear(&mut self, at: u8, mask: u8) {
        self.clearable[usize::from(at)] |= mask;
    }

    /// Back to the reset values.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Reads 1, 2 or 4 bytes.
    pub fn read(&self, at: u8, width: Width) -> u32 {
        let mut value = [0; 4];
        for (i, byte) in value.iter_mut().take(width.bytes()).enumerate() {
            *byte = self.bytes[usize::from(at.wrapping_add(i as u8))];
        }
        u32::from_le_bytes(value)
    }

    /// Writes 1, 2 or 4 bytes, as far as the masks let them.
    pub fn write(&mut self, at: u8, width: Width, value: u32) {
        for (i, new) in value.to_le_bytes().into_iter().take(width.bytes()).enumerate() {
            let at = usize::from(at.wrapping_add(i as u8));
            let (w, c) = (self.writable[at], self.clearable[at]);
            self.bytes[at] = (self.bytes[at] & !w | new & w) & !(new & c);
        }
    }

    /// One byte.
    pub fn byte(&self, at: u8) -> u8 {
        self.bytes[usize::from(at)]
    }

    /// Sets one byte past the masks, as the chip itself does.
    pub fn set_byte(&mut self, at: u8, value: u8) {
        self.bytes[usize::from(at)] = value;
    }

    /// Four bytes.
    pub fn u32(&self, at: u8) -> u32 {
        self.read(at, Width::W4)
    }

    /// Two bytes.
    pub fn u16(&self, at: u8) -> u16 {
        self.read(at, Width::W2) as u16
    }

    /// The function answers I/O accesses.
    pub fn io_enabled(&self) -> bool {
        self.byte(reg::COMMAND) & 1 != 0
    }

    /// The function answers memory accesses.
    pub fn memory_enabled(&self) -> bool {
        self.byte(reg::COMMAND) & 2 != 0
    }

    /// The function may master the bus.
    pub fn bus_master(&self) -> bool {
        self.byte(reg::COMMAND) & 4 != 0
    }

    /// The bytes.
    pub fn save(&self) -> Record {
        let Self { initial: _, writable: _, clearable: _, bytes } = self;
        Record::new(1).with(1, Bytes(bytes.to_vec()))
    }

    /// Takes over saved bytes; what a guest could not have changed must be as it is here.
    pub fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let bytes: [u8; 256] = r.get::<Bytes>(1)?.0.try_into().map_err(|_| LoadError::Invalid(1))?;
        r.finish()?;
        let identity = usize::from(reg::VENDOR)..usize::from(reg::COMMAND);
        if bytes[identity.clone()] != self.initial[identity] {
            return Err(LoadError::Mismatch("the record is of another PCI function".to_owned()));
        }
        for (at, value) in bytes.into_iter().enumerate() {
            // Bytes that the chip itself changes are neither writable nor constant; they load as they are.
            self.bytes[at] = value;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x7000,
            revision: 1,
            class: 0x060100,
            multifunction: true,
            pin: 0,
        })
    }

    #[test]
    fn identity_is_read_only_and_command_writable() {
        let mut space = space();
        space.write(reg::VENDOR, Width::W4, 0);
        space.write(reg::COMMAND, Width::W2, 0xffff);
        assert_eq!(space.u32(reg::VENDOR), 0x7000_8086);
        assert_eq!(space.u16(reg::COMMAND), 0x0147);
        assert_eq!(space.read(reg::CLASS, Width::W1), 0);
        assert_eq!(space.u16(reg::CLASS + 1), 0x0601);
        assert_eq!(space.byte(reg::HEADER_TYPE), 0x80);
    }

    #[test]
    fn status_bits_clear_on_a_one() {
        let mut space = space();
        space.set_byte(reg::STATUS + 1, 0x20);
        space.write(reg::STATUS, Width::W2, 0x1000);
        assert_eq!(space.u16(reg::STATUS), 0x2000);
        space.write(reg::STATUS, Width::W2, 0x2000);
        assert_eq!(space.u16(reg::STATUS), 0);
    }

    #[test]
    fn a_record_of_another_function_is_refused() {
        let mut other = space();
        other.preset_u16(reg::DEVICE, 0x1111);
        assert!(matches!(space().load(&other.save()), Err(LoadError::Mismatch(_))));
        assert!(space().load(&space().save()).is_ok());
    }
}
