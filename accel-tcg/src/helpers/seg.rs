//! Segment registers and descriptor tables: loads with their checks, LAR and its sisters.
use super::{Flow, HelperArgs};
use crate::env::{Cpu, Exec, Fault};
use crate::interp::flags;
use crate::mmu::View;
use crate::mode::key;
use anura_x86::desc::{Descriptor, Selector, system};
use anura_x86::regs::{cr4, rflags, vector};
use anura_x86::segment::index::{CS, DS, ES, FS, GS, SS};
use anura_x86::{Attr, Segment, TableReg};

/// A fault with a selector error code.
pub(crate) fn fault(vector: u8, selector: u16, ext: u32) -> Fault {
    Fault::with_error(vector, Selector(selector).error() | ext)
}

impl Cpu {
    /// Reads the descriptor that a selector names; the given fault if it is outside its table.
    pub(crate) fn read_descriptor(&mut self, selector: u16, otherwise: Fault) -> Exec<Descriptor> {
        let (base, limit) = self.table(selector).ok_or(otherwise)?;
        let at = Selector(selector).offset();
        if at + 7 > limit {
            return Err(otherwise);
        }
        self.read_u64(base.wrapping_add(at), View::Super).map(Descriptor)
    }

    /// Reads the second half of a 16-byte descriptor, whose upper type field must be zero.
    pub(crate) fn read_upper_half(&mut self, selector: u16, otherwise: Fault) -> Exec<u32> {
        let (base, limit) = self.table(selector).ok_or(otherwise)?;
        let at = Selector(selector).offset();
        if at + 15 > limit {
            return Err(otherwise);
        }
        let high = self.read_u64(base.wrapping_add(at + 8), View::Super)?;
        if high >> 40 & 0x1f != 0 {
            return Err(otherwise);
        }
        Ok(high as u32)
    }

    fn table(&self, selector: u16) -> Option<(u64, u64)> {
        if Selector(selector).is_ldt() {
            let t = &self.env.ldtr;
            (!t.attr.unusable()).then_some((t.base, t.limit.into()))
        } else {
            Some((self.env.gdtr.base, self.env.gdtr.limit.into()))
        }
    }

    /// Sets the accessed bit of a code or data descriptor in memory, if it is not set.
    pub(crate) fn mark_accessed(&mut self, selector: u16, d: Descriptor) -> Exec<()> {
        if d.high() & 1 << 8 != 0 {
            return Ok(());
        }
        let Some((base, _)) = self.table(selector) else { return Ok(()) };
        let at = base.wrapping_add(Selector(selector).offset() + 5);
        self.write_u8(at, (d.high() >> 8) as u8 | 1, View::Super)
    }

    /// Puts a code or data descriptor into a segment register.
    pub(crate) fn set_segment(&mut self, index: usize, selector: u16, d: Descriptor) {
        let mut s = Segment::from_descriptor(selector, d.low(), d.high());
        s.attr.set_kind(s.attr.kind() | 1);
        self.env.seg[index] = s;
    }

    /// Whether segment registers are loaded as selector times 16.
    pub(crate) fn is_real_or_v86(&self) -> bool {
        self.env.mode_key & key::PROT == 0
    }

    /// MOV or POP to a segment register other than CS.
    pub(crate) fn load_segment(&mut self, index: usize, selector: u16) -> Exec<()> {
        if self.is_real_or_v86() {
            let v86 = self.env.mode_key & key::V86 != 0;
            let s = &mut self.env.seg[index];
            s.selector = selector;
            s.base = u64::from(selector) << 4;
            if v86 {
                (s.limit, s.attr) = (0xffff, Attr::from_bits(0xf3));
            } else if s.attr.unusable() {
                // What a null selector of protected mode left is usable again.
                (s.limit, s.attr) = (0xffff, Attr::from_bits(0x93));
            }
            self.mode_changed();
            return Ok(());
        }
        let sel = Selector(selector);
        let cpl = self.env.cpl();
        let gp = fault(vector::GP, selector, 0);
        if sel.is_null() {
            if index == SS {
                if !self.env.is_64bit() || cpl == 3 || sel.rpl() != cpl {
                    return Err(Fault::GP0);
                }
                self.env.seg[SS] = null_stack(selector, cpl);
            } else {
                self.env.seg[index] = Segment::null(selector);
            }
            self.data_segment_changed();
            return Ok(());
        }
        let d = self.read_descriptor(selector, gp)?;
        let a = d.attr();
        if !a.s() {
            return Err(gp);
        }
        if index == SS {
            if sel.rpl() != cpl || a.is_code() || !a.is_writable() || a.dpl() != cpl {
                return Err(gp);
            }
            if !a.p() {
                return Err(fault(vector::SS, selector, 0));
            }
        } else {
            if !a.is_readable() {
                return Err(gp);
            }
            if !a.is_conforming() && (sel.rpl() > a.dpl() || cpl > a.dpl()) {
                return Err(gp);
            }
            if !a.p() {
                return Err(fault(vector::NP, selector, 0));
            }
        }
        self.mark_accessed(selector, d)?;
        self.set_segment(index, selector, d);
        self.data_segment_changed();
        Ok(())
    }

