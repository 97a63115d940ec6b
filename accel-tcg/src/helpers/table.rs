//! Which routine a helper operation calls.

use super::{Flow, HelperArgs, fpu, io, misc, seg, string, system};
use crate::deliver::{far, iret, sys};
use crate::env::{Cpu, Exec};
use crate::ir::Help;

/// A routine of the engine.
pub type Routine = fn(&mut Cpu, &HelperArgs) -> Exec<Flow>;

fn undefined(_: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    Err(crate::env::Fault::UD)
}

/// The routine of a helper operation.
pub fn routine(help: Help) -> Routine {
    match help {
        Help::Str => string::string,
        Help::Enter => misc::enter,
        Help::Pusha => misc::pusha,
        Help::Popa => misc::popa,
        Help::Bound => misc::bound,
        Help::Bcd => misc::bcd,
        Help::Pushf => system::pushf,
        Help::Popf => system::popf,
        Help::Cli => system::cli,
        Help::Sti => system::sti,
        Help::Cld => system::cld,
        Help::Std => system::std,
        Help::Arpl => seg::arpl,
        Help::Int => sys::int,
        Help::Int3 => sys::int3,
        Help::Int1 => sys::int1,
        Help::Into => sys::into,
        Help::Iret => iret::iret,
        Help::JmpFar => far::jmp_far,
        Help::CallFar => far::call_far,
        Help::RetFar => far::ret_far,
        Help::Syscall => sys::syscall,
        Help::Sysret => sys::sysret,
        Help::Sysenter => sys::sysenter,
        Help::Sysexit => sys::sysexit,
        Help::MovToSreg => seg::mov_to_sreg,
        Help::PopSreg => seg::pop_sreg,
        Help::LoadFar => seg::load_far,
        Help::MovToCr => system::mov_to_cr,
        Help::MovFromCr => system::mov_from_cr,
        Help::MovToDr => system::mov_to_dr,
        Help::MovFromDr => system::mov_from_dr,
        Help::Clts => system::clts,
        Help::Lmsw => system::lmsw,
        Help::Smsw => seg::smsw,
        Help::Lgdt => seg::lgdt,
        Help::Lidt => seg::lidt,
        Help::Sgdt => seg::sgdt,
        Help::Sidt => seg::sidt,
        Help::Lldt => seg::lldt,
        Help::Ltr => seg::ltr,
        Help::Sldt => seg::sldt,
        Help::StrTr => seg::str_tr,
        Help::Lar => seg::lar,
        Help::Lsl => seg::lsl,
        Help::Verr => seg::verr,
        Help::Verw => seg::verw,
        Help::Invlpg => system::invlpg,
        Help::Invpcid => system::invpcid,
        Help::Wbinvd => system::wbinvd,
        Help::Invd => system::invd,
        Help::Clflush => system::clflush,
        Help::Swapgs => seg::swapgs,
        Help::RdSegBase => seg::rd_seg_base,
        Help::WrSegBase => seg::wr_seg_base,
        Help::Clac => system::clac,
        Help::Stac => system::stac,
        Help::Cpuid => system::cpuid,
        Help::Rdmsr => system::rdmsr,
        Help::Wrmsr => system::wrmsr,
        Help::Rdtsc => system::rdtsc,
        Help::Rdtscp => system::rdtscp,
        Help::Rdpmc => system::rdpmc,
        Help::Rdpid => system::rdpid,
        Help::Rdrand => system::rdrand,
        Help::Xgetbv => fpu::xgetbv,
        Help::Xsetbv => fpu::xsetbv,
        Help::In => io::in_,
        Help::Out => io::out,
        Help::Hlt => system::hlt,
        Help::Pause => system::pause,
        Help::Mwait => system::mwait,
        Help::Serialize => system::serialize,
        Help::Fxsave => fpu::fxsave,
        Help::Fxrstor => fpu::fxrstor,
        Help::Xsave => fpu::xsave,
        Help::Xrstor => fpu::xrstor,
        Help::Ldmxcsr => fpu::ldmxcsr,
        Help::Stmxcsr => fpu::stmxcsr,
        Help::VecMem => undefined,
    }
}
