//! One module a subcommand.

pub mod archs;
pub mod bench;
mod bench_grammar;
#[cfg(feature = "gpu")]
mod bench_kernels;
mod bench_kv;
mod bench_prefix;
mod bench_serve;
mod bench_specdec;
mod bench_stream;
pub mod chat;
pub mod check;
pub mod convert;
pub mod generate;
pub mod manual;
pub mod models;
pub mod serve;
pub mod synth;
pub mod trace;
