//! Local APIC, Intel SDM volume 3, chapter 11 (xAPIC, x2APIC, timer in its three modes).
//!
//! Each belongs to one vCPU. Others reach it through its [`Mailbox`] only; what the vCPU itself does (register
//! page, MSRs, acknowledging) locks the register file. The timer counts at 1 GHz before its divider.
//! Left out: CMCI and SMI delivery, focus processor checking, and the arbitration register, which reads zero.

use std::sync::{Arc, OnceLock};

use anura_vmcore::{
    Clock, CpuSignal, Device, DeviceCell, LoadError, Record, ResetKind, Timer, TimerState, guest_error,
    trace_event,
};
use anura_x86::apic::{ApicImage, ApicPage, offset};

use super::apic_bus::{ApicBus, DeliveryMode, Latch, Mailbox, Message, Shorthand, Trigger};

/// What the rest of the interrupt system offers an APIC; called with no lock held.
pub trait ApicPeer: Send + Sync {
    /// INTA to the 8259 pair.
    fn pic_acknowledge(&self) -> u8;
    /// The end of a level-triggered interrupt, for the IOAPIC.
    fn end_of_interrupt(&self, vector: u8);
}

/// A local APIC: the face that its vCPU uses.
pub struct LocalApic {
    cpu: u32,
    mailbox: Arc<Mailbox>,
    regs: DeviceCell<ApicRegs>,
    bus: Arc<ApicBus>,
    peer: OnceLock<Arc<dyn ApicPeer>>,
}

/// What `sync` finds waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApicPending {
    /// A vector or the PIC's INTR.
    pub interrupt: bool,
    /// A latched NMI.
    pub nmi: bool,
    /// A latched INIT.
    pub init: bool,
    /// A latched start-up IPI.
    pub sipi: Option<u8>,
}

