//! The draft's arithmetic.

use super::weights::{Buffers, Convolution, DraftWeights, Layer};
use super::{DraftConfig, DraftError, DraftHost};
use crate::blocks::Workspace;
use crate::decoder::Decoder;
use crate::device::{ConvolutionSpec, Device, Finish, Readback, Span};
use crate::{Logits, Model, ModelError, Purpose, SequenceState};

/// Context rows projected at once.
const CHUNK: usize = 256;

/// What a pass over a block computes, for the rows after the anchor's.
#[derive(Debug, Clone)]
pub struct DraftRows {
    /// Position of the first of them.
    pub position: usize,
    /// Scaled and capped.
    pub logits: Logits,
    /// For each row, by how much the best logit leads the second. Empty in the second generation, where
    /// [`Selector::score`](super::Selector::score) tells.
    pub margins: Vec<f32>,
    /// Second generation: places of the largest logits, `[rows, top_k]`.
    pub(super) candidates: Vec<u32>,
    /// Second generation: what the selector weighs candidates by, `[rows, rank]`.
    pub(super) projected: Vec<f32>,
}

/// Runs what was recorded. A draft has no experts that could be missing.
fn finish<D: Device>(device: &mut D) -> Result<Readback, ModelError> {
    match device.finish()? {
        Finish::Done(readback) => Ok(readback),
        Finish::Missing { layer, .. } => {
            Err(ModelError::Device(format!("a draft's layer {layer} stopped for experts")))
        }
    }
}

impl<M: Copy, V> Layer<M, V> {
    /// From `ws.x` to `ws.y`.
    fn attention<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        state: &mut D::LayerState,
    ) {
        let [q, k, v, _] = &mut ws.p;
        d.linear(&ws.x, &[self.q, self.k, self.v], &mut [&mut *q, &mut *k, &mut *v]);
        d.attention(&self.attention, &self.norms, q, k, v, &mut [state], &mut ws.mixed);
        d.linear(&ws.mixed, &[self.o], &mut [&mut ws.y]);
    }

    /// From `ws.x` to `ws.y`.
    fn mlp<D: Device<Matrix = M, Vector = V>>(&self, d: &mut D, ws: &mut Workspace<D>) {
        let [gate, up, _, _] = &mut ws.p;
        d.linear(&ws.x, &[self.gate, self.up], &mut [&mut *gate, &mut *up]);
        d.gate(&self.ffn, gate, up);
        d.linear(gate, &[self.down], &mut [&mut ws.y]);
    }
}

impl<M: Copy, V> Convolution<M, V> {
    fn spec(c: &DraftConfig, which: usize) -> Option<ConvolutionSpec> {
        let second = c.second.as_ref()?;
        Some(ConvolutionSpec { kernel: second.conv_kernel, group: second.conv_group, which })
    }

    /// Before a sub-block: computes the coefficients from `ws.x` and convolves it.
    fn before<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        c: &DraftConfig,
        ws: &mut Workspace<D>,
        buffers: &mut Buffers<D>,
    ) {
        let Some(spec) = Self::spec(c, 0) else { return };
        d.linear(&ws.x, &[self.projection], &mut [&mut buffers.dynamic]);
        d.convolve(&spec, &self.base, &buffers.dynamic, &ws.x, &mut buffers.convolved);
        std::mem::swap(&mut ws.x, &mut buffers.convolved);
    }

    /// After a sub-block: convolves `ws.y`.
    fn after<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        c: &DraftConfig,
        ws: &mut Workspace<D>,
        buffers: &mut Buffers<D>,
    ) {
        let Some(spec) = Self::spec(c, 1) else { return };
        d.convolve(&spec, &self.base, &buffers.dynamic, &ws.y, &mut buffers.convolved);
        std::mem::swap(&mut ws.y, &mut buffers.convolved);
    }
}

