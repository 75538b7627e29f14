//! One layer.

use mach_checkpoint::CheckpointError;

use super::{Attention, Compressed, FeedForward, GatedDelta, Streams, Workspace};
use crate::ModelError;
use crate::device::{AttentionSpec, Device, FeedForwardSpec, LayerSpec, Loader, MixerSpec};

/// What mixes tokens.
#[derive(Debug)]
pub(crate) enum Mixer<M, V> {
    Attention(Attention<M, V>),
    GatedDelta(GatedDelta<M, V>),
    Compressed(Compressed<M, V>),
}

impl<M: Copy, V> Mixer<M, V> {
    fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        index: usize,
        spec: &MixerSpec,
    ) -> Result<Self, CheckpointError> {
        Ok(match spec {
            MixerSpec::Attention(spec) => {
                Mixer::Attention(Attention::load(from, &format!("layers.{index}"), spec)?)
            }
            MixerSpec::GatedDelta(spec) => Mixer::GatedDelta(GatedDelta::load(from, index, spec)?),
            MixerSpec::Compressed(spec) => {
                Mixer::Compressed(Compressed::load(from, &format!("layers.{index}"), spec)?)
            }
        })
    }
}

/// A pre-norm layer: `h += mix(norm h)`, `h += feed_forward(norm h)`. A family may norm what is added, too; with several
/// residual streams each of the two takes their weighted sum and goes back to all of them.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) input_norm: V,
    pub(crate) mixer: Mixer<M, V>,
    pub(crate) post_norm: V,
    pub(crate) feed_forward: FeedForward<M, V>,
    /// Norms behind the mixer and behind the network.
    pub(crate) behind: Option<[V; 2]>,
    /// Multiplies the residual stream in the end.
    pub(crate) scalar: Option<f32>,
    pub(crate) streams: Option<Streams<V>>,
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
            mixer: Mixer::load(from, index, &spec.mixer)?,
            post_norm: from.norm(&format!("layers.{index}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::load(
                from,
                &format!("layers.{index}"),
                router,
                &spec.feed_forward,
                false,
            )?,
            behind: None,
            scalar: None,
            streams: None,
        })
    }

    /// A layer of attention outside the model's own, under `base` by the names of the Qwen families, its experts placed.
    pub(crate) fn load_apart(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        base: &str,
        router: &str,
        mixer: &AttentionSpec,
        feed_forward: &FeedForwardSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        Ok(Layer {
            input_norm: from.norm(&format!("{base}.input_layernorm.weight"), hidden)?,
            mixer: Mixer::Attention(Attention::load(from, base, mixer)?),
            post_norm: from.norm(&format!("{base}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::load(from, base, router, feed_forward, true)?,
            behind: None,
            scalar: None,
            streams: None,
        })
    }

    /// The modules under `layers.{index}` by the names of Gemma 3 and 4, with norms behind both halves, and a scalar if
    /// there is one.
    pub(crate) fn load_between_norms(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        index: usize,
        spec: &LayerSpec,
        scalar: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let base = format!("layers.{index}");
        let mut norm = |name: &str| from.norm(&format!("{base}.{name}.weight"), hidden);
        let (input_norm, post_norm) = (norm("input_layernorm")?, norm("pre_feedforward_layernorm")?);
        let behind = [norm("post_attention_layernorm")?, norm("post_feedforward_layernorm")?];
        Ok(Layer {
            input_norm,
            mixer: Mixer::load(from, index, &spec.mixer)?,
            post_norm,
            feed_forward: FeedForward::load(from, &base, "", &spec.feed_forward, false)?,
            behind: Some(behind),
            scalar: match scalar {
                Some(name) => Some(from.scalar(&format!("{base}.{name}"))?),
                None => None,
            },
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
            None => self.add_mixed(d, ws, eps),
        }
        d.norm(&ws.h, &self.post_norm, eps, &mut ws.x);
        self.feed_forward.prepare(d, ws, eps);
        if self.streams.is_some() {
            d.clear(&ws.x, &mut ws.h);
        }
    }

    /// Adds the mixer's output to the residual stream, normed where the family does that.
    fn add_mixed<D: Device<Matrix = M, Vector = V>>(&self, d: &mut D, ws: &mut Workspace<D>, eps: f32) {
        match &self.behind {
            Some([behind, _]) => {
                d.norm(&ws.y, behind, eps, &mut ws.x);
                d.add(&mut ws.h, &ws.x);
            }
            None => d.add(&mut ws.h, &ws.y),
        }
    }

    /// The second half, from its experts on.
    pub(crate) fn feed_forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        index: usize,
        eps: f32,
    ) -> Result<(), ModelError> {
        let behind = self.behind.as_ref().map(|[_, behind]| behind);
        self.feed_forward.forward(d, ws, index, behind, eps)?;
        if let Some(scalar) = self.scalar {
            d.cap(&mut ws.h, scalar, None);
        }
        if let Some(streams) = &self.streams {
            d.mix(&streams.spec, &ws.mixing, &ws.h, &mut ws.streams);
        }
        Ok(())
    }
}
