//! Contexts side by side: what must go at a switch, and what may stay.
use super::*;
use crate::env::{Cpu, Fault};
use crate::helpers::{HelperArgs, system};
use crate::testbed::{TestBed, enter_long_mode};
use anura_x86::regs::{cr3, cr4};
use std::collections::BTreeMap;

const ROOTS: [u64; 2] = [0x10000, 0x20000];
const RW: u64 = 7;
const GLOBAL: u64 = 1 << 8;
const LOW: u64 = 0x40_0000;
const HIGH: u64 = 0xffff_8880_0001_0000;

/// Where the page table entry of a mapped address is.
fn pte(t: &TestBed, root: u64, va: u64) -> u64 {
    let mut table = root;
    for shift in [39, 30, 21] {
        table = t.get(table + (va >> shift & 511) * 8) & anura_x86::paging::ADDRESS;
    }
    table + (va >> 12 & 511) * 8
}

/// Two contexts with four pages each at LOW, read-write user pages, and one global page at HIGH. Page `n` of context
/// `c` is at 0x20_0000 + c * 0x1_0000 + n * 0x1000 and begins with its own address.
fn bed(pcid: bool) -> (TestBed, Cpu) {
    let t = TestBed::new(8 << 20, "max");
    for (c, root) in ROOTS.into_iter().enumerate() {
        let mut next = root + 0x1000;
        for n in 0..4 {
            t.map_page(root, &mut next, LOW + n * 0x1000, frame(c, n) | RW);
        }
        t.map_page(root, &mut next, HIGH, 0x30_0000 | RW | GLOBAL);
    }
    for page in (0x20_0000..0x40_0000).step_by(0x1000) {
        t.put(page, page);
    }
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, ROOTS[0], 0);
    if pcid {
        cpu.write_cr4(cpu.env.cr4 | cr4::PCIDE).unwrap();
    }
    (t, cpu)
}

fn frame(c: usize, n: u64) -> u64 {
    0x20_0000 + c as u64 * 0x1_0000 + n * 0x1000
}

fn has(cpu: &Cpu, va: u64) -> bool {
    cpu.mmu.list().iter().any(|e| e.1 == va)
}

fn touch(cpu: &mut Cpu) {
    for n in 0..4 {
        cpu.read_u64(LOW + n * 0x1000, View::Data).unwrap();
    }
    cpu.read_u64(HIGH, View::Data).unwrap();
    cpu.translate_exec(LOW).unwrap();
}

#[test]
fn a_context_that_comes_back_unchanged_has_its_translations_and_its_epoch() {
    let (_, mut cpu) = bed(false);
    touch(&mut cpu);
    let before = cpu.mmu.epochs();
    cpu.write_cr3(ROOTS[1]).unwrap();
    assert!(!has(&cpu, LOW) && has(&cpu, HIGH), "a new context has what is global");
    assert_eq!(cpu.read_u64(LOW, View::Data), Ok(frame(1, 0)));
    cpu.translate_exec(LOW).unwrap();
    assert_ne!(cpu.mmu.epochs()[0], before[0]);
    assert_eq!(cpu.mmu.epochs()[1], before[1]);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.mmu.epochs(), before);
    assert!((0..4).all(|n| has(&cpu, LOW + n * 0x1000)));
    assert_eq!(cpu.read_u64(LOW, View::Data), Ok(frame(0, 0)));
}

#[test]
fn an_entry_that_changed_meanwhile_is_dropped_alone() {
    let (t, mut cpu) = bed(false);
    touch(&mut cpu);
    let before = cpu.mmu.epochs();
    cpu.write_cr3(ROOTS[1]).unwrap();
    // Whoever writes it: here it is a device.
    t.put(pte(&t, ROOTS[0], LOW + 0x1000), 0x3f_0000 | RW);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert!(has(&cpu, LOW) && !has(&cpu, LOW + 0x1000));
    assert_eq!(cpu.read_u64(LOW + 0x1000, View::Data), Ok(0x3f_0000));
    assert_eq!(cpu.mmu.epochs(), before, "no code was there");
}

