//! Exits and failures, played by a script that stands where the kernel is.

mod dirty;
mod failures;
mod split;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use anura_accel::{
    AccelVm, Accelerator, Budget, CpuPlatform, LocalApic, Pending, Vcpu, VcpuExit, VmConfig, VmSpaces,
};
use anura_memory::{Access, AccessRules, IoHandler, MemoryMap, RamBlock, Region};
use anura_vmcore::{Clock, CpuSignal};
use anura_x86::apic::ApicImage;
use anura_x86::{CpuModel, FeatureSet, Topology};
use kvm_bindings::*;
use parking_lot::Mutex;

use crate::host::RunPage;
use crate::scripted::{Play, Scripted};
use crate::{Choice, Irqchip, Stepping, probe, vm::KvmVm};

/// An APIC with one vector that waits, at most.
#[derive(Default)]
struct OneVector {
    waits: Mutex<Option<u8>>,
    nmi: Mutex<bool>,
    tpr: AtomicU8,
    eoi: AtomicU64,
    /// The PIC's INTR, with its vector.
    intr: Mutex<Option<u8>>,
    /// What was told of ends of level interrupts.
    ended: Mutex<Vec<u8>>,
    image: Mutex<ApicImage>,
}

impl LocalApic for OneVector {
    fn sync(&self) -> Pending {
        Pending { interrupt: self.waits.lock().is_some(), nmi: *self.nmi.lock(), ..Pending::default() }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.waits.lock().take()
    }
    fn take_nmi(&self) -> bool {
        std::mem::take(&mut *self.nmi.lock())
    }
    fn take_init(&self) -> bool {
        false
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tpr(&self) -> u8 {
        self.tpr.load(Ordering::SeqCst)
    }
    fn set_tpr(&self, cr8: u8) {
        self.tpr.store(cr8, Ordering::SeqCst);
    }
    fn base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_base(&self, _: u64) -> bool {
        false
    }
    fn mmio_read(&self, offset: u32) -> u32 {
        0x1000 + offset
    }
    fn mmio_write(&self, offset: u32, value: u32) {
        if offset == 0xb0 {
            self.eoi.store(u64::from(value) + 1, Ordering::SeqCst);
        }
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }
    fn image(&self) -> ApicImage {
        self.image.lock().clone()
    }
    fn set_image(&self, image: &ApicImage) {
        *self.image.lock() = image.clone();
    }
    fn wires(&self) -> Pending {
        Pending { interrupt: self.intr.lock().is_some(), nmi: *self.nmi.lock(), ..Pending::default() }
    }
    fn pic_acknowledge(&self) -> Option<u8> {
        self.intr.lock().take()
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().push(vector);
    }
}

#[derive(Default)]
struct Board(OneVector, Mutex<Vec<(u32, u64)>>);

impl CpuPlatform for Board {
    fn apic(&self, _: u32) -> &dyn LocalApic {
        &self.0
    }
    fn rdmsr(&self, _: u32, msr: u32) -> Option<u64> {
        (msr == 0x1234).then_some(77)
    }
    fn wrmsr(&self, _: u32, _: u32, _: u64) -> bool {
        false
    }
    fn ferr(&self, _: bool) -> bool {
        false
    }
    fn kept_msrs(&self, _: u32) -> Vec<(u32, u64)> {
        self.1.lock().clone()
    }
    fn keep_msrs(&self, _: u32, list: Vec<(u32, u64)>) {
        *self.1.lock() = list;
    }
}

/// A port that counts up and keeps what is written.
#[derive(Default)]
struct Port {
    next: AtomicU64,
    written: Mutex<Vec<u64>>,
}

impl IoHandler for Port {
    fn read(&self, _: Access) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }
    fn write(&self, _: Access, value: u64) {
        self.written.lock().push(value);
    }
}

struct Bench {
    script: Scripted,
    board: Arc<Board>,
    port: Arc<Port>,
    map: MemoryMap,
    root: Region,
    ram: Arc<RamBlock>,
    vcpu: Box<dyn Vcpu>,
    signal: Arc<CpuSignal>,
    vm: Arc<dyn AccelVm>,
}

fn bench_with(script: Scripted) -> Result<Bench, String> {
    bench_on(script, Irqchip::Off)
}

