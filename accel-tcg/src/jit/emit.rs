//! T1: one pass over a block's IR that writes host code.
//!
//! Guest registers live in host registers of the same number, but RSP in r15, and R9, R10, R11 and R15, which stay in
//! the environment. r9 and r10 are scratch, r11 holds the TLB's current view, rsp the environment. Operations of one
//! guest instruction pass values in temporaries, which are held in scratch registers, folded into addresses, or left
//! in memory until somebody wants them.
//!
//! A guest instruction that this module cannot write is run by the interpreter, through a call.

pub(super) use access::{STACK, WRITE};

mod access;
mod exits;
mod flags;
mod groups;
mod near;
mod ops;
pub(crate) mod region;
mod system;
mod temps;
mod vector;
mod windows;

use super::asm::{Buf, Mem, Reg, Rm, reg};
use super::chaos::Chaos;
use super::stubs::Stub;
use crate::env::{Env, JitEnv};
use crate::interp::lower::lower;
use crate::interp::t0::{Code, Site as HelpSite};
use crate::interp::thunk;
use crate::ir::{Block, Help, Insn, Op, Opcode, Ref, Ty};
use crate::mode::key;
use crate::mutants::{self, emitted};
use crate::opt;
use anura_x86::regs::rflags;
use flags::Fl;
pub(super) use flags::{Loc, Recipe};
use std::mem::offset_of;

/// Displacements from the environment.
pub(super) mod at {
    use super::super::rt::Shared;
    use super::*;
    use crate::env::Cpu;
    use anura_x86::Msrs;
    pub const fn gpr(n: u8) -> i32 {
        n as i32 * 8
    }
    pub const fn temp(n: u16) -> i32 {
        offset_of!(Env, temps) as i32 + (n as i32 & 63) * 8
    }
    pub const fn seg_base(n: u8) -> i32 {
        (offset_of!(Env, seg) + n as usize * size_of::<anura_x86::Segment>()) as i32
    }
    pub const fn seg_sel(n: u8) -> i32 {
        seg_base(n) + offset_of!(anura_x86::Segment, selector) as i32
    }
    pub const RIP: i32 = offset_of!(Env, rip) as i32;
    pub const EFLAGS: i32 = offset_of!(Env, eflags_sys) as i32;
    pub const CC_OP: i32 = offset_of!(Env, cc_op) as i32;
    pub const CC_A: i32 = offset_of!(Env, cc_a) as i32;
    pub const CC_B: i32 = offset_of!(Env, cc_b) as i32;
    pub const CC_C: i32 = offset_of!(Env, cc_c) as i32;
    pub const FPU: i32 = offset_of!(Env, fpu) as i32;
    const JIT: usize = offset_of!(Env, jit);
    pub const HOST_RSP: i32 = (JIT + offset_of!(JitEnv, host_rsp)) as i32;
    pub const TLB: i32 = (JIT + offset_of!(JitEnv, tlb)) as i32;
    pub const TLB_MASK: i32 = (JIT + offset_of!(JitEnv, tlb_mask)) as i32;
    pub const POLL: i32 = (JIT + offset_of!(JitEnv, poll)) as i32;
    pub const BUDGET: i32 = (JIT + offset_of!(JitEnv, budget)) as i32;
    pub const EXIT: i32 = (JIT + offset_of!(JitEnv, exit)) as i32;
    pub const SITE: i32 = (JIT + offset_of!(JitEnv, site)) as i32;
    pub const TAG: i32 = (JIT + offset_of!(JitEnv, tag)) as i32;
    pub const EPOCH: i32 = (JIT + offset_of!(JitEnv, epoch)) as i32;
    pub const ARGS: i32 = (JIT + offset_of!(JitEnv, args)) as i32;
    pub const HOT: i32 = (JIT + offset_of!(JitEnv, hot)) as i32;
    pub const fn lent(n: usize) -> i32 {
        (JIT + offset_of!(JitEnv, lent) + n * 8) as i32
    }
    pub const fn window_base(n: usize) -> i32 {
        (JIT + offset_of!(JitEnv, windows) + n * 24) as i32
    }
    pub const fn window_span(n: usize) -> i32 {
        window_base(n) + 8
    }
    pub const fn window_host(n: usize) -> i32 {
        window_base(n) + 16
    }
    pub const WINDOW_OWNER: i32 = (JIT + offset_of!(JitEnv, window_owner)) as i32;
    pub const WINDOW_VIEW: i32 = (JIT + offset_of!(JitEnv, window_view)) as i32;
    /// In what routines and the run loop exchange.
    pub const ATTENTION: i32 = (offset_of!(Cpu, jit) + offset_of!(Shared, attention)) as i32;
    pub const PAUSES: i32 = (JIT + offset_of!(JitEnv, pauses)) as i32;
    pub const SLOTS: i32 = (JIT + offset_of!(JitEnv, slots)) as i32;
    pub const LIVE: i32 = (JIT + offset_of!(JitEnv, live)) as i32;
    pub const TSC_MULT: i32 = (JIT + offset_of!(JitEnv, tsc_mult)) as i32;
    pub const TSC_ADD: i32 = (JIT + offset_of!(JitEnv, tsc_add)) as i32;
    pub const TSC_BIAS: i32 = (JIT + offset_of!(JitEnv, tsc_bias)) as i32;
    pub const UNSURE: i32 = (JIT + offset_of!(JitEnv, unsure)) as i32;
    pub const CPUID: i32 = (JIT + offset_of!(JitEnv, cpuid)) as i32;
    pub const CR4: i32 = offset_of!(Env, cr4) as i32;
    pub const TSC_AUX: i32 = (offset_of!(Env, msrs) + offset_of!(Msrs, tsc_aux)) as i32;
    pub const KERNEL_GS_BASE: i32 = (offset_of!(Env, msrs) + offset_of!(Msrs, kernel_gs_base)) as i32;
    pub const MXCSR_HOST: i32 = (JIT + offset_of!(JitEnv, mxcsr_host)) as i32;
}

