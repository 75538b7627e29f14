//! Counters and histograms of the engine, for a Prometheus registry.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::{EngineError, FinishReason};

type Labels = [(&'static str, &'static str); 1];

/// What requests saw. Updated as things happen; reading it never waits for the engine.
#[derive(Debug)]
pub struct EngineMetrics {
    /// Seconds from the request's arrival to its first token.
    pub(crate) first_token: Histogram,
    /// Seconds between tokens of a choice. Tokens that one pass accepted follow each other at once.
    pub(crate) inter_token: Histogram,
    /// Seconds in the queue.
    pub(crate) queued: Histogram,
    whole: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        let waits = || {
            Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
        };
        let gaps = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let whole = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        Self {
            first_token: waits(),
            inter_token: Histogram::new(gaps),
            queued: waits(),
            whole: Histogram::new(whole),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            failed: Family::default(),
        }
    }
}

impl EngineMetrics {
    /// Names everything in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let seconds = [
            (
                "time_to_first_token_seconds",
                "From the request's arrival to its first token",
                &self.first_token,
            ),
            ("inter_token_latency_seconds", "Between the tokens of a choice", &self.inter_token),
            ("request_queue_time_seconds", "From the request's arrival to leaving the queue", &self.queued),
            ("e2e_request_latency_seconds", "From the request's arrival to a choice's end", &self.whole),
        ];
        for (name, help, histogram) in seconds {
            registry.register(name, help, histogram.clone());
        }
        registry.register(
            "prompt_tokens",
            "Prompt tokens of requests that were answered",
            self.prompt_tokens.clone(),
        );
        registry.register("generation_tokens", "Tokens generated", self.generation_tokens.clone());
        registry.register("request_success", "Choices that ended, by reason", self.finished.clone());
        registry.register(
            "request_failure",
            "Requests that failed after they were accepted",
            self.failed.clone(),
        );
    }

    /// Takes in a choice that ended; `first` of its request.
    pub(crate) fn finished(
        &self,
        reason: FinishReason,
        prompt: usize,
        tokens: usize,
        first: bool,
        took: Duration,
    ) {
        let reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        self.finished.get_or_create(&[("finished_reason", reason)]).inc();
        self.generation_tokens.inc_by(tokens as u64);
        self.prompt_tokens.inc_by(if first { prompt as u64 } else { 0 });
        self.whole.observe(took.as_secs_f64());
    }

    /// Takes in a request that failed.
    pub(crate) fn failed(&self, error: &EngineError) {
        let reason = match error {
            EngineError::QueueTimeout { .. } => "queue_timeout",
            EngineError::RequestTimeout { .. } => "request_timeout",
            EngineError::Memory(_) | EngineError::NeverFits { .. } => "memory",
            EngineError::ShuttingDown => "shutdown",
            _ => "model",
        };
        self.failed.get_or_create(&[("reason", reason)]).inc();
    }
}
