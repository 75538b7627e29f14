//! Model families, the blocks they share, drafts, sequence state, and the contract of the devices that run them.
//!
//! A [`Model`] turns token rows of one or many sequences into logits. Under the numerics contract a row's logits depend
//! only on the checkpoint, the activation mode and the tokens of its own sequence: never on how tokens are split into
//! calls, on the other segments of a call, on threads, on the instruction set or on the device.
//!
//! Families (see [`spec`]) describe what is computed through the coarse operations of [`device::Device`]; a
//! [`Decoder`] runs them, and a draft ([`dflash`], [`eagle3`], [`mtp`]), on whatever device it was given. No kernel, thread or instruction set is known
//! here.

#![forbid(unsafe_code)]

mod blocks;
mod card;
mod decoder;
pub mod device;
pub mod dflash;
pub mod eagle3;
mod families;
mod inventory;
mod model;
pub mod mtp;
mod options;
mod state;

pub use card::{DeviceCard, ExpertsCard, KvFormat, ModelCard};
pub use decoder::Decoder;
pub use dflash::{DFlash, DraftConfig, DraftError, DraftHost, DraftNeeds, DraftOptions, DraftRows};
pub use families::{
    deepseek_v4, gemma, gemma3_text, gemma4, gpt_oss, llama, mistral, place, qwen3, qwen3_5, qwen3_5_moe,
    qwen3_moe, spec,
};
pub use inventory::{ResidentWeight, resident_weights};
pub use mach_quant::{Bits, TURBOQUANT_VERSION, TurboQuant};
pub use model::{
    Hidden, LogitRows, Logits, Model, ModelError, NoObserver, Observer, Purpose, Segment, Wants,
};
pub use options::{Activations, ExpertMode, LoadOptions, LoadProgress, StreamingOptions, StreamingSource};
pub use state::SequenceState;
