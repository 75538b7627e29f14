//! Number formats of weights: what the bits of a stored matrix mean, and the layouts that the kernels read.
//!
//! * [`Codec`]: how elements are encoded (floats, MLX affine codes of [`Bits`], MXFP4; MXFP8, NVFP4 and FP8 in blocks as
//!   sources).
//! * [`decode`]: scalar reference decoders of every MLX format, the truth that everything else is tested against.
//! * [`affine`]: quantization of floats to MLX affine codes.
//! * [`Source`]: a matrix as a checkpoint stores it; [`MatrixLayout`]: a matrix as the kernels read it, in tiles of
//!   16 rows for int8 activations or row-major for float activations.
//!
//! Formats follow MLX (affine, mxfp4, mxfp8, nvfp4) and the OCP Microscaling specification (e2m1, e8m0, e4m3).

#![forbid(unsafe_code)]

pub mod affine;
mod bits;
mod codec;
pub mod decode;
mod layout;
mod source;
mod tile;
mod turbo;

pub use bits::{Bits, UnknownBits};
pub use codec::{Codec, FP8_BLOCK, FloatType};
pub use layout::{MatrixLayout, Order};
pub use source::{Axes, Source, SourceError};
pub use tile::TILE_ROWS;
pub use turbo::{TURBOQUANT_VERSION, TurboQuant, Width};
