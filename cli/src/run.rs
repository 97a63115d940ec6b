//! From a parsed command line to a running machine and an exit code.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anura_chardev::terminal;
use anura_machine::config::{AccelConfig, MachineConfig};
use anura_machine::{Machine, logging};
use anura_monitor::Monitor;
use anura_vmcore::trace;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::options::{self, Parsed};
use crate::{daemon, engines, log_file};

/// Runs the emulator with these arguments (without the program's name); the exit code.
pub fn main(arguments: &[String]) -> i32 {
    let parsed = match options::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return fail(&error),
    };
    match parsed {
        Parsed::Print(text) => {
            // A reader that has seen enough is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Parsed::Run(config) => {
            let result = run(*config);
            terminal::restore();
            match result {
                Ok(code) => code,
                Err(error) => fail(error.as_ref()),
            }
        }
    }
}

/// An error with its causes in one line.
fn in_one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = next.source();
    }
    line.replace('\n', " ")
}

fn fail(error: &dyn Error) -> i32 {
    eprintln!("anura: {}", in_one_line(error));
    1
}

/// Removes the file with our process id when the emulator ends.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<Self, String> {
        let text = format!("{}\n", std::process::id());
        match std::fs::write(&path, text) {
            Ok(()) => Ok(Self(path)),
            Err(e) => Err(format!("-pidfile {}: cannot create PID file: {e}", path.display())),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sets up logs and traces as `-d`, `-D` and `-trace` say.
fn set_up_logs(config: &MachineConfig) -> Result<(), String> {
    let log = &config.log;
    logging::set_items(&log.items.join(",")).map_err(|e| format!("-d {}: {e}", log.items.join(",")))?;
    let file = match &log.file {
        None => None,
        Some(path) => {
            let file = File::create(path)
                .map_err(|e| format!("-D {}: cannot open the log file: {e}", path.display()))?;
            Some(file)
        }
    };
    log_file::install(file, log.timestamps);
    for pattern in &log.trace {
        if trace::set_by_pattern(pattern) == 0 {
            return Err(format!("-trace {pattern}: no event of that name; -trace help lists them"));
        }
    }
    Ok(())
}

fn run(mut config: MachineConfig) -> Result<i32, Box<dyn Error>> {
    config.data_dirs.extend(anura_machine::roms::DATA_DIRS.map(PathBuf::from));
    set_up_logs(&config)?;
    let mut said = Vec::new();
    let engine = engines::choose(&config, &mut |line| said.push(line))?;
    // Before any thread is made: the process that stays is a child of this one.
    let daemon = if config.daemonize { Some(daemon::Daemon::start()?) } else { None };
    if let Some(code) = daemon.as_ref().and_then(daemon::Daemon::parent_result) {
        return Ok(code);
    }
    let pidfile = config.pidfile.clone().map(PidFile::write).transpose()?;
    let (paused, monitors, incoming) =
        (config.start_paused, config.monitors.clone(), config.incoming.clone());
    let (board, asked) = (config.board.clone(), config.accel.clone());
    let machine = Machine::new(config, engine.as_ref())?;
    machine.set_engines(Box::new(move |name| {
        let names = engines::BUILT_IN.join(", ");
        // With the options that the command line has for it.
        let accel = asked.iter().find(|a| a.name == name).cloned();
        engines::make(&accel.unwrap_or_else(|| AccelConfig::named(name)), &board)
            .ok_or_else(|| format!("accel {name}: not in this build, which has {names}"))
    }));
    machine.set_migrator(Box::new(|machine, uri| {
        anura_migration::save_to(machine, uri).map_err(|e| in_one_line(&e))
    }));
    // Monitors come after the devices: on a shared line the first one has the input.
    for monitor in &monitors {
        let chardev = machine.chardev(&monitor.chardev).ok_or_else(|| {
            format!("-mon chardev={}: no chardev of that id; define it with -chardev", monitor.chardev)
        })?;
        Monitor::attach(chardev.claim()?, Arc::new(machine.clone()));
    }
    watch_signals(&machine)?;
    if let Some(daemon) = daemon {
        daemon.ready();
    }
    match incoming.as_deref() {
        Some("defer") => {}
        Some(uri) => {
            anura_migration::load_from(&machine, uri)
                .map_err(|e| format!("-incoming {uri}: {}", in_one_line(&e)))?;
            machine.incoming_done(!paused);
        }
        None if !paused => machine.start(),
        None => {}
    }
    // Only now: a mistake of the user is told alone.
    said.iter().for_each(|line| eprintln!("anura: {line}"));
    let code = machine.run();
    machine.close();
    drop(pidfile);
    Ok(code)
}

/// SIGINT, SIGTERM and SIGHUP end the emulator in good order; SIGCONT takes the terminal again.
fn watch_signals(machine: &Machine) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCONT])?;
    let machine = machine.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGCONT {
                terminal::reapply();
                continue;
            }
            eprintln!("anura: terminating on signal {signal}");
            machine.exit(0);
        }
    })?;
    Ok(())
}
