//! Delivery, returns and far transfers on hand-made tables.
//!
//! Layout: GDT 0x1000, IDT 0x2000, TSS 0x3000, kernel stacks below 0x8000 (RSP0), 0x9000 (IST1)
//! and 0xa000 (current), page tables from 0x10000, user code and stack below 0x100000. Handler of
//! vector v: 0x40000 + v * 16.
use super::*;
use crate::deliver::far::{call_far, jmp_far, ret_far};
use crate::deliver::iret::iret;
use crate::deliver::sys::{int, syscall, sysret};
use crate::helpers::seg::{lldt, ltr};
use crate::helpers::{Flow, HelperArgs};
use crate::testbed::{TestBed, enter_long_mode};
use anura_x86::regs::{cr0, efer};
use anura_x86::{Attr, TableReg};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TSS_SEL: u16 = 0x28;
const USER_CODE32: u16 = 0x3b;
const CONFORMING: u16 = 0x40;
const ABSENT: u16 = 0x48;

pub(super) fn handler(v: u8) -> u64 {
    0x40000 + u64::from(v) * 16
}

fn put_gate64(t: &TestBed, v: u8, selector: u16, flags: u8, ist: u8) {
    t.put(IDT + u64::from(v) * 16, Descriptor::gate(selector, handler(v) as u32, flags, ist).0);
    t.put(IDT + u64::from(v) * 16 + 8, 0);
}

fn put_tables(t: &TestBed, long: bool) {
    let code = if long { 0xa09b } else { 0xc09b };
    for (selector, d) in [
        (CODE, Descriptor::segment(0, 0xfffff, code)),
        (DATA, Descriptor::segment(0, 0xfffff, 0xc093)),
        (USER_DATA, Descriptor::segment(0, 0xfffff, 0xc0f3)),
        (USER_CODE, Descriptor::segment(0, 0xfffff, code | 0x60)),
        (TSS_SEL, Descriptor::segment(TSS as u32, 0x67, 0x89)),
        (USER_CODE32, Descriptor::segment(0, 0xfffff, 0xc0fb)),
        (CONFORMING, Descriptor::segment(0, 0xfffff, code | 4)),
        (ABSENT, Descriptor::segment(0, 0xfffff, code & !0x80)),
    ] {
        t.put(GDT + u64::from(selector & !7), d.0);
    }
}

/// A processor in 64-bit code at the given level with all gates as interrupt gates of DPL 0.
fn long(cpl: u8) -> (TestBed, Cpu) {
    let t = TestBed::new(2 << 20, "qemu64");
    put_tables(&t, true);
    for v in 0..=255 {
        t.put(IDT + u64::from(v) * 16 + 8, 0);
        put_gate64(&t, v, CODE, 0x8e, 0);
    }
    t.put(TSS + 4, 0x8000);
    t.put(TSS + 0x24, 0x9000);
    let mut next = 0x11000;
    for page in 0..256u64 {
        t.map_page(0x10000, &mut next, page << 12, page << 12 | 7);
    }
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, 0x10000, cpl);
    set_up(&mut cpu, cpl);
    (t, cpu)
}

fn set_up(cpu: &mut Cpu, cpl: u8) {
    let e = &mut cpu.env;
    e.gdtr = TableReg { base: GDT, limit: 0x7f };
    e.idtr = TableReg { base: IDT, limit: 0xfff };
    e.tr = Segment::new(TSS_SEL, TSS, 0x67, 0x8b);
    e.seg[CS].selector = if cpl == 3 { USER_CODE } else { CODE };
    e.seg[SS].selector = if cpl == 3 { USER_DATA } else { DATA };
    e.gpr[4] = if cpl == 3 { 0xb000 } else { 0xa008 };
    e.rip = 0x5000;
    e.set_rflags(rflags::IF | rflags::TF | rflags::CF);
    cpu.mode_changed();
}

