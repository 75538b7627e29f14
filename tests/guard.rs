//! The block policy and the guard over it, as operators see them.

mod common;

use common::{DEMO, Server, command, value};
use serde_json::{Value, json};

fn decode_line(server: &Server) -> &str {
    server.signals.iter().find(|line| line.starts_with("startup decode_path=")).unwrap()
}

fn ask(server: &Server) {
    let prompt = "Tell me about the sea, and about what lives in it.";
    let answer = server.chat(json!({
        "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 100, "ignore_eos": true,
    }));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn count(stats: &Value, name: &str) -> u64 {
    stats["guard"][name].as_u64().unwrap()
}

#[test]
fn the_documented_policy_under_the_guard_is_the_default() {
    let server = Server::demo(&[]);
    let line = decode_line(&server);
    assert!(
        line.starts_with("startup decode_path=specdec-v7 adaptive_block_policy=opencode-sampled-v1"),
        "{line}"
    );
    assert_eq!(value(line, "guard"), Some("cost-aware"));
    let before = server.get("/v1/stats").json();
    assert_eq!(
        before["adaptive_block_policy"],
        json!({"name": "opencode-sampled-v1", "alpha_window": 4, "alpha_threshold": 0.40, "low_block": 4, "default_block": 16})
    );
    assert_eq!(before["guard"], json!({"name": "cost-aware", "held_back": 0, "shortened": 0, "skipped": 0}));
    ask(&server);
    let after = server.get("/v1/stats").json();
    // The cost of plain passes is measured before the first block.
    assert!(count(&after, "skipped") > 0, "{after}");
    assert_eq!(count(&after, "held_back"), count(&after, "shortened") + count(&after, "skipped"));
    assert!(count(&after, "held_back") <= after["cycles"].as_u64().unwrap(), "{after}");
}

#[test]
fn without_the_guard_the_policy_decides() {
    let server =
        Server::demo(&["--serving-adaptive-block-policy", "fixed-8", "--serving-block-guard", "off"]);
    assert_eq!(value(decode_line(&server), "guard"), Some("off"));
    ask(&server);
    let stats = server.get("/v1/stats").json();
    assert_eq!(stats["guard"], json!({"name": "off", "held_back": 0, "shortened": 0, "skipped": 0}));
    // The last pass of an answer has no room for a block.
    assert!(stats["observed_cycles"].as_u64().unwrap() + 2 >= stats["cycles"].as_u64().unwrap(), "{stats}");
    assert_eq!(stats["adaptive_block_policy"], json!({"name": "fixed-8", "default_block": 8}));
}

#[test]
fn the_old_name_leaves_all_to_the_guard() {
    let server = Server::demo(&["--serving-adaptive-block-policy", "cost-aware"]);
    let stats = server.get("/v1/stats").json();
    assert_eq!(stats["adaptive_block_policy"], json!({"name": "cost-aware", "default_block": 16}));
    assert_eq!(stats["guard"]["name"], "cost-aware");
    let arguments = ["--serving-adaptive-block-policy", "cost-aware", "--serving-block-guard", "off"];
    let refused = command(DEMO.as_ref(), &arguments).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && error.contains("--serving-block-guard off"), "{error}");
}
