//! What one engine asked of the world outside of its guest, so that another can be told the same.
//!
//! A [`Recorder`] stands between the leading engine and the machine: it passes every access, MSR and APIC call on and
//! writes down the answer and what else the call did (DMA into RAM, a changed memory map, a raised signal). A
//! [`Replayer`] stands where the machine would be for the following engine and answers from that journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anura_memory::{AddressSpace, RamBlock};
use anura_vmcore::{Bytes, Clock, CpuSignal, LoadError, Record, Requester, Width};
use parking_lot::Mutex;

use super::world::{Layout, Mirror, World};
use crate::{CpuPlatform, LocalApic, Pending, VmSpaces};

/// Which address space an access went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Memory,
    Ports,
}

/// What an engine can ask for. Numbers, so that a journal is easily saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    MemoryRead,
    MemoryWrite,
    PortRead,
    PortWrite,
    Rdmsr,
    Wrmsr,
    Ferr,
    Sync,
    Acknowledge,
    TakeNmi,
    TakeInit,
    TakeSipi,
    SetTpr,
    SetBase,
    ApicRead,
    ApicWrite,
    ApicMsrRead,
    ApicMsrWrite,
}

const KINDS: [Kind; 18] = [
    Kind::MemoryRead,
    Kind::MemoryWrite,
    Kind::PortRead,
    Kind::PortWrite,
    Kind::Rdmsr,
    Kind::Wrmsr,
    Kind::Ferr,
    Kind::Sync,
    Kind::Acknowledge,
    Kind::TakeNmi,
    Kind::TakeInit,
    Kind::TakeSipi,
    Kind::SetTpr,
    Kind::SetBase,
    Kind::ApicRead,
    Kind::ApicWrite,
    Kind::ApicMsrRead,
    Kind::ApicMsrWrite,
];

impl Kind {
    /// Whether an engine asks this when it happens to look, rather than where an instruction says so.
    fn is_poll(self) -> bool {
        matches!(self, Kind::Sync | Kind::Acknowledge | Kind::TakeNmi | Kind::TakeInit | Kind::TakeSipi)
    }

    /// Whether the answer starts the delivery of something.
    pub(super) fn takes(self) -> bool {
        self.is_poll() && self != Kind::Sync
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) cpu: u32,
    /// Address, register or MSR number.
    pub(super) at: u64,
    /// Bytes of one access.
    pub(super) width: u8,
    /// The value written, or how many bytes a string instruction wants.
    pub(super) value: u64,
    /// The bytes that a string instruction writes.
    pub(super) data: Vec<u8>,
}

impl Call {
    fn new(kind: Kind, cpu: u32, at: u64, value: u64) -> Self {
        Self { kind, cpu, at, width: 0, value, data: Vec::new() }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:#x} width {} value {:#x}", self.kind, self.at, self.width, self.value)?;
        if !self.data.is_empty() {
            write!(f, " and {} bytes", self.data.len())?;
        }
        Ok(())
    }
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    value: u64,
    ok: bool,
    data: Vec<u8>,
}

impl Answer {
    fn of(value: u64) -> Self {
        Self { value, ok: true, data: Vec::new() }
    }

    fn optional(value: Option<u64>) -> Self {
        Self { value: value.unwrap_or(0), ok: value.is_some(), data: Vec::new() }
    }

    fn option(self) -> Option<u64> {
        self.ok.then_some(self.value)
    }
}

/// A page that a device wrote: index of its block, offset, bytes.
pub(super) type Page = (usize, u64, Vec<u8>);

/// A question, its answer, and what else it did.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The clock's instruction count when it was asked.
    pub(super) count: u64,
    pub(super) call: Call,
    answer: Answer,
    raised: u32,
    /// CR8 and IA32_APIC_BASE afterwards.
    apic: (u8, u64),
    pages: Vec<Page>,
    layout: Option<Arc<Layout>>,
}

impl Entry {
    pub(super) fn save(&self) -> Record {
        Record::new(1)
            .with(1, self.count)
            .with(2, self.call.kind as u8 as u64)
            .with(3, vec![self.call.cpu.into(), self.call.at, self.call.width.into(), self.call.value])
            .with(4, Bytes(self.call.data.clone()))
            .with(5, vec![self.answer.value, self.answer.ok.into()])
            .with(6, Bytes(self.answer.data.clone()))
            .with(7, vec![u64::from(self.raised), self.apic.0.into(), self.apic.1])
            .with(8, self.pages.iter().map(save_page).collect::<Vec<_>>())
            .with(9, self.layout.as_ref().map(|l| l.save()))
    }

