//! Devices that `-device` adds to the board.
//!
//! The registry has checked names and types; here a device is built from its properties, or refused in one line that
//! names the option and the way out. Ports that something has already are not given twice.

use anura_devices::misc::debugcon::DebugCon;
use anura_devices::misc::isa_debug_exit::IsaDebugExit;
use anura_devices::misc::pc_testdev::{self, PcTestDev};
use anura_devices::misc::pvpanic::PvPanic;
use anura_devices::pci::devfn;
use anura_devices::registry::{Kind, Value, find};
use anura_devices::serial::parallel::Parallel;
use anura_devices::serial::uart16550::Uart16550;

use crate::config::DeviceConfig;
use crate::error::MachineError;
use crate::pc::{PARALLEL, Pc, PcParts, SERIAL, VgaOptions, claim};

/// The registry's number for "the usual one".
const AUTO: u64 = 0xffff_ffff;

/// A device that `-device` added.
pub(crate) struct UserDevice {
    /// Its path in saved states.
    pub path: String,
    /// Its kind.
    pub driver: String,
    /// The user's name for it.
    pub id: String,
    /// Its properties as text.
    pub properties: Vec<(String, String)>,
    /// Its interrupt.
    pub irq: Option<u32>,
}

/// A device of the configuration with its properties looked up.
struct Wanted<'a> {
    parts: &'a PcParts<'a>,
    device: &'a DeviceConfig,
}

impl Wanted<'_> {
    /// Given with the device, else by `-global`, else the registry's default.
    fn property(&self, name: &str) -> Option<Value> {
        let given = self.device.properties.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let global = || {
            let all = &self.parts.config.globals;
            all.iter()
                .rev()
                .find(|g| g.driver == self.device.driver && g.property == name)
                .map(|g| g.value.clone())
        };
        given.or_else(global).or_else(|| find(&self.device.driver)?.property(name)?.default.value())
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.property(name)? {
            Value::Number(n) => Some(n),
            _ => None,
        }
    }

    /// A number that is not left to the board.
    fn chosen(&self, name: &str) -> Option<u64> {
        self.number(name).filter(|n| *n != AUTO)
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.property(name)? {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }

    fn error(&self, property: &str, why: &str) -> MachineError {
        let driver = &self.device.driver;
        let comma = if property.is_empty() { "" } else { "," };
        MachineError::Config(format!("-device {driver}{comma}{property}: {why}"))
    }

    fn chardev(&self) -> Result<anura_chardev::CharBackend, MachineError> {
        let id = self.text("chardev");
        let id = id.ok_or_else(|| self.error("", "it needs chardev=ID; define one with -chardev"))?;
        claim(self.parts, &id)
    }

    /// The first port, if `count` ports from there are free.
    fn ports(&self, pc: &Pc, property: &str, base: u64, count: u64) -> Result<u16, MachineError> {
        let given = format!("{property}={base:#x}");
        let end = base.checked_add(count).filter(|end| *end <= 0x1_0000);
        let end = end.ok_or_else(|| self.error(&given, "ports end at 0xffff; give a lower one"))?;
        let view = pc.ports.view();
        if let Some(taken) = (base..end).find_map(|port| view.find(port)) {
            let why = format!(
                "ports {:#x} to {:#x} belong to {} already; give another {property}=",
                taken.start,
                taken.last(),
                taken.region.name()
            );
            return Err(self.error(&given, &why));
        }
        Ok(base as u16)
    }

    fn irq(&self, default: u32) -> Result<u32, MachineError> {
        let irq = self.chosen("irq").unwrap_or(u64::from(default));
        let fits = u32::try_from(irq).ok().filter(|n| *n < 16 && *n != 2);
        fits.ok_or_else(|| {
            self.error(
                &format!("irq={irq}"),
                "the ISA bus has interrupts 0 to 15 without 2; give one of them",
            )
        })
    }
}

