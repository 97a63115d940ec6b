//! Which pages code was fetched through since an epoch began.
use crate::cache::AddressHasher;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

/// More pages than this end the epoch.
const LIMIT: usize = 4096;

/// A set of mapped pages of any size.
#[derive(Default)]
pub(super) struct Fetched {
    /// Start of the page plus log2 of its size.
    pages: HashSet<u64, BuildHasherDefault<AddressHasher>>,
    /// One bit for each log2 of a size that occurs.
    sizes: u64,
    /// One of them does not survive a CR3 load.
    local: bool,
}

impl Fetched {
    /// Adds the page of `va`; false if there are too many.
    pub fn add(&mut self, va: u64, shift: u8, global: bool) -> bool {
        if self.pages.len() >= LIMIT {
            return false;
        }
        self.pages.insert(va >> shift << shift | u64::from(shift));
        self.sizes |= 1 << shift;
        self.local |= !global;
        true
    }

    /// Whether code was fetched through the page that holds `va`.
    pub fn covers(&self, va: u64) -> bool {
        let mut sizes = self.sizes;
        while sizes != 0 {
            let shift = sizes.trailing_zeros();
            sizes &= sizes - 1;
            if self.pages.contains(&(va >> shift << shift | u64::from(shift))) {
                return true;
            }
        }
        false
    }

    /// Whether all pages survive a CR3 load.
    pub fn all_global(&self) -> bool {
        !self.local
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.pages.clear();
        (self.sizes, self.local) = (0, false);
    }
}
