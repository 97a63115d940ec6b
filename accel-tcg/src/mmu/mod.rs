//! Guest memory as the processor sees it.
pub mod tlb;
pub mod walk;
