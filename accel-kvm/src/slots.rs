//! Guest memory for the kernel: memory slots that follow the flat view.
//!
//! RAM and ROM ranges become slots (ROM and flash read-only: their writes come back as MMIO); everything else is a
//! hole. A slot that is taken away is missing until its successor is there, so changes that take slots away
//! happen with all vCPUs out of KVM_RUN; additions alone need no stop.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anura_memory::{FlatRange, FlatView, MemoryListener, PAGE_SIZE, RamBlock, RangeKind};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use parking_lot::Mutex;

use crate::gate::Gate;
use crate::host::Vm;

/// One slot as the kernel has it.
#[derive(Clone)]
struct Slot {
    number: u32,
    size: u64,
    block: Arc<RamBlock>,
    offset: u64,
    readonly: bool,
}

impl Slot {
    fn same(&self, other: &Self) -> bool {
        self.size == other.size
            && Arc::ptr_eq(&self.block, &other.block)
            && self.offset == other.offset
            && self.readonly == other.readonly
    }
}

/// The slots of one VM, by guest address.
pub(crate) struct Slots {
    vm: Arc<dyn Vm>,
    gate: Arc<Gate>,
    limit: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<u64, Slot>,
    free: Vec<u32>,
    next: u32,
    failure: Option<String>,
    /// The kernel keeps a dirty log of RAM. It costs it its large pages, so only where the log is needed.
    logging: bool,
    /// How often it was asked for without one.
    unlogged: u32,
    /// A page of no use, and which of two places it is at.
    token: Option<(Arc<RamBlock>, bool)>,
}

/// Where a slot is moved to and fro: above all RAM, below the end of what any processor addresses.
const TOKEN: [u64; 2] = [0xf_ffff_0000, 0xf_ffff_2000];

impl Slots {
    pub(crate) fn new(vm: &Arc<dyn Vm>, gate: &Arc<Gate>, limit: u32, logging: bool) -> Arc<Self> {
        let state = Mutex::new(State { logging, ..State::default() });
        Arc::new(Self { vm: vm.clone(), gate: gate.clone(), limit, state })
    }

    /// Why the kernel did not take the memory map, if it did not: the guest must not run.
    pub(crate) fn failure(&self) -> Option<String> {
        self.state.lock().failure.clone()
    }

    /// What the view wants as slots.
    fn wanted(view: &FlatView) -> BTreeMap<u64, Slot> {
        let slot = |r: &FlatRange| {
            let (block, offset) = r.read_block()?;
            // What is no whole page cannot be mapped: it stays MMIO, which the memory tree answers.
            let whole = [r.start, r.size, offset].iter().all(|n| n.is_multiple_of(PAGE_SIZE));
            let readonly = !matches!(r.kind, RangeKind::Ram { writable: true, .. });
            let slot = Slot { number: 0, size: r.size, block: block.clone(), offset, readonly };
            whole.then_some((r.start, slot))
        };
        view.ranges().iter().filter_map(slot).collect()
    }

    fn apply(&self, view: &FlatView) {
        let wanted = Self::wanted(view);
        let mut state = self.state.lock();
        let stale: Vec<u64> = state
            .slots
            .iter()
            .filter(|(at, old)| wanted.get(at).is_none_or(|new| !new.same(old)))
            .map(|(at, _)| *at)
            .collect();
        let result = if stale.is_empty() {
            self.change(&mut state, &stale, wanted)
        } else {
            self.gate.closed(|| self.change(&mut state, &stale, wanted))
        };
        if let Err((at, e)) = result {
            state.failure = Some(match e.raw_os_error() {
                Some(libc::ENOSPC) => format!("no memory slot is left for {at:#x}"),
                _ => format!("the kernel refuses the memory at {at:#x}: {e}"),
            });
        }
    }

