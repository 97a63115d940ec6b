//! The host's own processor as an oracle: random instructions run there and on our engines.
//!
//! [`native`] runs an instruction in user mode at fixed addresses and reports registers, memory
//! and faults; [`guest`] runs the same bytes at the same linear addresses in a small machine.
//! What differs is a mistake, or an entry in the reviewed list of [`compare`].
//!
//! Each instruction that is drawn runs from many states: in an interpreter that has the host run vector and x87
//! instructions (thunks), in one that runs them in portable code, and in translated code.
#![cfg(target_arch = "x86_64")]

pub mod compare;
pub mod file;
pub mod generate;
pub mod guest;
pub mod native;

use crate::frontend::effects::Features;
use anura_x86::XsaveImage;
use anura_x86::regs::vector;
use compare::Verdict;
use generate::{Case, Generator, Random, WINDOWS, Width};
use guest::{Guest, Runner};
use native::Native;
use std::collections::BTreeMap;
use std::io;

/// Linear address of the code: no number that random data is likely to hold.
pub const CODE: u64 = 0x1193_b000;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// General registers.
    pub gpr: [u64; 16],
    /// Where execution stands.
    pub rip: u64,
    /// Flags.
    pub flags: u64,
    /// The exception, if there was one.
    pub trap: Option<Trap>,
}

/// What a run found.
#[derive(Default)]
pub struct Report {
    /// Cases run on the host and compared.
    pub cases: u64,
    /// Cases that an interpreter had the host run.
    pub thunk_cases: u64,
    /// Cases of vector and x87 instructions that an interpreter ran in portable code.
    pub soft_cases: u64,
    /// Cases that translated code ran.
    pub translated_cases: u64,
    /// Cases that faulted.
    pub faults: u64,
    /// Cases with other values in flags that the manual leaves undefined.
    pub undefined: u64,
    /// Cases that could be compared to the last place only.
    pub approximate: u64,
    /// Cases that an entry of the list excused.
    pub excused: u64,
    /// Cases with a difference.
    pub differences: u64,
    /// Page faults of the host that came out otherwise once and as ours when tried again.
    pub unrepeated: u64,
    /// Cases and differences of each encoding, by name.
    pub encodings: BTreeMap<String, Tally>,
    /// The first differences of each encoding, in words.
    pub examples: Vec<String>,
    /// The same as regression files.
    pub files: Vec<String>,
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
    /// Cases with other values in undefined flags.
    pub undefined: u64,
    /// Cases that could be compared to the last place only.
    pub approximate: u64,
    /// Cases that an entry of the list excused.
    pub excused: u64,
    /// The host ran it.
    pub thunk: bool,
}

/// Which of our engines run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// All.
    All,
    /// One.
    Only(Runner),
}

/// States that each instruction runs from.
const STATES: usize = 24;

/// Bytes before and behind each window's centre that operands can reach: FXRSTOR reads 512.
const REACH: usize = 640;

/// Runs of the windows' bytes, as (offset, length): the absent page is not there.
fn windows() -> [(usize, usize); 4] {
    WINDOWS.map(|w| {
        let w = w as usize;
        (w - REACH, if w == 0x3000 { REACH } else { 2 * REACH })
    })
}

/// One of our engines.
struct Side {
    guest: Guest,
    runner: Runner,
}

fn sides(which: Sides, width: Width) -> Vec<Side> {
    let side = |runner| Side { guest: Guest::new(width, runner), runner };
    match which {
        // The last is for vectors and the x87 alone: the interpreters differ nowhere else.
        Sides::All => [Runner::Thunks, Runner::Jit, Runner::Portable].map(side).into(),
        Sides::Only(runner) => vec![side(runner)],
    }
}

/// What came of a case.
#[derive(Default)]
struct Judged {
    text: Option<String>,
    faulted: bool,
    undefined: bool,
    approximate: bool,
    excused: bool,
    /// The host raised a page fault.
    host_page_fault: bool,
}

/// The host, the interpreters and the generator.
pub struct Oracle {
    native: Native,
    which: Sides,
    sides: Vec<Side>,
    generator: Generator,
    width: Width,
    random: Random,
    /// What the data windows hold before each case.
    master: Vec<u8>,
    slot: usize,
    batch: Vec<Case>,
}

