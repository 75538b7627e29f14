//! Causal attention over paged keys and values.
//!
//! A page holds the keys and values of [`PAGE`] consecutive absolute positions, as bf16, as f32, or rotated and quantized
//! ([`turbo`]). Inside a page: scores, their maximum, exponentials, their sum and the weighted sum of
//! values (positions ascending); pages are then merged in order. A query's result depends on nothing but the range of
//! positions that it sees and the cache.

mod cache;
pub mod turbo;
mod walk;

pub use cache::{KvCache, KvShape, KvType, PAGE};
pub use walk::{AttentionScratch, Scores, attend, attend_ranges};
