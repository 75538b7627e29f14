//! The command line: arguments, configuration, startup signals, benchmarks. Everything else is in the crates below.
//!
//! Low-level arguments ([`args`]) are turned into validated configuration by each command; flags and environment
//! variables are read nowhere else.

pub mod args;
pub mod bench;
pub mod commands;
mod exit;
mod loading;
mod logging;
mod memory;
mod signals;

pub use exit::{Exit, run};
