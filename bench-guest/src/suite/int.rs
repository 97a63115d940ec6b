//! Integer work: loops, calls, branches and walks that compilers make plain instructions of.

use std::hint::black_box;

use super::bench::{Bench, Rng, Test, everywhere, mix};

macro_rules! tests {
    ($($name:literal => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "int", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "sieve" => sieve, "hash" => hash, "sort" => sort, "digest" => digest, "crc" => crc, "bytecode" => bytecode,
    "indirect-calls" => indirect, "virtual-calls" => virtual_calls, "recursion" => recursion, "tree" => tree,
    "table" => table, "bignum" => bignum, "division" => division, "text" => text, "numbers" => numbers,
    "bits" => bits, "branches" => branches, "queens" => queens, "edit-distance" => edit_distance, "matrix" => matrix,
}

fn sieve(b: &mut Bench) -> u64 {
    const SIZE: usize = 1 << 20;
    let mut sum = 0;
    let mut composite = vec![0u8; SIZE];
    for _ in 0..b.n(70) {
        composite.fill(0);
        let mut i = 2;
        while i * i < SIZE {
            if composite[i] == 0 {
                let mut j = i * i;
                while j < SIZE {
                    composite[j] = 1;
                    j += i;
                }
            }
            i += 1;
        }
        sum = mix(sum, composite.iter().map(|c| u64::from(*c ^ 1)).sum());
    }
    sum
}

/// FNV-1a by bytes, then a multiply-and-fold hash by words.
fn hash(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(1);
    let data: Vec<u8> = (0..65536).map(|_| rng.next32() as u8).collect();
    let mut sum = 0;
    for round in 0..b.n(1800) {
        let mut h = 0xcbf2_9ce4_8422_2325u64 ^ round;
        for byte in &data {
            h = (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        for _ in 0..4 {
            for word in data.chunks_exact(8) {
                let word = u64::from_le_bytes([
                    word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
                ]);
                let wide = u128::from(word ^ h) * 0xa076_1d64_78bd_642f;
                h = (wide >> 64) as u64 ^ wide as u64;
            }
        }
        sum = mix(sum, h);
    }
    sum
}

fn quicksort(v: &mut [u32]) {
    if v.len() < 16 {
        for i in 1..v.len() {
            let mut j = i;
            while j > 0 && v[j - 1] > v[j] {
                v.swap(j - 1, j);
                j -= 1;
            }
        }
        return;
    }
    let pivot = {
        let (a, b, c) = (v[0], v[v.len() / 2], v[v.len() - 1]);
        a.max(b).min(a.min(b).max(c))
    };
    let (mut i, mut j) = (0, v.len() - 1);
    loop {
        while v[i] < pivot {
            i += 1;
        }
        while v[j] > pivot {
            j -= 1;
        }
        if i >= j {
            break;
        }
        v.swap(i, j);
        i += 1;
        j -= 1;
    }
    let (left, right) = v.split_at_mut(i.max(1));
    quicksort(left);
    quicksort(right);
}

fn sort(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(2);
    let data: Vec<u32> = (0..100_000).map(|_| rng.next32()).collect();
    let mut sum = 0;
    for round in 0..b.n(28) {
        let mut v: Vec<u32> = data.iter().map(|x| x ^ round as u32).collect();
        quicksort(&mut v);
        sum = v.iter().step_by(1000).fold(sum, |s, x| mix(s, u64::from(*x)));
    }
    sum
}

/// SHA-256 (FIPS 180-4) in plain integer code. The constants are the fractional parts of roots of primes.
struct Sha256 {
    k: [u32; 64],
    h: [u32; 8],
}

impl Sha256 {
    fn new() -> Self {
        let (mut k, mut h) = ([0; 64], [0; 8]);
        let (mut n, mut found) = (2u64, 0);
        while found < 64 {
            if (2..n).take_while(|d| d * d <= n).all(|d| n % d != 0) {
                k[found] = root(n, 3);
                if found < 8 {
                    h[found] = root(n, 2);
                }
                found += 1;
            }
            n += 1;
        }
        Self { k, h }
    }

    fn block(&mut self, block: &[u8; 64]) {
        let mut w = [0u32; 64];
        for (i, word) in block.chunks_exact(4).enumerate() {
            w[i] = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        }
        for i in 16..64 {
            let (a, e) = (w[i - 15], w[i - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let s1 = e.rotate_right(17) ^ e.rotate_right(19) ^ e >> 10;
            w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = self.h;
        for (k, w) in self.k.iter().zip(&w) {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(s1).wrapping_add(e & f ^ !e & g).wrapping_add(*k).wrapping_add(*w);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        for (h, v) in self.h.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *h = h.wrapping_add(v);
        }
    }
}

/// The first 32 bits behind the point of the square or cube root of `n`.
fn root(n: u64, degree: u32) -> u32 {
    let (mut low, mut high) = (0u128, 1u128 << 40);
    // The greatest x with x^degree <= n * 2^(32 * degree).
    while high - low > 1 {
        let x = (low + high) / 2;
        if x.pow(degree) <= u128::from(n) << (32 * degree) { low = x } else { high = x }
    }
    low as u32
}

fn digest(b: &mut Bench) -> u64 {
    let mut sha = Sha256::new();
    let mut block = [0x5au8; 64];
    for i in 0..b.n(400_000) {
        block[..8].copy_from_slice(&i.to_le_bytes());
        sha.block(&block);
    }
    sha.h.iter().fold(0, |s, x| mix(s, u64::from(*x)))
}

fn crc(b: &mut Bench) -> u64 {
    let mut table = [0u32; 256];
    for (i, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(i as u32, |c, _| if c & 1 != 0 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 });
    }
    let mut rng = Rng::new(3);
    let data: Vec<u8> = (0..32768).map(|_| rng.next32() as u8).collect();
    let mut c = !0u32;
    for _ in 0..b.n(2200) {
        for byte in &data {
            c = table[usize::from(c as u8 ^ *byte)] ^ c >> 8;
        }
    }
    u64::from(c)
}

/// Instructions of a small register machine: operation, destination, two sources.
#[derive(Clone, Copy)]
enum Op {
    Add(u8, u8, u8),
    Sub(u8, u8, u8),
    Mul(u8, u8, u8),
    Xor(u8, u8, u8),
    Shift(u8, u8, u8),
    Load(u8, u8),
    Store(u8, u8),
    Set(u8, u32),
    JumpLess(u8, u8, u16),
    Jump(u16),
    End,
}

fn bytecode(b: &mut Bench) -> u64 {
    use Op::*;
    let program = black_box([
        Set(1, 0),
        Set(2, 0),
        Set(7, 5),
        Set(8, 1),
        // 4: the loop.
        Mul(3, 1, 1),
        Add(2, 2, 3),
        Load(4, 2),
        Xor(2, 2, 4),
        Shift(5, 2, 7),
        Sub(2, 2, 5),
        Store(1, 2),
        JumpLess(5, 2, 13),
        Add(2, 2, 8),
        Add(1, 1, 8),
        JumpLess(1, 0, 4),
        Jump(16),
        End,
    ]);
    let mut memory = [0u64; 256];
    let mut r = [0u64; 16];
    r[0] = b.n(2_600_000);
    let mut pc = 0usize;
    loop {
        let op = program[pc];
        pc += 1;
        match op {
            Add(d, x, y) => r[usize::from(d)] = r[usize::from(x)].wrapping_add(r[usize::from(y)]),
            Sub(d, x, y) => r[usize::from(d)] = r[usize::from(x)].wrapping_sub(r[usize::from(y)]),
            Mul(d, x, y) => r[usize::from(d)] = r[usize::from(x)].wrapping_mul(r[usize::from(y)]),
            Xor(d, x, y) => r[usize::from(d)] = r[usize::from(x)] ^ r[usize::from(y)],
            Shift(d, x, y) => r[usize::from(d)] = r[usize::from(x)] >> (r[usize::from(y)] & 63),
            Load(d, x) => r[usize::from(d)] = memory[r[usize::from(x)] as usize & 255],
            Store(x, y) => memory[r[usize::from(x)] as usize & 255] = r[usize::from(y)],
            Set(d, value) => r[usize::from(d)] = u64::from(value),
            JumpLess(x, y, to) => {
                if r[usize::from(x)] < r[usize::from(y)] {
                    pc = usize::from(to);
                }
            }
            Jump(to) => pc = usize::from(to),
            End => break,
        }
    }
    memory.iter().fold(r[2], |s, x| mix(s, *x))
}

fn indirect(b: &mut Bench) -> u64 {
    fn f0(x: u64) -> u64 {
        x.wrapping_add(0x1234_5677)
    }
    fn f1(x: u64) -> u64 {
        x ^ x >> 7
    }
    fn f2(x: u64) -> u64 {
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn f3(x: u64) -> u64 {
        x.rotate_left(13)
    }
    fn f4(x: u64) -> u64 {
        !x
    }
    fn f5(x: u64) -> u64 {
        x.wrapping_sub(x << 3)
    }
    fn f6(x: u64) -> u64 {
        x.swap_bytes()
    }
    fn f7(x: u64) -> u64 {
        x ^ 0x5555_aaaa_5555_aaaa
    }
    let table: [fn(u64) -> u64; 8] = black_box([f0, f1, f2, f3, f4, f5, f6, f7]);
    let (mut x, mut order) = (1u64, 0x9e37_79b9u32);
    for _ in 0..b.n(8_000_000) {
        order = order.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x = table[(order >> 29) as usize](x);
        x = table[(x & 7) as usize](x);
    }
    x
}

trait Shape {
    fn area(&self) -> u64;
    fn grow(&mut self, by: u64);
}
struct Square(u64);
struct Rect(u64, u64);
struct Stack(u64, u64, u64);
impl Shape for Square {
    fn area(&self) -> u64 {
        self.0.wrapping_mul(self.0)
    }
    fn grow(&mut self, by: u64) {
        self.0 = self.0.wrapping_add(by);
    }
}
impl Shape for Rect {
    fn area(&self) -> u64 {
        self.0.wrapping_mul(self.1)
    }
    fn grow(&mut self, by: u64) {
        self.0 = self.0.wrapping_add(by);
        self.1 ^= by;
    }
}
impl Shape for Stack {
    fn area(&self) -> u64 {
        self.0.wrapping_mul(self.1).wrapping_add(self.2)
    }
    fn grow(&mut self, by: u64) {
        self.2 = self.2.wrapping_add(self.0 ^ by);
    }
}

fn virtual_calls(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(4);
    let mut shapes: Vec<Box<dyn Shape>> = (0..1024)
        .map(|i| -> Box<dyn Shape> {
            match rng.below(3) {
                0 => Box::new(Square(i)),
                1 => Box::new(Rect(i, 3)),
                _ => Box::new(Stack(i, i + 1, 7)),
            }
        })
        .collect();
    let mut sum = 0;
    for round in 0..b.n(9000) {
        for shape in &mut shapes {
            shape.grow(round);
            sum ^= shape.area();
        }
        sum = mix(sum, round);
    }
    sum
}

fn fibonacci(n: u32) -> u32 {
    if n < 2 { n } else { black_box(fibonacci as fn(u32) -> u32)(n - 1).wrapping_add(fibonacci(n - 2)) }
}

fn ackermann(m: u32, n: u32) -> u32 {
    match (m, n) {
        (0, n) => n + 1,
        (m, 0) => ackermann(m - 1, 1),
        (m, n) => ackermann(m - 1, ackermann(m, n - 1)),
    }
}

fn recursion(b: &mut Bench) -> u64 {
    (0..b.n(80)).fold(0, |s, i| {
        let s = mix(s, u64::from(fibonacci(black_box(24 + i as u32 % 2))));
        mix(s, u64::from(ackermann(black_box(2), black_box(300))))
    })
}

/// A binary search tree in an arena of some 40 MiB, made in random order, then searched.
fn tree(b: &mut Bench) -> u64 {
    struct Node {
        key: u64,
        value: u64,
        children: [u32; 2],
        _rest: [u64; 3],
    }
    let mut rng = Rng::new(5);
    let count = 400_000;
    let mut nodes: Vec<Node> = Vec::with_capacity(count);
    let mut keys = Vec::with_capacity(count);
    // A balanced order would be too kind: insert as they come.
    for i in 0..count {
        let key = rng.next64();
        keys.push(key);
        nodes.push(Node { key, value: i as u64, children: [0; 2], _rest: [0; 3] });
        if i == 0 {
            continue;
        }
        let mut at = 0;
        loop {
            let side = usize::from(key > nodes[at].key);
            match nodes[at].children[side] {
                0 => {
                    nodes[at].children[side] = i as u32;
                    break;
                }
                child => at = child as usize,
            }
        }
    }
    let searches = b.n(150_000);
    b.time(|| {
        let mut sum = 0;
        for i in 0..searches {
            let key = keys[rng.below(count as u32) as usize] ^ i & 1;
            let mut at = 0;
            loop {
                let node = &nodes[at];
                if node.key == key {
                    sum = mix(sum, node.value);
                    break;
                }
                match node.children[usize::from(key > node.key)] {
                    0 => break,
                    child => at = child as usize,
                }
            }
        }
        sum
    })
}

/// An open hash table of 32 MiB, half full.
fn table(b: &mut Bench) -> u64 {
    const SLOTS: usize = 1 << 21;
    let place = |key: u64| (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 43) as usize;
    let mut slots = vec![(0u64, 0u64); SLOTS];
    let mut rng = Rng::new(6);
    for i in 0..SLOTS as u64 / 2 {
        let key = u64::from(rng.next32()) | 1;
        let mut at = place(key);
        while slots[at].0 != 0 && slots[at].0 != key {
            at = (at + 1) % SLOTS;
        }
        slots[at] = (key, i);
    }
    let searches = b.n(1_600_000);
    b.time(|| {
        let mut keys = Rng::new(6);
        let mut sum = 0u64;
        for i in 0..searches {
            let key = if i % 1_000_000 == 0 {
                keys = Rng::new(6);
                1
            } else {
                u64::from(keys.next32()) | 1
            };
            let mut at = place(key);
            loop {
                let (found, value) = slots[at];
                if found == key {
                    sum = sum.wrapping_add(value);
                    break;
                }
                if found == 0 {
                    break;
                }
                at = (at + 1) % SLOTS;
            }
        }
        sum
    })
}

/// Schoolbook products of numbers of 64-bit limbs.
fn bignum(b: &mut Bench) -> u64 {
    const LIMBS: usize = 64;
    let mut rng = Rng::new(7);
    let mut x: Vec<u64> = (0..LIMBS).map(|_| rng.next64()).collect();
    let y: Vec<u64> = (0..LIMBS).map(|_| rng.next64()).collect();
    let mut product = vec![0u64; 2 * LIMBS];
    for _ in 0..b.n(18_000) {
        product.fill(0);
        for (i, a) in x.iter().enumerate() {
            let mut carry = 0u64;
            for (j, b) in y.iter().enumerate() {
                let wide = u128::from(*a) * u128::from(*b) + u128::from(product[i + j]) + u128::from(carry);
                product[i + j] = wide as u64;
                carry = (wide >> 64) as u64;
            }
            product[i + LIMBS] = carry;
        }
        x.copy_from_slice(&product[LIMBS / 2..LIMBS / 2 + LIMBS]);
    }
    x.iter().fold(0, |s, v| mix(s, *v))
}

fn division(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(8);
    let numbers: Vec<(u64, u64)> =
        (0..1024).map(|i| (rng.next64() >> (i % 40), (rng.next64() >> (20 + i % 37)) | 1)).collect();
    let mut sum = 0u64;
    for round in 0..b.n(18_000) {
        for (x, y) in &numbers {
            let x = x.wrapping_add(round);
            sum = sum.wrapping_add(x / y) ^ x % y;
            sum = sum.wrapping_add(u64::from(x as u32 / (*y as u32 | 1)));
            sum ^= (x as i32 % (*y as i32 >> 8 | 1)) as u64;
        }
    }
    sum
}

/// Words, lines and letters of a made text; a search in it; a copy in capitals.
fn text(b: &mut Bench) -> u64 {
    const SYLLABLES: [&str; 16] =
        ["an", "u", "ra", "ke", "lo", "mi", "st", "er", "on", "ta", "pi", "qua", "no", "is", "el", "or"];
    let mut rng = Rng::new(9);
    let mut text = String::new();
    while text.len() < 60_000 {
        for _ in 0..=rng.below(4) {
            text.push_str(SYLLABLES[rng.below(16) as usize]);
        }
        text.push(if rng.below(11) == 0 { '\n' } else { ' ' });
    }
    let text = text.into_bytes();
    let mut sum = 0u64;
    let mut capitals = vec![0u8; text.len()];
    for round in 0..b.n(450) {
        let (mut words, mut lines, mut inside) = (0u64, 0u64, false);
        let mut letters = [0u32; 26];
        for byte in black_box(&text) {
            match byte {
                b'a'..=b'z' => {
                    letters[usize::from(byte - b'a')] += 1;
                    words += u64::from(!inside);
                    inside = true;
                }
                _ => {
                    lines += u64::from(*byte == b'\n');
                    inside = false;
                }
            }
        }
        let needle: &[u8] = if round % 2 == 0 { b"quanura" } else { b"erisota" };
        let found = (0..text.len() - needle.len())
            .filter(|at| needle.iter().zip(&text[*at..]).all(|(a, b)| a == b))
            .count();
        for (to, from) in capitals.iter_mut().zip(&text) {
            *to = if from.is_ascii_lowercase() { from - 32 } else { *from };
        }
        sum = mix(mix(mix(sum, words), lines), found as u64);
        sum = letters.iter().fold(sum, |s, n| mix(s, u64::from(*n)));
        sum = mix(sum, u64::from(capitals[round as usize * 13 % capitals.len()]));
    }
    sum
}

/// Numbers to decimal text and back.
fn numbers(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(10);
    let mut sum = 0u64;
    let mut digits = [0u8; 24];
    for i in 0..b.n(4_200_000) {
        let mut n = rng.next64() >> (i % 50);
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        let back =
            digits[at..].iter().fold(0u64, |v, d| v.wrapping_mul(10).wrapping_add(u64::from(d - b'0')));
        sum = sum.wrapping_add(back).rotate_left(1);
    }
    sum
}

fn bits(b: &mut Bench) -> u64 {
    let mut x = 0x0123_4567_89ab_cdefu64;
    let mut sum = 0u64;
    for i in 0..b.n(50_000_000) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum = sum.wrapping_add(u64::from((x | 1 << 63).trailing_zeros() + (x | 1).leading_zeros()));
        sum ^= x.swap_bytes().rotate_left(x as u32 & 31);
        sum = sum.wrapping_add(u64::from((x as u32).rotate_right(i as u32 & 7) as u16));
        let pairs = x - (x >> 1 & 0x5555_5555_5555_5555);
        let fours = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
        sum = sum.wrapping_add(
            (fours + (fours >> 4) & 0x0f0f_0f0f_0f0f_0f0f).wrapping_mul(0x0101_0101_0101_0101) >> 56,
        );
    }
    sum
}

/// Collatz sequences: branches that no predictor learns.
fn branches(b: &mut Bench) -> u64 {
    let mut sum = 0;
    for start in 1..b.n(1_200_000) {
        let (mut n, mut steps) = (start, 0u64);
        while n != 1 {
            if n & 1 == 0 {
                n >>= 1;
            } else {
                n = 3 * n + 1;
            }
            steps += 1;
            if steps & 15 == n & 15 {
                sum = mix(sum, n);
            }
        }
        sum = sum.wrapping_add(steps);
    }
    sum
}

fn place(all: u32, columns: u32, left: u32, right: u32) -> u64 {
    if columns == all {
        return 1;
    }
    let mut free = all & !(columns | left | right);
    let mut found = 0;
    while free != 0 {
        let bit = free & free.wrapping_neg();
        free ^= bit;
        found += place(all, columns | bit, (left | bit) << 1, (right | bit) >> 1);
    }
    found
}

fn queens(b: &mut Bench) -> u64 {
    (0..b.n(440)).fold(0, |s, i| mix(s, place((1 << (9 + i % 2)) - 1, 0, 0, 0)))
}

fn edit_distance(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(11);
    let mut sum = 0;
    for _ in 0..b.n(130) {
        let mut word = || -> Vec<u8> { (0..600).map(|_| rng.below(4) as u8).collect() };
        let (x, y) = (word(), word());
        let mut row: Vec<u32> = (0..=y.len() as u32).collect();
        for (i, a) in x.iter().enumerate() {
            let mut corner = row[0];
            row[0] = i as u32 + 1;
            for (j, b) in y.iter().enumerate() {
                let cost = corner + u32::from(a != b);
                corner = row[j + 1];
                row[j + 1] = cost.min(corner + 1).min(row[j] + 1);
            }
        }
        sum = mix(sum, u64::from(row[y.len()]));
    }
    sum
}

fn matrix(b: &mut Bench) -> u64 {
    const N: usize = 80;
    let mut rng = Rng::new(12);
    let mut make = || -> Vec<u32> { (0..N * N).map(|_| rng.next32()).collect() };
    let (mut x, y) = (make(), make());
    let mut z = vec![0u32; N * N];
    for _ in 0..b.n(270) {
        for i in 0..N {
            for j in 0..N {
                let mut sum = 0u32;
                for k in 0..N {
                    sum = sum.wrapping_add(x[i * N + k].wrapping_mul(y[k * N + j]));
                }
                z[i * N + j] = sum;
            }
        }
        std::mem::swap(&mut x, &mut z);
    }
    x.iter().fold(0, |s, v| mix(s, u64::from(*v)))
}
