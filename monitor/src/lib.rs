//! The human monitor (HMP): commands typed on any chardev, about a machine seen through
//! [`MachineControl`].
//!
//! A [`Monitor`] is the front end of a chardev. Bytes go to a small line editor of its own, since a
//! monitor may sit on a socket or a multiplexed stream that is no terminal of this process; a finished
//! line is looked up in a table of commands. Everything runs on the thread that dispatches the chardev.
//!
//! Output has QEMU's form wherever tools may read it.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod dump;
mod expr;
mod info;
mod keys;
mod line;
mod pages;

use std::sync::Arc;

use anura_chardev::{CharBackend, CharEvent, CharFrontend};
use anura_machine::control::{MachineControl, QEMU_VERSION};
use parking_lot::Mutex;

use line::{Edit, LineEditor};

const PROMPT: &str = "(qemu) ";

/// What commands of one monitor share and keep.
pub(crate) struct Session {
    pub(crate) machine: Arc<dyn MachineControl>,
    /// The vCPU that commands are about.
    pub(crate) cpu: u32,
    /// The last `/fmt`, which the next dump without one uses.
    pub(crate) format: dump::Format,
    /// Lines typed so far, for `info history`.
    pub(crate) history: Vec<String>,
}

/// Runs one command line and gives what it prints, lines ending in `\n`. What QMP calls
/// human-monitor-command.
pub struct Hmp(Session);

impl Hmp {
    /// A monitor session without a line editor.
    pub fn new(machine: Arc<dyn MachineControl>) -> Self {
        Self(Session { machine, cpu: 0, format: dump::Format::default(), history: vec![] })
    }

    /// Runs a line.
    pub fn run(&mut self, line: &str) -> String {
        commands::run(&mut self.0, line)
    }
}

struct State {
    hmp: Hmp,
    editor: LineEditor,
    greeted: bool,
}

/// A monitor on a chardev.
pub struct Monitor {
    backend: CharBackend,
    state: Mutex<State>,
}

impl Monitor {
    /// Puts a monitor on a claimed chardev. On a multiplexer claim the serial port first: the first
    /// front end has the input at the start.
    pub fn attach(backend: CharBackend, machine: Arc<dyn MachineControl>) -> Arc<Self> {
        let state = State {
            hmp: Hmp::new(machine),
            editor: LineEditor::new(PROMPT, commands::complete),
            greeted: false,
        };
        let monitor = Arc::new(Self { backend: backend.clone(), state: Mutex::new(state) });
        backend.set_frontend(monitor.clone());
        monitor
    }

    /// Writes text with the line ends a terminal needs.
    fn print(&self, text: &str) {
        self.backend.write_all(text.replace('\n', "\r\n").as_bytes());
    }

    fn greet(&self, state: &mut State) {
        if !std::mem::replace(&mut state.greeted, true) {
            self.print(&format!("QEMU {QEMU_VERSION} monitor - type 'help' for more information\n"));
        }
        self.print(&state.editor.prompt());
    }
}

impl CharFrontend for Monitor {
    fn can_receive(&self) -> usize {
        4096
    }

    fn receive(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        for &byte in bytes {
            match state.editor.feed(byte) {
                Edit::Echo(text) => self.backend.write_all(&text),
                Edit::Line(line) => {
                    self.print("\n");
                    let out = state.hmp.run(&line);
                    self.print(&out);
                    self.print(&state.editor.prompt());
                }
                Edit::Nothing => {}
            }
        }
    }

    fn event(&self, event: CharEvent) {
        let mut state = self.state.lock();
        match event {
            CharEvent::Opened if self.backend.has_focus() => self.greet(&mut state),
            CharEvent::FocusIn => self.greet(&mut state),
            CharEvent::Closed => {
                // The next to connect starts afresh.
                state.greeted = false;
                state.editor.reset();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