const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_ERROR: usize = 5;
const LVT_COUNT: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
/// Writable bits of each local vector table entry.
const LVT_WRITABLE: [u32; LVT_COUNT] =
    [0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const DEFAULT_PAGE: u64 = 0xfee0_0000;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;

const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Version 14h, six local vector table entries, EOI broadcast suppression.
const VERSION: u32 = 0x0105_0014;

/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// What a register access asks for once the register file is unlocked.
#[derive(Default)]
struct Effect {
    eoi: Option<u8>,
    ipi: Option<(Message, Shorthand)>,
}

/// The register file and the timer.
pub struct ApicRegs {
    // Wiring.
    cpu: u32,
    initial_id: u32,
    x2apic_allowed: bool,
    phys_mask: u64,
    tsc_khz: u64,
    mailbox: Arc<Mailbox>,
    clock: Clock,
    timer: Timer,
    // State.
    base: u64,
    id: u32,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: [u32; LVT_COUNT],
    initial_count: u32,
    divide: u32,
    /// Guest time at which the running count was loaded.
    started: u64,
    deadline: u64,
}

fn highest(bits: &[u32; 8]) -> Option<u8> {
    (0..8).rev().find(|w| bits[*w] != 0).map(|w| (w * 32) as u8 + (31 - bits[w].leading_zeros()) as u8)
}

fn set_bit(bits: &mut [u32; 8], vector: u8, on: bool) {
    let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
    bits[word] = if on { bits[word] | bit } else { bits[word] & !bit };
}

fn has_bit(bits: &[u32; 8], vector: u8) -> bool {
    bits[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
}

/// What a local APIC is made from.
pub struct ApicConfig {
    /// vCPU index; 0 is the bootstrap processor.
    pub cpu: u32,
    /// Physical id, by topology.
    pub apic_id: u32,
    /// The CPU model shows x2APIC.
    pub x2apic: bool,
    /// Physical address bits of the CPU model.
    pub phys_bits: u32,
    /// Rate of the time stamp counter.
    pub tsc_khz: u64,
}

impl LocalApic {
    /// Makes the APIC of one vCPU. The bus is connected by the caller once all APICs exist.
    pub fn new(config: &ApicConfig, signal: Arc<CpuSignal>, clock: &Clock, bus: &Arc<ApicBus>) -> Arc<Self> {
        let mailbox = Mailbox::new(config.cpu, config.apic_id, signal);
        let regs = DeviceCell::new_cyclic(|me| {
            let mut regs = ApicRegs {
                cpu: config.cpu,
                initial_id: config.apic_id,
                x2apic_allowed: config.x2apic,
                phys_mask: (1 << config.phys_bits) - 1,
                tsc_khz: config.tsc_khz.max(1),
                mailbox: mailbox.clone(),
                clock: clock.clone(),
                timer: clock.timer(me, ApicRegs::timer_fired),
                base: 0,
                id: config.apic_id,
                tpr: 0,
                ldr: 0,
                dfr: u32::MAX,
                svr: 0xff,
                isr: [0; 8],
                tmr: [0; 8],
                irr: [0; 8],
                esr: 0,
                esr_pending: 0,
                icr: 0,
                lvt: [LVT_MASKED; LVT_COUNT],
                initial_count: 0,
                divide: 0,
                started: 0,
                deadline: 0,
            };
            regs.reset(ResetKind::PowerOn);
            regs
        });
        Arc::new(Self { cpu: config.cpu, mailbox, regs, bus: bus.clone(), peer: OnceLock::new() })
    }

    /// Connects the interrupt fabric; once, while the machine is built.
    pub fn connect(&self, peer: Arc<dyn ApicPeer>) {
        let _ = self.peer.set(peer);
    }

    /// The mailbox, for the bus.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The register file as a device, for reset, save and load.
    pub fn device(&self) -> &DeviceCell<ApicRegs> {
        &self.regs
    }

    fn carry_out(&self, effect: Effect) {
        if let (Some(vector), Some(peer)) = (effect.eoi, self.peer.get()) {
            peer.end_of_interrupt(vector);
        }
        if let Some((message, shorthand)) = effect.ipi {
            self.bus.deliver_shorthand(&message, shorthand, self.cpu);
        }
    }

    /// Takes what others posted and says what waits.
    pub fn sync(&self) -> ApicPending {
        let mut regs = self.regs.lock();
        regs.take_posted();
        ApicPending {
            interrupt: regs.deliverable().is_some() || regs.ext_int_waits(),
            nmi: self.mailbox.latched(Latch::Nmi),
            init: self.mailbox.latched(Latch::Init),
            sipi: self.mailbox.sipi(),
        }
    }

    /// Acknowledges the interrupt of highest priority, of the APIC or of the PIC.
    pub fn acknowledge(&self) -> Option<u8> {
        let mut regs = self.regs.lock();
        regs.take_posted();
        if let Some(vector) = regs.deliverable() {
            set_bit(&mut regs.irr, vector, false);
            set_bit(&mut regs.isr, vector, true);
            regs.publish();
            return Some(vector);
        }
        let ext_int = regs.ext_int_waits();
        drop(regs);
        if !ext_int {
            return None;
        }
        self.mailbox.take_latch(Latch::ExtInt);
        self.peer.get().map(|peer| peer.pic_acknowledge())
    }

    /// Takes a latched NMI.
    pub fn take_nmi(&self) -> bool {
        self.mailbox.take_nmi()
    }

    /// Takes the latched INIT; the register file is reset with the processor.
    pub fn take_init(&self) -> bool {
        let taken = self.mailbox.take_latch(Latch::Init);
        if taken {
            self.regs.lock().init();
        }
        taken
    }

    /// Takes the latched start-up IPI.
    pub fn take_sipi(&self) -> Option<u8> {
        self.mailbox.take_sipi()
    }

    /// CR8.
    pub fn tpr(&self) -> u8 {
        self.regs.lock().tpr >> 4
    }

    /// Writes CR8.
    pub fn set_tpr(&self, cr8: u8) {
        let mut regs = self.regs.lock();
        regs.tpr = cr8 << 4;
        regs.publish();
        regs.attention_if_deliverable();
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.mailbox.base.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Writes IA32_APIC_BASE; `false` is #GP.
    pub fn set_base(&self, value: u64) -> bool {
        self.regs.lock().set_base(value)
    }

    /// Reads the register page.
    pub fn mmio_read(&self, offset: u32) -> u32 {
        let mut regs = self.regs.lock();
        regs.take_posted();
        if regs.base & BASE_X2APIC != 0 {
            return u32::MAX;
        }
        // Registers are 4 bytes wide and 16 apart; the rest of each 16 bytes is undefined and reads zero here.
        if offset & 0xc != 0 { 0 } else { regs.read(offset >> 4 & 0xff).unwrap_or(0) }
    }

    /// Writes the register page.
    pub fn mmio_write(&self, offset: u32, value: u32) {
        let effect = {
            let mut regs = self.regs.lock();
            regs.take_posted();
            if regs.base & BASE_X2APIC != 0 || offset & 0xc != 0 {
                return;
            }
            regs.write(offset >> 4 & 0xff, value).unwrap_or_default()
        };
        self.carry_out(effect);
    }

    /// Reads an x2APIC register or IA32_TSC_DEADLINE; `None` is #GP.
    pub fn msr_read(&self, msr: u32) -> Option<u64> {
        let mut regs = self.regs.lock();
        regs.take_posted();
        if msr == MSR_TSC_DEADLINE {
            return Some(if regs.timer_mode() == TimerMode::Deadline { regs.deadline } else { 0 });
        }
        if regs.base & BASE_X2APIC == 0 || !(0x800..=0x8ff).contains(&msr) {
            return None;
        }
        match msr - 0x800 {
            0x02 => Some(u64::from(regs.id)),
            0x0e | 0x31 | 0x0b | 0x3f | 0x0c | 0x09 => None,
            0x30 => Some(regs.icr),
            n => regs.read(n).map(u64::from),
        }
    }

    /// Writes one; `false` is #GP.
    pub fn msr_write(&self, msr: u32, value: u64) -> bool {
        let effect = {
            let mut regs = self.regs.lock();
            regs.take_posted();
            if msr == MSR_TSC_DEADLINE {
                regs.set_tsc_deadline(value);
                return true;
            }
            if regs.base & BASE_X2APIC == 0 || !(0x800..=0x8ff).contains(&msr) {
                return false;
            }
            match regs.x2apic_write(msr - 0x800, value) {
                Some(effect) => effect,
                None => return false,
            }
        };
        self.carry_out(effect);
        true
    }

    /// The whole register file, with what was posted, for a host that keeps it while the vCPU runs.
    pub fn image(&self) -> ApicImage {
        let mut regs = self.regs.lock();
        regs.take_posted();
        regs.image()
    }

    /// Takes the register file back from the host.
    pub fn set_image(&self, image: &ApicImage) {
        self.regs.lock().set_image(image);
    }

    /// What waits beside the register file while the host keeps it.
    pub fn wires(&self) -> ApicPending {
        ApicPending {
            interrupt: self.mailbox.latched(Latch::ExtInt) || self.mailbox.lint0(),
            nmi: self.mailbox.latched(Latch::Nmi),
            init: self.mailbox.latched(Latch::Init),
            sipi: self.mailbox.sipi(),
        }
    }

    /// INTA to the 8259 pair if it or an ExtINT message waits.
    pub fn pic_acknowledge(&self) -> Option<u8> {
        let waits = self.mailbox.take_latch(Latch::ExtInt) || self.mailbox.lint0();
        self.peer.get().filter(|_| waits).map(|peer| peer.pic_acknowledge())
    }

    /// The host's APIC ended a level-triggered interrupt.
    pub fn host_end_of_interrupt(&self, vector: u8) {
        if let Some(peer) = self.peer.get() {
            peer.end_of_interrupt(vector);
        }
    }

    /// Text of `info lapic`.
    pub fn describe(&self) -> String {
        self.regs.lock().describe()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

/// Shortest period of the periodic timer: a guest cannot keep the host busy with nothing but ticks.
const SHORTEST_PERIOD: u64 = 1_000;

impl ApicRegs {
    fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0 && self.svr & SVR_ENABLE != 0
    }

    fn publish(&self) {
        use std::sync::atomic::Ordering::Release;
        let x2apic = self.base & BASE_X2APIC != 0;
        self.mailbox.id.store(self.id, Release);
        self.mailbox.ldr.store(self.logical_id(), Release);
        self.mailbox.flat.store(self.dfr >> 28 == 0xf, Release);
        self.mailbox.x2apic.store(x2apic, Release);
        self.mailbox.enabled.store(self.enabled(), Release);
        self.mailbox.priority.store(u32::from(self.ppr()), Release);
        self.mailbox.base.store(self.base, Release);
    }

    fn logical_id(&self) -> u32 {
        if self.base & BASE_X2APIC != 0 { self.id >> 4 << 16 | 1 << (self.id & 0xf) } else { self.ldr }
    }

    fn take_posted(&mut self) {
        let Some(posted) = self.mailbox.take_posted() else { return };
        for word in 0..8 {
            self.irr[word] |= posted.vectors[word];
            let new = posted.vectors[word];
            self.tmr[word] = self.tmr[word] & !new | posted.level[word] & new;
        }
        if self.irr[0] & 0xffff != 0 {
            self.irr[0] &= !0xffff;
            self.error(ESR_RECEIVE_ILLEGAL);
        }
    }

    fn ppr(&self) -> u8 {
        let in_service = highest(&self.isr).unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 }
    }

    /// The vector that the processor would take now.
    fn deliverable(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        highest(&self.irr).filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// Whether the PIC's INTR reaches the processor.
    fn ext_int_waits(&self) -> bool {
        if self.mailbox.latched(Latch::ExtInt) {
            return true;
        }
        if !self.mailbox.lint0() {
            return false;
        }
        // With the APIC switched off LINT0 is the INTR pin.
        let lvt = self.lvt[LVT_LINT0];
        self.base & BASE_ENABLE == 0
            || lvt & LVT_MASKED == 0 && DeliveryMode::from_bits((lvt >> 8) as u8) == DeliveryMode::ExtInt
    }

    fn attention_if_deliverable(&self) {
        if self.deliverable().is_some() || self.ext_int_waits() {
            self.mailbox.attention();
        }
    }

    /// Delivers a local interrupt by its table entry.
    fn local(&mut self, entry: usize) {
        let lvt = self.lvt[entry];
        if lvt & LVT_MASKED != 0 || self.base & BASE_ENABLE == 0 {
            return;
        }
        let mode = match entry {
            LVT_TIMER | LVT_ERROR => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits((lvt >> 8) as u8),
        };
        match mode {
            DeliveryMode::Fixed if lvt & 0xff < 16 => self.error(ESR_RECEIVE_ILLEGAL),
            DeliveryMode::Fixed => {
                set_bit(&mut self.irr, lvt as u8, true);
                set_bit(&mut self.tmr, lvt as u8, false);
                self.mailbox.attention();
            }
            DeliveryMode::Nmi => self.mailbox.post_nmi(),
            _ => {}
        }
    }

    fn error(&mut self, bits: u32) {
        self.esr_pending |= bits;
        // The error interrupt itself with an illegal vector raises nothing further.
        if self.lvt[LVT_ERROR] & 0xff >= 16 {
            self.local(LVT_ERROR);
        }
    }

    fn timer_mode(&self) -> TimerMode {
        match self.lvt[LVT_TIMER] >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::Deadline,
            _ => TimerMode::OneShot,
        }
    }

    /// Nanoseconds per count.
    fn tick(&self) -> u64 {
        let code = (self.divide & 3 | self.divide >> 1 & 4) + 1;
        1 << (code & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial_count) * self.tick()
    }

    fn start_count(&mut self, now: u64) {
        self.started = now;
        if self.initial_count == 0 || self.timer_mode() == TimerMode::Deadline {
            self.timer.cancel();
        } else {
            self.timer.arm(now.saturating_add(self.period()));
        }
    }

    fn current_count(&self) -> u32 {
        // Not armed: a one-shot count that has run out, even if the mode has changed since.
        if self.initial_count == 0 || self.timer.deadline().is_none() {
            return 0;
        }
        let elapsed = self.clock.now().saturating_sub(self.started) / self.tick();
        let initial = u64::from(self.initial_count);
        match self.timer_mode() {
            TimerMode::Deadline => 0,
            TimerMode::OneShot => initial.saturating_sub(elapsed) as u32,
            TimerMode::Periodic => (initial - elapsed % initial) as u32,
        }
    }

    fn timer_fired(&mut self, now: u64) {
        match self.timer_mode() {
            TimerMode::Deadline => self.deadline = 0,
            TimerMode::OneShot => {}
            TimerMode::Periodic => {
                let period = self.period().max(SHORTEST_PERIOD);
                // Ticks that were missed altogether are lost, as on a processor that could not take them.
                let passed = now.saturating_sub(self.started) / period;
                self.started = self.started.saturating_add(passed.max(1) * period);
                self.timer.arm(self.started.saturating_add(period));
            }
        }
        self.local(LVT_TIMER);
    }

    fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() != TimerMode::Deadline {
            return;
        }
        self.deadline = value;
        self.timer.cancel();
        if value == 0 {
            return;
        }
        let ns = (u128::from(value) * 1_000_000).div_ceil(u128::from(self.tsc_khz));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        if ns <= self.clock.now() {
            // Past: it fires before the next instruction, not when somebody looks at the timers.
            self.timer_fired(ns);
        } else {
            self.timer.arm(ns);
        }
    }

    fn read(&mut self, index: u32) -> Option<u32> {
        let word = |bits: &[u32; 8]| Some(bits[(index & 7) as usize]);
        match index {
            0x02 => Some(self.id << 24),
            0x03 => Some(VERSION),
            0x08 => Some(u32::from(self.tpr)),
            0x09 | 0x0c => Some(0),
            0x0a => Some(u32::from(self.ppr())),
            0x0b => Some(0),
            0x0d => Some(self.logical_id()),
            0x0e => Some(self.dfr),
            0x0f => Some(self.svr),
            0x10..=0x17 => word(&self.isr),
            0x18..=0x1f => word(&self.tmr),
            0x20..=0x27 => word(&self.irr),
            0x28 => Some(self.esr),
            0x30 => Some(self.icr as u32),
            0x31 => Some((self.icr >> 32) as u32),
            0x32..=0x37 => Some(self.lvt[(index - 0x32) as usize]),
            0x38 => Some(self.initial_count),
            0x39 => Some(self.current_count()),
            0x3e => Some(self.divide),
            _ => {
                self.illegal_register(index);
                None
            }
        }
    }

    fn illegal_register(&mut self, index: u32) {
        guest_error!("lapic {}: access to register {:#05x}, which does not exist", self.cpu, index << 4);
        // An x2APIC's are told by #GP alone.
        if self.base & BASE_X2APIC == 0 {
            self.error(ESR_ILLEGAL_REGISTER);
        }
    }

    fn write(&mut self, index: u32, value: u32) -> Option<Effect> {
        let mut effect = Effect::default();
        match index {
            // Software may change it as long as the APIC is no x2APIC.
            0x02 if self.base & BASE_X2APIC == 0 => self.id = value >> 24,
            0x02 => {}
            0x08 => {
                self.tpr = value as u8;
                self.attention_if_deliverable();
            }
            0x0b => effect.eoi = self.end_of_interrupt(),
            0x0d => self.ldr = value & 0xff00_0000,
            0x0e => self.dfr = value | 0x0fff_ffff,
            0x0f => self.set_svr(value),
            0x28 => self.esr = std::mem::take(&mut self.esr_pending),
            0x30 => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & !0x1000);
                effect.ipi = self.ipi((self.icr >> 56) as u32);
            }
            0x31 => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            0x32..=0x37 => self.set_lvt((index - 0x32) as usize, value),
            0x38 => {
                if self.timer_mode() != TimerMode::Deadline {
                    self.initial_count = value;
                    self.start_count(self.clock.now());
                }
            }
            0x3e => self.set_divide(value),
            0x03 | 0x09 | 0x0a | 0x0c | 0x10..=0x27 | 0x39 => {
                guest_error!("lapic {}: write of read-only register {:#05x} ignored", self.cpu, index << 4);
            }
            _ => {
                self.illegal_register(index);
                return None;
            }
        }
        self.publish();
        Some(effect)
    }

    /// An x2APIC register by its number; `None` is #GP.
    fn x2apic_write(&mut self, index: u32, value: u64) -> Option<Effect> {
        // Bits that exist in each writable register; a one elsewhere is #GP.
        let writable: u64 = match index {
            0x08 => 0xff,
            0x0b | 0x28 => 0,
            0x0f => 0x11ff,
            0x30 => 0xffff_ffff_000c_cfff,
            0x32..=0x37 => u64::from(LVT_WRITABLE[(index - 0x32) as usize]) | 0x5000,
            0x38 => 0xffff_ffff,
            0x3e => 0xb,
            0x3f => 0xff,
            _ => return None,
        };
        if value & !writable != 0 {
            return None;
        }
        match index {
            0x30 => {
                self.icr = value;
                Some(Effect { eoi: None, ipi: self.ipi((value >> 32) as u32) })
            }
            0x3f => {
                let message = Message {
                    destination: self.id,
                    logical: false,
                    delivery: DeliveryMode::Fixed,
                    vector: value as u8,
                    trigger: Trigger::Edge,
                    assert: true,
                };
                Some(Effect { eoi: None, ipi: self.checked(message).map(|m| (m, Shorthand::Own)) })
            }
            _ => self.write(index, value as u32),
        }
    }

    fn checked(&mut self, message: Message) -> Option<Message> {
        let fixed = matches!(message.delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if fixed && message.vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return None;
        }
        Some(message)
    }

    /// The message that the ICR describes.
    fn ipi(&mut self, destination: u32) -> Option<(Message, Shorthand)> {
        let icr = self.icr as u32;
        let shorthand = match icr >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Own,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        let message = Message {
            destination,
            logical: icr & 1 << 11 != 0,
            delivery: DeliveryMode::from_bits((icr >> 8) as u8),
            vector: icr as u8,
            // Interprocessor interrupts are edge triggered, INIT de-assert apart.
            trigger: Trigger::Edge,
            assert: icr & 1 << 14 != 0 || icr & 1 << 15 == 0,
        };
        self.checked(message).map(|m| (m, shorthand))
    }

    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = highest(&self.isr)?;
        set_bit(&mut self.isr, vector, false);
        trace_event!(apic_eoi, "cpu {} vector {vector:#04x}", self.cpu);
        self.publish();
        self.attention_if_deliverable();
        (has_bit(&self.tmr, vector) && self.svr & SVR_NO_EOI_BROADCAST == 0).then_some(vector)
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value & 0x11ff;
        if value & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        } else {
            self.attention_if_deliverable();
        }
    }

    fn set_lvt(&mut self, entry: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[entry];
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if entry != LVT_TIMER {
            self.lvt[entry] = value;
            self.attention_if_deliverable();
            return;
        }
        let old = self.timer_mode();
        if self.timer.deadline().is_some_and(|at| at <= self.clock.now()) {
            // What is due happens by the old entry, though nobody has looked at the timers yet.
            self.timer.cancel();
            self.timer_fired(self.clock.now());
        }
        self.lvt[entry] = value;
        let new = self.timer_mode();
        if (old == TimerMode::Deadline) != (new == TimerMode::Deadline) {
            // A change to or from deadline mode disarms.
            self.timer.cancel();
            (self.deadline, self.initial_count) = (0, 0);
        }
        // Between one-shot and periodic the count goes on; one that has run out stays at zero.
    }

    fn set_divide(&mut self, value: u32) {
        let left = u64::from(self.current_count());
        self.divide = value & 0xb;
        if left != 0 && self.timer.deadline().is_some() {
            // The count goes on from where it is, at the new rate.
            let now = self.clock.now();
            let done = u64::from(self.initial_count) - left;
            self.started = now.saturating_sub(done * self.tick());
            self.timer.arm(now.saturating_add(left * self.tick()));
        }
    }

    fn set_base(&mut self, value: u64) -> bool {
        let flags = BASE_BSP | BASE_X2APIC | BASE_ENABLE;
        if value & !(flags | self.phys_mask & !0xfff) != 0 {
            return false;
        }
        let (old_on, old_x2) = (self.base & BASE_ENABLE != 0, self.base & BASE_X2APIC != 0);
        let (on, x2) = (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0);
        let legal = match (old_on, old_x2, on, x2) {
            (_, _, false, true) => false,
            (true, true, true, false) | (false, _, true, true) => false,
            _ => !x2 || self.x2apic_allowed,
        };
        if !legal {
            return false;
        }
        if old_on && !on {
            self.reset_registers();
        }
        if x2 && !old_x2 {
            self.id = self.initial_id;
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        self.publish();
        self.attention_if_deliverable();
        true
    }

    fn image(&self) -> ApicImage {
        let x2apic = self.base & BASE_X2APIC != 0;
        let mut page = ApicPage::default();
        let mut set = |at: usize, value: u32| page.set(at, value);
        set(offset::ID, if x2apic { self.id } else { self.id << 24 });
        set(offset::VERSION, VERSION);
        set(offset::TPR, self.tpr.into());
        set(offset::PPR, self.ppr().into());
        set(offset::LDR, self.logical_id());
        set(offset::DFR, self.dfr);
        set(offset::SVR, self.svr);
        for n in 0..8 {
            set(offset::ISR + 16 * n, self.isr[n]);
            set(offset::TMR + 16 * n, self.tmr[n]);
            set(offset::IRR + 16 * n, self.irr[n]);
        }
        // What the next write of the register would show is all that a page can hold of errors.
        set(offset::ESR, self.esr | self.esr_pending);
        set(offset::ICR_LOW, self.icr as u32);
        set(offset::ICR_HIGH, (self.icr >> 32) as u32);
        for (n, lvt) in self.lvt.iter().enumerate() {
            set(offset::LVT_TIMER + 16 * n, *lvt);
        }
        set(offset::TIMER_INITIAL, self.initial_count);
        set(offset::TIMER_CURRENT, self.current_count());
        set(offset::TIMER_DIVIDE, self.divide);
        let armed = self.timer_mode() == TimerMode::Deadline && self.timer.deadline().is_some();
        ApicImage { page, base: self.base, tsc_deadline: if armed { self.deadline } else { 0 } }
    }

    fn set_image(&mut self, image: &ApicImage) {
        let page = &image.page;
        let flags = BASE_BSP | BASE_X2APIC | BASE_ENABLE;
        self.base = image.base & (flags | self.phys_mask & !0xfff);
        let x2apic = self.base & BASE_X2APIC != 0;
        let id = page.get(offset::ID);
        self.id = if x2apic { id } else { id >> 24 };
        self.tpr = page.get(offset::TPR) as u8;
        if !x2apic {
            self.ldr = page.get(offset::LDR) & 0xff00_0000;
        }
        self.dfr = page.get(offset::DFR) | 0x0fff_ffff;
        self.svr = page.get(offset::SVR) & 0x11ff;
        for n in 0..8 {
            self.isr[n] = page.get(offset::ISR + 16 * n);
            self.tmr[n] = page.get(offset::TMR + 16 * n);
            self.irr[n] = page.get(offset::IRR + 16 * n);
        }
        (self.esr, self.esr_pending) = (page.get(offset::ESR), 0);
        self.icr =
            u64::from(page.get(offset::ICR_HIGH)) << 32 | u64::from(page.get(offset::ICR_LOW) & !0x1000);
        for (n, (lvt, writable)) in self.lvt.iter_mut().zip(LVT_WRITABLE).enumerate() {
            *lvt = page.get(offset::LVT_TIMER + 16 * n) & writable;
        }
        self.divide = page.get(offset::TIMER_DIVIDE) & 0xb;
        self.initial_count = page.get(offset::TIMER_INITIAL);
        self.deadline = 0;
        self.timer.cancel();
        let (now, left) = (self.clock.now(), u64::from(page.get(offset::TIMER_CURRENT)));
        match self.timer_mode() {
            TimerMode::Deadline => {
                self.initial_count = 0;
                self.set_tsc_deadline(image.tsc_deadline);
            }
            _ if left != 0 && left <= u64::from(self.initial_count) => {
                let done = u64::from(self.initial_count) - left;
                self.started = now.saturating_sub(done * self.tick());
                self.timer.arm(now.saturating_add(left * self.tick()));
            }
            _ => self.started = now,
        }
        self.publish();
        self.attention_if_deliverable();
    }

    fn reset_registers(&mut self) {
        self.tpr = 0;
        self.id = self.initial_id;
        (self.ldr, self.dfr, self.svr) = (0, u32::MAX, 0xff);
        (self.isr, self.tmr, self.irr) = ([0; 8], [0; 8], [0; 8]);
        (self.esr, self.esr_pending, self.icr) = (0, 0, 0);
        self.lvt = [LVT_MASKED; LVT_COUNT];
        (self.initial_count, self.divide, self.started, self.deadline) = (0, 0, 0, 0);
        self.timer.cancel();
    }

    /// INIT: everything but the base register and the id.
    fn init(&mut self) {
        self.mailbox.take_posted();
        let id = self.id;
        self.reset_registers();
        self.id = id;
        self.publish();
    }

    fn describe(&self) -> String {
        let list = |bits: &[u32; 8]| {
            let set: Vec<_> = (0..=255u8).filter(|v| has_bit(bits, *v)).map(|v| v.to_string()).collect();
            if set.is_empty() { "(none)".to_owned() } else { set.join(" ") }
        };
        let names = ["LVTT", "LVTTHMR", "LVTPC", "LVT0", "LVT1", "LVTERR"];
        let mut text = format!(
            "dumping local APIC state for CPU {}\n\nbase 0x{:x} id {} SPIV 0x{:08x} LDR 0x{:08x} DFR 0x{:08x}\n",
            self.cpu,
            self.base,
            self.id,
            self.svr,
            self.logical_id(),
            self.dfr
        );
        for (name, lvt) in names.iter().zip(self.lvt) {
            let masked = if lvt & LVT_MASKED != 0 { " masked" } else { "" };
            text.push_str(&format!("{name}\t 0x{lvt:08x} vec {}{masked}\n", lvt & 0xff));
        }
        text.push_str(&format!(
            "Timer\t DCR=0x{:x} initial_count = {} current_count = {}\nICR\t 0x{:016x}\nESR\t 0x{:08x}\n",
            self.divide,
            self.initial_count,
            self.current_count(),
            self.icr,
            self.esr
        ));
        text.push_str(&format!(
            "ISR\t {}\nIRR\t {}\nTMR\t {}\n\nAPR 0x00 TPR 0x{:02x} PPR 0x{:02x}\n",
            list(&self.isr),
            list(&self.irr),
            list(&self.tmr),
            self.tpr,
            self.ppr()
        ));
        text
    }
}

