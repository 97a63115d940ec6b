//! Firmware and option ROMs: finding the files, and where they appear in memory.
//!
//! The processor's first instruction is 16 bytes below 4 GiB, so firmware ends there; its last 128 KiB are seen below
//! 1 MiB too (82371SB datasheet 290550, XBCS: the extended BIOS decode).

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anura_devices::storage::cfi01::{Cfi01, FlashFile};
use anura_memory::{MemoryMap, RamBlock, Region};
use anura_vmcore::DeviceCell;

use crate::config::MachineConfig;
use crate::error::MachineError;

/// Where distributions keep firmware; looked through after `-L`.
pub const DATA_DIRS: [&str; 3] = ["/usr/share/seabios", "/usr/share/qemu", "/usr/share/anura"];
/// The firmware of a `pc` that is told nothing else.
const DEFAULT_FIRMWARE: &str = "bios-256k.bin";
/// The graphics card's ROM.
const VGA_ROM: &str = "vgabios-stdvga.bin";
/// Longest firmware that fits below 4 GiB: what lies between the APICs and the end.
const LONGEST_FIRMWARE: usize = 8 << 20;
/// Longest option ROM: its length byte counts 512 bytes each.
const LONGEST_ROM: usize = 128 << 10;
/// Firmware that nobody gave is erased flash of this size.
const EMPTY_FIRMWARE: usize = 256 << 10;
/// How much of the firmware's end is seen below 1 MiB too.
const LOW_FIRMWARE: u64 = 128 << 10;

/// A flash chip's image.
#[derive(Clone, Debug)]
pub struct Flash {
    /// The contents.
    pub image: Vec<u8>,
    /// The file that changes go to.
    pub file: Option<PathBuf>,
}

/// The images of a machine.
#[derive(Clone, Debug, Default)]
pub struct Roms {
    /// What the processor starts in; erased flash without one.
    pub firmware: Option<Vec<u8>>,
    /// Flash chips, which stand in for firmware in ROM.
    pub flash: Vec<Flash>,
    /// The graphics card's ROM.
    pub vga: Option<Vec<u8>>,
}

/// Reads a file that `option` names.
pub(crate) fn file(option: &'static str, path: &Path) -> Result<Vec<u8>, MachineError> {
    std::fs::read(path).map_err(|source| MachineError::File { option, path: path.into(), source })
}

/// A firmware file: as it is named, or in one of the data folders.
fn find(name: &Path, dirs: &[PathBuf]) -> Option<PathBuf> {
    let candidates = std::iter::once(name.to_owned()).chain(dirs.iter().map(|dir| dir.join(name)));
    candidates.into_iter().find(|path| path.is_file())
}

impl Roms {
    /// The images for a machine that starts in firmware.
    pub fn find(config: &MachineConfig) -> Result<Self, MachineError> {
        let dirs = &config.data_dirs;
        let mut flash = Vec::new();
        for chip in &config.boot.flash {
            let image = file("-drive if=pflash,file=", &chip.path)?;
            if image.is_empty() || image.len() % 4096 != 0 || image.len() > LONGEST_FIRMWARE {
                let why = format!(
                    "{} bytes, but a flash chip has whole blocks of 4096, {LONGEST_FIRMWARE} at most",
                    image.len()
                );
                return Err(MachineError::Image {
                    option: "-drive if=pflash,file=",
                    path: chip.path.clone(),
                    why,
                });
            }
            flash.push(Flash { image, file: (!chip.readonly).then(|| chip.path.clone()) });
        }
        let firmware = match &config.boot.firmware {
            _ if !flash.is_empty() => None,
            Some(name) => Some(firmware(&find(name, dirs).unwrap_or_else(|| name.clone()))?),
            None => in_dirs(DEFAULT_FIRMWARE, dirs).map(|path| firmware(&path)).transpose()?,
        };
        Ok(Self {
            firmware,
            flash,
            vga: in_dirs(VGA_ROM, dirs).map(|path| option_rom("-L", &path)).transpose()?,
        })
    }
}

/// A file of the data folders, never of the working folder.
fn in_dirs(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// What to tell a user whose machine has nothing to start in.
pub(crate) fn missing(config: &MachineConfig) -> String {
    let dirs: Vec<String> = config.data_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let wants = match &config.boot.kernel {
        Some(kernel) => format!("-kernel {}: this kernel starts through firmware", kernel.display()),
        None => "nothing to boot: there is no firmware".to_owned(),
    };
    let way_out = "install seabios, or give -bios FILE or -L DIR";
    let otherwise = if config.boot.kernel.is_none() { ", or a kernel by -kernel FILE" } else { "" };
    format!("{wants} {DEFAULT_FIRMWARE} in {}; {way_out}{otherwise}", dirs.join(", "))
}

/// Firmware, filled up in front to whole 64 KiB.
fn firmware(path: &Path) -> Result<Vec<u8>, MachineError> {
    let mut image = file("-bios", path)?;
    if image.is_empty() || image.len() > LONGEST_FIRMWARE {
        let why = format!("{} bytes, but firmware has 1 to {LONGEST_FIRMWARE}", image.len());
        return Err(MachineError::Image { option: "-bios", path: path.into(), why });
    }
    let missing = image.len().next_multiple_of(64 << 10) - image.len();
    image.splice(0..0, std::iter::repeat_n(0xff, missing));
    Ok(image)
}

/// An option ROM, which begins with its signature.
fn option_rom(option: &'static str, path: &Path) -> Result<Vec<u8>, MachineError> {
    let image = file(option, path)?;
    if image.len() > LONGEST_ROM || !image.starts_with(&[0x55, 0xaa]) {
        let why = format!("not an option ROM: it begins with 55h AAh and has {LONGEST_ROM} bytes at most");
        return Err(MachineError::Image { option, path: path.into(), why });
    }
    Ok(image)
}

/// Changes of a chip go to its file at once.
struct Changes(std::fs::File);

impl FlashFile for Changes {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Err(error) = self.0.write_all_at(bytes, offset) {
            log::error!("flash: {error}");
        }
    }
}

