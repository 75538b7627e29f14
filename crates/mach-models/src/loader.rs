//! Loading: first every matrix is found, checked and given its place, then one allocation is filled by all threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mach_checkpoint::{Checkpoint, CheckpointError, Family, LinearSource, ModelConfig};
use mach_experts::{Bank, BankError};
use mach_io::HugeBuf;
use mach_kernels::{Isa, Pool};
use mach_quant::{MatrixLayout, Order};

use crate::backend::Loader;
use crate::cpu::{Cpu, Matrix};
use crate::decoder::Decoder;
use crate::model::{Activations, LoadOptions, LoadProgress, Model, ModelError};
use crate::{qwen3_5_moe, qwen3_moe};

/// Matrices start at multiples of a cache line.
const ALIGN: usize = 64;

impl From<BankError> for ModelError {
    fn from(error: BankError) -> Self {
        match error {
            BankError::Checkpoint(e) => ModelError::Checkpoint(e),
            other => ModelError::Memory(other.to_string()),
        }
    }
}

/// Loads a checkpoint with all experts resident.
pub fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    let isa = match &options.isa {
        Some(name) => name.parse().map_err(ModelError::Unsupported)?,
        None => Isa::best(),
    };
    let pool = Pool::new(options.threads);
    let order = match options.activations {
        Activations::Int8 => Order::Tiles,
        Activations::F32 => Order::Rows,
    };
    let mut plan = Plan { checkpoint, order, items: Vec::new(), bytes: 0 };
    let config = checkpoint.config();
    let parts = match config.family {
        Family::Qwen3Moe => qwen3_moe::load(&mut plan)?,
        Family::Qwen3_5Moe => qwen3_5_moe::load(&mut plan)?,
    };
    let expert_bytes = expert_bytes(checkpoint, order)?;
    let bytes_total = plan.weight_bytes() + expert_bytes;
    let resident_bytes = plan.weight_bytes();
    let resident =
        plan.fill(pool.threads(), &mut |bytes_done| progress(LoadProgress { bytes_done, bytes_total }))?;
    let bank = Bank::resident(checkpoint, order, pool.threads(), &mut |bytes| {
        progress(LoadProgress { bytes_done: resident_bytes + bytes, bytes_total });
    })?;
    progress(LoadProgress { bytes_done: bytes_total, bytes_total });
    let cpu = Cpu::new(pool, isa, options.activations, resident, resident_bytes, bank);
    Ok(Box::new(Decoder::new(config.clone(), parts, cpu)))
}

/// Bytes of all experts' weights, from the first record of each layer.
fn expert_bytes(checkpoint: &Checkpoint, order: Order) -> Result<u64, CheckpointError> {
    let mut total = 0;
    for layer in (0..checkpoint.config().layers.len()).filter(|&l| checkpoint.config().moe_layers[l]) {
        let experts = checkpoint.experts(layer)?;
        if let Some(first) = experts.first() {
            let record = mach_experts::RecordLayout::of(first, order)?;
            total += (record.weight_bytes() * experts.len()) as u64;
        }
    }
    Ok(total)
}

struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    order: Order,
    items: Vec<(LinearSource<'a>, Matrix)>,
    bytes: usize,
}

impl<'a> Plan<'a> {
    fn place(&mut self, source: LinearSource<'a>, order: Order) -> Result<Matrix, CheckpointError> {
        let layout = MatrixLayout::of(&source.source()?, order);
        let matrix = Matrix { layout, offset: self.bytes };
        self.bytes = (self.bytes + layout.bytes()).next_multiple_of(ALIGN);
        self.items.push((source, matrix));
        Ok(matrix)
    }

    fn name(&self, relative: &str) -> String {
        format!("{}{relative}", self.checkpoint.config().tensor_prefix)
    }

    fn weight_bytes(&self) -> u64 {
        self.items.iter().map(|(_, m)| m.layout.bytes() as u64).sum()
    }

    /// Packs every matrix into one allocation, in chunks of some units so that all threads have work.
    fn fill(self, threads: usize, progress: &mut dyn FnMut(u64)) -> Result<HugeBuf, ModelError> {
        const CHUNK: usize = 1 << 20;
        let mut memory = HugeBuf::zeroed(self.bytes).map_err(|e| ModelError::Memory(e.to_string()))?;
        let mut jobs = Vec::new();
        let mut rest: &mut [u8] = &mut memory;
        let mut at = 0;
        for (source, matrix) in &self.items {
            source.check_finite()?;
            let layout = matrix.layout;
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(matrix.offset - at);
            let (mut mine, tail) = tail.split_at_mut(layout.bytes());
            rest = tail;
            at = matrix.offset + layout.bytes();
            let units = (CHUNK / layout.unit_bytes().max(1)).max(1);
            let mut first = 0;
            while !mine.is_empty() {
                let take = (units * layout.unit_bytes()).min(mine.len());
                let (chunk, others) = std::mem::take(&mut mine).split_at_mut(take);
                mine = others;
                jobs.push((source.source()?, layout, first, chunk));
                first += units;
            }
        }
        let workers = threads.clamp(1, jobs.len().max(1));
        let queue = Mutex::new(jobs.into_iter());
        let (done, finished) = (AtomicU64::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((source, layout, first, chunk)) =
                        queue.lock().ok().and_then(|mut q| q.next())
                    {
                        layout.pack(&source, first, chunk);
                        done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    }
                    finished.fetch_add(1, Ordering::Release);
                });
            }
            while finished.load(Ordering::Acquire) < workers {
                std::thread::sleep(std::time::Duration::from_millis(5));
                progress(done.load(Ordering::Relaxed));
            }
        });
        Ok(memory)
    }
}

impl Loader for Plan<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        let source = self.checkpoint.linear(&self.name(module), rows, cols)?;
        self.place(source, self.order)
    }

    fn float_matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        let source = self.checkpoint.linear(&self.name(module), rows, cols)?;
        self.place(source, Order::Rows)
    }

    fn head(&mut self, embedding: &Matrix) -> Result<Matrix, CheckpointError> {
        let config = self.checkpoint.config();
        if config.tie_word_embeddings {
            return Ok(*embedding);
        }
        let source = self.checkpoint.linear(&config.head_module, config.vocab_size, config.hidden_size)?;
        self.place(source, self.order)
    }

    fn vector(
        &mut self,
        tensor: &str,
        shape: &[usize],
        map: &dyn Fn(f32) -> f32,
    ) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.checkpoint.floats(&self.name(tensor), shape)?.into_iter().map(map).collect())
    }

    fn norm(&mut self, tensor: &str, n: usize) -> Result<Vec<f32>, CheckpointError> {
        let offset = self.checkpoint.norm_offset();
        self.vector(tensor, &[n], &|w| w + offset)
    }

    fn conv1d(&mut self, layer: usize, channels: usize, taps: usize) -> Result<Vec<f32>, CheckpointError> {
        let stored = self.checkpoint.conv1d(layer)?;
        let mut out = vec![0.0; channels * taps];
        for (i, w) in stored.into_iter().enumerate() {
            out[i % taps * channels + i / taps] = w;
        }
        Ok(out)
    }
}
