//! Cases as text: what was found once is run again by a test, on any host.
//!
//! A file holds the instruction, the state before, and what the host's processor made of it.
use super::compare;
use super::generate::{Case, Width};
use super::guest::{Guest, Runner};
use super::{CODE, FpImage, Outcome, Trap};
use std::fmt::Write as _;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Runs of bytes that differ, a line each.
fn runs(out: &mut String, name: &str, from: &[u8], to: &[u8]) {
    let mut at = 0;
    while at < to.len() {
        if from[at] == to[at] {
            at += 1;
            continue;
        }
        let end = (at..to.len().min(at + 64)).rev().find(|n| from[*n] != to[*n]).unwrap_or(at) + 1;
        let _ = writeln!(out, "{name} {at:x} {}", hex(&to[at..end]));
        at = end;
    }
}

/// Writes a case.
pub fn write(
    case: &Case,
    width: Width,
    fp: &FpImage,
    memory: &[u8],
    host: &Outcome,
    fp_after: &FpImage,
    memory_after: &[u8],
) -> String {
    let mut s = String::new();
    let _ = writeln!(s, "# {:?}", case.instruction.code());
    let _ = writeln!(s, "width {}", if width == Width::Bits64 { 64 } else { 32 });
    let _ = writeln!(s, "ip {:x}", case.instruction.ip() - CODE);
    let _ = writeln!(s, "code {}", hex(&case.bytes[..case.len]));
    let registers = |s: &mut String, name: &str, g: &[u64; 16]| {
        s.push_str(name);
        g.iter().for_each(|v| {
            let _ = write!(s, " {v:x}");
        });
        s.push('\n');
    };
    registers(&mut s, "gpr", &case.gpr);
    let _ = writeln!(s, "flags {:x}", case.flags);
    runs(&mut s, "fp", &FpImage::init().bytes, &fp.bytes);
    runs(&mut s, "mem", &[0; 0x3000], memory);
    registers(&mut s, "gpr-after", &host.gpr);
    let _ = writeln!(s, "flags-after {:x}", host.flags);
    let _ = writeln!(s, "ip-after {:x}", host.rip.wrapping_sub(CODE));
    if let Some(t) = host.trap {
        let _ = writeln!(s, "trap {:x} {:x} {:x}", t.vector, t.error, t.cr2);
    }
    runs(&mut s, "fp-after", &fp.bytes, &fp_after.bytes);
    runs(&mut s, "mem-after", memory, memory_after);
    s
}

/// Runs a case on one of our engines: what differs from what is written there.
pub fn replay(text: &str, runner: Runner) -> Result<Option<String>, String> {
    let mut width = Width::Bits64;
    let (mut ip, mut code, mut flags) = (0, vec![], 0x202);
    let mut gpr = [0; 16];
    let mut fp = FpImage::init();
    let mut memory = vec![0u8; 0x3000];
    let mut host = Outcome { gpr: [0; 16], rip: 0, flags: 0, trap: None };
    let (mut fp_after, mut memory_after) = (None::<FpImage>, None::<Vec<u8>>);
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let bad = || format!("cannot read '{line}'");
        let mut words = line.split(' ');
        let name = words.next().unwrap_or("");
        let rest: Vec<&str> = words.collect();
        let number = |n: usize| rest.get(n).and_then(|w| u64::from_str_radix(w, 16).ok()).ok_or_else(bad);
        let bytes = |n: usize| -> Result<Vec<u8>, String> {
            let w = rest.get(n).ok_or_else(bad)?;
            (0..w.len() / 2)
                .map(|k| w.get(k * 2..k * 2 + 2).and_then(|b| u8::from_str_radix(b, 16).ok()).ok_or_else(bad))
                .collect()
        };
        let put = |to: &mut [u8]| -> Result<(), String> {
            let (at, b) = (number(0)? as usize, bytes(1)?);
            to.get_mut(at..at + b.len()).ok_or_else(bad)?.copy_from_slice(&b);
            Ok(())
        };
        match name {
            "width" => width = if number(0)? == 0x64 { Width::Bits64 } else { Width::Bits32 },
            "ip" => ip = number(0)? as usize,
            "code" => code = bytes(0)?,
            "gpr" | "gpr-after" => {
                let to = if name == "gpr" { &mut gpr } else { &mut host.gpr };
                for (n, v) in to.iter_mut().enumerate() {
                    *v = number(n)?;
                }
            }
            "flags" => flags = number(0)?,
            "flags-after" => host.flags = number(0)?,
            "ip-after" => host.rip = CODE.wrapping_add(number(0)?),
            "trap" => {
                host.trap =
                    Some(Trap { vector: number(0)? as u8, error: number(1)? as u32, cr2: number(2)? });
            }
            "fp" => put(&mut fp.bytes)?,
            "mem" => put(&mut memory)?,
            "fp-after" => put(&mut fp_after.get_or_insert_with(|| fp.clone()).bytes)?,
            "mem-after" => put(memory_after.get_or_insert_with(|| memory.clone()))?,
            _ => return Err(bad()),
        }
    }
    let fp_after = fp_after.unwrap_or_else(|| fp.clone());
    let memory_after = memory_after.unwrap_or_else(|| memory.clone());
    let mut guest = Guest::new(width, runner);
    let mut all = [0; 15];
    all.get_mut(..code.len()).ok_or("the instruction is too long")?.copy_from_slice(&code);
    let bits = if width == Width::Bits64 { 64 } else { 32 };
    let mut decoder =
        iced_x86::Decoder::with_ip(bits, &code, CODE + ip as u64, iced_x86::DecoderOptions::AMD);
    let instruction = decoder.decode();
    let case = Case {
        encoding: 0,
        bytes: all,
        len: code.len(),
        instruction,
        gpr,
        flags,
        fp: 0,
        vector: None,
        patch: None,
    };
    guest.place(ip, &code);
    guest.set_data(0, &memory);
    let ours = guest.run(ip, &gpr, flags, Some(&fp))?;
    let verdict = compare::difference(
        &case,
        &host,
        &ours,
        Some((&fp_after, guest.fp())),
        runner == Runner::Portable,
        width,
    );
    let mut data = vec![0; 0x3000];
    guest.data(0, &mut data);
    if let Some(at) = data.iter().zip(&memory_after).position(|(a, b)| a != b)
        && !verdict.excused
    {
        let text = format!(" memory at {at:#x}: {:02x} for {:02x};", data[at], memory_after[at]);
        return Ok(Some(verdict.text.unwrap_or_default() + &text));
    }
    Ok(verdict.text)
}
