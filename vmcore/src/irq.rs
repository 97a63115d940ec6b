//! Interrupt lines and message-signalled interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Something with numbered interrupt inputs.
pub trait IrqSink: Send + Sync {
    /// Input `input` now has this level. Called on changes only.
    fn set_irq(&self, input: u32, level: bool);
}

/// One output of a device, wired to one input of a sink. Clones share the level.
#[derive(Clone)]
pub struct IrqLine {
    wire: Arc<Wire>,
}

struct Wire {
    sink: Option<Arc<dyn IrqSink>>,
    input: u32,
    level: AtomicBool,
}

impl IrqLine {
    /// A line into `input` of `sink`, low.
    pub fn new(sink: Arc<dyn IrqSink>, input: u32) -> Self {
        Self { wire: Arc::new(Wire { sink: Some(sink), input, level: AtomicBool::new(false) }) }
    }

    /// A line that ends nowhere; its level can still be read.
    pub fn unconnected() -> Self {
        Self { wire: Arc::new(Wire { sink: None, input: 0, level: AtomicBool::new(false) }) }
    }

    /// Drives the line; the sink hears of changes only.
    pub fn set(&self, level: bool) {
        if self.wire.level.swap(level, Ordering::AcqRel) != level
            && let Some(sink) = &self.wire.sink
        {
            sink.set_irq(self.wire.input, level);
        }
    }

    /// Drives the line high and low again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// The level that was last driven.
    pub fn level(&self) -> bool {
        self.wire.level.load(Ordering::Acquire)
    }

    /// Remembers `level` without telling the sink: for `load`, where the sink restores its inputs itself.
    pub fn restore(&self, level: bool) {
        self.wire.level.store(level, Ordering::Release);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine({} = {})", self.wire.input, self.level())
    }
}

/// A sink for tests: remembers levels and counts rising edges of up to 64 inputs.
#[derive(Default)]
pub struct LineLevels {
    levels: AtomicU64,
    rises: Mutex<Vec<u32>>,
}

impl LineLevels {
    /// A sink with all inputs low.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A line into `input`.
    pub fn line(self: &Arc<Self>, input: u32) -> IrqLine {
        IrqLine::new(self.clone(), input)
    }

    /// Level of `input`.
    pub fn level(&self, input: u32) -> bool {
        self.levels.load(Ordering::Acquire) & (1 << input) != 0
    }

    /// Inputs that rose since the last call, in order.
    pub fn take_rises(&self) -> Vec<u32> {
        std::mem::take(&mut self.rises.lock())
    }
}

impl IrqSink for LineLevels {
    fn set_irq(&self, input: u32, level: bool) {
        if level {
            self.levels.fetch_or(1 << input, Ordering::AcqRel);
            self.rises.lock().push(input);
        } else {
            self.levels.fetch_and(!(1 << input), Ordering::AcqRel);
        }
    }
}

/// Takes message-signalled interrupts: a write of `data` to `address` in the APIC window.
pub trait MsiSink: Send + Sync {
    /// One message.
    fn send_msi(&self, address: u64, data: u32);
    /// The message of a [`MsiRoute`], whose number no other has: a host that knows the route needs to be told of it only
    /// once, and later that it fired.
    fn send_route(&self, route: u64, address: u64, data: u32) {
        let _ = route;
        self.send_msi(address, data);
    }
    /// That route will not fire again.
    fn forget_route(&self, route: u64) {
        let _ = route;
    }
}

/// Local APICs that are not ours but the host kernel's: where messages go while they are.
pub trait HostApics: MsiSink {
    /// What each IOAPIC pin would send, as address and data: the kernel tells the end of those interrupts that are
    /// level triggered, and of no others.
    fn route_pins(&self, pins: &[(u64, u32)]);
}

/// A message-signalled interrupt that a device holds: where it goes can be changed, and it can be masked.
#[derive(Clone)]
pub struct MsiRoute {
    inner: Arc<MsiInner>,
}

struct MsiInner {
    number: u64,
    sink: Arc<dyn MsiSink>,
    state: Mutex<MsiState>,
}

#[derive(Clone, Copy, Default)]
struct MsiState {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl MsiInner {
    fn send(&self, state: MsiState) {
        self.sink.send_route(self.number, state.address, state.data);
    }
}

impl Drop for MsiInner {
    fn drop(&mut self) {
        self.sink.forget_route(self.number);
    }
}

impl MsiRoute {
    /// An unmasked route to address 0.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { inner: Arc::new(MsiInner { number, sink, state: Mutex::default() }) }
    }

    /// Sets where the message goes.
    pub fn update(&self, address: u64, data: u32) {
        let mut state = self.inner.state.lock();
        (state.address, state.data) = (address, data);
    }

    /// Masks or unmasks; a message that was fired while masked goes out on unmasking.
    pub fn mask(&self, masked: bool) {
        let send = {
            let mut state = self.inner.state.lock();
            state.masked = masked;
            (!masked && std::mem::take(&mut state.pending)).then_some(*state)
        };
        if let Some(state) = send {
            self.inner.send(state);
        }
    }

    /// Whether a message waits for unmasking.
    pub fn pending(&self) -> bool {
        self.inner.state.lock().pending
    }

    /// Sends the message, or notes it while masked.
    pub fn fire(&self) {
        let send = {
            let mut state = self.inner.state.lock();
            if state.masked {
                state.pending = true;
            }
            (!state.masked).then_some(*state)
        };
        if let Some(state) = send {
            self.inner.send(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_sink_of_changes_only() {
        let sink = LineLevels::new();
        let line = sink.line(5);
        line.set(true);
        line.set(true);
        assert!(sink.level(5));
        line.set(false);
        line.pulse();
        assert_eq!(sink.take_rises(), [5, 5]);
    }

    #[test]
    fn restoring_a_level_makes_no_edge() {
        let sink = LineLevels::new();
        let line = sink.line(1);
        line.restore(true);
        assert!(line.level() && !sink.level(1));
        assert!(sink.take_rises().is_empty());
    }

    struct Log(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Log {
        fn send_msi(&self, address: u64, data: u32) {
            self.0.lock().push((address, data));
        }
    }

    #[test]
    fn a_masked_message_goes_out_once_on_unmasking() {
        let log = Arc::new(Log(Mutex::default()));
        let route = MsiRoute::new(log.clone());
        route.update(0xfee0_0000, 0x41);
        route.mask(true);
        route.fire();
        route.fire();
        assert!(log.0.lock().is_empty() && route.pending());
        route.mask(false);
        assert_eq!(*log.0.lock(), [(0xfee0_0000, 0x41)]);
        assert!(!route.pending());
    }
}
