//! Kernels that stand for those of the CPU, each a text in WGSL and what records it.
//!
//! Offsets into buffers are in words of 4 bytes, so that rows may begin anywhere.

pub mod attention;
pub mod delta;
pub mod heads;
pub mod norm;
pub mod prepare;

/// Workgroups in one dimension.
const MOST: u32 = 32_768;

/// A grid of at least `n` workgroups; shaders take `x + y * width` as their number.
pub fn grid(n: u32) -> [u32; 3] {
    if n <= MOST { [n, 1, 1] } else { [MOST, n.div_ceil(MOST), 1] }
}

/// Partial sums by index modulo 16 and the tree over them.
pub const SUMS: &str = include_str!("../wgsl/sums.wgsl");

/// `swap`, by which threads give each other values: inside subgroups, or in memory.
pub fn swap(shuffle: bool) -> &'static str {
    if shuffle {
        include_str!("../wgsl/swap_subgroup.wgsl")
    } else {
        include_str!("../wgsl/swap_memory.wgsl")
    }
}

/// Every shader at sizes that are in use, and at the largest: what tests of all shaders go through.
pub fn instances() -> Vec<crate::Shader> {
    let mut all = vec![crate::probe::shader(true), crate::probe::shader(false), norm::shader()];
    for head_dim in [16, 64, 80, 128, 256, 512] {
        all.extend([heads::append_shader(head_dim), attention::gate_shader(head_dim)]);
        for flag in [false, true] {
            all.extend([heads::heads_shader(head_dim, flag), attention::merge_shader(head_dim, flag, flag)]);
            all.extend([
                prepare::shader(head_dim, [flag; 3]),
                prepare::shader(head_dim, [flag, !flag, false]),
            ]);
            for queries in [2, 4, 8].into_iter().filter(|n| n * head_dim <= 2048) {
                for split in [false, true] {
                    all.push(attention::shader(attention::Made {
                        head_dim,
                        queries,
                        split,
                        sinks: flag,
                        shuffle: flag == split,
                        batched: flag,
                        gated: flag && !split,
                    }));
                }
            }
        }
    }
    all.extend([delta::gates_shader(), delta::window_shader()]);
    for width in [16, 64, 128, 192] {
        all.extend([delta::convolution_shader(width), delta::norm_shader(width)]);
        for in_place in [false, true] {
            all.extend([delta::rule_shader(width, in_place), delta::step_shader(width, in_place)]);
        }
    }
    all
}
