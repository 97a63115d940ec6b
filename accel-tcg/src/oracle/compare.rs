//! What counts as a difference.
//!
//! The reviewed list of differences that are not mistakes, with reason and place:
//!
//! - Flags that the manual leaves undefined: the host does what its maker chose, the engine what
//!   its portable table says. They are compared where the two are the same, which on AMD's hosts is
//!   everything but the list below; the rest is masked by the decoder's own list, and counted.
//! - FIP, FDP and FOP of the x87: hosts differ in when they keep them; not compared.
//! - A jump to a page that is not there: the host reports the page fault of the fetch, the
//!   engine stops before it. The registers must agree.
//! - RF in saved flags.
//! - Which byte of a large operand (FXRSTOR, FNSAVE and the like) a page fault names: hosts look
//!   at the last byte first.
//! - MASKMOVDQU and MASKMOVQ: AMD's hosts fault for bytes that the mask leaves out, name the first
//!   byte, and have entered MMX mode already.
//! - CALL through a pointer with two faults, the push and a target that is not canonical: AMD's
//!   hosts push first.
//! - Bit 17 of MXCSR (misaligned SSE), which AMD's hosts have and no model of ours shows.
//! - F2 and F3 on LOOPcc in 32-bit code, where they choose the condition on AMD's hosts: not drawn.
//! - POPA that faults half way: hosts keep the registers that were popped before.
//! - VMASKMOV without a selected element, and ARPL, through a segment that cannot be written: the host looks
//!   whether there is something to write first.
//! - MOVSXD with 66h: AMD's hosts read four bytes for the two they use.
//! - A waiting x87 exception and a store through a segment that cannot be written: the engine looks at the segment first.
//! - Which of two faults a REP CMPSB of 32-bit code takes: the destination's like all others, or the source's.
//! - Without thunks, the last place of transcendental functions, with C1 and UE: our own code is within
//!   one unit of the host's. FYL2XP1 below its range is the processor's choice altogether.
//! - A page fault of the host that does not repeat: it moves and ages pages, which are then absent for a moment. Counted.
//! - The P bit of a page fault in the upper half: the host's kernel is mapped there, ours is not.
use super::generate::{Case, Width};
use super::guest::is_fetch;
use super::{FpImage, Outcome};
use anura_x86::regs::{error, rflags, vector};
use std::fmt::Write as _;

/// Status and system flags that are compared.
const FLAGS: u64 = rflags::STATUS | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

/// Instructions whose undefined flags the host and the portable table set differently somewhere. For all others they
/// are compared too, on hosts of the maker whose processors the list was made on.
fn undefined_differ(case: &Case) -> bool {
    use iced_x86::Mnemonic::*;
    let listed = matches!(
        case.instruction.mnemonic(),
        Aaa | Aad
            | Andn
            | Aas
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bsf
            | Bsr
            | Bzhi
            | Daa
            | Das
            | Div
            | Idiv
            | Imul
            | Lzcnt
            | Mul
            | Sal
            | Sar
            | Shl
            | Shld
            | Shr
            | Shrd
            | Tzcnt
    );
    listed || !host_is_amd()
}

fn host_is_amd() -> bool {
    static AMD: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let r = std::arch::x86_64::__cpuid(0);
        (r.ebx, r.edx, r.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163)
    });
    *AMD
}

/// Flags that an instruction leaves undefined.
pub fn undefined_flags(case: &Case) -> u64 {
    use iced_x86::RflagsBits as B;
    let u = case.instruction.rflags_undefined();
    let mut mask = 0;
    for (bit, flag) in [
        (B::OF, rflags::OF),
        (B::SF, rflags::SF),
        (B::ZF, rflags::ZF),
        (B::AF, rflags::AF),
        (B::CF, rflags::CF),
        (B::PF, rflags::PF),
    ] {
        if u & bit != 0 {
            mask |= flag;
        }
    }
    mask
}

fn has_large_operand(case: &Case) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(case.instruction.mnemonic(), Fxrstor | Fxrstor64 | Fnsave | Fnstenv | Fldenv | Frstor)
}

fn has_segment_prefix(case: &Case) -> bool {
    case.instruction.segment_prefix() != iced_x86::Register::None
}

