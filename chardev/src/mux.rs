//! The escape key of a multiplexed chardev.

/// What the bytes from the terminal ask for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes for the front end in focus.
    Data(Vec<u8>),
    /// Print what the keys do.
    Help,
    /// End the emulator.
    Exit,
    /// Write disk data back.
    Save,
    /// Timestamps on or off.
    Timestamps,
    /// A break on the line.
    Break,
    /// Focus to the next front end.
    Rotate,
}

/// Finds escapes in a stream; the state outlives a read.
#[derive(Debug)]
pub(crate) struct Escape {
    /// The escape key.
    key: u8,
    pending: bool,
}

impl Escape {
    pub(crate) fn new(key: u8) -> Self {
        Self { key, pending: false }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        for &b in bytes {
            if !self.pending {
                match b == self.key {
                    true => self.pending = true,
                    false => push(&mut steps, b),
                }
                continue;
            }
            self.pending = false;
            match b {
                b if b == self.key => push(&mut steps, b),
                b'h' | b'?' => steps.push(Step::Help),
                b'x' => steps.push(Step::Exit),
                b's' => steps.push(Step::Save),
                b't' => steps.push(Step::Timestamps),
                b'b' => steps.push(Step::Break),
                b'c' => steps.push(Step::Rotate),
                // Any other key is swallowed with the escape.
                _ => {}
            }
        }
        steps
    }

    /// The help text, lines ending as a raw terminal needs them.
    pub(crate) fn help(&self) -> String {
        let name = match self.key {
            k @ 1..=26 => format!("C-{}", char::from(k - 1 + b'a')),
            k => format!("<Escape-Char-{k:#04x}>"),
        };
        let lines = [
            ("h", "print this help"),
            ("x", "exit emulator"),
            ("s", "save disk data back to file (if -snapshot)"),
            ("t", "toggle console timestamps"),
            ("b", "send break (magic sysrq)"),
            ("c", "switch between console and monitor"),
            (name.as_str(), &format!("sends {name}")),
        ];
        let mut out = String::from("\n\r");
        for (key, what) in lines {
            out += &format!("{name} {key:<4} {what}\n\r");
        }
        out
    }
}

fn push(steps: &mut Vec<Step>, b: u8) {
    match steps.last_mut() {
        Some(Step::Data(d)) => d.push(b),
        _ => steps.push(Step::Data(vec![b])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_found_across_reads_and_twice_the_key_is_the_key() {
        let mut e = Escape::new(1);
        assert_eq!(e.feed(b"ab\x01"), [Step::Data(b"ab".into())]);
        assert_eq!(e.feed(b"cde"), [Step::Rotate, Step::Data(b"de".into())]);
        assert_eq!(
            e.feed(b"\x01\x01\x01b\x01qz"),
            [Step::Data(vec![1]), Step::Break, Step::Data(b"z".into())]
        );
        let mut e = Escape::new(0x14);
        assert_eq!(e.feed(b"\x01\x14x"), [Step::Data(vec![1]), Step::Exit]);
        assert!(e.help().contains("C-t x"));
    }
}
