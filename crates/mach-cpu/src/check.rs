//! What the kernels ask of a model, before anything is loaded.

use mach_kernels::streams::MOST as MOST_STREAMS;
use mach_models::ModelError;
use mach_models::device::{
    AttentionSpec, CompressedSpec, DeltaSpec, FeedForwardSpec, MixerSpec, ModelSpec, RopeKind, RouterSpec,
    ScoreFunction,
};

/// Lanes of the kernels' vectors: attention heads and the heads of linear attention are whole vectors.
const LANES: usize = 16;

/// Refuses a model that the kernels cannot run, naming what they lack. Its configuration is valid, so the checkpoint is not at
/// fault; sizes are named by the field of `config.json`.
pub(crate) fn check(spec: &ModelSpec) -> Result<(), ModelError> {
    if let Some(streams) = &spec.streams {
        whole_vectors("hidden_size", spec.hidden)?;
        if streams.streams > MOST_STREAMS {
            return Err(ModelError::Unsupported(format!(
                "config.json: `hc_mult` is {}; this build has at most {MOST_STREAMS} streams",
                streams.streams
            )));
        }
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let mixer = match &layer.mixer {
            MixerSpec::Attention(spec) => attention(spec),
            MixerSpec::GatedDelta(spec) => delta(spec),
            MixerSpec::Compressed(spec) => compressed(spec),
        };
        mixer?;
        let lacks = match &layer.feed_forward {
            FeedForwardSpec::Dense(_) => None,
            FeedForwardSpec::Moe { router: spec, .. } | FeedForwardSpec::Beside { router: spec, .. } => {
                router(spec)
            }
        };
        if let Some(what) = lacks {
            return Err(ModelError::Unsupported(format!(
                "layer {index}: this build's kernels have no {what}"
            )));
        }
    }
    Ok(())
}

fn whole_vectors(field: &str, size: usize) -> Result<(), ModelError> {
    if size.is_multiple_of(LANES) {
        return Ok(());
    }
    Err(ModelError::Unsupported(format!(
        "config.json: `{field}` is {size}; this build needs a multiple of {LANES}"
    )))
}

fn attention(spec: &AttentionSpec) -> Result<(), ModelError> {
    whole_vectors("head_dim", spec.head_dim)?;
    let lacks = [
        (spec.softcap.is_some(), "soft cap of attention scores"),
        (!rotates(&spec.rope.kind), "rotary embedding of this kind"),
    ];
    match lacks.into_iter().find(|(lacking, _)| *lacking) {
        Some((_, what)) => Err(ModelError::Unsupported(format!("this build's kernels have no {what}"))),
        None => Ok(()),
    }
}

fn rotates(kind: &RopeKind) -> bool {
    match kind {
        RopeKind::Half | RopeKind::Yarn { .. } | RopeKind::Proportional { .. } | RopeKind::Llama3 { .. } => {
            true
        }
        RopeKind::Interleaved => false,
    }
}

fn compressed(spec: &CompressedSpec) -> Result<(), ModelError> {
    whole_vectors("head_dim", spec.head_dim)?;
    // Groups of rows must be whole tiles.
    whole_vectors("o_lora_rank", spec.out_rank)?;
    match spec.pool.and_then(|pool| pool.index) {
        Some(index) if index.head_dim < spec.rotary_dim => Err(ModelError::Unsupported(format!(
            "config.json: `index_head_dim` is {}; this build needs at least `qk_rope_head_dim`, {}",
            index.head_dim, spec.rotary_dim
        ))),
        Some(index) => whole_vectors("index_head_dim", index.head_dim),
        None => Ok(()),
    }
}

fn delta(spec: &DeltaSpec) -> Result<(), ModelError> {
    whole_vectors("linear_key_head_dim", spec.key_dim)?;
    whole_vectors("linear_value_head_dim", spec.value_dim)
}

fn scores(function: ScoreFunction) -> bool {
    matches!(function, ScoreFunction::Softmax | ScoreFunction::SoftmaxOfChosen)
}

