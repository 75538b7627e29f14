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
    /// Of these four, if the spec says biases.
    biases: Option<[V; 4]>,
    weights: AttentionWeights<V>,
}

impl<M: Copy, V> Attention<M, V> {
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, `q_norm`, `k_norm` and `sinks` under `{layer}.self_attn`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: &str,
        spec: &AttentionSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let base = format!("{layer}.self_attn");
        Ok(Attention {
            q: from.matrix(&format!("{base}.q_proj"), if spec.gated { 2 * width } else { width }, hidden)?,
            k: from.matrix(&format!("{base}.k_proj"), kv_width, hidden)?,
            v: match spec.k_as_v {
                true => None,
                false => Some(from.matrix(&format!("{base}.v_proj"), kv_width, hidden)?),
            },
            o: from.matrix(&format!("{base}.o_proj"), hidden, width)?,
            biases: match spec.bias {
                true => Some([
                    from.vector(
                        &format!("{base}.q_proj.bias"),
                        &[if spec.gated { 2 * width } else { width }],
                    )?,
                    from.vector(&format!("{base}.k_proj.bias"), &[kv_width])?,
                    from.vector(&format!("{base}.v_proj.bias"), &[kv_width])?,
                    from.vector(&format!("{base}.o_proj.bias"), &[hidden])?,
                ]),
                false => None,
            },
            weights: AttentionWeights {
                q_norm: match spec.qk_norm {
                    Some(_) => Some(from.norm(&format!("{base}.q_norm.weight"), spec.head_dim)?),
                    None => None,
                },
                k_norm: match spec.qk_norm {
                    Some(_) => Some(from.norm(&format!("{base}.k_norm.weight"), spec.head_dim)?),
                    None => None,
                },
                sinks: match spec.sinks {
                    true => Some(from.vector(&format!("{base}.sinks"), &[spec.heads])?),
                    false => None,
                },
            },
            spec: spec.clone(),
        })
    }

    /// Takes in the keys and values of rows in `ws.x` that nothing is asked of.
    pub(crate) fn append<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        states: &mut [&mut D::LayerState],
    ) {
        let [_, k, v, _] = &mut ws.p;
        match self.v {
            Some(of_v) => d.linear(&ws.x, &[self.k, of_v], &mut [&mut *k, &mut *v]),
            None => d.linear(&ws.x, &[self.k], &mut [&mut *k]),
        }
        if let Some([_, of_k, of_v, _]) = &self.biases {
            d.add_bias(k, of_k);
            if self.v.is_some() {
                d.add_bias(v, of_v);
            }
        }
        let v = if self.v.is_some() { &*v } else { &*k };
        d.append(&self.spec, &self.weights, k, v, states);
    }

    /// From `ws.x` to `ws.y`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        states: &mut [&mut D::LayerState],
    ) {
        let [q, k, v, _] = &mut ws.p;
        match self.v {
            Some(of_v) => d.linear(&ws.x, &[self.q, self.k, of_v], &mut [&mut *q, &mut *k, &mut *v]),
            None => d.linear(&ws.x, &[self.q, self.k], &mut [&mut *q, &mut *k]),
        }
        if let Some([of_q, of_k, of_v, _]) = &self.biases {
            d.add_bias(q, of_q);
            d.add_bias(k, of_k);
            if self.v.is_some() {
                d.add_bias(v, of_v);
            }
        }
        let v = if self.v.is_some() { &*v } else { &*k };
        d.attention(&self.spec, &self.weights, q, k, v, states, &mut ws.mixed);
        d.linear(&ws.mixed, &[self.o], &mut [&mut ws.y]);
        if let Some([.., of_o]) = &self.biases {
            d.add_bias(&mut ws.y, of_o);
        }
    }
}
