//! Random sequences of instructions on the JIT and on the interpreter: registers, flags, memory and the place of a
//! fault must agree.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine};
use anura_vmcore::CpuSignal;
use anura_x86::{Activity, CpuState};
use std::sync::Arc;

/// Random numbers, and the registers that instructions are to use.
struct Numbers(u64, u16);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, 1 << 63, !0, !0 >> 1]
                [self.below(12) as usize],
            1 => self.below(64),
            2 => (self.next() as i32) as u64,
            _ => self.next() << 8 ^ self.next(),
        }
    }
}

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const ROOT: u64 = 0x10_0000;

/// RBX points into the data and RSP to a stack; nothing else may be written to them.
const BASE: u8 = 3;

/// All but these.
const ALL: u16 = !(1 << BASE | 1 << 4);

fn register(n: &mut Numbers) -> u8 {
    loop {
        let r = n.below(16) as u8;
        if n.1 >> r & 1 != 0 {
            return r;
        }
    }
}

/// Prefixes, opcode and operands: ModRM with a register or memory.
fn modrm(
    n: &mut Numbers,
    out: &mut Vec<u8>,
    size: u64,
    opcode: &[u8],
    reg: Option<u8>,
    mem: u64,
    lock: bool,
) {
    let r = reg.unwrap_or_else(|| register(n));
    let memory = n.below(100) < mem;
    if lock && memory && n.below(4) == 0 {
        out.push(0xf0);
    }
    if size == 16 {
        out.push(0x66);
    }
    let (mandatory, opcode) = match opcode[0] {
        0xf2 | 0xf3 if opcode.len() > 1 => (Some(opcode[0]), &opcode[1..]),
        _ => (None, opcode),
    };
    out.extend(mandatory);
    let w = u8::from(size == 64) << 3;
    if memory {
        let index = if n.below(3) == 0 { Some(register(n)) } else { None };
        let (x, base, sib) = match index {
            Some(i) => (i >> 3, BASE, Some(i)),
            None => (0, BASE, None),
        };
        // An index that is 0 to 63 most of the time is the sequence's business; others fault, which is fine too.
        out.push(0x40 | w | (r >> 3) << 2 | x << 1);
        out.extend(opcode);
        let disp = match n.below(20) {
            // In loops, near others, and sometimes at the page's end.
            1..=12 if n.1 != ALL => [0x200, 0x200, 0x240, 0xfc0][n.below(4) as usize] + n.below(0x50),
            0 => 0xff8 + n.below(16),
            1 => n.below(0x4000),
            _ => n.below(0xf00),
        } as u32;
        match sib {
            Some(i) => {
                out.push(0x84 | (r & 7) << 3);
                out.push((n.below(4) as u8) << 6 | (i & 7) << 3 | base);
            }
            None => out.push(0x80 | (r & 7) << 3 | base),
        }
        out.extend(disp.to_le_bytes());
    } else {
        let m = register(n);
        out.push(0x40 | w | (r >> 3) << 2 | m >> 3);
        out.extend(opcode);
        out.push(0xc0 | (r & 7) << 3 | m & 7);
    }
}

fn immediate(n: &mut Numbers, out: &mut Vec<u8>, size: u64) {
    let v = n.value();
    match size {
        8 => out.push(v as u8),
        16 => out.extend((v as u16).to_le_bytes()),
        _ => out.extend((v as u32).to_le_bytes()),
    }
}

