//! The forward pass that the families share: embedding, layers, final norm, head.

use mach_checkpoint::{LayerKind, ModelConfig};
use mach_kernels::attention::{KvCache, KvShape};
use mach_kernels::delta::DeltaState;

use crate::backend::{Backend, Span};
use crate::blocks::{Layer, Workspace, delta_shape};
use crate::cpu::Cpu;
use crate::model::{LogitRows, Logits, Model, ModelError, Observer, Segment};
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

    fn kv_shape(&self) -> KvShape {
        KvShape {
            heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            kind: self.backend.kv_type(),
        }
    }

    fn layer_state(&self, kind: LayerKind) -> LayerState {
        match (kind, &self.config.gdn) {
            (LayerKind::LinearAttention, Some(gdn)) => LayerState::Delta(DeltaState::new(&delta_shape(gdn))),
            _ => LayerState::Attention(KvCache::new(self.kv_shape())),
        }
    }
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_state(&self) -> SequenceState {
        let layers = self.config.layers.iter().map(|&kind| self.layer_state(kind)).collect();
        SequenceState { position: 0, layers }
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        let page = self.kv_shape().page_bytes() * tokens.div_ceil(mach_kernels::attention::PAGE);
        let empty = self.new_state().bytes();
        empty + page * self.config.layers.iter().filter(|&&k| k == LayerKind::FullAttention).count()
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
            spans.push(Span { start, rows: segment.tokens.len() });
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
        b.embed(&parts.embedding, &ids, &mut ws.h); // [rows, hidden]
        observer.hidden(0, b.read(&ws.h));
        for (index, layer) in parts.layers.iter().enumerate() {
            let mut states = segments.iter_mut().map(|s| &mut s.state.layers[index]).collect();
            layer.forward(b, ws, index, config.rms_norm_eps, &positions, &spans, &mut states, observer);
            observer.hidden(index + 1, b.read(&ws.h));
        }
        for segment in segments.iter_mut() {
            segment.state.position += segment.tokens.len();
        }
        if wanted.is_empty() {
            return Ok(Logits { vocab, data: Vec::new() });
        }
        b.select(&ws.h, &wanted, &mut ws.y);
        b.rms_norm(&ws.y, &parts.final_norm, config.rms_norm_eps, &mut ws.x);
        observer.last_norm(b.read(&ws.x));
        b.linear(&ws.x, &[parts.head], &mut [&mut ws.mixed]); // [wanted, vocab]
        Ok(Logits { vocab, data: b.read(&ws.mixed).to_vec() })
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
