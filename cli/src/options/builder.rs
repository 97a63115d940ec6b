//! The configuration while options are applied, and what they mean together.

use anura_chardev::{ChardevConfig, ChardevKind};
use anura_devices::registry::Value;
use anura_machine::config::*;
use anura_x86::CpuModel;
use anura_x86::FeatureSet;

use crate::options::machine::SmpRequest;
use crate::options::{OptionError, chardev, nearest};

/// Start of the RAM that lies above 4 GiB when there is more than fits below.
const HOLE_START: u64 = 3 << 30;

/// What options have said so far.
#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) config: MachineConfig,
    /// `-m` with its text, for errors that only the end can see.
    pub(crate) memory_text: Option<String>,
    /// `-mem-path`.
    pub(crate) mem_path: Option<String>,
    /// `-mem-prealloc`.
    pub(crate) mem_prealloc: bool,
    /// `-smp`, resolved at the end.
    pub(crate) smp: SmpRequest,
    /// Engines of `-accel`.
    pub(crate) accel: Vec<AccelConfig>,
    /// Engines of `-machine accel=`.
    pub(crate) machine_accel: Option<String>,
    /// Words after `-serial`.
    pub(crate) serial: Vec<String>,
    /// Words after `-parallel`.
    pub(crate) parallel: Vec<String>,
    /// Words after `-debugcon`.
    pub(crate) debugcon: Vec<String>,
    /// Words after `-monitor`.
    pub(crate) monitor: Vec<String>,
    /// `-mon`, checked when all chardevs are known.
    pub(crate) mon: Vec<MonitorConfig>,
    /// `-nographic`.
    pub(crate) nographic: bool,
    /// `-vga`.
    pub(crate) vga: Option<Vga>,
    /// `-append` was given.
    pub(crate) append: Option<String>,
    /// `-cpu` was given.
    pub(crate) cpu: Option<String>,
}

fn fail<T>(message: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError(message.into()))
}

impl Builder {
    /// Adds a chardev under a name of its own.
    pub(crate) fn add_chardev(&mut self, config: ChardevConfig) -> Result<(), String> {
        if self.config.chardevs.iter().any(|c| c.id == config.id) {
            return Err(format!("Duplicate ID '{}' for chardev", config.id));
        }
        self.config.chardevs.push(config);
        Ok(())
    }

    /// Settles everything; what is wrong by now involves more than one option.
    pub(crate) fn finish(mut self) -> Result<MachineConfig, OptionError> {
        self.finish_accel()?;
        self.config.smp = self.smp.resolve(&self.config.board.name).map_err(OptionError)?;
        self.finish_front_ends()?;
        self.finish_vga();
        if self.nographic {
            // Firmware then shows its screen on the serial port.
            self.config.board.graphics = false;
        }
        self.finish_boot()?;
        self.finish_memory()?;
        self.check_references()?;
        Ok(self.config)
    }

    fn finish_accel(&mut self) -> Result<(), OptionError> {
        if let Some(list) = self.machine_accel.take() {
            if !self.accel.is_empty() {
                return fail("The -accel and \"-machine accel=\" options are incompatible");
            }
            if list.is_empty() {
                return fail("-machine accel=: no accelerator found; -accel help lists them");
            }
            for name in list.split(':') {
                super::machine::check_accel(name)
                    .map_err(|e| OptionError(format!("-machine accel={list}: {e}")))?;
                self.accel.push(AccelConfig::named(name));
            }
        }
        self.config.accel = std::mem::take(&mut self.accel);
        if self.config.accel.iter().any(|a| a.name == "verify") {
            // Engines are comparable in counted time only; and who compares wants an end, not a stopped machine.
            self.config.icount.get_or_insert(Icount { shift: 1, sleep: false, align: false });
            self.config.exit_on_failure = true;
        }
        Ok(())
    }

