//! What a device asks of the machine: reset, power-off and the like.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::ResetKind;

/// One wish of a device, honoured before the requesting vCPU's next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Reset the machine or its processors.
    Reset(ResetKind),
    /// Power off (ACPI S5).
    PowerOff,
    /// Suspend to RAM (ACPI S3).
    Suspend,
    /// The A20 gate was opened (`true`) or closed.
    A20(bool),
    /// Raise NMI on all processors.
    Nmi,
    /// Raise SMI.
    Smi,
    /// The guest says that it has panicked (pvpanic); the value is the event byte.
    Panicked(u8),
    /// End the emulator with this exit code (isa-debug-exit).
    Exit(i32),
}

type Hook = Box<dyn Fn() + Send + Sync>;

/// The sink that devices hold. Clones are the same sink.
#[derive(Clone, Default)]
pub struct Requests {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    pending: AtomicBool,
    queue: Mutex<VecDeque<MachineRequest>>,
    hook: Mutex<Option<Hook>>,
}

/// Requests beyond this many that nobody has taken are dropped: a guest cannot make us allocate without bound.
const QUEUE_BOUND: usize = 64;

impl Requests {
    /// A sink with nobody listening.
    pub fn new() -> Self {
        Self::default()
    }

    /// Called after each `send`: the machine makes the vCPUs leave their engine here.
    pub fn set_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.inner.hook.lock() = Some(Box::new(hook));
    }

    /// Asks for something.
    pub fn send(&self, request: MachineRequest) {
        {
            let mut queue = self.inner.queue.lock();
            if queue.len() < QUEUE_BOUND {
                queue.push_back(request);
            }
            self.inner.pending.store(true, Ordering::Release);
        }
        if let Some(hook) = &*self.inner.hook.lock() {
            hook();
        }
    }

    /// Whether something was asked and not yet taken.
    pub fn pending(&self) -> bool {
        self.inner.pending.load(Ordering::Acquire)
    }

    /// Takes the oldest request.
    pub fn take(&self) -> Option<MachineRequest> {
        let mut queue = self.inner.queue.lock();
        let request = queue.pop_front();
        if queue.is_empty() {
            self.inner.pending.store(false, Ordering::Release);
        }
        request
    }
}
