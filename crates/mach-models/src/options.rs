//! How a model is loaded, on whatever device.

use mach_experts::EvictionPolicy;
use mach_io::faults::Faults;
use mach_io::{Caching, Submission};
use mach_quant::TurboQuant;

/// Which activation path the linear layers take (design section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Rows quantized to int8 per group, exact integer dot products. The default.
    #[default]
    Int8,
    /// Exact float32 activations and float32 KV; slower, held to outside references.
    F32,
}

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Activation path.
    pub activations: Activations,
    /// Compute threads; 0 means all available.
    pub threads: usize,
    /// Instruction set by name (`scalar`, `avx2`, `avx-vnni`, `avx512`, `neon`, `neon-dotprod`); `None` picks the best the machine has.
    pub isa: Option<String>,
    /// Keys and values rotated and quantized; changes logits a little. `None` keeps them as the activations ask.
    pub turboquant_kv: Option<TurboQuant>,
    /// Where routed experts are.
    pub experts: ExpertMode,
}

/// Where routed experts are while the model runs. Changes speed and memory, never a logit.
#[derive(Debug, Clone, Default)]
pub enum ExpertMode {
    /// All in memory.
    #[default]
    Resident,
    /// On the drive, those in use in a bank.
    Streaming(StreamingOptions),
}

/// What experts are streamed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamingSource {
    /// The records of the sidecar.
    #[default]
    Sidecar,
    /// Plain bfloat16 experts of the checkpoint's own tensors.
    Bf16,
    /// Whatever the checkpoint's own tensors are: slow, to find out what is wrong with a sidecar.
    Diagnostic,
}

/// How experts are streamed.
#[derive(Debug, Clone, Default)]
pub struct StreamingOptions {
    /// From what.
    pub source: StreamingSource,
    /// Slots of the bank: 0, or at least the experts of one token.
    pub bank_slots: usize,
    /// Slots of the arena.
    pub arena_slots: usize,
    /// Which expert leaves a full bank.
    pub eviction: EvictionPolicy,
    /// System interface that reads.
    pub submission: Submission,
    /// Past the page cache or through it.
    pub caching: Caching,
    /// Most reads at the drive at one time; 0 for a number that suits most drives.
    pub depth: usize,
    /// Bytes a second of random reads that a probe found, for statistics.
    pub probed_bandwidth: Option<f64>,
    /// Reads that fail on purpose, for tests.
    pub faults: Option<Faults>,
}

/// Reported while loading, once for each unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights placed so far.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}
