//! Task switches on hand-made tables: the old task's TSS at 3000h (selector 28h), the new one's at 4000h (50h, a
//! gate to it at 58h), a 16-bit one at 4800h (60h). Handler of vector v: 40000h + v * 16.
use super::tests::{frame32, handler, legacy};
use super::*;
use crate::deliver::far::{call_far, jmp_far};
use crate::deliver::iret::iret;
use crate::helpers::{Flow, HelperArgs};
use crate::testbed::TestBed;

const GDT: u64 = 0x1000;
const OLD: u64 = 0x3000;
const NEW: u64 = 0x4000;
const SMALL: u64 = 0x4800;
const OLD_SEL: u16 = 0x28;
const NEW_SEL: u16 = 0x50;
const GATE: u16 = 0x58;
const SMALL_SEL: u16 = 0x60;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;

/// CPL 0 of the old task, with new tasks at 7000h whose registers are 100h and up.
fn tasks() -> (TestBed, Cpu) {
    let (t, mut cpu) = legacy(0);
    let put32 = |at: u64, v: u32| t.ram.write(at, &v.to_le_bytes());
    t.put(GDT + u64::from(OLD_SEL), Descriptor::segment(OLD as u32, 0x67, 0x8b).0);
    t.put(GDT + u64::from(NEW_SEL), Descriptor::segment(NEW as u32, 0x67, 0x89).0);
    t.put(GDT + u64::from(GATE), Descriptor::gate(NEW_SEL, 0, 0x85, 0).0);
    t.put(GDT + u64::from(SMALL_SEL), Descriptor::segment(SMALL as u32, 0x2b, 0x81).0);
    for n in (0..0x68).step_by(4) {
        put32(NEW + n, 0);
    }
    put32(NEW + 0x20, 0x7000);
    put32(NEW + 0x24, 0x2);
    for n in 0..8u32 {
        put32(NEW + 0x28 + u64::from(n) * 4, 0x9000_0100 + n);
        t.ram.write(SMALL + 0x12 + u64::from(n) * 2, &(0x200 + n as u16).to_le_bytes());
    }
    put32(NEW + 0x38, 0x6000);
    for (n, s) in [DATA, CODE, DATA, DATA, 0, DATA].iter().enumerate() {
        put32(NEW + 0x48 + n as u64 * 4, u32::from(*s));
        t.ram.write(SMALL + 0x22 + n as u64 * 2, &s.to_le_bytes());
    }
    t.ram.write(SMALL + 0x0e, &[0x00, 0x70, 2, 0]);
    t.ram.write(SMALL + 0x2a, &[0, 0]);
    cpu.env.set_rflags(rflags::IF | rflags::CF);
    cpu.env.gpr[1] = 0x1111_2222;
    (t, cpu)
}

fn far(selector: u16) -> HelperArgs {
    HelperArgs { b: selector.into(), size: 4, next_rip: 0x5007, ..HelperArgs::default() }
}

fn word(t: &TestBed, at: u64) -> u32 {
    t.get(at) as u32
}

fn busy(t: &TestBed, selector: u16) -> bool {
    t.get(GDT + u64::from(selector)) >> 41 & 1 != 0
}

#[test]
fn a_call_through_a_task_gate_saves_the_old_task_and_iret_comes_back() {
    let (t, mut cpu) = tasks();
    cpu.env.dr7 |= 0x3ff;
    call_far(&mut cpu, &far(GATE)).unwrap();
    let e = &cpu.env;
    assert_eq!((e.rip, e.gpr[0], e.gpr[4], e.tr.selector), (0x7000, 0x9000_0100, 0x6000, NEW_SEL));
    assert_eq!((word(&t, OLD + 0x20), word(&t, OLD + 0x2c)), (0x5007, 0x1111_2222));
    assert_eq!(word(&t, OLD + 0x24), (rflags::IF | rflags::CF | 2) as u32);
    assert_eq!((word(&t, OLD + 0x4c), word(&t, NEW) & 0xffff), (CODE.into(), OLD_SEL.into()));
    assert!(busy(&t, OLD_SEL) && busy(&t, NEW_SEL));
    assert_eq!(e.rflags() & rflags::NT, rflags::NT);
    assert_eq!((e.cr0 & cr0::TS, e.dr7 & 0x3ff), (cr0::TS, 0x2aa));
    assert!(e.seg[FS].attr.unusable() && !e.seg[GS].attr.unusable());
    iret(&mut cpu, &HelperArgs { size: 4, next_rip: 0x7001, ..HelperArgs::default() }).unwrap();
    let e = &cpu.env;
    assert_eq!((e.rip, e.gpr[1], e.tr.selector), (0x5007, 0x1111_2222, OLD_SEL));
    assert_eq!((word(&t, NEW + 0x20), word(&t, NEW + 0x24) & 0x4000), (0x7001, 0));
    assert!(busy(&t, OLD_SEL) && !busy(&t, NEW_SEL));
}

#[test]
fn a_jump_leaves_the_old_task_free_and_no_link() {
    let (t, mut cpu) = tasks();
    jmp_far(&mut cpu, &far(NEW_SEL)).unwrap();
    assert!(!busy(&t, OLD_SEL) && busy(&t, NEW_SEL));
    assert_eq!((cpu.env.rflags() & rflags::NT, word(&t, NEW) & 0xffff), (0, 0));
}

#[test]
fn a_16_bit_task_has_16_bit_registers() {
    let (t, mut cpu) = tasks();
    jmp_far(&mut cpu, &far(SMALL_SEL)).unwrap();
    let e = &cpu.env;
    assert_eq!((e.rip, e.gpr[1], e.seg[SS].selector, e.tr.selector), (0x7000, 0x201, DATA, SMALL_SEL));
    assert!(e.seg[FS].attr.unusable() && e.seg[GS].attr.unusable());
    call_far(&mut cpu, &far(GATE)).unwrap();
    assert_eq!((word(&t, SMALL + 0x0e) as u16, word(&t, SMALL + 0x14) as u16), (0x5007, 0x201));
}

