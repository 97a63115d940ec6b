//! Vectors: single, double and integer, in SSE2, AVX2 and FMA. All operations are rounded in one way, so every machine
//! finds the same bits.

use core::arch::x86_64::*;
use std::hint::black_box;

use super::bench::{Bench, Rng, Test, everywhere, mix};

fn without_avx2() -> Option<&'static str> {
    (!is_x86_feature_detected!("avx2")).then_some("no AVX2")
}

fn without_fma() -> Option<&'static str> {
    (!is_x86_feature_detected!("fma")).then_some("no FMA")
}

macro_rules! tests {
    ($($name:literal, $lacks:ident => $run:expr),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "vec", name: $name, lacks: $lacks, run: $run }),*];
    };
}

tests! {
    "sse2-single-mandelbrot", everywhere => single::mandelbrot, "sse2-single-matrix", everywhere => single::matrix,
    "sse2-single-polynomial", everywhere => single::polynomial, "sse2-single-axpy", everywhere => single::axpy, "sse2-single-divide-root", everywhere => single::divide_root,
    "sse2-double-mandelbrot", everywhere => double::mandelbrot, "sse2-double-matrix", everywhere => double::matrix,
    "sse2-double-polynomial", everywhere => double::polynomial, "sse2-double-axpy", everywhere => double::axpy, "sse2-double-divide-root", everywhere => double::divide_root,
    "sse2-integer-pixels", everywhere => integer::pixels, "sse2-integer-products", everywhere => integer::products,
    "sse2-integer-search", everywhere => integer::search, "sse2-integer-shuffle", everywhere => integer::shuffle,
    "sse2-integer-chacha", everywhere => integer::chacha,
    "avx2-single-mandelbrot", without_avx2 => single8::mandelbrot, "avx2-single-matrix", without_avx2 => single8::matrix,
    "avx2-single-polynomial", without_avx2 => single8::polynomial, "avx2-single-axpy", without_avx2 => single8::axpy, "avx2-single-divide-root", without_avx2 => single8::divide_root,
    "avx2-double-mandelbrot", without_avx2 => double4::mandelbrot, "avx2-double-matrix", without_avx2 => double4::matrix,
    "avx2-double-polynomial", without_avx2 => double4::polynomial, "avx2-double-axpy", without_avx2 => double4::axpy, "avx2-double-divide-root", without_avx2 => double4::divide_root,
    "avx2-integer-pixels", without_avx2 => integer8::pixels, "avx2-integer-products", without_avx2 => integer8::products,
    "avx2-integer-search", without_avx2 => integer8::search, "avx2-integer-shuffle", without_avx2 => integer8::shuffle,
    "avx2-integer-chacha", without_avx2 => integer8::chacha,
    "fma-single", without_fma => fma_single, "fma-double", without_fma => fma_double, "fma-scalar", without_fma => fma_scalar,
}

/// A test around a function that needs the feature.
macro_rules! wrap {
    ($name:ident, $inner:ident, $n:expr) => {
        #[allow(unused_unsafe)]
        pub fn $name(b: &mut Bench) -> u64 {
            // SAFETY: the test is run only where its processor has the feature.
            unsafe { $inner(b.n($n)) }
        }
    };
}

