//! Quantized keys and values: one prompt, one answer as with any others; smaller; close to full ones.

mod common;

use common::{all_logits, project, tokens};
use mach_checkpoint::Checkpoint;
use mach_cpu::{load, state_bytes};
use mach_kernels::Isa;
use mach_models::{Activations, LoadOptions, LogitRows, Model, NoObserver, Segment};

fn model(path: &str, kv: &str, threads: usize, isa: Option<&str>) -> Box<dyn Model> {
    let checkpoint = Checkpoint::open(&project(path)).expect("checkpoint");
    let options = LoadOptions {
        threads,
        isa: isa.map(str::to_owned),
        turboquant_kv: (kv != "off").then(|| kv.parse().expect("widths")),
        ..LoadOptions::default()
    };
    load(&checkpoint, &options, &mut |_| {}).expect("model")
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn logits_do_not_depend_on_chunks_threads_batches_or_instructions() {
    let prompt = tokens(3, 300, 16000);
    let other = tokens(4, 9, 16000);
    let mut m = model("demo", "k4v3", 2, None);
    let mut state = m.new_state();
    let whole = all_logits(&mut *m, &mut state, &prompt, 300);
    let expected = bits(&whole);
    let vocab = m.config().vocab_size;
    for (chunk, threads) in [(7, 1), (64, 3)] {
        let mut m = model("demo", "k4v3", threads, None);
        let mut state = m.new_state();
        let logits = all_logits(&mut *m, &mut state, &prompt, chunk);
        assert!(bits(&logits) == expected, "chunks of {chunk}, {threads} threads");
    }
    // The scalar twin is slow.
    for isa in Isa::available() {
        let mut m = model("demo", "k4v3", 2, Some(isa.name()));
        let (mut a, mut b) = (m.new_state(), m.new_state());
        let mut segments = [
            Segment::prompt(&mut b, &other, LogitRows::None),
            Segment::prompt(&mut a, &prompt[..20], LogitRows::All),
        ];
        let logits = m.forward(&mut segments, &mut NoObserver).expect("forward");
        assert!(bits(&logits.data) == expected[..20 * vocab], "in a batch, {isa}");
    }
    // From its bytes, and from a copy taken inside the pass.
    let mut state = m.new_state();
    state.copy_at(&[260]);
    let segment = Segment::prompt(&mut state, &prompt[..280], LogitRows::None);
    m.forward(&mut [segment], &mut NoObserver).expect("forward");
    let copy = state.take_copies().remove(0);
    let mut restored = m.new_state().blank(260);
    for (to, from) in restored.import().into_iter().zip(copy.export().unwrap()) {
        to.copy_from_slice(&from);
    }
    restored.imported().unwrap();
    for mut state in [copy, restored] {
        let logits = all_logits(&mut *m, &mut state, &prompt[260..], 11);
        assert!(bits(&logits) == expected[260 * vocab..]);
    }
}

#[test]
fn it_is_smaller_and_close() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(project("demo/golden.json")).unwrap()).unwrap();
    let case = &golden["cases"][0];
    let ids = |key: &str| -> Vec<u32> {
        case[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
    };
    let tokens = [ids("prompt_ids"), ids("greedy_ids")].concat();
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let top = row.iter().fold(f64::MIN, |m, &v| m.max(f64::from(v)));
        let total: f64 = row.iter().map(|&v| (f64::from(v) - top).exp()).sum();
        row.iter().map(|&v| f64::from(v) - top - total.ln()).collect()
    };
    let mut full = model("demo", "off", 0, None);
    let vocab = full.config().vocab_size;
    let mut state = full.new_state();
    let p = all_logits(&mut *full, &mut state, &tokens, 512);
    let mut before = 0.0;
    for (kv, most, smaller) in [("8", 2e-3, 1.8), ("4", 2e-2, 3.5), ("2", 0.5, 6.0)] {
        let mut m = model("demo", kv, 0, None);
        let mut state = m.new_state();
        let q = all_logits(&mut *m, &mut state, &tokens, 512);
        let rows = p.chunks(vocab).zip(q.chunks(vocab));
        let kl = |(p, q): (&[f32], &[f32])| {
            let (p, q) = (log_softmax(p), log_softmax(q));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        let mean = rows.map(kl).sum::<f64>() / tokens.len() as f64;
        println!("{kv} bits: mean KL {mean:.3e}");
        assert!(mean > before && mean < most, "{kv} bits: {mean}, {before} with more");
        before = mean;
        let of = |kv: Option<_>| {
            let bytes = |n| state_bytes(full.config(), Activations::Int8, kv, n);
            bytes(2048) - bytes(0)
        };
        let ratio = of(None) as f64 / of(Some(kv.parse().unwrap())) as f64;
        assert!(ratio >= smaller, "{kv} bits: {ratio} times smaller");
        assert_eq!(m.state_bytes(2048), state_bytes(full.config(), Activations::Int8, kv.parse().ok(), 2048));
    }
}

#[test]
fn it_is_refused_where_it_would_do_nothing() {
    let refused = |path: &str, activations| {
        let checkpoint = Checkpoint::open(&project(path)).expect("checkpoint");
        let turboquant_kv = Some("3".parse().expect("widths"));
        let options = LoadOptions { activations, turboquant_kv, ..LoadOptions::default() };
        load(&checkpoint, &options, &mut |_| {}).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused("fixtures/qwen3_moe/mlx-4bit", Activations::Int8).contains("heads of 32"));
    assert!(refused("demo", Activations::F32).contains("exact keys and values"));
}
