//! Damaged results are errors that name the file; interrupted conversions go on.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[cfg(target_os = "linux")]
use common::copy_of;
use common::{converted, flip, logits, options, project};
use mach_checkpoint::Checkpoint;
use mach_checkpoint::synth::{self, Routing, SynthOptions};
#[cfg(target_os = "linux")]
use mach_convert::export_sidecar;
use mach_convert::{ConvertError, convert, verify};
use mach_models::Activations;

fn fails_with(dir: &Path, words: &[&str]) {
    for activations in [Activations::Int8, Activations::F32] {
        let error = logits(dir, activations).expect_err("damaged").to_string();
        for word in words {
            assert!(error.contains(word), "{error} lacks {word}");
        }
    }
}

#[test]
fn damage_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("converted");
    converted(&project("fixtures/qwen3_5_moe/mlx-4bit"), &out, None).unwrap();
    let layer = out.join("expert_sidecar/layer-001.experts");
    let manifest = out.join("expert_sidecar/manifest.json");
    let resident = out.join("resident.safetensors");
    let (good_layer, good_manifest, good_resident) = (
        std::fs::read(&layer).unwrap(),
        std::fs::read(&manifest).unwrap(),
        std::fs::read(&resident).unwrap(),
    );

    flip(&layer, good_layer.len() as u64 / 2);
    fails_with(&out, &["layer-001.experts", "of layer 1 is damaged", "checksum"]);
    assert!(verify(&Checkpoint::open(&out).unwrap(), &mut |_| ()).is_err());
    std::fs::write(&layer, &good_layer[..good_layer.len() - 1]).unwrap();
    fails_with(&out, &["layer-001.experts", "manifest says"]);
    std::fs::remove_file(&layer).unwrap();
    fails_with(&out, &["layer-001.experts", "cannot be opened"]);
    std::fs::write(&layer, &good_layer).unwrap();

    std::fs::remove_file(&manifest).unwrap();
    fails_with(&out, &["no expert sidecar"]);
    let text = String::from_utf8(good_manifest.clone()).unwrap();
    for (from, to, words) in [
        ("\"version\": 2", "\"version\": 3", "version 3 is not known"),
        ("qwen3_5_moe", "qwen3_moe", "made for `qwen3_moe`"),
        ("layer-001.experts", "../secret", "not a file name"),
        ("\"record_align\": 16384", "\"record_align\": 4096", "record_align"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&manifest, text.replace(from, to)).unwrap();
        fails_with(&out, &["manifest.json", words]);
    }
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    fails_with(&out, &["manifest.json"]);
    std::fs::write(&manifest, &good_manifest).unwrap();

    // Anywhere in the data: matrices and vectors, their padding included.
    let data = 8 + u64::from_le_bytes(good_resident[..8].try_into().unwrap());
    let len = good_resident.len() as u64;
    for at in [data, data + (len - data) / 3, data + (len - data) / 2, len - 1] {
        flip(&resident, at);
        fails_with(&out, &["resident.safetensors", "checksum"]);
        std::fs::write(&resident, &good_resident).unwrap();
    }
    std::fs::write(&resident, &good_resident[..good_resident.len() - 1]).unwrap();
    fails_with(&out, &["resident.safetensors"]);
    std::fs::write(&resident, &good_resident).unwrap();
    assert!(logits(&out, Activations::Int8).is_ok());
}

#[test]
fn an_interrupted_conversion_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let options_of_source = SynthOptions {
        shape: "tiny-qwen3_5_moe".to_owned(),
        layers: 4,
        routing: Routing::Uniform,
        seed: 3,
        out: made.clone(),
    };
    synth::write(&options_of_source, &mut |_| ()).unwrap();
    let source = Checkpoint::open(&made).unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    convert(&source, &options(&whole, None), &mut |_| ()).unwrap();
    // Stopped hard at several points, each further on.
    for share in [0.3, 0.5, 0.7] {
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            convert(&source, &options(&out, None), &mut |p| {
                assert!((p.bytes_done as f64) < p.bytes_total as f64 * share, "stop");
            })
        }));
        assert!(stopped.is_err());
        assert!(!out.exists(), "nothing stands where the result is expected");
    }
    let partial = dir.path().join("out.partial/expert_sidecar");
    let finished = std::fs::read_dir(&partial).unwrap();
    let finished =
        finished.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "experts")).count();
    assert!(finished > 1, "layers were kept");
    // One of the finished layers rots meanwhile, and one loses its end: both are made again.
    let first = partial.join("layer-000.experts");
    let before = std::fs::metadata(partial.join("layer-002.experts")).unwrap().modified().unwrap();
    flip(&first, 12345);
    let second = std::fs::read(partial.join("layer-001.experts")).unwrap();
    std::fs::write(partial.join("layer-001.experts"), &second[..100]).unwrap();

    // Another conversion does not take the directory.
    let other = Checkpoint::open(&project("fixtures/qwen3_moe/bf16")).unwrap();
    let error = convert(&other, &options(&out, None), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("out.partial"), "{error}");

    let mut last = 0;
    convert(&source, &options(&out, None), &mut |p| {
        assert!(p.bytes_done >= last && p.bytes_done <= p.bytes_total);
        last = p.bytes_done;
    })
    .unwrap();
    let kept = std::fs::metadata(out.join("expert_sidecar/layer-002.experts")).unwrap().modified().unwrap();
    assert_eq!(before, kept, "a finished layer is not written again");
    for name in ["resident.safetensors", "expert_sidecar/manifest.json", "config.json", "tokenizer.json"] {
        assert!(std::fs::read(whole.join(name)).unwrap() == std::fs::read(out.join(name)).unwrap(), "{name}");
    }
    verify(&Checkpoint::open(&out).unwrap(), &mut |_| ()).unwrap();
}

#[test]
fn directories_of_others_are_left_alone() {
    let source = project("fixtures/qwen3_moe/bf16");
    let dir = tempfile::tempdir().unwrap();
    for name in ["out", "other.partial"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("letter.txt"), "dear").unwrap();
    }
    for name in ["out", "other"] {
        let error = converted(&source, &dir.path().join(name), None).unwrap_err();
        assert!(matches!(error, ConvertError::Input(_)), "{error}");
    }
    for name in ["out", "other.partial"] {
        assert_eq!(std::fs::read_dir(dir.path().join(name)).unwrap().count(), 1);
    }
}

/// A device that is always full stands in for a drive that fills up.
#[cfg(target_os = "linux")]
#[test]
fn a_full_drive_is_an_error_and_leaves_no_result() {
    let copy = copy_of(&project("fixtures/qwen3_moe/mlx-4bit"));
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let partial = copy.path().join("expert_sidecar.partial");
    let stopped = catch_unwind(AssertUnwindSafe(|| export_sidecar(&checkpoint, 1, &mut |_| panic!("stop"))));
    assert!(stopped.is_err());
    for file in std::fs::read_dir(&partial).unwrap().map(|f| f.unwrap().path()) {
        if file.file_name().unwrap() != "conversion.json" {
            std::fs::remove_file(file).unwrap();
        }
    }
    std::os::unix::fs::symlink("/dev/full", partial.join("layer-000.experts.unfinished")).unwrap();
    let error = export_sidecar(&checkpoint, 1, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, ConvertError::Full { .. }), "{error}");
    assert!(error.to_string().contains("layer-000.experts") && error.to_string().contains("full"), "{error}");
    assert!(!copy.path().join("expert_sidecar").exists());
    // With room again it goes on.
    export_sidecar(&checkpoint, 1, &mut |_| ()).unwrap();
    verify(&checkpoint, &mut |_| ()).unwrap();
}
