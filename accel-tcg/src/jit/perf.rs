//! A map of translated code for `perf`: `/tmp/perf-PID.map`, a line for each piece, with start and size in hexadecimal
//! and a name (Linux, tools/perf/Documentation/jit-interface.txt).

use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;

/// The file, which all processors add to.
pub(crate) struct PerfMap(Mutex<File>);

impl PerfMap {
    /// Begins this process's map.
    pub fn create() -> std::io::Result<PerfMap> {
        let file = File::create(format!("/tmp/perf-{}.map", std::process::id()))?;
        Ok(PerfMap(Mutex::new(file)))
    }

    /// Names a piece of code.
    pub fn add(&self, start: u64, size: usize, name: &str) {
        // Whole lines, so that what is there can be used at any time. A map that cannot be written harms nobody.
        let _ = self.0.lock().write_all(format!("{start:x} {size:x} {name}\n").as_bytes());
    }
}