    fn change(
        &self,
        state: &mut State,
        stale: &[u64],
        wanted: BTreeMap<u64, Slot>,
    ) -> Result<(), (u64, io::Error)> {
        for at in stale {
            if let Some(old) = state.slots.remove(at) {
                // The log goes with the slot.
                if state.logging && !old.readonly && self.sync_slot(&old).is_err() {
                    old.block.tracker().note_write(old.offset, old.size);
                }
                self.vm.set_memory(old.number, 0, *at, 0, 0).map_err(|e| (*at, e))?;
                state.free.push(old.number);
            }
        }
        for (at, mut new) in wanted {
            if state.slots.contains_key(&at) {
                continue;
            }
            new.number = match state.free.pop() {
                Some(n) => n,
                None if state.next < self.limit => {
                    state.next += 1;
                    state.next - 1
                }
                None => return Err((at, io::Error::from_raw_os_error(libc::ENOSPC))),
            };
            self.place(at, &new, state.logging).map_err(|e| (at, e))?;
            state.slots.insert(at, new);
        }
        Ok(())
    }

    /// Makes the kernel forget the page tables that it has shadowed: it sees only what the guest itself writes into its
    /// tables, not what the stepper did. Moving any slot does it; there is no call for it.
    pub(crate) fn forget_translations(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let (block, second) = match state.token.take() {
            Some((block, second)) => (block, !second),
            None => (RamBlock::new("token", PAGE_SIZE).map_err(io::Error::other)?, false),
        };
        let host = block.host_ptr().as_ptr() as u64;
        state.token = Some((block, second));
        // The last slot that is never given to memory.
        self.vm.set_memory(self.limit, 0, TOKEN[usize::from(second)], PAGE_SIZE, host)
    }

    /// Gives the kernel a slot, or changes its flags.
    fn place(&self, at: u64, slot: &Slot, logging: bool) -> io::Result<()> {
        let flags = match slot.readonly {
            true => KVM_MEM_READONLY,
            false if logging => KVM_MEM_LOG_DIRTY_PAGES,
            false => 0,
        };
        let host = slot.block.host_ptr().as_ptr() as u64 + slot.offset;
        self.vm.set_memory(slot.number, flags, at, slot.size, host)
    }

    /// Tells the trackers which pages the guest wrote since the last call; without a log, that all may be. Who asks a
    /// second time will ask again: then the log begins.
    pub(crate) fn sync_dirty(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.logging {
            return state.slots.values().filter(|s| !s.readonly).try_for_each(|s| self.sync_slot(s));
        }
        state.unlogged = state.unlogged.saturating_add(1);
        if state.unlogged == 2 {
            let mut ram = state.slots.iter().filter(|(_, s)| !s.readonly);
            match ram.try_for_each(|(at, slot)| self.place(*at, slot, true)) {
                Ok(()) => state.logging = true,
                Err(e) => log::warn!("kvm: no dirty log: {e}: all RAM counts as written"),
            }
        }
        // What was written before the log began is in no log.
        for slot in state.slots.values().filter(|s| !s.readonly) {
            slot.block.tracker().note_write(slot.offset, slot.size);
        }
        Ok(())
    }

    fn sync_slot(&self, slot: &Slot) -> io::Result<()> {
        let words = self.vm.dirty_log(slot.number, slot.size)?;
        for (i, word) in words.iter().enumerate() {
            let mut bits = *word;
            while bits != 0 {
                let page = i as u64 * 64 + u64::from(bits.trailing_zeros());
                slot.block.tracker().note_write(slot.offset + page * PAGE_SIZE, PAGE_SIZE);
                bits &= bits - 1;
            }
        }
        Ok(())
    }

    /// Number of slots in use.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().slots.len()
    }
}

impl MemoryListener for Slots {
    fn removed(&self, _: &FlatRange) {}

    fn added(&self, _: &FlatRange) {}

    fn commit(&self, view: &Arc<FlatView>) {
        self.apply(view);
    }
}
