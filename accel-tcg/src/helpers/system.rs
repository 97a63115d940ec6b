//! Control, debug and model-specific registers, flags with privilege, CPUID, time, cache control.
use super::{Flow, HelperArgs, Stack};
use crate::deliver::iret::set_flags;
use crate::env::{Cpu, Exec, Fault};
use crate::interp::flags;
use crate::mmu::View;
use crate::mode::key;
use anura_vmcore::guest_error;
use anura_x86::cpuid::Asker;
use anura_x86::regs::{cr0, cr3, cr4, dr6, dr7, rflags};
use anura_x86::segment::index::{FS, GS};
use anura_x86::{Feature, Shadow, msr};

fn need_cpl0(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cpl() != 0 { Err(Fault::GP0) } else { Ok(()) }
}

/// MOV to CRn: `reg` is the number.
pub fn mov_to_cr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let value = if cpu.env.is_64bit() { a.a } else { a.a & 0xffff_ffff };
    match a.reg {
        0 => cpu.write_cr0(value)?,
        2 => cpu.env.cr2 = value,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        8 => {
            if value > 15 {
                return Err(Fault::GP0);
            }
            cpu.sync_clock();
            cpu.apic().set_tpr(value as u8);
        }
        _ => return Err(Fault::UD),
    }
    Ok(Flow::EndBlock)
}

/// MOV from CRn.
pub fn mov_from_cr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let value = match a.reg {
        0 => cpu.env.cr0,
        2 => cpu.env.cr2,
        3 => cpu.env.cr3,
        4 => cpu.env.cr4,
        8 => {
            cpu.sync_clock();
            cpu.apic().tpr().into()
        }
        _ => return Err(Fault::UD),
    };
    let size = if cpu.env.is_64bit() { 8 } else { 4 };
    cpu.env.put_gpr(a.reg2, size, value);
    Ok(Flow::Next)
}

/// DR4 and DR5 are DR6 and DR7, or do not exist with CR4.DE.
fn debug_number(cpu: &Cpu, n: u8) -> Exec<u8> {
    match n {
        4 | 5 if cpu.env.cr4 & cr4::DE != 0 => Err(Fault::UD),
        4 | 5 => Ok(n + 2),
        0..=7 => Ok(n),
        _ => Err(Fault::UD),
    }
}

/// #DB if DR7.GD guards the debug registers.
fn guard(cpu: &Cpu) -> Exec<()> {
    if cpu.env.dr7 & dr7::GD != 0 { Err(Fault::debug_fault(dr6::BD)) } else { Ok(()) }
}

/// MOV to DRn.
pub fn mov_to_dr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let n = debug_number(cpu, a.reg)?;
    need_cpl0(cpu)?;
    guard(cpu)?;
    let value = if cpu.env.is_64bit() { a.a } else { a.a & 0xffff_ffff };
    if n >= 6 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match n {
        6 => cpu.env.dr6 = value & dr6::WRITABLE | dr6::ONES,
        7 => {
            cpu.env.dr7 = value & dr7::WRITABLE | dr7::ONES;
            cpu.update_watch();
        }
        _ => cpu.env.dr[usize::from(n)] = value,
    }
    Ok(Flow::EndBlock)
}

/// MOV from DRn.
pub fn mov_from_dr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let n = debug_number(cpu, a.reg)?;
    need_cpl0(cpu)?;
    guard(cpu)?;
    let value = match n {
        6 => cpu.env.dr6,
        7 => cpu.env.dr7,
        _ => cpu.env.dr[usize::from(n)],
    };
    let size = if cpu.env.is_64bit() { 8 } else { 4 };
    cpu.env.put_gpr(a.reg2, size, value);
    Ok(Flow::Next)
}

/// The #DB fault of a code breakpoint at the next instruction, unless RF is set.
pub fn code_breakpoint(cpu: &Cpu) -> Option<Fault> {
    let env = &cpu.env;
    if env.dr7 & dr7::ENABLES == 0 || env.eflags_sys & rflags::RF != 0 {
        return None;
    }
    let at = env.linear_rip();
    let hits = (0..4)
        .filter(|n| dr7::kind(env.dr7, *n) == dr7::Kind::Execute && env.dr[*n] == at)
        .fold((0, false), |(hits, any), n| (hits | 1 << n, any || dr7::enabled(env.dr7, n)));
    hits.1.then(|| Fault::debug_fault(hits.0))
}

