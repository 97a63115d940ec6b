//! Lazy status flags.
use crate::env::Env;

/// `cc_op`: the flags are in `cc_a` as they are.
pub const IMAGE: u32 = 0;

/// The six status flags.
pub fn get(env: &Env) -> u64 {
    env.cc_a
}

/// Sets the six status flags.
pub fn set(env: &mut Env, bits: u64) {
    env.cc_op = IMAGE;
    env.cc_a = bits;
}
