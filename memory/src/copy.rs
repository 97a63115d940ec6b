//! Volatile copies between guest RAM and our own memory.
//!
//! Another vCPU or the kernel may write the guest side at any time, so nothing here makes a
//! reference to it. Aligned middles go by eight bytes, which also keeps an aligned store of the
//! guest's whole for the reader.

/// Copies guest bytes at `src` into `dst`.
///
/// # Safety
/// `src` must be valid for reads of `dst.len()` bytes for the whole call.
pub(crate) unsafe fn from_guest(src: *const u8, dst: &mut [u8]) {
    let len = dst.len();
    let head = src.align_offset(8).min(len);
    let words = (len - head) / 8;
    let (front, rest) = dst.split_at_mut(head);
    let (middle, back) = rest.split_at_mut(words * 8);
    for (i, b) in front.iter_mut().enumerate() {
        // SAFETY: `i < head <= len`, inside what the caller vouches for.
        *b = unsafe { src.add(i).read_volatile() };
    }
    for (i, w) in middle.chunks_exact_mut(8).enumerate() {
        // SAFETY: `head + i * 8 + 8 <= len`, and `src + head` is aligned to 8.
        let v = unsafe { src.add(head + i * 8).cast::<u64>().read_volatile() };
        w.copy_from_slice(&v.to_ne_bytes());
    }
    for (i, b) in back.iter_mut().enumerate() {
        // SAFETY: `head + words * 8 + i < len`.
        *b = unsafe { src.add(head + words * 8 + i).read_volatile() };
    }
}

/// Copies `src` over the guest bytes at `dst`.
///
/// # Safety
/// `dst` must be valid for writes of `src.len()` bytes for the whole call.
pub(crate) unsafe fn to_guest(dst: *mut u8, src: &[u8]) {
    let len = src.len();
    let head = dst.align_offset(8).min(len);
    let words = (len - head) / 8;
    for (i, b) in src[..head].iter().enumerate() {
        // SAFETY: `i < head <= len`, inside what the caller vouches for.
        unsafe { dst.add(i).write_volatile(*b) };
    }
    for i in 0..words {
        let at = head + i * 8;
        let v = u64::from_ne_bytes(src[at..at + 8].try_into().expect("eight bytes were cut"));
        // SAFETY: `at + 8 <= len`, and `dst + head` is aligned to 8.
        unsafe { dst.add(at).cast::<u64>().write_volatile(v) };
    }
    for (i, b) in src[head + words * 8..].iter().enumerate() {
        // SAFETY: `head + words * 8 + i < len`.
        unsafe { dst.add(head + words * 8 + i).write_volatile(*b) };
    }
}
