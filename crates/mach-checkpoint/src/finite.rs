//! Widening stored floats and looking for values that are not finite, at memory speed.

use half::{bf16, f16};

use crate::Dtype;

/// Little-endian floats of `data`, widened; `None` if `dtype` is not F32, F16 or BF16.
pub(crate) fn widen(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let (halves, _) = data.as_chunks::<2>();
    match dtype {
        Dtype::F32 => Some(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(halves.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(halves.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// Index of the first element that is infinite or NaN. For F8E8M0 and U8 scales that is the code 255, for F8E4M3 127
/// and 255; other integer types are always finite.
pub(crate) fn first_not_finite(dtype: Dtype, data: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F32 => scan(data, |b: [u8; 4]| (u32::from_le_bytes(b) & 0x7f80_0000) as i32, 0x7f80_0000),
        Dtype::BF16 => scan(data, |b: [u8; 2]| (u16::from_le_bytes(b) & 0x7f80) as i16, 0x7f80),
        Dtype::F16 => scan(data, |b: [u8; 2]| (u16::from_le_bytes(b) & 0x7c00) as i16, 0x7c00),
        Dtype::U8 | Dtype::F8E8M0 => scan(data, |b: [u8; 1]| b[0], 255),
        Dtype::F8E4M3 => scan(data, |b: [u8; 1]| b[0] & 0x7f, 0x7f),
        _ => None,
    }
}

/// Looks for an element whose masked exponent is `bad`, which is also the largest it can be: so a block is clean if its
/// maximum is below, and the maximum is a loop without branches that compilers turn into vector instructions.
fn scan<const N: usize, T: Ord + Copy + Default>(
    data: &[u8],
    exponent: impl Fn([u8; N]) -> T,
    bad: T,
) -> Option<usize> {
    const BLOCK: usize = 8192;
    let (elements, _) = data.as_chunks::<N>();
    for (i, block) in elements.chunks(BLOCK).enumerate() {
        let highest = block.iter().fold(T::default(), |m, &b| m.max(exponent(b)));
        if highest == bad {
            return block.iter().position(|&b| exponent(b) == bad).map(|at| i * BLOCK + at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_bad_value_of_each_type() {
        let mut values = vec![1.0f32; 20_000];
        values[17_001] = f32::NAN;
        values[19_000] = f32::INFINITY;
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(-*v).to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::F32, &f32s), Some(17_001));
        assert_eq!(first_not_finite(Dtype::BF16, &bf16s), Some(17_001));
        assert_eq!(first_not_finite(Dtype::F16, &f16s), Some(17_001));
        assert_eq!(first_not_finite(Dtype::BF16, &bf16s[..2 * 17_001]), None);
        assert_eq!(first_not_finite(Dtype::U8, &[0, 254, 255]), Some(2));
        assert_eq!(first_not_finite(Dtype::U32, &[255; 8]), None);
        assert_eq!(first_not_finite(Dtype::F8E4M3, &[0, 126, 128, 255]), Some(3));
        assert_eq!(widen(Dtype::BF16, &bf16s[..4]), Some(vec![1.0, 1.0]));
        assert_eq!(widen(Dtype::U8, &[1]), None);
    }
}
