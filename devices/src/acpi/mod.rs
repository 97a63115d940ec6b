//! ACPI tables and SMBIOS structures of the board, and how they reach a guest.
//!
//! Sources: ACPI specification 6.4 (chapter 5 tables, chapter 20 AML), IA-PC HPET specification 1.0a, SMBIOS 2.8.
//! Tables are one blob with a list of the pointers and checksums in it. Firmware gets blob and list through
//! fw_cfg's table loader; without firmware the machine applies the list itself.

mod dsdt;
mod loader;
pub mod smbios;

use acpi_tables::Aml;
use acpi_tables::sdt::Sdt;

use crate::chipset::piix4_pm::{ACPI_DISABLE, ACPI_ENABLE, GPE_BASE};
use crate::timer::hpet;

pub use loader::{Checksum, Loader, Pointer};

/// What the tables must know of the board.
#[derive(Clone, Debug)]
pub struct Board {
    /// APIC id of each possible processor, and whether it is there.
    pub processors: Vec<(u32, bool)>,
    /// Base of the power management ports.
    pub pm_base: u16,
    /// First address of the PCI memory window.
    pub pci_window: u32,
    /// There is an HPET.
    pub hpet: bool,
    /// There is a keyboard controller.
    pub i8042: bool,
    /// Base port and interrupt of each serial port.
    pub serial: Vec<(u16, u32)>,
    /// Base port and interrupt of each parallel port.
    pub parallel: Vec<(u16, u32)>,
    /// There is a floppy controller.
    pub fdc: bool,
    /// There is a pvpanic device at this port.
    pub pvpanic: Option<u16>,
    /// OEM id, up to 6 characters.
    pub oem_id: [u8; 6],
    /// OEM table id, up to 8 characters.
    pub oem_table_id: [u8; 8],
    /// Tables that the user adds, whole.
    pub extra: Vec<Vec<u8>>,
}

/// Creator revision of our tables.
const OEM_REVISION: u32 = 1;

impl Board {
    fn table(&self, signature: &[u8; 4], revision: u8) -> Sdt {
        Sdt::new(*signature, 36, revision, self.oem_id, self.oem_table_id, OEM_REVISION)
    }

    fn madt(&self) -> Vec<u8> {
        let mut madt = self.table(b"APIC", 3);
        // The APIC page, and: there is an 8259 pair too.
        madt.append_slice(&0xfee0_0000u32.to_le_bytes());
        madt.append_slice(&1u32.to_le_bytes());
        for (uid, (apic_id, enabled)) in self.processors.iter().enumerate() {
            let flags = u32::from(*enabled).to_le_bytes();
            if *apic_id < 255 {
                madt.append_slice(&[0, 8, uid as u8, *apic_id as u8]);
                madt.append_slice(&flags);
            } else {
                madt.append_slice(&[9, 16, 0, 0]);
                madt.append_slice(&apic_id.to_le_bytes());
                madt.append_slice(&flags);
                madt.append_slice(&(uid as u32).to_le_bytes());
            }
        }
        madt.append_slice(&[1, 12, 0, 0]);
        madt.append_slice(&0xfec0_0000u32.to_le_bytes());
        madt.append_slice(&0u32.to_le_bytes());
        // IRQ 0 is on input 2; those that PCI may use are level triggered, active high.
        for (irq, gsi, flags) in [(0u8, 2u32, 0u16), (5, 5, 0xd), (9, 9, 0xd), (10, 10, 0xd), (11, 11, 0xd)] {
            madt.append_slice(&[2, 10, 0, irq]);
            madt.append_slice(&gsi.to_le_bytes());
            madt.append_slice(&flags.to_le_bytes());
        }
        // NMI is LINT1 of all processors.
        madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
        madt.as_slice().to_vec()
    }

    fn hpet(&self) -> Vec<u8> {
        let mut table = self.table(b"HPET", 1);
        table.append_slice(&0x8086_a201u32.to_le_bytes());
        table.append_slice(&[0, 0, 0, 0]);
        table.append_slice(&hpet::BASE.to_le_bytes());
        table.append_slice(&[0, 0, 0, 0]);
        table.as_slice().to_vec()
    }

    fn waet(&self) -> Vec<u8> {
        let mut table = self.table(b"WAET", 1);
        // The PM timer needs no second reading.
        table.append_slice(&2u32.to_le_bytes());
        table.as_slice().to_vec()
    }

    /// FADT of ACPI 2.0; the addresses of FACS and DSDT are pointers for the loader.
    fn fadt(&self) -> Vec<u8> {
        let mut fadt = self.table(b"FACP", 3);
        fadt.append_slice(&[0; 244 - 36]);
        let pm = u32::from(self.pm_base);
        fadt.write_u16(46, 9);
        fadt.write_u32(48, 0xb2);
        fadt.write_u8(52, ACPI_ENABLE);
        fadt.write_u8(53, ACPI_DISABLE);
        fadt.write_u32(56, pm);
        fadt.write_u32(64, pm + 4);
        fadt.write_u32(76, pm + 8);
        fadt.write_u32(80, GPE_BASE as u32);
        for (at, length) in [(88, 4), (89, 2), (91, 4), (92, 4)] {
            fadt.write_u8(at, length);
        }
        // No C2 or C3.
        fadt.write_u16(96, 0xfff);
        fadt.write_u16(98, 0xfff);
        fadt.write_u8(108, crate::timer::mc146818::CENTURY);
        // Boot architecture: ISA devices, and the keyboard controller if there is one.
        fadt.write_u16(109, 1 | u16::from(self.i8042) << 1);
        // WBINVD works, C1 works, no sleep button, RTC wakes from S4, reset register.
        fadt.write_u32(112, 1 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 10);
        gas(&mut fadt, 116, 8, 0xcf9);
        fadt.write_u8(128, 0x06);
        gas(&mut fadt, 148, 32, pm);
        gas(&mut fadt, 172, 16, pm + 4);
        gas(&mut fadt, 208, 32, pm + 8);
        gas(&mut fadt, 220, 32, GPE_BASE as u32);
        fadt.as_slice().to_vec()
    }

