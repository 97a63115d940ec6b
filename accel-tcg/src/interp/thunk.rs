//! Runs opaque instructions (x87, MMX, SSE, AVX) on the host.
//!
//! For each distinct instruction a small function is emitted once. It loads the guest registers that the instruction
//! uses, runs the instruction with its memory operand replaced by a bounce buffer, and stores them back. The arena is
//! one memfd mapped twice, writable in one place and executable in another, so no page is ever both.
//!
//! Exceptions stay masked on the host; unmasked ones are found by their sticky flags afterwards and raised for the
//! guest. The host needs every feature the guest is shown, which the CPU model has seen to.

use super::exec::{Next, after_slow, fault, get};
use super::flags;
use crate::env::{Cpu, Fault};
use crate::frontend::effects::{Unit, unit, uses_mxcsr};
use crate::ir::Attr;
use crate::mmu::View;
use crate::mode::key;
use anura_x86::regs::vector;
use dynasmrt::{DynasmApi, VecAssembler, dynasm, x64::X64Relocation};
use iced_x86::{EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

const ARENA: usize = 8 << 20;

/// What a thunk and its caller exchange.
#[repr(C, align(64))]
struct Ctx {
    bounce: [u8; 128],
    fpu: *mut u8,
    /// rax, rcx, rdx of the host around the instruction.
    gpr: [u64; 3],
    flags: u64,
    mxcsr_in: u32,
    mxcsr_out: u32,
    mxcsr_host: u32,
}

const FPU: i32 = 128;
const GPR: i32 = 136;
const FLAGS: i32 = 160;
const MXCSR_IN: i32 = 168;
const MXCSR_OUT: i32 = 172;
const MXCSR_HOST: i32 = 176;

#[cfg(target_arch = "x86_64")]
type Entry = unsafe extern "sysv64" fn(*mut Ctx);
// Never made there: see `Arena::new`.
#[cfg(not(target_arch = "x86_64"))]
type Entry = unsafe extern "C" fn(*mut Ctx);

/// An opaque instruction of a block.
pub(crate) struct Opaque {
    entry: Option<Entry>,
    /// The same in portable code.
    pub(super) soft: Option<Box<crate::vector::Insn>>,
    /// Its result is the vendor's choice: never the host's where time is counted.
    pinned: bool,
    /// Bytes of the memory operand, 0 for none.
    pub(super) mem: u8,
    pub(super) read: bool,
    pub(super) write: bool,
    mxcsr: bool,
    /// x87: waits for pending exceptions; and: only control words are concerned.
    pub(super) x87: bool,
    pub(super) waits: bool,
    pub(super) control: bool,
    /// Loads the control and status words: FLDCW, FLDENV, FRSTOR.
    loads_control: bool,
    pub(super) flags: bool,
    /// Reads the status flags.
    flags_in: bool,
    /// Guest register for each of the host's three, and whether it is written back.
    gpr: [Option<(u8, bool)>; 3],
}

/// What an opaque instruction does, apart from its registers' numbers.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub unit: Unit,
    /// The host's processor has all that it needs.
    pub host: bool,
    /// Its result is the vendor's choice.
    pub pinned: bool,
    /// An x87 instruction that only concerns control and status.
    pub control: bool,
    /// Bytes of the memory operand.
    pub mem: u8,
    pub write: bool,
    pub flags: bool,
    pub flags_in: bool,
    /// General registers that it reads and writes, beside those of its address.
    pub reads: u16,
    pub writes: u16,
}

/// The instruction with memory at r10 + r9 and general registers where `host` says; `None` if that cannot be had.
pub(crate) struct Renamed {
    pub bytes: Vec<u8>,
    pub reg: Option<u8>,
    pub rm: Option<u8>,
}

/// Rewrites an instruction for translated code.
pub(crate) fn rename(bytes: &[u8], i: &Instruction, mode: u32, host: &dyn Fn(u8) -> u8) -> Option<Renamed> {
    let is64 = mode & key::L64 != 0;
    let sixteen = !is64 && mode & key::CODE32 == 0;
    let to = Places::Renamed(host);
    let p = patch(bytes, i, is64, sixteen, to).filter(|p| faithful(p, i, to))?;
    Some(Renamed { bytes: p.bytes, reg: p.reg, rm: p.rm })
}

