//! Machine checks that a monitor injects (Intel SDM volume 3, chapter 16): what the hardware would leave in the
//! registers of the bank, and #MC for what it could not correct.

use anura_x86::regs::{cr4, vector};
use anura_x86::state::{EventKind, PendingException};
use anura_x86::{Activity, CpuState, msr};

use crate::control::{ControlError, MachineCheck};

/// IA32_MCi_STATUS: valid, overflow, uncorrected.
const VALID: u64 = 1 << 63;
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
/// IA32_MCG_STATUS: a machine check is in progress; RIP is valid.
const IN_PROGRESS: u64 = 1 << 2;
const RIP_VALID: u64 = 1 << 0;

/// Puts a machine check into a stopped CPU; on a CPU that is not `named` only the broadcast exception.
pub(crate) fn inject(state: &mut CpuState, check: &MachineCheck, named: bool) -> Result<(), ControlError> {
    let bank = usize::try_from(check.bank).ok().filter(|n| *n < msr::MC_BANKS);
    let bank = bank.ok_or_else(|| ControlError("Invalid bank number".into()))?;
    if check.status & VALID == 0 {
        return Err(ControlError("Invalid STATUS code".into()));
    }
    let uncorrected = check.status & UNCORRECTED != 0;
    let old = state.msrs.mc_bank[bank][1];
    if named && (uncorrected || old & VALID == 0 || old & UNCORRECTED == 0) {
        let overflow = if old & VALID != 0 { OVERFLOW } else { 0 };
        let registers = &mut state.msrs.mc_bank[bank];
        (registers[1], registers[2], registers[3]) = (check.status | overflow, check.address, check.misc);
    } else if named {
        state.msrs.mc_bank[bank][1] |= OVERFLOW;
    }
    if !uncorrected {
        return Ok(());
    }
    // A second one, or one that nobody has asked for, stops the processor.
    if state.msrs.mcg_status & IN_PROGRESS != 0 || state.cr4 & cr4::MCE == 0 {
        state.activity = Activity::Shutdown;
        return Ok(());
    }
    state.msrs.mcg_status = if named { check.mcg_status } else { IN_PROGRESS | RIP_VALID };
    if state.activity == Activity::Halted {
        state.activity = Activity::Running;
    }
    state.pending = Some(PendingException {
        vector: vector::MC,
        kind: EventKind::Trap,
        error: None,
        payload: 0,
        next_rip: 0,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u64) -> MachineCheck {
        MachineCheck { cpu: 0, bank: 2, status, mcg_status: 5, address: 0x1000, misc: 7, broadcast: true }
    }

    #[test]
    fn a_corrected_error_is_noted_and_an_uncorrected_one_is_raised() {
        let mut s = CpuState::reset(0);
        s.cr4 |= cr4::MCE;
        inject(&mut s, &check(VALID | 5), true).unwrap();
        assert_eq!((s.msrs.mc_bank[2], s.pending), ([0, VALID | 5, 0x1000, 7], None));
        inject(&mut s, &check(VALID | UNCORRECTED), true).unwrap();
        assert_eq!(s.msrs.mc_bank[2][1], VALID | UNCORRECTED | OVERFLOW);
        assert_eq!((s.pending.map(|e| e.vector), s.msrs.mcg_status), (Some(vector::MC), 5));
        // The guest has not cleared MCIP.
        inject(&mut s, &check(VALID | UNCORRECTED), true).unwrap();
        assert_eq!(s.activity, Activity::Shutdown);
    }

    #[test]
    fn others_get_the_exception_alone_and_nonsense_is_refused() {
        let mut s = CpuState::reset(0);
        s.cr4 |= cr4::MCE;
        s.activity = Activity::Halted;
        inject(&mut s, &check(VALID | UNCORRECTED), false).unwrap();
        assert_eq!((s.msrs.mc_bank[2][1], s.activity), (0, Activity::Running));
        assert!(s.pending.is_some());
        assert!(inject(&mut s, &check(UNCORRECTED), true).is_err());
        assert!(inject(&mut s, &MachineCheck { bank: 10, ..check(VALID) }, true).is_err());
    }
}
