//! Every kind of device with its typed, documented, defaulted properties: the one table that `-device`
//! parsing, `-device help`, `-global`, the JSON form and introspection read.
//!
//! A row that is not `user_creatable` is part of the board: its properties are set by `-global`. The
//! tables hold what can be configured; how a device is built from it is the board's business.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Under which heading `-device help` lists a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// Controllers, bridges and hubs.
    Bridge,
    /// USB.
    Usb,
    /// Disks and their controllers.
    Storage,
    /// Network.
    Network,
    /// Keyboards, mice, serial and parallel ports.
    Input,
    /// Graphics.
    Display,
    /// Sound.
    Sound,
    /// The rest.
    Misc,
    /// Watchdogs.
    Watchdog,
}

impl Category {
    /// All, in the order of the help.
    pub const ALL: [Category; 9] = [
        Self::Bridge,
        Self::Usb,
        Self::Storage,
        Self::Network,
        Self::Input,
        Self::Display,
        Self::Sound,
        Self::Misc,
        Self::Watchdog,
    ];

    /// The heading.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Bridge => "Controller/Bridge/Hub devices",
            Self::Usb => "USB devices",
            Self::Storage => "Storage devices",
            Self::Network => "Network devices",
            Self::Input => "Input devices",
            Self::Display => "Display devices",
            Self::Sound => "Sound devices",
            Self::Misc => "Misc devices",
            Self::Watchdog => "Watchdog devices",
        }
    }
}

/// The bus a device plugs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The ISA bus: ports and lines are properties.
    Isa,
    /// A PCI bus: `addr` and `bus` are understood besides the listed properties.
    Pci,
    /// Soldered to the board.
    System,
}

impl Bus {
    /// The name that `-device help` shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Isa => "ISA",
            Self::Pci => "PCI",
            Self::System => "System",
        }
    }

    /// The name of the board's bus of this kind, as `bus=` takes it.
    pub fn default_name(self) -> &'static str {
        match self {
            Self::Isa => "isa.0",
            Self::Pci => "pci.0",
            Self::System => "main-system-bus",
        }
    }
}

/// The type of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// on or off.
    Bool,
    /// A number of 8 bits.
    U8,
    /// A number of 16 bits.
    U16,
    /// A number of 32 bits.
    U32,
    /// A number of 64 bits.
    U64,
    /// A number of bytes, with suffixes.
    Size,
    /// Text.
    Str,
    /// The name of a chardev.
    Chardev,
    /// on, off or auto.
    OnOffAuto,
    /// One of these words.
    Enum(&'static [&'static str]),
    /// A PCI slot, with an optional function: `06.0` or `06`.
    PciAddr,
}

impl Kind {
    /// The name that help shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::Size => "size",
            Self::Str | Self::Chardev => "str",
            Self::OnOffAuto => "OnOffAuto",
            Self::Enum(_) => "enum",
            Self::PciAddr => "int32",
        }
    }
}

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// on or off.
    Bool(bool),
    /// Any number, also a PCI address as `slot * 8 + function`.
    Number(u64),
    /// Text, a chardev, or a word of an enumeration.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(true) => f.write_str("true"),
            Self::Bool(false) => f.write_str("false"),
            Self::Number(n) => n.fmt(f),
            Self::Text(t) => write!(f, "\"{t}\""),
        }
    }
}

/// A default, as tables can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// None: the property is unset.
    None,
    /// on or off.
    Bool(bool),
    /// A number.
    Number(u64),
    /// Text.
    Text(&'static str),
}

impl Default {
    /// The default as a value.
    pub fn value(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Bool(b) => Some(Value::Bool(b)),
            Self::Number(n) => Some(Value::Number(n)),
            Self::Text(t) => Some(Value::Text(t.to_owned())),
        }
    }
}

/// One property of a kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its value where none is given.
    pub default: Default,
    /// What it does.
    pub doc: &'static str,
}

/// One kind of device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceType {
    /// The name that `-device` takes.
    pub name: &'static str,
    /// Another name for it.
    pub alias: Option<&'static str>,
    /// Its bus.
    pub bus: Bus,
    /// Its heading.
    pub category: Category,
    /// What it is.
    pub description: &'static str,
    /// Whether `-device` may add one; the others come with the board.
    pub user_creatable: bool,
    /// Its properties, by name.
    pub properties: &'static [Property],
}

