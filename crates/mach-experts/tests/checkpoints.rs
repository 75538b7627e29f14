//! Experts of whole checkpoints: resident, laid out one by one, and streamed from the slices of their tensors, they are the same.

use std::path::PathBuf;

use mach_checkpoint::{Checkpoint, Dtype, ExpertBiases, ExpertSource, VectorSource};
use mach_experts::{
    Bank, BankOptions, Demand, EvictionPolicy, ExpertFiles, ExpertView, LayerEntry, MANIFEST_FORMAT,
    Manifest, RECORD_ALIGN, RecordLayout, SlicePool, SliceSource, StreamingBank, checksums,
};
use mach_quant::{FloatType, Order};

fn checkpoint(name: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen3_moe").join(name);
    Checkpoint::open(&path).unwrap()
}

fn bytes(view: &ExpertView<'_>) -> [Vec<u8>; 3] {
    [&view.gate, &view.up, &view.down].map(|matrix| matrix.data.to_vec())
}

#[test]
fn an_expert_is_the_same_wherever_it_lies() {
    for name in ["bf16", "mlx-4bit", "mlx-8bit-g32"] {
        let checkpoint = checkpoint(name);
        let (experts, top_k) = (checkpoint.config().moe.num_experts, checkpoint.config().moe.top_k);
        let (mut placed, mut weights, mut count) = (0, 0, 0);
        let bank = Bank::resident(&checkpoint, Order::Tiles, 2, &mut |bytes| placed = bytes).unwrap();
        let source = SliceSource::of(&checkpoint, Order::Tiles).unwrap();
        let (sliced, layers) = (source.weight_bytes(), source.moe_layers());
        assert_eq!(source.is_bf16(), name == "bf16");
        let options = BankOptions {
            bank_slots: 0,
            arena_slots: 2,
            top_k,
            order: Order::Tiles,
            eviction: EvictionPolicy::ALL[0],
            probed_bandwidth: None,
        };
        let pool = SlicePool::new(source, 2).unwrap();
        let mut streaming = StreamingBank::new(ExpertFiles::Slices(pool), options).unwrap();
        assert_eq!((streaming.slots(), streaming.arena_slots()), (0, 2));
        for (layer, &moe) in checkpoint.config().moe_layers.iter().enumerate() {
            if !moe {
                assert!(bank.expert(layer, 0).is_none());
                continue;
            }
            let demands: Vec<Demand> =
                (0..experts).map(|expert| Demand { expert, banked: false, counts: false }).collect();
            let mut streamed = vec![None; experts];
            streaming.begin(layer, &demands, None).unwrap();
            while let Some(batch) = streaming.ready(2, &mut checksums).unwrap() {
                for &expert in &batch {
                    streamed[expert] = Some(bytes(&streaming.expert(layer, expert).unwrap()));
                }
                streaming.done(&batch);
                assert!(streaming.there(2, &mut checksums).is_ok_and(|more| {
                    for &expert in &more {
                        streamed[expert] = Some(bytes(&streaming.expert(layer, expert).unwrap()));
                    }
                    streaming.done(&more);
                    more.len() <= 2
                }));
            }
            streaming.end();
            let stats = streaming.stats().snapshot();
            assert!(
                stats.layers.iter().all(|layer| layer.hit_rate.is_none()),
                "nothing was asked of the bank"
            );
            for (expert, from) in checkpoint.experts(layer).unwrap().iter().enumerate() {
                let layout = RecordLayout::of(from, Order::Tiles).unwrap();
                let mut record = vec![0; layout.stride()];
                layout.pack(from, &mut record).unwrap();
                let alone = bytes(&layout.view(&record).gated().unwrap());
                assert!(alone.iter().all(|matrix| matrix.iter().any(|&byte| byte != 0)));
                assert!(bytes(&bank.expert(layer, expert).unwrap()) == alone, "{name}: {layer}, {expert}");
                assert!(streamed[expert].as_ref() == Some(&alone), "{name}: {layer}, {expert} streamed");
                (weights, count) = (weights + layout.weight_bytes() as u64, count + 1);
            }
            assert!(bank.expert(layer, experts).is_none());
        }
        assert_eq!((bank.weight_bytes(), bank.slots() as u64), (weights, count));
        assert!(placed <= weights);
        assert_eq!((sliced, layers as u64 * experts as u64), (weights, count));
    }
}

