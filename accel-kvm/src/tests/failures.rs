//! Every ioctl fails in every way, and every exit there is.

use anura_accel::DebugControl;
use anura_x86::CpuState;

use super::*;
use crate::ioctls::{On, TABLE};

/// What an ioctl can answer besides success.
const ERRORS: [i32; 5] = [libc::EFAULT, libc::ENOMEM, libc::EINVAL, libc::ENOSPC, libc::EIO];

/// Ioctls that the start makes, whose failure is an error of one line (`None`), or goes on with a word in the log.
const AT_START: [&str; 7] = [
    "KVM_CREATE_VM",
    "KVM_SET_TSS_ADDR",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_GET_MSR_INDEX_LIST",
    "KVM_CREATE_VCPU",
    "KVM_SET_CPUID2",
    "KVM_ENABLE_CAP",
];

#[test]
fn an_ioctl_of_the_start_that_fails_in_any_way_is_named() {
    for name in AT_START {
        for errno in ERRORS {
            let script = Scripted::new(vec![]);
            script.0.lock().failing.push((name, errno));
            let said = bench_on(script, Irqchip::Split).err().unwrap_or_default();
            let known = if name == "KVM_ENABLE_CAP" { "KVM_CAP_SPLIT_IRQCHIP" } else { name };
            assert!(said.contains(known), "{name} with {errno}: {said}");
        }
    }
}

