//! The system calls that the tests use, each behind a safe face.

use std::io;

/// `-1` is an error of the system.
fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "system call: {}", io::Error::last_os_error());
    result
}

/// A mapping of its own, unmapped when dropped.
pub struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    /// Anonymous memory, in pages of 4 KiB.
    pub fn new(length: usize, protection: libc::c_int) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert!(at != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        // SAFETY: the range is the mapping just made. Kernels without huge pages refuse, which is as good.
        unsafe { libc::madvise(at, length, libc::MADV_NOHUGEPAGE) };
        Self { at: at.cast(), length }
    }

    /// Where it starts.
    pub fn at(&self) -> *mut u8 {
        self.at
    }

    /// Changes the protection of `length` bytes from `offset` on.
    pub fn protect(&self, offset: usize, length: usize, protection: libc::c_int) {
        assert!(offset + length <= self.length);
        // SAFETY: the range is within this mapping, which only tests use, through `read` and `write`.
        check(unsafe { libc::mprotect(self.at.add(offset).cast(), length, protection) });
    }

    /// Reads a byte.
    pub fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.length);
        // SAFETY: within the mapping; volatile, since fault handlers change what is there.
        unsafe { self.at.add(offset).read_volatile() }
    }

    /// Writes a byte.
    pub fn write(&self, offset: usize, value: u8) {
        assert!(offset < self.length);
        // SAFETY: within the mapping; volatile, so that the access is made.
        unsafe { self.at.add(offset).write_volatile(value) }
    }

    /// Writes bytes, which may be code.
    pub fn write_all(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: within the mapping; no reference to it is ever made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) }
    }

    /// Writes four bytes.
    pub fn write32(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= self.length);
        // SAFETY: within the mapping; no alignment is assumed.
        unsafe { self.at.add(offset).cast::<u32>().write_unaligned(value) }
    }

    /// Calls the code at `offset` with an argument.
    ///
    /// # Safety
    /// A whole function of the C calling convention stands there, and the mapping can be executed.
    pub unsafe fn call(&self, offset: usize, argument: u64) -> u64 {
        assert!(offset < self.length);
        // SAFETY: the caller has put a function there.
        let function: extern "C" fn(u64) -> u64 = unsafe { std::mem::transmute(self.at.add(offset)) };
        std::hint::black_box(function)(argument)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing of it is used after this.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

/// The process's number, asked of the kernel each time.
pub fn getpid() -> i64 {
    // SAFETY: a system call without arguments.
    unsafe { libc::syscall(libc::SYS_getpid) }
}

/// The processors that this thread may run on.
pub fn processors() -> Vec<usize> {
    // SAFETY: `set` is a whole set of processors, and the size is its own.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &mut set);
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

/// Lets this thread run on these processors only, and what it starts from now on too.
fn allow(cpus: &[usize]) {
    // SAFETY: as above.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

/// Keeps this thread on one processor.
pub fn stay_on(cpu: usize) {
    allow(&[cpu]);
}

/// Keeps this thread on the processor where it is until the value is dropped.
pub fn stay_here() -> Stay {
    let before = processors();
    // SAFETY: asks for a number.
    allow(&[unsafe { libc::sched_getcpu() }.max(0) as usize]);
    Stay(before)
}

/// What [`stay_here`] ends with.
pub struct Stay(Vec<usize>);

impl Drop for Stay {
    fn drop(&mut self) {
        allow(&self.0);
    }
}

/// Makes a process that runs `child` and ends with what it returns.
pub fn fork(child: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child runs `child` and ends without returning to what it shares with its parent.
    match check(unsafe { libc::fork() }) {
        0 => {
            let code = child();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

/// Waits for a process; its exit code.
pub fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` takes the result.
    check(unsafe { libc::waitpid(pid, &mut status, 0) });
    libc::WEXITSTATUS(status)
}

/// A pipe: its ends to read and to write.
pub fn pipe() -> [libc::c_int; 2] {
    let mut ends = [0; 2];
    // SAFETY: there is room for both.
    check(unsafe { libc::pipe(ends.as_mut_ptr()) });
    ends
}

/// Closes a descriptor.
pub fn close(descriptor: libc::c_int) {
    // SAFETY: the tests own the descriptors that they close.
    unsafe { libc::close(descriptor) };
}

/// Writes all of `bytes`.
pub fn write(descriptor: libc::c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the bytes are a slice.
        let n = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        assert!(n > 0, "write: {}", io::Error::last_os_error());
        bytes = &bytes[n as usize..];
    }
}

/// Reads into `bytes`; how many there were.
pub fn read(descriptor: libc::c_int, bytes: &mut [u8]) -> usize {
    // SAFETY: the bytes are a slice.
    let n = unsafe { libc::read(descriptor, bytes.as_mut_ptr().cast(), bytes.len()) };
    assert!(n >= 0, "read: {}", io::Error::last_os_error());
    n as usize
}

/// What runs on a signal: number, details, context.
pub type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets what runs on a signal; `None` is the default.
pub fn on_signal(signal: libc::c_int, handler: Option<Handler>) {
    // SAFETY: the structure is whole, and the handlers of the tests do only what may be done in a signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler.map_or(libc::SIG_DFL, |h| h as *const () as usize);
        action.sa_flags = libc::SA_SIGINFO;
        check(libc::sigaction(signal, &action, std::ptr::null_mut()));
    }
}

/// Sends a signal to this very thread.
pub fn raise(signal: libc::c_int) {
    // SAFETY: the tests have a handler for what they raise.
    check(unsafe { libc::raise(signal) });
}

/// Nanoseconds of the monotonic clock, through the C library and its vDSO.
pub fn now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` takes the result.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) });
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Waits until what was written to a terminal has left it.
pub fn drain(descriptor: libc::c_int) {
    // SAFETY: a descriptor that is no terminal is an error without effect.
    unsafe { libc::tcdrain(descriptor) };
}

/// Allows this process all ports, if the system does.
pub fn allow_ports() -> bool {
    // SAFETY: what it allows is used by the tests of ports only.
    unsafe { libc::iopl(3) == 0 }
}

/// The first process's duty: the kernel's file systems.
pub fn mount_all() {
    for (kind, place) in [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")] {
        // SAFETY: all are strings that end with zero; one that is mounted already is an error without effect.
        unsafe {
            libc::mkdir(place.as_ptr(), 0o755);
            libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null());
        }
    }
}

/// Switches the machine off.
pub fn power_off() {
    // SAFETY: the runs are over.
    unsafe {
        libc::sync();
        libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF);
    }
}
