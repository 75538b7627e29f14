//! One continuation in the making.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mach_models::{Model, SequenceState};
use mach_specdec::{Picker, Proposal, Speculator};

use crate::events::EventSender;
use crate::grammar::{Guide, Lost};
use crate::prefix::Reuse;
use crate::sampling::{Sampler, choice_seed, raw_logprobs};
use crate::scheduler::Active;
use crate::text::TextStream;
use crate::{
    EngineError, EngineMetrics, Event, FinishReason, GenerateRequest, RequestStats, TextTokenizer,
    TokenLogprob,
};

/// A sequence: its tokens, how far the model has seen them, and the choosing and showing of new ones.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) state: SequenceState,
    /// Prompt, then answer.
    pub(crate) tokens: Vec<u32>,
    /// Number of the request that it belongs to.
    pub(crate) request: u64,
    /// It was in a pass that failed and has to show alone that it was not at fault.
    pub(crate) suspect: bool,
    /// Shared passes that failed with it.
    pub(crate) strikes: u8,
    pub(crate) speculator: Speculator,
    pub(crate) stats: RequestStats,
    pub(crate) reuse: Reuse,
    pub(crate) choice: u32,
    prompt_len: usize,
    /// Length of `tokens` at which the answer is as long as it may be.
    pub(crate) limit: usize,
    stop_ids: Arc<[u32]>,
    logprobs: Option<usize>,
    /// There is no answer, only what the model makes of the prompt.
    pub(crate) embeds: bool,
    sampler: Sampler,
    guide: Option<Guide>,
    text: TextStream<TokenLogprob>,
    events: EventSender,
    submitted: Instant,
    admitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
    metrics: Arc<EngineMetrics>,
}

/// Lets a draft choose as the sequence itself does.
struct SamplerPicker<'a>(&'a mut Sampler);

impl Picker for SamplerPicker<'_> {
    fn pick(&mut self, logits: &mut [f32], position: usize) -> Option<u32> {
        self.0.sample(logits, position).ok()
    }
}

/// Where a new sequence comes from.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) request: &'a GenerateRequest,
    pub(crate) number: u64,
    pub(crate) choice: u32,
    pub(crate) limit: usize,
    pub(crate) stop_ids: Arc<[u32]>,
    pub(crate) events: EventSender,
    pub(crate) submitted: Instant,
    /// When it left the queue: before a cached beginning is brought back, which is part of the time to the first token.
    pub(crate) admitted: Instant,
    pub(crate) speculator: Speculator,
    pub(crate) reuse: Reuse,
    pub(crate) metrics: Arc<EngineMetrics>,
}

