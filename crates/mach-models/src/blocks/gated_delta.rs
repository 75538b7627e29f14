//! Gated DeltaNet with its projections.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use crate::device::{DeltaSpec, DeltaWeights, Device, Loader};

#[derive(Debug)]
pub(crate) struct GatedDelta<M, V> {
    spec: DeltaSpec,
    weights: DeltaWeights<V>,
    qkv: M,
    z: M,
    b: M,
    a: M,
    out: M,
}

impl<M: Copy, V> GatedDelta<M, V> {
    /// The modules under `layers.{layer}.linear_attn`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: usize,
        spec: &DeltaSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let (heads, width) = (spec.value_heads, spec.value_heads * spec.value_dim);
        let base = format!("layers.{layer}.linear_attn");
        Ok(GatedDelta {
            qkv: from.matrix(&format!("{base}.in_proj_qkv"), spec.channels(), hidden)?,
            z: from.matrix(&format!("{base}.in_proj_z"), width, hidden)?,
            b: from.float_matrix(&format!("{base}.in_proj_b"), heads, hidden)?,
            a: from.float_matrix(&format!("{base}.in_proj_a"), heads, hidden)?,
            out: from.matrix(&format!("{base}.out_proj"), hidden, width)?,
            weights: DeltaWeights {
                conv: from.conv1d(layer, spec.channels(), spec.taps)?,
                dt_bias: from.vector(&format!("{base}.dt_bias"), &[heads])?,
                neg_exp_a: from.negative_exponentials(&format!("{base}.A_log"), &[heads])?,
                norm: from.vector(&format!("{base}.norm.weight"), &[spec.value_dim])?,
            },
            spec: *spec,
        })
    }

    /// From `ws.x` to `ws.y`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        states: &mut [&mut D::LayerState],
    ) {
        let [u, z, beta, a] = &mut ws.p;
        d.linear(&ws.x, &[self.qkv, self.z, self.b, self.a], &mut [&mut *u, &mut *z, &mut *beta, &mut *a]);
        d.gated_delta(&self.spec, &self.weights, [u, z, beta, a], states, &mut ws.mixed);
        d.linear(&ws.mixed, &[self.out], &mut [&mut ws.y]);
    }

    /// Cuts the last block back to its first `keep` rows.
    pub(crate) fn rewind<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        state: &mut D::LayerState,
        keep: usize,
    ) {
        d.rewind_delta(&self.spec, &self.weights, state, keep);
    }
}