/// CLTS.
pub fn clts(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    cpu.env.cr0 &= !cr0::TS;
    cpu.mode_changed();
    Ok(Flow::EndBlock)
}

/// LMSW: the low four bits of CR0, PE cannot be cleared.
pub fn lmsw(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let old = cpu.env.cr0;
    let new = old & !0xe | a.a & 0xf;
    cpu.write_cr0(new)?;
    Ok(Flow::EndBlock)
}

/// INVLPG.
pub fn invlpg(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    if !cpu.env.long_mode() || cpu.env.canonical(a.a) {
        cpu.mmu.flush_page(a.a);
    }
    Ok(Flow::EndBlock)
}

/// INVPCID: type `a`, descriptor at `b`.
pub fn invpcid(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let pcid = cpu.read_u64(a.b, View::Data)?;
    let address = cpu.read_u64(a.b.wrapping_add(8), View::Data)?;
    let without_pcid = cpu.env.cr4 & cr4::PCIDE == 0 && pcid & cr3::PCID != 0;
    let bad = match a.a {
        0 => pcid >> 12 != 0 || without_pcid || !cpu.canonical_base(address),
        1 => pcid >> 12 != 0 || without_pcid,
        2 | 3 => false,
        _ => true,
    };
    if bad {
        return Err(Fault::GP0);
    }
    match a.a {
        0 => cpu.mmu.flush_page_of(pcid, address),
        1 => cpu.mmu.flush_pcid(pcid),
        2 => cpu.mmu.flush_all(),
        _ => cpu.mmu.flush_contexts(true),
    }
    Ok(Flow::EndBlock)
}

/// WBINVD, WBNOINVD: there are no caches.
pub fn wbinvd(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    Ok(Flow::Next)
}
/// INVD.
pub fn invd(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    wbinvd(cpu, a)
}
/// CLFLUSH and its relatives: checked like a read of one byte.
pub fn clflush(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    cpu.probe_read(a.a, 1, View::Data)?;
    Ok(Flow::Next)
}

/// CLI.
pub fn cli(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    match if_owner(cpu)? {
        Owner::Real => cpu.env.eflags_sys &= !rflags::IF,
        Owner::Virtual => cpu.env.eflags_sys &= !rflags::VIF,
    }
    Ok(Flow::Next)
}

/// STI: interrupts are taken after the next instruction at the earliest.
pub fn sti(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    match if_owner(cpu)? {
        Owner::Real if cpu.env.eflags_sys & rflags::IF == 0 => {
            cpu.env.eflags_sys |= rflags::IF;
            cpu.env.shadow = Shadow::Sti;
        }
        Owner::Real => {}
        Owner::Virtual if cpu.env.eflags_sys & rflags::VIP != 0 => return Err(Fault::GP0),
        Owner::Virtual => cpu.env.eflags_sys |= rflags::VIF,
    }
    Ok(Flow::EndBlock)
}

/// Which flag CLI and STI change.
enum Owner {
    /// IF.
    Real,
    /// VIF, by VME or PVI.
    Virtual,
}

fn if_owner(cpu: &Cpu) -> Exec<Owner> {
    let env = &cpu.env;
    let iopl = (env.eflags_sys & rflags::IOPL) >> rflags::IOPL_SHIFT;
    if env.cr0 & cr0::PE == 0 || u64::from(env.cpl()) <= iopl {
        return Ok(Owner::Real);
    }
    let switch = if env.mode_key & key::V86 != 0 { cr4::VME } else { cr4::PVI };
    if env.cr4 & switch != 0 && env.cpl() == 3 { Ok(Owner::Virtual) } else { Err(Fault::GP0) }
}

/// In v86 mode with an IOPL below 3: true with VME for operands of 16 bits, else #GP(0). False elsewhere.
pub(crate) fn v86_extended(cpu: &Cpu, size: u8) -> Exec<bool> {
    let v86 = cpu.env.mode_key & key::V86 != 0;
    if !v86 || cpu.env.eflags_sys & rflags::IOPL == rflags::IOPL {
        return Ok(false);
    }
    if cpu.env.cr4 & cr4::VME != 0 && size == 2 { Ok(true) } else { Err(Fault::GP0) }
}

/// The flags as a program of v86 mode sees them with VME: VIF for IF, and an IOPL of 3.
pub(crate) fn virtual_flags(flags: u64) -> u64 {
    let visible = if flags & rflags::VIF != 0 { rflags::IF } else { 0 };
    flags & !rflags::IF | visible | rflags::IOPL
}