/// A chip with its array.
type Chip = (Arc<RamBlock>, DeviceCell<Cfi01>);

/// Flash chips below 4 GiB, each below the one before; the first one's end is seen below 1 MiB.
pub(crate) fn map_flash(map: &MemoryMap, pci: &Region, roms: &Roms) -> Result<Vec<Chip>, MachineError> {
    let mut chips = Vec::new();
    let mut end = 1u64 << 32;
    for (n, flash) in roms.flash.iter().enumerate() {
        let option = "-drive if=pflash,file=";
        let file = match &flash.file {
            None => None,
            Some(path) => {
                let open = std::fs::OpenOptions::new().write(true).open(path);
                let file =
                    open.map_err(|source| MachineError::File { option, path: path.clone(), source })?;
                Some(Box::new(Changes(file)) as Box<dyn FlashFile>)
            }
        };
        let name = format!("system.flash{n}");
        let size = flash.image.len() as u64;
        let block = RamBlock::new(name.clone(), size)?;
        block.write(0, &flash.image);
        let (chip, region) = Cfi01::new(map, &name, &block, flash.file.is_none(), file);
        end -= size;
        let mut tx = map.transaction();
        tx.add(pci, end, &region, 1);
        if n == 0 {
            let low = size.min(LOW_FIRMWARE);
            // Only a look at it: commands are given at the top.
            let shadow = Region::rom("isa-bios", block.clone());
            tx.add(pci, (1 << 20) - low, &Region::alias("isa-flash", &shadow, size - low, low), 2);
        }
        drop(tx);
        chips.push((block, chip));
    }
    Ok(chips)
}

/// Maps firmware to the end of the first 4 GiB and below 1 MiB, and room for option ROMs.
pub fn map(map: &MemoryMap, pci: &Region, roms: &Roms) -> Result<Vec<Arc<RamBlock>>, MachineError> {
    let erased = || vec![0xff; EMPTY_FIRMWARE];
    let image = roms.firmware.clone().unwrap_or_else(erased);
    let size = image.len() as u64;
    let bios = RamBlock::new("pc.bios", size)?;
    bios.write(0, &image);
    let option_roms = RamBlock::new("pc.rom", 0x2_0000)?;
    let flash = Region::rom("pc.bios", bios.clone());
    let low = size.min(LOW_FIRMWARE);
    let mut tx = map.transaction();
    tx.add(pci, (1 << 32) - size, &flash, 0);
    tx.add(pci, (1 << 20) - low, &Region::alias("isa-bios", &flash, size - low, low), 1);
    tx.add(pci, 0xc_0000, &Region::rom("pc.rom", option_roms.clone()), 1);
    Ok(vec![bios, option_roms])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, bios: Option<&str>) -> MachineConfig {
        let mut config = MachineConfig { data_dirs: vec![dir.into()], ..MachineConfig::default() };
        config.boot.firmware = bios.map(PathBuf::from);
        config
    }

    fn folder(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("anura-roms-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes).unwrap());
        dir
    }

    #[test]
    fn firmware_is_found_in_the_data_folders_and_ends_at_a_boundary() {
        let dir =
            folder("found", &[(DEFAULT_FIRMWARE, b"default"), ("own", b"own"), (VGA_ROM, b"\x55\xaa\x01")]);
        let roms = Roms::find(&config(&dir, None)).unwrap();
        let image = roms.firmware.unwrap();
        assert_eq!((image.len(), image.ends_with(b"\xffdefault")), (64 << 10, true));
        assert_eq!(roms.vga.unwrap(), b"\x55\xaa\x01");
        assert!(Roms::find(&config(&dir, Some("own"))).unwrap().firmware.unwrap().ends_with(b"own"));
        let path = dir.join("own");
        assert!(Roms::find(&config(Path::new("/"), path.to_str())).unwrap().firmware.is_some());
        assert!(Roms::find(&config(Path::new("/"), None)).unwrap().firmware.is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_no_firmware_is_refused_by_name() {
        let dir = folder("bad", &[("empty", b""), (VGA_ROM, b"text")]);
        let error = |bios: Option<&str>| Roms::find(&config(&dir, bios)).unwrap_err().to_string();
        assert!(error(Some("missing")).starts_with("-bios missing: could not load"));
        assert!(error(Some("empty")).contains("empty: 0 bytes, but firmware has 1 to"));
        assert!(error(None).contains("not an option ROM"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
