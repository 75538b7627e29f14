//! The server over an engine that is none of ours: canned tokens, no model, no thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mach_api::ChatTemplate;
use mach_engine::{
    DecodeMode, EngineError, EngineMetrics, EngineStats, Event, Events, FinishReason, GenerateRequest,
    Generator, GeneratorFacts, SamplingParams, Started, TextTokenizer, Timings, Unread, channel,
};
use mach_server::{ChatModel, Decoding, Readiness, ServerConfig, Templates, serve};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const VOCAB: usize = 16384;
/// What requests may take: a quarter of it is held, the rest is for work.
const MEMORY: usize = 64 << 20;

/// What a test sees of the engine, and what it tells it.
#[derive(Debug, Default)]
struct Switches {
    closed: AtomicBool,
    /// The engine died.
    dead: AtomicBool,
}

/// Says the same words to everybody; fails on a prompt that asks for it, at once or in the middle.
#[derive(Debug)]
struct Canned {
    words: Vec<&'static str>,
    tokenizer: Arc<TextTokenizer>,
    metrics: EngineMetrics,
    switches: Arc<Switches>,
    unread: Arc<Unread>,
}

impl Generator for Canned {
    fn submit_and_tell(
        &self,
        request: GenerateRequest,
    ) -> Result<(Events, oneshot::Receiver<Started>), EngineError> {
        if self.switches.closed.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        let prompt = self.tokenizer.stream(&request.prompt, &[]);
        if prompt.contains("be full") {
            return Err(EngineError::QueueFull { waiting: 7, retry_after: 3 });
        }
        let (events, receiver) = channel(&self.unread);
        let (started, begun) = oneshot::channel();
        let _ = started.send(Started { mode: DecodeMode::TargetOnly, active: 1 });
        if prompt.contains("break") {
            events.send(Event::Failed(EngineError::Model("as told".into())));
            return Ok((receiver, begun));
        }
        let breaks = prompt.contains("stumble").then_some(2);
        for word in self.words.iter().take(breaks.unwrap_or(self.words.len())) {
            events.send(Event::Text { choice: 0, text: (*word).to_owned(), logprobs: Vec::new() });
        }
        if breaks.is_some() {
            events.send(Event::Failed(EngineError::Model("in the middle".into())));
            return Ok((receiver, begun));
        }
        events.send(Event::Finished {
            choice: 0,
            reason: FinishReason::Stop,
            tokens: self.words.len(),
            timings: Timings::default(),
            cached: 0,
            ids: None,
            stopped_by: None,
        });
        Ok((receiver, begun))
    }

    fn facts(&self) -> GeneratorFacts {
        GeneratorFacts { context: 400, vocab: VOCAB, kv: None, continuous_batching: false }
    }

    fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    fn waiting(&self) -> usize {
        0
    }

    fn busy(&self) -> bool {
        false
    }

