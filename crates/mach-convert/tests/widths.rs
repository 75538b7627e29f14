//! Checkpoints of every width that MLX quantizes to, and of all of them mixed, load, convert and stream, and have one
//! answer: the one that their values have when they are written out as floats.

mod common;
#[path = "common/quantized.rs"]
mod quantized;

use std::path::Path;

use common::{converted, project};
use mach_checkpoint::{Checkpoint, Packing, WeightSource};
use mach_convert::Quantize;
use mach_cpu::{footprint, load};
use mach_experts::{Projection, Sidecar};
use mach_kernels::Isa;
use mach_models::{
    Activations, ExpertMode, LoadOptions, LogitRows, NoObserver, Segment, StreamingOptions, StreamingSource,
};
use mach_quant::{Bits, Codec};
use quantized::{Scheme, expanded};

const FAMILIES: [&str; 2] = ["qwen3_moe", "qwen3_5_moe"];
const PATHS: [Activations; 2] = [Activations::Int8, Activations::F32];

/// The bits of the logits of a short prompt.
fn logits(dir: &Path, activations: Activations, isa: Isa, experts: ExpertMode) -> Vec<u32> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let isa = Some(isa.name().to_owned());
    let options = LoadOptions { activations, threads: 2, isa, experts, ..Default::default() };
    let mut model = load(&checkpoint, &options, &mut |_| ()).unwrap();
    let tokens: Vec<u32> = (0..13).map(|i| (i * 37 + 11) % checkpoint.config().vocab_size as u32).collect();
    let mut state = model.new_state();
    let mut segments = [Segment::prompt(&mut state, &tokens, LogitRows::All)];
    let logits = model.forward(&mut segments, &mut NoObserver).unwrap();
    logits.data.iter().map(|v| v.to_bits()).collect()
}

fn streaming(dir: &Path, source: StreamingSource) -> ExpertMode {
    let sizes = footprint(&Checkpoint::open(dir).unwrap(), Activations::Int8, Some(source)).unwrap();
    ExpertMode::Streaming(StreamingOptions {
        source,
        bank_slots: sizes.working_set,
        arena_slots: 3,
        ..StreamingOptions::default()
    })
}

/// Resident, converted, streamed from records and from slices, on every instruction set: one answer, and with exact
/// activations that of the values as floats.
fn one_answer(family: &str, what: &str, scheme: impl Fn(&str, usize) -> Scheme) {
    let dir = tempfile::tempdir().unwrap();
    let [mlx, engine, floats] = ["mlx", "engine", "floats"].map(|name| dir.path().join(name));
    let source = project(&format!("fixtures/{family}/bf16"));
    quantized::quantized(&source, &mlx, &scheme);
    expanded(&source, &floats, &scheme);
    converted(&mlx, &engine, None).unwrap();
    mach_convert::verify(&Checkpoint::open(&engine).unwrap(), &mut |_| ()).unwrap();
    for activations in PATHS {
        let expected = logits(&mlx, activations, Isa::SCALAR, ExpertMode::Resident);
        if activations == Activations::F32 {
            let floats = logits(&floats, activations, Isa::best(), ExpertMode::Resident);
            assert!(expected == floats, "{family} {what}: the values as floats");
        }
        for isa in Isa::available() {
            for (place, got) in [
                ("resident", logits(&mlx, activations, isa, ExpertMode::Resident)),
                ("converted", logits(&engine, activations, isa, ExpertMode::Resident)),
                ("streamed", logits(&engine, activations, isa, streaming(&engine, StreamingSource::Sidecar))),
                ("sliced", logits(&mlx, activations, isa, streaming(&mlx, StreamingSource::Diagnostic))),
            ] {
                assert!(got == expected, "{family} {what} {activations:?} {isa}, {place}");
            }
        }
    }
}

#[test]
fn checkpoints_of_one_width_have_one_answer() {
    for (i, bits) in Bits::ALL.into_iter().enumerate() {
        let group = [32, 64][i % 2];
        one_answer(FAMILIES[i % 2], &format!("{bits} bits"), |_, _| (bits, group));
    }
}

/// Another width and group in every module: by its name, so that layers differ, and gate, up and down of an expert.
fn mixed(module: &str, cols: usize) -> Scheme {
    let hash = module.bytes().fold(7usize, |h, b| (h * 31 + usize::from(b)) % 100_003);
    let groups: &[usize] = if cols.is_multiple_of(128) { &[128, 64, 32] } else { &[64, 32] };
    (Bits::ALL[hash % 6], groups[hash / 6 % groups.len()])
}

#[test]
fn checkpoints_mixed_by_module_have_one_answer() {
    for family in FAMILIES {
        one_answer(family, "mixed", mixed);
    }
}

