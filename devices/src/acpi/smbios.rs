//! SMBIOS structures (DMTF DSP0134, version 2.8), for firmware through fw_cfg or placed in memory.

/// Texts of a structure type that the user sets: `(type, field, value)` with the names that `-smbios` takes.
pub type Overrides = [(u8, String, String)];

/// What the structures must know of the machine.
#[derive(Clone, Debug)]
pub struct Smbios<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// Sockets, cores and threads.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// System UUID, in text form.
    pub uuid: Option<&'a str>,
    /// What the user sets.
    pub overrides: &'a Overrides,
    /// Whole structures that the user adds.
    pub extra: &'a [Vec<u8>],
}

/// The structures with their entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosTables {
    /// All structures.
    pub structures: Vec<u8>,
    /// How many there are.
    pub count: u16,
    /// Length of the longest.
    pub longest: u16,
}

struct Builder<'a> {
    source: &'a Smbios<'a>,
    out: SmbiosTables,
    handle: u16,
}

/// A structure in the making: its formatted area, then its strings.
struct Structure {
    kind: u8,
    body: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    /// Appends a reference to `text`; an empty text is no string.
    fn text(&mut self, text: &str) {
        if text.is_empty() {
            self.body.push(0);
        } else {
            self.strings.push(text.replace('\0', " "));
            self.body.push(self.strings.len() as u8);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.body.extend(bytes);
    }
}

impl Builder<'_> {
    fn field(&self, kind: u8, name: &str, default: &str) -> String {
        let set = self.source.overrides.iter().rev().find(|(k, n, _)| *k == kind && n == name);
        set.map_or_else(|| default.to_owned(), |(_, _, value)| value.clone())
    }

    fn begin(&mut self, kind: u8, handle: u16) -> Structure {
        self.handle = handle;
        Structure { kind, body: Vec::new(), strings: Vec::new() }
    }

