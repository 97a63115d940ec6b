//! The fixed code around translated blocks: the way in, the ways out, and calls of the engine's routines.
//!
//! In translated code rsp is the environment, so a call from there pushes right below it, onto the processor's own
//! stack. Routines get the environment's address, which is the processor's.

use super::asm::{Reg, reg};
use super::emit::{at, canonical, code};
use super::home::{JUMPS, JUMPS_AT};
use super::{rt, strings};
use crate::env::{CPUID_ANSWERS, WINDOWS};
use crate::interp::flags::{kind, over};
use crate::mutants;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

/// A place that blocks jump to or call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stub {
    /// Leaves with RIP in r9 and the exit code in r10.
    Exit,
    /// Called: leaves; the return address is the site.
    Bail,
    /// Called: r9 is an address that the TLB does not know, r10 what is done there. Comes back with r10 + r9 as the host
    /// address, or leaves.
    Slow,
    /// Called: r10 is an instruction for the interpreter.
    Step,
    /// Called: r10 is a helper's constants.
    Helper,
    /// Called: puts CF into the low byte of `cc_b`.
    Carry,
    /// Called: brings the vector registers into the host's.
    LoadVectors,
    /// Called: brings the x87 and the vector registers into the host's.
    LoadX87,
    /// Called: brings CF, ZF, SF and OF from their record into the host's flags.
    Flags,
    /// On with RIP in r9 after a slot whose epoch is not the present one; r10 is its number with the exit code.
    Far,
    /// Called: CPUID; r10 is the helper's constants.
    Cpuid,
    /// Called: brings the status flags, as EFLAGS has them, into r9.
    Status,
    /// Called: repeated string instructions; see [`super::strings`].
    Movsb,
    Movsd,
    Movsq,
    Stosb,
    Stosd,
    Stosq,
}

/// Every one of them, in order.
const ALL: [Stub; 18] = {
    use Stub::*;
    [
        Exit,
        Bail,
        Slow,
        Step,
        Helper,
        Carry,
        LoadVectors,
        LoadX87,
        Flags,
        Far,
        Cpuid,
        Status,
        Movsb,
        Movsd,
        Movsq,
        Stosb,
        Stosd,
        Stosq,
    ]
};

/// Where they are, as offsets in the arena.
pub(super) struct Stubs {
    pub enter: usize,
    offsets: [u32; ALL.len()],
}

impl Stubs {
    pub fn at(&self, s: Stub) -> u32 {
        self.offsets[s as usize]
    }

    /// Where each begins, in order, with its name.
    pub fn names(&self) -> Vec<(usize, String)> {
        let stubs = ALL.iter().map(|s| (self.at(*s) as usize, format!("{s:?}").to_lowercase()));
        let mut names: Vec<_> = stubs.chain([(self.enter, "enter".into())]).collect();
        names.sort();
        names
    }
}

const GPRS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14];

/// Host registers that routines may change.
fn volatile(r: Reg) -> bool {
    !matches!(r, reg::RBX | 5 | 12..=15)
}

/// What [`Stub::Slow`] gives in r9, so that no access is taken for one near this one; r10 makes up for it.
pub(super) const APART: i32 = i32::MIN;

/// What stubs are written with.
pub(super) type Assembler = VecAssembler<X64Relocation>;
type A = Assembler;

#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn save(a: &mut A, off: i32, which: impl Fn(Reg) -> bool) {
    for n in GPRS {
        if let Some(h) = canonical(n).filter(|h| which(*h)) {
            dynasm!(a; .arch x64; mov [rsp + off + at::gpr(n)], Rq(h));
        }
    }
}

#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn load(a: &mut A, off: i32, which: impl Fn(Reg) -> bool) {
    for n in GPRS {
        if let Some(h) = canonical(n).filter(|h| which(*h)) {
            dynasm!(a; .arch x64; mov Rq(h), [rsp + off + at::gpr(n)]);
        }
    }
}

