//! The differentiated definition block: the devices that firmware must describe.
//!
//! PCI root with its windows and interrupt routing through four link devices (the PIRQ wires of the PIIX3), ISA
//! chips with their ports and interrupts, processors, and the soft-off state.

use acpi_tables::aml::*;
use acpi_tables::{Aml, AmlSink};

use super::Board;

/// Bytes that are AML already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    aml.to_aml_bytes(&mut out);
    out
}

fn raw(aml: &dyn Aml) -> Raw {
    Raw(bytes(aml))
}

fn name(path: &str, value: &dyn Aml) -> Raw {
    raw(&Name::new(path.into(), value))
}

fn device(path: &str, children: Vec<Raw>) -> Raw {
    raw(&Device::new(path.into(), children.iter().map(|c| c as &dyn Aml).collect()))
}

fn method(path: &str, args: u8, children: Vec<Raw>) -> Raw {
    raw(&Method::new(path.into(), args, false, children.iter().map(|c| c as &dyn Aml).collect()))
}

fn resources(parts: Vec<Raw>) -> Raw {
    name("_CRS", &ResourceTemplate::new(parts.iter().map(|c| c as &dyn Aml).collect()))
}

fn hid(id: &str) -> Raw {
    name("_HID", &EISAName::new(id))
}

fn ports(base: u16, length: u8) -> Raw {
    raw(&IO::new(base, base, 1, length))
}

/// An edge-triggered, active-high ISA interrupt: the short descriptor without flags.
fn isa_irq(irq: u32) -> Raw {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    Raw(vec![0x22, low, high])
}

/// Extended interrupt descriptor: consumer, level triggered, active high, shared. The numbers begin at byte 5.
fn level_irqs(irqs: &[u32]) -> Raw {
    let mut out = vec![0x89];
    out.extend((2 + 4 * irqs.len() as u16).to_le_bytes());
    out.extend([0x09, irqs.len() as u8]);
    irqs.iter().for_each(|irq| out.extend(irq.to_le_bytes()));
    Raw(out)
}

/// An ISA chip with no more than ports and interrupts.
fn isa(path: &str, id: &str, uid: u8, parts: Vec<Raw>) -> Raw {
    device(path, vec![hid(id), name("_UID", &uid), name("_STA", &0x0fu8), resources(parts)])
}

/// The whole definition block, without its table header.
pub(super) fn definition_block(board: &Board) -> Vec<u8> {
    let mut out = Vec::new();
    let system_bus = vec![pci_root(board), processors(board)].into_iter().chain(links());
    out.extend(scope("_SB_", system_bus.collect()).0);
    out.extend(scope("_GPE", vec![name("_HID", &"ACPI0006")]).0);
    let zero = 0u8;
    out.extend(name("_S5_", &Package::new(vec![&zero, &zero, &zero, &zero])).0);
    out
}

fn scope(path: &str, children: Vec<Raw>) -> Raw {
    raw(&Scope::new(path.into(), children.iter().map(|c| c as &dyn Aml).collect()))
}

fn processors(board: &Board) -> Raw {
    let mut out = Vec::new();
    for (n, (_, present)) in board.processors.iter().enumerate() {
        let path = format!("C{n:03X}");
        let status: u8 = if *present { 0x0f } else { 0 };
        let children = vec![name("_HID", &"ACPI0007"), name("_UID", &(n as u32)), name("_STA", &status)];
        out.extend(device(&path, children).0);
    }
    Raw(out)
}

fn pci_root(board: &Board) -> Raw {
    let windows = resources(vec![
        raw(&AddressSpace::new_bus_number(0u16, 0xff)),
        ports(0xcf8, 8),
        raw(&AddressSpace::new_io(0u16, 0x0cf7, None)),
        raw(&AddressSpace::new_io(0x0d00u16, 0xffff, None)),
        raw(&AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000u32, 0xb_ffff, None)),
        raw(&AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            board.pci_window,
            0xfebf_ffff,
            None,
        )),
    ]);
    let mut children =
        vec![hid("PNP0A03"), name("_ADR", &0u8), name("_UID", &0u8), windows, routing(), isa_bridge(board)];
    children.push(device("PM__", vec![name("_ADR", &0x0001_0003u32)]));
    // Ports that no device above owns: power management, SMBus, general-purpose events, APM.
    children.push(device(
        "PRES",
        vec![
            hid("PNP0C02"),
            name("_UID", &1u8),
            resources(vec![ports(board.pm_base, 0x40), ports(0x700, 0x10), ports(0xafe0, 4), ports(0xb2, 2)]),
        ],
    ));
    device("PCI0", children)
}

/// Each slot's four pins go to the link devices, staggered by slot; the power management function has the SCI's own.
fn routing() -> Raw {
    const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
    let mut entries = PackageBuilder::new();
    for slot in 0..32u32 {
        for pin in 0..4u32 {
            let link = if (slot, pin) == (1, 0) {
                "LNKS"
            } else {
                LINKS[((slot + pin).wrapping_sub(1) & 3) as usize]
            };
            let path: Path = format!("\\_SB_.{link}").as_str().into();
            let (address, pin, index) = (slot << 16 | 0xffff, pin as u8, 0u8);
            entries.add_element(&Package::new(vec![&address, &pin, &path, &index]));
        }
    }
    name("_PRT", &entries)
}

