//! The kernel's KVM as this crate uses it: a small trait for each kind of descriptor, and the real thing behind it.
//!
//! Everything else in the crate talks to these traits, so that a script can stand where the kernel is and every exit
//! and every failure can be played in tests. Source: Linux `Documentation/virt/kvm/api.rst`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

/// Bytes of the run page that are looked at: the structure, and where string I/O puts its data.
pub(crate) const RUN_BYTES: usize = 3 * 4096;

/// `/dev/kvm`.
pub(crate) trait System: Send + Sync {
    /// KVM_GET_API_VERSION.
    fn api_version(&self) -> i32;
    /// KVM_CHECK_EXTENSION: 0 is no.
    fn capability(&self, cap: u32) -> i32;
    /// KVM_GET_MSR_INDEX_LIST: the registers that are a vCPU's state.
    fn msr_list(&self) -> io::Result<Vec<u32>>;
    /// KVM_GET_SUPPORTED_CPUID.
    fn supported_cpuid(&self) -> io::Result<Vec<kvm_cpuid_entry2>>;
    /// KVM_CREATE_VM.
    fn create_vm(&self) -> io::Result<Box<dyn Vm>>;
}

/// A virtual machine.
pub(crate) trait Vm: Send + Sync {
    /// KVM_SET_USER_MEMORY_REGION. `size` 0 takes the slot away.
    fn set_memory(&self, slot: u32, flags: u32, gpa: u64, size: u64, host: u64) -> io::Result<()>;
    /// KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR: pages that old processors need for real mode.
    fn set_real_mode_pages(&self, tss: u64, identity: u64) -> io::Result<()>;
    /// KVM_ENABLE_CAP.
    fn enable(&self, cap: u32, arg: u64) -> io::Result<()>;
    /// KVM_SIGNAL_MSI.
    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()>;
    /// KVM_SET_GSI_ROUTING: all routes, as number, address and data of a message.
    fn set_routes(&self, routes: &[(u32, u64, u32)]) -> io::Result<()>;
    /// KVM_IOEVENTFD: writes of `len` bytes to a port or address write the descriptor instead of leaving the guest.
    fn ioeventfd(&self, fd: BorrowedFd<'_>, bell: Bell, on: bool) -> io::Result<()>;
    /// KVM_IRQFD: a write to the descriptor sends the message of a route.
    fn irqfd(&self, fd: BorrowedFd<'_>, gsi: u32, on: bool) -> io::Result<()>;
    /// KVM_GET_CLOCK: nanoseconds of the paravirtual clock.
    fn clock(&self) -> io::Result<u64>;
    /// KVM_SET_CLOCK.
    fn set_clock(&self, ns: u64) -> io::Result<()>;
    /// KVM_GET_DIRTY_LOG: a bit for each page of the slot.
    fn dirty_log(&self, slot: u32, size: u64) -> io::Result<Vec<u64>>;
    /// KVM_CREATE_VCPU.
    fn create_vcpu(&self, id: u32) -> io::Result<Box<dyn Cpu>>;
}

/// What a doorbell answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bell {
    pub(crate) port: bool,
    pub(crate) at: u64,
    pub(crate) len: u32,
    /// Only writes of this value.
    pub(crate) value: Option<u64>,
}

/// A virtual processor. Used by one thread at a time, but for [`Kick`].
pub(crate) trait Cpu: Send {
    /// KVM_RUN.
    fn run(&mut self) -> io::Result<()>;
    /// The page that KVM_RUN speaks through.
    fn page(&mut self) -> &mut RunPage;
    /// KVM_SET_CPUID2.
    fn set_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> io::Result<()>;
    /// KVM_GET_REGS.
    fn regs(&mut self) -> io::Result<kvm_regs>;
    /// KVM_SET_REGS.
    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()>;
    /// KVM_GET_SREGS.
    fn sregs(&mut self) -> io::Result<kvm_sregs>;
    /// KVM_SET_SREGS.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()>;
    /// KVM_GET_MSRS: the values of those registers that exist, in order, until the first that does not.
    fn msrs(&mut self, wanted: &[u32]) -> io::Result<Vec<u64>>;
    /// KVM_SET_MSRS: how many were taken, in order.
    fn set_msrs(&mut self, msrs: &[(u32, u64)]) -> io::Result<usize>;
    /// KVM_GET_XSAVE: 4096 bytes in standard format.
    fn xsave(&mut self) -> io::Result<Box<[u8; 4096]>>;
    /// KVM_SET_XSAVE.
    fn set_xsave(&mut self, area: &[u8; 4096]) -> io::Result<()>;
    /// KVM_GET_XCRS: XCR0.
    fn xcr0(&mut self) -> io::Result<u64>;
    /// KVM_SET_XCRS.
    fn set_xcr0(&mut self, value: u64) -> io::Result<()>;
    /// KVM_GET_DEBUGREGS: DR0 to DR3, DR6, DR7.
    fn debug_registers(&mut self) -> io::Result<[u64; 6]>;
    /// KVM_SET_DEBUGREGS.
    fn set_debug_registers(&mut self, dr: &[u64; 6]) -> io::Result<()>;
    /// KVM_GET_VCPU_EVENTS.
    fn events(&mut self) -> io::Result<kvm_vcpu_events>;
    /// KVM_SET_VCPU_EVENTS.
    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()>;
    /// KVM_SET_GUEST_DEBUG.
    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> io::Result<()>;
    /// KVM_INTERRUPT.
    fn interrupt(&mut self, vector: u8) -> io::Result<()>;
    /// KVM_NMI.
    fn nmi(&mut self) -> io::Result<()>;
    /// KVM_TRANSLATE.
    fn translate(&mut self, linear: u64) -> io::Result<Option<u64>>;
    /// KVM_GET_TSC_KHZ.
    fn tsc_khz(&mut self) -> io::Result<u32>;
    /// KVM_SET_TSC_KHZ.
    fn set_tsc_khz(&mut self, khz: u32) -> io::Result<()>;
    /// KVM_GET_LAPIC.
    fn lapic(&mut self) -> io::Result<kvm_lapic_state>;
    /// KVM_SET_LAPIC.
    fn set_lapic(&mut self, page: &kvm_lapic_state) -> io::Result<()>;
    /// KVM_GET_MP_STATE.
    fn mp_state(&mut self) -> io::Result<u32>;
    /// KVM_SET_MP_STATE.
    fn set_mp_state(&mut self, state: u32) -> io::Result<()>;
    /// KVM_KVMCLOCK_CTRL: the guest's watchdogs are told that it stood.
    fn clock_stood(&mut self) -> io::Result<()>;
}

/// The shared page of a virtual processor.
pub(crate) struct RunPage {
    base: NonNull<kvm_run>,
    /// Owned by a script; the real page belongs to its `VcpuFd`.
    _own: Option<Box<OwnPage>>,
}

/// A page without a kernel, for scripts.
#[repr(C, align(4096))]
struct OwnPage([u8; RUN_BYTES]);

// SAFETY: the page is memory that lives as long as its owner, which is moved along with this handle.
unsafe impl Send for RunPage {}

impl RunPage {
    /// A page that no kernel writes.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn scripted() -> Self {
        let mut own = Box::new(OwnPage([0; RUN_BYTES]));
        let base = NonNull::from(&mut own.0).cast();
        Self { base, _own: Some(own) }
    }