    /// In 64-bit code nothing depends on the segments of data, and SS keeps its DPL.
    #[inline]
    fn data_segment_changed(&mut self) {
        if !self.env.is_64bit() {
            self.mode_changed();
        }
    }

    /// After a return to an outer level: data segments that it may not use become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        let cpl = self.env.cpl();
        for index in [ES, DS, FS, GS] {
            let s = &mut self.env.seg[index];
            let a = s.attr;
            if !a.unusable() && a.s() && !a.is_conforming() && a.dpl() < cpl {
                // Processors keep the hidden base, which 64-bit code sees through FS and GS.
                *s = Segment { base: s.base, ..Segment::null(0) };
            }
        }
    }
}

/// A null SS in 64-bit code: its DPL is the CPL.
pub(crate) fn null_stack(selector: u16, cpl: u8) -> Segment {
    let attr = Attr::from_bits(0x1_0000).with_dpl(cpl);
    Segment { base: 0, limit: 0, attr, selector }
}

/// MOV to a segment register.
pub fn mov_to_sreg(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let index = usize::from(a.reg);
    if index == CS || index > GS {
        return Err(Fault::UD);
    }
    cpu.load_segment(index, a.a as u16)?;
    Ok(after_segment(cpu, index))
}

/// A load of SS shadows the next instruction; all loads may change the mode key.
fn after_segment(cpu: &mut Cpu, index: usize) -> Flow {
    if index == SS {
        cpu.env.shadow = anura_x86::Shadow::MovSs;
    }
    Flow::EndBlock
}

/// POP of a segment register; `imm` is the operand size.
pub fn pop_sreg(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let index = usize::from(a.reg);
    let mut stack = super::Stack::current(cpu);
    let selector = stack.pop(cpu, 2)?;
    stack.skip(a.imm - 2);
    cpu.load_segment(index, selector as u16)?;
    stack.commit(cpu);
    Ok(after_segment(cpu, index))
}

/// LDS, LES, LFS, LGS, LSS: selector `a`, offset `b`, segment `reg`, register `reg2`.
pub fn load_far(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    cpu.load_segment(usize::from(a.reg), a.a as u16)?;
    cpu.env.put_gpr(a.reg2, a.size, a.b);
    // No shadow: only MOV and POP to SS make one.
    Ok(Flow::EndBlock)
}

fn need_protected(cpu: &Cpu) -> Exec<()> {
    if cpu.is_real_or_v86() { Err(Fault::UD) } else { Ok(()) }
}
fn need_cpl0(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cpl() != 0 { Err(Fault::GP0) } else { Ok(()) }
}
fn need_no_umip(cpu: &Cpu) -> Exec<()> {
    let umip = cpu.env.cr4 & cr4::UMIP != 0 && cpu.env.cpl() != 0;
    if umip { Err(Fault::GP0) } else { Ok(()) }
}

/// LLDT.
pub fn lldt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_protected(cpu)?;
    need_cpl0(cpu)?;
    let selector = a.a as u16;
    if Selector(selector).is_null() {
        cpu.env.ldtr = Segment::null(selector);
        return Ok(Flow::Next);
    }
    cpu.env.ldtr = load_system(cpu, selector, &[system::LDT])?;
    Ok(Flow::Next)
}

