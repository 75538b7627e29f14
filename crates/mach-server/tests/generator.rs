//! The server over an engine that is none of ours: canned tokens, no model, no thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mach_api::ChatTemplate;
use mach_engine::{
    DecodeMode, EngineError, EngineMetrics, EngineStats, Event, Events, FinishReason, GenerateRequest,
    Generator, GeneratorFacts, SamplingParams, Started, TextTokenizer, Timings,
};
use mach_server::{ChatModel, Decoding, Readiness, ServerConfig, Templates, serve};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const VOCAB: usize = 16384;

/// Says the same words to everybody; fails on a prompt that asks for it.
#[derive(Debug)]
struct Canned {
    words: Vec<&'static str>,
    tokenizer: Arc<TextTokenizer>,
    metrics: EngineMetrics,
    closed: Arc<AtomicBool>,
}

impl Generator for Canned {
    fn submit_and_tell(
        &self,
        request: GenerateRequest,
    ) -> Result<(Events, oneshot::Receiver<Started>), EngineError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        let prompt = self.tokenizer.stream(&request.prompt);
        if prompt.contains("be full") {
            return Err(EngineError::QueueFull { waiting: 7, retry_after: 3 });
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let (started, begun) = oneshot::channel();
        let _ = started.send(Started { mode: DecodeMode::TargetOnly, active: 1 });
        if prompt.contains("break") {
            let _ = events.send(Event::Failed(EngineError::Model("as told".into())));
            return Ok((receiver, begun));
        }
        for word in &self.words {
            let _ = events.send(Event::Text { choice: 0, text: (*word).to_owned(), logprobs: Vec::new() });
        }
        let _ = events.send(Event::Finished {
            choice: 0,
            reason: FinishReason::Stop,
            tokens: self.words.len(),
            timings: Timings::default(),
            cached: 0,
            ids: None,
        });
        Ok((receiver, begun))
    }

    fn facts(&self) -> GeneratorFacts {
        GeneratorFacts { context: 400, vocab: VOCAB, kv: None, continuous_batching: false }
    }

    fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    fn waiting(&self) -> usize {
        0
    }

    fn busy(&self) -> bool {
        false
    }

    fn running(&self) -> bool {
        true
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn abort(&self) {
        self.close();
    }

    fn join(&self) {}
}

fn model(closed: Arc<AtomicBool>) -> ChatModel {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(path).unwrap();
    let engine = Canned {
        words: vec!["four", " canned", " words", " here"],
        tokenizer: Arc::new(TextTokenizer::new(tokenizer, VOCAB).unwrap()),
        metrics: EngineMetrics::default(),
        closed,
    };
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let templates = Templates::single(ChatTemplate::compile(source, Map::new()).unwrap());
    let (path, policy) = (DecodePath::SpecdecV7, PolicySpec::OpencodeSampledV1);
    let gate = resolve(path, policy, false, DraftState::Absent);
    let decoding = Decoding { path, gate, policy, guard: GuardSpec::CostAware };
    ChatModel::new(engine, Some(templates), SamplingParams::greedy(), vec![], vec!["canned".into()], decoding)
}

async fn send(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn chat(port: u16, content: &str, stream: bool) -> String {
    let body =
        json!({"model": "canned", "messages": [{"role": "user", "content": content}], "stream": stream});
    let body = body.to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
    send(port, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await
}

fn document(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn another_engine_serves_the_same_routes() {
    let closed = Arc::new(AtomicBool::new(false));
    let readiness = Readiness::loading();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    readiness.ready(model(Arc::clone(&closed)));
    let task = tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.await;
        };
        serve(listener, ServerConfig::default(), readiness, stop).await.unwrap();
    });

    let whole = chat(port, "hello", false).await;
    assert!(whole.starts_with("HTTP/1.1 200"), "{whole}");
    let whole = document(&whole);
    assert_eq!(whole["choices"][0]["message"]["content"], "four canned words here");
    assert_eq!(whole["usage"]["completion_tokens"], 4);

    let streamed = chat(port, "hello", true).await;
    let events = streamed.lines().filter_map(|line| line.split_once("data: ").map(|(_, data)| data));
    let pieces: Vec<Value> = events.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let text: String = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "four canned words here");
    assert!(streamed.contains("[DONE]"));

    let failed = chat(port, "please break", false).await;
    assert!(failed.starts_with("HTTP/1.1 500"), "{failed}");
    let full = chat(port, "be full", false).await;
    assert!(full.starts_with("HTTP/1.1 429") && full.to_lowercase().contains("retry-after: 3"), "{full}");

    for path in ["/metrics", "/v1/models", "/health", "/v1/prefix_cache"] {
        let answer =
            send(port, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(!answer.starts_with("HTTP/1.1 5"), "{path}: {answer}");
    }

    stop.send(()).unwrap();
    task.await.unwrap();
    assert!(closed.load(Ordering::SeqCst), "draining closes the engine");
}
