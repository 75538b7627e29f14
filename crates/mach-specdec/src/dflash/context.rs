//! What a draft keeps of a sequence: keys and values of the context rows, layer by layer.

use mach_kernels::attention::{KvCache, KvShape, KvType};
use mach_models::Activations;

use super::{DFlash, Layer};

/// The context of one sequence. Sliding layers hold their window only. A clone shares the full pages.
#[derive(Debug, Clone)]
pub struct DraftContext {
    pub(super) layers: Vec<KvCache>,
    pub(super) len: usize,
}

impl DraftContext {
    /// Positions taken in.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvCache::bytes).sum()
    }

    /// Pages, which other sequences may share: what tells them apart while they live, and their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        self.layers.iter().flat_map(KvCache::pages)
    }

    /// All that is held, piece by piece in a fixed order. The pieces' lengths depend on the draft and the number of
    /// positions alone.
    pub fn sections(&self) -> Vec<&[u8]> {
        let words = self.layers.iter().flat_map(KvCache::sections);
        words.map(bytemuck::cast_slice).collect()
    }

    /// As [`sections`](Self::sections), to be written.
    pub fn sections_mut(&mut self) -> Vec<&mut [u8]> {
        let words = self.layers.iter_mut().flat_map(KvCache::sections_mut);
        words.map(bytemuck::cast_slice_mut).collect()
    }

    /// Whether [`cut`](Self::cut) works at any number of positions.
    pub fn can_be_cut(&self) -> bool {
        self.layers.iter().all(|cache| cache.start() == 0)
    }

    /// The context as it was with `len` positions, if no layer has forgotten what it needs there.
    pub fn cut(&self, len: usize) -> Option<DraftContext> {
        let layer = |cache: &KvCache| {
            let mut cache = cache.clone();
            cache.truncate(len);
            (cache.start() == 0).then_some(cache)
        };
        match len {
            _ if len == self.len => Some(self.clone()),
            _ if len > self.len => None,
            _ => Some(DraftContext { layers: self.layers.iter().map(layer).collect::<Option<_>>()?, len }),
        }
    }
}

impl DFlash {
    /// An empty context.
    pub fn new_context(&self) -> DraftContext {
        self.blank_context(0)
    }

    /// A context of `len` positions whose [`sections_mut`](DraftContext::sections_mut) are to be filled.
    pub fn blank_context(&self, len: usize) -> DraftContext {
        let kind = match self.activations {
            Activations::Int8 => KvType::Bf16,
            Activations::F32 => KvType::F32,
        };
        let shape = KvShape { heads: self.config.kv_heads, head_dim: self.config.head_dim, kind };
        let layer = |layer: &Layer| KvCache::with_len(shape, layer.mask.first_needed(len), len);
        DraftContext { layers: self.layers.iter().map(layer).collect(), len }
    }
}
