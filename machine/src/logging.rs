//! What `-d` and the monitor's `log` switch: items of the log by QEMU's names.

use std::sync::atomic::{AtomicU32, Ordering};

/// Items with a line of help each.
pub const ITEMS: &[(&str, &str)] = &[
    ("in_asm", "show guest code of each translated block"),
    ("op", "show the operations of each translated block"),
    ("out_asm", "show generated host code of each translated block"),
    ("int", "show interrupts and exceptions as they are delivered"),
    ("exec", "show each block before it is executed (lots of output)"),
    ("cpu", "show CPU registers before each block (lots of output)"),
    ("mmu", "show activity of the MMU"),
    ("cpu_reset", "show CPU state before each reset"),
    ("unimp", "log what is not implemented"),
    ("guest_errors", "log what the guest does wrong"),
];

static ACTIVE: AtomicU32 = AtomicU32::new(0);

/// Whether an item is on.
pub fn active(item: &str) -> bool {
    let bits = ACTIVE.load(Ordering::Relaxed);
    if bits == 0 {
        return false;
    }
    ITEMS.iter().position(|(name, _)| *name == item).is_some_and(|n| bits & 1 << n != 0)
}

/// Switches to exactly these items, a comma-separated list; `none` is none of them. The error names what is unknown.
pub fn set_items(list: &str) -> Result<(), String> {
    let mut bits = 0;
    for item in list.split(',').filter(|item| !item.is_empty() && *item != "none") {
        match ITEMS.iter().position(|(name, _)| *name == item) {
            Some(n) => bits |= 1 << n,
            None => {
                let names: Vec<_> = ITEMS.iter().map(|(name, _)| *name).collect();
                return Err(format!("log item '{item}' is not known; there are {}", names.join(", ")));
            }
        }
    }
    ACTIVE.store(bits, Ordering::Relaxed);
    Ok(())
}
