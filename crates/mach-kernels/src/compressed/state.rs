//! What a sequence keeps of a layer.

use super::pool::{Pool, store_row};
use super::tail::Tail;
use super::{CompressedShape, PoolInputs, PoolWeights};
use crate::elementwise::Rope;
use crate::{Cores, Isa};

/// State carried from token to token: keys of the window, entries, the index's entries, and for each of the two the
/// projections of the tokens whose windows are not pooled for good. Nothing is ever recomputed: going back cuts off rows.
#[derive(Debug)]
pub struct CompressedState {
    shape: CompressedShape,
    len: usize,
    window: Tail,
    pool: Option<Pool>,
    index: Option<Pool>,
    /// Where the pass that may be cut short starts.
    block: Option<usize>,
    /// The first position that a copy is wanted at.
    copy_from: Option<usize>,
}

/// A copy holds what it needs and can go back no further.
impl Clone for CompressedState {
    fn clone(&self) -> Self {
        self.cut(self.len).unwrap_or_else(|| Self::with_len(self.shape, self.len))
    }
}

impl PartialEq for CompressedState {
    fn eq(&self, other: &Self) -> bool {
        (self.shape, self.len) == (other.shape, other.len) && self.sections() == other.sections()
    }
}

impl CompressedState {
    /// The state of a sequence without tokens.
    pub fn new(shape: CompressedShape) -> Self {
        Self::with_len(shape, 0)
    }

    /// A state of `len` tokens whose [`sections_mut`](Self::sections_mut) are to be filled.
    pub fn with_len(shape: CompressedShape, len: usize) -> Self {
        let window = Tail::zeroed(shape.cells.words(shape.head_dim), first_of_window(&shape, len), len);
        let pool = shape.pool.map(|p| Pool::with_len(&p, shape.head_dim, shape.rotary_dim, shape.cells, len));
        let index = shape
            .pool
            .and_then(|p| Some(Pool::with_len(&p, p.index?.head_dim, shape.rotary_dim, shape.cells, len)));
        CompressedState { shape, len, window, pool, index, block: None, copy_from: None }
    }

    /// Sizes of the layer.
    pub fn shape(&self) -> &CompressedShape {
        &self.shape
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pool.iter().chain(&self.index)
    }

