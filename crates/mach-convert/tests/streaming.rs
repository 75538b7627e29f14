//! One prompt, one answer: streamed experts give the logits of resident ones, bit by bit, whatever the bank, the arena, the
//! policy, the way of reading, what is cached, and how the prompt is cut. Failing drives are errors, and the next request is right.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{converted, copy_of, flip, project};
use mach_checkpoint::Checkpoint;
use mach_cpu::{Footprint, footprint, load};
use mach_experts::EvictionPolicy;
use mach_io::faults::{Fault, Faults};
use mach_io::{Caching, Submission};
use mach_models::{
    Activations, ExpertMode, LoadOptions, LogitRows, Model, ModelError, NoObserver, Purpose, Segment,
    StreamingOptions, StreamingSource,
};

const CHECKPOINTS: [&str; 10] = [
    "fixtures/gpt_oss/mxfp4",
    "fixtures/gpt_oss/bf16",
    "fixtures/qwen3_5_moe/bf16",
    "fixtures/qwen3_5_moe/mlx-4bit",
    "fixtures/qwen3_moe/bf16",
    "fixtures/qwen3_moe/mlx-4bit",
    "fixtures/qwen3_moe/mlx-8bit-g32",
    "fixtures/qwen3_moe/mlx-mxfp4",
    "fixtures/gemma4/bf16",
    "fixtures/gemma4/mlx-4bit",
];

fn model(dir: &Path, activations: Activations, experts: ExpertMode) -> Box<dyn Model> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let options = LoadOptions { activations, threads: 2, isa: None, experts, ..Default::default() };
    load(&checkpoint, &options, &mut |_| ()).unwrap()
}

/// Logits of a prompt in chunks, then of a few decoded tokens.
fn run(model: &mut dyn Model, chunk: usize) -> Result<Vec<u32>, ModelError> {
    let vocab = model.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % vocab).collect();
    let mut state = model.new_state();
    let mut out = Vec::new();
    let (prompt, rest) = tokens.split_at(34);
    // The same tokens as whatever a pass may be for.
    let purpose = match chunk {
        1 => Purpose::Decode,
        2..=16 => Purpose::Verify,
        _ => Purpose::Prompt,
    };
    let parts = prompt.chunks(chunk).map(|part| (part, purpose));
    for (tokens, purpose) in parts.chain(rest.chunks(1).map(|part| (part, Purpose::Decode))) {
        let mut segments = [Segment { state: &mut state, tokens, logits: LogitRows::All, purpose }];
        out.extend(model.forward(&mut segments, &mut NoObserver)?.data.iter().map(|v| v.to_bits()));
    }
    Ok(out)
}

fn sizes(dir: &Path, source: StreamingSource) -> Footprint {
    footprint(&Checkpoint::open(dir).unwrap(), Activations::Int8, Some(source)).unwrap()
}

/// What a pass is for is said, not guessed from its length: the tail of a prompt leaves a full bank as decoding has filled it.
#[test]
fn a_short_piece_of_a_prompt_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("converted");
    converted(&project("fixtures/qwen3_moe/mlx-4bit"), &out, None).unwrap();
    let bank_slots = sizes(&out, StreamingSource::Sidecar).working_set;
    let streaming = StreamingOptions { bank_slots, arena_slots: 8, ..StreamingOptions::default() };
    let mut model = model(&out, Activations::Int8, ExpertMode::Streaming(streaming));
    run(&mut *model, 1).unwrap();
    let evictions = |model: &dyn Model| model.streaming_stats().unwrap().snapshot().total.evictions;
    let before = evictions(&*model);
    assert!(before > 0, "a bank of one token's experts is full by now");
    let tokens: Vec<u32> = (0..10).map(|i| i * 29 % 300).collect();
    for (purpose, keeps) in [(Purpose::Prompt, true), (Purpose::Decode, false)] {
        let mut state = model.new_state();
        for tokens in tokens.chunks(if keeps { 10 } else { 1 }) {
            let segment = Segment { state: &mut state, tokens, logits: LogitRows::Last, purpose };
            model.forward(&mut [segment], &mut NoObserver).unwrap();
        }
        assert_eq!(evictions(&*model) == before, keeps, "{purpose:?}");
    }
}

