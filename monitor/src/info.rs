//! The `info` commands.

use std::fmt::Write;

use anura_machine::control::{BusNode, DeviceNode, QEMU_VERSION, RunState};

use crate::args::Args;
use crate::commands::{Command, Output};
use crate::{Session, pages};

const fn row(
    name: &'static str,
    params: &'static str,
    help: &'static str,
    run: fn(&mut Session, &mut Args<'_>) -> Output,
) -> Command {
    Command { name, alias: None, params, help, run }
}

/// All of them, by name.
#[rustfmt::skip]
pub(crate) const TABLE: &[Command] = &[
    row("chardev", "", "show the character devices", chardev),
    row("cpus", "", "show infos for each CPU", cpus),
    row("exits", "", "show why vCPUs left their engine", exits),
    row("history", "", "show the command line history", history),
    row("ioapic", "", "show io apic state", ioapic),
    row("irq", "", "show the interrupts statistics (if available)", irq),
    row("jit", "", "show what the engine has translated", jit),
    row("lapic", "[apic-id]", "show local apic state (apic-id: local apic to read, default is which of current CPU)", lapic),
    row("mem", "", "show the active virtual memory mappings", mem),
    row("mtree", "[-f][-D]", "show memory tree (-f: dump flat view for address spaces; -D: dump disabled regions)", mtree),
    row("name", "", "show the current VM name", name),
    row("pic", "", "show PIC state", pic),
    row("qtree", "", "show device tree", qtree),
    row("ramblock", "", "Display system ramblock information", ramblock),
    row("registers", "[-a|vcpu]", "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; show the current CPU's registers if no argument is specified)", registers),
    row("statehash", "", "show the hash of the machine's state and of its parts", statehash),
    row("status", "", "show the current VM status (running|paused)", status),
    row("tlb", "", "show virtual to physical memory mappings", tlb),
    row("trace-events", "[name]", "show available trace-events & their state (name: event name pattern)", trace_events),
    row("uuid", "", "show the current VM UUID", uuid),
    row("version", "", "show the version of QEMU", version),
];

fn status(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(match s.machine.run_state() {
        RunState::Running => "VM status: running\n".into(),
        RunState::Paused => "VM status: paused\n".into(),
        other => format!("VM status: paused ({})\n", other.name()),
    })
}

fn version(_: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(format!("{QEMU_VERSION} (anura {})\n", env!("CARGO_PKG_VERSION")))
}

fn name(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.name().map(|n| n + "\n").unwrap_or_default())
}

fn uuid(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.uuid().unwrap_or_else(|| "00000000-0000-0000-0000-000000000000".into()) + "\n")
}

fn cpus(s: &mut Session, _: &mut Args<'_>) -> Output {
    let mut out = String::new();
    for c in s.machine.cpus() {
        let mark = if c.index == s.cpu { '*' } else { ' ' };
        let halted = if c.halted { " (halted)" } else { "" };
        let _ = writeln!(out, "{mark} CPU #{}: thread_id={}{halted}", c.index, c.thread_id);
    }
    Ok(out)
}

fn registers(s: &mut Session, args: &mut Args<'_>) -> Output {
    let which: Vec<u32> = if args.switch("-a") {
        s.machine.cpus().iter().map(|c| c.index).collect()
    } else if args.rest.is_empty() {
        vec![s.cpu]
    } else {
        let n = args.number(s)?;
        let known = s.machine.cpus().iter().any(|c| u64::from(c.index) == n);
        vec![u32::try_from(n).ok().filter(|_| known).ok_or_else(|| format!("CPU#{n} not available"))?]
    };
    let mut out = String::new();
    for cpu in which {
        let state = s.machine.cpu_state(cpu).map_err(|e| e.to_string())?;
        // The gate is the board's, and no part of a processor's state.
        let mut text = state.to_string();
        if !s.machine.a20() {
            text = text.replacen(" A20=1 ", " A20=0 ", 1);
        }
        let _ = write!(out, "\nCPU#{cpu}\n{text}{}", if text.ends_with('\n') { "" } else { "\n" });
    }
    Ok(out)
}

