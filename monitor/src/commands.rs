//! The table of commands, and running a line by it.

use anura_machine::control::MachineCheck;
use anura_memory::{RangeKind, Requester, Width};

use crate::args::Args;
use crate::dump::{Format, Source};
use crate::{Session, info};

/// What a command prints, or why it could not: one line.
pub(crate) type Output = Result<String, String>;

/// A command.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) alias: Option<&'static str>,
    /// Its parameters, as help shows them.
    pub(crate) params: &'static str,
    pub(crate) help: &'static str,
    pub(crate) run: fn(&mut Session, &mut Args<'_>) -> Output,
}

const fn row(
    name: &'static str,
    alias: Option<&'static str>,
    params: &'static str,
    help: &'static str,
    run: fn(&mut Session, &mut Args<'_>) -> Output,
) -> Command {
    Command { name, alias, params, help, run }
}

/// All commands, by name.
#[rustfmt::skip]
const TABLE: &[Command] = &[
    row("accel", None, "[name]", "show the engine that runs the CPUs, or let another one run them from here on", accel),
    row("cont", Some("c"), "", "resume emulation", cont),
    row("cpu", None, "index", "set the default CPU", cpu),
    row("gpa2hpa", None, "addr", "print the host physical address corresponding to a guest physical address", gpa2hpa),
    row("gpa2hva", None, "addr", "print the host virtual address corresponding to a guest physical address", gpa2hva),
    row("gva2gpa", None, "addr", "print the guest physical address corresponding to a guest virtual address", gva2gpa),
    row("help", Some("?"), "[cmd]", "show the help", help),
    row("i", None, "/fmt addr", "I/O port read", port_in),
    row("info", None, "[subcommand]", "show various information about the system state", show),
    row("log", None, "item1[,...]", "activate logging of the specified items", log),
    row("mce", None, "[-b] cpu bank status mcgstatus addr misc", "inject a machine check (-b: to all other CPUs too)", mce),
    row("memsave", None, "addr size file", "save to disk virtual memory dump starting at 'addr' of size 'size'", memsave),
    row("migrate", None, "[-d] uri", "save the stopped machine to file:PATH or exec:COMMAND", migrate),
    row("nmi", None, "", "inject an NMI", nmi),
    row("o", None, "/fmt addr value", "I/O port write", port_out),
    row("pmemsave", None, "addr size file", "save to disk physical memory dump starting at 'addr' of size 'size'", pmemsave),
    row("print", Some("p"), "/fmt expr", "print expression value (use $reg for CPU register access)", print),
    row("quit", Some("q"), "", "quit the emulator", quit),
    row("sendkey", None, "keys [hold_ms]", "send keys to the VM (e.g. 'sendkey ctrl-alt-f1')", sendkey),
    row("stop", Some("s"), "", "stop emulation", stop),
    row("sum", None, "addr size", "compute the checksum of a memory region", sum),
    row("system_powerdown", None, "", "send system power down event", system_powerdown),
    row("system_reset", None, "", "reset the system", system_reset),
    row("trace-event", None, "name on|off", "changes status of a specific trace event", trace_event),
    row("x", None, "/fmt addr", "virtual memory dump starting at 'addr'", x),
    row("xp", None, "/fmt addr", "physical memory dump starting at 'addr'", xp),
];

fn find<'t>(table: &'t [Command], name: &str) -> Option<&'t Command> {
    table.iter().find(|c| c.name == name || c.alias == Some(name))
}

/// Runs a line.
pub(crate) fn run(session: &mut Session, line: &str) -> String {
    let line = line.trim();
    if line.is_empty() {
        return String::new();
    }
    session.history.push(line.to_owned());
    if session.history.len() > 64 {
        session.history.remove(0);
    }
    let end = line.find([' ', '/']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end.max(1));
    let Some(command) = find(TABLE, name) else { return format!("unknown command: '{name}'\n") };
    let mut args = Args::new(rest);
    let result = (command.run)(session, &mut args).and_then(|out| {
        // What took effect is told even if the line had more on it than it should.
        args.done(command.name).map(|()| out)
    });
    match result {
        Ok(out) => out,
        Err(e) if e.starts_with("unknown command") => format!("{e}\n"),
        Err(e) => format!("{e}\nTry \"help {}\" for more information\n", command.name),
    }
}

