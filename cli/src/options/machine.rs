//! `-machine`, `-accel`, `-cpu`, `-smp`, `-m`, `-object`.

use anura_machine::config::*;

use crate::options::builder::Builder;
use crate::options::keyval::KeyValues;
use crate::options::{nearest, value};

type Res = Result<(), String>;

/// Engines by the names that `-accel` takes.
pub(crate) const ACCELERATORS: [&str; 6] = ["tcg", "interp", "interp-portable", "jit", "kvm", "verify"];
/// Most vCPUs of a `pc`.
const MAX_CPUS: u64 = 255;

pub(crate) fn machine(b: &mut Builder, kv: &mut KeyValues) -> Res {
    if let Some(name) = kv.text("type") {
        b.config.board.name = board_name(&name)?;
    }
    if let Some(list) = kv.text("accel") {
        b.machine_accel = Some(list);
    }
    let board = &mut b.config.board;
    for (key, field) in [
        ("hpet", &mut board.hpet),
        ("i8042", &mut board.i8042),
        ("smbus", &mut board.smbus),
        ("graphics", &mut board.graphics),
        ("dump-guest-core", &mut board.dump_guest_core),
        ("mem-merge", &mut board.mem_merge),
    ] {
        if let Some(on) = kv.switch(key)? {
            *field = on;
        }
    }
    let three = [("on", true), ("off", false), ("auto", true)];
    for (key, field) in [("acpi", &mut board.acpi), ("pic", &mut board.pic), ("pit", &mut board.pit)] {
        if let Some(on) = kv.word(key, &three)? {
            *field = on;
        }
    }
    absent(kv)?;
    board.memory_backend = kv.text("memory-backend").or(board.memory_backend.take());
    if let Some(size) = kv.size("max-ram-below-4g")? {
        if !(1 << 20..=0xe000_0000).contains(&size) {
            return Err("max-ram-below-4g must be between 1M and 3.5G".into());
        }
        board.max_ram_below_4g = Some(size);
    }
    let irqchip = [("on", "on"), ("off", "off"), ("split", "split")];
    for key in ["kernel-irqchip", "kernel_irqchip"] {
        if let Some(word) = kv.word(key, &irqchip)? {
            board.kernel_irqchip = Some(word.to_owned());
        }
    }
    if let Some(bits) = kv.word("smbios-entry-point-type", &[("32", 32), ("64", 64)])? {
        board.smbios_entry_point = bits;
    }
    board.oem_id = bounded(kv, "x-oem-id", 6)?.or(board.oem_id.take());
    board.oem_table_id = bounded(kv, "x-oem-table-id", 8)?.or(board.oem_table_id.take());
    let boot = &mut b.config.boot;
    boot.firmware = kv.text("firmware").map(Into::into).or(boot.firmware.take());
    boot.kernel = kv.text("kernel").map(Into::into).or(boot.kernel.take());
    boot.initrd = kv.text("initrd").map(Into::into).or(boot.initrd.take());
    if let Some(text) = kv.text("append") {
        b.append = Some(text);
    }
    let name = b.config.board.name.clone();
    kv.done().map_err(|e| match e.strip_prefix("Invalid parameter '") {
        Some(rest) => {
            let (key, hint) = rest.split_once('\'').unwrap_or((rest, ""));
            format!("Property '{name}-machine.{key}' not found{}", hint_only(hint))
        }
        None => e,
    })
}

/// A nearest name is of use; a list of thirty is not.
fn hint_only(hint: &str) -> &str {
    if hint.starts_with("; did you mean") { hint } else { "" }
}

/// Switches of things that this board does not have yet: off and auto are what it is.
fn absent(kv: &mut KeyValues) -> Res {
    kv.only("usb", false, "USB is not there yet")?;
    kv.only("sata", false, "SATA is not there yet")?;
    kv.only("nvdimm", false, "NVDIMMs are not there yet")?;
    kv.only("suppress-vmdesc", true, "saved machines describe themselves always").or(Ok::<_, String>(()))?;
    for (key, what) in [("smm", "system management mode"), ("vmport", "the VMware port")] {
        if kv.word(key, &[("on", true), ("off", false), ("auto", false)])? == Some(true) {
            return Err(format!("{key}=on: {what} is not there yet; use {key}=off"));
        }
    }
    if let Some(path) = kv.text("dtb") {
        return Err(format!("dtb={path}: a PC has no device tree"));
    }
    Ok(())
}

