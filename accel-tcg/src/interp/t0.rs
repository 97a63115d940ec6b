//! The form that runs: direct-threaded operations of 24 bytes, and the blocks made of them.

use crate::env::{Cpu, Env, Fault};
use crate::helpers::{Flow, HelperArgs};
use crate::ir::{Block, Help};
use crate::mode::key;
use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;

/// Runs one operation and says which is next; null leaves to the run loop.
///
/// # Safety
/// `op` points into the operations of `cpu.t0.block` or into `cpu.t0.scratch`, which end with an operation that
/// leaves, and its operands were checked by `lower`.
pub(crate) type Handler = unsafe fn(cpu: &mut Cpu, op: *const T0) -> *const T0;

/// One operation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct T0 {
    /// What runs it.
    pub run: Handler,
    /// Immediate, displacement or pointer, by handler.
    pub imm: u64,
    /// Destination slot.
    pub d: u8,
    /// First slot.
    pub a: u8,
    /// Second slot.
    pub b: u8,
    /// Third slot.
    pub c: u8,
    /// Small extra (scale, condition), by handler.
    pub x: u8,
    /// Guest instruction in the block.
    pub insn: u8,
    /// Attributes, or number of instructions for operations that end the block.
    pub y: u16,
}

const _: () = assert!(size_of::<T0>() == 24);

/// Slots: 8-byte words of [`Env`] by index.
pub(crate) const ZERO: u8 = (offset_of!(Env, zero) / 8) as u8;
pub(crate) const TEMP: u8 = (offset_of!(Env, temps) / 8) as u8;
pub(crate) const TEMPS: usize = 64;
const SEG: usize = offset_of!(Env, seg) / 8;

const _: () = assert!(offset_of!(Env, gpr) == 0 && offset_of!(Env, temps) / 8 + TEMPS <= 256);
const _: () = assert!(SEG + 3 * 6 <= 256 && size_of::<anura_x86::Segment>() == 24);
const _: () = assert!(offset_of!(anura_x86::Segment, base) == 0);

/// Slot of a segment's base.
pub(crate) const fn base_slot(seg: u8) -> u8 {
    (SEG + 3 * seg as usize) as u8
}

/// A constant part of a helper call.
pub(crate) struct Site {
    pub rip: u64,
    pub help: Help,
    pub run: fn(&mut Cpu, &HelperArgs) -> Result<Flow, Fault>,
    pub args: HelperArgs,
}

impl Site {
    /// The site of call `n` of a block, which is made by instruction `insn`.
    pub fn new(b: &Block, n: usize, insn: u8) -> Self {
        let c = &b.calls[n];
        let insn = b.insns.get(insn as usize).copied().unwrap_or_default();
        let mask = if b.key & key::L64 != 0 { !0 } else { 0xffff_ffff };
        let rip = b.va.wrapping_add(insn.off.into()) & mask;
        let help = Help::ALL.get(c.id as usize).copied().unwrap_or(Help::Serialize);
        let args = HelperArgs {
            imm: c.imm,
            next_rip: rip.wrapping_add(insn.len.into()) & mask,
            reg: c.reg,
            reg2: c.reg2,
            size: c.size,
            asize: c.asize,
            rep: c.rep,
            mem: c.mem,
            ..HelperArgs::default()
        };
        Site { rip, help, run: crate::helpers::routine(help), args }
    }
}

/// A translated block, ready to run.
pub(crate) struct Code {
    /// Where it starts; the stale operation after its bytes changed.
    pub entry: Cell<*const T0>,
    /// RIP of the first instruction.
    pub rip: u64,
    /// Number of instructions.
    pub n: u32,
    /// Mode key.
    pub key: u32,
    /// Constant successors: taken and not taken.
    pub target: [u64; 2],
    /// The successors' code, if known and in the same page.
    pub link: [Cell<*const Code>; 2],
    /// Host address of the first byte.
    pub host: usize,
    /// Mode key with the single-instruction bit, as the index has it.
    pub index_key: u32,
    /// Host address of the second page, for a block that crosses.
    pub pa2: Option<u64>,
    /// Bytes covered.
    pub len: u32,
    /// Length of each instruction.
    pub lens: Box<[u8]>,
    /// The operations.
    pub ops: Box<[T0]>,
    /// Helper calls that operations point to.
    pub sites: Box<[Site]>,
    /// Opaque instructions that operations point to.
    pub thunks: Box<[super::thunk::Opaque]>,
    /// For fused pairs whose first half must run alone when the instruction before leaves: index and first half.
    pub halves: Box<[(u32, T0)]>,
    /// Who links here: code and link number.
    pub preds: Cell<Vec<(*const Code, u8)>>,
}

