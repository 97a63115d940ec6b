//! Random trees against a model that resolves one byte at a time, and the listeners' differences
//! against the views they lead to.

use std::sync::Arc;

use anura_memory::*;
use parking_lot::Mutex;

/// A small generator, so that a failure names a seed that repeats it.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

struct Silent;

impl IoHandler for Silent {
    fn read(&self, _: Access) -> u64 {
        0
    }
    fn write(&self, _: Access, _: u64) {}
}

/// What the model keeps of a region.
struct Node {
    region: Region,
    size: u128,
    enabled: bool,
    readonly: bool,
    /// Offset, priority, sequence number of adding, index.
    children: Vec<(u64, i32, u64, usize)>,
    alias: Option<(usize, u64)>,
    leaf: bool,
    rom: bool,
}

struct Model {
    nodes: Vec<Node>,
    sequence: u64,
}

const SPACE: u64 = 0x4_0000;

impl Model {
    /// The region, offset and write protection that answer at a byte of node `at`.
    fn resolve(&self, at: usize, offset: i128, readonly: bool) -> Option<(usize, u64, bool)> {
        let n = &self.nodes[at];
        if !n.enabled || offset < 0 || offset as u128 >= n.size {
            return None;
        }
        let readonly = readonly || n.readonly;
        if let Some((target, from)) = n.alias {
            return self.resolve(target, offset + i128::from(from), readonly);
        }
        let mut children = n.children.clone();
        children
            .sort_by_key(|&(_, priority, sequence, _)| (-i64::from(priority), std::cmp::Reverse(sequence)));
        for (base, _, _, child) in children {
            if let Some(found) = self.resolve(child, offset - i128::from(base), readonly) {
                return Some(found);
            }
        }
        n.leaf.then_some((at, offset as u64, readonly || n.rom))
    }

    fn random(rng: &mut Rng, map: &MemoryMap, blocks: &[Arc<RamBlock>], io: &Arc<dyn IoHandler>) -> Self {
        let mut m = Self { nodes: Vec::new(), sequence: 0 };
        let count = 4 + rng.below(20) as usize;
        for i in 0..count {
            m.push_random(rng, i, blocks, io);
        }
        let full = Region::container("root", u64::MAX);
        m.nodes.push(Node::plain(full, 1 << 64, false));
        let root = m.nodes.len() - 1;
        let mut t = map.transaction();
        // A child has a lower index than its parent, so there are no cycles.
        for child in 0..root {
            let later: Vec<usize> = (child + 1..=root).filter(|&p| m.nodes[p].alias.is_none()).collect();
            let parent = match rng.below(3) {
                0 => root,
                _ => later[rng.below(later.len() as u64) as usize],
            };
            let offset = match rng.below(20) {
                0 => u64::MAX - rng.below(SPACE),
                _ => rng.below(SPACE),
            };
            m.add(&mut t, parent, offset, child, rng.below(5) as i32 - 2);
        }
        drop(t);
        m
    }

    fn push_random(&mut self, rng: &mut Rng, i: usize, blocks: &[Arc<RamBlock>], io: &Arc<dyn IoHandler>) {
        let size = 1 + rng.below(SPACE / 2);
        let name = format!("r{i}");
        let block = blocks[rng.below(blocks.len() as u64) as usize].clone();
        let node = match rng.below(6) {
            0 => Node::plain(Region::container(name, size), size.into(), false),
            1 => Node::plain(Region::ram(name, block.clone()), block.len().into(), true),
            2 => {
                Node { rom: true, ..Node::plain(Region::rom(name, block.clone()), block.len().into(), true) }
            }
            3 if i > 0 => {
                let target = rng.below(i as u64) as usize;
                let from = rng.below(SPACE / 4);
                let alias = Region::alias(name, &self.nodes[target].region, from, size);
                Node { alias: Some((target, from)), ..Node::plain(alias, size.into(), false) }
            }
            _ => {
                let region = Region::io(name, size, io.clone(), AccessRules::default());
                Node::plain(region, size.into(), true)
            }
        };
        self.nodes.push(node);
    }

    fn add(&mut self, t: &mut Transaction<'_>, parent: usize, offset: u64, child: usize, priority: i32) {
        t.add(&self.nodes[parent].region, offset, &self.nodes[child].region, priority);
        self.sequence += 1;
        let entry = (offset, priority, self.sequence, child);
        self.nodes[parent].children.push(entry);
    }

    /// One random change, in the tree and in the model.
    fn change(&mut self, rng: &mut Rng, map: &MemoryMap) {
        let mut t = map.transaction();
        let i = rng.below(self.nodes.len() as u64) as usize;
        let n = &mut self.nodes[i];
        match rng.below(4) {
            0 => {
                n.enabled = !n.enabled;
                t.set_enabled(&n.region, n.enabled);
            }
            1 => {
                n.readonly = !n.readonly;
                t.set_readonly(&n.region, n.readonly);
            }
            2 if n.alias.is_some() => {
                let from = rng.below(SPACE / 4);
                n.alias = n.alias.map(|(target, _)| (target, from));
                t.set_alias_offset(&n.region, from);
            }
            _ if !n.children.is_empty() => {
                let c = rng.below(n.children.len() as u64) as usize;
                let offset = rng.below(SPACE);
                n.children[c].0 = offset;
                let (parent, child) = (n.region.clone(), n.children[c].3);
                t.set_offset(&parent, &self.nodes[child].region, offset);
            }
            _ => {}
        }
    }
}