impl Oracle {
    /// Sets all sides up. Once per process.
    pub fn new(seed: u64, which: Sides) -> io::Result<Self> {
        let mut random = Random::new(seed);
        let width = Width::Bits64;
        let sides = sides(which, width);
        let features = sides.first().map_or_else(Features::all, |s| s.guest.features());
        let generator = Generator::new(features, width, &mut random);
        let native = Native::new()?;
        let master = vec![0; 0x3000];
        let batch = Vec::with_capacity(STATES);
        let mut oracle = Self { native, which, sides, generator, width, random, master, slot: 0, batch };
        oracle.refill()?;
        Ok(oracle)
    }

    /// From now on cases are code of this width.
    pub fn set_width(&mut self, width: Width) -> io::Result<()> {
        if width != self.width {
            self.width = width;
            self.sides = sides(self.which, width);
            let features = self.sides.first().map_or_else(Features::all, |s| s.guest.features());
            self.generator = Generator::new(features, width, &mut self.random);
        }
        self.refill()
    }

    /// New interpreters, which have translated nothing yet.
    pub fn renew(&mut self) -> io::Result<()> {
        self.sides = sides(self.which, self.width);
        self.refill()
    }

    /// New random data in the windows on all sides.
    fn refill(&mut self) -> io::Result<()> {
        for (at, len) in windows() {
            for i in (at..at + len).step_by(8) {
                let v = self.random.value();
                self.master[i..i + 8].copy_from_slice(&v.to_le_bytes());
            }
            self.write_data(at, len)?;
        }
        Ok(())
    }

    /// Copies a part of the master to all sides.
    fn write_data(&mut self, at: usize, len: usize) -> io::Result<()> {
        let bytes = &self.master[at..at + len];
        self.native.set_data(at, bytes)?;
        self.sides.iter_mut().for_each(|s| s.guest.set_data(at, bytes));
        Ok(())
    }

