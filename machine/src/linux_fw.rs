//! A kernel that starts through firmware: its parts as fw_cfg items, for the option ROM of [`crate::boot_rom`] and for
//! firmware that loads kernels itself.
//!
//! Source: the Linux/x86 boot protocol, from version 2.02 on. A boot loader's part of the header is filled in here, so
//! that the ROM only copies.

use anura_devices::misc::fw_cfg::{self, FwCfg};

use crate::boot_rom::{SETUP, SETUP_STACK};
use crate::config::BootConfig;
use crate::error::MachineError;
use crate::linux::{put, u16_at, u32_at};
use crate::roms::file;

const COMMAND_LINE: u32 = 0x2_0000;
const PROTECTED: u32 = 0x10_0000;
/// What firmware may keep at the top of low RAM.
const FIRMWARE_TABLES: u64 = 0x4_0000;
/// Room for the command line.
const LONGEST_LINE: usize = 0xffff;

/// The parts of a kernel, ready to be copied.
struct Parts {
    setup: Vec<u8>,
    protected: Vec<u8>,
    initrd: Vec<u8>,
    initrd_at: u32,
    line: Vec<u8>,
}

/// Gives `device` the kernel of `boot`, on a machine with this much RAM below 4 GiB.
pub fn publish(device: &mut FwCfg, boot: &BootConfig, below_4g: u64) -> Result<(), MachineError> {
    let Some(path) = &boot.kernel else { return Ok(()) };
    let kernel = file("-kernel", path)?;
    let initrd = boot.initrd.as_deref().map(|path| file("-initrd", path)).transpose()?.unwrap_or_default();
    let parts = split(kernel, initrd, &boot.append, below_4g).map_err(|(option, why)| match option {
        "-append" => MachineError::Config(format!("-append: {why}")),
        "-initrd" => MachineError::Image { option, path: boot.initrd.clone().unwrap_or_default(), why },
        _ => MachineError::Image { option: "-kernel", path: path.clone(), why },
    })?;
    for ([address, size, data], at, bytes) in [
        ([fw_cfg::SETUP_ADDR, fw_cfg::SETUP_SIZE, fw_cfg::SETUP_DATA], SETUP, parts.setup),
        ([fw_cfg::CMDLINE_ADDR, fw_cfg::CMDLINE_SIZE, fw_cfg::CMDLINE_DATA], COMMAND_LINE, parts.line),
        ([fw_cfg::KERNEL_ADDR, fw_cfg::KERNEL_SIZE, fw_cfg::KERNEL_DATA], PROTECTED, parts.protected),
        ([fw_cfg::INITRD_ADDR, fw_cfg::INITRD_SIZE, fw_cfg::INITRD_DATA], parts.initrd_at, parts.initrd),
    ] {
        device.set(address, at.to_le_bytes().to_vec());
        device.set(size, (bytes.len() as u32).to_le_bytes().to_vec());
        device.set(data, bytes);
    }
    Ok(())
}

/// Takes a bzImage apart. An error names the option at fault.
fn split(
    mut kernel: Vec<u8>,
    initrd: Vec<u8>,
    append: &str,
    below_4g: u64,
) -> Result<Parts, (&'static str, String)> {
    let version = u16_at(&kernel, 0x206);
    if kernel.get(0x202..0x206) != Some(b"HdrS") || version < 0x0202 || kernel[0x211] & 1 == 0 {
        let why = "no kernel that firmware can start: a bzImage of boot protocol 2.02 or later is needed";
        return Err(("-kernel", why.to_owned()));
    }
    let sectors = if kernel[0x1f1] == 0 { 4 } else { usize::from(kernel[0x1f1]) };
    let length = (sectors + 1) * 512;
    if kernel.len() <= length || length > usize::from(SETUP_STACK) - 0x1000 {
        return Err((
            "-kernel",
            format!("truncated: {} bytes, of which {length} are set-up code", kernel.len()),
        ));
    }
    let protected = kernel.split_off(length);
    let mut setup = kernel;
    let mut line = append.as_bytes().to_vec();
    let longest = if version >= 0x0206 { u32_at(&setup, 0x238) as usize } else { 255 }.min(LONGEST_LINE);
    if line.len() > longest {
        return Err(("-append", format!("{} bytes, but the kernel takes at most {longest}", line.len())));
    }
    line.push(0);
    let end = u64::from(PROTECTED) + protected.len() as u64;
    let top = below_4g.saturating_sub(FIRMWARE_TABLES);
    if end > top {
        return Err(("-kernel", "does not fit in guest memory; give the machine more with -m".to_owned()));
    }
    let highest = if version >= 0x0203 { u32_at(&setup, 0x22c) } else { 0x37ff_ffff };
    let initrd_at = top.min(u64::from(highest) + 1).checked_sub(initrd.len() as u64).map(|at| at & !0xfff);
    let initrd_at = initrd_at.filter(|at| *at >= end).ok_or_else(|| {
        let mib = initrd.len().div_ceil(1 << 20);
        (
            "-initrd",
            format!("{mib} MiB do not fit above the kernel in guest memory; give the machine more with -m"),
        )
    })? as u32;
    // An unnamed boot loader, and a heap below the stack.
    put(&mut setup, 0x210, &[0xff]);
    if version >= 0x0201 {
        setup[0x211] |= 0x80;
        put(&mut setup, 0x224, &(SETUP_STACK - 0x200).to_le_bytes());
    }
    put(&mut setup, 0x228, &COMMAND_LINE.to_le_bytes());
    if !initrd.is_empty() {
        put(&mut setup, 0x218, &initrd_at.to_le_bytes());
        put(&mut setup, 0x21c, &(initrd.len() as u32).to_le_bytes());
    }
    Ok(Parts { setup, protected, initrd, initrd_at, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: u16) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 0x1000];
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &version.to_le_bytes());
        put(&mut image, 0x211, &[1]);
        put(&mut image, 0x22c, &0x37ff_ffffu32.to_le_bytes());
        put(&mut image, 0x238, &2047u32.to_le_bytes());
        image
    }

    #[test]
    fn a_kernel_is_split_and_its_header_says_where_the_rest_is() {
        let parts = split(image(0x20f), vec![7; 0x1801], "quiet", 128 << 20).ok().unwrap();
        assert_eq!((parts.setup.len(), parts.protected.len()), (5 * 512, 0x1000));
        assert_eq!(parts.line, b"quiet\0");
        assert_eq!(parts.initrd_at, (128 << 20) - 0x4_0000 - 0x2000);
        assert_eq!(u32_at(&parts.setup, 0x218), parts.initrd_at);
        assert_eq!((u32_at(&parts.setup, 0x21c), u32_at(&parts.setup, 0x228)), (0x1801, 0x2_0000));
        // With much memory the kernel's own limit counts.
        let parts = split(image(0x20f), vec![7; 0x1000], "", 3 << 30).ok().unwrap();
        assert_eq!(parts.initrd_at, 0x37ff_f000);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |image: Vec<u8>, initrd: usize, line: &str, ram: u64| {
            split(image, vec![0; initrd], line, ram).err().unwrap()
        };
        assert_eq!(error(image(0x20f), 2 << 20, "", 2 << 20).0, "-initrd");
        assert_eq!(error(image(0x20f), 0, &"x".repeat(3000), 64 << 20).0, "-append");
        assert_eq!(error(image(0x20f), 0, "", 1 << 20).0, "-kernel");
        assert!(error(image(0x200), 0, "", 64 << 20).1.contains("2.02"));
        assert!(error(image(0x20f)[..5 * 512].to_vec(), 0, "", 64 << 20).1.contains("truncated"));
    }
}
