//! The state of a layer in the host's memory.

use std::any::Any;
use std::borrow::Cow;

use mach_kernels::attention::{KvCache, KvShape};
use mach_kernels::delta::{DeltaShape, DeltaState};
use mach_models::ModelError;
use mach_models::device::{LayerState, Mask, StateSink, StateSource};

/// What one layer carries from token to token.
#[derive(Debug, Clone)]
pub enum CpuState {
    /// Keys and values of softmax attention.
    Attention {
        /// Pages of keys and values.
        cache: KvCache,
        /// Which of them later queries may see.
        mask: Mask,
        /// The first position that the next pass may be taken back to, if that is not where it ends.
        back_to: Option<usize>,
    },
    /// Convolution rows and recurrent matrices of Gated DeltaNet.
    Delta {
        /// The matrices and the last inputs of the convolution.
        state: DeltaState,
        /// Sizes of the layer.
        shape: DeltaShape,
    },
}

impl CpuState {
    /// No keys and values yet.
    pub fn attention(shape: KvShape, mask: Mask) -> Self {
        CpuState::Attention { cache: KvCache::new(shape), mask, back_to: None }
    }

    /// A copy of the first `len` positions, without what no later query can see.
    fn attention_at(cache: &KvCache, mask: Mask, len: usize) -> Self {
        let mut cache = cache.clone();
        cache.truncate(len);
        cache.forget_before(mask.first_needed(len));
        CpuState::Attention { cache, mask, back_to: None }
    }

    /// The state of a sequence without tokens: all zeros.
    pub fn delta(shape: DeltaShape) -> Self {
        CpuState::Delta { state: DeltaState::new(&shape), shape }
    }
}

fn delta_bytes(state: &DeltaState) -> usize {
    4 * (state.conv.len() + state.state.len())
}

impl LayerState for CpuState {
    fn copy(&self) -> Box<dyn LayerState> {
        Box::new(match self {
            CpuState::Attention { cache, mask, .. } => Self::attention_at(cache, *mask, cache.len()),
            CpuState::Delta { .. } => self.clone(),
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn bytes(&self) -> usize {
        match self {
            CpuState::Attention { cache, .. } => cache.bytes(),
            CpuState::Delta { state, .. } => delta_bytes(state),
        }
    }

    fn own_bytes(&self) -> usize {
        match self {
            CpuState::Attention { .. } => 0,
            CpuState::Delta { state, .. } => delta_bytes(state),
        }
    }

    fn pages(&self, tell: &mut dyn FnMut(usize, usize)) {
        if let CpuState::Attention { cache, .. } = self {
            cache.pages().for_each(|(page, bytes)| tell(page, bytes));
        }
    }

    fn begin_block(&mut self) {
        match self {
            CpuState::Attention { cache, back_to, .. } => *back_to = Some(cache.len()),
            CpuState::Delta { state, .. } => state.begin_block(),
        }
    }

    fn truncate(&mut self, position: usize) {
        if let CpuState::Attention { cache, .. } = self {
            cache.truncate(position);
        }
    }

    fn copy_after(&mut self, rows: &[usize]) {
        match self {
            CpuState::Attention { cache, back_to, .. } => {
                let copied = rows.first().map(|rows| cache.len() + rows);
                *back_to = back_to.iter().copied().chain(copied).min();
            }
            CpuState::Delta { state, .. } => state.copy_after(rows),
        }
    }

    fn take_copies(&mut self, positions: &[usize]) -> Vec<Box<dyn LayerState>> {
        match self {
            CpuState::Attention { cache, mask, .. } => {
                let copy = |&at| Box::new(Self::attention_at(cache, *mask, at)) as Box<dyn LayerState>;
                let copies = positions.iter().map(copy).collect();
                // What was kept for them is theirs alone now.
                cache.forget_before(mask.first_needed(cache.len()));
                copies
            }
            CpuState::Delta { state, shape } => {
                let shape = *shape;
                let boxed = |state| Box::new(CpuState::Delta { state, shape }) as Box<dyn LayerState>;
                state.take_copies().into_iter().map(boxed).collect()
            }
        }
    }

    fn cut(&self, position: usize) -> Option<Box<dyn LayerState>> {
        match self {
            CpuState::Attention { cache, mask, .. } if cache.start() == 0 => {
                Some(Box::new(Self::attention_at(cache, *mask, position)))
            }
            _ => None,
        }
    }

    fn can_be_cut(&self) -> bool {
        matches!(self, CpuState::Attention { cache, .. } if cache.start() == 0)
    }

    fn forgets(&self) -> bool {
        matches!(self, CpuState::Attention { mask, .. } if mask.window.is_some())
    }

    fn recurrent(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let CpuState::Delta { state, shape } = self else { return None };
        let (channels, rows) = (shape.channels(), shape.taps - 1);
        let conv = (0..channels * rows).map(|i| state.conv[i % rows * channels + i / rows]).collect();
        Some((conv, state.matrices(shape)))
    }

    fn blank(&self, position: usize) -> Box<dyn LayerState> {
        Box::new(match self {
            CpuState::Attention { cache, mask, .. } => {
                let cache = KvCache::with_len(cache.shape(), mask.first_needed(position), position);
                CpuState::Attention { cache, mask: *mask, back_to: None }
            }
            CpuState::Delta { .. } => self.clone(),
        })
    }

    fn exported_bytes(&self) -> usize {
        match self {
            CpuState::Attention { cache, mask, .. } => {
                let needed = mask.first_needed(cache.len());
                cache.sections(needed).iter().map(|part| 4 * part.len()).sum()
            }
            CpuState::Delta { state, .. } => delta_bytes(state),
        }
    }

    fn export<'a>(&'a self, sink: StateSink<'_, 'a>) -> Result<(), ModelError> {
        match self {
            CpuState::Attention { cache, mask, .. } => {
                let parts = cache.sections(mask.first_needed(cache.len()));
                parts.into_iter().for_each(|part| sink(Cow::Borrowed(bytemuck::cast_slice(part))));
            }
            CpuState::Delta { state, .. } => {
                sink(Cow::Borrowed(bytemuck::cast_slice(&state.conv)));
                sink(Cow::Borrowed(bytemuck::cast_slice(&state.state)));
            }
        }
        Ok(())
    }

    fn import<'a>(&'a mut self, source: StateSource<'_, 'a>) {
        match self {
            CpuState::Attention { cache, .. } => {
                cache.sections_mut().into_iter().for_each(|part| source(bytemuck::cast_slice_mut(part)));
            }
            CpuState::Delta { state, .. } => {
                source(bytemuck::cast_slice_mut(&mut state.conv));
                source(bytemuck::cast_slice_mut(&mut state.state));
            }
        }
    }
}