    /// Names of the encodings, and whether the host runs them.
    pub fn encodings(&self) -> impl Iterator<Item = (String, bool)> + '_ {
        self.generator.encodings.iter().map(|e| (format!("{:?}", e.code), e.thunk))
    }

    /// Runs about `cases` cases, spread evenly over the encodings whose name contains `only`; until `stop` says so.
    pub fn run(
        &mut self,
        cases: u64,
        only: Option<&str>,
        report: &mut Report,
        mut stop: impl FnMut(&Report) -> bool,
    ) -> io::Result<()> {
        let chosen: Vec<usize> = (0..self.generator.encodings.len())
            .filter(|n| only.is_none_or(|o| format!("{:?}", self.generator.encodings[*n].code).contains(o)))
            .collect();
        let mut tallies = vec![Tally::default(); self.generator.encodings.len()];
        let begin = report.cases;
        'passes: while report.cases - begin < cases && !chosen.is_empty() {
            let before = report.cases;
            for n in &chosen {
                let drawn = (0..8).find_map(|_| self.generator.case(*n, self.slot, &mut self.random));
                let Some(case) = drawn else { continue };
                self.batch(case, &mut tallies[*n], report)?;
                if stop(report) {
                    break 'passes;
                }
            }
            self.refill()?;
            if report.cases == before {
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
            entry.undefined += t.undefined;
            entry.approximate += t.approximate;
            entry.excused += t.excused;
            entry.thunk = e.thunk;
        }
        Ok(())
    }

    /// Puts an instruction into the code of all sides.
    fn place(&mut self, case: &Case) {
        let offset = (case.instruction.ip() - CODE) as usize;
        self.slot = (offset + 64) % CODE_BYTES;
        let bytes = &case.bytes[..case.len];
        self.native.place(offset, bytes, self.width);
        self.sides.iter_mut().for_each(|s| s.guest.place(offset, bytes));
    }

    /// One instruction from many states.
    fn batch(&mut self, mut case: Case, tally: &mut Tally, report: &mut Report) -> io::Result<()> {
        let encoding = &self.generator.encodings[case.encoding];
        let (thunk, floats) = (encoding.thunk, encoding.floats);
        let writes = writes_memory(&case.instruction);
        self.place(&case);
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let mut lost = None;
        for k in 0..STATES {
            if k > 0 && !self.generator.state(&mut case, &mut self.random) {
                continue;
            }
            // What an instruction should have nothing to do with is looked at once in a while.
            let last = k + 1 == STATES;
            let judged = self.one(&case, writes || last, floats || k == 0)?;
            report.cases += 1;
            tally.cases += 1;
            tally.undefined += u64::from(judged.undefined);
            tally.approximate += u64::from(judged.approximate);
            tally.excused += u64::from(judged.excused);
            report.undefined += u64::from(judged.undefined);
            report.approximate += u64::from(judged.approximate);
            report.excused += u64::from(judged.excused);
            report.faults += u64::from(judged.faulted);
            tally.completed += u64::from(!judged.faulted);
            let ran = |runner| self.which == Sides::All || self.which == Sides::Only(runner);
            report.thunk_cases += u64::from(thunk && ran(Runner::Thunks));
            report.soft_cases += u64::from(thunk && ran(Runner::Portable));
            report.translated_cases += u64::from(ran(Runner::Jit));
            if let Some(text) = judged.text {
                // A host that moves or ages a page of ours has it absent for a moment, and its error code says so.
                if judged.host_page_fault && self.one(&case, true, true)?.text.is_none() {
                    report.unrepeated += 1;
                    continue;
                }
                lost = Some((case.clone(), text));
                break;
            }
            batch.push(case.clone());
        }
        if let Some((case, text)) = lost {
            report.differences += 1;
            tally.differences += 1;
            if tally.differences <= 3 {
                // It may have been an earlier one.
                let mut found = (case, text);
                for earlier in &batch {
                    if let Some(text) = self.one(earlier, true, true)?.text {
                        found = (earlier.clone(), text);
                        break;
                    }
                }
                let (case, text) = self.shrink(found.0, found.1)?;
                report.examples.push(self.describe(&case, &text));
                self.shrink_memory(&case)?;
                let file = self.file(&case)?;
                report.files.push(file);
                self.refill()?;
            }
        }
        self.batch = batch;
        Ok(())
    }

    /// Runs a case on all sides.
    fn one(&mut self, case: &Case, memory: bool, floats: bool) -> io::Result<Judged> {
        let offset = (case.instruction.ip() - CODE) as usize;
        let patched = case.patch.map(|(at, value)| {
            let mut old = [0; 8];
            old.copy_from_slice(&self.master[at..at + 8]);
            self.master[at..at + 8].copy_from_slice(&value.to_le_bytes());
            (at, old)
        });
        if let Some((at, _)) = patched {
            self.write_data(at, 8)?;
        }
        let own;
        let mut fp = &self.generator.images[case.fp];
        if let Some(v) = case.vector {
            own = with_vector(fp, v);
            fp = &own;
        }
        let fp = floats.then_some(fp);
        let host = self.native.run(case, fp, self.width);
        let host_page_fault = host.trap.is_some_and(|t| t.vector == vector::PF);
        let mut judged = Judged { faulted: host.trap.is_some(), host_page_fault, ..Judged::default() };
        let thunk = self.generator.encodings[case.encoding].thunk;
        let count = if thunk { self.sides.len() } else { self.sides.len().min(2) };
        for side in &mut self.sides[..count] {
            let verdict = match side.guest.run(offset, &case.gpr, case.flags, fp) {
                Ok(ours) => {
                    let images = floats.then(|| (self.native.fp(), side.guest.fp()));
                    compare::difference(
                        case,
                        &host,
                        &ours,
                        images,
                        side.runner == Runner::Portable,
                        self.width,
                    )
                }
                Err(e) => Verdict { text: Some(format!(" {e};")), ..Verdict::default() },
            };
            judged.undefined |= verdict.undefined;
            judged.excused |= verdict.excused;
            judged.approximate |= verdict.approximate;
            if let Some(text) = verdict.text {
                let name = side.runner.name();
                judged.text = Some(format!("{}{name}{text}", judged.text.unwrap_or_default()));
            }
        }
        if memory
            && let Some(text) = self.settle_memory(count)?
            && !judged.excused
        {
            judged.text = Some(judged.text.unwrap_or_default() + &text);
        }
        if let Some((at, old)) = patched {
            self.master[at..at + 8].copy_from_slice(&old);
            self.write_data(at, 8)?;
        }
        Ok(judged)
    }

    /// Compares the data windows of the host and the first sides, and puts back what a case has changed.
    fn settle_memory(&mut self, count: usize) -> io::Result<Option<String>> {
        let mut text = None;
        for (at, len) in windows() {
            let master = &self.master[at..at + len];
            let host = self.native.data(at, len);
            let mut ours = [0; 2 * REACH];
            let ours = &mut ours[..len];
            for side in &mut self.sides[..count] {
                side.guest.data(at, ours);
                if ours != host && text.is_none() {
                    let first = host.iter().zip(ours.iter()).position(|(h, o)| h != o).unwrap_or(0);
                    let end = (first + 8).min(len);
                    text = Some(format!(
                        " memory at {:#x}: host {:02x?}, ours {:02x?};",
                        DATA + (at + first) as u64,
                        &host[first..end],
                        &ours[first..end]
                    ));
                }
                if ours != master {
                    side.guest.set_data(at, master);
                }
            }
            if host != master {
                self.native.set_data(at, master)?;
            }
        }
        Ok(text)
    }

    /// Zeroes registers and flags as long as the difference stays.
    fn shrink(&mut self, mut case: Case, mut text: String) -> io::Result<(Case, String)> {
        for step in 0..26 {
            let mut simpler = case.clone();
            match step {
                0..16 => simpler.gpr[step] = 0,
                16..22 => simpler.flags &= !(1 << [0, 2, 4, 6, 7, 11][step - 16]),
                22 => simpler.flags &= !0x400,
                23 => simpler.patch = None,
                24 => simpler.fp = 0,
                _ => simpler.vector = None,
            }
            if let Some(still) = self.one(&simpler, true, true)?.text {
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

    /// Zeroes pieces of memory as long as the difference stays.
    fn shrink_memory(&mut self, case: &Case) -> io::Result<()> {
        for (at, len) in windows() {
            for piece in (at..at + len).step_by(64) {
                let old = self.master[piece..piece + 64].to_vec();
                self.master[piece..piece + 64].fill(0);
                self.write_data(piece, 64)?;
                if self.one(case, true, true)?.text.is_none() {
                    self.master[piece..piece + 64].copy_from_slice(&old);
                    self.write_data(piece, 64)?;
                }
            }
        }
        Ok(())
    }

    /// The case with what the host made of it, to be kept.
    fn file(&mut self, case: &Case) -> io::Result<String> {
        let mut fp = self.generator.images[case.fp].clone();
        if let Some(v) = case.vector {
            fp = with_vector(&fp, v);
        }
        let (master, native) = (&mut self.master, &mut self.native);
        if let Some((at, value)) = case.patch {
            master[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, len) in windows() {
            native.set_data(at, &master[at..at + len])?;
        }
        let host = native.run(case, Some(&fp), self.width);
        let after: Vec<u8> = native.data(0, 0x3000).to_vec();
        let text = file::write(case, self.width, &fp, master, &host, native.fp(), &after);
        for (at, len) in windows() {
            self.write_data(at, len)?;
        }
        Ok(text)
    }
}

/// Whether memory or the stack is written, by the decoder's list.
fn writes_memory(i: &iced_x86::Instruction) -> bool {
    use iced_x86::OpAccess::{CondRead, NoMemAccess, None, Read};
    let mut factory = iced_x86::InstructionInfoFactory::new();
    factory.info(i).used_memory().iter().any(|m| !matches!(m.access(), Read | CondRead | None | NoMemAccess))
}

fn with_vector(fp: &FpImage, (n, v): (usize, [u64; 4])) -> FpImage {
    let mut own = fp.clone();
    for (i, w) in v.iter().enumerate() {
        let at = if i < 2 { 160 } else { 576 } + n * 16 + (i & 1) * 8;
        own.set_u64_at(at, *w);
    }
    own
}

impl Guest {
    /// What its processor can decode.
    pub fn features(&self) -> Features {
        Features::of(self.model())
    }
}
