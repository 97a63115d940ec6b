//! The host's own processor as an oracle: random instructions run there and in the interpreter.
//!
//! [`native`] runs an instruction in user mode at fixed addresses and reports registers, memory
//! and faults; [`guest`] runs the same bytes at the same linear addresses in a small machine.
//! What differs is a mistake, or an entry in the reviewed list of [`compare`].
#![cfg(target_arch = "x86_64")]

pub mod compare;
pub mod generate;
pub mod guest;
pub mod native;

use crate::frontend::effects::Features;
use anura_x86::XsaveImage;
use compare::Verdict;
use generate::{Case, Generator, Random, WINDOWS, Width};
use guest::Guest;
use native::Native;
use std::collections::BTreeMap;
use std::io;

/// Linear address of the code.
pub const CODE: u64 = 0x1100_0000;
/// Bytes of code: slots of 64 bytes that are used in turn.
pub const CODE_BYTES: usize = 256 << 10;
/// Offset in a slot that taken branches go to.
pub const TAKEN: usize = 0x20;
/// Linear address of the data: two writable pages, one read-only, one absent.
pub const DATA: u64 = 0x2000_0000;
/// Number of data pages.
pub const DATA_PAGES: u64 = 4;

/// x87, SSE and AVX registers.
pub type FpImage = XsaveImage;

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code, zero if there is none.
    pub error: u32,
    /// CR2 (page faults).
    pub cr2: u64,
}

/// The registers after an instruction.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// General registers.
    pub gpr: [u64; 16],
    /// Where execution stands.
    pub rip: u64,
    /// Flags.
    pub flags: u64,
    /// Vector and x87 registers.
    pub fp: FpImage,
    /// The exception, if there was one.
    pub trap: Option<Trap>,
}

/// What a run found.
#[derive(Default)]
pub struct Report {
    /// Cases run on both sides.
    pub cases: u64,
    /// Cases that the interpreter had the host run.
    pub thunk_cases: u64,
    /// Cases that faulted.
    pub faults: u64,
    /// Cases with other values in flags that the manual leaves undefined.
    pub undefined: u64,
    /// Cases with a difference.
    pub differences: u64,
    /// Cases and differences of each encoding, by name.
    pub encodings: BTreeMap<String, Tally>,
    /// The first differences of each encoding, in words.
    pub examples: Vec<String>,
}

/// Counts of one encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Cases.
    pub cases: u64,
    /// Cases that ran through without a fault.
    pub completed: u64,
    /// Differences.
    pub differences: u64,
    /// The host ran it.
    pub thunk: bool,
}

/// Bytes before and behind each window's centre that operands can reach: FXRSTOR reads 512.
const REACH: usize = 640;

/// Runs of the windows' bytes, as (offset, length): the absent page is not there.
fn windows() -> [(usize, usize); 4] {
    WINDOWS.map(|w| {
        let w = w as usize;
        (w - REACH, if w == 0x3000 { REACH } else { 2 * REACH })
    })
}

/// The interpreter's side for one width.
fn side(width: Width, random: &mut Random) -> (Guest, Generator) {
    let guest = Guest::new(width);
    let generator = Generator::new(guest.features(), width, random);
    (guest, generator)
}

/// Both sides and the generator.
pub struct Oracle {
    native: Native,
    guest: Guest,
    generator: Generator,
    width: Width,
    random: Random,
    /// What the data windows hold before each case.
    master: Vec<u8>,
    slot: usize,
}

impl Oracle {
    /// Sets both sides up. Once per process.
    pub fn new(seed: u64) -> io::Result<Self> {
        let mut random = Random::new(seed);
        let (guest, generator) = side(Width::Bits64, &mut random);
        let native = Native::new()?;
        let width = Width::Bits64;
        let master = vec![0; 0x3000];
        let mut oracle = Self { native, guest, generator, width, random, master, slot: 0 };
        oracle.refill()?;
        Ok(oracle)
    }

