//! A converted checkpoint computes what its source computes, bit by bit.

mod common;

use common::{converted, copy_of, logits, project};
use mach_checkpoint::Checkpoint;
use mach_checkpoint::synth::{self, Routing, SynthOptions};
use mach_convert::{Quantize, export_sidecar, verify};
use mach_experts::{Bank, Sidecar};
use mach_io::{Caching, ReaderOptions, Submission};
use mach_models::mtp::Features;
use mach_models::{Activations, DraftOptions, LoadOptions, LogitRows};
use mach_quant::{Bits, Order};

const CHECKPOINTS: [&str; 14] = [
    "fixtures/gpt_oss/mxfp4",
    "fixtures/gpt_oss/bf16",
    "fixtures/gpt_oss/mlx-mxfp4-q4",
    "fixtures/qwen3_5_moe/bf16",
    "fixtures/qwen3_5_moe/mlx-4bit",
    "fixtures/qwen3_moe/bf16",
    "fixtures/qwen3_moe/mlx-4bit",
    "fixtures/qwen3_moe/mlx-8bit-g32",
    "fixtures/qwen3_moe/mlx-mxfp4",
    "fixtures/gemma4/bf16",
    "fixtures/gemma4/mlx-4bit",
    "fixtures/deepseek_v4/bf16",
    "fixtures/deepseek_v4/fp8",
    "fixtures/deepseek_v4/mlx-mixed",
];

#[test]
fn conversion_changes_no_logit() {
    for name in CHECKPOINTS {
        let source = project(name);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("converted");
        let report = converted(&source, &out, None).unwrap();
        assert!(!report.unchanged && report.layers > 0 && report.expert_bytes > 0);
        for activations in [Activations::Int8, Activations::F32] {
            let (a, b) = (logits(&source, activations).unwrap(), logits(&out, activations).unwrap());
            assert!(a == b, "{name} {activations:?}");
        }
        let checkpoint = Checkpoint::open(&out).unwrap();
        verify(&checkpoint, &mut |_| ()).unwrap();
        assert!(!out.with_file_name("converted.partial").exists());
        let mut names: Vec<String> = std::fs::read_dir(out.join("expert_sidecar"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), report.layers + 1, "{names:?}");
        assert_eq!(names.last().unwrap(), "manifest.json");
        // Again: nothing to do.
        assert!(converted(&source, &out, None).unwrap().unchanged);
        // The converted one is no source.
        let again = converted(&out, &dir.path().join("again"), None).unwrap_err();
        assert!(again.to_string().contains("already in engine format"), "{again}");
    }
}

/// What a model's own block says of a prompt, as bits.
fn predicted(dir: &std::path::Path, activations: Activations) -> Vec<u32> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let options = LoadOptions { activations, threads: 2, ..LoadOptions::default() };
    let mut model = mach_cpu::load(&checkpoint, &options, &mut |_| ()).unwrap();
    let block = model.load_mtp(&checkpoint, DraftOptions::default()).unwrap();
    let needs = mach_cpu::check_block(&checkpoint, &options, DraftOptions::default()).unwrap();
    assert_eq!(needs, block.needs());
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % 200).collect();
    let features: Vec<f32> = (0..24 * block.width()).map(|i| (i * 7 % 13) as f32 / 4.0 - 1.5).collect();
    let host = model.mtp_host().unwrap();
    let features = Features::Model(&features);
    let said = host.predict(&mut block.new_context(), features, &tokens, LogitRows::All).unwrap();
    said.logits.data.iter().map(|v| v.to_bits()).collect()
}

/// The block for the token after the next is kept, whichever form its experts have.
#[test]
fn a_models_own_block_is_kept() {
    for name in ["fixtures/qwen3_5_moe/bf16", "fixtures/deepseek_v4/bf16"] {
        let source = project(name);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("converted");
        // But for the two tensors of an image encoder nothing is left out.
        let left_out = if name.contains("qwen") { 2 } else { 0 };
        assert_eq!(converted(&source, &out, None).unwrap().left_out, left_out, "{name}");
        for activations in [Activations::Int8, Activations::F32] {
            let (ours, theirs) = (predicted(&out, activations), predicted(&source, activations));
            assert!(ours == theirs && ours.len() > 1000, "{name} {activations:?}");
        }
        let fewer = dir.path().join("fewer");
        converted(&source, &fewer, Some(Quantize { bits: Bits::B4, group: 64 })).unwrap();
        assert!(predicted(&fewer, Activations::F32) != predicted(&source, Activations::F32), "{name}");
        verify(&Checkpoint::open(&fewer).unwrap(), &mut |_| ()).unwrap();
    }
    // In MLX's form, whose experts are quantized and lie in stacks of another name.
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("converted"));
    let shape = "tiny-qwen3_5_moe-mtp".to_owned();
    let (routing, out_of_synth) = (Routing::Uniform, source.clone());
    let options = SynthOptions { shape, layers: 1, routing, seed: 3, out: out_of_synth };
    synth::write(&options, &mut |_| ()).unwrap();
    assert_eq!(converted(&source, &out, None).unwrap().left_out, 0);
    assert!(predicted(&out, Activations::Int8) == predicted(&source, Activations::Int8));

    // A file without it converts as well, and says what it lacks.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("converted");
    converted(&project("fixtures/qwen3_5_moe/mlx-4bit"), &out, None).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let error = mach_cpu::check_block(&checkpoint, &LoadOptions::default(), DraftOptions::default());
    assert!(error.unwrap_err().to_string().contains("no tensors `mtp.*`"));
}

