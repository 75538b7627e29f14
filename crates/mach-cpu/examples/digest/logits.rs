//! A digest of the bits of a checkpoint's logits.

use std::path::Path;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_kernels::Isa;
use mach_kernels::attention::turbo::LEAST_HEAD_DIM;
use mach_models::{Activations, LoadOptions, LogitRows, ModelError, NoObserver, Segment};

/// Tokens of the sequence: two chunks of different length, then single ones.
const CHUNKS: [usize; 6] = [17, 5, 1, 1, 1, 1];

/// FNV-1a over the bits of all logits; nothing for heads too narrow to be quantized.
pub(crate) fn digest(
    dir: &Path,
    activations: Activations,
    kv: Option<&str>,
    isa: Isa,
) -> Result<Option<u64>, ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    if kv.is_some() && checkpoint.config().head_dim < LEAST_HEAD_DIM {
        return Ok(None);
    }
    let options = LoadOptions {
        activations,
        threads: 2,
        isa: Some(isa.name().to_owned()),
        turboquant_kv: kv.and_then(|kv| kv.parse().ok()),
        ..Default::default()
    };
    let mut model = load(&checkpoint, &options, &mut |_| {})?;
    let vocab = model.config().vocab_size.max(1) as u64;
    let mut state = model.new_state();
    let (mut word, mut hash) = (1u64, 0xcbf2_9ce4_8422_2325u64);
    for chunk in CHUNKS {
        let tokens: Vec<u32> = (0..chunk)
            .map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((word >> 33) % vocab) as u32
            })
            .collect();
        let mut segments = [Segment::prompt(&mut state, &tokens, LogitRows::All)];
        let logits = model.forward(&mut segments, &mut NoObserver)?;
        for byte in logits.data.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    Ok(Some(hash))
}
