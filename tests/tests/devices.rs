//! One small driver for each chip of the board, on a machine without an engine: registers do what drivers expect, and
//! interrupts arrive through the real PICs, IOAPIC and local APICs.

use anura_machine::config::SmpConfig;
use anura_machine::testing::TestMachine;
use anura_vmcore::{MachineRequest, ResetKind, Width};

const MS: u64 = 1_000_000;

fn cmos(pc: &TestMachine, index: u8) -> u8 {
    pc.outb(0x70, index);
    pc.inb(0x71)
}

#[test]
fn the_pit_calibrates_a_clock_by_port_61h() {
    let pc = TestMachine::pc();
    pc.outb(0x61, pc.inb(0x61) & !2 | 1);
    pc.outb(0x43, 0xb0);
    let ticks = 1_193_182 / 20;
    pc.outb(0x42, ticks as u8);
    pc.outb(0x42, (ticks >> 8) as u8);
    pc.advance(49 * MS);
    assert_eq!(pc.inb(0x61) & 0x20, 0);
    pc.advance(2 * MS);
    assert_eq!(pc.inb(0x61) & 0x20, 0x20);
}

#[test]
fn the_pit_ticks_through_the_pic() {
    let pc = TestMachine::pc();
    pc.set_up_pic(&[0]);
    pc.outb(0x43, 0x34);
    let ticks = 1_193_182 / 1000;
    pc.outb(0x40, ticks as u8);
    pc.outb(0x40, (ticks >> 8) as u8);
    pc.interrupt();
    pc.end_of_interrupt(0);
    let mut seen = 0;
    for _ in 0..10 {
        pc.advance(MS);
        while let Some(vector) = pc.interrupt() {
            assert_eq!(vector, 0x20);
            pc.end_of_interrupt(0);
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
    pc.outb(0x21, 0xff);
    pc.advance(5 * MS);
    assert_eq!(pc.interrupt(), None, "masked");
}

#[test]
fn the_clock_tells_date_and_memory_and_interrupts_periodically() {
    let pc = TestMachine::pc();
    let date: Vec<u8> = [0x32, 9, 8, 7, 4, 2, 0].map(|n| cmos(&pc, n)).to_vec();
    assert_eq!(date, [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20], "14 November 2023, 22:13:20");
    pc.advance(41_000 * MS);
    assert_eq!((cmos(&pc, 2), cmos(&pc, 0)), (0x14, 0x01));
    assert_eq!(u16::from(cmos(&pc, 0x17)) | u16::from(cmos(&pc, 0x18)) << 8, 31 * 1024);
    pc.set_up_pic(&[8]);
    pc.outb(0x70, 0x0b);
    let b = pc.inb(0x71);
    pc.outb(0x71, b | 0x40);
    cmos(&pc, 0x0c);
    pc.advance(MS);
    assert_eq!(pc.interrupt(), Some(0x28));
    assert_eq!(cmos(&pc, 0x0c) & 0xc0, 0xc0);
    pc.end_of_interrupt(8);
    pc.advance(MS / 2);
    assert_eq!(pc.interrupt(), None);
    pc.advance(MS);
    assert_eq!(pc.interrupt(), Some(0x28));
}

#[test]
fn a_serial_port_loops_back_with_interrupts_and_sends_to_its_chardev() {
    for (base, irq, name) in
        [(0x3f8, 4, "serial0"), (0x2f8, 3, "serial1"), (0x3e8, 4, "serial2"), (0x2e8, 3, "serial3")]
    {
        let pc = TestMachine::pc();
        pc.set_up_pic(&[irq]);
        pc.outb(base + 4, 0x1b);
        pc.outb(base + 1, 1);
        pc.outb(base, 0x5a);
        assert_eq!(pc.interrupt(), Some(0x20 + irq), "{name}");
        assert_eq!((pc.inb(base + 2) & 0x0f, pc.inb(base)), (4, 0x5a));
        pc.end_of_interrupt(irq);
        assert_eq!(pc.interrupt(), None);
        pc.outb(base + 4, 0x0b);
        b"hello".iter().for_each(|c| pc.outb(base, *c));
        assert_eq!(pc.chardev(name).ring_read(16).unwrap(), b"hello");
        assert_eq!(pc.inb(base + 5) & 0x60, 0x60);
    }
}

#[test]
fn the_parallel_port_prints() {
    let pc = TestMachine::pc();
    pc.set_up_pic(&[7]);
    for c in b"paper" {
        pc.outb(0x378, *c);
        pc.outb(0x37a, 0x1d);
        pc.outb(0x37a, 0x1c);
        assert_eq!(pc.interrupt(), Some(0x27));
        pc.inb(0x379);
        pc.end_of_interrupt(7);
    }
    assert_eq!(pc.chardev("parallel0").ring_read(16).unwrap(), b"paper");
}

/// Sets an entry of the IOAPIC: edge, physical, to APIC 0.
fn ioapic_entry(pc: &TestMachine, pin: u64, low: u64) {
    for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
        pc.write(0xfec0_0000, Width::W4, register);
        pc.write(0xfec0_0010, Width::W4, value);
    }
}

#[test]
fn the_hpet_interrupts_through_the_ioapic() {
    let pc = TestMachine::pc();
    const HPET: u64 = 0xfed0_0000;
    let period = pc.read(HPET + 4, Width::W4) / 1_000_000;
    assert_eq!(period, 10, "nanoseconds");
    ioapic_entry(&pc, 20, 0x55);
    pc.write(HPET + 0x100, Width::W4, 20 << 9 | 4);
    pc.write(HPET + 0x108, Width::W8, 1000);
    pc.write(HPET + 0x10, Width::W4, 1);
    pc.advance(9_990);
    assert_eq!(pc.interrupt(), None);
    pc.advance(10);
    assert_eq!(pc.interrupt(), Some(0x55));
    pc.apic().mmio_write(0xb0, 0);
    assert_eq!(pc.read(HPET + 0xf0, Width::W8), 1000);
    // Periodic, in levels: the status must be cleared.
    ioapic_entry(&pc, 20, 0x8055);
    pc.write(HPET + 0x100, Width::W4, 20 << 9 | 0x4e);
    pc.write(HPET + 0x108, Width::W8, 2000);
    pc.write(HPET + 0x108, Width::W8, 500);
    for _ in 0..3 {
        pc.advance(10_000);
        assert_eq!(pc.interrupt(), Some(0x55));
        pc.write(HPET + 0x20, Width::W4, 1);
        pc.apic().mmio_write(0xb0, 0);
        assert_eq!(pc.interrupt(), None);
    }
}

/// One fw_cfg DMA request; the control word that comes back.
fn fw_cfg_dma(pc: &TestMachine, control: u32, length: u32, to: u64) -> u32 {
    let mut request = control.to_be_bytes().to_vec();
    request.extend(length.to_be_bytes());
    request.extend(to.to_be_bytes());
    pc.put_bytes(0x1000, &request);
    pc.outl(0x514, 0);
    pc.outl(0x518, 0x1000u32.swap_bytes());
    u32::from_be_bytes(pc.bytes(0x1000, 4).try_into().unwrap())
}

#[test]
fn fw_cfg_gives_its_directory_and_files_by_dma() {
    let pc = TestMachine::pc();
    pc.outw(0x510, 0);
    assert_eq!([0; 4].map(|_: u8| pc.inb(0x511)), *b"QEMU");
    assert_eq!(fw_cfg_dma(&pc, 0x19 << 16 | 8 | 2, 4, 0x2000), 0);
    let count = u32::from_be_bytes(pc.bytes(0x2000, 4).try_into().unwrap());
    assert_eq!(fw_cfg_dma(&pc, 2, count * 64, 0x2000), 0);
    let directory = pc.bytes(0x2000, count as usize * 64);
    let file = directory.chunks(64).find(|entry| entry[8..].starts_with(b"etc/acpi/rsdp\0")).unwrap();
    let size = u32::from_be_bytes(file[..4].try_into().unwrap());
    let key = u32::from(u16::from_be_bytes(file[4..6].try_into().unwrap()));
    assert_eq!(fw_cfg_dma(&pc, key << 16 | 8 | 2, size, 0x8000), 0);
    assert_eq!(pc.bytes(0x8000, 8), b"RSD PTR ");
    assert_eq!(fw_cfg_dma(&pc, 16, 4, 0x8000), 1, "writing is refused");
}

#[test]
fn the_pci_bus_enumerates_and_its_bars_have_sizes() {
    let pc = TestMachine::pc();
    let found: Vec<(u8, u32, u32)> = (0..=255)
        .map(|at| (at, pc.pci_read(at, 0, Width::W4), pc.pci_read(at, 8, Width::W4) >> 8))
        .filter(|(_, id, _)| *id != u32::MAX)
        .collect();
    assert_eq!(
        found,
        [
            (0x00, 0x1237_8086, 0x06_0000),
            (0x08, 0x7000_8086, 0x06_0100),
            (0x09, 0x7010_8086, 0x01_0180),
            (0x0b, 0x7113_8086, 0x06_8000),
            (0x10, 0x1111_1234, 0x03_0000),
        ]
    );
    let size = |at, bar: u8| {
        let old = pc.pci_read(at, 0x10 + 4 * bar, Width::W4);
        pc.pci_write(at, 0x10 + 4 * bar, Width::W4, u32::MAX);
        let mask = pc.pci_read(at, 0x10 + 4 * bar, Width::W4);
        pc.pci_write(at, 0x10 + 4 * bar, Width::W4, old);
        if mask == 0 { 0 } else { (mask & if mask & 1 != 0 { !3 } else { !15 }).wrapping_neg() }
    };
    assert_eq!((size(0x10, 0), size(0x10, 2), size(0x09, 4)), (16 << 20, 4096, 16));
    assert_eq!((size(0x10, 1), size(0x09, 0), size(0x00, 0)), (0, 0, 0));
    assert_eq!(pc.pci_read(0x10, 0x10, Width::W4) & 0xf, 8, "prefetchable memory");
}

#[test]
fn power_management_counts_signals_the_button_and_powers_off() {
    let pc = TestMachine::pc();
    let timer = || pc.inl(0x608) & 0xff_ffff;
    let before = timer();
    pc.advance(1000 * MS);
    assert_eq!(timer() - before, 3_579_545);
    pc.set_up_pic(&[9]);
    pc.outb(0xb2, 0xf1);
    assert_eq!(pc.inw(0x604) & 1, 1, "ACPI is on");
    pc.outw(0x602, 0x100);
    assert_eq!(pc.interrupt(), None);
    pc.board().pm.lock().power_button();
    assert_eq!(pc.interrupt(), Some(0x29));
    assert_eq!(pc.inw(0x600) & 0x100, 0x100);
    pc.outw(0x600, 0x100);
    pc.end_of_interrupt(9);
    assert_eq!(pc.interrupt(), None);
    pc.outw(0x604, 0x2001);
    assert_eq!(pc.request(), Some(MachineRequest::PowerOff));
}

#[test]
fn the_smbus_reads_a_byte_of_an_eeprom() {
    let pc = TestMachine::pc();
    pc.outb(0x700, 0x1e);
    pc.outb(0x704, 0x50 << 1 | 1);
    pc.outb(0x703, 0);
    pc.outb(0x702, 0x48);
    assert_eq!(pc.inb(0x700) & 0x1f, 2, "done without error");
    pc.outb(0x700, 2);
    pc.outb(0x704, 0x10 << 1 | 1);
    pc.outb(0x702, 0x48);
    assert_eq!(pc.inb(0x700) & 0x04, 4, "nobody there");
}

/// Sends a byte to the keyboard and takes its answers.
fn keyboard(pc: &TestMachine, bytes: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    for byte in bytes {
        pc.outb(0x60, *byte);
        while pc.inb(0x64) & 1 != 0 {
            answers.push(pc.inb(0x60));
        }
    }
    answers
}

#[test]
fn the_keyboard_resets_identifies_and_sends_keys() {
    let pc = TestMachine::pc();
    pc.outb(0x64, 0xaa);
    assert_eq!(pc.inb(0x60), 0x55);
    assert_eq!(keyboard(&pc, &[0xff]), [0xfa, 0xaa]);
    assert_eq!(keyboard(&pc, &[0xf2]), [0xfa, 0xab, 0x41], "translated");
    assert_eq!(keyboard(&pc, &[0xed, 0x02]), [0xfa, 0xfa]);
    pc.set_up_pic(&[1, 12]);
    while pc.interrupt().is_some() {
        pc.end_of_interrupt(1);
    }
    let kbc = pc.board().keyboard.clone().unwrap();
    kbc.lock().key(0x1e, true);
    assert_eq!((pc.interrupt(), pc.inb(0x60)), (Some(0x21), 0x1e));
    pc.end_of_interrupt(1);
    kbc.lock().key(0x1e, false);
    assert_eq!((pc.interrupt(), pc.inb(0x60)), (Some(0x21), 0x9e));
    pc.end_of_interrupt(1);
    pc.outb(0x64, 0x60);
    pc.outb(0x60, 0x47);
    pc.outb(0x64, 0xd4);
    pc.outb(0x60, 0xf4);
    assert_eq!((pc.interrupt(), pc.inb(0x64) & 0x21, pc.inb(0x60)), (Some(0x2c), 0x21, 0xfa));
    pc.end_of_interrupt(12);
    kbc.lock().mouse_move(2, 1, 0, 1);
    let packet = [0; 3].map(|_: u8| {
        assert_eq!(pc.interrupt(), Some(0x2c));
        let byte = pc.inb(0x60);
        pc.end_of_interrupt(12);
        byte
    });
    assert_eq!(packet, [0x29, 2, 0xff]);
}

#[test]
fn the_keyboard_controller_port_92_and_the_bridge_reset_the_machine() {
    let pc = TestMachine::pc();
    pc.outb(0x64, 0xfe);
    assert_eq!(pc.request(), Some(MachineRequest::Reset(ResetKind::System)));
    pc.outb(0x92, 0x01);
    assert!(matches!(pc.request(), Some(MachineRequest::Reset(_))));
    pc.outb(0xcf9, 0x02);
    pc.outb(0xcf9, 0x06);
    assert_eq!(pc.request(), Some(MachineRequest::Reset(ResetKind::System)));
    pc.outb(0x92, 0x02);
    assert_eq!(pc.request(), Some(MachineRequest::A20(true)));
}

#[test]
fn the_floppy_controller_resets_and_finds_no_drive() {
    let pc = TestMachine::pc();
    pc.set_up_pic(&[6]);
    pc.outb(0x3f2, 0x00);
    pc.outb(0x3f2, 0x0c);
    assert_eq!(pc.interrupt(), Some(0x26));
    let command = |bytes: &[u8]| {
        for byte in bytes {
            assert_eq!(pc.inb(0x3f4) & 0xc0, 0x80);
            pc.outb(0x3f5, *byte);
        }
        let mut result = Vec::new();
        while pc.inb(0x3f4) & 0xc0 == 0xc0 {
            result.push(pc.inb(0x3f5));
        }
        result
    };
    for drive in 0..4 {
        assert_eq!(command(&[8]), [0xc0 | drive, 0]);
    }
    pc.end_of_interrupt(6);
    assert_eq!(command(&[0x10]), [0x90]);
    command(&[3, 0xaf, 2]);
    command(&[7, 0]);
    pc.advance(1000 * MS);
    assert_eq!(pc.interrupt(), Some(0x26));
    assert_eq!(command(&[8]), [0x70, 0]);
}

#[test]
fn a_dma_channel_moves_a_sector_and_stops_at_its_count() {
    let pc = TestMachine::pc();
    pc.outb(0x0a, 6);
    pc.outb(0x0c, 0);
    pc.outb(0x0b, 0x46);
    pc.outb(0x04, 0x00);
    pc.outb(0x04, 0x56);
    pc.outb(0x81, 0x02);
    pc.outb(0x05, 0xff);
    pc.outb(0x05, 0x01);
    pc.outb(0x0a, 2);
    let mut sector: Vec<u8> = (0..512).map(|n| n as u8).collect();
    let moved = pc.board().isa_dma.lock().transfer(2, &mut sector);
    assert_eq!((moved.moved, moved.terminal_count), (512, true));
    assert_eq!(pc.bytes(0x2_5600, 512), sector);
    assert_eq!(pc.inb(0x08) & 4, 4, "terminal count of channel 2");
    assert_eq!(pc.inb(0x08) & 4, 0);
}

#[test]
fn the_ide_channels_are_empty_and_their_bus_master_stops() {
    let pc = TestMachine::pc();
    for (task_file, control) in [(0x1f0, 0x3f6), (0x170, 0x376)] {
        pc.outb(control, 4);
        pc.outb(control, 0);
        assert_eq!(pc.inb(task_file + 7) & 0x80, 0, "not busy");
        pc.outb(task_file + 2, 0x55);
        pc.outb(task_file + 3, 0xaa);
        assert_ne!((pc.inb(task_file + 2), pc.inb(task_file + 3)), (0x55, 0xaa), "nobody there");
    }
    let base = pc.pci_read(0x09, 0x20, Width::W4) as u16 & !3;
    pc.outl(base + 4, 0x1_0000);
    pc.outb(base, 9);
    assert_eq!((pc.inb(base + 2) & 1, pc.inl(base + 4)), (1, 0x1_0000));
    pc.outb(base, 0);
    assert_eq!(pc.inb(base + 2) & 1, 0);
}

#[test]
fn the_graphics_card_shows_text_and_pixels() {
    let pc = TestMachine::pc();
    for (n, c) in b"hello".iter().enumerate() {
        pc.write(0xb_8000 + 2 * n as u64, Width::W2, 0x0700 | u64::from(*c));
    }
    let card = pc.board().vga.clone().unwrap();
    assert_eq!(card.lock().text_screen()[0], "hello");
    pc.outw(0x3d4, 0x0e0f);
    assert_eq!(pc.inb(0x3d5), 0x0e);
    for (index, value) in [(4, 0), (1, 640), (2, 480), (3, 32), (4, 0x41)] {
        pc.outw(0x1ce, index);
        pc.outw(0x1cf, value);
    }
    let frame = u64::from(pc.pci_read(0x10, 0x10, Width::W4) & !15);
    pc.write(frame + 640 * 4, Width::W4, 0x00ff_8000);
    assert_eq!(pc.read(frame + 640 * 4, Width::W4), 0x00ff_8000);
    let registers = u64::from(pc.pci_read(0x10, 0x18, Width::W4) & !15);
    assert_eq!(pc.read(registers + 0x502, Width::W2), 640);
    assert_eq!(pc.read(0xa_0000 + 640 * 4, Width::W4), 0x00ff_8000, "bank 0 of the same memory");
}

#[test]
fn the_host_bridge_write_protects_and_opens_upper_memory() {
    let pc = TestMachine::pc();
    pc.write(0xc_0000, Width::W4, 0x1234);
    pc.pci_write(0, 0x5a, Width::W1, 0x11);
    pc.write(0xc_0000, Width::W4, 0x5678);
    assert_eq!(pc.read(0xc_0000, Width::W4), 0x1234, "read only");
    pc.pci_write(0, 0x5a, Width::W1, 0);
    assert_ne!(pc.read(0xc_0000, Width::W4), 0x1234, "the PCI bus answers, not RAM");
    pc.pci_write(0, 0x5a, Width::W1, 0x33);
    assert_eq!(pc.read(0xc_0000, Width::W4), 0x1234);
    let on_screen = pc.read(0xb_8000, Width::W2);
    pc.pci_write(0, 0x72, Width::W1, 0x4a);
    pc.write(0xb_8000, Width::W2, 0xdead);
    pc.pci_write(0, 0x72, Width::W1, 0x0a);
    assert_eq!(pc.read(0xb_8000, Width::W2), on_screen, "system management memory lies behind the screen");
}

#[test]
fn pci_interrupts_are_routed_to_the_pic_in_levels() {
    let pc = TestMachine::pc();
    assert_eq!((pc.inb(0x4d0), pc.inb(0x4d1)), (0, 0x0c));
    pc.set_up_pic(&[5, 11]);
    let wire = pc.board().fabric.pci(3, 0);
    wire.set(true);
    assert_eq!(pc.interrupt(), Some(0x2b), "slot 3 pin A is wire C, which firmware routed to 11");
    pc.end_of_interrupt(11);
    assert_eq!(pc.interrupt(), Some(0x2b), "still high");
    wire.set(false);
    pc.end_of_interrupt(11);
    assert_eq!(pc.interrupt(), None);
    pc.pci_write(0x08, 0x62, Width::W1, 5);
    pc.outb(0x4d0, 0x20);
    wire.set(true);
    assert_eq!(pc.interrupt(), Some(0x25));
}

#[test]
fn the_local_apic_times_and_wakes_other_processors() {
    let mut config = TestMachine::config();
    config.smp = SmpConfig { cpus: 2, max_cpus: 2, cores: 2, ..SmpConfig::default() };
    let pc = TestMachine::with(config).unwrap();
    let apic = pc.apic();
    apic.mmio_write(0x3e0, 0xb);
    apic.mmio_write(0x320, 0x40);
    apic.mmio_write(0x380, 1_000_000);
    let count = apic.mmio_read(0x390);
    assert!(count > 0);
    pc.advance(500_000);
    assert!(apic.mmio_read(0x390) < count);
    pc.advance(1000 * MS);
    assert_eq!(pc.interrupt(), Some(0x40));
    apic.mmio_write(0xb0, 0);
    assert_eq!(pc.interrupt(), None, "one shot");
    let other = &pc.board().apics[1];
    apic.mmio_write(0x310, 1 << 24);
    apic.mmio_write(0x300, 0x4500);
    assert!(other.sync().init && other.take_init());
    apic.mmio_write(0x310, 1 << 24);
    apic.mmio_write(0x300, 0x4608);
    other.sync();
    assert_eq!(other.take_sipi(), Some(8));
}

#[test]
fn what_virtual_machines_add_reaches_the_host() {
    let pc = TestMachine::pc();
    b"debug\n".iter().for_each(|c| pc.outb(0xe9, *c));
    assert_eq!(pc.chardev("debugcon").ring_read(16).unwrap(), b"debug\n");
    assert_eq!(pc.inb(0xe9), 0xe9);
    pc.outw(0x501, 3);
    assert_eq!(pc.request(), Some(MachineRequest::Exit(7)));
    assert_eq!(pc.inb(0x505), 3);
    pc.outb(0x505, 1);
    assert_eq!(pc.request(), Some(MachineRequest::Panicked(1)));
}
