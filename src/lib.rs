//! mach.

pub mod bench;
pub mod commands;
