//! The prefix cache through the HTTP API: the same bytes whatever is cached, and what is cached.

mod common;

use std::path::Path;
use std::time::Duration;

use common::Server;
use serde_json::{Value, json};

const SYSTEM: &str = "You are a careful assistant. Answer in plain words, say what you know and what you do not, \
    and keep to the question that was asked. When there is a tool for a job, use it instead of guessing.";

fn conversation(turns: &[(&str, &str)], last: &str) -> Value {
    let mut messages = vec![json!({"role": "system", "content": SYSTEM})];
    for (user, assistant) in turns {
        messages.push(json!({"role": "user", "content": user}));
        messages.push(json!({"role": "assistant", "content": assistant}));
    }
    messages.push(json!({"role": "user", "content": last}));
    messages.into()
}

fn body(messages: &Value, temperature: f64) -> Value {
    json!({"messages": messages, "temperature": temperature, "seed": 4, "max_tokens": 24, "ignore_eos": true})
}

fn serve(dir: &Path, more: &[&str]) -> Server {
    let dir = dir.to_str().unwrap();
    Server::demo(&[&["--disk-kv-dir", dir, "--prefill-chunk", "37"], more].concat())
}

fn stop(mut server: Server) {
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)), 0);
}

/// The texts of a conversation of three turns and of an edit in its last one; and the cached tokens of each.
fn walk(server: &Server, temperature: f64) -> (Vec<String>, Vec<u64>) {
    let (mut texts, mut cached) = (Vec::new(), Vec::new());
    let mut ask = |messages: &Value| {
        let answer = server.chat(body(messages, temperature));
        texts.push(answer.text());
        cached.push(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
        texts.last().unwrap().clone()
    };
    let first = ask(&conversation(&[], "Tell me about the sea."));
    let second = ask(&conversation(&[("Tell me about the sea.", &first)], "And the fish?"));
    let so_far = [("Tell me about the sea.", first.as_str()), ("And the fish?", second.as_str())];
    ask(&conversation(&so_far, "Thank you."));
    ask(&conversation(&so_far, "Write a binary search in Python"));
    ask(&conversation(&[], "Tell me about the sea."));
    (texts, cached)
}

#[test]
fn the_same_bytes_cold_warm_restarted_and_evicted() {
    for temperature in [0.0, 1.0] {
        let plain = Server::demo(&["--no-prefix-cache", "--decode-path", "target-only"]);
        let (expected, cached) = walk(&plain, temperature);
        assert_eq!(cached, [0; 5]);
        drop(plain);
        for draft in ["specdec-v7", "target-only"] {
            let dir = tempfile::tempdir().unwrap();
            let server = serve(dir.path(), &["--decode-path", draft]);
            let (cold, cached) = walk(&server, temperature);
            assert_eq!(cold, expected, "{draft}");
            assert!(cached[1..].iter().all(|&n| n > 40), "{cached:?}");
            let (warm, cached) = walk(&server, temperature);
            assert_eq!(warm, expected, "{draft} from memory");
            assert!(cached.iter().all(|&n| n > 40), "{cached:?}");
            stop(server);
            let server = serve(dir.path(), &["--decode-path", draft]);
            let (again, cached) = walk(&server, temperature);
            assert_eq!(again, expected, "{draft} after a restart");
            assert!(cached.iter().all(|&n| n > 40), "{cached:?}");
            let stats = server.get("/v1/cache/stats").json()["prefix_cache"].clone();
            assert!(stats["l2_hits"].as_u64().unwrap() >= 1, "{stats}");
            drop(server);
            // One entry: the conversation is pushed out in the middle, and comes back from disk or is computed.
            let server = serve(dir.path(), &["--decode-path", draft, "--prefix-cache-max-entries", "1"]);
            assert_eq!(walk(&server, temperature).0, expected, "{draft} with evictions");
            drop(server);
            let server = Server::demo(&["--prefix-cache-max-gb", "0.001"]);
            assert_eq!(walk(&server, temperature).0, expected, "without room");
        }
    }
}

#[test]
fn a_turn_that_comes_back_is_cached_in_full() {
    let server = Server::demo(&[]);
    for stream in [false, true] {
        let question = if stream { "Tell me about the sea." } else { "What is a list?" };
        let mut fields = json!({"messages": conversation(&[], question), "temperature": 0, "max_tokens": 60});
        fields["stream"] = stream.into();
        let answer = server.chat(fields.clone());
        let text = match stream {
            true => {
                let chunks = answer.chunks();
                chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect()
            }
            false => answer.text(),
        };
        fields["stream"] = false.into();
        let usage = server.chat(fields).json()["usage"].clone();
        // White space around it is the client's own, and makes no difference to templates that trim.
        let next = server
            .chat(json!({"messages": conversation(&[(question, &format!("{text}\n"))], "Go on."),
            "temperature": 0, "max_tokens": 4}));
        let cached = next.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        // The last token of an answer was chosen but not computed.
        assert_eq!(cached, usage["total_tokens"].as_u64().unwrap() - 1);
    }
}

#[test]
fn salts_keep_requests_apart() {
    let server = Server::demo(&[]);
    let ask = |salt: Value| {
        let mut fields = body(&conversation(&[], "Tell me about the sea."), 0.0);
        fields["cache_salt"] = salt;
        let answer = server.chat(fields);
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    assert_eq!(ask(json!("a")), Some(0));
    assert_eq!(ask(json!("b")), Some(0));
    assert!(ask(json!("a")).unwrap() > 40);
    let mut fields = body(&conversation(&[], "x"), 0.0);
    fields["cache_salt"] = "".into();
    let answer = server.chat(fields);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("cache_salt")));
}

