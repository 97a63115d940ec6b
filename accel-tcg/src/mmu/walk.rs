//! The page walker: from linear to physical address, by the tables in guest memory.
//!
//! One walk works out the rights for every kind of access, so that a TLB fill can set read and
//! write tags together. Accessed and dirty bits are set by compare and exchange after the whole
//! walk has succeeded (none on a faulting walk); if an entry changed meanwhile, the walk restarts.
use anura_x86::paging::{self, Mode};
use anura_x86::regs::{cr0, cr4, efer, error};

/// Everything outside memory that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Kind of paging.
    pub mode: Mode,
    /// Physical address of the top table.
    pub root: u64,
    /// The cached PDPTEs (PAE).
    pub pdpte: [u64; 4],
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// 1 GiB pages exist.
    pub gb_pages: bool,
    /// MAXPHYADDR.
    pub phys_bits: u8,
    /// Rights by protection key.
    pub keys: Keys,
}

/// Rights by protection key: two bits for each, access disabled and write disabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Of user pages; zero where keys are off.
    pub user: u32,
    /// Of supervisor pages.
    pub supervisor: u32,
}

impl Keys {
    /// From the control registers, EFER, PKRU and PKRS.
    pub fn new(cr: [u64; 3], efer_: u64, rights: [u64; 2]) -> Self {
        let [c0, _, c4] = cr;
        let on = |bit| c0 & cr0::PG != 0 && efer_ & efer::LMA != 0 && c4 & bit != 0;
        let of = |on: bool, rights: u64| if on { rights as u32 } else { 0 };
        Self { user: of(on(cr4::PKE), rights[0]), supervisor: of(on(cr4::PKS), rights[1]) }
    }
}

impl Context {
    /// From the control registers and what the CPU model has.
    pub fn new(cr: [u64; 3], efer_: u64, pdpte: [u64; 4], gb_pages: bool, phys_bits: u8) -> Self {
        let [c0, c3, c4] = cr;
        let mode = if c0 & cr0::PG == 0 {
            Mode::Off
        } else if efer_ & efer::LMA != 0 {
            if c4 & cr4::LA57 != 0 { Mode::FiveLevel } else { Mode::FourLevel }
        } else if c4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy
        };
        let root = match mode {
            Mode::FourLevel | Mode::FiveLevel => c3 & paging::ADDRESS,
            _ => c3 & 0xffff_f000,
        };
        Self {
            mode,
            root,
            pdpte,
            wp: c0 & cr0::WP != 0,
            smep: c4 & cr4::SMEP != 0,
            smap: c4 & cr4::SMAP != 0,
            pse: c4 & cr4::PSE != 0,
            pge: c4 & cr4::PGE != 0,
            nxe: efer_ & efer::NXE != 0,
            gb_pages,
            phys_bits,
            keys: Keys::default(),
        }
    }
}

impl Context {
    /// Takes over CR3 and the PDPTEs.
    pub fn load(&mut self, c3: u64, pdpte: [u64; 4]) {
        self.root = match self.mode {
            Mode::FourLevel | Mode::FiveLevel => c3 & paging::ADDRESS,
            _ => c3 & 0xffff_f000,
        };
        self.pdpte = pdpte;
    }
}

/// What is wanted of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// To write.
    pub write: bool,
    /// To fetch instructions.
    pub fetch: bool,
    /// In user mode (CPL 3 and not an implicit access of the processor's own).
    pub user: bool,
    /// Supervisor access to user pages is allowed under SMAP: explicit, and RFLAGS.AC is set.
    pub ac: bool,
}

impl Want {
    /// The part of a page fault's error code that says what was wanted.
    pub fn code(&self, ctx: &Context) -> u32 {
        let on = |on: bool, bit: u32| if on { bit } else { 0 };
        on(self.write, error::PF_W)
            | on(self.user, error::PF_U)
            | on(self.fetch && (ctx.smep || ctx.nxe && ctx.mode != Mode::Legacy), error::PF_I)
    }
}

/// A translation, with the rights of every kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Physical address of the 4 KiB page.
    pub phys: u64,
    /// Log2 of the size that the tables map: 12, 21, 22 or 30.
    pub shift: u8,
    /// User mode may access it.
    pub user: bool,
    /// The tables allow writes.
    pub writable: bool,
    /// The tables forbid fetches.
    pub nx: bool,
    /// Survives a CR3 load.
    pub global: bool,
    /// The dirty bit is set (after this walk).
    pub dirty: bool,
    /// Protection key.
    pub key: u8,
}