/// Takes over flags that such a program pops: IF goes to VIF, which must not become set while VIP is, nor may TF.
pub(crate) fn pop_virtual_flags(cpu: &mut Cpu, value: u64) -> Exec<()> {
    let wants_if = value & rflags::IF != 0;
    if value & rflags::TF != 0 || wants_if && cpu.env.eflags_sys & rflags::VIP != 0 {
        return Err(Fault::GP0);
    }
    let change = 0xffff & rflags::ALL & !(rflags::IF | rflags::IOPL) | rflags::VIF;
    let value = value & !rflags::VIF | if wants_if { rflags::VIF } else { 0 };
    let new = cpu.env.rflags() & !change | value & change;
    cpu.env.set_rflags(new);
    Ok(())
}

/// PUSHF; `size` is the operand size.
pub fn pushf(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let extended = v86_extended(cpu, a.size)?;
    let value = cpu.env.rflags() & !(rflags::VM | rflags::RF);
    let value = if extended { virtual_flags(value) } else { value };
    let mut s = Stack::current(cpu);
    s.push(cpu, value, a.size)?;
    s.commit(cpu);
    Ok(Flow::Next)
}

/// POPF.
pub fn popf(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let extended = v86_extended(cpu, a.size)?;
    let mut s = Stack::current(cpu);
    let value = s.pop(cpu, a.size)?;
    if extended {
        pop_virtual_flags(cpu, value)?;
        s.commit(cpu);
        return Ok(Flow::EndBlock);
    }
    s.commit(cpu);
    let before = cpu.env.eflags_sys;
    set_flags(cpu, value, a.size, rflags::RF | rflags::VIF | rflags::VIP);
    if a.size > 2 {
        cpu.env.eflags_sys &= !rflags::RF;
    }
    let changed = before ^ cpu.env.eflags_sys;
    if changed & rflags::AC != 0 {
        cpu.mode_changed();
    }
    let visible = rflags::AC | rflags::TF | rflags::IF;
    Ok(if changed & visible != 0 { Flow::EndBlock } else { Flow::Next })
}

/// CLD.
pub fn cld(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    cpu.env.eflags_sys &= !rflags::DF;
    Ok(Flow::Next)
}
/// STD.
pub fn std(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    cpu.env.eflags_sys |= rflags::DF;
    Ok(Flow::Next)
}

fn set_ac(cpu: &mut Cpu, on: bool) -> Exec<Flow> {
    if cpu.env.cpl() != 0 {
        return Err(Fault::UD);
    }
    cpu.env.eflags_sys = cpu.env.eflags_sys & !rflags::AC | if on { rflags::AC } else { 0 };
    // AC at CPL 0 changes the view of memory, not the mode key.
    cpu.view_changed();
    Ok(Flow::Next)
}
/// CLAC.
pub fn clac(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    set_ac(cpu, false)
}
/// STAC.
pub fn stac(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    set_ac(cpu, true)
}

/// CPUID.
pub fn cpuid(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    let config = &cpu.vm.config;
    let who = Asker {
        apic_id: config.topology.apic_id(cpu.id),
        topology: config.topology,
        osxsave: cpu.env.cr4 & cr4::OSXSAVE != 0,
        ospke: cpu.env.cr4 & cr4::PKE != 0,
        xcr0: cpu.env.xcr0,
        apic_enabled: cpu.apic().base() & anura_x86::apic::base::ENABLE != 0,
    };
    let (leaf, part) = (cpu.env.gpr[0] as u32, cpu.env.gpr[1] as u32);
    let given = config.model.cpuid(leaf, part, &who);
    cpu.env.jit.keep_answer(leaf, part, given);
    let [eax, ebx, ecx, edx] = given;
    let gpr = &mut cpu.env.gpr;
    (gpr[0], gpr[3], gpr[1], gpr[2]) = (eax.into(), ebx.into(), ecx.into(), edx.into());
    Ok(Flow::Next)
}

pub(super) fn put_pair(cpu: &mut Cpu, value: u64) {
    cpu.env.gpr[0] = value & 0xffff_ffff;
    cpu.env.gpr[2] = value >> 32;
}

/// RDPID.
pub fn rdpid(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let size = if cpu.env.is_64bit() { 8 } else { 4 };
    cpu.env.put_gpr(a.reg, size, cpu.env.msrs.tsc_aux & 0xffff_ffff);
    Ok(Flow::Next)
}
/// RDPMC: there are no counters.
pub fn rdpmc(_: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    Err(Fault::GP0)
}

