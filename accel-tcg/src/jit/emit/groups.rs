//! Accesses that lie near each other: checked once, and reached through a register after that.
//!
//! Of a region's part, accesses by the same registers and with displacements not far apart are a group, as long as
//! none of these registers changes and nothing is called between them. The first one checks a range that covers all.
//! Where that ends in another page, or is not all RAM that may be touched directly, each is checked alone. If there is
//! a store among them, the first one looks whether the page can be written to, even if it is a load; but a load does
//! no more than look.
//!
//! The register belongs to a guest register that the region has no use for.

use super::super::asm::Reg;
use super::Emit;
use super::near::Kind;
use crate::ir::{Block, Opcode, Ref, Ty};
use crate::mutants;

/// Bytes that a group covers at most, and with two members only.
const WIDEST: i64 = 248;
const WIDEST_PAIR: i64 = 64;

/// Accesses that are checked together.
#[derive(Debug)]
struct Group {
    key: Key,
    lo: i64,
    hi: i64,
    /// Operations of the first and the last member.
    ends: (usize, usize),
    members: u32,
    reg: Option<Reg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    a: Ref,
    b: Ref,
    c: Ref,
    scale: u8,
    stack: bool,
    write: bool,
}

#[derive(Debug)]
struct Member {
    op: usize,
    group: usize,
    disp: i64,
    len: u32,
    aligned: bool,
}

/// The groups of a part.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    members: Vec<Member>,
    /// Groups whose register holds the address now.
    open: Vec<bool>,
}

/// What an access is to its group.
pub(super) enum Role {
    /// Checks for all.
    First(First),
    /// So far behind the register.
    Next { base: Reg, offset: i32 },
}

/// From so far before its own address so many bytes, for a store or not; the register is to have the first one's
/// address.
pub(super) struct First {
    pub before: i64,
    pub len: u32,
    pub write: bool,
    pub keep: Reg,
}

impl Groups {
    /// Nothing is known any more.
    pub fn close(&mut self) {
        self.open.fill(false);
    }

    /// Registers needed at once at most.
    fn needed(&self) -> usize {
        let at = |op: usize| self.groups.iter().filter(|g| g.ends.0 <= op && op <= g.ends.1).count();
        self.members.iter().map(|m| at(m.op)).max().unwrap_or(0)
    }

    /// Gives registers to groups, and drops those that get none.
    fn allot(&mut self, pool: &[Reg]) {
        for n in 0..self.groups.len() {
            let (first, last) = self.groups[n].ends;
            let taken = |r: Reg| {
                let before = &self.groups[..n];
                before.iter().any(|g| g.reg == Some(r) && g.ends.0 <= last && first <= g.ends.1)
            };
            self.groups[n].reg = pool.iter().copied().find(|r| !taken(*r));
        }
    }

    fn role(&mut self, op: usize, aligned: bool) -> Option<Role> {
        let at = self.members.binary_search_by_key(&op, |m| m.op).ok()?;
        let m = &self.members[at];
        let g = &self.groups[m.group];
        let reg = g.reg?;
        if !std::mem::replace(&mut self.open[m.group], true) {
            // Members before this one may have gone by; the range stays what it was.
            let (before, len) = (m.disp - g.lo, (g.hi - g.lo) as u32);
            let len = mutants::pick(mutants::J_GROUP_SPAN, len, m.len);
            return Some(Role::First(First { before, len, write: g.key.write, keep: reg }));
        }
        if aligned {
            // Somebody before must have had the same alignment tested.
            let tested = self.members[..at].iter().any(|x| {
                x.group == m.group && x.aligned && x.len == m.len && (x.disp - m.disp) % i64::from(m.len) == 0
            });
            if !tested {
                return None;
            }
        }
        Some(Role::Next { base: reg, offset: (m.disp - g.lo) as i32 })
    }
}

