//! The preflight: what `mach check` and `mach models` say is what a server then does.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{DEMO, Server, clean, demo_copy, value};
use serde_json::{Value, json};

fn mach(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mach"));
    clean(&mut command).args(arguments).output().unwrap()
}

/// Exit code, JSON on stdout, stderr.
fn check(checkpoint: &Path, arguments: &[&str]) -> (i32, Value, String) {
    let path = checkpoint.to_str().unwrap();
    let out =
        mach(&[&["check", path, "--json", "--disk-kv-budget-gb", "0", "--threads", "1"], arguments].concat());
    let report = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
    (out.status.code().unwrap_or(-1), report, String::from_utf8_lossy(&out.stderr).into_owned())
}

fn path<'a>(report: &'a Value, device: &str, residency: &str, decode: &str) -> &'a Value {
    let all = report["paths"].as_array().unwrap();
    let found = all
        .iter()
        .find(|p| p["device"] == device && p["residency"] == residency && p["decode_path"] == decode);
    found.unwrap_or_else(|| panic!("no path {device} {residency} {decode}: {report:#}"))
}

#[test]
fn what_is_announced_is_what_a_server_takes() {
    for flags in [&["--streaming", "--expert-cache-gb", "0.01"][..], &["--no-streaming"], &[]] {
        let (code, report, _) = check(DEMO.as_ref(), flags);
        let server = Server::start(DEMO.as_ref(), flags);
        let line = |begins: &str| server.signals.iter().find(|l| l.starts_with(begins)).unwrap();
        let residency = value(line("startup mode"), "expert_residency").unwrap();
        let part = if residency == "streaming" { "streaming" } else { "resident" };
        assert_eq!((code, &report["verdict"]), (0, &json!("fits")), "{flags:?}");
        if flags.is_empty() {
            assert_eq!(report["default_residency"], residency);
        }
        let memory = line("startup memory");
        for (key, name) in [
            ("resident_weights", "resident_weight_bytes"),
            ("bank", "bank_bytes"),
            ("arena", "arena_bytes"),
            ("scratch", "scratch_bytes"),
            ("draft", "draft_bytes"),
        ] {
            let announced: u64 = value(memory, name).unwrap().parse().unwrap();
            assert_eq!(report[part]["memory"][key], announced, "{flags:?} {name}");
        }
        let decode = value(line("startup decode_path"), "effective_decode_path").unwrap();
        let way = path(&report, "cpu", residency, decode);
        assert_eq!(way["runs"], true);
        let reason = format!(" reason={}", way["reason"]);
        assert!(line("startup decode_path").contains(&reason), "{reason}");
        assert_eq!(report["arch"], server.get("/v1/capabilities").json()["arch"]);
    }
}

/// A block of the model's own is found, counted like a draft, and a way of its own; where there is none, that is said.
#[test]
fn a_models_own_block_is_counted() {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let artifact = |report: &Value, name: &str| {
        report["artifacts"].as_array().unwrap().iter().find(|a| a["name"] == name).unwrap().clone()
    };
    let (_, report, _) = check(&fixture("qwen3_5_moe/bf16"), &[]);
    let block = artifact(&report, "mtp");
    assert_eq!((&block["present"], &block["valid"]), (&json!(true), &json!(true)), "{block}");
    let draft = report["resident"]["memory"]["draft"].as_u64().unwrap();
    assert!(block["detail"].as_str().unwrap().contains(&format!("{draft} bytes")) && draft > 100_000);
    assert_eq!(path(&report, "cpu", "stacked", "mtp")["runs"], true);
    assert_eq!(path(&report, "cpu", "stacked", "specdec_v7")["reason"], "no draft");
    let (_, fewer, _) = check(&fixture("qwen3_5_moe/bf16"), &["--draft-bits", "4"]);
    assert!(fewer["resident"]["memory"]["draft"].as_u64().unwrap() < draft, "{fewer:#}");
    let (_, off, _) = check(&fixture("qwen3_5_moe/bf16"), &["--decode-path", "target-only"]);
    assert_eq!(off["resident"]["memory"]["draft"], 0);
    let (_, without, _) = check(&fixture("qwen3_5_moe/mlx-4bit"), &[]);
    let reason = "no tensors `mtp.*`";
    assert!(artifact(&without, "mtp")["detail"].as_str().unwrap().contains(reason), "{without:#}");
    assert!(path(&without, "cpu", "stacked", "mtp")["reason"].as_str().unwrap().contains(reason));
    // An EAGLE-3 head comes before a block.
    let head = fixture("eagle3/deepseek_v4");
    let (_, report, _) = check(&fixture("deepseek_v4/bf16"), &["--draft-dir", head.to_str().unwrap()]);
    assert_eq!(path(&report, "cpu", "stacked", "v4_eagle3")["runs"], true, "{report:#}");
    assert_eq!(path(&report, "cpu", "stacked", "v4_mtp")["runs"], false);
    assert_eq!(artifact(&report, "draft")["valid"], true);
}

#[test]
fn verdicts_are_exit_codes() {
    let (code, report, stderr) = check(DEMO.as_ref(), &["--memory-gb", "0.05"]);
    assert_eq!((code, &report["verdict"]), (1, &json!("wont_fit")));
    assert_eq!(
        (&report["resident"]["verdict"], &report["streaming"]["verdict"]),
        (&json!("wont_fit"), &json!("wont_fit"))
    );
    assert!(stderr.contains("--memory-gb allows 50.00 MB"), "{stderr}");
    assert_eq!(report["default_residency"], Value::Null);
    // A bank of one token's experts starts, and is no pleasure.
    let (code, report, _) = check(DEMO.as_ref(), &["--expert-cache-gb", "0.004"]);
    assert_eq!((code, &report["streaming"]["verdict"]), (0, &json!("tight")));
    assert_eq!(report["streaming"]["bank_experts"], 34);
    let (code, _, stderr) = check(Path::new("/nowhere"), &[]);
    assert!(code == 2 && stderr.contains("/nowhere"), "{code} {stderr}");
    for bad in [&["--context", "0"][..], &["--hit-rate", "0.5"], &["--probe", "--hit-rate", "2"]] {
        assert_eq!(check(DEMO.as_ref(), bad).0, 2, "{bad:?}");
    }
}