/// RDPKRU.
pub fn rdpkru(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    if cpu.env.cr4 & cr4::PKE == 0 {
        return Err(Fault::UD);
    }
    if cpu.env.gpr[1] as u32 != 0 {
        return Err(Fault::GP0);
    }
    put_pair(cpu, cpu.env.msrs.pkru);
    Ok(Flow::Next)
}

/// WRPKRU.
pub fn wrpkru(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    if cpu.env.cr4 & cr4::PKE == 0 {
        return Err(Fault::UD);
    }
    if cpu.env.gpr[1] as u32 != 0 || cpu.env.gpr[2] as u32 != 0 {
        return Err(Fault::GP0);
    }
    cpu.env.msrs.pkru = cpu.env.gpr[0] & 0xffff_ffff;
    cpu.keys_changed();
    Ok(Flow::EndBlock)
}

/// RDRAND and RDSEED always succeed. In counted time the number depends on the instruction count
/// and the processor only, so a run repeats.
pub fn rdrand(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let value = if cpu.vm.config.counted {
        let count = cpu.count_base.wrapping_add(cpu.exact_count());
        mix(count.wrapping_add(u64::from(cpu.id) << 56))
    } else {
        host_random()
    };
    cpu.env.put_gpr(a.reg, a.size, value);
    flags::set(&mut cpu.env, rflags::CF);
    Ok(Flow::Next)
}

/// SplitMix64's output function.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn host_random() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is ours and its length is given; the call writes nothing else.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n == 8 {
        return u64::from_ne_bytes(bytes);
    }
    // Without the system's source: keys of the standard library's hasher are seeded by it too.
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// HLT.
pub fn hlt(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    cpu.env.halted = true;
    Ok(Flow::Halt)
}
/// How many times PAUSE does not yield, where translated code runs freely.
const PAUSES: u32 = 31;

/// PAUSE.
pub fn pause(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    cpu.env.jit.pauses = PAUSES;
    Ok(Flow::Yield)
}
/// MONITOR and MWAIT are hidden.
pub fn mwait(_: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    Err(Fault::UD)
}
/// SERIALIZE.
pub fn serialize(_: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    Ok(Flow::EndBlock)
}

/// RDMSR.
pub fn rdmsr(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let number = cpu.env.gpr[1] as u32;
    let value = cpu.read_msr(number).ok_or(Fault::GP0)?;
    put_pair(cpu, value);
    Ok(Flow::Next)
}

/// WRMSR.
pub fn wrmsr(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    need_cpl0(cpu)?;
    let number = cpu.env.gpr[1] as u32;
    let value = cpu.env.gpr[0] & 0xffff_ffff | cpu.env.gpr[2] << 32;
    cpu.write_msr(number, value)?;
    Ok(Flow::EndBlock)
}

/// Memory types that MTRRs and the PAT know.
fn memory_type_ok(t: u64, pat: bool) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6) || pat && t == 7
}

enum Slot {
    Plain(u64),
    Address(u64),
}

