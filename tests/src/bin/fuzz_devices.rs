//! Random traffic on all devices of a whole board.
//!
//! `fuzz_devices [--seconds N] [--seed N]`: prints the registers reached of each device and totals; exits with 1 on a
//! difference after saving and loading, and a panic ends it with its message.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anura_tests::device_fuzz::Fuzz;

/// Steps between two saved states.
const STRETCH: u64 = 5_000;

fn options() -> Result<(u64, u64), String> {
    let (mut seconds, mut seed) = (60, 1);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = value.parse().map_err(|_| format!("{name} {value}: not a number"))?;
        match name.as_str() {
            "--seconds" => seconds = number,
            "--seed" => seed = number,
            _ => return Err(format!("unknown option {name}; there are --seconds N and --seed N")),
        }
    }
    Ok((seconds, seed))
}

fn run() -> Result<(), String> {
    let (seconds, seed) = options()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut fuzz = Fuzz::new(seed);
    let mut steps = 0u64;
    loop {
        for _ in 0..STRETCH {
            fuzz.step();
        }
        steps += STRETCH;
        fuzz.round_trip().map_err(|e| format!("seed {seed}, step {steps}: {e}"))?;
        if Instant::now() >= end {
            break;
        }
        if steps.is_multiple_of(8 * STRETCH) {
            fuzz.reset();
        }
    }
    let (mut reached, mut total) = (0, 0);
    println!("{:<26} {:>9} {:>9}", "registers of", "reached", "share");
    for (name, coverage) in &fuzz.coverage {
        let (some, all) = (coverage.reached() as u64, coverage.total());
        println!("{name:<26} {:>9} {:>8}%", format!("{some}/{all}"), 100 * some / all.max(1));
        reached += some;
        total += all;
    }
    println!("all                        {reached}/{total}, {}%", 100 * reached / total.max(1));
    println!(
        "{} accesses, {} states saved and loaded without a difference, {} resets, seed {seed}",
        fuzz.accesses, fuzz.round_trips, fuzz.resets
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("fuzz devices: {message}");
            ExitCode::FAILURE
        }
    }
}
