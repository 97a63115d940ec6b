//! Conventional PCI: configuration spaces, base address registers, the bus and configuration mechanism 1.
//!
//! Source: PCI Local Bus Specification 2.1, chapter 6 and section 3.7.4 (CONFIG_ADDRESS, CONFIG_DATA).

mod bars;
mod config;

use std::collections::BTreeMap;
use std::sync::Arc;

use anura_memory::{Access, AccessRules, AddressSpace, IoHandler, MemoryMap, Region};
use anura_vmcore::{Device, DeviceCell, LoadError, Record, ResetKind, Width, trace_event};
use parking_lot::RwLock;

pub use bars::{BarKind, Bars, ROM_INDEX};
pub use config::{ConfigSpace, Identity, reg};

/// A function of a PCI device: its configuration space as the bus sees it.
pub trait PciFunction: Device {
    /// Reads 1, 2 or 4 bytes that do not cross a doubleword.
    fn config_read(&mut self, offset: u8, width: Width) -> u32;
    /// Writes 1, 2 or 4 bytes.
    fn config_write(&mut self, offset: u8, width: Width, value: u32);
}

trait FunctionHandle: Send + Sync {
    fn read(&self, offset: u8, width: Width) -> u32;
    fn write(&self, offset: u8, width: Width, value: u32);
}

impl<T: PciFunction> FunctionHandle for DeviceCell<T> {
    fn read(&self, offset: u8, width: Width) -> u32 {
        self.lock().config_read(offset, width)
    }
    fn write(&self, offset: u8, width: Width, value: u32) {
        self.lock().config_write(offset, width, value);
    }
}

/// Bus 0: functions by device and function number.
#[derive(Clone, Default)]
pub struct PciBus {
    functions: Arc<RwLock<BTreeMap<u8, Arc<dyn FunctionHandle>>>>,
}

/// Device number and function in the form of the bus: 8 × device + function.
pub const fn devfn(device: u8, function: u8) -> u8 {
    device << 3 | function & 7
}

impl PciBus {
    /// A bus with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plugs a function in. Returns `false` if its place is taken.
    pub fn plug<T: PciFunction>(&self, devfn: u8, function: &DeviceCell<T>) -> bool {
        let mut functions = self.functions.write();
        let free = !functions.contains_key(&devfn);
        if free {
            functions.insert(devfn, Arc::new(function.clone()));
        }
        free
    }

    /// Places that are taken, ascending.
    pub fn occupied(&self) -> Vec<u8> {
        self.functions.read().keys().copied().collect()
    }

    /// The lowest device number with no function.
    pub fn free_device(&self) -> Option<u8> {
        let functions = self.functions.read();
        (0..32).find(|device| (0..8).all(|f| !functions.contains_key(&devfn(*device, f))))
    }

    /// Reads a configuration register; all ones where nothing is.
    pub fn read(&self, devfn: u8, offset: u8, width: Width) -> u32 {
        let function = self.functions.read().get(&devfn).cloned();
        let value = function.map_or(width.mask() as u32, |f| f.read(offset, width));
        trace_event!(pci_cfg_read, "{:02x}.{} @{offset:#04x} -> {value:#x}", devfn >> 3, devfn & 7);
        value
    }

    /// Writes a configuration register.
    pub fn write(&self, devfn: u8, offset: u8, width: Width, value: u32) {
        trace_event!(pci_cfg_write, "{:02x}.{} @{offset:#04x} <- {value:#x}", devfn >> 3, devfn & 7);
        let function = self.functions.read().get(&devfn).cloned();
        if let Some(function) = function {
            function.write(offset, width, value);
        }
    }
}

/// The address latch of configuration mechanism 1.
#[derive(Default)]
pub struct ConfigAddress {
    address: u32,
}

impl Device for ConfigAddress {
    fn reset(&mut self, _kind: ResetKind) {
        self.address = 0;
    }
    fn save(&self) -> Record {
        let Self { address } = self;
        Record::new(1).with(1, *address)
    }
    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let address = r.get_if::<u32>(1, |a| a & !ADDRESS_WRITABLE == 0)?;
        r.finish()?;
        self.address = address;
        Ok(())
    }
}

/// Enable, bus, device, function, register; the rest of CONFIG_ADDRESS is reserved.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// Ports CF8h and CFCh. The latch is locked only to be read, never while a function is called.
struct ConfigPorts {
    latch: DeviceCell<ConfigAddress>,
    bus: PciBus,
    data: bool,
}

impl ConfigPorts {
    /// The function and register that an access to CONFIG_DATA goes to, if any.
    fn target(&self, a: Access) -> Option<(u8, u8)> {
        let address = self.latch.lock().address;
        let here = address & ADDRESS_ENABLE != 0 && address >> 16 & 0xff == 0;
        here.then_some(((address >> 8) as u8, address as u8 & 0xfc | a.offset as u8 & 3))
    }
}

impl IoHandler for ConfigPorts {
    fn read(&self, a: Access) -> u64 {
        if !self.data {
            return match a.width {
                Width::W4 => u64::from(self.latch.lock().address),
                _ => a.width.mask(),
            };
        }
        match self.target(a) {
            Some((devfn, offset)) => u64::from(self.bus.read(devfn, offset, a.width)),
            None => a.width.mask(),
        }
    }

    fn write(&self, a: Access, value: u64) {
        if !self.data {
            // Only a doubleword reaches the latch; CF9h within it is the PIIX3's reset control.
            if a.width == Width::W4 && a.offset == 0 {
                self.latch.lock().address = value as u32 & ADDRESS_WRITABLE;
            }
        } else if let Some((devfn, offset)) = self.target(a) {
            self.bus.write(devfn, offset, a.width, value as u32);
        }
    }
}

/// Maps configuration mechanism 1 onto `bus`; returns the latch, which is part of the machine's state.
pub fn map_config_ports(bus: &PciBus, map: &MemoryMap, ports: &AddressSpace) -> DeviceCell<ConfigAddress> {
    let latch = DeviceCell::new(ConfigAddress::default());
    let mut tx = map.transaction();
    for (name, base, data) in [("pci-conf-idx", 0xcf8, false), ("pci-conf-data", 0xcfc, true)] {
        let handler = Arc::new(ConfigPorts { latch: latch.clone(), bus: bus.clone(), data });
        tx.add(ports.root(), base, &Region::io(name, 4, handler, AccessRules::any(4)), 0);
    }
    latch
}
