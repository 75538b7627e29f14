//! The command line: arguments, configuration, memory budget, startup signals. Everything else is in the crates below.
//!
//! Low-level arguments ([`args`]) are turned into validated configuration by each command; flags and environment
//! variables are read nowhere else ([`settings`]).

pub mod args;
mod budget;
pub mod commands;
mod exit;
pub mod experts;
pub mod host;
mod identity;
mod loading;
mod logging;
mod memory;
pub mod output;
pub mod prefix;
pub mod settings;
mod signals;
mod store;

pub use exit::{Exit, run};
