//! The time stamp counter: the machine's clock in another unit, plus the processor's offset.

use super::system::put_pair;
use super::{Flow, HelperArgs};
use crate::env::{Cpu, Exec, Fault};
use anura_x86::regs::cr4;

/// The rate, in kHz, at which the counter counts nanoseconds.
const NANOSECONDS: u64 = 1_000_000;

impl Cpu {
    /// The machine's time stamp counter, without this processor's offset.
    pub(super) fn machine_tsc(&self) -> u64 {
        self.sync_clock();
        let (now, khz) = (self.vm.spaces.clock.now(), self.vm.config.tsc_khz);
        match now.checked_mul(khz) {
            _ if khz == NANOSECONDS => now,
            Some(ticks) => ticks / 1_000_000,
            None => (u128::from(now) * u128::from(khz) / 1_000_000) as u64,
        }
    }

    /// The time stamp counter.
    pub fn tsc(&self) -> u64 {
        self.machine_tsc().wrapping_add(self.env.tsc_offset)
    }

    /// Tells translated code how to read the counter by itself, where it can: after a change of its offset, and now
    /// and then as long as the clock does not know the host's counter.
    pub(crate) fn tsc_changed(&mut self) {
        let clock = &self.vm.spaces.clock;
        let plain = self.vm.config.tsc_khz == NANOSECONDS;
        let counter = host_counter().filter(|_| plain).and_then(|read| clock.learn_counter(read));
        let j = &mut self.env.jit;
        j.tsc_mult = counter.map_or(0, |c| c.mult);
        j.tsc_add = counter.map_or(0, |c| c.add).wrapping_add(self.env.tsc_offset);
        j.tsc_bias = clock.bias().as_ptr() as u64;
    }
}

/// The host's time stamp counter, if the host itself takes its time from it, which it does only while the counter goes
/// at one rate and is the same on all processors.
fn host_counter() -> Option<fn() -> u64> {
    #[cfg(target_arch = "x86_64")]
    {
        static TRUSTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let trusted =
            TRUSTED.get_or_init(|| std::fs::read_to_string(source).is_ok_and(|s| s.trim() == "tsc"));
        fn read() -> u64 {
            // SAFETY: both instructions exist on every x86-64 host, and Linux lets programs run them.
            unsafe {
                std::arch::x86_64::_mm_lfence();
                std::arch::x86_64::_rdtsc()
            }
        }
        trusted.then_some(read)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

fn may_read_tsc(cpu: &Cpu) -> Exec<()> {
    let barred = cpu.env.cr4 & cr4::TSD != 0 && cpu.env.cpl() != 0;
    if barred { Err(Fault::GP0) } else { Ok(()) }
}

/// RDTSC.
pub fn rdtsc(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    may_read_tsc(cpu)?;
    if cpu.env.jit.tsc_mult == 0 {
        // The clock may know the host's counter by now.
        cpu.tsc_changed();
    }
    let t = cpu.tsc();
    put_pair(cpu, t);
    Ok(Flow::Next)
}
/// RDTSCP.
pub fn rdtscp(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    rdtsc(cpu, a)?;
    cpu.env.gpr[1] = cpu.env.msrs.tsc_aux & 0xffff_ffff;
    Ok(Flow::Next)
}
