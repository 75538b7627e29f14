//! Kernels that stand for those of the CPU, each a text in WGSL and what records it.
//!
//! Offsets into buffers are in words of 4 bytes, so that rows may begin anywhere.

pub mod attention;
pub mod delta;
pub mod heads;
pub mod norm;

/// Workgroups in one dimension.
const MOST: u32 = 32_768;

/// A grid of at least `n` workgroups; shaders take `x + y * width` as their number.
pub fn grid(n: u32) -> [u32; 3] {
    if n <= MOST { [n, 1, 1] } else { [MOST, n.div_ceil(MOST), 1] }
}

/// Partial sums by index modulo 16 and the tree over them.
pub const SUMS: &str = include_str!("../wgsl/sums.wgsl");
