//! Small guest programs, run whole.

use anura_accel::{Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::vcpu::SoftVcpu;
use anura_vmcore::CpuSignal;
use anura_x86::{CpuState, Segment};
use std::sync::atomic::Ordering;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x1_2000;
const STACK: u64 = 0x1_f000;

fn hex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

/// A processor in flat user-mode 64-bit code at `CODE`; RSI points to `DATA`.
fn user(code: &[u8], model: &str) -> (TestBed, SoftVcpu) {
    let bed = TestBed::new(16 << 20, model);
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..16u64 {
        let at = CODE + page * 0x1000;
        bed.map_page(root, &mut next, at, at | 7);
    }
    bed.ram.write(CODE, code);
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    enter_long_mode(vcpu.cpu(), root, 3);
    let env = &mut vcpu.cpu().env;
    env.rip = CODE;
    env.gpr[4] = STACK;
    env.gpr[6] = DATA;
    env.gpr[7] = DATA + 0x1000;
    (bed, vcpu)
}

fn run(vcpu: &mut SoftVcpu, n: u64) {
    assert_eq!(vcpu.run(Budget::Instructions(n)), VcpuExit::BudgetSpent);
}

/// Real mode at 1000:0000, through 32-bit protected mode, to 64-bit code; each leaves a trace in memory.
const MODES: &str = concat!(
    "fa8cc88ed88ec08ed0bc0008e82100bf0007b90400b05afcf3aa660f0116c8000f20c00c010f22c0",
    "66ea3c00010008005589e58b5e02891e10075dc3b8100000008ed88ec08ed0bc00090100e8310000",
    "000f20e083c8200f22e0b8000010000f22d8b9800000c00f320d000100000f300f20c00d00000080",
    "0f22c0ea9c00010018005589e58b550489151407010066683412665b891d18070100c9c331c08ed0",
    "bc000a010048b88877665544332211508f042520070100488d1ddeffffff48891c2528070100f490",
    "1f00d000010090900000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00",
);

#[test]
fn a_processor_climbs_from_real_mode_to_64_bit_code() {
    let bed = TestBed::new(16 << 20, "qemu64");
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..16u64 {
        let at = CODE + page * 0x1000;
        bed.map_page(root, &mut next, at, at | 3);
    }
    bed.ram.write(CODE, &hex(MODES));
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    let mut s = CpuState::reset(0);
    s.seg[1] = Segment::new(0x1000, CODE, 0xffff, 0x9b);
    s.rip = 0;
    vcpu.set_state(&s).unwrap();
    assert_eq!(vcpu.run(Budget::Instructions(1000)), VcpuExit::Halted);
    assert_eq!(bed.get(CODE + 0x700) as u32, 0x5a5a_5a5a, "rep stosb in real mode");
    assert_eq!(bed.get(CODE + 0x710) as u16, 0x0f, "return address of a 16-bit call");
    assert_eq!(bed.get(CODE + 0x714) as u32, 0x1_0051, "return address of a 32-bit call");
    assert_eq!(bed.get(CODE + 0x718) as u16, 0x1234, "16-bit push and pop in 32-bit code");
    assert_eq!(bed.get(CODE + 0x720), 0x1122_3344_5566_7788);
    assert_eq!(bed.get(CODE + 0x728), 0x1_009c, "RIP-relative address");
}

#[test]
fn popping_a_segment_register_moves_the_stack_by_the_operand_size_not_the_stack_width() {
    // mov sp, 800h; push es; pop ds with operand size 2 and 4 in turn; hlt.
    for (code, moved) in [("bc0008061ff4", 0), ("bc00086606661ff4", 0), ("bc0008661ff4", 4)] {
        let bed = TestBed::new(16 << 20, "qemu64");
        bed.ram.write(CODE, &hex(code));
        let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
        let mut s = CpuState::reset(0);
        s.seg[1] = Segment::new(0x1000, CODE, 0xffff, 0x9b);
        s.rip = 0;
        vcpu.set_state(&s).unwrap();
        assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::Halted);
        assert_eq!(vcpu.state().gpr[4] as u16, (0x800 + moved) as u16, "{code}");
    }
}