impl Device for ApicRegs {
    fn reset(&mut self, _kind: ResetKind) {
        self.mailbox.take_posted();
        self.mailbox.restore_latches(0, 0);
        self.reset_registers();
        self.base = DEFAULT_PAGE | BASE_ENABLE | if self.cpu == 0 { BASE_BSP } else { 0 };
        self.publish();
    }

    fn start(&mut self) {
        // Whatever a restored state holds, the vCPU looks once.
        self.mailbox.attention();
    }

    fn save(&self) -> Record {
        let Self {
            cpu: _,
            initial_id: _,
            x2apic_allowed: _,
            phys_mask: _,
            tsc_khz: _,
            mailbox,
            clock: _,
            timer,
            base,
            id,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            initial_count,
            divide,
            started,
            deadline,
        } = self;
        // What was posted and not yet taken counts as requested.
        let posted = mailbox.peek_posted();
        let (mut irr, mut tmr) = (*irr, *tmr);
        for word in 0..8 {
            irr[word] |= posted.vectors[word];
            tmr[word] = tmr[word] & !posted.vectors[word] | posted.level[word] & posted.vectors[word];
        }
        let (latches, sipi) = mailbox.latches();
        Record::new(1)
            .with(1, *base)
            .with(2, *id)
            .with(3, *tpr)
            .with(4, [*ldr, *dfr, *svr, *esr, *esr_pending, *initial_count, *divide])
            .with(5, *isr)
            .with(6, tmr)
            .with(7, irr)
            .with(8, *icr)
            .with(9, *lvt)
            .with(10, *started)
            .with(11, *deadline)
            .with(12, timer.state())
            .with(13, [latches, sipi])
            .with(14, mailbox.lint0())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let base = r.get::<u64>(1)?;
        let id = r.get(2)?;
        let tpr = r.get(3)?;
        let [ldr, dfr, svr, esr, esr_pending, initial_count, divide] = r.get::<[u32; 7]>(4)?;
        let isr = r.get(5)?;
        let tmr = r.get(6)?;
        let irr = r.get(7)?;
        let icr = r.get(8)?;
        let lvt = r.get_if::<[u32; LVT_COUNT]>(9, |lvt| {
            lvt.iter().zip(LVT_WRITABLE).all(|(value, writable)| value & !writable == 0)
        })?;
        let started = r.get_if::<u64>(10, |ns| *ns < 1 << 62)?;
        let deadline = r.get(11)?;
        let timer = r.get::<TimerState>(12)?;
        let [latches, sipi] = r.get(13)?;
        let lint0 = r.get(14)?;
        r.finish()?;
        let flags = BASE_BSP | BASE_X2APIC | BASE_ENABLE;
        let x2apic = base & BASE_X2APIC != 0;
        if base & !(flags | self.phys_mask & !0xfff) != 0 || x2apic && !self.x2apic_allowed {
            return Err(LoadError::Invalid(1));
        }
        (self.base, self.id, self.tpr, self.ldr, self.dfr) = (base, id, tpr, ldr, dfr | 0x0fff_ffff);
        (self.svr, self.esr, self.esr_pending) = (svr & 0x11ff, esr, esr_pending);
        (self.initial_count, self.divide) = (initial_count, divide & 0xb);
        (self.isr, self.tmr, self.irr, self.icr, self.lvt) = (isr, tmr, irr, icr, lvt);
        (self.started, self.deadline) = (started, deadline);
        self.mailbox.take_posted();
        self.mailbox.restore_latches(latches, sipi);
        self.mailbox.restore_lint0(lint0);
        self.timer.restore(timer);
        self.publish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32) -> (Clock, Arc<ApicBus>, Vec<Arc<LocalApic>>) {
        let (clock, bus) = (Clock::stepped(), ApicBus::new());
        let apics: Vec<_> = (0..cpus)
            .map(|cpu| {
                let config =
                    ApicConfig { cpu, apic_id: cpu, x2apic: true, phys_bits: 40, tsc_khz: 1_000_000 };
                LocalApic::new(&config, CpuSignal::new(), &clock, &bus)
            })
            .collect();
        bus.connect(apics.iter().map(|a| a.mailbox().clone()).collect());
        for apic in &apics {
            apic.mmio_write(0xf0, 0x1ff);
        }
        (clock, bus, apics)
    }

