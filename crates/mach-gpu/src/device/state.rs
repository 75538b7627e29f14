//! The state of a layer on the device. Exported bytes are those of the CPU's states, so that one goes on where the other
//! stopped.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use mach_kernels::attention::{KvShape, PAGE};
use mach_kernels::delta::{DeltaShape, DeltaState};
use mach_models::ModelError;
use mach_models::device::{LayerState, Mask, StateSink, StateSource};

use super::pages::{Page, Pool};
use crate::context::DEADLINE;
use crate::{Context, GpuError, Recorder, Storage};

/// What one layer carries from token to token.
#[derive(Debug)]
pub enum GpuState {
    /// Keys and values of softmax attention.
    Attention(Box<Keys>),
    /// Convolution rows and recurrent matrices of Gated DeltaNet.
    Delta(Box<Delta>),
}

/// Keys and values of one layer of one sequence.
#[derive(Debug)]
pub struct Keys {
    pub(crate) context: Context,
    pub(crate) pool: Arc<Pool>,
    pub(crate) shape: KvShape,
    pub(crate) mask: Mask,
    /// One for each 256 positions; `None` where they were forgotten.
    pub(crate) pages: Vec<Option<Arc<Page>>>,
    pub(crate) len: usize,
    pub(crate) start: usize,
    pub(crate) back_to: Option<usize>,
    /// Pieces that are being imported.
    importing: Vec<Vec<u8>>,
    failure: Option<GpuError>,
}

impl Clone for Keys {
    fn clone(&self) -> Self {
        Keys {
            context: self.context.clone(),
            pool: Arc::clone(&self.pool),
            pages: self.pages.clone(),
            importing: Vec::new(),
            failure: self.failure.clone(),
            ..*self
        }
    }
}

impl Keys {
    pub(crate) fn new(context: &Context, pool: &Arc<Pool>, shape: KvShape, mask: Mask) -> Keys {
        Keys {
            context: context.clone(),
            pool: Arc::clone(pool),
            shape,
            mask,
            pages: Vec::new(),
            len: 0,
            start: 0,
            back_to: None,
            importing: Vec::new(),
            failure: None,
        }
    }

    fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    pub(crate) fn forget_before(&mut self, start: usize) {
        let start = start.min(self.len);
        if start <= self.start {
            return;
        }
        for page in self.pages.iter_mut().take(start / PAGE).skip(self.start / PAGE) {
            *page = None;
        }
        self.start = start;
    }

    /// A copy of the first `len` positions, without what no later query can see.
    fn at(&self, len: usize) -> Keys {
        let mut copy = Keys { back_to: None, ..self.clone() };
        copy.truncate(len);
        copy.forget_before(self.mask.first_needed(len));
        copy
    }

    /// Pages that appending so many rows takes anew, the copy of a shared last page included.
    pub(crate) fn pages_for(&self, rows: usize) -> usize {
        let more = (self.len + rows).div_ceil(PAGE) - self.len.div_ceil(PAGE);
        more + usize::from(self.last_is_shared())
    }

    /// Whether rows are to be written into a page that others hold as well.
    pub(crate) fn last_is_shared(&self) -> bool {
        let last = if self.len.is_multiple_of(PAGE) { None } else { self.pages.get(self.len / PAGE) };
        matches!(last, Some(Some(page)) if Arc::strong_count(page) > 1)
    }

    /// The numbers of the pages, 0 for those that were forgotten.
    pub(crate) fn table(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().map(|page| page.as_ref().map_or(0, |page| page.number))
    }

    /// Words of each piece of page `p` that is in use, and where in the page it begins.
    fn pieces(&self, p: usize) -> Vec<(usize, usize)> {
        let used = (self.len - p * PAGE).min(PAGE);
        if used == PAGE {
            return vec![(0, self.pool.words as usize)];
        }
        let row = self.shape.head_dim / 2;
        (0..2 * self.shape.heads).map(|head| (head * PAGE * row, used * row)).collect()
    }

