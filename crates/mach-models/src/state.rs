//! The state of one sequence.

use mach_experts::{Heat, HotExperts};
use mach_kernels::attention::KvCache;
use mach_kernels::delta::DeltaState;

use crate::model::ModelError;

/// What one layer carries from token to token.
#[derive(Debug, Clone)]
pub enum LayerState {
    /// Keys and values of softmax attention.
    Attention(KvCache),
    /// Convolution rows and recurrent matrices of Gated DeltaNet.
    Delta(DeltaState),
}

/// Everything that a model carries from token to token for one sequence. A clone shares the full key/value pages.
#[derive(Debug, Clone)]
pub struct SequenceState {
    pub(crate) position: usize,
    pub(crate) layers: Vec<LayerState>,
    /// Where the block that may be cut short starts.
    pub(crate) block: Option<usize>,
    /// Positions inside the next pass at which the state is to be copied, ascending.
    pub(crate) copy_at: Vec<usize>,
    /// Which experts it uses, if that is worth knowing.
    pub(crate) heat: Option<Heat>,
}

impl SequenceState {
    /// An empty sequence of a model with these layers, themselves empty.
    pub fn new(layers: Vec<LayerState>) -> Self {
        Self { position: 0, layers, block: None, copy_at: Vec::new(), heat: None }
    }

    /// Tokens seen so far; the next token's absolute position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes held (pages shared with other sequences included).
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| match layer {
                LayerState::Attention(kv) => kv.bytes(),
                LayerState::Delta(delta) => 4 * (delta.conv.len() + delta.state.len()),
            })
            .sum()
    }

    /// Makes the next pass over this sequence a block that [`Model::keep_rows`](crate::Model::keep_rows) may cut short.
    pub fn begin_block(&mut self) {
        self.block = Some(self.position);
        for layer in &mut self.layers {
            if let LayerState::Delta(delta) = layer {
                delta.begin_block();
            }
        }
    }

    /// Ends the block and cuts position and attention caches back to its first `rows` rows. Recurrent layers are the
    /// model's to rewind.
    pub(crate) fn end_block(&mut self, rows: usize) -> Result<(), ModelError> {
        let Some(end) = self.block.take().map(|start| start + rows).filter(|&end| end <= self.position)
        else {
            return Err(ModelError::Unsupported(format!("no block of {rows} or more rows to cut short")));
        };
        self.position = end;
        for layer in &mut self.layers {
            if let LayerState::Attention(kv) = layer {
                kv.truncate(end);
            }
        }
        Ok(())
    }
}

/// Copies at positions inside a pass: keys and values are shared, recurrent state is copied on the way.
impl SequenceState {
    /// Has the next pass keep a copy of the state at each of these absolute positions, ascending and after the present one.
    /// Those that the pass does not reach are forgotten. A block that may be cut short keeps none.
    pub fn copy_at(&mut self, positions: &[usize]) {
        self.copy_at = positions.iter().copied().filter(|&p| p > self.position).collect();
        let rows: Vec<usize> = self.copy_at.iter().map(|p| p - self.position).collect();
        for layer in &mut self.layers {
            if let LayerState::Delta(delta) = layer {
                delta.copy_after(&rows);
            }
        }
    }

    /// The copies that the last pass kept, in order.
    pub fn take_copies(&mut self) -> Vec<SequenceState> {
        let wanted = std::mem::take(&mut self.copy_at);
        if wanted.is_empty() || self.block.is_some() {
            return Vec::new();
        }
        let reached = wanted.iter().take_while(|&&p| p <= self.position);
        let mut copies: Vec<_> = reached
            .map(|&position| SequenceState {
                position,
                heat: self.heat.clone(),
                ..SequenceState::new(Vec::with_capacity(self.layers.len()))
            })
            .collect();
        for layer in &mut self.layers {
            match layer {
                LayerState::Attention(kv) => {
                    for copy in &mut copies {
                        let mut kv = kv.clone();
                        kv.truncate(copy.position);
                        copy.layers.push(LayerState::Attention(kv));
                    }
                }
                LayerState::Delta(delta) => {
                    for (copy, delta) in copies.iter_mut().zip(delta.take_copies()) {
                        copy.layers.push(LayerState::Delta(delta));
                    }
                }
            }
        }
        copies.retain(|copy| copy.layers.len() == self.layers.len());
        copies
    }

