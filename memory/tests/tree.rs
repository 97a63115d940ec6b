//! Views, listeners, DMA, tracking and text of trees that a board would build.

use std::sync::Arc;

use anura_memory::*;
use anura_vmcore::DeviceCell;
use parking_lot::Mutex;

const CPU: Requester = Requester::Cpu(0);

struct Nothing;

impl IoHandler for Nothing {
    fn read(&self, _: Access) -> u64 {
        0
    }
    fn write(&self, _: Access, _: u64) {}
}

fn io(name: &str, size: u64) -> Region {
    Region::io(name, size, Arc::new(Nothing), AccessRules::default())
}

#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl MemoryListener for Events {
    fn begin(&self) {
        self.0.lock().push("begin".into());
    }
    fn removed(&self, r: &FlatRange) {
        self.0.lock().push(format!("-{}@{:x}", r.region.name(), r.start));
    }
    fn added(&self, r: &FlatRange) {
        self.0.lock().push(format!("+{}@{:x}", r.region.name(), r.start));
    }
    fn unchanged(&self, r: &FlatRange) {
        self.0.lock().push(format!("={}@{:x}", r.region.name(), r.start));
    }
    fn commit(&self, _: &Arc<FlatView>) {
        self.0.lock().push("commit".into());
    }
}

#[test]
fn listeners_hear_removals_first_and_one_commit_for_a_whole_transaction() {
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let ram = Region::ram("ram", RamBlock::new("ram", 0x4000).unwrap());
    let chip = io("chip", 0x1000);
    map.transaction().add(&root, 0, &ram, 0);
    let space = map.create_space("memory", &root);
    let events: Arc<Events> = Arc::default();
    space.subscribe(events.clone());
    assert_eq!(std::mem::take(&mut *events.0.lock()), ["begin", "+ram@0", "commit"]);
    let before = space.generation();
    let mut outer = map.transaction();
    {
        let mut inner = map.transaction();
        inner.add(&root, 0x1000, &chip, 1);
        inner.commit();
        assert!(events.0.lock().is_empty(), "nothing is published inside a transaction");
    }
    outer.add(&root, 0x10000, &io("far", 4), 0);
    outer.commit();
    let want = ["begin", "-ram@0", "+ram@0", "+chip@1000", "+ram@2000", "+far@10000", "commit"];
    assert_eq!(std::mem::take(&mut *events.0.lock()), want);
    assert_eq!(space.generation(), before + 1);
    map.transaction().set_enabled(&chip, true);
    assert!(events.0.lock().is_empty(), "a change that changes nothing is not told");
    let mut t = map.transaction();
    t.set_offset(&root, &chip, 0x2000);
    t.commit();
    let want =
        ["begin", "-ram@0", "-chip@1000", "-ram@2000", "+ram@0", "+chip@2000", "+ram@3000", "=far@10000"];
    assert_eq!(events.0.lock()[..8], want);
}

#[test]
fn an_old_view_keeps_working_and_keeps_its_memory_until_it_is_dropped() {
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let block = RamBlock::new("ram", 0x1000).unwrap();
    let gone = Arc::downgrade(&block);
    let ram = Region::ram("ram", block);
    map.transaction().add(&root, 0, &ram, 0);
    let space = map.create_space("memory", &root);
    let mut cache = space.cache();
    let old = space.view();
    assert!(space.write(8, Width::W4, 0x1234, CPU).is_ok());
    map.transaction().remove(&root, &ram);
    drop(ram);
    assert_eq!(space.read(8, Width::W4, CPU).1, AccessResult::Unassigned);
    assert_eq!(old.read(8, Width::W4, CPU), (0x1234, AccessResult::Done));
    drop(old);
    assert!(gone.upgrade().is_some(), "the cache has not looked yet");
    assert_eq!(cache.read(8, Width::W4, CPU).1, AccessResult::Unassigned);
    assert!(gone.upgrade().is_none(), "nobody holds the block any more");
}

