//! Scalar floating point, double and single, in the instructions that a compiler makes of it. Only operations that
//! IEEE 754 rounds in one way are used, so that every machine finds the same bits.

use std::hint::black_box;

use super::bench::{Bench, Rng, Test, everywhere, mix};

macro_rules! tests {
    ($($name:literal => $run:expr),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "fp", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "double-bodies" => bodies, "double-mandelbrot" => double::mandelbrot, "double-matrix" => double::matrix,
    "double-polynomial" => double::polynomial, "double-divide" => double::divide, "double-root" => double::root,
    "double-fourier" => fourier, "double-compare" => double::compare, "double-convert" => convert,
    "single-mandelbrot" => single::mandelbrot, "single-matrix" => single::matrix,
    "single-polynomial" => single::polynomial, "single-divide" => single::divide, "single-root" => single::root,
    "single-compare" => single::compare,
}

macro_rules! width {
    ($module:ident, $float:ident, $n:expr) => {
        mod $module {
            use super::*;

            pub fn mandelbrot(b: &mut Bench) -> u64 {
                let mut sum = 0u64;
                for row in 0..b.n($n[0]) {
                    for column in 0..64u32 {
                        let cx = column as $float / 32.0 - 1.5;
                        let cy = (row % 64) as $float / 32.0 - 1.0;
                        let (mut x, mut y) = (0.0 as $float, 0.0 as $float);
                        let mut steps = 0u64;
                        while steps < 200 && x * x + y * y < 4.0 {
                            (x, y) = (x * x - y * y + cx, 2.0 * x * y + cy);
                            steps += 1;
                        }
                        sum = mix(sum, steps);
                    }
                }
                sum
            }

            pub fn matrix(b: &mut Bench) -> u64 {
                const N: usize = 48;
                let mut rng = Rng::new(20);
                let mut make = || -> Vec<$float> { (0..N * N).map(|_| rng.unit() as $float).collect() };
                let (mut x, y) = (make(), make());
                let mut z = vec![0.0 as $float; N * N];
                for _ in 0..b.n($n[1]) {
                    for i in 0..N {
                        for j in 0..N {
                            let mut sum = 0.0;
                            for k in 0..N {
                                sum += x[i * N + k] * y[k * N + j];
                            }
                            z[i * N + j] = sum / 24.0;
                        }
                    }
                    std::mem::swap(&mut x, &mut z);
                }
                x.iter().fold(0, |s, v| mix(s, v.to_bits().into()))
            }

            pub fn polynomial(b: &mut Bench) -> u64 {
                let c: [$float; 8] = black_box([0.5, -0.25, 0.125, 0.3, -0.7, 0.9, -0.1, 0.05]);
                let (mut x, mut sum): ($float, $float) = (0.1, 0.0);
                for _ in 0..b.n($n[2]) {
                    let v = c.iter().fold(0.0, |v, c| v * x + c);
                    sum += v;
                    x = if x > 0.9 { x - 0.87 } else { x + 0.0371 };
                }
                mix(sum.to_bits().into(), x.to_bits().into())
            }

            /// Quotients that do not wait for each other.
            pub fn divide(b: &mut Bench) -> u64 {
                let mut rng = Rng::new(25);
                let values: Vec<$float> = (0..256).map(|_| rng.unit() as $float + 0.25).collect();
                let mut sum: $float = 0.0;
                for round in 0..b.n($n[3]) {
                    let k = (round & 15) as i32 as $float + 0.5;
                    for pair in black_box(&values).chunks_exact(2) {
                        sum += (pair[0] + k) / pair[1] - (pair[1] - k) / pair[0];
                    }
                }
                sum.to_bits().into()
            }

            pub fn root(b: &mut Bench) -> u64 {
                let mut rng = Rng::new(26);
                let values: Vec<$float> = (0..256).map(|_| rng.unit() as $float + 0.25).collect();
                let mut sum: $float = 0.0;
                for round in 0..b.n($n[4]) {
                    let k = (round & 15) as i32 as $float + 0.5;
                    for v in black_box(&values) {
                        sum += (v * k).sqrt();
                    }
                }
                sum.to_bits().into()
            }

            pub fn compare(b: &mut Bench) -> u64 {
                let mut rng = Rng::new(21);
                let values: Vec<$float> = (0..512).map(|_| rng.unit() as $float - 0.5).collect();
                let mut sum = 0u64;
                for round in 0..b.n($n[5]) {
                    let (mut least, mut most, mut inner) = (values[0], values[0], 0u64);
                    let low = (round % 32) as $float / -64.0;
                    for v in black_box(&values) {
                        if *v < least {
                            least = *v;
                        }
                        if *v > most {
                            most = *v;
                        }
                        if *v >= low && *v <= 0.25 {
                            inner += 1;
                        }
                    }
                    sum = mix(mix(mix(sum, least.to_bits().into()), most.to_bits().into()), inner);
                }
                sum
            }
        }
    };
}

width!(double, f64, [1500, 320, 4_000_000, 80_000, 90_000, 28_000]);
width!(single, f32, [1500, 320, 4_000_000, 120_000, 100_000, 28_000]);

/// Five bodies that attract each other.
fn bodies(b: &mut Bench) -> u64 {
    #[derive(Clone, Copy)]
    struct Body {
        at: [f64; 3],
        speed: [f64; 3],
        mass: f64,
    }
    let mut rng = Rng::new(22);
    let mut bodies = [(); 5].map(|()| Body {
        at: [(); 3].map(|()| rng.unit() * 20.0 - 10.0),
        speed: [(); 3].map(|()| rng.unit() - 0.5),
        mass: rng.unit() + 0.1,
    });
    let step = 0.001;
    for _ in 0..b.n(210_000) {
        for i in 0..5 {
            for j in i + 1..5 {
                let (p, q) = (bodies[i], bodies[j]);
                let d = [p.at[0] - q.at[0], p.at[1] - q.at[1], p.at[2] - q.at[2]];
                let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.01;
                let pull = step / (square * square.sqrt());
                for (axis, d) in d.iter().enumerate() {
                    bodies[i].speed[axis] -= d * q.mass * pull;
                    bodies[j].speed[axis] += d * p.mass * pull;
                }
            }
        }
        for body in &mut bodies {
            for axis in 0..3 {
                body.at[axis] += step * body.speed[axis];
            }
        }
    }
    bodies.iter().flat_map(|b| b.at).fold(0, |s, v| mix(s, v.to_bits()))
}

/// A Fourier transform of 1024 points. The roots of unity come of repeated halving of the angle.
fn fourier(b: &mut Bench) -> u64 {
    const N: usize = 1024;
    let mut rng = Rng::new(23);
    let mut re: Vec<f64> = (0..N).map(|_| rng.unit() - 0.5).collect();
    let mut im = vec![0.0f64; N];
    for _ in 0..b.n(720) {
        for i in 0..N {
            let j = i.reverse_bits() >> (usize::BITS - 10);
            if i < j {
                re.swap(i, j);
                im.swap(i, j);
            }
        }
        // e^(2 pi i / length) for length 2.
        let (mut wr, mut wi) = (-1.0f64, 0.0f64);
        let mut length = 2;
        while length <= N {
            for start in (0..N).step_by(length) {
                let (mut cr, mut ci) = (1.0, 0.0);
                for k in start..start + length / 2 {
                    let m = k + length / 2;
                    let (tr, ti) = (re[m] * cr - im[m] * ci, re[m] * ci + im[m] * cr);
                    (re[m], im[m]) = (re[k] - tr, im[k] - ti);
                    (re[k], im[k]) = (re[k] + tr, im[k] + ti);
                    (cr, ci) = (cr * wr - ci * wi, cr * wi + ci * wr);
                }
            }
            (wr, wi) = (((1.0 + wr) / 2.0).sqrt(), ((1.0 - wr) / 2.0).sqrt());
            length *= 2;
        }
        for v in re.iter_mut().chain(&mut im) {
            *v /= 32.0;
        }
    }
    re.iter().fold(0, |s, v| mix(s, v.to_bits()))
}

/// Integers to floating point, between the widths, and back.
fn convert(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(24);
    let values: Vec<u64> = (0..1024).map(|_| rng.next64()).collect();
    let mut sum = 0u64;
    for round in 0..b.n(4300) {
        for v in &values {
            let v = v.wrapping_add(round);
            let d = (v as i64 >> 12) as f64;
            let s = (v as i32 >> 4) as f32;
            let narrow = (d * 0.5) as f32;
            sum = sum.wrapping_add((d * 0.25) as i64 as u64);
            sum ^= (f64::from(narrow) + f64::from(s)).to_bits();
            sum = sum.wrapping_add((s * 1.5) as i32 as u64);
        }
    }
    sum
}