    /// Pages that are held of `start` and what follows.
    fn held(&self, start: usize) -> impl Iterator<Item = (usize, &Arc<Page>)> {
        let pages = self.pages.iter().enumerate().skip(start / PAGE);
        pages.filter_map(|(p, page)| Some((p, page.as_ref()?)))
    }

    fn export_to<'a>(&'a self, sink: StateSink<'_, 'a>) -> Result<(), GpuError> {
        let Some(buffer) = self.pool.buffer() else { return Ok(()) };
        let bytes = self.pool.page_bytes();
        let held: Vec<_> = self.held(self.mask.first_needed(self.len)).collect();
        let staging = crate::buffer::Staging::new(&self.context, held.len() as u64 * bytes)?;
        let mut recorder = Recorder::new(&self.context);
        for (i, (_, page)) in held.iter().enumerate() {
            recorder.copy_out(&buffer, u64::from(page.number) * bytes, &staging, i as u64 * bytes, bytes);
        }
        recorder.submit().wait(DEADLINE)?;
        let all: Vec<u8> = staging.read(&self.context, held.len() as u64 * bytes, DEADLINE)?;
        for (page, (p, _)) in all.chunks_exact(bytes as usize).zip(&held) {
            for (at, words) in self.pieces(*p) {
                sink(Cow::Owned(page.get(4 * at..4 * (at + words)).unwrap_or_default().to_vec()));
            }
        }
        Ok(())
    }

    /// Room for `position` positions, to be imported into.
    fn blank(&self, position: usize) -> Keys {
        let mut keys = Keys::new(&self.context, &self.pool, self.shape, self.mask);
        keys.len = position;
        keys.start = self.mask.first_needed(position).min(position);
        let (all, forgotten) = (position.div_ceil(PAGE), keys.start / PAGE);
        let taken = self.pool.grow(all - forgotten).and_then(|()| {
            let page = |p: usize| if p < forgotten { Ok(None) } else { self.pool.take().map(Some) };
            (0..all).map(page).collect::<Result<Vec<_>, _>>()
        });
        match taken {
            Ok(pages) => keys.pages = pages,
            Err(error) => {
                keys.pages = (0..all).map(|_| None).collect();
                keys.failure = Some(error);
            }
        }
        keys
    }

    fn import_from<'a>(&'a mut self, source: StateSource<'_, 'a>) {
        let first = self.start / PAGE;
        let lens: Vec<usize> =
            (first..self.pages.len()).flat_map(|p| self.pieces(p)).map(|(_, n)| 4 * n).collect();
        self.importing = lens.into_iter().map(|len| vec![0; len]).collect();
        self.importing.iter_mut().for_each(|piece| source(piece));
    }

    fn imported(&mut self) -> Result<(), GpuError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let Some(buffer) = self.pool.buffer() else { return Ok(()) };
        let mut pieces = std::mem::take(&mut self.importing).into_iter();
        for (p, page) in self.held(self.start) {
            for (at, _) in self.pieces(p) {
                let Some(bytes) = pieces.next() else { return Ok(()) };
                let to = u64::from(page.number) * self.pool.page_bytes() + 4 * at as u64;
                buffer.write(&self.context, to, &bytes)?;
            }
        }
        Ok(())
    }
}

/// Recurrent state of one layer of one sequence.
#[derive(Debug)]
pub struct Delta {
    pub(crate) context: Context,
    pub(crate) shape: DeltaShape,
    /// `[taps - 1, channels]`, as `DeltaState::conv`.
    pub(crate) conv: Storage,
    /// As `DeltaState::state`.
    pub(crate) matrices: Storage,
    /// The next pass is to be kept.
    pub(crate) begun: bool,
    pub(crate) undo: Option<Undo>,
    /// Memory of one that is done with.
    pub(crate) spare: Option<Undo>,
    /// Numbers of rows of the next pass after which the state is to be copied.
    pub(crate) after: Vec<usize>,
    pub(crate) kept: Vec<Delta>,
    importing: [Vec<u8>; 2],
    failure: Option<GpuError>,
}

