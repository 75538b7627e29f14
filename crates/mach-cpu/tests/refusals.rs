//! Models that are valid but that this build cannot run.

use std::path::Path;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_models::LoadOptions;

#[test]
fn heads_that_are_no_whole_vectors_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen3_moe/bf16");
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).expect("copy");
    let config = std::fs::read_to_string(from.join("config.json")).expect("config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["head_dim"] = 24.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("write");

    let checkpoint = Checkpoint::open(dir.path()).expect("checkpoint");
    let error = load(&checkpoint, &LoadOptions::default(), &mut |_| {}).err().expect("refused").to_string();
    assert!(error.contains("`head_dim` is 24") && error.contains("multiple of 16"), "{error}");
}
