//! Compares the interpreter with the host's own processor, instruction by instruction.
//!
//! `fuzz_cpu [--cases N] [--seed N] [--only TEXT] [--min N] [--list]`: runs N cases (10^7 by
//! default, a quarter of them in 32-bit code) over all encodings the guest can have, prints totals, the encodings with the fewest
//! cases, and the first differences, and exits with 1 if there was one.
#![forbid(unsafe_code)]

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
    seed: u64,
    min: u64,
    only: Option<String>,
    list: bool,
}

#[cfg(target_arch = "x86_64")]
fn options() -> Result<Options, String> {
    let mut o = Options { cases: 10_000_000, seed: 1, min: 200, only: None, list: false };
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        if a == "--list" {
            o.list = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{a} needs a value"))?;
        let number = || value.replace('_', "").parse().map_err(|_| format!("{a} {value}: not a number"));
        match a.as_str() {
            "--cases" => o.cases = number()?,
            "--seed" => o.seed = number()?,
            "--min" => o.min = number()?,
            "--only" => o.only = Some(value),
            _ => return Err(format!("unknown option {a}")),
        }
    }
    Ok(o)
}

#[cfg(target_arch = "x86_64")]
fn run() -> Result<bool, Box<dyn std::error::Error>> {
    use anura_accel_tcg::oracle::generate::Width;
    use anura_accel_tcg::oracle::{Oracle, Report};
    let o = options()?;
    let mut oracle = Oracle::new(o.seed)?;
    if o.list {
        for (name, thunk) in oracle.encodings() {
            println!("{name}{}", if thunk { " (host)" } else { "" });
        }
        return Ok(true);
    }
    let mut report = Report::default();
    let start = std::time::Instant::now();
    oracle.run(o.cases - o.cases / 4, o.only.as_deref(), &mut report)?;
    oracle.set_width(Width::Bits32)?;
    oracle.run(o.cases / 4, o.only.as_deref(), &mut report)?;
    let seconds = start.elapsed().as_secs_f64();
    report.examples.iter().for_each(|e| println!("{e}"));
    let rate = report.cases as f64 / seconds;
    println!("{} cases in {seconds:.1} s, {rate:.0} per second, seed {}", report.cases, o.seed);
    let own = report.cases - report.thunk_cases;
    println!("{own} interpreted, {} run by the host (thunks)", report.thunk_cases);
    println!("{} faulted, {} differed in undefined flags only", report.faults, report.undefined);
    let few: Vec<_> = report.encodings.iter().filter(|(_, t)| t.cases < o.min).collect();
    let least = report.encodings.values().map(|t| t.cases).min().unwrap_or(0);
    println!(
        "{} encodings ({} by the host), at least {least} cases each",
        report.encodings.len(),
        report.encodings.values().filter(|t| t.thunk).count()
    );
    for (name, t) in &few {
        println!("  only {} cases of {name}", t.cases);
    }
    let never: Vec<_> =
        report.encodings.iter().filter(|(_, t)| t.completed == 0).map(|(n, _)| n.as_str()).collect();
    println!("{} encodings never completed (they faulted): {}", never.len(), never.join(" "));
    for (name, t) in report.encodings.iter().filter(|(_, t)| t.differences != 0) {
        println!("  {name}: {} of {} differ", t.differences, t.cases);
    }
    println!("{} differences", report.differences);
    Ok(report.differences == 0 && few.is_empty())
}
