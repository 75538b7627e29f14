//! What serving costs beside the model: HTTP, template, tokens to text and events, over a model that takes no time.

mod client;
mod free;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mach_checkpoint::Checkpoint;
use mach_engine::{Engine, EngineConfig, SamplingParams, TextTokenizer};
use mach_server::{ChatModel, Decoding, Readiness, ServerConfig, Templates};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use free::Free;

/// Tokens a second that serving should sustain on two cores.
pub const TARGET_TOKENS: f64 = 50_000.0;
/// Milliseconds that serving may add to the time to the first token of a long prompt, beyond tokenising it.
pub const TARGET_TTFT_MS: f64 = 2.0;

const NAME: &str = "free";

/// What is measured.
#[derive(Debug, Clone, Serialize)]
pub struct ServePlan {
    /// Streams at one time.
    pub streams: usize,
    /// Tokens of each.
    pub tokens: u32,
    /// Tokens of the long prompt, at least.
    pub prompt: usize,
    /// Repeats, each with new connections.
    pub reps: usize,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct ServeReport {
    /// What was measured.
    pub plan: ServePlan,
    /// Tokens a second over all streams, one value a repeat.
    pub tokens_per_second: Vec<f64>,
    /// Bytes of events a token.
    pub bytes_per_token: f64,
    /// Tokens of the long prompt.
    pub prompt_tokens: usize,
    /// Median milliseconds from the connection to the first token's event.
    pub ttft_ms: f64,
    /// Median milliseconds of tokenising the prompt alone.
    pub tokenise_ms: f64,
    /// The best repeat of each, which other work on the machine disturbs least.
    pub best_ms: [f64; 2],
}

impl ServeReport {
    /// Milliseconds beyond tokenisation.
    pub fn added_ms(&self) -> f64 {
        self.ttft_ms - self.tokenise_ms
    }

    /// As [`added_ms`](Self::added_ms), of the best repeats.
    pub fn least_added_ms(&self) -> f64 {
        let [ttft, tokenise] = self.best_ms;
        ttft - tokenise
    }

    /// The median repeat.
    pub fn tokens(&self) -> f64 {
        median(self.tokens_per_second.clone())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Measures with the tokenizer and the template of a checkpoint.
pub fn measure_serve(checkpoint: &Checkpoint, plan: ServePlan) -> Result<ServeReport> {
    let vocab = checkpoint.config().vocab_size;
    let tokenizer = Arc::new(TextTokenizer::new(checkpoint.tokenizer()?, vocab)?);
    let templates = Templates::of(checkpoint)?.context("the checkpoint has no chat template")?;
    let text = tokenizer.encode(" the quick brown fox jumps over a lazy dog", false)?;
    let context = 2 * plan.prompt + plan.tokens as usize + 1024;
    let free = Free::new(checkpoint.config().clone(), context, text);
    let config = EngineConfig {
        max_batch: plan.streams,
        queue_capacity: plan.streams,
        max_context: Some(context),
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(free), Arc::clone(&tokenizer), config)?;
    let (path, policy, guard) = (DecodePath::TargetOnly, PolicySpec::Off, GuardSpec::Off);
    let decoding = Decoding { path, gate: resolve(path, policy, false, DraftState::Absent), policy, guard };
    let greedy = SamplingParams::greedy();
    let model = ChatModel::new(engine, Some(templates), greedy, Vec::new(), vec![NAME.into()], decoding);
    let readiness = Readiness::loading();
    readiness.ready(model);

    // As many threads as the server has, and one for all clients.
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = server.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.spawn(mach_server::serve(listener, ServerConfig::default(), readiness, async {
        let _ = stopped.await;
    }));

    let body = |text: &str, tokens: u32| {
        let messages = json!([{"role": "user", "content": text}]);
        let fields = json!({"model": NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": true});
        client::post("/v1/chat/completions", &fields.to_string())
    };
    let mut tokens_per_second = Vec::new();
    let mut bytes = 0;
    for _ in 0..plan.reps {
        let request = body("Hello", plan.tokens);
        let started = Instant::now();
        let read = clients.block_on(async {
            let streams = (0..plan.streams).map(|_| client::drain(address, &request));
            futures_util::future::try_join_all(streams).await
        })?;
        let seconds = started.elapsed().as_secs_f64();
        bytes = read.iter().sum();
        tokens_per_second.push(plan.streams as f64 * f64::from(plan.tokens) / seconds);
    }
    let long = long_text(&tokenizer, plan.prompt)?;
    let (mut ttft, mut tokenise) = (Vec::new(), Vec::new());
    let mut prompt_tokens = 0;
    for _ in 0..plan.reps.max(15) {
        let started = Instant::now();
        prompt_tokens = tokenizer.encode(&long, false)?.len();
        tokenise.push(1e3 * started.elapsed().as_secs_f64());
        let request = body(&long, 2);
        let took = clients.block_on(client::first_token(address, &request))?;
        ttft.push(1e3 * took.as_secs_f64());
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = stop.send(());
    server.block_on(serving)??;
    let best = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    ensure!(prompt_tokens >= plan.prompt, "the long prompt is short");
    Ok(ServeReport {
        bytes_per_token: bytes as f64 / (plan.streams as f64 * f64::from(plan.tokens)),
        plan,
        tokens_per_second,
        prompt_tokens,
        best_ms: [best(&ttft), best(&tokenise)],
        ttft_ms: median(ttft),
        tokenise_ms: median(tokenise),
    })
}

/// A text of at least `tokens` tokens, like the prompts of agents: prose and code.
fn long_text(tokenizer: &TextTokenizer, tokens: usize) -> Result<String> {
    let piece = "Read the file and tell what it does.\n```python\ndef add(a, b):\n    return a + b\n```\n";
    let each = tokenizer.encode(piece, false)?.len().max(1);
    Ok(piece.repeat(tokens / each + 1 + tokens / each / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_finds_figures() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo");
        let checkpoint = Checkpoint::open(demo.as_ref()).unwrap();
        let plan = ServePlan { streams: 3, tokens: 20, prompt: 300, reps: 2 };
        let report = measure_serve(&checkpoint, plan).unwrap();
        assert_eq!(report.tokens_per_second.len(), 2);
        assert!(report.tokens() > 0.0 && report.tokenise_ms > 0.0 && report.added_ms().is_finite());
        // Each stream says something of its twenty tokens.
        assert!(report.bytes_per_token > 5.0 && report.prompt_tokens >= 300);
    }
}
