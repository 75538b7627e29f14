//! Quantization to MLX affine codes, with the rounding of MLX: the value of larger magnitude at an edge of a group is hit
//! exactly, and zero stays zero where the codes allow it.

use crate::bits::Bits;
use crate::codec::FloatType;

/// Smallest step between codes.
const MIN_SCALE: f32 = 1e-7;

/// Quantizes one row. `values` has a multiple of `group` elements, `group` is a multiple of 8; codes of `bits` go to
/// `weight`, packed as one little-endian bit string, one scale and bias of type `float` for each group to `scales` and
/// `biases`.
pub fn quantize_row(
    bits: Bits,
    group: usize,
    float: FloatType,
    values: &[f32],
    weight: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) {
    let largest = bits.max_code() as f32;
    let width = bits.get();
    let bytes = group * width / 8;
    for (g, (values, weight)) in values.chunks_exact(group).zip(weight.chunks_exact_mut(bytes)).enumerate() {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = values.iter().copied().fold(f32::INFINITY, f32::min);
        let step = ((max - min) / largest).max(MIN_SCALE);
        let (mut scale, edge) = if min.abs() > max.abs() { (step, min) } else { (-step, max) };
        let code_of_zero = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if code_of_zero != 0.0 {
            scale = edge / code_of_zero;
            bias = edge;
        }
        float.write(scales, g, scale);
        float.write(biases, g, bias);
        let code = |v: f32| ((v - bias) / scale).round_ties_even().clamp(0.0, largest) as u8;
        // Eight codes are as many bytes as one has bits.
        for (out, eight) in weight.chunks_exact_mut(width).zip(values.chunks_exact(8)) {
            let packed = eight.iter().rev().fold(0u64, |all, &v| (all << width) | u64::from(code(v)));
            out.copy_from_slice(&packed.to_le_bytes()[..width]);
        }
    }
}
