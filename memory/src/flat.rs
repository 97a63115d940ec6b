//! The flat view: what the tree looks like from one root, as sorted ranges without overlap.
//!
//! Rendering walks the tree from the highest priority down and lets each leaf take what is still
//! free. Lookup in memory is a binary search with the last hit tried first; a 64 KiB root (the port
//! space) has a direct table, one entry per port.
//!
//! An access that a handler implements as it comes goes straight to it; whether that is so for a
//! width was worked out when the view was made. Everything else takes the slow way: rules, splits at
//! borders, ROM, unassigned addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anura_vmcore::{Requester, Width, trace_event};

use crate::access::{Access, AccessResult, IoHandler};
use crate::ram::{HostSlice, RamBlock};
use crate::region::{Region, RegionKind};

/// What answers in a range.
#[derive(Clone)]
pub enum RangeKind {
    /// RAM, or ROM if not writable (writes are dropped).
    Ram {
        /// The block.
        block: Arc<RamBlock>,
        /// Where in the block the range starts.
        offset: u64,
        /// Whether writes take effect.
        writable: bool,
    },
    /// Reads come from the block, writes go to the handler.
    RomDevice {
        /// The block.
        block: Arc<RamBlock>,
        /// Where in the block the range starts.
        offset: u64,
        /// Takes the writes.
        handler: Arc<dyn IoHandler>,
    },
    /// Registers.
    Io {
        /// Takes all accesses.
        handler: Arc<dyn IoHandler>,
    },
}

/// A piece of the address space that one region answers.
#[derive(Clone)]
pub struct FlatRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub size: u64,
    /// The region that answers.
    pub region: Region,
    /// Where in the region the range starts.
    pub offset: u64,
    /// How it answers.
    pub kind: RangeKind,
    readonly: bool,
    direct: u8,
    direct_unaligned: bool,
    /// Bytes from the range's start that one access may reach: see [`Self::room`].
    reach: u64,
}

impl std::fmt::Debug for FlatRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x} {}@{:#x}", self.start, self.size, self.region.name(), self.offset)
    }
}

impl PartialEq for FlatRange {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start
            && self.size == other.size
            && self.offset == other.offset
            && self.region == other.region
            && self.readonly == other.readonly
            && std::mem::discriminant(&self.kind) == std::mem::discriminant(&other.kind)
    }
}

impl FlatRange {
    fn new(region: &Region, start: u64, size: u64, offset: u64, readonly: bool) -> Option<Self> {
        let rules = region.0.rules;
        let rom_mode = region.0.state.lock().rom_mode;
        let kind = match region.kind() {
            RegionKind::Ram(block) => RangeKind::Ram { block: block.clone(), offset, writable: !readonly },
            RegionKind::Rom(block) => RangeKind::Ram { block: block.clone(), offset, writable: false },
            RegionKind::RomDevice(block, handler) if rom_mode => {
                RangeKind::RomDevice { block: block.clone(), offset, handler: handler.get()? }
            }
            RegionKind::RomDevice(_, handler) | RegionKind::Io(handler) => {
                RangeKind::Io { handler: handler.get()? }
            }
            RegionKind::Container | RegionKind::Alias(_) => return None,
        };
        let readonly = readonly || matches!(region.kind(), RegionKind::Rom(_));
        let reach = match kind {
            RangeKind::Io { .. } => region.size().saturating_sub(offset),
            _ => size,
        };
        Some(Self {
            start,
            size,
            region: region.clone(),
            offset,
            kind,
            readonly,
            direct: rules.direct_widths(),
            direct_unaligned: rules.direct_unaligned(),
            reach,
        })
    }

    /// Last address.
    pub fn last(&self) -> u64 {
        self.start + (self.size - 1)
    }

