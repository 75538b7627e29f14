//! EAGLE-3 heads: one layer that is trained on a model's features and goes on from its own (Li et al., "EAGLE-3: Scaling up
//! Inference Acceleration of Large Language Models via Training-Time Test", 2025).
//!
//! A head is used like a block of the model's own ([`crate::mtp`]): row `t` takes what three layers of the model made of
//! position `t` and the token at `t + 1`. Of several residual streams it takes the mean. It has a head of its own over part
//! of the vocabulary, and borrows the model's embedding unless it brings one.

mod config;
mod forward;
mod weights;

pub use config::{EagleConfig, is_head};
pub(crate) use weights::EagleWeights;
pub use weights::check_head;
