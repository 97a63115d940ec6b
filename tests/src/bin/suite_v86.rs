//! v86's nasm tests on an engine: run as `suite_v86 DIR ENGINE [NAME...]` by `cargo xtask suites v86`.
//!
//! DIR holds 32-bit programs `NAME.img` and beside each the state `NAME.fixture` in which a real processor reached the
//! last instruction or an exception: general registers, EIP, ST(0) to ST(7), MMX and XMM registers, the memory from
//! 0x100000 to 0x102000, EFLAGS, tag and status word of the x87. Writes a line for each test that fails, and the
//! total.

use anura_tests::user::{Stop, User};
use std::path::Path;
use std::process::ExitCode;

const MEMORY: std::ops::Range<u64> = 0x10_0000..0x10_2000;
/// Arithmetic flags: the others are Linux's.
const FLAGS: u64 = 0x8d5;
const REGISTERS: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

/// What a real processor did.
struct Fixture {
    /// The signal, if the program did not reach its end.
    signal: Option<String>,
    values: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Integer(i64),
    Real(f64),
    /// An x87 register that was not looked at.
    Invalid,
}

fn value(word: &str) -> Option<Value> {
    let bare = word.trim_start_matches(['-', '+']);
    if word == "\"invalid\"" {
        Some(Value::Invalid)
    } else if bare.starts_with("nan") {
        Some(Value::Real(f64::NAN))
    } else if let Ok(integer) = word.parse() {
        Some(Value::Integer(integer))
    } else {
        word.parse().ok().map(Value::Real)
    }
}

fn fixture(text: &str) -> Option<Fixture> {
    let signal = text.split_once("(signal ").and_then(|(_, rest)| rest.split(')').next()).map(str::to_owned);
    let (_, rest) = text.split_once("---BEGIN JSON---")?;
    let (body, _) = rest.split_once("---END JSON---")?;
    let body = body.trim().strip_prefix('[')?.strip_suffix(']')?;
    let values: Option<Vec<Value>> = body.split(',').map(|word| value(word.trim())).collect();
    values.filter(|v| v.len() == 8 + 1 + 8 + 16 + 32 + 2048 + 3).map(|values| Fixture { signal, values })
}