    /// Whether `gpa` is inside.
    #[inline]
    pub fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.start) < self.size
    }

    /// Whether guests cannot write here.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// The RAM behind reads of this range, with where the range starts in it.
    pub fn read_block(&self) -> Option<(&Arc<RamBlock>, u64)> {
        match &self.kind {
            RangeKind::Ram { block, offset, .. } | RangeKind::RomDevice { block, offset, .. } => {
                Some((block, *offset))
            }
            RangeKind::Io { .. } => None,
        }
    }

    /// The offset in the region at which the handler may be called as is.
    #[inline]
    fn direct(&self, gpa: u64, width: Width) -> Option<u64> {
        let bytes = width.bytes() as u64;
        let within = gpa.wrapping_sub(self.start);
        let offset = self.offset.wrapping_add(within);
        let ok = self.direct & width.bytes() as u8 != 0
            && self.room(within) >= bytes
            && (self.direct_unaligned || offset & (bytes - 1) == 0);
        ok.then_some(offset)
    }

    /// How many bytes one access may have that begins `within` this range.
    ///
    /// A device decodes the address of an access and then takes its full width, without a look at smaller
    /// registers of others that lie over its own: PCI's address port is a doubleword although the reset
    /// register is its second byte. RAM and ROM end where the range does.
    #[inline]
    fn room(&self, within: u64) -> u64 {
        self.reach.wrapping_sub(within)
    }

    fn access(&self, gpa: u64, width: Width, from: Requester) -> Access {
        Access { offset: self.offset.wrapping_add(gpa - self.start), width, from }
    }
}

/// Entry of the port table for a port that nothing claims.
const NO_RANGE: u16 = u16::MAX;
/// Size of a space that gets a direct table.
const TABLE_SIZE: usize = 1 << 16;

/// An immutable rendering of a tree.
pub struct FlatView {
    root: Region,
    ranges: Vec<FlatRange>,
    table: Option<Box<[u16]>>,
    hint: AtomicUsize,
}

impl std::fmt::Debug for FlatView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

/// Trees are built by boards and are a few levels deep; this only stops a region that holds itself.
const MAX_DEPTH: usize = 64;

struct Piece {
    start: i128,
    end: i128,
    region: Region,
    offset: u64,
    readonly: bool,
}

struct Renderer {
    /// Sorted, without overlap.
    pieces: Vec<Piece>,
}

impl Renderer {
    /// Renders `region`, whose first byte is at `base`, within `clip`.
    fn render(&mut self, region: &Region, base: i128, clip: (i128, i128), readonly: bool, depth: usize) {
        let (children, alias_offset, readonly) = {
            let state = region.0.state.lock();
            if !state.enabled || depth == MAX_DEPTH {
                return;
            }
            (state.children.clone(), state.alias_offset, readonly || state.readonly)
        };
        let clip = (clip.0.max(base), clip.1.min(base + region.0.size as i128));
        if clip.0 >= clip.1 {
            return;
        }
        if let RegionKind::Alias(target) = region.kind() {
            return self.render(target, base - i128::from(alias_offset), clip, readonly, depth + 1);
        }
        for child in &children {
            self.render(&child.region, base + i128::from(child.offset), clip, readonly, depth + 1);
        }
        if !matches!(region.kind(), RegionKind::Container) {
            self.fill(region, base, clip, readonly);
        }
    }

    /// Gives `region` what nobody has of `clip`.
    fn fill(&mut self, region: &Region, base: i128, clip: (i128, i128), readonly: bool) {
        let mut at = clip.0;
        let mut i = self.pieces.partition_point(|p| p.end <= clip.0);
        while at < clip.1 {
            let taken = self.pieces.get(i).map_or((clip.1, clip.1), |p| (p.start, p.end));
            let end = taken.0.min(clip.1);
            if at < end {
                let offset = (at - base) as u64;
                self.pieces.insert(i, Piece { start: at, end, region: region.clone(), offset, readonly });
                i += 1;
            }
            at = taken.1.max(end);
            i += 1;
        }
    }

    /// Neighbours that continue each other in the same region become one.
    fn merged(self) -> Vec<Piece> {
        let mut out: Vec<Piece> = Vec::with_capacity(self.pieces.len());
        for p in self.pieces {
            match out.last_mut() {
                Some(last)
                    if last.end == p.start
                        && last.region == p.region
                        && last.readonly == p.readonly
                        && i128::from(last.offset) + (last.end - last.start) == i128::from(p.offset) =>
                {
                    last.end = p.end;
                }
                _ => out.push(p),
            }
        }
        out
    }
}