impl<D: Device> DraftWeights<D> {
    /// Takes in features `[rows, taps, hidden]`, a chunk of them.
    fn extend(&mut self, d: &mut D, context: &mut SequenceState, features: &[f32]) -> Result<(), ModelError> {
        let DraftWeights { config: c, workspace: ws, .. } = self;
        let width = c.target_layer_ids.len() * c.hidden_size;
        let rows = features.len() / width.max(1);
        d.begin(&[Span { start: 0, rows, position: context.position, purpose: Purpose::Draft }]);
        d.write(features, width, &mut ws.h);
        d.linear(&ws.h, &[self.fc], &mut [&mut ws.y]);
        d.norm(&ws.y, &self.hidden_norm, c.eps, &mut ws.x); // [rows, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            let [_, k, v, _] = &mut ws.p;
            d.linear(&ws.x, &[layer.k, layer.v], &mut [&mut *k, &mut *v]);
            d.append(&layer.attention, &layer.norms, k, v, &mut [context.layer_mut(index)?]);
        }
        finish(d)?;
        context.position += rows;
        Ok(())
    }

    fn block(
        &mut self,
        d: &mut D,
        borrowed: (&D::Matrix, &D::Matrix),
        context: &mut SequenceState,
        anchor: u32,
        rows: usize,
    ) -> Result<Readback, ModelError> {
        let DraftWeights { config: c, workspace: ws, buffers, .. } = self;
        let (embedding, head) = borrowed;
        d.begin(&[Span { start: 0, rows, position: context.position, purpose: Purpose::Draft }]);
        let mut ids = vec![c.mask_token_id; rows];
        ids[0] = anchor;
        d.embed(embedding, &ids, c.input_embedding_scale, &mut ws.h); // [rows, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            d.norm(&ws.h, &layer.input_norm, c.eps, &mut ws.x);
            let around = layer.convolutions.as_ref();
            if let Some([conv, _]) = around {
                conv.before(d, c, ws, buffers);
            }
            layer.attention(d, ws, context.layer_mut(index)?);
            if let Some([conv, _]) = around {
                conv.after(d, c, ws, buffers);
            }
            d.add(&mut ws.h, &ws.y);

            d.norm(&ws.h, &layer.post_norm, c.eps, &mut ws.x);
            if let Some([_, conv]) = around {
                conv.before(d, c, ws, buffers);
            }
            layer.mlp(d, ws);
            if let Some([_, conv]) = around {
                conv.after(d, c, ws, buffers);
            }
            d.add(&mut ws.h, &ws.y);
        }
        let masks: Vec<usize> = (1..rows).collect();
        d.select(&ws.h, &masks, &mut ws.y);
        d.norm(&ws.y, &self.norm, c.eps, &mut ws.x);
        d.linear(&ws.x, &[*head], &mut [&mut ws.logits]); // [rows - 1, vocab]
        if c.output_multiplier != 1.0 || c.softcap.is_some() {
            d.cap(&mut ws.logits, c.output_multiplier, c.softcap);
        }
        match &self.selector {
            Some((projection, top_k)) => {
                d.linear(&ws.x, &[*projection], &mut [&mut buffers.projected]);
                d.top_k(&ws.logits, *top_k, &mut buffers.candidates);
                d.tap_routing(0, &buffers.candidates);
                d.output(&mut buffers.projected);
            }
            None => {
                d.margins(&ws.logits, &mut buffers.margins);
                d.output(&mut buffers.margins);
            }
        }
        d.output(&mut ws.logits);
        finish(d)
    }
}

impl<D: Device> Decoder<D> {
    fn drafting(&mut self) -> Result<&mut DraftWeights<D>, DraftError> {
        self.draft.as_mut().ok_or_else(|| DraftError::Mismatch("no draft is loaded".into()))
    }
}

impl<D: Device> DraftHost for Decoder<D> {
    fn extend(&mut self, context: &mut SequenceState, features: &[f32]) -> Result<(), DraftError> {
        let config = &self.drafting()?.config;
        let width = config.target_layer_ids.len() * config.hidden_size;
        for part in features.chunks(CHUNK * width) {
            if let Some(draft) = &mut self.draft {
                draft.extend(&mut self.device, context, part)?;
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        context: &mut SequenceState,
        anchor: u32,
        rows: usize,
    ) -> Result<DraftRows, DraftError> {
        let vocab = self.config.vocab_size;
        let start = context.position;
        let Decoder { parts, device, draft, .. } = self;
        let draft = draft.as_mut().ok_or_else(|| DraftError::Mismatch("no draft is loaded".into()))?;
        if anchor as usize >= vocab {
            return Err(ModelError::Token { id: anchor, vocab }.into());
        }
        let ran = draft.block(device, (&parts.embedding, &parts.head), context, anchor, rows.max(1));
        // The block's own keys and values are there for the time of the pass only.
        context.truncate(start);
        let Readback { mut outputs, routing, .. } = ran?;
        let first = outputs.next().unwrap_or_default();
        let data = outputs.next().unwrap_or_default();
        let candidates = routing.into_iter().next().map_or_else(Vec::new, |(_, places, _)| places);
        let second = draft.selector.is_some();
        let (margins, projected) = if second { (Vec::new(), first) } else { (first, Vec::new()) };
        Ok(DraftRows { position: start + 1, logits: Logits { vocab, data }, margins, candidates, projected })
    }

    fn return_logits(&mut self, logits: Logits) {
        match &mut self.draft {
            Some(draft) => self.device.reuse(logits.data, &mut draft.workspace.logits),
            None => self.recycle(logits),
        }
    }
}
