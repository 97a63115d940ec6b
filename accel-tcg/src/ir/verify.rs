//! What must hold of a block after the front end and after every pass.
//!
//! Temporaries are defined once and before use and hold within one instruction's reach; instruction indices rise;
//! the block ends with exactly one ending operation; within one instruction nothing that can fault comes after a
//! write of a register or the flags (the commit-last rule), so a fault leaves the state of before the instruction.

use super::op::{Block, FlagsForm, Imm, Op, Opcode, Ref, Ty};

/// The rule that was broken and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("op {at}: {what}")]
pub struct Broken {
    /// Index of the operation.
    pub at: usize,
    /// The rule.
    pub what: &'static str,
}

fn writes_state(o: &Op) -> bool {
    let info = o.op.info();
    (info.dst && o.dst.is_arch()) || o.attr.flags() || matches!(info.flags, FlagsForm::Sets(_))
}

/// Checks the block.
pub fn block(b: &Block) -> Result<(), Broken> {
    let mut defined = vec![false; b.temps as usize];
    let mut insn = 0;
    let mut committed = false;
    if b.insns.len() > 64 {
        return Err(Broken { at: 0, what: "more than 64 instructions" });
    }
    for (at, o) in b.ops.iter().enumerate() {
        let broken = |what| Err(Broken { at, what });
        let info = o.op.info();
        if o.insn < insn || o.insn as usize >= b.insns.len() {
            return broken("instruction index out of order");
        }
        if o.insn != insn {
            insn = o.insn;
            committed = false;
        }
        for r in &[o.a, o.b, o.c][..info.args as usize] {
            if let Some(t) = r.as_temp()
                && !defined.get(t as usize).copied().unwrap_or(false)
            {
                return broken("temporary used before its definition");
            }
            if r.as_pool().is_some_and(|i| i as usize >= b.pool.len()) {
                return broken("constant outside the pool");
            }
            if r.as_high().is_some() && o.ty != Ty::I8 && !matches!(info.imm, Imm::From) {
                return broken("high-byte register in a wider operation");
            }
        }
        if info.dst {
            if let Some(t) = o.dst.as_temp() {
                match defined.get_mut(t as usize) {
                    Some(d) if !*d => *d = true,
                    _ => return broken("temporary defined twice or never counted"),
                }
            } else if o.dst != Ref::NONE && !o.dst.is_arch() {
                return broken("destination is neither register nor temporary");
            }
        }
        if info.faults && committed {
            return broken("a faulting operation after a committed write");
        }
        if matches!(info.flags, FlagsForm::None | FlagsForm::ByCond | FlagsForm::Reads(_)) && o.attr.flags() {
            return broken("no flags twin");
        }
        match info.imm {
            Imm::Call if o.imm as usize >= b.calls.len() => return broken("call outside the table"),
            Imm::Opaque if o.imm as usize >= b.opaques.len() => return broken("opaque outside the table"),
            _ => {}
        }
        let last = at + 1 == b.ops.len();
        if info.ends && !last && o.op != Opcode::Raise {
            return broken("the block goes on after its end");
        }
        if last && !info.ends {
            return broken("the block has no end");
        }
        committed |= writes_state(o);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse;

    fn check(body: &str) -> Result<(), &'static str> {
        let b = parse::block(&format!("block pa=0x0 va=0x0 key=0x0\n{body}")).unwrap();
        block(&b).map_err(|e| e.what)
    }

    #[test]
    fn a_good_block_passes() {
        assert_eq!(
            check(" 0/1 t0 = ld.i64 rsp\n rsp = add.i64 rsp, 0x8\n rax = mov.i64 t0\n 1/2 jmp.i64 0x3"),
            Ok(())
        );
    }

    #[test]
    fn a_fault_after_a_write_is_refused() {
        assert_eq!(
            check(" 0/1 rsp = add.i64 rsp, 0x8\n rax = ld.i64 rsp\n 1/2 jmp.i64 0x3"),
            Err("a faulting operation after a committed write")
        );
        assert_eq!(
            check(" 0/1 cmp.f.i64 rsp, 0x8\n rax = ld.i64 rsp\n 1/2 jmp.i64 0x3"),
            Err("a faulting operation after a committed write")
        );
    }

    #[test]
    fn wrong_temporaries_are_refused() {
        assert_eq!(
            check(" 0/1 rax = mov.i64 t0\n 1/2 jmp.i64 0x3"),
            Err("temporary used before its definition")
        );
        assert_eq!(
            check(" 0/1 t0 = mov.i64 rax\n t0 = mov.i64 rbx\n 1/2 jmp.i64 0x3"),
            Err("temporary defined twice or never counted")
        );
    }

    #[test]
    fn a_block_ends_once() {
        assert_eq!(check(" 0/1 rax = mov.i64 rbx"), Err("the block has no end"));
        assert_eq!(check(" 0/1 jmp.i64 0x3\n 1/1 jmp.i64 0x4"), Err("the block goes on after its end"));
    }
}