/// One instruction.
fn instruction(n: &mut Numbers) -> Vec<u8> {
    let mut o = Vec::new();
    let size = [8, 16, 32, 32, 64, 64][n.below(6) as usize];
    let wide = [16, 32, 64][n.below(3) as usize];
    let big = [32, 64][n.below(2) as usize];
    let s = u8::from(size != 8);
    match n.below(46) {
        0..=5 => {
            let op = n.below(8) as u8;
            let lock = op != 7;
            modrm(n, &mut o, size, &[op << 3 | s], None, 40, lock);
        }
        6..=9 => {
            let op = n.below(8) as u8;
            modrm(n, &mut o, size, &[op << 3 | 2 | s], None, 40, false);
        }
        10..=12 => {
            let op = n.below(8) as u8;
            modrm(n, &mut o, size, &[0x80 | s], Some(op), 40, op != 7);
            immediate(n, &mut o, size);
        }
        13 => modrm(n, &mut o, size, &[0x84 | s], None, 30, false),
        14 => {
            modrm(n, &mut o, size, &[0xf6 | s], Some(0), 30, false);
            immediate(n, &mut o, size);
        }
        15 | 16 => modrm(n, &mut o, size, &[0x88 | s], None, 70, false),
        17..=19 => modrm(n, &mut o, size, &[0x8a | s], None, 70, false),
        20 => {
            modrm(n, &mut o, size, &[0xc6 | s], Some(0), 60, false);
            immediate(n, &mut o, size);
        }
        21 => {
            let op = [0xb6, 0xb7, 0xbe, 0xbf][n.below(4) as usize];
            modrm(n, &mut o, wide, &[0x0f, op], None, 50, false);
        }
        22 => modrm(n, &mut o, big, &[0x63], None, 50, false),
        23 => modrm(n, &mut o, wide, &[0x8d], None, 100, false),
        24..=26 => {
            let op = [0, 1, 2, 3, 4, 5, 7][n.below(7) as usize];
            let form = [0xc0, 0xd0, 0xd2][n.below(3) as usize];
            modrm(n, &mut o, size, &[form | s], Some(op), 25, false);
            if form == 0xc0 {
                let c = n.below(70) as u8;
                o.push(c);
            }
        }
        27 => modrm(n, &mut o, wide, &[0x0f, 0xaf], None, 40, false),
        28 => {
            modrm(n, &mut o, wide, &[0x69], None, 40, false);
            immediate(n, &mut o, wide);
        }
        29 => {
            let op = [4, 5][n.below(2) as usize];
            modrm(n, &mut o, size, &[0xf6 | s], Some(op), 30, false);
        }
        30 => {
            let op = [6, 7][n.below(2) as usize];
            modrm(n, &mut o, size, &[0xf6 | s], Some(op), 30, false);
        }
        31 => {
            let op = [2, 3][n.below(2) as usize];
            modrm(n, &mut o, size, &[0xf6 | s], Some(op), 40, true);
        }
        32 | 33 => {
            let op = n.below(2) as u8;
            modrm(n, &mut o, size, &[0xfe | s], Some(op), 40, true);
        }
        34 => {
            let c = n.below(16) as u8;
            modrm(n, &mut o, 8, &[0x0f, 0x90 | c], Some(0), 40, false);
        }
        35 => {
            let c = n.below(16) as u8;
            modrm(n, &mut o, wide, &[0x0f, 0x40 | c], None, 40, false);
        }
        36 => {
            let op = [0xa3, 0xab, 0xb3, 0xbb][n.below(4) as usize];
            modrm(n, &mut o, wide, &[0x0f, op], None, 0, true);
        }
        37 => {
            let op = 4 + n.below(4) as u8;
            modrm(n, &mut o, wide, &[0x0f, 0xba], Some(op), 40, op != 4);
            let c = n.next() as u8;
            o.push(c);
        }
        38 => {
            let op: &[u8] = [
                &[0x0f, 0xbc][..],
                &[0x0f, 0xbd],
                &[0xf3, 0x0f, 0xbc],
                &[0xf3, 0x0f, 0xbd],
                &[0xf3, 0x0f, 0xb8],
            ][n.below(5) as usize];
            modrm(n, &mut o, wide, op, None, 40, false);
        }
        39 => {
            let r = register(n);
            o.extend([0x40 | u8::from(big == 64) << 3 | r >> 3, 0x0f, 0xc8 | r & 7]);
        }
        40 => modrm(n, &mut o, size, &[0x86 | s], None, 50, true),
        41 => modrm(n, &mut o, size, &[0x0f, 0xc0 | s], None, 50, true),
        42 => modrm(n, &mut o, size, &[0x0f, 0xb0 | s], None, 60, true),
        43 => {
            let r = register(n);
            if n.below(2) == 0 {
                o.extend([0x40 | r >> 3, 0x50 | r & 7]);
            } else {
                o.extend([0x40 | r >> 3, 0x58 | r & 7]);
            }
        }
        44 => {
            let two = [[0x66, 0x98], [0x90, 0x98], [0x48, 0x98], [0x66, 0x99], [0x90, 0x99], [0x48, 0x99]];
            match n.below(4) {
                0 => o.push([0xf5, 0xf8, 0xf9, 0x9e, 0x9f][n.below(5) as usize]),
                1 => {
                    // AH to BH without REX.
                    let op =
                        [0x00, 0x02, 0x20, 0x22, 0x28, 0x30, 0x38, 0x88, 0x8a, 0x84][n.below(10) as usize];
                    let (r, m) =
                        ([0, 1, 2, 4, 5, 6, 7][n.below(7) as usize], [0, 1, 2, 4, 5, 6][n.below(6) as usize]);
                    o.extend([op, 0xc0 | r << 3 | m]);
                }
                _ => o.extend(two[n.below(6) as usize]),
            }
        }
        _ => {
            // VEX: ANDN, BZHI, BEXTR, SHLX, SHRX, SARX, PDEP, PEXT, MULX, RORX.
            let (pp, op) = [
                (0, 0xf2),
                (0, 0xf5),
                (0, 0xf7),
                (1, 0xf7),
                (3, 0xf7),
                (2, 0xf7),
                (3, 0xf5),
                (2, 0xf5),
                (3, 0xf6),
            ][n.below(9) as usize];
            let (r, v, m) = (register(n), register(n), register(n));
            let w = n.below(2) as u8;
            o.extend([0xc4, (!(r >> 3) & 1) << 7 | 1 << 6 | (!(m >> 3) & 1) << 5 | 2]);
            o.extend([w << 7 | (!v & 15) << 3 | pp, op, 0xc0 | (r & 7) << 3 | m & 7]);
        }
    }
    o
}

