//! Loading: first every matrix is found, checked and given its place, then one allocation is filled by all threads.

use std::sync::Arc;

use mach_checkpoint::{Checkpoint, CheckpointError, Family, ModelConfig, WeightSource};
use mach_experts::{
    Bank, BankError, BankOptions, ExpertFiles, RecordLayout, Sidecar, SlicePool, SliceSource, StreamingBank,
};
use mach_io::faults::Faults;
use mach_io::{HugeBuf, ReaderOptions};
use mach_kernels::{Cores, Isa};
use mach_quant::Order;

use crate::backend::Loader;
use crate::cpu::{Cpu, Matrix};
use crate::cpu_experts::Experts;
use crate::decoder::{Decoder, Parts};
use crate::fill::fill;
use crate::model::{
    Activations, ExpertMode, LoadOptions, LoadProgress, Model, ModelError, StreamingOptions, StreamingSource,
};
use crate::{kv, limits, qwen3_5_moe, qwen3_moe};

/// Matrices start at multiples of a cache line.
const ALIGN: usize = 64;

impl From<BankError> for ModelError {
    fn from(error: BankError) -> Self {
        match error {
            BankError::Checkpoint(e) => ModelError::Checkpoint(e),
            BankError::Sidecar(e) => ModelError::Sidecar(e),
            other => ModelError::Memory(other.to_string()),
        }
    }
}

/// Order of weights that meets an activation path.
pub(crate) fn order_of(activations: Activations) -> Order {
    match activations {
        Activations::Int8 => Order::Tiles,
        Activations::F32 => Order::Rows,
    }
}

/// Loads a checkpoint.
pub fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    limits::check(checkpoint.config())?;
    kv::check(checkpoint.config(), options.activations, options.turboquant_kv)?;
    let isa = match &options.isa {
        Some(name) => name.parse().map_err(ModelError::Unsupported)?,
        None => Isa::best(),
    };
    let cores = Cores::new(options.threads, isa);
    let order = order_of(options.activations);
    let mut plan = Plan::new(checkpoint, order);
    let parts = family_parts(checkpoint, &mut plan)?;
    let resident_bytes = plan.weight_bytes();
    let (experts, resident) = match &options.experts {
        ExpertMode::Resident => {
            // A converted checkpoint has its experts in the sidecar only.
            let sidecar = match checkpoint.resident_index() {
                Some(_) => Some(Sidecar::open(checkpoint)?),
                None => None,
            };
            let bytes_total = resident_bytes + expert_bytes(checkpoint, sidecar.as_ref(), order)?;
            let resident = plan.fill(cores.threads(), bytes_total, progress)?;
            let mut experts_done = |bytes| {
                progress(LoadProgress { bytes_done: resident_bytes + bytes, bytes_total });
            };
            let bank = match sidecar {
                Some(sidecar) => {
                    let mut reader = sidecar.reader(&ReaderOptions::default())?;
                    Bank::from_sidecar(&sidecar, order, &mut reader, &mut experts_done)?
                }
                None => Bank::resident(checkpoint, order, cores.threads(), &mut experts_done)?,
            };
            (Experts::Resident(bank), resident)
        }
        ExpertMode::Streaming(streaming) => {
            let bank = streaming_bank(checkpoint, streaming, order)?;
            (Experts::Streaming(Box::new(bank)), plan.fill(cores.threads(), resident_bytes, progress)?)
        }
    };
    let kv = options.turboquant_kv;
    let cpu = Cpu::new(cores, options.activations, kv, resident, resident_bytes, experts);
    Ok(Box::new(Decoder::new(checkpoint.config().clone(), parts, cpu)))
}

/// Threads that read slices of safetensors.
const SLICE_THREADS: usize = 4;

fn streaming_bank(
    checkpoint: &Checkpoint,
    options: &StreamingOptions,
    order: Order,
) -> Result<StreamingBank, ModelError> {
    let files = match options.source {
        StreamingSource::Sidecar => {
            let sidecar = Sidecar::open(checkpoint)?;
            let defaults = ReaderOptions::default();
            let reader = sidecar.reader(&ReaderOptions {
                submission: options.submission,
                caching: options.caching,
                depth: if options.depth == 0 { defaults.depth } else { options.depth },
                registered: Vec::new(),
            })?;
            let reader = match &options.faults {
                Some(Faults(plan)) => reader.with_faults(Arc::clone(plan)),
                None => reader,
            };
            ExpertFiles::Records { sidecar, reader }
        }
        StreamingSource::Bf16 | StreamingSource::Diagnostic => {
            let source = slices(checkpoint, options.source, order)?;
            let pool =
                SlicePool::new(source, SLICE_THREADS).map_err(|e| ModelError::Memory(e.to_string()))?;
            ExpertFiles::Slices(pool)
        }
    };
    let bank = StreamingBank::new(
        files,
        BankOptions {
            bank_slots: options.bank_slots,
            arena_slots: options.arena_slots,
            top_k: checkpoint.config().moe.top_k,
            order,
            eviction: options.eviction,
            probed_bandwidth: options.probed_bandwidth,
        },
    )?;
    Ok(bank)
}