/// A value that a property does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// No such property.
    #[error("Property '{device}.{property}' not found")]
    Unknown {
        /// The device.
        device: String,
        /// What was asked for.
        property: String,
    },
    /// The value is of another type or out of range.
    #[error("Property '{device}.{property}' doesn't take value '{value}', expects {expects}")]
    Value {
        /// The device.
        device: String,
        /// The property.
        property: String,
        /// What was given.
        value: String,
        /// What would do.
        expects: String,
    },
}

const fn property(name: &'static str, kind: Kind, default: Default, doc: &'static str) -> Property {
    Property { name, kind, default, doc }
}

const fn number(name: &'static str, kind: Kind, default: u64, doc: &'static str) -> Property {
    property(name, kind, Default::Number(default), doc)
}

const fn switch(name: &'static str, default: bool, doc: &'static str) -> Property {
    property(name, Kind::Bool, Default::Bool(default), doc)
}

const CHARDEV: Property =
    property("chardev", Kind::Chardev, Default::None, "ID of a chardev to use as a backend");
/// The number that stands for "the usual one for this port".
const AUTO: u64 = 0xffff_ffff;

const fn device(
    name: &'static str,
    bus: Bus,
    category: Category,
    description: &'static str,
    user_creatable: bool,
    properties: &'static [Property],
) -> DeviceType {
    DeviceType { name, alias: None, bus, category, description, user_creatable, properties }
}

