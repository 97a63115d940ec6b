//! Which pages code was fetched through since an epoch began.
use super::regions::{Dep, Moved};
use crate::cache::AddressHasher;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// More pages than this end the epoch.
const LIMIT: usize = 4096;

/// A set of mapped pages of any size, each with the table entry that maps it.
#[derive(Default)]
pub(super) struct Fetched {
    /// By the start of the page plus log2 of its size.
    pages: HashMap<u64, Dep, BuildHasherDefault<AddressHasher>>,
    /// One bit for each log2 of a size that occurs.
    sizes: u64,
}

impl Fetched {
    /// Adds the page of `va`; false if there are too many, or the same page was fetched through another entry before.
    pub fn add(&mut self, va: u64, shift: u8, dep: Dep) -> bool {
        if self.pages.len() >= LIMIT {
            return false;
        }
        let old = self.pages.insert(va >> shift << shift | u64::from(shift), dep);
        self.sizes |= 1 << shift;
        old.is_none_or(|old| old.maps_like(&dep))
    }

    /// Whether code was fetched through the page that holds `va`.
    pub fn covers(&self, va: u64) -> bool {
        let mut sizes = self.sizes;
        while sizes != 0 {
            let shift = sizes.trailing_zeros();
            sizes &= sizes - 1;
            if self.pages.contains_key(&(va >> shift << shift | u64::from(shift))) {
                return true;
            }
        }
        false
    }

    /// Whether the tables still say the same of all pages, and none was found by tables that moved.
    pub fn hold(&self, wide: bool, moved: &Moved) -> bool {
        self.pages.iter().all(|(page, dep)| {
            dep.still_maps(wide) && (moved.is_empty() || !moved.meets(*page, *page as u8 & 63))
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sizes == 0
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.sizes = 0;
    }
}
