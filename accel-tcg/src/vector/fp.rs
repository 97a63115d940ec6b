//! SSE and AVX floating point: lanes through [`crate::float`], MXCSR, and the rules for NaNs (SDM vol. 1, 4.8.3.5 and
//! 11.5; vol. 2 for each instruction).

use super::{Insn, Opnd, Regs, Stop, lane, low64, set_lane};
use crate::float::{self, F16, F32, F64, Format, Fp, Num, Order, Rounding, flag, pack, unpack};
use crate::mutants;

fn format<const N: usize>() -> &'static Format {
    if N == 4 { &F32 } else { &F64 }
}

fn begin(r: &Regs<'_>) -> Fp {
    Fp::of_mxcsr(r.fpu.mxcsr())
}

/// Puts the flags into MXCSR; an unmasked exception stops the instruction before its result.
fn finish(r: &mut Regs<'_>, fp: &Fp) -> Result<(), Stop> {
    let mut raised = fp.flags & 0x3f;
    for (n, m) in [
        mutants::SSE_NO_IE,
        mutants::SSE_NO_DE,
        mutants::SSE_NO_ZE,
        mutants::SSE_NO_OE,
        mutants::SSE_NO_UE,
        mutants::SSE_NO_PE,
    ]
    .into_iter()
    .enumerate()
    {
        raised &= !mutants::pick(m, 0, 1 << n);
    }
    let unmasked = raised & !fp.masks;
    // Exceptions of the operands end it before any of the result come up.
    let shown = if unmasked & 7 != 0 && !mutants::on(mutants::SSE_LATE_FLAGS) { raised & 7 } else { raised };
    r.fpu.set_mxcsr(r.fpu.mxcsr() | shown);
    if unmasked != 0 && !mutants::on(mutants::SSE_NO_XM) { Err(Stop::Simd) } else { Ok(()) }
}

/// The NaN that comes of operands of which one at least is a NaN: the first one, made quiet.
fn propagate(fp: &mut Fp, x: Num, y: Num) -> Num {
    if (x.is_snan() || y.is_snan()) && !mutants::on(mutants::FP_SNAN_QUIET) {
        fp.flags |= flag::IE;
    }
    if x.is_nan() && !(mutants::on(mutants::FP_NAN_SECOND) && y.is_nan()) { x.quieted() } else { y.quieted() }
}

/// Addition.
pub const ADD: u8 = 0;
/// Subtraction.
pub const SUB: u8 = 1;
/// Multiplication.
pub const MUL: u8 = 2;
/// Division.
pub const DIV: u8 = 3;
/// Minimum.
pub const MIN: u8 = 4;
/// Maximum.
pub const MAX: u8 = 5;
/// Square root of the second.
pub const SQRT: u8 = 6;
/// Subtraction in even lanes, addition in odd ones.
pub const ADDSUB: u8 = 7;

/// Min and max: the second operand wins ties and NaNs.
fn extreme(f: &Format, fp: &mut Fp, greater: bool, a: u64, b: u64) -> u64 {
    let (x, y) = (unpack(f, a), unpack(f, b));
    if x.is_nan() || y.is_nan() {
        fp.flags |= flag::IE;
        return pack(f, &fp.flush(y));
    }
    let (x, y) = (fp.operand(x), fp.operand(y));
    let wanted = if greater { Order::Greater } else { Order::Less };
    let order = fp.compare(x, y);
    let first = order == wanted || order == Order::Equal && mutants::on(mutants::FP_MIN_TIE);
    pack(f, if first { &x } else { &y })
}

fn arith(f: &Format, fp: &mut Fp, op: u8, a: u64, b: u64) -> u64 {
    if op == MIN || op == MAX {
        return extreme(f, fp, op == MAX, a, b);
    }
    let y = unpack(f, b);
    if op == SQRT {
        let n = if y.is_nan() { propagate(fp, y, y) } else { fp.sqrt(f, f.prec, y) };
        return pack(f, &n);
    }
    let x = unpack(f, a);
    if x.is_nan() || y.is_nan() {
        return pack(f, &propagate(fp, x, y));
    }
    let n = match op {
        ADD => fp.add(f, f.prec, x, y),
        SUB => fp.add(f, f.prec, x, y.negated()),
        MUL => fp.mul(f, f.prec, x, y),
        _ => fp.div(f, f.prec, x, y),
    };
    pack(f, &n)
}

