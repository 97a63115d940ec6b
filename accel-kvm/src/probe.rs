//! Whether KVM works here, and of which kind it is.
//!
//! A kernel can offer KVM without hardware behind it: guest ring 0 then runs in the kernel's instruction emulator at a
//! hundredth of the speed, ring 3 natively. A probe guest tells: a loop in real mode, timed.

use std::io;
use std::time::{Duration, Instant};

use anura_accel::Unavailable;
use anura_memory::RamBlock;
use kvm_bindings::*;
use kvm_ioctls::Cap;

use crate::Kind;
use crate::cpuid;
use crate::host::{RealSystem, System, has};

/// The one stable version of the interface.
const API_VERSION: i32 = 12;
/// Loop rounds of the probe guest, two instructions each.
const ROUNDS: u16 = 500;
/// An instruction in hardware takes less than this even on a busy host; in the emulator ten times more.
const HARDWARE: Duration = Duration::from_nanos(100);

/// What is used where it is there, and can be done without.
pub(crate) const OPTIONAL: [(u32, &str); 8] = [
    (KVM_CAP_SPLIT_IRQCHIP, "split irqchip (local APICs are ours: each interrupt costs exits)"),
    (KVM_CAP_X2APIC_API, "x2APIC ids of 32 bits (up to 255 vCPUs)"),
    (KVM_CAP_IOEVENTFD, "doorbells (ioeventfd; their writes come as exits)"),
    (KVM_CAP_IRQFD, "interrupts by eventfd (irqfd; each message is an ioctl)"),
    (KVM_CAP_KVMCLOCK_CTRL, "word to the guest that it stood (its watchdogs may bark)"),
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE, "exit on emulation failure (a failed emulation may show as #UD)"),
    (KVM_CAP_X86_USER_SPACE_MSR, "MSRs for user space (unknown ones fault)"),
    (KVM_CAP_DISABLE_QUIRKS2, "quirks that can be switched off (hypercalls are rewritten in place)"),
];

/// Opens `/dev/kvm`, or says what is in the way and the way out.
pub(crate) fn open() -> Result<RealSystem, Unavailable> {
    RealSystem::open().map_err(|e| Unavailable(reason(&e)))
}

/// Why `/dev/kvm` does not open.
pub(crate) fn reason(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOENT) => "/dev/kvm does not exist: load the kvm_intel or kvm_amd module, or switch virtualisation \
             on in the host's firmware; -accel interp needs no KVM"
            .into(),
        Some(libc::EACCES | libc::EPERM) => {
            "no permission for /dev/kvm: add yourself to the kvm group (usermod -aG kvm $USER) and log in again".into()
        }
        Some(libc::EBUSY) => "/dev/kvm is in use by another hypervisor: stop it first".into(),
        Some(libc::ENODEV | libc::ENXIO) => {
            "/dev/kvm has no driver behind it: load the kvm_intel or kvm_amd module".into()
        }
        _ => format!("/dev/kvm does not open: {e}"),
    }
}

/// Checks the interface and what we cannot do without.
pub(crate) fn check(system: &dyn System) -> Result<(), Unavailable> {
    let version = system.api_version();
    if version != API_VERSION {
        return Err(Unavailable(format!(
            "KVM speaks version {version} of its interface, not {API_VERSION}: a kernel of 2.6.22 or later is needed"
        )));
    }
    let needed = [
        (Cap::UserMemory, "user memory"),
        (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
        (Cap::ExtCpuid, "KVM_SET_CPUID2"),
        (Cap::ImmediateExit, "immediate_exit"),
        (Cap::VcpuEvents, "vCPU events"),
        (Cap::Xsave, "KVM_GET_XSAVE"),
        (Cap::Xcrs, "KVM_GET_XCRS"),
        (Cap::Debugregs, "debug registers"),
        (Cap::ReadonlyMem, "read-only memory slots"),
    ];
    match needed.iter().find(|(cap, _)| !has(system, *cap)) {
        Some((_, name)) => Err(Unavailable(format!(
            "this kernel's KVM lacks {name}: a newer kernel is needed; -accel interp needs no KVM"
        ))),
        None => Ok(()),
    }
}

/// Runs the probe guest.
pub(crate) fn measure(system: &dyn System) -> Result<Kind, Unavailable> {
    run_loop(system).map_err(|e| Unavailable(format!("a probe guest does not run: {e}")))
}

fn run_loop(system: &dyn System) -> io::Result<Kind> {
    let memory = RamBlock::new("probe", 0x1000).map_err(io::Error::other)?;
    // mov cx, ROUNDS; again: dec cx; jnz again; out 0x80, al
    let [low, high] = ROUNDS.to_le_bytes();
    memory.write(0, &[0xb9, low, high, 0x49, 0x75, 0xfd, 0xe6, 0x80]);
    let vm = system.create_vm()?;
    vm.set_real_mode_pages(0xfeff_d000, 0xfeff_c000)?;
    vm.set_memory(0, 0, 0, 0x1000, memory.host_ptr().as_ptr() as u64)?;
    let mut cpu = vm.create_vcpu(0)?;
    let mut sregs = cpu.sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    cpu.set_sregs(&sregs)?;
    let mut best = Duration::MAX;
    for _ in 0..2 {
        let mut regs = cpu.regs()?;
        (regs.rip, regs.rflags) = (0, 2);
        cpu.set_regs(&regs)?;
        let start = Instant::now();
        loop {
            match cpu.run() {
                Ok(()) => break,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                Err(e) => return Err(e),
            }
        }
        best = best.min(start.elapsed());
        let reason = cpu.page().get().exit_reason;
        if reason != KVM_EXIT_IO {
            return Err(io::Error::other(format!("exit reason {reason} instead of its OUT")));
        }
    }
    let per_instruction = best / (u32::from(ROUNDS) * 2);
    let tsc_khz = cpu.tsc_khz().unwrap_or(0).into();
    let tsc_scales = has(system, Cap::TscControl);
    let ring0_emulated = per_instruction > HARDWARE;
    let features = cpuid::Leaves::new(system, false, ring0_emulated)?.features();
    Ok(Kind { ring0_emulated, per_instruction, tsc_khz, tsc_scales, features })
}
