//! What to build and how to run it, typed and complete: the command line ends in a [`MachineConfig`],
//! and tests build one without arguments.
//!
//! Values that were not given have their defaults here already, so nothing below needs to know what
//! the user typed. Lists keep the order of the command line, which decides slots and indices.

use std::path::PathBuf;

use anura_chardev::ChardevConfig;
use anura_devices::registry::Value;
use serde::{Deserialize, Serialize};

/// A machine to build and run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The board.
    pub board: Board,
    /// Engines to try, best first.
    pub accel: Vec<AccelConfig>,
    /// `-cpu` as given: model and properties, parsed by `CpuModel::parse`.
    pub cpu: String,
    /// Processors.
    pub smp: SmpConfig,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// `-object memory-backend-*`.
    pub memory_backends: Vec<MemoryBackend>,
    /// What to boot.
    pub boot: BootConfig,
    /// `-device`, in order.
    pub devices: Vec<DeviceConfig>,
    /// `-global` and `-set`, in order.
    pub globals: Vec<Global>,
    /// All chardevs, also those that `-serial` and its kin made.
    pub chardevs: Vec<ChardevConfig>,
    /// The chardev of each serial port; a port without one is not there.
    pub serial: Vec<Option<String>>,
    /// The chardev of each parallel port.
    pub parallel: Vec<Option<String>>,
    /// Monitors.
    pub monitors: Vec<MonitorConfig>,
    /// The graphics card.
    pub vga: Vga,
    /// Where pictures go.
    pub display: Display,
    /// `-k`: keyboard layout.
    pub keyboard: Option<String>,
    /// The real-time clock.
    pub rtc: RtcConfig,
    /// Counted time.
    pub icount: Option<Icount>,
    /// `-fw_cfg`.
    pub fw_cfg: Vec<FwCfgItem>,
    /// `-smbios`.
    pub smbios: Vec<SmbiosEntry>,
    /// `-acpitable`.
    pub acpi_tables: Vec<AcpiTable>,
    /// `-name`.
    pub name: Name,
    /// `-uuid`.
    pub uuid: Option<String>,
    /// What happens at the end of a guest.
    pub actions: Actions,
    /// `-S`: do not run until told.
    pub start_paused: bool,
    /// `-incoming`: wait for a saved machine.
    pub incoming: Option<String>,
    /// Logs and traces.
    pub log: LogConfig,
    /// `-pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `-daemonize`.
    pub daemonize: bool,
    /// `-nodefaults`.
    pub no_defaults: bool,
    /// `-echr`: the multiplexer's escape key.
    pub escape_key: u8,
    /// `-seed`.
    pub seed: Option<u32>,
    /// Where firmware files are looked for, `-L` first.
    pub data_dirs: Vec<PathBuf>,
    /// An engine that cannot go on ends the program with code 1 instead of stopping the machine.
    #[serde(default)]
    pub exit_on_failure: bool,
}

/// The board and its switches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Board {
    /// `pc` or `none`.
    pub name: String,
    /// ACPI tables and power management.
    pub acpi: bool,
    /// High precision event timer.
    pub hpet: bool,
    /// Keyboard controller.
    pub i8042: bool,
    /// 8259A pair.
    pub pic: bool,
    /// 8254.
    pub pit: bool,
    /// SMBus.
    pub smbus: bool,
    /// Graphics at all.
    pub graphics: bool,
    /// Guest RAM in core dumps of the emulator.
    pub dump_guest_core: bool,
    /// Host may merge equal pages.
    pub mem_merge: bool,
    /// `memory-backend=`: the id of a backend for all RAM.
    pub memory_backend: Option<String>,
    /// Largest amount of RAM below 4 GiB.
    pub max_ram_below_4g: Option<u64>,
    /// `kernel-irqchip=`: `on`, `off` or `split`.
    pub kernel_irqchip: Option<String>,
    /// Entry point of SMBIOS: 32 or 64.
    pub smbios_entry_point: u8,
    /// OEM id in ACPI tables.
    pub oem_id: Option<String>,
    /// OEM table id in ACPI tables.
    pub oem_table_id: Option<String>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            name: "pc".into(),
            acpi: true,
            hpet: true,
            i8042: true,
            pic: true,
            pit: true,
            smbus: true,
            graphics: true,
            dump_guest_core: true,
            mem_merge: true,
            memory_backend: None,
            max_ram_below_4g: None,
            kernel_irqchip: None,
            smbios_entry_point: 32,
            oem_id: None,
            oem_table_id: None,
        }
    }
}