/// Physical memory as the walker sees it.
pub trait TableMemory {
    /// Reads an entry of 4 or 8 bytes. What is not RAM reads as all ones.
    fn read(&self, at: u64, wide: bool) -> u64;
    /// Sets an entry if it is still `old`; true if it was. A write to ROM is lost and counts as done.
    fn update(&self, at: u64, wide: bool, old: u64, new: u64) -> bool;
}

impl Page {
    pub(super) fn flat(va: u64) -> Self {
        let phys = va & !0xfff;
        Self { phys, shift: 30, user: true, writable: true, nx: false, global: false, dirty: true, key: 0 }
    }

    /// What an entry that maps a page says of the page of `va`; `user`, `writable` and `nx` are those of all levels.
    #[inline]
    pub fn of(ctx: &Context, va: u64, leaf: u64, shift: u8, user: bool, writable: bool, nx: bool) -> Self {
        let wide = ctx.mode != Mode::Legacy;
        let inside = va & ((1 << shift) - 1) & !0xfff;
        let base = if wide {
            leaf & paging::ADDRESS & !((1 << shift) - 1)
        } else if shift == 22 {
            leaf & 0xffc0_0000 | (leaf >> 13 & 0xff) << 32
        } else {
            leaf & 0xffff_f000
        };
        Self {
            phys: base | inside,
            shift,
            user,
            writable,
            nx: nx && ctx.nxe,
            global: ctx.pge && leaf & paging::G != 0,
            dirty: leaf & paging::D != 0,
            key: if wide { (leaf >> paging::KEY_SHIFT & 15) as u8 } else { 0 },
        }
    }

    /// Whether the page allows the access, by the rules that `ctx` sets.
    pub fn allows(&self, ctx: &Context, want: Want) -> bool {
        !self.key_refuses(ctx, want) && self.rights_allow(ctx, want)
    }

    /// What a page fault's error code says of a page that does not allow the access.
    pub fn refuses(&self, ctx: &Context, want: Want) -> Option<u32> {
        let key = self.key_refuses(ctx, want);
        let refused = key || !self.rights_allow(ctx, want);
        refused.then_some(error::PF_P | if key { error::PF_PK } else { 0 })
    }

    /// Whether the page's protection key refuses the access.
    fn key_refuses(&self, ctx: &Context, want: Want) -> bool {
        let rights = if self.user { ctx.keys.user } else { ctx.keys.supervisor };
        let (access, write) = (rights >> (self.key * 2) & 1, rights >> (self.key * 2 + 1) & 1);
        !want.fetch && (access != 0 || write != 0 && want.write && (want.user || ctx.wp))
    }

    fn rights_allow(&self, ctx: &Context, want: Want) -> bool {
        let write_ok = self.writable || !want.user && !ctx.wp;
        if want.write && !write_ok || want.fetch && self.nx {
            return false;
        }
        if want.user {
            return self.user;
        }
        !(self.user && (want.fetch && ctx.smep || !want.fetch && ctx.smap && !want.ac))
    }
}

/// Translates `va`; the error is the page fault's error code.
pub fn walk<M: TableMemory>(m: &M, ctx: &Context, va: u64, want: Want) -> Result<Page, u32> {
    if ctx.mode == Mode::Off {
        return Ok(Page::flat(va & 0xffff_ffff));
    }
    trace(m, ctx, va, want).map(|path| path.page)
}

/// A walk that succeeded: the entries that it went through, as it left them.
pub struct Path {
    /// The translation.
    pub page: Page,
    /// By level, from the last table up.
    entries: [Entry; 5],
    /// Level of the entry that maps the page, and log2 of the page's size.
    pub level: u8,
    /// The same.
    pub shift: u32,
    /// Level of the first table.
    pub top: u8,
}

impl Path {
    /// The entry of a level, 1 for a page table.
    pub fn at(&self, level: u8) -> &Entry {
        &self.entries[usize::from(level) - 1]
    }

    /// The entry that maps the page.
    pub fn leaf(&self) -> &Entry {
        self.at(self.level)
    }
}

/// As [`walk`], with paging on.
pub fn trace<M: TableMemory>(m: &M, ctx: &Context, va: u64, want: Want) -> Result<Path, u32> {
    loop {
        if let Some(result) = attempt(m, ctx, va, want) {
            return result;
        }
    }
}