/// What an opaque instruction does.
pub(crate) fn shape(i: &Instruction) -> Shape {
    use Mnemonic::*;
    let m = i.mnemonic();
    let unit = unit(i);
    let mut s = Shape {
        unit,
        host: host_has(i),
        pinned: is_pinned(m),
        control: is_control(m),
        mem: 0,
        write: false,
        flags: i.rflags_modified() & STATUS_BITS != 0,
        flags_in: i.rflags_read() & STATUS_BITS != 0,
        reads: 0,
        writes: 0,
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(i);
    for u in info.used_memory() {
        let only_reads = matches!(
            u.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
        );
        s.mem = u.memory_size().size().max(i.memory_size().size()).min(128) as u8;
        s.write |= !only_reads;
    }
    for n in 0..i.op_count() {
        let r = i.op_register(n);
        if i.op_kind(n) == iced_x86::OpKind::Register && r.is_gpr() {
            let bit = 1u16 << (crate::frontend::gpr_ref(r.full_register()).0 & 15);
            let a = info.op_access(n);
            if !matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::None) {
                s.reads |= bit;
            }
            if !matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                s.writes |= bit;
            }
        }
    }
    if matches!(m, Pcmpestri | Pcmpistri | Pcmpestri64 | Vpcmpestri | Vpcmpestri64 | Vpcmpistri) {
        s.writes |= 1 << 1;
    }
    if m == Fnstsw && i.op0_kind() == iced_x86::OpKind::Register {
        s.writes |= 1;
    }
    s
}

fn is_control(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Fldcw | Fnstcw | Fnstsw | Fnstenv | Fldenv | Fnsave | Frstor | Fninit | Fnclex | Emms | Wait)
}

/// The executable functions, by what they do.
pub(crate) struct Arena {
    rw: *mut u8,
    rx: *const u8,
    used: usize,
    known: HashMap<Vec<u8>, Entry>,
}

// SAFETY: the mappings belong to the arena alone and are not tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps the arena; fails where the host forbids executable memory.
    pub(crate) fn new() -> std::io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(std::io::Error::other("the host is not an x86-64 processor"));
        }
        let fd = rustix::fs::memfd_create("anura-thunks", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, ARENA as u64)?;
        let map = |prot| {
            // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nobody.
            unsafe { mmap(ptr::null_mut(), ARENA, prot, MapFlags::SHARED, &fd, 0) }
        };
        let rw = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(rx) => Ok(Arena { rw: rw.cast(), rx: rx.cast(), used: 0, known: HashMap::new() }),
            Err(e) => {
                // SAFETY: `rw` was mapped above with this length and nobody knows it.
                unsafe { munmap(rw, ARENA)? };
                Err(e.into())
            }
        }
    }

    /// Whether another function surely fits.
    pub(crate) fn full(&self) -> bool {
        self.used + 4096 > ARENA
    }

    /// Forgets everything; no block may hold an entry any longer.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.known.clear();
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    fn add(&mut self, key: Vec<u8>, code: &[u8]) -> Option<Entry> {
        if self.used + code.len() > ARENA {
            return None;
        }
        // SAFETY: the range was just checked to lie in the mapping, and executing code never lies behind `used`.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.rw.add(self.used), code.len()) };
        // SAFETY: the same place through the executable mapping now holds a complete function of this type.
        let entry: Entry = unsafe { std::mem::transmute(self.rx.add(self.used)) };
        self.used = (self.used + code.len() + 15) & !15;
        self.known.insert(key, entry);
        Some(entry)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for p in [self.rw.cast::<c_void>(), self.rx.cast_mut().cast()] {
            // SAFETY: both were mapped by `new` with this length; nothing runs in them any more.
            let _ = unsafe { munmap(p, ARENA) };
        }
    }
}

/// The instruction with its operands moved to where the thunk has them.
struct Patched {
    bytes: Vec<u8>,
    /// ModRM's register field is a general register, moved to rcx; its r/m field one, moved to rdx.
    reg: Option<u8>,
    rm: Option<u8>,
}

/// Where the rewritten instruction has its operands.
#[derive(Clone, Copy)]
enum Places<'a> {
    /// Memory at rbx, general registers in rcx (ModRM.reg) and rdx (ModRM.r/m).
    Thunk,
    /// Memory at r10 + r9, general registers where this says.
    Renamed(&'a dyn Fn(u8) -> u8),
}

