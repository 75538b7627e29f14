//! One module a subcommand.

pub mod generate;
pub mod serve;
