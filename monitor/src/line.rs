//! A line editor on a byte stream: keys in, echo out, no terminal of our own needed.
//!
//! Keys are those of a terminal in raw mode: arrows, Home, End, Delete, the Emacs control keys, Tab to
//! complete, up and down through history. What it sends assumes no more than a VT100.

/// Longest line; more is refused with the bell.
const MAX_LINE: usize = 4096;
/// Lines that history keeps.
const MAX_HISTORY: usize = 64;

/// What a byte led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Send this to the terminal.
    Echo(Vec<u8>),
    /// A line is finished.
    Line(String),
    /// In the middle of a key.
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Plain,
    Escape,
    Bracket(u16),
    /// ESC O, as some terminals send for arrows.
    Letter,
}

/// Gives what a partial line could go on as: the length of the word it ends in, and candidates.
pub(crate) type Complete = fn(&str) -> (usize, Vec<String>);

/// The editor.
pub(crate) struct LineEditor {
    prompt: &'static str,
    complete: Complete,
    line: Vec<char>,
    cursor: usize,
    key: Key,
    /// Bytes of a UTF-8 character that has more to come.
    partial: Vec<u8>,
    history: Vec<String>,
    /// Position in history while browsing, and the line that was left for it.
    browsing: Option<(usize, Vec<char>)>,
    after_return: bool,
}

impl LineEditor {
    pub(crate) fn new(prompt: &'static str, complete: Complete) -> Self {
        Self {
            prompt,
            complete,
            line: vec![],
            cursor: 0,
            key: Key::Plain,
            partial: vec![],
            history: vec![],
            browsing: None,
            after_return: false,
        }
    }

    /// The prompt with what is typed so far.
    pub(crate) fn prompt(&self) -> String {
        self.prompt.chars().chain(self.line.iter().copied()).collect()
    }

    pub(crate) fn reset(&mut self) {
        (self.line, self.cursor, self.key, self.browsing) = (vec![], 0, Key::Plain, None);
        self.partial.clear();
    }

    /// Takes one byte.
    pub(crate) fn feed(&mut self, byte: u8) -> Edit {
        let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        match (self.key, byte) {
            (Key::Plain, b'\n') if after_return => Edit::Nothing,
            (Key::Plain, b'\r' | b'\n') => self.finish(),
            (Key::Plain, 0x1b) => self.wait(Key::Escape),
            (Key::Plain, _) => self.plain(byte),
            (Key::Escape, b'[') => self.wait(Key::Bracket(0)),
            (Key::Escape, b'O') => self.wait(Key::Letter),
            (Key::Escape, _) => self.wait(Key::Plain),
            (Key::Bracket(n), b'0'..=b'9') => {
                self.wait(Key::Bracket(n.saturating_mul(10).saturating_add(u16::from(byte - b'0'))))
            }
            (Key::Bracket(_), b';') => self.wait(Key::Bracket(0)),
            (Key::Bracket(n), _) => {
                self.key = Key::Plain;
                self.named(byte, n)
            }
            (Key::Letter, _) => {
                self.key = Key::Plain;
                self.named(byte, 0)
            }
        }
    }

    fn wait(&mut self, key: Key) -> Edit {
        self.key = key;
        Edit::Nothing
    }

    /// A key that comes as an escape sequence.
    fn named(&mut self, last: u8, number: u16) -> Edit {
        match (last, number) {
            (b'A', _) => self.browse(true),
            (b'B', _) => self.browse(false),
            (b'C', _) => self.move_to(self.cursor + 1),
            (b'D', _) => self.move_to(self.cursor.saturating_sub(1)),
            (b'H', _) | (b'~', 1 | 7) => self.move_to(0),
            (b'F', _) | (b'~', 4 | 8) => self.move_to(self.line.len()),
            (b'~', 3) => self.delete(self.cursor, self.cursor + 1),
            _ => Edit::Nothing,
        }
    }

