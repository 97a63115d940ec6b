//! Operations that read, change and write memory, with the bus lock where other processors run.

use super::super::flags::Loc;
use super::super::{CHECKED, Emit, Hold, at};
use super::ALL;
use crate::interp::flags::kind;
use crate::ir::op::flag;
use crate::ir::{Cond, Op, Opcode, Ref, Ty};
use crate::jit::asm::{Mem, Reg, Rm, alu, reg};

impl Emit<'_> {
    /// An operation on memory whose old value nobody wants.
    pub(super) fn rmw(&mut self, o: &Op) {
        use Opcode::*;
        let f = o.attr.flags();
        let lock = self.locks(o);
        let wants_old = o.dst.as_temp().is_some_and(|t| self.uses[t as usize] > 0);
        if f && matches!(o.op, RmwBts | RmwBtr | RmwBtc) {
            self.materialize();
        }
        let step = f && matches!(o.op, RmwInc | RmwDec);
        if step {
            // Until the store is done, the record must stay as it is.
            self.materialize();
        }
        let value = o.b;
        if value.as_temp().is_some() {
            self.settle(value, o.ty);
        }
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let imm = if value == Ref::NONE { None } else { self.imm(value, o.ty) };
        let direct =
            value == Ref::NONE || imm.is_some() || value.as_gpr().and_then(|n| self.pin(n)).is_some();
        let bits = matches!(o.op, RmwBts | RmwBtr | RmwBtc);
        let aside = wants_old || step || matches!(o.op, RmwXchg | RmwAdc | RmwSbb) || bits && imm.is_none();
        let m = if direct && !aside { CHECKED } else { self.collapse() };
        if wants_old {
            // XCHG or XADD of another shape: through a register that receives the old value.
            let s = self.copy(value, o.ty);
            self.swap(o, m, s);
            if o.op != RmwXchg && f {
                self.hold = [Hold::Op; 2];
                self.save_host_flags();
            }
            return self.put(o.dst, o.ty, s);
        }
        if o.op == RmwXchg {
            let s = self.copy(value, o.ty);
            self.out.hot.xchg(o.ty, Rm::Mem(m), s);
            return;
        }
        if matches!(o.op, RmwAdc | RmwSbb) {
            let s = match imm {
                None => Some(self.reg(value, o.ty)),
                Some(_) => None,
            };
            self.test(Cond::B);
            self.lock_prefix(o);
            let op = if o.op == RmwAdc { alu::ADC } else { alu::SBB };
            match (imm, s) {
                (Some(v), _) => self.out.hot.alu_rm_i(op, o.ty, Rm::Mem(m), v),
                (_, Some(s)) => self.out.hot.alu_rm_r(op, o.ty, Rm::Mem(m), s),
                _ => {}
            }
            self.after_rmw(f);
            return;
        }
        if step && !lock {
            // Through a register, which the flags are known by.
            self.carry_to_b();
            let (k, n) = if o.op == RmwDec { (kind::DEC, 1) } else { (kind::INC, 0) };
            let hot = &mut self.out.hot;
            hot.movzx(reg::R10, o.ty, Rm::Mem(m));
            hot.group4(n, o.ty, Rm::Reg(reg::R10));
            hot.mov_rm_r(o.ty, Rm::Mem(m), reg::R10);
            hot.mov_rm_r(Ty::I64, Rm::Mem(Mem::env(at::CC_A)), reg::R10);
            self.hold = [Hold::Free; 2];
            return self.know(k, o.ty, Loc::Env, Loc::Env, ALL & !flag::CF);
        }
        if step {
            self.carry_to_b();
            self.lock_prefix(o);
            self.out.hot.group4(u8::from(o.op == RmwDec), o.ty, Rm::Mem(m));
            // The carry that was kept, in the host's own.
            self.keep_carry();
            return;
        }
        let op = match o.op {
            RmwAdd => alu::ADD,
            RmwSub => alu::SUB,
            RmwAnd => alu::AND,
            RmwOr => alu::OR,
            RmwXor => alu::XOR,
            _ => 8,
        };
        if bits {
            if f {
                self.override_begin(flag::CF);
            }
            let n = match o.op {
                RmwBts => 5,
                RmwBtr => 6,
                _ => 7,
            };
            match imm {
                Some(v) => {
                    self.lock_prefix(o);
                    self.out.hot.bt_i(n, o.ty, Rm::Mem(m), v as u8 & (o.ty.bits() as u8 - 1));
                }
                None => {
                    let s = self.copy(value, o.ty);
                    self.out.hot.alu_rm_i(alu::AND, Ty::I32, Rm::Reg(s), o.ty.bits() as i32 - 1);
                    self.lock_prefix(o);
                    self.out.hot.bt_r(n, o.ty, Rm::Mem(m), s);
                }
            }
            if f {
                self.override_flags(flag::CF);
                self.host = flag::CF;
            } else {
                self.host = 0;
            }
            return;
        }
        let s = if op < 8 && imm.is_none() { Some(self.reg(value, o.ty)) } else { None };
        self.lock_prefix(o);
        match (o.op, imm, s) {
            (RmwInc, ..) => self.out.hot.group4(0, o.ty, Rm::Mem(m)),
            (RmwDec, ..) => self.out.hot.group4(1, o.ty, Rm::Mem(m)),
            (RmwNeg, ..) => self.out.hot.group3(3, o.ty, Rm::Mem(m)),
            (RmwNot, ..) => self.out.hot.group3(2, o.ty, Rm::Mem(m)),
            (_, Some(v), _) => self.out.hot.alu_rm_i(op, o.ty, Rm::Mem(m), v),
            (_, _, Some(s)) => self.out.hot.alu_rm_r(op, o.ty, Rm::Mem(m), s),
            _ => {}
        }
        if o.op == RmwNot {
            return;
        }
        self.after_rmw(f);
    }

    /// Whether an operation needs the bus lock: without other processors nobody can tell.
    fn locks(&self, o: &Op) -> bool {
        o.attr.lock() && self.options.smp
    }

    /// Begins a host instruction that is locked if the operation is to be.
    pub(in super::super) fn lock_prefix(&mut self, o: &Op) {
        if self.locks(o) {
            self.out.hot.bytes.push(0xf0);
        }
    }

    /// XCHG or XADD of memory and a register.
    fn swap(&mut self, o: &Op, m: Mem, s: Reg) {
        if o.op == Opcode::RmwXchg {
            return self.out.hot.xchg(o.ty, Rm::Mem(m), s);
        }
        self.lock_prefix(o);
        self.out.hot.map1_sized(o.ty, 0xc0, s, Rm::Mem(m));
        self.host = 0;
    }

    fn after_rmw(&mut self, f: bool) {
        if f {
            self.hold = [Hold::Free; 2];
            self.save_host_flags();
        } else {
            self.host = 0;
        }
    }

    /// Saves the host's flags with the carry in `cc_b`.
    fn keep_carry(&mut self) {
        self.hold = [Hold::Free; 2];
        self.save_host_flags();
        // Bit 8 of the saved flags is CF.
        let hot = &mut self.out.hot;
        hot.mov_r_rm(Ty::I8, reg::R9, Rm::Mem(Mem::env(at::CC_A + 1)));
        hot.mov_r_rm(Ty::I8, reg::R10, Rm::Mem(Mem::env(at::CC_B)));
        hot.alu_rm_i(alu::AND, Ty::I8, Rm::Reg(reg::R9), !1);
        hot.alu_rm_i(alu::AND, Ty::I8, Rm::Reg(reg::R10), 1);
        hot.alu_rm_r(alu::OR, Ty::I8, Rm::Reg(reg::R9), reg::R10);
        hot.mov_rm_r(Ty::I8, Rm::Mem(Mem::env(at::CC_A + 1)), reg::R9);
        self.host = 0;
    }

    pub(super) fn exchange(&mut self, index: usize, o: &Op, mov: &Op) {
        let f = o.attr.flags();
        self.before_write(mov.dst, index, if f { ALL } else { 0 });
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let m = self.collapse();
        let s = match mov.dst.as_gpr().and_then(|n| self.pin(n)) {
            // A 32-bit exchange clears the upper half, as the guest's does.
            Some(d) => d,
            None => self.copy(o.b, o.ty),
        };
        self.swap(o, m, s);
        if mov.dst.as_gpr().and_then(|n| self.pin(n)).is_none() {
            self.put(mov.dst, o.ty, s);
        }
        if o.op == Opcode::RmwAdd && f {
            self.hold = [Hold::Free; 2];
            self.save_host_flags();
        }
    }

    pub(super) fn cmpxchg(&mut self, index: usize, o: &Op) {
        self.before_write(Ref::gpr(0), index, ALL);
        self.check(o.a, o.ty.bytes(), true, o.attr);
        let (m, s) = match o.c.as_gpr().and_then(|n| self.pin(n)) {
            Some(s) => (CHECKED, s),
            None => {
                let m = self.collapse();
                (m, self.reg(o.c, o.ty))
            }
        };
        self.lock_prefix(o);
        self.out.hot.map1_sized(o.ty, 0xb0, s, Rm::Mem(m));
        self.hold = [Hold::Free; 2];
        self.save_host_flags();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::chaos::Chaos;
    use super::super::super::{Emit, Options, Output};
    use iced_x86::{Code, Decoder, DecoderOptions};

    /// Whether the code of an operation on memory holds a locked instruction; `None` if the interpreter is to run it.
    fn locks(op: &str, smp: bool) -> Option<bool> {
        let text = format!(
            "block pa=0x1000 va=0x40000000 key=0x1083a1\n \
             0/3  t0 = ea.i64 rsi, none, none, 1, 0x10\n      {op}\n 1/2  jmp.i64 0x40000005\n"
        );
        let ir = crate::ir::parse::block(&text).unwrap_or_else(|e| panic!("{op}: {e}"));
        let chaos = Chaos::default();
        let options = Options { counted: false, bmi: true, pinned: false, smp, chaos, count: false };
        let out = Emit::block(&ir, false, options, None, Output::default());
        let exchanges = [Code::Xchg_rm8_r8, Code::Xchg_rm16_r16, Code::Xchg_rm32_r32, Code::Xchg_rm64_r64];
        let locked = |i: iced_x86::Instruction| {
            i.has_lock_prefix() || exchanges.contains(&i.code()) && i.op0_kind() == iced_x86::OpKind::Memory
        };
        let found = Decoder::new(64, &out.hot.bytes, DecoderOptions::NONE).iter().any(locked);
        out.steps.is_empty().then_some(found)
    }

    #[test]
    fn locked_operations_are_locked_where_processors_share_memory() {
        for name in ["add", "sub", "and", "or", "xor", "adc", "sbb", "xchg", "bts", "btr", "btc"] {
            for ty in ["i32", "i64"] {
                for (value, flags) in [("rcx", ".f"), ("rcx", ""), ("r9", ".f"), ("0x12", ".f"), ("0x12", "")]
                {
                    // XCHG has no flags, and no constant.
                    if name == "xchg" && (flags == ".f" || value == "0x12") {
                        continue;
                    }
                    let op = format!("none = rmw.{name}{flags}.{ty} t0, {value} !lock");
                    assert_ne!(locks(&op, true), Some(false), "{op}");
                    assert!(name == "xchg" || locks(&op, false) != Some(true), "{op}, with one processor");
                }
            }
        }
        for name in ["inc", "dec", "neg", "not"] {
            for flags in [".f", ""].into_iter().filter(|f| name != "not" || f.is_empty()) {
                let op = format!("none = rmw.{name}{flags}.i32 t0 !lock");
                assert_ne!(locks(&op, true), Some(false), "{op}");
            }
        }
        // These are not all left to the interpreter.
        for name in ["add", "adc", "sbb", "btc"] {
            let op = format!("none = rmw.{name}.i32 t0, rcx !lock");
            assert_eq!(locks(&op, true), Some(true), "{op}");
        }
    }
}