impl Cpu {
    /// An MSR's value; `None` is #GP.
    pub fn read_msr(&self, number: u32) -> Option<u64> {
        let e = &self.env;
        let m = &e.msrs;
        let model = &self.vm.config.model;
        Some(match number {
            msr::TSC => self.tsc(),
            msr::APIC_BASE => self.apic().base(),
            msr::TSC_ADJUST if model.has(Feature::TscAdjust) => m.tsc_adjust,
            msr::FEATURE_CONTROL if model.is_intel() => m.feature_control,
            msr::BIOS_SIGN_ID => m.microcode,
            // Eight variable ranges, fixed ranges, write combining.
            msr::MTRR_CAP => msr::MTRR_VARIABLE as u64 | 1 << 8 | 1 << 10,
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            // The banks, and a control register.
            msr::MCG_CAP => msr::MC_BANKS as u64 | 1 << 8 | 1 << 24,
            msr::MCG_STATUS => m.mcg_status,
            msr::MCG_CTL => m.mcg_ctl,
            msr::PERF_STATUS => 1000 | 4 << 40,
            msr::MISC_ENABLE => m.misc_enable,
            msr::DEBUGCTL => m.debugctl,
            msr::PAT => m.pat,
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            msr::EFER => e.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::FMASK => m.fmask,
            msr::FS_BASE => e.seg[FS].base,
            msr::GS_BASE => e.seg[GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::TSC_AUX => m.tsc_aux,
            msr::XSS if model.has(Feature::Xsaves) => m.xss,
            msr::PKRS if model.has(Feature::Pks) => m.pkrs,
            msr::AMD_HWCR => m.amd_hwcr,
            msr::P5_MC_ADDR | msr::P5_MC_TYPE | msr::PLATFORM_ID => 0,
            msr::TSC_DEADLINE => {
                self.sync_clock();
                // The APIC counts in the machine's ticks; zero is "disarmed" in both.
                let deadline = self.apic().msr_read(number)?;
                if deadline == 0 { 0 } else { deadline.wrapping_add(self.env.tsc_offset) }
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.sync_clock();
                return self.apic().msr_read(number);
            }
            0x200..=0x20f => {
                let n = (number - msr::MTRR_PHYS_BASE0) as usize;
                m.mtrr_var[n / 2][n % 2]
            }
            0x400..0x428 => {
                let n = (number - msr::MC0_CTL) as usize;
                m.mc_bank[n / 4][n % 4]
            }
            _ => {
                if let Some(n) = msr::MTRR_FIXED.iter().position(|f| *f == number) {
                    return Some(m.mtrr_fixed[n]);
                }
                self.sync_clock();
                return self.platform().rdmsr(self.id, number).or_else(|| self.unknown_msr(number));
            }
        })
    }

    /// AMD's configuration registers read as zero, like those of a machine whose firmware left
    /// them alone; anything else does not exist.
    fn unknown_msr(&self, number: u32) -> Option<u64> {
        let amd = !self.vm.config.model.is_intel() && matches!(number >> 16, 0xc000 | 0xc001);
        if !amd {
            guest_error!("cpu: RDMSR of unknown {number:#x}, #GP");
        }
        amd.then_some(0)
    }

    /// Writes an MSR.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Exec<()> {
        let model = &self.vm.config.model;
        let phys_bits = model.phys_bits;
        let refuse = |bad: bool| if bad { Err(Fault::GP0) } else { Ok(()) };
        let slot = match number {
            msr::TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.env.tsc_offset = self.env.tsc_offset.wrapping_add(delta);
                self.env.msrs.tsc_adjust = self.env.msrs.tsc_adjust.wrapping_add(delta);
                self.tsc_changed();
                return Ok(());
            }
            msr::TSC_ADJUST if model.has(Feature::TscAdjust) => {
                let delta = value.wrapping_sub(self.env.msrs.tsc_adjust);
                self.env.tsc_offset = self.env.tsc_offset.wrapping_add(delta);
                self.env.msrs.tsc_adjust = value;
                self.tsc_changed();
                return Ok(());
            }
            msr::APIC_BASE => {
                refuse(value >> phys_bits != 0)?;
                self.sync_clock();
                refuse(!self.apic().set_base(value))?;
                self.env.jit.forget_answers();
                // The page moved under cached translations.
                self.mmu.flush_all();
                return Ok(());
            }
            msr::EFER => return self.write_efer(value),
            msr::TSC_DEADLINE => {
                self.sync_clock();
                // The APIC counts in the machine's ticks; a past deadline, however far, is its first one.
                let ahead = value.saturating_sub(self.tsc());
                let deadline = match (value, ahead) {
                    (0, _) => 0,
                    (_, 0) => 1,
                    _ => self.machine_tsc().saturating_add(ahead),
                };
                return refuse(!self.apic().msr_write(number, deadline));
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.sync_clock();
                return refuse(!self.apic().msr_write(number, value));
            }
            msr::PAT => {
                refuse((0..8).any(|i| !memory_type_ok(value >> (i * 8) & 0xff, true)))?;
                Slot::Plain(value)
            }
            msr::MTRR_DEF_TYPE => {
                refuse(value & !0xcff != 0 || !memory_type_ok(value & 0xff, false))?;
                Slot::Plain(value)
            }
            0x200..=0x20f if number & 1 == 0 => {
                let reserved = !((1u64 << phys_bits) - 1) | 0xf00;
                refuse(value & reserved != 0 || !memory_type_ok(value & 0xff, false))?;
                Slot::Plain(value)
            }
            0x200..=0x20f => {
                refuse(value & (!((1u64 << phys_bits) - 1) | 0x7ff) != 0)?;
                Slot::Plain(value)
            }
            // A bank's control takes all ones or all zeros (16.3.2.1), but for the bits that systems leave out to
            // get along with AMD's K8.
            0x400..0x428 if number & 3 == 0 => {
                refuse(value != 0 && value | 1 << 10 | 1 != u64::MAX)?;
                Slot::Plain(value)
            }
            // A bank's status takes only zero. Its address and its further information take anything, as processors
            // do whatever the manual says (vol. 3, 16.3.2.3).
            0x400..0x428 => {
                refuse(number & 3 == 1 && value != 0 && self.env.msrs.amd_hwcr & 1 << 18 == 0)?;
                Slot::Plain(value)
            }
            msr::TSC_AUX => {
                refuse(value >> 32 != 0)?;
                Slot::Plain(value)
            }
            msr::FMASK => Slot::Plain(value & 0xffff_ffff),
            msr::PKRS if model.has(Feature::Pks) => {
                refuse(value >> 32 != 0)?;
                self.env.msrs.pkrs = value;
                self.keys_changed();
                return Ok(());
            }
            msr::XSS => {
                refuse(value != 0)?;
                Slot::Plain(value)
            }
            msr::MISC_ENABLE => Slot::Plain(value),
            msr::BIOS_SIGN_ID | msr::BIOS_UPDT_TRIG => return Ok(()),
            msr::SYSENTER_ESP | msr::SYSENTER_EIP => Slot::Address(value),
            msr::LSTAR | msr::CSTAR | msr::FS_BASE | msr::GS_BASE | msr::KERNEL_GS_BASE => {
                Slot::Address(value)
            }
            msr::MTRR_CAP | msr::MCG_CAP | msr::PERF_STATUS => return Err(Fault::GP0),
            _ => {
                if msr::MTRR_FIXED.contains(&number) {
                    refuse((0..8).any(|i| !memory_type_ok(value >> (i * 8) & 0xff, false)))?;
                }
                Slot::Plain(value)
            }
        };
        let value = match slot {
            Slot::Plain(v) => v,
            Slot::Address(v) => {
                refuse(model.has(Feature::Lm) && !self.canonical_base(v))?;
                v
            }
        };
        self.store_msr(number, value)
    }

    /// Stores a checked value in its register.
    fn store_msr(&mut self, number: u32, value: u64) -> Exec<()> {
        let intel = self.vm.config.model.is_intel();
        let m = &mut self.env.msrs;
        let register = match number {
            msr::FEATURE_CONTROL if intel => &mut m.feature_control,
            msr::SYSENTER_CS => &mut m.sysenter_cs,
            msr::SYSENTER_ESP => &mut m.sysenter_esp,
            msr::SYSENTER_EIP => &mut m.sysenter_eip,
            msr::MCG_STATUS => &mut m.mcg_status,
            msr::MCG_CTL => &mut m.mcg_ctl,
            msr::MISC_ENABLE => &mut m.misc_enable,
            msr::DEBUGCTL => &mut m.debugctl,
            msr::PAT => &mut m.pat,
            msr::MTRR_DEF_TYPE => &mut m.mtrr_def_type,
            msr::STAR => &mut m.star,
            msr::LSTAR => &mut m.lstar,
            msr::CSTAR => &mut m.cstar,
            msr::FMASK => &mut m.fmask,
            msr::FS_BASE => &mut self.env.seg[FS].base,
            msr::GS_BASE => &mut self.env.seg[GS].base,
            msr::KERNEL_GS_BASE => &mut m.kernel_gs_base,
            msr::TSC_AUX => &mut m.tsc_aux,
            msr::XSS => &mut m.xss,
            msr::AMD_HWCR => &mut m.amd_hwcr,
            0x200..=0x20f => {
                let n = (number - msr::MTRR_PHYS_BASE0) as usize;
                &mut m.mtrr_var[n / 2][n % 2]
            }
            0x400..0x428 => {
                let n = (number - msr::MC0_CTL) as usize;
                &mut m.mc_bank[n / 4][n % 4]
            }
            _ => match msr::MTRR_FIXED.iter().position(|f| *f == number) {
                Some(n) => &mut m.mtrr_fixed[n],
                None => return self.write_unknown_msr(number, value),
            },
        };
        *register = value;
        Ok(())
    }

    fn write_unknown_msr(&mut self, number: u32, value: u64) -> Exec<()> {
        self.sync_clock();
        let amd = !self.vm.config.model.is_intel() && matches!(number >> 16, 0xc000 | 0xc001);
        if self.platform().wrmsr(self.id, number, value) || amd {
            return Ok(());
        }
        guest_error!("cpu: WRMSR of {value:#x} to unknown {number:#x}, #GP");
        Err(Fault::GP0)
    }
}
