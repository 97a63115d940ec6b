//! The bus between IOAPIC, MSI writers and local APICs: messages, and who they are for.
//!
//! Sources: Intel SDM volume 3, chapter 11 ("Issuing Interprocessor Interrupts", "Determining IPI
//! Destination", "Message Signalled Interrupts"). Delivery only touches the mailboxes of the target APICs, which
//! are atomics, so it may be called with any device's or the fabric's lock held.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use anura_vmcore::{CpuSignal, HostApics, MsiSink, trace_event};
use parking_lot::RwLock;

/// How a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector, at all targets.
    Fixed,
    /// The vector, at the target of lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Remote read, which current processors do not have.
    RemoteRead,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    StartUp,
    /// The 8259's vector.
    ExtInt,
}

impl DeliveryMode {
    /// From the three bits of an ICR, LVT or redirection entry.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::RemoteRead,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// Trigger mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge triggered.
    Edge,
    /// Level triggered: the EOI is broadcast.
    Level,
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC id, or logical destination; 0xff (0xffffffff in x2APIC mode) is everybody.
    pub destination: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Delivery mode.
    pub delivery: DeliveryMode,
    /// Vector; for start-up the page.
    pub vector: u8,
    /// Trigger mode.
    pub trigger: Trigger,
    /// Level field: `false` only in INIT level de-assert.
    pub assert: bool,
}

impl Message {
    /// The message as a write to the APIC window; ids beyond eight bits go into bits 63:40.
    pub fn to_msi(&self) -> (u64, u32) {
        let (low, high) = (u64::from(self.destination & 0xff), u64::from(self.destination & 0xffff_ff00));
        let address = 0xfee0_0000 | low << 12 | high << 32 | u64::from(self.logical) << 2;
        let level = (self.trigger == Trigger::Level) as u32;
        let data =
            u32::from(self.vector) | (self.delivery as u32) << 8 | level << 15 | u32::from(self.assert) << 14;
        (address, data)
    }

    /// What a write to the APIC window says.
    fn from_msi(address: u64, data: u32) -> Self {
        // Bits 19:12 are the destination, 2 the destination mode; with extended ids, bits 63:40 go on top.
        Self {
            destination: (address >> 12) as u32 & 0xff | (address >> 32) as u32 & 0xffff_ff00,
            logical: address & 4 != 0,
            delivery: DeliveryMode::from_bits((data >> 8) as u8),
            vector: data as u8,
            trigger: if data & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge },
            assert: data & 1 << 15 == 0 || data & 1 << 14 != 0,
        }
    }
}

/// What other agents may touch of a local APIC: posted interrupts, and what decides destinations.
pub struct Mailbox {
    /// Index of the vCPU.
    pub cpu: u32,
    signal: Arc<CpuSignal>,
    posted: [AtomicU32; 8],
    /// Of the posted vectors, those that are level triggered.
    posted_level: [AtomicU32; 8],
    any: AtomicBool,
    latches: AtomicU32,
    sipi: AtomicU32,
    lint0: AtomicBool,
    // Published by the APIC's owner.
    pub(super) id: AtomicU32,
    pub(super) ldr: AtomicU32,
    pub(super) flat: AtomicBool,
    pub(super) x2apic: AtomicBool,
    pub(super) enabled: AtomicBool,
    pub(super) priority: AtomicU32,
    /// IA32_APIC_BASE, which processors look at with every address that they translate.
    pub(super) base: AtomicU64,
}

const NMI: u32 = 1;
const INIT: u32 = 2;
const EXT_INT: u32 = 4;
/// A second NMI behind the latched one.
const NMI_BEHIND: u32 = 8;

/// What was taken from a mailbox.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Posted {
    pub vectors: [u32; 8],
    pub level: [u32; 8],
}

impl Mailbox {
    /// The mailbox of vCPU `cpu` with this physical id.
    pub fn new(cpu: u32, apic_id: u32, signal: Arc<CpuSignal>) -> Arc<Self> {
        Arc::new(Self {
            cpu,
            signal,
            posted: Default::default(),
            posted_level: Default::default(),
            any: AtomicBool::new(false),
            latches: AtomicU32::new(0),
            sipi: AtomicU32::new(0),
            lint0: AtomicBool::new(false),
            id: AtomicU32::new(apic_id),
            ldr: AtomicU32::new(0),
            flat: AtomicBool::new(true),
            x2apic: AtomicBool::new(false),
            enabled: AtomicBool::new(true),
            priority: AtomicU32::new(0),
            base: AtomicU64::new(0),
        })
    }

    /// Posts a vector and gets the vCPU's attention.
    pub fn post(&self, vector: u8, trigger: Trigger) {
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        match trigger {
            Trigger::Level => self.posted_level[word].fetch_or(bit, Ordering::SeqCst),
            Trigger::Edge => self.posted_level[word].fetch_and(!bit, Ordering::SeqCst),
        };
        self.posted[word].fetch_or(bit, Ordering::SeqCst);
        self.any.store(true, Ordering::SeqCst);
        self.attention();
    }

