//! Clients that are slow, foreign, or no clients at all: what they are told, and what they may hold.

// Other test binaries use more of it.
#[allow(dead_code)]
#[path = "../../mach-engine/tests/double/mod.rs"]
mod double;

use std::sync::Arc;
use std::time::{Duration, Instant};

use double::Double;
use mach_engine::{Engine, EngineConfig, SamplingParams, TextTokenizer, Unread};
use mach_server::{ChatModel, Decoding, Hosts, Readiness, ServerConfig, serve};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const VOCAB: usize = 16384;

struct Server {
    port: u16,
    readiness: Arc<Readiness>,
    unread: Arc<Unread>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Double, &mut EngineConfig, &mut ServerConfig)) -> Self {
        let mut double = Double::new(VOCAB, 500);
        let (mut engine, mut server) = (EngineConfig::default(), ServerConfig::default());
        change(&mut double, &mut engine, &mut server);
        let unread = Arc::clone(&engine.unread);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
        let tokenizer = TextTokenizer::new(tokenizers::Tokenizer::from_file(path).unwrap(), VOCAB).unwrap();
        let engine = Engine::start(Box::new(double), Arc::new(tokenizer), engine).unwrap();
        let (path, policy) = (DecodePath::SpecdecV7, PolicySpec::OpencodeSampledV1);
        let gate = resolve(path, policy, false, DraftState::Absent);
        let decoding = Decoding { path, gate, policy, guard: GuardSpec::CostAware };
        let names = vec!["double".into()];
        let model = ChatModel::new(engine, None, SamplingParams::greedy(), vec![], names, decoding);
        let readiness = Readiness::loading();
        readiness.ready(model);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let for_server = Arc::clone(&readiness);
        tokio::spawn(serve(listener, server, for_server, std::future::pending()));
        Self { port, readiness, unread }
    }

    fn busy(&self) -> bool {
        let engine = &self.readiness.model().unwrap().engine;
        engine.busy() || engine.waiting() > 0
    }

    /// Sends bytes and reads what comes until the end.
    async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        Answer::of(&answer)
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> Answer {
        self.raw(post(path, headers, body).as_bytes()).await
    }

    /// A connection whose buffer is small, with a request whose answer is large.
    async fn lazy(&self, fields: Value) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        let mut stream = socket.connect(([127, 0, 0, 1], self.port).into()).await.unwrap();
        let mut body =
            json!({"model": "double", "prompt": "Once", "max_tokens": 480, "logprobs": 20, "n": 4});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = post("/v1/completions", "", &body.to_string());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         {headers}content-length: {length}\r\n\r\n{body}"
    )
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The code of an error of the shape that all have.
    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        let error = &body["error"];
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert!(error["type"].as_str().is_some() && error.get("param").is_some(), "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        assert!(self.head.contains("x-request-id: "), "{self:?}");
        error["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn until(what: &str, at_most: Duration, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < at_most, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_refusal_has_a_body() {
    let server = Server::start(|_, _, c| c.max_body = 1000).await;
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n")
    };
    let many: String = (0..150).map(|i| format!("x-{i}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(100_000));
    let larger = format!("x-large: {}\r\n", "x".repeat(1_000_000));
    let chat = "/v1/chat/completions";
    let cases = [
        ("no HTTP".to_owned(), b"\x16\x03\x01\x02\x00nonsense\r\n\r\n".to_vec(), 400, ""),
        ("half a line".to_owned(), b"GET\r\n\r\n".to_vec(), 400, ""),
        ("a version".to_owned(), b"GET / HTTP/7.1\r\n\r\n".to_vec(), 400, ""),
        ("a header".to_owned(), get("/health", "x\x01y: 1\r\n").into(), 400, ""),
        ("a length".to_owned(), get(chat, "content-length: x\r\n").into(), 400, ""),
        ("two lengths".to_owned(), get(chat, "content-length: 1\r\ncontent-length: 2\r\n").into(), 400, ""),
        ("many headers".to_owned(), get("/health", &many).into(), 431, "request_too_large"),
        ("a large head".to_owned(), get("/health", &large).into(), 431, "request_too_large"),
        ("a larger head".to_owned(), get("/health", &larger).into(), 431, "request_too_large"),
        (
            "a long address".to_owned(),
            get(&format!("/{}", "x".repeat(66_000)), "").into(),
            414,
            "request_too_large",
        ),
        ("no route".to_owned(), get("/v1/nothing", "").into(), 404, "unknown_url"),
        ("no model".to_owned(), get("/v1/models/x", "").into(), 404, "model_not_found"),
        ("no text".to_owned(), get("/v1/models/%ff", "").into(), 400, ""),
        ("no salt".to_owned(), get("/v1/cache/warm_prefix?cache_salt=a&cache_salt=b", "").into(), 400, ""),
        ("a method".to_owned(), get(chat, "").into(), 405, "method_not_allowed"),
        ("options".to_owned(), get(chat, "").replace("GET", "OPTIONS").into(), 405, "method_not_allowed"),
        (
            "a tunnel".to_owned(),
            b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec(),
            404,
            "unknown_url",
        ),
        ("a form".to_owned(), post(chat, "", "{}").replace("application/json", "text/plain").into(), 415, ""),
        ("a large body".to_owned(), post(chat, "", &"x".repeat(2_000_000)).into(), 413, "request_too_large"),
        ("no JSON".to_owned(), post(chat, "", "{").into(), 400, ""),
        ("two hosts".to_owned(), get("/health", "host: localhost\r\n").into(), 400, ""),
        (
            "a foreign host".to_owned(),
            get("/health", "").replace("localhost", "evil.example").into(),
            403,
            "host_not_allowed",
        ),
        (
            "a foreign page".to_owned(),
            get("/health", "origin: https://evil.example\r\n").into(),
            403,
            "origin_not_allowed",
        ),
    ];
    for (what, request, status, code) in cases {
        let answer = server.raw(&request).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {answer:?}");
    }
    assert_eq!(server.raw(get("/health", "").as_bytes()).await.status, 200);
}

#[tokio::test]
async fn half_a_head_is_told_and_silence_is_not() {
    let server = Server::start(|_, _, c| c.head_timeout = Duration::from_millis(200)).await;
    let answer = server.raw(b"GET /health HTTP/1.1\r\nhost: loc").await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    let mut silent = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let mut nothing = Vec::new();
    silent.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty());
    // Nor does one that stays open after an answer hear of it.
    let mut kept = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    kept.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    kept.read_to_end(&mut all).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&all).matches("HTTP/1.1 ").count(), 1);
}

