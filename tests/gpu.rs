//! A GPU behind the server: the CPU's bytes, and conversations that one device goes on with where the other stopped.
#![cfg(feature = "gpu")]

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::Server;
use serde_json::{Value, json};

fn generate(device: &str) -> Output {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let args = ["generate", demo, "Hello", "--device", device, "--max-tokens", "2", "-v"];
    Command::new(env!("CARGO_BIN_EXE_mach")).args(args).output().unwrap()
}

/// Whether there is a GPU, a software one too; says so where there is none.
fn there_is_one() -> bool {
    let output = generate("gpu:0");
    if output.status.success() {
        return true;
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("Vulkan") || error.contains("no GPU"), "{error}");
    println!("SKIPPED: {}", error.lines().last().unwrap_or_default());
    false
}

fn ask(server: &Server, turns: &[&str]) -> (String, u64) {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let messages: Vec<Value> =
        turns.iter().enumerate().map(|(i, text)| json!({"role": role(i), "content": text})).collect();
    let answer = server.chat(json!({"messages": messages, "temperature": 0.8, "seed": 3, "max_tokens": 24}));
    let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (answer.text(), cached)
}

const FIRST: &str =
    "Write a Python function that adds two numbers, and say in one sentence what it is good for.";

/// A conversation of two turns, the second on a server of another device that shares the disk.
fn conversation(devices: [&str; 2], dir: &Path) -> (Vec<String>, u64) {
    let serve = |device: &str| {
        let dir = dir.to_str().unwrap();
        Server::demo(&["--disk-kv-dir", dir, "--device", device])
    };
    let mut server = serve(devices[0]);
    let (first, _) = ask(&server, &[FIRST]);
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(60)), 0);
    let server = serve(devices[1]);
    let (second, cached) = ask(&server, &[FIRST, &first, "Thank you. And one that multiplies them?"]);
    (vec![first, second], cached)
}

#[test]
fn a_conversation_goes_on_from_device_to_device() {
    if !there_is_one() {
        return;
    }
    let run = |devices| conversation(devices, tempfile::tempdir().unwrap().path());
    let (expected, cached) = run(["cpu", "cpu"]);
    assert!(cached > 20, "{cached}");
    for devices in [["gpu:0", "gpu:0"], ["cpu", "gpu:0"], ["gpu:0", "cpu"]] {
        let (texts, again) = run(devices);
        assert_eq!(texts, expected, "{devices:?}");
        assert_eq!(again, cached, "{devices:?}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let output = generate("gpu:99");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("--device gpu:99: "), "{error}");
    let output = generate("auto");
    assert!(output.status.success());
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = lines.lines().find(|line| line.starts_with("startup device ")).expect("a line").to_owned();
    // With a real GPU here it is taken; with a software one, or none, the reason is told.
    assert!(line.contains("kind=gpu") || line.contains("kind=cpu reason="), "{line}");
    let output = generate("cpu");
    assert!(String::from_utf8_lossy(&output.stderr).contains("startup device kind=cpu\n"));
}
