//! A matrix as the kernels read it.

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::source::{Source, SourceError, widen};
use crate::tile::{TILE_ROWS, decode_tile_row, pack_tile, tile_bytes, untile_row};

/// Order of a matrix in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Tiles of 16 rows x one group, all groups of a row tile together: for int8 activations.
    Tiles,
    /// Row-major, each row its elements or packed codes, then its scales, then its biases: for float activations.
    Rows,
}

/// Shape, encoding and order of a matrix in memory. The same bytes may lie in a sidecar file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixLayout {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Encoding; scales and dense elements are bf16 or f32, never half.
    pub codec: Codec,
    /// Tiles or rows.
    pub order: Order,
}

impl MatrixLayout {
    /// The layout for a source: tiles need a quantized codec, so dense sources always are `Rows`.
    pub fn of(source: &Source<'_>, order: Order) -> Self {
        let codec = source.codec().stored();
        let order = if codec.group().is_some() { order } else { Order::Rows };
        MatrixLayout { rows: source.rows(), cols: source.cols(), codec, order }
    }

    /// Checks a layout that was read from a file: an encoding that layouts hold, whole groups, a size that can be counted.
    pub fn validate(&self) -> Result<(), SourceError> {
        let dense = self.codec.group().is_none();
        if self.codec.stored() != self.codec || (dense && self.order == Order::Tiles) {
            return Err(SourceError::Codec(self.codec));
        }
        self.codec.check(self.cols)?;
        // 16 bytes an element is more than any encoding takes.
        let countable = |rows: usize| rows.checked_mul(self.cols)?.checked_mul(16);
        match self.rows.checked_next_multiple_of(TILE_ROWS).and_then(countable) {
            Some(_) => Ok(()),
            None => Err(SourceError::Size { rows: self.rows, cols: self.cols }),
        }
    }

    /// The layout for the same matrix in another order, as [`of`](Self::of) chooses it.
    pub fn in_order(&self, order: Order) -> Self {
        MatrixLayout { order: if self.codec.group().is_some() { order } else { Order::Rows }, ..*self }
    }

    /// Whether [`repack`](Self::repack) can make this layout from `from`.
    pub fn repacks_from(&self, from: &MatrixLayout) -> bool {
        self == from || (self.order == Order::Rows && from.in_order(Order::Rows) == *self)
    }

    /// Writes units `first..` into `out`, as many as `out` holds, from `data` that lies in the layout `from`: the same, or
    /// tiles where this one is row-major. Every bit is kept. Writes nothing if `repacks_from` is false.
    pub fn repack(&self, from: &MatrixLayout, data: &[u8], first: usize, out: &mut [u8]) {
        let unit = self.unit_bytes().max(1);
        if self == from {
            out.copy_from_slice(&data[first * unit..first * unit + out.len()]);
        } else if self.repacks_from(from) {
            let tiles = from.unit_bytes();
            for (i, out) in out.chunks_exact_mut(unit).enumerate() {
                let row = first + i;
                let data = &data[row / TILE_ROWS * tiles..(row / TILE_ROWS + 1) * tiles];
                untile_row(self.codec, data, row % TILE_ROWS, out);
            }
        }
    }

    /// Groups of a row; 0 for dense.
    pub fn groups(&self) -> usize {
        self.codec.group().map_or(0, |g| self.cols / g)
    }

    /// Units of `unit_bytes`: row tiles or rows.
    pub fn units(&self) -> usize {
        match self.order {
            Order::Tiles => self.rows.div_ceil(TILE_ROWS),
            Order::Rows => self.rows,
        }
    }

    /// Bytes of one tile (order `Tiles`).
    pub fn tile_bytes(&self) -> usize {
        tile_bytes(self.codec)
    }

    /// Bytes of one unit.
    pub fn unit_bytes(&self) -> usize {
        match self.order {
            Order::Tiles => self.groups() * self.tile_bytes(),
            Order::Rows => self.cols * self.codec.bits() / 8 + self.groups() * self.codec.scale_bytes(),
        }
    }

    /// Bytes of the whole matrix.
    pub fn bytes(&self) -> usize {
        self.units() * self.unit_bytes()
    }

    /// Writes units `first..` of the source into `out`, as many as `out` holds.
    pub fn pack(&self, source: &Source<'_>, first: usize, out: &mut [u8]) {
        for (i, unit) in out.chunks_exact_mut(self.unit_bytes().max(1)).enumerate() {
            match self.order {
                Order::Tiles => {
                    for (g, tile) in unit.chunks_exact_mut(self.tile_bytes()).enumerate() {
                        pack_tile(source, first + i, g, tile);
                    }
                }
                Order::Rows => self.pack_row(source, first + i, unit),
            }
        }
    }

    fn pack_row(&self, source: &Source<'_>, row: usize, out: &mut [u8]) {
        let (weight, rest) = out.split_at_mut(self.cols * self.codec.bits() / 8);
        match source.codec() {
            Codec::Dense(t) => source.write_floats(t, row, weight),
            Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => {
                let Some(float) = source.codec().float() else { return };
                let mut values = vec![0.0; self.cols];
                source.decode_row(row, &mut values);
                for (i, value) in values.into_iter().enumerate() {
                    float.write(weight, i, value);
                }
            }
            Codec::Affine { scales, .. } => {
                weight.copy_from_slice(source.weight_row(row));
                let (s, b) = rest.split_at_mut(rest.len() / 2);
                widen(scales, source.scale_row(row), s);
                widen(scales, source.bias_row(row), b);
            }
            Codec::Mxfp4 => {
                weight.copy_from_slice(source.weight_row(row));
                rest.copy_from_slice(source.scale_row(row));
            }
        }
    }

    /// Decodes one row into `out[..cols]` (embedding lookup, reference).
    pub fn decode_row(&self, data: &[u8], row: usize, out: &mut [f32]) {
        let out = &mut out[..self.cols];
        match self.order {
            Order::Tiles => {
                let (unit, group) = (self.unit_bytes(), self.codec.group().unwrap_or(1));
                let tiles = &data[row / TILE_ROWS * unit..(row / TILE_ROWS + 1) * unit];
                for (tile, o) in tiles.chunks_exact(self.tile_bytes()).zip(out.chunks_exact_mut(group)) {
                    decode_tile_row(self.codec, tile, row % TILE_ROWS, o);
                }
            }
            Order::Rows => {
                let unit = &data[row * self.unit_bytes()..(row + 1) * self.unit_bytes()];
                let (weight, rest) = unit.split_at(self.cols * self.codec.bits() / 8);
                match self.codec {
                    Codec::Dense(t) => {
                        for (j, o) in out.iter_mut().enumerate() {
                            *o = t.read(weight, j);
                        }
                    }
                    Codec::Affine { bits, group, scales } => {
                        let (s, b) = rest.split_at(rest.len() / 2);
                        crate::decode::affine_row(bits, group, scales, weight, s, b, out);
                    }
                    Codec::Mxfp4 => crate::decode::mxfp4_row(weight, rest, out),
                    // In sources only.
                    Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => {}
                }
            }
        }
    }
}