#[tokio::test]
async fn who_has_a_key_may_come_from_anywhere() {
    let request = |key: &str| {
        format!(
            "GET /v1/models HTTP/1.1\r\nhost: gpu.example\r\norigin: https://a.example\r\nconnection: close\r\n{key}\r\n"
        )
    };
    let server = Server::start(|_, _, c| c.api_key = Some("k".into())).await;
    assert_eq!(server.raw(request("x-api-key: k\r\n").as_bytes()).await.status, 200);
    assert_eq!(server.raw(request("").as_bytes()).await.status, 401);
    // Unless names are given.
    let named = Server::start(|_, _, c| {
        c.api_key = Some("k".into());
        c.allowed_hosts = Some(Hosts::parse(&["other.example".to_owned()]).unwrap());
    })
    .await;
    assert_eq!(named.raw(request("x-api-key: k\r\n").as_bytes()).await.code(), "host_not_allowed");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cut_and_its_generation_cancelled() {
    let server = Server::start(|d, _, c| {
        d.pace = Duration::from_millis(20);
        c.write_timeout = Some(Duration::from_millis(300));
    })
    .await;
    // 480 passes of 20 ms.
    let mut lazy = server.lazy(json!({"stream": true})).await;
    until("it begins", Duration::from_secs(5), || server.busy()).await;
    until("it is cancelled", Duration::from_secs(7), || !server.busy()).await;
    let mut rest = Vec::new();
    let _ = lazy.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    until("nothing is held", Duration::from_secs(1), || server.unread.held() == 0).await;
}

#[tokio::test]
async fn a_large_answer_that_nobody_reads_is_cut() {
    let server = Server::start(|_, _, c| c.write_timeout = Some(Duration::from_millis(300))).await;
    let mut lazy = server.lazy(json!({})).await;
    until("it is written", Duration::from_secs(20), || server.unread.held() > 1 << 20).await;
    until("it is cut", Duration::from_secs(5), || server.unread.held() == 0).await;
    let mut rest = Vec::new();
    // A reset, or the part that the kernel held.
    let _ = lazy.read_to_end(&mut rest).await;
    assert!(rest.len() < 1 << 20, "{}", rest.len());
}

#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let server = Server::start(|_, _, c| c.write_timeout = Some(Duration::from_millis(500))).await;
    let whole = {
        let mut quick = server.lazy(json!({"seed": 1})).await;
        let mut all = Vec::new();
        quick.read_to_end(&mut all).await.unwrap();
        Answer::of(&all).body.len()
    };
    let mut slow = server.lazy(json!({"seed": 1})).await;
    let (mut all, mut piece, start) = (Vec::new(), vec![0; 1 << 20], Instant::now());
    loop {
        let read = slow.read(&mut piece).await.unwrap();
        if read == 0 {
            break;
        }
        all.extend_from_slice(&piece[..read]);
        if start.elapsed() < Duration::from_secs(2) {
            // The kernel lets a writer go on when a third of its buffer is free.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // Ids and times differ, not lengths.
    assert_eq!(Answer::of(&all).body.len(), whole);
}

#[tokio::test]
async fn what_waits_to_be_read_has_a_bound() {
    let server = Server::start(|_, e, c| {
        e.unread = Arc::new(Unread::new(1 << 20));
        c.write_timeout = None;
    })
    .await;
    let mut lazy = server.lazy(json!({"stream": true})).await;
    until("it begins", Duration::from_secs(5), || server.busy()).await;
    until("it is given up", Duration::from_secs(20), || !server.busy()).await;
    assert!(server.unread.held() <= 66 << 10, "{}", server.unread.held());
    let mut all = Vec::new();
    lazy.read_to_end(&mut all).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains("the answer was not read: too much of it waits"), "{}", &text[text.len() - 500..]);
    // A whole answer beyond the bound is refused, not kept.
    let mut whole = server.lazy(json!({})).await;
    let mut all = Vec::new();
    whole.read_to_end(&mut all).await.unwrap();
    assert_eq!((Answer::of(&all).status, Answer::of(&all).code().as_str()), (503, "unavailable"));
    assert_eq!(server.unread.held(), 0);
}

#[tokio::test]
async fn as_many_prompts_as_a_request_may_have_fit_an_idle_server() {
    let server = Server::start(|_, e, _| e.queue_capacity = 1).await;
    let prompts: Vec<String> = (0..128).map(|i| format!("prompt {i}")).collect();
    for stream in [false, true] {
        let body =
            json!({"model": "double", "prompt": prompts, "max_tokens": 2, "stream": stream}).to_string();
        let answer = server.post("/v1/completions", "", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body.matches("\"finish_reason\":\"length\"").count(), 128);
    }
}

#[tokio::test]
async fn a_key_has_its_places_however_it_is_written() {
    let server = Server::start(|d, _, c| {
        d.pace = Duration::from_millis(20);
        c.max_concurrent_per_key = Some(1);
    })
    .await;
    let body = json!({"model": "double", "prompt": "Once", "max_tokens": 400, "stream": true}).to_string();
    let mut first = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let request = post("/v1/completions", "authorization: Bearer k\r\n", &body);
    first.write_all(request.as_bytes()).await.unwrap();
    first.read_u8().await.unwrap();
    let short = json!({"model": "double", "prompt": "Once", "max_tokens": 1}).to_string();
    for key in
        ["authorization: Bearer k", "Authorization:bearer  k ", "authorization: BEARER\tk", "x-api-key: k"]
    {
        let answer = server.post("/v1/completions", &format!("{key}\r\n"), &short).await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "concurrency_limit"), "{key}");
    }
    for key in ["authorization: Bearer other\r\n", "x-api-key: K\r\n", ""] {
        assert_eq!(server.post("/v1/completions", key, &short).await.status, 200, "{key}");
    }
}

#[tokio::test]
async fn keys_that_stand_twice_are_refused_everywhere() {
    let server = Server::start(|_, _, _| ()).await;
    let message = r#"{"role": "user", "content": "a", "role": "system"}"#;
    for (path, body, param) in [
        ("/v1/chat/completions", format!(r#"{{"messages": [{message}]}}"#), "messages[0].role"),
        ("/v1/completions", r#"{"prompt": "a", "max_tokens": 1, "prompt": "b"}"#.to_owned(), "prompt"),
        ("/tokenize", r#"{"prompt": "a", "prompt": "b"}"#.to_owned(), "prompt"),
        ("/detokenize", r#"{"tokens": [1], "tokens": [2]}"#.to_owned(), "tokens"),
        ("/v1/cache/warm_prefix", format!(r#"{{"messages": [{message}]}}"#), "messages[0].role"),
    ] {
        let answer = server.post(path, "", &body).await;
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (answer.status, error["error"]["param"].as_str()),
            (400, Some(param)),
            "{path}: {answer:?}"
        );
    }
}