#[test]
fn rom_drops_writes_and_a_rom_device_sends_them_to_its_chip() {
    #[derive(Default)]
    struct Flash(Mutex<Vec<u64>>);
    impl IoHandler for Flash {
        fn read(&self, _: Access) -> u64 {
            0x80
        }
        fn write(&self, a: Access, _: u64) {
            self.0.lock().push(a.offset);
        }
    }
    let flash: Arc<Flash> = Arc::default();
    let (rom, dev) = (RamBlock::new("rom", 0x1000).unwrap(), RamBlock::new("flash", 0x1000).unwrap());
    assert!(rom.write(0, b"rom!") && dev.write(0, b"cfi!"));
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let flash_region = Region::rom_device("flash", dev, flash.clone());
    let mut t = map.transaction();
    t.add(&root, 0, &Region::rom("rom", rom), 0);
    t.add(&root, 0x1000, &flash_region, 0);
    t.commit();
    let s = map.create_space("memory", &root);
    assert!(s.write(0, Width::W4, 0, CPU).is_ok());
    assert_eq!(s.read(0, Width::W4, CPU).0, u64::from(u32::from_le_bytes(*b"rom!")));
    assert!(s.write(0x1004, Width::W1, 0x90, CPU).is_ok());
    assert_eq!(*flash.0.lock(), [4]);
    assert_eq!(s.read(0x1000, Width::W1, CPU).0, u64::from(b'c'));
    map.transaction().set_rom_mode(&flash_region, false);
    assert_eq!(s.read(0x1000, Width::W1, CPU).0, 0x80);
}

#[test]
fn dma_reaches_ram_over_borders_but_never_registers_or_rom_and_ends_when_revoked() {
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let mut t = map.transaction();
    t.add(&root, 0, &Region::ram("a", RamBlock::new("a", 0x1000).unwrap()), 0);
    t.add(&root, 0x1000, &Region::ram("b", RamBlock::new("b", 0x1000).unwrap()), 0);
    t.add(&root, 0x2000, &io("chip", 0x100), 0);
    t.add(&root, 0x3000, &Region::rom("rom", RamBlock::new("rom", 0x1000).unwrap()), 0);
    t.commit();
    let dma = Dma::new(&map.create_space("memory", &root));
    assert_eq!(dma.write(0xffe, b"border"), Ok(()));
    let mut buf = [0; 6];
    assert_eq!(dma.read(0xffe, &mut buf), Ok(()));
    assert_eq!(&buf, b"border");
    assert_eq!(dma.write_obj(0xffc, Width::W8, 0x1122_3344_5566_7788), Ok(()));
    assert_eq!(dma.read_u64(0xffc), Ok(0x1122_3344_5566_7788));
    assert_eq!(dma.read_u32(0x1ffe), Err(DmaError::NotRam { gpa: 0x2000 }));
    assert_eq!(dma.write(0x3000, &[1]), Err(DmaError::NotRam { gpa: 0x3000 }));
    assert_eq!(dma.read(0x3000, &mut buf), Ok(()));
    assert!(matches!(dma.read(u64::MAX - 1, &mut buf), Err(DmaError::NotRam { .. })));
    dma.clone().revoke();
    assert_eq!(dma.read_u32(0), Err(DmaError::Revoked));
}

#[derive(Default)]
struct Engine {
    code: Mutex<Vec<(String, u64, u64)>>,
    watched: Mutex<Vec<u64>>,
}

impl CodeListener for Engine {
    fn code_written(&self, block: &RamBlock, offset: u64, len: u64) {
        self.code.lock().push((block.name().to_owned(), offset, len));
    }
    fn pages_watched(&self, _: &RamBlock, offset: u64, _: u64) {
        self.watched.lock().push(offset);
    }
}

#[test]
fn a_write_trips_code_only_where_a_granule_holds_some() {
    let block = RamBlock::new("pc.ram", 0x4000).unwrap();
    let engine: Arc<Engine> = Arc::default();
    let tracker = block.tracker();
    let listener: Arc<dyn CodeListener> = engine.clone();
    tracker.add_listener(Arc::downgrade(&listener));
    assert!(tracker.is_plain(0x1000));
    tracker.mark_code(0x10f0, 0x20); // two granules: 0x10c0..0x1140
    assert_eq!(*engine.watched.lock(), [0x1000]);
    assert_eq!(tracker.code_granules(0x1000), 0b11000);
    assert!(block.store(0x10b8, Width::W8, 0) && block.store(0x1140, Width::W8, 0));
    assert!(engine.code.lock().is_empty());
    assert!(block.write(0x0ff0, &[0; 0x100]));
    assert_eq!(std::mem::take(&mut *engine.code.lock()), [("pc.ram".into(), 0x1000, 0xf0)]);
    let slice = block.volatile_slice(0x1000, 0x1000).unwrap();
    vm_memory::Bytes::write(&slice, &[1, 2], 0x13f).unwrap();
    assert_eq!(std::mem::take(&mut *engine.code.lock()), [("pc.ram".into(), 0x113f, 2)]);
    tracker.reduce_code(0x1000, 1 << 4);
    assert_eq!((tracker.code_granules(0x1000), tracker.is_code(0x1000)), (1 << 4, true));
    tracker.reduce_code(0x1000, 0);
    assert!(tracker.is_plain(0x1000) && block.fill(0x1000, 0x1000, 0));
    assert!(engine.code.lock().is_empty());
}

