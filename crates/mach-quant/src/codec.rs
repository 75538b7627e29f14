//! How the elements of a matrix are encoded.

use serde::{Deserialize, Serialize};

use crate::bits::Bits;
use crate::source::SourceError;

/// Floating point types of dense weights and of scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatType {
    /// IEEE single.
    F32,
    /// IEEE half. Only in sources: layouts widen it to `F32`, which is exact.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }

    /// Reads element `i` of little-endian `bytes`, widened. Out of range reads as 0.
    #[inline]
    pub fn read(self, bytes: &[u8], i: usize) -> f32 {
        let at = i * self.size();
        match (self, bytes.get(at..at + self.size())) {
            (FloatType::F32, Some(&[a, b, c, d])) => f32::from_le_bytes([a, b, c, d]),
            (FloatType::F16, Some(&[a, b])) => half::f16::from_le_bytes([a, b]).to_f32(),
            (FloatType::Bf16, Some(&[a, b])) => bf16_to_f32(u16::from_le_bytes([a, b])),
            _ => 0.0,
        }
    }

    /// Writes `value` as element `i` of little-endian `bytes`, rounded to nearest even. Out of range writes nothing.
    #[inline]
    pub fn write(self, bytes: &mut [u8], i: usize, value: f32) {
        let at = i * self.size();
        if let Some(out) = bytes.get_mut(at..at + self.size()) {
            match self {
                FloatType::F32 => out.copy_from_slice(&value.to_le_bytes()),
                FloatType::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                FloatType::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            }
        }
    }

    /// The type that a layout stores for this source type.
    pub const fn stored(self) -> FloatType {
        match self {
            FloatType::Bf16 => FloatType::Bf16,
            FloatType::F16 | FloatType::F32 => FloatType::F32,
        }
    }
}

/// Encoding of a matrix, groups running along the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Plain floats.
    Dense(FloatType),
    /// MLX affine: `value = code * scale + bias`, codes unsigned.
    Affine {
        /// Bits a code.
        bits: Bits,
        /// Columns that share scale and bias: 32, 64 or 128.
        group: usize,
        /// Type of scales and biases.
        scales: FloatType,
    },
    /// e2m1 codes with one e8m0 scale for 32 columns.
    Mxfp4,
    /// e4m3 values with one scale for a block of [`FP8_BLOCK`] rows and as many columns. Only in sources, like the
    /// two below: layouts hold the values themselves, in the smallest float type that holds them all.
    Fp8 {
        /// Type of the scales; e8m0 if `None`.
        scales: Option<FloatType>,
    },
    /// e4m3 values with one e8m0 scale for 32 columns. Only in sources.
    Mxfp8,
    /// e2m1 codes with one e4m3 scale for 16 columns. Only in sources.
    Nvfp4,
}

/// Rows and columns of a block of [`Codec::Fp8`].
pub const FP8_BLOCK: usize = 128;

impl Codec {
    /// Columns that share a scale with no other row's; `None` for dense weights and blocks.
    pub const fn group(self) -> Option<usize> {
        match self {
            Codec::Dense(_) | Codec::Fp8 { .. } => None,
            Codec::Affine { group, .. } => Some(group),
            Codec::Mxfp4 | Codec::Mxfp8 => Some(32),
            Codec::Nvfp4 => Some(16),
        }
    }

    /// Bits an element, scales not counted.
    pub const fn bits(self) -> usize {
        match self {
            Codec::Dense(t) => 8 * t.size(),
            Codec::Affine { bits, .. } => bits.get(),
            Codec::Mxfp4 | Codec::Nvfp4 => 4,
            Codec::Fp8 { .. } | Codec::Mxfp8 => 8,
        }
    }

    /// Width of the packed codes; `None` for dense weights.
    pub const fn code_bits(self) -> Option<Bits> {
        match self {
            Codec::Dense(_) | Codec::Fp8 { .. } => None,
            Codec::Affine { bits, .. } => Some(bits),
            Codec::Mxfp4 | Codec::Nvfp4 => Some(Bits::B4),
            Codec::Mxfp8 => Some(Bits::B8),
        }
    }

    /// Checks that groups are of a known width and divide `cols` columns.
    pub(crate) fn check(self, cols: usize) -> Result<(), SourceError> {
        match self {
            Codec::Dense(_) | Codec::Fp8 { .. } => return Ok(()),
            Codec::Affine { group: 32 | 64 | 128, .. } | Codec::Mxfp4 | Codec::Mxfp8 | Codec::Nvfp4 => {}
            Codec::Affine { .. } => return Err(SourceError::Codec(self)),
        }
        match self.group() {
            Some(group) if !cols.is_multiple_of(group) => Err(SourceError::Columns { cols, group }),
            _ => Ok(()),
        }
    }

    /// Bytes of scales (and biases) for one row and one group.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Codec::Dense(_) | Codec::Fp8 { .. } => 0,
            Codec::Affine { scales, .. } => 2 * scales.size(),
            Codec::Mxfp4 | Codec::Mxfp8 | Codec::Nvfp4 => 1,
        }
    }

    /// The float type that plain values of this encoding are written in; `None` for codes that layouts hold.
    ///
    /// e4m3 (4 significant bits) times a power of two, and e2m1 (2) times e4m3, are exact in bfloat16.
    pub const fn float(self) -> Option<FloatType> {
        match self {
            Codec::Dense(t) => Some(t),
            Codec::Fp8 { scales: Some(_) } => Some(FloatType::F32),
            Codec::Fp8 { scales: None } | Codec::Mxfp8 | Codec::Nvfp4 => Some(FloatType::Bf16),
            Codec::Affine { .. } | Codec::Mxfp4 => None,
        }
    }

    /// The codec that a layout stores for this source codec (half scales and half weights are widened).
    pub const fn stored(self) -> Codec {
        match self {
            Codec::Dense(t) => Codec::Dense(t.stored()),
            Codec::Fp8 { scales: Some(_) } => Codec::Dense(FloatType::F32),
            Codec::Fp8 { scales: None } | Codec::Mxfp8 | Codec::Nvfp4 => Codec::Dense(FloatType::Bf16),
            Codec::Affine { bits, group, scales } => Codec::Affine { bits, group, scales: scales.stored() },
            Codec::Mxfp4 => Codec::Mxfp4,
        }
    }
}

/// Widens a bfloat16.
#[inline]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_of_a_known_width_and_divide_the_columns() {
        let affine = |group| Codec::Affine { bits: Bits::B4, group, scales: FloatType::Bf16 };
        for (codec, group) in [(affine(32), 32), (affine(64), 64), (affine(128), 128), (Codec::Mxfp4, 32)] {
            assert!(codec.check(0).is_ok() && codec.check(3 * group).is_ok());
            for cols in [1, group - 1, group + 1, 3 * group + 16] {
                let error = codec.check(cols).unwrap_err();
                let SourceError::Columns { cols: told, group: of } = error else { panic!("{error}") };
                assert_eq!((told, of), (cols, group));
            }
        }
        assert!(matches!(affine(48).check(96), Err(SourceError::Codec(_))));
        assert!(Codec::Dense(FloatType::Bf16).check(7).is_ok());
    }
}
