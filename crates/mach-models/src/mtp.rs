//! A block that predicts the token after the next from the model's own residual streams (architectures.md section 6.10):
//! one more layer with its own experts, which borrows the model's embedding and head.
//!
//! Row `t` takes the streams behind the last layer at position `t` and the token at `t + 1`, and predicts the one at
//! `t + 2`. Its layer sees a window only, so what it keeps of a sequence is small.

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig};

use crate::blocks::{Layer, Workspace, load_streams};
use crate::decoder::Decoder;
use crate::device::{
    CheckpointLoader, Device, Finish, LayerSpec, LayerState, Loader, MixerSpec, ModelSpec, Placed, Placement,
    Readback, Span, StreamSpec, StreamWeights,
};
use crate::families::deepseek_v4;
use crate::{DraftError, LogitRows, Logits, ModelError, Purpose, SequenceState};

/// What is known of a block that a model has loaded; shared by all sequences. The weights are the model's.
#[derive(Debug)]
pub struct Mtp {
    empty: SequenceState,
    width: usize,
    window: usize,
    taps: [usize; 1],
    weight_bytes: usize,
}

impl Mtp {
    /// The state of a sequence of which nothing was taken in.
    pub fn new_context(&self) -> SequenceState {
        self.empty.clone()
    }

