//! Softmax attention with its projections.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use crate::device::{AttentionSpec, AttentionWeights, Device, Loader};

#[derive(Debug)]
pub(crate) struct Attention<M, V> {
    spec: AttentionSpec,
    q: M,
    k: M,
    /// `None` where values are keys.
    v: Option<M>,
    o: M,
    weights: AttentionWeights<V>,
}

impl<M: Copy, V> Attention<M, V> {
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, `q_norm` and `k_norm` under `layers.{layer}.self_attn`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: usize,
        spec: &AttentionSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let base = format!("layers.{layer}.self_attn");
        Ok(Attention {
            q: from.matrix(&format!("{base}.q_proj"), if spec.gated { 2 * width } else { width }, hidden)?,
            k: from.matrix(&format!("{base}.k_proj"), kv_width, hidden)?,
            v: match spec.k_as_v {
                true => None,
                false => Some(from.matrix(&format!("{base}.v_proj"), kv_width, hidden)?),
            },
            o: from.matrix(&format!("{base}.o_proj"), hidden, width)?,
            weights: match spec.qk_norm {
                Some(_) => AttentionWeights {
                    q_norm: Some(from.norm(&format!("{base}.q_norm.weight"), spec.head_dim)?),
                    k_norm: Some(from.norm(&format!("{base}.k_norm.weight"), spec.head_dim)?),
                    sinks: None,
                },
                None => AttentionWeights { q_norm: None, k_norm: None, sinks: None },
            },
            spec: spec.clone(),
        })
    }

    /// From `ws.x` to `ws.y`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        states: &mut [&mut D::LayerState],
    ) {
        let [q, k, v, _] = &mut ws.p;
        let v = match self.v {
            Some(value) => {
                d.linear(&ws.x, &[self.q, self.k, value], &mut [&mut *q, &mut *k, &mut *v]);
                &*v
            }
            None => {
                d.linear(&ws.x, &[self.q, self.k], &mut [&mut *q, &mut *k]);
                &*k
            }
        };
        d.attention(&self.spec, &self.weights, q, k, v, states, &mut ws.mixed);
        d.linear(&ws.mixed, &[self.o], &mut [&mut ws.y]);
    }
}