    pub(super) fn load(from: &Record) -> Result<Self, LoadError> {
        let mut r = from.read(1)?;
        let count = r.get(1)?;
        let kind = r.get_if::<u64>(2, |k| *k < KINDS.len() as u64)?;
        let [cpu, at, width, value] = r.get::<[u64; 4]>(3)?;
        let data = r.get::<Bytes>(4)?.0;
        let [answer, ok] = r.get::<[u64; 2]>(5)?;
        let bytes = r.get::<Bytes>(6)?.0;
        let [raised, tpr, base] = r.get::<[u64; 3]>(7)?;
        let pages = r.get::<Vec<Record>>(8)?.iter().map(load_page).collect::<Result<_, _>>()?;
        let layout = r.get::<Option<Record>>(9)?.map(|l| Layout::load(&l).map(Arc::new)).transpose()?;
        let kind = KINDS[kind as usize];
        let call = Call { kind, cpu: cpu as u32, at, width: width as u8, value, data };
        let answer = Answer { value: answer, ok: ok != 0, data: bytes };
        Ok(Self { count, call, answer, raised: raised as u32, apic: (tpr as u8, base), pages, layout })
    }
}

pub(super) fn save_page(page: &Page) -> Record {
    Record::new(1).with(1, page.0).with(2, page.1).with(3, Bytes(page.2.clone()))
}

pub(super) fn load_page(from: &Record) -> Result<Page, LoadError> {
    let mut r = from.read(1)?;
    Ok((r.get(1)?, r.get(2)?, r.get::<Bytes>(3)?.0))
}

/// What answers an engine: the machine behind a recorder, or a journal.
pub(super) trait Outside: Send + Sync {
    fn call(&self, call: Call) -> Answer;
    /// CR8 and IA32_APIC_BASE of a processor.
    fn apic(&self, cpu: u32) -> (u8, u64);
    /// Whether the A20 gate is open; it changes between runs only.
    fn a20(&self) -> bool;
}

/// Passes calls on to the machine and writes them down.
pub(super) struct Recorder {
    real: VmSpaces,
    platform: Arc<dyn CpuPlatform>,
    world: Arc<World>,
    signals: Mutex<Vec<Option<Arc<CpuSignal>>>>,
    entries: Mutex<Vec<Entry>>,
    /// Pages that the engine itself wrote, seen on the way.
    written: Mutex<Vec<(usize, u64)>>,
}

impl Recorder {
    pub(super) fn new(real: &VmSpaces, platform: &Arc<dyn CpuPlatform>, world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            real: real.clone(),
            platform: platform.clone(),
            world: world.clone(),
            signals: Mutex::default(),
            entries: Mutex::default(),
            written: Mutex::default(),
        })
    }

    pub(super) fn add_signal(&self, cpu: u32, signal: &Arc<CpuSignal>) {
        put(&mut self.signals.lock(), cpu, Some(signal.clone()));
    }

    /// What was written down since the last call, and the pages that the engine wrote meanwhile.
    pub(super) fn take(&self) -> (Vec<Entry>, Vec<(usize, u64)>) {
        let entries = std::mem::take(&mut *self.entries.lock());
        let mut written = std::mem::take(&mut *self.written.lock());
        written.extend(self.world.written());
        (entries, written)
    }

    fn space(&self, kind: Kind) -> &AddressSpace {
        match kind {
            Kind::MemoryRead | Kind::MemoryWrite => &self.real.memory,
            _ => &self.real.ports,
        }
    }

    fn ask(&self, call: &Call) -> Answer {
        let apic = self.platform.apic(call.cpu);
        let from = Requester::Cpu(call.cpu);
        let width = width(call.width);
        match call.kind {
            Kind::MemoryRead | Kind::PortRead if call.value == 0 => {
                Answer::of(self.space(call.kind).read(call.at, width, from).0)
            }
            Kind::MemoryRead | Kind::PortRead => {
                let mut data = vec![0; call.value as usize];
                let _ = self.space(call.kind).read_bulk(call.at, width, &mut data, from);
                Answer { value: 0, ok: true, data }
            }
            Kind::MemoryWrite | Kind::PortWrite => {
                let space = self.space(call.kind);
                let _ = match call.data.is_empty() {
                    true => space.write(call.at, width, call.value, from),
                    false => space.write_bulk(call.at, width, &call.data, from),
                };
                Answer::default()
            }
            Kind::Rdmsr => Answer::optional(self.platform.rdmsr(call.cpu, call.at as u32)),
            Kind::Wrmsr => Answer::of(self.platform.wrmsr(call.cpu, call.at as u32, call.value).into()),
            Kind::Ferr => Answer::of(self.platform.ferr(call.value != 0).into()),
            Kind::Sync => Answer::of(pack(apic.sync())),
            Kind::Acknowledge => Answer::optional(apic.acknowledge().map(u64::from)),
            Kind::TakeNmi => Answer::of(apic.take_nmi().into()),
            Kind::TakeInit => Answer::of(apic.take_init().into()),
            Kind::TakeSipi => Answer::optional(apic.take_sipi().map(u64::from)),
            Kind::SetTpr => {
                apic.set_tpr(call.value as u8);
                Answer::default()
            }
            Kind::SetBase => Answer::of(apic.set_base(call.value).into()),
            Kind::ApicRead => Answer::of(apic.mmio_read(call.at as u32).into()),
            Kind::ApicWrite => {
                apic.mmio_write(call.at as u32, call.value as u32);
                Answer::default()
            }
            Kind::ApicMsrRead => Answer::optional(apic.msr_read(call.at as u32)),
            Kind::ApicMsrWrite => Answer::of(apic.msr_write(call.at as u32, call.value).into()),
        }
    }
}