impl Node {
    fn plain(region: Region, size: u128, leaf: bool) -> Self {
        Self { region, size, enabled: true, readonly: false, children: vec![], alias: None, leaf, rom: false }
    }
}

/// Keeps the ranges that the calls lead to.
#[derive(Default)]
struct Follower(Mutex<Vec<FlatRange>>);

impl MemoryListener for Follower {
    fn removed(&self, range: &FlatRange) {
        let mut ranges = self.0.lock();
        let i = ranges.iter().position(|r| r == range).expect("only what was added is removed");
        ranges.remove(i);
    }

    fn added(&self, range: &FlatRange) {
        let mut ranges = self.0.lock();
        assert!(
            ranges.iter().all(|r| r.last() < range.start || range.last() < r.start),
            "{range:?} was added over something that is still there"
        );
        ranges.push(range.clone());
        ranges.sort_by_key(|r| r.start);
    }

    fn unchanged(&self, range: &FlatRange) {
        assert!(self.0.lock().contains(range), "what stays was there");
    }

    fn commit(&self, view: &Arc<FlatView>) {
        assert_eq!(*self.0.lock(), view.ranges());
    }
}

fn address(rng: &mut Rng, view: &FlatView) -> u64 {
    let ranges = view.ranges();
    match rng.below(4) {
        0 if !ranges.is_empty() => {
            // Close to a border, where mistakes are.
            let r = &ranges[rng.below(ranges.len() as u64) as usize];
            let at = if rng.below(2) == 0 { r.start } else { r.last() };
            at.wrapping_add(rng.below(3)).wrapping_sub(1)
        }
        1 => u64::MAX - rng.below(SPACE),
        _ => rng.below(SPACE * 2),
    }
}

#[test]
fn a_million_lookups_in_random_trees_agree_with_a_byte_by_byte_model() {
    let blocks: Vec<_> =
        [1, 3, 16].map(|pages| RamBlock::new("b", pages * PAGE_SIZE).expect("a few pages")).into();
    let io: Arc<dyn IoHandler> = Arc::new(Silent);
    let mut lookups = 0;
    for seed in 1..=500 {
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let map = MemoryMap::new();
        let mut model = Model::random(&mut rng, &map, &blocks, &io);
        let root = model.nodes.len() - 1;
        let space = map.create_space("test", &model.nodes[root].region);
        let follower: Arc<Follower> = Arc::default();
        space.subscribe(follower.clone());
        for _ in 0..8 {
            let view = space.view();
            for _ in 0..250 {
                let gpa = address(&mut rng, &view);
                let found = view.find(gpa).map(|r| {
                    assert!(r.contains(gpa));
                    (r.region.clone(), r.offset + (gpa - r.start), r.readonly())
                });
                let want = model
                    .resolve(root, gpa.into(), false)
                    .map(|(i, offset, readonly)| (model.nodes[i].region.clone(), offset, readonly));
                assert_eq!(found, want, "seed {seed}, address {gpa:#x}");
                lookups += 1;
            }
            model.change(&mut rng, &map);
        }
        assert_eq!(*follower.0.lock(), space.view().ranges(), "seed {seed}");
    }
    assert!(lookups >= 1_000_000, "only {lookups}");
}

#[test]
fn ram_slices_equal_a_linear_model_and_never_leave_a_block() {
    // Two pieces of RAM with a gap, the second seen a second time through an alias.
    let (a, b) = (RamBlock::new("a", 0x3000).unwrap(), RamBlock::new("b", 0x2000).unwrap());
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let (ra, rb) = (Region::ram("a", a.clone()), Region::rom("b", b.clone()));
    let window = Region::alias("window", &rb, 0x800, 0x1000);
    let mut t = map.transaction();
    t.add(&root, 0x1000, &ra, 0);
    t.add(&root, 0x8000, &rb, 0);
    t.add(&root, 0x2000, &window, 1);
    t.commit();
    let space = map.create_space("m", &root);
    // Start, end, block, offset of start in it.
    let pieces: [(u64, u64, &Arc<RamBlock>, u64); 4] = [
        (0x1000, 0x2000, &a, 0),
        (0x2000, 0x3000, &b, 0x800),
        (0x3000, 0x4000, &a, 0x2000),
        (0x8000, 0xa000, &b, 0),
    ];
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let mut hits = 0;
    for _ in 0..10_000_000 {
        let gpa = if rng.below(50) == 0 { rng.next() } else { rng.below(0xb000) };
        let len = match rng.below(8) {
            0 => rng.next(),
            1 => 0,
            _ => rng.below(0x1800),
        };
        let want = pieces
            .iter()
            .find(|(start, end, ..)| (*start..*end).contains(&gpa))
            .filter(|(_, end, ..)| len <= end - gpa)
            .map(|(start, _, block, offset)| (block.name().to_owned(), offset + (gpa - start)));
        let got = space.ram(gpa, len);
        if let Some(slice) = &got {
            hits += 1;
            assert!(slice.block().contains(slice.offset(), slice.len()));
            assert_eq!(slice.len(), len);
            assert_eq!(slice.block().offset_of(slice.as_ptr()), Some(slice.offset()));
        }
        assert_eq!(got.map(|s| (s.block().name().to_owned(), s.offset())), want, "{gpa:#x}+{len:#x}");
    }
    assert!(hits > 10_000, "the pairs must also hit");
}
