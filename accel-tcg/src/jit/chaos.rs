//! Disturbances for tests (`-accel jit,chaos=SEED`): TLB flushes, refused accesses, lost translations and links, and
//! instructions for the interpreter, at random. None of them may change what a guest computes.

/// A source of accidents; the default never has any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chaos(u64);

impl Chaos {
    /// With a seed; 0 stands for none.
    pub fn new(seed: u64) -> Chaos {
        Chaos(seed)
    }

    /// Whether there are accidents at all.
    #[inline]
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        if !self.any() {
            return false;
        }
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).is_multiple_of(n)
    }
}