#[test]
fn what_is_missing_is_named_with_the_command_that_makes_it() {
    let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3_moe/mlx-4bit");
    let (code, report, _) = check(&plain, &[]);
    assert_eq!(code, 0, "{report:#}");
    let artifact = |report: &Value, name: &str| {
        report["artifacts"].as_array().unwrap().iter().find(|a| a["name"] == name).unwrap().clone()
    };
    let sidecar = artifact(&report, "expert_sidecar");
    assert_eq!((&sidecar["present"], &sidecar["valid"]), (&json!(false), &Value::Null));
    assert_eq!(sidecar["command"], format!("mach export-sidecar {}", plain.display()));
    assert!(artifact(&report, "engine format")["command"].as_str().unwrap().starts_with("mach convert "));
    assert_eq!(artifact(&report, "tokenizer.json")["present"], false);
    let streamed = path(&report, "cpu", "streaming", "target_only");
    assert_eq!(streamed["runs"], false);
    assert!(streamed["reason"].as_str().unwrap().contains("export-sidecar"), "{streamed}");
    assert_eq!(path(&report, "cpu", "stacked", "target_only")["runs"], true);
    assert_eq!(path(&report, "gpu", "stacked", "target_only")["runs"], false);
    assert_eq!(path(&report, "cpu", "stacked", "specdec_v7")["reason"], "no draft");
    // A file of the sidecar that was cut short.
    let copy = demo_copy(&["layer-003.experts"]);
    let cut = copy.path().join("expert_sidecar/layer-003.experts");
    std::fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(100).unwrap();
    let (code, report, _) = check(copy.path(), &[]);
    assert_eq!(code, 1);
    let sidecar = artifact(&report, "expert_sidecar");
    assert_eq!(sidecar["valid"], false);
    assert!(sidecar["detail"].as_str().unwrap().contains("layer-003.experts"), "{sidecar}");
    // The exported form of another family.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    let (code, _, stderr) = check(other.path(), &[]);
    assert_eq!(code, 2);
    for word in ["mamba", "qwen3_5_moe", "qwen3_moe", "llama.cpp"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

#[test]
fn damage_inside_a_record_is_found_when_asked_for() {
    let copy = demo_copy(&["layer-005.experts"]);
    assert_eq!(check(copy.path(), &["--verify"]).0, 0);
    let file = copy.path().join("expert_sidecar/layer-005.experts");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(check(copy.path(), &[]).0, 0, "headers are as they were");
    let (code, _, stderr) = check(copy.path(), &["--verify"]);
    assert!(
        code == 1 && stderr.contains("layer-005.experts") && stderr.contains("expert 1 "),
        "{code} {stderr}"
    );
}

#[test]
fn speeds_are_forecast_from_what_is_measured() {
    let flags = ["--probe", "--context", "300"];
    let (code, report, stderr) = check(DEMO.as_ref(), &[&flags[..], &["--expert-cache-gb", "0.01"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let forecast = &report["forecast"];
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&forecast["dram_bytes_per_second"]) > 1e8);
    let (resident, streaming) = (&forecast["resident"], &forecast["streaming"]);
    assert!(number(&resident["decode"]) > 0.0 && number(&resident["prefill"]) > 0.0);
    assert!(number(&streaming["decode"]) <= number(&resident["decode"]));
    let rate = number(&streaming["hit_rate"]);
    assert!((0.05..0.95).contains(&rate), "{rate}");
    assert_eq!(resident["hit_rate"], 1.0);
}

#[test]
fn checkpoints_are_listed_and_found_by_name() {
    let home = tempfile::tempdir().unwrap();
    let snapshot = home.path().join("hub/models--org--tiny/snapshots/1");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"), &snapshot).unwrap();
    let other = home.path().join("models/broken");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("config.json"), "{").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        clean(&mut command).env("HF_HOME", home.path()).args(arguments).output().unwrap()
    };
    let models = home.path().join("models");
    let listed =
        run(env!("CARGO_BIN_EXE_mach-models"), &["--json", "--models-dir", models.to_str().unwrap()]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["model"], &listed[0]["model_type"]), (&json!("org/tiny"), &json!("qwen3_5_moe")));
    assert_eq!((&listed[0]["engine_format"], &listed[0]["resident"]), (&json!(true), &json!("fits")));
    assert!(listed[0]["bytes"].as_u64().unwrap() > 40_000_000);
    assert!(listed[1]["reason"].as_str().unwrap().contains("config.json"), "{listed:#}");
    let table = run(env!("CARGO_BIN_EXE_mach"), &["models", "--models-dir", models.to_str().unwrap()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("org/tiny ")), "{table}");
    let found = run(env!("CARGO_BIN_EXE_mach"), &["check", "org/tiny", "--json"]);
    assert_eq!(found.status.code(), Some(0));
    let missing = run(env!("CARGO_BIN_EXE_mach"), &["check", "org/huge"]);
    let stderr = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(2) && stderr.contains("hf download org/huge"), "{stderr}");
    assert_eq!(run(env!("CARGO_BIN_EXE_mach-models"), &["--models-dir", "/nowhere"]).status.code(), Some(2));
}