impl Outside for Recorder {
    fn call(&self, call: Call) -> Answer {
        let own = self.world.written();
        if !own.is_empty() {
            self.written.lock().extend(own);
        }
        let count = self.real.clock.instructions();
        let signal = self.signals.lock().get(call.cpu as usize).cloned().flatten();
        let bits = |s: &Option<Arc<CpuSignal>>| s.as_ref().map_or(0, |s| s.poll.load(Ordering::SeqCst));
        let (before, layout) = (bits(&signal), self.world.layout_number());
        let answer = self.ask(&call);
        // A look that found nothing is no event: engines look at different places.
        let found = match call.kind {
            Kind::Acknowledge | Kind::TakeSipi => answer.ok,
            _ => answer.value != 0,
        };
        if call.kind.is_poll() && !found {
            return answer;
        }
        let pages = self.world.written().into_iter().map(|(b, at)| (b, at, self.world.real_page(b, at)));
        let entry = Entry {
            count,
            answer: answer.clone(),
            raised: bits(&signal) & !before & (CpuSignal::IRQ | CpuSignal::KICK),
            apic: self.apic(call.cpu),
            pages: pages.collect(),
            layout: (self.world.layout_number() != layout).then(|| self.world.layout()),
            call,
        };
        self.entries.lock().push(entry);
        answer
    }

    fn apic(&self, cpu: u32) -> (u8, u64) {
        let apic = self.platform.apic(cpu);
        (apic.tpr(), apic.base())
    }

    fn a20(&self) -> bool {
        self.platform.a20()
    }
}

/// Answers from a journal.
pub(super) struct Replayer {
    clock: Clock,
    blocks: Mutex<Vec<Arc<RamBlock>>>,
    mirror: Mutex<Option<Mirror>>,
    a20: AtomicBool,
    state: Mutex<Replay>,
}

#[derive(Default)]
struct Replay {
    entries: VecDeque<Entry>,
    apics: Vec<(u8, u64)>,
    signals: Vec<Option<Arc<CpuSignal>>>,
    /// The first question that does not fit the journal.
    unexpected: Option<String>,
    /// Outside of a run: calls are the machine's doing and have no place in the journal.
    idle: bool,
}

