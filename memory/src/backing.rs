//! Host memory behind a RAM block: anonymous, memfd, or a file (which covers hugetlbfs).
//!
//! A mapping is made once, never moves, and is undone when its last owner drops it. It stands
//! between two inaccessible pages, so that an engine's mistake at the border of a block faults.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// What a RAM block is made of: the typed form of QEMU's `memory-backend-*` objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// `memory-backend-ram`: private anonymous memory with transparent huge pages, the default.
    Anonymous {
        /// Shared with children of this process (an anonymous shared mapping).
        share: bool,
        /// Take all host memory now.
        prealloc: bool,
    },
    /// `memory-backend-memfd`: memory that has a descriptor, to share with other processes.
    Memfd {
        /// Writes are seen by other holders of the descriptor.
        share: bool,
        /// Take all host memory now.
        prealloc: bool,
        /// Use the host's huge pages, of this size in bytes if one is named.
        hugetlb: Option<Option<u64>>,
    },
    /// `memory-backend-file`: a file, or a fresh unnamed file in a directory such as a hugetlbfs mount.
    File {
        /// The file or directory.
        path: PathBuf,
        /// Writes reach the file.
        share: bool,
        /// Take all host memory now.
        prealloc: bool,
        /// Map the file read-only: guest writes are lost.
        readonly: bool,
    },
}

impl Default for Backing {
    fn default() -> Self {
        Self::Anonymous { share: false, prealloc: false }
    }
}

/// Why host memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The host refuses a mapping of that size.
    #[error("cannot set up guest memory '{name}': {source} ({len} bytes)")]
    Map {
        /// Name of the block.
        name: String,
        /// Its size.
        len: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The backing file cannot be made or opened.
    #[error("can't open backing store {path} for guest RAM: {source}")]
    Open {
        /// File or directory.
        path: String,
        /// What the host said.
        source: io::Error,
    },
    /// A descriptor of memory cannot be made.
    #[error("failed to create memfd for '{name}': {source}")]
    Memfd {
        /// Name of the block.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// The file cannot hold the block.
    #[error("backing store {path} size {have:#x} does not match 'size' option {want:#x}")]
    TooSmall {
        /// The file.
        path: String,
        /// Its size.
        have: u64,
        /// Size of the block.
        want: u64,
    },
    /// The size is zero or no multiple of the page size of the backing.
    #[error("memory size {len:#x} of '{name}' must be a non-zero multiple of its page size {page:#x}")]
    Size {
        /// Name of the block.
        name: String,
        /// Its size.
        len: u64,
        /// Page size of the backing.
        page: u64,
    },
    /// Not enough host memory to take now.
    #[error("cannot preallocate guest memory '{name}': {source}")]
    Prealloc {
        /// Name of the block.
        name: String,
        /// What the host said.
        source: io::Error,
    },
}

/// A live mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    guarded: NonNull<u8>,
    guarded_len: usize,
    fd: Option<OwnedFd>,
    page: u64,
}

// SAFETY: the mapping is plain memory; who accesses it how is the RAM block's business.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in the struct itself changes.
unsafe impl Sync for Mapping {}

/// `HUGETLBFS_MAGIC` of the Linux uapi.
const HUGETLBFS_MAGIC: u64 = 0x958458f6;

impl Mapping {
    pub(crate) fn new(name: &str, len: u64, backing: &Backing) -> Result<Self, BackingError> {
        match backing {
            Backing::Anonymous { share, prealloc } => {
                let mapping = Self::map(name, len, None, *share, true, rustix::param::page_size() as u64)?;
                mapping.advise_huge();
                mapping.finish(name, *prealloc)
            }
            Backing::Memfd { share, prealloc, hugetlb } => {
                let (fd, page) = open_memfd(name, *hugetlb)?;
                check_size(name, len, page)?;
                rustix::fs::ftruncate(&fd, len)
                    .map_err(|e| BackingError::Memfd { name: name.to_owned(), source: e.into() })?;
                let mapping = Self::map(name, len, Some(fd), *share, true, page)?;
                mapping.advise_huge();
                mapping.finish(name, *prealloc)
            }
            Backing::File { path, share, prealloc, readonly } => {
                let (fd, page) = open_file(path, len, *readonly)?;
                check_size(name, len, page)?;
                // A private mapping of a read-only file may still be written: the writes are ours.
                let mapping = Self::map(name, len, Some(fd), *share && !*readonly, true, page)?;
                mapping.finish(name, *prealloc)
            }
        }
    }