/// The same in 32-bit protected mode without paging.
pub(super) fn legacy(cpl: u8) -> (TestBed, Cpu) {
    let t = TestBed::new(2 << 20, "qemu64");
    put_tables(&t, false);
    for v in 0..=255u8 {
        t.put(IDT + u64::from(v) * 8, Descriptor::gate(CODE, handler(v) as u32, 0x8e, 0).0);
    }
    t.put(TSS + 4, 0x8000 | u64::from(DATA) << 32);
    let mut cpu = t.cpu();
    let ring = u32::from(cpl) << 5;
    cpu.env.cr0 = cr0::PE | cr0::ET;
    for i in 0..6 {
        cpu.env.seg[i] = Segment::new(DATA, 0, u32::MAX, 0xc093 | ring);
    }
    cpu.env.seg[CS] = Segment::new(CODE, 0, u32::MAX, 0xc09b | ring);
    cpu.after_load();
    set_up(&mut cpu, cpl);
    cpu.env.idtr.limit = 0x7ff;
    (t, cpu)
}

fn frame64(t: &TestBed, cpu: &Cpu, n: usize) -> Vec<u64> {
    (0..n as u64).map(|i| t.get(cpu.env.gpr[4] + i * 8)).collect()
}
pub(super) fn frame32(t: &TestBed, cpu: &Cpu, n: usize) -> Vec<u32> {
    (0..n as u64).map(|i| t.get(cpu.env.gpr[4] + i * 4) as u32).collect()
}
const FLAGS: u64 = rflags::IF | rflags::TF | rflags::CF | rflags::ONE;

#[test]
fn a_fault_from_user_mode_switches_to_rsp0_and_pushes_rf() {
    let (t, mut cpu) = long(3);
    deliver(&mut cpu, Fault::gp(0x18).into()).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[4]), (handler(13), 0, 0x8000 - 48));
    let expected = [0x18, 0x5000, USER_CODE.into(), FLAGS | rflags::RF, 0xb000, USER_DATA.into()];
    assert_eq!(frame64(&t, &cpu, 6), expected);
    assert_eq!(cpu.env.rflags() & (rflags::IF | rflags::TF | rflags::RF), 0);
    assert_eq!(cpu.env.seg[SS].selector, 0);
    assert_eq!(cpu.env.seg[CS].selector, CODE);
}

#[test]
fn an_interrupt_at_the_same_level_aligns_the_stack() {
    let (t, mut cpu) = long(0);
    deliver(&mut cpu, external(0x30)).unwrap();
    assert_eq!(cpu.env.gpr[4], 0xa000 - 40);
    assert_eq!(frame64(&t, &cpu, 5), [0x5000, CODE.into(), FLAGS, 0xa008, DATA.into()]);
    assert_eq!(cpu.env.seg[SS].selector, DATA);
}

#[test]
fn a_trap_gate_keeps_the_interrupt_flag_and_ist_chooses_the_stack() {
    let (t, mut cpu) = long(0);
    put_gate64(&t, 0x30, CODE, 0x8f, 1);
    deliver(&mut cpu, external(0x30)).unwrap();
    assert_eq!(cpu.env.gpr[4], 0x9000 - 40);
    assert_ne!(cpu.env.rflags() & rflags::IF, 0);
}

