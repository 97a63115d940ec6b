//! From a parsed command line to a running machine and an exit code.

use std::error::Error;

use anura_machine::Machine;
use anura_machine::config::MachineConfig;

use crate::engines;
use crate::options::{self, Parsed};

/// Runs the emulator with these arguments (without the program's name); the exit code.
pub fn main(arguments: &[String]) -> i32 {
    let parsed = match options::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return fail(&error),
    };
    match parsed {
        Parsed::Print(text) => {
            print!("{text}");
            0
        }
        Parsed::Run(config) => match run(*config) {
            Ok(code) => code,
            Err(error) => fail(error.as_ref()),
        },
    }
}

/// Prints an error with its causes in one line.
fn fail(error: &dyn Error) -> i32 {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = next.source();
    }
    eprintln!("anura: {}", line.replace('\n', " "));
    1
}

fn run(config: MachineConfig) -> Result<i32, Box<dyn Error>> {
    let engine = engines::choose(&config, engines::built_in(), &mut |line| eprintln!("anura: {line}"))?;
    let paused = config.start_paused;
    let machine = Machine::new(config, engine.as_ref())?;
    if !paused {
        machine.start();
    }
    Ok(machine.run())
}
