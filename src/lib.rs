//! The command line: arguments, configuration, memory budget, startup signals. Everything else is in the crates below.
//!
//! Low-level arguments ([`args`]) are turned into validated configuration by each command; flags and environment
//! variables are read nowhere else ([`settings`]).

pub mod args;
pub mod asking;
mod budget;
mod check;
pub mod cli;
pub mod commands;
pub mod device;
mod drafts;
mod exit;
pub mod experts;
mod figures;
pub mod host;
mod hub;
mod identity;
mod loading;
mod logging;
mod memory;
pub mod output;
pub mod prefix;
pub mod settings;
mod signals;
mod sizing;
mod speech;
mod store;

pub use exit::{Exit, run};