/// A packed operation on lanes of `N` bytes.
pub fn packed<const N: usize, const OP: u8>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (a, b) = if OP == SQRT {
        let b = r.vector(i.op[1]);
        (b, b)
    } else {
        i.sources(r)
    };
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / N {
        let op = match OP {
            ADDSUB if n & 1 == mutants::pick(mutants::FP_ADDSUB, 0, 1) => SUB,
            ADDSUB => ADD,
            op => op,
        };
        set_lane(&mut out, N, n, arith(format::<N>(), &mut fp, op, lane(&a, N, n), lane(&b, N, n)));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// A scalar operation: the other lanes come from the first source.
pub fn scalar<const N: usize, const OP: u8>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (mut a, b) = i.sources(r);
    let v = arith(format::<N>(), &mut fp, OP, lane(&a, N, 0), lane(&b, N, 0));
    finish(r, &fp)?;
    if mutants::on(mutants::FP_SCALAR_UPPER) {
        a = [0; 32];
    }
    set_lane(&mut a, N, 0, v);
    i.put(r, &a);
    Ok(())
}

/// HADD and HSUB.
pub fn horizontal<const N: usize, const OP: u8>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (a, b) = i.sources(r);
    let mut out = [0; 32];
    let per = 16 / N;
    for n in 0..usize::from(i.len) / N {
        let (block, k) = (n & !(per - 1), n & (per - 1));
        let (v, at) = if k < per / 2 { (&a, k * 2) } else { (&b, k * 2 - per) };
        let v = if mutants::on(mutants::FP_HADD_ORDER) { &a } else { v };
        let (x, y) = (lane(v, N, block + at), lane(v, N, block + at + 1));
        set_lane(&mut out, N, n, arith(format::<N>(), &mut fp, OP, x, y));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// DPPS and DPPD: products, then sums of pairs, then (DPPS) sums of those. Each step raises its own exceptions.
pub fn dot<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let f = format::<N>();
    let mut fp = begin(r);
    let (a, b) = i.sources(r);
    let per = 16 / N;
    let lanes = usize::from(i.len) / N;
    let mut t = [0; 8];
    for (n, t) in t.iter_mut().enumerate().take(lanes) {
        if i.imm >> (4 + n % per) & 1 != 0 {
            *t = arith(f, &mut fp, MUL, lane(&a, N, n), lane(&b, N, n));
        }
    }
    finish(r, &fp)?;
    let mut width = per;
    while width > 1 {
        fp.flags = 0;
        for block in 0..lanes / per {
            for n in 0..width / 2 {
                let k = block * per + 2 * n;
                t[block * per + n] = arith(f, &mut fp, ADD, t[k], t[k + 1]);
            }
        }
        finish(r, &fp)?;
        width /= 2;
    }
    let mut out = [0; 32];
    for n in (0..lanes).filter(|n| i.imm >> (n % per) & 1 != 0 || mutants::on(mutants::FP_DP_MASK)) {
        set_lane(&mut out, N, n, t[n / per * per]);
    }
    i.put(r, &out);
    Ok(())
}

/// For each predicate: true if greater, less, equal, unordered; and whether quiet NaNs signal.
fn predicate(imm: u8, o: Order) -> bool {
    const TRUTH: [u8; 16] = [
        0b0010, 0b0100, 0b0110, 0b0001, 0b1101, 0b1011, 0b1001, 0b1110, 0b0011, 0b0101, 0b0111, 0b0000,
        0b1100, 0b1010, 0b1000, 0b1111,
    ];
    let bit = match o {
        Order::Greater => 8,
        Order::Less => 4,
        Order::Equal => 2,
        Order::Unordered => 1,
    };
    TRUTH[usize::from(imm & 15)] & bit != 0
        && !(mutants::on(mutants::FP_CMP_UNORDERED) && imm & 15 == 4 && bit == 1)
}

fn signals(imm: u8) -> bool {
    (0x6666 >> (imm & 15) & 1 != 0) != (imm & 16 != mutants::pick(mutants::FP_CMP_QUIET, 0, 16))
}

