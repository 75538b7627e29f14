//! Expert residency: where the weights of routed experts are while the model runs.
//!
//! An expert is one contiguous record (gate, up, down) in a [`Bank`], the single allocation that holds experts. With
//! all experts resident every (layer, expert) has a slot of its own.

#![forbid(unsafe_code)]

mod bank;
mod record;

pub use bank::{Bank, BankError};
pub use record::{ExpertView, MatrixView, RECORD_ALIGN, RecordLayout};
