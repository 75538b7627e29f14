//! The prefix cache: a prompt that begins as an earlier one did does not compute that beginning again.
//!
//! A snapshot ([`Image`]) is everything that a model carries after some tokens. Attention keeps immutable pages, which
//! snapshots and running sequences share by reference; recurrent layers keep one copied state for each snapshot, so such a
//! model can only go on from positions at which a snapshot was taken. Snapshots lie in memory (L1) and, one file each, on
//! disk (L2). They are found by chained hashes over blocks of token ids ([`chain`]), and compared token by token before
//! they are used. What does not fit is given up by value ([`score`]).
//!
//! Nothing here can change an answer: a snapshot is the very state that the tokens would lead to, and one whose bytes
//! cannot be verified is not used.

#![forbid(unsafe_code)]

mod cache;
pub mod chain;
mod config;
mod directory;
mod folder;
mod hashes;
mod image;
mod index;
mod memory;
mod names;
mod room;
pub mod score;
pub mod segment;
mod sessions;
mod snapshot;
mod stats;
mod transfer;
mod turns;
mod writer;

pub use cache::PrefixCache;
pub use config::PrefixConfig;
pub use hashes::KeptHashes;
pub use image::{Blank, Image};
pub use sessions::SessionTurn;
pub use snapshot::{Kind, Level, Restored, Snapshot, WarmedPrefix};
pub use stats::{DiskStats, Durations, MemoryStats, PrefixStats};
pub use transfer::read_speed;
pub use turns::{TurnKey, TurnMemory};
pub use writer::yield_to_others;
