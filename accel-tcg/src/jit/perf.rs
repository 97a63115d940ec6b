//! What tells `perf` about translated code: a map, or a dump with the code itself.
//!
//! The map is `/tmp/perf-PID.map`, a line for each piece, with start and size in hexadecimal and a name (Linux,
//! tools/perf/Documentation/jit-interface.txt). `perf report` reads it as it is. A place that was used again has
//! several names there.
//!
//! The dump is `jit-PID.dump` in the present folder: a header and a record for each piece, with the time from which on
//! it was there, so that places may be used again, and its bytes, so that `perf annotate` can show them (Linux,
//! tools/perf/Documentation/jitdump-specification.txt). After `perf record -k mono`, `perf inject --jit` takes it over;
//! it finds the file by a mapping of its first page, which is executable for that reason alone.

use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, Result, Write};
use std::path::{Path, PathBuf};

/// "JiTD", as a number in the host's order.
const MAGIC: u32 = 0x4a69_5444;
const HEADER: u32 = 40;
/// EM_X86_64.
const MACHINE: u32 = 62;
/// Kinds of records.
const LOAD: u32 = 0;
const CLOSE: u32 = 3;
/// Bytes of a record of code before its name.
const RECORD: usize = 56;

/// The files, which all processors add to.
#[derive(Default)]
pub(crate) struct PerfFiles {
    map: Option<Mutex<File>>,
    dump: Option<Mutex<Dump>>,
}

impl PerfFiles {
    /// Begins this process's map, its dump, or both; `None` for neither.
    pub fn create(map: bool, dump: bool) -> Result<Option<PerfFiles>> {
        let pid = std::process::id();
        let map = map.then(|| File::create(format!("/tmp/perf-{pid}.map")).map(Mutex::new)).transpose()?;
        let folder = || std::env::current_dir().map(|dir| dir.join(format!("jit-{pid}.dump")));
        let dump = dump.then(|| Dump::create(&folder()?).map(Mutex::new)).transpose()?;
        Ok((map.is_some() || dump.is_some()).then_some(PerfFiles { map, dump }))
    }

    /// Names a piece of code that is at `start` from now on.
    pub fn add(&self, start: u64, code: &[u8], name: &str) {
        if code.is_empty() {
            return;
        }
        if let Some(map) = &self.map {
            // Whole lines, so that what is there can be used at any time. A file that cannot be written harms nobody.
            let _ = map.lock().write_all(format!("{start:x} {:x} {name}\n", code.len()).as_bytes());
        }
        if let Some(dump) = &self.dump {
            let _ = dump.lock().add(start, code, name);
        }
    }
}

/// The dump.
struct Dump {
    file: File,
    /// The mapping by which `perf` finds it.
    mark: *mut c_void,
    /// Number of the next piece.
    next: u64,
}

// SAFETY: the mapping is nobody else's and is not tied to a thread.
unsafe impl Send for Dump {}

/// Nanoseconds of the clock that `perf record -k mono` uses.
fn now() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

impl Dump {
    fn create(path: &Path) -> Result<Dump> {
        let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", PathBuf::from(path).display()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(named)?;
        let mut header = Vec::new();
        for word in [MAGIC, 1, HEADER, MACHINE, 0, std::process::id()] {
            header.extend(word.to_ne_bytes());
        }
        header.extend(now().to_ne_bytes());
        // Flags: times are not the processor's counter.
        header.extend(0u64.to_ne_bytes());
        file.write_all(&header)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nobody, and nobody uses it.
        let mark = unsafe { mmap(std::ptr::null_mut(), 0x1000, prot, flags, &file, 0) }?;
        Ok(Dump { file, mark, next: 0 })
    }

    fn add(&mut self, start: u64, code: &[u8], name: &str) -> Result<()> {
        let mut record = Vec::with_capacity(RECORD + name.len() + 1 + code.len());
        let total = record.capacity() as u32;
        record.extend(LOAD.to_ne_bytes());
        record.extend(total.to_ne_bytes());
        record.extend(now().to_ne_bytes());
        record.extend(std::process::id().to_ne_bytes());
        record.extend((rustix::thread::gettid().as_raw_nonzero().get() as u32).to_ne_bytes());
        for word in [start, start, code.len() as u64, self.next] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(name.as_bytes());
        record.push(0);
        record.extend(code);
        self.next += 1;
        self.file.write_all(&record)
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let mut record = Vec::new();
        record.extend(CLOSE.to_ne_bytes());
        record.extend(16u32.to_ne_bytes());
        record.extend(now().to_ne_bytes());
        let _ = self.file.write_all(&record);
        // SAFETY: it was mapped by `create` with this length.
        let _ = unsafe { munmap(self.mark, 0x1000) };
    }
}
