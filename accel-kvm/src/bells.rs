//! Doorbells: writes that the kernel turns into a count (`KVM_IOEVENTFD`) instead of leaving the guest.
//!
//! A thread of ours waits for the counts and makes the writes, as many as there were, at the address spaces: the device
//! sees what it would have seen. When the vCPUs stand, no write is left behind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use anura_memory::{AddressSpace, FlatRange, FlatView, MemoryListener};
use anura_vmcore::{Requester, Width};
use parking_lot::Mutex;

use crate::host::{Bell, Vm};

/// Writes that are made up for at once; the rest of a flood is one write more or less.
const MOST: u64 = 1 << 16;

struct Hung {
    bell: Bell,
    width: Width,
    /// Shared, so that the thread can look at it while the list changes.
    fd: Arc<OwnedFd>,
}

/// The doorbells of one VM.
pub(crate) struct Bells {
    vm: Arc<dyn Vm>,
    memory: AddressSpace,
    ports: AddressSpace,
    hung: Mutex<Vec<Hung>>,
    /// Held while writes are made.
    ringing: Mutex<()>,
    /// Wakes the thread when the list changed.
    changed: OwnedFd,
    me: Weak<Bells>,
    started: Mutex<bool>,
}

/// Hears of one address space for [`Bells`].
pub(crate) struct Ear {
    bells: Arc<Bells>,
    port: bool,
}

/// A counter that the kernel knows.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How often it was rung since the last look.
fn take(fd: &OwnedFd) -> u64 {
    let mut count = 0u64;
    // SAFETY: eight bytes of ours.
    let n = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    if n == 8 { count } else { 0 }
}

/// Counts one up.
pub(crate) fn wake(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes of ours; a full counter wakes as well.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

impl Bells {
    pub(crate) fn new(
        vm: &Arc<dyn Vm>,
        memory: &AddressSpace,
        ports: &AddressSpace,
    ) -> io::Result<Arc<Self>> {
        let changed = eventfd()?;
        Ok(Arc::new_cyclic(|me| Self {
            vm: vm.clone(),
            memory: memory.clone(),
            ports: ports.clone(),
            hung: Mutex::default(),
            ringing: Mutex::default(),
            changed,
            me: me.clone(),
            started: Mutex::default(),
        }))
    }

    /// The listeners for memory and ports.
    pub(crate) fn ears(self: &Arc<Self>) -> [Arc<dyn MemoryListener>; 2] {
        [false, true].map(|port| Arc::new(Ear { bells: self.clone(), port }) as Arc<dyn MemoryListener>)
    }

    fn follow(&self, port: bool, view: &FlatView) {
        let mut wanted = Vec::new();
        for range in view.ranges() {
            for d in range.region.doorbells() {
                let end = range.offset + range.size;
                if d.offset < range.offset || d.offset + d.width.bytes() as u64 > end {
                    continue;
                }
                let at = range.start + (d.offset - range.offset);
                wanted.push((Bell { port, at, len: d.width.bytes() as u32, value: d.value }, d.width));
            }
        }
        let mut hung = self.hung.lock();
        hung.retain(|h| {
            let stays = h.bell.port != port || wanted.iter().any(|(bell, _)| *bell == h.bell);
            if !stays && let Err(e) = self.vm.ioeventfd(h.fd.as_fd(), h.bell, false) {
                log::warn!("kvm: KVM_IOEVENTFD at {:#x}: {e}", h.bell.at);
            }
            stays
        });
        for (bell, width) in wanted {
            if hung.iter().any(|h| h.bell == bell) {
                continue;
            }
            let result = eventfd().and_then(|fd| self.vm.ioeventfd(fd.as_fd(), bell, true).map(|()| fd));
            match result {
                Ok(fd) => hung.push(Hung { bell, width, fd: Arc::new(fd) }),
                // Then its writes come as exits.
                Err(e) => log::warn!("kvm: KVM_IOEVENTFD at {:#x}: {e}", bell.at),
            }
        }
        let any = !hung.is_empty();
        drop(hung);
        if any {
            self.start();
        }
        wake(&self.changed);
    }

    fn start(&self) {
        let mut started = self.started.lock();
        if *started {
            return;
        }
        let me = self.me.clone();
        let thread = std::thread::Builder::new().name("KVM doorbells".into());
        *started = match thread.spawn(move || wait(&me)) {
            Ok(_) => true,
            Err(e) => {
                log::error!("kvm: no thread for doorbells: {e}");
                false
            }
        };
    }

    /// Makes all writes that were collected.
    pub(crate) fn drain(&self) {
        let _one_at_a_time = self.ringing.lock();
        let hung: Vec<_> = self.hung.lock().iter().map(|h| (h.bell, h.width, h.fd.clone())).collect();
        for (bell, width, fd) in hung {
            let space = if bell.port { &self.ports } else { &self.memory };
            for _ in 0..take(&fd).min(MOST) {
                let _ = space.write(bell.at, width, bell.value.unwrap_or(0), Requester::Cpu(0));
            }
        }
    }

    /// The thread ends.
    pub(crate) fn close(&self) {
        self.hung.lock().clear();
        wake(&self.changed);
    }
}

/// The thread: waits for a bell or a change of the list, until the VM is gone.
fn wait(bells: &Weak<Bells>) {
    loop {
        let Some(now) = bells.upgrade() else { return };
        let fds: Vec<Arc<OwnedFd>> = now.hung.lock().iter().map(|h| h.fd.clone()).collect();
        let poll = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let Ok(changed) = now.changed.try_clone() else { return };
        drop(now);
        let mut list: Vec<_> = fds.iter().map(|fd| poll(fd)).chain([poll(&changed)]).collect();
        // SAFETY: as many entries as said, of descriptors that are open.
        unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, 1000) };
        let Some(now) = bells.upgrade() else { return };
        take(&now.changed);
        now.drain();
    }
}

impl MemoryListener for Ear {
    fn removed(&self, _: &FlatRange) {}

    fn added(&self, _: &FlatRange) {}

    fn commit(&self, view: &Arc<FlatView>) {
        self.bells.follow(self.port, view);
    }
}