    #[test]
    fn a_vector_waits_for_the_task_priority() {
        let (_, bus, apics) = machine(1);
        bus.send_msi_vector(0x41);
        apics[0].set_tpr(4);
        assert!(!apics[0].sync().interrupt);
        apics[0].set_tpr(3);
        assert!(apics[0].sync().interrupt);
        assert_eq!(apics[0].acknowledge(), Some(0x41));
        assert_eq!(apics[0].acknowledge(), None);
        assert_eq!(apics[0].mmio_read(0xa0), 0x40, "the class in service is the processor priority");
        apics[0].mmio_write(0xb0, 0);
        assert_eq!(apics[0].mmio_read(0xa0), 0x30);
    }

    impl ApicBus {
        fn send_msi_vector(&self, vector: u8) {
            use anura_vmcore::MsiSink;
            self.send_msi(0xfee0_0000, u32::from(vector));
        }
    }

    #[test]
    fn an_image_taken_and_given_back_changes_nothing_a_guest_sees() {
        for mode in ["one-shot", "periodic", "deadline", "x2apic"] {
            let (clock, bus, apics) = machine(1);
            let apic = &apics[0];
            apic.mmio_write(0x80, 0x20);
            apic.mmio_write(0xd0, 0x0400_0000);
            apic.mmio_write(0x350, 0x700);
            apic.mmio_write(0x3e0, 0b1011);
            bus.send_msi_vector(0x61);
            assert_eq!(apic.acknowledge(), Some(0x61));
            bus.send_msi_vector(0x45);
            let timer = match mode {
                "periodic" => 0x2_0033,
                "deadline" => 0x4_0033,
                _ => 0x33,
            };
            apic.mmio_write(0x320, timer);
            if mode == "deadline" {
                assert!(apic.msr_write(MSR_TSC_DEADLINE, 5000));
            } else {
                apic.mmio_write(0x380, 5000);
            }
            if mode == "x2apic" {
                assert!(apic.set_base(apic.base() | BASE_X2APIC));
            }
            clock.advance(1000);
            let image = apic.image();
            // Another APIC, at the same time of the same machine.
            let other = {
                let config =
                    ApicConfig { cpu: 0, apic_id: 0, x2apic: true, phys_bits: 40, tsc_khz: 1_000_000 };
                LocalApic::new(&config, CpuSignal::new(), &clock, &bus)
            };
            other.set_image(&image);
            assert_eq!(other.image(), image, "{mode}");
            let left = image.page.get(offset::TIMER_CURRENT);
            assert_eq!(left, if mode == "deadline" { 0 } else { 4000 }, "{mode}");
            clock.advance(3999);
            assert!(!has_bit(&other.regs.lock().irr, 0x33), "{mode}: too early");
            clock.advance(1);
            assert!(has_bit(&other.regs.lock().irr, 0x33), "{mode}: the timer goes on");
            assert!(has_bit(&other.regs.lock().irr, 0x45) && has_bit(&other.regs.lock().isr, 0x61));
        }
    }