/// Every kind of device, by name within its category.
#[rustfmt::skip]
pub const ALL: &[DeviceType] = &[
    device("i440FX", Bus::Pci, Category::Bridge, "Host bridge", false, &[]),
    device("PIIX3", Bus::Pci, Category::Bridge, "ISA bridge", false, &[]),
    device("PIIX4_PM", Bus::Pci, Category::Bridge, "PM", false, &[
        number("disable_s3", Kind::U8, 0, "hide suspend to RAM from the guest"),
        number("disable_s4", Kind::U8, 0, "hide suspend to disk from the guest"),
        number("s4_val", Kind::U8, 2, "SLP_TYP of suspend to disk"),
        number("smb_io_base", Kind::U32, 0xb100, "ports of the SMBus controller"),
    ]),
    device("ioapic", Bus::System, Category::Misc, "I/O APIC", false, &[
        number("version", Kind::U32, 0x20, "version register"),
    ]),
    device("isa-pit", Bus::Isa, Category::Misc, "8254 interval timer", false, &[
        number("iobase", Kind::U32, 0x40, "first port"),
    ]),
    device("kvm-pit", Bus::Isa, Category::Misc, "8254 interval timer, KVM's name for it", false, &[
        property("lost_tick_policy", Kind::Enum(&["discard", "delay", "slew"]), Default::Text("delay"),
            "what becomes of ticks that could not be delivered"),
    ]),
    device("hpet", Bus::System, Category::Misc, "High precision event timer", false, &[
        number("hpet-intcap", Kind::U32, 0, "IOAPIC inputs that comparators may use"),
        switch("msi", false, "comparators can send messages"),
        number("timers", Kind::U8, 3, "number of comparators, 3 to 32"),
    ]),
    device("mc146818rtc", Bus::Isa, Category::Misc, "Real-time clock and CMOS RAM", false, &[
        number("base_year", Kind::U32, 1980, "year that the year register counts from"),
        number("iobase", Kind::U16, 0x70, "first port"),
        number("irq", Kind::U8, 8, "interrupt line"),
        property("lost_tick_policy", Kind::Enum(&["discard", "slew"]), Default::Text("discard"),
            "what becomes of ticks that could not be delivered"),
    ]),
    device("i8257", Bus::Isa, Category::Misc, "Two 8237 DMA controllers with page registers", false, &[]),
    device("port92", Bus::Isa, Category::Misc, "System control port A: A20 gate and reset", false, &[]),
    device("fw_cfg_io", Bus::System, Category::Misc, "Firmware configuration", false, &[
        switch("dma_enabled", true, "offer the DMA interface"),
        number("x-file-slots", Kind::U16, 32, "number of files"),
    ]),
    device("piix3-ide", Bus::Pci, Category::Storage, "IDE controller", false, &[]),
    device("isa-fdc", Bus::Isa, Category::Storage, "virtual floppy controller", false, &[
        number("dma", Kind::U32, 2, "DMA channel"),
        number("iobase", Kind::U32, 0x3f0, "first port"),
        number("irq", Kind::U32, 6, "interrupt line"),
    ]),
    device("i8042", Bus::Isa, Category::Input, "Keyboard and mouse controller", false, &[
        number("kbd-irq", Kind::U8, 1, "interrupt line of the keyboard"),
        number("mouse-irq", Kind::U8, 12, "interrupt line of the mouse"),
    ]),
    device("isa-parallel", Bus::Isa, Category::Input, "Parallel port", true, &[
        CHARDEV,
        number("index", Kind::U32, AUTO, "which of the usual three ports"),
        number("iobase", Kind::U32, AUTO, "first port"),
        number("irq", Kind::U32, 7, "interrupt line"),
    ]),
    device("isa-serial", Bus::Isa, Category::Input, "16550A serial port", true, &[
        number("baudbase", Kind::U32, 115_200, "speed at divisor 1"),
        CHARDEV,
        number("index", Kind::U32, AUTO, "which of the usual four ports"),
        number("iobase", Kind::U32, AUTO, "first port"),
        number("irq", Kind::U32, AUTO, "interrupt line"),
        switch("wakeup", false, "input wakes a suspended machine"),
    ]),
    device("VGA", Bus::Pci, Category::Display, "VGA with Bochs display extensions", true, &[
        property("addr", Kind::PciAddr, Default::None, "Slot and optional function number, example: 06.0 or 06"),
        switch("edid", true, "offer an EDID block"),
        switch("mmio", true, "registers also in memory"),
        switch("qemu-extended-regs", true, "byte order register"),
        number("vgamem_mb", Kind::U32, 16, "video memory in MiB"),
        number("xres", Kind::U32, 0, "preferred width"),
        number("yres", Kind::U32, 0, "preferred height"),
    ]),
    device("pc-testdev", Bus::Isa, Category::Misc, "Ports, memory and interrupt lines that test kernels poke", true, &[]),
    device("isa-debug-exit", Bus::Isa, Category::Misc, "A write of v ends the emulator with (v<<1)|1", true, &[
        number("iobase", Kind::U32, 0x501, "first port"),
        number("iosize", Kind::U32, 2, "number of ports"),
    ]),
    device("isa-debugcon", Bus::Isa, Category::Misc, "Debug console port", true, &[
        CHARDEV,
        number("iobase", Kind::U32, 0xe9, "port"),
        number("readback", Kind::U32, 0xe9, "what the port reads as"),
    ]),
    device("pvpanic", Bus::Isa, Category::Misc, "Tells the host of a guest panic", true, &[
        number("events", Kind::U8, 3, "events offered: 1 panicked, 2 crash loaded"),
        number("ioport", Kind::U16, 0x505, "port"),
    ]),
];

/// The kind of device of this name.
pub fn find(name: &str) -> Option<&'static DeviceType> {
    ALL.iter().find(|d| d.name == name || d.alias == Some(name))
}

impl DeviceType {
    /// The property of this name.
    pub fn property(&self, name: &str) -> Option<&'static Property> {
        self.properties.iter().find(|p| p.name == name)
    }

    /// Parses a value given as text, as on a command line.
    pub fn parse(&self, name: &str, text: &str) -> Result<Value, PropertyError> {
        let p = self.property(name).ok_or_else(|| self.unknown(name))?;
        p.parse(text).ok_or_else(|| self.mismatch(p, text))
    }

    /// Checks a value that has a type already, as from JSON.
    pub fn check(&self, name: &str, value: Value) -> Result<Value, PropertyError> {
        let p = self.property(name).ok_or_else(|| self.unknown(name))?;
        let ok = match (&value, p.kind) {
            (Value::Bool(_), Kind::Bool) => true,
            (Value::Number(n), kind) => kind.limit().is_some_and(|limit| *n <= limit),
            (Value::Text(t), _) => return self.parse(name, t),
            _ => false,
        };
        if ok { Ok(value) } else { Err(self.mismatch(p, &value.to_string())) }
    }

    fn unknown(&self, name: &str) -> PropertyError {
        PropertyError::Unknown { device: self.name.to_owned(), property: name.to_owned() }
    }

    fn mismatch(&self, p: &Property, value: &str) -> PropertyError {
        PropertyError::Value {
            device: self.name.to_owned(),
            property: p.name.to_owned(),
            value: value.to_owned(),
            expects: p.kind.expects(),
        }
    }
}

