//! The x87 unit by its own instructions: double and extended numbers, the register stack, integers, comparisons.
//! Transcendental functions are left out, since processors round them differently.

use core::arch::asm;

use super::bench::{Bench, Rng, Test, everywhere, mix};

macro_rules! tests {
    ($($name:literal => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "x87", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "polynomial" => polynomial, "dot" => dot, "divide" => divide, "root" => root, "exchange" => exchange,
    "integers" => integers, "extended" => extended, "compare" => compare, "rounding" => rounding,
}

fn numbers(seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..256).map(|_| rng.unit() + 0.25).collect()
}

/// Horner's scheme on the register stack.
fn polynomial(b: &mut Bench) -> u64 {
    let c: [f64; 8] = [0.5, -0.25, 0.125, 0.3, -0.7, 0.9, -0.1, 0.05];
    let mut x = 0.1f64;
    let mut total = 0.0f64;
    for _ in 0..b.n(700_000) {
        // SAFETY: reads eight coefficients and `x`, adds to `total`, and leaves the x87 stack empty.
        unsafe {
            asm!(
                "fld qword ptr [{x}]",
                "fld qword ptr [{c}]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 8]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 16]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 24]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 32]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 40]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 48]",
                "fmul st, st(1)", "fadd qword ptr [{c} + 56]",
                "fadd qword ptr [{t}]",
                "fstp qword ptr [{t}]",
                "fstp st(0)",
                x = in(reg) &x, c = in(reg) c.as_ptr(), t = in(reg) &mut total,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        x = if x > 0.9 { x - 0.87 } else { x + 0.0371 };
    }
    mix(total.to_bits(), x.to_bits())
}

/// Runs one assembled loop over two lists of numbers, `$n` rounds of `$count` elements.
macro_rules! over {
    ($rounds:expr, $count:expr, $x:expr, $y:expr, $out:expr, $before:literal, [$($line:literal),*], $after:literal) => {
        for _ in 0..$rounds {
            // SAFETY: the loop reads and writes `$count` elements of lists that are as long, and one result of ten
            // bytes at most; it leaves the x87 stack empty.
            unsafe {
                asm!(
                    "/* {out} */",
                    $before,
                    "2:",
                    $($line,)*
                    "add {x}, 8",
                    "add {y}, 8",
                    "dec {n}",
                    "jnz 2b",
                    $after,
                    x = inout(reg) $x => _, y = inout(reg) $y => _, n = inout(reg) $count as u64 => _,
                    out = in(reg) $out,
                    out("rax") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack),
                );
            }
        }
    };
}

fn dot(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(30), numbers(31));
    let mut out = [0u64; 2];
    over!(
        b.n(24_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fld qword ptr [{out}]",
        ["fld qword ptr [{x}]", "fmul qword ptr [{y}]", "faddp st(1), st"],
        "fstp qword ptr [{out}]"
    );
    out[0]
}

fn divide(b: &mut Bench) -> u64 {
    let (mut x, y) = (numbers(32), numbers(33));
    x.push(1.0);
    let mut out = [1f64.to_bits(), 0];
    over!(
        b.n(12_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fld qword ptr [{out}]",
        [
            "fld qword ptr [{x}]",
            "fdiv qword ptr [{y}]",
            "fld qword ptr [{y}]",
            "fdivr qword ptr [{x} + 8]",
            "faddp st(1), st",
            "faddp st(1), st"
        ],
        "fstp qword ptr [{out}]"
    );
    out[0]
}

fn root(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(34), numbers(35));
    let mut out = [1f64.to_bits(), 0];
    over!(
        b.n(12_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fld qword ptr [{out}]",
        ["fld qword ptr [{x}]", "fsub qword ptr [{y}]", "fabs", "fsqrt", "fchs", "faddp st(1), st"],
        "fstp qword ptr [{out}]"
    );
    out[0]
}

/// Several numbers at once on the stack, brought to its top by FXCH, as compilers do.
fn exchange(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(36), numbers(37));
    let mut out = [0u64; 2];
    over!(
        b.n(8500),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fldz; fld1; fldz",
        ["fld qword ptr [{x}]", "fsub qword ptr [{y}]", "fabs", "fsqrt", "fchs", "faddp st(1), st"],
        "faddp st(1), st; faddp st(1), st; fstp qword ptr [{out}]"
    );
    mix(out[0], out[1])
}

/// FILD and FISTP in three widths.
fn integers(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(38);
    let x: Vec<u64> = (0..256).map(|_| rng.next64() >> 16).collect();
    let mut y = vec![0u64; 256];
    over!(
        b.n(17_000),
        256,
        x.as_ptr(),
        y.as_mut_ptr(),
        x.as_ptr(),
        "fld1",
        [
            "fild qword ptr [{x}]",
            "fild dword ptr [{x}]",
            "faddp st(1), st",
            "fild word ptr [{x} + 2]",
            "fsubp st(1), st",
            "fistp qword ptr [{y}]"
        ],
        "fstp st(0)"
    );
    y.iter().fold(0, |s, v| mix(s, *v))
}

/// Loads and stores of ten bytes.
fn extended(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(39), numbers(40));
    let mut out = [3f64.to_bits(), 0x3fff, 5u64 << 61, 0x3ffe, 0, 0];
    over!(
        b.n(10_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fld qword ptr [{out}]; fstp tbyte ptr [{out}]",
        [
            "fld tbyte ptr [{out}]",
            "fmul qword ptr [{x}]",
            "fld tbyte ptr [{out} + 16]",
            "fsub qword ptr [{y}]",
            "faddp st(1), st",
            "fstp tbyte ptr [{out} + 32]"
        ],
        ""
    );
    mix(mix(out[0], out[4]), out[5] & 0xffff)
}

/// FCOMI with its jumps, and FUCOMPP with the status word.
fn compare(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(41), numbers(42));
    let mut out = [0u64; 2];
    over!(
        b.n(22_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "",
        [
            "fld qword ptr [{x}]",
            "fld qword ptr [{y}]",
            "fcomi st, st(1)",
            "jb 3f",
            "inc qword ptr [{out}]",
            "3:",
            "fucompp",
            "fnstsw ax",
            "test ah, 0x45",
            "jne 4f",
            "inc qword ptr [{out} + 8]",
            "4:"
        ],
        ""
    );
    mix(out[0], out[1])
}

/// FRNDINT and FSCALE under control words that change.
fn rounding(b: &mut Bench) -> u64 {
    let (x, y) = (numbers(43), numbers(44));
    let mut out = [0u64, 0x0f7f_037f];
    over!(
        b.n(12_000),
        256,
        x.as_ptr(),
        y.as_ptr(),
        out.as_mut_ptr(),
        "fld qword ptr [{out}]",
        [
            "fld qword ptr [{x}]",
            "fadd st, st",
            "fldcw word ptr [{out} + 10]",
            "frndint",
            "fldcw word ptr [{out} + 8]",
            "fld qword ptr [{y}]",
            "fscale",
            "fstp st(1)",
            "faddp st(1), st"
        ],
        "fstp qword ptr [{out}]"
    );
    out[0]
}
