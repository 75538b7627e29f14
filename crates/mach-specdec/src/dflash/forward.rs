//! The draft's arithmetic.

use mach_kernels::Cores;
use mach_kernels::attention::{AttentionScratch, attend_ranges};
use mach_kernels::elementwise::{self, Heads};
use mach_kernels::linear::{Product, multiply};
use mach_kernels::math::exp64;
use mach_kernels::quantize::Operand;
use mach_models::{DraftHost, Logits};

use super::second::Convolution;
use super::weights::{Matrix, Weights};
use super::{DFlash, DraftContext, Layer};
use crate::{DraftError, Picker, Proposed};

/// Context rows projected at once.
const CHUNK: usize = 256;

/// Buffers that passes reuse.
#[derive(Debug, Default)]
pub struct DraftWorkspace {
    operand: Operand,
    attention: AttentionScratch,
    x: Vec<f32>,
    y: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    heads: Vec<f32>,
    keys: Vec<f32>,
    out: Vec<f32>,
    dynamic: Vec<f32>,
    angles: Vec<f32>,
    ranges: Vec<(usize, usize)>,
}

/// What a pass over a block computes, for the rows after the anchor's.
#[derive(Debug, Clone)]
pub struct DraftRows {
    /// Position of the first of them.
    pub position: usize,
    /// After the final norm, `[rows, hidden]`.
    pub hidden: Vec<f32>,
    /// Scaled and capped.
    pub logits: Logits,
}

/// The threads, the instruction set, the weights.
struct Engine<'a> {
    cores: &'a mut Cores,
    weights: &'a Weights,
}

impl Engine<'_> {
    /// `out = x matrix^T`; the operand is prepared anew only if `prepared` is not what the matrix wants.
    fn linear(&mut self, operand: &mut Operand, fresh: bool, x: &[f32], matrix: &Matrix, out: &mut Vec<f32>) {
        let layout = matrix.layout;
        let rows = x.len() / layout.cols.max(1);
        if fresh || !operand.suits(&layout) {
            operand.prepare(self.cores, &layout, x, layout.cols, rows);
        }
        out.resize(rows * layout.rows, 0.0);
        let product = Product { matrix: self.weights.get(matrix), operand, out, stride: layout.rows };
        multiply(self.cores, &mut [product]);
    }

    fn norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        elementwise::rms_norm(self.cores, x, weight, eps, out);
    }
}

impl DFlash {
    /// Takes in the features `[rows, taps, hidden]` of the positions that follow the context.
    pub fn extend(
        &self,
        host: &mut dyn DraftHost,
        ws: &mut DraftWorkspace,
        context: &mut DraftContext,
        features: &[f32],
    ) -> Result<(), DraftError> {
        let c = &self.config;
        let width = c.target_layer_ids.len() * c.hidden_size;
        let mut e = Engine { cores: host.compute(), weights: &self.weights };
        for part in features.chunks(CHUNK * width) {
            let rows = part.len() / width;
            e.linear(&mut ws.operand, true, part, &self.fc, &mut ws.x);
            e.norm(&ws.x, &self.hidden_norm, c.eps, &mut ws.y); // [rows, hidden]
            self.angles(ws, context.len, rows);
            for (layer, cache) in self.layers.iter().zip(&mut context.layers) {
                self.keys(&mut e, ws, layer, true);
                cache.append(e.cores.isa(), &ws.keys, &ws.v, rows);
                cache.forget_before(layer.mask.first_needed(context.len + rows));
            }
            context.len += rows;
        }
        Ok(())
    }

    /// One pass over a block of `rows` rows: the anchor, then masks. Its position is that behind the context.
    pub fn block(
        &self,
        host: &mut dyn DraftHost,
        ws: &mut DraftWorkspace,
        context: &mut DraftContext,
        anchor: u32,
        rows: usize,
    ) -> Result<DraftRows, DraftError> {
        let c = &self.config;
        let (hidden, start) = (c.hidden_size, context.len);
        let rows = rows.max(1);
        let mut x = host.embed_rows(&[anchor, c.mask_token_id])?;
        x.resize(hidden * rows.min(2), 0.0);
        for _ in 2..rows {
            x.extend_from_within(hidden..2 * hidden); // [rows, hidden]
        }
        if c.input_embedding_scale != 1.0 {
            x.iter_mut().for_each(|v| *v *= c.input_embedding_scale);
        }
        let mut e = Engine { cores: host.compute(), weights: &self.weights };
        self.angles(ws, start, rows);
        for (layer, cache) in self.layers.iter().zip(&mut context.layers) {
            e.norm(&x, &layer.input_norm, c.eps, &mut ws.y);
            let conv = layer.convolutions.as_ref().map(|c| &c[0]);
            self.convolve(&mut e, ws, conv);
            self.attention(&mut e, ws, layer, cache, start, rows);
            self.join(&mut e, ws, conv, &mut x);

            e.norm(&x, &layer.post_norm, c.eps, &mut ws.y);
            let conv = layer.convolutions.as_ref().map(|c| &c[1]);
            self.convolve(&mut e, ws, conv);
            e.linear(&mut ws.operand, true, &ws.y, &layer.gate, &mut ws.q);
            e.linear(&mut ws.operand, false, &ws.y, &layer.up, &mut ws.k);
            elementwise::silu_mul(e.cores, &mut ws.q, &ws.k);
            e.linear(&mut ws.operand, true, &ws.q, &layer.down, &mut ws.out);
            self.join(&mut e, ws, conv, &mut x);
        }
        let mut normed = Vec::new();
        e.norm(&x, &self.norm, c.eps, &mut normed);
        let hidden = normed.split_off(hidden.min(normed.len()));
        let mut logits = host.head_logits(&hidden)?;
        self.scale(&mut logits.data);
        Ok(DraftRows { position: start + 1, hidden, logits })
    }

