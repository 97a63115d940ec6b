//! `/fmt` and memory dumps: `x`, `xp`, `p`, `i`.

use std::fmt::Write;

use anura_machine::control::MachineControl;
use anura_memory::{PAGE_SIZE, Requester};
use anura_x86::segment::index;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

/// Elements of one dump: a mistyped count must end.
const MAX_COUNT: u64 = 1 << 20;

/// How values are shown: count, form, size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) count: u64,
    /// x d u o c i.
    pub(crate) form: char,
    /// Bytes of a value.
    pub(crate) size: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self { count: 1, form: 'x', size: 4 }
    }
}

impl Format {
    /// Reads `/fmt` from the front of `text` if it is there; the rest follows. Count falls back to 1,
    /// the others to `last`.
    pub(crate) fn parse(text: &str, last: Format) -> Result<(Format, &str), String> {
        let mut format = Format { count: 1, ..last };
        let text = text.trim_start();
        let Some(spec) = text.strip_prefix('/') else { return Ok((format, text)) };
        let digits = spec.find(|c: char| !c.is_ascii_digit()).unwrap_or(spec.len());
        if digits > 0 {
            let count = spec[..digits].parse().ok().filter(|n| *n <= MAX_COUNT);
            format.count = count.ok_or_else(|| format!("count is too large (at most {MAX_COUNT})"))?;
        }
        let (mut rest, mut size) = (&spec[digits..], None);
        while let Some(c) = rest.chars().next().filter(|c| *c != ' ') {
            match c {
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' => format.form = c,
                'b' => size = Some(1),
                'w' => size = Some(4),
                'h' => size = Some(2),
                'g' | 'L' => size = Some(8),
                _ => return Err(format!("invalid char in format: '{c}'")),
            }
            rest = &rest[c.len_utf8()..];
        }
        format.size = match (format.form, size) {
            ('c', _) => 1,
            (_, Some(size)) => size,
            (_, None) => last.size,
        };
        Ok((format, rest))
    }

    /// A value in this form, as wide as the widest of its size.
    fn value(self, value: u64) -> String {
        let bits = self.size * 8;
        let value = value & (u64::MAX >> (64 - bits));
        let decimal = (bits * 10).div_ceil(33);
        match self.form {
            'x' => format!("0x{value:0w$x}", w = self.size * 2),
            'o' => {
                let text = if value == 0 { "0".to_owned() } else { format!("0{value:o}") };
                format!("{text:>w$}", w = bits.div_ceil(3))
            }
            'u' => format!("{value:>decimal$}"),
            'c' => character(value as u8),
            _ => {
                let signed = ((value as i64) << (64 - bits)) >> (64 - bits);
                format!("{signed:>decimal$}")
            }
        }
    }

    /// A value alone, as `p` shows it.
    pub(crate) fn plain(self, value: u64) -> String {
        match self.form {
            'x' => format!("{value:#x}"),
            'o' if value == 0 => "0".into(),
            'o' => format!("0{value:o}"),
            'u' => value.to_string(),
            'c' => character(value as u8),
            _ => (value as i64).to_string(),
        }
    }
}

fn character(byte: u8) -> String {
    let inside = match byte {
        b'\'' => "\\'".into(),
        b'\\' => "\\\\".into(),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        0x20..=0x7e => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("'{inside}'")
}

/// Where a dump reads.
pub(crate) struct Source<'a> {
    pub(crate) machine: &'a dyn MachineControl,
    /// The vCPU whose page tables count; physical addresses if none.
    pub(crate) cpu: Option<u32>,
}

impl Source<'_> {
    /// Reads bytes; false if any of them cannot be read.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let memory = self.machine.memory();
        let mut done = 0;
        while done < buf.len() {
            let va = at.wrapping_add(done as u64);
            let n = ((PAGE_SIZE - va % PAGE_SIZE) as usize).min(buf.len() - done);
            let pa = match self.cpu {
                Some(cpu) => self.machine.translate(cpu, va),
                None => Some(va),
            };
            let Some(pa) = pa else { return false };
            if !memory.read_bytes(pa, &mut buf[done..done + n], Requester::Monitor).is_ok() {
                return false;
            }
            done += n;
        }
        true
    }

    /// The text of a dump.
    pub(crate) fn dump(&self, at: u64, format: Format) -> String {
        if format.form == 'i' {
            return self.disassemble(at, format.count);
        }
        let per_line = if format.size == 1 { 8 } else { 16 } / format.size as u64;
        let (mut out, mut done) = (String::new(), 0);
        while done < format.count {
            let row = at.wrapping_add(done * format.size as u64);
            let n = per_line.min(format.count - done);
            let mut bytes = [0; 16];
            let bytes = &mut bytes[..n as usize * format.size];
            if !self.read(row, bytes) {
                let _ = writeln!(out, "{row:016x}: Cannot access memory");
                break;
            }
            let _ = write!(out, "{row:016x}:");
            for value in bytes.chunks(format.size) {
                let mut raw = [0; 8];
                raw[..value.len()].copy_from_slice(value);
                let _ = write!(out, " {}", format.value(u64::from_le_bytes(raw)));
            }
            out.push('\n');
            done += n;
        }
        out
    }

    fn disassemble(&self, at: u64, count: u64) -> String {
        let state = self.machine.cpu_state(self.cpu.unwrap_or(0)).ok();
        let bits = state.map_or(64, |s| match s.is_64bit() {
            true => 64,
            false if s.seg[index::CS].attr.db() => 32,
            false => 16,
        });
        let (mut out, mut at, mut gas) = (String::new(), at, GasFormatter::new());
        gas.options_mut().set_uppercase_hex(false);
        gas.options_mut().set_gas_show_mnemonic_size_suffix(true);
        for _ in 0..count {
            let mut bytes = [0; 15];
            let Some(have) = (1..=15).rev().find(|n| self.read(at, &mut bytes[..*n])) else {
                let _ = writeln!(out, "0x{at:08x}:  Cannot access memory");
                break;
            };
            let mut decoder = Decoder::with_ip(bits, &bytes[..have], at, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let len = instruction.len().clamp(1, have);
            let mut text = String::new();
            gas.format(&instruction, &mut text);
            let hex: Vec<String> = bytes[..len].iter().map(|b| format!("{b:02x}")).collect();
            let _ = writeln!(out, "0x{at:08x}:  {:<24} {text}", hex.join(" "));
            at = at.wrapping_add(len as u64);
        }
        out
    }
}