impl Pc {
    /// Builds what `-device` asks for, in order.
    pub(crate) fn add_user_devices(&mut self, parts: &PcParts<'_>) -> Result<(), MachineError> {
        for (n, device) in parts.config.devices.iter().enumerate() {
            let wanted = Wanted { parts, device };
            let Some(kind) = find(&device.driver).filter(|kind| kind.user_creatable) else {
                return Err(
                    wanted.error("", "this board does not take such a device; -device help lists those")
                );
            };
            if let Some(bus) = &device.bus
                && bus != kind.bus.default_name()
            {
                let why =
                    format!("no such bus for it; leave bus= out or give bus={}", kind.bus.default_name());
                return Err(wanted.error(&format!("bus={bus}"), &why));
            }
            let (path, irq) = self.add_user_device(&wanted, n as u32)?;
            let properties = kind.properties.iter().filter_map(|property| {
                let value = wanted.property(property.name)?;
                let text = match (&value, property.kind) {
                    (Value::Number(n), Kind::PciAddr) => format!("{:02x}.{}", n >> 3, n & 7),
                    (Value::Number(n), Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64) => {
                        format!("{n} ({n:#x})")
                    }
                    _ => value.to_string(),
                };
                Some((property.name.to_owned(), text))
            });
            self.user_devices.push(UserDevice {
                path,
                driver: device.driver.clone(),
                id: device.id.clone().unwrap_or_default(),
                properties: properties.collect(),
                irq,
            });
        }
        Ok(())
    }

    fn add_user_device(
        &mut self,
        wanted: &Wanted<'_>,
        n: u32,
    ) -> Result<(String, Option<u32>), MachineError> {
        // Sources of a shared interrupt have numbers of their own; the board's own take the lower ones.
        let source = 12 + n % 20;
        match wanted.device.driver.as_str() {
            "isa-serial" => {
                let index = self.free_index(wanted, &SERIAL.map(|s| s.0))?;
                let (base, irq, name) = SERIAL[index];
                let irq = wanted.irq(irq)?;
                let base = wanted.ports(self, "iobase", wanted.chosen("iobase").unwrap_or(base.into()), 8)?;
                let uart = Uart16550::new(name, self.fabric.gsi(irq, source), &self.clock, wanted.chardev()?);
                Uart16550::map(&uart, &self.map, &self.ports, base);
                Uart16550::connect_input(&uart);
                self.acpi.serial.push((base, irq));
                let path = format!("isa-serial@{base:x}");
                self.add(path.clone(), &uart);
                Ok((path, Some(irq)))
            }
            "isa-parallel" => {
                let index = self.free_index(wanted, &PARALLEL.map(|p| p.0))?;
                let irq = wanted.irq(7)?;
                let base = wanted.ports(
                    self,
                    "iobase",
                    wanted.chosen("iobase").unwrap_or(PARALLEL[index].0.into()),
                    8,
                )?;
                let port = Parallel::new(self.fabric.gsi(irq, source), wanted.chardev()?);
                Parallel::map(&port, &self.map, &self.ports, base);
                self.acpi.parallel.push((base, irq));
                let path = format!("isa-parallel@{base:x}");
                self.add(path.clone(), &port);
                Ok((path, Some(irq)))
            }
            "isa-debugcon" => {
                let base = wanted.ports(self, "iobase", wanted.number("iobase").unwrap_or(0xe9), 1)?;
                let readback = wanted.number("readback").unwrap_or(0xe9) as u32;
                let console = DebugCon::new(wanted.chardev()?, readback);
                DebugCon::map(&console, &self.map, &self.ports, base);
                Ok(self.added("isa-debugcon", base, &console))
            }
            "isa-debug-exit" => {
                let size = wanted.number("iosize").unwrap_or(2);
                if size == 0 || size > 8 {
                    return Err(wanted.error(&format!("iosize={size}"), "it takes 1 to 8 ports"));
                }
                let base = wanted.ports(self, "iobase", wanted.number("iobase").unwrap_or(0x501), size)?;
                let port = IsaDebugExit::new(&self.requests);
                IsaDebugExit::map(&port, &self.map, &self.ports, base, size as u16);
                Ok(self.added("isa-debug-exit", base, &port))
            }
            "pc-testdev" => {
                for (base, count) in pc_testdev::PORTS {
                    wanted.ports(self, "ports", base, count)?;
                }
                let lines = (0..pc_testdev::LINES).map(|gsi| self.fabric.gsi(gsi, source)).collect();
                let device = PcTestDev::new(lines);
                PcTestDev::map(&device, &self.map, &self.ports, &self.memory);
                Ok(self.added("pc-testdev", 0xe0, &device))
            }
            "pvpanic" => {
                let base = wanted.ports(self, "ioport", wanted.number("ioport").unwrap_or(0x505), 1)?;
                let events = wanted.number("events").unwrap_or(3) as u8;
                let port = PvPanic::new(&self.requests, events);
                PvPanic::map(&port, &self.map, &self.ports, base);
                self.acpi.pvpanic.get_or_insert(base);
                Ok(self.added("pvpanic", base, &port))
            }
            "VGA" => {
                let at = self.pci_place(wanted)?;
                let mib = wanted.number("vgamem_mb").unwrap_or(16);
                if !mib.is_power_of_two() || mib > 256 {
                    let why = "video memory is a power of two of MiB, 1 to 256";
                    return Err(wanted.error(&format!("vgamem_mb={mib}"), why));
                }
                let mmio = wanted.property("mmio") != Some(Value::Bool(false));
                let rom = wanted.parts.roms.vga.as_deref();
                self.add_vga(at, &VgaOptions { vram: mib << 20, mmio, rom })?;
                Ok((format!("0000:00:{:02x}.{}/VGA", at >> 3, at & 7), None))
            }
            _ => Err(wanted.error("", "this board does not take such a device; -device help lists those")),
        }
    }