    /// The tokens that a block's rows propose, chosen in order.
    pub fn choose(
        &self,
        host: &mut dyn DraftHost,
        rows: &mut DraftRows,
        anchor: u32,
        picker: &mut dyn Picker,
        out: &mut Proposed,
    ) -> Result<(), DraftError> {
        if let Some(selector) = &self.selector {
            let cores = host.compute();
            return selector.walk(&self.weights, cores, rows, anchor, picker, out);
        }
        let cores = host.compute();
        out.margins.resize(rows.logits.rows(), 0.0);
        elementwise::margins(cores, &rows.logits.data, rows.logits.vocab, &mut out.margins);
        for i in 0..rows.logits.rows() {
            let token = picker.pick(rows.logits.row_mut(i), rows.position + i);
            out.tokens.push(token.ok_or(DraftError::NotFinite)?);
        }
        Ok(())
    }

    fn angles(&self, ws: &mut DraftWorkspace, start: usize, rows: usize) {
        ws.angles.clear();
        for position in start..start + rows {
            self.rope.angles(position, &mut ws.angles);
        }
    }

    /// From `ws.y` to `ws.keys`, normed and rotated, and `ws.v`.
    fn keys(&self, e: &mut Engine<'_>, ws: &mut DraftWorkspace, layer: &Layer, fresh: bool) {
        e.linear(&mut ws.operand, fresh, &ws.y, &layer.k, &mut ws.k);
        e.linear(&mut ws.operand, false, &ws.y, &layer.v, &mut ws.v);
        ws.keys.resize(ws.k.len(), 0.0);
        let spec = self.heads(self.config.kv_heads, &layer.k_norm);
        elementwise::prepare_heads(e.cores, spec, &ws.k, &ws.angles, &mut ws.keys);
    }

    fn heads<'a>(&self, heads: usize, norm: &'a [f32]) -> Heads<'a> {
        let head_dim = self.config.head_dim;
        let eps = self.config.eps;
        Heads { heads, head_dim, head_stride: head_dim, norm: Some(norm), eps, rotary_dim: head_dim }
    }

    /// From `ws.y` to `ws.out`. The block's keys and values are in the cache for the time of the call only.
    fn attention(
        &self,
        e: &mut Engine<'_>,
        ws: &mut DraftWorkspace,
        layer: &Layer,
        cache: &mut mach_kernels::attention::KvCache,
        start: usize,
        rows: usize,
    ) {
        let c = &self.config;
        e.linear(&mut ws.operand, true, &ws.y, &layer.q, &mut ws.q);
        self.keys(e, ws, layer, false);
        ws.heads.resize(ws.q.len(), 0.0);
        let spec = self.heads(c.heads, &layer.q_norm);
        elementwise::prepare_heads(e.cores, spec, &ws.q, &ws.angles, &mut ws.heads);
        cache.append(e.cores.isa(), &ws.keys, &ws.v, rows);
        ws.ranges.clear();
        ws.ranges.extend((start..start + rows).map(|p| layer.mask.range(p, start + rows)));
        ws.q.fill(0.0);
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let scratch = &mut ws.attention;
        attend_ranges(e.cores, scratch, cache, &ws.heads, c.heads, &ws.ranges, scale, &mut ws.q);
        cache.truncate(start);
        e.linear(&mut ws.operand, true, &ws.q, &layer.o, &mut ws.out);
    }

    /// Before a sub-block: computes the coefficients from `ws.y` and convolves it.
    fn convolve(&self, e: &mut Engine<'_>, ws: &mut DraftWorkspace, conv: Option<&Convolution>) {
        if let Some(conv) = conv {
            e.linear(&mut ws.operand, true, &ws.y, &conv.projection, &mut ws.dynamic);
            conv.apply(0, &ws.dynamic, &ws.y, &mut ws.q);
            std::mem::swap(&mut ws.y, &mut ws.q);
        }
    }

    /// After a sub-block: convolves `ws.out` and adds it to `x`.
    fn join(&self, e: &mut Engine<'_>, ws: &mut DraftWorkspace, conv: Option<&Convolution>, x: &mut [f32]) {
        if let Some(conv) = conv {
            conv.apply(1, &ws.dynamic, &ws.out, &mut ws.q);
            std::mem::swap(&mut ws.out, &mut ws.q);
        }
        elementwise::add(e.cores, x, &ws.out);
    }

    fn scale(&self, logits: &mut [f32]) {
        let c = &self.config;
        if c.output_multiplier != 1.0 {
            logits.iter_mut().for_each(|l| *l *= c.output_multiplier);
        }
        if let Some(cap) = c.softcap {
            logits.iter_mut().for_each(|l| *l = (f64::from(cap) * tanh(f64::from(*l / cap))) as f32);
        }
    }
}

/// By plain arithmetic, absolute error about 1e-16.
fn tanh(x: f64) -> f64 {
    1.0 - 2.0 / (exp64(2.0 * x) + 1.0)
}
