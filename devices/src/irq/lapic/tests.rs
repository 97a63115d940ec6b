//! The local APIC by its page, its MSRs and the bus.

use super::*;
use anura_x86::apic::offset;

fn machine(cpus: u32) -> (Clock, Arc<ApicBus>, Vec<Arc<LocalApic>>) {
    let (clock, bus) = (Clock::stepped(), ApicBus::new());
    let apics: Vec<_> = (0..cpus)
        .map(|cpu| {
            let config = ApicConfig { cpu, apic_id: cpu, x2apic: true, phys_bits: 40, tsc_khz: 1_000_000 };
            LocalApic::new(&config, CpuSignal::new(), &clock, &bus)
        })
        .collect();
    bus.connect(apics.iter().map(|a| a.mailbox().clone()).collect());
    for apic in &apics {
        apic.mmio_write(0xf0, 0x1ff);
    }
    (clock, bus, apics)
}

#[test]
fn a_vector_waits_for_the_task_priority() {
    let (_, bus, apics) = machine(1);
    bus.send_msi_vector(0x41);
    apics[0].set_tpr(4);
    assert!(!apics[0].sync().interrupt);
    apics[0].set_tpr(3);
    assert!(apics[0].sync().interrupt);
    assert_eq!(apics[0].acknowledge(), Some(0x41));
    assert_eq!(apics[0].acknowledge(), None);
    assert_eq!(apics[0].mmio_read(0xa0), 0x40, "the class in service is the processor priority");
    apics[0].mmio_write(0xb0, 0);
    assert_eq!(apics[0].mmio_read(0xa0), 0x30);
}

impl ApicBus {
    fn send_msi_vector(&self, vector: u8) {
        use anura_vmcore::MsiSink;
        self.send_msi(0xfee0_0000, u32::from(vector));
    }
}

#[test]
fn an_image_taken_and_given_back_changes_nothing_a_guest_sees() {
    for mode in ["one-shot", "periodic", "deadline", "x2apic"] {
        let (clock, bus, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x80, 0x20);
        apic.mmio_write(0xd0, 0x0400_0000);
        apic.mmio_write(0x350, 0x700);
        apic.mmio_write(0x3e0, 0b1011);
        bus.send_msi_vector(0x61);
        assert_eq!(apic.acknowledge(), Some(0x61));
        bus.send_msi_vector(0x45);
        let timer = match mode {
            "periodic" => 0x2_0033,
            "deadline" => 0x4_0033,
            _ => 0x33,
        };
        apic.mmio_write(0x320, timer);
        if mode == "deadline" {
            assert!(apic.msr_write(MSR_TSC_DEADLINE, 5000));
        } else {
            apic.mmio_write(0x380, 5000);
        }
        if mode == "x2apic" {
            assert!(apic.set_base(apic.base() | BASE_X2APIC));
        }
        clock.advance(1000);
        let image = apic.image();
        // Another APIC, at the same time of the same machine.
        let other = {
            let config = ApicConfig { cpu: 0, apic_id: 0, x2apic: true, phys_bits: 40, tsc_khz: 1_000_000 };
            LocalApic::new(&config, CpuSignal::new(), &clock, &bus)
        };
        other.set_image(&image);
        assert_eq!(other.image(), image, "{mode}");
        let left = image.page.get(offset::TIMER_CURRENT);
        assert_eq!(left, if mode == "deadline" { 0 } else { 4000 }, "{mode}");
        clock.advance(3999);
        assert!(!has_bit(&other.regs.lock().irr, 0x33), "{mode}: too early");
        clock.advance(1);
        assert!(has_bit(&other.regs.lock().irr, 0x33), "{mode}: the timer goes on");
        assert!(has_bit(&other.regs.lock().irr, 0x45) && has_bit(&other.regs.lock().isr, 0x61));
    }
}

