//! Programs of system instructions on the JIT and on the interpreter, stopped after every number of instructions:
//! everything that can be seen of the processor must agree.

use anura_accel::{Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_accel_tcg::{Interp, JitEngine};
use anura_vmcore::CpuSignal;
use anura_x86::regs::cr4;
use anura_x86::{CpuState, Segment, TableReg};

/// Where programs begin, in a page that user code may run.
const CODE: u64 = 0x1_0000;
/// Where SYSCALL goes.
const ENTRY: u64 = 0x1_2000;
const DATA: u64 = 0x2_0000;
const GDT: u64 = 0x3_0000;
const IDT: u64 = 0x3_1000;
const TSS: u64 = 0x3_2000;
/// A HLT for each vector.
const HANDLERS: u64 = 0x3_3000;
const ROOT: u64 = 0x10_0000;

fn hex(s: &str) -> Vec<u8> {
    let s: String = s.split_whitespace().collect();
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

/// RAM with tables, descriptors and a program, and the processor's state at its start.
fn machine(model: &str, code: &str, entry: &str) -> (TestBed, CpuState) {
    let bed = TestBed::new(4 << 20, model);
    let mut next = ROOT + 0x1000;
    for page in (CODE..CODE + 0x4_0000).step_by(0x1000) {
        bed.map_page(ROOT, &mut next, page, page | 7);
    }
    let descriptors = [
        (0x10, 0x00af_9b00_0000_ffffu64),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x20, 0x00cf_fb00_0000_ffff),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_fb00_0000_ffff),
    ];
    for (at, d) in descriptors {
        bed.put(GDT + at, d);
    }
    for v in 0..32u64 {
        let to = HANDLERS + v;
        bed.put(IDT + v * 16, to & 0xffff | 0x10 << 16 | 0xee << 40 | to >> 16 << 48);
        bed.put(IDT + v * 16 + 8, to >> 32);
    }
    bed.ram.write(HANDLERS, &[0xf4; 32]);
    bed.put(TSS + 4, DATA + 0x8000);
    bed.ram.write(CODE, &hex(code));
    bed.ram.write(ENTRY, &hex(entry));
    let mut cpu = bed.cpu();
    enter_long_mode(&mut cpu, ROOT, 0);
    let mut s = cpu.save_state();
    s.rip = CODE;
    s.gpr[4] = DATA + 0x5000;
    s.rflags = 2;
    s.gdtr = TableReg { base: GDT, limit: 0x37 };
    s.idtr = TableReg { base: IDT, limit: 32 * 16 - 1 };
    s.tr = Segment::new(0x40, TSS, 0x67, 0x8b);
    s.seg[5].base = DATA + 0x1000;
    s.msrs.kernel_gs_base = DATA;
    s.msrs.star = 0x20 << 48 | 0x10 << 32;
    s.msrs.lstar = ENTRY;
    s.msrs.fmask = 0x4_7700;
    (bed, s)
}

fn processor(engine: &dyn Accelerator, bed: &TestBed, state: &CpuState) -> Box<dyn Vcpu> {
    let vm = engine.create_vm(&bed.spaces, &bed.config).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    vcpu.set_state(state).unwrap();
    vcpu
}

/// Runs a program on both engines to its HLT, as a whole and in every number of first instructions; the state at the
/// end.
fn agree(model: &str, code: &str, entry: &str, change: impl Fn(&mut CpuState)) -> CpuState {
    let free = JitEngine::default();
    let exact = JitEngine { exact: true, ..free };
    let run = |engine: &dyn Accelerator, n: Option<u64>| {
        let (bed, mut start) = machine(model, code, entry);
        change(&mut start);
        let mut vcpu = processor(engine, &bed, &start);
        let exit = vcpu.run(n.map_or(Budget::Unlimited, Budget::Instructions));
        let mut data = vec![0; 0x1_0000];
        bed.ram.read(DATA, &mut data);
        (exit, vcpu.state(), data, vcpu.instructions())
    };
    let (exit, end, data, count) = run(&Interp, None);
    assert_eq!(exit, VcpuExit::Halted);
    if let Err(e) = anura_accel_tcg::generated_code() {
        println!("skipped: this host gives no memory for generated code: {e}");
        return end;
    }
    let whole = run(&free, None);
    assert_eq!((&whole.0, &whole.1, &whole.2), (&exit, &end, &data));
    for n in 1..=count {
        let (a, b) = (run(&Interp, Some(n)), run(&exact, Some(n)));
        assert_eq!(a.0, b.0, "after {n} instructions");
        assert_eq!(a.1, b.1, "after {n} instructions");
        assert_eq!((a.2, a.3), (b.2, b.3), "after {n} instructions");
    }
    end
}

