//! Local APICs in the kernel: what goes to it and comes back.

use anura_vmcore::{HostApics, MsiSink};
use anura_x86::apic::offset;

use super::*;

fn split(plays: Vec<Play>) -> Bench {
    bench_on(Scripted::new(plays), Irqchip::Split).unwrap()
}

#[test]
fn the_end_of_a_level_interrupt_reaches_the_board() {
    let eoi = |page: &mut RunPage| {
        page.get().exit_reason = KVM_EXIT_IOAPIC_EOI;
        page.get().__bindgen_anon_1.eoi.vector = 0x51;
        Ok(())
    };
    let mut b = split(vec![Box::new(eoi), reason(KVM_EXIT_SHUTDOWN)]);
    assert_eq!(b.run(), VcpuExit::TripleFault);
    assert_eq!(*b.board.0.ended.lock(), [0x51]);
}

#[test]
fn the_pic_is_asked_for_its_vector_only_when_the_kernel_is_ready() {
    let not_ready = |page: &mut RunPage| {
        assert_eq!(page.get().request_interrupt_window, 1, "the window was asked for");
        page.get().exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
        page.get().ready_for_interrupt_injection = 1;
        Ok(())
    };
    let mut b = split(vec![Box::new(not_ready), reason(KVM_EXIT_SHUTDOWN)]);
    *b.board.0.intr.lock() = Some(0x28);
    assert_eq!(b.run(), VcpuExit::TripleFault);
    assert_eq!(b.script.0.lock().interrupts, [0x28]);
    assert!(b.board.0.intr.lock().is_none());
}

#[test]
fn a_vcpu_in_the_kernel_is_never_told_of_vectors_by_us() {
    let mut b = split(vec![reason(KVM_EXIT_INTR), reason(KVM_EXIT_SHUTDOWN)]);
    *b.board.0.waits.lock() = Some(0x41);
    assert_eq!(b.run(), VcpuExit::TripleFault);
    assert!(b.script.0.lock().interrupts.is_empty());
    assert_eq!(*b.board.0.waits.lock(), Some(0x41), "what is posted to the board stays there");
}