impl Emit<'_> {
    /// Finds the groups of a block.
    pub(super) fn groups_of(&self, b: &Block) -> Groups {
        let mut found = Groups::default();
        // Addresses in temporaries, and the groups that can still grow.
        let mut addresses: Vec<(Ref, Key, i64)> = Vec::new();
        let mut live: Vec<usize> = Vec::new();
        for (n, o) in b.ops.iter().enumerate() {
            if o.op == Opcode::Ea
                && o.ty == Ty::I64
                && o.dst.as_temp().is_some()
                && [o.a, o.b, o.c].iter().all(|r| r.as_temp().is_none())
                && b.const_value(o.a).is_none()
                && (o.a != Ref::NONE || o.b != Ref::NONE)
            {
                let (scale, stack) = (o.attr.scale(), false);
                let key = Key { a: o.a, b: o.b, c: o.c, scale, stack, write: false };
                addresses.push((o.dst, key, i64::from(o.imm as i32)));
                continue;
            }
            if let Some((len, write)) = self.access_of(b, n)
                && let Some((_, key, disp)) = addresses.iter().find(|(t, ..)| *t == o.a)
            {
                let key = Key { write, stack: o.attr.stack(), ..*key };
                let joins = |g: &Group| {
                    let same = Key { write: g.key.write, ..key } == g.key;
                    let (lo, hi) = (g.lo.min(*disp), g.hi.max(disp + i64::from(len)));
                    let most = if g.members > 1 { WIDEST } else { WIDEST_PAIR };
                    same && hi - lo <= most
                };
                let group = live.iter().copied().find(|g| joins(&found.groups[*g]));
                let group = match group {
                    Some(g) => g,
                    None => {
                        let (lo, hi) = (*disp, disp + i64::from(len));
                        found.groups.push(Group { key, lo, hi, ends: (n, n), members: 0, reg: None });
                        live.push(found.groups.len() - 1);
                        found.groups.len() - 1
                    }
                };
                let g = &mut found.groups[group];
                (g.lo, g.hi) = (g.lo.min(*disp), g.hi.max(disp + i64::from(len)));
                g.ends.1 = n;
                g.members += 1;
                g.key.write |= write;
                found.members.push(Member { op: n, group, disp: *disp, len, aligned: o.attr.aligned() });
            }
            let mut changed = 0u32;
            for r in [o.dst.as_gpr(), o.dst.as_high()].into_iter().flatten() {
                changed |= 1 << (r & 15);
            }
            changed |= match o.op {
                Opcode::Helper => u32::MAX,
                Opcode::X86 => self.opaque_writes(o),
                Opcode::Div | Opcode::Idiv => 0b101,
                _ => 0,
            };
            if changed != 0 {
                let uses = |k: &Key| {
                    let regs = [k.a, k.b].map(|r| r.as_gpr().map_or(0, |n| 1 << (n & 15)));
                    (regs[0] | regs[1]) & changed != 0 || changed == u32::MAX
                };
                live.retain(|g| !uses(&found.groups[*g].key));
                addresses.retain(|(_, k, _)| !uses(k));
            }
        }
        let alone: Vec<bool> = found.groups.iter().map(|g| g.members < 2).collect();
        found.members.retain(|m| !alone[m.group]);
        for (g, alone) in found.groups.iter_mut().zip(alone) {
            if alone {
                g.ends = (usize::MAX, 0);
            }
        }
        found.open = vec![false; found.groups.len()];
        found
    }

    /// Size of an operation's access to memory, and whether it writes, if it can be in a group.
    fn access_of(&self, b: &Block, n: usize) -> Option<(u32, bool)> {
        use Opcode::*;
        let o = &b.ops[n];
        let loose = o.attr.aligned() && !(matches!(o.op, Ld | St) && o.ty == Ty::V128 || o.op == X86);
        if o.attr.lock() || loose {
            return None;
        }
        match o.op {
            Ld => Some((o.ty.bytes(), false)),
            LdW | St => Some((o.ty.bytes(), true)),
            RmwAdd | RmwSub | RmwAnd | RmwOr | RmwXor | RmwInc | RmwDec | RmwNeg | RmwNot | RmwAdc
            | RmwSbb => Some((o.ty.bytes(), true)),
            X86 => self.opaque_access(o),
            _ => None,
        }
    }

    /// Registers that groups want, at most.
    pub(super) fn pointers_wanted(&self, groups: &[Groups]) -> usize {
        groups.iter().map(Groups::needed).max().unwrap_or(0)
    }

    /// The groups of all parts get their registers.
    pub(super) fn allot_pointers(groups: &mut [Groups], pool: &[Reg]) {
        for g in groups {
            g.allot(pool);
        }
    }

    /// What the access of the running operation is to its group.
    pub(super) fn role(&mut self, kind: Kind) -> Option<Role> {
        let at = self.index;
        self.region.as_mut()?.groups().role(at, kind.attr.aligned())
    }
}