/// An instruction that loads, stores or clears control and status of the x87 and of SSE.
fn control(n: &mut Numbers) -> Vec<u8> {
    let mut o = Vec::new();
    let at = (n.below(0xf00) as u32).to_le_bytes();
    let memory = |o: &mut Vec<u8>, opcode: &[u8], reg: u8| {
        o.extend(opcode);
        o.push(0x80 | reg << 3 | BASE);
        o.extend(at);
    };
    // Most words mask all exceptions.
    let unmasked = n.below(6) == 0;
    match n.below(14) {
        0..=3 => {
            // MOV WORD, FLDCW.
            o.extend([0x66]);
            memory(&mut o, &[0xc7], 0);
            let word = n.next() as u16 | if unmasked { 0 } else { 0x3f };
            o.extend(word.to_le_bytes());
            memory(&mut o, &[0xd9], 5);
        }
        4 | 5 => {
            // MOV DWORD, LDMXCSR; now and then with bits that do not exist.
            memory(&mut o, &[0xc7], 0);
            let word = n.next() as u32 | if unmasked { 0 } else { 0x1f80 };
            let word = word & if n.below(10) == 0 { !0 } else { 0xffff };
            o.extend(word.to_le_bytes());
            memory(&mut o, &[0x0f, 0xae], 2);
        }
        6 => memory(&mut o, &[0x0f, 0xae], 3),
        7 => memory(&mut o, &[0xd9], 7),
        8 => memory(&mut o, &[0xdd], 7),
        9 => o.extend([0xdf, 0xe0]),
        10 => o.extend([0xdb, 0xe2]),
        11 => o.extend([[0x0f, 0x77], [0xdb, 0xe3]][n.below(2) as usize]),
        12 => o.push(0x9b),
        _ => memory(&mut o, &[0xd9], 6),
    }
    o
}

/// An x87 or MMX instruction on registers, at most compared with each other.
fn x87_registers(n: &mut Numbers) -> Vec<u8> {
    match n.below(8) {
        // FCOMI and its like, FCMOV, FUCOMPP.
        0 => vec![[0xdb, 0xdb, 0xdf, 0xdf][n.below(4) as usize], 0xe8 + n.below(16) as u8],
        1 => vec![[0xda, 0xdb][n.below(2) as usize], 0xc0 + n.below(32) as u8],
        2 => vec![0xda, 0xe9],
        3 => vec![0xd9, 0xd0 + n.below(48) as u8],
        4 => {
            let op = [0x6f, 0xd4, 0xfe, 0xef, 0x60, 0x74, 0xf4, 0x7e][n.below(8) as usize];
            let r = if op == 0x7e { register(n) } else { n.below(8) as u8 };
            vec![0x40 | r >> 3, 0x0f, op, 0xc0 | (n.below(8) as u8) << 3 | r & 7]
        }
        _ => {
            let o = vec![0xd8 + n.below(8) as u8, 0xc0 + n.below(0x30) as u8];
            match o[0] {
                0xdb | 0xda | 0xd9 | 0xdf => {
                    vec![0xd9, [0xe8, 0xeb, 0xee, 0xc0, 0xc9, 0xe0, 0xe1][n.below(7) as usize]]
                }
                _ => o,
            }
        }
    }
}

