//! The tensors of a synthetic checkpoint, in MLX's names and forms, and what fills them.
//!
//! Gains are chosen so that every block's input and output stay of order one: projections keep the variance of
//! their input, output projections halve the deviation, so that the residual stream grows slowly.

use std::sync::Arc;

use super::SynthOptions;
use super::content::{Content, Grid, Made, halves, normal, random, stream};
use super::deepseek;
use super::routing::{self, CARRIED, CONSTANT, EMBEDDING_SCALE, Routing};
use super::shape::{Shape, TAPS};
use crate::Family;
use crate::families::Synthetic;

/// Token ids from here on have no text in the tokenizer that is written (or are special): the head never picks them.
pub(crate) const TEXT_TOKENS: usize = 16_368;

/// Deviation of 4-bit codes times their varied scales, in units of the grid's power of two.
const DEVIATION_4: f32 = 6.758;
/// Deviation of e2m1 codes, in units of their scale.
const DEVIATION_MXFP4: f32 = 2.926;
/// Deviation of biases.
const BIAS_GAIN: f32 = 0.1;
/// Deviation of 8-bit codes.
const DEVIATION_8: f32 = 73.9;
/// Deviation of logits.
const HEAD_GAIN: f32 = 2.5;
/// Deviation of a block's output for an input of order one.
const OUTPUT_GAIN: f32 = 0.5;
/// Weight of norms behind blocks: what layers write outweighs the scaled embedding, as a head that is the embedding would
/// else answer a token with another and that with the first.
const BEHIND: f32 = 32.0;

/// One tensor to be written.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: usize,
    pub(super) content: Content,
}

/// All tensors, in the order of a forward pass.
pub(super) fn plan(shape: &'static Shape, form: &Synthetic, options: &SynthOptions) -> Vec<Planned> {
    if shape.family == Family::DeepseekV4 {
        return deepseek::plan(shape, form, options);
    }
    let mut plan = TensorPlan::new(options.seed);
    let prefix = form.naming.prefix;
    plan.embedding(shape, form, &format!("{prefix}embed_tokens"));
    for layer in 0..options.layers {
        let base = format!("{prefix}layers.{layer}.");
        plan.ones(format!("{base}input_layernorm.weight"), shape.hidden);
        // Where there is no recurrence, the other layers are attention over a window.
        if shape.is_full(layer) || shape.gdn == (0, 0, 0) {
            plan.attention(shape, form, layer, &format!("{base}self_attn."));
        } else {
            plan.gated_delta(shape, &format!("{base}linear_attn."));
        }
        let behind = if form.between_norms { BEHIND } else { 1.0 };
        plan.constant(format!("{base}post_attention_layernorm.weight"), shape.hidden, behind);
        if form.between_norms {
            plan.dense_beside(shape, &base);
        }
        plan.moe(shape, form, &base, options);
    }
    if form.between_norms {
        // The head is the embedding.
        plan.signs(format!("{prefix}norm.weight"), shape.hidden);
    } else {
        plan.ones(format!("{prefix}norm.weight"), shape.hidden);
        plan.head(shape, form.naming.head);
    }
    if shape.mtp {
        plan.mtp(shape, form, options);
    }
    plan.tensors
}

/// How a projection treats its input.
#[derive(Clone, Copy)]
pub(super) enum Role {
    /// Variance kept.
    In,
    /// Back to the residual stream: carried dimensions untouched.
    Out,
}

pub(super) struct TensorPlan {
    seed: u64,
    tensors: Vec<Planned>,
}

impl TensorPlan {
    pub(super) fn new(seed: u64) -> Self {
        TensorPlan { seed, tensors: Vec::new() }
    }

    pub(super) fn into_tensors(self) -> Vec<Planned> {
        self.tensors
    }

