//! Access sizes: what reaches a handler for every combination of rules, on memory and on ports.

use std::sync::Arc;

use anura_memory::*;
use parking_lot::Mutex;

/// Registers that log what reaches them and answer with the bytes of their offsets.
#[derive(Default)]
struct Log(Mutex<Vec<(char, u64, usize, u64)>>);

/// The byte that a register file of the given order shows at an offset.
fn byte(offset: u64) -> u64 {
    (offset.wrapping_mul(0x1d) ^ 0xa5) & 0xff
}

struct Chip(Arc<Log>, Endian);

impl IoHandler for Chip {
    fn read(&self, a: Access) -> u64 {
        self.0.0.lock().push(('r', a.offset, a.width.bytes(), 0));
        let bytes = (0..a.width.bytes() as u64).map(|i| byte(a.offset + i));
        match self.1 {
            Endian::Little => bytes.rev().fold(0, |v, b| v << 8 | b),
            Endian::Big => bytes.fold(0, |v, b| v << 8 | b),
        }
    }

    fn write(&self, a: Access, value: u64) {
        assert_eq!(value & !a.width.mask(), 0, "no bits above the width");
        self.0.0.lock().push(('w', a.offset, a.width.bytes(), value));
    }
}

fn space_with(rules: AccessRules, ports: bool) -> (AddressSpace, Arc<Log>) {
    let log: Arc<Log> = Arc::default();
    let map = MemoryMap::new();
    let root = Region::container("root", if ports { 0x1_0000 } else { u64::MAX });
    let chip = Region::io("chip", 0x100, Arc::new(Chip(log.clone(), rules.endian)), rules);
    map.transaction().add(&root, 0x1000, &chip, 0);
    (map.create_space("s", &root), log)
}

fn take(log: &Log) -> Vec<(char, u64, usize, u64)> {
    std::mem::take(&mut *log.0.lock())
}

const CPU: Requester = Requester::Cpu(0);

#[test]
fn every_combination_of_rules_splits_and_merges_as_documented() {
    let mut checked = 0;
    let sizes = [1u8, 2, 4, 8];
    for ports in [false, true] {
        for implemented_min in sizes {
            for implemented_max in sizes.into_iter().filter(|m| *m >= implemented_min) {
                for valid_max in sizes {
                    for (valid_unaligned, implemented_unaligned) in
                        [(false, false), (true, false), (true, true)]
                    {
                        for endian in [Endian::Little, Endian::Big] {
                            let rules = AccessRules {
                                valid: SizeRange { min: 1, max: valid_max, unaligned: valid_unaligned },
                                implemented: SizeRange {
                                    min: implemented_min,
                                    max: implemented_max,
                                    unaligned: implemented_unaligned,
                                },
                                endian,
                            };
                            checked += check(rules, ports);
                        }
                    }
                }
            }
        }
    }
    assert!(checked > 10_000, "{checked}");
}

fn check(rules: AccessRules, ports: bool) -> usize {
    let (space, log) = space_with(rules, ports);
    let mut checked = 0;
    for bytes in [1usize, 2, 4, 8] {
        for offset in 0..8u64 {
            let width = Width::from_bytes(bytes).unwrap();
            let what = format!("{rules:?}, {bytes} bytes at {offset}");
            let accepted = bytes <= rules.valid.max.into()
                && (rules.valid.unaligned || offset.is_multiple_of(bytes as u64));
            let (value, result) = space.read(0x1000 + offset, width, CPU);
            let calls = take(&log);
            let wrote = space.write(0x1000 + offset, width, 0x8877_6655_4433_2211, CPU);
            let writes = take(&log);
            checked += 1;
            if !accepted {
                assert_eq!((value, result), (width.mask(), AccessResult::Invalid), "{what}");
                assert_eq!(wrote, AccessResult::Invalid, "{what}");
                assert!(calls.is_empty() && writes.is_empty(), "{what}");
                continue;
            }
            assert!(result.is_ok() && wrote.is_ok(), "{what}");
            // The CPU sees the chip's bytes in address order, however the access was cut.
            let want = (0..bytes as u64).rev().fold(0, |v, i| v << 8 | byte(offset + i));
            assert_eq!(value, want, "{what}: {calls:?}");
            let (min, max) = (usize::from(rules.implemented.min), usize::from(rules.implemented.max));
            for c in &calls {
                assert!((min..=max).contains(&c.2), "{what}: {c:?} is not implemented");
                assert!(rules.implemented.unaligned || c.1.is_multiple_of(c.2 as u64), "{what}: {c:?}");
            }
            check_writes(&rules, offset, bytes, &writes, &what);
        }
    }
    checked
}