/// Rewrites prefixes and ModRM.
fn patch(bytes: &[u8], i: &Instruction, is64: bool, sixteen: bool, to: Places<'_>) -> Option<Patched> {
    let mut out = Vec::with_capacity(16);
    let mut at = 0;
    let mut rex = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            0x66 | 0xf2 | 0xf3 => {
                out.push(b);
                rex = 0;
            }
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => rex = 0,
            // Counts only right before the opcode.
            0x40..=0x4f if is64 => rex = b,
            _ => break,
        }
        at += 1;
    }
    if sixteen {
        // The size of these follows the operand size, whose default is the other one here.
        use Mnemonic::*;
        if matches!(i.mnemonic(), Fldenv | Fnstenv | Fnsave | Frstor) {
            match out.iter().position(|&b| b == 0x66) {
                Some(_) => out.retain(|&b| b != 0x66),
                None => out.insert(0, 0x66),
            }
        }
    }
    let vex = i.encoding() == EncodingKind::VEX;
    let gpr_operand = (0..i.op_count())
        .find(|&n| i.op_kind(n) == iced_x86::OpKind::Register && i.op_register(n).is_gpr())
        .map(|n| i.op_register(n));
    // R, X, B as in REX.
    let (mut r, mut b_bit);
    let mut x_bit = false;
    let (map, opcode, head);
    if vex {
        let three = bytes.get(at)? == &0xc4;
        let p1 = *bytes.get(at + 1)?;
        r = p1 & 0x80 == 0;
        b_bit = three && p1 & 0x20 == 0;
        head = out.len();
        if three {
            map = p1 & 31;
            out.extend([0xc4, p1, *bytes.get(at + 2)?]);
            at += 3;
        } else {
            map = 1;
            // The long form, so that there is one case only.
            out.extend([0xc4, 0xe1, p1 & 0x7f]);
            at += 2;
        }
        let moves = matches!(i.mnemonic(), Mnemonic::Vmovd | Mnemonic::Vpextrd | Mnemonic::Vpinsrd);
        if !is64 && (gpr_operand.is_some() || moves) {
            // There are no 64-bit operands there, whatever W says.
            out[head + 2] &= 0x7f;
        }
        opcode = *bytes.get(at)?;
        out.push(opcode);
        at += 1;
    } else {
        r = rex & 4 != 0;
        b_bit = rex & 1 != 0;
        head = out.len();
        out.push(0x40 | rex & 8);
        let first = *bytes.get(at)?;
        at += 1;
        if first == 0x0f {
            out.push(first);
            let second = *bytes.get(at)?;
            at += 1;
            out.push(second);
            if second == 0x38 || second == 0x3a {
                map = if second == 0x38 { 2 } else { 3 };
                opcode = *bytes.get(at)?;
                out.push(opcode);
                at += 1;
            } else {
                map = 1;
                opcode = second;
            }
        } else {
            // x87 and FWAIT.
            map = 0;
            opcode = first;
            out.push(first);
        }
    }
    let (mut reg, mut rm) = (None, None);
    let no_modrm = (map == 0 && opcode == 0x9b) || (map == 1 && opcode == 0x77);
    if !no_modrm {
        let m = *bytes.get(at)?;
        at += 1;
        let mut reg_field = m >> 3 & 7;
        let mut low = m & 7;
        let mem = m >> 6 != 3;
        let in_rm = match map {
            1 => matches!(opcode, 0x6e | 0x7e | 0x2a | 0xc4),
            3 => matches!(opcode, 0x14..=0x17 | 0x20 | 0x22),
            _ => false,
        };
        if let Some(g) = gpr_operand.filter(|_| map != 0) {
            let n = crate::frontend::gpr_ref(g.full_register()).0 as u8;
            let host = match to {
                Places::Thunk => 1 + u8::from(in_rm),
                Places::Renamed(host) => host(n),
            };
            if in_rm {
                rm = Some(n);
                low = host & 7;
                b_bit = host >> 3 != 0;
            } else {
                reg = Some(n);
                reg_field = host & 7;
                r = host >> 3 != 0;
            }
        }
        if mem {
            if low == 4 {
                // SIB byte (16-bit addresses have none, and need none here either).
                let sixteen =
                    matches!(i.memory_base(), Register::BX | Register::BP | Register::SI | Register::DI);
                if !sixteen {
                    at += 1;
                }
            }
            // Whatever displacement there is lies before the immediate.
            let imm = immediate_len(i);
            at = bytes.len().checked_sub(imm)?.max(at);
            match to {
                Places::Thunk => {
                    out.push(reg_field << 3 | 3);
                    b_bit = false;
                }
                Places::Renamed(_) => {
                    out.extend([reg_field << 3 | 4, 0x0a]);
                    (x_bit, b_bit) = (true, true);
                }
            }
        } else {
            out.push(3 << 6 | reg_field << 3 | low);
        }
    }
    if vex && !is64 {
        // Outside of 64-bit code W says nothing about general registers.
        use Mnemonic::*;
        let lengths = matches!(i.mnemonic(), Vpcmpestri | Vpcmpestrm | Vpcmpestri64 | Vpcmpestrm64);
        let from_memory = matches!(i.mnemonic(), Vcvtsi2sd | Vcvtsi2ss);
        if gpr_operand.is_some() || lengths || from_memory {
            out[head + 2] &= 0x7f;
        }
    }
    if vex {
        let p1 = &mut out[head + 1];
        *p1 = *p1 & 0x1f
            | if x_bit { 0 } else { 0x40 }
            | if r { 0 } else { 0x80 }
            | if b_bit { 0 } else { 0x20 };
    } else {
        out[head] |= if r { 4 } else { 0 } | if x_bit { 2 } else { 0 } | u8::from(b_bit);
        if out[head] == 0x40 {
            out.remove(head);
        }
    }
    out.extend_from_slice(bytes.get(at..)?);
    if !is64 && is_blend_by_register(i) {
        // The register in the immediate has three bits here.
        *out.last_mut()? &= 0x7f;
    }
    Some(Patched { bytes: out, reg, rm })
}