impl Replayer {
    pub(super) fn new(clock: &Clock, blocks: Vec<Arc<RamBlock>>) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            blocks: Mutex::new(blocks),
            mirror: Mutex::default(),
            a20: AtomicBool::new(true),
            state: Mutex::new(Replay { idle: true, ..Default::default() }),
        })
    }

    /// The spaces of the engine that is answered here; changes of the layout go to them.
    pub(super) fn set_mirror(&self, mirror: Mirror) {
        *self.mirror.lock() = Some(mirror);
    }

    pub(super) fn add_signal(&self, cpu: u32, signal: &Arc<CpuSignal>) {
        put(&mut self.state.lock().signals, cpu, Some(signal.clone()));
    }

    /// Begins a run that this journal answers.
    pub(super) fn begin(&self, entries: Vec<Entry>) {
        let mut state = self.state.lock();
        state.entries = entries.into();
        state.unexpected = None;
        state.idle = false;
    }

    /// Ends the run; what is wrong with it, if the engine asked for something else than the journal holds.
    pub(super) fn end(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        state.idle = true;
        if let Some(what) = state.unexpected.take() {
            return Err(what);
        }
        match state.entries.drain(..).find(|e| e.call.kind != Kind::Sync) {
            Some(e) => Err(format!("nothing was asked where the other engine asked: {}", e.call)),
            None => Ok(()),
        }
    }

    /// What a processor's APIC and the A20 gate show at the start of a run.
    pub(super) fn set_board(&self, cpu: u32, apic: (u8, u64), a20: bool) {
        put(&mut self.state.lock().apics, cpu, apic);
        self.a20.store(a20, Ordering::SeqCst);
    }

    /// Uses another memory map from now on, with these blocks.
    pub(super) fn set_layout(&self, blocks: Vec<Arc<RamBlock>>, layout: &Layout) {
        *self.blocks.lock() = blocks;
        self.apply_layout(layout);
    }

    fn apply_layout(&self, layout: &Layout) {
        let blocks = self.blocks.lock().clone();
        if let Some(mirror) = &mut *self.mirror.lock() {
            mirror.apply(layout, &blocks);
        }
    }

    fn next(&self, call: &Call) -> Option<Entry> {
        let mut state = self.state.lock();
        if state.idle || state.unexpected.is_some() {
            return None;
        }
        if call.kind.is_poll() {
            let now = self.clock.instructions();
            if call.kind == Kind::Sync {
                // What the other engine will find keeps this one looking, or it would not ask again.
                return state.entries.iter().find(|e| e.call == *call).cloned();
            }
            let next = state.entries.iter().position(|e| e.call.kind != Kind::Sync)?;
            let fits = state.entries[next].call == *call && state.entries[next].count == now;
            return if fits { state.entries.drain(..=next).next_back() } else { None };
        }
        // A look at the APIC that this engine did not need.
        while state.entries.front().is_some_and(|e| e.call.kind == Kind::Sync) {
            state.entries.pop_front();
        }
        match state.entries.pop_front() {
            Some(e) if e.call == *call => Some(e),
            Some(e) => {
                state.unexpected = Some(format!("asked {call} where the other engine asked {}", e.call));
                None
            }
            None => {
                state.unexpected = Some(format!("asked {call}, which the other engine did not"));
                None
            }
        }
    }
}

impl Outside for Replayer {
    fn call(&self, call: Call) -> Answer {
        let Some(entry) = self.next(&call) else {
            let state = self.state.lock();
            if state.unexpected.is_some()
                && let Some(Some(signal)) = state.signals.get(call.cpu as usize)
            {
                signal.raise(CpuSignal::KICK);
            }
            return match call.kind {
                // Nothing waits.
                kind if kind.is_poll() => Answer::default(),
                _ => Answer { value: 0, ok: true, data: vec![0; call.value.min(1 << 16) as usize] },
            };
        };
        if let Some(layout) = &entry.layout {
            self.apply_layout(layout);
        }
        if call.kind == Kind::Sync {
            return entry.answer;
        }
        for (block, at, bytes) in &entry.pages {
            if let Some(block) = self.blocks.lock().get(*block).cloned() {
                block.write(*at, bytes);
            }
        }
        let mut state = self.state.lock();
        put(&mut state.apics, call.cpu, entry.apic);
        if entry.raised != 0
            && let Some(Some(signal)) = state.signals.get(call.cpu as usize)
        {
            signal.raise(entry.raised);
        }
        entry.answer
    }

    fn apic(&self, cpu: u32) -> (u8, u64) {
        self.state.lock().apics.get(cpu as usize).copied().unwrap_or_default()
    }

    fn a20(&self) -> bool {
        self.a20.load(Ordering::SeqCst)
    }
}

fn put<T: Clone + Default>(list: &mut Vec<T>, at: u32, value: T) {
    let at = at as usize;
    if list.len() <= at {
        list.resize(at + 1, T::default());
    }
    list[at] = value;
}

fn width(bytes: u8) -> Width {
    match bytes {
        2 => Width::W2,
        4 => Width::W4,
        8 => Width::W8,
        _ => Width::W1,
    }
}

fn pack(p: Pending) -> u64 {
    u64::from(p.interrupt)
        | u64::from(p.nmi) << 1
        | u64::from(p.init) << 2
        | p.sipi.map_or(0, |v| 1 << 3 | u64::from(v) << 8)
}

fn unpack(v: u64) -> Pending {
    let sipi = (v & 8 != 0).then_some((v >> 8) as u8);
    Pending { interrupt: v & 1 != 0, nmi: v & 2 != 0, init: v & 4 != 0, sipi }
}

/// The registers behind one piece of a mirrored space.
pub(super) struct Registers {
    pub(super) outside: Arc<dyn Outside>,
    pub(super) space: Space,
    /// Address of the region's first byte.
    pub(super) base: u64,
}

