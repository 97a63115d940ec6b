//! Drops the computation of flags that nobody can see.
//!
//! One walk backward. Flags are live at the block's end and wherever a fault may push them.

use crate::ir::op::flag;
use crate::ir::{Attr, Block, FlagsForm, Op, Opcode, Ty};

/// Whether the operation is a shift that surely writes every flag: by a constant that is not zero.
fn shifts(b: &Block, o: &Op) -> bool {
    let mask = if o.ty == Ty::I64 { 63 } else { 31 };
    matches!(o.op, Opcode::Shl | Opcode::Shr | Opcode::Sar)
        && o.attr.flags()
        && b.const_value(o.b).is_some_and(|n| n & mask != 0)
}

/// The flags that live before an operation, from those that live after it.
fn before(b: &Block, o: &Op, after: u32) -> u32 {
    let info = o.op.info();
    if info.faults || info.ends {
        return flag::ALL;
    }
    if shifts(b, o) { 0 } else { after & !o.flags_killed() | o.flags_read() }
}

/// For each operation the flags that somebody may see after it before they are overwritten.
pub fn live_after(b: &Block, out: &mut Vec<u32>) {
    out.clear();
    out.resize(b.ops.len(), flag::ALL);
    let mut live = flag::ALL;
    for (at, o) in b.ops.iter().enumerate().rev() {
        out[at] = live;
        live = before(b, o, live);
    }
}

/// Who runs the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// It may leave behind any instruction that accesses memory: whatever that found may end the block there.
    Interpreter,
    /// It leaves at the start of instructions only, and behind calls.
    Translated,
}

/// The instructions behind which the interpreter may leave, a bit each.
fn may_end(b: &Block) -> u64 {
    let faulting = b.ops.iter().filter(|o| o.op.info().faults);
    faulting.fold(0, |all, o| all | 1 << (o.insn & 63))
}

/// Runs the pass.
pub fn run(b: &mut Block, runner: Runner) {
    let seen = if runner == Runner::Interpreter { may_end(b) } else { 0 };
    let mut live = flag::ALL;
    let mut dead = false;
    for at in (0..b.ops.len()).rev() {
        let mut o = b.ops[at];
        if o.attr.flags() {
            let writes = match o.op.info().flags {
                FlagsForm::Twin(m) => m,
                _ => flag::ALL,
            };
            if writes & live == 0 && seen >> (o.insn & 63) & 1 == 0 {
                o.attr = Attr(o.attr.0 & !Attr::FLAGS);
                b.ops[at] = o;
                if matches!(o.op, Opcode::Cmp | Opcode::Test | Opcode::Bt) {
                    // Marked for removal: it does nothing any more.
                    b.ops[at].op = Opcode::Cmp;
                    b.ops[at].imm = u32::MAX;
                    dead = true;
                    continue;
                }
            }
        }
        live = before(b, &o, live);
    }
    if dead {
        b.ops.retain(|o| o.imm != u32::MAX || o.op != Opcode::Cmp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse, print};

    fn optimized(body: &str) -> String {
        let mut b = parse::block(&format!("block pa=0x0 va=0x0 key=0x0\n{body}")).unwrap();
        run(&mut b, Runner::Translated);
        print::block(&b).split_once('\n').unwrap().1.to_string()
    }

    #[test]
    fn flags_that_are_overwritten_unseen_are_dropped() {
        assert_eq!(
            optimized(" 0/3  rax = add.f.i64 rax, rbx\n 1/3  rcx = sub.f.i64 rcx, rbx\n 2/2  jmp.i64 0x10\n"),
            " 0/3  rax = add.i64 rax, rbx\n 1/3  rcx = sub.f.i64 rcx, rbx\n 2/2  jmp.i64 0x10\n"
        );
    }

    #[test]
    fn flags_that_a_fault_would_show_are_kept() {
        let text = " 0/3  rax = add.f.i64 rax, rbx\n 1/3  rdx = ld.i64 rbx\n 2/3  rcx = sub.f.i64 rcx, rbx\n 3/2  jmp.i64 0x10\n";
        assert_eq!(optimized(text), text);
    }

    #[test]
    fn flags_of_an_instruction_behind_which_the_interpreter_may_leave_are_kept() {
        let text = " 0/3  rcx = ld.i64 rbx\n      rax = add.f.i64 rax, rcx\n 1/3  rcx = sub.f.i64 rcx, rbx\n 2/2  jmp.i64 0x10\n";
        let mut b = parse::block(&format!("block pa=0x0 va=0x0 key=0x0\n{text}")).unwrap();
        let adds = |b: &Block| b.ops.iter().filter(|o| o.op == Opcode::Add && o.attr.flags()).count();
        run(&mut b, Runner::Interpreter);
        assert_eq!(adds(&b), 1);
        run(&mut b, Runner::Translated);
        assert_eq!(adds(&b), 0);
    }

    #[test]
    fn an_increment_needs_the_carry_of_before() {
        let text = " 0/3  rax = add.f.i64 rax, rbx\n 1/3  rcx = inc.f.i64 rcx\n 2/2  jmp.i64 0x10\n";
        assert_eq!(optimized(text), text);
    }

    #[test]
    fn an_unseen_comparison_vanishes() {
        assert_eq!(
            optimized(" 0/3  cmp.f.i64 rax, rbx\n 1/3  rcx = sub.f.i64 rcx, rbx\n 2/2  jmp.i64 0x10\n"),
            " 0/3\n 1/3  rcx = sub.f.i64 rcx, rbx\n 2/2  jmp.i64 0x10\n"
        );
    }
}
