//! CPU arithmetic under the numerics contract.

pub mod ceiling;