/// Loops of several kinds with memory, stack, strings and flags; never ends.
fn mixture() -> Vec<u8> {
    hex(concat!(
        "89c869c06d4ec641053930000089c1a900000100740583c303eb0383eb0153488b06480346084889",
        "4610ff46180fb656034801d15b565751b907000000f3a4595f5e0fbae1054811d8f00fc14e200fb7",
        "c9e8000000005883fb647ca431dbeba0",
    ))
}

#[test]
fn a_program_gives_the_same_state_however_its_budget_is_cut() {
    let total = 5_000;
    let finish = |cuts: &dyn Fn(u64) -> u64| {
        let (bed, mut vcpu) = user(&mixture(), "qemu64");
        let mut left = total;
        while left > 0 {
            let n = cuts(left).clamp(1, left);
            run(&mut vcpu, n);
            left -= n;
            assert_eq!(vcpu.instructions(), total - left);
        }
        let memory: Vec<u64> = (0..512).map(|i| bed.get(DATA + i * 8)).collect();
        (vcpu.state(), memory)
    };
    let whole = finish(&|left| left);
    for step in [1, 2, 3, 7, 63, 64, 65, 100, 1000] {
        let cut = finish(&|_| step);
        assert_eq!(cut.0, whole.0, "steps of {step}");
        assert!(cut.1 == whole.1, "memory, steps of {step}");
    }
}

#[test]
fn each_iteration_of_a_repeated_string_counts_as_one() {
    // mov ecx, 10; rep stosb; nop; jmp $
    let (_, mut vcpu) = user(&hex("b90a000000f3aa90ebfe"), "qemu64");
    run(&mut vcpu, 1 + 4);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[1], s.gpr[7]), (CODE + 5, 6, DATA + 0x1004));
    run(&mut vcpu, 6);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[1], s.gpr[7]), (CODE + 7, 0, DATA + 0x100a));
    run(&mut vcpu, 1);
    assert_eq!(vcpu.state().rip, CODE + 8);
}

#[test]
fn repeated_strings_are_checked_for_alignment_by_element() {
    // mov ecx, 3; then rep stosb, repne stosw, rep stosd, rep movsb, and rep stosw one byte further.
    let programs = [("f3aa90", 0), ("66f2ab", 0), ("f3ab90", 0), ("f3a490", 0), ("66f3ab", 1)];
    for (code, off) in programs {
        let (_, mut vcpu) = user(&hex(&format!("b903000000{code}ebfe")), "qemu64");
        let mut s = vcpu.state();
        s.cr0 |= 1 << 18;
        s.rflags |= 1 << 18;
        s.gpr[7] += off;
        vcpu.set_state(&s).unwrap();
        if off == 0 {
            run(&mut vcpu, 20);
            assert_eq!((vcpu.state().gpr[1], vcpu.state().rip), (0, CODE + 8), "{code}");
        } else {
            // #AC finds no handlers.
            assert_eq!(vcpu.run(Budget::Instructions(20)), VcpuExit::TripleFault);
        }
    }
}

#[test]
fn waiting_for_the_x87_leaves_its_pointers() {
    // fld1; fwait; fnstenv [rsi]; jmp $
    let (bed, mut vcpu) = user(&hex("d9e89bd936ebfe"), "qemu64");
    run(&mut vcpu, 4);
    assert_eq!(bed.get(DATA + 8) >> 32, CODE);
}

#[test]
fn a_store_into_the_running_block_takes_effect_at_the_next_instruction() {
    // mov byte [rip+1], 0x42 (the immediate of the next instruction); mov al, 0; jmp $
    let (_, mut vcpu) = user(&hex("c605010000004 2b000ebfe".replace(' ', "").as_str()), "qemu64");
    run(&mut vcpu, 2);
    assert_eq!(vcpu.state().gpr[0] & 0xff, 0x42);
}

#[test]
fn code_written_over_is_translated_again() {
    // l: mov al, 1; inc byte [rip-7] (the immediate of the first instruction); jmp l
    let (_, mut vcpu) = user(&hex("b001fe05f9ffffffebf6"), "qemu64");
    for n in 1..20u64 {
        run(&mut vcpu, 1);
        assert_eq!(vcpu.state().gpr[0] & 0xff, n);
        run(&mut vcpu, 2);
    }
}

