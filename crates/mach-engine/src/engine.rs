//! The handle to the engine thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use mach_experts::{StreamingStats, StreamingSummary};
use mach_models::Model;
use mach_prefix::{Blank, PrefixCache, PrefixConfig};
use tokio::sync::mpsc;

use crate::queue::{Job, Queue};
use crate::scheduler::Scheduler;
use crate::{EngineError, EngineStats, Events, GenerateRequest, Speculation, TextTokenizer};

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Requests that may wait; one more is refused.
    pub queue_capacity: usize,
    /// Prompt tokens that one pass of the model takes.
    pub prefill_chunk: usize,
    /// Sequences that run together.
    pub max_sequences: usize,
    /// Upper bound of the context in tokens; the model's own bound holds as well.
    pub max_context: Option<usize>,
    /// Bytes that the state of all active sequences may take together.
    pub state_budget: Option<usize>,
    /// How tokens are proposed ahead of the model.
    pub speculation: Speculation,
    /// The prefix cache; none computes every prompt in full.
    pub prefix: Option<PrefixConfig>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            queue_capacity: 64,
            prefill_chunk: 512,
            max_sequences: 4,
            max_context: None,
            state_budget: None,
            speculation: Speculation::default(),
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
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Arc<TextTokenizer>,
    context: usize,
    vocab: usize,
    prefill_chunk: usize,
    running: Arc<AtomicBool>,
    stats: Arc<Mutex<EngineStats>>,
    streaming: Option<Arc<StreamingStats>>,
    kv_type: String,
    prefix: Option<Arc<PrefixCache>>,
}

impl Engine {
    /// Starts the thread.
    pub fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
    ) -> Result<Self, StartError> {
        let context = context_that_fits(model.as_ref(), &config)?;
        let vocab = model.config().vocab_size;
        let streaming = model.streaming_stats();
        let fact = model.facts().into_iter().find(|(key, _)| *key == "kv_type");
        let kv_type = fact.map_or_else(|| "none".to_owned(), |(_, value)| value);
        let queue = Queue::new(config.queue_capacity);
        let running = Arc::new(AtomicBool::new(true));
        let prefill_chunk = config.prefill_chunk;
        let stats = Arc::new(Mutex::new(EngineStats::default()));
        let blank = || Blank { state: model.new_state(), draft: config.speculation.draft.clone() };
        let prefix = config.prefix.clone().map(|settings| Arc::new(PrefixCache::open(settings, blank())));
        let shared = (Arc::clone(&queue), Arc::clone(&stats));
        let scheduler =
            Scheduler::new(model, Arc::clone(&tokenizer), config, context, shared, prefix.clone());
        let flag = Arc::clone(&running);
        let last = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("mach-engine".into()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| scheduler.run()));
            flag.store(false, Ordering::Release);
            if ended.is_err() {
                tracing::error!("the engine thread panicked outside a pass; it takes no more requests");
                last.abort();
            }
        })?;
        Ok(Self {
            queue,
            thread: Some(thread).into(),
            tokenizer,
            context,
            vocab,
            prefill_chunk,
            running,
            stats,
            streaming,
            kv_type,
            prefix,
        })
    }

    /// Checks a request and puts it in the queue.
    pub fn submit(&self, request: GenerateRequest) -> Result<Events, EngineError> {
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt >= self.context {
            return Err(EngineError::ContextLength { prompt, context: self.context });
        }
        if let Some(wanted) = request.max_tokens.filter(|&m| m as usize > self.context) {
            return Err(EngineError::MaxTokens { wanted, context: self.context });
        }
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(EngineError::Token { id, vocab: self.vocab });
        }
        let (sender, events) = mpsc::unbounded_channel();
        self.queue.push(Job { request, events: sender, submitted: Instant::now() })?;
        Ok(events)
    }

    /// Tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Prompt tokens that one pass of the model takes.
    pub fn prefill_chunk(&self) -> usize {
        self.prefill_chunk
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// Whether something is being generated.
    pub fn busy(&self) -> bool {
        self.queue.busy()
    }

    /// What streaming experts from the drive does; `None` if all are in memory.
    pub fn streaming(&self) -> Option<Arc<StreamingSummary>> {
        self.streaming.as_ref().map(|stats| stats.snapshot())
    }

    /// How keys and values are kept: `bf16`, `f32`, or `turboquant-kNvM`.
    pub fn kv_type(&self) -> &str {
        &self.kv_type
    }

    /// What was done since the start.
    pub fn stats(&self) -> EngineStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The prefix cache.
    pub fn prefix(&self) -> Option<&Arc<PrefixCache>> {
        self.prefix.as_ref()
    }

    /// Whether the engine thread lives.
    pub fn running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Takes no more requests; those accepted are finished.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Fails everything that waits or runs.
    pub fn abort(&self) {
        self.queue.abort();
    }

    /// Waits for the thread to end, after [`close`](Self::close) or [`abort`](Self::abort).
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
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

/// The longest context that the model, the settings and the memory allow.
fn context_that_fits(model: &dyn Model, config: &EngineConfig) -> Result<usize, StartError> {
    let most = model.config().max_position_embeddings;
    let most = config.max_context.map_or(most, |m| m.min(most)).max(2);
    let Some(budget) = config.state_budget else { return Ok(most) };
    let fits = |tokens: usize| model.state_bytes(tokens) <= budget;
    if fits(most) {
        return Ok(most);
    }
    if !fits(2) {
        return Err(StartError::Memory { need: model.state_bytes(2), budget });
    }
    let (mut low, mut high) = (2, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    Ok(low)
}