    /// From now on cases are code of this width.
    pub fn set_width(&mut self, width: Width) -> io::Result<()> {
        if width != self.width {
            (self.guest, self.generator) = side(width, &mut self.random);
            self.width = width;
        }
        self.refill()
    }

    /// New random data in the windows on both sides.
    fn refill(&mut self) -> io::Result<()> {
        for (at, len) in windows() {
            for i in (at..at + len).step_by(8) {
                let v = self.random.value();
                self.master[i..i + 8].copy_from_slice(&v.to_le_bytes());
            }
            self.native.set_data(at, &self.master[at..at + len])?;
            self.guest.set_data(at, &self.master[at..at + len]);
        }
        Ok(())
    }

    /// Names of the encodings, and whether the host runs them.
    pub fn encodings(&self) -> impl Iterator<Item = (String, bool)> + '_ {
        self.generator.encodings.iter().map(|e| (format!("{:?}", e.code), e.thunk))
    }

    /// Runs about `cases` cases, spread evenly over the encodings whose name contains `only`.
    pub fn run(&mut self, cases: u64, only: Option<&str>, report: &mut Report) -> io::Result<()> {
        let chosen: Vec<usize> = (0..self.generator.encodings.len())
            .filter(|n| only.is_none_or(|o| format!("{:?}", self.generator.encodings[*n].code).contains(o)))
            .collect();
        let mut tallies = vec![Tally::default(); self.generator.encodings.len()];
        let mut done = 0;
        while done < cases && !chosen.is_empty() {
            let before = done;
            for n in &chosen {
                for _ in 0..4 {
                    let drawn = (0..8).find_map(|_| self.generator.case(*n, self.slot, &mut self.random));
                    let Some(case) = drawn else { continue };
                    self.judge(&case, &mut tallies[*n], report)?;
                    done += 1;
                }
            }
            self.refill()?;
            if done == before {
                break;
            }
        }
        for (n, t) in tallies.iter().enumerate().filter(|(n, _)| chosen.contains(n)) {
            let e = &self.generator.encodings[n];
            let tail = if self.width == Width::Bits32 { " (32-bit code)" } else { "" };
            let entry = report.encodings.entry(format!("{:?}{tail}", e.code)).or_default();
            entry.cases += t.cases;
            entry.completed += t.completed;
            entry.differences += t.differences;
            entry.thunk = e.thunk;
        }
        Ok(())
    }

    fn judge(&mut self, case: &Case, tally: &mut Tally, report: &mut Report) -> io::Result<()> {
        let (difference, undefined, fault) = self.one(case)?;
        report.cases += 1;
        tally.cases += 1;
        report.undefined += u64::from(undefined);
        report.faults += u64::from(fault);
        tally.completed += u64::from(!fault);
        report.thunk_cases += u64::from(self.generator.encodings[case.encoding].thunk);
        if let Some(text) = difference {
            report.differences += 1;
            tally.differences += 1;
            if tally.differences <= 3 {
                let (case, text) = self.shrink(case.clone(), text)?;
                report.examples.push(self.describe(&case, &text));
            }
        }
        Ok(())
    }

    /// Runs a case on both sides: the difference, undefined flags, and whether it faulted.
    fn one(&mut self, case: &Case) -> io::Result<(Option<String>, bool, bool)> {
        let offset = (case.instruction.ip() - CODE) as usize;
        self.slot = (offset + 64) % CODE_BYTES;
        let bytes = &case.bytes[..case.len];
        self.native.place(offset, bytes, self.width);
        self.guest.place(offset, bytes);
        let patched = case.patch.map(|(at, value)| {
            let mut old = [0; 8];
            old.copy_from_slice(&self.master[at..at + 8]);
            self.master[at..at + 8].copy_from_slice(&value.to_le_bytes());
            (at, old)
        });
        if let Some((at, _)) = patched {
            self.native.set_data(at, &self.master[at..at + 8])?;
            self.guest.set_data(at, &self.master[at..at + 8]);
        }
        let mut own;
        let mut fp = &self.generator.images[case.fp];
        if let Some((n, v)) = case.vector {
            own = fp.clone();
            for (i, w) in v.iter().enumerate() {
                let at = if i < 2 { 160 } else { 576 } + n * 16 + (i & 1) * 8;
                own.set_u64_at(at, *w);
            }
            fp = &own;
        }
        let host = self.native.run(case, fp, self.width);
        let ours = self.guest.run(offset, &case.gpr, case.flags, fp);
        let verdict = match &ours {
            Ok(ours) => compare::difference(case, &host, ours, self.width),
            Err(e) => Verdict { text: Some(format!(" {e};")), ..Verdict::default() },
        };
        let mut text = verdict.text;
        if let Some(memory) = self.settle_memory()?
            && !verdict.excused
        {
            text = Some(text.unwrap_or_default() + &memory);
        }
        if let Some((at, old)) = patched {
            self.master[at..at + 8].copy_from_slice(&old);
            self.native.set_data(at, &old)?;
            self.guest.set_data(at, &old);
        }
        Ok((text, verdict.undefined, host.trap.is_some()))
    }

    /// Compares the data windows of both sides, and puts back what a case has changed.
    fn settle_memory(&mut self) -> io::Result<Option<String>> {
        let mut text = None;
        for (at, len) in windows() {
            let mut ours = [0; 2 * REACH];
            let ours = &mut ours[..len];
            self.guest.data(at, ours);
            let same = {
                let host = self.native.data(at, len);
                if host != ours && text.is_none() {
                    let first = host.iter().zip(ours.iter()).position(|(h, o)| h != o).unwrap_or(0);
                    let end = (first + 8).min(len);
                    text = Some(format!(
                        " memory at {:#x}: host {:02x?}, ours {:02x?};",
                        DATA + (at + first) as u64,
                        &host[first..end],
                        &ours[first..end]
                    ));
                }
                host == &self.master[at..at + len]
            };
            if !same {
                self.native.set_data(at, &self.master[at..at + len])?;
            }
            if ours != &self.master[at..at + len] {
                self.guest.set_data(at, &self.master[at..at + len]);
            }
        }
        Ok(text)
    }

    /// Zeroes registers and flags as long as the difference stays.
    fn shrink(&mut self, mut case: Case, mut text: String) -> io::Result<(Case, String)> {
        for step in 0..24 {
            let mut simpler = case.clone();
            match step {
                0..16 => simpler.gpr[step] = 0,
                16..22 => simpler.flags &= !(1 << [0, 2, 4, 6, 7, 11][step - 16]),
                22 => simpler.flags &= !0x400,
                _ => simpler.patch = None,
            }
            if let (Some(still), ..) = self.one(&simpler)? {
                (case, text) = (simpler, still);
            }
        }
        Ok((case, text))
    }

    fn describe(&self, case: &Case, text: &str) -> String {
        let bytes: Vec<String> = case.bytes[..case.len].iter().map(|b| format!("{b:02x}")).collect();
        let i = &case.instruction;
        let mut line = format!("{:?} [{}]", i.code(), bytes.join(" "));
        for (n, v) in case.gpr.iter().enumerate().filter(|(_, v)| **v != 0) {
            line += &format!(" r{n}={v:#x}");
        }
        let fp = &self.generator.images[case.fp];
        line += &format!(" flags={:#x}", case.flags);
        if self.generator.encodings[case.encoding].thunk {
            line += &format!(
                " mxcsr={:#x} fcw={:#x} fsw={:#x} ftw={:#x}",
                fp.mxcsr(),
                fp.fcw(),
                fp.fsw(),
                fp.ftw()
            );
        }
        if let Some((at, v)) = case.patch {
            line += &format!(" [{:#x}]={v:#x}", DATA + at as u64);
        }
        format!("{line}\n   {text}")
    }
}

impl Guest {
    /// What its processor can decode.
    pub fn features(&self) -> Features {
        Features::of(self.model())
    }
}
