//! Routed experts and a dense network beside them, both on the residual stream and each between norms of its own
//! (Gemma 4).

use mach_checkpoint::CheckpointError;

use super::Workspace;
use super::feed_forward::load_mlp;
use crate::ModelError;
use crate::device::{Device, FfnSpec, Loader, Mlp, RouterSpec, RouterWeights};

#[derive(Debug)]
pub(crate) struct Beside<M, V> {
    dense: Mlp<M, V>,
    dense_behind: V,
    spec: RouterSpec,
    router: M,
    weights: RouterWeights<V>,
    /// The weight of the norm before the router, times `hidden^-0.5`.
    router_norm: V,
    expert: FfnSpec,
    experts_norm: V,
    experts_behind: V,
}

impl<M: Copy, V> Beside<M, V> {
    /// The modules `mlp` and `router`, and the norms around them, under `base`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        base: &str,
        dense: FfnSpec,
        spec: RouterSpec,
        expert: FfnSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let mut norm = |name: &str| from.norm(&format!("{base}.{name}.weight"), hidden);
        let dense_behind = norm("post_feedforward_layernorm_1")?;
        let experts_norm = norm("pre_feedforward_layernorm_2")?;
        let experts_behind = norm("post_feedforward_layernorm_2")?;
        let expert_scale = match spec.expert_scale {
            true => Some(from.vector(&format!("{base}.router.per_expert_scale"), &[spec.experts])?),
            false => None,
        };
        let root = 1.0 / (hidden as f32).sqrt();
        Ok(Beside {
            dense: load_mlp(from, &format!("{base}.mlp"), dense)?,
            dense_behind,
            router: from.float_matrix(&format!("{base}.router.proj"), spec.experts, hidden)?,
            weights: RouterWeights { logit_bias: None, expert_scale },
            router_norm: from.scaled(&format!("{base}.router.scale"), &[hidden], root)?,
            spec,
            expert,
            experts_norm,
            experts_behind,
        })
    }

    /// From `ws.x`, the normed `ws.h`, to the dense network's share in `ws.aside`, the routing, and the experts' input in
    /// `ws.x`.
    pub(crate) fn prepare<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        eps: f32,
    ) {
        d.clear(&ws.x, &mut ws.y);
        d.mlp(&self.dense, &ws.x, &mut ws.y);
        d.norm(&ws.y, &self.dense_behind, eps, &mut ws.aside);
        d.norm(&ws.h, &self.router_norm, eps, &mut ws.x);
        d.route(&self.spec, &ws.x, &self.router, &self.weights, None, &mut ws.routing);
        d.norm(&ws.h, &self.experts_norm, eps, &mut ws.x);
    }

    /// Adds both shares to `ws.y` if `aside`, else to `ws.h`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
        aside: bool,
        eps: f32,
    ) -> Result<(), ModelError> {
        let [out, ..] = &mut ws.p;
        d.clear(&ws.x, out);
        d.experts(index, &self.expert, &ws.x, &ws.routing, None, out)?;
        let to = if aside { &mut ws.y } else { &mut ws.h };
        d.add(to, &ws.aside);
        d.norm(out, &self.experts_behind, eps, &mut ws.x);
        d.add(to, &ws.x);
        Ok(())
    }
}
