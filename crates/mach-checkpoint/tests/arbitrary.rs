//! Arbitrary and mutated headers and configurations: an answer or an error, never a panic.

mod common;

use std::path::Path;

use common::{copy_of, fixture, read_shard, write_shard};
use mach_checkpoint::{Checkpoint, ModelConfig, parse_header};
use proptest::prelude::*;
use serde_json::{Value, json};

fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::collection::vec(0u64..9, 0..4).prop_map(Value::from),
        Just(json!({})),
    ]
}

/// Uses every reader on whatever opened.
fn read_all(checkpoint: &Checkpoint) {
    let config = checkpoint.config();
    for name in checkpoint.names().map(str::to_owned).collect::<Vec<_>>() {
        let _ = checkpoint.tensor(&name);
        let _ = checkpoint.floats(&name, &[config.hidden_size]);
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        if let Ok(source) = checkpoint.linear(module, config.moe.intermediate_size, config.hidden_size) {
            let _ = source.check_finite();
        }
    }
    for layer in 0..config.layers.len() {
        let _ = checkpoint.experts(layer);
        let _ = checkpoint.conv1d(layer);
    }
    let _ = (checkpoint.norm_offset(), checkpoint.fingerprint());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_as_header(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_header(&bytes);
    }

    #[test]
    fn arbitrary_entries_as_header(
        start in prop_oneof![0u64..20, any::<u64>()],
        end in prop_oneof![0u64..20, any::<u64>()],
        shape in prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4),
        second in prop_oneof![0u64..20, any::<u64>()],
    ) {
        let header = json!({
            "a": {"dtype": "F16", "shape": shape, "data_offsets": [start, end]},
            "b": {"dtype": "U8", "shape": [second], "data_offsets": [end, second]},
        }).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 16]);
        if let Ok((entries, data)) = parse_header(&bytes) {
            for entry in entries {
                prop_assert!(data <= entry.start && entry.start <= entry.end && entry.end <= bytes.len());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_as_config(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ModelConfig::from_json(Path::new("config.json"), &bytes);
    }

    #[test]
    fn one_setting_replaced(field in 0usize..60, value in any_json(), family in 0..2) {
        let name = ["qwen3_5_moe/mlx-4bit", "qwen3_moe/mlx-4bit"][family as usize];
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        let settings = if family == 0 { &mut config["text_config"] } else { &mut config };
        let fields = settings.as_object_mut().unwrap();
        let at = field % fields.len();
        *fields.values_mut().nth(at).unwrap() = value;
        let copy = copy_of(name);
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(copy.path()) {
            read_all(&checkpoint);
        }
    }

    #[test]
    fn one_header_entry_replaced(pick in any::<prop::sample::Index>(), part in 0..3, value in any_json()) {
        let copy = copy_of("qwen3_5_moe/mlx-4bit");
        let path = copy.path().join("model.safetensors");
        let (mut header, data) = read_shard(&path);
        let entries = header.as_object_mut().unwrap();
        let at = pick.index(entries.len());
        let entry = entries.values_mut().nth(at).unwrap();
        entry[["dtype", "shape", "data_offsets"][part as usize]] = value;
        write_shard(&path, &header, &data);
        if let Ok(checkpoint) = Checkpoint::open(copy.path()) {
            read_all(&checkpoint);
        }
    }
}
