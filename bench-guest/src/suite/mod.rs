//! The tests, group by group, and what runs them.

mod bench;
mod code;
mod fp;
mod int;
mod io;
mod kernel;
mod mem;
mod os;
mod smp;
mod vec;
mod x87;

use bench::{Bench, Test};

/// All groups, in the order of their tables.
const GROUPS: &[&[Test]] = &[
    int::TESTS,
    fp::TESTS,
    x87::TESTS,
    vec::TESTS,
    mem::TESTS,
    kernel::TESTS,
    code::TESTS,
    smp::TESTS,
    io::TESTS,
];

/// Runs what the words of the command line name.
pub fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == kernel::LEAVE) {
        return;
    }
    if words.iter().any(|word| word == "--list") {
        GROUPS.iter().copied().flatten().for_each(|test| println!("{}/{}", test.group, test.name));
        return;
    }
    // Whoever is first owns the machine.
    let first = std::process::id() == 1;
    if first {
        os::mount_all();
    }
    if words.iter().any(|word| word == "--sleep") {
        sleeps();
        if first {
            os::power_off();
        }
        return;
    }
    if words.iter().any(|word| word == "--spin") {
        spin();
    }
    let percent = words.iter().find_map(|w| w.strip_suffix('%')?.parse().ok()).unwrap_or(100);
    let wanted: Vec<&str> = words.iter().map(String::as_str).filter(|w| !w.ends_with('%')).collect();
    say(&format!("start {}", clock_source()));
    for test in GROUPS.iter().copied().flatten() {
        let full = format!("{}/{}", test.group, test.name);
        let named = wanted.iter().any(|w| *w == test.group || *w == full);
        if !(named || wanted.is_empty() && test.group != "smp") {
            continue;
        }
        match (test.lacks)() {
            Some(why) => say(&format!("{full} n/a {why}")),
            None => {
                say(&format!("{full} runs"));
                let (nanoseconds, sum, whole) = Bench::new(percent).measure(test);
                say(&format!("{full} {nanoseconds} {sum:016x} {whole}"));
            }
        }
    }
    say("end");
    if first {
        os::power_off();
    }
}

fn say(text: &str) {
    os::write(1, format!("bench: {text}\n").as_bytes());
    os::drain(1);
}

/// Two thousand sleeps of 200 microseconds: the median and the 99th percentile of what they took, in nanoseconds.
fn sleeps() {
    let mut took: Vec<u64> = (0..2000)
        .map(|_| {
            let start = os::now();
            std::thread::sleep(std::time::Duration::from_micros(200));
            os::now() - start
        })
        .collect();
    took.sort_unstable();
    say(&format!("sleep {} {}", took[took.len() / 2], took[took.len() * 99 / 100]));
}

/// Keeps every processor busy for ever.
fn spin() -> ! {
    let others = os::processors().len() - 1;
    (0..others).for_each(|_| drop(std::thread::spawn(|| work(u64::MAX))));
    say("spins");
    loop {
        work(u64::MAX);
    }
}

fn work(rounds: u64) {
    for i in 0..rounds {
        std::hint::black_box(i);
    }
}

/// What the kernel reads time from, since some tests depend on it.
fn clock_source() -> String {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
