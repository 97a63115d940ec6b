//! `info qtree`: the board's devices by bus, with ports, interrupts, and the addresses of PCI functions.

use anura_devices::pci::{devfn, reg};
use anura_vmcore::Width;

use crate::control::{BusNode, DeviceNode};
use crate::pc::Pc;

/// Path, kind, first and last ports, and interrupts of the board's ISA devices.
type IsaRow = (&'static str, &'static str, &'static [(u16, u16)], &'static [u8]);

#[rustfmt::skip]
const ISA: &[IsaRow] = &[
    ("i8254", "isa-pit", &[(0x40, 0x43), (0x61, 0x61)], &[0]),
    ("mc146818", "mc146818rtc", &[(0x70, 0x71)], &[8]),
    ("i8237", "i8257", &[(0x00, 0x0f), (0x80, 0x8f), (0xc0, 0xdf)], &[]),
    ("port92", "port92", &[(0x92, 0x92)], &[]),
    ("i8042", "i8042", &[(0x60, 0x60), (0x64, 0x64)], &[1, 12]),
    ("fdc82078", "isa-fdc", &[(0x3f0, 0x3f5), (0x3f7, 0x3f7)], &[6]),
    ("serial0", "isa-serial", &[(0x3f8, 0x3ff)], &[4]),
    ("serial1", "isa-serial", &[(0x2f8, 0x2ff)], &[3]),
    ("serial2", "isa-serial", &[(0x3e8, 0x3ef)], &[4]),
    ("serial3", "isa-serial", &[(0x2e8, 0x2ef)], &[3]),
    ("parallel0", "isa-parallel", &[(0x378, 0x37f)], &[7]),
    ("parallel1", "isa-parallel", &[(0x278, 0x27f)], &[7]),
    ("parallel2", "isa-parallel", &[(0x3bc, 0x3c3)], &[7]),
];

/// The tree from the system bus down.
pub(crate) fn tree(pc: &Pc) -> BusNode {
    let (mut system, mut functions, mut isa) = (Vec::new(), Vec::new(), Vec::new());
    for (path, _) in pc.devices() {
        if let Some(place) = path.strip_prefix("0000:00:") {
            functions.extend(pci_function(pc, path, place));
        } else if let Some((_, driver, ports, irqs)) = ISA.iter().find(|row| row.0 == path) {
            isa.push(isa_device(driver, ports, irqs));
        } else if let Some(device) = pc.user_devices.iter().find(|d| d.path == *path) {
            let details = device.irq.iter().map(|irq| format!("isa irq {irq}")).collect();
            isa.push(DeviceNode {
                driver: device.driver.clone(),
                id: device.id.clone(),
                properties: device.properties.clone(),
                details,
                buses: vec![],
            });
        } else {
            system.push(system_device(path));
        }
    }
    if let Some(bridge) = functions.iter_mut().find(|d| d.driver == "PIIX3") {
        bridge.buses.push(BusNode { name: "isa.0".into(), kind: "ISA".into(), devices: isa });
    }
    // The host bridge's own bus holds everything on PCI, itself included.
    let pci = BusNode { name: "pci.0".into(), kind: "PCI".into(), devices: functions };
    system.push(DeviceNode {
        driver: "i440FX-pcihost".into(),
        details: vec!["ports 0xcf8-0xcff".into()],
        buses: vec![pci],
        ..DeviceNode::default()
    });
    BusNode { name: "main-system-bus".into(), kind: "System".into(), devices: system }
}

fn system_device(path: &str) -> DeviceNode {
    let (driver, details): (&str, &[&str]) = match path {
        "fabric" => (
            "ioapic",
            &["mmio 0x00000000fec00000/0000000000001000", "ports 0x20-0x21, 0xa0-0xa1, 0x4d0-0x4d1"],
        ),
        "hpet" => ("hpet", &["mmio 0x00000000fed00000/0000000000000400"]),
        "fw_cfg" => ("fw_cfg_io", &["ports 0x510-0x51b"]),
        _ if path.ends_with("/apic") => ("apic", &["mmio 0x00000000fee00000/0000000000001000"]),
        _ => (path, &[]),
    };
    DeviceNode {
        driver: driver.to_owned(),
        properties: vec![("path".into(), path.to_owned())],
        details: details.iter().map(|&line| line.to_owned()).collect(),
        ..DeviceNode::default()
    }
}

fn isa_device(driver: &str, ports: &[(u16, u16)], irqs: &[u8]) -> DeviceNode {
    let ports: Vec<_> = ports
        .iter()
        .map(
            |(first, last)| {
                if first == last { format!("{first:#x}") } else { format!("{first:#x}-{last:#x}") }
            },
        )
        .collect();
    let mut details = vec![format!("ports {}", ports.join(", "))];
    match irqs {
        [] => {}
        [irq] => details.push(format!("isa irq {irq}")),
        all => {
            let all: Vec<_> = all.iter().map(u8::to_string).collect();
            details.push(format!("isa irqs {}", all.join(",")));
        }
    }
    DeviceNode { driver: driver.to_owned(), details, ..DeviceNode::default() }
}

/// A function at `place`, the end of its path: device, function and name.
fn pci_function(pc: &Pc, path: &str, place: &str) -> Option<DeviceNode> {
    let (at, driver) = place.split_once('/')?;
    let (device, function) = at.split_once('.')?;
    let at = devfn(u8::from_str_radix(device, 16).ok()?, function.parse().ok()?);
    let read = |offset, width| pc.pci.read(at, offset, width);
    let class = read(reg::CLASS + 1, Width::W2);
    let kind = match class {
        0x0101 => "IDE controller",
        0x0300 => "VGA controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0680 => "Bridge",
        _ => "Device",
    };
    let mut details = vec![format!(
        "class {kind}, addr 00:{:02x}.{}, pci id {:04x}:{:04x} (sub {:04x}:{:04x})",
        at >> 3,
        at & 7,
        read(reg::VENDOR, Width::W2),
        read(reg::DEVICE, Width::W2),
        read(reg::SUBSYSTEM_VENDOR, Width::W2),
        read(reg::SUBSYSTEM, Width::W2)
    )];
    for n in 0..6 {
        let value = read(reg::BAR0 + n * 4, Width::W4);
        // A bus or memory bar that nobody programmed shows as address 0 with its type.
        match (value & 1 != 0, value & if value & 1 != 0 { !3 } else { !0xf }) {
            (false, 0) => {}
            (true, base) => details.push(format!("bar {n}: i/o at {base:#x}")),
            (false, base) => details.push(format!("bar {n}: mem at {base:#x}")),
        }
    }
    let user = pc.user_devices.iter().find(|d| d.path == path);
    Some(DeviceNode {
        driver: driver.to_owned(),
        id: user.map(|d| d.id.clone()).unwrap_or_default(),
        properties: user.map(|d| d.properties.clone()).unwrap_or_default(),
        details,
        buses: vec![],
    })
}
