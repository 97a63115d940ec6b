//! Guest programs in the old modes: real, unreal, 16-bit protected, and what they reach.

use anura_accel::{Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::TestBed;
use anura_accel_tcg::vcpu::SoftVcpu;
use anura_vmcore::CpuSignal;
use anura_x86::segment::index::{CS, DS, ES, SS};
use anura_x86::{CpuState, Segment, TableReg};
use std::sync::atomic::Ordering;

fn hex(s: &str) -> Vec<u8> {
    let s: String = s.split_whitespace().collect();
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

/// A processor in real mode at 0000:7c00 with a stack below, and vectors that lead to HLT at 0x600 + vector.
fn real(code: &str) -> (TestBed, SoftVcpu) {
    let bed = TestBed::new(4 << 20, "qemu64");
    for v in 0..=255u64 {
        bed.ram.write(v * 4, &(0x600 + v as u32).to_le_bytes());
    }
    bed.ram.write(0x600, &[0xf4; 256]);
    bed.ram.write(0x7c00, &hex(code));
    let mut s = CpuState::reset(0);
    (s.seg[CS].selector, s.seg[CS].base, s.rip) = (0, 0, 0x7c00);
    s.gpr[4] = 0x7c00;
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    vcpu.set_state(&s).unwrap();
    (bed, vcpu)
}

/// Runs to HLT.
fn halt(vcpu: &mut SoftVcpu) -> CpuState {
    assert_eq!(vcpu.run(Budget::Instructions(10_000)), VcpuExit::Halted);
    vcpu.state()
}

/// Runs to a HLT of the vector table; the vector.
fn vector(vcpu: &mut SoftVcpu) -> (u64, CpuState) {
    let s = halt(vcpu);
    assert!((0x601..=0x700).contains(&s.rip), "no handler: {:x}", s.rip);
    (s.rip - 0x601, s)
}

#[test]
fn the_a20_gate_folds_data_tables_and_code_onto_the_megabyte_below() {
    // mov ax,-1; mov ds,ax; mov bx,[10h+8000h]; hlt; jmp ffff:9010h
    let (bed, mut vcpu) = real("b8ffff 8ed8 8b1e1080 f4 ea1090ffff");
    bed.ram.write(0x8000, &[0x11, 0x11]);
    bed.ram.write(0x10_8000, &[0x22, 0x22]);
    // mov cl, 1; hlt below, mov cl, 2; hlt above.
    bed.ram.write(0x9000, &hex("b101f4"));
    bed.ram.write(0x10_9000, &hex("b102f4"));
    for (closed, data, code) in [(false, 0x2222, 2), (true, 0x1111, 1), (false, 0x2222, 2)] {
        bed.board.a20_closed.store(closed, Ordering::Relaxed);
        let mut s = vcpu.state();
        (s.seg[CS].base, s.seg[CS].selector, s.rip) = (0, 0, 0x7c00);
        s.activity = anura_x86::Activity::Running;
        vcpu.set_state(&s).unwrap();
        assert_eq!(halt(&mut vcpu).gpr[3], data);
        let mut s = vcpu.state();
        s.activity = anura_x86::Activity::Running;
        vcpu.set_state(&s).unwrap();
        assert_eq!(halt(&mut vcpu).gpr[1], code);
    }
}

#[test]
fn real_mode_writes_through_cs() {
    // mov byte cs:[0x500], 0x5a; hlt
    let (bed, mut vcpu) = real("2ec60600055a f4");
    halt(&mut vcpu);
    assert_eq!(bed.get(0x500) & 0xff, 0x5a);
}

#[test]
fn unreal_mode_keeps_limits_until_protected_mode_loads_others() {
    // lgdt [7d00]; mov eax,cr0; or al,1; mov cr0,eax; mov bx,8; mov ds,bx; and al,fe; mov cr0,eax;
    // xor bx,bx; mov ds,bx; mov dword [200000h], 12345678h; hlt
    let (bed, mut vcpu) =
        real("0f0116007d 0f20c0 0c01 0f22c0 bb0800 8edb 24fe 0f22c0 31db 8edb 6766c7050000200078563412 f4");
    bed.ram.write(0x7d00, &hex("1700 107d0000"));
    bed.put(0x7d18, 0x008f_9300_0000_ffff);
    let s = halt(&mut vcpu);
    assert_eq!(bed.get(0x20_0000) as u32, 0x1234_5678);
    assert_eq!((s.seg[DS].limit, s.seg[ES].limit), (u32::MAX, 0xffff));
}

#[test]
fn a_null_selector_of_protected_mode_is_usable_after_a_load_in_real_mode() {
    // mov eax,cr0; or al,1; mov cr0,eax; xor bx,bx; mov ds,bx; and al,fe; mov cr0,eax; mov ds,bx; mov al,[7c00]; hlt
    let (_, mut vcpu) = real("0f20c0 0c01 0f22c0 31db 8edb 24fe 0f22c0 8edb a0007c f4");
    let s = halt(&mut vcpu);
    assert_eq!((s.gpr[0] as u8, s.seg[DS].limit), (0x0f, 0xffff));
}

#[test]
fn accesses_across_the_segments_end_fault_and_leave_everything() {
    // Name, code, vector.
    let cases = [
        ("a word at ffff", "a1ffff", 13),
        ("a dword at fffe", "6667a1feff0000", 13),
        ("an offset beyond 64 KiB", "67a100000100", 13),
        ("a word at ffff by SS", "bdffff 8b4600", 12),
        ("push with SP 1", "bc0100 50", 12),
        ("a string word at ffff", "beffff ad", 13),
        ("a jump beyond the limit", "66e900000100", 13),
    ];
    for (name, code, expected) in cases {
        let (_, mut vcpu) = real(&format!("{code} f4"));
        if expected == 12 {
            // The frame needs a stack that works: the state before the handler's is what is looked at.
            let mut s = vcpu.state();
            (s.seg[SS].base, s.seg[SS].selector) = (0x1_0000, 0x1000);
            vcpu.set_state(&s).unwrap();
        }
        if name.starts_with("push") {
            // No room for the frame either: shutdown.
            assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::TripleFault, "{name}");
            continue;
        }
        assert_eq!(vector(&mut vcpu).0, expected, "{name}");
    }
}

#[test]
fn code_does_not_run_over_the_segments_end() {
    // jmp fffe: a NOP there, then the first byte of MOV AX, imm16 at ffff.
    let (bed, mut vcpu) = real("e9fb83");
    bed.ram.write(0xfffe, &hex("90b83412f4"));
    let (v, s) = vector(&mut vcpu);
    assert_eq!((v, s.gpr[0]), (13, 0));
    let frame = bed.get(s.gpr[4] & 0xffff);
    assert_eq!(frame & 0xffff, 0xffff, "the instruction that does not fit");
    // The last byte may be executed; the next is outside.
    let (bed, mut vcpu) = real("e9fc83");
    bed.ram.write(0xffff, &[0x40]);
    let (v, s) = vector(&mut vcpu);
    assert_eq!((v, s.gpr[0]), (13, 1));
    let _ = bed;
}

#[test]
fn loops_look_at_their_target_only_when_it_is_taken() {
    // With CX as given: loop +7f, loope +7f, jcxz +7f; then HLT. CS ends behind the HLT.
    for (code, cx, flags, fault, after) in [
        ("e27f f4", 1, 0, false, 0),
        ("e27f f4", 2, 0, true, 2),
        ("e17f f4", 2, 0, false, 1),
        ("e17f f4", 2, 0x40, true, 2),
        ("e07f f4", 2, 0x40, false, 1),
        ("e37f f4", 1, 0, false, 1),
        ("e37f f4", 0, 0, true, 0),
        // In range, taken and not.
        ("e201 f4 f4", 2, 0, false, 1),
        ("e301 f4 f4", 0, 0, false, 0),
    ] {
        let (_, mut vcpu) = real(code);
        let mut s = vcpu.state();
        s.seg[CS].limit = 0x7c03;
        s.gpr[1] = 0x55_0000 | cx;
        s.rflags |= flags;
        vcpu.set_state(&s).unwrap();
        let s = halt(&mut vcpu);
        let taken = code.len() > 7;
        let want = if fault { 0x60e } else { 0x7c03 + u64::from(taken) };
        assert_eq!((s.rip, s.gpr[1]), (want, 0x55_0000 | after), "{code} with {cx}");
    }
}

#[test]
fn an_error_of_the_x87_that_waits_comes_before_the_operands_segment() {
    // fninit; fldcw [7d00h] (zero divide not masked); fld1; fldz; fdivp; then fld dword [ffffh], or without waiting
    // fnstcw [ffffh]; hlt.
    for (last, want) in [("d906ffff", 16), ("d93effff", 13)] {
        let (bed, mut vcpu) = real(&format!("dbe3 d92e007d d9e8 d9ee def9 {last} f4"));
        bed.ram.write(0x7d00, &0x37bu16.to_le_bytes());
        let mut s = vcpu.state();
        s.cr0 |= 1 << 5;
        vcpu.set_state(&s).unwrap();
        assert_eq!(vector(&mut vcpu).0, want, "{last}");
    }
}

#[test]
fn the_same_offset_of_two_segments_is_two_programs() {
    // Three rounds of: call 1000:0100, call 2000:0100; each target jumps indirectly to 0180h of its own segment.
    let (bed, mut vcpu) = real("b90300 9a00010010 9a00010020 e2f4 f4");
    for (segment, register) in [(0x1_0000, 0xc0), (0x2_0000, 0xc3)] {
        bed.ram.write(segment + 0x100, &hex("bb8001 ffe3"));
        // add ax, 1 or add dx, 1 would be too easy to mix up: 83 c0 (ax), 83 c3 (bx, set anew each time).
        bed.ram.write(segment + 0x180, &[0x83, register, 0x01, 0xcb]);
    }
    bed.ram.write(0x2_0180, &hex("83c201cb"));
    let s = halt(&mut vcpu);
    assert_eq!((s.gpr[0], s.gpr[2]), (3, 3));
}

#[test]
fn pops_of_segments_take_the_operand_size_from_the_stack() {
    // mov eax,12345678h; push eax; pop dword fs; mov ebx, fs; push gs (dword); pop gs (word); pop cx; hlt
    let (_, mut vcpu) = real("66b878563412 6650 660fa1 668ce3 660fa8 0fa9 59 f4");
    let s = halt(&mut vcpu);
    assert_eq!((s.seg[4].selector, s.seg[4].base, s.gpr[3]), (0x5678, 0x5_6780, 0x5678));
    assert_eq!(s.gpr[4], 0x7c00);
}

#[test]
fn far_pointers_load_segment_and_register() {
    // lds eax,[500h] (dword offset); les bx,[500h+4000h*0]; lss sp,[510h]; hlt
    let (bed, mut vcpu) = real("66c5060005 2ec41e0005 2e0fb2261005 f4");
    bed.ram.write(0x500, &hex("78563412 3412 0000"));
    bed.ram.write(0x510, &hex("0080 0010"));
    let s = halt(&mut vcpu);
    assert_eq!((s.gpr[0], s.seg[DS].selector, s.seg[DS].base), (0x1234_5678, 0x1234, 0x1_2340));
    assert_eq!((s.gpr[3], s.seg[ES].selector), (0x5678, 0x1234));
    assert_eq!((s.gpr[4], s.seg[SS].base), (0x8000, 0x1_0000));
}

#[test]
fn a_far_call_beyond_the_limit_pushes_nothing() {
    // call dword 0:10000h
    let (bed, mut vcpu) = real("669a 00000100 0000 f4");
    let (v, s) = vector(&mut vcpu);
    assert_eq!((v, s.gpr[4]), (13, 0x7c00 - 6));
    assert_eq!(bed.get(0x7c00 - 8) >> 16 & 0xffff, 0x7c00);
}

#[test]
fn a_short_vector_table_ends_in_shutdown() {
    // lidt [7d00]; int 21h
    let (bed, mut vcpu) = real("0f011e007d cd21");
    bed.ram.write(0x7d00, &hex("1f00 00000000"));
    assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::TripleFault);
    // Long enough for #GP, the vectors elsewhere.
    let (bed, mut vcpu) = real("0f011e007d cd21");
    bed.ram.write(0x7d00, &hex("3f00 00050000"));
    bed.ram.write(0x500 + 13 * 4, &0x0610u32.to_le_bytes());
    assert_eq!(vector(&mut vcpu).0, 0x10);
}

