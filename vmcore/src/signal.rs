//! The word by which the rest of the machine gets a vCPU's attention.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// One per vCPU, shared by the machine, the local APIC and the engine.
///
/// The engine reads `poll` at block boundaries and after each access that reached a device; everybody else
/// only sets bits in it. The reason must be visible (in a mailbox, a queue) before the bit is raised.
pub struct CpuSignal {
    /// Pending bits; zero in the steady state.
    pub poll: AtomicU32,
    hook: Mutex<Option<Hook>>,
    /// The engine's own, for one that sits in the kernel and cannot look at `poll`.
    engine_hook: Mutex<Option<Hook>>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

impl CpuSignal {
    /// Leave `run` with `Interrupted`.
    pub const KICK: u32 = 1 << 0;
    /// The local APIC has something: a vector, NMI, INIT, SIPI or an ExtINT line.
    pub const IRQ: u32 = 1 << 1;
    /// The engine's own work (invalidations from other threads).
    pub const WORK: u32 = 1 << 2;

    /// A signal with nothing pending.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { poll: AtomicU32::new(0), hook: Mutex::new(None), engine_hook: Mutex::new(None) })
    }

    /// Sets bits and wakes the vCPU's thread.
    pub fn raise(&self, bits: u32) {
        let before = self.poll.fetch_or(bits, Ordering::SeqCst);
        // Who raised the bit first has woken the thread, and it looks at all bits before it sleeps.
        if before & bits != bits {
            for hook in [&self.engine_hook, &self.hook] {
                let hook = hook.lock().clone();
                if let Some(hook) = hook {
                    hook();
                }
            }
        }
    }

    /// Takes and clears all bits.
    pub fn take(&self) -> u32 {
        if self.poll.load(Ordering::Relaxed) == 0 { 0 } else { self.poll.swap(0, Ordering::SeqCst) }
    }

    /// As [`Self::set_hook`], for the engine: called first.
    pub fn set_engine_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.engine_hook.lock() = Some(Arc::new(hook));
    }

    /// Called when a bit is newly raised, on the raiser's thread.
    pub fn set_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }
}