    /// The structure. Other threads write `immediate_exit` only, and by [`Kick`].
    pub(crate) fn get(&mut self) -> &mut kvm_run {
        // SAFETY: the page is mapped and as long as the structure; no second reference is handed out while `self` is
        // borrowed.
        unsafe { self.base.as_mut() }
    }

    /// The bytes that string I/O transfers, of a length that the kernel gave.
    pub(crate) fn data(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let offset = (offset as usize).min(RUN_BYTES);
        let len = len.min(RUN_BYTES - offset);
        // SAFETY: inside the mapping, which has at least `RUN_BYTES` (checked when it was made).
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().cast::<u8>().add(offset), len) }
    }

    /// What makes a KVM_RUN in progress, or the next one, return.
    pub(crate) fn kick(&self) -> Kick {
        // SAFETY: the field is inside of the page.
        let flag = unsafe { &raw mut (*self.base.as_ptr()).immediate_exit };
        Kick { flag: NonNull::new(flag).unwrap_or(NonNull::dangling()) }
    }
}

/// `immediate_exit` of one virtual processor. Its page must outlive it.
#[derive(Clone, Copy)]
pub(crate) struct Kick {
    flag: NonNull<u8>,
}

// SAFETY: the flag is only ever accessed as an atomic here, and the kernel reads it as one.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// Sets or clears the flag.
    ///
    /// # Safety
    /// The page that it came from must still be there.
    pub(crate) unsafe fn set(self, value: u8) {
        // SAFETY: the caller keeps the page.
        unsafe { AtomicU8::from_ptr(self.flag.as_ptr()) }.store(value, Ordering::SeqCst);
    }
}