#[test]
fn bad_gates_raise_what_the_manual_says() {
    // Name, gate of vector 0x30 or IDT limit, event, then vector and error code delivered.
    let ext = external(0x30);
    let soft = software(0x30, EventKind::Software, 0x5002);
    type Case = (&'static str, u16, u8, Event, u8, u64);
    let cases: &[Case] = &[
        ("not present", CODE, 0x0e, ext, 11, 0x183),
        ("a call gate", CODE, 0x8c, ext, 13, 0x183),
        ("a 16-bit gate in long mode", CODE, 0x86, ext, 13, 0x183),
        ("null selector", 0, 0x8e, ext, 13, 1),
        ("outside the GDT", 0x80, 0x8e, ext, 13, 0x81),
        ("a data segment", DATA, 0x8e, ext, 13, 0x11),
        ("absent code", ABSENT, 0x8e, ext, 11, 0x49),
        ("32-bit code", USER_CODE32, 0x8e, ext, 13, 0x39),
        ("outer code", USER_CODE, 0x8e, ext, 13, 0x21),
        ("INT n of a DPL 0 gate is fine at CPL 0", CODE, 0x8e, soft, 0x30, 0),
        ("INT n not present", CODE, 0x0e, soft, 11, 0x182),
    ];
    for (name, selector, flags, event, vector, error) in cases {
        let (t, mut cpu) = long(0);
        put_gate64(&t, 0x30, *selector, *flags, 0);
        deliver(&mut cpu, *event).unwrap();
        assert_eq!(cpu.env.rip, handler(*vector), "{name}");
        if *vector != 0x30 {
            assert_eq!(frame64(&t, &cpu, 2), [*error, 0x5000], "{name}");
        } else {
            assert_eq!(frame64(&t, &cpu, 1), [0x5002], "{name}");
        }
    }
}

#[test]
fn a_software_interrupt_from_user_mode_needs_a_dpl_3_gate() {
    let (t, mut cpu) = long(3);
    let args = HelperArgs { imm: 0x80, next_rip: 0x5002, ..HelperArgs::default() };
    assert_eq!(int(&mut cpu, &args), Ok(Flow::Jumped));
    assert_eq!((cpu.env.rip, t.get(cpu.env.gpr[4])), (handler(13), 0x402));
    let (t, mut cpu) = long(3);
    put_gate64(&t, 0x80, CODE, 0xee, 0);
    assert_eq!(int(&mut cpu, &args), Ok(Flow::Jumped));
    assert_eq!((cpu.env.rip, t.get(cpu.env.gpr[4])), (handler(0x80), 0x5002));
}

#[test]
fn the_pair_table_decides_between_second_double_and_shutdown() {
    type Case = (&'static str, fn(&TestBed, &mut Cpu), Fault, Option<u8>);
    let cases: &[Case] = &[
        ("benign then contributory", |t, _| put_gate64(t, 6, CODE, 0x0e, 0), Fault::UD, Some(11)),
        ("contributory twice", |t, _| put_gate64(t, 13, CODE, 0x0e, 0), Fault::GP0, Some(8)),
        ("page fault, contributory", |t, _| put_gate64(t, 14, CODE, 0x0e, 0), Fault::page(5, 0), Some(8)),
        ("contributory then page fault", |_, cpu| cpu.env.tr.base = 0x300_0000, Fault::GP0, Some(14)),
        ("all gates gone", |_, cpu| cpu.env.idtr.limit = 0, Fault::GP0, None),
        (
            "double fault gate absent",
            |t, _| {
                put_gate64(t, 13, CODE, 0x0e, 0);
                put_gate64(t, 8, CODE, 0x0e, 0);
            },
            Fault::GP0,
            None,
        ),
    ];
    for (name, spoil, first, expected) in cases {
        let (t, mut cpu) = long(0);
        if *name == "contributory then page fault" {
            put_gate64(&t, 13, CODE, 0x8e, 1);
        }
        spoil(&t, &mut cpu);
        let result = deliver(&mut cpu, (*first).into());
        match expected {
            Some(v) => assert_eq!((result, cpu.env.rip), (Ok(()), handler(*v)), "{name}"),
            None => assert_eq!((result, cpu.env.shutdown), (Err(Shutdown), true), "{name}"),
        }
    }
}

#[test]
fn a_page_fault_on_the_stack_of_a_page_fault_is_a_double_fault_with_the_second_cr2() {
    let (t, mut cpu) = long(0);
    put_gate64(&t, 8, CODE, 0x8e, 1);
    cpu.env.gpr[4] = 0x30_0000;
    deliver(&mut cpu, Fault::page(0x1234, 2).into()).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cr2), (handler(8), 0x30_0000 - 8));
    assert_eq!(frame64(&t, &cpu, 1), [0]);
}

#[test]
fn a_faulting_delivery_leaves_nothing_behind() {
    let (t, mut cpu) = long(3);
    t.put(TSS + 4, 0x8000_0000_0000_0000);
    cpu.env.idtr.limit = 14 * 16 - 1;
    put_gate64(&t, 8, CODE, 0x8e, 1);
    put_gate64(&t, 12, CODE, 0x8e, 1);
    let before = cpu.env.to_state(0);
    deliver(&mut cpu, Fault::UD.into()).unwrap();
    // Non-canonical RSP0: #SS with EXT, on its own stack; the frame shows the old context.
    assert_eq!(cpu.env.rip, handler(12));
    assert_eq!(frame64(&t, &cpu, 2), [1, before.rip]);
    assert_eq!(t.get(cpu.env.gpr[4] + 32), before.gpr[4]);
}