    /// Values of a row of features: all residual streams.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows back that a prediction depends on, its own included.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The layer whose output it takes: the last.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Bytes of its matrices.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}

/// Runs a loaded block on the model's device.
pub trait MtpHost {
    /// Takes in rows: features `[rows, streams * hidden]` of positions that follow one another, and for each the token at
    /// the next position. The logits asked for are those of the token after that.
    fn predict(
        &mut self,
        context: &mut SequenceState,
        features: &[f32],
        tokens: &[u32],
        logits: LogitRows,
    ) -> Result<Logits, ModelError>;
}

/// The block's weights.
#[derive(Debug)]
pub(crate) struct MtpWeights<D: Device> {
    spec: MtpSpec,
    parts: MtpParts<D::Matrix, D::Vector>,
    workspace: Workspace<D>,
    buffers: [D::Buf; 3],
    pub(crate) placed: Placed,
}

/// In numbers.
#[derive(Debug)]
struct MtpSpec {
    layer: LayerSpec,
    streams: StreamSpec,
    hidden: usize,
    eps: f32,
}

#[derive(Debug)]
struct MtpParts<M, V> {
    embedding_norm: V,
    embedding: M,
    streams_norm: V,
    streams: M,
    layer: Layer<M, V>,
    collapse: StreamWeights<V>,
    norm: V,
}

const BASE: &str = "mtp.0";

impl MtpSpec {
    fn of(config: &ModelConfig, spec: &ModelSpec) -> Option<Self> {
        let layer = deepseek_v4::mtp_layer(config)?;
        Some(MtpSpec { layer, streams: spec.streams?, hidden: spec.hidden, eps: spec.eps })
    }
}

/// Asks `from` for every weight of the block, its experts among them.
fn load<L: Loader>(from: &mut L, spec: &MtpSpec) -> Result<MtpParts<L::Matrix, L::Vector>, CheckpointError> {
    let hidden = spec.hidden;
    Ok(MtpParts {
        embedding_norm: from.norm(&format!("{BASE}.enorm.weight"), hidden)?,
        embedding: from.matrix(&format!("{BASE}.e_proj"), hidden, hidden)?,
        streams_norm: from.norm(&format!("{BASE}.hnorm.weight"), hidden)?,
        streams: from.matrix(&format!("{BASE}.h_proj"), hidden, hidden)?,
        layer: deepseek_v4::load_layer(from, hidden, Some(&spec.streams), BASE, &spec.layer, true)?,
        collapse: load_streams(from, &format!("{BASE}.hc_head"), &spec.streams, true)?,
        norm: from.norm(&format!("{BASE}.norm.weight"), hidden)?,
    })
}

/// Whether a checkpoint's family has such a block and its files hold it.
pub(crate) fn present(checkpoint: &Checkpoint) -> bool {
    deepseek_v4::mtp_layer(checkpoint.config()).is_some()
        && checkpoint.has(&format!("{}.weight", checkpoint.full_name(&format!("{BASE}.e_proj"))))
}

/// Gives the block's weights their place, if there is one: for a converter, which keeps them.
pub(crate) fn place<L: Loader>(from: &mut L, spec: &ModelSpec) -> Result<(), CheckpointError> {
    match MtpSpec::of(from.config(), spec) {
        Some(spec) => load(from, &spec).map(drop),
        None => Ok(()),
    }
}

impl<D: Device> Decoder<D> {
    /// Loads the block that `checkpoint`, the model's own, holds, in the place of one loaded before.
    pub(crate) fn load_block(&mut self, checkpoint: &Checkpoint) -> Result<Mtp, DraftError> {
        let absent = |what: &str| DraftError::Mismatch(what.to_owned());
        let spec = MtpSpec::of(&self.config, &self.spec)
            .ok_or_else(|| absent("the model's family has no block of its own"))?;
        if !present(checkpoint) {
            return Err(absent("the checkpoint holds no `mtp.0` block"));
        }
        if let Some(old) = self.mtp.take() {
            self.device.release(old.placed);
        }
        let mut from = CheckpointLoader::new(checkpoint, self.device.placement(checkpoint.tensors()));
        let parts = load(&mut from, &spec)?;
        let weight_bytes = from.placement.weight_bytes() as usize;
        let placed = self.device.fill(from.placement, &mut |_| ())?;
        let state = Box::new(self.device.new_state(&spec.layer)) as Box<dyn LayerState>;
        let window = match &spec.layer.mixer {
            MixerSpec::Compressed(mixer) => mixer.window,
            _ => 1,
        };
        let mtp = Mtp {
            empty: SequenceState::new(vec![state]),
            width: spec.streams.streams * spec.hidden,
            window,
            taps: [self.spec.layers.len().saturating_sub(1)],
            weight_bytes,
        };
        let (workspace, buffers) = (Workspace::default(), Default::default());
        self.mtp = Some(MtpWeights { spec, parts, workspace, buffers, placed });
        Ok(mtp)
    }
}

impl<D: Device> MtpWeights<D> {
    fn run(
        &mut self,
        d: &mut D,
        (table, head): (&D::Matrix, &D::Matrix),
        context: &mut SequenceState,
        features: &[f32],
        tokens: &[u32],
        wanted: &[usize],
    ) -> Result<Readback, ModelError> {
        let MtpWeights { spec, parts, workspace: ws, buffers: [wide, normed, mixed], .. } = self;
        let rows = tokens.len();
        d.begin(&[Span { start: 0, rows, position: context.position, purpose: Purpose::Draft }]);
        d.tokens(tokens);
        d.embed(table, tokens, 1.0, &mut ws.h); // [rows, hidden]
        d.norm(&ws.h, &parts.embedding_norm, spec.eps, &mut ws.x);
        d.linear(&ws.x, &[parts.embedding], &mut [&mut ws.y]);
        d.spread(&ws.y, spec.streams.streams, &mut ws.streams); // [rows, streams * hidden]
        d.write(features, spec.hidden, wide); // [rows * streams, hidden]
        d.norm(wide, &parts.streams_norm, spec.eps, normed);
        d.linear(normed, &[parts.streams], &mut [&mut *mixed]);
        d.add(&mut ws.streams, mixed);
        parts.layer.mix(d, ws, spec.eps, &mut [context.layer_mut(0)?]);
        parts.layer.feed_forward(d, ws, 0, spec.eps)?;
        if !wanted.is_empty() {
            d.select(&ws.streams, wanted, &mut ws.x);
            d.collapse(&spec.streams, &parts.collapse, &ws.x, &mut ws.mixing, &mut ws.y);
            d.norm(&ws.y, &parts.norm, spec.eps, &mut ws.x);
            d.linear(&ws.x, &[*head], &mut [&mut ws.logits]);
            d.output(&mut ws.logits);
        }
        match d.finish()? {
            Finish::Done(readback) => Ok(readback),
            Finish::Missing { .. } => {
                Err(ModelError::Device("a block with its own experts stopped for some".into()))
            }
        }
    }
}

impl<D: Device> MtpHost for Decoder<D> {
    fn predict(
        &mut self,
        context: &mut SequenceState,
        features: &[f32],
        tokens: &[u32],
        logits: LogitRows,
    ) -> Result<Logits, ModelError> {
        let vocab = self.config.vocab_size;
        let Decoder { parts, device, mtp, .. } = self;
        let mtp = mtp.as_mut().ok_or_else(|| ModelError::Unsupported("no block is loaded".into()))?;
        let rows = tokens.len();
        if features.len() != rows * mtp.spec.streams.streams * mtp.spec.hidden {
            return Err(ModelError::Unsupported(format!("features of another number of rows than {rows}")));
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        let wanted: Vec<usize> = match logits {
            LogitRows::None => Vec::new(),
            LogitRows::Last => (rows.saturating_sub(1)..rows).collect(),
            LogitRows::All => (0..rows).collect(),
        };
        if rows == 0 {
            return Ok(Logits { vocab, data: Vec::new() });
        }
        let borrowed = (&parts.embedding, &parts.head);
        let mut readback = mtp.run(device, borrowed, context, features, tokens, &wanted)?;
        context.position += rows;
        Ok(Logits { vocab, data: readback.outputs.next().unwrap_or_default() })
    }
}
