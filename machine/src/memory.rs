//! Guest RAM: one block, seen below and above 4 GiB.

use std::sync::Arc;

use anura_memory::{Backing, MemoryMap, RamBlock, Region};
use anura_x86::CpuModel;

use crate::config::{MachineConfig, MemoryBackend};
use crate::error::MachineError;

/// RAM that is at least this large leaves room for the PCI window by ending at 3 GiB below 4 GiB.
const LOW_LIMIT: u64 = 0xe000_0000;
/// Where low RAM then ends.
const LOW_END: u64 = 0xc000_0000;
/// Where conventional memory ends.
const VGA_WINDOW: u64 = 0xa_0000;
/// Where memory goes on after the area for adapters and firmware.
const HIGH_MEMORY: u64 = 0x10_0000;
/// The least that a PC and a kernel can do anything with.
const SMALLEST: u64 = 1 << 20;

/// Main memory.
pub struct MainMemory {
    /// The block, `pc.ram`.
    pub block: Arc<RamBlock>,
    /// The block as a region, for aliases.
    pub region: Region,
    /// Bytes from address 0.
    pub below_4g: u64,
    /// Bytes from 4 GiB.
    pub above_4g: u64,
}

impl MainMemory {
    /// Takes the memory that `config` asks for.
    pub fn new(config: &MachineConfig, model: &CpuModel) -> Result<Self, MachineError> {
        let size = config.memory.size;
        if size < SMALLEST {
            return Err(MachineError::Config(format!(
                "-m {size}B: a PC needs at least 1 MiB of memory, for example -m 128M"
            )));
        }
        let limit = config.board.max_ram_below_4g;
        let low_limit = limit.unwrap_or(LOW_LIMIT);
        let low_end = limit.unwrap_or(LOW_END);
        let below_4g = if size >= low_limit { low_end } else { size };
        let above_4g = size - below_4g;
        let end = if above_4g > 0 { (1 << 32) + above_4g } else { below_4g };
        if end > 1 << model.phys_bits {
            return Err(MachineError::Config(format!(
                "-m {}M: beyond the {} physical address bits of CPU model {} ({} GiB at most)",
                size >> 20,
                model.phys_bits,
                model.name,
                (1u64 << model.phys_bits) - (1 << 30) >> 30
            )));
        }
        if let Some(host) = host_memory()
            && size > host
        {
            return Err(MachineError::Config(format!(
                "-m {}M: this host has {} MiB of memory and swap in all; ask for less",
                size >> 20,
                host >> 20
            )));
        }
        let backing = match &config.board.memory_backend {
            None => Backing::default(),
            Some(id) => backing(config, id, size)?,
        };
        let block = RamBlock::with_backing("pc.ram", size, &backing)?;
        let region = Region::ram("pc.ram", block.clone());
        Ok(Self { block, region, below_4g, above_4g })
    }

    /// Maps the block into guest-physical memory.
    pub fn map(&self, map: &MemoryMap, system: &Region) {
        let mut tx = map.transaction();
        // From the VGA window to 1 MiB the PCI bus shows through, until the host bridge says that it is RAM.
        let conventional = Region::alias("ram-below-640k", &self.region, 0, VGA_WINDOW);
        tx.add(system, 0, &conventional, 0);
        if self.below_4g > HIGH_MEMORY {
            let low = Region::alias("ram-below-4g", &self.region, HIGH_MEMORY, self.below_4g - HIGH_MEMORY);
            tx.add(system, HIGH_MEMORY, &low, 0);
        }
        if self.above_4g > 0 {
            let high = Region::alias("ram-above-4g", &self.region, self.below_4g, self.above_4g);
            tx.add(system, 1 << 32, &high, 0);
        }
    }
}

fn backing(config: &MachineConfig, id: &str, size: u64) -> Result<Backing, MachineError> {
    let found = config.memory_backends.iter().find(|b| b.id == id);
    let Some(backend) = found else {
        return Err(MachineError::Config(format!(
            "-machine memory-backend={id}: no -object memory-backend-* of that id"
        )));
    };
    if backend.size != size {
        return Err(MachineError::Config(format!(
            "-machine memory-backend={id}: its size is {} MiB, but -m says {} MiB; make them equal",
            backend.size >> 20,
            size >> 20
        )));
    }
    let MemoryBackend { share, prealloc, readonly, hugetlb, hugetlb_size, .. } = *backend;
    Ok(match (backend.kind.as_str(), &backend.path) {
        ("file", Some(path)) => Backing::File { path: path.clone(), share, prealloc, readonly },
        ("memfd", _) => Backing::Memfd { share, prealloc, hugetlb: hugetlb.then_some(hugetlb_size) },
        _ => Backing::Anonymous { share, prealloc },
    })
}

/// Bytes of memory and swap that the host has in all; `None` where it does not say.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)) << 10)
}