    #[test]
    fn messages_go_to_the_host_while_it_has_the_apics_and_to_the_board_afterwards() {
        struct Host(parking_lot::Mutex<Vec<(u64, u32)>>);
        impl anura_vmcore::MsiSink for Host {
            fn send_msi(&self, address: u64, data: u32) {
                self.0.lock().push((address, data));
            }
        }
        impl anura_vmcore::HostApics for Host {
            fn route_pins(&self, _: &[(u64, u32)]) {}
        }
        let (_, bus, apics) = machine(1);
        let host = Arc::new(Host(parking_lot::Mutex::default()));
        bus.hand_over(Some(host.clone()), &mut || {});
        bus.send_msi_vector(0x41);
        assert!(!apics[0].sync().interrupt);
        bus.hand_over(None, &mut || {});
        bus.send_msi_vector(0x42);
        assert!(apics[0].sync().interrupt);
        // Edge-triggered messages carry no level, but the bit may be set.
        assert_eq!(
            host.0.lock().iter().map(|(a, d)| (*a, *d & 0xbfff)).collect::<Vec<_>>(),
            [(0xfee0_0000, 0x41)]
        );
    }

    #[test]
    fn the_one_shot_timer_fires_once_and_counts_down() {
        let (clock, _, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x3e0, 0b1011); // divide by 1
        apic.mmio_write(0x320, 0x31);
        apic.mmio_write(0x380, 1000);
        clock.advance(400);
        assert_eq!(apic.mmio_read(0x390), 600);
        clock.advance(600);
        assert_eq!(apic.acknowledge(), Some(0x31));
        apic.mmio_write(0xb0, 0);
        clock.advance(5000);
        assert_eq!(apic.acknowledge(), None);
        assert_eq!(apic.mmio_read(0x390), 0);
    }

