//! Where log lines go: stderr, or the file of `-D`.
//!
//! The `log` crate's records, the guest-error log and trace events all end here, one line each.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use anura_machine::logging;
use anura_vmcore::{set_guest_error_hook, trace};
use log::{LevelFilter, Log, Metadata, Record};

struct Sink {
    file: Option<Mutex<File>>,
    timestamps: bool,
}

impl Sink {
    fn line(&self, text: &std::fmt::Arguments<'_>) {
        let stamp = if self.timestamps {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("{}.{:06} ", now.as_secs(), now.subsec_micros())
        } else {
            String::new()
        };
        // A log that cannot be written must not stop the guest.
        match &self.file {
            Some(file) => {
                if let Ok(mut file) = file.lock() {
                    let _ = writeln!(file, "{stamp}{text}");
                }
            }
            None => eprintln!("{stamp}{text}"),
        }
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn || logging::active(metadata.target())
    }
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.line(&format_args!("anura: {}", record.args()));
        }
    }
    fn flush(&self) {}
}

/// Sends all log lines to `file`, or to stderr.
pub fn install(file: Option<File>, timestamps: bool) {
    let sink: &'static Sink = Box::leak(Box::new(Sink { file: file.map(Mutex::new), timestamps }));
    if log::set_logger(sink).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
    set_guest_error_hook(move |text| {
        if logging::active("guest_errors") {
            sink.line(text);
        }
    });
    trace::set_hook(move |name, args| sink.line(&format_args!("{name} {args}")));
}
