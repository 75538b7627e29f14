//! Sidecars of the first version stay valid: what it wrote is read as it was meant.

use std::path::{Path, PathBuf};

use mach_checkpoint::Checkpoint;
use mach_experts::{Bank, MANIFEST_FORMAT, Manifest, RecordLayout, Sidecar};
use mach_io::ReaderOptions;
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

/// The demo's sidecar was written by version 1.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo")
}

const MANIFEST: &str = r#"{
  "format": "mach-expert-sidecar",
  "version": 1,
  "architecture": "qwen3_moe",
  "source": "ec90",
  "record_align": 16384,
  "num_experts": 2,
  "layers": [
    {
      "layer": 3,
      "file": "layer-003.experts",
      "length": 65536,
      "stride": 32768,
      "gate": {"rows": 64, "cols": 128, "codec": {"affine": {"bits": 4, "group": 64, "scales": "bf16"}}, "order": "tiles"},
      "up": {"rows": 64, "cols": 128, "codec": {"affine": {"bits": 8, "group": 32, "scales": "f32"}}, "order": "tiles"},
      "down": {"rows": 128, "cols": 64, "codec": "mxfp4", "order": "tiles"},
      "crc32c": [1, 4294967295]
    }
  ]
}"#;

#[test]
fn a_manifest_of_version_1_is_read() {
    let manifest = Manifest::parse(MANIFEST.as_bytes()).unwrap();
    assert_eq!((manifest.version, manifest.layers.len()), (1, 1));
    let entry = &manifest.layers[0];
    let affine = |bits, group, scales| Codec::Affine { bits, group, scales };
    let matrix = |rows, cols, codec| MatrixLayout { rows, cols, codec, order: Order::Tiles };
    let record = RecordLayout::new(
        matrix(64, 128, affine(Bits::B4, 64, FloatType::Bf16)),
        matrix(64, 128, affine(Bits::B8, 32, FloatType::F32)),
        matrix(128, 64, Codec::Mxfp4),
    );
    assert_eq!(entry.record, record);
    // Where the first version put them: one after the other on cache lines.
    let at: Vec<usize> = record.parts().map(|p| p.at).collect();
    assert_eq!(at, [0, 4608, 14848]);
    assert_eq!((entry.stride, entry.crc32c.as_slice()), (32768, &[1, u32::MAX][..]));
    // Written again it is of the version that this build writes, and the same otherwise.
    let again = Manifest::parse(&manifest.to_json().unwrap()).unwrap();
    assert_eq!(again, Manifest { version: MANIFEST_FORMAT.1, ..manifest });
}

#[test]
fn what_version_1_does_not_allow_is_refused_in_words() {
    for (from, to, words) in [
        (
            "\"version\": 1",
            "\"version\": 3",
            "version 3 is not known to this build, which reads mach-expert-sidecar versions 1 to 2",
        ),
        ("\"version\": 1", "\"version\": 2", "gate"),
        ("\"rows\": 128", "\"rows\": 1280000000000000000", "layer 3: `down`"),
        ("\"bits\": 8", "\"bits\": 9", "9 bits"),
        ("\"stride\": 32768", "\"stride\": 16384", "`stride` is 16384"),
        ("\"crc32c\"", "\"projections\": [], \"crc32c\"", "projections"),
    ] {
        assert!(MANIFEST.contains(from));
        let error = Manifest::parse(MANIFEST.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}

#[test]
fn a_sidecar_of_version_1_opens_unchanged() {
    let checkpoint = Checkpoint::open(&demo()).unwrap();
    let sidecar = Sidecar::open(&checkpoint).unwrap();
    assert_eq!(sidecar.manifest().version, 1);
    let mut reader = sidecar.reader(&ReaderOptions::default()).unwrap();
    sidecar.verify_all(&mut reader, &mut |_| ()).unwrap();
    let bank = Bank::from_sidecar(&sidecar, Order::Tiles, &mut reader, &mut |_| ()).unwrap();
    let expert = bank.expert(0, 31).unwrap();
    let file = std::fs::read(&sidecar.files()[0]).unwrap();
    let record = &file[31 * 114_688..];
    let [gate, up, down] = [expert.gate, expert.up, expert.down].map(|m| m.data);
    assert!(gate == &record[..gate.len()] && up == &record[gate.len()..][..up.len()]);
    assert!(down == &record[gate.len() + up.len()..][..down.len()]);
}

proptest! {
    #[test]
    fn changed_bytes_never_make_nonsense(at in 0..MANIFEST.len(), to in any::<u8>(), number in any::<u64>()) {
        let mut bytes = MANIFEST.as_bytes().to_vec();
        bytes[at] = to;
        // A number of any size in the place of one of one digit.
        let numbers = MANIFEST.replace(&format!(": {}", at % 10), &format!(": {number}"));
        for text in [bytes.as_slice(), numbers.as_bytes()] {
            if let Ok(manifest) = Manifest::parse(text) {
                for entry in &manifest.layers {
                    assert!(entry.record.weight_bytes() <= entry.stride);
                    assert_eq!(entry.length, (entry.stride * manifest.num_experts) as u64);
                }
            }
        }
    }
}