/// What it takes to cut a pass short: the state before it and the inputs of the recurrence.
#[derive(Debug)]
pub(crate) struct Undo {
    pub(crate) rows: usize,
    pub(crate) conv: Storage,
    pub(crate) matrices: Storage,
    pub(crate) u: Storage,
    pub(crate) decay: Storage,
    pub(crate) beta: Storage,
}

fn delta_bytes(shape: &DeltaShape) -> [u64; 2] {
    let matrices = shape.value_heads * shape.key_dim * shape.value_dim;
    [4 * ((shape.taps - 1) * shape.channels()) as u64, 4 * matrices as u64]
}

impl Delta {
    /// All zeros.
    pub(crate) fn new(context: &Context, shape: DeltaShape) -> Delta {
        let mut failure = None;
        let [conv, matrices] = delta_bytes(&shape).map(|bytes| {
            Storage::passing(context, bytes).unwrap_or_else(|error| {
                failure = Some(error);
                Storage::empty(context)
            })
        });
        Delta {
            context: context.clone(),
            shape,
            conv,
            matrices,
            begun: false,
            undo: None,
            spare: None,
            after: Vec::new(),
            kept: Vec::new(),
            importing: Default::default(),
            failure,
        }
    }

    /// The state of a layer that this device does not have.
    pub(crate) fn none(context: &Context) -> Delta {
        let shape = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 16, value_dim: 16, taps: 2 };
        Delta::new(context, shape)
    }

    /// What stood in the way of its memory, if anything did.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// A copy by commands of the recorder.
    pub(crate) fn copied(&self, recorder: &mut Recorder) -> Delta {
        let copy = Delta::new(&self.context, self.shape);
        if copy.failure.is_none() && self.failure.is_none() {
            recorder.copy_storage(&self.conv, 0, &copy.conv, 0, self.conv.bytes());
            recorder.copy_storage(&self.matrices, 0, &copy.matrices, 0, self.matrices.bytes());
        }
        copy
    }

    fn copy(&self) -> Delta {
        let mut recorder = Recorder::new(&self.context);
        let copy = self.copied(&mut recorder);
        drop(recorder.submit());
        copy
    }

    fn values(&self) -> Result<[Vec<f32>; 2], GpuError> {
        self.check()?;
        Ok([self.conv.read(&self.context, DEADLINE)?, self.matrices.read(&self.context, DEADLINE)?])
    }

    fn bytes(&self) -> usize {
        delta_bytes(&self.shape).iter().sum::<u64>() as usize
    }
}

fn failed(error: GpuError) -> ModelError {
    ModelError::Device(error.to_string())
}