#[test]
fn iretd_of_real_mode_keeps_the_virtual_flags() {
    // push dword 1a0000h | 246h ... pushes flags with VM, VIF, VIP set, CS, IP; iretd; hlt
    let (_, mut vcpu) = real("666846021a00 666a00 6668127c0000 66cf 90 f4");
    let s = halt(&mut vcpu);
    assert_eq!(s.rflags & 0x1a_0000, 0);
}

/// A v86 program at 0000:7c00, its monitor a HLT at 0x60000 + 16 * vector in flat CPL 0 code.
fn v86(code: &str, iopl: u64, vme: bool, flags: u64) -> (TestBed, SoftVcpu) {
    let bed = TestBed::new(4 << 20, "max");
    let mut s = CpuState::reset(0);
    (s.cr0, s.cr4) = (0x11, u64::from(vme));
    s.rflags = 2 | 1 << 17 | iopl << 12 | flags;
    for seg in &mut s.seg {
        *seg = Segment::new(0, 0, 0xffff, 0xf3);
    }
    s.rip = 0x7c00;
    s.gpr[4] = 0x7000;
    s.gdtr = TableReg { base: 0x1000, limit: 0x1f };
    s.idtr = TableReg { base: 0x2000, limit: 0x7ff };
    bed.put(0x1008, 0x00cf_9b00_0000_ffff);
    bed.put(0x1010, 0x00cf_9300_0000_ffff);
    for v in 0..256u64 {
        bed.put(0x2000 + v * 8, 0x0006_ee00_0008_0000 | v << 4);
        bed.ram.write(0x6_0000 + v * 16, &[0xf4]);
    }
    // Redirection: INT 21h to the program's own table, INT 22h to the monitor.
    s.tr = Segment::new(0x18, 0x3000, 0xff, 0x8b);
    bed.ram.write(0x3000, &[0; 0x100]);
    bed.put(0x3004, 0x5000 | 0x10 << 32);
    bed.ram.write(0x3066, &[0x88, 0]);
    bed.ram.write(0x3068 + 4, &[1 << 2]);
    bed.ram.write(0x21 * 4, &[0, 0x6f, 0, 0]);
    bed.ram.write(0x7c00, &hex(code));
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    vcpu.set_state(&s).unwrap();
    (bed, vcpu)
}