/// The experts inside the checkpoint's own tensors.
pub(crate) fn slices(
    checkpoint: &Checkpoint,
    source: StreamingSource,
    order: Order,
) -> Result<SliceSource, ModelError> {
    if checkpoint.resident_index().is_some() {
        return Err(ModelError::Unsupported(format!(
            "{}: written by `mach convert`: its experts are in the sidecar only, not in its safetensors",
            checkpoint.dir().display()
        )));
    }
    let slices = SliceSource::of(checkpoint, order)?;
    if source == StreamingSource::Bf16 && !slices.is_bf16() {
        return Err(ModelError::Unsupported(format!(
            "{}: its experts are not plain bfloat16, which is what bf16_streaming is for",
            checkpoint.dir().display()
        )));
    }
    Ok(slices)
}

/// Asks `loader` for every weight of the checkpoint's family.
pub(crate) fn family_parts(
    checkpoint: &Checkpoint,
    loader: &mut impl Loader<Matrix = Matrix, Vector = Vec<f32>>,
) -> Result<Parts<Cpu>, CheckpointError> {
    match checkpoint.config().family {
        Family::Qwen3Moe => qwen3_moe::load(loader),
        Family::Qwen3_5Moe => qwen3_5_moe::load(loader),
    }
}

/// Bytes of all experts' weights: the sidecar's, or from the first record of each layer.
pub(crate) fn expert_bytes(
    checkpoint: &Checkpoint,
    sidecar: Option<&Sidecar>,
    order: Order,
) -> Result<u64, CheckpointError> {
    let mut total = 0;
    if let Some(sidecar) = sidecar {
        let experts = sidecar.manifest().num_experts as u64;
        let records = sidecar.manifest().layers.iter().map(|e| e.record().in_order(order));
        return Ok(records.map(|r| r.weight_bytes() as u64 * experts).sum());
    }
    for layer in (0..checkpoint.config().layers.len()).filter(|&l| checkpoint.config().moe_layers[l]) {
        let experts = checkpoint.experts(layer)?;
        if let Some(first) = experts.first() {
            let record = RecordLayout::of(first, order)?;
            total += (record.weight_bytes() * experts.len()) as u64;
        }
    }
    Ok(total)
}

/// Where each matrix outside the experts goes.
pub(crate) struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    order: Order,
    items: Vec<(WeightSource<'a>, Matrix)>,
    bytes: usize,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, order: Order) -> Self {
        Plan { checkpoint, order, items: Vec::new(), bytes: 0 }
    }

    /// Bytes to allocate.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn fill(
        &self,
        threads: usize,
        bytes_total: u64,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<HugeBuf, ModelError> {
        let memory = fill(self.checkpoint, &self.items, self.bytes, threads, &mut |bytes_done| {
            progress(LoadProgress { bytes_done, bytes_total });
        })?;
        progress(LoadProgress { bytes_done: self.weight_bytes(), bytes_total });
        Ok(memory)
    }

    fn place(&mut self, source: WeightSource<'a>, order: Order) -> Result<Matrix, CheckpointError> {
        let layout = source.layout(order)?;
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
}

impl Loader for Plan<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        let source = self.checkpoint.weights(&self.name(module), rows, cols)?;
        self.place(source, self.order)
    }

    fn float_matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        let source = self.checkpoint.weights(&self.name(module), rows, cols)?;
        self.place(source, Order::Rows)
    }

    fn head(&mut self, embedding: &Matrix) -> Result<Matrix, CheckpointError> {
        let config = self.checkpoint.config();
        if config.tie_word_embeddings {
            return Ok(*embedding);
        }
        let source = self.checkpoint.weights(&config.head_module, config.vocab_size, config.hidden_size)?;
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
        Ok(taps_first(self.checkpoint.conv1d(layer)?, channels, taps))
    }
}

/// `[channels, taps]` transposed.
fn taps_first(stored: Vec<f32>, channels: usize, taps: usize) -> Vec<f32> {
    let mut out = vec![0.0; channels * taps];
    for (i, w) in stored.into_iter().enumerate() {
        out[i % taps * channels + i / taps] = w;
    }
    out
}
