//! Scalar reference decoders, one row at a time. Slow and obvious; the kernels are tested against them.

use crate::bits::Bits;
use crate::codec::{FP8_BLOCK, FloatType};

/// The eight magnitudes of e2m1 (OCP MX); bit 3 of a code is the sign.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// e8m0: `2^(byte - 127)`; 255 is NaN.
#[inline]
pub fn e8m0(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        0 => f32::from_bits(0x0040_0000),
        b => f32::from_bits(u32::from(b) << 23),
    }
}

/// e4m3 ("fn"): no infinities, 0x7F and 0xFF are NaN, largest 448.
#[inline]
pub fn e4m3(byte: u8) -> f32 {
    let (e, m) = (u32::from(byte >> 3) & 15, u32::from(byte) & 7);
    let magnitude = match (e, m) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 * f32::from_bits((127 - 9) << 23),
        (e, m) => f32::from_bits(((e + 120) << 23) | (m << 20)),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Code `j` of a row packed as one little-endian bit string, `bits` each.
#[inline]
pub fn code(packed: &[u8], bits: Bits, j: usize) -> u32 {
    let at = j * bits.get();
    let low = packed.get(at / 8).copied().unwrap_or(0);
    let high = packed.get(at / 8 + 1).copied().unwrap_or(0);
    (u32::from(u16::from_le_bytes([low, high])) >> (at % 8)) & bits.max_code()
}

/// MLX affine: `code * scale + bias`, one rounding.
pub fn affine_row(
    bits: Bits,
    group: usize,
    float: FloatType,
    weight: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [f32],
) {
    for (j, o) in out.iter_mut().enumerate() {
        let (s, b) = (float.read(scales, j / group), float.read(biases, j / group));
        *o = (code(weight, bits, j) as f32).mul_add(s, b);
    }
}

/// MLX and gpt_oss mxfp4: e2m1 times an e8m0 scale for 32 elements.
pub fn mxfp4_row(weight: &[u8], scales: &[u8], out: &mut [f32]) {
    for (j, o) in out.iter_mut().enumerate() {
        *o = E2M1[code(weight, Bits::B4, j) as usize] * scales.get(j / 32).map_or(0.0, |&s| e8m0(s));
    }
}

/// MLX mxfp8: e4m3 times an e8m0 scale for 32 elements.
pub fn mxfp8_row(weight: &[u8], scales: &[u8], out: &mut [f32]) {
    for (j, o) in out.iter_mut().enumerate() {
        *o = weight.get(j).map_or(0.0, |&w| e4m3(w)) * scales.get(j / 32).map_or(0.0, |&s| e8m0(s));
    }
}

/// MLX nvfp4: e2m1 times an e4m3 scale for 16 elements; with a global scale the factor is `e4m3 * global / 2688`.
pub fn nvfp4_row(weight: &[u8], scales: &[u8], global: Option<f32>, out: &mut [f32]) {
    let factor = global.map_or(1.0, |g| g / 2688.0);
    for (j, o) in out.iter_mut().enumerate() {
        let scale = scales.get(j / 16).map_or(0.0, |&s| e4m3(s)) * factor;
        *o = E2M1[code(weight, Bits::B4, j) as usize] * scale;
    }
}

/// e4m3 times the scale of its block; a row of blocks of 128 columns, scales e8m0 unless of a float type.
pub fn fp8_row(float: Option<FloatType>, weight: &[u8], scales: &[u8], out: &mut [f32]) {
    let scale = |block: usize| match float {
        Some(float) => float.read(scales, block),
        None => scales.get(block).map_or(0.0, |&s| e8m0(s)),
    };
    for (j, o) in out.iter_mut().enumerate() {
        *o = weight.get(j).map_or(0.0, |&w| e4m3(w)) * scale(j / FP8_BLOCK);
    }
}