/// The fourth operand is a register in the immediate byte.
fn is_blend_by_register(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Vblendvps | Mnemonic::Vblendvpd | Mnemonic::Vpblendvb)
}

/// Whether the rewritten instruction is the original one on the operands that the thunk prepares. What fails here is
/// not run: the guest must not choose what the host executes.
fn faithful(p: &Patched, i: &Instruction, to: Places<'_>) -> bool {
    use iced_x86::{Decoder, DecoderOptions, OpKind};
    let d = Decoder::with_ip(64, &p.bytes, 0, DecoderOptions::NONE).decode();
    if d.is_invalid()
        || d.len() != p.bytes.len()
        || d.mnemonic() != i.mnemonic()
        || d.op_count() != i.op_count()
    {
        return false;
    }
    (0..i.op_count()).all(|n| match (i.op_kind(n), d.op_kind(n)) {
        (OpKind::Memory, OpKind::Memory) => {
            let there = match to {
                Places::Thunk => d.memory_base() == Register::RBX && d.memory_index() == Register::None,
                Places::Renamed(_) => {
                    d.memory_base() == Register::R10
                        && d.memory_index() == Register::R9
                        && d.memory_index_scale() == 1
                }
            };
            there
                && d.memory_displacement64() == 0
                && d.segment_prefix() == Register::None
                && d.memory_size() == i.memory_size()
        }
        (OpKind::Register, OpKind::Register) => {
            let (was, is) = (i.op_register(n), d.op_register(n));
            if was.is_gpr() && (p.reg.is_some() || p.rm.is_some()) {
                let place = match (to, p.reg.or(p.rm)) {
                    (Places::Renamed(host), Some(n)) => host(n),
                    _ if p.reg.is_some() => 1,
                    _ => 2,
                };
                crate::frontend::gpr_ref(is.full_register()).0 == u16::from(place) && is.size() == was.size()
            } else {
                is == was
            }
        }
        (OpKind::Immediate8, OpKind::Immediate8) => i.immediate8() == d.immediate8(),
        _ => false,
    })
}

fn immediate_len(i: &Instruction) -> usize {
    use iced_x86::OpKind::*;
    let mut n = 0;
    let mut is4 = false;
    for k in 0..i.op_count() {
        match i.op_kind(k) {
            Immediate8 => n += 1,
            Immediate16 => n += 2,
            Immediate32 => n += 4,
            _ => {}
        }
    }
    // The fourth register operand of VEX blends lives in an immediate byte.
    if i.encoding() == EncodingKind::VEX && i.op_count() == 4 && n == 0 {
        is4 = is_blend_by_register(i);
    }
    n + usize::from(is4)
}

