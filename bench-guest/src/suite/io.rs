//! What leaves a guest: ports, CPUID, the time stamp counter, the serial line. Ports are a guest's matter only, and so is
//! CPUID, which costs microseconds where the host is a guest itself.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

use super::bench::{Bench, Test, everywhere};
use super::os;

fn outside() -> Option<&'static str> {
    (std::process::id() != 1 || !os::allow_ports()).then_some("not in a guest")
}

macro_rules! tests {
    ($($name:literal, $lacks:ident => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "io", name: $name, lacks: $lacks, run: $run }),*];
    };
}

tests! {
    "in" , outside => port_in, "out", outside => port_out, "pci-config", outside => pci_config, "cpuid", outside => cpuid,
    "rdtsc", everywhere => rdtsc, "serial-bytes", outside => serial,
}

fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the callers read registers of chips whose reads have no effect on memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, nomem, preserves_flags)) };
    value
}

fn outb(port: u16, value: u8) {
    // SAFETY: the callers write where nothing listens.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem, preserves_flags)) };
}

/// The line status of the first serial port.
fn port_in(b: &mut Bench) -> u64 {
    let n = b.n(4_000_000);
    (0..n).for_each(|_| {
        inb(0x3fd);
    });
    n
}

/// The port of power-on diagnostics.
fn port_out(b: &mut Bench) -> u64 {
    let n = b.n(5_000_000);
    (0..n).for_each(|i| outb(0x80, i as u8));
    n
}

/// Vendor and device of the host bridge by configuration mechanism 1.
fn pci_config(b: &mut Bench) -> u64 {
    (0..b.n(1_200_000)).fold(0u64, |s, _| {
        let id: u32;
        // SAFETY: sets the address register and reads an identity.
        unsafe {
            asm!("out dx, eax", in("dx") 0xcf8u16, in("eax") 0x8000_0000u32, options(nostack, nomem, preserves_flags));
            asm!("in eax, dx", in("dx") 0xcfcu16, out("eax") id, options(nostack, nomem, preserves_flags));
        }
        s.wrapping_add(id.into())
    })
}

fn cpuid(b: &mut Bench) -> u64 {
    let n = b.n(20_000_000);
    (0..n).fold(0, |s, i| s + u64::from(__cpuid_count(i as u32 & 1, 0).eax > 0))
}

fn rdtsc(b: &mut Bench) -> u64 {
    let mut last = 0;
    (0..b.n(20_000_000)).fold(0, |s, _| {
        // SAFETY: Linux lets programs read the counter.
        let t = unsafe { _rdtsc() };
        let back = u64::from(t < last);
        last = t;
        s + back
    })
}

/// Lines to the console, until the last byte has left.
fn serial(b: &mut Bench) -> u64 {
    let lines = b.n(1500);
    for _ in 0..lines {
        os::write(1, b"# the quick brown fox jumps over the lazy dog, 64 bytes a line\n");
    }
    os::drain(1);
    lines
}