fn bench_on(script: Scripted, irqchip: Irqchip) -> Result<Bench, String> {
    let map = MemoryMap::new();
    let (root, ports) = (Region::container("memory", 1 << 40), Region::container("io", 1 << 16));
    let port = Arc::new(Port::default());
    let mut t = map.transaction();
    let ram = RamBlock::new("ram", 0x10000).unwrap();
    t.add(&root, 0, &Region::ram("ram", ram.clone()), 0);
    t.add(&root, 0x20000, &Region::io("mmio", 0x1000, port.clone(), AccessRules::any(8)), 0);
    t.add(&ports, 0x60, &Region::io("port", 4, port.clone(), AccessRules::any(4)), 0);
    t.commit();
    let spaces = VmSpaces {
        memory: map.create_space("memory", &root),
        ports: map.create_space("io", &ports),
        clock: Clock::stepped(),
        ram: vec![],
    };
    let board = Arc::new(Board::default());
    let config = VmConfig {
        platform: board.clone(),
        model: CpuModel::named("qemu64", &FeatureSet::available()).unwrap(),
        topology: Topology::default(),
        tsc_khz: 1_000_000,
        counted: false,
    };
    let vm = KvmVm::new(&script, &spaces, &config, None, Choice { stepping: Stepping::Off, irqchip }, false)
        .map_err(|e| e.to_string())?;
    let vm: Arc<dyn AccelVm> = Arc::new(vm);
    let signal = CpuSignal::new();
    let vcpu = vm.create_vcpu(0, signal.clone()).map_err(|e| e.to_string())?;
    let mut vcpu = vcpu;
    vm.go(&mut [&mut *vcpu as &mut dyn Vcpu]);
    script.0.lock().asked.clear();
    Ok(Bench { script, board, port, map, root, ram, vcpu, signal, vm })
}

fn bench(plays: Vec<Play>) -> Bench {
    bench_with(Scripted::new(plays)).unwrap()
}

impl Bench {
    fn run(&mut self) -> VcpuExit {
        self.vcpu.run(Budget::Unlimited)
    }

    fn asked(&self) -> Vec<String> {
        self.script.0.lock().asked.clone()
    }
}

fn io(direction: u32, size: u8, count: u32, data: &'static [u8]) -> Play {
    Box::new(move |page: &mut RunPage| {
        page.get().exit_reason = KVM_EXIT_IO;
        page.get().__bindgen_anon_1.io = kvm_run__bindgen_ty_1__bindgen_ty_4 {
            direction: direction as u8,
            size,
            port: 0x60,
            count,
            data_offset: 4096,
        };
        page.data(4096, data.len()).copy_from_slice(data);
        Ok(())
    })
}

fn reason(number: u32) -> Play {
    Box::new(move |page: &mut RunPage| {
        page.get().exit_reason = number;
        Ok(())
    })
}

/// Looks at the data that the device gave.
fn sees(expected: &'static [u8]) -> Play {
    Box::new(move |page: &mut RunPage| {
        assert_eq!(page.data(4096, expected.len()), expected);
        page.get().exit_reason = KVM_EXIT_HLT;
        Ok(())
    })
}

#[test]
fn a_guest_that_does_port_io_makes_no_ioctl_but_kvm_run() {
    let out = || io(KVM_EXIT_IO_OUT, 2, 1, &[0x34, 0x12]);
    let mut b = bench(vec![out(), out(), out(), io(KVM_EXIT_IO_IN, 1, 1, &[0])]);
    assert_eq!(b.run(), VcpuExit::Halted);
    assert_eq!(*b.port.written.lock(), [0x1234; 3]);
    // The last is the settling of HLT's state, which nobody asked for.
    assert!(b.asked().iter().all(|name| name == "KVM_RUN" || name == "KVM_GET_REGS"), "{:?}", b.asked());
}

#[test]
fn string_io_is_one_bulk_access_with_every_item() {
    let mut b = bench(vec![io(KVM_EXIT_IO_IN, 2, 5, &[0; 10]), sees(&[0, 0, 1, 0, 2, 0, 3, 0, 4, 0])]);
    assert_eq!(b.run(), VcpuExit::Halted);
    let mut b = bench(vec![io(KVM_EXIT_IO_OUT, 1, 4, b"anur")]);
    assert_eq!(b.run(), VcpuExit::Halted);
    assert_eq!(*b.port.written.lock(), b"anur".map(u64::from));
}