    #[test]
    fn a_change_of_the_timers_mode_lets_the_count_go_on_and_an_ended_one_stays_at_zero() {
        let (clock, _, apics) = machine(1);
        let apic = &apics[0];
        let step = |ns| clock.advance(ns);
        apic.mmio_write(0x3e0, 0xb);
        apic.mmio_write(0x320, 0x40);
        apic.mmio_write(0x380, 10_000);
        step(6_000);
        apic.mmio_write(0x320, 0x2_0040);
        assert_eq!(apic.mmio_read(0x390), 4_000);
        step(5_000);
        assert_eq!(apic.mmio_read(0x390), 9_000);
        apic.mmio_write(0x320, 0x40);
        step(9_000);
        apic.mmio_write(0x320, 0x2_0040);
        assert_eq!(apic.mmio_read(0x390), 0);
    }

    #[test]
    fn software_may_change_the_xapic_id_until_x2apic_mode() {
        let (_, _, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x20, 7 << 24);
        assert_eq!(apic.mmio_read(0x20), 7 << 24);
        assert!(apic.set_base(apic.base() | BASE_X2APIC));
        assert_eq!(apic.msr_read(0x802), Some(0));
        assert_eq!(apic.msr_read(0x82f), None);
        assert_eq!(apic.msr_read(0x828), Some(0), "an x2APIC tells of illegal registers by #GP alone");
    }