#[test]
fn a_mixed_record_has_the_width_of_each_projection() {
    let dir = tempfile::tempdir().unwrap();
    let [mlx, engine] = ["mlx", "engine"].map(|name| dir.path().join(name));
    quantized::quantized(&project("fixtures/qwen3_moe/bf16"), &mlx, mixed);
    converted(&mlx, &engine, None).unwrap();
    let sidecar = Sidecar::open(&Checkpoint::open(&engine).unwrap()).unwrap();
    assert_eq!(sidecar.manifest().version, 2);
    let mut seen = std::collections::BTreeSet::new();
    for entry in &sidecar.manifest().layers {
        for part in entry.record.parts() {
            let name = match part.projection {
                Projection::Gate => "gate",
                Projection::Up => "up",
                Projection::Down => "down",
                Projection::GateUp => panic!("not fused"),
            };
            let module = format!("model.layers.{}.mlp.switch_mlp.{name}_proj", entry.layer);
            let Codec::Affine { bits, group, .. } = part.layout.codec else { panic!("quantized") };
            assert_eq!((bits, group), mixed(&module, 64), "{module}");
            seen.insert(bits);
        }
    }
    assert!(seen.len() > 3, "{seen:?}");
}

/// A directory as MLX writes it at 6 bits: refused once, now a checkpoint like any other.
#[test]
fn a_6_bit_directory_of_mlx_opens() {
    let dir = tempfile::tempdir().unwrap();
    quantized::quantized(&project("fixtures/qwen3_moe/bf16"), dir.path(), |_, _| (Bits::B6, 64));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let is_6_bit = |packing| matches!(packing, Packing::Affine { bits: Bits::B6, group: 64, .. });
    for layer in 0..checkpoint.config().layers.len() {
        for expert in checkpoint.experts(layer).unwrap() {
            assert!([expert.gate, expert.up, expert.down].iter().all(|m| is_6_bit(m.packing)));
        }
    }
    let WeightSource::Stored(head) = checkpoint.weights("lm_head", 320, 64).unwrap() else {
        panic!("not converted")
    };
    assert!(is_6_bit(head.packing) && head.weight.len() == 320 * 64 * 6 / 8);
}

/// Quantizing while converting is quantizing and then converting.
#[test]
fn converting_to_a_width_gives_its_records() {
    for bits in Bits::ALL {
        let dir = tempfile::tempdir().unwrap();
        let [mlx, theirs, ours] = ["mlx", "theirs", "ours"].map(|name| dir.path().join(name));
        let source = project("fixtures/qwen3_moe/bf16");
        quantized::quantized(&source, &mlx, |_, _| (bits, 32));
        converted(&mlx, &theirs, None).unwrap();
        converted(&source, &ours, Some(Quantize { bits, group: 32 })).unwrap();
        let read = |dir: &Path, name: &str| std::fs::read(dir.join("expert_sidecar").join(name)).unwrap();
        for layer in 0..4 {
            let name = format!("layer-{layer:03}.experts");
            assert!(read(&theirs, &name) == read(&ours, &name), "{bits} bits, {name}");
        }
        assert!(!logits(&ours, Activations::Int8, Isa::best(), ExpertMode::Resident).is_empty());
    }
}

/// A sidecar whose manifest is of the first version stays what it is: the records are the same bytes.
#[test]
fn a_manifest_of_version_1_is_served_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine");
    converted(&project("fixtures/qwen3_moe/mlx-4bit"), &engine, None).unwrap();
    let run = || {
        let modes = [ExpertMode::Resident, streaming(&engine, StreamingSource::Sidecar)];
        modes.map(|mode| logits(&engine, Activations::Int8, Isa::best(), mode))
    };
    let expected = run();
    let path = engine.join("expert_sidecar/manifest.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["version"], 2);
    json["version"] = 1.into();
    for layer in json["layers"].as_array_mut().unwrap() {
        let parts = layer.as_object_mut().unwrap().remove("projections").unwrap();
        for part in parts.as_array().unwrap() {
            layer[part["projection"].as_str().unwrap()] = part["layout"].clone();
        }
    }
    let text = json.to_string();
    std::fs::write(&path, &text).unwrap();
    assert!(run() == expected);
    let checkpoint = Checkpoint::open(&engine).unwrap();
    mach_convert::verify(&checkpoint, &mut |_| ()).unwrap();
    assert_eq!(Sidecar::open(&checkpoint).unwrap().manifest().version, 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    // A conversion that finds it there is content with it.
    assert!(converted(&project("fixtures/qwen3_moe/mlx-4bit"), &engine, None).unwrap().unchanged);
}