    pub(super) fn attention(&self) {
        self.signal.raise(CpuSignal::IRQ);
    }

    pub(super) fn take_posted(&self) -> Option<Posted> {
        if !self.any.swap(false, Ordering::SeqCst) {
            return None;
        }
        let mut taken = Posted::default();
        for word in 0..8 {
            taken.vectors[word] = self.posted[word].swap(0, Ordering::SeqCst);
            taken.level[word] = self.posted_level[word].load(Ordering::SeqCst);
        }
        Some(taken)
    }

    /// The vectors posted and not yet taken, without taking them.
    pub(super) fn peek_posted(&self) -> Posted {
        let mut seen = Posted::default();
        for word in 0..8 {
            seen.vectors[word] = self.posted[word].load(Ordering::SeqCst);
            seen.level[word] = self.posted_level[word].load(Ordering::SeqCst);
        }
        seen
    }

    fn latch(&self, bit: u32) {
        self.latches.fetch_or(bit, Ordering::SeqCst);
        self.attention();
    }

    /// Latches an NMI. A processor that is in no NMI handler takes one at once and latches the next, and ours may be
    /// late, so two can wait; the processor drops one of them where it was in a handler.
    pub fn post_nmi(&self) {
        let grow = |latches| Some(latches | if latches & NMI != 0 { NMI_BEHIND } else { NMI });
        let _ = self.latches.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grow);
        self.attention();
    }

    /// Takes one latched NMI.
    pub(super) fn take_nmi(&self) -> bool {
        let shrink = |latches| match latches & (NMI | NMI_BEHIND) {
            0 => None,
            NMI => Some(latches & !NMI),
            _ => Some(latches & !NMI_BEHIND),
        };
        self.latches.fetch_update(Ordering::SeqCst, Ordering::SeqCst, shrink).is_ok()
    }

    pub(super) fn latched(&self, bit: Latch) -> bool {
        self.latches.load(Ordering::SeqCst) & bit as u32 != 0
    }

    pub(super) fn take_latch(&self, bit: Latch) -> bool {
        self.latches.fetch_and(!(bit as u32), Ordering::SeqCst) & bit as u32 != 0
    }

    pub(super) fn restore_latches(&self, latches: u32, sipi: u32) {
        self.latches.store(latches & (NMI | INIT | EXT_INT | NMI_BEHIND), Ordering::SeqCst);
        self.sipi.store(sipi & 0x1ff, Ordering::SeqCst);
    }

    pub(super) fn latches(&self) -> (u32, u32) {
        (self.latches.load(Ordering::SeqCst), self.sipi.load(Ordering::SeqCst))
    }

    pub(super) fn sipi(&self) -> Option<u8> {
        let raw = self.sipi.load(Ordering::SeqCst);
        (raw & 0x100 != 0).then_some(raw as u8)
    }

    pub(super) fn take_sipi(&self) -> Option<u8> {
        let raw = self.sipi.swap(0, Ordering::SeqCst);
        (raw & 0x100 != 0).then_some(raw as u8)
    }

    pub(super) fn lint0(&self) -> bool {
        self.lint0.load(Ordering::SeqCst)
    }

    /// Drives the LINT0 pin (the PIC's INTR on the bootstrap processor).
    pub fn set_lint0(&self, level: bool) {
        if self.lint0.swap(level, Ordering::SeqCst) != level && level {
            self.attention();
        }
    }

    /// Sets the level that LINT0 has without an edge, when a machine is restored.
    pub fn restore_lint0(&self, level: bool) {
        self.lint0.store(level, Ordering::SeqCst);
    }

    /// Whether a message for `destination` reaches this APIC.
    fn matches(&self, destination: u32, logical: bool) -> bool {
        let x2apic = self.x2apic.load(Ordering::Acquire);
        if destination == u32::MAX || destination == 0xff && !x2apic {
            return true;
        }
        if !logical {
            return destination == self.id.load(Ordering::Acquire);
        }
        let ldr = self.ldr.load(Ordering::Acquire);
        if x2apic {
            return ldr >> 16 == destination >> 16 && ldr & destination & 0xffff != 0;
        }
        let (own, wanted) = ((ldr >> 24) as u8, destination as u8);
        if self.flat.load(Ordering::Acquire) {
            own & wanted != 0
        } else {
            own >> 4 == wanted >> 4 && own & wanted & 0x0f != 0
        }
    }

    fn accept(&self, message: &Message) {
        trace_event!(
            apic_deliver_irq,
            "cpu {} delivery {:?} vector {:#04x} trigger {:?}",
            self.cpu,
            message.delivery,
            message.vector,
            message.trigger
        );
        match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if self.enabled.load(Ordering::Acquire) {
                    self.post(message.vector, message.trigger);
                }
            }
            DeliveryMode::Nmi => self.post_nmi(),
            DeliveryMode::ExtInt => self.latch(EXT_INT),
            // INIT level de-assert only resynchronised arbitration ids of old processors.
            DeliveryMode::Init if !message.assert => {}
            DeliveryMode::Init => {
                self.sipi.store(0, Ordering::SeqCst);
                self.latch(INIT);
            }
            DeliveryMode::StartUp => {
                self.sipi.store(0x100 | u32::from(message.vector), Ordering::SeqCst);
                self.attention();
            }
            DeliveryMode::Smi | DeliveryMode::RemoteRead => {}
        }
    }
}