#[test]
fn code_that_moved_meanwhile_has_a_new_epoch() {
    let (t, mut cpu) = bed(false);
    touch(&mut cpu);
    let before = cpu.mmu.epochs();
    let at = pte(&t, ROOTS[0], LOW);
    cpu.write_u64(LOW, 1, View::Data).unwrap();
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.mmu.epochs(), before, "a dirty bit is no move");
    t.put(at, 0x3f_0000 | RW);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_ne!(cpu.mmu.epochs()[0], before[0]);
    assert_eq!(cpu.translate_exec(LOW).map(|p| p.phys), Ok(0x3f_0000));
}

#[test]
fn a_table_that_moved_meanwhile_takes_its_translations_along() {
    let (t, mut cpu) = bed(false);
    touch(&mut cpu);
    cpu.write_cr3(ROOTS[1]).unwrap();
    // Another page table for the same two megabytes.
    for n in 0..4 {
        t.put(0x50_0000 + n * 8, frame(1, n) | RW);
    }
    let pde = 0x10000 + 0x2000 + (LOW >> 21 & 511) * 8;
    assert_eq!(t.get(pde) & !0xfff, pte(&t, ROOTS[0], LOW) & !0xfff);
    t.put(pde, 0x50_0000 | RW);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.read_u64(LOW + 0x2000, View::Data), Ok(frame(1, 2)));
}

#[test]
fn a_page_that_was_unmapped_meanwhile_faults() {
    let (t, mut cpu) = bed(false);
    touch(&mut cpu);
    t.put(pte(&t, ROOTS[0], LOW), 0);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.read_u64(LOW, View::Data), Err(Fault::page(LOW, 0)));
    assert_eq!(cpu.translate_exec(LOW), Err(Fault::page(LOW, anura_x86::regs::error::PF_I)));
}

#[test]
fn invlpg_reaches_global_translations_of_other_contexts() {
    let (t, mut cpu) = bed(false);
    touch(&mut cpu);
    cpu.write_cr3(ROOTS[1]).unwrap();
    touch(&mut cpu);
    for root in ROOTS {
        t.put(pte(&t, root, HIGH), 0x3f_0000 | RW | GLOBAL);
    }
    let args = HelperArgs { a: HIGH + 8, ..HelperArgs::default() };
    system::invlpg(&mut cpu, &args).unwrap();
    assert_eq!(cpu.read_u64(HIGH, View::Data), Ok(0x3f_0000));
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.read_u64(HIGH, View::Data), Ok(0x3f_0000));
    // More than are remembered one by one.
    t.put(pte(&t, ROOTS[1], HIGH), 0x3e_0000 | RW | GLOBAL);
    for n in (0..20).rev() {
        system::invlpg(&mut cpu, &HelperArgs { a: HIGH + n * 0x1000, ..args }).unwrap();
    }
    cpu.write_cr3(ROOTS[1]).unwrap();
    assert_eq!(cpu.read_u64(HIGH, View::Data), Ok(0x3e_0000));
}

#[test]
fn a_pcid_is_switched_to_without_a_flush_only_if_asked() {
    let (t, mut cpu) = bed(true);
    touch(&mut cpu);
    let before = cpu.mmu.epochs();
    let to = |cpu: &mut Cpu, c: usize, flush: bool| {
        cpu.write_cr3(ROOTS[c] | c as u64 | if flush { 0 } else { cr3::NOFLUSH }).unwrap();
        assert_eq!(cpu.env.cr3, ROOTS[c] | c as u64);
    };
    to(&mut cpu, 1, true);
    touch(&mut cpu);
    t.put(pte(&t, ROOTS[0], LOW), 0x3f_0000 | RW);
    to(&mut cpu, 0, false);
    assert_eq!(cpu.mmu.epochs(), before);
    assert_eq!(cpu.read_u64(LOW, View::Data), Ok(frame(0, 0)), "the old translation stays");
    to(&mut cpu, 0, true);
    assert_eq!(cpu.read_u64(LOW, View::Data), Ok(0x3f_0000));
    assert_ne!(cpu.mmu.epochs()[0], before[0]);
}