    #[test]
    fn the_periodic_timer_goes_on_and_the_divider_counts() {
        let (clock, _, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x3e0, 0b0011); // divide by 16
        apic.mmio_write(0x320, 0x2_0031);
        apic.mmio_write(0x380, 1000);
        for _ in 0..3 {
            clock.advance(16_000);
            assert_eq!(apic.acknowledge(), Some(0x31));
            apic.mmio_write(0xb0, 0);
        }
        apic.mmio_write(0x380, 0);
        clock.advance(100_000);
        assert_eq!(apic.acknowledge(), None);
    }

    #[test]
    fn tsc_deadline_fires_now_when_past_and_reads_zero_after() {
        let (clock, _, apics) = machine(1);
        let apic = &apics[0];
        clock.advance(1000);
        apic.mmio_write(0x320, 0x4_0031);
        assert!(apic.msr_write(0x6e0, 5000));
        assert_eq!(apic.msr_read(0x6e0), Some(5000));
        clock.advance(4000);
        assert_eq!(apic.acknowledge(), Some(0x31));
        assert_eq!(apic.msr_read(0x6e0), Some(0));
        apic.mmio_write(0xb0, 0);
        assert!(apic.msr_write(0x6e0, 10));
        clock.advance(0);
        clock.fire_due();
        assert_eq!(apic.acknowledge(), Some(0x31));
        apic.msr_write(0x6e0, 1 << 40);
        apic.mmio_write(0x320, 0x31);
        assert_eq!(apic.msr_read(0x6e0), Some(0), "a mode change disarms");
        assert_eq!(clock.next_deadline(), None);
    }

    #[test]
    fn ipis_reach_by_id_logical_id_and_shorthand() {
        let (_, _, apics) = machine(3);
        for (i, apic) in apics.iter().enumerate() {
            apic.mmio_write(0xd0, 1 << (24 + i));
        }
        apics[0].mmio_write(0x310, 2 << 24);
        apics[0].mmio_write(0x300, 0x40);
        assert_eq!(apics[2].acknowledge(), Some(0x40));
        apics[0].mmio_write(0x310, 0x06 << 24);
        apics[0].mmio_write(0x300, 0x850);
        assert_eq!((apics[1].acknowledge(), apics[2].acknowledge()), (Some(0x50), Some(0x50)));
        apics[1].mmio_write(0x300, 0xc_0060);
        assert_eq!(apics[0].acknowledge(), Some(0x60));
        assert_eq!(apics[1].acknowledge(), None);
        apics[1].mmio_write(0x300, 0x4_0070);
        assert_eq!(apics[1].acknowledge(), Some(0x70));
    }

