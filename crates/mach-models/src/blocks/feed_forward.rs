//! Routed experts and dense networks.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use crate::ModelError;
use crate::device::{Device, FeedForwardSpec, FfnSpec, Loader, Mlp, RouterSpec};

/// Routed experts, with the expert that every token shares if the family has one.
#[derive(Debug)]
pub(crate) struct Moe<M, V> {
    spec: RouterSpec,
    expert: FfnSpec,
    router: M,
    bias: Option<V>,
    shared: Option<(Mlp<M, V>, M)>,
}

/// What works on each token by itself.
#[derive(Debug)]
pub(crate) enum FeedForward<M, V> {
    Moe(Moe<M, V>),
    Dense(Mlp<M, V>),
}

/// `gate_proj`, `up_proj` and `down_proj` under `base`.
fn load_mlp<L: Loader>(
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
                bias: match spec.logit_bias {
                    true => Some(from.vector(&format!("{base}.{router}.bias"), &[spec.experts])?),
                    false => None,
                },
                spec,
                expert,
            })),
        }
    }

    /// From `ws.x` to `ws.routing`.
    pub(crate) fn route<D: Device<Matrix = M, Vector = V>>(&self, d: &mut D, ws: &mut Workspace<D>) {
        if let FeedForward::Moe(moe) = self {
            let gate = moe.shared.as_ref().map(|(_, gate)| gate);
            d.route(&moe.spec, &ws.x, &moe.router, moe.bias.as_ref(), gate, &mut ws.routing);
        }
    }

    /// `ws.h += network(ws.x)`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
    ) -> Result<(), ModelError> {
        match self {
            FeedForward::Moe(moe) => {
                let shared = moe.shared.as_ref().map(|(mlp, _)| mlp);
                d.experts(index, &moe.expert, &ws.x, &ws.routing, shared, &mut ws.h)
            }
            FeedForward::Dense(mlp) => {
                d.mlp(mlp, &ws.x, &mut ws.h);
                Ok(())
            }
        }
    }
}
