//! Blocks from text: the inverse of [`super::print`].

use super::help::Help;
use super::op::{Attr, Block, Call, Cond, Imm, Insn, Op, Opaque, Opcode, Ref, Ty};
use super::print;

/// What is wrong, and on which line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

fn number(s: &str) -> Option<u64> {
    match s.strip_prefix("0x") {
        Some(h) => u64::from_str_radix(h, 16).ok(),
        None => s.parse().ok(),
    }
}

fn signed(s: &str) -> Option<i64> {
    match s.strip_prefix('-') {
        Some(p) => number(p).map(|v| (v as i64).wrapping_neg()),
        None => number(s).map(|v| v as i64),
    }
}

fn reference(b: &mut Block, s: &str) -> Result<Ref, String> {
    if let Some(t) = s.strip_prefix('t').and_then(|t| t.parse::<u16>().ok()) {
        if t >= Ref::POOL0 - Ref::TEMP0 {
            return Err(format!("no temporary t{t}"));
        }
        b.temps = b.temps.max(t + 1);
        return Ok(Ref(Ref::TEMP0 + t));
    }
    if s.starts_with(|c: char| c.is_ascii_digit()) {
        let v = number(s).ok_or_else(|| format!("bad number {s}"))?;
        if b.pool.len() >= 0x7fff {
            return Err("too many constants".into());
        }
        return Ok(b.constant(v));
    }
    print::fixed_refs().find(|(_, n)| n == s).map(|(r, _)| r).ok_or_else(|| format!("unknown operand {s}"))
}

fn ty(s: &str) -> Result<Ty, String> {
    Ty::ALL.into_iter().find(|t| t.name() == s).ok_or_else(|| format!("unknown type {s}"))
}

fn call(s: &str) -> Option<Call> {
    let f: Vec<&str> = s.split(':').collect();
    let [name, reg, reg2, size, asize, mem, rep, imm] = f[..] else { return None };
    Some(Call {
        id: *Help::ALL.iter().find(|h| h.name() == name)? as u16,
        reg: reg.parse().ok()?,
        reg2: reg2.parse().ok()?,
        size: size.parse().ok()?,
        asize: asize.parse().ok()?,
        mem: mem == "1",
        rep: rep.parse().ok()?,
        imm: number(imm)?,
    })
}