    /// The state as it was at an earlier position, if all layers are attention that forgets nothing.
    pub fn cut(&self, position: usize) -> Option<SequenceState> {
        if position > self.position {
            return None;
        }
        let layer = |layer: &LayerState| match layer {
            LayerState::Attention(kv) if kv.start() == 0 => {
                let mut kv = kv.clone();
                kv.truncate(position);
                Some(LayerState::Attention(kv))
            }
            _ if position == self.position => Some(layer.clone()),
            _ => None,
        };
        let layers = self.layers.iter().map(layer).collect::<Option<_>>()?;
        Some(SequenceState { position, ..SequenceState::new(layers) })
    }

    /// Whether [`cut`](Self::cut) works at any position.
    pub fn can_be_cut(&self) -> bool {
        self.layers.iter().all(|layer| matches!(layer, LayerState::Attention(kv) if kv.start() == 0))
    }
}

/// The state as bytes, for saving and restoring it.
impl SequenceState {
    /// Pages of keys and values, which other sequences may share: what tells them apart while they live, and their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        let caches = self.layers.iter().filter_map(|layer| match layer {
            LayerState::Attention(kv) => Some(kv),
            LayerState::Delta(_) => None,
        });
        caches.flat_map(KvCache::pages)
    }

    /// Bytes that are never shared: recurrent state.
    pub fn own_bytes(&self) -> usize {
        let bytes = |layer: &LayerState| match layer {
            LayerState::Attention(_) => 0,
            LayerState::Delta(delta) => 4 * (delta.conv.len() + delta.state.len()),
        };
        self.layers.iter().map(bytes).sum()
    }

    /// All that is held, piece by piece in a fixed order. The pieces' lengths depend on the model and the position alone.
    pub fn sections(&self) -> Vec<&[u8]> {
        let mut out = Vec::new();
        for layer in &self.layers {
            match layer {
                LayerState::Attention(kv) => out.extend(kv.sections().into_iter().map(bytemuck::cast_slice)),
                LayerState::Delta(delta) => {
                    out.push(bytemuck::cast_slice(&delta.conv));
                    out.push(bytemuck::cast_slice(&delta.state));
                }
            }
        }
        out
    }

    /// As [`sections`](Self::sections), to be written.
    pub fn sections_mut(&mut self) -> Vec<&mut [u8]> {
        let mut out = Vec::new();
        for layer in &mut self.layers {
            match layer {
                LayerState::Attention(kv) => {
                    out.extend(kv.sections_mut().into_iter().map(bytemuck::cast_slice_mut));
                }
                LayerState::Delta(delta) => {
                    out.push(bytemuck::cast_slice_mut(&mut delta.conv));
                    out.push(bytemuck::cast_slice_mut(&mut delta.state));
                }
            }
        }
        out
    }

    /// From an empty sequence of the same model, one at `position` whose [`sections_mut`](Self::sections_mut) are to be
    /// filled.
    pub fn blank(&self, position: usize) -> SequenceState {
        let layer = |layer: &LayerState| match layer {
            LayerState::Attention(kv) => LayerState::Attention(KvCache::with_len(kv.shape(), 0, position)),
            LayerState::Delta(delta) => LayerState::Delta(delta.clone()),
        };
        let layers = self.layers.iter().map(layer).collect();
        SequenceState { position, ..SequenceState::new(layers) }
    }
}

/// The experts that a sequence uses most, where they are streamed.
impl SequenceState {
    /// The experts used up to now, the hottest first; the count of uses ends with it. Nothing if no count was kept.
    pub fn take_hot(&mut self) -> Option<HotExperts> {
        self.heat.take().map(|heat| heat.hottest()).filter(|hot| !hot.is_empty())
    }

    /// Counts uses of experts if `fresh`, a new sequence of the model, does, beginning with those of `hot`.
    pub fn count_uses(&mut self, fresh: &SequenceState, hot: Option<&HotExperts>) {
        self.heat.clone_from(&fresh.heat);
        if let (Some(heat), Some(hot)) = (&mut self.heat, hot) {
            heat.inherit(hot);
        }
    }
}

/// For models that keep nothing but their position, such as test doubles outside this crate.
impl SequenceState {
    /// A state without layers, at position 0.
    pub fn without_layers() -> Self {
        Self::new(Vec::new())
    }

    /// Counts `tokens` more tokens as seen.
    pub fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }
}