    /// Serial and parallel ports and monitors: what was asked for, then the defaults.
    fn finish_front_ends(&mut self) -> Result<(), OptionError> {
        let defaults = !self.config.no_defaults;
        let has = |b: &Self, driver: &str| b.config.devices.iter().any(|d| d.driver == driver);
        let default_serial = defaults && self.serial.is_empty() && !has(self, "isa-serial");
        let default_parallel = defaults && self.parallel.is_empty() && !has(self, "isa-parallel");
        let default_monitor = defaults && self.monitor.is_empty() && self.mon.is_empty();
        if self.nographic {
            self.config.display = Display::None;
            if default_parallel {
                self.parallel.push("null".into());
            }
            match (default_serial, default_monitor) {
                (true, true) => self.serial.push("mon:stdio".into()),
                (true, false) => self.serial.push("stdio".into()),
                (false, true) => self.monitor.push("stdio".into()),
                (false, false) => {}
            }
        } else {
            for (wanted, list) in [
                (default_serial, &mut self.serial),
                (default_parallel, &mut self.parallel),
                (default_monitor, &mut self.monitor),
            ] {
                if wanted {
                    list.push("vc".into());
                }
            }
        }
        let serial = std::mem::take(&mut self.serial);
        self.config.serial = self.ports("serial", &serial, 4)?;
        let parallel = std::mem::take(&mut self.parallel);
        self.config.parallel = self.ports("parallel", &parallel, 3)?;
        for (i, word) in std::mem::take(&mut self.debugcon).iter().enumerate() {
            let id = if i == 0 { "debugcon".to_owned() } else { format!("debugcon{i}") };
            let chardev = self.legacy(word, &id, true);
            let chardev = chardev.map_err(|e| OptionError(format!("-debugcon {word}: {e}")))?;
            let properties = chardev.into_iter().map(|id| ("chardev".to_owned(), Value::Text(id))).collect();
            let driver = "isa-debugcon".to_owned();
            self.config.devices.push(DeviceConfig { driver, id: None, bus: None, properties });
        }
        for (i, word) in std::mem::take(&mut self.monitor).iter().enumerate() {
            let id = format!("compat_monitor{i}");
            let at = |e: String| OptionError(format!("-monitor {word}: {e}"));
            if let Some(chardev) = self.legacy(word, &id, i > 0).map_err(at)? {
                let id = if chardev == id { Some(id) } else { None };
                self.config.monitors.push(MonitorConfig { id, chardev });
            }
        }
        for mon in std::mem::take(&mut self.mon) {
            if !self.config.chardevs.iter().any(|c| c.id == mon.chardev) {
                let (name, hint) = (&mon.chardev, self.chardev_hint(&mon.chardev));
                return fail(format!("-mon {name}: chardev \"{name}\" not found{hint}"));
            }
            self.config.monitors.push(mon);
        }
        Ok(())
    }

    /// The chardevs of a list of ports.
    fn ports(
        &mut self,
        kind: &str,
        words: &[String],
        limit: usize,
    ) -> Result<Vec<Option<String>>, OptionError> {
        let mut ports = Vec::new();
        for (i, word) in words.iter().enumerate() {
            let at = |e: String| OptionError(format!("-{kind} {word}: {e}"));
            if i >= limit && word != "none" {
                return Err(at(format!("the PC has {limit} {kind} ports")));
            }
            ports.push(self.legacy(word, &format!("{kind}{i}"), true).map_err(at)?);
        }
        while ports.last() == Some(&None) {
            ports.pop();
        }
        Ok(ports)
    }

    /// The chardev behind a word of `-serial`, `-parallel` or `-monitor`; `None` for `none`.
    fn legacy(&mut self, word: &str, id: &str, mon_allowed: bool) -> Result<Option<String>, String> {
        if word == "none" {
            return Ok(None);
        }
        if let Some(name) = word.strip_prefix("chardev:") {
            if !self.config.chardevs.iter().any(|c| c.id == name) {
                return Err(format!("chardev \"{name}\" not found{}", self.chardev_hint(name)));
            }
            return Ok(Some(name.to_owned()));
        }
        let (word, with_monitor) = match word.strip_prefix("mon:") {
            Some(rest) if mon_allowed => (rest, true),
            _ => (word, false),
        };
        let kind = chardev::legacy(word, with_monitor)?;
        self.add_chardev(ChardevConfig { mux: with_monitor, ..ChardevConfig::new(id, kind) })?;
        if with_monitor {
            self.config.monitors.push(MonitorConfig { id: None, chardev: id.to_owned() });
        }
        Ok(Some(id.to_owned()))
    }

    fn chardev_hint(&self, name: &str) -> String {
        nearest(name, self.config.chardevs.iter().map(|c| c.id.as_str()))
            .map(|n| format!("; did you mean '{n}'?"))
            .unwrap_or_default()
    }

    fn finish_vga(&mut self) {
        let given = self.config.devices.iter().any(|d| d.driver == "VGA");
        let default = if self.config.no_defaults || given || !self.config.board.graphics {
            Vga::None
        } else {
            Vga::Std
        };
        self.config.vga = self.vga.unwrap_or(default);
    }

    fn finish_boot(&mut self) -> Result<(), OptionError> {
        let boot = &mut self.config.boot;
        if boot.kernel.is_none() {
            if boot.initrd.is_some() {
                return fail("-initrd only allowed with -kernel option");
            }
            if self.append.is_some() {
                return fail("-append only allowed with -kernel option");
            }
        }
        if let Some(text) = self.append.take() {
            boot.append = text;
        }
        Ok(())
    }