/// A vector or x87 instruction.
fn vector(n: &mut Numbers) -> Vec<u8> {
    let mut o = Vec::new();
    let xmm = |n: &mut Numbers| n.below(16) as u8;
    if n.below(12) == 0 {
        return control(n);
    }
    if n.below(4) == 0 {
        // x87: registers, then loads and stores.
        if n.below(2) == 0 {
            return x87_registers(n);
        } else {
            let (op, reg) = [
                (0xd9, 0),
                (0xd9, 2),
                (0xd9, 3),
                (0xdd, 0),
                (0xdd, 2),
                (0xdd, 3),
                (0xdb, 0),
                (0xdb, 5),
                (0xd8, 0),
                (0xdc, 1),
                (0xdf, 5),
                (0xdb, 7),
            ][n.below(12) as usize];
            o.extend([op, 0x80 | reg << 3 | BASE]);
            o.extend((n.below(0xf00) as u32).to_le_bytes());
        }
        return o;
    }
    let (pp, opcode): (u8, u8) = [
        (0, 0x58),
        (1, 0x58),
        (3, 0x58),
        (2, 0x58),
        (0, 0x59),
        (1, 0x5c),
        (3, 0x5e),
        (2, 0x51),
        (1, 0x54),
        (0, 0x57),
        (1, 0xfe),
        (1, 0xd4),
        (1, 0xef),
        (1, 0x6f),
        (2, 0x6f),
        (1, 0x7f),
        (0, 0x10),
        (0, 0x11),
        (0, 0x28),
        (0, 0x29),
        (1, 0x62),
        (1, 0x2e),
        (0, 0x2f),
        (3, 0x2a),
        (2, 0x2d),
        (3, 0x2c),
        (1, 0x6e),
        (1, 0x7e),
        (1, 0x50),
        (1, 0xd7),
        (3, 0x10),
        (3, 0x11),
        (2, 0x7e),
        (1, 0xd6),
        (0, 0x12),
        (1, 0x74),
        (1, 0xf4),
        (1, 0xf6),
        (0, 0x5b),
        (3, 0x5a),
    ][n.below(40) as usize];
    let vex = n.below(3) == 0 && !matches!(opcode, 0x12);
    let (r, v, m) = (xmm(n), xmm(n), xmm(n));
    // These name general registers.
    let general_reg = matches!(opcode, 0x2c | 0x2d | 0x50 | 0xd7);
    let general_rm = matches!(opcode, 0x2a | 0x6e | 0x7e) && !(pp == 2 && opcode == 0x7e);
    let r = if general_reg { register(n) } else { r };
    let memory = n.below(2) == 0 && !matches!(opcode, 0x50 | 0xd7) || matches!(opcode, 0x12);
    let m = if general_rm { register(n) } else { m };
    let w = u8::from((general_reg || general_rm) && n.below(2) == 0 && !matches!(opcode, 0x50 | 0xd7));
    let b = if memory { 0 } else { m >> 3 };
    if vex {
        // Two-operand forms want no second register.
        let three = matches!(
            opcode,
            0x58 | 0x59 | 0x5c | 0x5e | 0x54 | 0x57 | 0xfe | 0xd4 | 0xef | 0x62 | 0x74 | 0xf4 | 0xf6
        ) || pp >= 2 && matches!(opcode, 0x51 | 0x5a | 0x2a)
            || pp >= 2 && matches!(opcode, 0x10 | 0x11) && !memory;
        let v = if three { v } else { 0 };
        let l = u8::from(
            n.below(2) == 0
                && !general_reg
                && !general_rm
                && !matches!((pp, opcode), (_, 0xd6 | 0x2e | 0x2f) | (2, 0x7e)),
        );
        o.extend([
            0xc4,
            (!(r >> 3) & 1) << 7 | 1 << 6 | (!b & 1) << 5 | 1,
            w << 7 | (!v & 15) << 3 | l << 2 | pp,
        ]);
        // In VEX, 2 is F3 and 3 is F2.
        let at = o.len() - 1;
        o[at] = o[at] & !3 | [0, 1, 2, 3][pp as usize];
    } else {
        match pp {
            1 => o.push(0x66),
            2 => o.push(0xf3),
            3 => o.push(0xf2),
            _ => {}
        }
        o.push(0x40 | w << 3 | (r >> 3) << 2 | b);
        o.push(0x0f);
    }
    o.push(opcode);
    if memory {
        o.push(0x80 | (r & 7) << 3 | BASE);
        let disp = if n.below(4) == 0 { n.below(0x1200) } else { n.below(0xf0) * 16 } as u32;
        o.extend(disp.to_le_bytes());
    } else {
        o.push(0xc0 | (r & 7) << 3 | m & 7);
    }
    o
}