    fn finish(&mut self, structure: Structure) {
        let mut bytes = vec![structure.kind, structure.body.len() as u8 + 4];
        bytes.extend(self.handle.to_le_bytes());
        bytes.extend(structure.body);
        for text in &structure.strings {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        bytes.extend(if structure.strings.is_empty() { &[0, 0][..] } else { &[0][..] });
        self.append(&bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.out.count += 1;
        self.out.longest = self.out.longest.max(bytes.len() as u16);
        self.out.structures.extend(bytes);
    }

    fn firmware(&mut self) {
        let mut s = self.begin(0, 0);
        s.text(&self.field(0, "vendor", "anura"));
        s.text(&self.field(0, "version", env!("CARGO_PKG_VERSION")));
        s.bytes(&0xe800u16.to_le_bytes());
        s.text(&self.field(0, "date", "11/21/2026"));
        s.bytes(&[0]);
        // Characteristics are not given; a virtual machine.
        s.bytes(&8u64.to_le_bytes());
        let uefi = self.field(0, "uefi", "off") == "on";
        s.bytes(&[0, 0x14 | u8::from(uefi) << 3]);
        let release = self.field(0, "release", "0.0");
        let (major, minor) = release.split_once('.').unwrap_or((&release, "0"));
        s.bytes(&[major.parse().unwrap_or(0), minor.parse().unwrap_or(0), 0xff, 0xff]);
        self.finish(s);
    }

    fn system(&mut self) {
        let mut s = self.begin(1, 0x100);
        s.text(&self.field(1, "manufacturer", "anura"));
        s.text(&self.field(1, "product", "Standard PC (i440FX + PIIX, 1996)"));
        s.text(&self.field(1, "version", "pc"));
        s.text(&self.field(1, "serial", ""));
        let uuid = self.field(1, "uuid", self.source.uuid.unwrap_or(""));
        s.bytes(&parse_uuid(&uuid).unwrap_or([0; 16]));
        // Woken by the power switch.
        s.bytes(&[6]);
        s.text(&self.field(1, "sku", ""));
        s.text(&self.field(1, "family", ""));
        self.finish(s);
    }

    /// The base board is told only if the user says something of it.
    fn base_board(&mut self) {
        if !self.source.overrides.iter().any(|(kind, _, _)| *kind == 2) {
            return;
        }
        let mut s = self.begin(2, 0x200);
        for field in ["manufacturer", "product", "version", "serial", "asset"] {
            s.text(&self.field(2, field, ""));
        }
        s.bytes(&[1]);
        s.text(&self.field(2, "location", ""));
        s.bytes(&0x300u16.to_le_bytes());
        s.bytes(&[0x0a, 0]);
        self.finish(s);
    }

    fn chassis(&mut self) {
        let mut s = self.begin(3, 0x300);
        s.text(&self.field(3, "manufacturer", "anura"));
        s.bytes(&[1]);
        for (field, default) in [("version", "pc"), ("serial", ""), ("asset", "")] {
            s.text(&self.field(3, field, default));
        }
        s.bytes(&[3, 3, 3, 2]);
        s.bytes(&[0; 7]);
        s.text(&self.field(3, "sku", ""));
        self.finish(s);
    }

    fn processors(&mut self) {
        for socket in 0..self.source.sockets {
            let mut s = self.begin(4, 0x400 + socket as u16);
            s.text(&format!("{}{socket}", self.field(4, "sock_pfx", "CPU ")));
            s.bytes(&[3, 1]);
            s.text(&self.field(4, "manufacturer", "anura"));
            s.bytes(&[0; 8]);
            s.text(&self.field(4, "version", "pc"));
            s.bytes(&[0]);
            // External clock unknown, 2000 MHz at most and now, populated and enabled.
            s.bytes(&0u16.to_le_bytes());
            s.bytes(&2000u16.to_le_bytes());
            s.bytes(&2000u16.to_le_bytes());
            s.bytes(&[0x41, 1]);
            s.bytes(&[0xff; 6]);
            for field in ["serial", "asset", "part"] {
                s.text(&self.field(4, field, ""));
            }
            let (cores, threads) = (self.source.cores, self.source.cores * self.source.threads);
            let byte = |n: u32| u8::try_from(n).unwrap_or(0xff);
            s.bytes(&[byte(cores), byte(cores), byte(threads)]);
            s.bytes(&2u16.to_le_bytes());
            s.bytes(&0xfeu16.to_le_bytes());
            for n in [cores, cores, threads] {
                s.bytes(&(n as u16).to_le_bytes());
            }
            self.finish(s);
        }
    }

    fn oem_strings(&mut self) {
        let values: Vec<String> = self
            .source
            .overrides
            .iter()
            .filter(|(k, n, _)| *k == 11 && n == "value")
            .map(|o| o.2.clone())
            .collect();
        if values.is_empty() {
            return;
        }
        let mut s = self.begin(11, 0xe00);
        s.bytes(&[values.len().min(255) as u8]);
        s.strings = values;
        self.finish(s);
    }

    fn memory(&mut self) {
        /// Largest DIMM: 16 GiB.
        const DIMM: u64 = 16 << 30;
        let count = self.source.memory.div_ceil(DIMM).min(128);
        let mut s = self.begin(16, 0x1000);
        s.bytes(&[1, 3, 6]);
        let kib = self.source.memory >> 10;
        s.bytes(&u32::try_from(kib).unwrap_or(0x8000_0000).min(0x8000_0000).to_le_bytes());
        s.bytes(&0xfffeu16.to_le_bytes());
        s.bytes(&(count as u16).to_le_bytes());
        s.bytes(&if kib < 0x8000_0000 { 0 } else { self.source.memory }.to_le_bytes());
        self.finish(s);
        let mut left = self.source.memory;
        for n in 0..count {
            let size = left.min(DIMM);
            left -= size;
            self.dimm(n as u16, size);
        }
        let mut s = self.begin(19, 0x1300);
        s.bytes(&0u32.to_le_bytes());
        s.bytes(&u32::try_from(kib.saturating_sub(1)).unwrap_or(u32::MAX).to_le_bytes());
        s.bytes(&0x1000u16.to_le_bytes());
        s.bytes(&[1]);
        s.bytes(&[0; 16]);
        self.finish(s);
    }

    fn dimm(&mut self, n: u16, size: u64) {
        let mut s = self.begin(17, 0x1100 + n);
        s.bytes(&0x1000u16.to_le_bytes());
        s.bytes(&0xfffeu16.to_le_bytes());
        s.bytes(&[0xff; 4]);
        let mib = size >> 20;
        s.bytes(&(mib.min(0x7fff) as u16).to_le_bytes());
        s.bytes(&[9, 0]);
        s.text(&format!("{} {n}", self.field(17, "loc_pfx", "DIMM")));
        s.text(&self.field(17, "bank", ""));
        s.bytes(&[7, 2, 0]);
        s.bytes(&0u16.to_le_bytes());
        s.text(&self.field(17, "manufacturer", "anura"));
        for field in ["serial", "asset", "part"] {
            s.text(&self.field(17, field, ""));
        }
        s.bytes(&[0]);
        s.bytes(&if mib < 0x7fff { 0u32 } else { mib as u32 }.to_le_bytes());
        s.bytes(&[0; 8]);
        self.finish(s);
    }
}

/// The 16 bytes of a UUID in SMBIOS order: the first three fields little endian.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Some(bytes)
}

impl Smbios<'_> {
    /// Makes all structures.
    pub fn tables(&self) -> SmbiosTables {
        let out = SmbiosTables { structures: Vec::new(), count: 0, longest: 0 };
        let mut b = Builder { source: self, out, handle: 0 };
        b.firmware();
        b.system();
        b.base_board();
        b.chassis();
        b.processors();
        b.oem_strings();
        b.memory();
        for structure in self.extra {
            b.append(structure);
        }
        let boot = b.begin(32, 0x2000);
        let boot = Structure { body: vec![0; 7], ..boot };
        b.finish(boot);
        let end = b.begin(127, 0x7f00);
        b.finish(end);
        b.out
    }
}

