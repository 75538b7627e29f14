//! What a server says when it starts, and when it cannot: the lines that operators grep for, read from what is so.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{DEMO, Server, command, demo_copy, value};
use serde_json::json;

fn line<'a>(server: &'a Server, begins: &str) -> &'a str {
    let found = server.signals.iter().find(|line| line.starts_with(begins));
    found.unwrap_or_else(|| panic!("no line `{begins}`: {:#?}", server.signals))
}

/// Starts what cannot start: exit code, standard output, standard error.
fn refused(mut command: Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

#[test]
fn the_documented_lines_of_streaming_in_their_order() {
    let server = Server::start(DEMO.as_ref(), &["--streaming", "--expert-cache-gb", "0.02"]);
    let wanted = [
        "startup mode profile=production production_streaming_mode=streaming ",
        "production optimizations direct_pread=",
        "startup direct-pread expected=1 sidecar_present=1 sidecar_valid=1 native_extension=ready fallback_policy=fail-fast",
        "startup decode_path=specdec-v7 adaptive_block_policy=",
        "startup listening url=http://127.0.0.1:",
        "startup ready ",
    ];
    let at: Vec<_> =
        wanted.iter().map(|w| server.signals.iter().position(|line| line.starts_with(w))).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?}: {:#?}", server.signals);
    let mode = line(&server, "startup mode");
    assert!(
        mode.contains(" transient_prefill=1 ") && mode.contains(" expert_residency=streaming "),
        "{mode}"
    );
    let optimizations = line(&server, "production optimizations");
    assert!(
        optimizations.ends_with("native_prefill_fused=1 async_prefetch=0 resident_metal=0"),
        "{optimizations}"
    );
    // A bank with room for every expert streams all the same.
    let large = Server::start(DEMO.as_ref(), &["--streaming", "--expert-cache-gb", "1"]);
    assert_eq!(value(line(&large, "startup mode"), "expert_residency"), Some("streaming"));
    assert_eq!(large.get("/v1/capabilities").json()["serving"]["expert_residency"], "streaming");
}

#[test]
fn the_lines_change_with_the_configuration() {
    let resident = Server::demo(&["--decode-path", "target-only"]);
    let mode = line(&resident, "startup mode");
    assert!(
        mode.contains("production_streaming_mode=resident transient_prefill=0 expert_residency=stacked"),
        "{mode}"
    );
    assert!(!resident.signals.iter().any(|line| line.starts_with("startup direct-pread")));
    let serving = resident.get("/v1/capabilities").json()["serving"].clone();
    assert_eq!(
        (&serving["expert_residency"], &serving["serving_mode"]),
        (&json!("stacked"), &json!("resident"))
    );
    assert!(line(&resident, "startup decode_path=target-only").contains("effective_decode_path=target_only"));

    let exact = Server::demo(&["--activations", "f32", "--serving-adaptive-block-policy", "fixed-4"]);
    assert_eq!(value(line(&exact, "startup mode"), "profile"), Some("exact"));
    assert_eq!(value(line(&exact, "startup decode_path"), "adaptive_block_policy"), Some("fixed-4"));

    // No slots in the arena is no transient prefill; slices of a plain checkpoint are not read as records.
    let bf16 = with_tokenizer(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3_moe/bf16").as_ref());
    let server = Server::start(bf16.path(), &["--expert-residency", "bf16_streaming"]);
    assert_eq!(value(line(&server, "startup mode"), "expert_residency"), Some("bf16_streaming"));
    assert_eq!(value(line(&server, "production optimizations"), "direct_pread"), Some("0"));
}

#[test]
fn a_damaged_sidecar_raises_the_flags_and_says_what_helps() {
    let dir = demo_copy(&["layer-003.experts"]);
    let file = dir.path().join("expert_sidecar/layer-003.experts");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    let (code, out, error) = refused(command(dir.path(), &["--streaming"]));
    assert_eq!(code, 2, "{error}");
    let flags = "startup direct-pread expected=1 sidecar_present=1 sidecar_valid=0 native_extension=missing fallback_policy=fail-fast";
    assert!(out.lines().any(|line| line == flags), "{out}");
    assert!(!out.contains("startup listening"), "said only once nothing can fail: {out}");
    // A converted checkpoint has no other tensors: the way out is its source.
    assert!(
        error.contains("layer-003.experts") && error.contains("mach convert SOURCE --out NEW_DIR"),
        "{error}"
    );
    assert!(!error.contains("export-sidecar") && !error.contains("diagnostic"), "{error}");

    // A checkpoint with tensors of its own has other ways.
    let copy = with_tokenizer(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3_moe/mlx-4bit").as_ref());
    let (code, _, error) = refused(command(copy.path(), &["--streaming"]));
    assert!(
        code == 2 && error.contains("export-sidecar") && error.contains("--fallback-policy diagnostic"),
        "{error}"
    );
    let server = Server::start(copy.path(), &["--streaming", "--fallback-policy", "diagnostic"]);
    let flags = line(&server, "startup direct-pread");
    for red in [
        "sidecar_present=0",
        "sidecar_valid=0",
        "native_extension=missing",
        "fallback_policy=diagnostic-python",
    ] {
        assert!(flags.contains(red), "{flags}");
    }
    let optimizations = line(&server, "production optimizations");
    assert!(optimizations.contains("direct_pread=0 native_prefill_fused=0"), "{optimizations}");
}

#[test]
fn a_model_without_experts_has_nothing_to_stream() {
    let copy = with_tokenizer(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/llama/mlx-4bit").as_ref());
    for flags in [
        &["--streaming"][..],
        &["--expert-cache-gb", "1"],
        &["--expert-residency", "bf16_streaming"],
        &["--streaming", "--fallback-policy", "diagnostic"],
    ] {
        let (code, _, error) = refused(command(copy.path(), flags));
        assert!(code == 2 && error.contains("no routed experts"), "{flags:?}: {error}");
    }
    let server = Server::start(copy.path(), &[]);
    assert_eq!(value(line(&server, "startup mode"), "expert_residency"), Some("stacked"));
    assert_eq!(server.get("/v1/capabilities").json()["arch"]["model_type"], "llama");
}

/// A fixture with a tokenizer, which it has not: one token a byte.
fn with_tokenizer(fixture: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture).unwrap().map(Result::unwrap) {
        std::os::unix::fs::symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    // Byte-level tokenizers write the bytes that are no letters as letters from 256 on.
    let plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256..;
    let letter = |byte: u32| char::from_u32(if plain(byte) { byte } else { next.next().unwrap() }).unwrap();
    let vocab: serde_json::Map<_, _> =
        (0..256).map(letter).zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

#[test]
fn what_cannot_start_is_named() {
    let none = tempfile::tempdir().unwrap();
    let missing = none.path().join("nothing");
    let wrong_draft = none.path().to_str().unwrap();
    let demo = Path::new(DEMO);
    for (checkpoint, arguments, words) in [
        (Path::new("Qwen/Qwen3.6-35B-A3B"), &[][..], "`hf download Qwen/Qwen3.6-35B-A3B` brings it"),
        (missing.as_path(), &[], "there is no such directory"),
        (&demo.join("config.json"), &[], "this is a file"),
        (
            demo,
            &["--no-streaming", "--expert-cache-gb", "1"],
            "'--no-streaming' cannot be used with '--expert-cache-gb",
        ),
        (
            demo,
            &["--no-prefix-cache", "--disk-kv-dir", "x"],
            "'--no-prefix-cache' cannot be used with '--disk-kv-dir",
        ),
        (
            demo,
            &["--prefix-cache", "--no-prefix-cache"],
            "'--prefix-cache' cannot be used with '--no-prefix-cache'",
        ),
        (demo, &["--continuous-batching", "--no-continuous-batching"], "cannot be used with"),
        (demo, &["--streaming", "--expert-cache-gb", "0.001"], "1.00 MB holds 8 experts"),
        (demo, &["--no-streaming", "--memory-gb", "0.005"], "--memory-gb allows 5.00 MB"),
        (demo, &["--prefix-cache-max-gb", "10000"], "10000.00 GB of prefix cache"),
        (demo, &["--host", "no.such.host.invalid"], "--host"),
        (
            demo,
            &["--require-draft", "--draft-dir", "no-such-dir"],
            "--draft-dir no-such-dir: there is no such directory",
        ),
        (demo, &["--require-draft", "--draft-dir", wrong_draft], wrong_draft),
    ] {
        let (code, out, error) = refused(command(checkpoint, arguments));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(!out.contains("startup listening"), "{out}");
    }
}

#[test]
fn what_is_given_up_is_told() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let many = [
        "--no-streaming",
        "--threads",
        "512",
        "--max-context",
        "64",
        "--host",
        "localhost",
        "--draft-dir",
        "no-such-dir",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_mach-serve"));
    command.arg(DEMO).args(["--port", "0", "--disk-kv-budget-gb", "0"]).args(many);
    command.stdout(std::process::Stdio::piped()).stderr(log.reopen().unwrap());
    let server = Server::run(command);
    let text = std::fs::read_to_string(log.path()).unwrap();
    for words in ["more threads than cores", "--draft-dir no-such-dir: there is no such directory"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(value(line(&server, "startup engine"), "context_bound"), Some("max-context"));
    drop(server);
    let model = Server::demo(&[]);
    assert_eq!(value(line(&model, "startup engine"), "context_bound"), Some("model"));
}

#[test]
fn the_prefix_cache_has_what_was_asked_for_whatever_the_batch() {
    for batch in ["1", "16"] {
        let server = Server::demo(&["--prefix-cache-max-gb", "0.3", "--max-batch", batch]);
        assert_eq!(value(line(&server, "startup prefix_cache"), "max_bytes"), Some("300000000"), "{batch}");
        assert_eq!(value(line(&server, "startup memory"), "prefix_bytes"), Some("300000000"));
    }
    let server = Server::demo(&["--prefix-cache"]);
    assert_eq!(value(line(&server, "startup prefix_cache"), "enabled"), Some("true"));
}

#[test]
fn settings_come_from_the_environment_and_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mach.toml");
    std::fs::write(&file, "max-queue = 5\nmax_batch = 2\nserved-model-name = [\"one\", \"two\"]\n").unwrap();
    let mut command = command(DEMO.as_ref(), &["--no-streaming", "--config", file.to_str().unwrap()]);
    command.env("MACH_MAX_BATCH", "3").env("MACH_API_KEY", "k").env("LME_BANK_EVICTION_POLICY", "lru");
    let server = Server::run(command);
    let engine = line(&server, "startup engine");
    assert_eq!((value(engine, "max_queue"), value(engine, "max_batch")), (Some("5"), Some("3")));
    assert_eq!(value(line(&server, "startup ready"), "models"), Some("one,two"));
    assert_eq!(value(line(&server, "startup listening"), "api_key"), Some("required"));
    assert_eq!(server.get("/v1/models").status, 401);
}

#[test]
fn a_server_that_drains_says_so_on_open_connections() {
    for signal in ["TERM", "HUP"] {
        let mut server = Server::demo(&[]);
        // A connection that stays open, and one that is answered at length.
        let mut kept = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let ask = |stream: &mut std::net::TcpStream| {
            stream.write_all(b"GET /v1/models/demo HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            let mut head = [0; 4096];
            let n = stream.read(&mut head).unwrap();
            String::from_utf8_lossy(&head[..n]).to_lowercase()
        };
        assert!(ask(&mut kept).starts_with("http/1.1 200"));
        let body = json!({"messages": [{"role": "user", "content": "Tell me a story"}], "stream": true, "max_tokens": 600,
            "ignore_eos": true});
        let mut long = server.send(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        );
        assert!(long.read(&mut [0; 256]).unwrap() > 0);
        server.signal(signal);
        let refusal =
            common::eventually(|| Some(ask(&mut kept)).filter(|head| head.starts_with("http/1.1 503")));
        assert!(refusal.contains("connection: close") && refusal.contains("retry-after"), "{refusal}");
        let mut rest = String::new();
        long.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("[DONE]"), "what ran is finished");
        assert_eq!(server.wait(Duration::from_secs(20)), 0, "{signal}");
    }
}

/// A tiny checkpoint with a tokenizer of bytes beside it.
fn tiny(family: &str, form: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family).join(form);
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    // Bytes as byte-level tokenizers spell them: those that print as themselves, others from U+0100 on.
    let prints = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u32> = (0..256).filter(|b| !prints(b)).collect();
    let spelt = |b: u32| others.iter().position(|o| *o == b).map_or(b, |place| 256 + place as u32);
    let vocab = if form == "fp8" { 224 } else { 256 };
    let vocab: serde_json::Map<_, _> =
        (0..vocab).map(|b| (char::from_u32(spelt(b)).unwrap().to_string(), json!(b))).collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

/// A qwen3_5_moe checkpoint's own block proposes where no draft is given: said at the start, by the capabilities and by the
/// check, counted, and switched off like a draft. Presets stay.
#[test]
fn qwen3_5_moe_drafts_with_its_own_block() {
    let dir = tiny("qwen3_5_moe", "bf16");
    let ask = |args: &[&str]| {
        let server = Server::start(dir.path(), &[&["--no-streaming"], args].concat());
        let plain = json!({"prompt": [5, 6, 7, 8], "max_tokens": 60, "temperature": 0});
        let text = server.post("/v1/completions", &plain.to_string()).json()["choices"][0]["text"].clone();
        let preset = json!({"prompt": [5], "max_tokens": 1, "speculation": {"preset": "summarization"}});
        let preset = server.post("/v1/completions", &preset.to_string()).status;
        let serving = server.get("/v1/capabilities").json()["serving"].clone();
        let stats = server.get("/v1/stats").json();
        (line(&server, "startup decode_path").to_owned(), serving, text, preset, stats)
    };
    let unguarded = ["--serving-block-guard", "off", "--require-draft"];
    let (said, serving, text, preset, stats) = ask(&unguarded);
    assert!(said.contains("effective_decode_path=mtp") && said.contains("mtp block is usable"), "{said}");
    assert!(value(&said, "draft_weight_bytes").is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 100_000));
    assert_eq!((&serving["effective_decode_path"], &serving["rho_gate"]), (&json!("mtp"), &json!(null)));
    assert_eq!(serving["decode_policy"]["engine_mode"], "native_mtp");
    assert_eq!(serving["speculation"]["supported_presets"].as_array().map(Vec::len), Some(3));
    assert_eq!(preset, 200);
    assert!(stats["proposers"]["mtp"]["drafted"].as_u64() > Some(20), "{stats}");
    for off in [["--decode-path", "target-only"], ["--serving-adaptive-block-policy", "off"]] {
        let (said, serving, same, _, stats) = ask(&off);
        assert_eq!(serving["effective_decode_path"], "target_only", "{said}");
        assert!(value(&said, "draft_weight_bytes").is_none() && stats["proposers"]["mtp"].is_null());
        assert_eq!(same, text);
    }
    // A draft that was given comes first, even if it cannot be used.
    let (said, ..) = ask(&["--draft-dir", "/nowhere"]);
    assert!(said.contains("effective_decode_path=target_only") && said.contains("unusable"), "{said}");

    // A file without it decodes plainly and says what is not there.
    let without = tiny("qwen3_5_moe", "mlx-4bit");
    let server = Server::start(without.path(), &["--no-streaming"]);
    let said = line(&server, "startup decode_path");
    assert!(said.contains(r#"reason="no draft""#) && said.contains("no tensors `mtp.*`"), "{said}");
}

/// The model's own block proposes where there is one; without it, or told to, decoding is plain. Stacks are not served.
#[test]
fn deepseek_v4_says_how_it_decodes() {
    let serving = |dir: &Path, args: &[&str]| {
        let server = Server::start(dir, &[&["--no-streaming"], args].concat());
        let plain = json!({"prompt": [5, 6, 7, 8], "max_tokens": 30, "temperature": 0});
        let answer = server.post("/v1/completions", &plain.to_string());
        let text = answer.json()["choices"][0]["text"].clone();
        let preset = json!({"prompt": [5], "max_tokens": 1, "speculation": {"preset": "summarization"}});
        let serving = server.get("/v1/capabilities").json()["serving"].clone();
        (serving, text, server.post("/v1/completions", &preset.to_string()).status)
    };
    let dir = tiny("deepseek_v4", "bf16");
    let (own, text, refused_preset) = serving(dir.path(), &["--rho-gate", "0.5", "--require-draft"]);
    assert_eq!((&own["effective_decode_path"], refused_preset), (&json!("v4_mtp"), 400));
    assert_eq!(own["speculation"]["supported_presets"], json!(["none"]));
    // Thirty tokens were enough to measure.
    let gate = &own["rho_gate"];
    assert!(gate["threshold"] == 0.5 && gate["rho"].is_f64() && gate["open"].is_boolean(), "{gate}");
    let (plain, same, _) = serving(dir.path(), &["--decode-path", "target-only"]);
    assert_eq!((&plain["effective_decode_path"], &plain["rho_gate"]), (&json!("target_only"), &json!(null)));
    assert_eq!(text, same);

    // An EAGLE-3 head comes before the block, under the same gate; one that cannot be used is no reason not to serve.
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/eagle3/deepseek_v4");
    let given = ["--draft-dir", head.to_str().unwrap(), "--rho-gate", "0.5", "--require-draft"];
    let (eagle, same, refused_preset) = serving(dir.path(), &given);
    assert_eq!((&eagle["effective_decode_path"], refused_preset), (&json!("v4_eagle3"), 400));
    assert_eq!(eagle["effective_decode_path_reason"], "v4_eagle3 draft is usable");
    assert_eq!(eagle["decode_policy"]["engine_mode"], "native_v4_eagle3");
    assert!(eagle["rho_gate"]["rho"].is_f64() && text == same, "{eagle}");
    let broken = tempfile::tempdir().unwrap();
    std::fs::copy(head.join("config.json"), broken.path().join("config.json")).unwrap();
    let broken = broken.path().to_str().unwrap();
    let (plain, same, _) = serving(dir.path(), &["--draft-dir", broken]);
    assert_eq!(plain["effective_decode_path"], "target_only", "{plain}");
    assert!(plain["effective_decode_path_reason"].as_str().unwrap().starts_with("draft unusable"), "{plain}");
    assert_eq!(text, same);
    let (code, _, error) = refused(command(dir.path(), &["--draft-dir", broken, "--require-draft"]));
    assert!(code == 2 && error.contains("--require-draft"), "{code} {error}");

    let stacked = tiny("deepseek_v4", "mlx-4bit");
    let (code, _, error) = refused(command(stacked.path(), &["--no-streaming"]));
    assert!(
        code == 2 && error.contains("sliced experts") && error.contains("mach convert"),
        "{code} {error}"
    );
}
