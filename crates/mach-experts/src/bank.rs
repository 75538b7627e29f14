//! The allocation that holds experts, one slot each.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mach_checkpoint::{Checkpoint, CheckpointError};
use mach_io::{HugeBuf, MemoryError};
use mach_quant::Order;

use crate::record::{ExpertView, RecordLayout};

/// Why a bank cannot be filled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BankError {
    /// The checkpoint's experts are unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Slots for experts, all in one allocation. With all experts resident the slot of (layer, expert) is
/// `rank of the layer among MoE layers * experts + expert`.
#[derive(Debug)]
pub struct Bank {
    memory: HugeBuf,
    stride: usize,
    experts: usize,
    /// One entry a layer; `None` for dense layers.
    layers: Vec<Option<(usize, RecordLayout)>>,
    weight_bytes: u64,
}

impl Bank {
    /// Reads every expert of the checkpoint into the bank with `threads` threads. `progress` hears how many bytes of
    /// weights are placed; it is called from the calling thread.
    pub fn resident(
        checkpoint: &Checkpoint,
        order: Order,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Bank, BankError> {
        let config = checkpoint.config();
        let experts = config.moe.num_experts;
        let mut layers = Vec::with_capacity(config.layers.len());
        let (mut sources, mut stride, mut weight_bytes) = (Vec::new(), 0, 0);
        for (layer, _) in config.moe_layers.iter().enumerate() {
            if !config.moe_layers[layer] {
                layers.push(None);
                continue;
            }
            let these = checkpoint.experts(layer)?;
            let Some(first) = these.first() else {
                layers.push(None);
                continue;
            };
            let record = RecordLayout::of(first, order)?;
            for (e, expert) in these.iter().enumerate() {
                if RecordLayout::of(expert, order)? != record {
                    return Err(CheckpointError::Tensor {
                        file: expert.gate.file.to_path_buf(),
                        tensor: expert.gate.module.to_owned(),
                        reason: format!("expert {e} is stored in another format than expert 0 of its layer"),
                    }
                    .into());
                }
            }
            stride = stride.max(record.stride());
            weight_bytes += (record.weight_bytes() * these.len()) as u64;
            layers.push(Some((sources.len(), record)));
            sources.push((record, these));
        }
        let mut memory = HugeBuf::zeroed(sources.len() * experts * stride)?;
        let jobs: Vec<_> = memory
            .chunks_exact_mut(stride.max(1))
            .zip(sources.iter().flat_map(|(record, these)| these.iter().map(move |e| (record, e))))
            .collect();
        fill(jobs, threads, progress)?;
        Ok(Bank { memory, stride, experts, layers, weight_bytes })
    }

    /// The weights of an expert; `None` if the layer is dense or the expert out of range.
    pub fn expert(&self, layer: usize, expert: usize) -> Option<ExpertView<'_>> {
        let (rank, record) = self.layers.get(layer)?.as_ref()?;
        if expert >= self.experts {
            return None;
        }
        let slot = rank * self.experts + expert;
        Some(record.view(self.memory.get(slot * self.stride..(slot + 1) * self.stride)?))
    }

    /// The record layout of a layer.
    pub fn record(&self, layer: usize) -> Option<&RecordLayout> {
        self.layers.get(layer)?.as_ref().map(|(_, record)| record)
    }

    /// Slots.
    pub fn slots(&self) -> usize {
        self.memory.len().checked_div(self.stride).unwrap_or(0)
    }

    /// Bytes of weights, padding not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.memory.len()
    }

    /// Bytes of the bank on huge pages.
    pub fn huge_bytes(&self) -> Option<usize> {
        self.memory.huge_bytes()
    }
}

type Job<'a, 'b> = (&'a mut [u8], (&'b RecordLayout, &'b mach_checkpoint::ExpertSource<'b>));

fn fill(
    jobs: Vec<Job<'_, '_>>,
    threads: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CheckpointError> {
    let total = jobs.len();
    let queue = Mutex::new(jobs.into_iter());
    let (done, finished) = (AtomicU64::new(0), AtomicUsize::new(0));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, total.max(1)) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut q| q.next());
                    let Some((memory, (record, expert))) = next else { break };
                    if let Err(error) = record.pack(expert, memory) {
                        if let Ok(mut first) = failure.lock() {
                            first.get_or_insert(error);
                        }
                        break;
                    }
                    done.fetch_add(record.weight_bytes() as u64, Ordering::Relaxed);
                }
                finished.fetch_add(1, Ordering::Release);
            });
        }
        let workers = threads.clamp(1, total.max(1));
        while finished.load(Ordering::Acquire) < workers {
            std::thread::sleep(std::time::Duration::from_millis(5));
            progress(done.load(Ordering::Relaxed));
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