#[test]
fn biases_are_packed_behind_their_matrices() {
    let checkpoint = checkpoint("bf16");
    let plain = checkpoint.experts(0).unwrap()[0];
    let (hidden, width) = (checkpoint.config().hidden_size, checkpoint.config().moe.intermediate_size);
    // Gate and up lie in turn, as some checkpoints have them.
    let halves = |n: usize, from: usize| -> Vec<u8> {
        let mut bytes = vec![0; 2 * n];
        (0..n).for_each(|i| FloatType::Bf16.write(&mut bytes, i, (i + from) as f32));
        bytes
    };
    let (both, down) = (halves(2 * width, 0), halves(hidden, 7));
    let vector = |data, len, step| VectorSource {
        tensor: "bias",
        file: plain.gate.file,
        dtype: Dtype::BF16,
        data,
        len,
        step,
    };
    let biases = ExpertBiases {
        gate: vector(&both, width, 2),
        up: vector(&both[2..], width, 2),
        down: vector(&down, hidden, 1),
    };
    let expert = ExpertSource { biases: Some(biases), ..plain };
    for order in [Order::Tiles, Order::Rows] {
        let layout = RecordLayout::of(&expert, order).unwrap();
        layout.check_gated().unwrap();
        layout.check_biases(true).unwrap();
        let mut record = vec![0; layout.stride()];
        layout.pack(&expert, &mut record).unwrap();
        let view = layout.view(&record).gated().unwrap();
        let read = |i: usize| {
            let bias = view.biases[i].unwrap();
            assert_eq!(bias.float, FloatType::Bf16);
            (0..bias.data.len() / 2).map(|j| bias.float.read(bias.data, j)).collect::<Vec<f32>>()
        };
        // Small whole numbers, exact in bfloat16.
        let wanted = |first: usize, step: usize, n: usize| -> Vec<f32> {
            (0..n).map(|i| (first + step * i) as f32).collect()
        };
        assert_eq!(read(0), wanted(0, 2, width));
        assert_eq!(read(1), wanted(1, 2, width));
        assert_eq!(read(2), wanted(7, 1, hidden));
        let without = RecordLayout::of(&plain, order).unwrap();
        let mut record = vec![0; without.stride()];
        without.pack(&plain, &mut record).unwrap();
        assert_eq!(bytes(&view), bytes(&without.view(&record).gated().unwrap()));
        // A record that wants biases is not made from an expert without them.
        let error = layout.pack(&plain, &mut vec![0; layout.stride()]).unwrap_err().to_string();
        assert!(error.contains("a bias is wanted"), "{error}");
    }
    let damaged = [0x80u8, 0x7f, 0, 0];
    let biases = ExpertBiases { down: vector(&damaged, 2, 1), ..biases };
    assert!(biases.down.values().unwrap_err().to_string().contains("inf"));
    let short = vector(&damaged, 3, 1);
    assert!(short.values().unwrap_err().to_string().contains("shorter"));
}

#[test]
fn a_manifest_is_one_of_its_checkpoint() {
    let checkpoint = checkpoint("mlx-4bit");
    let config = checkpoint.config();
    let layers = (0..config.moe_layers.len()).filter(|&layer| config.moe_layers[layer]).map(|layer| {
        let record = RecordLayout::of(&checkpoint.experts(layer).unwrap()[0], Order::Tiles).unwrap();
        let (file, stride, experts) = (LayerEntry::file_name(layer), record.stride(), config.moe.num_experts);
        let length = (stride * experts) as u64;
        LayerEntry { layer, file, length, stride, record, crc32c: vec![0; experts] }
    });
    let manifest = Manifest {
        format: MANIFEST_FORMAT.0.to_owned(),
        version: MANIFEST_FORMAT.1,
        architecture: config.model_type.clone(),
        source: String::new(),
        record_align: RECORD_ALIGN,
        num_experts: config.moe.num_experts,
        layers: layers.collect(),
    };
    assert_eq!(manifest.check(config), Ok(()));
    let refused = |change: &dyn Fn(&mut Manifest), word: &str| {
        let mut other = manifest.clone();
        change(&mut other);
        let error = other.check(config).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&|m| m.num_experts += 1, "experts a layer");
    refused(&|m| m.architecture = "other".into(), "made for `other`");
    refused(&|m| drop(m.layers.pop()), "layers");
    refused(&|m| m.layers[0].layer += 100, "layers");
    let wide = twice_as_wide(&manifest);
    refused(&|m| m.layers[0].record = wide, "config.json implies");
    let biased: Vec<_> = manifest.layers[0]
        .record
        .parts()
        .map(|part| (part.projection, part.layout, Some(FloatType::Bf16)))
        .collect();
    let biased = RecordLayout::with(&biased).unwrap();
    refused(&|m| m.layers[0].record = biased, "`gate` has an expert bias");
    let mut config = config.clone();
    config.moe.expert_bias = true;
    let error = manifest.check(&config).unwrap_err().to_string();
    assert!(error.contains("`gate` has no expert bias"), "{error}");
}

/// A record of experts of twice the width.
fn twice_as_wide(manifest: &Manifest) -> RecordLayout {
    let record = manifest.layers[0].record;
    let parts: Vec<_> = record
        .parts()
        .map(|part| {
            let (mut layout, rows) = (part.layout, part.layout.rows);
            layout.rows = 2 * rows;
            (part.projection, layout, None)
        })
        .collect();
    let [gate, up, down] = parts[..] else { panic!("gate, up, down") };
    let mut down = down;
    (down.1.rows, down.1.cols) = (down.1.rows / 2, 2 * down.1.cols);
    RecordLayout::with(&[gate, up, down]).unwrap()
}
