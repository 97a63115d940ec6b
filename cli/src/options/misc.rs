//! The options that are a field or two: boot, clock, names, firmware data, actions, logs.

use std::path::PathBuf;

use anura_machine::config::*;

use crate::options::builder::Builder;
use crate::options::help::LOG_ITEMS;
use crate::options::keyval::KeyValues;
use crate::options::{nearest, value};

type Res = Result<(), String>;

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("expected a file name".into()) } else { Ok(text.into()) }
}

pub(crate) fn bios(b: &mut Builder, text: &str) -> Res {
    b.config.boot.firmware = Some(path(text)?);
    Ok(())
}

/// `-drive`: flash chips only, so far.
pub(crate) fn drive(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let path = kv.text("file");
    if kv.text("if").as_deref() != Some("pflash") {
        kv.rest();
        return Err("disks are not there yet; if=pflash is".into());
    }
    if kv.text("format").is_some_and(|format| format != "raw") {
        return Err("a flash chip's file has format=raw".into());
    }
    kv.text("id");
    let unit = kv.number("unit")?;
    let readonly = kv.switch("readonly")?.unwrap_or(false);
    let chips = &mut b.config.boot.flash;
    if chips.len() == 2 {
        return Err("the board has two flash chips".into());
    }
    let path = path.ok_or("a flash chip needs file=")?.into();
    // The units may come in any order.
    let at = if unit == Some(0) { 0 } else { chips.len() };
    chips.insert(at, FlashConfig { path, readonly });
    Ok(())
}

pub(crate) fn pflash(b: &mut Builder, text: &str) -> Res {
    let path = path(text)?;
    b.config.boot.flash.push(FlashConfig { path, readonly: false });
    Ok(())
}

pub(crate) fn kernel(b: &mut Builder, text: &str) -> Res {
    b.config.boot.kernel = Some(path(text)?);
    Ok(())
}

pub(crate) fn initrd(b: &mut Builder, text: &str) -> Res {
    b.config.boot.initrd = Some(path(text)?);
    Ok(())
}

pub(crate) fn append(b: &mut Builder, text: &str) -> Res {
    b.append = Some(text.to_owned());
    Ok(())
}

pub(crate) fn boot(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let boot = &mut b.config.boot;
    for (key, field) in [("order", &mut boot.order), ("once", &mut boot.once)] {
        if let Some(text) = kv.text(key) {
            drives(&text)?;
            *field = Some(text);
        }
    }
    boot.menu = kv.switch("menu")?.or(boot.menu);
    boot.splash = kv.text("splash").map(Into::into).or(boot.splash.take());
    boot.splash_time = kv.number("splash-time")?.or(boot.splash_time);
    if let Some(text) = kv.text("reboot-timeout") {
        let ms = text.parse::<i64>().ok().filter(|ms| (-1..=0xffff).contains(ms));
        boot.reboot_timeout =
            Some(ms.ok_or("reboot timeout is invalid, it should be a value between -1 and 65535")?);
    }
    boot.strict = kv.switch("strict")?.unwrap_or(boot.strict);
    Ok(())
}

fn drives(text: &str) -> Res {
    for (i, c) in text.char_indices() {
        if !('a'..='p').contains(&c) {
            return Err(format!(
                "Invalid boot device '{c}'; use a, b (floppy), c, d (disk, CD-ROM), n (network)"
            ));
        }
        if text[..i].contains(c) {
            return Err(format!("Boot device '{c}' was given twice"));
        }
    }
    Ok(())
}

pub(crate) fn rtc(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let rtc = &mut b.config.rtc;
    if let Some(text) = kv.text("base") {
        rtc.base =
            match text.as_str() {
                "utc" => RtcBase::Utc,
                "localtime" => RtcBase::Localtime,
                _ => RtcBase::Seconds(value::date(&text).ok_or(
                    "invalid datetime format; use utc, localtime, 2006-06-17T16:01:21 or 2006-06-17",
                )?),
            };
    }
    let clocks = [("host", RtcClock::Host), ("rt", RtcClock::Rt), ("vm", RtcClock::Vm)];
    rtc.clock = kv.word("clock", &clocks)?.unwrap_or(rtc.clock);
    rtc.slew = kv.word("driftfix", &[("none", false), ("slew", true)])?.unwrap_or(rtc.slew);
    Ok(())
}