/// An engine by the name the user gave it, with its properties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccelConfig {
    /// `interp`, `tcg`, `jit`, `kvm`.
    pub name: String,
    /// Properties, in order.
    pub properties: Vec<(String, String)>,
}

impl AccelConfig {
    /// An engine with no properties.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), properties: vec![] }
    }
}

/// Processors and their grouping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmpConfig {
    /// Present at start.
    pub cpus: u32,
    /// Possible at all.
    pub max_cpus: u32,
    /// Packages.
    pub sockets: u32,
    /// Dies of a package.
    pub dies: u32,
    /// Cores of a die.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Default for SmpConfig {
    fn default() -> Self {
        Self { cpus: 1, max_cpus: 1, sockets: 1, dies: 1, cores: 1, threads: 1 }
    }
}

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Bytes at start.
    pub size: u64,
    /// Slots for hot plug.
    pub slots: u64,
    /// Bytes with all slots full.
    pub max_size: Option<u64>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { size: 128 << 20, slots: 0, max_size: None }
    }
}

/// `-object memory-backend-*`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryBackend {
    /// Its name.
    pub id: String,
    /// `ram`, `memfd` or `file`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Seen by other processes.
    pub share: bool,
    /// All taken at start.
    pub prealloc: bool,
    /// File or directory.
    pub path: Option<PathBuf>,
    /// Read-only file.
    pub readonly: bool,
    /// Huge pages of a memfd.
    pub hugetlb: bool,
    /// Their size.
    pub hugetlb_size: Option<u64>,
    /// Drop contents at the end.
    pub discard_data: bool,
}

/// What to boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BootConfig {
    /// `-bios`.
    pub firmware: Option<PathBuf>,
    /// `-drive if=pflash`: flash chips with firmware, the first ends at 4 GiB.
    pub flash: Vec<FlashConfig>,
    /// `-kernel`.
    pub kernel: Option<PathBuf>,
    /// `-initrd`.
    pub initrd: Option<PathBuf>,
    /// `-append`.
    pub append: String,
    /// `-boot order=`: drives a to p.
    pub order: Option<String>,
    /// `-boot once=`.
    pub once: Option<String>,
    /// `-boot menu=`.
    pub menu: Option<bool>,
    /// `-boot splash=`.
    pub splash: Option<PathBuf>,
    /// `-boot splash-time=`, ms.
    pub splash_time: Option<u64>,
    /// `-boot reboot-timeout=`, ms.
    pub reboot_timeout: Option<i64>,
    /// `-boot strict=`.
    pub strict: bool,
}

/// A flash chip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashConfig {
    /// Its contents.
    pub path: PathBuf,
    /// The guest cannot change them.
    pub readonly: bool,
}

/// `-device`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Kind, a name of the registry.
    pub driver: String,
    /// `id=`.
    pub id: Option<String>,
    /// `bus=`.
    pub bus: Option<String>,
    /// Properties that were given, checked by the registry.
    pub properties: Vec<(String, Value)>,
}

impl DeviceConfig {
    /// The value of a property: given, or else the registry's default.
    pub fn property(&self, name: &str) -> Option<Value> {
        let given = self.properties.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        given.or_else(|| anura_devices::registry::find(&self.driver)?.property(name)?.default.value())
    }

    /// A numeric property.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.property(name)? {
            Value::Number(n) => Some(n),
            _ => None,
        }
    }

    /// A text property.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.property(name)? {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }
}

/// `-global driver.property=value`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Global {
    /// Kind of device.
    pub driver: String,
    /// Its property.
    pub property: String,
    /// The value, checked by the registry where it knows the device.
    pub value: Value,
}

/// A monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorConfig {
    /// Its name.
    pub id: Option<String>,
    /// Its chardev.
    pub chardev: String,
}

/// The graphics card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vga {
    /// No card.
    None,
    /// VGA with Bochs extensions.
    Std,
}

/// Where pictures go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// Not said: the best there is.
    Default,
    /// Nowhere.
    None,
}

/// The real-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcConfig {
    /// Where it starts.
    pub base: RtcBase,
    /// What drives it.
    pub clock: RtcClock,
    /// Lost ticks are caught up.
    pub slew: bool,
}