#[test]
fn streaming_changes_no_logit() {
    for name in CHECKPOINTS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("converted");
        converted(&project(name), &out, None).unwrap();
        let sizes = sizes(&out, StreamingSource::Sidecar);
        for activations in [Activations::Int8, Activations::F32] {
            let expected = run(&mut *model(&project(name), activations, ExpertMode::Resident), 34).unwrap();
            let banks = [0, sizes.working_set, (sizes.working_set + sizes.experts) / 2, sizes.experts];
            for (i, bank_slots) in banks.into_iter().enumerate() {
                for (j, eviction) in EvictionPolicy::ALL.into_iter().enumerate() {
                    // The exact path is slow: one policy for each size.
                    if activations == Activations::F32 && j != i % 3 {
                        continue;
                    }
                    let streaming = StreamingOptions {
                        bank_slots,
                        arena_slots: [1, 3, 64][(i + j) % 3],
                        eviction,
                        submission: [Submission::Auto, Submission::Pread][(i + j) % 2],
                        caching: [Caching::Direct, Caching::Buffered][j % 2],
                        depth: [0, 1, 5][(i + 2 * j) % 3],
                        ..StreamingOptions::default()
                    };
                    let mut model = model(&out, activations, ExpertMode::Streaming(streaming.clone()));
                    // The first is cold; 17 rows are run as a prompt, 16 as a block of proposals, single ones as decoded.
                    for chunk in [34, 17, 16, 1] {
                        let got = run(&mut *model, chunk).unwrap();
                        assert!(got == expected, "{name} {activations:?} chunk {chunk} {streaming:?}");
                    }
                    let stats = model.streaming_stats().unwrap().snapshot();
                    let reads = &stats.total.reads;
                    assert!(reads.reads > 0 && reads.bytes_read > 0);
                    let by_layer: u64 = stats.layers.iter().map(|l| l.reads.bytes_read).sum();
                    assert_eq!(by_layer, reads.bytes_read);
                    assert_eq!(stats.bank_slots, bank_slots);
                    if bank_slots == sizes.experts {
                        assert_eq!(stats.total.evictions, 0);
                        let before = stats.total.reads.reads;
                        run(&mut *model, 1).unwrap();
                        let after = model.streaming_stats().unwrap().snapshot().total.reads.reads;
                        assert_eq!(after, before, "everything is there");
                    }
                }
            }
        }
    }
}

#[test]
fn slices_of_safetensors_give_the_same_logits() {
    for name in CHECKPOINTS {
        let dir = project(name);
        let bf16 = name.ends_with("bf16");
        let sources: &[StreamingSource] = if bf16 {
            &[StreamingSource::Bf16, StreamingSource::Diagnostic]
        } else {
            &[StreamingSource::Diagnostic]
        };
        for &source in sources {
            let sizes = sizes(&dir, source);
            for activations in [Activations::Int8, Activations::F32] {
                let expected = run(&mut *model(&dir, activations, ExpertMode::Resident), 34).unwrap();
                for bank_slots in [0, sizes.working_set] {
                    let streaming =
                        StreamingOptions { source, bank_slots, arena_slots: 3, ..Default::default() };
                    let mut model = model(&dir, activations, ExpertMode::Streaming(streaming));
                    for chunk in [34, 5] {
                        assert!(run(&mut *model, chunk).unwrap() == expected, "{name} {source:?}");
                    }
                    let stats = model.streaming_stats().unwrap().snapshot();
                    assert!(!stats.direct_pread.active && stats.direct_pread.mode == "slices");
                }
            }
        }
        if !bf16 {
            let checkpoint = Checkpoint::open(&dir).unwrap();
            let error = footprint(&checkpoint, Activations::Int8, Some(StreamingSource::Bf16)).unwrap_err();
            assert!(error.to_string().contains("not plain bfloat16"), "{error}");
        }
    }
}

