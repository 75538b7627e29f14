//! One layer.

use mach_checkpoint::CheckpointError;

use super::{Attention, FeedForward, GatedDelta, Workspace};
use crate::device::{Device, LayerSpec, Loader, MixerSpec};

/// What mixes tokens.
#[derive(Debug)]
pub(crate) enum Mixer<M, V> {
    Attention(Attention<M, V>),
    GatedDelta(GatedDelta<M, V>),
}

/// A pre-norm layer: `h += mix(norm h)`, `h += feed_forward(norm h)`.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) input_norm: V,
    pub(crate) mixer: Mixer<M, V>,
    pub(crate) post_norm: V,
    pub(crate) feed_forward: FeedForward<M, V>,
}

impl<M: Copy, V> Layer<M, V> {
    /// The modules under `layers.{index}` by the names of the Qwen families, the router by `router`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        index: usize,
        router: &str,
        spec: &LayerSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        Ok(Layer {
            input_norm: from.norm(&format!("layers.{index}.input_layernorm.weight"), hidden)?,
            mixer: match &spec.mixer {
                MixerSpec::Attention(spec) => Mixer::Attention(Attention::load(from, index, spec)?),
                MixerSpec::GatedDelta(spec) => Mixer::GatedDelta(GatedDelta::load(from, index, spec)?),
            },
            post_norm: from.norm(&format!("layers.{index}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::load(from, index, router, &spec.feed_forward)?,
        })
    }

    /// The first half, and the routing of the second.
    pub(crate) fn mix<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        eps: f32,
        states: &mut [&mut D::LayerState],
    ) {
        d.norm(&ws.h, &self.input_norm, eps, &mut ws.x);
        match &self.mixer {
            Mixer::Attention(attention) => attention.forward(d, ws, states),
            Mixer::GatedDelta(delta) => delta.forward(d, ws, states),
        }
        d.add(&mut ws.h, &ws.y);
        d.norm(&ws.h, &self.post_norm, eps, &mut ws.x);
        self.feed_forward.route(d, ws);
    }
}
