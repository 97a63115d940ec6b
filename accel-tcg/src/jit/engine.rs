//! The engine `-accel jit`.

use super::blocks::{Counts, Jit};
use super::perf::PerfFiles;
use crate::cache::CodePages;
use crate::env::{Cpu, VmShared};
use crate::vcpu::{Interp, SoftVcpu};
use anura_accel::{AccelError, AccelVm, Accelerator, Capabilities, Unavailable, Vcpu, VmConfig, VmSpaces};
use anura_vmcore::CpuSignal;
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes of code that all vCPUs together may hold, unless the user says otherwise.
const CODE: usize = 128 << 20;
/// Bytes of code per vCPU under disturbances: so few that blocks go all the time.
const DISTURBED: usize = 512 << 10;
/// Jumps backward for one that is looked at under disturbances: so few that short loops become ones as a whole.
const DISTURBED_JUMPS: u32 = 16;

/// The JIT engine.
#[derive(Clone, Copy, Debug)]
pub struct JitEngine {
    /// All vCPUs take turns on one thread, as in counted time.
    pub single_thread: bool,
    /// Budgets in instructions are exact even where time is not counted.
    pub exact: bool,
    /// Every block is of one instruction.
    pub one_insn: bool,
    /// A run ends behind each translated block, or loop that is one, so that states can be compared there.
    pub by_blocks: bool,
    /// Translated code is named in a map for `perf`.
    pub perf_map: bool,
    /// Translated code is written to a dump for `perf`.
    pub jit_dump: bool,
    /// A seed for disturbances that must not change what a guest computes, for tests; 0 for none.
    pub chaos: u64,
    /// Bytes of translated code at most, for all vCPUs together.
    pub code_bytes: usize,
    /// Of so many jumps backward one is looked at in search of loops to be translated as a whole.
    pub jumps_back: u32,
}

impl Default for JitEngine {
    fn default() -> Self {
        JitEngine {
            single_thread: false,
            exact: false,
            one_insn: false,
            by_blocks: false,
            perf_map: false,
            jit_dump: false,
            chaos: 0,
            code_bytes: CODE,
            jumps_back: 1024,
        }
    }
}

impl Accelerator for JitEngine {
    fn name(&self) -> &'static str {
        "jit"
    }

    fn probe(&self) -> Result<Capabilities, Unavailable> {
        let slow = crate::generated_code()
            .err()
            .map(|e| format!("this host gives no memory for generated code ({e}), so the interpreter runs"));
        let in_turn = self.single_thread || self.exact;
        Ok(Capabilities { exact_budgets: true, max_vcpus: 255, in_turn, slow, ..Capabilities::default() })
    }

    fn create_vm(&self, spaces: &VmSpaces, config: &VmConfig) -> Result<Arc<dyn AccelVm>, AccelError> {
        if crate::generated_code().is_err() {
            return Interp.create_vm(spaces, config);
        }
        let perf = PerfFiles::create(self.perf_map, self.jit_dump).map_err(|source| AccelError::Host {
            engine: "jit",
            what: "the files for perf cannot be written".into(),
            source,
        })?;
        Ok(Arc::new(Vm {
            spaces: spaces.clone(),
            config: config.clone(),
            engine: *self,
            pages: Arc::default(),
            info: Mutex::default(),
            perf: perf.map(Arc::new),
        }))
    }
}

struct Vm {
    spaces: VmSpaces,
    config: VmConfig,
    engine: JitEngine,
    pages: Arc<CodePages>,
    info: Mutex<Vec<Arc<Mutex<Numbers>>>>,
    perf: Option<Arc<PerfFiles>>,
}

/// How a vCPU is to translate.
pub(crate) struct Setup {
    /// Bytes of code at most.
    pub size: usize,
    /// Budgets in instructions are exact.
    pub counted: bool,
    /// Other processors run at the same time.
    pub smp: bool,
    /// Blocks are of one instruction.
    pub one_insn: bool,
    /// Runs end behind each block.
    pub by_blocks: bool,
    pub numbers: Arc<Mutex<Numbers>>,
    pub perf: Option<Arc<PerfFiles>>,
    /// Seed of disturbances, or 0.
    pub chaos: u64,
    /// See [`JitEngine::jumps_back`].
    pub jumps_back: u32,
}