#[test]
fn registers_deadline_and_activity_come_out_and_go_in_again() {
    let mut b = split(vec![]);
    let set = |b: &Bench, at: usize, value: u8| b.script.0.lock().lapic[at] = value as std::os::raw::c_char;
    set(&b, offset::TPR, 0x30);
    b.script.0.lock().mp_state = KVM_MP_STATE_HALTED;
    b.script.0.lock().msrs.insert(anura_x86::msr::TSC_DEADLINE, 0x1234);
    b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    let image = b.board.0.image.lock().clone();
    assert_eq!(image.page.get(offset::TPR), 0x30);
    assert_ne!(image.tsc_deadline, 0);
    assert_eq!(b.vcpu.state().activity, anura_x86::Activity::Halted);
    // Somebody changes it meanwhile; the kernel forgets.
    b.board.0.image.lock().page.set(offset::TPR, 0x50);
    set(&b, offset::TPR, 0);
    b.script.0.lock().mp_state = 0;
    b.script.0.lock().msrs.insert(anura_x86::msr::TSC_DEADLINE, 0);
    b.vm.go(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    assert_eq!(b.script.0.lock().lapic[offset::TPR], 0x50);
    assert_eq!(b.script.0.lock().mp_state, KVM_MP_STATE_HALTED);
    assert_eq!(b.script.0.lock().msrs[&anura_x86::msr::TSC_DEADLINE], 0x1234, "in the guest's own ticks");
}

#[test]
fn registers_that_are_no_part_of_the_state_lie_with_the_board_meanwhile() {
    const CLOCK: u32 = 0x4b56_4d01;
    let mut b = split(vec![]);
    b.script.0.lock().msrs.insert(CLOCK, 0x5001);
    b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    assert_eq!(*b.board.1.lock(), [(CLOCK, 0x5001)]);
    b.script.0.lock().msrs.insert(CLOCK, 0);
    b.vm.go(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    assert_eq!(b.script.0.lock().msrs[&CLOCK], 0x5001);
    // A machine that is reset has none.
    b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    b.board.1.lock().clear();
    b.vm.go(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
    assert_eq!(b.script.0.lock().msrs[&CLOCK], 0);
}

#[test]
fn messages_and_routes_go_to_the_kernel_as_they_are() {
    let script = Scripted::new(vec![]);
    let vm: Arc<dyn crate::host::Vm> = Arc::new(script.clone());
    // The script's kernel answers 1 to every capability: it has no wide ids.
    let apics = crate::irqchip::KernelApics::new(&script, &vm).unwrap();
    apics.send_msi(0xfee0_1000, 0x4041);
    apics.send_msi(0x1_0000_0000 | 0xfee0_2000, 0x42);
    apics.route_pins(&[(0xfee0_0000, 0x30), (0xfee0_0000, 0x8031)]);
    let s = script.0.lock();
    assert_eq!(s.messages, [(0xfee0_1000, 0x4041), (0xfee0_2000, 0x42)]);
    assert_eq!(s.routes, [(0, 0xfee0_0000, 0x30), (1, 0xfee0_0000, 0x8031)]);
}

#[test]
fn a_devices_message_is_told_to_the_kernel_once_and_then_an_eventfd() {
    use anura_vmcore::MsiRoute;
    let script = Scripted::new(vec![]);
    let vm: Arc<dyn crate::host::Vm> = Arc::new(script.clone());
    let apics = crate::irqchip::KernelApics::new(&script, &vm).unwrap();
    apics.route_pins(&[(0xfee0_0000, 0x30)]);
    let count = |name: &str| script.0.lock().asked.iter().filter(|n| *n == name).count();
    let route = MsiRoute::new(apics.clone());
    route.update(0xfee0_1000, 0x41);
    (0..5).for_each(|_| route.fire());
    assert_eq!(script.0.lock().routes, [(0, 0xfee0_0000, 0x30), (24, 0xfee0_1000, 0x41)]);
    assert_eq!(script.0.lock().wired, [24]);
    assert_eq!((count("KVM_SIGNAL_MSI"), count("KVM_SET_GSI_ROUTING"), count("KVM_IRQFD")), (0, 2, 1));
    // It goes elsewhere; the pins change.
    route.update(0xfee0_1000, 0x42);
    route.fire();
    apics.route_pins(&[(0xfee0_0000, 0x31)]);
    assert_eq!(script.0.lock().routes, [(0, 0xfee0_0000, 0x31), (24, 0xfee0_1000, 0x42)]);
    assert_eq!(count("KVM_IRQFD"), 1);
    // The vCPUs stand, and go on.
    apics.settle();
    assert!(script.0.lock().wired.is_empty());
    route.fire();
    assert_eq!(script.0.lock().wired, [24]);
    // There is room for two: the third has none until one goes.
    let more = [(); 2].map(|()| MsiRoute::new(apics.clone()));
    more.iter().for_each(MsiRoute::fire);
    assert_eq!(script.0.lock().wired, [24, 25]);
    assert_eq!(count("KVM_SIGNAL_MSI"), 1);
    drop(route);
    more[1].fire();
    assert_eq!(script.0.lock().wired, [25, 24]);
    assert_eq!((count("KVM_SIGNAL_MSI"), apics.wired()), (1, 2));
}

#[test]
fn without_eventfds_each_message_is_an_ioctl() {
    use anura_vmcore::MsiRoute;
    for (lacks, fails) in
        [(Some(KVM_CAP_IRQFD), None), (None, Some("KVM_IRQFD")), (None, Some("KVM_SET_GSI_ROUTING"))]
    {
        let script = Scripted::new(vec![]);
        script.0.lock().missing_capability = lacks;
        script.0.lock().failing.extend(fails.map(|name| (name, libc::ENOSPC)));
        let vm: Arc<dyn crate::host::Vm> = Arc::new(script.clone());
        let apics = crate::irqchip::KernelApics::new(&script, &vm).unwrap();
        let route = MsiRoute::new(apics.clone());
        route.update(0xfee0_0000, 0x41);
        (0..3).for_each(|_| route.fire());
        let s = script.0.lock();
        assert_eq!(s.messages, [(0xfee0_0000, 0x41); 3], "{lacks:?} {fails:?}");
        assert!(s.wired.is_empty());
        let tried = s.asked.iter().filter(|n| fails == Some(n.as_str())).count();
        assert_eq!(tried, usize::from(fails.is_some()), "tried once and no more");
    }
}

#[test]
fn a_timer_that_expires_between_the_kick_and_the_registers_is_not_lost() {
    let word = |b: &Bench, at: usize, value: u32| {
        for (to, from) in b.script.0.lock().lapic[at..].iter_mut().zip(value.to_le_bytes()) {
            *to = from as std::os::raw::c_char;
        }
    };
    for (left, lost) in [(1000, true), (0, false)] {
        let mut b = split(vec![]);
        word(&b, offset::LVT_TIMER, 0x33);
        word(&b, offset::TIMER_INITIAL, 5000);
        word(&b, offset::TIMER_CURRENT, left);
        b.vcpu.kicker().kick();
        assert_eq!(b.run(), VcpuExit::Interrupted);
        word(&b, offset::TIMER_CURRENT, 0);
        b.vm.stand(&mut [&mut *b.vcpu as &mut dyn Vcpu]);
        let irr = b.board.0.image.lock().page.get(offset::IRR + 16);
        assert_eq!(irr, if lost { 1 << 0x13 } else { 0 }, "{left}");
    }
}