fn op(b: &mut Block, text: &str, insn: u8) -> Result<Op, String> {
    let (dst, rest) = match text.split_once(" = ") {
        Some((d, r)) => (Some(d.trim()), r.trim()),
        None => (None, text.trim()),
    };
    let (word, operands) = rest.split_once(' ').unwrap_or((rest, ""));
    // The longest operation name that the word begins with.
    let code = Opcode::ALL
        .iter()
        .copied()
        .filter(|o| word.strip_prefix(o.info().name).is_some_and(|r| r.starts_with('.')))
        .max_by_key(|o| o.info().name.len())
        .ok_or_else(|| format!("unknown operation {word}"))?;
    let info = code.info();
    let mut suffix = word[info.name.len() + 1..].split('.').peekable();
    let mut o = Op::new(code, Ty::I64);
    o.insn = insn;
    if suffix.next_if_eq(&"f").is_some() {
        o.attr.0 |= Attr::FLAGS;
    }
    let mut part = || suffix.next().ok_or_else(|| format!("{word}: suffix missing"));
    match info.imm {
        Imm::Cond => {
            let c = part()?;
            o.imm = Cond::ALL
                .into_iter()
                .find(|k| k.name() == c)
                .ok_or_else(|| format!("unknown condition {c}"))? as u32;
        }
        Imm::From => o.imm = ty(part()?)? as u32,
        _ => {}
    }
    o.ty = ty(part()?)?;
    match (dst, info.dst) {
        (Some(d), true) => o.dst = reference(b, d)?,
        (None, false) => {}
        _ => return Err(format!("{}: destination does not fit", info.name)),
    }
    let mut operands = operands;
    while let Some((head, word)) = operands.rsplit_once('!') {
        let bit = print::WORDS.iter().find(|(_, w)| *w == word.trim());
        o.attr.0 |= bit.ok_or_else(|| format!("unknown attribute {word}"))?.0;
        operands = head.trim_end();
    }
    let args: Vec<&str> =
        if operands.is_empty() { Vec::new() } else { operands.split(',').map(str::trim).collect() };
    let extra = match info.imm {
        Imm::None | Imm::Cond | Imm::From => 0,
        Imm::Disp => 2,
        Imm::Num | Imm::Call | Imm::Opaque => 1,
    };
    if args.len() != info.args as usize + extra {
        return Err(format!("{}: {} operands", info.name, args.len()));
    }
    let refs = args[..info.args as usize].iter().map(|s| reference(b, s)).collect::<Result<Vec<_>, _>>()?;
    for (slot, r) in [&mut o.a, &mut o.b, &mut o.c].into_iter().zip(refs) {
        *slot = r;
    }
    let tail = &args[info.args as usize..];
    let bad = || format!("{}: bad immediate", info.name);
    match info.imm {
        Imm::None | Imm::Cond | Imm::From => {}
        Imm::Num => o.imm = number(tail[0]).and_then(|v| v.try_into().ok()).ok_or_else(bad)?,
        Imm::Disp => {
            let scale: u32 = tail[0].parse().map_err(|_| bad())?;
            if !matches!(scale, 1 | 2 | 4 | 8) {
                return Err(bad());
            }
            o.attr.0 |= (scale.trailing_zeros() as u8) << Attr::SCALE_SHIFT;
            let d: i32 = signed(tail[1]).and_then(|v| v.try_into().ok()).ok_or_else(bad)?;
            o.imm = d as u32;
        }
        Imm::Call => {
            b.calls.push(call(tail[0]).ok_or_else(bad)?);
            o.imm = b.calls.len() as u32 - 1;
        }
        Imm::Opaque => {
            let s = tail[0];
            let bytes = (0..s.len() / 2)
                .map(|i| s.get(i * 2..i * 2 + 2).and_then(|h| u8::from_str_radix(h, 16).ok()))
                .collect::<Option<Vec<u8>>>()
                .filter(|v| (1..=15).contains(&v.len()) && s.len().is_multiple_of(2))
                .ok_or_else(bad)?;
            b.opaques.push(Opaque { bytes });
            o.imm = b.opaques.len() as u32 - 1;
        }
    }
    Ok(o)
}

fn header(line: &str) -> Option<Block> {
    let mut b = Block::default();
    let mut words = line.split_whitespace();
    if words.next()? != "block" {
        return None;
    }
    for w in words {
        let (k, v) = w.split_once('=')?;
        let v = number(v)?;
        match k {
            "pa" => b.pa = v,
            "va" => b.va = v,
            "key" => b.key = v.try_into().ok()?,
            _ => return None,
        }
    }
    Some(b)
}

