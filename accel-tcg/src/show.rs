//! What `-d` shows of the engine: items by QEMU's names, which are targets of the `log` crate.
//!
//! Which items are on is asked for at the start of each run, so that nothing is paid for those that are off.

use crate::deliver::Event;
use crate::env::Cpu;
use crate::ir::Block;
use crate::mode::key;
use anura_x86::regs::vector;
use anura_x86::segment::index::{CS, SS};
use anura_x86::state::EventKind;
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use std::fmt::Write;

/// The items that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Items {
    pub in_asm: bool,
    pub op: bool,
    pub out_asm: bool,
    pub int: bool,
    pub exec: bool,
    pub cpu: bool,
    /// No item of the log: a run ends behind each translated block, and no block leads to another.
    pub by_blocks: bool,
}

impl Items {
    /// As the log has it now.
    pub fn now() -> Items {
        let on = |target: &str| log::log_enabled!(target: target, log::Level::Debug);
        Items {
            in_asm: on("in_asm"),
            op: on("op"),
            out_asm: on("out_asm"),
            int: on("int"),
            exec: on("exec"),
            cpu: on("cpu"),
            by_blocks: false,
        }
    }

    /// Whether every block that is entered is of interest.
    pub fn each_block(self) -> bool {
        self.shows_blocks() || self.by_blocks
    }

    /// Whether every block is shown when it is entered.
    #[inline]
    pub fn shows_blocks(self) -> bool {
        self.exec || self.cpu
    }
}

/// Instructions with their addresses and bytes, a line each.
pub(crate) fn code(bits: u32, mut at: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE);
    let mut formatter = FastFormatter::new();
    let (mut text, mut from) = (String::new(), 0);
    while decoder.can_decode() {
        let i = decoder.decode();
        let to = decoder.position();
        let _ = write!(text, "\n0x{at:016x}:  ");
        for b in &bytes[from..to] {
            let _ = write!(text, "{b:02x} ");
        }
        let _ = write!(text, "{:1$} ", "", 33usize.saturating_sub(3 * (to - from)));
        if i.is_invalid() {
            text += "(bad)";
        } else {
            formatter.format(&i, &mut text);
        }
        at = at.wrapping_add((to - from) as u64);
        from = to;
    }
    text
}

/// A block as it is translated: `in_asm` and `op`.
pub(crate) fn translated(items: Items, b: &Block, bytes: &[u8]) {
    if items.in_asm {
        let bits = match b.key {
            k if k & key::L64 != 0 => 64,
            k if k & key::CODE32 != 0 => 32,
            _ => 16,
        };
        log::debug!(target: "in_asm", "IN: {}", code(bits, b.va, &bytes[..bytes.len().min(b.len() as usize)]));
    }
    if items.op {
        log::debug!(target: "op", "OP:\n{}", crate::ir::print::block(b).trim_end());
    }
}

/// A block before it is entered: `exec` and `cpu`. `block`: number, host address and instructions.
pub(crate) fn entered(items: Items, cpu: &Cpu, block: (u32, u64, u8)) {
    if items.exec {
        let (id, entry, n) = block;
        let (base, rip, mode) = (cpu.env.seg[CS].base, cpu.env.rip, cpu.env.mode_key);
        log::debug!(target: "exec", "Trace {}: {entry:#x} [{base:016x}/{rip:016x}/{mode:08x}/{n}] {id}", cpu.id);
    }
    if items.cpu {
        log::debug!(target: "cpu", "CPU#{}\n{}", cpu.id, cpu.save_state().to_string().trim_end());
    }
}

/// An exception or interrupt before it is delivered: `int`.
pub(crate) fn delivered(cpu: &mut Cpu, e: &Event) {
    let number = cpu.jit.delivered;
    cpu.jit.delivered += 1;
    let env = &cpu.env;
    let (kind, v) = (e.kind, e.vector);
    if kind == EventKind::External {
        log::debug!(target: "int", "Servicing hardware INT={v:#04x}");
    }
    let software = !matches!(kind, EventKind::External | EventKind::Nmi | EventKind::Fault | EventKind::Trap);
    let pc = env.seg[CS].base.wrapping_add(env.rip);
    let last = match v {
        vector::PF if kind == EventKind::Fault => format!("CR2={:016x}", e.payload),
        _ => format!("RAX={:016x}", env.gpr[0]),
    };
    log::debug!(
        target: "int",
        "{number:6}: v={v:02x} e={:04x} i={} cpl={} IP={:04x}:{:016x} pc={pc:016x} SP={:04x}:{:016x} {last}",
        e.error.unwrap_or(0),
        u8::from(software),
        env.cpl(),
        env.seg[CS].selector,
        env.rip,
        env.seg[SS].selector,
        env.gpr[4],
    );
}
