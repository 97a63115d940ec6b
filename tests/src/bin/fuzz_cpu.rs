//! Compares our engines with the host's own processor, instruction by instruction.
//!
//! `fuzz_cpu [--cases N] [--seconds N] [--seed N] [--only TEXT] [--min N] [--thunk | --no-thunk | --jit] [--save DIR] [--list]`:
//! runs N cases (10^7 by default, a quarter of them in 32-bit code) over all encodings the guest can have, prints
//! totals, the encodings with the fewest cases, what could not be compared in full, and the first differences, and
//! exits with 1 if there was one. Instructions run in the interpreter (those of vectors and the x87 with host functions,
//! thunks, and without them) and in translated code, unless one of these is asked for. `--save` writes a file for each difference, for `accel-tcg/filetests/oracle`.
//!
//! `fuzz_cpu --mutate [--only TEXT]` breaks the engine in one place at a time and looks whether that is found; it needs
//! the feature `mutants`. With `--jit` it is the emitter of translated code that is broken. A process that dies or
//! hangs has found something too, so each of these mistakes has one of its own (`--mutant N`), and what one instruction
//! at a time does not show is left to random programs (the tests `jit_sequences`, `jit_system` and `jit_windows`).
#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use anura_accel_tcg::oracle::generate::Width;
#[cfg(target_arch = "x86_64")]
use anura_accel_tcg::oracle::guest::Runner;
#[cfg(target_arch = "x86_64")]
use anura_accel_tcg::oracle::{Oracle, Report, Sides, Tally};
use std::process::ExitCode;

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    println!("skipped: the oracle needs an x86-64 host");
    ExitCode::SUCCESS
}

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    match run() {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(e) => {
            eprintln!("fuzz cpu: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct Options {
    cases: u64,
    seconds: Option<u64>,
    seed: u64,
    min: u64,
    only: Option<String>,
    save: Option<std::path::PathBuf>,
    sides: Sides,
    list: bool,
    mutate: bool,
    mutant: Option<u32>,
}

#[cfg(target_arch = "x86_64")]
fn options() -> Result<Options, String> {
    let mut o = Options {
        cases: 10_000_000,
        seconds: None,
        seed: 1,
        min: 200,
        only: None,
        save: None,
        sides: Sides::All,
        list: false,
        mutate: false,
        mutant: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--list" => o.list = true,
            "--mutate" => o.mutate = true,
            "--thunk" => o.sides = Sides::Only(Runner::Thunks),
            "--no-thunk" => o.sides = Sides::Only(Runner::Portable),
            "--jit" => o.sides = Sides::Only(Runner::Jit),
            _ => {
                let value = args.next().ok_or_else(|| format!("{a} needs a value"))?;
                let number =
                    || value.replace('_', "").parse().map_err(|_| format!("{a} {value}: not a number"));
                match a.as_str() {
                    "--cases" => o.cases = number()?,
                    "--seconds" => o.seconds = Some(number()?),
                    "--seed" => o.seed = number()?,
                    "--min" => o.min = number()?,
                    "--mutant" => o.mutant = Some(number()? as u32),
                    "--only" => o.only = Some(value),
                    "--save" => o.save = Some(value.into()),
                    _ => return Err(format!("unknown option {a}")),
                }
            }
        }
    }
    Ok(o)
}

#[cfg(target_arch = "x86_64")]
fn run() -> Result<bool, Box<dyn std::error::Error>> {
    use std::time::{Duration, Instant};
    let o = options()?;
    if o.mutate && o.sides == Sides::Only(Runner::Jit) {
        return mutate_emitter(&o);
    } else if o.mutate {
        return mutate(&o);
    } else if let Some(n) = o.mutant {
        return one_mutant(&o, n);
    }
    let mut oracle = Oracle::new(o.seed, o.sides)?;
    if o.list {
        for (name, thunk) in oracle.encodings() {
            println!("{name}{}", if thunk { " (host)" } else { "" });
        }
        return Ok(true);
    }
    let mut report = Report::default();
    let start = Instant::now();
    let cases = if o.seconds.is_some() { u64::MAX / 4 } else { o.cases };
    let until = |share: u64| {
        let end = o.seconds.map(|s| start + Duration::from_millis(s * 250 * share));
        move |_: &Report| end.is_some_and(|e| Instant::now() >= e)
    };
    oracle.run(cases - cases / 4, o.only.as_deref(), &mut report, until(3))?;
    oracle.set_width(Width::Bits32)?;
    oracle.run(cases / 4, o.only.as_deref(), &mut report, until(4))?;
    print(&report, &o, start.elapsed().as_secs_f64());
    if let Some(dir) = &o.save {
        std::fs::create_dir_all(dir)?;
        for (n, file) in report.files.iter().enumerate() {
            let name = file.lines().next().unwrap_or("").trim_start_matches("# ");
            std::fs::write(dir.join(format!("{name}-{n}.case")), file)?;
        }
    }
    let few = report.encodings.values().filter(|t| t.cases < o.min).count();
    Ok(report.differences == 0 && few == 0)
}

#[cfg(target_arch = "x86_64")]
fn print(report: &Report, o: &Options, seconds: f64) {
    report.examples.iter().for_each(|e| println!("{e}"));
    let rate = report.cases as f64 / seconds;
    println!("{} cases in {seconds:.1} s, {rate:.0} per second, seed {}", report.cases, o.seed);
    println!(
        "vector and x87 instructions: {} cases with host functions, {} in portable code; {} cases in translated code",
        report.thunk_cases, report.soft_cases, report.translated_cases
    );
    println!("{} faulted, {} differed in undefined flags only", report.faults, report.undefined);
    println!(
        "{} agreed to the last place only, {} were excused by the list of differences",
        report.approximate, report.excused
    );
    let few: Vec<_> = report.encodings.iter().filter(|(_, t)| t.cases < o.min).collect();
    let least = report.encodings.values().map(|t| t.cases).min().unwrap_or(0);
    println!(
        "{} encodings ({} of vectors and the x87), at least {least} cases each",
        report.encodings.len(),
        report.encodings.values().filter(|t| t.thunk).count()
    );
    for (name, t) in &few {
        println!("  only {} cases of {name}", t.cases);
    }
    let list = |what: &str, pick: fn(&Tally) -> bool| {
        let names: Vec<_> =
            report.encodings.iter().filter(|(_, t)| pick(t)).map(|(n, _)| n.as_str()).collect();
        println!("{} encodings {what}: {}", names.len(), names.join(" "));
    };
    list("never completed (they faulted)", |t| t.cases != 0 && t.completed == 0);
    list("with other values in undefined flags", |t| t.undefined != 0);
    list("compared to the last place", |t| t.approximate != 0);
    list("with excused cases", |t| t.excused != 0);
    for (name, t) in report.encodings.iter().filter(|(_, t)| t.differences != 0) {
        println!("  {name}: {} of {} differ", t.differences, t.cases);
    }
    if report.unrepeated != 0 {
        println!("{} page faults of the host came out as ours when tried again", report.unrepeated);
    }
    println!("{} differences", report.differences);
}

#[cfg(all(target_arch = "x86_64", not(feature = "mutants")))]
fn mutate(_: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    Err("built without the feature 'mutants'".into())
}

/// Switches on one mistake after the other; what no case shows within its time survives.
#[cfg(all(target_arch = "x86_64", feature = "mutants"))]
fn mutate(o: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    use anura_accel_tcg::mutants;
    use std::time::{Duration, Instant};
    let limit = Duration::from_secs(o.seconds.unwrap_or(60));
    let all = mutants::catalogue();
    let mut left: Vec<_> = all
        .iter()
        .filter(|(_, name)| o.only.as_ref().is_none_or(|only| name.contains(only.as_str())))
        .collect();
    let total = left.len();
    // What breaks the engine altogether need not be told.
    std::panic::set_hook(Box::new(|_| {}));
    let mut oracle = Oracle::new(o.seed, Sides::Only(Runner::Portable))?;
    let mut slowest = Duration::ZERO;
    // A short look in both kinds of code first, so that few wait for the long one.
    for (width, share) in
        [(Width::Bits64, 0.05), (Width::Bits32, 0.05), (Width::Bits64, 0.6), (Width::Bits32, 0.3)]
    {
        if left.is_empty() {
            break;
        }
        mutants::activate(None);
        oracle.set_width(width)?;
        let mut survivors = vec![];
        for entry in left {
            mutants::activate(None);
            oracle.renew()?;
            mutants::activate(Some(entry.0));
            let start = Instant::now();
            let mut report = Report::default();
            let end = limit.mul_f64(share);
            oracle.run(u64::MAX / 4, None, &mut report, |r| r.differences != 0 || start.elapsed() > end)?;
            if report.differences == 0 {
                survivors.push(entry);
                continue;
            }
            slowest = slowest.max(start.elapsed());
            let by = report.examples.first().and_then(|e| e.split(' ').next()).unwrap_or("");
            println!("killed after {:.2} s by {by}: {}", start.elapsed().as_secs_f64(), entry.1);
            if o.list {
                println!("  {}", report.examples.join(" "));
            }
            if let (Some(dir), Some(file)) = (&o.save, report.files.first()) {
                std::fs::create_dir_all(dir)?;
                std::fs::write(dir.join(format!("{:04}.case", entry.0.0)), file)?;
            }
        }
        left = survivors;
    }
    mutants::activate(None);
    let killed = total - left.len();
    left.iter().for_each(|e| println!("survived: {}", e.1));
    println!("{killed} of {total} mutants killed, the slowest after {:.1} s", slowest.as_secs_f64());
    Ok(killed * 100 >= total * 95)
}

#[cfg(all(target_arch = "x86_64", not(feature = "mutants")))]
fn one_mutant(o: &Options, _: u32) -> Result<bool, Box<dyn std::error::Error>> {
    mutate(o)
}

/// Looks for a difference with a mistake switched on.
#[cfg(all(target_arch = "x86_64", feature = "mutants"))]
fn one_mutant(o: &Options, n: u32) -> Result<bool, Box<dyn std::error::Error>> {
    use anura_accel_tcg::mutants::{self, Mutant};
    use std::time::{Duration, Instant};
    std::panic::set_hook(Box::new(|_| {}));
    mutants::activate(Some(Mutant(n)));
    let mut oracle = Oracle::new(o.seed, o.sides)?;
    let mut report = Report::default();
    for width in [Width::Bits64, Width::Bits32] {
        oracle.set_width(width)?;
        let end = Instant::now() + Duration::from_secs(o.seconds.unwrap_or(10)) / 2;
        oracle.run(u64::MAX / 4, None, &mut report, |r| r.differences != 0 || Instant::now() > end)?;
        if let Some(first) = report.examples.first() {
            println!("{}", first.split(' ').next().unwrap_or(""));
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(all(target_arch = "x86_64", not(feature = "mutants")))]
fn mutate_emitter(o: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    mutate(o)
}

/// Breaks the emitter in one place after the other; what neither single instructions nor random programs show survives.
#[cfg(all(target_arch = "x86_64", feature = "mutants"))]
fn mutate_emitter(o: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    use anura_accel_tcg::mutants;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    // What is written at all, and so can be written wrongly.
    let mut oracle = Oracle::new(o.seed, o.sides)?;
    for width in [Width::Bits64, Width::Bits32] {
        oracle.set_width(width)?;
        let mut report = Report::default();
        oracle.run(1_000_000, None, &mut report, |_| false)?;
        if report.differences != 0 {
            return Err("there are differences without any mistake".into());
        }
    }
    drop(oracle);
    let all: Vec<_> = mutants::emitter()
        .into_iter()
        .filter(|(_, name)| o.only.as_ref().is_none_or(|only| name.contains(only.as_str())))
        .collect();
    let limit = Duration::from_secs(60);
    let found = |command: &mut Command| -> std::io::Result<Option<String>> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                return Ok(Some("it hangs".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        if let Some(mut out) = child.stdout.take() {
            std::io::Read::read_to_string(&mut out, &mut said)?;
        }
        Ok(match status.code() {
            Some(0) => None,
            Some(_) => Some(said.lines().next().unwrap_or("").to_owned()),
            None => Some(format!("it dies ({status})")),
        })
    };
    let me = std::env::current_exe()?;
    let (mut single, mut survivors) = (0, vec![]);
    for (mutant, name) in &all {
        let (number, seconds) = (mutant.0.to_string(), o.seconds.unwrap_or(4).to_string());
        let mut alone = Command::new(&me);
        alone.args(["--jit", "--seconds", &seconds, "--mutant", &number]);
        if let Some(by) = found(&mut alone)? {
            println!("killed by {by}: {name}");
            single += 1;
            continue;
        }
        let mut programs = Command::new("cargo");
        programs.args([
            "test",
            "--release",
            "--quiet",
            "--package",
            "anura-accel-tcg",
            "--features",
            "mutants",
        ]);
        programs
            .args(["--test", "jit_sequences", "--test", "jit_system", "--test", "jit_windows"])
            .env("ANURA_MUTANT", &number);
        match found(&mut programs)? {
            Some(_) => println!("killed by programs: {name}"),
            None => survivors.push(name),
        }
    }
    survivors.iter().for_each(|name| println!("survived: {name}"));
    let killed = all.len() - survivors.len();
    println!("{killed} of {} mutants of the emitter killed, {single} by single instructions", all.len());
    Ok(killed * 100 >= all.len() * 95)
}
