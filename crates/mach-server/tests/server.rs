//! Readiness and failures of the server, with a test double for the model.

#[path = "../../mach-engine/tests/double/mod.rs"]
mod double;

use std::sync::Arc;
use std::time::Duration;

use double::Double;
use mach_api::ChatTemplate;
use mach_engine::{Engine, EngineConfig, SamplingParams, TextTokenizer};
use mach_server::{ChatModel, Decoding, Readiness, ServerConfig, Templates, serve};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const VOCAB: usize = 16384;

fn tokenizer() -> Arc<TextTokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    Arc::new(TextTokenizer::new(tokenizers::Tokenizer::from_file(path).unwrap(), VOCAB).unwrap())
}

fn model(change: impl FnOnce(&mut Double)) -> ChatModel {
    let mut double = Double::new(VOCAB, 500);
    change(&mut double);
    let engine = Engine::start(Box::new(double), tokenizer(), EngineConfig::default()).unwrap();
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let templates = Templates::single(ChatTemplate::compile(source, Map::new()).unwrap());
    let (path, policy) = (DecodePath::SpecdecV7, PolicySpec::OpencodeSampledV1);
    let gate = resolve(path, policy, false, DraftState::Absent);
    let decoding = Decoding { path, gate, policy, guard: GuardSpec::CostAware };
    ChatModel::new(engine, Some(templates), SamplingParams::greedy(), vec![], vec!["double".into()], decoding)
}

/// Starts a server; gives its port and the switch that stops it.
async fn start(readiness: Arc<Readiness>) -> (u16, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel();
    let config = ServerConfig { drain_timeout: Duration::from_secs(5), ..ServerConfig::default() };
    let task = tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.await;
        };
        serve(listener, config, readiness, stop).await.unwrap();
    });
    (port, stop, task)
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

async fn chat(port: u16, content: &str, extra: &str) -> String {
    let content = Value::from(content);
    let body = format!(
        r#"{{"model":"double","messages":[{{"role":"user","content":{content}}}],"max_tokens":5{extra}}}"#
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    send(port, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await
}

#[tokio::test]
async fn a_loading_model_is_503_and_then_200() {
    let readiness = Readiness::loading();
    let (port, stop, task) = start(Arc::clone(&readiness)).await;
    readiness.progress(1, 4);
    for path in ["/v1/models", "/v1/models/double"] {
        let answer = get(port, path).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("25 %"), "{answer}");
    }
    assert!(chat(port, "hi", "").await.starts_with("HTTP/1.1 503"));
    let health = get(port, "/health").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains(r#""status":"loading""#), "{health}");
    readiness.ready(model(|_| ()));
    for path in ["/v1/models", "/v1/models/double", "/health"] {
        assert!(get(port, path).await.starts_with("HTTP/1.1 200"));
    }
    assert!(chat(port, "hi", "").await.contains(r#""finish_reason":"length""#));
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn a_panic_in_the_model_is_500_for_one_request() {
    let readiness = Readiness::loading();
    let poison = tokenizer().encode("poison", false).unwrap()[0];
    readiness.ready(model(|d| d.panic_on = Some(poison)));
    let (port, _stop, _task) = start(readiness).await;
    let answer = chat(port, "poison", "").await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("server_error"), "{answer}");
    let streamed = chat(port, "poison", r#","stream":true"#).await;
    assert!(streamed.starts_with("HTTP/1.1 200") && streamed.contains(r#"data: {"error":"#), "{streamed}");
    assert!(streamed.contains("data: [DONE]"));
    assert!(chat(port, "hi", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_engine_that_stopped_is_503() {
    let readiness = Readiness::loading();
    let model = readiness.ready(model(|_| ()));
    model.engine.close();
    model.engine.join();
    let (port, _stop, _task) = start(Arc::clone(&readiness)).await;
    assert!(get(port, "/health").await.contains(r#""status":"stopped""#));
    assert!(chat(port, "hi", "").await.starts_with("HTTP/1.1 503"));
}
