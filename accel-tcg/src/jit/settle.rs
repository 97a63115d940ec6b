//! Bringing registers, flags and RIP home after code was left in the middle of a block.

use super::blocks::Jit;
use super::emit::{Lent, Loc, Recipe, Site};
use crate::env::Cpu;

impl Jit {
    /// After an exit in the middle of a block: brings registers, flags and RIP to the instruction's start. Returns how
    /// many instructions were counted that did not run.
    pub fn settle(&mut self, cpu: &mut Cpu) -> Option<u8> {
        self.counts.bails += 1;
        let at = self.arena.offset(cpu.env.jit.site);
        let (chunk, b) = self.block_of_site(at)?;
        let ret = at as u32 - b.cold;
        let sites = chunk.sites.get(b.sites as usize..)?.get(..b.site_count.into())?;
        let site = sites[sites.binary_search_by_key(&ret, |s| s.ret).ok()?];
        let lent = b.rare.as_ref().map_or(&[][..], |r| &r.lent);
        for (n, l) in lent.iter().enumerate() {
            let lender = usize::from(l.lender & 15);
            match l.guest {
                Lent::NOBODY => {}
                _ if crate::mutants::on(crate::mutants::J_LENT_SITES) => {}
                Lent::BUDGET => cpu.env.jit.budget = cpu.env.gpr[lender] as i64,
                n => cpu.env.gpr[usize::from(n & 15)] = cpu.env.gpr[lender],
            }
            cpu.env.gpr[lender] = cpu.env.jit.lent[n & 7];
        }
        if site.recipe != Site::AT_HOME {
            apply(cpu, *chunk.recipes.get(b.recipes as usize + usize::from(site.recipe))?);
        }
        let rip = b.rip.wrapping_add_signed(site.off.into());
        cpu.env.rip = if b.key & crate::mode::key::L64 != 0 { rip } else { rip & 0xffff_ffff };
        Some(site.left)
    }
}

/// Brings the flags that a site has noted into the environment.
fn apply(cpu: &mut Cpu, r: Recipe) {
    if r.op == Recipe::NOTHING {
        return;
    }
    let env = &mut cpu.env;
    let value = |env: &crate::env::Env, l: Loc, old: u64| match l {
        Loc::Env => old,
        Loc::Gpr(n) => env.gpr[usize::from(n & 15)],
        Loc::Imm(v) => i64::from(v) as u64,
    };
    env.cc_a = value(env, r.a, env.cc_a);
    env.cc_b = value(env, r.b, env.cc_b);
    env.cc_op = r.op;
}
