//! The kernel's APIC timer while its vCPU is out of KVM_RUN: an expiry then waits beside the registers until the next
//! KVM_RUN, and KVM_GET_LAPIC does not show it. Two looks at the registers do. (A deadline of the time stamp counter
//! stays in its MSR until it is delivered, so it needs none of this.)
//! Source: Intel SDM vol. 3 section 11.5.4 for the timer.

use anura_x86::apic::{ApicPage, offset};

const MASKED: u32 = 1 << 16;
const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1;

/// What the timer was when the vCPU came out of KVM_RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    lvt: u32,
    initial: u32,
    left: u32,
}

impl Seen {
    pub(super) fn of(page: &ApicPage) -> Self {
        Self {
            lvt: page.get(offset::LVT_TIMER),
            initial: page.get(offset::TIMER_INITIAL),
            left: page.get(offset::TIMER_CURRENT),
        }
    }

    /// Requests the interrupt in `page`, which is later, if the timer expired in between.
    pub(super) fn deliver(self, page: &mut ApicPage) {
        let now = Self::of(page);
        // The guest did not run: another program of the timer is somebody else's.
        if (now.lvt, now.initial) != (self.lvt, self.initial) || self.left == 0 || self.lvt & MASKED != 0 {
            return;
        }
        let expired = match self.lvt >> 17 & 3 {
            ONE_SHOT => now.left == 0,
            PERIODIC => now.left > self.left,
            _ => false,
        };
        if expired {
            let vector = (self.lvt & 0xff) as usize;
            let at = offset::IRR + 16 * (vector / 32);
            page.set(at, page.get(at) | 1 << (vector % 32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lvt: u32, initial: u32, left: u32) -> ApicPage {
        let mut page = ApicPage::default();
        page.set(offset::LVT_TIMER, lvt);
        page.set(offset::TIMER_INITIAL, initial);
        page.set(offset::TIMER_CURRENT, left);
        page
    }

    #[test]
    fn only_a_timer_that_ran_and_expired_is_delivered() {
        for (lvt, before, after, delivered) in [
            (0x33, 5, 0, true),
            (0x33, 5, 3, false),
            // It expired long ago, and was delivered then.
            (0x33, 0, 0, false),
            (0x1_0033, 5, 0, false),
            (0x2_0033, 5, 90, true),
            (0x2_0033, 5, 2, false),
            (0x4_0033, 5, 0, false),
        ] {
            let mut later = page(lvt, 100, after);
            Seen::of(&page(lvt, 100, before)).deliver(&mut later);
            let irr = later.get(offset::IRR + 16);
            assert_eq!(irr, if delivered { 1 << 0x13 } else { 0 }, "{lvt:#x} {before} {after}");
        }
        let mut other = page(0x33, 200, 0);
        Seen::of(&page(0x33, 100, 5)).deliver(&mut other);
        assert_eq!(other.get(offset::IRR + 16), 0);
    }
}