macro_rules! float {
    ($module:ident, $feature:literal, $float:ident, $lanes:literal, $n:expr, $zero:ident $set:ident $load:ident $store:ident
     $add:ident $sub:ident $mul:ident $div:ident $sqrt:ident $min:ident $max:ident $and:ident $mask:ident, $less:expr) => {
        mod $module {
            use super::*;

            wrap!(mandelbrot, mandelbrot_inner, $n[0]);
            wrap!(matrix, matrix_inner, $n[1]);
            wrap!(axpy, axpy_inner, $n[2]);
            wrap!(divide_root, divide_root_inner, $n[3]);
            wrap!(polynomial, polynomial_inner, $n[4]);

            fn list(seed: u64, count: usize) -> Vec<$float> {
                let mut rng = Rng::new(seed);
                (0..count).map(|_| rng.unit() as $float + 0.125).collect()
            }

            fn sum(list: &[$float]) -> u64 {
                list.iter().fold(0, |s, v| mix(s, v.to_bits().into()))
            }

            #[target_feature(enable = $feature)]
            fn mandelbrot_inner(rows: u64) -> u64 {
                let mut sum = 0u64;
                let (four, one, two) = ($set(4.0), $set(1.0), $set(2.0));
                for row in 0..rows {
                    let cy = $set((row % 64) as $float / 32.0 - 1.0);
                    for group in 0..32 / $lanes {
                        // Two vectors at a time, so that the steps of one do not wait for those of the other.
                        let mut start = [[0.0 as $float; $lanes]; 2];
                        for (i, x) in start.as_flattened_mut().iter_mut().enumerate() {
                            *x = (group * 2 * $lanes + i) as $float / 32.0 - 1.5;
                        }
                        // SAFETY: each array has as many numbers as the vector.
                        let cx = unsafe { [$load(start[0].as_ptr()), $load(start[1].as_ptr())] };
                        let (mut x, mut y, mut steps) = ([$zero(); 2], [$zero(); 2], [$zero(); 2]);
                        for _ in 0..100 {
                            let mut any = 0;
                            for i in 0..2 {
                                let (xx, yy) = ($mul(x[i], x[i]), $mul(y[i], y[i]));
                                let inside = $less($add(xx, yy), four);
                                any |= $mask(inside);
                                steps[i] = $add(steps[i], $and(inside, one));
                                y[i] = $add($mul($mul(two, x[i]), y[i]), cy);
                                x[i] = $add($sub(xx, yy), cx[i]);
                            }
                            if any == 0 {
                                break;
                            }
                        }
                        let mut end = [0.0 as $float; $lanes];
                        for steps in steps {
                            // SAFETY: as above.
                            unsafe { $store(end.as_mut_ptr(), steps) };
                            sum = end.iter().fold(sum, |s, v| mix(s, *v as u64));
                        }
                    }
                }
                sum
            }

            #[target_feature(enable = $feature)]
            fn matrix_inner(rounds: u64) -> u64 {
                const N: usize = 64;
                let (mut x, y) = (list(70, N * N), list(71, N * N));
                let mut z = vec![0.0 as $float; N * N];
                for _ in 0..rounds {
                    // Four rows and two vectors at a time, as products of matrices are made.
                    for i in (0..N).step_by(4) {
                        for j in (0..N).step_by(2 * $lanes) {
                            let mut sums = [[$zero(); 2]; 4];
                            for k in 0..N {
                                let row = &y[k * N + j..][..2 * $lanes];
                                // SAFETY: the slice has as many numbers as two vectors.
                                let row = unsafe { [$load(row.as_ptr()), $load(row.as_ptr().add($lanes))] };
                                for (r, sums) in sums.iter_mut().enumerate() {
                                    let factor = $set(x[(i + r) * N + k]);
                                    for (sum, row) in sums.iter_mut().zip(row) {
                                        *sum = $add(*sum, $mul(factor, row));
                                    }
                                }
                            }
                            for (r, sums) in sums.iter().enumerate() {
                                let out = &mut z[(i + r) * N + j..][..2 * $lanes];
                                // SAFETY: as above.
                                unsafe {
                                    $store(out.as_mut_ptr(), $mul(sums[0], $set(0.03125)));
                                    $store(out.as_mut_ptr().add($lanes), $mul(sums[1], $set(0.03125)));
                                }
                            }
                        }
                    }
                    std::mem::swap(&mut x, &mut z);
                }
                sum(&x)
            }

            /// Horner's scheme on four vectors at a time.
            #[target_feature(enable = $feature)]
            fn polynomial_inner(rounds: u64) -> u64 {
                let c: [$float; 8] = [0.5, -0.25, 0.125, 0.3, -0.7, 0.9, -0.1, 0.05];
                let mut x = list(76, 256);
                for _ in 0..rounds {
                    for x in x.chunks_exact_mut(4 * $lanes) {
                        let mut v = [$zero(); 4];
                        for (i, v) in v.iter_mut().enumerate() {
                            // SAFETY: the slice has as many numbers as four vectors.
                            *v = unsafe { $load(x.as_ptr().add(i * $lanes)) };
                        }
                        let mut y = [$set(0.0625); 4];
                        for c in c {
                            for (y, v) in y.iter_mut().zip(v) {
                                *y = $add($mul(*y, v), $set(c));
                            }
                        }
                        for (i, y) in y.into_iter().enumerate() {
                            // SAFETY: as above.
                            unsafe {
                                $store(x.as_mut_ptr().add(i * $lanes), $min($max(y, $zero()), $set(1.0)))
                            };
                        }
                    }
                }
                sum(&x)
            }

            #[target_feature(enable = $feature)]
            fn axpy_inner(rounds: u64) -> u64 {
                let (x, mut y) = (list(72, 1024), list(73, 1024));
                for round in 0..rounds {
                    let k = $set((round % 7) as $float - 3.0);
                    for (x, y) in x.chunks_exact($lanes).zip(y.chunks_exact_mut($lanes)) {
                        // SAFETY: both have as many numbers as the vector.
                        unsafe {
                            $store(y.as_mut_ptr(), $add($load(y.as_ptr()), $mul(k, $load(x.as_ptr()))))
                        };
                    }
                }
                sum(&y)
            }

            #[target_feature(enable = $feature)]
            fn divide_root_inner(rounds: u64) -> u64 {
                let (x, mut y) = (list(74, 512), list(75, 512));
                let (low, high) = ($set(0.25), $set(8.0));
                for _ in 0..rounds {
                    for (x, y) in x.chunks_exact($lanes).zip(y.chunks_exact_mut($lanes)) {
                        // SAFETY: both have as many numbers as the vector.
                        let (a, b) = unsafe { ($load(x.as_ptr()), $load(y.as_ptr())) };
                        let v = $add($div(a, b), $sqrt($add(b, b)));
                        // SAFETY: as above.
                        unsafe { $store(y.as_mut_ptr(), $min($max(v, low), high)) };
                    }
                }
                sum(&y)
            }
        }
    };
}

