//! Hidden states as drafts want them, of chosen layers, and as embeddings are made of, behind the final norm.

use std::ops::Range;

use mach_models::{Hidden, Observer, Wants};

/// Collects, for every row of a pass, the outputs of chosen layers side by side.
#[derive(Debug, Clone, Default)]
pub struct Taps {
    layers: Vec<usize>,
    /// Values of a row of a layer's output.
    output: usize,
    hidden: usize,
    features: Vec<f32>,
    wants_normed: bool,
    normed: Vec<f32>,
}

impl Taps {
    /// For these layers (0 is the first layer's output), in this order, of a model of width `hidden`.
    pub fn new(layers: &[usize], hidden: usize) -> Self {
        Taps { layers: layers.to_vec(), output: hidden, hidden, ..Taps::default() }
    }

    /// For layers whose outputs are wider than the model: several residual streams.
    #[must_use]
    pub fn with_output(mut self, values: usize) -> Self {
        self.output = values;
        self
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
        self.layers.len() * self.output
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
        let (width, hidden) = (self.width(), self.output);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_side_by_side_in_the_order_asked_for() {
        let mut taps = Taps::new(&[4, 0], 3);
        assert_eq!((taps.width(), taps.wants().hidden), (6, Hidden::At(vec![5, 1])));
        taps.hidden(1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        taps.hidden(5, &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        taps.hidden(4, &[9.0; 6]);
        assert_eq!(taps.rows(0..1), [10.0, 20.0, 30.0, 1.0, 2.0, 3.0]);
        assert_eq!(taps.rows(1..2), [40.0, 50.0, 60.0, 4.0, 5.0, 6.0]);
        assert_eq!((taps.rows(0..2).len(), taps.rows(0..3).len()), (12, 0), "there are two rows");
        // A shorter pass leaves nothing of the one before.
        taps.hidden(1, &[7.0, 8.0, 9.0]);
        assert_eq!((taps.rows(0..1).len(), taps.rows(0..2).len()), (6, 0));
        let mut none = Taps::default();
        none.hidden(1, &[1.0]);
        assert!(none.rows(0..1).is_empty());
        // Outputs of several streams are wider than what comes after the final norm.
        let mut wide = Taps::new(&[1], 2).with_output(4);
        wide.want_normed(true);
        wide.hidden(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        wide.last_norm(&[9.0, 10.0]);
        assert_eq!((wide.rows(1..2), wide.normed(0)), (&[5.0, 6.0, 7.0, 8.0][..], Some(&[9.0, 10.0][..])));
    }
}