/// A sequence with a few forward branches, which ends in HLT.
fn sequence(n: &mut Numbers, length: u64) -> Vec<u8> {
    let mut o = straight(n, length);
    o.push(0xf4);
    o
}

/// A few sequences in a loop or two of a few turns, with jumps between them.
fn looped(n: &mut Numbers, length: u64) -> Vec<u8> {
    let counter = [12, 11, 5, 9][n.below(4) as usize];
    let inner = [14, 15, 10, 13][n.below(4) as usize];
    let used = (0..2 + n.below(12)).fold(0, |m, _| m | 1 << n.below(16)) & ALL & !(1 << counter | 1 << inner);
    n.1 = if used == 0 { 1 << 6 } else { used };
    // MOV r32, imm32
    let mut o = vec![0x40 | counter >> 3, 0xb8 | counter & 7];
    o.extend((1 + n.below(30) as u32).to_le_bytes());
    let head = o.len();
    let parts = 1 + n.below(4);
    for _ in 0..parts {
        let most = 1 + length / parts;
        let most = 1 + n.below(most);
        let part = straight(n, most);
        match n.below(3) {
            // Jcc rel32 over it.
            0 => {
                o.extend([0x0f, 0x80 | n.below(16) as u8]);
                o.extend((part.len() as u32).to_le_bytes());
                o.extend(part);
            }
            // A loop of its own: MOV r32, imm32; the part; DEC r32; JNZ.
            1 => {
                o.extend([0x40 | inner >> 3, 0xb8 | inner & 7]);
                o.extend((1 + n.below(6) as u32).to_le_bytes());
                let start = o.len();
                o.extend(part);
                o.extend([0x40 | inner >> 3, 0xff, 0xc8 | inner & 7, 0x0f, 0x85]);
                let back = (start as i64 - (o.len() + 4) as i64) as i32;
                o.extend(back.to_le_bytes());
            }
            _ => o.extend(part),
        }
    }
    if n.below(2) == 0 {
        // DEC r32
        o.extend([0x40 | counter >> 3, 0xff, 0xc8 | counter & 7]);
    } else {
        // SUB r32, 1
        o.extend([0x40 | counter >> 3, 0x83, 0xe8 | counter & 7, 1]);
    }
    o.extend([0x0f, 0x85]);
    let back = (head as i64 - (o.len() + 4) as i64) as i32;
    o.extend(back.to_le_bytes());
    n.1 = ALL;
    o.extend(straight(n, 2));
    o.push(0xf4);
    o
}

fn straight(n: &mut Numbers, length: u64) -> Vec<u8> {
    let mut o = Vec::new();
    let vectors = n.below(2) == 0;
    for _ in 0..length {
        if vectors && n.below(2) == 0 {
            o.extend(vector(n));
            continue;
        }
        if n.below(9) == 0 {
            let i = instruction(n);
            o.extend([0x70 | n.below(16) as u8, i.len() as u8]);
            o.extend(i);
        } else {
            o.extend(instruction(n));
        }
    }
    o
}

/// Where a page of the data lies: not in order, so that whoever runs over the end of one is found out.
fn physical(page: u64) -> u64 {
    DATA + (page * 5 + 2) % 8 * 0x1000
}

struct Side {
    bed: TestBed,
    vm: Arc<dyn AccelVm>,
    vcpu: Box<dyn Vcpu>,
}