impl Code {
    /// RIP of an instruction.
    pub fn rip_of(&self, insn: u8) -> u64 {
        let off: u64 = self.lens[..(insn as usize).min(self.lens.len())].iter().map(|&l| u64::from(l)).sum();
        let rip = self.rip.wrapping_add(off);
        if self.key & crate::mode::key::L64 != 0 { rip } else { rip & 0xffff_ffff }
    }
}

/// Why operations stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// RIP is set; look at events and find the next block.
    Check,
    /// RIP is set; find the next block and link it to the current one's successor of that number.
    Link(u8),
    /// RIP is set; find the next block.
    Lookup,
    /// The instruction of this index faulted.
    Fault(u8),
    /// HLT.
    Halt,
    /// PAUSE.
    Yield,
}

/// Entries of the jump cache.
pub(crate) const JUMPS: usize = 4096;

/// From a RIP to its code, valid for one epoch and mode.
#[derive(Clone, Copy)]
pub(crate) struct Jump {
    pub rip: u64,
    pub tag: u64,
    pub code: *const Code,
}

/// What the interpreter keeps per processor.
pub struct State {
    pub(crate) block: *const Code,
    /// `icount` at which the budget ends.
    pub(crate) limit: u64,
    /// Instructions left in the budget beyond those of the running block; kept by `helper` around string instructions.
    pub(crate) slack: u64,
    pub(crate) exit: Exit,
    pub(crate) fault: Fault,
    /// Epoch and mode key that jump cache entries must have.
    pub(crate) tag: u64,
    /// The epoch that the running code was found in.
    pub(crate) epoch: u64,
    /// Base and limit of the last code segment that was not flat, and how often they changed: part of the tag.
    pub(crate) cs: (u64, u32),
    pub(crate) cs_changes: u64,
    pub(crate) jumps: Box<[Jump; JUMPS]>,
    /// The rest of an instruction after which execution leaves.
    pub(crate) scratch: Box<[T0; 64]>,
    /// Position in the shared list of pages that became code.
    pub(crate) protected: usize,
    /// Generation of the code cache that the jump cache belongs to.
    pub(crate) generation: u64,
    /// Something asked to leave after the running instruction.
    pub(crate) leave: bool,
    /// An instruction fetched from a device, which may read differently next time.
    pub(crate) passing: Option<Box<Code>>,
    /// What a debugger asked for.
    pub(crate) debug: anura_accel::DebugControl,
    /// What `info exits` counts.
    pub(crate) counts: Counts,
}

/// How often the slow ways were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub lookups: u64,
    pub links: u64,
    pub built: u64,
    pub faults: u64,
    pub interrupts: u64,
    pub stale: u64,
    pub flushes: u64,
}

// SAFETY: the pointers lead to code in the machine's cache, which outlives every processor, is freed only with the
// cache locked and the generation counted up, and is looked at only while the processor holds the cache.
unsafe impl Send for State {}

unsafe fn never(_: &mut Cpu, _: *const T0) -> *const T0 {
    ptr::null()
}

impl Default for State {
    fn default() -> Self {
        let empty = Jump { rip: 0, tag: u64::MAX, code: ptr::null() };
        let nothing = T0 { run: never, imm: 0, d: 0, a: 0, b: 0, c: 0, x: 0, insn: 0, y: 0 };
        State {
            block: ptr::null(),
            limit: 0,
            slack: 0,
            exit: Exit::Check,
            fault: Fault::UD,
            tag: 0,
            epoch: 0,
            cs: (0, 0),
            cs_changes: 0,
            jumps: Box::new([empty; JUMPS]),
            scratch: Box::new([nothing; 64]),
            protected: 0,
            generation: 0,
            leave: false,
            passing: None,
            debug: anura_accel::DebugControl::default(),
            counts: Counts::default(),
        }
    }
}

impl State {
    /// How many iterations of a repeated instruction the budget has room for, at least one: block entry has made
    /// sure of one instruction each, and this one's first iteration is among them.
    pub(crate) fn iterations(&self) -> u64 {
        self.slack + 1
    }

    #[inline(always)]
    pub(crate) fn jump_index(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize & (JUMPS - 1)
    }
}