impl FlatView {
    /// Renders the tree under `root`.
    pub fn render(root: &Region) -> Self {
        let mut r = Renderer { pieces: Vec::new() };
        r.render(root, 0, (0, 1 << 64), false, 0);
        let ranges: Vec<FlatRange> = r
            .merged()
            .iter()
            .filter_map(|p| {
                FlatRange::new(&p.region, p.start as u64, (p.end - p.start) as u64, p.offset, p.readonly)
            })
            .collect();
        let wants_table = root.0.size == TABLE_SIZE as u128 && ranges.len() < usize::from(NO_RANGE);
        let table = wants_table.then(|| port_table(&ranges));
        Self { root: root.clone(), ranges, table, hint: AtomicUsize::new(0) }
    }

    /// The root this view was rendered from.
    pub fn root(&self) -> &Region {
        &self.root
    }

    /// All ranges by address.
    pub fn ranges(&self) -> &[FlatRange] {
        &self.ranges
    }

    /// The range that answers at `gpa`.
    #[inline]
    pub fn find(&self, gpa: u64) -> Option<&FlatRange> {
        match &self.table {
            Some(table) => {
                let entry = *table.get(usize::try_from(gpa).ok()?)?;
                self.ranges.get(usize::from(entry))
            }
            None => {
                let hint = self.hint.load(Ordering::Relaxed);
                match self.ranges.get(hint) {
                    Some(r) if r.contains(gpa) => Some(r),
                    _ => self.search(gpa),
                }
            }
        }
    }

    fn search(&self, gpa: u64) -> Option<&FlatRange> {
        let i = self.ranges.partition_point(|r| r.start <= gpa).checked_sub(1)?;
        let range = self.ranges.get(i).filter(|r| r.contains(gpa))?;
        self.hint.store(i, Ordering::Relaxed);
        Some(range)
    }

    /// The first range that ends after `gpa`, whether it contains it or not.
    fn at_or_after(&self, gpa: u64) -> Option<&FlatRange> {
        self.ranges.get(self.ranges.partition_point(|r| r.last() < gpa))
    }

    /// Reads RAM, ROM or a register.
    #[inline]
    pub fn read(&self, gpa: u64, width: Width, from: Requester) -> (u64, AccessResult) {
        if let Some(range) = self.find(gpa)
            && let RangeKind::Io { handler } = &range.kind
            && let Some(offset) = range.direct(gpa, width)
        {
            let value = handler.read(Access { offset, width, from }) & width.mask();
            trace_read(range, gpa, value, width);
            return (value, AccessResult::Done);
        }
        self.read_slow(gpa, width, from)
    }

    /// Writes RAM or a register.
    #[inline]
    pub fn write(&self, gpa: u64, width: Width, value: u64, from: Requester) -> AccessResult {
        if let Some(range) = self.find(gpa)
            && let RangeKind::Io { handler } = &range.kind
            && let Some(offset) = range.direct(gpa, width)
        {
            let value = value & width.mask();
            trace_write(range, gpa, value, width);
            handler.write(Access { offset, width, from }, value);
            return AccessResult::Done;
        }
        self.write_slow(gpa, width, value, from)
    }

    #[inline(never)]
    fn read_slow(&self, gpa: u64, width: Width, from: Requester) -> (u64, AccessResult) {
        let Some(range) = self.find(gpa).filter(|r| r.room(gpa - r.start) >= width.bytes() as u64) else {
            return self.read_split(gpa, width, from);
        };
        let within = gpa - range.start;
        match &range.kind {
            RangeKind::Ram { block, offset, .. } | RangeKind::RomDevice { block, offset, .. } => {
                match block.load(offset + within, width) {
                    Some(value) => (value, AccessResult::Done),
                    None => (width.mask(), AccessResult::Unassigned),
                }
            }
            RangeKind::Io { handler } => {
                match range.region.0.rules.read(&**handler, range.access(gpa, width, from)) {
                    Some(value) => {
                        trace_read(range, gpa, value, width);
                        (value, AccessResult::Done)
                    }
                    None => (width.mask(), AccessResult::Invalid),
                }
            }
        }
    }

    #[inline(never)]
    fn write_slow(&self, gpa: u64, width: Width, value: u64, from: Requester) -> AccessResult {
        let Some(range) = self.find(gpa).filter(|r| r.room(gpa - r.start) >= width.bytes() as u64) else {
            return self.write_split(gpa, width, value, from);
        };
        let within = gpa - range.start;
        match &range.kind {
            RangeKind::Ram { writable: false, .. } => AccessResult::Done,
            RangeKind::Ram { block, offset, .. } => match block.store(offset + within, width, value) {
                true => AccessResult::Done,
                false => AccessResult::Unassigned,
            },
            RangeKind::Io { handler } | RangeKind::RomDevice { handler, .. } => {
                trace_write(range, gpa, value & width.mask(), width);
                match range.region.0.rules.write(&**handler, range.access(gpa, width, from), value) {
                    true => AccessResult::Done,
                    false => AccessResult::Invalid,
                }
            }
        }
    }