fn is_mask_move(case: &Case) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(case.instruction.mnemonic(), Maskmovdqu | Maskmovq | Vmaskmovdqu)
}

/// How a case came out.
#[derive(Default)]
pub struct Verdict {
    /// What differs, in words.
    pub text: Option<String>,
    /// Flags differed that the manual leaves undefined.
    pub undefined: bool,
    /// The list excuses the case altogether, memory included.
    pub excused: bool,
    /// Results differed in their last place, where that is the vendor's choice.
    pub approximate: bool,
}

/// Compares the registers and the fault.
pub fn difference(
    case: &Case,
    host: &Outcome,
    ours: &Outcome,
    fp: Option<(&FpImage, &FpImage)>,
    soft: bool,
    width: Width,
) -> Verdict {
    use iced_x86::Code;
    use iced_x86::Mnemonic::{Arpl, Popa, Popad, Vmaskmovpd, Vmaskmovps, Vpmaskmovd, Vpmaskmovq};
    let excuse = Verdict { excused: true, ..Verdict::default() };
    let mut text = String::new();
    let mut host_trap = host.trap;
    if let Some(t) = host_trap
        && is_fetch(&t)
        && ours.trap.is_none()
        && host.rip == ours.rip
    {
        host_trap = None;
    }
    if let Some(t) = &mut host_trap
        && t.vector == vector::PF
        && t.cr2 >> 63 != 0
    {
        t.error &= !error::PF_P;
    }
    if let (Some(h), Some(o)) = (&mut host_trap, &ours.trap)
        && h.vector == vector::PF
        && o.vector == vector::PF
        && ((has_large_operand(case) || is_mask_move(case))
            && h.cr2.wrapping_sub(o.cr2).wrapping_add(512) < 1024
            || case.instruction.mnemonic() == iced_x86::Mnemonic::Cmpsb && width == Width::Bits32)
    {
        h.cr2 = o.cr2;
    }
    let mnemonic = case.instruction.mnemonic();
    let refused = host_trap.is_none() && ours.trap.is_some_and(|t| t.vector == vector::GP);
    let by_mask = matches!(mnemonic, Vmaskmovpd | Vmaskmovps | Vpmaskmovd | Vpmaskmovq);
    if by_mask && refused && width == Width::Bits32 {
        return excuse;
    }
    let gp = ours.trap.is_some_and(|t| t.vector == vector::GP);
    if gp && host_trap.is_some_and(|t| t.vector == vector::MF) && has_segment_prefix(case) {
        return excuse;
    }
    if mnemonic == Arpl && gp && has_segment_prefix(case) {
        return excuse;
    }
    if case.instruction.code() == Code::Movsxd_r16_rm16 && host_trap.is_some() && ours.trap.is_none() {
        return excuse;
    }
    if matches!(mnemonic, Popa | Popad) && host_trap.is_some() && host_trap == ours.trap {
        return excuse;
    }
    let call = case.instruction.mnemonic() == iced_x86::Mnemonic::Call;
    if call && ours.trap.is_some_and(|t| t.vector == vector::GP) && host_trap.is_some() {
        host_trap = ours.trap;
    }
    if is_mask_move(case) && host_trap.is_some() || fp.is_some_and(|(h, _)| h.mxcsr() >> 17 & 1 != 0) {
        return excuse;
    }
    if host_trap != ours.trap {
        let _ = write!(text, " trap: host {host_trap:?}, ours {:?};", ours.trap);
    }
    if host.rip != ours.rip {
        let _ = write!(text, " rip: host {:#x}, ours {:#x};", host.rip, ours.rip);
    }
    // The upper halves are undefined after 32-bit code.
    let mask = if width == Width::Bits32 { 0xffff_ffff } else { u64::MAX };
    for (i, (h, o)) in host.gpr.iter().zip(&ours.gpr).enumerate() {
        if (h ^ o) & mask != 0 {
            let _ = write!(text, " r{i}: host {h:#x}, ours {o:#x};");
        }
    }
    let undefined = if host_trap.is_some() || !undefined_differ(case) { 0 } else { undefined_flags(case) };
    let changed = host.flags ^ ours.flags;
    if changed & FLAGS & !undefined != 0 {
        let (h, o) = (host.flags & FLAGS, ours.flags & FLAGS);
        let _ = write!(text, " flags: host {h:#x}, ours {o:#x} (undefined {undefined:#x});");
    }
    if let Some((host, ours)) = fp {
        if soft && is_transcendental(mnemonic) && !same_fp(host, ours) {
            return approximate(case, host, ours, text);
        }
        floating(&mut text, host, ours);
    }
    let undefined = changed & undefined & FLAGS != 0;
    Verdict { text: (!text.is_empty()).then_some(text), undefined, ..Verdict::default() }
}

