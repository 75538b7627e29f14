//! Quantized keys and values: what they cost in quality, what they save, how fast they are read.

use std::time::Instant;

use anyhow::{Result, bail};
use mach_checkpoint::{Checkpoint, LayerKind};
use mach_cpu::state_bytes;
use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, attend};
use mach_kernels::{Cores, Isa};
use mach_models::{LoadOptions, LogitRows, Model, NoObserver, Segment, TurboQuant};
use serde::Serialize;

/// Prompt tokens of a pass.
const CHUNK: usize = 512;
/// Repeats of one query over the whole context; the best counts.
const PASSES: usize = 50;

/// One width.
#[derive(Debug, Clone, Serialize)]
pub struct KvRow {
    /// `bf16`, or widths of keys and values.
    pub kv: String,
    /// Bytes of a position, all layers together, recurrent state aside.
    pub bytes_per_token: usize,
    /// As a share of bf16.
    pub times_smaller: f64,
    /// Mean Kullback-Leibler divergence of next-token distributions from those with bf16, nats.
    pub mean_kl: f64,
    /// The divergence that one row in a hundred exceeds.
    pub p99_kl: f64,
    /// Rows whose most probable token is the same.
    pub same_top: f64,
    /// Microseconds of one token's attention over the whole context in one layer, the best of several.
    pub attention_us: f64,
    /// Bytes of keys and values that it reads a second.
    pub bytes_per_second: f64,
}

/// Logits of every token, prompt by prompt.
fn logits(model: &mut dyn Model, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    for prompt in prompts {
        let mut state = model.new_state();
        for tokens in prompt.chunks(CHUNK) {
            let segment = Segment::prompt(&mut state, tokens, LogitRows::All);
            let logits = model.forward(&mut [segment], &mut NoObserver)?;
            all.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
        }
    }
    Ok(all)
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().fold(f64::MIN, |most, &v| most.max(f64::from(v)));
    let total: f64 = row.iter().map(|&v| (f64::from(v) - top).exp()).sum();
    row.iter().map(|&v| f64::from(v) - top - total.ln()).collect()
}

/// `KL(p || q)` of two rows of logits.
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn top(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap_or(0)
}

/// Compares widths over the prompts' tokens; `load` says everything but the width. Attention is timed over `context` positions.
pub fn measure_kv(
    checkpoint: &Checkpoint,
    load: &LoadOptions,
    prompts: &[Vec<u32>],
    widths: &[TurboQuant],
    context: usize,
) -> Result<Vec<KvRow>> {
    let config = checkpoint.config();
    let full = config.layers.iter().position(|kind| *kind == LayerKind::FullAttention);
    let Some(heads) = full.map(|index| config.kv_heads(index)) else {
        bail!("the model has no attention layers");
    };
    let per_token = |kv| {
        let of = |tokens| state_bytes(config, load.activations, kv, tokens);
        (of(4096) - of(0)) / 4096
    };
    let full = per_token(None);
    let mut reference: Vec<Vec<f32>> = Vec::new();
    let mut rows = Vec::new();
    for kv in std::iter::once(None).chain(widths.iter().copied().map(Some)) {
        let options = LoadOptions { turboquant_kv: kv, ..load.clone() };
        let mut model = mach_cpu::load(checkpoint, &options, &mut |_| {})?;
        let found = logits(model.as_mut(), prompts)?;
        drop(model);
        if kv.is_none() {
            reference.clone_from(&found);
        }
        let mut kl: Vec<f64> = reference.iter().zip(&found).map(|(p, q)| divergence(p, q)).collect();
        let same = reference.iter().zip(&found).filter(|(p, q)| top(p) == top(q)).count();
        let mean_kl = kl.iter().sum::<f64>() / kl.len().max(1) as f64;
        kl.sort_by(f64::total_cmp);
        let kind = kv.map_or(KvType::Bf16, KvType::Turbo);
        let shape = KvShape { heads: heads.0, head_dim: heads.1, kind };
        let (seconds, bytes) = attention(shape, config.num_heads, context, load.threads);
        let bytes_per_token = per_token(kv);
        rows.push(KvRow {
            kv: kv.map_or_else(|| "bf16".to_owned(), |kv| kv.to_string()),
            bytes_per_token,
            times_smaller: full as f64 / bytes_per_token as f64,
            mean_kl,
            p99_kl: kl.get(kl.len() * 99 / 100).copied().unwrap_or(0.0),
            same_top: same as f64 / found.len().max(1) as f64,
            attention_us: seconds * 1e6,
            bytes_per_second: bytes as f64 / seconds,
        });
    }
    Ok(rows)
}

/// Seconds of one token's attention over `context` positions, and the bytes of keys and values that it reads.
fn attention(shape: KvShape, query_heads: usize, context: usize, threads: usize) -> (f64, usize) {
    let mut cores = Cores::new(threads, Isa::best());
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut floats = |n: usize| -> Vec<f32> {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    let row = shape.heads * shape.head_dim;
    let mut cache = KvCache::new(shape);
    for first in (0..context).step_by(CHUNK) {
        let n = CHUNK.min(context - first);
        let (k, v) = (floats(n * row), floats(n * row));
        cache.append(cores.isa(), &k, &v, n);
    }
    let q = floats(query_heads * shape.head_dim);
    let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let started = Instant::now();
        attend(&mut cores, &mut scratch, &cache, &q, query_heads, 1, 0.0625, &mut out);
        best = best.min(started.elapsed().as_secs_f64());
    }
    std::hint::black_box(&out);
    (best, shape.page_bytes() / mach_kernels::attention::PAGE * context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_distributions() {
        let p = [0.0f32, 1.0, -2.0];
        assert!(divergence(&p, &p.map(|v| v + 3.0)) < 1e-12, "logits are known up to a constant");
        let (a, b) = ([0.0f32, 0.0], [3.0f32.ln(), 0.0]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((divergence(&a, &b) - expected).abs() < 1e-6);
        assert_eq!((top(&[1.0, 3.0, 3.0]), top(&[])), (1, 0));
    }
}
