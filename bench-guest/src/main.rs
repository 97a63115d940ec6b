//! The guest program of `cargo xtask bench cpu`: tests of a processor, run natively or as a guest's first process.
//!
//! For each test it prints `bench: GROUP/NAME NANOSECONDS CHECKSUM WHOLE`, or `n/a` and why. The checksum is the same on
//! every machine and engine; the last word is the time with all preparations, which the caller holds against its own clock. Usage: `anura-bench-guest [GROUP | GROUP/NAME | PERCENT%]...`; no word means all groups but
//! `smp`. Integer tests should not meet vectors that a compiler made: `cargo xtask bench cpu` builds without them.

#[cfg(target_arch = "x86_64")]
mod suite;

fn main() {
    #[cfg(target_arch = "x86_64")]
    suite::main();
    #[cfg(not(target_arch = "x86_64"))]
    eprintln!("anura-bench-guest: build it for x86-64, the guest's processor");
}
