//! Loops: several blocks of a page written together.
//!
//! Inside of a region jumps are direct, what is known about the flags and the vector registers goes along with them,
//! and the flags are only brought home where the region is left. A part is written once for each of the first few
//! states that jumps bring to it; later ones come in the state that knows nothing. So the first turn of a loop is
//! peeled off by itself, and the others start with what the jump back to them knows.
//!
//! Guest registers without a host register of their own borrow those of guest registers that the region has no use
//! for; more of those hold addresses of memory ([`super::groups`]). Wherever code is called or left, everybody is back in place; sites in the middle are put right by whoever
//! takes over there (`Jit::settle`).

use super::super::asm::{Mem, Reg, Rm, alu, reg};
use super::super::stubs::Stub;
use super::groups::Groups;
use super::windows::Windows;
use super::{Block, Emit, Fl, Lent, Options, Output, To, at, canonical, code};
use crate::interp::flags::kind;
use crate::interp::thunk;
use crate::ir::{Cond, Opcode, Ty};
use crate::mutants;

/// States that a part is written for, beside the one that knows nothing.
const STATES: usize = 2;
/// Host registers that are lent at most.
const LENT: usize = 8;
/// Guest registers that can borrow: those without a host register.
const BORROWERS: [u8; 4] = [9, 10, 11, 15];

/// What is known where a part begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    fl: Fl,
    vectors: bool,
    x87: bool,
}

impl State {
    const NOTHING: State = State { fl: Fl::Env { carry: false }, vectors: false, x87: false };
}

/// A part in a state.
struct Version {
    part: usize,
    state: State,
    label: u32,
    written: bool,
}

/// Code out of the way that something jumps to.
struct Edge {
    label: u32,
    /// Where it comes from.
    part: usize,
    insn: u8,
    state: State,
    to: Leads,
}

#[derive(Clone, Copy)]
enum Leads {
    /// To another block.
    Out(u64),
    /// To the run loop, for a reason.
    Loop(u64, u32),
    /// To a version that knows less.
    Inside(usize),
    /// Backward to a version.
    Back(usize),
}

/// A region that is being written.
pub(super) struct Region<'a> {
    parts: &'a [Block],
    versions: Vec<Version>,
    edges: Vec<Edge>,
    /// Where labels are in the hot part.
    labels: Vec<u32>,
    /// The version that is fallen into.
    next: Option<usize>,
    part: usize,
    /// Accesses of each part that are checked together.
    groups: Vec<Groups>,
    /// Where the instructions left are, if not in the environment.
    budget: Option<Reg>,
    windows: Option<Windows>,
}

impl Region<'_> {
    fn label(&mut self) -> u32 {
        self.labels.push(u32::MAX);
        self.labels.len() as u32 - 1
    }

    /// The part that is being written.
    pub(super) fn part(&self) -> usize {
        self.part
    }

    pub(super) fn windows(&mut self) -> Option<&mut Windows> {
        self.windows.as_mut()
    }

    /// The present part's groups.
    pub(super) fn groups(&mut self) -> &mut Groups {
        &mut self.groups[self.part]
    }
}

/// Whether a block can be a part: it ends with a jump to a constant place.
pub(crate) fn fits(b: &Block) -> bool {
    matches!(b.ops.last(), Some(o) if matches!(o.op, Opcode::Br | Opcode::Brnz | Opcode::Jmp))
}

/// Where a part leads.
pub(crate) fn successors(b: &Block) -> impl Iterator<Item = u64> {
    let last = b.ops.last().filter(|_| fits(b));
    let refs = last.map_or([None; 2], |o| match o.op {
        Opcode::Jmp => [Some(o.a), None],
        _ => [Some(o.a), Some(o.b)],
    });
    refs.into_iter().flatten().filter_map(|r| b.const_value(r))
}