#[test]
fn nmis_are_masked_until_iret() {
    let (_, mut cpu) = long(0);
    deliver(&mut cpu, nmi()).unwrap();
    assert!(cpu.env.nmi_masked);
    iret(&mut cpu, &HelperArgs { size: 8, ..HelperArgs::default() }).unwrap();
    assert!(!cpu.env.nmi_masked);
}

#[test]
fn a_debug_exception_sets_dr6_and_clears_gd() {
    let (_, mut cpu) = long(0);
    cpu.env.dr7 |= dr7::GD;
    deliver(&mut cpu, Fault::debug_fault(dr6::BD | 2).into()).unwrap();
    assert_eq!((cpu.env.dr6, cpu.env.dr7 & dr7::GD), (dr6::ONES | dr6::BD | 2, 0));
}

#[test]
fn a_held_debug_exception_comes_along_with_int1_but_not_with_int_1() {
    let (_, mut cpu) = long(0);
    cpu.env.pending_db = 2;
    deliver(&mut cpu, software(1, EventKind::PrivilegedSoftware, 0x5001)).unwrap();
    assert_eq!((cpu.env.pending_db, cpu.env.dr6 & 0xf), (0, 2));
    let (_, mut cpu) = long(0);
    cpu.env.pending_db = 2;
    deliver(&mut cpu, software(1, EventKind::Software, 0x5002)).unwrap();
    assert_eq!((cpu.env.pending_db, cpu.env.dr6 & 0xf), (2, 0));
}

#[test]
fn iretq_returns_what_delivery_pushed() {
    let (_, mut cpu) = long(3);
    let before = cpu.env.to_state(0);
    deliver(&mut cpu, external(0x30)).unwrap();
    assert_eq!(iret(&mut cpu, &HelperArgs { size: 8, ..HelperArgs::default() }), Ok(Flow::Jumped));
    let after = cpu.env.to_state(0);
    assert_eq!((after.rip, after.rflags, after.gpr), (before.rip, before.rflags, before.gpr));
    assert_eq!((after.cpl(), after.seg[CS].selector, after.seg[SS].selector), (3, USER_CODE, USER_DATA));
}

#[test]
fn iret_refuses_what_it_must_in_the_old_context() {
    // RIP, CS, flags, RSP, SS, and the fault.
    let u = |s: u16| u64::from(s);
    let gp = |s: u16| fault(vector::GP, s, 0);
    type Case = (&'static str, [u64; 5], Fault);
    let cases: &[Case] = &[
        ("non-canonical RIP", [1 << 47, u(USER_CODE), 2, 0, u(USER_DATA)], Fault::GP0),
        ("null CS", [0, 0, 2, 0, u(DATA)], Fault::GP0),
        ("data in CS", [0, u(DATA), 2, 0, u(DATA)], gp(DATA)),
        ("wrong RPL", [0, u(USER_CODE & !3), 2, 0, u(DATA)], gp(USER_CODE)),
        ("absent CS", [0, u(ABSENT), 2, 0, u(DATA)], fault(vector::NP, ABSENT, 0)),
        ("null SS to CPL 3", [0, u(USER_CODE), 2, 0, 3], Fault::GP0),
        ("SS of another level", [0, u(USER_CODE), 2, 0, u(DATA)], gp(DATA)),
        ("code in SS", [0, u(CODE), 2, 0, u(CODE)], gp(CODE)),
    ];
    for (name, words, expected) in cases {
        let (t, mut cpu) = long(0);
        for (i, w) in words.iter().enumerate() {
            t.put(0xa008 + i as u64 * 8, *w);
        }
        let before = cpu.env.to_state(0);
        let got = iret(&mut cpu, &HelperArgs { size: 8, ..HelperArgs::default() });
        assert_eq!(got, Err(*expected), "{name}");
        assert_eq!(cpu.env.to_state(0), before, "{name}");
    }
}

#[test]
fn iret_to_outer_code_drops_inner_data_segments() {
    let (t, mut cpu) = long(0);
    cpu.env.seg[DS] = Segment::new(DATA, 0, u32::MAX, 0xc093);
    cpu.env.seg[ES] = Segment::new(USER_DATA, 0, u32::MAX, 0xc0f3);
    cpu.env.seg[GS] = Segment::new(DATA, 0x1234_5000, u32::MAX, 0xc093);
    for (i, w) in [0x6000, USER_CODE.into(), 0x202, 0xb000, USER_DATA.into()].iter().enumerate() {
        t.put(0xa008 + i as u64 * 8, *w);
    }
    iret(&mut cpu, &HelperArgs { size: 8, ..HelperArgs::default() }).unwrap();
    assert!(cpu.env.seg[DS].attr.unusable() && !cpu.env.seg[ES].attr.unusable());
    assert_eq!((cpu.env.seg[GS].selector, cpu.env.seg[GS].base), (0, 0x1234_5000));
}

#[test]
fn syscall_and_sysret_are_each_others_way_back() {
    let (_, mut cpu) = long(3);
    cpu.env.msrs.star = u64::from(CODE) << 32 | 0x13 << 48;
    cpu.env.msrs.lstar = 0x7000;
    cpu.env.msrs.fmask = rflags::IF | rflags::TF;
    let args = HelperArgs { next_rip: 0x5002, size: 8, ..HelperArgs::default() };
    syscall(&mut cpu, &args).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[1]), (0x7000, 0, 0x5002));
    assert_eq!(cpu.env.gpr[11], FLAGS);
    assert_eq!(cpu.env.rflags(), rflags::CF | rflags::ONE);
    assert_eq!(cpu.env.pending_db, 0, "TF is masked");
    sysret(&mut cpu, &args).unwrap();
    assert_eq!(cpu.env.pending_db, dr6::BS, "TF is set by SYSRET");
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.rflags()), (0x5002, 3, FLAGS));
    assert_eq!((cpu.env.seg[CS].selector, cpu.env.seg[SS].selector), (0x23, 0x1b));
    assert_eq!(sysret(&mut cpu, &args), Err(Fault::GP0));
    cpu.env.efer &= !efer::SCE;
    assert_eq!(syscall(&mut cpu, &args), Err(Fault::UD));
}