/// The vector of the handler that a program ended in.
fn vector(end: &CpuState) -> u64 {
    end.rip - 1 - HANDLERS
}

#[test]
fn flags_outlive_system_calls_and_helpers_that_keep_them() {
    // mov rcx, user; mov r11d, 202h; mov ebp, 3; swapgs; sysretq
    // user: cmp rbp, 2; syscall; cmp eax, 7; sbb edx, edx; syscall; jmp user
    let code = "48b91b00010000000000 41bb02020000 bd03000000 0f01f8 480f07
                4883fd02 0f05 83f807 19d2 0f05 ebf1";
    // swapgs; mov r8, gs:[0]; setb al; cmp ebp, 1; rdtsc; je done; jbe never; dec ebp; mov r9, rcx; mov r10, r11;
    // xor eax, eax; xor ecx, ecx; cpuid; mov rcx, r9; mov r11, r10; swapgs; sysretq; never: ud2; done: hlt
    let entry = "0f01f8 654c8b042500000000 0f92c0 83fd01 0f31 741e 761a ffcd 4989c9 4d89da
                 31c0 31c9 0fa2 4c89c9 4d89d3 0f01f8 480f07 0f0b f4";
    for model in ["qemu64", "max"] {
        let end = agree(model, code, entry, |_| {});
        assert_eq!((end.gpr[5], end.seg[5].base), (1, DATA + 0x1000));
    }
}

#[test]
fn a_return_to_an_address_that_is_not_canonical_faults_in_the_kernel() {
    // mov rcx, 0000800000000000h; mov r11d, 202h; sysretq
    let end = agree("qemu64", "48b90000000000800000 41bb02020000 480f07", "f4", |_| {});
    assert_eq!((vector(&end), end.seg[1].selector), (13, 0x10));
}

#[test]
fn a_return_that_sets_tf_steps_before_the_first_instruction() {
    // mov rcx, user; mov r11d, 302h; sysretq; user: nop; nop; hlt
    let end = agree("qemu64", "48b91300010000000000 41bb02030000 480f07 90 90 f4", "f4", |_| {});
    assert_eq!((vector(&end), end.dr6 & 1 << 14), (1, 1 << 14));
}

#[test]
fn a_system_call_with_tf_is_stepped_unless_the_mask_takes_it() {
    // mov rcx, user; mov r11d, 2; sysretq; user: pushfq; or qword [rsp], 100h; popfq; syscall
    let code = "48b91300010000000000 41bb02000000 480f07 9c 48810c2400010000 9d 0f05";
    for mask in [0x100, 0] {
        agree("qemu64", code, "90 f4", |s| s.msrs.fmask = mask);
    }
}

#[test]
fn the_counter_is_refused_to_user_code_where_tsd_says_so() {
    // mov rax, cr4; or eax, 4; mov cr4, rax; rdtsc; rdtscp; mov rcx, user; mov r11d, 2; sysretq; user: nop; rdtsc; hlt
    let code = "0f20e0 83c804 0f22e0 0f31 0f01f9 48b92100010000000000 41bb02000000 480f07 90 0f31 f4";
    let end = agree("max", code, "f4", |_| {});
    assert_eq!(vector(&end), 13);
}

