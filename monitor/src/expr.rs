//! Expressions of the monitor: numbers, characters, registers, `+ - & | ^ * / % ~` and brackets.
//!
//! Products bind tightest, then the bitwise operators, then sums, as QEMU has it. Arithmetic is that
//! of 64-bit registers: it wraps.

use anura_machine::control::MachineControl;
use anura_x86::CpuState;
use anura_x86::segment::index;

/// Brackets and signs nest no deeper.
const MAX_DEPTH: usize = 64;

/// Reads an expression from the front of `text`; its value and what follows.
pub(crate) fn parse<'a>(
    text: &'a str,
    machine: &dyn MachineControl,
    cpu: u32,
) -> Result<(u64, &'a str), String> {
    let mut p = Parser { rest: text.trim_start(), machine, cpu, state: None, depth: 0 };
    let value = p.sum()?;
    Ok((value, p.rest))
}

struct Parser<'a, 'm> {
    rest: &'a str,
    machine: &'m dyn MachineControl,
    cpu: u32,
    state: Option<CpuState>,
    depth: usize,
}

impl Parser<'_, '_> {
    fn next(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip(&mut self, n: usize) {
        self.rest = self.rest[n..].trim_start();
    }

    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.logic()?;
        loop {
            match self.next() {
                Some('+') => {
                    self.skip(1);
                    value = value.wrapping_add(self.logic()?);
                }
                Some('-') => {
                    self.skip(1);
                    value = value.wrapping_sub(self.logic()?);
                }
                _ => return Ok(value),
            }
        }
    }

    fn logic(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        loop {
            let op = match self.next() {
                Some(c @ ('&' | '|' | '^')) => c,
                _ => return Ok(value),
            };
            self.skip(1);
            let other = self.product()?;
            value = match op {
                '&' => value & other,
                '|' => value | other,
                _ => value ^ other,
            };
        }
    }

    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.unary()?;
        loop {
            let op = match self.next() {
                Some(c @ ('*' | '/' | '%')) => c,
                _ => return Ok(value),
            };
            self.skip(1);
            let other = self.unary()?;
            value = match op {
                '*' => value.wrapping_mul(other),
                _ if other == 0 => return Err("division by zero".into()),
                '/' => value / other,
                _ => value % other,
            };
        }
    }

    fn unary(&mut self) -> Result<u64, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("expression too deep".into());
        }
        let value = self.unary_inner();
        self.depth -= 1;
        value
    }

    fn unary_inner(&mut self) -> Result<u64, String> {
        match self.next() {
            None => Err("unexpected end of expression".into()),
            Some('+') => {
                self.skip(1);
                self.unary()
            }
            Some('-') => {
                self.skip(1);
                Ok(self.unary()?.wrapping_neg())
            }
            Some('~') => {
                self.skip(1);
                Ok(!self.unary()?)
            }
            Some('(') => {
                self.skip(1);
                let value = self.sum()?;
                if self.next() != Some(')') {
                    return Err("')' expected".into());
                }
                self.skip(1);
                Ok(value)
            }
            Some('\'') => {
                let mut chars = self.rest.chars().skip(1);
                let c = chars.next().ok_or("character constant expected")?;
                if chars.next() != Some('\'') {
                    return Err("missing terminating ' character".into());
                }
                self.skip(2 + c.len_utf8());
                Ok(u64::from(u32::from(c)))
            }
            Some('$') => self.register(),
            Some(_) => self.number(),
        }
    }

    fn register(&mut self) -> Result<u64, String> {
        let body = &self.rest[1..];
        let end =
            body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(body.len());
        let name = &body[..end];
        if self.state.is_none() {
            self.state = Some(self.machine.cpu_state(self.cpu).map_err(|e| e.to_string())?);
        }
        let value = self.state.as_ref().and_then(|s| register(s, name));
        let value = value.ok_or_else(|| format!("unknown register '${name}'"))?;
        self.skip(1 + end);
        Ok(value)
    }

    fn number(&mut self) -> Result<u64, String> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let (digits, radix) = match word.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&word[2..], 16),
            [b'0', _, ..] => (&word[1..], 8),
            _ => (word, 10),
        };
        let value = u64::from_str_radix(digits, radix);
        let value =
            value.map_err(|_| format!("invalid char '{}' in expression", self.next().unwrap_or(' ')))?;
        self.skip(end);
        Ok(value)
    }
}

/// A register by its name in any width.
fn register(s: &CpuState, name: &str) -> Option<u64> {
    const NAMES: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    let name = name.to_ascii_lowercase();
    if let Some(i) = name.get(1..).and_then(|n| NAMES.iter().position(|m| *m == n)) {
        return match name.as_bytes()[0] {
            b'r' => Some(s.gpr[i]),
            b'e' => Some(s.gpr[i] & 0xffff_ffff),
            _ => None,
        };
    }
    if let Some(n) = name.strip_prefix('r').and_then(|n| n.parse::<usize>().ok()) {
        return s.gpr.get(n).copied().filter(|_| n >= 8);
    }
    let (segment, part) = name.split_once('.').unwrap_or((&name, ""));
    if let Some(i) = SEGMENTS.iter().position(|n| *n == segment) {
        let seg = &s.seg[i];
        return match part {
            "" => Some(seg.selector.into()),
            "base" => Some(seg.base),
            "limit" => Some(seg.limit.into()),
            _ => None,
        };
    }
    Some(match name.as_str() {
        "rip" => s.rip,
        "eip" => s.rip & 0xffff_ffff,
        "pc" => s.rip.wrapping_add(if s.is_64bit() { 0 } else { s.seg[index::CS].base }),
        "eflags" | "rflags" => s.rflags,
        "cr0" => s.cr0,
        "cr2" => s.cr2,
        "cr3" => s.cr3,
        "cr4" => s.cr4,
        "cr8" => s.cr8,
        "efer" => s.efer,
        "gdtr" | "gdtr.base" => s.gdtr.base,
        "idtr" | "idtr.base" => s.idtr.base,
        _ => return None,
    })
}
