//! `-device`, `-global`, `-vga`, `-display`.

use anura_devices::registry::{self, DeviceType, Value};
use anura_machine::config::{DeviceConfig, Display, Global, Vga};

use crate::options::builder::Builder;
use crate::options::keyval::KeyValues;
use crate::options::nearest;

type Res = Result<(), String>;

/// Devices of QEMU that many scripts use and that are not there yet.
#[rustfmt::skip]
const LATER: &[&str] = &[
    "ide-hd", "ide-cd", "scsi-hd", "scsi-cd", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "virtio-blk-pci",
    "virtio-blk", "virtio-net-pci", "virtio-net", "virtio-scsi-pci", "virtio-scsi", "virtio-serial-pci",
    "virtio-serial", "virtio-rng-pci", "virtio-balloon-pci", "virtio-balloon", "virtio-9p-pci", "virtio-gpu-pci",
    "virtio-vga", "virtio-keyboard-pci", "virtio-tablet-pci", "virtconsole", "virtserialport", "vhost-user-fs-pci",
    "vhost-vsock-pci", "cirrus-vga", "qxl-vga", "bochs-display", "ramfb", "qemu-xhci", "nec-usb-xhci", "usb-ehci",
    "piix3-usb-uhci", "usb-tablet", "usb-kbd", "usb-mouse", "usb-storage", "usb-host", "usb-redir", "i6300esb", "ib700",
    "AC97", "intel-hda", "hda-duplex", "sb16", "tpm-tis", "tpm-crb", "vmcoreinfo", "vmgenid", "pcie-root-port",
    "pci-bridge", "ioh3420", "pci-serial", "nvme", "ahci", "ich9-ahci", "floppy", "ivshmem-plain", "ivshmem-doorbell",
    "vfio-pci", "pvpanic-pci", "isa-ipmi-bt", "pc-dimm", "nvdimm", "edu", "loader", "guest-loader",
];

pub(crate) fn device(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let driver = kv.needed("driver")?;
    let kind = lookup(&driver)?;
    if !kind.user_creatable {
        return Err(format!(
            "Parameter 'driver' expects a pluggable device type; {driver} comes with the board, set it by -global"
        ));
    }
    let id = kv.text("id");
    if let Some(id) = &id
        && b.config.devices.iter().any(|d| d.id.as_ref() == Some(id))
    {
        return Err(format!("Duplicate device ID '{id}'"));
    }
    let bus = kv.text("bus");
    let mut properties = Vec::new();
    for (name, text) in kv.rest() {
        let value = kind.parse(&name, &text).map_err(|e| with_hint(kind, &name, &e.to_string()))?;
        properties.retain(|(n, _): &(String, Value)| *n != name);
        properties.push((name, value));
    }
    b.config.devices.push(DeviceConfig { driver: kind.name.into(), id, bus, properties });
    Ok(())
}

fn lookup(driver: &str) -> Result<&'static DeviceType, String> {
    if let Some(kind) = registry::find(driver) {
        return Ok(kind);
    }
    if LATER.contains(&driver) {
        return Err(format!("device {driver} is not there yet; -device help lists those that are"));
    }
    let names = registry::ALL.iter().filter(|d| d.user_creatable).map(|d| d.name);
    let hint = match nearest(driver, names.chain(LATER.iter().copied())) {
        Some(near) => format!("; did you mean '{near}'?"),
        None => "; -device help lists them".into(),
    };
    Err(format!("'{driver}' is not a valid device model name{hint}"))
}

fn with_hint(kind: &DeviceType, name: &str, error: &str) -> String {
    if kind.property(name).is_some() {
        return error.to_owned();
    }
    match nearest(name, kind.properties.iter().map(|p| p.name)) {
        Some(near) => format!("{error}; did you mean '{near}'?"),
        None => format!("{error}; -device {},help lists them", kind.name),
    }
}

pub(crate) fn global(b: &mut Builder, text: &str) -> Res {
    let short = text.split_once('=').and_then(|(k, v)| Some((k.split_once('.')?, v)));
    let (driver, property, value) = match short {
        Some(((driver, property), value)) if !driver.contains(',') => {
            (driver.to_owned(), property.to_owned(), value.to_owned())
        }
        _ => {
            let mut kv = KeyValues::parse(text, None)?;
            let all = (kv.text("driver"), kv.text("property"), kv.text("value"));
            kv.done()?;
            match all {
                (Some(d), Some(p), Some(v)) => (d, p, v),
                _ => return Err("expected driver.property=value".into()),
            }
        }
    };
    // A device that is not there takes no property, right or wrong, as with QEMU.
    let value = match registry::find(&driver) {
        Some(kind) => {
            kind.parse(&property, &value).map_err(|e| with_hint(kind, &property, &e.to_string()))?
        }
        None => Value::Text(value),
    };
    b.config.globals.push(Global { driver, property, value });
    Ok(())
}

pub(crate) fn vga(b: &mut Builder, text: &str) -> Res {
    b.vga = Some(match text {
        "none" => Vga::None,
        "std" => Vga::Std,
        "cirrus" | "vmware" | "qxl" | "virtio" | "tcx" | "cg3" | "xenfb" => {
            return Err(format!("graphics card {text} is not there yet; use std or none"));
        }
        _ => {
            let hint = nearest(text, ["none", "std"])
                .map_or("; -vga help lists them".into(), |n| format!("; did you mean '{n}'?"));
            return Err(format!("unknown vga type: {text}{hint}"));
        }
    });
    Ok(())
}

pub(crate) fn display(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let kind = kv.needed("type")?;
    match kind.as_str() {
        "none" => b.config.display = Display::None,
        "gtk" | "sdl" | "curses" | "vnc" | "egl-headless" | "spice-app" | "dbus" | "cocoa" => {
            return Err(format!("display {kind} is not there yet; use -nographic or -display none"));
        }
        _ => {
            return Err(format!("Parameter 'type' does not accept value '{kind}'; use none"));
        }
    }
    Ok(())
}

pub(crate) fn nographic(b: &mut Builder) {
    b.nographic = true;
}

/// `-net` and `-nic`: there is no network yet, and `none` says that none is wanted.
pub(crate) fn nic(_: &mut Builder, text: &str) -> Res {
    match text {
        "none" => Ok(()),
        _ => Err("network is not there yet; use none".into()),
    }
}
