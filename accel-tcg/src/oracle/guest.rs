//! Our side: the same bytes at the same linear addresses in a small machine.
use super::generate::Width;
use super::{CODE, CODE_BYTES, DATA, FpImage, Outcome, Trap};
use crate::env::{Cpu, VmShared};
use crate::jit::engine::Setup;
use crate::testbed::{TestBed, enter_long_mode};
use crate::vcpu::SoftVcpu;
use anura_accel::{Budget, Vcpu, VcpuExit};
use anura_vmcore::CpuSignal;
use anura_x86::desc::Descriptor;
use anura_x86::regs::{cr4, error, rflags, vector, xcr0};
use anura_x86::{Segment, TableReg};
use std::sync::Arc;

/// Where supervisor structures lie: physical addresses from 0, behind this linear offset, which
/// user registers never hold by design.
const HIGH: u64 = 0xffff_9000_0000_0000;
const ROOT: u64 = 0x1_0000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const STACK: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const CODE_AT: u64 = 0x20_0000;
const DATA_AT: u64 = 0x30_0000;
const USER_CODE: u16 = 0x33;
const USER_CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2b;

/// What runs an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// The interpreter, which has the host run vector and x87 instructions (thunks).
    Thunks,
    /// The interpreter with portable code for them.
    Portable,
    /// Translated code.
    Jit,
}

impl Runner {
    /// Its name in what is found.
    pub fn name(self) -> &'static str {
        match self {
            Self::Thunks => "",
            Self::Portable => " (portable)",
            Self::Jit => " (translated)",
        }
    }
}

/// Where a byte of the data lies: the pages are not in order, so that whoever runs over the end of one is found out.
fn physical(offset: u64) -> u64 {
    DATA_AT + offset % 0x1000 + (7 - 2 * (offset / 0x1000)) * 0x1000
}

/// Lengths of the parts of a range that are each in one page.
fn pieces(offset: usize, len: usize) -> impl Iterator<Item = usize> {
    let (mut at, end) = (offset, offset + len);
    std::iter::from_fn(move || {
        let next = end.min((at / 0x1000 + 1) * 0x1000);
        let piece = next - std::mem::replace(&mut at, next);
        (piece != 0).then_some(piece)
    })
}

/// The machine and its processor.
pub struct Guest {
    bed: TestBed,
    vcpu: SoftVcpu,
    /// Control registers and segments at the start of each case.
    start: Box<anura_x86::CpuState>,
}

impl Guest {
    /// A machine with tables for user code, and handlers that halt.
    ///
    /// # Panics
    /// If translated code is wanted and the host gives no memory for it.
    pub fn new(width: Width, runner: Runner) -> Self {
        let bed = TestBed::new(4 << 20, "max");
        let mut next = ROOT + 0x1000;
        for page in 0..16 {
            bed.map_page(ROOT, &mut next, HIGH + page * 0x1000, page << 12 | 3);
        }
        for page in 0..CODE_BYTES as u64 / 0x1000 {
            bed.map_page(ROOT, &mut next, CODE + page * 0x1000, CODE_AT + page * 0x1000 | 5);
        }
        for (page, rights) in [7, 7, 5 | 1 << 63].into_iter().enumerate() {
            let page = page as u64 * 0x1000;
            // Data cannot be executed on the host either.
            bed.map_page(ROOT, &mut next, DATA + page, physical(page) | rights | 1 << 63);
        }
        for v in 0..32u64 {
            let at = HIGH + HANDLERS + v * 16;
            let gate = Descriptor::gate(8, at as u32, if v == 3 || v == 4 { 0xee } else { 0x8e }, 0);
            bed.put(IDT + v * 16, gate.0);
            bed.put(IDT + v * 16 + 8, at >> 32);
            bed.put(HANDLERS + v * 16, 0xf4f4_f4f4_f4f4_f4f4);
        }
        bed.put(GDT + 8, Descriptor::segment(0, 0xfffff, 0xa09b).0);
        bed.put(TSS + 4, HIGH + STACK);
        let shared = VmShared::with_pages(&bed.spaces, &bed.config, Arc::default());
        if runner == Runner::Portable {
            shared.code.forbid_thunks();
        }
        let mut vcpu = match runner {
            Runner::Jit => translating(shared),
            _ => SoftVcpu::new(shared, 0, CpuSignal::new()),
        };
        let cpu = vcpu.cpu();
        enter_long_mode(cpu, ROOT, 3);
        let e = &mut cpu.env;
        e.cr4 |= cr4::OSXSAVE | cr4::FSGSBASE;
        e.xcr0 = xcr0::ALL;
        e.gdtr = TableReg { base: HIGH + GDT, limit: 0x7f };
        e.idtr = TableReg { base: HIGH + IDT, limit: 0x1ff };
        e.tr = Segment::new(0x40, HIGH + TSS, 0x67, 0x8b);
        for s in &mut e.seg {
            s.selector = USER_DATA;
        }
        e.seg[1].selector = USER_CODE;
        if width == Width::Bits32 {
            e.seg[1] = Segment::new(USER_CODE32, 0, u32::MAX, 0xc0fb);
        }
        cpu.after_load();
        let start = Box::new(cpu.save_state());
        Self { bed, vcpu, start }
    }

