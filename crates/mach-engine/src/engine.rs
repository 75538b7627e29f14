//! The handle to the engine thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mach_experts::{ExpertUses, StreamingStats, StreamingSummary};
use mach_models::{KvFormat, Model};
use mach_prefix::{Blank, PrefixCache, PrefixConfig};
use tokio::sync::oneshot;

use crate::events::{EventSender, Unread, channel};
use crate::queue::{Job, Queue};
use crate::scheduler::{Commons, Scheduler};
use crate::{
    DecodeMode, EngineError, EngineMetrics, EngineStats, Event, Events, FinishReason, GenerateRequest,
    Generator, GeneratorFacts, Speculation, Started, TextTokenizer, Timings,
};

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Requests that may wait; one more is refused.
    pub queue_capacity: usize,
    /// Prompt tokens that one pass of the model takes.
    pub prefill_chunk: usize,
    /// Sequences that run together: requests, and the choices of each.
    pub max_batch: usize,
    /// Whether requests share passes. Without it one runs after another, its own choices together.
    pub continuous_batching: bool,
    /// Prompt tokens of a pass that other sequences wait for.
    pub prefill_interleave: usize,
    /// How long a request may wait for its turn.
    pub queue_timeout: Option<Duration>,
    /// How long a request may take, waiting included.
    pub request_timeout: Option<Duration>,
    /// Upper bound of the context in tokens; the model's own bound holds as well.
    pub max_context: Option<usize>,
    /// Bytes that the state of all active sequences may take together.
    pub state_budget: Option<usize>,
    /// How tokens are proposed ahead of the model.
    pub speculation: Speculation,
    /// Account of the answers that wait to be read.
    pub unread: Arc<Unread>,
    /// The prefix cache; none computes every prompt in full.
    pub prefix: Option<PrefixConfig>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            queue_capacity: 64,
            prefill_chunk: 512,
            max_batch: 4,
            continuous_batching: true,
            prefill_interleave: 128,
            queue_timeout: None,
            request_timeout: None,
            max_context: None,
            state_budget: None,
            speculation: Speculation::default(),
            unread: Arc::default(),
            prefix: None,
        }
    }
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Not even a short context fits the memory.
    #[error("the state of one sequence takes {need} bytes for 2 tokens, but only {budget} are left")]
    Memory {
        /// Bytes needed.
        need: usize,
        /// Bytes there are.
        budget: usize,
    },
    /// The thread could not be started.
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running engine. One thread owns the model; this handle may be shared.
#[derive(Debug)]
pub struct Engine {
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Arc<TextTokenizer>,
    context: usize,
    /// The context that the model and the settings allow, whatever the memory.
    wanted_context: usize,
    config: EngineConfig,
    vocab: usize,
    running: Arc<AtomicBool>,
    commons: Commons,
    streaming: Option<Arc<StreamingStats>>,
    kv: Option<KvFormat>,
    prefix: Option<Arc<PrefixCache>>,
}

impl Engine {
    /// Starts the thread.
    pub fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
    ) -> Result<Self, StartError> {
        let wanted_context = wanted_context(model.as_ref(), &config);
        let context = context_that_fits(model.as_ref(), &config, wanted_context)?;
        let vocab = model.config().vocab_size;
        let streaming = model.streaming_stats();
        let kv = model.card().kv();
        let commons = Commons {
            queue: Queue::new(config.queue_capacity),
            stats: Arc::default(),
            metrics: Arc::default(),
        };
        let running = Arc::new(AtomicBool::new(true));
        let blank = || Blank { state: model.new_state(), draft: config.speculation.draft.clone() };
        let prefix = config.prefix.clone().map(|settings| Arc::new(PrefixCache::open(settings, blank())));
        let scheduler = Scheduler::new(
            model,
            Arc::clone(&tokenizer),
            config.clone(),
            context,
            commons.clone(),
            prefix.clone(),
        );
        let flag = Arc::clone(&running);
        let last = Arc::clone(&commons.queue);
        let thread = std::thread::Builder::new().name("mach-engine".into()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| scheduler.run()));
            flag.store(false, Ordering::Release);
            if ended.is_err() {
                tracing::error!("the engine thread panicked outside a pass; it takes no more requests");
                last.abort();
            }
        })?;
        Ok(Self {
            thread: Some(thread).into(),
            tokenizer,
            context,
            wanted_context,
            config,
            vocab,
            running,
            commons,
            streaming,
            kv,
            prefix,
        })
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(budget) =
            self.config.state_budget.filter(|_| (self.context..self.wanted_context).contains(&prompt))
        {
            return Err(EngineError::NeverFits { prompt, context: self.context, budget });
        }
        if prompt >= self.context {
            return Err(EngineError::ContextLength { prompt, context: self.context });
        }
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(EngineError::Token { id, vocab: self.vocab });
        }
        Ok(())
    }

    /// Tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// What they could have if memory allowed: the model's bound, or the one that was asked for.
    pub fn wanted_context(&self) -> usize {
        self.wanted_context
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Prompt tokens that one pass of the model takes.
    pub fn prefill_chunk(&self) -> usize {
        self.config.prefill_chunk
    }

    /// The settings that it was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }
}