    #[test]
    fn init_and_startup_are_latched_and_init_clears_an_older_startup() {
        let (_, _, apics) = machine(2);
        apics[0].mmio_write(0x310, 1 << 24);
        apics[0].mmio_write(0x300, 0x4610);
        apics[0].mmio_write(0x300, 0x4500);
        assert_eq!(apics[1].sync(), ApicPending { init: true, ..Default::default() });
        assert!(apics[1].take_init() && !apics[1].take_init());
        apics[0].mmio_write(0x300, 0x4699);
        assert_eq!(apics[1].take_sipi(), Some(0x99));
        assert_eq!(apics[1].take_sipi(), None);
    }

    #[test]
    fn of_nmis_that_come_together_two_are_latched() {
        let (_, bus, apics) = machine(2);
        apics[0].mmio_write(0x310, 1 << 24);
        apics[0].mmio_write(0x300, 0x4400);
        bus.nmi_all();
        bus.nmi_all();
        assert!(apics[1].sync().nmi && apics[1].take_nmi() && apics[1].take_nmi() && !apics[1].take_nmi());
        assert!(!apics[1].sync().nmi);
        assert!(apics[0].take_nmi());
    }

    #[test]
    fn illegal_vectors_and_registers_show_in_the_error_status() {
        let (_, _, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x370, 0x1f0 & 0xff | 0x30);
        apic.mmio_write(0x300, 0x4_0005);
        assert_eq!(apic.mmio_read(0x280), 0, "the register shows errors only after it was written");
        apic.mmio_write(0x280, 0);
        assert_eq!(apic.mmio_read(0x280), ESR_SEND_ILLEGAL);
        apic.mmio_write(0x50, 0);
        apic.mmio_write(0x280, 0);
        assert_eq!(apic.mmio_read(0x280), ESR_ILLEGAL_REGISTER);
        assert_eq!(apic.acknowledge(), Some(0xf0));
    }

    #[test]
    fn x2apic_transitions_and_registers_follow_the_manual() {
        let (_, _, apics) = machine(2);
        let apic = &apics[1];
        let base = apic.base();
        assert_eq!(apic.msr_read(0x802), None, "no x2APIC registers before the mode is on");
        assert!(!apic.set_base(base & !BASE_ENABLE | BASE_X2APIC));
        assert!(apic.set_base(base | BASE_X2APIC));
        assert!(!apic.set_base(base), "x2APIC to xAPIC directly is not legal");
        assert_eq!(apic.msr_read(0x802), Some(1));
        assert_eq!(apic.msr_read(0x80d), Some(2));
        assert_eq!(apic.msr_read(0x80e), None);
        assert!(!apic.msr_write(0x80b, 1), "only zero may be written to EOI");
        assert!(!apic.msr_write(0x808, 0x100));
        assert!(apic.msr_write(0x83f, 0x55));
        assert_eq!(apic.acknowledge(), Some(0x55));
        assert!(apic.msr_write(0x80b, 0));
        assert!(apic.msr_write(0x830, 0x0000_0000_0000_4041));
        assert_eq!(apics[0].acknowledge(), Some(0x41));
        assert_eq!(apic.mmio_read(0x20), u32::MAX, "the page is off");
        assert!(apic.set_base(base & !BASE_ENABLE));
        assert!(!apic.set_base(base | BASE_X2APIC), "off to x2APIC directly is not legal");
        assert!(apic.set_base(base));
    }

    #[test]
    fn a_software_disabled_apic_masks_its_table_and_takes_no_vectors() {
        let (_, bus, apics) = machine(1);
        let apic = &apics[0];
        apic.mmio_write(0x320, 0x31);
        apic.mmio_write(0xf0, 0xff);
        assert_eq!(apic.mmio_read(0x320), 0x1_0031);
        bus.send_msi_vector(0x60);
        apic.mmio_write(0xf0, 0x1ff);
        assert_eq!(apic.acknowledge(), None);
    }

    struct Peer(parking_lot::Mutex<Vec<u8>>);
    impl ApicPeer for Peer {
        fn pic_acknowledge(&self) -> u8 {
            0x20
        }
        fn end_of_interrupt(&self, vector: u8) {
            self.0.lock().push(vector);
        }
    }

    #[test]
    fn the_pic_reaches_the_cpu_by_lint0_in_extint_mode_or_with_the_apic_off() {
        let (_, _, apics) = machine(1);
        let apic = &apics[0];
        apic.connect(Arc::new(Peer(parking_lot::Mutex::default())));
        apic.mailbox().set_lint0(true);
        assert!(!apic.sync().interrupt, "LINT0 is masked after reset");
        apic.mmio_write(0x350, 0x700);
        assert!(apic.sync().interrupt);
        assert_eq!(apic.acknowledge(), Some(0x20));
        apic.mmio_write(0x350, 0x1_0700);
        assert!(!apic.sync().interrupt);
        assert!(apic.set_base(apic.base() & !BASE_ENABLE));
        assert!(apic.sync().interrupt);
    }

    #[test]
    fn the_end_of_a_level_interrupt_is_broadcast_unless_suppressed() {
        let (_, _, apics) = machine(1);
        let apic = &apics[0];
        let peer = Arc::new(Peer(parking_lot::Mutex::default()));
        apic.connect(peer.clone());
        for (svr, expected) in [(0x1ff, 1), (0x11ff, 1)] {
            apic.mmio_write(0xf0, svr);
            apic.mailbox().post(0x44, Trigger::Level);
            assert_eq!(apic.acknowledge(), Some(0x44));
            assert_ne!(apic.mmio_read(0x1a0), 0, "the trigger mode register shows a level");
            apic.mmio_write(0xb0, 0);
            assert_eq!(peer.0.lock().len(), expected);
        }
    }

    #[test]
    fn a_saved_apic_loads_with_what_was_posted() {
        let (clock, bus, apics) = machine(1);
        apics[0].mmio_write(0x320, 0x2_0031);
        apics[0].mmio_write(0x380, 5000);
        clock.advance(100);
        bus.send_msi_vector(0x77);
        let record = apics[0].device().lock().save();
        let (_, _, copies) = machine(1);
        copies[0].device().lock().load(&record).unwrap();
        assert_eq!(copies[0].device().lock().save(), record);
        assert_eq!(copies[0].acknowledge(), Some(0x77));
    }
}
