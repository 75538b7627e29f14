//! The tensors of a synthetic deepseek_v4 checkpoint: the publisher's names, experts in its fp4, other matrices of 4 bits.
//!
//! The projections of the residual streams are zero, so that every stream is the same: a block reads their mean, and what it
//! says is added to each. Routers then read the carried dimensions as in other families.

use std::sync::Arc;

use super::SynthOptions;
use super::content::{random, stream};
use super::shape::Shape;
use super::tensors::{Planned, Role, TensorPlan};
use crate::families::{OwnSizes, Synthetic, own_sizes};

/// All tensors, in the order of a forward pass.
pub(super) fn plan(shape: &'static Shape, form: &Synthetic, options: &SynthOptions) -> Vec<Planned> {
    let mut plan = TensorPlan::new(options.seed);
    let Some(own) = own_sizes(shape.name) else { return Vec::new() };
    plan.embedding(shape, form, "embed");
    for layer in 0..options.layers {
        let base = format!("layers.{layer}.");
        for place in ["hc_attn", "hc_ffn"] {
            streams(&mut plan, &format!("{base}{place}"), shape, own);
        }
        plan.ones(format!("{base}attn_norm.weight"), shape.hidden);
        attention(&mut plan, shape, own, (own.ratio)(layer), &format!("{base}attn."));
        plan.ones(format!("{base}ffn_norm.weight"), shape.hidden);
        experts(&mut plan, shape, own, layer, &format!("{base}ffn."), options);
    }
    let n = own.streams;
    plan.floats("hc_head_fn".into(), vec![n, n * shape.hidden], |_| 0.0);
    plan.floats("hc_head_base".into(), vec![n], move |_| share(n));
    plan.floats("hc_head_scale".into(), vec![1], |_| 1.0);
    plan.ones("norm.weight".into(), shape.hidden);
    plan.head(shape, "head");
    plan.into_tensors()
}

/// What the sigmoid makes `1 / streams` of.
fn share(streams: usize) -> f32 {
    -((streams.max(2) - 1) as f32).ln()
}

fn streams(plan: &mut TensorPlan, base: &str, shape: &Shape, own: &OwnSizes) {
    let n = own.streams;
    let outputs = (2 + n) * n;
    plan.floats(format!("{base}_fn"), vec![outputs, n * shape.hidden], |_| 0.0);
    plan.floats(format!("{base}_base"), vec![outputs], move |i| if i < n { share(n) } else { 0.0 });
    plan.floats(format!("{base}_scale"), vec![3], |_| 1.0);
}

fn pool(plan: &mut TensorPlan, shape: &Shape, ratio: usize, width: usize, base: &str) {
    let inner = if ratio == 4 { 2 * width } else { width };
    plan.linear(&format!("{base}wkv"), &[], inner, shape.hidden, Role::In);
    plan.linear(&format!("{base}wgate"), &[], inner, shape.hidden, Role::In);
    plan.floats(format!("{base}ape"), vec![ratio, inner], |_| 0.0);
    plan.ones(format!("{base}norm.weight"), width);
}

fn attention(plan: &mut TensorPlan, shape: &Shape, own: &OwnSizes, ratio: usize, base: &str) {
    let (heads, _, dim) = shape.attention;
    let (index_heads, index_dim, _) = own.index;
    if ratio > 0 {
        pool(plan, shape, ratio, dim, &format!("{base}compressor."));
    }
    if ratio == 4 {
        pool(plan, shape, ratio, index_dim, &format!("{base}indexer.compressor."));
        plan.linear(&format!("{base}indexer.wq_b"), &[], index_heads * index_dim, own.q_rank, Role::In);
        plan.linear(&format!("{base}indexer.weights_proj"), &[], index_heads, shape.hidden, Role::In);
    }
    plan.linear(&format!("{base}wq_a"), &[], own.q_rank, shape.hidden, Role::In);
    plan.ones(format!("{base}q_norm.weight"), own.q_rank);
    plan.linear(&format!("{base}wq_b"), &[], heads * dim, own.q_rank, Role::In);
    plan.linear(&format!("{base}wkv"), &[], dim, shape.hidden, Role::In);
    plan.ones(format!("{base}kv_norm.weight"), dim);
    plan.floats(format!("{base}attn_sink"), vec![heads], |_| 0.0);
    let (groups, rank) = own.out;
    plan.linear(&format!("{base}wo_a"), &[], groups * rank, heads * dim / groups, Role::In);
    plan.linear(&format!("{base}wo_b"), &[], shape.hidden, groups * rank, Role::Out);
}

fn experts(
    plan: &mut TensorPlan,
    shape: &'static Shape,
    own: &OwnSizes,
    layer: usize,
    base: &str,
    options: &SynthOptions,
) {
    let (experts, top_k, width) = shape.experts;
    let hidden = shape.hidden;
    plan.router(shape, &format!("{base}gate"), base, options.routing);
    if layer < own.hash_layers {
        let seed = stream(options.seed, &format!("{base}gate.tid2eid"));
        let table = move || (0..shape.vocab).flat_map(|t| chosen(seed, t, experts, top_k)).collect();
        plan.made(format!("{base}gate.tid2eid"), "I32", vec![shape.vocab, top_k], Arc::new(table));
    } else {
        plan.floats(format!("{base}gate.bias"), vec![experts], |_| 0.0);
    }
    for e in 0..experts {
        plan.fp4(&format!("{base}experts.{e}.w1"), width, hidden, Role::In);
        plan.fp4(&format!("{base}experts.{e}.w3"), width, hidden, Role::In);
        plan.fp4(&format!("{base}experts.{e}.w2"), hidden, width, Role::Out);
    }
    let shared = format!("{base}shared_experts.");
    plan.linear(&format!("{shared}w1"), &[], shape.shared, hidden, Role::In);
    plan.linear(&format!("{shared}w3"), &[], shape.shared, hidden, Role::In);
    plan.linear(&format!("{shared}w2"), &[], hidden, shape.shared, Role::Out);
}

/// Different experts of a token, each as likely as any, as little-endian bytes.
fn chosen(seed: u64, token: usize, experts: usize, top_k: usize) -> Vec<u8> {
    let mut found: Vec<u32> = Vec::with_capacity(top_k);
    let mut tries = 0;
    while found.len() < top_k.min(experts) {
        let expert = (random(seed, ((token as u64) << 20) + tries) % experts as u64) as u32;
        tries += 1;
        if !found.contains(&expert) {
            found.push(expert);
        }
    }
    found.into_iter().flat_map(u32::to_le_bytes).collect()
}
