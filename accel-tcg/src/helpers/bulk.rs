//! What repeated string instructions do to runs of elements in host memory, exactly as element after element.
//!
//! All pointers are to the element with the lowest address, whatever the direction; `down` says that the instruction
//! goes from the highest element to the lowest.

/// An element as it lies in memory, at any address.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct At<T>(T);

/// An element type.
trait Element: Copy + Eq {
    fn of(v: u64) -> Self;
    fn word(self) -> u64;
}
macro_rules! elements {
    ($($t:ty)*) => {$(impl Element for $t {
        #[inline(always)]
        fn of(v: u64) -> Self { v as $t }
        #[inline(always)]
        fn word(self) -> u64 { self.into() }
    })*};
}
elements!(u8 u16 u32 u64);

/// # Safety
/// `p` is valid for reading element `k`.
#[inline(always)]
unsafe fn get<T: Element>(p: *const u8, k: usize) -> T {
    // SAFETY: the caller's contract; others may write there, hence volatile.
    unsafe { p.cast::<At<T>>().add(k).read_volatile().0 }
}

/// # Safety
/// `p` is valid for writing element `k`.
#[inline(always)]
unsafe fn put<T: Element>(p: *mut u8, k: usize, v: T) {
    // SAFETY: the caller's contract.
    unsafe { p.cast::<At<T>>().add(k).write_volatile(At(v)) }
}

macro_rules! by_size {
    ($size:expr, $f:ident ( $($arg:expr),* )) => {
        match $size {
            1 => $f::<u8>($($arg),*),
            2 => $f::<u16>($($arg),*),
            4 => $f::<u32>($($arg),*),
            _ => $f::<u64>($($arg),*),
        }
    };
}

/// MOVS of `n` elements of `size` bytes.
///
/// # Safety
/// `from` is valid for reads, `to` for writes of `n * size` bytes.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, n: usize, size: usize, down: bool) {
    let bytes = n * size;
    // How far the destination is ahead, in the direction of the copy.
    let ahead = (to as usize).wrapping_sub(from as usize);
    let ahead = if down { ahead.wrapping_neg() } else { ahead };
    // SAFETY: the caller's contract, in all cases; `spread` gets a distance within the run.
    unsafe {
        if ahead >= bytes || ahead == 0 {
            // What is read is never what was written before.
            if ahead.wrapping_neg() >= bytes {
                std::ptr::copy_nonoverlapping(from, to, bytes);
            } else {
                std::ptr::copy(from, to, bytes);
            }
        } else if ahead < size || down {
            by_size!(size, one_by_one(from, to, n, down));
        } else {
            spread(from, to, bytes, ahead);
        }
    }
}

/// # Safety
/// As for [`copy`].
unsafe fn one_by_one<T: Element>(from: *const u8, to: *mut u8, n: usize, down: bool) {
    for k in 0..n {
        let k = if down { n - 1 - k } else { k };
        // SAFETY: the caller's contract.
        unsafe { put::<T>(to, k, get(from, k)) };
    }
}

/// Copies onto itself, ahead: the first bytes repeat. `to` is `distance` bytes behind `from`.
///
/// # Safety
/// As for [`copy`], and `distance` is not 0.
unsafe fn spread(from: *const u8, to: *mut u8, bytes: usize, distance: usize) {
    let mut done = 0;
    // What lies between the start and the place to write next has the pattern, and grows.
    let mut known = distance;
    while done < bytes {
        let n = known.min(bytes - done);
        // SAFETY: `n` bytes at `from` end before the place to write, which has as much room.
        unsafe { std::ptr::copy_nonoverlapping(from, to.add(done), n) };
        done += n;
        known += n;
    }
}

/// STOS of `n` elements.
///
/// # Safety
/// `to` is valid for writes of `n * size` bytes.
#[inline]
pub unsafe fn fill(to: *mut u8, n: usize, size: usize, value: u64) {
    let byte = value as u8;
    let pattern = u64::from(byte) * 0x0101_0101_0101_0101;
    let mask = if size == 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
    // SAFETY: the caller's contract.
    unsafe {
        if (value ^ pattern) & mask == 0 {
            std::ptr::write_bytes(to, byte, n * size);
        } else {
            by_size!(size, fill_with(to, n, value));
        }
    }
}

/// # Safety
/// As for [`fill`].
unsafe fn fill_with<T: Element>(to: *mut u8, n: usize, value: u64) {
    for k in 0..n {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<At<T>>().add(k).write(At(T::of(value))) };
    }
}

/// SCAS and CMPS: how many of `n` elements are compared until one is equal (`equal`) or is not, that one included, and
/// what was compared last. The right side is `y`; the left one is `x` or, without it, `value`.
///
/// # Safety
/// `x`, if given, and `y` are valid for reads of `n * size` bytes; `n` is not 0.
#[inline]
pub unsafe fn find(
    x: Option<*const u8>,
    value: u64,
    y: *const u8,
    n: usize,
    size: usize,
    down: bool,
    equal: bool,
) -> (usize, u64, u64) {
    // SAFETY: the caller's contract.
    unsafe { by_size!(size, find_in(x, value, y, n, down, equal)) }
}