impl Side {
    fn new(engine: &dyn Accelerator) -> Side {
        let bed = TestBed::new(4 << 20, "max");
        let mut next = ROOT + 0x1000;
        for page in 0..4 {
            bed.map_page(ROOT, &mut next, CODE + page * 0x1000, CODE + page * 0x1000 | 7);
        }
        for page in 0..8 {
            // The last is missing, one is read-only.
            let rights = [7, 7, 7, 7, 7, 7, 5, 0][page as usize];
            bed.map_page(ROOT, &mut next, DATA + page * 0x1000, physical(page) | rights);
        }
        let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
        let vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
        Side { bed, vm, vcpu }
    }

    fn run(
        &mut self,
        code: &[u8],
        data: &[u8],
        state: &CpuState,
        budget: Budget,
    ) -> (VcpuExit, CpuState, Vec<u8>) {
        let mut old = vec![0; code.len()];
        self.bed.ram.read(CODE, &mut old);
        if old != code {
            self.bed.ram.write(CODE, code);
        }
        for (page, bytes) in (0..).zip(data.chunks(0x1000)) {
            self.bed.ram.write(physical(page), bytes);
        }
        self.vcpu.set_state(state).unwrap();
        let mut exit = self.vcpu.run(budget);
        if matches!(exit, VcpuExit::BudgetSpent) && matches!(budget, Budget::Unlimited) {
            exit = self.vcpu.run(budget);
        }
        let mut now = vec![0; data.len()];
        for (page, bytes) in (0..).zip(now.chunks_mut(0x1000)) {
            self.bed.ram.read(physical(page), bytes);
        }
        (exit, self.vcpu.state(), now)
    }
}

/// The mode that sequences run in.
fn base(bed: &TestBed) -> CpuState {
    let mut cpu = bed.cpu();
    enter_long_mode(&mut cpu, ROOT, 0);
    cpu.env.rip = CODE;
    cpu.env.cr4 |= anura_x86::regs::cr4::OSXSAVE;
    cpu.env.xcr0 = 7;
    cpu.after_load();
    cpu.save_state()
}

fn start(n: &mut Numbers, base: &CpuState) -> CpuState {
    let mut s = base.clone();
    for r in &mut s.gpr {
        *r = n.value();
    }
    s.gpr[usize::from(BASE)] = DATA + 0x1000;
    s.gpr[4] = DATA + 0x5000 + n.below(64);
    s.rflags = 2 | n.next() & 0x8d5;
    for at in (160..416).chain(576..832).step_by(8) {
        let v = match n.below(3) {
            0 => (n.below(1000) as f64).to_bits(),
            _ => n.value(),
        };
        s.xsave.bytes[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }
    s
}

fn compare(engine: &JitEngine, budget: Option<u64>, seed: u64, rounds: u64) {
    let mut n = Numbers(seed, ALL);
    let mut interp = Side::new(&Interp);
    let mut jit = Side::new(engine);
    let base = base(&interp.bed);
    for round in 0..rounds {
        let length = 1 + n.below(if round % 4 == 0 { 3 } else { 24 });
        let code = if engine.jumps_back < 100 { looped(&mut n, length) } else { sequence(&mut n, length) };
        for _ in 0..3 {
            let state = start(&mut n, &base);
            let data: Vec<u8> = (0..0x7000).map(|_| n.next() as u8).collect();
            let budget = budget.map_or(Budget::Unlimited, |b| Budget::Instructions(1 + n.below(b)));
            let (e1, s1, d1) = interp.run(&code, &data, &state, budget);
            let (e2, s2, d2) = jit.run(&code, &data, &state, budget);
            let show = || {
                let mut text = String::new();
                let mut d = iced_x86::Decoder::with_ip(64, &code, CODE, 0);
                while d.can_decode() {
                    let i = d.decode();
                    text += &format!(
                        "{:x} {:02x?} {:?} {:?} {:?} {:?}\n",
                        i.ip(),
                        &code[(i.ip() - CODE) as usize..(i.next_ip() - CODE) as usize],
                        i.code(),
                        i.op0_register(),
                        i.op1_register(),
                        i.memory_size()
                    );
                }
                format!("{text}start {:x?} flags {:x}\n", state.gpr, state.rflags)
            };
            assert_eq!(
                format!("{e1:?}"),
                format!("{e2:?}"),
                "round {round} rip {:x} {:x}\n{}",
                s1.rip,
                s2.rip,
                show()
            );
            if s1 != s2 {
                for at in 0..s1.xsave.bytes.len() {
                    if s1.xsave.bytes[at] != s2.xsave.bytes[at] {
                        eprintln!("image at {at}: {:x} {:x}", s1.xsave.bytes[at], s2.xsave.bytes[at]);
                    }
                }
                for r in 0..16 {
                    if s1.gpr[r] != s2.gpr[r] {
                        eprintln!("r{r}: interp {:x} jit {:x}", s1.gpr[r], s2.gpr[r]);
                    }
                }
                panic!(
                    "round {round}: rip {:x} {:x} flags {:x} {:x}\n{}",
                    s1.rip,
                    s2.rip,
                    s1.rflags,
                    s2.rflags,
                    show()
                );
            }
            if let Some(at) = (0..d1.len()).find(|i| d1[*i] != d2[*i]) {
                panic!("round {round}: data at {at:x}: {:02x} {:02x}\n{}", d1[at], d2[at], show());
            }
            assert!(s1.activity != Activity::WaitForSipi);
        }
    }
    if engine.jumps_back < 100 {
        let info = jit.vm.info();
        let loops = info.lines().find_map(|l| l.strip_prefix("loops translated: "));
        assert!(loops.is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > rounds / 4)), "{info}");
    }
}

