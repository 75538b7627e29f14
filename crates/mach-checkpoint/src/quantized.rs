//! A weight matrix as stored: dense floats or packed codes with scales.

use std::path::Path;

use crate::Dtype;

/// How the elements of a weight matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Plain floats of this type.
    Dense(Dtype),
    /// MLX affine codes (quant-formats: value = code * scale + bias), scales and biases of type `scales`.
    Affine {
        /// Bits a code: 4 or 8 (others are refused for now).
        bits: u8,
        /// Columns that share a scale.
        group: usize,
        /// F32, F16 or BF16.
        scales: Dtype,
    },
    /// e2m1 codes, one e8m0 scale for 32 columns.
    Mxfp4,
}

/// One weight matrix `[rows, cols]`, row-major, borrowed from the mapped shard. Slices have the exact lengths that
/// `packing`, `rows` and `cols` imply.
#[derive(Debug, Clone, Copy)]
pub struct LinearSource<'a> {
    /// Module path, for messages.
    pub module: &'a str,
    /// Shard, for messages.
    pub file: &'a Path,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Storage.
    pub packing: Packing,
    /// Floats or packed codes.
    pub weight: &'a [u8],
    /// Scales (empty when dense).
    pub scales: &'a [u8],
    /// Zero points (affine only, else empty).
    pub biases: &'a [u8],
}