fn compare_lane(f: &Format, fp: &mut Fp, imm: u8, a: u64, b: u64) -> bool {
    let (x, y) = (unpack(f, a), unpack(f, b));
    if x.is_nan() || y.is_nan() {
        if signals(imm) || x.is_snan() || y.is_snan() {
            fp.flags |= flag::IE;
        }
        return predicate(imm, Order::Unordered);
    }
    let (x, y) = (fp.operand(x), fp.operand(y));
    predicate(imm, fp.compare(x, y))
}

/// CMPPS and CMPPD.
pub fn compare<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (a, b) = i.sources(r);
    let imm = i.imm & if i.vex { 31 } else { 7 };
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / N {
        let on = compare_lane(format::<N>(), &mut fp, imm, lane(&a, N, n), lane(&b, N, n));
        set_lane(&mut out, N, n, if on { !0 } else { 0 });
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// CMPSS and CMPSD.
pub fn compare_scalar<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (mut a, b) = i.sources(r);
    let imm = i.imm & if i.vex { 31 } else { 7 };
    let on = compare_lane(format::<N>(), &mut fp, imm, lane(&a, N, 0), lane(&b, N, 0));
    finish(r, &fp)?;
    set_lane(&mut a, N, 0, if on { !0 } else { 0 });
    i.put(r, &a);
    Ok(())
}

/// COMISS (`QUIET` false) and UCOMISS.
pub fn comi<const N: usize, const QUIET: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let f = format::<N>();
    let (x, y) = (unpack(f, lane(&r.vector(i.op[0]), N, 0)), unpack(f, lane(&r.vector(i.op[1]), N, 0)));
    let order = if x.is_nan() || y.is_nan() {
        if !QUIET || mutants::on(mutants::FP_UCOMI) || x.is_snan() || y.is_snan() {
            fp.flags |= flag::IE;
        }
        Order::Unordered
    } else {
        let (x, y) = (fp.operand(x), fp.operand(y));
        fp.compare(x, y)
    };
    finish(r, &fp)?;
    r.flags = order_flags(order);
    Ok(())
}

/// ZF, PF and CF as comparisons set them.
pub fn order_flags(o: Order) -> u64 {
    match o {
        Order::Greater => 0,
        Order::Less => 1,
        Order::Equal => 0x40,
        Order::Unordered => 0x45,
    }
}

/// RCPPS (`ROOT` false) and RSQRTPS, all lanes.
pub fn approx<const ROOT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let a = r.vector(i.op[1]);
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / 4 {
        set_lane(&mut out, 4, n, approximate::<ROOT>(lane(&a, 4, n)));
    }
    i.put(r, &out);
    Ok(())
}

fn approximate<const ROOT: bool>(x: u64) -> u64 {
    let x = x as u32;
    u64::from(if ROOT { float::approx::rsqrt(x) } else { float::approx::rcp(x) })
}

/// RCPSS and RSQRTSS.
pub fn approx_scalar<const ROOT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let (mut a, b) = i.sources(r);
    let v = approximate::<ROOT>(lane(&b, 4, 0));
    set_lane(&mut a, 4, 0, v);
    i.put(r, &a);
    Ok(())
}

fn round_lane(f: &Format, fp: &mut Fp, imm: u8, a: u64) -> u64 {
    let x = unpack(f, a);
    if x.is_nan() {
        return pack(f, &propagate(fp, x, x));
    }
    let x = fp.flush(x);
    let before = fp.flags;
    let n = fp.integral(x);
    if imm & 8 != 0 && !mutants::on(mutants::FP_ROUND_PE) {
        fp.flags = before;
    }
    pack(f, &n)
}

fn rounding(fp: &mut Fp, imm: u8) {
    if imm & 4 == 0 && !mutants::on(mutants::FP_ROUND_MODE) {
        fp.rounding = Rounding::of(imm.into());
    }
}

/// ROUNDPS and ROUNDPD.
pub fn round<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    rounding(&mut fp, i.imm);
    let a = r.vector(i.op[1]);
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / N {
        set_lane(&mut out, N, n, round_lane(format::<N>(), &mut fp, i.imm, lane(&a, N, n)));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// ROUNDSS and ROUNDSD.
pub fn round_scalar<const N: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    rounding(&mut fp, i.imm);
    let (mut a, b) = i.sources(r);
    let v = round_lane(format::<N>(), &mut fp, i.imm, lane(&b, N, 0));
    finish(r, &fp)?;
    set_lane(&mut a, N, 0, v);
    i.put(r, &a);
    Ok(())
}

