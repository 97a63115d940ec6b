//! The machine's state as records, and its hash.
//!
//! A state is the clock, whose turn it is, the A20 gate, the vCPUs, every device by its path, and RAM. The hash covers all of
//! them; left out is only what the guest cannot see: translations, host descriptors and bytes that a chardev
//! holds.

use std::sync::Arc;

use anura_accel::CpuPlatform;
use anura_memory::RamBlock;
use anura_vmcore::{Bytes, LoadError, Record};
use anura_x86::CpuState;

use crate::control::ControlError;
use crate::error::MachineError;
use crate::machine::Machine;

/// Everything of a machine but its RAM, keyed by path, in a fixed order.
pub type States = Vec<(String, Record)>;

/// Parts that are neither a vCPU nor a device: clock, turns, the A20 gate, the rate of the time stamp counter.
const PARTS: usize = 4;

fn save_cpu(state: &CpuState) -> Record {
    let mut record = Record::new(1);
    for (number, bytes) in state.to_fields() {
        record.put(number as u16, Bytes(bytes));
    }
    record
}

fn load_cpu(record: &Record) -> Result<CpuState, LoadError> {
    let fields: Vec<(u32, Vec<u8>)> = record
        .numbers()
        .filter_map(|n| match record.value(n) {
            Some(anura_vmcore::Value::Bytes(bytes)) => Some((u32::from(n), bytes.clone())),
            _ => None,
        })
        .collect();
    let state = CpuState::from_fields(|n| fields.iter().find(|f| f.0 == n).map(|f| f.1.as_slice()))
        .map_err(|e| LoadError::Mismatch(e.to_string()))?;
    state.validate().map_err(|e| LoadError::Mismatch(e.to_string()))?;
    Ok(state)
}

/// The parts of a state hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// Instructions executed, where they are counted.
    pub instructions: u64,
    /// vCPUs, turns and clock.
    pub cpus: blake3::Hash,
    /// Devices.
    pub devices: blake3::Hash,
    /// RAM.
    pub ram: blake3::Hash,
    /// All of them.
    pub whole: blake3::Hash,
}

impl Machine {
    /// Saves everything but RAM. The vCPUs stand while it happens.
    pub fn save_states(&self) -> States {
        let inner = &self.inner;
        inner.cpus.pause(|turns| {
            let mut states =
                vec![("clock".to_owned(), inner.pc.clock.save()), ("turns".to_owned(), turns.save())];
            states.push(("a20".to_owned(), Record::new(1).with(1, inner.platform.a20())));
            states.push(("tsc".to_owned(), Record::new(1).with(1, inner.tsc_khz)));
            for (n, vcpu) in turns.vcpus().enumerate() {
                states.push((format!("cpu{n}"), save_cpu(&vcpu.state())));
            }
            // Only where there are any: a software engine has none.
            for cpu in 0..turns.len() {
                let (numbers, values): (Vec<u64>, Vec<u64>) =
                    inner.platform.kept_msrs(cpu as u32).into_iter().map(|(n, v)| (u64::from(n), v)).unzip();
                if !numbers.is_empty() {
                    states.push((format!("cpu{cpu}/msrs"), Record::new(1).with(1, numbers).with(2, values)));
                }
            }
            for (path, device) in inner.pc.devices() {
                states.push((path.clone(), device.save()));
            }
            states
        })
    }