    /// An access over a border, or where nothing is: cut into aligned pieces that each range takes.
    fn read_split(&self, gpa: u64, width: Width, from: Requester) -> (u64, AccessResult) {
        if self.untouched(gpa, width) {
            return (width.mask(), AccessResult::Unassigned);
        }
        let (mut value, mut result) = (0, AccessResult::Done);
        for (at, shift, piece) in self.pieces(gpa, width) {
            let (part, r) = match at {
                Some(at) => self.read(at, piece, from),
                None => (piece.mask(), AccessResult::Unassigned),
            };
            value |= part << shift;
            result = result.and(r);
        }
        (value, result)
    }

    fn write_split(&self, gpa: u64, width: Width, value: u64, from: Requester) -> AccessResult {
        if self.untouched(gpa, width) {
            return AccessResult::Unassigned;
        }
        let mut result = AccessResult::Done;
        for (at, shift, piece) in self.pieces(gpa, width) {
            result = result.and(match at {
                Some(at) => self.write(at, piece, value >> shift, from),
                None => AccessResult::Unassigned,
            });
        }
        result
    }

    /// Whether no range has any byte of the access.
    fn untouched(&self, gpa: u64, width: Width) -> bool {
        let last = gpa.saturating_add(width.bytes() as u64 - 1);
        self.at_or_after(gpa).is_none_or(|r| r.start > last)
    }