impl<'a> Emit<'a> {
    /// Writes a region, which is entered at its first part. `id`: a number that no other region ever has.
    pub fn region(
        parts: &'a [Block],
        id: u32,
        options: Options,
        arena: Option<&'a mut thunk::Arena>,
        mut out: Output,
    ) -> Output {
        out.clear();
        let mut e = Emit::new(&parts[0], false, options, arena, out);
        e.region = Some(Region {
            parts,
            versions: Vec::new(),
            edges: Vec::new(),
            labels: Vec::new(),
            next: None,
            part: 0,
            groups: parts.iter().map(|_| Groups::default()).collect(),
            budget: None,
            windows: None,
        });
        e.lend();
        let windows = e.windows_of(parts);
        if windows.is_some() {
            e.claim_windows(id);
        }
        e.region_mut().windows = windows;
        e.borrow();
        e.version(0, State::NOTHING);
        while let Some(v) = e.take_next() {
            e.write_version(v);
        }
        let mut n = 0;
        while let Some(edge) = e.region_mut().edges.get(n) {
            let (label, part, insn, state, to) = (edge.label, edge.part, edge.insn, edge.state, edge.to);
            e.come_from(part, state);
            e.insn = insn;
            e.bind(label);
            e.lead(to);
            n += 1;
        }
        let labels = std::mem::take(&mut e.region_mut().labels);
        for f in &mut e.out.fixes {
            if let To::Label(n) = f.to {
                f.to = To::Hot(labels[n as usize]);
            }
        }
        e.finish()
    }

