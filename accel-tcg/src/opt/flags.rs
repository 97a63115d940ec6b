//! Drops the computation of flags that nobody can see.
//!
//! One walk backward. Flags are live at the block's end and wherever a fault may push them.

use crate::ir::op::flag;
use crate::ir::{Attr, Block, FlagsForm, Opcode};

/// Runs the pass.
pub fn run(b: &mut Block) {
    let mut live = flag::ALL;
    let mut dead = Vec::new();
    for (at, o) in b.ops.iter_mut().enumerate().rev() {
        let info = o.op.info();
        if o.attr.flags() {
            let writes = match info.flags {
                FlagsForm::Twin(m) => m,
                _ => flag::ALL,
            };
            if writes & live == 0 {
                o.attr = Attr(o.attr.0 & !Attr::FLAGS);
                if matches!(o.op, Opcode::Cmp | Opcode::Test | Opcode::Bt) {
                    dead.push(at);
                    continue;
                }
            }
        }
        live = live & !o.flags_killed() | o.flags_read();
        if info.faults || info.ends {
            live = flag::ALL;
        }
    }
    for at in dead {
        b.ops.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse, print};

    fn optimized(body: &str) -> String {
        let mut b = parse::block(&format!("block pa=0x0 va=0x0 key=0x0\n{body}")).unwrap();
        run(&mut b);
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
