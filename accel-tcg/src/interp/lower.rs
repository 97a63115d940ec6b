//! IR to direct-threaded operations.
//!
//! Addresses are folded into the accesses that use them, constants into immediates, and a few pairs that compilers
//! like to write (compare and branch, load and extend, push, pop, return) become one operation.

use super::exec::{self as x, *};
use super::mem::{self as m};
use super::t0::{Code, Handler, Site, T0, TEMP, TEMPS, ZERO};
use super::thunk;
use crate::ir::{Block, Op, Opcode, Ref, Ty};
use crate::mode::key;
use std::cell::Cell;
use std::ptr;

/// Temporaries with fixed places.
const DUMMY: u8 = TEMP + 63;
const USABLE: u8 = 60;

const _: () = assert!(TEMPS == 64);

/// An address that has been computed nowhere yet.
#[derive(Clone, Copy)]
struct Parts {
    a: u8,
    b: u8,
    c: u8,
    x: u8,
    disp: u64,
}

#[derive(Clone, Copy)]
enum Temp {
    /// Not defined yet.
    Nothing,
    /// In a slot.
    Slot(u8),
    /// An address to be folded.
    Address(Parts),
}

struct Lower<'a> {
    b: &'a Block,
    out: Vec<T0>,
    temps: Vec<Temp>,
    uses: Vec<u16>,
    next: u8,
    insn: u8,
    sites: &'a [Site],
    thunks: &'a [thunk::Opaque],
    halves: Vec<(u32, T0)>,
}

/// Picks the instance for a width.
macro_rules! by_ty {
    ($ty:expr, |$t:ident| $e:expr) => {
        match $ty {
            Ty::I8 => {
                type $t = u8;
                $e as Handler
            }
            Ty::I16 => {
                type $t = u16;
                $e as Handler
            }
            Ty::I32 => {
                type $t = u32;
                $e as Handler
            }
            Ty::I64 | Ty::V128 => {
                type $t = u64;
                $e as Handler
            }
        }
    };
}

/// Picks the instance for a width, operand form and flags form.
macro_rules! tsf {
    ($ty:expr, $imm:expr, $f:expr, |$t:ident, $s:ident, $fl:ident| $e:expr) => {
        match ($imm, $f) {
            (false, false) => {
                type $s = R;
                const $fl: bool = false;
                by_ty!($ty, |$t| $e)
            }
            (false, true) => {
                type $s = R;
                const $fl: bool = true;
                by_ty!($ty, |$t| $e)
            }
            (true, false) => {
                type $s = I;
                const $fl: bool = false;
                by_ty!($ty, |$t| $e)
            }
            (true, true) => {
                type $s = I;
                const $fl: bool = true;
                by_ty!($ty, |$t| $e)
            }
        }
    };
}

