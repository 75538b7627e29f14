//! A head's weights on the model's device.

use std::path::Path;

use mach_checkpoint::{CheckpointError, Dtype, ModelConfig, Tensors, WeightSource};

use super::EagleConfig;
use crate::blocks::Workspace;
use crate::decoder::Decoder;
use crate::device::{
    AttentionSpec, AttentionWeights, Device, FeedForwardSpec, FfnSpec, LayerSpec, LayerState, MixerSpec, Mlp,
    ModelSpec, Place, Placed, Placement,
};
use crate::mtp::Mtp;
use crate::{DraftError, DraftNeeds, DraftOptions, SequenceState};

/// The weights, and the buffers of a pass.
#[derive(Debug)]
pub(crate) struct EagleWeights<D: Device> {
    pub(super) config: EagleConfig,
    /// Values of a row of features.
    pub(super) width: usize,
    pub(super) attention: AttentionSpec,
    pub(super) parts: HeadParts<D::Matrix, D::Vector>,
    /// The target's token for each of the head's, if these are not all.
    pub(super) vocabulary: Option<Vec<u32>>,
    pub(super) workspace: Workspace<D>,
    pub(super) buffers: Buffers<D>,
    pub(crate) placed: Placed,
}

#[derive(Debug)]
pub(super) struct HeadParts<M, V> {
    pub(super) fc: M,
    /// The model's is borrowed if there is none.
    pub(super) embedding: Option<M>,
    pub(super) embedding_norm: V,
    pub(super) hidden_norm: V,
    pub(super) q: M,
    pub(super) k: M,
    pub(super) v: M,
    pub(super) o: M,
    pub(super) norms: AttentionWeights<V>,
    pub(super) post_norm: V,
    pub(super) mlp: Mlp<M, V>,
    pub(super) norm: V,
    /// The model's is borrowed if there is none.
    pub(super) head: Option<M>,
}

/// Buffers beside those of a [`Workspace`].
#[derive(Debug)]
pub(super) struct Buffers<D: Device> {
    pub(super) features: D::Buf,
    pub(super) normed: D::Buf,
    pub(super) joined: D::Buf,
    pub(super) margins: D::Buf,
}

impl<D: Device> Default for Buffers<D> {
    fn default() -> Self {
        Buffers {
            features: D::Buf::default(),
            normed: D::Buf::default(),
            joined: D::Buf::default(),
            margins: D::Buf::default(),
        }
    }
}

fn spec(c: &EagleConfig) -> ModelSpec {
    ModelSpec {
        hidden: c.hidden_size,
        vocab: c.draft_vocab_size,
        eps: c.eps,
        embedding_scale: 1.0,
        softcap: None,
        streams: None,
        layers: vec![LayerSpec {
            mixer: MixerSpec::Attention(c.attention()),
            feed_forward: FeedForwardSpec::Dense(FfnSpec::swiglu(c.intermediate_size)),
        }],
    }
}

fn gather<'a, P: Placement<'a>>(
    tensors: &'a Tensors,
    c: &EagleConfig,
    width: usize,
    place: Place,
    to: &mut P,
) -> Result<HeadParts<P::Matrix, P::Vector>, DraftError>
where
    P::Matrix: Copy,
{
    let (hidden, wide) = (c.hidden_size, c.intermediate_size);
    let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let layer = if tensors.has("midlayer.input_layernorm.weight") { "midlayer" } else { "layers.0" };
    let name = |rest: &str| format!("{layer}.{rest}");
    let mut matrix = |module: &str, rows: usize, cols: usize| -> Result<P::Matrix, DraftError> {
        let source = tensors.linear(module, rows, cols)?;
        Ok(to.matrix(WeightSource::Stored(source), place)?)
    };
    let fc = matrix("fc", hidden, width)?;
    let [q, k, v] = [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)]
        .map(|(module, rows)| matrix(&name(&format!("self_attn.{module}")), rows, 2 * hidden));
    let o = matrix(&name("self_attn.o_proj"), hidden, q_width)?;
    let mlp = Mlp {
        spec: FfnSpec::swiglu(wide),
        gate: matrix(&name("mlp.gate_proj"), wide, hidden)?,
        up: matrix(&name("mlp.up_proj"), wide, hidden)?,
        down: matrix(&name("mlp.down_proj"), hidden, wide)?,
        biases: None,
    };
    let head = match tensors.has("lm_head.weight") {
        true => Some(matrix("lm_head", c.draft_vocab_size, hidden)?),
        false if c.draft_vocab_size == c.vocab_size && hidden == c.target_hidden_size => None,
        false => return Err(DraftError::Mismatch("it has no `lm_head.weight`".into())),
    };
    let embedding = match tensors.has("embed_tokens.weight") {
        true => Some(matrix("embed_tokens", c.vocab_size, hidden)?),
        false if hidden == c.target_hidden_size => None,
        false => return Err(DraftError::Mismatch("it has no `embed_tokens.weight`".into())),
    };
    let mut norm = |tensor: &str| -> Result<P::Vector, DraftError> {
        Ok(to.vector(tensors.floats(&format!("{tensor}.weight"), &[hidden])?))
    };
    Ok(HeadParts {
        fc,
        embedding,
        embedding_norm: norm(&name("input_layernorm"))?,
        hidden_norm: norm(&name("hidden_norm"))?,
        q: q?,
        k: k?,
        v: v?,
        o,
        norms: AttentionWeights { q_norm: None, k_norm: None, sinks: None },
        post_norm: norm(&name("post_attention_layernorm"))?,
        mlp,
        norm: norm("norm")?,
        head,
    })
}

