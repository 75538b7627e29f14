//! Converts checkpoints to the engine format.
//!
//! A converted checkpoint holds its weights as the kernels read them: `resident.safetensors` for everything but experts,
//! `expert_sidecar/` with one contiguous record an expert. Nothing is rounded, unless [`Quantize`] asks for it.
//! [`convert`] writes a new directory; [`export_sidecar`] puts a sidecar beside a checkpoint's own tensors.
//!
//! Both write into a staging directory and rename it when all is on the drive, so a half-written checkpoint never
//! stands where a whole one is expected; started again after an interruption, they keep the layers that were finished.

#![forbid(unsafe_code)]

mod convert;
mod error;
mod layers;
mod matrix;
mod parallel;
mod resident;
mod staging;
mod verify;

pub use convert::{ConvertOptions, Progress, Report, convert, export_sidecar};
pub use error::ConvertError;
pub use matrix::Quantize;
pub use verify::verify;
