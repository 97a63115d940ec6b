//! Tables as a blob, with what must be patched when their address is known.
//!
//! The script's commands are those that firmware of PC virtual machines understands: allocate a file, add a file's
//! address to a pointer, make a checksum (128 bytes each).

/// A pointer in the blob: its place, its width in bytes, and the offset it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Offset of the pointer.
    pub at: usize,
    /// Width in bytes.
    pub width: u8,
    /// Offset that it points to.
    pub target: usize,
}

/// A checksum in the blob: its place and the bytes that must add up to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Offset of the checksum byte.
    pub at: usize,
    /// First byte that it covers.
    pub start: usize,
    /// How many bytes it covers.
    pub length: usize,
}

/// Name of the blob's file.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// Name of the root pointer's file.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";

/// The blob and its list.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    blob: Vec<u8>,
    pointers: Vec<Pointer>,
    checksums: Vec<Checksum>,
    oem_id: [u8; 6],
    rsdt: usize,
    xsdt: usize,
}

const RSDP_LENGTH: usize = 36;

impl Loader {
    /// Adds bytes at an aligned offset; the offset.
    pub fn add_aligned(&mut self, bytes: &[u8], align: usize) -> usize {
        self.blob.resize(self.blob.len().next_multiple_of(align), 0);
        let at = self.blob.len();
        self.blob.extend(bytes);
        at
    }

    /// Adds a table with a standard header, whose checksum is made when it is placed.
    pub fn add_table(&mut self, table: &[u8]) -> usize {
        let at = self.add_aligned(table, 16);
        self.blob[at + 9] = 0;
        self.checksums.push(Checksum { at: at + 9, start: at, length: table.len() });
        at
    }

    /// The pointer at `at` points to `target`.
    pub fn point(&mut self, at: usize, width: u8, target: usize) {
        self.blob[at..at + usize::from(width)]
            .copy_from_slice(&(target as u64).to_le_bytes()[..usize::from(width)]);
        self.pointers.push(Pointer { at, width, target });
    }

    /// The root pointer shall point to these.
    pub fn set_roots(&mut self, oem_id: [u8; 6], rsdt: usize, xsdt: usize) {
        (self.oem_id, self.rsdt, self.xsdt) = (oem_id, rsdt, xsdt);
    }

    /// The tables before they are placed: pointers hold offsets, checksums are zero.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The root pointer before it is placed.
    pub fn rsdp(&self) -> Vec<u8> {
        let mut rsdp = b"RSD PTR \0".to_vec();
        rsdp.extend(self.oem_id);
        rsdp.push(2);
        rsdp.extend((self.rsdt as u32).to_le_bytes());
        rsdp.extend((RSDP_LENGTH as u32).to_le_bytes());
        rsdp.extend((self.xsdt as u64).to_le_bytes());
        rsdp.resize(RSDP_LENGTH, 0);
        rsdp
    }

    /// Blob and root pointer as they are with the blob at `base`.
    pub fn place(&self, base: u32) -> (Vec<u8>, Vec<u8>) {
        let mut blob = self.blob.clone();
        for pointer in &self.pointers {
            let address = u64::from(base) + pointer.target as u64;
            let width = usize::from(pointer.width);
            blob[pointer.at..pointer.at + width].copy_from_slice(&address.to_le_bytes()[..width]);
        }
        for sum in &self.checksums {
            blob[sum.at] = checksum(&blob[sum.start..sum.start + sum.length]);
        }
        let mut rsdp = self.rsdp();
        rsdp[16..20].copy_from_slice(&(base + self.rsdt as u32).to_le_bytes());
        rsdp[24..32].copy_from_slice(&(u64::from(base) + self.xsdt as u64).to_le_bytes());
        rsdp[8] = checksum(&rsdp[..20]);
        rsdp[32] = checksum(&rsdp);
        (blob, rsdp)
    }

    /// The script for firmware.
    pub fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        let mut command = |kind: u32, fields: &dyn Fn(&mut Vec<u8>)| {
            let start = script.len();
            script.extend(kind.to_le_bytes());
            fields(&mut script);
            script.resize(start + 128, 0);
        };
        let name = |out: &mut Vec<u8>, file: &str| {
            let start = out.len();
            out.extend(file.as_bytes());
            out.resize(start + 56, 0);
        };
        for (file, align, zone) in [(RSDP_FILE, 16u32, 2u8), (TABLES_FILE, 64, 1)] {
            command(1, &|out| {
                name(out, file);
                out.extend(align.to_le_bytes());
                out.push(zone);
            });
        }
        let roots = [(16usize, 4u8), (24, 8)].map(|(at, width)| (RSDP_FILE, at, width));
        let inner = self.pointers.iter().map(|p| (TABLES_FILE, p.at, p.width));
        for (file, at, width) in inner.chain(roots) {
            command(2, &|out| {
                name(out, file);
                name(out, TABLES_FILE);
                out.extend((at as u32).to_le_bytes());
                out.push(width);
            });
        }
        let roots = [(8usize, 0usize, 20usize), (32, 0, RSDP_LENGTH)]
            .map(|(at, start, len)| (RSDP_FILE, at, start, len));
        let inner = self.checksums.iter().map(|c| (TABLES_FILE, c.at, c.start, c.length));
        for (file, at, start, length) in inner.chain(roots) {
            command(3, &|out| {
                name(out, file);
                for number in [at, start, length] {
                    out.extend((number as u32).to_le_bytes());
                }
            });
        }
        script
    }
}

/// The byte that makes `bytes`, with itself counted as zero before, add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}