    /// f32 values, each a function of its place.
    pub(super) fn floats(
        &mut self,
        name: String,
        shape: Vec<usize>,
        value: impl Fn(usize) -> f32 + Send + Sync + 'static,
    ) {
        let count = shape.iter().product::<usize>();
        let make = move || (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
        self.made(name, "F32", shape, Arc::new(make));
    }

    /// A matrix in the fp4 of deepseek_v4: MXFP4 codes as bytes, scales beside them.
    pub(super) fn fp4(&mut self, module: &str, rows: usize, cols: usize, role: Role) {
        let (gain, zero_rows) = match role {
            Role::In => (1.0, 0),
            Role::Out => (OUTPUT_GAIN, CARRIED),
        };
        let codes = Content::Codes { seed: stream(self.seed, module), words: cols / 8, rows, zero_rows };
        self.push(format!("{module}.weight"), "I8", vec![rows, cols / 2], codes);
        let scale = (127 + exponent(gain, cols, DEVIATION_MXFP4)).clamp(1, 254) as u8;
        self.push(format!("{module}.scale"), "F8_E8M0", vec![rows, cols / 32], Content::Bytes(scale));
    }

    /// A router of 8 bits.
    pub(super) fn router(&mut self, shape: &'static Shape, name: &str, seed_of: &str, routing: Routing) {
        let ((experts, top_k, _), hidden) = (shape.experts, shape.hidden);
        let seed = stream(self.seed, seed_of);
        let gate = move || routing::quantize(&routing::router(seed, experts, top_k, routing), hidden);
        let groups = vec![experts, hidden / 64];
        self.made(format!("{name}.weight"), "U32", vec![experts, hidden / 4], Arc::new(move || gate().0));
        self.made(format!("{name}.scales"), "BF16", groups.clone(), Arc::new(move || halves(gate().1)));
        self.made(format!("{name}.biases"), "BF16", groups, Arc::new(move || halves(gate().2)));
    }

    fn push(&mut self, name: String, dtype: &'static str, shape: Vec<usize>, content: Content) {
        let size = match dtype {
            "U32" | "F32" | "I32" => 4,
            "U8" | "I8" | "F8_E8M0" => 1,
            _ => 2,
        };
        let bytes = shape.iter().product::<usize>() * size;
        self.tensors.push(Planned { name, dtype, shape, bytes, content });
    }

    pub(super) fn made(
        &mut self,
        name: String,
        dtype: &'static str,
        shape: Vec<usize>,
        make: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    ) {
        self.push(name, dtype, shape, Content::Made(Made(make)));
    }

    pub(super) fn ones(&mut self, name: String, length: usize) {
        self.constant(name, length, 1.0);
    }

    fn constant(&mut self, name: String, length: usize, value: f32) {
        self.made(name, "BF16", vec![length], Arc::new(move || halves(vec![value; length])));
    }

    /// Small values of either sign, so that a head that is the embedding does not answer each token with itself: the
    /// constant dimensions keep theirs.
    fn signs(&mut self, name: String, length: usize) {
        let seed = stream(self.seed, &name);
        let size = HEAD_GAIN / (length as f32).sqrt();
        let sign = move |i: usize| if i < CONSTANT || random(seed, i as u64) & 1 == 0 { size } else { -size };
        self.made(name, "BF16", vec![length], Arc::new(move || halves((0..length).map(sign))));
    }

    /// What stands beside the experts of a layer: norms, the router's scales, a dense network.
    fn dense_beside(&mut self, shape: &Shape, base: &str) {
        let (hidden, (experts, ..)) = (shape.hidden, shape.experts);
        self.constant(format!("{base}post_feedforward_layernorm.weight"), hidden, BEHIND);
        for (place, which) in [("pre", ""), ("post", "_1"), ("pre", "_2"), ("post", "_2")] {
            self.ones(format!("{base}{place}_feedforward_layernorm{which}.weight"), hidden);
        }
        // The router divides by this root.
        let root = (hidden as f32).sqrt();
        let scale = move || halves(vec![root; hidden]);
        self.made(format!("{base}router.scale"), "BF16", vec![hidden], Arc::new(scale));
        self.ones(format!("{base}router.per_expert_scale"), experts);
        self.ones(format!("{base}layer_scalar"), 1);
        self.linear(&format!("{base}mlp.gate_proj"), &[], shape.shared, hidden, Role::In);
        self.linear(&format!("{base}mlp.up_proj"), &[], shape.shared, hidden, Role::In);
        self.linear(&format!("{base}mlp.down_proj"), &[], hidden, shape.shared, Role::Out);
    }

    /// Random values, the leading `zeros` of each vector 0.
    fn vectors(&mut self, name: String, shape: &[usize], zeros: usize, gain: f32) {
        let (seed, n) = (stream(self.seed, &name), shape.last().copied().unwrap_or(1));
        let count = shape.iter().product::<usize>();
        let value = move |i: usize| if i % n < zeros { 0.0 } else { gain * normal(seed, i as u64) };
        self.made(name, "BF16", shape.to_vec(), Arc::new(move || halves((0..count).map(value))));
    }

    /// An MXFP4 stack.
    fn mxfp4(&mut self, module: &str, experts: usize, rows: usize, cols: usize, role: Role) {
        let (gain, zero_rows) = match role {
            Role::In => (1.0, 0),
            Role::Out => (OUTPUT_GAIN, CARRIED),
        };
        let codes = Content::Codes { seed: stream(self.seed, module), words: cols / 8, rows, zero_rows };
        self.push(format!("{module}.weight"), "U32", vec![experts, rows, cols / 8], codes);
        let scale = (127 + exponent(gain, cols, DEVIATION_MXFP4)).clamp(1, 254) as u8;
        self.push(format!("{module}.scales"), "U8", vec![experts, rows, cols / 32], Content::Bytes(scale));
    }

    /// A 4-bit linear module, or a stack of them with `lead` `[experts]`.
    pub(super) fn linear(&mut self, module: &str, lead: &[usize], rows: usize, cols: usize, role: Role) {
        let seed = stream(self.seed, module);
        let (gain, zero_rows) = match role {
            Role::In => (1.0, 0),
            Role::Out => (OUTPUT_GAIN, CARRIED),
        };
        let grid = Grid {
            seed: seed ^ 1,
            exponent: exponent(gain, cols, DEVIATION_4),
            varied: true,
            rows,
            groups: cols / 64,
            zero_rows,
            fixed: None,
            suppressed_from: usize::MAX,
        };
        self.quantized(module, lead, rows, cols, Content::Random(seed), grid);
    }

    fn quantized(
        &mut self,
        module: &str,
        lead: &[usize],
        rows: usize,
        cols: usize,
        codes: Content,
        grid: Grid,
    ) {
        let of = |last: usize| [lead, &[rows, last]].concat();
        self.push(format!("{module}.weight"), "U32", of(cols / 8), codes);
        self.push(format!("{module}.scales"), "BF16", of(cols / 64), Content::Scales(grid.clone()));
        self.push(format!("{module}.biases"), "BF16", of(cols / 64), Content::Biases(grid, 7.5));
    }

    pub(super) fn embedding(&mut self, shape: &Shape, form: &Synthetic, module: &str) {
        // Where it is the head, too, ids without text are never picked.
        let from = if form.between_norms { TEXT_TOKENS } else { usize::MAX };
        let seed = stream(self.seed, module);
        let words = shape.hidden / 8;
        // The first word's codes are all 15: the constant dimensions.
        let codes = Content::Rows { seed, words, first: Some(u32::MAX), from };
        let grid = Grid {
            seed: seed ^ 1,
            exponent: exponent(1.0, 1, DEVIATION_4),
            varied: true,
            rows: shape.vocab,
            groups: shape.hidden / 64,
            zero_rows: 0,
            fixed: Some((CARRIED / 64, EMBEDDING_SCALE)),
            suppressed_from: from,
        };
        self.quantized(module, &[], shape.vocab, shape.hidden, codes, grid);
    }

    pub(super) fn head(&mut self, shape: &Shape, module: &str) {
        let seed = stream(self.seed, module);
        let codes = Content::Rows { seed, words: shape.hidden / 8, first: None, from: TEXT_TOKENS };
        let grid = Grid {
            seed: seed ^ 1,
            exponent: exponent(HEAD_GAIN, shape.hidden, DEVIATION_4),
            varied: true,
            rows: shape.vocab,
            groups: shape.hidden / 64,
            zero_rows: 0,
            fixed: None,
            suppressed_from: TEXT_TOKENS,
        };
        self.quantized(module, &[], shape.vocab, shape.hidden, codes, grid);
    }

    fn attention(&mut self, shape: &Shape, form: &Synthetic, layer: usize, base: &str) {
        let (heads, kv_heads, dim) = shape.attention;
        let own = shape.full.filter(|_| shape.is_full(layer));
        let (kv_heads, dim) = own.unwrap_or((kv_heads, dim));
        let gated = if form.gated_attention { 2 } else { 1 };
        self.linear(&format!("{base}q_proj"), &[], heads * dim * gated, shape.hidden, Role::In);
        self.linear(&format!("{base}k_proj"), &[], kv_heads * dim, shape.hidden, Role::In);
        if own.is_none() {
            self.linear(&format!("{base}v_proj"), &[], kv_heads * dim, shape.hidden, Role::In);
        }
        self.linear(&format!("{base}o_proj"), &[], shape.hidden, heads * dim, Role::Out);
        if form.normed_attention {
            self.ones(format!("{base}q_norm.weight"), dim);
            self.ones(format!("{base}k_norm.weight"), dim);
        }
        if form.biases {
            self.vectors(format!("{base}q_proj.bias"), &[heads * dim * gated], 0, BIAS_GAIN);
            self.vectors(format!("{base}k_proj.bias"), &[kv_heads * dim], 0, BIAS_GAIN);
            self.vectors(format!("{base}v_proj.bias"), &[kv_heads * dim], 0, BIAS_GAIN);
            self.vectors(format!("{base}o_proj.bias"), &[shape.hidden], CARRIED, BIAS_GAIN);
            self.vectors(format!("{base}sinks"), &[heads], 0, 1.0);
        }
    }

    fn gated_delta(&mut self, shape: &Shape, base: &str) {
        let (key_heads, value_heads, dim) = shape.gdn;
        let channels = (2 * key_heads + value_heads) * dim;
        let seed = stream(self.seed, base);
        self.linear(&format!("{base}in_proj_qkv"), &[], channels, shape.hidden, Role::In);
        self.linear(&format!("{base}in_proj_z"), &[], value_heads * dim, shape.hidden, Role::In);
        self.linear(&format!("{base}in_proj_b"), &[], value_heads, shape.hidden, Role::In);
        self.linear(&format!("{base}in_proj_a"), &[], value_heads, shape.hidden, Role::In);
        let conv = move || halves((0..channels * TAPS).map(|i| 0.5 * normal(seed, i as u64)));
        self.made(format!("{base}conv1d.weight"), "BF16", vec![channels, TAPS, 1], Arc::new(conv));
        // Decay rates 1..16 and time steps near 0.02, as such layers are initialised.
        let rate = move |i: usize| {
            (1.0 + 15.0 * (random(seed ^ 2, i as u64) >> 40) as f32 / (1u64 << 24) as f32).ln()
        };
        let rates = move || (0..value_heads).flat_map(|i| rate(i).to_le_bytes()).collect();
        self.made(format!("{base}A_log"), "F32", vec![value_heads], Arc::new(rates));
        let steps = move || halves((0..value_heads).map(|i| -4.0 + 0.5 * normal(seed ^ 3, i as u64)));
        self.made(format!("{base}dt_bias"), "BF16", vec![value_heads], Arc::new(steps));
        self.ones(format!("{base}norm.weight"), dim);
        self.linear(&format!("{base}out_proj"), &[], shape.hidden, value_heads * dim, Role::Out);
    }

    /// The block for the token after the next: both its inputs through one matrix, then a layer of attention with experts.
    fn mtp(&mut self, shape: &'static Shape, form: &Synthetic, options: &SynthOptions) {
        for norm in ["pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"] {
            self.ones(format!("mtp.{norm}.weight"), shape.hidden);
        }
        self.linear("mtp.fc", &[], shape.hidden, 2 * shape.hidden, Role::In);
        let base = "mtp.layers.0.";
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            self.ones(format!("{base}{norm}.weight"), shape.hidden);
        }
        self.attention(shape, form, 0, &format!("{base}self_attn."));
        self.moe(shape, form, base, options);
    }

