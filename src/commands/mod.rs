//! The subcommands of `mach`.

pub mod bench;