float!(single, "sse2", f32, 4, [5000, 300, 20_000, 25_000, 20_000], _mm_setzero_ps _mm_set1_ps _mm_loadu_ps _mm_storeu_ps
    _mm_add_ps _mm_sub_ps _mm_mul_ps _mm_div_ps _mm_sqrt_ps _mm_min_ps _mm_max_ps _mm_and_ps _mm_movemask_ps, _mm_cmplt_ps);
float!(double, "sse2", f64, 2, [3000, 150, 10_000, 12_000, 10_000], _mm_setzero_pd _mm_set1_pd _mm_loadu_pd _mm_storeu_pd
    _mm_add_pd _mm_sub_pd _mm_mul_pd _mm_div_pd _mm_sqrt_pd _mm_min_pd _mm_max_pd _mm_and_pd _mm_movemask_pd, _mm_cmplt_pd);
float!(single8, "avx2", f32, 8, [5000, 300, 20_000, 25_000, 20_000], _mm256_setzero_ps _mm256_set1_ps _mm256_loadu_ps
    _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps _mm256_sqrt_ps _mm256_min_ps _mm256_max_ps
    _mm256_and_ps _mm256_movemask_ps, |a, b| _mm256_cmp_ps::<_CMP_LT_OS>(a, b));
float!(double4, "avx2", f64, 4, [3000, 150, 10_000, 12_000, 10_000], _mm256_setzero_pd _mm256_set1_pd _mm256_loadu_pd
    _mm256_storeu_pd _mm256_add_pd _mm256_sub_pd _mm256_mul_pd _mm256_div_pd _mm256_sqrt_pd _mm256_min_pd _mm256_max_pd
    _mm256_and_pd _mm256_movemask_pd, |a, b| _mm256_cmp_pd::<_CMP_LT_OS>(a, b));