/// The kernel.
pub(crate) struct RealSystem(Kvm);

impl RealSystem {
    /// Opens `/dev/kvm`.
    pub(crate) fn open() -> io::Result<Self> {
        Kvm::new().map(Self).map_err(os)
    }
}

fn os(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

/// An error that names its ioctl.
fn of(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> io::Error {
    move |e| io::Error::other(format!("{name}: {}", os(e)))
}

impl System for RealSystem {
    fn api_version(&self) -> i32 {
        self.0.get_api_version()
    }

    fn capability(&self, cap: u32) -> i32 {
        self.0.check_extension_raw(cap.into())
    }

    fn supported_cpuid(&self) -> io::Result<Vec<kvm_cpuid_entry2>> {
        Ok(self.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(os)?.as_slice().to_vec())
    }

    fn msr_list(&self) -> io::Result<Vec<u32>> {
        Ok(self.0.get_msr_index_list().map_err(os)?.as_slice().to_vec())
    }

    fn create_vm(&self) -> io::Result<Box<dyn Vm>> {
        // A signal during creation makes it fail; it is then simply tried again.
        loop {
            match self.0.create_vm() {
                Ok(vm) => return Ok(Box::new(RealVm(vm))),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(os(e)),
            }
        }
    }
}

struct RealVm(VmFd);

impl Vm for RealVm {
    fn set_memory(&self, slot: u32, flags: u32, gpa: u64, size: u64, host: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: `host` is a RAM block's mapping (or 0 with size 0), which `Slots` keeps until the slot is gone.
        unsafe { self.0.set_user_memory_region(region) }.map_err(os)
    }

    fn set_real_mode_pages(&self, tss: u64, identity: u64) -> io::Result<()> {
        self.0.set_identity_map_address(identity).map_err(os)?;
        self.0.set_tss_address(tss as usize).map_err(os)
    }

    fn enable(&self, cap: u32, arg: u64) -> io::Result<()> {
        let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
        self.0.enable_cap(&cap).map_err(os)
    }

    fn dirty_log(&self, slot: u32, size: u64) -> io::Result<Vec<u64>> {
        self.0.get_dirty_log(slot, size as usize).map_err(os)
    }

    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()> {
        let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        // 0 means that nobody took it, as on a bus.
        self.0.signal_msi(msi).map(drop).map_err(os)
    }

    fn set_routes(&self, routes: &[(u32, u64, u32)]) -> io::Result<()> {
        let entry = |&(gsi, address, data): &(u32, u64, u32)| {
            let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi = kvm_irq_routing_msi { address_lo, address_hi, data, ..Default::default() };
            entry
        };
        let entries: Vec<_> = routes.iter().map(entry).collect();
        let list = KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::other("too many routes"))?;
        self.0.set_gsi_routing(&list).map_err(os)
    }

    fn ioeventfd(&self, fd: BorrowedFd<'_>, bell: Bell, on: bool) -> io::Result<()> {
        let flag = |on: bool, number: u32| if on { 1 << number } else { 0 };
        let flags = flag(bell.value.is_some(), kvm_ioeventfd_flag_nr_datamatch)
            | flag(bell.port, kvm_ioeventfd_flag_nr_pio)
            | flag(!on, kvm_ioeventfd_flag_nr_deassign);
        let (datamatch, addr, len) = (bell.value.unwrap_or(0), bell.at, bell.len);
        let arg = kvm_ioeventfd { datamatch, addr, len, fd: fd.as_raw_fd(), flags, ..Default::default() };
        ioctl(&self.0, KVM_IOEVENTFD, &arg)
    }

    fn irqfd(&self, fd: BorrowedFd<'_>, gsi: u32, on: bool) -> io::Result<()> {
        let flags = if on { 0 } else { KVM_IRQFD_FLAG_DEASSIGN };
        ioctl(&self.0, KVM_IRQFD, &kvm_irqfd { fd: fd.as_raw_fd() as u32, gsi, flags, ..Default::default() })
    }

    fn clock(&self) -> io::Result<u64> {
        self.0.get_clock().map(|c| c.clock).map_err(os)
    }

    fn set_clock(&self, ns: u64) -> io::Result<()> {
        self.0.set_clock(&kvm_clock_data { clock: ns, ..Default::default() }).map_err(os)
    }

    fn create_vcpu(&self, id: u32) -> io::Result<Box<dyn Cpu>> {
        if self.0.run_size() < RUN_BYTES {
            return Err(io::Error::other("the run page is shorter than three pages"));
        }
        let mut fd = self.0.create_vcpu(id.into()).map_err(os)?;
        let page = RunPage { base: NonNull::from(fd.get_kvm_run()), _own: None };
        Ok(Box::new(RealCpu { fd, page }))
    }
}

struct RealCpu {
    fd: VcpuFd,
    page: RunPage,
}

/// An ioctl that kvm-ioctls does not have, or only for a type of descriptor that is not ours.
fn ioctl<T>(fd: &impl AsRawFd, number: libc::c_ulong, arg: &T) -> io::Result<()> {
    // SAFETY: the number fits the argument's type, which the kernel only reads.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_ref(arg)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: libc::c_ulong = 0x4020_ae76;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;
/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
/// Most registers in one KVM_GET_MSRS.
const MSRS_AT_ONCE: usize = 128;

impl Cpu for RealCpu {
    fn run(&mut self) -> io::Result<()> {
        // What the exit is, the page says: the enumeration drops the count of string I/O.
        self.fd.run().map(drop).map_err(os)
    }

    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    fn set_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> io::Result<()> {
        let list = CpuId::from_entries(entries).map_err(|_| io::Error::other("too many CPUID leaves"))?;
        self.fd.set_cpuid2(&list).map_err(os)
    }

    fn regs(&mut self) -> io::Result<kvm_regs> {
        self.fd.get_regs().map_err(of("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        self.fd.set_regs(regs).map_err(of("KVM_SET_REGS"))
    }

    fn sregs(&mut self) -> io::Result<kvm_sregs> {
        self.fd.get_sregs().map_err(of("KVM_GET_SREGS"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        self.fd.set_sregs(sregs).map_err(of("KVM_SET_SREGS"))
    }

    fn msrs(&mut self, wanted: &[u32]) -> io::Result<Vec<u64>> {
        let mut values = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(MSRS_AT_ONCE) {
            let entries: Vec<_> =
                some.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut list = Msrs::from_entries(&entries).map_err(|_| io::Error::other("too many MSRs"))?;
            let n = self.fd.get_msrs(&mut list).map_err(of("KVM_GET_MSRS"))?;
            values.extend(list.as_slice().iter().take(n).map(|e| e.data));
            if n < some.len() {
                break;
            }
        }
        Ok(values)
    }

    fn set_msrs(&mut self, msrs: &[(u32, u64)]) -> io::Result<usize> {
        let mut done = 0;
        for some in msrs.chunks(MSRS_AT_ONCE) {
            let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, ..Default::default() };
            let entries: Vec<_> = some.iter().map(entry).collect();
            let list = Msrs::from_entries(&entries).map_err(|_| io::Error::other("too many MSRs"))?;
            let n = self.fd.set_msrs(&list).map_err(of("KVM_SET_MSRS"))?;
            done += n;
            if n < some.len() {
                break;
            }
        }
        Ok(done)
    }

    fn xsave(&mut self) -> io::Result<Box<[u8; 4096]>> {
        let area = self.fd.get_xsave().map_err(of("KVM_GET_XSAVE"))?;
        let mut bytes = Box::new([0; 4096]);
        for (to, word) in bytes.chunks_exact_mut(4).zip(area.region) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(bytes)
    }

    fn set_xsave(&mut self, area: &[u8; 4096]) -> io::Result<()> {
        let mut xsave = kvm_xsave::default();
        for (word, from) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
            *word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        // SAFETY: no component beyond the first 4096 bytes is switched on for guests here (AMX wants a prctl first).
        unsafe { self.fd.set_xsave(&xsave) }.map_err(of("KVM_SET_XSAVE"))
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        let xcrs = self.fd.get_xcrs().map_err(of("KVM_GET_XCRS"))?;
        let found = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0);
        Ok(found.map_or(1, |x| x.value))
    }

    fn set_xcr0(&mut self, value: u64) -> io::Result<()> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = value;
        self.fd.set_xcrs(&xcrs).map_err(of("KVM_SET_XCRS"))
    }

    fn debug_registers(&mut self) -> io::Result<[u64; 6]> {
        let d = self.fd.get_debug_regs().map_err(of("KVM_GET_DEBUGREGS"))?;
        Ok([d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7])
    }

    fn set_debug_registers(&mut self, dr: &[u64; 6]) -> io::Result<()> {
        let db = [dr[0], dr[1], dr[2], dr[3]];
        let regs = kvm_debugregs { db, dr6: dr[4], dr7: dr[5], ..Default::default() };
        self.fd.set_debug_regs(&regs).map_err(of("KVM_SET_DEBUGREGS"))
    }

    fn events(&mut self) -> io::Result<kvm_vcpu_events> {
        self.fd.get_vcpu_events().map_err(of("KVM_GET_VCPU_EVENTS"))
    }

    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        self.fd.set_vcpu_events(events).map_err(of("KVM_SET_VCPU_EVENTS"))
    }

    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> io::Result<()> {
        self.fd.set_guest_debug(debug).map_err(of("KVM_SET_GUEST_DEBUG"))
    }

    fn interrupt(&mut self, vector: u8) -> io::Result<()> {
        ioctl(&self.fd, KVM_INTERRUPT, &kvm_interrupt { irq: vector.into() })
    }

    fn nmi(&mut self) -> io::Result<()> {
        self.fd.nmi().map_err(of("KVM_NMI"))
    }

    fn translate(&mut self, linear: u64) -> io::Result<Option<u64>> {
        let t = self.fd.translate_gva(linear).map_err(of("KVM_TRANSLATE"))?;
        Ok((t.valid != 0).then_some(t.physical_address))
    }

    fn tsc_khz(&mut self) -> io::Result<u32> {
        self.fd.get_tsc_khz().map_err(os)
    }

    fn set_tsc_khz(&mut self, khz: u32) -> io::Result<()> {
        self.fd.set_tsc_khz(khz).map_err(os)
    }

    fn lapic(&mut self) -> io::Result<kvm_lapic_state> {
        self.fd.get_lapic().map_err(of("KVM_GET_LAPIC"))
    }

    fn set_lapic(&mut self, page: &kvm_lapic_state) -> io::Result<()> {
        self.fd.set_lapic(page).map_err(of("KVM_SET_LAPIC"))
    }

    fn mp_state(&mut self) -> io::Result<u32> {
        self.fd.get_mp_state().map(|s| s.mp_state).map_err(of("KVM_GET_MP_STATE"))
    }

    fn set_mp_state(&mut self, state: u32) -> io::Result<()> {
        self.fd.set_mp_state(kvm_mp_state { mp_state: state }).map_err(of("KVM_SET_MP_STATE"))
    }

    fn clock_stood(&mut self) -> io::Result<()> {
        self.fd.kvmclock_ctrl().map_err(os)
    }
}

/// Whether a capability that kvm-ioctls names is there.
pub(crate) fn has(system: &dyn System, cap: Cap) -> bool {
    system.capability(cap as u32) > 0
}
