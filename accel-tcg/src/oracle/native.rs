//! Runs one instruction on the host's own processor, in user mode.
//!
//! Everything lies at fixed addresses below 2 GiB, so that the entry and exit code needs no
//! register: a state page, the code, and the data pages. The instruction is followed by a jump
//! to the exit code; a second such jump lies where branches go. A signal handler on its own
//! stack notes trap number, error code and CR2 and lets the exit code run.
//!
//! One runner per process: the addresses and the signal handlers are process-wide.
use super::generate::{Case, Width};
use super::{CODE, CODE_BYTES, DATA, DATA_PAGES, FpImage, Outcome, TAKEN, Trap};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// The page that holds the state block.
const STATE: usize = 0x1000_0000;
const FP_IN: usize = STATE;
const FP_OUT: usize = STATE + 0x400;
const GPR_IN: usize = STATE + 0x800;
const FLAGS_IN: usize = STATE + 0x880;
const TARGET: usize = STATE + 0x888;
const HOST_RSP: usize = STATE + 0x890;
const HOST_MXCSR: usize = STATE + 0x898;
const GPR_OUT: usize = STATE + 0x8a0;
const FLAGS_OUT: usize = STATE + 0x920;
const MARKER: usize = STATE + 0x928;
const RUNNING: usize = STATE + 0x930;
const EXIT_NEXT: usize = STATE + 0x940;
const EXIT_TAKEN: usize = STATE + 0x948;
const FP_MASK: usize = STATE + 0x950;
const TRAP: usize = STATE + 0x960;
/// Offset and selector of a far pointer to 32-bit code.
const FAR: usize = STATE + 0x990;
/// A page of small code that 32-bit code can reach.
const STUBS: usize = 0x1001_0000;
/// In it: to 32-bit code, and back to the two exits.
const ENTER32: usize = STUBS;
const NEXT32: usize = STUBS + 16;
const TAKEN32: usize = STUBS + 32;
/// Linux's user segments: 64-bit code, 32-bit code, data.
const CS64: u16 = 0x33;
const CS32: u16 = 0x23;
const DATA32: u16 = 0x2b;

std::arch::global_asm!(
    r#"
    .global anura_oracle_enter
anura_oracle_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [{host_rsp}], rsp
    stmxcsr dword ptr [{host_mxcsr}]
    mov eax, dword ptr [{fp_mask}]
    xor edx, edx
    xrstor64 [{fp_in}]
    mov qword ptr [{marker}], 0
    mov qword ptr [{running}], 1
    push qword ptr [{flags_in}]
    popfq
    mov rax, qword ptr [{gpr_in}]
    mov rcx, qword ptr [{gpr_in} + 8]
    mov rdx, qword ptr [{gpr_in} + 16]
    mov rbx, qword ptr [{gpr_in} + 24]
    mov rbp, qword ptr [{gpr_in} + 40]
    mov rsi, qword ptr [{gpr_in} + 48]
    mov rdi, qword ptr [{gpr_in} + 56]
    mov r8, qword ptr [{gpr_in} + 64]
    mov r9, qword ptr [{gpr_in} + 72]
    mov r10, qword ptr [{gpr_in} + 80]
    mov r11, qword ptr [{gpr_in} + 88]
    mov r12, qword ptr [{gpr_in} + 96]
    mov r13, qword ptr [{gpr_in} + 104]
    mov r14, qword ptr [{gpr_in} + 112]
    mov r15, qword ptr [{gpr_in} + 120]
    mov rsp, qword ptr [{gpr_in} + 32]
    jmp qword ptr [{target}]

    .global anura_oracle_taken
anura_oracle_taken:
    mov qword ptr [{marker}], 1
    .global anura_oracle_next
anura_oracle_next:
    mov qword ptr [{gpr_out}], rax
    mov qword ptr [{gpr_out} + 8], rcx
    mov qword ptr [{gpr_out} + 16], rdx
    mov qword ptr [{gpr_out} + 24], rbx
    mov qword ptr [{gpr_out} + 32], rsp
    mov qword ptr [{gpr_out} + 40], rbp
    mov qword ptr [{gpr_out} + 48], rsi
    mov qword ptr [{gpr_out} + 56], rdi
    mov qword ptr [{gpr_out} + 64], r8
    mov qword ptr [{gpr_out} + 72], r9
    mov qword ptr [{gpr_out} + 80], r10
    mov qword ptr [{gpr_out} + 88], r11
    mov qword ptr [{gpr_out} + 96], r12
    mov qword ptr [{gpr_out} + 104], r13
    mov qword ptr [{gpr_out} + 112], r14
    mov qword ptr [{gpr_out} + 120], r15
    mov rsp, qword ptr [{host_rsp}]
    pushfq
    pop qword ptr [{flags_out}]
    .global anura_oracle_fault
anura_oracle_fault:
    mov qword ptr [{running}], 0
    cld
    mov eax, dword ptr [{fp_mask}]
    xor edx, edx
    xsave64 [{fp_out}]
    fninit
    ldmxcsr dword ptr [{host_mxcsr}]
    vzeroupper
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    "#,
    host_rsp = const HOST_RSP,
    host_mxcsr = const HOST_MXCSR,
    fp_mask = const FP_MASK,
    fp_in = const FP_IN,
    fp_out = const FP_OUT,
    marker = const MARKER,
    running = const RUNNING,
    flags_in = const FLAGS_IN,
    flags_out = const FLAGS_OUT,
    gpr_in = const GPR_IN,
    gpr_out = const GPR_OUT,
    target = const TARGET,
);