macro_rules! integer {
    ($module:ident, $feature:literal, $vector:ident, $bytes:literal, $n:expr, $load:ident $store:ident $set8:ident $set32:ident
     $adds8:ident $subs8:ident $avg8:ident $sad:ident $mullo16:ident $mulhi16:ident $madd:ident $mul32:ident $add32:ident
     $add64:ident $eq8:ident $gt16:ident $min8:ident $mask:ident $low8:ident $high8:ident $pack:ident $shuffle32:ident
     $xor:ident $or:ident $left32:ident $right32:ident) => {
        mod $module {
            use super::*;

            wrap!(pixels, pixels_inner, $n[0]);
            wrap!(products, products_inner, $n[1]);
            wrap!(search, search_inner, $n[2]);
            wrap!(shuffle, shuffle_inner, $n[3]);
            wrap!(chacha, chacha_inner, $n[4]);

            const COUNT: usize = 4096;

            fn list(seed: u64) -> Vec<u8> {
                let mut rng = Rng::new(seed);
                (0..COUNT).map(|_| rng.next32() as u8).collect()
            }

            fn sum(list: &[u8]) -> u64 {
                list.iter().fold(0, |s, v| mix(s, (*v).into()))
            }

            #[target_feature(enable = $feature)]
            fn get(list: &[u8]) -> $vector {
                assert!(list.len() >= $bytes);
                // SAFETY: there are as many bytes as in the vector.
                unsafe { $load(list.as_ptr().cast()) }
            }

            #[target_feature(enable = $feature)]
            fn put(list: &mut [u8], v: $vector) {
                assert!(list.len() >= $bytes);
                // SAFETY: there is room for the vector.
                unsafe { $store(list.as_mut_ptr().cast(), v) }
            }

            /// Saturated sums, means and differences of bytes.
            #[target_feature(enable = $feature)]
            fn pixels_inner(rounds: u64) -> u64 {
                let (x, mut y) = (list(80), list(81));
                let mut total = $set32(0);
                for round in 0..rounds {
                    let k = $set8(round as i8);
                    for (x, y) in x.chunks_exact($bytes).zip(y.chunks_exact_mut($bytes)) {
                        let (a, b) = (get(x), get(y));
                        total = $add64(total, $sad(a, b));
                        put(y, $avg8($adds8(a, k), $subs8(b, a)));
                    }
                }
                let mut end = vec![0; $bytes];
                put(&mut end, total);
                sum(&y) ^ sum(&end)
            }

            /// Products of 16 and 32 bits.
            #[target_feature(enable = $feature)]
            fn products_inner(rounds: u64) -> u64 {
                let (x, mut y) = (list(82), list(83));
                for _ in 0..rounds {
                    for (x, y) in x.chunks_exact($bytes).zip(y.chunks_exact_mut($bytes)) {
                        let (a, b) = (get(x), get(y));
                        let halves = $xor($mullo16(a, b), $mulhi16(a, b));
                        put(y, $add32($add32(halves, $madd(a, b)), $mul32(a, halves)));
                    }
                }
                sum(&y)
            }

            /// Bytes that are equal, least bytes, and words that are greater, as searches use them.
            #[target_feature(enable = $feature)]
            fn search_inner(rounds: u64) -> u64 {
                let (x, mut found) = (list(84), 0u64);
                let mut least = $set8(0x7f);
                let mut greater = $set32(0);
                for round in 0..rounds {
                    let key = $set8(round as i8);
                    // Four vectors are looked at before a branch.
                    for x in black_box(&x).chunks_exact(4 * $bytes) {
                        let mut any = $set32(0);
                        for x in x.chunks_exact($bytes) {
                            let a = get(x);
                            any = $or(any, $eq8(a, key));
                            least = $min8(least, $xor(a, key));
                            greater = $add32(greater, $gt16(a, key));
                        }
                        let hits = $mask(any) as u32;
                        if hits != 0 {
                            found = mix(found, hits.into());
                        }
                    }
                }
                let mut end = vec![0; 2 * $bytes];
                put(&mut end, least);
                put(&mut end[$bytes..], greater);
                found ^ sum(&end)
            }

            /// Bytes apart and together again in another order.
            #[target_feature(enable = $feature)]
            fn shuffle_inner(rounds: u64) -> u64 {
                let (x, mut y) = (list(85), list(86));
                for _ in 0..rounds {
                    for (x, y) in x.chunks_exact($bytes).zip(y.chunks_exact_mut($bytes)) {
                        let (a, b) = (get(x), get(y));
                        let (low, high) = ($low8(a, b), $high8(b, a));
                        let mixed =
                            $pack($shuffle32::<0b00_11_10_01>(low), $shuffle32::<0b10_01_11_00>(high));
                        put(y, $xor(mixed, $shuffle32::<0b01_00_11_10>(a)));
                    }
                }
                sum(&y)
            }

            /// Quarter rounds of additions, exclusive ors and rotations.
            #[target_feature(enable = $feature)]
            fn chacha_inner(rounds: u64) -> u64 {
                // Three blocks at a time, as ciphers do.
                let x = list(87);
                let row = |i: usize| [0, 1, 2].map(|block| get(&x[(block * 4 + i) * $bytes..]));
                let (mut a, mut b, mut c, mut d) = (row(0), row(1), row(2), row(3));
                for _ in 0..rounds {
                    for i in 0..3 {
                        a[i] = $add32(a[i], b[i]);
                        d[i] = $xor(d[i], a[i]);
                        d[i] = $or($left32::<16>(d[i]), $right32::<16>(d[i]));
                        c[i] = $add32(c[i], d[i]);
                        b[i] = $xor(b[i], c[i]);
                        b[i] = $or($left32::<12>(b[i]), $right32::<20>(b[i]));
                        a[i] = $add32(a[i], b[i]);
                        d[i] = $xor(d[i], a[i]);
                        d[i] = $or($left32::<8>(d[i]), $right32::<24>(d[i]));
                        c[i] = $add32(c[i], d[i]);
                        b[i] = $xor(b[i], c[i]);
                        b[i] = $or($left32::<7>(b[i]), $right32::<25>(b[i]));
                        b[i] = $shuffle32::<0b00_11_10_01>(b[i]);
                        c[i] = $shuffle32::<0b01_00_11_10>(c[i]);
                        d[i] = $shuffle32::<0b10_01_00_11>(d[i]);
                    }
                }
                let mut end = vec![0; 12 * $bytes];
                for (i, v) in a.into_iter().chain(b).chain(c).chain(d).enumerate() {
                    put(&mut end[i * $bytes..], v);
                }
                sum(&end)
            }
        }
    };
}

