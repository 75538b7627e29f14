//! Sessions, the generation loop and sampling.
//!
//! [`Generator`] is what a server uses: it hands in a [`GenerateRequest`] and receives [`Event`]s; dropping the receiver
//! cancels the request before the next step. [`Engine`] is the one that runs our own models: a bounded queue, and one
//! thread that owns the model.

mod engine;
mod events;
mod generator;
pub mod grammar;
mod metrics;
mod prefix;
mod queue;
mod request;
pub mod sampling;
mod scheduler;
mod sequence;
mod speculation;
mod stats;
mod text;
mod tokenizer;

pub use engine::{Engine, EngineConfig, StartError};
pub use events::{Charge, EventSender, Events, Unread, channel};
pub use generator::{Generator, GeneratorFacts};
pub use mach_experts::{ExpertUses, LayerUses};
pub use mach_models::KvFormat;
pub use metrics::EngineMetrics;
pub use request::{
    CacheHints, DecodeMode, EngineError, Event, FinishReason, GenerateRequest, OutputControl, Preset,
    Started, Timings, TokenLogprob,
};
pub use sampling::SamplingParams;
pub use speculation::Speculation;
pub use stats::{EngineStats, RequestStats};
pub use tokenizer::{TextTokenizer, TokenizerError};
