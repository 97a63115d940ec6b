//! DIV and IDIV.

use crate::env::Env;
use crate::mutants;

/// Divides rDX:rAX (AX for 8 bits) by `by`; false is #DE, with nothing changed.
pub fn divide(env: &mut Env, by: u64, bits: u32, signed: bool) -> bool {
    let (a, d) = (env.gpr[0], env.gpr[2]);
    let mask = if bits == 64 { !0 } else { (1u64 << bits) - 1 };
    let value =
        if bits == 8 { u128::from(a & 0xffff) } else { u128::from(d & mask) << bits | u128::from(a & mask) };
    if by == 0 {
        return mutants::on(mutants::I_DIV_ZERO);
    }
    let (q, r) = if signed {
        let shift = 128 - 2 * bits;
        let n = (value << shift) as i128 >> shift;
        let by = i128::from((by << (64 - bits)) as i64 >> (64 - bits));
        // Only the smallest 128-bit number by -1 overflows, and its quotient would not fit either.
        let (Some(q), Some(r)) = (n.checked_div(by), n.checked_rem(by)) else { return false };
        let limit = 1i128 << (bits - 1);
        if (q < -limit || q >= limit) && !mutants::on(mutants::I_DIV_OVERFLOW) {
            return false;
        }
        (q as u64 & mask, r as u64 & mask)
    } else {
        let by = u128::from(by);
        let (q, r) = match (u64::try_from(value), u64::try_from(by)) {
            (Ok(v), Ok(by)) => (u128::from(v / by), u128::from(v % by)),
            _ => (value / by, value % by),
        };
        if q > u128::from(mask) {
            return false;
        }
        (q as u64, r as u64)
    };
    match bits {
        8 => env.gpr[0] = a & !0xffff | r << 8 | q,
        16 => {
            env.gpr[0] = a & !0xffff | q;
            env.gpr[2] = d & !0xffff | r;
        }
        _ => {
            env.gpr[0] = q;
            env.gpr[2] = r;
        }
    }
    true
}