impl SmbiosTables {
    /// The 32-bit entry point for structures at `address`.
    pub fn entry_point(&self, address: u32) -> Vec<u8> {
        let mut entry = b"_SM_\0\x1f\x02\x08".to_vec();
        entry.extend(self.longest.to_le_bytes());
        entry.extend([0; 6]);
        entry.extend(b"_DMI_\0");
        entry.extend((self.structures.len() as u16).to_le_bytes());
        entry.extend(address.to_le_bytes());
        entry.extend(self.count.to_le_bytes());
        entry.push(0x28);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
        entry[0x15] = sum(&entry[0x10..]);
        entry[4] = sum(&entry);
        entry
    }

    /// The 64-bit entry point for structures at `address`.
    pub fn entry_point_64(&self, address: u64) -> Vec<u8> {
        let mut entry = b"_SM3_\0\x18\x03\x00\x00\x01\0".to_vec();
        entry.extend((self.structures.len() as u32).to_le_bytes());
        entry.extend(address.to_le_bytes());
        entry[5] = entry.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(overrides: &Overrides) -> SmbiosTables {
        Smbios {
            memory: 40 << 30,
            sockets: 2,
            cores: 4,
            threads: 1,
            uuid: Some("00112233-4455-6677-8899-aabbccddeeff"),
            overrides,
            extra: &[],
        }
        .tables()
    }

    /// Type and formatted area of each structure.
    fn walk(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut found = Vec::new();
        while let [kind, len, ..] = bytes {
            found.push((*kind, bytes[..usize::from(*len)].to_vec()));
            let strings = &bytes[usize::from(*len)..];
            let end = strings.windows(2).position(|w| w == [0, 0]).unwrap();
            bytes = &strings[end + 2..];
        }
        found
    }

    #[test]
    fn structures_follow_each_other_to_the_end_marker() {
        let tables = tables(&[]);
        let found = walk(&tables.structures);
        let kinds: Vec<u8> = found.iter().map(|f| f.0).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 4, 16, 17, 17, 17, 19, 32, 127]);
        assert_eq!(usize::from(tables.count), kinds.len());
        assert_eq!(&found[1].1[8..16], &[0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
    }

    #[test]
    fn the_users_texts_replace_ours() {
        let tables =
            tables(&[(1, "serial".into(), "ds=nocloud".into()), (11, "value".into(), "hello".into())]);
        let text = String::from_utf8_lossy(&tables.structures).into_owned();
        assert!(text.contains("ds=nocloud") && text.contains("hello"));
    }

    #[test]
    fn entry_points_have_good_checksums() {
        let tables = tables(&[]);
        let old = tables.entry_point(0xf_1000);
        assert_eq!(old.len(), 31);
        assert_eq!(old.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(old[16..].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        let new = tables.entry_point_64(0xf_1000);
        assert_eq!((new.len(), new.iter().fold(0u8, |s, b| s.wrapping_add(*b))), (24, 0));
    }
}
