//! A head's arithmetic.

use super::EagleConfig;
use super::weights::{Buffers, EagleWeights};
use crate::device::{Device, Finish, Readback, Span, Tap};
use crate::mtp::{Features, Predicted};
use crate::{Logits, ModelError, Purpose, SequenceState};

impl<D: Device> EagleWeights<D> {
    /// Values of a row of features of this kind.
    pub(crate) fn width_of(&self, features: Features<'_>) -> usize {
        match features {
            Features::Model(_) => self.width,
            Features::Own(_) => self.config.hidden_size,
        }
    }

    /// See [`MtpHost::predict`](crate::mtp::MtpHost::predict); what comes in was checked. `borrowed`: the model's embedding and
    /// head.
    pub(crate) fn predict(
        &mut self,
        d: &mut D,
        borrowed: (&D::Matrix, &D::Matrix),
        context: &mut SequenceState,
        features: Features<'_>,
        tokens: &[u32],
        wanted: &[usize],
    ) -> Result<Predicted, ModelError> {
        let rows = tokens.len();
        d.begin(&[Span { start: 0, rows, position: context.position, purpose: Purpose::Draft }]);
        self.record(d, borrowed, context.layer_mut(0)?, features, tokens, wanted);
        let Readback { mut outputs, taps, .. } = match d.finish()? {
            Finish::Done(readback) => readback,
            Finish::Missing { .. } => {
                return Err(ModelError::Device("a head without experts stopped for some".into()));
            }
        };
        context.position += rows;
        let EagleConfig { hidden_size, vocab_size, .. } = self.config;
        let own = taps.into_iter().next().map_or_else(Vec::new, |(_, rows)| rows);
        let margins = outputs.next().unwrap_or_default();
        let data = self.in_full(outputs.next().unwrap_or_default());
        Ok(Predicted {
            margins,
            logits: Logits { vocab: vocab_size, data },
            own: own.rchunks_exact(hidden_size.max(1)).next().unwrap_or_default().to_vec(),
        })
    }

    fn record(
        &mut self,
        d: &mut D,
        (embedding, head): (&D::Matrix, &D::Matrix),
        state: &mut D::LayerState,
        features: Features<'_>,
        tokens: &[u32],
        wanted: &[usize],
    ) {
        let EagleWeights { config: c, width, attention, parts, workspace: ws, buffers, .. } = self;
        let Buffers { features: raw, normed, joined, margins } = buffers;
        d.embed(parts.embedding.as_ref().unwrap_or(embedding), tokens, 1.0, &mut ws.y);
        d.norm(&ws.y, &parts.embedding_norm, c.eps, &mut ws.x);
        match features {
            Features::Model(values) => {
                d.write(values, *width, raw);
                d.linear(raw, &[parts.fc], &mut [&mut ws.h]);
            }
            Features::Own(values) => d.write(values, c.hidden_size, &mut ws.h),
        }
        d.norm(&ws.h, &parts.hidden_norm, c.eps, normed);
        d.join(&ws.x, normed, joined); // [rows, 2 * hidden]
        let [q, k, v, _] = &mut ws.p;
        if wanted.is_empty() {
            // Later rows see the keys and values of these, and nothing else of them.
            d.linear(joined, &[parts.k, parts.v], &mut [&mut *k, &mut *v]);
            d.append(attention, &parts.norms, k, v, &mut [state]);
            return;
        }
        if c.norm_before_residual {
            std::mem::swap(&mut ws.h, normed);
        }
        d.linear(joined, &[parts.q, parts.k, parts.v], &mut [&mut *q, &mut *k, &mut *v]);
        d.attention(attention, &parts.norms, q, k, v, &mut [state], &mut ws.mixed);
        d.linear(&ws.mixed, &[parts.o], &mut [&mut ws.y]);
        d.add(&mut ws.h, &ws.y);
        d.norm(&ws.h, &parts.post_norm, c.eps, &mut ws.x);
        d.mlp(&parts.mlp, &ws.x, &mut ws.h);
        d.select(&ws.h, wanted, &mut ws.y);
        d.tap(Tap::LastNorm, &ws.y);
        d.norm(&ws.y, &parts.norm, c.eps, &mut ws.x);
        d.linear(&ws.x, &[*parts.head.as_ref().unwrap_or(head)], &mut [&mut ws.logits]);
        d.margins(&ws.logits, margins);
        d.output(margins);
        d.output(&mut ws.logits);
    }

    /// Logits of the head's tokens as logits of the target's: those that it cannot say are never chosen.
    fn in_full(&self, said: Vec<f32>) -> Vec<f32> {
        let Some(vocabulary) = &self.vocabulary else { return said };
        let (part, all) = (vocabulary.len().max(1), self.config.vocab_size);
        let mut full = vec![f32::NEG_INFINITY; said.len() / part * all];
        for (said, full) in said.chunks_exact(part).zip(full.chunks_exact_mut(all.max(1))) {
            for (&logit, &token) in said.iter().zip(vocabulary) {
                if let Some(to) = full.get_mut(token as usize) {
                    *to = logit;
                }
            }
        }
        full
    }
}