unsafe extern "C" {
    fn anura_oracle_enter();
    fn anura_oracle_next();
    fn anura_oracle_taken();
    fn anura_oracle_fault();
}

static TAKEN_ALREADY: AtomicBool = AtomicBool::new(false);

/// The host side. It exists once.
pub struct Native {
    /// The code pages as they can be written.
    code: *mut u8,
    alt_stack: Vec<u8>,
}

fn map_fixed(at: usize, len: usize, prot: i32, fd: i32) -> io::Result<*mut u8> {
    let flags = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let kind = if fd >= 0 { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    // SAFETY: a new mapping at a free place (NOREPLACE) touches no memory of ours.
    let p = unsafe { libc::mmap(at as *mut libc::c_void, len, prot, flags | kind, fd, 0) };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if at != 0 && p as usize != at {
        return Err(io::Error::other("the oracle's fixed addresses are taken"));
    }
    Ok(p.cast())
}

impl Native {
    /// Maps the pages and installs the signal handlers. Fails if the process has a runner, or
    /// the host lacks AVX.
    pub fn new() -> io::Result<Self> {
        if !std::arch::is_x86_feature_detected!("avx") {
            return Err(io::Error::other("the oracle needs a host with AVX"));
        }
        if TAKEN_ALREADY.swap(true, Ordering::SeqCst) {
            return Err(io::Error::other("only one oracle runs in a process"));
        }
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map_fixed(STATE, 0x1000, rw, -1)?;
        // SAFETY: a plain system call; the name is a C string.
        let fd = unsafe { libc::memfd_create(c"anura-oracle".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: the descriptor is ours.
        if fd < 0 || unsafe { libc::ftruncate(fd, CODE_BYTES as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let code = map_fixed(0, CODE_BYTES, rw, fd)?;
        map_fixed(CODE as usize, CODE_BYTES, libc::PROT_READ | libc::PROT_EXEC, fd)?;
        // SAFETY: the mappings keep the file alive.
        unsafe { libc::close(fd) };
        // Two writable pages, one that can only be read, and one that is not there.
        map_fixed(DATA as usize, 0x2000, rw, -1)?;
        map_fixed(DATA as usize + 0x2000, 0x1000, rw, -1)?;
        const { assert!(DATA_PAGES == 4) };
        let mut native = Self { code, alt_stack: vec![0; 256 << 10] };
        native.install_handlers()?;
        native.map_stubs()?;
        native.protect(true)?;
        put(EXIT_NEXT, anura_oracle_next as *const () as u64);
        put(EXIT_TAKEN, anura_oracle_taken as *const () as u64);
        Ok(native)
    }

    /// The way into 32-bit code and out of it, and data segments that it can use.
    fn map_stubs(&self) -> io::Result<()> {
        let p = map_fixed(STUBS, 0x1000, libc::PROT_READ | libc::PROT_WRITE, -1)?;
        let far = (FAR as u32).to_le_bytes();
        let enter = [0xff, 0x2c, 0x25, far[0], far[1], far[2], far[3]];
        for (at, code) in [(ENTER32, enter), (NEXT32, jump(EXIT_NEXT)), (TAKEN32, jump(EXIT_TAKEN))] {
            // SAFETY: inside the page that was just mapped.
            unsafe { ptr::copy_nonoverlapping(code.as_ptr(), p.add(at - STUBS), code.len()) };
        }
        // SAFETY: the page is ours; nothing of Rust lies in it.
        let r = unsafe { libc::mprotect(p.cast(), 0x1000, libc::PROT_READ | libc::PROT_EXEC) };
        if r != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: 64-bit code does not look at DS and ES; the selector is the one that Linux gives
        // to 32-bit programs.
        unsafe {
            std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(DATA32), options(nostack));
        }
        Ok(())
    }

    fn protect(&self, read_only: bool) -> io::Result<()> {
        let prot = if read_only { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        // SAFETY: the third data page is ours and nothing of Rust lies in it.
        let r = unsafe { libc::mprotect((DATA as usize + 0x2000) as *mut libc::c_void, 0x1000, prot) };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn install_handlers(&mut self) -> io::Result<()> {
        let stack = libc::stack_t {
            ss_sp: self.alt_stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: self.alt_stack.len(),
        };
        // SAFETY: the stack lives as long as the runner, which is as long as handlers can run:
        // `RUNNING` is set inside `run` only.
        if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGBUS] {
            // SAFETY: all-zero is a valid sigaction; the handler has the SA_SIGINFO form.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                if libc::sigaction(signal, &action, ptr::null_mut()) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }

    /// Puts an instruction at an offset in the code, with the jumps to the exits behind it and
    /// at the place that taken branches go to.
    pub fn place(&mut self, offset: usize, bytes: &[u8], width: Width) {
        assert!(bytes.len() <= 15 && offset + 64 <= CODE_BYTES, "the slot is inside the code");
        let mut slot = [0xcc; 64];
        slot[..bytes.len()].copy_from_slice(bytes);
        let (next, taken) = match width {
            Width::Bits64 => (jump(EXIT_NEXT), jump(EXIT_TAKEN)),
            Width::Bits32 => (far_jump(NEXT32), far_jump(TAKEN32)),
        };
        slot[bytes.len()..bytes.len() + 7].copy_from_slice(&next);
        slot[TAKEN..TAKEN + 7].copy_from_slice(&taken);
        // SAFETY: inside the mapping, as asserted; the processor is not running it now.
        unsafe { ptr::copy_nonoverlapping(slot.as_ptr(), self.code.add(offset), 64) };
    }

    /// The writable data pages and the read-only one behind them.
    pub fn data(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= 0x3000, "inside the pages that are there");
        // SAFETY: the pages are mapped, and change only in `run` and `set_data`, which take
        // `&mut self`.
        unsafe { std::slice::from_raw_parts((DATA as usize + offset) as *const u8, len) }
    }

    /// Vector and x87 registers after the last case that had any.
    pub fn fp(&self) -> &FpImage {
        // SAFETY: the state page is mapped as long as the runner lives, and changes only in `run`, which takes
        // `&mut self`; an image is plain bytes.
        unsafe { &*(FP_OUT as *const FpImage) }
    }

    /// Writes data pages.
    pub fn set_data(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(offset + bytes.len() <= 0x3000, "inside the pages that are there");
        let read_only = offset + bytes.len() > 0x2000;
        if read_only {
            self.protect(false)?;
        }
        // SAFETY: mapped and writable, not shared with anything in Rust but `data`'s borrow.
        unsafe {
            let to = (DATA as usize + offset) as *mut u8;
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        if read_only { self.protect(true) } else { Ok(()) }
    }

    /// Runs a case whose instruction was placed at its offset in the code.
    ///
    /// With `fp` the vector and x87 registers are loaded before and found in [`Native::fp`] afterwards.
    pub fn run(&mut self, case: &Case, fp: Option<&FpImage>, width: Width) -> Outcome {
        let (gpr, flags, len) = (&case.gpr, case.flags, case.len);
        let start = case.instruction.ip();
        match width {
            Width::Bits64 => put(TARGET, start),
            Width::Bits32 => {
                put(TARGET, ENTER32 as u64);
                put(FAR, start | u64::from(CS32) << 32);
            }
        }
        put(FLAGS_IN, flags);
        put(TRAP, u64::MAX);
        // SAFETY: the state page is ours and mapped; the instruction was chosen to touch the
        // data pages only, and a signal brings us back from anything that faults.
        unsafe {
            ptr::copy_nonoverlapping(gpr.as_ptr(), GPR_IN as *mut u64, 16);
            if let Some(fp) = fp {
                ptr::copy_nonoverlapping(fp.bytes.as_ptr(), FP_IN as *mut u8, fp.bytes.len());
            }
            (FP_MASK as *mut u64).write_volatile(if fp.is_some() { 7 } else { 0 });
            anura_oracle_enter();
        }
        let mut out = Outcome { gpr: [0; 16], rip: 0, flags: get(FLAGS_OUT), trap: None };
        // SAFETY: the exit code has written them.
        unsafe {
            ptr::copy_nonoverlapping(GPR_OUT as *const u64, out.gpr.as_mut_ptr(), 16);
        }
        if get(TRAP) == u64::MAX {
            let taken = get(MARKER) == 1;
            out.rip = start + if taken { TAKEN as u64 } else { len as u64 };
        } else {
            out.trap = Some(Trap {
                vector: get(TRAP) as u8,
                error: get(TRAP + 8) as u32,
                cr2: if get(TRAP) == 14 { get(TRAP + 16) } else { 0 },
            });
            out.rip = get(TRAP + 24);
        }
        out
    }
}

/// `jmp 0x33:abs32` of 32-bit code.
fn far_jump(to: usize) -> [u8; 7] {
    let a = (to as u32).to_le_bytes();
    let s = CS64.to_le_bytes();
    [0xea, a[0], a[1], a[2], a[3], s[0], s[1]]
}

/// `jmp qword ptr [abs32]`.
fn jump(through: usize) -> [u8; 7] {
    let a = (through as u32).to_le_bytes();
    [0xff, 0x24, 0x25, a[0], a[1], a[2], a[3]]
}

fn put(at: usize, value: u64) {
    // SAFETY: called with addresses of the state page only, after it was mapped.
    unsafe { (at as *mut u64).write_volatile(value) };
}
fn get(at: usize) -> u64 {
    // SAFETY: as in `put`.
    unsafe { (at as *const u64).read_volatile() }
}

/// Notes what happened and resumes at the exit code.
extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if get(RUNNING) != 1 {
        // A fault of our own: let it end the process in the usual way.
        // SAFETY: resets the handler; returning repeats the fault.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a ucontext to a SA_SIGINFO handler.
    let uc = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let g = &mut uc.uc_mcontext.gregs;
    let reg = |n: i32| g[n as usize] as u64;
    put(TRAP, reg(libc::REG_TRAPNO));
    put(TRAP + 8, reg(libc::REG_ERR));
    put(TRAP + 16, reg(libc::REG_CR2));
    put(TRAP + 24, reg(libc::REG_RIP));
    put(FLAGS_OUT, reg(libc::REG_EFL));
    let order = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    for (i, n) in order.iter().enumerate() {
        put(GPR_OUT + i * 8, reg(*n));
    }
    g[libc::REG_RIP as usize] = anura_oracle_fault as *const () as i64;
    g[libc::REG_RSP as usize] = get(HOST_RSP) as i64;
    g[libc::REG_EFL as usize] = 0x202;
    // CS in the low word, SS in the high one; the exit code is 64-bit.
    let selectors = reg_word(g[libc::REG_CSGSFS as usize]);
    g[libc::REG_CSGSFS as usize] = selectors as i64;
}

fn reg_word(csgsfs: i64) -> u64 {
    csgsfs as u64 & 0x0000_ffff_ffff_0000 | u64::from(CS64) | u64::from(DATA32) << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_run_and_faults_are_told_apart() {
        let mut n = Native::new().unwrap();
        let mut gpr = [0; 16];
        gpr[0] = 5;
        gpr[3] = 7;
        gpr[4] = DATA + 0x800;
        let mut fp = FpImage::init();
        fp.set_u64_at(512, 7);
        let mut run_in = |bytes: &[u8], gpr: &[u64; 16], width: Width| {
            n.place(0, bytes, width);
            let mut instruction = iced_x86::Instruction::default();
            instruction.set_ip(CODE);
            let gpr = *gpr;
            let (len, flags, bytes) = (bytes.len(), 0x202, [0; 15]);
            let case =
                Case { encoding: 0, bytes, len, instruction, gpr, flags, fp: 0, vector: None, patch: None };
            n.run(&case, Some(&fp), width)
        };
        // aam, inc eax and a fault in 32-bit code
        let mut small = [0; 16];
        small[0] = 37;
        small[4] = DATA + 0x800;
        let o = run_in(&[0xd4, 10], &small, Width::Bits32);
        assert_eq!((o.gpr[0], o.rip, o.trap), (0x307, CODE + 2, None));
        assert_eq!(run_in(&[0x40], &small, Width::Bits32).gpr[0], 38);
        assert_eq!(run_in(&[0x0f, 0x0b], &small, Width::Bits32).trap.unwrap().vector, 6);
        let mut run = |bytes: &[u8], gpr: &[u64; 16]| run_in(bytes, gpr, Width::Bits64);
        // add rax, rbx
        let o = run(&[0x48, 0x01, 0xd8], &gpr);
        assert_eq!((o.gpr[0], o.rip, o.trap), (12, CODE + 3, None));
        assert_eq!(o.flags & 0x8d5, 0x4);
        // mov rax, [rsi] with rsi in the absent page
        gpr[6] = DATA + 0x3010;
        let o = run(&[0x48, 0x8b, 0x06], &gpr);
        assert_eq!((o.trap, o.rip), (Some(Trap { vector: 14, error: 4, cr2: DATA + 0x3010 }), CODE));
        // ud2, div by zero, a non-canonical address
        assert_eq!(run(&[0x0f, 0x0b], &gpr).trap.unwrap().vector, 6);
        gpr[1] = 0;
        assert_eq!(run(&[0x48, 0xf7, 0xf1], &gpr).trap.unwrap().vector, 0);
        gpr[6] = 1 << 60;
        assert_eq!(run(&[0x48, 0x8b, 0x06], &gpr).trap.unwrap().vector, 13);
        // jmp to the place for taken branches
        let o = run(&[0xeb, TAKEN as u8 - 2], &gpr);
        assert_eq!(o.rip, CODE + TAKEN as u64);
    }
}