/// The six status flags in the decoder's numbering.
const STATUS_BITS: u32 = {
    use iced_x86::RflagsBits as B;
    B::OF | B::SF | B::ZF | B::AF | B::CF | B::PF
};

/// Makes ready to run an instruction of a block.
pub(crate) fn prepare(arena: Option<&mut Arena>, bytes: &[u8], mode: u32) -> Opaque {
    let mut o = Opaque {
        entry: None,
        soft: None,
        pinned: false,
        mem: 0,
        read: false,
        write: false,
        mxcsr: false,
        x87: false,
        waits: false,
        control: false,
        loads_control: false,
        flags: false,
        flags_in: false,
        gpr: [None; 3],
    };
    let Ok(i) = crate::frontend::decode::decode(bytes, 0, mode, &crate::frontend::effects::Features::all())
    else {
        return o;
    };
    let is64 = mode & key::L64 != 0;
    let sixteen = !is64 && mode & key::CODE32 == 0;
    o.soft = crate::vector::Insn::new(&i).map(Box::new);
    o.pinned = is_pinned(i.mnemonic());
    // What handles the pointers to the last x87 instruction: the host's are not the guest's.
    let pointers = matches!(
        i.mnemonic(),
        Mnemonic::Fninit | Mnemonic::Fnsave | Mnemonic::Fnstenv | Mnemonic::Fldenv | Mnemonic::Frstor
    );
    let arena = arena.filter(|_| host_has(&i) && !pointers);
    let patched = patch(bytes, &i, is64, sixteen, Places::Thunk).filter(|p| faithful(p, &i, Places::Thunk));
    let (reg, rm) = patched.as_ref().map_or((None, None), |p| (p.reg, p.rm));
    let unit = unit(&i);
    let vex = unit == Unit::Avx;
    o.x87 = matches!(unit, Unit::X87 | Unit::Mmx);
    // Conversions between MMX and SSE registers belong to both.
    o.mxcsr = unit != Unit::X87 && uses_mxcsr(&i);
    use Mnemonic::*;
    o.control = is_control(i.mnemonic());
    o.loads_control = matches!(i.mnemonic(), Fldcw | Fldenv | Frstor);
    o.waits = o.x87
        && !matches!(
            i.mnemonic(),
            Fnstcw | Fnstsw | Fnstenv | Fnsave | Fninit | Fnclex | Fneni | Fndisi | Fnsetpm
        );
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&i);
    for m in info.used_memory() {
        let reads = !matches!(
            m.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::None | OpAccess::NoMemAccess
        );
        let writes = matches!(
            m.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        o.mem = m.memory_size().size().max(i.memory_size().size()).min(128) as u8;
        o.read |= reads;
        o.write |= writes;
    }
    let mut vectors = 0u16;
    let mut stores = 0u16;
    for u in info.used_registers() {
        let r = u.register();
        let writes = !matches!(
            u.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
        );
        if r.is_vector_register() {
            vectors |= 1 << r.number();
            if writes {
                stores |= 1 << r.number();
            }
        } else if r.is_gpr() {
            let full = crate::frontend::gpr_ref(r.full_register()).0 as u8;
            // An explicit operand has its place by ModRM; what else is used is implicit (or part of the address, and
            // then does no harm).
            let place = if reg == Some(full) {
                1
            } else if rm == Some(full) {
                2
            } else if full < 3 && !(reg.is_some() && full == 1) && !(rm.is_some() && full == 2) {
                full as usize
            } else {
                continue;
            };
            let before = o.gpr[place].is_some_and(|(_, w)| w);
            o.gpr[place] = Some((full, writes || before));
        }
    }
    if i.mnemonic() == Vzeroupper || i.mnemonic() == Vzeroall {
        // All that the mode can name.
        let all = if is64 { 0xffff } else { 0xff };
        (vectors, stores) = (all, all);
    }
    // The decoder also counts the condition bits of the x87 here.
    o.flags = i.rflags_modified() & STATUS_BITS != 0;
    o.flags_in = i.rflags_read() & STATUS_BITS != 0;
    let (Some(arena), Some(p)) = (arena, patched) else { return o };
    let mut id = p.bytes.clone();
    id.push(
        u8::from(vex)
            | u8::from(o.x87) << 1
            | u8::from(o.mxcsr) << 2
            | u8::from(o.flags) << 3
            | u8::from(o.flags_in) << 4
            | u8::from(is64) << 5,
    );
    if let Some(e) = arena.known.get(&id) {
        o.entry = Some(*e);
        return o;
    }
    let code = emit(&p.bytes, &o, vectors, stores, vex);
    if code.is_empty() {
        return o;
    }
    o.entry = arena.add(id, &code);
    o
}