fn mmio(at: u64, len: u32, write: bool, data: [u8; 8]) -> Play {
    Box::new(move |page: &mut RunPage| {
        page.get().exit_reason = KVM_EXIT_MMIO;
        page.get().__bindgen_anon_1.mmio =
            kvm_run__bindgen_ty_1__bindgen_ty_6 { phys_addr: at, data, len, is_write: write.into() };
        Ok(())
    })
}

#[test]
fn mmio_reaches_devices_the_apic_page_and_odd_lengths() {
    let apic_word = |page: &mut RunPage| {
        // SAFETY: the play before was an MMIO read.
        let data = unsafe { page.get().__bindgen_anon_1.mmio.data };
        assert_eq!(data[..4], 0x1080u32.to_le_bytes());
        page.get().exit_reason = KVM_EXIT_HLT;
        Ok(())
    };
    let mut b = bench(vec![
        mmio(0x20000, 4, true, [1, 2, 3, 4, 0, 0, 0, 0]),
        mmio(0x20010, 3, true, [9; 8]),
        mmio(0xfee0_00b0, 4, true, [6, 0, 0, 0, 0, 0, 0, 0]),
        mmio(0xfee0_0080, 4, false, [0; 8]),
        Box::new(apic_word),
    ]);
    assert_eq!(b.run(), VcpuExit::Halted);
    assert_eq!(b.port.written.lock()[0], 0x0403_0201);
    assert_eq!(b.board.0.eoi.load(Ordering::SeqCst), 7);
}

#[test]
fn an_interrupt_waits_for_the_window_and_is_one_ioctl() {
    let window = |page: &mut RunPage| {
        assert_eq!(page.get().request_interrupt_window, 1, "the window was asked for");
        page.get().exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
        (page.get().ready_for_interrupt_injection, page.get().if_flag) = (1, 1);
        Ok(())
    };
    let after = |page: &mut RunPage| {
        assert_eq!(page.get().request_interrupt_window, 0);
        page.get().exit_reason = KVM_EXIT_SHUTDOWN;
        Ok(())
    };
    let mut b = bench(vec![Box::new(window), Box::new(after)]);
    *b.board.0.waits.lock() = Some(0x41);
    assert_eq!(b.run(), VcpuExit::TripleFault);
    assert_eq!(b.script.0.lock().interrupts, [0x41]);
}

#[test]
fn a_halted_processor_wakes_for_an_interrupt_that_its_flag_allows() {
    let mut b = bench(vec![reason(KVM_EXIT_HLT)]);
    assert_eq!(b.run(), VcpuExit::Halted);
    *b.board.0.waits.lock() = Some(0x30);
    assert_eq!(b.run(), VcpuExit::Halted, "with IF clear it sleeps on");
    assert!(b.script.0.lock().interrupts.is_empty());
    b.script.0.lock().regs.rflags = 1 << 9;
    b.script.0.lock().plays.push_back(reason(KVM_EXIT_SHUTDOWN));
    assert_eq!(b.run(), VcpuExit::TripleFault);
    assert_eq!(b.script.0.lock().interrupts, [0x30]);
}

#[test]
fn an_nmi_is_handed_to_the_kernel_which_masks_it() {
    let mut b = bench(vec![]);
    *b.board.0.nmi.lock() = true;
    b.run();
    assert!(b.asked().contains(&"KVM_NMI".to_owned()));
}

#[test]
fn a_kick_ends_the_run_and_interrupted_calls_are_quiet() {
    let interrupted = || -> Play { Box::new(|_: &mut RunPage| Err(libc::EINTR)) };
    let again = || -> Play { Box::new(|_: &mut RunPage| Err(libc::EAGAIN)) };
    let mut b = bench(vec![interrupted(), again(), interrupted(), reason(KVM_EXIT_HLT)]);
    assert_eq!(b.run(), VcpuExit::Halted);
    b.vcpu.kicker().kick();
    assert_eq!(b.run(), VcpuExit::Interrupted);
    assert_eq!(b.signal.take(), 0);
}

