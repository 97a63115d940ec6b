//! Accesses through hand-made page tables.
use super::*;
use crate::env::{Cpu, Exec, Fault};
use crate::helpers::{HelperArgs, system};
use crate::testbed::{TestBed, enter_long_mode};
use anura_memory::DirtyClient;
use anura_x86::regs::{cr0, cr4, dr7, efer, error, rflags, vector};
use anura_x86::segment::index::CS;

const ROOT: u64 = 0x10000;
const RW: u64 = 7;
const RO: u64 = 5;
const KERNEL: u64 = 3;

/// 64-bit code with pages: 0x40_0000 user RW, +1 user RW, +2 user RO, +3 absent, +4 kernel RW.
fn bed(cpl: u8) -> (TestBed, Cpu) {
    let t = TestBed::new(4 << 20, "max");
    let mut next = ROOT + 0x1000;
    for (i, flags) in [RW, RW, RO, 0, KERNEL].iter().enumerate() {
        let pa = 0x20_0000 + i as u64 * 0x1000;
        t.map_page(ROOT, &mut next, 0x40_0000 + i as u64 * 0x1000, pa | flags);
    }
    t.map_page(ROOT, &mut next, 0x7fff_ffff_f000, 0x21_0000 | RW);
    t.map_page(ROOT, &mut next, 0x50_0000, 0xfee0_0000 | RW);
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, ROOT, cpl);
    (t, cpu)
}

#[test]
fn what_was_written_is_read_back_through_another_view() {
    let (t, mut cpu) = bed(0);
    cpu.write_u32(0x40_0ffc, 0x1122_3344, View::Data).unwrap();
    assert_eq!(cpu.read_u64(0x40_0ffa, View::Super), Ok(0x1122_3344_0000));
    assert_eq!(t.get(0x20_0ff8) >> 32, 0x1122_3344);
}

#[test]
fn a_store_across_pages_stores_nothing_if_the_second_is_read_only() {
    let (t, mut cpu) = bed(3);
    let fault = cpu.write_u64(0x40_1ffc, u64::MAX, View::Data).unwrap_err();
    assert_eq!(fault, Fault::page(0x40_2000, error::PF_P | error::PF_W | error::PF_U));
    assert_eq!(t.get(0x20_1ff8), 0);
    cpu.write_u64(0x40_0ffc, 0x0807_0605_0403_0201, View::Data).unwrap();
    assert_eq!((t.get(0x20_0ff8), t.get(0x20_1000)), (0x0403_0201 << 32, 0x0807_0605));
}

#[test]
fn cr2_is_the_first_byte_in_the_faulting_page() {
    let (_, mut cpu) = bed(3);
    assert_eq!(cpu.read_u64(0x40_2ffc, View::Data), Err(Fault::page(0x40_3000, error::PF_U)));
    assert_eq!(cpu.read_u64(0x40_3008, View::Data), Err(Fault::page(0x40_3008, error::PF_U)));
    let expected = Fault::page(0x40_4010, error::PF_U | error::PF_P);
    assert_eq!(cpu.read_u64(0x40_4010, View::Data), Err(expected));
    assert_eq!(cpu.read_u64(0x40_4010, View::Super), Ok(0));
}

#[test]
fn addresses_that_are_not_canonical_fault_by_segment() {
    let (_, mut cpu) = bed(3);
    assert_eq!(cpu.read_u8(1 << 47, View::Data), Err(Fault::not_canonical(1 << 47)));
    assert_eq!(cpu.read_u8(1 << 47, View::Stack), Err(Fault::SS0));
    assert_eq!(cpu.read_u64(0x7fff_ffff_fffc, View::Data), Err(Fault::not_canonical(1 << 47)));
    assert_eq!(cpu.read_u32(0x7fff_ffff_fffc, View::Data), Ok(0));
    assert_eq!(cpu.translate_exec(1 << 63 | 1 << 47), Err(Fault::GP0));
}

#[test]
fn a_first_read_does_not_let_a_write_skip_the_dirty_bit() {
    let (t, mut cpu) = bed(0);
    cpu.read_u8(0x40_0000, View::Data).unwrap();
    let pte = |t: &TestBed| {
        let mut table = ROOT;
        for shift in [39, 30, 21] {
            table = t.get(table + (0x40_0000u64 >> shift & 511) * 8) & paging_address();
        }
        t.get(table) & 0x60
    };
    assert_eq!(pte(&t), 0x20);
    cpu.write_u8(0x40_0000, 1, View::Data).unwrap();
    assert_eq!(pte(&t), 0x60);
}
fn paging_address() -> u64 {
    anura_x86::paging::ADDRESS
}