impl Sequence {
    pub(crate) fn new(state: SequenceState, origin: Origin<'_>) -> Self {
        let request = origin.request;
        let mut sampling = request.sampling.clone();
        sampling.seed = choice_seed(sampling.seed, origin.choice);
        let now = Instant::now();
        Self {
            state,
            tokens: request.prompt.clone(),
            request: origin.number,
            suspect: false,
            strikes: 0,
            speculator: origin.speculator,
            stats: RequestStats {
                prompt_tokens: request.prompt.len(),
                cached_tokens: origin.reuse.cached,
                ..RequestStats::default()
            },
            reuse: origin.reuse,
            choice: origin.choice,
            prompt_len: request.prompt.len(),
            limit: origin.limit,
            stop_ids: origin.stop_ids,
            logprobs: request.logprobs,
            embeds: request.output.embedding,
            sampler: Sampler::new(sampling, &request.prompt),
            guide: request.output.grammar.as_ref().map(Guide::new),
            text: TextStream::new(request.stop.clone(), Arc::clone(&request.output.show)),
            events: origin.events,
            submitted: origin.submitted,
            admitted: origin.admitted,
            first_token: None,
            last_token: now,
            metrics: origin.metrics,
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) fn admitted(&self) -> Instant {
        self.admitted
    }

    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Whether the first token was chosen, so that one token is left for the model to see.
    pub(crate) fn decoding(&self) -> bool {
        self.tokens.len() > self.prompt_len && self.state.position() + 1 == self.tokens.len()
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Ends a sequence that was to compute its prompt alone.
    pub(crate) fn finish_warm(&mut self) {
        self.finish(FinishReason::Stop);
    }

    /// Ends a sequence whose prompt was to become an embedding.
    pub(crate) fn finish_embedding(&mut self, values: &[f32]) {
        self.events.send(Event::Embedding(values.to_vec()));
        self.finish(FinishReason::Stop);
    }

    /// Its figures up to now.
    pub(crate) fn stats(&self) -> RequestStats {
        RequestStats {
            completion_tokens: self.tokens.len() - self.prompt_len,
            decode_time: self.first_token.map_or(Duration::ZERO, |first| first.elapsed()),
            guided_tokens: self.guide.as_ref().map_or(0, |guide| guide.tokens),
            guide_time: self.guide.as_ref().map_or(Duration::ZERO, |guide| guide.took),
            ..self.stats
        }
    }

    /// What the plan needs to know of it.
    pub(crate) fn planned(&self) -> Active {
        Active {
            request: self.request,
            choice: self.choice,
            tokens: self.tokens.len(),
            unseen: self.tokens.len().saturating_sub(self.state.position()),
            limit: self.limit,
            decoding: self.decoding(),
            warm: self.reuse.warm,
            suspect: self.suspect,
        }
    }

    /// Shows a draft what the model made of tokens that are there to stay.
    pub(crate) fn observe(&mut self, model: &mut dyn Model, features: &[f32]) {
        if !self.speculator.taps().is_empty() {
            self.speculator.observe(model, features, &self.tokens);
        }
    }

    /// Proposes tokens to follow, leaving room for the one that the model adds.
    pub(crate) fn propose(&mut self, model: &mut dyn Model) -> Proposal {
        let most = self.limit.saturating_sub(self.tokens.len() + 1);
        let picker = &mut SamplerPicker(&mut self.sampler);
        let mut proposal = self.speculator.propose(&self.tokens, &self.stop_ids, most, model, picker);
        if let Some(guide) = &mut self.guide {
            // What the grammar does not allow will not be chosen.
            proposal.truncate(guide.allowed(&proposal.tokens).unwrap_or(0));
        }
        proposal
    }

    /// Reports a failure of the whole request.
    pub(crate) fn fail(&self, error: &EngineError) {
        self.events.send(Event::Failed(error.clone()));
    }

    /// Chooses the next token from the logits after the last token and reports what became visible. `proposed` is the token that
    /// was expected there, if any. True when the sequence is complete.
    pub(crate) fn advance(
        &mut self,
        logits: &mut [f32],
        proposed: Option<u32>,
        tokenizer: &TextTokenizer,
    ) -> Result<bool, EngineError> {
        let raw = self.logprobs.map(|alternatives| (raw_logprobs(logits, alternatives), logits.to_vec()));
        let position = self.tokens.len();
        let id = match &mut self.guide {
            None => self.sampler.sample(logits, position).map_err(|e| EngineError::Model(e.to_string()))?,
            Some(guide) => self.sampler.sample_guided(logits, position, guide)?,
        };
        self.clock();
        self.tokens.push(id);
        self.sampler.accept(id);
        if self.stop_ids.contains(&id) {
            self.finish(FinishReason::Stop);
            return Ok(true);
        }
        let logprob = raw.map(|(raw, logits)| TokenLogprob {
            id,
            logprob: raw.of(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)),
            top: raw.top,
            drafted: proposed == Some(id),
        });
        let visible = self.text.push(id, logprob, tokenizer);
        self.send_text(visible.text, visible.tokens);
        let lost = |e: Lost| EngineError::Grammar(e.to_string());
        let ended = self.guide.as_mut().map_or(Ok(false), |guide| guide.take(id)).map_err(lost)?;
        if self.text.stopped() || ended {
            self.finish(FinishReason::Stop);
            return Ok(true);
        }
        if self.tokens.len() >= self.limit {
            self.finish(FinishReason::Length);
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes the time of a token.
    fn clock(&mut self) {
        let now = Instant::now();
        if self.first_token.is_some() {
            self.metrics.inter_token.observe((now - self.last_token).as_secs_f64());
        } else {
            self.first_token = Some(now);
            self.metrics.first_token.observe((now - self.submitted).as_secs_f64());
        }
        self.last_token = now;
    }

    fn send_text(&self, text: String, logprobs: Vec<TokenLogprob>) {
        if !text.is_empty() || !logprobs.is_empty() {
            self.events.send(Event::Text { choice: self.choice, text, logprobs });
        }
    }

    fn finish(&mut self, reason: FinishReason) {
        let rest = self.text.finish();
        self.send_text(rest.text, rest.tokens);
        let first = self.first_token.unwrap_or(self.admitted);
        let timings = crate::Timings {
            queued: self.admitted.duration_since(self.submitted),
            prefill: first.duration_since(self.admitted),
            decode: first.elapsed(),
        };
        let tokens = self.tokens.len() - self.prompt_len;
        self.metrics.finished(reason, self.prompt_len, tokens, self.choice == 0, self.submitted.elapsed());
        let ids =
            (!self.text.stopped()).then(|| self.tokens.get(self.prompt_len..).unwrap_or_default().to_vec());
        let (choice, cached) = (self.choice, self.reuse.cached);
        let stopped_by = self.text.stopped_by().map(str::to_owned);
        self.events.send(Event::Finished { choice, reason, tokens, timings, cached, ids, stopped_by });
    }
}