fn isa_bridge(board: &Board) -> Raw {
    let route = |n: u8| FieldEntry::Named([b'P', b'R', b'Q', b'0' + n], 8);
    let mut children = vec![
        name("_ADR", &0x0001_0000u32),
        raw(&OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &0x60u8, &4u8)),
        raw(&Field::new(
            "P40C".into(),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            vec![route(0), route(1), route(2), route(3)],
        )),
        isa("RTC_", "PNP0B00", 0, vec![ports(0x70, 2), isa_irq(8)]),
    ];
    if board.i8042 {
        children.push(isa("KBD_", "PNP0303", 0, vec![ports(0x60, 1), ports(0x64, 1), isa_irq(1)]));
        children.push(isa("MOU_", "PNP0F13", 0, vec![isa_irq(12)]));
    }
    if board.fdc {
        let dma = Raw(vec![0x2a, 1 << 2, 0x00]);
        children.push(isa("FDC0", "PNP0700", 0, vec![ports(0x3f2, 4), ports(0x3f7, 1), isa_irq(6), dma]));
    }
    for (n, (base, irq)) in board.parallel.iter().enumerate() {
        children.push(isa(
            &format!("LPT{}", n + 1),
            "PNP0400",
            n as u8 + 1,
            vec![ports(*base, 8), isa_irq(*irq)],
        ));
    }
    for (n, (base, irq)) in board.serial.iter().enumerate() {
        children.push(isa(
            &format!("COM{}", n + 1),
            "PNP0501",
            n as u8 + 1,
            vec![ports(*base, 8), isa_irq(*irq)],
        ));
    }
    if board.hpet {
        let page = raw(&Memory32Fixed::new(
            false,
            crate::timer::hpet::BASE as u32,
            crate::timer::hpet::LENGTH as u32,
        ));
        children.push(device("HPET", vec![hid("PNP0103"), name("_UID", &0u8), resources(vec![page])]));
    }
    if let Some(port) = board.pvpanic {
        let children_of =
            vec![name("_HID", &"QEMU0001"), name("_STA", &0x0fu8), resources(vec![ports(port, 1)])];
        children.push(device("PEVT", children_of));
    }
    // fw_cfg: selector, data and DMA ports.
    children.push(device(
        "FWCF",
        vec![name("_HID", &"QEMU0002"), name("_STA", &0x0bu8), resources(vec![ports(0x510, 12)])],
    ));
    device("ISA_", children)
}

/// Link devices: which ISA interrupt each PIRQ wire has, and how to change it.
fn links() -> Vec<Raw> {
    let possible = || name("_PRS", &ResourceTemplate::new(vec![&level_irqs(&[5, 10, 11])]));
    let mut out = Vec::new();
    for (n, link) in ["LNKA", "LNKB", "LNKC", "LNKD"].iter().enumerate() {
        let register: Path = format!("\\_SB_.PCI0.ISA_.PRQ{n}").as_str().into();
        let register = || raw(&register);
        // The interrupt's number is the 5th byte of its descriptor.
        let template = bytes(&ResourceTemplate::new(vec![&level_irqs(&[0])]));
        let current = method(
            "_CRS",
            0,
            vec![
                name("PRR0", &Raw(template)),
                raw(&CreateDWordField::new(&Path::new("PRRI"), &Path::new("PRR0"), &5u8)),
                raw(&And::new(&Local(0), &register(), &0x8fu8)),
                raw(&If::new(
                    &LessThan::new(&Local(0), &0x80u8),
                    vec![&Store::new(&Path::new("PRRI"), &Local(0))],
                )),
                raw(&Return::new(&Path::new("PRR0"))),
            ],
        );
        let set = method(
            "_SRS",
            1,
            vec![
                raw(&CreateDWordField::new(&Path::new("PRRI"), &Arg(0), &5u8)),
                raw(&Store::new(&register(), &Path::new("PRRI"))),
            ],
        );
        let status = method(
            "_STA",
            0,
            vec![
                raw(&And::new(&Local(0), &register(), &0x80u8)),
                raw(&If::new(&Equal::new(&Local(0), &0u8), vec![&Return::new(&0x0bu8)])),
                raw(&Return::new(&0x09u8)),
            ],
        );
        let disable = method("_DIS", 0, vec![raw(&Or::new(&register(), &register(), &0x80u8))]);
        out.push(device(
            link,
            vec![hid("PNP0C0F"), name("_UID", &(n as u8)), possible(), current, set, status, disable],
        ));
    }
    let fixed = |path: &str| name(path, &ResourceTemplate::new(vec![&level_irqs(&[9])]));
    out.push(device(
        "LNKS",
        vec![
            hid("PNP0C0F"),
            name("_UID", &4u8),
            name("_STA", &0x0bu8),
            fixed("_PRS"),
            fixed("_CRS"),
            method("_DIS", 0, vec![]),
            method("_SRS", 1, vec![]),
        ],
    ));
    out
}