impl LayerState for GpuState {
    fn copy(&self) -> Box<dyn LayerState> {
        Box::new(match self {
            GpuState::Attention(keys) => GpuState::Attention(Box::new(keys.at(keys.len))),
            GpuState::Delta(delta) => GpuState::Delta(Box::new(delta.copy())),
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
            GpuState::Attention(keys) => {
                keys.pages.iter().flatten().count() * keys.pool.page_bytes() as usize
            }
            GpuState::Delta(delta) => delta.bytes(),
        }
    }

    fn own_bytes(&self) -> usize {
        match self {
            GpuState::Attention(_) => 0,
            GpuState::Delta(delta) => delta.bytes(),
        }
    }

    fn pages(&self, tell: &mut dyn FnMut(usize, usize)) {
        if let GpuState::Attention(keys) = self {
            let bytes = keys.pool.page_bytes() as usize;
            keys.pages.iter().flatten().for_each(|page| tell(Arc::as_ptr(page).addr(), bytes));
        }
    }

    fn begin_block(&mut self) {
        match self {
            GpuState::Attention(keys) => keys.back_to = Some(keys.len),
            GpuState::Delta(delta) => {
                delta.begun = true;
                delta.spare = delta.undo.take().or(delta.spare.take());
            }
        }
    }

    fn truncate(&mut self, position: usize) {
        if let GpuState::Attention(keys) = self {
            keys.truncate(position);
        }
    }

    fn copy_after(&mut self, rows: &[usize]) {
        match self {
            GpuState::Attention(keys) => {
                let copied = rows.first().map(|rows| keys.len + rows);
                keys.back_to = keys.back_to.iter().copied().chain(copied).min();
            }
            GpuState::Delta(delta) => {
                delta.after = rows.to_vec();
                delta.kept.clear();
            }
        }
    }

    fn take_copies(&mut self, positions: &[usize]) -> Vec<Box<dyn LayerState>> {
        match self {
            GpuState::Attention(keys) => {
                let copy = |&at| Box::new(GpuState::Attention(Box::new(keys.at(at)))) as Box<dyn LayerState>;
                let copies = positions.iter().map(copy).collect();
                keys.forget_before(keys.mask.first_needed(keys.len));
                copies
            }
            GpuState::Delta(delta) => {
                let boxed = |delta| Box::new(GpuState::Delta(Box::new(delta))) as Box<dyn LayerState>;
                std::mem::take(&mut delta.kept).into_iter().map(boxed).collect()
            }
        }
    }

    fn cut(&self, position: usize) -> Option<Box<dyn LayerState>> {
        match self {
            GpuState::Attention(keys) if keys.start == 0 => {
                Some(Box::new(GpuState::Attention(Box::new(keys.at(position)))))
            }
            _ => None,
        }
    }

    fn can_be_cut(&self) -> bool {
        matches!(self, GpuState::Attention(keys) if keys.start == 0)
    }

    fn forgets(&self) -> bool {
        matches!(self, GpuState::Attention(keys) if keys.mask.window.is_some())
    }

    fn recurrent(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let GpuState::Delta(delta) = self else { return None };
        let shape = delta.shape;
        let [conv, matrices] = delta.values().ok()?;
        let mut host = DeltaState::new(&shape);
        (host.conv, host.state) = (conv, matrices);
        let (channels, rows) = (shape.channels(), shape.taps - 1);
        let conv = (0..channels * rows).map(|i| host.conv[i % rows * channels + i / rows]).collect();
        Some((conv, host.matrices(&shape)))
    }

    fn blank(&self, position: usize) -> Box<dyn LayerState> {
        Box::new(match self {
            GpuState::Attention(keys) => GpuState::Attention(Box::new(keys.blank(position))),
            GpuState::Delta(delta) => GpuState::Delta(Box::new(Delta::new(&delta.context, delta.shape))),
        })
    }

    fn exported_bytes(&self) -> usize {
        match self {
            GpuState::Attention(keys) => {
                let held = keys.held(keys.mask.first_needed(keys.len));
                held.flat_map(|(p, _)| keys.pieces(p)).map(|(_, words)| 4 * words).sum()
            }
            GpuState::Delta(delta) => delta.bytes(),
        }
    }

    fn export<'a>(&'a self, sink: StateSink<'_, 'a>) -> Result<(), ModelError> {
        match self {
            GpuState::Attention(keys) => keys.export_to(sink).map_err(failed),
            GpuState::Delta(delta) => {
                for values in delta.values().map_err(failed)? {
                    sink(Cow::Owned(bytemuck::cast_slice(&values).to_vec()));
                }
                Ok(())
            }
        }
    }

    fn import<'a>(&'a mut self, source: StateSource<'_, 'a>) {
        match self {
            GpuState::Attention(keys) => keys.import_from(source),
            GpuState::Delta(delta) => {
                delta.importing = delta_bytes(&delta.shape).map(|bytes| vec![0; bytes as usize]);
                delta.importing.iter_mut().for_each(|piece| source(piece));
            }
        }
    }

    fn imported(&mut self) -> Result<(), ModelError> {
        match self {
            GpuState::Attention(keys) => keys.imported(),
            GpuState::Delta(delta) => delta.check().and_then(|()| {
                let [conv, matrices] = std::mem::take(&mut delta.importing);
                delta.conv.write(&delta.context, 0, &conv)?;
                delta.matrices.write(&delta.context, 0, &matrices)
            }),
        }
        .map_err(failed)
    }
}
