//! A block's weights on the model's device.

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig, MtpNaming, Row};

use super::Mtp;
use crate::blocks::{Layer, Workspace, load_streams};
use crate::decoder::Decoder;
use crate::device::{
    CheckpointLoader, Device, LayerSpec, LayerState, Loader, MixerSpec, ModelSpec, Place, Placed, Placement,
    StreamSpec, StreamWeights,
};
use crate::families::{self, deepseek_v4, qwen3_5_moe};
use crate::{DraftError, DraftNeeds, DraftOptions, SequenceState};

/// The block's weights, and the buffers of a pass.
#[derive(Debug)]
pub(crate) struct MtpWeights<D: Device> {
    pub(super) spec: BlockSpec,
    pub(super) parts: BlockParts<D::Matrix, D::Vector>,
    pub(super) workspace: Workspace<D>,
    pub(super) buffers: Buffers<D>,
    pub(crate) placed: Placed,
}

/// Buffers beside those of a [`Workspace`].
#[derive(Debug)]
pub(super) struct Buffers<D: Device> {
    pub(super) features: D::Buf,
    pub(super) normed: D::Buf,
    pub(super) mixed: D::Buf,
    pub(super) margins: D::Buf,
}

impl<D: Device> Default for Buffers<D> {
    fn default() -> Self {
        Buffers {
            features: D::Buf::default(),
            normed: D::Buf::default(),
            mixed: D::Buf::default(),
            margins: D::Buf::default(),
        }
    }
}

/// In numbers.
#[derive(Debug)]
pub(super) struct BlockSpec {
    layer: LayerSpec,
    /// Several residual streams, each of them projected by itself; otherwise one, beside the embedding.
    pub(super) streams: Option<StreamSpec>,
    pub(super) hidden: usize,
    vocab: usize,
    pub(super) eps: f32,
}

#[derive(Debug)]
pub(super) struct BlockParts<M, V> {
    pub(super) embedding_norm: V,
    pub(super) features_norm: V,
    pub(super) entry: Entry<M, V>,
    pub(super) layer: Layer<M, V>,
    pub(super) norm: V,
}

/// How embedding and features become the residual stream.
#[derive(Debug)]
pub(super) enum Entry<M, V> {
    /// `embedding e + streams f` for each stream `f`, and what makes one of the streams in the end.
    Streams { embedding: M, streams: M, collapse: StreamWeights<V> },
    /// One matrix over both, the embedding first.
    Joined(M),
}

impl BlockSpec {
    fn of(config: &ModelConfig, spec: &ModelSpec) -> Option<Self> {
        let layer = deepseek_v4::mtp_layer(config).or_else(|| qwen3_5_moe::mtp_layer(config))?;
        let ModelSpec { hidden, vocab, eps, streams, .. } = *spec;
        Some(BlockSpec { layer, streams, hidden, vocab, eps })
    }

    /// Values of a row of features.
    pub(super) fn width(&self) -> usize {
        self.hidden * self.streams.map_or(1, |streams| streams.streams)
    }

    /// As a model of one layer.
    fn model(&self) -> ModelSpec {
        ModelSpec {
            hidden: self.hidden,
            vocab: self.vocab,
            eps: self.eps,
            embedding_scale: 1.0,
            softcap: None,
            streams: self.streams,
            layers: vec![self.layer.clone()],
        }
    }

    fn window(&self) -> Option<usize> {
        match &self.layer.mixer {
            MixerSpec::Compressed(mixer) => Some(mixer.window),
            MixerSpec::Attention(mixer) => mixer.mask.window,
            MixerSpec::GatedDelta(_) => Some(1),
        }
    }

    /// `page`: bytes of a page of its context.
    fn needs(&self, weights: usize, page: usize) -> DraftNeeds {
        match self.window() {
            Some(_) => DraftNeeds::of_weights(weights),
            None => DraftNeeds::of_context(weights, page, self.width()),
        }
    }
}

/// Asks `from` for every weight of the block, its experts among them.
fn load<L: Loader>(
    from: &mut L,
    spec: &BlockSpec,
) -> Result<BlockParts<L::Matrix, L::Vector>, CheckpointError> {
    let hidden = spec.hidden;
    match (&spec.streams, &spec.layer.mixer) {
        (None, MixerSpec::Attention(mixer)) => Ok(BlockParts {
            embedding_norm: from.norm("mtp.pre_fc_norm_embedding.weight", hidden)?,
            features_norm: from.norm("mtp.pre_fc_norm_hidden.weight", hidden)?,
            entry: Entry::Joined(from.matrix("mtp.fc", hidden, 2 * hidden)?),
            layer: Layer::load_apart(from, "mtp.layers.0", "gate", mixer, &spec.layer.feed_forward)?,
            norm: from.norm("mtp.norm.weight", hidden)?,
        }),
        (streams, _) => {
            let streams = streams.unwrap_or_default();
            Ok(BlockParts {
                embedding_norm: from.norm("mtp.0.enorm.weight", hidden)?,
                features_norm: from.norm("mtp.0.hnorm.weight", hidden)?,
                entry: Entry::Streams {
                    embedding: from.matrix("mtp.0.e_proj", hidden, hidden)?,
                    streams: from.matrix("mtp.0.h_proj", hidden, hidden)?,
                    collapse: load_streams(from, "mtp.0.hc_head", &streams, true)?,
                },
                layer: deepseek_v4::load_layer(from, hidden, Some(&streams), "mtp.0", &spec.layer, true)?,
                norm: from.norm("mtp.0.norm.weight", hidden)?,
            })
        }
    }
}

