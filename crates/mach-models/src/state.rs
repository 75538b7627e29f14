//! The state of one sequence.

use std::borrow::Cow;

use mach_experts::{Heat, HotExperts};

use crate::device::LayerState;
use crate::model::ModelError;

/// Everything that a model, or a draft, carries from token to token for one sequence. A clone shares what will not change.
#[derive(Debug, Clone)]
pub struct SequenceState {
    pub(crate) position: usize,
    pub(crate) layers: Vec<Box<dyn LayerState>>,
    /// Where the block that may be cut short starts.
    pub(crate) block: Option<usize>,
    /// Positions inside the next pass at which the state is to be copied, ascending.
    pub(crate) copy_at: Vec<usize>,
    /// Which experts it uses, if that is worth knowing.
    pub(crate) heat: Option<Heat>,
}

impl SequenceState {
    /// An empty sequence of a model with these layers, themselves empty.
    pub fn new(layers: Vec<Box<dyn LayerState>>) -> Self {
        Self { position: 0, layers, block: None, copy_at: Vec::new(), heat: None }
    }

    fn at(position: usize, layers: Vec<Box<dyn LayerState>>) -> Self {
        Self { position, ..Self::new(layers) }
    }

    /// Tokens seen so far; the next token's absolute position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes held (pages shared with other sequences included).
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }

    /// What a recurrent layer carries (see [`LayerState::recurrent`]); `None` for others.
    pub fn recurrent(&self, layer: usize) -> Option<(Vec<f32>, Vec<f32>)> {
        self.layers.get(layer)?.recurrent()
    }

    /// The state of a layer as the device that made it knows it. `None` if there is no such layer, or another device made
    /// it.
    pub fn layer<S: LayerState>(&self, index: usize) -> Option<&S> {
        self.layers.get(index)?.as_any().downcast_ref()
    }

    /// As [`layer`](Self::layer), to be changed.
    pub(crate) fn layer_mut<S: LayerState>(&mut self, index: usize) -> Result<&mut S, ModelError> {
        let layer = self.layers.get_mut(index).and_then(|layer| layer.as_any_mut().downcast_mut());
        layer.ok_or(ModelError::ForeignState { layer: index })
    }

    /// Makes the next pass over this sequence a block that [`Model::keep_rows`](crate::Model::keep_rows) may cut short.
    pub fn begin_block(&mut self) {
        self.block = Some(self.position);
        self.layers.iter_mut().for_each(|layer| layer.begin_block());
    }

    /// Ends the block and cuts position and attention caches back to its first `rows` rows. Recurrent layers are the
    /// model's to rewind.
    pub(crate) fn end_block(&mut self, rows: usize) -> Result<(), ModelError> {
        let Some(end) = self.block.take().map(|start| start + rows).filter(|&end| end <= self.position)
        else {
            return Err(ModelError::Unsupported(format!("no block of {rows} or more rows to cut short")));
        };
        self.truncate(end);
        Ok(())
    }

    /// Cuts what can be cut back to `position`.
    pub(crate) fn truncate(&mut self, position: usize) {
        self.position = position;
        self.layers.iter_mut().for_each(|layer| layer.truncate(position));
    }
}

/// Copies at positions inside a pass: keys and values are shared, recurrent state is copied on the way.
impl SequenceState {
    /// Has the next pass keep a copy of the state at each of these absolute positions, ascending and after the present one.
    /// Those that the pass does not reach are forgotten. A block that may be cut short keeps none.
    pub fn copy_at(&mut self, positions: &[usize]) {
        self.copy_at = positions.iter().copied().filter(|&p| p > self.position).collect();
        let rows: Vec<usize> = self.copy_at.iter().map(|p| p - self.position).collect();
        self.layers.iter_mut().for_each(|layer| layer.copy_after(&rows));
    }

    /// The copies that the last pass kept, in order.
    pub fn take_copies(&mut self) -> Vec<SequenceState> {
        let wanted = std::mem::take(&mut self.copy_at);
        if wanted.is_empty() || self.block.is_some() {
            return Vec::new();
        }
        let reached: Vec<usize> = wanted.into_iter().take_while(|&p| p <= self.position).collect();
        let mut copies: Vec<_> = reached
            .iter()
            .map(|&position| SequenceState { heat: self.heat.clone(), ..Self::at(position, Vec::new()) })
            .collect();
        for layer in &mut self.layers {
            for (copy, layer) in copies.iter_mut().zip(layer.take_copies(&reached)) {
                copy.layers.push(layer);
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
        if position == self.position {
            return Some(Self::at(position, self.layers.clone()));
        }
        let layers = self.layers.iter().map(|layer| layer.cut(position)).collect::<Option<_>>()?;
        Some(Self::at(position, layers))
    }

    /// Whether [`cut`](Self::cut) works at any position.
    pub fn can_be_cut(&self) -> bool {
        self.layers.iter().all(|layer| layer.can_be_cut())
    }

    /// Whether a layer forgets what no query can see any more, so that [`can_be_cut`](Self::can_be_cut) may end with more
    /// tokens.
    pub fn forgets(&self) -> bool {
        self.layers.iter().any(|layer| layer.forgets())
    }
}

/// The state as bytes, for saving and restoring it.
impl SequenceState {
    /// Pages of keys and values, which other sequences may share: what tells them apart while they live, and their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut pages = Vec::new();
        self.layers.iter().for_each(|layer| layer.pages(&mut |page, bytes| pages.push((page, bytes))));
        pages.into_iter()
    }

    /// Bytes that are never shared: recurrent state.
    pub fn own_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.own_bytes()).sum()
    }

    /// Bytes that [`export`](Self::export) gives.
    pub fn exported_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.exported_bytes()).sum()
    }

    /// All that is held, piece by piece in a fixed order. The pieces' lengths depend on the model and the position alone. Fails
    /// if the device cannot give it out.
    pub fn export(&self) -> Result<Vec<Cow<'_, [u8]>>, ModelError> {
        let mut pieces = Vec::new();
        for layer in &self.layers {
            layer.export(&mut |piece| pieces.push(piece))?;
        }
        Ok(pieces)
    }

    /// The memory that exported pieces are to be put into, in their order; then [`imported`](Self::imported).
    pub fn import(&mut self) -> Vec<&mut [u8]> {
        let mut pieces = Vec::new();
        for layer in &mut self.layers {
            layer.import(&mut |piece| pieces.push(piece));
        }
        pieces
    }

    /// Takes what was put into the pieces of [`import`](Self::import) as the state.
    pub fn imported(&mut self) -> Result<(), ModelError> {
        self.layers.iter_mut().try_for_each(|layer| layer.imported())
    }

    /// From an empty sequence of the same model, one at `position` to be imported into.
    pub fn blank(&self, position: usize) -> SequenceState {
        Self::at(position, self.layers.iter().map(|layer| layer.blank(position)).collect())
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