    /// Aligned pieces of an access, none over a border: address (none beyond the last one), shift in
    /// the value, width. A piece in no range is one byte.
    fn pieces(&self, gpa: u64, width: Width) -> impl Iterator<Item = (Option<u64>, u32, Width)> + '_ {
        let total = width.bytes() as u64;
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == total {
                return None;
            }
            let shift = done as u32 * 8;
            let Some(at) = gpa.checked_add(done) else {
                done += 1;
                return Some((None, shift, Width::W1));
            };
            let room = self.find(at).map_or(1, |r| r.size - (at - r.start)).min(total - done);
            let piece = [Width::W4, Width::W2]
                .into_iter()
                .find(|w| w.bytes() as u64 <= room && at.is_multiple_of(w.bytes() as u64))
                .unwrap_or(Width::W1);
            done += piece.bytes() as u64;
            Some((Some(at), shift, piece))
        })
    }

    /// Reads any number of bytes. Registers are read by the largest accesses they accept; what is
    /// missing is all ones.
    pub fn read_bytes(&self, gpa: u64, buf: &mut [u8], from: Requester) -> AccessResult {
        let mut result = AccessResult::Done;
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let Some(at) = gpa.checked_add(done as u64) else {
                rest.fill(0xff);
                return AccessResult::Unassigned;
            };
            let (n, r) = match self.find(at) {
                None => {
                    let n = self.gap(at, rest.len());
                    rest[..n].fill(0xff);
                    (n, AccessResult::Unassigned)
                }
                Some(range) => {
                    let room = (range.size - (at - range.start)).min(rest.len() as u64) as usize;
                    match range.read_block() {
                        Some((block, offset)) => {
                            block.read(offset + (at - range.start), &mut rest[..room]);
                            (room, AccessResult::Done)
                        }
                        None => {
                            let width = piece_width(range, at, room);
                            let (value, r) = self.read(at, width, from);
                            rest[..width.bytes()].copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
                            (width.bytes(), r)
                        }
                    }
                }
            };
            result = result.and(r);
            done += n;
        }
        result
    }

    /// Writes any number of bytes, as [`Self::read_bytes`] reads them.
    pub fn write_bytes(&self, gpa: u64, buf: &[u8], from: Requester) -> AccessResult {
        let mut result = AccessResult::Done;
        let mut done = 0;
        while done < buf.len() {
            let rest = &buf[done..];
            let Some(at) = gpa.checked_add(done as u64) else {
                return AccessResult::Unassigned;
            };
            let (n, r) = match self.find(at) {
                None => (self.gap(at, rest.len()), AccessResult::Unassigned),
                Some(range) => {
                    let room = (range.size - (at - range.start)).min(rest.len() as u64) as usize;
                    match &range.kind {
                        RangeKind::Ram { writable: false, .. } => (room, AccessResult::Done),
                        RangeKind::Ram { block, offset, .. } => {
                            block.write(offset + (at - range.start), &rest[..room]);
                            (room, AccessResult::Done)
                        }
                        RangeKind::Io { .. } | RangeKind::RomDevice { .. } => {
                            let width = piece_width(range, at, room);
                            let value = crate::access::le_value(&rest[..width.bytes()]);
                            (width.bytes(), self.write(at, width, value, from))
                        }
                    }
                }
            };
            result = result.and(r);
            done += n;
        }
        result
    }

    /// How many of `len` bytes at `at`, which is in no range, are in no range either.
    fn gap(&self, at: u64, len: usize) -> usize {
        let next = self.at_or_after(at).map_or(u64::MAX, |r| r.start - at);
        (len as u64).min(next).max(1) as usize
    }

    /// Reads `buf` from one register by accesses of `width`, as `rep ins` does.
    pub fn read_bulk(&self, gpa: u64, width: Width, buf: &mut [u8], from: Requester) -> AccessResult {
        if let Some(range) = self.find(gpa)
            && let RangeKind::Io { handler } = &range.kind
            && let Some(offset) = range.direct(gpa, width)
        {
            handler.read_bulk(Access { offset, width, from }, buf);
            return AccessResult::Done;
        }
        let mut result = AccessResult::Done;
        for piece in buf.chunks_mut(width.bytes()) {
            let (value, r) = self.read(gpa, width, from);
            piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            result = result.and(r);
        }
        result
    }

    /// Writes `buf` to one register by accesses of `width`, as `rep outs` does.
    pub fn write_bulk(&self, gpa: u64, width: Width, buf: &[u8], from: Requester) -> AccessResult {
        if let Some(range) = self.find(gpa)
            && let RangeKind::Io { handler } = &range.kind
            && let Some(offset) = range.direct(gpa, width)
        {
            handler.write_bulk(Access { offset, width, from }, buf);
            return AccessResult::Done;
        }
        let mut result = AccessResult::Done;
        for piece in buf.chunks(width.bytes()) {
            result = result.and(self.write(gpa, width, crate::access::le_value(piece), from));
        }
        result
    }

    /// The RAM or ROM behind `len` bytes at `gpa`, if it is all of one range.
    pub fn ram(&self, gpa: u64, len: u64) -> Option<HostSlice> {
        let range = self.find(gpa)?;
        let within = gpa - range.start;
        if len > range.size - within {
            return None;
        }
        let writable = matches!(range.kind, RangeKind::Ram { writable: true, .. });
        let (block, offset) = range.read_block()?;
        HostSlice::new(block, offset.checked_add(within)?, len, writable)
    }
}

fn port_table(ranges: &[FlatRange]) -> Box<[u16]> {
    let mut table = vec![NO_RANGE; TABLE_SIZE].into_boxed_slice();
    for (i, r) in ranges.iter().enumerate() {
        table[r.start as usize..=r.last() as usize].fill(i as u16);
    }
    table
}

/// The widest access at `at` that is aligned, fits in `room`, and is not wider than the range accepts.
fn piece_width(range: &FlatRange, at: u64, room: usize) -> Width {
    let offset = range.offset.wrapping_add(at - range.start);
    let max = usize::from(range.region.0.rules.valid.max.max(1)).min(room);
    [Width::W8, Width::W4, Width::W2]
        .into_iter()
        .find(|w| w.bytes() <= max && offset.is_multiple_of(w.bytes() as u64))
        .unwrap_or(Width::W1)
}

#[inline]
fn trace_read(range: &FlatRange, gpa: u64, value: u64, width: Width) {
    trace_event!(
        memory_region_ops_read,
        "mr {} addr {:#x} value {:#x} size {}",
        range.region.name(),
        gpa,
        value,
        width.bytes()
    );
}

#[inline]
fn trace_write(range: &FlatRange, gpa: u64, value: u64, width: Width) {
    trace_event!(
        memory_region_ops_write,
        "mr {} addr {:#x} value {:#x} size {}",
        range.region.name(),
        gpa,
        value,
        width.bytes()
    );
}
