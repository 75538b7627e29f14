//! Model families, the blocks they share, and sequence state.
//!
//! A [`Model`] turns token rows of one or many sequences into logits. Under the numerics contract a row's logits depend
//! only on the checkpoint, the activation mode and the tokens of its own sequence: never on how tokens are split into
//! calls, on the other segments of a call, on threads or on the instruction set.
//!
//! Families ([`qwen3_moe`], [`qwen3_5_moe`]) describe what is computed through the coarse operations of
//! [`backend::Backend`]; [`cpu`] is the backend that runs them on `mach-kernels`.

#![forbid(unsafe_code)]

pub mod backend;
mod blocks;
pub mod cpu;
mod cpu_experts;
mod decoder;
mod fill;
mod footprint;
mod inventory;
mod kv;
mod limits;
mod loader;
mod model;
pub mod qwen3_5_moe;
pub mod qwen3_moe;
mod state;

pub use footprint::{Footprint, footprint, scratch_bytes, state_bytes};
/// Changes whenever the same tokens may lead to another state: cached states of other versions are not used.
pub const NUMERICS_VERSION: u32 = 1;

/// Name of the arithmetic that a model is loaded for, as in `mach-1-int8` or `mach-1-int8-kv4v3.1`: with equal names, equal
/// tokens lead to equal logits and states, bit for bit.
pub fn numerics(options: &LoadOptions) -> String {
    let activations = match options.activations {
        Activations::Int8 => "int8",
        Activations::F32 => "f32",
    };
    let kv = options.turboquant_kv.map(|kv| format!("-{kv}.{TURBOQUANT_VERSION}")).unwrap_or_default();
    format!("mach-{NUMERICS_VERSION}-{activations}{kv}")
}

pub use mach_kernels::attention::turbo::{TurboQuant, VERSION as TURBOQUANT_VERSION};

pub use inventory::{ResidentWeight, resident_weights};
pub use loader::load;
pub use model::{
    Activations, DraftHost, ExpertMode, LoadOptions, LoadProgress, LogitRows, Logits, Model, ModelError,
    NoObserver, Observer, Purpose, Segment, StreamingOptions, StreamingSource,
};
pub use state::{LayerState, SequenceState};