/// Sines, logarithms and their like: the vendor's last bit is his own.
pub fn is_transcendental(m: iced_x86::Mnemonic) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(m, F2xm1 | Fyl2x | Fyl2xp1 | Fpatan | Fptan | Fsin | Fcos | Fsincos)
}

/// Compares all but C1 and UE, and the results to one unit in the last place.
fn approximate(case: &Case, host: &FpImage, ours: &FpImage, text: String) -> Verdict {
    const SET_ASIDE: u16 = 0x210;
    let mut text = text;
    let (mut h, mut o) = (host.clone(), ours.clone());
    // The exception that is set aside may also be the only unmasked one.
    let aside = if (host.fsw() ^ ours.fsw()) & 0x10 != 0 { SET_ASIDE | 0x8080 } else { SET_ASIDE };
    h.set_fsw(h.fsw() & !aside);
    o.set_fsw(o.fsw() & !aside);
    for i in 0..2 {
        let (a, b) = (host.st(i), ours.st(i));
        let rank = |v: (u64, u16)| i128::from(v.1 & 0x7fff) << 63 | i128::from(v.0 & (u64::MAX >> 1));
        if a.1 >> 15 == b.1 >> 15 && (rank(a) - rank(b)).abs() <= 1 {
            let at = 32 + i * 16;
            let bytes: [u8; 10] = std::array::from_fn(|k| h.bytes[at + k]);
            o.bytes[at..at + 10].copy_from_slice(&bytes);
        }
    }
    floating(&mut text, &h, &o);
    // The manual leaves what FYL2XP1 does below its range to the processor.
    // A tangent at the edge of the denormals may have a wrapped exponent on one side only.
    let m = case.instruction.mnemonic();
    let edge = m == iced_x86::Mnemonic::Fptan && host.fcw() & 0x10 == 0;
    let excused = (m == iced_x86::Mnemonic::Fyl2xp1 || edge) && !text.is_empty();
    let text = if excused { String::new() } else { text };
    Verdict { text: (!text.is_empty()).then_some(text), undefined: false, excused: false, approximate: true }
}

fn same_fp(host: &FpImage, ours: &FpImage) -> bool {
    host.bytes[..6] == ours.bytes[..6]
        && host.bytes[24..28] == ours.bytes[24..28]
        && host.bytes[160..416] == ours.bytes[160..416]
        && host.bytes[576..832] == ours.bytes[576..832]
        && (0..8).all(|i| host.st(i) == ours.st(i))
}

fn floating(text: &mut String, host: &FpImage, ours: &FpImage) {
    if same_fp(host, ours) {
        return;
    }
    if host.bytes[..6] != ours.bytes[..6] {
        let word = |x: &FpImage| (x.fcw(), x.fsw(), x.ftw());
        let _ = write!(text, " x87 fcw fsw ftw: host {:x?}, ours {:x?};", word(host), word(ours));
    }
    if host.mxcsr() != ours.mxcsr() {
        let _ = write!(text, " mxcsr: host {:#x}, ours {:#x};", host.mxcsr(), ours.mxcsr());
    }
    for i in 0..8 {
        if host.st(i) != ours.st(i) {
            let _ = write!(text, " st{i}: host {:x?}, ours {:x?};", host.st(i), ours.st(i));
        }
    }
    for i in 0..16 {
        if host.xmm(i) != ours.xmm(i) {
            let _ = write!(text, " xmm{i}: host {:x?}, ours {:x?};", host.xmm(i), ours.xmm(i));
        }
        if host.ymm_high(i) != ours.ymm_high(i) {
            let _ = write!(text, " ymmh{i}: host {:x?}, ours {:x?};", host.ymm_high(i), ours.ymm_high(i));
        }
    }
}
