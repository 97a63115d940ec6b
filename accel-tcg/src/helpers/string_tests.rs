//! Repeated strings in bulk against the same ones element by element.
//!
//! With a data breakpoint armed, far from everything, no translation is cached and each element goes alone.
use super::string::{self, CMPS, LODS, MOVS, SCAS, STOS};
use super::{Flow, HelperArgs};
use crate::env::{Cpu, Exec};
use crate::interp::flags;
use crate::testbed::{TestBed, enter_long_mode};
use anura_x86::regs::rflags;
use anura_x86::{CpuState, Segment};

const DATA: u64 = 0x40_0000;
const FRAMES: u64 = 0x20_0000;
const LEN: u64 = 0x7000;

struct Numbers(u64);
impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Seven pages of data: the fourth read-only, the fifth with marks of code, the last one absent.
fn bed() -> (TestBed, Cpu) {
    let t = TestBed::new(4 << 20, "max");
    let mut next = 0x11000;
    for n in 0..6u64 {
        let flags = if n == 3 { 5 } else { 7 };
        t.map_page(0x10000, &mut next, DATA + n * 0x1000, FRAMES + n * 0x1000 | flags);
    }
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, 0x10000, 3);
    (t, cpu)
}

fn once(
    t: &TestBed,
    cpu: &mut Cpu,
    start: &CpuState,
    image: &[u8],
    a: &HelperArgs,
) -> (Exec<Flow>, CpuState, Vec<u8>) {
    cpu.load_state(start);
    t.ram.write(FRAMES, image);
    t.ram.tracker().mark_code(FRAMES + 0x4100, 0x40);
    // Code that is written ends the instruction, so that it can be made anew; there is none here.
    let mut result = Ok(Flow::Again);
    for _ in 0..20_000 {
        string::unlimited(cpu);
        result = string::string(cpu, a);
        if result != Ok(Flow::Again) {
            break;
        }
    }
    let mut memory = vec![0; LEN as usize];
    t.ram.read(FRAMES, &mut memory);
    let mut state = cpu.save_state();
    (state.dr7, state.dr) = (0x400, [0; 4]);
    (result, state, memory)
}

/// Runs both ways; how many elements were done.
fn both(t: &TestBed, cpu: &mut Cpu, state: &CpuState, image: &[u8], a: &HelperArgs, what: &str) -> u64 {
    let mut watched = state.clone();
    watched.dr[0] = 0x6000_0000;
    watched.dr7 = 0x400 | 1 << 1 | 1 << 16;
    let bulk = once(t, cpu, state, image, a);
    let single = once(t, cpu, &watched, image, a);
    assert_eq!(bulk.0, single.0, "{what}");
    assert!(bulk.2 == single.2, "memory: {what}");
    assert_eq!(bulk.1, single.1, "{what}");
    state.gpr[1].wrapping_sub(bulk.1.gpr[1])
}

#[test]
fn strings_in_bulk_do_what_single_elements_do() {
    let (t, mut cpu) = bed();
    let mut r = Numbers(11);
    let start = cpu.save_state();
    let mut done = 0;
    for round in 0..3_000 {
        let mut s = start.clone();
        let kind = [MOVS, STOS, LODS, SCAS, CMPS][r.below(5) as usize];
        let size = 1u64 << r.below(4);
        // Mostly zeros, so that comparisons go on.
        let mut image = vec![0u8; LEN as usize];
        for _ in 0..r.below(40) {
            image[r.below(LEN) as usize] = r.below(4) as u8;
        }
        let near = |r: &mut Numbers| match r.below(3) {
            0 => DATA + r.below(LEN),
            1 => (DATA + r.below(8) * 0x1000).wrapping_add(r.below(40)).wrapping_sub(20),
            _ => DATA + 0x1000 + r.below(64),
        };
        s.gpr[0] = if r.below(2) == 0 { 0 } else { r.below(u64::MAX) };
        s.gpr[1] = if r.below(2) == 0 { r.below(40) } else { r.below(9000) };
        (s.gpr[6], s.gpr[7]) = (near(&mut r), near(&mut r));
        if r.below(2) == 0 {
            s.rflags |= rflags::DF;
        }
        let a = HelperArgs {
            reg: kind,
            reg2: 3,
            size: size as u8,
            asize: if r.below(4) == 0 { 4 } else { 8 },
            rep: 1 + r.below(2) as u8,
            ..HelperArgs::default()
        };
        let what = format!("round {round}: {a:?} {:x?} flags {:x}", &s.gpr[..8], s.rflags);
        done += both(&t, &mut cpu, &s, &image, &a, &what);
    }
    assert!(done > 500_000, "only {done} elements");
    assert_eq!(flags::get(&cpu.env) & !rflags::STATUS, 0);
}

#[test]
fn offsets_wrap_and_segments_end_in_bulk_too() {
    let t = TestBed::new(4 << 20, "max");
    let mut cpu = t.cpu();
    let mut r = Numbers(17);
    let start = CpuState::reset(0);
    let mut done = 0;
    for round in 0..3_000 {
        let mut s = start.clone();
        let kind = [MOVS, STOS, LODS, SCAS, CMPS][r.below(5) as usize];
        let size = 1u64 << r.below(3);
        let limit = [0xffff, 0xffff, 0x1fff, u32::MAX][r.below(4) as usize];
        for (n, base) in [(0, FRAMES), (3, FRAMES + r.below(0x1000))] {
            // Expand-down data now and then, as protected mode leaves it.
            let kind = if r.below(8) == 0 { 0x97 } else { 0x93 };
            s.seg[n] = Segment::new(0x2000, base, limit, kind);
        }
        let near = |r: &mut Numbers| match r.below(3) {
            0 => r.below(LEN),
            1 => (r.below(3) * 0x1000).wrapping_add(r.below(30)).wrapping_sub(15) & 0xffff,
            _ => 0xfff0 + r.below(16),
        };
        (s.gpr[6], s.gpr[7]) = (near(&mut r) | 0xabcd_0000, near(&mut r) | 0xabcd_0000);
        s.gpr[1] = r.below(300) | 0x1234_0000;
        if r.below(2) == 0 {
            s.rflags |= rflags::DF;
        }
        let asize = 2;
        let a = HelperArgs {
            reg: kind,
            reg2: 3,
            size: size as u8,
            asize,
            rep: 1 + r.below(2) as u8,
            ..HelperArgs::default()
        };
        let image = vec![0; LEN as usize];
        let what = format!("round {round}: {a:?} {:x?} limit {limit:x} flags {:x}", &s.gpr[..8], s.rflags);
        done += both(&t, &mut cpu, &s, &image, &a, &what);
    }
    assert!(done > 50_000, "only {done} elements");
}
