//! Measuring how a checkpoint's routers spread random tokens, straight from its embedding and router weights.

use std::fmt;

use half::bf16;

use super::content::random;
use super::routing::CARRIED;
use super::tensors::TEXT_TOKENS;
use crate::{Checkpoint, CheckpointError, Dtype, Family, LinearSource, Packing};

/// How one layer's router spread a sample of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpread {
    /// Share of tokens that chose the most chosen expert, 0 to 1; `top_k / experts` is the least it can be.
    pub hottest: f64,
    /// Exponential of the entropy of the choices: as many equally chosen experts would have the same entropy.
    pub effective_experts: f64,
    /// Share of experts chosen by some token, 0 to 1.
    pub coverage: f64,
}

/// The measured spread of all layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Tokens routed.
    pub tokens: usize,
    /// Experts per layer and per token.
    pub experts: (usize, usize),
    /// One entry a layer.
    pub layers: Vec<LayerSpread>,
}

impl Spread {
    /// Means over the layers.
    pub fn mean(&self) -> LayerSpread {
        let n = self.layers.len().max(1) as f64;
        let mean = |f: fn(&LayerSpread) -> f64| self.layers.iter().map(f).sum::<f64>() / n;
        LayerSpread {
            hottest: mean(|l| l.hottest),
            effective_experts: mean(|l| l.effective_experts),
            coverage: mean(|l| l.coverage),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (experts, top_k) = self.experts;
        writeln!(f, "routing of {} random tokens over {experts} experts, {top_k} a token:", self.tokens)?;
        writeln!(f, "layer  hottest expert  effective experts  coverage")?;
        let mut line = |name: &str, l: &LayerSpread| {
            writeln!(
                f,
                "{name:>5}  {:>13.1}%  {:>17.1}  {:>7.1}%",
                100.0 * l.hottest,
                l.effective_experts,
                100.0 * l.coverage
            )
        };
        for (i, layer) in self.layers.iter().enumerate() {
            line(&i.to_string(), layer)?;
        }
        line("mean", &self.mean())
    }
}

/// Routes `tokens` random token ids through every router of a synthetic checkpoint. A router reads the carried
/// dimensions only, and the norm before it scales them all alike, so embedding and router rows settle the choice.
pub fn measure_spread(checkpoint: &Checkpoint, tokens: usize, seed: u64) -> Result<Spread, CheckpointError> {
    let config = checkpoint.config();
    let (hidden, experts, top_k) = (config.hidden_size, config.moe.num_experts, config.moe.top_k);
    let deepseek = config.family == Family::DeepseekV4;
    let embedding = if deepseek { "embed" } else { "embed_tokens" };
    let module = checkpoint.full_name(embedding);
    let embedding = checkpoint.linear(&module, config.vocab_size, hidden)?;
    let mut inputs = Vec::with_capacity(tokens * CARRIED);
    for i in 0..tokens {
        let id = random(seed, i as u64) as usize % TEXT_TOKENS.min(config.vocab_size);
        inputs.extend(leading_values(&embedding, id)?);
    }
    let mut layers = Vec::new();
    for layer in 0..config.layers.len() {
        let name = checkpoint.family().synthetic.router;
        let gate = checkpoint.full_name(&format!("layers.{layer}.{name}"));
        if config.compressed.as_ref().is_some_and(|own| layer < own.hash_layers) {
            let table = checkpoint.integers(
                &format!("{gate}.tid2eid"),
                &[config.vocab_size, top_k],
                experts as u32,
            )?;
            let ids =
                (0..tokens).map(|i| random(seed, i as u64) as usize % TEXT_TOKENS.min(config.vocab_size));
            let mut counts = vec![0u64; experts];
            for expert in ids.flat_map(|id| table.get(id * top_k..(id + 1) * top_k).unwrap_or_default()) {
                if let Some(count) = counts.get_mut(*expert as usize) {
                    *count += 1;
                }
            }
            layers.push(summary(&counts, tokens));
            continue;
        }
        let router = checkpoint.linear(&gate, experts, hidden)?;
        let mut weights = Vec::with_capacity(experts * CARRIED);
        for expert in 0..experts {
            weights.extend(leading_values(&router, expert)?);
        }
        layers.push(spread(&inputs, &weights, experts, top_k));
    }
    Ok(Spread { tokens, experts: (experts, top_k), layers })
}

fn spread(inputs: &[f32], weights: &[f32], experts: usize, top_k: usize) -> LayerSpread {
    let mut counts = vec![0u64; experts];
    let mut logits: Vec<(f32, usize)> = Vec::with_capacity(experts);
    for input in inputs.chunks_exact(CARRIED) {
        logits.clear();
        for (expert, row) in weights.chunks_exact(CARRIED).enumerate() {
            let mut sums = [0f32; 8];
            for (x, w) in input.as_chunks::<8>().0.iter().zip(row.as_chunks::<8>().0) {
                for i in 0..8 {
                    sums[i] += x[i] * w[i];
                }
            }
            logits.push((sums.iter().sum(), expert));
        }
        if top_k < logits.len() {
            logits.select_nth_unstable_by(top_k, |a, b| b.0.total_cmp(&a.0));
        }
        for (_, expert) in logits.iter().take(top_k) {
            counts[*expert] += 1;
        }
    }
    summary(&counts, inputs.len() / CARRIED)
}

/// From how often each expert was chosen.
fn summary(counts: &[u64], tokens: usize) -> LayerSpread {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    let tokens = tokens.max(1) as f64;
    let entropy: f64 =
        counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / total).map(|p| -p * p.ln()).sum();
    LayerSpread {
        hottest: counts.iter().copied().max().unwrap_or(0) as f64 / tokens,
        effective_experts: entropy.exp(),
        coverage: counts.iter().filter(|&&c| c > 0).count() as f64 / counts.len().max(1) as f64,
    }
}

/// The carried dimensions of a row of a matrix that this module wrote: affine, groups of 64, bf16 scales.
fn leading_values(source: &LinearSource<'_>, row: usize) -> Result<Vec<f32>, CheckpointError> {
    let wrong =
        || CheckpointError::tensor(source.file, source.module, "not a matrix of a synthetic checkpoint");
    let Packing::Affine { bits, group: 64, scales: Dtype::BF16 } = source.packing else {
        return Err(wrong());
    };
    let row = source.slice_rows(row, 1).ok_or_else(wrong)?;
    let half = |data: &[u8], i: usize| {
        data.as_chunks::<2>().0.get(i).map(|b| bf16::from_le_bytes(*b).to_f32()).ok_or_else(wrong)
    };
    (0..CARRIED)
        .map(|i| {
            let code = mach_quant::decode::code(row.weight, bits, i) as f32;
            Ok(code * half(row.scales, i / 64)? + half(row.biases, i / 64)?)
        })
        .collect()
}