#[test]
fn messages_go_to_the_host_while_it_has_the_apics_and_to_the_board_afterwards() {
    struct Host(parking_lot::Mutex<Vec<(u64, u32)>>);
    impl anura_vmcore::MsiSink for Host {
        fn send_msi(&self, address: u64, data: u32) {
            self.0.lock().push((address, data));
        }
    }
    impl anura_vmcore::HostApics for Host {
        fn route_pins(&self, _: &[(u64, u32)]) {}
    }
    let (_, bus, apics) = machine(1);
    let host = Arc::new(Host(parking_lot::Mutex::default()));
    bus.hand_over(Some(host.clone()), &mut || {});
    bus.send_msi_vector(0x41);
    assert!(!apics[0].sync().interrupt);
    bus.hand_over(None, &mut || {});
    bus.send_msi_vector(0x42);
    assert!(apics[0].sync().interrupt);
    // Edge-triggered messages carry no level, but the bit may be set.
    assert_eq!(
        host.0.lock().iter().map(|(a, d)| (*a, *d & 0xbfff)).collect::<Vec<_>>(),
        [(0xfee0_0000, 0x41)]
    );
}

#[test]
fn the_one_shot_timer_fires_once_and_counts_down() {
    let (clock, _, apics) = machine(1);
    let apic = &apics[0];
    apic.mmio_write(0x3e0, 0b1011); // divide by 1
    apic.mmio_write(0x320, 0x31);
    apic.mmio_write(0x380, 1000);
    clock.advance(400);
    assert_eq!(apic.mmio_read(0x390), 600);
    clock.advance(600);
    assert_eq!(apic.acknowledge(), Some(0x31));
    apic.mmio_write(0xb0, 0);
    clock.advance(5000);
    assert_eq!(apic.acknowledge(), None);
    assert_eq!(apic.mmio_read(0x390), 0);
}

#[test]
fn a_change_of_the_timers_mode_lets_the_count_go_on_and_an_ended_one_stays_at_zero() {
    let (clock, _, apics) = machine(1);
    let apic = &apics[0];
    let step = |ns| clock.advance(ns);
    apic.mmio_write(0x3e0, 0xb);
    apic.mmio_write(0x320, 0x40);
    apic.mmio_write(0x380, 10_000);
    step(6_000);
    apic.mmio_write(0x320, 0x2_0040);
    assert_eq!(apic.mmio_read(0x390), 4_000);
    step(5_000);
    assert_eq!(apic.mmio_read(0x390), 9_000);
    apic.mmio_write(0x320, 0x40);
    step(9_000);
    apic.mmio_write(0x320, 0x2_0040);
    assert_eq!(apic.mmio_read(0x390), 0);
}

#[test]
fn software_may_change_the_xapic_id_until_x2apic_mode() {
    let (_, _, apics) = machine(1);
    let apic = &apics[0];
    apic.mmio_write(0x20, 7 << 24);
    assert_eq!(apic.mmio_read(0x20), 7 << 24);
    assert!(apic.set_base(apic.base() | BASE_X2APIC));
    assert_eq!(apic.msr_read(0x802), Some(0));
    assert_eq!(apic.msr_read(0x82f), None);
    assert_eq!(apic.msr_read(0x828), Some(0), "an x2APIC tells of illegal registers by #GP alone");
}