#[test]
fn sysret_to_a_non_canonical_address_faults_at_cpl_0() {
    let (_, mut cpu) = long(0);
    cpu.env.gpr[1] = 1 << 47;
    assert_eq!(sysret(&mut cpu, &HelperArgs { size: 8, ..HelperArgs::default() }), Err(Fault::GP0));
    assert_eq!(cpu.env.cpl(), 0);
}

#[test]
fn segment_loads_raise_what_the_manual_says() {
    let gp = |s: u16| Err(fault(vector::GP, s, 0));
    type Case = (&'static str, u8, usize, u16, Exec<()>);
    let cases: &[Case] = &[
        ("null DS", 3, DS, 3, Ok(())),
        ("null SS at CPL 0", 0, SS, 0, Ok(())),
        ("null SS with another RPL", 0, SS, 3, Err(Fault::GP0)),
        ("null SS at CPL 3", 3, SS, 3, Err(Fault::GP0)),
        ("inner data from user code", 3, DS, DATA, gp(DATA)),
        ("user data", 3, DS, USER_DATA, Ok(())),
        ("user data from the kernel", 0, ES, USER_DATA, Ok(())),
        ("SS of another DPL", 0, SS, USER_DATA, gp(USER_DATA)),
        ("code in SS", 0, SS, CODE, gp(CODE)),
        ("readable code in DS", 0, DS, CODE, Ok(())),
        ("conforming code in DS from user code", 3, DS, CONFORMING, Ok(())),
        ("a TSS", 0, DS, TSS_SEL, gp(TSS_SEL)),
        ("outside the table", 0, FS, 0x100, gp(0x100)),
        ("in a null LDT", 0, FS, 0xc, gp(0xc)),
        ("absent", 0, GS, ABSENT, Err(fault(vector::NP, ABSENT, 0))),
    ];
    for (name, cpl, index, selector, expected) in cases {
        let (_, mut cpu) = long(*cpl);
        assert_eq!(cpu.load_segment(*index, *selector), *expected, "{name}");
        if expected.is_ok() {
            assert_eq!(cpu.env.seg[*index].selector, *selector, "{name}");
        }
    }
}

#[test]
fn a_load_sets_the_accessed_bit_and_then_ignores_the_table() {
    let (t, mut cpu) = long(0);
    let at = GDT + u64::from(DATA);
    t.put(at, t.get(at) & !(1 << 40));
    cpu.load_segment(DS, DATA).unwrap();
    assert_ne!(t.get(at) & 1 << 40, 0);
    t.put(at, 0);
    assert_eq!(cpu.env.seg[DS].limit, u32::MAX);
}

#[test]
fn ltr_marks_the_task_busy_and_lldt_wants_an_ldt() {
    let (t, mut cpu) = long(0);
    t.put(GDT + 0x30, 0);
    let arg = |a: u16| HelperArgs { a: a.into(), ..HelperArgs::default() };
    assert_eq!(ltr(&mut cpu, &arg(0)), Err(Fault::GP0));
    assert_eq!(ltr(&mut cpu, &arg(DATA)), Err(fault(vector::GP, DATA, 0)));
    ltr(&mut cpu, &arg(TSS_SEL)).unwrap();
    assert_eq!(t.get(GDT + u64::from(TSS_SEL)) >> 40 & 0xf, 11);
    assert_eq!(ltr(&mut cpu, &arg(TSS_SEL)), Err(fault(vector::GP, TSS_SEL, 0)));
    assert_eq!(lldt(&mut cpu, &arg(CODE)), Err(fault(vector::GP, CODE, 0)));
    lldt(&mut cpu, &arg(0)).unwrap();
    assert!(cpu.env.ldtr.attr.unusable());
}

#[test]
fn a_32_bit_fault_from_user_mode_takes_the_stack_of_the_tss() {
    let (t, mut cpu) = legacy(3);
    deliver(&mut cpu, Fault::gp(0x18).into()).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[4]), (handler(13), 0, 0x8000 - 24));
    let f = (FLAGS | rflags::RF) as u32;
    let expected = [0x18, 0x5000, USER_CODE.into(), f, 0xb000, USER_DATA.into()];
    assert_eq!(frame32(&t, &cpu, 6), expected);
    cpu.env.gpr[4] += 4;
    iret(&mut cpu, &HelperArgs { size: 4, ..HelperArgs::default() }).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[4]), (0x5000, 3, 0xb000));
}