#[test]
fn warmed_prefixes_are_pinned_listed_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &[]);
    let warm = json!({"messages": [{"role": "system", "content": SYSTEM}]}).to_string();
    let first = server.post("/v1/cache/warm_prefix", &warm).json();
    assert_eq!((&first["already_warm"], &first["levels"]), (&json!(false), &json!(["l1", "l2"])), "{first}");
    let again = server.post("/v1/cache/warm_prefix", &warm).json();
    assert_eq!((&again["already_warm"], &again["key"]), (&json!(true), &first["key"]));
    assert_eq!(server.get("/v1/cache/warm_prefix").json()["data"].as_array().unwrap().len(), 1);
    let usage = server.chat(body(&conversation(&[], "Tell me about the sea."), 0.0)).json()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], first["tokens"]);
    for (bad, param) in [
        (json!({}), json!("messages")),
        (json!({"messages": []}), json!("messages")),
        (json!({"prompt": ""}), json!("prompt")),
        (json!({"prompt": "a", "best_of": 2}), json!("best_of")),
    ] {
        let answer = server.post("/v1/cache/warm_prefix", &bad.to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &param), "{bad}");
    }
    drop(server);
    let file = dir.path().join("warm.json");
    std::fs::write(&file, format!("[{warm}, {{\"prompt\": \"Once upon a time\"}}]")).unwrap();
    let server = serve(dir.path(), &["--warm-prefix", file.to_str().unwrap()]);
    let signals: Vec<_> = server.signals.iter().filter(|l| l.starts_with("startup warm_prefix")).collect();
    assert!(
        signals[0].contains("already_warm=true") && signals[1].contains("already_warm=false"),
        "{signals:?}"
    );
    let listed = server.get("/v1/cache/warm_prefix").json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn quantized_keys_and_values_give_the_same_bytes_and_keep_to_themselves() {
    let expected = walk(&Server::demo(&["--no-prefix-cache", "--turboquant-kv", "k4v3"]), 0.0).0;
    let dir = tempfile::tempdir().unwrap();
    for start in ["cold", "again"] {
        let server = serve(dir.path(), &["--turboquant-kv", "k4v3"]);
        let (texts, cached) = walk(&server, 0.0);
        assert_eq!(texts, expected, "{start}");
        assert_eq!(cached[0] > 40, start == "again", "{cached:?}");
        stop(server);
    }
    // The same directory holds nothing for other widths, or for none.
    for kv in ["off", "4"] {
        let server = serve(dir.path(), &["--turboquant-kv", kv]);
        assert_eq!(walk(&server, 0.0).1[0], 0, "{kv}");
    }
}

