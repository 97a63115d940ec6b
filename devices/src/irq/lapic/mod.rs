//! Local APIC, Intel SDM volume 3, chapter 11 (xAPIC, x2APIC, timer in its three modes).
//!
//! Each belongs to one vCPU. Others reach it through its [`Mailbox`] only; what the vCPU itself does (register
//! page, MSRs, acknowledging) locks the register file. The timer counts at 1 GHz before its divider.
//! Left out: CMCI and SMI delivery, focus processor checking, and the arbitration register, which reads zero.

mod access;
mod state;
mod timer;

use std::sync::{Arc, OnceLock};

use anura_vmcore::{Clock, CpuSignal, Device, DeviceCell, ResetKind, Timer};
use anura_x86::apic::ApicImage;

use super::apic_bus::{ApicBus, DeliveryMode, Latch, Mailbox, Message, Shorthand, Trigger};
use timer::TimerMode;

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
}

#[cfg(test)]
mod tests;