#[test]
fn a_page_of_code_written_by_a_device_is_translated_again() {
    let (bed, mut vcpu) = user(&hex("b001ebfc"), "qemu64");
    run(&mut vcpu, 100);
    assert_eq!(vcpu.state().gpr[0] & 0xff, 1);
    bed.ram.write(CODE + 1, &[7]);
    run(&mut vcpu, 100);
    assert_eq!(vcpu.state().gpr[0] & 0xff, 7);
}

#[test]
fn vectors_go_through_the_host_and_keep_their_upper_halves() {
    // movdqu xmm0,[rsi]; paddb xmm0,[rsi]; movq rax,xmm0; pmovmskb ecx,xmm0; movss xmm1,xmm0
    let (bed, mut vcpu) = user(&hex("f30f6f06660ffc0666480f7ec0660fd7c8f30f10c8ebfe"), "qemu64");
    bed.put(DATA, 0x0102_0304_8586_8788);
    bed.put(DATA + 8, 0x4040_4040_0000_0000);
    run(&mut vcpu, 5);
    let s = vcpu.state();
    assert_eq!(s.xsave.xmm(0), [0x0204_0608_0a0c_0e10, 0x8080_8080_0000_0000]);
    assert_eq!(s.gpr[0], 0x0204_0608_0a0c_0e10);
    assert_eq!(s.gpr[1], 0xf000);
    assert_eq!(s.xsave.xmm(1), [0x0a0c_0e10, 0]);
}

#[test]
fn x87_state_lives_in_the_image() {
    // fld1; fldpi; faddp; fstp qword [rsi]; fnstsw ax
    let (bed, mut vcpu) = user(&hex("d9e8d9ebdec1dd1edfe0ebfe"), "qemu64");
    run(&mut vcpu, 5);
    assert_eq!(f64::from_bits(bed.get(DATA)), 1.0 + std::f64::consts::PI);
    assert_eq!(vcpu.state().xsave.ftw(), 0);
}

#[test]
fn an_aligned_vector_access_faults_where_it_is_not() {
    // No IDT: the #GP ends in a triple fault, which is all this asks.
    let (_, mut vcpu) = user(&hex("0f284601ebfe"), "qemu64");
    assert_eq!(vcpu.run(Budget::Instructions(1)), VcpuExit::TripleFault);
    let (_, mut vcpu) = user(&hex("0f104601ebfe"), "qemu64");
    run(&mut vcpu, 1);
}

#[test]
fn a_hidden_feature_does_not_execute() {
    // tzcnt ecx, eax with eax = 0: BSF under a model without BMI1 leaves ecx alone.
    let (_, mut vcpu) = user(&hex("31c0b905000000f30fbcc8ebfe"), "qemu64");
    run(&mut vcpu, 3);
    assert_eq!(vcpu.state().gpr[1], 5);
    // andn eax, eax, eax is #UD there.
    let (_, mut vcpu) = user(&hex("c4e278f2c0ebfe"), "qemu64");
    assert_eq!(vcpu.run(Budget::Instructions(1)), VcpuExit::TripleFault);
}

#[test]
fn a_debugger_stops_before_a_breakpoint_and_after_a_step() {
    use anura_accel::{DebugControl, DebugEvent};
    // nop; nop; inc eax; jmp l
    let (_, mut vcpu) = user(&hex("9090ffc0ebfa"), "qemu64");
    let at = CODE + 2;
    vcpu.set_debug(&DebugControl { single_step: false, breakpoints: vec![at] }).unwrap();
    for n in 0..3 {
        let stop = VcpuExit::Debug(DebugEvent::Breakpoint { linear: at });
        assert_eq!(vcpu.run(Budget::Unlimited), stop);
        let s = vcpu.state();
        assert_eq!((s.rip, s.gpr[0]), (at, n));
    }
    vcpu.set_debug(&DebugControl { single_step: true, breakpoints: vec![] }).unwrap();
    assert_eq!(vcpu.run(Budget::Unlimited), VcpuExit::Debug(DebugEvent::Step));
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[0]), (at + 2, 3));
}

