//! `cargo xtask bench counted`: what counted time costs an engine of ours, on the tests of `bench cpu`. A guest in counted
//! time has a clock of its own, so these times are ours: from the line that says that a test runs to its result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{geometric_mean, guest};

const USAGE: &str = "usage: cargo xtask bench counted [OPTIONS]
  --only LIST      groups and tests (int)
  --rounds N       runs of each kind, in turn (3)
  --engine NAME    the engine (jit, or interp where there is none)
  --scale PERCENT  size of the tests (100)
  --anura PROGRAM  a built anura";

const COUNTED: [&str; 4] = ["-icount", "shift=1,sleep=off", "-rtc", "base=2020-01-01,clock=vm"];

/// Runs and prints.
pub fn run(args: &[&str]) -> Result<(), String> {
    let (mut only, mut rounds, mut scale) = ("int".to_owned(), 3u32, "100".to_owned());
    let (mut engine, mut anura) = (None, None);
    for pair in args.chunks(2) {
        let [option, value] = pair else { return Err(USAGE.into()) };
        match *option {
            "--only" => only = (*value).to_owned(),
            "--rounds" => rounds = value.parse().map_err(|_| USAGE)?,
            "--scale" => scale = (*value).to_owned(),
            "--engine" => engine = Some((*value).to_owned()),
            "--anura" => anura = Some(PathBuf::from(value)),
            _ => return Err(USAGE.into()),
        }
    }
    crate::with_cloud_guest()?;
    let disk = guest::ram_disk(&guest::build()?)?;
    let anura = anura.map_or_else(super::anura, Ok)?;
    let engine = engine.unwrap_or_else(|| super::default_engine(&anura));
    let mut words: Vec<String> = only.split(',').map(str::to_owned).collect();
    words.push(format!("{scale}%"));
    // The shortest of all rounds, and the checksum.
    let mut times: [BTreeMap<String, f64>; 2] = Default::default();
    let mut sums: BTreeMap<String, String> = BTreeMap::new();
    for round in 1..=rounds {
        for (times, extra) in times.iter_mut().zip([&[][..], &COUNTED[..]]) {
            let kind = if extra.is_empty() { "freely" } else { "counted" };
            eprintln!("xtask: round {round} of {rounds}, {engine} {kind}");
            let mut command = guest::machine(&anura, &engine, "1", &disk, &words);
            let outcome = guest::listen(command.args(extra), Duration::from_secs(600));
            if let Some(why) = outcome.failure {
                return Err(format!("{engine} {kind} {why}"));
            }
            for (test, time) in outcome.outer {
                let least = times.entry(test).or_insert(f64::INFINITY);
                *least = least.min(time);
            }
            for (test, (_, sum)) in outcome.results {
                if *sums.entry(test.clone()).or_insert_with(|| sum.clone()) != sum {
                    return Err(format!("{test}: the checksum is another one when it runs {kind}"));
                }
            }
        }
    }
    let [free, counted] = times;
    println!("{:28} {:>10} {:>10} {:>8}", "test", "free ms", "counted ms", "cost %");
    let mut ratios = Vec::new();
    for (test, free) in &free {
        let Some(counted) = counted.get(test) else { continue };
        ratios.push(counted / free);
        println!(
            "{test:28} {:10.2} {:10.2} {:8.1}",
            free / 1e6,
            counted / 1e6,
            (counted / free - 1.0) * 100.0
        );
    }
    if let Some(mean) = geometric_mean(ratios.into_iter()) {
        println!(
            "{:28} {:>10} {:>10} {:8.1}   aim 5 for int",
            "geometric mean",
            "",
            "",
            (mean - 1.0) * 100.0
        );
    }
    Ok(())
}
