//! What guests call, in each of the three widths: text to port E9h, trials that a fault ends, the handlers of all
//! exceptions and interrupts, the end.
//!
//! A trial is a few instructions with a name: `begin` notes where to go on, the handler prints what happened and goes on
//! there. Traps (#DB, #BP, #OF), NMI and interrupts print and return. Printed are vector, error code, CR2, DR6, and how
//! far from the trial's beginning the instruction pointer was.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::image::{Asm, BASE, Code, Image, KEEP_TF, RESUME, STACK, STACK3, START, sel};

/// Addresses of one width's routines.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Prints the text behind the call, which NUL ends. Changes AL and SI.
    pub say: u32,
    /// Prints a blank and EAX in 8 digits. Changes EAX and ECX.
    pub hex: u32,
    /// Begins a trial; a jump to its end follows the call.
    pub begin: u32,
    /// Ends the emulator.
    pub exit: u32,
    /// Goes on in ring 3 behind the call, with the flags in EDX. INT 40h comes back.
    pub user: u32,
    /// The entries of the handlers.
    pub stubs: Vec<u32>,
}

/// All widths.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    calls: [Calls; 3],
    /// Where the call gate goes.
    pub gate: u32,
}

impl Runtime {
    /// The routines of this width.
    pub fn of(&mut self, bits: u32) -> &mut Calls {
        &mut self.calls[match bits {
            16 => 0,
            32 => 1,
            _ => 2,
        }]
    }
}