#[test]
fn the_periodic_timer_goes_on_and_the_divider_counts() {
    let (clock, _, apics) = machine(1);
    let apic = &apics[0];
    apic.mmio_write(0x3e0, 0b0011); // divide by 16
    apic.mmio_write(0x320, 0x2_0031);
    apic.mmio_write(0x380, 1000);
    for _ in 0..3 {
        clock.advance(16_000);
        assert_eq!(apic.acknowledge(), Some(0x31));
        apic.mmio_write(0xb0, 0);
    }
    apic.mmio_write(0x380, 0);
    clock.advance(100_000);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn tsc_deadline_fires_now_when_past_and_reads_zero_after() {
    let (clock, _, apics) = machine(1);
    let apic = &apics[0];
    clock.advance(1000);
    apic.mmio_write(0x320, 0x4_0031);
    assert!(apic.msr_write(0x6e0, 5000));
    assert_eq!(apic.msr_read(0x6e0), Some(5000));
    clock.advance(4000);
    assert_eq!(apic.acknowledge(), Some(0x31));
    assert_eq!(apic.msr_read(0x6e0), Some(0));
    apic.mmio_write(0xb0, 0);
    assert!(apic.msr_write(0x6e0, 10));
    clock.advance(0);
    clock.fire_due();
    assert_eq!(apic.acknowledge(), Some(0x31));
    apic.msr_write(0x6e0, 1 << 40);
    apic.mmio_write(0x320, 0x31);
    assert_eq!(apic.msr_read(0x6e0), Some(0), "a mode change disarms");
    assert_eq!(clock.next_deadline(), None);
}

#[test]
fn ipis_reach_by_id_logical_id_and_shorthand() {
    let (_, _, apics) = machine(3);
    for (i, apic) in apics.iter().enumerate() {
        apic.mmio_write(0xd0, 1 << (24 + i));
    }
    apics[0].mmio_write(0x310, 2 << 24);
    apics[0].mmio_write(0x300, 0x40);
    assert_eq!(apics[2].acknowledge(), Some(0x40));
    apics[0].mmio_write(0x310, 0x06 << 24);
    apics[0].mmio_write(0x300, 0x850);
    assert_eq!((apics[1].acknowledge(), apics[2].acknowledge()), (Some(0x50), Some(0x50)));
    apics[1].mmio_write(0x300, 0xc_0060);
    assert_eq!(apics[0].acknowledge(), Some(0x60));
    assert_eq!(apics[1].acknowledge(), None);
    apics[1].mmio_write(0x300, 0x4_0070);
    assert_eq!(apics[1].acknowledge(), Some(0x70));
}

#[test]
fn init_and_startup_are_latched_and_init_clears_an_older_startup() {
    let (_, _, apics) = machine(2);
    apics[0].mmio_write(0x310, 1 << 24);
    apics[0].mmio_write(0x300, 0x4610);
    apics[0].mmio_write(0x300, 0x4500);
    assert_eq!(apics[1].sync(), ApicPending { init: true, ..Default::default() });
    assert!(apics[1].take_init() && !apics[1].take_init());
    apics[0].mmio_write(0x300, 0x4699);
    assert_eq!(apics[1].take_sipi(), Some(0x99));
    assert_eq!(apics[1].take_sipi(), None);
}

#[test]
fn of_nmis_that_come_together_two_are_latched() {
    let (_, bus, apics) = machine(2);
    apics[0].mmio_write(0x310, 1 << 24);
    apics[0].mmio_write(0x300, 0x4400);
    bus.nmi_all();
    bus.nmi_all();
    assert!(apics[1].sync().nmi && apics[1].take_nmi() && apics[1].take_nmi() && !apics[1].take_nmi());
    assert!(!apics[1].sync().nmi);
    assert!(apics[0].take_nmi());
}

#[test]
fn illegal_vectors_and_registers_show_in_the_error_status() {
    let (_, _, apics) = machine(1);
    let apic = &apics[0];
    apic.mmio_write(0x370, 0x1f0 & 0xff | 0x30);
    apic.mmio_write(0x300, 0x4_0005);
    assert_eq!(apic.mmio_read(0x280), 0, "the register shows errors only after it was written");
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), ESR_SEND_ILLEGAL);
    apic.mmio_write(0x50, 0);
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), ESR_ILLEGAL_REGISTER);
    assert_eq!(apic.acknowledge(), Some(0xf0));
}