#[test]
fn an_unfinished_access_is_finished_once_before_the_state_is_read() {
    let out = io(KVM_EXIT_IO_OUT, 1, 1, &[5]);
    let mut b = bench(vec![
        Box::new(move |page: &mut RunPage| out(page)),
        Box::new(|_: &mut RunPage| Err(libc::EFAULT)),
    ]);
    let signal = b.signal.clone();
    // The device's write makes somebody want us.
    b.script.0.lock().plays.push_front(Box::new(move |page: &mut RunPage| {
        signal.raise(CpuSignal::KICK);
        // The kick itself would be seen by this very call.
        page.get().immediate_exit = 0;
        io(KVM_EXIT_IO_OUT, 1, 1, &[4])(page)
    }));
    assert_eq!(b.run(), VcpuExit::Interrupted);
    let before = b.asked().len();
    b.vcpu.state();
    let asked = b.asked();
    assert_eq!(asked[before], "KVM_RUN", "with immediate_exit: nothing new was executed");
    assert_eq!(*b.port.written.lock(), [4]);
    b.vcpu.state();
    assert_eq!(b.asked().iter().filter(|n| *n == "KVM_RUN").count(), 2, "once is enough");
}

fn failure(mut b: Bench) -> String {
    match b.run() {
        VcpuExit::Failed(e) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_go_on_says_why() {
    assert!(failure(bench(vec![Box::new(|_: &mut RunPage| Err(libc::EFAULT))])).contains("KVM_RUN"));
    assert!(failure(bench(vec![reason(KVM_EXIT_UNKNOWN)])).contains("unknown hardware exit"));
    assert!(failure(bench(vec![reason(KVM_EXIT_FAIL_ENTRY)])).contains("refuses the guest's state"));
    assert!(failure(bench(vec![reason(KVM_EXIT_MEMORY_FAULT)])).contains("no memory behind"));
    assert!(failure(bench(vec![reason(999)])).contains("exit reason 999"));
    for (suberror, text) in [(1, "no stepper"), (2, "simultaneous"), (3, "event delivery"), (9, "suberror 9")]
    {
        let play = move |page: &mut RunPage| {
            page.get().exit_reason = KVM_EXIT_INTERNAL_ERROR;
            page.get().__bindgen_anon_1.internal.suberror = suberror;
            Ok(())
        };
        let said = failure(bench(vec![Box::new(play)]));
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn unknown_msrs_come_to_the_board_and_the_rest_fault() {
    let rdmsr = |index: u32| -> Play {
        Box::new(move |page: &mut RunPage| {
            page.get().exit_reason = KVM_EXIT_X86_RDMSR;
            page.get().__bindgen_anon_1.msr.index = index;
            Ok(())
        })
    };
    let check = |error: u8, data: Option<u64>| -> Play {
        Box::new(move |page: &mut RunPage| {
            // SAFETY: the play before was an MSR access.
            let msr = unsafe { page.get().__bindgen_anon_1.msr };
            assert_eq!(msr.error, error);
            assert!(data.is_none_or(|d| d == msr.data));
            page.get().exit_reason = KVM_EXIT_INTR;
            Ok(())
        })
    };
    let mut b = bench(vec![rdmsr(0x1234), check(0, Some(77)), rdmsr(0x5555), check(1, None)]);
    assert_eq!(b.run(), VcpuExit::Halted);
}

#[test]
fn slots_follow_the_view_and_read_only_memory_is_marked() {
    let b = bench(vec![]);
    assert_eq!(b.script.0.lock().slots, [(0, 0, 0, 0x10000)]);
    let rom = Region::rom("rom", RamBlock::new("rom", 0x1000).unwrap());
    let mut t = b.map.transaction();
    t.add(&b.root, 0x4000, &rom, 1);
    t.commit();
    let mut slots: Vec<_> = b.script.0.lock().slots.iter().map(|s| (s.2, s.3, s.1)).collect();
    slots.sort_unstable();
    assert_eq!(slots, [(0, 0x4000, 0), (0x4000, 0x1000, KVM_MEM_READONLY), (0x5000, 0xb000, 0)]);
    let mut t = b.map.transaction();
    t.remove(&b.root, &rom);
    t.commit();
    let slots: Vec<_> = b.script.0.lock().slots.iter().map(|s| (s.2, s.3)).collect();
    assert_eq!(slots, [(0, 0x10000)]);
}

#[test]
fn who_asks_for_written_pages_again_gets_them_exactly() {
    use anura_memory::DirtyClient;
    let b = bench(vec![]);
    let block = b.ram.clone();
    let taken = || {
        let mut pages = Vec::new();
        block.tracker().take_dirty(DirtyClient::Migration, 0, 0x10000, |at| pages.push(at / 0x1000));
        pages
    };
    let flags = || b.script.0.lock().slots.iter().map(|s| s.1).collect::<Vec<_>>();
    let all: Vec<u64> = (0..16).collect();
    taken();
    for (round, log) in [0, KVM_MEM_LOG_DIRTY_PAGES].into_iter().enumerate() {
        b.vm.sync_dirty();
        assert_eq!(taken(), all, "{round}");
        assert_eq!(flags(), [log], "{round}");
    }
    b.script.0.lock().dirty = vec![2, 7];
    b.vm.sync_dirty();
    assert_eq!(taken(), [2, 7]);
    b.vm.sync_dirty();
    assert_eq!(taken(), [0u64; 0]);
    // A slot that goes takes its log along, its successors have logs.
    b.script.0.lock().dirty = vec![9];
    let rom = Region::rom("rom", RamBlock::new("rom", 0x1000).unwrap());
    let mut t = b.map.transaction();
    t.add(&b.root, 0x4000, &rom, 1);
    t.commit();
    assert_eq!(taken(), [9]);
    let logged = flags().iter().filter(|f| **f == KVM_MEM_LOG_DIRTY_PAGES).count();
    assert_eq!((logged, flags().len()), (2, 3));
}

#[test]
fn without_a_dirty_log_all_memory_counts_as_written() {
    use anura_memory::DirtyClient;
    let b = bench(vec![]);
    b.script.0.lock().failing.push(("KVM_SET_USER_MEMORY_REGION", libc::EINVAL));
    for _ in 0..4 {
        let mut pages = 0;
        b.vm.sync_dirty();
        b.ram.tracker().take_dirty(DirtyClient::Migration, 0, 0x10000, |_| pages += 1);
        assert_eq!(pages, 16);
    }
    assert!(!b.asked().contains(&"KVM_GET_DIRTY_LOG".to_owned()));
    assert_eq!(b.asked().iter().filter(|n| *n == "KVM_SET_USER_MEMORY_REGION").count(), 1, "tried once");
}

#[test]
fn a_refused_memory_map_stops_the_guest_with_a_reason() {
    let mut b = bench(vec![]);
    b.script.0.lock().failing.push(("KVM_SET_USER_MEMORY_REGION", libc::ENOSPC));
    let mut t = b.map.transaction();
    t.add(&b.root, 0x40000, &Region::ram("more", RamBlock::new("more", 0x1000).unwrap()), 0);
    t.commit();
    match b.run() {
        VcpuExit::Failed(e) => assert!(e.to_string().contains("no memory slot is left for 0x40000"), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_ioctl_that_fails_at_the_start_is_named() {
    for name in
        ["KVM_CREATE_VM", "KVM_SET_TSS_ADDR", "KVM_GET_SUPPORTED_CPUID", "KVM_CREATE_VCPU", "KVM_SET_CPUID2"]
    {
        let script = Scripted::new(vec![]);
        script.0.lock().failing.push((name, libc::ENOMEM));
        let said = bench_with(script).err().unwrap_or_default();
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn an_old_or_poor_kernel_is_told_in_one_line() {
    let script = Scripted::new(vec![]);
    script.0.lock().version = 11;
    assert!(probe::check(&script).unwrap_err().to_string().contains("version 11"));
    let script = Scripted::new(vec![]);
    script.0.lock().missing_capability = Some(KVM_CAP_READONLY_MEM);
    assert!(probe::check(&script).unwrap_err().to_string().contains("read-only memory"));
    for (errno, text) in
        [(libc::ENOENT, "does not exist"), (libc::EACCES, "kvm group"), (libc::EBUSY, "another hypervisor")]
    {
        assert!(probe::reason(&std::io::Error::from_raw_os_error(errno)).contains(text));
    }
}

#[test]
fn every_register_survives_a_round_through_the_real_kernel() {
    let kvm = crate::Kvm::default();
    if let Err(why) = kvm.probe() {
        println!("skipped: {why}");
        return;
    }
    let system = probe::open().unwrap();
    let script = Scripted::new(vec![]);
    let b = bench_with(script).unwrap();
    let mut fd = crate::host::System::create_vm(&system).unwrap().create_vcpu(0).unwrap();
    let cpuid = crate::host::System::supported_cpuid(&system).unwrap();
    fd.set_cpuid(&cpuid).unwrap();
    let usable = crate::state::usable_msrs(&mut *fd);
    let mut s = anura_x86::CpuState::reset(0x60fb1);
    for (i, r) in s.gpr.iter_mut().enumerate() {
        *r = 0x1111_2222_0000_0000 + i as u64;
    }
    (s.rip, s.rflags, s.cr2) = (0x1234, 0x246, 0xdead_b000);
    s.seg[3].base = 0x7_0000;
    s.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    s.msrs.lstar = 0xffff_8000_0000_1000;
    s.msrs.pat = 0x0007_0406_0007_0401;
    s.xsave.bytes[160..176].copy_from_slice(&[7; 16]);
    s.nmi_masked = true;
    s.xcr0 = 1;
    crate::state::set(&mut *fd, &usable, &s, crate::state::Held::default(), Some(0xfee0_0900), 0).unwrap();
    let mut back = crate::state::get(&mut *fd, &usable, crate::state::Held::default(), 0).unwrap();
    // Time went on.
    back.tsc_offset = s.tsc_offset;
    back.msrs.tsc_adjust = s.msrs.tsc_adjust;
    assert_eq!(back.gpr, s.gpr);
    assert_eq!((back.rip, back.rflags, back.cr2, back.dr), (s.rip, s.rflags, s.cr2, s.dr));
    assert_eq!(back.seg, s.seg);
    assert_eq!(back.xsave.bytes[..416], s.xsave.bytes[..416]);
    assert_eq!((back.msrs.lstar, back.msrs.pat, back.nmi_masked), (s.msrs.lstar, s.msrs.pat, true));
    drop(b);
}

#[test]
fn a_local_apic_survives_a_round_through_the_real_kernel() {
    use anura_x86::apic::{ApicImage, base, offset};
    let kvm = crate::Kvm::default();
    if let Err(why) = kvm.probe() {
        println!("skipped: {why}");
        return;
    }
    let system = probe::open().unwrap();
    if crate::host::System::capability(&system, KVM_CAP_SPLIT_IRQCHIP) <= 0 {
        println!("skipped: this kernel has no KVM_CAP_SPLIT_IRQCHIP");
        return;
    }
    let vm: Arc<dyn crate::host::Vm> = crate::host::System::create_vm(&system).unwrap().into();
    let apics = crate::irqchip::KernelApics::new(&system, &vm).unwrap();
    let mut fd = vm.create_vcpu(0).unwrap();
    let cpuid = crate::host::System::supported_cpuid(&system).unwrap();
    fd.set_cpuid(&cpuid).unwrap();
    let mut image = ApicImage { base: base::DEFAULT | base::ENABLE | base::BSP, ..ApicImage::default() };
    let registers = [
        (offset::TPR, 0x20),
        (offset::LDR, 0x0400_0000),
        (offset::DFR, 0xffff_ffff),
        (offset::SVR, 0x1ff),
        (offset::ISR + 0x30, 2),
        (offset::TMR + 0x30, 2),
        (offset::IRR + 0x20, 0x20),
        (offset::LVT_TIMER, 0x2_0033),
        (offset::LVT_LINT0, 0x700),
        (offset::LVT_LINT1, 0x400),
        (offset::LVT_ERROR, 0x1_0000),
        (offset::TIMER_INITIAL, 0x4000_0000),
        (offset::TIMER_CURRENT, 0x3000_0000),
        (offset::TIMER_DIVIDE, 0xb),
        (offset::ICR_HIGH, 0x0300_0000),
    ];
    registers.iter().for_each(|(at, value)| image.page.set(*at, *value));
    fd.set_lapic(&apics.page(&image)).unwrap();
    let back = apics.image(&fd.lapic().unwrap(), image.base, 0);
    for (at, value) in registers {
        let now = back.page.get(at);
        match at {
            // Time went on.
            offset::TIMER_CURRENT => assert!(now <= value && now > value / 2, "{now:#x}"),
            _ => assert_eq!(now, value, "register {at:#x}"),
        }
    }
}