    fn plain(&mut self, byte: u8) -> Edit {
        let end = self.line.len();
        match byte {
            0x01 => self.move_to(0),
            0x02 => self.move_to(self.cursor.saturating_sub(1)),
            0x03 => {
                self.reset();
                Edit::Echo(format!("^C\r\n{}", self.prompt).into_bytes())
            }
            0x04 => self.delete(self.cursor, self.cursor + 1),
            0x05 => self.move_to(end),
            0x06 => self.move_to(self.cursor + 1),
            0x08 | 0x7f => self.delete(self.cursor.saturating_sub(1), self.cursor),
            0x09 => self.complete(),
            0x0b => self.delete(self.cursor, end),
            0x0c => Edit::Echo(
                format!("\x1b[2J\x1b[1;1H{}{}", self.prompt(), back(end - self.cursor)).into_bytes(),
            ),
            0x0e => self.browse(false),
            0x10 => self.browse(true),
            0x15 => self.delete(0, self.cursor),
            0x17 => self.delete(self.word_start(), self.cursor),
            0..=0x1f => Edit::Nothing,
            _ => self.text(byte),
        }
    }

    /// Part of a character, or all of it.
    fn text(&mut self, byte: u8) -> Edit {
        self.partial.push(byte);
        let c = match std::str::from_utf8(&self.partial) {
            Ok(s) => s.chars().next(),
            Err(e) if e.error_len().is_none() => return Edit::Nothing,
            Err(_) => None,
        };
        self.partial.clear();
        match c {
            Some(c) if self.line.len() < MAX_LINE => self.insert(&[c]),
            _ => bell(),
        }
    }

    fn insert(&mut self, text: &[char]) -> Edit {
        self.line.splice(self.cursor..self.cursor, text.iter().copied());
        let shown: String = self.line[self.cursor..].iter().collect();
        self.cursor += text.len();
        Edit::Echo(format!("{shown}{}", back(self.line.len() - self.cursor)).into_bytes())
    }

    fn delete(&mut self, from: usize, to: usize) -> Edit {
        let to = to.min(self.line.len());
        if from >= to {
            return bell();
        }
        let left = back(self.cursor - from.min(self.cursor));
        self.line.drain(from..to);
        self.cursor = from;
        let rest: String = self.line[from..].iter().collect();
        Edit::Echo(format!("{left}{rest}\x1b[K{}", back(self.line.len() - from)).into_bytes())
    }

    fn move_to(&mut self, to: usize) -> Edit {
        if to > self.line.len() || to == self.cursor {
            return Edit::Nothing;
        }
        let echo = match to < self.cursor {
            true => back(self.cursor - to),
            false => self.line[self.cursor..to].iter().collect(),
        };
        self.cursor = to;
        Edit::Echo(echo.into_bytes())
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let end = before.iter().rposition(|c| *c != ' ').map_or(0, |i| i + 1);
        before[..end].iter().rposition(|c| *c == ' ').map_or(0, |i| i + 1)
    }

    /// Replaces the whole line.
    fn replace(&mut self, line: Vec<char>) -> Edit {
        let echo = format!("{}\x1b[K{}", back(self.cursor), line.iter().collect::<String>());
        self.cursor = line.len();
        self.line = line;
        Edit::Echo(echo.into_bytes())
    }

    fn browse(&mut self, older: bool) -> Edit {
        let at = self.browsing.as_ref().map_or(self.history.len(), |(at, _)| *at);
        let to = if older { at.checked_sub(1) } else { Some(at + 1).filter(|t| *t <= self.history.len()) };
        let Some(to) = to else { return bell() };
        let own = match self.browsing.take() {
            Some((_, own)) => own,
            None => self.line.clone(),
        };
        match self.history.get(to) {
            Some(line) => {
                let line = line.chars().collect();
                self.browsing = Some((to, own));
                self.replace(line)
            }
            None => self.replace(own),
        }
    }

