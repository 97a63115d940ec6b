//! Saved machines as hostile input: whatever is done to a stream, loading it ends in an error or a machine, never in
//! a panic, and what does not fit is named.

use anura_machine::testing::TestMachine;
use anura_migration::{MigrationError, load, save};

fn saved() -> Vec<u8> {
    let machine = TestMachine::pc();
    let ram = &machine.board().ram.block;
    ram.write(0x1_2345, b"something to carry");
    let mut stream = Vec::new();
    save(machine.machine(), &mut stream).unwrap();
    stream
}

#[test]
fn a_machine_loads_from_its_stream_and_saves_the_same_stream_again() {
    let stream = saved();
    let machine = TestMachine::pc();
    machine.board().ram.block.write(0x8_0000, b"left over from before");
    load(machine.machine(), &mut stream.as_slice()).unwrap();
    let mut again = Vec::new();
    save(machine.machine(), &mut again).unwrap();
    assert!(stream == again);
}

#[test]
fn truncated_streams_are_refused_at_every_length() {
    let stream = saved();
    let machine = TestMachine::pc();
    let step = (stream.len() / 200).max(1);
    for end in (0..stream.len()).step_by(step).chain([stream.len() - 1]) {
        let result = load(machine.machine(), &mut &stream[..end]);
        assert!(matches!(result, Err(MigrationError::Malformed(_))), "{end}: {result:?}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_and_never_a_panic() {
    let stream = saved();
    let machine = TestMachine::pc();
    let step = (stream.len() / 600).max(1);
    for at in (0..stream.len()).step_by(step) {
        let mut bad = stream.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(load(machine.machine(), &mut bad.as_slice()).is_err(), "byte {at}");
    }
}

#[test]
fn a_machine_with_other_memory_is_named() {
    let stream = saved();
    let mut config = TestMachine::config();
    config.memory.size = 64 << 20;
    let other = TestMachine::with(config).unwrap();
    let error = load(other.machine(), &mut stream.as_slice()).unwrap_err().to_string();
    assert!(
        error.contains("pc.ram") && error.contains("same options") || error.contains("saved under"),
        "{error}"
    );
}