    /// The CPU model.
    pub fn model(&self) -> &anura_x86::CpuModel {
        &self.bed.config.model
    }

    /// Puts an instruction at an offset in the code, with bytes behind it that are never run.
    pub fn place(&mut self, offset: usize, bytes: &[u8]) {
        let mut slot = [0xf4; 64];
        slot[..bytes.len()].copy_from_slice(bytes);
        self.bed.ram.write(CODE_AT + offset as u64, &slot);
    }

    /// Reads data.
    pub fn data(&self, offset: usize, buf: &mut [u8]) {
        let mut at = offset;
        for piece in pieces(offset, buf.len()) {
            let bytes = &mut buf[at - offset..][..piece];
            self.bed.ram.read(physical(at as u64), bytes);
            at += piece;
        }
    }

    /// Vector and x87 registers as they are.
    pub fn fp(&mut self) -> &FpImage {
        &self.vcpu.cpu().env.fpu
    }

    /// Writes data.
    pub fn set_data(&mut self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        for piece in pieces(offset, bytes.len()) {
            self.bed.ram.write(physical(at as u64), &bytes[at - offset..][..piece]);
            at += piece;
        }
    }

    /// Runs the instruction at an offset. Repeated string instructions run to their end.
    pub fn run(
        &mut self,
        offset: usize,
        gpr: &[u64; 16],
        flags: u64,
        fp: Option<&FpImage>,
    ) -> Result<Outcome, String> {
        let rip = CODE + offset as u64;
        let cpu = self.vcpu.cpu();
        let e = &mut cpu.env;
        e.gpr = *gpr;
        e.rip = rip;
        if let Some(fp) = fp {
            e.fpu.clone_from(fp);
        }
        e.seg = self.start.seg;
        e.halted = false;
        e.shutdown = false;
        e.cr2 = 0;
        e.set_rflags(flags);
        cpu.mode_changed();
        for _ in 0..64 {
            match self.vcpu.run(Budget::Instructions(1)) {
                VcpuExit::BudgetSpent | VcpuExit::Halted | VcpuExit::Interrupted => {}
                other => return Err(format!("left with {other:?}")),
            }
            if self.vcpu.cpu().env.rip != rip {
                break;
            }
        }
        let cpu = self.vcpu.cpu();
        let mut out = Outcome { gpr: cpu.env.gpr, rip: cpu.env.rip, flags: cpu.env.rflags(), trap: None };
        if cpu.env.cpl() == 0 {
            read_frame(cpu, &self.bed, &mut out)?;
        }
        Ok(out)
    }
}

/// A processor that translates each instruction by itself and counts, so that budgets of one are exact.
fn translating(shared: Arc<VmShared>) -> SoftVcpu {
    let setup = Setup {
        size: 4 << 20,
        counted: true,
        smp: false,
        one_insn: true,
        by_blocks: false,
        numbers: Arc::default(),
        perf: None,
        // Some accesses always go the long way.
        chaos: 1,
        jumps_back: u32::MAX,
    };
    SoftVcpu::with_jit(shared, 0, CpuSignal::new(), setup).expect("memory for translated code")
}

/// Takes the exception's number, error code and saved registers from the handler's stack.
fn read_frame(cpu: &Cpu, bed: &TestBed, out: &mut Outcome) -> Result<(), String> {
    let at = cpu.env.rip.wrapping_sub(HIGH + HANDLERS);
    if at >= 512 {
        return Err(format!("supervisor code at {:#x}", cpu.env.rip));
    }
    let v = (at / 16) as u8;
    let mut sp = cpu.env.gpr[4].wrapping_sub(HIGH);
    let mut trap = Trap { vector: v, error: 0, cr2: 0 };
    if vector::has_error_code(v) {
        trap.error = bed.get(sp) as u32;
        sp += 8;
    }
    if v == vector::PF {
        trap.cr2 = cpu.env.cr2;
    }
    out.rip = bed.get(sp);
    out.flags = bed.get(sp + 16) & !rflags::RF;
    out.gpr[4] = bed.get(sp + 24);
    out.trap = Some(trap);
    Ok(())
}

/// Whether a page fault came from a fetch.
pub fn is_fetch(t: &Trap) -> bool {
    t.vector == vector::PF && t.error & error::PF_I != 0
}