/// What the end of a line could become: the length of its last word, and the candidates.
pub(crate) fn complete(before: &str) -> (usize, Vec<String>) {
    let (head, word) = before.rsplit_once(' ').unwrap_or(("", before));
    let names = |table: &[Command]| {
        let found = table.iter().map(|c| c.name).filter(|n| n.starts_with(word));
        found.map(str::to_owned).collect()
    };
    let found = match head.trim() {
        "" | "help" | "?" => names(TABLE),
        "info" | "help info" => names(info::TABLE),
        "trace-event" => {
            let all = anura_vmcore::trace::ALL.iter().map(|e| e.name());
            all.filter(|n| n.starts_with(word)).map(str::to_owned).collect()
        }
        h if h.starts_with("trace-event ") => {
            ["on", "off"].into_iter().filter(|n| n.starts_with(word)).map(str::to_owned).collect()
        }
        _ => vec![],
    };
    (word.chars().count(), found)
}

fn help_line(prefix: &str, c: &Command) -> String {
    let alias = c.alias.map(|a| format!("|{a}")).unwrap_or_default();
    format!("{prefix}{}{alias} {} -- {}\n", c.name, c.params, c.help)
}

fn help(_: &mut Session, args: &mut Args<'_>) -> Output {
    match (args.word(), args.word()) {
        (None, _) => Ok(TABLE.iter().map(|c| help_line("", c)).collect()),
        (Some("info"), None) => Ok(info::TABLE.iter().map(|c| help_line("info ", c)).collect()),
        (Some("info"), Some(name)) => match find(info::TABLE, name) {
            Some(c) => Ok(help_line("info ", c)),
            None => Err(format!("unknown command: 'info {name}'")),
        },
        (Some(name), _) => match find(TABLE, name) {
            Some(c) => Ok(help_line("", c)),
            None => Err(format!("unknown command: '{name}'")),
        },
    }
}

fn show(s: &mut Session, args: &mut Args<'_>) -> Output {
    let Some(name) = args.word() else {
        return Ok(info::TABLE.iter().map(|c| help_line("info ", c)).collect());
    };
    let command = find(info::TABLE, name).ok_or_else(|| format!("unknown command: 'info {name}'"))?;
    (command.run)(s, args)
}

/// A request that prints nothing when it is granted.
fn silent<E: ToString>(result: Result<(), E>) -> Output {
    // A refusal of the machine is an answer, not a mistake of the line.
    Ok(result.err().map(|e| format!("Error: {}\n", e.to_string())).unwrap_or_default())
}

fn cont(s: &mut Session, _: &mut Args<'_>) -> Output {
    silent(s.machine.cont())
}

fn stop(s: &mut Session, _: &mut Args<'_>) -> Output {
    silent(s.machine.stop())
}

fn system_reset(s: &mut Session, _: &mut Args<'_>) -> Output {
    silent(s.machine.system_reset())
}

fn system_powerdown(s: &mut Session, _: &mut Args<'_>) -> Output {
    silent(s.machine.system_powerdown())
}

fn nmi(s: &mut Session, _: &mut Args<'_>) -> Output {
    silent(s.machine.nmi())
}

fn mce(s: &mut Session, args: &mut Args<'_>) -> Output {
    let broadcast = args.switch("-b");
    let mut number = || args.number(s);
    let (cpu, bank) = (number()?, number()?);
    let [status, mcg_status, address, misc] = [number()?, number()?, number()?, number()?];
    let cpu = u32::try_from(cpu).map_err(|_| "mce: no such CPU".to_owned())?;
    silent(s.machine.mce(&MachineCheck { cpu, bank, status, mcg_status, address, misc, broadcast }))
}

fn quit(s: &mut Session, _: &mut Args<'_>) -> Output {
    s.machine.quit();
    Ok(String::new())
}