#[test]
fn a_kick_ends_a_run_at_an_instruction_boundary() {
    let (_, mut vcpu) = user(&hex("ffc0ebfc"), "qemu64");
    let kicker = vcpu.kicker();
    kicker.kick();
    assert_eq!(vcpu.run(Budget::Unlimited), VcpuExit::Interrupted);
    assert_eq!(vcpu.instructions(), 0);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(vcpu.run(Budget::Unlimited), VcpuExit::Interrupted);
    thread.join().unwrap();
    let (n, s) = (vcpu.instructions(), vcpu.state());
    assert!(n > 0);
    assert_eq!(s.gpr[0] as u32, n.div_ceil(2) as u32);
    assert_eq!(s.rip, CODE + if n.is_multiple_of(2) { 0 } else { 2 });
}

#[test]
fn elements_that_a_mask_leaves_out_are_not_touched() {
    // vpcmpeqd xmm1,xmm1,xmm1; vpsrldq xmm1,xmm1,8 (two elements on); vmaskmovps xmm0,xmm1,[rdi]; jmp $
    let (bed, mut vcpu) = user(&hex("c5f176c9c5f173d908c4e2712c07ebfe"), "max");
    if !anura_x86::FeatureSet::host().has(anura_x86::Feature::Avx) {
        return;
    }
    let cpu = vcpu.cpu();
    cpu.env.cr4 |= 1 << 18;
    cpu.env.xcr0 = 7;
    cpu.after_load();
    // The last eight bytes before an unmapped page.
    let edge = CODE + 16 * 0x1000 - 8;
    cpu.env.gpr[7] = edge;
    bed.put(edge, 0x2222_2222_1111_1111);
    run(&mut vcpu, 3);
    assert_eq!(vcpu.state().xsave.xmm(0), [0x2222_2222_1111_1111, 0]);
}

#[test]
fn user_code_with_alignment_checks_on_faults_on_a_crooked_access() {
    // mov eax,[rsi]; mov eax,[rsi+1]; jmp $
    let (_, mut vcpu) = user(&hex("8b068b4601ebfe"), "qemu64");
    let cpu = vcpu.cpu();
    cpu.env.cr0 |= 1 << 18;
    cpu.env.eflags_sys |= 1 << 18;
    cpu.after_load();
    run(&mut vcpu, 1);
    // No IDT: the #AC ends in a triple fault.
    assert_eq!(vcpu.run(Budget::Instructions(1)), VcpuExit::TripleFault);
    assert_eq!(vcpu.state().rip, CODE + 2);
}

#[test]
fn instructions_are_fetched_from_what_is_no_memory_too() {
    // jmp rdi, to a page where nothing answers: all ones, which is #UD, and without an IDT the end.
    let (bed, mut vcpu) = user(&hex("ffe7"), "qemu64");
    let mut next = 0x18_0000;
    bed.map_page(0x10_0000, &mut next, 0x4000_0000, 0xd000_0000 | 7);
    vcpu.cpu().env.gpr[7] = 0x4000_0000;
    assert_eq!(vcpu.run(Budget::Instructions(5)), VcpuExit::TripleFault);
    assert_eq!(vcpu.state().rip, 0x4000_0000);
}

#[test]
fn a_guest_that_only_faults_spends_its_budget() {
    // #UD whose handler is the same #UD, on a stack of its own each time.
    let bed = TestBed::new(16 << 20, "qemu64");
    let (root, mut next) = (0x10_0000, 0x10_1000);
    for page in 0..16u64 {
        let at = CODE + page * 0x1000;
        bed.map_page(root, &mut next, at, at | 3);
    }
    bed.ram.write(CODE, &[0x0f, 0x0b]);
    let (idt, gdt, tss) = (CODE + 0x1000, CODE + 0x2000, CODE + 0x3000);
    bed.put(idt + 6 * 16, 0x8e01 << 32 | 0x10 << 16 | (CODE & 0xffff) | (CODE >> 16) << 48);
    bed.put(gdt + 0x10, 0x00af_9b00_0000_ffff);
    bed.put(tss + 0x24, STACK);
    let mut vcpu = SoftVcpu::new(bed.shared(), 0, CpuSignal::new());
    enter_long_mode(vcpu.cpu(), root, 0);
    let cpu = vcpu.cpu();
    cpu.env.idtr = anura_x86::TableReg { base: idt, limit: 0xfff };
    cpu.env.gdtr = anura_x86::TableReg { base: gdt, limit: 0xfff };
    cpu.env.tr = Segment::new(0x20, tss, 0x67, 0x8b);
    cpu.env.rip = CODE;
    cpu.env.gpr[4] = STACK;
    cpu.after_load();
    assert_eq!(vcpu.run(Budget::Instructions(1000)), VcpuExit::BudgetSpent);
    assert_eq!((vcpu.instructions(), vcpu.state().rip), (1000, CODE));
}

