//! What the second generation adds: grouped dynamic convolutions around the sub-blocks, and a walk through each row's best
//! candidates that looks at the token before.

use mach_kernels::Cores;
use mach_kernels::elementwise::top_k;
use mach_kernels::linear::{Product, multiply};
use mach_kernels::quantize::Operand;

use super::config::{DraftConfig, SecondConfig};
use super::forward::DraftRows;
use super::weights::{Matrix, Plan, Weights};
use crate::{DraftError, Picker, Proposed};

/// Two convolutions over the block's rows (before and after a sub-block) that share their dynamic coefficients:
/// `out_i[ch] = sum_o (base[s, o, ch] + D_i[s, o, ch / group]) z_{i - o}[ch]`.
#[derive(Debug)]
pub(super) struct Convolution {
    /// `[2, kernel, hidden]`.
    base: Vec<f32>,
    /// `[2 kernel groups, hidden]`.
    pub(super) projection: Matrix,
    kernel: usize,
    group: usize,
    hidden: usize,
}

impl Convolution {
    pub(super) fn load(
        plan: &mut Plan<'_>,
        base: &str,
        hidden: usize,
        second: &SecondConfig,
    ) -> Result<Self, DraftError> {
        let (kernel, group) = (second.conv_kernel, second.conv_group);
        let projection = format!("{base}.kernel_projection");
        Ok(Convolution {
            base: plan.tensors.floats(&format!("{base}.base_kernel"), &[2, kernel, hidden])?,
            projection: plan.exact(&projection, 2 * kernel * (hidden / group), hidden)?,
            kernel,
            group,
            hidden,
        })
    }

    /// Convolution `which` of rows `z` with the coefficients of all rows.
    pub(super) fn apply(&self, which: usize, dynamic: &[f32], z: &[f32], out: &mut Vec<f32>) {
        let (n, groups) = (self.hidden, self.hidden / self.group);
        out.clear();
        out.resize(z.len(), 0.0);
        for (i, (out, d)) in
            out.chunks_exact_mut(n).zip(dynamic.chunks_exact(2 * self.kernel * groups)).enumerate()
        {
            for offset in 0..self.kernel.min(i + 1) {
                let tap = which * self.kernel + offset;
                let (Some(z), Some(base), Some(d)) = (
                    z.get((i - offset) * n..(i - offset + 1) * n),
                    self.base.get(tap * n..(tap + 1) * n),
                    d.get(tap * groups..(tap + 1) * groups),
                ) else {
                    continue;
                };
                for (((out, z), base), d) in out
                    .chunks_exact_mut(self.group)
                    .zip(z.chunks_exact(self.group))
                    .zip(base.chunks_exact(self.group))
                    .zip(d)
                {
                    for ((out, z), base) in out.iter_mut().zip(z).zip(base) {
                        *out += (base + d) * z;
                    }
                }
            }
        }
    }
}

/// `score(c) = logit(c) + sum_r P[previous] h S[c]` over a row's best candidates, `h` a projection of the row.
#[derive(Debug)]
pub(super) struct Selector {
    /// `[vocab, rank]` each.
    predecessor: Matrix,
    successor: Matrix,
    /// `[rank, hidden]`.
    projection: Matrix,
    rank: usize,
    top_k: usize,
}

impl Selector {
    pub(super) fn load(
        plan: &mut Plan<'_>,
        c: &DraftConfig,
        second: &SecondConfig,
    ) -> Result<Self, DraftError> {
        let (vocab, rank) = (c.vocab_size, second.selector_rank);
        Ok(Selector {
            predecessor: plan.table("candidate_selector.predecessor_codebook", vocab, rank)?,
            successor: plan.table("candidate_selector.successor_codebook", vocab, rank)?,
            projection: plan.exact("candidate_selector.hidden_projection", rank, c.hidden_size)?,
            rank,
            top_k: second.selector_top_k,
        })
    }

    /// Walks the rows from the anchor on; a row's logits become the scores of its candidates, and nothing else can be
    /// chosen.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn walk(
        &self,
        weights: &Weights,
        cores: &mut Cores,
        rows: &mut DraftRows,
        anchor: u32,
        picker: &mut dyn Picker,
        out: &mut Proposed,
    ) -> Result<(), DraftError> {
        let layout = self.projection.layout;
        let count = rows.logits.rows();
        let mut projected = vec![0.0; count * self.rank];
        let mut operand = Operand::default();
        operand.prepare(cores, &layout, &rows.hidden, layout.cols, count);
        let matrix = weights.get(&self.projection);
        let product = Product { matrix, operand: &operand, out: &mut projected, stride: self.rank };
        multiply(cores, &mut [product]);
        let mut previous = anchor;
        let (mut before, mut after) = (vec![0.0; self.rank], vec![0.0; self.rank]);
        let mut candidates = Vec::new();
        for (i, h) in projected.chunks_exact(self.rank).enumerate() {
            let position = rows.position + i;
            let logits = rows.logits.row_mut(i);
            top_k(logits, self.top_k, &mut candidates);
            weights.get(&self.predecessor).decode_row(previous as usize, &mut before);
            let mut scores = Vec::with_capacity(candidates.len());
            for &id in &candidates {
                weights.get(&self.successor).decode_row(id as usize, &mut after);
                let bonus: f32 = before.iter().zip(h).zip(&after).map(|((p, h), s)| p * h * s).sum();
                scores.push(logits.get(id as usize).copied().unwrap_or(f32::NAN) + bonus);
            }
            let (best, second) =
                scores.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(best, second), &v| {
                    (v.max(best), second.max(v.min(best)))
                });
            let margin = best - second;
            logits.fill(f32::NEG_INFINITY);
            for (&id, score) in candidates.iter().zip(scores) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = score;
                }
            }
            let token = picker.pick(logits, position).ok_or(DraftError::NotFinite)?;
            if token as usize >= self.predecessor.layout.rows {
                return Err(DraftError::NotFinite);
            }
            out.tokens.push(token);
            out.margins.push(margin);
            previous = token;
        }
        Ok(())
    }
}