/// LTR.
pub fn ltr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_protected(cpu)?;
    need_cpl0(cpu)?;
    let selector = a.a as u16;
    if Selector(selector).is_null() {
        return Err(Fault::GP0);
    }
    let kinds: &[u8] = if cpu.env.long_mode() { &[system::TSS] } else { &[system::TSS16, system::TSS] };
    let mut tr = load_system(cpu, selector, kinds)?;
    tr.attr.set_kind(tr.attr.kind() | 2);
    let at = cpu.env.gdtr.base.wrapping_add(Selector(selector).offset() + 5);
    let byte = cpu.read_u8(at, View::Super)?;
    cpu.write_u8(at, byte | 2, View::Super)?;
    cpu.env.tr = tr;
    Ok(Flow::Next)
}

/// A system descriptor of the GDT, 16 bytes in long mode.
fn load_system(cpu: &mut Cpu, selector: u16, kinds: &[u8]) -> Exec<Segment> {
    let gp = fault(vector::GP, selector, 0);
    if Selector(selector).is_ldt() {
        return Err(gp);
    }
    let d = cpu.read_descriptor(selector, gp)?;
    let a = d.attr();
    if a.s() || !kinds.contains(&a.kind()) {
        return Err(gp);
    }
    let upper = if cpu.env.long_mode() { cpu.read_upper_half(selector, gp)? } else { 0 };
    if !a.p() {
        return Err(fault(vector::NP, selector, 0));
    }
    let mut s = Segment::from_descriptor(selector, d.low(), d.high());
    s.base |= u64::from(upper) << 32;
    if !cpu.canonical_base(s.base) {
        return Err(gp);
    }
    Ok(s)
}

/// Stores a system register's selector: to memory 2 bytes, to a register zero-extended.
fn store_word(cpu: &mut Cpu, a: &HelperArgs, value: u64) -> Exec<Flow> {
    if a.mem {
        cpu.write_u16(a.a, value as u16, View::Data)?;
    } else {
        cpu.env.put_gpr(a.reg, a.size, value);
    }
    Ok(Flow::Next)
}

/// SLDT.
pub fn sldt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_protected(cpu)?;
    need_no_umip(cpu)?;
    store_word(cpu, a, cpu.env.ldtr.selector.into())
}
/// STR.
pub fn str_tr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_protected(cpu)?;
    need_no_umip(cpu)?;
    store_word(cpu, a, cpu.env.tr.selector.into())
}
/// SMSW.
pub fn smsw(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_no_umip(cpu)?;
    store_word(cpu, a, cpu.env.cr0)
}

fn read_table(cpu: &mut Cpu, a: &HelperArgs) -> Exec<TableReg> {
    need_cpl0(cpu)?;
    let limit = cpu.read_u16(a.a, View::Data)?;
    let at = a.a.wrapping_add(2);
    let base = if cpu.env.is_64bit() {
        cpu.read_u64(at, View::Data)?
    } else {
        let base = cpu.read_u32(at, View::Data)?;
        u64::from(if a.size == 2 { base & 0xff_ffff } else { base })
    };
    if !cpu.canonical_base(base) {
        return Err(Fault::GP0);
    }
    Ok(TableReg { base, limit })
}

fn write_table(cpu: &mut Cpu, a: &HelperArgs, t: TableReg) -> Exec<Flow> {
    need_no_umip(cpu)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&t.limit.to_le_bytes());
    image[2..].copy_from_slice(&t.base.to_le_bytes());
    let len = if cpu.env.is_64bit() { 10 } else { 6 };
    cpu.store(a.a, &image[..len], View::Data)?;
    Ok(Flow::Next)
}

/// LGDT.
pub fn lgdt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    cpu.env.gdtr = read_table(cpu, a)?;
    Ok(Flow::Next)
}
/// LIDT.
pub fn lidt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    cpu.env.idtr = read_table(cpu, a)?;
    Ok(Flow::Next)
}
/// SGDT.
pub fn sgdt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    write_table(cpu, a, cpu.env.gdtr)
}
/// SIDT.
pub fn sidt(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    write_table(cpu, a, cpu.env.idtr)
}

