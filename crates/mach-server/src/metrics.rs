//! Everything that `GET /metrics` shows: HTTP, the engine's histograms, and what engine and caches tell of themselves.

use std::fmt;
use std::sync::Arc;

use mach_engine::EngineStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::ChatModel;

type Labels = [(&'static str, String); 3];

/// Requests by method, route and status.
#[derive(Debug, Default)]
pub(crate) struct HttpMetrics {
    requests: Family<Labels, Counter>,
}

impl HttpMetrics {
    /// Takes in an answered request. `route` is a pattern, so that paths made up by clients do not fill the memory.
    pub(crate) fn count(&self, method: &str, route: &str, status: u16) {
        const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
        let method = KNOWN.iter().find(|known| **known == method).map_or("other", |m| m);
        let labels =
            [("method", method.to_owned()), ("handler", route.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }
}

/// The text for a scrape.
pub(crate) fn render(http: &HttpMetrics, model: Option<&Arc<ChatModel>>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("mach");
    registry.register("http_requests", "Requests answered", http.requests.clone());
    if let Some(model) = model {
        model.engine.metrics().register(&mut registry);
        registry.register_collector(Box::new(Live(Arc::clone(model))));
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What is read at each scrape.
#[derive(Debug)]
struct Live(Arc<ChatModel>);

/// Writes one metric after another.
struct MetricWriter<'a>(DescriptorEncoder<'a>);

impl MetricWriter<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        let encoder = self.0.encode_descriptor(name, help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        let encoder = self.0.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(encoder)
    }
}

impl Collector for Live {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut MetricWriter(encoder);
        let engine = &self.0.engine;
        let stats = engine.stats();
        out.gauge("num_requests_running", "Sequences at work", stats.active as f64)?;
        out.gauge("num_requests_waiting", "Requests in the queue", engine.waiting() as f64)?;
        out.gauge("num_sequences_paused", "Sequences that wait for memory", stats.paused as f64)?;
        let unread = engine.unread().held() as f64;
        out.gauge("unread_bytes", "Bytes of answers that wait to be read", unread)?;
        decoding(out, &stats)?;
        let (held, working) = self.0.account.charged();
        out.gauge("request_memory_held_bytes", "Memory charged to requests that are at work", held as f64)?;
        out.gauge("request_memory_working_bytes", "The same while they are prepared", working as f64)?;
        let most = self.0.account.limit() as f64;
        out.gauge("request_memory_max_bytes", "Most memory that is charged", most)?;
        let calls = &self.0.output_stats;
        out.counter("tool_calls", "Tool calls that could be read", calls.calls() as f64)?;
        let malformed = calls.malformed() as f64;
        out.counter("tool_calls_malformed", "Tool calls that came back as text", malformed)?;
        out.counter("grammar_tokens", "Tokens held to a grammar", stats.guided_tokens as f64)?;
        out.counter("grammar_seconds", "Time that took", stats.guide_time.as_secs_f64())?;
        if let Some(prefix) = engine.prefix() {
            let stats = prefix.stats();
            out.counter("prefix_cache_queries", "Prompts looked up", stats.lookups as f64)?;
            let hits = (stats.hits + stats.partial_hits) as f64;
            out.counter("prefix_cache_hits", "Prompts that began as a known one", hits)?;
            let saved = stats.tokens_saved as f64;
            out.counter("prefix_cache_tokens_saved", "Prompt tokens that were not computed", saved)?;
            out.gauge("prefix_cache_bytes", "Bytes of prefixes in memory", stats.l1.bytes as f64)?;
            out.gauge(
                "prefix_cache_max_bytes",
                "Most bytes of prefixes in memory",
                stats.l1.max_bytes as f64,
            )?;
            if let Some(disk) = stats.l2 {
                out.gauge("prefix_cache_disk_bytes", "Bytes of prefixes on disk", disk.bytes as f64)?;
            }
        }
        if let Some(bank) = engine.streaming() {
            let total = &bank.total;
            out.counter("expert_bank_hits", "Experts that decoding found in the bank", total.hits as f64)?;
            out.counter("expert_bank_misses", "Experts that decoding had to read", total.misses as f64)?;
            out.counter("expert_bank_evictions", "Experts that made room", total.evictions as f64)?;
            out.gauge("expert_bank_resident", "Experts in the bank", total.resident_slots as f64)?;
            out.gauge("expert_bank_slots", "Experts that the bank holds", bank.bank_slots as f64)?;
            out.counter("expert_read_bytes", "Bytes of experts read", bank.total.reads.bytes_read as f64)?;
            out.counter("expert_stall_seconds", "Time that computing waited for reads", total.stall_seconds)?;
        }
        Ok(())
    }
}

fn decoding(out: &mut MetricWriter<'_>, stats: &EngineStats) -> fmt::Result {
    let specdec = &stats.specdec;
    out.counter("decode_passes", "Passes of the model while decoding", specdec.cycles as f64)?;
    out.counter("decode_tokens", "Tokens that they brought", stats.decode_tokens as f64)?;
    out.counter("decode_seconds", "Their time, proposals included", stats.decode_time.as_secs_f64())?;
    out.counter("batched_passes", "Passes that several sequences shared", stats.batched_passes as f64)?;
    out.counter("batched_tokens", "Tokens that those brought", stats.batched_tokens as f64)?;
    out.counter("num_preemptions", "Sequences that gave way for want of memory", stats.preemptions as f64)?;
    let held = specdec.guard.held_back as f64;
    out.counter("spec_decode_held_back", "Passes whose block the guard shortened or skipped", held)?;
    out.counter("spec_decode_num_drafts", "Passes with a proposal", specdec.observed_cycles as f64)?;
    out.counter("spec_decode_num_draft_tokens", "Tokens proposed", specdec.specdec_drafted as f64)?;
    out.counter("spec_decode_num_accepted_tokens", "Tokens accepted", specdec.specdec_accepted as f64)
}