impl Kind {
    /// Largest number of a numeric type.
    fn limit(self) -> Option<u64> {
        match self {
            Self::U8 | Self::PciAddr => Some(0xff),
            Self::U16 => Some(0xffff),
            Self::U32 => Some(0xffff_ffff),
            Self::U64 | Self::Size => Some(u64::MAX),
            _ => None,
        }
    }

    /// What a value must be, for an error message.
    fn expects(self) -> String {
        match self {
            Self::Bool => "'on' or 'off'".into(),
            Self::OnOffAuto => "'on', 'off' or 'auto'".into(),
            Self::Enum(words) => format!("one of {}", words.join(", ")),
            Self::PciAddr => "a slot 0 to 1f with an optional function, as in 06.0".into(),
            Self::Size => "a size such as 64k or 16M".into(),
            Self::Str | Self::Chardev => "text".into(),
            _ => format!("a number from 0 to {}", self.limit().unwrap_or(0)),
        }
    }
}

impl Property {
    /// The value that `text` stands for.
    pub fn parse(&self, text: &str) -> Option<Value> {
        match self.kind {
            Kind::Bool => match text {
                "on" | "yes" | "true" | "y" => Some(Value::Bool(true)),
                "off" | "no" | "false" | "n" => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::OnOffAuto => matches!(text, "on" | "off" | "auto").then(|| Value::Text(text.to_owned())),
            Kind::Enum(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
            Kind::Str | Kind::Chardev => Some(Value::Text(text.to_owned())),
            Kind::PciAddr => {
                let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
                let slot = u64::from_str_radix(slot, 16).ok().filter(|s| *s < 32)?;
                let function = u64::from_str_radix(function, 16).ok().filter(|f| *f < 8)?;
                Some(Value::Number(slot * 8 + function))
            }
            Kind::Size => parse_size(text).map(Value::Number),
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => {
                parse_number(text).filter(|n| self.kind.limit().is_some_and(|l| *n <= l)).map(Value::Number)
            }
        }
    }
}

/// A number, decimal or with `0x`.
fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A number with an optional suffix k, M, G, T, P or E.
fn parse_size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'k' | 'K' => 10,
        'm' | 'M' => 20,
        'g' | 'G' => 30,
        't' | 'T' => 40,
        'p' | 'P' => 50,
        'e' | 'E' => 60,
        _ => return parse_number(text),
    };
    parse_number(&text[..text.len() - 1])?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_default_is_a_value_of_its_type() {
        for (i, d) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|e| e.name != d.name), "{} twice", d.name);
            for (j, p) in d.properties.iter().enumerate() {
                assert!(
                    d.properties[..j].iter().all(|q| q.name < p.name),
                    "{}.{} out of order",
                    d.name,
                    p.name
                );
                assert!(!p.doc.is_empty() && !d.description.is_empty());
                if let Some(value) = p.default.value() {
                    assert_eq!(d.check(p.name, value.clone()), Ok(value), "{}.{}", d.name, p.name);
                }
            }
        }
    }

    #[test]
    fn values_are_typed_and_bounded() {
        let exit = find("isa-debug-exit").unwrap();
        assert_eq!(exit.parse("iobase", "0xf4"), Ok(Value::Number(0xf4)));
        assert!(exit.parse("iobase", "0x100000000").is_err());
        assert!(exit.parse("iobase", "f4").is_err());
        let err = exit.parse("port", "1").unwrap_err().to_string();
        assert_eq!(err, "Property 'isa-debug-exit.port' not found");
        let vga = find("VGA").unwrap();
        assert_eq!(vga.parse("addr", "1f.7"), Ok(Value::Number(0xff)));
        assert!(vga.parse("addr", "20").is_err() && vga.parse("addr", "1.8").is_err());
        assert_eq!(vga.check("edid", Value::Text("off".into())), Ok(Value::Bool(false)));
        assert!(vga.check("edid", Value::Number(1)).is_err());
    }
}