fn bounded(kv: &mut KeyValues, key: &'static str, max: usize) -> Result<Option<String>, String> {
    match kv.text(key) {
        Some(t) if t.len() > max || !t.is_ascii() => {
            Err(format!("Parameter '{key}' takes at most {max} ASCII characters"))
        }
        t => Ok(t),
    }
}

fn board_name(name: &str) -> Result<String, String> {
    match name {
        "none" => Ok("none".into()),
        "pc" => Ok("pc".into()),
        _ if name.strip_prefix("pc-i440fx-").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())) => {
            Ok("pc".into())
        }
        "q35" | "microvm" => Err(format!("machine type {name} is not there yet; use pc")),
        _ if name.starts_with("pc-q35-") => Err(format!("machine type {name} is not there yet; use pc")),
        _ => Err(match nearest(name, ["pc", "none", "q35", "microvm"]) {
            Some(near) => format!("unsupported machine type {name}; did you mean '{near}'?"),
            None => format!("unsupported machine type {name}; -machine help lists them"),
        }),
    }
}

/// Whether there is an engine of this name at all.
pub(crate) fn check_accel(name: &str) -> Res {
    if ACCELERATORS.contains(&name) {
        return Ok(());
    }
    let hint = match nearest(name, ACCELERATORS) {
        _ if name.contains(':') => {
            let each: Vec<String> = name.split(':').map(|n| format!("-accel {n}")).collect();
            format!("; for a list write {}", each.join(" "))
        }
        Some(near) => format!("; did you mean '{near}'?"),
        None => "; -accel help lists them".into(),
    };
    Err(format!("invalid accelerator {name}{hint}"))
}

/// `verify=A:B`: two engines in lockstep.
fn verify(b: &mut Builder, kv: &mut KeyValues, pair: String) -> Res {
    let bad = || {
        format!("verify={pair}: two engines with a colon between them are needed, as in verify=jit:interp")
    };
    let (lead, follow) = pair.split_once(':').ok_or_else(bad)?;
    for name in [lead, follow] {
        check_accel(name)?;
        if name == "verify" {
            return Err(bad());
        }
    }
    let mut properties = vec![("verify".to_owned(), pair.clone())];
    if let Some(n) = kv.number("every")? {
        if n == 0 {
            return Err("every=0: engines are compared after at least one instruction".into());
        }
        properties.push(("every".into(), n.to_string()));
    }
    if let Some(at) = kv.word("at", &[("blocks", "blocks")])? {
        properties.push(("at".into(), at.into()));
    }
    properties.extend(["file", "replay"].into_iter().filter_map(|key| Some((key.to_owned(), kv.text(key)?))));
    b.accel.push(AccelConfig { name: "verify".into(), properties });
    Ok(())
}

pub(crate) fn accel(b: &mut Builder, kv: &mut KeyValues) -> Res {
    if let Some(pair) = kv.text("verify") {
        return verify(b, kv, pair);
    }
    let name = kv.needed("accel")?;
    check_accel(&name)?;
    if name == "verify" {
        return Err("verify needs two engines, as in verify=jit:interp".into());
    }
    let mut properties = Vec::new();
    let irqchip = [("on", "on"), ("off", "off"), ("split", "split")];
    for key in
        ["thread", "tb-size", "split-wx", "one-insn-per-tb", "chaos", "kernel-irqchip", "kvm-shadow-mem"]
    {
        let value = match key {
            "kernel-irqchip" => kv.word(key, &irqchip)?.map(str::to_owned),
            _ => kv.text(key),
        };
        if let Some(v) = value {
            properties.push((key.to_owned(), v));
        }
    }
    if let Some(v) =
        kv.word("stepper", &[("kernels", "kernels"), ("failures", "failures"), ("off", "off")])?
    {
        if name != "kvm" {
            return Err(format!("stepper={v}: only -accel kvm has one"));
        }
        properties.push(("stepper".to_owned(), v.to_owned()));
    }
    for (key, v) in &properties {
        match key.as_str() {
            "thread" if v != "single" && v != "multi" => {
                return Err(format!("Invalid 'thread' setting {v}; use single or multi"));
            }
            "tb-size" | "chaos" | "kvm-shadow-mem" => {
                value::number(key, v)?;
            }
            "split-wx" | "one-insn-per-tb" => {
                value::switch(key, v)?;
            }
            _ => {}
        }
    }
    b.accel.push(AccelConfig { name, properties });
    Ok(())
}