/// Nobody's window is good any more, that of the running code neither.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn close_windows(a: &mut A, off: i32) {
    if mutants::on(mutants::J_WINDOWS_OPEN) {
        return;
    }
    for n in 0..WINDOWS {
        dynasm!(a; .arch x64; mov QWORD [rsp + off + at::window_span(n)], 0);
    }
}

const XMM: i32 = at::FPU + 160;
const YMM: i32 = at::FPU + 576;
const MXCSR: i32 = at::FPU + 24;

/// Calls a routine in the middle of code that goes on with its vector registers. The environment is at rsp + `off`; the
/// answer is in rax, and what a routine may change is the caller's to save.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn call_aside(a: &mut A, off: i32, routine: i64) {
    dynasm!(a; .arch x64
        ; lea rdi, [rsp + off]
        ; test DWORD [rdi + at::LIVE], 3
        ; je >plain
        ; call ->save_vectors
        ; plain:
        ; mov rax, QWORD routine
        ; call rax
        ; lea rdi, [rsp + off]
        ; test DWORD [rdi + at::LIVE], 3
        ; je >home
        ; call ->load_vectors
        ; home:
    );
}

/// CF from the record (see `interp::flags`): the kinds that are common here, the others by a call.
#[allow(clippy::useless_conversion, clippy::fn_to_numeric_cast)] // inside the assembler's macro
fn carry(a: &mut A, mark: &mut impl FnMut(&mut A, Stub)) {
    mark(a, Stub::Carry);
    // The environment is at rsp + 32.
    dynasm!(a; .arch x64
        ; push rax; push rcx; push rdx
        ; mov eax, [rsp + 32 + at::CC_OP]
        ; test eax, over::CF as i32
        ; jne >replaced
        ; and eax, kind::MASK as i32
        // Both operands are moved up, so that what lies above their width does not count.
        ; mov ecx, eax
        ; and ecx, 3
        ; mov edx, 8
        ; shl edx, cl
        ; mov ecx, 64
        ; sub ecx, edx
        ; mov rdx, [rsp + 32 + at::CC_B]
        ; cmp eax, kind::INC as i32
        ; jb >low
        ; cmp eax, kind::CMP as i32
        ; jb >in_b
        ; cmp eax, kind::LAHF as i32
        ; jb >compare
        ; cmp eax, kind::ZERO as i32
        ; jae >none
        // LAHF
        ; movzx eax, BYTE [rsp + 32 + at::CC_A + 1]
        ; and eax, 1
        ; jmp >done
        ; low:
        ; cmp eax, kind::LOGIC as i32
        ; jae >none
        ; cmp eax, kind::ADD as i32
        ; jb >image
        ; cmp eax, kind::ADC1 as i32
        ; jb >compare
        ; cmp eax, kind::SUB as i32
        ; jb >call
        ; cmp eax, kind::SBB1 as i32
        ; jae >call
        // a - b < 0, from the result and b.
        ; mov rax, [rsp + 32 + at::CC_A]
        ; add rax, rdx
        ; jmp >shifted
        ; compare:
        ; mov rax, [rsp + 32 + at::CC_A]
        ; shifted:
        ; shl rax, cl
        ; shl rdx, cl
        ; cmp rax, rdx
        ; setb al
        ; jmp >done
        ; image:
        ; mov eax, [rsp + 32 + at::CC_A]
        ; and eax, 1
        ; jmp >done
        ; in_b:
        ; mov eax, edx
        ; and eax, 1
        ; jmp >done
        ; replaced:
        ; movzx eax, BYTE [rsp + 32 + at::CC_C]
        ; jmp >done
        ; none:
        ; xor eax, eax
        ; done:
        ; mov [rsp + 32 + at::CC_B], al
        ; pop rdx; pop rcx; pop rax
        ; ret
        ; call:
        ; push rsi; push rdi; push r8; push r9; push r10; push r11
    );
    call_aside(a, 80, rt::carry as *const () as i64);
    dynasm!(a; .arch x64
        ; pop r11; pop r10; pop r9; pop r8; pop rdi; pop rsi; pop rdx; pop rcx; pop rax
        ; ret
    );
}