/// `d2t`: what is added to each of the head's tokens to make one of the target's.
fn vocabulary(tensors: &Tensors, c: &EagleConfig) -> Result<Option<Vec<u32>>, DraftError> {
    if !tensors.has("d2t") {
        return match c.draft_vocab_size == c.vocab_size {
            true => Ok(None),
            false => Err(DraftError::Mismatch("it has no `d2t`, which says what its tokens are".into())),
        };
    }
    let view = tensors.tensor("d2t")?;
    let bad = |reason: String| {
        let (file, tensor) = (view.file.to_owned(), view.name.to_owned());
        DraftError::Checkpoint(CheckpointError::Tensor { file, tensor, reason })
    };
    if view.shape != [c.draft_vocab_size] {
        return Err(bad(format!("shape {:?}, but config.json implies [{}]", view.shape, c.draft_vocab_size)));
    }
    let offsets: Vec<i64> = match view.dtype {
        Dtype::I64 => view.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => {
            view.data.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()
        }
        other => return Err(bad(format!("type {other:?} where integers are needed"))),
    };
    let token = |(id, offset): (i64, i64)| {
        let token = id.checked_add(offset).and_then(|token| u32::try_from(token).ok());
        token
            .filter(|&token| (token as usize) < c.vocab_size)
            .ok_or_else(|| bad(format!("element {id} is {offset}, which leads out of the vocabulary")))
    };
    (0..).zip(offsets).map(token).collect::<Result<_, _>>().map(Some)
}

/// Opens a head's files for a target.
fn open(dir: &Path, target: &ModelConfig) -> Result<(Tensors, EagleConfig, Vec<usize>), DraftError> {
    let (tensors, json) = Tensors::open(dir)?;
    let config = EagleConfig::parse(&dir.join("config.json"), &json)?;
    config.fits(target)?;
    let taps = config.taps(target.layers.len());
    Ok((tensors, config, taps))
}

/// Looks at the head in `dir` as a target with these settings would load it on `device`, and loads nothing. `streams`: how
/// many residual streams the target has.
pub fn check_head<D: Device>(
    dir: &Path,
    target: &ModelConfig,
    streams: usize,
    options: DraftOptions,
    device: &D,
) -> Result<DraftNeeds, DraftError> {
    let (tensors, config, taps) = open(dir, target)?;
    device.check(&spec(&config))?;
    vocabulary(&tensors, &config)?;
    let place = options.quantize_bits.map_or(Place::Activations, Place::Quantized);
    let mut placement = device.placement(&tensors);
    let width = taps.len() * config.target_hidden_size;
    gather(&tensors, &config, width, place, &mut placement)?;
    let page = device.state_bytes(&spec(&config), DraftNeeds::PAGE);
    Ok(DraftNeeds::of_context(placement.weight_bytes() as usize, page, streams * width))
}

impl<D: Device> Decoder<D> {
    /// Loads the head in `dir`, in the place of one loaded before.
    pub(crate) fn load_head(&mut self, dir: &Path, options: DraftOptions) -> Result<Mtp, DraftError> {
        let (tensors, config, taps) = open(dir, &self.config)?;
        let model = spec(&config);
        self.device.check(&model)?;
        if let Some(old) = self.eagle.take() {
            self.device.release(old.placed);
        }
        let vocabulary = vocabulary(&tensors, &config)?;
        let place = options.quantize_bits.map_or(Place::Activations, Place::Quantized);
        let width = taps.len() * config.target_hidden_size;
        let mut placement = self.device.placement(&tensors);
        let parts = gather(&tensors, &config, width, place, &mut placement)?;
        let page = self.device.state_bytes(&model, DraftNeeds::PAGE);
        let streams = self.spec.streams.map_or(1, |streams| streams.streams);
        let needs = DraftNeeds::of_context(placement.weight_bytes() as usize, page, streams * width);
        let placed = self.device.fill(placement, &mut |_| ())?;
        let states = model.layers.iter().map(|l| Box::new(self.device.new_state(l)) as Box<dyn LayerState>);
        let empty = SequenceState::new(states.collect());
        let attention = config.attention();
        let (workspace, buffers) = (Workspace::default(), Buffers::default());
        let mean_of = (streams, config.target_hidden_size);
        self.eagle =
            Some(EagleWeights { config, width, attention, parts, vocabulary, workspace, buffers, placed });
        Ok(Mtp::of_head(empty, width, taps, mean_of, needs))
    }
}
