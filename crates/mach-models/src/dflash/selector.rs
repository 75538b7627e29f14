//! What the second generation adds to the choice of tokens: a walk through each row's best candidates that looks at the
//! token before.

use mach_checkpoint::{CheckpointError, LinearSource};
use mach_quant::{MatrixLayout, Order};

use super::DraftRows;

/// A table that the host looks rows up in.
#[derive(Debug)]
struct Table {
    layout: MatrixLayout,
    data: Vec<u8>,
}

impl Table {
    fn new(source: &LinearSource<'_>) -> Result<Self, CheckpointError> {
        source.check_finite()?;
        let source = source.source()?;
        let layout = MatrixLayout::of(&source, Order::Rows);
        let mut data = vec![0; layout.bytes()];
        layout.pack(&source, 0, &mut data);
        Ok(Table { layout, data })
    }

    /// False if there is no such row.
    fn row(&self, row: u32, out: &mut Vec<f32>) -> bool {
        out.resize(self.layout.cols, 0.0);
        let known = (row as usize) < self.layout.rows;
        if known {
            self.layout.decode_row(&self.data, row as usize, out);
        }
        known
    }
}

/// `score(c) = logit(c) + sum_r P[previous] h S[c]` over a row's best candidates, `h` a projection of the row.
#[derive(Debug)]
pub struct Selector {
    /// `[vocab, rank]`.
    predecessor: Table,
    /// `[vocab, rank]`.
    successor: Table,
    rank: usize,
    pub(super) top_k: usize,
}

impl Selector {
    pub(super) fn new(
        predecessor: &LinearSource<'_>,
        successor: &LinearSource<'_>,
        rank: usize,
        top_k: usize,
    ) -> Result<Self, CheckpointError> {
        let (predecessor, successor) = (Table::new(predecessor)?, Table::new(successor)?);
        Ok(Selector { predecessor, successor, rank, top_k })
    }

    /// Turns the logits of row `i` into the scores of its candidates behind the token `previous`; nothing else can be
    /// chosen then. Returns by how much the best score leads the second; `None` if `previous` or a candidate is no token.
    pub fn score(&self, rows: &mut DraftRows, i: usize, previous: u32) -> Option<f32> {
        let projected = rows.projected.get(i * self.rank..(i + 1) * self.rank)?;
        let candidates = rows.candidates.get(i * self.top_k..(i + 1) * self.top_k)?;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        if !self.predecessor.row(previous, &mut before) {
            return None;
        }
        let logits = rows.logits.row_mut(i);
        let mut scores = Vec::with_capacity(candidates.len());
        for &id in candidates {
            if !self.successor.row(id, &mut after) {
                return None;
            }
            let bonus: f32 = before.iter().zip(projected).zip(&after).map(|((p, h), s)| p * h * s).sum();
            scores.push(logits.get(id as usize).copied().unwrap_or(f32::NAN) + bonus);
        }
        let (best, second) =
            scores.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(best, second), &v| {
                (v.max(best), second.max(v.min(best)))
            });
        logits.fill(f32::NEG_INFINITY);
        for (&id, score) in candidates.iter().zip(scores) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = score;
            }
        }
        Some(best - second)
    }
}