/// Exit codes, in the low three bits of what leaves.
pub(crate) mod code {
    /// RIP is set; somebody wants attention.
    pub const POLL: u32 = 0;
    /// RIP is set; find the block.
    pub const LOOKUP: u32 = 1;
    /// RIP is set; find the block and let the slot lead to it.
    pub const LINK: u32 = 2;
    /// The same for a slot with an epoch.
    pub const LINK_FAR: u32 = 3;
    /// The instruction at the site is to be run by the interpreter.
    pub const BAIL: u32 = 4;
    /// A helper or an interpreted instruction ended the block.
    pub const LEFT: u32 = 5;
    /// RIP is set; the budget does not cover the block.
    pub const BUDGET: u32 = 6;
    /// RIP is set, the target of a jump backward; enough of these were counted.
    pub const HOT: u32 = 7;
}

/// Where a branch of the emitted code leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Hot(u32),
    Cold(u32),
    Stub(Stub),
    /// A slot's first word.
    Slot(u32),
    /// Its second.
    Slot2(u32),
    /// The slot's offset with an exit code, as an immediate.
    SlotNumber(u32, u32),
    /// A label of the hot part; none is left when the code is finished.
    Label(u32),
}

/// A displacement to be filled in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fix {
    pub cold: bool,
    pub at: u32,
    pub to: To,
}

/// A place where the block can be left in the middle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Offset of the return address in the block's cold part.
    pub ret: u32,
    /// From the block's RIP to the instruction's.
    pub off: i16,
    /// Instructions that were counted and did not run.
    pub left: u8,
    /// Which of the block's recipes brings the flags home; [`Site::AT_HOME`] if they are.
    pub recipe: u16,
}

impl Lent {
    pub const NOBODY: u8 = 255;
    /// The instructions left.
    pub const BUDGET: u8 = 254;
}

impl Site {
    pub const AT_HOME: u16 = u16::MAX;
}