integer!(integer, "sse2", __m128i, 16, [40_000, 40_000, 80_000, 50_000, 2_000_000], _mm_loadu_si128 _mm_storeu_si128
    _mm_set1_epi8 _mm_set1_epi32 _mm_adds_epu8 _mm_subs_epu8 _mm_avg_epu8 _mm_sad_epu8 _mm_mullo_epi16 _mm_mulhi_epi16
    _mm_madd_epi16 _mm_mul_epu32 _mm_add_epi32 _mm_add_epi64 _mm_cmpeq_epi8 _mm_cmpgt_epi16 _mm_min_epu8 _mm_movemask_epi8
    _mm_unpacklo_epi8 _mm_unpackhi_epi8 _mm_packus_epi16 _mm_shuffle_epi32 _mm_xor_si128 _mm_or_si128 _mm_slli_epi32
    _mm_srli_epi32);
integer!(integer8, "avx2", __m256i, 32, [40_000, 40_000, 80_000, 50_000, 2_000_000], _mm256_loadu_si256 _mm256_storeu_si256
    _mm256_set1_epi8 _mm256_set1_epi32 _mm256_adds_epu8 _mm256_subs_epu8 _mm256_avg_epu8 _mm256_sad_epu8
    _mm256_mullo_epi16 _mm256_mulhi_epi16 _mm256_madd_epi16 _mm256_mul_epu32 _mm256_add_epi32 _mm256_add_epi64
    _mm256_cmpeq_epi8 _mm256_cmpgt_epi16 _mm256_min_epu8 _mm256_movemask_epi8 _mm256_unpacklo_epi8 _mm256_unpackhi_epi8
    _mm256_packus_epi16 _mm256_shuffle_epi32 _mm256_xor_si256 _mm256_or_si256 _mm256_slli_epi32 _mm256_srli_epi32);

