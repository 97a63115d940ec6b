//! Translations that other processors may not know of yet (SDM vol. 3, 9.1.3: cross-modifying code).
//!
//! A processor that translates marks the page, but others go on storing there without a word until they look at what
//! they were told. So the bytes that a block was made from are kept, and compared again where the architecture asks
//! for it: behind serialising instructions and interrupts. What a processor changed before it told this one in any way
//! is in memory by then. Once all others know, what is equal stays so or is reported, and the copies go.
//!
//! Nobody is waited for: a processor that stands, or that the host does not run, costs comparisons only.

/// Bytes that are kept at most.
const LIMIT: usize = 64 << 10;
/// How often the host is asked to run others before translations are given up for lack of room.
const PATIENCE: usize = 64;

/// Bytes of a page that a translation was made from.
struct Piece {
    host: usize,
    bytes: Box<[u8]>,
}

impl Piece {
    fn changed(&self) -> bool {
        changed(self.host, &self.bytes)
    }
}

/// Whether a host address no longer has these bytes.
fn changed(host: usize, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().any(|(n, b)| {
        // SAFETY: RAM of the machine, which lives as long as its processors; others may write, hence volatile.
        *b != unsafe { (host as *const u8).add(n).read_volatile() }
    })
}

/// The bytes of all such translations.
#[derive(Default)]
pub(super) struct Unsure {
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Unsure {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets all, when their translations are gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// A translation was made from these, as they were read at host addresses, and its marks were made; `all_know`,
    /// looked at after that: nobody stores there unseen any more.
    pub fn add(&mut self, pieces: &[(usize, &[u8])], all_know: bool) {
        // Also what was stored between reading the bytes and marking them is seen here.
        if all_know && !pieces.iter().any(|(host, bytes)| changed(*host, bytes)) {
            return;
        }
        self.bytes += pieces.iter().map(|p| p.1.len()).sum::<usize>();
        self.pieces.extend(pieces.iter().map(|(host, bytes)| Piece { host: *host, bytes: (*bytes).into() }));
    }

    /// The ranges whose translations must go.
    pub fn check(&mut self, all_know: &mut dyn FnMut() -> bool) -> Vec<(usize, usize)> {
        // Asked before the comparison: what came unseen is in memory when the answer is yes.
        let mut known = all_know();
        for _ in 0..PATIENCE {
            if known || self.bytes <= LIMIT {
                break;
            }
            std::thread::yield_now();
            known = all_know();
        }
        let full = self.bytes > LIMIT;
        let mut gone = Vec::new();
        self.pieces.retain(|p| {
            let drop = p.changed() || full && !known;
            if drop {
                gone.push((p.host, p.bytes.len()));
            }
            !drop
        });
        if known {
            self.pieces.clear();
        }
        self.bytes = self.pieces.iter().map(|p| p.bytes.len()).sum();
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(of: &[u8]) -> (usize, &[u8]) {
        (of.as_ptr() as usize, of)
    }

    #[test]
    fn what_changed_goes_and_what_did_not_stays_until_all_know() {
        let (mut a, b) = ([1u8, 2, 3], [4u8; 8]);
        let mut unsure = Unsure::default();
        unsure.add(&[piece(&b)], true);
        assert!(unsure.is_empty());
        unsure.add(&[piece(&a)], false);
        unsure.add(&[piece(&b)], false);
        assert_eq!(unsure.check(&mut || false), []);
        a[2] = 9;
        assert_eq!(unsure.check(&mut || false), [(a.as_ptr() as usize, 3)]);
        assert!(!unsure.is_empty());
        assert_eq!(unsure.check(&mut || true), []);
        assert!(unsure.is_empty());
    }

    #[test]
    fn bytes_that_changed_while_they_were_translated_are_unsure_though_all_know() {
        let mut a = [1u8];
        let read = a;
        a[0] = 2;
        let mut unsure = Unsure::default();
        unsure.add(&[(a.as_ptr() as usize, &read[..])], true);
        assert_eq!(unsure.check(&mut || true), [(a.as_ptr() as usize, 1)]);
        assert!(unsure.is_empty());
    }

    #[test]
    fn copies_are_bounded_though_nobody_answers() {
        let page = [0u8; 4096];
        let mut unsure = Unsure::default();
        for _ in 0..1000 {
            unsure.add(&[piece(&page)], false);
            let _ = unsure.check(&mut || false);
            assert!(unsure.bytes <= LIMIT);
        }
    }
}
