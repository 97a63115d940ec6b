//! Instructions whose corners guests meet (Intel SDM volume 2).

use iced_x86::code_asm::*;

use super::image::{BASE, Code, FREE, Mode, SCRATCH};
use super::{Guest, one};

/// Prints EAX and the arithmetic flags that `mask` keeps.
fn with_flags(c: &mut Code, mask: i32) -> super::image::Asm {
    c.pushfd()?;
    c.hex()?;
    c.pop(eax)?;
    c.and(eax, mask)?;
    c.hex()
}

#[rustfmt::skip]
pub(super) const GUESTS: &[Guest] = &[
    one("division", Mode::Flat32, |c| {
        c.trial("10000000000 / 3:", |c| { c.mov(edx, 2)?; c.mov(eax, 0x540b_e400)?; c.mov(ecx, 3)?; c.div(ecx)?; c.hex()?; c.show(edx) })?;
        c.trial("quotient too large:", |c| { c.mov(edx, 3)?; c.mov(eax, 0)?; c.mov(ecx, 3)?; c.div(ecx) })?;
        c.trial("lowest by -1:", |c| { c.mov(eax, 0x8000_0000u32)?; c.cdq()?; c.mov(ecx, -1)?; c.idiv(ecx) })?;
        c.trial("-7 / 2:", |c| { c.mov(eax, -7)?; c.cdq()?; c.mov(ecx, 2)?; c.idiv(ecx)?; c.hex()?; c.show(edx) })?;
        c.trial("bytes:", |c| { c.mov(eax, 0x1ff)?; c.mov(cl, 2u32)?; c.div(cl)?; c.hex() })?;
        c.trial("AAM 0:", |c| c.db(&[0xd4, 0]))
    }),
    one("decimal_adjustment", Mode::Flat32, |c| {
        for (name, value, op) in [("DAA", 0x9au32, 0x27u8), ("DAA", 0x1f, 0x27), ("DAS", 0x9f, 0x2f), ("AAA", 0x1fe, 0x37), ("AAS", 0x205, 0x3f)] {
            c.trial(&format!("{name} of {value:x}:"), |c| { c.xor(eax, eax)?; c.mov(eax, value)?; c.db(&[op])?; with_flags(c, 0x11) })?;
        }
        c.trial("AAM:", |c| { c.mov(eax, 0x63)?; c.db(&[0xd4, 10])?; c.hex() })?;
        c.trial("AAD:", |c| { c.mov(eax, 0x0909)?; c.db(&[0xd5, 10])?; c.hex() })
    }),
    one("shifts", Mode::Flat32, |c| {
        for (name, op) in [("ROL", 0u8), ("ROR", 1), ("RCL", 2), ("RCR", 3), ("SHL", 4), ("SHR", 5), ("SAR", 7)] {
            c.trial(&format!("{name}:"), |c| {
                for count in [0u32, 1, 9, 31, 32, 33] {
                    c.mov(eax, 0x8765_4321u32)?; c.mov(ecx, count)?; c.stc()?; c.db(&[0xd3, 0xc0 | op << 3])?; with_flags(c, 1)?;
                }
                Ok(())
            })?;
        }
        c.trial("SHLD, SHRD:", |c| {
            c.mov(eax, 0x8765_4321u32)?; c.mov(edx, 0x1234_5678)?; c.shld(eax, edx, 12)?; c.hex()?;
            c.mov(eax, 0x8765_4321u32)?; c.shrd(eax, edx, 12)?; c.hex()
        })
    }),
    one("bit_strings", Mode::Flat32, |c| {
        c.trial("BTS far away:", |c| { c.mov(dword_ptr(FREE + 0x100), 0)?; c.mov(ecx, 0x805)?; c.bts(dword_ptr(FREE), ecx)?; c.mov(eax, dword_ptr(FREE + 0x100))?; with_flags(c, 1) })?;
        c.trial("BT below:", |c| { c.mov(dword_ptr(FREE + 4), 0x8000_0000u32)?; c.mov(ecx, -1)?; c.bt(dword_ptr(FREE + 8), ecx)?; c.setc(al)?; c.movzx(eax, al)?; c.hex() })?;
        c.trial("BSF, BSR:", |c| { c.mov(ecx, 0x0010_0800)?; c.bsf(eax, ecx)?; c.hex()?; c.mov(ecx, 0x0010_0800)?; c.bsr(eax, ecx)?; c.hex() })
    }),
    one("strings", Mode::Flat32, |c| {
        c.trial("CMPS stops:", |c| {
            c.mov(dword_ptr(FREE), 0x6463_6261)?; c.mov(dword_ptr(FREE + 4), 0x6478_6261)?; c.mov(esi, FREE)?; c.mov(edi, FREE + 4)?; c.mov(ecx, 4)?;
            c.repe().cmpsb()?; c.mov(eax, ecx)?; with_flags(c, 0x41)
        })?;
        c.trial("SCAS finds:", |c| { c.mov(edi, FREE)?; c.mov(ecx, 100)?; c.mov(al, 0x63u32)?; c.repne().scasb()?; c.mov(eax, ecx)?; c.hex() })?;
        c.trial("downwards:", |c| { c.std()?; c.mov(edi, FREE + 7)?; c.mov(ecx, 2)?; c.mov(eax, 0x1111_1111)?; c.rep().stosd()?; c.cld()?; c.mov(eax, edi)?; c.hex() })?;
        c.trial("none:", |c| { c.xor(ecx, ecx)?; c.mov(edi, 0xd000_0000u32)?; c.rep().stosd()?; c.mov(eax, edi)?; c.hex() })?;
        c.trial("LODS, XLAT:", |c| { c.mov(esi, FREE)?; c.lodsb()?; c.mov(ebx, FREE)?; c.mov(al, 1u32)?; c.xlatb()?; c.movzx(eax, al)?; c.hex() })
    }),
    one("compare_and_exchange", Mode::Flat32, |c| {
        c.trial("equal:", |c| { c.mov(dword_ptr(FREE), 5)?; c.mov(eax, 5)?; c.mov(ecx, 9)?; c.lock().cmpxchg(dword_ptr(FREE), ecx)?; with_flags(c, 0x40)?; c.mov(eax, dword_ptr(FREE))?; c.hex() })?;
        c.trial("not equal:", |c| { c.mov(eax, 5)?; c.mov(ecx, 7)?; c.lock().cmpxchg(dword_ptr(FREE), ecx)?; with_flags(c, 0x40)?; c.mov(eax, dword_ptr(FREE))?; c.hex() })?;
        c.trial("eight bytes:", |c| {
            c.mov(dword_ptr(FREE), 1)?; c.mov(dword_ptr(FREE + 4), 2)?; c.mov(eax, 1)?; c.mov(edx, 2)?; c.mov(ebx, 3)?; c.mov(ecx, 4)?;
            c.lock().cmpxchg8b(qword_ptr(FREE))?; c.mov(eax, dword_ptr(FREE))?; with_flags(c, 0x40)?; c.mov(eax, dword_ptr(FREE + 4))?; c.hex()
        })?;
        c.trial("register form:", |c| c.db(&[0x0f, 0xc7, 0xc8]))?;
        c.trial("XADD:", |c| { c.mov(dword_ptr(FREE), 40)?; c.mov(eax, 2)?; c.lock().xadd(dword_ptr(FREE), eax)?; c.hex()?; c.mov(eax, dword_ptr(FREE))?; c.hex() })
    }),
    one("stack_frames", Mode::Flat32, |c| {
        c.trial("ENTER 8, 0:", |c| { c.mov(ebx, esp)?; c.enter(8, 0)?; c.mov(eax, ebx)?; c.sub(eax, esp)?; c.leave()?; c.hex() })?;
        c.trial("ENTER 4, 3:", |c| { c.mov(ebx, esp)?; c.mov(ebp, FREE + 0x100)?; c.enter(4, 3)?; c.mov(eax, ebx)?; c.sub(eax, esp)?; c.mov(esp, ebx)?; c.hex() })?;
        c.trial("PUSH ESP, POP [ESP]:", |c| { c.mov(ebx, esp)?; c.push(esp)?; c.pop(eax)?; c.sub(eax, ebx)?; c.hex()?; c.push(1)?; c.push(2)?; c.pop(dword_ptr(esp))?; c.pop(eax)?; c.hex() })?;
        c.trial("PUSHA, POPA:", |c| { c.mov(edx, 0x77)?; c.pushad()?; c.mov(edx, 0)?; c.popad()?; c.show(edx) })?;
        c.trial("RET n:", |c| {
            let mut f = c.create_label();
            let mut over = c.create_label();
            c.mov(ebx, esp)?; c.push(1)?; c.push(2)?; c.call(f)?; c.mov(eax, ebx)?; c.sub(eax, esp)?; c.hex()?; c.jmp(over)?;
            c.set_label(&mut f)?; c.ret_1(8)?;
            c.set_label(&mut over)?; c.nop()
        })
    }),
    one("multiplication", Mode::Flat32, |c| {
        c.trial("MUL:", |c| { c.mov(eax, -2)?; c.mov(ecx, 3)?; c.mul(ecx)?; with_flags(c, 0x801)?; c.show(edx) })?;
        c.trial("IMUL:", |c| { c.mov(eax, -2)?; c.mov(ecx, 3)?; c.imul(ecx)?; with_flags(c, 0x801)?; c.show(edx) })?;
        c.trial("IMUL of three:", |c| { c.mov(ecx, 0x10_0000)?; c.imul_3(eax, ecx, 0x1000)?; with_flags(c, 0x801) })
    }),
    one("sixteen_and_eight_bits", Mode::Flat32, |c| {
        c.trial("upper halves stay:", |c| { c.mov(eax, 0x1111_1111)?; c.mov(ax, 0x2222u32)?; c.mov(ah, 0x33u32)?; c.mov(al, 0x44u32)?; c.hex() })?;
        c.trial("16-bit addresses:", |c| { c.mov(dword_ptr(0x500), 0x99)?; c.mov(ebx, 0xffff_0500u32)?; c.db(&[0x67, 0x8b, 0x07])?; c.hex() })?;
        c.trial("LOOP by CX:", |c| { c.mov(ecx, 0xffff_0003u32)?; c.xor(edx, edx)?; c.db(&[0x42, 0x67, 0xe2, 0xfc])?; c.show(edx) })?;
        c.trial("MOVZX, MOVSX:", |c| { c.mov(ecx, 0x8180)?; c.movzx(eax, cl)?; c.hex()?; c.mov(ecx, 0x8180)?; c.movsx(eax, cx)?; c.hex() })?;
        c.trial("SAHF, LAHF:", |c| { c.mov(eax, 0xff00)?; c.sahf()?; c.mov(ah, 0u32)?; c.lahf()?; c.hex() })
    }),
    one("x87_numbers", Mode::Flat32, |c| {
        c.trial("constants:", |c| {
            for load in [0xe8u8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee] {
                c.db(&[0xd9, load])?; c.fstp(tword_ptr(FREE))?;
                c.mov(eax, dword_ptr(FREE + 4))?; c.hex()?; c.mov(eax, dword_ptr(FREE))?; c.hex()?; c.movzx(eax, word_ptr(FREE + 8))?; c.hex()?;
            }
            Ok(())
        })?;
        c.trial("10 / 3 and its root:", |c| {
            c.mov(dword_ptr(FREE), 10)?; c.fild(dword_ptr(FREE))?; c.mov(dword_ptr(FREE), 3)?; c.fidiv(dword_ptr(FREE))?; c.fsqrt()?; c.fstp(tword_ptr(FREE))?;
            c.mov(eax, dword_ptr(FREE + 4))?; c.hex()?; c.mov(eax, dword_ptr(FREE))?; c.hex()
        })?;
        c.trial("stack overflow and underflow:", |c| {
            c.fninit()?; c.fstp(st0)?; c.fnstsw(ax)?; c.movzx(eax, ax)?; c.hex()?; c.fninit()?;
            for _ in 0..9 { c.fld1()?; }
            c.fnstsw(ax)?; c.movzx(eax, ax)?; c.hex()
        })?;
        c.trial("FXAM:", |c| { c.fninit()?; c.fxam()?; c.fnstsw(ax)?; c.and(eax, 0x4700)?; c.hex()?; c.fldz()?; c.fchs()?; c.fxam()?; c.fnstsw(ax)?; c.and(eax, 0x4700)?; c.hex() })?;
        c.trial("BCD:", |c| { c.mov(dword_ptr(FREE), 123_456)?; c.fninit()?; c.fild(dword_ptr(FREE))?; c.fbstp(tword_ptr(FREE))?; c.mov(eax, dword_ptr(FREE))?; c.hex() })
    }),
    one("sse_numbers", Mode::Flat32, |c| {
        c.mov(eax, cr4)?; c.or(eax, 0x600)?; c.mov(cr4, eax)?;
        c.trial("1 / 3:", |c| { c.mov(eax, 1)?; c.cvtsi2ss(xmm0, eax)?; c.mov(eax, 3)?; c.cvtsi2ss(xmm1, eax)?; c.divss(xmm0, xmm1)?; c.movd(eax, xmm0)?; c.hex() })?;
        c.trial("to integer, out of range:", |c| { c.mov(eax, 0x7f00_0000)?; c.movd(xmm0, eax)?; c.cvttss2si(eax, xmm0)?; c.hex() })?;
        c.trial("flags of a comparison:", |c| { c.mov(eax, 0x7fc0_0000)?; c.movd(xmm0, eax)?; c.ucomiss(xmm0, xmm0)?; c.pushfd()?; c.pop(eax)?; c.and(eax, 0x45)?; c.hex() })?;
        c.trial("not aligned:", |c| c.movaps(xmm0, xmmword_ptr(FREE + 8)))?;
        c.trial("shuffle:", |c| { c.mov(eax, 0x0403_0201)?; c.movd(xmm0, eax)?; c.punpcklbw(xmm0, xmm0)?; c.pshufd(xmm0, xmm0, 1)?; c.movd(eax, xmm0)?; c.hex() })?;
        c.trial("FXSAVE not aligned:", |c| c.fxsave(ptr(FREE + 8)))
    }),
    one("rings_of_64_bits", Mode::Long, |c| {
        c.user_trial("INT 3:", 0, |c| c.int3())?;
        c.user_trial("HLT:", 0, |c| c.hlt())?;
        c.user_trial("INT 20h:", 0, |c| c.int(0x20))?;
        c.user_trial("SYSCALL without SCE:", 0, |c| c.syscall())?;
        c.trial("PUSH CS, LES and others are gone:", |c| c.db(&[0x0e]))?;
        c.trial("SWAPGS:", |c| {
            c.mov(ecx, 0xc000_0102u32)?; c.mov(eax, 0x1234)?; c.xor(edx, edx)?; c.wrmsr()?; c.swapgs()?;
            c.mov(ecx, 0xc000_0101u32)?; c.rdmsr()?; c.hex()
        })?;
        c.trial("32-bit results are zero-extended:", |c| { c.mov(rbx, -1i64)?; c.mov(ebx, 5)?; c.mov(rax, rbx)?; c.shr(rax, 32)?; c.hex() })?;
        c.trial("RIP-relative:", |c| { c.db(&[0x48, 0x8d, 0x05, 0, 0, 0, 0])?; c.mov(rcx, qword_ptr(BASE + super::image::START))?; c.sub(rax, rcx)?; c.hex() })
    }),
    one("system_calls", Mode::Long, |c| {
        c.mov(ecx, 0xc000_0080u32)?; c.rdmsr()?; c.or(eax, 1)?; c.wrmsr()?;
        // STAR: ring 0 at 8, so that CS is 8; the 64-bit code of ring 0 is elsewhere, so LSTAR only stores the flags.
        c.trial("STAR keeps:", |c| { c.mov(ecx, 0xc000_0081u32)?; c.mov(edx, 0x20_0028)?; c.xor(eax, eax)?; c.wrmsr()?; c.xor(edx, edx)?; c.rdmsr()?; c.show(edx) })?;
        c.trial("LSTAR is canonical:", |c| { c.mov(ecx, 0xc000_0082u32)?; c.mov(edx, 0x4000_0000)?; c.xor(eax, eax)?; c.wrmsr() })?;
        c.trial("SYSRET to what is not canonical:", |c| { c.mov(rcx, 0x8000_0000_0000u64)?; c.db(&[0x48, 0x0f, 0x07]) })
    }),
    one("fetch_at_the_end_of_memory", Mode::Flat32, |c| {
        c.trial("ROM runs:", |c| { c.mov(byte_ptr(BASE + SCRATCH), 0xc3u32)?; c.mov(eax, BASE + SCRATCH)?; c.call(eax) })?;
        c.trial("conventional memory's end:", |c| { c.mov(eax, 0x9_fffeu32)?; c.mov(word_ptr(eax), 0xc340)?; c.mov(ebx, eax)?; c.xor(eax, eax)?; c.call(ebx)?; c.hex() })
    }),
];
