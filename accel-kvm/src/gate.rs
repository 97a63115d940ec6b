//! Keeping all vCPUs out of KVM_RUN for a moment, and getting one of them out.
//!
//! A vCPU's thread holds the gate for reading while it is in KVM_RUN and at no other time, so closing it waits for
//! nothing but the kernel's return: never for a device.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Once};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::host::Kick;

/// One vCPU as others reach it.
pub(crate) struct Target {
    /// Gone when the vCPU is.
    kick: Mutex<Option<Kick>>,
    /// The thread in KVM_RUN, 0 for none.
    thread: AtomicI32,
}

impl Target {
    pub(crate) fn new(kick: Kick) -> Arc<Self> {
        Arc::new(Self { kick: Mutex::new(Some(kick)), thread: AtomicI32::new(0) })
    }

    /// Makes the vCPU leave KVM_RUN, or return from the next one at once.
    pub(crate) fn kick(&self) {
        let kick = self.kick.lock();
        if let Some(kick) = *kick {
            // SAFETY: the page is there until `retire`, which takes the lock we hold.
            unsafe { kick.set(1) };
            let thread = self.thread.load(Ordering::SeqCst);
            if thread != 0 {
                signal(thread);
            }
        }
    }

    /// The calling thread is about to enter KVM_RUN.
    pub(crate) fn enter(&self) {
        self.thread.store(gettid(), Ordering::SeqCst);
    }

    /// It is back.
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// Forgets kicks that came before now. The caller looks at its reasons to leave afterwards.
    pub(crate) fn rearm(&self) {
        if let Some(kick) = *self.kick.lock() {
            // SAFETY: as in `kick`.
            unsafe { kick.set(0) };
        }
    }

    /// The vCPU goes away.
    pub(crate) fn retire(&self) {
        *self.kick.lock() = None;
    }
}

/// The gate of one VM.
#[derive(Default)]
pub(crate) struct Gate {
    inside: RwLock<()>,
    targets: Mutex<Vec<Arc<Target>>>,
}

impl Gate {
    pub(crate) fn add(&self, target: &Arc<Target>) {
        self.targets.lock().push(target.clone());
    }

    /// To be held during KVM_RUN.
    pub(crate) fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.inside.read()
    }

    /// Does `work` with no vCPU in KVM_RUN.
    pub(crate) fn closed<R>(&self, work: impl FnOnce() -> R) -> R {
        let guard = loop {
            self.targets.lock().iter().for_each(|t| t.kick());
            // A vCPU between its look at the flag and the ioctl needs another kick.
            if let Some(guard) = self.inside.try_write_for(std::time::Duration::from_millis(1)) {
                break guard;
            }
        };
        let result = work();
        drop(guard);
        result
    }
}

/// The number of this thread, asked for once: it is needed at each entry.
fn gettid() -> i32 {
    thread_local! {
        // SAFETY: no arguments.
        static OWN: i32 = unsafe { libc::syscall(libc::SYS_gettid) as i32 };
    }
    OWN.with(|own| *own)
}

/// The signal that ends a KVM_RUN.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn signal(thread: i32) {
    install();
    // SAFETY: plain numbers; a thread that is gone gives ESRCH, which is as good.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
}

extern "C" fn nothing(_: libc::c_int) {}

/// A handler that does nothing: the signal's whole effect is EINTR.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeroed is a valid sigaction; the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut());
        }
    });
}