/// The jump cache's entry for RIP in r9: r10 is its displacement, and ZF says whether it is the right one. r11 is lost.
#[allow(clippy::useless_conversion)] // inside the assembler's macro
fn look_up(a: &mut A) {
    dynasm!(a; .arch x64
        ; mov r10, r9
        ; shr r10, 12
        ; xor r10d, r9d
        ; and r10d, JUMPS as i32 - 1
        ; shl r10d, 5
        ; cmp r9, [rsp + r10 + JUMPS_AT]
        ; jne >other
        ; mov r11, r9
        ; shr r11, 63
        ; mov r11, [rsp + r11 * 8 + at::TAG]
        ; cmp r11, [rsp + r10 + JUMPS_AT + 8]
        ; other:
    );
}

/// The flags from the record (see `interp::flags`): the kinds that are common here, the others by a call. All registers
/// stay.
#[allow(clippy::useless_conversion, clippy::fn_to_numeric_cast)] // inside the assembler's macro
fn flags(a: &mut A, mark: &mut impl FnMut(&mut A, Stub)) {
    mark(a, Stub::Flags);
    // The environment is at rsp + 32.
    dynasm!(a; .arch x64
        ; push rax; push rcx; push rdx
        ; mov eax, [rsp + 32 + at::CC_OP]
        ; test eax, (over::CF | over::OF | over::ZF) as i32
        ; jne >call
        ; and eax, kind::MASK as i32
        // Operands are moved up, so that what lies above their width does not count.
        ; mov ecx, eax
        ; and ecx, 3
        ; mov edx, 8
        ; shl edx, cl
        ; mov ecx, 64
        ; sub ecx, edx
        ; mov rdx, [rsp + 32 + at::CC_B]
        ; cmp eax, kind::CMP as i32
        ; jae >compare
        ; cmp eax, kind::SUB as i32
        ; jb >low
        ; cmp eax, kind::SBB1 as i32
        ; jb >sub
        ; cmp eax, kind::LOGIC as i32
        ; jb >call
        ; cmp eax, kind::INC as i32
        ; jae >call
        ; mov rax, [rsp + 32 + at::CC_A]
        ; shl rax, cl
        ; test rax, rax
        ; pop rdx; pop rcx; pop rax
        ; ret
        ; low:
        ; cmp eax, kind::ADD as i32
        ; jb >image
        ; cmp eax, kind::ADC1 as i32
        ; jae >call
        ; mov rax, [rsp + 32 + at::CC_A]
        ; sub rax, rdx
        ; shl rax, cl
        ; shl rdx, cl
        ; add rax, rdx
        ; pop rdx; pop rcx; pop rax
        ; ret
        ; sub:
        ; mov rax, [rsp + 32 + at::CC_A]
        ; add rax, rdx
        ; jmp >both
        ; compare:
        ; cmp eax, kind::LAHF as i32
        ; jae >saved
        ; mov rax, [rsp + 32 + at::CC_A]
        ; both:
        ; shl rax, cl
        ; shl rdx, cl
        ; cmp rax, rdx
        ; pop rdx; pop rcx; pop rax
        ; ret
        ; saved:
        ; cmp eax, kind::ZERO as i32
        ; jae >call
        ; mov eax, [rsp + 32 + at::CC_A]
        // ADD AL, 7Fh makes OF; SAHF the others.
        ; add al, 0x7f
        ; sahf
        ; pop rdx; pop rcx; pop rax
        ; ret
        ; image:
        ; mov eax, [rsp + 32 + at::CC_A]
        ; jmp >load
        ; call:
        ; push rsi; push rdi; push r8; push r9; push r10; push r11
    );
    call_aside(a, 80, rt::status as *const () as i64);
    dynasm!(a; .arch x64
        ; pop r11; pop r10; pop r9; pop r8; pop rdi; pop rsi
        // EFLAGS in the order of LAHF, with OF in bit 0.
        ; load:
        ; mov ecx, eax
        ; shl eax, 8
        ; shr ecx, 11
        ; and ecx, 1
        ; or eax, ecx
        ; add al, 0x7f
        ; sahf
        ; pop rdx; pop rcx; pop rax
        ; ret
    );
}