impl Default for RtcConfig {
    fn default() -> Self {
        Self { base: RtcBase::Utc, clock: RtcClock::Host, slew: false }
    }
}

/// Where the clock starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RtcBase {
    /// The host's time in UTC.
    Utc,
    /// The host's time in its zone.
    Localtime,
    /// Seconds since 1970.
    Seconds(i64),
}

/// What drives the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RtcClock {
    /// The host's time, also while the guest stands.
    Host,
    /// The host's monotonic time.
    Rt,
    /// Guest time.
    Vm,
}

/// Counted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icount {
    /// An instruction takes 2^shift ns.
    pub shift: u8,
    /// Idle guests wait for real time.
    pub sleep: bool,
    /// Held to real time.
    pub align: bool,
}

/// `-fw_cfg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FwCfgItem {
    /// Its name in the directory.
    pub name: String,
    /// What is in it.
    pub data: FwCfgData,
}

/// Contents of a fw_cfg file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FwCfgData {
    /// The bytes of a file.
    File(PathBuf),
    /// Text without a final NUL.
    String(String),
}

/// `-smbios`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SmbiosEntry {
    /// A file with a whole structure.
    File(PathBuf),
    /// Fields of a structure that the machine makes.
    Fields {
        /// Its type.
        kind: u8,
        /// Field names and values.
        fields: Vec<(String, String)>,
    },
}

/// `-acpitable`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcpiTable {
    /// Files with a whole table each (header included).
    pub file: Option<PathBuf>,
    /// Files with bodies, joined under a header.
    pub data: Vec<PathBuf>,
    /// Header fields: sig, rev, oem_id, oem_table_id, oem_rev, asl_compiler_id, asl_compiler_rev.
    pub fields: Vec<(String, String)>,
}

/// `-name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// The guest's name.
    pub guest: Option<String>,
    /// The process's name.
    pub process: Option<String>,
    /// Threads are named.
    pub debug_threads: bool,
}

/// What happens at the end of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// The guest reboots.
    pub reboot: RebootAction,
    /// The guest powers off.
    pub shutdown: ShutdownAction,
    /// The guest panics.
    pub panic: PanicAction,
}

impl Default for Actions {
    fn default() -> Self {
        Self { reboot: RebootAction::Reset, shutdown: ShutdownAction::Poweroff, panic: PanicAction::Shutdown }
    }
}

/// The guest reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootAction {
    /// It starts again.
    Reset,
    /// The emulator ends: `-no-reboot`.
    Shutdown,
}

/// The guest powers off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownAction {
    /// The emulator ends.
    Poweroff,
    /// The machine stops and stays: `-no-shutdown`.
    Pause,
}

/// The guest panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PanicAction {
    /// The machine stops and stays.
    Pause,
    /// The emulator ends.
    Shutdown,
    /// The emulator ends with an error.
    ExitFailure,
    /// Nothing.
    None,
}

/// Logs and traces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogConfig {
    /// `-d` items.
    pub items: Vec<String>,
    /// `-D` file.
    pub file: Option<PathBuf>,
    /// `-trace` patterns.
    pub trace: Vec<String>,
    /// `-msg timestamp=on`.
    pub timestamps: bool,
    /// `-perfmap`.
    pub perf_map: bool,
    /// `-jitdump`.
    pub jit_dump: bool,
}

impl Default for MachineConfig {
    /// A `pc` with everything at its default, no front ends, and no engine chosen.
    fn default() -> Self {
        Self {
            board: Board::default(),
            accel: vec![],
            cpu: "qemu64".into(),
            smp: SmpConfig::default(),
            memory: MemoryConfig::default(),
            memory_backends: vec![],
            boot: BootConfig::default(),
            devices: vec![],
            globals: vec![],
            chardevs: vec![],
            serial: vec![],
            parallel: vec![],
            monitors: vec![],
            vga: Vga::Std,
            display: Display::Default,
            keyboard: None,
            rtc: RtcConfig::default(),
            icount: None,
            fw_cfg: vec![],
            smbios: vec![],
            acpi_tables: vec![],
            name: Name::default(),
            uuid: None,
            actions: Actions::default(),
            start_paused: false,
            incoming: None,
            log: LogConfig::default(),
            pidfile: None,
            daemonize: false,
            no_defaults: false,
            escape_key: 1,
            seed: None,
            data_dirs: vec![],
            exit_on_failure: false,
        }
    }
}
