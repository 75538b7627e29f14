//! The forward pass that the families share: embedding, layers, final norm, head.

use std::sync::Arc;

use mach_checkpoint::{LayerKind, ModelConfig};
use mach_experts::{Heat, HotExperts, StreamingStats};
use mach_kernels::Cores;
use mach_kernels::attention::{KvCache, KvShape};
use mach_kernels::delta::DeltaState;

use crate::backend::{Backend, Span};
use crate::blocks::{Layer, Mixer, Workspace, delta_shape};
use crate::cpu::Cpu;
use crate::footprint::state_bytes;
use crate::kv::kv_shape;
use crate::model::{Activations, DraftHost, LogitRows, Logits, Model, ModelError, Observer, Segment};
use crate::state::{LayerState, SequenceState};

/// A family's weights.
#[derive(Debug)]
pub(crate) struct Parts<B: Backend> {
    pub(crate) embedding: B::Matrix,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) final_norm: B::Vector,
    pub(crate) head: B::Matrix,
}

/// A loaded decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: ModelConfig,
    parts: Parts<Cpu>,
    backend: Cpu,
    workspace: Workspace<Cpu>,
}

impl Decoder {
    pub(crate) fn new(config: ModelConfig, parts: Parts<Cpu>, backend: Cpu) -> Self {
        Decoder { config, parts, backend, workspace: Workspace::default() }
    }

    fn kv_shape(&self, layer: LayerKind) -> KvShape {
        kv_shape(&self.config, self.backend.activations(), self.backend.turboquant_kv(), layer)
    }

    fn layer_state(&self, kind: LayerKind) -> LayerState {
        match (kind, &self.config.gdn) {
            (LayerKind::LinearAttention, Some(gdn)) => LayerState::Delta(DeltaState::new(&delta_shape(gdn))),
            _ => LayerState::Attention(KvCache::new(self.kv_shape(kind))),
        }
    }
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_state(&self) -> SequenceState {
        let layers = self.config.layers.iter().map(|&kind| self.layer_state(kind)).collect();
        let mut state = SequenceState::new(layers);
        if self.backend.streaming_stats().is_some() {
            state.heat = Some(Heat::new(self.config.layers.len(), self.config.moe.num_experts));
        }
        state
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        state_bytes(&self.config, self.backend.activations(), self.backend.turboquant_kv(), tokens)
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Logits, ModelError> {
        let vocab = self.config.vocab_size;
        let mut ids = Vec::new();
        let (mut spans, mut positions, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for segment in segments.iter() {
            let start = ids.len();
            ids.extend_from_slice(segment.tokens);
            positions.extend((0..segment.tokens.len()).map(|i| segment.state.position + i));
            spans.push(Span { start, rows: segment.tokens.len(), purpose: segment.purpose });
            match segment.logits {
                LogitRows::None => {}
                LogitRows::Last => wanted.extend(ids.len().checked_sub(1).filter(|&last| last >= start)),
                LogitRows::All => wanted.extend(start..ids.len()),
            }
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        if ids.is_empty() {
            return Ok(Logits { vocab, data: Vec::new() });
        }

        let Decoder { config, parts, backend: b, workspace: ws } = self;
        b.begin(&spans);
        b.embed(&parts.embedding, &ids, &mut ws.h); // [rows, hidden]
        observer.hidden(0, b.read(&ws.h));
        for (index, layer) in parts.layers.iter().enumerate() {
            let mut states = segments.iter_mut().map(|s| &mut s.state.layers[index]).collect();
            layer.forward(b, ws, index, config.rms_norm_eps, &positions, &spans, &mut states, observer)?;
            observer.hidden(index + 1, b.read(&ws.h));
            let routing = &ws.routing;
            for (segment, span) in segments.iter_mut().zip(&spans).filter(|_| config.moe_layers[index]) {
                let top_k = config.moe.top_k;
                let used = routing.experts.get(span.start * top_k..(span.start + span.rows) * top_k);
                if let (Some(heat), Some(used)) = (&mut segment.state.heat, used) {
                    heat.used(index, used, top_k);
                }
            }
        }
        for segment in segments.iter_mut() {
            // A block is one pass.
            segment.state.block = segment.state.block.filter(|&start| start == segment.state.position);
            segment.state.position += segment.tokens.len();
        }
        if wanted.is_empty() {
            return Ok(Logits { vocab, data: Vec::new() });
        }
        b.select(&ws.h, &wanted, &mut ws.y);
        b.rms_norm(&ws.y, &parts.final_norm, config.rms_norm_eps, &mut ws.x);
        observer.last_norm(b.read(&ws.x));
        b.linear(&ws.x, &[parts.head], &mut [&mut ws.logits]); // [wanted, vocab]
        Ok(Logits { vocab, data: b.take(&mut ws.logits) })
    }

    fn keep_rows(&mut self, state: &mut SequenceState, rows: usize) -> Result<(), ModelError> {
        state.end_block(rows)?;
        let Decoder { parts, backend, .. } = self;
        for (layer, state) in parts.layers.iter().zip(&mut state.layers) {
            if let Mixer::GatedDelta(delta) = &layer.mixer {
                delta.rewind(backend, state, rows);
            }
        }
        Ok(())
    }

    fn recycle(&mut self, logits: Logits) {
        self.backend.reuse(logits.data, &mut self.workspace.logits);
    }

    fn draft_host(&mut self) -> Option<&mut dyn DraftHost> {
        Some(self)
    }

    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        self.backend.streaming_stats()
    }

    fn bring_experts(&mut self, hot: &HotExperts) {
        self.backend.bring_experts(hot);
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("model_type", self.config.model_type.clone()),
            ("layers", self.config.layers.len().to_string()),
        ];
        facts.extend(self.backend.facts());
        facts
    }

    fn gdn_state(&self, state: &SequenceState, layer: usize) -> Option<(Vec<f32>, Vec<f32>)> {
        let LayerState::Delta(delta) = state.layers.get(layer)? else { return None };
        let shape = delta_shape(self.config.gdn.as_ref()?);
        let (channels, rows) = (shape.channels(), shape.taps - 1);
        let conv = (0..channels * rows).map(|i| delta.conv[i % rows * channels + i / rows]).collect();
        Some((conv, delta.matrices(&shape)))
    }
}

impl DraftHost for Decoder {
    fn embed_rows(&mut self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let vocab = self.config.vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        self.backend.embed(&self.parts.embedding, ids, &mut self.workspace.h);
        Ok(self.backend.read(&self.workspace.h).to_vec())
    }

    fn head_logits(&mut self, rows: &[f32]) -> Result<Logits, ModelError> {
        let Decoder { config, parts, backend: b, workspace: ws } = self;
        if !rows.len().is_multiple_of(config.hidden_size) {
            let width = config.hidden_size;
            return Err(ModelError::Unsupported(format!("{} values are no rows of {width}", rows.len())));
        }
        b.write(rows, config.hidden_size, &mut ws.x);
        b.linear(&ws.x, &[parts.head], &mut [&mut ws.logits]); // [rows, vocab]
        Ok(Logits { vocab: config.vocab_size, data: b.take(&mut ws.logits) })
    }

    fn return_logits(&mut self, logits: Logits) {
        self.recycle(logits);
    }

    fn compute(&mut self) -> &mut Cores {
        self.backend.compute()
    }

    fn activations(&self) -> Activations {
        self.backend.activations()
    }
}