pub(crate) fn enable_kvm(b: &mut Builder) {
    b.accel.push(AccelConfig::named("kvm"));
}

pub(crate) fn cpu(b: &mut Builder, text: &str) -> Res {
    if text.is_empty() {
        return Err("Parameter 'model' is missing; -cpu help lists them".into());
    }
    b.cpu = Some(text.to_owned());
    Ok(())
}

pub(crate) fn mem_path(b: &mut Builder, path: &str) -> Res {
    b.mem_path = Some(path.to_owned());
    Ok(())
}

pub(crate) fn mem_prealloc(b: &mut Builder) {
    b.mem_prealloc = true;
}

pub(crate) fn memory(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let mut shown = Vec::new();
    if let Some(text) = kv.text("size") {
        let bytes = value::size("size", &text, 20)?;
        if bytes == 0 {
            return Err("guest RAM of size 0; use for example -m 512M".into());
        }
        b.config.memory.size =
            bytes.checked_next_multiple_of(8192).ok_or("ram size too large; use for example -m 512M")?;
        shown.push(text);
    }
    if let Some(slots) = kv.number("slots")? {
        b.config.memory.slots = slots;
    }
    b.config.memory.max_size = kv.size("maxmem")?.or(b.config.memory.max_size);
    match (b.config.memory.slots, b.config.memory.max_size) {
        (1.., None) => return Err("slots specified but no maxmem".into()),
        (257.., _) => return Err("at most 256 slots".into()),
        _ => {}
    }
    b.memory_text = shown.pop().or(b.memory_text.take());
    Ok(())
}

/// What `-smp` gave; missing numbers follow from the others.
#[derive(Default)]
pub(crate) struct SmpRequest {
    text: String,
    cpus: u64,
    max_cpus: u64,
    sockets: u64,
    dies: u64,
    cores: u64,
    threads: u64,
}

pub(crate) fn smp(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let mut get = |key| match kv.number(key)? {
        Some(0) => Err("Invalid CPU topology: CPU topology parameters must be greater than zero".to_owned()),
        Some(n) if n > 0xffff => Err(format!("Invalid CPU topology: {key}={n} is out of range")),
        n => Ok(n.unwrap_or(0)),
    };
    let s = SmpRequest {
        cpus: get("cpus")?,
        max_cpus: get("maxcpus")?,
        sockets: get("sockets")?,
        dies: get("dies")?,
        cores: get("cores")?,
        threads: get("threads")?,
        text: String::new(),
    };
    let clusters = get("clusters")?;
    if clusters > 1 {
        return Err("clusters are not supported by this machine's CPU topology".into());
    }
    if s.dies > 1 {
        return Err("dies are not there yet; use sockets, cores and threads".into());
    }
    b.smp = s;
    let mut text = String::new();
    for (key, n) in [("sockets", b.smp.sockets), ("cores", b.smp.cores), ("threads", b.smp.threads)] {
        if n > 0 {
            text += &format!(",{key}={n}");
        }
    }
    b.smp.text = format!("-smp {}{text}", b.smp.cpus);
    Ok(())
}