fn rounds() -> u64 {
    std::env::var("ANURA_JIT_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(4_000)
}

fn seed() -> u64 {
    std::env::var("ANURA_JIT_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0x1234_5678)
}

#[test]
fn sequences_end_as_they_do_on_the_interpreter() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    compare(&JitEngine::default(), None, seed(), rounds());
}

#[test]
fn loops_end_as_they_do_on_the_interpreter() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    let eager = JitEngine { jumps_back: 1, ..JitEngine::default() };
    compare(&eager, None, seed() ^ 0x1234, rounds());
    compare(&JitEngine { exact: true, ..eager }, Some(400), seed() ^ 0x9999, rounds());
    compare(&JitEngine { chaos: seed() | 1, ..eager }, None, seed() ^ 0x4321, rounds() / 2);
}

#[test]
fn jumps_that_must_not_be_leave_everything_in_place() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    let mut n = Numbers(seed(), ALL);
    let mut interp = Side::new(&Interp);
    let mut jit = Side::new(&JitEngine::default());
    let base = base(&interp.bed);
    // At the end of each a HLT, which some of the targets are.
    let codes: [&[u8]; 5] = [
        &[0x50, 0xc3, 0xf4],                   // push rax; ret
        &[0x50, 0xc2, 0x18, 0x00, 0xf4],       // push rax; ret 24
        &[0xff, 0xe0, 0xf4],                   // jmp rax
        &[0xff, 0xd0, 0xf4],                   // call rax
        &[0x48, 0x89, 0x03, 0xff, 0x23, 0xf4], // mov [rbx], rax; jmp [rbx]
    ];
    for code in codes {
        let halt = CODE + code.len() as u64 - 1;
        for target in [halt, 1 << 47, !0, (1 << 63) | halt, 0xffff_7fff_ffff_ffff, halt, 1 << 46, 1 << 47] {
            let mut state = start(&mut n, &base);
            state.gpr[0] = target;
            let data: Vec<u8> = (0..0x7000).map(|_| n.next() as u8).collect();
            let (e1, s1, d1) = interp.run(code, &data, &state, Budget::Unlimited);
            let (e2, s2, d2) = jit.run(code, &data, &state, Budget::Unlimited);
            assert_eq!(format!("{e1:?}"), format!("{e2:?}"), "{code:x?} to {target:x}");
            assert!(s1 == s2 && d1 == d2, "{code:x?} to {target:x}: {:x} {:x}", s1.rip, s2.rip);
        }
    }
}

#[test]
fn budgets_end_sequences_where_they_do_on_the_interpreter() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    compare(&JitEngine { exact: true, ..JitEngine::default() }, Some(60), seed() ^ 0xabcdef, rounds());
}

#[test]
fn disturbances_do_not_change_where_sequences_end() {
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return;
    }
    let free = JitEngine { chaos: seed() | 1, ..JitEngine::default() };
    compare(&free, None, seed() ^ 0x5555, rounds() / 2);
    compare(&JitEngine { exact: true, ..free }, Some(60), seed() ^ 0xaaaa, rounds() / 2);
}
