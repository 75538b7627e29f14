//! Synthetic checkpoints open like real ones, spread their routing as asked, and repeat by seed.

use mach_checkpoint::synth::{self, Routing, SynthError, SynthOptions, SynthReport};
use mach_checkpoint::{Checkpoint, LayerKind, Packing};
use mach_quant::Bits;
use tempfile::TempDir;

fn write(shape: &str, layers: usize, routing: Routing, seed: u64) -> (TempDir, SynthReport) {
    let dir = tempfile::tempdir().unwrap();
    let options =
        SynthOptions { shape: shape.to_owned(), layers, routing, seed, out: dir.path().join("model") };
    let mut last = 0;
    let report = synth::write(&options, &mut |p| {
        assert!(p.bytes_done > last && p.bytes_done <= p.bytes_total);
        last = p.bytes_done;
    })
    .unwrap();
    assert_eq!(last, report.bytes);
    (dir, report)
}

#[test]
fn a_synthetic_checkpoint_reads_like_a_real_one() {
    for shape in ["tiny-qwen3_5_moe", "tiny-qwen3_moe", "tiny-gemma4", "tiny-gpt_oss", "tiny-deepseek_v4"] {
        let (dir, report) = write(shape, 3, Routing::Uniform, 1);
        assert!(report.shards >= 2);
        let checkpoint = Checkpoint::open(&dir.path().join("model")).unwrap();
        assert_eq!(checkpoint.data_bytes(), report.bytes);
        assert_eq!(checkpoint.norm_offset(), 0.0);
        assert!(checkpoint.is_synthetic());
        let config = checkpoint.config();
        assert_eq!(config.layers.len(), 3);
        checkpoint.tokenizer().unwrap();
        assert!(checkpoint.chat_template().unwrap().is_some());
        for (layer, kind) in config.layers.iter().enumerate() {
            if *kind == LayerKind::LinearAttention {
                checkpoint.conv1d(layer).unwrap();
            }
            let experts = checkpoint.experts(layer).unwrap();
            assert_eq!(experts.len(), config.moe.num_experts);
            let mxfp4 = shape == "tiny-gpt_oss" || shape == "tiny-deepseek_v4";
            for part in experts.iter().flat_map(|e| [e.gate, e.up, e.down]) {
                match part.packing {
                    Packing::Affine { bits: Bits::B4, group: 64, .. } => assert!(!mxfp4),
                    other => assert!(mxfp4 && other == Packing::Mxfp4),
                }
                part.check_finite().unwrap();
            }
            // Output projections leave the carried dimensions alone.
            let carried = experts[0].down.slice_rows(0, 128).unwrap();
            if mxfp4 {
                assert!(carried.weight.iter().all(|&b| b == 0));
                if let Some(biases) = experts[0].biases {
                    assert!(biases.down.values().unwrap()[..128].iter().all(|&b| b == 0.0));
                    assert!(biases.gate.values().unwrap().iter().any(|&b| b != 0.0));
                }
            } else {
                assert!(carried.scales.iter().chain(carried.biases).all(|b| b & 0x7f == 0));
            }
            assert_ne!(experts[0].down.weight, experts[1].down.weight);
        }
    }
}

#[test]
fn uniform_routing_spreads() {
    let (_dir, report) = write("tiny-qwen3_moe", 2, Routing::Uniform, 7);
    for layer in &report.spread.layers {
        // 4 of 32 a token: 12.5 % each when even.
        assert!(layer.hottest < 0.17, "{layer:?}");
        assert!(layer.effective_experts > 31.0, "{layer:?}");
        assert_eq!(layer.coverage, 1.0);
    }
    assert_ne!(report.spread.layers[0], report.spread.layers[1]);
}

#[test]
fn zipf_routing_is_as_steep_as_asked() {
    let (_dir, report) = write("tiny-qwen3_moe", 2, Routing::Zipf(1.0), 7);
    for layer in &report.spread.layers {
        // Shares 4 / (r H_32), the first capped at 95 %: the entropy of that is 18 experts' worth.
        assert!((0.85..0.99).contains(&layer.hottest), "{layer:?}");
        assert!((15.0..21.0).contains(&layer.effective_experts), "{layer:?}");
    }
    assert!(report.spread.to_string().lines().count() == 5);
}

#[test]
fn equal_seeds_give_equal_files() {
    let fingerprint = |seed| {
        let (dir, _) = write("tiny-qwen3_5_moe", 1, Routing::Zipf(0.8), seed);
        Checkpoint::open(&dir.path().join("model")).unwrap().fingerprint()
    };
    assert_eq!(fingerprint(3), fingerprint(3));
    assert_ne!(fingerprint(3), fingerprint(4));
}

/// What predicts the token after the next is there where the shape says so, and is all that differs.
#[test]
fn a_shape_may_have_a_block_of_its_own() {
    let names = |shape: &str| {
        let (dir, _) = write(shape, 2, Routing::Uniform, 3);
        let checkpoint = Checkpoint::open(&dir.path().join("model")).unwrap();
        let all: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        all
    };
    let (plain, with) = (names("tiny-qwen3_5_moe"), names("tiny-qwen3_5_moe-mtp"));
    let (block, rest): (Vec<String>, Vec<String>) = with.into_iter().partition(|n| n.starts_with("mtp."));
    assert_eq!(rest, plain);
    for name in ["mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.mlp.switch_mlp.up_proj.weight"] {
        assert!(block.iter().any(|n| n == name), "{name} is not in {block:?}");
    }
}

#[test]
fn requests_that_cannot_be_met() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = SynthOptions {
        shape: "tiny-qwen3_moe".to_owned(),
        layers: 9,
        routing: Routing::Uniform,
        seed: 0,
        out: dir.path().to_owned(),
    };
    assert!(matches!(
        synth::write(&options, &mut |_| ()),
        Err(SynthError::Layers { layers: 9, most: 3, .. })
    ));
    options.layers = 1;
    std::fs::write(dir.path().join("kept"), "").unwrap();
    assert!(matches!(synth::write(&options, &mut |_| ()), Err(SynthError::NotEmpty(_))));
    options.shape = "qwen9".to_owned();
    let error = synth::write(&options, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("qwen9") && error.contains("qwen3.6-35b-a3b"), "{error}");
}
