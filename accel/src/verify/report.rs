//! What is told when two engines differ: the instruction, both states, and a file that shows it again.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anura_memory::{PAGE_SIZE, RamBlock};
use anura_vmcore::{Bytes, Clock, CpuSignal, LoadError, Record};
use anura_x86::CpuState;

use super::journal::{Entry, Replayer, load_page, save_page};
use super::world::{Layout, log_of, page_difference, used_pages};
use super::{Pair, follower};
use crate::{AccelError, Budget, VcpuExit};

/// A run from an agreed state that ended in different ones.
pub(super) struct Case {
    pub(super) cpu: u32,
    pub(super) start: CpuState,
    pub(super) layout: Arc<Layout>,
    pub(super) entries: Vec<Entry>,
    /// The clock's instruction count and time at the start.
    pub(super) count: u64,
    pub(super) now: u64,
    /// Nanoseconds per instruction as a power of two.
    pub(super) shift: u8,
    /// CR8 and IA32_APIC_BASE at the start.
    pub(super) apic: (u8, u64),
    /// The A20 gate was open.
    pub(super) a20: bool,
    /// Instructions that the leader ran.
    pub(super) done: u64,
}

/// A case as read from its file: with its memory.
pub(super) struct Stored {
    case: Case,
    blocks: Vec<StoredBlock>,
}

/// Name, length, and the pages that are not zero.
type StoredBlock = (String, u64, Vec<(u64, Vec<u8>)>);

impl Case {
    /// Writes the case with the memory it starts on.
    pub(super) fn write(&self, file: &Path, blocks: &[Arc<RamBlock>]) -> io::Result<()> {
        let fields: Vec<(u64, Bytes)> =
            self.start.to_fields().into_iter().map(|(n, b)| (n.into(), Bytes(b))).collect();
        let block = |b: &Arc<RamBlock>| {
            let pages: Vec<Record> = used_pages(b).map(|(at, bytes)| save_page(&(0, at, bytes))).collect();
            Record::new(1).with(1, b.name().to_owned()).with(2, b.len()).with(3, pages)
        };
        let record = Record::new(1)
            .with(1, u64::from(self.cpu))
            .with(2, fields)
            .with(3, self.layout.save())
            .with(4, self.entries.iter().map(Entry::save).collect::<Vec<_>>())
            .with(5, vec![self.count, self.now, self.done, self.shift.into()])
            .with(7, vec![self.apic.0.into(), self.apic.1, self.a20.into()])
            .with(6, blocks.iter().map(block).collect::<Vec<_>>());
        std::fs::write(file, record.encode())
    }

    /// Reads what [`Self::write`] wrote.
    pub(super) fn read(file: &Path) -> Result<Stored, String> {
        let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
        Record::decode(&bytes).and_then(|r| Self::load(&r)).map_err(|e| e.to_string())
    }

    fn load(from: &Record) -> Result<Stored, LoadError> {
        let mut r = from.read(1)?;
        let cpu = r.get_if::<u64>(1, |c| *c < 255)? as u32;
        let fields = r.get::<Vec<(u64, Bytes)>>(2)?;
        let field = |n: u32| fields.iter().find(|f| f.0 == u64::from(n)).map(|f| f.1.0.as_slice());
        let start = CpuState::from_fields(field).map_err(|_| LoadError::Malformed("CPU state"))?;
        let layout = Arc::new(Layout::load(&r.get::<Record>(3)?)?);
        let entries = r.get::<Vec<Record>>(4)?.iter().map(Entry::load).collect::<Result<_, _>>()?;
        let [count, now, done, shift] = r.get::<[u64; 4]>(5)?;
        let [tpr, base, a20] = r.get::<[u64; 3]>(7)?;
        let mut blocks = Vec::new();
        for b in r.get::<Vec<Record>>(6)? {
            let mut b = b.read(1)?;
            let (name, len) = (b.get::<String>(1)?, b.get_if::<u64>(2, |n| *n <= 1 << 40)?);
            let pages = b.get::<Vec<Record>>(3)?.iter().map(load_page).collect::<Result<Vec<_>, _>>()?;
            blocks.push((name, len, pages.into_iter().map(|(_, at, bytes)| (at, bytes)).collect()));
        }
        let (shift, apic, a20) = (shift.min(10) as u8, (tpr as u8, base), a20 != 0);
        Ok(Stored { case: Self { cpu, start, layout, entries, count, now, shift, apic, a20, done }, blocks })
    }
}

