//! A machine that is dropped leaves nothing behind, though its devices reach memory and memory reaches them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anura_machine::testing::TestMachine;

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[test]
fn a_machine_that_was_dropped_gives_its_memory_back() {
    let machine = TestMachine::pc();
    let blocks: Vec<_> = machine.board().blocks.iter().map(Arc::downgrade).collect();
    assert!(!blocks.is_empty());
    drop(machine);
    let held = blocks.iter().filter(|block| block.strong_count() > 0).count();
    assert_eq!(held, 0, "RAM blocks of {}", blocks.len());
}

#[test]
fn the_devices_of_dropped_machines_go_too() {
    drop(TestMachine::pc());
    let before = resident();
    for _ in 0..100 {
        drop(TestMachine::pc());
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB more after 100 machines");
}