/// Everything that a machine does with a vCPU.
fn use_it_all(b: &mut Bench) -> Vec<VcpuExit> {
    let mut exits = Vec::new();
    for _ in 0..2 {
        *b.board.0.nmi.lock() = true;
        *b.board.0.waits.lock() = Some(0x40);
        *b.board.0.intr.lock() = Some(0x20);
        {
            let mut s = b.script.0.lock();
            s.regs.rflags = 1 << 9;
            s.plays.clear();
            s.plays.push_back(Box::new(|page: &mut RunPage| {
                page.get().exit_reason = KVM_EXIT_INTR;
                (page.get().ready_for_interrupt_injection, page.get().if_flag) = (1, 1);
                Ok(())
            }));
            (0..8).for_each(|_| s.plays.push_back(reason(KVM_EXIT_SHUTDOWN)));
        }
        exits.push(b.run());
        b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
        b.vcpu.state();
        b.vm.sync_dirty();
        let mut s = CpuState::reset(0x600);
        s.xcr0 = 3;
        let _ = b.vcpu.set_state(&s);
        let _ = b.vcpu.set_debug(&DebugControl { single_step: true, breakpoints: vec![0x1000] });
        b.vcpu.translate(0x1000);
        b.vcpu.reset(anura_vmcore::ResetKind::System);
        b.board.1.lock().push((0x4b56_4d01, 5));
        b.vm.go(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    }
    exits
}

#[test]
fn an_ioctl_that_fails_in_any_way_later_stops_the_guest_or_nothing_but_never_the_program() {
    let mut asked = std::collections::BTreeSet::new();
    for irqchip in [Irqchip::Off, Irqchip::Split] {
        let mut b = bench_on(Scripted::new(vec![]), irqchip).unwrap();
        let exits = use_it_all(&mut b);
        assert!(exits.iter().all(|e| *e == VcpuExit::TripleFault), "without failures: {exits:?}");
        asked.extend(b.asked());
        for ioctl in TABLE {
            for errno in ERRORS {
                let mut b = bench_on(Scripted::new(vec![]), irqchip).unwrap();
                b.script.0.lock().failing.push((ioctl.name, errno));
                for exit in use_it_all(&mut b) {
                    match exit {
                        VcpuExit::TripleFault => {}
                        VcpuExit::Failed(e) => {
                            assert!(e.to_string().contains(ioctl.name), "{} with {errno}: {e}", ioctl.name);
                        }
                        other => panic!("{} with {errno}: {other:?}", ioctl.name),
                    }
                }
                // It can be used again once the kernel is well.
                b.script.0.lock().failing.clear();
                b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
                b.vcpu.reset(anura_vmcore::ResetKind::System);
                b.vm.go(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
                let exits = use_it_all(&mut b);
                assert!(exits.iter().all(|e| *e == VcpuExit::TripleFault), "{}: {exits:?}", ioctl.name);
            }
        }
    }
    // The test means something only if those calls are made.
    let never: Vec<_> = TABLE
        .iter()
        .filter(|i| i.on == On::Cpu && !asked.contains(i.name))
        .map(|i| i.name)
        .filter(|name| !["KVM_SET_CPUID2", "KVM_GET_TSC_KHZ", "KVM_SET_TSC_KHZ"].contains(name))
        // The machine's time does not stand in this test.
        .filter(|name| *name != "KVM_KVMCLOCK_CTRL")
        .collect();
    assert!(never.is_empty(), "never asked for: {never:?}");
}

#[test]
fn a_slot_that_cannot_be_had_is_told_with_its_address_whatever_the_error() {
    for errno in ERRORS {
        let mut b = bench(vec![]);
        b.script.0.lock().failing.push(("KVM_SET_USER_MEMORY_REGION", errno));
        let mut t = b.map.transaction();
        t.add(&b.root, 0x40000, &Region::ram("more", RamBlock::new("more", 0x1000).unwrap()), 0);
        t.commit();
        match b.run() {
            VcpuExit::Failed(e) => assert!(e.to_string().contains("0x40000"), "{e}"),
            other => panic!("{other:?}"),
        }
    }
}

/// One exit, filled in by `fill`, and then a shutdown.
fn exits_as(reason_: u32, fill: impl FnOnce(&mut kvm_run) + Send + 'static) -> VcpuExit {
    let play = move |page: &mut RunPage| {
        page.get().exit_reason = reason_;
        fill(page.get());
        Ok(())
    };
    bench(vec![Box::new(play), reason(KVM_EXIT_SHUTDOWN)]).run()
}

#[test]
fn every_exit_there_is_goes_on_or_ends_with_its_own_words() {
    let goes_on = [
        KVM_EXIT_INTR,
        KVM_EXIT_NMI,
        KVM_EXIT_SET_TPR,
        KVM_EXIT_TPR_ACCESS,
        KVM_EXIT_X86_BUS_LOCK,
        KVM_EXIT_HYPERCALL,
        KVM_EXIT_DIRTY_RING_FULL,
        KVM_EXIT_IOAPIC_EOI,
        KVM_EXIT_IRQ_WINDOW_OPEN,
        KVM_EXIT_IO,
        KVM_EXIT_MMIO,
        KVM_EXIT_X86_RDMSR,
        KVM_EXIT_X86_WRMSR,
        KVM_EXIT_NOTIFY,
    ];
    for number in goes_on {
        assert_eq!(exits_as(number, |_| {}), VcpuExit::TripleFault, "exit {number}");
    }
    let told = |exit: VcpuExit, words: &str| match exit {
        VcpuExit::Failed(e) => assert!(e.to_string().contains(words), "{e}"),
        other => panic!("{words}: {other:?}"),
    };
    told(exits_as(KVM_EXIT_HYPERV, |_| {}), "Hyper-V");
    let lost = |run: &mut kvm_run| run.__bindgen_anon_1.notify.flags = KVM_NOTIFY_CONTEXT_INVALID;
    told(exits_as(KVM_EXIT_NOTIFY, lost), "lost its state");
    told(
        exits_as(KVM_EXIT_SYSTEM_EVENT, |run| run.__bindgen_anon_1.system_event.type_ = 77),
        "system event 77",
    );
    let event =
        |kind| exits_as(KVM_EXIT_SYSTEM_EVENT, move |run| run.__bindgen_anon_1.system_event.type_ = kind);
    assert_eq!(event(KVM_SYSTEM_EVENT_RESET), VcpuExit::Reset);
    assert_eq!(event(KVM_SYSTEM_EVENT_SHUTDOWN), VcpuExit::Reset);
    assert!(matches!(exits_as(KVM_EXIT_DEBUG, |_| {}), VcpuExit::Debug(_)));
    // What no kernel of today has.
    for number in [13, 22, 25, 60, u32::MAX] {
        told(exits_as(number, |_| {}), "exit reason");
    }
}

#[test]
fn a_hypercall_that_nobody_offered_gives_enosys() {
    let check = |page: &mut RunPage| {
        // SAFETY: the play before was a hypercall.
        let ret = unsafe { page.get().__bindgen_anon_1.hypercall.ret };
        assert_eq!(ret as i64, -1000);
        page.get().exit_reason = KVM_EXIT_SHUTDOWN;
        Ok(())
    };
    let mut b = bench(vec![reason(KVM_EXIT_HYPERCALL), Box::new(check)]);
    assert_eq!(b.run(), VcpuExit::TripleFault);
}