#[test]
fn each_client_of_the_dirty_log_sees_each_written_page_once() {
    let block = RamBlock::new("pc.ram", 0x4000).unwrap();
    let take = |client| {
        let mut pages = vec![];
        block.tracker().take_dirty(client, 0, block.len(), |offset| pages.push(offset));
        pages
    };
    assert_eq!(take(DirtyClient::Hash), [0, 0x1000, 0x2000, 0x3000], "all pages are new at first");
    assert!(take(DirtyClient::Hash).is_empty());
    assert!(block.write(0x1ffe, &[0; 4]));
    assert_eq!(take(DirtyClient::Display).len(), 4);
    assert_eq!(take(DirtyClient::Hash), [0x1000, 0x2000]);
    assert!(block.store(0x3000, Width::W1, 1));
    assert_eq!(take(DirtyClient::Display), [0x3000]);
    assert_eq!(take(DirtyClient::Hash), [0x3000]);
    block.tracker().stop_log(DirtyClient::Hash);
    block.tracker().stop_log(DirtyClient::Display);
    assert!((0..4).all(|p| block.tracker().is_plain(p * 0x1000)));
}

#[test]
fn trees_print_in_the_form_of_info_mtree() {
    let map = MemoryMap::new();
    let system = Region::container("system", u64::MAX);
    let pci = Region::container("pci", u64::MAX);
    let ram = Region::ram("pc.ram", RamBlock::new("pc.ram", 0x10_0000).unwrap());
    let low = Region::alias("ram-below-4g", &ram, 0, 0x10_0000);
    let vga = io("vga-lowmem", 0x2_0000);
    let window = Region::alias("smram-region", &pci, 0xa_0000, 0x2_0000);
    let rom = Region::alias("pam-rom", &ram, 0xc_0000, 0x4000);
    let off = io("off", 8);
    let ports = Region::container("io", 0x1_0000);
    let mut t = map.transaction();
    t.add(&system, 0, &low, 0);
    t.add(&system, 0, &pci, -1);
    t.add(&pci, 0xa_0000, &vga, 1);
    t.add(&system, 0xa_0000, &window, 1);
    t.add(&system, 0xc_0000, &rom, 1);
    t.set_readonly(&rom, true);
    t.add(&ports, 0x20, &io("pic", 2), 0);
    t.add(&ports, 0x30, &off, 0);
    t.set_enabled(&off, false);
    t.commit();
    let _memory = map.create_space("memory", &system);
    let _ports = map.create_space("I/O", &ports);
    let _cpu = map.create_space("cpu-memory-0", &system);
    assert_eq!(
        map.tree_text(false),
        "\
address-space: memory
address-space: cpu-memory-0
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-00000000000fffff (prio 0, ram): alias ram-below-4g @pc.ram 0000000000000000-00000000000fffff
    0000000000000000-ffffffffffffffff (prio -1, i/o): pci
      00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
    00000000000a0000-00000000000bffff (prio 1, i/o): alias smram-region @pci 00000000000a0000-00000000000bffff
    00000000000c0000-00000000000c3fff (prio 1, ram): alias pam-rom @pc.ram 00000000000c0000-00000000000c3fff

address-space: I/O
  0000000000000000-000000000000ffff (prio 0, i/o): io
    0000000000000020-0000000000000021 (prio 0, i/o): pic

memory-region: pc.ram
  0000000000000000-00000000000fffff (prio 0, ram): pc.ram

memory-region: pci
  0000000000000000-ffffffffffffffff (prio -1, i/o): pci
    00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem

"
    );
    assert!(map.tree_text(true).contains("(prio 0, i/o): off [disabled]\n"));
    assert_eq!(
        map.flat_text(),
        "\
FlatView #0
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c3fff (prio 0, rom): pc.ram @00000000000c0000
  00000000000c4000-00000000000fffff (prio 0, ram): pc.ram @00000000000c4000

FlatView #1
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000020-0000000000000021 (prio 0, i/o): pic

"
    );
}