impl Generator for Engine {
    fn submit_and_tell(
        &self,
        request: GenerateRequest,
    ) -> Result<(Events, oneshot::Receiver<Started>), EngineError> {
        let mut one = self.submit_all(vec![request])?;
        one.pop().ok_or(EngineError::EmptyPrompt)
    }

    fn submit_all(
        &self,
        requests: Vec<GenerateRequest>,
    ) -> Result<Vec<(Events, oneshot::Receiver<Started>)>, EngineError> {
        requests.iter().try_for_each(|request| self.check(request))?;
        let (mut jobs, mut ends) = (Vec::new(), Vec::new());
        let (submitted, begun) = (Instant::now(), Arc::<AtomicBool>::default());
        for request in requests {
            let (sender, events) = channel(&self.config.unread);
            let (start, started) = oneshot::channel();
            ends.push((events, started));
            if request.max_tokens == Some(0) {
                nothing(&request, &sender, start);
            } else {
                let begun = Arc::clone(&begun);
                jobs.push(Job { request, events: sender, submitted, begun, started: Some(start) });
            }
        }
        if !jobs.is_empty() {
            self.commons.queue.push(jobs)?;
        }
        Ok(ends)
    }

    fn facts(&self) -> GeneratorFacts {
        GeneratorFacts {
            context: self.context,
            vocab: self.vocab,
            kv: self.kv,
            continuous_batching: self.config.continuous_batching,
        }
    }

    fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    fn unread(&self) -> &Arc<Unread> {
        &self.config.unread
    }

    fn waiting(&self) -> usize {
        self.commons.queue.waiting()
    }

    fn busy(&self) -> bool {
        self.commons.queue.busy()
    }

    fn running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    fn stats(&self) -> EngineStats {
        self.commons.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn metrics(&self) -> &EngineMetrics {
        &self.commons.metrics
    }

    fn streaming(&self) -> Option<Arc<StreamingSummary>> {
        self.streaming.as_ref().map(|stats| stats.snapshot())
    }

    fn expert_uses(&self) -> Option<Arc<ExpertUses>> {
        self.streaming.as_ref().map(|stats| Arc::clone(stats.uses()))
    }

    fn prefix(&self) -> Option<&Arc<PrefixCache>> {
        self.prefix.as_ref()
    }

    fn close(&self) {
        self.commons.queue.close();
    }

    fn abort(&self) {
        self.commons.queue.abort();
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread itself has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort();
        self.join();
    }
}

/// Answers a request for no tokens: its prompt was checked, and that is all.
fn nothing(request: &GenerateRequest, events: &EventSender, started: oneshot::Sender<Started>) {
    // Nobody waits for the answer of a client that has gone.
    let _ = started.send(Started { mode: DecodeMode::TargetOnly, active: 0 });
    for choice in 0..request.choices {
        events.send(Event::Finished {
            choice,
            reason: FinishReason::Length,
            tokens: 0,
            timings: Timings::default(),
            cached: 0,
            ids: None,
            stopped_by: None,
        });
    }
}

/// The longest context that the model and the settings allow.
fn wanted_context(model: &dyn Model, config: &EngineConfig) -> usize {
    let most = model.config().max_position_embeddings;
    config.max_context.map_or(most, |m| m.min(most)).max(2)
}

/// As much of it as the memory holds for one sequence alone.
fn context_that_fits(model: &dyn Model, config: &EngineConfig, most: usize) -> Result<usize, StartError> {
    let Some(budget) = config.state_budget else { return Ok(most) };
    let undo = config.speculation.undo_bytes(model);
    let need = |tokens: usize| model.state_bytes(tokens) + undo + config.speculation.draft_bytes(tokens);
    if need(most) <= budget {
        return Ok(most);
    }
    if need(2) > budget {
        return Err(StartError::Memory { need: need(2), budget });
    }
    let (mut low, mut high) = (2, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if need(middle) <= budget { low = middle } else { high = middle }
    }
    Ok(low)
}
