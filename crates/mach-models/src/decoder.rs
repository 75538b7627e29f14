//! The forward pass that the families share: embedding, layers, final norm, head.

use std::path::Path;
use std::sync::Arc;

use mach_checkpoint::{Checkpoint, ModelConfig, Row, SpecdecKind};
use mach_experts::{Heat, HotExperts, StreamingStats};

use crate::DraftError;
use crate::blocks::{Mixer, Workspace};
use crate::card::ModelCard;
use crate::device::{CheckpointLoader, Device, Finish, LayerState, ModelSpec, Readback, Span, Tap};
use crate::dflash::{DFlash, DraftHost, DraftOptions, DraftWeights};
use crate::eagle3::EagleWeights;
use crate::families::{self, Parts};
use crate::model::{LogitRows, Logits, Model, ModelError, Observer, Segment, no_drafts};
use crate::mtp::{Mtp, MtpHost, MtpWeights};
use crate::state::SequenceState;

/// A model on a device, with the draft that was loaded for it.
#[derive(Debug)]
pub struct Decoder<D: Device> {
    pub(crate) config: ModelConfig,
    pub(crate) spec: ModelSpec,
    pub(crate) parts: Parts<D::Matrix, D::Vector>,
    pub(crate) device: D,
    pub(crate) workspace: Workspace<D>,
    pub(crate) draft: Option<DraftWeights<D>>,
    pub(crate) mtp: Option<MtpWeights<D>>,
    pub(crate) eagle: Option<EagleWeights<D>>,
}

