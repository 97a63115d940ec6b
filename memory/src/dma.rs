//! What a bus master gets: guest RAM and nothing else.
//!
//! A device's DMA never reaches registers, its own or another's: besides being what nearly all
//! hardware is programmed for, it keeps a device from being entered while it is busy. The handle can
//! be revoked, for unplugging, and every access after that is a typed error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anura_vmcore::Width;

use crate::flat::RangeKind;
use crate::space::AddressSpace;

/// Why a transfer did not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// Some byte of the transfer is not RAM (or, for a write, not writable).
    #[error("dma to {gpa:#x}, which is no RAM")]
    NotRam {
        /// The first such address.
        gpa: u64,
    },
    /// The device was unplugged.
    #[error("dma after the device was unplugged")]
    Revoked,
}

/// RAM access of one device. Clones are revoked together.
#[derive(Clone, Debug)]
pub struct Dma {
    space: AddressSpace,
    revoked: Arc<AtomicBool>,
}

impl Dma {
    /// Access to the RAM of a space.
    pub fn new(space: &AddressSpace) -> Self {
        Self { space: space.clone(), revoked: Arc::new(AtomicBool::new(false)) }
    }

    /// Ends all access through this handle and its clones.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
    }

    /// Reads bytes. On an error `buf` may be partly filled.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(gpa, buf.len(), false, |block, offset, from, to| {
            block.read(offset, &mut buf[from..to]);
        })
    }

    /// Writes bytes. On an error a first part may have been written, as on a real bus.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), DmaError> {
        self.transfer(gpa, buf.len(), true, |block, offset, from, to| {
            block.write(offset, &buf[from..to]);
        })
    }

    /// Reads a little-endian number, in one piece if aligned.
    pub fn read_obj(&self, gpa: u64, width: Width) -> Result<u64, DmaError> {
        if !self.revoked.load(Ordering::Acquire)
            && let Some(slice) = self.space.ram(gpa, width.bytes() as u64)
            && let Some(value) = slice.block().load(slice.offset(), width)
        {
            return Ok(value);
        }
        let mut raw = [0; 8];
        self.read(gpa, &mut raw[..width.bytes()])?;
        Ok(u64::from_le_bytes(raw))
    }

    /// Writes a little-endian number, in one piece if aligned.
    pub fn write_obj(&self, gpa: u64, width: Width, value: u64) -> Result<(), DmaError> {
        if !self.revoked.load(Ordering::Acquire)
            && let Some(slice) = self.space.ram(gpa, width.bytes() as u64)
            && slice.writable()
            && slice.block().store(slice.offset(), width, value)
        {
            return Ok(());
        }
        self.write(gpa, &value.to_le_bytes()[..width.bytes()])
    }

    /// Reads 16 bits.
    pub fn read_u16(&self, gpa: u64) -> Result<u16, DmaError> {
        Ok(self.read_obj(gpa, Width::W2)? as u16)
    }

    /// Reads 32 bits.
    pub fn read_u32(&self, gpa: u64) -> Result<u32, DmaError> {
        Ok(self.read_obj(gpa, Width::W4)? as u32)
    }

    /// Reads 64 bits.
    pub fn read_u64(&self, gpa: u64) -> Result<u64, DmaError> {
        self.read_obj(gpa, Width::W8)
    }

    fn transfer(
        &self,
        gpa: u64,
        len: usize,
        write: bool,
        mut piece: impl FnMut(&crate::RamBlock, u64, usize, usize),
    ) -> Result<(), DmaError> {
        if self.revoked.load(Ordering::Acquire) {
            return Err(DmaError::Revoked);
        }
        let view = self.space.view();
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done as u64).ok_or(DmaError::NotRam { gpa: u64::MAX })?;
            let range = view.find(at).ok_or(DmaError::NotRam { gpa: at })?;
            let (block, offset) = match &range.kind {
                RangeKind::Ram { block, offset, writable } if !write || *writable => (block, *offset),
                RangeKind::RomDevice { block, offset, .. } if !write => (block, *offset),
                _ => return Err(DmaError::NotRam { gpa: at }),
            };
            let within = at - range.start;
            let n = (range.size - within).min((len - done) as u64) as usize;
            piece(block, offset + within, done, done + n);
            done += n;
        }
        Ok(())
    }
}