wrap!(fma_single, fma_single_inner, 25_000);
wrap!(fma_double, fma_double_inner, 35_000);
wrap!(fma_scalar, fma_scalar_inner, 6_000_000);

/// Horner's scheme on 512 numbers, eight at a time.
#[target_feature(enable = "avx2,fma")]
fn fma_single_inner(rounds: u64) -> u64 {
    let c = [0.5f32, -0.25, 0.125, 0.3, -0.7, 0.9];
    let mut rng = Rng::new(90);
    let mut x: Vec<f32> = (0..512).map(|_| rng.unit() as f32).collect();
    for _ in 0..rounds {
        for x in x.chunks_exact_mut(8) {
            // SAFETY: eight numbers are there.
            let v = unsafe { _mm256_loadu_ps(x.as_ptr()) };
            let y = c.iter().fold(_mm256_setzero_ps(), |y, c| _mm256_fmadd_ps(y, v, _mm256_set1_ps(*c)));
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(x.as_mut_ptr(), _mm256_fnmadd_ps(y, v, _mm256_set1_ps(0.75))) };
        }
    }
    x.iter().fold(0, |s, v| mix(s, v.to_bits().into()))
}

/// The same, four at a time.
#[target_feature(enable = "avx2,fma")]
fn fma_double_inner(rounds: u64) -> u64 {
    let c = [0.5f64, -0.25, 0.125, 0.3, -0.7, 0.9];
    let mut rng = Rng::new(91);
    let mut x: Vec<f64> = (0..256).map(|_| rng.unit()).collect();
    for _ in 0..rounds {
        for x in x.chunks_exact_mut(4) {
            // SAFETY: four numbers are there.
            let v = unsafe { _mm256_loadu_pd(x.as_ptr()) };
            let y = c.iter().fold(_mm256_setzero_pd(), |y, c| _mm256_fmadd_pd(y, v, _mm256_set1_pd(*c)));
            // SAFETY: as above.
            unsafe { _mm256_storeu_pd(x.as_mut_ptr(), _mm256_fnmadd_pd(y, v, _mm256_set1_pd(0.75))) };
        }
    }
    x.iter().fold(0, |s, v| mix(s, v.to_bits()))
}

#[target_feature(enable = "fma")]
fn fma_scalar_inner(rounds: u64) -> u64 {
    let c = black_box([0.5f64, -0.25, 0.125, 0.3, -0.7, 0.9]);
    let (mut x, mut sum) = (0.1f64, 0.0);
    for _ in 0..rounds {
        sum += c.iter().fold(0.0, |y: f64, c| y.mul_add(x, *c));
        x = if x > 0.9 { x - 0.87 } else { x + 0.0371 };
    }
    mix(f64::to_bits(sum), x.to_bits())
}