/// A 32-bit ELF program in memory, and its entry.
fn load(user: &mut User, image: &[u8]) -> Result<u64, String> {
    let word = |at: usize, n: usize| -> Result<usize, String> {
        let bytes = image.get(at..at + n).ok_or("the file is cut off")?;
        Ok(bytes.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    };
    if image.get(..5) != Some(b"\x7fELF\x01") {
        return Err("no 32-bit ELF file".into());
    }
    let (table, size, count) = (word(28, 4)?, word(42, 2)?, word(44, 2)?);
    for at in (0..count).map(|n| table + n * size) {
        if word(at, 4)? != 1 {
            continue;
        }
        let (offset, va, len) = (word(at + 4, 4)?, word(at + 8, 4)?, word(at + 16, 4)?);
        let bytes = image.get(offset..offset + len).ok_or("the file is cut off")?;
        user.map(va as u64, word(at + 20, 4)? as u64, bytes, word(at + 24, 4)? & 2 != 0)?;
    }
    Ok(word(24, 4)? as u64)
}

/// An x87 register as the nearest double, which is all that a fixture has.
fn double((significand, sign_exponent): (u64, u16)) -> f64 {
    let sign = if sign_exponent & 0x8000 != 0 { -1.0 } else { 1.0 };
    let exponent = i32::from(sign_exponent & 0x7fff);
    if exponent == 0x7fff {
        return if significand << 1 == 0 { sign * f64::INFINITY } else { f64::NAN };
    }
    // Rounded once, at the place where a double of this size ends, to even.
    let power = exponent.max(1) - 16383 - 63;
    let top = power + 64 - significand.leading_zeros() as i32;
    let drop = (top.max(-1021) - 53 - power).max(0) as u32;
    let rounded = match drop {
        0 => u128::from(significand),
        1..=64 => {
            let (wide, half) = (u128::from(significand), 1u128 << (drop - 1));
            let kept = wide >> drop;
            let rest = wide & (half * 2 - 1);
            kept + u128::from(rest > half || rest == half && kept & 1 != 0)
        }
        _ => 0,
    };
    let mut result = rounded as f64 * sign;
    let mut power = power + drop as i32;
    while power != 0 && result != 0.0 && result.is_finite() {
        let step = power.clamp(-1000, 1000);
        result *= 2f64.powi(step);
        power -= step;
    }
    result
}

/// The x87 tag word, which the saved state only has in short.
fn tags(stop: &Stop) -> i64 {
    let x = &stop.state.xsave;
    let top = usize::from(x.fsw() >> 11 & 7);
    (0..8).fold(0, |all, register| {
        let (significand, exponent) = x.st((register + 8 - top) & 7);
        let tag = match exponent & 0x7fff {
            _ if x.ftw() >> register & 1 == 0 => 3,
            0x7fff => 2,
            0 if significand == 0 => 1,
            0 => 2,
            _ if significand >> 63 == 1 => 0,
            _ => 2,
        };
        all | tag << (2 * register)
    })
}

/// The first difference.
fn compare(user: &User, stop: &Stop, expected: &Fixture) -> Result<(), String> {
    let state = &stop.state;
    let mut values = expected.values.iter().copied();
    let mut next = || values.next().unwrap_or(Value::Invalid);
    let differ =
        |name: &str, got: Value, want: Value| Err(format!("{name} is {got:x?} instead of {want:x?}"));
    let word = |bytes: &[u8], n: usize| {
        Value::Integer(
            i32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]).into(),
        )
    };
    // HLT, with which a program ends, is an exception for user code.
    let mut last = [0];
    user.read(state.rip, &mut last)?;
    let ended = stop.vector == 13 && last == [0xf4];
    match &expected.signal {
        Some(signal) if ended => return Err(format!("no {signal}")),
        Some(signal) if signal != stop.signal() => {
            return Err(format!("{} instead of {signal}", stop.signal()));
        }
        None if !ended => return Err(format!("exception {} at {:#x}", stop.vector, state.rip)),
        _ => {}
    }
    let general: Vec<Value> = (0..8).map(|_| next()).collect();
    match next() {
        Value::Integer(eip) if eip as u32 == state.rip as u32 => {}
        want => return differ("eip", Value::Integer(state.rip as i64), want),
    }
    if expected.signal.is_some() {
        return Ok(());
    }
    for (i, want) in general.into_iter().enumerate() {
        let got = Value::Integer((state.gpr[i] as i32).into());
        if got != want {
            return differ(REGISTERS[i], got, want);
        }
    }
    let x87: Vec<Value> = (0..8).map(|_| next()).collect();
    let mmx: Vec<Value> = (0..16).map(|_| next()).collect();
    let xmm: Vec<Value> = (0..32).map(|_| next()).collect();
    for (n, want) in xmm.into_iter().enumerate() {
        let got = word(&state.xsave.bytes[160..288], n);
        if got != want {
            return differ(&format!("word {} of xmm{}", n % 4, n / 4), got, want);
        }
    }
    let mut memory = vec![0; (MEMORY.end - MEMORY.start) as usize];
    user.read(MEMORY.start, &mut memory)?;
    for n in 0..memory.len() / 4 {
        let (got, want) = (word(&memory, n), next());
        if got != want {
            return differ(&format!("memory at {:#x}", MEMORY.start + 4 * n as u64), got, want);
        }
    }
    match next() {
        Value::Integer(flags) if flags as u64 & FLAGS == state.rflags & FLAGS => {}
        want => return differ("eflags", Value::Integer(state.rflags as i64), want),
    }
    for (name, got) in [("fpu tags", tags(stop)), ("fpu status", state.xsave.fsw().into())] {
        let want = next();
        if Value::Integer(got) != want {
            return differ(name, Value::Integer(got), want);
        }
    }
    let top = usize::from(state.xsave.fsw() >> 11 & 7);
    for (i, want) in x87.into_iter().enumerate() {
        let got = double(state.xsave.st(i));
        match want {
            Value::Real(real) if real == got || real.is_nan() && got.is_nan() => {}
            Value::Invalid => {}
            _ => return differ(&format!("st{i}"), Value::Real(got), want),
        }
        // The debugger that wrote the fixtures counts from ST(0) in the wrong direction.
        let register = (i + 8 - top) & 7;
        let significand = state.xsave.st(i).0.to_le_bytes();
        for half in 0..2 {
            let (got, want) = (word(&significand, half), mmx[2 * register + half]);
            if got != want {
                return differ(&format!("half {half} of mm{register}"), got, want);
            }
        }
    }
    Ok(())
}