pub(crate) fn localtime(b: &mut Builder) {
    b.config.rtc.base = RtcBase::Localtime;
}

pub(crate) fn icount(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let shift = kv.needed("shift")?;
    if shift == "auto" {
        return Err("shift=auto is not there yet; use a number 0 to 10".into());
    }
    let shift = shift.parse::<u8>().ok().filter(|s| *s <= 10);
    let shift = shift.ok_or("icount: Invalid shift value; use a number 0 to 10")?;
    let sleep = kv.switch("sleep")?.unwrap_or(true);
    let align = kv.switch("align")?.unwrap_or(false);
    if align && !sleep {
        return Err("align=on and sleep=off are incompatible".into());
    }
    if let Some(mode) = kv.text("rr") {
        return Err(format!("rr={mode}: record and replay are not there yet"));
    }
    b.config.icount = Some(Icount { shift, sleep, align });
    Ok(())
}

/// Longest name of a fw_cfg file.
const FW_CFG_NAME: usize = 55;

pub(crate) fn fw_cfg(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let (name, file, text) = (kv.text("name"), kv.text("file"), kv.text("string"));
    if let Some(id) = kv.text("gen_id") {
        return Err(format!("gen_id={id}: generated fw_cfg contents are not there yet"));
    }
    let (name, data) = match (name, file, text) {
        (Some(n), Some(f), None) => (n, FwCfgData::File(f.into())),
        (Some(n), None, Some(s)) => (n, FwCfgData::String(s)),
        _ => return Err("name, plus exactly one of file and string, are needed".into()),
    };
    if name.is_empty() || name.len() > FW_CFG_NAME {
        return Err(format!("name too long (max. {FW_CFG_NAME} char) or empty"));
    }
    if b.config.fw_cfg.iter().any(|i| i.name == name) {
        return Err(format!("name '{name}' is used twice"));
    }
    b.config.fw_cfg.push(FwCfgItem { name, data });
    Ok(())
}

/// Fields of the SMBIOS structures that can be set, by type.
#[rustfmt::skip]
const SMBIOS_FIELDS: &[(u8, &[&str])] = &[
    (0, &["vendor", "version", "date", "release", "uefi"]),
    (1, &["manufacturer", "product", "version", "serial", "uuid", "sku", "family"]),
    (2, &["manufacturer", "product", "version", "serial", "asset", "location"]),
    (3, &["manufacturer", "version", "serial", "asset", "sku"]),
    (4, &["sock_pfx", "manufacturer", "version", "serial", "asset", "part", "max-speed", "current-speed",
          "processor-id"]),
    (8, &["internal_reference", "external_reference", "connector_type", "port_type"]),
    (11, &["value", "path"]),
    (17, &["loc_pfx", "bank", "manufacturer", "serial", "asset", "part", "speed"]),
];

pub(crate) fn smbios(b: &mut Builder, kv: &mut KeyValues) -> Res {
    if let Some(file) = kv.text("file") {
        b.config.smbios.push(SmbiosEntry::File(file.into()));
        return Ok(());
    }
    let kind = kv.number("type")?.ok_or("Must specify either file= or type=")?;
    let Some(&(kind, names)) = SMBIOS_FIELDS.iter().find(|(k, _)| u64::from(*k) == kind) else {
        let known: Vec<String> = SMBIOS_FIELDS.iter().map(|(k, _)| k.to_string()).collect();
        return Err(format!(
            "type={kind}: don't know how to build fields for SMBIOS type {kind}; it can be {}",
            known.join(", ")
        ));
    };
    let fields = kv.rest();
    for (name, text) in &fields {
        if !names.contains(&name.as_str()) {
            return Err(format!("Invalid parameter '{name}'; type {kind} takes {}", names.join(", ")));
        }
        if name == "uuid" && value::uuid(text).is_none() {
            return Err("Invalid UUID".into());
        }
        if name == "uefi" {
            value::switch(name, text)?;
        }
    }
    b.config.smbios.push(SmbiosEntry::Fields { kind, fields });
    Ok(())
}