#[test]
fn invpcid_drops_by_address_context_and_all() {
    // Type, PCID, address; then whether the changed entry is seen at LOW, LOW + 0x1000 and HIGH in the other context.
    let cases = [
        (0, 1, LOW, [true, false, false]),
        (1, 1, 0, [true, true, false]),
        (1, 0, 0, [false, false, false]),
        (2, 0, 0, [true, true, true]),
        (3, 0, 0, [true, true, false]),
    ];
    for (kind, pcid, address, seen) in cases {
        let (t, mut cpu) = bed(true);
        cpu.write_cr3(ROOTS[1] | 1).unwrap();
        touch(&mut cpu);
        cpu.write_cr3(ROOTS[0] | cr3::NOFLUSH).unwrap();
        let all = [LOW, LOW + 0x1000, HIGH];
        for va in all {
            let at = pte(&t, ROOTS[1], va);
            t.put(at, 0x3f_0000 | RW | t.get(at) & GLOBAL);
        }
        t.put(0x32_0000, pcid);
        t.put(0x32_0008, address);
        let mut next = 0x60_0000;
        t.map_page(ROOTS[0], &mut next, 0x7000_0000, 0x32_0000 | RW);
        let args = HelperArgs { a: kind, b: 0x7000_0000, ..HelperArgs::default() };
        system::invpcid(&mut cpu, &args).unwrap();
        cpu.write_cr3(ROOTS[1] | 1 | cr3::NOFLUSH).unwrap();
        for (va, seen) in all.into_iter().zip(seen) {
            let new = cpu.read_u64(va, View::Data) == Ok(0x3f_0000);
            // Dropping more is allowed, dropping less is not.
            assert!(new || !seen, "type {kind} pcid {pcid} address {address:x}: {va:x}");
            assert!(seen || !new || kind == 0, "type {kind} pcid {pcid}: {va:x} was kept so far");
        }
    }
    for (kind, pcid, address) in [(4, 0, 0), (0, 1 << 12, 0), (1, 1 << 12, 0), (0, 0, 1 << 60)] {
        let (t, mut cpu) = bed(true);
        t.put(frame(0, 0), pcid);
        t.put(frame(0, 0) + 8, address);
        let args = HelperArgs { a: kind, b: LOW, ..HelperArgs::default() };
        assert_eq!(system::invpcid(&mut cpu, &args), Err(Fault::GP0), "type {kind} {pcid:x} {address:x}");
    }
}

#[test]
fn a_page_that_became_code_loses_its_store_tag_in_every_context() {
    let (t, mut cpu) = bed(false);
    cpu.write_u64(LOW, 1, View::Data).unwrap();
    cpu.write_cr3(ROOTS[1]).unwrap();
    let host = |n: u64| {
        // SAFETY: the offset is inside of the block.
        unsafe { t.ram.host_ptr().as_ptr().add(n as usize).cast_const() }
    };
    let tracker = t.ram.tracker();
    tracker.take_dirty(anura_memory::DirtyClient::Hash, 0, t.ram.len(), |_| {});
    cpu.mmu.protect(host(frame(0, 0)));
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert!(cpu.try_read::<u64>(LOW).is_some() && !cpu.try_write(LOW, 2u64));
    cpu.write_u64(LOW, 2, View::Data).unwrap();
    assert!(tracker.is_dirty(anura_memory::DirtyClient::Hash, frame(0, 0)));
}

#[test]
fn rights_of_protection_keys_reach_a_context_when_it_comes_back() {
    let (t, mut cpu) = bed(false);
    let at = pte(&t, ROOTS[0], LOW);
    t.put(at, t.get(at) | 3 << anura_x86::paging::KEY_SHIFT);
    cpu.write_cr4(cpu.env.cr4 | cr4::PKE).unwrap();
    touch(&mut cpu);
    let set = |cpu: &mut Cpu, rights: u64| {
        (cpu.env.gpr[0], cpu.env.gpr[1], cpu.env.gpr[2]) = (rights, 0, 0);
        system::wrpkru(cpu, &HelperArgs::default()).unwrap();
    };
    set(&mut cpu, 1 << 6);
    assert!(!has(&cpu, LOW) && has(&cpu, LOW + 0x1000));
    assert_eq!(cpu.read_u64(LOW, View::Data), Err(Fault::page(LOW, 0x21)));
    set(&mut cpu, 0);
    assert_eq!(cpu.read_u64(LOW, View::Data), Ok(frame(0, 0)));
    cpu.write_cr3(ROOTS[1]).unwrap();
    set(&mut cpu, 1 << 6);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.read_u64(LOW, View::Data), Err(Fault::page(LOW, 0x21)));
}