/// The published forms of gpt_oss hold the same values, whichever way they lie.
#[test]
fn blocks_and_transposed_floats_are_the_same_experts() {
    let form = |form: &str| logits(&project(&format!("fixtures/gpt_oss/{form}")), Activations::F32).unwrap();
    assert!(form("mxfp4") == form("bf16"));
}

/// A model without experts is converted, too, with an empty sidecar; none is written beside its tensors.
#[test]
fn models_without_experts() {
    for name in ["fixtures/llama/bf16", "fixtures/qwen3_5/mlx-4bit"] {
        let source = project(name);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("converted");
        let report = converted(&source, &out, None).unwrap();
        assert!(report.layers == 0 && report.expert_bytes == 0 && report.resident_bytes > 0);
        for activations in [Activations::Int8, Activations::F32] {
            let (a, b) = (logits(&source, activations).unwrap(), logits(&out, activations).unwrap());
            assert!(a == b, "{name} {activations:?}");
        }
        verify(&Checkpoint::open(&out).unwrap(), &mut |_| ()).unwrap();
        let copy = copy_of(&source);
        let error = export_sidecar(&Checkpoint::open(copy.path()).unwrap(), 1, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("no routed experts"), "{error}");
        assert!(!copy.path().join("expert_sidecar").exists());
    }
}

#[test]
fn a_sidecar_beside_the_tensors_holds_the_same_experts() {
    let source = project("fixtures/qwen3_5_moe/mlx-4bit");
    let dir = copy_of(&source);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    // Twice: the second replaces the first.
    for _ in 0..2 {
        let report = export_sidecar(&checkpoint, 2, &mut |_| ()).unwrap();
        assert!(report.layers > 0);
    }
    let sidecar = Sidecar::open(&checkpoint).unwrap();
    let config = checkpoint.config();
    for order in [Order::Tiles, Order::Rows] {
        let from_tensors = Bank::resident(&checkpoint, order, 2, &mut |_| ()).unwrap();
        for submission in [Submission::Auto, Submission::Pread] {
            for caching in [Caching::Direct, Caching::Buffered] {
                let options = ReaderOptions { submission, caching, depth: 3, ..Default::default() };
                let mut reader = sidecar.reader(&options).unwrap();
                let from_sidecar = Bank::from_sidecar(&sidecar, order, &mut reader, &mut |_| ()).unwrap();
                assert_eq!(from_sidecar.weight_bytes(), from_tensors.weight_bytes());
                for layer in 0..config.layers.len() {
                    for expert in 0..config.moe.num_experts {
                        let a = from_tensors.expert(layer, expert).unwrap();
                        let b = from_sidecar.expert(layer, expert).unwrap();
                        for (a, b) in [(a.gate, b.gate), (a.up, b.up), (a.down, b.down)] {
                            assert_eq!(a.layout, b.layout);
                            assert!(a.data == b.data, "layer {layer} expert {expert}");
                        }
                    }
                }
                assert!(from_sidecar.expert(0, config.moe.num_experts).is_none());
            }
        }
    }
    let mut reader = sidecar.reader(&ReaderOptions::default()).unwrap();
    sidecar.verify_sample(&mut reader).unwrap();
    verify(&checkpoint, &mut |_| ()).unwrap();
    // Another checkpoint's sidecar is not taken.
    let other = project("fixtures/qwen3_5_moe/mlx-4bit");
    let copy = copy_of(&other);
    std::fs::rename(dir.path().join("expert_sidecar"), copy.path().join("expert_sidecar")).unwrap();
    let path = copy.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{config}\n")).unwrap();
    let error = Sidecar::open(&Checkpoint::open(copy.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("another checkpoint"), "{error}");
}

/// Quantizing the published form gives what MLX made of it, wherever both quantize.
#[test]
fn quantized_experts_equal_those_of_mlx() {
    let dir = tempfile::tempdir().unwrap();
    for (family, mlx, quantize) in [
        ("qwen3_moe", "mlx-4bit", Quantize { bits: Bits::B4, group: 64 }),
        ("qwen3_5_moe", "mlx-4bit", Quantize { bits: Bits::B4, group: 64 }),
        ("gemma4", "mlx-4bit", Quantize { bits: Bits::B4, group: 64 }),
        ("qwen3_moe", "mlx-8bit-g32", Quantize { bits: Bits::B8, group: 32 }),
    ] {
        let (ours, theirs) =
            (dir.path().join(format!("{family}-{mlx}-ours")), dir.path().join(format!("{family}-{mlx}")));
        converted(&project(&format!("fixtures/{family}/bf16")), &ours, Some(quantize)).unwrap();
        converted(&project(&format!("fixtures/{family}/{mlx}")), &theirs, None).unwrap();
        for entry in std::fs::read_dir(ours.join("expert_sidecar")).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "manifest.json" {
                let read =
                    |dir: &std::path::Path| std::fs::read(dir.join("expert_sidecar").join(&name)).unwrap();
                assert!(read(&ours) == read(&theirs), "{family} {mlx} {name:?}");
            }
        }
        assert!(!logits(&ours, Activations::Int8).unwrap().is_empty());
        let again =
            converted(&project(&format!("fixtures/{family}/{mlx}")), &dir.path().join("x"), Some(quantize));
        assert!(again.unwrap_err().to_string().contains("already quantized"));
    }
    let bad = converted(
        &project("fixtures/qwen3_moe/bf16"),
        &dir.path().join("y"),
        Some(Quantize { bits: Bits::B3, group: 48 }),
    );
    assert!(bad.unwrap_err().to_string().contains("48 columns"));
}
