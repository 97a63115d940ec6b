//! Accesses to the register file: the page, the x2APIC's MSRs and the base register (SDM volume 3, 11.4 to 11.12).

use anura_vmcore::{guest_error, trace_event};

use super::timer::TimerMode;
use super::{
    ApicRegs, BASE_BSP, BASE_ENABLE, BASE_X2APIC, DeliveryMode, ESR_ILLEGAL_REGISTER, ESR_SEND_ILLEGAL,
    Effect, LVT_MASKED, LVT_TIMER, LVT_WRITABLE, Message, SVR_ENABLE, SVR_NO_EOI_BROADCAST, Shorthand,
    Trigger, VERSION, has_bit, highest, set_bit,
};

impl ApicRegs {
    pub(super) fn read(&mut self, index: u32) -> Option<u32> {
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

    pub(super) fn write(&mut self, index: u32, value: u32) -> Option<Effect> {
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
    pub(super) fn x2apic_write(&mut self, index: u32, value: u64) -> Option<Effect> {
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

    pub(super) fn set_base(&mut self, value: u64) -> bool {
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
}