#[test]
fn new_pdptes_are_a_new_context() {
    use anura_x86::regs::{cr0, efer};
    let t = TestBed::new(8 << 20, "max");
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, 0x10000, 0);
    for (pd, pt, page) in [(0x11000, 0x12000, 0x20_0000), (0x13000, 0x14000, 0x21_0000)] {
        t.put(pd, pt | 7);
        t.put(pt, page | 7);
        t.put(page, page);
    }
    t.put(0x10000, 0x11001);
    cpu.env.efer &= !(efer::LME | efer::LMA);
    cpu.env.seg[anura_x86::segment::index::CS].attr.set_l(false);
    cpu.env.seg[anura_x86::segment::index::CS].attr.set_db(true);
    cpu.env.cr0 &= !cr0::PG;
    cpu.after_load();
    cpu.write_cr0(cpu.env.cr0 | cr0::PG).unwrap();
    assert_eq!(cpu.read_u64(0, View::Data), Ok(0x20_0000));
    t.put(0x10000, 0x13001);
    assert_eq!(cpu.read_u64(0, View::Data), Ok(0x20_0000));
    cpu.write_cr3(0x10000).unwrap();
    assert_eq!(cpu.read_u64(0, View::Data), Ok(0x21_0000));
    t.put(0x10000, 0x11001);
    // Caching changes load them too.
    cpu.write_cr0(cpu.env.cr0 | cr0::CD).unwrap();
    assert_eq!(cpu.read_u64(0, View::Data), Ok(0x20_0000));
}

/// What an address maps to by the tables, for pages that all exist.
fn expected(t: &TestBed, root: u64, va: u64) -> Option<u64> {
    let mut table = root;
    for shift in [39, 30, 21] {
        let e = t.get(table + (va >> shift & 511) * 8);
        if e & 1 == 0 {
            return None;
        }
        table = e & anura_x86::paging::ADDRESS;
    }
    let e = t.get(table + (va >> 12 & 511) * 8);
    (e & 1 != 0).then_some(e & anura_x86::paging::ADDRESS)
}