/// A write covers its bytes once, in order; one narrower than what is implemented comes widened at
/// its own offset.
fn check_writes(
    rules: &AccessRules,
    offset: u64,
    bytes: usize,
    writes: &[(char, u64, usize, u64)],
    what: &str,
) {
    let (min, max) = (usize::from(rules.implemented.min), usize::from(rules.implemented.max));
    assert!(writes.iter().all(|w| (min..=max).contains(&w.2)), "{what}: {writes:?}");
    if bytes < min {
        assert_eq!(writes.len(), 1, "{what}");
        assert_eq!((writes[0].1, writes[0].2), (offset, min), "{what}");
        let want = match rules.endian {
            Endian::Little => 0x8877_6655_4433_2211u64 & (u64::MAX >> (64 - bytes * 8)),
            Endian::Big => (0x1122_3344_5566_7788u64 >> (64 - bytes * 8)) << ((min - bytes) * 8),
        };
        assert_eq!(writes[0].3, want, "{what}");
        return;
    }
    let mut at = offset;
    let mut seen: Vec<u8> = Vec::new();
    for &(_, o, n, value) in writes {
        assert_eq!(o, at, "{what}: {writes:?}");
        at += n as u64;
        let raw = value.to_le_bytes();
        match rules.endian {
            Endian::Little => seen.extend(&raw[..n]),
            Endian::Big => seen.extend(raw[..n].iter().rev()),
        }
    }
    assert_eq!(seen, 0x8877_6655_4433_2211u64.to_le_bytes()[..bytes], "{what}: {writes:?}");
}

#[test]
fn a_word_at_an_eight_bit_chip_becomes_two_byte_accesses() {
    let (ports, log) = space_with(AccessRules::BYTES, true);
    assert!(ports.write(0x1011, Width::W2, 0x2324, CPU).is_ok());
    assert_eq!(take(&log), [('w', 0x11, 1, 0x24), ('w', 0x12, 1, 0x23)]);
}

#[test]
fn an_access_over_the_end_of_a_chip_reaches_it_with_what_is_its_own() {
    let (ports, log) = space_with(AccessRules::BYTES, true);
    let (value, result) = ports.read(0x10fe, Width::W4, CPU);
    assert_eq!(value, 0xffff_0000 | byte(0xff) << 8 | byte(0xfe));
    assert_eq!(result, AccessResult::Unassigned);
    assert_eq!(take(&log), [('r', 0xfe, 1, 0), ('r', 0xff, 1, 0)]);
}

#[test]
fn what_nobody_claims_reads_as_ones_and_drops_writes() {
    for ports in [true, false] {
        let (space, log) = space_with(AccessRules::default(), ports);
        assert_eq!(space.read(0x2000, Width::W2, CPU), (0xffff, AccessResult::Unassigned));
        assert_eq!(space.write(0x2000, Width::W2, 1, CPU), AccessResult::Unassigned);
        assert_eq!(space.read(0xffff, Width::W4, CPU), (0xffff_ffff, AccessResult::Unassigned));
        assert_eq!(space.read(u64::MAX, Width::W8, CPU), (u64::MAX, AccessResult::Unassigned));
        assert_eq!(space.write(u64::MAX, Width::W8, 1, CPU), AccessResult::Unassigned);
        let mut buf = [0; 24];
        assert_eq!(space.read_bytes(u64::MAX - 3, &mut buf, CPU), AccessResult::Unassigned);
        assert_eq!(buf, [0xff; 24]);
        assert!(take(&log).is_empty());
    }
}

#[test]
fn string_input_reads_one_register_many_times() {
    let (ports, log) = space_with(AccessRules::any(4), true);
    let mut buf = [0; 6];
    assert!(ports.read_bulk(0x1010, Width::W2, &mut buf, CPU).is_ok());
    assert_eq!(take(&log), [('r', 0x10, 2, 0); 3]);
    let word = [byte(0x10) as u8, byte(0x11) as u8];
    assert_eq!(buf[..], [word, word, word].concat());
    assert!(ports.write_bulk(0x1010, Width::W2, &[1, 2, 3, 4], CPU).is_ok());
    assert_eq!(take(&log), [('w', 0x10, 2, 0x201), ('w', 0x10, 2, 0x403)]);
}