#[test]
fn host_memory_comes_from_memfd_or_a_file_and_is_shared_where_asked() {
    let dir = std::env::temp_dir();
    let path = dir.join(format!("anura-backing-test.{}", std::process::id()));
    let file = Backing::File { path: path.clone(), share: true, prealloc: true, readonly: false };
    let block = RamBlock::with_backing("m", 0x2000, &file).unwrap();
    assert!(block.write(0x1000, b"shared"));
    assert_eq!(&std::fs::read(&path).unwrap()[0x1000..0x1006], b"shared");
    let private = Backing::File { path: path.clone(), share: false, prealloc: false, readonly: true };
    let copy = RamBlock::with_backing("m", 0x2000, &private).unwrap();
    assert!(copy.write(0x1000, b"mine") && std::fs::read(&path).unwrap()[0x1000] == b's');
    let err = RamBlock::with_backing("m", 0x4000, &private).unwrap_err().to_string();
    assert!(err.contains("size 0x2000 does not match 'size' option 0x4000"), "{err}");
    std::fs::remove_file(&path).unwrap();
    let unnamed = Backing::File { path: dir, share: true, prealloc: false, readonly: false };
    assert!(RamBlock::with_backing("m", 0x1000, &unnamed).is_ok());
    let memfd = Backing::Memfd { share: true, prealloc: false, hugetlb: None };
    let block = RamBlock::with_backing("m", 0x2000, &memfd).unwrap();
    assert!(block.fd().is_some() && block.store(0, Width::W8, 7) && block.discard(0, 0x1000).is_ok());
    assert_eq!(block.load(0, Width::W8), Some(0));
}

#[test]
fn a_backing_that_cannot_be_had_says_so_in_one_line() {
    for (backing, len) in [
        (Backing::default(), 0),
        (Backing::default(), 0x1001),
        (Backing::default(), 1 << 60),
        (
            Backing::File { path: "/nonexistent/x".into(), share: true, prealloc: false, readonly: false },
            0x1000,
        ),
        (Backing::Memfd { share: true, prealloc: false, hugetlb: Some(Some(1 << 30)) }, 0x1000),
    ] {
        let err = RamBlock::with_backing("m", len, &backing).unwrap_err().to_string();
        assert!(!err.contains('\n') && !err.ends_with('.'), "{err}");
    }
}

#[test]
fn readers_on_other_threads_see_each_transaction_whole() {
    let map = MemoryMap::new();
    let root = Region::container("root", u64::MAX);
    let regions = [1u64, 2].map(|n| {
        let block = RamBlock::new("bank", 0x2000).unwrap();
        assert!(block.store(0, Width::W8, n) && block.store(0x1000, Width::W8, n));
        Region::ram("bank", block)
    });
    let mut t = map.transaction();
    t.add(&root, 0, &regions[0], 0);
    t.add(&root, 0, &regions[1], 0);
    t.set_enabled(&regions[1], false);
    t.commit();
    let space = map.create_space("memory", &root);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cached in [false, true] {
            let (space, done) = (&space, &done);
            scope.spawn(move || {
                let mut cache = space.cache();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let view = if cached { cache.view().clone() } else { space.view() };
                    let (a, b) = (view.read(0, Width::W8, CPU), view.read(0x1000, Width::W8, CPU));
                    assert_eq!(a, b, "one view shows one bank");
                    assert!(a.0 == 1 || a.0 == 2);
                    assert!(space.read(0, Width::W8, CPU).1.is_ok(), "never neither bank");
                }
            });
        }
        for i in 0..3000 {
            let mut t = map.transaction();
            t.set_enabled(&regions[i % 2], false);
            t.set_enabled(&regions[(i + 1) % 2], true);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_device_takes_the_full_width_of_an_access_under_a_smaller_register_of_another() {
    let map = MemoryMap::new();
    let ports = map.create_space("I/O", &Region::container("io", 0x1_0000));
    let (wide, narrow) = (DeviceCell::new(0u64), DeviceCell::new(0u64));
    let handler = |cell: &DeviceCell<u64>| cell_io(cell, |v, _| *v, |v, _, new| *v = new);
    let mut tx = map.transaction();
    tx.add(ports.root(), 0xcf8, &Region::io("address", 4, handler(&wide), AccessRules::any(4)), 0);
    tx.add(ports.root(), 0xcf9, &Region::io("reset", 1, handler(&narrow), AccessRules::BYTES), 1);
    tx.commit();
    assert!(ports.write(0xcf8, Width::W4, 0x8000_1234, Requester::Monitor).is_ok());
    assert!(ports.write(0xcf9, Width::W1, 6, Requester::Monitor).is_ok());
    assert_eq!((*wide.lock(), *narrow.lock()), (0x8000_1234, 6));
    assert_eq!(ports.read(0xcf8, Width::W4, Requester::Monitor).0, 0x8000_1234);
}