#[test]
fn an_x87_error_with_ne_clear_freezes_at_ferr_until_ignne_or_an_interrupt() {
    // fninit; fldcw [rsi] (zero divide unmasked); fld1; fldz; fdivp; fld1 (waits); mov eax, 1; fnclex; jmp $
    let (bed, mut vcpu) = user(&hex("dbe3d92ed9e8d9eedef9d9e8b801000000dbe2ebfe"), "qemu64");
    bed.put(DATA, 0x37b);
    vcpu.cpu().env.cr0 &= !(1 << 5);
    vcpu.cpu().after_load();
    assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::Halted);
    assert!(bed.board.ferr.load(Ordering::Relaxed));
    assert_eq!((vcpu.state().rip, vcpu.state().gpr[0] & 1), (CODE + 10, 0));
    bed.board.ignne.store(true, Ordering::Relaxed);
    vcpu.cpu().env.halted = false;
    run(&mut vcpu, 2);
    assert_eq!(vcpu.state().gpr[0], 1);
    run(&mut vcpu, 1);
    assert!(!bed.board.ferr.load(Ordering::Relaxed), "the pin follows the status word");
}

#[test]
fn stepping_by_branches_traps_behind_a_taken_branch_only() {
    // nop; jz +0 is not taken; jmp +1; hlt; nop
    let (_, mut vcpu) = user(&hex("9074009090eb01f490ebfe"), "qemu64");
    vcpu.cpu().env.msrs.debugctl = 2;
    vcpu.cpu().env.eflags_sys |= 1 << 8;
    // There is no IDT: the first trap is a shutdown at the branch's target.
    assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::TripleFault);
    assert_eq!(vcpu.state().rip, CODE + 8);
}

#[test]
fn a_data_breakpoint_of_an_instruction_that_faults_is_forgotten() {
    // movsb with a readable source and no page at the destination
    let (_, mut vcpu) = user(&hex("a4"), "qemu64");
    let env = &mut vcpu.cpu().env;
    env.gpr[7] = 0x4000_0000;
    env.dr[0] = DATA;
    env.dr7 = 0x400 | 1 | 3 << 16;
    vcpu.cpu().after_load();
    assert_eq!(vcpu.run(Budget::Instructions(100)), VcpuExit::TripleFault);
    assert_eq!((vcpu.state().pending_db, vcpu.state().cr2), (0, 0x4000_0000));
}

#[test]
fn alignment_checks_reach_every_kind_of_access() {
    // Name, code with RSI off by one, whether it is checked.
    let cases = [
        ("mov", "8b06", true),
        ("mov byte", "8a06", false),
        ("add to memory", "0106", true),
        ("push", "ff36", true),
        ("movsb", "a4", false),
        ("movsd", "a5", true),
        ("lodsw", "66ad", true),
        ("fld qword", "dd06", true),
        ("fild word", "df06", true),
        ("movd", "660f6e06", true),
        ("movq", "f30f7e06", true),
        ("movdqu", "f30f6f06", false),
        ("cmpxchg8b", "0fc70e", true),
        ("bt", "0fa306", true),
    ];
    for (name, code, checked) in cases {
        let (_, mut vcpu) = user(&hex(&format!("{code}ebfe")), "qemu64");
        let env = &mut vcpu.cpu().env;
        env.gpr[6] = DATA + 1;
        env.cr0 |= 1 << 18;
        env.eflags_sys |= 1 << 18;
        vcpu.cpu().after_load();
        let exit = vcpu.run(Budget::Instructions(3));
        assert_eq!(exit == VcpuExit::TripleFault, checked, "{name}");
    }
}