/// Where an entry was read.
#[derive(Clone, Copy, Default)]
pub struct Entry {
    /// Physical address.
    pub at: u64,
    /// What it says.
    pub value: u64,
}

/// One walk; `None` if an entry changed under it.
fn attempt<M: TableMemory>(m: &M, ctx: &Context, va: u64, want: Want) -> Option<Result<Path, u32>> {
    let code = want.code(ctx);
    let wide = ctx.mode != Mode::Legacy;
    let (top, bits) = match ctx.mode {
        Mode::FiveLevel => (5, 9),
        Mode::FourLevel => (4, 9),
        Mode::Pae => (2, 9),
        _ => (2, 10),
    };
    let mut table = ctx.root;
    if ctx.mode == Mode::Pae {
        let pdpte = ctx.pdpte[(va >> 30 & 3) as usize];
        if pdpte & paging::P == 0 {
            return Some(Err(code));
        }
        table = pdpte & paging::ADDRESS;
    }
    let mut path = [Entry::default(); 5];
    let (mut user, mut writable, mut nx) = (true, true, false);
    let mut level = top;
    loop {
        let shift = 12 + bits * (u32::from(level) - 1);
        let size = if wide { 8 } else { 4 };
        let at = table + (va >> shift & ((1 << bits) - 1)) * size;
        let value = m.read(at, wide);
        if value & paging::P == 0 {
            return Some(Err(code));
        }
        let can_be_large = match ctx.mode {
            Mode::Legacy => level == 2 && ctx.pse,
            Mode::Pae => level == 2,
            _ => level == 2 || level == 3 && ctx.gb_pages,
        };
        let large = can_be_large && value & paging::PS != 0;
        let reserved =
            paging::reserved(ctx.mode, level, large, ctx.phys_bits, ctx.nxe, ctx.pse, ctx.gb_pages);
        if value & reserved != 0 {
            return Some(Err(code | error::PF_P | error::PF_RSVD));
        }
        user &= value & paging::US != 0;
        writable &= value & paging::RW != 0;
        nx |= wide && value & paging::NX != 0;
        path[usize::from(level) - 1] = Entry { at, value };
        if level == 1 || large {
            break finish(m, ctx, va, want, Leaf { path, level, top, shift, user, writable, nx, code });
        }
        table = if wide { value & paging::ADDRESS } else { value & 0xffff_f000 };
        level -= 1;
    }
}

struct Leaf {
    path: [Entry; 5],
    level: u8,
    top: u8,
    shift: u32,
    user: bool,
    writable: bool,
    nx: bool,
    code: u32,
}

