//! Memory of the device, and ways into it and out of it.

use std::sync::mpsc;
use std::time::Duration;

use bytemuck::{NoUninit, Pod};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, MapMode};

use crate::pass::Recorder;
use crate::{Context, GpuError};

/// Bytes that sizes and offsets of copies are multiples of.
pub const WORD: u64 = 4;

/// A storage buffer. Copies are the same buffer.
#[derive(Debug, Clone)]
pub struct Storage {
    raw: Buffer,
    lasting: bool,
}

impl Storage {
    /// Zeros. `bytes` is rounded up to words, and to one at least.
    pub fn new(context: &Context, bytes: u64) -> Result<Storage, GpuError> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        Ok(Storage { raw: create(context, bytes, usage)?, lasting: true })
    }

    /// As [`new`](Self::new), for what comes and goes with a sequence: bindings to it are not kept, for they would keep it.
    pub fn passing(context: &Context, bytes: u64) -> Result<Storage, GpuError> {
        Ok(Storage { lasting: false, ..Storage::new(context, bytes)? })
    }

    /// Whether bindings to it may be kept.
    pub(crate) fn lasts(&self) -> bool {
        self.lasting
    }

    /// A few bytes, in the place of one that could not be had.
    pub fn empty(context: &Context) -> Storage {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let description = BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false };
        Storage { raw: context.device.create_buffer(&description), lasting: false }
    }

    /// Filled from the host.
    pub fn of<T: NoUninit>(context: &Context, data: &[T]) -> Result<Storage, GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let storage = Storage::new(context, bytes.len() as u64)?;
        storage.write(context, 0, bytes)?;
        Ok(storage)
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.raw.size()
    }

    /// What wgpu calls it.
    pub fn raw(&self) -> Buffer {
        self.raw.clone()
    }

    pub(crate) fn raw_ref(&self) -> &Buffer {
        &self.raw
    }

    /// Takes in bytes from the host, before whatever is submitted next. Lengths that are no whole words are padded with
    /// zeros; `offset` is a multiple of 4.
    pub fn write(&self, context: &Context, offset: u64, bytes: &[u8]) -> Result<(), GpuError> {
        let padded = (bytes.len() as u64).next_multiple_of(WORD);
        if !offset.is_multiple_of(WORD) || offset.checked_add(padded).is_none_or(|end| end > self.bytes()) {
            return Err(GpuError::Invalid(format!("{} bytes written at {offset}", bytes.len())));
        }
        let whole = bytes.len() / WORD as usize * WORD as usize;
        let (whole, rest) = bytes.split_at(whole);
        if !whole.is_empty() {
            context.queue.write_buffer(&self.raw, offset, whole);
        }
        if !rest.is_empty() {
            let mut word = [0u8; WORD as usize];
            word[..rest.len()].copy_from_slice(rest);
            context.queue.write_buffer(&self.raw, offset + whole.len() as u64, &word);
        }
        Ok(())
    }

    /// Reads all of it back.
    pub fn read<T: Pod>(&self, context: &Context, deadline: Duration) -> Result<Vec<T>, GpuError> {
        let staging = Staging::new(context, self.bytes())?;
        let mut recorder = Recorder::new(context);
        recorder.copy(self, 0, staging.raw_ref(), 0, self.bytes());
        recorder.submit().wait(deadline)?;
        staging.read(context, self.bytes(), deadline)
    }
}

/// Memory of the host that the device copies into.
#[derive(Debug)]
pub struct Staging {
    raw: Buffer,
}

impl Staging {
    /// Room for `bytes`.
    pub fn new(context: &Context, bytes: u64) -> Result<Staging, GpuError> {
        Ok(Staging { raw: create(context, bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)? })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.raw.size()
    }

    pub(crate) fn raw_ref(&self) -> &Buffer {
        &self.raw
    }

    /// The first `bytes` of it, once the copies into it are done.
    pub fn read<T: Pod>(
        &self,
        context: &Context,
        bytes: u64,
        deadline: Duration,
    ) -> Result<Vec<T>, GpuError> {
        let bytes = bytes.next_multiple_of(WORD).clamp(WORD, self.bytes());
        let (tell, told) = mpsc::sync_channel(1);
        let slice = self.raw.slice(..bytes);
        slice.map_async(MapMode::Read, move |mapped| {
            // Nobody listens any more after an error.
            let _ = tell.send(mapped);
        });
        let waited =
            context.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(deadline) });
        if waited.is_err() {
            context.fail(GpuError::Hang(deadline));
        }
        context.check()?;
        match told.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(GpuError::Lost(error.to_string())),
            Err(_) => return Err(GpuError::Hang(deadline)),
        }
        let view = slice.get_mapped_range().map_err(|error| GpuError::Invalid(error.to_string()))?;
        let size = size_of::<T>().max(1);
        let values = bytemuck::pod_collect_to_vec(&view[..view.len() / size * size]);
        drop(view);
        self.raw.unmap();
        Ok(values)
    }
}

fn create(context: &Context, bytes: u64, usage: BufferUsages) -> Result<Buffer, GpuError> {
    let size = bytes.next_multiple_of(WORD).max(WORD);
    if size > context.limits().max_buffer_size {
        return Err(GpuError::OutOfMemory(format!(
            "a buffer of {size} bytes; this device takes {}",
            context.limits().max_buffer_size
        )));
    }
    let raw = context.device.create_buffer(&BufferDescriptor {
        label: None,
        size,
        usage,
        mapped_at_creation: false,
    });
    context.check()?;
    Ok(raw)
}