fn judge(user: &mut User, dir: &Path, name: &str) -> Result<(), String> {
    let read = |extension: &str| {
        let file = dir.join(format!("{name}.{extension}"));
        std::fs::read(&file).map_err(|e| format!("{extension}: {e}"))
    };
    let expected = fixture(&String::from_utf8_lossy(&read("fixture")?)).ok_or("not a fixture")?;
    user.clear();
    let entry = load(user, &read("img")?)?;
    // The programs bring their own stack; Linux would give one near the top.
    let stop = user.run(32, entry, 0xffff_d000)?;
    compare(user, &stop, &expected)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, engine, only @ ..] = args.as_slice() else {
        eprintln!("suite_v86 DIR ENGINE [NAME...]");
        return ExitCode::FAILURE;
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        eprintln!("suite_v86: {dir}: no such folder");
        return ExitCode::FAILURE;
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".img").map(str::to_owned))
        .filter(|name| only.is_empty() || only.contains(name))
        .collect();
    names.sort();
    let mut user = match User::new("max", engine) {
        Ok(user) => user,
        Err(why) => {
            eprintln!("suite_v86: {why}");
            return ExitCode::FAILURE;
        }
    };
    for name in &names {
        if let Err(why) = judge(&mut user, Path::new(dir), name) {
            println!("{name} fail {why}");
        }
    }
    println!("total {}", names.len());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_numbers_become_the_nearest_double() {
        for (bits, want) in [
            ((1 << 63, 0x3fff), 1.0),
            ((1 << 63, 0xc000), -2.0),
            ((0xc90f_daa2_2168_c235, 0x4000), std::f64::consts::PI),
            ((u64::MAX, 0x3ffe), 1.0),
            ((1 << 63, 0x3fff - 1074), f64::from_bits(1)),
            ((u64::MAX, 0x7ffe), f64::INFINITY),
            ((1, 0), 0.0),
            ((1 << 63, 0x7fff), f64::INFINITY),
        ] {
            assert_eq!(double(bits), want, "{bits:x?}");
        }
        assert!(double((3 << 62, 0xffff)).is_nan());
    }

    #[test]
    fn fixtures_are_numbers_between_two_marks() {
        let numbers = vec!["1"; 2115].join(", ");
        let text =
            format!("Catchpoint 2 (signal SIGILL), 0x1\n---BEGIN JSON---\n[{numbers}, -7]\n---END JSON---\n");
        let fixture = fixture(&text).unwrap();
        assert_eq!((fixture.signal.as_deref(), fixture.values[2115]), (Some("SIGILL"), Value::Integer(-7)));
        assert_eq!(value("\"invalid\""), Some(Value::Invalid));
        assert_eq!(value("-inf"), Some(Value::Real(f64::NEG_INFINITY)));
        assert_eq!(value("1.5e+01"), Some(Value::Real(15.0)));
    }
}