/// A host register whose guest register the code has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lent {
    /// The guest register that is there instead, [`Lent::BUDGET`], or [`Lent::NOBODY`] for what is the code's own.
    pub guest: u8,
    pub lender: u8,
}

/// A direct exit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    /// Offset of the code behind an unlinked slot, in the cold part.
    pub unlinked: u32,
    /// Guarded by an epoch.
    pub far: bool,
}

/// A helper call's constants.
pub(super) struct Helper {
    pub site: HelpSite,
    pub insn: u8,
    /// Instructions of the block.
    pub n: u8,
    pub stack: bool,
    /// Which of the three operands the code stores.
    pub args: u8,
    pub next: u64,
}

/// An instruction for the interpreter.
pub(super) struct Step {
    pub code: Box<Code>,
    pub insn: u8,
    /// Instructions of the block.
    pub n: u8,
    pub next: u64,
    /// The block ends with it.
    pub ends: bool,
}

/// What is written for a block.
#[derive(Default)]
pub(super) struct Output {
    pub hot: Buf,
    pub cold: Buf,
    pub fixes: Vec<Fix>,
    pub sites: Vec<Site>,
    pub recipes: Vec<Recipe>,
    /// The lender of number n waits in the environment's `lent[n]`.
    pub lent: Vec<Lent>,
    pub exits: Vec<Exit>,
    // Boxed, because code has their addresses.
    #[allow(clippy::vec_box)]
    pub helpers: Vec<Box<Helper>>,
    #[allow(clippy::vec_box)]
    pub steps: Vec<Box<Step>>,
    live: Vec<u32>,
    temps: Vec<Temp>,
    uses: Vec<u16>,
}

impl Output {
    /// Makes it empty, with what memory it has.
    pub fn clear(&mut self) {
        self.hot.bytes.clear();
        self.cold.bytes.clear();
        self.fixes.clear();
        self.sites.clear();
        self.recipes.clear();
        self.lent.clear();
        self.exits.clear();
        self.helpers.clear();
        self.steps.clear();
    }
}

/// What the host and the machine are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Instructions are counted.
    pub counted: bool,
    /// The host has BMI1, BMI2 and LZCNT.
    pub bmi: bool,
    /// Results that are the vendor's choice come from portable code.
    pub pinned: bool,
    /// More than one processor: locked operations must be.
    pub smp: bool,
    /// Some checks of accesses fail always.
    pub chaos: Chaos,
    /// Jumps backward are counted, so that loops are found.
    pub count: bool,
}

/// An address that has been computed nowhere yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    a: Ref,
    b: Ref,
    c: Ref,
    scale: u8,
    disp: i64,
}

/// Where a temporary's value is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Temp {
    Nothing,
    /// A scratch register.
    Reg(Reg),
    /// Its place in the environment.
    Spilled,
    /// Memory at r10 + r9, of this type.
    Pending(Ty),
    Address(Parts),
}

/// Who holds a scratch register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Free,
    Temp(u16),
    /// The running operation.
    Op,
}

const SCRATCH: [Reg; 2] = [reg::R9, reg::R10];

/// The access at the address that has just been checked.
const CHECKED: Mem = Mem { base: reg::R10, index: Some((reg::R9, 0)), disp: 0 };

pub(super) struct Emit<'a> {
    /// What is being written, of a region one of its parts.
    b: &'a Block,
    /// RIP that sites count from.
    base: u64,
    /// Host registers of the guest's.
    map: [Option<Reg>; 16],
    region: Option<region::Region<'a>>,
    options: Options,
    out: Output,
    fl: Fl,
    /// Status flags that the host's register has as the guest's.
    host: u32,
    live: Vec<u32>,
    temps: Vec<Temp>,
    uses: Vec<u16>,
    /// The running instruction's first temporary that is an address computed nowhere yet, if any is.
    addresses: Option<u16>,
    hold: [Hold; 2],
    /// Scratch registers that the running operation reads.
    locked: [bool; 2],
    insn: u8,
    crosses: bool,
    /// Vector and x87 registers are known to be in the host's.
    vectors: bool,
    x87: bool,
    /// The RIP that comes next was not checked, and RSP has been moved by this.
    unchecked: Option<i32>,
    /// The last look into the TLB, as far as it can be used again.
    near: Option<near::Near>,
    /// Index of the running operation.
    index: usize,
    arena: Option<&'a mut thunk::Arena>,
}

