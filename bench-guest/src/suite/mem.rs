//! Memory: string instructions, copies by vectors and by the C library, chases of pointers, streams.

use core::arch::asm;
use core::arch::x86_64::{
    __m128i, _mm_add_pd, _mm_loadu_pd, _mm_loadu_si128, _mm_mul_pd, _mm_set1_pd, _mm_setzero_si128,
    _mm_storeu_pd, _mm_storeu_si128,
};
use std::hint::black_box;

use super::bench::{Bench, Rng, Test, everywhere, mix};

macro_rules! tests {
    ($($name:literal => $run:expr),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "mem", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "movsb-large" => |b| copies(b, movsb, 150, 1 << 20, 0),
    "movsb-small" => |b| copies(b, movsb, 4_000_000, 48, 64),
    "stosb-large" => |b| copies(b, |d, _, n| stosb(d, n), 220, 1 << 20, 0),
    "stosb-small" => |b| copies(b, |d, _, n| stosb(d, n), 5_000_000, 48, 64),
    "movsq-page" => |b| copies(b, movsq, 360_000, 4096, 0),
    "stosq-page" => |b| copies(b, |d, _, n| stosq(d, n), 350_000, 4096, 0),
    "scan-and-compare" => scan,
    "vector-copy" => |b| copies(b, vector_copy, 12_000, 65536, 0),
    "vector-fill" => |b| copies(b, |d, _, n| vector_fill(d, n), 45_000, 65536, 0),
    "libc-copy-large" => |b| copies(b, libc_copy, 800, 1 << 20, 0),
    "libc-copy-small" => |b| copies(b, libc_copy, 6_000_000, 40, 256),
    "libc-move" => |b| copies(b, libc_move, 800_000, 1500, 1024),
    "libc-fill" => |b| copies(b, |d, _, n| libc_fill(d, n), 5_000_000, 100, 512),
    "libc-strings" => strings,
    "chase-l1" => |b| chase(b, 16 << 10, 64, 90_000_000),
    "chase-l2" => |b| chase(b, 256 << 10, 64, 50_000_000),
    "chase-l3" => |b| chase(b, 2 << 20, 64, 12_000_000),
    "chase-large" => |b| chase(b, 16 << 20, 64, 2_000_000),
    "chase-far" => |b| chase(b, 256 << 20, 4096 + 64, 1_500_000),
    "stream-copy" => |b| stream(b, |a, _, c, _| store(c, opaque(load(a))), 25),
    "stream-scale" => |b| stream(b, |a, _, c, k| store(c, mul(load(a), k)), 20),
    "stream-add" => |b| stream(b, |a, b, c, _| store(c, add(load(a), load(b))), 16),
    "stream-triad" => |b| stream(b, |a, b, c, k| store(c, add(load(a), mul(load(b), k))), 14),
    "scalar-sum" => scalar_sum,
}

/// A copy or fill: to, from, bytes.
type Copy = fn(&mut [u8], &[u8], usize);

/// `count` copies of about `size` bytes. Small ones start anywhere within `spread` bytes and differ in size.
fn copies(b: &mut Bench, copy: Copy, count: u64, size: usize, spread: u32) -> u64 {
    let mut rng = Rng::new(50);
    let from: Vec<u8> = (0..size + 2 * spread as usize + 64).map(|_| rng.next32() as u8).collect();
    let mut to = vec![0u8; from.len()];
    let places: Vec<(usize, usize, usize)> = (0..256)
        .map(|_| {
            let cut = if spread == 0 { 0 } else { rng.below(size as u32 * 3 / 4) as usize };
            (rng.below(spread.max(1)) as usize, rng.below(spread.max(1)) as usize, size - cut)
        })
        .collect();
    for i in 0..b.n(count) {
        let (d, s, n) = places[i as usize % 256];
        copy(&mut to[d..], black_box(&from[s..]), n);
    }
    to.chunks(4).fold(0, |s, c| mix(s, c.iter().fold(0, |v, x| v << 8 | u64::from(*x))))
}

fn movsb(to: &mut [u8], from: &[u8], n: usize) {
    assert!(n <= to.len() && n <= from.len());
    // SAFETY: `n` bytes lie in both slices.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") to.as_mut_ptr() => _, inout("rsi") from.as_ptr() => _,
             options(nostack, preserves_flags));
    }
}

