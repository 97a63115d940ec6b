//! Known answers, and single and double precision against the compiler's own arithmetic.
use super::*;
use crate::testbed::Numbers;

fn rounded(mxcsr: u32) -> Fp {
    Fp::of_mxcsr(mxcsr)
}

/// A double with an exponent near the middle or at an end.
fn double(r: &mut Numbers) -> u64 {
    let v = r.bits();
    let e = match v & 3 {
        0 => r.bits() % 4,
        1 => 2043 + r.bits() % 4,
        _ => 1003 + r.bits() % 40,
    };
    v & 0x800f_ffff_ffff_ffff | e << 52
}

#[test]
fn doubles_are_computed_as_the_compiler_does() {
    let mut r = Numbers(0x5eed);
    for _ in 0..20_000 {
        let (a, b, c) = (double(&mut r), double(&mut r), double(&mut r));
        let [x, y, z] = [a, b, c].map(f64::from_bits);
        let [m, n, o] = [a, b, c].map(|v| unpack(&F64, v));
        if m.is_nan() || n.is_nan() || o.is_nan() {
            continue;
        }
        let check = |name: &str, got: Num, want: f64| {
            let got = f64::from_bits(pack(&F64, &got));
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{name} {x:e} {y:e} {z:e}: {got:e} {want:e}"
            );
        };
        let mut fp = rounded(0x1f80);
        check("add", fp.add(&F64, 53, m, n), x + y);
        check("mul", fp.mul(&F64, 53, m, n), x * y);
        check("div", fp.div(&F64, 53, m, n), x / y);
        check("sqrt", fp.sqrt(&F64, 53, m), x.sqrt());
        check("fma", fp.fma(&F64, m, n, o), x.mul_add(y, z));
        let single = fp.convert(&F32, 24, m);
        assert_eq!(pack(&F32, &single) as u32, (x as f32).to_bits());
    }
}

#[test]
fn each_exception_shows_its_flag() {
    let one = unpack(&F32, 0x3f80_0000);
    let max = unpack(&F32, 0x7f7f_ffff);
    let tiny = unpack(&F32, 1);
    let three = unpack(&F32, 0x4040_0000);
    let flags = |f: &dyn Fn(&mut Fp) -> Num| {
        let mut fp = rounded(0x1f80);
        f(&mut fp);
        fp.flags
    };
    assert_eq!(flags(&|fp| fp.div(&F32, 24, one, three)), flag::PE);
    assert_eq!(flags(&|fp| fp.div(&F32, 24, one, Num::zero(false))), flag::ZE);
    assert_eq!(flags(&|fp| fp.div(&F32, 24, Num::zero(true), Num::zero(false))), flag::IE);
    assert_eq!(flags(&|fp| fp.add(&F32, 24, max, max)), flag::OE | flag::PE);
    assert_eq!(flags(&|fp| fp.mul(&F32, 24, tiny, tiny)), flag::DE | flag::UE | flag::PE);
    assert_eq!(flags(&|fp| fp.add(&F32, 24, tiny, tiny)), flag::DE);
    assert_eq!(flags(&|fp| fp.sqrt(&F32, 24, one.negated())), flag::IE);
}

#[test]
fn tiny_results_are_flushed_and_tiny_operands_count_as_zero_where_asked() {
    let tiny = unpack(&F32, 0x0080_0000);
    let half = unpack(&F32, 0x3f00_0000);
    let mut fp = rounded(0x9f80);
    assert_eq!(pack(&F32, &fp.mul(&F32, 24, tiny.negated(), half)), 0x8000_0000);
    assert_eq!(fp.flags, flag::UE | flag::PE);
    let mut fp = rounded(0x1fc0);
    assert_eq!(pack(&F32, &fp.add(&F32, 24, unpack(&F32, 5), half)), 0x3f00_0000);
    assert_eq!(fp.flags, 0);
}

#[test]
fn an_unmasked_overflow_wraps_the_exponent() {
    let mut fp = Fp::of_fcw(0x377);
    let max = unpack80(!0, 0x7ffe);
    let n = fp.mul(&F80, 64, max, max);
    assert_eq!(pack80(&n), (0xffff_ffff_ffff_fffe, (16383 * 2 + 1 - 24576 + 16383) as u16));
    assert_eq!(fp.flags, flag::OE | flag::PE);
}

#[test]
fn integers_that_do_not_fit_are_invalid() {
    let mut fp = rounded(0x1f80);
    assert_eq!(fp.to_int(unpack(&F64, 0x41df_ffff_ffe0_0000), 32), None);
    assert_eq!(fp.flags, flag::IE);
    let mut fp = rounded(0x1f80);
    assert_eq!(fp.to_int(unpack(&F64, (-2_147_483_648.0f64).to_bits()), 32), Some(i64::from(i32::MIN)));
    assert_eq!(fp.to_int(unpack(&F64, 2.5f64.to_bits()), 64), Some(2));
    assert_eq!(fp.flags, flag::PE);
}

#[test]
fn transcendental_functions_agree_with_doubles() {
    let mut r = Numbers(0x7419);
    for _ in 0..2000 {
        let x = (r.bits() >> 11) as f64 / (1u64 << 53) as f64 * 1.9 - 0.95;
        let y = (r.bits() >> 11) as f64 / (1u64 << 53) as f64 * 20.0 + 0.01;
        let close = |name: &str, n: Num, want: f64| {
            let mut fp = rounded(0x1f80);
            let got = f64::from_bits(pack(&F64, &fp.convert(&F64, 53, n)));
            assert!((got - want).abs() <= want.abs() * 1e-14 + 1e-300, "{name} {x} {y}: {got} {want}");
        };
        let mut fp = Fp::of_fcw(0x37f);
        let (m, n) = (unpack(&F64, x.to_bits()), unpack(&F64, y.to_bits()));
        close("f2xm1", trig::f2xm1(&mut fp, &m), (x * std::f64::consts::LN_2).exp_m1());
        close("sin", trig::sin(&mut fp, &n), y.sin());
        close("cos", trig::cos(&mut fp, &m), x.cos());
        close("tan", trig::tan(&mut fp, &m), x.tan());
        close("atan", trig::fpatan(&mut fp, &m, &n), x.atan2(y));
        close("log", trig::fyl2x(&mut fp, &m, &n), x * y.log2());
    }
}