impl Registers {
    fn call(&self, a: anura_memory::Access, write: bool, value: u64, data: Vec<u8>) -> Answer {
        let kind = match (self.space, write) {
            (Space::Memory, false) => Kind::MemoryRead,
            (Space::Memory, true) => Kind::MemoryWrite,
            (Space::Ports, false) => Kind::PortRead,
            (Space::Ports, true) => Kind::PortWrite,
        };
        let Requester::Cpu(cpu) = a.from else { return Answer::default() };
        let at = self.base.wrapping_add(a.offset);
        self.outside.call(Call { kind, cpu, at, width: a.width.bytes() as u8, value, data })
    }
}

impl anura_memory::IoHandler for Registers {
    fn read(&self, a: anura_memory::Access) -> u64 {
        self.call(a, false, 0, Vec::new()).value
    }

    fn write(&self, a: anura_memory::Access, value: u64) {
        self.call(a, true, value, Vec::new());
    }

    fn read_bulk(&self, a: anura_memory::Access, buf: &mut [u8]) {
        let answer = self.call(a, false, buf.len() as u64, Vec::new());
        let n = buf.len().min(answer.data.len());
        buf[..n].copy_from_slice(&answer.data[..n]);
    }

    fn write_bulk(&self, a: anura_memory::Access, buf: &[u8]) {
        self.call(a, true, 0, buf.to_vec());
    }
}

/// The board as an engine sees it through an [`Outside`].
pub(super) struct Platform {
    outside: Arc<dyn Outside>,
    apics: Vec<Apic>,
}

struct Apic {
    outside: Arc<dyn Outside>,
    cpu: u32,
}

impl Platform {
    pub(super) fn new(outside: Arc<dyn Outside>, cpus: u32) -> Arc<Self> {
        let apics = (0..cpus).map(|cpu| Apic { outside: outside.clone(), cpu }).collect();
        Arc::new(Self { outside, apics })
    }
}

impl CpuPlatform for Platform {
    fn apic(&self, cpu: u32) -> &dyn LocalApic {
        &self.apics[cpu as usize]
    }

    fn rdmsr(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.outside.call(Call::new(Kind::Rdmsr, cpu, msr.into(), 0)).option()
    }

    fn wrmsr(&self, cpu: u32, msr: u32, value: u64) -> bool {
        self.outside.call(Call::new(Kind::Wrmsr, cpu, msr.into(), value)).value != 0
    }

    fn ferr(&self, level: bool) -> bool {
        self.outside.call(Call::new(Kind::Ferr, 0, 0, level.into())).value != 0
    }

    fn a20(&self) -> bool {
        self.outside.a20()
    }
}

impl Apic {
    fn ask(&self, kind: Kind, at: u64, value: u64) -> Answer {
        self.outside.call(Call::new(kind, self.cpu, at, value))
    }
}

impl LocalApic for Apic {
    fn sync(&self) -> Pending {
        unpack(self.ask(Kind::Sync, 0, 0).value)
    }

    fn acknowledge(&self) -> Option<u8> {
        self.ask(Kind::Acknowledge, 0, 0).option().map(|v| v as u8)
    }

    fn take_nmi(&self) -> bool {
        self.ask(Kind::TakeNmi, 0, 0).value != 0
    }

    fn take_init(&self) -> bool {
        self.ask(Kind::TakeInit, 0, 0).value != 0
    }

    fn take_sipi(&self) -> Option<u8> {
        self.ask(Kind::TakeSipi, 0, 0).option().map(|v| v as u8)
    }

    fn tpr(&self) -> u8 {
        self.outside.apic(self.cpu).0
    }

    fn set_tpr(&self, cr8: u8) {
        self.ask(Kind::SetTpr, 0, cr8.into());
    }

    fn base(&self) -> u64 {
        self.outside.apic(self.cpu).1
    }

    fn set_base(&self, value: u64) -> bool {
        self.ask(Kind::SetBase, 0, value).value != 0
    }

    fn mmio_read(&self, offset: u32) -> u32 {
        self.ask(Kind::ApicRead, offset.into(), 0).value as u32
    }

    fn mmio_write(&self, offset: u32, value: u32) {
        self.ask(Kind::ApicWrite, offset.into(), value.into());
    }

    fn msr_read(&self, msr: u32) -> Option<u64> {
        self.ask(Kind::ApicMsrRead, msr.into(), 0).option()
    }

    fn msr_write(&self, msr: u32, value: u64) -> bool {
        self.ask(Kind::ApicMsrWrite, msr.into(), value).value != 0
    }
}
