//! The local APIC's register page, as one byte image that engines can exchange.
//!
//! Registers are 32 bits wide and lie 16 bytes apart; the first 0x400 bytes hold all of them.

/// Bytes of the page that hold registers.
pub const PAGE_BYTES: usize = 0x400;

/// Register offsets in the page (vol. 3, table 11-1).
pub mod offset {
    /// APIC ID.
    pub const ID: usize = 0x20;
    /// Version.
    pub const VERSION: usize = 0x30;
    /// Task priority.
    pub const TPR: usize = 0x80;
    /// Arbitration priority.
    pub const APR: usize = 0x90;
    /// Processor priority.
    pub const PPR: usize = 0xa0;
    /// End of interrupt.
    pub const EOI: usize = 0xb0;
    /// Remote read.
    pub const RRR: usize = 0xc0;
    /// Logical destination.
    pub const LDR: usize = 0xd0;
    /// Destination format.
    pub const DFR: usize = 0xe0;
    /// Spurious interrupt vector.
    pub const SVR: usize = 0xf0;
    /// In service, eight registers.
    pub const ISR: usize = 0x100;
    /// Trigger mode, eight registers.
    pub const TMR: usize = 0x180;
    /// Interrupt request, eight registers.
    pub const IRR: usize = 0x200;
    /// Error status.
    pub const ESR: usize = 0x280;
    /// Corrected machine check LVT.
    pub const LVT_CMCI: usize = 0x2f0;
    /// Interrupt command, low half.
    pub const ICR_LOW: usize = 0x300;
    /// Interrupt command, high half.
    pub const ICR_HIGH: usize = 0x310;
    /// Timer LVT.
    pub const LVT_TIMER: usize = 0x320;
    /// Thermal LVT.
    pub const LVT_THERMAL: usize = 0x330;
    /// Performance counter LVT.
    pub const LVT_PERF: usize = 0x340;
    /// LINT0 LVT.
    pub const LVT_LINT0: usize = 0x350;
    /// LINT1 LVT.
    pub const LVT_LINT1: usize = 0x360;
    /// Error LVT.
    pub const LVT_ERROR: usize = 0x370;
    /// Timer initial count.
    pub const TIMER_INITIAL: usize = 0x380;
    /// Timer current count.
    pub const TIMER_CURRENT: usize = 0x390;
    /// Timer divide configuration.
    pub const TIMER_DIVIDE: usize = 0x3e0;
    /// Self IPI (x2APIC only).
    pub const SELF_IPI: usize = 0x3f0;
}

/// IA32_APIC_BASE bits.
pub mod base {
    /// Bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// Global enable.
    pub const ENABLE: u64 = 1 << 11;
    /// Where the page lies after reset.
    pub const DEFAULT: u64 = 0xfee0_0000;
}

/// The registers as they lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct ApicPage {
    /// The bytes.
    pub bytes: [u8; PAGE_BYTES],
}

impl Default for ApicPage {
    fn default() -> Self {
        Self { bytes: [0; PAGE_BYTES] }
    }
}

impl ApicPage {
    /// The register at `offset`; zero outside of the page.
    pub fn get(&self, offset: usize) -> u32 {
        match self.bytes.get(offset..offset + 4) {
            Some(b) => u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            None => 0,
        }
    }
    /// Sets the register at `offset`; nothing happens outside of the page.
    pub fn set(&mut self, offset: usize, value: u32) {
        if let Some(b) = self.bytes.get_mut(offset..offset + 4) {
            b.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// All of a local APIC: the page, and what is beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApicImage {
    /// The registers. In x2APIC mode the id register holds all 32 bits of the id.
    pub page: ApicPage,
    /// IA32_APIC_BASE.
    pub base: u64,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_lie_where_the_page_has_them() {
        let mut p = ApicPage::default();
        p.set(offset::SVR, 0x1ff);
        assert_eq!(p.bytes[0xf0..0xf4], [0xff, 1, 0, 0]);
        assert_eq!(p.get(offset::SVR), 0x1ff);
        p.set(PAGE_BYTES, 1);
        assert_eq!(p.get(PAGE_BYTES), 0);
    }
}