/// Steps both engines through a stored case; the text says what was found.
pub(super) fn step_through(pair: &Pair, stored: Stored) -> Result<String, AccelError> {
    let make = || -> Result<Vec<Arc<RamBlock>>, AccelError> {
        let one = |(name, len, pages): &StoredBlock| {
            let block = RamBlock::new(name.clone(), *len).map_err(|e| AccelError::Unsupported {
                engine: "verify",
                what: format!("memory for {name}: {e}"),
            })?;
            for (at, bytes) in pages {
                block.write(*at, bytes);
            }
            Ok(block)
        };
        stored.blocks.iter().map(one).collect()
    };
    step(pair, &stored.case, [make()?, make()?])
}

/// Starts both engines anew on `blocks`, which hold the memory of the last agreement, and compares after each
/// instruction.
pub(super) fn step(pair: &Pair, case: &Case, blocks: [Vec<Arc<RamBlock>>; 2]) -> Result<String, AccelError> {
    let clock = || {
        let clock = Clock::counted(case.shift);
        clock.set_instructions(case.count);
        clock.warp_to(case.now);
        clock
    };
    let clocks = [clock(), clock()];
    let mut sides = Vec::new();
    for ((engine, blocks), clock) in [&pair.lead, &pair.follow].into_iter().zip(&blocks).zip(&clocks) {
        blocks.iter().for_each(|b| b.tracker().start_log());
        let replayer = Replayer::new(clock, blocks.clone());
        let vm = follower(&**engine, &replayer, clock, blocks, &pair.config)?;
        replayer.set_layout(blocks.clone(), &case.layout);
        replayer.set_board(case.cpu, case.apic, case.a20);
        let signal = CpuSignal::new();
        replayer.add_signal(case.cpu, &signal);
        let mut vcpu = vm.create_vcpu(case.cpu, signal)?;
        if let Err(e) = vcpu.set_state(&case.start) {
            return Ok(format!("{} refuses the state: {e}", engine.name()));
        }
        replayer.begin(case.entries.clone());
        sides.push((vcpu, replayer));
    }
    let mut before = case.start.clone();
    for n in 1..=case.done.max(1) {
        let exits: Vec<VcpuExit> = sides.iter_mut().map(|(v, _)| v.run(Budget::Instructions(1))).collect();
        let states: Vec<CpuState> = sides.iter_mut().map(|(v, _)| v.state()).collect();
        let mut found = Vec::new();
        if states[0] != states[1] {
            found.push(state_difference(&states[0], &states[1]));
        }
        let mut pages = log_of(blocks[0].iter());
        pages.extend(log_of(blocks[1].iter()));
        for (b, at) in pages {
            let mut bytes = [[0; PAGE_SIZE as usize]; 2];
            for (side, bytes) in blocks.iter().zip(&mut bytes) {
                side[b].read(at, bytes);
            }
            if bytes[0] != bytes[1] {
                found.push(page_difference(blocks[0][b].name(), at, &bytes[0], &bytes[1]));
                break;
            }
        }
        if !super::same_exit(&exits[0], &exits[1]) {
            found.push(format!("ends of the run: {:?} and {:?}", exits[0], exits[1]));
        }
        if !found.is_empty() {
            let code = code_at(&mut *sides[0].0, &before, &case.layout, &blocks[0]);
            return Ok(format!(
                "instruction {n}, at {:#x}: {code}\n{}\nbefore:\n{before}\n{}:\n{}\n{}:\n{}",
                before.seg[1].base.wrapping_add(before.rip),
                found.join("\n"),
                pair.lead.name(),
                states[0],
                pair.follow.name(),
                states[1],
            ));
        }
        before = states.into_iter().next().unwrap_or(before);
        if !matches!(exits[0], VcpuExit::BudgetSpent | VcpuExit::Interrupted) {
            break;
        }
    }
    for (_, replayer) in &sides {
        if let Err(what) = replayer.end() {
            return Ok(format!("stepped one by one from the same state an engine {what}"));
        }
    }
    Ok("stepped one by one from the same state the engines agree: the cause is in what an engine keeps \
        (translations, TLB) or in how instructions are joined"
        .into())
}

