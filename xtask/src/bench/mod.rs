//! Benchmarks that run whole programs beside each other: ours, QEMU's, and the host itself.

pub mod boot;
pub mod counted;
pub mod cpu;
mod guest;
pub mod latency;
mod report;

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The `anura` program of this build.
fn anura() -> Result<PathBuf, String> {
    crate::cargo(&["build", "--release", "--quiet", "--package", "anura"])?;
    Ok(crate::target_dir().join("release/anura"))
}

/// Whether this build of `anura` has the engine.
fn has_engine(anura: &PathBuf, engine: &str) -> bool {
    let status = Command::new(anura)
        .args([
            "-accel", engine, "-S", "-m", "16", "-display", "none", "-serial", "null", "-monitor", "stdio",
        ])
        .stdin(quit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// A monitor's input that ends it.
fn quit() -> Stdio {
    let echo = Command::new("echo").arg("quit").stdout(Stdio::piped()).spawn();
    echo.ok().and_then(|child| child.stdout).map_or_else(Stdio::null, Stdio::from)
}

/// The engine that is measured where none is named: the JIT, or the interpreter of a build without it.
fn default_engine(anura: &PathBuf) -> String {
    if has_engine(anura, "jit") { "jit".into() } else { "interp".into() }
}

/// What stands behind `-accel` for an engine of ours: with a thread for each processor where it knows the word.
fn accel(anura: &PathBuf, engine: &str) -> String {
    let words = format!("{engine},thread=multi");
    if engine == "jit" && has_engine(anura, &words) { words } else { engine.to_owned() }
}

/// Exponential of the mean logarithm.
fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v.ln(), n + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}
