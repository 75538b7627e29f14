//! What a server needs of whatever generates.

use std::sync::Arc;

use mach_experts::{ExpertUses, StreamingSummary};
use mach_models::KvFormat;
use mach_prefix::PrefixCache;
use tokio::sync::oneshot;

use crate::{
    EngineError, EngineMetrics, EngineStats, Events, GenerateRequest, Started, TextTokenizer, Unread,
};

/// What does not change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorFacts {
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// Size of the vocabulary: token ids are below it.
    pub vocab: usize,
    /// How keys and values are kept; `None` if nothing is known of any.
    pub kv: Option<KvFormat>,
    /// Whether requests share passes.
    pub continuous_batching: bool,
}

/// Generates tokens for requests: [`Engine`](crate::Engine) is one, and what a server holds is any. Requests are answered by
/// [`Event`](crate::Event)s; whoever drops the receiver cancels.
pub trait Generator: std::fmt::Debug + Send + Sync {
    /// Checks a request and puts it in the queue. The second value resolves when the request leaves the queue, to an error
    /// if it never does.
    fn submit_and_tell(
        &self,
        request: GenerateRequest,
    ) -> Result<(Events, oneshot::Receiver<Started>), EngineError>;

    /// Puts the parts of one request in the queue, all or none; they take one place together.
    fn submit_all(
        &self,
        requests: Vec<GenerateRequest>,
    ) -> Result<Vec<(Events, oneshot::Receiver<Started>)>, EngineError> {
        requests.into_iter().map(|request| self.submit_and_tell(request)).collect()
    }

    /// As [`submit_and_tell`](Self::submit_and_tell), for those who do not ask when it starts.
    fn submit(&self, request: GenerateRequest) -> Result<Events, EngineError> {
        self.submit_and_tell(request).map(|(events, _)| events)
    }

    /// What does not change.
    fn facts(&self) -> GeneratorFacts;
    /// Between text and token ids.
    fn tokenizer(&self) -> &Arc<TextTokenizer>;
    /// Answers that wait to be read.
    fn unread(&self) -> &Arc<Unread>;
    /// Requests in the queue.
    fn waiting(&self) -> usize;
    /// Whether something is being generated.
    fn busy(&self) -> bool;
    /// Whether it can still take requests; false after a failure that ends it.
    fn running(&self) -> bool;
    /// What was done since the start.
    fn stats(&self) -> EngineStats;
    /// Counters and histograms.
    fn metrics(&self) -> &EngineMetrics;
    /// What streaming experts from a drive does, if it does.
    fn streaming(&self) -> Option<Arc<StreamingSummary>> {
        None
    }
    /// Counts of each expert, if experts are streamed.
    fn expert_uses(&self) -> Option<Arc<ExpertUses>> {
        None
    }
    /// The prefix cache, if there is one.
    fn prefix(&self) -> Option<&Arc<PrefixCache>> {
        None
    }
    /// Takes no more requests; those accepted are finished.
    fn close(&self);
    /// Fails everything that waits or runs.
    fn abort(&self);
    /// Waits for the end, after [`close`](Self::close) or [`abort`](Self::abort).
    fn join(&self);
}
