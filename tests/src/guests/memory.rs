//! To come.
pub(super) const GUESTS: &[super::Guest] = &[];