/// The host register of a guest register, if it has one, wherever code can be entered or left.
pub(super) const fn canonical(n: u8) -> Option<Reg> {
    match n {
        4 => Some(reg::R15),
        9 | 10 | 11 | 15 => None,
        n => Some(n),
    }
}

impl<'a> Emit<'a> {
    /// Writes a block. `crosses`: it has bytes of two pages.
    pub fn block(
        b: &'a Block,
        crosses: bool,
        options: Options,
        arena: Option<&'a mut thunk::Arena>,
        mut out: Output,
    ) -> Output {
        out.clear();
        let mut e = Emit::new(b, crosses, options, arena, out);
        e.prepare();
        e.prologue();
        e.body();
        e.finish()
    }

    fn new(
        b: &'a Block,
        crosses: bool,
        options: Options,
        arena: Option<&'a mut thunk::Arena>,
        mut out: Output,
    ) -> Self {
        let (uses, live) = (std::mem::take(&mut out.uses), std::mem::take(&mut out.live));
        let temps = std::mem::take(&mut out.temps);
        Emit {
            b,
            base: b.va,
            map: std::array::from_fn(|n| canonical(n as u8)),
            region: None,
            options,
            out,
            fl: Fl::Env { carry: false },
            host: 0,
            live,
            temps,
            uses,
            addresses: None,
            hold: [Hold::Free; 2],
            locked: [false; 2],
            insn: 0,
            crosses,
            vectors: false,
            x87: false,
            unchecked: None,
            near: None,
            index: 0,
            arena,
        }
    }

    fn finish(self) -> Output {
        let Emit { mut out, live, temps, uses, .. } = self;
        (out.live, out.temps, out.uses) = (live, temps, uses);
        out
    }

    /// The host register of a guest register, if it has one here.
    fn pin(&self, n: u8) -> Option<Reg> {
        self.map[usize::from(n & 15)]
    }

    /// What is to be known of the block before it is written.
    fn prepare(&mut self) {
        let b = self.b;
        self.near = None;
        self.uses.clear();
        self.uses.resize(b.temps as usize, 0);
        for o in &b.ops {
            for r in [o.a, o.b, o.c] {
                if let Some(t) = r.as_temp() {
                    self.uses[t as usize] += 1;
                }
            }
        }
        opt::flags::live_after(b, &mut self.live);
        self.temps.clear();
        self.temps.resize(b.temps as usize, Temp::Nothing);
        self.forget_temps();
        self.addresses = None;
        self.host = 0;
    }

    fn body(&mut self) {
        let b = self.b;
        let mut i = 0;
        while i < b.ops.len() {
            let insn = b.ops[i].insn;
            let n = b.ops[i..].iter().take_while(|o| o.insn == insn).count();
            self.insn = insn;
            self.instruction(i, n);
            i += n;
        }
    }

    fn prologue(&mut self) {
        if self.options.counted {
            let n = self.b.insns.len() as i32;
            let budget = Rm::Mem(Mem::env(at::BUDGET));
            self.out.hot.alu_rm_i(super::asm::alu::SUB, Ty::I64, budget, n);
            let j = self.out.hot.jcc(crate::ir::Cond::L);
            self.fix_hot(j, To::Cold(self.out.cold.len() as u32));
            self.out.cold.alu_rm_i(super::asm::alu::ADD, Ty::I64, budget, n);
            self.leave_cold(self.b.va, code::BUDGET);
        }
    }