#[test]
fn a_bad_stack_in_the_tss_is_an_invalid_tss() {
    for (name, ss, expected_vector, code) in [
        ("null", 0, 10, 1),
        ("wrong RPL", DATA | 3, 10, 0x11),
        ("code", CODE, 10, 9),
        ("outside", 0x100, 10, 0x101),
    ] {
        let (t, mut cpu) = legacy(3);
        t.put(TSS + 4, 0x8000 | u64::from(ss) << 32);
        // A conforming handler needs no stack switch.
        t.put(IDT + 80, Descriptor::gate(CONFORMING, handler(10) as u32, 0x8e, 0).0);
        deliver(&mut cpu, external(0x30)).unwrap();
        assert_eq!(cpu.env.rip, handler(expected_vector), "{name}");
        assert_eq!(frame32(&t, &cpu, 2), [code, 0x5000], "{name}");
    }
}

#[test]
fn a_call_gate_copies_parameters_and_far_return_drops_them() {
    let (t, mut cpu) = legacy(3);
    t.put(GDT + 0x50, Descriptor::gate(CODE, 0x7000, 0xec, 2).0);
    t.put(0xb000, 0x1111 | 0x2222 << 32);
    let args = HelperArgs { a: 0xdead, b: 0x53, size: 4, next_rip: 0x5007, ..HelperArgs::default() };
    call_far(&mut cpu, &args).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[4]), (0x7000, 0, 0x8000 - 24));
    let expected = [0x5007, USER_CODE.into(), 0x1111, 0x2222, 0xb000, USER_DATA.into()];
    assert_eq!(frame32(&t, &cpu, 6), expected);
    ret_far(&mut cpu, &HelperArgs { size: 4, imm: 8, ..HelperArgs::default() }).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.cpl(), cpu.env.gpr[4]), (0x5007, 3, 0xb008));
}

