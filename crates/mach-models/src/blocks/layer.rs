//! One layer.

use mach_checkpoint::CheckpointError;

use super::{Attention, Compressed, FeedForward, GatedDelta, Streams, Workspace};
use crate::ModelError;
use crate::device::{Device, LayerSpec, Loader, MixerSpec};

/// What mixes tokens.
#[derive(Debug)]
pub(crate) enum Mixer<M, V> {
    Attention(Attention<M, V>),
    GatedDelta(GatedDelta<M, V>),
    Compressed(Compressed<M, V>),
}

/// A pre-norm layer: `h += mix(norm h)`, `h += feed_forward(norm h)`; with several residual streams each of the two takes
/// their weighted sum and goes back to all of them.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) input_norm: V,
    pub(crate) mixer: Mixer<M, V>,
    pub(crate) post_norm: V,
    pub(crate) feed_forward: FeedForward<M, V>,
    pub(crate) streams: Option<Streams<V>>,
}

impl<M: Copy, V> Layer<M, V> {
    /// The modules under `layers.{index}` by the names of the Qwen families.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        index: usize,
        spec: &LayerSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        Ok(Layer {
            input_norm: from.norm(&format!("layers.{index}.input_layernorm.weight"), hidden)?,
            mixer: match &spec.mixer {
                MixerSpec::Attention(spec) => Mixer::Attention(Attention::load(from, index, spec)?),
                MixerSpec::GatedDelta(spec) => Mixer::GatedDelta(GatedDelta::load(from, index, spec)?),
                MixerSpec::Compressed(spec) => {
                    Mixer::Compressed(Compressed::load(from, &format!("layers.{index}"), spec)?)
                }
            },
            post_norm: from.norm(&format!("layers.{index}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::load(from, index, &spec.feed_forward)?,
            streams: None,
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
        if let Some(streams) = &self.streams {
            d.collapse(&streams.spec, &streams.mixer, &ws.streams, &mut ws.mixing, &mut ws.h);
        }
        d.norm(&ws.h, &self.input_norm, eps, &mut ws.x);
        match &self.mixer {
            Mixer::Attention(attention) => attention.forward(d, ws, states),
            Mixer::GatedDelta(delta) => delta.forward(d, ws, states),
            Mixer::Compressed(attention) => attention.forward(d, ws, states),
        }
        match &self.streams {
            Some(streams) => {
                d.mix(&streams.spec, &ws.mixing, &ws.y, &mut ws.streams);
                let place = &streams.feed_forward;
                d.collapse(&streams.spec, place, &ws.streams, &mut ws.mixing, &mut ws.h);
            }
            None => d.add(&mut ws.h, &ws.y),
        }
        d.norm(&ws.h, &self.post_norm, eps, &mut ws.x);
        self.feed_forward.route(d, ws);
        if self.streams.is_some() {
            d.clear(&ws.x, &mut ws.h);
        }
    }

    /// The second half.
    pub(crate) fn feed_forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
    ) -> Result<(), ModelError> {
        self.feed_forward.forward(d, ws, index)?;
        if let Some(streams) = &self.streams {
            d.mix(&streams.spec, &ws.mixing, &ws.h, &mut ws.streams);
        }
        Ok(())
    }
}