/// The descriptor a LAR, LSL, VERR or VERW may look at; `None` clears ZF.
fn visible(cpu: &mut Cpu, selector: u16, system_kinds: &[u8]) -> Exec<Option<Descriptor>> {
    need_protected(cpu)?;
    let sel = Selector(selector);
    if sel.is_null() {
        return Ok(None);
    }
    // The table's limit is no fault here, a page fault is one.
    let outside = Fault::UD;
    let d = match cpu.read_descriptor(selector, outside) {
        Err(f) if f == outside => return Ok(None),
        other => other?,
    };
    let a = d.attr();
    if !a.s() && !system_kinds.contains(&a.kind()) {
        return Ok(None);
    }
    let conforming = a.s() && a.is_code() && a.is_conforming();
    let least = sel.rpl().max(cpu.env.cpl());
    if !conforming && least > a.dpl() {
        return Ok(None);
    }
    Ok(Some(d))
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    let bits = flags::get(&cpu.env) & !rflags::ZF;
    flags::set(&mut cpu.env, if on { bits | rflags::ZF } else { bits });
}

/// LAR.
pub fn lar(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let kinds: &[u8] = if cpu.env.long_mode() { &[2, 9, 11, 12] } else { &[1, 2, 3, 4, 5, 9, 11, 12] };
    let d = visible(cpu, a.a as u16, kinds)?;
    if let Some(d) = d {
        cpu.env.put_gpr(a.reg, a.size, (d.high() & 0x00f0_ff00).into());
    }
    set_zf(cpu, d.is_some());
    Ok(Flow::Next)
}

/// LSL.
pub fn lsl(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let kinds: &[u8] = if cpu.env.long_mode() { &[2, 9, 11] } else { &[1, 2, 3, 9, 11] };
    let d = visible(cpu, a.a as u16, kinds)?;
    if let Some(d) = d {
        let limit = Segment::from_descriptor(0, d.low(), d.high()).limit;
        cpu.env.put_gpr(a.reg, a.size, limit.into());
    }
    set_zf(cpu, d.is_some());
    Ok(Flow::Next)
}

/// VERR.
pub fn verr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let d = visible(cpu, a.a as u16, &[])?;
    set_zf(cpu, d.is_some_and(|d| d.attr().is_readable()));
    Ok(Flow::Next)
}

/// VERW.
pub fn verw(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let d = visible(cpu, a.a as u16, &[])?;
    set_zf(cpu, d.is_some_and(|d| !d.attr().is_code() && d.attr().is_writable()));
    Ok(Flow::Next)
}

/// ARPL: destination at `a` if `mem`, else register `reg`; `b` is the source.
pub fn arpl(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_protected(cpu)?;
    let old = if a.mem {
        u64::from(cpu.read_u16(a.a, View::Data)?)
    } else {
        cpu.env.gpr[usize::from(a.reg)] & 0xffff
    };
    let raise = old & 3 < a.b & 3;
    if raise {
        let new = old & !3 | a.b & 3;
        if a.mem {
            cpu.write_u16(a.a, new as u16, View::Data)?;
        } else {
            cpu.env.put_gpr(a.reg, 2, new);
        }
    }
    set_zf(cpu, raise);
    Ok(Flow::Next)
}

/// RDFSBASE, RDGSBASE: into `reg2` from segment `reg`.
pub fn rd_seg_base(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_fsgsbase(cpu)?;
    let base = cpu.env.seg[usize::from(a.reg)].base;
    cpu.env.put_gpr(a.reg2, a.size, base);
    Ok(Flow::Next)
}

/// WRFSBASE, WRGSBASE.
pub fn wr_seg_base(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_fsgsbase(cpu)?;
    let value = if a.size == 4 { a.a & 0xffff_ffff } else { a.a };
    if !cpu.canonical_base(value) {
        return Err(Fault::GP0);
    }
    cpu.env.seg[usize::from(a.reg)].base = value;
    Ok(Flow::Next)
}

fn need_fsgsbase(cpu: &Cpu) -> Exec<()> {
    let ok = cpu.env.is_64bit() && cpu.env.cr4 & cr4::FSGSBASE != 0;
    if ok { Ok(()) } else { Err(Fault::UD) }
}

/// SWAPGS.
pub fn swapgs(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    if !cpu.env.is_64bit() {
        return Err(Fault::UD);
    }
    need_cpl0(cpu)?;
    std::mem::swap(&mut cpu.env.seg[GS].base, &mut cpu.env.msrs.kernel_gs_base);
    Ok(Flow::Next)
}
