//! Aligned memory for weights and state, backed by huge pages where the system has them.

mod huge;

pub use huge::{HUGE_PAGE, HugeBuf, MemoryError};
