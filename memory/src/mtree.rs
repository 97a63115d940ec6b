//! The tree as text, in the form of `info mtree` and `info mtree -f`.

use std::fmt::Write;
use std::sync::Arc;

use crate::map::MemoryMap;
use crate::region::{Region, RegionKind};
use crate::space::AddressSpace;

impl MemoryMap {
    /// `info mtree`: every space's tree, then the regions that aliases show. Disabled regions are left
    /// out unless `disabled`.
    pub fn tree_text(&self, disabled: bool) -> String {
        let mut out = String::new();
        let mut targets = Vec::new();
        for same_root in by_root(self.spaces()) {
            for space in &same_root {
                let _ = writeln!(out, "address-space: {}", space.name());
            }
            print(&mut out, same_root[0].root(), 0, 1, disabled, &mut targets);
            out.push('\n');
        }
        // Printing a target may bring up more of them.
        let mut i = 0;
        while i < targets.len() {
            let target: Region = targets[i].clone();
            let _ = writeln!(out, "memory-region: {}", target.name());
            print(&mut out, &target, 0, 1, disabled, &mut targets);
            out.push('\n');
            i += 1;
        }
        out
    }

    /// `info mtree -f`: every flat view.
    pub fn flat_text(&self) -> String {
        let mut out = String::new();
        for (i, same_root) in by_root(self.spaces()).iter().enumerate() {
            let _ = writeln!(out, "FlatView #{i}");
            for space in same_root {
                let _ = writeln!(out, " AS \"{}\", root: {}", space.name(), space.root().name());
            }
            let _ = writeln!(out, " Root memory region: {}", same_root[0].root().name());
            let view = same_root[0].view();
            if view.ranges().is_empty() {
                out.push_str("  No rendered FlatView\n");
            }
            for r in view.ranges() {
                let kind = if r.readonly() { "rom" } else { type_name(&r.region) };
                let _ = write!(
                    out,
                    "  {:016x}-{:016x} (prio {}, {kind}): ",
                    r.start,
                    r.last(),
                    r.region.priority()
                );
                let _ = match r.offset {
                    0 => writeln!(out, "{}", r.region.name()),
                    o => writeln!(out, "{} @{o:016x}", r.region.name()),
                };
            }
            out.push('\n');
        }
        out
    }
}

/// Spaces in groups that show the same root, in order of first appearance.
fn by_root(spaces: Vec<AddressSpace>) -> Vec<Vec<AddressSpace>> {
    let mut groups: Vec<Vec<AddressSpace>> = Vec::new();
    for space in spaces {
        match groups.iter_mut().find(|g| g[0].root() == space.root()) {
            Some(group) => group.push(space),
            None => groups.push(vec![space]),
        }
    }
    groups
}

fn type_name(region: &Region) -> &'static str {
    match region.kind() {
        RegionKind::Ram(_) if region.0.state.lock().readonly => "rom",
        RegionKind::Ram(_) => "ram",
        RegionKind::Rom(_) => "rom",
        RegionKind::RomDevice(..) => "romd",
        RegionKind::Container | RegionKind::Io(_) | RegionKind::Alias(_) => "i/o",
    }
}

/// What an alias of an alias shows in the end.
fn final_type(region: &Region) -> &'static str {
    match region.kind() {
        RegionKind::Alias(target) => final_type(target),
        _ => type_name(region),
    }
}

fn print(
    out: &mut String,
    region: &Region,
    base: u64,
    level: usize,
    disabled: bool,
    targets: &mut Vec<Region>,
) {
    let (enabled, priority, children, alias_offset) = {
        let s = region.0.state.lock();
        (s.enabled, s.priority, s.children.clone(), s.alias_offset)
    };
    if enabled || disabled {
        let last = base.wrapping_add((region.0.size.max(1) - 1) as u64);
        let _ = write!(out, "{:level$}{:level$}{base:016x}-{last:016x} (prio {priority}, ", "", "");
        let _ = match region.kind() {
            RegionKind::Alias(target) => {
                if !targets.iter().any(|t| Arc::ptr_eq(&t.0, &target.0)) {
                    targets.push(target.clone());
                }
                let to = alias_offset.wrapping_add((region.0.size.max(1) - 1) as u64);
                let kind = final_type(region);
                let (name, target) = (region.name(), target.name());
                write!(out, "{kind}): alias {name} @{target} {alias_offset:016x}-{to:016x}")
            }
            _ => write!(out, "{}): {}", type_name(region), region.name()),
        };
        out.push_str(if enabled { "\n" } else { " [disabled]\n" });
    }
    // Siblings by address, as a reader looks for them; among equals the higher priority first.
    let mut children = children;
    children.sort_by_key(|c| (c.offset, -i64::from(c.priority)));
    for c in &children {
        print(out, &c.region, base.wrapping_add(c.offset), level + 1, disabled, targets);
    }
}
