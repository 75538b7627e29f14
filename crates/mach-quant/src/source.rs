//! A matrix as a checkpoint stores it.

use crate::codec::{Codec, FP8_BLOCK, FloatType};
use crate::decode;

/// Why a [`Source`] is not what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A codec that the layouts cannot hold.
    #[error("unsupported encoding {0:?}")]
    Codec(Codec),
    /// Columns are no multiple of the group.
    #[error("{cols} columns are no multiple of the group of {group}")]
    Columns {
        /// Columns of the matrix.
        cols: usize,
        /// Columns that share a scale.
        group: usize,
    },
    /// More elements than can be addressed.
    #[error("{rows} x {cols} is too large")]
    Size {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A byte slice has a wrong length.
    #[error("{what}: {found} bytes where {expected} are needed")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
}

/// A row-major matrix `[rows, cols]` in its stored form: floats, or codes packed as MLX packs them with scales
/// `[rows, cols / group]` (FP8: one for each block) and, for the affine mode, biases of the same shape.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    codec: Codec,
    rows: usize,
    cols: usize,
    weight: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    /// Bytes of a row of weights, scales, biases: kept, because packing asks for them all the time.
    strides: [usize; 3],
}

impl<'a> Source<'a> {
    /// Checks lengths against the shape.
    pub fn new(
        codec: Codec,
        rows: usize,
        cols: usize,
        weight: &'a [u8],
        scales: &'a [u8],
        biases: &'a [u8],
    ) -> Result<Self, SourceError> {
        codec.check(cols)?;
        let scale_len = |per: usize| codec.group().map_or(0, |g| rows * (cols / g) * per);
        let (s, b) = match codec {
            Codec::Dense(_) => (0, 0),
            Codec::Affine { scales, .. } => (scale_len(scales.size()), scale_len(scales.size())),
            Codec::Mxfp4 | Codec::Mxfp8 | Codec::Nvfp4 => (scale_len(1), 0),
            Codec::Fp8 { scales } => {
                let blocks = rows.div_ceil(FP8_BLOCK) * cols.div_ceil(FP8_BLOCK);
                (blocks * scales.map_or(1, FloatType::size), 0)
            }
        };
        for (what, slice, expected) in
            [("weight", weight, rows * cols * codec.bits() / 8), ("scales", scales, s), ("biases", biases, b)]
        {
            if slice.len() != expected {
                return Err(SourceError::Length { what, found: slice.len(), expected });
            }
        }
        let mut strides = [weight, scales, biases].map(|s| s.len().checked_div(rows).unwrap_or(0));
        if let Codec::Fp8 { scales } = codec {
            strides[1] = cols.div_ceil(FP8_BLOCK) * scales.map_or(1, FloatType::size);
        }
        Ok(Source { codec, rows, cols, weight, scales, biases, strides })
    }

    /// How elements are encoded as stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of one row's elements or codes.
    pub fn weight_row(&self, row: usize) -> &'a [u8] {
        let n = self.strides[0];
        &self.weight[row * n..(row + 1) * n]
    }

    /// The bytes of one row's scales, which rows of a block share.
    pub fn scale_row(&self, row: usize) -> &'a [u8] {
        let n = self.strides[1];
        let row = if matches!(self.codec, Codec::Fp8 { .. }) { row / FP8_BLOCK } else { row };
        &self.scales[row * n..(row + 1) * n]
    }

    /// The bytes of one row's biases.
    pub fn bias_row(&self, row: usize) -> &'a [u8] {
        let n = self.strides[2];
        &self.biases[row * n..(row + 1) * n]
    }

    /// Decodes one row by the reference decoders.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (w, s, b) = (self.weight_row(row), self.scale_row(row), self.bias_row(row));
        match self.codec {
            Codec::Dense(t) => {
                for (j, o) in out.iter_mut().enumerate().take(self.cols) {
                    *o = t.read(w, j);
                }
            }
            Codec::Affine { bits, group, scales } => decode::affine_row(bits, group, scales, w, s, b, out),
            Codec::Mxfp4 => decode::mxfp4_row(w, s, out),
            Codec::Fp8 { scales } => decode::fp8_row(scales, w, s, out),
            Codec::Mxfp8 => decode::mxfp8_row(w, s, out),
            Codec::Nvfp4 => decode::nvfp4_row(w, s, None, out),
        }
    }

    /// Scale `i` of a row, widened (e8m0 scales included).
    pub(crate) fn scale(&self, row: usize, group: usize) -> f32 {
        match self.codec {
            Codec::Affine { scales, .. } => scales.read(self.scale_row(row), group),
            Codec::Mxfp4 => decode::e8m0(self.scale_row(row)[group]),
            Codec::Dense(_) | Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => 1.0,
        }
    }

    /// Bias `i` of a row, widened.
    pub(crate) fn bias(&self, row: usize, group: usize) -> f32 {
        match self.codec {
            Codec::Affine { scales, .. } => scales.read(self.bias_row(row), group),
            _ => 0.0,
        }
    }
}

/// Widens stored bytes of `from` into little-endian bytes of its [`FloatType::stored`] type.
pub(crate) fn widen(from: FloatType, bytes: &[u8], out: &mut [u8]) {
    if from.stored() == from {
        out.copy_from_slice(bytes);
    } else {
        for (i, o) in out.chunks_exact_mut(4).enumerate() {
            o.copy_from_slice(&from.read(bytes, i).to_le_bytes());
        }
    }
}