#[test]
fn smap_follows_ac_for_explicit_accesses_only() {
    let (_, mut cpu) = bed(0);
    cpu.write_cr4(cpu.env.cr4 | cr4::SMAP | cr4::SMEP).unwrap();
    let denied = Err(Fault::page(0x40_0000, error::PF_P));
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), denied);
    system::stac(&mut cpu, &HelperArgs::default()).unwrap();
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0));
    assert_eq!(cpu.read_u8(0x40_0000, View::Super), denied);
    system::clac(&mut cpu, &HelperArgs::default()).unwrap();
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), denied);
    let fetch = Fault::page(0x40_0000, error::PF_P | error::PF_I);
    assert_eq!(cpu.translate_exec(0x40_0000), Err(fetch));
}

#[test]
fn a_changed_table_counts_after_invlpg_only() {
    let (t, mut cpu) = bed(0);
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0));
    t.put(0x20_9000, 0x77);
    let mut next = 0x30_0000;
    t.map_page(ROOT, &mut next, 0x40_0000, 0x20_9000 | RW);
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0));
    let args = HelperArgs { a: 0x40_0123, ..HelperArgs::default() };
    system::invlpg(&mut cpu, &args).unwrap();
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0x77));
}

#[test]
fn global_translations_survive_a_cr3_load_but_not_a_pge_flip() {
    let (t, mut cpu) = bed(0);
    let mut next = 0x30_0000;
    t.map_page(ROOT, &mut next, 0x40_0000, 0x20_0000 | RW | 1 << 8);
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0));
    t.put(0x20_9000, 0x77);
    t.map_page(ROOT, &mut next, 0x40_0000, 0x20_9000 | RW);
    cpu.write_cr3(ROOT).unwrap();
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0));
    cpu.write_cr4(cpu.env.cr4 & !cr4::PGE).unwrap();
    assert_eq!(cpu.read_u8(0x40_0000, View::Data), Ok(0x77));
}

#[test]
fn a_store_to_a_logged_page_is_seen_by_the_log_each_time() {
    let (t, mut cpu) = bed(0);
    cpu.write_u8(0x40_0000, 1, View::Data).unwrap();
    let tracker = t.ram.tracker();
    tracker.take_dirty(DirtyClient::Hash, 0, t.ram.len(), |_| {});
    // The listener of an engine would do this.
    // SAFETY: the offset is inside the block.
    cpu.mmu.protect(unsafe { t.ram.host_ptr().as_ptr().add(0x20_0000) });
    assert!(!tracker.is_dirty(DirtyClient::Hash, 0x20_0000));
    cpu.write_u8(0x40_0008, 2, View::Data).unwrap();
    assert!(tracker.is_dirty(DirtyClient::Hash, 0x20_0000));
    assert_eq!(t.get(0x20_0008), 2);
}

#[test]
fn the_apic_page_lies_over_memory_for_whole_words() {
    let (_, mut cpu) = bed(0);
    assert_eq!(cpu.read_u32(0x50_0030, View::Data), Ok(0x30));
    assert_eq!(cpu.read_u8(0x50_0031, View::Data), Ok(0));
    assert_eq!(cpu.read_u64(0x50_0020, View::Data), Ok(0x20 | 0x24 << 32));
}

#[test]
fn data_breakpoints_trap_on_overlap() {
    let (_, mut cpu) = bed(0);
    let set = |cpu: &mut Cpu, reg, a| {
        system::mov_to_dr(cpu, &HelperArgs { reg, a, ..HelperArgs::default() }).unwrap();
    };
    set(&mut cpu, 0, 0x40_0010);
    set(&mut cpu, 7, 0x000d_0001);
    cpu.read_u64(0x40_0010, View::Data).unwrap();
    assert_eq!(cpu.env.pending_db, 0);
    cpu.write_u8(0x40_0013, 1, View::Data).unwrap();
    assert_eq!(cpu.env.pending_db, 1);
    cpu.env.pending_db = 0;
    cpu.write_u8(0x40_0014, 1, View::Data).unwrap();
    assert_eq!(cpu.env.pending_db, 0);
    set(&mut cpu, 7, 0);
    cpu.write_u8(0x40_0013, 1, View::Data).unwrap();
    assert_eq!(cpu.env.pending_db, 0);
}

