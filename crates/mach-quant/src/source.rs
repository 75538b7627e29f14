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

/// How the rows of a matrix lie among other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// Row after row; every so-manieth of the rows that are there is the matrix's.
    Rows {
        /// 1 where all are.
        every: usize,
    },
    /// Column after column, as where the input axis comes first; every so-manieth value of a column is the matrix's.
    /// Floats only.
    Columns {
        /// Values of a column, others' included.
        across: usize,
        /// 1 where all are the matrix's.
        every: usize,
    },
}

impl Axes {
    /// Row after row and nothing else.
    pub const PLAIN: Axes = Axes::Rows { every: 1 };
}

/// A matrix `[rows, cols]` in its stored form: floats, or codes packed as MLX packs them with scales
/// `[rows, cols / group]` (FP8: one for each block) and, for the affine mode, biases of the same shape. Row-major, unless its axes say otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    codec: Codec,
    rows: usize,
    cols: usize,
    weight: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    axes: Axes,
    /// Bytes of a row of weights, scales, biases: kept, because packing asks for them all the time.
    lengths: [usize; 3],
    /// Rows from one to the next.
    every: usize,
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
        Self::with_axes(codec, (rows, cols), Axes::PLAIN, [weight, scales, biases])
    }

    /// As [`new`](Self::new) for a matrix `(rows, cols)` that lies otherwise: weight, scales and biases begin with the
    /// matrix's first value and end with or after its last.
    pub fn with_axes(
        codec: Codec,
        (rows, cols): (usize, usize),
        axes: Axes,
        [weight, scales, biases]: [&'a [u8]; 3],
    ) -> Result<Self, SourceError> {
        codec.check(cols)?;
        let every = match (axes, codec) {
            (Axes::Rows { every }, _) => every.max(1),
            (Axes::Columns { .. }, Codec::Dense(_)) => 1,
            (Axes::Columns { .. }, _) => return Err(SourceError::Codec(codec)),
        };
        let scale_len = |per: usize| codec.group().map_or(0, |g| (cols / g) * per);
        let (s, b) = match codec {
            Codec::Dense(_) => (0, 0),
            Codec::Affine { scales, .. } => (scale_len(scales.size()), scale_len(scales.size())),
            Codec::Mxfp4 | Codec::Mxfp8 | Codec::Nvfp4 => (scale_len(1), 0),
            Codec::Fp8 { scales } => (cols.div_ceil(FP8_BLOCK) * scales.map_or(1, FloatType::size), 0),
        };
        if matches!(codec, Codec::Fp8 { .. }) && axes != Axes::PLAIN {
            return Err(SourceError::Codec(codec));
        }
        // Rows of a block share their scales.
        let scale_rows = if matches!(codec, Codec::Fp8 { .. }) { rows.div_ceil(FP8_BLOCK) } else { rows };
        let lengths = [cols * codec.bits() / 8, s, b];
        let parts = [("weight", weight, rows), ("scales", scales, scale_rows), ("biases", biases, rows)];
        for ((what, slice, rows), length) in parts.into_iter().zip(lengths) {
            let expected = match axes {
                _ if rows == 0 || cols == 0 || length == 0 => 0,
                Axes::Rows { .. } => ((rows - 1) * every + 1) * length,
                Axes::Columns { across, every } => {
                    ((cols - 1) * across + (rows - 1) * every + 1) * (length / cols)
                }
            };
            // Where others' values lie between, they may also follow.
            let fits = if axes == Axes::PLAIN { slice.len() == expected } else { slice.len() >= expected };
            if !fits {
                return Err(SourceError::Length { what, found: slice.len(), expected });
            }
        }
        Ok(Source { codec, rows, cols, weight, scales, biases, axes, lengths, every })
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

    fn row(&self, which: usize, data: &'a [u8], row: usize) -> &'a [u8] {
        let (n, at) = (self.lengths[which], row * self.every * self.lengths[which]);
        &data[at..at + n]
    }

    /// The bytes of one row's elements or codes, of a matrix that lies in rows.
    pub fn weight_row(&self, row: usize) -> &'a [u8] {
        self.row(0, self.weight, row)
    }

    /// Writes a row of floats as little-endian values of the type that `float` is [stored](FloatType::stored) as.
    pub(crate) fn write_floats(&self, float: FloatType, row: usize, out: &mut [u8]) {
        let Axes::Columns { across, every } = self.axes else {
            return widen(float, self.weight_row(row), out);
        };
        let (from, to) = (float.size(), float.stored().size());
        for (j, o) in out.chunks_exact_mut(to).enumerate() {
            let at = (j * across + row * every) * from;
            widen(float, &self.weight[at..at + from], o);
        }
    }

    /// The bytes of one row's scales, which rows of a block share.
    pub fn scale_row(&self, row: usize) -> &'a [u8] {
        let row = if matches!(self.codec, Codec::Fp8 { .. }) { row / FP8_BLOCK } else { row };
        self.row(1, self.scales, row)
    }

    /// The bytes of one row's biases.
    pub fn bias_row(&self, row: usize) -> &'a [u8] {
        self.row(2, self.biases, row)
    }

    /// Decodes one row by the reference decoders.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        if let (Codec::Dense(t), Axes::Columns { across, every }) = (self.codec, self.axes) {
            for (j, o) in out.iter_mut().enumerate().take(self.cols) {
                *o = t.read(self.weight, j * across + row * every);
            }
            return;
        }
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