    fn added<T: anura_vmcore::Device>(
        &mut self,
        name: &str,
        base: u16,
        device: &anura_vmcore::DeviceCell<T>,
    ) -> (String, Option<u32>) {
        let path = format!("{name}@{base:x}");
        self.add(path.clone(), device);
        (path, None)
    }

    /// The index that was given, or the first whose usual ports are free.
    fn free_index(&self, wanted: &Wanted<'_>, usual: &[u16]) -> Result<usize, MachineError> {
        let last = usual.len() - 1;
        if let Some(index) = wanted.chosen("index") {
            let fits = usize::try_from(index).ok().filter(|n| *n <= last);
            return fits.ok_or_else(|| {
                wanted.error(&format!("index={index}"), &format!("the usual ports have index 0 to {last}"))
            });
        }
        let view = self.ports.view();
        let free = usual.iter().position(|base| view.find(u64::from(*base)).is_none());
        match free {
            Some(index) => Ok(index),
            // The ports are given, so any entry's other values do.
            None if wanted.chosen("iobase").is_some() => Ok(0),
            None => Err(wanted.error("", "all usual ports are taken; give iobase= and irq=")),
        }
    }

    /// The place on the PCI bus that was given, or the first free device number.
    fn pci_place(&self, wanted: &Wanted<'_>) -> Result<u8, MachineError> {
        let taken = self.pci.occupied();
        match wanted.number("addr") {
            Some(at) if !taken.contains(&(at as u8)) => Ok(at as u8),
            Some(at) => Err(wanted.error(
                &format!("addr={:02x}.{}", at >> 3, at & 7),
                "that place on the PCI bus is taken; leave addr= out or give a free one",
            )),
            None => {
                let free = self.pci.free_device().map(|device| devfn(device, 0));
                free.ok_or_else(|| {
                    wanted.error("", "all 32 places on the PCI bus are taken; remove a device")
                })
            }
        }
    }
}
