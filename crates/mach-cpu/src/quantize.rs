//! Affine quantization of float matrices while they are loaded.

use mach_quant::affine::quantize_row;
use mach_quant::{Bits, Codec, FloatType, Source};

/// Columns that share a scale.
pub(crate) const GROUP: usize = 64;

/// A quantized matrix in the stored form: codes, scales and biases.
pub(crate) struct Quantized {
    codec: Codec,
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

/// The codec of a width.
pub(crate) fn codec(bits: Bits) -> Codec {
    Codec::Affine { bits, group: GROUP, scales: FloatType::F32 }
}

impl Quantized {
    /// Rounds as MLX does; `cols` is a multiple of [`GROUP`].
    pub(crate) fn of(source: &Source<'_>, bits: Bits) -> Self {
        let (rows, cols) = (source.rows(), source.cols());
        let (code_bytes, scale_bytes) = (cols * bits.get() / 8, cols / GROUP * 4);
        let mut codes = vec![0; rows * code_bytes];
        let (mut scales, mut biases) = (vec![0; rows * scale_bytes], vec![0; rows * scale_bytes]);
        let mut row = vec![0.0f32; cols];
        let parts = codes
            .chunks_exact_mut(code_bytes)
            .zip(scales.chunks_exact_mut(scale_bytes))
            .zip(biases.chunks_exact_mut(scale_bytes));
        for (r, ((codes, scales), biases)) in parts.enumerate() {
            source.decode_row(r, &mut row);
            quantize_row(bits, GROUP, FloatType::F32, &row, codes, scales, biases);
        }
        Quantized { codec: codec(bits), rows, cols, codes, scales, biases }
    }

    /// The matrix to lay out.
    pub(crate) fn source(&self) -> Result<Source<'_>, mach_quant::SourceError> {
        Source::new(self.codec, self.rows, self.cols, &self.codes, &self.scales, &self.biases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_within_a_step() {
        let values: Vec<f32> = (0..2 * 128).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let source = Source::new(Codec::Dense(FloatType::F32), 2, 128, &bytes, &[], &[]).unwrap();
        for bits in Bits::ALL {
            let steps = bits.max_code() as f32;
            let quantized = Quantized::of(&source, bits);
            let back = quantized.source().unwrap();
            let mut row = vec![0.0; 128];
            for r in 0..2 {
                back.decode_row(r, &mut row);
                for (a, b) in row.iter().zip(&values[r * 128..]) {
                    assert!((a - b).abs() <= 1.01 / steps, "{bits} bits: {a} for {b}");
                }
            }
        }
    }
}