/// Approximations and transcendental functions.
fn is_pinned(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Vrcpps
            | Vrcpss
            | Vrsqrtps
            | Vrsqrtss
            | F2xm1
            | Fyl2x
            | Fyl2xp1
            | Fpatan
            | Fptan
            | Fsin
            | Fcos
            | Fsincos
    )
}

/// Whether the host's processor has all that the instruction needs.
fn host_has(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as C;
    #[cfg(target_arch = "x86_64")]
    {
        i.cpuid_features().iter().all(|f| match f {
            C::SSE3 => std::arch::is_x86_feature_detected!("sse3"),
            C::SSSE3 => std::arch::is_x86_feature_detected!("ssse3"),
            C::SSE4A => std::arch::is_x86_feature_detected!("sse4a"),
            C::SSE4_1 => std::arch::is_x86_feature_detected!("sse4.1"),
            C::SSE4_2 => std::arch::is_x86_feature_detected!("sse4.2"),
            C::AES => std::arch::is_x86_feature_detected!("aes"),
            C::PCLMULQDQ => std::arch::is_x86_feature_detected!("pclmulqdq"),
            C::SHA => std::arch::is_x86_feature_detected!("sha"),
            C::AVX => std::arch::is_x86_feature_detected!("avx"),
            C::AVX2 => std::arch::is_x86_feature_detected!("avx2"),
            C::FMA => std::arch::is_x86_feature_detected!("fma"),
            C::F16C => std::arch::is_x86_feature_detected!("f16c"),
            C::GFNI => std::arch::is_x86_feature_detected!("gfni"),
            C::VAES => std::arch::is_x86_feature_detected!("vaes"),
            C::VPCLMULQDQ => std::arch::is_x86_feature_detected!("vpclmulqdq"),
            _ => true,
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (i, C::SSE);
        false
    }
}

#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn emit(insn: &[u8], o: &Opaque, vectors: u16, stores: u16, vex: bool) -> Vec<u8> {
    let mut a: VecAssembler<X64Relocation> = VecAssembler::new(0);
    dynasm!(a
        ; .arch x64
        ; push rbx
        ; push r12
        ; push r13
        ; mov r12, rdi
        ; mov r13, [r12 + FPU]
        ; mov rbx, r12
    );
    let each = |set: u16| (0..16u8).filter(move |n| set >> n & 1 != 0);
    if o.x87 {
        dynasm!(a; .arch x64; fxrstor64 [r13]);
    } else {
        for n in each(vectors) {
            let low = 160 + i32::from(n) * 16;
            let high = 576 + i32::from(n) * 16;
            if vex {
                dynasm!(a; .arch x64; vmovups Rx(n), [r13 + low]; vinsertf128 Ry(n), Ry(n), [r13 + high], 1);
            } else {
                dynasm!(a; .arch x64; movups Rx(n), [r13 + low]);
            }
        }
    }
    if o.mxcsr {
        dynasm!(a; .arch x64; ldmxcsr [r12 + MXCSR_IN]);
    }
    for (n, g) in o.gpr.iter().enumerate() {
        if g.is_some() {
            dynasm!(a; .arch x64; mov Rq(n as u8), [r12 + GPR + n as i32 * 8]);
        }
    }
    if o.flags_in {
        dynasm!(a; .arch x64; push QWORD [r12 + FLAGS]; popfq);
    }
    a.extend(insn);
    for (n, g) in o.gpr.iter().enumerate() {
        if matches!(g, Some((_, true))) {
            dynasm!(a; .arch x64; mov [r12 + GPR + n as i32 * 8], Rq(n as u8));
        }
    }
    if o.flags {
        dynasm!(a; .arch x64; pushfq; pop rax; mov [r12 + FLAGS], rax);
    }
    if o.mxcsr {
        dynasm!(a; .arch x64; stmxcsr [r12 + MXCSR_OUT]; ldmxcsr [r12 + MXCSR_HOST]);
    }
    if o.x87 {
        dynasm!(a; .arch x64; fxsave64 [r13]; fninit; ldmxcsr [r12 + MXCSR_HOST]);
    } else {
        for n in each(stores) {
            let low = 160 + i32::from(n) * 16;
            let high = 576 + i32::from(n) * 16;
            if vex {
                dynasm!(a; .arch x64; vmovups [r13 + low], Rx(n); vextractf128 [r13 + high], Ry(n), 1);
            } else {
                dynasm!(a; .arch x64; movups [r13 + low], Rx(n));
            }
        }
    }
    if vex {
        dynasm!(a; .arch x64; vzeroupper);
    }
    dynasm!(a; .arch x64; pop r13; pop r12; pop rbx; ret);
    a.finalize().unwrap_or_default()
}

const HOST_MXCSR: u32 = 0x1f80;

/// What any MMX instruction does to the x87: the top of the stack is register 0, and all are in use.
pub(crate) fn enter_mmx(cpu: &mut Cpu) {
    let top = usize::from(cpu.env.fpu.fsw() >> 11 & 7);
    cpu.env.fpu.bytes[32..160].rotate_right(top * 16);
    let fsw = cpu.env.fpu.fsw() & !0x3800;
    cpu.env.fpu.set_fsw(fsw);
    cpu.env.fpu.bytes[4] = 0xff;
}

/// Runs the opaque instruction that `imm` points to; slot `a` has its address.
pub(super) unsafe fn run(cpu: &mut Cpu, op: Next) -> Next {
    // SAFETY: the handler contract; `imm` points into the running block's `thunks` (see `lower`).
    let (o, t) = unsafe { (&*op, &*((*op).imm as *const Opaque)) };
    // SAFETY: the handler contract.
    let va = unsafe { get(cpu, o.a) };
    let view = if o.y as u8 & Attr::STACK != 0 { View::Stack } else { View::Data };
    let len = t.mem as usize;
    let aligned = o.y as u8 & Attr::ALIGNED != 0;
    // What the host would do differently is run in portable code: unmasked SIMD exceptions, results that are pinned,
    // and the x87's control instructions, since hosts differ in when they keep its pointers.
    let mode = cpu.env.mode_key;
    let ours = t.control || t.mxcsr && cpu.env.mode_key & key::FPX != 0 || t.pinned && cpu.vm.config.counted;
    let result = match (t.entry, &t.soft) {
        (None, None) => Err(Fault::UD),
        (Some(entry), soft) if soft.is_none() || !ours => {
            attempt(cpu, t, entry, va, len, view, aligned, o.insn)
        }
        (_, Some(soft)) => super::soft::run(cpu, t, soft, va, view, aligned, o.insn),
        (Some(entry), None) => attempt(cpu, t, entry, va, len, view, aligned, o.insn),
    };
    // A control word may have unmasked an exception.
    let other_mode = cpu.env.mode_key != mode;
    cpu.t0.leave |= other_mode;
    match result {
        Ok(false) if !other_mode => {
            // SAFETY: the handler contract.
            unsafe { op.add(1) }
        }
        // SAFETY: the handler contract.
        Ok(_) => unsafe { after_slow(cpu, op) },
        // SAFETY: the handler contract.
        Err(f) => unsafe { fault(cpu, op, f) },
    }
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn attempt(
    cpu: &mut Cpu,
    t: &Opaque,
    entry: Entry,
    va: u64,
    len: usize,
    view: View,
    aligned: bool,
    insn: u8,
) -> Result<bool, Fault> {
    // An exception of before that waits: #MF, or with CR0.NE clear the FERR pin and on we go. The host must see
    // none, or it would trap us.
    let mut pending = None;
    if t.waits {
        let (fcw, fsw) = (cpu.env.fpu.fcw(), cpu.env.fpu.fsw());
        if fsw & 0x80 != 0 || fsw & !fcw & 0x3f != 0 {
            cpu.x87_error()?;
            pending = Some((fcw, fsw));
        }
    }
    if aligned && va & (len as u64).wrapping_sub(1) != 0 {
        return Err(Fault::GP0);
    }
    // Only the parts that the instruction reads are set.
    let mut ctx = std::mem::MaybeUninit::<Ctx>::uninit();
    let c = ctx.as_mut_ptr();
    let mut slow = false;
    // SAFETY: `c` points to our own `Ctx`; fields are written before they are read, and the emitted function keeps
    // to the layout and to the ABI.
    unsafe {
        (*c).fpu = cpu.env.fpu.bytes.as_mut_ptr();
        (*c).mxcsr_host = HOST_MXCSR;
        let fpx = cpu.env.mode_key & key::FPX != 0;
        if len != 0 {
            let buf = std::slice::from_raw_parts_mut((&raw mut (*c).bounce).cast::<u8>(), len);
            if t.write {
                cpu.probe_write(va, len, view)?;
            }
            // With an unmasked exception an x87 store may not happen at all.
            if t.read || fpx {
                match cpu.try_read_ptr(va, len as u64) {
                    Some(p) => ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), len),
                    None => {
                        cpu.env.insn_in_block = u64::from(insn) + 1;
                        buf.fill(0);
                        cpu.load(va, buf, view)?;
                        slow = true;
                    }
                }
            } else {
                buf.fill(0);
            }
        }
        for (n, g) in t.gpr.iter().enumerate() {
            if let Some((r, _)) = g {
                (*c).gpr[n] = cpu.env.gpr[*r as usize & 15];
            }
        }
        if t.flags_in {
            (*c).flags = flags::get(&cpu.env) | 0x202;
        }
        let saved = if fpx { Some(cpu.env.fpu.clone()) } else { None };
        let mxcsr = cpu.env.fpu.mxcsr();
        if t.mxcsr {
            (*c).mxcsr_in = mxcsr & !0x3f | 0x1f80;
        }
        // The x87 runs with the guest's own masks: an unmasked exception is signalled by the next waiting
        // instruction only, and neither FXSAVE nor FNINIT is one.
        let pointers = [8, 16].map(|at| cpu.env.fpu.u64_at(at));
        let own = [cpu.env.fpu.bytes[6], cpu.env.fpu.bytes[7]];
        let own_mask: [u8; 4] = std::array::from_fn(|n| cpu.env.fpu.bytes[28 + n]);
        if let Some((fcw, fsw)) = pending {
            cpu.env.fpu.set_fcw(fcw | 0x3f);
            cpu.env.fpu.set_fsw(fsw & !0x80bf);
        }
        entry(c);
        if let Some((fcw, fsw)) = pending
            && !t.loads_control
        {
            cpu.env.fpu.set_fcw(fcw);
            let now = cpu.env.fpu.fsw();
            cpu.env.fpu.set_fsw(now | fsw & 0x80bf);
        }
        if t.x87 {
            // The host's idea of where the instruction was must not show.
            let ip = if t.control { pointers[0] } else { (*cpu.t0.block).rip_of(insn) };
            let dp = if t.control || len == 0 { pointers[1] } else { va };
            cpu.env.fpu.set_u64_at(8, ip);
            cpu.env.fpu.set_u64_at(16, dp);
            cpu.env.fpu.bytes[6..8].copy_from_slice(&own);
            cpu.env.fpu.bytes[28..32].copy_from_slice(&own_mask);
        }
        if t.mxcsr {
            let raised = (*c).mxcsr_out & 0x3f;
            if raised & !(mxcsr >> 7) & 0x3f != 0 {
                if let Some(s) = saved {
                    cpu.env.fpu = s;
                }
                if t.x87 {
                    enter_mmx(cpu);
                }
                // An unmasked exception of the operands ends the instruction before any of the result.
                let early = raised & 7 & !(mxcsr >> 7) != 0;
                cpu.env.fpu.set_mxcsr(mxcsr | if early { raised & 7 } else { raised });
                let os = cpu.env.mode_key & key::OSXMMEXCPT != 0;
                return Err(if os { Fault::new(vector::XM) } else { Fault::UD });
            }
            cpu.env.fpu.set_mxcsr(mxcsr | raised);
        }
        if t.write && len != 0 {
            let buf = std::slice::from_raw_parts((&raw const (*c).bounce).cast::<u8>(), len);
            match cpu.try_write_ptr(va, len as u64) {
                Some(p) => ptr::copy_nonoverlapping(buf.as_ptr(), p, len),
                None => {
                    cpu.env.insn_in_block = u64::from(insn) + 1;
                    cpu.store(va, buf, view)?;
                    slow = true;
                }
            }
        }
        for (n, g) in t.gpr.iter().enumerate() {
            if let Some((r, true)) = g {
                cpu.env.gpr[*r as usize & 15] = (*c).gpr[n];
            }
        }
        if t.flags {
            flags::set(&mut cpu.env, (*c).flags);
        }
    }
    if t.control {
        cpu.x87_controlled();
    }
    Ok(slow)
}