/// Reads one block.
pub fn block(text: &str) -> Result<Block, ParseError> {
    let mut b: Option<Block> = None;
    for (n, line) in text.lines().enumerate() {
        let err = |what: String| ParseError { line: n + 1, what };
        let line = line.split(';').next().unwrap_or("").trim_end();
        if line.trim().is_empty() {
            continue;
        }
        let Some(b) = &mut b else {
            b = Some(header(line).ok_or_else(|| err("no block header".into()))?);
            continue;
        };
        let mut rest = line.trim_start();
        let (first, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        if let Some((i, len)) = first.split_once('/') {
            let (Ok(i), Ok(len)) = (i.parse::<usize>(), len.parse::<u8>()) else {
                return Err(err(format!("bad instruction column {first}")));
            };
            if i != b.insns.len() || i > 63 {
                return Err(err(format!("instruction {i} out of order")));
            }
            let off = b.len() as u16;
            b.insns.push(Insn { off, len });
            rest = tail.trim_start();
        }
        if rest.is_empty() {
            continue;
        }
        let insn =
            b.insns.len().checked_sub(1).ok_or_else(|| err("operation before an instruction".into()))?;
        let o = op(b, rest, insn as u8).map_err(err)?;
        b.ops.push(o);
    }
    b.ok_or(ParseError { line: 1, what: "no block header".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::print;

    const SAMPLE: &str = "\
block pa=0x1000 va=0xffffffff81000000 key=0x3
 0/4  t0 = ea.i64 rbx, rcx, gs_base, 8, -0x10
      rcx = ld.i64 t0 !stack
 1/3  rcx = add.f.i64 rcx, rax
 2/3  ah = xor.f.i8 ah, 0x80
 3/1
 4/4  rax = zext.i16.i32 rcx
 5/3  x86.op.i64 none, none, none, 0f58c1
 6/2  helper.i64 none, none, none, cpuid:0:0:8:8:0:0:0x0
 7/4  t1 = rmw.add.f.i32 t0, rdx !lock
 8/2  br.nz.i64 0xffffffff81000000, 0xffffffff8100000e
";

    #[test]
    fn text_survives_a_round_trip() {
        let b = block(SAMPLE).unwrap();
        assert_eq!(print::block(&b), SAMPLE);
        assert_eq!(b.insns.len(), 9);
        assert_eq!(b.len(), 26);
    }

    #[test]
    fn every_operation_survives_a_round_trip() {
        for &code in Opcode::ALL {
            for ty in Ty::ALL {
                for bits in 0..16u8 {
                    let mut b = Block::default();
                    b.insns.push(Insn { off: 0, len: 1 });
                    let mut o = Op::new(code, ty);
                    let info = code.info();
                    o.attr = Attr(bits & if info.imm == Imm::Disp { 0 } else { 15 });
                    if info.dst {
                        o.dst = b.temp();
                    }
                    if info.args > 0 {
                        o.a = Ref::gpr(bits);
                    }
                    if info.args > 1 {
                        o.b = b.constant(u64::MAX - u64::from(bits));
                    }
                    if info.args > 2 {
                        o.c = Ref::seg_base(5);
                    }
                    o.imm = match info.imm {
                        Imm::None => 0,
                        Imm::Num | Imm::Disp => 0xffff_fff0 | u32::from(bits),
                        Imm::Cond => u32::from(bits),
                        Imm::From => 2,
                        Imm::Call => {
                            let id = Help::ALL[bits as usize] as u16;
                            b.calls.push(Call {
                                id,
                                reg: 1,
                                reg2: 2,
                                size: 4,
                                asize: 8,
                                mem: true,
                                rep: 1,
                                imm: 7,
                            });
                            0
                        }
                        Imm::Opaque => {
                            b.opaques.push(Opaque { bytes: vec![0x66, 0x0f, bits] });
                            0
                        }
                    };
                    if info.imm == Imm::Disp {
                        o.attr = Attr((bits & 3) << Attr::SCALE_SHIFT);
                    }
                    b.ops.push(o);
                    let text = print::block(&b);
                    let again = block(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
                    assert_eq!(again.ops, b.ops, "{text}");
                    assert_eq!(print::block(&again), text);
                }
            }
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let bad = |s: &str| block(s).unwrap_err();
        assert_eq!(bad("x").line, 1);
        assert_eq!(bad("block pa=0\n 0/1 rax = nope.i64 rbx").what, "unknown operation nope.i64");
        assert_eq!(bad("block pa=0\n 1/1 rax = mov.i64 rbx").line, 2);
        assert_eq!(bad("block pa=0\n 0/1 rax = mov.i64 rbx, rcx").what, "mov: 2 operands");
        assert_eq!(bad("block pa=0\n 0/1 mov.i64 rbx").what, "mov: destination does not fit");
        assert_eq!(bad("block pa=0\n 0/1 rax = mov.i65 rbx").what, "unknown type i65");
    }
}