    fn map(
        name: &str,
        len: u64,
        fd: Option<OwnedFd>,
        share: bool,
        write: bool,
        page: u64,
    ) -> Result<Self, BackingError> {
        let fail = |e: rustix::io::Errno| BackingError::Map { name: name.to_owned(), len, source: e.into() };
        check_size(name, len, rustix::param::page_size() as u64)?;
        // Room for the guards and for an alignment that transparent or real huge pages can use.
        let align = page.max(if len >= 2 << 20 { 2 << 20 } else { 4096 });
        let reserve = len.checked_add(2 * align).filter(|n| *n <= isize::MAX as u64);
        let reserve = reserve.ok_or_else(|| fail(rustix::io::Errno::NOMEM))? as usize;
        let none = std::ptr::null_mut();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh inaccessible mapping at an address of the kernel's choice touches nothing else.
        let guarded =
            unsafe { rustix::mm::mmap_anonymous(none, reserve, ProtFlags::empty(), flags) }.map_err(fail)?;
        let guarded = guarded.cast::<u8>();
        let skip = (guarded as usize + 4096).next_multiple_of(align as usize) - guarded as usize;
        let at = guarded.wrapping_add(skip);
        let prot = if write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let kind = if share { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // A huge page that cannot be had must fail here, not as SIGBUS in the guest's middle.
        let lazy = if page > 4096 { MapFlags::empty() } else { MapFlags::NORESERVE };
        let flags = kind | lazy | MapFlags::FIXED;
        // SAFETY: `at..at + len` lies inside the reservation made above, which nobody else knows yet:
        // `skip <= align + 4096 <= 2 * align`, so the end stays within `reserve`.
        let mapped = unsafe {
            match &fd {
                Some(fd) => rustix::mm::mmap(at.cast(), len as usize, prot, flags, fd, 0),
                None => rustix::mm::mmap_anonymous(at.cast(), len as usize, prot, flags),
            }
        };
        if let Err(e) = mapped {
            // SAFETY: the reservation is ours and has no user.
            let _ = unsafe { rustix::mm::munmap(guarded.cast(), reserve) };
            return Err(fail(e));
        }
        let nonnull = |p| NonNull::new(p).expect("a successful mmap is not at address 0");
        Ok(Self {
            base: nonnull(at),
            len: len as usize,
            guarded: nonnull(guarded),
            guarded_len: reserve,
            fd,
            page,
        })
    }

    /// Transparent huge pages are a wish: a host without them is slower, not broken.
    fn advise_huge(&self) {
        // SAFETY: advice on our own mapping, changes no contents.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
    }

    fn finish(self, name: &str, prealloc: bool) -> Result<Self, BackingError> {
        if prealloc {
            // SAFETY: faults in our own mapping, changes no contents.
            unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) }
                .map_err(|e| BackingError::Prealloc { name: name.to_owned(), source: e.into() })?;
        }
        Ok(self)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// Gives whole pages back to the host; they read as zeros (or as the file) afterwards.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "discard beyond its mapping");
        if let Some(fd) = &self.fd {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(fd, flags, offset as u64, len as u64)?;
        }
        // SAFETY: within our mapping as asserted; readers see zeros, which volatile readers cope with.
        unsafe { rustix::mm::madvise(self.base.as_ptr().add(offset).cast(), len, Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: we own the whole reservation, and no pointer into it outlives the RAM block.
        let _ = unsafe { rustix::mm::munmap(self.guarded.as_ptr().cast(), self.guarded_len) };
    }
}

fn check_size(name: &str, len: u64, page: u64) -> Result<(), BackingError> {
    if len == 0 || !len.is_multiple_of(page) {
        return Err(BackingError::Size { name: name.to_owned(), len, page });
    }
    Ok(())
}

fn open_memfd(name: &str, hugetlb: Option<Option<u64>>) -> Result<(OwnedFd, u64), BackingError> {
    let mut flags = MemfdFlags::CLOEXEC;
    let mut page = rustix::param::page_size() as u64;
    if let Some(size) = hugetlb {
        page = size.unwrap_or(2 << 20);
        flags |= MemfdFlags::HUGETLB;
        if size.is_some() {
            // The size travels as its logarithm above bit 26 (memfd_create(2)).
            flags |= MemfdFlags::from_bits_retain(page.max(1).ilog2() << 26);
        }
    }
    let fd = rustix::fs::memfd_create(name, flags)
        .map_err(|e| BackingError::Memfd { name: name.to_owned(), source: e.into() })?;
    Ok((fd, page))
}

fn open_file(path: &std::path::Path, len: u64, readonly: bool) -> Result<(OwnedFd, u64), BackingError> {
    let fail =
        |e: rustix::io::Errno| BackingError::Open { path: path.display().to_string(), source: e.into() };
    let fd = if path.is_dir() {
        // Unnamed from the start: the memory goes with the last holder of the descriptor.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).or_else(|_| named_then_unlinked(path));
        fd.map_err(fail)?
    } else {
        let access = if readonly { OFlags::RDONLY } else { OFlags::RDWR | OFlags::CREATE };
        rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).map_err(fail)?
    };
    let have = rustix::fs::fstat(&fd).map_err(fail)?.st_size as u64;
    if have == 0 && !readonly {
        rustix::fs::ftruncate(&fd, len).map_err(fail)?;
    } else if have < len {
        return Err(BackingError::TooSmall { path: path.display().to_string(), have, want: len });
    }
    let fs = rustix::fs::fstatfs(&fd).map_err(fail)?;
    let small = rustix::param::page_size() as u64;
    let page = if fs.f_type as u64 == HUGETLBFS_MAGIC { fs.f_bsize as u64 } else { small };
    Ok((fd, page))
}

/// For file systems without unnamed files, hugetlbfs of older kernels among them.
fn named_then_unlinked(dir: &std::path::Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let path = dir.join(format!("anura-ram.{}", std::process::id()));
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::unlink(&path)?;
    Ok(fd)
}
