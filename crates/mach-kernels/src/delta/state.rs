//! What a sequence keeps of a Gated DeltaNet layer, and what it takes to go back.

use super::DeltaShape;

/// State carried from token to token.
#[derive(Debug, Clone)]
pub struct DeltaState {
    /// The last `taps - 1` inputs of the convolution, oldest first: `[taps - 1, channels]`.
    pub conv: Vec<f32>,
    /// A matrix `[key_dim, value_dim]` for each value head, stored in blocks of 32 columns (the last may have 16), rows
    /// of a block together, so that a block stays in the L1 cache over the tokens of a pass.
    pub state: Vec<f32>,
    pub(super) undo: Undo,
    pub(super) copies: Copies,
}

impl PartialEq for DeltaState {
    fn eq(&self, other: &Self) -> bool {
        (&self.conv, &self.state) == (&other.conv, &other.state)
    }
}

/// What is needed to cut a pass over several tokens short: the state before it and the inputs of the recurrence.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// The next pass is to be kept.
    pub(super) begun: bool,
    pub(super) rows: usize,
    pub(super) conv: Vec<f32>,
    pub(super) state: Vec<f32>,
    pub(super) u: Vec<f32>,
    pub(super) decay: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

/// A copy of a state cannot be cut back: it does not pay for the memory.
impl Clone for Undo {
    fn clone(&self) -> Self {
        Undo::default()
    }
}

/// States in the middle of a pass.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Numbers of rows of the next pass after which the state is to be copied, ascending.
    pub(super) after: Vec<usize>,
    pub(super) kept: Vec<DeltaState>,
}

/// Copies are taken out, never copied along.
impl Clone for Copies {
    fn clone(&self) -> Self {
        Copies::default()
    }
}

/// Columns of a block of the state.
pub(super) const BLOCK: usize = 32;

impl DeltaState {
    /// The state of a sequence without tokens: all zeros.
    pub fn new(shape: &DeltaShape) -> Self {
        DeltaState {
            conv: vec![0.0; (shape.taps - 1) * shape.channels()],
            state: vec![0.0; shape.value_heads * shape.key_dim * shape.value_dim],
            undo: Undo::default(),
            copies: Copies::default(),
        }
    }

    /// Has the next [`gated_delta`](super::gated_delta) keep a copy of the state after each of these numbers of rows, ascending. A pass that
    /// may be cut short keeps none.
    pub fn copy_after(&mut self, rows: &[usize]) {
        self.copies.after = rows.to_vec();
        self.copies.kept.clear();
    }

    /// The copies that the last [`gated_delta`](super::gated_delta) kept, in order.
    pub fn take_copies(&mut self) -> Vec<DeltaState> {
        std::mem::take(&mut self.copies.kept)
    }

    /// Has the next [`gated_delta`](super::gated_delta) keep what [`rewind`](super::rewind) needs.
    pub fn begin_block(&mut self) {
        self.undo.begun = true;
        self.undo.rows = 0;
    }

    /// Rows of the last pass that can still be cut short.
    pub fn block_rows(&self) -> usize {
        self.undo.rows
    }

    /// The recurrent matrices in plain order `[value_heads, key_dim, value_dim]`.
    pub fn matrices(&self, shape: &DeltaShape) -> Vec<f32> {
        let DeltaShape { key_dim, value_dim, .. } = *shape;
        let mut out = vec![0.0; self.state.len()];
        for (h, head) in out.chunks_exact_mut(key_dim * value_dim).enumerate() {
            for (i, row) in head.chunks_exact_mut(value_dim).enumerate() {
                for (j, x) in row.iter_mut().enumerate() {
                    let first = j / BLOCK * BLOCK;
                    let width = BLOCK.min(value_dim - first);
                    *x = self.state[(h * value_dim + first) * key_dim + i * width + (j - first)];
                }
            }
        }
        out
    }
}

/// Shifts `new` rows into the window of the last `keep` rows.
pub(super) fn keep_last(window: &mut [f32], new: &[f32], channels: usize, keep: usize) {
    let rows = new.len() / channels;
    if rows >= keep {
        window.copy_from_slice(&new[(rows - keep) * channels..]);
    } else {
        window.copy_within(rows * channels.., 0);
        window[(keep - rows) * channels..].copy_from_slice(new);
    }
}