    fn moe(&mut self, shape: &'static Shape, form: &Synthetic, base: &str, options: &SynthOptions) {
        let (experts, _, width) = shape.experts;
        let hidden = shape.hidden;
        let mlp = format!("{base}mlp.");
        let seed = stream(self.seed, &mlp);
        self.router(shape, &format!("{base}{}", form.router), &mlp, options.routing);

        let stack = format!("{base}{}.", form.stack);
        let matrices = [
            ("gate_proj", width, hidden, Role::In),
            ("up_proj", width, hidden, Role::In),
            ("down_proj", hidden, width, Role::Out),
        ];
        for (matrix, rows, cols, role) in matrices {
            let module = format!("{stack}{matrix}");
            match form.mxfp4_experts {
                true => self.mxfp4(&module, experts, rows, cols, role),
                false => self.linear(&module, &[experts], rows, cols, role),
            }
            if form.biases {
                let zeros = if matches!(role, Role::Out) { CARRIED } else { 0 };
                self.vectors(format!("{module}.bias"), &[experts, rows], zeros, BIAS_GAIN);
            }
        }
        if form.biases {
            // Which experts a token goes to is the weights' to say.
            self.vectors(format!("{base}{}.bias", form.router), &[experts], experts, 0.0);
        }
        if shape.shared == 0 || form.between_norms {
            return;
        }
        let shared = format!("{mlp}shared_expert.");
        self.linear(&format!("{shared}gate_proj"), &[], shape.shared, hidden, Role::In);
        self.linear(&format!("{shared}up_proj"), &[], shape.shared, hidden, Role::In);
        self.linear(&format!("{shared}down_proj"), &[], hidden, shape.shared, Role::Out);
        let name = format!("{mlp}shared_expert_gate");
        let grid = Grid {
            seed,
            exponent: exponent(1.0, hidden, DEVIATION_8),
            varied: false,
            rows: 1,
            groups: hidden / 64,
            zero_rows: 0,
            fixed: None,
            suppressed_from: usize::MAX,
        };
        let codes = Content::Random(stream(self.seed, &name));
        self.push(format!("{name}.weight"), "U32", vec![1, hidden / 4], codes);
        self.push(format!("{name}.scales"), "BF16", vec![1, hidden / 64], Content::Scales(grid.clone()));
        self.push(format!("{name}.biases"), "BF16", vec![1, hidden / 64], Content::Biases(grid, 127.5));
    }
}

/// Power of two of the scales that gives `gain` over `cols` inputs.
fn exponent(gain: f32, cols: usize, deviation: f32) -> i32 {
    (gain / (cols as f32).sqrt() / deviation).log2().round() as i32
}