fn stosb(to: &mut [u8], n: usize) {
    assert!(n <= to.len());
    // SAFETY: `n` bytes lie in the slice.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") to.as_mut_ptr() => _, in("al") n as u8,
             options(nostack, preserves_flags));
    }
}

fn movsq(to: &mut [u8], from: &[u8], n: usize) {
    assert!(n <= to.len() && n <= from.len());
    // SAFETY: `n` bytes lie in both slices.
    unsafe {
        asm!("rep movsq", inout("rcx") n / 8 => _, inout("rdi") to.as_mut_ptr() => _, inout("rsi") from.as_ptr() => _,
             options(nostack, preserves_flags));
    }
}

fn stosq(to: &mut [u8], n: usize) {
    assert!(n <= to.len());
    // SAFETY: `n` bytes lie in the slice.
    unsafe {
        asm!("rep stosq", inout("rcx") n / 8 => _, inout("rdi") to.as_mut_ptr() => _, in("rax") n,
             options(nostack, preserves_flags));
    }
}

/// REPNE SCASB for a byte, and REPE CMPSB of what is nearly the same.
fn scan(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(51);
    let x: Vec<u8> = (0..4096).map(|_| rng.next32() as u8 | 1).collect();
    let mut y = x.clone();
    y[4000] ^= 8;
    let mut z = x.clone();
    z[3900] = 0;
    let mut sum = 0u64;
    for i in 0..b.n(18_000) {
        let start = i as usize % 64;
        let (mut left, mut same) = (4096 - start, 4096 - start);
        // SAFETY: both stay within 4096 bytes of the lists.
        unsafe {
            asm!("repne scasb", inout("rcx") left, inout("rdi") z.as_ptr().add(start) => _, in("al") 0u8,
                 options(nostack, readonly));
            asm!("repe cmpsb", inout("rcx") same, inout("rdi") x.as_ptr().add(start) => _,
                 inout("rsi") y.as_ptr().add(start) => _, options(nostack, readonly));
        }
        sum = mix(mix(sum, left as u64), same as u64);
    }
    sum
}

fn vector_copy(to: &mut [u8], from: &[u8], n: usize) {
    for (to, from) in to[..n].chunks_exact_mut(64).zip(from.chunks_exact(64)) {
        // SAFETY: both are 64 bytes; no alignment is asked for.
        unsafe {
            let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
            let v = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
            for (i, v) in v.into_iter().enumerate() {
                _mm_storeu_si128(to.add(i), v);
            }
        }
    }
}

fn vector_fill(to: &mut [u8], n: usize) {
    for to in to[..n].chunks_exact_mut(64) {
        // SAFETY: 64 bytes; no alignment is asked for.
        unsafe {
            for i in 0..4 {
                _mm_storeu_si128(to.as_mut_ptr().cast::<__m128i>().add(i), _mm_setzero_si128());
            }
        }
    }
}

fn libc_copy(to: &mut [u8], from: &[u8], n: usize) {
    to[..n].copy_from_slice(&from[..n]);
}

fn libc_move(to: &mut [u8], _: &[u8], n: usize) {
    to[0] = to[0].wrapping_add(1);
    to.copy_within(..n, 100);
}

fn libc_fill(to: &mut [u8], n: usize) {
    black_box(&mut to[..n]).fill(n as u8);
}

