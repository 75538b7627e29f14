//! The limits of this machine, measured: what memory can deliver and what the integer units can multiply.
//!
//! A speed means little alone; beside its ceiling it says how much is left. Decoding one token reads every weight
//! that the token needs once, so its ceiling is [`read_bandwidth`]; prefill reuses each weight over many rows, so its
//! ceiling is [`int8_dot`]. Both do nothing but the one thing they measure and keep the best of several repeats:
//! a ceiling that is too low would flatter everything that is compared with it.

mod buffer;
mod dot;
mod read;
mod team;

pub use dot::{DotCeiling, int8_dot};
pub use read::{ReadCeiling, ReadPattern, read_bandwidth};
