//! One matrix on its way from the source's form to its layout.

use mach_checkpoint::{CheckpointError, LinearSource};
use mach_quant::{Bits, Codec, MatrixLayout, Order, Source, TILE_ROWS, affine};

use crate::ConvertError;

/// Affine quantization of float weights, as MLX does it. Routers, gates and other matrices that meet float activations
/// stay as they are, and so do matrices whose width is no multiple of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantize {
    /// Bits a code.
    pub bits: Bits,
    /// Columns that share scale and bias: 32, 64 or 128.
    pub group: usize,
}

impl Quantize {
    /// Refuses what cannot be laid out.
    pub(crate) fn check(self) -> Result<(), ConvertError> {
        match self.group {
            32 | 64 | 128 => Ok(()),
            group => Err(ConvertError::Input(format!("groups of {group} columns: known are 32, 64 and 128"))),
        }
    }
}

/// A matrix and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversion<'a> {
    source: LinearSource<'a>,
    stored: Source<'a>,
    quantize: Option<Quantize>,
    pub(crate) layout: MatrixLayout,
}

impl<'a> Conversion<'a> {
    /// What becomes of a source in an order, quantized if it is asked for and can be.
    pub(crate) fn new(
        source: LinearSource<'a>,
        order: Order,
        quantize: Option<Quantize>,
    ) -> Result<Self, ConvertError> {
        let stored = source.source()?;
        let quantize = match (quantize, stored.codec()) {
            (Some(q), codec) if codec.float().is_some() && source.cols.is_multiple_of(q.group) => Some(q),
            (Some(_), Codec::Affine { .. } | Codec::Mxfp4) => {
                return Err(CheckpointError::Tensor {
                    file: source.file.to_owned(),
                    tensor: source.module.to_owned(),
                    reason: format!("already quantized ({:?}); only float weights can be", source.packing),
                }
                .into());
            }
            _ => None,
        };
        let mut layout = MatrixLayout::of(&stored, order);
        if let (Some(Quantize { bits, group }), Some(float)) = (quantize, stored.codec().float()) {
            layout.codec = Codec::Affine { bits, group, scales: float }.stored();
            layout.order = order;
        }
        Ok(Conversion { source, stored, quantize, layout })
    }

    /// The bytes that it is made from.
    pub(crate) fn parts(&self) -> [&'a [u8]; 3] {
        [self.source.weight, self.source.scales, self.source.biases]
    }

    /// Fails if a value is not finite.
    pub(crate) fn check_finite(&self) -> Result<(), ConvertError> {
        Ok(self.source.check_finite()?)
    }

    /// Writes units `first..` of the layout into `out`, as many as it holds.
    pub(crate) fn write(&self, first: usize, out: &mut [u8]) -> Result<(), ConvertError> {
        let (Some(Quantize { bits, group }), Some(float)) = (self.quantize, self.stored.codec().float())
        else {
            self.layout.pack(&self.stored, first, out);
            return Ok(());
        };
        let cols = self.source.cols;
        let code_len = cols * bits.get() / 8;
        let scale_len = cols / group * float.size();
        // The rows of one unit at a time become a small quantized matrix, which is laid out like any other.
        let unit_rows = if self.layout.order == Order::Tiles { TILE_ROWS } else { 1 };
        let mut values = vec![0.0; cols];
        for (i, unit) in out.chunks_exact_mut(self.layout.unit_bytes().max(1)).enumerate() {
            let start = (first + i) * unit_rows;
            let rows = unit_rows.min(self.source.rows.saturating_sub(start));
            let (mut weight, mut scales, mut biases) =
                (vec![0; rows * code_len], vec![0; rows * scale_len], vec![0; rows * scale_len]);
            for (((row, w), s), b) in (start..start + rows)
                .zip(weight.chunks_exact_mut(code_len.max(1)))
                .zip(scales.chunks_exact_mut(scale_len.max(1)))
                .zip(biases.chunks_exact_mut(scale_len.max(1)))
            {
                self.stored.decode_row(row, &mut values);
                affine::quantize_row(bits, group, float, &values, w, s, b);
            }
            let codec = Codec::Affine { bits, group, scales: float };
            let part = Source::new(codec, rows, cols, &weight, &scales, &biases)
                .map_err(|e| ConvertError::Input(format!("{}: {e}", self.source.module)))?;
            MatrixLayout::of(&part, self.layout.order).pack(&part, 0, unit);
        }
        Ok(())
    }
}
