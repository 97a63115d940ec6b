//! How fast an engine reaches a device: port and MMIO dispatches per second into a device's cell.
//!
//! Run as `cargo xtask bench ports`. Each line is the best of several rounds, since other work on the
//! machine only ever makes a round slower. `space` goes through `AddressSpace`, as any code may;
//! `cache` through `SpaceCache`, as a vCPU's thread does.

use std::hint::black_box;
use std::time::Instant;

use anura_memory::{AccessRules, MemoryMap, RamBlock, Region, Requester, Width, cell_io};
use anura_vmcore::DeviceCell;

/// A chip with one register.
#[derive(Default)]
struct Chip {
    register: u64,
    writes: u64,
}

const CALLS: u32 = 2_000_000;
const ROUNDS: u32 = 7;
const CPU: Requester = Requester::Cpu(0);
/// What the issue asks for, in dispatches per second.
const AIM: f64 = 60e6;

fn measure(name: &str, mut call: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(CALLS));
    }
    println!("{name:24} {:6.1} ns {:7.1} M/s", best * 1e9, 1e-6 / best);
    best
}

fn main() {
    let cell = DeviceCell::new(Chip::default());
    let handler = cell_io(
        &cell,
        |chip, _| chip.register,
        |chip, _, value| {
            chip.register = value;
            chip.writes = chip.writes.wrapping_add(1);
        },
    );
    let map = MemoryMap::new();
    let (io, system) = (Region::container("io", 0x1_0000), Region::container("system", u64::MAX));
    let ram = RamBlock::new("pc.ram", 16 << 20).expect("16 MiB of host memory");
    let mut t = map.transaction();
    t.add(&system, 0, &Region::ram("pc.ram", ram), 0);
    for i in 0..40u64 {
        // As many neighbours as a PC has, so that lookups are what they are there.
        let neighbour = |name| Region::io(name, 8, handler.clone(), AccessRules::any(4));
        t.add(&io, 0x100 + i * 32, &neighbour("port"), 0);
        t.add(&system, 0xfe00_0000 + i * 0x1000, &neighbour("mmio"), 0);
    }
    t.commit();
    let (ports, memory) = (map.create_space("I/O", &io), map.create_space("memory", &system));
    let (mut port_cache, mut memory_cache) = (ports.cache(), memory.cache());
    let port = black_box(0x1a0u64);
    let mmio = black_box(0xfe00_5004u64);
    let mut results = vec![
        measure("port write, space", || {
            let _ = black_box(ports.write(port, Width::W1, 0x55, CPU));
        }),
        measure("port read, space", || {
            let _ = black_box(ports.read(port, Width::W1, CPU));
        }),
        measure("mmio write, space", || {
            let _ = black_box(memory.write(mmio, Width::W4, 0x55, CPU));
        }),
        measure("mmio read, space", || {
            let _ = black_box(memory.read(mmio, Width::W4, CPU));
        }),
    ];
    results.push(measure("port write, cache", || {
        let _ = black_box(port_cache.write(port, Width::W1, 0x55, CPU));
    }));
    results.push(measure("mmio read, cache", || {
        let _ = black_box(memory_cache.read(mmio, Width::W4, CPU));
    }));
    let mut plain = DeviceCell::new(Chip::default());
    measure("(lock alone)", || {
        black_box(&mut plain).lock().writes += 1;
    });
    assert!(cell.lock().writes > 0, "the chip was reached");
    let reached = results.iter().filter(|t| 1.0 / **t >= AIM).count();
    println!("aim {:.0} M/s: {reached} of {} reach it", AIM * 1e-6, results.len());
}