pub(crate) fn acpitable(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let (file, data) = (kv.text("file"), kv.text("data"));
    let mut fields = Vec::new();
    for (key, max) in [("sig", 4), ("oem_id", 6), ("oem_table_id", 8), ("asl_compiler_id", 4)] {
        if let Some(text) = kv.text(key) {
            if text.len() > max || text.is_empty() || (key == "sig" && text.len() != 4) {
                return Err(format!("Parameter '{key}' takes {max} characters"));
            }
            fields.push((key.to_owned(), text));
        }
    }
    for key in ["rev", "oem_rev", "asl_compiler_rev"] {
        if let Some(n) = kv.number(key)? {
            fields.push((key.to_owned(), n.to_string()));
        }
    }
    let data: Vec<PathBuf> = data.iter().flat_map(|d| d.split(':')).map(Into::into).collect();
    if file.is_some() != data.is_empty() {
        return Err("'-acpitable' requires one of 'data' or 'file'".into());
    }
    b.config.acpi_tables.push(AcpiTable { file: file.map(Into::into), data, fields });
    Ok(())
}

pub(crate) fn name(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let name = &mut b.config.name;
    name.guest = kv.text("guest").or(name.guest.take());
    name.process = kv.text("process").or(name.process.take());
    name.debug_threads = kv.switch("debug-threads")?.unwrap_or(name.debug_threads);
    Ok(())
}

pub(crate) fn uuid(b: &mut Builder, text: &str) -> Res {
    let uuid = value::uuid(text);
    let wrong = "failed to parse UUID string: wrong format, use 8-4-4-4-12 hexadecimal digits";
    b.config.uuid = Some(uuid.ok_or(wrong)?);
    Ok(())
}

pub(crate) fn action(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let a = &mut b.config.actions;
    let reboot = [("reset", RebootAction::Reset), ("shutdown", RebootAction::Shutdown)];
    a.reboot = kv.word("reboot", &reboot)?.unwrap_or(a.reboot);
    let shutdown = [("poweroff", ShutdownAction::Poweroff), ("pause", ShutdownAction::Pause)];
    a.shutdown = kv.word("shutdown", &shutdown)?.unwrap_or(a.shutdown);
    let panic = [
        ("pause", PanicAction::Pause),
        ("shutdown", PanicAction::Shutdown),
        ("exit-failure", PanicAction::ExitFailure),
        ("none", PanicAction::None),
    ];
    a.panic = kv.word("panic", &panic)?.unwrap_or(a.panic);
    let watchdog = ["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"].map(|w| (w, ()));
    kv.word("watchdog", &watchdog)?;
    Ok(())
}

pub(crate) fn no_reboot(b: &mut Builder) {
    b.config.actions.reboot = RebootAction::Shutdown;
}

pub(crate) fn no_shutdown(b: &mut Builder) {
    b.config.actions.shutdown = ShutdownAction::Pause;
}

pub(crate) fn start_paused(b: &mut Builder) {
    b.config.start_paused = true;
}

pub(crate) fn daemonize(b: &mut Builder) {
    b.config.daemonize = true;
}

pub(crate) fn nodefaults(b: &mut Builder) {
    b.config.no_defaults = true;
}

pub(crate) fn no_acpi(b: &mut Builder) {
    b.config.board.acpi = false;
}

pub(crate) fn no_hpet(b: &mut Builder) {
    b.config.board.hpet = false;
}

/// Options that ask for what is so anyway.
pub(crate) fn nothing(_: &mut Builder) {}

pub(crate) fn log_items(b: &mut Builder, text: &str) -> Res {
    for item in text.split(',') {
        if let Some(pattern) = item.strip_prefix("trace:") {
            trace_pattern(b, pattern)?;
            continue;
        }
        let known = LOG_ITEMS.iter().map(|(n, _)| *n);
        if item != "all" && !known.clone().any(|n| n == item) {
            let hint = match nearest(item, known) {
                Some(near) => format!("; did you mean '{near}'?"),
                None => "; -d help lists them".into(),
            };
            return Err(format!("unknown log item '{item}'{hint}"));
        }
        b.config.log.items.push(item.to_owned());
    }
    Ok(())
}

pub(crate) fn perf_map(b: &mut Builder) {
    b.config.log.perf_map = true;
}