/// Writes the stubs; the bytes go to the start of the arena, at `base`.
#[allow(clippy::useless_conversion, clippy::fn_to_numeric_cast)] // inside the assembler's macro
pub(super) fn write(avx: bool, counted: bool) -> (Vec<u8>, Stubs) {
    let mut asm: A = VecAssembler::new(0);
    let a = &mut asm;
    let mut offsets = [0u32; ALL.len()];
    let mut mark = |a: &mut A, s: Stub| {
        dynasm!(a; .arch x64; .align 16);
        offsets[s as usize] = a.offset().0 as u32;
    };
    // The way in: rdi the environment, rsi the code.
    let enter = a.offset().0;
    dynasm!(a; .arch x64
        ; push rbx; push rbp; push r12; push r13; push r14; push r15
        ; mov [rdi + at::HOST_RSP], rsp
        ; mov rsp, rdi
        ; mov r10, rsi
    );
    load(a, 0, |_| true);
    dynasm!(a; .arch x64; mov r11, [rsp + at::TLB]; jmp r10);

    // Where to note that the windows have no owner any more.
    let owner = mutants::pick(mutants::J_WINDOW_OWNER, at::WINDOW_OWNER, at::temp(61));
    mark(a, Stub::Bail);
    dynasm!(a; .arch x64; pop r9; mov [rsp + at::SITE], r9; mov r10d, code::BAIL as i32; jmp >here);
    mark(a, Stub::Exit);
    dynasm!(a; .arch x64; ->exit:; mov [rsp + at::RIP], r9; here:; mov [rsp + at::EXIT], r10);
    save(a, 0, |_| true);
    dynasm!(a; .arch x64
        ; ->saved:
        ; mov QWORD [rsp + owner], 0
        ; cmp DWORD [rsp + at::LIVE], 0
        ; jne ->flush
        ; ->flushed:
        ; mov rsp, [rsp + at::HOST_RSP]
        ; pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
        ; ret
        ; ->flush:
        ; mov rdi, rsp
        ; test DWORD [rsp + at::LIVE], 3
        ; je >x87
        ; call ->save_vectors
        ; and DWORD [rsp + at::LIVE], !3
        ; x87:
        ; test DWORD [rsp + at::LIVE], 4
        ; je ->flushed
        ; mov rdi, rsp
        ; mov rax, QWORD rt::flush_x87 as *const () as i64
        ; call rax
        ; jmp ->flushed
    );

    mark(a, Stub::Slow);
    close_windows(a, 8);
    save(a, 8, volatile);
    dynasm!(a; .arch x64
        ; lea rdi, [rsp + 8]
        ; test DWORD [rdi + at::LIVE], 3
        ; jne >with_vectors
        ; mov rsi, r9
        ; mov edx, r10d
        ; sub rsp, 8
        ; mov rax, QWORD rt::slow as *const () as i64
        ; call rax
        ; add rsp, 8
        ; test rax, rax
        ; je >refused
        ; lea r10, [rax + APART]
        ; mov r9d, APART
    );
    load(a, 8, volatile);
    dynasm!(a; .arch x64
        ; mov r11, [rsp + 8 + at::TLB]
        ; ret
        ; with_vectors:
        ; sub rsp, 8
        ; call ->save_vectors
        ; mov rsi, r9
        ; mov edx, r10d
        ; mov rax, QWORD rt::slow as *const () as i64
        ; call rax
        ; add rsp, 8
        ; lea rdi, [rsp + 8]
        ; test rax, rax
        ; je >refused_vectors
        ; lea r10, [rax + APART]
        ; mov r9d, APART
        ; sub rsp, 8
        ; call ->load_vectors
        ; add rsp, 8
    );
    load(a, 8, volatile);
    dynasm!(a; .arch x64
        ; mov r11, [rsp + 8 + at::TLB]
        ; ret
        ; refused_vectors:
        ; and DWORD [rdi + at::LIVE], !3
        ; refused:
        ; pop r9
        ; mov [rsp + at::SITE], r9
        ; mov QWORD [rsp + at::EXIT], code::BAIL as i32
    );
    save(a, 0, |r| !volatile(r));
    dynasm!(a; .arch x64; jmp ->saved);

    for (stub, routine) in
        [(Stub::Step, rt::step as *const () as i64), (Stub::Helper, rt::helper as *const () as i64)]
    {
        mark(a, stub);
        if stub == Stub::Helper {
            dynasm!(a; .arch x64; ->helper:; mov QWORD [rsp + 8 + owner], 0);
        } else {
            close_windows(a, 8);
        }
        save(a, 8, |_| true);
        dynasm!(a; .arch x64
            ; lea rdi, [rsp + 8]
            ; sub rsp, 8
            ; test DWORD [rdi + at::LIVE], 3
            ; je >quiet
            ; call ->save_vectors
            ; and DWORD [rdi + at::LIVE], !3
            ; quiet:
            ; mov rsi, r10
            ; mov rax, QWORD routine
            ; call rax
            ; add rsp, 8
            ; test eax, eax
            ; jne >left
        );
        load(a, 8, |_| true);
        dynasm!(a; .arch x64
            ; mov r11, [rsp + 8 + at::TLB]
            ; ret
            ; left:
            ; add rsp, 8
            ; cmp eax, rt::CHAIN as i32
            ; je ->chain
            ; mov QWORD [rsp + at::EXIT], code::LEFT as i32
            ; jmp ->saved
        );
    }

    // See `JitEnv::cpuid`. The environment is at rsp + 8. It serialises, so changes of code come first.
    mark(a, Stub::Cpuid);
    dynasm!(a; .arch x64
        ; mov r11, [rsp + 8 + at::POLL]
        ; mov r11d, [r11]
        ; or r11d, [rsp + 8 + at::UNSURE]
        ; jnz ->helper
        ; mov r9d, ecx
        ; shl r9, 32
        ; mov r11d, eax
        ; or r9, r11
        ; shr r11d, 28
        ; xor r11d, eax
        ; xor r11d, ecx
        ; and r11d, CPUID_ANSWERS as i32 - 1
        ; shl r11d, 5
        ; cmp r9, [rsp + r11 + 8 + at::CPUID]
        ; jne ->helper
        ; mov eax, [rsp + r11 + 16 + at::CPUID]
        ; mov ebx, [rsp + r11 + 20 + at::CPUID]
        ; mov ecx, [rsp + r11 + 24 + at::CPUID]
        ; mov edx, [rsp + r11 + 28 + at::CPUID]
        ; mov r11, [rsp + 8 + at::TLB]
        ; ret
    );

    // The jump cache knows where RIP leads in the present address space. If the slot leads there too, it is good again.
    mark(a, Stub::Far);
    dynasm!(a; .arch x64; mov [rsp + at::EXIT], r10);
    look_up(a);
    dynasm!(a; .arch x64
        ; jne >unknown
        ; mov r11, [rsp + r10 + JUMPS_AT + 16]
        ; mov r10, [rsp + at::EXIT]
        ; and r10, -8
        ; add r10, [rsp + at::SLOTS]
        ; cmp r11, [r10]
        ; jne >unknown
        ; shr r9, 63
        ; mov r9, [rsp + r9 * 8 + at::EPOCH]
        ; mov [r10 + 8], r9
        ; mov r10, r11
        ; mov r11, [rsp + at::TLB]
        ; jmp r10
        ; unknown:
        ; mov r10, [rsp + at::EXIT]
        ; jmp ->exit
    );

    // On to the block at RIP, if the jump cache has it; the guest's registers are in the environment.
    dynasm!(a; .arch x64; .align 16; ->chain:);
    load(a, 0, |_| true);
    dynasm!(a; .arch x64; mov r9, [rsp + at::RIP]);
    look_up(a);
    dynasm!(a; .arch x64
        ; jne >unknown
        ; mov r11, [rsp + at::TLB]
        ; jmp QWORD [rsp + r10 + JUMPS_AT + 16]
        ; unknown:
        ; mov r10d, code::LOOKUP as i32
        ; jmp ->exit
    );

    flags(a, &mut mark);

    // The environment is at rsp + 64.
    mark(a, Stub::Status);
    dynasm!(a; .arch x64
        ; push rax; push rcx; push rdx; push rsi; push rdi; push r8; push r11
    );
    call_aside(a, 64, rt::status as *const () as i64);
    dynasm!(a; .arch x64
        ; mov r9d, eax
        ; pop r11; pop r8; pop rdi; pop rsi; pop rdx; pop rcx; pop rax
        ; ret
    );
    carry(a, &mut mark);
    strings::write(a, counted, &mut mark);

    mark(a, Stub::LoadVectors);
    dynasm!(a; .arch x64
        ; push rdi
        ; lea rdi, [rsp + 16]
        ; or DWORD [rdi + at::LIVE], if avx { 3 } else { 1 }
        ; call ->load_vectors
        ; pop rdi
        ; ret
    );

    mark(a, Stub::LoadX87);
    // FXRSTOR brings XMM registers and MXCSR too, so these go home first and are all live afterwards.
    dynasm!(a; .arch x64
        ; push rdi
        ; lea rdi, [rsp + 16]
        ; test DWORD [rdi + at::LIVE], 3
        ; je >away
        ; call ->save_vectors
        ; away:
        ; fxrstor64 [rdi + at::FPU]
        ; or DWORD [rdi + at::LIVE], if avx { 7 } else { 5 }
        ; call ->load_vectors
        ; pop rdi
        ; ret
    );

    // Vector registers, rdi the environment. Nothing else changes.
    dynasm!(a; .arch x64; .align 16; ->save_vectors:; stmxcsr [rdi + MXCSR]; ldmxcsr [rdi + at::MXCSR_HOST]);
    for n in 0..16u8 {
        let (low, high) = (XMM + i32::from(n) * 16, YMM + i32::from(n) * 16);
        if avx {
            dynasm!(a; .arch x64; vmovups [rdi + low], Rx(n); vextractf128 [rdi + high], Ry(n), 1);
        } else {
            dynasm!(a; .arch x64; movups [rdi + low], Rx(n));
        }
    }
    if avx {
        dynasm!(a; .arch x64; vzeroupper);
    }
    dynasm!(a; .arch x64; ret; .align 16; ->load_vectors:; ldmxcsr [rdi + MXCSR]);
    let halves = |n: u8| (XMM + i32::from(n) * 16, YMM + i32::from(n) * 16);
    if avx {
        // Upper halves that are written count as in use even if they are zero, and then each SSE instruction waits for
        // the register that it replaces (optimization manual, 15.3). So they are cleared where they can be.
        let (_, first) = halves(0);
        dynasm!(a; .arch x64; vmovups xmm0, [rdi + first]; vmovups xmm1, [rdi + first + 16]);
        for n in 2..16u8 {
            let (_, high) = halves(n);
            dynasm!(a; .arch x64; vorps Rx(n & 1), Rx(n & 1), [rdi + high]);
        }
        dynasm!(a; .arch x64; vorps xmm0, xmm0, xmm1; vptest xmm0, xmm0; je >low);
        for n in 0..16u8 {
            let (low, high) = halves(n);
            dynasm!(a; .arch x64; vmovups Rx(n), [rdi + low]; vinsertf128 Ry(n), Ry(n), [rdi + high], 1);
        }
        dynasm!(a; .arch x64; ret; low:; vzeroupper);
    }
    for n in 0..16u8 {
        dynasm!(a; .arch x64; movups Rx(n), [rdi + halves(n).0]);
    }
    dynasm!(a; .arch x64; ret);
    let bytes = asm.finalize().unwrap_or_default();
    (bytes, Stubs { enter, offsets })
}
