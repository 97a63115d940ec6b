//! What goes through the guest's kernel: system calls, switches, processes, faults, signals, time.

use std::cell::Cell;
use std::ffi::CString;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::bench::{Bench, Test, everywhere, mix};
use super::os::{self, Mapping};

macro_rules! tests {
    ($($name:literal => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "kernel", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "getpid" => getpid, "pipe-switch" => pipe_switch, "pipe-bytes" => pipe_bytes, "read-zero" => read_zero,
    "open-close" => open_close, "fork" => fork, "exec" => exec, "page-fault" => page_fault, "copy-on-write" => copy_on_write,
    "map-unmap" => map_unmap, "signal" => signal, "fault-handler" => fault_handler, "vdso-time" => vdso_time,
}

/// The argument that makes this program end at once, for `exec`.
pub const LEAVE: &str = "--leave";

fn getpid(b: &mut Bench) -> u64 {
    let first = os::getpid();
    (0..b.n(900_000)).fold(0, |s: u64, i| s.wrapping_add((os::getpid() - first) as u64 + i))
}

/// Two processes on one processor hand a byte to and fro.
fn pipe_switch(b: &mut Bench) -> u64 {
    let (there, back) = (os::pipe(), os::pipe());
    let rounds = b.n(7000);
    let _stay = os::stay_here();
    let child = os::fork(|| {
        let mut byte = [0u8];
        for _ in 0..rounds {
            os::read(there[0], &mut byte);
            byte[0] = byte[0].wrapping_mul(5).wrapping_add(1);
            os::write(back[1], &byte);
        }
        7
    });
    let mut byte = [1u8];
    let sum = b.time(|| {
        (0..rounds).fold(0, |s, _| {
            os::write(there[1], &byte);
            os::read(back[0], &mut byte);
            mix(s, byte[0].into())
        })
    });
    let code = os::wait(child);
    there.into_iter().chain(back).for_each(os::close);
    mix(sum, code as u64)
}

/// Blocks of 4 KiB into a pipe and out of it.
fn pipe_bytes(b: &mut Bench) -> u64 {
    let ends = os::pipe();
    let mut block = [0x37u8; 4096];
    let mut sum = 0;
    for i in 0..b.n(70_000) {
        block[i as usize % 4096] ^= i as u8;
        os::write(ends[1], &block);
        sum = mix(sum, os::read(ends[0], &mut block) as u64);
    }
    ends.into_iter().for_each(os::close);
    block.iter().fold(sum, |s, v| mix(s, (*v).into()))
}

fn read_zero(b: &mut Bench) -> u64 {
    let Ok(zero) = std::fs::File::open("/dev/zero") else { return 0 };
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&zero);
    let mut block = [1u8; 512];
    (0..b.n(450_000)).fold(0, |s, _| mix(s, os::read(descriptor, &mut block) as u64 + u64::from(block[9])))
}

fn open_close(b: &mut Bench) -> u64 {
    (0..b.n(40_000)).fold(0, |s, i| {
        let name = if i % 4 == 3 { "/dev/there-is-no-such" } else { "/dev/null" };
        mix(s, std::fs::File::open(name).is_ok().into())
    })
}

fn fork(b: &mut Bench) -> u64 {
    let _stay = os::stay_here();
    (0..b.n(500)).fold(0, |s, i| mix(s, os::wait(os::fork(|| i as i32 & 63)) as u64))
}

fn exec(b: &mut Bench) -> u64 {
    let _stay = os::stay_here();
    let path = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "/bench".into());
    let words = [path.to_string_lossy().as_ref(), LEAVE].map(|word| CString::new(word).unwrap_or_default());
    (0..b.n(140)).fold(0, |s, _| {
        let child = os::fork(|| {
            let list = [words[0].as_ptr(), words[1].as_ptr(), std::ptr::null()];
            // SAFETY: the list and its strings end with null; it returns only if it failed.
            unsafe { libc::execv(words[0].as_ptr(), list.as_ptr()) };
            99
        });
        mix(s, os::wait(child) as u64)
    })
}

fn page_fault(b: &mut Bench) -> u64 {
    const PAGES: usize = 1024;
    (0..b.n(50)).fold(0, |s, i| {
        let map = Mapping::new(PAGES * 4096, libc::PROT_READ | libc::PROT_WRITE);
        (0..PAGES).for_each(|page| map.write(page * 4096 + 8, (page as u64 ^ i) as u8));
        mix(s, map.read(4096 * (i as usize % PAGES) + 8).into())
    })
}

/// A child writes to every page that it shares with its parent.
fn copy_on_write(b: &mut Bench) -> u64 {
    const PAGES: usize = 512;
    let _stay = os::stay_here();
    let map = Mapping::new(PAGES * 4096, libc::PROT_READ | libc::PROT_WRITE);
    (0..PAGES).for_each(|page| map.write(page * 4096, page as u8));
    (0..b.n(50)).fold(0, |s, i| {
        let child = os::fork(|| {
            (0..PAGES).for_each(|page| map.write(page * 4096 + 8, i as u8));
            i32::from(map.read(4096 * (i as usize % PAGES)) & 63)
        });
        mix(mix(s, os::wait(child) as u64), map.read(8).into())
    })
}

fn map_unmap(b: &mut Bench) -> u64 {
    (0..b.n(12_000)).fold(0, |s, i| {
        let map = Mapping::new(16384, libc::PROT_READ | libc::PROT_WRITE);
        map.write(4096, i as u8);
        mix(s, map.read(4096).into())
    })
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

fn signal(b: &mut Bench) -> u64 {
    SIGNALS.store(0, Ordering::Relaxed);
    os::on_signal(libc::SIGUSR1, Some(count));
    for _ in 0..b.n(60_000) {
        os::raise(libc::SIGUSR1);
    }
    os::on_signal(libc::SIGUSR1, None);
    SIGNALS.load(Ordering::Relaxed)
}

static FAULTING: AtomicPtr<Mapping> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    static FAULTS: Cell<u64> = const { Cell::new(0) };
}

/// Opens the page that was written to.
extern "C" fn open_page(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes details of this fault, and the test has set the mapping that it makes faults in.
    let (address, map) = unsafe { ((*info).si_addr() as usize, &*FAULTING.load(Ordering::Relaxed)) };
    let page = (address - map.at() as usize) & !4095;
    map.protect(page, 4096, libc::PROT_READ | libc::PROT_WRITE);
    FAULTS.set(FAULTS.get() + 1);
}

/// Writes to protected pages; the handler of the fault opens each.
fn fault_handler(b: &mut Bench) -> u64 {
    const PAGES: usize = 64;
    let mut map = Mapping::new(PAGES * 4096, libc::PROT_READ | libc::PROT_WRITE);
    FAULTS.set(0);
    FAULTING.store(&mut map, Ordering::Relaxed);
    os::on_signal(libc::SIGSEGV, Some(open_page));
    for round in 0..b.n(350) {
        map.protect(0, PAGES * 4096, libc::PROT_READ);
        (0..PAGES).for_each(|page| map.write(page * 4096 + 16, round as u8));
    }
    os::on_signal(libc::SIGSEGV, None);
    FAULTS.get()
}

fn vdso_time(b: &mut Bench) -> u64 {
    let mut last = os::now();
    (0..b.n(5_000_000)).fold(0, |s, _| {
        let t = os::now();
        let back = u64::from(t < last);
        last = t;
        s + back
    })
}