macro_rules! by_cond {
    ($c:expr, |$k:ident| $e:expr) => {
        by_cond!(@ $c, $k, $e, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $c:expr, $k:ident, $e:expr, $($n:literal)*) => {
        match $c & 15 {
            $($n => { const $k: u8 = $n; $e as Handler })*
            _ => unreachable!("masked to four bits"),
        }
    };
}

// Behind the macros, which they use.
mod fused;
mod operands;

impl Lower<'_> {
    fn binary(&mut self, o: &Op, pick: impl Fn(Ty, bool, bool) -> Handler) {
        let a = self.slot(o.a, o.ty);
        let (b, imm, is_imm) = self.source(o.b, o.ty);
        let run = pick(o.ty, is_imm, o.attr.flags());
        let t = T0 { a, b, imm, ..self.blank() };
        self.emit_dst(run, o.dst, t);
    }

    fn unary(&mut self, o: &Op, run: Handler) {
        let a = self.slot(o.a, o.ty);
        let t = T0 { a, b: a, ..self.blank() };
        self.emit_dst(run, o.dst, t);
    }

    fn memory(&mut self, o: &Op, value: Ref, run: Handler) {
        let p = self.parts(o.a);
        self.align(p, o.ty);
        let d = if value == Ref::NONE { DUMMY } else { self.slot(value, o.ty) };
        let t = T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, ..self.blank() };
        let (old, high) = self.dst(o.dst);
        self.emit(run, T0 { y: u16::from(o.attr.0) | u16::from(old) << 8, ..t });
        self.insert_high(old, high);
    }

    /// ALU operation on memory, with an immediate if it fits.
    fn rmw(&mut self, o: &Op, pick: impl Fn(Ty, bool) -> Handler) {
        match self.b.const_value(o.b).map(|v| sign_extend(v, o.ty)) {
            Some(v) if i64::from(v as i32) as u64 == v => {
                let p = self.short_parts(o.a);
                self.align(p, o.ty);
                let imm = p.disp & 0xffff_ffff | v << 32;
                let t = T0 { imm, a: p.a, b: p.b, c: p.c, x: p.x, ..self.blank() };
                let (old, high) = self.dst(o.dst);
                self.emit(pick(o.ty, true), T0 { y: u16::from(o.attr.0) | u16::from(old) << 8, ..t });
                self.insert_high(old, high);
            }
            _ => self.memory(o, o.b, pick(o.ty, false)),
        }
    }

    #[allow(clippy::too_many_lines)]
    fn one(&mut self, o: &Op) {
        let n = self.b.insns.len() as u16;
        let f = o.attr.flags();
        macro_rules! bin {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::bin::<$k, T, S, F>))
            };
        }
        macro_rules! compare {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::cmp::<$k, T, S, F>))
            };
        }
        macro_rules! shift {
            ($k:ident) => {
                self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::shift::<{ x::$k }, T, S, F>))
            };
        }
        macro_rules! eager {
            ($k:ident) => {{
                if o.b == Ref::NONE {
                    let run = tsf!(o.ty, false, f, |T, S, F| x::eager::<$k, T, S, F>);
                    self.unary(o, run)
                } else {
                    self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::eager::<$k, T, S, F>))
                }
            }};
        }
        macro_rules! rmw {
            ($k:ident) => {
                self.rmw(o, |ty, imm| match imm {
                    true => by_ty!(ty, |T| m::rmw::<$k, T, I, true>),
                    false => by_ty!(ty, |T| m::rmw::<$k, T, R, false>),
                })
            };
        }
        macro_rules! rmw_other {
            ($k:ident) => {{
                let run = by_ty!(o.ty, |T| m::rmw_other::<{ m::$k }, T>);
                self.memory(o, o.b, run)
            }};
        }
        match o.op {
            Opcode::Mov if o.ty == Ty::V128 => {
                if let (Some(d), Some(b)) = (o.dst.as_xmm(), o.a.as_xmm()) {
                    let t = T0 { d, b, ..self.blank() };
                    self.emit(x::mov_xmm, t);
                }
            }
            Opcode::Mov => {
                let (b, imm, is_imm) = self.source(o.a, o.ty);
                let run = match is_imm {
                    true => by_ty!(o.ty, |T| x::mov::<T, I>),
                    false => by_ty!(o.ty, |T| x::mov::<T, R>),
                };
                let t = T0 { b, imm, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Zext => {
                let run = match o.from_ty() {
                    Ty::I8 => by_ty!(o.ty, |T| x::zext::<u8, T>),
                    Ty::I16 => by_ty!(o.ty, |T| x::zext::<u16, T>),
                    Ty::I32 => by_ty!(o.ty, |T| x::zext::<u32, T>),
                    Ty::I64 | Ty::V128 => by_ty!(o.ty, |T| x::zext::<u64, T>),
                };
                self.unary(o, run);
            }
            Opcode::Sext => {
                let run = match o.from_ty() {
                    Ty::I8 => by_ty!(o.ty, |T| x::sext::<u8, T>),
                    Ty::I16 => by_ty!(o.ty, |T| x::sext::<u16, T>),
                    Ty::I32 => by_ty!(o.ty, |T| x::sext::<u32, T>),
                    Ty::I64 | Ty::V128 => by_ty!(o.ty, |T| x::sext::<u64, T>),
                };
                self.unary(o, run);
            }
            Opcode::Add => bin!(AddOp),
            Opcode::Sub => bin!(SubOp),
            Opcode::And => bin!(AndOp),
            Opcode::Or => bin!(OrOp),
            Opcode::Xor => bin!(XorOp),
            Opcode::Adc => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::adc::<T, S, false, F>)),
            Opcode::Sbb => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::adc::<T, S, true, F>)),
            Opcode::Cmp => compare!(SubOp),
            Opcode::Test => compare!(AndOp),
            Opcode::Neg => {
                let run = match f {
                    true => by_ty!(o.ty, |T| x::neg::<T, true>),
                    false => by_ty!(o.ty, |T| x::neg::<T, false>),
                };
                self.unary(o, run);
            }
            Opcode::Not => self.unary(o, by_ty!(o.ty, |T| x::not::<T>)),
            Opcode::Inc | Opcode::Dec => {
                let run = match (o.op == Opcode::Dec, f) {
                    (false, false) => by_ty!(o.ty, |T| x::inc::<T, false, false>),
                    (false, true) => by_ty!(o.ty, |T| x::inc::<T, false, true>),
                    (true, false) => by_ty!(o.ty, |T| x::inc::<T, true, false>),
                    (true, true) => by_ty!(o.ty, |T| x::inc::<T, true, true>),
                };
                self.unary(o, run);
            }
            Opcode::Shl => shift!(SHL),
            Opcode::Shr => shift!(SHR),
            Opcode::Sar => shift!(SAR),
            Opcode::Rol => shift!(ROL),
            Opcode::Ror => shift!(ROR),
            Opcode::Rcl => shift!(RCL),
            Opcode::Rcr => shift!(RCR),
            Opcode::Shld | Opcode::Shrd => {
                let a = self.slot(o.a, o.ty);
                let c = self.slot(o.b, o.ty);
                let (b, imm, is_imm) = self.source(o.c, Ty::I8);
                let run = match o.op {
                    Opcode::Shld => tsf!(o.ty, is_imm, f, |T, S, F| x::double::<false, T, S, F>),
                    _ => tsf!(o.ty, is_imm, f, |T, S, F| x::double::<true, T, S, F>),
                };
                let t = T0 { a, b, c, imm, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Mul => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::mul::<false, T, S, F>)),
            Opcode::Imul => self.binary(o, |ty, imm, f| tsf!(ty, imm, f, |T, S, F| x::mul::<true, T, S, F>)),
            Opcode::Umulh | Opcode::Smulh => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let run = match o.op {
                    Opcode::Umulh => by_ty!(o.ty, |T| x::mulh::<false, T>),
                    _ => by_ty!(o.ty, |T| x::mulh::<true, T>),
                };
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Div | Opcode::Idiv => {
                let a = self.slot(o.a, o.ty);
                let run = match o.op {
                    Opcode::Div => by_ty!(o.ty, |T| x::div::<false, T>),
                    _ => by_ty!(o.ty, |T| x::div::<true, T>),
                };
                let t = T0 { a, ..self.blank() };
                self.emit(run, t);
            }
            Opcode::Bt => eager!(BtOp),
            Opcode::Bts => eager!(BtsOp),
            Opcode::Btr => eager!(BtrOp),
            Opcode::Btc => eager!(BtcOp),
            Opcode::Bsf => eager!(BsfOp),
            Opcode::Bsr => eager!(BsrOp),
            Opcode::Lzcnt => eager!(LzcntOp),
            Opcode::Tzcnt => eager!(TzcntOp),
            Opcode::Popcnt => eager!(PopcntOp),
            Opcode::Bswap => eager!(BswapOp),
            Opcode::Andn => eager!(AndnOp),
            Opcode::Blsr => eager!(BlsrOp),
            Opcode::Blsi => eager!(BlsiOp),
            Opcode::Blsmsk => eager!(BlsmskOp),
            Opcode::Bextr => eager!(BextrOp),
            Opcode::Bzhi => eager!(BzhiOp),
            Opcode::Pdep => eager!(PdepOp),
            Opcode::Pext => eager!(PextOp),
            Opcode::Adcx if f => eager!(AdcxOp),
            Opcode::Adox if f => eager!(AdoxOp),
            Opcode::Adcx | Opcode::Adox => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let run = match o.op {
                    Opcode::Adcx => by_ty!(o.ty, |T| x::eager_carry::<AdcxOp, T>),
                    _ => by_ty!(o.ty, |T| x::eager_carry::<AdoxOp, T>),
                };
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Crc32 => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let t = T0 { a, b, ..self.blank() };
                self.emit_dst(by_ty!(o.from_ty(), |T| x::crc32::<T>), o.dst, t);
            }
            Opcode::Setcc => {
                let t = self.blank();
                self.emit_dst(by_cond!(o.imm as u8, |C| x::set::<C>), o.dst, t);
            }
            Opcode::Select => {
                let a = self.slot(o.a, o.ty);
                let b = self.slot(o.b, o.ty);
                let t = T0 { a, b, ..self.blank() };
                let run = by_cond!(o.imm as u8, |C| by_ty!(o.ty, |T| x::select::<C, T>));
                self.emit_dst(run, o.dst, t);
            }
            Opcode::Getf => {
                let t = self.blank();
                self.emit_dst(if o.ty == Ty::I64 { x::get_rflags } else { x::getf }, o.dst, t);
            }
            Opcode::Fence => {
                let t = self.blank();
                self.emit(x::fence, t);
            }
            Opcode::Setf => {
                let a = self.slot(o.a, o.ty);
                let t = T0 { a, ..self.blank() };
                self.emit(x::setf, t);
            }
            Opcode::Ea => self.ea(o),
            Opcode::Ld if o.ty == Ty::V128 => {
                let p = self.parts(o.a);
                let d = o.dst.as_xmm().unwrap_or(0);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, y: o.attr.0.into(), ..self.blank() };
                self.emit(m::ld128, t);
            }
            Opcode::Ld | Opcode::LdW => {
                let run = match o.op {
                    Opcode::Ld => by_ty!(o.ty, |T| m::ld::<T>),
                    _ => by_ty!(o.ty, |T| m::ldw::<T>),
                };
                let p = self.parts(o.a);
                self.align(p, o.ty);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, y: o.attr.0.into(), ..self.blank() };
                self.emit_dst(run, o.dst, t);
            }
            Opcode::St if o.ty == Ty::V128 => {
                let p = self.parts(o.a);
                let d = o.b.as_xmm().unwrap_or(0);
                let t =
                    T0 { imm: p.disp, a: p.a, b: p.b, c: p.c, x: p.x, d, y: o.attr.0.into(), ..self.blank() };
                self.emit(m::st128, t);
            }
            Opcode::St => match self.b.const_value(o.b).map(|v| sign_extend(v, o.ty)) {
                Some(v) if i64::from(v as i32) as u64 == v => {
                    let p = self.short_parts(o.a);
                    self.align(p, o.ty);
                    let imm = p.disp & 0xffff_ffff | v << 32;
                    let t = T0 { imm, a: p.a, b: p.b, c: p.c, x: p.x, y: o.attr.0.into(), ..self.blank() };
                    self.emit(by_ty!(o.ty, |T| m::st::<T, I, true>), t);
                }
                _ => {
                    let d = self.slot(o.b, o.ty);
                    let p = self.parts(o.a);
                    self.align(p, o.ty);
                    let t = T0 {
                        imm: p.disp,
                        a: p.a,
                        b: p.b,
                        c: p.c,
                        x: p.x,
                        d,
                        y: o.attr.0.into(),
                        ..self.blank()
                    };
                    self.emit(by_ty!(o.ty, |T| m::st::<T, R, false>), t);
                }
            },
            Opcode::RmwAdd => rmw!(AddOp),
            Opcode::RmwSub => rmw!(SubOp),
            Opcode::RmwAnd => rmw!(AndOp),
            Opcode::RmwOr => rmw!(OrOp),
            Opcode::RmwXor => rmw!(XorOp),
            Opcode::RmwAdc => rmw_other!(ADC),
            Opcode::RmwSbb => rmw_other!(SBB),
            Opcode::RmwInc => rmw_other!(INC),
            Opcode::RmwDec => rmw_other!(DEC),
            Opcode::RmwNeg => rmw_other!(NEG),
            Opcode::RmwNot => rmw_other!(NOT),
            Opcode::RmwXchg => rmw_other!(XCHG),
            Opcode::RmwBts => rmw_other!(BTS),
            Opcode::RmwBtr => rmw_other!(BTR),
            Opcode::RmwBtc => rmw_other!(BTC),
            Opcode::RmwCmpxchg => {
                // `b` is rAX by construction.
                self.memory(o, o.c, by_ty!(o.ty, |T| m::cmpxchg::<T>));
            }
            Opcode::RmwCmpxchg2 => {
                let run: Handler = if o.ty == Ty::I64 { m::cmpxchg2::<true> } else { m::cmpxchg2::<false> };
                self.memory(o, Ref::NONE, run);
            }
            Opcode::ChkSeg => {
                let a = self.slot(o.a, Ty::I32);
                let t = T0 { a, imm: o.imm.into(), ..self.blank() };
                self.emit(x::chk_seg, t);
            }
            Opcode::ChkRip => {
                let a = self.slot(o.a, Ty::I64);
                let t = T0 { a, ..self.blank() };
                self.emit(x::chk_rip, t);
            }
            Opcode::Helper => {
                let [a, b, c] = [o.a, o.b, o.c].map(|r| self.slot(r, Ty::I64));
                let imm = (&raw const self.sites[o.imm as usize]) as u64;
                let t = T0 { a, b, c, imm, y: o.attr.0.into(), ..self.blank() };
                self.emit(x::helper, t);
            }
            Opcode::X86 => {
                let a = self.slot(o.a, Ty::I64);
                let imm = (&raw const self.thunks[o.imm as usize]) as u64;
                let t = T0 { a, imm, y: o.attr.0.into(), ..self.blank() };
                self.emit(thunk::run, t);
            }
            Opcode::Br => {
                let t = T0 { y: n, ..self.blank() };
                self.emit(by_cond!(o.imm as u8, |C| x::br::<C>), t);
            }
            Opcode::Brnz => {
                let a = self.slot(o.c, o.ty);
                let t = T0 { a, y: n, ..self.blank() };
                self.emit(by_ty!(o.ty, |T| x::brnz::<T>), t);
            }
            Opcode::Jmp => {
                let t = T0 { y: n, ..self.blank() };
                self.emit(x::jmp, t);
            }
            Opcode::JmpInd => {
                let a = self.slot(o.a, Ty::I64);
                let t = T0 { a, y: n, ..self.blank() };
                self.emit(x::jmp_indirect, t);
            }
            Opcode::Exit => {
                let imm = self.b.const_value(o.a).unwrap_or(0);
                let t = T0 { imm, y: n, ..self.blank() };
                self.emit(x::leave, t);
            }
            Opcode::Raise => {
                let t = T0 { imm: o.imm.into(), ..self.blank() };
                self.emit(x::raise, t);
            }
        }
    }

    fn ea(&mut self, o: &Op) {
        let mut disp = i64::from(o.imm as i32) as u64;
        let a = match self.b.const_value(o.a) {
            Some(v) => {
                disp = disp.wrapping_add(v);
                ZERO
            }
            None => self.slot(o.a, o.ty),
        };
        let b = self.slot(o.b, o.ty);
        let c = self.slot(o.c, Ty::I64);
        let sx = o.attr.scale();
        let t = T0 { imm: disp, a, b, c, x: sx, ..self.blank() };
        match o.dst.as_temp() {
            Some(n) if o.ty == Ty::I64 => {
                self.temps[n as usize] = Temp::Address(Parts { a, b, c, x: sx, disp });
            }
            Some(_) => {
                let t = T0 { y: u16::from(self.b.key & key::L64 != 0), ..t };
                self.emit_dst(by_ty!(o.ty, |T| x::ea::<T, false>), o.dst, t);
            }
            None => self.emit_dst(by_ty!(o.ty, |T| x::lea::<T>), o.dst, t),
        }
    }
}