fn sendkey(s: &mut Session, args: &mut Args<'_>) -> Output {
    let names = args.word().ok_or("sendkey: the name of a key is missing")?;
    // How long the keys are held is the guest's affair: it gets the codes as fast as it reads them.
    let _ = args.word();
    let keys = crate::keys::combination(names)?;
    for (key, down) in keys.iter().map(|k| (*k, true)).chain(keys.iter().rev().map(|k| (*k, false))) {
        s.machine.key(key, down).map_err(|e| e.to_string())?;
    }
    Ok(String::new())
}

fn migrate(s: &mut Session, args: &mut Args<'_>) -> Output {
    args.switch("-d");
    let uri = std::mem::take(&mut args.rest).trim().trim_matches('"');
    if uri.is_empty() {
        return Err("uri expected".into());
    }
    silent(s.machine.migrate(uri))
}

fn accel(s: &mut Session, args: &mut Args<'_>) -> Output {
    match args.word() {
        None => Ok(format!("{}\n", s.machine.engine())),
        Some(name) => silent(s.machine.switch_engine(name)),
    }
}

fn cpu(s: &mut Session, args: &mut Args<'_>) -> Output {
    let index = args.number(s)?;
    let known = s.machine.cpus().iter().any(|c| u64::from(c.index) == index);
    match u32::try_from(index).ok().filter(|_| known) {
        Some(index) => {
            s.cpu = index;
            Ok(String::new())
        }
        None => Ok("Error: Invalid CPU index\n".into()),
    }
}

fn log(s: &mut Session, args: &mut Args<'_>) -> Output {
    let items = args.needed("log item")?;
    silent(s.machine.set_log(items))
}

fn trace_event(_: &mut Session, args: &mut Args<'_>) -> Output {
    let name = args.needed("event name")?;
    let on = match args.needed("on or off")? {
        "on" => true,
        "off" => false,
        _ => return Err("on or off expected".into()),
    };
    let pattern = if on { name.to_owned() } else { format!("-{name}") };
    match anura_vmcore::trace::set_by_pattern(&pattern) {
        0 => Ok(format!("Error: unknown event \"{name}\"\n")),
        _ => Ok(String::new()),
    }
}

fn formatted<'a>(s: &mut Session, args: &mut Args<'a>) -> Result<Format, String> {
    let (format, rest) = Format::parse(args.rest, s.format)?;
    args.rest = rest;
    s.format = format;
    Ok(format)
}

fn x(s: &mut Session, args: &mut Args<'_>) -> Output {
    let format = formatted(s, args)?;
    let at = args.number(s)?;
    Ok(Source { machine: &*s.machine, cpu: Some(s.cpu) }.dump(at, format))
}

fn xp(s: &mut Session, args: &mut Args<'_>) -> Output {
    let format = formatted(s, args)?;
    let at = args.number(s)?;
    Ok(Source { machine: &*s.machine, cpu: None }.dump(at, format))
}

fn print(s: &mut Session, args: &mut Args<'_>) -> Output {
    let format = formatted(s, args)?;
    Ok(format.plain(args.number(s)?) + "\n")
}

/// Width and suffix of a port access; a byte unless a size is given.
fn port_width(args: &mut Args<'_>) -> Result<(Width, char), String> {
    let (format, rest) = Format::parse(args.rest, Format { count: 1, form: 'x', size: 1 })?;
    args.rest = rest;
    Ok(match format.size {
        1 => (Width::W1, 'b'),
        2 => (Width::W2, 'w'),
        _ => (Width::W4, 'l'),
    })
}

fn port_in(s: &mut Session, args: &mut Args<'_>) -> Output {
    let (width, letter) = port_width(args)?;
    let port = args.number(s)? & 0xffff;
    let (value, _) = s.machine.ports().read(port, width, Requester::Monitor);
    Ok(format!("port{letter}[{port:#06x}] = 0x{value:0w$x}\n", w = width.bytes() * 2))
}

fn port_out(s: &mut Session, args: &mut Args<'_>) -> Output {
    let (width, _) = port_width(args)?;
    let port = args.number(s)? & 0xffff;
    let value = args.number(s)?;
    let _ = s.machine.ports().write(port, width, value & width.mask(), Requester::Monitor);
    Ok(String::new())
}