    fn pools_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.pool.iter_mut().chain(&mut self.index)
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.own_bytes() + self.pools().map(|p| p.entries.bytes()).sum::<usize>()
    }

    /// Bytes that copies do not share.
    pub fn own_bytes(&self) -> usize {
        self.window.bytes() + self.pools().map(|p| p.open.bytes()).sum::<usize>()
    }

    /// Bytes that a state of `tokens` tokens takes at most, between passes.
    pub fn bytes_at(shape: &CompressedShape, tokens: usize) -> usize {
        let window = 2 * 4 * shape.cells.words(shape.head_dim) * tokens.min(shape.window);
        let Some(pool) = shape.pool else { return window };
        let widths = std::iter::once(shape.head_dim).chain(pool.index.map(|index| index.head_dim));
        window + widths.map(|width| Pool::bytes_at(&pool, width, shape.cells, tokens)).sum::<usize>()
    }

    /// Pages of entries, which copies share: what tells them apart while they live, and their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pools().flat_map(|p| p.entries.pages())
    }

    /// The next pass is one that may be cut short by [`truncate`](Self::truncate).
    pub fn begin_block(&mut self) {
        self.block = Some(self.len);
    }

    /// Has the next pass hold what [`cut`](Self::cut) needs after each of these numbers of its rows, ascending.
    pub fn copy_after(&mut self, rows: &[usize]) {
        self.copy_from = rows.first().map(|first| self.len + first);
    }

    /// The states at these positions, as far as the last pass reached them.
    pub fn take_copies(&mut self, positions: &[usize]) -> Vec<CompressedState> {
        let reached = positions.iter().take_while(|&&p| p <= self.len);
        let copies = reached.map_while(|&position| self.cut(position)).collect();
        self.copy_from = None;
        self.forget();
        copies
    }

    /// The state as it was at an earlier position, if what it needs was not forgotten.
    pub fn cut(&self, position: usize) -> Option<CompressedState> {
        if position > self.len {
            return None;
        }
        let cut = |pool: &Option<Pool>| match pool {
            Some(pool) => pool.cut(position).map(Some),
            None => Some(None),
        };
        Some(CompressedState {
            shape: self.shape,
            len: position,
            window: self.window.cut(first_of_window(&self.shape, position), position)?,
            pool: cut(&self.pool)?,
            index: cut(&self.index)?,
            block: None,
            copy_from: None,
        })
    }

    /// Cuts off the tokens from `position` on: of the pass after [`begin_block`](Self::begin_block), or none.
    pub fn truncate(&mut self, position: usize) {
        if position < self.len {
            self.len = position;
            self.window.truncate(position);
            self.pools_mut().for_each(|p| p.truncate(position));
        }
        self.block = None;
        self.forget();
    }

    /// All that is held, piece by piece in a fixed order. Their lengths depend on shape and position alone.
    pub fn sections(&self) -> Vec<&[u32]> {
        let mut out = vec![self.window.from(first_of_window(&self.shape, self.len))];
        for pool in self.pools() {
            out.push(pool.open.from(pool.first_open(self.len)));
            out.extend(pool.entries.sections());
        }
        out
    }

    /// As [`sections`](Self::sections), to be written.
    pub fn sections_mut(&mut self) -> Vec<&mut [u32]> {
        // Exactly what is needed, nothing before it.
        if let Some(exact) = self.cut(self.len) {
            *self = exact;
        }
        let mut out = vec![self.window.words_mut()];
        for pool in self.pool.iter_mut().chain(&mut self.index) {
            out.push(pool.open.words_mut());
            out.extend(pool.entries.sections_mut());
        }
        out
    }

    /// The position of the next token.
    pub(super) fn begin_pass(&mut self) -> usize {
        self.block = self.block.filter(|&start| start == self.len);
        self.copy_from = self.copy_from.filter(|&position| position > self.len);
        self.len
    }

    pub(super) fn append_window(&mut self, isa: Isa, keys: &[f32]) {
        let (width, cells) = (self.shape.head_dim, self.shape.cells);
        let rows = keys.len() / width;
        let words = cells.words(width);
        let room = self.window.extend(rows);
        for (row, out) in keys.chunks_exact(width).zip(room.chunks_exact_mut(words)) {
            store_row(isa, cells, row, out);
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn append_pool(
        &mut self,
        cores: &mut Cores,
        rope: &Rope,
        weights: &PoolWeights<'_>,
        eps: f32,
        inputs: &PoolInputs<'_>,
        rows: usize,
        scratch: &mut Vec<f32>,
    ) {
        if let Some(pool) = &mut self.pool {
            pool.append(cores, rope, weights, eps, inputs, self.len, rows, scratch);
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn append_index(
        &mut self,
        cores: &mut Cores,
        rope: &Rope,
        weights: &PoolWeights<'_>,
        eps: f32,
        inputs: &PoolInputs<'_>,
        rows: usize,
        scratch: &mut Vec<f32>,
    ) {
        if let Some(pool) = &mut self.index {
            pool.append(cores, rope, weights, eps, inputs, self.len, rows, scratch);
        }
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }

    pub(super) fn end_pass(&mut self) {
        self.forget();
    }

    /// Lets go of what neither the next token, nor a pass cut short, nor a copy needs.
    fn forget(&mut self) {
        let from = [self.block, self.copy_from].into_iter().flatten().fold(self.len, usize::min);
        self.window.forget(first_of_window(&self.shape, from));
        self.pools_mut().for_each(|p| p.forget(from));
    }

    /// The key at a position of the window.
    pub(super) fn key(&self, position: usize) -> &[u32] {
        self.window.row(position)
    }

    /// An entry.
    pub(super) fn entry(&self, i: usize) -> &[u32] {
        self.pool.as_ref().map_or(&[], |p| p.entries.row(i))
    }

    /// An entry of the index.
    pub(super) fn index_entry(&self, i: usize) -> &[u32] {
        self.index.as_ref().map_or(&[], |p| p.entries.row(i))
    }
}

/// The first position that a query at `position` sees one by one.
fn first_of_window(shape: &CompressedShape, position: usize) -> usize {
    (position + 1).saturating_sub(shape.window)
}
