//! Every fixture and the demo pass on the exact path; a wrong golden is a miss, a missing one an error.

use std::path::{Path, PathBuf};

use mach_golden::{Check, Options, check_directory};
use mach_models::{Activations, LoadOptions};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn exact() -> Options {
    Options {
        load: LoadOptions { activations: Activations::F32, ..LoadOptions::default() },
        decode_steps: Some(8),
        ..Options::default()
    }
}

fn run(dir: &Path) -> (bool, Vec<Check>) {
    let mut checks = Vec::new();
    let passed = check_directory(dir, &exact(), &mut |check| checks.push(check.clone())).unwrap();
    (passed, checks)
}

fn expect_all(name: &str, kinds: &[&str]) {
    let (passed, checks) = run(&root().join(name));
    let lines: Vec<String> = checks.iter().map(Check::to_string).collect();
    assert!(passed, "{name}:\n{}", lines.join("\n"));
    for kind in kinds {
        assert!(lines.iter().any(|line| line.contains(kind)), "{name}: no check of {kind}");
    }
}

const COMMON: &[&str] =
    &["logits", "hidden", "final", "router experts", "router weights", "greedy tokens", "greedy logits"];

const MTP: &[&str] = &["mtp logits", "mtp row by row", "mtp behind a chain", "mtp proposal"];

#[test]
fn qwen3_5_moe() {
    for form in ["bf16", "mlx-4bit"] {
        let own = if form == "bf16" { [MTP, &["behind a restored prefix"]].concat() } else { Vec::new() };
        let kinds = &[COMMON, &["gdn conv", "gdn state"], &own].concat();
        expect_all(&format!("fixtures/qwen3_5_moe/{form}"), kinds);
    }
}

#[test]
fn qwen3_moe() {
    for form in ["bf16", "mlx-4bit", "mlx-8bit-g32", "mlx-mxfp4"] {
        expect_all(&format!("fixtures/qwen3_moe/{form}"), COMMON);
    }
}

#[test]
fn gemma4() {
    for form in ["bf16", "mlx-4bit"] {
        expect_all(&format!("fixtures/gemma4/{form}"), COMMON);
    }
}

#[test]
fn dense() {
    for family in ["qwen3", "qwen3_5", "llama", "mistral", "gemma", "gemma3_text"] {
        let kinds = ["logits", "greedy tokens", "greedy logits"];
        expect_all(&format!("fixtures/{family}/bf16"), &[&kinds[..], &["hidden", "final"]].concat());
        expect_all(&format!("fixtures/{family}/mlx-4bit"), &kinds);
    }
}

#[test]
fn gpt_oss() {
    for form in ["bf16", "mxfp4", "mlx-mxfp4-q4"] {
        expect_all(&format!("fixtures/gpt_oss/{form}"), COMMON);
    }
}

#[test]
fn deepseek_v4() {
    for form in ["bf16", "fp8", "mlx-4bit", "mlx-mixed"] {
        let own = if form == "bf16" { MTP } else { &[] };
        expect_all(&format!("fixtures/deepseek_v4/{form}"), &[COMMON, own].concat());
    }
}

#[test]
fn demo() {
    expect_all(
        "demo",
        &["top logits", "greedy tokens", "text", "decode equals one pass", "output", "acceptance"],
    );
}

#[test]
fn drafts() {
    for form in ["draft-full", "draft-mixed", "draft2"] {
        expect_all(
            &format!("fixtures/dflash/{form}"),
            &["draft logits", "drafted tokens", "features", "verify logits", "trace", "output"],
        );
    }
}

#[test]
fn eagle_heads() {
    expect_all(
        "fixtures/eagle3/deepseek_v4",
        &[
            "eagle3 logits",
            "row by row",
            "chain logits",
            "chain tokens",
            "proposal",
            "behind a restored prefix",
        ],
    );
}

#[test]
fn a_wrong_trace_is_a_miss() {
    let source = root().join("fixtures/dflash/draft-full");
    let target = root().join("fixtures/qwen3_5_moe/bf16").canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "golden.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let mut golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("golden.json")).unwrap()).unwrap();
    golden["target"] = target.to_str().unwrap().into();
    let accepted = &mut golden["runs"][0]["steps"][1]["accepted"];
    *accepted = (accepted.as_u64().unwrap() - 1).into();
    let drafted = &mut golden["runs"][1]["steps"][0]["drafted"][2];
    *drafted = (drafted.as_u64().unwrap() ^ 1).into();
    std::fs::write(dir.path().join("golden.json"), golden.to_string()).unwrap();
    let (passed, checks) = run(dir.path());
    assert!(!passed);
    let missed: Vec<&str> = checks.iter().filter(|c| !c.passed()).map(|c| c.name.as_str()).collect();
    assert_eq!(missed.len(), 3, "{missed:?}");
    for (name, word) in
        missed.iter().zip(["run 0 (7 tokens) trace", "drafted tokens", "run 1 (65 tokens) trace"])
    {
        assert!(name.contains(word), "{name}");
    }
}

#[test]
fn a_wrong_golden_is_a_miss() {
    let source = root().join("fixtures/qwen3_moe/bf16");
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "golden.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let golden = dir.path().join("golden.safetensors");
    let mut bytes = std::fs::read(&golden).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let steps = header["__metadata__"]["steps"].as_str().unwrap();
    let steps: serde_json::Value = serde_json::from_str(steps).unwrap();
    let mut bytes_of = |name: &str, change: &dyn Fn(&mut [u8])| {
        let start = 8 + length + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        change(&mut bytes[start..]);
    };
    let mut add = |name: &str, difference: f32| {
        let count = (difference / 2f32.powi(steps[name].as_i64().unwrap() as i32)).round() as i16;
        bytes_of(name, &|to| {
            let value = i16::from_le_bytes(to[..2].try_into().unwrap());
            to[..2].copy_from_slice(&(value + count).to_le_bytes());
        });
    };
    add("p0.logits", 0.01);
    add("p2.hidden.1", -0.005);
    bytes_of("p0.greedy_tokens", &|to| to[0] ^= 1);
    bytes_of("p1.router.2.indices", &|to| to[0] ^= 1);
    std::fs::write(&golden, bytes).unwrap();
    let (passed, checks) = run(dir.path());
    assert!(!passed);
    let missed: Vec<String> = checks.iter().filter(|c| !c.passed()).map(|c| c.name.clone()).collect();
    for (prompt, what) in [(0, ") logits"), (0, "greedy tokens"), (1, "router experts"), (2, "hidden")] {
        let start = format!("prompt {prompt} ");
        assert!(missed.iter().any(|m| m.starts_with(&start) && m.contains(what)), "{what}: {missed:?}");
    }
    assert!(!missed.iter().any(|m| m.starts_with("prompt 3 ")), "{missed:?}");
}

#[test]
fn unusable_directories_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let error = check_directory(dir.path(), &exact(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("golden"), "{error}");
    std::fs::write(dir.path().join("golden.json"), r#"{"cases": [{"name": 1}]}"#).unwrap();
    assert!(check_directory(dir.path(), &exact(), &mut |_| ()).is_err());
    std::fs::write(dir.path().join("golden.json"), r#"{"cases": []}"#).unwrap();
    let error = check_directory(dir.path(), &exact(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
