//! The page at `/`, and what it is made of: headers, who gets it, and the figures that it shows.

mod common;

use common::{Answer, DEMO, Server, eventually, value};
use serde_json::{Value, json};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// A header of a response, in lower case as all of its head.
fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn sum(counts: &Value) -> u64 {
    counts.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
}

fn ask(server: &Server, extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Write a binary search in Python"}], "temperature": 0, "max_tokens": 40,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = server.chat(body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn browsers_get_a_page_and_programs_json_and_only_data_need_a_key() {
    let server = Server::demo(&["--api-key", "secret"]);
    let page = server.request("GET", "/", &[("accept", BROWSER)], b"");
    assert_eq!((page.status, header(&page, "content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(header(&page, "vary"), Some("accept"));
    for accept in ["*/*", "application/json", "application/json, text/plain, */*"] {
        let answer = server.request("GET", "/", &[("accept", accept)], b"");
        assert_eq!((answer.status, &answer.json()["name"]), (200, &json!("mach")), "{accept}");
        assert_eq!(header(&answer, "vary"), Some("accept"));
    }
    assert_eq!(server.request("GET", "/", &[], b"").json()["routes"], "/openapi.json");
    assert_eq!(server.request("HEAD", "/", &[("accept", BROWSER)], b"").status, 200);

    // What the page names is there, each with its type, and nothing of it runs elsewhere or inline.
    let html = &page.body;
    let mut named: Vec<&str> =
        html.split(['"', '\'']).filter_map(|word| word.strip_prefix("/page/")).collect();
    named.extend(["api.js", "bank.js", "chat.js", "dom.js", "panels.js", "tokens.js"]);
    assert!(named.contains(&"app.js") && named.contains(&"style.css"), "{named:?}");
    for name in named {
        let file = server.request("GET", &format!("/page/{name}"), &[], b"");
        let kind = match name.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!((file.status, header(&file, "content-type")), (200, Some(kind)), "{name}");
        assert!(
            !file.body.contains("innerHTML") && (name.ends_with("svg") || !file.body.contains("://")),
            "{name}"
        );
        let tag = header(&file, "etag").unwrap();
        let again = server.request("GET", &format!("/page/{name}"), &[("if-none-match", tag)], b"");
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{name}");
    }
    for none in ["/page/secret.js", "/page/%ff", "/page/..%2fopenapi.json"] {
        assert_eq!(server.request("GET", none, &[], b"").status, 404, "{none}");
    }
    assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains(" onclick"), "{html}");

    let policy = header(&page, "content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ] {
        assert!(policy.split("; ").any(|known| known == part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&page, "x-content-type-options"), Some("nosniff"));
    assert_eq!(header(&page, "referrer-policy"), Some("no-referrer"));
    assert_eq!(header(&page, "cache-control"), Some("no-cache"));

    for path in ["/v1/bank", "/v1/stats", "/v1/cache/stats"] {
        assert_eq!(server.request("GET", path, &[], b"").status, 401, "{path}");
        let answer = server.request("GET", path, &[("authorization", "Bearer secret")], b"");
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[test]
fn the_bank_is_told_expert_by_expert() {
    let server = Server::start(DEMO.as_ref(), &["--streaming", "--expert-cache-gb", "0.01"]);
    ask(&server, &json!({}));
    let bank = server.get("/v1/bank").json();
    let summary = &server.get("/v1/cache/stats").json()["streaming_summary"];
    assert_eq!((&bank["streaming"], &bank["expert_residency"]), (&json!(true), &json!("streaming")));
    assert_eq!((&bank["experts"], &bank["experts_per_token"]), (&json!(32), &json!(4)));
    assert_eq!((&bank["slots"], &bank["eviction"]), (&summary["bank_slots"], &summary["bank_eviction"]));
    let layers = bank["layers"].as_array().unwrap();
    assert_eq!(layers.len(), summary["layers"].as_array().unwrap().len());
    for (layer, counted) in layers.iter().zip(summary["layers"].as_array().unwrap()) {
        assert_eq!(layer["layer"], counted["layer"]);
        for (list, total) in [
            ("resident", "resident_slots"),
            ("hits", "hits"),
            ("misses", "misses"),
            ("transient_hits", "transient_hits"),
            ("transient_reads", "transient_reads"),
        ] {
            assert_eq!(layer[list].as_array().unwrap().len(), 32);
            assert_eq!(Some(sum(&layer[list])), counted[total].as_u64(), "{list} of {layer}");
        }
    }
    assert!(sum(&layers[0]["misses"]) > 0);

    let resident = Server::demo(&[]);
    let bank = resident.get("/v1/bank").json();
    assert_eq!(
        (&bank["streaming"], &bank["eviction"], &bank["slots"]),
        (&json!(false), &Value::Null, &json!(256))
    );
    let layers = bank["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 8);
    assert!(layers.iter().all(|layer| sum(&layer["resident"]) == 32 && layer["hits"].is_null()), "{bank}");
}

#[test]
fn memory_by_part_adds_up_to_what_was_announced() {
    for mode in [&["--no-streaming"][..], &["--streaming", "--expert-cache-gb", "0.01"]] {
        let server = Server::start(DEMO.as_ref(), mode);
        let line = server.signals.iter().find(|line| line.starts_with("startup memory")).unwrap();
        let announced: u64 = value(line, "budget_bytes").unwrap().parse().unwrap();
        ask(&server, &json!({}));
        let stats = eventually(|| {
            let stats = server.get("/v1/stats").json();
            (stats["requests"]["running"] == 0).then_some(stats)
        });
        let memory = &stats["memory"];
        assert_eq!(memory["budget_bytes"], announced);
        let parts = memory["parts"].as_array().unwrap();
        let all: u64 = parts.iter().map(|part| part["budget_bytes"].as_u64().unwrap()).sum();
        assert_eq!(all, announced, "{memory}");
        assert!(memory["process_bytes"].as_u64().unwrap() > 10_000_000, "{memory}");
        for part in parts {
            let held = part["held_bytes"].as_u64().unwrap_or(0);
            assert!(held <= part["budget_bytes"].as_u64().unwrap(), "{part}");
        }
        let held =
            |name: &str| parts.iter().find(|part| part["name"] == name).unwrap()["held_bytes"].as_u64();
        assert!(held("weights").is_some_and(|n| n > 0) && held("experts").is_some_and(|n| n > 0), "{memory}");
        assert!(held("prefixes").is_some_and(|n| n > 0), "{memory}");
        assert_eq!(stats["requests"]["max_running"], 4);
        eventually(|| {
            let stats = server.get("/v1/stats").json();
            let parts = stats["memory"]["parts"].as_array().unwrap();
            parts.iter().any(|part| part["name"] == "state" && part["held_bytes"] == 0).then_some(())
        });
        assert_eq!(
            (&stats["model"]["layers"], &stats["model"]["model_type"]),
            (&json!(8), &json!("qwen3_5_moe"))
        );
    }
}

#[test]
fn who_asks_is_told_which_tokens_were_drafted_and_the_answer_is_the_same() {
    let drafting = ["--serving-adaptive-block-policy", "fixed-8", "--serving-block-guard", "off"];
    let server = Server::demo(&drafting);
    let plain = ask(&server, &json!({"logprobs": true}));
    let told = ask(&server, &json!({"logprobs": true, "mach_token_sources": true}));
    let tokens = |answer: &Value| answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let drafted = tokens(&told).iter().filter(|token| token["drafted"] == true).count() as u64;
    assert!(drafted > 5 && drafted < 40, "{told}");
    assert_eq!(server.get("/v1/stats").json()["last_request"]["specdec_accepted"], drafted);
    let mut without = tokens(&told);
    without.iter_mut().for_each(|token| assert!(token.as_object_mut().unwrap().remove("drafted").is_some()));
    assert_eq!(without, tokens(&plain), "nothing else differs");
    assert_eq!(told["choices"][0]["message"], plain["choices"][0]["message"]);

    let off = Server::demo(&["--serving-adaptive-block-policy", "off"]);
    let said = ask(&off, &json!({"logprobs": true, "mach_token_sources": true}));
    assert!(tokens(&said).iter().all(|token| token["drafted"] == false), "{said}");

    let body = json!({"messages": [{"role": "user", "content": "x"}], "mach_token_sources": true});
    let refused = server.chat(body);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("mach_token_sources")));
}