/// The module that tells whether a checkpoint holds the block.
fn first_module(config: &ModelConfig) -> Option<&'static str> {
    match Row::named(&config.model_type)?.mtp {
        MtpNaming::None => None,
        MtpNaming::Inside => Some("mtp.0.e_proj"),
        MtpNaming::Root => Some("mtp.fc"),
    }
}

/// Whether a checkpoint's family has such a block and its files hold it.
pub fn present(checkpoint: &Checkpoint) -> bool {
    let config = checkpoint.config();
    let known = BlockSpec::of(config, &families::spec(config)).is_some();
    let module = first_module(config).filter(|_| known);
    module.is_some_and(|module| checkpoint.has(&format!("{}.weight", checkpoint.full_name(module))))
}

/// Gives the block's weights their place, if there is one: for a converter, which keeps them.
pub(crate) fn place<L: Loader>(from: &mut L, spec: &ModelSpec) -> Result<(), CheckpointError> {
    match BlockSpec::of(from.config(), spec) {
        Some(spec) => load(from, &spec).map(drop),
        None => Ok(()),
    }
}

/// The block that a checkpoint holds, in numbers, or what is missing.
fn found(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<BlockSpec, DraftError> {
    let absent = |what: &str| DraftError::Mismatch(what.to_owned());
    let spec = BlockSpec::of(config, &families::spec(config));
    let spec = spec.ok_or_else(|| absent("the model's family has no block of its own"))?;
    match Row::named(&config.model_type).map(|row| row.mtp) {
        _ if present(checkpoint) => Ok(spec),
        Some(MtpNaming::Root) => Err(absent("the checkpoint has no tensors `mtp.*`")),
        _ => Err(absent("the checkpoint has no tensors `mtp.0.*`")),
    }
}

fn loader<'a, D: Device>(
    checkpoint: &'a Checkpoint,
    spec: &BlockSpec,
    options: DraftOptions,
    device: &D,
) -> CheckpointLoader<'a, D::Placement<'a>> {
    let from = CheckpointLoader::new(checkpoint, device.placement(checkpoint.tensors()));
    match (spec.streams, options.quantize_bits) {
        // Published in 8 bits and fewer.
        (Some(_), _) | (_, None) => from,
        (None, Some(bits)) => from.with_place(Place::Quantized(bits)),
    }
}

/// Looks at the block that `checkpoint` holds as `device` would load it, and loads nothing.
pub fn check_block<D: Device>(
    checkpoint: &Checkpoint,
    options: DraftOptions,
    device: &D,
) -> Result<DraftNeeds, DraftError> {
    let spec = found(checkpoint, checkpoint.config())?;
    device.check(&spec.model())?;
    let mut from = loader(checkpoint, &spec, options, device);
    load(&mut from, &spec)?;
    let page = device.state_bytes(&spec.model(), DraftNeeds::PAGE);
    Ok(spec.needs(from.placement.weight_bytes() as usize, page))
}

impl<D: Device> Decoder<D> {
    /// Loads the block that `checkpoint`, the model's own, holds, in the place of one loaded before.
    pub(crate) fn load_block(
        &mut self,
        checkpoint: &Checkpoint,
        options: DraftOptions,
    ) -> Result<Mtp, DraftError> {
        let spec = found(checkpoint, &self.config)?;
        self.device.check(&spec.model())?;
        if let Some(old) = self.mtp.take() {
            self.device.release(old.placed);
        }
        let mut from = loader(checkpoint, &spec, options, &self.device);
        let parts = load(&mut from, &spec)?;
        let page = self.device.state_bytes(&spec.model(), DraftNeeds::PAGE);
        let needs = spec.needs(from.placement.weight_bytes() as usize, page);
        let placed = self.device.fill(from.placement, &mut |_| ())?;
        let state = Box::new(self.device.new_state(&spec.layer)) as Box<dyn LayerState>;
        let mtp = Mtp {
            name: "mtp",
            mean_of: (1, spec.width()),
            empty: SequenceState::new(vec![state]),
            width: spec.width(),
            window: spec.window(),
            taps: vec![self.spec.layers.len().saturating_sub(1)],
            needs,
        };
        let (workspace, buffers) = (Workspace::default(), Buffers::default());
        self.mtp = Some(MtpWeights { spec, parts, workspace, buffers, placed });
        Ok(mtp)
    }
}