fn gpa2hva(s: &mut Session, args: &mut Args<'_>) -> Output {
    let at = args.number(s)?;
    let view = s.machine.memory().view();
    let Some(range) = view.find(at) else {
        return Ok(format!("Error: No memory is mapped at address {at:#x}\n"));
    };
    match (range.read_block(), &range.kind) {
        (Some((block, offset)), RangeKind::Ram { .. } | RangeKind::RomDevice { .. }) => {
            let offset = offset + (at - range.start);
            let host = (block.host_ptr().as_ptr() as u64).wrapping_add(offset);
            let name = block.name();
            Ok(format!("Host virtual address for {at:#x} ({name}) is {host:#x} (offset {offset:#x})\n"))
        }
        _ => Ok(format!("Error: Memory at address {at:#x} is not RAM\n")),
    }
}

fn gpa2hpa(s: &mut Session, args: &mut Args<'_>) -> Output {
    let at = args.number(s)?;
    let Some(slice) = s.machine.memory().ram(at, 1) else {
        return Ok(format!("Error: No memory is mapped at address {at:#x}\n"));
    };
    // proc(5): eight bytes for each page, its frame in the low 55 bits while bit 63 is set.
    let host = slice.as_ptr() as u64;
    let entry = std::fs::File::open("/proc/self/pagemap").and_then(|file| {
        let mut raw = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut raw, host / 4096 * 8)?;
        Ok(u64::from_le_bytes(raw))
    });
    match entry {
        Ok(e) if e >> 63 == 1 && e << 9 != 0 => {
            let physical = (e & ((1 << 55) - 1)) * 4096 + host % 4096;
            Ok(format!("Host physical address for {at:#x} ({}) is {physical:#x}\n", slice.block().name()))
        }
        Ok(_) => Ok("Error: Page not present, or only root may see its frame\n".into()),
        Err(e) => Ok(format!("Error: Cannot read /proc/self/pagemap: {e}\n")),
    }
}

fn gva2gpa(s: &mut Session, args: &mut Args<'_>) -> Output {
    let va = args.number(s)?;
    Ok(match s.machine.translate(s.cpu, va) {
        Some(pa) => format!("gpa: {pa:#x}\n"),
        None => "Unmapped\n".into(),
    })
}

/// Bytes of one save or checksum at a time.
const CHUNK: u64 = 1 << 16;

/// Goes over memory in pieces; an error names the address.
fn each_chunk(
    source: &Source<'_>,
    at: u64,
    size: u64,
    mut f: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut done = 0;
    while done < size {
        let mut buf = vec![0; CHUNK.min(size - done) as usize];
        if !source.read(at.wrapping_add(done), &mut buf) {
            return Err(format!("Invalid addr {:#x}/size {size} specified", at.wrapping_add(done)));
        }
        f(&buf)?;
        done += buf.len() as u64;
    }
    Ok(())
}

fn save(s: &mut Session, args: &mut Args<'_>, cpu: Option<u32>) -> Output {
    let (at, size) = (args.number(s)?, args.number(s)?);
    let path = args.needed("file name")?;
    let say = |e: std::io::Error| format!("Could not write '{path}': {e}");
    let file = std::fs::File::create(path).map_err(say);
    silent(file.and_then(|mut file| {
        let source = Source { machine: &*s.machine, cpu };
        each_chunk(&source, at, size, |bytes| std::io::Write::write_all(&mut file, bytes).map_err(say))
    }))
}

fn memsave(s: &mut Session, args: &mut Args<'_>) -> Output {
    let cpu = s.cpu;
    save(s, args, Some(cpu))
}

fn pmemsave(s: &mut Session, args: &mut Args<'_>) -> Output {
    save(s, args, None)
}

fn sum(s: &mut Session, args: &mut Args<'_>) -> Output {
    let (at, size) = (args.number(s)?, args.number(s)?);
    let mut sum = 0u16;
    let result = each_chunk(&Source { machine: &*s.machine, cpu: None }, at, size, |bytes| {
        for b in bytes {
            // BSD's checksum: rotate right, then add.
            sum = sum.rotate_right(1).wrapping_add((*b).into());
        }
        Ok(())
    });
    match result {
        Ok(()) => Ok(format!("{sum:05}\n")),
        Err(e) => Ok(format!("Error: {e}\n")),
    }
}