    fn complete(&mut self) -> Edit {
        let before: String = self.line[..self.cursor].iter().collect();
        let (typed, found) = (self.complete)(&before);
        let Some(first) = found.first() else { return bell() };
        let mut common: Vec<char> = first.chars().collect();
        for other in &found[1..] {
            let same = common.iter().zip(other.chars()).take_while(|(a, b)| **a == *b).count();
            common.truncate(same);
        }
        if found.len() == 1 {
            common.push(' ');
        }
        if common.len() > typed {
            return self.insert(&common[typed..]);
        }
        let list = found.join("  ");
        let left = back(self.line.len() - self.cursor);
        Edit::Echo(format!("\r\n{list}\r\n{}{left}", self.prompt()).into_bytes())
    }

    fn finish(&mut self) -> Edit {
        let line: String = std::mem::take(&mut self.line).into_iter().collect();
        (self.cursor, self.browsing) = (0, None);
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
            if self.history.len() > MAX_HISTORY {
                self.history.remove(0);
            }
        }
        Edit::Line(line)
    }
}

/// Moves the terminal's cursor left.
fn back(n: usize) -> String {
    if n == 0 { String::new() } else { format!("\x1b[{n}D") }
}

fn bell() -> Edit {
    Edit::Echo(vec![7])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(before: &str) -> (usize, Vec<String>) {
        let all = ["status", "stop", "system_reset"];
        (before.len(), all.iter().filter(|a| a.starts_with(before)).map(|a| (*a).to_owned()).collect())
    }

    /// Types keys; the lines they finish.
    fn type_keys(keys: &str) -> Vec<String> {
        let mut editor = LineEditor::new("> ", complete);
        keys.bytes()
            .filter_map(|b| match editor.feed(b) {
                Edit::Line(line) => Some(line),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn keys_edit_the_line() {
        for (keys, want) in [
            ("abc\r", "abc"),
            ("abc\x7f\x08d\n", "ad"),
            ("bc\x1b[D\x1b[Da\r", "abc"),
            ("bc\x01a\x05d\r", "abcd"),
            ("abc\x1b[H\x1b[3~\r", "bc"),
            ("abc\x1b[1~x\x1b[4~y\r", "xabcy"),
            ("one two\x17three\r", "one three"),
            ("abc\x02\x02\x0b\r", "a"),
            ("abc\x15d\r", "d"),
            ("abc\x03d\r", "d"),
            ("h\u{e9}\x7fi\r", "hi"),
            ("\x7f\x1b[D\x1b[C\x04\x1b[3~x\r", "x"),
            ("a\x1b[99999999999;5Cb\x1bOHc\r", "cab"),
        ] {
            assert_eq!(type_keys(keys), [want], "{keys:?}");
        }
    }

    #[test]
    fn a_return_with_a_newline_is_one_line_end() {
        assert_eq!(type_keys("a\r\nb\nc\r\r\n"), ["a", "b", "c", ""]);
    }

    #[test]
    fn history_goes_back_and_forth_and_keeps_the_line_that_was_left() {
        let up = "\x1b[A";
        let down = "\x1b[B";
        assert_eq!(type_keys(&format!("one\rtwo\r{up}{up}{up}\r")), ["one", "two", "one"]);
        assert_eq!(type_keys(&format!("one\rtwo\rthr{up}{up}{down}{down}ee\r")), ["one", "two", "three"]);
    }

    #[test]
    fn tab_completes_as_far_as_it_is_clear() {
        assert_eq!(type_keys("sy\t\r"), ["system_reset "]);
        assert_eq!(type_keys("st\tx\r"), ["stx"]);
        let mut editor = LineEditor::new("> ", complete);
        let mut shown = String::new();
        for b in b"st\t" {
            if let Edit::Echo(e) = editor.feed(*b) {
                shown += std::str::from_utf8(&e).unwrap();
            }
        }
        assert_eq!(shown, "st\r\nstatus  stop\r\n> st");
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut editor = LineEditor::new("> ", complete);
        let mut seed = 1u32;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            editor.feed((seed >> 24) as u8);
            assert!(editor.cursor <= editor.line.len() && editor.line.len() <= MAX_LINE + 16);
        }
    }
}