/// Products and sums: the forms by which operand is the addend.
pub const FORM_132: u8 = 0;
/// Second by first plus third.
pub const FORM_213: u8 = 1;
/// Second by third plus first.
pub const FORM_231: u8 = 2;
/// `a * b + c`
pub const MADD: u8 = 0;
/// `a * b - c`
pub const MSUB: u8 = 1;
/// `-(a * b) + c`
pub const NMADD: u8 = 2;
/// `-(a * b) - c`
pub const NMSUB: u8 = 3;
/// Subtracts in even lanes, adds in odd ones.
pub const MADDSUB: u8 = 4;
/// Adds in even lanes, subtracts in odd ones.
pub const MSUBADD: u8 = 5;

fn fma_lane(f: &Format, fp: &mut Fp, op: u8, a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (unpack(f, a), unpack(f, b), unpack(f, c));
    if a.is_nan() || b.is_nan() || c.is_nan() {
        if a.is_snan() || b.is_snan() || c.is_snan() {
            fp.flags |= flag::IE;
        }
        // An invalid product beside a quiet NaN is none.
        let n = if a.is_nan() {
            a
        } else if b.is_nan() {
            b
        } else {
            c
        };
        return pack(f, &n.quieted());
    }
    let a = if op & 2 != 0 && !mutants::on(mutants::FP_FMA_NEGATE) { a.negated() } else { a };
    let c = if op & 1 != 0 { c.negated() } else { c };
    pack(f, &fp.fma(f, a, b, c))
}

fn fma_op(op: u8, n: usize) -> u8 {
    match (op, n & 1) {
        (MADDSUB, 0) | (MSUBADD, 1) => MSUB,
        (MADDSUB | MSUBADD, _) => MADD,
        _ => op,
    }
}

fn fma_order<const FORM: u8>(x: u64, y: u64, z: u64) -> (u64, u64, u64) {
    match FORM {
        FORM_132 => (x, z, y),
        FORM_213 if !mutants::on(mutants::FP_FMA_FORM) => (y, x, z),
        _ => (y, z, x),
    }
}

