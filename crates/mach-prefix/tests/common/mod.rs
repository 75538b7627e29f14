//! Snapshots whose every byte follows from their tokens, so that a wrong one is seen.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use mach_cpu::CpuState;
use mach_experts::HotExperts;
use mach_kernels::attention::{KvShape, KvType};
use mach_kernels::delta::DeltaShape;
use mach_models::SequenceState;
use mach_models::device::{LayerState, Mask};
use mach_prefix::{Blank, Image, Kind, PrefixCache, PrefixConfig, Restored, Snapshot};

/// An empty sequence of a model with an attention layer and, unless `plain`, a recurrent one.
pub(crate) fn empty(plain: bool) -> SequenceState {
    let kv = KvShape { heads: 1, head_dim: 16, kind: KvType::Bf16 };
    let shape = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 16, value_dim: 16, taps: 4 };
    let mut layers: Vec<Box<dyn LayerState>> = vec![Box::new(CpuState::attention(kv, Mask::CAUSAL))];
    if !plain {
        layers.push(Box::new(CpuState::delta(shape)));
    }
    SequenceState::new(layers)
}

/// What a sequence that has seen these tokens holds. A row of keys depends on the token at its position alone, as rows
/// that are shared must; recurrent state on all tokens.
pub(crate) fn image(tokens: &[u32], plain: bool, logits: bool) -> Image {
    let mut state = empty(plain).blank(tokens.len());
    let all = tokens.iter().fold(1u32, |h, &t| (h ^ t).wrapping_mul(0x9E37_79B1).rotate_left(7));
    let full = tokens.len() / 256 * 256;
    // Sections: a full page is keys then values of 256 rows; of the last page the rows in use of keys, then of values.
    let (mut row, mut sections) = (0, state.import().into_iter());
    while row < tokens.len() {
        let here = if row < full { 256 } else { tokens.len() - row };
        let parts = if row < full { 1 } else { 2 };
        for _ in 0..parts {
            let section = sections.next().unwrap();
            for (i, bytes) in section.chunks_exact_mut(32).enumerate() {
                let token = tokens[row + i % here];
                bytes.copy_from_slice(&[token as u8; 32]);
            }
        }
        row += here;
    }
    for section in sections {
        for (i, byte) in section.iter_mut().enumerate() {
            *byte = (all.rotate_left(i as u32 % 31) ^ i as u32) as u8;
        }
    }
    let logits = logits.then(|| (0..32).map(|i| (all ^ i) as f32).collect::<Vec<_>>().into());
    Image { state, draft: None, logits, hot: Some(Arc::new(hot(tokens))) }
}

/// The experts of a prompt: those of its own tokens alone, so that they can be told from another's.
pub(crate) fn hot(tokens: &[u32]) -> HotExperts {
    let first = tokens.first().copied().unwrap_or(0) as u16;
    HotExperts { layers: vec![vec![first, tokens.len() as u16], vec![]] }
}

/// Asserts that what came back is what the prompt's own beginning leads to.
pub(crate) fn check(restored: &Restored, prompt: &[u32], plain: bool) {
    let position = restored.image.state.position();
    let expected = image(&prompt[..position], plain, true);
    assert_eq!(restored.image.state.export().unwrap(), expected.state.export().unwrap());
    if let Some(logits) = &restored.image.logits {
        assert_eq!(Some(logits), expected.logits.as_ref());
    }
    assert!(position < prompt.len() || restored.image.logits.is_some());
}

pub(crate) fn open(
    directory: Option<&Path>,
    plain: bool,
    change: impl FnOnce(&mut PrefixConfig),
) -> PrefixCache {
    let mut config = PrefixConfig {
        block: 4,
        max_bytes: 64 << 20,
        directory: directory.map(Path::to_owned),
        disk_budget: 64 << 20,
        ..PrefixConfig::default()
    };
    change(&mut config);
    PrefixCache::open(config, Blank { state: empty(plain), draft: None })
}

pub(crate) fn insert(cache: &PrefixCache, tokens: &[u32], plain: bool, logits: bool, kind: Kind) -> [u8; 32] {
    let root = cache.root(None);
    let tokens: Arc<[u32]> = tokens.into();
    cache.insert(Snapshot { root, image: image(&tokens, plain, logits), tokens, kind })
}

/// `n` tokens of conversation `seed`.
pub(crate) fn tokens(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (seed.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(40_503)) >> 7 & 0xffff).collect()
}
