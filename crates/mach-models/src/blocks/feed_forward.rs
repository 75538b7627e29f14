//! Routed experts and dense networks.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use super::beside::Beside;
use crate::ModelError;
use crate::device::{Device, FeedForwardSpec, FfnSpec, Loader, Mlp, RouterSpec, RouterWeights};

/// Routed experts, with the expert that every token shares if the family has one.
#[derive(Debug)]
pub(crate) struct Moe<M, V> {
    spec: RouterSpec,
    expert: FfnSpec,
    router: M,
    weights: RouterWeights<V>,
    shared: Option<(Mlp<M, V>, M)>,
}

/// What works on each token by itself.
#[derive(Debug)]
pub(crate) enum FeedForward<M, V> {
    Moe(Moe<M, V>),
    Dense(Mlp<M, V>),
    Beside(Beside<M, V>),
}

/// `gate_proj`, `up_proj` and `down_proj` under `base`.
pub(super) fn load_mlp<L: Loader>(
    from: &mut L,
    base: &str,
    spec: FfnSpec,
) -> Result<Mlp<L::Matrix, L::Vector>, CheckpointError> {
    let hidden = from.config().hidden_size;
    let mut bias = |name: &str, rows: usize| from.vector(&format!("{base}.{name}.bias"), &[rows]);
    let biases = match spec.bias {
        true => {
            Some([bias("gate_proj", spec.width)?, bias("up_proj", spec.width)?, bias("down_proj", hidden)?])
        }
        false => None,
    };
    Ok(Mlp {
        biases,
        spec,
        gate: from.matrix(&format!("{base}.gate_proj"), spec.width, hidden)?,
        up: from.matrix(&format!("{base}.up_proj"), spec.width, hidden)?,
        down: from.matrix(&format!("{base}.down_proj"), hidden, spec.width)?,
    })
}

impl<M: Copy, V> FeedForward<M, V> {
    /// The modules under `layers.{layer}.mlp`, the router among them by its name.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: usize,
        router: &str,
        spec: &FeedForwardSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let base = format!("layers.{layer}.mlp");
        match *spec {
            FeedForwardSpec::Beside { dense, router, expert } => {
                Ok(FeedForward::Beside(Beside::load(from, layer, dense, router, expert)?))
            }
            FeedForwardSpec::Dense(spec) => Ok(FeedForward::Dense(load_mlp(from, &base, spec)?)),
            FeedForwardSpec::Moe { router: spec, expert, shared } => Ok(FeedForward::Moe(Moe {
                shared: match shared {
                    Some(shared) => Some((
                        load_mlp(from, &format!("{base}.shared_expert"), shared)?,
                        from.float_matrix(&format!("{base}.shared_expert_gate"), 1, hidden)?,
                    )),
                    None => None,
                },
                router: from.float_matrix(&format!("{base}.{router}"), spec.experts, hidden)?,
                weights: RouterWeights {
                    logit_bias: match spec.logit_bias {
                        true => Some(from.vector(&format!("{base}.{router}.bias"), &[spec.experts])?),
                        false => None,
                    },
                    expert_scale: None,
                },
                spec,
                expert,
            })),
        }
    }

    /// What comes before the experts: from `ws.x`, the normed `ws.h`, to `ws.routing` and the experts' input in `ws.x`.
    pub(crate) fn prepare<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        eps: f32,
    ) {
        match self {
            FeedForward::Moe(moe) => {
                let gate = moe.shared.as_ref().map(|(_, gate)| gate);
                d.route(&moe.spec, &ws.x, &moe.router, &moe.weights, gate, &mut ws.routing);
            }
            FeedForward::Dense(_) => {}
            FeedForward::Beside(both) => both.prepare(d, ws, eps),
        }
    }

    /// `ws.h += network(ws.x)`; with a norm behind the network, `ws.h += norm(network(ws.x))`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
        behind: Option<&V>,
        eps: f32,
    ) -> Result<(), ModelError> {
        let Some(norm) = behind else {
            return self.add_to(d, ws, index, false, eps);
        };
        d.clear(&ws.x, &mut ws.y);
        self.add_to(d, ws, index, true, eps)?;
        d.norm(&ws.y, norm, eps, &mut ws.x);
        d.add(&mut ws.h, &ws.x);
        Ok(())
    }

    /// Adds to `ws.y` if `aside`, else to `ws.h`.
    fn add_to<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
        aside: bool,
        eps: f32,
    ) -> Result<(), ModelError> {
        let (to, x) = (if aside { &mut ws.y } else { &mut ws.h }, &ws.x);
        match self {
            FeedForward::Moe(moe) => {
                let shared = moe.shared.as_ref().map(|(mlp, _)| mlp);
                d.experts(index, &moe.expert, x, &ws.routing, shared, to)
            }
            FeedForward::Dense(mlp) => {
                d.mlp(mlp, x, to);
                Ok(())
            }
            FeedForward::Beside(both) => both.forward(d, ws, index, aside, eps),
        }
    }
}