/// What a vCPU shows of its translations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    pub counts: Counts,
    pub bytes: [usize; 3],
    /// Bytes of code and data at most.
    pub size: usize,
    pub live: usize,
    /// What the memory unit counts.
    pub memory: [(&'static str, u64); 10],
}

impl Jit {
    /// What is shown of it, with what its memory unit counts.
    pub fn numbers(&self, cpu: &Cpu) -> Numbers {
        Numbers {
            counts: self.counts,
            bytes: self.arena.used(),
            size: self.arena.size(),
            live: self.index.len(),
            memory: cpu.mmu.counts(),
        }
    }
}

impl AccelVm for Vm {
    fn create_vcpu(&self, id: u32, signal: Arc<CpuSignal>) -> Result<Box<dyn Vcpu>, AccelError> {
        let vcpus = self.config.topology.total().max(1) as usize;
        let counted = self.config.counted || self.engine.single_thread || self.engine.exact;
        let size = match self.engine.chaos {
            0 => self.engine.code_bytes / vcpus,
            _ => DISTURBED.min(self.engine.code_bytes / vcpus),
        };
        // Every vCPU has its own translations, and hears of writes to code by itself.
        let shared = VmShared::with_pages(&self.spaces, &self.config, self.pages.clone());
        let numbers = Arc::new(Mutex::new(Numbers::default()));
        self.info.lock().push(numbers.clone());
        let setup = Setup {
            size,
            counted,
            smp: vcpus > 1 && !counted,
            one_insn: self.engine.one_insn,
            by_blocks: self.engine.by_blocks,
            numbers,
            perf: self.perf.clone(),
            chaos: self.engine.chaos.wrapping_mul(2 * u64::from(id) + 1),
            jumps_back: match self.engine.chaos {
                0 => self.engine.jumps_back,
                _ => DISTURBED_JUMPS.min(self.engine.jumps_back),
            },
        };
        SoftVcpu::with_jit(shared, id, signal, setup).map(|v| Box::new(v) as Box<dyn Vcpu>).map_err(
            |source| AccelError::Host {
                engine: "jit",
                what: "the host gives no memory for generated code".into(),
                source,
            },
        )
    }

    fn info(&self) -> String {
        let mut text = String::new();
        for (n, cpu) in self.info.lock().iter().enumerate() {
            let Numbers { counts: c, bytes, size, live, memory } = *cpu.lock();
            let share = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
            let time = c.time + c.making_room;
            let nanos = time.as_nanos() as f64 / (c.instructions.max(1)) as f64;
            text += &format!(
                "CPU #{n}: {live} blocks, {} translated ({} instructions, {} bytes of guest code)\n\
                 code: {} bytes hot, {} cold, {} of links, of {size} in all; {} flushes, {} chunks evicted ({} blocks), \
                 {} blocks invalidated\n\
                 translation: {:.3} s of CPU, {nanos:.0} ns per instruction ({:.3} s for room)\n\
                 blocks looked for by the run loop: {}, found by the table of jumps: {:.1} %, by place: {:.1} %, \
                 made: {:.1} %\n\
                 links made: {}, instructions begun anew: {}, instructions interpreted by call: {}\n\
                 loops translated: {}\n",
                c.blocks,
                c.instructions,
                c.guest_bytes,
                bytes[0],
                bytes[1],
                bytes[2],
                c.flushes,
                c.chunks_evicted,
                c.evicted,
                c.invalidated,
                time.as_secs_f64(),
                c.making_room.as_secs_f64(),
                c.entries,
                share(c.entries.saturating_sub(c.lookups), c.entries),
                share(c.lookups.saturating_sub(c.blocks), c.entries),
                share(c.blocks, c.entries),
                c.links,
                c.bails,
                c.steps,
                c.regions,
            );
            let memory: Vec<_> = memory.iter().filter(|(name, _)| !name.is_empty()).collect();
            let memory: Vec<_> = memory.iter().map(|(name, n)| format!("{name}: {n}")).collect();
            text += &format!("memory: {}\n", memory.join(", "));
        }
        text
    }
}