/// `strlen`, `memchr` and `memcmp` of the C library.
fn strings(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(52);
    let mut text: Vec<u8> = (0..512).map(|_| rng.next32() as u8 | 1).collect();
    text.push(0);
    let other = text.clone();
    let mut sum = 0u64;
    for i in 0..b.n(400_000) {
        let start = (i * 7) as usize % 500;
        let here = black_box(text.as_ptr());
        // SAFETY: the text ends with a zero, and the lengths are within both lists.
        unsafe {
            sum = sum.wrapping_add(libc::strlen(here.add(start).cast()) as u64);
            let found = libc::memchr(here.add(start).cast(), 0, 513 - start);
            sum ^= found as u64 - here as u64;
            let n = 513 - start;
            sum = sum.wrapping_add(libc::memcmp(here.cast(), other.as_ptr().cast(), n) as u64).rotate_left(1);
        }
    }
    sum
}

/// Follows pointers through `size` bytes in random order, one in each `step` bytes.
fn chase(b: &mut Bench, size: usize, step: usize, hops: u64) -> u64 {
    let count = size / step;
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut rng = Rng::new(53);
    for i in (1..count).rev() {
        order.swap(i, rng.below(i as u32 + 1) as usize);
    }
    // A word of each step holds where the next is; the others are never touched.
    let mut memory = vec![0u64; size / 8];
    for pair in 0..count {
        let (from, to) = (order[pair] as usize, order[(pair + 1) % count] as usize);
        memory[from * step / 8] = (to * step / 8) as u64;
    }
    let hops = b.n(hops);
    b.time(|| (0..hops).fold(0u64, |at, _| memory[at as usize]))
}

fn load(from: &[f64]) -> core::arch::x86_64::__m128d {
    assert!(from.len() >= 2);
    // SAFETY: two numbers are there.
    unsafe { _mm_loadu_pd(from.as_ptr()) }
}

fn store(to: &mut [f64], v: core::arch::x86_64::__m128d) {
    assert!(to.len() >= 2);
    // SAFETY: there is room for two numbers.
    unsafe { _mm_storeu_pd(to.as_mut_ptr(), v) }
}

/// The same vector, which the compiler does not see: it would make the loop a call of `memcpy`.
fn opaque(mut v: core::arch::x86_64::__m128d) -> core::arch::x86_64::__m128d {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(xmm_reg) v, options(nostack, nomem, preserves_flags)) };
    v
}

fn mul(v: core::arch::x86_64::__m128d, k: f64) -> core::arch::x86_64::__m128d {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_mul_pd(v, _mm_set1_pd(k)) }
}

fn add(v: core::arch::x86_64::__m128d, w: core::arch::x86_64::__m128d) -> core::arch::x86_64::__m128d {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_add_pd(v, w) }
}

/// Passes over lists of 16 MiB each, two numbers at a time.
fn stream(b: &mut Bench, pass: impl Fn(&[f64], &[f64], &mut [f64], f64), passes: u64) -> u64 {
    const COUNT: usize = 2 << 20;
    let mut x: Vec<f64> = (0..COUNT).map(|i| i as f64).collect();
    let y = vec![2.0f64; COUNT];
    let mut z = vec![0.5f64; COUNT];
    let passes = b.n(passes);
    b.time(|| {
        for i in 0..passes {
            for ((x, y), z) in x.chunks_exact(2).zip(y.chunks_exact(2)).zip(z.chunks_exact_mut(2)) {
                pass(x, y, z, 1.5);
            }
            x[i as usize] = z[i as usize + 1];
        }
    });
    z.iter().step_by(997).fold(0, |s, v| mix(s, v.to_bits()))
}

/// Words of 32 MiB added one by one.
fn scalar_sum(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(54);
    let list: Vec<u64> = (0..4 << 20).map(|_| rng.next64()).collect();
    let passes = b.n(80);
    b.time(|| {
        (0..passes).fold(0, |s, _| mix(s, black_box(&list).iter().fold(0, |s: u64, v| s.wrapping_add(*v))))
    })
}