    fn dsdt(&self) -> Vec<u8> {
        let mut dsdt = self.table(b"DSDT", 2);
        dsdt.append_slice(&dsdt::definition_block(self));
        dsdt.as_slice().to_vec()
    }

    /// All tables as one blob with its list for the loader.
    pub fn tables(&self) -> Loader {
        let mut loader = Loader::default();
        let mut facs = Vec::new();
        acpi_tables::facs::FACS::new().to_aml_bytes(&mut facs);
        let facs = loader.add_aligned(&facs, 64);
        let dsdt = loader.add_table(&self.dsdt());
        let fadt = loader.add_table(&self.fadt());
        loader.point(fadt + 36, 4, facs);
        loader.point(fadt + 40, 4, dsdt);
        loader.point(fadt + 140, 8, dsdt);
        let mut listed = vec![fadt, loader.add_table(&self.madt())];
        if self.hpet {
            listed.push(loader.add_table(&self.hpet()));
        }
        listed.push(loader.add_table(&self.waet()));
        for table in &self.extra {
            listed.push(loader.add_table(table));
        }
        let mut rsdt = self.table(b"RSDT", 1);
        let mut xsdt = self.table(b"XSDT", 1);
        rsdt.append_slice(&vec![0; 4 * listed.len()]);
        xsdt.append_slice(&vec![0; 8 * listed.len()]);
        let rsdt = loader.add_table(rsdt.as_slice());
        let xsdt = loader.add_table(xsdt.as_slice());
        for (n, table) in listed.iter().enumerate() {
            loader.point(rsdt + 36 + 4 * n, 4, *table);
            loader.point(xsdt + 36 + 8 * n, 8, *table);
        }
        loader.set_roots(self.oem_id, rsdt, xsdt);
        loader
    }
}

/// A generic address of `bits` at an I/O port.
fn gas(table: &mut Sdt, at: usize, bits: u8, port: u32) {
    table.write_bytes(at, &[1, bits, 0, 0]);
    table.write_u64(at + 4, u64::from(port));
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn board() -> Board {
        Board {
            processors: vec![(0, true), (1, true), (300, false)],
            pm_base: 0x600,
            pci_window: 0x8000_0000,
            hpet: true,
            i8042: true,
            serial: vec![(0x3f8, 4)],
            parallel: vec![(0x378, 7)],
            fdc: true,
            pvpanic: None,
            oem_id: *b"ANURA ",
            oem_table_id: *b"ANURAPC ",
            extra: vec![],
        }
    }

    fn find<'a>(blob: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
        let at = (0..blob.len()).step_by(16).find(|at| blob[*at..].starts_with(signature)).unwrap();
        let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap()) as usize;
        &blob[at..at + len]
    }

    #[test]
    fn placed_tables_have_good_checksums_and_point_at_each_other() {
        let (blob, rsdp) = board().tables().place(0x7fe_0000);
        assert_eq!(rsdp[..20].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(rsdp.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        for signature in [b"DSDT", b"FACP", b"APIC", b"HPET", b"WAET", b"RSDT", b"XSDT"] {
            let table = find(&blob, signature);
            assert_eq!(table.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "{signature:?}");
        }
        let at = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize - 0x7fe_0000;
        let fadt = find(&blob, b"FACP");
        assert_eq!(&blob[at(&fadt[40..44])..][..4], b"DSDT");
        assert_eq!(&blob[at(&fadt[36..40])..][..4], b"FACS");
        assert_eq!(at(&fadt[36..40]) % 64, 0);
        let rsdt = find(&blob, b"RSDT");
        assert_eq!(&blob[at(&rsdt[36..40])..][..4], b"FACP");
    }

    #[test]
    fn the_madt_lists_processors_by_the_kind_that_their_id_needs() {
        let madt = board().madt();
        assert_eq!(&madt[44..52], &[0, 8, 0, 0, 1, 0, 0, 0]);
        let x2apic = &madt[60..76];
        assert_eq!((x2apic[0], u32::from_le_bytes(x2apic[4..8].try_into().unwrap())), (9, 300));
    }

    #[test]
    fn the_loader_script_names_both_files_and_ends_with_checksums() {
        let script = board().tables().script();
        assert_eq!(script.len() % 128, 0);
        let commands: Vec<u32> =
            script.chunks(128).map(|c| u32::from_le_bytes(c[..4].try_into().unwrap())).collect();
        assert_eq!(&commands[..2], &[1, 1]);
        assert!(commands.contains(&2) && commands.last() == Some(&3));
    }
}