    fn region_mut(&mut self) -> &mut Region<'a> {
        self.region.as_mut().unwrap_or_else(|| unreachable!("only called for regions"))
    }

    // ---- registers ----

    /// Decides who borrows from whom.
    fn lend(&mut self) {
        let parts = self.region_mut().parts;
        let mut uses = [0u32; 16];
        for b in parts {
            self.b = b;
            for o in &b.ops {
                let refs = [o.dst, o.a, o.b, o.c];
                for n in refs.iter().flat_map(|r| [r.as_gpr(), r.as_high()]).flatten() {
                    uses[usize::from(n & 15)] += 1;
                }
                let hidden = match o.op {
                    Opcode::Div | Opcode::Idiv => 0b101,
                    Opcode::RmwCmpxchg2 => 0b1111,
                    Opcode::X86 => self.opaque_registers(o),
                    _ => 0,
                };
                for (n, uses) in uses.iter_mut().enumerate() {
                    *uses += hidden >> n & 1;
                }
            }
        }
        self.b = &parts[0];
        // What is written for helpers counts on everybody being in place.
        if parts.iter().any(|b| b.ops.iter().any(|o| o.op == Opcode::Helper)) {
            return;
        }
        let mut wants: Vec<u8> = BORROWERS.into_iter().filter(|n| uses[usize::from(*n)] > 0).collect();
        wants.sort_by_key(|n| std::cmp::Reverse(uses[usize::from(*n)]));
        let mut lenders = (0..16u8).filter(|n| canonical(*n).is_some() && uses[usize::from(*n)] == 0);
        for guest in wants {
            let Some(lender) = lenders.next() else { return };
            self.map[usize::from(guest)] = canonical(lender);
            self.map[usize::from(lender)] = None;
            self.out.lent.push(Lent { guest, lender });
        }
        // The instructions left are looked at in every part.
        if self.options.counted
            && let Some(lender) = lenders.next()
        {
            self.map[usize::from(lender)] = None;
            self.out.lent.push(Lent { guest: Lent::BUDGET, lender });
            self.region_mut().budget = canonical(lender);
        }
        // What is left holds addresses.
        let mut groups: Vec<Groups> = Vec::with_capacity(parts.len());
        for b in parts {
            self.b = b;
            groups.push(self.groups_of(b));
        }
        self.b = &parts[0];
        let wanted = self.pointers_wanted(&groups).min(LENT - self.out.lent.len());
        let pool: Vec<u8> = lenders.take(wanted).collect();
        for lender in &pool {
            self.map[usize::from(*lender)] = None;
            self.out.lent.push(Lent { guest: Lent::NOBODY, lender: *lender });
        }
        let pool: Vec<Reg> = pool.into_iter().filter_map(canonical).collect();
        Self::allot_pointers(&mut groups, &pool);
        self.region_mut().groups = groups;
    }

    fn each_lent(&mut self, mut f: impl FnMut(&mut super::Buf, u8, Option<Rm>, Rm)) {
        for (n, l) in self.out.lent.iter().enumerate() {
            let host = canonical(l.lender).unwrap_or(reg::R9);
            let guest = match l.guest {
                Lent::NOBODY => None,
                Lent::BUDGET => Some(Rm::Mem(Mem::env(at::BUDGET))),
                n => Some(Rm::Mem(Mem::env(at::gpr(n)))),
            };
            f(&mut self.out.hot, host, guest, Rm::Mem(Mem::env(at::lent(n))));
        }
    }

    /// Guest registers take what they borrow. The host's flags stay.
    pub(super) fn borrow(&mut self) {
        self.each_lent(|hot, host, guest, lent| {
            hot.mov_rm_r(Ty::I64, lent, host);
            if let Some(guest) = guest {
                hot.mov_r_rm(Ty::I64, host, guest);
            }
        });
    }

    /// Everybody goes back in place. The host's flags stay.
    pub(super) fn give_back(&mut self) {
        self.each_lent(|hot, host, guest, lent| {
            if let Some(guest) = guest
                && !mutants::on(mutants::J_LENT_EXITS)
            {
                hot.mov_rm_r(Ty::I64, guest, host);
            }
            hot.mov_r_rm(Ty::I64, host, lent);
        });
    }

    // ---- versions ----

    fn bind(&mut self, label: u32) {
        let here = self.out.hot.len() as u32;
        self.region_mut().labels[label as usize] = here;
    }

    fn come_from(&mut self, part: usize, state: State) {
        let parts = self.region_mut().parts;
        self.region_mut().part = part;
        self.b = &parts[part];
        self.prepare();
        (self.fl, self.vectors, self.x87) = (state.fl, state.vectors, state.x87);
    }

    fn state(&self) -> State {
        let fl = match self.fl {
            // All of it is in the environment, and CF is cheap to have from there.
            fl @ Fl::Known { kind: kind::LAHF, .. } => fl,
            Fl::Known { stored: true, .. } => State::NOTHING.fl,
            fl => fl,
        };
        State { fl, vectors: self.vectors, x87: self.x87 }
    }

    /// The version of a part for a state, and whether something is to be done on the way to it.
    fn version(&mut self, part: usize, state: State) -> (usize, bool) {
        let r = self.region_mut();
        let of_part = || r.versions.iter().enumerate().filter(|(_, v)| v.part == part);
        if let Some((n, _)) = of_part().find(|(_, v)| v.state == state) {
            return (n, false);
        }
        let full = of_part().count() >= STATES;
        let (state, convert) = match full {
            true => (State::NOTHING, state.fl != State::NOTHING.fl),
            false => (state, false),
        };
        if let Some((n, _)) = of_part().find(|(_, v)| v.state == state) {
            return (n, convert);
        }
        let label = r.label();
        r.versions.push(Version { part, state, label, written: false });
        (r.versions.len() - 1, convert)
    }

    fn take_next(&mut self) -> Option<usize> {
        let r = self.region_mut();
        r.next.take().or_else(|| r.versions.iter().position(|v| !v.written))
    }

    fn write_version(&mut self, n: usize) {
        let v = &mut self.region_mut().versions[n];
        v.written = true;
        let (part, state, label) = (v.part, v.state, v.label);
        self.come_from(part, state);
        self.region_mut().groups().close();
        self.bind(label);
        if self.options.counted {
            let insns = self.b.insns.len() as i32;
            let left = self.region_mut().budget.map_or(Rm::Mem(Mem::env(at::BUDGET)), Rm::Reg);
            self.out.hot.alu_rm_i(alu::SUB, Ty::I64, left, insns);
            let j = self.out.hot.jcc(Cond::L);
            let rip = self.b.va;
            let label = self.edge_to(Leads::Loop(rip, code::BUDGET));
            self.fix_hot(j, To::Label(label));
        }
        self.body();
    }

    // ---- edges ----

    fn edge_to(&mut self, to: Leads) -> u32 {
        let (state, insn) = (self.state(), self.insn);
        let r = self.region_mut();
        let label = r.label();
        let part = r.part;
        r.edges.push(Edge { label, part, insn, state, to });
        label
    }

    /// The part at a RIP, and whether that is no later than the running instruction.
    fn inside(&mut self, rip: u64) -> Option<(usize, bool)> {
        let b = self.b;
        let here = b.va.wrapping_add(b.insns.get(usize::from(self.insn)).map_or(0, |i| i.off.into()));
        let part = self.region_mut().parts.iter().position(|p| p.va == rip)?;
        Some((part, rip <= here))
    }

    /// Where to jump to come to a RIP.
    fn edge(&mut self, rip: u64) -> u32 {
        let Some((part, back)) = self.inside(rip) else { return self.edge_to(Leads::Out(rip)) };
        let (v, convert) = self.version(part, self.state());
        match (back, convert) {
            (true, _) => self.edge_to(Leads::Back(v)),
            (_, true) => self.edge_to(Leads::Inside(v)),
            _ => self.region_mut().versions[v].label,
        }
    }

    /// Goes on at a RIP.
    pub(super) fn go(&mut self, rip: u64) {
        match self.inside(rip) {
            None => self.lead(Leads::Out(rip)),
            Some((part, back)) => {
                let (v, convert) = self.version(part, self.state());
                match (back, convert) {
                    (true, _) => self.lead(Leads::Back(v)),
                    _ => self.lead(Leads::Inside(v)),
                }
            }
        }
    }

    fn lead(&mut self, to: Leads) {
        match to {
            Leads::Out(rip) => {
                self.materialize();
                self.give_back();
                self.exit_to(rip);
            }
            Leads::Loop(rip, why) => {
                self.materialize();
                self.give_back();
                if why == code::BUDGET {
                    let n = self.b.insns.len() as i32;
                    self.out.hot.alu_rm_i(alu::ADD, Ty::I64, Rm::Mem(Mem::env(at::BUDGET)), n);
                }
                self.out.hot.mov_imm(reg::R9, rip);
                self.out.hot.mov_imm(reg::R10, why.into());
                let j = self.out.hot.jmp();
                self.fix_hot(j, To::Stub(Stub::Exit));
            }
            Leads::Inside(v) => {
                self.forget_what_it_does_not_know(v);
                let r = self.region_mut();
                if !r.versions[v].written && r.next.is_none() {
                    r.next = Some(v);
                    return;
                }
                let label = r.versions[v].label;
                let j = self.out.hot.jmp();
                self.fix_hot(j, To::Label(label));
            }
            Leads::Back(v) => {
                self.forget_what_it_does_not_know(v);
                let r = self.region_mut();
                let (label, written) = (r.versions[v].label, r.versions[v].written);
                let rip = r.parts[r.versions[v].part].va;
                if self.options.counted {
                    return self.lead(Leads::Inside(v));
                }
                self.look_for_attention();
                if written {
                    let j = self.out.hot.jcc(Cond::Z);
                    self.fix_hot(j, To::Label(label));
                    return self.lead(Leads::Loop(rip, code::POLL));
                }
                let j = self.out.hot.jcc(Cond::Nz);
                let label = self.edge_to(Leads::Loop(rip, code::POLL));
                self.fix_hot(j, To::Label(label));
                self.lead(Leads::Inside(v));
            }
        }
    }

    fn forget_what_it_does_not_know(&mut self, v: usize) {
        let fl = self.state().fl;
        if self.region_mut().versions[v].state.fl != fl {
            self.materialize();
        }
    }

    /// A conditional jump at a part's end, with the condition in the host's flags.
    pub(super) fn fork(&mut self, c: Cond, taken: u64, other: u64) {
        // What belongs to the loop is fallen into, first of all the jump back, which polls on its way.
        let rank = |e: &mut Self, rip: u64| match e.inside(rip) {
            Some((_, true)) => 2,
            Some(_) => 1,
            None => 0,
        };
        let (c, aside, ahead) = if rank(self, taken) > rank(self, other) {
            (Cond::ALL[c as usize ^ 1], other, taken)
        } else {
            (c, taken, other)
        };
        let label = self.edge(aside);
        let j = self.out.hot.jcc(c);
        self.fix_hot(j, To::Label(label));
        self.go(ahead);
    }
}
