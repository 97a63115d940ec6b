//! The tables of `cargo xtask bench cpu`, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::geometric_mean;

/// Times of one test on one machine, in nanoseconds.
pub type Times = BTreeMap<String, Vec<f64>>;

/// What is summed up: name, beginnings of its tests' names, the least QEMU/anura ratio that is aimed at, the same with
/// `-cpu max`, and the greatest slowdown against native.
type Sum = (&'static str, &'static [&'static str], Option<f64>, Option<f64>, Option<f64>);

#[rustfmt::skip]
const SUMS: &[Sum] = &[
    ("int", &["int/"], Some(2.0), Some(2.0), Some(2.4)),
    ("fp", &["fp/"], Some(17.0), Some(17.0), Some(1.5)),
    ("x87", &["x87/"], Some(20.0), Some(20.0), None),
    ("vec", &["vec/"], Some(30.0), Some(120.0), Some(1.5)),
    ("  SSE2", &["vec/sse2"], Some(30.0), Some(30.0), None),
    ("  AVX2 single", &["vec/avx2-single"], None, Some(200.0), None),
    ("  AVX2 and FMA", &["vec/avx2", "vec/fma"], None, None, None),
    ("mem", &["mem/"], Some(3.0), Some(3.0), None),
    ("  byte strings", &["mem/movsb", "mem/stosb"], Some(15.0), Some(15.0), None),
    ("  streaming", &["mem/stream"], Some(5.0), Some(5.0), None),
    ("kernel", &["kernel/"], Some(2.5), Some(4.0), None),
    ("  pipe switch", &["kernel/pipe-switch"], Some(5.0), Some(5.0), None),
    ("  fork", &["kernel/fork"], Some(4.0), Some(4.0), None),
    ("code", &["code/"], Some(6.0), Some(6.0), None),
    ("  data beside code", &["code/data-beside", "code/stack-beside"], Some(15.0), Some(15.0), None),
    ("smp", &["smp/"], Some(1.4), Some(1.4), None),
    ("io", &["io/"], Some(1.5), Some(1.5), None),
];

/// All that was measured.
pub struct Report {
    /// Test names in the guest program's order.
    pub order: Vec<String>,
    /// The host itself, then machines by name.
    pub native: Times,
    /// Our engine's times.
    pub anura: Times,
    /// QEMU's times.
    pub qemu: Times,
    /// Whether the emulators had `-cpu max`.
    pub max: bool,
    /// Whether a test's time is the median of its rounds; otherwise it is the shortest.
    pub median: bool,
}

/// One line: the figures that exist.
#[derive(Clone, Copy, Default)]
pub struct Line {
    /// Nanoseconds on the host.
    pub native: Option<f64>,
    /// Nanoseconds on our engine.
    pub anura: Option<f64>,
    /// Nanoseconds on QEMU.
    pub qemu: Option<f64>,
}

impl Line {
    fn slowdown(time: Option<f64>, native: Option<f64>) -> Option<f64> {
        Some(time? / native?)
    }
    fn ours(&self) -> Option<f64> {
        Self::slowdown(self.anura, self.native)
    }
    fn theirs(&self) -> Option<f64> {
        Self::slowdown(self.qemu, self.native)
    }
    fn gain(&self) -> Option<f64> {
        Some(self.qemu? / self.anura?)
    }
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"))
}

impl Report {
    fn one(&self, times: &Times, name: &str) -> Option<f64> {
        let mut times = times.get(name)?.clone();
        times.sort_by(f64::total_cmp);
        if self.median { times.get(times.len() / 2).copied() } else { times.first().copied() }
    }

    /// The figures of a test.
    pub fn line(&self, name: &str) -> Line {
        Line {
            native: self.one(&self.native, name),
            anura: self.one(&self.anura, name),
            qemu: self.one(&self.qemu, name),
        }
    }

    /// The tests whose names begin so.
    fn of(&self, starts: &[&str]) -> Vec<Line> {
        let inside = |name: &&String| starts.iter().any(|start| name.starts_with(start));
        self.order.iter().filter(inside).map(|name| self.line(name)).collect()
    }

    /// The tables.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, line: &Line, digits| {
            let ms = |v: Option<f64>| figure(v.map(|v| v / 1e6), digits);
            let _ = writeln!(
                text,
                "{name:28} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}{}",
                ms(line.native),
                ms(line.anura),
                ms(line.qemu),
                figure(line.ours(), 2),
                figure(line.theirs(), 2),
                figure(line.gain(), 2),
                if line.gain().is_some_and(|g| g < 1.0 / 1.1) { "  slower" } else { "" }
            );
        };
        self.order.iter().for_each(|name| row(name, &self.line(name), 2));
        let head = format!(
            "{:28} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}\n",
            "test", "native ms", "anura ms", "QEMU ms", "anura x", "QEMU x", "QEMU/us"
        );
        let mut text = head + &text;
        let _ = writeln!(
            text,
            "\n{:28} {:>9} {:>9} {:>9} {:>9} {:>9}   geometric means",
            "group", "anura x", "aim", "QEMU x", "QEMU/us", "aim"
        );
        for (name, starts, aim, aim_of_max, of_native) in SUMS {
            let lines = self.of(starts);
            let count = lines.iter().filter(|line| line.anura.or(line.qemu).is_some()).count();
            if count == 0 {
                continue;
            }
            let mean = |of: fn(&Line) -> Option<f64>| geometric_mean(lines.iter().filter_map(of));
            let _ = writeln!(
                text,
                "{name:28} {:>9} {:>9} {:>9} {:>9} {:>9}   {count} tests",
                figure(mean(Line::ours), 2),
                figure(*of_native, 1),
                figure(mean(Line::theirs), 2),
                figure(mean(Line::gain), 2),
                figure(if self.max { *aim_of_max } else { *aim }, 1),
            );
        }
        let slower: Vec<&str> = self
            .order
            .iter()
            .filter(|name| self.line(name).gain().is_some_and(|g| g < 1.0 / 1.1))
            .map(String::as_str)
            .collect();
        let compared = self.order.iter().filter(|name| self.line(name).gain().is_some()).count();
        if compared > 0 {
            let _ = writeln!(
                text,
                "\nmore than 10 % slower than QEMU: {} of {compared}: {}",
                slower.len(),
                slower.join(" ")
            );
        }
        text
    }

    /// The figures for other programs: nanoseconds by test.
    pub fn json(&self) -> String {
        let number = |v: Option<f64>| v.map_or_else(|| "null".into(), |v| format!("{v:.0}"));
        let lines: Vec<String> = self
            .order
            .iter()
            .map(|name| {
                let line = self.line(name);
                format!(
                    "  {{\"test\": \"{name}\", \"native\": {}, \"anura\": {}, \"qemu\": {}}}",
                    number(line.native),
                    number(line.anura),
                    number(line.qemu)
                )
            })
            .collect();
        format!("[\n{}\n]\n", lines.join(",\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let times = |a: f64, b: f64| {
            Times::from([("int/a".to_owned(), vec![a * 2.0, a]), ("int/b".to_owned(), vec![b])])
        };
        Report {
            order: vec!["int/a".into(), "int/b".into()],
            native: times(1e6, 1e6),
            anura: times(2e6, 8e6),
            qemu: times(8e6, 2e6),
            max: false,
            median: false,
        }
    }

    #[test]
    fn a_group_is_the_geometric_mean_of_its_tests_and_slow_ones_are_named() {
        let text = report().text();
        let group = text.lines().find(|line| line.starts_with("int ")).unwrap();
        let figures: Vec<_> = group.split_whitespace().skip(1).take(5).collect();
        assert_eq!(figures, ["4.00", "2.4", "4.00", "1.00", "2.0"]);
        assert!(text.contains("slower than QEMU: 1 of 2: int/b"), "{text}");
    }

    #[test]
    fn a_machine_that_was_not_there_leaves_its_columns_empty() {
        let report = Report { qemu: Times::new(), ..report() };
        assert!(report.text().contains("2.00         -         -"), "{}", report.text());
        assert!(report.json().contains("\"qemu\": null"));
    }
}
