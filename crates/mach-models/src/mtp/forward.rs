//! A block's arithmetic.

use super::weights::{BlockParts, Buffers, Entry, MtpWeights};
use super::{Features, MtpHost, Predicted};
use crate::blocks::Mixer;
use crate::decoder::Decoder;
use crate::device::{Device, Finish, Readback, Span, Tap};
use crate::{LogitRows, Logits, ModelError, Purpose, SequenceState};

/// What of the model a block uses.
struct Borrowed<'a, D: Device> {
    embedding: &'a D::Matrix,
    norm: &'a D::Vector,
    head: &'a D::Matrix,
}

impl<D: Device> MtpWeights<D> {
    /// From tokens and features to the residual stream: `ws.h`, or `ws.streams` where there are several.
    fn enter(&mut self, d: &mut D, model: &Borrowed<'_, D>, features: Features<'_>, tokens: &[u32]) {
        let MtpWeights { spec, parts, workspace: ws, buffers, .. } = self;
        let Buffers { features: raw, normed, mixed, .. } = buffers;
        d.embed(model.embedding, tokens, 1.0, &mut ws.h); // [rows, hidden]
        d.norm(&ws.h, &parts.embedding_norm, spec.eps, &mut ws.x);
        d.write(features.values(), spec.hidden, raw); // [rows * streams, hidden]
        match &parts.entry {
            Entry::Streams { embedding, streams, .. } => {
                d.linear(&ws.x, &[*embedding], &mut [&mut ws.y]);
                let count = spec.streams.map_or(1, |streams| streams.streams);
                d.spread(&ws.y, count, &mut ws.streams); // [rows, streams * hidden]
                d.norm(raw, &parts.features_norm, spec.eps, normed);
                d.linear(normed, &[*streams], &mut [&mut *mixed]);
                d.add(&mut ws.streams, mixed);
            }
            Entry::Joined(both) => {
                match features {
                    // The block was made for what comes after the model's final norm, or after its own.
                    Features::Model(_) => {
                        d.norm(raw, model.norm, spec.eps, mixed);
                        d.norm(mixed, &parts.features_norm, spec.eps, normed);
                    }
                    Features::Own(_) => d.norm(raw, &parts.features_norm, spec.eps, normed),
                }
                d.join(&ws.x, normed, mixed); // [rows, 2 * hidden]
                d.linear(mixed, &[*both], &mut [&mut ws.h]);
            }
        }
    }

    /// What is said of the rows that are wanted: outputs are margins and logits, the tap what can stand for the next features.
    fn leave(&mut self, d: &mut D, model: &Borrowed<'_, D>, wanted: &[usize]) {
        let MtpWeights { spec, parts, workspace: ws, buffers, .. } = self;
        match (&parts.entry, &spec.streams) {
            (Entry::Streams { collapse, .. }, Some(streams)) => {
                d.select(&ws.streams, wanted, &mut ws.x);
                d.tap(Tap::LastNorm, &ws.x);
                d.collapse(streams, collapse, &ws.x, &mut ws.mixing, &mut ws.y);
                d.norm(&ws.y, &parts.norm, spec.eps, &mut ws.x);
            }
            _ => {
                d.select(&ws.h, wanted, &mut ws.y);
                d.norm(&ws.y, &parts.norm, spec.eps, &mut ws.x);
                d.tap(Tap::LastNorm, &ws.x);
            }
        }
        d.linear(&ws.x, &[*model.head], &mut [&mut ws.logits]);
        d.margins(&ws.logits, &mut buffers.margins);
        d.output(&mut buffers.margins);
        d.output(&mut ws.logits);
    }

    fn run(
        &mut self,
        d: &mut D,
        model: &Borrowed<'_, D>,
        context: &mut SequenceState,
        features: Features<'_>,
        tokens: &[u32],
        wanted: &[usize],
    ) -> Result<Readback, ModelError> {
        let rows = tokens.len();
        d.begin(&[Span { start: 0, rows, position: context.position, purpose: Purpose::Draft }]);
        d.tokens(tokens);
        self.enter(d, model, features, tokens);
        let MtpWeights { spec, parts: BlockParts { layer, .. }, workspace: ws, .. } = self;
        match &layer.mixer {
            // Later rows see the keys and values of these, and nothing else of them.
            Mixer::Attention(attention) if wanted.is_empty() => {
                d.norm(&ws.h, &layer.input_norm, spec.eps, &mut ws.x);
                attention.append(d, ws, &mut [context.layer_mut(0)?]);
            }
            _ => {
                layer.mix(d, ws, spec.eps, &mut [context.layer_mut(0)?]);
                layer.feed_forward(d, ws, 0, spec.eps)?;
            }
        }
        if !wanted.is_empty() {
            self.leave(d, model, wanted);
        }
        match d.finish()? {
            Finish::Done(readback) => Ok(readback),
            Finish::Missing { .. } => {
                Err(ModelError::Device("a block with its own experts stopped for some".into()))
            }
        }
    }
}

impl<D: Device> MtpHost for Decoder<D> {
    fn predict(
        &mut self,
        context: &mut SequenceState,
        features: Features<'_>,
        tokens: &[u32],
        logits: LogitRows,
    ) -> Result<Predicted, ModelError> {
        let vocab = self.config.vocab_size;
        let Decoder { parts, device, mtp, eagle, .. } = self;
        let rows = tokens.len();
        let width = match (&eagle, &mtp) {
            (Some(head), _) => head.width_of(features),
            (None, Some(mtp)) => mtp.spec.width(),
            (None, None) => return Err(ModelError::Unsupported("no block is loaded".into())),
        };
        if features.values().len() != rows * width {
            return Err(ModelError::Unsupported(format!("features of another number of rows than {rows}")));
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        let wanted: Vec<usize> = match logits {
            LogitRows::None => Vec::new(),
            LogitRows::Last => (rows.saturating_sub(1)..rows).collect(),
            LogitRows::All => (0..rows).collect(),
        };
        let nothing = Logits { vocab, data: Vec::new() };
        if rows == 0 {
            return Ok(Predicted { logits: nothing, ..Predicted::default() });
        }
        if let Some(head) = eagle {
            let borrowed = (&parts.embedding, &parts.head);
            return head.predict(device, borrowed, context, features, tokens, &wanted);
        }
        let Some(mtp) = mtp else { return Ok(Predicted::default()) };
        let model = Borrowed::<D> { embedding: &parts.embedding, norm: &parts.final_norm, head: &parts.head };
        let Readback { mut outputs, taps, .. } =
            mtp.run(device, &model, context, features, tokens, &wanted)?;
        context.position += rows;
        let own = taps.into_iter().next().map_or_else(Vec::new, |(_, rows)| rows);
        Ok(Predicted {
            margins: outputs.next().unwrap_or_default(),
            logits: Logits { data: outputs.next().unwrap_or_default(), ..nothing },
            own: own.rchunks_exact(width.max(1)).next().unwrap_or_default().to_vec(),
        })
    }
}