/// A latched event of a mailbox.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Latch {
    Nmi = NMI,
    Init = INIT,
    ExtInt = EXT_INT,
}

/// Destination shorthand of an ICR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender.
    Own,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// All local APICs of the machine.
#[derive(Default)]
pub struct ApicBus {
    mailboxes: OnceLock<Vec<Arc<Mailbox>>>,
    /// Where messages go while the host keeps the APICs.
    host: RwLock<Option<Arc<dyn HostApics>>>,
}

impl ApicBus {
    /// A bus that `connect` completes.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Connects the APICs, in vCPU order; once, while the machine is built.
    pub fn connect(&self, mailboxes: Vec<Arc<Mailbox>>) {
        let _ = self.mailboxes.set(mailboxes);
    }

    fn all(&self) -> &[Arc<Mailbox>] {
        self.mailboxes.get().map_or(&[], Vec::as_slice)
    }

    /// The mailbox of vCPU `cpu`.
    pub fn mailbox(&self, cpu: u32) -> Option<&Arc<Mailbox>> {
        self.all().get(cpu as usize)
    }

    /// Does `work` with no message on its way; afterwards messages go to `to`, or to the mailboxes.
    pub fn hand_over(&self, to: Option<Arc<dyn HostApics>>, work: &mut dyn FnMut()) {
        let mut host = self.host.write();
        work();
        *host = to;
    }

    /// Tells the host what the IOAPIC's pins send, if it keeps the APICs.
    pub(super) fn route_pins(&self, pins: impl Iterator<Item = Message>) {
        if let Some(host) = &*self.host.read() {
            host.route_pins(&pins.map(|m| m.to_msi()).collect::<Vec<_>>());
        }
    }

    /// Delivers a message; returns whether anybody took it.
    pub fn deliver(&self, message: &Message) -> bool {
        self.deliver_from(message, None)
    }

    /// As `deliver`, for the message of a route that the host may know.
    fn deliver_from(&self, message: &Message, route: Option<u64>) -> bool {
        if let Some(host) = &*self.host.read()
            // The host's APICs have no PIC behind them: its INTR is ours even then.
            && message.delivery != DeliveryMode::ExtInt
        {
            trace_event!(apic_deliver_irq, "to the host: {message:?}");
            let (address, data) = message.to_msi();
            match route {
                Some(route) => host.send_route(route, address, data),
                None => host.send_msi(address, data),
            }
            return true;
        }
        let mut targets = self.all().iter().filter(|m| m.matches(message.destination, message.logical));
        if message.delivery == DeliveryMode::LowestPriority {
            let chosen = targets
                .filter(|m| m.enabled.load(Ordering::Acquire))
                .min_by_key(|m| m.priority.load(Ordering::Acquire));
            return chosen.map(|m| m.accept(message)).is_some();
        }
        let mut taken = false;
        for target in &mut targets {
            target.accept(message);
            taken = true;
        }
        taken
    }

    /// Delivers with a shorthand instead of a destination.
    pub fn deliver_shorthand(&self, message: &Message, shorthand: Shorthand, from: u32) -> bool {
        if shorthand == Shorthand::None {
            return self.deliver(message);
        }
        for mailbox in self.all() {
            let own = mailbox.cpu == from;
            if shorthand == Shorthand::All || own == (shorthand == Shorthand::Own) {
                mailbox.accept(message);
            }
        }
        true
    }

    /// Raises NMI at every processor, as the monitor's `nmi` does.
    pub fn nmi_all(&self) {
        self.all().iter().for_each(|m| m.post_nmi());
    }
}

impl MsiSink for ApicBus {
    fn send_msi(&self, address: u64, data: u32) {
        self.deliver(&Message::from_msi(address, data));
    }

    fn send_route(&self, route: u64, address: u64, data: u32) {
        self.deliver_from(&Message::from_msi(address, data), Some(route));
    }

    fn forget_route(&self, route: u64) {
        if let Some(host) = &*self.host.read() {
            host.forget_route(route);
        }
    }
}