#[test]
fn control_registers_refuse_impossible_values_and_stay() {
    type Case = (&'static str, fn(&mut Cpu) -> Exec<()>);
    let cases: &[Case] = &[
        ("PG without PE", |c| c.write_cr0(cr0::PG)),
        ("NW without CD", |c| c.write_cr0(c.env.cr0 | cr0::NW)),
        ("high half of CR0", |c| c.write_cr0(c.env.cr0 | 1 << 32)),
        ("PG off in 64-bit code", |c| c.write_cr0(c.env.cr0 & !cr0::PG)),
        ("PAE off in long mode", |c| c.write_cr4(c.env.cr4 & !cr4::PAE)),
        ("unknown CR4 bit", |c| c.write_cr4(c.env.cr4 | cr4::VMXE)),
        ("PCIDE with a PCID in CR3", |c| {
            c.write_cr3(ROOT | 8)?;
            c.write_cr4(c.env.cr4 | cr4::PCIDE)
        }),
        ("CR3 beyond MAXPHYADDR", |c| c.write_cr3(1 << 45)),
        ("LME off while paging", |c| c.write_efer(c.env.efer & !efer::LME)),
        ("unknown EFER bit", |c| c.write_efer(c.env.efer | 1 << 20)),
        ("XCR0 without x87", |c| c.write_xcr0(2)),
        ("AVX without SSE", |c| c.write_xcr0(5)),
    ];
    for (name, attempt) in cases {
        let (_, mut cpu) = bed(0);
        let before = (cpu.env.cr0, cpu.env.cr4, cpu.env.efer, cpu.env.xcr0);
        assert_eq!(attempt(&mut cpu), Err(Fault::GP0), "{name}");
        assert_eq!((cpu.env.cr0, cpu.env.cr4, cpu.env.efer, cpu.env.xcr0), before, "{name}");
    }
}

#[test]
fn long_mode_starts_and_ends_with_paging() {
    let (_, mut cpu) = bed(0);
    cpu.env.seg[CS].attr.set_l(false);
    cpu.env.seg[CS].attr.set_db(true);
    cpu.mode_changed();
    cpu.write_cr0(cpu.env.cr0 & !cr0::PG).unwrap();
    assert_eq!(cpu.env.efer & efer::LMA, 0);
    cpu.write_cr0(cpu.env.cr0 | cr0::PG).unwrap();
    assert_ne!(cpu.env.efer & efer::LMA, 0);
    cpu.write_cr0(cpu.env.cr0 & !cr0::PG).unwrap();
    cpu.write_cr4(cpu.env.cr4 & !cr4::PAE).unwrap();
    assert_eq!(cpu.write_cr0(cpu.env.cr0 | cr0::PG), Err(Fault::GP0));
}

#[test]
fn privileged_instructions_fault_at_cpl_3() {
    type Case = (&'static str, fn(&mut Cpu, &HelperArgs) -> Exec<crate::helpers::Flow>);
    let cases: &[Case] = &[
        ("cli", system::cli),
        ("sti", system::sti),
        ("hlt", system::hlt),
        ("clts", system::clts),
        ("lmsw", system::lmsw),
        ("rdmsr", system::rdmsr),
        ("wrmsr", system::wrmsr),
        ("invlpg", system::invlpg),
        ("wbinvd", system::wbinvd),
        ("mov cr0", system::mov_to_cr),
        ("mov from cr0", system::mov_from_cr),
        ("mov dr0", system::mov_to_dr),
        ("in", crate::helpers::io::in_),
        ("out", crate::helpers::io::out),
    ];
    for (name, run) in cases {
        let (_, mut cpu) = bed(3);
        cpu.env.tr.limit = 0;
        assert_eq!(run(&mut cpu, &HelperArgs { size: 1, ..Default::default() }), Err(Fault::GP0), "{name}");
    }
}

#[test]
fn debug_registers_alias_and_guard() {
    let (_, mut cpu) = bed(0);
    let read = |cpu: &mut Cpu, reg| {
        system::mov_from_dr(cpu, &HelperArgs { reg, reg2: 0, ..HelperArgs::default() })?;
        Ok::<u64, Fault>(cpu.env.gpr[0])
    };
    assert_eq!(read(&mut cpu, 4), Ok(0xffff_0ff0));
    cpu.write_cr4(cpu.env.cr4 | cr4::DE).unwrap();
    assert_eq!(read(&mut cpu, 4), Err(Fault::UD));
    let high = HelperArgs { reg: 7, a: 1 << 32, ..HelperArgs::default() };
    assert_eq!(system::mov_to_dr(&mut cpu, &high), Err(Fault::GP0));
    cpu.env.dr7 |= dr7::GD;
    let guard = read(&mut cpu, 0).unwrap_err();
    assert_eq!((guard.vector, guard.cr2), (vector::DB, 1 << 13));
}

#[test]
fn the_io_bitmap_lets_single_ports_through() {
    let (t, mut cpu) = bed(3);
    t.put(0x3060, 0x68 << 48);
    t.put(0x3068, !(0b110 << 8));
    cpu.env.tr = anura_x86::Segment::new(0x28, 0x3000, 0x6a, 0x8b);
    let mut next = 0x30_0000;
    t.map_page(ROOT, &mut next, 0x3000, 0x3000 | KERNEL);
    assert_eq!(cpu.check_port(9, 1), Ok(()));
    assert_eq!(cpu.check_port(9, 2), Ok(()));
    assert_eq!(cpu.check_port(10, 2), Err(Fault::GP0));
    assert_eq!(cpu.check_port(8, 1), Err(Fault::GP0));
    assert_eq!(cpu.check_port(24, 1), Err(Fault::GP0), "beyond the limit");
    cpu.env.eflags_sys |= rflags::IOPL;
    assert_eq!(cpu.check_port(8, 4), Ok(()));
}

#[test]
fn msrs_check_what_they_are_given() {
    let (_, mut cpu) = bed(0);
    use anura_x86::msr;
    for (number, value, ok) in [
        (msr::PAT, 0x0007_0406_0007_0406, true),
        (msr::PAT, 2, false),
        (msr::LSTAR, 0xffff_8000_0000_0000, true),
        (msr::LSTAR, 1 << 57, false),
        (msr::MTRR_DEF_TYPE, 0xc06, true),
        (msr::MTRR_DEF_TYPE, 0x1000, false),
        (msr::MTRR_PHYS_BASE0, 1 << 44, false),
        (msr::MTRR_PHYS_BASE0 + 1, 0xff_f000_0800, true),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x250, 2, false),
        (msr::TSC_AUX, 1 << 32, false),
        (0x1234_5678, 0, false),
    ] {
        let result = cpu.write_msr(number, value);
        assert_eq!(result.is_ok(), ok, "{number:x} = {value:x}");
        if ok {
            assert_eq!(cpu.read_msr(number), Some(value), "{number:x}");
        }
    }
    assert_eq!(cpu.read_msr(0x1234_5678), None);
}

#[test]
fn writing_the_tsc_moves_it_and_its_adjustment() {
    let (_, mut cpu) = bed(0);
    use anura_x86::msr;
    cpu.write_msr(msr::TSC, 5000).unwrap();
    assert_eq!((cpu.read_msr(msr::TSC), cpu.read_msr(msr::TSC_ADJUST)), (Some(5000), Some(5000)));
    cpu.write_msr(msr::TSC_ADJUST, 0).unwrap();
    assert_eq!(cpu.read_msr(msr::TSC), Some(0));
}

/// Maps a page of code at `va` and fetches from it.
fn fetch(t: &TestBed, cpu: &mut Cpu, va: u64, pte: u64) {
    let mut next = 0x30_0000 + (va >> 12 & 0xf) * 0x8000;
    t.map_page(ROOT, &mut next, va, pte);
    cpu.translate_exec(va).unwrap();
}

const UPPER: u64 = 0xffff_ffff_8100_0000;

#[test]
fn epochs_change_only_with_the_mapping_of_code() {
    let (t, mut cpu) = bed(0);
    fetch(&t, &mut cpu, UPPER, 0x20_0000 | KERNEL | 1 << 8);
    cpu.translate_exec(0x40_0000).unwrap();
    let (start, left) = (cpu.mmu.epochs(), cpu.mmu.exec_epoch);
    cpu.mmu.flush_page(0x40_1000);
    cpu.mmu.flush_page(UPPER + 0x1000);
    assert_eq!((cpu.mmu.epochs(), cpu.mmu.exec_epoch), (start, left), "no code there");
    cpu.mmu.flush_page(0x40_0123);
    let after = cpu.mmu.epochs();
    assert!(after[0] != start[0] && after[1] == start[1] && cpu.mmu.exec_epoch != left);
    cpu.mmu.flush_page(UPPER);
    assert_ne!(cpu.mmu.epochs()[1], after[1]);
}

#[test]
fn the_epoch_of_global_code_survives_a_cr3_load() {
    let (t, mut cpu) = bed(0);
    fetch(&t, &mut cpu, UPPER, 0x20_0000 | KERNEL | 1 << 8);
    let before = cpu.mmu.epochs();
    cpu.write_cr3(ROOT + 0x8_0000).unwrap();
    let after = cpu.mmu.epochs();
    assert!(after[0] != before[0] && after[1] == before[1]);
    cpu.write_cr3(ROOT).unwrap();
    fetch(&t, &mut cpu, UPPER + 0x1000, 0x20_1000 | KERNEL);
    let before = cpu.mmu.epochs();
    cpu.write_cr3(ROOT + 0x8_0000).unwrap();
    assert_ne!(cpu.mmu.epochs()[1], before[1], "a page of it was not global");
}