#[test]
fn v86_instructions_obey_iopl_and_vme() {
    const VIF: u64 = 1 << 19;
    const VIP: u64 = 1 << 20;
    // Name, code, IOPL, VME, flags before, and the vector with which the program ends (INT3 is the good end).
    let cases: &[(&str, &str, u64, bool, u64, u64)] = &[
        ("cli", "fa cc", 3, false, 0, 3),
        ("cli, low IOPL", "fa cc", 0, false, 0, 13),
        ("cli with VME", "fa cc", 0, true, VIF, 3),
        ("sti with VME", "fb cc", 0, true, 0, 3),
        ("sti with VME and VIP", "fb cc", 0, true, VIP, 13),
        ("pushf, low IOPL", "9c cc", 2, false, 0, 13),
        ("pushf with VME", "9c cc", 2, true, 0, 3),
        ("pushfd with VME", "669c cc", 2, true, 0, 13),
        ("popf with VME", "6a02 9d cc", 0, true, 0, 3),
        ("popf of TF with VME", "680201 9d cc", 0, true, 0, 13),
        ("popf of IF with VME and VIP", "680202 9d cc", 0, true, VIP, 13),
        ("popfd with VME", "666a02 669d cc", 0, true, 0, 13),
        ("int to the monitor", "cd22", 3, false, 0, 0x22),
        ("int, low IOPL", "cd22", 0, false, 0, 13),
        ("int redirected with VME", "cd21", 0, true, 0, 3),
        ("int to the monitor with VME", "cd22", 3, true, 0, 0x22),
        ("int not redirected, low IOPL, with VME", "cd22", 0, true, 0, 13),
        ("iret with VME", "6a02 6a00 68007f cf", 0, true, 0, 3),
        ("iretd, low IOPL", "666a02 666a00 6668007f0000 66cf", 0, true, 0, 13),
        ("hlt", "f4", 3, true, 0, 13),
        ("lgdt", "0f01160070", 3, true, 0, 13),
        ("sldt", "0f00c0", 3, true, 0, 6),
    ];
    for (name, code, iopl, vme, flags, expected) in cases {
        let (bed, mut vcpu) = v86(code, *iopl, *vme, *flags);
        // The program's handler of INT 21h and the target of its IRET: INT3.
        bed.ram.write(0x6f00, &[0xcc]);
        bed.ram.write(0x7f00, &[0xcc]);
        let s = halt(&mut vcpu);
        assert_eq!(s.rip - 0x6_0001, expected * 16, "{name}");
        assert_eq!((s.cpl(), s.rflags & 1 << 17, s.seg[DS].selector), (0, 0, 0), "{name}");
    }
}

#[test]
fn vme_shows_the_virtual_flag_and_iretd_of_the_monitor_goes_back() {
    // sti; pushf; pop ax; int 21h; handler: pushf; pop bx; int3
    let (bed, mut vcpu) = v86("fb 9c 58 cd21", 0, true, 0);
    bed.ram.write(0x6f00, &hex("9c 5b cc"));
    // The monitor: iretd at the #BP handler, so the program goes on behind the INT3 with HLT (#GP).
    bed.ram.write(0x6_0030, &[0xcf]);
    bed.ram.write(0x6f03, &[0xf4]);
    let s = halt(&mut vcpu);
    assert_eq!(s.rip, 0x6_00d1);
    assert_eq!(s.gpr[0] & 0xffff, 0x3202, "IF stands for VIF, IOPL reads 3");
    assert_eq!(s.gpr[3] & 0xffff, 0x3002, "VIF is clear in the handler");
    let frame: Vec<u64> = (0..9).map(|n| bed.get(s.gpr[4] + n * 4) & 0xffff_ffff).collect();
    assert_eq!((frame[0], frame[1], frame[2]), (0, 0x6f03, 0));
    assert_eq!(frame[3] & 1 << 17, 1 << 17);
}