    /// Takes over a saved state; RAM is written by the caller before. The machine must not run.
    pub fn load_states(&self, states: &States) -> Result<(), MachineError> {
        let inner = &self.inner;
        let failed = |device: &str| {
            let device = device.to_owned();
            move |source| MachineError::Load { device, source }
        };
        let find = |path: &str| {
            let found = states.iter().find(|(p, _)| p == path).map(|(_, record)| record);
            found
                .ok_or_else(|| failed(path)(LoadError::Mismatch("the saved machine has no such part".into())))
        };
        // Its rate is not in states of before 2026-11.
        let parts = PARTS - usize::from(find("tsc").is_err());
        let expected = parts + inner.config.smp.cpus as usize + inner.pc.devices().len();
        let optional = states.iter().filter(|(path, _)| path.ends_with("/msrs")).count();
        if states.len() - optional != expected {
            return Err(failed("machine")(LoadError::Mismatch(format!(
                "the saved machine has {} parts, this one {expected}: start it with the same options",
                states.len()
            ))));
        }
        if let Ok(record) = find("tsc") {
            let saved: u64 = record.read(1).and_then(|mut r| r.get(1)).map_err(failed("tsc"))?;
            // KVM itself takes 250 in a million for equal.
            if saved.abs_diff(inner.tsc_khz) > saved / 4000 {
                return Err(failed("tsc")(LoadError::Mismatch(format!(
                    "the saved machine's time stamp counter runs at {saved} kHz, this one's at {}: start it with \
                     -cpu MODEL,tsc-frequency={saved}000",
                    inner.tsc_khz
                ))));
            }
        }
        inner.cpus.pause(|turns| {
            inner.pc.clock.load(find("clock")?).map_err(failed("clock"))?;
            let mut gate = find("a20")?.read(1).map_err(failed("a20"))?;
            inner.platform.set_a20(gate.get(1).map_err(failed("a20"))?);
            for (path, device) in inner.pc.devices() {
                device.load(find(path)?).map_err(failed(path))?;
            }
            for (n, vcpu) in turns.vcpus().enumerate() {
                let path = format!("cpu{n}");
                let state = load_cpu(find(&path)?).map_err(failed(&path))?;
                vcpu.set_state(&state).map_err(|e| failed(&path)(LoadError::Mismatch(e.to_string())))?;
            }
            for cpu in 0..turns.len() {
                let path = format!("cpu{cpu}/msrs");
                let Ok(record) = find(&path) else { continue };
                let mut r = record.read(1).map_err(failed(&path))?;
                let numbers = r.get::<Vec<u64>>(1).map_err(failed(&path))?;
                let values = r.get::<Vec<u64>>(2).map_err(failed(&path))?;
                let list = numbers.iter().map(|n| *n as u32).zip(values).collect();
                inner.platform.keep_msrs(cpu as u32, list);
            }
            turns.load(find("turns")?).map_err(failed("turns"))
        })
    }

    /// RAM blocks in the order they were made.
    pub fn ram_blocks_list(&self) -> Vec<Arc<RamBlock>> {
        self.inner.pc.blocks.clone()
    }

    /// The hash of the state. The vCPUs stand while it is taken.
    pub fn state_hash(&self) -> Result<StateHash, ControlError> {
        let states = self.save_states();
        let (mut cpus, mut devices, mut ram) =
            (blake3::Hasher::new(), blake3::Hasher::new(), blake3::Hasher::new());
        let processors = PARTS + self.inner.config.smp.cpus as usize;
        for (n, (path, record)) in states.iter().enumerate() {
            let hasher = if n < processors { &mut cpus } else { &mut devices };
            hasher.update(path.as_bytes());
            hasher.update(&record.encode());
        }
        self.inner.cpus.pause(|turns| {
            turns.vm().sync_dirty();
            let mut page = vec![0; 1 << 16];
            for block in &self.inner.pc.blocks {
                ram.update(block.name().as_bytes());
                let mut at = 0;
                while at < block.len() {
                    let len = (block.len() - at).min(page.len() as u64) as usize;
                    block.read(at, &mut page[..len]);
                    // Pages of zeros count by their number only, so that large idle memory is quick.
                    if page[..len].iter().any(|b| *b != 0) {
                        ram.update(&at.to_le_bytes());
                        ram.update(&page[..len]);
                    }
                    at += len as u64;
                }
                ram.update(&block.len().to_le_bytes());
            }
        });
        let (cpus, devices, ram) = (cpus.finalize(), devices.finalize(), ram.finalize());
        let mut whole = blake3::Hasher::new();
        for part in [&cpus, &devices, &ram] {
            whole.update(part.as_bytes());
        }
        Ok(StateHash {
            instructions: self.inner.pc.clock.instructions(),
            cpus,
            devices,
            ram,
            whole: whole.finalize(),
        })
    }
}