/// Vectors whose exceptions push an error code.
const WITH_CODE: [u32; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

macro_rules! runtime {
    ($name:ident, $bits:expr, $width:expr, $ptr:ident, $a:ident, $c:ident, $d:ident, $si:ident, $bp:ident, $sp:ident, $iret:ident) => {
        fn $name(image: &mut Image) -> Result<Calls, IcedError> {
            const W: i32 = $width;
            // Variables by their addresses in this width.
            let var = |at: u32| if $bits == 16 { at as i32 } else { (BASE + at) as i32 };
            let mut calls = Calls::default();
            calls.say = image.code($bits, |c| {
                let mut next = c.create_label();
                let mut done = c.create_label();
                c.pop($si)?;
                c.set_label(&mut next)?;
                c.lodsb()?;
                c.test(al, al)?;
                c.je(done)?;
                c.out(0xe9, al)?;
                c.jmp(next)?;
                c.set_label(&mut done)?;
                c.jmp($si)
            })?;
            // CL digits of EAX.
            let digits = image.code($bits, |c| {
                let mut next = c.create_label();
                let mut small = c.create_label();
                c.mov(ch, cl)?;
                c.shl(cl, 2u32)?;
                c.ror(eax, cl)?;
                c.set_label(&mut next)?;
                c.rol(eax, 4u32)?;
                c.push($a)?;
                c.and(al, 15u32)?;
                c.cmp(al, 10u32)?;
                c.jb(small)?;
                c.add(al, 0x27u32)?;
                c.set_label(&mut small)?;
                c.add(al, 0x30u32)?;
                c.out(0xe9, al)?;
                c.pop($a)?;
                c.dec(ch)?;
                c.jne(next)?;
                c.ret()
            })?;
            calls.hex = image.code($bits, |c| {
                c.push($a)?;
                c.mov(al, 0x20u32)?;
                c.out(0xe9, al)?;
                c.pop($a)?;
                c.mov(cl, 8u32)?;
                c.call(u64::from(digits))?;
                c.ret()
            })?;
            calls.begin = image.code($bits, |c| {
                let mut long = c.create_label();
                let mut go = c.create_label();
                c.pop($si)?;
                c.mov($ptr(var(RESUME)), $si)?;
                c.mov($ptr(var(STACK)), $sp)?;
                c.cmp(byte_ptr($si), 0xebu32)?;
                c.jne(long)?;
                c.add($si, 2)?;
                c.jmp(go)?;
                c.set_label(&mut long)?;
                c.add($si, if $bits == 16 { 3 } else { 5 })?;
                c.set_label(&mut go)?;
                c.mov($ptr(var(START)), $si)?;
                c.jmp($si)
            })?;
            calls.exit = image.code($bits, |c| {
                let mut stay = c.create_label();
                // QEMU's way, then Bochs's.
                c.mov(al, 2u32)?;
                c.out(0xe9, al)?;
                c.mov(al, 0x10u32)?;
                c.out(0xf4, al)?;
                c.mov(dx, 0x8900u32)?;
                for letter in b"Shutdown" {
                    c.mov(al, u32::from(*letter))?;
                    c.out(dx, al)?;
                }
                c.set_label(&mut stay)?;
                c.cli()?;
                c.hlt()?;
                c.jmp(stay)
            })?;
            let say = calls.say;
            let common = image.code($bits, |c| {
                let text = |c: &mut Code, text: &str| -> Asm {
                    c.call(u64::from(say))?;
                    c.db(text.as_bytes())?;
                    c.db(&[0])
                };
                let mut exception = c.create_label();
                let mut leave = c.create_label();
                let mut not_back = c.create_label();
                let mut no_pic = c.create_label();
                let mut no_slave = c.create_label();
                for register in [$a, $c, $si, $bp] {
                    c.push(register)?;
                }
                c.mov($bp, $sp)?;
                if $bits != 64 {
                    c.push(ds)?;
                    c.push(es)?;
                    c.mov(eax, if $bits == 16 { BASE >> 4 } else { sel::DATA32 })?;
                    c.mov(ds, ax)?;
                    c.mov(es, ax)?;
                }
                let vector = byte_ptr($bp + 4 * W);
                c.cld()?;
                c.cmp(vector, 0x40u32)?;
                c.jne(not_back)?;
                c.mov($si, $ptr($bp + 6 * W))?;
                c.mov($sp, $ptr(var(STACK)))?;
                c.jmp($si)?;
                c.set_label(&mut not_back)?;
                c.cmp(vector, 0x20u32)?;
                c.jb(exception)?;
                text(c, " int")?;
                c.mov(al, vector)?;
                c.mov(cl, 2u32)?;
                c.call(u64::from(digits))?;
                c.mov(al, vector)?;
                c.cmp(al, 0x30u32)?;
                c.jae(no_pic)?;
                c.cmp(al, 0x28u32)?;
                c.mov(al, 0x20u32)?;
                c.jb(no_slave)?;
                c.out(0xa0, al)?;
                c.set_label(&mut no_slave)?;
                c.out(0x20, al)?;
                c.jmp(leave)?;
                c.set_label(&mut no_pic)?;
                if $bits != 16 {
                    c.mov(ecx, 0xfee0_00b0u32)?;
                    c.mov(dword_ptr($c), 0)?;
                }
                c.jmp(leave)?;

                c.set_label(&mut exception)?;
                text(c, " #")?;
                c.mov(al, vector)?;
                c.mov(cl, 2u32)?;
                c.call(u64::from(digits))?;
                if $bits != 16 {
                    for with_code in WITH_CODE {
                        let mut other = c.create_label();
                        c.cmp(vector, with_code)?;
                        c.jne(other)?;
                        text(c, "(")?;
                        c.mov($a, $ptr($bp + 5 * W))?;
                        c.mov(cl, 4u32)?;
                        c.call(u64::from(digits))?;
                        text(c, ")")?;
                        c.set_label(&mut other)?;
                        c.nop()?;
                    }
                    let mut other = c.create_label();
                    c.cmp(vector, 14u32)?;
                    c.jne(other)?;
                    text(c, " cr2=")?;
                    // MOV from CR2 in any width.
                    c.db(&[0x0f, 0x20, 0xd0])?;
                    c.mov(cl, 8u32)?;
                    c.call(u64::from(digits))?;
                    c.set_label(&mut other)?;
                    c.nop()?;
                }
                let mut other = c.create_label();
                c.cmp(vector, 1u32)?;
                c.jne(other)?;
                text(c, " dr6=")?;
                if $bits == 64 {
                    c.mov(rax, dr6)?;
                } else {
                    c.mov(eax, dr6)?;
                }
                c.mov(cl, 8u32)?;
                c.call(u64::from(digits))?;
                c.mov(eax, 0xffff_0ff0u32)?;
                if $bits == 64 {
                    c.mov(dr6, rax)?;
                } else {
                    c.mov(dr6, eax)?;
                }
                c.set_label(&mut other)?;
                // NMI is not of the instruction that it comes behind.
                let mut nmi = c.create_label();
                c.cmp(vector, 2u32)?;
                c.je(nmi)?;
                text(c, "+")?;
                c.mov($a, $ptr($bp + 6 * W))?;
                c.sub($a, $ptr(var(START)))?;
                c.mov(cl, 4u32)?;
                c.call(u64::from(digits))?;
                c.set_label(&mut nmi)?;
                c.cmp(vector, 1u32)?;
                let mut fault = c.create_label();
                let mut trap = c.create_label();
                let mut keep = c.create_label();
                c.jb(fault)?;
                c.cmp(vector, 4u32)?;
                c.jbe(trap)?;
                c.set_label(&mut fault)?;
                c.mov($sp, $ptr(var(STACK)))?;
                c.jmp($ptr(var(RESUME)))?;
                c.set_label(&mut trap)?;
                if $bits != 16 {
                    c.or(byte_ptr($bp + (8 * W + 2)), 1u32)?;
                }
                c.cmp(byte_ptr(var(KEEP_TF)), 0u32)?;
                c.jne(keep)?;
                c.and(byte_ptr($bp + (8 * W + 1)), 0xfeu32)?;
                c.set_label(&mut keep)?;
                c.nop()?;
                c.set_label(&mut leave)?;
                if $bits != 64 {
                    c.pop(es)?;
                    c.pop(ds)?;
                }
                for register in [$bp, $si, $c, $a] {
                    c.pop(register)?;
                }
                c.add($sp, 2 * W)?;
                c.$iret()
            })?;
            for vector in 0..0x50u32 {
                let stub = image.code($bits, |c| {
                    if $bits == 16 || !WITH_CODE.contains(&vector) {
                        c.push(0)?;
                    }
                    c.push(vector as i32)?;
                    c.jmp(u64::from(common))
                })?;
                calls.stubs.push(stub);
            }
            Ok(calls)
        }
    };
}

runtime!(emit_16, 16, 2, word_ptr, ax, cx, dx, si, bp, sp, iret);
runtime!(emit_32, 32, 4, dword_ptr, eax, ecx, edx, esi, ebp, esp, iretd);
runtime!(emit_64, 64, 8, qword_ptr, rax, rcx, rdx, rsi, rbp, rsp, iretq);

/// Puts the routines of one width into `image`.
pub(super) fn emit(image: &mut Image, bits: u32) -> Result<Calls, IcedError> {
    let mut calls = match bits {
        16 => emit_16(image)?,
        32 => emit_32(image)?,
        _ => emit_64(image)?,
    };
    calls.user = match bits {
        32 => image.code(32, |c| {
            c.pop(eax)?;
            c.push(sel::USER_DATA as i32)?;
            c.push(STACK3 as i32)?;
            c.push(edx)?;
            c.push(sel::USER_CODE as i32)?;
            c.push(eax)?;
            c.mov(ecx, sel::USER_DATA)?;
            c.mov(ds, ecx)?;
            c.mov(es, ecx)?;
            c.iretd()
        })?,
        64 => image.code(64, |c| {
            c.pop(rax)?;
            c.push(sel::USER_DATA as i32)?;
            c.push(STACK3 as i32)?;
            c.push(rdx)?;
            c.push(sel::USER_CODE64 as i32)?;
            c.push(rax)?;
            c.iretq()
        })?,
        _ => 0,
    };
    Ok(calls)
}

impl Code {
    fn calls(&mut self) -> Calls {
        let bits = self.bits;
        self.rt.of(bits).clone()
    }

    /// Prints `text`. Changes AL and SI.
    pub fn say(&mut self, text: &str) -> Asm {
        let at = self.calls().say;
        self.call(u64::from(at))?;
        self.db(text.as_bytes())?;
        self.db(&[0])
    }

    /// Prints EAX. Changes ECX.
    pub fn hex(&mut self) -> Asm {
        let at = self.calls().hex;
        self.call(u64::from(at))
    }

    /// Prints this register.
    pub fn show(&mut self, register: AsmRegister32) -> Asm {
        if register != eax {
            self.mov(eax, register)?;
        }
        self.hex()
    }

    /// Runs `body` under a name: what it raises is printed behind the name, or `ok`.
    pub fn trial(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Asm) -> Asm {
        self.say(name)?;
        let begin = self.calls().begin;
        let mut end = self.create_label();
        self.call(u64::from(begin))?;
        self.jmp(end)?;
        body(self)?;
        self.say(" ok")?;
        self.set_label(&mut end)?;
        self.say("\n")
    }

    /// The same in ring 3 with these flags.
    pub fn user_trial(&mut self, name: &str, flags: u32, body: impl FnOnce(&mut Self) -> Asm) -> Asm {
        let user = self.calls().user;
        self.trial(name, |c| {
            c.mov(edx, flags | 2)?;
            c.call(u64::from(user))?;
            body(c)?;
            c.int(0x40)
        })
    }

    /// Ends the guest.
    pub fn exit(&mut self) -> Asm {
        let at = self.calls().exit;
        self.jmp(u64::from(at))
    }
}
