//! The gated delta rule: 32 heads of 128 x 128.

use mach_kernels::Isa;
use mach_kernels::delta::{DeltaInputs, DeltaScratch, DeltaShape, DeltaState, DeltaWeights, gated_delta};

use crate::case::{Suite, Work};

const SHAPE: DeltaShape =
    DeltaShape { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, taps: 4 };

pub(crate) fn add(suite: &mut Suite) {
    for isa in Isa::available() {
        for rows in [1, 64] {
            let name = format!("delta {isa} {rows}");
            if !suite.wants(&name) {
                continue;
            }
            let (channels, width) = (SHAPE.channels(), SHAPE.value_heads * SHAPE.value_dim);
            let (u, z, ab) = (vec![0.1; rows * channels], vec![0.1; rows * width], vec![0.1; rows * 32]);
            let (conv, norm) = (vec![0.1; SHAPE.taps * channels], vec![1.0; SHAPE.value_dim]);
            let (bias, a) = (vec![0.1; SHAPE.value_heads], vec![-0.1; SHAPE.value_heads]);
            let (mut state, mut scratch) = (DeltaState::new(&SHAPE), DeltaScratch::default());
            let mut out = vec![0.0; rows * width];
            suite.add(name, None, isa, Work::Rows(rows), move |cores| {
                let weights =
                    DeltaWeights { conv: &conv, dt_bias: &bias, neg_exp_a: &a, norm: &norm, eps: 1e-6 };
                let inputs = DeltaInputs { u: &u, z: &z, b: &ab, a: &ab };
                gated_delta(cores, &SHAPE, &weights, &mut state, &mut scratch, &inputs, rows, &mut out);
            });
        }
    }
}