#[test]
fn a_failing_drive_fails_one_pass_and_the_next_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("converted");
    converted(&project("fixtures/qwen3_5_moe/mlx-4bit"), &out, None).unwrap();
    let sizes = sizes(&out, StreamingSource::Sidecar);
    for (fault, words, activations) in [
        (Fault::Eio, "reading", Activations::Int8),
        (Fault::Eio, "reading", Activations::F32),
        (Fault::Short(0), "truncated", Activations::F32),
        (Fault::Flip(5000, 1), "checksum", Activations::Int8),
        (Fault::Flip(5000, 1), "checksum", Activations::F32),
    ] {
        let expected = run(&mut *model(&out, activations, ExpertMode::Resident), 34).unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let switch = Arc::clone(&broken);
        let plan = move |file: usize, offset: u64, _: usize| {
            // Every third record of one layer.
            (switch.load(Ordering::Relaxed) && file == 2 && (offset >> 14).is_multiple_of(3)).then_some(fault)
        };
        let streaming = StreamingOptions {
            bank_slots: sizes.working_set,
            arena_slots: 4,
            faults: Some(Faults(Arc::new(plan))),
            ..StreamingOptions::default()
        };
        let mut model = model(&out, activations, ExpertMode::Streaming(streaming));
        for chunk in [34, 1] {
            broken.store(true, Ordering::Relaxed);
            let error = run(&mut *model, chunk).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, ModelError::Streaming(_)), "{text}");
            assert!(text.contains(words) && text.contains("layer-002.experts"), "{text}");
            assert!(text.contains("of layer 2"), "{text}");
            broken.store(false, Ordering::Relaxed);
            assert!(run(&mut *model, chunk).unwrap() == expected, "after {fault:?}, chunk {chunk}");
        }
        assert!(
            model.streaming_stats().unwrap().snapshot().total.reads.read_failures > 0 || words == "checksum"
        );
    }
}

#[test]
fn files_that_change_while_they_are_streamed() {
    let source = tempfile::tempdir().unwrap();
    let out = source.path().join("converted");
    converted(&project("fixtures/qwen3_moe/mlx-4bit"), &out, None).unwrap();
    let mut resident = model(&out, Activations::Int8, ExpertMode::Resident);
    let expected = run(&mut *resident, 34).unwrap();
    let streaming = || ExpertMode::Streaming(StreamingOptions { arena_slots: 4, ..Default::default() });
    let file = out.join("expert_sidecar/layer-001.experts");
    let bytes = std::fs::read(&file).unwrap();

    // Overwritten in place: the checksum tells.
    let mut model_a = model(&out, Activations::Int8, streaming());
    assert!(run(&mut *model_a, 34).unwrap() == expected);
    flip(&file, 100);
    let error = run(&mut *model_a, 34).unwrap_err().to_string();
    assert!(error.contains("layer-001.experts: expert 0 of layer 1 is damaged"), "{error}");
    std::fs::write(&file, &bytes).unwrap();
    assert!(run(&mut *model_a, 34).unwrap() == expected);
    // Shortened in place.
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(20_000).unwrap();
    let error = run(&mut *model_a, 34).unwrap_err().to_string();
    assert!(error.contains("layer-001.experts: truncated"), "{error}");
    let checkpoint = Checkpoint::open(&out).unwrap();
    let options = LoadOptions { experts: streaming(), ..LoadOptions::default() };
    let error = load(&checkpoint, &options, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("layer-001.experts: 20000 bytes where the manifest says"), "{error}");
    std::fs::write(&file, &bytes).unwrap();
    assert!(run(&mut *model_a, 34).unwrap() == expected);
    // Replaced by another file: what was opened stays.
    let mut model_b = model(&out, Activations::Int8, streaming());
    std::fs::write(file.with_extension("new"), vec![0; bytes.len()]).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    assert!(run(&mut *model_b, 34).unwrap() == expected);
    // Gone.
    std::fs::remove_file(&file).unwrap();
    assert!(run(&mut *model_b, 34).unwrap() == expected);
    let error = load(&checkpoint, &options, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("layer-001.experts"), "{error}");
}

#[test]
fn what_cannot_be_streamed_is_refused_in_words() {
    let plain = copy_of(&project("fixtures/qwen3_moe/mlx-4bit"));
    let checkpoint = Checkpoint::open(plain.path()).unwrap();
    let refused = |experts: StreamingOptions| {
        let options = LoadOptions { experts: ExpertMode::Streaming(experts), ..LoadOptions::default() };
        load(&checkpoint, &options, &mut |_| ()).err().unwrap().to_string()
    };
    let error = refused(StreamingOptions { arena_slots: 4, ..Default::default() });
    assert!(error.contains("no expert sidecar; `mach export-sidecar` writes one"), "{error}");
    mach_convert::export_sidecar(&checkpoint, 2, &mut |_| ()).unwrap();
    let sizes = sizes(plain.path(), StreamingSource::Sidecar);
    let bank_slots = sizes.working_set - 1;
    let error = refused(StreamingOptions { bank_slots, arena_slots: 4, ..Default::default() });
    let bytes = sizes.working_set * sizes.slot_bytes;
    assert!(error.contains(&format!("one token uses {}, which take {bytes} bytes", sizes.working_set)));
}