#[test]
fn x2apic_transitions_and_registers_follow_the_manual() {
    let (_, _, apics) = machine(2);
    let apic = &apics[1];
    let base = apic.base();
    assert_eq!(apic.msr_read(0x802), None, "no x2APIC registers before the mode is on");
    assert!(!apic.set_base(base & !BASE_ENABLE | BASE_X2APIC));
    assert!(apic.set_base(base | BASE_X2APIC));
    assert!(!apic.set_base(base), "x2APIC to xAPIC directly is not legal");
    assert_eq!(apic.msr_read(0x802), Some(1));
    assert_eq!(apic.msr_read(0x80d), Some(2));
    assert_eq!(apic.msr_read(0x80e), None);
    assert!(!apic.msr_write(0x80b, 1), "only zero may be written to EOI");
    assert!(!apic.msr_write(0x808, 0x100));
    assert!(apic.msr_write(0x83f, 0x55));
    assert_eq!(apic.acknowledge(), Some(0x55));
    assert!(apic.msr_write(0x80b, 0));
    assert!(apic.msr_write(0x830, 0x0000_0000_0000_4041));
    assert_eq!(apics[0].acknowledge(), Some(0x41));
    assert_eq!(apic.mmio_read(0x20), u32::MAX, "the page is off");
    assert!(apic.set_base(base & !BASE_ENABLE));
    assert!(!apic.set_base(base | BASE_X2APIC), "off to x2APIC directly is not legal");
    assert!(apic.set_base(base));
}

#[test]
fn a_software_disabled_apic_masks_its_table_and_takes_no_vectors() {
    let (_, bus, apics) = machine(1);
    let apic = &apics[0];
    apic.mmio_write(0x320, 0x31);
    apic.mmio_write(0xf0, 0xff);
    assert_eq!(apic.mmio_read(0x320), 0x1_0031);
    bus.send_msi_vector(0x60);
    apic.mmio_write(0xf0, 0x1ff);
    assert_eq!(apic.acknowledge(), None);
}

struct Peer(parking_lot::Mutex<Vec<u8>>);
impl ApicPeer for Peer {
    fn pic_acknowledge(&self) -> u8 {
        0x20
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().push(vector);
    }
}

#[test]
fn the_pic_reaches_the_cpu_by_lint0_in_extint_mode_or_with_the_apic_off() {
    let (_, _, apics) = machine(1);
    let apic = &apics[0];
    apic.connect(Arc::new(Peer(parking_lot::Mutex::default())));
    apic.mailbox().set_lint0(true);
    assert!(!apic.sync().interrupt, "LINT0 is masked after reset");
    apic.mmio_write(0x350, 0x700);
    assert!(apic.sync().interrupt);
    assert_eq!(apic.acknowledge(), Some(0x20));
    apic.mmio_write(0x350, 0x1_0700);
    assert!(!apic.sync().interrupt);
    assert!(apic.set_base(apic.base() & !BASE_ENABLE));
    assert!(apic.sync().interrupt);
}

#[test]
fn the_end_of_a_level_interrupt_is_broadcast_unless_suppressed() {
    let (_, _, apics) = machine(1);
    let apic = &apics[0];
    let peer = Arc::new(Peer(parking_lot::Mutex::default()));
    apic.connect(peer.clone());
    for (svr, expected) in [(0x1ff, 1), (0x11ff, 1)] {
        apic.mmio_write(0xf0, svr);
        apic.mailbox().post(0x44, Trigger::Level);
        assert_eq!(apic.acknowledge(), Some(0x44));
        assert_ne!(apic.mmio_read(0x1a0), 0, "the trigger mode register shows a level");
        apic.mmio_write(0xb0, 0);
        assert_eq!(peer.0.lock().len(), expected);
    }
}

#[test]
fn a_saved_apic_loads_with_what_was_posted() {
    let (clock, bus, apics) = machine(1);
    apics[0].mmio_write(0x320, 0x2_0031);
    apics[0].mmio_write(0x380, 5000);
    clock.advance(100);
    bus.send_msi_vector(0x77);
    let record = apics[0].device().lock().save();
    let (_, _, copies) = machine(1);
    copies[0].device().lock().load(&record).unwrap();
    assert_eq!(copies[0].device().lock().save(), record);
    assert_eq!(copies[0].acknowledge(), Some(0x77));
}