    fn running(&self) -> bool {
        !self.switches.dead.load(Ordering::SeqCst)
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    fn close(&self) {
        self.switches.closed.store(true, Ordering::SeqCst);
    }

    fn abort(&self) {
        self.close();
    }

    fn join(&self) {}
}

fn model(switches: Arc<Switches>) -> ChatModel {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(path).unwrap();
    let engine = Canned {
        words: vec!["four", " canned", " words", " here"],
        tokenizer: Arc::new(TextTokenizer::new(tokenizer, VOCAB).unwrap()),
        metrics: EngineMetrics::default(),
        switches,
        unread: Arc::default(),
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

async fn get(port: u16, path: &str) -> String {
    send(port, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
}

async fn post(port: u16, path: &str, body: Value) -> String {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json"
    );
    send(port, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await
}

async fn chat(port: u16, content: &str, stream: bool) -> String {
    let messages = json!([{"role": "user", "content": content}]);
    post(port, "/v1/chat/completions", json!({"model": "canned", "messages": messages, "stream": stream}))
        .await
}

fn document(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// What a stream said, and the error that it ended with.
fn streamed(answer: &str) -> (String, Option<Value>) {
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("data: [DONE]"), "{answer}");
    let events = answer.lines().filter_map(|line| line.split_once("data: ").map(|(_, data)| data));
    let pieces: Vec<Value> = events.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let text = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    (text, pieces.iter().find_map(|p| p.get("error").cloned()))
}

/// A server over a canned engine; its port, the engine's switches, and what stops it.
async fn start() -> (u16, Arc<Switches>, impl AsyncFnOnce()) {
    let (readiness, switches) = (Readiness::loading(), Arc::new(Switches::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    readiness.ready(model(Arc::clone(&switches)).with_request_memory(MEMORY, MEMORY, 1));
    let task = tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.await;
        };
        serve(listener, ServerConfig::default(), readiness, stop).await.unwrap();
    });
    let end = async move || {
        stop.send(()).unwrap();
        task.await.unwrap();
    };
    (port, switches, end)
}

#[tokio::test]
async fn another_engine_answers_streams_and_fails() {
    let (port, switches, end) = start().await;

    let whole = chat(port, "hello", false).await;
    assert!(whole.starts_with("HTTP/1.1 200"), "{whole}");
    let whole = document(&whole);
    assert_eq!(whole["choices"][0]["message"]["content"], "four canned words here");
    assert_eq!(whole["usage"]["completion_tokens"], 4);
    assert_eq!(streamed(&chat(port, "hello", true).await), ("four canned words here".to_owned(), None));

    for content in ["please break", "please stumble"] {
        let failed = chat(port, content, false).await;
        assert!(failed.starts_with("HTTP/1.1 500"), "{failed}");
        assert_eq!(document(&failed)["error"]["type"], "server_error");
    }
    let (text, error) = streamed(&chat(port, "please stumble", true).await);
    assert_eq!(text, "four canned");
    assert!(error.unwrap()["message"].as_str().unwrap().contains("in the middle"));
    let full = chat(port, "be full", false).await;
    assert!(full.starts_with("HTTP/1.1 429") && full.to_lowercase().contains("retry-after: 3"), "{full}");
    let long = chat(port, &"word ".repeat(100_000), false).await;
    assert!(
        long.starts_with("HTTP/1.1 400") && long.contains("400 tokens"),
        "the context is its own: {long}"
    );

    end().await;
    assert!(switches.closed.load(Ordering::SeqCst), "draining closes the engine");
}

#[tokio::test]
async fn every_route_does_without_what_another_engine_lacks() {
    let (port, switches, end) = start().await;
    for path in ["/metrics", "/v1/models", "/v1/stats", "/v1/capabilities", "/health", "/openapi.json"] {
        let answer = get(port, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let tokens = post(port, "/tokenize", json!({"prompt": "hello"})).await;
    assert_eq!(document(&tokens)["max_model_len"], 400);
    let stats = document(&get(port, "/v1/cache/stats").await);
    assert!(stats["prefix_cache"].is_null() && stats["streaming_summary"].is_null(), "{stats}");
    assert_eq!(document(&get(port, "/v1/cache/warm_prefix").await)["data"], json!([]));
    let warm = post(port, "/v1/cache/warm_prefix", json!({"prompt": "hello"})).await;
    assert!(warm.starts_with("HTTP/1.1 400") && warm.contains("cache is off"), "{warm}");

    switches.dead.store(true, Ordering::SeqCst);
    assert!(get(port, "/health").await.contains(r#""status":"stopped""#));
    assert!(chat(port, "hello", false).await.starts_with("HTTP/1.1 503"));
    end().await;
}

/// The status of a request whose body may be refused before it was sent; 0 if the connection was reset instead.
async fn status(port: u16, path: &str, body: String) -> (u16, String) {
    let (stream, head) = (TcpStream::connect(("127.0.0.1", port)).await.unwrap(), body.len());
    let (mut reader, mut writer) = stream.into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {head}\r\n\r\n"
    );
    let sent = tokio::spawn(async move {
        let _ = writer.write_all(head.as_bytes()).await;
        let _ = writer.write_all(body.as_bytes()).await;
        writer
    });
    let mut answer = Vec::new();
    let _ = reader.read_to_end(&mut answer).await;
    drop(sent.await);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), answer)
}

async fn charged(port: u16) -> Vec<String> {
    let metrics = get(port, "/metrics").await;
    let of = |kind: &str| {
        let name = format!("mach_request_memory_{kind}_bytes ");
        metrics.lines().find_map(|line| line.strip_prefix(name.as_str())).unwrap_or("missing").to_owned()
    };
    vec![of("held"), of("working")]
}

#[tokio::test]
async fn what_cannot_fit_is_refused_by_its_length() {
    let (port, _, end) = start().await;
    let long = "word ".repeat(600_000);
    let chat = json!({"messages": [{"role": "user", "content": long}]});
    // Answers of the model are left out of a prompt by some templates; then the rendered text is looked at.
    let said = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "word ".repeat(60_000)},
        {"role": "user", "content": "b"}]});
    for (path, body) in [
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", said),
        ("/v1/completions", json!({"prompt": long})),
        ("/v1/completions", json!({"prompt": vec![1; 500]})),
        ("/tokenize", json!({"prompt": long})),
        ("/tokenize", chat),
    ] {
        let (status, answer) = status(port, path, body.to_string()).await;
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(answer.contains(r#""code":"context_length_exceeded""#), "{path}: {answer}");
        assert!(answer.contains("context of 400 tokens"), "{path}: {answer}");
    }
    // What parsing would take is known before it is parsed.
    let values = format!(r#"{{"messages":[{}0]}}"#, "0,".repeat(400_000));
    for path in
        ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/cache/warm_prefix"]
    {
        let (status, answer) = status(port, path, values.clone()).await;
        assert_eq!(status, 413, "{path}: {answer}");
        assert!(
            answer.contains(r#""code":"request_too_large""#) && answer.contains("MiB"),
            "{path}: {answer}"
        );
    }
    let texts = json!({"tokens": vec![VOCAB - 200; 1_000_000]}).to_string();
    assert_eq!(status(port, "/detokenize", texts).await.0, 413);
    assert_eq!(charged(port).await, ["0.0", "0.0"]);
    end().await;
}

#[tokio::test]
async fn half_sent_bodies_leave_room_for_others() {
    let (port, _, end) = start().await;
    let half = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(" ".repeat(4_500_000).as_bytes()).await;
        stream
    };
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(half().await);
    }
    let mut refused = 0;
    for stream in &mut streams {
        let mut answer = [0; 400];
        let read =
            tokio::time::timeout(std::time::Duration::from_millis(100), stream.read(&mut answer)).await;
        let Ok(Ok(read)) = read else { continue };
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        // Others were reset while they were sent.
        if answer.starts_with("HTTP/1.1 429") {
            assert!(
                answer.contains(r#""code":"memory_limit""#) && answer.contains("retry-after: 1"),
                "{answer}"
            );
            refused += 1;
        }
    }
    assert!(refused > 0, "twelve times five megabytes do not fit a quarter of the memory");
    assert!(charged(port).await[0].parse::<f64>().unwrap() <= MEMORY as f64 / 4.0);
    let small = chat(port, "hello", false).await;
    assert!(small.starts_with("HTTP/1.1 200"), "{small}");
    drop(streams);
    for _ in 0..500 {
        if charged(port).await == ["0.0", "0.0"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(charged(port).await, ["0.0", "0.0"], "what has gone holds nothing");
    end().await;
}