#[test]
fn a_fault_through_a_task_gate_brings_its_error_code() {
    let (t, mut cpu) = tasks();
    t.put(0x2000 + 13 * 8, Descriptor::gate(NEW_SEL, 0, 0x85, 0).0);
    deliver(&mut cpu, Fault::gp(0x18).into()).unwrap();
    assert_eq!((cpu.env.rip, cpu.env.gpr[4], word(&t, 0x5ffc)), (0x7000, 0x5ffc, 0x18));
    assert_eq!(word(&t, OLD + 0x24) as u64 & rflags::RF, rflags::RF);
    assert_eq!(word(&t, OLD + 0x20), 0x5000);
}

#[test]
fn what_is_wrong_before_the_switch_faults_in_the_old_task() {
    type Case = (&'static str, fn(&TestBed), u16, Fault);
    let gp = |s| fault(vector::GP, s, 0);
    let cases: &[Case] = &[
        ("busy", |t| t.put(GDT + 0x50, Descriptor::segment(0x4000, 0x67, 0x8b).0), NEW_SEL, gp(NEW_SEL)),
        (
            "busy behind a gate",
            |t| t.put(GDT + 0x50, Descriptor::segment(0x4000, 0x67, 0x8b).0),
            GATE,
            gp(NEW_SEL),
        ),
        (
            "absent",
            |t| t.put(GDT + 0x50, Descriptor::segment(0x4000, 0x67, 9).0),
            NEW_SEL,
            fault(vector::NP, NEW_SEL, 0),
        ),
        (
            "short",
            |t| t.put(GDT + 0x50, Descriptor::segment(0x4000, 0x66, 0x89).0),
            NEW_SEL,
            fault(vector::TS, NEW_SEL, 0),
        ),
        (
            "absent gate",
            |t| t.put(GDT + 0x58, Descriptor::gate(NEW_SEL, 0, 5, 0).0),
            GATE,
            fault(11, GATE, 0),
        ),
        (
            "gate to the LDT",
            |t| t.put(GDT + 0x58, Descriptor::gate(NEW_SEL | 4, 0, 0x85, 0).0),
            GATE,
            gp(NEW_SEL | 4),
        ),
    ];
    for (name, spoil, selector, expected) in cases {
        let (t, mut cpu) = tasks();
        spoil(&t);
        let before = cpu.env.to_state(0);
        assert_eq!(call_far(&mut cpu, &far(*selector)), Err(*expected), "{name}");
        assert_eq!(cpu.env.to_state(0), before, "{name}");
    }
    let (_, mut cpu) = tasks();
    cpu.env.set_rflags(rflags::NT);
    // The link names the task itself, of another kind than a busy TSS would be.
    assert_eq!(iret(&mut cpu, &HelperArgs::default()), Err(fault(vector::TS, 0, 0)));
}

#[test]
fn what_is_wrong_after_the_switch_faults_in_the_new_task() {
    type Case = (&'static str, u64, u16, u8, u32);
    let cases: &[Case] = &[
        ("LDT is code", 0x60, CODE, vector::TS, 8),
        ("CS is data", 0x4c, DATA, vector::TS, 0x10),
        ("SS is null", 0x50, 0, vector::TS, 0),
        ("DS is a TSS", 0x54, OLD_SEL, vector::TS, 0x28),
        ("ES is absent", 0x48, 0x48, vector::NP, 0x48),
    ];
    for (name, at, selector, v, code) in cases {
        let (t, mut cpu) = tasks();
        t.ram.write(NEW + at, &selector.to_le_bytes());
        // A handler with a stack of its own task, whatever the new task's is like.
        t.put(0x2000 + u64::from(*v) * 8, Descriptor::gate(SMALL_SEL, 0, 0x85, 0).0);
        assert_eq!(jmp_far(&mut cpu, &far(NEW_SEL)), Ok(Flow::Jumped), "{name}");
        assert_eq!((cpu.env.tr.selector, cpu.env.rip), (SMALL_SEL, 0x7000), "{name}");
        assert_eq!(word(&t, NEW + 0x20), 0x7000, "{name}: the new task's first instruction");
        assert_eq!(word(&t, SMALL) as u16, NEW_SEL, "{name}");
        assert_eq!(frame32(&t, &cpu, 1)[0] & 0xffff, *code, "{name}");
    }
}

#[test]
fn a_limit_of_the_new_code_segment_is_checked_in_the_new_task() {
    let (t, mut cpu) = tasks();
    t.put(GDT + 0x68, Descriptor::segment(0, 0x6fff, 0x409b).0);
    t.ram.write(NEW + 0x4c, &[0x68, 0]);
    jmp_far(&mut cpu, &far(NEW_SEL)).unwrap();
    assert_eq!((cpu.env.rip, frame32(&t, &cpu, 2)), (handler(13), vec![0, 0x7000]));
}

#[test]
fn the_trap_bit_raises_a_debug_exception_and_v86_tasks_have_v86_segments() {
    let (t, mut cpu) = tasks();
    t.ram.write(NEW + 0x64, &[1, 0]);
    t.ram.write(NEW + 0x24, &(rflags::VM as u32 | 2).to_le_bytes());
    jmp_far(&mut cpu, &far(NEW_SEL)).unwrap();
    assert_eq!(cpu.env.pending_db, dr6::BT);
    assert_eq!((cpu.env.cpl(), cpu.env.seg[CS].base, cpu.env.seg[DS].limit), (3, 0x80, 0xffff));
}