#[test]
fn after_a_cr3_load_every_access_goes_where_the_tables_say() {
    let mut seed = 7u64;
    let mut rnd = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 8) % n
    };
    const PAGES: u64 = 12;
    // Two regions of two megabytes; more roots than slots.
    let va = |n: u64| LOW + (n % 2) * 0x20_0000 + n * 0x1000;
    let t = TestBed::new(16 << 20, "max");
    let roots: Vec<u64> = (0..15).map(|n| 0x10_0000 + n * 0x8000).collect();
    for page in (0x80_0000..0x88_0000).step_by(0x1000) {
        t.put(page, page);
    }
    let frame = |n: u64| 0x80_0000 + n * 0x1000;
    for root in &roots {
        let mut next = root + 0x1000;
        for n in 0..PAGES {
            t.map_page(*root, &mut next, va(n), frame(rnd(128)) | RW);
        }
    }
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, roots[0], 0);
    let mut known: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut kept = 0;
    for step in 0..20_000 {
        let root = roots[rnd(if step % 1000 < 500 { 4 } else { 15 }) as usize];
        for _ in 0..rnd(3) {
            let (victim, n) = (roots[rnd(15) as usize], rnd(PAGES));
            match rnd(12) {
                // Both regions swap their tables.
                0 => {
                    let pd = t.get(t.get(victim) & !0xfff & anura_x86::paging::ADDRESS);
                    let pd = pd & anura_x86::paging::ADDRESS;
                    let (a, b) = (pd + (va(0) >> 21 & 511) * 8, pd + (va(1) >> 21 & 511) * 8);
                    let (x, y) = (t.get(a), t.get(b));
                    t.put(a, y);
                    t.put(b, x);
                }
                1 | 2 => t.put(pte(&t, victim, va(n)), 0),
                // Only the accessed and dirty bits.
                3 => {
                    let at = pte(&t, victim, va(n));
                    t.put(at, t.get(at) & !0x60);
                }
                _ => t.put(pte(&t, victim, va(n)), frame(rnd(128)) | RW),
            }
        }
        cpu.write_cr3(root).unwrap();
        kept += cpu.mmu.list().len();
        let [lower, _] = cpu.mmu.epochs();
        // What an epoch once said of a page of code it says still.
        for n in 0..PAGES {
            if let Some(was) = known.get(&(lower, va(n))) {
                assert_eq!(expected(&t, root, va(n)), Some(*was), "step {step}: epoch {lower} {:x}", va(n));
            }
        }
        for _ in 0..rnd(8) {
            let n = rnd(PAGES);
            let wanted = expected(&t, root, va(n));
            if rnd(3) == 0 {
                let got = cpu.translate_exec(va(n)).ok().map(|p| p.phys);
                assert_eq!(got, wanted, "step {step}: fetch of {:x}", va(n));
                if let Some(to) = got {
                    known.insert((cpu.mmu.epochs()[0], va(n)), to);
                }
            } else {
                let got = cpu.read_u64(va(n), View::Data).ok();
                assert_eq!(got, wanted, "step {step}: read of {:x}", va(n));
                if got.is_some() {
                    assert_ne!(t.get(pte(&t, root, va(n))) & 0x20, 0, "accessed");
                }
            }
            if rnd(4) == 0 {
                let ok = cpu.write_u64(va(n), wanted.unwrap_or(0), View::Data).is_ok();
                assert_eq!(ok, wanted.is_some());
                assert!(!ok || t.get(pte(&t, root, va(n))) & 0x40 != 0, "dirty");
            }
        }
    }
    assert!(kept > 20_000, "only {kept} translations were kept");
}

#[test]
fn only_what_lies_under_a_table_that_moved_goes() {
    let (t, mut cpu) = bed(false);
    let far = LOW + 0x41_0000;
    let mut next = 0x60_0000;
    t.map_page(ROOTS[0], &mut next, far, 0x30_0000 | RW);
    t.map_page(ROOTS[0], &mut next, far + 0x1000, 0x31_0000 | RW);
    cpu.read_u64(far + 0x1000, View::Data).unwrap();
    cpu.translate_exec(far).unwrap();
    touch(&mut cpu);
    let [code, _] = cpu.mmu.epochs();
    // The table of the far pages goes, as when its last page is unmapped, and comes back elsewhere.
    let pde = 0x10000 + 0x2000 + (far >> 21 & 511) * 8;
    let old = t.get(pde);
    t.put(0x50_0088, 0x3f_0000 | RW);
    for round in 0..20 {
        t.put(pde, 0x50_0000 | RW);
        assert_eq!(cpu.read_u64(far + 0x1000, View::Data), Ok([0x31_0000, 0x3f_0000][(round > 0) as usize]));
        cpu.write_cr3(ROOTS[0]).unwrap();
        assert!((0..4).all(|n| has(&cpu, LOW + n * 0x1000)));
        assert_eq!(cpu.read_u64(far + 0x1000, View::Data), Ok(0x3f_0000));
        t.put(pde, 0);
        cpu.write_cr3(ROOTS[0]).unwrap();
        assert_eq!(cpu.read_u64(far + 0x1000, View::Data), Err(Fault::page(far + 0x1000, 0)));
    }
    t.put(pde, old);
    assert_ne!(cpu.mmu.epochs()[0], code, "code was there");
    cpu.translate_exec(LOW).unwrap();
    let [code, _] = cpu.mmu.epochs();
    cpu.read_u64(far, View::Data).unwrap();
    t.put(pde, 0);
    cpu.write_cr3(ROOTS[0]).unwrap();
    assert_eq!(cpu.mmu.epochs()[0], code);
    assert_eq!(cpu.mmu.counts.tables, 0);
}
