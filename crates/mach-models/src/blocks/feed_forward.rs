//! Routed experts and dense networks.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use super::beside::Beside;
use crate::ModelError;
use crate::device::{
    ChoiceWeights, Device, FeedForwardSpec, FfnSpec, Loader, Mlp, RouterSpec, RouterWeights, ScoreFunction,
};

/// Routed experts, with the expert that every token shares if the family has one.
#[derive(Debug)]
pub(crate) struct Moe<M, V> {
    spec: RouterSpec,
    expert: FfnSpec,
    router: M,
    weights: RouterWeights<V>,
    /// With its gate, if it has one.
    shared: Option<(Mlp<M, V>, Option<M>)>,
    /// What chooses beside the scores, where they do not depend on each other.
    choice: ChoiceWeights<V>,
    /// The experts themselves, where no bank has them.
    placed: Vec<Mlp<M, V>>,
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
    /// The modules under `{layer}.mlp`, the router among them by its name; if they are to be `placed`, the experts too.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: &str,
        router: &str,
        spec: &FeedForwardSpec,
        placed: bool,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let base = format!("{layer}.mlp");
        match *spec {
            FeedForwardSpec::Beside { dense, router, expert } => {
                Ok(FeedForward::Beside(Beside::load(from, layer, dense, router, expert)?))
            }
            FeedForwardSpec::Dense(spec) => Ok(FeedForward::Dense(load_mlp(from, &base, spec)?)),
            FeedForwardSpec::Moe { router: spec, expert, shared } => Ok(FeedForward::Moe(Moe {
                shared: match shared {
                    Some(shared) => Some((
                        load_mlp(from, &format!("{base}.shared_expert"), shared)?,
                        Some(from.float_matrix(&format!("{base}.shared_expert_gate"), 1, hidden)?),
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
                choice: ChoiceWeights { bias: None, table: None },
                placed: (0..if placed { spec.experts } else { 0 })
                    .map(|e| load_mlp(from, &format!("{base}.experts.{e}"), expert))
                    .collect::<Result<_, _>>()?,
            })),
        }
    }

    /// The modules under `{layer}.ffn` by the names of DeepSeek: `gate`, `shared_experts`, and what chooses beside the
    /// scores; if they are to be `placed`, the experts too.
    pub(crate) fn load_by_score(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: &str,
        spec: &FeedForwardSpec,
        placed: bool,
    ) -> Result<Self, CheckpointError> {
        let (hidden, vocab) = (from.config().hidden_size, from.config().vocab_size);
        let base = format!("{layer}.ffn");
        let mut network = |name: &str, spec: FfnSpec| -> Result<Mlp<M, V>, CheckpointError> {
            Ok(Mlp {
                spec,
                gate: from.matrix(&format!("{base}.{name}.w1"), spec.width, hidden)?,
                up: from.matrix(&format!("{base}.{name}.w3"), spec.width, hidden)?,
                down: from.matrix(&format!("{base}.{name}.w2"), hidden, spec.width)?,
                biases: None,
            })
        };
        let (spec, expert, shared) = match *spec {
            FeedForwardSpec::Beside { .. } => {
                let reason = "a dense network beside experts by score";
                return Err(CheckpointError::Tensor {
                    file: base.into(),
                    tensor: String::new(),
                    reason: reason.to_owned(),
                });
            }
            FeedForwardSpec::Dense(spec) => return network("mlp", spec).map(FeedForward::Dense),
            FeedForwardSpec::Moe { router, expert, shared } => (router, expert, shared),
        };
        let shared = match shared {
            Some(shared) => Some((network("shared_experts", shared)?, None)),
            None => None,
        };
        let experts = if placed { spec.experts } else { 0 };
        let placed =
            (0..experts).map(|e| network(&format!("experts.{e}"), expert)).collect::<Result<_, _>>()?;
        let table = match spec.hashed {
            true => {
                let shape = [vocab, spec.top_k];
                Some(from.integers(&format!("{base}.gate.tid2eid"), &shape, spec.experts as u32)?)
            }
            false => None,
        };
        let bias = match spec.bias {
            true => Some(from.vector(&format!("{base}.gate.bias"), &[spec.experts])?),
            false => None,
        };
        let router = from.float_matrix(&format!("{base}.gate"), spec.experts, hidden)?;
        let weights = RouterWeights { logit_bias: None, expert_scale: None };
        let choice = ChoiceWeights { bias, table };
        Ok(FeedForward::Moe(Moe { spec, expert, router, weights, shared, choice, placed }))
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
                if moe.spec.score == ScoreFunction::SqrtSoftplus {
                    return d.route_by_score(&moe.spec, &ws.x, &moe.router, &moe.choice, &mut ws.routing);
                }
                let gate = moe.shared.as_ref().and_then(|(_, gate)| gate.as_ref());
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
                if !moe.placed.is_empty() {
                    d.placed_experts(&moe.placed, x, &ws.routing, shared, to);
                    return Ok(());
                }
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