#[test]
fn each_key_may_have_a_cache_of_its_own_and_lists_its_own_prefixes() {
    let dir = tempfile::tempdir().unwrap();
    let warm = json!({"messages": [{"role": "system", "content": SYSTEM}]}).to_string();
    let cached = |server: &Server, key: (&str, &str), salt: Option<&str>| {
        let mut fields = body(&conversation(&[], "Tell me about the sea."), 0.0);
        fields["cache_salt"] = salt.into();
        let headers = [("content-type", "application/json"), key];
        let answer = server.request("POST", "/v1/chat/completions", &headers, fields.to_string().as_bytes());
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let post = |server: &Server, key, body: &str| {
        let headers = [("content-type", "application/json"), key];
        server.request("POST", "/v1/cache/warm_prefix", &headers, body.as_bytes()).json()["key"].clone()
    };
    let list = |server: &Server, key, query: &str| -> Vec<Value> {
        let listed = server.request("GET", &format!("/v1/cache/warm_prefix{query}"), &[key], b"").json();
        listed["data"].as_array().unwrap().iter().map(|prefix| prefix["key"].clone()).collect()
    };
    let (a, also_a) = (("authorization", "Bearer a"), ("x-api-key", "a"));
    let (b, nobody) = (("x-api-key", "b"), ("accept", "*/*"));

    let server = serve(dir.path(), &["--cache-salt-per-key"]);
    assert_eq!(cached(&server, a, None), 0);
    assert_eq!(
        (cached(&server, b, None), cached(&server, nobody, None), cached(&server, a, Some("s"))),
        (0, 0, 0)
    );
    assert!(cached(&server, also_a, None) > 40 && cached(&server, b, None) > 40);
    let own = post(&server, a, &warm);
    assert_ne!(own, post(&server, b, &warm));
    let listed = list(&server, also_a, "");
    assert_eq!((listed.len(), &listed[0]), (1, &own));
    assert!(list(&server, nobody, "").is_empty());
    stop(server);
    // The keys' salts are the same after a restart, and nothing is found without them.
    let server = serve(dir.path(), &["--cache-salt-per-key"]);
    assert_eq!(list(&server, a, ""), [own]);
    assert!(cached(&server, a, None) > 40);
    stop(server);

    let server = serve(dir.path(), &[]);
    assert_eq!(cached(&server, a, None), 0);
    assert!(cached(&server, b, None) > 40, "without the flag, keys share");
    let salted = json!({"messages": [{"role": "system", "content": SYSTEM}], "cache_salt": "s"}).to_string();
    let (own, salted) = (post(&server, a, &warm), post(&server, a, &salted));
    let mut both = vec![own, salted.clone()];
    both.sort_by_key(Value::to_string);
    assert_eq!(list(&server, also_a, ""), both);
    assert!(list(&server, b, "").is_empty() && list(&server, nobody, "").is_empty());
    assert_eq!(list(&server, b, "?cache_salt=s"), [salted]);
}

/// A small checkpoint of plain safetensors, as published ones are.
fn plain_checkpoint(dir: &Path) -> std::path::PathBuf {
    use mach_checkpoint::synth::{Routing, SynthOptions, write};
    let options = SynthOptions {
        shape: "tiny-qwen3_moe".to_owned(),
        layers: 2,
        routing: Routing::Uniform,
        seed: 5,
        out: dir.join("model"),
    };
    write(&options, &mut |_| ()).unwrap();
    options.out
}

/// Changes a byte between the samples of a fingerprint, in place, and puts the time of modification back.
fn edit_weights(model: &Path) {
    use std::os::unix::fs::FileExt;
    let files = std::fs::read_dir(model).unwrap().map(|e| e.unwrap().path());
    let mut shards: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).collect();
    shards.sort_by_key(|f| f.metadata().unwrap().len());
    let shard = shards.pop().unwrap();
    let before = mach_checkpoint::Checkpoint::open(model).unwrap().fingerprint();
    let modified = shard.metadata().unwrap().modified().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&shard).unwrap();
    // The sign of a weight, wherever no sample is.
    let mut at = shard.metadata().unwrap().len() / 2;
    loop {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x80], at).unwrap();
        if mach_checkpoint::Checkpoint::open(model).unwrap().fingerprint() == before {
            break;
        }
        file.write_all_at(&byte, at).unwrap();
        at += 1021;
    }
    file.set_modified(modified).unwrap();
}