/// Fused multiply-add of all lanes.
pub fn fma<const N: usize, const FORM: u8, const OP: u8>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let v = [r.vector(i.op[0]), r.vector(i.op[1]), r.vector(i.op[2])];
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / N {
        let (a, b, c) = fma_order::<FORM>(lane(&v[0], N, n), lane(&v[1], N, n), lane(&v[2], N, n));
        set_lane(&mut out, N, n, fma_lane(format::<N>(), &mut fp, fma_op(OP, n), a, b, c));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// Fused multiply-add of the lowest lane.
pub fn fma_scalar<const N: usize, const FORM: u8, const OP: u8>(
    i: &Insn,
    r: &mut Regs<'_>,
) -> Result<(), Stop> {
    let mut fp = begin(r);
    let v = [r.vector(i.op[0]), r.vector(i.op[1]), r.vector(i.op[2])];
    let (a, b, c) = fma_order::<FORM>(lane(&v[0], N, 0), lane(&v[1], N, 0), lane(&v[2], N, 0));
    let x = fma_lane(format::<N>(), &mut fp, OP, a, b, c);
    finish(r, &fp)?;
    let mut out = v[0];
    set_lane(&mut out, N, 0, x);
    i.put(r, &out);
    Ok(())
}

fn convert_lane(from: &Format, to: &Format, fp: &mut Fp, a: u64) -> u64 {
    let x = unpack(from, a);
    if x.is_nan() {
        return pack(to, &propagate(fp, x, x));
    }
    pack(to, &fp.convert(to, to.prec, x))
}

/// CVTPS2PD, CVTPD2PS, VCVTPH2PS: lanes of `F` bytes to lanes of `T`.
pub fn convert<const F: usize, const T: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let a = r.vector(i.last());
    let from: &Format = if F == 2 { &F16 } else { format::<F>() };
    if F == 2 {
        // Denormal halves are ordinary numbers here.
        fp.daz = false;
    }
    let before = fp.flags;
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / F.max(T) {
        set_lane(&mut out, T, n, convert_lane(from, format::<T>(), &mut fp, lane(&a, F, n)));
    }
    if F == 2 && !mutants::on(mutants::FP_CVT_HALF_DENORMAL) {
        fp.flags &= !flag::DE | before;
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// VCVTPS2PH.
pub fn to_half(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    rounding(&mut fp, i.imm);
    fp.ftz = false;
    let a = r.vector(i.op[1]);
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / 4 {
        set_lane(&mut out, 2, n, convert_lane(&F32, &F16, &mut fp, lane(&a, 4, n)));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// CVTSS2SD and CVTSD2SS.
pub fn convert_scalar<const F: usize, const T: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let (mut a, b) = i.sources(r);
    let v = convert_lane(format::<F>(), format::<T>(), &mut fp, lane(&b, F, 0));
    finish(r, &fp)?;
    set_lane(&mut a, T, 0, v);
    i.put(r, &a);
    Ok(())
}

fn from_int_lane(f: &Format, fp: &mut Fp, v: i64) -> u64 {
    let n = Num::from_int(v < 0, v.unsigned_abs());
    pack(f, &fp.convert(f, f.prec, n))
}

/// CVTDQ2PS, CVTDQ2PD and CVTPI2PD: from lanes of four bytes.
pub fn from_dwords<const T: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.uses_mmx() && i.op[1] != Opnd::Mem {
        r.enter_mmx();
    }
    let mut fp = begin(r);
    let a = r.vector(i.op[1]);
    let mut out = [0; 32];
    for n in 0..usize::from(i.len) / T {
        let v = lane(&a, 4, n) as i32;
        set_lane(&mut out, T, n, from_int_lane(format::<T>(), &mut fp, v.into()));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// CVTPI2PS: two lanes, the others stay.
pub fn pi2ps(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    if i.op[1] != Opnd::Mem {
        r.enter_mmx();
    }
    let mut fp = begin(r);
    let (a, mut out) = (r.vector(i.op[1]), r.vector(i.op[0]));
    for n in 0..2 {
        let v = lane(&a, 4, n) as i32;
        set_lane(&mut out, 4, n, from_int_lane(&F32, &mut fp, v.into()));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// CVTSI2SS and CVTSI2SD.
pub fn from_gpr<const T: usize>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    let size = match i.last() {
        Opnd::Gpr(_, size) => size,
        _ => i.mem,
    };
    let (mut a, b) = i.sources(r);
    let raw = low64(&b);
    let v = if size == 8 { raw as i64 } else { i64::from(raw as i32) };
    let x = from_int_lane(format::<T>(), &mut fp, v);
    finish(r, &fp)?;
    set_lane(&mut a, T, 0, x);
    i.put(r, &a);
    Ok(())
}

fn to_int_lane(f: &Format, fp: &mut Fp, a: u64, bits: u32) -> u64 {
    let x = fp.flush(unpack(f, a));
    match fp.to_int(x, bits) {
        Some(v) => v as u64,
        None => mutants::pick(mutants::FP_CVT_INDEFINITE, 1 << (bits - 1), 0),
    }
}

/// CVTPS2DQ, CVTPD2DQ, CVTPS2PI, CVTPD2PI and the truncating ones.
pub fn to_dwords<const F: usize, const CUT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mmx = matches!(i.op[0], Opnd::Mm(_));
    if mmx {
        r.enter_mmx();
    }
    let mut fp = begin(r);
    if CUT && !mutants::on(mutants::FP_CVTT) {
        fp.rounding = Rounding::Zero;
    }
    let a = r.vector(i.op[1]);
    let lanes = if mmx { 2 } else { usize::from(i.len) / F };
    let mut out = [0; 32];
    for n in 0..lanes {
        set_lane(&mut out, 4, n, to_int_lane(format::<F>(), &mut fp, lane(&a, F, n), 32));
    }
    finish(r, &fp)?;
    i.put(r, &out);
    Ok(())
}

/// CVTSS2SI, CVTSD2SI and the truncating ones.
pub fn to_gpr<const F: usize, const CUT: bool>(i: &Insn, r: &mut Regs<'_>) -> Result<(), Stop> {
    let mut fp = begin(r);
    if CUT && !mutants::on(mutants::FP_CVTT) {
        fp.rounding = Rounding::Zero;
    }
    let Opnd::Gpr(n, size) = i.op[0] else { return Err(Stop::Undefined) };
    let v = to_int_lane(format::<F>(), &mut fp, lane(&r.vector(i.op[1]), F, 0), u32::from(size) * 8);
    finish(r, &fp)?;
    r.set_gpr(n, size, v);
    Ok(())
}