fn mtree(s: &mut Session, args: &mut Args<'_>) -> Output {
    let (mut flat, mut disabled) = (false, false);
    while let Some(word) = args.word() {
        match word {
            "-f" => flat = true,
            "-D" => disabled = true,
            // Owners and dispatch tables are not shown.
            "-d" | "-o" => {}
            _ => return Err(format!("mtree: unknown switch {word}")),
        }
    }
    let map = s.machine.memory_map();
    Ok(if flat { map.flat_text() } else { map.tree_text(disabled) })
}

fn ramblock(s: &mut Session, _: &mut Args<'_>) -> Output {
    let mut out =
        format!("{:>24} {:>8}  {:>18} {:>18} {:>18}\n", "Block Name", "PSize", "Offset", "Used", "Total");
    let mut offset = 0u64;
    for block in s.machine.ram_blocks() {
        let page = match block.page_size() {
            p if p >= 1 << 30 => format!("{} GiB", p >> 30),
            p if p >= 1 << 20 => format!("{} MiB", p >> 20),
            p => format!("{} KiB", p >> 10),
        };
        let _ = writeln!(
            out,
            "{:>24} {page:>8}  {offset:#018x} {:#018x} {:#018x}",
            block.name(),
            block.len(),
            block.len()
        );
        offset = offset.saturating_add(block.len().next_multiple_of(0x4_0000));
    }
    Ok(out)
}

fn tlb(s: &mut Session, _: &mut Args<'_>) -> Output {
    let state = s.machine.cpu_state(s.cpu).map_err(|e| e.to_string())?;
    Ok(pages::tlb(&s.machine.memory(), &state))
}

fn mem(s: &mut Session, _: &mut Args<'_>) -> Output {
    let state = s.machine.cpu_state(s.cpu).map_err(|e| e.to_string())?;
    Ok(pages::mem(&s.machine.memory(), &state))
}

fn pic(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.ioapic_text() + &s.machine.pic_text())
}

fn ioapic(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.ioapic_text())
}

fn irq(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.irq_text())
}

fn exits(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.exits_text())
}

fn jit(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.machine.jit_text())
}

fn lapic(s: &mut Session, args: &mut Args<'_>) -> Output {
    let cpu = if args.rest.is_empty() {
        s.cpu
    } else {
        let id = args.number(s)?;
        let found = s.machine.cpus().into_iter().find(|c| u64::from(c.apic_id) == id);
        found.ok_or_else(|| format!("No local APIC with id {id}"))?.index
    };
    s.machine.lapic_text(cpu).map_err(|e| e.to_string())
}

fn statehash(s: &mut Session, _: &mut Args<'_>) -> Output {
    s.machine.state_hash_text().map_err(|e| e.to_string())
}

fn chardev(s: &mut Session, _: &mut Args<'_>) -> Output {
    let all = s.machine.chardevs();
    Ok(all.iter().map(|(id, filename)| format!("{id}: filename={filename}\n")).collect())
}

fn history(s: &mut Session, _: &mut Args<'_>) -> Output {
    Ok(s.history.iter().enumerate().map(|(i, line)| format!("{i}: '{line}'\n")).collect())
}

fn trace_events(_: &mut Session, args: &mut Args<'_>) -> Output {
    let pattern = args.word().unwrap_or("*");
    let prefix = pattern.split('*').next().unwrap_or_default();
    let all = anura_vmcore::trace::ALL.iter().filter(|e| e.name().starts_with(prefix));
    Ok(all.map(|e| format!("{} : state {}\n", e.name(), u8::from(e.enabled()))).collect())
}

fn qtree(s: &mut Session, _: &mut Args<'_>) -> Output {
    let mut out = String::new();
    bus(&mut out, &s.machine.device_tree(), 0);
    Ok(out)
}

fn bus(out: &mut String, b: &BusNode, indent: usize) {
    let _ = writeln!(out, "{:indent$}bus: {}", "", b.name);
    let _ = writeln!(out, "{:indent$}  type {}", "", b.kind);
    for d in &b.devices {
        device(out, d, indent + 2);
    }
}

fn device(out: &mut String, d: &DeviceNode, indent: usize) {
    let _ = writeln!(out, "{:indent$}dev: {}, id \"{}\"", "", d.driver, d.id);
    for (name, value) in &d.properties {
        let _ = writeln!(out, "{:indent$}  {name} = {value}", "");
    }
    for line in &d.details {
        let _ = writeln!(out, "{:indent$}  {line}", "");
    }
    for b in &d.buses {
        bus(out, b, indent + 2);
    }
}
