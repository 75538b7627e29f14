//! Hidden states as drafts want them, of chosen layers, and as embeddings are made of, behind the final norm.

use std::ops::Range;

use mach_models::{Hidden, Observer, Wants};

/// Collects, for every row of a pass, the outputs of chosen layers side by side.
#[derive(Debug, Clone, Default)]
pub struct Taps {
    layers: Vec<usize>,
    hidden: usize,
    features: Vec<f32>,
    wants_normed: bool,
    normed: Vec<f32>,
}

impl Taps {
    /// For these layers (0 is the first layer's output), in this order, of a model of width `hidden`.
    pub fn new(layers: &[usize], hidden: usize) -> Self {
        Taps { layers: layers.to_vec(), hidden, ..Taps::default() }
    }

    /// Whether the next passes are to bring what comes after the final norm.
    pub fn want_normed(&mut self, wanted: bool) {
        self.wants_normed = wanted;
        self.normed.clear();
    }

    /// After the final norm `[hidden]`, of the row with the logits of this index; `None` if it was not wanted.
    pub fn normed(&self, index: usize) -> Option<&[f32]> {
        self.normed.get(index * self.hidden..(index + 1) * self.hidden).filter(|row| !row.is_empty())
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.layers.len() * self.hidden
    }

    /// Features `[rows, layers, hidden]` of some rows of the last pass; empty if it had no such rows.
    pub fn rows(&self, rows: Range<usize>) -> &[f32] {
        self.features.get(rows.start * self.width()..rows.end * self.width()).unwrap_or_default()
    }
}

impl Observer for Taps {
    fn wants(&self) -> Wants {
        let hidden = Hidden::At(self.layers.iter().map(|layer| layer + 1).collect());
        Wants { hidden, last_norm: self.wants_normed, ..Wants::default() }
    }

    fn last_norm(&mut self, rows: &[f32]) {
        self.normed.clear();
        self.normed.extend_from_slice(rows);
    }

    fn hidden(&mut self, index: usize, rows: &[f32]) {
        let (width, hidden) = (self.width(), self.hidden);
        if width == 0 {
            return;
        }
        self.features.resize(rows.len() / hidden * width, 0.0);
        for (place, _) in self.layers.iter().enumerate().filter(|&(_, &layer)| layer + 1 == index) {
            for (to, from) in self.features.chunks_exact_mut(width).zip(rows.chunks_exact(hidden)) {
                if let Some(to) = to.get_mut(place * hidden..(place + 1) * hidden) {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