/// Checks the rights, marks the entries, and makes the result.
fn finish<M: TableMemory>(
    m: &M,
    ctx: &Context,
    va: u64,
    want: Want,
    mut l: Leaf,
) -> Option<Result<Path, u32>> {
    let wide = ctx.mode != Mode::Legacy;
    let leaf = l.path[usize::from(l.level) - 1].value;
    let mut page = Page::of(ctx, va, leaf, l.shift as u8, l.user, l.writable, l.nx);
    page.dirty |= want.write;
    if let Some(refused) = page.refuses(ctx, want) {
        return Some(Err(l.code | refused));
    }
    for level in (l.level..=l.top).rev() {
        let e = &mut l.path[usize::from(level) - 1];
        let dirty = if level == l.level && want.write { paging::D } else { 0 };
        let new = e.value | paging::A | dirty;
        if new != e.value && !m.update(e.at, wide, e.value, new) {
            return None;
        }
        e.value = new;
    }
    Some(Ok(Path { page, entries: l.path, level: l.level, shift: l.shift, top: l.top }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// Sparse memory of 4-byte words.
    #[derive(Default)]
    struct Sparse(RefCell<BTreeMap<u64, u32>>);
    impl Sparse {
        fn put(&self, at: u64, v: u64) {
            self.0.borrow_mut().insert(at, v as u32);
            self.0.borrow_mut().insert(at + 4, (v >> 32) as u32);
        }
        fn put4(&self, at: u64, v: u64) {
            self.0.borrow_mut().insert(at, v as u32);
        }
    }
    impl TableMemory for Sparse {
        fn read(&self, at: u64, wide: bool) -> u64 {
            let m = self.0.borrow();
            let word = |a| u64::from(m.get(&a).copied().unwrap_or(0));
            if wide { word(at) | word(at + 4) << 32 } else { word(at) }
        }
        fn update(&self, at: u64, wide: bool, old: u64, new: u64) -> bool {
            assert_eq!(self.read(at, wide), old);
            if wide {
                self.put(at, new)
            } else {
                self.put4(at, new)
            }
            true
        }
    }

    const READ: Want = Want { write: false, fetch: false, user: false, ac: false };
    const WRITE: Want = Want { write: true, ..READ };
    const FETCH: Want = Want { fetch: true, ..READ };
    const USER: Want = Want { user: true, ..READ };
    const UWRITE: Want = Want { user: true, ..WRITE };

    fn long() -> Context {
        Context {
            mode: Mode::FourLevel,
            root: 0x1000,
            pdpte: [0; 4],
            wp: true,
            smep: false,
            smap: false,
            pse: true,
            pge: true,
            nxe: true,
            gb_pages: true,
            phys_bits: 40,
            keys: Keys::default(),
        }
    }
    /// Maps linear 0x1234_5000 with the given leaf at each level.
    const VA: u64 = 0x1234_5678;
    fn tables(pte: u64) -> Sparse {
        let m = Sparse::default();
        m.put(0x1000, 0x2007);
        m.put(0x2000, 0x3007);
        m.put(0x3000 + (VA >> 21 & 511) * 8, 0x4007);
        m.put(0x4000 + (VA >> 12 & 511) * 8, pte);
        m
    }

    #[test]
    fn error_codes_tell_what_was_wrong() {
        let ctx = long();
        let smap = Context { smap: true, smep: true, ..ctx };
        let no_nx = Context { nxe: false, ..ctx };
        type Case = (&'static str, Context, u64, Want, Result<(), u32>);
        let table: &[Case] = &[
            ("not present", ctx, 0, READ, Err(0)),
            ("not present, user write", ctx, 0, UWRITE, Err(6)),
            ("not present, fetch", ctx, 0, FETCH, Err(16)),
            ("not present, fetch without NX", no_nx, 0, FETCH, Err(0)),
            ("user on a supervisor page", ctx, 0x5003, USER, Err(5)),
            ("user write on read-only", ctx, 0x5005, UWRITE, Err(7)),
            ("supervisor write on read-only", ctx, 0x5001, WRITE, Err(3)),
            ("the same with WP clear", Context { wp: false, ..ctx }, 0x5001, WRITE, Ok(())),
            ("user write on read-only with WP clear", Context { wp: false, ..ctx }, 0x5005, UWRITE, Err(7)),
            ("fetch of a no-execute page", ctx, 0x5003 | paging::NX, FETCH, Err(0x11)),
            ("NX without NXE is reserved", no_nx, 0x5003 | paging::NX, READ, Err(9)),
            ("address beyond MAXPHYADDR", ctx, 0x5003 | 1 << 45, READ, Err(9)),
            ("ignored bits are ignored", ctx, 0x5003 | 0x7ff << 52, READ, Ok(())),
            ("SMAP read", smap, 0x5007, READ, Err(1)),
            ("SMAP write", smap, 0x5007, WRITE, Err(3)),
            ("SMAP read with AC", smap, 0x5007, Want { ac: true, ..READ }, Ok(())),
            ("SMEP fetch", smap, 0x5007, FETCH, Err(0x11)),
            ("SMEP fetch with AC", smap, 0x5007, Want { ac: true, ..FETCH }, Err(0x11)),
            ("supervisor on a user page without SMAP", ctx, 0x5007, WRITE, Ok(())),
        ];
        for (name, ctx, pte, want, expected) in table {
            let got = walk(&tables(*pte), ctx, VA, *want).map(|_| ());
            assert_eq!(got, *expected, "{name}");
        }
    }

    #[test]
    fn accessed_is_set_at_all_levels_and_dirty_at_the_leaf_only() {
        let m = tables(0x5007);
        let page = walk(&m, &long(), VA, READ).unwrap();
        assert_eq!((page.phys, page.dirty), (0x5000, false));
        assert_eq!(m.read(0x1000, true), 0x2027);
        let pte = 0x4000 + (VA >> 12 & 511) * 8;
        assert_eq!(m.read(pte, true), 0x5027);
        assert!(walk(&m, &long(), VA, WRITE).unwrap().dirty);
        assert_eq!(m.read(pte, true), 0x5067);
        assert_eq!(m.read(0x3000 + (VA >> 21 & 511) * 8, true), 0x4027);
    }

    #[test]
    fn a_faulting_walk_sets_nothing() {
        let m = tables(0x5001);
        assert!(walk(&m, &long(), VA, WRITE).is_err());
        assert_eq!((m.read(0x1000, true), m.read(0x2000, true)), (0x2007, 0x3007));
    }

    #[test]
    fn protection_keys_refuse_data_accesses_of_their_kind_of_page() {
        let key = 3u64 << paging::KEY_SHIFT;
        // Key 3: user pages may not be accessed, supervisor pages not be written.
        let ctx = Context { keys: Keys { user: 1 << 6, supervisor: 2 << 6 }, ..long() };
        let without_wp = Context { wp: false, ..ctx };
        type Case = (&'static str, Context, u64, Want, Result<(), u32>);
        let table: &[Case] = &[
            ("user read", ctx, 0x5007 | key, USER, Err(0x25)),
            ("user write", ctx, 0x5007 | key, UWRITE, Err(0x27)),
            ("supervisor read of a user page", ctx, 0x5007 | key, READ, Err(0x21)),
            ("fetch", ctx, 0x5007 | key, Want { fetch: true, ..USER }, Ok(())),
            ("another key", ctx, 0x5007 | 4 << paging::KEY_SHIFT, USER, Ok(())),
            ("supervisor write", ctx, 0x5003 | key, WRITE, Err(0x23)),
            ("supervisor write with WP clear", without_wp, 0x5003 | key, WRITE, Ok(())),
            ("supervisor read", ctx, 0x5003 | key, READ, Ok(())),
            ("user on a supervisor page", ctx, 0x5003 | key, USER, Err(5)),
        ];
        for (name, ctx, pte, want, expected) in table {
            let got = walk(&tables(*pte), ctx, VA, *want).map(|_| ());
            assert_eq!(got, *expected, "{name}");
        }
    }

    #[test]
    fn five_levels_translate_57_bits() {
        let m = tables(0x5007);
        m.put(0x8000 + 0x11 * 8, 0x1007);
        let ctx = Context { mode: Mode::FiveLevel, root: 0x8000, ..long() };
        let va = 0x11 << 48 | VA;
        assert_eq!(walk(&m, &ctx, va, UWRITE).map(|p| p.phys), Ok(0x5000));
        assert_eq!(m.read(0x8000 + 0x11 * 8, true), 0x1027);
        assert_eq!(walk(&m, &ctx, VA, READ), Err(0));
        m.put(0x8000 + 0x11 * 8, 0x1087);
        assert_eq!(walk(&m, &ctx, va, READ), Err(9));
    }

    #[test]
    fn large_pages_keep_their_offset() {
        let m = tables(0);
        m.put(0x3000 + (VA >> 21 & 511) * 8, 0x4000_0087 | 1 << 12);
        let page = walk(&m, &long(), VA, WRITE).unwrap();
        assert_eq!((page.phys, page.shift), (0x4000_0000 | VA & 0x1f_f000, 21));
        m.put(0x2000, 0x8000_0087);
        let page = walk(&m, &long(), VA, WRITE).unwrap();
        assert_eq!((page.phys, page.shift), (0x8000_0000 | VA & 0x3fff_f000, 30));
        let without = Context { gb_pages: false, ..long() };
        assert_eq!(walk(&m, &without, VA, WRITE), Err(0xb));
    }

    #[test]
    fn legacy_paging_knows_pse36_pages() {
        let ctx = Context { mode: Mode::Legacy, ..long() };
        let m = Sparse::default();
        m.put4(0x1000 + (VA >> 22) * 4, 0x0040_0087 | 5 << 13);
        let page = walk(&m, &ctx, VA, WRITE).unwrap();
        assert_eq!(page.phys, 5 << 32 | 0x0040_0000 | VA & 0x3f_f000);
        m.put4(0x1000 + (VA >> 22) * 4, 0x0060_0087);
        assert_eq!(walk(&m, &ctx, VA, READ), Err(9));
        m.put4(0x1000 + (VA >> 22) * 4, 0x3007);
        m.put4(0x3000 + (VA >> 12 & 0x3ff) * 4, 0x9005);
        assert_eq!(walk(&m, &ctx, VA, USER).unwrap().phys, 0x9000);
        assert_eq!(walk(&m, &ctx, VA, FETCH).unwrap().phys, 0x9000);
    }

    #[test]
    fn pae_paging_starts_at_the_cached_pointers() {
        let ctx = Context { mode: Mode::Pae, pdpte: [0, 0x2001, 0, 0], ..long() };
        let m = Sparse::default();
        let va = 0x4000_1000 | 0x678;
        m.put(0x2000, 0x3007);
        m.put(0x3008, 0x7007);
        assert_eq!(walk(&m, &ctx, va, USER).unwrap().phys, 0x7000);
        assert_eq!(walk(&m, &ctx, 0x678, READ), Err(0));
        m.put(0x3008, 0x7007 | 1 << 52);
        assert_eq!(walk(&m, &ctx, va, USER), Err(0xd));
    }

    /// A slow walker in other words: permissions as sets, one level per recursion.
    fn naive(m: &Sparse, ctx: &Context, va: u64, want: Want) -> Result<u64, u32> {
        fn level(m: &Sparse, ctx: &Context, va: u64, table: u64, n: u32) -> Result<(u64, Vec<u64>), bool> {
            let e = m.read(table + (va >> (n * 9 + 3) & 511) * 8, true);
            if e & 1 == 0 {
                return Err(false);
            }
            let leaf = n == 1 || e & 0x80 != 0 && (n == 2 || n == 3 && ctx.gb_pages);
            let mut bad = e >> 40 & 0xfff != 0 || e >> 63 == 1 && !ctx.nxe;
            let span = 1u64 << (n * 9 + 3);
            bad |= n == 4 && e & 0x80 != 0 || n == 3 && e & 0x80 != 0 && !ctx.gb_pages;
            bad |= leaf && n > 1 && ((e & paging::ADDRESS) % span) & !0x1000 != 0;
            if bad {
                return Err(true);
            }
            if leaf {
                return Ok(((e & paging::ADDRESS) / span * span + va % span / 4096 * 4096, vec![e]));
            }
            let (pa, mut list) = level(m, ctx, va, e & paging::ADDRESS, n - 1)?;
            list.push(e);
            Ok((pa, list))
        }
        let base = u32::from(want.write) * 2
            + u32::from(want.user) * 4
            + if want.fetch && (ctx.nxe || ctx.smep) { 16 } else { 0 };
        let (pa, list) = level(m, ctx, va, ctx.root, 4).map_err(|rsvd| base + if rsvd { 9 } else { 0 })?;
        let all = |bit: u64| list.iter().all(|e| e & bit != 0);
        let user_page = all(4);
        let ok = (!want.write || all(2) || !want.user && !ctx.wp)
            && !(want.fetch && list.iter().any(|e| e >> 63 == 1))
            && if want.user {
                user_page
            } else {
                !user_page || if want.fetch { !ctx.smep } else { !ctx.smap || want.ac }
            };
        if ok { Ok(pa) } else { Err(base + 1) }
    }

    #[test]
    fn random_tables_translate_as_a_naive_walker_says() {
        let mut seed = 1u64;
        let mut rnd = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut succeeded = 0;
        for _ in 0..60_000 {
            let m = Sparse::default();
            let va = rnd() & 0x7fff_ffff_ffff;
            let mut table = 0x1000;
            for n in (1..=4).rev() {
                let mut e = (table + 0x1000) | (0x27 & !(1 << (rnd() % 24)));
                if rnd() % 8 == 0 {
                    e |= 1 << (rnd() % 64);
                }
                if rnd() % 6 == 0 {
                    e = e | 0x80 | (rnd() & 0xff_c000_0000);
                }
                m.put(table + (va >> (n * 9 + 3) & 511) * 8, e);
                table += 0x1000;
            }
            let r = rnd();
            let bit = |n: u32| r >> n & 1 != 0;
            let ctx =
                Context { wp: bit(0), smep: bit(1), smap: bit(2), nxe: bit(3), gb_pages: bit(4), ..long() };
            let want = Want { write: bit(5) && !bit(6), fetch: bit(6), user: bit(7), ac: bit(8) };
            let expected = naive(&m, &ctx, va, want);
            assert_eq!(walk(&m, &ctx, va, want).map(|p| p.phys), expected, "{va:x} {ctx:?} {want:?}");
            succeeded += u32::from(expected.is_ok());
        }
        assert!(succeeded > 5_000, "only {succeeded} of the walks succeeded");
    }
}
