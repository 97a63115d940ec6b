//! Every device of a full board can be saved at any time and loaded into a new board without a trace: rule 6.

use anura_machine::testing::TestMachine;
use anura_tests::device_fuzz::{Fuzz, Rng, difference};
use anura_vmcore::{Record, Value, Width};

/// A board after traffic.
fn used(seed: u64, steps: u32) -> Fuzz {
    let mut fuzz = Fuzz::new(seed);
    (0..steps).for_each(|_| fuzz.step());
    fuzz
}

#[test]
fn whatever_was_saved_loads_into_a_new_board_and_saves_the_same() {
    for seed in 0..24 {
        let mut fuzz = used(seed, 1200);
        fuzz.round_trip().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn a_loaded_board_behaves_as_the_saved_one() {
    for seed in 100..108 {
        let fuzz = used(seed, 1000);
        let machine = fuzz.machine();
        let copy = TestMachine::pc();
        copy.load(&machine.save()).unwrap();
        for _ in 0..50 {
            machine.advance(40_000);
            copy.advance(40_000);
            assert_eq!(machine.interrupt(), copy.interrupt(), "seed {seed}");
        }
        assert_eq!(difference(&machine.save(), &copy.save()), None, "seed {seed}");
    }
}

/// Loads each device of `saved` alone into a new board, where nothing but the device may change.
fn load_one_by_one(saved: &TestMachine, case: &str) {
    for (path, device) in saved.board().devices() {
        let copy = TestMachine::pc();
        let before = copy.save();
        let devices = copy.board().devices();
        let (_, target) = devices.iter().find(|(p, _)| p == path).unwrap();
        target.load(&device.save()).unwrap_or_else(|e| panic!("{path}: {e}"));
        let after = copy.save();
        // Its own record, and the clock, whose timers it armed, are new; nothing else is.
        let others = |states: &anura_machine::States| -> anura_machine::States {
            states.iter().filter(|(p, _)| p != path && p != "clock").cloned().collect()
        };
        assert_eq!(difference(&others(&before), &others(&after)), None, "{path}, {case}");
    }
}

#[test]
fn loading_a_device_moves_no_line_of_the_others() {
    for seed in 200..206 {
        load_one_by_one(used(seed, 1500).machine(), &format!("seed {seed}"));
    }
}

#[test]
fn loading_a_device_that_holds_its_line_high_makes_no_edge() {
    let pc = TestMachine::pc();
    pc.outb(0xb2, 0xf1);
    pc.outw(0x602, 0x100);
    pc.board().pm.lock().power_button();
    pc.board().keyboard.as_ref().unwrap().lock().key(0x1e, true);
    for base in [0x3f8, 0x2f8, 0x3e8, 0x2e8] {
        pc.outb(base + 4, 0x08);
        pc.outb(base + 1, 0x02);
    }
    pc.outb(0x37a, 0x1d);
    pc.outb(0x37a, 0x1c);
    pc.outb(0x3f2, 0x0c);
    pc.outb(0x70, 0x0b);
    pc.outb(0x71, 0x42);
    // An HPET comparator in levels, and the PIT's output after its count.
    pc.write(0xfed0_0100, Width::W4, 20 << 9 | 6);
    pc.write(0xfed0_0108, Width::W8, 10);
    pc.write(0xfed0_0010, Width::W4, 1);
    for (port, value) in [(0x43, 0x30), (0x40, 2), (0x40, 0)] {
        pc.outb(port, value);
    }
    pc.advance(10_000_000);
    let lines = pc.board().fabric.describe_irq();
    let high = [0, 1, 3, 4, 6, 7, 8, 9].map(|irq| lines.contains(&format!("{irq:2}: ")));
    assert_eq!(high, [true; 8], "{lines}");
    load_one_by_one(&pc, "lines high");
}

/// Values that no save would write where `value` was.
fn hostile(value: &Value, rng: &mut Rng) -> Vec<Value> {
    let mut all = vec![
        Value::Unsigned(u64::MAX),
        Value::Unsigned(0),
        Value::Unsigned(rng.number()),
        Value::Signed(i64::MIN),
        Value::Bytes(vec![]),
        Value::Bytes(vec![0xff; 5000]),
        Value::Text("x".into()),
        Value::List(vec![]),
        Value::List(vec![Value::Unsigned(u64::MAX); 300]),
        Value::Record(Record::new(1)),
        Value::Record(Record::new(u16::MAX)),
    ];
    match value {
        Value::List(items) => {
            for n in 0..items.len().min(24) {
                for bad in hostile(&items[n], rng) {
                    let mut items = items.clone();
                    items[n] = bad;
                    all.push(Value::List(items));
                }
            }
            all.push(Value::List(items.iter().chain(items).cloned().collect()));
        }
        Value::Bytes(bytes) => {
            all.push(Value::Bytes(vec![0xff; bytes.len()]));
            all.push(Value::Bytes(bytes.iter().map(|_| rng.number() as u8).collect()));
        }
        Value::Record(record) => all.extend(variants(record, rng).into_iter().map(Value::Record)),
        _ => {}
    }
    all
}

/// The record with each field removed and replaced.
fn variants(record: &Record, rng: &mut Rng) -> Vec<Record> {
    let mut all = Vec::new();
    for number in record.numbers().collect::<Vec<_>>() {
        let mut without = record.clone();
        without.remove(number);
        all.push(without);
        let value = record.value(number).unwrap().clone();
        for bad in hostile(&value, rng) {
            let mut changed = record.clone();
            changed.set_value(number, bad);
            all.push(changed);
        }
    }
    let mut more = record.clone();
    more.set_value(999, Value::Unsigned(1));
    all.push(more);
    all
}

#[test]
fn hostile_records_are_refused_or_taken_but_never_a_panic() {
    let mut rng = Rng::new(7);
    let mut refused = 0;
    for seed in [300, 301] {
        let fuzz = used(seed, 1500);
        let copy = TestMachine::pc();
        for ((path, device), (_, target)) in
            fuzz.machine().board().devices().iter().zip(copy.board().devices())
        {
            let record = device.save();
            for bad in variants(&record, &mut rng) {
                if target.load(&bad).is_err() {
                    refused += 1;
                    continue;
                }
                // What was taken must be a state that the board can live with: it runs, and saves.
                copy.advance(1000);
                target.save();
            }
            assert_eq!(target.load(&record), Ok(()), "{path}: the honest record still loads");
        }
        copy.advance(1_000_000);
        while copy.request().is_some() {}
        for port in 0..0x400 {
            copy.inb(port);
        }
        copy.save();
    }
    assert!(refused > 1000, "{refused} records refused");
}
