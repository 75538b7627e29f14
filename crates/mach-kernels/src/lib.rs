//! CPU arithmetic under the numerics contract: the same bits whatever the thread count, the batch, the chunking and the
//! instruction set.
//!
//! Every kernel is written once, generic over [`simd::Simd`], a 16-lane vector interface with a scalar twin and one
//! implementation for each instruction set. Because the twins agree operation by operation (IEEE arithmetic, exact
//! integer sums, one fixed reduction tree), kernels agree bit by bit.

// Index loops over small arrays of registers, where iterators would put closures between the target features and the
// vector operations.
#![allow(clippy::needless_range_loop)]
// Weights are bytes; every load of wider elements is an unaligned one.
#![allow(clippy::cast_ptr_alignment)]
// A group of 0 means float rows; dividing by it is not what the test guards.
#![allow(clippy::manual_checked_ops)]

pub mod attention;
pub mod ceiling;
pub mod compressed;
mod cores;
pub mod delta;
pub mod elementwise;
pub mod experts;
mod isa;
pub mod linear;
pub mod math;
mod pool;
pub mod quantize;
pub mod routing;
pub mod simd;
pub mod streams;

pub use cores::Cores;
pub use isa::{Isa, Kernel, dispatch};
pub use pool::{Pool, partition};
