//! Two processors at once: atomics, locks, messages, and work that is shared.

use std::hint::{black_box, spin_loop};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::bench::{Bench, Rng, Test, mix};
use super::os;

fn alone() -> Option<&'static str> {
    (os::processors().len() < 2).then_some("one processor")
}

macro_rules! tests {
    ($($name:literal => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "smp", name: $name, lacks: alone, run: $run }),*];
    };
}

tests! {
    "atomics-uncontended" => uncontended, "atomics-contended" => contended, "compare-exchange" => compare_exchange,
    "mutex" => mutex, "spin-ping-pong" => ping_pong, "queue" => queue, "parallel-sum" => parallel_sum,
    "parallel-faults" => parallel_faults,
}

/// A number on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Runs both at once, each on a processor of its own; what they return, mixed.
fn both(b: &mut Bench, work: [&(dyn Fn() -> u64 + Sync); 2]) -> u64 {
    let cpus = os::processors();
    let ready = AtomicU32::new(0);
    let ready = &ready;
    b.time(|| {
        std::thread::scope(|scope| {
            let threads = [0, 1].map(|i| {
                let cpu = cpus[i];
                scope.spawn(move || {
                    os::stay_on(cpu);
                    ready.fetch_add(1, SeqCst);
                    while ready.load(SeqCst) < 2 {
                        spin_loop();
                    }
                    work[i]()
                })
            });
            threads.into_iter().fold(0, |s, t| mix(s, t.join().unwrap_or_default()))
        })
    })
}

fn uncontended(b: &mut Bench) -> u64 {
    let n = b.n(15_000_000);
    let lines = [(); 2].map(|()| Line::default());
    let add = |line: &Line| {
        (0..n).for_each(|i| {
            line.0.fetch_add(i, SeqCst);
        });
        line.0.load(SeqCst)
    };
    both(b, [&|| add(&lines[0]), &|| add(&lines[1])])
}

fn contended(b: &mut Bench) -> u64 {
    let n = b.n(12_000_000);
    let line = Line::default();
    let add = || {
        (0..n).for_each(|i| {
            line.0.fetch_add(i, SeqCst);
        });
        0
    };
    both(b, [&add, &add]);
    line.0.load(SeqCst)
}

fn compare_exchange(b: &mut Bench) -> u64 {
    let n = b.n(8_000_000);
    let line = Line::default();
    let add = || {
        for i in 0..n {
            let mut old = line.0.load(Relaxed);
            while let Err(now) = line.0.compare_exchange(old, old.wrapping_add(i ^ 5), SeqCst, Relaxed) {
                old = now;
            }
        }
        0
    };
    both(b, [&add, &add]);
    line.0.load(SeqCst)
}

fn mutex(b: &mut Bench) -> u64 {
    let n = b.n(4_000_000);
    let shared = Mutex::new((0u64, 0u64));
    let add = || {
        for i in 0..n {
            if let Ok(mut pair) = shared.lock() {
                pair.0 = pair.0.wrapping_add(i);
                pair.1 ^= i;
            }
        }
        0
    };
    both(b, [&add, &add]);
    shared.into_inner().map_or(0, |(a, b)| mix(a, b))
}

/// Each waits for the other's turn to end.
fn ping_pong(b: &mut Bench) -> u64 {
    let n = b.n(20_000);
    let line = Line::default();
    let play = |mine: u64| {
        let mut sum = 0;
        for i in 0..n {
            let turn = 2 * i + mine;
            while line.0.load(Acquire) != turn {
                spin_loop();
            }
            sum = mix(sum, turn);
            line.0.store(turn + 1, Release);
        }
        sum
    };
    both(b, [&|| play(0), &|| play(1)])
}

/// Numbers through a ring of 256 places from one to the other.
fn queue(b: &mut Bench) -> u64 {
    let n = b.n(1_000_000);
    let ring: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
    let (head, tail) = (Line::default(), Line::default());
    let send = || {
        let mut rng = Rng::new(110);
        for i in 0..n {
            while i - tail.0.load(Acquire) >= 256 {
                spin_loop();
            }
            ring[i as usize % 256].store(rng.next64(), Relaxed);
            head.0.store(i + 1, Release);
        }
        1
    };
    let receive = || {
        (0..n).fold(0, |s, i| {
            while head.0.load(Acquire) <= i {
                spin_loop();
            }
            let value = ring[i as usize % 256].load(Relaxed);
            tail.0.store(i + 1, Release);
            mix(s, value)
        })
    };
    both(b, [&send, &receive])
}

fn parallel_sum(b: &mut Bench) -> u64 {
    let passes = b.n(200);
    let mut rng = Rng::new(111);
    let list: Vec<u64> = (0..1 << 20).map(|_| rng.next64()).collect();
    let (left, right) = list.split_at(1 << 19);
    let sum = |list: &[u64]| {
        (0..passes)
            .fold(0, |s, _| mix(s, black_box(list).iter().fold(0u64, |s, v| s.wrapping_add(*v ^ v >> 3))))
    };
    both(b, [&|| sum(left), &|| sum(right)])
}

/// Both touch and give back pages of one address space: faults, and shoot-downs of each other's translations.
fn parallel_faults(b: &mut Bench) -> u64 {
    let rounds = b.n(60);
    let touch = || {
        (0..rounds).fold(0, |s, i| {
            let map = os::Mapping::new(256 * 4096, libc::PROT_READ | libc::PROT_WRITE);
            (0..256).for_each(|page| map.write(page * 4096, (page as u64 + i) as u8));
            mix(s, map.read((i as usize % 256) * 4096).into())
        })
    };
    both(b, [&touch, &touch])
}
