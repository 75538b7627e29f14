//! Keeps everything that a forward pass shows.

use std::collections::BTreeMap;

use mach_models::{Hidden, Observer, Wants};

/// What was seen, by layer. Calls add up: rows of later calls follow those of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// Residual stream, `[rows, hidden]`.
    pub(crate) hidden: BTreeMap<usize, Vec<f32>>,
    /// After the final norm, `[rows, hidden]`.
    pub(crate) last_norm: Vec<f32>,
    /// Experts and weights, `[rows, top_k]` each.
    pub(crate) routed: BTreeMap<usize, (Vec<u32>, Vec<f32>)>,
}

impl Observer for Recorder {
    fn wants(&self) -> Wants {
        Wants { hidden: Hidden::All, last_norm: true, routed: true }
    }

    fn hidden(&mut self, index: usize, rows: &[f32]) {
        self.hidden.entry(index).or_default().extend_from_slice(rows);
    }

    fn last_norm(&mut self, rows: &[f32]) {
        self.last_norm.extend_from_slice(rows);
    }

    fn routed(&mut self, layer: usize, experts: &[u32], weights: &[f32]) {
        let entry = self.routed.entry(layer).or_default();
        entry.0.extend_from_slice(experts);
        entry.1.extend_from_slice(weights);
    }
}