fn sign_extend(v: u64, ty: Ty) -> u64 {
    match ty {
        Ty::I8 => i64::from(v as i8) as u64,
        Ty::I16 => i64::from(v as i16) as u64,
        Ty::I32 => i64::from(v as i32) as u64,
        Ty::I64 | Ty::V128 => v,
    }
}

/// Makes a block ready to run.
pub(crate) fn lower(
    b: &Block,
    arena: Option<&mut thunk::Arena>,
    index_key: u32,
    pa2: Option<u64>,
) -> Box<Code> {
    let lens: Box<[u8]> = b.insns.iter().map(|i| i.len).collect();
    let mut arena = arena;
    let thunks: Box<[thunk::Opaque]> =
        b.opaques.iter().map(|o| thunk::prepare(arena.as_deref_mut(), &o.bytes, b.key)).collect();
    let user = |n: usize| b.ops.iter().find(|o| o.op == Opcode::Helper && o.imm as usize == n);
    let sites: Box<[Site]> =
        (0..b.calls.len()).map(|n| Site::new(b, n, user(n).map_or(0, |o| o.insn))).collect();
    let mut uses = vec![0u16; b.temps as usize];
    for o in &b.ops {
        for r in [o.a, o.b, o.c] {
            if let Some(t) = r.as_temp() {
                uses[t as usize] += 1;
            }
        }
    }
    let mut l = Lower {
        b,
        out: Vec::with_capacity(b.ops.len() + 2),
        temps: vec![Temp::Nothing; b.temps as usize],
        uses,
        next: 0,
        insn: 0,
        sites: &sites,
        thunks: &thunks,
        halves: Vec::new(),
    };
    let mut at = 0;
    while at < b.ops.len() {
        let o = b.ops[at];
        if o.insn != l.insn {
            l.insn = o.insn;
            l.next = 0;
        }
        match l.fused(at) {
            0 => {
                l.one(&o);
                at += 1;
            }
            n => at += n,
        }
    }
    let mut target = [0; 2];
    if let Some(last) = b.ops.last() {
        for (t, r) in target.iter_mut().zip([last.a, last.b]) {
            *t = b.const_value(r).unwrap_or(0);
        }
    }
    let (out, halves) = (l.out, l.halves);
    let ops = out.into_boxed_slice();
    let entry = Cell::new(ops.as_ptr());
    Box::new(Code {
        entry,
        rip: b.va,
        n: b.insns.len() as u32,
        key: b.key,
        target,
        link: [const { Cell::new(ptr::null()) }; 2],
        host: b.pa as usize,
        index_key,
        pa2,
        len: b.len(),
        lens,
        ops,
        sites,
        thunks,
        halves: halves.into_boxed_slice(),
        preds: Cell::new(Vec::new()),
    })
}

#[cfg(test)]
mod tests;