    fn instruction(&mut self, first: usize, n: usize) {
        let b = self.b;
        let group = &b.ops[first..first + n];
        if !self.supported(group) {
            self.step(first, n);
            return;
        }
        if let [o, end] = group
            && end.op == Opcode::Exit
            && self.is_plain_cli(o)
        {
            let next = b.const_value(end.a).unwrap_or(0);
            return self.cli(next);
        }
        let mut i = 0;
        while i < n {
            self.index = first + i;
            emitted::begin(Some(group[i].op));
            let done = self.pattern(first + i, &group[i..]);
            if done > 0 {
                i += done;
            } else {
                let before = self.out.hot.touched;
                self.op(first + i, &group[i]);
                self.near_moves(&group[i], before);
                i += 1;
            }
            self.release();
        }
        emitted::begin(None);
        self.forget_temps();
        self.addresses = None;
    }

    // ---- branches and sites ----

    fn fix_hot(&mut self, at: usize, to: To) {
        self.out.fixes.push(Fix { cold: false, at: at as u32, to });
    }
    fn fix_cold(&mut self, at: usize, to: To) {
        self.out.fixes.push(Fix { cold: true, at: at as u32, to });
    }

    /// Cold code that leaves with RIP at `rip`.
    fn leave_cold(&mut self, rip: u64, code: u32) {
        self.out.cold.mov_imm(reg::R9, rip);
        self.out.cold.mov_imm(reg::R10, code.into());
        let j = self.out.cold.jmp();
        self.fix_cold(j, To::Stub(Stub::Exit));
    }

    /// Notes that a call which has just been written to the cold part can leave the running instruction.
    fn site(&mut self) {
        let recipe = self.recipe();
        let recipe = match self.out.recipes.iter().rposition(|r| *r == recipe) {
            _ if recipe.op == Recipe::NOTHING || mutants::on(mutants::J_RECIPE) => Site::AT_HOME,
            Some(n) => n as u16,
            None => {
                self.out.recipes.push(recipe);
                self.out.recipes.len() as u16 - 1
            }
        };
        let ret = self.out.cold.len() as u32;
        let insn = self.b.insns.get(usize::from(self.insn)).copied().unwrap_or_default();
        let off = self.b.va.wrapping_sub(self.base).wrapping_add(insn.off.into()) as i16;
        let left = (self.b.insns.len() as u8).wrapping_sub(self.insn);
        let left = mutants::pick(mutants::J_LEFT, left, left.wrapping_sub(1));
        self.out.sites.push(Site { ret, off, left, recipe });
    }

    /// Cold code that gives the running instruction to the interpreter; returns its offset.
    fn bail(&mut self) -> u32 {
        let at = self.out.cold.len() as u32;
        let c = self.out.cold.call();
        self.fix_cold(c, To::Stub(Stub::Bail));
        self.site();
        at
    }

    // ---- calls ----

    /// Lets the interpreter run the instruction whose operations are these.
    fn step(&mut self, first: usize, n: usize) {
        let b = self.b;
        self.forget_temps();
        self.materialize();
        let insn = b.insns.get(self.insn as usize).copied().unwrap_or_default();
        let next = self.rip_after(insn);
        let ends = b.ops[first + n - 1].op.info().ends;
        let code = single(b, first, n, insn, next, self.arena.as_deref_mut());
        let step = Box::new(Step { code, insn: self.insn, n: b.insns.len() as u8, next, ends });
        let p: *const Step = &raw const *step;
        self.out.steps.push(step);
        self.call(p as u64, Stub::Step);
        self.called();
    }

    /// Calls a stub with an argument.
    fn call(&mut self, argument: u64, stub: Stub) {
        self.give_back();
        self.out.hot.mov_imm(reg::R10, argument);
        let c = self.out.hot.call();
        self.fix_hot(c, To::Stub(stub));
        self.borrow();
    }