#[test]
fn an_edited_tensor_never_meets_a_state_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let (model, cache) = (plain_checkpoint(dir.path()), dir.path().join("cache"));
    let start = || {
        let cache = cache.to_str().unwrap();
        Server::start(&model, &["--no-streaming", "--disk-kv-dir", cache, "--memory-gb", "2"])
    };
    let ask = |server: &Server| {
        let prompt = "the same words, over and over again ".repeat(20);
        let body = json!({"model": "model", "prompt": prompt, "max_tokens": 8, "temperature": 0});
        let answer = server.post("/v1/completions", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.json());
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (answer.json()["choices"][0]["text"].clone(), cached)
    };
    let server = start();
    let (first, cached) = ask(&server);
    assert_eq!(cached, 0);
    stop(server);
    let server = start();
    let (again, cached) = ask(&server);
    assert!(again == first && cached > 40, "{cached} tokens after a restart");
    stop(server);
    edit_weights(&model);
    let server = start();
    let (_, cached) = ask(&server);
    assert_eq!(cached, 0, "of the weights before");
    stop(server);
    // The present weights have states of their own by now.
    let server = start();
    assert!(ask(&server).1 > 40);
    stop(server);
}

/// Edits of weights while they are served: what is computed from then on may be of either.
#[test]
fn nothing_is_saved_once_the_weights_changed_under_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (model, cache) = (plain_checkpoint(dir.path()), dir.path().join("cache"));
    let server = Server::start(
        &model,
        &["--no-streaming", "--disk-kv-dir", cache.to_str().unwrap(), "--memory-gb", "2"],
    );
    edit_weights(&model);
    let body = json!({"model": "model", "prompt": "words and words ".repeat(40), "max_tokens": 8});
    assert_eq!(server.post("/v1/completions", &body.to_string()).status, 200);
    let failures = common::eventually(|| {
        let l2 = server.get("/v1/cache/stats").json()["prefix_cache"]["l2"].clone();
        l2["save_failures"].as_u64().filter(|&n| n > 0)
    });
    assert!(failures > 0);
    stop(server);
    let segments = walk_files(&cache).into_iter().filter(|f| f.extension().is_some_and(|e| e == "seg"));
    assert_eq!(segments.count(), 0);
}

fn walk_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|path| if path.is_dir() { walk_files(&path) } else { vec![path] }).collect()
}

#[test]
fn remembered_answers_of_one_salt_are_none_of_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &["--remember-turns"]);
    let plain = Server::demo(&[]);
    let ask = |server: &Server, messages: &Value, salt: &str, fields: Value| {
        let mut body = json!({"messages": messages, "cache_salt": salt});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.chat(body).json()
    };
    let mut told_apart = 0;
    for seed in 0..8 {
        let question = format!("Explain topic number {seed} of physics.");
        let hot = json!({"temperature": 1.6, "top_p": 1, "top_k": 0, "seed": seed, "max_tokens": 40, "ignore_eos": true});
        let said = ask(&server, &conversation(&[], &question), "a", hot);
        let said = said["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let follow = conversation(&[(&question, &said)], "Shorter.");
        let [own, others, expected] = [(&server, "a"), (&server, "b"), (&plain, "b")]
            .map(|(server, salt)| ask(server, &follow, salt, json!({"max_tokens": 1}))["usage"].clone());
        assert_eq!(others["prompt_tokens"], expected["prompt_tokens"], "its own tokens");
        assert_eq!(
            others["prompt_tokens_details"]["cached_tokens"],
            expected["prompt_tokens_details"]["cached_tokens"]
        );
        told_apart += u32::from(own["prompt_tokens"] != expected["prompt_tokens"]);
    }
    assert!(told_apart > 0, "these answers tell the two apart");
}
