//! DeepSeek-V4 (architectures.md section 6): several residual streams, attention over a window and compressed entries,
//! routed experts by score or by token, and a shared one.

use mach_checkpoint::{CheckpointError, CompressedConfig, ModelConfig};

use super::Parts;
use crate::blocks::{Compressed, FeedForward, Layer, Mixer, Streams, load_streams};
use crate::device::{
    CompressedSpec, FeedForwardSpec, FfnSpec, GateFunction, IndexSpec, LayerSpec, Loader, MixerSpec,
    ModelSpec, PoolSpec, RouterSpec, ScoreFunction, StreamSpec, YarnSpec,
};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let mut model = ModelSpec {
        hidden: c.hidden_size,
        vocab: c.vocab_size,
        eps: c.rms_norm_eps,
        embedding_scale: 1.0,
        softcap: None,
        streams: None,
        layers: Vec::new(),
    };
    // Parsing a configuration of this family gives it.
    let Some(own) = &c.compressed else { return model };
    model.streams = Some(StreamSpec {
        streams: own.streams,
        iterations: own.iterations,
        eps: own.stream_eps,
        norm_eps: c.rms_norm_eps,
    });
    let layer = |(index, &ratio)| LayerSpec {
        mixer: MixerSpec::Compressed(attention(c, own, ratio)),
        feed_forward: feed_forward(c, own, index < own.hash_layers),
    };
    model.layers = own.ratios.iter().enumerate().map(layer).collect();
    model
}

fn attention(c: &ModelConfig, own: &CompressedConfig, ratio: usize) -> CompressedSpec {
    let index = IndexSpec { heads: own.index_heads, head_dim: own.index_head_dim, top_k: own.index_top_k };
    // Short windows overlap and are picked from; long ones are seen all.
    let short = ratio == 4;
    let yarn = |y: &mach_checkpoint::YarnConfig| YarnSpec {
        factor: y.factor,
        original: y.original,
        beta_fast: y.beta_fast,
        beta_slow: y.beta_slow,
    };
    CompressedSpec {
        heads: c.num_heads,
        head_dim: c.head_dim,
        rotary_dim: c.rope.rotary_dim,
        theta: if ratio == 0 { c.rope.theta } else { own.theta },
        yarn: c.rope.yarn.as_ref().filter(|_| ratio != 0).map(yarn),
        window: own.window,
        pool: (ratio != 0).then(|| PoolSpec { ratio, overlap: short, index: short.then_some(index) }),
        q_rank: own.q_rank,
        out_groups: own.out_groups,
        out_rank: own.out_rank,
        eps: c.rms_norm_eps,
    }
}

fn feed_forward(c: &ModelConfig, own: &CompressedConfig, hashed: bool) -> FeedForwardSpec {
    let ffn = |width| FfnSpec { width, gate: GateFunction::Silu, clamp: own.swiglu_limit, bias: false };
    FeedForwardSpec::Moe {
        router: RouterSpec {
            experts: c.moe.num_experts,
            top_k: c.moe.top_k,
            score: ScoreFunction::SqrtSoftplus,
            bias: !hashed,
            normalise: c.moe.norm_topk_prob,
            scale: own.routed_scale,
            hashed,
            logit_bias: false,
            expert_scale: false,
        },
        expert: ffn(c.moe.intermediate_size),
        shared: c.moe.shared_intermediate_size.map(ffn),
    }
}

pub(super) fn load<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    let embedding = from.matrix("embed", spec.vocab, spec.hidden)?;
    let mut layers = Vec::with_capacity(spec.layers.len());
    for (index, layer) in spec.layers.iter().enumerate() {
        let base = format!("layers.{index}");
        layers.push(load_layer(from, spec.hidden, spec.streams.as_ref(), &base, layer, false)?);
    }
    Ok(Parts {
        layers,
        collapse: match &spec.streams {
            Some(streams) => Some(load_streams(from, "hc_head", streams, true)?),
            None => None,
        },
        final_norm: from.norm("norm.weight", spec.hidden)?,
        head: from.head(&embedding)?,
        embedding,
    })
}

/// The layer of the block that predicts the token after the next, if the model has one.
pub(crate) fn mtp_layer(c: &ModelConfig) -> Option<LayerSpec> {
    let own = c.compressed.as_ref().filter(|own| own.mtp_layers > 0)?;
    Some(LayerSpec {
        mixer: MixerSpec::Compressed(attention(c, own, 0)),
        feed_forward: feed_forward(c, own, false),
    })
}

/// The modules under `base`; its experts among them if they are `placed` like other weights.
pub(crate) fn load_layer<L: Loader>(
    from: &mut L,
    hidden: usize,
    streams: Option<&StreamSpec>,
    base: &str,
    layer: &LayerSpec,
    placed: bool,
) -> Result<Layer<L::Matrix, L::Vector>, CheckpointError> {
    let MixerSpec::Compressed(mixer) = &layer.mixer else { return Layer::load(from, 0, "gate", layer) };
    Ok(Layer {
        input_norm: from.norm(&format!("{base}.attn_norm.weight"), hidden)?,
        mixer: Mixer::Compressed(Compressed::load(from, base, mixer)?),
        post_norm: from.norm(&format!("{base}.ffn_norm.weight"), hidden)?,
        feed_forward: FeedForward::load_by_score(from, base, &layer.feed_forward, placed)?,
        streams: match streams {
            Some(streams) => Some(Streams::load(from, base, streams)?),
            None => None,
        },
        behind: None,
        scalar: None,
    })
}