    fn finish_memory(&mut self) -> Result<(), OptionError> {
        let given = self.memory_text.clone();
        let m = &mut self.config.memory;
        let shown = given.as_deref().map_or_else(|| "-m 128".to_owned(), |t| format!("-m {t}"));
        if let (Some(path), Some(id)) = (&self.mem_path, &self.config.board.memory_backend) {
            return fail(format!(
                "-mem-path {path}: -machine memory-backend={id} says where memory is; give one of them"
            ));
        }
        if self.mem_path.is_some() || self.mem_prealloc && self.config.board.memory_backend.is_none() {
            // As QEMU does: a backend of the board's own.
            let path = self.mem_path.take();
            self.config.memory_backends.push(MemoryBackend {
                id: "pc.ram".into(),
                kind: if path.is_some() { "file" } else { "ram" }.into(),
                size: m.size,
                share: false,
                prealloc: self.mem_prealloc,
                path: path.map(Into::into),
                readonly: false,
                hugetlb: false,
                hugetlb_size: None,
                discard_data: false,
            });
            self.config.board.memory_backend = Some("pc.ram".into());
        }
        if let Some(id) = &self.config.board.memory_backend {
            let Some(backend) = self.config.memory_backends.iter().find(|b| b.id == *id) else {
                return fail(format!(
                    "-machine memory-backend={id}: no -object memory-backend-* has this id"
                ));
            };
            match given {
                None => m.size = backend.size,
                Some(_) if m.size != backend.size => {
                    return fail(format!(
                        "{shown}: size {} differs from size {} of memory backend '{id}'",
                        m.size, backend.size
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(max) = m.max_size {
            if max < m.size {
                return fail(format!("{shown}: maxmem {max} is smaller than size {}", m.size));
            }
            if max > m.size {
                return fail(format!(
                    "{shown}: memory hot plug is not there yet; leave out maxmem and slots"
                ));
            }
        }
        let cpu = self.cpu.clone().unwrap_or_else(|| "qemu64".into());
        let parsed = CpuModel::parse(&cpu, &FeatureSet::available());
        let model = parsed.map_err(|e| OptionError(format!("-cpu {cpu}: {e}{}", cpu_hint(&cpu))))?.model;
        self.config.cpu = cpu;
        let hole = self.config.board.max_ram_below_4g.unwrap_or(HOLE_START).min(HOLE_START);
        let top = if m.size > hole { (4u64 << 30).saturating_add(m.size - hole) } else { m.size };
        let bits = u32::from(model.phys_bits);
        if top > 1u64.checked_shl(bits).unwrap_or(u64::MAX) {
            let most = (1u64 << bits) - (4 << 30) + hole;
            return fail(format!(
                "{shown}: guest RAM would end at {top:#x}, beyond the {bits} physical address bits of CPU model {}; use at most {}M, or more bits by -cpu {},phys-bits=N",
                model.name,
                most >> 20,
                model.name
            ));
        }
        Ok(())
    }

    /// Names that one option gives and another uses.
    fn check_references(&self) -> Result<(), OptionError> {
        let c = &self.config;
        for d in &c.devices {
            let Some(name) = d.text("chardev") else { continue };
            if !c.chardevs.iter().any(|c| c.id == name) {
                return fail(format!(
                    "-device {}: Property '{}.chardev' can't find value '{name}'{}",
                    d.driver,
                    d.driver,
                    self.chardev_hint(&name)
                ));
            }
        }
        let on_stdio = |c: &&ChardevConfig| matches!(c.kind, ChardevKind::Stdio { .. });
        if let Some(second) = c.chardevs.iter().filter(on_stdio).nth(1) {
            return fail(format!(
                "chardev '{}': cannot use stdio by multiple character devices; share one with mux=on",
                second.id
            ));
        }
        self.check_users()
    }

    /// A chardev without `mux=on` has one user.
    fn check_users(&self) -> Result<(), OptionError> {
        let c = &self.config;
        let ports = c.serial.iter().chain(&c.parallel).flatten().cloned();
        let devices = c.devices.iter().filter_map(|d| d.text("chardev"));
        let users: Vec<String> =
            ports.chain(devices).chain(c.monitors.iter().map(|m| m.chardev.clone())).collect();
        for chardev in c.chardevs.iter().filter(|c| !c.mux) {
            if users.iter().filter(|u| **u == chardev.id).count() > 1 {
                return fail(format!(
                    "chardev '{}' is already in use; give it mux=on to share it",
                    chardev.id
                ));
            }
        }
        Ok(())
    }
}

fn cpu_hint(cpu: &str) -> String {
    let name = cpu.split(',').next().unwrap_or(cpu);
    if name == "host" || CpuModel::names().any(|n| n == name) {
        return String::new();
    }
    match nearest(name, CpuModel::names()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None => "; -cpu help lists them".into(),
    }
}