/// What a pass is over.
struct Batch {
    ids: Vec<u32>,
    spans: Vec<Span>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl Batch {
    fn of(segments: &[Segment<'_>]) -> Self {
        let mut batch = Batch { ids: Vec::new(), spans: Vec::new(), wanted: Vec::new() };
        for segment in segments {
            let (start, rows) = (batch.ids.len(), segment.tokens.len());
            batch.ids.extend_from_slice(segment.tokens);
            let (position, purpose) = (segment.state.position, segment.purpose);
            batch.spans.push(Span { start, rows, position, purpose });
            match segment.logits {
                LogitRows::None => {}
                LogitRows::Last => batch.wanted.extend((start + rows).checked_sub(1).filter(|&r| r >= start)),
                LogitRows::All => batch.wanted.extend(start..start + rows),
            }
        }
        batch
    }
}

impl<D: Device> Decoder<D> {
    /// Places a checkpoint's weights, experts aside, on `device`. `progress` hears how many bytes are placed.
    pub fn load(
        checkpoint: &Checkpoint,
        mut device: D,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let spec = families::spec(&config);
        let mut loader = CheckpointLoader::new(checkpoint, device.placement(checkpoint.tensors()));
        let parts = families::load(&mut loader, &spec)?;
        device.fill(loader.placement, progress)?;
        let workspace = Workspace::default();
        Ok(Decoder { config, spec, parts, device, workspace, draft: None, mtp: None, eagle: None })
    }

    /// What runs the model.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for giving it what it lacks.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Records a pass from the start, or from the experts of layer `from` on.
    fn record(
        &mut self,
        batch: &Batch,
        segments: &mut [Segment<'_>],
        from: Option<usize>,
        observer: &dyn Observer,
    ) -> Result<(), ModelError> {
        let Decoder { spec, parts, device: d, workspace: ws, .. } = self;
        let wants = observer.wants();
        let routed = wants.routed || segments.iter().any(|s| s.state.heat.is_some());
        if from.is_none() {
            d.embed(&parts.embedding, &batch.ids, spec.embedding_scale, &mut ws.h); // [rows, hidden]
            if wants.hidden.wants(0) {
                d.tap(Tap::Hidden(0), &ws.h);
            }
            if let Some(streams) = &spec.streams {
                d.spread(&ws.h, streams.streams, &mut ws.streams); // [rows, streams * hidden]
            }
        }
        for (index, layer) in parts.layers.iter().enumerate().skip(from.unwrap_or(0)) {
            if from != Some(index) {
                let mut states = segments
                    .iter_mut()
                    .map(|s| s.state.layer_mut::<D::LayerState>(index))
                    .collect::<Result<Vec<_>, _>>()?;
                layer.mix(d, ws, spec.eps, &mut states);
                if routed && spec.is_moe(index) {
                    d.tap_routing(index, &ws.routing);
                }
            }
            layer.feed_forward(d, ws, index, spec.eps)?;
            if wants.hidden.wants(index + 1) {
                let residual = if spec.streams.is_some() { &ws.streams } else { &ws.h };
                d.tap(Tap::Hidden(index + 1), residual);
            }
        }
        if !batch.wanted.is_empty() {
            match (&spec.streams, &parts.collapse) {
                (Some(streams), Some(weights)) => {
                    d.select(&ws.streams, &batch.wanted, &mut ws.x);
                    d.collapse(streams, weights, &ws.x, &mut ws.mixing, &mut ws.y);
                }
                _ => d.select(&ws.h, &batch.wanted, &mut ws.y),
            }
            d.norm(&ws.y, &parts.final_norm, spec.eps, &mut ws.x);
            if wants.last_norm {
                d.tap(Tap::LastNorm, &ws.x);
            }
            d.linear(&ws.x, &[parts.head], &mut [&mut ws.logits]); // [wanted, vocab]
            if spec.softcap.is_some() {
                d.cap(&mut ws.logits, 1.0, spec.softcap);
            }
            d.output(&mut ws.logits);
        }
        Ok(())
    }

    /// Runs a pass to its end, however often the device stops for experts.
    fn run(
        &mut self,
        batch: &Batch,
        segments: &mut [Segment<'_>],
        observer: &dyn Observer,
    ) -> Result<Readback, ModelError> {
        self.device.begin(&batch.spans);
        self.device.tokens(&batch.ids);
        let mut from = None;
        loop {
            if let Err(error) = self.record(batch, segments, from, observer) {
                // The pass has failed already; what it has submitted must not reach into the next one.
                let _ = self.device.finish();
                return Err(error);
            }
            match self.device.finish()? {
                Finish::Done(readback) => return Ok(readback),
                Finish::Missing { layer, experts } => {
                    self.device.bring(layer, &experts)?;
                    from = Some(layer);
                }
            }
        }
    }
}

/// Hands what was read back to those who asked for it.
fn tell(readback: &Readback, spans: &[Span], segments: &mut [Segment<'_>], observer: &mut dyn Observer) {
    let wants = observer.wants();
    for (layer, experts, weights) in &readback.routing {
        if wants.routed {
            observer.routed(*layer, experts, weights);
        }
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        let top_k = experts.len() / rows.max(1);
        for (segment, span) in segments.iter_mut().zip(spans) {
            let used = experts.get(span.start * top_k..(span.start + span.rows) * top_k);
            if let (Some(heat), Some(used)) = (&mut segment.state.heat, used) {
                heat.used(*layer, used, top_k);
            }
        }
    }
    for (tap, rows) in &readback.taps {
        match tap {
            Tap::Hidden(index) => observer.hidden(*index, rows),
            Tap::LastNorm => observer.last_norm(rows),
        }
    }
    observer.experts_took(readback.experts_took);
}

impl<D: Device> Model for Decoder<D> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_state(&self) -> SequenceState {
        let layer = |layer| Box::new(self.device.new_state(layer)) as Box<dyn LayerState>;
        let mut state = SequenceState::new(self.spec.layers.iter().map(layer).collect());
        if self.device.streaming_stats().is_some() {
            state.heat = Some(Heat::new(self.config.layers.len(), self.config.moe.num_experts));
        }
        state
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        self.device.state_bytes(&self.spec, tokens)
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Logits, ModelError> {
        let vocab = self.config.vocab_size;
        let batch = Batch::of(segments);
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        if batch.ids.is_empty() {
            return Ok(Logits { vocab, data: Vec::new() });
        }
        let mut readback = self.run(&batch, segments, observer)?;
        tell(&readback, &batch.spans, segments, observer);
        for segment in segments.iter_mut() {
            // A block is one pass.
            segment.state.block = segment.state.block.filter(|&start| start == segment.state.position);
            segment.state.position += segment.tokens.len();
        }
        Ok(Logits { vocab, data: readback.outputs.next().unwrap_or_default() })
    }

    fn keep_rows(&mut self, state: &mut SequenceState, rows: usize) -> Result<(), ModelError> {
        state.end_block(rows)?;
        let Decoder { parts, device, .. } = self;
        for (index, layer) in parts.layers.iter().enumerate() {
            if let Mixer::GatedDelta(delta) = &layer.mixer {
                delta.rewind(device, state.layer_mut(index)?, rows);
            }
        }
        Ok(())
    }

    fn recycle(&mut self, logits: Logits) {
        self.device.reuse(logits.data, &mut self.workspace.logits);
    }

    fn can_be_drafted_for(&self) -> bool {
        let row = Row::named(&self.config.model_type);
        row.is_some_and(|row| row.specdec_kind == SpecdecKind::SpecdecV7)
    }

    fn load_draft(&mut self, dir: &Path, options: DraftOptions) -> Result<DFlash, DraftError> {
        if !self.can_be_drafted_for() {
            return Err(no_drafts());
        }
        // The memory of one loaded before goes first.
        if let Some(draft) = self.draft.take() {
            self.device.release(draft.placed);
        }
        let (weights, draft) = DraftWeights::load(dir, &self.config, options, &mut self.device)?;
        self.draft = Some(weights);
        Ok(draft)
    }

    fn draft_host(&mut self) -> Option<&mut dyn DraftHost> {
        self.draft.is_some().then_some(self as &mut dyn DraftHost)
    }

    fn feature_width(&self) -> usize {
        self.spec.hidden * self.spec.streams.map_or(1, |streams| streams.streams)
    }

    fn load_mtp(&mut self, checkpoint: &Checkpoint, options: DraftOptions) -> Result<Mtp, DraftError> {
        self.load_block(checkpoint, options)
    }

    fn load_eagle(&mut self, dir: &Path, options: DraftOptions) -> Result<Mtp, DraftError> {
        self.load_head(dir, options)
    }

    fn mtp_host(&mut self) -> Option<&mut dyn MtpHost> {
        (self.mtp.is_some() || self.eagle.is_some()).then_some(self as &mut dyn MtpHost)
    }

    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        self.device.streaming_stats()
    }

    fn bring_experts(&mut self, hot: &HotExperts) {
        self.device.bring_hot(hot);
    }

    fn card(&self) -> ModelCard {
        ModelCard {
            model_type: self.config.model_type.clone(),
            layers: self.config.layers.len(),
            device: Some(self.device.card()),
        }
    }

    fn numerics(&self) -> String {
        self.device.numerics()
    }
}