fn router(spec: &RouterSpec) -> Option<&'static str> {
    if spec.score == ScoreFunction::SqrtSoftplus {
        return None;
    }
    let lacks = [
        (!scores(spec.score), "router with scores of this kind"),
        (spec.bias, "bias in routers"),
        (spec.scale != 1.0, "scale of routed weights"),
        (spec.hashed, "routing by token"),
    ];
    lacks.into_iter().find(|(lacking, _)| *lacking).map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use mach_models::device::{FfnSpec, GateFunction, LayerSpec, Mask, RopeSpec};

    use super::*;

    fn plain() -> ModelSpec {
        let attention = AttentionSpec {
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            rope: RopeSpec { theta: 1e4, rotary_dim: 32, kind: RopeKind::Half },
            mask: Mask::CAUSAL,
            gated: false,
            qk_norm: None,
            v_norm: None,
            scale: None,
            softcap: None,
            sinks: false,
            bias: false,
            k_as_v: false,
            plain_cache: false,
        };
        let router = RouterSpec {
            experts: 4,
            top_k: 2,
            score: ScoreFunction::Softmax,
            bias: false,
            logit_bias: false,
            expert_scale: false,
            normalise: true,
            scale: 1.0,
            hashed: false,
        };
        let layer = LayerSpec {
            mixer: MixerSpec::Attention(attention),
            feed_forward: FeedForwardSpec::Moe { router, expert: FfnSpec::swiglu(64), shared: None },
        };
        ModelSpec {
            streams: None,
            hidden: 64,
            vocab: 32,
            eps: 1e-6,
            embedding_scale: 1.0,
            softcap: None,
            layers: vec![layer],
        }
    }

    /// Every thing that a spec can say and the kernels cannot do is refused by name; nothing else is.
    #[test]
    fn what_kernels_lack_is_refused_by_name() {
        check(&plain()).unwrap();
        type Change<T> = fn(&mut T);
        let attention: [(Change<AttentionSpec>, &str); 3] = [
            (|a| a.head_dim = 24, "`head_dim` is 24"),
            (|a| a.softcap = Some(50.0), "soft cap"),
            (|a| a.rope.kind = RopeKind::Interleaved, "rotary"),
        ];
        for (change, word) in attention {
            let mut spec = plain();
            let MixerSpec::Attention(a) = &mut spec.layers[0].mixer else { unreachable!() };
            change(a);
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let rest: [(Change<RouterSpec>, &str); 4] = [
            (|r| r.score = ScoreFunction::Sigmoid, "scores"),
            (|r| r.bias = true, "bias in routers"),
            (|r| r.scale = 2.5, "scale"),
            (|r| r.hashed = true, "routing by token"),
        ];
        for (change, word) in rest {
            let mut spec = plain();
            let FeedForwardSpec::Moe { router, .. } = &mut spec.layers[0].feed_forward else {
                unreachable!()
            };
            change(router);
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with("layer 0"), "{error}");
        }
        let mut spec = plain();
        let AttentionSpec { mask, qk_norm, scale, gated, sinks, bias, rope, k_as_v, v_norm, .. } =
            match &mut spec.layers[0].mixer {
                MixerSpec::Attention(a) => a,
                _ => unreachable!(),
            };
        (*mask, *qk_norm) = (Mask { window: Some(8), causal: true }, Some(1e-6));
        (*scale, *gated, *sinks, *bias) = (Some(0.5), true, true, true);
        (*k_as_v, *v_norm) = (true, Some(1e-6));
        rope.kind = RopeKind::Yarn {
            factor: 32.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            magnitude: 1.3,
        };
        let FeedForwardSpec::Moe { router, .. } = &mut spec.layers[0].feed_forward else { unreachable!() };
        (router.score, router.logit_bias) = (ScoreFunction::SoftmaxOfChosen, true);
        router.expert_scale = true;
        check(&spec).unwrap();
        let gates = [GateFunction::Silu, GateFunction::GeluTanh, GateFunction::SigmoidPlusOne { alpha: 1.7 }];
        for gate in gates {
            let network = FfnSpec { width: 64, gate, clamp: Some(7.0), bias: true };
            let FeedForwardSpec::Moe { expert, shared, .. } = &mut spec.layers[0].feed_forward else {
                unreachable!()
            };
            (*expert, *shared) = (network, Some(network));
            check(&spec).unwrap();
            let mut dense = spec.clone();
            dense.layers[0].feed_forward = FeedForwardSpec::Dense(network);
            check(&dense).unwrap();
        }
    }
}
