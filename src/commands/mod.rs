//! One module a subcommand.

pub mod bench;
pub mod convert;
pub mod generate;
pub mod serve;
pub mod synth;
