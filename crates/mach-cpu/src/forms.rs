//! What the contract's specs say, in the kernels' form, and small operations that need no kernel of their own.

use mach_experts::MatrixView;
use mach_kernels::delta::{self, DeltaShape};
use mach_kernels::elementwise::{Activation, Gating};
use mach_kernels::experts::{BiasRef, ExpertRef};
use mach_kernels::linear::MatRef;
use mach_models::device::{ConvolutionSpec, DeltaSpec, DeltaWeights, FfnSpec, GateFunction, Mlp};

use crate::cpu::{Buf, Routing};
use crate::placement::{Matrix, Stores};

pub(crate) fn view(m: MatrixView<'_>) -> MatRef<'_> {
    MatRef::new(m.layout, m.data)
}

/// The kernels' form of the sizes.
pub(crate) fn delta_shape(spec: &DeltaSpec) -> DeltaShape {
    DeltaShape {
        key_heads: spec.key_heads,
        value_heads: spec.value_heads,
        key_dim: spec.key_dim,
        value_dim: spec.value_dim,
        taps: spec.taps,
    }
}

pub(crate) fn delta_weights<'a>(
    spec: &DeltaSpec,
    weights: &'a DeltaWeights<Vec<f32>>,
) -> delta::DeltaWeights<'a> {
    delta::DeltaWeights {
        conv: &weights.conv,
        dt_bias: &weights.dt_bias,
        neg_exp_a: &weights.neg_exp_a,
        norm: &weights.norm,
        eps: spec.eps,
    }
}

/// The kernels' form of what combines gate and up.
pub(crate) fn gating(spec: &FfnSpec) -> Gating {
    let activation = match spec.gate {
        GateFunction::Silu => Activation::Silu,
        GateFunction::GeluTanh => Activation::GeluTanh,
        GateFunction::SigmoidPlusOne { alpha } => Activation::SigmoidPlusOne { alpha },
    };
    Gating { activation, clamp: spec.clamp }
}

pub(crate) fn network<'a>(stores: &'a Stores, mlp: &'a Mlp<Matrix, Vec<f32>>) -> ExpertRef<'a> {
    let biases = mlp.biases.as_ref();
    ExpertRef {
        gate: stores.get(&mlp.gate),
        up: stores.get(&mlp.up),
        down: stores.get(&mlp.down),
        biases: biases.map_or([None; 3], |b| b.each_ref().map(|bias| Some(BiasRef::Floats(bias)))),
        gating: gating(&mlp.spec),
    }
}

/// Multiplies the weight of each expert by a scale of its own, and puts each row into falling order again.
pub(crate) fn scale_weights(scale: &[f32], top_k: usize, routing: &mut Routing) {
    let rows =
        routing.experts.chunks_exact_mut(top_k.max(1)).zip(routing.weights.chunks_exact_mut(top_k.max(1)));
    let mut row: Vec<(f32, u32)> = Vec::with_capacity(top_k);
    for (experts, weights) in rows {
        let scaled = |(&e, &w): (&u32, &f32)| (w * scale.get(e as usize).copied().unwrap_or(1.0), e);
        row.clear();
        row.extend(experts.iter().zip(weights.iter()).map(scaled));
        row.sort_by(|a, b| b.0.total_cmp(&a.0));
        for ((expert, weight), &(w, e)) in experts.iter_mut().zip(weights.iter_mut()).zip(&row) {
            (*expert, *weight) = (e, w);
        }
    }
}

/// See [`ConvolutionSpec`]: rows of a block, offsets ascending.
pub(crate) fn convolve(spec: &ConvolutionSpec, base: &[f32], dynamic: &Buf, x: &Buf, out: &mut [f32]) {
    let (n, groups) = (x.width, x.width / spec.group.max(1));
    out.fill(0.0);
    let rows = out.chunks_exact_mut(n.max(1)).zip(dynamic.data.chunks_exact(dynamic.width.max(1)));
    for (i, (out, d)) in rows.enumerate() {
        for offset in 0..spec.kernel.min(i + 1) {
            let tap = spec.which * spec.kernel + offset;
            let (Some(x), Some(base), Some(d)) = (
                x.data.get((i - offset) * n..(i - offset + 1) * n),
                base.get(tap * n..(tap + 1) * n),
                d.get(tap * groups..(tap + 1) * groups),
            ) else {
                continue;
            };
            let channels = out.chunks_exact_mut(spec.group).zip(x.chunks_exact(spec.group));
            for (((out, x), base), d) in channels.zip(base.chunks_exact(spec.group)).zip(d) {
                for ((out, x), base) in out.iter_mut().zip(x).zip(base) {
                    *out += (base + d) * x;
                }
            }
        }
    }
}
