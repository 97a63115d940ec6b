//! The register file as a whole: saved and loaded, as the image that a host keeps, and as text.

use anura_vmcore::{Device, LoadError, Record, ResetKind, TimerState};
use anura_x86::apic::{ApicImage, ApicPage, offset};

use super::timer::TimerMode;
use super::{
    ApicRegs, BASE_BSP, BASE_ENABLE, BASE_X2APIC, DEFAULT_PAGE, LVT_COUNT, LVT_MASKED, LVT_WRITABLE, VERSION,
    has_bit,
};

impl ApicRegs {
    pub(super) fn image(&self) -> ApicImage {
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

    pub(super) fn set_image(&mut self, image: &ApicImage) {
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

    pub(super) fn describe(&self) -> String {
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
