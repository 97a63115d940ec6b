//! The guest of `guests::adversary` on several engines: texts and states compared, memory told.
//!
//! Run as `cargo xtask soak adversary [ENGINE]...`, or here with `--rounds N`, `--seed N`, `--cpus N`, `--anura PROGRAM`, and
//! `--free` to run freely, where nothing but the end can be expected. `--rom FILE` only writes the guest.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anura_tests::guests::adversary::{self, Setup};

fn main() -> ExitCode {
    let mut engines = Vec::new();
    let mut counted = true;
    let mut built = None;
    let mut rom: Option<std::path::PathBuf> = None;
    let (mut rounds, mut seeds, mut cpus) = (100_000u32, vec![1u64], vec![1u32, 2]);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
        match arg.as_str() {
            "--rounds" => rounds = number() as u32,
            "--seed" => seeds = vec![number()],
            "--seeds" => seeds = (1..=number()).collect(),
            "--anura" => built = args.next().map(Into::into),
            "--rom" => rom = args.next().map(Into::into),
            "--free" => counted = false,
            "--cpus" => cpus = vec![number() as u32],
            engine => engines.push(engine.to_owned()),
        }
    }
    if let Some(file) = rom {
        let image = adversary::rom(cpus[0], rounds, seeds[0]).expect("the guest can be assembled");
        return match std::fs::write(&file, image) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("adversary: {}: {error}", file.display());
                ExitCode::FAILURE
            }
        };
    }
    if engines.is_empty() {
        engines.push("interp".into());
    }
    let Some(program) = built.or_else(anura_tests::anura) else {
        eprintln!("adversary: the anura program is not built");
        return ExitCode::FAILURE;
    };
    let mut good = true;
    for seed in seeds {
        for cpus in &cpus {
            let mut first = None;
            for engine in &engines {
                let dir = tempfile::tempdir().expect("a folder can be made");
                let start = Instant::now();
                let setup = Setup { cpus: *cpus, rounds, seed, counted };
                let limit = Duration::from_secs(3600);
                let run = match adversary::run(engine, &program, dir.path(), setup, limit) {
                    Ok(run) => run,
                    Err(error) => {
                        eprintln!("adversary: {error}");
                        good = false;
                        continue;
                    }
                };
                println!(
                    "{engine:16} {cpus} CPU, seed {seed}: {:6.1} s, {} MiB, {}",
                    start.elapsed().as_secs_f64(),
                    run.peak / 1024,
                    run.text.lines().filter(|line| line.contains("end")).collect::<Vec<_>>().join(" ")
                );
                if run.jit.contains("block") {
                    println!("{}", run.jit);
                }
                if first.is_none() {
                    println!("{}", run.text.split_once("end").map_or("", |(_, rest)| rest));
                }
                let (text, hash) = first.get_or_insert_with(|| (run.text.clone(), run.hash.clone()));
                if !counted {
                    continue;
                }
                if *text != run.text {
                    let line = text.lines().zip(run.text.lines()).position(|(a, b)| a != b);
                    println!("{engine} prints another text from line {line:?} on");
                    good = false;
                } else if *hash != run.hash {
                    println!("{engine} ends in another state:\n{}\n{hash}", run.hash);
                    good = false;
                }
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