#[test]
fn far_jumps_check_privilege_and_limit_before_they_commit() {
    let gp = |s: u16| Err(fault(vector::GP, s, 0));
    type Case = (&'static str, u8, u64, u16, Exec<Flow>);
    let cases: &[Case] = &[
        ("same level", 0, 0x6000, CODE, Ok(Flow::Jumped)),
        ("null", 0, 0, 0, Err(Fault::GP0)),
        ("inner", 3, 0, CODE, gp(CODE)),
        ("outer", 0, 0, USER_CODE, gp(USER_CODE)),
        ("conforming", 3, 0x6000, CONFORMING, Ok(Flow::Jumped)),
        ("data", 0, 0, DATA, gp(DATA)),
        ("absent", 0, 0, ABSENT, Err(fault(vector::NP, ABSENT, 0))),
    ];
    for (name, cpl, offset, selector, expected) in cases {
        let (_, mut cpu) = legacy(*cpl);
        let before = cpu.env.to_state(0);
        let args = HelperArgs { a: *offset, b: (*selector).into(), size: 4, ..HelperArgs::default() };
        assert_eq!(jmp_far(&mut cpu, &args), *expected, "{name}");
        match expected {
            Ok(_) => assert_eq!((cpu.env.rip, cpu.env.cpl()), (*offset, *cpl), "{name}"),
            Err(_) => assert_eq!(cpu.env.to_state(0), before, "{name}"),
        }
    }
    let (t, mut cpu) = legacy(0);
    t.put(GDT + 0x58, Descriptor::segment(0, 0xfff, 0x409b).0);
    let args = HelperArgs { a: 0x1000, b: 0x58, size: 4, ..HelperArgs::default() };
    assert_eq!(jmp_far(&mut cpu, &args), Err(Fault::GP0));
}

#[test]
fn real_mode_goes_through_the_vector_table() {
    let t = TestBed::new(2 << 20, "qemu64");
    let mut cpu = t.cpu();
    t.put(0x21 * 4, 0x1234_5678);
    cpu.env.idtr.limit = 0x3ff;
    cpu.env.gpr[4] = 0xffff_0100;
    cpu.env.seg[CS].base = 0;
    cpu.env.seg[CS].selector = 0;
    cpu.env.rip = 0x7c00;
    deliver(&mut cpu, external(0x21)).unwrap();
    assert_eq!((cpu.env.seg[CS].base, cpu.env.rip, cpu.env.gpr[4]), (0x12340, 0x5678, 0xffff_00fa));
    assert_eq!(t.get(0xfa) & 0xffff_ffff_ffff, 2 << 32 | 0x7c00);
    iret(&mut cpu, &HelperArgs { size: 2, ..HelperArgs::default() }).unwrap();
    assert_eq!((cpu.env.linear_rip(), cpu.env.gpr[4]), (0x7c00, 0xffff_0100));
    cpu.env.idtr.limit = 3;
    assert_eq!(deliver(&mut cpu, external(0x21)), Err(Shutdown));
}

#[test]
fn attributes_of_a_null_stack_carry_the_level() {
    let (_, mut cpu) = long(3);
    deliver(&mut cpu, external(0x30)).unwrap();
    assert_eq!(cpu.env.seg[SS].attr, Attr::from_bits(0x1_0000));
}

/// A machine of long mode with everything that a delivery reads, at cold addresses.
fn long_bed(cpl: u8) -> (TestBed, Cpu) {
    use anura_x86::desc::tss64;
    let t = TestBed::new(4 << 20, "max");
    let mut next = 0x11000;
    for page in 0x30..0x3a {
        t.map_page(0x10000, &mut next, page << 12, page << 12 | 7);
    }
    let mut cpu = t.cpu();
    crate::testbed::enter_long_mode(&mut cpu, 0x10000, cpl);
    for (n, d) in [(2, 0x00af_9b00_0000_ffffu64), (3, 0x00cf_9300_0000_ffff)] {
        t.put(0x30000 + n * 8, d);
        // The same for user mode.
        t.put(0x30000 + (n + 3) * 8, d | 3 << 45);
    }
    for n in 0..32 {
        let (kind, ist) = (if n == 3 { 0xef00u64 } else { 0x8e00 }, if n == 8 { 1u64 } else { 0 });
        t.put(0x31000 + n * 16, 0x5678 | 0x10 << 16 | (kind | ist) << 32 | 0x1234 << 48);
        t.put(0x31000 + n * 16 + 8, 0xffff_8000);
    }
    t.put(0x32000 + tss64::RSP0, 0x33ffc);
    t.put(0x32000 + tss64::IST1, 0x34800);
    cpu.env.gdtr = TableReg { base: 0x30000, limit: 0x3f };
    cpu.env.idtr = TableReg { base: 0x31000, limit: 0x1ff };
    cpu.env.tr = Segment::new(0x40, 0x32000, 0x67, 0x8b);
    if cpl == 3 {
        cpu.env.seg[CS].selector = 0x2b;
        cpu.env.seg[SS].selector = 0x33;
    }
    cpu.env.gpr[4] = 0x35f03;
    cpu.env.rip = 0x12_3456;
    cpu.env.eflags_sys = rflags::IF | rflags::AC | rflags::IOPL;
    cpu.mode_changed();
    (t, cpu)
}

#[test]
fn a_delivery_and_a_return_leave_the_same_whether_the_tlb_knows_all_or_nothing() {
    use crate::helpers::HelperArgs;
    for cpl in [0, 3] {
        for vector in [3, 6, 8, 13, 14, 31] {
            let (t, mut cpu) = long_bed(cpl);
            let start = cpu.save_state();
            let event = match vector {
                3 => software(3, EventKind::SoftwareException, 0x777),
                8 | 13 => Fault::with_error(vector, 0x18).into(),
                14 => Fault::page(0x1234_5678, 4).into(),
                31 => external(31),
                _ => Fault::new(vector).into(),
            };
            let mut results = vec![];
            for hot in [false, true] {
                cpu.load_state(&start);
                if hot {
                    // One round fills the TLB; writes too, so that stores hit.
                    deliver(&mut cpu, event).unwrap();
                    cpu.env.load(&start);
                    cpu.mode_changed();
                    assert!(cpu.peek::<u64>(0x31000, View::Super).is_some());
                    for page in [0x33000, 0x34000, 0x35000] {
                        t.ram.fill(page, 0x1000, 0);
                    }
                }
                deliver(&mut cpu, event).unwrap();
                let entered = cpu.save_state();
                let frame: Vec<u64> = (0..7).map(|n| t.get(cpu.env.gpr[4] + n * 8)).collect();
                if event.error.is_some() {
                    cpu.env.gpr[4] += 8;
                }
                if !hot {
                    cpu.mmu.flush_all();
                }
                iret::iret(&mut cpu, &HelperArgs { size: 8, ..Default::default() }).unwrap();
                results.push((entered, frame, cpu.save_state()));
            }
            assert_eq!(results[0], results[1], "vector {vector} from level {cpl}");
            let back = &results[0].2;
            assert_eq!(
                (back.gpr[4], back.seg[CS], back.seg[SS]),
                (start.gpr[4], start.seg[CS], start.seg[SS])
            );
        }
    }
}

#[test]
fn the_quick_return_leaves_bad_frames_to_the_slow_one() {
    use crate::helpers::HelperArgs;
    // CS, SS, RIP; the fault.
    let cases: &[(u64, u64, u64, Fault)] = &[
        (0x10, 0x18, 1 << 47, Fault::GP0),
        (0, 0x18, 0x1000, Fault::GP0),
        (0x10, 0x1b, 0x1000, Fault::gp(0x18)),
        (0x18, 0x18, 0x1000, Fault::gp(0x18)),
        (0x2b, 0, 0x1000, Fault::GP0),
        (0x28, 0x30, 0x1000, Fault::gp(0x28)),
        (0x10, 0x10, 0x1000, Fault::gp(0x10)),
        (0x78, 0x18, 0x1000, Fault::gp(0x78)),
    ];
    for (cs, ss, rip, fault) in cases {
        for hot in [false, true] {
            let (t, mut cpu) = long_bed(0);
            for (n, w) in [*rip, *cs, 2, 0x35000, *ss].into_iter().enumerate() {
                t.put(0x35f00 + n as u64 * 8, w);
            }
            cpu.env.gpr[4] = 0x35f00;
            if hot {
                for page in [0x30000, 0x35000] {
                    cpu.read_u64(page, View::Super).unwrap();
                }
            }
            let got = iret::iret(&mut cpu, &HelperArgs { size: 8, ..Default::default() });
            assert_eq!(got, Err(*fault), "cs {cs:x} ss {ss:x} rip {rip:x}");
            assert_eq!(cpu.env.gpr[4], 0x35f00);
        }
    }
}