/// # Safety
/// As for [`find`].
unsafe fn find_in<T: Element>(
    x: Option<*const u8>,
    value: u64,
    y: *const u8,
    n: usize,
    down: bool,
    equal: bool,
) -> (usize, u64, u64) {
    let at = |k: usize| if down { n - 1 - k } else { k };
    let left = |k: usize| match x {
        // SAFETY: the caller's contract; `k` is below `n`.
        Some(x) => unsafe { get::<T>(x, at(k)) },
        None => T::of(value),
    };
    // SAFETY: as above.
    let right = |k: usize| unsafe { get::<T>(y, at(k)) };
    let mut k = 0;
    if !down && !equal {
        // SAFETY: the caller's contract.
        k = unsafe { same(x, T::of(value), y, n) };
    } else if !down && x.is_none() && size_of::<T>() == 1 {
        // SAFETY: the caller's contract: `n` bytes can be read.
        let hit = unsafe { libc::memchr(y.cast(), T::of(value).word() as i32, n) };
        k = if hit.is_null() { n - 1 } else { hit as usize - y as usize };
    }
    // Others may write meanwhile, so the element that ends it is looked at here, once.
    while k < n {
        let (a, b) = (left(k), right(k));
        if (a == b) == equal || k + 1 == n {
            return (k + 1, a.word(), b.word());
        }
        k += 1;
    }
    let k = n - 1;
    (n, left(k).word(), right(k).word())
}

/// How many elements at the start are equal, or a few less.
///
/// # Safety
/// As for [`find`].
unsafe fn same<T: Element>(x: Option<*const u8>, value: T, y: *const u8, n: usize) -> usize {
    let per_word = 8 / size_of::<T>();
    let repeated = (0..per_word).fold(0, |w, k| w | value.word() << (k * size_of::<T>() * 8));
    let left = |k: usize| match x {
        // SAFETY: the caller's contract; whole words inside of the run are read.
        Some(x) => unsafe { get::<u64>(x, k) },
        None => repeated,
    };
    // SAFETY: as above.
    let right = |k: usize| unsafe { get::<u64>(y, k) };
    let words = n / per_word;
    let mut k = 0;
    while k + 4 <= words {
        let d = |i: usize| left(k + i) ^ right(k + i);
        if d(0) | d(1) | d(2) | d(3) != 0 {
            break;
        }
        k += 4;
    }
    while k < words && left(k) == right(k) {
        k += 1;
    }
    k * per_word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: &mut u64, n: u64) -> usize {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed % n) as usize
    }

    #[test]
    fn copies_that_overlap_end_as_if_made_element_by_element() {
        let mut seed = 3;
        for _ in 0..20_000 {
            let size = 1 << numbers(&mut seed, 4);
            let n = 1 + numbers(&mut seed, 40);
            let (from, to) = (numbers(&mut seed, 100), numbers(&mut seed, 100));
            let down = numbers(&mut seed, 2) == 1;
            let mut memory: Vec<u8> = (0..512).map(|_| numbers(&mut seed, 256) as u8).collect();
            let mut expected = memory.clone();
            for k in 0..n {
                let k = if down { n - 1 - k } else { k };
                let element = expected[from + k * size..][..size].to_vec();
                expected[to + k * size..][..size].copy_from_slice(&element);
            }
            let p = memory.as_mut_ptr();
            // SAFETY: 100 + 40 * 8 bytes are inside of the vector.
            unsafe { copy(p.add(from), p.add(to), n, size, down) };
            assert!(memory == expected, "{n} of {size} from {from} to {to} down {down}");
        }
    }

    #[test]
    fn fills_repeat_the_element() {
        for (size, value) in [(1, 0xab), (2, 0x1234), (4, 0x1122_3344), (8, 0x0102_0304_0506_0708), (8, 0)] {
            let mut memory = vec![0xeeu8; 100];
            // SAFETY: 7 * 8 bytes at 3 are inside.
            unsafe { fill(memory.as_mut_ptr().add(3), 7, size, value | 0xff << 56) };
            let element = (value | 0xff << 56).to_le_bytes();
            for k in 0..7 {
                assert_eq!(memory[3 + k * size..][..size], element[..size]);
            }
            assert!(memory[..3].iter().chain(&memory[3 + 7 * size..]).all(|b| *b == 0xee));
        }
    }

    #[test]
    fn searches_stop_where_an_element_says() {
        let mut seed = 5;
        for _ in 0..40_000 {
            let size = 1 << numbers(&mut seed, 4);
            let n = 1 + numbers(&mut seed, 60);
            let (down, equal) = (numbers(&mut seed, 2) == 1, numbers(&mut seed, 2) == 1);
            // Mostly what does not end it.
            let mut element = |other: bool| {
                let odd = numbers(&mut seed, 40) == 0;
                if odd != other { [7; 8] } else { [9; 8] }
            };
            let run = |e: &mut dyn FnMut() -> [u8; 8]| -> Vec<u8> {
                (0..n).flat_map(|_| e()[..size].to_vec()).collect()
            };
            let y = run(&mut || element(equal));
            let x = run(&mut || element(!equal));
            let with_x = n.is_multiple_of(2);
            let word = |v: &[u8], k: usize| {
                let mut w = [0; 8];
                w[..size].copy_from_slice(&v[k * size..][..size]);
                u64::from_le_bytes(w)
            };
            let seven = word(&vec![7; size], 0);
            let mut expected = (0, 0, 0);
            for k in 0..n {
                let at = if down { n - 1 - k } else { k };
                let a = if with_x { word(&x, at) } else { seven };
                let b = word(&y, at);
                expected = (k + 1, a, b);
                if (a == b) == equal {
                    break;
                }
            }
            let left = with_x.then_some(x.as_ptr());
            // SAFETY: both vectors have `n * size` bytes.
            let got = unsafe { find(left, seven | 1 << 63, y.as_ptr(), n, size, down, equal) };
            let fixed = if with_x || size < 8 { got } else { (got.0, got.1 & !(1 << 63), got.2) };
            if with_x || size < 8 {
                assert_eq!(fixed, expected, "{n} of {size} down {down} equal {equal}");
            }
        }
    }
}