pub(crate) fn jit_dump(b: &mut Builder) {
    b.config.log.jit_dump = true;
}

pub(crate) fn log_file(b: &mut Builder, text: &str) -> Res {
    b.config.log.file = Some(path(text)?);
    Ok(())
}

pub(crate) fn trace(b: &mut Builder, kv: &mut KeyValues) -> Res {
    if let Some(pattern) = kv.text("enable") {
        trace_pattern(b, &pattern)?;
    }
    if let Some(file) = kv.text("events") {
        let text = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {file}: {e}"))?;
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            trace_pattern(b, line)?;
        }
    }
    if let Some(file) = kv.text("file") {
        b.config.log.file = Some(path(&file)?);
    }
    Ok(())
}

fn trace_pattern(b: &mut Builder, pattern: &str) -> Res {
    let bare = pattern.strip_prefix('-').unwrap_or(pattern);
    let names = anura_vmcore::trace::ALL.iter().map(|e| e.name());
    if !bare.contains('*') && !names.clone().any(|n| n == bare) {
        let hint = match nearest(bare, names) {
            Some(near) => format!("; did you mean '{near}'?"),
            None => "; -trace help lists them".into(),
        };
        return Err(format!("trace event '{bare}' does not exist{hint}"));
    }
    b.config.log.trace.push(pattern.to_owned());
    Ok(())
}

pub(crate) fn msg(b: &mut Builder, kv: &mut KeyValues) -> Res {
    b.config.log.timestamps = kv.switch("timestamp")?.unwrap_or(b.config.log.timestamps);
    kv.switch("guest-name")?;
    Ok(())
}

pub(crate) fn pidfile(b: &mut Builder, text: &str) -> Res {
    b.config.pidfile = Some(path(text)?);
    Ok(())
}

pub(crate) fn data_dir(b: &mut Builder, text: &str) -> Res {
    b.config.data_dirs.push(path(text)?);
    Ok(())
}

pub(crate) fn keyboard(b: &mut Builder, text: &str) -> Res {
    #[rustfmt::skip]
    const LAYOUTS: [&str; 33] = [
        "ar", "bepo", "cz", "da", "de", "de-ch", "en-gb", "en-us", "es", "et", "fi", "fo", "fr", "fr-be", "fr-ca",
        "fr-ch", "hr", "hu", "is", "it", "ja", "lt", "lv", "mk", "nl", "no", "pl", "pt", "pt-br", "ru", "sl", "sv",
        "tr",
    ];
    if !LAYOUTS.contains(&text) {
        let hint = nearest(text, LAYOUTS)
            .map_or("; use for example en-us".into(), |n| format!("; did you mean '{n}'?"));
        return Err(format!("could not read keymap file: '{text}'{hint}"));
    }
    b.config.keyboard = Some(text.to_owned());
    Ok(())
}

pub(crate) fn incoming(b: &mut Builder, text: &str) -> Res {
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    match scheme {
        "file" | "exec" if !rest.is_empty() => {}
        "file" | "exec" => return Err(format!("expected {scheme}: and what to read")),
        "tcp" | "unix" | "fd" | "rdma" | "defer" => {
            return Err(format!("incoming {scheme} is not there yet; use file:PATH or exec:COMMAND"));
        }
        _ => return Err(format!("unknown migration protocol: {text}; use file:PATH or exec:COMMAND")),
    }
    b.config.incoming = Some(text.to_owned());
    Ok(())
}

pub(crate) fn seed(b: &mut Builder, text: &str) -> Res {
    let n = value::number("seed", text)?;
    b.config.seed = Some(u32::try_from(n).map_err(|_| "seed must be below 2^32".to_owned())?);
    Ok(())
}

pub(crate) fn overcommit(_: &mut Builder, kv: &mut KeyValues) -> Res {
    kv.only("mem-lock", false, "locking guest RAM is not there yet")?;
    kv.only("cpu-pm", false, "guest power states are not there yet")
}

pub(crate) fn sandbox(_: &mut Builder, kv: &mut KeyValues) -> Res {
    kv.only("enable", false, "the sandbox is not there yet; leave it out")?;
    for key in ["obsolete", "elevateprivileges", "spawn", "resourcecontrol"] {
        kv.text(key);
    }
    Ok(())
}
