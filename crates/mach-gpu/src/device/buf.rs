//! Activations on the device, and what a pass brings along from the host.

use crate::{Context, GpuError, Slice, Storage};

/// Rows of activations `[rows, width]`.
#[derive(Debug, Default)]
pub struct Buf {
    pub(crate) storage: Option<Storage>,
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

impl Buf {
    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.rows * self.width) as u64
    }
}

/// Which experts each row goes to.
#[derive(Debug, Default)]
pub struct Routing {
    /// `[rows, top_k]`, by falling weight.
    pub(crate) experts: Option<Storage>,
    /// `[rows, top_k]`.
    pub(crate) weights: Option<Storage>,
    /// `[rows]`: what multiplies the shared expert's output.
    pub(crate) shared: Option<Storage>,
    pub(crate) rows: usize,
    pub(crate) top_k: usize,
    pub(crate) gated: bool,
}

/// Makes a buffer of at least these bytes, keeping one that is large enough.
pub(crate) fn at_least(
    context: &Context,
    slot: &mut Option<Storage>,
    bytes: u64,
) -> Result<Storage, GpuError> {
    if let Some(storage) = slot.as_ref().filter(|storage| storage.bytes() >= bytes) {
        return Ok(storage.clone());
    }
    let grown = slot.as_ref().map_or(0, |old| old.bytes() * 3 / 2);
    let storage = Storage::new(context, bytes.max(grown.min(bytes * 2)).max(256))?;
    *slot = Some(storage.clone());
    Ok(storage)
}

/// Small things that the host brings to the commands of a pass: lists, tables. They are written in one go before the
/// commands are submitted.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    blocks: Vec<Block>,
    open: usize,
}

#[derive(Debug)]
struct Block {
    storage: Storage,
    bytes: Vec<u8>,
}

/// Bytes of a block.
const BLOCK: usize = 1 << 20;

/// A place in a block: a buffer and where in it.
#[derive(Debug, Clone)]
pub(crate) struct Uploaded {
    pub(crate) storage: Storage,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Uploaded {
    pub(crate) fn slice(&self) -> Slice<'_> {
        Slice { buffer: &self.storage, offset: self.offset, bytes: self.bytes }
    }
}

impl Uploads {
    pub(crate) fn put(&mut self, context: &Context, bytes: &[u8]) -> Result<Uploaded, GpuError> {
        let align = context.limits().min_storage_buffer_offset_alignment.max(16) as usize;
        let len = bytes.len().next_multiple_of(16).max(16);
        loop {
            let Some(block) = self.blocks.get_mut(self.open) else {
                let size = BLOCK.max(len);
                let storage = Storage::new(context, size as u64)?;
                self.blocks.push(Block { storage, bytes: Vec::new() });
                continue;
            };
            let at = block.bytes.len().next_multiple_of(align);
            if at + len > block.storage.bytes() as usize {
                self.open += 1;
                continue;
            }
            block.bytes.resize(at, 0);
            block.bytes.extend_from_slice(bytes);
            block.bytes.resize(at + len, 0);
            return Ok(Uploaded { storage: block.storage.clone(), offset: at as u64, bytes: len as u64 });
        }
    }

    /// Hands everything to the queue, ahead of what is submitted next.
    pub(crate) fn write(&mut self, context: &Context) -> Result<(), GpuError> {
        for block in &mut self.blocks {
            if !block.bytes.is_empty() {
                block.storage.write(context, 0, &block.bytes)?;
                block.bytes.clear();
            }
        }
        self.open = 0;
        // What an unusual pass needed goes with it.
        self.blocks.retain(|block| block.storage.bytes() <= BLOCK as u64);
        self.blocks.truncate(8);
        Ok(())
    }
}