#[test]
fn cpuid_follows_a_change_of_cr4() {
    // mov edi, 4; again: mov eax, 1; xor ecx, ecx; cpuid; mov r8d, ecx; shr r8d, 27; and r8d, 1; lea r9, [r9*2+r8];
    // mov rax, cr4; xor eax, 40000h; mov cr4, rax; cmp edi, 2; mov eax, 0; cpuid; ja more; je more; nop;
    // more: dec edi; jnz again; hlt
    let code = "bf04000000 b801000000 31c9 0fa2 4189c8 41c1e81b 4183e001 4f8d0c48 0f20e0 3500000400 0f22e0
                83ff02 b800000000 0fa2 7703 7401 90 ffcf 75ca f4";
    let end = agree("max", code, "f4", |s| {
        s.gpr[9] = 0;
        s.cr4 &= !cr4::OSXSAVE;
    });
    assert_eq!(end.gpr[9], 0b0101);
}

#[test]
fn iretq_leads_to_compatibility_mode_too() {
    // push 2bh; push 25000h; push 202h; push 23h; push compat; iretq
    // compat: mov eax, 5; cmp eax, 9; jb under; nop; under: je under; push eax; pop ebx; shrd ebx, eax, 3; int3
    let code = "6a2b 6800500200 6802020000 6a23 6815000100 48cf
                b805000000 83f809 7201 90 74fe 50 5b 0facc303 cc";
    let end = agree("qemu64", code, "f4", |_| {});
    assert_eq!((vector(&end), end.gpr[3]), (3, 0xa000_0000));
}

#[test]
fn flags_that_come_from_memory_are_tested_like_others() {
    // sti; pushfq; cli; pop rax; pushfq; pop rbx; mov ecx, 3; cmp eax, ebx; cld; ja a1; nop; a1: jbe a2; std;
    // a2: pushfq; popfq; js a3; shld rax, rbx, cl; shrd rdx, rax, 7; shrd r9, rax, cl; shld ecx, r10d, cl;
    // a3: push 246h; popfq; jz a4; nop; a4: jp a5; nop; a5: hlt
    let code = "fb 9c fa 58 9c 5b b903000000 39d8 fc 7701 90 7601 fd 9c 9d 7811 480fa5d8 480facc207 490fadc1
                440fa5d1 6846020000 9d 7401 90 7a01 90 f4";
    let end = agree("qemu64", code, "f4", |s| s.gpr[10] = 0xdead_beef_8765_4321);
    assert_eq!(end.gpr[0] >> 3, 0x202);
}

#[test]
fn rf_is_gone_after_the_instruction_that_iretq_leads_to() {
    // mov rax, rsp; push 18h; push rax; push 10002h; push 10h; push next; iretq; next: nop; pushfq; pop rbx;
    // mov rax, rsp; push 18h; push rax; push 10002h; push 10h; push bad; iretq; bad: mov cl, [7fffff00h]
    let code = "4889e0 6a18 50 6802000100 6a10 6814000100 48cf 90 9c 5b
                4889e0 6a18 50 6802000100 6a10 682b000100 48cf 8a0c2500ffff7f";
    let end = agree("qemu64", code, "f4", |_| {});
    assert_eq!((vector(&end), end.gpr[3] >> 16 & 1, end.rflags >> 16 & 1), (14, 0, 0));
}

#[test]
fn pairs_are_exchanged_and_only_zf_tells() {
    // mov ebx, 20000h; mov r8, rbx; xor eax, eax; xor edx, edx; mov rbx, 1111h; mov rcx, 2222h; cmp eax, 1;
    // lock cmpxchg16b [r8]; je ok1; ud2; ok1: pushfq; pop rsi; jb ok2; ud2; ok2: cmpxchg16b [r8]; pushfq; pop rdi;
    // jne ok3; ud2; ok3: cmpxchg8b [r8+20h]; lahf; std; pushfq; pop rbp; cld; lock cmpxchg8b [r8+0ffch]; seto r9b;
    // cmpxchg16b [r8+8]
    let code = "bb000002004989d831c031d2bb11110000b92222000083f801f0490fc70874020f0b9c5e72020f0b490fc7089c5f75020f0b410fc748209ffd9c5dfcf0410fc788fc0f0000410f90c1490fc74808";
    for model in ["qemu64", "max"] {
        let end = agree(model, code, "f4", |_| {});
        assert_eq!(
            (vector(&end), end.gpr[6] & 0x41, end.gpr[7] & 0x41, end.gpr[5] >> 10 & 1),
            (13, 0x41, 1, 1)
        );
    }
}