    /// After a call that may have done anything.
    fn called(&mut self) {
        self.fl = Fl::Env { carry: false };
        self.host = 0;
        (self.vectors, self.x87) = (false, false);
        self.near = None;
        if let Some(r) = &mut self.region {
            r.groups().close();
        }
    }

    fn rip_after(&self, insn: Insn) -> u64 {
        let rip = self.b.va.wrapping_add(insn.off.into()).wrapping_add(insn.len.into());
        if self.b.key & key::L64 != 0 { rip } else { rip & 0xffff_ffff }
    }

    /// CLI in the most privileged ring: nothing can fault and nothing can be waiting for it.
    pub(crate) fn is_plain_cli(&self, o: &Op) -> bool {
        o.op == Opcode::Helper
            && self.b.calls[o.imm as usize].id == Help::Cli as u16
            && self.b.key & (key::PROT | key::CPL) == key::PROT
    }

    fn cli(&mut self, next: u64) {
        self.materialize();
        let flags = Rm::Mem(Mem::env(at::EFLAGS));
        self.out.hot.alu_rm_i(super::asm::alu::AND, Ty::I64, flags, !(rflags::IF as i32));
        self.host = 0;
        self.exit_to(next);
    }

    fn helper(&mut self, o: &Op) {
        if self.without_call(o) {
            return;
        }
        let mut args = 0;
        for (n, r) in [o.a, o.b, o.c].into_iter().enumerate() {
            if r == Ref::NONE {
                continue;
            }
            args |= 1 << n;
            let to = Mem::env(at::ARGS + n as i32 * 8);
            match self.imm(r, Ty::I64) {
                Some(v) => self.out.hot.mov_m_i(Ty::I64, to, v),
                None => {
                    let s = self.reg(r, Ty::I64);
                    self.out.hot.mov_rm_r(Ty::I64, Rm::Mem(to), s);
                }
            }
            self.release();
        }
        self.forget_temps();
        self.materialize();
        let p = self.constants(o, args);
        self.call(p as u64, Stub::Helper);
        let help = self.out.helpers.last().map_or(Help::Serialize, |h| h.site.help);
        self.called_helper(help);
    }

    /// The constants of a helper's call. `args`: which operands the code stores.
    fn constants(&mut self, o: &Op, args: u8) -> *const Helper {
        let b = self.b;
        let site = HelpSite::new(b, o.imm as usize, self.insn);
        let next = site.args.next_rip;
        let helper = Box::new(Helper {
            site,
            insn: self.insn,
            n: b.insns.len() as u8,
            stack: o.attr.stack(),
            args,
            next,
        });
        let p: *const Helper = &raw const *helper;
        self.out.helpers.push(helper);
        p
    }
}

/// The operations of one instruction as a block of its own, for the interpreter.
fn single(
    b: &Block,
    first: usize,
    n: usize,
    insn: Insn,
    next: u64,
    arena: Option<&mut thunk::Arena>,
) -> Box<Code> {
    let mut one = Block {
        pa: b.pa + u64::from(insn.off),
        va: b.va.wrapping_add(insn.off.into()),
        key: b.key,
        ops: b.ops[first..first + n].to_vec(),
        pool: b.pool.clone(),
        insns: vec![Insn { off: 0, len: insn.len }],
        temps: b.temps,
        ..Block::default()
    };
    if b.key & key::L64 == 0 {
        one.va &= 0xffff_ffff;
    }
    for o in &mut one.ops {
        o.insn = 0;
        match o.op {
            Opcode::Helper => {
                one.calls.push(b.calls[o.imm as usize].clone());
                o.imm = one.calls.len() as u32 - 1;
            }
            Opcode::X86 => {
                one.opaques.push(b.opaques[o.imm as usize].clone());
                o.imm = one.opaques.len() as u32 - 1;
            }
            _ => {}
        }
    }
    if !one.ops.last().is_some_and(|o| o.op.info().ends) {
        let a = one.constant(next);
        one.ops.push(Op { a, ..Op::new(Opcode::Exit, Ty::I64) });
    }
    lower(&one, arena, b.key, None)
}