impl SmpRequest {
    /// Fills in what was left out: cores before sockets, as machines have done since 6.2.
    pub(crate) fn resolve(&self, board: &str) -> Result<SmpConfig, String> {
        let Self { text, cpus, max_cpus, sockets, dies, cores, threads } = self;
        let (mut sockets, mut cores, mut threads) = (*sockets, *cores, *threads);
        let dies = (*dies).max(1);
        let known = (*max_cpus).max(if *max_cpus == 0 { *cpus } else { 0 });
        if known == 0 {
            (sockets, cores, threads) = (sockets.max(1), cores.max(1), threads.max(1));
        } else if cores == 0 {
            (sockets, threads) = (sockets.max(1), threads.max(1));
            cores = known / (sockets * dies * threads);
        } else if sockets == 0 {
            threads = threads.max(1);
            sockets = known / (dies * cores * threads);
        }
        if threads == 0 {
            threads = known / (sockets * dies * cores).max(1);
        }
        // Each factor is at most 0xffff, so four of them fit in 64 bits.
        let product = sockets * dies * cores * threads;
        let max = if known == 0 { product } else { known };
        let cpus = if *cpus == 0 { max } else { *cpus };
        if product != max {
            return Err(format!(
                "{text}: Invalid CPU topology: product of the hierarchy must match maxcpus: sockets ({sockets}) * dies ({dies}) * cores ({cores}) * threads ({threads}) != maxcpus ({max})"
            ));
        }
        if max < cpus {
            return Err(format!(
                "{text}: Invalid CPU topology: maxcpus ({max}) must be equal to or greater than cpus ({cpus})"
            ));
        }
        if max > MAX_CPUS {
            return Err(format!(
                "{text}: Invalid SMP CPUs {max}. The max CPUs supported by machine '{board}' is {MAX_CPUS}"
            ));
        }
        let n = |v: u64| v as u32;
        Ok(SmpConfig {
            cpus: n(cpus),
            max_cpus: n(max),
            sockets: n(sockets),
            dies: n(dies),
            cores: n(cores),
            threads: n(threads),
        })
    }
}

/// Objects of QEMU that are not there yet.
const LATER_OBJECTS: [&str; 14] = [
    "rng-random",
    "rng-builtin",
    "rng-egd",
    "iothread",
    "secret",
    "secret_keyring",
    "tls-creds-x509",
    "tls-creds-anon",
    "filter-dump",
    "filter-mirror",
    "throttle-group",
    "input-linux",
    "authz-simple",
    "can-bus",
];

pub(crate) fn object(b: &mut Builder, kv: &mut KeyValues) -> Res {
    let kind = kv.needed("qom-type")?;
    let Some(short) = ["ram", "memfd", "file"].into_iter().find(|k| kind == format!("memory-backend-{k}"))
    else {
        if LATER_OBJECTS.contains(&kind.as_str()) {
            return Err(format!("object type {kind} is not there yet"));
        }
        let names = ["memory-backend-ram", "memory-backend-memfd", "memory-backend-file"];
        let hint = match nearest(&kind, names) {
            Some(near) => format!("; did you mean '{near}'?"),
            None => "; -object help lists them".into(),
        };
        return Err(format!("Parameter 'qom-type' does not accept value '{kind}'{hint}"));
    };
    let id = kv.needed("id")?;
    if b.config.memory_backends.iter().any(|m| m.id == id) {
        return Err(format!("Duplicate ID '{id}' for object"));
    }
    let size = kv.text("size").ok_or("Parameter 'size' is missing")?;
    let size = value::size("size", &size, 0)?;
    if size == 0 {
        return Err("property 'size' of memory-backend doesn't take value '0'".into());
    }
    let path = kv.text("mem-path");
    if short == "file" && path.is_none() {
        return Err("Parameter 'mem-path' is missing".into());
    }
    if short != "file" && path.is_some() {
        return Err(format!("Invalid parameter 'mem-path' for {kind}; use memory-backend-file"));
    }
    let share = kv.switch("share")?.unwrap_or(short == "memfd");
    let backend = MemoryBackend {
        id,
        kind: short.into(),
        size,
        share,
        prealloc: kv.switch("prealloc")?.unwrap_or(false),
        path: path.map(Into::into),
        readonly: kv.switch("readonly")?.unwrap_or(false),
        hugetlb: kv.switch("hugetlb")?.unwrap_or(false),
        hugetlb_size: kv.size("hugetlbsize")?,
        discard_data: kv.switch("discard-data")?.unwrap_or(false),
    };
    if backend.hugetlb_size.is_some() && !backend.hugetlb {
        return Err("hugetlbsize requires hugetlb=on".into());
    }
    if backend.hugetlb && short != "memfd" {
        return Err("hugetlb=on is for memory-backend-memfd; give a file backend a hugetlbfs path".into());
    }
    if backend.hugetlb_size.is_some_and(|s| !s.is_power_of_two() || s < 4096) {
        return Err("hugetlbsize must be a power of two of at least 4k".into());
    }
    for key in
        ["merge", "dump", "seal", "policy", "host-nodes", "prealloc-threads", "align", "pmem", "reserve"]
    {
        kv.text(key);
    }
    b.config.memory_backends.push(backend);
    Ok(())
}
