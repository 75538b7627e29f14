//! Aligned memory and direct reads.
//!
//! * [`HugeBuf`]: memory for weights and state, backed by huge pages where the system has them; cut into [`Slot`]s it is
//!   what reads land in.
//! * [`Reader`]: batches of reads that complete out of order, by io_uring or a pool of threads, past the page cache
//!   where the filesystem allows it. [`faults`] makes one fail on purpose.
//! * [`probe`]: which way of reading, and how many reads at once, this drive likes best.

mod direct;
pub mod faults;
mod files;
mod huge;
mod pool;
mod probe;
mod reader;
mod slots;
mod stats;
#[cfg(target_os = "linux")]
mod uring;

pub use direct::DirectFile;
pub use files::{Caching, ReadError};
pub use huge::{HUGE_PAGE, HugeBuf, MemoryError};
pub use probe::{DirectReads, ProbeReport, ProbeRow, probe};
pub use reader::{Completion, Read, ReadFailure, Reader, ReaderOptions, Submission};
pub use slots::{Slot, SlotRegion};
pub use stats::{LatencyHistogram, ReadStats};

/// Offsets, lengths and addresses of direct reads are multiples of this: the largest sector in use.
pub const READ_ALIGN: usize = 4096;