/// The bytes at RIP.
fn code_at(vcpu: &mut dyn crate::Vcpu, s: &CpuState, layout: &Layout, blocks: &[Arc<RamBlock>]) -> String {
    let linear = s.seg[1].base.wrapping_add(s.rip);
    let mut text = Vec::new();
    for i in 0..15u64 {
        let byte = vcpu.translate(linear.wrapping_add(i)).and_then(|pa| layout.byte(pa, blocks));
        let Some(byte) = byte else { break };
        text.push(format!("{byte:02x}"));
    }
    text.join(" ")
}

/// The registers in which two states differ.
pub(super) fn state_difference(a: &CpuState, b: &CpuState) -> String {
    const GPR: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let mut out = Vec::new();
    for (i, name) in GPR.iter().enumerate().filter(|(i, _)| a.gpr[*i] != b.gpr[*i]) {
        out.push(format!("{name} {:#x} and {:#x}", a.gpr[i], b.gpr[i]));
    }
    if a.rip != b.rip {
        out.push(format!("rip {:#x} and {:#x}", a.rip, b.rip));
    }
    if a.rflags != b.rflags {
        let bits = a.rflags ^ b.rflags;
        out.push(format!("rflags {:#x} and {:#x} (bits {bits:#x})", a.rflags, b.rflags));
    }
    for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        if a.seg[i] != b.seg[i] {
            out.push(format!("{name} {:x?} and {:x?}", a.seg[i], b.seg[i]));
        }
    }
    let (x, y) = (&a.xsave.bytes, &b.xsave.bytes);
    if let Some(at) = x.iter().zip(y).position(|(x, y)| x != y) {
        let end = (at + 16).min(x.len());
        out.push(format!("xsave byte {at}: {:02x?} and {:02x?}", &x[at..end], &y[at..end]));
    }
    let others: [(&str, String, String); 12] = [
        ("cr0", format!("{:#x}", a.cr0), format!("{:#x}", b.cr0)),
        ("cr2", format!("{:#x}", a.cr2), format!("{:#x}", b.cr2)),
        ("cr3", format!("{:#x}", a.cr3), format!("{:#x}", b.cr3)),
        ("cr4", format!("{:#x}", a.cr4), format!("{:#x}", b.cr4)),
        ("cr8", format!("{:#x}", a.cr8), format!("{:#x}", b.cr8)),
        ("efer", format!("{:#x}", a.efer), format!("{:#x}", b.efer)),
        (
            "dr",
            format!("{:x?} {:#x} {:#x}", a.dr, a.dr6, a.dr7),
            format!("{:x?} {:#x} {:#x}", b.dr, b.dr6, b.dr7),
        ),
        ("gdtr idtr", format!("{:x?} {:x?}", a.gdtr, a.idtr), format!("{:x?} {:x?}", b.gdtr, b.idtr)),
        ("ldtr tr", format!("{:x?} {:x?}", a.ldtr, a.tr), format!("{:x?} {:x?}", b.ldtr, b.tr)),
        ("msrs", format!("{:x?}", a.msrs), format!("{:x?}", b.msrs)),
        (
            "events",
            format!("{:x?} {:#x} {:?} {:?}", a.pending, a.pending_db, a.shadow, a.activity),
            format!("{:x?} {:#x} {:?} {:?}", b.pending, b.pending_db, b.shadow, b.activity),
        ),
        (
            "nmi, pdpte, xcr0, tsc",
            format!("{:?} {:x?} {:#x} {:#x}", (a.nmi_pending, a.nmi_masked), a.pdpte, a.xcr0, a.tsc_offset),
            format!("{:?} {:x?} {:#x} {:#x}", (b.nmi_pending, b.nmi_masked), b.pdpte, b.xcr0, b.tsc_offset),
        ),
    ];
    for (name, x, y) in others {
        if x != y {
            out.push(format!("{name} {x} and {y}"));
        }
    }
    if out.is_empty() {
        out.push("states that differ in a register without a name here".into());
    }
    out.join("; ")
}
